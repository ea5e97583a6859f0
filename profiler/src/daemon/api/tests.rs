use super::*;

use std::net::SocketAddr;

use sha2::{Digest as _, Sha256};

/// An address that nobody listens on.
fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

fn served(tokens_text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tokens");
    std::fs::write(&file, tokens_text).unwrap();
    let settings = Daemon { token_file: (!tokens_text.is_empty()).then_some(file), ..Daemon::default() };
    served_as(dir, settings)
}

fn served_as(dir: tempfile::TempDir, settings: Daemon) -> (tempfile::TempDir, String) {
    let targets = vec![TargetStatus { name: "api".into(), ..TargetStatus::default() }];
    served_after(dir, settings, Snapshot { targets, ..Snapshot::default() })
}

fn served_after(dir: tempfile::TempDir, settings: Daemon, last: Snapshot) -> (tempfile::TempDir, String) {
    let address = free_address();
    let settings = Daemon { listen: address.to_string(), ..settings };
    let shared = Shared::new(dir.path(), &settings).unwrap();
    let config = crate::daemon::config::parse("[[targets]]\nname = \"api\"\ncomm = \"node\"\n").unwrap();
    let rules = config.rules.clone();
    shared.configure(&rules, &crate::daemon::config::Config { daemon: settings.clone(), ..config }).unwrap();
    shared.publish(last);
    serve(&settings, Arc::new(shared)).unwrap();
    (dir, format!("http://{address}"))
}

fn ask(method: &str, url: &str, headers: &[(&str, &str)]) -> (u16, String) {
    send(method, url, headers, "")
}

fn send(method: &str, url: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .allow_non_standard_methods(true)
        .build()
        .into();
    let mut request = axum::http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut response = agent.run(request.body(body.to_owned()).unwrap()).unwrap();
    (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
}

fn hash(token: &str) -> String {
    Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn it_is_ready_as_long_as_windows_do_not_fail() {
    for (failed, window_unix_ms, expected) in
        [(false, None, 503), (false, Some(1), 200), (true, Some(1), 503)]
    {
        let last = Snapshot { failed, window_unix_ms, ..Snapshot::default() };
        let (_dir, url) = served_after(tempfile::tempdir().unwrap(), Daemon::default(), last);
        assert_eq!(ask("GET", &format!("{url}/readyz"), &[]).0, expected);
    }
}

#[test]
fn without_tokens_this_machine_may_read_and_not_change() {
    let (_dir, url) = served("");
    let status = |method: &str, path: &str| ask(method, &format!("{url}{path}"), &[]).0;
    assert_eq!(status("GET", "/healthz"), 200);
    assert_eq!(status("GET", "/readyz"), 503);
    for path in
        ["/metrics", "/api/v1/targets", "/api/v1/alerts?firing=true", "/api/v1/rules", "/api/v1/findings"]
    {
        assert_eq!(status("GET", path), 200, "{path}");
    }
    assert_eq!(status("POST", "/api/v1/alerts/x/ack"), 403);
    assert_eq!(status("GET", "/api/v1/alerts/x"), 404);
    assert_eq!(status("GET", "/api/v2"), 404);
    assert_eq!(status("GET", "/api/v1/metrics/history?target=a&metric=nothing"), 404);
    assert_eq!(status("GET", "/api/v1/metrics/history?target=a&metric=threads"), 200);
    assert_eq!(status("GET", "/api/v1/metrics/history?target=a&metric=threads&from=5&to=4"), 400);
    let extreme =
        "/api/v1/metrics/history?target=a&metric=threads&from=-9223372036854775808&to=9223372036854775807";
    assert_eq!(status("GET", extreme), 400);
    assert_eq!(ask("GET", &format!("{url}/metrics"), &[("Host", "evil.example")]).0, 403);
}

#[test]
fn tokens_decide_who_may_do_what_and_refusals_say_nothing() {
    let (_dir, url) = served(&format!("# ours\nreader:{}\nadmin:{}\n", hash("read"), hash("rule")));
    let as_who = |method: &str, path: &str, token: &str| {
        ask(method, &format!("{url}{path}"), &[("Authorization", &format!("Bearer {token}"))])
    };
    assert_eq!(ask("GET", &format!("{url}/healthz"), &[]).0, 200);
    assert_eq!(ask("GET", &format!("{url}/metrics"), &[]).0, 401);
    assert_eq!(as_who("GET", "/metrics", "read").0, 200);
    assert_eq!(as_who("POST", "/api/v1/alerts/x/ack", "read").0, 403);
    assert_eq!(as_who("POST", "/api/v1/alerts/x/ack", "rule").0, 404);
    let refused = |path: &str| as_who("GET", path, "wrong");
    assert_eq!(refused("/api/v1/alerts/x"), refused("/metrics"), "nothing is learned from a refusal");
}

#[test]
fn a_token_file_without_tokens_lets_nobody_in() {
    let (_dir, url) = served("# none yet\n");
    assert_eq!(ask("GET", &format!("{url}/metrics"), &[]).0, 401);
    assert_eq!(ask("GET", &format!("{url}/metrics"), &[("Authorization", "Bearer ")]).0, 401);
}

#[test]
fn tokens_of_a_sites_login_open_what_its_names_say_and_changes_have_a_name() {
    let (dir, signer) = (tempfile::tempdir().unwrap(), jwt::fixtures::Signer::new("k1"));
    let keys = dir.path().join("jwks.json");
    std::fs::write(&keys, &signer.published).unwrap();
    let settings = Daemon { jwt: Some(jwt::fixtures::settings(&keys)), ..Daemon::default() };
    let (dir, url) = served_as(dir, settings);
    let as_who = |method: &str, path: &str, roles: &str| {
        let token = signer.token(serde_json::json!({ "realm.roles": roles }));
        send(method, &format!("{url}{path}"), &[("Authorization", &format!("Bearer {token}"))], "{}").0
    };
    assert_eq!(ask("GET", &format!("{url}/metrics"), &[]).0, 401);
    assert_eq!(as_who("GET", "/metrics", "sre"), 200);
    assert_eq!(as_who("GET", "/metrics", "dev"), 401);
    assert_eq!(as_who("POST", "/api/v1/captures", "sre"), 403);
    assert_eq!(as_who("POST", "/api/v1/captures", "sre-lead"), 202);
    let db = rusqlite::Connection::open(dir.path().join("alerts.sqlite")).unwrap();
    let of = |column: &str| -> String {
        db.query_row(&format!("SELECT {column} FROM audit"), [], |row| row.get(0)).unwrap()
    };
    assert_eq!((of("who"), of("what")), ("ada".to_owned(), "capture".to_owned()));
}

/// An admin who asks.
struct Admin {
    url: String,
    _dir: tempfile::TempDir,
}

impl Admin {
    fn new() -> Admin {
        let (dir, url) = served(&format!("admin:{}\n", hash("rule")));
        Admin { url, _dir: dir }
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (u16, serde_json::Value) {
        let mut all = vec![("Authorization", "Bearer rule")];
        all.extend(headers);
        let (status, text) = send(method, &format!("{}{path}", self.url), &all, body);
        (status, serde_json::from_str(&text).unwrap_or_default())
    }
}

#[test]
fn silences_begin_and_end() {
    let admin = Admin::new();
    for (body, why) in [
        ("", "body"),
        ("{}", "body"),
        ("{\"for\": \"soon\"}", "for"),
        ("{\"for\": \"1y\"}", "for"),
        ("{\"for\": \"1h\", \"rule\": \"x\"}", "rule"),
        ("{\"for\": \"1h\", \"target\": \"x\"}", "target"),
        ("{\"for\": \"1h\", \"targets\": \"api\"}", "body"),
    ] {
        let (status, answer) = admin.send("POST", "/api/v1/silences", &[], body);
        assert_eq!((status, answer["error"]["code"].as_str()), (400, Some(why)), "{body}");
    }
    let (status, made) = admin.send(
        "POST",
        "/api/v1/silences",
        &[],
        "{\"target\": \"api\", \"for\": \"1h\", \"reason\": \"a deploy\"}",
    );
    assert_eq!(status, 200, "{made}");
    let all = || admin.send("GET", "/api/v1/silences", &[], "").1["data"].clone();
    assert_eq!((&all()[0]["target"], &all()[0]["reason"]), (&"api".into(), &"a deploy".into()));
    let one = format!("/api/v1/silences/{}", made["data"]["id"]);
    assert_eq!(admin.send("DELETE", &one, &[], "").0, 200);
    assert_eq!(admin.send("DELETE", &one, &[], "").0, 404);
    assert_eq!(all(), serde_json::json!([]));
}

#[test]
fn thresholds_change_for_those_who_have_seen_them() {
    let admin = Admin::new();
    let path = "/api/v1/thresholds";
    let (_, before) = admin.send("GET", path, &[], "");
    assert_eq!(before["data"]["rules"]["cpu-quota"]["warning_from"], "built in");
    let change = "{\"eventLoopDelay\": {\"warning\": 20}}";
    assert_eq!(admin.send("PUT", path, &[("If-Match", "\"old\"")], change).0, 412);
    let (status, after) = admin.send("PUT", path, &[("If-Match", "*")], change);
    assert_eq!(status, 200, "{after}");
    let rule = &after["data"]["rules"]["event-loop-delay"];
    assert_eq!((&rule["warning"], &rule["warning_from"]), (&0.02.into(), &"api".into()));
    assert_eq!(rule["critical_from"], "built in");
    let (status, why) = admin.send("PUT", path, &[], "{\"leak\": {\"warning\": 5}}");
    assert_eq!((status, why["error"]["code"].as_str()), (422, Some("thresholds")));
}

#[test]
fn what_cannot_be_known_is_not_made_up() {
    let admin = Admin::new();
    let (status, why) = admin.send("GET", "/api/v1/latency", &[], "");
    assert_eq!((status, why["error"]["code"].as_str()), (404, Some("no_requests")));
    assert_eq!(admin.send("GET", "/api/v1/report", &[], "").0, 404);
    assert_eq!(admin.send("GET", "/api/v1/diff?a=1&b=2", &[], "").0, 404);
    assert_eq!(admin.send("GET", "/api/v1/diff?a=1&b=x", &[], "").1["error"]["code"], "request");
    assert_eq!(admin.send("GET", "/api/v1/profiles?window=1&format=gif", &[], "").0, 400);
    assert_eq!(admin.send("POST", "/api/v1/captures", &[], "{\"windows\": 2}").0, 202);
    assert_eq!(admin.send("POST", "/api/v1/captures", &[], "{\"windows\": 0}").0, 400);
    assert_eq!(admin.send("GET", "/api/v1/events?topics=weather", &[], "").0, 400);
}

#[test]
fn the_document_says_what_is_served_and_every_answer_is_in_it() {
    let admin = Admin::new();
    let (status, document) = admin.send("GET", "/api/v1/openapi.json", &[], "");
    assert_eq!(status, 200);
    let operations: usize =
        document["paths"].as_object().unwrap().values().map(|path| path.as_object().unwrap().len()).sum();
    assert_eq!(operations, ROUTES.len());
    for route in ROUTES.iter().filter(|route| route.path != "/api/v1/events") {
        let path = route.path.replace("{id}", "1");
        let described = &document["paths"][route.path][route.method];
        for query in ["", "?target=api", "?target=x&metric=threads&a=1&b=2", "?from=x&window=x&limit=x&a=x"] {
            let (status, answer) =
                admin.send(&route.method.to_uppercase(), &format!("{path}{query}"), &[], "");
            assert!(
                !described["responses"][status.to_string()].is_null(),
                "{} {path}{query}: {status}",
                route.method
            );
            if status >= 400 {
                assert!(answer["error"]["code"].is_string(), "{path}{query}: {answer}");
            }
        }
        // Nobody gets anything without a token, and every refusal is the same.
        let refused = send(&route.method.to_uppercase(), &format!("{}{path}", admin.url), &[], "");
        assert_eq!(refused.0 == 401, !route.open, "{path}: {refused:?}");
    }
}

#[test]
fn a_body_that_is_too_long_is_refused() {
    let admin = Admin::new();
    let (status, answer) = admin.send("PUT", "/api/v1/thresholds", &[], &"x".repeat(MAX_BODY + 1));
    assert_eq!(status, 413, "{answer}");
}

#[test]
fn too_many_requests_are_refused_for_a_while() {
    let (_dir, url) = served("");
    let statuses: Vec<u16> = (0..2000).map(|_| ask("GET", &format!("{url}/healthz"), &[]).0).collect();
    let refused = statuses.iter().filter(|status| **status == 429).count();
    assert!(statuses[..300].iter().all(|status| *status == 200));
    assert!(refused > 0 && refused < 1700, "{refused} of 2000");
}

#[test]
fn with_a_certificate_it_is_encrypted() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (cert, key, tokens) = (dir.path().join("cert"), dir.path().join("key"), dir.path().join("tokens"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    std::fs::write(&tokens, format!("reader:{}\n", hash("read"))).unwrap();
    let port = free_address().port();
    let settings = Daemon {
        listen: format!("0.0.0.0:{port}"),
        token_file: Some(tokens.clone()),
        tls_cert: Some(cert.clone()),
        tls_key: Some(key),
        ..Daemon::default()
    };
    serve(&settings, Arc::new(Shared::new(dir.path(), &settings).unwrap())).unwrap();
    let trusted = ureq::tls::Certificate::from_pem(&std::fs::read(&cert).unwrap()).unwrap();
    let tls = ureq::tls::TlsConfig::builder().root_certs(ureq::tls::RootCerts::from([trusted])).build();
    let agent: ureq::Agent =
        ureq::Agent::config_builder().http_status_as_error(false).tls_config(tls).build().into();
    // Somebody who never says anything holds up nobody.
    let _silent = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let url = format!("https://localhost:{port}/metrics");
    let status = |token: &str| {
        let asked = agent.get(&url).header("Authorization", format!("Bearer {token}")).call();
        asked.unwrap().status().as_u16()
    };
    assert_eq!((status("read"), status("wrong")), (200, 401));
    let plain = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    use std::io::{Read as _, Write as _};
    (&plain).write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = (&plain).read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "nothing is said in the clear");
}

#[test]
fn events_come_as_they_happen_and_go_on_where_they_ended() {
    use std::io::{BufRead as _, BufReader, Write as _};
    let dir = tempfile::tempdir().unwrap();
    let address = free_address();
    let shared = Arc::new(Shared::new(dir.path(), &Daemon::default()).unwrap());
    serve(&Daemon { listen: address.to_string(), ..Daemon::default() }, Arc::clone(&shared)).unwrap();
    let listen = |headers: &str| {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        let asked = format!("GET /api/v1/events?topics=alert HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
        stream.write_all(asked.as_bytes()).unwrap();
        let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
        // Whoever has the head of the answer listens.
        lines.by_ref().find(|line| line.is_empty()).unwrap();
        lines
    };
    let mut live = listen("");
    shared.events.publish("metrics.update", &serde_json::json!(0));
    shared.events.publish("alert.new", &serde_json::json!({ "n": 1 }));
    let id = live.find_map(|line| line.strip_prefix("id: ").map(str::to_owned)).unwrap();
    assert_eq!(live.find(|line| line.starts_with("event:")).unwrap(), "event: alert.new");
    assert_eq!(live.find(|line| line.starts_with("data:")).unwrap(), "data: {\"n\":1}");
    drop(live);
    shared.events.publish("alert.resolved", &serde_json::json!({ "n": 2 }));
    let mut again = listen(&format!("Last-Event-ID: {id}\r\n"));
    assert_eq!(again.find(|line| line.starts_with("data:")).unwrap(), "data: {\"n\":2}");
    let mut stranger = listen("Last-Event-ID: 1-1\r\n");
    assert_eq!(stranger.find(|line| line.starts_with("event:")).unwrap(), "event: reset");
}
