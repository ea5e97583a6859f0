//! The kernel programs' loop over a stack, on the host.

use profiler_common::unwind::{Arch, Memory, Registers, Rule, Step, StopReason, step};

/// Follows a stack from `registers`, at most `limit` frames of it; `find` tells the rule for an instruction, and where there is
/// none `other` may know a step (told the frame's index, and whether the instruction pointer is exact). Returns the instruction
/// pointer of each frame, innermost first, and how the stack ended, never [`Step::Continue`].
pub fn walk<A: Arch, M: Memory>(
    mut registers: Registers,
    memory: &M,
    limit: usize,
    find: impl Fn(u64) -> Result<Rule, StopReason>,
    mut other: impl FnMut(&mut Registers, usize, bool) -> Option<Step>,
) -> (Vec<u64>, Step) {
    let mut frames = Vec::new();
    // Whether the instruction pointer is an instruction's, and not a return address: those may be past the end
    // of a function that ends in a call.
    let mut exact = true;
    while frames.len() < limit {
        frames.push(registers.ip);
        let outcome = match find(registers.ip.wrapping_sub(u64::from(!exact))) {
            Err(reason) => {
                let step = other(&mut registers, frames.len() - 1, exact);
                exact = false;
                step.unwrap_or(Step::Stop(reason))
            }
            Ok(rule) => {
                exact = rule.caller_is_exact();
                step::<A, M>(&mut registers, &rule, memory)
            }
        };
        if outcome != Step::Continue {
            return (frames, outcome);
        }
    }
    (frames, Step::Stop(StopReason::TooDeep))
}
