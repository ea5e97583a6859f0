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
    record::RecordKind,
    sched::{HistogramKind, LoopSeen, Span, SyscallClass, ThreadState, Turn},
};

use crate::{
    emit::emit,
    histogram::record,
    output::{charge, now_ns},
    sched::{STALL_NS, SYSCALLS, THREADS, settle_state},
    target::ONLY_TGID,
    task::{Entry, current_task, syscall_entry},
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
    let entry = syscall_entry(current_task());
    if !is_own_wait(state, class, &entry) && !is_nested_wait(state, class, &entry) {
        state.syscall = number as i32;
        see_loop(state, class, &entry);
    }
    if !is_own_wait(state, class, &entry) {
        return 0; // it waits otherwise for its work: this is part of its turn
    }
    let on_cpu_ns = state.times.on_cpu_ns + now.saturating_sub(state.since_ns);
    if state.turn_start_ns != 0 {
        record(HistogramKind::Turns as u32, state.tid, now.saturating_sub(state.turn_start_ns));
        let parked = state.work_start_ns != state.turn_start_ns;
        emit_turn(state, if parked { Span::Loop } else { Span::Whole }, number, on_cpu_ns, now);
        if parked {
            emit_turn(state, Span::Worker, number, on_cpu_ns, now);
        }
    }
    begin_turn(state, on_cpu_ns, now);
    charge(Probe::Loop, now);
    0
}

/// Between `now` and its next wait a loop is in a turn.
#[inline(always)]
pub fn begin_turn(state: &mut ThreadState, on_cpu_ns: u64, now: u64) {
    state.turn_start_ns = now;
    state.turn_on_cpu_ns = on_cpu_ns;
    state.turn_run_queue_ns = state.times.run_queue_ns;
    begin_work(state, on_cpu_ns, now);
}

/// The same of a worker, which has been parked.
#[inline(always)]
pub fn begin_work(state: &mut ThreadState, on_cpu_ns: u64, now: u64) {
    state.work_start_ns = now;
    state.work_on_cpu_ns = on_cpu_ns;
    state.work_run_queue_ns = state.times.run_queue_ns;
}

/// Tells of the turn that ends with the system call of this number, if it was long.
#[inline(always)]
pub fn emit_turn(state: &ThreadState, span: Span, number: u32, on_cpu_ns: u64, now: u64) {
    let (start_ns, on_cpu_then, run_queue_then) = if span as u32 == Span::Worker as u32 {
        (state.work_start_ns, state.work_on_cpu_ns, state.work_run_queue_ns)
    } else {
        (state.turn_start_ns, state.turn_on_cpu_ns, state.turn_run_queue_ns)
    };
    if start_ns == 0 || now.saturating_sub(start_ns) < STALL_NS.load() {
        return;
    }
    let turn = Turn {
        kind: RecordKind::Turn as u32,
        syscall: number as i32,
        pid: state.pid,
        tid: state.tid,
        start_ns,
        end_ns: now,
        on_cpu_ns: on_cpu_ns.saturating_sub(on_cpu_then),
        run_queue_ns: state.times.run_queue_ns.saturating_sub(run_queue_then),
        span: span as u32,
        _reserved: 0,
    };
    emit(&turn);
}

/// Waits elsewhere, one after the other, after which a thread is taken to have left its loop for good.
const MAX_ELSEWHERE: u32 = 1000;

/// Whether a call of this class is the one in which the loop waits for its work.
#[inline(always)]
pub fn is_own_wait(state: &ThreadState, class: u32, entry: &Entry) -> bool {
    state.loop_class == class
        && (class != SyscallClass::Epoll as u32 || state.loop_descriptor == entry.args[0] as u32)
}

/// Whether a call of this class that waits elsewhere is made in the middle of a turn: it is deeper in the stack than the
/// loop's own wait, as all that the loop calls. A loop within the loop (libuv's for a child that is waited for) is.
#[inline(always)]
pub fn is_nested_wait(state: &ThreadState, class: u32, entry: &Entry) -> bool {
    state.loop_class == SyscallClass::Epoll as u32
        && !is_own_wait(state, class, entry)
        && entry.sp < state.loop_sp
        && state.elsewhere < MAX_ELSEWHERE
}

/// Takes note that a thread waits as event loops do; epoll outranks the others, which loops also use otherwise. Its
/// `syscall` must be known.
#[inline(always)]
pub fn see_loop(state: &mut ThreadState, class: u32, entry: &Entry) {
    if state.loop_class == SyscallClass::Epoll as u32 && class != state.loop_class {
        return;
    }
    let known = state.loop_class == class;
    state.loop_class = class;
    state.loop_descriptor = entry.args[0] as u32;
    state.loop_sp = entry.sp;
    state.elsewhere = 0;
    state.turn_start_ns = 0;
    if known {
        return;
    }
    let seen = LoopSeen {
        kind: RecordKind::Loop as u32,
        syscall: state.syscall,
        pid: state.pid,
        tid: state.tid,
        object: entry.args[0],
    };
    emit(&seen);
}
