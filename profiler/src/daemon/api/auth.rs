//! Who may ask what.

use std::{
    sync::{Arc, PoisonError},
    time::Instant,
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::Next,
    response::Response,
};

use super::{answer::error, shared::Shared, token::Role};

/// Refuses requests when there are too many of them, whoever sends them.
pub async fn limit(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let is_left = shared.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
    if is_left {
        return next.run(request).await;
    }
    let mut response =
        error(StatusCode::TOO_MANY_REQUESTS, "too_many", "too many requests: try again in a second");
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// Refuses requests that a page of somebody else has made a browser send here (DNS rebinding): they name another host.
pub async fn check_host(request: Request, next: Next) -> Response {
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
pub async fn authorize(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    mut request: Request,
    next: Next,
) -> Response {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    let (is_open, caller) = shared.access(|access| (access.is_open, access.caller(given)));
    if is_open {
        // Whoever is on this machine may read, but not change anything.
        return if request.method().is_safe() {
            next.run(request).await
        } else {
            error(
                StatusCode::FORBIDDEN,
                "forbidden",
                "this needs daemon.token_file or daemon.jwt, and an admin's token",
            )
        };
    }
    let needed = if request.method().is_safe() { Role::Reader } else { Role::Admin };
    match caller {
        Some(caller) if caller.role >= needed => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Some(_) => error(StatusCode::FORBIDDEN, "forbidden", "this needs an admin's token"),
        None => {
            let mut response = error(StatusCode::UNAUTHORIZED, "unauthorized", "this needs a token");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            response
        }
    }
}
