//! Threads that end: their times are kept, and what the kernel still holds of them is taken out. On a machine that starts
//! programs all day there is no room in the kernel for all of them.

use profiler_common::{
    histogram::Histogram,
    sched::{HistogramKey, HistogramKind},
};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    model::{stack::ThreadKey, wait::ThreadTime},
    probe::{
        ended,
        sched::{loops::Loops, maps::SchedMaps, totals::Waits},
    },
};

/// From so many ended threads on, their off-CPU time is taken out of the kernel at once: its map has room for some ten
/// stacks of each.
const TAKE_OFF_CPU: usize = 512;
/// Histograms of processes, of 4,096 that the kernel has room for, from which on those of ended ones are added up.
pub const MOST_HISTOGRAMS: usize = 2048;

/// Threads that wait as event loops do, of 4,096 that there is room for, from which on those that end are forgotten.
const MOST_LOOPS: usize = 1024;

/// What is kept of threads that have ended.
pub struct Ended {
    /// Their times.
    pub times: Vec<ThreadTime>,
    /// Waits for a CPU of processes that are not listed by themselves any more.
    pub run_queue: Box<Histogram>,
    /// Threads whose off-CPU time may still be in the kernel.
    off_cpu: FxHashSet<ThreadKey>,
}

impl Ended {
    /// Nothing yet.
    pub fn new() -> Ended {
        Ended { times: Vec::new(), run_queue: Box::new(Histogram::EMPTY), off_cpu: FxHashSet::default() }
    }

    /// Keeps the times of a thread. Where there are too many, those that ran least are added up: by process and name, with 0 for
    /// the thread, and where these are too many as well, all together, with 0 for the process too.
    pub fn add(&mut self, time: ThreadTime) {
        self.off_cpu.insert(time.thread);
        self.times.push(time);
        if self.times.len() <= 2 * ended::KEPT {
            return;
        }
        for level in [|of: &ThreadKey| ThreadKey { pid: of.pid, tid: 0 }, |_: &ThreadKey| ThreadKey::OTHERS] {
            self.add_up(level);
            if self.times.len() <= ended::KEPT + ended::KEPT / 2 {
                break;
            }
        }
    }

    /// Adds up the lightest under what they are told as.
    fn add_up(&mut self, told_as: fn(&ThreadKey) -> ThreadKey) {
        let is_sum = |of: &ThreadTime| told_as(&of.thread) == of.thread;
        let (mut sums, single): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.times).into_iter().partition(is_sum);
        let rows = single.iter().enumerate().map(|(at, time)| (at, time.on_cpu_ns));
        let light: FxHashSet<usize> = ended::lightest(rows, ended::KEPT).into_iter().collect();
        let mut at: FxHashMap<(ThreadKey, String), usize> =
            sums.iter().enumerate().map(|(at, of)| ((of.thread, of.name.clone()), at)).collect();
        for (number, time) in single.into_iter().enumerate() {
            if !light.contains(&number) {
                self.times.push(time);
                continue;
            }
            let thread = told_as(&time.thread);
            let everybody = thread == ThreadKey::OTHERS;
            let name = if everybody { String::new() } else { time.name.clone() };
            match at.get(&(thread, name.clone())) {
                Some(&at) => sums[at].add(&time),
                None => {
                    at.insert((thread, name.clone()), sums.len());
                    let process = if everybody { "(others)".to_owned() } else { time.process.clone() };
                    sums.push(ThreadTime { thread, process, name, run_queue: None, ..time });
                }
            }
        }
        self.times.append(&mut sums);
    }

    /// Whether there is enough to take out of the kernel.
    pub fn is_much(&self) -> bool {
        self.off_cpu.len() >= TAKE_OFF_CPU
    }

    /// The threads whose off-CPU time has been taken in for the last time.
    pub fn take_off_cpu(&mut self) -> FxHashSet<ThreadKey> {
        std::mem::take(&mut self.off_cpu)
    }
}

/// A thread has ended. Where there are many event loops, those that live have the places in the kernel and here.
pub fn forget_loop(
    thread: ThreadKey,
    loops: &mut Loops,
    waits: &mut Waits,
    counted: &mut FxHashSet<HistogramKey>,
    maps: &mut dyn SchedMaps,
) {
    if loops.len() <= MOST_LOOPS {
        return;
    }
    loops.forget(thread);
    waits.forget_loop(thread);
    let key = HistogramKey { kind: HistogramKind::Iterations as u32, id: thread.tid };
    counted.remove(&key);
    maps.take_histogram(&key);
}
