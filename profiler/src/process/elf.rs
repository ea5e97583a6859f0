//! The few facts about an ELF file that resolving addresses takes: its loaded segments and its build id.

use std::fs::File;

use object::{
    Endianness, FileKind, ReadCache, ReadRef,
    elf::{ET_EXEC, FileHeader32, FileHeader64, PF_X, PT_LOAD},
    read::elf::{FileHeader, ProgramHeader},
};

use super::maps::MapsEntry;

/// Facts about one ELF file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ElfInfo {
    segments: Vec<Segment>,
    /// It can be loaded at its own addresses only.
    fixed: bool,
    /// GNU build id; empty if there is none.
    pub build_id: Vec<u8>,
}

/// A loaded segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    offset: u64,
    file_bytes: u64,
    address: u64,
    executable: bool,
}

/// The kernel maps whole pages, so that a mapping begins before its segment and ends after it.
const PAGE: u64 = 4096;
/// Pages of some machines are larger.
const LARGEST_PAGE: u64 = 64 * 1024;

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
        let mut info = ElfInfo { fixed: header.e_type(endian) == ET_EXEC, ..ElfInfo::default() };
        for segment in header.program_headers(endian, data).ok()? {
            if segment.p_type(endian) == PT_LOAD {
                info.segments.push(Segment {
                    offset: segment.p_offset(endian).into(),
                    file_bytes: segment.p_filesz(endian).into(),
                    address: segment.p_vaddr(endian).into(),
                    executable: segment.p_flags(endian) & PF_X != 0,
                });
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

    /// What to add (wrapping) to an offset in the file to get the virtual address that its headers place it at, for
    /// an executable mapping. Segments may share a page of the file, which is then mapped once for each: the one that
    /// fits is the one whose place, and then whose size, is that of the mapping. `base` is where the file is known to
    /// be loaded, see [`base`](Self::base).
    pub fn bias(&self, mapping: &MapsEntry, base: Option<u64>) -> Option<u64> {
        let base = if self.fixed { Some(0) } else { base };
        let len = mapping.end.saturating_sub(mapping.start);
        let fitting = |page: u64| {
            let fit = |segment: &&Segment| {
                let (first, last) = segment.pages(page);
                let overlap = last
                    .min(mapping.file_offset.saturating_add(len))
                    .saturating_sub(first.max(mapping.file_offset));
                let there = base == Some(segment.base(mapping, page));
                let begins = first == mapping.file_offset;
                let sizes = (overlap.abs_diff(len), (last - first).abs_diff(len));
                (overlap != 0).then_some((there, begins, std::cmp::Reverse(sizes)))
            };
            let code = self.segments.iter().filter(|segment| segment.executable);
            code.filter_map(|segment| Some((fit(&segment)?, segment))).max_by_key(|(fit, _)| *fit)
        };
        let (_, segment) = fitting(PAGE).or_else(|| fitting(LARGEST_PAGE))?;
        Some(segment.address.wrapping_sub(segment.offset))
    }

    /// Where the file is loaded, as one of its mappings tells: what the kernel added (wrapping) to its addresses.
    /// `None` for one of which that is not certain.
    pub fn base(&self, mapping: &MapsEntry) -> Option<u64> {
        let mut beginning =
            self.segments.iter().filter(|segment| segment.pages(PAGE).0 == mapping.file_offset);
        match (beginning.next(), beginning.next()) {
            (Some(segment), None) => Some(segment.base(mapping, PAGE)),
            _ => None,
        }
    }

    /// Code in a range of virtual addresses that lies in the pages of one segment: its first address, its offset in the
    /// file, and how many bytes.
    pub fn code(&self, start: u64, end: u64) -> Option<(u64, u64, u64)> {
        let mut code = self.segments.iter().filter(|segment| segment.executable);
        code.find_map(|segment| {
            let last = segment.address.checked_add(segment.file_bytes)?;
            let pages = (segment.address & !(PAGE - 1), last.checked_add(PAGE - 1)? & !(PAGE - 1));
            let inside = pages.0 <= start && end <= pages.1;
            let (first, end) = (start.max(segment.address), end.min(last));
            let inside = inside && first < end;
            inside.then(|| (first, segment.offset.wrapping_add(first - segment.address), end - first))
        })
    }
}

impl Segment {
    /// Its pages in the file.
    fn pages(&self, page: u64) -> (u64, u64) {
        let end = self.offset.saturating_add(self.file_bytes);
        (self.offset & !(page - 1), end.saturating_add(page - 1) & !(page - 1))
    }

    /// Where the file is loaded if a mapping shows this segment.
    fn base(&self, mapping: &MapsEntry, page: u64) -> u64 {
        let (first, _) = self.pages(page);
        let into = mapping.file_offset.wrapping_sub(first);
        mapping.start.wrapping_sub(self.address & !(page - 1)).wrapping_sub(into)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use proptest::prelude::*;

    use super::*;

    fn mapping(start: u64, end: u64, file_offset: u64) -> MapsEntry {
        MapsEntry { start, end, file_offset, device: (0, 0), inode: 1, path: "/a".into() }
    }

    fn file(fixed: bool, segments: &[(u64, u64, u64)]) -> ElfInfo {
        let segment =
            |&(offset, file_bytes, address)| Segment { offset, file_bytes, address, executable: true };
        ElfInfo { segments: segments.iter().map(segment).collect(), fixed, build_id: Vec::new() }
    }

    #[test]
    fn this_very_program_is_understood() {
        let info = ElfInfo::read(&File::open("/proc/self/exe").unwrap()).unwrap();
        let segment = info.segments.iter().find(|segment| segment.executable).unwrap();
        let (first, last) = segment.pages(PAGE);
        let bias = segment.address.wrapping_sub(segment.offset);
        assert_eq!(info.bias(&mapping(0x7000_0000, 0x7000_0000 + last - first, first), None), Some(bias));
        assert_eq!(info.bias(&mapping(0x1000, 0x2000, 0xffff_ffff_ffff_f000), None), None);
        let place = (segment.address, segment.offset);
        assert_eq!(info.code(place.0 & !(PAGE - 1), place.0 + 9), Some((place.0, place.1, 9)));
        assert_eq!(info.code(0, u64::MAX), None);
    }

    #[test]
    fn segments_that_share_a_page_are_told_apart() {
        // The second and the third begin in the same page of the file.
        let segments = [(0x1000, 0x200, 0x40_1000), (0x2010, 0x80, 0x5a0_0010), (0x2098, 0x3000, 0x7c0_0098)];
        let second = mapping(0x5a0_0000, 0x5a0_1000, 0x2000);
        let third = mapping(0x7c0_0000, 0x7c0_4000, 0x2000);
        let at = |address: u64, offset: u64| Some(address - offset);
        let fixed = file(true, &segments);
        assert_eq!(fixed.bias(&second, None), at(0x5a0_0010, 0x2010));
        assert_eq!(fixed.bias(&third, None), at(0x7c0_0098, 0x2098));
        // The same, loaded anywhere: the sizes tell; or if they are the same, where the rest of the file is.
        let moved = |it: &MapsEntry| mapping(it.start + 0x1000_0000, it.end + 0x1000_0000, it.file_offset);
        let anywhere = file(false, &segments);
        assert_eq!(anywhere.bias(&moved(&second), None), at(0x5a0_0010, 0x2010));
        assert_eq!(anywhere.bias(&moved(&third), None), at(0x7c0_0098, 0x2098));
        let alike = file(false, &[segments[0], segments[1], (0x2098, 0x80, 0x7c0_0098)]);
        let base = alike.base(&moved(&mapping(0x40_1000, 0x40_2000, 0x1000)));
        assert_eq!(base, Some(0x1000_0000));
        assert_eq!(alike.bias(&moved(&second), base), at(0x5a0_0010, 0x2010));
        let third = moved(&mapping(0x7c0_0000, 0x7c0_1000, 0x2000));
        assert_eq!(alike.bias(&third, base), at(0x7c0_0098, 0x2098));
        // Of a prelinked file the addresses are its own.
        assert_eq!(alike.base(&second), None, "it may show either");
    }

    proptest! {
        #[test]
        fn damaged_headers_never_panic(
            at in 0usize..4096,
            byte: u8,
            cut in 0usize..4096,
            place in proptest::array::uniform3(any::<u64>()),
        ) {
            let mut data = vec![0; 4096];
            File::open("/proc/self/exe").unwrap().read_exact(&mut data).unwrap();
            data[at] = byte;
            data.truncate(cut);
            if let Some(info) = ElfInfo::parse(&*data) {
                let mapping = mapping(place[0], place[1], place[2]);
                info.bias(&mapping, info.base(&mapping));
                info.code(place[0], place[1]);
            }
        }
    }
}
