//! What the rest of the profiler asks of the loaded kernel programs, so that a fake can stand in for them where there are
//! no rights to load any.

use anyhow::Result;
use profiler_common::{
    cost::{Probe, ProbeCost},
    loss::{Loss, Tally},
};

use crate::{
    kernel::{costs::Costs, uprobe},
    process::notice::Notice,
};

/// Something that happens in the kernel, and the program that runs then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook<'a> {
    /// A tracepoint, without the detour through perf.
    Tracepoint {
        /// The program.
        program: &'a str,
        /// The tracepoint.
        tracepoint: &'a str,
    },
    /// Each `period`th event of every CPU.
    Event {
        /// The program.
        program: &'a str,
        /// What is counted.
        event: Event,
        /// How many events a run of the program stands for.
        period: u64,
    },
    /// The entry of kernel functions; (program, function).
    Functions(&'a [(&'static str, &'static str)]),
    /// The return of kernel functions; (program, function).
    Returns(&'a [(&'static str, &'static str)]),
    /// Nothing by itself: other programs go on into this one by a tail call.
    TailCall {
        /// The program.
        program: &'a str,
        /// The map of programs it is called through.
        map: &'a str,
        /// Its position there.
        index: u32,
    },
}

/// What perf counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Time on a CPU, ns.
    CpuClock,
    /// Page faults.
    PageFaults,
}

/// The loaded kernel programs.
pub trait Port {
    /// Lets a program run when something happens.
    fn attach(&mut self, hook: Hook<'_>) -> Result<()>;

    /// Takes a program off its tracepoint, until it is attached again.
    fn pause(&mut self, program: &str) -> Result<()>;

    /// Loads programs that breakpoints in processes run, and a reader of what they cost.
    fn user_programs(&mut self, programs: &[&'static uprobe::Program]) -> Result<(uprobe::Programs, Costs)>;

    /// Makes a process a target.
    fn add_target(&mut self, pid: u32) -> Result<()>;

    /// Forgets a process that is gone, so that a later one with its number is no target.
    fn remove_target(&mut self, pid: u32);

    /// Has stacks sent again that were sent before, by their ids.
    fn send_again(&mut self, ids: &[u64]);

    /// Takes all waiting records out of the ring buffer.
    fn drain_records(&mut self, each: &mut dyn FnMut(&[u8]));

    /// How much the kernel programs have lost for a reason.
    fn lost(&self, loss: Loss) -> u64;

    /// What else the kernel programs have counted.
    fn tallied(&self, what: Tally) -> u64;

    /// What a program has cost so far, on all CPUs.
    fn cost(&self, probe: Probe) -> ProbeCost;

    /// Unloads all programs; counters and waiting records stay.
    fn detach(&mut self);
}

/// Where notices about processes come from.
pub trait Notices {
    /// Takes all waiting notices, oldest first. Returns how many were lost since the last call.
    fn drain(&mut self, notices: &mut Vec<Notice>) -> u64;
}
