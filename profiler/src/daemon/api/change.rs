//! What can be changed: alerts are acknowledged and silenced, thresholds moved, and more is captured for a while. Each
//! change is noted in the store.

use std::sync::{Arc, atomic::Ordering};

use axum::{
    Extension,
    extract::{Path as UrlPath, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    answer::{bad, data, error, failed, not_found},
    shared::Shared,
    token::Caller,
};
use crate::{
    daemon::overlay::{ALIASES, Overlay},
    metrics,
    process::clock,
};

/// A silence lasts so long at most: one that nobody ends hides what goes wrong.
const LONGEST_SILENCE_MS: i64 = 30 * 86_400_000;
/// Windows that may be asked to see more at once.
const MAX_CAPTURES: u32 = 20;

/// Text of somebody, as it may be stored and shown.
fn words(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// Notes a change; without the note there is none, and this is the answer.
fn note(shared: &Shared, caller: &Caller, what: &str, body: &Value) -> Option<Response> {
    let noted = shared.store().audit(clock::unix_ms(), &words(&caller.who), what, &body.to_string());
    noted.err().map(|why| failed("the change cannot be noted, and is not made", &why))
}

pub async fn acknowledge(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    UrlPath(id): UrlPath<String>,
    body: String,
) -> Response {
    let who = words(&body);
    let who = if who.is_empty() { words(&caller.who) } else { who };
    if let Some(refused) = note(&shared, &caller, "acknowledge", &json!({ "alert": id, "who": who })) {
        return refused;
    }
    match shared.store().acknowledge(&id, &who) {
        Ok(true) => data(json!({ "acknowledged": who })),
        Ok(false) => not_found("no_alert", "there is no such alert"),
        Err(why) => failed("alerts cannot be written", &why),
    }
}

pub async fn silences(State(shared): State<Arc<Shared>>) -> Response {
    match shared.store().silences(clock::unix_ms()) {
        Ok(silences) => data(silences),
        Err(why) => failed("silences cannot be read", &why),
    }
}

/// A silence that somebody asks for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewSilence {
    rule: Option<String>,
    target: Option<String>,
    #[serde(rename = "for")]
    length: String,
    #[serde(default)]
    reason: String,
}

pub async fn silence(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    body: String,
) -> Response {
    let asked: NewSilence = match serde_json::from_str(&body) {
        Ok(asked) => asked,
        Err(why) => {
            return bad("body", &format!("{why}; write it like {{\"target\": \"api\", \"for\": \"1h\"}}"));
        }
    };
    let length_ms = match humantime::parse_duration(&asked.length) {
        Ok(length) if length.as_millis() > 0 => i64::try_from(length.as_millis()).unwrap_or(i64::MAX),
        _ => return bad("for", "for is a length of time, like 1h"),
    };
    if length_ms > LONGEST_SILENCE_MS {
        return bad("for", "a silence lasts 30 days at most");
    }
    let is_known = |rule: &String| shared.rules().iter().any(|known| known.id == *rule);
    if asked.rule.as_ref().is_some_and(|rule| !is_known(rule)) {
        return bad("rule", "there is no such rule");
    }
    let is_known =
        |target: &String| shared.with(|snapshot| snapshot.targets.iter().any(|known| known.name == *target));
    if asked.target.as_ref().is_some_and(|target| !is_known(target)) {
        return bad("target", "there is no such target");
    }
    let (until, reason) = (clock::unix_ms() + length_ms, words(&asked.reason));
    let what =
        json!({ "rule": asked.rule, "target": asked.target, "until_unix_ms": until, "reason": reason });
    if let Some(refused) = note(&shared, &caller, "silence", &what) {
        return refused;
    }
    let silenced = shared.store().silence(asked.rule.as_deref(), asked.target.as_deref(), until, &reason);
    match silenced {
        Ok(id) => data(json!({ "id": id, "until_unix_ms": until })),
        Err(why) => failed("silences cannot be written", &why),
    }
}

pub async fn unsilence(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    UrlPath(id): UrlPath<String>,
) -> Response {
    let Ok(number) = id.parse() else { return not_found("no_silence", "there is no such silence") };
    if let Some(refused) = note(&shared, &caller, "unsilence", &json!({ "silence": number })) {
        return refused;
    }
    match shared.store().unsilence(number) {
        Ok(true) => data(json!({ "ended": number })),
        Ok(false) => not_found("no_silence", "there is no such silence"),
        Err(why) => failed("silences cannot be written", &why),
    }
}

/// Every threshold, where it comes from, and what it is called elsewhere.
fn thresholds_now(shared: &Shared, overlay: &Overlay) -> Response {
    let configured = shared.configured();
    let mut in_force = configured.clone();
    overlay.apply(&mut in_force);
    let mut rules = serde_json::Map::new();
    for rule in &in_force {
        let Some(metric) = metrics::find(&rule.metric) else { continue };
        let built_in = crate::alerting::BUILT_IN.iter().find(|known| known.id == rule.id);
        let changed = overlay.0.get(&rule.id).copied().unwrap_or_default();
        let before = configured.iter().find(|known| known.id == rule.id);
        let source = |is_changed: bool, configured: Option<f64>, built_in: Option<Option<f64>>| {
            if is_changed {
                "api"
            } else if built_in == Some(configured) {
                "built in"
            } else {
                "configuration"
            }
        };
        rules.insert(
            rule.id.clone(),
            json!({
                "metric": rule.metric, "unit": metric.unit.id(), "warning": rule.warning, "critical": rule.critical,
                "warning_from": source(
                    changed.warning.is_some(),
                    before.and_then(|rule| rule.warning),
                    built_in.map(|rule| rule.warning)
                ),
                "critical_from": source(
                    changed.critical.is_some(),
                    before.and_then(|rule| rule.critical),
                    built_in.map(|rule| rule.critical)
                ),
            }),
        );
    }
    let aliases: serde_json::Map<String, Value> = ALIASES
        .iter()
        .map(|(alias, rule, _, unit)| ((*alias).to_owned(), json!({ "rule": rule, "unit_of_numbers": unit })))
        .collect();
    let mut response = data(json!({ "rules": rules, "aliases": aliases }));
    if let Ok(tag) = HeaderValue::from_str(&overlay.tag()) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

pub async fn thresholds(State(shared): State<Arc<Shared>>) -> Response {
    thresholds_now(&shared, &Overlay::load(&shared.state_dir))
}

pub async fn set_thresholds(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: String,
) -> Response {
    let asked: Value = match serde_json::from_str(&body) {
        Ok(asked) => asked,
        Err(why) => return bad("body", &why.to_string()),
    };
    let overlay = Overlay::load(&shared.state_dir);
    let expected = headers.get(header::IF_MATCH).and_then(|tag| tag.to_str().ok());
    if expected.is_some_and(|tag| tag != "*" && tag != overlay.tag()) {
        let why = "the thresholds have been changed meanwhile: read them again";
        return error(StatusCode::PRECONDITION_FAILED, "changed", why);
    }
    let changed = match overlay.changed(&asked, &shared.configured()) {
        Ok(changed) => changed,
        Err(why) => return error(StatusCode::UNPROCESSABLE_ENTITY, "thresholds", &why),
    };
    if let Some(refused) = note(&shared, &caller, "thresholds", &asked) {
        return refused;
    }
    if let Err(why) = changed.store(&shared.state_dir) {
        return failed("the thresholds cannot be written", &why.into());
    }
    shared.overlay_changed.store(true, Ordering::Relaxed);
    thresholds_now(&shared, &changed)
}

/// How much more is to be seen.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewCapture {
    #[serde(default = "one")]
    windows: u32,
}

fn one() -> u32 {
    1
}

pub async fn capture(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    body: String,
) -> Response {
    let body = if body.trim().is_empty() { "{}" } else { &body };
    let asked: NewCapture = match serde_json::from_str(body) {
        Ok(asked) => asked,
        Err(why) => return bad("body", &format!("{why}; write it like {{\"windows\": 2}}")),
    };
    if asked.windows == 0 || asked.windows > MAX_CAPTURES {
        return bad("windows", "windows is from 1 to 20");
    }
    if let Some(refused) = note(&shared, &caller, "capture", &json!({ "windows": asked.windows })) {
        return refused;
    }
    shared.captures.store(asked.windows, Ordering::Relaxed);
    let what = "the next windows see everything: system calls, allocations, and all samples; an event capture.done says where";
    let mut response = data(json!({ "windows": asked.windows, "what": what }));
    *response.status_mut() = StatusCode::ACCEPTED;
    response
}
