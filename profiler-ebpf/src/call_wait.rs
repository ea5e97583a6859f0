//! What system calls waited for: by kind, by stack, and the slow ones one by one. It is looked at where a call returns that has
//! waited.

use aya_ebpf::{
    btf_maps::{Array, HashMap, PerCpuArray},
    helpers::{bpf_probe_read_user, generated::bpf_probe_read_user_str},
    macros::btf_map,
};
use profiler_common::{
    histogram::bucket,
    loss::Loss,
    record::RecordKind,
    sched::{SyscallClass, WaitCause},
    syscall::{
        COMPAT, CallTimeKey, Done, InCall, NAME_LEN, NameKind, ObjectKind, SlowCall, WaitKind, WaitsKey,
        WaitsStats, traits,
    },
};

use crate::{
    descriptor::{cause_from, describe_descriptor, name_descriptor},
    descriptor_io::listens,
    emit::{emit_named, may_emit},
    maps::{NO_PREALLOC, NOEXIST},
    output::{self, count},
    task::arguments,
};

/// Waits by process and kind.
#[btf_map]
static CALL_WAITS: HashMap<WaitsKey, WaitsStats, 4096, NO_PREALLOC> = HashMap::new();

/// What an entry of `CALL_WAITS` begins with: too large for the stack.
#[btf_map]
static NEW_WAITS: Array<WaitsStats, 1> = Array::new();

/// Time in calls by stack, ns.
#[btf_map]
static CALL_TIME: HashMap<CallTimeKey, u64, 16384, NO_PREALLOC> = HashMap::new();

/// Where a record too large for the stack is put together. No program that uses it interrupts another.
#[btf_map]
static SLOW_CALL: PerCpuArray<SlowCall, 1> = PerCpuArray::new();

/// Traits of calls that end descriptors.
pub const ENDS: u16 = traits::CLOSE | traits::DUP | traits::CLOSE_RANGE;

/// The arguments of a call that returns.
#[inline(always)]
pub fn arguments_of(call: &InCall) -> [u64; 6] {
    arguments(call.number & COMPAT != 0)
}

/// What a call waited for, or whose stack it is. `cause` is a [`WaitCause`], any other number if it is not known yet.
///
/// A global function in the verifier's sense: it would follow this for each kind of call.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn follow_wait(call: *mut InCall, cause: u32) -> u32 {
    // SAFETY: callers pass a valid call; the verifier, which cannot know, wants to see the check for null.
    let Some(call) = (unsafe { call.as_mut() }) else { return 0 };
    let done = call.done;
    let of = done.traits as u16;
    let cause = WaitCause::from_number(cause).unwrap_or_else(|| cause_of(call, &done));
    let kind = WaitKind::of(done.class as u8, of, &call.on, cause);
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
            count(Loss::OffCpuFull);
        }
    }
    if done.waited != 0 {
        wait(call, kind, done.duration_ns());
    }
    if done.slow != 0 && !kind.is_idle() {
        emit_slow_call(call, kind as u32);
    }
    0
}

/// What a call would block for. Describes what it was made on.
#[inline(always)]
fn cause_of(call: &mut InCall, done: &Done) -> WaitCause {
    let class = done.class as u8;
    if done.traits as u16 & traits::POLL != 0 {
        // Who waits for one descriptor waits for what that is.
        let [at, descriptors, ..] = arguments_of(call);
        // SAFETY: the helper checks the address. The descriptor is the first member of struct pollfd, and the events follow.
        if descriptors == 1
            && let Ok([descriptor, _events]) = unsafe { bpf_probe_read_user(at as *const [u32; 2]) }
        {
            call.done.object = u64::from(descriptor);
            return cause_from(describe_descriptor(descriptor, &raw mut call.on));
        }
        return WaitCause::Poll;
    }
    if class == SyscallClass::Descriptor as u8 || class == SyscallClass::Accept as u8 {
        cause_from(describe_descriptor(done.object as u32, &raw mut call.on))
    } else if class == SyscallClass::Futex as u8 {
        let args = arguments_of(call);
        WaitCause::of_futex(args[1], args[2])
    } else {
        WaitCause::of_class(class)
    }
}

#[inline(always)]
fn wait(call: &InCall, kind: WaitKind, ns: u64) {
    let key = WaitsKey::new(call.pid, kind, &call.on, listens(call.pid, &call.on));
    let waits = match CALL_WAITS.get_ptr_mut(&key) {
        Some(waits) => waits,
        None => {
            let Some(new) = NEW_WAITS.get(0) else { return };
            let _another_thread_did = CALL_WAITS.insert(&key, new, NOEXIST);
            let Some(waits) = CALL_WAITS.get_ptr_mut(&key) else {
                count(Loss::CallsFull);
                return;
            };
            waits
        }
    };
    // SAFETY: as in `add`. Two votes at the same moment can lose one.
    unsafe {
        if let Some(slot) = (*waits).lengths.counts.get_mut(bucket(ns)) {
            output::add(slot, 1);
        }
        output::add(&raw mut (*waits).lengths.sum_ns, ns);
        if ns > (*waits).lengths.max_ns {
            (*waits).lengths.max_ns = ns;
        }
        if call.stack != 0 {
            (*waits).most.vote(call.stack, ns);
        }
    }
}

/// Reports a call that took long; `kind` is the number of its [`WaitKind`]. Not inlined, as [`begin_io`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn emit_slow_call(call: *mut InCall, kind: u32) -> u32 {
    // SAFETY: as in `begin_io`.
    let Some(call) = (unsafe { call.as_ref() }) else { return 0 };
    let done = &call.done;
    if !may_emit(done.now) {
        count(Loss::SlowCallsOmitted);
        return 0;
    }
    let Some(slow) = SLOW_CALL.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's own slot; no program that uses it interrupts another.
    let slow = unsafe { &mut *slow };
    slow.kind = RecordKind::SlowCall as u32;
    slow.number = call.number;
    slow.pid = call.pid;
    slow.tid = call.tid;
    slow.start_ns = done.began;
    slow.end_ns = done.now;
    slow.blocked_ns = call.blocked_ns;
    slow.run_queue_ns = call.run_queue_ns;
    slow.result = done.result;
    slow.stack = call.stack;
    slow.args = arguments_of(call);
    slow.on = call.on;
    slow.wait_kind = kind;
    slow.name.kind = NameKind::None as u32;
    slow.name.len = 0;
    let of = done.traits as u16;
    if of & (traits::PATH0 | traits::PATH1) != 0 {
        let at = if of & traits::PATH0 != 0 { slow.args[0] } else { slow.args[1] };
        // SAFETY: the helper checks the address, and writes no more than there is room for.
        let len = unsafe {
            bpf_probe_read_user_str(slow.name.bytes.as_mut_ptr().cast(), NAME_LEN as u32, at as *const _)
        };
        if len > 0 {
            slow.name.kind = NameKind::Path as u32;
            slow.name.len = len as u32;
        }
    } else if has_descriptor(done) && call.on.kind != ObjectKind::Net as u32 {
        name_descriptor(done.object as u32, &raw mut slow.name);
    }
    emit_named(slow, &slow.name);
    0
}

/// Whether `object` is a descriptor that is open still.
#[inline(always)]
fn has_descriptor(done: &Done) -> bool {
    let of = done.traits as u16;
    let class = done.class as u8;
    let one = class == SyscallClass::Descriptor as u8
        || class == SyscallClass::Disk as u8
        || class == SyscallClass::Accept as u8
        || class == SyscallClass::Lock as u8
        || of & traits::POLL != 0;
    one && of & ENDS == 0
}
