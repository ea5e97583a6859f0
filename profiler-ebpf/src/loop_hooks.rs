//! Where event loops ask for work: the first instruction of each system call that they wait in. All other system calls, of
//! any process, pay nothing. Where the kernel has no function hooks, [`wait_enter`] does the same at every system call.

use aya_ebpf::{
    EbpfContext as _,
    helpers::bpf_get_current_pid_tgid,
    macros::{fentry, raw_tracepoint},
    programs::{FEntryContext, RawTracePointContext},
};
use profiler_common::{
    cost::Probe,
    sched::{HistogramKind, Span, SyscallClass},
};

use crate::{
    histogram::record,
    loops::{begin_iteration, emit_iteration, is_nested_wait, is_own_wait, is_sleep, see_loop},
    output::{charge, now_ns},
    sched::{SYSCALLS, THREADS, settle_state},
    target::ONLY_TGID,
    task::{current_task, syscall_entry},
};

/// A program for each call, since a program is bound to one function when it is loaded.
macro_rules! hooks {
    ($class:ident: $($name:ident)*) => {
        $(
            #[fentry]
            pub fn $name(_ctx: FEntryContext) -> u32 {
                let number = syscall_entry(current_task()).number;
                ask_for_work(number as u32, SyscallClass::$class as u32)
            }
        )*
    };
}

hooks!(Epoll: enter_epoll_wait enter_epoll_pwait enter_epoll_pwait2);
hooks!(Poll: enter_poll enter_ppoll enter_select enter_pselect6 enter_io_uring_enter);

/// A system call begins: perhaps one that event loops wait in. Attached once a target is seen to be an event loop, since
/// every system call of every process passes here; and only where the hooks above cannot be.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn wait_enter(ctx: RawTracePointContext) -> u32 {
    // SAFETY: the registers and the number (include/trace/events/syscalls.h).
    let number = unsafe { *ctx.as_ptr().cast::<u64>().add(1) } as u32;
    match SYSCALLS.get(number) {
        Some(&class) if class == SyscallClass::Epoll as u8 || class == SyscallClass::Poll as u8 => {
            ask_for_work(number, class.into())
        }
        _ => 0,
    }
}

/// An event loop, if it is one of the target's, asks for work in a system call of this number and class: the end of its
/// iteration, and the start of the next should work be ready. Called by many programs, so not inlined.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ask_for_work(number: u32, class: u32) -> u32 {
    let both = bpf_get_current_pid_tgid();
    let only = ONLY_TGID.load();
    if only != 0 && (both >> 32) as u32 != only {
        return 0;
    }
    let Some(state) = THREADS.get_ptr_mut(&(both as u32)) else { return 0 };
    let now = now_ns();
    // SAFETY: see `sched::leave`; the thread is here.
    let state = unsafe { &mut *state };
    settle_state(state, now);
    let entry = syscall_entry(current_task());
    if is_sleep(class, &entry) {
        return 0;
    }
    if !is_own_wait(state, class, &entry) && !is_nested_wait(state, class, &entry) {
        state.syscall = number as i32;
        see_loop(state, class, &entry);
    }
    if !is_own_wait(state, class, &entry) {
        return 0; // it waits otherwise for its work: this is part of its iteration
    }
    let on_cpu_ns = state.times.on_cpu_ns + now.saturating_sub(state.since_ns);
    if state.iteration_start_ns != 0 {
        record(HistogramKind::Iterations as u32, state.tid, now.saturating_sub(state.iteration_start_ns));
        let parked = state.work_start_ns != state.iteration_start_ns;
        emit_iteration(state, if parked { Span::Loop } else { Span::Whole }, number, on_cpu_ns, now);
        if parked {
            emit_iteration(state, Span::Worker, number, on_cpu_ns, now);
        }
    }
    begin_iteration(state, on_cpu_ns, now);
    charge(Probe::Loop, now);
    0
}
