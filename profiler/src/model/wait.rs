//! Where threads spent their time when they were not on a CPU, and what was wrong with it: the values that the
//! scheduler probe's records become, and that report, JSON and recordings share.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::model::{
    cause::WaitCause,
    distribution::Summary,
    finding::Severity,
    stack::{StackId, ThreadKey},
    threshold::Thresholds,
};

/// Everything known about a run, or an interval of it, besides stacks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Blocking {
    /// What counted as too long.
    pub thresholds: Thresholds,
    /// Every thread, the busiest in wall time first.
    pub threads: Vec<ThreadTime>,
    /// Waits for a CPU, by process.
    pub run_queue: Vec<RunQueue>,
    /// Threads that wait as event loops do.
    pub loops: Vec<EventLoop>,
    /// Iterations of event loops that took too long, in order of time.
    pub stalls: Vec<Stall>,
    /// Stalls that were found and are not listed, because there were too many.
    pub stalls_unlisted: u64,
    /// Long blocks and waits for a CPU, in order of time.
    pub long_waits: Vec<LongWait>,
    /// Long waits that were found and are not listed, because there were too many.
    pub long_waits_unlisted: u64,
    /// Locks that many threads wait for.
    pub convoys: Vec<Convoy>,
    /// Threads that wait for each other, for ever.
    pub deadlocks: Vec<Deadlock>,
}

impl Blocking {
    /// Time on CPUs of the threads of each process, ns.
    pub fn on_cpu_by_process(&self) -> BTreeMap<u32, u64> {
        let mut processes = BTreeMap::new();
        for of in &self.threads {
            *processes.entry(of.thread.pid).or_default() += of.on_cpu_ns;
        }
        processes
    }

    /// Of some waits for a CPU, the time in which threads of the targets themselves had it, ns.
    pub fn targets_ran_ns<'a>(&self, waits: impl IntoIterator<Item = &'a LongWait>) -> u64 {
        let own: BTreeSet<u32> = self.threads.iter().map(|of| of.thread.tid).collect();
        let ran = waits.into_iter().flat_map(|wait| match &wait.kind {
            LongWaitKind::Starved { instead } => &instead[..],
            LongWaitKind::Blocked { .. } => &[],
        });
        ran.filter(|of| own.contains(&of.tid)).map(|of| of.ns).sum()
    }

    /// Every stack that something here refers to; some more than once.
    pub fn stacks(&self) -> impl Iterator<Item = StackId> + '_ {
        let stalls = self.stalls.iter().flat_map(|stall| {
            let blocks = stall.blocks.iter().filter_map(|block| block.stack);
            stall.samples.iter().map(|&(stack, _)| stack).chain(blocks)
        });
        let waits = self.long_waits.iter().filter_map(|wait| wait.block.stack);
        let convoys = self.convoys.iter().flat_map(|convoy| [convoy.holder_stack, convoy.waiter_stack]);
        let deadlocked = self.deadlocks.iter().flat_map(|of| &of.threads);
        stalls.chain(waits).chain(convoys.flatten()).chain(deadlocked.filter_map(|of| of.stack))
    }
}

/// A thread's wall time, split without gaps, ns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadTime {
    /// Whose it is.
    pub thread: ThreadKey,
    /// Name of the process.
    pub process: String,
    /// Name of the thread.
    pub name: String,
    /// From the start of the run, or of the thread, to the end of either.
    pub wall_ns: u64,
    /// On a CPU.
    pub on_cpu_ns: u64,
    /// Of that, in the kernel: an estimate from the CPU samples (see `cpu_samples`).
    pub on_cpu_kernel_ns: u64,
    /// CPU samples that estimate rests on; its standard error is at most half of the whole over their square root.
    pub cpu_samples: u64,
    /// Waiting for a CPU.
    pub run_queue_ns: u64,
    /// Its waits for a CPU, if they were asked for by thread, of the first 4,096 threads.
    pub run_queue: Option<Summary>,
    /// Blocked, by cause, those that occurred.
    pub blocked: Vec<(WaitCause, u64)>,
    /// Threads that have ended and are added up in it, beside the one that it is by itself.
    pub others: u64,
}

impl ThreadTime {
    /// Sum of all parts: the wall time, as far as the probe is right.
    pub fn accounted_ns(&self) -> u64 {
        let blocked = self.blocked.iter().map(|&(_, ns)| ns);
        blocked.fold(self.on_cpu_ns.saturating_add(self.run_queue_ns), u64::saturating_add)
    }

    /// The part in which the thread had something to do, whether it got on with it or not, ns.
    pub fn not_idle_ns(&self) -> u64 {
        let blocked = self.blocked.iter().filter(|(cause, _)| !cause.is_idle()).map(|(_, ns)| ns);
        self.on_cpu_ns + self.run_queue_ns + blocked.sum::<u64>()
    }

    /// Adds the times of `other`, ns by ns.
    pub fn add(&mut self, other: &ThreadTime) {
        self.wall_ns += other.wall_ns;
        self.on_cpu_ns += other.on_cpu_ns;
        self.on_cpu_kernel_ns += other.on_cpu_kernel_ns;
        self.cpu_samples += other.cpu_samples;
        self.run_queue_ns += other.run_queue_ns;
        self.others += other.others + 1;
        for &(cause, ns) in &other.blocked {
            match self.blocked.iter_mut().find(|(known, _)| *known == cause) {
                Some((_, sum)) => *sum += ns,
                None => self.blocked.push((cause, ns)),
            }
        }
        self.blocked.sort_unstable();
    }
}

/// How long a process's threads waited for a CPU, after they were woken or preempted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunQueue {
    /// Process id; zero for all processes not listed by themselves.
    pub pid: u32,
    /// Name of the process.
    pub process: String,
    /// The waits.
    pub waits: Summary,
}

/// A thread that waits as event loops do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventLoop {
    /// The thread.
    pub thread: ThreadKey,
    /// Name of the process.
    pub process: String,
    /// Name of the thread.
    pub name: String,
    /// System call it waits in.
    pub wait: String,
    /// Lengths of its iterations: from one wait's return to the next wait's start.
    pub iterations: Summary,
    /// Longest turn of its work that was told one by one, ns: as an iteration, but ended by parking, too.
    pub longest_turn_ns: u64,
    /// Iterations longer than the warning threshold, not the critical one.
    pub warnings: u64,
    /// Iterations longer than the critical threshold.
    pub criticals: u64,
}

/// An iteration of an event loop that took too long, and what happened in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stall {
    /// How bad.
    pub severity: Severity,
    /// Whose loop.
    pub thread: ThreadKey,
    /// When the wait before it ended: CLOCK_MONOTONIC, ns.
    pub start_ns: u64,
    /// From there to the start of the next wait.
    pub duration_ns: u64,
    /// Of that, on a CPU.
    pub on_cpu_ns: u64,
    /// Of that, waiting for a CPU.
    pub run_queue_ns: u64,
    /// Of that, in blocks that were reported one by one, by cause; listed below or not.
    pub blocked: Vec<(WaitCause, u64)>,
    /// CPU samples inside it, as many stacks as are kept: stack and number, most first.
    pub samples: Vec<(StackId, u64)>,
    /// Blocks inside it that took long enough to be reported one by one, the longest if they are many; in order of time.
    pub blocks: Vec<Block>,
    /// Who ran meanwhile, on whatever CPU, with the part of `run_queue_ns` that its samples make up; at most 5, the most first. Only
    /// asked where waiting for a CPU is a large part of it.
    pub instead: Vec<RanInstead>,
    /// Share of its length that is explained: by blocks with a cause, by waiting for a CPU, and by time on a CPU if
    /// there is a sample of what ran. From 0 to 1.
    pub explained: f64,
}

/// One time that a thread blocked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// When: CLOCK_MONOTONIC, ns.
    pub start_ns: u64,
    /// How long, ns, without the wait for a CPU that followed.
    pub blocked_ns: u64,
    /// The wait for a CPU that followed, ns.
    pub run_queue_ns: u64,
    /// What for.
    pub cause: WaitCause,
    /// System call it blocked in; empty for none.
    pub syscall: String,
    /// Which file, peer or futex, as far as it could be found out at the time.
    pub object: Option<String>,
    /// Where, if the stack was taken.
    pub stack: Option<StackId>,
}

/// A thread that blocked for long in a cause that is not idle waiting, or waited long for a CPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LongWait {
    /// How bad.
    pub severity: Severity,
    /// The thread.
    pub thread: ThreadKey,
    /// What it waited for.
    pub kind: LongWaitKind,
    /// How long and where.
    pub block: Block,
    /// It still did when the run ended.
    pub ongoing: bool,
}

/// What a long wait was for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LongWaitKind {
    /// For [`Block::cause`].
    Blocked {
        /// Not even a signal could end it.
        uninterruptible: bool,
    },
    /// For a CPU.
    Starved {
        /// Who ran there meanwhile, those with the most time first; none where that is not known.
        instead: Vec<RanInstead>,
    },
}

/// A thread that ran on a CPU that another waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RanInstead {
    /// Thread id (initial PID namespace).
    pub tid: u32,
    /// Its name.
    pub name: String,
    /// Its part of the wait, ns: an estimate out of the samples of that CPU.
    pub ns: u64,
}

/// A lock that many threads wait for at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Convoy {
    /// How bad.
    pub severity: Severity,
    /// Process.
    pub pid: u32,
    /// Name of the process.
    pub process: String,
    /// Address of the futex.
    pub futex: u64,
    /// Most threads that waited at once.
    pub waiters: u64,
    /// Looks at the process, one a second, that found it so.
    pub seen: u64,
    /// Thread that held it when last looked at, where the lock says so.
    pub holder: Option<ThreadKey>,
    /// Stack the holder blocked with, if it did.
    pub holder_stack: Option<StackId>,
    /// Where most waiters wait.
    pub waiter_stack: Option<StackId>,
}

/// Threads in a circle, each of which waits for a lock that the next one holds; one alone waits for its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadlock {
    /// Process.
    pub pid: u32,
    /// Name of the process.
    pub process: String,
    /// The threads, in the order of who waits for whom.
    pub threads: Vec<Deadlocked>,
    /// Threads that wait for one of them, or for one that does.
    pub behind: u64,
}

/// One of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadlocked {
    /// The thread.
    pub thread: ThreadKey,
    /// Address of the lock's futex.
    pub futex: u64,
    /// Where it waits.
    pub stack: Option<StackId>,
}
