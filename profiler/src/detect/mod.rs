//! Conclusions from a run. A rule is a file in [`rules`] and a line in [`RULES`]; time is an argument, never read from a
//! clock.

use crate::{
    detect::rule::{Overrides, Rule},
    model::{finding::Finding, report::Run},
};

pub mod blocked;
pub mod causes;
pub mod compare;
pub mod diagnosis;
pub mod groups;
pub mod hotspot;
pub mod leak;
pub mod merge;
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
    &rules::lock_contention::RULE,
    &rules::lock_convoy::RULE,
    &rules::busy_poll::RULE,
    &rules::cpu_bound::RULE,
    &rules::cpu_starvation::RULE,
    &rules::cpu_throttled::RULE,
    &rules::descriptors_growing::RULE,
    &rules::stopped::RULE,
    &rules::thread_pool::RULE,
    &rules::slow_peer::RULE,
    &rules::routes::N_PLUS_ONE,
    &rules::routes::SEQUENTIAL,
    &rules::answers::ERRORS,
    &rules::answers::SLOW_ROUTE,
    &rules::answers::QUEUEING,
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
    let mut found = merge::defects(found, run.names());
    // What grows until it is killed comes before all that costs time.
    let rank = |of: &Finding| (of.severity, of.cost.bytes_per_s > 0.0, of.cost.ns);
    found.sort_by_key(|finding| std::cmp::Reverse(rank(finding)));
    found
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

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
