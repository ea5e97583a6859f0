//! A system call that keeps failing.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    detect::rule::{Needs, Param, Rule, Unit, Values},
    model::{
        finding::{Bottleneck, Cost, Finding, ProcessName},
        report::Run,
        units::{percent, thousands, time},
    },
};

const SHARE: Param = Param {
    name: "share",
    unit: Unit::Percent,
    default: 5.0,
    help: "Calls that fail, of at least 100 calls a second",
    flag: Some("error-storm"),
};

/// The rule.
pub static RULE: Rule = Rule {
    name: "error-storm",
    summary: "a system call keeps failing",
    needs: &[Needs::Calls],
    params: &[SHARE],
    check,
    doc: "\
Of a system call that a process makes at least 100 times a second, so large a part fails with an error that is no everyday
answer. EAGAIN, EINPROGRESS, EINTR and ENOENT are everyday answers, and what `--expected-error` names.

Each such call is work for nothing; most often the program retries what cannot succeed. The error says what is
missing: EMFILE is the limit of open descriptors (`ulimit -n`), EACCES a right, ECONNREFUSED a server.",
};

fn check(run: &Run, _: &Values<'_>) -> Vec<Finding> {
    let storms = run.calls.iter().flat_map(|calls| &calls.storms);
    let finding = |of: &crate::model::syscall::ErrorStorm| Finding {
        rule: RULE.name,
        severity: of.severity(),
        bottleneck: Bottleneck::Cpu,
        process: ProcessName { pid: of.pid, name: of.process.clone() },
        subject: format!("{} {}", of.syscall, of.errno),
        title: format!(
            "error storm: {} of {} (pid {}) failed {} of {} times ({:.0} %) in {}, mostly with {}",
            of.syscall,
            of.process,
            of.pid,
            thousands(of.failed),
            thousands(of.calls),
            percent(of.failed, of.calls),
            time(of.lasted_ns),
            of.errno,
        ),
        advice: String::new(),
        cost: Cost::default(),
        evidence: Vec::new(),
        details: BTreeMap::from([
            ("calls", json!(of.calls)),
            ("failed", json!(of.failed)),
            ("errno", json!(of.errno)),
            ("lasted_ns", json!(of.lasted_ns)),
        ]),
    };
    storms.map(finding).collect()
}
