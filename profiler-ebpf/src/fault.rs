//! The sampler of page faults: where a process touches memory that it has not got yet, which is how it grows.

use aya_ebpf::{
    EbpfContext as _,
    btf_maps::PerCpuArray,
    macros::{btf_map, perf_event},
    programs::PerfEventContext,
};
use profiler_common::{
    cost::Probe,
    cpu::{SAMPLE_HEADER_LEN, SampleScratch},
    loss::Loss,
    record::RecordKind,
};

use crate::{
    output::{charge, count, now_ns, send},
    stack::{self, Tables},
    target::current_target,
};

/// One per CPU: page faults are counted where no other task can run.
#[btf_map]
static FAULT_SCRATCH: PerCpuArray<SampleScratch, 1> = PerCpuArray::new();

/// Takes the stack of one page fault in so many as the sampling period says.
#[perf_event]
pub fn fault_sample(ctx: PerfEventContext) -> u32 {
    let Some(ids) = current_target() else { return 0 };
    let now = now_ns();
    let Some(scratch) = FAULT_SCRATCH.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's own slot, see FAULT_SCRATCH.
    let scratch = unsafe { &mut *scratch };
    // SAFETY: the context of this program, which begins with the registers.
    let bytes = unsafe { stack::capture::<Tables>(ctx.as_ptr(), Some(&(*ctx.ctx).regs), ids.pid, scratch) };
    let header = &mut scratch.header;
    header.kind = RecordKind::FaultSample as u32;
    header.time_ns = now;
    header.pid = ids.pid;
    header.tid = ids.tid;
    // SAFETY: header and stacks lie one after the other in the scratch, and bytes is below 4096.
    if !unsafe { send(core::ptr::from_ref(scratch).cast(), SAMPLE_HEADER_LEN as u64 + (bytes & 0xfff)) } {
        count(Loss::RecordsLost);
    }
    charge(Probe::Fault, now);
    0
}
