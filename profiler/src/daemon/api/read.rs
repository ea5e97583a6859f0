//! What is known: health, metrics, targets, findings, rules, alerts, history.

use std::sync::Arc;

use axum::{
    extract::{Path as UrlPath, Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    answer::{bad, data, error, failed, not_found},
    shared::{Shared, TargetStatus},
};
use crate::{
    daemon::{
        engine::RuleStatus,
        history::{self, Key, MAX_POINTS},
    },
    metrics::{METRICS, classic},
    process::clock,
};

pub async fn health(State(shared): State<Arc<Shared>>) -> Response {
    data(json!({ "status": "ok", "uptime_s": shared.started.elapsed().as_secs() }))
}

pub async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    let not_ready = |why| error(StatusCode::SERVICE_UNAVAILABLE, "not_ready", why);
    match shared.with(|snapshot| (snapshot.failed, snapshot.window_unix_ms)) {
        (true, _) => not_ready("the last window failed: /api/v1/status says why"),
        (false, None) => not_ready("the first window has not ended yet"),
        (false, Some(_)) => data(json!({ "status": "ready" })),
    }
}

pub async fn metrics(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let text = shared.with(|snapshot| snapshot.metrics.clone());
    let text = if text.is_empty() { "# EOF\n".to_owned() } else { text };
    let asked = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if asked.contains("application/openmetrics-text") {
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        ([(header::CONTENT_TYPE, kind)], text).into_response()
    } else {
        ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], classic(&text)).into_response()
    }
}

/// Of one target, or of all.
#[derive(Deserialize)]
pub struct OfTarget {
    target: Option<String>,
}

/// What `read` gives of each target that is asked for.
fn each(shared: &Shared, of: &OfTarget, read: impl Fn(&TargetStatus) -> Value) -> Response {
    let found: Vec<Value> = shared.with(|snapshot| {
        let asked = snapshot.targets.iter().filter(|target| of.is(target));
        asked.map(read).collect()
    });
    if found.is_empty() && of.target.is_some() {
        return not_found("no_target", "there is no such target");
    }
    data(found)
}

impl OfTarget {
    fn is(&self, target: &TargetStatus) -> bool {
        self.target.as_ref().is_none_or(|name| *name == target.name)
    }
}

/// How a target is, in one word.
fn status_of(target: &TargetStatus, standings: &[RuleStatus]) -> &'static str {
    let firing: Vec<&RuleStatus> =
        standings.iter().filter(|of| of.target == target.name && of.severity.is_some()).collect();
    match firing.iter().any(|of| of.severity == Some("critical")) {
        true => "critical",
        false if !firing.is_empty() => "warning",
        false if target.pids.is_empty() => "not_running",
        false => "ok",
    }
}

pub async fn targets(State(shared): State<Arc<Shared>>) -> Response {
    data(shared.with(|snapshot| {
        let each = snapshot.targets.iter().map(|target| {
            json!({
                "name": target.name, "status": status_of(target, &snapshot.standings), "pids": target.pids,
                "verdict": target.verdict, "findings": target.findings.len(),
            })
        });
        each.collect::<Vec<_>>()
    }))
}

pub async fn current(State(shared): State<Arc<Shared>>, Query(of): Query<OfTarget>) -> Response {
    each(&shared, &of, |target| json!({ "target": target.name, "metrics": target.metrics }))
}

pub async fn findings(State(shared): State<Arc<Shared>>, Query(of): Query<OfTarget>) -> Response {
    each(
        &shared,
        &of,
        |target| json!({ "target": target.name, "verdict": target.verdict, "findings": target.findings }),
    )
}

pub async fn memory(State(shared): State<Arc<Shared>>, Query(of): Query<OfTarget>) -> Response {
    each(&shared, &of, |target| {
        let metrics: serde_json::Map<String, Value> = target
            .metrics
            .iter()
            .filter(|(name, _)| name.starts_with("memory_"))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let findings: Vec<&Value> = target
            .findings
            .iter()
            .filter(|finding| finding["rule"].as_str().is_some_and(|rule| rule.starts_with("memory-")))
            .collect();
        json!({ "target": target.name, "metrics": metrics, "findings": findings })
    })
}

pub async fn recommendations(State(shared): State<Arc<Shared>>, Query(of): Query<OfTarget>) -> Response {
    each(&shared, &of, |target| json!({ "target": target.name, "recommendations": advice(target) }))
}

/// What to do, each with what was found.
fn advice(target: &TargetStatus) -> Vec<Value> {
    let all =
        target.findings.iter().filter(|finding| finding["advice"].as_str().is_some_and(|it| !it.is_empty()));
    all.map(|finding| json!({ "advice": finding["advice"], "because": finding["title"], "rule": finding["rule"] }))
        .collect()
}

/// How names of metrics of requests begin.
const OF_REQUESTS: [&str; 3] = ["request", "response_", "peer_"];

pub async fn latency(State(shared): State<Arc<Shared>>, Query(of): Query<OfTarget>) -> Response {
    let seen: Vec<Value> = shared.with(|snapshot| {
        let asked = snapshot.targets.iter().filter(|target| of.is(target));
        let each = asked.filter_map(|target| {
            let is_of_requests = |name: &str| OF_REQUESTS.iter().any(|start| name.starts_with(start));
            let of = target.metrics.iter().filter(|(name, _)| is_of_requests(name));
            let metrics: serde_json::Map<String, Value> =
                of.map(|(name, value)| (name.clone(), value.clone())).collect();
            (!metrics.is_empty()).then(|| json!({ "target": target.name, "metrics": metrics }))
        });
        each.collect()
    });
    if seen.is_empty() {
        let why = "requests are not watched (daemon.requests); times of system calls and event loops are no response times";
        return not_found("no_requests", why);
    }
    data(seen)
}

pub async fn status(State(shared): State<Arc<Shared>>) -> Response {
    let (window, problems) = shared.with(|snapshot| (snapshot.window_unix_ms, snapshot.problems.clone()));
    let uptime_s = shared.started.elapsed().as_secs();
    data(json!({ "last_window_unix_ms": window, "problems": problems, "uptime_s": uptime_s }))
}

pub async fn rules(State(shared): State<Arc<Shared>>) -> Response {
    let rules: Vec<Value> = shared
        .rules()
        .iter()
        .map(|rule| {
            json!({
                "id": rule.id, "summary": rule.summary, "metric": rule.metric, "finding": rule.finding,
                "op": rule.op, "warning": rule.warning, "critical": rule.critical, "clear": rule.clear_at(),
                "for_s": rule.hold.as_secs_f64(), "keep_firing_for_s": rule.keep_firing.as_secs_f64(),
                "cooldown_s": rule.cooldown.as_secs_f64(), "enabled": rule.enabled,
                "predict_s": rule.predict.map(|it| it.as_secs_f64()),
                "baseline_s": rule.baseline.map(|it| it.as_secs_f64()),
            })
        })
        .collect();
    data(shared.with(|snapshot| json!({ "rules": rules, "standings": snapshot.standings })))
}

/// The last time that there is: the end of the year 9999, ms since 1970.
pub const LAST_MS: i64 = 253_402_300_799_000;

/// A part of a series.
#[derive(Deserialize)]
pub struct HistoryQuery {
    target: String,
    metric: String,
    #[serde(default)]
    label: String,
    period: Option<String>,
    from: Option<i64>,
    to: Option<i64>,
    step: Option<i64>,
}

pub async fn history(State(shared): State<Arc<Shared>>, Query(asked): Query<HistoryQuery>) -> Response {
    let Some(metric) = METRICS.iter().find(|metric| metric.name == asked.metric) else {
        return not_found("no_metric", "there is no such metric");
    };
    let (length_ms, step_ms) = match asked.period.as_deref() {
        None | Some("hourly") => (3_600_000, 60_000),
        Some("daily") => (86_400_000, 900_000),
        Some("weekly") => (7 * 86_400_000, 3_600_000),
        Some(_) => return bad("period", "period is hourly, daily or weekly"),
    };
    let to = asked.to.unwrap_or_else(clock::unix_ms);
    let from = asked.from.unwrap_or_else(|| to.saturating_sub(length_ms));
    let step = asked.step.unwrap_or(step_ms);
    let dir = shared.state_dir.clone();
    let key = Key { target: asked.target, metric: asked.metric, label: asked.label };
    // Years that no calendar has are none either.
    let is_time = |unix_ms: i64| (0..=LAST_MS).contains(&unix_ms);
    if !is_time(from) || !is_time(to) || to <= from || step <= 0 || (to - from) / step > MAX_POINTS as i64 {
        return bad("range", "from must be before to, with at most 10000 steps between them");
    }
    let points = tokio::task::spawn_blocking(move || history::query(&dir, &key, from, to, step)).await;
    match points {
        Ok(Ok(points)) => data(json!({ "unit": metric.unit.id(), "step_ms": step, "points": points })),
        Ok(Err(why)) => failed("the history cannot be read", &why),
        Err(why) => failed("the history cannot be read", &why.into()),
    }
}

/// Which alerts.
#[derive(Deserialize)]
pub struct AlertsQuery {
    #[serde(default)]
    firing: bool,
    limit: Option<u32>,
}

pub async fn alerts(State(shared): State<Arc<Shared>>, Query(asked): Query<AlertsQuery>) -> Response {
    let store = shared.store();
    let found =
        if asked.firing { store.firing() } else { store.last(asked.limit.unwrap_or(100).min(10_000)) };
    match found {
        Ok(alerts) => data(alerts),
        Err(why) => failed("alerts cannot be read", &why),
    }
}

pub async fn alert(State(shared): State<Arc<Shared>>, UrlPath(id): UrlPath<String>) -> Response {
    match shared.store().alert(&id) {
        Ok(Some(alert)) => data(alert),
        Ok(None) => not_found("no_alert", "there is no such alert"),
        Err(why) => failed("alerts cannot be read", &why),
    }
}

/// What an hour of these shows first.
const ON_DASHBOARD: [(&str, &str); 8] = [
    ("response_seconds", "p95"),
    ("requests_per_second", ""),
    ("request_error_ratio", ""),
    ("cpu_quota_ratio", ""),
    ("event_loop_delay_seconds", "p99"),
    ("memory_held_bytes", ""),
    ("run_queue_ratio", ""),
    ("syscall_error_ratio", ""),
];

/// Everything that a page shows at once: each target now, its last hour and how that compares with the hour before, alerts,
/// and what to do.
pub async fn dashboard(State(shared): State<Arc<Shared>>, Query(of): Query<OfTarget>) -> Response {
    let (targets, standings) = shared.with(|snapshot| {
        let asked = snapshot.targets.iter().filter(|target| of.is(target));
        (asked.cloned().collect::<Vec<_>>(), snapshot.standings.clone())
    });
    if targets.is_empty() && of.target.is_some() {
        return not_found("no_target", "there is no such target");
    }
    let alerts = match shared.store().firing() {
        Ok(alerts) => alerts,
        Err(why) => return failed("alerts cannot be read", &why),
    };
    let dir = shared.state_dir.clone();
    let now = clock::unix_ms();
    let gathered = tokio::task::spawn_blocking(move || {
        let mut each = Vec::new();
        for target in &targets {
            let (mut histories, mut trends) = (serde_json::Map::new(), serde_json::Map::new());
            for (metric, label) in ON_DASHBOARD {
                let key = Key { target: target.name.clone(), metric: metric.into(), label: label.into() };
                let hour = history::query(&dir, &key, now - 3_600_000, now, 60_000)?;
                let before = history::query(&dir, &key, now - 7_200_000, now - 3_600_000, 3_600_000)?;
                if hour.is_empty() {
                    continue;
                }
                let mean = hour.iter().map(|point| point.mean).sum::<f64>() / hour.len() as f64;
                let name = if label.is_empty() { metric.to_owned() } else { format!("{metric}.{label}") };
                trends.insert(
                    name.clone(),
                    json!({ "mean": mean, "hour_before": before.first().map(|point| point.mean) }),
                );
                histories.insert(name, json!(hour));
            }
            each.push(json!({
                "target": target.name, "status": status_of(target, &standings), "verdict": target.verdict,
                "current": target.metrics, "history": histories, "trends": trends,
                "recommendations": advice(target),
            }));
        }
        anyhow::Ok(each)
    });
    match gathered.await {
        Ok(Ok(targets)) => data(json!({ "targets": targets, "alerts": alerts })),
        Ok(Err(why)) => failed("the history cannot be read", &why),
        Err(why) => failed("the history cannot be read", &why.into()),
    }
}
