//! Threads that end: their times are kept, and what the kernel still holds of them is taken out. On a machine that starts
//! programs all day there is no room in the kernel for all of them.

use profiler_common::{
    histogram::Histogram,
    sched::{Exit, HistogramKey, HistogramKind, OffCpuKey},
};
use rustc_hash::FxHashSet;

use super::Scheduler;
use crate::{
    model::{
        distribution::Summary,
        stack::{Tables, ThreadKey, comm},
        wait::ThreadTime,
    },
    probe::{ended, sched::records},
};

/// From so many ended threads on, their off-CPU time is taken out of the kernel at once: its map has room for some ten
/// stacks of each.
const TAKE_OFF_CPU: usize = 512;
/// Histograms of processes, of 4,096 that the kernel has room for, from which on those of ended ones are added up.
const MOST_HISTOGRAMS: usize = 2048;

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

    /// Whether there is enough to take out of the kernel.
    pub fn is_much(&self) -> bool {
        self.off_cpu.len() >= TAKE_OFF_CPU
    }

    /// The threads whose off-CPU time has been taken in for the last time.
    pub fn take_off_cpu(&mut self) -> FxHashSet<ThreadKey> {
        std::mem::take(&mut self.off_cpu)
    }
}

impl Scheduler {
    /// A thread has ended.
    pub(super) fn exit(&mut self, exit: &Exit, tables: &mut Tables) {
        let thread = ThreadKey { pid: exit.pid, tid: exit.tid };
        tables.threads.insert(thread, comm(&exit.comm));
        let mut time =
            records::thread_time(thread, &exit.times, exit.time_ns.saturating_sub(exit.first_ns), tables);
        time.run_queue = self.maps.take_thread_run_queue(thread.tid).map(|histogram| Summary::of(&histogram));
        self.waits.ended(&mut time);
        self.ended.times.push(time);
        self.ended.off_cpu.insert(thread);
        if self.ended.times.len() > 2 * ended::KEPT {
            self.add_up_ended();
        }
        let key = HistogramKey { kind: HistogramKind::RunQueue as u32, id: exit.pid };
        if thread.tid == thread.pid
            && self.counted.len() > MOST_HISTOGRAMS
            && self.counted.remove(&key)
            && let Some(histogram) = self.maps.take_histogram(&key)
        {
            self.ended.run_queue.add(&histogram);
        }
    }

    /// Adds up the ended threads that ran least. Process 0 stands for theirs.
    fn add_up_ended(&mut self) {
        let times = &mut self.ended.times;
        let rows = times.iter().enumerate().filter(|(_, time)| time.thread != ThreadKey::OTHERS);
        let light: FxHashSet<usize> =
            ended::too_light(rows.map(|(at, time)| (at, time.on_cpu_ns))).into_iter().collect();
        let mut rest = ThreadTime { process: "(others)".to_owned(), ..ThreadTime::default() };
        let rows = std::mem::take(times).into_iter().enumerate();
        let (stay, go): (Vec<_>, Vec<_>) =
            rows.partition(|(at, time)| time.thread != ThreadKey::OTHERS && !light.contains(at));
        go.iter().for_each(|(_, time)| rest.add(time));
        times.extend(stay.into_iter().map(|(_, time)| time));
        times.push(rest);
    }

    /// Forgets what the kernel holds of off-CPU time of threads that had ended before it was taken in.
    pub(super) fn forget_off_cpu(&mut self, ended: &FxHashSet<ThreadKey>) {
        let gone = |key: &OffCpuKey| ended.contains(&ThreadKey { pid: key.pid, tid: key.tid });
        let gone: Vec<OffCpuKey> = self.taken.keys().filter(|key| gone(key)).copied().collect();
        for key in gone {
            self.taken.remove(&key);
            self.maps.forget_off_cpu(&key);
        }
    }
}
