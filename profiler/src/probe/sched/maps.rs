//! The maps and settings of the scheduler probe.

use std::fs;

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use profiler_common::{
    cpu::{Ran, Seen},
    histogram::Histogram,
    sched::{Cause, HistogramKey, HistogramKind, OffCpuKey, OffCpuTime, ThreadState},
};

use crate::{
    kernel::{
        Kernel,
        btf::{self, Btf},
    },
    model::{abi, threshold::Thresholds},
};

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
    pub block_ns: [u64; Cause::COUNT],
}

/// Blocks of an event loop this many times shorter than a stall are told one by one, so that they can explain one.
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
pub fn offsets() -> Result<Vec<(&'static str, u32)>> {
    let data = fs::read(btf::VMLINUX).context("reading the kernel's types")?;
    let btf = Btf::parse(
        &data,
        &[
            "task_struct",
            "thread_info",
            "files_struct",
            "fdtable",
            "file",
            "inode",
            "super_block",
            "socket",
            "sock",
            "sock_common",
            "sched_info",
            "sched_entity",
            "cfs_rq",
            "rq",
            "path",
            "dentry",
            "qstr",
            "hlist_bl_node",
            "vfsmount",
            "mount",
            "unix_sock",
            "unix_address",
        ],
    )?;
    // Called `state` before Linux 5.14.
    let state = btf.offset("task_struct", "__state").or_else(|_| btf.offset("task_struct", "state"))?;
    let info = btf.offset("task_struct", "sched_info")?; // CONFIG_SCHED_INFO, which all distributions have
    let common = btf.offset("sock", "__sk_common")?;
    // Without CONFIG_IPV6 there are none, and no socket that has one.
    let v6 = |member| btf.offset("sock_common", member).unwrap_or(0);
    // Nor these where Unix sockets are in a module.
    let unix = |name, member| btf.offset(name, member).unwrap_or(0);
    let path = btf.offset("file", "f_path")?;
    Ok(vec![
        ("OFF_TASK_STATE", state),
        ("OFF_TASK_STACK", btf.offset("task_struct", "stack")?),
        #[cfg(target_arch = "x86_64")]
        ("OFF_TASK_STATUS", btf.offset("task_struct", "thread_info")? + btf.offset("thread_info", "status")?),
        ("OFF_TASK_COMM", btf.offset("task_struct", "comm")?),
        ("OFF_TASK_PCOUNT", info + btf.offset("sched_info", "pcount")?),
        ("OFF_TASK_RUN_DELAY", info + btf.offset("sched_info", "run_delay")?),
        ("OFF_TASK_LAST_ARRIVAL", info + btf.offset("sched_info", "last_arrival")?),
        ("OFF_TASK_EXEC", btf.offset("task_struct", "se")? + btf.offset("sched_entity", "sum_exec_runtime")?),
        ("OFF_TASK_CFS_RQ", btf.offset("task_struct", "se")? + btf.offset("sched_entity", "cfs_rq")?),
        ("OFF_CFS_RQ_RQ", btf.offset("cfs_rq", "rq")?),
        ("OFF_RQ_CLOCK", btf.offset("rq", "clock")?),
        ("OFF_TASK_FILES", btf.offset("task_struct", "files")?),
        ("OFF_FILES_FDT", btf.offset("files_struct", "fdt")?),
        ("OFF_FDT_MAX_FDS", btf.offset("fdtable", "max_fds")?),
        ("OFF_FDT_FD", btf.offset("fdtable", "fd")?),
        ("OFF_FILE_INODE", btf.offset("file", "f_inode")?),
        ("OFF_FILE_PRIVATE_DATA", btf.offset("file", "private_data")?),
        ("OFF_INODE_MODE", btf.offset("inode", "i_mode")?),
        ("OFF_INODE_SB", btf.offset("inode", "i_sb")?),
        ("OFF_SB_MAGIC", btf.offset("super_block", "s_magic")?),
        ("OFF_SOCKET_SK", btf.offset("socket", "sk")?),
        ("OFF_SOCK_FAMILY", common + btf.offset("sock_common", "skc_family")?),
        ("OFF_SOCK_TYPE", btf.offset("sock", "sk_type")?),
        ("OFF_SOCK_PORT", common + btf.offset("sock_common", "skc_num")?),
        ("OFF_SOCK_PEER_PORT", common + btf.offset("sock_common", "skc_dport")?),
        ("OFF_SOCK_V4", common + btf.offset("sock_common", "skc_rcv_saddr")?),
        ("OFF_SOCK_PEER_V4", common + btf.offset("sock_common", "skc_daddr")?),
        ("OFF_SOCK_V6", common + v6("skc_v6_rcv_saddr")),
        ("OFF_SOCK_PEER_V6", common + v6("skc_v6_daddr")),
        ("OFF_INODE_INO", btf.offset("inode", "i_ino")?),
        ("OFF_FILE_DENTRY", path + btf.offset("path", "dentry")?),
        ("OFF_FILE_MOUNT", path + btf.offset("path", "mnt")?),
        ("OFF_DENTRY_NAME", btf.offset("dentry", "d_name")? + btf.offset("qstr", "name")?),
        ("OFF_DENTRY_PARENT", btf.offset("dentry", "d_parent")?),
        ("OFF_DENTRY_HASHED", btf.offset("dentry", "d_hash")? + btf.offset("hlist_bl_node", "pprev")?),
        ("OFF_VFSMOUNT_ROOT", btf.offset("vfsmount", "mnt_root")?),
        ("OFF_MOUNT_VFSMOUNT", btf.offset("mount", "mnt")?),
        ("OFF_MOUNT_PARENT", btf.offset("mount", "mnt_parent")?),
        ("OFF_MOUNT_POINT", btf.offset("mount", "mnt_mountpoint")?),
        ("OFF_UNIX_ADDRESS", unix("unix_sock", "addr")),
        ("OFF_UNIX_PEER", unix("unix_sock", "peer")),
        ("OFF_ADDRESS_LEN", unix("unix_address", "len")),
        ("OFF_ADDRESS_NAME", unix("unix_address", "name")),
    ])
}
