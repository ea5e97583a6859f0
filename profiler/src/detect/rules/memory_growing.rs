//! A process keeps growing, and none of its sites explains it.

use serde_json::json;

use super::leak::{self, Reaches};
use crate::{
    detect::{
        leak::processes,
        rule::{Needs, Rule, Values},
    },
    model::{
        finding::{Bottleneck, Cost, Finding, ProcessName},
        report::Run,
        units::bytes,
    },
};

/// The rule.
pub static RULE: Rule = Rule {
    name: "memory-growing",
    summary: "a process keeps growing, and no place in the code explains it",
    needs: &[Needs::Memory],
    params: &[],
    check,
    doc: "\
The anonymous and shared memory and swap of a process keep growing, and the leaks found by place make up less than half of
it. Either its allocations were not watched (they are with `--alloc full`, or with `--alloc auto` once it has grown for a
while), or the memory comes from elsewhere: a garbage-collected heap, an allocator that does not give memory back, or mappings.",
};

fn check(run: &Run, _: &Values<'_>) -> Vec<Finding> {
    let Some(memory) = &run.memory else { return Vec::new() };
    let leaks = leak::leaks(memory, run.names());
    let mut found: Vec<Finding> = Vec::new();
    for (process, trend) in memory.processes.iter().zip(processes(memory)) {
        let rate = trend.bytes_per_s.per_time;
        let own = leaks.iter().filter(|leak| leak.process.pid == process.pid);
        let explained: f64 = own.map(|leak| leak.trend.bytes_per_s.per_time).sum();
        let (Some(certainty), Some(last)) = (trend.certainty(), process.growth.last()) else { continue };
        if explained >= rate / 2.0 {
            continue;
        }
        let watched = memory.sites.iter().any(|site| site.pid == process.pid);
        let why = if watched {
            "; what was allocated meanwhile does not explain it: memory from elsewhere, or an allocator that does not give \
             it back"
        } else {
            ""
        };
        let reaches = Reaches::of(process, rate);
        let title = format!(
            "{} (pid {}) grows by {}: it holds {}{}{why}",
            process.process,
            process.pid,
            leak::rate(&trend, certainty),
            bytes(last.held_bytes() as f64),
            leak::reaches(reaches.as_ref()),
        );
        let mut details = leak::trend_details(&trend, certainty, reaches.as_ref());
        details.extend([("held_bytes", json!(last.held_bytes())), ("watched", json!(watched))]);
        found.push(Finding {
            rule: RULE.name,
            severity: leak::severity(reaches.as_ref()),
            bottleneck: Bottleneck::Memory,
            process: ProcessName { pid: process.pid, name: process.process.clone() },
            subject: String::new(),
            title,
            advice: if watched {
                "take snapshots of its heap, or look at its allocator's settings"
            } else {
                "watch its allocations: --alloc full"
            }
            .to_owned(),
            cost: Cost { bytes_per_s: rate, ..Cost::default() },
            evidence: Vec::new(),
            details,
        });
    }
    found
}
