//! The target filter: the first thing every probe asks.

use aya_ebpf::{
    Global,
    btf_maps::{Array, CgroupArray, HashMap},
    helpers::{bpf_get_current_pid_tgid, generated::bpf_get_current_task},
    macros::btf_map,
};
use profiler_common::target::{
    INIT_PIDNS_INUM, MAX_PIDNS_LEVELS, MAX_TARGETS, TARGET_CELLS, TargetMode, cell_of,
};

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
static TARGETS: HashMap<u32, u32, MAX_TARGETS> = HashMap::new();

/// Where a cell is zero no target has an id of that cell: to find that out costs everybody else a twelfth of a look into
/// the set. Cells are only ever set: both sides write them, and neither may undo what the other has just done.
#[btf_map]
static TARGET_CELL: Array<u64, TARGET_CELLS> = Array::new();

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
    !matches!(TARGET_CELL.get(cell_of(pid)), Some(0)) && TARGETS.get_ptr(&pid).is_some()
}

/// Makes a process a target; returns whether there was room.
#[inline(always)]
pub fn add_target(pid: u32) -> bool {
    if let Some(cell) = TARGET_CELL.get_ptr_mut(cell_of(pid)) {
        // SAFETY: a map's value, which is only ever set to one.
        unsafe { *cell = 1 };
    }
    TARGETS.insert(&pid, &0, 0).is_ok()
}

/// A process is no target any more.
#[inline(always)]
pub fn remove_target(pid: u32) {
    let _absent_is_fine = TARGETS.remove(&pid);
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
