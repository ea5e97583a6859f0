//! The user stack by unwind tables: mapping -> table -> row -> rule -> caller, up to `MAX_FRAMES` times. The search
//! and the step are in `profiler_common::unwind`, tested on the host; here are the maps they read.
//!
//! One bounded loop in one program: see ARCHITECTURE.md for why no tail calls.

use aya_ebpf::{
    Global,
    bindings::bpf_user_pt_regs_t,
    btf_maps::{Array, ArrayOfMaps, HashMap},
    helpers::{
        bpf_probe_read_kernel,
        generated::{bpf_get_current_task_btf, bpf_probe_read_user, bpf_task_pt_regs},
    },
    macros::btf_map,
};
use profiler_common::{
    MAX_FRAMES,
    cpu::{END_COMPLETE, END_STOPPED, SAMPLE_FRAME_WORDS},
    mapping::{MAX_MAPPINGS, MAX_TABLES, Mapping, ProcessMappings, SEARCH_STEPS},
    target::MAX_TARGETS,
    unwind::{
        BUCKETS_PER_PAGE, MAX_RULES, Memory, PAGE_WORDS, Page, RULE_NO_INFO, Registers, Rule, Step,
        StopReason, bucket_offset, bucket_page, decode_bucket, row_page, search_rows, step,
        step_frame_pointer,
    },
};

#[cfg(bpf_target_arch = "aarch64")]
type Native = profiler_common::unwind::Aarch64;
#[cfg(not(bpf_target_arch = "aarch64"))]
type Native = profiler_common::unwind::X86_64;

/// Lets inner maps differ in size (`BPF_F_INNER_MAP`, Linux 5.10).
const INNER_MAP: usize = 1 << 12;

/// Whether there are tables at all.
#[unsafe(no_mangle)]
static UNWIND: Global<u32> = Global::new(0);
/// Whether the kernel has `bpf_task_pt_regs` (Linux 5.15): without it, only samples taken in user mode can be
/// unwound.
#[unsafe(no_mangle)]
static HAVE_TASK_PT_REGS: Global<u32> = Global::new(0);

/// Where each process's mappings are in `MAPPINGS`.
#[btf_map]
static PROCESSES: HashMap<u32, ProcessMappings, MAX_TARGETS> = HashMap::new();

/// Mappings of all processes.
#[btf_map]
static MAPPINGS: Array<Mapping, MAX_MAPPINGS> = Array::new();

/// A map of pages per file.
#[btf_map]
static TABLES: ArrayOfMaps<Array<Page, 1, INNER_MAP>, MAX_TABLES> = ArrayOfMaps::new();

/// The rules of all tables.
#[btf_map]
static RULES: Array<Rule, { MAX_RULES as usize }> = Array::new();

/// The memory of the current process.
struct UserMemory;

impl Memory for UserMemory {
    #[inline(always)]
    fn read_u64(&self, address: u64) -> Option<u64> {
        let mut word = 0u64;
        // SAFETY: the helper checks the address and does not fault.
        let error = unsafe { bpf_probe_read_user((&raw mut word).cast(), 8, address as *const _) };
        (error == 0).then_some(word)
    }

    #[inline(always)]
    fn read_pair(&self, address: u64) -> Option<[u64; 2]> {
        let mut words = [0u64; 2];
        // SAFETY: as above.
        let error = unsafe { bpf_probe_read_user((&raw mut words).cast(), 16, address as *const _) };
        (error == 0).then_some(words)
    }
}

/// The process's mappings, if it is to be unwound by tables.
#[inline(always)]
pub fn process(pid: u32) -> Option<ProcessMappings> {
    if UNWIND.load() == 0 {
        return None;
    }
    // SAFETY: userspace replaces an entry as a whole; a stale copy leads to mappings that are still there.
    unsafe { PROCESSES.get(&pid) }.copied()
}

/// The registers with which the current task is, or was last, in user mode. `interrupted` are those the program
/// was started with.
#[inline(always)]
pub fn user_registers(interrupted: &bpf_user_pt_regs_t) -> Option<Registers> {
    if is_user(interrupted) {
        return Some(registers(interrupted));
    }
    if HAVE_TASK_PT_REGS.load() == 0 {
        return None;
    }
    // SAFETY: the helpers take and return kernel pointers; what they point to is read by a checked copy.
    let saved = unsafe {
        bpf_probe_read_kernel(bpf_task_pt_regs(bpf_get_current_task_btf()) as *const bpf_user_pt_regs_t)
    }
    .ok()?;
    // A kernel thread has no user registers.
    is_user(&saved).then(|| registers(&saved))
}

#[cfg(not(bpf_target_arch = "aarch64"))]
#[inline(always)]
fn is_user(regs: &bpf_user_pt_regs_t) -> bool {
    // 64-bit user code only: __USER_CS, arch/x86/include/asm/segment.h.
    regs.cs == 0x33
}

#[cfg(not(bpf_target_arch = "aarch64"))]
#[inline(always)]
fn registers(regs: &bpf_user_pt_regs_t) -> Registers {
    Registers { ip: regs.rip, sp: regs.rsp, fp: regs.rbp, lr: 0 }
}

#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
fn is_user(regs: &bpf_user_pt_regs_t) -> bool {
    // PSR_MODE_EL0t without the 32-bit bit: arch/arm64/include/uapi/asm/ptrace.h.
    regs.pstate & 0x1f == 0
}

#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
fn registers(regs: &bpf_user_pt_regs_t) -> Registers {
    Registers { ip: regs.pc, sp: regs.sp, fp: regs.regs[29], lr: regs.regs[30] }
}

/// Writes the stack that begins with `registers` to `frames` from `first` on. Returns the number of frames and how
/// the stack ends (`END_*`).
#[inline(always)]
pub fn walk(
    process: ProcessMappings,
    mut registers: Registers,
    frames: &mut [u64; SAMPLE_FRAME_WORDS],
    first: u64,
) -> (u64, u32) {
    let mut mapping: Option<&Mapping> = None;
    // Of an interrupted instruction the row is the one at its address; of a call the one before its return address.
    let mut exact = true;
    for i in 0..MAX_FRAMES as u64 {
        frames[((first + i) & (SAMPLE_FRAME_WORDS as u64 - 1)) as usize] = registers.ip;
        let address = registers.ip - u64::from(!exact);
        let known = match mapping {
            Some(mapping) => address >= mapping.start && address < mapping.end,
            None => false,
        };
        if !known {
            mapping = find_mapping(process, address);
        }
        let (rule, missing) = match mapping {
            Some(mapping) => match find_rule(mapping, address) {
                Some(rule) => (Some(rule), StopReason::NoRow),
                None => (None, StopReason::NoRow),
            },
            None => (None, StopReason::NoTable),
        };
        let outcome = match rule {
            Some(rule) => {
                exact = rule.caller_is_exact();
                step::<Native, _>(&mut registers, rule, &UserMemory)
            }
            None => {
                exact = false;
                // Just-in-time compiled or assembly: such code keeps frame pointers, or the stack ends here.
                match step_frame_pointer::<Native, _>(&mut registers, &UserMemory) {
                    Step::Stop(_) => Step::Stop(missing),
                    other => other,
                }
            }
        };
        match outcome {
            Step::Continue => {}
            Step::End => return (i + 1, END_COMPLETE),
            Step::Stop(reason) => return (i + 1, END_STOPPED + reason as u32),
        }
    }
    (MAX_FRAMES as u64, END_STOPPED + StopReason::TooDeep as u32)
}

/// The last mapping of the process that begins at or before `address`, if it reaches that far.
///
/// Like `search_rows` without a branch on data: the verifier would follow both sides of each.
#[inline(always)]
fn find_mapping(process: ProcessMappings, address: u64) -> Option<&'static Mapping> {
    let mut position = 0u64;
    for step in 0..SEARCH_STEPS {
        let bit = 1u64 << (SEARCH_STEPS - 1 - step);
        let inside = is_less(position + bit, u64::from(process.count));
        let mapping = MAPPINGS.get(process.first + (position + inside * bit) as u32)?;
        let take = inside & (is_less(address, mapping.start) ^ 1);
        position += take * bit;
    }
    let mapping = MAPPINGS.get(process.first + position as u32)?;
    (mapping.start <= address && address < mapping.end).then_some(mapping)
}

/// 1 if `a < b`, else 0, for values below 2^63 (user addresses are): the borrow of the subtraction.
#[inline(always)]
fn is_less(a: u64, b: u64) -> u64 {
    a.wrapping_sub(b) >> 63
}

/// The rule for an address of the mapping; `None` where its table has no unwind information.
#[inline(always)]
fn find_rule(mapping: &Mapping, address: u64) -> Option<&'static Rule> {
    let offset = address.wrapping_add(mapping.to_table);
    let bucket = offset >> profiler_common::unwind::BUCKET_SHIFT;
    if bucket >= u64::from(mapping.buckets) {
        return None;
    }
    let table = TABLES.get(mapping.table)?;
    let (page, slot) = bucket_page(bucket as u32);
    let buckets: &Page = table.get(page)?;
    let (lo, count) = decode_bucket(buckets[(slot & (BUCKETS_PER_PAGE - 1)) as usize & (PAGE_WORDS - 1)]);
    let (page, slot) = row_page(lo);
    let rows: &Page = table.get(mapping.bucket_pages + page)?;
    let id = search_rows(rows, slot, count, bucket_offset(offset));
    if id == RULE_NO_INFO {
        return None;
    }
    RULES.get(id)
}
