//! Go's own table of functions (`.gopclntab`), which programs need to run and stripping leaves in: names, files and lines, as
//! Go 1.16 and newer write it (debug/gosym and runtime/symtab.go of Go).

use crate::{model::function::Function, symbolize::facts::GoSection, text};

/// Characters of a name or path at most.
const LONGEST: usize = 4096;
/// Steps of a table of lines that are followed at most.
const MOST_STEPS: usize = 1 << 20;

/// The table.
#[derive(Debug)]
pub struct GoTable {
    bytes: Vec<u8>,
    text: u64,
    layout: Layout,
    functions: usize,
    quantum: u64,
    /// Parts of the table.
    names: usize,
    units: usize,
    files: usize,
    steps: usize,
    index: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// 1.16 and 1.17: addresses, in words.
    Words,
    /// From 1.18 on: differences to where the code begins, of four bytes.
    Offsets,
}

impl GoTable {
    /// Reads the head of a table; `None` if it is none that is known.
    pub fn read(section: GoSection) -> Option<GoTable> {
        let GoSection { table: bytes, text } = section;
        let layout = match number(&bytes, 0, 4)? {
            0xffff_fffa => Layout::Words,
            0xffff_fff0 | 0xffff_fff1 => Layout::Offsets,
            _ => return None,
        };
        if bytes.get(7) != Some(&8) {
            return None;
        }
        let word = |index: usize| number(&bytes, 8 + 8 * index, 8);
        let place = |index: usize| usize::try_from(word(index)?).ok().filter(|place| *place < bytes.len());
        // A program at no fixed place has no address here before it is loaded.
        let (first, text) = match layout {
            Layout::Words => (2, text),
            Layout::Offsets => (3, Some(word(2)?).filter(|begin| *begin != 0).unwrap_or(text)),
        };
        let functions = usize::try_from(word(0)?).ok()?;
        let [names, units, files, steps, index] =
            [place(first)?, place(first + 1)?, place(first + 2)?, place(first + 3)?, place(first + 4)?];
        let entry = if layout == Layout::Words { 16 } else { 8 };
        let fits = functions.checked_mul(entry)?.checked_add(index)? <= bytes.len();
        let quantum = u64::from(*bytes.get(6)?).max(1);
        fits.then_some(GoTable { layout, functions, quantum, text, names, units, files, steps, index, bytes })
    }

    /// The function at an address, and its line there.
    pub fn function(&self, address: u64) -> Option<Function> {
        let after = self.partition(address)?;
        let last = after.checked_sub(1)?;
        // The last entry is the end of the code.
        if after > self.functions
            || (after == self.functions && self.start(after).is_some_and(|end| address >= end))
        {
            return None;
        }
        let (start, info) = (self.start(last)?, self.index.checked_add(self.info(last)?)?);
        let (entry, at) = match self.layout {
            Layout::Words => (number(&self.bytes, info, 8)?, info.checked_add(8)?),
            Layout::Offsets => (number(&self.bytes, info, 4)?.wrapping_add(self.text), info.checked_add(4)?),
        };
        if entry != start {
            return None;
        }
        let field =
            |index: usize| number(&self.bytes, at.checked_add(4 * index)?, 4).map(|field| field as usize);
        let name = self.string(self.names, field(0)?)?;
        let (file_steps, line_steps, unit) = (field(4)?, field(5)?, field(7)?);
        let line = self.value(line_steps, start, address).and_then(|line| u32::try_from(line).ok());
        let file = self.value(file_steps, start, address).and_then(|index| {
            let entry = unit.checked_add(usize::try_from(index).ok()?)?;
            let offset = number(&self.bytes, self.units.checked_add(entry.checked_mul(4)?)?, 4)?;
            self.string(self.files, usize::try_from(offset).ok()?)
        });
        (!name.is_empty()).then_some(Function {
            name,
            file,
            line: line.filter(|line| *line > 0),
            start: None,
        })
    }

    /// How many functions begin at or before an address.
    fn partition(&self, address: u64) -> Option<usize> {
        let (mut low, mut high) = (0, self.functions);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.start(middle)? <= address {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Some(low)
    }

    fn start(&self, function: usize) -> Option<u64> {
        match self.layout {
            Layout::Words => number(&self.bytes, self.index + 16 * function, 8),
            Layout::Offsets => {
                Some(number(&self.bytes, self.index + 8 * function, 4)?.wrapping_add(self.text))
            }
        }
    }

    fn info(&self, function: usize) -> Option<usize> {
        let info = match self.layout {
            Layout::Words => number(&self.bytes, self.index + 16 * function + 8, 8),
            Layout::Offsets => number(&self.bytes, self.index + 8 * function + 4, 4),
        };
        usize::try_from(info?).ok()
    }

    fn string(&self, part: usize, offset: usize) -> Option<String> {
        let bytes = self.bytes.get(part.checked_add(offset)?..)?;
        let end = bytes.iter().take(LONGEST).position(|byte| *byte == 0)?;
        Some(text::clean(&bytes[..end]))
    }

    /// The value at an address in a table of steps: by how much the value changes, and for how long it is then.
    fn value(&self, steps: usize, start: u64, address: u64) -> Option<i64> {
        if steps == 0 {
            return None;
        }
        let mut bytes = self.bytes.get(self.steps.checked_add(steps)?..)?.iter().copied();
        let (mut value, mut at) = (-1i64, start);
        for step in 0..MOST_STEPS {
            let change = varint(&mut bytes)?;
            if change == 0 && step > 0 {
                return None;
            }
            let signed = (change >> 1) as i64 ^ -((change & 1) as i64);
            value = value.wrapping_add(signed);
            at = at.wrapping_add(varint(&mut bytes)?.wrapping_mul(self.quantum));
            if address < at {
                return Some(value);
            }
        }
        None
    }
}

fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let mut word = [0; 8];
    word[..size].copy_from_slice(bytes.get(at..at.checked_add(size)?)?);
    Some(u64::from_le_bytes(word))
}

/// Seven bits in a byte, the least significant first.
fn varint(bytes: &mut impl Iterator<Item = u8>) -> Option<u64> {
    let mut value = 0;
    for shift in (0..35).step_by(7) {
        let byte = bytes.next()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::{fs::File, process::Command};

    use proptest::prelude::*;

    use super::*;
    use crate::symbolize::facts::Facts;

    const PROGRAM: &str = "package main\n\n//go:noinline\nfunc work(n int) int {\n\treturn n * 3\n}\n\nfunc main() {\n\tprintln(work(4))\n}\n";

    /// A stripped program, and where its function `work` is.
    fn stripped() -> Option<(GoSection, u64)> {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("work.go");
        std::fs::write(&source, PROGRAM).unwrap();
        let build = |name: &str, flags: &str| {
            let program = folder.path().join(name);
            let mut go = Command::new("go");
            go.env("GOCACHE", folder.path().join("cache")).env("GOFLAGS", "").env("HOME", folder.path());
            let built = go.args(["build", "-ldflags", flags, "-o"]).arg(&program).arg(&source).status();
            built.is_ok_and(|status| status.success()).then_some(program)
        };
        let whole = build("whole", "")?;
        let symbols = Command::new("nm").arg(whole).output().unwrap();
        let symbols = String::from_utf8(symbols.stdout).unwrap();
        let line = symbols.lines().find(|line| line.ends_with(" main.work")).unwrap();
        let address = u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap();
        let facts = Facts::read(&File::open(build("bare", "-s -w")?).unwrap());
        assert!(!facts.symbols && !facts.debug);
        Some((facts.go.unwrap(), address))
    }

    #[test]
    fn functions_of_a_stripped_program_have_their_names() {
        let Some((section, address)) = stripped() else {
            eprintln!("skipped: no go");
            return;
        };
        let end = section.text;
        let table = GoTable::read(section).unwrap();
        let function = table.function(address + 1).unwrap();
        assert_eq!(function.name, "main.work");
        assert!((4..=5).contains(&function.line.unwrap()), "{function:?}");
        assert!(function.file.unwrap().ends_with("/work.go"));
        assert_ne!(table.function(address - 1).unwrap().name, "main.work");
        assert_eq!([0, end - 1, u64::MAX].map(|address| table.function(address)), [const { None }; 3]);
    }

    proptest! {
        #[test]
        fn damaged_tables_never_panic(mut table in prop::collection::vec(any::<u8>(), 8..400), address: u64, newer: bool) {
            let head = if newer { 0xffff_fff1u32 } else { 0xffff_fffa };
            table[..4].copy_from_slice(&head.to_le_bytes());
            table[7] = 8;
            for word in table[8..].chunks_mut(8).take(9) {
                word[1..].fill(0);
            }
            if let Some(table) = GoTable::read(GoSection { table, text: 0x1000 }) {
                for address in [address, address % 0x2000, 0x1000] {
                    table.function(address);
                }
            }
        }
    }
}
