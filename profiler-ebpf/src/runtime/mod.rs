//! Frames of language runtimes: what is copied of them while a stack is walked. Layouts and what they mean are in
//! `profiler_common::runtime`. A process without a runtime pays a test.

use profiler_common::{
    cpu::{SAMPLE_FRAME_WORDS, SampleScratch},
    runtime::{AT_ONCE, CHAIN_FRAMES, ChainWalk, Fingerprint, InterpretedIn, PYTHON, RUNTIME_WORDS},
};

mod builds;
pub mod hotspot;
pub mod python;
pub mod v8;

/// Keeps the entry that the last step found, if it did, for the stack's frame of that index.
///
/// Their number is in memory, where the verifier does not follow it: it would check all that comes after for each number
/// that there can be.
#[inline(always)]
pub fn keep(scratch: &mut SampleScratch, frame: u64) {
    let [word, payload] = scratch.walk.entry;
    if word != 0 {
        let at = scratch.walk.words as usize & (RUNTIME_WORDS - 2);
        scratch.runtime[at] = word | (frame & 0x7f) << 56;
        scratch.runtime[at + 1] = payload;
        scratch.walk.words = (at + 2) as u64 & (RUNTIME_WORDS as u64 - 2);
    }
}

/// Adds the entries of frames that belong to no address, once the walk is over.
#[inline(always)]
pub fn keep_lists(scratch: &mut SampleScratch) {
    if scratch.walk.process.runtimes & PYTHON != 0 {
        python::python_frames(scratch);
    }
}

/// Whether the stack of the current task that has this fingerprint still has the same functions.
#[inline(always)]
pub fn is_same(print: &Fingerprint, scratch: *mut SampleScratch) -> bool {
    chains_are_same(print, scratch) && python::is_same(print, scratch)
}

/// Whether what tells the functions of the frames in its chains is what it was.
#[inline(always)]
fn chains_are_same(print: &Fingerprint, scratch: *mut SampleScratch) -> bool {
    if print.count == 0 {
        return true;
    }
    if print.is_partial() {
        return false;
    }
    // SAFETY: a map's value, this CPU's own.
    let walk = unsafe { &mut (*scratch).chain };
    walk.hash = 0;
    for (i, chain) in print.chains.iter().enumerate() {
        if i as u64 >= print.count {
            break;
        }
        (walk.at, walk.left) = (chain.first, chain.frames.into());
        if chain_fingerprint(walk, chain.kind) == 0 {
            return false;
        }
    }
    walk.hash == print.hash
}

/// Adds all frames of a chain to its hash. Returns whether they could be read. A global function in the verifier's sense, as
/// `walk_stack`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn chain_fingerprint(chain: *mut ChainWalk, kind: u32) -> u32 {
    // SAFETY: callers pass a valid chain; the verifier, which cannot know, wants to see the check for null.
    let Some(chain) = (unsafe { chain.as_mut() }) else { return 0 };
    for _ in 0..CHAIN_FRAMES / AT_ONCE {
        if chain.left == 0 {
            break;
        }
        let read = if kind == InterpretedIn::HotSpot as u32 {
            hotspot::hotspot_fingerprint(chain)
        } else {
            v8::v8_fingerprint(chain)
        };
        if read == 0 {
            return 0;
        }
    }
    1
}

/// Puts the first `words` words of runtimes behind the addresses, of which there are so many. A global function in the
/// verifier's sense, as `walk_stack`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn append_runtime_words(scratch: *mut SampleScratch, addresses: u64, words: u64) -> u32 {
    // SAFETY: callers pass a valid scratch; the verifier, which cannot know, wants to see the check for null.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else { return 0 };
    for i in 0..RUNTIME_WORDS as u64 {
        if i >= words {
            break;
        }
        scratch.frames[(addresses + i) as usize & (SAMPLE_FRAME_WORDS - 1)] = scratch.runtime[i as usize];
    }
    0
}
