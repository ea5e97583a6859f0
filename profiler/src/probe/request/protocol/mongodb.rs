//! MongoDB: OP_MSG of <https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/>.

use super::head::{Head, Operation, Protocol, le32};

pub static PROTOCOL: Protocol = Protocol { name: "MongoDB", ports: &[27017], distinct: true, read };

const OP_MSG: u32 = 2013;
const OP_QUERY: u32 = 2004;

const COMMANDS: [&str; 16] = [
    "find",
    "insert",
    "update",
    "delete",
    "aggregate",
    "getMore",
    "count",
    "distinct",
    "findAndModify",
    "hello",
    "ping",
    "ismaster",
    "isMaster",
    "saslStart",
    "saslContinue",
    "endSessions",
];

fn read(head: &Head<'_>) -> Option<Operation> {
    // Length, request, request that is answered, operation.
    if u64::from(le32(head.request, 0)?) != head.request_bytes || le32(head.request, 8)? != 0 {
        return None;
    }
    match le32(head.request, 12)? {
        OP_MSG => {}
        OP_QUERY => return Some(Operation { name: "hello".into(), setup: true, ..Operation::default() }),
        _ => return None,
    }
    // Flags, the kind of the section, the document's length and the type of its first element, whose name is the command.
    let name = head.request.get(16 + 4 + 1 + 4 + 1..).unwrap_or_default();
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    let name = COMMANDS.into_iter().find(|command| command.as_bytes() == name).unwrap_or("command");
    let error = head.answer.windows(3).any(|three| three == b"ok\0").then(|| ok_value(head.answer)).flatten();
    let setup = matches!(name, "hello" | "ismaster" | "isMaster" | "saslStart" | "saslContinue");
    Some(Operation { name: name.into(), error, batch: false, setup })
}

/// Whether an answer's element `ok`, a double, is zero.
fn ok_value(answer: &[u8]) -> Option<String> {
    let at = answer.windows(4).position(|four| four == b"\x01ok\0")? + 4;
    let value = answer.get(at..at + 8)?;
    value.iter().all(|byte| *byte == 0).then(|| "error".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_errors() {
        let mut request = vec![0; 12];
        request.extend(OP_MSG.to_le_bytes());
        request.extend([0; 4 + 1 + 4]);
        request.extend(b"\x02find\0\x06\0\0\0users\0\0");
        let len = request.len() as u32;
        request[..4].copy_from_slice(&len.to_le_bytes());
        let mut answer = vec![0; 25];
        answer.extend(b"\x01ok\0\0\0\0\0\0\0\0\0");
        let head = Head { request: &request, answer: &answer, request_bytes: len.into(), port: 27017 };
        let read = super::read(&head).unwrap();
        assert_eq!((&*read.name, read.error.as_deref()), ("find", Some("error")));
        assert_eq!(super::read(&Head { request_bytes: 1, ..head }), None);
    }
}
