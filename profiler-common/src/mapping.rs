//! Where a process has mapped which file's unwind table: what the kernel programs search before the table itself.

use crate::{
    runtime::{Fingerprint, hotspot::FrameWords},
    unwind::Registers,
};

/// Most mappings of all processes together.
pub const MAX_MAPPINGS: usize = 65_536;

/// Most mappings of one process: what the search's fixed number of steps can tell apart.
pub const MAX_PROCESS_MAPPINGS: u32 = 1 << SEARCH_STEPS;

/// Steps of the search for an address among a process's mappings.
pub const SEARCH_STEPS: u32 = 12;

/// Most tables at once.
pub const MAX_TABLES: usize = 4096;

/// Counters of the map `GENERATIONS`: what userspace has changed in `PROCESSES`, and what the kernel programs have. Each
/// side has one of its own, so that neither can undo what the other counts.
pub const GENERATIONS: u32 = 2;
/// Index of userspace's counter.
pub const USER_GENERATION: u32 = 0;
/// Index of that of the kernel programs.
pub const KERNEL_GENERATION: u32 = 1;

/// An executable mapping with an unwind table. A process's mappings lie side by side, sorted by address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// Added (wrapping) to an address gives the offset in the table's code, a multiple of the bucket size away
    /// from the virtual address.
    pub to_table: u64,
    /// Index of the table in `TABLES`.
    pub table: u32,
    /// Buckets of the table.
    pub buckets: u32,
    /// Pages of the table before the first row page.
    pub bucket_pages: u32,
    /// Nothing.
    pub _reserved: u32,
}

/// A process's entry in `PROCESSES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessMappings {
    /// Index of its first mapping in `MAPPINGS`.
    pub first: u32,
    /// Number of its mappings.
    pub count: u32,
    /// Language runtimes in it, bits of [`crate::runtime`]. Zero costs nothing.
    pub runtimes: u32,
    /// Index of their offsets in `RUNTIMES`.
    pub offsets: u32,
    /// Of this state of its mappings: no other state, of any process, has the same, but that of a child which has its parent's.
    pub epoch: u32,
}

/// Where a walk up a stack stands.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walk {
    /// Registers of the current frame.
    pub registers: Registers,
    /// The mapping that the last instruction was found in; all zero if in none.
    pub mapping: Mapping,
    /// The process.
    pub process: ProcessMappings,
    /// Whose mappings those are, and whether it has any: the next walk may be of the same process.
    pub pid: u32,
    /// Not zero if it has.
    pub has_mappings: u32,
    /// Values of `GENERATIONS` when they were looked up: they are good for as long as these stay.
    pub generations: [u64; GENERATIONS as usize],
    /// Where in the record the stack's first frame goes: not on the stack of the program, which has no room left.
    pub first: u64,
    /// Not zero if the last frame was in a mapping with a table.
    pub was_mapped: u64,
    /// 1 if the instruction pointer is that of an instruction, 0 if it is a return address.
    pub exact: u64,
    /// What the last step found of a runtime's frame: words of an [`Entry`](crate::runtime::Entry); zero if nothing.
    pub entry: [u64; 2],
    /// How many words of entries have been kept so far.
    pub words: u64,
    /// Of the frames so far that addresses do not tell.
    pub fingerprint: Fingerprint,
    /// An interpreted frame of HotSpot, as it is read: the stack has no room for it.
    pub frame: FrameWords,
}

const _: () = {
    assert!(size_of::<Mapping>() == 40);
    assert!(size_of::<ProcessMappings>() == 20);
};

#[cfg(feature = "user")]
// SAFETY: repr(C), no padding, every bit pattern is valid.
unsafe impl aya::Pod for Mapping {}
#[cfg(feature = "user")]
// SAFETY: repr(C), no padding, every bit pattern is valid.
unsafe impl aya::Pod for ProcessMappings {}
