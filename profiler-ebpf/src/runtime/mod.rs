//! Frames of language runtimes: what is copied of them while a stack is walked. Layouts and what they mean are in
//! `profiler_common::runtime`. A process without a runtime pays a test.

use profiler_common::{
    cpu::{SAMPLE_FRAME_WORDS, SampleScratch},
    runtime::{Fingerprint, InterpretedIn, PYTHON, RUNTIME_WORDS},
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
    chains_are_same(print) && python::is_same(print, scratch)
}

/// Whether what tells the functions of the frames in its chains is what it was.
#[inline(always)]
fn chains_are_same(print: &Fingerprint) -> bool {
    if print.count == 0 {
        return true;
    }
    if print.is_partial() {
        return false;
    }
    let mut hash = 0;
    for (i, chain) in print.chains.iter().enumerate() {
        if i as u64 >= print.count {
            break;
        }
        hash = if chain.kind == InterpretedIn::HotSpot as u32 {
            hotspot::hotspot_fingerprint(chain.first, chain.frames, hash)
        } else {
            v8::v8_fingerprint(chain.first, chain.frames, hash)
        };
    }
    hash == print.hash
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
