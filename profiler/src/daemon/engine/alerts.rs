//! Rules are asked, and what changes of alerts is stored together with its messages.

use std::{collections::VecDeque, time::Duration};

use anyhow::{Context as _, Result};

use super::{Alert, Asked, Engine, Keeper, Now, Standing, diagnose::diagnose, unstored::Unstored};
use crate::{
    alerting::{self, Moment, Reading, Rule, Transition},
    daemon::{history::Key, message::Message},
    metrics::{self, Unit},
    model::finding::Severity,
};

/// A baseline is compared with so many of the last values, and taken from so long before and after the same time.
const COMPARED: (usize, i64) = (10, 30 * 60 * 1000);

/// Changes that wait to be stored, at most.
const MOST_UNSTORED: usize = 1000;

/// What a rule reads.
struct Read {
    reading: Reading,
    value: Option<f64>,
    /// For a message.
    words: String,
}

impl Read {
    fn unknown(reading: Reading) -> Read {
        Read { reading, value: None, words: String::new() }
    }
}

impl Engine {
    /// Asks one rule about one target.
    pub(super) fn ask(&mut self, rule: &Rule, asked: &Asked<'_>, keeper: &mut dyn Keeper) -> Result<()> {
        let Asked { target, facts, now, .. } = *asked;
        let read = self.read(rule, asked);
        let inhibited = rule.inhibited_by.iter().any(|other| {
            let standing = self.states.get(&(other.clone(), target.to_owned()));
            standing.is_some_and(|standing| standing.state.firing().is_some())
        });
        let moment = Moment {
            now: now.monotonic,
            target_age: Duration::try_from_secs_f64(facts.age_s).unwrap_or_default(),
            inhibited,
        };
        let effective = rule.effective();
        let standing = self.states.entry((rule.id.clone(), target.to_owned())).or_default();
        standing.value = read.value.filter(|value| value.is_finite());
        let before = standing.state.clone();
        let Some(transition) = alerting::step(&effective, &mut standing.state, read.reading, moment) else {
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
        let alert = match (&standing.alert, change) {
            (Some(alert), "escalated" | "resolved") => alert.clone(),
            _ => Alert {
                id: alert_id(&rule.id, target, now.unix_ms),
                started_unix_ms: now.unix_ms,
                told: false,
            },
        };
        let recordings = if change == "resolved" { Vec::new() } else { keeper.promote(&pin, &alert.id) };
        if change != "resolved" && rule.capture {
            self.capturing.push(alert.id.clone());
        }
        let threshold = if severity == Severity::Critical { rule.critical } else { rule.warning };
        let mut message = Message {
            version: 1,
            message: format!("{}-{change}", alert.id),
            alert: alert.id.clone(),
            change: change.to_owned(),
            rule: rule.id.clone(),
            summary: rule.summary.clone(),
            target: target.to_owned(),
            host: self.host.clone(),
            severity: severity.id().to_owned(),
            value: read.words,
            threshold: self.threshold_words(rule, threshold),
            number: read.value.filter(|value| value.is_finite()),
            started_unix_ms: alert.started_unix_ms,
            unix_ms: now.unix_ms,
            reason: reason.to_owned(),
            command: recordings.last().map_or_else(String::new, |last| replay(last, target)),
            evidence: recordings,
            ..Message::default()
        };
        if let (Some(view), false) = (&asked.view, change == "resolved") {
            let before = self.hot.get(asked.index);
            diagnose(&mut message, &rule.metric, view, asked.hot, before.unwrap_or(&VecDeque::new()));
        }
        self.change(message, rule, severity, alert)
    }

    /// What the rule reads of the target.
    fn read(&mut self, rule: &Rule, asked: &Asked<'_>) -> Read {
        let Some(view) = &asked.view else {
            let gone = asked.facts.pids.is_empty();
            return Read::unknown(if gone { Reading::Gone } else { Reading::Unseen });
        };
        if !rule.finding.is_empty() {
            let found = view.run.findings.iter().filter(|finding| finding.rule == rule.finding);
            let worst = found.map(|finding| finding.severity).max();
            return Read::unknown(Reading::Found(worst.filter(|severity| *severity > Severity::Info)));
        }
        let Some(value) = metrics::value(&rule.metric, view) else { return Read::unknown(Reading::Nothing) };
        let unit = metrics::find(&rule.metric).map_or(Unit::Count, |metric| metric.unit);
        match (rule.predict, rule.baseline) {
            (Some(_), _) => self.foretold(rule, asked, value, unit),
            (_, Some(ago)) => self.compared(rule, asked, value, unit, ago),
            (None, None) => {
                Read { reading: Reading::Value(value), value: Some(value), words: unit.words(value) }
            }
        }
    }

    /// The time until the value reaches its threshold.
    fn foretold(&mut self, rule: &Rule, asked: &Asked<'_>, value: f64, unit: Unit) -> Read {
        let recent = self.recent.entry((rule.id.clone(), asked.target.to_owned())).or_default();
        recent.push(asked.now.monotonic, value);
        let Some(limit) = rule.limit() else { return Read::unknown(Reading::Nothing) };
        match recent.reaches(limit, rule.op == alerting::Op::Above) {
            None => Read::unknown(Reading::Nothing),
            Some(None) => Read::unknown(Reading::Value(f64::INFINITY)),
            Some(Some(forecast)) => Read {
                // The latest: before that it is there with near certainty.
                reading: Reading::Value(forecast.high_s),
                value: Some(forecast.high_s),
                words: format!(
                    "{} now, {} in {} to {}",
                    unit.words(value),
                    unit.words(limit),
                    Unit::Seconds.words(forecast.low_s),
                    Unit::Seconds.words(forecast.high_s)
                ),
            },
        }
    }

    /// How many times as high the value is as it was at the same time before.
    fn compared(&mut self, rule: &Rule, asked: &Asked<'_>, value: f64, unit: Unit, ago: Duration) -> Read {
        let recent = self.last.entry((rule.id.clone(), asked.target.to_owned())).or_default();
        recent.push_back(value);
        if recent.len() > COMPARED.0 {
            recent.pop_front();
        }
        let now: Vec<f64> = recent.iter().copied().collect();
        let middle = asked.now.unix_ms - ago.as_millis() as i64;
        let (metric, label) = rule.metric.split_once('.').unwrap_or((&rule.metric, ""));
        let key = Key { target: asked.target.to_owned(), metric: metric.to_owned(), label: label.to_owned() };
        let before = self.history.values(&key, middle - COMPARED.1, middle + COMPARED.1);
        let before = before.unwrap_or_default();
        match alerting::times_as_high(&now, &before) {
            None => Read::unknown(Reading::Nothing),
            Some(times) => Read {
                reading: Reading::Value(times),
                value: Some(times),
                words: format!(
                    "{}, {times:.2} times as high as {} before",
                    unit.words(value),
                    humantime::format_duration(ago)
                ),
            },
        }
    }

    fn threshold_words(&self, rule: &Rule, threshold: Option<f64>) -> String {
        let unit = metrics::find(&rule.metric).map(|metric| metric.unit);
        match (threshold, unit, rule.predict, rule.baseline) {
            (_, _, Some(within), _) => format!("within {}", humantime::format_duration(within)),
            (Some(times), _, _, Some(_)) => format!("{times} times"),
            (Some(value), Some(unit), ..) => unit.words(value),
            _ => String::new(),
        }
    }

    /// Stores a change of an alert, and its messages to those who are to be told. Where it cannot be stored yet, they are told
    /// at once, and again by the same id when it is.
    fn change(&mut self, message: Message, rule: &Rule, severity: Severity, alert: Alert) -> Result<()> {
        let is_over = message.change == "resolved";
        let silenced = self.silences.iter().any(|silence| silence.covers(&rule.id, &message.target));
        // Who was not told of the beginning is not told of the end.
        let told = if is_over { alert.told } else { alert.told || !silenced };
        let receivers = if told && (is_over || !silenced) { self.receivers(rule) } else { Vec::new() };
        let key = (rule.id.clone(), message.target.clone());
        if let Some(standing) = self.states.get_mut(&key) {
            standing.alert = (!is_over).then_some(Alert { told, ..alert });
        }
        self.changes.push(message.clone());
        if self.unstored.len() >= MOST_UNSTORED {
            self.unsent_dropped +=
                self.unstored.pop_front().map_or(0, |oldest| oldest.receivers.len() as u64);
        }
        self.unstored.push_back(Unstored {
            message: message.clone(),
            severity,
            receivers: receivers.clone(),
            told,
        });
        let stored = self.store_changes();
        if stored.is_err() && !receivers.is_empty() {
            self.urgent.push((message, receivers));
        }
        stored
    }

    /// Stores what could not be stored before, in order.
    pub(super) fn store_changes(&mut self) -> Result<()> {
        while let Some(first) = self.unstored.front() {
            first.store(&mut self.store).context("a change of an alert cannot be stored yet")?;
            self.unstored.pop_front();
        }
        Ok(())
    }

    /// Who is told of a rule's alerts.
    fn receivers(&self, rule: &Rule) -> Vec<String> {
        if rule.receivers.is_empty() {
            self.config.receivers.iter().map(|receiver| receiver.name.clone()).collect()
        } else {
            rule.receivers.clone()
        }
    }

    /// Tells of alerts that began in silence, go on, and are not silenced any more.
    pub(super) fn end_silences(&mut self, now: Now) -> Result<()> {
        self.silences = self.store.silences(now.unix_ms)?;
        if !self.unstored.is_empty() {
            return Ok(()); // of what is not stored nothing can be told
        }
        let is_late = |((rule, target), standing): &(&(String, String), &Standing)| {
            let untold = standing.alert.as_ref().is_some_and(|alert| !alert.told);
            untold && !self.silences.iter().any(|silence| silence.covers(rule, target))
        };
        let late: Vec<(String, String)> =
            self.states.iter().filter(is_late).map(|(key, _)| key.clone()).collect();
        for key in late {
            let rule = self.config.rules.iter().find(|known| known.id == key.0);
            let receivers = rule.map_or_else(Vec::new, |rule| self.receivers(rule));
            let Some(alert) = self.states.get_mut(&key).and_then(|of| of.alert.as_mut()) else { continue };
            self.store.tell(&alert.id, &receivers, now.unix_ms)?;
            alert.told = true;
        }
        Ok(())
    }

    /// Ends the alerts of rules and targets that the configuration does not have any more.
    pub(super) fn forget_removed(&mut self, now: Now, keeper: &mut dyn Keeper) -> Result<()> {
        let config = &self.config;
        let is_there = |rule: &str, target: &str| {
            config.rules.iter().any(|known| known.id == rule && known.enabled && known.is_for(target))
                && (target == metrics::OWN || config.targets.iter().any(|known| known.name == target))
        };
        let gone: Vec<(String, String)> =
            self.states.keys().filter(|(rule, target)| !is_there(rule, target)).cloned().collect();
        for key in gone {
            let Some(standing) = self.states.remove(&key) else { continue };
            self.recent.remove(&key);
            self.last.remove(&key);
            let (rule_id, target) = key;
            keeper.unpin(&format!("{rule_id}--{target}"));
            let Some(alert) = standing.alert else { continue };
            let severity = standing.state.firing().map_or(Severity::Warning, |firing| firing.severity);
            let message = Message {
                version: 1,
                message: format!("{}-resolved", alert.id),
                alert: alert.id.clone(),
                change: "resolved".to_owned(),
                rule: rule_id.clone(),
                target,
                host: self.host.clone(),
                severity: severity.id().to_owned(),
                started_unix_ms: alert.started_unix_ms,
                unix_ms: now.unix_ms,
                reason: "the configuration has it no more".to_owned(),
                ..Message::default()
            };
            let rule = self.config.rules.iter().find(|rule| rule.id == rule_id).cloned();
            let rule = rule.unwrap_or_else(|| Rule { id: rule_id, ..Rule::default() });
            self.change(message, &rule, severity, alert)?;
        }
        Ok(())
    }
}

/// The command that shows what a recording has of a target, for a shell.
pub(super) fn replay(recording: &str, target: &str) -> String {
    let word = |text: &str| match text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:@+".contains(c)) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    };
    let of = if target == metrics::OWN { String::new() } else { format!(" --target={}", word(target)) };
    format!("profiler replay {}{of}", word(recording))
}

/// Id of an alert: of its rule, target and beginning, so that it is the same whenever it is made.
fn alert_id(rule: &str, target: &str, started_unix_ms: i64) -> String {
    use sha2::Digest as _;
    let hash = sha2::Sha256::digest(format!("{rule}\0{target}\0{started_unix_ms}"));
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
