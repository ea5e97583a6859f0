//! The allocation probe: which functions of a process are its allocator's, and where they can be probed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::{Path, PathBuf},
};

use object::{
    Endianness, ReadCache, ReadRef, SectionIndex,
    elf::{
        FileHeader64, PF_X, PT_LOAD, R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT, SHN_UNDEF, SHT_DYNSYM,
        SHT_SYMTAB, STT_FUNC, STT_NOTYPE,
    },
    read::elf::{FileHeader, ProgramHeader, Rela, SectionHeader, SectionTable, Sym, SymbolTable},
};
use profiler_common::alloc::Call;

use crate::{
    probe::alloc::{
        exits::{self, Exits, Slot},
        site,
    },
    process::{mapped, maps},
};

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

/// Functions that map memory, of the C library and of allocators that take its place (tcmalloc has its own).
const MAPPING: [(&str, Call); 3] = [("mmap", Call::Mmap), ("mmap64", Call::Mmap), ("munmap", Call::Munmap)];

/// C++'s operator new of allocators that have one which does not end in malloc: as it is called in files, and what it is.
const NEW: [(&str, &str); 8] = [
    ("_Znwm", "new"),
    ("_Znam", "new[]"),
    ("_ZnwmRKSt9nothrow_t", "new(nothrow)"),
    ("_ZnamRKSt9nothrow_t", "new[](nothrow)"),
    ("_ZnwmSt11align_val_t", "new(align)"),
    ("_ZnamSt11align_val_t", "new[](align)"),
    ("_ZnwmSt11align_val_tRKSt9nothrow_t", "new(align,nothrow)"),
    ("_ZnamSt11align_val_tRKSt9nothrow_t", "new[](align,nothrow)"),
];

/// Operator delete, likewise.
const DELETE: [(&str, &str); 12] = [
    ("_ZdlPv", "delete"),
    ("_ZdaPv", "delete[]"),
    ("_ZdlPvm", "delete(size)"),
    ("_ZdaPvm", "delete[](size)"),
    ("_ZdlPvRKSt9nothrow_t", "delete(nothrow)"),
    ("_ZdaPvRKSt9nothrow_t", "delete[](nothrow)"),
    ("_ZdlPvSt11align_val_t", "delete(align)"),
    ("_ZdaPvSt11align_val_t", "delete[](align)"),
    ("_ZdlPvmSt11align_val_t", "delete(size,align)"),
    ("_ZdaPvmSt11align_val_t", "delete[](size,align)"),
    ("_ZdlPvSt11align_val_tRKSt9nothrow_t", "delete(align,nothrow)"),
    ("_ZdaPvSt11align_val_tRKSt9nothrow_t", "delete[](align,nothrow)"),
];

/// Throws C++'s exceptions.
const THROW: &str = "__cxa_throw";

/// Functions that never return and that an allocator may call.
const NORETURN: [&str; 9] = [
    "abort",
    "exit",
    "_exit",
    "__assert_fail",
    "__stack_chk_fail",
    "__cxa_throw",
    "__cxa_rethrow",
    "_Unwind_Resume",
    "_ZSt17__throw_bad_allocv",
];

/// Relocations looked at, at most: the largest libraries have some hundreds of thousands.
const MAX_RELOCATIONS: usize = 1 << 21;

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
    /// Its return instructions, as offsets in the file, where its return address must not be replaced: it may throw.
    pub exits: Vec<u64>,
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
    /// What allocates in it and cannot be probed.
    pub unseen: Vec<&'static str>,
}

/// The allocators of a process: of every file it has mapped, and of `also`, the functions found. Files that have been
/// looked at are remembered in `known`, by inode and name.
pub fn find(proc_root: &Path, pid: u32, also: &[PathBuf], known: &mut Known) -> Vec<Library> {
    let mut libraries = Vec::new();
    if known.len() >= MOST_KNOWN {
        known.clear();
    }
    for entry in maps::read(proc_root, pid).unwrap_or_default() {
        if entry.inode == 0 || !entry.path.starts_with('/') {
            continue;
        }
        let key = (entry.device, entry.inode, entry.path.clone());
        let asked = also.iter().any(|path| path.as_path() == Path::new(&entry.path));
        let found = known.entry(key).or_insert_with(|| {
            mapped::open(proc_root, pid, &entry)
                .map_or_else(|_| Found::default(), |file| functions(&file, asked).unwrap_or_default())
        });
        let name = entry.path.clone();
        if !found.functions.is_empty() && !libraries.iter().any(|library: &Library| library.name == name) {
            let path = mapped::path(proc_root, pid, &entry);
            let Found { functions, unseen } = found.clone();
            libraries.push(Library { path, name, functions, unseen });
        }
    }
    // Exceptions matter where a function is watched that throws.
    let of = |library: &Library, call| library.functions.iter().any(|function| function.call == call);
    if !libraries.iter().any(|library| of(library, Call::New)) {
        libraries
            .iter_mut()
            .for_each(|library| library.functions.retain(|function| function.call != Call::Throw));
        libraries.retain(|library| !library.functions.is_empty());
    }
    libraries
}

/// Files that are remembered at once.
pub const MOST_KNOWN: usize = 4_096;

/// Files that have been looked at.
pub type Known = BTreeMap<((u32, u32), u64, String), Found>;

/// What there is in a file, see [`Library`].
#[derive(Clone, Debug, Default)]
pub struct Found {
    functions: Vec<Function>,
    unseen: Vec<&'static str>,
}

/// The allocator's functions in an ELF file of this machine; none if it has no allocator, which takes something that
/// allocates and something that frees under the same prefix. `asked` for is all that has such a name.
pub(crate) fn functions(file: &File, asked: bool) -> Option<Found> {
    let cache = ReadCache::new(file);
    let image = Image::parse(&cache)?;
    let has = |name: &str| image.symbols.contains_key(name);
    let mut found = Found::default();
    for prefix in PREFIXES {
        let frees = ["free", "dallocx", "sdallocx"].iter().any(|name| has(&format!("{prefix}{name}")));
        let allocates = ["malloc", "mallocx"].iter().any(|name| has(&format!("{prefix}{name}")));
        if (frees && allocates) || asked {
            FUNCTIONS.iter().for_each(|(name, call)| found.add(&image, &format!("{prefix}{name}"), *call));
        }
    }
    if has("mi_malloc") && has("mi_free") || has("cfree") && has("malloc") {
        OTHERS.iter().for_each(|(name, call)| found.add(&image, name, *call));
    }
    if !found.functions.is_empty() || asked {
        found.add_operators(&image);
    }
    found.add(&image, THROW, Call::Throw);
    if has("__libc_start_main") || has("malloc") && has("free") {
        MAPPING.iter().for_each(|(name, call)| found.add(&image, name, *call));
    }
    Some(found)
}

impl Found {
    fn add<'a, R: ReadRef<'a>>(&mut self, image: &Image<'a, R>, name: &str, call: Call) {
        if let Some(symbol) = image.symbols.get(name) {
            self.push(image, symbol, name.to_owned(), call, Vec::new());
        }
    }

    fn push<'a, R: ReadRef<'a>>(
        &mut self,
        image: &Image<'a, R>,
        symbol: &Symbol,
        name: String,
        call: Call,
        exits: Vec<u64>,
    ) {
        let code =
            image.data.read_bytes_at(symbol.file_offset, symbol.size.min(MAX_CODE)).unwrap_or_default();
        let site = site::find(code, call.arguments(), call.returns());
        let file_offset = symbol.file_offset + site.offset;
        // Several names of one function.
        if !self.functions.iter().any(|other| other.file_offset == file_offset) {
            self.functions.push(Function { name, call, file_offset, emulated: site.emulated, exits });
        }
    }

    /// Operators that do not end in a function that is probed already.
    fn add_operators<'a, R: ReadRef<'a>>(&mut self, image: &Image<'a, R>) {
        let names = FUNCTIONS.iter().flat_map(|(name, _)| PREFIXES.map(|prefix| format!("{prefix}{name}")));
        let names = names.chain(OTHERS.iter().map(|(name, _)| (*name).to_owned()));
        let mut probed: BTreeSet<u64> =
            names.filter_map(|name| Some(image.symbols.get(&name)?.address)).collect();
        let bytes = |address: u64| image.code(address);
        let code = exits::Code { bytes: &bytes, slots: &image.slots, noreturn: &image.noreturn };
        let mut of_allocator = false;
        for (mangled, name) in NEW {
            let Some(symbol) = image.symbols.get(mangled) else { continue };
            if probed.contains(&symbol.address) {
                continue;
            }
            match exits::find(symbol.address, &code, &probed) {
                Exits::InOthers => {
                    probed.insert(symbol.address);
                }
                Exits::Unknown => self.unseen.push(name),
                Exits::At(exits) => {
                    let exits = exits.into_iter().filter_map(|exit| image.file_offset(exit)).collect();
                    self.push(image, symbol, name.to_owned(), Call::New, exits);
                    probed.insert(symbol.address);
                    of_allocator = true;
                }
            }
        }
        for (mangled, name) in DELETE.into_iter().filter(|_| of_allocator) {
            let Some(symbol) = image.symbols.get(mangled) else { continue };
            if !probed.contains(&symbol.address)
                && exits::find(symbol.address, &code, &probed) != Exits::InOthers
            {
                self.push(image, symbol, name.to_owned(), Call::Free, Vec::new());
                probed.insert(symbol.address);
            }
        }
    }
}

/// A function's code.
struct Symbol {
    address: u64,
    file_offset: u64,
    size: u64,
}

type Elf = FileHeader64<Endianness>;

/// An ELF file of this machine, as far as it matters here.
struct Image<'a, R> {
    data: R,
    /// Loaded parts: address, size in the file, offset in it.
    segments: Vec<(u64, u64, u64)>,
    /// The functions it defines that may matter, by name.
    symbols: BTreeMap<String, Symbol>,
    /// Those of [`NORETURN`].
    noreturn: BTreeSet<u64>,
    /// What the dynamic linker fills with addresses of functions.
    slots: BTreeMap<u64, Slot>,
    _data: std::marker::PhantomData<&'a ()>,
}

impl<'a, R: ReadRef<'a>> Image<'a, R> {
    fn parse(data: R) -> Option<Self> {
        let header = Elf::parse(data).ok()?;
        let endian = header.endian().ok()?;
        if header.e_machine.get(endian) != NATIVE_MACHINE {
            return None;
        }
        let segments = header
            .program_headers(endian, data)
            .ok()?
            .iter()
            .filter(|segment| segment.p_type(endian) == PT_LOAD && segment.p_flags(endian) & PF_X != 0)
            .map(|segment| (segment.p_vaddr(endian), segment.p_filesz(endian), segment.p_offset(endian)))
            .collect();
        let (symbols, noreturn, slots, _data) = Default::default();
        let mut image = Image { data, segments, symbols, noreturn, slots, _data };
        let sections = header.sections(endian, data).ok()?;
        for kind in [SHT_DYNSYM, SHT_SYMTAB] {
            let table = sections.symbols(endian, data, kind).ok()?;
            image.add_symbols(&table);
        }
        if NEW.iter().any(|(name, _)| image.symbols.contains_key(*name)) {
            image.add_slots(endian, &sections);
        }
        Some(image)
    }

    fn add_symbols(&mut self, table: &SymbolTable<'a, Elf, R>) {
        if table.section() == SectionIndex(0) {
            return;
        }
        for symbol in table.iter() {
            let endian = Endianness::default();
            if symbol.st_shndx(endian) == SHN_UNDEF || !matches!(symbol.st_type(), STT_FUNC | STT_NOTYPE) {
                continue;
            }
            let Ok(name) = symbol.name(endian, table.strings()) else { continue };
            let address = symbol.st_value(endian);
            if is_noreturn(name) {
                self.noreturn.insert(address);
            }
            if !is_interesting(name) {
                continue;
            }
            if let (Some(file_offset), Ok(name)) = (self.file_offset(address), std::str::from_utf8(name)) {
                let symbol = Symbol { address, file_offset, size: symbol.st_size(endian) };
                self.symbols.entry(name.to_owned()).or_insert(symbol);
            }
        }
    }

    fn add_slots(&mut self, endian: Endianness, sections: &SectionTable<'a, Elf, R>) {
        let Ok(symbols) = sections.symbols(endian, self.data, SHT_DYNSYM) else { return };
        let mut left = MAX_RELOCATIONS;
        for section in sections.iter() {
            let Ok(Some((relocations, link))) = section.rela(endian, self.data) else { continue };
            if link != symbols.section() {
                continue;
            }
            let some = &relocations[..relocations.len().min(left)];
            left -= some.len();
            for relocation in some {
                let kind = relocation.r_type(endian, false);
                let symbol = relocation.symbol(endian, false).and_then(|index| symbols.symbol(index).ok());
                let Some(symbol) = symbol.filter(|_| matches!(kind, R_X86_64_JUMP_SLOT | R_X86_64_GLOB_DAT))
                else {
                    continue;
                };
                let defined = symbol.st_shndx(endian) != SHN_UNDEF;
                let slot = Slot {
                    address: defined.then(|| symbol.st_value(endian)),
                    noreturn: symbol.name(endian, symbols.strings()).is_ok_and(is_noreturn),
                };
                self.slots.insert(relocation.r_offset(endian), slot);
            }
        }
    }

    /// The loaded part that an address is in.
    fn segment(&self, address: u64) -> Option<(u64, u64, u64)> {
        let holds =
            |(start, size, _): &&(u64, u64, u64)| (*start..start.saturating_add(*size)).contains(&address);
        self.segments.iter().find(holds).copied()
    }

    fn file_offset(&self, address: u64) -> Option<u64> {
        self.segment(address).map(|(start, _, offset)| (address - start).wrapping_add(offset))
    }

    /// The bytes at an address, some.
    fn code(&self, address: u64) -> &'a [u8] {
        let found = self.segment(address).and_then(|(start, size, offset)| {
            let into = address - start;
            self.data.read_bytes_at(offset.checked_add(into)?, (size - into).min(16)).ok()
        });
        found.unwrap_or_default()
    }
}

fn is_noreturn(name: &[u8]) -> bool {
    NORETURN.iter().any(|known| known.as_bytes() == name)
}

/// The C library's mark, and whatever this file names.
fn is_interesting(name: &[u8]) -> bool {
    let listed = |list: &[(&str, Call)], name: &[u8]| list.iter().any(|(known, _)| known.as_bytes() == name);
    name == b"__libc_start_main"
        || name == THROW.as_bytes()
        || NEW.iter().chain(&DELETE).any(|(known, _)| known.as_bytes() == name)
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
            let _any_result = Image::parse(&*data);
        }
    }
}
