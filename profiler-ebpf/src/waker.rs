//! Who ends a block: the thread, or the interrupt, that wakes one of the target's. Attached on request only, since
//! every wake-up on the machine passes here.

use aya_ebpf::{
    EbpfContext as _,
    btf_maps::PerCpuArray,
    helpers::bpf_get_current_comm,
    macros::{btf_map, raw_tracepoint},
    programs::RawTracePointContext,
};
use profiler_common::{
    COMM_LEN,
    cost::Probe,
    cpu::{SAMPLE_FRAME_WORDS, SampleScratch},
    loss::Loss,
    record::RecordKind,
    sched::{Phase, ThreadState},
};

use crate::{
    emit::{emit_stack, take_from_budget},
    hash::mix,
    offsets::{OFF_TASK_PID, OFF_TASK_STACK, OFF_TASK_TGID},
    output::{charge, count, now_ns},
    sched::{MAX_REUSED, THREADS},
    stack::{self, Tables},
    target::{Ids, ONLY_TGID, current_ids},
    task::{current_task, load, read, syscall_entry},
};

/// Size of a task's kernel stack with 4 KiB pages, x86_64 and aarch64; larger ones are only in debugging kernels.
const THREAD_SIZE: u64 = 16 * 1024;

/// One per CPU: wake-ups happen with interrupts off.
#[btf_map]
static WAKER_SCRATCH: PerCpuArray<SampleScratch, 1> = PerCpuArray::new();

/// Stacks of wakers that a CPU takes in a slice of time: about 1 % of it.
const WAKERS_PER_SLICE: u32 = 32;

/// A task is about to be woken by the current one, or by an interrupt of it.
#[raw_tracepoint(tracepoint = "sched_waking")]
pub fn sched_waking(ctx: RawTracePointContext) -> u32 {
    // SAFETY: the task is the first argument (include/trace/events/sched.h).
    let woken = unsafe { *ctx.as_ptr().cast::<u64>() };
    let only = ONLY_TGID.load();
    if only != 0 && read::<u32>(woken, OFF_TASK_TGID.load()) != Some(only) {
        return 0;
    }
    let Some(tid) = read::<u32>(woken, OFF_TASK_PID.load()) else { return 0 };
    let Some(state) = THREADS.get_ptr_mut(&tid) else { return 0 };
    // SAFETY: the entry stays where it is, and while its thread is blocked nobody else has to do with it.
    let state = unsafe { &mut *state };
    if state.phase != Phase::Blocked as u32 || state.waker != 0 {
        return 0;
    }
    let now = now_ns();
    note_waker(&ctx, state, now);
    charge(Probe::Waker, now);
    0
}

/// Makes `state.waker` what wakes the thread. A thread that wakes it with the same registers as before is taken to have
/// the same stack, as with blocks.
#[inline(always)]
fn note_waker(ctx: &RawTracePointContext, state: &mut ThreadState, now: u64) {
    let Some(scratch) = WAKER_SCRATCH.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's own slot, see WAKER_SCRATCH.
    let scratch = unsafe { &mut *scratch };
    let task = current_task();
    let Ids { pid, tid } = current_ids().unwrap_or(Ids { pid: 0, tid: 0 });
    let who = u64::from(pid) << 32 | u64::from(tid);
    // The tracepoint's arguments lie on the stack that the kernel is on: interrupts have one of their own. Whatever was
    // interrupted, its registers say nothing about the wake-up.
    let here = address(scratch, ctx.as_ptr() as u64);
    let in_call = here.wrapping_sub(load::<u64>(task, OFF_TASK_STACK.load())) < THREAD_SIZE;
    let key = if in_call {
        let entry = syscall_entry(task);
        mix(entry.stack_key ^ mix(who ^ entry.number as u64)) | 1
    } else {
        0
    };
    let same = key != 0 && key == state.waker_key;
    let known = same && state.waker_reused < MAX_REUSED;
    let may_take = !known && take_from_budget(now, |budget| &mut budget.wakers, WAKERS_PER_SLICE);
    if same && !may_take {
        state.waker_reused += 1;
        state.waker = state.last_waker;
        return;
    }
    let bytes = if may_take {
        // SAFETY: the context of this program.
        unsafe { stack::capture::<Tables>(ctx.as_ptr(), None, pid, scratch) }
    } else {
        count(Loss::OffCpuStacksSkipped);
        scratch.header.flags = 0;
        scratch.header.kernel_frames = 0;
        scratch.header.user_frames = 0;
        scratch.header.runtime_words = 0;
        0
    };
    scratch.header.pid = pid;
    scratch.header.tid = tid;
    scratch.header.time_ns = now;
    // The name goes behind the addresses: its process may be gone before anybody can ask for it.
    let name = bpf_get_current_comm().unwrap_or_default();
    let (at, words) = ((bytes / 8) as usize, name.as_chunks::<8>().0);
    scratch.frames[at & (SAMPLE_FRAME_WORDS - 1)] = u64::from_ne_bytes(words[0]);
    scratch.frames[(at + 1) & (SAMPLE_FRAME_WORDS - 1)] = u64::from_ne_bytes(words[1]);
    state.waker = emit_stack(scratch, RecordKind::Waker as u32, bytes, COMM_LEN as u64, mix(who));
    if bytes != 0 {
        // Frames of a runtime can be other functions' next time, with the same registers.
        state.waker_key = if scratch.header.runtime_words == 0 { key } else { 0 };
        state.last_waker = state.waker;
        state.waker_reused = 0;
    }
}

/// A pointer as a number: arithmetic with it is not allowed before it has been to memory.
#[inline(always)]
fn address(scratch: &mut SampleScratch, pointer: u64) -> u64 {
    let place = core::ptr::from_mut(&mut scratch.frames[0]);
    // SAFETY: a valid place; volatile, since otherwise the pointer would not go there.
    unsafe {
        place.write_volatile(pointer);
        place.read_volatile()
    }
}
