//! Rules tried on recordings: what they would have said, had the daemon been there. Each recording is a window; all of its
//! processes are one target.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;

use super::{
    config::{self, Config},
    engine::{Engine, Keeper, Now, TargetFacts},
    history::History,
    store::Store,
};
use crate::{
    detect::rule::Overrides,
    metrics::{Outside, Unit, find},
    model::report::Run,
    recording,
};

/// A configuration for those who bring none: the built-in rules.
const BUILT_IN_RULES: &str = "[[targets]]\nname = \"recording\"\ncomm = \"recording\"\n";
/// An age at which no rule waits for a target to warm up: how old it was is not in a recording, s.
const OLD_S: f64 = 1e9;

/// Nothing is kept: the recordings are there.
struct Nothing;

impl Keeper for Nothing {
    fn pin(&mut self, _name: &str) {}
    fn unpin(&mut self, _name: &str) {}
    fn promote(&mut self, _name: &str, _alert: &str) -> Vec<String> {
        Vec::new()
    }
}

/// Tries the rules of a configuration, or the built-in ones, on recordings in the order of their time.
pub fn test_rules(config_file: Option<&Path>, recordings: &[PathBuf]) -> Result<String> {
    let config = match config_file {
        Some(file) => config::load(file),
        None => config::parse(BUILT_IN_RULES),
    };
    let mut runs = Vec::new();
    for recording in recordings {
        runs.push(recording::load::load_what_there_is(recording, &Overrides::default())?.run);
    }
    runs.sort_by_key(|run| run.cpu.meta.start_unix_ns);
    tried(config.map_err(anyhow::Error::msg)?, &runs)
}

fn tried(mut config: Config, runs: &[Run]) -> Result<String> {
    config.targets.truncate(1);
    config.targets[0].name = "recording".to_owned();
    config.rules.iter_mut().for_each(|rule| rule.targets.clear());
    config.receivers.clear();
    let dir = tempfile::tempdir()?;
    let start = runs.first().map_or(0, |run| run.cpu.meta.start_unix_ns);
    let at = |unix_ns: u64| Now {
        monotonic: Duration::from_nanos(unix_ns.saturating_sub(start)),
        unix_ms: (unix_ns / 1_000_000) as i64,
    };
    let history = History::open(dir.path(), u64::MAX, at(start).unix_ms);
    let rules = config.rules.clone();
    let mut engine = Engine::new(config, String::new(), Store::open(dir.path())?, history, at(start))?;
    let mut text = String::new();
    for run in runs {
        let end = run.cpu.meta.start_unix_ns + run.cpu.accounts.duration_ns;
        engine.window(Some(run), &[facts(run)], None, at(end), &mut Nothing)?;
        for message in engine.changes() {
            let stamp = std::time::UNIX_EPOCH + Duration::from_nanos(end);
            let _infallible = writeln!(
                text,
                "{}  {} {}: {} {}",
                humantime::format_rfc3339_seconds(stamp),
                message.severity,
                message.change,
                message.rule,
                message.value
            );
        }
    }
    if text.is_empty() {
        text.push_str("no alert begins\n");
    }
    let _infallible = writeln!(text, "\nafter {}:", crate::model::units::count(runs.len() as u64, "window"));
    for standing in engine.standings() {
        let rule = rules.iter().find(|rule| rule.id == standing.rule);
        let unit = rule.and_then(|rule| find(&rule.metric)).map_or(Unit::Count, |metric| metric.unit);
        let value = match (standing.value, rule.is_some_and(|rule| !rule.finding.is_empty())) {
            (Some(value), _) => unit.words(value),
            (None, true) => "-".to_owned(),
            (None, false) => "not measured".to_owned(),
        };
        let _infallible = writeln!(text, "{:<20} {:<9} {value}", standing.rule, standing.state);
    }
    Ok(text)
}

/// What a recording knows of its processes.
fn facts(run: &Run) -> TargetFacts {
    let sampled = run.cpu.stacks.iter().map(|stack| stack.thread.pid);
    let watched = run.blocking.iter().flat_map(|blocking| &blocking.threads).map(|thread| thread.thread.pid);
    let grown = run.memory.iter().flat_map(|memory| &memory.processes).map(|process| process.pid);
    let pids: BTreeSet<u32> = sampled.chain(watched).chain(grown).filter(|pid| *pid > 0).collect();
    TargetFacts {
        pids,
        age_s: OLD_S,
        outside: Outside { cpus: f64::from(run.cpu.meta.cpus.max(1)), ..Outside::default() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        distribution::Summary,
        report::fixtures,
        stack::ThreadKey,
        wait::{Blocking, EventLoop, ThreadTime},
    };

    #[test]
    fn recordings_say_when_an_alert_would_have_begun() {
        let window = |i: u64, delay_ms: u64| {
            let mut run = fixtures::run(&[("main;a", 10)]);
            run.cpu.accounts.duration_ns = 30_000_000_000;
            run.cpu.meta.start_unix_ns = 1_795_651_200_000_000_000 + i * 30_000_000_000;
            let thread = ThreadKey { pid: 7, tid: 7 };
            let iterations = Summary { count: 9, p99_ns: delay_ms * 1_000_000, ..Summary::default() };
            run.blocking = Some(Blocking {
                threads: vec![ThreadTime { thread, on_cpu_ns: 1, ..ThreadTime::default() }],
                loops: vec![EventLoop { thread, iterations, ..EventLoop::default() }],
                ..Blocking::default()
            });
            run
        };
        let runs: Vec<Run> = [1, 100, 100, 100].iter().zip(0..).map(|(ms, i)| window(i, *ms)).collect();
        let text = tried(config::parse(BUILT_IN_RULES).unwrap(), &runs).unwrap();
        assert!(
            text.starts_with("2026-11-26T00:01:30Z  critical fired: event-loop-delay 100 ms\n"),
            "{text}"
        );
        let of_rule = text.lines().find(|line| line.starts_with("event-loop-delay")).unwrap();
        assert!(of_rule.contains("firing") && of_rule.contains("100 ms"), "{text}");
        let quiet = tried(config::parse(BUILT_IN_RULES).unwrap(), &runs[..1]).unwrap();
        assert!(quiet.starts_with("no alert begins"), "{quiet}");
    }
}
