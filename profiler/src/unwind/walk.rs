//! The kernel programs' loop over a stack, on the host.

use profiler_common::{
    runtime::{
        Entry, HOTSPOT, V8,
        hotspot::{self, At},
        v8::{self, BELOW, FrameWords, V8Offsets},
    },
    unwind::{Arch, Memory, Registers, Rule, Step, StopReason, step, step_frame_pointer},
};

use crate::runtimes::InProcess;

/// Follows a stack from `registers`, at most `limit` frames of it; `find` tells the rule for an instruction, and where there is
/// none `other` may know a step (told the frame's index, and what its instruction pointer is). Returns the instruction
/// pointer of each frame, innermost first, and how the stack ended, never [`Step::Continue`].
pub fn walk<A: Arch, M: Memory>(
    mut registers: Registers,
    memory: &M,
    limit: usize,
    find: impl Fn(u64) -> Result<Rule, StopReason>,
    mut other: impl FnMut(&mut Registers, usize, At) -> Option<Step>,
) -> (Vec<u64>, Step) {
    let mut frames = Vec::new();
    // Whether the instruction pointer is an instruction's, and not a return address: those may be past the end
    // of a function that ends in a call.
    let mut exact = true;
    let mut has_rule = false;
    while frames.len() < limit {
        frames.push(registers.ip);
        let outcome = match find(registers.ip.wrapping_sub(u64::from(!exact))) {
            Err(reason) => {
                let at = match (exact, has_rule) {
                    (true, _) => At::Instruction,
                    (false, true) => At::CallOfOther,
                    (false, false) => At::CallOfCode,
                };
                let step = other(&mut registers, frames.len() - 1, at);
                (exact, has_rule) = (false, false);
                step.unwrap_or(Step::Stop(reason))
            }
            Ok(rule) => {
                (exact, has_rule) = (rule.caller_is_exact(), true);
                step::<A, M>(&mut registers, &rule, memory)
            }
        };
        if outcome != Step::Continue {
            return (frames, outcome);
        }
    }
    (frames, Step::Stop(StopReason::TooDeep))
}

/// Steps out of a frame, the stack's `index`th, in code without unwind information, as the kernel programs do: by what the
/// process's runtimes keep, or by a frame pointer. `None` where neither leads on. What tells the frame's function is added to
/// `entries`.
pub fn step_without_rule<A: Arch, M: Memory>(
    known: &InProcess,
    registers: &mut Registers,
    (index, at): (usize, At),
    memory: &M,
    is_code: impl FnOnce(u64) -> bool,
    entries: &mut Vec<Entry>,
) -> Option<Step> {
    let frame = index as u8;
    if known.bits & HOTSPOT != 0 {
        let java = known.offsets.hotspot.step_or_search(registers, at, memory, |_, words| {
            entries.push(Entry { frame, ..hotspot::entry(words) });
        });
        if java.is_some() {
            return java;
        }
    }
    if known.bits & V8 != 0 {
        entries.extend(entry_of_v8(known.offsets.v8, registers, frame, memory));
    }
    match step_frame_pointer::<A, M>(registers, memory, at != At::Instruction, is_code) {
        Step::Stop(_) => None,
        step => Some(step),
    }
}

fn entry_of_v8<M: Memory>(offsets: V8Offsets, registers: &Registers, frame: u8, memory: &M) -> Option<Entry> {
    let fp = registers.fp;
    if fp & 7 != 0 || fp < registers.sp {
        return None;
    }
    let mut words: FrameWords = [0; 7];
    for (at, word) in (fp.wrapping_sub(BELOW)..).step_by(8).zip(&mut words) {
        *word = memory.read_u64(at)?;
    }
    let shared = memory.read_u64(v8::function(&words)?.wrapping_add(offsets.shared.into()))?;
    Some(v8::entry(frame, shared, &words))
}
