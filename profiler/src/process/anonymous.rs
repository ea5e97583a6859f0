//! Memory of a process that has no file behind it, piece by piece, without touching what is not there.

use std::{fs::File, os::unix::fs::FileExt as _, path::Path};

use super::{
    maps::{self, MapsEntry, Rights},
    shown::shown,
};

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// An entry: the page is in memory. Documentation/admin-guide/mm/pagemap.rst.
const PRESENT: u64 = 1 << 63;

/// What a process has mapped privately, can write, and has no file behind it.
pub struct AnonymousMemory {
    pagemap: File,
    /// Begin and end of each mapping, in order.
    mappings: Vec<(u64, u64)>,
}

impl AnonymousMemory {
    /// As it is now; `None` if the process is gone, or pages are not of 4 KiB.
    pub fn of(proc_root: &Path, pid: u32) -> Option<AnonymousMemory> {
        // SAFETY: only asks for a number.
        if unsafe { libc::sysconf(libc::_SC_PAGESIZE) } != PAGE as libc::c_long {
            return None;
        }
        let pagemap = File::open(shown(proc_root, pid).join("pagemap")).ok()?;
        let mappings = maps::read_all(proc_root, pid).ok()?.into_iter().filter_map(mapping).collect();
        Some(AnonymousMemory { pagemap, mappings })
    }

    /// Where pieces of so many bytes, a power of two, begin that lie within a mapping, at multiples of their size.
    pub fn pieces(&self, bytes: u64) -> impl Iterator<Item = u64> + '_ {
        self.mappings.iter().flat_map(move |&(start, end)| {
            let first = start.checked_next_multiple_of(bytes).unwrap_or(u64::MAX);
            (first..end.saturating_sub(bytes - 1)).step_by(bytes as usize)
        })
    }

    /// Which pages of a piece are in memory: reading these brings nothing in, from swap or elsewhere.
    pub fn present(&self, start: u64, bytes: u64) -> Vec<bool> {
        let mut entries = vec![0; (bytes / PAGE) as usize * 8];
        if self.pagemap.read_exact_at(&mut entries, start / PAGE * 8).is_err() {
            entries.clear();
        }
        let entries = entries.as_chunks::<8>().0;
        entries.iter().map(|entry| u64::from_ne_bytes(*entry) & PRESENT != 0).collect()
    }
}

/// Begin and end of a mapping, if it is anonymous memory of the process's own.
fn mapping((entry, rights): (MapsEntry, Rights)) -> Option<(u64, u64)> {
    let anonymous = entry.path.is_empty() || entry.path.starts_with("[anon");
    let found = rights.write && rights.private && anonymous && entry.start < entry.end;
    found.then_some((entry.start, entry.end))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Of a line of `/proc/PID/maps`.
    fn mapping(line: &str) -> Option<(u64, u64)> {
        maps::parse_line(line).and_then(super::mapping)
    }

    #[test]
    fn only_anonymous_memory_of_its_own_counts() {
        let line = "7f00-8f00 rw-p 00000000 00:00 0 ";
        assert_eq!(mapping(line), Some((0x7f00, 0x8f00)));
        assert_eq!(mapping("7f00-8f00 rw-p 00000000 00:00 0 [anon:v8]"), Some((0x7f00, 0x8f00)));
        for other in ["[heap]", "[stack]", "/lib/x.so", "/dev/zero (deleted)"] {
            assert_eq!(mapping(&format!("{line}{other}")), None, "{other}");
        }
        assert_eq!(mapping("7f00-8f00 r--p 00000000 00:00 0"), None);
        assert_eq!(mapping("7f00-8f00 rw-s 00000000 00:00 0"), None);
    }

    #[test]
    fn pieces_lie_within() {
        let mappings = vec![(0x1800, 0x4000), (0x5000, 0x5fff), (u64::MAX - 10, u64::MAX)];
        let memory = AnonymousMemory { pagemap: File::open("/dev/null").unwrap(), mappings };
        assert_eq!(memory.pieces(0x1000).collect::<Vec<_>>(), [0x2000, 0x3000]);
        assert!(memory.present(0x2000, 0x1000).is_empty(), "nothing is known");
    }

    #[test]
    fn what_was_written_is_present() {
        let bytes = vec![1u8; 1 << 20];
        let memory = AnonymousMemory::of(Path::new("/proc"), std::process::id()).unwrap();
        let at = (bytes.as_ptr() as u64).next_multiple_of(PAGE);
        assert_eq!(memory.present(at, 16 * PAGE), [true; 16]);
        assert!(memory.pieces(PAGE).any(|piece| piece == at));
    }

    proptest! {
        #[test]
        fn foreign_lines_never_panic(line: String, a: u64, b: u64, size in 0u32..40) {
            mapping(&line);
            mapping(&format!("{a:x}-{b:x} rw-p 0 00:00 0"));
            let memory = AnonymousMemory { pagemap: File::open("/dev/null").unwrap(), mappings: vec![(a, b)] };
            prop_assert!(memory.pieces(1 << size).take(10).all(|piece| piece >= a));
        }
    }
}
