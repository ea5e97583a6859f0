//! Rows of what has ended: the heaviest are kept by themselves, and the others are added up. What lives is bounded by the
//! kernel's maps; what has ended is not, on a machine that starts programs all day.

use std::{collections::BTreeSet, fs, path::Path};

use rustc_hash::FxHashSet;

use crate::{
    model::{stack::ThreadKey, totals::Aggregator},
    process::life::threads_of,
};

/// Threads that live.
#[derive(Debug, Default)]
pub struct LivingThreads(BTreeSet<(u32, u32)>);

impl LivingThreads {
    /// Reads them.
    pub fn read(proc_root: &Path) -> LivingThreads {
        let entries = fs::read_dir(proc_root).into_iter().flatten();
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        LivingThreads(
            pids.flat_map(|pid| threads_of(proc_root, pid).into_iter().map(move |tid| (pid, tid))).collect(),
        )
    }

    fn has(&self, thread: ThreadKey) -> bool {
        self.0.contains(&(thread.pid, thread.tid))
    }
}

/// Adds up the threads that have ended, but for the heaviest of them.
pub fn add_up(totals: &mut Aggregator, living: &LivingThreads) {
    let threads = totals.by_thread();
    let ended = threads.into_iter().filter(|(of, _)| *of != ThreadKey::OTHERS && !living.has(*of));
    let light: FxHashSet<ThreadKey> = too_light(ended, KEPT).into_iter().collect();
    if !light.is_empty() {
        totals.add_up(&light);
    }
}

/// Rows of what has ended that a table keeps by themselves. When there are twice as many, the lightest half goes.
pub const KEPT: usize = 1_024;

/// Of `rows`, each a key and its weight: the keys of the lightest, if there are more than twice as many as are `kept`; the
/// heaviest of those stay. Of equal weight, later keys stay.
pub fn too_light<K: Ord, W: Ord>(rows: impl Iterator<Item = (K, W)>, kept: usize) -> Vec<K> {
    let rows: Vec<(K, W)> = rows.collect();
    if rows.len() <= 2 * kept { Vec::new() } else { lightest(rows.into_iter(), kept) }
}

/// All but the heaviest.
pub fn lightest<K: Ord, W: Ord>(rows: impl Iterator<Item = (K, W)>, kept: usize) -> Vec<K> {
    let mut rows: Vec<(W, K)> = rows.map(|(key, weight)| (weight, key)).collect();
    let light = rows.len().saturating_sub(kept);
    if light == 0 {
        return Vec::new();
    }
    rows.select_nth_unstable(light);
    rows.into_iter().take(light).map(|(_, key)| key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{sample::Sample, stack::StackId};

    #[test]
    fn threads_that_ended_are_added_up_and_nothing_is_lost() {
        let mut totals = Aggregator::default();
        let n = 2 * KEPT as u32 + 10;
        let thread = |tid| ThreadKey { pid: tid, tid };
        for tid in 1..=n {
            let weight = if tid <= 5 { 100 } else { 1 };
            for stack in [0, 1] {
                let stack = StackId(stack);
                let sample = Sample { time_ns: 1, thread: thread(tid), cpu: 0, stack, weight, cause: None };
                assert!(totals.add(&sample));
            }
        }
        let before = totals.snapshot();
        let living = LivingThreads([(n, n), (n - 1, n - 1)].into());
        add_up(&mut totals, &living);
        let after = totals.snapshot();
        assert_eq!((after.total, after.span_ns), (before.total, before.span_ns));
        assert_eq!(after.entries.iter().map(|(_, weight)| weight).sum::<u64>(), before.total);
        let threads = totals.by_thread();
        assert_eq!(threads.len(), KEPT + 3, "those that are kept, those that live, and the others");
        assert!((1..=5).chain([n - 1, n]).all(|tid| threads.contains_key(&thread(tid))));
        assert_eq!(after.entries.iter().filter(|(key, _)| key.thread == ThreadKey::OTHERS).count(), 2);
        add_up(&mut totals, &living);
        assert_eq!(totals.snapshot(), after, "nothing more to add up");
    }

    #[test]
    fn the_heaviest_stay() {
        let rows = |n: u64| (0..n).map(|key| (key, key % 100));
        assert!(
            too_light(rows(2 * KEPT as u64), KEPT).is_empty(),
            "nothing goes before there are twice as many"
        );
        let n = 2 * KEPT as u64 + 1;
        let gone = too_light(rows(n), KEPT);
        assert_eq!(gone.len(), n as usize - KEPT);
        let least_kept = rows(n).filter(|(key, _)| !gone.contains(key)).map(|(_, weight)| weight).min();
        assert!(gone.iter().all(|key| Some(key % 100) <= least_kept));
    }
}
