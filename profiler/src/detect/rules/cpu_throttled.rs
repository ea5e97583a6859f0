//! A CPU quota is used up.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    detect::rule::{Needs, Param, Rule, Unit, Values},
    model::{
        finding::{Bottleneck, Cost, Finding, ProcessName, Severity},
        report::Run,
        vitals::{ProcessVitals, Throttling},
        wait::Blocking,
    },
};

const PERIODS: Param = Param {
    name: "periods",
    unit: Unit::Percent,
    default: 10.0,
    help: "Periods in which the quota is used up before they end",
    flag: None,
};

/// So many of the periods are critical.
const CRITICAL: f64 = 50.0;
/// Fewer periods say nothing.
const MIN_PERIODS: u64 = 10;

/// The rule.
pub static RULE: Rule = Rule {
    name: "cpu-throttled",
    summary: "a CPU quota is used up, and the process is stopped until the next period",
    needs: &[Needs::Vitals],
    params: &[PERIODS],
    check,
    doc: "\
The process's cgroup, or one above it, has a CPU quota (`cpu.max`; a container's CPU limit), and its threads used it up before
the period ended. Until the next period, 100 ms by default, none of them runs: a request takes up to that much longer, though
the CPUs may be idle. The counts are those of `cpu.stat` during the run, of the whole cgroup.

Raise the limit, or let fewer threads run at once: many threads use up a quota in a fraction of the period.",
};

fn check(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let mut processes: Vec<&ProcessVitals> = run.vitals.iter().flat_map(|vitals| &vitals.processes).collect();
    // Of those that share a quota who uses most of it is to be told, not who started the others.
    let used = run.blocking.as_ref().map(Blocking::on_cpu_by_process).unwrap_or_default();
    processes.sort_by_key(|of| std::cmp::Reverse(used.get(&of.pid).copied()));
    let mut found: Vec<Finding> = Vec::new();
    for of in processes {
        let Some(throttling) = &of.throttling else { continue };
        let share = 100.0 * throttling.throttled_periods as f64 / throttling.periods.max(1) as f64;
        // Processes of one cgroup share its quota.
        let known = found.iter().any(|finding| finding.subject == throttling.cgroup);
        if throttling.periods >= MIN_PERIODS && share >= values.get(&PERIODS) && !known {
            found.push(finding(of, throttling, share));
        }
    }
    found
}

fn finding(of: &ProcessVitals, throttling: &Throttling, share: f64) -> Finding {
    let quota = throttling.cpus.map_or_else(String::new, |cpus| format!(" of {cpus:.2} CPUs"));
    Finding {
        rule: RULE.name,
        severity: if share >= CRITICAL { Severity::Critical } else { Severity::Warning },
        bottleneck: Bottleneck::CpuStarvation,
        process: ProcessName { pid: of.pid, name: of.process.clone() },
        subject: throttling.cgroup.clone(),
        title: format!(
            "in {share:.0} % of the periods {} (pid {}) used up the CPU quota{quota} of cgroup {} and was stopped",
            of.process, of.pid, throttling.cgroup
        ),
        advice: "raise the CPU limit (cpu.max), or let fewer threads run at once".to_owned(),
        cost: Cost {
            ns: throttling.throttled_ns,
            share_of_wall: (throttling.throttled_ns as f64 / of.span_ns.max(1) as f64).min(1.0),
            ..Cost::default()
        },
        evidence: Vec::new(),
        details: BTreeMap::from([
            ("cpus", json!(throttling.cpus)),
            ("periods", json!(throttling.periods)),
            ("throttled_periods", json!(throttling.throttled_periods)),
            ("throttled_ns", json!(throttling.throttled_ns)),
        ]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{detect::rule::Overrides, model::vitals::Vitals};

    #[test]
    fn a_quota_that_is_used_up_is_found_once_a_cgroup() {
        let mut run = crate::model::report::fixtures::run(&[]);
        let throttled = |pid, throttled_periods| ProcessVitals {
            pid,
            throttling: Some(Throttling {
                cgroup: "/a".into(),
                periods: 100,
                throttled_periods,
                ..Throttling::default()
            }),
            ..ProcessVitals::default()
        };
        let mut of = |throttled_periods| {
            let processes = vec![throttled(7, throttled_periods), throttled(8, throttled_periods)];
            run.vitals = Some(Vitals { processes, unlisted: 0 });
            check(&run, &Overrides::default().of(&RULE))
        };
        assert_eq!(of(60).iter().map(|finding| finding.severity).collect::<Vec<_>>(), [Severity::Critical]);
        assert!(of(5).is_empty());
    }
}
