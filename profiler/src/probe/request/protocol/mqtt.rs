//! MQTT 3.1.1 and 5: <https://docs.oasis-open.org/mqtt/mqtt/v5.0/mqtt-v5.0.html>, 2.1.

use super::head::{Head, Operation, Protocol};

pub static PROTOCOL: Protocol = Protocol { name: "MQTT", ports: &[1883], distinct: false, read };

/// The kind of a packet: the upper half of its first byte.
const CONNACK: u8 = 2;
const PUBLISH: u8 = 3;

fn read(head: &Head<'_>) -> Option<Operation> {
    if end(head.request)? > head.request_bytes {
        return None;
    }
    let kind = |bytes: &[u8]| bytes.first().map(|first| first >> 4);
    let name = match (kind(head.request)?, kind(head.answer)) {
        // A message comes by itself: it answers nothing, whatever was said last.
        (_, Some(PUBLISH)) => "delivery",
        (1, _) => "connect",
        (PUBLISH, _) => "publish",
        (4..=7, _) => "ack",
        (8, _) => "subscribe",
        (10, _) => "unsubscribe",
        (12, _) => "ping",
        (14, _) => "disconnect",
        _ => return None,
    };
    let refused = head.answer.get(3).filter(|code| kind(head.answer) == Some(CONNACK) && **code != 0);
    let error = refused.map(|code| format!("refused ({code})"));
    Some(Operation { name: name.into(), error, setup: name == "connect", ..Operation::default() })
}

/// Where a packet ends: after its first byte comes what is left, in seven bits of up to four bytes each, the least first.
fn end(packet: &[u8]) -> Option<u64> {
    let digits = packet.get(1..)?.iter().take(4);
    let last = digits.clone().position(|byte| byte & 0x80 == 0)?;
    let rest = digits.take(last + 1).rev().fold(0, |sum, byte| sum << 7 | u64::from(byte & 0x7f));
    Some(2 + last as u64 + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_have_names_and_deliveries_answer_nothing() {
        let of = |request: &[u8], answer: &[u8]| {
            let head = Head { request, answer, request_bytes: request.len() as u64, port: 1883 };
            super::read(&head).map(|read| (read.name.into_owned(), read.error))
        };
        let connect = b"\x10\x0c\0\x04MQTT\x04\x02\0\x3c\0\0";
        assert_eq!(of(connect, b"\x20\x02\0\0"), Some(("connect".into(), None)));
        assert_eq!(of(connect, b"\x20\x02\0\x05"), Some(("connect".into(), Some("refused (5)".into()))));
        let (publish, ack) = (b"\x32\x07\0\x01t\0\x01hi", b"\x40\x02\0\x01");
        assert_eq!(of(publish, ack), Some(("publish".into(), None)));
        assert_eq!(of(ack, publish), Some(("delivery".into(), None)));
        assert_eq!((of(b"\x32\x80\x01\0\x01t", b""), of(b"\xf0\x00", b"")), (None, None));
    }

    #[test]
    fn lengths_have_up_to_four_bytes() {
        assert_eq!((end(b"\x30\x7f"), end(b"\x30\x80\x01")), (Some(129), Some(131)));
        assert_eq!((end(b"\x30\xff\xff\xff\xff"), end(b"\x30\x80"), end(b"")), (None, None, None));
    }
}
