//! The system-call probe: every call of a target counted by its length and result, waits by kind, reads and writes
//! by descriptor, and the slowest told one by one.
//!
//! Every call of every process on the machine passes `sys_enter` and `sys_exit` once they are attached: what is not
//! a target leaves after its first comparison. What can be read later (arguments, descriptors) is read only when it
//! is needed.

use aya_ebpf::{
    EbpfContext as _, Global,
    btf_maps::{Array, HashMap, PerCpuArray, ProgramArray},
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_get_prandom_u32, bpf_probe_read_user_str},
    },
    macros::{btf_map, raw_tracepoint},
    programs::RawTracePointContext,
};
use profiler_common::{
    cost::Probe,
    histogram::bucket,
    loss::KernelCounter,
    sched::{Cause, MAX_SYSCALLS, MAX_THREADS, SyscallClass},
    syscall::{
        COMPAT, COST_SAMPLE, CallKey, CallStats, CallTimeKey, ErrorKey, InCall, IoKey, IoRecord, IoStats,
        KIND_IO, KIND_SLOW_CALL, MAX_CALLS, MAX_IO, PATH_LEN, SIZES, STACK_PERIOD_NS, SlowCall, WAIT_NS,
        WaitKind, WaitsKey, WaitsStats, traits,
    },
};

use crate::{
    output::{add_u32, add_u64, charge_many, count, now_ns, send_now},
    sched::{
        ONLY_TGID, SYSCALLS, arrivals, descriptor_cause, futex_cause, may_tell, settle,
        take_stack_if_allowed, tell,
    },
    target::{current_target, read},
};

/// Whether this probe runs: tells the scheduler probe to report time off CPUs inside of calls.
#[unsafe(no_mangle)]
static CALLS_WATCHED: Global<u32> = Global::new(0);
/// Whether threads are kept apart.
#[unsafe(no_mangle)]
static CALLS_BY_THREAD: Global<u32> = Global::new(0);

const NO_PREALLOC: usize = 1;

/// One write in so many has its stack taken.
const IO_STACK_SAMPLE: u32 = 16;

/// The programs that go on where `call_exit` ends.
#[btf_map]
static CALL_STEPS: ProgramArray<2> = ProgramArray::new();
const STEP_STACK: u32 = 0;
const STEP_FOLLOW: u32 = 1;

/// What `call_exit` tells them.
#[btf_map]
static DONE: PerCpuArray<Done, 1> = PerCpuArray::new();

/// Threads of targets, by thread id in the initial PID namespace.
#[btf_map]
static IN_CALL: HashMap<u32, InCall, MAX_THREADS> = HashMap::new();

/// Calls by process (or thread) and number.
#[btf_map]
static CALLS: HashMap<CallKey, CallStats, MAX_CALLS, NO_PREALLOC> = HashMap::new();

/// What an entry of `CALLS` begins with: too large for the stack.
#[btf_map]
static NEW_CALL: Array<CallStats, 1> = Array::new();

#[btf_map]
static CALL_ERRORS: HashMap<ErrorKey, u64, MAX_CALLS, NO_PREALLOC> = HashMap::new();

/// Waits by process and kind.
#[btf_map]
static CALL_WAITS: HashMap<WaitsKey, WaitsStats, 4096, NO_PREALLOC> = HashMap::new();

/// What an entry of `CALL_WAITS` begins with.
#[btf_map]
static NEW_WAITS: Array<WaitsStats, 1> = Array::new();

/// Reads and writes by descriptor.
#[btf_map]
static CALL_IO: HashMap<IoKey, IoStats, MAX_IO, NO_PREALLOC> = HashMap::new();

/// Time in calls by stack, ns.
#[btf_map]
static CALL_TIME: HashMap<CallTimeKey, u64, 16384, NO_PREALLOC> = HashMap::new();

/// What the arguments of each call are, by number.
#[btf_map]
static CALL_TRAITS: Array<u8, MAX_SYSCALLS> = Array::new();

/// From which length on calls are told one by one, ns. Userspace moves it, so that about so many are as can be read.
#[btf_map]
static CALL_SLOW_NS: Array<u64, 1> = Array::new();

/// Where a record too large for the stack is put together. No program that uses it interrupts another.
#[btf_map]
static SLOW_CALL: PerCpuArray<SlowCall, 1> = PerCpuArray::new();

#[btf_map]
static IO_RECORD: PerCpuArray<IoRecord, 1> = PerCpuArray::new();

/// A call begins.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn call_enter(ctx: RawTracePointContext) -> u32 {
    let both = bpf_get_current_pid_tgid();
    let only = ONLY_TGID.load();
    if only != 0 && (both >> 32) as u32 != only {
        return 0;
    }
    let tid = both as u32;
    let call = match IN_CALL.get_ptr_mut(&tid) {
        Some(call) => call,
        None => {
            let Some(ids) = current_target() else { return 0 };
            let new = InCall { pid: ids.pid, tid: ids.tid, ..InCall::default() };
            if IN_CALL.insert(&tid, &new, 0).is_err() {
                count(KernelCounter::ThreadsFull);
            }
            let Some(call) = IN_CALL.get_ptr_mut(&tid) else { return 0 };
            call
        }
    };
    // SAFETY: only the thread itself uses its entry, and the scheduler when it switches it.
    let call = unsafe { &mut *call };
    if call.interrupted_ns != 0 {
        if !add(call, call.interrupted_ns, call.interrupted_result) {
            count(KernelCounter::CallsFull);
        }
        call.interrupted_ns = 0;
    }
    // SAFETY: the registers and the number (include/trace/events/syscalls.h).
    call.number = unsafe { *ctx.as_ptr().cast::<u64>().add(1) } as u32;
    let now = now_ns();
    let arrivals = arrivals();
    if arrivals != call.arrivals {
        call.arrivals = arrivals;
        settle(tid, now); // what was before this call is not to be found in it
    }
    call.blocked_ns = 0;
    call.run_queue_ns = 0;
    call.stack = 0;
    call.start_ns = now;
    0
}

/// A call returns.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn call_exit(ctx: RawTracePointContext) -> u32 {
    let both = bpf_get_current_pid_tgid();
    let only = ONLY_TGID.load();
    if only != 0 && (both >> 32) as u32 != only {
        return 0;
    }
    let Some(call) = IN_CALL.get_ptr_mut(&(both as u32)) else { return 0 };
    // SAFETY: see `call_enter`.
    let call = unsafe { &mut *call };
    if call.start_ns == 0 {
        return 0; // it began before it was watched, or is a new thread's half of the call that made it
    }
    let now = now_ns();
    // SAFETY: the registers and the result (include/trace/events/syscalls.h).
    let (regs, result) = unsafe { (*ctx.as_ptr().cast::<u64>(), *ctx.as_ptr().cast::<u64>().add(1) as i64) };
    let began = call.start_ns;
    let arrivals = arrivals();
    if arrivals != call.arrivals {
        call.arrivals = arrivals;
        settle(both as u32, now);
    }
    call.start_ns = 0;
    let ns = now.saturating_sub(began);
    let (object, compat) = first_argument(regs);
    if compat {
        call.number |= COMPAT;
    }
    if (ERESTART_LAST..=ERESTART_FIRST).contains(&result) {
        call.interrupted_ns = ns;
        call.interrupted_result = result;
    } else if !add(call, ns, result) {
        count(KernelCounter::CallsFull);
    }
    // 32-bit calls have no class and no traits: their numbers are beyond the tables.
    let (class, kinds) = match (SYSCALLS.get(call.number), CALL_TRAITS.get(call.number)) {
        (Some(&class), Some(&kinds)) => (class, kinds),
        _ => (SyscallClass::Other as u8, 0),
    };
    call.owed_ns += ns;
    call.calls = call.calls.wrapping_add(1);
    let stack_due = call.owed_ns >= STACK_PERIOD_NS;
    let waited = call.blocked_ns > 0 || ns >= WAIT_NS;
    if (waited || kinds & (traits::READ | traits::WRITE | traits::CLOSE) != 0 || stack_due)
        && let Some(done) = DONE.get_ptr_mut(0)
    {
        let slow_ns = CALL_SLOW_NS.get(0).copied().unwrap_or(u64::MAX);
        // A write is the one made on purpose: what reads may be an event loop for all.
        // SAFETY: no arguments.
        let looked_at = kinds & traits::WRITE != 0 && unsafe { bpf_get_prandom_u32() } % IO_STACK_SAMPLE == 0;
        let class = u32::from(class);
        let [waited, stack_due] = [u32::from(waited), u32::from(stack_due)];
        let [slow, looked_at] = [u32::from(ns >= slow_ns), u32::from(looked_at)];
        let traits = u32::from(kinds);
        // SAFETY: this CPU's own slot; the steps that follow run on this CPU, before anything else writes it.
        unsafe {
            *done =
                Done { regs, began, now, result, object, class, traits, waited, stack_due, slow, looked_at };
        }
        let step =
            if call.stack == 0 && stack_due | slow | looked_at != 0 { STEP_STACK } else { STEP_FOLLOW };
        // SAFETY: the context of this program. It does not return, unless the step is not there.
        unsafe { CALL_STEPS.tail_call(&ctx, step) };
    }
    finish(call, now);
    0
}

/// Counts the cost now and then: the last step does it.
#[inline(always)]
fn finish(call: &InCall, now: u64) {
    if u64::from(call.calls) % COST_SAMPLE == 0 {
        charge_many(Probe::Syscall, now, COST_SAMPLE);
    }
}

/// ERESTARTSYS to ERESTART_RESTARTBLOCK, include/linux/errno.h: a signal is to be handled first.
const ERESTART_FIRST: i64 = -512;
const ERESTART_LAST: i64 = -516;

/// A call that has returned, for the steps that follow.
#[repr(C)]
#[derive(Clone, Copy)]
struct Done {
    regs: u64,
    began: u64,
    now: u64,
    result: i64,
    object: u64,
    class: u32,
    traits: u32,
    waited: u32,
    stack_due: u32,
    slow: u32,
    looked_at: u32,
}

/// Takes the stack of a call, if there is time for it. One program with all that could follow would be too complex
/// for the verifier.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn call_stack(ctx: RawTracePointContext) -> u32 {
    let host_tid = bpf_get_current_pid_tgid() as u32;
    let (Some(call), Some(done)) = (IN_CALL.get_ptr_mut(&host_tid), DONE.get(0)) else { return 0 };
    // SAFETY: see `call_enter`.
    let call = unsafe { &mut *call };
    call.stack = take_stack_if_allowed(&ctx, call.pid, call.tid, done.now);
    // SAFETY: as in `call_exit`.
    unsafe { CALL_STEPS.tail_call(&ctx, STEP_FOLLOW) };
    0
}

impl Done {
    fn ns(&self) -> u64 {
        self.now.saturating_sub(self.began)
    }
}

/// What more there is to a call that waited, moved data, or is the one whose stack is taken.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn call_follow(_ctx: RawTracePointContext) -> u32 {
    let host_tid = bpf_get_current_pid_tgid() as u32;
    let (Some(call), Some(done)) = (IN_CALL.get_ptr_mut(&host_tid), DONE.get(0)) else { return 0 };
    // SAFETY: see `call_enter`.
    let call = unsafe { &mut *call };
    follow(call, done);
    finish(call, done.now);
    0
}

#[inline(always)]
fn follow(call: &mut InCall, done: &Done) {
    let of = done.traits as u8;
    let mut cause = None;
    if of & traits::CLOSE != 0 && done.result == 0 {
        close(call, done);
    } else if of & (traits::READ | traits::WRITE) != 0 && done.result >= 0 {
        cause = io(call, done);
    }
    if done.waited | done.stack_due == 0 {
        return;
    }
    let kind = WaitKind::of(done.class as u8, of, cause.unwrap_or_else(|| cause_of(done)));
    if done.stack_due != 0 {
        let key = CallTimeKey {
            stack: call.stack,
            pid: call.pid,
            tid: call.tid,
            number: call.number,
            _reserved: 0,
        };
        let owed = call.owed_ns;
        call.owed_ns = 0;
        if let Some(time) = CALL_TIME.get_ptr_mut(&key) {
            // SAFETY: only this thread's calls have this key.
            unsafe { *time += owed };
        } else if CALL_TIME.insert(&key, &owed, 0).is_err() {
            count(KernelCounter::OffCpuFull);
        }
    }
    if done.waited != 0 {
        wait(call, kind, done.ns());
    }
    if done.slow != 0 && !kind.is_idle() {
        tell_slow(call, kind, done);
    }
}

/// Adds a call to its count; whether there was room.
#[inline(always)]
fn add(call: &InCall, ns: u64, result: i64) -> bool {
    const MAX_ERRNO: i64 = 4095;
    let tid = if CALLS_BY_THREAD.load() != 0 { call.tid } else { 0 };
    let key = CallKey { pid: call.pid, tid, number: call.number };
    let Some(stats) = stats(&key) else { return false };
    // SAFETY: the entry stays where it is. Threads on other CPUs count at the same time: what must be exact is
    // atomic; of two maxima at the same moment one can be lost.
    unsafe {
        if let Some(slot) = (*stats).lengths.counts.get_mut(bucket(ns)) {
            add_u32(slot, 1);
        }
        add_u64(&raw mut (*stats).lengths.sum_ns, ns);
        if ns > (*stats).lengths.max_ns {
            (*stats).lengths.max_ns = ns;
        }
        if call.blocked_ns | call.run_queue_ns != 0 {
            add_u64(&raw mut (*stats).blocked_ns, call.blocked_ns);
            add_u64(&raw mut (*stats).run_queue_ns, call.run_queue_ns);
        }
        if (-MAX_ERRNO..0).contains(&result) {
            add_u64(&raw mut (*stats).errors, 1);
            let key = ErrorKey { call: key, errno: -result as u32 };
            if CALL_ERRORS.get_ptr_mut(&key).is_none() {
                let _another_thread_did = CALL_ERRORS.insert(&key, &0, NOEXIST);
            }
            match CALL_ERRORS.get_ptr_mut(&key) {
                Some(errors) => add_u64(errors, 1),
                None => count(KernelCounter::CallsFull),
            }
        }
    }
    true
}

/// `BPF_NOEXIST`.
const NOEXIST: u64 = 1;

#[inline(always)]
fn stats(key: &CallKey) -> Option<*mut CallStats> {
    if let Some(stats) = CALLS.get_ptr_mut(key) {
        return Some(stats);
    }
    let _another_thread_did = CALLS.insert(key, NEW_CALL.get(0)?, NOEXIST);
    CALLS.get_ptr_mut(key)
}

/// What a call would block for.
#[inline(always)]
fn cause_of(done: &Done) -> Cause {
    let class = done.class as u8;
    if class == SyscallClass::Descriptor as u8 {
        cause_from(descriptor_cause(done.object as u32))
    } else if class == SyscallClass::Disk as u8 {
        Cause::Disk
    } else if class == SyscallClass::Futex as u8 {
        let args = arguments(done.regs);
        futex_cause(args[1], args[2])
    } else if class == SyscallClass::Sleep as u8 {
        Cause::Sleep
    } else if class == SyscallClass::Epoll as u8 || class == SyscallClass::Poll as u8 {
        Cause::Poll
    } else if class == SyscallClass::Ipc as u8 {
        Cause::Pipe
    } else if class == SyscallClass::Child as u8 {
        Cause::Child
    } else {
        Cause::Other
    }
}

#[inline(always)]
fn wait(call: &InCall, kind: WaitKind, ns: u64) {
    let key = WaitsKey { pid: call.pid, kind: kind as u32 };
    let waits = match CALL_WAITS.get_ptr_mut(&key) {
        Some(waits) => waits,
        None => {
            let Some(new) = NEW_WAITS.get(0) else { return };
            let _another_thread_did = CALL_WAITS.insert(&key, new, NOEXIST);
            let Some(waits) = CALL_WAITS.get_ptr_mut(&key) else {
                count(KernelCounter::CallsFull);
                return;
            };
            waits
        }
    };
    // SAFETY: as in `add`. Two votes at the same moment can lose one.
    unsafe {
        if let Some(slot) = (*waits).lengths.counts.get_mut(bucket(ns)) {
            add_u32(slot, 1);
        }
        add_u64(&raw mut (*waits).lengths.sum_ns, ns);
        if ns > (*waits).lengths.max_ns {
            (*waits).lengths.max_ns = ns;
        }
        if call.stack != 0 {
            (*waits).most.vote(call.stack, ns);
        }
    }
}

/// Adds a read or write to its descriptor's; returns what the descriptor is.
#[inline(always)]
fn io(call: &InCall, done: &Done) -> Option<Cause> {
    let key = IoKey { pid: call.pid, descriptor: done.object as u32 };
    let io = match CALL_IO.get_ptr_mut(&key) {
        Some(io) => io,
        None => {
            let cause = descriptor_cause(done.object as u32);
            let record = IO_RECORD.get_ptr_mut(0)?;
            // SAFETY: this CPU's own slot; no program that uses it interrupts another.
            let record = unsafe { &mut *record };
            record.kind = KIND_IO;
            record.closed = 0;
            record.key = key;
            record.stats = IoStats {
                first_ns: done.began,
                cause,
                tid: call.tid,
                first_wrote: u32::from(done.traits as u8 & traits::WRITE != 0),
                ..IoStats::default()
            };
            if CALL_IO.insert(&key, &record.stats, NOEXIST).is_err() {
                count(KernelCounter::IoFull);
            } else if may_tell(done.now) {
                // At once: what it is called can be found out only as long as it is open.
                send_now(record);
            }
            CALL_IO.get_ptr_mut(&key)?
        }
    };
    // SAFETY: threads that use one descriptor at the same time can lose each other's counts here; they are told to
    // be approximate.
    let io = unsafe { &mut *io };
    let size = done.result as u64;
    io.calls += 1;
    io.bytes += size;
    io.ns += done.ns();
    io.blocked_ns += call.blocked_ns;
    io.last_ns = done.now;
    io.tid = call.tid;
    if let Some(slot) = io.sizes.get_mut(size_class(size)) {
        *slot += 1;
    }
    if done.traits as u8 & traits::WRITE != 0 {
        io.written_ns = done.began;
    } else if io.written_ns != 0 {
        io.round_trips += 1;
        io.round_trip_ns += done.now.saturating_sub(io.written_ns);
        io.written_ns = 0;
    }
    if call.stack != 0 && (done.looked_at | done.stack_due) != 0 {
        io.votes += 1;
        io.most.vote(call.stack, 1);
    }
    Some(cause_from(io.cause))
}

#[inline(always)]
fn cause_from(number: u32) -> Cause {
    if number == Cause::Disk as u32 {
        Cause::Disk
    } else if number == Cause::Network as u32 {
        Cause::Network
    } else if number == Cause::Pipe as u32 {
        Cause::Pipe
    } else {
        Cause::Other
    }
}

/// Position of the highest bit, as far as sizes are told apart.
#[inline(always)]
fn size_class(size: u64) -> usize {
    // Sixteen buckets make a power of two, from the second on.
    let class = if size < 16 {
        (size >= 2) as usize + (size >= 4) as usize + (size >= 8) as usize
    } else {
        bucket(size) / 16 + 3
    };
    if class < SIZES { class } else { SIZES - 1 }
}

/// A descriptor is closed: what comes next with its number is another.
#[inline(always)]
fn close(call: &InCall, done: &Done) {
    let key = IoKey { pid: call.pid, descriptor: done.object as u32 };
    let Some(io) = CALL_IO.get_ptr_mut(&key) else { return };
    if let Some(record) = IO_RECORD.get_ptr_mut(0) {
        // SAFETY: as in `io`.
        let record = unsafe { &mut *record };
        record.kind = KIND_IO;
        record.closed = 1;
        record.key = key;
        // SAFETY: as in `io`.
        record.stats = unsafe { *io };
        if may_tell(done.now) {
            tell(record);
        } else {
            count(KernelCounter::IoFull);
        }
    }
    let _was_there = CALL_IO.remove(&key);
}

#[inline(always)]
fn tell_slow(call: &InCall, kind: WaitKind, done: &Done) {
    if !may_tell(done.now) {
        count(KernelCounter::SlowCallsDropped);
        return;
    }
    let Some(slow) = SLOW_CALL.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's own slot; no program that uses it interrupts another.
    let slow = unsafe { &mut *slow };
    slow.kind = KIND_SLOW_CALL;
    slow.number = call.number;
    slow.pid = call.pid;
    slow.tid = call.tid;
    slow.start_ns = done.began;
    slow.end_ns = done.now;
    slow.blocked_ns = call.blocked_ns;
    slow.run_queue_ns = call.run_queue_ns;
    slow.result = done.result;
    slow.stack = call.stack;
    slow.args = arguments(done.regs);
    slow.wait_kind = kind as u32;
    slow.path[0] = 0;
    if done.traits as u8 & (traits::PATH0 | traits::PATH1) != 0 {
        let at = if done.traits as u8 & traits::PATH0 != 0 { slow.args[0] } else { slow.args[1] };
        // SAFETY: the helper checks the address, and writes no more than there is room for.
        let len = unsafe {
            bpf_probe_read_user_str(slow.path.as_mut_ptr().cast(), PATH_LEN as u32, at as *const _)
        };
        if len < 0 {
            slow.path[0] = 0;
        }
    }
    tell(slow);
}

/// The current thread was off its CPU: called by the scheduler probe.
#[inline(always)]
pub fn off_cpu(blocked_ns: u64, run_queue_ns: u64, stack: u64) {
    if CALLS_WATCHED.load() == 0 {
        return;
    }
    if let Some(call) = IN_CALL.get_ptr_mut(&(bpf_get_current_pid_tgid() as u32)) {
        // SAFETY: see `call_enter`; whoever calls this looks at the entry again.
        let call = unsafe { &mut *call };
        if call.start_ns != 0 {
            call.blocked_ns += blocked_ns;
            call.run_queue_ns += run_queue_ns;
            if blocked_ns > 0 {
                call.stack = stack;
            }
        }
    }
}

/// A thread ends, perhaps inside of a call.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn call_gone(_ctx: RawTracePointContext) -> u32 {
    let host_tid = bpf_get_current_pid_tgid() as u32;
    let Some(call) = IN_CALL.get_ptr_mut(&host_tid) else { return 0 };
    // SAFETY: see `call_enter`.
    let call = unsafe { &mut *call };
    if call.start_ns | call.interrupted_ns != 0 {
        let tid = if CALLS_BY_THREAD.load() != 0 { call.tid } else { 0 };
        if let Some(stats) = stats(&CallKey { pid: call.pid, tid, number: call.number }) {
            // SAFETY: as in `add`.
            unsafe { add_u64(&raw mut (*stats).unfinished, 1) };
        }
    }
    let _was_there = IN_CALL.remove(&host_tid);
    0
}

/// A thread other than the main one that replaces its program takes over the main thread's id, inside of its call.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn call_exec(ctx: RawTracePointContext) -> u32 {
    // SAFETY: the task and its former id (include/trace/events/sched.h).
    let former = unsafe { *ctx.as_ptr().cast::<u64>().add(1) } as u32;
    let tid = bpf_get_current_pid_tgid() as u32;
    if former != tid
        && let Some(call) = IN_CALL.get_ptr_mut(&former)
        && let Some(ids) = current_target()
    {
        // SAFETY: see `call_enter`.
        let call = InCall { tid: ids.tid, ..unsafe { *call } };
        let _replaced = IN_CALL.insert(&tid, &call, 0);
        let _was_there = IN_CALL.remove(&former);
    }
    0
}

/// The first argument of the call that was entered with `regs`, and whether it is a 32-bit one.
#[cfg(not(bpf_target_arch = "aarch64"))]
#[inline(always)]
fn first_argument(regs: u64) -> (u64, bool) {
    /// From `di` on, as in `struct pt_regs`, arch/x86/include/asm/ptrace.h.
    const DI: u32 = core::mem::offset_of!(aya_ebpf::bindings::bpf_user_pt_regs_t, rdi) as u32;
    let [di, _orig_ax, _ip, cs]: [u64; 4] = read(regs, DI).unwrap_or([0; 4]);
    (di, cs == 0x23) // __USER32_CS, arch/x86/include/asm/segment.h
}

/// All six.
#[cfg(not(bpf_target_arch = "aarch64"))]
#[inline(always)]
fn arguments(regs: u64) -> [u64; 6] {
    /// From `r10` to `di`.
    const R10: u32 = core::mem::offset_of!(aya_ebpf::bindings::bpf_user_pt_regs_t, r10) as u32;
    let [r10, r9, r8, _ax, _cx, dx, si, di]: [u64; 8] = read(regs, R10).unwrap_or([0; 8]);
    [di, si, dx, r10, r8, r9]
}

#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
fn first_argument(regs: u64) -> (u64, bool) {
    /// After 31 registers, the stack pointer and the program counter: arch/arm64/include/asm/ptrace.h.
    const PSTATE: u32 = 33 * 8;
    const PSR_MODE32_BIT: u64 = 0x10;
    let [pstate, orig_x0]: [u64; 2] = read(regs, PSTATE).unwrap_or([0; 2]);
    (orig_x0, pstate & PSR_MODE32_BIT != 0)
}

#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
fn arguments(regs: u64) -> [u64; 6] {
    let mut args: [u64; 6] = read(regs, 0).unwrap_or([0; 6]);
    args[0] = first_argument(regs).0; // its register has the result by now
    args
}
