//! PostgreSQL: <https://www.postgresql.org/docs/current/protocol-message-formats.html>.

use super::head::{Head, Operation, Protocol, be32, statement};
use crate::text;

pub static PROTOCOL: Protocol = Protocol { name: "PostgreSQL", ports: &[5432, 6432], distinct: true, read };

fn read(head: &Head<'_>) -> Option<Operation> {
    let error = error(head.answer);
    // What begins a connection has no kind, only its length and a code.
    if let (Some(len), Some(code)) = (be32(head.request, 0), be32(head.request, 4))
        && u64::from(len) == head.request_bytes
    {
        let name = match code {
            0x0003_0000..=0x0003_00ff => "connect",
            80_877_103 | 80_877_104 => "encrypt?",
            80_877_102 => "cancel",
            _ => return None,
        };
        return Some(Operation { name: name.into(), error, batch: false, setup: true });
    }
    let (&kind, rest) = head.request.split_first()?;
    let len = u64::from(be32(rest, 0)?);
    if len < 4 || len + 1 > head.request_bytes || len > 1 << 30 {
        return None;
    }
    let body = rest.get(4..)?;
    let alone = len + 1 == head.request_bytes;
    let name = match kind {
        b'Q' if alone => statement(body),
        // Parse: the name of the statement, and the statement; others follow.
        b'P' => statement(&body[body.iter().position(|&byte| byte == 0)? + 1..]),
        b'B' => "execute",
        b'E' | b'S' | b'D' | b'C' | b'F' if known_answer(head.answer) => "execute",
        b'p' if alone => "password",
        // Both sides copy: what the other one sends is news, and answers nothing.
        b'd' if head.answer.starts_with(b"d") && known_answer(head.answer) => "replication",
        b'd' | b'c' | b'f' if known_answer(head.answer) => "COPY",
        b'X' if alone && len == 4 => "disconnect",
        _ => return None,
    };
    // Of one kind both sides know the first byte of an answer.
    if !head.answer.is_empty() && !known_answer(head.answer) {
        return None;
    }
    Some(Operation { name: name.into(), error, batch: is_batch(head), setup: matches!(kind, b'p' | b'X') })
}

/// Whether more follows what asks for an answer (Sync, Query), as far as the first bytes tell.
fn is_batch(head: &Head<'_>) -> bool {
    let mut at = 0usize;
    while let (Some(&kind), Some(len)) = (head.request.get(at), be32(head.request, at.saturating_add(1))) {
        at = at.saturating_add(1).saturating_add(len as usize);
        if matches!(kind, b'S' | b'Q') || len < 4 {
            return len >= 4 && (at as u64) < head.request_bytes;
        }
    }
    false
}

fn known_answer(answer: &[u8]) -> bool {
    let len = be32(answer, 1).unwrap_or(0);
    answer.first().is_some_and(|kind| b"RSKZTDCEIN12stn3GHAVWvcd".contains(kind))
        && (4..1 << 30).contains(&len)
}

/// The code of an error that the answer begins with: fields with a kind each, a NUL after each.
fn error(answer: &[u8]) -> Option<String> {
    if answer.first() != Some(&b'E') || !known_answer(answer) {
        return None;
    }
    let mut fields = answer[5..].split(|&byte| byte == 0);
    let code = fields.find_map(|field| field.strip_prefix(b"C")).filter(|code| code.len() == 5);
    let plain = code.filter(|code| code.iter().all(u8::is_ascii_alphanumeric));
    Some(plain.map_or_else(|| "error".to_owned(), |code| text::to_parse(code).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(request: &[u8], answer: &[u8]) -> Option<Operation> {
        super::read(&Head { request, answer, request_bytes: request.len() as u64, port: 5432 })
    }

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut message = vec![kind];
        message.extend((body.len() as u32 + 4).to_be_bytes());
        message.extend(body);
        message
    }

    #[test]
    fn statements_and_errors() {
        let rows = message(b'T', &[0; 20]);
        let name = |request: &[u8]| of(request, &rows).map(|operation| operation.name.into_owned());
        assert_eq!(name(&message(b'Q', b"select * from users\0")).as_deref(), Some("SELECT"));
        let mut parse = message(b'P', b"\0UPDATE t SET x = $1\0\0\0");
        parse.extend(message(b'S', b""));
        assert_eq!(name(&parse).as_deref(), Some("UPDATE"));
        let failed = message(b'E', b"SERROR\0VERROR\0C42P01\0Mrelation\0\0");
        let error = of(&message(b'Q', b"select\0"), &failed).unwrap().error;
        assert_eq!(error.as_deref(), Some("42P01"));
        let mut startup = 16u32.to_be_bytes().to_vec();
        startup.extend(0x0003_0000u32.to_be_bytes());
        startup.extend(b"user\0a\0\0");
        startup.push(0);
        let startup = &startup[..16];
        assert!(of(startup, &message(b'R', &[0; 8])).unwrap().setup);
        assert_eq!(of(b"Q\0\0\0\x0dSELECT 1\0", b"HTTP/1.1"), None);
    }

    #[test]
    fn pipelines_are_batches_and_replication_is_no_answer() {
        let one = [message(b'B', &[0; 8]), message(b'E', &[0; 5]), message(b'S', b"")].concat();
        let bound = message(b'2', b"");
        assert!(!of(&one, &bound).unwrap().batch);
        assert!(of(&one.repeat(2), &bound).unwrap().batch);
        let (status, news) = (message(b'd', b"r\0\0\0\0"), message(b'd', b"w\0\0\0\0"));
        assert_eq!(&*of(&status, &news).unwrap().name, "replication");
        assert_eq!(&*of(&status, &message(b'C', b"COPY 1\0")).unwrap().name, "COPY");
    }
}
