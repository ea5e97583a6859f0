//! Everything that makes a sample lost or worth less, by reason. The kernel programs count the reasons they
//! can see in a per-CPU array indexed by [`KernelCounter`]; userspace adds its own.

/// Counters of the kernel programs: index into the per-CPU array `COUNTERS`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelCounter {
    /// Samples that matched the target, whether delivered or lost.
    SamplesTaken = 0,
    /// Lost: the ring buffer was full.
    RingBufferFull = 1,
    /// Lost to follow: a new process could not be added to the set of targets because it is full.
    TargetsFull = 2,
}

impl KernelCounter {
    /// Number of counters.
    pub const COUNT: usize = 3;
}
