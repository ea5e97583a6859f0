//! How long waits for a CPU and iterations of event loops took, counted in histograms.

use aya_ebpf::{
    Global,
    btf_maps::{Array, HashMap, PerCpuArray},
    macros::btf_map,
};
use profiler_common::{
    histogram::{Histogram, bucket},
    sched::{HistogramKey, HistogramKind, MAX_THREAD_HISTOGRAMS, ThreadState},
};

use crate::{maps::NO_PREALLOC, target::ONLY_TGID};

/// Waits for a CPU are counted by thread, too.
#[unsafe(no_mangle)]
static RUN_QUEUE_BY_THREAD: Global<u8> = Global::new(0);

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

/// Counts a wait for a CPU.
#[inline(always)]
pub fn record_run_queue(state: &ThreadState, ns: u64) {
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
pub fn record(kind: u32, id: u32, ns: u64) -> u32 {
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
