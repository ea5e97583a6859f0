//! Threads that end: their times are kept, and what the kernel still holds of them is taken out. On a machine that starts
//! programs all day there is no room in the kernel for all of them.

use profiler_common::histogram::Histogram;
use rustc_hash::FxHashSet;

use crate::{
    model::{stack::ThreadKey, wait::ThreadTime},
    probe::ended,
};

/// From so many ended threads on, their off-CPU time is taken out of the kernel at once: its map has room for some ten
/// stacks of each.
const TAKE_OFF_CPU: usize = 512;
/// Histograms of processes, of 4,096 that the kernel has room for, from which on those of ended ones are added up.
pub const MOST_HISTOGRAMS: usize = 2048;

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

    /// Keeps the times of a thread. Where there are too many, those that ran least are added up; process 0 stands for theirs.
    pub fn add(&mut self, time: ThreadTime) {
        self.off_cpu.insert(time.thread);
        self.times.push(time);
        if self.times.len() <= 2 * ended::KEPT {
            return;
        }
        let rows = self.times.iter().enumerate().filter(|(_, time)| time.thread != ThreadKey::OTHERS);
        let light: FxHashSet<usize> =
            ended::too_light(rows.map(|(at, time)| (at, time.on_cpu_ns))).into_iter().collect();
        let mut rest = ThreadTime { process: "(others)".to_owned(), ..ThreadTime::default() };
        let rows = std::mem::take(&mut self.times).into_iter().enumerate();
        let (stay, go): (Vec<_>, Vec<_>) =
            rows.partition(|(at, time)| time.thread != ThreadKey::OTHERS && !light.contains(at));
        go.iter().for_each(|(_, time)| rest.add(time));
        self.times.extend(stay.into_iter().map(|(_, time)| time));
        self.times.push(rest);
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
