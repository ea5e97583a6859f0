//! Which files of a process are its TLS library, and where its functions can be probed: OpenSSL's, and those of whoever has
//! the same ones (BoringSSL, LibreSSL). They are found by name, in libraries as in programs that have one built in.

use std::{collections::BTreeMap, path::Path};

use object::{
    Endianness, ReadCache, ReadRef,
    elf::{FileHeader64, PF_X, PT_LOAD, SHN_UNDEF, SHT_DYNSYM, SHT_SYMTAB, STT_FUNC},
    read::elf::{FileHeader, ProgramHeader, Sym},
};
use profiler_common::tls::TlsCall;

use crate::{
    kernel::uprobe::{Breakpoint, Program},
    probe::alloc::{allocators::MOST_KNOWN, site},
    process::{mapped, maps},
};

/// When a function begins.
pub static ENTER: Program = Program { name: "tls_enter", at_return: false };
/// When it has returned.
pub static RETURN: Program = Program { name: "tls_return", at_return: true };
/// Both, in the order in which breakpoints are put in place.
pub static PROGRAMS: [&Program; 2] = [&RETURN, &ENTER];

/// The functions; the first ones of reading and writing make a library of it.
const FUNCTIONS: [(&str, TlsCall); 6] = [
    ("SSL_read", TlsCall::Read),
    ("SSL_write", TlsCall::Write),
    ("SSL_read_ex", TlsCall::ReadEx),
    ("SSL_write_ex", TlsCall::Write),
    ("SSL_do_handshake", TlsCall::Handshake),
    ("SSL_free", TlsCall::Free),
];

/// Bytes of a function that are looked at for a good place.
const CODE: u64 = 256;
/// Registers that its arguments are in, at most.
const ARGUMENTS: usize = 4;

/// A function to probe: what it does, where, and whether the kernel emulates the instruction there.
type Function = (TlsCall, u64, bool);

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// It has a TLS library, of these functions.
    Library(Vec<Function>),
    /// A program in Go, whose own library is another one.
    Go,
    /// Nothing that is known.
    Other,
}

/// Files that have been looked at, by device, inode and name.
pub type Known = BTreeMap<((u32, u32), u64, String), Content>;

/// What was found in a process.
#[derive(Debug, Default)]
pub struct Found {
    /// The name of each library's file in the process, and what to put into it.
    pub libraries: Vec<(String, Vec<Breakpoint>)>,
    /// Whether it is a program in Go.
    pub go: bool,
}

/// The TLS libraries of a process.
pub fn find(proc_root: &Path, pid: u32, known: &mut Known) -> Found {
    let mut found = Found::default();
    if known.len() >= MOST_KNOWN {
        known.clear();
    }
    for entry in maps::read(proc_root, pid).unwrap_or_default() {
        if !entry.has_name() || found.libraries.iter().any(|(name, _)| *name == entry.path) {
            continue;
        }
        let content = known.entry((entry.device, entry.inode, entry.path.clone())).or_insert_with(|| {
            let file = mapped::open(proc_root, pid, &entry);
            file.ok().and_then(|file| content(&ReadCache::new(&file))).unwrap_or(Content::Other)
        });
        match content {
            Content::Library(functions) => {
                let path = mapped::path(proc_root, pid, &entry);
                let breakpoints = functions.iter().flat_map(|function| breakpoints(&path, *function));
                found.libraries.push((entry.path, breakpoints.collect()));
            }
            Content::Go => found.go = true,
            Content::Other => {}
        }
    }
    found
}

fn breakpoints(path: &Path, (call, file_offset, emulated): Function) -> Vec<Breakpoint> {
    let at = |program| Breakpoint {
        path: path.to_owned(),
        file_offset,
        program,
        cookie: call as u64,
        emulated,
        frequent: matches!(call, TlsCall::Read | TlsCall::ReadEx | TlsCall::Write),
    };
    if call.returns() { vec![at(&RETURN), at(&ENTER)] } else { vec![at(&ENTER)] }
}

/// What an ELF file of this machine's word size is.
fn content<'a, R: ReadRef<'a>>(data: R) -> Option<Content> {
    let header = FileHeader64::<Endianness>::parse(data).ok()?;
    let endian = header.endian().ok()?;
    let sections = header.sections(endian, data).ok()?;
    let segments: Vec<_> = header
        .program_headers(endian, data)
        .ok()?
        .iter()
        .filter(|segment| segment.p_type(endian) == PT_LOAD && segment.p_flags(endian) & PF_X != 0)
        .collect();
    let file_offset = |address: u64| {
        segments.iter().find_map(|segment| {
            let into = address.checked_sub(segment.p_vaddr(endian))?;
            let left = segment.p_filesz(endian).checked_sub(into).filter(|left| *left > 0)?;
            Some((segment.p_offset(endian).checked_add(into)?, left))
        })
    };
    let mut functions: BTreeMap<usize, Function> = BTreeMap::new();
    for kind in [SHT_DYNSYM, SHT_SYMTAB] {
        let Ok(symbols) = sections.symbols(endian, data, kind) else { continue };
        for symbol in symbols.iter() {
            if symbol.st_type() != STT_FUNC || symbol.st_shndx(endian) == SHN_UNDEF {
                continue;
            }
            let Ok(name) = symbol.name(endian, symbols.strings()) else { continue };
            let wanted = FUNCTIONS.iter().position(|(wanted, _)| wanted.as_bytes() == name);
            if let Some(n) = wanted
                && let Some((offset, left)) = file_offset(symbol.st_value(endian))
            {
                let size = symbol.st_size(endian).min(CODE).min(left);
                let code = data.read_bytes_at(offset, size).unwrap_or_default();
                let call = FUNCTIONS[n].1;
                let site = site::find(code, ARGUMENTS, call.returns());
                functions.entry(n).or_insert((call, offset + site.offset, site.emulated));
            }
        }
        if functions.contains_key(&0) && functions.contains_key(&1) {
            return Some(Content::Library(functions.into_values().collect()));
        }
    }
    let is_go = sections
        .iter()
        .any(|section| sections.section_name(endian, section).is_ok_and(|name| name == b".go.buildinfo"));
    Some(if is_go { Content::Go } else { Content::Other })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(path: &str) -> Option<Content> {
        content(&*std::fs::read(path).ok()?)
    }

    #[test]
    fn what_has_no_library_says_so() {
        assert_eq!(of("/bin/true"), Some(Content::Other));
        assert_eq!(content(&b"#!/bin/sh"[..]), None);
        let found = find(Path::new("/proc"), std::process::id(), &mut Known::new());
        assert!(found.libraries.is_empty() && !found.go, "{found:?}");
    }

    #[test]
    fn openssl_is_found_where_it_is() {
        let dirs = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64"];
        let files =
            dirs.iter().flat_map(|dir| ["3", "1.1"].map(|version| format!("{dir}/libssl.so.{version}")));
        for file in files.filter(|file| Path::new(file).exists()) {
            let Some(Content::Library(functions)) = of(&file) else { panic!("{file}") };
            assert_eq!(functions.len(), FUNCTIONS.len(), "{file}");
            let breakpoints: Vec<_> =
                functions.iter().flat_map(|function| breakpoints(Path::new(&file), *function)).collect();
            assert_eq!(breakpoints.iter().filter(|at| at.program.at_return).count(), 3);
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
            let _any_result = content(&*data);
        }
    }
}
