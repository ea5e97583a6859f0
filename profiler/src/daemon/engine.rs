//! What a window means: metrics are read, rules are asked, changes of alerts are stored with their messages. Everything
//! that comes from outside is an argument; only the store and the history are written.
//!
//! Longer than 600 lines because its tests run whole alerts, from windows to messages.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use anyhow::Result;
use rustc_hash::FxHashMap;

use super::{
    config::Config,
    history::{History, Key},
    message::{Found, Hot, Message},
    store::{Change, Store},
};
use crate::{
    alerting::{self, Firing, Moment, Phase, Reading, Rule, State, Transition},
    detect::leak,
    metrics::{self, METRICS, MemoryTrend, Samples, View},
    model::{
        finding::{Finding, Severity},
        memory::{Footprint, Growth, Memory},
        report::Run,
    },
};

/// Windows whose hot functions are the baseline of later ones.
const BASELINE: usize = 30;
/// Functions that are remembered of each window.
const HOT: usize = 50;
/// What a message holds at most: findings, functions, frames of a stack.
const IN_MESSAGE: (usize, usize, usize) = (5, 5, 6);
/// Processes whose growth is remembered.
const MAX_SERIES: usize = 4096;

/// When a window ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// CLOCK_MONOTONIC: it stands still while the machine sleeps, and so do rules.
    pub monotonic: std::time::Duration,
    /// Ms since 1970 (UTC), for people.
    pub unix_ms: i64,
}

/// What is known of a target besides what was measured.
#[derive(Clone, Debug, Default)]
pub struct TargetFacts {
    /// Its processes.
    pub pids: BTreeSet<u32>,
    /// How long its oldest process has lived, s.
    pub age_s: f64,
    /// CPU time it may use a second, s.
    pub cpus: f64,
    /// Open descriptors and their limit, of the process that is nearest to it.
    pub descriptors: Option<(u64, u64)>,
}

/// Keeps recordings of windows for alerts.
pub trait Keeper {
    /// Something may be going wrong: the windows before are worth keeping under this name.
    fn pin(&mut self, name: &str);
    /// It was nothing.
    fn unpin(&mut self, name: &str);
    /// An alert has begun, or become worse: what was pinned under a name is its evidence from now on. Gives all of it.
    fn promote(&mut self, name: &str, alert: &str) -> Vec<String>;
}

/// What the daemon knows between windows.
pub struct Engine {
    config: Config,
    host: String,
    store: Store,
    history: History,
    /// What is exported.
    pub samples: Samples,
    /// By rule and target.
    states: BTreeMap<(String, String), Standing>,
    /// Growth by target and process.
    growth: BTreeMap<(usize, u32), Footprint>,
    /// Where CPU time went in the last windows in which nothing was wrong, by target: share by function, percent.
    hot: Vec<VecDeque<FxHashMap<String, f64>>>,
    /// Alerts that have begun in the last window.
    capturing: Vec<String>,
    unsent_dropped: u64,
}

/// Where a rule stands for a target.
#[derive(Clone, Debug, Default)]
struct Standing {
    state: State,
    /// The alert that fires.
    alert: Option<(String, i64)>,
    /// The value in the last window.
    value: Option<f64>,
}

/// Where a rule stands for a target, for the API.
#[derive(Clone, Debug, serde::Serialize)]
pub struct RuleStatus {
    /// The rule's id.
    pub rule: String,
    /// The target's name.
    pub target: String,
    /// `ok`, `pending`, `firing` or `clearing`.
    pub state: &'static str,
    /// How bad the alert is, while it fires.
    pub severity: Option<&'static str>,
    /// The value in the last window, in the unit of the metric.
    pub value: Option<f64>,
}

impl Engine {
    /// Goes on with what the store knows: alerts that fired go on to fire.
    pub fn new(config: Config, host: String, store: Store, history: History, now: Now) -> Result<Engine> {
        let mut states = BTreeMap::new();
        for alert in store.firing()? {
            let severity = if alert.severity == Severity::Critical.id() {
                Severity::Critical
            } else {
                Severity::Warning
            };
            let state = State::restored(Some(Firing { since: now.monotonic, severity }));
            let standing = Standing { state, alert: Some((alert.id, alert.started_unix_ms)), value: None };
            states.insert((alert.rule, alert.target), standing);
        }
        let hot = vec![VecDeque::new(); config.targets.len()];
        let (samples, growth) = (Samples::default(), BTreeMap::new());
        Ok(Engine {
            config,
            host,
            store,
            history,
            samples,
            states,
            growth,
            hot,
            capturing: Vec::new(),
            unsent_dropped: 0,
        })
    }

    /// Goes on with another configuration; alerts whose rule or target is gone are resolved in the next window.
    pub fn reconfigure(&mut self, config: Config) {
        self.growth.clear();
        self.hot = vec![VecDeque::new(); config.targets.len()];
        self.config = config;
    }

    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where every rule stands.
    pub fn standings(&self) -> Vec<RuleStatus> {
        let each = self.states.iter().map(|((rule, target), standing)| RuleStatus {
            rule: rule.clone(),
            target: target.clone(),
            state: standing.state.phase().id(),
            severity: standing.state.firing().map(|firing| firing.severity.id()),
            value: standing.value,
        });
        each.collect()
    }

    /// Takes in a window.
    pub fn window(
        &mut self,
        run: Option<&Run>,
        facts: &[TargetFacts],
        now: Now,
        keeper: &mut dyn Keeper,
    ) -> Result<()> {
        // What was seen in this window belongs to the alerts that began in the one before, too.
        for alert in std::mem::take(&mut self.capturing) {
            keeper.pin(&alert);
        }
        self.forget_removed(now, keeper)?;
        for (index, target) in self.config.targets.clone().iter().enumerate() {
            let Some(facts) = facts.get(index) else { continue };
            let name = target.name.as_str();
            let run = run.filter(|_| !facts.pids.is_empty());
            let trend = run.and_then(|run| self.memory_trend(index, facts, run));
            let view = run.map(|run| View {
                run,
                pids: &facts.pids,
                cpus: facts.cpus,
                memory_trend: trend,
                descriptors: facts.descriptors,
            });
            match &view {
                Some(view) => {
                    self.samples.update(name, view);
                    for metric in METRICS {
                        for (label, value) in metric.read(view) {
                            let key = Key {
                                target: name.to_owned(),
                                metric: metric.name.to_owned(),
                                label: label.to_owned(),
                            };
                            self.history.add(key, now.unix_ms, value)?;
                        }
                    }
                }
                None => {
                    self.samples.end(name);
                    self.growth.retain(|(of, _), _| *of != index);
                }
            }
            let hot = run.map(|run| hot_functions(run, &facts.pids)).unwrap_or_default();
            for rule in self.config.rules.clone() {
                if !rule.enabled || !(rule.targets.is_empty() || rule.targets.iter().any(|only| only == name))
                {
                    continue;
                }
                self.ask(&rule, index, name, facts, view.as_ref(), &hot, now, keeper)?;
            }
            let quiet = !self
                .states
                .iter()
                .any(|((_, of), standing)| of == name && standing.state.phase() != Phase::Ok);
            // What is normal is learned while nothing is wrong.
            if quiet && !hot.is_empty() {
                let windows = &mut self.hot[index];
                windows.push_back(hot);
                if windows.len() > BASELINE {
                    windows.pop_front();
                }
            }
        }
        self.unsent_dropped += self.store.clean(now.unix_ms)?;
        self.history.flush()
    }

    /// Messages that wait to be sent, and those that were dropped because too many did.
    pub fn outbox(&self) -> (u64, u64) {
        (self.store.waiting().unwrap_or(0) as u64, self.unsent_dropped)
    }

    /// Whether the next window is to see more: an alert has just begun.
    pub fn wants_capture(&self) -> bool {
        !self.capturing.is_empty()
    }

    /// Bytes of history on disk, and damaged files of it.
    pub fn history_size(&self) -> (u64, u64) {
        (self.history.bytes(), self.history.damaged)
    }

    #[expect(clippy::too_many_arguments, reason = "all of a window that a rule may need")]
    fn ask(
        &mut self,
        rule: &Rule,
        index: usize,
        target: &str,
        facts: &TargetFacts,
        view: Option<&View<'_>>,
        hot: &FxHashMap<String, f64>,
        now: Now,
        keeper: &mut dyn Keeper,
    ) -> Result<()> {
        let findings = view.map_or_else(Vec::new, |view| of_target(view));
        let (reading, value) = match view {
            None => (Reading::Gone, None),
            Some(_) if !rule.finding.is_empty() => {
                let found = findings.iter().filter(|finding| finding.rule == rule.finding);
                let worst = found.map(|finding| finding.severity).max();
                (Reading::Found(worst.filter(|severity| *severity > Severity::Info)), None)
            }
            Some(view) => match metrics::value(&rule.metric, view) {
                Some(value) => (Reading::Value(value), Some(value)),
                None => (Reading::Nothing, None),
            },
        };
        let inhibited = rule.inhibited_by.iter().any(|other| {
            let standing = self.states.get(&(other.clone(), target.to_owned()));
            standing.is_some_and(|standing| standing.state.firing().is_some())
        });
        let moment = Moment {
            now: now.monotonic,
            target_age: std::time::Duration::try_from_secs_f64(facts.age_s).unwrap_or_default(),
            inhibited,
        };
        let standing = self.states.entry((rule.id.clone(), target.to_owned())).or_default();
        standing.value = value;
        let before = standing.state.clone();
        let Some(transition) = alerting::step(rule, &mut standing.state, reading, moment) else {
            return Ok(());
        };
        let pin = format!("{}--{target}", rule.id);
        let (change, severity, reason) = match transition {
            Transition::Pending(_) => {
                keeper.pin(&pin);
                return Ok(());
            }
            Transition::Dropped => {
                keeper.unpin(&pin);
                return Ok(());
            }
            Transition::Fired(severity) => ("fired", severity, ""),
            Transition::Escalated => ("escalated", Severity::Critical, ""),
            Transition::Resolved(why) => {
                let severity = before.firing().map_or(Severity::Warning, |firing| firing.severity);
                ("resolved", severity, why.words())
            }
        };
        let (id, started_unix_ms) = match (&standing.alert, change) {
            (Some(alert), "escalated" | "resolved") => alert.clone(),
            _ => (alert_id(&rule.id, target, now.unix_ms), now.unix_ms),
        };
        standing.alert = (change != "resolved").then(|| (id.clone(), started_unix_ms));
        let recordings = if change == "resolved" { Vec::new() } else { keeper.promote(&pin, &id) };
        if change != "resolved" && rule.capture {
            self.capturing.push(id.clone());
        }
        let unit = metrics::find(&rule.metric).map(|metric| metric.unit);
        let words = |value: Option<f64>| match (value, unit) {
            (Some(value), Some(unit)) => unit.words(value),
            _ => String::new(),
        };
        let threshold = if severity == Severity::Critical { rule.critical } else { rule.warning };
        let mut message = Message {
            version: 1,
            message: format!("{id}-{change}"),
            alert: id.clone(),
            change: change.to_owned(),
            rule: rule.id.clone(),
            summary: rule.summary.clone(),
            target: target.to_owned(),
            host: self.host.clone(),
            severity: severity.id().to_owned(),
            value: words(value),
            threshold: words(threshold),
            number: value,
            started_unix_ms,
            unix_ms: now.unix_ms,
            reason: reason.to_owned(),
            command: recordings.last().map_or_else(String::new, |last| format!("profiler replay {last}")),
            evidence: recordings,
            ..Message::default()
        };
        if let (Some(view), false) = (view, change == "resolved") {
            diagnose(&mut message, view, &findings, hot, &self.hot[index]);
        }
        self.store_change(&message, rule, severity, change, now)
    }

    fn store_change(
        &mut self,
        message: &Message,
        rule: &Rule,
        severity: Severity,
        change: &'static str,
        now: Now,
    ) -> Result<()> {
        let all: Vec<String> = self.config.receivers.iter().map(|receiver| receiver.name.clone()).collect();
        let receivers = if rule.receivers.is_empty() { &all } else { &rule.receivers };
        self.store.record(&Change {
            alert: &message.alert,
            rule: &rule.id,
            target: &message.target,
            severity,
            change,
            unix_ms: now.unix_ms,
            body: &serde_json::to_string(message)?,
            receivers,
        })
    }

    /// Ends the alerts of rules and targets that the configuration does not have any more.
    fn forget_removed(&mut self, now: Now, keeper: &mut dyn Keeper) -> Result<()> {
        let config = &self.config;
        let is_there = |rule: &str, target: &str| {
            config.rules.iter().any(|known| known.id == rule && known.enabled)
                && config.targets.iter().any(|known| known.name == target)
        };
        let gone: Vec<(String, String)> =
            self.states.keys().filter(|(rule, target)| !is_there(rule, target)).cloned().collect();
        for key in gone {
            let Some(standing) = self.states.remove(&key) else { continue };
            let (rule_id, target) = key;
            keeper.unpin(&format!("{rule_id}--{target}"));
            let Some((id, started_unix_ms)) = standing.alert else { continue };
            let severity = standing.state.firing().map_or(Severity::Warning, |firing| firing.severity);
            let message = Message {
                version: 1,
                message: format!("{id}-resolved"),
                alert: id,
                change: "resolved".to_owned(),
                rule: rule_id.clone(),
                target,
                host: self.host.clone(),
                severity: severity.id().to_owned(),
                started_unix_ms,
                unix_ms: now.unix_ms,
                reason: "the configuration has it no more".to_owned(),
                ..Message::default()
            };
            let rule = Rule { id: rule_id, receivers: Vec::new(), ..alerting::BUILT_IN[0].rule() };
            self.store_change(&message, &rule, severity, "resolved", now)?;
        }
        Ok(())
    }

    /// Adds the window to what is known of the target's memory, and judges all of it.
    fn memory_trend(&mut self, index: usize, facts: &TargetFacts, run: &Run) -> Option<MemoryTrend> {
        self.growth.retain(|(of, pid), _| *of != index || facts.pids.contains(pid));
        for process in &run.memory.as_ref()?.processes {
            if !facts.pids.contains(&process.pid) || self.growth.len() >= MAX_SERIES {
                continue;
            }
            let known = self.growth.entry((index, process.pid)).or_default();
            let points: Vec<Growth> = process.growth.points().to_vec();
            let last = known.growth.last().map_or(0, |last| last.time_ns);
            points
                .into_iter()
                .filter(|point| point.time_ns > last)
                .for_each(|point| known.growth.push(point));
            known.limit.clone_from(&process.limit);
            known.process.clone_from(&process.process);
            known.pid = process.pid;
        }
        let processes: Vec<Footprint> = self
            .growth
            .iter()
            .filter(|((of, _), _)| *of == index)
            .map(|(_, process)| process.clone())
            .collect();
        let memory = Memory { processes, ..Memory::default() };
        let growing = leak::processes(&memory);
        let growing = growing.iter().zip(&memory.processes).filter(|(trend, _)| trend.certainty().is_some());
        let each = growing.map(|(trend, process)| {
            let bytes_per_s = trend.bytes_per_s.per_time;
            let exhaustion_s = process.limit.as_ref().map(|limit| limit.left_bytes() as f64 / bytes_per_s);
            MemoryTrend { bytes_per_s, exhaustion_s }
        });
        each.reduce(|a, b| MemoryTrend {
            bytes_per_s: a.bytes_per_s + b.bytes_per_s,
            exhaustion_s: match (a.exhaustion_s, b.exhaustion_s) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            },
        })
    }
}

/// Id of an alert: of its rule, target and beginning, so that it is the same whenever it is made.
fn alert_id(rule: &str, target: &str, started_unix_ms: i64) -> String {
    use sha2::Digest as _;
    let hash = sha2::Sha256::digest(format!("{rule}\0{target}\0{started_unix_ms}"));
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// What was found of a target, worst first.
fn of_target<'a>(view: &View<'a>) -> Vec<&'a Finding> {
    let pids = view.pids;
    view.run
        .findings
        .iter()
        .filter(|finding| finding.process.pid == 0 || pids.contains(&finding.process.pid))
        .collect()
}

/// Where a target's CPU time went: share of its samples by function, percent.
fn hot_functions(run: &Run, pids: &BTreeSet<u32>) -> FxHashMap<String, f64> {
    let names = run.names();
    let mut weights: FxHashMap<String, u64> = FxHashMap::default();
    let mut total = 0;
    for stack in run.cpu.stacks.iter().filter(|stack| pids.contains(&stack.thread.pid)) {
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

/// Says in a message what the window shows.
fn diagnose(
    message: &mut Message,
    view: &View<'_>,
    findings: &[&Finding],
    hot: &FxHashMap<String, f64>,
    baseline: &VecDeque<FxHashMap<String, f64>>,
) {
    let (most_findings, most_hot, most_frames) = IN_MESSAGE;
    if let Some(verdict) = &view.run.verdict {
        message.verdict = verdict.sentence.clone();
        message.advice = verdict.advice.clone();
    }
    message.findings = findings
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
    let losses = &view.run.cpu.accounts.losses;
    message.lost = losses.iter().filter(|(_, n)| *n > 0).map(|(loss, n)| (loss.id().to_owned(), n)).collect();
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{
        distribution::Summary,
        report::fixtures,
        stack::ThreadKey,
        wait::{Blocking, EventLoop, ThreadTime},
    };

    const CONFIG: &str = "
        [[targets]]
        name = \"api\"
        comm = \"node\"
        [[receivers]]
        name = \"log\"
        type = \"stderr\"
        [rules.event-loop-delay]
        warmup = \"0s\"
    ";

    /// Remembers what was asked of it.
    #[derive(Default)]
    struct Asked(Vec<String>);

    impl Keeper for Asked {
        fn pin(&mut self, name: &str) {
            self.0.push(format!("pin {name}"));
        }
        fn unpin(&mut self, name: &str) {
            self.0.push(format!("unpin {name}"));
        }
        fn promote(&mut self, name: &str, _alert: &str) -> Vec<String> {
            self.0.push(format!("promote {name}"));
            vec!["/evidence/1.prec".to_owned()]
        }
    }

    /// A window of 30 s of process 7, whose event loop has this delay, ns.
    fn window(delay_ns: u64) -> Run {
        let thread = ThreadKey { pid: 7, tid: 7 };
        let mut run = fixtures::run(&[("renderReport", 90), ("other", 10)]);
        run.cpu.accounts.duration_ns = 30_000_000_000;
        for stack in &mut run.cpu.stacks {
            stack.thread = thread;
        }
        let iterations = Summary { count: 100, p99_ns: delay_ns, max_ns: delay_ns, ..Summary::default() };
        run.blocking = Some(Blocking {
            threads: vec![ThreadTime { thread, on_cpu_ns: 3_000_000_000, ..ThreadTime::default() }],
            loops: vec![EventLoop { thread, iterations, ..EventLoop::default() }],
            ..Blocking::default()
        });
        run
    }

    fn facts() -> Vec<TargetFacts> {
        vec![TargetFacts { pids: [7].into(), age_s: 1000.0, cpus: 2.0, descriptors: Some((5, 100)) }]
    }

    fn at(i: u32) -> Now {
        Now {
            monotonic: Duration::from_secs(30) * (i + 100),
            unix_ms: 1_795_651_200_000 + 30_000 * i64::from(i),
        }
    }

    fn engine(dir: &std::path::Path) -> Engine {
        let config = super::super::config::parse(CONFIG).unwrap();
        let history = History::open(dir, u64::MAX, at(0).unix_ms);
        Engine::new(config, "host".into(), Store::open(dir).unwrap(), history, at(0)).unwrap()
    }

    fn messages(dir: &std::path::Path) -> Vec<Message> {
        let mut store = Store::open(dir).unwrap();
        let mut found = Vec::new();
        while let Some(next) = store.due("log", i64::MAX).unwrap() {
            found.push(serde_json::from_str(&next.body).unwrap());
            store.sent(next.seq).unwrap();
        }
        found
    }

    #[test]
    fn an_alert_is_told_once_when_it_begins_and_once_when_it_ends_with_its_reasons() {
        let dir = tempfile::tempdir().unwrap();
        let mut engine = engine(dir.path());
        let mut asked = Asked::default();
        for (i, delay_ms) in [1, 1, 100, 100, 100, 1, 1, 1, 1, 1].into_iter().enumerate() {
            let run = window(delay_ms * 1_000_000);
            engine.window(Some(&run), &facts(), at(i as u32), &mut asked).unwrap();
        }
        let name = "event-loop-delay--api";
        let told = messages(dir.path());
        assert_eq!(asked.0[..2], [format!("pin {name}"), format!("promote {name}")]);
        assert_eq!(asked.0[2], format!("pin {}", told[0].alert), "the window after is evidence, too");
        let changes: Vec<&str> = told.iter().map(|message| message.change.as_str()).collect();
        assert_eq!(changes, ["fired", "resolved"]);
        assert_eq!(told[0].alert, told[1].alert);
        assert_eq!((told[0].severity.as_str(), told[0].number), ("critical", Some(0.1)));
        assert_eq!((told[0].value.as_str(), told[0].threshold.as_str()), ("100 ms", "50 ms"));
        let hot = &told[0].hot[0];
        assert_eq!(
            (hot.function.as_str(), hot.percent, hot.before_percent),
            ("renderReport (app.c:7)", 90.0, Some(90.0))
        );
        assert_eq!(told[0].command, "profiler replay /evidence/1.prec");
        assert_eq!(told[1].reason, "the value is good again");
    }

    #[test]
    fn a_restart_tells_nothing_twice() {
        let dir = tempfile::tempdir().unwrap();
        let mut asked = Asked::default();
        for i in 0..6 {
            // A new engine each window, as if the daemon were killed in between: `for` begins anew, so it takes two.
            let mut engine = engine(dir.path());
            for j in 0..2 {
                let run = window(100_000_000);
                engine.window(Some(&run), &facts(), at(2 * i + j), &mut asked).unwrap();
            }
        }
        let told = messages(dir.path());
        assert_eq!(told.len(), 1, "{told:?}");
        let mut engine = engine(dir.path());
        for i in 20..26 {
            engine.window(Some(&window(1_000_000)), &facts(), at(i), &mut asked).unwrap();
        }
        let over = messages(dir.path());
        assert_eq!((over.len(), over[0].change.as_str()), (1, "resolved"));
        assert_eq!(over[0].alert, told[0].alert);
    }

    #[test]
    fn a_target_that_has_ended_ends_its_alert_and_its_gauges() {
        let dir = tempfile::tempdir().unwrap();
        let mut engine = engine(dir.path());
        let mut asked = Asked::default();
        for i in 0..4 {
            engine.window(Some(&window(100_000_000)), &facts(), at(i), &mut asked).unwrap();
        }
        let text = engine.samples.text(Vec::new());
        assert!(
            text.contains("profiler_target_event_loop_delay_seconds{target=\"api\",quantile=\"p99\"} 0.1"),
            "{text}"
        );
        assert!(text.contains("profiler_target_cpu_seconds_total{target=\"api\"} 12"), "{text}");
        engine.window(None, &[TargetFacts::default()], at(4), &mut asked).unwrap();
        assert_eq!(messages(dir.path()).last().unwrap().reason, "the target has ended");
        let text = engine.samples.text(Vec::new());
        assert!(!text.contains("event_loop_delay"), "{text}");
        assert!(text.contains("cpu_seconds_total"), "what was counted stays: {text}");
    }

    #[test]
    fn a_rule_that_is_removed_ends_its_alert() {
        let dir = tempfile::tempdir().unwrap();
        let mut engine = engine(dir.path());
        let mut asked = Asked::default();
        for i in 0..4 {
            engine.window(Some(&window(100_000_000)), &facts(), at(i), &mut asked).unwrap();
        }
        let config = super::super::config::parse(&format!("{CONFIG}\nenabled = false")).unwrap();
        engine.reconfigure(config);
        engine.window(Some(&window(100_000_000)), &facts(), at(4), &mut asked).unwrap();
        assert_eq!(messages(dir.path()).last().unwrap().reason, "the configuration has it no more");
    }

    #[test]
    fn what_was_measured_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut engine = engine(dir.path());
        for i in 0..4 {
            engine.window(Some(&window(1_000_000)), &facts(), at(i), &mut Asked::default()).unwrap();
        }
        let key = Key { target: "api".into(), metric: "cpu_quota_ratio".into(), label: String::new() };
        let points =
            super::super::history::query(dir.path(), &key, at(0).unix_ms, at(4).unix_ms, 30_000).unwrap();
        assert_eq!(points.len(), 4);
        assert!((points[0].mean - 0.05).abs() < 1e-6, "3 s of 30 s on one of two CPUs: {points:?}");
    }
}
