//! How processes grow, by what the kernel says of them.

use std::path::Path;

use crate::{
    model::memory::Growth,
    process::{limits, shown::shown},
};

/// A process grows if it holds so much more than at its lowest, and more than ever since, bytes.
const GROWTH_BYTES: u64 = 256 * 1024;
/// Its lowest within this time, ns.
const GROWTH_MEMORY_NS: u64 = 600_000_000_000;
/// It has stopped growing if it did not hold more than ever for so long, ns.
const REST_NS: u64 = 60_000_000_000;

/// Whether a process grows.
#[derive(Clone, Debug, Default)]
pub struct Trend {
    lowest: Option<(u64, u64)>,
    highest: Option<(u64, u64)>,
}

impl Trend {
    /// Takes note of what it holds now. Returns whether it is growing.
    pub fn add(&mut self, time_ns: u64, held_bytes: u64) -> bool {
        let lowest = match self.lowest {
            Some((when, lowest)) if lowest <= held_bytes && time_ns < when + GROWTH_MEMORY_NS => {
                (when, lowest)
            }
            _ => (time_ns, held_bytes),
        };
        self.lowest = Some(lowest);
        if self.highest.is_none_or(|(_, highest)| highest < held_bytes) {
            self.highest = Some((time_ns, held_bytes));
        }
        let newest = self.highest.is_some_and(|(when, _)| when == time_ns);
        newest && held_bytes >= lowest.1 + GROWTH_BYTES
    }

    /// Whether it has stopped growing for good, as far as one can tell.
    pub fn rests(&self, time_ns: u64) -> bool {
        self.highest.is_some_and(|(when, _)| time_ns >= when + REST_NS)
    }
}

/// Shared memory that a process has touched, and not taken: a part of what all had at the first look.
#[derive(Debug, Default)]
pub struct Touched {
    /// Of the process, and of the machine, bytes.
    first: Option<(u64, u64)>,
}

impl Touched {
    /// Leaves out of what a process occupies the shared pages that others had taken before. `machine` is what all have.
    pub fn leave_out(&mut self, growth: &mut Growth, machine: Option<u64>) {
        let Some(machine) = machine else { return };
        let (own, all) = *self.first.get_or_insert((growth.shmem_bytes, machine));
        growth.shmem_bytes = growth.shmem_bytes.min(own + machine.saturating_sub(all));
    }
}

/// Shared memory and tmpfs of the machine, bytes.
pub fn shared_by_all(proc_root: &Path) -> Option<u64> {
    let meminfo = std::fs::read(proc_root.join("meminfo")).ok()?;
    Some(limits::field(&meminfo, "Shmem:")?.saturating_mul(1024))
}

/// What a process occupies now; `None` if it is gone.
pub fn growth(proc_root: &Path, pid: u32, time_ns: u64) -> Option<Growth> {
    let status = crate::text::read_to_parse(&shown(proc_root, pid).join("status")).ok()?;
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    Some(Growth {
        time_ns,
        anon_bytes: bytes("RssAnon")?, // a zombie or kernel thread has none
        file_bytes: bytes("RssFile")?,
        shmem_bytes: bytes("RssShmem")?,
        swap_bytes: bytes("VmSwap").unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const MIB: u64 = 1 << 20;

    #[test]
    fn shared_pages_that_are_merely_touched_do_not_grow() {
        let mut touched = Touched::default();
        let mut held = |own: u64, machine: u64| {
            let mut growth = Growth { shmem_bytes: own * MIB, ..Growth::default() };
            touched.leave_out(&mut growth, Some(machine * MIB));
            growth.shmem_bytes / MIB
        };
        assert_eq!([held(10, 800), held(500, 800), held(700, 850), held(5, 900)], [10, 10, 60, 5]);
        assert!(shared_by_all(Path::new("/proc")).is_some());
    }

    #[test]
    fn growth_is_more_than_ever() {
        let mut trend = Trend::default();
        assert!(!trend.add(0, 10 * MIB));
        assert!(!trend.add(SECOND, 10 * MIB + 100 * 1024), "too little to tell");
        assert!(trend.add(2 * SECOND, 10 * MIB + 300 * 1024));
        assert!(!trend.add(3 * SECOND, 10 * MIB + 290 * 1024), "not the most ever");
        assert!(!trend.rests(4 * SECOND));
        assert!(trend.rests(2 * SECOND + REST_NS));
        let mut sawtooth = Trend::default();
        let mut grew = 0;
        for second in 0..100 {
            grew += u32::from(sawtooth.add(second * SECOND, 10 * MIB + second % 10 * MIB));
        }
        assert!(grew < 10, "{grew}");
    }

    #[test]
    fn a_slow_leak_is_seen_within_ten_minutes() {
        let mut trend = Trend::default();
        let first = (0..600).find(|&second| trend.add(second * SECOND, 10 * MIB + second * 1024));
        assert!(first.is_some_and(|second| second <= 260), "{first:?}");
    }

    #[test]
    fn a_process_without_its_main_thread_grows_on() {
        let root = tempfile::tempdir().unwrap();
        let set = |thread: &str, file: &str, text: &str| {
            std::fs::create_dir_all(root.path().join(thread)).unwrap();
            std::fs::write(root.path().join(thread).join(file), text).unwrap();
        };
        set("7/task/7", "stat", "7 (a) Z 1 1");
        set("7", "status", "State:\tZ (zombie)\n");
        set("7/task/9", "stat", "9 (a) S 1 1");
        set("9", "status", "RssAnon:\t8 kB\nRssFile:\t4 kB\nRssShmem:\t0 kB\n");
        assert_eq!(growth(root.path(), 7, 1).unwrap().anon_bytes, 8192);
    }

    #[test]
    fn own_memory_is_read() {
        let growth = growth(Path::new("/proc"), std::process::id(), 7).unwrap();
        assert!(growth.anon_bytes > 0 && growth.file_bytes > 0);
        assert!(super::growth(Path::new("/nowhere"), 1, 0).is_none());
    }
}
