//! Records on their way to userspace: how many a CPU may send, and how many stacks it may take.

use aya_ebpf::{
    EbpfContext as _,
    btf_maps::{HashMap, PerCpuArray},
    macros::btf_map,
    programs::RawTracePointContext,
};
use profiler_common::{
    cpu::{FLAG_USER_END_SHIFT, SAMPLE_HEADER_LEN, SampleScratch},
    loss::Loss,
    record::RecordKind,
    runtime::Fingerprint,
    sched::StackHeader,
    syscall::Name,
};

use crate::{
    output::{count, send},
    runtime,
    stack::{self, Tables, hash_stack},
};

/// Stacks that have been sent. The value is unused.
#[btf_map]
static STACKS_SENT: HashMap<u64, u32, 32768> = HashMap::new();

/// One per CPU: the scheduler does not interrupt itself.
#[btf_map]
static SCHED_SCRATCH: PerCpuArray<SampleScratch, 1> = PerCpuArray::new();

/// How many stacks and records may still be taken in this slice of time.
#[btf_map]
static BUDGETS: PerCpuArray<Budget, 1> = PerCpuArray::new();

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Budget {
    slice: u64,
    pub stacks: u32,
    pub wakers: u32,
    records: u32,
    io: u32,
}

/// Slices are 2^23 ns (8.4 ms) long; in each a CPU takes at most so many stacks (about 0.5 % of its time) and sends
/// at most so many records of intervals.
pub const SLICE_SHIFT: u64 = 23;

pub const STACKS_PER_SLICE: u32 = 16;

const RECORDS_PER_SLICE: u32 = 64;

/// What was done with a descriptor is in no account without its record: four times as many, 30,000 a second.
const IO_PER_SLICE: u32 = 256;

/// Whether a record of no more importance than an interval may be sent now.
#[inline(always)]
pub fn may_emit(now: u64) -> bool {
    take_from_budget(now, |budget| &mut budget.records, RECORDS_PER_SLICE)
}

/// Whether the record of a descriptor may be sent now.
#[inline(always)]
pub fn may_emit_io(now: u64) -> bool {
    take_from_budget(now, |budget| &mut budget.io, IO_PER_SLICE)
}

/// Sends a record other than a sample.
#[inline(always)]
pub fn emit<T>(record: &T) {
    // SAFETY: a value and its size.
    if !unsafe { send(core::ptr::from_ref(record).cast(), size_of::<T>() as u64) } {
        count(Loss::RecordsLost);
    }
}

#[inline(always)]
pub fn take_from_budget(now: u64, which: impl Fn(&mut Budget) -> &mut u32, limit: u32) -> bool {
    let Some(budget) = BUDGETS.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's own slot.
    let budget = unsafe { &mut *budget };
    if budget.slice != now >> SLICE_SHIFT {
        *budget = Budget { slice: now >> SLICE_SHIFT, stacks: 0, wakers: 0, records: 0, io: 0 };
    }
    let used = which(budget);
    *used += 1;
    *used <= limit
}

/// Takes the current thread's stack unless its CPU has taken its share for now. Returns its id, or zero.
#[inline(always)]
pub fn capture_within_budget(ctx: &RawTracePointContext, pid: u32, tid: u32, now: u64) -> u64 {
    if !take_from_budget(now, |budget| &mut budget.stacks, STACKS_PER_SLICE) {
        count(Loss::OffCpuStacksSkipped);
        return 0;
    }
    capture_stack(ctx, pid, tid, now)
}

/// Whether the stack of the current task that has this fingerprint still has the same functions.
#[inline(always)]
pub fn is_same(print: &Fingerprint) -> bool {
    SCHED_SCRATCH.get_ptr_mut(0).is_some_and(|scratch| runtime::is_same(print, scratch))
}

/// What tells the stack that was taken last on this CPU from those with the same addresses.
#[inline(always)]
pub fn last_fingerprint() -> Fingerprint {
    SCHED_SCRATCH.get(0).map_or(Fingerprint::default(), |scratch| scratch.walk.fingerprint)
}

/// Takes the current thread's stack, and sends it if it is new. Returns its id, or zero.
#[inline(always)]
pub fn capture_stack(ctx: &RawTracePointContext, pid: u32, tid: u32, now: u64) -> u64 {
    let Some(scratch) = SCHED_SCRATCH.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's own slot, see SCHED_SCRATCH.
    let scratch = unsafe { &mut *scratch };
    // SAFETY: the context of this program.
    let bytes = unsafe { stack::capture::<Tables>(ctx.as_ptr(), None, pid, scratch) };
    scratch.header.pid = pid;
    scratch.header.tid = tid;
    scratch.header.time_ns = now;
    emit_stack(scratch, RecordKind::Stack as u32, bytes, 0, u64::from(pid) << 32)
}

/// Sends the stack of so many `bytes` in the scratch if it is new, as a record of `kind`; its header says whose and when,
/// and `tail` bytes follow it. Returns its id, a hash of `seed`, how it ends and its addresses; or zero.
#[inline(always)]
pub fn emit_stack(scratch: &mut SampleScratch, kind: u32, bytes: u64, tail: u64, seed: u64) -> u64 {
    let end = u64::from(scratch.header.flags >> FLAG_USER_END_SHIFT);
    let id = hash_stack(scratch, bytes / 8, seed ^ end);
    // SAFETY: any number is a valid key.
    if unsafe { STACKS_SENT.get(&id) }.is_none() {
        let header = core::ptr::from_mut(&mut scratch.header).cast::<StackHeader>();
        // SAFETY: both headers have the same size and alignment, and all but kind and id are at the same place.
        unsafe {
            (*header).kind = kind;
            (*header).id = id;
            let len = SAMPLE_HEADER_LEN as u64 + (bytes & 0xfff) + tail;
            if !send(core::ptr::from_ref(scratch).cast(), len) {
                count(Loss::RecordsLost);
                return 0;
            }
        }
        if STACKS_SENT.insert(&id, &0, 0).is_err() {
            count(Loss::OffCpuFull); // it will be sent again
        }
    }
    id
}

/// Sends a record up to the last byte in use of the name that it ends with.
#[inline(always)]
pub fn emit_named<T>(record: &T, name: &Name) {
    let rest = size_of_val(&name.bytes) - (name.len as usize).min(size_of_val(&name.bytes));
    // SAFETY: a part of a value.
    if !unsafe { send(core::ptr::from_ref(record).cast(), (size_of::<T>() - rest) as u64) } {
        count(Loss::RecordsLost);
    }
}
