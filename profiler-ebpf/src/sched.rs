//! The scheduler probe: every nanosecond of a target's threads by what they did with it, stacks of what blocked
//! them, waits for a CPU, and turns of event loops.
//!
//! One hook in the scheduler, where a thread leaves a CPU. When it had got it, and how long it had waited for it, the
//! scheduler itself keeps in `task_struct.sched_info`, so neither `sched_wakeup` nor the arriving thread is looked at:
//! that would cost every other process, too. What a blocked thread waits for is read from the registers it entered the
//! kernel with: no system call has to be hooked for that. Only the turns of event loops need a hook: [`crate::loops`], or [`wait_enter`].

#[cfg(not(bpf_target_arch = "aarch64"))]
use core::mem::offset_of;

use aya_ebpf::{
    EbpfContext as _, Global,
    bindings::bpf_user_pt_regs_t,
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
    cpu::{FLAG_USER_END_SHIFT, SAMPLE_HEADER_LEN, SampleScratch},
    histogram::{Histogram, bucket},
    loss::KernelCounter,
    sched::{
        Cause, Exit, HistogramKey, HistogramKind, Interval, KIND_EXIT, KIND_INTERVAL, KIND_LOOP, KIND_STACK,
        KIND_TURN, KNOWN_STACKS, LoopSeen, MAX_SYSCALLS, MAX_THREAD_HISTOGRAMS, MAX_THREADS, OffCpuKey,
        OffCpuTime, Phase, StackHeader, SyscallClass, ThreadState, Turn,
    },
    syscall::{Endpoint, ObjectKind},
    target::TargetMode,
};

use crate::{
    output::{charge, charge_some, count, now_ns, send},
    stack::{self, Tables, hash_stack, mix},
    syscall,
    target::{Ids, OFF_TASK_PID, ONLY_TGID, TARGET_MODE, current_target, is_target, read, task_ids},
    unwind::{current_task, saved_registers},
};

/// Waits for a CPU are counted by thread, too.
#[unsafe(no_mangle)]
static RUN_QUEUE_BY_THREAD: Global<u8> = Global::new(0);
/// Turns longer than this are told one by one, ns.
#[unsafe(no_mangle)]
static STALL_NS: Global<u64> = Global::new(u64::MAX);
/// Blocks of event loops, and their waits for a CPU, that are told one by one, ns.
#[unsafe(no_mangle)]
static LOOP_BLOCK_NS: Global<u64> = Global::new(u64::MAX);
/// Waits of any thread for a CPU that are told one by one, ns.
#[unsafe(no_mangle)]
static STARVATION_NS: Global<u64> = Global::new(u64::MAX);
/// Blocks of any thread that are told one by one, ns, by cause.
#[unsafe(no_mangle)]
static BLOCK_NS: Global<[u64; Cause::COUNT]> = Global::new([u64::MAX; Cause::COUNT]);

// Offsets in the running kernel's structures, in bytes, from its BTF.
#[unsafe(no_mangle)]
static OFF_TASK_STATE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static OFF_TASK_STACK: Global<u32> = Global::new(0);
#[cfg(not(bpf_target_arch = "aarch64"))]
#[unsafe(no_mangle)]
static OFF_TASK_STATUS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_TASK_COMM: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_TASK_PCOUNT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_TASK_RUN_DELAY: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_TASK_LAST_ARRIVAL: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_TASK_EXEC: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_TASK_CFS_RQ: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_CFS_RQ_RQ: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_RQ_CLOCK: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_TASK_FILES: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_FILES_FDT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_FDT_MAX_FDS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_FDT_FD: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static OFF_FILE_INODE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static OFF_FILE_PRIVATE_DATA: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static OFF_INODE_MODE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static OFF_INODE_SB: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static OFF_SB_MAGIC: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static OFF_SOCKET_SK: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static OFF_SOCK_FAMILY: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_SOCK_TYPE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_SOCK_PORT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_SOCK_PEER_PORT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_SOCK_V4: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_SOCK_PEER_V4: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_SOCK_V6: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_SOCK_PEER_V6: Global<u32> = Global::new(0);

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

/// Stacks that have been sent. The value is unused.
#[btf_map]
static STACKS_SENT: HashMap<u64, u32, 32768> = HashMap::new();

/// Waits of the one target process for a CPU, if there is only one: spares it a look into a hash map.
#[btf_map]
static ONLY_RUN_QUEUE: PerCpuArray<Histogram, 1> = PerCpuArray::new();

/// Waits for a CPU by thread id in the profiler's PID namespace, if they are asked for.
#[btf_map]
static THREAD_RUN_QUEUE: HashMap<u32, Histogram, MAX_THREAD_HISTOGRAMS> = HashMap::new();
/// What they begin with: too large for the stack.
#[btf_map]
static EMPTY: Array<Histogram, 1> = Array::new();

/// Userspace makes the entries, and memory with them: nothing is allocated where the scheduler runs.
#[btf_map]
static HISTOGRAMS: HashMap<HistogramKey, Histogram, 4096, NO_PREALLOC> = HashMap::new();
const NO_PREALLOC: usize = 1;

/// What each system call waits for, a [`SyscallClass`], by number.
#[btf_map]
pub static SYSCALLS: Array<u8, MAX_SYSCALLS> = Array::new();

/// One per CPU: the scheduler does not interrupt itself.
#[btf_map]
static SCHED_SCRATCH: PerCpuArray<SampleScratch, 1> = PerCpuArray::new();

/// What a new thread begins with: too large for the stack.
#[btf_map]
static NEW_THREAD: PerCpuArray<ThreadState, 1> = PerCpuArray::new();

/// How many stacks and records may still be taken in this slice of time.
#[btf_map]
static BUDGETS: PerCpuArray<Budget, 1> = PerCpuArray::new();

/// Where records too large for the stack are put together.
#[btf_map]
static OUTGOING: PerCpuArray<Outgoing, 1> = PerCpuArray::new();

#[repr(C)]
struct Outgoing {
    interval: Interval,
    exit: Exit,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Budget {
    slice: u64,
    stacks: u32,
    pub wakers: u32,
    records: u32,
}

/// Slices are 2^23 ns (8.4 ms) long; in each a CPU takes at most so many stacks (about 0.5 % of its time) and sends
/// at most so many records of intervals.
const SLICE_SHIFT: u64 = 23;
const STACKS_PER_SLICE: u32 = 16;
const RECORDS_PER_SLICE: u32 = 64;

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
    /// A [`Cause`].
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
    let now = now_ns();
    leave(&ctx, both as u32, &ids, began, now);
    charge_some(Probe::Sched, now);
    0
}

/// Reads a member of a kernel structure that the verifier knows `base` to point to: a plain load, which the kernel makes
/// good for any address.
#[inline(always)]
pub fn load<T: Copy>(base: *const u8, offset: u32) -> T {
    // SAFETY: the verifier checks that the structure has such a member.
    unsafe { base.add(offset as usize).cast::<T>().read_volatile() }
}

/// What the scheduler keeps of a task.
#[derive(Clone, Copy)]
struct SchedInfo {
    /// How often it has got a CPU.
    arrivals: u64,
    /// How long it has waited for one in all, ns.
    run_delay_ns: u64,
    /// When it last got one, by the scheduler's clock, ns.
    last_arrival_ns: u64,
}

#[inline(always)]
fn sched_info(task: *const u8) -> SchedInfo {
    SchedInfo {
        arrivals: load(task, OFF_TASK_PCOUNT.load()),
        run_delay_ns: load(task, OFF_TASK_RUN_DELAY.load()),
        last_arrival_ns: load(task, OFF_TASK_LAST_ARRIVAL.load()),
    }
}

/// The scheduler's clock on this CPU when it was last brought up to date, which it has been when a task leaves. ns.
#[inline(always)]
fn scheduler_clock_ns(task: *const u8) -> u64 {
    let cfs_rq: *const u8 = load(task, OFF_TASK_CFS_RQ.load());
    let rq: *const u8 = load(cfs_rq, OFF_CFS_RQ_RQ.load());
    load(rq, OFF_RQ_CLOCK.load())
}

/// The current thread, `tid`, leaves the CPU.
#[inline(always)]
fn leave(ctx: &RawTracePointContext, tid: u32, ids: &Ids, began: u64, now: u64) {
    let task = current_task();
    let info = sched_info(task);
    let clock_ns = scheduler_clock_ns(task);
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
    let wait = waits_for(task, task_state, state);
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
        see_loop(state, wait.class.into());
        state.turn_start_ns = 0;
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
    let mut telling =
        waited >= STARVATION_NS.load() || (state.loop_class != 0 && waited >= LOOP_BLOCK_NS.load());
    if blocked {
        let ns = away - waited;
        let cause = state.cause as usize & 15;
        if cause < Cause::COUNT {
            state.times.blocked_ns[cause] += ns;
            let in_loop = state.loop_class != 0 && cause != Cause::Poll as usize;
            // Nobody is idle who cannot be interrupted.
            let limit = if state.uninterruptible != 0 { Cause::Disk as usize } else { cause };
            telling |= ns >= BLOCK_NS.load()[limit] || (in_loop && ns >= LOOP_BLOCK_NS.load());
        }
        settle_waker(state);
        off_cpu(state, ns);
    }
    state.times.run_queue_ns += waited;
    syscall::off_cpu(if blocked { away - waited } else { 0 }, waited, state.stack, arrival);
    record_run_queue(state, waited);
    if telling {
        send_interval(state, arrival - waited, arrival);
    }
    if blocked && is_loop_wait(state) {
        state.turn_start_ns = arrival;
        state.turn_on_cpu_ns = state.times.on_cpu_ns;
        state.turn_run_queue_ns = state.times.run_queue_ns;
    }
    state.phase = Phase::Running as u32;
    state.since_ns = arrival;
}

/// A new thread can run for the first time.
#[raw_tracepoint(tracepoint = "sched_wakeup_new")]
pub fn sched_wakeup_new(ctx: RawTracePointContext) -> u32 {
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

/// A system call begins: perhaps one that event loops wait in. Attached once a target is seen to be an event loop, since
/// every system call of every process passes here; and only where [`crate::loops`] cannot be.
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
    // SAFETY: see `leave`; the thread is here.
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

/// Adds up what the current thread did since it last left a CPU.
#[inline(always)]
fn settle_state(state: &mut ThreadState, now: u64) {
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

/// How often the current task has got a CPU: a plain load, so that a system call that never left it costs no more.
#[inline(always)]
pub fn arrivals(task: *const u8) -> u64 {
    load(task, OFF_TASK_PCOUNT.load())
}

/// Where the current task's kernel stack begins. A load would be a pointer, in the eyes of the verifier.
#[inline(always)]
pub fn kernel_stack() -> u64 {
    read(current_task() as u64, OFF_TASK_STACK.load()).unwrap_or(0)
}

/// Takes note that a thread waits as event loops do; epoll outranks the others, which loops also use otherwise.
#[inline(always)]
fn see_loop(state: &mut ThreadState, class: u32) {
    if state.loop_class == class || state.loop_class == SyscallClass::Epoll as u32 {
        return;
    }
    state.loop_class = class;
    state.turn_start_ns = 0;
    let seen = LoopSeen {
        kind: KIND_LOOP,
        syscall: state.syscall,
        pid: state.pid,
        tid: state.tid,
        object: state.object,
    };
    tell(&seen);
}

/// Whether the thread is, or was just, blocked in the call it waits in as an event loop.
#[inline(always)]
fn is_loop_wait(state: &ThreadState) -> bool {
    state.loop_class != 0
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
        count(KernelCounter::ThreadsFull);
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
    exit.kind = KIND_EXIT;
    exit.pid = state.pid;
    exit.tid = state.tid;
    exit.first_ns = state.first_ns;
    exit.time_ns = now;
    exit.times = state.times;
    exit.comm = bpf_get_current_comm().unwrap_or([0; COMM_LEN]);
    tell(exit);
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
        count(KernelCounter::OffCpuFull);
    }
    0
}

/// Counts a wait for a CPU.
#[inline(always)]
fn record_run_queue(state: &ThreadState, ns: u64) {
    if ONLY_TGID.load() != 0 {
        if let Some(histogram) = ONLY_RUN_QUEUE.get_ptr_mut(0) {
            add(histogram, ns);
        }
    } else {
        record(HistogramKind::RunQueue as u32, state.pid, ns);
    }
    if RUN_QUEUE_BY_THREAD.load() != 0 {
        record_by_thread(state.tid, ns);
    }
}

#[inline(always)]
fn record_by_thread(tid: u32, ns: u64) {
    if THREAD_RUN_QUEUE.get_ptr_mut(&tid).is_none()
        && let Some(empty) = EMPTY.get(0)
    {
        let _full = THREAD_RUN_QUEUE.insert(&tid, empty, 0);
    }
    if let Some(histogram) = THREAD_RUN_QUEUE.get_ptr_mut(&tid) {
        add(histogram, ns);
    }
}

/// Counts a duration in the histogram of `kind` and `id`, or in the one for all that have none of their own.
#[inline(always)]
fn record(kind: u32, id: u32, ns: u64) -> u32 {
    let histogram = match HISTOGRAMS.get_ptr_mut(&HistogramKey { kind, id }) {
        Some(histogram) => histogram,
        None => match HISTOGRAMS.get_ptr_mut(&HistogramKey { kind, id: 0 }) {
            Some(histogram) => histogram,
            None => return 0,
        },
    };
    add(histogram, ns)
}

/// Adds a duration. A global function, which is checked without what its callers know of `ns`: from that the verifiers
/// up to 6.1 conclude ranges for the bucket that contradict themselves.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn add(histogram: *mut Histogram, ns: u64) -> u32 {
    // SAFETY: callers pass a valid histogram; the verifier, which cannot know, wants to see the check for null. Two CPUs
    // that count at once can lose one of the two counts; everything else stays as it is.
    let Some(histogram) = (unsafe { histogram.as_mut() }) else { return 0 };
    histogram.sum_ns += ns;
    if ns > histogram.max_ns {
        histogram.max_ns = ns;
    }
    if let Some(slot) = histogram.counts.get_mut(bucket(ns)) {
        *slot += 1;
    }
    0
}

/// Whether a record of no more importance than an interval may be sent now.
#[inline(always)]
pub fn may_tell(now: u64) -> bool {
    take_from_budget(now, |budget| &mut budget.records, RECORDS_PER_SLICE)
}

#[inline(always)]
fn send_interval(state: &ThreadState, woken: u64, arrival: u64) {
    if !may_tell(arrival) {
        count(KernelCounter::IntervalsDropped);
        return;
    }
    let Some(outgoing) = OUTGOING.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's own slot, and the scheduler does not interrupt itself.
    let interval = unsafe { &mut (*outgoing).interval };
    let blocked = state.phase == Phase::Blocked as u32;
    interval.kind = KIND_INTERVAL;
    interval.cause = if blocked { state.cause } else { Cause::Unknown as u32 };
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
    tell(interval);
}

/// Sends a record other than a sample.
#[inline(always)]
pub fn tell<T>(record: &T) {
    // SAFETY: a value and its size.
    if !unsafe { send(core::ptr::from_ref(record).cast(), size_of::<T>() as u64) } {
        count(KernelCounter::RecordsLost);
    }
}

#[inline(always)]
pub fn take_from_budget(now: u64, which: impl Fn(&mut Budget) -> &mut u32, limit: u32) -> bool {
    let Some(budget) = BUDGETS.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's own slot.
    let budget = unsafe { &mut *budget };
    if budget.slice != now >> SLICE_SHIFT {
        *budget = Budget { slice: now >> SLICE_SHIFT, stacks: 0, wakers: 0, records: 0 };
    }
    let used = which(budget);
    *used += 1;
    *used <= limit
}

/// Makes `state.stack` the stack that the current thread blocks with: the one it had before if it is to be `reused`, or
/// taken now. Zero if there is neither.
#[inline(always)]
fn note_stack(ctx: &RawTracePointContext, state: &mut ThreadState, key: u64, now: u64) {
    let at = state.at as usize % KNOWN_STACKS;
    let (known_key, known_stack) = (state.known[at].key, state.known[at].stack);
    let same = known_key == key && known_stack != 0;
    if same && state.known[at].reused < MAX_REUSED {
        state.known[at].reused += 1;
        state.stack = known_stack;
        return;
    }
    // The first few of each thread are not limited: they may be all it ever has.
    if known_key != 0 && !may_take_stack(state, now) {
        if !same {
            count(KernelCounter::StacksSkipped);
        }
        state.stack = if same { known_stack } else { 0 };
        return;
    }
    let stack = take_stack(ctx, state.pid, state.tid, now);
    state.stack = stack;
    if stack != known_stack {
        flush(state, at);
        state.known[at].stack = stack;
        state.known[at].time = OffCpuTime { ns: 0, count: 0, max_ns: 0 };
    }
    state.known[at].key = key;
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

/// Takes the current thread's stack unless its CPU has taken its share for now. Returns its id, or zero.
#[inline(always)]
pub fn take_stack_if_allowed(ctx: &RawTracePointContext, pid: u32, tid: u32, now: u64) -> u64 {
    if !take_from_budget(now, |budget| &mut budget.stacks, STACKS_PER_SLICE) {
        count(KernelCounter::StacksSkipped);
        return 0;
    }
    take_stack(ctx, pid, tid, now)
}

/// Takes the current thread's stack, and sends it if it is new. Returns its id, or zero.
#[inline(always)]
fn take_stack(ctx: &RawTracePointContext, pid: u32, tid: u32, now: u64) -> u64 {
    let Some(scratch) = SCHED_SCRATCH.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's own slot, see SCHED_SCRATCH.
    let scratch = unsafe { &mut *scratch };
    // SAFETY: the context of this program.
    let bytes = unsafe { stack::capture::<Tables>(ctx.as_ptr(), None, pid, scratch) };
    scratch.header.pid = pid;
    scratch.header.tid = tid;
    scratch.header.time_ns = now;
    send_stack(scratch, KIND_STACK, bytes, 0, u64::from(pid) << 32)
}

/// Sends the stack of so many `bytes` in the scratch if it is new, as a record of `kind`; its header says whose and when,
/// and `tail` bytes follow it. Returns its id, a hash of `seed`, how it ends and its addresses; or zero.
#[inline(always)]
pub fn send_stack(scratch: &mut SampleScratch, kind: u32, bytes: u64, tail: u64, seed: u64) -> u64 {
    let end = u64::from(scratch.header.flags >> FLAG_USER_END_SHIFT);
    let id = hash_stack(scratch, bytes / 8, seed ^ end);
    // SAFETY: any number is a valid key.
    if unsafe { STACKS_SENT.get(&id) }.is_none() {
        let header = core::ptr::from_mut(&mut scratch.header).cast::<StackHeader>();
        // SAFETY: both headers have the same size and alignment, and all but kind and id are at the same place.
        unsafe {
            (*header).kind = kind;
            (*header).id = id;
            let len = SAMPLE_HEADER_LEN as u64 + (bytes & 0x7ff) + tail;
            if !send(core::ptr::from_ref(scratch).cast(), len) {
                count(KernelCounter::RecordsLost);
                return 0;
            }
        }
        if STACKS_SENT.insert(&id, &0, 0).is_err() {
            count(KernelCounter::OffCpuFull); // it will be sent again
        }
    }
    id
}

/// What the current `task`, about to block in `task_state`, waits for. Sets `state.at`.
#[inline(always)]
fn waits_for(task: *const u8, task_state: u32, state: &mut ThreadState) -> Wait {
    let entry = syscall_entry(task);
    let object = entry.args[0];
    let stack_key = mix(entry.stack_key ^ object) | 1;
    let at = (stack_key >> 8) as usize % KNOWN_STACKS;
    state.at = at as u32;
    if entry.number < 0 {
        // Not in a system call: an exception, nearly always for a page; or stopped.
        let cause = if entry.number == KERNEL_THREAD && state.uninterruptible == 0 {
            Cause::Park // it has no work
        } else if task_state & TASK_STOPPED_OR_TRACED != 0 || entry.number == KERNEL_THREAD {
            Cause::Other
        } else {
            Cause::PageFault
        } as u32;
        return Wait { cause, class: 0, syscall: -1, object: 0, stack_key };
    }
    let class = SYSCALLS.get(entry.number as u32).copied().unwrap_or(SyscallClass::Other as u8);
    let wait = Wait { cause: Cause::Other as u32, syscall: entry.number, class, object, stack_key };
    let known = &state.known[at];
    let cause = if class == SyscallClass::Descriptor as u8 {
        // The descriptor is the same as before, and what it is has been looked up lately.
        if known.key == stack_key && known.reused != 0 && known.reused < MAX_REUSED {
            return Wait { cause: known.cause, ..wait };
        }
        return Wait { cause: descriptor_cause(object as u32), ..wait };
    } else if class == SyscallClass::Disk as u8 && task_state & TASK_UNINTERRUPTIBLE == 0 {
        Cause::Other // say, the other end of a FIFO
    } else if class == SyscallClass::Futex as u8 {
        Cause::of_futex(entry.args[1], entry.args[2])
    } else if class == SyscallClass::Poll as u8
        && state.loop_class == SyscallClass::Epoll as u32
        && entry.args[1] == 1
        // SAFETY: the helper checks the address. The descriptor is the first member of struct pollfd.
        && let Ok(descriptor) = unsafe { bpf_probe_read_user(object as *const u32) }
    {
        // An event loop that waits for one descriptor elsewhere than in its epoll_wait waits in the middle of work.
        return Wait { cause: descriptor_cause(descriptor), ..wait };
    } else {
        Cause::of_class(class)
    };
    Wait { cause: cause as u32, ..wait }
}

/// What a descriptor of the current task is, a [`Cause`]. Called from two places, so not inlined.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn descriptor_cause(descriptor: u32) -> u32 {
    match object_of(descriptor) {
        Some(object) => object.cause,
        None => Cause::Other as u32,
    }
}

pub const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// What a descriptor leads to.
struct Object {
    /// A [`Cause`].
    cause: u32,
    /// Its `struct sock`, if it is a socket; else zero.
    sock: u64,
    /// Its address family, likewise.
    family: u16,
}

pub const S_IFMT: u16 = 0o170_000;
pub const S_IFSOCK: u16 = 0o140_000;

/// task -> files -> table -> file.
#[inline(always)]
pub fn file_of(descriptor: u32) -> Option<u64> {
    let files: *const u8 = load(current_task(), OFF_TASK_FILES.load());
    let table: *const u8 = load(files, OFF_FILES_FDT.load());
    let count: u32 = load(table, OFF_FDT_MAX_FDS.load());
    if descriptor >= count {
        return None;
    }
    let array: u64 = load(table, OFF_FDT_FD.load());
    read(array + u64::from(descriptor) * 8, 0)
}

/// file -> inode, or socket.
#[inline(always)]
fn object_of(descriptor: u32) -> Option<Object> {
    const S_IFREG: u16 = 0o100_000;
    const S_IFBLK: u16 = 0o060_000;
    const S_IFDIR: u16 = 0o040_000;
    const ANON_INODE_FS_MAGIC: u64 = 0x0904_1934;
    let file = file_of(descriptor)?;
    let inode: u64 = read(file, OFF_FILE_INODE.load())?;
    let mode: u16 = read(inode, OFF_INODE_MODE.load())?;
    let kind = mode & S_IFMT;
    if kind == S_IFSOCK {
        let socket: u64 = read(file, OFF_FILE_PRIVATE_DATA.load())?;
        let sock: u64 = read(socket, OFF_SOCKET_SK.load())?;
        let family: u16 = read(sock, OFF_SOCK_FAMILY.load())?;
        let cause = if family == AF_INET || family == AF_INET6 {
            Cause::Network
        } else if family == AF_UNIX {
            Cause::Pipe
        } else {
            Cause::Other
        };
        return Some(Object { cause: cause as u32, sock, family });
    }
    let cause = if kind == S_IFREG {
        let sb: u64 = read(inode, OFF_INODE_SB.load())?;
        let magic: u64 = read(sb, OFF_SB_MAGIC.load())?;
        if magic == ANON_INODE_FS_MAGIC { Cause::Pipe } else { Cause::Disk }
    } else if kind == S_IFBLK || kind == S_IFDIR {
        Cause::Disk
    } else {
        Cause::Pipe
    };
    Some(Object { cause: cause as u32, sock: 0, family: 0 })
}

/// Finds out what a descriptor of the current task is, and who is at its other end. Returns a [`Cause`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn describe_descriptor(descriptor: u32, into: *mut Endpoint) -> u32 {
    // SAFETY: callers pass a valid endpoint; the verifier, which cannot know, wants to see the check for null.
    let Some(into) = (unsafe { into.as_mut() }) else { return Cause::Other as u32 };
    into.kind = ObjectKind::Other as u32;
    into.peer_port = 0;
    let Some(object) = object_of(descriptor) else { return Cause::Other as u32 };
    let sock = object.sock;
    if object.cause == Cause::Disk as u32 {
        into.kind = ObjectKind::File as u32;
    } else if object.cause == Cause::Network as u32 {
        into.kind = ObjectKind::Net as u32;
        into.family = object.family;
        into.socket_type = read(sock, OFF_SOCK_TYPE.load()).unwrap_or(0);
        into.local_port = read(sock, OFF_SOCK_PORT.load()).unwrap_or(0);
        into.peer_port = u16::from_be(read(sock, OFF_SOCK_PEER_PORT.load()).unwrap_or(0));
        if object.family == AF_INET {
            into.local = [0; 16];
            into.peer = [0; 16];
            into.local[..4].copy_from_slice(&read(sock, OFF_SOCK_V4.load()).unwrap_or([0; 4]));
            into.peer[..4].copy_from_slice(&read(sock, OFF_SOCK_PEER_V4.load()).unwrap_or([0; 4]));
        } else {
            into.local = read(sock, OFF_SOCK_V6.load()).unwrap_or([0; 16]);
            into.peer = read(sock, OFF_SOCK_PEER_V6.load()).unwrap_or([0; 16]);
        }
    } else if object.family == AF_UNIX {
        into.kind = ObjectKind::Unix as u32;
    } else if object.cause == Cause::Pipe as u32 {
        into.kind = ObjectKind::Pipe as u32;
    }
    object.cause
}

/// The first argument of a task's system call.
#[inline(always)]
pub fn first_argument(task: *const u8, compat: bool) -> u64 {
    let regs = saved_registers(task);
    if compat { u64::from(load::<u32>(regs, COMPAT_ARGUMENTS[0])) } else { load(regs, ARGUMENTS[0]) }
}

/// All six.
#[inline(always)]
pub fn arguments(compat: bool) -> [u64; 6] {
    let regs = saved_registers(current_task());
    if compat {
        return COMPAT_ARGUMENTS.map(|offset| u64::from(load::<u32>(regs, offset)));
    }
    ARGUMENTS.map(|offset| load(regs, offset))
}

/// Where the arguments are among the registers.
#[cfg(not(bpf_target_arch = "aarch64"))]
const ARGUMENTS: [u32; 6] = [
    offset_of!(bpf_user_pt_regs_t, rdi) as u32,
    offset_of!(bpf_user_pt_regs_t, rsi) as u32,
    offset_of!(bpf_user_pt_regs_t, rdx) as u32,
    offset_of!(bpf_user_pt_regs_t, r10) as u32,
    offset_of!(bpf_user_pt_regs_t, r8) as u32,
    offset_of!(bpf_user_pt_regs_t, r9) as u32,
];
/// Those of 32-bit calls: syscall(2), "Architecture calling conventions".
#[cfg(not(bpf_target_arch = "aarch64"))]
const COMPAT_ARGUMENTS: [u32; 6] = [
    offset_of!(bpf_user_pt_regs_t, rbx) as u32,
    offset_of!(bpf_user_pt_regs_t, rcx) as u32,
    offset_of!(bpf_user_pt_regs_t, rdx) as u32,
    offset_of!(bpf_user_pt_regs_t, rsi) as u32,
    offset_of!(bpf_user_pt_regs_t, rdi) as u32,
    offset_of!(bpf_user_pt_regs_t, rbp) as u32,
];
#[cfg(bpf_target_arch = "aarch64")]
const COMPAT_ARGUMENTS: [u32; 6] = ARGUMENTS;
/// The first one's register has the result in the end: it is kept after the user's registers, with the call's number
/// (struct pt_regs, arch/arm64/include/asm/ptrace.h).
#[cfg(bpf_target_arch = "aarch64")]
const ARGUMENTS: [u32; 6] = [size_of::<bpf_user_pt_regs_t>() as u32, 8, 16, 24, 32, 40];

/// Whether the current task's system call is one of the 32-bit table, whatever program makes it.
#[cfg(not(bpf_target_arch = "aarch64"))]
#[inline(always)]
pub fn is_compat(task: *const u8) -> bool {
    /// arch/x86/include/asm/thread_info.h
    const TS_COMPAT: u32 = 0x2;
    load::<u32>(task, OFF_TASK_STATUS.load()) & TS_COMPAT != 0
}

/// Whether the current task's system call is one of the 32-bit table.
#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
pub fn is_compat(task: *const u8) -> bool {
    /// arch/arm64/include/uapi/asm/ptrace.h
    const PSR_MODE32_BIT: u64 = 0x10;
    load::<u64>(saved_registers(task), core::mem::offset_of!(bpf_user_pt_regs_t, pstate) as u32)
        & PSR_MODE32_BIT
        != 0
}

/// [`Entry::number`] of a thread that never was in user mode.
const KERNEL_THREAD: i32 = -2;

/// How the current task entered the kernel.
pub struct Entry {
    /// System call, negative for none.
    pub number: i32,
    args: [u64; 3],
    /// Instruction, stack and frame pointer mixed.
    pub stack_key: u64,
}

#[cfg(not(bpf_target_arch = "aarch64"))]
#[inline(always)]
pub fn syscall_entry(task: *const u8) -> Entry {
    let regs = saved_registers(task);
    let at = |offset: usize| -> u64 { load(regs, offset as u32) };
    // 32-bit calls have numbers of their own. For exceptions the kernel sets orig_rax to -1.
    let number = at(offset_of!(bpf_user_pt_regs_t, orig_rax)) as i32;
    let number = if number >= 0 && is_compat(task) { MAX_SYSCALLS as i32 } else { number };
    let (ip, sp) = (at(offset_of!(bpf_user_pt_regs_t, rip)), at(offset_of!(bpf_user_pt_regs_t, rsp)));
    let number = if ip == 0 { KERNEL_THREAD } else { number };
    let args = [
        at(offset_of!(bpf_user_pt_regs_t, rdi)),
        at(offset_of!(bpf_user_pt_regs_t, rsi)),
        at(offset_of!(bpf_user_pt_regs_t, rdx)),
    ];
    let stack_key = mix(mix(ip) ^ sp) ^ at(offset_of!(bpf_user_pt_regs_t, rbp));
    Entry { number, args, stack_key }
}

#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
pub fn syscall_entry(task: *const u8) -> Entry {
    // struct pt_regs, arch/arm64/include/asm/ptrace.h: the user's registers, orig_x0 and the number.
    const ORIG_X0: u32 = size_of::<bpf_user_pt_regs_t>() as u32;
    let regs = saved_registers(task);
    let register = |number: u32| -> u64 { load(regs, number * 8) };
    let stack_key = mix(mix(register(32)) ^ register(31)) ^ register(29); // pc, sp, fp
    Entry {
        number: load(regs, ORIG_X0 + 8),
        args: [load(regs, ORIG_X0), register(1), register(2)],
        stack_key,
    }
}
