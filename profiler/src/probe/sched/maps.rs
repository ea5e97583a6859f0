//! The maps and settings of the scheduler probe.

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use profiler_common::{
    cpu::{Ran, Seen},
    histogram::Histogram,
    offsets,
    sched::{HistogramKey, HistogramKind, OffCpuKey, OffCpuTime, ThreadState, WaitCause},
};

use crate::model::abi;

/// Maps that need memory only where the probe runs.
pub const LARGE_MAPS: [&str; 2] = ["THREADS", "OFF_CPU"];
/// The map that needs memory only where waits for a CPU are counted by thread.
pub const BY_THREAD_MAP: &str = "THREAD_RUN_QUEUE";

/// `BPF_NOEXIST`: what the kernel knows already it knows better.
const NOEXIST: u64 = 1;

/// What is told one by one, ns.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Turns of event loops from this length on.
    pub stall_ns: u64,
    /// Blocks of event loops, and their waits for a CPU.
    pub loop_block_ns: u64,
    /// Waits of any thread for a CPU.
    pub starvation_ns: u64,
    /// Blocks of any thread, by cause.
    pub block_ns: [u64; WaitCause::COUNT],
}

/// What the scheduler probe is to do.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// What is told one by one.
    pub limits: Limits,
    /// Find out who ends each block.
    pub wakers: bool,
    /// Count waits for a CPU by thread, too.
    pub run_queue_by_thread: bool,
}

/// Maps of `profiler-ebpf/src/sched.rs`.
pub struct SchedMaps {
    start_ns: Array<MapData, u64>,
    threads: HashMap<MapData, u32, ThreadState>,
    off_cpu: HashMap<MapData, OffCpuKey, OffCpuTime>,
    histograms: HashMap<MapData, HistogramKey, Histogram>,
    /// The only target, zero for none: its waits for a CPU have a place of their own.
    only: u32,
    only_run_queue: PerCpuArray<MapData, Histogram>,
    thread_run_queue: HashMap<MapData, u32, Histogram>,
    ran: PerCpuArray<MapData, Ran>,
}

impl SchedMaps {
    /// Takes the maps out of the loaded object.
    pub fn take(ebpf: &mut aya::Ebpf, only: u32) -> Result<SchedMaps> {
        let mut take =
            |name: &str| ebpf.take_map(name).with_context(|| format!("kernel object has no map {name}"));
        Ok(SchedMaps {
            start_ns: take("SCHED_START_NS")?.try_into()?,
            threads: take("THREADS")?.try_into()?,
            off_cpu: take("OFF_CPU")?.try_into()?,
            histograms: take("HISTOGRAMS")?.try_into()?,
            only,
            only_run_queue: take("ONLY_RUN_QUEUE")?.try_into()?,
            thread_run_queue: take("THREAD_RUN_QUEUE")?.try_into()?,
            ran: take("RAN")?.try_into()?,
        })
    }

    /// Begins at `now_ns`, CLOCK_MONOTONIC; zero ends.
    pub fn start(&mut self, now_ns: u64) -> Result<()> {
        Ok(self.start_ns.set(0, now_ns, 0)?)
    }

    /// Says what a thread has been doing since the start, unless the kernel has seen it do something since.
    pub fn seed(&mut self, tid: u32, state: &ThreadState) {
        let _known_better = self.threads.insert(tid, state, NOEXIST);
    }

    /// Every thread that has not ended.
    pub fn threads(&self) -> Vec<ThreadState> {
        self.threads.iter().filter_map(|entry| Some(entry.ok()?.1)).collect()
    }

    /// Time blocked by stack, blocks that have ended.
    pub fn off_cpu(&self) -> Vec<(OffCpuKey, OffCpuTime)> {
        self.off_cpu.iter().filter_map(Result::ok).collect()
    }

    /// Counts apart from now on what falls under `key`.
    pub fn add_histogram(&mut self, key: HistogramKey) {
        let _full_or_there = self.histograms.insert(key, Histogram::EMPTY, NOEXIST);
    }

    /// Waits for a CPU of a thread that has ended, if they were asked for and there was room for them.
    pub fn take_thread_run_queue(&mut self, tid: u32) -> Option<Histogram> {
        let histogram = self.thread_run_queue.get(&tid, 0).ok()?;
        let _gone = self.thread_run_queue.remove(&tid);
        Some(histogram)
    }

    /// Waits for a CPU by thread id, likewise.
    pub fn thread_run_queues(&self) -> impl Iterator<Item = (u32, Histogram)> + '_ {
        self.thread_run_queue.iter().filter_map(Result::ok)
    }

    /// All histograms.
    pub fn histograms(&self) -> Vec<(HistogramKey, Histogram)> {
        let mut histograms: Vec<_> = self.histograms.iter().filter_map(Result::ok).collect();
        if self.only != 0
            && let Ok(per_cpu) = self.only_run_queue.get(&0, 0)
        {
            let mut sum = Histogram::EMPTY;
            per_cpu.iter().for_each(|histogram| sum.add(histogram));
            let key = HistogramKey { kind: HistogramKind::RunQueue as u32, id: self.only };
            histograms.retain(|(known, _)| *known != key); // nothing is counted there
            histograms.push((key, sum));
        }
        histograms
    }

    /// Which threads samples found on each CPU lately, in no order.
    pub fn ran(&self) -> Vec<Vec<Seen>> {
        let Ok(per_cpu) = self.ran.get(&0, 0) else { return Vec::new() };
        let of_cpu = |ran: &Ran| ran.seen.into_iter().filter(|seen| seen.time_ns != 0).collect();
        per_cpu.iter().map(of_cpu).collect()
    }
}

/// Tells the kernel programs what each system call waits for.
pub fn set_classes(ebpf: &mut aya::Ebpf) -> Result<()> {
    let classes = ebpf.map_mut("SYSCALLS").context("kernel object has no map SYSCALLS")?;
    let mut classes: Array<&mut MapData, u8> = classes.try_into()?;
    for (number, class) in (0..).zip(*abi::CLASS_TABLE) {
        if class != 0 {
            classes.set(number, class, 0)?;
        }
    }
    Ok(())
}

/// Offsets the probe needs to find out what a thread waits for.
pub const OFFSETS: &[&offsets::Group] = &[
    &offsets::TASKS,
    #[cfg(target_arch = "x86_64")]
    &offsets::COMPAT,
    &offsets::DESCRIPTORS,
    &offsets::IPV6,
    &offsets::UNIX,
];
