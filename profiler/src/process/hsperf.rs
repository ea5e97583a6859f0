//! Counters that a Java virtual machine (HotSpot) keeps for tools such as jstat, in a file that it maps into its own memory
//! (`hsperfdata_USER/PID`; off with `-XX:-UsePerfData`). Format: src/hotspot/share/runtime/perfMemory.hpp of OpenJDK.

use std::path::Path;

use super::{maps, memory::ProcessMemory};

/// Part of the name of its file.
const FILE: &str = "/hsperfdata_";
/// It is 32 KB long unless somebody asks for more.
const MAX_BYTES: usize = 1 << 20;
/// More entries are not looked at.
const MAX_ENTRIES: usize = 10_000;
const MAGIC: [u8; 4] = [0xca, 0xfe, 0xc0, 0xc0];
/// Offsets in the head: byte order (1 is the little end first), where entries begin, how many there are.
const HEAD: (usize, usize, usize) = (4, 24, 28);
/// Offsets in an entry: its length, its name, how many values, their type, the value.
const ENTRY: (usize, usize, usize, usize, usize) = (0, 4, 8, 12, 16);

/// Where a process has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerfData {
    address: u64,
    bytes: usize,
}

impl PerfData {
    /// Looks for them; `None` if the process is no such virtual machine, or not yet.
    pub fn find(proc_root: &Path, pid: u32) -> Option<PerfData> {
        let maps = maps::read_all(proc_root, pid).ok()?;
        let (entry, _) = maps.iter().find(|(entry, _)| entry.path.contains(FILE))?;
        let bytes = usize::try_from(entry.end.saturating_sub(entry.start)).ok()?;
        (bytes <= MAX_BYTES).then_some(PerfData { address: entry.start, bytes })
    }

    /// How many times all of its garbage collectors have run.
    pub fn collections(&self, proc_root: &Path, pid: u32) -> Option<u64> {
        let mut bytes = vec![0; self.bytes];
        ProcessMemory::open(proc_root, pid)?.read_exact(self.address, &mut bytes)?;
        collections(&bytes)
    }
}

/// The sum of all `sun.gc.collector.N.invocations`; `None` if there are none, or if that is no such file.
pub fn collections(bytes: &[u8]) -> Option<u64> {
    if bytes.get(..4)? != MAGIC || *bytes.get(HEAD.0)? != 1 {
        return None;
    }
    let mut at = word(bytes, HEAD.1)? as usize;
    let mut sum: Option<u64> = None;
    for _ in 0..(word(bytes, HEAD.2)? as usize).min(MAX_ENTRIES) {
        let entry = bytes.get(at..)?;
        let name = entry.get(word(entry, ENTRY.1)? as usize..)?;
        let name = &name[..name.iter().position(|byte| *byte == 0)?];
        let counts = name.starts_with(b"sun.gc.collector.") && name.ends_with(b".invocations");
        if counts && word(entry, ENTRY.2)? == 0 && *entry.get(ENTRY.3)? == b'J' {
            let value = entry.get(word(entry, ENTRY.4)? as usize..)?.first_chunk()?;
            sum = Some(sum.unwrap_or(0).wrapping_add(u64::from_le_bytes(*value)));
        }
        at = at.checked_add(word(entry, ENTRY.0)?.max(1) as usize)?;
    }
    sum
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A file with these counters.
    pub fn file(counters: &[(&str, u64)]) -> Vec<u8> {
        let mut bytes = vec![0; 32];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = 1;
        bytes[24..28].copy_from_slice(&32u32.to_le_bytes());
        bytes[28..32].copy_from_slice(&(counters.len() as u32).to_le_bytes());
        for (name, value) in counters {
            let value_at = (20 + name.len() + 1).next_multiple_of(8);
            let words = [value_at + 8, 20, 0].map(|word| (word as u32).to_le_bytes());
            bytes.extend(words.iter().flatten());
            bytes.extend([b'J', 0, 1, 1]);
            bytes.extend((value_at as u32).to_le_bytes());
            bytes.extend(name.as_bytes());
            bytes.resize(bytes.len() + value_at - 20 - name.len(), 0);
            bytes.extend(value.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn all_collectors_are_counted() {
        let counters = [
            ("java.threads.live", 9),
            ("sun.gc.collector.0.invocations", 5),
            ("sun.gc.collector.0.time", 700),
            ("sun.gc.collector.1.invocations", 2),
        ];
        assert_eq!(collections(&file(&counters)), Some(7));
        assert_eq!(collections(&file(&counters[..1])), None, "none is not zero");
        let mut other_order = file(&counters);
        other_order[4] = 0;
        assert_eq!(collections(&other_order), None);
        assert_eq!(collections(&file(&counters)[..120]), None, "cut off");
    }

    proptest! {
        #[test]
        fn damage_never_panics(at in 0usize..160, with in any::<u32>(), cut in 0usize..200) {
            let mut bytes = file(&[("sun.gc.collector.0.invocations", 5), ("sun.gc.collector.1.invocations", 5)]);
            if let Some(into) = bytes.get_mut(at..at + 4) {
                into.copy_from_slice(&with.to_le_bytes());
            }
            bytes.truncate(cut.max(4));
            collections(&bytes);
        }
    }
}
