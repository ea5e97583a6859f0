//! MySQL and MariaDB: <https://dev.mysql.com/doc/dev/mysql-server/latest/PAGE_PROTOCOL.html>.

use super::head::{Head, Operation, Protocol, le32, statement};

pub static PROTOCOL: Protocol = Protocol { name: "MySQL", ports: &[3306, 33060], distinct: false, read };

fn read(head: &Head<'_>) -> Option<Operation> {
    // Three bytes of length, a number that counts packets, a command.
    let header = le32(head.request, 0)?;
    let (len, number) = (header & 0xff_ffff, header >> 24);
    if len == 0 || u64::from(len) + 4 != head.request_bytes {
        return None;
    }
    let (&command, body) = head.request.get(4..)?.split_first()?;
    let error = error(head.answer);
    if number > 0 {
        return Some(Operation { name: "log in".into(), error, batch: false, setup: true });
    }
    let name = match command {
        0x01 => "quit",
        0x02 => "use",
        0x03 => statement(body),
        0x0e => "ping",
        0x16 => "prepare",
        0x17 => "execute",
        0x19 => "close",
        0x1a => "reset",
        0x1c => "fetch",
        0x00..=0x1f => "command",
        _ => return None,
    };
    Some(Operation { name: name.into(), error, ..Operation::default() })
}

/// The number of an error: 0xff, and two bytes.
fn error(answer: &[u8]) -> Option<String> {
    match answer.get(4..7)? {
        &[0xff, low, high] => Some(u16::from_le_bytes([low, high]).to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_errors() {
        let of = |request: &[u8], answer: &[u8]| {
            super::read(&Head { request, answer, request_bytes: request.len() as u64, port: 3306 })
        };
        let denied = b"\x17\0\0\x01\xff\x15\x04#28000";
        let read = of(b"\x07\0\0\0\x03DELETE", denied).unwrap();
        assert_eq!((&*read.name, read.error.as_deref()), ("DELETE", Some("1045")));
        assert_eq!(of(b"\x07\0\0\0\x03DELE", denied), None);
        assert!(of(b"\x01\0\0\x01\x00", b"\x07\0\0\x02\0").unwrap().setup);
    }
}
