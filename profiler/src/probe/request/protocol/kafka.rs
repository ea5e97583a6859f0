//! Kafka: <https://kafka.apache.org/protocol.html>.

use super::head::{Head, Operation, Protocol, be16, be32};

pub static PROTOCOL: Protocol = Protocol { name: "Kafka", ports: &[9092], distinct: false, read };

fn read(head: &Head<'_>) -> Option<Operation> {
    // Length, key, version of the key.
    if u64::from(be32(head.request, 0)?) + 4 != head.request_bytes || be16(head.request, 6)? > 30 {
        return None;
    }
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
    Some(Operation { name: name.into(), setup: name == "ApiVersions", ..Operation::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_names() {
        let request = b"\0\0\0\x0a\0\x01\0\x0b\0\0\0\x07\0\0";
        let head = Head { request, request_bytes: 14, port: 9092, ..Head::default() };
        assert_eq!(&*super::read(&head).unwrap().name, "Fetch");
        assert_eq!(super::read(&Head { request_bytes: 15, ..head }), None);
    }
}
