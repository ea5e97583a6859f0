//! Frames of language runtimes, which addresses do not tell apart: what the kernel programs copy for each, and what they
//! must know to do so. A runtime has a bit, offsets in [`RuntimeOffsets`] and a kind of [`Entry`]; what it copies in the
//! walk is in a file of its own.
//!
//! A record has its entries after its user addresses. They are part of every hash of the stack: interpreted functions have
//! the same return addresses, all of them.

pub mod python;
pub mod v8;

/// Bit of [`ProcessMappings::runtimes`](crate::mapping::ProcessMappings::runtimes): V8 runs in the process.
pub const V8: u32 = 1 << 0;
/// The same: CPython runs in it.
pub const PYTHON: u32 = 1 << 1;

/// Most sets of offsets at once: one for each build of a runtime.
pub const MAX_RUNTIME_OFFSETS: usize = 64;

/// Words of a record's entries; a power of two, so that the kernel programs can bound an index with a mask.
pub const RUNTIME_WORDS: usize = 256;

/// What the kernel programs must know of the runtimes in a process. All offsets are in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RuntimeOffsets {
    /// V8.
    pub v8: v8::V8Offsets,
    /// CPython.
    pub python: python::PythonOffsets,
}

/// What a frame of a runtime is told by: two words in a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Which of the record's user addresses it belongs to.
    pub frame: u8,
    /// An [`EntryKind`].
    pub kind: u8,
    /// An address in the process, 48 bits.
    pub value: u64,
    /// What the kind says.
    pub payload: u64,
}

/// Kinds of entries.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A JavaScript frame: its SharedFunctionInfo, and [`v8::payload`].
    V8 = 1,
    /// A Python frame, of no address: its code object, and a [`python::Payload`].
    Python = 2,
}

const VALUE_BITS: u32 = 48;

impl Entry {
    /// The two words.
    #[inline(always)]
    pub fn encode(&self) -> [u64; 2] {
        let value = self.value & ((1 << VALUE_BITS) - 1);
        [u64::from(self.frame) << 56 | u64::from(self.kind) << VALUE_BITS | value, self.payload]
    }

    /// The reverse of [`encode`](Self::encode).
    pub fn decode([word, payload]: [u64; 2]) -> Entry {
        Entry {
            frame: (word >> 56) as u8,
            kind: (word >> VALUE_BITS) as u8,
            value: word & ((1 << VALUE_BITS) - 1),
            payload,
        }
    }
}

/// Tells stacks apart that have the same addresses: a hash over the frames whose function is not told by an address, and
/// where they are. They form chains, each frame's caller the next by its frame pointer. All zero where there are none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    /// Hash of what tells their functions.
    pub hash: u64,
    /// Frame pointer of the next frame, should it belong to the last chain.
    pub next: u64,
    /// Chains; more than [`CHAINS`] if there was no room for all of them, and the stack cannot be compared.
    pub count: u64,
    /// Where they are. The last is never used.
    pub chains: [Chain; CHAINS as usize + 1],
    /// Hash of all frames of CPython, which lie elsewhere; zero if there are none.
    pub python: u64,
    /// Where its offsets are.
    pub offsets: u64,
}

/// Frames that follow on each other.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Frame pointer of the innermost.
    pub first: u64,
    /// How many, [`CHAIN_FRAMES`] at most.
    pub frames: u64,
}

/// Most chains of a stack: say, an asynchronous function, what runs those, and a callback.
pub const CHAINS: u64 = 3;

/// Most frames of a chain.
pub const CHAIN_FRAMES: u64 = 64;

impl Fingerprint {
    /// Whether there was no room for all of it: then it cannot tell whether two stacks are the same.
    #[inline(always)]
    pub fn is_partial(&self) -> bool {
        self.count > CHAINS
    }
}

const _: () = {
    assert!(2 * crate::MAX_FRAMES <= RUNTIME_WORDS);
    assert!(size_of::<RuntimeOffsets>() == 48);
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
