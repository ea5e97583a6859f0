//! Stack capture, shared by all probes.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{BPF_F_USER_STACK, bpf_user_pt_regs_t},
    helpers::generated::bpf_get_stack,
};
use profiler_common::{
    MAX_FRAMES,
    cpu::{
        FLAG_KERNEL_STACK_FAILED, FLAG_KERNEL_STACK_TRUNCATED, FLAG_USER_END_SHIFT, FLAG_USER_STACK_FAILED,
        FLAG_USER_STACK_TRUNCATED, SAMPLE_FRAME_WORDS, SampleScratch, StackEnd,
    },
    runtime::{Fingerprint, RUNTIME_WORDS},
};

use crate::{hash::mix, unwind};

/// The longest stack that is kept.
const STACK_BYTES: u32 = (MAX_FRAMES * 8) as u32;

/// How user stacks are followed: chosen when a program is compiled, because a kernel before 5.15 has not all that
/// the unwinder calls and refuses a program that mentions it.
pub trait Unwind {
    const TABLES: bool;
}

/// By unwind tables, and by frame pointers where there are none.
pub struct Tables;

impl Unwind for Tables {
    const TABLES: bool = true;
}

/// By frame pointers only.
pub struct FramePointers;

impl Unwind for FramePointers {
    const TABLES: bool = false;
}

/// Writes the current task's kernel and user stacks to `scratch` and describes them in its header. The user stack
/// is unwound by tables if there are any for process `pid`, else by frame pointers. Returns the number of bytes of
/// both.
///
/// # Safety
/// `ctx` must be the running program's context, `interrupted` the registers it interrupted, if any.
#[inline(always)]
pub unsafe fn capture<U: Unwind>(
    ctx: *mut c_void,
    interrupted: Option<&bpf_user_pt_regs_t>,
    pid: u32,
    scratch: &mut SampleScratch,
) -> u64 {
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

    let mut runtime_words = 0;
    let start = if U::TABLES { unwind::start(pid, interrupted) } else { None };
    let user_bytes = match start {
        Some((process, registers)) => {
            unwind::begin(&mut scratch.walk, registers, process, 1);
            let walked = unwind::walk_stack(scratch, kernel_bytes / 8);
            flags |= ((walked >> 32) as u32) << FLAG_USER_END_SHIFT;
            runtime_words = (walked >> unwind::WALKED_WORDS) & (RUNTIME_WORDS as u64 - 2);
            ((walked & 0x7f) * 8) & 0x3ff
        }
        None => {
            scratch.walk.fingerprint = Fingerprint::default();
            // SAFETY: kernel_bytes < 1024, so STACK_BYTES more still lie within the 4096 bytes of `frames`.
            let user = unsafe {
                bpf_get_stack(
                    ctx,
                    frames.cast::<u8>().add(kernel_bytes as usize).cast(),
                    STACK_BYTES,
                    u64::from(BPF_F_USER_STACK),
                )
            };
            if user < 0 {
                flags |= FLAG_USER_STACK_FAILED;
                0
            } else {
                let user_bytes = (user as u64) & 0x3ff;
                flags |= (StackEnd::FramePointers as u32) << FLAG_USER_END_SHIFT;
                if user_bytes == u64::from(STACK_BYTES) {
                    flags |= FLAG_USER_STACK_TRUNCATED;
                }
                user_bytes
            }
        }
    };

    scratch.header.flags = flags;
    scratch.header.kernel_frames = (kernel_bytes / 8) as u16;
    scratch.header.user_frames = (user_bytes / 8) as u16;
    scratch.header.runtime_words = runtime_words as u16;
    kernel_bytes + user_bytes + runtime_words * 8
}

/// A hash of the first `words` addresses. Global for the same reason as `walk_stack`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn hash_stack(scratch: *const SampleScratch, words: u64, seed: u64) -> u64 {
    // SAFETY: callers pass a valid scratch; the verifier, which cannot know, wants to see the check for null.
    let Some(scratch) = (unsafe { scratch.as_ref() }) else { return 0 };
    let mut hash = mix(seed);
    for i in 0..SAMPLE_FRAME_WORDS {
        if i as u64 >= words {
            break;
        }
        hash = mix(hash ^ scratch.frames[i]);
    }
    hash
}
