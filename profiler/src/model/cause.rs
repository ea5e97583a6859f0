//! What a blocked thread waits for.

use profiler_common::sched::Cause;
use serde::{Deserialize, Serialize};

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
