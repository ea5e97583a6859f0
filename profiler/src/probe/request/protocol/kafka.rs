//! Kafka: <https://kafka.apache.org/protocol.html>.

use super::head::{Head, Operation, Protocol, be16, be32};

pub static PROTOCOL: Protocol = Protocol { name: "Kafka", ports: &[9092], distinct: false, read };

fn read(head: &Head<'_>) -> Option<Operation> {
    // Length, key, version of the key, and the number by which the answer is known.
    let end = u64::from(be32(head.request, 0)?) + 4;
    if end > head.request_bytes || be16(head.request, 6)? > 30 {
        return None;
    }
    let number = be32(head.request, 8)?;
    let is_another = be32(head.answer, 4).is_some_and(|answered| answered != number);
    let name = match be16(head.request, 4)? {
        0 => "Produce",
        1 => "Fetch",
        2 => "ListOffsets",
        3 => "Metadata",
        8 => "OffsetCommit",
        9 => "OffsetFetch",
        10 => "FindCoordinator",
        11 => "JoinGroup",
        12 => "Heartbeat",
        14 => "SyncGroup",
        18 => "ApiVersions",
        key if key <= 100 => "request",
        _ => return None,
    };
    let batch = end < head.request_bytes || is_another;
    Some(Operation { name: name.into(), batch, setup: name == "ApiVersions", ..Operation::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_names() {
        let request = b"\0\0\0\x0a\0\x01\0\x0b\0\0\0\x07\0\0";
        let head = Head { request, request_bytes: 14, port: 9092, ..Head::default() };
        assert_eq!(&*super::read(&head).unwrap().name, "Fetch");
        assert_eq!(super::read(&Head { request_bytes: 13, ..head }), None);
    }

    #[test]
    fn several_in_flight_are_known_by_their_number() {
        let request = b"\0\0\0\x0a\0\0\0\x09\0\0\0\x07\0\0";
        let batch = |answer: &[u8], request_bytes| {
            let head = Head { request, answer, request_bytes, port: 9092 };
            super::read(&head).unwrap().batch
        };
        assert!(!batch(b"\0\0\0\x08\0\0\0\x07\0\0", 14), "its own answer");
        assert!(batch(b"\0\0\0\x08\0\0\0\x06\0\0", 14), "the answer to the request before");
        assert!(batch(b"\0\0\0\x08\0\0\0\x07\0\0", 28), "another one follows");
        assert!(!batch(b"\0\0\0\x08", 14), "only the length was read");
    }
}
