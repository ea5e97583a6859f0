//! What is missing, by reason.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why samples are missing or worth less. A lost sample is in no total; a degraded one is, with a part missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Lost: the ring buffer between kernel and agent was full.
    RingBufferFull,
    /// Lost: more distinct stacks than the agent keeps.
    TooManyStacks,
    /// Lost: a record that makes no sense.
    BadRecord,
    /// Lost processes, not samples: a new process could not be followed because the target set is full.
    TargetsFull,
    /// Degraded: the kernel stack could not be read.
    KernelStackFailed,
    /// Degraded: the user stack could not be read.
    UserStackFailed,
    /// Degraded: deeper than 127 frames, the outermost are missing.
    StackTruncated,
    /// Degraded: unwinding the user stack stopped before its end (and before 127 frames).
    UnwindFailed,
    /// Degraded: the process was gone before its mappings could be read.
    ProcessGone,
    /// Degraded: at least one address of the sample has no symbol.
    SymbolMissing,
    /// Degraded, not counted in samples: notices of new mappings that the kernel dropped.
    MappingNoticesLost,
    /// Lost threads, not samples: their time is in no account because there are too many.
    ThreadsFull,
    /// Lost blocks, not samples: their time is in no off-CPU profile because it has too many stacks.
    OffCpuFull,
    /// Degraded, not counted in samples: blocks whose stack was not taken, to keep the cost down.
    OffCpuStacksSkipped,
    /// Degraded, not counted in samples: long waits that are in all totals but are not listed, because there were
    /// too many at once.
    WaitsUntold,
    /// Lost records other than samples: the ring buffer was full.
    RecordsLost,
    /// Lost objects, not samples: not watched, because too many live at once.
    ObjectsFull,
    /// Lost objects, not samples: their stack is one too many.
    AllocStacksFull,
    /// Lost objects, not samples: another thread's call was in the way, or the stack could not be taken.
    AllocClash,
    /// Degraded, not counted in samples: objects whose end was not seen, only that their address was given out again.
    FreesImplied,
    /// Lost system calls, not samples: they are in no count, because there are too many kinds of them.
    CallsFull,
    /// Lost descriptors, not samples: what was read and written by them is in no account.
    IoFull,
    /// Degraded, not counted in samples: slow system calls that are in all totals but are not listed.
    SlowCallsUntold,
    /// Degraded, not counted in samples: frames of a language runtime whose function could not be read.
    FramesUnnamed,
    /// Degraded, not counted in samples: addresses of code without a file whose memory came to belong to other code at
    /// about the time they were seen, so that they may have the name of either.
    CodeReused,
    /// Lost connections, not samples: their requests are in no count, because too many are followed.
    ConnectionsFull,
    /// Lost peers, not samples: their requests are in no count, because there are too many.
    PeersFull,
}

impl Loss {
    /// Every reason, in the order of reports.
    pub const ALL: [Loss; 27] = [
        Loss::RingBufferFull,
        Loss::TooManyStacks,
        Loss::BadRecord,
        Loss::TargetsFull,
        Loss::KernelStackFailed,
        Loss::UserStackFailed,
        Loss::StackTruncated,
        Loss::UnwindFailed,
        Loss::ProcessGone,
        Loss::SymbolMissing,
        Loss::MappingNoticesLost,
        Loss::ThreadsFull,
        Loss::OffCpuFull,
        Loss::OffCpuStacksSkipped,
        Loss::WaitsUntold,
        Loss::RecordsLost,
        Loss::ObjectsFull,
        Loss::AllocStacksFull,
        Loss::AllocClash,
        Loss::FreesImplied,
        Loss::CallsFull,
        Loss::IoFull,
        Loss::SlowCallsUntold,
        Loss::FramesUnnamed,
        Loss::CodeReused,
        Loss::ConnectionsFull,
        Loss::PeersFull,
    ];

    /// Whether it counts samples, not other things.
    pub fn counts_samples(self) -> bool {
        !matches!(
            self,
            Loss::TargetsFull
                | Loss::MappingNoticesLost
                | Loss::ThreadsFull
                | Loss::OffCpuFull
                | Loss::OffCpuStacksSkipped
                | Loss::WaitsUntold
                | Loss::RecordsLost
                | Loss::ObjectsFull
                | Loss::AllocStacksFull
                | Loss::AllocClash
                | Loss::FreesImplied
                | Loss::CallsFull
                | Loss::IoFull
                | Loss::SlowCallsUntold
                | Loss::FramesUnnamed
                | Loss::CodeReused
                | Loss::ConnectionsFull
                | Loss::PeersFull
        )
    }

    /// Whether a sample is missing from the totals for this reason.
    pub fn loses_sample(self) -> bool {
        matches!(self, Loss::RingBufferFull | Loss::TooManyStacks | Loss::BadRecord)
    }

    /// Name in machine-readable output.
    pub fn id(self) -> &'static str {
        match self {
            Loss::RingBufferFull => "ring_buffer_full",
            Loss::TooManyStacks => "too_many_stacks",
            Loss::BadRecord => "bad_record",
            Loss::TargetsFull => "targets_full",
            Loss::KernelStackFailed => "kernel_stack_failed",
            Loss::UserStackFailed => "user_stack_failed",
            Loss::StackTruncated => "stack_truncated",
            Loss::UnwindFailed => "unwind_failed",
            Loss::ProcessGone => "process_gone",
            Loss::SymbolMissing => "symbol_missing",
            Loss::MappingNoticesLost => "mapping_notices_lost",
            Loss::ThreadsFull => "threads_full",
            Loss::OffCpuFull => "offcpu_full",
            Loss::OffCpuStacksSkipped => "offcpu_stacks_skipped",
            Loss::WaitsUntold => "waits_untold",
            Loss::RecordsLost => "records_lost",
            Loss::ObjectsFull => "objects_full",
            Loss::AllocStacksFull => "alloc_stacks_full",
            Loss::AllocClash => "alloc_clash",
            Loss::FreesImplied => "frees_implied",
            Loss::CallsFull => "calls_full",
            Loss::IoFull => "io_full",
            Loss::SlowCallsUntold => "slow_calls_untold",
            Loss::FramesUnnamed => "frames_unnamed",
            Loss::CodeReused => "code_reused",
            Loss::ConnectionsFull => "connections_full",
            Loss::PeersFull => "peers_full",
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Loss::RingBufferFull => "ring buffer full",
            Loss::TooManyStacks => "too many distinct stacks",
            Loss::BadRecord => "unreadable record",
            Loss::TargetsFull => "processes not followed, target set full",
            Loss::KernelStackFailed => "kernel stack unreadable",
            Loss::UserStackFailed => "user stack unreadable",
            Loss::StackTruncated => "stack deeper than 127 frames",
            Loss::UnwindFailed => "user stack not unwound to its end",
            Loss::ProcessGone => "process gone before its mappings were read",
            Loss::SymbolMissing => "an address without a symbol",
            Loss::MappingNoticesLost => "notices of new mappings dropped",
            Loss::ThreadsFull => "threads not accounted for, too many",
            Loss::OffCpuFull => "blocks without a place in the off-CPU profile",
            Loss::OffCpuStacksSkipped => "blocks without a stack, to keep the cost down",
            Loss::WaitsUntold => "long waits not listed, too many at once",
            Loss::RecordsLost => "records of waits lost",
            Loss::ObjectsFull => "objects not watched, too many live",
            Loss::AllocStacksFull => "objects not watched, too many stacks",
            Loss::AllocClash => "objects not watched, probes in each other's way",
            Loss::FreesImplied => "frees not seen, known by the address being reused",
            Loss::CallsFull => "system calls not counted, too many kinds",
            Loss::IoFull => "reads and writes not told by descriptor, too many",
            Loss::SlowCallsUntold => "slow system calls not listed, too many at once",
            Loss::FramesUnnamed => "frames whose function had gone when it was to be named",
            Loss::CodeReused => "addresses of JIT code whose memory was reused just then",
            Loss::ConnectionsFull => "connections whose requests are not told, too many",
            Loss::PeersFull => "peers whose requests are not told, too many",
        })
    }
}

/// Counts by reason, in samples unless the reason says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Losses([u64; Loss::ALL.len()]);

impl Losses {
    /// Counts `n` more.
    pub fn add(&mut self, loss: Loss, n: u64) {
        self.0[loss as usize] += n;
    }

    /// Sets a count that is kept elsewhere (in the kernel).
    pub fn set(&mut self, loss: Loss, n: u64) {
        self.0[loss as usize] = n;
    }

    /// The count for a reason.
    pub fn get(&self, loss: Loss) -> u64 {
        self.0[loss as usize]
    }

    /// Samples that are in no total.
    pub fn lost(&self) -> u64 {
        self.iter().filter(|(loss, _)| loss.loses_sample()).map(|(_, n)| n).sum()
    }

    /// Reasons that occurred, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (Loss, u64)> + '_ {
        Loss::ALL.into_iter().map(|loss| (loss, self.get(loss))).filter(|&(_, n)| n > 0)
    }
}
