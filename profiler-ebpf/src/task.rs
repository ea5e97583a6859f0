//! The running kernel's tasks: where their members are, the registers and arguments that they entered the kernel with.

#[cfg(not(bpf_target_arch = "aarch64"))]
use core::mem::offset_of;

use aya_ebpf::{
    bindings::bpf_user_pt_regs_t,
    helpers::{
        bpf_probe_read_kernel,
        generated::{bpf_get_current_task_btf, bpf_task_pt_regs},
    },
};
#[cfg(not(bpf_target_arch = "aarch64"))]
use profiler_common::sched::MAX_SYSCALLS;
use profiler_common::unwind::Registers;

use crate::{
    hash::mix,
    offsets::{
        OFF_CFS_RQ_RQ, OFF_RQ_CLOCK, OFF_TASK_CFS_RQ, OFF_TASK_LAST_ARRIVAL, OFF_TASK_PCOUNT,
        OFF_TASK_RUN_DELAY, OFF_TASK_STACK,
    },
};

/// Reads a member of a kernel structure.
#[inline(always)]
pub fn read<T>(base: u64, offset: u32) -> Option<T> {
    // SAFETY: bpf_probe_read_kernel checks the address; a bad one is an error, not a fault.
    unsafe { bpf_probe_read_kernel((base + u64::from(offset)) as *const T) }.ok()
}

/// The current task, as the verifier knows it.
#[inline(always)]
pub fn current_task() -> *const u8 {
    // SAFETY: no arguments.
    unsafe { bpf_get_current_task_btf() as *const u8 }
}

/// The registers with which `task`, as [`current_task`] returns it, entered the kernel.
#[inline(always)]
pub fn saved_registers(task: *const u8) -> *const u8 {
    // SAFETY: takes and returns pointers that the verifier knows.
    unsafe { bpf_task_pt_regs(task.cast_mut().cast()) as *const u8 }
}

/// Reads a member of a kernel structure that the verifier knows `base` to point to: a plain load, which the kernel makes
/// good for any address.
#[inline(always)]
pub fn load<T: Copy>(base: *const u8, offset: u32) -> T {
    // SAFETY: the verifier checks that the structure has such a member.
    unsafe { base.add(offset as usize).cast::<T>().read_volatile() }
}

/// What the scheduler keeps of a task.
#[derive(Clone, Copy)]
pub struct SchedInfo {
    /// How often it has got a CPU.
    pub arrivals: u64,
    /// How long it has waited for one in all, ns.
    pub run_delay_ns: u64,
    /// When it last got one, by the scheduler's clock, ns.
    pub last_arrival_ns: u64,
}

#[inline(always)]
pub fn sched_info(task: *const u8) -> SchedInfo {
    SchedInfo {
        arrivals: load(task, OFF_TASK_PCOUNT.load()),
        run_delay_ns: load(task, OFF_TASK_RUN_DELAY.load()),
        last_arrival_ns: load(task, OFF_TASK_LAST_ARRIVAL.load()),
    }
}

/// The scheduler's clock on this CPU when it was last brought up to date, which it has been when a task leaves. ns.
#[inline(always)]
pub fn scheduler_clock_ns(task: *const u8) -> u64 {
    let cfs_rq: *const u8 = load(task, OFF_TASK_CFS_RQ.load());
    let rq: *const u8 = load(cfs_rq, OFF_CFS_RQ_RQ.load());
    load(rq, OFF_RQ_CLOCK.load())
}

/// How often the current task has got a CPU: a plain load, so that a system call that never left it costs no more.
#[inline(always)]
pub fn arrivals(task: *const u8) -> u64 {
    load(task, OFF_TASK_PCOUNT.load())
}

/// Where the current task's kernel stack begins. A load would be a pointer, in the eyes of the verifier.
#[inline(always)]
pub fn kernel_stack() -> u64 {
    read(current_task() as u64, OFF_TASK_STACK.load()).unwrap_or(0)
}

#[cfg(not(bpf_target_arch = "aarch64"))]
#[inline(always)]
pub fn is_user(regs: &bpf_user_pt_regs_t) -> bool {
    // 64-bit user code only: __USER_CS, arch/x86/include/asm/segment.h.
    regs.cs == 0x33
}

#[cfg(not(bpf_target_arch = "aarch64"))]
#[inline(always)]
pub fn registers(regs: &bpf_user_pt_regs_t) -> Registers {
    Registers { ip: regs.rip, sp: regs.rsp, fp: regs.rbp, lr: 0 }
}

/// The user's registers at `regs`; `None` for a kernel thread.
#[cfg(not(bpf_target_arch = "aarch64"))]
#[inline(always)]
pub fn user_registers(regs: u64) -> Option<Registers> {
    // In the order of struct pt_regs, arch/x86/include/asm/ptrace.h.
    let [ip, cs, _flags, sp]: [u64; 4] = read(regs, offset_of!(bpf_user_pt_regs_t, rip) as u32)?;
    let fp = read(regs, offset_of!(bpf_user_pt_regs_t, rbp) as u32)?;
    if cs == 0x33 { Some(Registers { ip, sp, fp, lr: 0 }) } else { None }
}

/// The user's registers at `regs`; `None` for a kernel thread.
#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
pub fn user_registers(regs: u64) -> Option<Registers> {
    // In the order of struct user_pt_regs, arch/arm64/include/uapi/asm/ptrace.h.
    let [fp, lr, sp, ip, pstate]: [u64; 5] = read(regs, 29 * 8)?;
    if pstate & 0x1f == 0 { Some(Registers { ip, sp, fp, lr }) } else { None }
}

#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
pub fn is_user(regs: &bpf_user_pt_regs_t) -> bool {
    // PSR_MODE_EL0t without the 32-bit bit: arch/arm64/include/uapi/asm/ptrace.h.
    regs.pstate & 0x1f == 0
}

#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
pub fn registers(regs: &bpf_user_pt_regs_t) -> Registers {
    Registers { ip: regs.pc, sp: regs.sp, fp: regs.regs[29], lr: regs.regs[30] }
}

/// The first argument of a task's system call.
#[inline(always)]
pub fn first_argument(task: *const u8, compat: bool) -> u64 {
    let regs = saved_registers(task);
    if compat { u64::from(load::<u32>(regs, COMPAT_ARGUMENTS[0])) } else { load(regs, ARGUMENTS[0]) }
}

/// All six.
#[inline(always)]
pub fn arguments(compat: bool) -> [u64; 6] {
    let regs = saved_registers(current_task());
    if compat {
        return COMPAT_ARGUMENTS.map(|offset| u64::from(load::<u32>(regs, offset)));
    }
    ARGUMENTS.map(|offset| load(regs, offset))
}

/// Where the arguments are among the registers.
#[cfg(not(bpf_target_arch = "aarch64"))]
const ARGUMENTS: [u32; 6] = [
    offset_of!(bpf_user_pt_regs_t, rdi) as u32,
    offset_of!(bpf_user_pt_regs_t, rsi) as u32,
    offset_of!(bpf_user_pt_regs_t, rdx) as u32,
    offset_of!(bpf_user_pt_regs_t, r10) as u32,
    offset_of!(bpf_user_pt_regs_t, r8) as u32,
    offset_of!(bpf_user_pt_regs_t, r9) as u32,
];

/// Those of 32-bit calls: syscall(2), "Architecture calling conventions".
#[cfg(not(bpf_target_arch = "aarch64"))]
const COMPAT_ARGUMENTS: [u32; 6] = [
    offset_of!(bpf_user_pt_regs_t, rbx) as u32,
    offset_of!(bpf_user_pt_regs_t, rcx) as u32,
    offset_of!(bpf_user_pt_regs_t, rdx) as u32,
    offset_of!(bpf_user_pt_regs_t, rsi) as u32,
    offset_of!(bpf_user_pt_regs_t, rdi) as u32,
    offset_of!(bpf_user_pt_regs_t, rbp) as u32,
];

#[cfg(bpf_target_arch = "aarch64")]
const COMPAT_ARGUMENTS: [u32; 6] = ARGUMENTS;

/// The first one's register has the result in the end: it is kept after the user's registers, with the call's number
/// (struct pt_regs, arch/arm64/include/asm/ptrace.h).
#[cfg(bpf_target_arch = "aarch64")]
const ARGUMENTS: [u32; 6] = [size_of::<bpf_user_pt_regs_t>() as u32, 8, 16, 24, 32, 40];

/// Whether the current task's system call is one of the 32-bit table, whatever program makes it.
#[cfg(not(bpf_target_arch = "aarch64"))]
#[inline(always)]
pub fn is_compat(task: *const u8) -> bool {
    /// arch/x86/include/asm/thread_info.h
    const TS_COMPAT: u32 = 0x2;
    load::<u32>(task, crate::offsets::OFF_TASK_STATUS.load()) & TS_COMPAT != 0
}

/// Whether the current task's system call is one of the 32-bit table.
#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
pub fn is_compat(task: *const u8) -> bool {
    /// arch/arm64/include/uapi/asm/ptrace.h
    const PSR_MODE32_BIT: u64 = 0x10;
    load::<u64>(saved_registers(task), core::mem::offset_of!(bpf_user_pt_regs_t, pstate) as u32)
        & PSR_MODE32_BIT
        != 0
}

/// [`Entry::number`] of a thread that never was in user mode.
pub const KERNEL_THREAD: i32 = -2;

/// How the current task entered the kernel.
pub struct Entry {
    /// System call, negative for none.
    pub number: i32,
    pub args: [u64; 3],
    /// User stack pointer.
    pub sp: u64,
    /// Instruction, stack and frame pointer mixed.
    pub stack_key: u64,
}

#[cfg(not(bpf_target_arch = "aarch64"))]
#[inline(always)]
pub fn syscall_entry(task: *const u8) -> Entry {
    let regs = saved_registers(task);
    let at = |offset: usize| -> u64 { load(regs, offset as u32) };
    // 32-bit calls have numbers of their own. For exceptions the kernel sets orig_rax to -1.
    let number = at(offset_of!(bpf_user_pt_regs_t, orig_rax)) as i32;
    let number = if number >= 0 && is_compat(task) { MAX_SYSCALLS as i32 } else { number };
    let (ip, sp) = (at(offset_of!(bpf_user_pt_regs_t, rip)), at(offset_of!(bpf_user_pt_regs_t, rsp)));
    let number = if ip == 0 { KERNEL_THREAD } else { number };
    let args = [
        at(offset_of!(bpf_user_pt_regs_t, rdi)),
        at(offset_of!(bpf_user_pt_regs_t, rsi)),
        at(offset_of!(bpf_user_pt_regs_t, rdx)),
    ];
    let stack_key = mix(mix(ip) ^ sp) ^ at(offset_of!(bpf_user_pt_regs_t, rbp));
    Entry { number, args, sp, stack_key }
}

#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
pub fn syscall_entry(task: *const u8) -> Entry {
    // struct pt_regs, arch/arm64/include/asm/ptrace.h: the user's registers, orig_x0 and the number.
    const ORIG_X0: u32 = size_of::<bpf_user_pt_regs_t>() as u32;
    let regs = saved_registers(task);
    let register = |number: u32| -> u64 { load(regs, number * 8) };
    let stack_key = mix(mix(register(32)) ^ register(31)) ^ register(29); // pc, sp, fp
    Entry {
        number: load(regs, ORIG_X0 + 8),
        args: [load(regs, ORIG_X0), register(1), register(2)],
        sp: register(31),
        stack_key,
    }
}
