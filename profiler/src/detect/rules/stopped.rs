//! A process is stopped.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    detect::rule::{Needs, Rule, Values},
    model::{
        finding::{Bottleneck, Cost, Finding, ProcessName, Severity},
        report::Run,
        vitals::ProcessVitals,
    },
};

/// The rule.
pub static RULE: Rule = Rule {
    name: "stopped",
    summary: "a process is stopped by a signal or a debugger",
    needs: &[Needs::Vitals],
    params: &[],
    check,
    doc: "\
The process was found in state T or t of `/proc/PID/stat` at least twice: SIGSTOP, SIGTSTP or SIGTTIN stopped it, or a debugger held
it. It does nothing until SIGCONT comes, or the debugger lets it go. Where it was stopped for half of the time and more, what its
threads waited for is not told; less than a tenth is a note.

`kill -CONT PID` lets it go on; `grep TracerPid /proc/PID/status` names the debugger.",
};

fn check(run: &Run, _: &Values<'_>) -> Vec<Finding> {
    let processes = run.vitals.iter().flat_map(|vitals| &vitals.processes);
    processes.filter(|of| of.stopped >= 2).map(finding).collect()
}

fn finding(of: &ProcessVitals) -> Finding {
    let share = of.stopped as f64 / of.samples.max(1) as f64;
    let (severity, is, advice) = match share {
        share if share >= 0.5 => (
            Severity::Critical,
            "is",
            format!("`kill -CONT {0}`; `grep TracerPid /proc/{0}/status` names a debugger", of.pid),
        ),
        share => (
            if share >= 0.1 { Severity::Warning } else { Severity::Info },
            "was",
            "it went on: look for who stops it (a debugger, job control, a tool that takes cores)".to_owned(),
        ),
    };
    let process = ProcessName { pid: of.pid, name: of.process.clone() };
    Finding {
        severity,
        title: format!(
            "{} (pid {}) {is} stopped by a signal or a debugger: so it was in {} of {} looks",
            of.process, of.pid, of.stopped, of.samples,
        ),
        advice,
        cost: Cost { ns: (of.span_ns as f64 * share) as u64, share_of_wall: share, ..Cost::default() },
        details: BTreeMap::from([("stopped", json!(of.stopped)), ("looks", json!(of.samples))]),
        ..Finding::warning(RULE.name, Bottleneck::Process, process, String::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{detect::rule::Overrides, model::vitals::Vitals};

    #[test]
    fn once_is_not_stopped() {
        let mut run = crate::model::report::fixtures::run(&[]);
        let mut of = |stopped, samples| {
            let processes = vec![ProcessVitals { stopped, samples, ..ProcessVitals::default() }];
            run.vitals = Some(Vitals { processes, unlisted: 0 });
            check(&run, &Overrides::default().of(&RULE)).len()
        };
        assert_eq!([of(1, 1), of(2, 3), of(2, 10)], [0, 1, 1]);
    }
}
