//! The code page that the kernel maps into every process, as a file: what symbols and unwind tables are read from.

use std::{fs::File, io::Write as _, os::fd::FromRawFd as _};

/// A copy of the kernel's vDSO, which is the same in every process of this kernel and machine word size.
pub fn file() -> Option<File> {
    // SAFETY: getauxval has no preconditions.
    let start = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) };
    let maps = crate::text::read_to_parse(std::path::Path::new("/proc/self/maps")).ok()?;
    let line = maps.lines().find(|line| line.ends_with("[vdso]"))?;
    let (first, last) = line.split_once(' ')?.0.split_once('-')?;
    let (first, last) = (u64::from_str_radix(first, 16).ok()?, u64::from_str_radix(last, 16).ok()?);
    if start != first {
        return None;
    }
    // SAFETY: the kernel keeps these pages mapped and readable for as long as the process lives.
    let image = unsafe { std::slice::from_raw_parts(first as *const u8, (last - first) as usize) };
    // SAFETY: the name is NUL-terminated; the result is checked.
    let fd = unsafe { libc::memfd_create(c"vdso".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return None;
    }
    // SAFETY: a fresh descriptor that nothing else owns.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(image).ok()?;
    Some(file)
}
