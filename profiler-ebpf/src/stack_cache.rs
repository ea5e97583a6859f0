//! Stacks of those who come by often: a stack that was walked is known again by comparing it, which costs a fiftieth of
//! walking it.
//!
//! A walk remembers where each return address lies. When the same thread of the same process is at the same place with
//! the same stack and frame pointer, the stack memory up to the last of them is read at once, and the words at those
//! places are hashed as the walk hashed its frames: the same hash is the same stack. Each frame's place follows from the
//! address in the frame below it, as long as frames have a fixed size (and the innermost is known by its frame pointer);
//! a frame of variable size could in theory move while everything else stays, and leave its old return address behind.
//!
//! Entries are shared by all CPUs without a lock: one that is being written gives another hash, or an id that does not
//! belong to it, which is noticed. One that was walked before a file's table was there is walked anew after that.

use aya_ebpf::{
    btf_maps::{Array, PerCpuArray},
    helpers::generated::bpf_probe_read_user,
    macros::btf_map,
};
use profiler_common::{
    MAX_FRAMES,
    alloc::{AllocScratch, CACHE_SLOTS, CACHE_WORDS, CachedStack},
    cpu::{END_STOPPED, FLAG_USER_END_SHIFT, SAMPLE_FRAME_WORDS, SAMPLE_HEADER_LEN},
    loss::Tally,
    record::RecordKind,
    runtime::{
        CHAIN_FRAMES, InterpretedIn, RUNTIME_WORDS,
        v8::{BELOW, FrameWords, SAVED, fingerprint_step},
    },
    sched::StackHeader,
    unwind::{Registers, StopReason},
};

use crate::{
    hash::mix,
    output::{add, send, tally},
    runtime::{append_runtime_words, keep, keep_lists, python},
    stack::hash_stack,
    target::Ids,
    unwind::{begin_in, unwind_frame},
};

/// Known stacks, by a hash of where they begin.
#[btf_map]
static STACK_CACHE: Array<CachedStack, { CACHE_SLOTS as usize }> = Array::new();

/// Some per CPU: a program on a user's page fault or breakpoint can lose its CPU to another such program.
#[btf_map]
static STACK_SCRATCH: PerCpuArray<AllocScratch, { SCRATCHES as usize }> = PerCpuArray::new();
const SCRATCHES: u32 = 4;

/// The user stack that begins with these registers, the instruction pointer being a return address. Returns its id, zero
/// if it could not be taken; `known` tells whether userspace knows an id.
#[inline(always)]
pub fn take(registers: Registers, ids: &Ids, now: u64, known: impl Fn(u64) -> bool) -> u64 {
    let mut mine: Option<*mut AllocScratch> = None;
    for i in 0..SCRATCHES {
        let Some(scratch) = STACK_SCRATCH.get_ptr_mut(i) else { return 0 };
        // SAFETY: this CPU's own slot; another program that runs in between counts itself in and out.
        let users = unsafe { &raw mut (*scratch).users };
        // SAFETY: as above.
        unsafe {
            add(users, 1);
            if users.read_volatile() == 1 {
                mine = Some(scratch);
                break;
            }
            add(users, u64::MAX);
        }
    }
    let Some(mine) = mine else { return 0 };
    // SAFETY: nobody else uses it now.
    let scratch = unsafe { &mut *mine };
    begin_in(&mut scratch.sample.walk, ids.pid, registers, 0);
    let mut id = find_stack(scratch, ids.pid);
    if id == 0 {
        id = walk_new_stack(scratch, ids.pid);
        tally(Tally::AllocWalks);
        if !known(id) && !emit_new_stack(scratch, ids, id, now) {
            id = 0;
        }
    }
    // SAFETY: as above.
    unsafe { add(&raw mut (*mine).users, u64::MAX) };
    id
}

/// The id of the stack that `scratch.sample.walk` begins with, if it is known; else zero.
///
/// A global function in the verifier's sense, see `walk_stack`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_stack(scratch: *mut AllocScratch, pid: u32) -> u64 {
    // SAFETY: callers pass a valid scratch; the verifier, which cannot know, wants to see the check for null.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else { return 0 };
    let Registers { ip, sp, fp, .. } = scratch.sample.walk.registers;
    let Some(slot) = STACK_CACHE.get(slot_of(pid, ip, sp)) else { return 0 };
    let words = u64::from(slot.words);
    if slot.ip != ip || slot.sp != sp || slot.fp != frame_pointer(sp, fp) || slot.seed >> 32 != u64::from(pid)
    {
        return 0;
    }
    if words == 0
        || words > CACHE_WORDS as u64
        || slot.mappings != u64::from(scratch.sample.walk.process.first)
    {
        return 0;
    }
    // SAFETY: the helper checks the address and does not fault; `memory` has room for CACHE_WORDS.
    let error =
        unsafe { bpf_probe_read_user((&raw mut scratch.memory).cast(), (words * 8) as u32, sp as *const _) };
    if error != 0 {
        return 0;
    }
    let (id, check, frames) = (slot.id, slot.check, slot.count);
    let mut hash = mix(mix(slot.seed) ^ ip);
    for i in 0..MAX_FRAMES {
        if i as u32 >= frames {
            break;
        }
        let offset = slot.offsets[i] as usize & (CACHE_WORDS - 1);
        hash = mix(hash ^ scratch.memory[offset]);
    }
    if CachedStack::check(id, hash) != check {
        return 0;
    }
    let print = slot.fingerprint;
    let mut hash = 0;
    for (i, chain) in print.chains.iter().enumerate() {
        if i as u64 >= print.count {
            break;
        }
        hash = fingerprint_in(scratch, chain.first, chain.frames, hash);
    }
    if hash == print.hash && python::is_same(&print, &raw mut scratch.sample) { id } else { 0 }
}

/// A fingerprint's hash, with the chain of `frames` frames from `first` on added, in the copy of the stack.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fingerprint_in(scratch: *const AllocScratch, first: u64, frames: u32, hash: u64) -> u64 {
    // SAFETY: as in `find_stack`.
    let Some(scratch) = (unsafe { scratch.as_ref() }) else { return 0 };
    let sp = scratch.sample.walk.registers.sp;
    let (mut fp, mut hash) = (first, hash);
    for i in 0..CHAIN_FRAMES {
        if i >= frames {
            break;
        }
        let at = fp.wrapping_sub(BELOW).wrapping_sub(sp) >> 3;
        let mut words: FrameWords = [0; 7];
        for (j, word) in words.iter_mut().enumerate() {
            *word = scratch.memory[at.wrapping_add(j as u64) as usize & (CACHE_WORDS - 1)];
        }
        hash = fingerprint_step(hash, &words, mix);
        fp = words[SAVED];
    }
    hash
}

/// Walks the stack that `scratch.sample.walk` begins with, and remembers it. Returns its id.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn walk_new_stack(scratch: *mut AllocScratch, pid: u32) -> u64 {
    // SAFETY: as in `find_stack`.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else { return 0 };
    let found = &mut scratch.found;
    // Where it begins is kept there, not on the stack of the program, which has no room for it.
    let Registers { ip, sp, fp, .. } = scratch.sample.walk.registers;
    (found.ip, found.sp, found.fp) = (ip, sp, frame_pointer(sp, fp));
    let (mut frames, mut end) = (0u64, END_STOPPED + StopReason::TooDeep as u32);
    let (mut usual, mut words) = (1u64, 0u64);
    for i in 0..MAX_FRAMES as u64 {
        scratch.sample.frames[(i & (SAMPLE_FRAME_WORDS as u64 - 1)) as usize] =
            scratch.sample.walk.registers.ip;
        frames = i + 1;
        let ended = unwind_frame(&mut scratch.sample.walk);
        keep(&mut scratch.sample, i);
        if ended != 0 {
            end = ended;
            break;
        }
        // Where the caller's address was read from, in frames of the usual kind: just below the caller's stack.
        let at = scratch.sample.walk.registers.sp.wrapping_sub(8);
        let offset = at.wrapping_sub(found.sp) >> 3;
        let mut word = 0u64;
        // SAFETY: the helper checks the address and does not fault.
        let error = unsafe { bpf_probe_read_user((&raw mut word).cast(), 8, at as *const _) };
        if error != 0 || word != scratch.sample.walk.registers.ip || offset >= CACHE_WORDS as u64 {
            usual = 0;
        }
        found.offsets[(i & 127) as usize] = offset as u16;
        words = offset + 1;
    }
    let seed = u64::from(pid) << 32 | u64::from(end);
    scratch.sample.header.flags = end << FLAG_USER_END_SHIFT;
    scratch.sample.header.kernel_frames = 0;
    scratch.sample.header.user_frames = frames as u16;
    keep_lists(&mut scratch.sample);
    let told = scratch.sample.walk.words & (RUNTIME_WORDS as u64 - 2);
    scratch.sample.header.runtime_words = told as u16;
    let hash = hash_stack(&raw const scratch.sample, frames, seed);
    let mut id = hash;
    if told != 0 {
        append_runtime_words(&raw mut scratch.sample, frames, told);
        id = hash_stack(&raw const scratch.sample, frames + told, seed);
        // Of V8's frames only is what tells them compared in the copy of the stack.
        let print = &scratch.sample.walk.fingerprint;
        usual &= u64::from(!print.is_partial() && print.is_only(InterpretedIn::V8));
    }
    // Without unwind tables, which a new process has not got yet, it may be cut off: not for the rest of the run.
    let has_tables = scratch.sample.walk.process.count != 0;
    if usual != 0 && words != 0 && has_tables {
        found.id = id;
        found.check = CachedStack::check(id, hash);
        found.mappings = u64::from(scratch.sample.walk.process.first);
        // Not by a variable: it would take a quarter of the stack that all functions in a call have together.
        found.fingerprint = scratch.sample.walk.fingerprint;
        found.seed = seed;
        found.count = frames as u32 - 1;
        found.words = words as u32;
        // Not by the helper: up to 6.1 it takes no memory that a global function was given.
        if let Some(slot) = STACK_CACHE.get_ptr_mut(slot_of(pid, found.ip, found.sp)) {
            // SAFETY: a map's value; whoever reads it meanwhile gets another hash.
            unsafe { *slot = *found };
        }
    }
    id
}

/// The frame pointer, if it can be one; else the register holds some value that says nothing about the stack.
#[inline(always)]
fn frame_pointer(sp: u64, fp: u64) -> u64 {
    if fp.wrapping_sub(sp) < CACHE_WORDS as u64 * 8 { fp } else { 0 }
}

#[inline(always)]
fn slot_of(pid: u32, ip: u64, sp: u64) -> u32 {
    (mix(mix(ip ^ u64::from(pid)) ^ sp) >> 8) as u32 & (CACHE_SLOTS - 1)
}

/// Sends a new stack; returns whether there was room.
#[inline(always)]
fn emit_new_stack(scratch: &mut AllocScratch, ids: &Ids, id: u64, now: u64) -> bool {
    let header = &scratch.sample.header;
    let bytes = (u64::from(header.user_frames) + u64::from(header.runtime_words)) * 8;
    let header = core::ptr::from_mut(&mut scratch.sample.header).cast::<StackHeader>();
    // SAFETY: both headers have the same size and alignment, and flags and counts are at the same place.
    unsafe {
        (*header).kind = RecordKind::AllocStack as u32;
        (*header).time_ns = now;
        (*header).pid = ids.pid;
        (*header).tid = ids.tid;
        (*header).id = id;
        send(header.cast_const().cast(), SAMPLE_HEADER_LEN as u64 + (bytes & 0xfff))
    }
}
