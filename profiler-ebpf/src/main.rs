//! The kernel side: one file per probe, and what the probes share (`target`, `output`, `stack`).
#![no_std]
#![no_main]
// The target has no compare-and-swap, so `core` leaves out all atomic arithmetic, which the kernel does have.
#![feature(core_intrinsics)]
#![allow(internal_features)]

mod alloc;
mod cpu;
mod fault;
mod loops;
mod name;
mod output;
mod sched;
mod stack;
mod stack_cache;
mod syscall;
mod target;
mod unwind;
mod waker;

// Helpers that only GPL-compatible programs may call (bpf_probe_read_*, bpf_get_stack) are used throughout.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: the verifier rejects a program that can get here, so nothing ever does.
    unsafe { core::hint::unreachable_unchecked() }
}
