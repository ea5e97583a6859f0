//! `profiler daemon`: windows without end. Each window is a run of its own, of all targets' processes together, in a process
//! of its own: when it ends, everything in the kernel and in memory goes with it, so that a year is as flat as a minute. What
//! must outlive a window is in the engine, the history and the store, each with a bound.
//!
//! `targets -> window (a recording) -> engine (metrics, rules) -> store -> receivers`

mod api;
mod client;
pub(crate) mod config;
mod engine;
pub(crate) mod evidence;
mod export;
mod facts;
mod history;
mod message;
mod notify;
mod overlay;
mod own;
mod service;
mod shed;
mod store;
mod targets;
mod threads;
mod tryout;
mod window;

use std::path::Path;

use anyhow::{Result, bail};

use self::{
    api::Listen,
    config::Receiver,
    message::Message,
    overlay::Overlay,
    service::{PROC, host},
};
pub use self::{
    service::run,
    tryout::test_rules,
    window::{Measure, Window},
};
use crate::{
    alerting::BUILT_IN,
    metrics::{self, Unit},
    process::clock,
};

/// A configuration to begin with.
pub const EXAMPLE: &str = include_str!("profiler.toml");

/// Checks a configuration: what is in force with it, as a listing.
pub fn check(config_file: &Path) -> Result<String> {
    let config = config::load(config_file).map_err(anyhow::Error::msg)?;
    Listen::parse(&config.daemon)?;
    let mut lines = vec![format!(
        "window {}, state in {}, API on {}",
        humantime::format_duration(config.daemon.window),
        config.daemon.state_dir.display(),
        if config.daemon.listen.is_empty() { "nothing" } else { &config.daemon.listen }
    )];
    let processes: Vec<targets::Process> = targets::running(Path::new(PROC)).collect();
    let (found, left_out) = targets::assign(&config.targets, processes.into_iter());
    for (target, pids) in config.targets.iter().zip(found) {
        let processes = if pids.len() == 1 { "process" } else { "processes" };
        lines.push(format!("target {}: {} {processes} now", target.name, pids.len()));
    }
    if left_out > 0 {
        lines.push(targets::left_out_words(left_out));
    }
    lines.extend(config.receivers.iter().map(|receiver| format!("receiver {}", receiver.name)));
    for rule in config.rules.iter() {
        let unit = crate::metrics::find(&rule.metric).map_or(Unit::Count, |metric| metric.unit);
        let words = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| unit.words(value));
        let source = if rule.finding.is_empty() { &rule.metric } else { &rule.finding };
        let enabled = if rule.enabled { "" } else { "  (disabled)" };
        lines.push(format!(
            "rule {:<18} {:<32} warning {:<9} critical {:<9} for {}{enabled}",
            rule.id,
            source,
            words(rule.warning),
            words(rule.critical),
            humantime::format_duration(rule.hold),
        ));
    }
    Ok(lines.join("\n"))
}

/// What is in force, as a configuration: each rule with where its thresholds come from.
pub fn show(config_file: &Path) -> Result<String> {
    let config = config::load(config_file).map_err(anyhow::Error::msg)?;
    let overlay = Overlay::load(&config.daemon.state_dir);
    let mut in_force = config.rules.clone();
    overlay.apply(&mut in_force);
    let mut text = String::new();
    for (rule, configured) in in_force.iter().zip(&config.rules) {
        let built_in = BUILT_IN.iter().find(|known| known.id == rule.id);
        let from = if rule != configured {
            "changed through the API"
        } else if built_in == Some(rule) {
            "built in"
        } else {
            "of the configuration"
        };
        let unit = metrics::find(&rule.metric).map_or(Unit::Count, |metric| metric.unit);
        text.push_str(&format!("[rules.{}]  # {from}\n", rule.id));
        let reads =
            if rule.finding.is_empty() { ("metric", &rule.metric) } else { ("finding", &rule.finding) };
        text.push_str(&format!("{} = \"{}\"\n", reads.0, reads.1));
        for (name, value) in
            [("warning", rule.warning), ("critical", rule.critical), ("clear", rule.clear_at())]
        {
            if let Some(value) = value {
                text.push_str(&format!("{name} = {value}  # {}\n", unit.words(value)));
            }
        }
        for (name, length) in [
            ("for", Some(rule.hold)),
            ("keep_firing_for", Some(rule.keep_firing)),
            ("warmup", Some(rule.warmup)),
            ("cooldown", Some(rule.cooldown)),
            ("predict", rule.predict),
            ("baseline", rule.baseline),
        ] {
            if let Some(length) = length {
                text.push_str(&format!("{name} = \"{}\"\n", humantime::format_duration(length)));
            }
        }
        if !rule.inhibited_by.is_empty() {
            text.push_str(&format!("inhibited_by = {:?}\n", rule.inhibited_by));
        }
        text.push_str(&format!("enabled = {}\n\n", rule.enabled));
    }
    Ok(text)
}

/// Sends a message that says it is a test, once.
pub fn test_receiver(config_file: &Path, name: &str) -> Result<()> {
    let config = config::load(config_file).map_err(anyhow::Error::msg)?;
    let Some(Receiver { kind, .. }) = config.receivers.iter().find(|receiver| receiver.name == name) else {
        let known: Vec<&str> = config.receivers.iter().map(|receiver| receiver.name.as_str()).collect();
        bail!("no receiver is named {name}; there are {}", known.join(", "));
    };
    let unix_ms = clock::unix_ms();
    let message = Message {
        version: 1,
        message: format!("test-{unix_ms}"),
        alert: format!("test-{unix_ms}"),
        change: "fired".to_owned(),
        rule: "test".to_owned(),
        summary: "a test message: nothing is wrong".to_owned(),
        target: "none".to_owned(),
        host: host(),
        severity: "warning".to_owned(),
        started_unix_ms: unix_ms,
        unix_ms,
        ..Message::default()
    };
    notify::send(kind, &[message])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_a_configuration_that_means_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("profiler.toml");
        let head = format!(
            "[daemon]\nstate_dir = \"{}\"\n[[targets]]\nname = \"api\"\ncomm = \"node\"\n",
            dir.path().display()
        );
        std::fs::write(&file, format!("{head}[rules.cpu-quota]\nwarning = \"50%\"\n")).unwrap();
        let shown = show(&file).unwrap();
        assert!(shown.contains("[rules.cpu-quota]  # of the configuration\n"), "{shown}");
        assert!(shown.contains("[rules.descriptors]  # built in\n"), "{shown}");
        let again = config::parse(&format!("{head}{shown}")).unwrap();
        let before = config::load(&file).unwrap();
        for (one, other) in before.rules.iter().zip(&again.rules) {
            // What follows from the thresholds is written down.
            assert_eq!(alerting_rule(one), *other);
        }
    }

    fn alerting_rule(rule: &crate::alerting::Rule) -> crate::alerting::Rule {
        crate::alerting::Rule { clear: rule.clear_at(), ..rule.clone() }
    }

    #[test]
    fn the_example_is_a_configuration() {
        config::parse(EXAMPLE).unwrap();
    }
}
