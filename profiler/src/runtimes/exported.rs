//! What an ELF file exports (`.dynsym`, which stripping leaves in place): addresses of symbols, and the values of
//! constants.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::FileExt as _,
};

use object::{
    Endianness, ReadCache, ReadRef,
    elf::{FileHeader64, PT_LOAD, SHT_DYNSYM},
    read::elf::{FileHeader, ProgramHeader, Sym},
};
use rustc_hash::FxHashMap;

/// Bytes of a symbol's value that are kept.
const VALUE_BYTES: usize = 8;

/// An exported symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Virtual address in the file.
    pub address: u64,
    /// Size, bytes.
    pub size: u64,
    /// The first bytes of what is there, as far as the file has them; zeros elsewhere, as in the running program.
    pub value: [u8; VALUE_BYTES],
}

impl Symbol {
    /// The value as a C `int`.
    pub fn int(&self) -> i32 {
        let [a, b, c, d, ..] = self.value;
        i32::from_ne_bytes([a, b, c, d])
    }
}

/// Exported symbols by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exported(FxHashMap<String, Symbol>);

impl Exported {
    /// Reads those whose names are `wanted`; `None` if the file is no 64-bit ELF file of this machine's byte order.
    pub fn read(file: &File, wanted: impl Fn(&[u8]) -> bool) -> Option<Exported> {
        Self::parse(&ReadCache::new(Positioned { file, position: 0 }), wanted)
    }

    /// The same from any bytes.
    pub fn parse<'a, R: ReadRef<'a>>(data: R, wanted: impl Fn(&[u8]) -> bool) -> Option<Exported> {
        let header = FileHeader64::<Endianness>::parse(data).ok()?;
        let endian = header.endian().ok()?;
        let segments = header.program_headers(endian, data).ok()?;
        let value_at = |address: u64| {
            let mut value = [0; VALUE_BYTES];
            let segment = segments.iter().find_map(|segment| {
                let within = address.checked_sub(segment.p_vaddr(endian))?;
                let left = segment.p_filesz(endian).checked_sub(within)?;
                (segment.p_type(endian) == PT_LOAD).then_some((segment.p_offset(endian), within, left))
            });
            if let Some((offset, within, left)) = segment
                && let Some(at) = offset.checked_add(within)
                && let Ok(bytes) = data.read_bytes_at(at, left.min(VALUE_BYTES as u64))
            {
                value[..bytes.len()].copy_from_slice(bytes);
            }
            value
        };
        let symbols = header.sections(endian, data).ok()?.symbols(endian, data, SHT_DYNSYM).ok()?;
        let found = symbols.iter().filter(|symbol| !symbol.is_undefined(endian)).filter_map(|symbol| {
            let name = symbol.name(endian, symbols.strings()).ok().filter(|name| wanted(name))?;
            let address = symbol.st_value(endian);
            let symbol = Symbol { address, size: symbol.st_size(endian), value: value_at(address) };
            Some((crate::text::clean(name), symbol))
        });
        Some(Exported(found.collect()))
    }

    /// The symbol of that name.
    pub fn get(&self, name: &str) -> Option<&Symbol> {
        self.0.get(name)
    }

    /// Whether there is none at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A reader with a position of its own: that of an open file is shared with the thread that builds unwind tables.
struct Positioned<'a> {
    file: &'a File,
    position: u64,
}

impl Read for Positioned<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(into, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for Positioned<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (base, offset) = match to {
            SeekFrom::Start(position) => (position, 0),
            SeekFrom::End(offset) => (self.file.metadata()?.len(), offset),
            SeekFrom::Current(offset) => (self.position, offset),
        };
        self.position = base.checked_add_signed(offset).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_c_library_exports_malloc() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let libc = maps
            .lines()
            .find_map(|line| line.split_whitespace().nth(5).filter(|path| path.contains("libc.so")));
        let file = File::open(libc.unwrap()).unwrap();
        let exported = Exported::read(&file, |name| name == b"malloc").unwrap();
        assert!(exported.get("malloc").unwrap().address > 0);
        assert!(exported.get("free").is_none());
    }

    proptest! {
        #[test]
        fn damaged_files_never_panic(at in 0usize..4096, byte: u8, cut in 0usize..4096) {
            let mut data = vec![0; 4096];
            File::open("/proc/self/exe").unwrap().read_exact(&mut data).unwrap();
            data[at] = byte;
            data.truncate(cut);
            Exported::parse(&*data, |_| true);
        }
    }
}
