//! Reading another program's memory. It changes while it is read, so nothing in it is believed: every read can fail, and
//! every value is checked where it is used.

use crate::process::memory::ProcessMemory;

/// The most that is read at once, bytes.
const LARGEST_READ: usize = 64 * 1024 * 1024;

/// Memory that belongs to somebody else: a process's, or a fake in tests.
pub trait ForeignMemory {
    /// Fills `into` with the bytes from `address` on; `None` if not all of them can be read.
    fn read(&self, address: u64, into: &mut [u8]) -> Option<()>;

    /// Whether there is nothing to be read any more: the program has ended, or is another now.
    fn has_ended(&self) -> bool;

    /// `N` words in the machine's order.
    fn words<const N: usize>(&self, address: u64) -> Option<[u64; N]> {
        let mut bytes = [[0u8; 8]; N];
        self.read(address, bytes.as_flattened_mut())?;
        Some(bytes.map(u64::from_ne_bytes))
    }

    /// A word.
    fn u64(&self, address: u64) -> Option<u64> {
        self.words::<1>(address).map(|[word]| word)
    }

    /// Four bytes.
    fn u32(&self, address: u64) -> Option<u32> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes)?;
        Some(u32::from_ne_bytes(bytes))
    }

    /// Two bytes.
    fn u16(&self, address: u64) -> Option<u16> {
        let mut bytes = [0; 2];
        self.read(address, &mut bytes)?;
        Some(u16::from_ne_bytes(bytes))
    }

    /// `len` bytes, unless that is unreasonably many.
    fn bytes(&self, address: u64, len: usize) -> Option<Vec<u8>> {
        if len > LARGEST_READ {
            return None;
        }
        let mut bytes = vec![0; len];
        self.read(address, &mut bytes)?;
        Some(bytes)
    }
}

impl ForeignMemory for ProcessMemory {
    fn read(&self, address: u64, into: &mut [u8]) -> Option<()> {
        self.read_exact(address, into)
    }

    fn has_ended(&self) -> bool {
        ProcessMemory::has_ended(self)
    }
}

/// Names are asked for in rounds, between which the program runs on: what was read before has to be checked once in each.
/// When the program has ended, what was read last is the truth about its last moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    number: u64,
    ended: bool,
}

impl Round {
    /// Begins the next round.
    pub fn next(&mut self, memory: &impl ForeignMemory) {
        self.ended = memory.has_ended();
        self.number += 1;
    }

    /// Whether what was checked in another round still counts.
    pub fn covers(self, checked: Round) -> bool {
        self.ended || checked.number == self.number
    }
}

#[cfg(test)]
pub mod fake {
    //! Memory made by hand.

    use std::collections::BTreeMap;

    use super::ForeignMemory;

    /// Bytes at some addresses; nothing elsewhere, and none left once it has ended.
    #[derive(Clone, Debug, Default)]
    pub struct FakeMemory {
        bytes: BTreeMap<u64, u8>,
        /// Whether the program has ended.
        pub ended: bool,
    }

    impl FakeMemory {
        /// Puts bytes somewhere.
        pub fn put(&mut self, address: u64, bytes: &[u8]) {
            self.bytes.extend((address..).zip(bytes.iter().copied()));
        }

        /// Puts words somewhere.
        pub fn put_words(&mut self, address: u64, words: &[u64]) {
            for (index, word) in words.iter().enumerate() {
                self.put(address + 8 * index as u64, &word.to_ne_bytes());
            }
        }
    }

    impl ForeignMemory for FakeMemory {
        fn has_ended(&self) -> bool {
            self.ended
        }

        fn read(&self, address: u64, into: &mut [u8]) -> Option<()> {
            if self.ended {
                return None;
            }
            for (offset, byte) in into.iter_mut().enumerate() {
                *byte = *self.bytes.get(&address.checked_add(offset as u64)?)?;
            }
            Some(())
        }
    }

    /// Memory in which every word is some function of its address: for tests that nothing in it does harm.
    #[derive(Clone, Copy, Debug)]
    pub struct Noise(pub u64);

    impl ForeignMemory for Noise {
        fn has_ended(&self) -> bool {
            self.0 & 0x3f == 0
        }

        fn read(&self, address: u64, into: &mut [u8]) -> Option<()> {
            for (offset, chunk) in into.chunks_mut(8).enumerate() {
                let at = address.wrapping_add(8 * offset as u64);
                let word = (at ^ self.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                // Mostly what looks like a small number or a pointer to the heap: others are refused at once.
                let word = match word >> 62 {
                    0 => (word >> 32 & 0xff) << 32,
                    1 => word >> 20 & !3 | 1,
                    2 => word & 0xffff,
                    _ => word,
                };
                let bytes = word.to_ne_bytes();
                chunk.copy_from_slice(bytes.get(..chunk.len())?);
            }
            (self.0 & 7 != 0 || address & 0x30 != 0).then_some(())
        }
    }
}
