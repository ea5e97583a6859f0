//! What is spoken on a connection, by the first bytes of a request and its answer: the operation and whether it failed,
//! nothing else. A file per protocol; [`PROTOCOLS`] is the table. All bytes are the target's: whatever they are, they are
//! cut off, and nothing here may take them for more than they say.

mod amqp;
mod dns;
mod head;
mod http;
mod kafka;
mod memcached;
mod mongodb;
mod mqtt;
mod mysql;
mod postgres;
mod redis;

pub use dns::addresses;
pub use head::{Head, Operation, Protocol};
pub use http::operation;

/// Every protocol, in the order in which they are looked for.
pub static PROTOCOLS: &[&Protocol] = &[
    &http::PROTOCOL,
    &redis::PROTOCOL,
    &dns::PROTOCOL,
    &amqp::PROTOCOL,
    &memcached::PROTOCOL,
    &postgres::PROTOCOL,
    &mongodb::PROTOCOL,
    &mysql::PROTOCOL,
    &kafka::PROTOCOL,
    &mqtt::PROTOCOL,
];

/// Reads an exchange by the protocol that is `known` to be spoken on its connections, or else finds it.
pub fn read(head: &Head<'_>, known: Option<&'static Protocol>) -> Option<(&'static Protocol, Operation)> {
    let known_first = known.into_iter().chain(PROTOCOLS.iter().copied().filter(|it| it.may_be_at(head.port)));
    known_first.into_iter().find_map(|protocol| Some((protocol, (protocol.read)(head)?)))
}

/// The protocol that is mostly spoken at a port.
pub fn at_port(port: u16) -> Option<&'static str> {
    PROTOCOLS.iter().find(|protocol| protocol.ports.contains(&port)).map(|protocol| protocol.name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A request, its answer, the port, and what is found there: protocol and operation.
    type Exchange = (&'static [u8], &'static [u8], u16, &'static str, &'static str);

    const EXCHANGES: &[Exchange] = &[
        (b"GET /users/17 HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200 OK\r\n", 80, "HTTP", "GET /users/:id"),
        (b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n", b"$1\r\nv\r\n", 6379, "redis", "GET"),
        (b"Q\0\0\0\x0dSELECT 1\0", b"T\0\0\0\x21", 5432, "PostgreSQL", "SELECT"),
        (b"\x09\0\0\0\x03SELECT 1", b"\x01\0\0\x01\x01", 3306, "MySQL", "SELECT"),
        (b"get key\r\n", b"VALUE key 0 1\r\n", 11211, "memcached", "get"),
    ];

    #[test]
    fn each_is_what_it_is() {
        for (request, answer, port, protocol, operation) in EXCHANGES {
            let head = Head { request, answer, request_bytes: request.len() as u64, port: *port };
            let (found, read) = read(&head, None).unwrap();
            assert_eq!((found.name, &*read.name, read.error), (*protocol, *operation, None));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(
            request in prop::collection::vec(any::<u8>(), 0..130),
            answer in prop::collection::vec(any::<u8>(), 0..70),
            request_bytes: u64,
            port in prop::sample::select(vec![0u16, 53, 80, 1883, 3306, 5432, 5672, 9092, 11211, 27017]),
        ) {
            let head = Head { request: &request, answer: &answer, request_bytes, port };
            for protocol in PROTOCOLS {
                (protocol.read)(&head);
            }
            read(&head, None);
        }

        /// What is cut off is not known or the same thing, never another one.
        #[test]
        fn what_is_cut_off_is_no_other_protocol(which in 0..EXCHANGES.len(), cut in 0usize..40) {
            let (request, answer, port, protocol, _) = EXCHANGES[which];
            let short = &request[..cut.min(request.len())];
            let head = Head { request: short, answer, request_bytes: request.len() as u64, port };
            if let Some((found, _)) = read(&head, None) {
                prop_assert_eq!(found.name, protocol);
            }
        }
    }
}
