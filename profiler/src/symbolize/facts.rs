//! What an ELF file has of names, and where it says that more are to be found.

use std::fs::File;

use object::{
    Endianness, ReadCache, ReadRef,
    elf::{FileHeader64, SHT_NOBITS, SHT_SYMTAB},
    read::elf::{FileHeader, SectionHeader},
};

use crate::process::go::GoSection;

/// Bytes of a section that are copied at most.
const LARGEST: u64 = 256 << 20;

/// A file's names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// It has a symbol table, and not only the names that it exports.
    pub symbols: bool,
    /// It has debug information.
    pub debug: bool,
    /// The file that its debug information was moved to, and that file's checksum (CRC-32).
    pub link: Option<(Vec<u8>, u32)>,
    /// Build id of the file that its debug information shares parts with (`dwz`).
    pub shared: Option<Vec<u8>>,
    /// Its mini debug information, if it has no symbols: an ELF file with symbols only, compressed with xz.
    pub mini: Option<Vec<u8>>,
    /// Go's own table of functions, if it has no symbols.
    pub go: Option<GoSection<'static>>,
}

impl Facts {
    /// Reads them; nothing of what is not an ELF file of 64 bits.
    pub fn read(file: &File) -> Facts {
        Self::parse(&ReadCache::new(file)).unwrap_or_default()
    }

    /// The same from any bytes.
    pub fn parse<'a, R: ReadRef<'a>>(data: R) -> Option<Facts> {
        let header = FileHeader64::<Endianness>::parse(data).ok()?;
        let endian = header.endian().ok()?;
        let sections = header.sections(endian, data).ok()?;
        let mut facts = Facts::default();
        let mut mini = None;
        for section in sections.iter() {
            facts.symbols |= section.sh_type(endian) == SHT_SYMTAB;
            let Ok(name) = sections.section_name(endian, section) else { continue };
            let there = section.sh_type(endian) != SHT_NOBITS && section.sh_size(endian) > 0;
            let bytes = || {
                let small = there && section.sh_size(endian) <= LARGEST;
                section.data(endian, data).ok().filter(|_| small)
            };
            match name {
                b".debug_info" | b".zdebug_info" => facts.debug |= there,
                b".gnu_debuglink" => facts.link = bytes().and_then(|bytes| link(bytes, endian)),
                b".gnu_debugaltlink" => {
                    let id = bytes().and_then(|bytes| bytes.splitn(2, |byte| *byte == 0).nth(1));
                    facts.shared = id.filter(|id| !id.is_empty() && id.len() <= 64).map(<[u8]>::to_vec);
                }
                b".gnu_debugdata" => mini = bytes(),
                _ => {}
            }
        }
        // Who has symbols needs neither.
        if !facts.symbols {
            facts.mini = mini.map(<[u8]>::to_vec);
            facts.go = GoSection::find(data).map(GoSection::into_owned);
        }
        Some(facts)
    }
}

/// A name that ends in zero, and after filling up to four bytes a checksum.
fn link(bytes: &[u8], endian: Endianness) -> Option<(Vec<u8>, u32)> {
    use object::Endian as _;
    let end = bytes.iter().position(|byte| *byte == 0)?;
    let checksum = bytes.get((end + 4) & !3..)?.first_chunk()?;
    (end > 0).then(|| (bytes[..end].to_vec(), endian.read_u32(*checksum)))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_link_is_a_name_and_a_checksum() {
        let little = Endianness::Little;
        assert_eq!(link(b"ab.debug\0\0\0\0\x01\x02\0\0", little), Some((b"ab.debug".to_vec(), 0x201)));
        assert_eq!(link(b"abc\0\x01\0\0\0", little), Some((b"abc".to_vec(), 1)));
        assert_eq!(
            [&b"abc"[..], b"abc\0", b"\0\0\0\0\0\0\0\0", b""].map(|bytes| link(bytes, little)),
            [const { None }; 4]
        );
    }

    #[test]
    fn this_program_has_both() {
        let facts = Facts::read(&File::open("/proc/self/exe").unwrap());
        assert!(facts.symbols && facts.go.is_none());
    }

    proptest! {
        #[test]
        fn damaged_files_never_panic(at in 0usize..8192, byte: u8, cut in 0usize..8192) {
            let mut data = vec![0; 8192];
            File::open("/proc/self/exe").unwrap().read_exact(&mut data).unwrap();
            data[at] = byte;
            data.truncate(cut);
            Facts::parse(&*data);
        }
    }
}
