//! Deadlocks: threads each of which waits for a lock that the next one holds, in a circle.

use std::collections::{BTreeMap, BTreeSet};

use super::convoy::{Holder, Waiter};
use crate::model::{
    stack::{StackId, ThreadKey},
    wait::{Deadlock, Deadlocked},
};

/// Locks whose holder is asked for in one look, at most.
const MAX_ASKED: usize = 256;
/// Deadlocks kept.
const MAX_KEPT: usize = 100;

/// Threads in a circle, each with the lock that the next one holds, from the lowest thread on.
type Circle = Vec<(ThreadKey, u64)>;

/// What is known of one that stays.
#[derive(Debug, Default)]
struct Stays {
    /// Where each of its threads waits.
    stacks: Vec<Option<StackId>>,
    /// Threads that wait for it.
    behind: u64,
}

/// What looks at who waits for what have shown.
#[derive(Debug, Default)]
pub struct Deadlocks {
    /// Who waited for which lock in the last look.
    waited: BTreeSet<(ThreadKey, u64)>,
    /// Circles of the last look.
    circles: BTreeSet<Circle>,
    /// Those that were there in two looks.
    found: BTreeMap<Circle, Stays>,
}

impl Deadlocks {
    /// Takes in who waits for locks at one moment. Who waits for the same one as in the look before may be in a circle: of those
    /// locks `holder` is asked who holds them.
    pub fn look(&mut self, waiters: &[Waiter], holder: &mut impl FnMut(u32, u64) -> Option<Holder>) {
        let mut holders: BTreeMap<(u32, u64), Option<ThreadKey>> = BTreeMap::new();
        let mut next: BTreeMap<ThreadKey, (ThreadKey, u64, Option<StackId>)> = BTreeMap::new();
        for waiter in waiters.iter().filter(|of| self.waited.contains(&(of.thread, of.futex))) {
            let lock = (waiter.thread.pid, waiter.futex);
            if holders.len() >= MAX_ASKED && !holders.contains_key(&lock) {
                continue;
            }
            let of = holders.entry(lock).or_insert_with(|| holder(lock.0, lock.1).map(|of| of.thread));
            if let Some(of) = *of {
                next.insert(waiter.thread, (of, waiter.futex, waiter.stack));
            }
        }
        self.waited = waiters.iter().map(|of| (of.thread, of.futex)).collect();

        let mut circles = BTreeSet::new();
        let mut behind: BTreeMap<ThreadKey, u64> = BTreeMap::new();
        for &start in next.keys() {
            let Some(circle) = circle_from(start, &next) else { continue };
            if !circle.iter().any(|(thread, _)| *thread == start)
                && let Some((first, _)) = circle.first()
            {
                *behind.entry(*first).or_default() += 1;
            }
            circles.insert(circle);
        }
        for circle in &circles {
            let known = self.found.len() < MAX_KEPT || self.found.contains_key(circle);
            if let Some((first, _)) = circle.first().filter(|_| known && self.circles.contains(circle)) {
                let stacks = circle
                    .iter()
                    .map(|(thread, _)| next.get(thread).and_then(|(.., stack)| *stack))
                    .collect();
                let behind = behind.get(first).copied().unwrap_or(0);
                self.found.insert(circle.clone(), Stays { stacks, behind });
            }
        }
        self.circles = circles;
    }

    /// Those so far; `process` names a process by its id.
    pub fn found(&self, process: impl Fn(u32) -> String) -> Vec<Deadlock> {
        let each = self.found.iter().map(|(circle, Stays { stacks, behind })| {
            let pid = circle.first().map_or(0, |(thread, _)| thread.pid);
            let threads = circle.iter().zip(stacks);
            let threads =
                threads.map(|(&(thread, futex), &stack)| Deadlocked { thread, futex, stack }).collect();
            Deadlock { pid, process: process(pid), threads, behind: *behind }
        });
        each.collect()
    }
}

/// The circle that one comes to from a thread, from its lowest thread on; `None` if somebody there runs.
fn circle_from(
    start: ThreadKey,
    next: &BTreeMap<ThreadKey, (ThreadKey, u64, Option<StackId>)>,
) -> Option<Circle> {
    let mut path: Circle = Vec::new();
    let mut seen: BTreeMap<ThreadKey, usize> = BTreeMap::new();
    let mut at = start;
    loop {
        if let Some(&from) = seen.get(&at) {
            let mut circle = path.split_off(from);
            let lowest =
                circle.iter().enumerate().min_by_key(|(_, (thread, _))| *thread).map_or(0, |(i, _)| i);
            circle.rotate_left(lowest);
            return Some(circle);
        }
        let &(holder, futex, _) = next.get(&at)?;
        seen.insert(at, path.len());
        path.push((at, futex));
        at = holder;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(tid: u32) -> ThreadKey {
        ThreadKey { pid: 7, tid }
    }

    /// Threads, each with the lock it waits for; a lock's number is that of its holder.
    fn looks(deadlocks: &mut Deadlocks, waits: &[(u32, u64)], times: u32) -> Vec<(Vec<u32>, u64)> {
        let waiter =
            |&(tid, futex): &(u32, u64)| Waiter { thread: key(tid), futex, stack: Some(StackId(tid)) };
        let waiters: Vec<Waiter> = waits.iter().map(waiter).collect();
        for _ in 0..times {
            deadlocks.look(&waiters, &mut |_, futex| Some(Holder { thread: key(futex as u32), stack: None }));
        }
        let found = deadlocks.found(|_| "app".into());
        let each = found.iter().map(|of| {
            assert!(of.threads.iter().all(|of| of.stack == Some(StackId(of.thread.tid))));
            (of.threads.iter().map(|of| of.thread.tid).collect(), of.behind)
        });
        each.collect()
    }

    #[test]
    fn a_circle_that_stays_is_a_deadlock() {
        let mut of = Deadlocks::default();
        assert_eq!(looks(&mut of, &[(3, 2), (2, 3)], 2), [], "it may be chance");
        assert_eq!(looks(&mut of, &[(3, 2), (2, 3)], 1), [(vec![2, 3], 0)]);
        assert_eq!(looks(&mut of, &[(4, 5), (5, 6), (6, 4), (9, 6), (8, 9)], 4)[1], (vec![4, 5, 6], 2));
        assert_eq!(looks(&mut Deadlocks::default(), &[(1, 1)], 3), [(vec![1], 0)], "its own lock, once more");
    }

    #[test]
    fn who_waits_for_one_that_runs_is_in_none() {
        assert_eq!(looks(&mut Deadlocks::default(), &[(2, 1), (3, 2), (4, 2)], 5), []);
        // Another lock each time: it goes on.
        let mut of = Deadlocks::default();
        for i in 0..6 {
            looks(&mut of, &[(2, 3 + i % 2), (3, 2), (4, 2)], 1);
        }
        assert_eq!(looks(&mut of, &[], 1), []);
    }
}
