//! Frames of CPython: copied after the walk, since they lie in a list of their own.

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_probe_read_user};
use profiler_common::{
    MAX_FRAMES,
    cpu::SampleScratch,
    runtime::{
        AT_ONCE, Fingerprint,
        python::{FRAME_WORDS, OBJECT_WORDS, PythonFrame, PythonOffsets, SHORT_WORDS, cut_off},
    },
};

use super::builds::RUNTIMES;
use crate::{hash::mix, memory::UserMemory, offsets::OFF_TASK_THREAD_POINTER, task::read};

/// Adds the Python frames of the current thread to the entries that there are.
///
/// A global function in the verifier's sense, as `walk_stack`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn python_frames(scratch: *mut SampleScratch) -> u32 {
    // SAFETY: callers pass a valid scratch; the verifier, which cannot know, wants to see the check for null.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else { return 0 };
    let Some(offsets) = RUNTIMES.get(scratch.walk.process.offsets) else { return 0 };
    let offsets = &offsets.python;
    // Their number stays in memory, see `keep`.
    let first = scratch.walk.words;
    (scratch.chain.at, scratch.chain.hash) = (innermost(offsets), 0);
    go_along(scratch, scratch.walk.process.offsets, first, true);
    if scratch.chain.at != 0 {
        cut_off(&mut scratch.runtime, first, scratch.walk.words);
    }
    scratch.walk.fingerprint.python = scratch.chain.hash;
    scratch.walk.fingerprint.offsets = u64::from(scratch.walk.process.offsets);
    0
}

/// Goes along the frames from `scratch.chain` on, to the last that can be read.
#[inline(always)]
fn go_along(scratch: &mut SampleScratch, offsets: u32, first: u64, keep: bool) {
    for _ in 0..(MAX_FRAMES as u32).div_ceil(AT_ONCE) {
        if scratch.chain.at == 0 || python_some(scratch, offsets, first, keep.into()) == 0 {
            break;
        }
    }
}

/// Goes along some frames: adds them to the hash and, with `keep`, to the entries from the word of index `first` on. Returns
/// whether they could be read.
///
/// A global function in the verifier's sense, as `walk_stack`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn python_some(scratch: *mut SampleScratch, offsets: u32, first: u64, keep: u32) -> u32 {
    // SAFETY: as in `python_frames`.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else { return 0 };
    let Some(offsets) = RUNTIMES.get(offsets) else { return 0 };
    for _ in 0..AT_ONCE {
        if scratch.chain.at == 0 {
            break;
        }
        let Some(frame) = read_frame(&offsets.python, scratch.chain.at, &mut scratch.frame) else { return 0 };
        if keep != 0 {
            frame.keep(&mut scratch.runtime, first, &mut scratch.walk.words);
        }
        scratch.chain.hash = add_to_hash(scratch.chain.hash, &frame);
        scratch.chain.at = frame.caller;
    }
    1
}

/// Whether the current thread still has the same Python frames; they are read to `scratch`.
#[inline(always)]
pub fn is_same(print: &Fingerprint, scratch: *mut SampleScratch) -> bool {
    print.python == 0 || python_fingerprint(scratch, print.offsets as u32) == print.python
}

/// A hash of the Python frames of the current thread, by which they are known again; zero if there are none. They are
/// read to `scratch`.
///
/// A global function in the verifier's sense, as `walk_stack`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn python_fingerprint(scratch: *mut SampleScratch, offsets: u32) -> u64 {
    // SAFETY: as in `python_frames`.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else { return 0 };
    let Some(of) = RUNTIMES.get(offsets) else { return 0 };
    (scratch.chain.at, scratch.chain.hash) = (innermost(&of.python), 0);
    go_along(scratch, offsets, 0, false);
    scratch.chain.hash
}

/// The innermost frame of the current thread; zero if there is none.
#[inline(always)]
fn innermost(offsets: &PythonOffsets) -> u64 {
    let offset = OFF_TASK_THREAD_POINTER.load();
    if offset == 0 {
        return 0;
    }
    // SAFETY: returns the current task's address, only ever used through bpf_probe_read_kernel.
    let task = unsafe { bpf_get_current_task() };
    let Some(pointer) = read::<u64>(task, offset) else { return 0 };
    offsets.innermost(pointer, &UserMemory).unwrap_or(0)
}

/// The frame at an address. One read: what it takes is at the beginning of a frame in every version.
#[inline(always)]
fn read_frame(offsets: &PythonOffsets, at: u64, buffer: &mut [u64; FRAME_WORDS]) -> Option<PythonFrame> {
    let into = core::ptr::from_mut(buffer).cast();
    let (long, short) = (OBJECT_WORDS as u32 * 8, SHORT_WORDS as u32 * 8);
    // SAFETY: the helper checks the address and does not fault; the buffer has room for either.
    let error = unsafe {
        if offsets.has_objects() {
            bpf_probe_read_user(into, long, at as *const _)
        } else {
            bpf_probe_read_user(into, short, at as *const _)
        }
    };
    if error == 0 { Some(offsets.decode(buffer)) } else { None }
}

/// A step of the fingerprint's hash. Never zero.
#[inline(always)]
fn add_to_hash(hash: u64, frame: &PythonFrame) -> u64 {
    mix(hash ^ frame.code ^ u64::from(frame.position) << 48 ^ u64::from(frame.position)) | 1
}
