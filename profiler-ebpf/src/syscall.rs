//! The system-call probe: every call of a target counted by its length and result, waits by kind, reads and writes
//! by descriptor, and the slowest reported one by one.
//!
//! Every call of every process on the machine passes `sys_enter` and `sys_exit` once they are attached: what is not
//! a target leaves after its first comparison. What can be read later (arguments, descriptors) is read only when it
//! is needed.

use aya_ebpf::{
    EbpfContext as _, Global,
    btf_maps::{Array, HashMap, ProgramArray, Queue},
    helpers::generated::bpf_get_current_pid_tgid,
    macros::{btf_map, raw_tracepoint},
    programs::RawTracePointContext,
};
use profiler_common::{
    cost::Probe,
    histogram::bucket,
    loss::{Loss, Tally},
    sched::{MAX_SYSCALLS, SyscallClass},
    syscall::{
        COMPAT, COST_SAMPLE, CallKey, CallStats, Done, ErrorKey, InCall, KNOWN_CALLS, MAX_CALLS, ObjectKind,
        STACK_PERIOD_NS, WAIT_NS, traits,
    },
};

use crate::{
    asked::{CONNECT_NUMBER, connect_error},
    call_wait::{ENDS, arguments_of, follow_wait},
    caller::{
        IN_CALL, NO_TARGET, UNKNOWN, admit_caller, dismiss_caller, forget_other, own_registers, place_of,
    },
    descriptor_io::{end, forget_io, io, listen, move_data},
    emit::capture_within_budget,
    loop_hooks::ask_for_work,
    maps::{NO_PREALLOC, NOEXIST},
    output::{self, charge_many, count, now_ns, tally},
    sched::settle,
    target::current_target,
    task::{arrivals, current_task, first_argument, is_compat},
};

/// Whether threads are kept apart.
#[unsafe(no_mangle)]
static CALLS_BY_THREAD: Global<u32> = Global::new(0);

/// Whether calls are watched all the time, so that event loops need no hook of their own.
#[unsafe(no_mangle)]
static CALLS_SEE_LOOPS: Global<u32> = Global::new(0);

/// One write in so many has its stack taken.
const IO_STACK_SAMPLE: u32 = 16;

/// The programs that go on where others end.
#[btf_map]
static CALL_STEPS: ProgramArray<2> = ProgramArray::new();
const STEP_STACK: u32 = 0;
const STEP_FOLLOW: u32 = 1;

/// Calls by process (or thread) and number.
#[btf_map]
static CALL_STATS: Array<CallStats, MAX_CALLS> = Array::new();

/// Where in `CALL_STATS` they are.
#[btf_map]
static CALL_INDEX: HashMap<CallKey, u32, MAX_CALLS, NO_PREALLOC> = HashMap::new();

/// Entries of `CALL_STATS` that are free.
#[btf_map]
static CALLS_FREE: Queue<u32, MAX_CALLS> = Queue::new();

#[btf_map]
static CALL_ERRORS: HashMap<ErrorKey, u64, MAX_CALLS, NO_PREALLOC> = HashMap::new();

/// What each call waits for and what its arguments are, by number: a [`SyscallClass`] in the high half, [`traits`] in the
/// low one.
#[btf_map]
static CALL_KINDS: Array<u32, MAX_SYSCALLS> = Array::new();

/// The same of 32-bit calls.
#[btf_map]
static COMPAT_KINDS: Array<u32, MAX_SYSCALLS> = Array::new();

/// From which length on calls are reported one by one, ns. Userspace moves it, so that about so many are as can be read.
#[btf_map]
static CALL_SLOW_NS: Array<u64, 1> = Array::new();

/// A call begins.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn call_enter(ctx: RawTracePointContext) -> u32 {
    // SAFETY: the registers and the number (include/trace/events/syscalls.h).
    let (regs, number) = unsafe { (argument(&ctx, 0), argument(&ctx, 1) as u32) };
    let mut place = place_of(regs);
    if place == NO_TARGET {
        tally(Tally::CallsOfOthers);
        return 0;
    }
    if place == UNKNOWN {
        place = admit_caller(regs);
    }
    if is_trap(number) {
        return 0;
    }
    let Some(call) = IN_CALL.get_ptr_mut(place) else { return 0 };
    // SAFETY: only the thread itself uses its entry, and the scheduler when it switches it.
    let call = unsafe { &mut *call };
    if call.interrupted_ns != 0 {
        if !add(call, call.interrupted_ns, call.interrupted_result) {
            count(Loss::CallsFull);
        }
        call.interrupted_ns = 0;
    }
    call.number = number;
    if call.blocked_ns | call.run_queue_ns | call.stack != 0 {
        call.blocked_ns = 0;
        call.run_queue_ns = 0;
        call.stack = 0;
    }
    call.start_ns = now_ns();
    let (class, _) = kinds_of(number);
    if (class == SyscallClass::Epoll as u8 || class == SyscallClass::Poll as u8)
        && CALLS_SEE_LOOPS.load() != 0
        && !is_compat(current_task())
    {
        ask_for_work(number, class.into());
    }
    0
}

/// Whether this is how a user probe comes into the kernel, the profiler's own among them: no call of the program's.
/// uretprobe (Linux 6.11) and uprobe (6.18), arch/x86/entry/syscalls/syscall_64.tbl.
#[cfg(not(bpf_target_arch = "aarch64"))]
#[inline(always)]
fn is_trap(number: u32) -> bool {
    (number == 335 || number == 336) && !is_compat(current_task())
}

#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
fn is_trap(_number: u32) -> bool {
    false
}

/// A call returns.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn call_exit(ctx: RawTracePointContext) -> u32 {
    // SAFETY: the registers and the result (include/trace/events/syscalls.h).
    let (regs, result) = unsafe { (argument(&ctx, 0), argument(&ctx, 1) as i64) };
    let Some(call) = IN_CALL.get_ptr_mut(place_of(regs)) else { return 0 };
    // SAFETY: see `call_enter`.
    let call = unsafe { &mut *call };
    let began = call.start_ns;
    if began == 0 {
        return 0; // it began before it was watched, or is a new thread's half of the call that made it
    }
    let now = now_ns();
    let task = current_task();
    let arrivals = arrivals(task);
    if arrivals != call.arrivals {
        call.arrivals = arrivals;
        settle(call.host_tid, now);
    }
    call.start_ns = 0;
    let ns = now.saturating_sub(began);
    if is_compat(task) {
        call.number |= COMPAT;
    }
    if (ERESTART_LAST..=ERESTART_FIRST).contains(&result) {
        call.interrupted_ns = ns;
        call.interrupted_result = result;
    } else if !add(call, ns, result) {
        count(Loss::CallsFull);
    }
    let (class, kinds) = kinds_of(call.number);
    call.owed_ns += ns;
    call.calls = call.calls.wrapping_add(1);
    let stack_due = call.owed_ns >= STACK_PERIOD_NS;
    let waited = call.blocked_ns > 0 || ns >= WAIT_NS;
    let moves_data = kinds & (traits::READ | traits::WRITE) != 0 && result >= 0;
    let accepts = class == SyscallClass::Accept as u8;
    if waited || stack_due || moves_data || accepts || kinds & (ENDS | traits::OPTION) != 0 {
        // A write is the one made on purpose: what reads may be an event loop for all.
        let looked_at = kinds & traits::WRITE != 0 && random(call) % IO_STACK_SAMPLE == 0;
        let slow_ns = CALL_SLOW_NS.get(0).copied().unwrap_or(u64::MAX);
        call.done = Done {
            began,
            now,
            result,
            object: first_argument(task, call.number & COMPAT != 0),
            class: u32::from(class),
            traits: u32::from(kinds),
            waited: u32::from(waited),
            stack_due: u32::from(stack_due),
            slow: u32::from(ns >= slow_ns),
            looked_at: u32::from(looked_at),
        };
        // Most calls that move data do nothing else of interest, on a descriptor known already.
        let more = waited || stack_due || looked_at || !moves_data;
        if more || !move_data(call) {
            let takes_stack = call.stack == 0 && (stack_due || looked_at || ns >= slow_ns);
            let step = if takes_stack { STEP_STACK } else { STEP_FOLLOW };
            // SAFETY: the context of this program. It does not return, unless the step is not there.
            unsafe { CALL_STEPS.tail_call(&ctx, step) };
        }
    }
    finish(call, now);
    0
}

/// A call's class and traits.
#[inline(always)]
fn kinds_of(number: u32) -> (u8, u16) {
    let kinds =
        if number & COMPAT == 0 { CALL_KINDS.get(number) } else { COMPAT_KINDS.get(number & !COMPAT) };
    let kinds = kinds.copied().unwrap_or(0);
    ((kinds >> 16) as u8, kinds as u16)
}

/// An argument of a raw tracepoint.
///
/// # Safety
/// The tracepoint must have so many.
#[inline(always)]
unsafe fn argument(ctx: &RawTracePointContext, index: usize) -> u64 {
    // SAFETY: promised by the caller.
    unsafe { *ctx.as_ptr().cast::<u64>().add(index) }
}

/// Counts the cost now and then: the last step does it.
#[inline(always)]
fn finish(call: &InCall, now: u64) {
    if u64::from(call.calls) % COST_SAMPLE == 0 {
        charge_many(Probe::Syscall, now, COST_SAMPLE);
    }
}

/// The next number of a thread's generator (Numerical Recipes, 2nd edition, 7.1), without its low digits, which repeat.
#[inline(always)]
fn random(call: &mut InCall) -> u32 {
    call.random = call.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    call.random >> 16
}

/// ERESTARTSYS to ERESTART_RESTARTBLOCK, include/linux/errno.h: a signal is to be handled first.
const ERESTART_FIRST: i64 = -512;
const ERESTART_LAST: i64 = -516;

/// Takes the stack of a call, if there is time for it. One program with all that could follow would be too complex
/// for the verifier.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn call_stack(ctx: RawTracePointContext) -> u32 {
    // SAFETY: see `call_exit`.
    let regs = unsafe { argument(&ctx, 0) };
    let Some(call) = IN_CALL.get_ptr_mut(place_of(regs)) else { return 0 };
    // SAFETY: see `call_enter`.
    let call = unsafe { &mut *call };
    call.stack = capture_within_budget(&ctx, call.pid, call.tid, call.done.now);
    // SAFETY: as in `call_exit`.
    unsafe { CALL_STEPS.tail_call(&ctx, STEP_FOLLOW) };
    0
}

/// What more there is to a call that waited, moved data, or is the one whose stack is taken.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn call_follow(ctx: RawTracePointContext) -> u32 {
    // SAFETY: see `call_exit`.
    let regs = unsafe { argument(&ctx, 0) };
    let Some(call) = IN_CALL.get_ptr_mut(place_of(regs)) else { return 0 };
    // SAFETY: see `call_enter`.
    let call = unsafe { &mut *call };
    follow(call);
    finish(call, call.done.now);
    0
}

#[inline(always)]
fn follow(call: &mut InCall) {
    let done = call.done;
    let of = done.traits as u16;
    call.on.kind = ObjectKind::Other as u32;
    call.on.peer_port = 0;
    let mut cause = None;
    if of & ENDS != 0 {
        end(call, &done);
    } else if of & (traits::READ | traits::WRITE) != 0 && done.result >= 0 {
        cause = io(call, &done);
    } else if done.class == SyscallClass::Accept as u32 && done.result >= 0 {
        listen(call, &done);
    } else if of & traits::OPTION != 0 && done.result >= 0 {
        let error = connect_error(arguments_of(call));
        if error != 0 {
            let tid = if CALLS_BY_THREAD.load() != 0 { call.tid } else { 0 };
            count_error(call.pid, tid, CONNECT_NUMBER.load(), error);
        }
    }
    if done.waited | done.stack_due != 0 {
        follow_wait(call, cause.map_or(u32::MAX, |cause| cause as u32));
    }
}

/// Adds a call to its count; whether there was room.
#[inline(always)]
fn add(call: &mut InCall, ns: u64, result: i64) -> bool {
    const MAX_ERRNO: i64 = 4095;
    let tid = if CALLS_BY_THREAD.load() != 0 { call.tid } else { 0 };
    let key = CallKey { pid: call.pid, tid, number: call.number };
    let Some(stats) = stats(call, &key) else { return false };
    // SAFETY: the entry stays where it is. Threads on other CPUs count at the same time: what must be exact is
    // atomic; of two maxima at the same moment one can be lost.
    unsafe {
        if let Some(slot) = (*stats).lengths.counts.get_mut(bucket(ns)) {
            output::add(slot, 1);
        }
        output::add(&raw mut (*stats).lengths.sum_ns, ns);
        if ns > (*stats).lengths.max_ns {
            (*stats).lengths.max_ns = ns;
        }
        if call.blocked_ns | call.run_queue_ns != 0 {
            output::add(&raw mut (*stats).blocked_ns, call.blocked_ns);
            output::add(&raw mut (*stats).run_queue_ns, call.run_queue_ns);
        }
        if (-MAX_ERRNO..0).contains(&result) {
            output::add(&raw mut (*stats).errors, 1);
            count_error(key.pid, key.tid, key.number, -result as u32);
        }
    }
    true
}

/// Counts an error. Not inlined, since it is rare.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn count_error(pid: u32, tid: u32, number: u32, errno: u32) -> u32 {
    let key = ErrorKey { call: CallKey { pid, tid, number }, errno };
    if CALL_ERRORS.get_ptr_mut(&key).is_none() {
        let _another_thread_did = CALL_ERRORS.insert(&key, &0, NOEXIST);
    }
    match CALL_ERRORS.get_ptr_mut(&key) {
        // SAFETY: as in `add`.
        Some(errors) => unsafe { output::add(errors, 1) },
        None => count(Loss::CallsFull),
    }
    0
}

/// The entry of a thread's calls: where it was the last time, mostly.
#[inline(always)]
fn stats(call: &mut InCall, key: &CallKey) -> Option<*mut CallStats> {
    let known = &mut call.known_calls[key.number as usize % KNOWN_CALLS];
    if let Some(stats) = CALL_STATS.get_ptr_mut(*known) {
        // SAFETY: as in `add`. Userspace gives entries of ended processes to others.
        let of = unsafe { &(*stats).key };
        if of.number == key.number && of.pid == key.pid && of.tid == key.tid {
            return Some(stats);
        }
    }
    *known = find_call(key.pid, key.tid, key.number);
    CALL_STATS.get_ptr_mut(*known)
}

/// Position of an entry of `CALL_STATS`, which is made if there is none. Not inlined, since it is rare.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_call(pid: u32, tid: u32, number: u32) -> u32 {
    const FULL: u32 = u32::MAX;
    let key = CallKey { pid, tid, number };
    // SAFETY: the value is copied at once.
    if let Some(&at) = unsafe { CALL_INDEX.get(&key) } {
        return at;
    }
    let Ok(Some(at)) = CALLS_FREE.pop() else { return FULL };
    let Some(stats) = CALL_STATS.get_ptr_mut(at) else { return FULL };
    // SAFETY: nobody else has got this entry.
    unsafe { (*stats).key = key };
    if CALL_INDEX.insert(&key, &at, NOEXIST).is_ok() {
        return at;
    }
    // Another thread has been quicker, or there is no room.
    // SAFETY: as above.
    unsafe { (*stats).key = CallKey { pid: 0, tid: 0, number: 0 } };
    let _has_room = CALLS_FREE.push(at, 0);
    // SAFETY: as above.
    unsafe { CALL_INDEX.get(&key) }.copied().unwrap_or(FULL)
}

/// A thread ends, perhaps inside of a call. Its kernel stack may become another's.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn call_gone(_ctx: RawTracePointContext) -> u32 {
    let regs = own_registers();
    let place = place_of(regs);
    if let Some(call) = IN_CALL.get_ptr_mut(place) {
        // SAFETY: see `call_enter`.
        let call = unsafe { &mut *call };
        if call.start_ns | call.interrupted_ns != 0 {
            let tid = if CALLS_BY_THREAD.load() != 0 { call.tid } else { 0 };
            // Of a call that has been interrupted it is known already.
            let compat = if call.start_ns != 0 && is_compat(current_task()) { COMPAT } else { 0 };
            if let Some(stats) = stats(call, &CallKey { pid: call.pid, tid, number: call.number | compat }) {
                // SAFETY: as in `add`.
                unsafe { output::add(&raw mut (*stats).unfinished, 1) };
            }
        }
        dismiss_caller(place);
    }
    forget_other(regs);
    0
}

/// A thread other than the main one that replaces its program takes over the main thread's id, inside of its call. And
/// what was no target's may now be, by its name.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn call_exec(_ctx: RawTracePointContext) -> u32 {
    let regs = own_registers();
    let place = place_of(regs);
    if let Some(call) = IN_CALL.get_ptr_mut(place) {
        if let Some(ids) = current_target() {
            // SAFETY: see `call_enter`.
            unsafe {
                (*call).tid = ids.tid;
                (*call).host_tid = bpf_get_current_pid_tgid() as u32;
                // Some descriptors are closed by it.
                forget_io(&mut *call);
            }
        } else {
            dismiss_caller(place); // by its new name it is no target any more
        }
    }
    forget_other(regs);
    0
}
