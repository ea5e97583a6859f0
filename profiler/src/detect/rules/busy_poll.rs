//! A thread asks over and over whether there is something to do.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;
use serde_json::json;

use crate::{
    detect::{
        rule::{Needs, Param, Rule, Unit, Values},
        words::{SHOWN, at, place},
    },
    model::{
        finding::{Bottleneck, Cost, Evidence, Finding, ProcessName, Severity},
        report::{ProfileStack, Run},
        stack::ThreadKey,
    },
};

const SHARE: Param = Param {
    name: "share",
    unit: Unit::Percent,
    default: 40.0,
    help: "CPU samples of a thread in calls that only ask",
    flag: None,
};

/// Fewer samples say nothing.
const MIN_SAMPLES: u64 = 50;
/// A thread that is on a CPU, or ready and waits for one, for less of its time waits for work now and then, from 0 to 1.
const BUSY: f64 = 0.5;
/// Calls that ask whether something has happened, by their functions in the kernel and in the C library.
const ASKS: [&str; 14] = [
    "do_epoll_wait",
    "do_epoll_pwait",
    "__x64_sys_epoll_wait",
    "__x64_sys_epoll_pwait",
    "__arm64_sys_epoll_pwait",
    "do_sys_poll",
    "do_select",
    "core_sys_select",
    "do_sched_yield",
    "__x64_sys_sched_yield",
    "epoll_wait",
    "epoll_pwait",
    "sched_yield",
    "poll",
];

/// The rule.
pub static RULE: Rule = Rule {
    name: "busy-poll",
    summary: "a thread asks over and over for work, and never waits for it",
    needs: &[Needs::Cpu],
    params: &[SHARE],
    check,
    doc: "\
A thread that is on a CPU, or waits for one, for more than half of the time, and whose samples are mostly inside epoll_wait, poll, select or
sched_yield: it calls them with a timeout of zero, or its descriptor is always ready and nobody reads it. A loop that is busy with
work spends a small part of its time there. That a process's own threads lack CPUs is its consequence where they do nothing else.

Give the call a timeout, or -1; read what makes the descriptor ready, or remove it from the set; replace a loop around
sched_yield by a condition variable. Some programs poll on purpose, for latency (DPDK): then raise the threshold.",
};

fn check(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let mut threads: BTreeMap<ThreadKey, (u64, u64, Option<&ProfileStack>)> = BTreeMap::new();
    for stack in &run.cpu.stacks {
        let of = threads.entry(stack.thread).or_default();
        of.0 += stack.weight;
        if asks(run, stack) {
            of.1 += stack.weight;
            of.2 = of.2.filter(|most| most.weight >= stack.weight).or(Some(stack));
        }
    }
    let wall_ns = run.cpu.accounts.duration_ns.max(1) as f64;
    let ready: FxHashMap<ThreadKey, u64> = run
        .blocking
        .iter()
        .flat_map(|blocking| &blocking.threads)
        .map(|of| (of.thread, of.run_queue_ns))
        .collect();
    let finding = |(thread, (all, asking, stack)): (ThreadKey, (u64, u64, Option<&ProfileStack>))| {
        let stack = stack?;
        let share = 100.0 * asking as f64 / all.max(1) as f64;
        let ready_ns = ready.get(&thread).copied().unwrap_or_default();
        let busy = (run.cpu.estimated_ns(all) + ready_ns) as f64 / wall_ns;
        if all < MIN_SAMPLES || busy < BUSY || share < values.get(&SHARE) {
            return None;
        }
        let names = run.names();
        let call = names.functions(&stack.frames).find(|(of, ..)| ASKS.contains(&of.name.as_str()));
        let call = call.map_or("a poll", |(of, ..)| of.name.as_str()).trim_start_matches("__x64_sys_");
        let caller = place(names, &stack.frames);
        let function = caller.map(at).unwrap_or_default();
        let ns = run.cpu.estimated_ns(asking);
        Some(Finding {
            rule: RULE.name,
            severity: Severity::Warning,
            bottleneck: Bottleneck::Cpu,
            process: ProcessName { pid: thread.pid, name: stack.process.to_string() },
            subject: caller.map_or_else(String::new, |caller| caller.name.clone()),
            title: format!(
                "thread {} of {} (pid {}) polls without waiting: {share:.0} % of its CPU time is in {call}, called by {function}",
                stack.thread_name, stack.process, thread.pid
            ),
            advice: advice(call).to_owned(),
            cost: Cost { ns, share_of_wall: (ns as f64 / wall_ns).min(1.0), ..Cost::default() },
            evidence: vec![Evidence { label: "", frames: stack.frames.to_vec(), shown: SHOWN }],
            details: BTreeMap::from([
                ("tid", json!(thread.tid)),
                ("samples", json!(asking)),
                ("of_samples", json!(all)),
            ]),
        })
    };
    threads.into_iter().filter_map(finding).collect()
}

fn advice(call: &str) -> &'static str {
    match call {
        "sched_yield" | "do_sched_yield" => {
            "wait instead of spinning: a mutex, a condition variable or a semaphore lets the CPU go"
        }
        _ => "give the call a timeout, or read what makes its descriptor ready",
    }
}

fn asks(run: &Run, stack: &ProfileStack) -> bool {
    run.cpu.functions(stack).any(|(function, frame, inlined)| {
        let exact = ASKS.contains(&function.name.as_str());
        // `poll` is a common name: only the C library's counts.
        exact
            && !inlined
            && (run.names().is_kernel(frame) || run.names().module_of(frame).name().starts_with("libc"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::rule::Overrides,
        model::{
            report::fixtures,
            stack::ModuleKind,
            wait::{Blocking, ThreadTime},
        },
    };

    #[test]
    fn who_only_asks_is_told_and_who_works_is_not() {
        let found = |asking, working| {
            let mut run = fixtures::run(&[
                ("main;poll_events;epoll_wait;do_epoll_wait", asking),
                ("main;serve;work", working),
            ]);
            let names = std::rc::Rc::make_mut(&mut run.cpu.names);
            let kernel = names.modules.iter().position(|of| of.kind == ModuleKind::Kernel).unwrap();
            for frame in &mut names.frames {
                if frame.functions[0].name == "do_epoll_wait" {
                    frame.module = kernel;
                }
            }
            let found = check(&run, &Overrides::default().of(&RULE));
            found.into_iter().map(|of| of.title).collect::<Vec<_>>()
        };
        let polls = found(80, 15);
        assert!(polls[0].contains("84 %") && polls[0].contains("called by"), "{polls:?}");
        assert!(found(20, 75).is_empty(), "a busy server");
        assert!(found(30, 2).is_empty(), "a third of the time");
    }

    #[test]
    fn a_thread_that_spins_and_gets_half_a_cpu_spins_all_the_time() {
        let found = |run_queue_ns| {
            let mut run = fixtures::run(&[("main;spin;__x64_sys_sched_yield;do_sched_yield", 60)]);
            let names = std::rc::Rc::make_mut(&mut run.cpu.names);
            let kernel = names.modules.iter().position(|of| of.kind == ModuleKind::Kernel).unwrap();
            let calls = names.frames.iter_mut().filter(|of| of.functions[0].name.contains("sched_yield"));
            calls.for_each(|frame| frame.module = kernel);
            run.cpu.accounts.duration_ns = 2 * run.cpu.estimated_ns(80);
            let thread =
                ThreadTime { thread: run.cpu.stacks[0].thread, run_queue_ns, ..ThreadTime::default() };
            run.blocking = Some(Blocking { threads: vec![thread], ..Blocking::default() });
            let ready_ns = run.cpu.estimated_ns(60);
            let found = check(&run, &Overrides::default().of(&RULE));
            (found.into_iter().map(|of| of.advice).next(), ready_ns)
        };
        let (none, ready_ns) = found(0);
        assert_eq!(none, None);
        assert!(found(ready_ns).0.unwrap().contains("instead of spinning"));
    }
}
