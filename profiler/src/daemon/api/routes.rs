//! Everything that can be asked of the API: ROUTES is what is served, what the OpenAPI document says, and what the tests go
//! through.

use std::sync::Arc;

use axum::{
    response::{IntoResponse as _, Response},
    routing::{MethodRouter, delete, get, post, put},
};

use serde_json::{Value, json};

use super::{
    change, openapi,
    read::{self, LAST_MS},
    shared::Shared,
    stream, windows,
};
use crate::{alerting::BUILT_IN, daemon::overlay::ALIASES, model::kind::KINDS, output::FORMATS};

/// Something that can be asked.
pub struct Route {
    /// HTTP's verb, in lower case.
    pub method: &'static str,
    /// Its path; parts in braces are filled in.
    pub path: &'static str,
    /// What it does.
    pub summary: &'static str,
    /// Whether it is answered without a token.
    pub open: bool,
    /// What may stand in its query: name, kind, whether it must.
    pub query: &'static [(&'static str, Kind, bool)],
    /// What its body is.
    pub body: Body,
    /// What it answers with if all is well.
    pub answer: (u16, &'static str),
    /// What else it may answer with, besides what all do.
    pub errors: &'static [u16],
    /// How it is served.
    pub serve: fn() -> MethodRouter<Arc<Shared>>,
}

/// What a value in a query is.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Any text.
    Text,
    /// A time or a length of it, ms.
    Time,
    /// How many.
    Count,
    /// True or false.
    Flag,
    /// One of some words.
    OneOf(fn() -> Vec<&'static str>),
}

/// What a body is.
#[derive(Clone, Copy, Debug)]
pub enum Body {
    /// There is none.
    None,
    /// A text.
    Text,
    /// JSON of this schema.
    Json(fn() -> Value),
}

fn periods() -> Vec<&'static str> {
    vec!["hourly", "daily", "weekly"]
}

fn kinds() -> Vec<&'static str> {
    KINDS.iter().map(|kind| kind.name).collect()
}

fn formats() -> Vec<&'static str> {
    FORMATS.iter().filter_map(|format| format.extension.strip_prefix('.')).chain(["pprof"]).collect()
}

fn silence() -> Value {
    json!({
        "type": "object", "required": ["for"], "additionalProperties": false,
        "properties": {
            "rule": { "enum": BUILT_IN.iter().map(|rule| &rule.id).collect::<Vec<_>>() },
            "target": { "type": "string" },
            "for": { "type": "string", "examples": ["1h"] },
            "reason": { "type": "string" },
        },
    })
}

fn capture() -> Value {
    json!({
        "type": "object", "additionalProperties": false,
        "properties": { "windows": { "type": "integer", "minimum": 1, "maximum": 20 } },
    })
}

/// Rules of a configuration may be changed, too; of those the document knows nothing.
fn thresholds() -> Value {
    let value = json!({ "type": ["number", "string", "null"] });
    let both = json!({
        "type": "object", "additionalProperties": false, "properties": { "warning": value, "critical": value },
    });
    let rules = BUILT_IN.iter().filter(|rule| !rule.metric.is_empty()).map(|rule| rule.id.clone());
    let names = rules.chain(ALIASES.iter().map(|(alias, ..)| (*alias).to_owned()));
    let properties: serde_json::Map<String, Value> = names.map(|name| (name, both.clone())).collect();
    json!({ "type": "object", "properties": properties })
}

const JSON: &str = "application/json";

const fn read(
    path: &'static str,
    summary: &'static str,
    query: &'static [(&'static str, Kind, bool)],
    errors: &'static [u16],
    serve: fn() -> MethodRouter<Arc<Shared>>,
) -> Route {
    Route {
        method: "get",
        path,
        summary,
        open: false,
        query,
        body: Body::None,
        answer: (200, JSON),
        errors,
        serve,
    }
}

const TARGET: &[(&str, Kind, bool)] = &[("target", Kind::Text, false)];

/// The table.
pub static ROUTES: &[Route] = &[
    Route { open: true, ..read("/healthz", "Whether the daemon runs", &[], &[], || get(read::health)) },
    Route { open: true, ..read("/readyz", "Whether windows end", &[], &[503], || get(read::ready)) },
    Route {
        answer: (200, "text/plain"),
        ..read("/metrics", "Metrics for scrapers", &[], &[], || get(read::metrics))
    },
    read("/api/v1/openapi.json", "This document", &[], &[], || get(document)),
    read("/api/v1/status", "What went wrong with the daemon itself in the last window", &[], &[], || {
        get(read::status)
    }),
    read("/api/v1/targets", "Each target's status, verdict and processes", &[], &[], || get(read::targets)),
    read("/api/v1/metrics/current", "Last values", TARGET, &[404], || get(read::current)),
    read(
        "/api/v1/metrics/history",
        "A series: hourly, daily, weekly, or from, to and step in ms",
        &[
            ("target", Kind::Text, true),
            ("metric", Kind::Text, true),
            ("label", Kind::Text, false),
            ("period", Kind::OneOf(periods), false),
            ("from", Kind::Time, false),
            ("to", Kind::Time, false),
            ("step", Kind::Time, false),
        ],
        &[400, 404],
        || get(read::history),
    ),
    read("/api/v1/dashboard", "Targets, their last hour, alerts and what to do", TARGET, &[404], || {
        get(read::dashboard)
    }),
    read("/api/v1/memory", "Memory: held, limit, growth, and what was found", TARGET, &[404], || {
        get(read::memory)
    }),
    read("/api/v1/latency", "Times of requests, where they are seen", TARGET, &[404], || get(read::latency)),
    read("/api/v1/findings", "What was found wrong in the last window", TARGET, &[404], || {
        get(read::findings)
    }),
    read("/api/v1/recommendations", "What to do, and why", TARGET, &[404], || get(read::recommendations)),
    Route {
        answer: (200, "text/plain"),
        ..read(
            "/api/v1/report",
            "The report of a window, or of the last, as text",
            &[("target", Kind::Text, false), ("window", Kind::Time, false)],
            &[400, 404],
            || get(windows::report),
        )
    },
    Route {
        answer: (200, "*/*"),
        ..read(
            "/api/v1/profiles",
            "The windows that are kept; one of them as pprof, folded, svg, json or prec",
            &[
                ("target", Kind::Text, false),
                ("from", Kind::Time, false),
                ("to", Kind::Time, false),
                ("window", Kind::Time, false),
                ("kind", Kind::OneOf(kinds), false),
                ("format", Kind::OneOf(formats), false),
            ],
            &[400, 404],
            || get(windows::profiles),
        )
    },
    read(
        "/api/v1/diff",
        "What differs between two windows (CPU, waits, system calls, memory), and what of it chance does not explain",
        &[("target", Kind::Text, false), ("a", Kind::Time, true), ("b", Kind::Time, true)],
        &[400, 404],
        || get(windows::difference),
    ),
    read("/api/v1/rules", "Rules, and where each stands", &[], &[], || get(read::rules)),
    read(
        "/api/v1/alerts",
        "Alerts with their last message",
        &[("firing", Kind::Flag, false), ("limit", Kind::Count, false)],
        &[400],
        || get(read::alerts),
    ),
    read("/api/v1/alerts/{id}", "One alert", &[], &[404], || get(read::alert)),
    Route {
        method: "post",
        body: Body::Text,
        ..read("/api/v1/alerts/{id}/ack", "Note who has seen an alert", &[], &[404], || {
            post(change::acknowledge)
        })
    },
    read("/api/v1/silences", "Silences that have not ended", &[], &[], || get(change::silences)),
    Route {
        method: "post",
        body: Body::Json(silence),
        ..read(
            "/api/v1/silences",
            "Tell nobody of a rule's or a target's alerts for a while",
            &[],
            &[400],
            || post(change::silence),
        )
    },
    Route {
        method: "delete",
        ..read("/api/v1/silences/{id}", "End a silence", &[], &[404], || delete(change::unsilence))
    },
    read("/api/v1/thresholds", "Thresholds, and where each comes from", &[], &[], || get(change::thresholds)),
    Route {
        method: "put",
        body: Body::Json(thresholds),
        ..read(
            "/api/v1/thresholds",
            "Change thresholds; they lie over the configuration from the next window on",
            &[],
            &[400, 412, 422],
            || put(change::set_thresholds),
        )
    },
    Route {
        method: "post",
        body: Body::Json(capture),
        answer: (202, JSON),
        ..read("/api/v1/captures", "See more in the next windows", &[], &[400], || post(change::capture))
    },
    Route {
        answer: (200, "text/event-stream"),
        ..read(
            "/api/v1/events",
            "What happens, as it happens; goes on after Last-Event-ID",
            &[("topics", Kind::Text, false)],
            &[400, 503],
            || get(stream::events),
        )
    },
];

async fn document() -> Response {
    axum::Json(openapi::document(ROUTES.iter().map(|route| {
        openapi::Operation {
            method: route.method,
            path: route.path,
            summary: route.summary,
            open: route.open,
            query: route
                .query
                .iter()
                .map(|(name, kind, must)| {
                    let schema = match kind {
                        Kind::Text => json!({ "type": "string" }),
                        Kind::Time => json!({ "type": "integer", "minimum": 0, "maximum": LAST_MS }),
                        Kind::Count => json!({ "type": "integer", "minimum": 0, "maximum": 10_000 }),
                        Kind::Flag => json!({ "type": "boolean" }),
                        Kind::OneOf(words) => json!({ "enum": words() }),
                    };
                    (*name, schema, *must)
                })
                .collect(),
            body: match route.body {
                Body::None => None,
                Body::Text => Some(("text/plain", json!({ "type": "string" }))),
                Body::Json(schema) => Some((JSON, schema())),
            },
            answer: route.answer,
            errors: route.errors,
        }
    })))
    .into_response()
}
