//! Requests and their answers on sockets: what is kept of each connection and each peer. A [`Connection`] is also the
//! record of an exchange that has ended.

use crate::{histogram::Histogram, sched::Times};

/// Most connections followed at once: 456 bytes each, taken as they come.
pub const MAX_CONNECTIONS: usize = 32_768;
/// Most peers, a process each: 9.7 kB each.
pub const MAX_PEERS: usize = 512;
/// As many are enough for one process.
pub const MAX_PEERS_OF_ONE: u32 = 128;
/// Most ports that are listened at.
pub const MAX_LISTENERS: usize = 16_384;
/// Most kinds of failures.
pub const MAX_FAILURES: usize = 4096;
/// First bytes of a request that are looked at: enough for a route.
pub const REQUEST_HEAD: usize = 128;
/// First bytes of an answer that are looked at: enough for a status.
pub const ANSWER_HEAD: usize = 64;
/// What comes before so many bytes are there is put together.
pub const SHORT_HEAD: usize = 16;

/// Who asks on a connection.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Not known, or nobody: a pair of sockets, a datagram.
    None = 0,
    /// The process: it connected.
    Asks = 1,
    /// The other side: the connection was accepted.
    Answers = 2,
}

/// How far an exchange is.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// None has begun since the last one ended.
    Idle = 0,
    /// The request comes, or has come; no answer yet.
    Asked = 1,
    /// The answer comes.
    Answered = 2,
}

/// What is known of a connection: bits of [`Connection::flags`].
pub mod flags {
    /// A TCP socket.
    pub const TCP: u32 = 1;
    /// It is not connected yet.
    pub const CONNECTING: u32 = 2;
    /// Its requests are HTTP/1.
    pub const HTTP: u32 = 4;
    /// It begins as HTTP/2 does: requests and answers overlap, and none has times of its own.
    pub const MULTIPLEXED: u32 = 8;
    /// It is encrypted.
    pub const TLS: u32 = 16;
    /// Another thread answered than had read the request: the times of neither are its.
    pub const OTHER_THREAD: u32 = 32;
    /// The times of the thread are known.
    pub const TIMES: u32 = 64;
    /// It was made, or accepted, while it was watched.
    pub const OPENED: u32 = 128;
    /// The request began while another one to the same peer was awaited.
    pub const OVERLAPS: u32 = 256;
    /// The TLS library told of the exchange: its first bytes are plain text.
    pub const INSIDE: u32 = 512;
    /// It begins as HTTP/2 does, so that its frames can be told.
    pub const FRAMES: u32 = 1024;
    /// What is about one exchange, not about the connection.
    pub const OF_EXCHANGE: u32 = OTHER_THREAD | TIMES | OVERLAPS | INSIDE;
}

/// Where a system call has the bytes that it moves: value of the map `SOCKET_BUFFERS`, by number.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// Nowhere that is known.
    None = 0,
    /// Its second argument is the address.
    Plain = 1,
    /// Its second argument is an array of `struct iovec`.
    Vector = 2,
    /// Its second argument is a `struct msghdr`, or an array of `struct mmsghdr`, which begins with one.
    Message = 3,
}

/// All connections that are one to who reads of them: those to one address, or those of all clients of one port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerKey {
    /// Process id, in the profiler's PID namespace.
    pub pid: u32,
    /// [`Role`].
    pub role: u32,
    /// AF_INET, AF_INET6 or AF_UNIX.
    pub family: u16,
    /// The port of the side that answers.
    pub port: u16,
    /// SOCK_STREAM or SOCK_DGRAM.
    pub socket_type: u32,
    /// The address that is asked, 4 bytes or 16; zero where the process answers. Of a Unix socket the hash of its address
    /// (64 bits: two addresses are taken for one with a chance of 2^-64).
    pub address: [u8; 16],
}

/// Value of the map `CONNECTIONS`, whose key is the address of the `struct sock`; and the record of an exchange.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// [`RecordKind::Exchange`](crate::record::RecordKind).
    pub kind: u32,
    /// Exchanges of the peer that this record stands for: it and those before it that were not sent. Zero if it is none: an attempt
    /// to connect that failed ([`flags::CONNECTING`]), or a question of the process that had no answer when its connection ended.
    pub weight: u32,
    /// The socket.
    pub sock: u64,
    /// Whose connection, and with whom.
    pub peer: PeerKey,
    /// Position in `PEER_STATS`.
    pub at: u32,
    /// [`Phase`].
    pub phase: u32,
    /// See [`flags`].
    pub flags: u32,
    /// Thread that the request began in, in the profiler's PID namespace.
    pub tid: u32,
    /// Number of the socket's inode where nothing tells of its end; else zero.
    pub identity: u64,
    /// The TLS library's object whose plain text it carries, see [`tls`](crate::tls); zero for none.
    pub inside: u64,
    /// When it was made, or first seen: CLOCK_MONOTONIC, ns.
    pub opened_ns: u64,
    /// Exchanges on it that have ended; of HTTP/2 calls that moved something.
    pub exchanges: u64,
    /// When the request's first byte arrived at the socket, or zero where that is not known. Of who asks: its answer's.
    pub arrived_ns: u64,
    /// When the request's first byte was read, or sent.
    pub began_ns: u64,
    /// When its last byte was.
    pub asked_ns: u64,
    /// When the answer's first byte was sent, or read.
    pub answered_ns: u64,
    /// When its last byte was.
    pub ended_ns: u64,
    /// Bytes of the request.
    pub request_bytes: u64,
    /// Bytes of the answer.
    pub answer_bytes: u64,
    /// What the thread did from `began_ns` to `answered_ns`, if it is one and [`flags::TIMES`] is set. Before that: what it
    /// had done until `began_ns`.
    pub times: Times,
    /// How much of `request` is in use.
    pub request_len: u32,
    /// How much of `answer` is in use.
    pub answer_len: u32,
    /// The request's first bytes.
    pub request: [u8; REQUEST_HEAD],
    /// The answer's first bytes.
    pub answer: [u8; ANSWER_HEAD],
}

/// First bytes of a name server's message that are looked at: all of it, mostly (RFC 1035, 4.2.1).
pub const NAMES: usize = 512;

/// The record of a message that came from a name server.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    /// [`RecordKind::Names`](crate::record::RecordKind).
    pub kind: u32,
    /// Process that asked, in the profiler's PID namespace.
    pub pid: u32,
    /// When it was read: CLOCK_MONOTONIC, ns.
    pub time_ns: u64,
    /// How much of `bytes` is in use.
    pub len: u32,
    /// Not used.
    pub _padding: u32,
    /// The message.
    pub bytes: [u8; NAMES],
}

/// First bytes that a call moves on a connection of HTTP/2 that are looked at: some frames. Of a call with several buffers so many of
/// them, and as much of each: who writes frames mostly has what they carry in buffers of its own.
pub const FRAMES: usize = 1024;
/// See [`FRAMES`].
pub const BUFFERS: usize = 8;
/// See [`FRAMES`].
pub const OF_BUFFER: usize = FRAMES / BUFFERS;

/// The record of a call that moved bytes on a connection of HTTP/2.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frames {
    /// [`RecordKind::Frames`](crate::record::RecordKind).
    pub kind: u32,
    /// How much of `bytes` is in use; where there are several buffers zero.
    pub len: u32,
    /// The socket.
    pub sock: u64,
    /// Whose connection, and with whom.
    pub peer: PeerKey,
    /// When: CLOCK_MONOTONIC, ns.
    pub time_ns: u64,
    /// Number of the call on this connection, so that it is known when one was not told.
    pub number: u64,
    /// Bytes that it moved.
    pub moved: u64,
    /// Whether it wrote them.
    pub wrote: u32,
    /// How many buffers are looked at; zero for one that is not in an array.
    pub buffers: u32,
    /// How long each of them is.
    pub lens: [u32; BUFFERS],
    /// The first bytes: of one buffer, or [`OF_BUFFER`] of each.
    pub bytes: [u8; FRAMES],
}

/// Classes of answers that are told apart: by the first digit of HTTP/1 statuses; at zero what is none.
pub const STATUSES: usize = 6;

/// Value of the map `PEER_STATS`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PeerStats {
    /// Whose. Zero in an entry that is free.
    pub key: PeerKey,
    /// From the first byte of the request to the first byte of the answer.
    pub first: Histogram,
    /// From the first byte of the request to the last byte of the answer.
    pub whole: Histogram,
    /// From when the first byte was at the socket to when the process read it: of requests, or of answers that it asked for.
    pub queued: Histogram,
    /// From connecting to being connected.
    pub connect: Histogram,
    /// Read, bytes.
    pub read_bytes: u64,
    /// Written, bytes.
    pub written_bytes: u64,
    /// Connections made while it was watched.
    pub opened: u64,
    /// Connections that have ended.
    pub closed: u64,
    /// Requests whose connection ended before an answer.
    pub unanswered: u64,
    /// Answers by class, see [`STATUSES`].
    pub statuses: [u64; STATUSES],
    /// Connections that are multiplexed.
    pub multiplexed: u64,
    /// Requests that began while another one was awaited.
    pub overlapped: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Since when at least one answer has been awaited: CLOCK_MONOTONIC, ns.
    pub awaited_since_ns: u64,
    /// How long at least one answer was awaited, up to then, ns.
    pub awaited_ns: u64,
    /// Answers awaited now.
    pub awaited: u32,
    /// Most at once.
    pub most_awaited: u32,
    /// Exchanges that ended since the last one that was sent as a record.
    pub unsent: u32,
    /// Not used.
    pub _reserved: u32,
}

impl PeerStats {
    /// Nothing yet.
    pub const EMPTY: PeerStats = PeerStats {
        key: PeerKey { pid: 0, role: 0, family: 0, port: 0, socket_type: 0, address: [0; 16] },
        first: Histogram::EMPTY,
        whole: Histogram::EMPTY,
        queued: Histogram::EMPTY,
        connect: Histogram::EMPTY,
        read_bytes: 0,
        written_bytes: 0,
        opened: 0,
        closed: 0,
        unanswered: 0,
        statuses: [0; STATUSES],
        multiplexed: 0,
        overlapped: 0,
        retransmits: 0,
        awaited_since_ns: 0,
        awaited_ns: 0,
        awaited: 0,
        most_awaited: 0,
        unsent: 0,
        _reserved: 0,
    };
}

/// Key of the map `PEER_FAILURES`: connections that failed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FailureKey {
    /// Whose, and with whom.
    pub peer: PeerKey,
    /// Error number; zero where the process gave up.
    pub errno: u32,
    /// Whether it was not connected yet.
    pub connecting: u32,
}

/// Key of the map `LISTENERS`: a port that is listened at. The value is how many sockets do.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerKey {
    /// Inode number of the network namespace.
    pub namespace: u32,
    /// The port.
    pub port: u32,
}

/// A Unix socket's address by its hash: value of the map `UNIX_NAMES`, whose key is the first half of
/// [`PeerKey::address`]. As in `struct sockaddr_un`, without the family.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnixName {
    /// How much is in use.
    pub len: u32,
    /// It, with room for any length that the kernel programs could be wrong about.
    pub bytes: [u8; UNIX_NAME],
}

/// Longest address of a Unix socket, bytes (UNIX_PATH_MAX), rounded up.
pub const UNIX_NAME: usize = 128;

/// What the first bytes of a request or an answer say, as far as the kernel programs need to know: in the byte order of the
/// network, what is missing is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstBytes(pub u64);

impl FirstBytes {
    const fn four(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Whether a request begins as one of HTTP/1 does.
    #[inline(always)]
    pub fn is_http(self) -> bool {
        const fn word(bytes: [u8; 4]) -> u32 {
            u32::from_be_bytes(bytes)
        }
        let four = self.four();
        four == word(*b"GET ")
            || four == word(*b"POST")
            || four == word(*b"PUT ")
            || four == word(*b"HEAD")
            || four == word(*b"DELE")
            || four == word(*b"PATC")
            || four == word(*b"OPTI")
            || four == word(*b"CONN")
            || four == word(*b"TRAC")
    }

    /// Whether a connection begins as one of HTTP/2 does: RFC 9113, 3.4.
    #[inline(always)]
    pub fn is_http2(self) -> bool {
        self.0 == u64::from_be_bytes(*b"PRI * HT")
    }

    /// Whether they are those of a frame with which the side that asks goes on in HTTP/2: the header of a request, settings or a ping
    /// (RFC 9113, 4.1 and 6). Of a frame's nine bytes eight are known. What begins otherwise, as data does, is like the requests
    /// of other protocols.
    #[inline(always)]
    pub fn is_http2_frame(self) -> bool {
        let (len, kind, flags) = ((self.0 >> 40) as u32, (self.0 >> 32) as u8, (self.0 >> 24) as u8);
        let of_connection = self.0 & 0xff_ffff == 0;
        match kind {
            // With all of its headers, and in one of the first 16 million streams.
            1 => {
                0 < len && len <= 1 << 14 && flags & 4 != 0 && flags & !0x2d == 0 && (self.0 >> 16) as u8 == 0
            }
            4 => len <= 60 && len % 6 == 0 && flags <= 1 && of_connection,
            6 => len == 8 && flags <= 1 && of_connection,
            _ => false,
        }
    }

    /// Whether it is a record of TLS, and then whether that belongs to the handshake: RFC 8446, 5.1.
    #[inline(always)]
    pub fn tls(self) -> Option<bool> {
        let (kind, major) = ((self.0 >> 56) as u8, (self.0 >> 48) as u8);
        let known = (20..=23).contains(&kind) && major == 3;
        if known { Some(kind != 23) } else { None }
    }

    /// How long the record of TLS is that begins here, without its header: RFC 8446, 5.1.
    #[inline(always)]
    pub fn tls_length(self) -> u32 {
        (self.0 >> 24) as u32 & 0xffff
    }

    /// Whether an answer is one of HTTP/1.
    #[inline(always)]
    pub fn is_http_answer(self) -> bool {
        self.0 >> 8 == u64::from_be_bytes(*b"\0HTTP/1.")
    }
}

/// The class of an answer of which the first `len` bytes are known: the first digit of its status if it is HTTP/1. What is
/// none of [`STATUSES`] belongs to zero.
#[inline(always)]
pub fn class_of(is_http: bool, answer: &[u8; ANSWER_HEAD], len: u32) -> u8 {
    if is_http && len > STATUS_AT as u32 { answer[STATUS_AT].wrapping_sub(b'0') } else { 0 }
}

/// Where an HTTP/1 answer has the first digit of its status: `HTTP/1.1 200`.
pub const STATUS_AT: usize = 9;

const _: () = {
    assert!(size_of::<PeerKey>() == 32);
    assert!(size_of::<Connection>() == 264 + REQUEST_HEAD + ANSWER_HEAD);
    assert!(size_of::<FailureKey>() == 40);
};

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C) integers without padding, every bit pattern is valid.
    unsafe impl aya::Pod for super::PeerKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Connection {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Names {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Frames {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::PeerStats {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::FailureKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ListenerKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::UnixName {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(bytes: &[u8]) -> FirstBytes {
        let mut eight = [0; 8];
        let len = bytes.len().min(8);
        eight[..len].copy_from_slice(&bytes[..len]);
        FirstBytes(u64::from_be_bytes(eight))
    }

    #[test]
    fn first_bytes_tell_what_is_spoken() {
        assert!(first(b"GET / HTTP/1.1").is_http() && first(b"DELETE /x").is_http());
        assert!(!first(b"*1\r\n$4\r\nPING").is_http() && !first(b"GE").is_http());
        assert!(first(b"PRI * HTTP/2.0\r\n").is_http2() && !first(b"PRI").is_http2());
        let frames = [&[0, 0, 30, 1, 5, 0, 0, 1][..], &[0, 0, 8, 6, 0, 0, 0, 0], &[0, 0, 0, 4, 1, 0, 0, 0]];
        assert!(frames.into_iter().all(|bytes| first(bytes).is_http2_frame()));
        let others: [&[u8]; 9] = [
            &[0, 0, 1, 1, 0, 3, 0, 9],          // Kafka: a length, then the kind of request
            &[0, 0, 8, 6, 0, 0, 0, 9],          // the same, of another length
            &[0, 0, 4, 8, 0, 0, 0, 0],          // and as long as a change of the window
            &[0, 29, 7, 1, 1, 0, 0, 1],         // DNS over TCP
            &[0, 1, 0, 0, 3, b's', b'e', b'l'], // MySQL, 256 bytes
            &[1, 0, 1, 0, 0, 0, 13, 0],         // AMQP: a frame of a method
            &[0, 0, 0, 8, 4, 210, 22, 47],      // PostgreSQL asks for TLS
            &[0, 1, 0, 0, 7, 0, 0, 0],          // MongoDB
            &[0, 0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(others.map(|bytes| first(bytes).is_http2_frame()), [false; 9]);
        assert_eq!(first(&[22, 3, 1, 0, 5]).tls(), Some(true));
        assert_eq!(first(&[23, 3, 3, 0, 5]).tls(), Some(false));
        assert_eq!((first(&[23]).tls(), first(b"GET ").tls()), (None, None));
        assert_eq!(first(&[23, 3, 3, 1, 5, 9, 9, 9]).tls_length(), 0x105);
        assert!(first(b"HTTP/1.1 200 OK").is_http_answer() && !first(b"HTTP/2 200").is_http_answer());
    }

    #[test]
    fn answers_have_classes() {
        let mut answer = [0; ANSWER_HEAD];
        answer[..12].copy_from_slice(b"HTTP/1.1 503");
        assert_eq!(
            (class_of(true, &answer, 12), class_of(true, &answer, 9), class_of(false, &answer, 12)),
            (5, 0, 0)
        );
    }
}
