//! Samples add up here. Keys are whole values (a thread and an interned stack), so two different stacks never merge.
//! Beyond the limits less is told apart: threads are added up, and of new stacks only the innermost functions are kept.
//! What does not fit even then is refused, and counted by the caller.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::model::{
    cause::WaitCause,
    sample::Sample,
    stack::{Stack, StackEnd, StackId, Tables, ThreadKey},
};

/// Most distinct stacks kept: at 40 frames of 16 bytes each about 40 MB.
pub const MAX_STACKS: usize = 65_536;

/// Most distinct stacks of which the innermost functions are kept, when there are more.
pub const MAX_CUT: usize = 65_536;

/// User frames that such a stack keeps.
const CUT_FRAMES: usize = 2;

/// Most distinct [`Key`]s kept: about 8 MB. As many more may be of added up threads.
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
    /// Adds a sample, to [`ThreadKey::OTHERS`] if there is no room for its key; `false` if there is none there either.
    #[must_use]
    pub fn add(&mut self, sample: &Sample) -> bool {
        let mut key = Key { thread: sample.thread, stack: sample.stack, cause: sample.cause };
        if self.weights.len() >= MAX_KEYS && !self.weights.contains_key(&key) {
            key.thread = ThreadKey::OTHERS;
            if self.weights.len() >= 2 * MAX_KEYS && !self.weights.contains_key(&key) {
                return false;
            }
        }
        *self.weights.entry(key).or_default() += sample.weight;
        self.total += sample.weight;
        let (first, last) = self.span_ns.unwrap_or((sample.time_ns, sample.time_ns));
        self.span_ns = Some((first.min(sample.time_ns), last.max(sample.time_ns)));
        true
    }

    /// Whose samples there are, each as often as it has keys.
    pub fn threads(&self) -> impl Iterator<Item = ThreadKey> {
        self.weights.keys().map(|key| key.thread)
    }

    /// Weight of each thread.
    pub fn by_thread(&self) -> FxHashMap<ThreadKey, u64> {
        let mut threads = FxHashMap::default();
        for (key, weight) in &self.weights {
            *threads.entry(key.thread).or_default() += weight;
        }
        threads
    }

    /// Adds these threads up: they are [`ThreadKey::OTHERS`] from now on.
    pub fn add_up(&mut self, threads: &FxHashSet<ThreadKey>) {
        let mut gone = Vec::new();
        self.weights.retain(|key, weight| {
            let stays = !threads.contains(&key.thread);
            if !stays {
                gone.push((Key { thread: ThreadKey::OTHERS, ..*key }, *weight));
            }
            stays
        });
        for (key, weight) in gone {
            *self.weights.entry(key).or_default() += weight;
        }
        self.weights.shrink_to_fit();
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

/// The id of a stack, new or known. If it is new and there is no room, that of its innermost functions; `None` if there is no
/// room for these either.
pub fn intern_stack(tables: &mut Tables, stack: Stack) -> Option<StackId> {
    let mut most = MAX_STACKS;
    let mut stack = stack;
    if tables.stacks.len() >= most {
        if let Some(known) = tables.stacks.find(&stack) {
            return Some(known);
        }
        most += MAX_CUT;
        stack = cut(&stack);
    }
    if tables.stacks.len() >= most {
        return tables.stacks.find(&stack);
    }
    Some(tables.stacks.insert(&stack).0)
}

/// The innermost functions of a stack, in the kernel and in user code.
fn cut(stack: &Stack) -> Stack {
    let (kernel, user) = stack.frames.split_at(usize::from(stack.kernel_frames).min(stack.frames.len()));
    let frames = kernel.iter().take(1).chain(user.iter().take(CUT_FRAMES)).copied().collect();
    Stack { frames, kernel_frames: stack.kernel_frames.min(1), end: StackEnd::NotKept }
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
    fn a_full_table_adds_up_threads_before_it_refuses() {
        let mut aggregator = Aggregator::default();
        for stack in 0..MAX_KEYS as u32 {
            assert!(aggregator.add(&sample(1, stack)));
        }
        assert!(aggregator.add(&sample(2, 0)) && aggregator.add(&sample(3, 0)));
        assert!(aggregator.add(&sample(1, 0)));
        let snapshot = aggregator.snapshot();
        assert_eq!(snapshot.total, MAX_KEYS as u64 + 3, "nothing is lost");
        let others = Key { thread: ThreadKey::OTHERS, stack: StackId(0), cause: None };
        assert!(snapshot.entries.contains(&(others, 2)), "of two threads that came too late");
        for stack in 1..MAX_KEYS as u32 {
            assert!(aggregator.add(&sample(2, stack)));
        }
        assert!(!aggregator.add(&sample(2, MAX_KEYS as u32)));
        let total = 2 * MAX_KEYS as u64 + 2;
        assert_eq!(aggregator.snapshot().total, total, "what was refused is in no total");
    }

    #[test]
    fn beyond_the_most_stacks_their_innermost_functions_are_kept() {
        let mut tables = Tables::default();
        let mut intern = |addresses: &[u64], kernel_frames| {
            let frames = addresses.iter().map(|&address| Frame { module: ModuleId(0), address }).collect();
            let id = intern_stack(&mut tables, Stack { frames, kernel_frames, end: StackEnd::Complete });
            id.map(|id| {
                let stack = tables.stack(id);
                (id, stack.end, stack.frames.iter().map(|frame| frame.address).collect::<Vec<_>>())
            })
        };
        for address in 0..MAX_STACKS as u64 {
            intern(&[address, 1, 2, 3], 0);
        }
        let known = intern(&[5, 1, 2, 3], 0).unwrap();
        assert_eq!((known.1, known.2.len()), (StackEnd::Complete, 4), "what is known stays whole");
        let (first, end, kept) = intern(&[1 << 40, 7, 8, 9], 0).unwrap();
        assert_eq!((end, kept), (StackEnd::NotKept, vec![1 << 40, 7]));
        assert_eq!(intern(&[1 << 40, 7, 10], 0).unwrap().0, first, "other callers make no difference");
        let (_, _, kept) = intern(&[20, 21, 22, 7, 8, 9], 3).unwrap();
        assert_eq!(kept, [20, 7, 8]);
        for address in 0..MAX_CUT as u64 {
            intern(&[1 << 41 | address], 0);
        }
        assert_eq!(intern(&[1 << 42], 0), None, "no room at all");
        assert_eq!(intern(&[1 << 40, 7, 11], 0).unwrap().0, first);
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
