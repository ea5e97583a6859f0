//! What protocols are told of an exchange, and what they make of it.

use std::borrow::Cow;

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
    /// Several requests came before the first answer, or the answer is another one's: the times are not those of one.
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

impl Protocol {
    /// Whether it is looked for on connections to a port.
    pub fn may_be_at(&self, port: u16) -> bool {
        self.distinct || self.ports.contains(&port)
    }
}

/// A number of the network's byte order.
pub fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// A number of two bytes.
pub fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

/// A number of four bytes, in the other order.
pub fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    be32(bytes, at).map(u32::swap_bytes)
}

/// The first word of a statement, if it is one that says what the statement does.
pub fn statement(text: &[u8]) -> &'static str {
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
