//! The kernel side. Probes: `cpu`, `fault`, `sched` with `loops`, `loop_hooks` and `waker`, `syscall` with `caller` and `descriptor_io`,
//! `alloc` with `stack_cache`, `request` with `asked`, `tls` and `tls_calls`. What they share: `target` and `life` say whose it is, `task` and `descriptor` read the
//! kernel, `stack` and `unwind` take stacks, `runtime` what tells frames of language runtimes, `output` and `emit` lead out; `user_probe` is for
//! programs in user code.
#![no_std]
#![no_main]
// The target has no compare-and-swap, so `core` leaves out all atomic arithmetic, which the kernel does have.
#![feature(core_intrinsics)]
#![allow(internal_features)]

mod alloc;
mod asked;
mod call_wait;
mod caller;
mod cpu;
mod delayed_dequeue;
mod descriptor;
mod descriptor_io;
mod emit;
mod fault;
mod hash;
mod histogram;
mod life;
mod loop_hooks;
mod loops;
mod maps;
mod memory;
mod offsets;
mod output;
mod request;
mod rule_cache;
mod runtime;
mod sched;
mod stack;
mod stack_cache;
mod syscall;
mod target;
mod task;
mod tls;
mod tls_calls;
mod unwind;
mod user_probe;
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
