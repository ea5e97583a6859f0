//! One finding for one defect: what several rules see of it, or what happens alike in several processes, is reported once.

use std::{cmp::Reverse, collections::BTreeMap};

use serde_json::json;

use crate::model::{
    finding::{Bottleneck, Finding, Severity},
    report::Names,
    units::thousands,
};

/// Rules that say why a loop is held up.
const EXPLAIN: [&str; 2] = ["gc-pressure", "nested-wait"];
/// Rules that say how CPU time is spent: where a finding of another rule shows the same function, they are about the same work.
const HOW: [&str; 3] = ["page-fault-storm", "cpu-bound", "busy-poll"];
/// Rules that say that there is a lack, and not where.
const THAT: [&str; 1] = ["lock-convoy"];
/// Rules whose defect is one of its own, whatever its threads lack.
const APART: [&str; 2] = ["thread-pool-saturated", "retry-storm"];
/// Rules that say why a CPU is lacking: where that costs at least half of it, they stand for the lack.
const WHY: [&str; 1] = ["cpu-throttled"];

/// Merges what is one defect. The worst stands for it; in its details, `also` has the ids of the others, and `alike` how many
/// processes or threads it happened to.
pub fn defects(found: Vec<Finding>, names: &Names) -> Vec<Finding> {
    same_work(made_by_polls(same_reason(alike(found))), names)
}

fn rank(of: &Finding) -> (impl Ord + use<>, u64) {
    (of.severity, of.cost.ns)
}

/// The same finding of several processes or threads with one name is one.
fn alike(found: Vec<Finding>) -> Vec<Finding> {
    let mut groups: BTreeMap<String, Vec<Finding>> = BTreeMap::new();
    for finding in found {
        groups.entry(finding.id()).or_default().push(finding);
    }
    let merged = groups.into_values().filter_map(|mut group| {
        group.sort_by_key(|of| Reverse(rank(of)));
        let ns = group.iter().map(|of| of.cost.ns).sum();
        let bytes_per_s = group.iter().map(|of| of.cost.bytes_per_s).sum();
        let others = group.len() as u64 - 1;
        let mut first = group.into_iter().next()?;
        if others > 0 {
            first.cost.ns = ns;
            first.cost.bytes_per_s = bytes_per_s;
            first.title = format!("{} (and {} alike)", first.title, thousands(others));
            first.details.insert("alike", json!(others + 1));
        }
        Some(first)
    });
    merged.collect()
}

/// What a process lacks a CPU, a lock or a disk for is one defect, whichever rule saw it; so is a lack of the same kind with
/// the same subject; and a loop that is held up by what another rule explains is explained by that.
fn same_reason(mut found: Vec<Finding>) -> Vec<Finding> {
    const ONE: [Bottleneck; 3] = [Bottleneck::CpuStarvation, Bottleneck::Lock, Bottleneck::Io];
    found.sort_by_key(|of| Reverse(rank(of)));
    let mut kept: Vec<Finding> = Vec::new();
    for finding in found {
        let first = kept.iter_mut().find(|of| {
            let of_process = of.process.name == finding.process.name && of.bottleneck == finding.bottleneck;
            let same = !of.subject.is_empty() && of.subject == finding.subject;
            let apart = APART.contains(&of.rule) != APART.contains(&finding.rule);
            of_process && !apart && (same || ONE.contains(&of.bottleneck))
        });
        match first {
            // Whichever costs more, the one that explains stands for both.
            Some(first)
                if explains(&finding, first)
                    || says_more(&finding) > says_more(first)
                        && (first.subject == finding.subject || THAT.contains(&first.rule)) =>
            {
                let other = std::mem::replace(first, finding);
                stand_for(first, &other);
            }
            Some(first) => also(first, &finding),
            None => kept.push(finding),
        }
    }
    kept
}

/// That a process's own threads lack CPUs comes from those that poll without waiting.
fn made_by_polls(found: Vec<Finding>) -> Vec<Finding> {
    let (lacks, mut kept): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|of| of.details.get("own_threads") == Some(&json!(true)));
    for lack in lacks {
        let made = |of: &&mut Finding| {
            let polls = of.rule == "busy-poll" && of.process.pid == lack.process.pid;
            polls && 2 * of.cost.ns >= lack.cost.ns
        };
        match kept.iter_mut().find(made) {
            Some(polls) => stand_for(polls, &lack),
            None => kept.push(lack),
        }
    }
    kept
}

fn explains(why: &Finding, lack: &Finding) -> bool {
    WHY.contains(&why.rule) && !WHY.contains(&lack.rule) && 2 * why.cost.ns >= lack.cost.ns
}

/// How a process spends its CPU time is no defect besides another one of its CPU time that shows the same function.
fn same_work(found: Vec<Finding>, names: &Names) -> Vec<Finding> {
    let shows = |of: &Finding, subject: &str| {
        let functions = of.evidence.iter().flat_map(|evidence| names.functions(&evidence.frames));
        let name = subject.split(" (").next().unwrap_or(subject);
        functions.into_iter().any(|(function, ..)| function.name == name)
    };
    let (how, mut kept): (Vec<_>, Vec<_>) = found.into_iter().partition(|of| HOW.contains(&of.rule));
    for finding in how {
        let same = |of: &&mut Finding| {
            let cpu = [Bottleneck::Cpu, Bottleneck::Io, Bottleneck::Memory].contains(&of.bottleneck);
            let about = cpu && of.process.pid == finding.process.pid && shows(of, &finding.subject);
            about && (of.severity >= Severity::Warning || of.severity >= finding.severity)
        };
        let known = !finding.subject.is_empty();
        match kept.iter_mut().find(|of| known && same(of)) {
            Some(first) => stand_for(first, &finding),
            None => kept.push(finding),
        }
    }
    kept
}

/// How much a finding says of a defect that several rules see: why, more than what, more than how.
fn says_more(of: &Finding) -> u8 {
    match of.rule {
        rule if EXPLAIN.contains(&rule) => 2,
        rule if HOW.contains(&rule) || THAT.contains(&rule) => 0,
        _ => 1,
    }
}

/// Lets a finding stand for another one, whatever that costs.
fn stand_for(first: &mut Finding, other: &Finding) {
    first.severity = first.severity.max(other.severity);
    if other.cost.ns > first.cost.ns {
        first.cost = other.cost;
    }
    also(first, other);
}

/// Notes that a finding says the same as another.
fn also(first: &mut Finding, other: &Finding) {
    let also = first.details.entry("also").or_insert_with(|| json!([]));
    if let Some(ids) = also.as_array_mut() {
        ids.push(json!(other.id()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::finding::{Cost, Evidence, ProcessName};

    fn finding(rule: &'static str, pid: u32, bottleneck: Bottleneck, ns: u64) -> Finding {
        Finding {
            rule,
            severity: Severity::Warning,
            bottleneck,
            process: ProcessName { pid, name: "app".into() },
            subject: String::new(),
            title: format!("{rule} in {pid}"),
            advice: String::new(),
            cost: Cost { ns, ..Cost::default() },
            evidence: Vec::new(),
            details: BTreeMap::new(),
        }
    }

    #[test]
    fn one_defect_is_one_finding() {
        let merged = defects(
            vec![
                finding("stall", 1, Bottleneck::Cpu, 5),
                finding("stall", 2, Bottleneck::Cpu, 9),
                finding("starved", 1, Bottleneck::CpuStarvation, 3),
                finding("stall-queue", 1, Bottleneck::CpuStarvation, 2),
            ],
            &Names::default(),
        );
        assert_eq!(merged.len(), 2, "{merged:#?}");
        assert_eq!(
            (merged[0].process.pid, merged[0].cost.ns, &merged[0].details["alike"]),
            (2, 14, &json!(2))
        );
        assert_eq!((merged[1].rule, &merged[1].details["also"]), ("starved", &json!(["stall-queue:app"])));
    }

    #[test]
    fn a_quota_that_is_used_up_says_why_there_is_no_cpu() {
        let first = |starved: u64, throttled: u64| {
            let lack = finding("cpu-starvation", 1, Bottleneck::CpuStarvation, starved);
            let why = finding("cpu-throttled", 1, Bottleneck::CpuStarvation, throttled);
            let merged = defects(vec![lack, why], &Names::default());
            assert_eq!(merged.len(), 1);
            merged[0].rule
        };
        assert_eq!(first(65, 64), "cpu-throttled");
        assert_eq!(first(65, 7), "cpu-starvation", "others have the CPUs");
    }

    #[test]
    fn threads_that_spin_are_why_the_others_lack_cpus() {
        let lack = |own: bool| {
            let mut lack = finding("cpu-starvation", 1, Bottleneck::CpuStarvation, 9);
            lack.details.insert("own_threads", json!(own));
            lack
        };
        let rules = |lack: Finding, pid| {
            let polls = finding("busy-poll", pid, Bottleneck::Cpu, 5);
            defects(vec![lack, polls], &Names::default()).into_iter().map(|of| of.rule).collect::<Vec<_>>()
        };
        assert_eq!(rules(lack(true), 1), ["busy-poll"]);
        assert_eq!(rules(lack(true), 2).len(), 2, "another process spins");
        let mut much = lack(true);
        much.cost.ns = 11;
        assert_eq!(rules(much, 1).len(), 2, "others compute");
        assert_eq!(rules(lack(false), 1).len(), 2, "somebody else has the CPUs");
    }

    #[test]
    fn where_a_lock_is_waited_for_stands_for_a_convoy_and_a_pool_for_itself() {
        let convoy =
            Finding { severity: Severity::Critical, ..finding("lock-convoy", 1, Bottleneck::Lock, 0) };
        let place = Finding { subject: "save".into(), ..finding("lock-contention", 1, Bottleneck::Lock, 7) };
        let merged = defects(vec![convoy, place], &Names::default());
        assert_eq!(
            (merged.len(), merged[0].rule, merged[0].severity),
            (1, "lock-contention", Severity::Critical)
        );
        let pool = finding("thread-pool-saturated", 1, Bottleneck::Io, 99);
        let stall =
            Finding { subject: "readFileSync".into(), ..finding("event-loop-stall", 1, Bottleneck::Io, 5) };
        assert_eq!(defects(vec![pool, stall], &Names::default()).len(), 2);
    }

    #[test]
    fn what_two_rules_say_of_one_subject_is_one_finding() {
        let about = |rule, subject: &str, ns| Finding {
            subject: subject.into(),
            ..finding(rule, 1, Bottleneck::Process, ns)
        };
        let two = |second: Finding| defects(vec![about("stall", "f", 5), second], &Names::default()).len();
        assert_eq!(two(about("nested", "f", 9)), 1);
        assert_eq!(two(about("nested", "g", 9)), 2);
        assert_eq!(two(Finding { bottleneck: Bottleneck::Memory, ..about("leak", "f", 9) }), 2);
    }

    #[test]
    fn how_cpu_time_is_spent_belongs_to_what_shows_the_same_function() {
        let run = crate::model::report::fixtures::run(&[("main;load;read", 1)]);
        let stall = Finding {
            severity: Severity::Critical,
            evidence: vec![Evidence { frames: run.cpu.stacks[0].frames.to_vec(), ..Evidence::default() }],
            ..finding("stall", 1, Bottleneck::Cpu, 9)
        };
        let faults = |function: &str| Finding {
            subject: function.into(),
            ..finding("page-fault-storm", 1, Bottleneck::Memory, 5)
        };
        let rules = |function: &str| {
            let found = defects(vec![stall.clone(), faults(function)], run.names());
            found.into_iter().map(|of| of.rule).collect::<Vec<_>>()
        };
        assert_eq!(rules("read"), ["stall"]);
        let bound = Finding { subject: "load".into(), ..finding("cpu-bound", 1, Bottleneck::Cpu, 99) };
        let late = Finding { severity: Severity::Warning, subject: "load".into(), ..stall.clone() };
        let one = defects(vec![bound, late], run.names());
        assert_eq!(
            (one.len(), one[0].rule, one[0].cost.ns),
            (1, "stall", 99),
            "the loop, whatever costs more"
        );
        assert_eq!(rules("render").len(), 2);
    }
}
