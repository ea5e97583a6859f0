//! Calls of TLS libraries (OpenSSL, BoringSSL): what is kept of them, so that the plain text that they give and take is that of
//! the right connection.

use crate::request::REQUEST_HEAD;

/// Places for threads in `TLS_THREADS`: 224 bytes each. Threads whose ids have the same low bits share one.
pub const TLS_THREADS: u32 = 8192;

/// What [`Connection::inside`](crate::request::Connection) is when the library's object has been freed: what is still sent ends
/// the connection.
pub const FREED: u64 = 1;

/// What a function of a TLS library does: the cookie of its breakpoints.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsCall {
    /// `(ssl, buffer, size)`, returns how much was read.
    Read = 1,
    /// `(ssl, buffer, size, &read)`, returns whether something was.
    ReadEx = 2,
    /// `(ssl, buffer, size, …)`
    Write = 3,
    /// `(ssl)`: moves bytes, none of them the program's.
    Handshake = 4,
    /// `(ssl)`
    Free = 5,
}

impl TlsCall {
    /// Whether its end matters, too.
    pub fn returns(self) -> bool {
        matches!(self, TlsCall::Read | TlsCall::ReadEx | TlsCall::Handshake)
    }
}

/// Key of the map `TLS_SOCKETS`: a connection of a TLS library.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsKey {
    /// Address of the library's object, `SSL *`.
    pub ssl: u64,
    /// Process id, in the profiler's PID namespace.
    pub pid: u32,
    /// Zero.
    pub _padding: u32,
}

/// Value of the map `TLS_SOCKETS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsSocket {
    /// Address of the `struct sock`.
    pub sock: u64,
    /// One if that is known by the order of calls; zero if the library itself called the socket.
    pub by_order: u64,
}

/// What a thread is doing, or did last: an entry of the map `TLS_THREADS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsThread {
    /// Whose place it is: a thread id in the initial PID namespace.
    pub tid: u32,
    /// The call in progress, a [`TlsCall`].
    pub call: u32,
    /// Its object; zero outside of calls.
    pub ssl: u64,
    /// Where it puts what it reads.
    pub buffer: u64,
    /// How much that may be.
    pub size: u64,
    /// Where it says how much it was.
    pub read_at: u64,
    /// The encrypted socket that was called inside of it; zero for none.
    pub nested: u64,
    /// The encrypted socket that was read last; zero if that was no encrypted one.
    pub last: u64,
    /// Length of the record of data that this read began with; zero for none.
    pub last_length: u64,
    /// The object that took what was read; zero for none yet.
    pub taken_by: u64,
    /// When that had come to the socket; zero where it is not known.
    pub arrived_ns: u64,
    /// An object that was written to and whose connection is not known; zero for none.
    pub pending: u64,
    /// How much was.
    pub pending_size: u64,
    /// The first bytes of that.
    pub head: [u8; REQUEST_HEAD],
}

/// What encryption adds to a record at least: a tag of 16 bytes (RFC 8446, 5.2).
const LEAST_ADDED: u64 = 16;
/// And at most, unless it is padded: initialisation vector, HMAC-SHA384 and a block of padding (RFC 5246, 6.2.3.2).
const MOST_ADDED: u64 = 96;
/// The most that a record holds.
const RECORD: u64 = 1 << 14;

/// Whether a record of this length can hold these bytes, and with `all` nothing else.
#[inline(always)]
pub fn fits(length: u64, bytes: u64, all: bool) -> bool {
    let bytes = if bytes < RECORD { bytes } else { RECORD };
    length >= bytes + LEAST_ADDED && (!all || length <= bytes + MOST_ADDED)
}

const _: () = {
    assert!(size_of::<TlsKey>() == 16 && size_of::<TlsSocket>() == 16);
    assert!(size_of::<TlsThread>() == 96 + REQUEST_HEAD);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_a_little_longer_than_what_it_holds() {
        // AES-GCM of TLS 1.3 and 1.2, CBC with SHA-384
        assert!(fits(117, 100, true) && fits(124, 100, true) && fits(100 + 80, 100, true));
        assert!(!fits(100, 100, true) && !fits(1000, 100, true), "of something else");
        assert!(fits(1000, 100, false) && fits(16_384 + 17, 50_000, true), "a part of it");
    }
}
