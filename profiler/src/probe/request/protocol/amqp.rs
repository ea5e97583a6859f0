//! AMQP 0-9-1: <https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf>, 2.3.5.

use super::head::{Head, Operation, Protocol, be16, be32};

pub static PROTOCOL: Protocol = Protocol { name: "AMQP", ports: &[5672], distinct: false, read };

fn read(head: &Head<'_>) -> Option<Operation> {
    if head.request.starts_with(b"AMQP") {
        return Some(Operation { name: "connect".into(), setup: true, ..Operation::default() });
    }
    // Kind, channel, length; of a method its class and number.
    let &kind = head.request.first().filter(|kind| matches!(kind, 1 | 2 | 3 | 8))?;
    if u64::from(be32(head.request, 3)?) + 8 > head.request_bytes {
        return None;
    }
    let answer = (head.answer.first(), be16(head.answer, 7), be16(head.answer, 9));
    let name = match (kind, be16(head.request, 7), be16(head.request, 9)) {
        // What comes by itself answers nothing, whatever was said last: an ack, a message that nobody confirms.
        _ if matches!(answer, (Some(1), Some(60), Some(60))) => "delivery",
        _ if matches!(answer, (Some(8), ..)) => "heartbeat",
        (8, ..) => "heartbeat",
        (1, Some(60), Some(40)) => "publish",
        (1, Some(60), Some(70)) => "get",
        (1, Some(60), Some(80)) => "ack",
        (1, Some(60), Some(20)) => "consume",
        (1, Some(10), _) => "connection",
        (1, Some(20), _) => "channel",
        (1, Some(40), _) => "exchange",
        (1, Some(50), _) => "queue",
        _ => "method",
    };
    let setup = matches!(name, "connection" | "channel");
    // A channel or a connection is closed, or a message comes back, with a code; or a message is refused.
    let error = match answer {
        (Some(1), Some(20), Some(40)) | (Some(1), Some(10 | 60), Some(50)) => {
            be16(head.answer, 11).map(|code| code.to_string())
        }
        (Some(1), Some(60), Some(120)) => Some("nack".to_owned()),
        _ => None,
    };
    Some(Operation { name: name.into(), error, setup, ..Operation::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_have_names() {
        let request = b"\x01\0\x01\0\0\0\x06\0\x3c\0\x28\0\0\xce";
        let head = Head { request, request_bytes: 14, port: 5672, ..Head::default() };
        assert_eq!(&*super::read(&head).unwrap().name, "publish");
        assert_eq!(super::read(&Head { request_bytes: 13, ..head }), None);
    }

    #[test]
    fn what_comes_unasked_is_no_answer_and_errors_have_codes() {
        let of = |request: &[u8], answer: &[u8]| {
            let head = Head { request, answer, request_bytes: request.len() as u64, port: 5672 };
            super::read(&head).map(|read| (read.name.into_owned(), read.error))
        };
        let ack = b"\x01\0\x01\0\0\0\x0d\0\x3c\0\x50\0\0\0\0\0\0\0\x01\0\xce";
        let deliver = b"\x01\0\x01\0\0\0\x1e\0\x3c\0\x3c\x05ctag1";
        assert_eq!(of(ack, deliver), Some(("delivery".into(), None)));
        assert_eq!(of(ack, b"\x08\0\0\0\0\0\0\xce"), Some(("heartbeat".into(), None)));
        let publish = b"\x01\0\x01\0\0\0\x06\0\x3c\0\x28\0\0\xce";
        let confirmed = b"\x01\0\x01\0\0\0\x0d\0\x3c\0\x50";
        assert_eq!(of(publish, confirmed), Some(("publish".into(), None)));
        let closed = b"\x01\0\x01\0\0\0\x20\0\x14\0\x28\x01\x94\x09NOT_FOUND";
        assert_eq!(of(publish, closed), Some(("publish".into(), Some("404".into()))));
    }
}
