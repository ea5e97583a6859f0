//! memcached's text protocol: doc/protocol.txt of its sources.

use super::head::{Head, Operation, Protocol};

pub static PROTOCOL: Protocol = Protocol { name: "memcached", ports: &[11211], distinct: false, read };

const COMMANDS: [&str; 18] = [
    "get", "gets", "gat", "gats", "set", "add", "replace", "append", "prepend", "cas", "delete", "incr",
    "decr", "touch", "stats", "version", "mg", "ms",
];

fn read(head: &Head<'_>) -> Option<Operation> {
    let end = head.request.iter().position(|byte| matches!(byte, b' ' | b'\r'))?;
    let name = COMMANDS.into_iter().find(|command| command.as_bytes() == &head.request[..end])?;
    let error = ["ERROR", "CLIENT_ERROR", "SERVER_ERROR"]
        .into_iter()
        .find(|error| {
            let rest = head.answer.strip_prefix(error.as_bytes());
            rest.is_some_and(|rest| rest.is_empty() || matches!(rest[0], b' ' | b'\r'))
        })
        .map(str::to_owned);
    Some(Operation { name: name.into(), error, batch: is_batch(name, head), ..Operation::default() })
}

/// Whether more follows the first command, as far as its first bytes tell.
fn is_batch(name: &str, head: &Head<'_>) -> bool {
    let Some(line) = head.request.iter().position(|&byte| byte == b'\n') else { return false };
    // Which word is the length of the data that follow the line.
    let length = match name {
        "set" | "add" | "replace" | "append" | "prepend" | "cas" => Some(4),
        "ms" => Some(2),
        _ => None,
    };
    let number = |at: usize| {
        let word = head.request[..line].split(|&byte| byte == b' ').nth(at)?.trim_ascii_end();
        std::str::from_utf8(word).ok()?.parse::<u64>().ok()
    };
    let data = match length {
        None => Some(0),
        Some(at) => number(at).map(|len| len.saturating_add(2)),
    };
    data.is_some_and(|data| (line as u64 + 1).saturating_add(data) < head.request_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_errors() {
        let of = |request: &[u8], answer: &[u8]| {
            super::read(&Head { request, answer, ..Head::default() }).map(|read| (read.name, read.error))
        };
        assert_eq!(of(b"set k 0 0 1\r\nv\r\n", b"STORED\r\n"), Some(("set".into(), None)));
        let (_, error) = of(b"incr k x\r\n", b"CLIENT_ERROR invalid").unwrap();
        assert_eq!(error.as_deref(), Some("CLIENT_ERROR"));
        assert_eq!(of(b"getting on", b""), None);
    }

    #[test]
    fn commands_in_one_go_are_a_batch() {
        let batch = |request: &[u8], request_bytes| {
            super::read(&Head { request, request_bytes, ..Head::default() }).unwrap().batch
        };
        assert!(!batch(b"get a b c\r\n", 11) && batch(b"get a\r\nget b\r\n", 14));
        let set = b"set k 0 0 5\r\nhello\r\n";
        assert!(!batch(set, 20) && batch(&set.repeat(2), 40));
        assert!(!batch(b"set k 0 0 5000\r\nhel", 5018) && batch(b"set k 0 0 5000\r\nhel", 5019));
        assert!(!batch(b"set k 0 0 much\r\nhel", 5019), "nobody knows");
    }
}
