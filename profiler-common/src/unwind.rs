//! Unwinding user stacks by tables made from `.eh_frame`: the tables' layout, the search in them, and one step
//! from a frame to its caller. The kernel programs and the tests on the host run this very code, so it allocates
//! nothing, cannot panic, does not recurse, and bounds every index with a mask the BPF verifier can follow.
//!
//! A table belongs to one ELF file. Its code, from `base` on, is divided into buckets of 256 bytes, and the table
//! is a list of 4096-byte pages: first one word for each bucket (where its rows are and how many), then the rows.
//! A row is the offset in its bucket from which it applies, and the id of a [`Rule`]. All files share the rules.

/// Logarithm of the code bytes in a bucket.
pub const BUCKET_SHIFT: u32 = 8;
/// Code bytes in a bucket.
pub const BUCKET_BYTES: u64 = 1 << BUCKET_SHIFT;
/// Words in a page.
pub const PAGE_WORDS: usize = 512;
/// Buckets described in a bucket page.
pub const BUCKETS_PER_PAGE: u32 = 512;
/// Rows in a row page.
pub const ROWS_PER_PAGE: u32 = 1024;
/// Most rows a bucket can have: one for each byte.
pub const MAX_BUCKET_ROWS: u32 = 256;
/// Most rules that all tables together can have.
pub const MAX_RULES: u32 = 65_536;

/// One page of a table: 512 buckets, or 1024 rows (two in a word, the first in the low half).
pub type Page = [u64; PAGE_WORDS];

/// Rule of code that has no unwind information.
pub const RULE_NO_INFO: u32 = 0;
/// Rule of a frame that has no caller, e.g. `_start` or the first function of a thread.
pub const RULE_END: u32 = 1;
/// Rule of code whose unwind information no [`Rule`] can express.
pub const RULE_UNSUPPORTED: u32 = 2;

/// How the canonical frame address (CFA: the stack pointer before the call) is found.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CfaKind {
    /// Not at all: no unwind information. Zero, so that a zeroed rule says so.
    NoInfo = 0,
    /// There is no caller.
    End = 1,
    /// By something that a rule cannot express.
    Unsupported = 2,
    /// sp + offset.
    SpOffset = 3,
    /// fp + offset.
    FpOffset = 4,
    /// *(sp + offset) + addend.
    DerefSp = 5,
    /// *(fp + offset) + addend: GCC's realigned stacks.
    DerefFp = 6,
    /// x86_64 procedure linkage tables: sp + 8, and 8 more once (ip & 15) reached the offset.
    Plt = 7,
}

/// How the caller's frame pointer is found.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FpKind {
    /// It is still in its register.
    Same = 0,
    /// Saved at CFA + offset.
    AtCfa = 1,
    /// Saved at sp + offset: signal frames.
    AtSp = 2,
    /// Saved at fp + offset.
    AtFp = 3,
    /// Lost.
    Undefined = 4,
}

/// How the return address is found.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RaKind {
    /// Saved at CFA + offset.
    AtCfa = 0,
    /// Saved at sp + offset: signal frames.
    AtSp = 1,
    /// Saved at fp + offset.
    AtFp = 2,
    /// Still in the link register.
    Register = 3,
}

/// How to get from a frame to its caller, at some instructions of some functions.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rule {
    /// A [`CfaKind`].
    pub cfa_kind: u8,
    /// A [`FpKind`].
    pub fp_kind: u8,
    /// A [`RaKind`].
    pub ra_kind: u8,
    /// [`Rule::SIGNAL_FRAME`], and from [`Rule::ADDEND_SHIFT`] on the words that [`CfaKind::DerefSp`] and
    /// [`CfaKind::DerefFp`] add to what they read.
    pub flags: u8,
    /// Offset of `cfa_kind`.
    pub cfa_offset: i32,
    /// Offset of `fp_kind`.
    pub fp_offset: i32,
    /// Offset of `ra_kind`.
    pub ra_offset: i32,
}

const _: () = {
    assert!(size_of::<Rule>() == 16);
    assert!(align_of::<Rule>() == 4);
    assert!(core::mem::offset_of!(Rule, flags) == 3);
    assert!(core::mem::offset_of!(Rule, cfa_offset) == 4);
    assert!(core::mem::offset_of!(Rule, fp_offset) == 8);
    assert!(core::mem::offset_of!(Rule, ra_offset) == 12);
    assert!(size_of::<Page>() == 4096);
    assert!(size_of::<Registers>() == 32);
};

impl Rule {
    /// Flag: the frame was made by the kernel to run a signal handler. The caller's address is the interrupted
    /// instruction itself, not one after a call.
    pub const SIGNAL_FRAME: u8 = 1;
    /// First bit of the addend in `flags`.
    pub const ADDEND_SHIFT: u32 = 4;
    /// No unwind information.
    pub const NO_INFO: Rule = Rule::without_caller(CfaKind::NoInfo);
    /// No caller.
    pub const END: Rule = Rule::without_caller(CfaKind::End);
    /// Not expressible.
    pub const UNSUPPORTED: Rule = Rule::without_caller(CfaKind::Unsupported);

    const fn without_caller(kind: CfaKind) -> Rule {
        Rule {
            cfa_kind: kind as u8,
            fp_kind: 0,
            ra_kind: 0,
            flags: 0,
            cfa_offset: 0,
            fp_offset: 0,
            ra_offset: 0,
        }
    }

    /// Whether the caller's address is that of the next instruction to run there (a signal interrupted it), and
    /// not one after a call: only then is it looked up as it is, not less one.
    #[inline(always)]
    pub fn caller_is_exact(&self) -> bool {
        self.flags & Self::SIGNAL_FRAME != 0
    }

    /// Bytes that the `Deref*` kinds add to the word they read.
    #[inline(always)]
    fn addend(&self) -> u64 {
        u64::from(self.flags >> Self::ADDEND_SHIFT) << 3
    }
}

/// The registers that unwinding follows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// Instruction pointer.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer: rbp, x29.
    pub fp: u64,
    /// Link register x30; not used on x86_64.
    pub lr: u64,
}

/// The memory of the process whose stack is unwound.
pub trait Memory {
    /// The word at `address`; `None` if it cannot be read.
    fn read_u64(&self, address: u64) -> Option<u64>;

    /// Two words. The kernel reads them at once.
    #[inline(always)]
    fn read_pair(&self, address: u64) -> Option<[u64; 2]> {
        let first = self.read_u64(address)?;
        Some([first, self.read_u64(address.wrapping_add(8))?])
    }
}

/// What differs between the processors.
pub trait Arch {
    /// Bits of a return address that are address. The others hold its signature (pointer authentication).
    const ADDRESS_MASK: u64;
    /// Whether a call leaves the return address in a register.
    const LINK_REGISTER: bool;
}

/// x86_64.
#[derive(Clone, Copy, Debug)]
pub enum X86_64 {}

impl Arch for X86_64 {
    const ADDRESS_MASK: u64 = u64::MAX;
    const LINK_REGISTER: bool = false;
}

/// aarch64.
#[derive(Clone, Copy, Debug)]
pub enum Aarch64 {}

impl Arch for Aarch64 {
    const ADDRESS_MASK: u64 = (1 << 48) - 1;
    const LINK_REGISTER: bool = true;
}

/// Why a stack could not be followed further.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The instruction is in no file that has a table.
    NoTable = 0,
    /// The table has nothing for the instruction.
    NoRow = 1,
    /// The unwind information is of a kind not supported.
    Unsupported = 2,
    /// Stack memory could not be read.
    Unreadable = 3,
    /// The caller's frame would not be further up the stack, or the frame pointer is not one.
    NoProgress = 4,
    /// More frames than are kept. Only callers of [`step`] can tell.
    TooDeep = 5,
}

impl StopReason {
    /// Number of reasons.
    pub const COUNT: usize = 6;
}

/// Outcome of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The registers are the caller's now.
    Continue,
    /// The frame was the outermost: the stack is complete.
    End,
    /// The stack goes on, but not for us.
    Stop(StopReason),
}

/// Bucket of an address. One below `base` gives a bucket past the end of any table.
#[inline(always)]
pub fn bucket_of(vaddr: u64, base: u64) -> u64 {
    vaddr.wrapping_sub(base) >> BUCKET_SHIFT
}

/// Offset of an address in its bucket. Tables begin at a multiple of the bucket's size.
#[inline(always)]
pub fn bucket_offset(vaddr: u64) -> u8 {
    vaddr as u8
}

/// Where a bucket's word is: `(page of the table, word in the page)`.
#[inline(always)]
pub fn bucket_page(bucket: u32) -> (u32, u32) {
    (bucket / BUCKETS_PER_PAGE, bucket % BUCKETS_PER_PAGE)
}

/// A bucket's word: its first row, counted from the first row page on, and the number of its rows.
#[inline(always)]
pub fn encode_bucket(lo: u32, count: u32) -> u64 {
    u64::from(lo) | u64::from(count & 0xffff) << 32
}

/// The reverse of [`encode_bucket`].
#[inline(always)]
pub fn decode_bucket(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32 & 0xffff)
}

/// Where a row is: `(page counted from the first row page on, row in the page)`.
#[inline(always)]
pub fn row_page(lo: u32) -> (u32, u32) {
    (lo / ROWS_PER_PAGE, lo % ROWS_PER_PAGE)
}

/// A row: where it begins to apply in its bucket, and its rule.
#[inline(always)]
pub fn encode_row(offset: u8, rule_id: u32) -> u32 {
    u32::from(offset) | rule_id << 8
}

/// The reverse of [`encode_row`].
#[inline(always)]
pub fn decode_row(row: u32) -> (u8, u32) {
    (row as u8, row >> 8)
}

/// A page's row. The index wraps around.
#[inline(always)]
pub fn row_at(page: &Page, index: u32) -> u32 {
    let index = index & (ROWS_PER_PAGE - 1);
    // The mask is repeated where the compiler, and the verifier after it, needs it to see the bound.
    (page[(index >> 1) as usize & (PAGE_WORDS - 1)] >> ((index & 1) << 5)) as u32
}

/// Id of the rule in force at `offset` in a bucket whose `count` rows begin at `slot` of `page`.
///
/// Takes eight steps whatever the data, without a branch on them: a verifier that follows both sides of every
/// branch would otherwise have 256 ways through to check.
#[inline(always)]
pub fn search_rows(page: &Page, slot: u32, count: u32, offset: u8) -> u32 {
    let wanted = u64::from(offset);
    let count = u64::from(count);
    let mut position = 0u64;
    let mut bit = MAX_BUCKET_ROWS >> 1;
    while bit != 0 {
        let candidate = position + u64::from(bit);
        let row = row_at(page, slot.wrapping_add(candidate as u32));
        // The last row that begins at or before the offset: the first always does.
        let take = is_less(candidate, count) & (is_less(wanted, u64::from(row as u8)) ^ 1);
        position += take * u64::from(bit);
        bit >>= 1;
    }
    row_at(page, slot.wrapping_add(position as u32)) >> 8
}

/// 1 if `a < b`, else 0, for values below 2^32: the borrow of the subtraction. A comparison would be a branch,
/// BPF has no other kind.
#[inline(always)]
fn is_less(a: u64, b: u64) -> u64 {
    (a.wrapping_sub(b) >> 32) & 1
}

/// Steps from a frame to its caller by a rule. On anything but [`Step::Continue`] the registers are unchanged.
#[inline(always)]
pub fn step<A: Arch, M: Memory>(registers: &mut Registers, rule: &Rule, memory: &M) -> Step {
    let Registers { ip, sp, fp, lr } = *registers;
    let kind = rule.cfa_kind;
    if kind < CfaKind::SpOffset as u8 {
        return match kind {
            0 => Step::Stop(StopReason::NoRow),
            1 => Step::End,
            _ => Step::Stop(StopReason::Unsupported),
        };
    }
    if kind > CfaKind::Plt as u8 {
        return Step::Stop(StopReason::Unsupported);
    }

    let offset = i64::from(rule.cfa_offset) as u64;
    let from_fp = kind == CfaKind::FpOffset as u8 || kind == CfaKind::DerefFp as u8;
    let mut cfa = (if from_fp { fp } else { sp }).wrapping_add(offset);
    if kind == CfaKind::Plt as u8 {
        let pushed = (is_less(ip & 15, offset & 0xffff_ffff) ^ 1) << 3;
        cfa = sp.wrapping_add(8).wrapping_add(pushed);
    } else if kind >= CfaKind::DerefSp as u8 {
        match memory.read_u64(cfa) {
            Some(value) => cfa = value.wrapping_add(rule.addend()),
            None => return Step::Stop(StopReason::Unreadable),
        }
    }

    let signal_frame = rule.caller_is_exact();
    let fp_offset = i64::from(rule.fp_offset) as u64;
    let ra_offset = i64::from(rule.ra_offset) as u64;
    let return_address;
    let mut caller_fp = fp;
    let mut caller_lr = None;
    if rule.fp_kind == FpKind::AtCfa as u8
        && rule.ra_kind == RaKind::AtCfa as u8
        && ra_offset == fp_offset.wrapping_add(8)
    {
        // By far the most frequent: both side by side.
        match memory.read_pair(cfa.wrapping_add(fp_offset)) {
            Some(pair) => [caller_fp, return_address] = pair,
            None => return Step::Stop(StopReason::Unreadable),
        }
    } else {
        if rule.ra_kind == RaKind::Register as u8 {
            if !A::LINK_REGISTER {
                return Step::Stop(StopReason::Unsupported);
            }
            return_address = lr;
        } else {
            let base = match rule.ra_kind {
                0 => cfa,
                1 => sp,
                2 => fp,
                _ => return Step::Stop(StopReason::Unsupported),
            };
            let address = base.wrapping_add(ra_offset);
            match memory.read_u64(address) {
                Some(value) => return_address = value,
                None => return Step::Stop(StopReason::Unreadable),
            }
            if A::LINK_REGISTER && signal_frame {
                // What was interrupted may not have saved its return address yet. The kernel stores the
                // registers in order: x30, sp, pc.
                caller_lr = memory.read_u64(address.wrapping_sub(16));
            }
        }
        if rule.fp_kind == FpKind::Undefined as u8 {
            caller_fp = 0;
        } else if rule.fp_kind != FpKind::Same as u8 {
            let base = match rule.fp_kind {
                1 => cfa,
                2 => sp,
                3 => fp,
                _ => return Step::Stop(StopReason::Unsupported),
            };
            match memory.read_u64(base.wrapping_add(fp_offset)) {
                Some(value) => caller_fp = value,
                None => return Step::Stop(StopReason::Unreadable),
            }
        }
    }

    let return_address = return_address & A::ADDRESS_MASK;
    if return_address == 0 {
        return Step::End;
    }
    // The stack grows down, so callers are above. Two exceptions: a signal handler may run on a stack of its own,
    // which may be anywhere; and a function that still has its return address in the link register may not have
    // used the stack at all. The latter can only be the innermost: further out the link register holds the
    // frame's own address.
    let progress = if signal_frame {
        cfa != sp
    } else if A::LINK_REGISTER && rule.ra_kind == RaKind::Register as u8 {
        cfa >= sp && return_address != ip
    } else {
        cfa > sp
    };
    if !progress {
        return Step::Stop(StopReason::NoProgress);
    }
    registers.ip = return_address;
    registers.sp = cfa;
    registers.fp = caller_fp;
    registers.lr = match caller_lr {
        Some(value) => value & A::ADDRESS_MASK,
        None => return_address,
    };
    Step::Continue
}

/// Steps from a frame to its caller by the frame pointer, for code without unwind information that keeps one
/// (compiled at run time, assembly). On anything but [`Step::Continue`] the registers are unchanged.
#[inline(always)]
pub fn step_frame_pointer<A: Arch, M: Memory>(registers: &mut Registers, memory: &M) -> Step {
    let fp = registers.fp;
    if fp & 7 != 0 || fp < registers.sp || fp == 0 {
        return Step::Stop(StopReason::NoProgress);
    }
    let Some([caller_fp, return_address]) = memory.read_pair(fp) else {
        return Step::Stop(StopReason::Unreadable);
    };
    let return_address = return_address & A::ADDRESS_MASK;
    if return_address == 0 {
        return Step::End;
    }
    // Zero marks the outermost frame that has a frame pointer.
    if caller_fp != 0 && caller_fp <= fp {
        return Step::Stop(StopReason::NoProgress);
    }
    registers.ip = return_address;
    registers.sp = fp.wrapping_add(16);
    registers.fp = caller_fp;
    registers.lr = return_address;
    Step::Continue
}

#[cfg(feature = "user")]
// SAFETY: repr(C), no padding, every bit pattern is valid.
unsafe impl aya::Pod for Rule {}
#[cfg(feature = "user")]
// SAFETY: repr(C), four u64, no padding, every bit pattern is valid.
unsafe impl aya::Pod for Registers {}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{collections::HashMap, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    struct Words(HashMap<u64, u64>);

    impl Memory for Words {
        fn read_u64(&self, address: u64) -> Option<u64> {
            self.0.get(&address).copied()
        }
    }

    fn words(pairs: &[(u64, u64)]) -> Words {
        Words(pairs.iter().copied().collect())
    }

    fn rule(cfa: (CfaKind, i32), fp: (FpKind, i32), ra: (RaKind, i32), flags: u8) -> Rule {
        Rule {
            cfa_kind: cfa.0 as u8,
            fp_kind: fp.0 as u8,
            ra_kind: ra.0 as u8,
            flags,
            cfa_offset: cfa.1,
            fp_offset: fp.1,
            ra_offset: ra.1,
        }
    }

    fn registers(ip: u64, sp: u64, fp: u64, lr: u64) -> Registers {
        Registers { ip, sp, fp, lr }
    }

    #[test]
    fn a_zeroed_rule_is_no_information() {
        assert_eq!(Rule::default(), Rule::NO_INFO);
        let mut at = registers(1, 2, 3, 4);
        let memory = words(&[]);
        for (rule, expected) in [
            (Rule::NO_INFO, Step::Stop(StopReason::NoRow)),
            (Rule::END, Step::End),
            (Rule::UNSUPPORTED, Step::Stop(StopReason::Unsupported)),
            (Rule { cfa_kind: 200, ..Rule::END }, Step::Stop(StopReason::Unsupported)),
        ] {
            assert_eq!(step::<X86_64, _>(&mut at, &rule, &memory), expected);
            assert_eq!(at, registers(1, 2, 3, 4));
        }
    }

    #[test]
    fn usual_frames_are_left() {
        let memory = words(&[(0x1010, 0x2000), (0x1018, 77)]);
        // push rbp; mov rbp, rsp
        let framed = rule((CfaKind::FpOffset, 16), (FpKind::AtCfa, -16), (RaKind::AtCfa, -8), 0);
        let mut at = registers(5, 0x1000, 0x1010, 0);
        assert_eq!(step::<X86_64, _>(&mut at, &framed, &memory), Step::Continue);
        assert_eq!(at, registers(77, 0x1020, 0x2000, 77));

        let frameless = rule((CfaKind::SpOffset, 32), (FpKind::Same, 0), (RaKind::AtCfa, -8), 0);
        let mut at = registers(5, 0x1000, 99, 0);
        assert_eq!(step::<X86_64, _>(&mut at, &frameless, &memory), Step::Continue);
        assert_eq!(at, registers(77, 0x1020, 99, 77));

        let lost = rule((CfaKind::SpOffset, 32), (FpKind::Undefined, 0), (RaKind::AtCfa, -8), 0);
        let mut at = registers(5, 0x1000, 99, 0);
        assert_eq!(step::<X86_64, _>(&mut at, &lost, &memory), Step::Continue);
        assert_eq!(at.fp, 0);

        let mut at = registers(5, 0x5000, 0x5000, 0);
        assert_eq!(step::<X86_64, _>(&mut at, &framed, &memory), Step::Stop(StopReason::Unreadable));
        let mut at = registers(5, 0x1020, 0x1010, 0);
        assert_eq!(step::<X86_64, _>(&mut at, &framed, &memory), Step::Stop(StopReason::NoProgress));
        assert_eq!(at, registers(5, 0x1020, 0x1010, 0));
    }

    #[test]
    fn realigned_stacks_and_addends_are_followed() {
        let memory = words(&[(0xff8, 0x1020), (0x1018, 77), (0x1000, 5)]);
        let drap = rule((CfaKind::DerefFp, -8), (FpKind::AtFp, 0), (RaKind::AtCfa, -8), 0);
        let mut at = registers(5, 0xf00, 0x1000, 0);
        assert_eq!(step::<X86_64, _>(&mut at, &drap, &memory), Step::Continue);
        assert_eq!(at, registers(77, 0x1020, 5, 77));

        let memory = words(&[(0xff8, 0x1018), (0x1018, 77)]);
        let addend = rule((CfaKind::DerefSp, 0xf8), (FpKind::Same, 0), (RaKind::AtCfa, -8), 1 << 4);
        let mut at = registers(5, 0xf00, 0x1000, 0);
        assert_eq!(step::<X86_64, _>(&mut at, &addend, &memory), Step::Continue);
        assert_eq!(at, registers(77, 0x1020, 0x1000, 77));
    }

    #[test]
    fn linkage_tables_push_a_word_half_way() {
        let memory = words(&[(0x1000, 1), (0x1008, 2)]);
        let plt = rule((CfaKind::Plt, 11), (FpKind::Same, 0), (RaKind::AtCfa, -8), 0);
        let mut at = registers(0x4000a, 0x1000, 0, 0);
        assert_eq!(step::<X86_64, _>(&mut at, &plt, &memory), Step::Continue);
        assert_eq!((at.ip, at.sp), (1, 0x1008));
        let mut at = registers(0x4000b, 0x1000, 0, 0);
        assert_eq!(step::<X86_64, _>(&mut at, &plt, &memory), Step::Continue);
        assert_eq!((at.ip, at.sp), (2, 0x1010));
    }

    #[test]
    fn a_signal_handler_may_run_on_a_stack_above() {
        let memory = words(&[(0x9000 + 160, 0x1000), (0x9000 + 168, 77), (0x9000 + 120, 0x1234)]);
        let signal =
            rule((CfaKind::DerefSp, 160), (FpKind::AtSp, 120), (RaKind::AtSp, 168), Rule::SIGNAL_FRAME);
        assert!(signal.caller_is_exact());
        let mut at = registers(5, 0x9000, 0, 0);
        assert_eq!(step::<X86_64, _>(&mut at, &signal, &memory), Step::Continue);
        assert_eq!(at, registers(77, 0x1000, 0x1234, 77));
    }

    #[test]
    fn an_aarch64_signal_frame_restores_the_link_register() {
        // siginfo (128 bytes), then ucontext: x29 at 544, x30, sp, pc.
        let memory =
            words(&[(0x9220, 0x1234), (0x9228, 0xab00_0000_0000_0042), (0x9230, 0x1000), (0x9238, 77)]);
        let signal =
            rule((CfaKind::DerefSp, 560), (FpKind::AtSp, 544), (RaKind::AtSp, 568), Rule::SIGNAL_FRAME);
        let mut at = registers(5, 0x9000, 0, 0);
        assert_eq!(step::<Aarch64, _>(&mut at, &signal, &memory), Step::Continue);
        assert_eq!(at, registers(77, 0x1000, 0x1234, 0x42));
    }

    #[test]
    fn a_leaf_returns_by_the_link_register_once() {
        let leaf = rule((CfaKind::SpOffset, 0), (FpKind::Same, 0), (RaKind::Register, 0), 0);
        let memory = words(&[]);
        let mut at = registers(5, 0x1000, 0x2000, 0xff12_0000_0000_0077);
        assert_eq!(step::<X86_64, _>(&mut at, &leaf, &memory), Step::Stop(StopReason::Unsupported));
        assert_eq!(step::<Aarch64, _>(&mut at, &leaf, &memory), Step::Continue);
        assert_eq!((at.ip, at.sp), (0x12_0000_0000_0077 & ((1 << 48) - 1), 0x1000));
        assert_eq!(step::<Aarch64, _>(&mut at, &leaf, &memory), Step::Stop(StopReason::NoProgress));
    }

    #[test]
    fn a_zero_return_address_is_the_end() {
        let rule = rule((CfaKind::SpOffset, 8), (FpKind::Same, 0), (RaKind::AtCfa, -8), 0);
        let mut at = registers(5, 0x1000, 0, 0);
        assert_eq!(step::<X86_64, _>(&mut at, &rule, &words(&[(0x1000, 0)])), Step::End);
    }

    #[test]
    fn frame_pointers_must_look_like_some() {
        let memory =
            words(&[(0x1010, 0), (0x1018, 77), (0x2000, 0x1000), (0x2008, 1), (0x3000, 0), (0x3008, 0)]);
        let go = |sp, fp| {
            let mut at = registers(5, sp, fp, 0);
            (step_frame_pointer::<X86_64, _>(&mut at, &memory), at)
        };
        assert_eq!(go(0x1000, 0x1010), (Step::Continue, registers(77, 0x1020, 0, 77)));
        assert_eq!(go(0x1000, 0x1011).0, Step::Stop(StopReason::NoProgress));
        assert_eq!(go(0x1018, 0x1010).0, Step::Stop(StopReason::NoProgress));
        assert_eq!(go(0, 0).0, Step::Stop(StopReason::NoProgress));
        assert_eq!(go(0x1000, 0x2000).0, Step::Stop(StopReason::NoProgress), "the chain goes back");
        assert_eq!(go(0x1000, 0x3000).0, Step::End);
        assert_eq!(go(0x1000, 0x4000).0, Step::Stop(StopReason::Unreadable));
    }

    #[test]
    fn words_and_rows_come_back_as_they_went() {
        assert_eq!(decode_bucket(encode_bucket(u32::MAX, 256)), (u32::MAX, 256));
        assert_eq!(decode_row(encode_row(255, 65_535)), (255, 65_535));
        assert_eq!(bucket_page(513), (1, 1));
        assert_eq!(row_page(1025), (1, 1));
        assert_eq!(bucket_of(0x1fff, 0x1000), 15);
        assert!(bucket_of(0xfff, 0x1000) > u64::from(u32::MAX));
        assert_eq!(bucket_offset(0x12345), 0x45);
    }

    fn put(page: &mut Page, slot: u32, row: u32) {
        let shift = (slot & 1) * 32;
        let word = &mut page[(slot / 2) as usize];
        *word = *word & !(0xffff_ffff << shift) | u64::from(row) << shift;
    }

    proptest! {
        #[test]
        fn search_agrees_with_looking_at_every_row(
            offsets in proptest::collection::btree_set(1u8.., 0..256),
            at in 0u32..1024,
            noise: u64,
        ) {
            let mut offsets: Vec<u8> = offsets.into_iter().collect();
            offsets.insert(0, 0);
            let slot = at.min(1024 - offsets.len() as u32);
            // What is around a bucket's rows must not matter.
            let mut page: Page = core::array::from_fn(|index| noise.rotate_left(index as u32));
            for (index, &offset) in offsets.iter().enumerate() {
                put(&mut page, slot + index as u32, encode_row(offset, 1000 + index as u32));
            }
            for wanted in 0..=255u8 {
                let index = offsets.iter().rposition(|&offset| offset <= wanted).unwrap();
                let found = search_rows(&page, slot, offsets.len() as u32, wanted);
                prop_assert_eq!(found, 1000 + index as u32);
            }
        }

        #[test]
        fn nothing_makes_the_search_panic(slot: u32, count: u32, offset: u8, word: u64) {
            search_rows(&[word; PAGE_WORDS], slot, count, offset);
        }

        #[test]
        fn nothing_makes_a_step_panic(kinds: [u8; 4], offsets: [i32; 3], values: [u64; 4], word: Option<u64>) {
            struct Constant(Option<u64>);
            impl Memory for Constant {
                fn read_u64(&self, _address: u64) -> Option<u64> {
                    self.0
                }
            }
            let rule = Rule {
                cfa_kind: kinds[0] % 9,
                fp_kind: kinds[1] % 6,
                ra_kind: kinds[2] % 5,
                flags: kinds[3],
                cfa_offset: offsets[0],
                fp_offset: offsets[1],
                ra_offset: offsets[2],
            };
            let before = registers(values[0], values[1], values[2], values[3]);
            let mut at = before;
            let outcome = step::<X86_64, _>(&mut at, &rule, &Constant(word));
            prop_assert!(outcome == Step::Continue || at == before);
            prop_assert!(outcome != Step::Continue || at.sp > before.sp || rule.caller_is_exact());
            at = before;
            let outcome = step::<Aarch64, _>(&mut at, &rule, &Constant(word));
            prop_assert!(outcome == Step::Continue || at == before);
            at = before;
            let outcome = step_frame_pointer::<X86_64, _>(&mut at, &Constant(word));
            prop_assert!(outcome == Step::Continue || at == before);
        }

        /// A stack of frames of every kind is built upwards from the innermost, then followed.
        #[test]
        fn a_simulated_stack_is_followed_to_its_end(
            frames in proptest::collection::vec((2u64..64, any::<bool>(), any::<bool>()), 1..100),
        ) {
            let mut memory = HashMap::new();
            let mut sp = 0x7000_0000u64;
            // Each frame: its size in words, whether it saves the frame pointer, whether it uses it. The
            // values of fp that the frames see are made first, outermost last.
            let mut rules = Vec::new();
            let mut expected = Vec::new();
            let first_sp = sp;
            let mut fps = std::vec![0u64; frames.len() + 1];
            let mut bottoms = Vec::new();
            for &(words, _, _) in &frames {
                bottoms.push(sp);
                sp += words * 8;
            }
            let top = sp;
            for index in (0..frames.len()).rev() {
                let cfa = bottoms.get(index + 1).copied().unwrap_or(top);
                // A frame that uses fp has it point at the saved one.
                fps[index] = if frames[index].1 { cfa - 16 } else { fps[index + 1] };
            }
            for (index, &(words, saves, uses)) in frames.iter().enumerate() {
                let cfa = bottoms[index] + words * 8;
                let ra = 0x40_0000 + index as u64 + 1;
                memory.insert(cfa - 8, ra);
                let fp = if saves {
                    memory.insert(cfa - 16, fps[index + 1]);
                    (FpKind::AtCfa, -16)
                } else {
                    (FpKind::Same, 0)
                };
                let cfa_rule = if saves && uses {
                    (CfaKind::FpOffset, 16)
                } else {
                    (CfaKind::SpOffset, words as i32 * 8)
                };
                rules.push(rule(cfa_rule, fp, (RaKind::AtCfa, -8), 0));
                expected.push(registers(ra, cfa, fps[index + 1], ra));
            }
            rules.push(Rule::END);
            let memory = Words(memory);
            let mut at = registers(0x40_0000, first_sp, fps[0], 0);
            for (rule, expected) in rules.iter().zip(&expected) {
                prop_assert_eq!(step::<X86_64, _>(&mut at, rule, &memory), Step::Continue);
                prop_assert_eq!(at, *expected);
            }
            prop_assert_eq!(step::<X86_64, _>(&mut at, &Rule::END, &memory), Step::End);
        }
    }
}
