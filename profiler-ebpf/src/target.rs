//! The target filter: the first thing every probe asks.

use aya_ebpf::{
    Global,
    btf_maps::{CgroupArray, HashMap},
    helpers::{bpf_get_current_pid_tgid, generated::bpf_get_current_task},
    macros::btf_map,
};
use profiler_common::target::{INIT_PIDNS_INUM, MAX_PIDNS_LEVELS, MAX_TARGETS, TargetMode};

use crate::{
    offsets::{
        OFF_PID_LEVEL, OFF_PID_NUMBERS, OFF_PIDNS_INUM, OFF_TASK_GROUP_LEADER, OFF_TASK_PID, OFF_TASK_TGID,
        OFF_TASK_THREAD_PID, OFF_UPID_NS, SIZE_UPID,
    },
    task::read,
};

#[unsafe(no_mangle)]
pub static TARGET_MODE: Global<u32> = Global::new(TargetMode::Pids as u32);
/// The one target process, if there is only one and its children are none: spares a look into a map.
/// In the initial PID namespace; zero for none.
#[unsafe(no_mangle)]
pub static ONLY_TGID: Global<u32> = Global::new(0);
/// Inode of the PID namespace whose ids are used; the initial one costs nothing extra.
#[unsafe(no_mangle)]
static PIDNS_INUM: Global<u32> = Global::new(INIT_PIDNS_INUM);

/// Mode `Cgroup`: the one cgroup.
#[btf_map]
static CGROUPS: CgroupArray<1> = CgroupArray::new();

/// Process ids that are targets. The value is unused.
#[btf_map]
pub static TARGETS: HashMap<u32, u32, MAX_TARGETS> = HashMap::new();

/// A task's ids in the profiler's PID namespace.
pub struct Ids {
    pub pid: u32,
    pub tid: u32,
}

/// The current task's ids if it is a target.
#[inline(always)]
pub fn current_target() -> Option<Ids> {
    let only = ONLY_TGID.load();
    if only != 0 {
        let both = bpf_get_current_pid_tgid();
        return if (both >> 32) as u32 == only { Some(Ids { pid: only, tid: both as u32 }) } else { None };
    }
    let mode = TARGET_MODE.load();
    if mode == TargetMode::Cgroup as u32 && !CGROUPS.current_task_under_cgroup(0).unwrap_or(false) {
        return None;
    }
    let ids = current_ids()?;
    if ids.pid == 0 {
        return None; // the idle task
    }
    if mode == TargetMode::Pids as u32 && !is_target(ids.pid) {
        return None;
    }
    Some(ids)
}

/// Mode `Pids`: whether a process is a target.
#[inline(always)]
pub fn is_target(pid: u32) -> bool {
    TARGETS.get_ptr(&pid).is_some()
}

/// The current task's ids; `None` when it cannot be seen from the profiler's PID namespace.
#[inline(always)]
pub fn current_ids() -> Option<Ids> {
    if PIDNS_INUM.load() == INIT_PIDNS_INUM {
        let both = bpf_get_current_pid_tgid();
        return Some(Ids { pid: (both >> 32) as u32, tid: both as u32 });
    }
    // SAFETY: returns the current task's address, only ever used through bpf_probe_read_kernel.
    task_ids(unsafe { bpf_get_current_task() })
}

/// Ids of any task; `None` when the task cannot be seen from the profiler's PID namespace.
#[inline(always)]
pub fn task_ids(task: u64) -> Option<Ids> {
    if PIDNS_INUM.load() == INIT_PIDNS_INUM {
        let pid = read::<u32>(task, OFF_TASK_TGID.load())?;
        let tid = read::<u32>(task, OFF_TASK_PID.load())?;
        return Some(Ids { pid, tid });
    }
    let leader = read::<u64>(task, OFF_TASK_GROUP_LEADER.load())?;
    Some(Ids { pid: namespaced_pid(leader)?, tid: namespaced_pid(task)? })
}

/// Looks for the profiler's namespace among those the task has an id in: `pid->numbers[0..=pid->level]`.
#[inline(always)]
fn namespaced_pid(task: u64) -> Option<u32> {
    let pid = read::<u64>(task, OFF_TASK_THREAD_PID.load())?;
    let level = read::<u32>(pid, OFF_PID_LEVEL.load())?;
    for i in 0..MAX_PIDNS_LEVELS {
        if i > level {
            break;
        }
        let upid = pid + u64::from(OFF_PID_NUMBERS.load()) + u64::from(i * SIZE_UPID.load());
        let ns = read::<u64>(upid, OFF_UPID_NS.load())?;
        if read::<u32>(ns, OFF_PIDNS_INUM.load())? == PIDNS_INUM.load() {
            return read::<u32>(upid, 0); // upid.nr is its first member
        }
    }
    None
}
