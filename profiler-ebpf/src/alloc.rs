//! The allocation probe: breakpoints in the functions of a program's allocator. Each object that is allocated is kept,
//! with its stack, until it is freed; what each stack has allocated and freed adds up.
//!
//! Only outermost calls count, by the stack pointer: what calloc allocates inside of operator new inside of …, or having
//! been jumped to by it, is one object, that of the outermost. A call that never returns (its thread ended in it) is
//! recognised when the thread number's next call has a stack pointer above it, or else after some calls; one that is left
//! by an exception when that is thrown.

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_user_pt_regs_t,
    btf_maps::{Array, HashMap},
    helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user},
    macros::{btf_map, uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use profiler_common::{
    alloc::{
        AllocControl, BUCKETS, CALL_SLOTS, Call, CallInProgress, MAX_ALLOC_PROCESSES, MAX_ALLOC_STACKS,
        MAX_LIVE, MAX_MAPPED, Object, ObjectKey, SLICE_SHIFT, StackTotals,
    },
    cost::Probe,
    histogram::log2,
    loss::Loss,
    unwind::Registers,
};

use crate::{
    maps::{NO_PREALLOC, NOEXIST},
    output::{add, begin, count, finish, now_ns},
    stack_cache,
    target::{Ids, current_target},
    task::registers,
    user_probe::{cookie, nothing},
};

/// What userspace wants now.
#[btf_map]
static ALLOC_CONTROL: Array<AllocControl, 1> = Array::new();

/// Calls in progress, by the low bits of the thread id in the initial PID namespace.
#[btf_map]
static CALLS: Array<CallInProgress, { CALL_SLOTS as usize }> = Array::new();

/// Objects that live. Memory is taken as they come.
#[btf_map]
static OBJECTS: HashMap<ObjectKey, Object, { MAX_LIVE as usize }, NO_PREALLOC> = HashMap::new();

/// Mappings that live, kept apart: one call can end several of them, parts of one, or put another in its place. Userspace
/// compares them with what is mapped, and removes what is not.
#[btf_map]
static MAPPED: HashMap<ObjectKey, Object, { MAX_MAPPED as usize }, NO_PREALLOC> = HashMap::new();

/// What each stack allocated and freed.
#[btf_map]
static ALLOC_STACKS: HashMap<u64, StackTotals, { MAX_ALLOC_STACKS as usize }, NO_PREALLOC> = HashMap::new();

/// Frees of objects that are not watched, by process. Userspace makes the entries.
#[btf_map]
static UNKNOWN_FREES: HashMap<u32, u64, { MAX_ALLOC_PROCESSES as usize }> = HashMap::new();

/// What a stack begins with: too large for the stack.
#[btf_map]
static NO_TOTALS: Array<StackTotals, 1> = Array::new();

/// How many calls inside of one, or of another thread that wants its place, are believed.
const MAX_NESTED: u32 = 64;

/// What the kernel answers to [`NOEXIST`].
const EEXIST: i32 = -17;

/// The smallest page: nothing smaller is mapped.
const PAGE: u64 = 4096;

/// What a return takes off the stack: the return address.
#[cfg(not(bpf_target_arch = "aarch64"))]
const RETURN_TAKES: u64 = 8;
#[cfg(bpf_target_arch = "aarch64")]
const RETURN_TAKES: u64 = 0;

/// An allocator's function begins. Its cookie says what it does, see [`Call`].
#[uprobe]
pub fn alloc_enter(ctx: ProbeContext) -> u32 {
    let Some(ids) = current_target() else { return nothing(&ctx) };
    let began = begin(Probe::AllocEnter);
    enter(&ctx, &ids);
    finish(Probe::AllocEnter, began);
    0
}

/// An allocator's function has returned.
#[uretprobe]
pub fn alloc_return(ctx: RetProbeContext) -> u32 {
    let Some(ids) = current_target() else { return nothing(&ctx) };
    let began = begin(Probe::AllocReturn);
    // SAFETY: the context of this program, which is the registers.
    let registers = registers(unsafe { &*ctx.regs.cast::<bpf_user_pt_regs_t>() });
    leave(registers, ctx.ret(), false, &ids);
    finish(Probe::AllocReturn, began);
    0
}

/// An allocator's function is about to return: at a return instruction of one that throws. An exception cannot pass a
/// return address that has been replaced, so nothing is.
#[uprobe]
pub fn alloc_leave(ctx: ProbeContext) -> u32 {
    let Some(ids) = current_target() else { return nothing(&ctx) };
    let began = begin(Probe::AllocLeave);
    // SAFETY: the context of this program, which is the registers.
    let regs = unsafe { &*ctx.regs.cast::<bpf_user_pt_regs_t>() };
    if let Some(registers) = after_return(registers(regs)) {
        // SAFETY: as above.
        leave(registers, RetProbeContext::new(ctx.as_ptr()).ret(), true, &ids);
    }
    finish(Probe::AllocLeave, began);
    0
}

/// What a return instruction makes of the registers.
#[inline(always)]
fn after_return(registers: Registers) -> Option<Registers> {
    #[cfg(not(bpf_target_arch = "aarch64"))]
    // SAFETY: the helper checks the address.
    let ip = unsafe { bpf_probe_read_user(registers.sp as *const u64) }.ok()?;
    #[cfg(bpf_target_arch = "aarch64")]
    let ip = registers.lr;
    Some(Registers { ip, sp: registers.sp + RETURN_TAKES, ..registers })
}

/// An object is about to be freed.
#[uprobe]
pub fn alloc_free(ctx: ProbeContext) -> u32 {
    let Some(ids) = current_target() else { return nothing(&ctx) };
    let began = begin(Probe::Free);
    free(&ctx, &ids);
    finish(Probe::Free, began);
    0
}

/// mmap has returned.
#[uretprobe]
pub fn alloc_map(ctx: RetProbeContext) -> u32 {
    let Some(ids) = current_target() else { return nothing(&ctx) };
    let began = begin(Probe::AllocReturn);
    // SAFETY: the context of this program, which is the registers.
    let registers = registers(unsafe { &*ctx.regs.cast::<bpf_user_pt_regs_t>() });
    map(registers, ctx.ret(), &ids);
    finish(Probe::AllocReturn, began);
    0
}

/// munmap begins.
#[uprobe]
pub fn alloc_unmap(ctx: ProbeContext) -> u32 {
    let Some(ids) = current_target() else { return nothing(&ctx) };
    let began = begin(Probe::Free);
    let [address, length] = [0, 1].map(|n| ctx.arg::<u64>(n).unwrap_or(0));
    end_mapping(&ObjectKey { address, pid: ids.pid, _padding: 0 }, length, now_ns());
    finish(Probe::Free, began);
    0
}

/// The current thread's place, and its id.
#[inline(always)]
fn place() -> Option<(&'static mut CallInProgress, u32)> {
    let tid = bpf_get_current_pid_tgid() as u32;
    let call = CALLS.get_ptr_mut(tid & (CALL_SLOTS - 1))?;
    // SAFETY: the thread's own place; if another has the same, each sees whose call is in it.
    Some((unsafe { &mut *call }, tid))
}

#[inline(always)]
fn enter(ctx: &ProbeContext, ids: &Ids) {
    let (Some(control), Some((call, tid))) = (ALLOC_CONTROL.get(0), place()) else { return };
    // SAFETY: the context of this program, which is the registers.
    let sp = registers(unsafe { &*ctx.regs.cast::<bpf_user_pt_regs_t>() }).sp;
    if call.sp != 0 && call.window == control.window {
        let mine = call.tid == tid;
        if (!mine || sp <= call.sp) && call.nested < MAX_NESTED {
            if mine && cookie(ctx) == Call::Throw as u8 {
                call.sp = 0;
                return;
            }
            call.nested += 1;
            if !mine {
                count(Loss::AllocClash);
            }
            return;
        }
    }
    let kind = cookie(ctx);
    if kind == Call::Throw as u8 {
        return;
    }
    let [a, b, c] = [0, 1, 2].map(|n| ctx.arg::<u64>(n).unwrap_or(0));
    call.freed = 0;
    call.result_at = 0;
    call.old_address = 0;
    call.size = if kind == Call::Calloc as u8 {
        a.wrapping_mul(b)
    } else if kind == Call::Realloc as u8 || kind == Call::Reallocarray as u8 {
        take_old(call, a, ids);
        if kind == Call::Realloc as u8 { b } else { b.wrapping_mul(c) }
    } else if kind == Call::Memalign as u8 {
        b
    } else if kind == Call::PosixMemalign as u8 {
        call.result_at = a;
        c
    } else if kind == Call::Mmap as u8 {
        if c == 0 {
            call.sp = 0;
            return; // PROT_NONE
        }
        b
    } else {
        a
    };
    call.call = kind.into();
    call.nested = 0;
    call.window = control.window;
    call.tid = tid;
    call.sp = sp;
}

/// The object that is to be resized belongs to nobody until that is done: its address may be given to another thread
/// before the call returns.
#[inline(always)]
fn take_old(call: &mut CallInProgress, address: u64, ids: &Ids) {
    call.old_address = address;
    call.old.stack = 0;
    let key = ObjectKey { address, pid: ids.pid, _padding: 0 };
    // SAFETY: only who owns the object frees or resizes it.
    if address != 0
        && let Some(old) = unsafe { OBJECTS.get(&key) }
    {
        call.old = *old;
        let _was_there = OBJECTS.remove(&key);
    }
}

#[inline(always)]
fn leave(registers: Registers, returned: u64, at_exit: bool, ids: &Ids) {
    let (Some(control), Some((call, tid))) = (ALLOC_CONTROL.get(0), place()) else { return };
    let ours = call.tid == tid && call.window == control.window && call.sp != 0;
    // What operator new jumps to, others jump to as well, whose return address may be replaced.
    let seen_here = (call.call == Call::New as u32) == at_exit;
    if !ours || !seen_here || registers.sp != call.sp + RETURN_TAKES {
        return;
    }
    call.sp = 0;
    let now = now_ns();
    let address = if call.call == Call::PosixMemalign as u32 {
        // SAFETY: the helper checks the address.
        let stored = unsafe { bpf_probe_read_user(call.result_at as *const u64) };
        if returned as u32 == 0 { stored.unwrap_or(0) } else { 0 }
    } else {
        returned
    };
    if call.old_address != 0 {
        if address == 0 && call.size != 0 {
            if call.old.stack != 0 {
                // It could not be resized, and stays.
                let key = ObjectKey { address: call.old_address, pid: ids.pid, _padding: 0 };
                if OBJECTS.insert(&key, &call.old, 0).is_err() {
                    count(Loss::ObjectsFull);
                }
            }
            return;
        }
        if call.old.stack != 0 {
            freed(&call.old, now, control);
        } else {
            unknown_free(ids.pid);
        }
    }
    if address == 0 {
        return;
    }
    let key = ObjectKey { address, pid: ids.pid, _padding: 0 };
    if now >= control.until_ns {
        replace(&key, now, control);
        return;
    }
    let Some((stack, totals)) = site(registers, ids, now) else { return };
    let weight = control.weight;
    let object = Object { size: call.size, stack, time_ns: now, weight, window: control.window };
    if let Err(error) = OBJECTS.insert(&key, &object, NOEXIST) {
        if error == EEXIST {
            replace(&key, now, control);
        }
        if error != EEXIST || OBJECTS.insert(&key, &object, 0).is_err() {
            count(Loss::ObjectsFull);
            return;
        }
    }
    // SAFETY: the entry is never removed while programs run.
    unsafe { allocated(totals, &object, now, control) };
}

/// Books an allocation.
///
/// # Safety
/// `totals` must be a map's value.
#[inline(always)]
unsafe fn allocated(totals: *mut StackTotals, object: &Object, now: u64, control: &AllocControl) {
    let weight = control.weight;
    // SAFETY: promised by the caller.
    unsafe {
        add(&raw mut (*totals).allocated_bytes, object.size * u64::from(weight));
        add(&raw mut (*totals).allocated_count, weight.into());
        add(&raw mut (*totals).seen_allocated, 1);
        // Two CPUs that do this at once can lose a little of what the error is estimated from.
        if (*totals).window != control.window {
            (*totals).close_window();
            (*totals).window = control.window;
            (*totals).window_weight = weight;
        }
        add(&raw mut (*totals).window_count, 1);
        if weight == 1 && (*totals).slice != now >> SLICE_SHIFT {
            (*totals).slice = now >> SLICE_SHIFT;
            add(&raw mut (*totals).slices_hit, 1);
        }
        count_in(&raw mut (*totals).sizes, object.size, weight.into());
    }
}

/// The stack that allocates, and its totals; none, which is counted, where there is no room for it.
#[inline(always)]
fn site(registers: Registers, ids: &Ids, now: u64) -> Option<(u64, *mut StackTotals)> {
    // SAFETY: any number is a valid key.
    let stack = stack_cache::take(registers, ids, now, |id| unsafe { ALLOC_STACKS.get(&id) }.is_some());
    if stack == 0 {
        count(Loss::AllocClash);
        return None;
    }
    let totals = totals(stack);
    if totals.is_none() {
        count(Loss::AllocStacksFull);
    }
    Some((stack, totals?))
}

/// mmap has returned an address.
#[inline(always)]
fn map(registers: Registers, returned: u64, ids: &Ids) {
    let (Some(control), Some((call, tid))) = (ALLOC_CONTROL.get(0), place()) else { return };
    let ours = call.tid == tid && call.window == control.window && call.sp != 0;
    if !ours || call.call != Call::Mmap as u32 || registers.sp != call.sp + RETURN_TAKES {
        return;
    }
    call.sp = 0;
    if returned > u64::MAX - PAGE {
        return; // MAP_FAILED
    }
    let now = now_ns();
    let key = ObjectKey { address: returned, pid: ids.pid, _padding: 0 };
    end_mapping(&key, u64::MAX, now);
    if now >= control.until_ns {
        return;
    }
    let Some((stack, totals)) = site(registers, ids, now) else { return };
    let object =
        Object { size: call.size, stack, time_ns: now, weight: control.weight, window: control.window };
    if MAPPED.insert(&key, &object, 0).is_err() {
        count(Loss::ObjectsFull);
        return;
    }
    // SAFETY: the entry is never removed while programs run.
    unsafe { allocated(totals, &object, now, control) };
}

/// The first `length` bytes of what is mapped at an address are no longer. Each mapping that is watched is seen to end,
/// if not here then by userspace, so its end counts as often as its beginning has.
#[inline(always)]
fn end_mapping(key: &ObjectKey, length: u64, now: u64) {
    // SAFETY: who maps or unmaps an address is alone with it.
    let Some(object) = (unsafe { MAPPED.get(key) }) else { return };
    let object = *object;
    let _was_there = MAPPED.remove(key);
    if length < object.size {
        // What is left is an object of its own.
        let rest = ObjectKey { address: key.address + length, ..*key };
        let left = Object { size: object.size - length, ..object };
        if MAPPED.insert(&rest, &left, 0).is_ok()
            && let Some(totals) = ALLOC_STACKS.get_ptr_mut(&object.stack)
        {
            // SAFETY: the entry is never removed while programs run.
            unsafe { add(&raw mut (*totals).freed_bytes, length * u64::from(object.weight)) };
            return;
        }
    }
    let lifetime = now.saturating_sub(object.time_ns);
    book_free(object.stack, object.size, object.weight.into(), lifetime, 0);
}

/// An address is given out (again): if there was an object, it is gone, unseen.
#[inline(always)]
fn replace(key: &ObjectKey, now: u64, control: &AllocControl) {
    // SAFETY: whoever is given the address is alone with it.
    let Some(gone) = (unsafe { OBJECTS.get(key) }) else { return };
    let gone = *gone;
    let _was_there = OBJECTS.remove(key);
    count(Loss::FreesImplied);
    if gone.window == control.window {
        freed(&gone, now, control);
    } else if now < control.until_ns
        && let Some(totals) = ALLOC_STACKS.get_ptr_mut(&gone.stack)
    {
        // After so many windows, the chance to see it was no better than one in as many.
        let windows = control.window.wrapping_sub(gone.window).min(control.free_weight);
        let n = u64::from(gone.weight) * u64::from(windows.max(1));
        // SAFETY: the entry is never removed while programs run.
        unsafe {
            add(&raw mut (*totals).reused_bytes, gone.size * n);
            add(&raw mut (*totals).reused_count, n);
        }
    }
}

#[inline(always)]
fn free(ctx: &ProbeContext, ids: &Ids) {
    let (Some(control), Some((call, tid))) = (ALLOC_CONTROL.get(0), place()) else { return };
    let address = ctx.arg::<u64>(0).unwrap_or(0);
    if address == 0 {
        return;
    }
    // SAFETY: the context of this program, which is the registers.
    let sp = registers(unsafe { &*ctx.regs.cast::<bpf_user_pt_regs_t>() }).sp;
    if call.sp != 0 && call.tid == tid && call.window == control.window && sp < call.sp {
        return; // inside of realloc, which says itself what becomes of the object
    }
    let key = ObjectKey { address, pid: ids.pid, _padding: 0 };
    // One function that frees has become another.
    let again = call.freed == address;
    call.freed = address;
    // SAFETY: only who owns the object frees it.
    let Some(object) = (unsafe { OBJECTS.get(&key) }) else {
        if !again {
            unknown_free(ids.pid);
        }
        return;
    };
    let object = *object;
    let _was_there = OBJECTS.remove(&key);
    let now = now_ns();
    freed(&object, now, control);
}

/// An object is freed that was allocated before anyone watched, or was lost.
#[inline(always)]
fn unknown_free(pid: u32) {
    if let Some(frees) = UNKNOWN_FREES.get_ptr_mut(&pid) {
        // SAFETY: a map's value.
        unsafe { add(frees, 1) };
    }
}

/// Books the end of an object. In windows, seeing it takes more luck the later it comes after the object's own window
/// began: it stands for as many as had less (Horvitz and Thompson).
#[inline(always)]
fn freed(object: &Object, now: u64, control: &AllocControl) {
    let lifetime = now.saturating_sub(object.time_ns);
    let (weight, length) = (u64::from(object.weight), u64::from(control.length_ns));
    let mut n = weight * u64::from(control.free_weight);
    let mut later = 0;
    if control.free_weight > 1 {
        if now >= control.until_ns {
            return; // the windows account for it
        }
        if lifetime < length {
            // Rounded up as often as it takes to be right on average.
            let chance = length - lifetime;
            n = n.min((weight * length + now % chance) / chance);
        }
        later = if object.window == control.window { 0 } else { control.window };
    }
    book_free(object.stack, object.size, n, lifetime, later);
}

/// Called from several places, so not inlined.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn book_free(stack: u64, size: u64, n: u64, lifetime_ns: u64, later_window: u32) -> u32 {
    let Some(totals) = ALLOC_STACKS.get_ptr_mut(&stack) else { return 0 };
    let window = u64::from(later_window);
    // SAFETY: the entry is never removed while programs run.
    unsafe {
        count_in(&raw mut (*totals).lifetimes, lifetime_ns, n);
        if window == 0 {
            add(&raw mut (*totals).freed_bytes, size * n);
            add(&raw mut (*totals).freed_count, n);
            return 0;
        }
        add(&raw mut (*totals).later_bytes, size * n);
        add(&raw mut (*totals).later_count, n);
        // As with allocations, a little of this can be lost.
        if (*totals).later_window != window {
            (*totals).close_later();
            (*totals).later_window = window;
            add(&raw mut (*totals).later_windows, 1);
        }
        add(&raw mut (*totals).later_sum, n);
    }
    0
}

#[inline(always)]
fn totals(stack: u64) -> Option<*mut StackTotals> {
    if let Some(totals) = ALLOC_STACKS.get_ptr_mut(&stack) {
        return Some(totals);
    }
    let _another_cpu_was_faster = ALLOC_STACKS.insert(&stack, NO_TOTALS.get(0)?, NOEXIST);
    ALLOC_STACKS.get_ptr_mut(&stack)
}

/// # Safety
/// `histogram` must be a member of a map's value.
#[inline(always)]
unsafe fn count_in(histogram: *mut [u64; BUCKETS], value: u64, n: u64) {
    let bucket = log2(value | 1) as usize & (BUCKETS - 1);
    // SAFETY: promised by the caller; the bucket is within bounds.
    unsafe { add(histogram.cast::<u64>().add(bucket), n) };
}
