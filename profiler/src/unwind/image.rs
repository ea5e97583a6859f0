//! Finds the code and the unwind information in an ELF file, or in an image of one without section headers.

use gimli::{BaseAddresses, EhFrameHdr, LittleEndian as GimliLittleEndian};
use object::{
    LittleEndian as LE, ReadRef,
    elf::{
        EM_AARCH64, EM_X86_64, FileHeader64, PF_X, PN_XNUM, PT_GNU_EH_FRAME, PT_LOAD, SHF_COMPRESSED,
        SHT_NOBITS, SectionHeader64,
    },
    read::elf::{FileHeader, ProgramHeader, SectionHeader},
};
use profiler_common::unwind::BUCKET_BYTES;

use crate::{
    process::go::GoSection,
    unwind::outcome::{BuildError, Source},
};

/// Largest section of unwind information that is read.
const MAX_SECTION_BYTES: u64 = 128 << 20;
/// Most code that a table covers. Sets the size of its bucket pages, whatever the code is like.
const MAX_CODE_BYTES: u64 = 1 << 30;

/// Processor that a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// x86_64.
    X86_64,
    /// aarch64.
    Aarch64,
}

/// A section of unwind information.
#[derive(Clone, Copy, Debug)]
pub struct FrameSection<'a> {
    /// Which one it is.
    pub source: Source,
    /// Its contents.
    pub data: &'a [u8],
    /// Its virtual address.
    pub address: u64,
}

/// What building a table needs of a file.
#[derive(Clone, Debug)]
pub struct Image<'a> {
    /// Processor.
    pub machine: Machine,
    /// First address of code, rounded down to a bucket.
    pub base: u64,
    /// One past the last address of code.
    pub end: u64,
    /// Unwind information, best first.
    pub sections: Vec<FrameSection<'a>>,
    /// Whether there is more, but compressed.
    pub compressed: bool,
    /// Go's own table of functions, which goes before all of them.
    pub go: Option<GoSection<'a>>,
    /// Where `.text` and `.got` are: addresses may be relative to them.
    pub bases: BaseAddresses,
}

impl<'a> Image<'a> {
    /// Finds everything, or says why there is nothing to find.
    pub fn parse<R: ReadRef<'a>>(data: R) -> Result<Image<'a>, BuildError> {
        let magic = data.read_bytes_at(0, 6).map_err(|()| BuildError::NotElf)?;
        match magic {
            [0x7f, b'E', b'L', b'F', 2, 1] => {}
            [0x7f, b'E', b'L', b'F', ..] => return Err(BuildError::Unsupported("not 64-bit little-endian")),
            _ => return Err(BuildError::NotElf),
        }
        let header = FileHeader64::<LE>::parse(data).map_err(|_| BuildError::NotElf)?;
        let endian = LE;
        let machine = match header.e_machine(endian) {
            EM_X86_64 => Machine::X86_64,
            EM_AARCH64 => Machine::Aarch64,
            _ => return Err(BuildError::Unsupported("processor")),
        };
        if header.e_phnum(endian) == PN_XNUM {
            return Err(BuildError::TooLarge("program headers"));
        }
        let segments =
            header.program_headers(endian, data).map_err(|_| BuildError::Malformed("program headers"))?;

        let mut base = u64::MAX;
        let mut end = 0;
        for segment in segments {
            if segment.p_type(endian) == PT_LOAD && segment.p_flags(endian) & PF_X != 0 {
                base = base.min(segment.p_vaddr(endian));
                end = end.max(segment.p_vaddr(endian).saturating_add(segment.p_memsz(endian)));
            }
        }
        if base >= end {
            return Err(BuildError::NoCode);
        }
        let mut image = Image { machine, ..Image::of_code(base, end - base)? };
        image.go = GoSection::find(data).filter(|_| machine == Machine::X86_64);
        let mut debug_frame = None;
        // Files in use may have lost their section headers, or carry damaged ones: that only costs the sections.
        if header.e_shnum(endian) != 0
            && let Ok(sections) = header.sections(endian, data)
        {
            for section in sections.iter() {
                let Ok(name) = sections.section_name(endian, section) else { continue };
                match name {
                    b".text" => image.bases = image.bases.clone().set_text(section.sh_addr(endian)),
                    b".got" => image.bases = image.bases.clone().set_got(section.sh_addr(endian)),
                    b".eh_frame" | b".debug_frame" => {
                        if section.sh_flags(endian) & u64::from(SHF_COMPRESSED) != 0 {
                            image.compressed = true;
                        } else if let Some(bytes) = section_bytes(section, data)? {
                            let address = section.sh_addr(endian);
                            if name == b".eh_frame" {
                                image.sections.push(FrameSection {
                                    source: Source::EhFrame,
                                    data: bytes,
                                    address,
                                });
                            } else {
                                debug_frame =
                                    Some(FrameSection { source: Source::DebugFrame, data: bytes, address });
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
        if image.sections.is_empty() {
            image.sections.extend(by_program_headers(segments, data));
        }
        image.sections.extend(debug_frame);
        if image.sections.is_empty() && image.go.is_none() {
            return Err(image.without_sections());
        }
        Ok(image)
    }

    /// Code of x86_64 from `base` on, `len` bytes of it, and nothing that is known of it.
    pub(super) fn of_code(base: u64, len: u64) -> Result<Image<'a>, BuildError> {
        let end = base.checked_add(len).ok_or(BuildError::Malformed("code past the end of memory"))?;
        let base = base & !(BUCKET_BYTES - 1);
        if end - base > MAX_CODE_BYTES {
            return Err(BuildError::TooLarge("code"));
        }
        let (sections, bases) = (Vec::new(), BaseAddresses::default());
        Ok(Image { machine: Machine::X86_64, base, end, sections, compressed: false, go: None, bases })
    }

    /// Why a file without a section of unwind information has no table.
    pub(super) fn without_sections(&self) -> BuildError {
        if self.compressed { BuildError::Compressed } else { BuildError::NoUnwindInfo }
    }
}

/// A section's contents, if it has any here (files of debug information have headers only).
fn section_bytes<'a, R: ReadRef<'a>>(
    section: &SectionHeader64<LE>,
    data: R,
) -> Result<Option<&'a [u8]>, BuildError> {
    let size = section.sh_size(LE);
    if section.sh_type(LE) == SHT_NOBITS || size == 0 {
        return Ok(None);
    }
    if size > MAX_SECTION_BYTES {
        return Err(BuildError::TooLarge("unwind information"));
    }
    let bytes = data.read_bytes_at(section.sh_offset(LE), size);
    bytes.map(Some).map_err(|()| BuildError::Malformed("section outside the file"))
}

/// `.eh_frame` by way of the pointer to it in the segment that exception handling uses. Its end is not known:
/// a terminator or the end of its segment is it.
fn by_program_headers<'a, R: ReadRef<'a>>(
    segments: &[impl ProgramHeader<Endian = LE, Word = u64>],
    data: R,
) -> Option<FrameSection<'a>> {
    // Enough for the pointer and the counts that follow it.
    const HEADER_BYTES: u64 = 64;
    let segment = segments.iter().find(|segment| segment.p_type(LE) == PT_GNU_EH_FRAME)?;
    let size = segment.p_filesz(LE).min(HEADER_BYTES);
    let header = data.read_bytes_at(segment.p_offset(LE), size).ok()?;
    let bases = BaseAddresses::default().set_eh_frame_hdr(segment.p_vaddr(LE));
    let header = EhFrameHdr::new(header, GimliLittleEndian).parse(&bases, 8).ok()?;
    let address = header.eh_frame_ptr().direct().ok()?;

    let (offset, size) =
        segments.iter().filter(|segment| segment.p_type(LE) == PT_LOAD).find_map(|segment| {
            let within = address.checked_sub(segment.p_vaddr(LE))?;
            let size = segment.p_filesz(LE).checked_sub(within).filter(|&size| size != 0)?;
            Some((segment.p_offset(LE).checked_add(within)?, size))
        })?;
    let size = size.min(data.len().ok()?.checked_sub(offset)?).min(MAX_SECTION_BYTES);
    let bytes = data.read_bytes_at(offset, size).ok()?;
    Some(FrameSection { source: Source::EhFrame, data: bytes, address })
}
