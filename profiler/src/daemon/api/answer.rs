//! What answers look like.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde::Serialize;
use serde_json::json;

/// What was asked for.
pub fn data(data: impl Serialize) -> Response {
    Json(json!({ "data": data, "timestamp": crate::process::clock::unix_ms() })).into_response()
}

/// Why there is none.
pub fn error(status: StatusCode, code: &str, message: &str) -> Response {
    (status, Json(json!({ "error": { "code": code, "message": message } }))).into_response()
}

/// There is no such thing.
pub fn not_found(code: &str, message: &str) -> Response {
    error(StatusCode::NOT_FOUND, code, message)
}

/// The request makes no sense.
pub fn bad(code: &str, message: &str) -> Response {
    error(StatusCode::BAD_REQUEST, code, message)
}

/// Something of the daemon's own failed. What exactly is on its standard error.
pub fn failed(what: &str, why: &anyhow::Error) -> Response {
    crate::say!("profiler: API: {what}: {why:#}");
    error(StatusCode::INTERNAL_SERVER_ERROR, "failed", what)
}
