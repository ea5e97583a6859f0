//! What `/proc` says about the targets from outside, about once a second: threads, descriptors, connections, children, throttling.

use serde::{Deserialize, Serialize};

use crate::model::{distribution::Summary, series::Series};

/// Of all targets that were looked at.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Vitals {
    /// Each process, at most 512.
    pub processes: Vec<ProcessVitals>,
    /// Most targets at once that were not looked at, because there were too many.
    pub unlisted: u64,
}

/// Of one process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessVitals {
    /// Process id.
    pub pid: u32,
    /// Its name.
    pub process: String,
    /// The systemd unit that it belongs to, or `container ID`; empty if it is in neither.
    pub unit: String,
    /// How often it was looked at.
    pub samples: u64,
    /// From the first look to the last, ns.
    pub span_ns: u64,
    /// Looks that found it stopped, by a signal or a debugger.
    pub stopped: u64,
    /// It listens for connections.
    pub listens: bool,
    /// Its sockets that listen for TCP connections, and which of these wait there to be accepted.
    pub backlogs: Vec<Backlog>,
    /// Connections that its network namespace turned away during the run because such a socket had no room, of all its processes;
    /// none where that is not known.
    pub overflows: Option<u64>,
    /// Most connections it had at once, internet and Unix sockets.
    pub most_connections: u64,
    /// Threads over time.
    pub threads: Series<Threads>,
    /// How many the machine has numbers for; none where that is not known.
    pub thread_limit: Option<u64>,
    /// Open descriptors over time.
    pub descriptors: Series<Descriptors>,
    /// How many it may have open (RLIMIT_NOFILE, soft); none for no limit.
    pub descriptor_limit: Option<u64>,
    /// Open descriptors by what they are; an estimate where it has more than 1,024.
    pub kinds: Vec<DescriptorKind>,
    /// Internet peers, by connections at once, most first.
    pub peers: Vec<Peer>,
    /// Who has the other end of what it had open at the end, on this machine; at most 64 of these.
    pub other_ends: Vec<OtherEnd>,
    /// CPU time of its children that are no targets, ns; those that have ended and were waited for, too.
    pub children_cpu_ns: u64,
    /// The busiest of these that were seen alive.
    pub children: Vec<Child>,
    /// How many times its garbage was collected between the first look and the last; of a Java virtual machine, where it tells.
    pub collections: Option<u64>,
    /// How its cgroup's CPU quota held it up, where there is one.
    pub throttling: Option<Throttling>,
}

/// Connections that wait to be accepted at one socket, as looks several times a second found them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backlog {
    /// `ADDRESS:PORT` that is listened at.
    pub address: String,
    /// Processes that have this socket.
    pub processes: u64,
    /// How often it was looked at.
    pub looks: u64,
    /// How many may wait, beside one, at the last look.
    pub limit: u64,
    /// How many waited then.
    pub last: u64,
    /// Most at once.
    pub most: u64,
    /// All that were found waiting, of all looks.
    pub sum: u64,
    /// Looks that found it full: what comes then is not taken in.
    pub full: u64,
    /// For how long the connection had waited that had waited longest: of the looks that found one, in ticks of the kernel.
    pub oldest: Summary,
}

impl Backlog {
    /// How many may wait at once.
    pub fn room(&self) -> u64 {
        self.limit.saturating_add(1)
    }

    /// How many waited, on average.
    pub fn mean(&self) -> f64 {
        self.sum as f64 / self.looks.max(1) as f64
    }
}

/// Threads at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Threads {
    /// CLOCK_MONOTONIC, ns.
    pub time_ns: u64,
    /// How many.
    pub number: u64,
}

/// Open descriptors at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptors {
    /// CLOCK_MONOTONIC, ns.
    pub time_ns: u64,
    /// How many.
    pub open: u64,
}

/// Descriptors of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorKind {
    /// Kind, with its peer or the folder of its path.
    pub kind: String,
    /// How many at the first look, and at the last.
    pub first: u64,
    /// See `first`.
    pub last: u64,
}

/// Connections with one peer: an address and port that the process connects to, or all clients of a port of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// `ADDRESS:PORT`, or `clients of :PORT`.
    pub peer: String,
    /// It is the clients of a port of the process's own.
    pub clients: bool,
    /// Most connections at once.
    pub most: u64,
    /// Connections seen, one after the other or at once.
    pub seen: u64,
    /// Most connections in TIME_WAIT at once, in the whole network namespace.
    pub most_time_wait: u64,
    /// Looks that found a connection which still waits for its other side to answer the first packet, as at the look before; or another one
    /// that does, where none is connected.
    pub connecting: u64,
    /// Looks that found it, and those in which something had been sent to it and no answer had come.
    pub samples: u64,
    /// Of the looks that found it, those that could tell whether an answer was awaited.
    pub judged: u64,
    /// See `samples`.
    pub awaited: u64,
    /// Longest time that an answer had been awaited for at a look, ns.
    pub longest_awaited_ns: u64,
}

impl Peer {
    /// Whether an answer was awaited in so much of the looks that could tell, from 0 to 1.
    pub fn is_awaited_for(&self, share: f64) -> bool {
        self.judged > 0 && self.awaited as f64 >= share * self.judged as f64
    }
}

/// The other end of what a process has open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherEnd {
    /// `pipe:[INODE]`, `unix PATH` (`unix` where nobody gave it one), or of a connection `ADDRESS:PORT` of the other side.
    pub object: String,
    /// Whether the process can receive something there: not from who reads its pipe.
    pub receives: bool,
    /// Who has it, at most 8 processes, and not the process itself.
    pub holders: Vec<Holder>,
}

/// A process that has something open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// Its name.
    pub process: String,
}

/// A child that is no target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Child {
    /// Process id.
    pub pid: u32,
    /// Its name.
    pub process: String,
    /// CPU time it used during the run, ns.
    pub cpu_ns: u64,
    /// Whether it lived at the last look.
    pub alive: bool,
}

/// What a CPU quota did during the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Throttling {
    /// The cgroup with the quota.
    pub cgroup: String,
    /// CPUs it may use; none where that is not known.
    pub cpus: Option<f64>,
    /// Periods that passed, and those in which the quota was used up.
    pub periods: u64,
    /// See `periods`.
    pub throttled_periods: u64,
    /// Time that its threads were held back, ns.
    pub throttled_ns: u64,
}
