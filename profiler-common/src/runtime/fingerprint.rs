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
    pub frames: u32,
    /// Whose they are, an [`InterpretedIn`].
    pub kind: u32,
}

/// Where the way along a chain, or along the frames of CPython, stands.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChainWalk {
    /// The next frame: its frame pointer, or where it is; zero if there is none.
    pub at: u64,
    /// How many are left, of a chain.
    pub left: u64,
    /// Hash of those that were.
    pub hash: u64,
}

/// Whose frames a chain has: where their words are.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterpretedIn {
    /// V8's.
    V8 = 0,
    /// HotSpot's.
    HotSpot = 1,
}

/// Most chains of a stack: say, an asynchronous function, what runs those, and a callback.
pub const CHAINS: u64 = 3;

/// Most frames of a chain.
pub const CHAIN_FRAMES: u32 = 64;

/// Frames that those kernel functions go along in one call which go along many. The verifier checks a loop anew for each round: of
/// a function with few rounds, called again and again, it checks few.
pub const AT_ONCE: u32 = 8;

impl Fingerprint {
    /// Whether there was no room for all of it: then it cannot tell whether two stacks are the same.
    #[inline(always)]
    pub fn is_partial(&self) -> bool {
        self.count > CHAINS
    }

    /// Adds a frame at `fp`, whose caller's frame pointer is `next`. `step` is a step of the hash.
    #[inline(always)]
    pub fn add(&mut self, kind: InterpretedIn, fp: u64, next: u64, step: impl FnOnce(u64) -> u64) {
        if self.is_partial() {
            return;
        }
        let last = self.chains[self.count.wrapping_sub(1) as usize & CHAINS as usize];
        if self.count == 0 || self.next != fp || last.kind != kind as u32 {
            let chain = Chain { first: fp, frames: 0, kind: kind as u32 };
            self.chains[self.count as usize & CHAINS as usize] = chain;
            self.count += 1;
        }
        let chain = &mut self.chains[self.count.wrapping_sub(1) as usize & CHAINS as usize];
        chain.frames += 1;
        if chain.frames > CHAIN_FRAMES {
            self.count = CHAINS + 1;
        }
        self.hash = step(self.hash);
        self.next = next;
    }

    /// Whether all of its frames are of one kind.
    #[inline(always)]
    pub fn is_only(&self, kind: InterpretedIn) -> bool {
        let mut other = 0;
        for (i, chain) in self.chains.iter().enumerate() {
            other |= u32::from((i as u64) < self.count && chain.kind != kind as u32);
        }
        other == 0
    }
}
