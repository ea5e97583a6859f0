//! From the entries of `.eh_frame` or `.debug_frame` to rules, in the order of addresses.

use gimli::{
    BaseAddresses, CfaRule, CommonInformationEntry, DebugFrame, EhFrame, EndianSlice, FrameDescriptionEntry,
    LittleEndian, Operation, Register, RegisterRule, UnwindContext, UnwindContextStorage, UnwindExpression,
    UnwindOffset, UnwindSection, UnwindTableRow, Vendor,
};
use profiler_common::unwind::{CfaKind, FpKind, RULE_NO_INFO, RULE_UNSUPPORTED, RaKind, Rule};
use rustc_hash::FxHashMap;

use crate::unwind::{
    image::{FrameSection, Image, Machine},
    outcome::{BuildError, Source, Stats},
    rules::RuleTable,
    table::Packer,
};

type Reader<'a> = EndianSlice<'a, LittleEndian>;
type Cie<'a> = CommonInformationEntry<Reader<'a>>;
type Fde<'a> = FrameDescriptionEntry<Reader<'a>>;

/// Most functions with unwind information in one file.
const MAX_FDES: usize = 1 << 21;
/// Most CIEs kept. Linkers merge them, so that a file has a handful.
const MAX_CIES: usize = 1 << 14;
/// Longest CIE; real ones have some tens of bytes.
const MAX_CIE_BYTES: u64 = 4096;
/// Most work that a file may ask for, in bytes of CIEs interpreted (about 10 ns each): a CIE's run again for each
/// of its FDEs. Real files stay below a tenth of it; a hostile one is given up after some seconds.
const MAX_WORK: usize = 1 << 28;
/// Work of an instruction that remembers the current row, which copies it.
const REMEMBER_WORK: usize = 16;
/// Functions begin at multiples of this, at most.
const FUNCTION_ALIGNMENT: u32 = 16;
/// Encoding format DWARF 64 announces itself by this length.
const DWARF_64: u32 = 0xffff_ffff;

/// Room for the rows that gimli makes. Less than its own choice: no compiler saves more registers, nor remembers
/// more states, and each remembered row is a copy that a hostile file can ask for with a single byte.
struct Rows;

impl UnwindContextStorage<usize> for Rows {
    type Rules = [(Register, RegisterRule<usize>); 64];
    type Stack = Box<[Row; 6]>;
}

type Row = UnwindTableRow<usize, Rows>;

/// Where a function is, and its FDE. Many, so kept small.
#[derive(Clone, Copy, Debug)]
struct Span {
    /// Start, from the image's base on.
    start: u32,
    /// Bytes of code.
    len: u32,
    /// Offset of the FDE in the section.
    offset: u32,
    /// Signal handlers return to it.
    is_signal_frame: bool,
}

/// First address and length of each function that the image's unwind information knows, and whether signal handlers
/// return to it, by address. Those that overlap are all there.
pub fn functions(image: &Image<'_>) -> Result<Vec<(u64, u64, bool)>, BuildError> {
    let mut functions = Vec::new();
    for section in &image.sections {
        let bases = image.bases.clone().set_eh_frame(section.address);
        let spans = match section.source {
            Source::EhFrame => {
                let frames = eh_frame(image, section);
                Frames::new(image, section, &frames, &bases).collect(&mut Stats::default())?
            }
            Source::DebugFrame | Source::Go => {
                let frames = debug_frame(image, section);
                Frames::new(image, section, &frames, &bases).collect(&mut Stats::default())?
            }
        };
        functions.extend(
            spans
                .iter()
                .map(|span| (image.base + u64::from(span.start), span.len.into(), span.is_signal_frame)),
        );
    }
    functions.sort_unstable();
    functions.dedup();
    Ok(functions)
}

fn eh_frame<'a>(image: &Image<'a>, section: &FrameSection<'a>) -> EhFrame<Reader<'a>> {
    let mut frames = EhFrame::new(section.data, LittleEndian);
    frames.set_address_size(8);
    frames.set_vendor(vendor(image));
    frames
}

fn debug_frame<'a>(image: &Image<'a>, section: &FrameSection<'a>) -> DebugFrame<Reader<'a>> {
    let mut frames = DebugFrame::new(section.data, LittleEndian);
    frames.set_address_size(8);
    frames.set_vendor(vendor(image));
    frames
}

fn vendor(image: &Image<'_>) -> Vendor {
    match image.machine {
        Machine::X86_64 => Vendor::Default,
        Machine::Aarch64 => Vendor::AArch64,
    }
}

/// Packs the rules of everything that the image's unwind information describes, below those of `over`, by address.
pub(super) fn fill(
    image: &Image<'_>,
    over: Vec<(u32, u32)>,
    rules: &mut RuleTable,
    stats: &mut Stats,
) -> Result<Packer, BuildError> {
    let known = *stats;
    let mut over = Over { end: over.last().map_or(0, |last| last.0), rows: over };
    for section in &image.sections {
        let bases = image.bases.clone().set_eh_frame(section.address);
        *stats = Stats { source: section.source, ..known };
        let packer = match section.source {
            Source::EhFrame => {
                let frames = eh_frame(image, section);
                Frames::new(image, section, &frames, &bases).fill(&mut over, rules, stats)?
            }
            Source::DebugFrame | Source::Go => {
                let frames = debug_frame(image, section);
                Frames::new(image, section, &frames, &bases).fill(&mut over, rules, stats)?
            }
        };
        if let Some(packer) = packer {
            return Ok(packer);
        }
    }
    if !over.rows.is_empty() {
        *stats = Stats { source: Source::Go, ..known };
        return Ok(Packer::new(over.end, over.rows));
    }
    Err(if image.sections.is_empty() {
        image.without_sections()
    } else if stats.skipped != 0 {
        BuildError::Malformed("no entry of the unwind information is usable")
    } else {
        BuildError::NoUnwindInfo
    })
}

/// What goes over the rules of a section.
struct Over {
    rows: Vec<(u32, u32)>,
    /// One past the last address that has a rule, from the image's base on.
    end: u32,
}

/// A section and what has been parsed of it.
struct Frames<'a, 'b, S> {
    image: &'b Image<'a>,
    data: &'a [u8],
    source: Source,
    section: &'b S,
    bases: &'b BaseAddresses,
    cies: FxHashMap<usize, Option<Cie<'a>>>,
}

impl<'a, 'b, S: UnwindSection<Reader<'a>>> Frames<'a, 'b, S> {
    fn new(
        image: &'b Image<'a>,
        section: &FrameSection<'a>,
        frames: &'b S,
        bases: &'b BaseAddresses,
    ) -> Frames<'a, 'b, S> {
        Frames {
            image,
            data: section.data,
            source: section.source,
            section: frames,
            bases,
            cies: FxHashMap::default(),
        }
    }

    /// Packs the section's rules; `None` if it describes no code of the image.
    fn fill(
        mut self,
        over: &mut Over,
        rules: &mut RuleTable,
        stats: &mut Stats,
    ) -> Result<Option<Packer>, BuildError> {
        let spans = self.collect(stats)?;
        let Some(end) = spans.iter().map(|span| span.start + span.len).max() else { return Ok(None) };
        stats.fdes = spans.len() as u32;

        let mut packer = Packer::new(end.max(over.end), std::mem::take(&mut over.rows));
        let mut context = UnwindContext::new_in();
        let mut work = 0;
        for (index, span) in spans.iter().enumerate() {
            // Of functions that overlap, the one that starts later has the rest, as in a search by start.
            let next = spans.get(index + 1).map_or(u32::MAX, |next| next.start);
            let end = (span.start + span.len).min(next);
            if end <= span.start {
                continue;
            }
            // It parsed when it was collected.
            let Ok(fde) = self.fde(span.offset as usize) else { continue };
            work += fde.cie().entry_len() + self.remembers(span.offset as usize) * REMEMBER_WORK;
            if work > MAX_WORK {
                return Err(BuildError::TooLarge("unwind information"));
            }
            self.pack(&fde, span.start, end, &mut context, &mut packer, rules, stats)?;
            if end != next {
                // Between functions that follow each other nothing is ever called. Whoever returns to the byte after
                // was never called either, but begins a stack of its own: a fiber.
                let padding = next - end < FUNCTION_ALIGNMENT;
                packer.set(end, if padding { rules.intern(Rule::END) } else { RULE_NO_INFO })?;
            }
        }
        Ok(Some(packer))
    }

    /// Functions of all FDEs, by address. Walks the entries by their lengths alone, so that a bad one only
    /// costs itself.
    fn collect(&mut self, stats: &mut Stats) -> Result<Vec<Span>, BuildError> {
        let mut spans = Vec::new();
        let mut at = 0;
        while let Some((header, len)) = self.entry_len(at) {
            if len == 0 {
                if self.source == Source::EhFrame {
                    break; // the terminator
                }
                at += header;
                continue;
            }
            let next = usize::try_from(len).ok().and_then(|len| at.checked_add(header)?.checked_add(len));
            let Some(next) = next.filter(|&next| next <= self.data.len()) else {
                stats.truncated = true;
                break;
            };
            match self.fde(at) {
                Ok(fde) => {
                    if let Some(span) = self.span(&fde, at) {
                        if spans.len() == MAX_FDES {
                            return Err(BuildError::TooLarge("number of functions"));
                        }
                        spans.push(span);
                    }
                }
                Err(gimli::Error::NotCiePointer(_)) => {} // a CIE
                Err(_) => stats.skipped += 1,
            }
            at = next;
        }
        // Of two that start at the same address, the longer comes last and wins.
        spans.sort_unstable_by_key(|span| (span.start, span.len, u32::MAX - span.offset));
        spans.shrink_to_fit();
        Ok(spans)
    }

    /// Bytes of an entry's length field, and of the rest of the entry.
    fn entry_len(&self, at: usize) -> Option<(usize, u64)> {
        let len = u32::from_le_bytes(self.data.get(at..at.checked_add(4)?)?.try_into().ok()?);
        if len != DWARF_64 {
            return Some((4, len.into()));
        }
        let len = self.data.get(at + 4..at.checked_add(12)?)?;
        Some((12, u64::from_le_bytes(len.try_into().ok()?)))
    }

    /// At least as many as the instructions of an entry that remember a row.
    fn remembers(&self, at: usize) -> usize {
        let Some((header, len)) = self.entry_len(at) else { return 0 };
        let end = at.saturating_add(header).saturating_add(len as usize).min(self.data.len());
        let bytes = self.data.get(at..end).unwrap_or_default();
        bytes.iter().filter(|&&byte| byte == gimli::DW_CFA_remember_state.0).count()
    }

    /// The part of an FDE's function that is code of the image. Functions that the linker dropped have FDEs left
    /// that say zero.
    fn span(&self, fde: &Fde<'a>, offset: usize) -> Option<Span> {
        let start = fde.initial_address();
        if start < self.image.base || start >= self.image.end || fde.len() == 0 {
            return None;
        }
        // gimli computes the end the same way, but wraps.
        let end = start.checked_add(fde.len())?.min(self.image.end);
        Some(Span {
            start: u32::try_from(start - self.image.base).ok()?,
            len: u32::try_from(end - start).ok()?,
            offset: u32::try_from(offset).ok()?,
            is_signal_frame: fde.is_signal_trampoline(),
        })
    }

    fn fde(&mut self, offset: usize) -> gimli::Result<Fde<'a>> {
        let partial = self.section.partial_fde_from_offset(self.bases, S::Offset::from(offset))?;
        let cie = self.cie(partial.cie_offset())?;
        partial.parse(|_, _, _| Ok(cie.clone()))
    }

    fn cie(&mut self, offset: S::Offset) -> gimli::Result<Cie<'a>> {
        let at: usize = UnwindOffset::into(offset);
        let unusable = gimli::Error::NoEntryAtGivenOffset(at as u64);
        if let Some(cie) = self.cies.get(&at) {
            return cie.clone().ok_or(unusable);
        }
        if self.cies.len() >= MAX_CIES {
            return Err(unusable);
        }
        let short = self.entry_len(at).is_some_and(|(_, len)| len <= MAX_CIE_BYTES);
        let cie = if short { self.section.cie_from_offset(self.bases, offset).ok() } else { None };
        self.cies.insert(at, cie.clone());
        cie.ok_or(unusable)
    }

    /// Packs one function's rows, cut to `start..end`.
    #[allow(clippy::too_many_arguments)]
    fn pack(
        &self,
        fde: &Fde<'a>,
        start: u32,
        end: u32,
        context: &mut UnwindContext<usize, Rows>,
        packer: &mut Packer,
        rules: &mut RuleTable,
        stats: &mut Stats,
    ) -> Result<(), BuildError> {
        let translate = Translate {
            section: self.section,
            machine: self.image.machine,
            signal_frame: fde.is_signal_trampoline(),
            return_register: fde.cie().return_address_register(),
            encoding: fde.cie().encoding(),
        };
        // Where the next row begins.
        let mut at = start;
        if let Ok(mut rows) = fde.rows(self.section, self.bases, context) {
            loop {
                match rows.next_row() {
                    Ok(Some(row)) => {
                        let row_end =
                            row.end_address().saturating_sub(self.image.base).min(end.into()) as u32;
                        if row_end > at {
                            let rule = translate.rule(row);
                            stats.unsupported += u64::from(rule == Rule::UNSUPPORTED);
                            packer.set(at, rules.intern(rule))?;
                            at = row_end;
                        }
                        if at >= end {
                            return Ok(());
                        }
                    }
                    Ok(None) => break,
                    Err(_) => break,
                }
            }
        }
        stats.unsupported += 1;
        packer.set(at, RULE_UNSUPPORTED)
    }
}

/// From a row of DWARF's to a rule.
struct Translate<'s, S> {
    section: &'s S,
    machine: Machine,
    signal_frame: bool,
    return_register: Register,
    encoding: gimli::Encoding,
}

/// An expression of the forms that compilers and the authors of assembly use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Register + offset.
    Address(Register, i64),
    /// *(register + offset) + addend.
    Deref(Register, i64, u64),
    /// A linkage table's, and its threshold.
    Plt(u64),
}

impl<'a, 's, S: UnwindSection<Reader<'a>>> Translate<'s, S> {
    fn sp(&self) -> Register {
        Register(match self.machine {
            Machine::X86_64 => 7,
            Machine::Aarch64 => 31,
        })
    }

    fn fp(&self) -> Register {
        Register(match self.machine {
            Machine::X86_64 => 6,
            Machine::Aarch64 => 29,
        })
    }

    fn ra(&self) -> Register {
        Register(match self.machine {
            Machine::X86_64 => 16,
            Machine::Aarch64 => 30,
        })
    }

    fn rule(&self, row: &Row) -> Rule {
        if self.signal_frame && self.machine == Machine::Aarch64 {
            return AARCH64_SIGNAL_FRAME;
        }
        self.try_rule(row).unwrap_or(Rule::UNSUPPORTED)
    }

    fn try_rule(&self, row: &Row) -> Option<Rule> {
        if self.return_register != self.ra() {
            return None;
        }
        let (ra_kind, ra_offset) = match (row.register(self.ra()), self.machine) {
            (Some(RegisterRule::Undefined), _) => return Some(Rule::END),
            (Some(RegisterRule::Offset(offset)), _) => (RaKind::AtCfa, offset),
            (Some(RegisterRule::Expression(expression)), _) => match self.form(&expression)? {
                Form::Address(register, offset) if register == self.sp() => (RaKind::AtSp, offset),
                Form::Address(register, offset) if register == self.fp() => (RaKind::AtFp, offset),
                _ => return None,
            },
            (None | Some(RegisterRule::SameValue), Machine::Aarch64) => (RaKind::Register, 0),
            _ => return None,
        };

        let mut addend = 0;
        let (cfa_kind, cfa_offset) = match row.cfa() {
            &CfaRule::RegisterAndOffset { register, offset } => self.cfa_address(register, offset)?,
            CfaRule::Expression(expression) => match self.form(expression)? {
                Form::Address(register, offset) => self.cfa_address(register, offset)?,
                Form::Deref(register, offset, bytes) => {
                    addend = bytes;
                    if register == self.sp() {
                        (CfaKind::DerefSp, offset)
                    } else if register == self.fp() {
                        (CfaKind::DerefFp, offset)
                    } else {
                        return None;
                    }
                }
                Form::Plt(threshold) => (CfaKind::Plt, threshold as i64),
            },
        };
        if addend % 8 != 0 || addend / 8 > 15 {
            return None;
        }

        let (fp_kind, fp_offset) = match row.register(self.fp()) {
            None | Some(RegisterRule::SameValue) => (FpKind::Same, 0),
            Some(RegisterRule::Offset(offset)) => (FpKind::AtCfa, offset),
            Some(RegisterRule::Expression(expression)) => match self.form(&expression) {
                Some(Form::Address(register, offset)) if register == self.sp() => (FpKind::AtSp, offset),
                Some(Form::Address(register, offset)) if register == self.fp() => (FpKind::AtFp, offset),
                _ => (FpKind::Undefined, 0),
            },
            // The frame can be left without it. Only a caller that needs it cannot.
            Some(_) => (FpKind::Undefined, 0),
        };

        let mut flags = ((addend / 8) as u8) << Rule::ADDEND_SHIFT;
        if self.signal_frame {
            flags |= Rule::SIGNAL_FRAME;
        }
        Some(Rule {
            cfa_kind: cfa_kind as u8,
            fp_kind: fp_kind as u8,
            ra_kind: ra_kind as u8,
            flags,
            cfa_offset: cfa_offset.try_into().ok()?,
            fp_offset: fp_offset.try_into().ok()?,
            ra_offset: ra_offset.try_into().ok()?,
        })
    }

    fn cfa_address(&self, register: Register, offset: i64) -> Option<(CfaKind, i64)> {
        if register == self.sp() {
            Some((CfaKind::SpOffset, offset))
        } else if register == self.fp() {
            Some((CfaKind::FpOffset, offset))
        } else {
            None
        }
    }

    fn form(&self, expression: &UnwindExpression<usize>) -> Option<Form> {
        const MAX_OPERATIONS: usize = 9;
        let expression = expression.get(self.section).ok()?;
        let mut iter = expression.operations(self.encoding);
        let mut operations = [const { Operation::Nop }; MAX_OPERATIONS];
        let mut len = 0;
        while let Some(operation) = iter.next().ok()? {
            *operations.get_mut(len)? = operation;
            len += 1;
        }
        use Operation::*;
        let constant = |operation: &Operation<Reader<'a>>| match *operation {
            UnsignedConstant { value } => Some(value),
            SignedConstant { value } => u64::try_from(value).ok(),
            _ => None,
        };
        match &operations[..len] {
            &[RegisterOffset { register, offset, .. }] => Some(Form::Address(register, offset)),
            &[RegisterOffset { register, offset, .. }, PlusConstant { value }] => {
                Some(Form::Address(register, offset.checked_add(i64::try_from(value).ok()?)?))
            }
            &[RegisterOffset { register, offset, .. }, Deref { size: 8, space: false, .. }] => {
                Some(Form::Deref(register, offset, 0))
            }
            &[
                RegisterOffset { register, offset, .. },
                Deref { size: 8, space: false, .. },
                PlusConstant { value },
            ] => Some(Form::Deref(register, offset, value)),
            [RegisterOffset { register, offset, .. }, Deref { size: 8, space: false, .. }, addend, Plus] => {
                Some(Form::Deref(*register, *offset, constant(addend)?))
            }
            [
                RegisterOffset { register: Register(7), offset: 8, .. },
                RegisterOffset { register: Register(16), offset: 0, .. },
                mask,
                And,
                threshold,
                Ge,
                shift,
                Shl,
                Plus,
            ] => {
                (constant(mask) == Some(15) && constant(shift) == Some(3)).then_some(())?;
                constant(threshold).filter(|&threshold| threshold < 16).map(Form::Plt)
            }
            _ => None,
        }
    }
}

/// The kernel's signal frame on aarch64: siginfo, then ucontext, at the stack pointer. Its vDSO describes the
/// trampoline as if the interrupted function had made a call, which skips that function; the kernel's layout is
/// fixed, so that it can be used instead.
const AARCH64_SIGNAL_FRAME: Rule = Rule {
    cfa_kind: CfaKind::DerefSp as u8,
    fp_kind: FpKind::AtSp as u8,
    ra_kind: RaKind::AtSp as u8,
    flags: Rule::SIGNAL_FRAME,
    cfa_offset: 560,
    fp_offset: 544,
    ra_offset: 568,
};
