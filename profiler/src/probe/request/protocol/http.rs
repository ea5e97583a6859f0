//! HTTP/1: RFC 9112.

use super::head::{Head, Operation, Protocol};
use crate::text;

pub static PROTOCOL: Protocol =
    Protocol { name: "HTTP", ports: &[80, 8000, 8080, 3000], distinct: true, read };

const METHODS: [&str; 9] = ["GET", "POST", "PUT", "HEAD", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE"];

/// Longer parts of a path are names of things, not of routes, bytes.
const LONGEST_PART: usize = 40;
/// Parts of a path that are told.
const MOST_PARTS: usize = 8;

fn read(head: &Head<'_>) -> Option<Operation> {
    let end = head.request.iter().position(|&byte| byte == b' ')?;
    let method = METHODS.into_iter().find(|method| method.as_bytes() == &head.request[..end])?;
    let target = &head.request[end + 1..];
    let whole = target.iter().position(|&byte| matches!(byte, b' ' | b'?' | b'\r' | b'\n'));
    let path = &target[..whole.unwrap_or(target.len())];
    let error = match status(head.answer) {
        Some(status) if status >= 400 => Some(status.to_string()),
        _ => None,
    };
    let name = format!("{method} {}", template(path, whole.is_none())).into();
    Some(Operation { name, error, batch: is_batch(method, head), ..Operation::default() })
}

/// What is asked with a method and a path, as it is told.
pub fn operation(method: &[u8], path: &[u8]) -> Option<String> {
    let method = METHODS.into_iter().find(|known| known.as_bytes() == method)?;
    let path = path.split(|&byte| byte == b'?').next()?;
    Some(format!("{method} {}", template(path, false)))
}

/// Whether another request follows one that has no body, as far as its first bytes tell.
fn is_batch(method: &str, head: &Head<'_>) -> bool {
    const END: &[u8] = b"\r\n\r\n";
    let Some(end) = head.request.windows(END.len()).position(|four| four == END) else { return false };
    let (own, next) = head.request.split_at(end + END.len());
    let is_of_body = |line: &[u8]| {
        let name = line.split(|&byte| byte == b':').next().unwrap_or_default().to_ascii_lowercase();
        matches!(&*name, b"content-length" | b"transfer-encoding")
    };
    let begins = |method: &&str| next.iter().zip(method.as_bytes()).all(|(next, byte)| next == byte);
    matches!(method, "GET" | "HEAD")
        && (own.len() as u64) < head.request_bytes
        && METHODS.iter().any(begins)
        && !own.split(|&byte| byte == b'\n').any(is_of_body)
}

/// The status of an answer.
fn status(answer: &[u8]) -> Option<u16> {
    let digits = answer.strip_prefix(b"HTTP/1.")?.get(2..5)?;
    std::str::from_utf8(digits).ok()?.parse().ok().filter(|status| (100..600).contains(status))
}

/// A path with `:id` for what names a thing rather than a kind of things. Of one that is cut off the last part is left out.
fn template(path: &[u8], cut_off: bool) -> String {
    // `http://host/path`, as proxies are asked.
    let path = match path.windows(3).position(|three| three == b"://") {
        Some(at) if !path.starts_with(b"/") => {
            let rest = &path[at + 3..];
            rest.iter().position(|&byte| byte == b'/').map_or(&b"/"[..], |slash| &rest[slash..])
        }
        _ => path,
    };
    let mut parts: Vec<&[u8]> = path.split(|&byte| byte == b'/').collect();
    if cut_off {
        parts.pop();
    }
    let more = cut_off || parts.len() > MOST_PARTS;
    let mut template: Vec<String> = parts.into_iter().take(MOST_PARTS).map(part).collect();
    if more {
        template.push("…".to_owned());
    }
    if template.is_empty() { "*".to_owned() } else { template.join("/") }
}

fn part(part: &[u8]) -> String {
    let digits = part.iter().filter(|byte| byte.is_ascii_digit()).count();
    let version = part.len() <= 3 && matches!(part.first(), Some(b'v' | b'V'));
    let number = digits > 0 && 2 * digits >= part.len() && !version;
    let hexadecimal = part.len() >= 8
        && digits > 0
        && part.iter().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b'-' | b'_'));
    let token = part.len() >= 20 && digits >= 3 && !part.contains(&b'.');
    let harmless = part.iter().all(|byte| byte.is_ascii_graphic());
    if number
        || hexadecimal
        || token
        || part.len() > LONGEST_PART
        || part.contains(&b'%')
        || part.contains(&b'@')
    {
        ":id".to_owned()
    } else if harmless {
        text::to_parse(part).into_owned()
    } else {
        ":text".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(request: &str, answer: &str) -> Option<(String, Option<String>)> {
        let head = Head { request: request.as_bytes(), answer: answer.as_bytes(), ..Head::default() };
        read(&head).map(|operation| (operation.name.into_owned(), operation.error))
    }

    #[test]
    fn routes_have_no_ids_and_no_queries() {
        let route = |path: &str| operation(&format!("GET {path} HTTP/1.1\r\n"), "").unwrap().0;
        assert_eq!(route("/"), "GET /");
        assert_eq!(route("/api/v1/users/4711/orders?token=secret"), "GET /api/v1/users/:id/orders");
        assert_eq!(route("/x/0b0f8cf2-7a1c-4a2e-9f8d-6a2f4d1c9a7e"), "GET /x/:id");
        assert_eq!(route("/u/me@example.org/a%20b"), "GET /u/:id/:id");
        assert_eq!(route("/static/app.3f2a9c1b.js"), "GET /static/app.3f2a9c1b.js");
        assert_eq!(route("http://host:80/a/7"), "GET /a/:id");
        assert_eq!(operation("GET /a/verylongna", "").unwrap().0, "GET /a/…");
    }

    #[test]
    fn requests_in_one_go_are_a_batch() {
        let batch = |request: &[u8], request_bytes| {
            let request = &request[..request.len().min(128)];
            read(&Head { request, request_bytes, ..Head::default() }).unwrap().batch
        };
        let one = b"GET /plaintext HTTP/1.1\r\nHost: localhost:8080\r\n\r\n";
        assert!(!batch(one, one.len() as u64));
        assert!(batch(&one.repeat(16), 16 * one.len() as u64));
        assert!(batch(one, 2 * one.len() as u64), "what follows came with a later call");
        let body = b"GET /search HTTP/1.1\r\nContent-Length: 7\r\n\r\n{\"q\":1}";
        assert!(!batch(body, body.len() as u64), "a body");
        assert!(!batch(&body[..body.len() - 7], body.len() as u64), "a body that came with a later call");
        let other = b"GET /x HTTP/1.1\r\n\r\n<not a request>";
        assert!(!batch(other, other.len() as u64), "whatever that is");
        let post = b"POST /x HTTP/1.1\r\nContent-Length: 3\r\n\r\nGET";
        assert!(!batch(post, post.len() as u64), "a body, whatever it says");
    }

    #[test]
    fn statuses_are_errors_from_400_on() {
        let error = |answer: &str| operation("POST /x HTTP/1.1\r\n", answer).unwrap().1;
        assert_eq!(error("HTTP/1.1 204 No Content\r\n"), None);
        assert_eq!(error("HTTP/1.0 503 Service Unavailable\r\n").as_deref(), Some("503"));
        assert_eq!([error("HTTP/1.1 9"), error("HTTP/1.1 999 x"), error("")], [None, None, None]);
        assert_eq!(operation("GETTY /x", ""), None);
    }
}
