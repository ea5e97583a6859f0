//! The scheduler probe: what threads wait for, and how long event loops are away from their wait.

pub mod convoy;
pub mod deadlock;
pub mod fold;
pub mod hooks;
pub mod long_wait;
mod loops;
pub mod maps;
mod off_cpu;
mod ran;
pub mod records;
pub mod stall;
pub mod totals;

use anyhow::Result;
use profiler_common::offsets;
use rustc_hash::FxHashMap;

use crate::{
    kernel::{
        function_hooks,
        load::Plan,
        port::{Hook, Port as _},
        preflight::{Check, Verdict},
    },
    model::{
        kind::OFF_CPU,
        stack::{StackId, ThreadKey},
    },
    probe::{
        sched::{
            fold::Scheduler,
            hooks::LOOP_WAITS,
            maps::{KernelMaps, Limits},
        },
        spec::{ProbeSpec, Start},
    },
    settings::Settings,
};

/// The scheduler probe.
pub static SPEC: ProbeSpec = ProbeSpec {
    name: "sched",
    about: "what threads wait for, and how long event loops are away from their wait",
    enabled: Settings::watches_waits,
    measures: |_| true,
    large_maps: &["THREADS", "OFF_CPU", "STACKS_SENT", maps::BY_THREAD_MAP],
    prepare,
    start: |begin| Ok(Box::new(start(begin)?)),
    kinds: &[OFF_CPU],
    checks: || {
        vec![Check::new(
            "function hooks (fentry)",
            !function_hooks::allowed(&LOOP_WAITS).is_empty(),
            Verdict::Degraded,
            "supported",
            "refused or not in this kernel: event loops are seen by way of every system call, which costs each some 75 ns",
        )]
    },
};

fn prepare(settings: &Settings, plan: &mut Plan) -> Result<()> {
    plan.programs(&["sched_switch"]);
    plan.offsets(maps::OFFSETS);
    let limits = Limits::of(&settings.thresholds);
    plan.global("RUN_QUEUE_BY_THREAD", u8::from(settings.by_thread));
    plan.global("KEEP_RAN", 1u8);
    plan.global("STALL_NS", limits.stall_ns);
    plan.global("PPOLL_NUMBER", libc::SYS_ppoll as u32);
    plan.global("PSELECT_NUMBER", libc::SYS_pselect6 as u32);
    #[cfg(target_arch = "x86_64")]
    {
        plan.global("POLL_NUMBER", libc::SYS_poll as u32);
        plan.global("SELECT_NUMBER", libc::SYS_select as u32);
    }
    plan.global("LOOP_BLOCK_NS", limits.loop_block_ns);
    plan.global("STARVATION_NS", limits.starvation_ns);
    plan.global("BLOCK_NS", limits.block_ns);
    if !settings.by_thread {
        plan.map_size(maps::BY_THREAD_MAP, 1);
    }
    Ok(())
}

/// Attaches the kernel programs, and hands them what the threads of the targets are doing already.
fn start(begin: &mut Start<'_>) -> Result<Scheduler> {
    let Start { kernel, settings, resolver, running, .. } = begin;
    maps::set_classes(kernel)?;
    let maps = Box::new(KernelMaps::take(kernel)?);
    if settings.wakers {
        kernel.attach(Hook::Tracepoint { program: "sched_waking", tracepoint: "sched_waking" })?;
    }
    if kernel.has(&offsets::DELAYED_DEQUEUE) {
        kernel.attach(Hook::Tracepoint { program: "sched_migrate", tracepoint: "sched_migrate_task" })?;
    }
    for (program, tracepoint) in [
        ("sched_wakeup_new", "sched_wakeup_new"),
        ("sched_exec", "sched_process_exec"),
        ("sched_switch", "sched_switch"),
    ] {
        kernel.attach(Hook::Tracepoint { program, tracepoint })?;
    }
    let (redact, limits) = (settings.redact.clone(), settings.thresholds.clone());
    let mut scheduler = Scheduler::new(maps, &resolver.networks, redact, &resolver.clock, running, limits);
    scheduler.calls_watched = settings.watches_calls() && settings.calls_budget().is_none();
    // Stacks first: they take a while, in which threads wake up unseen.
    let mut stacks: FxHashMap<(u32, (u64, u64)), StackId> = FxHashMap::default();
    for &pid in *running {
        for seed in scheduler.seeds(pid) {
            let thread = ThreadKey { pid, tid: seed.state.tid };
            if let Some((ip, sp)) = seed.at
                && let Some(stack) = resolver.stack_at_rest(thread, ip, sp)
            {
                stacks.insert((seed.state.tid, (ip, sp)), stack);
            }
        }
    }
    scheduler.attach_loops(*kernel)?;
    scheduler.begin(resolver.clock.now_ns())?;
    for &pid in *running {
        for seed in scheduler.seeds(pid) {
            let stack = seed.at.and_then(|at| stacks.get(&(seed.state.tid, at)).copied());
            scheduler.seed(seed.state, stack, resolver);
        }
    }
    Ok(scheduler)
}
