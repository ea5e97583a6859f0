//! Who makes a system call: each thread of a target has a place, found without any helper, where its call in progress is
//! kept. The scheduler probe books there what of a call's time a thread was off its CPU.

use aya_ebpf::{
    Global,
    btf_maps::{Array, HashMap},
    helpers::generated::bpf_get_current_pid_tgid,
    macros::btf_map,
};
use profiler_common::{
    loss::Loss,
    syscall::{CALLER_PROBES, InCall, MAX_CALLERS},
    target::TargetMode,
};

use crate::{
    maps::{NO_PREALLOC, NOEXIST},
    output::count,
    target::{TARGET_MODE, current_target},
    task::{arrivals, current_task, kernel_stack},
};

/// Whether this probe runs: tells the scheduler probe to report time off CPUs inside of calls.
#[unsafe(no_mangle)]
static CALLS_WATCHED: Global<u32> = Global::new(0);

/// Threads known to be no target's, by the address of the registers that they enter the kernel with: it is at the end of
/// the thread's kernel stack, and no other living thread has it. One look here is all that their calls cost. A cache: of
/// two threads with the same place the later one has it.
#[btf_map]
static OTHERS: Array<u64, MAX_CALLERS> = Array::new();

/// Likewise those of targets: what `IN_CALL` has at the same place is the thread's.
#[btf_map]
static CALLERS: Array<u64, MAX_CALLERS> = Array::new();

/// Places of `CALLERS` that are taken: to insert here decides who gets one.
#[btf_map]
static CLAIMED: HashMap<u32, u64, MAX_CALLERS, NO_PREALLOC> = HashMap::new();

/// No place: the thread is no target's, or not known yet. Beyond the end of every map.
pub const NO_TARGET: u32 = u32::MAX;

pub const UNKNOWN: u32 = u32::MAX - 1;

/// Threads of targets.
#[btf_map]
pub static IN_CALL: Array<InCall, MAX_CALLERS> = Array::new();

/// From the beginning of a kernel stack to the registers at its end, bytes: the same for all.
#[btf_map]
static REGISTERS_AT: Array<u64, 1> = Array::new();

/// Where a thread with these registers is looked for first.
#[inline(always)]
fn first_place(regs: u64) -> u32 {
    // Fibonacci hashing, as in `stack::mix`.
    (regs.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u32 % MAX_CALLERS as u32
}

/// What a map of registers has at a place.
#[inline(always)]
fn registers_at(map: &Array<u64, MAX_CALLERS>, place: u32) -> u64 {
    // SAFETY: others may write it at the same time, as a whole.
    map.get_ptr(place).map_or(0, |entry| unsafe { entry.read_volatile() })
}

#[inline(always)]
fn set_registers(map: &Array<u64, MAX_CALLERS>, place: u32, regs: u64) {
    if let Some(entry) = map.get_ptr_mut(place) {
        // SAFETY: as above.
        unsafe { entry.write_volatile(regs) };
    }
}

/// The place of the thread that enters the kernel with these registers.
#[inline(always)]
pub fn place_of(regs: u64) -> u32 {
    let first = first_place(regs);
    if registers_at(&OTHERS, first) == regs {
        NO_TARGET
    } else if registers_at(&CALLERS, first) == regs {
        first
    } else {
        find_caller(regs)
    }
}

/// As [`place_of`], where the first place is somebody else's. Not inlined, since it is rare.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_caller(regs: u64) -> u32 {
    for i in 1..CALLER_PROBES {
        let place = (first_place(regs) + i) % MAX_CALLERS as u32;
        if registers_at(&CALLERS, place) == regs {
            return place;
        }
    }
    UNKNOWN
}

/// Gives the current thread, which enters the kernel with these registers, a place.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn admit_caller(regs: u64) -> u32 {
    if let Some(at) = REGISTERS_AT.get_ptr_mut(0) {
        // SAFETY: all write the same.
        unsafe { *at = regs.wrapping_sub(kernel_stack()) };
    }
    let Some(ids) = current_target() else {
        // In a cgroup it may be at any time.
        if TARGET_MODE.load() != TargetMode::Cgroup as u32 {
            set_registers(&OTHERS, first_place(regs), regs);
        }
        return NO_TARGET;
    };
    for i in 0..CALLER_PROBES {
        let place = (first_place(regs) + i) % MAX_CALLERS as u32;
        if registers_at(&CALLERS, place) != 0 || CLAIMED.insert(&place, &regs, NOEXIST).is_err() {
            continue;
        }
        let Some(call) = IN_CALL.get_ptr_mut(place) else { break };
        // SAFETY: see `syscall::call_enter`.
        let call = unsafe { &mut *call };
        call.start_ns = 0;
        call.owed_ns = 0;
        call.interrupted_ns = 0;
        call.arrivals = arrivals(current_task());
        call.pid = ids.pid;
        call.tid = ids.tid;
        // SAFETY: no arguments.
        call.host_tid = unsafe { bpf_get_current_pid_tgid() } as u32;
        call.calls = 0;
        call.random = call.host_tid;
        set_registers(&CALLERS, place, regs);
        return place;
    }
    count(Loss::CallsFull);
    NO_TARGET
}

/// Gives a place back.
#[inline(always)]
pub fn dismiss_caller(place: u32) {
    set_registers(&CALLERS, place, 0);
    let _was_there = CLAIMED.remove(&place);
}

/// Forgets that the thread with these registers is no target's.
#[inline(always)]
pub fn forget_other(regs: u64) {
    let place = first_place(regs);
    if registers_at(&OTHERS, place) == regs {
        set_registers(&OTHERS, place, 0);
    }
}

/// The place of the current thread, outside of its calls.
#[inline(always)]
pub fn own_registers() -> u64 {
    let at = REGISTERS_AT.get(0).copied().unwrap_or(0);
    kernel_stack().wrapping_add(at)
}

/// The current thread was off its CPU until `arrival`: called by the scheduler probe.
#[inline(always)]
pub fn off_cpu(blocked_ns: u64, run_queue_ns: u64, stack: u64, arrival: u64) {
    if CALLS_WATCHED.load() == 0 {
        return;
    }
    if let Some(call) = IN_CALL.get_ptr_mut(place_of(own_registers())) {
        // SAFETY: see `syscall::call_enter`; whoever calls this looks at the entry again.
        let call = unsafe { &mut *call };
        // What was before the call is not part of it.
        if call.start_ns != 0 && arrival > call.start_ns {
            call.blocked_ns += blocked_ns;
            call.run_queue_ns += run_queue_ns;
            if blocked_ns > 0 {
                call.stack = stack;
            }
        }
    }
}
