//! Most steps of a walk: rules are found in a cache by address, the stack is read a piece at a time. What a cached rule is and
//! how a step by it goes is in `profiler_common::unwind::cache`.
//!
//! The cache is shared by all CPUs without a lock: an entry that is half of one and half of another is no address's. An entry is
//! good for one epoch, the state of one process's mappings, which userspace changes whenever it changes those.

use aya_ebpf::{btf_maps::Array, helpers::generated::bpf_probe_read_user, macros::btf_map};
use profiler_common::{
    MAX_FRAMES,
    cpu::SampleScratch,
    unwind::{
        MAX_RULES, Rule,
        cache::{CACHED_RULES, CachedRule, WINDOW_BYTES, WINDOW_WORDS},
    },
};

/// The rules of all tables.
#[btf_map]
pub static RULES: Array<Rule, { MAX_RULES as usize }> = Array::new();

/// Those of some addresses.
#[btf_map]
static RULE_CACHE: Array<CachedRule, { CACHED_RULES as usize }> = Array::new();

/// What [`walk_known`] adds to the number of frames if the stack ends with the last of them.
pub const WALK_ENDED: u64 = 1 << 32;

/// What [`walk_known`] adds to it if there may be more.
pub const WALK_GOES_ON: u64 = 1 << 33;

/// Frames that [`walk_known`] goes through at once. The verifier checks its loop anew for each of them.
const AT_ONCE: usize = 16;

/// Walks on from the stack's frame of index `i` for some frames, for as long as rules are in the cache and nothing about the
/// stack is unusual. Returns how many frames there are then.
///
/// A global function in the verifier's sense, as `walk_stack`, which has not enough room on the stack for this.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn walk_known(scratch: *mut SampleScratch, i: u64) -> u64 {
    // SAFETY: callers pass a valid scratch; the verifier, which cannot know, wants to see the check for null.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else { return i };
    let mut i = i;
    for _ in 0..AT_ONCE {
        if i >= MAX_FRAMES as u64 {
            return i;
        }
        scratch.frames[scratch.place(i)] = scratch.walk.registers.ip;
        match step(scratch) {
            Stepped::ToCaller => i += 1,
            Stepped::End => return (i + 1) | WALK_ENDED,
            Stepped::Unknown => return i,
        }
    }
    i | WALK_GOES_ON
}

/// What a step came to.
enum Stepped {
    /// The registers are the caller's now.
    ToCaller,
    /// The frame was the outermost.
    End,
    /// Not known this way: the tables will tell.
    Unknown,
}

/// Steps to the caller's frame, if the rule is in the cache and nothing about the stack is unusual.
#[inline(always)]
fn step(scratch: &mut SampleScratch) -> Stepped {
    let walk = &scratch.walk;
    let address = walk.registers.ip.wrapping_sub(1 ^ walk.exact);
    let Some(entry) = RULE_CACHE.get_ptr(CachedRule::slot(address)) else { return Stepped::Unknown };
    // SAFETY: a map's value. Once: another CPU may write it meanwhile.
    let rule = unsafe { entry.read_volatile() };
    if !rule.is_of(address, walk.process.epoch) {
        return Stepped::Unknown;
    }
    if rule.ends() {
        return Stepped::End;
    }
    let places = rule.places(&walk.registers);
    if !scratch.window.has(&places) && fill_window(scratch, places.lowest()) == 0 {
        return Stepped::Unknown;
    }
    let walk = &mut scratch.walk;
    if !rule.step(&mut walk.registers, &places, &scratch.window) {
        return Stepped::Unknown;
    }
    walk.exact = 0;
    walk.was_mapped = 1;
    Stepped::ToCaller
}

/// Reads a piece of the current task's stack; returns whether any of it could be.
///
/// A global function in the verifier's sense, as `walk_stack`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fill_window(scratch: *mut SampleScratch, from: u64) -> u32 {
    // SAFETY: callers pass a valid scratch; the verifier, which cannot know, wants to see the check for null.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else { return 0 };
    let read = |address: u64, words: &mut [u64; WINDOW_WORDS], bytes: u64| {
        // The mask is for the verifier: less than all is less than a window.
        let bytes = if bytes == WINDOW_BYTES { WINDOW_BYTES } else { bytes & (WINDOW_BYTES - 8) };
        // SAFETY: the helper checks the address and does not fault; there is room for a window.
        unsafe { bpf_probe_read_user(words.as_mut_ptr().cast(), bytes as u32, address as *const _) == 0 }
    };
    u32::from(scratch.window.fill(from, read))
}

/// Remembers the rule of an address in mappings of `epoch`, if it is one of the usual kind.
///
/// A global function in the verifier's sense: `unwind_frame` has no room left on the stack.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn remember_rule(id: u32, address: u64, epoch: u32) -> u32 {
    let Some(rule) = RULES.get(id) else { return 0 };
    if cfg!(bpf_target_arch = "aarch64") {
        return 0; // it signs return addresses, and keeps the innermost in a register
    }
    let Some(known) = CachedRule::new(rule, address, epoch) else { return 0 };
    if let Some(entry) = RULE_CACHE.get_ptr_mut(CachedRule::slot(address)) {
        // SAFETY: a map's value, see the top of this file.
        unsafe { entry.write_volatile(known) };
    }
    0
}
