//! The system-call probe: how many, how long, which failed, what they waited for, and what descriptors are used for.

pub mod chatty;
mod counts;
pub mod fold;
mod io;
pub mod maps;
mod names;
pub mod records;
pub mod storm;

use anyhow::Result;
use profiler_common::syscall::MAX_CALLS_OF_ONE;

use crate::{
    kernel::{
        load::Plan,
        port::{Hook, Port as _},
    },
    model::kind::SYSCALLS,
    probe::{
        budget::Budget,
        sched,
        spec::{ProbeSpec, Start},
        syscall::{
            fold::CallCollector,
            maps::{CALLS, KernelMaps, STEPS},
            storm::Storms,
        },
    },
    process::target::Target,
    settings::Settings,
};

/// The system-call probe.
pub static SPEC: ProbeSpec = ProbeSpec {
    name: "syscall",
    about: "system calls: how many, how long, which failed, what descriptors are used for",
    enabled: Settings::watches_calls,
    measures: |_| true,
    large_maps: &["OTHERS", "CALLERS", "IN_CALL", "CALL_STATS", "CALL_IO", "STACKS_SENT"],
    prepare,
    start: |begin| Ok(Box::new(start(begin)?)),
    kinds: &[SYSCALLS],
    checks: Vec::new,
};

fn prepare(settings: &Settings, plan: &mut Plan) -> Result<()> {
    // A server opens a file per request, and says so.
    plan.needs_more_records();
    plan.programs(&STEPS);
    CALLS.into_iter().for_each(|(program, _)| plan.programs(&[program]));
    plan.offsets(sched::maps::OFFSETS);
    plan.global("CALLS_WATCHED", 1u32);
    plan.global("CONNECT_NUMBER", libc::SYS_connect as u32);
    // Where calls are not watched all the time, event loops have a hook of their own.
    plan.global("CALLS_SEE_LOOPS", u32::from(settings.calls_budget().is_none()));
    plan.global("CALLS_BY_THREAD", u32::from(settings.by_thread));
    let one_process = matches!(&settings.target, Target::Pids { pids, follow: false } if pids.len() < 2);
    if one_process && !settings.by_thread {
        plan.map_size("CALL_STATS", MAX_CALLS_OF_ONE);
    }
    Ok(())
}

/// Attaches the kernel programs.
fn start(begin: &mut Start<'_>) -> Result<CallCollector> {
    let Start { kernel, settings, resolver, before, .. } = begin;
    sched::maps::set_classes(kernel)?;
    let maps = Box::new(KernelMaps::take(kernel)?);
    let storms = Storms::new(settings.error_storm_share, &settings.expected_errors);
    let redact = settings.redact.clone();
    let mut calls = CallCollector::new(maps, before, &resolver.networks, &resolver.clock, redact, storms)?;
    for (index, program) in (0..).zip(STEPS) {
        kernel.attach(Hook::TailCall { program, map: "CALL_STEPS", index })?;
    }
    let rare = [("call_gone", "sched_process_exit"), ("call_exec", "sched_process_exec")];
    for (program, tracepoint) in rare.into_iter().chain(CALLS) {
        kernel.attach(Hook::Tracepoint { program, tracepoint })?;
    }
    if let Some(share) = settings.calls_budget() {
        calls.keep_to(Budget::here(share, &resolver.clock));
    }
    Ok(calls)
}
