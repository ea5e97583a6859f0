//! Samples add up here. Keys are whole values (a thread and an interned stack), so two different stacks never
//! merge; what does not fit within the limits is refused, and counted by the caller.

use rustc_hash::FxHashMap;

use crate::model::{
    cause::WaitCause,
    sample::Sample,
    stack::{Stack, StackId, Tables, ThreadKey},
};

/// Most distinct stacks kept: at 40 frames of 16 bytes each about 40 MB.
pub const MAX_STACKS: usize = 65_536;

/// Most distinct [`Key`]s kept: about 8 MB.
pub const MAX_KEYS: usize = 262_144;

/// What samples add up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Whose they are.
    pub thread: ThreadKey,
    /// Where.
    pub stack: StackId,
    /// What for, if it waited.
    pub cause: Option<WaitCause>,
}

/// Running totals.
#[derive(Debug, Default)]
pub struct Aggregator {
    weights: FxHashMap<Key, u64>,
    total: u64,
    span_ns: Option<(u64, u64)>,
}

/// Totals at one moment, heaviest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Weight by thread, stack and cause.
    pub entries: Vec<(Key, u64)>,
    /// Sum of all weights.
    pub total: u64,
    /// Times of the first and the last sample, CLOCK_MONOTONIC, ns.
    pub span_ns: Option<(u64, u64)>,
}

impl Aggregator {
    /// Adds a sample; `false` if there is no room for its key.
    #[must_use]
    pub fn add(&mut self, sample: &Sample) -> bool {
        let key = Key { thread: sample.thread, stack: sample.stack, cause: sample.cause };
        if self.weights.len() >= MAX_KEYS && !self.weights.contains_key(&key) {
            return false;
        }
        *self.weights.entry(key).or_default() += sample.weight;
        self.total += sample.weight;
        let (first, last) = self.span_ns.unwrap_or((sample.time_ns, sample.time_ns));
        self.span_ns = Some((first.min(sample.time_ns), last.max(sample.time_ns)));
        true
    }

    /// The totals so far.
    pub fn snapshot(&self) -> Snapshot {
        let mut entries: Vec<_> = self.weights.iter().map(|(&key, &weight)| (key, weight)).collect();
        entries.sort_unstable_by_key(|&(key, weight)| (std::cmp::Reverse(weight), key));
        Snapshot { entries, total: self.total, span_ns: self.span_ns }
    }

    /// The totals so far, starting again from nothing.
    pub fn take(&mut self) -> Snapshot {
        let snapshot = self.snapshot();
        *self = Aggregator::default();
        snapshot
    }
}

/// The id of a stack, new or known; `None` if it is new and there is no room.
pub fn intern_stack(tables: &mut Tables, stack: Stack) -> Option<StackId> {
    if tables.stacks.len() >= MAX_STACKS {
        return tables.stacks.get_index_of(&stack).map(|index| StackId(index as u32));
    }
    Some(StackId(tables.stacks.insert_full(stack).0 as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::stack::{Frame, ModuleId, StackEnd};

    fn sample(tid: u32, stack: u32) -> Sample {
        Sample {
            time_ns: stack.into(),
            thread: ThreadKey { pid: 1, tid },
            cpu: 0,
            stack: StackId(stack),
            weight: 1,
            cause: None,
        }
    }

    #[test]
    fn weights_add_up_by_thread_and_stack() {
        let mut aggregator = Aggregator::default();
        for (tid, stack) in [(1, 0), (1, 0), (2, 0), (1, 1)] {
            assert!(aggregator.add(&sample(tid, stack)));
        }
        let snapshot = aggregator.take();
        assert_eq!((snapshot.total, snapshot.span_ns), (4, Some((0, 1))));
        let key = Key { thread: ThreadKey { pid: 1, tid: 1 }, stack: StackId(0), cause: None };
        assert_eq!(snapshot.entries[0], (key, 2));
        assert_eq!(snapshot.entries.len(), 3);
        assert_eq!(aggregator.snapshot(), Snapshot::default());
    }

    #[test]
    fn a_full_table_refuses_new_keys_only() {
        let mut aggregator = Aggregator::default();
        for stack in 0..MAX_KEYS as u32 {
            assert!(aggregator.add(&sample(1, stack)));
        }
        assert!(!aggregator.add(&sample(2, 0)));
        assert!(aggregator.add(&sample(1, 0)));
        assert_eq!(aggregator.snapshot().total, MAX_KEYS as u64 + 1, "what was refused is in no total");
    }

    #[test]
    fn equal_stacks_share_an_id_and_others_do_not() {
        let mut tables = Tables::default();
        let mut intern = |addresses: [u64; 2], kernel_frames| {
            let frames = addresses.map(|address| Frame { module: ModuleId(0), address }).into();
            intern_stack(&mut tables, Stack { frames, kernel_frames, end: StackEnd::Complete })
        };
        let a = intern([1, 2], 0);
        assert_eq!(a, intern([1, 2], 0));
        assert_ne!(a, intern([1, 2], 1), "a kernel frame is another frame");
        assert_ne!(a, intern([2, 1], 0));
    }
}
