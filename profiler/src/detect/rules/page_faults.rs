//! Much of the CPU time goes to page faults.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    detect::{
        groups,
        rule::{Needs, Param, Rule, Unit, Values},
        words::{self, SHOWN, at, share_of_wall},
    },
    model::{
        finding::{Bottleneck, Cost, Evidence, Finding, ProcessName, Severity},
        report::Run,
    },
};

const SHARE: Param = Param {
    name: "share",
    unit: Unit::Percent,
    default: 20.0,
    help: "CPU samples in page faults",
    flag: None,
};

/// Fewer samples say nothing.
const MIN_SAMPLES: u64 = 100;
/// What costs less than this of one CPU makes nothing slow: a note, from 0 to 1.
const COSTS: f64 = 0.1;

/// The rule.
pub static RULE: Rule = Rule {
    name: "page-fault-storm",
    summary: "much of the CPU time goes to page faults",
    needs: &[Needs::Cpu],
    params: &[SHARE],
    check,
    doc: "\
The share of CPU samples inside the kernel's page fault handler. Memory is mapped, touched once and given back, over and over:
an allocator that returns memory to the kernel at each free (large blocks: glibc maps those above 128 KiB by themselves), or a
program that maps files and reads them once. The stack is where most faults are taken.

Keep buffers instead of allocating them anew; with glibc, `M_MMAP_THRESHOLD` and `M_TRIM_THRESHOLD`; or huge pages.",
};

fn check(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let samples = groups::samples_of(&run.cpu, "page faults");
    let share = 100.0 * samples as f64 / run.cpu.total.max(1) as f64;
    if run.cpu.total < MIN_SAMPLES || share < values.get(&SHARE) {
        return Vec::new();
    }
    let place = run.faults.iter().flat_map(|faults| &faults.stacks).max_by_key(|stack| stack.weight);
    let place = place.or_else(|| {
        let is_fault = |of: &&crate::model::report::ProfileStack| {
            run.cpu.functions(of).any(|(function, ..)| function.name.contains("exc_page_fault"))
        };
        run.cpu.stacks.iter().filter(is_fault).max_by_key(|stack| stack.weight)
    });
    let Some(place) = place else { return Vec::new() };
    let function = words::place(run.names(), &place.frames);
    let ns = run.cpu.estimated_ns(samples);
    vec![Finding {
        rule: RULE.name,
        severity: if (ns as f64) < COSTS * run.cpu.accounts.duration_ns as f64 {
            Severity::Info
        } else {
            Severity::Warning
        },
        bottleneck: Bottleneck::Memory,
        process: ProcessName { pid: place.thread.pid, name: place.process.to_string() },
        title: format!(
            "{share:.0} % of the CPU time goes to page faults, most of them in {}",
            function.map(at).unwrap_or_default()
        ),
        subject: function.map_or_else(String::new, |function| function.name.clone()),
        advice: "keep buffers instead of mapping and touching new memory each time".to_owned(),
        cost: Cost { ns, share_of_wall: share_of_wall(run, ns, 1), ..Cost::default() },
        evidence: vec![Evidence { label: "", frames: place.frames.to_vec(), shown: SHOWN }],
        details: BTreeMap::from([("samples", json!(samples)), ("of_samples", json!(run.cpu.total))]),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::{fixtures::unmark, rule::Overrides},
        model::report::fixtures,
    };

    #[test]
    fn faults_are_told_where_they_are_taken() {
        let found = |faults, other| {
            let mut run = fixtures::run(&[("main;fill;k:asm_exc_page_fault", faults), ("main;work", other)]);
            unmark(&mut run);
            check(&run, &Overrides::default().of(&RULE)).first().map(|finding| finding.subject.clone())
        };
        assert_eq!(found(40, 80), Some("fill".to_owned()));
        assert_eq!(found(10, 110), None);
    }
}
