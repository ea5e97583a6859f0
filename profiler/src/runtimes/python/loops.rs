//! Where the interpreter's loop is in its file. Compilers move what seldom runs to a part of its own, whose name stripping
//! takes away: there it is the function that the named part jumps into the midst of, which nothing else does.

use std::{collections::BTreeSet, fs::File, ops::Range};

use gimli::{CieOrFde, EhFrame, LittleEndian, UnwindSection as _};
use iced_x86::{Decoder, DecoderOptions, FlowControl};
use object::{
    Endianness, ReadCache, ReadRef,
    elf::{FileHeader64, SHT_SYMTAB},
    read::elf::{FileHeader, ProgramHeader, Sym},
};

use crate::unwind::{
    image::{Image, Machine},
    outcome::Source,
};

/// Parts that are kept at most.
const MOST_PARTS: usize = 64;

/// The largest loop that is looked through, bytes: known ones have some 60 kB.
const LARGEST: u64 = 1 << 20;

/// Other parts of the function called `name`, which is at `named`.
pub fn other_parts(file: &File, name: &str, named: &Range<u64>) -> Vec<Range<u64>> {
    let data = ReadCache::new(file);
    let parts = by_name(&data, name).unwrap_or_default();
    if parts.is_empty() { by_jumps(&data, named).unwrap_or_default() } else { parts }
}

/// Parts called after it, such as `NAME.cold`.
fn by_name<'a, R: ReadRef<'a>>(data: R, name: &str) -> Option<Vec<Range<u64>>> {
    let header = FileHeader64::<Endianness>::parse(data).ok()?;
    let endian = header.endian().ok()?;
    let symbols = header.sections(endian, data).ok()?.symbols(endian, data, SHT_SYMTAB).ok()?;
    let parts = symbols.iter().filter_map(|symbol| {
        let found = symbol.name(endian, symbols.strings()).ok()?;
        let is_part = found.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b"."));
        let (start, size) = (symbol.st_value(endian), symbol.st_size(endian));
        (is_part && size > 0).then(|| start..start.saturating_add(size))
    });
    Some(parts.take(MOST_PARTS).collect())
}

/// Functions that `named` jumps into the midst of.
fn by_jumps<'a, R: ReadRef<'a>>(data: R, named: &Range<u64>) -> Option<Vec<Range<u64>>> {
    let image = Image::parse(data).ok()?;
    if image.machine != Machine::X86_64 {
        return None;
    }
    let targets = jumps_out(bytes_at(data, named)?, named);
    let section = image.sections.iter().find(|section| section.source == Source::EhFrame)?;
    let frames = EhFrame::new(section.data, LittleEndian);
    let bases = image.bases.clone().set_eh_frame(section.address);
    let mut entries = frames.entries(&bases);
    let mut parts = Vec::new();
    while let Ok(Some(entry)) = entries.next() {
        let CieOrFde::Fde(partial) = entry else { continue };
        let Ok(function) = partial.parse(|section, bases, offset| section.cie_from_offset(bases, offset))
        else {
            continue;
        };
        let start = function.initial_address();
        let part = start..start.saturating_add(function.len());
        let into = targets.range(start.saturating_add(1)..).next();
        if parts.len() < MOST_PARTS && into.is_some_and(|target| *target < part.end) {
            parts.push(part);
        }
    }
    Some(parts)
}

fn bytes_at<'a, R: ReadRef<'a>>(data: R, range: &Range<u64>) -> Option<&'a [u8]> {
    let size = range.end.checked_sub(range.start).filter(|size| *size <= LARGEST)?;
    let header = FileHeader64::<Endianness>::parse(data).ok()?;
    let endian = header.endian().ok()?;
    let mut segments = header.program_headers(endian, data).ok()?.iter();
    segments.find_map(|segment| segment.data_range(endian, data, range.start, size).ok()?)
}

/// Where the jumps of some code lead outside of it.
fn jumps_out(code: &[u8], range: &Range<u64>) -> BTreeSet<u64> {
    let instructions = Decoder::with_ip(64, code, range.start, DecoderOptions::NONE).into_iter();
    let jumps = instructions.filter(|instruction| {
        let flow = instruction.flow_control();
        matches!(flow, FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch)
    });
    jumps.map(|jump| jump.near_branch_target()).filter(|target| !range.contains(target)).collect()
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, process::Command};

    use proptest::prelude::*;

    use super::*;
    use crate::runtimes::exported::Exported;

    #[test]
    fn parts_are_found_without_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("divided");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/workloads/divided.c");
        let compiler = Command::new("gcc").args(["-O2", "-rdynamic", source, "-o"]).arg(&program).status();
        if cfg!(not(target_arch = "x86_64")) || !compiler.is_ok_and(|status| status.success()) {
            eprintln!("skipped: no gcc for x86_64");
            return;
        }
        let file = File::open(&program).unwrap();
        let exported = Exported::read(&file, |name| name == b"divided").unwrap();
        let symbol = exported.get("divided").unwrap();
        let named = symbol.address..symbol.address + symbol.size;
        let data = std::fs::read(&program).unwrap();
        let parts = by_name(&*data, "divided").unwrap();
        assert_eq!((parts.len(), by_jumps(&*data, &named)), (1, Some(parts)));
    }

    #[test]
    fn jumps_that_leave_are_found() {
        // jmp +0 (to 5), jne +0x100, jmp -2 (to itself), call +0, ret
        let code = [0xe9, 0, 0, 0, 0, 0x0f, 0x85, 0, 1, 0, 0, 0xeb, 0xfe, 0xe8, 0, 2, 0, 0, 0xc3];
        let range = 0x1000..0x1000 + code.len() as u64;
        assert_eq!(jumps_out(&code, &range), BTreeSet::from([0x110b]));
    }

    proptest! {
        #[test]
        fn damaged_files_never_panic(at in 0usize..4096, byte: u8, cut in 0usize..65536, start: u64, size in 0u64..1 << 21) {
            let mut data = vec![0; 65536];
            File::open("/proc/self/exe").unwrap().read_exact(&mut data).unwrap();
            data[at] = byte;
            data.truncate(cut);
            by_name(&*data, "main");
            by_jumps(&*data, &(start..start.saturating_add(size)));
        }
    }
}
