//! System calls: what is counted of each in the kernel, and the records of those that took long.

use crate::{
    histogram::Histogram,
    sched::{Cause, MAX_THREADS, SyscallClass},
};

/// First word of a [`SlowCall`].
pub const KIND_SLOW_CALL: u32 = 9;
/// First word of an [`IoRecord`].
pub const KIND_IO: u32 = 10;

/// Set in the number of a 32-bit call, which is one of a table of its own.
pub const COMPAT: u32 = 1 << 30;

/// Most pairs of process (or thread) and system call counted in the kernel at once: about 2.4 kB each.
pub const MAX_CALLS: usize = 8192;
/// As many are enough for one process whose threads are not kept apart.
pub const MAX_CALLS_OF_ONE: u32 = 512;
/// Threads with a place of their own in the map `CALLERS`: a power of two, and twice as many as there may be, so that
/// each finds one near its first choice.
pub const MAX_CALLERS: usize = 2 * MAX_THREADS;
/// Places in the map `CALLERS` that a thread may have.
pub const CALLER_PROBES: u32 = 16;
/// Most descriptors followed at once: 304 bytes each.
pub const MAX_IO: usize = 16_384;
/// A name that is this long is not continued, bytes.
pub const NAME_LEN: usize = 512;
/// Longest part of a path between two slashes, bytes, with its NUL.
pub const PART_LEN: usize = 256;
/// Most parts of a path, mount points on the way among them.
pub const NAME_PARTS: u32 = 32;

/// Time in calls after which a thread's stack is taken, and given all of that time, ns.
pub const STACK_PERIOD_NS: u64 = 4_000_000;
/// Calls that take this long count as waits even if they never left the CPU, ns.
pub const WAIT_NS: u64 = 10_000;
/// Only one of so many runs is measured for the probe's cost: two more clock reads would be a tenth of it.
pub const COST_SAMPLE: u64 = 64;

/// What the arguments of a system call are: half of a value of the map `CALL_KINDS`, by number.
pub mod traits {
    /// Reads from its descriptor.
    pub const READ: u16 = 1;
    /// Writes to its descriptor.
    pub const WRITE: u16 = 2;
    /// Waits for data to be stored.
    pub const SYNC: u16 = 4;
    /// Ends its descriptor.
    pub const CLOSE: u16 = 8;
    /// Connects its descriptor.
    pub const CONNECT: u16 = 16;
    /// Its first argument is a path.
    pub const PATH0: u16 = 32;
    /// Its second argument is a path.
    pub const PATH1: u16 = 64;
    /// Its first argument is an array of `struct pollfd`, its second their number.
    pub const POLL: u16 = 128;
    /// Its second argument is a descriptor that it makes another name of what its first one is.
    pub const DUP: u16 = 256;
    /// Ends descriptors from its first argument to its second.
    pub const CLOSE_RANGE: u16 = 512;
    /// May ask how an attempt to connect has ended.
    pub const OPTION: u16 = 1024;
}

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

/// What a call waited for, as finely as users ask for it.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WaitKind {
    /// Reading a file.
    FileRead = 0,
    /// Writing a file.
    FileWrite = 1,
    /// Waiting until a file is stored.
    FileSync = 2,
    /// Opening, naming, removing files.
    FileOther = 3,
    /// Receiving from an internet socket.
    NetRead = 4,
    /// Sending to one.
    NetWrite = 5,
    /// Asking a name server.
    Dns = 6,
    /// Connecting a socket.
    Connect = 7,
    /// Waiting for a connection.
    Accept = 8,
    /// Unix sockets.
    Unix = 9,
    /// Pipes, terminals, message queues, event descriptors.
    Pipe = 10,
    /// A lock.
    Lock = 11,
    /// Any other futex.
    Park = 12,
    /// Sleep and timers.
    Timer = 13,
    /// The end of a child.
    Child = 14,
    /// Any of many descriptors.
    Poll = 15,
    /// Anything else.
    Other = 16,
}

impl WaitKind {
    /// Number of kinds.
    pub const COUNT: usize = 17;

    /// The kind of a call by its class, its traits, what its descriptor is if it has one, and else the cause it would
    /// block for.
    #[inline(always)]
    pub fn of(class: u8, traits: u16, on: &Endpoint, cause: Cause) -> WaitKind {
        if on.peer_port == DNS_PORT {
            return WaitKind::Dns;
        }
        if traits & traits::CONNECT != 0 {
            return WaitKind::Connect;
        }
        if class == SyscallClass::Accept as u8 {
            return WaitKind::Accept;
        }
        if on.kind == ObjectKind::Unix as u32 {
            return WaitKind::Unix;
        }
        match cause {
            Cause::Disk if traits & traits::SYNC != 0 => WaitKind::FileSync,
            Cause::Disk if traits & traits::READ != 0 => WaitKind::FileRead,
            Cause::Disk if traits & traits::WRITE != 0 => WaitKind::FileWrite,
            Cause::Disk => WaitKind::FileOther,
            Cause::Network if traits & traits::WRITE != 0 => WaitKind::NetWrite,
            Cause::Network => WaitKind::NetRead,
            Cause::Pipe => WaitKind::Pipe,
            Cause::Lock => WaitKind::Lock,
            Cause::Park => WaitKind::Park,
            Cause::Sleep => WaitKind::Timer,
            Cause::Child => WaitKind::Child,
            Cause::Poll => WaitKind::Poll,
            Cause::Unknown | Cause::PageFault | Cause::Other => WaitKind::Other,
        }
    }

    /// Whether a thread that waits so has nothing to do.
    #[inline(always)]
    pub fn is_idle(self) -> bool {
        matches!(self, WaitKind::Park | WaitKind::Timer | WaitKind::Child | WaitKind::Poll | WaitKind::Accept)
    }
}

/// Key of the map `CALL_INDEX`, whose values are positions in `CALL_STATS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallKey {
    /// Process id, in the profiler's PID namespace.
    pub pid: u32,
    /// Thread id, in the profiler's PID namespace; zero where threads are not kept apart.
    pub tid: u32,
    /// Number, perhaps with [`COMPAT`].
    pub number: u32,
}

/// Value of the map `CALL_STATS`. How many calls there were is the sum of the histogram's buckets.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CallStats {
    /// Whose, and which calls. Zero in an entry that is free.
    pub key: CallKey,
    /// Not used.
    pub _reserved: u32,
    /// Calls that have returned by their length. Its buckets wrap around.
    pub lengths: Histogram,
    /// Of their time, blocked, ns.
    pub blocked_ns: u64,
    /// Of their time, waiting for a CPU, ns.
    pub run_queue_ns: u64,
    /// Calls that failed.
    pub errors: u64,
    /// Calls whose thread ended in them.
    pub unfinished: u64,
}

/// Key of the map `CALL_ERRORS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ErrorKey {
    /// Which calls.
    pub call: CallKey,
    /// Error number, positive.
    pub errno: u32,
}

/// Entries of `CALL_STATS` that each thread remembers, by the last digits of the call's number.
pub const KNOWN_CALLS: usize = 16;
/// Entries of `CALL_IO` that each thread remembers, by the last digits of the descriptor.
pub const KNOWN_IO: usize = 16;

/// A thread and its call in progress: value of the map `IN_CALL`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InCall {
    /// When the call began: CLOCK_MONOTONIC, ns; zero outside of calls.
    pub start_ns: u64,
    /// Time blocked in it, ns.
    pub blocked_ns: u64,
    /// Time waiting for a CPU in it, ns.
    pub run_queue_ns: u64,
    /// Stack it last blocked with, an id; zero for none.
    pub stack: u64,
    /// Time in calls since the last stack was taken for it, ns.
    pub owed_ns: u64,
    /// Length of the last call if a signal has interrupted it, ns; else zero. It counts when the thread makes another:
    /// if the signal ends the thread, the call has never returned.
    pub interrupted_ns: u64,
    /// Its result.
    pub interrupted_result: i64,
    /// How often the thread had got a CPU when this was last looked at: whether it has left one since.
    pub arrivals: u64,
    /// Process id, in the profiler's PID namespace.
    pub pid: u32,
    /// Thread id, in the profiler's PID namespace.
    pub tid: u32,
    /// Thread id, in the initial PID namespace.
    pub host_tid: u32,
    /// System call.
    pub number: u32,
    /// Calls so far, for the cost to be measured now and then.
    pub calls: u32,
    /// State of a random number generator, which chooses the calls whose stacks are taken.
    pub random: u32,
    /// Entries of `CALL_STATS` that it has used. What they are they say themselves.
    pub known_calls: [u32; KNOWN_CALLS],
    /// Entries of `CALL_IO` that it has used.
    pub known_io: [u32; KNOWN_IO],
    /// A call that has returned, for the programs that go on where the first one ends.
    pub done: Done,
    /// What it was made on.
    pub on: Endpoint,
}

/// A call that has returned.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// When it began: CLOCK_MONOTONIC, ns.
    pub began: u64,
    /// When it returned.
    pub now: u64,
    /// What it returned.
    pub result: i64,
    /// Its first argument.
    pub object: u64,
    /// A [`SyscallClass`].
    pub class: u32,
    /// See [`traits`].
    pub traits: u32,
    /// Whether it has blocked, or taken as long as if.
    pub waited: u32,
    /// Whether its stack is to be taken, to be given the thread's time in calls.
    pub stack_due: u32,
    /// Whether it is to be told by itself.
    pub slow: u32,
    /// Whether its stack is to be taken, as one of the writes that are looked at.
    pub looked_at: u32,
}

impl Done {
    /// How long the call took, ns.
    #[inline(always)]
    pub fn duration_ns(&self) -> u64 {
        self.now.saturating_sub(self.began)
    }
}

/// Key of the map `CALL_TIME`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallTimeKey {
    /// Stack id, zero where none was taken.
    pub stack: u64,
    /// Process id, in the profiler's PID namespace.
    pub pid: u32,
    /// Thread id, in the profiler's PID namespace.
    pub tid: u32,
    /// System call.
    pub number: u32,
    /// Not used.
    pub _reserved: u32,
}

/// Key of the map `LISTENING`: a port that a process has accepted connections at.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenKey {
    /// Process id, in the profiler's PID namespace.
    pub pid: u32,
    /// Its port.
    pub port: u32,
}

/// Key of the map `CALL_WAITS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WaitsKey {
    /// Process id, in the profiler's PID namespace.
    pub pid: u32,
    /// [`WaitKind`].
    pub kind: u32,
    /// Of an internet socket: the port that is the service's; else zero.
    pub port: u16,
    /// AF_INET or AF_INET6.
    pub family: u16,
    /// Whether that is the process's own: then the address is left out, and all clients are one.
    pub serves: u32,
    /// The peer's address, see [`Endpoint`].
    pub peer: [u8; 16],
}

impl WaitsKey {
    /// The key of waits for `on`, whose local port the process is known to accept connections at if it `listens`.
    #[inline(always)]
    pub fn new(pid: u32, kind: WaitKind, on: &Endpoint, listens: bool) -> WaitsKey {
        /// The kernel gives these to who asks for none (`ip_local_port_range`, default).
        const EPHEMERAL: u16 = 32_768;
        let mut key = WaitsKey { pid, kind: kind as u32, ..WaitsKey::default() };
        if on.kind == ObjectKind::Net as u32 {
            // A socket whose attempt to connect has failed has no port any more.
            let well_known = on.local_port != 0 && on.local_port < EPHEMERAL && on.local_port < on.peer_port;
            let connects = matches!(kind, WaitKind::Connect);
            let serves = !connects && (listens || on.peer_port == 0 || well_known);
            key.family = on.family;
            key.serves = serves as u32;
            if serves {
                key.port = on.local_port;
            } else {
                key.port = on.peer_port;
                key.peer = on.peer;
            }
        }
        key
    }
}

/// Value of the map `CALL_WAITS`: calls of one kind that blocked, or took longer than [`WAIT_NS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct WaitsStats {
    /// By their length.
    pub lengths: Histogram,
    /// Where most of the time is waited, as a majority vote finds it.
    pub most: Majority,
}

/// A majority vote of stacks, weighted (Boyer and Moore): the one that has more than half of the weight wins.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Majority {
    /// Stack id, zero for none.
    pub stack: u64,
    /// By how much it leads.
    pub lead: u64,
}

impl Majority {
    /// Takes in a vote.
    #[inline(always)]
    pub fn vote(&mut self, stack: u64, weight: u64) {
        if self.stack == stack {
            self.lead += weight;
        } else if weight > self.lead {
            *self = Majority { stack, lead: weight - self.lead };
        } else {
            self.lead -= weight;
        }
    }
}

/// Key of the map `IO_INDEX`, whose values are positions in `CALL_IO`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IoKey {
    /// Process id, in the profiler's PID namespace.
    pub pid: u32,
    /// Descriptor.
    pub descriptor: u32,
}

/// Sizes told apart, by powers of two: no call moves 2 GiB.
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
    /// [`KIND_IO`].
    pub kind: u32,
    /// Whether it has been closed.
    pub closed: u32,
    /// What was done with it.
    pub stats: IoStats,
    /// What it is called, if it is used for the first time.
    pub name: Name,
}

/// A call that took long. Ends with its name's last byte in use.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowCall {
    /// [`KIND_SLOW_CALL`].
    pub kind: u32,
    /// System call, perhaps with [`COMPAT`].
    pub number: u32,
    /// Process id, in the profiler's PID namespace.
    pub pid: u32,
    /// Thread id, in the profiler's PID namespace.
    pub tid: u32,
    /// When it began: CLOCK_MONOTONIC, ns.
    pub start_ns: u64,
    /// When it returned.
    pub end_ns: u64,
    /// Of that, blocked, ns.
    pub blocked_ns: u64,
    /// Of that, waiting for a CPU, ns.
    pub run_queue_ns: u64,
    /// What it returned.
    pub result: i64,
    /// Stack it blocked with, or else was in at its end; an id, zero for none.
    pub stack: u64,
    /// Its arguments.
    pub args: [u64; 6],
    /// What the descriptor is that it was made on.
    pub on: Endpoint,
    /// [`WaitKind`].
    pub wait_kind: u32,
    /// Not used.
    pub _reserved: u32,
    /// The path among its arguments, or what its descriptor is called.
    pub name: Name,
}

const _: () = {
    assert!(size_of::<CallKey>() == 12);
    assert!(size_of::<ErrorKey>() == 16);
    assert!(size_of::<InCall>() == 192 + 4 * (KNOWN_CALLS + KNOWN_IO));
    assert!(size_of::<Endpoint>() == 48);
    assert!(size_of::<WaitsKey>() == 32);
    assert!(MAX_CALLERS.is_power_of_two());
    assert!(size_of::<CallTimeKey>() == 24);
    assert!(size_of::<IoStats>() == 176 + 4 * SIZES);
    assert!(size_of::<Name>() == 32 + NAME_LEN + PART_LEN);
    assert!(size_of::<IoRecord>() == 8 + size_of::<IoStats>() + size_of::<Name>());
    assert!(size_of::<SlowCall>() == 168 + size_of::<Name>());
};

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C) integers without padding, every bit pattern is valid.
    unsafe impl aya::Pod for super::CallKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::CallStats {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ErrorKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::CallTimeKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::InCall {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::WaitsKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ListenKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::WaitsStats {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::IoKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::IoStats {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_have_kinds() {
        let descriptor = SyscallClass::Descriptor as u8;
        let nothing = Endpoint::default();
        let kind = |traits, cause| WaitKind::of(descriptor, traits, &nothing, cause);
        assert_eq!(kind(traits::READ, Cause::Disk), WaitKind::FileRead);
        assert_eq!(kind(traits::WRITE, Cause::Network), WaitKind::NetWrite);
        assert_eq!(kind(traits::CONNECT, Cause::Network), WaitKind::Connect);
        assert_eq!(kind(traits::WRITE | traits::SYNC, Cause::Disk), WaitKind::FileSync);
        assert_eq!(WaitKind::of(SyscallClass::Accept as u8, 0, &nothing, Cause::Poll), WaitKind::Accept);
        let on = |kind, peer_port| Endpoint { kind: kind as u32, peer_port, ..nothing };
        let of = |on: Endpoint, cause| WaitKind::of(descriptor, traits::READ, &on, cause);
        assert_eq!(of(on(ObjectKind::Net, DNS_PORT), Cause::Network), WaitKind::Dns);
        assert_eq!(of(on(ObjectKind::Net, 5432), Cause::Network), WaitKind::NetRead);
        assert_eq!(of(on(ObjectKind::Unix, 0), Cause::Pipe), WaitKind::Unix);
        assert!(WaitKind::Other as usize + 1 == WaitKind::COUNT);
    }

    #[test]
    fn clients_are_one_and_servers_are_told_apart() {
        let net = Endpoint { kind: ObjectKind::Net as u32, peer: [9; 16], ..Endpoint::default() };
        let key = |local_port, peer_port| {
            WaitsKey::new(1, WaitKind::NetRead, &Endpoint { local_port, peer_port, ..net }, false)
        };
        assert_eq!((key(40_000, 5432).port, key(40_000, 5432).peer), (5432, [9; 16]));
        assert_eq!((key(80, 40_000).port, key(80, 40_000).peer), (80, [0; 16]));
        assert_eq!(key(80, 40_000), key(80, 40_001));
        assert_eq!(key(40_000, 40_001).port, 40_001);
        let listens = Endpoint { local_port: 40_000, peer_port: 39_999, ..net };
        assert_eq!(WaitsKey::new(1, WaitKind::NetRead, &listens, true).port, 40_000);
        assert_eq!(WaitsKey::new(1, WaitKind::Pipe, &Endpoint::default(), false).port, 0);
    }

    #[test]
    fn a_majority_wins_its_vote() {
        let mut most = Majority::default();
        for (stack, weight) in [(1, 5), (2, 9), (1, 4), (3, 1), (2, 8)] {
            most.vote(stack, weight);
        }
        assert_eq!(most.stack, 2, "17 of 27");
    }
}
