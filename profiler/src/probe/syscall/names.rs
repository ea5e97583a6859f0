//! What descriptors are called, while they are open.

use std::time::Duration;

use profiler_common::syscall::{IoKey, IoStats};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    probe::syscall::io::Named,
    process::clock::{Clock, Every},
};

/// Names kept, at most; twice what the kernel keeps.
const MAX_NAMES: usize = 32_768;
/// How often it is looked for names whose descriptor is closed: the record of that can be lost.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);

/// A use of a descriptor: by whom, and since when, CLOCK_MONOTONIC, ns.
type Use = (IoKey, u64);

/// Names of descriptors.
pub struct Names {
    /// What they were when they were first used.
    uses: FxHashMap<Use, Named>,
    /// The last use of each, with its name.
    latest: FxHashMap<IoKey, (u64, String)>,
    /// Closed when this was last looked at; the record of it may still come.
    closed: FxHashSet<Use>,
    look: Every,
}

impl Names {
    /// None yet.
    pub fn new(clock: &Clock) -> Names {
        Names {
            uses: FxHashMap::default(),
            latest: FxHashMap::default(),
            closed: FxHashSet::default(),
            look: Every::new(clock, LOOK_INTERVAL),
        }
    }

    /// The name of a use of a descriptor.
    pub fn of(&self, key: IoKey, stats: &IoStats) -> Option<&Named> {
        self.uses.get(&(key, stats.first_ns))
    }

    /// What a descriptor was at `time_ns`, if it has been the same since.
    pub fn latest(&self, key: IoKey, time_ns: u64) -> Option<&str> {
        let (first_ns, name) = self.latest.get(&key)?;
        (*first_ns <= time_ns).then_some(name)
    }

    /// Takes note of a name.
    pub fn add(&mut self, key: IoKey, stats: &IoStats, named: Named) {
        self.latest.insert(key, (stats.first_ns, named.object.clone()));
        self.uses.insert((key, stats.first_ns), named);
    }

    /// The descriptor has been closed.
    pub fn take(&mut self, key: IoKey, stats: &IoStats) -> Option<Named> {
        if self.latest.get(&key).is_some_and(|(first_ns, _)| *first_ns == stats.first_ns) {
            self.latest.remove(&key);
        }
        self.uses.remove(&(key, stats.first_ns))
    }

    /// Whether it is time to look which descriptors are still open.
    pub fn wants_open(&self) -> bool {
        self.uses.len() >= MAX_NAMES || self.look.is_due()
    }

    /// Forgets the names of descriptors that are neither `open` now nor were so when this was last asked.
    pub fn keep_open(&mut self, open: &FxHashSet<Use>) {
        self.look.restart();
        let before = std::mem::take(&mut self.closed);
        self.uses.retain(|of, _| open.contains(of) || !before.contains(of));
        self.closed = self.uses.keys().filter(|of| !open.contains(*of)).copied().collect();
        let uses = &self.uses;
        self.latest.retain(|key, (first_ns, _)| uses.contains_key(&(*key, *first_ns)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_whose_end_was_lost_is_forgotten_at_the_second_look() {
        let mut names = Names::new(&Clock::monotonic());
        let key = |descriptor| IoKey { pid: 7, descriptor };
        let used = |first_ns| IoStats { first_ns, ..IoStats::default() };
        for descriptor in [3, 4] {
            let named = Named { object: format!("file {descriptor}"), serves: false };
            names.add(key(descriptor), &used(10), named);
        }
        let open: FxHashSet<Use> = [(key(3), 10)].into_iter().collect();
        names.keep_open(&open);
        assert_eq!(names.latest(key(4), 20), Some("file 4"), "the record of its end may still come");
        names.keep_open(&open);
        assert_eq!((names.latest(key(4), 20), names.of(key(4), &used(10)).is_none()), (None, true));
        assert_eq!(names.latest(key(3), 20), Some("file 3"));
        assert_eq!(names.latest(key(3), 5), None, "it was another one then");
        assert_eq!(names.take(key(3), &used(10)).unwrap().object, "file 3");
    }
}
