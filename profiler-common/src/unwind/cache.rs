//! Rules by address, and the stack read a piece at a time: what makes most steps of a walk cheap. To search a table touches
//! some ten lines of memory and to read two words of the stack costs 80 ns; a cached rule is one line, and 1 KiB of stack
//! costs hardly more than two words.
//!
//! Only the usual rules are cached, and only x86_64 has them: the caller's stack begins at a register and an offset, the
//! return address lies right below, and the frame pointer is kept or saved nearby.

use super::{CfaKind, FpKind, RaKind, Registers, Rule};

/// Words of stack that are read at once.
pub const WINDOW_WORDS: usize = 128;
/// The same in bytes.
pub const WINDOW_BYTES: u64 = WINDOW_WORDS as u64 * 8;
/// Entries of the cache.
pub const CACHED_RULES: u32 = 16_384;

/// A piece of a stack that has been read.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Its address, a multiple of 8.
    pub start: u64,
    /// How many bytes of it are there.
    pub bytes: u64,
    /// What is there.
    pub words: [u64; WINDOW_WORDS],
}

impl Default for Window {
    fn default() -> Window {
        Window { start: 0, bytes: 0, words: [0; WINDOW_WORDS] }
    }
}

/// The rule of one address for as long as the mappings of its process stay. Entries are written without a lock, by programs that
/// interrupt each other: `tag` is made of `word`, so that halves of two entries fit no address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CachedRule {
    tag: u64,
    word: u64,
}

/// The CFA is counted from the frame pointer.
const FROM_FP: u64 = 1;
/// The frame pointer is saved.
const SAVES_FP: u64 = 2;
/// There is no caller.
const ENDS: u64 = 4;
/// Where the words between the CFA and the saved frame pointer are, 8 bits.
const FP_SHIFT: u32 = 8;
/// Where the words between the register and the CFA are, 16 bits.
const CFA_SHIFT: u32 = 16;
/// Where the epoch is.
const EPOCH_SHIFT: u32 = 32;
/// An odd number without pattern: 2^64 over the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

impl CachedRule {
    /// What to remember of `rule`, which is that of `address` in mappings of `epoch`; `None` if it is not of the usual kind.
    #[inline(always)]
    pub fn new(rule: &Rule, address: u64, epoch: u32) -> Option<CachedRule> {
        let word = if rule.cfa_kind == CfaKind::End as u8 {
            ENDS
        } else {
            let from_fp = rule.cfa_kind == CfaKind::FpOffset as u8;
            let saves_fp = rule.fp_kind == FpKind::AtCfa as u8;
            let cfa_words = (rule.cfa_offset >> 3) as u32;
            let fp_words = if saves_fp { (rule.fp_offset.wrapping_neg() >> 3) as u32 } else { 1 };
            let usual = (from_fp || rule.cfa_kind == CfaKind::SpOffset as u8)
                && (saves_fp || rule.fp_kind == FpKind::Same as u8)
                && rule.ra_kind == RaKind::AtCfa as u8
                && rule.ra_offset == -8
                && rule.flags == 0
                && (rule.cfa_offset | (rule.fp_offset & -i32::from(saves_fp))) & 7 == 0
                && cfa_words < 1 << 16
                && fp_words != 0
                && fp_words < 1 << 8;
            if !usual {
                return None;
            }
            u64::from(cfa_words) << CFA_SHIFT
                | u64::from(fp_words) << FP_SHIFT
                | if saves_fp { SAVES_FP } else { 0 }
                | if from_fp { FROM_FP } else { 0 }
        };
        let word = word | u64::from(epoch) << EPOCH_SHIFT;
        Some(CachedRule { tag: address ^ word.wrapping_mul(SPREAD), word })
    }

    /// Where in the cache an address is.
    #[inline(always)]
    pub fn slot(address: u64) -> u32 {
        (address.wrapping_mul(SPREAD) >> 40) as u32 & (CACHED_RULES - 1)
    }

    /// Whether this is the rule of `address` in mappings of `epoch`.
    #[inline(always)]
    pub fn is_of(&self, address: u64, epoch: u32) -> bool {
        self.tag == address ^ self.word.wrapping_mul(SPREAD) && self.word >> EPOCH_SHIFT == u64::from(epoch)
    }

    /// Whether a frame with this rule has no caller.
    #[inline(always)]
    pub fn ends(&self) -> bool {
        self.word & ENDS != 0
    }

    /// Where the caller's registers are, for a frame with these.
    #[inline(always)]
    pub fn places(&self, registers: &Registers) -> Places {
        let Registers { sp, fp, .. } = *registers;
        // Without branches on data, for the verifier: a mask chooses.
        let base = sp.wrapping_add(fp.wrapping_sub(sp) & (self.word & FROM_FP).wrapping_neg());
        let cfa = base.wrapping_add((self.word >> CFA_SHIFT & 0xffff) << 3);
        Places { cfa, fp: cfa.wrapping_sub((self.word >> FP_SHIFT & 0xff) << 3) }
    }

    /// Steps from a frame to its caller, if the window has the places; returns whether it did. What [`step`](super::step) would
    /// do otherwise than go on is not done, and leaves the registers as they are.
    #[inline(always)]
    pub fn step(&self, registers: &mut Registers, places: &Places, window: &Window) -> bool {
        let Places { cfa, fp: saved_at } = *places;
        if !window.has(places) {
            return false;
        }
        let (saved_fp, return_address) = (window.word(saved_at), window.word(cfa.wrapping_sub(8)));
        if return_address == 0 || cfa <= registers.sp || cfa & 7 != 0 {
            return false;
        }
        let saves = ((self.word / SAVES_FP) & 1).wrapping_neg();
        registers.fp = registers.fp.wrapping_add(saved_fp.wrapping_sub(registers.fp) & saves);
        registers.ip = return_address;
        registers.sp = cfa;
        registers.lr = return_address;
        true
    }
}

/// Where a frame keeps what its caller's registers were.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// The stack pointer before the call; right below is the return address.
    cfa: u64,
    /// Address of the saved frame pointer; of the return address, where it is kept.
    fp: u64,
}

impl Places {
    /// The lowest address of what is to be read.
    #[inline(always)]
    pub fn lowest(&self) -> u64 {
        self.fp
    }
}

impl Window {
    /// Whether all of them is there.
    #[inline(always)]
    pub fn has(&self, places: &Places) -> bool {
        places.fp.wrapping_sub(self.start) < self.bytes
            && places.cfa.wrapping_sub(8).wrapping_sub(self.start) < self.bytes
    }

    /// The word at an address that is there.
    #[inline(always)]
    fn word(&self, address: u64) -> u64 {
        self.words[(address.wrapping_sub(self.start) >> 3) as usize & (WINDOW_WORDS - 1)]
    }

    /// Reads the stack from `address` on with `read`, which is told where and how many bytes, as far as that can be read; returns
    /// whether anything could.
    #[inline(always)]
    pub fn fill(&mut self, address: u64, read: impl Fn(u64, &mut [u64; WINDOW_WORDS], u64) -> bool) -> bool {
        const PAGE_BYTES: u64 = 4096;
        let start = address & !7;
        self.start = start;
        self.bytes = WINDOW_BYTES;
        if read(start, &mut self.words, WINDOW_BYTES) {
            return true;
        }
        // To the end of the page, behind which there may be nothing.
        let rest = PAGE_BYTES - (start & (PAGE_BYTES - 1));
        let some = rest < WINDOW_BYTES && read(start, &mut self.words, rest);
        self.bytes = if some { rest } else { 0 };
        some
    }
}

#[cfg(test)]
mod tests;
