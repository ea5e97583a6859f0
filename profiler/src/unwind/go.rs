//! From Go's table of functions to rules. Its runtime walks stacks by it: it has the size of the frame at every instruction,
//! stripped or not. So code without a frame pointer of its own (leaves, the first and last instructions of a function) has its
//! caller.
//!
//! Of the frame pointer the table says nothing. Go's assembler (cmd/internal/obj/x86/obj6.go) saves it right below the return
//! address, so the code itself is asked whether that is how a function begins.

use std::ops::Range;

use profiler_common::unwind::{CfaKind, FpKind, RULE_NO_INFO, RaKind, Rule};

use crate::{
    process::go::{GoFunction, GoTable},
    unwind::{
        image::Image,
        outcome::{BuildError, Stats},
        rules::RuleTable,
    },
};

/// Most functions of one table.
const MAX_FUNCTIONS: usize = 1 << 21;
/// Most steps that are followed: functions may share them. Real programs of 100 MB have some 1 % of it.
const MAX_STEPS: usize = 1 << 26;
/// Most rows that are kept until the rest of a file's are known: 64 MiB of them.
const MAX_ROWS: usize = 1 << 23;
/// Longest name that means anything here.
const LONGEST_NAME: usize = 64;
/// Functions begin at multiples of this, at most. What is between them is no code.
const FUNCTION_ALIGNMENT: u64 = 64;

/// Go's flag of a function that is the outermost of its stack.
const TOP_FRAME: u8 = 1;
/// Go's flag of a function that sets the stack pointer to what no table tells.
const WRITES_SP: u8 = 2;

/// From the first on the second applies, an address from the image's base on and a rule's id. [`RULE_NO_INFO`] is code that
/// the table does not describe.
pub(super) type Row = (u32, u32);

/// Code of a file.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Code<'a> {
    /// Its first address.
    pub(super) address: u64,
    /// It.
    pub(super) bytes: &'a [u8],
}

impl<'a> Code<'a> {
    /// What is known of the code from an address on.
    fn from(&self, address: u64) -> &'a [u8] {
        let offset = address.checked_sub(self.address).and_then(|offset| usize::try_from(offset).ok());
        offset.and_then(|offset| self.bytes.get(offset..)).unwrap_or_default()
    }
}

/// What a function is to who leaves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Called, and returns.
    Usual,
    /// As if it had been called by what it interrupted.
    Interrupts,
    /// Has no caller.
    Outermost,
    /// Changes stacks: its caller's frame is where the frame pointer says.
    Switches,
    /// A signal handler returns to it.
    SignalReturn,
}

impl Kind {
    /// By Go's flags, which versions before 1.17 do not have, and by name what these do not tell.
    fn of(table: &GoTable<'_>, function: &GoFunction, code: &[u8]) -> Kind {
        let flags = table.flags(function).unwrap_or(0);
        let name = table.name(function, LONGEST_NAME).unwrap_or_default();
        let name = name.strip_suffix(b".abi0").unwrap_or(name);
        match name {
            b"runtime.sigreturn" | b"runtime.sigreturn__sigaction" => Kind::SignalReturn,
            b"runtime.asyncPreempt" => Kind::Interrupts,
            // The kernel called it, and it returns.
            b"runtime.sigtramp" | b"runtime.cgoSigtramp" => Kind::Usual,
            b"runtime.goexit" | b"runtime.mstart" | b"runtime.rt0_go" => Kind::Outermost,
            // What it calls never returns, but resumes another goroutine.
            b"runtime.mcall" => Kind::Outermost,
            _ if flags & TOP_FRAME != 0 => Kind::Outermost,
            b"runtime.systemstack"
            | b"runtime.asmcgocall"
            | b"runtime.morestack"
            | b"runtime.nanotime1"
            | b"runtime.walltime"
            | b"runtime.walltime1"
            | b"time.now"
            | b"runtime.cgocallback"
            | b"runtime.cgocallback_gofunc" => Kind::switch(code),
            _ if flags & WRITES_SP != 0 => Kind::switch(code),
            _ => Kind::Usual,
        }
    }

    /// Of a function that changes stacks.
    fn switch(code: &[u8]) -> Kind {
        // MOVQ $0, BP: whoever called may go on elsewhere meanwhile (from 1.21 on).
        const CLEARS_FP: &[u8] = &[0x48, 0xc7, 0xc5, 0, 0, 0, 0];
        let clears = code.windows(CLEARS_FP.len()).any(|window| window == CLEARS_FP);
        if clears { Kind::Outermost } else { Kind::Switches }
    }
}

/// Where a function saves the frame pointer, if it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Saves {
    /// It has no frame.
    NoFrame,
    /// It is saved right below the return address, wherever there is a frame.
    From {
        /// From this address on.
        saved: u64,
        /// From here on it is the function's own.
        own: u64,
    },
    /// It has a frame, and leaves the frame pointer alone.
    Not,
}

impl Saves {
    /// Of the function that begins at the first address and ends at the last.
    fn of(code: Code<'_>, function: Range<u64>, steps: impl Iterator<Item = (u64, i64)>) -> Saves {
        let mut at = function.start;
        for (until, size) in steps {
            if size > 0 {
                return saved_from(code, at, size).unwrap_or(Saves::Not);
            }
            at = until;
            if at >= function.end {
                break;
            }
        }
        Saves::NoFrame
    }
}

/// Where the frame pointer is saved from, in a function that has a frame of `size` bytes from `at` on.
fn saved_from(code: Code<'_>, at: u64, size: i64) -> Option<Saves> {
    const PUSH_FP: u8 = 0x55;
    const MOVE_SP_TO_FP: &[u8] = &[0x48, 0x89, 0xe5];
    const STORE_FP: &[u8] = &[0x48, 0x89];
    let next = code.from(at);
    // From 1.21 on it is pushed.
    if size == 8 && code.from(at.wrapping_sub(1)).first() == Some(&PUSH_FP) && next.starts_with(MOVE_SP_TO_FP)
    {
        return Some(Saves::From { saved: at, own: at.wrapping_add(MOVE_SP_TO_FP.len() as u64) });
    }
    // Before, it is stored where the frame ends: MOVQ BP, size-8(SP).
    let store = next.strip_prefix(STORE_FP)?;
    let slot = i32::try_from(size - 8).ok()?;
    let (length, stored) = match *store {
        [0x2c, 0x24, ..] => (4, 0),
        [0x6c, 0x24, slot, ..] => (5, i32::from(slot as i8)),
        [0xac, 0x24, a, b, c, d, ..] => (8, i32::from_le_bytes([a, b, c, d])),
        _ => return None,
    };
    // LEAQ size-8(SP), BP, which follows, is as long.
    (stored == slot).then(|| Saves::From { saved: at.wrapping_add(length), own: at.wrapping_add(2 * length) })
}

/// Bytes of the instruction before `at` if it frees a whole frame: `ADDQ $size, SP`.
fn frees_frame(code: Code<'_>, at: u64) -> u64 {
    let ends_with = |start: &[u8], len: u64| code.from(at.wrapping_sub(len)).starts_with(start);
    match () {
        () if ends_with(&[0x48, 0x83, 0xc4], 4) => 4,
        () if ends_with(&[0x48, 0x81, 0xc4], 7) => 7,
        () => 0,
    }
}

/// The rules of Go's code, by address; none if the table is not this code's.
pub(super) fn rows(
    table: &GoTable<'_>,
    code: Code<'_>,
    image: &Image<'_>,
    rules: &mut RuleTable,
    stats: &mut Stats,
) -> Result<Vec<Row>, BuildError> {
    if table.functions() > MAX_FUNCTIONS {
        return Err(BuildError::TooLarge("number of functions"));
    }
    let mut rows = Rows::new(table, code, image, rules);
    for index in 0..table.functions() {
        let function = table.function_at(index).zip(table.start(index + 1));
        match function {
            Some((function, end))
                if rows.end <= function.start && function.start < end && end <= image.end =>
            {
                rows.add(&function, end)?;
            }
            _ => stats.skipped += 1,
        }
    }
    if rows.saving < rows.with_frame / 2 {
        stats.skipped += rows.described;
        return Ok(Vec::new());
    }
    stats.go_functions = rows.described;
    stats.unsupported += rows.unsupported;
    Ok(rows.rows)
}

struct Rows<'a> {
    table: &'a GoTable<'a>,
    code: Code<'a>,
    base: u64,
    rules: &'a mut RuleTable,
    rows: Vec<Row>,
    /// Where the last function ends.
    end: u64,
    /// Steps followed.
    steps: usize,
    /// Functions with rows.
    described: u32,
    /// Of them, those with a frame.
    with_frame: u32,
    /// Of these, those that save the frame pointer as they begin. Next to all do, if code and table belong together.
    saving: u32,
    /// Stretches of code that have no rule.
    unsupported: u64,
}

impl<'a> Rows<'a> {
    fn new(table: &'a GoTable<'a>, code: Code<'a>, image: &Image<'_>, rules: &'a mut RuleTable) -> Rows<'a> {
        Rows {
            table,
            code,
            base: image.base,
            rules,
            rows: Vec::new(),
            end: image.base,
            steps: 0,
            described: 0,
            with_frame: 0,
            saving: 0,
            unsupported: 0,
        }
    }

    /// Adds those of a function that ends at `end`.
    fn add(&mut self, function: &GoFunction, end: u64) -> Result<(), BuildError> {
        // Functions that are not Go's have no frame sizes: other unwind information may describe them.
        let Some(steps) = self.table.frame_sizes(function) else { return Ok(()) };
        let start = function.start;
        let saves = Saves::of(self.code, start..end, steps.clone());
        let code = self.code.from(start);
        let kind = Kind::of(self.table, function, &code[..code.len().min((end - start) as usize)]);
        if kind == Kind::SignalReturn {
            // Nobody called it: what returns to it is looked up one byte before.
            self.set(start.saturating_sub(1).max(self.base), SIGNAL_RETURN)?;
        }
        let mut at = start;
        let mut steps = steps.peekable();
        while let Some((until, size)) = steps.next() {
            self.steps += 1;
            if self.steps >= MAX_STEPS {
                return Err(BuildError::TooLarge("unwind information"));
            }
            let left =
                if steps.peek().is_some_and(|next| next.1 == 0) { frees_frame(self.code, until) } else { 0 };
            self.stretch(kind, at..until.min(end), size, saves, left)?;
            at = at.max(until);
            if at >= end {
                break;
            }
        }
        if at == start {
            return Ok(());
        }
        if end.saturating_sub(at) >= FUNCTION_ALIGNMENT {
            self.set(at, Rule::NO_INFO)?;
        }
        self.set(end, Rule::NO_INFO)?;
        self.end = end;
        self.described += 1;
        self.with_frame += u32::from(saves != Saves::NoFrame);
        self.saving += u32::from(matches!(saves, Saves::From { .. }));
        Ok(())
    }

    /// Adds what applies while the frame has one size. The last `left` bytes are the instruction that frees it.
    fn stretch(
        &mut self,
        kind: Kind,
        at: Range<u64>,
        size: i64,
        saves: Saves,
        left: u64,
    ) -> Result<(), BuildError> {
        let Range { start, end } = at;
        if start >= end {
            return Ok(());
        }
        let (saved, own) = match saves {
            Saves::From { saved, own } if size > 0 => (saved.clamp(start, end), own.clamp(start, end)),
            _ => (end, end),
        };
        let freed = end.saturating_sub(left).clamp(own, end);
        // While a function that changes stacks has its caller's frame pointer, it is on its caller's stack.
        let keeps = matches!(saves, Saves::From { .. }) && kind == Kind::Switches;
        let around = if keeps { Kind::Usual } else { kind };
        let pieces = [
            (start, saved, around, false),
            (saved, own, around, true),
            (own, freed, kind, true),
            (freed, end, around, true),
        ];
        for (from, to, kind, is_saved) in pieces {
            if from < to {
                self.set(from, rule(kind, size, saves, is_saved))?;
            }
        }
        Ok(())
    }

    fn set(&mut self, at: u64, rule: Rule) -> Result<(), BuildError> {
        let Ok(at) = u32::try_from(at - self.base) else { return Ok(()) };
        self.unsupported += u64::from(rule == Rule::UNSUPPORTED);
        let rule = if rule == Rule::NO_INFO { RULE_NO_INFO } else { self.rules.intern(rule) };
        while self.rows.pop_if(|last| last.0 >= at).is_some() {}
        if self.rows.last().map_or(RULE_NO_INFO, |last| last.1) == rule {
            return Ok(());
        }
        if self.rows.len() >= MAX_ROWS {
            return Err(BuildError::TooLarge("number of rows"));
        }
        self.rows.push((at, rule));
        Ok(())
    }
}

/// The rule of code of a function while its frame has `size` bytes, and the frame pointer `is_saved` or not.
fn rule(kind: Kind, size: i64, saves: Saves, is_saved: bool) -> Rule {
    match kind {
        Kind::Outermost => return Rule::END,
        Kind::SignalReturn => return SIGNAL_RETURN,
        // The frame pointer is this function's or, where it keeps none, its caller's.
        Kind::Switches if is_saved || !matches!(saves, Saves::From { .. }) => return BY_FRAME_POINTER,
        _ => {}
    }
    let Some(cfa_offset) = size.checked_add(8).filter(|_| size >= 0).and_then(|cfa| i32::try_from(cfa).ok())
    else {
        return Rule::UNSUPPORTED;
    };
    Rule {
        cfa_kind: CfaKind::SpOffset as u8,
        cfa_offset,
        fp_kind: if is_saved { FpKind::AtCfa } else { FpKind::Same } as u8,
        fp_offset: if is_saved { -16 } else { 0 },
        ra_kind: RaKind::AtCfa as u8,
        ra_offset: -8,
        flags: if kind == Kind::Interrupts { Rule::SIGNAL_FRAME } else { 0 },
    }
}

/// The caller's frame is where the frame pointer says, be it above or below: another stack.
const BY_FRAME_POINTER: Rule = Rule {
    cfa_kind: CfaKind::FpOffset as u8,
    fp_kind: FpKind::AtCfa as u8,
    ra_kind: RaKind::AtCfa as u8,
    // Only so may it be below. That the return address is looked up as it is does no harm: the function goes on there.
    flags: Rule::SIGNAL_FRAME,
    cfa_offset: 16,
    fp_offset: -16,
    ra_offset: -8,
};

/// The kernel's signal frame on x86_64: the registers are in the `ucontext` at the stack pointer.
const SIGNAL_RETURN: Rule = Rule {
    cfa_kind: CfaKind::DerefSp as u8,
    fp_kind: FpKind::AtSp as u8,
    ra_kind: RaKind::AtSp as u8,
    flags: Rule::SIGNAL_FRAME,
    cfa_offset: 160,
    fp_offset: 120,
    ra_offset: 168,
};

#[cfg(test)]
mod tests;
