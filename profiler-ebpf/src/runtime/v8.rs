//! Frames of V8.

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use profiler_common::{
    mapping::Walk,
    runtime::{
        AT_ONCE, ChainWalk,
        v8::{BELOW, FrameWords, SAVED, add_to_fingerprint, entry, fingerprint_step, function},
    },
};

use super::builds::RUNTIMES;
use crate::hash::mix;

/// Copies what tells the function of the current frame, which is in code without unwind information. Returns the caller's
/// frame pointer and the return address, which have been read with it.
#[inline(always)]
pub fn note_frame(walk: &mut Walk) -> Option<[u64; 2]> {
    let fp = walk.registers.fp;
    let words = read_frame(fp)?;
    add_to_fingerprint(&mut walk.fingerprint, fp, &words, mix);
    if let Some(function) = function(&words)
        && let Some(offsets) = RUNTIMES.get(walk.process.offsets)
    {
        let mut shared = 0u64;
        let at = function.wrapping_add(u64::from(offsets.v8.shared));
        // SAFETY: the helper checks the address and does not fault.
        if unsafe { bpf_probe_read_user((&raw mut shared).cast(), 8, at as *const _) } == 0 {
            walk.entry = entry(0, shared, &words).encode();
        }
    }
    Some([words[SAVED], words[SAVED + 1]])
}

#[inline(always)]
fn read_frame(fp: u64) -> Option<FrameWords> {
    let mut words: FrameWords = [0; 7];
    let at = fp.wrapping_sub(BELOW);
    // SAFETY: the helper checks the address and does not fault.
    let error = unsafe { bpf_probe_read_user((&raw mut words).cast(), 56, at as *const _) };
    (error == 0).then_some(words)
}

/// Adds some frames of a chain to its hash. Returns whether they could be read.
///
/// A global function in the verifier's sense, as `walk_stack`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn v8_fingerprint(chain: *mut ChainWalk) -> u32 {
    // SAFETY: callers pass a valid chain; the verifier, which cannot know, wants to see the check for null.
    let Some(chain) = (unsafe { chain.as_mut() }) else { return 0 };
    for _ in 0..AT_ONCE {
        if chain.left == 0 {
            break;
        }
        let Some(words) = read_frame(chain.at) else { return 0 };
        chain.hash = fingerprint_step(chain.hash, &words, mix);
        chain.at = words[SAVED];
        chain.left -= 1;
    }
    1
}
