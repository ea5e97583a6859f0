//! What a probe costs: measured by the kernel programs themselves, with the kernel's clock around the work
//! done for a target. The fixed cost of getting into a program (interrupt, trap) is not in it.

/// Runs of one probe for the target, and the time they took. One per probe and CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeCost {
    /// Times the probe did work for a target.
    pub runs: u64,
    /// Time spent in those runs, ns.
    pub ns: u64,
}

/// Index of a probe's [`ProbeCost`] in the per-CPU array `COSTS`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// The on-CPU sampler.
    Cpu = 0,
    /// The scheduler probe.
    Sched = 1,
    /// The hook of the calls that event loops wait in.
    Loop = 2,
    /// The hook of wake-ups.
    Waker = 3,
    /// The sampler of page faults.
    Fault = 4,
    /// Beginnings of allocators' functions.
    AllocEnter = 5,
    /// Ends of those.
    AllocReturn = 6,
    /// Frees.
    Free = 7,
    /// The system-call probe; its runs are estimated from one in [`COST_SAMPLE`](crate::syscall::COST_SAMPLE).
    Syscall = 8,
    /// Return instructions of allocators' functions that throw.
    AllocLeave = 9,
    /// Sends and receives on sockets.
    Request = 10,
}

impl Probe {
    /// Number of probes.
    pub const COUNT: usize = 11;
}

#[cfg(feature = "user")]
// SAFETY: repr(C), two u64, no padding, every bit pattern is valid.
unsafe impl aya::Pod for ProbeCost {}
