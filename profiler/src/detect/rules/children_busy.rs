//! The work is done by children that were not profiled.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    detect::rule::{Needs, Param, Rule, Unit, Values},
    model::{
        finding::{Bottleneck, Cost, Finding, ProcessName, Severity},
        report::Run,
        vitals::ProcessVitals,
    },
};

const SHARE: Param = Param {
    name: "share",
    unit: Unit::Percent,
    default: 20.0,
    help: "CPU time of children, of one CPU",
    flag: None,
};

const WARNING: Param = Param {
    name: "warning",
    unit: Unit::Percent,
    default: 50.0,
    help: "CPU time of children, of one CPU, that is a warning: what is told of the target is not what costs",
    flag: None,
};

/// The rule.
pub static RULE: Rule = Rule {
    name: "children-busy",
    summary: "children that were not profiled use the CPU",
    needs: &[Needs::Vitals],
    params: &[SHARE, WARNING],
    check,
    doc: "\
Children of the target that are no targets themselves used this much CPU time during the run, those that have ended
included. What they did is in no other figure of the report: a quiet primary of a cluster may have workers that burn all CPUs.

Profile them too: `--follow` with the same pid sees children that are started from then on, `--comm NAME` or `--pid` each of
those that run already.",
};

fn check(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let processes = run.vitals.iter().flat_map(|vitals| &vitals.processes);
    let share = |of: &ProcessVitals, ns: u64| ns as f64 / of.span_ns.max(1) as f64;
    processes
        .map(|of| (of, run.unprofiled_children_ns(of)))
        .filter(|(of, ns)| share(of, *ns) * 100.0 >= values.get(&SHARE))
        .map(|(of, ns)| finding(of, ns, share(of, ns), values))
        .collect()
}

fn finding(of: &ProcessVitals, children_ns: u64, share: f64, values: &Values<'_>) -> Finding {
    let busiest: Vec<String> = of
        .children
        .iter()
        .filter(|child| child.cpu_ns > 0)
        .take(3)
        .map(|child| {
            let share = 100.0 * child.cpu_ns as f64 / of.span_ns.max(1) as f64;
            format!("{} (pid {}) {share:.0} %", child.process, child.pid)
        })
        .collect();
    // Of many that come and go, those that lived at a look say little.
    let listed: u64 = of.children.iter().map(|child| child.cpu_ns).sum();
    let short_lived = 4 * listed < children_ns;
    let busiest = match (short_lived, of.children.first()) {
        (true, Some(child)) => format!("short-lived ones like {}", child.process),
        (_, None) => "short-lived ones".to_owned(),
        (false, _) => busiest.join(", "),
    };
    let pids = of
        .children
        .iter()
        .filter(|child| child.cpu_ns > 0 && !short_lived)
        .map(|child| format!("--pid {}", child.pid));
    let pids: Vec<String> = pids.collect();
    let advice = match &pids[..] {
        [] => "profile them too: --follow".to_owned(),
        pids => format!("profile them: {}", pids.join(" ")),
    };
    let process = ProcessName { pid: of.pid, name: of.process.clone() };
    let subject = of.children.first().map_or_else(String::new, |child| child.process.clone());
    Finding {
        severity: if share * 100.0 >= values.get(&WARNING) { Severity::Warning } else { Severity::Info },
        title: format!(
            "children of {} (pid {}) used {:.0} % of one CPU and were not profiled: {busiest}",
            of.process,
            of.pid,
            100.0 * share
        ),
        advice,
        cost: Cost { ns: children_ns, share_of_wall: share.min(1.0), ..Cost::default() },
        details: BTreeMap::from([("children_cpu_ns", json!(children_ns)), ("children", json!(of.children))]),
        ..Finding::warning(RULE.name, Bottleneck::Process, process, subject)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::judge,
        detect::rule::Overrides,
        model::{
            stack::ThreadKey,
            vitals::{Child, Vitals},
            wait::{Blocking, ThreadTime},
        },
    };

    #[test]
    fn children_that_were_followed_were_profiled() {
        let mut run = crate::model::report::fixtures::run(&[]);
        run.cpu.accounts.duration_ns = 10_000_000_000;
        let shell = ProcessVitals {
            pid: 7,
            process: "sh".into(),
            span_ns: 10_000_000_000,
            children_cpu_ns: 9_000_000_000,
            ..ProcessVitals::default()
        };
        run.vitals = Some(Vitals { processes: vec![shell], unlisted: 0 });
        let found = |run: &Run| check(run, &Overrides::default().of(&RULE)).len();
        assert_eq!(found(&run), 1);
        let time = |pid, on_cpu_ns| ThreadTime {
            thread: ThreadKey { pid, tid: pid },
            on_cpu_ns,
            wall_ns: 5_000_000_000,
            ..ThreadTime::default()
        };
        // The shell's own time is nobody else's.
        let mut threads = vec![time(7, 9_000_000_000)];
        run.blocking = Some(Blocking { threads: threads.clone(), ..Blocking::default() });
        assert_eq!(found(&run), 1);
        // Nor is that of another target, which lives on.
        threads.push(ThreadTime { wall_ns: 10_000_000_000, ..time(20, 9_000_000_000) });
        run.blocking = Some(Blocking { threads: threads.clone(), ..Blocking::default() });
        assert_eq!(found(&run), 1);
        // Those that ended may be told together.
        threads.extend([time(8, 4_500_000_000), ThreadTime { others: 3, ..time(0, 4_000_000_000) }]);
        run.blocking = Some(Blocking { threads, ..Blocking::default() });
        assert_eq!(found(&run), 0);
        let child = Child { pid: 9, process: "node".into(), cpu_ns: 3_000_000_000, alive: true };
        run.vitals.as_mut().unwrap().processes[0].children = vec![child];
        assert_eq!(found(&run), 1, "this one was not");
    }

    #[test]
    fn a_quiet_primary_is_not_called_idle() {
        let mut run = crate::model::report::fixtures::run(&[]);
        run.cpu.accounts.duration_ns = 10_000_000_000;
        run.blocking = Some(crate::model::wait::Blocking::default());
        let children = vec![Child { pid: 8, process: "node".into(), cpu_ns: 9_000_000_000, alive: true }];
        let primary = ProcessVitals {
            pid: 7,
            process: "node".into(),
            span_ns: 10_000_000_000,
            children_cpu_ns: 19_000_000_000,
            children,
            ..ProcessVitals::default()
        };
        run.vitals = Some(Vitals { processes: vec![primary], unlisted: 0 });
        judge(&mut run, &Overrides::default());
        let verdict = run.verdict.clone().unwrap();
        assert_eq!(verdict.bottleneck, Bottleneck::Process);
        // Most of the time is that of others, which lived between two looks.
        let vitals = run.vitals.as_mut().unwrap();
        vitals.processes[0].children[0].cpu_ns /= 10;
        let short = check(&run, &Overrides::default().of(&RULE)).remove(0);
        assert!(
            short.title.ends_with("short-lived ones like node") && short.advice.ends_with("--follow"),
            "{short:?}"
        );
        assert_eq!(run.findings[0].severity, Severity::Warning, "both CPUs");
        assert!(
            verdict.sentence.contains("190 % of one CPU") && verdict.advice.contains("--pid 8"),
            "{verdict:?}"
        );
    }
}
