//! The API: what the daemon knows, as JSON, and metrics for scrapers. On this machine only; whoever needs it from
//! elsewhere puts a proxy in front that encrypts and asks who it is.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path as UrlPath, Query, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::{
    engine::RuleStatus,
    history::{self, Key},
    store::Store,
};
use crate::metrics::METRICS;

/// Longest body of a request, bytes.
const MAX_BODY: usize = 64 * 1024;

/// What the API answers with: replaced as a whole after each window.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// OpenMetrics text.
    pub metrics: String,
    /// Each target, and what is known of it.
    pub targets: Vec<TargetStatus>,
    /// Where each rule stands for each target.
    pub standings: Vec<RuleStatus>,
    /// The rules in force.
    pub rules: Vec<Value>,
    /// End of the last window, ms since 1970 (UTC); `None` before the first.
    pub window_unix_ms: Option<i64>,
    /// What is wrong with the daemon itself.
    pub problems: Vec<String>,
}

/// A target, for the API.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TargetStatus {
    /// Its name.
    pub name: String,
    /// Its processes.
    pub pids: Vec<u32>,
    /// Last values: metric, or metric and label with a dot between.
    pub metrics: serde_json::Map<String, Value>,
    /// What was found wrong in the last window, worst first.
    pub findings: Vec<Value>,
}

/// What the API needs.
pub struct Shared {
    /// Replaced after each window.
    pub snapshot: RwLock<Snapshot>,
    state_dir: PathBuf,
    store: Mutex<Store>,
    tokens: Vec<Token>,
    started: Instant,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Token {
    role: Role,
    hash: [u8; 32],
}

/// What somebody may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Reader,
    Admin,
}

impl Shared {
    /// Prepares the API; reads the tokens.
    pub fn new(state_dir: &Path, token_file: Option<&Path>) -> Result<Shared> {
        let tokens = match token_file {
            Some(file) => {
                let text = crate::text::read_to_parse(file).with_context(|| file.display().to_string())?;
                tokens(&text).with_context(|| file.display().to_string())?
            }
            None => Vec::new(),
        };
        Ok(Shared {
            snapshot: RwLock::default(),
            state_dir: state_dir.to_owned(),
            store: Mutex::new(Store::open(state_dir)?),
            tokens,
            started: Instant::now(),
        })
    }

    /// Replaces what the API answers with.
    pub fn publish(&self, snapshot: Snapshot) {
        *self.snapshot.write().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    fn with<T>(&self, read: impl FnOnce(&Snapshot) -> T) -> T {
        read(&self.snapshot.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A line each: role, colon, SHA-256 of the token in hexadecimal. Empty lines and those that begin with `#` are skipped.
fn tokens(text: &str) -> Result<Vec<Token>> {
    let lines = text.lines().map(str::trim).enumerate();
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let mut tokens = Vec::new();
    for (number, line) in lines {
        let token = || {
            let (role, hex) = line.split_once(':')?;
            let role = match role {
                "reader" => Role::Reader,
                "admin" => Role::Admin,
                _ => return None,
            };
            let digits = hex.as_bytes();
            let mut hash = [0; 32];
            if digits.len() != 64 {
                return None;
            }
            for (byte, pair) in hash.iter_mut().zip(digits.chunks(2)) {
                *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
            }
            Some(Token { role, hash })
        };
        // The line itself is not shown: it may be a token that somebody put there by mistake.
        let token = token().with_context(|| format!("line {} is not ROLE:SHA256", number + 1))?;
        tokens.push(token);
    }
    Ok(tokens)
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A port of this machine.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl Listen {
    /// Reads an address; `None` for nowhere. An address that others can reach is refused.
    pub fn parse(text: &str) -> Result<Option<Listen>> {
        if text.is_empty() {
            return Ok(None);
        }
        if text.starts_with('/') {
            return Ok(Some(Listen::Unix(text.into())));
        }
        let address: SocketAddr = text
            .parse()
            .with_context(|| format!("daemon.listen: `{text}` is no ADDRESS:PORT and no path"))?;
        if !address.ip().is_loopback() {
            bail!(
                "daemon.listen: {address} can be reached from elsewhere, and the API has no encryption of its own; listen \
                 on 127.0.0.1 or a Unix socket, with a proxy in front"
            );
        }
        Ok(Some(Listen::Tcp(address)))
    }
}

/// Serves the API until the daemon ends, on a thread of its own. Returns when it listens.
pub fn serve(listen: Listen, shared: Arc<Shared>) -> Result<()> {
    let app = router(shared);
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::Builder::new().name("api".into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let Ok(runtime) = runtime else {
            let _ = ready.send(Err(anyhow::anyhow!("the API's thread cannot start")));
            return;
        };
        runtime.block_on(async move {
            let served = match listen {
                Listen::Tcp(address) => match tokio::net::TcpListener::bind(address).await {
                    Ok(listener) => {
                        let _ = ready.send(Ok(()));
                        axum::serve(listener, app).await
                    }
                    Err(error) => {
                        let _ = ready.send(Err(anyhow::anyhow!("cannot listen on {address}: {error}")));
                        return;
                    }
                },
                Listen::Unix(path) => {
                    // One that a daemon before this one has left.
                    if std::os::unix::net::UnixStream::connect(&path).is_err() {
                        let _ = std::fs::remove_file(&path);
                    }
                    match tokio::net::UnixListener::bind(&path) {
                        Ok(listener) => {
                            use std::os::unix::fs::PermissionsExt as _;
                            let _ = std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o660));
                            let _ = ready.send(Ok(()));
                            axum::serve(listener, app).await
                        }
                        Err(error) => {
                            let _ = ready
                                .send(Err(anyhow::anyhow!("cannot listen on {}: {error}", path.display())));
                            return;
                        }
                    }
                }
            };
            if let Err(error) = served {
                eprintln!("profiler: the API has ended: {error}");
            }
        });
    })?;
    is_ready.recv().context("the API's thread has ended")?
}

fn router(shared: Arc<Shared>) -> Router {
    let open = Router::new().route("/healthz", get(health)).route("/readyz", get(ready));
    let closed = Router::new()
        .route("/metrics", get(metrics))
        .route("/api/v1/targets", get(targets))
        .route("/api/v1/metrics/current", get(current))
        .route("/api/v1/metrics/history", get(history))
        .route("/api/v1/findings", get(findings))
        .route("/api/v1/rules", get(rules))
        .route("/api/v1/status", get(status))
        .route("/api/v1/alerts", get(alerts))
        .route("/api/v1/alerts/{id}", get(alert))
        .route("/api/v1/alerts/{id}/ack", post(acknowledge))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), authorize));
    open.merge(closed)
        .fallback(async || error(StatusCode::NOT_FOUND, "not_found", "there is nothing here"))
        .method_not_allowed_fallback(async || {
            error(StatusCode::METHOD_NOT_ALLOWED, "method", "this cannot be done here")
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(check_host))
        .with_state(shared)
}

/// Refuses requests that a page of somebody else has made a browser send here (DNS rebinding): they name another host.
async fn check_host(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or("?").to_owned());
    let is_local = host.is_none_or(|host| {
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or(""),
            None => host.split(':').next().unwrap_or(""),
        };
        name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    });
    if is_local {
        next.run(request).await
    } else {
        error(StatusCode::FORBIDDEN, "host", "this host is not served here")
    }
}

/// Lets those through who have a token, if tokens are asked for.
async fn authorize(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    request: Request,
    next: Next,
) -> Response {
    if shared.tokens.is_empty() {
        // Whoever is on this machine may read, but not change anything.
        return if request.method().is_safe() {
            next.run(request).await
        } else {
            error(StatusCode::FORBIDDEN, "forbidden", "this needs daemon.token_file, and an admin's token")
        };
    }
    let needed = if request.method().is_safe() { Role::Reader } else { Role::Admin };
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    let hash = Sha256::digest(given.as_bytes());
    // All tokens are compared, each in constant time, so that the time says nothing.
    let mut role = None;
    for token in &shared.tokens {
        if bool::from(token.hash.ct_eq(hash.as_slice())) {
            role = role.max(Some(token.role));
        }
    }
    match role {
        Some(role) if role >= needed => next.run(request).await,
        Some(_) => error(StatusCode::FORBIDDEN, "forbidden", "this needs an admin's token"),
        None => {
            let mut response = error(StatusCode::UNAUTHORIZED, "unauthorized", "this needs a token");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
            response
        }
    }
}

fn data(data: impl Serialize) -> Response {
    Json(json!({ "data": data, "timestamp": crate::process::clock::unix_ms() })).into_response()
}

fn error(status: StatusCode, code: &str, message: &str) -> Response {
    (status, Json(json!({ "error": { "code": code, "message": message } }))).into_response()
}

async fn health(State(shared): State<Arc<Shared>>) -> Response {
    data(json!({ "status": "ok", "uptime_s": shared.started.elapsed().as_secs() }))
}

async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    match shared.with(|snapshot| snapshot.window_unix_ms) {
        Some(_) => data(json!({ "status": "ready" })),
        None => error(StatusCode::SERVICE_UNAVAILABLE, "not_ready", "the first window has not ended yet"),
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let text = shared.with(|snapshot| snapshot.metrics.clone());
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], if text.is_empty() { "# EOF\n".to_owned() } else { text })
        .into_response()
}

#[derive(Deserialize)]
struct OfTarget {
    target: Option<String>,
}

async fn targets(State(shared): State<Arc<Shared>>) -> Response {
    let (targets, standings) = shared.with(|snapshot| (snapshot.targets.clone(), snapshot.standings.clone()));
    let each = targets.into_iter().map(|target| {
        let firing: Vec<&RuleStatus> =
            standings.iter().filter(|of| of.target == target.name && of.severity.is_some()).collect();
        let status = match firing.iter().any(|of| of.severity == Some("critical")) {
            true => "critical",
            false if !firing.is_empty() => "warning",
            false if target.pids.is_empty() => "not_running",
            false => "ok",
        };
        json!({ "name": target.name, "status": status, "pids": target.pids, "findings": target.findings.len() })
    });
    data(each.collect::<Vec<_>>())
}

async fn current(State(shared): State<Arc<Shared>>, Query(of): Query<OfTarget>) -> Response {
    let found = shared.with(|snapshot| {
        let of = snapshot
            .targets
            .iter()
            .filter(|target| of.target.as_ref().is_none_or(|name| *name == target.name));
        of.map(|target| json!({ "target": target.name, "metrics": target.metrics })).collect::<Vec<_>>()
    });
    if found.is_empty() {
        error(StatusCode::NOT_FOUND, "no_target", "there is no such target")
    } else {
        data(found)
    }
}

async fn findings(State(shared): State<Arc<Shared>>, Query(of): Query<OfTarget>) -> Response {
    data(shared.with(|snapshot| {
        let of = snapshot
            .targets
            .iter()
            .filter(|target| of.target.as_ref().is_none_or(|name| *name == target.name));
        of.map(|target| json!({ "target": target.name, "findings": target.findings })).collect::<Vec<_>>()
    }))
}

async fn status(State(shared): State<Arc<Shared>>) -> Response {
    let (window, problems) = shared.with(|snapshot| (snapshot.window_unix_ms, snapshot.problems.clone()));
    let uptime_s = shared.started.elapsed().as_secs();
    data(json!({ "last_window_unix_ms": window, "problems": problems, "uptime_s": uptime_s }))
}

async fn rules(State(shared): State<Arc<Shared>>) -> Response {
    data(shared.with(|snapshot| json!({ "rules": snapshot.rules, "standings": snapshot.standings })))
}

#[derive(Deserialize)]
struct HistoryQuery {
    target: String,
    metric: String,
    #[serde(default)]
    label: String,
    period: Option<String>,
    from: Option<i64>,
    to: Option<i64>,
    step: Option<i64>,
}

async fn history(State(shared): State<Arc<Shared>>, Query(asked): Query<HistoryQuery>) -> Response {
    let Some(metric) = METRICS.iter().find(|metric| metric.name == asked.metric) else {
        return error(StatusCode::NOT_FOUND, "no_metric", "there is no such metric");
    };
    let (length_ms, step_ms) = match asked.period.as_deref() {
        None | Some("hourly") => (3_600_000, 60_000),
        Some("daily") => (86_400_000, 900_000),
        Some("weekly") => (7 * 86_400_000, 3_600_000),
        Some(_) => return error(StatusCode::BAD_REQUEST, "period", "period is hourly, daily or weekly"),
    };
    let to = asked.to.unwrap_or_else(crate::process::clock::unix_ms);
    let from = asked.from.unwrap_or_else(|| to.saturating_sub(length_ms));
    let step = asked.step.unwrap_or(step_ms);
    let dir = shared.state_dir.clone();
    let key = Key { target: asked.target, metric: asked.metric, label: asked.label };
    if to.checked_sub(from).is_none_or(|length| length <= 0 || step <= 0 || length / step > 10_000) {
        return error(
            StatusCode::BAD_REQUEST,
            "range",
            "from must be before to, with at most 10000 steps between them",
        );
    }
    let points = tokio::task::spawn_blocking(move || history::query(&dir, &key, from, to, step)).await;
    match points {
        Ok(Ok(points)) => data(json!({ "unit": metric.unit.id(), "step_ms": step, "points": points })),
        _ => error(StatusCode::INTERNAL_SERVER_ERROR, "history", "the history cannot be read"),
    }
}

#[derive(Deserialize)]
struct AlertsQuery {
    #[serde(default)]
    firing: bool,
    limit: Option<u32>,
}

async fn alerts(State(shared): State<Arc<Shared>>, Query(asked): Query<AlertsQuery>) -> Response {
    let store = shared.store.lock().unwrap_or_else(PoisonError::into_inner);
    let found =
        if asked.firing { store.firing() } else { store.last(asked.limit.unwrap_or(100).min(10_000)) };
    match found {
        Ok(alerts) => data(alerts),
        Err(_) => error(StatusCode::INTERNAL_SERVER_ERROR, "store", "alerts cannot be read"),
    }
}

async fn alert(State(shared): State<Arc<Shared>>, UrlPath(id): UrlPath<String>) -> Response {
    let found = shared.store.lock().unwrap_or_else(PoisonError::into_inner).alert(&id);
    match found {
        Ok(Some(alert)) => data(alert),
        Ok(None) => error(StatusCode::NOT_FOUND, "no_alert", "there is no such alert"),
        Err(_) => error(StatusCode::INTERNAL_SERVER_ERROR, "store", "alerts cannot be read"),
    }
}

async fn acknowledge(
    State(shared): State<Arc<Shared>>,
    UrlPath(id): UrlPath<String>,
    body: String,
) -> Response {
    let who: String = body.chars().filter(|c| !c.is_control()).take(200).collect();
    let who = if who.is_empty() { "admin".to_owned() } else { who };
    let found = shared.store.lock().unwrap_or_else(PoisonError::into_inner).acknowledge(&id, &who);
    match found {
        Ok(true) => data(json!({ "acknowledged": who })),
        Ok(false) => error(StatusCode::NOT_FOUND, "no_alert", "there is no such alert"),
        Err(_) => error(StatusCode::INTERNAL_SERVER_ERROR, "store", "alerts cannot be written"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(tokens_text: &str) -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tokens");
        std::fs::write(&file, tokens_text).unwrap();
        let shared = Shared::new(dir.path(), (!tokens_text.is_empty()).then_some(&file)).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        serve(Listen::Tcp(address), Arc::new(shared)).unwrap();
        (dir, format!("http://{address}"))
    }

    fn ask(method: &str, url: &str, headers: &[(&str, &str)]) -> (u16, String) {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut request = axum::http::Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = agent.run(request.body(()).unwrap()).unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    fn hash(token: &str) -> String {
        Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect()
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
        let extreme = "/api/v1/metrics/history?target=a&metric=threads&from=-9223372036854775808&to=9223372036854775807";
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
    fn a_damaged_token_file_is_refused_without_showing_it() {
        for text in ["reader", "king:00", &format!("reader:{}x", hash("a")), "reader:\u{fc}\u{fc}"] {
            let error = format!("{:#}", tokens(text).unwrap_err());
            assert_eq!(error, "line 1 is not ROLE:SHA256");
        }
    }

    #[test]
    fn only_this_machine_is_served() {
        assert!(Listen::parse("0.0.0.0:9464").is_err());
        assert!(Listen::parse("nonsense").is_err());
        assert_eq!(Listen::parse("").unwrap(), None);
        assert!(matches!(Listen::parse("[::1]:80").unwrap(), Some(Listen::Tcp(_))));
        assert!(matches!(Listen::parse("/run/profiler.sock").unwrap(), Some(Listen::Unix(_))));
    }
}
