//! The maps and settings of the scheduler probe.

use anyhow::Result;
use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use profiler_common::{
    cpu::{Ran, Seen},
    histogram::Histogram,
    offsets::{self, Group},
    sched::{HistogramKey, HistogramKind, OffCpuKey, OffCpuTime, ThreadState, WaitCause},
};

use crate::{
    kernel::Kernel,
    model::{abi, threshold::Thresholds},
};

/// The map that needs memory only where waits for a CPU are counted by thread.
pub const BY_THREAD_MAP: &str = "THREAD_RUN_QUEUE";

/// `BPF_NOEXIST`: what the kernel knows already it knows better.
const NOEXIST: u64 = 1;

/// What is reported one by one, ns.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Iterations of event loops from this length on.
    pub stall_ns: u64,
    /// Blocks of event loops, and their waits for a CPU.
    pub loop_block_ns: u64,
    /// Waits of any thread for a CPU.
    pub starvation_ns: u64,
    /// Blocks of any thread, by cause.
    pub block_ns: [u64; WaitCause::COUNT],
}

/// Blocks of an event loop this many times shorter than a stall are reported one by one, so that they can explain one.
const LOOP_BLOCK_PART: u64 = 20;

impl Limits {
    /// What is to be sent one by one for these thresholds.
    pub fn of(thresholds: &Thresholds) -> Limits {
        Limits {
            stall_ns: thresholds.stall_warning_ns,
            loop_block_ns: thresholds.stall_warning_ns / LOOP_BLOCK_PART,
            starvation_ns: thresholds.starvation_ns,
            block_ns: thresholds.block_ns,
        }
    }
}

/// The maps of the scheduler probe, so that a fake can stand in for the kernel's.
pub trait SchedMaps {
    /// Begins at `now_ns`, CLOCK_MONOTONIC; zero ends.
    fn start(&mut self, now_ns: u64) -> Result<()>;

    /// Says what a thread has been doing since the start, unless the kernel has seen it do something since.
    fn seed(&mut self, tid: u32, state: &ThreadState);

    /// Every thread that has not ended.
    fn threads(&self) -> Vec<ThreadState>;

    /// Time blocked by stack, blocks that have ended.
    fn off_cpu(&self) -> Vec<(OffCpuKey, OffCpuTime)>;

    /// The thread has ended: room for others.
    fn forget_off_cpu(&mut self, key: &OffCpuKey);

    /// The histogram under `key`, which is counted apart no more.
    fn take_histogram(&mut self, key: &HistogramKey) -> Option<Histogram>;

    /// Counts apart from now on what falls under `key`.
    fn add_histogram(&mut self, key: HistogramKey);

    /// Waits for a CPU of a thread that has ended, if they were asked for and there was room for them.
    fn take_thread_run_queue(&mut self, tid: u32) -> Option<Histogram>;

    /// Waits for a CPU by thread id, if they were asked for and there was room for them.
    fn thread_run_queues(&self) -> Box<dyn Iterator<Item = (u32, Histogram)> + '_>;

    /// All histograms.
    fn histograms(&self) -> Vec<(HistogramKey, Histogram)>;

    /// Which threads samples found on each CPU lately, in no order.
    fn ran(&self) -> Vec<Vec<Seen>>;
}

/// Maps of `profiler-ebpf/src/sched.rs`.
pub struct KernelMaps {
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

impl KernelMaps {
    /// Takes the maps out of the loaded object.
    pub fn take(kernel: &mut Kernel) -> Result<KernelMaps> {
        Ok(KernelMaps {
            start_ns: kernel.take_map("SCHED_START_NS")?.try_into()?,
            threads: kernel.take_map("THREADS")?.try_into()?,
            off_cpu: kernel.take_map("OFF_CPU")?.try_into()?,
            histograms: kernel.take_map("HISTOGRAMS")?.try_into()?,
            only: kernel.only_target(),
            only_run_queue: kernel.take_map("ONLY_RUN_QUEUE")?.try_into()?,
            thread_run_queue: kernel.take_map("THREAD_RUN_QUEUE")?.try_into()?,
            ran: kernel.take_map("RAN")?.try_into()?,
        })
    }
}

impl SchedMaps for KernelMaps {
    fn start(&mut self, now_ns: u64) -> Result<()> {
        Ok(self.start_ns.set(0, now_ns, 0)?)
    }

    fn seed(&mut self, tid: u32, state: &ThreadState) {
        let _known_better = self.threads.insert(tid, state, NOEXIST);
    }

    fn threads(&self) -> Vec<ThreadState> {
        self.threads.iter().filter_map(|entry| Some(entry.ok()?.1)).collect()
    }

    fn off_cpu(&self) -> Vec<(OffCpuKey, OffCpuTime)> {
        self.off_cpu.iter().filter_map(Result::ok).collect()
    }

    fn forget_off_cpu(&mut self, key: &OffCpuKey) {
        let _was_the_threads_own = self.off_cpu.remove(key);
    }

    fn take_histogram(&mut self, key: &HistogramKey) -> Option<Histogram> {
        let histogram = self.histograms.get(key, 0).ok()?;
        let _gone = self.histograms.remove(key);
        Some(histogram)
    }

    fn add_histogram(&mut self, key: HistogramKey) {
        let _full_or_there = self.histograms.insert(key, Histogram::EMPTY, NOEXIST);
    }

    fn take_thread_run_queue(&mut self, tid: u32) -> Option<Histogram> {
        let histogram = self.thread_run_queue.get(&tid, 0).ok()?;
        let _gone = self.thread_run_queue.remove(&tid);
        Some(histogram)
    }

    fn thread_run_queues(&self) -> Box<dyn Iterator<Item = (u32, Histogram)> + '_> {
        Box::new(self.thread_run_queue.iter().filter_map(Result::ok))
    }

    fn histograms(&self) -> Vec<(HistogramKey, Histogram)> {
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

    fn ran(&self) -> Vec<Vec<Seen>> {
        let Ok(per_cpu) = self.ran.get(&0, 0) else { return Vec::new() };
        let of_cpu = |ran: &Ran| ran.seen.into_iter().filter(|seen| seen.time_ns != 0).collect();
        per_cpu.iter().map(of_cpu).collect()
    }
}

/// Tells the kernel programs what each system call waits for.
pub fn set_classes(kernel: &mut Kernel) -> Result<()> {
    let mut classes: Array<&mut MapData, u8> = kernel.map_mut("SYSCALLS")?.try_into()?;
    for (number, class) in (0..).zip(*abi::CLASS_TABLE) {
        if class != 0 {
            classes.set(number, class, 0)?;
        }
    }
    Ok(())
}

/// Offsets the probe needs to find out what a thread waits for.
pub const OFFSETS: &[&Group] = &[
    &offsets::IDS,
    &offsets::TASKS,
    &offsets::DELAYED_DEQUEUE,
    #[cfg(target_arch = "x86_64")]
    &offsets::COMPAT,
    &offsets::DESCRIPTORS,
    &offsets::IPV6,
    &offsets::UNIX,
];
