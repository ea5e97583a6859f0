//! On-CPU samples: the record that the CPU sampler sends for each sample it takes.

use core::fmt;

use crate::{
    COMM_LEN, MAX_FRAMES,
    mapping::Walk,
    runtime::{ChainWalk, RUNTIME_WORDS, python::FRAME_WORDS},
    table::table,
    unwind::{StopReason, cache::Window},
};

/// The kernel stack could not be read.
pub const FLAG_KERNEL_STACK_FAILED: u32 = 1 << 0;
/// The user stack could not be read (kernel threads have none: that is no failure).
pub const FLAG_USER_STACK_FAILED: u32 = 1 << 1;
/// The kernel stack has more than [`MAX_FRAMES`] frames; the outermost are missing.
pub const FLAG_KERNEL_STACK_TRUNCATED: u32 = 1 << 2;
/// The user stack has more than [`MAX_FRAMES`] frames; the outermost are missing.
pub const FLAG_USER_STACK_TRUNCATED: u32 = 1 << 3;

/// Lowest bit of the byte of `flags` that has the number of the [`StackEnd`].
pub const FLAG_USER_END_SHIFT: u32 = 8;

table! {
    /// How a user stack ends.
    pub enum StackEnd {
        /// There is no user stack, or it could not be read.
        None = 0, "none", "no user stack";
        /// It reaches the start of its thread.
        Complete = 1, "complete", "complete";
        /// Frame pointers were followed; whether they led to the end nobody knows.
        FramePointers = 2, "frame_pointers", "by frame pointers";
        /// Cut off in code of which no unwind table is there.
        NoTable = 3, "no_table", "cut off in code without an unwind table";
        /// Cut off at an instruction without unwind information.
        NoRow = 4, "no_row", "cut off in code without unwind information";
        /// Cut off at unwind information that is not supported.
        Unsupported = 5, "unsupported", "cut off at unwind information that is not supported";
        /// Cut off at memory that could not be read.
        Unreadable = 6, "unreadable", "cut off at unreadable memory";
        /// Cut off where the next frame would not be further out.
        NoProgress = 7, "no_progress", "cut off where the next frame makes no sense";
        /// Cut off after 127 frames.
        TooDeep = 8, "too_deep", "cut off after 127 frames";
        /// Only the innermost functions were kept: there were too many distinct stacks. No end that the kernel programs see.
        NotKept = 9, "not_kept", "only the innermost functions kept, too many distinct stacks";
    }
}

impl fmt::Display for StackEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

#[expect(
    clippy::derivable_impls,
    reason = "a table derives the same for every enumeration, and few have a default"
)]
impl Default for StackEnd {
    fn default() -> StackEnd {
        StackEnd::None
    }
}

/// The user stack reaches the start of its thread: number of that end.
pub const END_COMPLETE: u32 = StackEnd::Complete as u32;
/// The user stack could not be followed further: added to a [`StopReason`] it is the number of the end.
pub const END_STOPPED: u32 = StackEnd::NoTable as u32;

const _: () = {
    assert!(END_STOPPED + StopReason::NoTable as u32 == StackEnd::NoTable as u32);
    assert!(END_STOPPED + StopReason::NoRow as u32 == StackEnd::NoRow as u32);
    assert!(END_STOPPED + StopReason::Unsupported as u32 == StackEnd::Unsupported as u32);
    assert!(END_STOPPED + StopReason::Unreadable as u32 == StackEnd::Unreadable as u32);
    assert!(END_STOPPED + StopReason::NoProgress as u32 == StackEnd::NoProgress as u32);
    assert!(END_STOPPED + StopReason::TooDeep as u32 == StackEnd::TooDeep as u32);
};

/// Start of a sample record; `kernel_frames` then `user_frames` addresses (`u64`, innermost first) follow, then
/// `runtime_words` of [`Entry`](crate::runtime::Entry)s.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SampleHeader {
    /// [`RecordKind::CpuSample`](crate::record::RecordKind::CpuSample), or of a page fault.
    pub kind: u32,
    /// `FLAG_*` bits.
    pub flags: u32,
    /// When the sample was taken: CLOCK_MONOTONIC, ns.
    pub time_ns: u64,
    /// Process id, in the profiler's PID namespace.
    pub pid: u32,
    /// Thread id, in the profiler's PID namespace.
    pub tid: u32,
    /// CPU the sample was taken on.
    pub cpu: u16,
    /// Number of words that follow the addresses.
    pub runtime_words: u16,
    /// Number of kernel addresses that follow.
    pub kernel_frames: u16,
    /// Number of user addresses that follow the kernel's.
    pub user_frames: u16,
    /// Name of the thread, NUL-padded.
    pub comm: [u8; COMM_LEN],
}

/// Size of a [`SampleHeader`] in bytes.
pub const SAMPLE_HEADER_LEN: usize = size_of::<SampleHeader>();

/// Words kept for one record: both stacks at their longest and an entry for each user frame, rounded up to a power of
/// two so that the kernel program can bound an index with a mask.
pub const SAMPLE_FRAME_WORDS: usize = 512;

/// Samples of a CPU, of any process, that are remembered: 5 s at the default frequency.
pub const RAN_LEN: usize = 512;

/// Who ran on a CPU lately: value of the per-CPU map `RAN`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ran {
    /// How many have been noted; the next goes to this place, modulo [`RAN_LEN`].
    pub next: u64,
    /// The last of them.
    pub seen: [Seen; RAN_LEN],
}

/// A thread that a sample found on a CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// When: CLOCK_MONOTONIC, ns; zero for an empty place.
    pub time_ns: u64,
    /// Process id in the initial PID namespace; zero for an idle CPU.
    pub pid: u32,
    /// Thread id in the initial PID namespace.
    pub tid: u32,
    /// Name of the thread, NUL-padded.
    pub comm: [u8; COMM_LEN],
}

#[cfg(feature = "user")]
// SAFETY: repr(C) integers without padding, every bit pattern is valid.
unsafe impl aya::Pod for Ran {}

/// Where a sample record is put together before it is copied to the ring buffer.
#[repr(C)]
pub struct SampleScratch {
    /// The record's start.
    pub header: SampleHeader,
    /// Kernel addresses, user addresses and words of runtimes, without a gap.
    pub frames: [u64; SAMPLE_FRAME_WORDS],
    /// Not sent: words of runtimes, as they are found.
    pub runtime: [u64; RUNTIME_WORDS],
    /// Not sent: a frame of a runtime, as it is read. On the stack it would leave too little room for those who call.
    pub frame: [u64; FRAME_WORDS],
    /// Not sent: where the way along frames of runtimes stands.
    pub chain: ChainWalk,
    /// Not sent: where the walk up the user stack stands.
    pub walk: Walk,
    /// Not sent: a piece of that stack.
    pub window: Window,
}

impl SampleScratch {
    /// Where in the record the address of the user stack's frame of index `i` goes. The mask is for the verifier.
    #[inline(always)]
    pub fn place(&self, i: u64) -> usize {
        self.walk.first.wrapping_add(i) as usize & (SAMPLE_FRAME_WORDS - 1)
    }
}

const _: () = {
    assert!(SAMPLE_HEADER_LEN == 48);
    assert!(core::mem::offset_of!(SampleHeader, time_ns) == 8);
    assert!(core::mem::offset_of!(SampleHeader, kernel_frames) == 28);
    assert!(core::mem::offset_of!(SampleHeader, comm) == 32);
    assert!(core::mem::offset_of!(SampleScratch, frames) == SAMPLE_HEADER_LEN);
    assert!(core::mem::offset_of!(SampleHeader, runtime_words) == 26);
    assert!(4 * MAX_FRAMES <= SAMPLE_FRAME_WORDS);
};
