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
    sched::{HistogramKind, KIND_TURN, SyscallClass, Turn},
};

use crate::{
    emit::tell,
    histogram::record,
    output::{charge, now_ns},
    sched::{STALL_NS, SYSCALLS, THREADS, see_loop, settle_state},
    target::ONLY_TGID,
    task::{current_task, first_argument, syscall_entry},
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
/// turn, and the start of the next should work be ready. Called by many programs, so not inlined.
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
    if state.loop_class != class {
        state.syscall = number as i32;
        state.object = first_argument(current_task(), false);
        see_loop(state, class);
    }
    if state.loop_class != class {
        return 0; // it waits otherwise for its work: this is part of its turn
    }
    let on_cpu_ns = state.times.on_cpu_ns + now.saturating_sub(state.since_ns);
    if state.turn_start_ns != 0 {
        let length = now.saturating_sub(state.turn_start_ns);
        record(HistogramKind::Turns as u32, state.tid, length);
        if length >= STALL_NS.load() {
            let turn = Turn {
                kind: KIND_TURN,
                syscall: number as i32,
                pid: state.pid,
                tid: state.tid,
                start_ns: state.turn_start_ns,
                end_ns: now,
                on_cpu_ns: on_cpu_ns.saturating_sub(state.turn_on_cpu_ns),
                run_queue_ns: state.times.run_queue_ns.saturating_sub(state.turn_run_queue_ns),
            };
            tell(&turn);
        }
    }
    state.turn_start_ns = now;
    state.turn_on_cpu_ns = on_cpu_ns;
    state.turn_run_queue_ns = state.times.run_queue_ns;
    charge(Probe::Loop, now);
    0
}
