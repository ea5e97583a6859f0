//! Frames of HotSpot: the steps of the walk through them.

use profiler_common::{
    mapping::Walk,
    runtime::{
        AT_ONCE, ChainWalk,
        hotspot::{At, BELOW, FrameWords, SAVED, Stepped, add_to_fingerprint, entry, fingerprint_step},
    },
    unwind::{Memory as _, Step, StopReason},
};

use super::builds::RUNTIMES;
use crate::{hash::mix, memory::UserMemory};

/// It is no frame of HotSpot.
pub const OTHER: u32 = 0;
/// The registers are the caller's now.
pub const STEPPED: u32 = 1;
/// The caller is to be searched for.
pub const SEARCH: u32 = 2;
/// The stack cannot be followed further: added to a `StopReason`.
pub const STOPPED: u32 = 3;

/// Steps to the caller's frame, if the current one is HotSpot's. `exact` as in [`Walk`], of the current frame; `mapped` is not
/// zero if the frame that it called is in a mapping with a table.
///
/// A global function in the verifier's sense, as `unwind_frame`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn hotspot_step(walk: *mut Walk, exact: u64, mapped: u64) -> u32 {
    // SAFETY: callers pass a valid walk; the verifier, which cannot know, wants to see the check for null.
    let Some(walk) = (unsafe { walk.as_mut() }) else { return OTHER };
    let Some(offsets) = RUNTIMES.get(walk.process.offsets) else { return OTHER };
    let (print, told, words) = (&mut walk.fingerprint, &mut walk.entry, &mut walk.frame);
    let at = match (exact, mapped) {
        (1, _) => At::Instruction,
        (_, 0) => At::CallOfCode,
        _ => At::CallOfOther,
    };
    let step = offsets.hotspot.step(&mut walk.registers, at, &UserMemory, words, |fp, words| {
        add_to_fingerprint(print, fp, words, mix);
        *told = entry(words).encode();
    });
    match step {
        None => OTHER,
        Some(Stepped::Nowhere) => SEARCH,
        Some(Stepped::Done(step)) => outcome(step),
    }
}

/// Steps to the caller of a frame of which [`hotspot_step`] says so, if it is found among some words of the stack from the one of
/// index `first` on; else [`SEARCH`].
///
/// A global function in the verifier's sense, and not a part of the other: the verifier would follow its loop for each way
/// that leads to it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn hotspot_search(walk: *mut Walk, first: u64) -> u32 {
    // SAFETY: as in `hotspot_step`.
    let Some(walk) = (unsafe { walk.as_mut() }) else { return OTHER };
    let Some(offsets) = RUNTIMES.get(walk.process.offsets) else { return OTHER };
    offsets.hotspot.search(&mut walk.registers, first, &UserMemory).map_or(SEARCH, outcome)
}

#[inline(always)]
fn outcome(step: Step) -> u32 {
    match step {
        Step::Continue => STEPPED,
        // None of its frames is a thread's first.
        Step::End => STOPPED + StopReason::NoProgress as u32,
        Step::Stop(reason) => STOPPED + reason as u32,
    }
}

/// Adds some frames of a chain to its hash. Returns whether they could be read.
///
/// A global function in the verifier's sense, as `walk_stack`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn hotspot_fingerprint(chain: *mut ChainWalk) -> u32 {
    // SAFETY: as in `hotspot_step`.
    let Some(chain) = (unsafe { chain.as_mut() }) else { return 0 };
    for _ in 0..AT_ONCE {
        if chain.left == 0 {
            break;
        }
        let mut words: FrameWords = [0; 10];
        if UserMemory.read_words(chain.at.wrapping_sub(BELOW), &mut words).is_none() {
            return 0;
        }
        chain.hash = fingerprint_step(chain.hash, &words, mix);
        chain.at = words[SAVED];
        chain.left -= 1;
    }
    1
}
