//! The on-CPU sampler: a perf software clock fires on each CPU at a fixed period; what it interrupts is a
//! sample if it belongs to the target.

use aya_ebpf::{
    EbpfContext as _, Global,
    btf_maps::PerCpuArray,
    helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, generated::bpf_get_smp_processor_id},
    macros::{btf_map, perf_event},
    programs::PerfEventContext,
};
use profiler_common::{
    cost::Probe,
    cpu::{RAN_LEN, Ran, SAMPLE_HEADER_LEN, SampleScratch, Seen},
    loss::{Loss, Tally},
    record::RecordKind,
};

use crate::{
    output::{charge, count, now_ns, send, tally},
    stack::{self, FramePointers, Tables, Unwind},
    target::current_target,
};

/// One per CPU: the clock's interrupt does not nest.
#[btf_map]
static CPU_SCRATCH: PerCpuArray<SampleScratch, 1> = PerCpuArray::new();

/// Who ran on each CPU lately, target or not: threads that wait for a CPU want to know who has it.
#[btf_map]
static RAN: PerCpuArray<Ran, 1> = PerCpuArray::new();
/// Whether to keep that.
#[unsafe(no_mangle)]
static KEEP_RAN: Global<u8> = Global::new(0);

/// Takes one sample of the interrupted task.
#[perf_event]
pub fn cpu_sample(ctx: PerfEventContext) -> u32 {
    sample::<Tables>(&ctx)
}

/// The same for kernels that cannot verify the unwinder, and for those who do not want it.
#[perf_event]
pub fn cpu_sample_fp(ctx: PerfEventContext) -> u32 {
    sample::<FramePointers>(&ctx)
}

#[inline(always)]
fn sample<U: Unwind>(ctx: &PerfEventContext) -> u32 {
    if KEEP_RAN.load() != 0 {
        note_who_ran();
    }
    let Some(ids) = current_target() else { return 0 };
    let time_ns = now_ns();
    tally(Tally::SamplesTaken);
    let Some(scratch) = CPU_SCRATCH.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's own slot, see CPU_SCRATCH.
    let scratch = unsafe { &mut *scratch };

    // SAFETY: the context of this program, which begins with the registers.
    let stack_bytes = unsafe { stack::capture::<U>(ctx.as_ptr(), Some(&(*ctx.ctx).regs), ids.pid, scratch) };
    let header = &mut scratch.header;
    header.kind = RecordKind::CpuSample as u32;
    header.time_ns = time_ns;
    header.pid = ids.pid;
    header.tid = ids.tid;
    // SAFETY: no arguments.
    header.cpu = unsafe { bpf_get_smp_processor_id() as u16 };
    header.comm = bpf_get_current_comm().unwrap_or_default();

    // SAFETY: header and stacks lie one after the other in the scratch, and stack_bytes is below 4096.
    let sent = unsafe {
        send(core::ptr::from_ref(scratch).cast(), SAMPLE_HEADER_LEN as u64 + (stack_bytes & 0xfff))
    };
    if !sent {
        count(Loss::RingBufferFull);
    }
    charge(Probe::Cpu, time_ns);
    0
}

#[inline(always)]
fn note_who_ran() {
    let Some(ran) = RAN.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's own slot, see CPU_SCRATCH.
    let ran = unsafe { &mut *ran };
    let both = bpf_get_current_pid_tgid();
    ran.seen[ran.next as usize % RAN_LEN] = Seen {
        time_ns: now_ns(),
        pid: (both >> 32) as u32,
        tid: both as u32,
        comm: bpf_get_current_comm().unwrap_or_default(),
    };
    ran.next += 1;
}
