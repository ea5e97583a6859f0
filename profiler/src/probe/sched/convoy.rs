//! Lock convoys: many threads that queue for one lock, look after look.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use crate::model::{
    finding::Severity,
    stack::{StackId, ThreadKey},
    wait::Convoy,
};

/// Fewer waiters are no convoy.
const MIN_WAITERS: usize = 4;
/// A queue in one look only is chance.
const MIN_LOOKS: u64 = 2;
/// From so many waiters on it is critical.
const CRITICAL_WAITERS: u64 = 16;
/// Most locks kept.
const MAX_CONVOYS: usize = 1000;

/// A thread blocked in a contended lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// The thread.
    pub thread: ThreadKey,
    /// Address of the lock's futex, in its process.
    pub futex: u64,
    /// Where it waits.
    pub stack: Option<StackId>,
}

/// A thread that holds a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The thread.
    pub thread: ThreadKey,
    /// Where it blocked itself, if it did.
    pub stack: Option<StackId>,
}

/// What looks at a process have shown so far.
#[derive(Debug, Default)]
pub struct Convoys {
    /// By process id and address of the futex.
    locks: BTreeMap<(u32, u64), Lock>,
}

#[derive(Debug, Default)]
struct Lock {
    /// Looks without a gap up to the last one.
    consecutive: u64,
    /// Whether it ever was a convoy.
    confirmed: bool,
    seen: u64,
    waiters: u64,
    holder: Option<Holder>,
    waiter_stack: Option<StackId>,
}

impl Convoys {
    /// Takes in who waits for locks at one moment; `holder` is asked who holds the lock (process id and address of
    /// the futex) of each convoy there is.
    pub fn look(&mut self, waiters: &[Waiter], mut holder: impl FnMut(u32, u64) -> Option<Holder>) {
        let mut queues: BTreeMap<(u32, u64), Vec<&Waiter>> = BTreeMap::new();
        for waiter in waiters {
            queues.entry((waiter.thread.pid, waiter.futex)).or_default().push(waiter);
        }
        queues.retain(|_, queue| queue.len() >= MIN_WAITERS);
        for (key, lock) in &mut self.locks {
            if !queues.contains_key(key) {
                lock.consecutive = 0;
            }
        }
        self.locks.retain(|_, lock| lock.confirmed || lock.consecutive > 0);
        for (key, queue) in queues {
            if self.locks.len() >= MAX_CONVOYS && !self.locks.contains_key(&key) {
                continue;
            }
            let lock = self.locks.entry(key).or_default();
            lock.consecutive += 1;
            lock.seen += 1;
            lock.waiters = lock.waiters.max(queue.len() as u64);
            lock.waiter_stack =
                most_common(queue.iter().filter_map(|waiter| waiter.stack)).or(lock.waiter_stack);
            if lock.consecutive >= MIN_LOOKS {
                lock.confirmed = true;
                lock.holder = holder(key.0, key.1).or(lock.holder);
            }
        }
    }

    /// The convoys so far, longest queue first; `process` names a process by its id.
    pub fn found(&self, process: impl Fn(u32) -> String) -> Vec<Convoy> {
        let mut convoys: Vec<_> = self
            .locks
            .iter()
            .filter(|(_, lock)| lock.confirmed)
            .map(|(&(pid, futex), lock)| Convoy {
                severity: if lock.waiters >= CRITICAL_WAITERS {
                    Severity::Critical
                } else {
                    Severity::Warning
                },
                pid,
                process: process(pid),
                futex,
                waiters: lock.waiters,
                seen: lock.seen,
                holder: lock.holder.map(|holder| holder.thread),
                holder_stack: lock.holder.and_then(|holder| holder.stack),
                waiter_stack: lock.waiter_stack,
            })
            .collect();
        convoys.sort_by_key(|convoy| std::cmp::Reverse((convoy.waiters, convoy.seen)));
        convoys
    }
}

fn most_common(stacks: impl Iterator<Item = StackId>) -> Option<StackId> {
    let mut counts: FxHashMap<StackId, u64> = FxHashMap::default();
    stacks.for_each(|stack| *counts.entry(stack).or_default() += 1);
    counts.into_iter().max_by_key(|&(stack, count)| (count, std::cmp::Reverse(stack))).map(|(stack, _)| stack)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(len: u32) -> Vec<Waiter> {
        let waiter = |tid| Waiter {
            thread: ThreadKey { pid: 7, tid },
            futex: 0x1000,
            stack: Some(StackId(tid.min(2))),
        };
        (1..=len).map(waiter).collect()
    }

    fn look(convoys: &mut Convoys, len: u32) -> Vec<Convoy> {
        let holder = Holder { thread: ThreadKey { pid: 7, tid: 100 }, stack: None };
        convoys.look(&queue(len), |pid, futex| {
            assert_eq!((pid, futex), (7, 0x1000));
            Some(holder)
        });
        convoys.found(|pid| format!("app{pid}"))
    }

    #[test]
    fn a_queue_that_stays_is_a_convoy() {
        let mut convoys = Convoys::default();
        assert_eq!(look(&mut convoys, 5), []);
        let found = look(&mut convoys, 20);
        assert_eq!((found[0].waiters, found[0].seen, found[0].severity), (20, 2, Severity::Critical));
        assert_eq!((found[0].waiter_stack, found[0].process.as_str()), (Some(StackId(2)), "app7"));
        assert_eq!(found[0].holder.unwrap().tid, 100);
        assert_eq!(look(&mut convoys, 0)[0].seen, 2, "what was found stays found");
    }

    #[test]
    fn short_or_passing_queues_are_none() {
        let mut convoys = Convoys::default();
        for len in [5, 3, 5, 0, 3, 3] {
            assert_eq!(look(&mut convoys, len), []);
        }
    }
}
