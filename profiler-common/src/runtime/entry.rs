//! What a record says of a frame of a runtime.

/// Words of a record's entries; a power of two, so that the kernel programs can bound an index with a mask.
pub const RUNTIME_WORDS: usize = 256;

/// What a frame of a runtime is known by: two words in a record.
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
    /// A JavaScript frame: its SharedFunctionInfo, and [`v8::payload`](super::v8::payload).
    V8 = 1,
    /// A Python frame, of no address: its code object, and a [`python::Payload`](super::python::Payload).
    Python = 2,
    /// An interpreted Java frame: its method, and where in the bytecode it is (an address; zero in native methods).
    HotSpot = 3,
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
