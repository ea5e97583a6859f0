//! On-CPU samples: the record that the CPU sampler sends for each sample it takes.

use crate::{COMM_LEN, MAX_FRAMES, mapping::Walk, runtime::RUNTIME_WORDS};

/// First word of a [`SampleHeader`]: tells this record from those of other probes in the same ring buffer.
pub const KIND_CPU_SAMPLE: u32 = 1;

/// The same of a page fault, which stands for as many as the sampling period says.
pub const KIND_FAULT_SAMPLE: u32 = 8;

/// The kernel stack could not be read.
pub const FLAG_KERNEL_STACK_FAILED: u32 = 1 << 0;
/// The user stack could not be read (kernel threads have none: that is no failure).
pub const FLAG_USER_STACK_FAILED: u32 = 1 << 1;
/// The kernel stack has more than [`MAX_FRAMES`] frames; the outermost are missing.
pub const FLAG_KERNEL_STACK_TRUNCATED: u32 = 1 << 2;
/// The user stack has more than [`MAX_FRAMES`] frames; the outermost are missing.
pub const FLAG_USER_STACK_TRUNCATED: u32 = 1 << 3;

/// Lowest bit of the byte of `flags` that says how the user stack ends: zero where frame pointers were followed,
/// which cannot tell; [`END_COMPLETE`]; or [`END_STOPPED`] plus a [`StopReason`](crate::unwind::StopReason).
pub const FLAG_USER_END_SHIFT: u32 = 8;
/// The user stack reaches the start of its thread.
pub const END_COMPLETE: u32 = 1;
/// The user stack could not be followed further.
pub const END_STOPPED: u32 = 2;

/// Start of a sample record; `kernel_frames` then `user_frames` addresses (`u64`, innermost first) follow, then
/// `runtime_words` of [`Entry`](crate::runtime::Entry)s.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SampleHeader {
    /// [`KIND_CPU_SAMPLE`].
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
    /// Not sent: where the walk up the user stack stands.
    pub walk: Walk,
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
