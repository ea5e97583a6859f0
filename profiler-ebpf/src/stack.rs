//! Stack capture, shared by all probes.

use core::ffi::c_void;

use aya_ebpf::{bindings::BPF_F_USER_STACK, helpers::generated::bpf_get_stack};
use profiler_common::{
    MAX_FRAMES,
    cpu::{
        FLAG_KERNEL_STACK_FAILED, FLAG_KERNEL_STACK_TRUNCATED, FLAG_USER_STACK_FAILED,
        FLAG_USER_STACK_TRUNCATED, SampleScratch,
    },
};

/// Room for one more frame than is kept: only a stack that fills it is known to be longer.
const STACK_BYTES: u32 = (MAX_FRAMES * 8) as u32;

/// Writes the current task's kernel and user stacks (frame pointers) to `scratch` and describes them in its
/// header. Returns the number of bytes of both.
///
/// # Safety
/// `ctx` must be the running program's context.
#[inline(always)]
pub unsafe fn capture(ctx: *mut c_void, scratch: &mut SampleScratch) -> u64 {
    let frames = scratch.frames.as_mut_ptr();
    let mut flags = 0;

    // SAFETY: `frames` has room for STACK_BYTES.
    let kernel = unsafe { bpf_get_stack(ctx, frames.cast(), STACK_BYTES, 0) };
    let kernel_bytes = if kernel < 0 {
        flags |= FLAG_KERNEL_STACK_FAILED;
        0
    } else {
        (kernel as u64) & 0x3ff
    };
    if kernel_bytes == u64::from(STACK_BYTES) {
        flags |= FLAG_KERNEL_STACK_TRUNCATED;
    }

    // SAFETY: kernel_bytes < 1024, so STACK_BYTES more still lie within the 2048 bytes of `frames`.
    let user = unsafe {
        bpf_get_stack(
            ctx,
            frames.cast::<u8>().add(kernel_bytes as usize).cast(),
            STACK_BYTES,
            u64::from(BPF_F_USER_STACK),
        )
    };
    let user_bytes = if user < 0 {
        flags |= FLAG_USER_STACK_FAILED;
        0
    } else {
        (user as u64) & 0x3ff
    };
    if user_bytes == u64::from(STACK_BYTES) {
        flags |= FLAG_USER_STACK_TRUNCATED;
    }

    scratch.header.flags = flags;
    scratch.header.kernel_frames = (kernel_bytes / 8) as u16;
    scratch.header.user_frames = (user_bytes / 8) as u16;
    kernel_bytes + user_bytes
}
