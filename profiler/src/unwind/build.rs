//! From a file to its table.

use std::fs::File;

use object::{
    LittleEndian as LE, ReadCache, ReadRef,
    elf::{FileHeader64, PF_X, PT_LOAD},
    read::elf::{FileHeader, ProgramHeader},
};

use crate::{
    process::go::{GoSection, GoTable},
    unwind::{
        eh_frame, go,
        go::Code,
        image::Image,
        outcome::{BuildError, Stats},
        rules::RuleTable,
        table::Table,
    },
};

/// Most code of Go that is read.
const MAX_CODE_BYTES: u64 = 128 << 20;

impl Table {
    /// Builds the table of an open file. Reads no more of it than headers and unwind information, and does not
    /// map it: a file that shrinks meanwhile is an error here, not a signal.
    pub fn read(file: &File, rules: &mut RuleTable) -> Result<Table, BuildError> {
        Self::build(&ReadCache::new(file), rules)
    }

    /// Builds the table of an ELF file, or of an image of one in memory (the vDSO).
    pub fn build<'a, R: ReadRef<'a>>(data: R, rules: &mut RuleTable) -> Result<Table, BuildError> {
        let mut image = Image::parse(data)?;
        let Some(go) = image.go.take().and_then(GoTable::read) else { return pack(&image, None, rules) };
        let code = code_at(data, go.start(0).unwrap_or_default());
        pack(&image, code.map(|code| (go, code)), rules)
    }

    /// Builds the table of code that begins where Go's table of functions says, and of which nothing else is known.
    pub fn of_go(section: GoSection<'_>, code: &[u8], rules: &mut RuleTable) -> Result<Table, BuildError> {
        let code = Code { address: section.text, bytes: code };
        let image = Image::of_code(code.address, code.bytes.len() as u64)?;
        let go = GoTable::read(section).ok_or(BuildError::NoUnwindInfo)?;
        pack(&image, Some((go, code)), rules)
    }
}

fn pack(
    image: &Image<'_>,
    of_go: Option<(GoTable<'_>, Code<'_>)>,
    rules: &mut RuleTable,
) -> Result<Table, BuildError> {
    let mut stats = Stats::default();
    let refused = rules.refused();
    let rows = of_go.as_ref().map(|(table, code)| go::rows(table, *code, image, rules, &mut stats));
    // Where that is too large, or damaged, there may be what else the file has.
    let (rows, no_rows) = rows.transpose().map_or_else(|error| (None, Some(error)), |rows| (rows, None));
    let packer = eh_frame::fill(image, rows.unwrap_or_default(), rules, &mut stats)
        .map_err(|error| no_rows.unwrap_or(error))?;
    stats.refused = rules.refused() - refused;
    packer.finish(image.machine, image.base, stats)
}

/// The code from an address on, as far as its segment goes; empty if it is not in the file, nothing if it is too large.
fn code_at<'a, R: ReadRef<'a>>(data: R, address: u64) -> Option<Code<'a>> {
    let place = || {
        let header = FileHeader64::<LE>::parse(data).ok()?;
        header.program_headers(LE, data).ok()?.iter().find_map(|segment| {
            let is_code = segment.p_type(LE) == PT_LOAD && segment.p_flags(LE) & PF_X != 0;
            let within = address.checked_sub(segment.p_vaddr(LE)).filter(|_| is_code)?;
            let len = segment.p_filesz(LE).checked_sub(within)?;
            Some((segment.p_offset(LE).checked_add(within)?, len))
        })
    };
    let Some((offset, len)) = place() else { return Some(Code::default()) };
    let read = || Code { address, bytes: data.read_bytes_at(offset, len).unwrap_or_default() };
    (len <= MAX_CODE_BYTES).then(read)
}
