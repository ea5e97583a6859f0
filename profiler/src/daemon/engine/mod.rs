//! What a window means: metrics are read, rules are asked, changes of alerts are stored with their messages. Everything
//! that comes from outside is an argument; only the store and the history are written.

mod alerts;
mod diagnose;
mod grown;
mod trend;
mod unstored;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use anyhow::Result;
use rustc_hash::FxHashMap;

use self::{diagnose::hot_functions, grown::Grown, unstored::Unstored};
use super::{
    config::Config,
    history::{History, Key},
    message::Message,
    store::{Silence, Store},
};
use crate::{
    alerting::{Firing, Phase, Recent, State},
    detect::{self, rule::Overrides},
    metrics::{self, Itself, METRICS, Metric, OWN, Outside, Samples, View},
    model::{
        finding::{Finding, Severity, Verdict},
        part::part,
        report::Run,
    },
};

/// Windows whose hot functions are the baseline of later ones.
const BASELINE: usize = 30;
/// Processes whose growth is remembered.
const MAX_SERIES: usize = 4096;

/// When a window ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// CLOCK_MONOTONIC: it stands still while the machine sleeps, and so do rules.
    pub monotonic: Duration,
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
    /// What else is known of it.
    pub outside: Outside,
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
    growth: BTreeMap<(usize, u32), Grown>,
    /// Where CPU time went in the last windows in which nothing was wrong, by target: share by function, percent.
    hot: Vec<VecDeque<FxHashMap<String, f64>>>,
    /// The last day of what predictive rules read, by rule and target.
    recent: BTreeMap<(String, String), Recent>,
    /// The last values of what is compared with a baseline, by rule and target.
    last: BTreeMap<(String, String), VecDeque<f64>>,
    /// How old each target was in the last window, s: one that is younger has been started again.
    ages: Vec<f64>,
    /// What was found of each target in the last window.
    pub judged: Vec<Judged>,
    /// What is silenced now.
    silences: Vec<Silence>,
    /// Alerts that have begun in the last window.
    capturing: Vec<String>,
    /// What has changed in the last window.
    changes: Vec<Message>,
    /// Changes that could not be stored yet, in order.
    unstored: VecDeque<Unstored>,
    /// Messages of the last window that are not in the outbox, since that could not be written; and who gets them.
    urgent: Vec<(Message, Vec<String>)>,
    unsent_dropped: u64,
}

/// Where a rule stands for a target.
#[derive(Clone, Debug, Default)]
struct Standing {
    state: State,
    /// The alert that fires.
    alert: Option<Alert>,
    /// The value in the last window.
    value: Option<f64>,
}

/// What was found of a target in a window.
#[derive(Clone, Debug, Default)]
pub struct Judged {
    /// What kind of bottleneck it has.
    pub verdict: Option<Verdict>,
    /// What is wrong, worst first.
    pub findings: Vec<Finding>,
}

/// An alert that fires.
#[derive(Clone, Debug)]
struct Alert {
    id: String,
    started_unix_ms: i64,
    /// Whether somebody was told, or it was silenced.
    told: bool,
}

/// A target at the end of a window.
struct Asked<'a> {
    /// Its place in the configuration.
    index: usize,
    /// Its name.
    target: &'a str,
    /// What is known of it from outside.
    facts: &'a TargetFacts,
    /// What was measured of it; `None` if none of its processes is left, or if the window failed.
    view: Option<View<'a>>,
    /// Where its CPU time went: share by function, percent.
    hot: &'a FxHashMap<String, f64>,
    /// The window's end.
    now: Now,
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
            let open = Alert { id: alert.id, started_unix_ms: alert.started_unix_ms, told: alert.told };
            let standing = Standing { state, alert: Some(open), value: None };
            states.insert((alert.rule, alert.target), standing);
        }
        let hot = vec![VecDeque::new(); config.targets.len()];
        let ages = vec![0.0; config.targets.len()];
        let judged = vec![Judged::default(); config.targets.len()];
        Ok(Engine {
            config,
            host,
            store,
            history,
            samples: Samples::default(),
            states,
            growth: BTreeMap::new(),
            hot,
            recent: BTreeMap::new(),
            last: BTreeMap::new(),
            ages,
            judged,
            silences: Vec::new(),
            capturing: Vec::new(),
            changes: Vec::new(),
            unstored: VecDeque::new(),
            urgent: Vec::new(),
            unsent_dropped: 0,
        })
    }

    /// Goes on with another configuration; alerts whose rule or target is gone are resolved in the next window.
    pub fn reconfigure(&mut self, config: Config) {
        // What is known of targets is kept by their places.
        if config.targets != self.config.targets {
            self.growth.clear();
            self.hot = vec![VecDeque::new(); config.targets.len()];
            self.ages = vec![0.0; config.targets.len()];
            self.judged = vec![Judged::default(); config.targets.len()];
        }
        self.samples.retain(|target| config.targets.iter().any(|known| known.name == target));
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

    /// Takes in a window; `own` is what the daemon knows of itself, unless there was nobody to watch. Without a run nothing is
    /// known of targets that have processes: their alerts stay as they are.
    pub fn window(
        &mut self,
        run: Option<&Run>,
        facts: &[TargetFacts],
        own: Option<&Itself>,
        now: Now,
        keeper: &mut dyn Keeper,
    ) -> Result<()> {
        // What was seen in this window belongs to the alerts that began in the one before, too. To see more can be why a window
        // failed: it is not tried again.
        for alert in std::mem::take(&mut self.capturing).into_iter().filter(|_| run.is_some()) {
            keeper.pin(&alert);
        }
        self.changes.clear();
        self.urgent.clear();
        // What cannot be written (a full disk) must not keep the rest from being seen.
        let mut errors = Vec::new();
        errors.extend(self.store_changes().err());
        errors.extend(self.end_silences(now).err());
        errors.extend(self.forget_removed(now, keeper).err());
        let functions = self.config.daemon.functions.clone();
        let rules = self.config.rules.clone();
        let mut hot_now: Vec<FxHashMap<String, f64>> = Vec::new();
        for (index, target) in self.config.targets.clone().iter().enumerate() {
            let Some(facts) = facts.get(index) else { break };
            let name = target.name.as_str();
            // Each target is judged as if it were alone.
            let run = run.filter(|_| !facts.pids.is_empty()).map(|run| {
                let mut part = part(run, |pid| facts.pids.contains(&pid));
                detect::judge(&mut part, &Overrides::default());
                part
            });
            let run = run.as_ref();
            let restarted = run.is_some() && facts.age_s < self.ages[index];
            if restarted {
                // What grew before a start says nothing of what comes after.
                self.recent
                    .iter_mut()
                    .filter(|((_, of), _)| of == name)
                    .for_each(|(_, recent)| recent.clear());
            }
            if run.is_some() {
                self.ages[index] = facts.age_s;
            }
            let trend = run.and_then(|run| self.memory_trend(index, facts, run));
            let view = run.map(|run| View {
                run,
                pids: &facts.pids,
                outside: &facts.outside,
                memory_trend: trend,
                functions: &functions,
                restarted,
                own: None,
            });
            match &view {
                Some(view) => errors.extend(self.keep(name, METRICS.iter(), view, now).err()),
                None => {
                    self.samples.end(name);
                    if facts.pids.is_empty() {
                        self.growth.retain(|(of, _), _| *of != index);
                    }
                }
            }
            self.judged[index] = run.map_or_else(Judged::default, |run| Judged {
                verdict: run.verdict.clone(),
                findings: run.findings.clone(),
            });
            let hot = run.map(hot_functions).unwrap_or_default();
            let asked = Asked { index, target: name, facts, view, hot: &hot, now };
            for rule in &rules {
                if rule.enabled && rule.is_for(name) && !metrics::is_own(&rule.metric) {
                    errors.extend(self.ask(rule, &asked, keeper).err());
                }
            }
            hot_now.push(hot);
        }
        self.learn(hot_now);
        if let Some(own) = own {
            errors.extend(self.judge_self(run, own, now, keeper).err());
        }
        match self.store.clean(now.unix_ms) {
            Ok(dropped) => self.unsent_dropped += dropped,
            Err(error) => errors.push(error),
        }
        errors.extend(self.history.flush().err());
        // Those that follow have the same reason as a rule.
        errors.into_iter().next().map_or(Ok(()), Err)
    }

    /// Remembers where each target's CPU time goes. What is normal is learned while nothing is wrong.
    fn learn(&mut self, hot: Vec<FxHashMap<String, f64>>) {
        let uneasy: BTreeSet<&str> = self
            .states
            .iter()
            .filter(|(_, standing)| standing.state.phase() != Phase::Ok)
            .map(|((_, target), _)| target.as_str())
            .collect();
        for ((target, windows), hot) in self.config.targets.iter().zip(&mut self.hot).zip(hot) {
            if hot.is_empty() || uneasy.contains(target.name.as_str()) {
                continue;
            }
            windows.push_back(hot);
            if windows.len() > BASELINE {
                windows.pop_front();
            }
        }
    }

    /// Asks the rules about the daemon itself.
    fn judge_self(
        &mut self,
        run: Option<&Run>,
        own: &Itself,
        now: Now,
        keeper: &mut dyn Keeper,
    ) -> Result<()> {
        let none = run.map_or_else(Run::empty, |run| part(run, |_| false));
        let facts = TargetFacts {
            pids: [std::process::id()].into(),
            age_s: own.age.as_secs_f64(),
            outside: Outside::default(),
        };
        let view = View {
            run: &none,
            pids: &facts.pids,
            outside: &facts.outside,
            memory_trend: None,
            functions: &[],
            restarted: false,
            own: Some(own),
        };
        let own = METRICS.iter().filter(|metric| metrics::is_own(metric.name));
        let mut done = self.keep(OWN, own, &view, now);
        let hot = FxHashMap::default();
        let index = self.config.targets.len();
        let asked = Asked { index, target: OWN, facts: &facts, view: Some(view), hot: &hot, now };
        for rule in self.config.rules.clone() {
            if rule.enabled && metrics::is_own(&rule.metric) {
                done = done.and(self.ask(&rule, &asked, keeper));
            }
        }
        done
    }

    /// Takes down what was measured of a target.
    fn keep(
        &mut self,
        target: &str,
        metrics: impl Iterator<Item = &'static Metric>,
        view: &View<'_>,
        now: Now,
    ) -> Result<()> {
        let mut kept = Ok(());
        for metric in metrics {
            let values = metric.read(view);
            for (label, value) in values.iter() {
                let key = Key {
                    target: target.to_owned(),
                    metric: metric.name.to_owned(),
                    label: label.to_owned(),
                };
                kept = kept.and(self.history.add(key, now.unix_ms, value));
            }
            self.samples.update(target, metric, &values);
        }
        kept
    }

    /// What has changed of alerts in the last window.
    pub fn changes(&self) -> &[Message] {
        &self.changes
    }

    /// Messages of the last window that are to go out at once, since the outbox could not be written; and who gets them.
    pub fn urgent(&self) -> &[(Message, Vec<String>)] {
        &self.urgent
    }

    /// Messages that wait to be sent, and those that were dropped because too many did.
    pub fn outbox(&self) -> (u64, u64) {
        (self.store.waiting().unwrap_or(0) as u64, self.unsent_dropped)
    }

    /// Changes of alerts that could not be stored yet.
    pub fn unstored(&self) -> usize {
        self.unstored.len()
    }

    /// Whether the next window is to see more: an alert has just begun.
    pub fn wants_capture(&self) -> bool {
        !self.capturing.is_empty()
    }

    /// Bytes of history on disk.
    pub fn history_bytes(&self) -> u64 {
        self.history.bytes()
    }

    /// Files that were damaged: of the history, or the store.
    pub fn damaged(&self) -> u64 {
        self.history.damaged + self.store.damaged
    }
}

#[cfg(test)]
mod tests;
