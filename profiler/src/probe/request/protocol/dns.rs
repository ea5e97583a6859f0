//! DNS: RFC 1035, 4.1.

use super::head::{Head, Operation, Protocol, be16};

pub static PROTOCOL: Protocol = Protocol { name: "DNS", ports: &[53], distinct: false, read };

fn read(head: &Head<'_>) -> Option<Operation> {
    /// Response, operation.
    const NOT_A_QUERY: u16 = 0x8000 | 0x7800;
    // Over TCP a length comes first.
    let tcp = be16(head.request, 0).is_some_and(|len| u64::from(len) + 2 == head.request_bytes);
    let at = if tcp { 2 } else { 0 };
    if be16(head.request, at + 2)? & NOT_A_QUERY != 0 || be16(head.request, at + 4)? != 1 {
        return None;
    }
    // Labels with their lengths, then the type.
    let mut end = at + 12;
    while let Some(&len) = head.request.get(end).filter(|len| **len != 0) {
        end += 1 + usize::from(len & 63);
    }
    let name = match be16(head.request, end + 1) {
        Some(1) => "A",
        Some(28) => "AAAA",
        Some(12) => "PTR",
        Some(33) => "SRV",
        Some(16) => "TXT",
        _ => "query",
    };
    let code = be16(head.answer, at + 2).filter(|flags| flags & 0x8000 != 0).map_or(0, |flags| flags & 15);
    let error = match code {
        0 => None,
        2 => Some("SERVFAIL".to_owned()),
        3 => Some("NXDOMAIN".to_owned()),
        5 => Some("REFUSED".to_owned()),
        other => Some(format!("code {other}")),
    };
    Some(Operation { name: name.into(), error, ..Operation::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_and_errors() {
        let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07example\x03org\0\0\x1c\0\x01";
        let answer = b"\x12\x34\x81\x83\0\x01\0\0";
        let head = Head { request: query, answer, request_bytes: query.len() as u64, port: 53 };
        let read = super::read(&head).unwrap();
        assert_eq!((&*read.name, read.error.as_deref()), ("AAAA", Some("NXDOMAIN")));
        assert_eq!(super::read(&Head { request: answer, ..head }), None);
    }
}
