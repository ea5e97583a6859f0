//! Much of the CPU time goes to garbage collection.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    detect::{
        groups,
        rule::{Needs, Param, Rule, Unit, Values},
        words::{at, by_function, is_runtimes, own},
    },
    model::{
        finding::{Bottleneck, Cost, Finding, ProcessName, Severity},
        function::Function,
        report::{Profile, Run},
    },
};

const SHARE: Param = Param {
    name: "share",
    unit: Unit::Percent,
    default: 20.0,
    help: "CPU samples of a process in garbage collection",
    flag: None,
};

/// The kind of work, and the subject of what is about it.
pub const GC: &str = "garbage collection";
/// Fewer samples say nothing.
const MIN_SAMPLES: u64 = 50;
/// Fewer samples outside of the collector do not tell who makes the garbage.
const MIN_MAKES: u64 = 10;
/// By how many standard errors the share must be above half of the threshold: chance alone gets there one time in forty.
const SURE: f64 = 1.96;
/// A target that uses less of one CPU has time enough, percent.
const MIN_CPU: f64 = 10.0;
/// What costs less than this of one CPU makes nothing slow: a note, percent.
const COSTS: f64 = 10.0;
/// So much is critical, percent.
const CRITICAL: f64 = 50.0;

/// The rule.
pub static RULE: Rule = Rule {
    name: "gc-pressure",
    summary: "much of the CPU time goes to garbage collection",
    needs: &[Needs::Cpu],
    params: &[SHARE],
    check,
    doc: "\
The share of CPU samples in functions of a garbage collector (V8, HotSpot, CPython, Go, by their names) or called by them (page
faults of a heap that grows). Work in the mutator's own allocation is not in it. Late iterations of an event loop that go to the
collector belong to this finding. Where the collector takes less than a tenth of one CPU it makes nothing slow: that is a note.

Allocate less: reuse buffers, do not build what is thrown away. Or give the heap more room, so that it is collected less often
(`node --max-semi-space-size=64`, `java -Xmn`, `GOGC=200`). If the heap is nearly full, look for a leak first.",
};

fn check(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let mut processes: BTreeMap<u32, Profile> = BTreeMap::new();
    for stack in &run.cpu.stacks {
        let of = processes.entry(stack.thread.pid).or_insert_with(|| Profile {
            stacks: Vec::new(),
            total: 0,
            ..run.cpu.clone()
        });
        of.total += stack.weight;
        of.stacks.push(stack.clone());
    }
    let wall_ns = run.cpu.accounts.duration_ns.max(1);
    let finding = |(pid, of): (u32, Profile)| {
        let samples = groups::samples_within(&of, GC);
        let share = 100.0 * samples as f64 / of.total.max(1) as f64;
        let ns = of.estimated_ns(samples);
        let cpu = 100.0 * of.estimated_ns(of.total) as f64 / wall_ns as f64;
        let error = (share * (100.0 - share) / of.total.max(1) as f64).sqrt();
        let by_chance = share - SURE * error < values.get(&SHARE) / 2.0;
        if of.total < MIN_SAMPLES || share < values.get(&SHARE) || by_chance || cpu < MIN_CPU {
            return None;
        }
        let name = of.stacks.first().map_or_else(String::new, |stack| stack.process.to_string());
        let most = makes(run, pid).map_or_else(String::new, |(function, share)| {
            format!(", {:.0} % of the rest to {} and what it calls", 100.0 * share, at(function))
        });
        Some(Finding {
            rule: RULE.name,
            severity: match share * cpu / 100.0 {
                ..COSTS => Severity::Info,
                _ if share >= CRITICAL => Severity::Critical,
                _ => Severity::Warning,
            },
            bottleneck: Bottleneck::Memory,
            title: format!(
                "{share:.0} % of the CPU time of {name} (pid {pid}) goes to garbage collection{most}"
            ),
            process: ProcessName { pid, name },
            subject: GC.to_owned(),
            advice: "allocate less in the hot paths below, or give the heap more room".to_owned(),
            cost: Cost { ns, share_of_wall: (ns as f64 / wall_ns as f64).min(1.0), ..Cost::default() },
            evidence: Vec::new(),
            details: BTreeMap::from([("samples", json!(samples)), ("of_samples", json!(of.total))]),
        })
    };
    processes.into_iter().filter_map(finding).collect()
}

/// Who makes the garbage, as far as one can tell: the program's own function with most of the CPU time that does not go to the
/// collector, what it calls included, and its share of that.
fn makes(run: &Run, pid: u32) -> Option<(&Function, f64)> {
    let names = run.names();
    let of_process = run.cpu.stacks.iter().filter(|of| of.thread.pid == pid);
    let works = of_process.filter(|of| !groups::is_within(names, &of.frames, GC));
    let found = by_function(names, works, |of| own(names, &of.frames).filter(|own| !is_runtimes(own)));
    let (function, samples, _) = found.most.filter(|_| found.known >= MIN_MAKES)?;
    Some((function, samples as f64 / found.all as f64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{detect::rule::Overrides, model::report::fixtures};

    #[test]
    fn a_collector_that_takes_a_third_is_told() {
        let found = |gc, other| {
            let run = fixtures::run(&[("main;v8::internal::Scavenger::Process", gc), ("main;work", other)]);
            check(&run, &Overrides::default().of(&RULE)).first().map(|finding| finding.severity)
        };
        assert_eq!(found(40, 80), Some(Severity::Warning));
        assert_eq!(found(80, 40), Some(Severity::Critical));
        let mut light = fixtures::run(&[("main;v8::internal::Scavenger::Process", 40), ("main;work", 80)]);
        light.cpu.accounts.duration_ns *= 5;
        let finding = check(&light, &Overrides::default().of(&RULE)).remove(0);
        assert_eq!(finding.severity, Severity::Info, "less than a tenth of a CPU");
        assert_eq!((found(10, 110), found(20, 20)), (None, None), "little, and few samples");
        assert_eq!((found(15, 45), found(11, 43)), (Some(Severity::Warning), None), "one is beyond chance");
    }

    #[test]
    fn who_makes_the_garbage_is_told_by_the_rest_of_the_time() {
        let run = fixtures::run(&[
            ("main;v8::internal::Scavenger::Process;v8::internal::Scavenger::ScavengeObject", 60),
            ("main;serve;search", 25),
            ("main;serve;render", 15),
        ]);
        let finding = check(&run, &Overrides::default().of(&RULE)).remove(0);
        assert!(
            finding.title.contains("goes to garbage collection, 62 % of the rest to search"),
            "{finding:?}"
        );
    }
}
