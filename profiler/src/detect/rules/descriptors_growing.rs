//! A process opens descriptors and does not close them.

use std::collections::BTreeMap;

use serde_json::json;

use super::leak::LIMIT_NEAR_NS;
use crate::{
    detect::rule::{Needs, Param, Rule, Unit, Values},
    model::{
        finding::{Bottleneck, Cost, Finding, ProcessName, Severity},
        report::Run,
        units::{long, thousands},
        vitals::{DescriptorKind, ProcessVitals},
    },
};

const GROWTH: Param = Param {
    name: "growth",
    unit: Unit::Count,
    default: 16.0,
    help: "Descriptors more at the end of the run than at its beginning",
    flag: None,
};

/// Fewer looks say nothing.
const MIN_LOOKS: usize = 4;
/// Parts of the run: their lowest counts must rise from each to the next.
const PARTS: usize = 4;

/// The rule.
pub static RULE: Rule = Rule {
    name: "descriptors-growing",
    summary: "a process opens descriptors and does not close them",
    needs: &[Needs::Vitals],
    params: &[GROWTH],
    check,
    doc: "\
About once a second the open descriptors of the process are counted (`/proc/PID/fd`). The run is divided into four parts; the
lowest count must rise from each part to the next, so that a burst of connections that are closed again is no growth. What grew
most is named: connections by their peer, files by their folder, pipes, event descriptors.

At the limit (RLIMIT_NOFILE) every open, accept and connect fails with EMFILE. At the rate of the run this is so far away as the
finding says; less than an hour is critical. Growth that is load, more clients at once, looks the same as long as it
lasts: where most of it is connections of clients and less than half of the limit is used, it is a note.

Close what was opened, on the ways of errors too: responses whose bodies are not read, files without `with` or `defer`,
connections that the peer has closed (CLOSE_WAIT).",
};

fn check(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let processes = run.vitals.iter().flat_map(|vitals| &vitals.processes);
    processes.filter_map(|of| finding(of, values.get(&GROWTH))).collect()
}

/// What keeps growing, as something that is counted about once a second.
pub(super) struct Growing {
    /// At the first look, and at the last.
    pub first: u64,
    pub last: u64,
    pub per_second: f64,
    /// How long it takes to the limit at this pace, ns; none where none is known.
    pub reaches_ns: Option<u64>,
}

impl Growing {
    /// Of times, ns, and counts; nothing if it grew by less than `least`, or unsteadily.
    pub fn of(points: impl Iterator<Item = (u64, u64)>, limit: Option<u64>, least: f64) -> Option<Growing> {
        let (times, counts): (Vec<u64>, Vec<u64>) = points.unzip();
        let grew = growth(&counts).filter(|grew| *grew as f64 >= least)?;
        let seconds = times.last()?.saturating_sub(*times.first()?) as f64 / 1e9;
        let (first, last, per_second) = (*counts.first()?, *counts.last()?, grew as f64 / seconds.max(1.0));
        let reaches_ns = limit.map(|limit| (limit.saturating_sub(last) as f64 / per_second * 1e9) as u64);
        Some(Growing { first, last, per_second, reaches_ns })
    }

    pub fn severity(&self) -> Severity {
        let near = self.reaches_ns.is_some_and(|ns| ns < LIMIT_NEAR_NS);
        if near { Severity::Critical } else { Severity::Warning }
    }

    /// When `whose` limit is reached, as the end of a sentence.
    pub fn reaches(&self, whose: &str, limit: Option<u64>) -> String {
        let known = limit.zip(self.reaches_ns);
        known.map_or_else(String::new, |(limit, ns)| {
            format!("; {whose} limit of {} is reached in {}", thousands(limit), long(ns))
        })
    }
}

/// How many more there are at the end, if the lowest count of each part of the run is above that of the part before.
fn growth(counts: &[u64]) -> Option<u64> {
    if counts.len() < MIN_LOOKS {
        return None;
    }
    let lowest: Vec<u64> =
        counts.chunks(counts.len().div_ceil(PARTS)).filter_map(|part| part.iter().min().copied()).collect();
    let rises = lowest.windows(2).all(|pair| pair[0] < pair[1]);
    rises.then(|| lowest.last().copied().unwrap_or(0) - lowest.first().copied().unwrap_or(0))
}

fn finding(of: &ProcessVitals, least: f64) -> Option<Finding> {
    let points = of.descriptors.points().iter().map(|point| (point.time_ns, point.open));
    let grows = Growing::of(points, of.descriptor_limit, least)?;
    let Growing { first, last, per_second, reaches_ns } = grows;
    let more = |kind: &DescriptorKind| kind.last.saturating_sub(kind.first);
    let most = of.kinds.iter().max_by_key(|kind| more(kind)).filter(|kind| more(kind) > 0);
    let kind = most.map_or("of no one kind", |kind| &kind.kind);
    let limit = grows.reaches("its", of.descriptor_limit);
    Some(Finding {
        rule: RULE.name,
        severity: if is_load(kind, last, of.descriptor_limit) { Severity::Info } else { grows.severity() },
        bottleneck: Bottleneck::Descriptors,
        process: ProcessName { pid: of.pid, name: of.process.clone() },
        subject: kind.to_owned(),
        title: format!(
            "{per_second:.1} descriptors a second are opened by {} (pid {}) and not closed: {} are open, {} more than at first, \
             most of them {kind}{limit}",
            of.process,
            of.pid,
            thousands(last),
            thousands(last.saturating_sub(first)),
        ),
        advice: "close what is opened, on the ways of errors too; `ls -l /proc/PID/fd` lists them".to_owned(),
        cost: Cost::default(),
        evidence: Vec::new(),
        details: BTreeMap::from([
            ("open", json!(last)),
            ("limit", json!(of.descriptor_limit)),
            ("per_second", json!(per_second)),
            ("limit_reached_after_ns", json!(reaches_ns)),
            ("kinds", json!(of.kinds.iter().filter(|kind| more(kind) > 0).collect::<Vec<_>>())),
        ]),
    })
}

/// Whether these may be clients that come and stay, and are not so many that it matters.
fn is_load(kind: &str, open: u64, limit: Option<u64>) -> bool {
    kind.starts_with("TCP, clients of")
        && !kind.contains("closed by")
        && limit.is_none_or(|limit| 2 * open < limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::rule::Overrides,
        model::vitals::{Descriptors, Vitals},
    };

    fn found(counts: impl Iterator<Item = u64>, limit: u64) -> Vec<Finding> {
        let mut run = crate::model::report::fixtures::run(&[]);
        let points = (0u64..).zip(counts).map(|(s, open)| Descriptors { time_ns: s * 1_000_000_000, open });
        let kind = |kind: &str, first, last| DescriptorKind { kind: kind.into(), first, last };
        let of = ProcessVitals {
            pid: 7,
            process: "app".into(),
            descriptors: points.collect(),
            descriptor_limit: Some(limit),
            kinds: vec![kind("TCP, 10.0.0.2:80", 1, 61), kind("file in /tmp", 2, 3)],
            ..ProcessVitals::default()
        };
        run.vitals = Some(Vitals { processes: vec![of], unlisted: 0 });
        check(&run, &Overrides::default().of(&RULE))
    }

    #[test]
    fn what_is_not_closed_is_told_with_its_peer_and_its_limit() {
        let leaks = found((0..60).map(|s| 10 + s), 1024);
        assert_eq!((leaks[0].severity, leaks[0].subject.as_str()), (Severity::Critical, "TCP, 10.0.0.2:80"));
        assert!(leaks[0].title.contains("limit of 1,024 is reached in"), "{}", leaks[0].title);
        assert_eq!(found((0..60).map(|s| 10 + s), 1 << 20)[0].severity, Severity::Warning, "days away");
    }

    #[test]
    fn clients_that_come_and_stay_are_load_until_they_are_many() {
        assert!(is_load("TCP, clients of :80", 60, Some(1024)));
        assert!(!is_load("TCP, clients of :80", 600, Some(1024)));
        assert!(!is_load("TCP, clients of :80, closed by the other side", 60, Some(1024)));
        assert!(!is_load("TCP, 10.0.0.2:80", 60, Some(1024)));
    }

    #[test]
    fn bursts_and_starts_are_no_growth() {
        assert!(found((0..60).map(|s| 10 + 50 * u64::from(s % 20 > 3)), 1024).is_empty(), "they come and go");
        assert!(found((0..60).map(|s| 10 + s.min(20)), 1024).is_empty(), "it has stopped");
        assert!(found((0..3).map(|s| 10 + 30 * s), 1024).is_empty(), "too few looks");
        assert!(found((0..60).map(|s| 10 + s / 10), 1024).is_empty(), "five");
    }
}
