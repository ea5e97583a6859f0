//! Where threads spent their time when they were not on a CPU, and what was wrong with it: the values that the
//! scheduler probe's records become, and that report, JSON and recordings share.

use profiler_common::{histogram, sched::Cause};
use serde::{Deserialize, Serialize};

use crate::{
    detect::threshold::Thresholds,
    sample::{StackId, ThreadKey},
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
    /// Turns of event loops that took too long, in order of time.
    pub stalls: Vec<Stall>,
    /// Stalls that were found and are not listed, because there were too many.
    pub stalls_unlisted: u64,
    /// Long blocks and waits for a CPU, in order of time.
    pub long_waits: Vec<LongWait>,
    /// Long waits that were found and are not listed, because there were too many.
    pub long_waits_unlisted: u64,
    /// Locks that many threads wait for.
    pub convoys: Vec<Convoy>,
}

impl Blocking {
    /// Every stack that something here refers to; some more than once.
    pub fn stacks(&self) -> impl Iterator<Item = StackId> + '_ {
        let stalls = self.stalls.iter().flat_map(|stall| {
            let blocks = stall.blocks.iter().filter_map(|block| block.stack);
            stall.samples.iter().map(|&(stack, _)| stack).chain(blocks)
        });
        let waits = self.long_waits.iter().filter_map(|wait| wait.block.stack);
        let convoys = self.convoys.iter().flat_map(|convoy| [convoy.holder_stack, convoy.waiter_stack]);
        stalls.chain(waits).chain(convoys.flatten())
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
}

impl ThreadTime {
    /// Sum of all parts: the wall time, as far as the probe is right.
    pub fn accounted_ns(&self) -> u64 {
        self.on_cpu_ns + self.run_queue_ns + self.blocked.iter().map(|(_, ns)| ns).sum::<u64>()
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
        for &(cause, ns) in &other.blocked {
            match self.blocked.iter_mut().find(|(known, _)| *known == cause) {
                Some((_, sum)) => *sum += ns,
                None => self.blocked.push((cause, ns)),
            }
        }
        self.blocked.sort_unstable();
    }
}

/// What a blocked thread waits for, as outputs name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitCause {
    /// Blocked since before the probe saw it.
    Unknown,
    /// Files and block devices.
    Disk,
    /// Internet sockets.
    Network,
    /// A lock that another thread holds.
    Lock,
    /// A condition variable, or idle in a pool: any futex that is no lock.
    Park,
    /// Sleep and timers.
    Sleep,
    /// Idle in epoll_wait, poll, select or accept.
    Poll,
    /// Pipes, Unix sockets, terminals, message queues.
    Pipe,
    /// A page that had to be fetched.
    PageFault,
    /// The end of a child.
    Child,
    /// Anything else.
    Other,
}

impl WaitCause {
    /// Every cause, by the kernel programs' numbers.
    pub const ALL: [WaitCause; Cause::COUNT] = [
        WaitCause::Unknown,
        WaitCause::Disk,
        WaitCause::Network,
        WaitCause::Lock,
        WaitCause::Park,
        WaitCause::Sleep,
        WaitCause::Poll,
        WaitCause::Pipe,
        WaitCause::PageFault,
        WaitCause::Child,
        WaitCause::Other,
    ];

    /// By the kernel programs' number.
    pub fn from_number(number: u32) -> WaitCause {
        WaitCause::ALL.get(number as usize).copied().unwrap_or(WaitCause::Unknown)
    }

    /// Whether a thread that waits for this has nothing to do, rather than something that it does not get on with.
    pub fn is_idle(self) -> bool {
        matches!(
            self,
            WaitCause::Unknown | WaitCause::Park | WaitCause::Sleep | WaitCause::Poll | WaitCause::Child
        )
    }

    /// Name in machine-readable output.
    pub fn id(self) -> &'static str {
        match self {
            WaitCause::Unknown => "unknown",
            WaitCause::Disk => "disk",
            WaitCause::Network => "network",
            WaitCause::Lock => "lock",
            WaitCause::Park => "park",
            WaitCause::Sleep => "sleep",
            WaitCause::Poll => "poll",
            WaitCause::Pipe => "pipe",
            WaitCause::PageFault => "page_fault",
            WaitCause::Child => "child",
            WaitCause::Other => "other",
        }
    }

    /// Words for a report.
    pub fn words(self) -> &'static str {
        match self {
            WaitCause::Unknown => "unknown",
            WaitCause::Disk => "disk I/O",
            WaitCause::Network => "network",
            WaitCause::Lock => "lock (futex)",
            WaitCause::Park => "parked (futex)",
            WaitCause::Sleep => "sleep/timer",
            WaitCause::Poll => "poll/epoll idle",
            WaitCause::Pipe => "pipe/IPC",
            WaitCause::PageFault => "page fault",
            WaitCause::Child => "child",
            WaitCause::Other => "other",
        }
    }
}

/// A distribution of durations, ns; each value is known to 3.1 %.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// How many.
    pub count: u64,
    /// Sum, exact.
    pub sum_ns: u64,
    /// Median.
    pub p50_ns: u64,
    /// 90th percentile.
    pub p90_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// 99.9th percentile.
    pub p999_ns: u64,
    /// Longest, exact.
    pub max_ns: u64,
}

impl Summary {
    /// Of what the kernel programs counted.
    pub fn of(kernel: &histogram::Histogram) -> Summary {
        let counts = kernel.counts.iter().map(|&count| u64::from(count)).enumerate();
        Summary::from_buckets(counts, kernel.sum_ns, kernel.max_ns)
    }

    /// Of counts by bucket, and of their exact sum and maximum, by way of an hdrhistogram that is finer than the buckets.
    pub fn from_buckets(counts: impl IntoIterator<Item = (usize, u64)>, sum_ns: u64, max_ns: u64) -> Summary {
        let longest = histogram::bounds(histogram::BUCKETS - 1).0 * 2;
        let Ok(mut merged) = hdrhistogram::Histogram::<u64>::new_with_max(longest, 3) else {
            return Summary::default();
        };
        for (bucket, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
            let (first, width) = histogram::bounds(bucket);
            merged.saturating_record_n(first + width / 2, count);
        }
        let all = merged.len();
        let at = |quantile: f64| merged.value_at_quantile(quantile).min(max_ns);
        Summary {
            count: all,
            sum_ns,
            p50_ns: at(0.5),
            p90_ns: at(0.9),
            p99_ns: at(0.99),
            p999_ns: at(0.999),
            max_ns,
        }
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
    /// Lengths of its turns: from one wait's return to the next wait's start.
    pub turns: Summary,
    /// Turns longer than the warning threshold, not the critical one.
    pub warnings: u64,
    /// Turns longer than the critical threshold.
    pub criticals: u64,
}

/// How bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth a look.
    Warning,
    /// Worth waking somebody.
    Critical,
}

impl Severity {
    /// Name in machine-readable output.
    pub fn id(self) -> &'static str {
        match self {
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

/// A turn of an event loop that took too long, and what happened in it.
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
    /// Of that, in blocks that were told one by one, by cause; listed below or not.
    pub blocked: Vec<(WaitCause, u64)>,
    /// CPU samples inside it, as many stacks as are kept: stack and number, most first.
    pub samples: Vec<(StackId, u64)>,
    /// Blocks inside it that took long enough to be told one by one, the longest if they are many; in order of time.
    pub blocks: Vec<Block>,
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
