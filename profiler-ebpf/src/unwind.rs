//! The user stack by unwind tables: mapping -> table -> row -> rule -> caller, up to `MAX_FRAMES` times. The search
//! and the step are in `profiler_common::unwind`, tested on the host; here are the maps they read.
//!
//! One bounded loop in one program: see ARCHITECTURE.md for why no tail calls.

use aya_ebpf::{
    bindings::bpf_user_pt_regs_t,
    btf_maps::{Array, ArrayOfMaps, HashMap},
    helpers::generated::bpf_get_current_task,
    macros::btf_map,
};
use profiler_common::{
    MAX_FRAMES,
    cpu::{END_COMPLETE, END_STOPPED, SampleScratch},
    mapping::{
        GENERATIONS, KERNEL_GENERATION, MAX_MAPPINGS, MAX_TABLES, Mapping, ProcessMappings, SEARCH_STEPS,
        USER_GENERATION, Walk,
    },
    runtime::{
        Fingerprint, HOTSPOT, RUNTIME_WORDS, V8,
        hotspot::{MOST_WORDS, WORDS_AT_ONCE},
    },
    target::MAX_TARGETS,
    unwind::{
        BUCKET_SHIFT, CfaKind, Memory, PAGE_WORDS, Page, RULE_NO_INFO, Registers, Step, StopReason,
        bucket_offset, bucket_page, decode_bucket, row_page, search_rows, step, step_frame_pointer,
    },
};

use crate::{
    memory::UserMemory,
    offsets::{OFF_RETURN_ADDRESS, OFF_RETURN_NEXT, OFF_RETURN_STACK, OFF_TASK_UTASK, OFF_UTASK_RETURNS},
    output::add,
    rule_cache::{self, RULES, WALK_ENDED},
    runtime,
    task::{current_task, is_user, read, registers, saved_registers, user_registers},
};

#[cfg(bpf_target_arch = "aarch64")]
type Native = profiler_common::unwind::Aarch64;
#[cfg(not(bpf_target_arch = "aarch64"))]
type Native = profiler_common::unwind::X86_64;

/// Lets inner maps differ in size (`BPF_F_INNER_MAP`, Linux 5.10).
const INNER_MAP: usize = 1 << 12;

/// Where each process's mappings are in `MAPPINGS`.
#[btf_map]
static PROCESSES: HashMap<u32, ProcessMappings, MAX_TARGETS> = HashMap::new();

/// Grow with every change of `PROCESSES`, after it.
#[btf_map]
static PROCESS_GENERATIONS: Array<u64, { GENERATIONS as usize }> = Array::new();

/// Mappings of all processes.
#[btf_map]
static MAPPINGS: Array<Mapping, MAX_MAPPINGS> = Array::new();

/// A map of pages per file.
#[btf_map]
static TABLES: ArrayOfMaps<Array<Page, 1, INNER_MAP>, MAX_TABLES> = ArrayOfMaps::new();

/// The memory of the current process, but for two words at `at` that have been read already.
struct Known {
    at: u64,
    words: Option<[u64; 2]>,
}

impl Memory for Known {
    #[inline(always)]
    fn read_u64(&self, address: u64) -> Option<u64> {
        UserMemory.read_u64(address)
    }

    #[inline(always)]
    fn read_pair(&self, address: u64) -> Option<[u64; 2]> {
        if address == self.at && self.words.is_some() { self.words } else { UserMemory.read_pair(address) }
    }
}

/// What a walk by tables begins with: registers with which the current task, of process `pid`, is, or was last, in user
/// mode, if there are tables for the process. `interrupted` are those the program was started with, if it interrupted
/// anything. From here on `walk` knows the process.
#[inline(always)]
pub fn start(walk: &mut Walk, pid: u32, interrupted: Option<&bpf_user_pt_regs_t>) -> Option<Registers> {
    if !find_process(walk, pid) {
        return None;
    }
    if let Some(interrupted) = interrupted
        && is_user(interrupted)
    {
        return Some(registers(interrupted));
    }
    user_registers(saved_registers(current_task()) as u64)
}

/// Makes `walk` one of process `pid`; returns whether that has tables. Most walks are of the same process as the last one
/// on this CPU, and a look into the map would cost each a microsecond where caches are cold.
#[inline(always)]
fn find_process(walk: &mut Walk, pid: u32) -> bool {
    let generation = |side| PROCESS_GENERATIONS.get(side).copied().unwrap_or(0);
    // Before the look-up: a change meanwhile makes it out of date, not good for longer.
    let generations = [generation(USER_GENERATION), generation(KERNEL_GENERATION)];
    if walk.pid != pid || walk.generations != generations {
        // SAFETY: userspace replaces an entry as a whole; a stale copy leads to mappings that are still there.
        let found = unsafe { PROCESSES.get(&pid) }.copied();
        walk.has_mappings = u32::from(found.is_some());
        walk.process = found.unwrap_or_default();
        walk.mapping = Mapping::default();
        walk.pid = pid;
        walk.generations = generations;
    }
    walk.has_mappings != 0
}

/// Begins a walk of the process that is known. Member by member: all at once it would be put together on the stack first.
#[inline(always)]
pub fn begin(walk: &mut Walk, registers: Registers, exact: u64) {
    walk.registers = registers;
    walk.exact = exact;
    walk.words = 0;
    walk.was_mapped = exact ^ 1; // what called the profiler's probe is a file's
    walk.fingerprint = Fingerprint::default();
}

/// Begins a walk of process `pid`, with tables or without.
#[inline(always)]
pub fn begin_in(walk: &mut Walk, pid: u32, registers: Registers, exact: u64) {
    let _or_without_tables = find_process(walk, pid);
    begin(walk, registers, exact);
}

/// The kernel programs have changed `PROCESSES`.
#[inline(always)]
fn count_change() {
    if let Some(generation) = PROCESS_GENERATIONS.get_ptr_mut(KERNEL_GENERATION) {
        // SAFETY: a map's value.
        unsafe { add(generation, 1) };
    }
}

/// A child has its parent's mappings, and so its tables, until userspace gives it a copy of its own or it ends.
#[inline(always)]
pub fn inherit(parent: u32, child: u32) {
    // SAFETY: as in `find_process`.
    if let Some(mappings) = unsafe { PROCESSES.get(&parent) }.copied() {
        let _full = PROCESSES.insert(&child, &mappings, 0);
        count_change();
    }
}

/// A process has none of its mappings any more.
#[inline(always)]
pub fn forget(pid: u32) {
    let _had_no_tables = PROCESSES.remove(&pid);
    count_change();
}

/// Writes the stack that begins at `scratch.walk` to `scratch.frames`, from `first` on, and behind it what tells frames of
/// runtimes. Returns the number of frames, from [`WALKED_WORDS`] on the number of those words, and in the high half how the
/// stack ends (`END_*`).
///
/// A global function in the verifier's sense, as the next one: it is checked once, and what follows a call is not checked
/// for each length that the stack can have.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn walk_stack(scratch: *mut SampleScratch, first: u64) -> u64 {
    // SAFETY: callers pass a valid scratch; the verifier, which cannot know, wants to see the check for null.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else { return u64::from(END_STOPPED) << 32 };
    scratch.window.bytes = 0;
    scratch.walk.first = first;
    let (mut i, mut ended) = (0, END_STOPPED + StopReason::TooDeep as u32);
    for _ in 0..MAX_FRAMES {
        let known = rule_cache::walk_known(scratch, i);
        i = known & 0xff;
        if known & WALK_ENDED != 0 {
            ended = END_COMPLETE;
            break;
        }
        if i >= MAX_FRAMES as u64 {
            break;
        }
        if known & rule_cache::WALK_GOES_ON != 0 {
            continue;
        }
        scratch.frames[scratch.place(i)] = scratch.walk.registers.ip;
        let mut end = unwind_frame(&mut scratch.walk);
        if end == END_STOPPED + StopReason::NoTable as u32 && i > 0 {
            let returns_to = probed_return(scratch.walk.registers.sp.wrapping_sub(8));
            if returns_to != 0 {
                scratch.frames[scratch.place(i)] = returns_to;
                scratch.walk.registers.ip = returns_to;
                end = unwind_frame(&mut scratch.walk);
            }
        }
        runtime::keep(scratch, i);
        i += 1;
        if end != 0 {
            ended = end;
            break;
        }
    }
    runtime::keep_lists(scratch);
    let words = scratch.walk.words & (RUNTIME_WORDS as u64 - 2);
    if words != 0 {
        runtime::append_runtime_words(scratch, scratch.walk.first + i, words);
    }
    i | words << WALKED_WORDS | u64::from(ended) << 32
}

/// Where the number of words of runtimes is in what [`walk_stack`] returns.
pub const WALKED_WORDS: u32 = 8;

/// Where a function of the current task that has a probe on its return goes back to: such a probe replaces the return
/// address, at `slot`, and keeps the original in task -> utask -> return_instances. Zero if there is none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn probed_return(slot: u64) -> u64 {
    /// Probed functions inside of each other.
    const AT_MOST: u32 = 4;
    if OFF_TASK_UTASK.load() == 0 {
        return 0;
    }
    // SAFETY: returns the current task's address, only ever used through bpf_probe_read_kernel.
    let task = unsafe { bpf_get_current_task() };
    let Some(utask) = read::<u64>(task, OFF_TASK_UTASK.load()) else { return 0 };
    if utask == 0 {
        return 0;
    }
    let mut instance = read::<u64>(utask, OFF_UTASK_RETURNS.load()).unwrap_or(0);
    for _ in 0..AT_MOST {
        if instance == 0 {
            return 0;
        }
        if read::<u64>(instance, OFF_RETURN_STACK.load()) == Some(slot) {
            return read(instance, OFF_RETURN_ADDRESS.load()).unwrap_or(0);
        }
        instance = read(instance, OFF_RETURN_NEXT.load()).unwrap_or(0);
    }
    0
}

/// Steps to the caller's frame. Returns 0, or how the stack ends (`END_*`).
///
/// A global function in the verifier's sense: checked once and by itself, whatever state it is called in. Inlined
/// into the loop it would be checked for each of the 127 frames, and for each combination of the paths through them.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn unwind_frame(walk: *mut Walk) -> u32 {
    // SAFETY: callers pass a valid walk; the verifier, which cannot know, wants to see the check for null.
    let Some(walk) = (unsafe { walk.as_mut() }) else { return END_STOPPED };
    let address = walk.registers.ip.wrapping_sub(1 ^ walk.exact);
    let was_mapped = walk.was_mapped;
    if address < walk.mapping.start || address >= walk.mapping.end {
        walk.mapping = find_mapping(walk.process, address);
    }
    walk.was_mapped = u64::from(walk.mapping.end != 0);
    let id = find_rule(&walk.mapping, address);
    rule_cache::remember_rule(id, address, walk.process.epoch);
    let Some(rule) = RULES.get(id) else { return END_STOPPED };
    let exact = walk.exact;
    walk.exact = u64::from(rule.caller_is_exact());
    walk.entry = [0; 2];
    if rule.cfa_kind == CfaKind::NoInfo as u8 && walk.process.runtimes & HOTSPOT != 0 {
        let mut step = runtime::hotspot::hotspot_step(walk, exact, was_mapped);
        for i in 0..MOST_WORDS / WORDS_AT_ONCE {
            if step != runtime::hotspot::SEARCH {
                break;
            }
            step = runtime::hotspot::hotspot_search(walk, i * WORDS_AT_ONCE);
        }
        match step {
            runtime::hotspot::OTHER => {}
            runtime::hotspot::STEPPED => return 0,
            runtime::hotspot::SEARCH => return END_STOPPED + StopReason::NoRow as u32,
            stopped => return END_STOPPED + stopped - runtime::hotspot::STOPPED,
        }
    }
    let outcome = if rule.cfa_kind == CfaKind::NoInfo as u8 {
        // Just-in-time compiled or assembly: such code keeps frame pointers, or the stack ends here.
        let mut known = Known { at: walk.registers.fp, words: None };
        if walk.process.runtimes & V8 != 0 && known.at & 7 == 0 && known.at >= walk.registers.sp {
            known.words = runtime::v8::note_frame(walk);
        }
        let process = walk.process;
        let is_code = |address| find_mapping(process, address).end != 0;
        match step_frame_pointer::<Native, _>(&mut walk.registers, &known, exact == 0, is_code) {
            Step::Stop(_) if walk.mapping.end == 0 => Step::Stop(StopReason::NoTable),
            Step::Stop(_) => Step::Stop(StopReason::NoRow),
            other => other,
        }
    } else {
        step::<Native, _>(&mut walk.registers, rule, &UserMemory)
    };
    match outcome {
        Step::Continue => 0,
        Step::End => END_COMPLETE,
        Step::Stop(reason) => END_STOPPED + reason as u32,
    }
}

/// The last mapping of the process that begins at or before `address`, if it reaches that far; else an empty one.
///
/// Like `search_rows` without a branch on data: the verifier would follow both sides of each.
#[inline(always)]
fn find_mapping(process: ProcessMappings, address: u64) -> Mapping {
    let mut position = 0u64;
    for step in 0..SEARCH_STEPS {
        let bit = 1u64 << (SEARCH_STEPS - 1 - step);
        let inside = is_less(position + bit, u64::from(process.count));
        let Some(mapping) = MAPPINGS.get(process.first + (position + inside * bit) as u32) else {
            return Mapping::default();
        };
        let take = inside & (is_less(address, mapping.start) ^ 1);
        position += take * bit;
    }
    match MAPPINGS.get(process.first + position as u32) {
        Some(mapping) if mapping.start <= address && address < mapping.end => *mapping,
        _ => Mapping::default(),
    }
}

/// 1 if `a < b`, else 0, for values below 2^63 (user addresses are): the borrow of the subtraction.
#[inline(always)]
fn is_less(a: u64, b: u64) -> u64 {
    a.wrapping_sub(b) >> 63
}

/// Id of the rule for an address of the mapping.
#[inline(always)]
fn find_rule(mapping: &Mapping, address: u64) -> u32 {
    let offset = address.wrapping_add(mapping.to_table);
    let bucket = offset >> BUCKET_SHIFT;
    if bucket >= u64::from(mapping.buckets) {
        return RULE_NO_INFO; // an empty mapping has no buckets
    }
    let Some(table) = TABLES.get(mapping.table) else { return RULE_NO_INFO };
    let (page, slot) = bucket_page(bucket as u32);
    let Some(buckets) = table.get(page) else { return RULE_NO_INFO };
    let (lo, count) = decode_bucket(buckets[slot as usize & (PAGE_WORDS - 1)]);
    let (page, slot) = row_page(lo);
    let Some(rows) = table.get(mapping.bucket_pages + page) else { return RULE_NO_INFO };
    search_rows(rows, slot, count, bucket_offset(offset))
}
