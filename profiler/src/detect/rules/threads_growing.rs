//! A process starts threads that do not end.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::descriptors_growing::Growing;
use crate::{
    detect::{
        rule::{Needs, Param, Rule, Unit, Values},
        words::{SHOWN, at, own},
    },
    model::{
        finding::{Bottleneck, Cost, Evidence, Finding, ProcessName},
        report::{ProfileStack, Run},
        stack::ThreadKey,
        units::thousands,
        vitals::ProcessVitals,
    },
    symbolize::Function,
};

const GROWTH: Param = Param {
    name: "growth",
    unit: Unit::Count,
    default: 16.0,
    help: "Threads more at the end of the run than at its beginning",
    flag: None,
};

/// The rule.
pub static RULE: Rule = Rule {
    name: "threads-growing",
    summary: "a process starts threads that do not end",
    needs: &[Needs::Vitals],
    params: &[GROWTH],
    check,
    doc: "\
About once a second the threads of the process are counted (`/proc/PID/stat`). The run is divided into four parts; the lowest count
must rise from each part to the next, so that threads that come and go are no growth. Named is the program's own function in which most
of its threads wait: an executor that nobody shuts down, a thread for each connection that is never closed, a worker that waits for a
message that never comes.

Each thread holds a stack, and a number of which the machine has so many (`kernel.pid_max`, `kernel.threads-max`); how far away their
end is at this rate is said, and less than an hour is critical. More threads for more clients look the same as long as they last.",
};

fn check(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let processes = run.vitals.iter().flat_map(|vitals| &vitals.processes);
    processes.filter_map(|of| finding(run, of, values.get(&GROWTH))).collect()
}

fn finding(run: &Run, of: &ProcessVitals, least: f64) -> Option<Finding> {
    let points = of.threads.points().iter().map(|point| (point.time_ns, point.number));
    let grows = Growing::of(points, of.thread_limit, least)?;
    let Growing { first, last, per_second, reaches_ns } = grows;
    let limit = grows.reaches("the machine's", of.thread_limit);
    let place = waits_in(run, of.pid);
    let most = place.map_or_else(String::new, |(function, ..)| format!(", most of them in {}", at(function)));
    Some(Finding {
        severity: grows.severity(),
        title: format!(
            "{per_second:.1} threads a second are started by {} (pid {}) and do not end: {} are there, {} more than at first{most}{limit}",
            of.process,
            of.pid,
            thousands(last),
            thousands(last.saturating_sub(first)),
        ),
        advice: "end them, or have a pool of so many do the work: what are they to wait for?".to_owned(),
        evidence: place.map_or_else(Vec::new, |(_, stack)| {
            vec![Evidence { label: "waiting", frames: stack.frames.to_vec(), shown: SHOWN }]
        }),
        cost: Cost::default(),
        details: BTreeMap::from([
            ("threads", json!(last)),
            ("limit", json!(of.thread_limit)),
            ("per_second", json!(per_second)),
            ("limit_reached_after_ns", json!(reaches_ns)),
        ]),
        ..Finding::warning(
            RULE.name,
            Bottleneck::Memory,
            ProcessName { pid: of.pid, name: of.process.clone() },
            "threads".to_owned(),
        )
    })
}

/// The program's own function in which most threads of a process wait, if it is most of them, and a stack there.
fn waits_in(run: &Run, pid: u32) -> Option<(&Function, &ProfileStack)> {
    let stacks = run.off_cpu.iter().flat_map(|profile| &profile.stacks).filter(|of| of.thread.pid == pid);
    let mut places: BTreeMap<&str, (BTreeSet<ThreadKey>, &Function, &ProfileStack)> = BTreeMap::new();
    let mut all = BTreeSet::new();
    for stack in stacks {
        let Some(function) = own(run.names(), &stack.frames) else { continue };
        all.insert(stack.thread);
        let of = places.entry(&function.name).or_insert_with(|| (BTreeSet::new(), function, stack));
        of.0.insert(stack.thread);
    }
    let (threads, function, stack) = places.into_values().max_by_key(|(threads, ..)| threads.len())?;
    (2 * threads.len() >= all.len()).then_some((function, stack))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::rule::Overrides,
        model::{
            finding::Severity,
            kind::OFF_CPU,
            report::fixtures,
            vitals::{Threads, Vitals},
        },
    };

    fn found(counts: impl Iterator<Item = u64>, limit: u64) -> Vec<Finding> {
        let mut run = fixtures::run(&[("clone;serve;next_message;read", 1), ("main;accept_loop;accept", 9)]);
        let mut off_cpu = run.cpu.clone();
        off_cpu.kind = OFF_CPU;
        let of_thread = |tid| ProfileStack { thread: ThreadKey { pid: 7, tid }, ..run.cpu.stacks[0].clone() };
        off_cpu.stacks.extend((10..40).map(of_thread));
        run.off_cpu = Some(off_cpu);
        let points = (0u64..).zip(counts).map(|(s, number)| Threads { time_ns: s * 1_000_000_000, number });
        let of = ProcessVitals {
            pid: 7,
            process: "app".into(),
            threads: points.collect(),
            thread_limit: Some(limit),
            ..ProcessVitals::default()
        };
        run.vitals = Some(Vitals { processes: vec![of], unlisted: 0 });
        check(&run, &Overrides::default().of(&RULE))
    }

    #[test]
    fn threads_that_do_not_end_are_told_with_what_they_wait_in() {
        let leaks = found((0..60).map(|s| 10 + 2 * s), 32_768);
        assert_eq!(leaks[0].severity, Severity::Warning, "{leaks:?}");
        assert!(
            leaks[0].title.contains("128 are there, 118 more than at first, most of them in "),
            "{}",
            leaks[0].title
        );
        assert!(leaks[0].title.contains("limit of 32,768 is reached in"), "{}", leaks[0].title);
        assert_eq!(found((0..60).map(|s| 10 + 20 * s), 32_768)[0].severity, Severity::Critical);
    }

    #[test]
    fn pools_that_start_and_threads_that_come_and_go_are_no_growth() {
        assert!(found((0..60).map(|s| 10 + 50 * u64::from(s % 20 > 3)), 1024).is_empty());
        assert!(found((0..60).map(|s| 10 + (4 * s).min(64)), 1024).is_empty(), "a pool is full");
        assert!(found((0..60).map(|s| 10 + s / 10), 1024).is_empty(), "five");
    }
}
