//! Unwinding user stacks by tables made from `.eh_frame`: the tables' layout, the search in them, and one step
//! from a frame to its caller. The kernel programs and the tests on the host run this very code, so it allocates
//! nothing, cannot panic, does not recurse, and bounds every index with a mask the BPF verifier can follow.
//!
//! A table belongs to one ELF file. Its code, from `base` on, is divided into buckets of 256 bytes, and the table
//! is a list of 4096-byte pages: first one word for each bucket (where its rows are and how many), then the rows.
//! A row is the offset in its bucket from which it applies, and the id of a [`Rule`]. All files share the rules.

pub mod cache;

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

    /// Fills `into`. The kernel reads all of it at once.
    #[inline(always)]
    fn read_words<const N: usize>(&self, address: u64, into: &mut [u64; N]) -> Option<()> {
        for (i, word) in into.iter_mut().enumerate() {
            *word = self.read_u64(address.wrapping_add(8 * i as u64))?;
        }
        Some(())
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
///
/// The first function of a stack is called with zero there (System V ABI, AMD64, 3.4.1; goroutines keep to it, too), so a
/// frame that has called another, `calls`, is the outermost if its own is zero. A caller that keeps no frame pointer may have
/// anything in that register. So where what was saved cannot be the caller's, the return address decides: `is_code` says
/// whether an instruction is in a file's code.
#[inline(always)]
pub fn step_frame_pointer<A: Arch, M: Memory>(
    registers: &mut Registers,
    memory: &M,
    calls: bool,
    is_code: impl FnOnce(u64) -> bool,
) -> Step {
    let fp = registers.fp;
    if fp == 0 && calls {
        return Step::End;
    }
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
    if caller_fp != 0 && caller_fp <= fp && !is_code(return_address.wrapping_sub(1)) {
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
mod tests;
