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
    Some(Operation { name: name.into(), error, ..Operation::default() })
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
}
