//! The API: what the daemon knows, as JSON, and metrics for scrapers. Of this machine only; or of others, with encryption and
//! tokens.

mod access;
mod answer;
mod auth;
mod change;
mod events;
mod jwt;
mod limit;
mod listen;
mod openapi;
mod read;
mod routes;
mod shared;
mod stream;
mod token;
mod windows;

use std::sync::Arc;

use anyhow::{Context as _, Result};
use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    http::{HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use tokio_rustls::TlsAcceptor;

use self::{answer::error, listen::Encrypted, routes::ROUTES};
pub use self::{
    listen::Listen,
    shared::{Shared, Snapshot, TargetStatus},
};
use super::config::Daemon;

/// Longest body of a request, bytes.
const MAX_BODY: usize = 64 * 1024;

/// Serves the API until the daemon ends, on a thread of its own. Returns when it listens.
pub fn serve(settings: &Daemon, shared: Arc<Shared>) -> Result<()> {
    let Some(listen) = Listen::parse(settings)? else { return Ok(()) };
    let acceptor = match (&settings.tls_cert, &settings.tls_key) {
        (Some(cert), Some(key)) => Some(listen::acceptor(cert, key)?),
        _ => None,
    };
    let app = router(shared, acceptor.is_some());
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::Builder::new().name("api".into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let Ok(runtime) = runtime else {
            let _ = ready.send(Err(anyhow::anyhow!("the API's thread cannot start")));
            return;
        };
        if let Err(error) = runtime.block_on(listen_and_serve(listen, acceptor, app, &ready)) {
            // Before it listened the daemon does not start, after that it goes on without.
            if let Err(sent) = ready.send(Err(error)) {
                let error = sent.0.err().map_or_else(String::new, |error| format!("{error:#}"));
                crate::say!("profiler: the API has ended: {error}");
            }
        }
    })?;
    is_ready.recv().context("the API's thread has ended")?
}

async fn listen_and_serve(
    listen: Listen,
    acceptor: Option<TlsAcceptor>,
    app: Router,
    ready: &std::sync::mpsc::Sender<Result<()>>,
) -> Result<()> {
    match listen {
        Listen::Tcp(address) => {
            let listener = tokio::net::TcpListener::bind(address).await;
            let listener = listener.with_context(|| format!("cannot listen on {address}"))?;
            let _ = ready.send(Ok(()));
            match acceptor {
                Some(acceptor) => axum::serve(Encrypted::new(listener, acceptor)?, app).await?,
                None => axum::serve(listener, app).await?,
            }
        }
        Listen::Unix(path) => {
            // One that a daemon before this one has left.
            if std::os::unix::net::UnixStream::connect(&path).is_err() {
                let _ = std::fs::remove_file(&path);
            }
            let listener = tokio::net::UnixListener::bind(&path);
            let listener = listener.with_context(|| format!("cannot listen on {}", path.display()))?;
            use std::os::unix::fs::PermissionsExt as _;
            let _ = std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o660));
            let _ = ready.send(Ok(()));
            axum::serve(listener, app).await?;
        }
    }
    Ok(())
}

fn router(shared: Arc<Shared>, is_public: bool) -> Router {
    let table = |open: bool| {
        let routes = ROUTES.iter().filter(|route| route.open == open);
        routes.fold(Router::new(), |router, route| router.route(route.path, (route.serve)()))
    };
    let closed = table(false).layer(middleware::from_fn_with_state(Arc::clone(&shared), auth::authorize));
    let app = table(true)
        .merge(closed)
        .fallback(async || error(StatusCode::NOT_FOUND, "not_found", "there is nothing here"))
        .method_not_allowed_fallback(async || {
            error(StatusCode::METHOD_NOT_ALLOWED, "method", "this cannot be done here")
        })
        .layer(middleware::from_fn(as_json))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), auth::limit));
    // A browser sends no token by itself: where there must be one, a page of somebody else gets nowhere.
    let app = if is_public { app } else { app.layer(middleware::from_fn(auth::check_host)) };
    app.with_state(shared)
}

/// What could not be read is said in the form of every other error, and nothing is kept by caches.
async fn as_json(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let is_text = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.to_str().is_ok_and(|kind| kind.starts_with("text/plain")));
    let mut response = match response.status() {
        status @ (StatusCode::BAD_REQUEST
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::UNSUPPORTED_MEDIA_TYPE
        | StatusCode::UNPROCESSABLE_ENTITY)
            if is_text =>
        {
            let words = axum::body::to_bytes(response.into_body(), 4096).await.unwrap_or_default();
            error(status, "request", &crate::text::to_parse(&words)).into_response()
        }
        _ => response,
    };
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests;
