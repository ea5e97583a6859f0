//! Descriptors: what each is and is called, and what is read and written by it.

use crate::majority::Majority;

/// Most descriptors followed at once: 304 bytes each.
pub const MAX_IO: usize = 16_384;
/// A name that is this long is not continued, bytes.
pub const NAME_LEN: usize = 512;
/// Longest part of a path between two slashes, bytes, with its NUL.
pub const PART_LEN: usize = 256;
/// Most parts of a path, mount points on the way among them.
pub const NAME_PARTS: u32 = 32;

/// What a descriptor is.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectKind {
    /// Anything else, or not known.
    Other = 0,
    /// A file, directory or block device.
    File = 1,
    /// An internet socket.
    Net = 2,
    /// A Unix socket.
    Unix = 3,
    /// A pipe, terminal, event descriptor and the like.
    Pipe = 4,
}

/// What the kernel programs can tell of a descriptor at once.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// An [`ObjectKind`].
    pub kind: u32,
    /// Of an internet socket: AF_INET or AF_INET6.
    pub family: u16,
    /// SOCK_STREAM, SOCK_DGRAM, …
    pub socket_type: u16,
    /// In host byte order; zero for none.
    pub local_port: u16,
    /// Likewise; zero if it is not connected.
    pub peer_port: u16,
    /// Not used.
    pub _reserved: u32,
    /// As in memory: 4 bytes of an IPv4 address, or 16 of an IPv6 one.
    pub local: [u8; 16],
    /// Likewise.
    pub peer: [u8; 16],
}

/// What a descriptor, or an argument of a call, is called.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    /// Number of the inode.
    pub inode: u64,
    /// Magic number of its file system.
    pub magic: u32,
    /// A [`NameKind`].
    pub kind: u32,
    /// How much of `bytes` is in use.
    pub len: u32,
    /// Of a path: whether it leads up to the root, and is not cut off there.
    pub complete: u32,
    /// Of a path: whether it has been removed.
    pub removed: u32,
    /// Not used.
    pub _reserved: u32,
    /// See [`NameKind`]. Larger than a name can get: the verifier wants room for a part after the last place where one may
    /// begin.
    pub bytes: [u8; NAME_LEN + PART_LEN],
}

impl Name {
    /// None.
    pub const EMPTY: Name = Name {
        inode: 0,
        magic: 0,
        kind: NameKind::None as u32,
        len: 0,
        complete: 0,
        removed: 0,
        _reserved: 0,
        bytes: [0; NAME_LEN + PART_LEN],
    };
}

/// What the bytes of a [`Name`] are.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameKind {
    /// Nothing.
    None = 0,
    /// The parts of a path, the last one first, each with a NUL after it.
    Parts = 1,
    /// A path as the program gave it.
    Path = 2,
    /// The address of a Unix socket, of those in file systems perhaps with a NUL after it.
    Unix = 3,
    /// The same, of the socket at the other end, where the socket itself has none.
    UnixPeer = 4,
}

/// The port of DNS.
pub const DNS_PORT: u16 = 53;

/// Key of the map `IO_INDEX`, whose values are positions in `CALL_IO`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IoKey {
    /// Process id, in the profiler's PID namespace.
    pub pid: u32,
    /// Descriptor.
    pub descriptor: u32,
}

/// Sizes kept apart, by powers of two: no call moves 2 GiB.
pub const SIZES: usize = 32;

/// Value of the map `CALL_IO`: reads and writes of one descriptor.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoStats {
    /// Whose, and which descriptor. Zero in an entry that is free.
    pub key: IoKey,
    /// First call: CLOCK_MONOTONIC, ns. With the key it names what the descriptor then was.
    pub first_ns: u64,
    /// Last call: CLOCK_MONOTONIC, ns.
    pub last_ns: u64,
    /// Calls that moved data.
    pub calls: u64,
    /// Data moved, bytes.
    pub bytes: u64,
    /// Time in calls, ns.
    pub ns: u64,
    /// Of that, blocked, ns.
    pub blocked_ns: u64,
    /// Reads that followed a write.
    pub round_trips: u64,
    /// Time from each such write to its read, ns.
    pub round_trip_ns: u64,
    /// When the last write began, if no read has followed; else zero.
    pub written_ns: u64,
    /// Where most of it is done; one call in some is looked at.
    pub most: Majority,
    /// Votes in all.
    pub votes: u64,
    /// What it is.
    pub on: Endpoint,
    /// Thread of the last call.
    pub tid: u32,
    /// Whether the first call wrote, as one does who asks; who answers reads first.
    pub first_wrote: u32,
    /// Whether it is a socket at a port that the process is known to accept connections at.
    pub listens: u32,
    /// Not used.
    pub _reserved: u32,
    /// Tells it from what else may get its descriptor.
    pub identity: u64,
    /// Calls by the size of what they moved: the first zero or one byte, each of the others twice the one before.
    pub sizes: [u32; SIZES],
}

/// A descriptor is used for the first time (`calls` is zero), or has been closed. Ends with its name's last byte in use.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoRecord {
    /// [`RecordKind::Io`](crate::record::RecordKind::Io).
    pub kind: u32,
    /// Whether it has been closed.
    pub closed: u32,
    /// What was done with it.
    pub stats: IoStats,
    /// What it is called, if it is used for the first time.
    pub name: Name,
}

const _: () = {
    assert!(size_of::<Endpoint>() == 48);
    assert!(size_of::<IoStats>() == 176 + 4 * SIZES);
    assert!(size_of::<Name>() == 32 + NAME_LEN + PART_LEN);
    assert!(size_of::<IoRecord>() == 8 + size_of::<IoStats>() + size_of::<Name>());
};

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C) integers without padding, every bit pattern is valid.
    unsafe impl aya::Pod for super::IoKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::IoStats {}
}
