//! Frames of language runtimes, which addresses do not tell apart: what the kernel programs copy for each, and what they
//! must know to do so. A runtime has a bit, offsets in [`RuntimeOffsets`] and a kind of [`Entry`]; what it copies in the
//! walk is in a file of its own.
//!
//! A record has its entries after its user addresses. They are part of every hash of the stack: interpreted functions have
//! the same return addresses, all of them.

mod entry;
mod fingerprint;
pub mod hotspot;
pub mod python;
pub mod v8;

pub use entry::{Entry, EntryKind, RUNTIME_WORDS};
pub use fingerprint::{AT_ONCE, CHAIN_FRAMES, CHAINS, Chain, ChainWalk, Fingerprint, InterpretedIn};

/// Bit of [`ProcessMappings::runtimes`](crate::mapping::ProcessMappings::runtimes): V8 runs in the process.
pub const V8: u32 = 1 << 0;
/// The same: CPython runs in it.
pub const PYTHON: u32 = 1 << 1;
/// The same: HotSpot runs in it.
pub const HOTSPOT: u32 = 1 << 2;

/// Most sets of offsets at once: one for each build of a runtime, and for each process with a HotSpot.
pub const MAX_RUNTIME_OFFSETS: usize = 256;

/// What the kernel programs must know of the runtimes in a process. All offsets are in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RuntimeOffsets {
    /// V8.
    pub v8: v8::V8Offsets,
    /// CPython.
    pub python: python::PythonOffsets,
    /// HotSpot.
    pub hotspot: hotspot::HotSpotOffsets,
}

const _: () = {
    assert!(2 * crate::MAX_FRAMES <= RUNTIME_WORDS);
    assert!(size_of::<RuntimeOffsets>() == 232);
    assert!(size_of::<Fingerprint>() == 104);
};

#[cfg(feature = "user")]
// SAFETY: repr(C), integers without padding, every bit pattern is valid.
unsafe impl aya::Pod for RuntimeOffsets {}

#[cfg(test)]
mod tests {
    extern crate std;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn entries_come_back(frame in 0u8..127, kind: u8, value in 0u64..1 << 48, payload: u64) {
            let entry = Entry { frame, kind, value, payload };
            prop_assert_eq!(Entry::decode(entry.encode()), entry);
        }
    }
}
