//! The allocation probe: which functions of a process are its allocator's, and where they can be probed.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
};

use object::{
    Endianness, ReadCache, ReadRef, SectionIndex,
    elf::{FileHeader64, PT_LOAD, SHN_UNDEF, SHT_DYNSYM, SHT_SYMTAB, STT_FUNC, STT_NOTYPE},
    read::elf::{FileHeader, ProgramHeader, Sym, SymbolTable},
};
use profiler_common::alloc::Call;

use super::site;
use crate::process::maps::{self, MapsEntry};

/// What allocators call their functions, without what comes before all their names.
const FUNCTIONS: [(&str, Call); 14] = [
    ("malloc", Call::Malloc),
    ("calloc", Call::Calloc),
    ("realloc", Call::Realloc),
    ("reallocarray", Call::Reallocarray),
    ("aligned_alloc", Call::Memalign),
    ("memalign", Call::Memalign),
    ("posix_memalign", Call::PosixMemalign),
    ("valloc", Call::Malloc),
    ("pvalloc", Call::Malloc),
    ("free", Call::Free),
    // jemalloc's own; (size, flags), (object, size, flags), (object, flags), (object, size, flags).
    ("mallocx", Call::Malloc),
    ("rallocx", Call::Realloc),
    ("dallocx", Call::Free),
    ("sdallocx", Call::Free),
];

/// What comes before their names: nothing (the C library, or whoever takes its place), jemalloc as it is linked into
/// programs (Redis, Rust), tcmalloc, mimalloc.
const PREFIXES: [&str; 5] = ["", "je_", "_rjem_", "tc_", "mi_"];

/// Further functions under names of their own.
const OTHERS: [(&str, Call); 9] = [
    // mimalloc: (size), (size, alignment), (count, size), (object, size, alignment)
    ("mi_zalloc", Call::Malloc),
    ("mi_malloc_aligned", Call::Malloc),
    ("mi_zalloc_aligned", Call::Malloc),
    ("mi_realloc_aligned", Call::Realloc),
    ("mi_mallocn", Call::Calloc),
    ("mi_free_size", Call::Free),
    ("mi_free_size_aligned", Call::Free),
    ("mi_free_aligned", Call::Free),
    ("cfree", Call::Free),
];

/// The C library's functions that map memory, and only its.
const MAPPING: [(&str, Call); 3] = [("mmap", Call::Mmap), ("mmap64", Call::Mmap), ("munmap", Call::Munmap)];

/// Functions disassembled to their end, at most, bytes.
const MAX_CODE: u64 = 4096;

/// A function to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// What it does.
    pub call: Call,
    /// Where to put the breakpoint, as an offset in the file.
    pub file_offset: u64,
    /// Whether the kernel emulates the instruction there.
    pub emulated: bool,
}

/// A file with functions to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    /// A way to the file that works from here, whatever its name in the process.
    pub path: PathBuf,
    /// Its name in the process.
    pub name: String,
    /// What to probe in it.
    pub functions: Vec<Function>,
}

/// The allocators of a process: of every file it has mapped, and of `also`, the functions found. Files that have been
/// looked at are remembered in `known`, by inode and name.
pub fn find(proc_root: &Path, pid: u32, also: &[PathBuf], known: &mut Known) -> Vec<Library> {
    let mut libraries = Vec::new();
    for entry in maps::read(proc_root, pid).unwrap_or_default() {
        if entry.inode == 0 || !entry.path.starts_with('/') {
            continue;
        }
        let key = (entry.device, entry.inode, entry.path.clone());
        let asked = also.iter().any(|path| path.as_path() == Path::new(&entry.path));
        let functions = known.entry(key).or_insert_with(|| {
            let file = File::open(by_mapping(proc_root, pid, &entry))
                .or_else(|_| File::open(by_name(proc_root, pid, &entry)));
            file.map_or_else(|_| Vec::new(), |file| functions(&file, asked).unwrap_or_default())
        });
        let name = entry.path.clone();
        if !functions.is_empty() && !libraries.iter().any(|library: &Library| library.name == name) {
            let named = by_name(proc_root, pid, &entry);
            let path = if is_same(&named, &entry) { named } else { by_mapping(proc_root, pid, &entry) };
            libraries.push(Library { path, name, functions: functions.clone() });
        }
    }
    libraries
}

/// Files that have been looked at.
pub type Known = BTreeMap<((u32, u32), u64, String), Vec<Function>>;

fn by_mapping(proc_root: &Path, pid: u32, entry: &MapsEntry) -> PathBuf {
    proc_root.join(format!("{pid}/map_files/{:x}-{:x}", entry.start, entry.end))
}

fn by_name(proc_root: &Path, pid: u32, entry: &MapsEntry) -> PathBuf {
    proc_root.join(format!("{pid}/root")).join(entry.path.trim_start_matches('/'))
}

fn is_same(path: &Path, entry: &MapsEntry) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    path.metadata().is_ok_and(|metadata| metadata.ino() == entry.inode)
}

/// The allocator's functions in an ELF file of this machine; none if it has no allocator, which takes something that
/// allocates and something that frees under the same prefix. `asked` for is all that has such a name.
fn functions(file: &File, asked: bool) -> Option<Vec<Function>> {
    let cache = ReadCache::new(file);
    let found = symbols(&cache)?;
    let has = |name: &str| found.contains_key(name);
    let mut functions: Vec<Function> = Vec::new();
    let mut add = |name: &str, call: Call| {
        let Some(symbol) = found.get(name) else { return };
        let code = cache.read_bytes_at(symbol.file_offset, symbol.size.min(MAX_CODE)).unwrap_or_default();
        let site = site::find(code, call.arguments(), call.returns());
        let file_offset = symbol.file_offset + site.offset;
        // Several names of one function.
        if !functions.iter().any(|other| other.file_offset == file_offset) {
            functions.push(Function { name: name.to_owned(), call, file_offset, emulated: site.emulated });
        }
    };
    for prefix in PREFIXES {
        let frees = ["free", "dallocx", "sdallocx"].iter().any(|name| has(&format!("{prefix}{name}")));
        let allocates = ["malloc", "mallocx"].iter().any(|name| has(&format!("{prefix}{name}")));
        if (frees && allocates) || asked {
            FUNCTIONS.iter().for_each(|(name, call)| add(&format!("{prefix}{name}"), *call));
        }
    }
    if has("mi_malloc") && has("mi_free") || has("cfree") && has("malloc") {
        OTHERS.iter().for_each(|(name, call)| add(name, *call));
    }
    if has("__libc_start_main") {
        MAPPING.iter().for_each(|(name, call)| add(name, *call));
    }
    Some(functions)
}

/// A function's code.
struct Symbol {
    file_offset: u64,
    size: u64,
}

/// The functions that a file defines and that may matter, by name.
fn symbols<'a, R: ReadRef<'a>>(data: R) -> Option<BTreeMap<String, Symbol>> {
    type Elf = FileHeader64<Endianness>;
    let header = Elf::parse(data).ok()?;
    let endian = header.endian().ok()?;
    if header.e_machine.get(endian) != NATIVE_MACHINE {
        return None;
    }
    let segments: Vec<(u64, u64, u64)> = header
        .program_headers(endian, data)
        .ok()?
        .iter()
        .filter(|segment| segment.p_type(endian) == PT_LOAD)
        .map(|segment| (segment.p_vaddr(endian), segment.p_filesz(endian), segment.p_offset(endian)))
        .collect();
    let sections = header.sections(endian, data).ok()?;
    let mut found = BTreeMap::new();
    for kind in [SHT_DYNSYM, SHT_SYMTAB] {
        let table: SymbolTable<'_, Elf, R> = sections.symbols(endian, data, kind).ok()?;
        if table.section() == SectionIndex(0) {
            continue;
        }
        for symbol in table.iter() {
            if symbol.st_shndx(endian) == SHN_UNDEF || !matches!(symbol.st_type(), STT_FUNC | STT_NOTYPE) {
                continue;
            }
            let Ok(name) = symbol.name(endian, table.strings()) else { continue };
            if !is_interesting(name) {
                continue;
            }
            let address = symbol.st_value(endian);
            let segment = segments
                .iter()
                .find(|(start, size, _)| (*start..start.saturating_add(*size)).contains(&address));
            if let (Some((start, _, offset)), Ok(name)) = (segment, std::str::from_utf8(name)) {
                let symbol = Symbol { file_offset: address - start + offset, size: symbol.st_size(endian) };
                found.entry(name.to_owned()).or_insert(symbol);
            }
        }
    }
    Some(found)
}

/// The C library's mark, and whatever this file names.
fn is_interesting(name: &[u8]) -> bool {
    let listed = |list: &[(&str, Call)], name: &[u8]| list.iter().any(|(known, _)| known.as_bytes() == name);
    name == b"__libc_start_main"
        || listed(&OTHERS, name)
        || listed(&MAPPING, name)
        || PREFIXES
            .iter()
            .any(|prefix| name.strip_prefix(prefix.as_bytes()).is_some_and(|rest| listed(&FUNCTIONS, rest)))
}

#[cfg(target_arch = "x86_64")]
const NATIVE_MACHINE: u16 = object::elf::EM_X86_64;
#[cfg(target_arch = "aarch64")]
const NATIVE_MACHINE: u16 = object::elf::EM_AARCH64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn this_very_process_has_an_allocator() {
        let libraries = find(Path::new("/proc"), std::process::id(), &[], &mut Known::new());
        let functions: Vec<&Function> = libraries.iter().flat_map(|library| &library.functions).collect();
        for call in [Call::Malloc, Call::Calloc, Call::Realloc, Call::PosixMemalign, Call::Free, Call::Mmap] {
            assert!(functions.iter().any(|function| function.call == call), "{call:?} in {libraries:#?}");
        }
        assert!(libraries.iter().all(|library| library.path.exists()));
        let frequent = functions.iter().filter(|function| matches!(&*function.name, "malloc" | "free"));
        assert!(frequent.clone().count() >= 2);
        if cfg!(target_arch = "x86_64") {
            // In every build of glibc that was looked at.
            assert!(frequent.clone().all(|function| function.emulated), "{libraries:#?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn damaged_files_never_panic(at in 0usize..4096, byte: u8, cut in 0usize..65536) {
            let mut data = std::fs::read("/bin/true").unwrap();
            let len = data.len();
            data[at.min(len - 1)] = byte;
            data.truncate(cut.max(at));
            let _any_result = symbols(&*data);
        }
    }
}
