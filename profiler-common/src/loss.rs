//! Everything that makes a sample lost or worth less, by reason. The kernel programs count the reasons they
//! can see in a per-CPU array indexed by [`KernelCounter`]; userspace adds its own.

/// Counters of the kernel programs: index into the per-CPU array `COUNTERS`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelCounter {
    /// Samples that matched the target, whether delivered or lost.
    SamplesTaken = 0,
    /// Samples lost: the ring buffer was full.
    RingBufferFull = 1,
    /// Lost to follow: a new process could not be added to the set of targets because it is full.
    TargetsFull = 2,
    /// Lost: a thread's time, because there are too many threads.
    ThreadsFull = 3,
    /// Lost: the stack of a block, because there are too many different ones.
    OffCpuFull = 4,
    /// Lost: a long block or wait that is in the totals, but was not told by itself.
    IntervalsDropped = 5,
    /// Not taken: the stack of a block, because the CPU has taken its share for now.
    StacksSkipped = 6,
    /// Lost: a record other than a sample, because the ring buffer was full.
    RecordsLost = 7,
    /// Not watched: an object, because too many are already.
    ObjectsFull = 8,
    /// Lost: an allocation, because there are too many different stacks.
    AllocStacksFull = 9,
    /// Lost: an allocation, because another thread's call has its place, or the CPU's scratch memory is in use.
    AllocClash = 10,
    /// Frees that were not seen: the address was given out again.
    FreesImplied = 11,
    /// Stacks of allocations that had to be walked.
    AllocWalks = 12,
    /// Lost: a system call that is in no count, because there are too many processes, threads or kinds of calls.
    CallsFull = 13,
    /// Lost: a call's place among the reads and writes by descriptor, because there are too many descriptors.
    IoFull = 14,
    /// Lost: a slow call that is in the totals, but was not told by itself.
    SlowCallsDropped = 15,
    /// System calls of threads that are no target's: what watching costs them.
    CallsOfOthers = 16,
}

impl KernelCounter {
    /// Number of counters.
    pub const COUNT: usize = 17;
}
