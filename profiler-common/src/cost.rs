//! What a probe costs: measured by the kernel programs themselves, with the kernel's clock around the work
//! done for a target. The fixed cost of getting into a program (interrupt, trap) is not in it.

use crate::table::table;

/// Runs of one probe for the target, and the time they took. One per probe and CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeCost {
    /// Times the probe did work for a target.
    pub runs: u64,
    /// Time spent in those runs, ns.
    pub ns: u64,
}

table! {
    /// A probe: index of its [`ProbeCost`] in the per-CPU array `COSTS`.
    pub enum Probe {
        /// The on-CPU sampler.
        Cpu = 0, "cpu", "cpu";
        /// The scheduler probe.
        Sched = 1, "sched", "scheduler";
        /// The hook of the calls that event loops wait in.
        Loop = 2, "loop", "event loop";
        /// The hook of wake-ups.
        Waker = 3, "waker", "waker";
        /// The system-call probe; its runs are estimated from one in [`COST_SAMPLE`](crate::syscall::COST_SAMPLE).
        Syscall = 4, "syscall", "system call";
        /// The sampler of page faults.
        Fault = 5, "fault", "page faults";
        /// Beginnings of allocators' functions.
        AllocEnter = 6, "alloc_enter", "allocations, begun";
        /// Ends of those.
        AllocReturn = 7, "alloc_return", "allocations, done";
        /// Return instructions of allocators' functions that throw.
        AllocLeave = 8, "alloc_leave", "allocations, done (C++)";
        /// Frees.
        Free = 9, "free", "frees";
        /// Sends and receives on sockets.
        Request = 10, "request", "request";
        /// Calls of TLS libraries, and their ends.
        Tls = 11, "tls", "TLS";
    }
}

#[cfg(feature = "user")]
// SAFETY: repr(C), two u64, no padding, every bit pattern is valid.
unsafe impl aya::Pod for ProbeCost {}
