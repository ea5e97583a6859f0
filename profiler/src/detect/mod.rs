//! Conclusions from a run. A rule is a file in [`rules`] and a line in [`RULES`]; time is an argument, never read from a
//! clock.

use crate::{
    detect::rule::{Overrides, Rule},
    model::{
        finding::{Bottleneck, Finding, Severity},
        report::Run,
    },
};

pub mod blocked;
pub mod causes;
pub mod compare;
mod crews;
pub mod diagnosis;
pub mod flow;
pub mod groups;
pub mod hotspot;
pub mod leak;
pub mod merge;
pub mod other_end;
pub mod paths;
pub mod roles;
pub mod rule;
pub mod rules;
pub mod served;
pub mod trend;
pub mod words;

#[cfg(test)]
pub(crate) mod fixtures;

/// Every rule.
pub static RULES: &[&Rule] = &[
    &rules::leak::RULE,
    &rules::memory_growing::RULE,
    &rules::gc_pressure::RULE,
    &rules::page_faults::RULE,
    &rules::event_loop_stall::RULE,
    &rules::nested_wait::RULE,
    &rules::worker_blocked::RULE,
    &rules::long_wait::RULE,
    &rules::slow_io::RULE,
    &rules::deadlock::RULE,
    &rules::lock_contention::RULE,
    &rules::lock_convoy::RULE,
    &rules::busy_poll::RULE,
    &rules::cpu_bound::RULE,
    &rules::cpu_starvation::RULE,
    &rules::cpu_stolen::RULE,
    &rules::cpu_throttled::RULE,
    &rules::descriptors_growing::RULE,
    &rules::threads_growing::RULE,
    &rules::stopped::RULE,
    &rules::thread_pool::RULE,
    &rules::slow_peer::RULE,
    &rules::routes::N_PLUS_ONE,
    &rules::routes::SEQUENTIAL,
    &rules::files_per_request::RULE,
    &rules::answers::ERRORS,
    &rules::answers::SLOW_ROUTE,
    &rules::answers::QUEUEING,
    &rules::accept_backlog::RULE,
    &rules::large_answers::RULE,
    &rules::retry_storm::RULE,
    &rules::connect_errors::RULE,
    &rules::connections::CHURN,
    &rules::connections::UNANSWERED,
    &rules::children_busy::RULE,
    &rules::chatty_io::RULE,
    &rules::error_storm::RULE,
];

/// Judges a run: its findings and its verdict are kept in it.
pub fn judge(run: &mut Run, overrides: &Overrides) {
    causes::settle(run);
    run.findings = findings(run, overrides);
    run.verdict = Some(diagnosis::verdict(run));
}

/// All findings of a run, worst first.
pub fn findings(run: &Run, overrides: &Overrides) -> Vec<Finding> {
    let able = RULES.iter().filter(|rule| rule.needs.iter().all(|needs| needs.is_in(run)));
    let found: Vec<Finding> = able.flat_map(|rule| (rule.check)(run, &overrides.of(rule))).collect();
    let found = without_consequences_of_stops(found);
    let mut found = merge::defects(found, run.names());
    let rank = |of: &Finding| (of.severity, fills_up_soon(of), of.cost.ns);
    found.sort_by_key(|finding| std::cmp::Reverse(rank(finding)));
    causes_first(&mut found);
    found
}

/// Who is stopped waits for nothing else, whatever its threads waited for before.
fn without_consequences_of_stops(mut found: Vec<Finding>) -> Vec<Finding> {
    let is_stop = |of: &Finding| of.rule == rules::stopped::RULE.name && of.severity == Severity::Critical;
    let stopped: Vec<u32> = found.iter().filter(|of| is_stop(of)).map(|of| of.process.pid).collect();
    let waits =
        |of: &Finding| of.cost.ns > 0 && !matches!(of.bottleneck, Bottleneck::Cpu | Bottleneck::Memory);
    found.retain(|of| is_stop(of) || !waits(of) || !stopped.contains(&of.process.pid));
    found
}

/// What grows until it is killed comes before all that costs time, unless that is known to take long.
fn fills_up_soon(of: &Finding) -> bool {
    const SOON_NS: u64 = 86_400 * 1_000_000_000;
    let limit_ns = of.details.get("limit_reached_after_ns").and_then(serde_json::Value::as_u64);
    of.cost.bytes_per_s > 0.0 && limit_ns.is_none_or(|ns| ns < SOON_NS)
}

/// What makes requests late.
const DELAYS: &[&Rule] = &[
    &rules::gc_pressure::RULE,
    &rules::event_loop_stall::RULE,
    &rules::nested_wait::RULE,
    &rules::worker_blocked::RULE,
    &rules::long_wait::RULE,
    &rules::slow_io::RULE,
    &rules::deadlock::RULE,
    &rules::lock_contention::RULE,
    &rules::lock_convoy::RULE,
    &rules::cpu_bound::RULE,
    &rules::cpu_starvation::RULE,
    &rules::cpu_stolen::RULE,
    &rules::cpu_throttled::RULE,
    &rules::thread_pool::RULE,
    &rules::slow_peer::RULE,
    &rules::routes::N_PLUS_ONE,
    &rules::routes::SEQUENTIAL,
    &rules::files_per_request::RULE,
    &rules::connections::UNANSWERED,
];

/// What makes them fail.
const FAILURES: &[&Rule] = &[
    &rules::connect_errors::RULE,
    &rules::connections::UNANSWERED,
    &rules::slow_peer::RULE,
    &rules::descriptors_growing::RULE,
    &rules::threads_growing::RULE,
    &rules::error_storm::RULE,
];

/// What clients of the process notice, and by what that can be explained.
const SYMPTOMS: [(&Rule, &[&Rule]); 4] = [
    (&rules::answers::ERRORS, FAILURES),
    (&rules::answers::SLOW_ROUTE, DELAYS),
    (&rules::answers::QUEUEING, DELAYS),
    (&rules::accept_backlog::RULE, DELAYS),
];

/// Puts what clients notice behind the first finding of the same process that warns and can explain it.
fn causes_first(found: &mut [Finding]) {
    for (symptom, causes) in SYMPTOMS {
        let explains = |of: &Finding, pid: u32| {
            of.process.pid == pid
                && of.severity >= Severity::Warning
                && causes.iter().any(|cause| cause.name == of.rule)
        };
        // From the last one on, so that those that are moved keep their order.
        for at in (0..found.len()).rev().filter(|at| found[*at].rule == symptom.name).collect::<Vec<_>>() {
            let pid = found[at].process.pid;
            if let Some(after) = found[at + 1..].iter().position(|of| explains(of, pid)) {
                found[at..=at + 1 + after].rotate_left(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::model::finding::ProcessName;

    #[test]
    fn growth_comes_first_where_it_ends_soon() {
        let growth = |limit_ns: Option<u64>| {
            let mut of =
                Finding::warning("memory-leak", Bottleneck::Memory, ProcessName::default(), String::new());
            of.cost.bytes_per_s = 1000.0;
            of.details.insert("limit_reached_after_ns", serde_json::json!(limit_ns));
            fills_up_soon(&of)
        };
        assert_eq!(
            [Some(3600), Some(300 * 86_400)].map(|s| growth(s.map(|s| s * 1_000_000_000))),
            [true, false]
        );
        assert!(growth(None), "not known");
    }

    #[test]
    fn who_is_stopped_waits_for_nothing_else() {
        let finding = |rule: &'static str, pid: u32, severity: Severity, ns: u64| {
            let process = ProcessName { pid, ..ProcessName::default() };
            let mut of = Finding::warning(rule, Bottleneck::Lock, process, String::new());
            (of.severity, of.cost.ns) = (severity, ns);
            of
        };
        let left = |severity: Severity| {
            let all = vec![
                finding("lock-contention", 7, Severity::Critical, 5),
                finding("stopped", 7, severity, 4),
                finding("memory-leak", 7, Severity::Warning, 0),
                finding("lock-contention", 8, Severity::Critical, 5),
            ];
            let left = without_consequences_of_stops(all);
            left.iter().map(|of| (of.rule, of.process.pid)).collect::<Vec<_>>()
        };
        assert_eq!(left(Severity::Critical), [("stopped", 7), ("memory-leak", 7), ("lock-contention", 8)]);
        assert_eq!(left(Severity::Warning).len(), 4, "for a part of the time only");
    }

    #[test]
    fn what_clients_notice_comes_behind_what_explains_it() {
        let order = |rules: &[(&'static str, u32, Severity)]| {
            let finding = |&(rule, pid, severity)| {
                let process = ProcessName { pid, name: String::new() };
                Finding { severity, ..Finding::warning(rule, Bottleneck::None, process, String::new()) }
            };
            let mut found: Vec<Finding> = rules.iter().map(finding).collect();
            causes_first(&mut found);
            found.iter().map(|of| of.rule).collect::<Vec<_>>()
        };
        use Severity::{Critical, Info, Warning};
        let (errors, late) = ("request-errors", "slow-requests");
        assert_eq!(
            order(&[(errors, 7, Critical), (late, 7, Critical), ("connect-errors", 7, Warning)]),
            [late, "connect-errors", errors]
        );
        let stays = [errors, late, "connect-errors", "slow-io"];
        assert_eq!(
            order(&[
                (errors, 7, Critical),
                (late, 7, Critical),
                ("connect-errors", 8, Warning),
                ("slow-io", 7, Info)
            ]),
            stays,
            "another process's, and a note"
        );
        assert_eq!(
            order(&[(late, 7, Critical), (late, 7, Warning), ("slow-io", 7, Warning)]),
            ["slow-io", late, late]
        );
        assert_eq!(order(&[("slow-io", 7, Critical), (late, 7, Warning)]), ["slow-io", late]);
    }

    #[test]
    fn rules_are_documented_and_their_names_unique() {
        let mut names = BTreeSet::new();
        for rule in RULES {
            assert!(names.insert(rule.name), "{} twice", rule.name);
            assert!(!rule.summary.is_empty() && rule.doc.len() > 100, "{} says nothing", rule.name);
            let params: BTreeSet<&str> = rule.params.iter().map(|param| param.name).collect();
            assert_eq!(params.len(), rule.params.len(), "{}", rule.name);
            let plain = |name: &str| name.chars().all(|c| c.is_ascii_lowercase() || c == '-');
            assert!(plain(rule.name) && params.iter().all(|name| plain(name)), "{}", rule.name);
        }
    }
}
