//! What the scheduler probe's records add up to. Records come in order of the time they end, so that everything
//! inside an iteration is here before the iteration itself.

use std::collections::{BTreeMap, VecDeque};

use profiler_common::sched::Iteration;
use rustc_hash::FxHashMap;

use crate::{
    model::{
        finding::Severity,
        stack::{StackId, ThreadKey},
        threshold::Thresholds,
        wait::{Block, Blocking, EventLoop, LongWait, RanInstead, RunQueue, Stall, ThreadTime},
    },
    probe::sched::{
        convoy::{Convoys, Holder, Waiter},
        deadlock::Deadlocks,
        long_wait::{Wait, long_waits},
        stall::{explain, length_ns},
    },
};

/// Most stalls, and most long waits, listed one by one: the worst.
pub const MAX_LISTED: usize = 1000;
/// Most threads whose samples are counted, and most listed one by one.
pub const MAX_THREADS: usize = 65_536;
/// Most event loops.
pub const MAX_LOOPS: usize = 4096;
/// Most samples, and most blocks, kept of all event loops for iterations still to be reported: about 4 and 10 MB.
const MAX_KEPT: (usize, usize) = (262_144, 65_536);
/// How long they are kept at most, ns: what an iteration longer than this did before counts as unexplained.
const KEPT_NS: u64 = 20_000_000_000;

/// Running totals of everything about waiting but off-CPU stacks, which are samples.
#[derive(Debug, Default)]
pub struct Waits {
    thresholds: Thresholds,
    /// CPU samples in user code and in the kernel.
    cpu: FxHashMap<ThreadKey, (u64, u64)>,
    loops: FxHashMap<ThreadKey, Loop>,
    /// Samples and blocks in all loops.
    kept: (usize, usize),
    last_prune_ns: u64,
    stalls: Worst<Stall>,
    long_waits: Worst<LongWait>,
    convoys: Convoys,
    deadlocks: Deadlocks,
}

#[derive(Debug, Default)]
struct Loop {
    warnings: u64,
    criticals: u64,
    samples: VecDeque<(u64, StackId)>,
    blocks: VecDeque<Block>,
}

/// Takes so many samples in user code and in the kernel into the times of a thread. One that has ended has some already.
fn split(time: &mut ThreadTime, user: u64, kernel: u64) {
    let before = time.cpu_samples;
    time.cpu_samples += user + kernel;
    if before == 0 {
        let share = u128::from(time.on_cpu_ns) * u128::from(kernel) / u128::from((user + kernel).max(1));
        time.on_cpu_kernel_ns = share as u64;
    }
}

/// What is known at one moment only; the caller has it from the kernel's maps.
#[derive(Clone, Debug, Default)]
pub struct Now {
    /// All threads, ended ones too; their estimates out of CPU samples are filled in here.
    pub threads: Vec<ThreadTime>,
    /// Waits for a CPU by process.
    pub run_queue: Vec<RunQueue>,
    /// Event loops; their numbers of stalls are filled in here.
    pub loops: Vec<EventLoop>,
    /// Waits that have not ended.
    pub waits: Vec<Wait>,
    /// Iterations that have not ended, up to now.
    pub iterations: Vec<Iteration>,
}

impl Waits {
    /// Nothing yet.
    pub fn new(thresholds: Thresholds) -> Waits {
        Waits { thresholds, ..Waits::default() }
    }

    /// A CPU sample, taken at `time_ns` (CLOCK_MONOTONIC).
    pub fn cpu_sample(&mut self, thread: ThreadKey, time_ns: u64, stack: StackId, in_kernel: bool) {
        if self.cpu.len() < MAX_THREADS || self.cpu.contains_key(&thread) {
            let (user, kernel) = self.cpu.entry(thread).or_default();
            *(if in_kernel { kernel } else { user }) += 1;
        }
        if !self.loops.contains_key(&thread) {
            return;
        }
        self.make_room(time_ns);
        if let Some(of) = self.loops.get_mut(&thread).filter(|_| self.kept.0 < MAX_KEPT.0) {
            of.samples.push_back((time_ns, stack));
            self.kept.0 += 1;
        }
    }

    /// A thread that waits as event loops do: from now on its samples and blocks are kept for its iterations.
    pub fn add_loop(&mut self, thread: ThreadKey) {
        if self.loops.len() < MAX_LOOPS {
            self.loops.entry(thread).or_default();
        }
    }

    /// A wait that has ended, of any thread.
    pub fn wait(&mut self, wait: Wait) {
        for found in long_waits(&wait, self.loops.contains_key(&wait.thread), &self.thresholds) {
            self.long_waits.add(rank(&found), found);
        }
        if !self.loops.contains_key(&wait.thread) {
            return;
        }
        self.make_room(end_of(&wait.block));
        if let Some(of) = self.loops.get_mut(&wait.thread).filter(|_| self.kept.1 < MAX_KEPT.1) {
            of.blocks.push_back(wait.block);
            self.kept.1 += 1;
        }
    }

    /// An iteration that took long enough to be reported; and who ran meanwhile, where it had no CPU.
    pub fn iteration(&mut self, iteration: &Iteration, instead: Vec<RanInstead>) {
        let thread = ThreadKey { pid: iteration.pid, tid: iteration.tid };
        let Some(severity) = self.thresholds.iteration(length_ns(iteration)) else { return };
        self.add_loop(thread);
        let Some(of) = self.loops.get_mut(&thread) else {
            self.stalls.dropped += 1; // a loop too many
            return;
        };
        match severity {
            Severity::Info | Severity::Warning => of.warnings += 1,
            Severity::Critical => of.criticals += 1,
        }
        let (samples, blocks) = (of.samples.make_contiguous(), of.blocks.make_contiguous());
        let stall = Stall { instead, ..explain(iteration, samples, blocks, &self.thresholds) };
        self.stalls.add((severity, stall.duration_ns), stall);
        let (samples, blocks) = of.forget_before(iteration.end_ns);
        self.kept = (self.kept.0 - samples, self.kept.1 - blocks);
    }

    /// One look, about one a second, at who waits for locks; `holder` is asked who holds the lock (process id and
    /// address of the futex) of each convoy there is.
    pub fn look(&mut self, waiters: &[Waiter], mut holder: impl FnMut(u32, u64) -> Option<Holder>) {
        self.deadlocks.look(waiters, &mut holder);
        self.convoys.look(waiters, holder);
    }

    /// A thread has ended, and these were its times: nothing more will come of it.
    pub fn ended(&mut self, time: &mut ThreadTime) {
        let thread = time.thread;
        if let Some((user, kernel)) = self.cpu.remove(&thread) {
            split(time, user, kernel);
        }
        if let Some(of) = self.loops.get_mut(&thread) {
            let (samples, blocks) = of.forget_before(u64::MAX);
            self.kept = (self.kept.0 - samples, self.kept.1 - blocks);
        }
    }

    /// An event loop that has ended is not listed any more; its stalls are.
    pub fn forget_loop(&mut self, thread: ThreadKey) {
        self.loops.remove(&thread);
    }

    /// Everything up to now.
    pub fn blocking(&self, now: Now) -> Blocking {
        let mut threads = now.threads;
        for thread in &mut threads {
            if let Some(&(user, kernel)) = self.cpu.get(&thread.thread) {
                split(thread, user, kernel);
            }
        }
        threads.sort_by_key(|thread| (std::cmp::Reverse(thread.wall_ns), thread.thread));
        if threads.len() > MAX_THREADS {
            let mut rest = ThreadTime { process: "(others)".into(), ..ThreadTime::default() };
            threads.drain(MAX_THREADS - 1..).for_each(|thread| rest.add(&thread));
            threads.push(rest);
        }

        let mut stalls = self.stalls.clone();
        let mut loops = now.loops;
        for of in &mut loops {
            let counts = self.loops.get(&of.thread);
            (of.warnings, of.criticals) = counts.map_or((0, 0), |counts| (counts.warnings, counts.criticals));
        }
        for iteration in &now.iterations {
            let thread = ThreadKey { pid: iteration.pid, tid: iteration.tid };
            let Some(severity) = self.thresholds.iteration(length_ns(iteration)) else { continue };
            let (samples, blocks): (Vec<_>, Vec<_>) =
                self.loops.get(&thread).map_or_else(Default::default, |of| {
                    (of.samples.iter().copied().collect(), of.blocks.iter().cloned().collect())
                });
            let stall = explain(iteration, &samples, &blocks, &self.thresholds);
            stalls.add((severity, stall.duration_ns), stall);
            if let Some(of) = loops.iter_mut().find(|of| of.thread == thread) {
                match severity {
                    Severity::Info | Severity::Warning => of.warnings += 1,
                    Severity::Critical => of.criticals += 1,
                }
            }
        }
        loops.sort_by_key(|of| (std::cmp::Reverse(of.iterations.max_ns), of.thread));

        let mut waits = self.long_waits.clone();
        for wait in &now.waits {
            for found in long_waits(wait, self.loops.contains_key(&wait.thread), &self.thresholds) {
                waits.add(rank(&found), found);
            }
        }
        let mut run_queue = now.run_queue;
        run_queue.sort_by_key(|waits| (std::cmp::Reverse(waits.waits.sum_ns), waits.pid));
        let process = |pid| {
            let of_process = threads.iter().find(|thread| thread.thread.pid == pid);
            of_process.map_or_else(|| "?".to_owned(), |thread| thread.process.clone())
        };
        Blocking {
            thresholds: self.thresholds.clone(),
            run_queue,
            loops,
            stalls_unlisted: stalls.dropped,
            stalls: stalls.in_order(|stall| (stall.start_ns, stall.thread)),
            long_waits_unlisted: waits.dropped,
            long_waits: waits.in_order(|wait| (wait.block.start_ns, wait.thread)),
            convoys: self.convoys.found(process),
            deadlocks: self.deadlocks.found(process),
            threads,
        }
    }

    /// Forgets what is too old, in all loops at most once a second.
    fn make_room(&mut self, now_ns: u64) {
        if now_ns < self.last_prune_ns.saturating_add(1_000_000_000) {
            return;
        }
        self.last_prune_ns = now_ns;
        for of in self.loops.values_mut() {
            let (samples, blocks) = of.forget_before(now_ns.saturating_sub(KEPT_NS));
            self.kept = (self.kept.0 - samples, self.kept.1 - blocks);
        }
    }
}

impl Loop {
    /// Forgets samples and blocks that ended before; returns how many of each.
    fn forget_before(&mut self, time_ns: u64) -> (usize, usize) {
        let before = (self.samples.len(), self.blocks.len());
        self.samples.retain(|(time, _)| *time >= time_ns);
        self.blocks.retain(|block| end_of(block) > time_ns);
        (before.0 - self.samples.len(), before.1 - self.blocks.len())
    }
}

fn end_of(block: &Block) -> u64 {
    block.start_ns.saturating_add(block.blocked_ns).saturating_add(block.run_queue_ns)
}

fn rank(wait: &LongWait) -> (Severity, u64) {
    (wait.severity, wait.block.blocked_ns.saturating_add(wait.block.run_queue_ns))
}

/// The worst of many.
#[derive(Clone, Debug)]
struct Worst<T> {
    /// By rank, then the number in which they came.
    kept: BTreeMap<((Severity, u64), u64), T>,
    added: u64,
    dropped: u64,
}

impl<T> Default for Worst<T> {
    fn default() -> Self {
        Worst { kept: BTreeMap::new(), added: 0, dropped: 0 }
    }
}

impl<T> Worst<T> {
    fn add(&mut self, rank: (Severity, u64), item: T) {
        self.kept.insert((rank, self.added), item);
        self.added += 1;
        if self.kept.len() > MAX_LISTED {
            self.kept.pop_first();
            self.dropped += 1;
        }
    }

    fn in_order<K: Ord>(self, key: impl Fn(&T) -> K) -> Vec<T> {
        let mut items: Vec<T> = self.kept.into_values().collect();
        items.sort_by_key(key);
        items
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        model::cause::WaitCause,
        probe::sched::{
            long_wait::fixtures::wait,
            stall::fixtures::{LOOP, iteration},
        },
    };

    const MS: u64 = 1_000_000;
    const OTHER: ThreadKey = ThreadKey { pid: 7, tid: 9 };

    fn waits() -> Waits {
        let mut waits = Waits::new(Thresholds::default());
        waits.add_loop(LOOP);
        waits
    }

    #[test]
    fn a_stall_is_joined_with_what_happened_in_it() {
        let mut waits = waits();
        for at in 0..10 {
            waits.cpu_sample(LOOP, at * 10 * MS, StackId(at as u32 % 2), at % 5 == 0);
            waits.cpu_sample(OTHER, at * 10 * MS, StackId(5), false);
        }
        waits.wait(wait(LOOP.tid, 92 * MS, 100 * MS, 2 * MS, WaitCause::Disk));
        waits.iteration(&iteration(25 * MS, 194 * MS, 67 * MS, 2 * MS), Vec::new());
        waits.iteration(&iteration(195 * MS, 196 * MS, MS, 0), Vec::new()); // no stall
        let threads = vec![ThreadTime { thread: LOOP, on_cpu_ns: 100, ..ThreadTime::default() }];
        let loops = vec![EventLoop { thread: LOOP, ..EventLoop::default() }];
        let blocking = waits.blocking(Now { threads, loops, ..Now::default() });
        let stall = &blocking.stalls[0];
        assert_eq!(stall.samples, [(StackId(1), 4), (StackId(0), 3)]);
        assert_eq!((stall.blocks.len(), stall.explained), (1, 1.0));
        assert_eq!((blocking.loops[0].warnings, blocking.loops[0].criticals), (0, 1));
        assert_eq!((blocking.threads[0].cpu_samples, blocking.threads[0].on_cpu_kernel_ns), (10, 20));
        assert_eq!(waits.kept, (0, 0), "what an iteration was joined with is not needed again");
    }

    #[test]
    fn what_has_not_ended_is_found_again_each_time() {
        let mut waits = waits();
        waits.cpu_sample(LOOP, 500 * MS, StackId(1), false);
        let now = Now {
            loops: vec![EventLoop { thread: LOOP, ..EventLoop::default() }],
            waits: vec![Wait { ongoing: true, ..wait(9, 0, 2000 * MS, 0, WaitCause::Lock) }],
            iterations: vec![iteration(400 * MS, 2000 * MS, 1600 * MS, 0)],
            ..Now::default()
        };
        for _ in 0..2 {
            let blocking = waits.blocking(now.clone());
            assert_eq!((blocking.stalls.len(), blocking.long_waits.len()), (1, 1));
            assert_eq!((blocking.stalls[0].explained, blocking.loops[0].criticals), (1.0, 1));
            assert!(blocking.long_waits[0].ongoing);
        }
    }

    #[test]
    fn the_worst_are_listed_and_the_rest_is_counted() {
        let mut waits = waits();
        for i in 0..MAX_LISTED as u64 + 10 {
            let start = i * 1000 * MS;
            waits.iteration(&iteration(start, start + 10 * MS + i, 0, 0), Vec::new());
            waits.wait(wait(9, start, 2000 * MS - i, 0, WaitCause::Pipe));
        }
        let blocking = waits.blocking(Now::default());
        assert_eq!((blocking.stalls.len(), blocking.stalls_unlisted), (MAX_LISTED, 10));
        assert_eq!((blocking.long_waits.len(), blocking.long_waits_unlisted), (MAX_LISTED, 10));
        assert_eq!(blocking.stalls[0].start_ns, 10 * 1000 * MS, "the shortest are gone");
        assert_eq!(blocking.long_waits[0].block.start_ns, 0);
        assert!(blocking.stalls.is_sorted_by_key(|stall| stall.start_ns));
    }

    #[test]
    fn memory_is_bounded() {
        let mut waits = waits();
        for i in 0..MAX_KEPT.1 as u64 + 10 {
            waits.wait(wait(LOOP.tid, i, 1, 0, WaitCause::Pipe));
        }
        assert_eq!(waits.kept.1, MAX_KEPT.1);
        waits.cpu_sample(LOOP, KEPT_NS * 2, StackId(0), false);
        assert_eq!(waits.kept, (1, 0), "what is too old makes room");
        waits.ended(&mut ThreadTime { thread: LOOP, ..ThreadTime::default() });
        assert_eq!(waits.kept, (0, 0));
    }

    #[test]
    fn many_threads_become_one_line() {
        let thread = |tid| ThreadTime {
            thread: ThreadKey { pid: 1, tid },
            wall_ns: 5,
            on_cpu_ns: 2,
            blocked: vec![(WaitCause::Disk, 3)],
            ..ThreadTime::default()
        };
        let threads = (0..MAX_THREADS as u32 + 10).map(thread).collect();
        let blocking = waits().blocking(Now { threads, ..Now::default() });
        assert_eq!(blocking.threads.len(), MAX_THREADS);
        let rest = blocking.threads.last().unwrap();
        assert_eq!((rest.wall_ns, rest.accounted_ns()), (55, 55));
    }

    proptest! {
        #[test]
        fn parts_add_up(
            parts in prop::collection::vec((0u64..1 << 40, 0u64..1 << 40, 0u64..1 << 40, 0u32..11), 1..20),
            user in 0u64..50,
            kernel in 0u64..50,
        ) {
            let mut waits = waits();
            for i in 0..user + kernel {
                waits.cpu_sample(LOOP, i, StackId(0), i < kernel);
            }
            let thread = |&(on_cpu_ns, run_queue_ns, blocked, cause): &(u64, u64, u64, u32)| ThreadTime {
                thread: LOOP,
                wall_ns: on_cpu_ns + run_queue_ns + blocked,
                on_cpu_ns,
                run_queue_ns,
                blocked: vec![(WaitCause::from_number(cause).unwrap_or(WaitCause::Unknown), blocked)],
                ..ThreadTime::default()
            };
            let now = Now { threads: parts.iter().map(thread).collect(), ..Now::default() };
            let threads = waits.blocking(now).threads;
            let mut sum = ThreadTime::default();
            for thread in &threads {
                prop_assert_eq!(thread.accounted_ns(), thread.wall_ns);
                prop_assert!(thread.on_cpu_kernel_ns <= thread.on_cpu_ns);
                prop_assert!(thread.not_idle_ns() <= thread.wall_ns);
                sum.add(thread);
            }
            prop_assert_eq!(sum.accounted_ns(), sum.wall_ns);
            prop_assert_eq!(sum.wall_ns, threads.iter().map(|thread| thread.wall_ns).sum::<u64>());
        }
    }
}
