//! What is spoken on a connection, by the first bytes of a request and its answer: the operation and whether it failed,
//! nothing else. A file per protocol; [`PROTOCOLS`] is the table. All bytes are the target's: whatever they are, they are
//! cut off, and nothing here may take them for more than they say.

use std::borrow::Cow;

mod amqp;
mod dns;
mod http;
mod kafka;
mod memcached;
mod mongodb;
mod mysql;
mod postgres;
mod redis;

/// The first bytes of an exchange.
#[derive(Clone, Copy, Debug, Default)]
pub struct Head<'a> {
    /// Of the request.
    pub request: &'a [u8],
    /// Of the answer.
    pub answer: &'a [u8],
    /// How long the request was in all, bytes.
    pub request_bytes: u64,
    /// The port of the side that answers.
    pub port: u16,
}

/// What was asked, and whether it failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operation {
    /// Method and path, command, kind of statement.
    pub name: Cow<'static, str>,
    /// How the protocol calls the error, if it was one.
    pub error: Option<String>,
    /// Several requests came at once: the times are those of all of them.
    pub batch: bool,
    /// It belongs to the beginning of a connection, as a log-in does.
    pub setup: bool,
}

/// A protocol, as the table lists it.
#[derive(Debug)]
pub struct Protocol {
    /// What it is called.
    pub name: &'static str,
    /// Ports that it is mostly spoken at. Where its bytes alone do not tell it from others, it is looked for only there.
    pub ports: &'static [u16],
    /// Whether its bytes alone tell it from others.
    pub distinct: bool,
    /// Reads the first bytes of an exchange; `None` if it is not spoken there.
    pub read: fn(&Head<'_>) -> Option<Operation>,
}

/// Every protocol, in the order in which they are looked for.
pub static PROTOCOLS: &[&Protocol] = &[
    &http::PROTOCOL,
    &redis::PROTOCOL,
    &dns::PROTOCOL,
    &amqp::PROTOCOL,
    &memcached::PROTOCOL,
    &postgres::PROTOCOL,
    &mongodb::PROTOCOL,
    &mysql::PROTOCOL,
    &kafka::PROTOCOL,
];

impl Protocol {
    fn may_be_at(&self, port: u16) -> bool {
        self.distinct || self.ports.contains(&port)
    }
}

/// Reads an exchange by the protocol that is `known` to be spoken on its connections, or else finds it.
pub fn read(head: &Head<'_>, known: Option<&'static Protocol>) -> Option<(&'static Protocol, Operation)> {
    let known_first = known.into_iter().chain(PROTOCOLS.iter().copied().filter(|it| it.may_be_at(head.port)));
    known_first.into_iter().find_map(|protocol| Some((protocol, (protocol.read)(head)?)))
}

/// The protocol that is mostly spoken at a port.
pub fn at_port(port: u16) -> Option<&'static str> {
    PROTOCOLS.iter().find(|protocol| protocol.ports.contains(&port)).map(|protocol| protocol.name)
}

/// A number of the network's byte order.
fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    be32(bytes, at).map(u32::swap_bytes)
}

/// The first word of a statement, if it is one that says what the statement does.
fn statement(text: &[u8]) -> &'static str {
    const KNOWN: [&str; 24] = [
        "SELECT",
        "INSERT",
        "UPDATE",
        "DELETE",
        "BEGIN",
        "COMMIT",
        "ROLLBACK",
        "SET",
        "SHOW",
        "WITH",
        "CALL",
        "COPY",
        "CREATE",
        "ALTER",
        "DROP",
        "TRUNCATE",
        "LISTEN",
        "NOTIFY",
        "EXPLAIN",
        "VACUUM",
        "MERGE",
        "REPLACE",
        "SAVEPOINT",
        "START",
    ];
    let text = text.trim_ascii_start();
    let len = text.iter().position(|byte| !byte.is_ascii_alphabetic()).unwrap_or(text.len());
    KNOWN.into_iter().find(|known| known.as_bytes().eq_ignore_ascii_case(&text[..len])).unwrap_or("statement")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A request, its answer, its protocol and operation.
    const EXCHANGES: &[(&[u8], &[u8], u16, &str, &str)] = &[
        (b"GET /users/17 HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200 OK\r\n", 80, "HTTP", "GET /users/:id"),
        (b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n", b"$1\r\nv\r\n", 6379, "redis", "GET"),
        (b"Q\0\0\0\x0dSELECT 1\0", b"T\0\0\0\x21", 5432, "PostgreSQL", "SELECT"),
        (b"\x09\0\0\0\x03SELECT 1", b"\x01\0\0\x01\x01", 3306, "MySQL", "SELECT"),
        (b"get key\r\n", b"VALUE key 0 1\r\n", 11211, "memcached", "get"),
    ];

    #[test]
    fn each_is_what_it_is() {
        for (request, answer, port, protocol, operation) in EXCHANGES {
            let head = Head { request, answer, request_bytes: request.len() as u64, port: *port };
            let (found, read) = read(&head, None).unwrap();
            assert_eq!((found.name, &*read.name, read.error), (*protocol, *operation, None));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(
            request in prop::collection::vec(any::<u8>(), 0..130),
            answer in prop::collection::vec(any::<u8>(), 0..70),
            request_bytes: u64,
            port in prop::sample::select(vec![0u16, 53, 80, 3306, 5432, 5672, 9092, 11211, 27017]),
        ) {
            let head = Head { request: &request, answer: &answer, request_bytes, port };
            for protocol in PROTOCOLS {
                (protocol.read)(&head);
            }
            read(&head, None);
        }

        /// What is cut off is not known or the same thing, never another one.
        #[test]
        fn what_is_cut_off_is_no_other_protocol(which in 0..EXCHANGES.len(), cut in 0usize..40) {
            let (request, answer, port, protocol, _) = EXCHANGES[which];
            let short = &request[..cut.min(request.len())];
            let head = Head { request: short, answer, request_bytes: request.len() as u64, port };
            if let Some((found, _)) = read(&head, None) {
                prop_assert_eq!(found.name, protocol);
            }
        }
    }
}
