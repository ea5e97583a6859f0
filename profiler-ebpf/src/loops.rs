//! Event loops: which wait is a loop's own, and how long it is away from it.

use aya_ebpf::Global;
use profiler_common::{
    record::RecordKind,
    sched::{Iteration, LoopSeen, MANY, Span, SyscallClass, ThreadState},
    unwind::Memory as _,
};

use crate::{emit::emit, memory::UserMemory, task::Entry};

/// Iterations longer than this are reported one by one, ns.
#[unsafe(no_mangle)]
static STALL_NS: Global<u64> = Global::new(u64::MAX);

/// Numbers of poll and ppoll, select and pselect6, where there are such calls.
#[unsafe(no_mangle)]
static POLL_NUMBER: Global<u32> = Global::new(u32::MAX);
#[unsafe(no_mangle)]
static PPOLL_NUMBER: Global<u32> = Global::new(u32::MAX);
#[unsafe(no_mangle)]
static SELECT_NUMBER: Global<u32> = Global::new(u32::MAX);
#[unsafe(no_mangle)]
static PSELECT_NUMBER: Global<u32> = Global::new(u32::MAX);

/// The current thread blocks in a call that waits for any of many descriptors: outside of iterations, unless the call is made
/// in the middle of one.
#[inline(always)]
pub fn wait_for_work(state: &mut ThreadState, class: u32, entry: &Entry) {
    if is_sleep(class, entry) {
        return;
    }
    if is_nested_wait(state, class, entry) {
        state.elsewhere += 1;
        return;
    }
    if !is_own_wait(state, class, entry) {
        see_loop(state, class, entry);
    }
    state.elsewhere = 0;
    state.iteration_start_ns = 0;
    state.work_start_ns = 0;
}

/// Between `now` and its next wait a loop is in an iteration.
#[inline(always)]
pub fn begin_iteration(state: &mut ThreadState, on_cpu_ns: u64, now: u64) {
    state.iteration_start_ns = now;
    state.iteration_on_cpu_ns = on_cpu_ns;
    state.iteration_run_queue_ns = state.times.run_queue_ns;
    begin_work(state, on_cpu_ns, now);
}

/// The same of a worker, which has been parked.
#[inline(always)]
pub fn begin_work(state: &mut ThreadState, on_cpu_ns: u64, now: u64) {
    state.work_start_ns = now;
    state.work_on_cpu_ns = on_cpu_ns;
    state.work_run_queue_ns = state.times.run_queue_ns;
}

/// Reports the iteration that ends with the system call of this number, if it was long.
#[inline(always)]
pub fn emit_iteration(state: &ThreadState, span: Span, number: u32, on_cpu_ns: u64, now: u64) {
    let (start_ns, on_cpu_then, run_queue_then) = if span as u32 == Span::Worker as u32 {
        (state.work_start_ns, state.work_on_cpu_ns, state.work_run_queue_ns)
    } else {
        (state.iteration_start_ns, state.iteration_on_cpu_ns, state.iteration_run_queue_ns)
    };
    if start_ns == 0 || now.saturating_sub(start_ns) < STALL_NS.load() {
        return;
    }
    let iteration = Iteration {
        kind: RecordKind::Iteration as u32,
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
    emit(&iteration);
}

/// Waits elsewhere, one after the other, after which a thread is taken to have left its loop for good.
const MAX_ELSEWHERE: u32 = 1000;

/// Whether a call of this class is the one in which the loop waits for its work.
#[inline(always)]
pub fn is_own_wait(state: &ThreadState, class: u32, entry: &Entry) -> bool {
    state.loop_class == class
        && if class == SyscallClass::Epoll as u32 {
            state.loop_descriptor == entry.args[0] as u32
        } else {
            state.loop_descriptor == MANY || polls_one(entry)
        }
}

/// Whether the call is poll or ppoll.
#[inline(always)]
fn is_poll(entry: &Entry) -> bool {
    let number = entry.number as u32;
    number == POLL_NUMBER.load() || number == PPOLL_NUMBER.load()
}

/// Whether it is a poll of one descriptor.
#[inline(always)]
fn polls_one(entry: &Entry) -> bool {
    is_poll(entry) && entry.args[1] == 1
}

/// Whether a call of this class waits for no descriptor, but for time to pass.
#[inline(always)]
pub fn is_sleep(class: u32, entry: &Entry) -> bool {
    let number = entry.number as u32;
    let selects = number == SELECT_NUMBER.load() || number == PSELECT_NUMBER.load();
    class == SyscallClass::Poll as u32
        && (is_poll(entry) && entry.args[1] == 0 || selects && entry.args[0] == 0)
}

/// What a call waits for, as [`ThreadState::loop_descriptor`].
#[inline(always)]
fn descriptor_of(class: u32, entry: &Entry) -> u32 {
    if class == SyscallClass::Epoll as u32 {
        return entry.args[0] as u32;
    }
    // struct pollfd begins with it (include/uapi/asm-generic/poll.h); a word has its events, too.
    match polls_one(entry).then(|| UserMemory.read_u64(entry.args[0])) {
        Some(Some(polled)) => polled as u32,
        _ => MANY,
    }
}

/// Whether a call of this class that waits elsewhere is made in the middle of an iteration: it is deeper in the stack than the
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
    let descriptor = descriptor_of(class, entry);
    let known = state.loop_class == class && (class == SyscallClass::Epoll as u32 || descriptor != MANY);
    state.loop_class = class;
    state.loop_descriptor = descriptor;
    state.loop_sp = entry.sp;
    state.elsewhere = 0;
    state.iteration_start_ns = 0;
    if known {
        return;
    }
    let seen = LoopSeen {
        kind: RecordKind::Loop as u32,
        syscall: state.syscall,
        pid: state.pid,
        tid: state.tid,
        descriptor: descriptor.into(),
    };
    emit(&seen);
}
