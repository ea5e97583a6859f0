//! The way out of the kernel: the ring buffer, the counters of what did not fit, and what each probe cost.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::{
    Global,
    btf_maps::{PerCpuArray, RingBuf},
    helpers::generated::{bpf_ktime_get_ns, bpf_ringbuf_output, bpf_ringbuf_query},
    macros::btf_map,
};
use profiler_common::{
    cost::{Probe, ProbeCost},
    loss::{self, Loss, Tally},
};

/// Records of all probes. Userspace sets the real size before loading.
#[btf_map]
static RECORDS: RingBuf<u64, { 256 * 1024 }> = RingBuf::new();

/// Userspace drains on a timer; the kernel wakes it early only when this many bytes wait.
#[unsafe(no_mangle)]
static WAKEUP_BYTES: Global<u64> = Global::new(128 * 1024);

#[btf_map]
static COUNTERS: PerCpuArray<u64, { loss::COUNTERS }> = PerCpuArray::new();

#[btf_map]
static COSTS: PerCpuArray<ProbeCost, { Probe::COUNT }> = PerCpuArray::new();

/// Counts a loss.
#[inline(always)]
pub fn count(loss: Loss) {
    add_one(loss as u32);
}

/// Counts what is no loss.
#[inline(always)]
pub fn tally(what: Tally) {
    add_one(what.index());
}

#[inline(always)]
fn add_one(index: u32) {
    if let Some(slot) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: this CPU's own slot; an interrupt that hits between load and store can lose one count of
        // its own kind only, and no probe counts the same thing both in and out of interrupts.
        unsafe { *slot += 1 };
    }
}

/// Sends `len` bytes at `record`; returns whether there was room. A wake-up costs more than the copy: see
/// [`WAKEUP_BYTES`].
///
/// # Safety
/// `len` bytes at `record` must be readable, in the verifier's eyes too.
#[inline(always)]
pub unsafe fn send(record: *const u8, len: u64) -> bool {
    let ring = core::ptr::from_ref(&RECORDS).cast_mut().cast();
    // SAFETY: a valid ring buffer map; only reads its positions.
    let waiting = unsafe { bpf_ringbuf_query(ring, u64::from(BPF_RB_AVAIL_DATA)) };
    let flags = if waiting >= WAKEUP_BYTES.load() { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP };
    // SAFETY: promised by the caller.
    unsafe { bpf_ringbuf_output(ring, record.cast_mut().cast(), len, u64::from(flags)) == 0 }
}

/// Now, CLOCK_MONOTONIC, ns.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Books the time since `start_ns` as one run of `probe`.
#[inline(always)]
pub fn charge(probe: Probe, start_ns: u64) {
    charge_many(probe, start_ns, 1);
}

/// Books the time since `start_ns` as that of each of `runs` runs, of which this one stands for all.
#[inline(always)]
pub fn charge_many(probe: Probe, start_ns: u64, runs: u64) {
    if let Some(cost) = COSTS.get_ptr_mut(probe as u32) {
        // SAFETY: this CPU's own slot, see `count`.
        unsafe {
            (*cost).runs += runs;
            (*cost).ns += (now_ns() - start_ns) * runs;
        }
    }
}

/// Books one run of a probe that runs so often that reading the clock once more would cost too much: only one run in 16
/// is timed, and counts for all. Which one it is the clock's own low digits decide.
#[inline(always)]
pub fn charge_some(probe: Probe, start_ns: u64) {
    if let Some(cost) = COSTS.get_ptr_mut(probe as u32) {
        // SAFETY: this CPU's own slot, see `count`.
        unsafe {
            (*cost).runs += 1;
            if start_ns & 15 == 0 {
                (*cost).ns += (now_ns() - start_ns) * 16;
            }
        }
    }
}

/// Counts one run of a probe that runs very often; returns when it began if it is to be timed: one in 16 is, and counts
/// for all.
#[inline(always)]
pub fn begin(probe: Probe) -> u64 {
    let Some(cost) = COSTS.get_ptr_mut(probe as u32) else { return 0 };
    // SAFETY: this CPU's own slot, see `count`.
    let runs = unsafe {
        (*cost).runs += 1;
        (*cost).runs
    };
    if runs & 15 == 0 { now_ns() } else { 0 }
}

/// Books the time since [`begin`].
#[inline(always)]
pub fn finish(probe: Probe, began_ns: u64) {
    if began_ns != 0
        && let Some(cost) = COSTS.get_ptr_mut(probe as u32)
    {
        // SAFETY: this CPU's own slot, see `count`.
        unsafe { (*cost).ns += (now_ns() - began_ns) * 16 };
    }
}

/// Adds to a number that other CPUs add to as well. The result is not read: only that every kernel can do.
///
/// # Safety
/// `at` must be a member of a map's value.
#[inline(always)]
pub unsafe fn add<T: Copy>(at: *mut T, n: T) {
    // SAFETY: promised by the caller.
    let _before = unsafe { atomic_xadd::<T, T, { AtomicOrdering::Relaxed }>(at, n) };
}
