//! What the kernel programs and userspace must agree on: record layouts, map keys, limits; and the pure
//! logic that runs in the kernel but needs no kernel to be tested.
#![no_std]

pub mod alloc;
pub mod cost;
pub mod cpu;
pub mod descriptor;
pub mod histogram;
pub mod loss;
pub mod majority;
pub mod mapping;
pub mod offsets;
pub mod record;
pub mod request;
pub mod runtime;
pub mod sched;
pub mod syscall;
mod table;
pub mod target;
pub mod tls;
pub mod unwind;

/// Most frames kept of one stack, for kernel and user stacks each. It is the kernel's own default limit
/// (`kernel.perf_event_max_stack` = 127).
pub const MAX_FRAMES: usize = 127;

/// Length of a thread name in the kernel (`TASK_COMM_LEN`), NUL included, in bytes.
pub const COMM_LEN: usize = 16;
