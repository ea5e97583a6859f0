//! What keeps stacks with the same addresses apart.

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
