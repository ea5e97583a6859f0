//! Names, files and lines out of Go's own table of functions, which programs need to run and stripping leaves in.

use crate::{
    model::function::Function,
    process::go::{GoFunction, GoTable},
    text,
};

/// Characters of a name or path at most.
const LONGEST: usize = 4096;
/// Steps of a table of lines that are followed at most.
const MOST_STEPS: usize = 1 << 20;

impl GoTable<'_> {
    /// The function at an address, and its line there.
    pub fn function(&self, address: u64) -> Option<Function> {
        let after = self.partition(address)?;
        let last = after.checked_sub(1)?;
        // The last entry is the end of the code.
        if after == self.functions() && self.start(after).is_some_and(|end| address >= end) {
            return None;
        }
        let function = self.function_at(last)?;
        let name = text::clean(self.name(&function, LONGEST)?);
        let line = self.value(&function, 5, address).and_then(|line| u32::try_from(line).ok());
        let file = self.value(&function, 4, address).and_then(|index| {
            let path = self.file(self.field(&function, 7)?, usize::try_from(index).ok()?, LONGEST)?;
            Some(text::clean(path))
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
        let (mut low, mut high) = (0, self.functions());
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

    /// The value at an address in the table of steps that a field leads to.
    fn value(&self, function: &GoFunction, field: usize, address: u64) -> Option<i64> {
        let mut steps = self.steps(function, field)?.take(MOST_STEPS);
        steps.find(|(until, _)| address < *until).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, process::Command};

    use proptest::prelude::*;

    use super::*;
    use crate::{process::go::GoSection, symbolize::facts::Facts};

    const PROGRAM: &str = "package main\n\n//go:noinline\nfunc work(n int) int {\n\treturn n * 3\n}\n\nfunc main() {\n\tprintln(work(4))\n}\n";

    /// A stripped program, and where its function `work` is.
    fn stripped() -> Option<(GoSection<'static>, u64)> {
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
            if let Some(table) = GoTable::read(GoSection { table: table.into(), text: 0x1000 }) {
                for address in [address, address % 0x2000, 0x1000] {
                    table.function(address);
                }
            }
        }
    }
}
