//! The kernel programs' loop over a stack, on the host.

use profiler_common::{
    runtime::hotspot::At,
    unwind::{Arch, Memory, Registers, Rule, Step, StopReason, step},
};

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
