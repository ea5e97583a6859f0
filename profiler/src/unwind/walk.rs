//! The kernel programs' loop over a stack, on the host.

use profiler_common::unwind::{Arch, Memory, RULE_NO_INFO, Registers, Step, StopReason, step};

use super::{rules::RuleTable, table::Table};

/// An executable mapping and the table of its file.
#[derive(Clone, Copy, Debug)]
pub struct Module<'a> {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// What to take (wrapping) from an address to get the file's virtual address.
    pub bias: u64,
    /// Table of the file.
    pub table: &'a Table,
}

/// Follows a stack from `registers`, innermost first. Pushes the instruction pointer of each frame, at most
/// `limit` of them, to `frames`; returns how the stack ended, never [`Step::Continue`].
pub fn walk<A: Arch, M: Memory>(
    mut registers: Registers,
    modules: &[Module<'_>],
    rules: &RuleTable,
    memory: &M,
    limit: usize,
    frames: &mut Vec<u64>,
) -> Step {
    // Whether the instruction pointer is an instruction's, and not a return address: those may be past the end
    // of a function that ends in a call.
    let mut exact = true;
    for _ in 0..limit {
        frames.push(registers.ip);
        let address = registers.ip.wrapping_sub(u64::from(!exact));
        let Some(module) = modules.iter().find(|module| (module.start..module.end).contains(&address)) else {
            return Step::Stop(StopReason::NoTable);
        };
        let id = module.table.find(address.wrapping_sub(module.bias)).unwrap_or(RULE_NO_INFO);
        let Some(rule) = rules.get(id) else { return Step::Stop(StopReason::NoRow) };
        match step::<A, M>(&mut registers, rule, memory) {
            Step::Continue => exact = rule.caller_is_exact(),
            outcome => return outcome,
        }
    }
    Step::Stop(StopReason::TooDeep)
}
