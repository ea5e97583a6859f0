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
    let name = match (kind, be16(head.request, 7), be16(head.request, 9)) {
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
    Some(Operation { name: name.into(), setup, ..Operation::default() })
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
}
