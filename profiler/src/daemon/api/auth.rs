//! Who may ask what.

use std::{
    path::Path,
    sync::{Arc, PoisonError},
    time::Instant,
};

use anyhow::{Context as _, Result};
use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::Next,
    response::Response,
};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::{answer::error, shared::Shared};

/// Somebody who may use the API: the hash of a token, and what it opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    role: Role,
    hash: [u8; 32],
}

/// What somebody may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// See everything.
    Reader,
    /// Change what can be changed, too.
    Admin,
}

impl Token {
    /// Reads a file of tokens; none without a file.
    pub fn load(file: Option<&Path>) -> Result<Vec<Token>> {
        let Some(file) = file else { return Ok(Vec::new()) };
        let text = crate::text::read_to_parse(file).with_context(|| file.display().to_string())?;
        Token::parse(&text).with_context(|| file.display().to_string())
    }

    /// A line each: role, colon, SHA-256 of the token in hexadecimal. Empty lines and those that begin with `#` are skipped.
    fn parse(text: &str) -> Result<Vec<Token>> {
        let lines = text.lines().map(str::trim).enumerate();
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let mut tokens = Vec::new();
        for (number, line) in lines {
            // The line itself is not shown: it may be a token that somebody put there by mistake.
            let token =
                Token::of_line(line).with_context(|| format!("line {} is not ROLE:SHA256", number + 1))?;
            tokens.push(token);
        }
        Ok(tokens)
    }

    fn of_line(line: &str) -> Option<Token> {
        let (role, hex) = line.split_once(':')?;
        let role = match role {
            "reader" => Role::Reader,
            "admin" => Role::Admin,
            _ => return None,
        };
        let digits = hex.as_bytes();
        let mut hash = [0; 32];
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        for (byte, pair) in hash.iter_mut().zip(digits.chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Token { role, hash })
    }
}

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
    request: Request,
    next: Next,
) -> Response {
    let tokens = shared.tokens();
    if tokens.is_empty() {
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
    for token in &tokens {
        if bool::from(token.hash.ct_eq(hash.as_slice())) {
            role = role.max(Some(token.role));
        }
    }
    match role {
        Some(role) if role >= needed => next.run(request).await,
        Some(_) => error(StatusCode::FORBIDDEN, "forbidden", "this needs an admin's token"),
        None => {
            let mut response = error(StatusCode::UNAUTHORIZED, "unauthorized", "this needs a token");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            response
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_token_file_is_refused_without_showing_it() {
        let hash = "0".repeat(64);
        assert_eq!(Token::parse(&format!("# ours\n\nreader:{hash}\n")).unwrap().len(), 1);
        let plus = format!("reader:+{}", "0".repeat(63));
        for text in ["reader", "king:00", &format!("reader:{hash}x"), "reader:\u{fc}\u{fc}", &plus] {
            let error = format!("{:#}", Token::parse(text).unwrap_err());
            assert_eq!(error, "line 1 is not ROLE:SHA256");
        }
    }
}
