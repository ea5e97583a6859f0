//! What a message says of a window: the verdict, what was found, and where CPU time went compared with before.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::{
    daemon::message::{Found, Hot, Message, Told},
    detect::paths::paths,
    metrics::View,
    model::{
        finding::{Finding, Severity},
        report::Run,
        request::{Exchanges, Route},
    },
};

/// Functions that are remembered of each window.
const HOT: usize = 50;
/// What a message holds at most: findings, functions, frames of a stack.
const IN_MESSAGE: (usize, usize, usize) = (5, 5, 6);
/// Functions of the main path in a message.
const MOST_PATH: usize = 12;

/// Kinds of requests in a message: the slowest, and those that fail most.
const MOST_ROUTES: usize = 3;
/// Parts of a request's time in a message.
const MOST_PARTS: usize = 3;

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

/// The kinds of requests that took longest, then those that failed most.
fn routes(run: &Run) -> Vec<Told> {
    let served = run.requests.iter().flat_map(|requests| requests.served());
    let mut all: Vec<(&Exchanges, &Route)> =
        served.flat_map(|peer| peer.routes.iter().map(move |route| (peer, route))).collect();
    all.sort_by_key(|(_, route)| std::cmp::Reverse(route.first.p95_ns));
    let (slow, others) = all.split_at(all.len().min(MOST_ROUTES));
    let mut failing: Vec<_> = others.iter().filter(|(_, route)| route.failed() > 0).collect();
    failing.sort_by_key(|(_, route)| std::cmp::Reverse(route.failed()));
    let told = slow.iter().chain(failing.into_iter().take(MOST_ROUTES)).map(|(peer, route)| {
        let goes = route.breakdown.as_ref().map(|breakdown| breakdown.parts()).unwrap_or_default();
        Told {
            operation: route.operation.clone(),
            at: peer.peer.clone(),
            requests: route.first.count,
            p95_ns: route.first.p95_ns,
            failed: route.failed(),
            error: route.errors.first().map_or_else(String::new, |(error, _)| error.clone()),
            goes: goes.into_iter().take(MOST_PARTS).collect(),
        }
    });
    told.collect()
}

/// Says in a message of a rule of this metric what the window shows.
pub fn diagnose(
    message: &mut Message,
    metric: &str,
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
    message.routes = routes(view.run);
    if let Some(own) = view.own {
        let (verdict, advice) = own.words(metric);
        (message.verdict, message.advice) = (verdict, advice.to_owned());
    }
    let losses = &view.run.cpu.accounts.losses;
    message.lost = losses.iter().filter(|(_, n)| *n > 0).map(|(loss, n)| (loss.id().to_owned(), n)).collect();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{distribution::Summary, report::fixtures};

    #[test]
    fn slow_and_failing_kinds_of_requests_are_told_with_where_their_time_goes() {
        let mut run = fixtures::run(&[]);
        assert_eq!(routes(&run), []);
        let mut requests = crate::model::request::fixtures::requests();
        let peer = requests.peers.iter_mut().find(|peer| !peer.routes.is_empty()).unwrap();
        let slow = peer.routes[0].clone();
        let route = |name: &str, p95_ms: u64, failed: u64| Route {
            operation: name.into(),
            first: Summary { count: 5, p95_ns: p95_ms * 1_000_000, ..Summary::default() },
            errors: vec![("503".into(), failed)],
            ..Route::default()
        };
        peer.routes.extend([
            route("a", 9, 0),
            route("b", 8, 0),
            route("c", 7, 0),
            route("d", 1, 4),
            route("e", 2, 5),
        ]);
        run.requests = Some(requests);
        let told = routes(&run);
        let names: Vec<&str> = told.iter().map(|of| &*of.operation).collect();
        assert_eq!(names, [&*slow.operation, "a", "b", "e", "d"]);
        assert_eq!((&*told[3].error, told[3].failed, told[0].requests), ("503", 5, 1000));
        let goes: Vec<(&str, u64)> = told[0].goes.iter().map(|(what, ns)| (&**what, *ns)).collect();
        let ms = 1_000_000;
        let expected = [
            ("on a CPU", 20 * ms),
            ("without work", 5 * ms),
            ("awaiting 10.0.0.2:5432 (PostgreSQL)", 4 * ms),
        ];
        assert_eq!(goes, expected);
    }

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
