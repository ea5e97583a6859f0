//! What is left of mappings that are watched. The calls that end them tell less than the process's list of mappings does:
//! one munmap can end several or a part of one, mmap can put another in its place (`MAP_FIXED`), mremap can move it, and
//! some are made without the C library.

use std::{cmp::Reverse, collections::BTreeMap, ops::Range, path::Path};

use profiler_common::alloc::{Object, ObjectKey};

use crate::{process::shown::shown, text};

/// What a process has mapped: ranges of addresses, in their order. `None` if it is gone.
pub fn mapped(proc_root: &Path, pid: u32) -> Option<Vec<Range<u64>>> {
    let maps = text::read_to_parse(&shown(proc_root, pid).join("maps")).ok()?;
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for line in maps.lines() {
        let (start, rest) = line.split_once('-')?;
        let (end, _) = rest.split_once(' ')?;
        let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    (!ranges.is_empty()).then_some(ranges)
}

/// How many bytes of each object are still mapped, and not by a later one.
pub fn left(mut objects: Vec<(ObjectKey, Object)>, mapped: &[Range<u64>]) -> Vec<(ObjectKey, Object, u64)> {
    objects.sort_unstable_by_key(|(_, object)| Reverse(object.time_ns));
    let mut taken = Ranges::default();
    let left = objects.into_iter().map(|(key, object)| {
        let range = key.address..key.address.saturating_add(object.size);
        let first = mapped.partition_point(|mapped| mapped.end <= range.start);
        let there = mapped[first..].iter().take_while(|mapped| mapped.start < range.end);
        let parts = there.map(|mapped| range.start.max(mapped.start)..range.end.min(mapped.end));
        let left = parts.map(|part| taken.add(part)).sum();
        (key, object, left)
    });
    left.collect()
}

/// Ranges that do not overlap, by where they start.
#[derive(Default)]
struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds one; returns how many bytes of it are new.
    fn add(&mut self, range: Range<u64>) -> u64 {
        let Range { mut start, mut end } = range;
        let mut new = end.saturating_sub(start);
        let mut within = Vec::new();
        for (&from, &to) in self.0.range(..end).rev() {
            // Those before it end before it, too.
            if to < start {
                break;
            }
            new -= to.min(range.end).saturating_sub(from.max(range.start));
            (start, end) = (start.min(from), end.max(to));
            within.push(from);
        }
        for from in within {
            self.0.remove(&from);
        }
        if start < end {
            self.0.insert(start, end);
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn object(address: u64, size: u64, time_ns: u64) -> (ObjectKey, Object) {
        let object = Object { size, stack: 1, time_ns, weight: 1, window: 0 };
        (ObjectKey { address, pid: 7, _padding: 0 }, object)
    }

    fn bytes_left(objects: &[(ObjectKey, Object)], mapped: &[Range<u64>]) -> Vec<u64> {
        let mut left = left(objects.to_vec(), mapped);
        left.sort_by_key(|(key, ..)| key.address);
        left.into_iter().map(|(.., left)| left).collect()
    }

    #[test]
    fn what_is_not_mapped_or_mapped_over_is_not_left() {
        let objects =
            [object(1000, 500, 1), object(2000, 500, 2), object(3000, 1000, 3), object(3200, 100, 4)];
        assert_eq!(bytes_left(&objects, &[0..2100, 2100..10_000]), [500, 500, 900, 100]);
        assert_eq!(bytes_left(&objects, &[1100..1200, 1300..2100, 3900..5000]), [300, 100, 100, 0]);
        assert_eq!(bytes_left(&objects, &[]), [0, 0, 0, 0]);
    }

    #[test]
    fn mappings_are_read() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("7")).unwrap();
        assert_eq!(mapped(root.path(), 7), None);
        let lines =
            "1000-2000 r-xp 00000000 08:01 5 /a b\n2000-3000 rw-p 00000000 00:00 0\n5000-6000 ---p 0 0 0\n";
        std::fs::write(root.path().join("7/maps"), lines).unwrap();
        assert_eq!(mapped(root.path(), 7), Some(vec![0x1000..0x3000, 0x5000..0x6000]));
    }

    proptest! {
        /// As byte by byte.
        #[test]
        fn bytes_are_counted_once(
            spans in prop::collection::vec((0u64..60, 1u64..30), 0..12),
            holes in prop::collection::vec((0u64..80, 1u64..10), 0..5),
        ) {
            let mut byte = [0usize; 100];
            let mut objects: Vec<(ObjectKey, Object)> = Vec::new();
            for (time, &(at, size)) in spans.iter().enumerate() {
                // The kernel programs keep one object at an address.
                if objects.iter().any(|(key, _)| key.address == at) {
                    continue;
                }
                objects.push(object(at, size, time as u64 + 1));
                byte[at as usize..(at + size) as usize].fill(time + 1);
            }
            for &(at, size) in &holes {
                byte[at as usize..(at + size) as usize].fill(usize::MAX);
            }
            let mapped: Vec<Range<u64>> =
                (0..100).filter(|&at| byte[at as usize] != usize::MAX).map(|at| at..at + 1).collect();
            for (_, object, left) in left(objects, &mapped) {
                let expected = byte.iter().filter(|&&owner| owner == object.time_ns as usize).count();
                prop_assert_eq!(left, expected as u64);
            }
        }
    }
}
