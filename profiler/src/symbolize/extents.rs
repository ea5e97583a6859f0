//! Which function an address belongs to where no symbol says so. Unwind information tells the extent of every
//! function, in stripped files too; where it says nothing, the code between two things that are known is taken for
//! one function.

use std::fs::File;

use object::{
    Endianness, FileKind, ReadCache, ReadRef,
    elf::{FileHeader32, FileHeader64, PF_X, PT_LOAD, SHF_EXECINSTR, SHN_UNDEF, SHT_DYNSYM, SHT_SYMTAB},
    read::elf::{FileHeader, ProgramHeader, SectionHeader, Sym},
};

use crate::unwind::{eh_frame, image::Image};

/// Functions that overlap are looked through this far.
const OVERLAPPING: usize = 8;

/// The function of an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Where it starts. That is after the address if it is the byte before: nobody called this function, but made it a
    /// place to return to.
    pub start: u64,
    /// A signal handler returns to it.
    pub is_signal_frame: bool,
}

/// The functions that `addresses` (ELF virtual addresses) belong to, in the same order. In a file that is not ELF
/// everything starts at zero.
pub fn find(file: &File, addresses: &[u64]) -> Vec<Extent> {
    parse(&ReadCache::new(file), addresses)
}

fn parse<'a, R: ReadRef<'a>>(data: R, addresses: &[u64]) -> Vec<Extent> {
    let functions = Image::parse(data).and_then(|image| eh_frame::functions(&image)).unwrap_or_default();
    let found: Vec<Option<Extent>> = addresses.iter().map(|&address| covering(&functions, address)).collect();
    let mut before =
        Bounds::new(addresses.iter().zip(&found).filter(|(_, at)| at.is_none()).map(|(&at, _)| at));
    if !before.addresses.is_empty() {
        for (start, len, _) in functions {
            before.add(start.saturating_add(len));
        }
        match FileKind::parse(data) {
            Ok(FileKind::Elf64) => neighbours::<FileHeader64<Endianness>, R>(data, &mut before),
            Ok(FileKind::Elf32) => neighbours::<FileHeader32<Endianness>, R>(data, &mut before),
            _ => None,
        };
    }
    let before = before.finish();
    addresses
        .iter()
        .zip(found)
        .map(|(&address, found)| {
            found.unwrap_or_else(|| Extent { start: before(address), is_signal_frame: false })
        })
        .collect()
}

/// The innermost function over an address, or the one that begins right after it.
fn covering(functions: &[(u64, u64, bool)], address: u64) -> Option<Extent> {
    let end = functions.partition_point(|&(start, ..)| start <= address);
    let near = functions[end.saturating_sub(OVERLAPPING)..end].iter().rev();
    let over = near.copied().find(|&(start, len, _)| address - start < len);
    let next = functions.get(end).copied().filter(|&(start, ..)| start == address.wrapping_add(1));
    over.or(next).map(|(start, _, is_signal_frame)| Extent { start, is_signal_frame })
}

/// For each of some addresses, the last bound that is not above it.
struct Bounds {
    addresses: Vec<u64>,
    last: Vec<u64>,
}

impl Bounds {
    fn new(addresses: impl Iterator<Item = u64>) -> Bounds {
        let mut addresses: Vec<u64> = addresses.collect();
        addresses.sort_unstable();
        Bounds { last: vec![0; addresses.len()], addresses }
    }

    fn add(&mut self, bound: u64) {
        let first = self.addresses.partition_point(|&address| address < bound);
        if let Some(last) = self.last.get_mut(first) {
            *last = bound.max(*last);
        }
    }

    /// What was found, by address.
    fn finish(mut self) -> impl Fn(u64) -> u64 {
        let mut highest = 0;
        for last in &mut self.last {
            highest = highest.max(*last);
            *last = highest;
        }
        move |address| self.addresses.binary_search(&address).map_or(0, |index| self.last[index])
    }
}

/// Where code begins, and what symbols there are: each ends what comes before.
fn neighbours<'a, H: FileHeader<Endian = Endianness>, R: ReadRef<'a>>(
    data: R,
    before: &mut Bounds,
) -> Option<()> {
    let header = H::parse(data).ok()?;
    let endian = header.endian().ok()?;
    for segment in header.program_headers(endian, data).ok()? {
        if segment.p_type(endian) == PT_LOAD && segment.p_flags(endian) & PF_X != 0 {
            before.add(segment.p_vaddr(endian).into());
        }
    }
    let sections = header.sections(endian, data).ok()?;
    for section in sections.iter() {
        if section.sh_flags(endian).into() & u64::from(SHF_EXECINSTR) != 0 {
            before.add(section.sh_addr(endian).into());
        }
    }
    for kind in [SHT_SYMTAB, SHT_DYNSYM] {
        let Ok(symbols) = sections.symbols(endian, data, kind) else { continue };
        for symbol in symbols.iter().filter(|symbol| symbol.st_shndx(endian) != SHN_UNDEF) {
            let (start, size): (u64, u64) = (symbol.st_value(endian).into(), symbol.st_size(endian).into());
            before.add(start);
            before.add(start.saturating_add(size));
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_address_of_this_function_starts_where_it_does() {
        let file = File::open("/proc/self/exe").unwrap();
        let start = crate::process::elf::ElfInfo::read(&file).unwrap();
        let here = every_address_of_this_function_starts_where_it_does as *const () as u64;
        let maps = crate::process::maps::read(std::path::Path::new("/proc"), std::process::id()).unwrap();
        let map = maps.iter().find(|map| (map.start..map.end).contains(&here)).unwrap();
        let offset = here - map.start + map.file_offset;
        let address = offset.wrapping_add(start.bias(map, None).unwrap());
        let extent = Extent { start: address, is_signal_frame: false };
        assert_eq!(find(&file, &[address + 1, address, address + 9]), [extent; 3]);
    }

    #[test]
    fn between_functions_the_gap_is_one() {
        let functions = [(0x100, 0x40, false), (0x180, 0x10, false), (0x180, 0x20, true)];
        let find = |address| covering(&functions, address);
        let extent = |start, is_signal_frame| Some(Extent { start, is_signal_frame });
        assert_eq!(
            (find(0x13f), find(0x19f), find(0x150)),
            (extent(0x100, false), extent(0x180, true), None)
        );
        assert_eq!((find(0x17f), find(0x17e)), (extent(0x180, false), None), "only a place to return to");
        let mut before = Bounds::new([0x150, 0x170, 0x90].into_iter());
        for bound in [0x140, 0x160, 0x1a0, 0x80] {
            before.add(bound);
        }
        let before = before.finish();
        assert_eq!([0x90, 0x150, 0x170].map(before), [0x80, 0x140, 0x160]);
    }

    #[test]
    fn a_file_that_is_no_elf_is_one_piece() {
        assert_eq!(parse(&b"MZ\x90\0 not at all"[..], &[5, 77]), [Extent::default(); 2]);
    }

    proptest! {
        #[test]
        fn damaged_files_never_panic(at in 0usize..8192, byte: u8, cut in 0usize..8192, addresses: [u64; 3]) {
            let mut data = vec![0; 8192];
            File::open("/proc/self/exe").unwrap().read_exact(&mut data).unwrap();
            data[at] = byte;
            data.truncate(cut);
            prop_assert_eq!(parse(&*data, &addresses).len(), 3);
        }

        #[test]
        fn a_start_is_never_far_after_its_address(
            functions in proptest::collection::btree_set((0u64..500, 0u64..50, any::<bool>()), 0..20),
            bounds in proptest::collection::vec(0u64..600, 0..20),
            address in 0u64..600,
        ) {
            let functions: Vec<(u64, u64, bool)> = functions.into_iter().collect();
            prop_assert!(covering(&functions, address).is_none_or(|extent| extent.start <= address + 1));
            let mut before = Bounds::new([address].into_iter());
            bounds.iter().for_each(|&bound| before.add(bound));
            let expected = bounds.iter().copied().filter(|&bound| bound <= address).max().unwrap_or(0);
            prop_assert_eq!(before.finish()(address), expected);
        }
    }
}
