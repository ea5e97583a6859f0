//! System calls: what is counted of each in the kernel, and the records of those that took long.

pub use crate::{
    descriptor::{
        DNS_PORT, Endpoint, IoKey, IoRecord, IoStats, MAX_IO, NAME_LEN, NAME_PARTS, Name, NameKind,
        ObjectKind, PART_LEN, SIZES,
    },
    majority::Majority,
};
use crate::{
    histogram::Histogram,
    sched::{MAX_THREADS, SyscallClass, WaitCause},
    table::table,
};

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

table! {
    /// What a call waited for, as finely as users ask for it. Idle are the waits of a thread that has nothing to do.
    pub enum WaitKind(is_idle: bool) {
        /// Reading a file.
        FileRead = 0, "file_read", "file read", false;
        /// Writing a file.
        FileWrite = 1, "file_write", "file write", false;
        /// Waiting until a file is stored.
        FileSync = 2, "file_sync", "file sync", false;
        /// Opening, naming, removing files.
        FileOther = 3, "file_other", "file open, stat, …", false;
        /// Receiving from an internet socket.
        NetRead = 4, "net_read", "network receive", false;
        /// Sending to one.
        NetWrite = 5, "net_write", "network send", false;
        /// Asking a name server.
        Dns = 6, "dns", "DNS", false;
        /// Connecting a socket.
        Connect = 7, "connect", "connect", false;
        /// Waiting for a connection.
        Accept = 8, "accept", "accept", true;
        /// Unix sockets.
        Unix = 9, "unix", "Unix socket", false;
        /// Pipes, terminals, message queues, event descriptors.
        Pipe = 10, "pipe", "pipe", false;
        /// A lock.
        Lock = 11, "lock", "lock", false;
        /// Any other futex.
        Park = 12, "park", "parked (futex)", true;
        /// Sleep and timers.
        Timer = 13, "timer", "sleep, timer", true;
        /// The end of a child.
        Child = 14, "child", "child", true;
        /// Any of many descriptors.
        Poll = 15, "poll", "poll, epoll", true;
        /// Anything else.
        Other = 16, "other", "other", false;
    }
}

impl WaitKind {
    /// The kind of a call by its class, its traits, what its descriptor is if it has one, and else the cause it would
    /// block for.
    #[inline(always)]
    pub fn of(class: u8, traits: u16, on: &Endpoint, cause: WaitCause) -> WaitKind {
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
            WaitCause::Disk if traits & traits::SYNC != 0 => WaitKind::FileSync,
            WaitCause::Disk if traits & traits::READ != 0 => WaitKind::FileRead,
            WaitCause::Disk if traits & traits::WRITE != 0 => WaitKind::FileWrite,
            WaitCause::Disk => WaitKind::FileOther,
            WaitCause::Network if traits & traits::WRITE != 0 => WaitKind::NetWrite,
            WaitCause::Network => WaitKind::NetRead,
            WaitCause::Pipe => WaitKind::Pipe,
            WaitCause::Lock => WaitKind::Lock,
            WaitCause::Park => WaitKind::Park,
            WaitCause::Sleep => WaitKind::Timer,
            WaitCause::Child => WaitKind::Child,
            WaitCause::Poll => WaitKind::Poll,
            WaitCause::Unknown | WaitCause::PageFault | WaitCause::Other => WaitKind::Other,
        }
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
    /// Whether it is reported by itself.
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

/// A call that took long. Ends with its name's last byte in use.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowCall {
    /// [`RecordKind::SlowCall`](crate::record::RecordKind::SlowCall).
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
    assert!(size_of::<WaitsKey>() == 32);
    assert!(MAX_CALLERS.is_power_of_two());
    assert!(size_of::<CallTimeKey>() == 24);
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_have_kinds() {
        let descriptor = SyscallClass::Descriptor as u8;
        let nothing = Endpoint::default();
        let kind = |traits, cause| WaitKind::of(descriptor, traits, &nothing, cause);
        assert_eq!(kind(traits::READ, WaitCause::Disk), WaitKind::FileRead);
        assert_eq!(kind(traits::WRITE, WaitCause::Network), WaitKind::NetWrite);
        assert_eq!(kind(traits::CONNECT, WaitCause::Network), WaitKind::Connect);
        assert_eq!(kind(traits::WRITE | traits::SYNC, WaitCause::Disk), WaitKind::FileSync);
        assert_eq!(WaitKind::of(SyscallClass::Accept as u8, 0, &nothing, WaitCause::Poll), WaitKind::Accept);
        let on = |kind, peer_port| Endpoint { kind: kind as u32, peer_port, ..nothing };
        let of = |on: Endpoint, cause| WaitKind::of(descriptor, traits::READ, &on, cause);
        assert_eq!(of(on(ObjectKind::Net, DNS_PORT), WaitCause::Network), WaitKind::Dns);
        assert_eq!(of(on(ObjectKind::Net, 5432), WaitCause::Network), WaitKind::NetRead);
        assert_eq!(of(on(ObjectKind::Unix, 0), WaitCause::Pipe), WaitKind::Unix);
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
}
