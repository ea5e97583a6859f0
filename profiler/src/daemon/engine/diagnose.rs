//! What a message says of a window: the verdict, what was found, and where CPU time went compared with before.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::{
    daemon::message::{Found, Hot, Message},
    detect::paths::paths,
    metrics::View,
    model::{
        finding::{Finding, Severity},
        report::Run,
    },
};

/// Functions that are remembered of each window.
const HOT: usize = 50;
/// What a message holds at most: findings, functions, frames of a stack.
const IN_MESSAGE: (usize, usize, usize) = (5, 5, 6);
/// Functions of the main path in a message.
const MOST_PATH: usize = 12;

/// Where CPU time went: share of the samples by function, percent.
pub fn hot_functions(run: &Run) -> FxHashMap<String, f64> {
    let names = run.names();
    let mut weights: FxHashMap<String, u64> = FxHashMap::default();
    let mut total = 0;
    for stack in &run.cpu.stacks {
        total += stack.weight;
        if let Some((function, ..)) = names.functions(&stack.frames).next() {
            *weights.entry(crate::detect::words::at(function)).or_default() += stack.weight;
        }
    }
    let mut all: Vec<(String, u64)> = weights.into_iter().collect();
    all.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    all.truncate(HOT);
    all.into_iter()
        .map(|(function, weight)| (function, 100.0 * weight as f64 / total.max(1) as f64))
        .collect()
}

/// Functions of the first stack of a finding, innermost first.
fn stack(finding: &Finding, run: &Run, most: usize) -> Vec<String> {
    let Some(evidence) = finding.evidence.first() else { return Vec::new() };
    let functions = run.names().functions(&evidence.frames);
    functions.take(most).map(|(function, ..)| crate::detect::words::at(function)).collect()
}

/// The innermost functions, at most `most`, of the call path that half of the samples take, caller before callee.
fn main_path(run: &Run, most: usize) -> Vec<String> {
    let mut path: Vec<String> = Vec::new();
    let mut depth = 0;
    // The heaviest part of each depth comes first, right after the one around it.
    for part in paths(&run.cpu, 0.5) {
        if part.depth == depth {
            path.extend(part.functions.iter().map(|&function| function.to_owned()));
            depth += 1;
        }
    }
    path.drain(..path.len().saturating_sub(most));
    path
}

/// Says in a message what the window shows.
pub fn diagnose(
    message: &mut Message,
    view: &View<'_>,
    hot: &FxHashMap<String, f64>,
    baseline: &VecDeque<FxHashMap<String, f64>>,
) {
    let (most_findings, most_hot, most_frames) = IN_MESSAGE;
    if let Some(verdict) = &view.run.verdict {
        message.verdict = verdict.sentence.clone();
        message.advice = verdict.advice.clone();
    }
    message.findings = view
        .run
        .findings
        .iter()
        .filter(|finding| finding.severity > Severity::Info)
        .take(most_findings)
        .map(|finding| Found {
            rule: finding.rule.to_owned(),
            severity: finding.severity.id().to_owned(),
            title: finding.title.clone(),
            advice: finding.advice.clone(),
            stack: stack(finding, view.run, most_frames),
        })
        .collect();
    let mut hottest: Vec<(&String, &f64)> = hot.iter().collect();
    hottest.sort_by(|a, b| b.1.total_cmp(a.1).then_with(|| a.0.cmp(b.0)));
    let before = |function: &String| {
        let sum =
            baseline.iter().filter_map(|window| window.get(function)).fold(0.0, |sum, share| sum + share);
        (!baseline.is_empty()).then(|| sum / baseline.len() as f64)
    };
    message.hot = hottest
        .into_iter()
        .take(most_hot)
        .map(|(function, percent)| Hot {
            function: function.clone(),
            percent: *percent,
            before_percent: before(function),
        })
        .collect();
    message.path = main_path(view.run, MOST_PATH);
    let losses = &view.run.cpu.accounts.losses;
    message.lost = losses.iter().filter(|(_, n)| *n > 0).map(|(loss, n)| (loss.id().to_owned(), n)).collect();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::report::fixtures;

    #[test]
    fn the_main_path_ends_where_samples_divide() {
        let run = fixtures::run(&[
            ("main;loop;burn;now;clock", 30),
            ("main;loop;burn;now;floor", 30),
            ("main;idle", 10),
        ]);
        assert_eq!(main_path(&run, 12), ["main", "loop", "burn", "now"]);
        assert_eq!(main_path(&run, 2), ["burn", "now"]);
        assert_eq!(main_path(&fixtures::run(&[]), 12), [""; 0]);
    }
}
