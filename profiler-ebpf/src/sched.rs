//! The scheduler probe: every nanosecond of a target's threads by what they did with it, stacks of what blocked
//! them, waits for a CPU, and iterations of event loops.
//!
//! One hook in the scheduler, where a thread leaves a CPU. When it had got it, and how long it had waited for it, the
//! scheduler itself keeps in `task_struct.sched_info`, so neither `sched_wakeup` nor the arriving thread is looked at:
//! that would cost every other process, too. What a blocked thread waits for is read from the registers it entered the
//! kernel with: no system call has to be hooked for that. Only the iterations of event loops need a hook: `loop_hooks`.

use aya_ebpf::{
    EbpfContext as _, Global,
    btf_maps::{Array, HashMap, PerCpuArray},
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_probe_read_user,
        generated::bpf_get_smp_processor_id,
    },
    macros::{btf_map, raw_tracepoint},
    programs::RawTracePointContext,
};
use profiler_common::{
    COMM_LEN,
    cost::Probe,
    loss::Loss,
    record::RecordKind,
    sched::{
        Exit, Interval, KNOWN_STACKS, MAX_SYSCALLS, MAX_THREADS, OffCpuKey, OffCpuTime, Phase, Span,
        SyscallClass, ThreadState, WaitCause,
    },
    target::TargetMode,
};

use crate::{
    caller,
    descriptor::descriptor_cause,
    emit::{
        SLICE_SHIFT, STACKS_PER_SLICE, capture_stack, emit, is_same, last_fingerprint, may_emit,
        take_from_budget,
    },
    hash::mix,
    histogram::record_run_queue,
    loops::{begin_iteration, begin_work, emit_iteration, is_nested_wait, wait_for_work},
    offsets::{OFF_TASK_COMM, OFF_TASK_EXEC, OFF_TASK_PID, OFF_TASK_STATE},
    output::{begin_by, count, finish, now_ns},
    target::{Ids, ONLY_TGID, TARGET_MODE, current_target, is_target, task_ids},
    task::{
        Entry, KERNEL_THREAD, SchedInfo, current_task, load, read, sched_info, scheduler_clock_ns,
        syscall_entry,
    },
};

/// Blocks of event loops, and their waits for a CPU, that are reported one by one, ns.
#[unsafe(no_mangle)]
static LOOP_BLOCK_NS: Global<u64> = Global::new(u64::MAX);
/// Waits of any thread for a CPU that are reported one by one, ns.
#[unsafe(no_mangle)]
static STARVATION_NS: Global<u64> = Global::new(u64::MAX);
/// Blocks of any thread that are reported one by one, ns, by cause.
#[unsafe(no_mangle)]
static BLOCK_NS: Global<[u64; WaitCause::COUNT]> = Global::new([u64::MAX; WaitCause::COUNT]);

/// When the run began: CLOCK_MONOTONIC, ns; zero before and after. A thread not seen yet has been doing the same
/// since then.
#[btf_map]
static SCHED_START_NS: Array<u64, 1> = Array::new();

/// Threads of targets, by thread id in the initial PID namespace.
#[btf_map]
pub static THREADS: HashMap<u32, ThreadState, MAX_THREADS> = HashMap::new();

/// Time blocked, by stack.
#[btf_map]
static OFF_CPU: HashMap<OffCpuKey, OffCpuTime, 16384> = HashMap::new();

/// What each system call waits for, a [`SyscallClass`], by number.
#[btf_map]
pub static SYSCALLS: Array<u8, MAX_SYSCALLS> = Array::new();

/// What a new thread begins with: too large for the stack.
#[btf_map]
static NEW_THREAD: PerCpuArray<ThreadState, 1> = PerCpuArray::new();

/// Where records too large for the stack are put together.
#[btf_map]
static OUTGOING: PerCpuArray<Outgoing, 1> = PerCpuArray::new();

#[repr(C)]
struct Outgoing {
    interval: Interval,
    exit: Exit,
}

/// Blocks that are assumed to have the same stack as the last one, because they have the same registers, before it
/// is taken anew.
pub const MAX_REUSED: u32 = 31;

const TASK_STOPPED_OR_TRACED: u32 = 0x4 | 0x8;
const TASK_UNINTERRUPTIBLE: u32 = 0x2;
const TASK_NOLOAD: u32 = 0x400;
/// EXIT_DEAD, EXIT_ZOMBIE, TASK_DEAD: include/linux/sched.h.
const TASK_GONE: u32 = 0x10 | 0x20 | 0x80;

/// What a blocked thread waits for.
struct Wait {
    /// A [`WaitCause`].
    cause: u32,
    class: u8,
    syscall: i32,
    object: u64,
    stack_key: u64,
}

/// A thread leaves the CPU and another one gets it.
#[raw_tracepoint(tracepoint = "sched_switch")]
pub fn sched_switch(ctx: RawTracePointContext) -> u32 {
    // The tracepoint is passed on the way out: the current task is still the one that leaves.
    let both = bpf_get_current_pid_tgid();
    let only = ONLY_TGID.load();
    if both == 0 || (only != 0 && (both >> 32) as u32 != only) {
        return 0;
    }
    let began = SCHED_START_NS.get(0).copied().unwrap_or(0);
    if began == 0 {
        return 0;
    }
    let ids = if only != 0 {
        Ids { pid: only, tid: both as u32 }
    } else {
        let Some(ids) = current_target() else { return 0 };
        ids
    };
    let clock_ns = scheduler_clock_ns(current_task());
    let charged_from = begin_by(Probe::Sched, clock_ns);
    leave(&ctx, both as u32, &ids, began, clock_ns, monotonic_ns(clock_ns));
    finish(Probe::Sched, charged_from);
    0
}

/// What the scheduler's clock of a CPU lacks to CLOCK_MONOTONIC.
#[repr(C)]
struct ClockOffset {
    /// What to add, ns.
    offset: u64,
    /// When that was found out, by the scheduler's clock, ns.
    at_ns: u64,
}

#[btf_map]
static CLOCK_OFFSET: PerCpuArray<ClockOffset, 1> = PerCpuArray::new();

/// How long an offset between the two clocks is good for, ns: they drift apart by 0.5 us at most in that time.
const OFFSET_GOOD_NS: u64 = 1 << 20;

/// CLOCK_MONOTONIC when the scheduler's clock says `clock_ns`, which it has just been brought up to: to read the other
/// clock at every switch would cost 40 ns more.
#[inline(always)]
fn monotonic_ns(clock_ns: u64) -> u64 {
    let Some(clock) = CLOCK_OFFSET.get_ptr_mut(0) else { return now_ns() };
    // SAFETY: this CPU's own slot, and the scheduler does not interrupt itself.
    let clock = unsafe { &mut *clock };
    if clock_ns.wrapping_sub(clock.at_ns) >= OFFSET_GOOD_NS {
        clock.offset = now_ns().wrapping_sub(clock_ns);
        clock.at_ns = clock_ns;
    }
    clock_ns.wrapping_add(clock.offset)
}

/// The current thread, `tid`, leaves the CPU at `now`, when the scheduler's clock says `clock_ns`.
#[inline(always)]
fn leave(ctx: &RawTracePointContext, tid: u32, ids: &Ids, began: u64, clock_ns: u64, now: u64) {
    let task = current_task();
    let info = sched_info(task);
    let state = match THREADS.get_ptr_mut(&tid) {
        Some(state) => state,
        None => {
            let new = new_thread(ids, began, Phase::Blocked, info.run_delay_ns);
            match new.and_then(|new| insert(tid, new)) {
                Some(state) => state,
                None => return,
            }
        }
    };
    // SAFETY: the entry stays where it is, and a thread is only at one place at a time.
    let state = unsafe { &mut *state };
    if state.phase != Phase::Running as u32 {
        arrived(state, &info, clock_ns, now);
    }
    // Where a machine's clock is not steady, those of two CPUs differ by milliseconds: a thread's time never goes back.
    let now = if now < state.since_ns { state.since_ns } else { now };
    state.times.on_cpu_ns += now.saturating_sub(state.since_ns);
    state.since_ns = now;
    state.left_clock_ns = clock_ns;
    state.run_delay_ns = info.run_delay_ns;
    state.arrivals = info.arrivals;
    state.exec_ns = load(task, OFF_TASK_EXEC.load());
    state.instead_tid = 0;
    state.waker = 0;
    let task_state: u32 = load(task, OFF_TASK_STATE.load());
    if task_state & TASK_GONE != 0 {
        exit(tid, state, now);
        return;
    }
    // SAFETY: preempt, prev and next are the first arguments in every kernel (include/trace/events/sched.h).
    let (preempted, next) = unsafe {
        let args = ctx.as_ptr().cast::<u64>();
        (*args as u8 != 0, *args.add(2))
    };
    if preempted || task_state == 0 {
        state.phase = Phase::Runnable as u32;
        state.instead_tid = read(next, OFF_TASK_PID.load()).unwrap_or(0);
        state.instead_comm = read(next, OFF_TASK_COMM.load()).unwrap_or([0; COMM_LEN]);
        return;
    }
    state.phase = Phase::Blocked as u32;
    // Kernel threads without work are in TASK_IDLE: uninterruptible, but no load.
    state.uninterruptible =
        u32::from(task_state & (TASK_UNINTERRUPTIBLE | TASK_NOLOAD) == TASK_UNINTERRUPTIBLE);
    let entry = syscall_entry(task);
    let wait = waits_for(task_state, state, &entry);
    let at = state.at as usize % KNOWN_STACKS;
    if state.known[at].cause != wait.cause || state.known[at].syscall != wait.syscall {
        flush(state, at);
        state.known[at].time = OffCpuTime { ns: 0, count: 0, max_ns: 0 };
        state.known[at].cause = wait.cause;
        state.known[at].syscall = wait.syscall;
    }
    state.cause = wait.cause;
    state.syscall = wait.syscall;
    state.object = wait.object;
    if wait.class == SyscallClass::Epoll as u8 || wait.class == SyscallClass::Poll as u8 {
        wait_for_work(state, wait.class.into(), &entry);
    } else if wait.cause == WaitCause::Park as u32 && state.iteration_start_ns != 0 {
        emit_iteration(state, Span::Worker, wait.syscall as u32, state.times.on_cpu_ns, now);
        state.work_start_ns = 0;
    }
    note_stack(ctx, state, wait.stack_key, now);
}

/// The current thread got a CPU some time before `now`, when the scheduler's clock says `clock_ns`: adds up what it did
/// since it left the last one.
#[inline(always)]
fn arrived(state: &mut ThreadState, info: &SchedInfo, clock_ns: u64, now: u64) {
    let arrival = if state.left_clock_ns == 0 {
        // While it runs the clock can be behind: too late by at most a tick, once for each thread.
        now.saturating_sub(clock_ns.saturating_sub(info.last_arrival_ns))
    } else {
        state.since_ns + info.last_arrival_ns.saturating_sub(state.left_clock_ns)
    };
    let arrival = if arrival > now { now } else { arrival };
    let arrival = if arrival < state.since_ns { state.since_ns } else { arrival };
    let away = arrival.saturating_sub(state.since_ns);
    let queued = info.run_delay_ns.saturating_sub(state.run_delay_ns);
    let blocked = state.phase == Phase::Blocked as u32;
    let waited = if blocked && queued < away { queued } else { away };
    let mut emits =
        waited >= STARVATION_NS.load() || (state.loop_class != 0 && waited >= LOOP_BLOCK_NS.load());
    if blocked {
        let ns = away - waited;
        let cause = state.cause as usize & 15;
        if cause < WaitCause::COUNT {
            state.times.blocked_ns[cause] += ns;
            let in_loop = state.loop_class != 0 && cause != WaitCause::Poll as usize;
            // Nobody is idle who cannot be interrupted.
            let limit = if state.uninterruptible != 0 { WaitCause::Disk as usize } else { cause };
            emits |= ns >= BLOCK_NS.load()[limit] || (in_loop && ns >= LOOP_BLOCK_NS.load());
        }
        settle_waker(state);
        off_cpu(state, ns);
    }
    state.times.run_queue_ns += waited;
    caller::off_cpu(if blocked { away - waited } else { 0 }, waited, state.stack, arrival);
    record_run_queue(state, waited);
    if emits {
        emit_interval(state, arrival - waited, arrival);
    }
    if blocked && is_loop_wait(state) {
        begin_iteration(state, state.times.on_cpu_ns, arrival);
    } else if blocked && state.iteration_start_ns != 0 && state.work_start_ns == 0 {
        begin_work(state, state.times.on_cpu_ns, arrival);
    }
    state.phase = Phase::Running as u32;
    state.since_ns = arrival;
}

/// A new thread can run for the first time.
#[raw_tracepoint(tracepoint = "sched_wakeup_new")]
pub fn sched_wakeup_new(ctx: RawTracePointContext) -> u32 {
    if SCHED_START_NS.get(0).copied().unwrap_or(0) == 0 {
        return 0; // it may have run and blocked before anybody looks
    }
    // SAFETY: the task is the first argument (include/trace/events/sched.h).
    let task = unsafe { *ctx.as_ptr().cast::<u64>() };
    let mode = TARGET_MODE.load();
    if mode == TargetMode::Cgroup as u32 && current_target().is_none() {
        return 0; // the parent is the current task, and its cgroup the child's
    }
    let Some(ids) = task_ids(task) else { return 0 };
    if mode == TargetMode::Pids as u32 && !is_target(ids.pid) {
        return 0;
    }
    if let (Some(tid), Some(new)) =
        (read(task, OFF_TASK_PID.load()), new_thread(&ids, now_ns(), Phase::Runnable, 0))
    {
        insert(tid, new);
    }
    0
}

/// A thread other than the main one that replaces its program takes over the main thread's id.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn sched_exec(ctx: RawTracePointContext) -> u32 {
    // SAFETY: the task and its former id (include/trace/events/sched.h).
    let former = unsafe { *ctx.as_ptr().cast::<u64>().add(1) } as u32;
    let tid = bpf_get_current_pid_tgid() as u32;
    if former != tid
        && let Some(state) = THREADS.get_ptr_mut(&former)
        && let Some(ids) = current_target()
    {
        // SAFETY: see `leave`.
        unsafe { (*state).tid = ids.tid };
        insert(tid, state);
        let _was_there = THREADS.remove(&former);
    }
    0
}

/// Adds up what the current thread did since it last left a CPU.
#[inline(always)]
pub fn settle_state(state: &mut ThreadState, now: u64) {
    if state.phase != Phase::Running as u32 {
        let task = current_task();
        arrived(state, &sched_info(task), scheduler_clock_ns(task), now);
    }
}

/// As [`settle_state`], for the system-call probe, when the current thread `tid` has left a CPU since.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn settle(tid: u32, now: u64) -> u32 {
    if let Some(state) = THREADS.get_ptr_mut(&tid) {
        // SAFETY: see `leave`; the thread is here.
        settle_state(unsafe { &mut *state }, now);
    }
    0
}

/// Whether the thread was just blocked in the call it waits in as an event loop.
#[inline(always)]
fn is_loop_wait(state: &ThreadState) -> bool {
    let elsewhere =
        state.loop_class == SyscallClass::Epoll as u32 && state.object as u32 != state.loop_descriptor;
    state.loop_class != 0
        && !elsewhere
        && SYSCALLS.get(state.syscall as u32).is_some_and(|&class| u32::from(class) == state.loop_class)
}

#[inline(always)]
fn new_thread(ids: &Ids, since_ns: u64, phase: Phase, run_delay_ns: u64) -> Option<*mut ThreadState> {
    let new = NEW_THREAD.get_ptr_mut(0)?;
    // SAFETY: this CPU's own slot, and no program that uses it interrupts another. Userspace never writes it, so all
    // else is zero.
    unsafe {
        (*new).pid = ids.pid;
        (*new).tid = ids.tid;
        (*new).since_ns = since_ns;
        (*new).first_ns = since_ns;
        (*new).phase = phase as u32;
        (*new).run_delay_ns = run_delay_ns;
    }
    Some(new)
}

#[inline(always)]
fn insert(tid: u32, state: *mut ThreadState) -> Option<*mut ThreadState> {
    // SAFETY: points to a map's value.
    if THREADS.insert(&tid, unsafe { &*state }, 0).is_err() {
        count(Loss::ThreadsFull);
    }
    THREADS.get_ptr_mut(&tid)
}

#[inline(always)]
fn exit(tid: u32, state: &ThreadState, now: u64) {
    for at in 0..KNOWN_STACKS {
        flush(state, at);
    }
    let Some(outgoing) = OUTGOING.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's own slot, and the scheduler does not interrupt itself.
    let exit = unsafe { &mut (*outgoing).exit };
    exit.kind = RecordKind::Exit as u32;
    exit.pid = state.pid;
    exit.tid = state.tid;
    exit.first_ns = state.first_ns;
    exit.time_ns = now;
    exit.times = state.times;
    exit.comm = bpf_get_current_comm().unwrap_or([0; COMM_LEN]);
    emit(exit);
    let _was_there = THREADS.remove(&tid);
}

/// A known stack's time is that of blocks ended by one waker.
#[inline(always)]
fn settle_waker(state: &mut ThreadState) {
    let at = state.at as usize % KNOWN_STACKS;
    if state.known[at].waker != state.waker {
        flush(state, at);
        state.known[at].time = OffCpuTime { ns: 0, count: 0, max_ns: 0 };
        state.known[at].waker = state.waker;
    }
}

/// Adds a block that has ended to its stack's.
#[inline(always)]
fn off_cpu(state: &mut ThreadState, ns: u64) {
    let known = &mut state.known[state.at as usize % KNOWN_STACKS];
    if state.stack == 0 || state.stack != known.stack {
        let key = OffCpuKey {
            stack: state.stack,
            waker: state.waker,
            pid: state.pid,
            tid: state.tid,
            cause: state.cause,
            syscall: state.syscall,
        };
        add_off_cpu(&key, ns, 1, ns);
        return;
    }
    known.time.ns += ns;
    known.time.count += 1;
    if ns > known.time.max_ns {
        known.time.max_ns = ns;
    }
}

/// Adds the time kept with a thread's known stack to all time.
#[inline(always)]
fn flush(state: &ThreadState, at: usize) {
    let known = &state.known[at % KNOWN_STACKS];
    if known.time.count != 0 {
        let key = OffCpuKey {
            stack: known.stack,
            waker: known.waker,
            pid: state.pid,
            tid: state.tid,
            cause: known.cause,
            syscall: known.syscall,
        };
        add_off_cpu(&key, known.time.ns, known.time.count, known.time.max_ns);
    }
}

/// Called from many places, so not inlined; and without a mangled name, which would depend on where it is built.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn add_off_cpu(key: *const OffCpuKey, ns: u64, times: u64, max_ns: u64) -> u32 {
    // SAFETY: callers pass a valid key; the verifier, which cannot know, wants to see the check for null.
    let Some(key) = (unsafe { key.as_ref() }) else { return 0 };
    // A copy: up to 6.1 only the stack may hold a key.
    let key = &OffCpuKey { ..*key };
    if let Some(time) = OFF_CPU.get_ptr_mut(key) {
        // SAFETY: only this thread's blocks have this key, and they end one after the other.
        let time = unsafe { &mut *time };
        time.ns += ns;
        time.count += times;
        if max_ns > time.max_ns {
            time.max_ns = max_ns;
        }
    } else if OFF_CPU.insert(key, &OffCpuTime { ns, count: times, max_ns }, 0).is_err() {
        count(Loss::OffCpuFull);
    }
    0
}

#[inline(always)]
fn emit_interval(state: &ThreadState, woken: u64, arrival: u64) {
    if !may_emit(arrival) {
        count(Loss::WaitsOmitted);
        return;
    }
    let Some(outgoing) = OUTGOING.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's own slot, and the scheduler does not interrupt itself.
    let interval = unsafe { &mut (*outgoing).interval };
    let blocked = state.phase == Phase::Blocked as u32;
    interval.kind = RecordKind::Interval as u32;
    interval.cause = if blocked { state.cause } else { WaitCause::Unknown as u32 };
    interval.pid = state.pid;
    interval.tid = state.tid;
    interval.start_ns = state.since_ns;
    interval.woken_ns = woken;
    interval.end_ns = arrival;
    interval.stack = if blocked { state.stack } else { 0 };
    interval.object = state.object;
    interval.syscall = if blocked { state.syscall } else { -1 };
    interval.uninterruptible = state.uninterruptible;
    // A thread leaves, and polls, on the CPU it had waited for.
    // SAFETY: no arguments.
    interval.cpu = unsafe { bpf_get_smp_processor_id() };
    interval.instead_tid = state.instead_tid;
    interval.instead_comm = state.instead_comm;
    emit(interval);
}

/// Makes `state.stack` the stack that the current thread blocks with: the one it had before if it is to be `reused`, or
/// taken now. Zero if there is neither.
#[inline(always)]
fn note_stack(ctx: &RawTracePointContext, state: &mut ThreadState, key: u64, now: u64) {
    let at = state.at as usize % KNOWN_STACKS;
    let (known_key, known_stack) = (state.known[at].key, state.known[at].stack);
    // The same registers can be those of other functions, in runtimes.
    let same = known_key == key && known_stack != 0 && is_same(&state.known[at].fingerprint);
    if same && state.known[at].reused < MAX_REUSED {
        state.known[at].reused += 1;
        state.stack = known_stack;
        return;
    }
    // The first few of each thread are not limited: they may be all it ever has.
    if known_key != 0 && !may_take_stack(state, now) {
        if !same {
            count(Loss::OffCpuStacksSkipped);
        }
        state.stack = if same { known_stack } else { 0 };
        return;
    }
    let stack = capture_stack(ctx, state.pid, state.tid, now);
    state.stack = stack;
    if stack != known_stack {
        flush(state, at);
        state.known[at].stack = stack;
        state.known[at].time = OffCpuTime { ns: 0, count: 0, max_ns: 0 };
    }
    state.known[at].key = key;
    state.known[at].fingerprint = last_fingerprint();
    state.known[at].reused = 0;
}

/// Whether the current thread may take its stack now: within its own share, so that one thread cannot use up all of
/// its CPU's, and within that.
#[inline(always)]
fn may_take_stack(state: &mut ThreadState, now: u64) -> bool {
    let slice = (now >> SLICE_SHIFT) as u32;
    if state.slice != slice {
        state.slice = slice;
        state.stacks_taken = 0;
    }
    state.stacks_taken += 1;
    state.stacks_taken <= STACKS_PER_SLICE / 4
        && take_from_budget(now, |budget| &mut budget.stacks, STACKS_PER_SLICE)
}

/// What the current task, about to block in `task_state` in the call that it entered the kernel for, waits for. Sets
/// `state.at`.
#[inline(always)]
fn waits_for(task_state: u32, state: &mut ThreadState, entry: &Entry) -> Wait {
    let object = entry.args[0];
    let stack_key = mix(entry.stack_key ^ object) | 1;
    let at = (stack_key >> 8) as usize % KNOWN_STACKS;
    state.at = at as u32;
    if entry.number < 0 {
        // Not in a system call: an exception, nearly always for a page; or stopped.
        let cause = if entry.number == KERNEL_THREAD && state.uninterruptible == 0 {
            WaitCause::Park // it has no work
        } else if task_state & TASK_STOPPED_OR_TRACED != 0 || entry.number == KERNEL_THREAD {
            WaitCause::Other
        } else {
            WaitCause::PageFault
        } as u32;
        return Wait { cause, class: 0, syscall: -1, object: 0, stack_key };
    }
    let class = SYSCALLS.get(entry.number as u32).copied().unwrap_or(SyscallClass::Other as u8);
    let wait = Wait { cause: WaitCause::Other as u32, syscall: entry.number, class, object, stack_key };
    let known = &state.known[at];
    let cause = if class == SyscallClass::Descriptor as u8 {
        // The descriptor is the same as before, and what it is has been looked up lately.
        if known.key == stack_key && known.reused != 0 && known.reused < MAX_REUSED {
            return Wait { cause: known.cause, ..wait };
        }
        return Wait { cause: descriptor_cause(object as u32), ..wait };
    } else if class == SyscallClass::Disk as u8 && task_state & TASK_UNINTERRUPTIBLE == 0 {
        WaitCause::Other // say, the other end of a FIFO
    } else if class == SyscallClass::Futex as u8 {
        WaitCause::of_futex(entry.args[1], entry.args[2])
    } else if class == SyscallClass::Poll as u8
        && state.loop_class == SyscallClass::Epoll as u32
        && entry.args[1] == 1
        // SAFETY: the helper checks the address. The descriptor is the first member of struct pollfd.
        && let Ok(descriptor) = unsafe { bpf_probe_read_user(object as *const u32) }
    {
        // An event loop that waits for one descriptor elsewhere than in its epoll_wait waits in the middle of work.
        return Wait { cause: descriptor_cause(descriptor), ..wait };
    } else if (class == SyscallClass::Epoll as u8 || class == SyscallClass::Poll as u8)
        && is_nested_wait(state, class.into(), entry)
    {
        WaitCause::Other
    } else {
        WaitCause::of_class(class)
    };
    Wait { cause: cause as u32, ..wait }
}
