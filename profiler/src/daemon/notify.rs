//! Sends messages: one thread per receiver takes them out of the outbox in order and tries until they arrive. A message
//! that cannot be sent waits; the others of its receiver wait behind it, those of other receivers do not.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use hmac::{Hmac, Mac as _};
use serde_json::json;
use sha2::Sha256;

use super::{
    config::{Receiver, ReceiverKind},
    message::Message,
    store::Store,
};

/// How long one attempt may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The waits between attempts: the first, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// How often the outbox is looked into when nobody says that something has come.
const POLL: Duration = Duration::from_millis(500);

/// What receivers got, by their place in the configuration.
#[derive(Debug, Default)]
pub struct Counts {
    /// Messages that arrived.
    pub sent: AtomicU64,
    /// Attempts that failed.
    pub failed: AtomicU64,
}

/// The threads that send.
pub struct Senders {
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    /// What each receiver got.
    pub counts: Vec<(String, Arc<Counts>)>,
}

impl Senders {
    /// Starts a thread for each receiver; each opens the store in `dir` for itself.
    pub fn start(dir: &Path, receivers: &[Receiver]) -> Result<Senders> {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut threads, mut counts) = (Vec::new(), Vec::new());
        for receiver in receivers.iter().cloned() {
            let mut store = Store::open(dir)?;
            let count = Arc::new(Counts::default());
            counts.push((receiver.name.clone(), Arc::clone(&count)));
            let stop = Arc::clone(&stop);
            let thread = std::thread::Builder::new().name(format!("to-{}", receiver.name));
            threads.push(thread.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    match deliver_next(&mut store, &receiver, &count) {
                        Ok(true) => {}
                        Ok(false) => std::thread::sleep(POLL),
                        Err(error) => {
                            eprintln!("profiler: receiver {}: {error:#}", receiver.name);
                            std::thread::sleep(BACKOFF.0);
                        }
                    }
                }
            })?);
        }
        Ok(Senders { threads, stop, counts })
    }

    /// Lets every receiver finish what it is at, for as long as `patience` lasts. What is left stays in the outbox.
    pub fn stop(self, patience: Duration) {
        self.stop.store(true, Ordering::Relaxed);
        let end = Instant::now() + patience;
        for thread in self.threads {
            while !thread.is_finished() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Sends the next message that is due; whether there was one.
fn deliver_next(store: &mut Store, receiver: &Receiver, counts: &Counts) -> Result<bool> {
    let Some(next) = store.due(&receiver.name, crate::process::clock::unix_ms())? else { return Ok(false) };
    let message: Message = serde_json::from_str(&next.body).context("a message in the outbox is damaged")?;
    match send(&receiver.kind, &message) {
        Ok(()) => {
            store.sent(next.seq)?;
            counts.sent.fetch_add(1, Ordering::Relaxed);
        }
        Err(error) => {
            counts.failed.fetch_add(1, Ordering::Relaxed);
            let text = format!("{error:#}");
            if next.attempts == 0 {
                eprintln!("profiler: receiver {}: {text}; it is tried again", receiver.name);
            }
            let due = crate::process::clock::unix_ms() + backoff(next.attempts).as_millis() as i64;
            store.failed(next.seq, &text, due)?;
        }
    }
    Ok(true)
}

/// How long to wait after so many attempts: twice as long each time.
fn backoff(attempts: u32) -> Duration {
    BACKOFF.0.saturating_mul(2u32.saturating_pow(attempts.min(16))).min(BACKOFF.1)
}

/// Sends a message once. What it says of an error holds no secret: addresses can be some.
pub fn send(kind: &ReceiverKind, message: &Message) -> Result<()> {
    match kind {
        ReceiverKind::Slack { url } => {
            let url = url.read().map_err(anyhow::Error::msg)?;
            post(&url, &json!({ "text": slack_text(message) }).to_string(), &[])
        }
        ReceiverKind::Webhook { url, secret_file } => {
            let url = url.read().map_err(anyhow::Error::msg)?;
            let body = serde_json::to_string(message)?;
            let mut headers = vec![("X-Profiler-Message", message.message.clone())];
            if let Some(file) = secret_file {
                let key = crate::text::read_to_parse(file).with_context(|| file.display().to_string())?;
                headers.push((
                    "X-Profiler-Signature",
                    format!("sha256={}", sign(key.trim().as_bytes(), &body)?),
                ));
            }
            post(&url, &body, &headers)
        }
        ReceiverKind::Alertmanager { url } => {
            let url = url.read().map_err(anyhow::Error::msg)?;
            let url = format!("{}/api/v2/alerts", url.trim_end_matches('/'));
            post(&url, &alertmanager(message).to_string(), &[])
        }
        ReceiverKind::File { path } => {
            let mut line = serde_json::to_string(message)?;
            line.push('\n');
            let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
            file.write_all(line.as_bytes())?;
            Ok(file.sync_data()?)
        }
        ReceiverKind::Command { command } => run(command, &serde_json::to_string(message)?),
        ReceiverKind::Stderr => {
            eprintln!("profiler: {}", message.text().replace('\n', "\nprofiler:   "));
            Ok(())
        }
    }
}

/// HMAC-SHA256 of a body, in hexadecimal.
fn sign(key: &[u8], body: &str) -> Result<String> {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(key).map_err(|_| anyhow::anyhow!("the key cannot be used"))?;
    mac.update(body.as_bytes());
    Ok(mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn post(url: &str, body: &str, headers: &[(&str, String)]) -> Result<()> {
    let config = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).max_redirects(0);
    let agent: ureq::Agent = config.http_status_as_error(false).build().into();
    let mut request = agent.post(url).header("Content-Type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    // The error of the library may hold the address.
    let response = request.send(body).map_err(|error| match error {
        ureq::Error::Timeout(_) => anyhow::anyhow!("no answer within {} s", TIMEOUT.as_secs()),
        ureq::Error::Io(error) => anyhow::anyhow!("{error}"),
        ureq::Error::HostNotFound => anyhow::anyhow!("the host is not known"),
        ureq::Error::ConnectionFailed => anyhow::anyhow!("no connection"),
        _ => anyhow::anyhow!("the request could not be made"),
    })?;
    ensure!(response.status().is_success(), "it answered {}", response.status().as_u16());
    Ok(())
}

/// Slack's own characters are written so that names of the target cannot become links or mentions.
fn slack_text(message: &Message) -> String {
    message.text().replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn alertmanager(message: &Message) -> serde_json::Value {
    let stamp = |unix_ms: i64| {
        let at = std::time::UNIX_EPOCH + Duration::from_millis(unix_ms.max(0) as u64);
        humantime::format_rfc3339_millis(at).to_string()
    };
    let mut alert = json!({
        "labels": {
            "alertname": message.rule, "target": message.target, "severity": message.severity,
            "host": message.host, "alert_id": message.alert,
        },
        "annotations": {
            "summary": message.title(), "description": message.text(),
        },
        "startsAt": stamp(message.started_unix_ms),
    });
    if message.change == "resolved" {
        alert["endsAt"] = json!(stamp(message.unix_ms));
    }
    json!([alert])
}

/// Runs a command with the message on its standard input; it must end in time, and well.
fn run(command: &[String], input: &str) -> Result<()> {
    let Some((program, arguments)) = command.split_first() else { bail!("the command is empty") };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    // One that does not read is not waited for: small messages fit the pipe, and a broken pipe is no failure by itself.
    let mut stdin = child.stdin.take();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.as_mut().map(|stdin| stdin.write_all(input.as_bytes())));
    let end = Instant::now() + 3 * TIMEOUT;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > end {
            child.kill()?;
            child.wait()?;
            bail!("{program} did not end within {} s", 3 * TIMEOUT.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let _ = writer.join();
    ensure!(status.success(), "{program}: {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader, Read as _},
        net::TcpListener,
    };

    use super::{
        super::{config::Secret, message::fixtures::message},
        *,
    };

    /// Answers requests with these status codes, and gives what was asked: headers in lower case, and body.
    fn server(answers: Vec<u16>) -> (String, JoinHandle<Vec<(String, String)>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            let each = answers.into_iter().map(|status| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut head = String::new();
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    if line.trim().is_empty() {
                        break;
                    }
                    head += &line.to_lowercase();
                }
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
                let mut body = vec![0; length.parse().unwrap()];
                reader.read_exact(&mut body).unwrap();
                write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                    .unwrap();
                (head, String::from_utf8(body).unwrap())
            });
            each.collect()
        });
        (url, thread)
    }

    #[test]
    fn a_webhook_gets_json_that_it_can_verify() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        std::fs::write(&key, "secret\n").unwrap();
        let (url, server) = server(vec![204]);
        send(&ReceiverKind::Webhook { url: Secret::Value(url), secret_file: Some(key) }, &message()).unwrap();
        let (head, body) = server.join().unwrap().remove(0);
        assert_eq!(serde_json::from_str::<Message>(&body).unwrap(), message());
        assert!(
            head.contains(&format!("x-profiler-signature: sha256={}", sign(b"secret", &body).unwrap())),
            "{head}"
        );
        // RFC 4231, test case 2.
        assert_eq!(
            sign(b"Jefe", "what do ya want for nothing?").unwrap(),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn slack_gets_text_in_which_names_are_no_markup() {
        let (url, server) = server(vec![200]);
        send(&ReceiverKind::Slack { url: Secret::Value(url) }, &message()).unwrap();
        let (_, body) = server.join().unwrap().remove(0);
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["text"], slack_text(&message()));
        let text = slack_text(&Message { target: "<!channel> & co".into(), ..message() });
        assert!(text.contains("&lt;!channel&gt; &amp; co") && !text.contains('<'), "{text}");
    }

    #[test]
    fn alertmanager_gets_the_same_labels_at_both_ends() {
        let fired = alertmanager(&message());
        let over = alertmanager(&Message { change: "resolved".into(), ..message() });
        assert_eq!(fired[0]["labels"], over[0]["labels"]);
        assert_eq!(fired[0]["startsAt"], "2023-11-14T22:13:20.000Z");
        assert!(fired[0]["endsAt"].is_null() && over[0]["endsAt"].is_string());
    }

    #[test]
    fn what_fails_is_tried_again_and_arrives_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        let (url, server) = server(vec![500, 200]);
        let kind = ReceiverKind::Webhook { url: Secret::Value(url), secret_file: None };
        let receiver = Receiver { name: "hook".into(), kind };
        let body = serde_json::to_string(&message()).unwrap();
        store
            .record(&super::super::store::Change {
                alert: "a1",
                rule: "r",
                target: "t",
                severity: crate::model::finding::Severity::Warning,
                change: "fired",
                unix_ms: 1,
                body: &body,
                receivers: &["hook".to_owned()],
            })
            .unwrap();
        let counts = Counts::default();
        assert!(deliver_next(&mut store, &receiver, &counts).unwrap());
        assert_eq!(store.waiting().unwrap(), 1);
        assert!(!deliver_next(&mut store, &receiver, &counts).unwrap(), "not at once");
        let later = store.due("hook", crate::process::clock::unix_ms() + 2_000).unwrap().unwrap();
        store.failed(later.seq, "", 0).unwrap(); // due now
        assert!(deliver_next(&mut store, &receiver, &counts).unwrap());
        assert_eq!(store.waiting().unwrap(), 0);
        assert_eq!((counts.sent.into_inner(), counts.failed.into_inner()), (1, 1));
        assert_eq!(server.join().unwrap().len(), 2);
    }

    #[test]
    fn waits_grow_to_a_limit() {
        assert_eq!([0, 1, 2, 20, u32::MAX].map(|n| backoff(n).as_secs()), [1, 2, 4, 300, 300]);
    }

    #[test]
    fn a_command_gets_the_message_and_must_end_well() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out").display().to_string();
        let shell = |script: String| vec!["sh".to_owned(), "-c".to_owned(), script];
        send(&ReceiverKind::Command { command: shell(format!("cat > {out}")) }, &message()).unwrap();
        assert_eq!(serde_json::from_slice::<Message>(&std::fs::read(&out).unwrap()).unwrap(), message());
        assert!(send(&ReceiverKind::Command { command: shell("exit 3".into()) }, &message()).is_err());
        assert!(send(&ReceiverKind::Command { command: vec![] }, &message()).is_err());
    }

    #[test]
    fn a_file_gets_a_line_each() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("alerts.jsonl");
        for _ in 0..2 {
            send(&ReceiverKind::File { path: path.clone() }, &message()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
    }

    #[test]
    fn an_error_does_not_show_the_address() {
        let url = "http://127.0.0.1:1/T0/B0/secret-token".to_owned();
        let kind = ReceiverKind::Webhook { url: Secret::Value(url), secret_file: None };
        let error = send(&kind, &message()).unwrap_err();
        assert!(!format!("{error:#}").contains("secret"), "{error:#}");
    }
}
