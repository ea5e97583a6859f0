//! DNS: RFC 1035, 4.1.

use std::net::IpAddr;

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

/// Names asked for are no longer: RFC 1035, 2.3.4.
const MAX_NAME: usize = 255;
/// Records of an answer that are looked at.
const MAX_RECORDS: usize = 64;

/// Which name a message says is at which addresses: the one that was asked for, whatever names it stands for. `None` if it is no such
/// answer, or its beginning is cut off; addresses that are cut off are left out.
pub fn addresses(message: &[u8]) -> Option<(String, Vec<IpAddr>)> {
    /// Response, operation, error.
    const OF_ANSWERS: u16 = 0x8000 | 0x7800 | 0x000f;
    if be16(message, 2)? & OF_ANSWERS != 0x8000 || be16(message, 4)? != 1 {
        return None;
    }
    let (name, mut at) = question(message)?;
    let mut found = Vec::new();
    for _ in 0..usize::from(be16(message, 6)?).min(MAX_RECORDS) {
        let Some((address, next)) = record(message, at) else { break };
        found.extend(address);
        at = next;
    }
    (!name.is_empty() && !found.is_empty()).then_some((name, found))
}

/// The name that was asked for, and where the question ends. It is the first name, so it refers to no other.
fn question(message: &[u8]) -> Option<(String, usize)> {
    let (mut name, mut at) = (String::new(), 12);
    loop {
        let len = usize::from(*message.get(at)?);
        let label = message.get(at + 1..at + 1 + len).filter(|_| len < 64)?;
        at += 1 + len;
        if len == 0 {
            return Some((name, at + 4));
        }
        // What names of hosts are made of, and nothing else.
        let is_fine = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if !label.iter().all(is_fine) || name.len() + len >= MAX_NAME {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
    }
}

/// The address that a record has, if it has one, and where the next one begins.
fn record(message: &[u8], mut at: usize) -> Option<(Option<IpAddr>, usize)> {
    /// Labels, and a pointer to others, which ends a name.
    const POINTER: u8 = 0xc0;
    loop {
        match *message.get(at)? {
            0 => break at += 1,
            len if len >= POINTER => break at += 2,
            len if len < 64 => at += 1 + usize::from(len),
            _ => return None,
        }
    }
    let (kind, class, len) =
        (be16(message, at)?, be16(message, at + 2)?, usize::from(be16(message, at + 8)?));
    let data = message.get(at + 10..at + 10 + len)?;
    let address = match (class, kind) {
        (1, 1) => <[u8; 4]>::try_from(data).ok().map(IpAddr::from),
        (1, 28) => <[u8; 16]>::try_from(data).ok().map(IpAddr::from),
        _ => None,
    };
    Some((address, at + 10 + len))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An answer for a name: two names that it stands for, an address of each kind, and one cut off.
    fn answer() -> Vec<u8> {
        let mut message =
            b"\x12\x34\x81\x80\0\x01\0\x05\0\0\0\0\x03API\x07example\x04test\0\0\x01\0\x01".to_vec();
        let mut add = |kind: u8, data: &[u8]| {
            message.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 60, 0, data.len() as u8]);
            message.extend(data);
        };
        add(5, b"\x03cdn\xc0\x10");
        add(5, b"\x01x\xc0\x10");
        add(1, &[10, 0, 0, 7]);
        add(28, &[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        add(1, &[10, 0, 0, 8]);
        message
    }

    #[test]
    fn a_name_has_addresses() {
        let whole = addresses(&answer()).unwrap();
        let all: Vec<String> = whole.1.iter().map(ToString::to_string).collect();
        assert_eq!(
            (&*whole.0, &all[..]),
            ("api.example.test", &["10.0.0.7", "fd00::1", "10.0.0.8"].map(str::to_owned)[..])
        );
        let len = answer().len();
        assert_eq!(addresses(&answer()[..len - 1]).unwrap().1.len(), 2, "the last one is cut off");
        assert_eq!(addresses(&answer()[..60]), None);
        let with = |at: usize, byte: u8| {
            let mut message = answer();
            message[at] = byte;
            addresses(&message).map(|(name, _)| name)
        };
        assert_eq!(with(2, 0x01), None, "a query");
        assert_eq!(with(3, 0x83), None, "there is no such name");
        assert_eq!(
            [with(13, b'\n'), with(13, b' '), with(13, 0xff)],
            [None, None, None],
            "no name of a host"
        );
    }

    proptest! {
        #[test]
        fn any_answer_is_survived(at in 0usize..140, bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut message = answer();
            let end = message.len().min(at + bytes.len());
            if at < end {
                message.splice(at..end, bytes);
            }
            if let Some((name, found)) = addresses(&message) {
                prop_assert!(name.len() <= MAX_NAME && found.len() <= MAX_RECORDS);
                prop_assert!(name.bytes().all(|byte| byte.is_ascii_graphic()));
            }
        }
    }

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
