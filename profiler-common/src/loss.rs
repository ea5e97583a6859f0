//! Everything that makes a sample lost or worth less, by reason. The kernel programs count the reasons that they can see
//! in the per-CPU array `COUNTERS`; userspace adds those that it sees.

use core::fmt;

use crate::table::table;

/// What a loss is counted in, and whether that is in the totals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Samples that are in no total.
    Lost,
    /// Samples that are in the totals with a part missing.
    Degraded,
    /// Things other than samples that are in no account at all: there was no room for them.
    Uncounted,
    /// Things other than samples that are accounted for, in less detail.
    Other,
}

table! {
    /// Why samples are missing or worth less. Its number is an index into `COUNTERS`.
    pub enum Loss(effect: Effect) {
        /// Lost: the ring buffer between kernel and agent was full.
        RingBufferFull = 0, "ring_buffer_full", "ring buffer full", Effect::Lost;
        /// Lost: more distinct stacks than the agent keeps.
        TooManyStacks = 1, "too_many_stacks", "too many distinct stacks", Effect::Lost;
        /// Lost: a record that makes no sense.
        BadRecord = 2, "bad_record", "unreadable record", Effect::Lost;
        /// Lost processes: a new process could not be followed because the target set is full.
        TargetsFull = 3, "targets_full", "processes not followed, target set full", Effect::Uncounted;
        /// Degraded: the kernel stack could not be read.
        KernelStackFailed = 4, "kernel_stack_failed", "kernel stack unreadable", Effect::Degraded;
        /// Degraded: the user stack could not be read.
        UserStackFailed = 5, "user_stack_failed", "user stack unreadable", Effect::Degraded;
        /// Degraded: deeper than 127 frames, the outermost are missing.
        StackTruncated = 6, "stack_truncated", "stack deeper than 127 frames", Effect::Degraded;
        /// Degraded: unwinding the user stack stopped before its end (and before 127 frames).
        UnwindFailed = 7, "unwind_failed", "user stack not unwound to its end", Effect::Degraded;
        /// Degraded: the process was gone before its mappings could be read.
        ProcessGone = 8, "process_gone", "process gone before its mappings were read", Effect::Degraded;
        /// Degraded: at least one address of the sample has no symbol.
        SymbolMissing = 9, "symbol_missing", "an address without a symbol", Effect::Degraded;
        /// Notices of new mappings that the kernel dropped.
        MappingNoticesLost = 10, "mapping_notices_lost", "notices of new mappings dropped", Effect::Other;
        /// Lost threads: their time is in no account because there are too many.
        ThreadsFull = 11, "threads_full", "threads not accounted for, too many", Effect::Uncounted;
        /// Lost blocks: their time is in no off-CPU profile because it has too many stacks.
        OffCpuFull = 12, "offcpu_full", "blocks without a place in the off-CPU profile", Effect::Uncounted;
        /// Blocks whose stack was not taken, to keep the cost down.
        OffCpuStacksSkipped = 13, "offcpu_stacks_skipped", "blocks without a stack, to keep the cost down", Effect::Other;
        /// Long waits that are in all totals but are not listed, because there were too many at once.
        WaitsOmitted = 14, "waits_omitted", "long waits not listed, too many at once", Effect::Other;
        /// Lost records other than samples: the ring buffer was full.
        RecordsLost = 15, "records_lost", "records of waits lost", Effect::Other;
        /// Lost objects: not watched, because too many live at once.
        ObjectsFull = 16, "objects_full", "objects not watched, too many live", Effect::Uncounted;
        /// Lost objects: their stack is one too many.
        AllocStacksFull = 17, "alloc_stacks_full", "objects not watched, too many stacks", Effect::Uncounted;
        /// Lost objects: another thread's call was in the way, or the stack could not be taken.
        AllocClash = 18, "alloc_clash", "objects not watched, probes in each other's way", Effect::Other;
        /// Objects whose end was not seen, only that their address was given out again.
        FreesImplied = 19, "frees_implied", "frees not seen, known by the address being reused", Effect::Other;
        /// Lost system calls: they are in no count, because there are too many processes, threads or kinds of calls.
        CallsFull = 20, "calls_full", "system calls not counted, too many kinds", Effect::Uncounted;
        /// Lost descriptors: what was read and written by them is in no account.
        IoFull = 21, "io_full", "reads and writes without a descriptor of their own, too many", Effect::Uncounted;
        /// Slow system calls that are in all totals but are not listed.
        SlowCallsOmitted = 22, "slow_calls_omitted", "slow system calls not listed, too many at once", Effect::Other;
        /// Frames of a language runtime whose function could not be read.
        FramesUnnamed = 23, "frames_unnamed", "frames whose function had gone when it was to be named", Effect::Other;
        /// Addresses of code without a file whose memory came to belong to other code at about the time they were seen,
        /// so that they may have the name of either.
        CodeReused = 24, "code_reused", "addresses of JIT code whose memory was reused just then", Effect::Other;
        /// Lost connections: their requests are in no count, because too many are followed.
        ConnectionsFull = 25, "connections_full", "connections whose requests are not told, too many", Effect::Uncounted;
        /// Lost peers: their requests are in no count, because there are too many.
        PeersFull = 26, "peers_full", "peers whose requests are not told, too many", Effect::Uncounted;
        /// What a TLS library was read or answered with, of a connection that could not be told: order or sizes contradicted, or
        /// the request had been sent before. Its exchange has no operation.
        TlsUnmatched = 27, "tls_unmatched", "reads of a TLS library whose connection could not be told", Effect::Other;
        /// Encrypted connections that are one too many: their exchanges have no operation.
        TlsFull = 28, "tls_full", "encrypted connections not looked into, too many", Effect::Other;
        /// Blocks whose end is not known: the kernel moved the thread to another CPU while it slept, and books its sleep as waiting
        /// for a CPU from then on. All of it counts as blocked.
        WakesUnknown = 29, "wakes_unknown", "blocks that may hold the wait for a CPU after them", Effect::Other;
    }
}

impl Loss {
    /// Whether a sample is missing from the totals for this reason.
    pub const fn loses_sample(self) -> bool {
        matches!(self.effect(), Effect::Lost)
    }

    /// Whether it counts samples, not other things.
    pub const fn counts_samples(self) -> bool {
        matches!(self.effect(), Effect::Lost | Effect::Degraded)
    }

    /// Whether what it counts, other than samples, is in no account.
    pub const fn hides(self) -> bool {
        matches!(self.effect(), Effect::Uncounted)
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

table! {
    /// What the kernel programs count besides losses: in `COUNTERS`, behind them.
    pub enum Tally {
        /// Samples that matched the target, whether delivered or lost.
        SamplesTaken = 0, "samples_taken", "samples taken";
        /// Stacks of allocations that had to be walked.
        AllocWalks = 1, "alloc_walks", "stacks of allocations walked";
        /// System calls of threads that are no target's: what watching costs them.
        CallsOfOthers = 2, "calls_of_others", "system calls of other processes";
    }
}

impl Tally {
    /// Index into `COUNTERS`.
    pub const fn index(self) -> u32 {
        Loss::COUNT as u32 + self as u32
    }
}

/// Length of `COUNTERS`.
pub const COUNTERS: usize = Loss::COUNT + Tally::COUNT;
