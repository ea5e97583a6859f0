//! What programs on breakpoints in user code have in common.

use aya_ebpf::{
    EbpfContext, btf_maps::ProgramArray, helpers::generated::bpf_get_attach_cookie, macros::btf_map,
};

/// Never filled, see [`nothing`].
#[btf_map]
static NOWHERE: ProgramArray<1> = ProgramArray::new();

/// Does nothing, by a tail call to nowhere, which keeps the program's stack where it belongs.
///
/// From 6.13 on, the stack of a program with much on it is memory of the CPU ("private stack", arch/x86/net/bpf_jit_comp.c).
/// That takes for granted that no other task runs the program on the same CPU before it is done, which nobody makes sure
/// of for user probes: where the kernel can be preempted, one task overwrites the other's stack, and the kernel crashes
/// (seen on 7.3). A program that has a tail call never has a private stack.
#[inline(always)]
pub fn nothing(ctx: &impl EbpfContext) -> u32 {
    // SAFETY: the context of this program. There is nothing in the array, so it goes on here.
    unsafe { NOWHERE.tail_call(ctx, 0) };
    0
}

/// What the breakpoint tells the program.
#[inline(always)]
pub fn cookie(ctx: &impl EbpfContext) -> u8 {
    // SAFETY: the context of this program.
    unsafe { bpf_get_attach_cookie(ctx.as_ptr()) as u8 }
}
