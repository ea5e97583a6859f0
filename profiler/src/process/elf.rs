//! The few facts about an ELF file that resolving addresses takes: its loaded segments and its build id.

use std::fs::File;

use object::{
    Endianness, FileKind, ReadCache, ReadRef,
    elf::{FileHeader32, FileHeader64, PF_X, PT_LOAD},
    read::elf::{FileHeader, ProgramHeader},
};

/// Facts about one ELF file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ElfInfo {
    /// Executable loaded segments: `(file offset, size in the file, virtual address)`.
    segments: Vec<(u64, u64, u64)>,
    /// GNU build id; empty if there is none.
    pub build_id: Vec<u8>,
}

impl ElfInfo {
    /// Reads the file's headers; `None` if it is not ELF.
    pub fn read(file: &File) -> Option<ElfInfo> {
        Self::parse(&ReadCache::new(file))
    }

    /// The same from any bytes.
    pub fn parse<'a, R: ReadRef<'a>>(data: R) -> Option<ElfInfo> {
        match FileKind::parse(data).ok()? {
            FileKind::Elf64 => Self::parse_class::<FileHeader64<Endianness>, R>(data),
            FileKind::Elf32 => Self::parse_class::<FileHeader32<Endianness>, R>(data),
            _ => None,
        }
    }

    fn parse_class<'a, H: FileHeader<Endian = Endianness>, R: ReadRef<'a>>(data: R) -> Option<ElfInfo> {
        let header = H::parse(data).ok()?;
        let endian = header.endian().ok()?;
        let mut info = ElfInfo::default();
        for segment in header.program_headers(endian, data).ok()? {
            if segment.p_type(endian) == PT_LOAD && segment.p_flags(endian) & PF_X != 0 {
                info.segments.push((
                    segment.p_offset(endian).into(),
                    segment.p_filesz(endian).into(),
                    segment.p_vaddr(endian).into(),
                ));
            }
            if let Ok(Some(mut notes)) = segment.notes(endian, data) {
                while let Ok(Some(note)) = notes.next() {
                    if note.name() == b"GNU" && note.n_type(endian) == object::elf::NT_GNU_BUILD_ID {
                        info.build_id = note.desc().iter().copied().take(64).collect();
                    }
                }
            }
        }
        Some(info)
    }

    /// What to add (wrapping) to an offset within an executable mapping that starts at `file_offset` to get the
    /// virtual address the file's headers place it at. The kernel maps whole pages, so a mapping may start up to
    /// a page before its segment.
    pub fn bias(&self, file_offset: u64) -> Option<u64> {
        const LARGEST_PAGE: u64 = 64 * 1024;
        let covering = |slack: u64| {
            self.segments.iter().find(move |&&(offset, size, _)| {
                file_offset >= offset.saturating_sub(slack) && file_offset < offset.saturating_add(size)
            })
        };
        let &(offset, _, address) = covering(0).or_else(|| covering(LARGEST_PAGE))?;
        Some(address.wrapping_sub(offset))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn this_very_program_is_understood() {
        let file = File::open("/proc/self/exe").unwrap();
        let info = ElfInfo::read(&file).unwrap();
        let &(offset, _, address) = info.segments.last().unwrap();
        assert_eq!(info.bias(offset), Some(address.wrapping_sub(offset)));
        assert_eq!(info.bias(u64::MAX), None);
    }

    proptest! {
        #[test]
        fn damaged_headers_never_panic(at in 0usize..4096, byte: u8, cut in 0usize..4096) {
            let mut data = vec![0; 4096];
            File::open("/proc/self/exe").unwrap().read_exact(&mut data).unwrap();
            data[at] = byte;
            data.truncate(cut);
            ElfInfo::parse(&*data);
        }
    }
}
