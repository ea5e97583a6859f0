//! Redis: RESP, <https://redis.io/docs/latest/develop/reference/protocol-spec/>.

use super::head::{Head, Operation, Protocol};
use crate::text::to_parse;

pub static PROTOCOL: Protocol = Protocol { name: "redis", ports: &[6379], distinct: true, read };

/// No command is longer, bytes.
const LONGEST: usize = 20;

fn read(head: &Head<'_>) -> Option<Operation> {
    let (count, after) = number(head.request.strip_prefix(b"*")?)?;
    let (len, text) = number(after.strip_prefix(b"$")?)?;
    if !(1..=LONGEST as u64).contains(&len) || !(1..=1_000_000).contains(&count) {
        return None;
    }
    let name = text.get(..len as usize)?;
    if !name.iter().all(|byte| byte.is_ascii_alphabetic() || matches!(byte, b'.' | b'_')) {
        return None;
    }
    let error = head.answer.strip_prefix(b"-").map(|text| {
        let end = text.iter().position(|byte| !byte.is_ascii_uppercase()).unwrap_or(text.len());
        if end == 0 { "error".to_owned() } else { to_parse(&text[..end.min(24)]).into_owned() }
    });
    let name = to_parse(name).to_ascii_uppercase();
    let setup = matches!(&*name, "AUTH" | "HELLO" | "CLIENT" | "SELECT" | "INFO");
    Some(Operation { name: name.into(), error, batch: is_batch(head, count, after), setup })
}

/// Whether more follows the first command, as far as its first bytes tell.
fn is_batch(head: &Head<'_>, count: u64, mut rest: &[u8]) -> bool {
    for left in (0..count).rev() {
        let Some((len, text)) = rest.strip_prefix(b"$").and_then(number) else { return false };
        let begins = (head.request.len() - text.len()) as u64;
        let ends = begins.saturating_add(len).saturating_add(2);
        match usize::try_from(len).ok().and_then(|len| text.get(len.checked_add(2)?..)) {
            Some(next) => rest = next,
            // Where the others end that are not there nobody knows.
            None => return left == 0 && ends < head.request_bytes,
        }
    }
    (head.request.len() - rest.len()) as u64 != head.request_bytes
}

/// A number and the line's end; what follows.
fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let end = bytes.iter().take(12).position(|&byte| byte == b'\r')?;
    let text = std::str::from_utf8(&bytes[..end]).ok()?;
    Some((text.parse().ok()?, bytes.get(end + 2..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(request: &[u8], bytes: usize, answer: &[u8]) -> Option<Operation> {
        super::read(&Head { request, answer, request_bytes: bytes as u64, port: 6379 })
    }

    #[test]
    fn commands_errors_and_batches() {
        let get = b"*2\r\n$3\r\nget\r\n$1\r\nk\r\n";
        let one = of(get, get.len(), b"$-1\r\n").unwrap();
        assert_eq!((&*one.name, one.error, one.batch), ("GET", None, false));
        let wrong = of(get, get.len(), b"-WRONGTYPE Operation against a key").unwrap();
        assert_eq!(wrong.error.as_deref(), Some("WRONGTYPE"));
        let two = get.repeat(2);
        assert!(of(&two, two.len(), b"$1").unwrap().batch);
        let set = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5000\r\nxxxx";
        assert!(!of(set, 5029, b"+OK").unwrap().batch);
        assert_eq!(of(b"*2\r\n$3\r\nGE", 20, b""), None);
        assert_eq!(of(b"*2\r\n$3\r\n\xff\xfe\x00\r\n", 20, b""), None);
    }
}
