//! The hypervisor gives the machine's CPUs to others.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    detect::rule::{Needs, Param, Rule, Unit, Values},
    model::{
        finding::{Bottleneck, Cost, Finding, ProcessName, Severity},
        report::Run,
    },
};

const SHARE: Param = Param {
    name: "share",
    unit: Unit::Percent,
    default: 10.0,
    help: "CPU time of the machine that the hypervisor gives to others",
    flag: None,
};

/// So many times as much is critical.
const CRITICAL: f64 = 3.0;
/// A target that uses less of one CPU lost nothing that matters.
const HARDLY_RAN: f64 = 0.05;

/// The rule.
pub static RULE: Rule = Rule {
    name: "cpu-stolen",
    summary: "the hypervisor gives CPU time of this machine to others",
    needs: &[Needs::Cpu],
    params: &[SHARE],
    check,
    doc: "\
This machine is a virtual one, and its CPUs were ready to run but did not get a real one (steal time, `st` in `top`), all of them
together, in the run. Nothing inside the machine sees that happen: a function seems slow, a short wait long. Times on a CPU may
contain it. Where the target hardly ran it is a note.

Move to a machine whose CPUs are not shared out so often, or use up no more than the credits of one that has some.",
};

fn check(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let accounts = &run.cpu.accounts;
    let all_ns = accounts.duration_ns.saturating_mul(run.cpu.meta.cpus.max(1).into()).max(1);
    let share = (accounts.stolen_ns as f64 / all_ns as f64).min(1.0);
    if share * 100.0 < values.get(&SHARE) {
        return Vec::new();
    }
    let used_ns = run.cpu.estimated_ns(run.cpu.total) as f64;
    let severity = match share * 100.0 / values.get(&SHARE) {
        _ if used_ns < HARDLY_RAN * accounts.duration_ns as f64 => Severity::Info,
        CRITICAL.. => Severity::Critical,
        _ => Severity::Warning,
    };
    vec![Finding {
        rule: RULE.name,
        severity,
        bottleneck: Bottleneck::CpuStarvation,
        process: ProcessName::default(),
        subject: "steal".to_owned(),
        title: format!(
            "for {:.0} % of the time the hypervisor gave this machine's CPUs to others (steal time)",
            100.0 * share
        ),
        advice: "ask who owns the hypervisor, or move: nothing on this machine can be made faster by as much"
            .to_owned(),
        cost: Cost {
            ns: (share * accounts.duration_ns as f64) as u64,
            share_of_wall: share,
            ..Cost::default()
        },
        evidence: Vec::new(),
        details: BTreeMap::from([("stolen_ns", json!(accounts.stolen_ns))]),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::rule::Overrides;

    #[test]
    fn stolen_time_is_told_by_its_share_of_all_cpus() {
        let severity = |stolen_ns: u64, samples: u64| {
            let mut run = crate::model::report::fixtures::run(&[("main", samples)]);
            // A second of two CPUs.
            run.cpu.accounts.stolen_ns = stolen_ns;
            check(&run, &Overrides::default().of(&RULE)).first().map(|found| (found.severity, found.cost.ns))
        };
        assert_eq!(severity(190_000_000, 50), None);
        assert_eq!(severity(210_000_000, 50), Some((Severity::Warning, 105_000_000)));
        assert_eq!(severity(700_000_000, 50), Some((Severity::Critical, 350_000_000)));
        assert_eq!(severity(700_000_000, 2), Some((Severity::Info, 350_000_000)));
    }
}
