//! Sleep that the kernel takes for waiting for a CPU.

use aya_ebpf::{EbpfContext as _, macros::raw_tracepoint, programs::RawTracePointContext};
use profiler_common::{loss::Loss, sched::Phase};

use crate::{
    offsets::{OFF_TASK_DELAYED, OFF_TASK_PID},
    output::count,
    sched::THREADS,
    task::read,
};

/// A thread is moved to another CPU. One that sleeps is only while it is still in its run queue (from Linux 6.12 on), and then
/// the kernel books what is left of its sleep as waiting for a CPU (`sched_info_enqueue` in kernel/sched/stats.h). That is
/// not to be told from a wait for a CPU after it, so all of it counts as sleep.
#[raw_tracepoint(tracepoint = "sched_migrate_task")]
pub fn sched_migrate(ctx: RawTracePointContext) -> u32 {
    // SAFETY: the task is the first argument (include/trace/events/sched.h).
    let task = unsafe { *ctx.as_ptr().cast::<u64>() };
    if read::<u8>(task, OFF_TASK_DELAYED.load()).unwrap_or(0) == 0 {
        return 0;
    }
    let tid: u32 = read(task, OFF_TASK_PID.load()).unwrap_or(0);
    if let Some(state) = THREADS.get_ptr_mut(&tid) {
        // SAFETY: the thread has left its CPU, and the lock of its run queue, which is held, keeps it from getting another.
        let state = unsafe { &mut *state };
        if state.phase == Phase::Blocked as u32 && state.run_delay_ns != u64::MAX {
            state.run_delay_ns = u64::MAX;
            count(Loss::WakesUnknown);
        }
    }
    0
}
