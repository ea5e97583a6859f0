//! Go's own table of functions (`.gopclntab`), which programs need to run and stripping leaves in, as Go 1.16 and newer write it
//! (debug/gosym and runtime/symtab.go of Go): where it is in a file, its head, its functions and their tables of steps. Names are
//! read from it in `symbolize`, sizes of frames in `unwind`.

use std::borrow::Cow;

use object::{
    LittleEndian as LE, ReadRef,
    elf::{FileHeader64, R_X86_64_RELATIVE, SHF_ALLOC, SHT_NOBITS, SHT_RELA, SectionHeader64},
    read::elf::{FileHeader, SectionHeader},
};

/// Bytes of a section that are read at most.
const LARGEST: u64 = 256 << 20;
/// Where in the table it says where the code begins, from 1.18 on.
const TEXT_AT: u64 = 24;
/// Words of a function's entry behind its address.
const NAME: usize = 0;
const FRAME_SIZES: usize = 3;

/// Go's table of functions, as a file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoSection<'a> {
    /// Its bytes, and maybe what follows it.
    pub table: Cow<'a, [u8]>,
    /// Virtual address at which Go's code begins.
    pub text: u64,
}

impl<'a> GoSection<'a> {
    /// Finds it in an ELF file; `None` where there is none.
    pub fn find<R: ReadRef<'a>>(data: R) -> Option<GoSection<'a>> {
        let header = FileHeader64::<LE>::parse(data).ok()?;
        let sections = header.sections(header.endian().ok()?, data).ok()?;
        let (mut of_go, mut text, mut table, mut constants) = (false, 0, None, None);
        for section in sections.iter() {
            let in_memory = section.sh_flags(LE) & u64::from(SHF_ALLOC) != 0;
            match sections.section_name(LE, section).unwrap_or_default() {
                b".go.buildinfo" => of_go = true,
                b".text" => text = section.sh_addr(LE),
                b".gopclntab" | b".data.rel.ro.gopclntab" if in_memory => table = Some(section),
                // The C linker puts it there in programs at no fixed place.
                b".data.rel.ro" if in_memory => constants = Some(section),
                _ => {}
            }
        }
        let (bytes, address) = match table {
            Some(section) => (contents(section, data)?, section.sh_addr(LE)),
            None => {
                let section = constants.filter(|_| of_go)?;
                let bytes = contents(section, data)?;
                let at = search(bytes)?;
                (&bytes[at..], section.sh_addr(LE).wrapping_add(at as u64))
            }
        };
        if Layout::of(bytes)? != Layout::Words {
            // A program at no fixed place has no address here before it is loaded, but the loader is told what to add to the
            // place. Go's own linker begins `.text` with Go's code.
            let told = number(bytes, TEXT_AT as usize, 8).filter(|told| *told != 0);
            let relocated = || relocation(sections.iter(), data, address.wrapping_add(TEXT_AT));
            text = told.or_else(relocated).unwrap_or(text);
        }
        Some(GoSection { table: Cow::Borrowed(bytes), text })
    }

    /// The same for as long as one likes.
    pub fn into_owned(self) -> GoSection<'static> {
        GoSection { table: Cow::Owned(self.table.into_owned()), text: self.text }
    }
}

fn contents<'a, R: ReadRef<'a>>(section: &SectionHeader64<LE>, data: R) -> Option<&'a [u8]> {
    let there = section.sh_type(LE) != SHT_NOBITS && section.sh_size(LE) <= LARGEST;
    section.data(LE, data).ok().filter(|bytes| there && !bytes.is_empty())
}

/// Where in other constants the table begins.
fn search(bytes: &[u8]) -> Option<usize> {
    (0..bytes.len())
        .step_by(8)
        .find(|&at| Layout::of(&bytes[at..]).is_some() && Head::read(&bytes[at..]).is_some())
}

/// What the loader puts at an address, less the place of the program.
fn relocation<'a, 'f, R: ReadRef<'f>>(
    sections: impl Iterator<Item = &'a SectionHeader64<LE>>,
    data: R,
    address: u64,
) -> Option<u64> {
    const ENTRY: usize = 24;
    let in_memory = |section: &&SectionHeader64<LE>| {
        section.sh_type(LE) == SHT_RELA && section.sh_flags(LE) & u64::from(SHF_ALLOC) != 0
    };
    sections.filter(in_memory).filter_map(|section| contents(section, data)).find_map(|entries| {
        let of = |entry: &&[u8]| {
            number(entry, 0, 8) == Some(address) && number(entry, 8, 8) == Some(R_X86_64_RELATIVE.into())
        };
        number(entries.chunks_exact(ENTRY).find(of)?, 16, 8)
    })
}

/// How entries of functions are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// 1.16 and 1.17: addresses, in words.
    Words,
    /// 1.18 and 1.19: differences to where the code begins, of four bytes.
    Offsets,
    /// From 1.20 on: one more word in what is known of a function.
    WithLine,
}

impl Layout {
    fn of(table: &[u8]) -> Option<Layout> {
        let &[a, b, c, d, 0, 0, _, 8] = table.first_chunk()? else { return None };
        match u32::from_le_bytes([a, b, c, d]) {
            0xffff_fffa => Some(Layout::Words),
            0xffff_fff0 => Some(Layout::Offsets),
            0xffff_fff1 => Some(Layout::WithLine),
            _ => None,
        }
    }
}

/// Where the parts of a table are.
#[derive(Clone, Copy, Debug)]
struct Head {
    layout: Layout,
    functions: usize,
    quantum: u64,
    names: usize,
    units: usize,
    files: usize,
    steps: usize,
    index: usize,
}

impl Head {
    fn read(bytes: &[u8]) -> Option<Head> {
        let layout = Layout::of(bytes)?;
        let word = |index: usize| number(bytes, 8 + 8 * index, 8);
        let place = |index: usize| usize::try_from(word(index)?).ok().filter(|place| *place < bytes.len());
        let first = if layout == Layout::Words { 2 } else { 3 };
        let functions = usize::try_from(word(0)?).ok()?;
        let [names, units, files, steps, index] =
            [place(first)?, place(first + 1)?, place(first + 2)?, place(first + 3)?, place(first + 4)?];
        let entry = if layout == Layout::Words { 16 } else { 8 };
        let fits = functions.checked_mul(entry)?.checked_add(index)? <= bytes.len();
        let quantum = u64::from(*bytes.get(6)?).max(1);
        fits.then_some(Head { layout, functions, quantum, names, units, files, steps, index })
    }
}

/// Go's table of functions.
#[derive(Debug)]
pub struct GoTable<'a> {
    bytes: Cow<'a, [u8]>,
    text: u64,
    head: Head,
}

/// A function of the table.
#[derive(Clone, Copy, Debug)]
pub struct GoFunction {
    /// Its first address.
    pub start: u64,
    /// Where its fields are.
    at: usize,
}

impl<'a> GoTable<'a> {
    /// Reads the head of a table; `None` if it is none that is known.
    pub fn read(section: GoSection<'a>) -> Option<GoTable<'a>> {
        let head = Head::read(&section.table)?;
        Some(GoTable { bytes: section.table, text: section.text, head })
    }

    /// How many functions it has.
    pub fn functions(&self) -> usize {
        self.head.functions
    }

    /// First address of a function; that of the number of functions is the end of the code.
    pub fn start(&self, function: usize) -> Option<u64> {
        match self.head.layout {
            Layout::Words => self.entry(function, 16, 0, 8),
            _ => Some(self.entry(function, 8, 0, 4)?.wrapping_add(self.text)),
        }
    }

    fn info(&self, function: usize) -> Option<usize> {
        let info = match self.head.layout {
            Layout::Words => self.entry(function, 16, 8, 8),
            _ => self.entry(function, 8, 4, 4),
        };
        usize::try_from(info?).ok()
    }

    fn entry(&self, function: usize, bytes: usize, at: usize, size: usize) -> Option<u64> {
        let entry = self.head.index.checked_add(function.checked_mul(bytes)?)?;
        number(&self.bytes, entry.checked_add(at)?, size)
    }

    /// What is known of a function; `None` if the table contradicts itself.
    pub fn function_at(&self, function: usize) -> Option<GoFunction> {
        let (start, info) = (self.start(function)?, self.head.index.checked_add(self.info(function)?)?);
        let (entry, at) = match self.head.layout {
            Layout::Words => (number(&self.bytes, info, 8)?, info.checked_add(8)?),
            _ => (number(&self.bytes, info, 4)?.wrapping_add(self.text), info.checked_add(4)?),
        };
        (entry == start).then_some(GoFunction { start, at })
    }

    /// A word of what is known of a function, counted from behind its address.
    pub fn field(&self, function: &GoFunction, index: usize) -> Option<usize> {
        number(&self.bytes, function.at.checked_add(4 * index)?, 4).map(|field| field as usize)
    }

    /// Go's bits about a function; zero before Go 1.17.
    pub fn flags(&self, function: &GoFunction) -> Option<u8> {
        let words = if self.head.layout == Layout::WithLine { 9 } else { 8 };
        self.bytes.get(function.at.checked_add(4 * words + 1)?).copied()
    }

    /// A function's name, its first bytes up to `most`.
    pub fn name(&self, function: &GoFunction, most: usize) -> Option<&[u8]> {
        self.text_at(self.head.names, self.field(function, NAME)?, most)
    }

    /// The steps of the size of a function's frame, in bytes below its return address; `None` for functions that are not Go's.
    pub fn frame_sizes(&self, function: &GoFunction) -> Option<Steps<'_>> {
        self.steps(function, FRAME_SIZES)
    }

    /// The table of steps that a field of a function leads to.
    pub fn steps(&self, function: &GoFunction, field: usize) -> Option<Steps<'_>> {
        let offset = self.field(function, field).filter(|offset| *offset != 0)?;
        let bytes = self.bytes.get(self.head.steps.checked_add(offset)?..)?;
        Some(Steps { bytes, value: -1, at: function.start, quantum: self.head.quantum, first: true })
    }

    /// The path of a file of a unit.
    pub fn file(&self, unit: usize, index: usize, most: usize) -> Option<&[u8]> {
        let entry = unit.checked_add(index)?.checked_mul(4)?;
        let offset = number(&self.bytes, self.head.units.checked_add(entry)?, 4)?;
        self.text_at(self.head.files, usize::try_from(offset).ok()?, most)
    }

    /// Bytes up to a zero; `None` if there are more than `most`.
    fn text_at(&self, part: usize, offset: usize, most: usize) -> Option<&[u8]> {
        let bytes = self.bytes.get(part.checked_add(offset)?..)?;
        let end = bytes.iter().take(most).position(|byte| *byte == 0)?;
        Some(&bytes[..end])
    }
}

/// A value at each address of a function, as it changes. An iterator of where a value ends to hold, and the value. Foreign tables
/// may not advance, or go on for as long as there are bytes: who reads them sets a limit.
#[derive(Clone, Debug)]
pub struct Steps<'t> {
    bytes: &'t [u8],
    value: i64,
    at: u64,
    quantum: u64,
    first: bool,
}

impl Iterator for Steps<'_> {
    type Item = (u64, i64);

    fn next(&mut self) -> Option<(u64, i64)> {
        let change = varint(&mut self.bytes)?;
        if change == 0 && !std::mem::take(&mut self.first) {
            self.bytes = &[];
            return None;
        }
        self.first = false;
        let signed = (change >> 1) as i64 ^ -((change & 1) as i64);
        self.value = self.value.wrapping_add(signed);
        self.at = self.at.checked_add(varint(&mut self.bytes)?.checked_mul(self.quantum)?)?;
        Some((self.at, self.value))
    }
}

fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let mut word = [0; 8];
    word[..size].copy_from_slice(bytes.get(at..at.checked_add(size)?)?);
    Some(u64::from_le_bytes(word))
}

/// Seven bits in a byte, the least significant first.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..35).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
pub(crate) mod fixtures;

#[cfg(test)]
mod tests;
