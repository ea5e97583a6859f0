//! What becomes of the books when processes fork, or replace their program: who is a target, and whose mappings are known.

use aya_ebpf::{
    EbpfContext as _, Global, helpers::bpf_get_current_comm, macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use profiler_common::{COMM_LEN, loss::Loss};

use crate::{
    output::count,
    target::{TARGETS, current_ids, is_target, task_ids},
    unwind::{PROCESSES, inherit},
};

/// Name that `exec` must leave behind for a process to become a target (`--comm`); empty: `exec` changes nothing.
#[unsafe(no_mangle)]
static TARGET_COMM: Global<[u8; COMM_LEN]> = Global::new([0; COMM_LEN]);

/// `--follow`: a child of a target is a target from its first instruction on.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn follow_fork(ctx: RawTracePointContext) -> u32 {
    let args = ctx.as_ptr().cast::<u64>();
    // SAFETY: this tracepoint has two arguments, the parent and the child task (include/trace/events/sched.h).
    let (parent, child) = unsafe { (*args, *args.add(1)) };
    if let (Some(parent), Some(child)) = (task_ids(parent), task_ids(child))
        && parent.pid != child.pid
        && is_target(parent.pid)
    {
        if TARGETS.insert(&child.pid, &0, 0).is_err() {
            count(Loss::TargetsFull);
        }
        inherit(parent.pid, child.pid);
    }
    0
}

/// `--comm`: `exec` gives a process its name, so that is when it becomes or stops being a target.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn match_exec(_ctx: RawTracePointContext) -> u32 {
    let (Some(ids), Ok(comm)) = (current_ids(), bpf_get_current_comm()) else { return 0 };
    if same_name(&comm, &TARGET_COMM.load()) {
        if TARGETS.insert(&ids.pid, &0, 0).is_err() {
            count(Loss::TargetsFull);
        }
    } else {
        let _absent_is_fine = TARGETS.remove(&ids.pid);
    }
    0
}

/// Compares up to the first NUL: what follows it in a task's name is left over from longer names.
#[inline(always)]
fn same_name(a: &[u8; COMM_LEN], b: &[u8; COMM_LEN]) -> bool {
    for i in 0..COMM_LEN {
        if a[i] != b[i] {
            return false;
        }
        if a[i] == 0 {
            return true;
        }
    }
    true
}

/// A process that replaces its program has none of the old one's mappings from here on.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn forget_exec(_ctx: RawTracePointContext) -> u32 {
    if let Some(ids) = current_ids() {
        let _had_no_tables = PROCESSES.remove(&ids.pid);
    }
    0
}
