//! The daemon's configuration: TOML in, plain values out. What is wrong is said with its line, and what was probably meant.
//!
//! Longer than 600 lines because a third of it are the tests of what is wrong, and each field has its place in the file.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use toml::Spanned;

use crate::{
    alerting::{BUILT_IN, NoData, Op, Rule},
    detect::RULES,
    metrics::{self, Unit},
};

/// A configuration in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// How the daemon itself runs.
    pub daemon: Daemon,
    /// What it watches.
    pub targets: Vec<TargetConfig>,
    /// Whom it tells.
    pub receivers: Vec<Receiver>,
    /// When: the built-in rules with what the configuration changes of them, then its own.
    pub rules: Vec<Rule>,
}

/// How the daemon itself runs.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Daemon {
    /// Length of a window: what is seen in it is added up, then rules are asked.
    #[serde(deserialize_with = "duration")]
    pub window: Duration,
    /// Samples per second and CPU.
    pub frequency: u32,
    /// Count system calls too.
    pub syscalls: bool,
    /// What all of the profiler may cost the machine, percent of one CPU: beyond, it sees less, in a stated order.
    pub max_overhead: f64,
    /// Where alerts, history and evidence are kept.
    pub state_dir: PathBuf,
    /// Where the API listens: `ADDRESS:PORT`, or a path for a Unix socket; empty for nowhere.
    pub listen: String,
    /// A file with the tokens of the API, a line `ROLE:SHA256` each; needed to listen beyond this machine.
    pub token_file: Option<PathBuf>,
    /// How long the windows before an alert are kept.
    #[serde(deserialize_with = "duration")]
    pub keep_windows: Duration,
    /// How much evidence of alerts may be kept, bytes.
    #[serde(deserialize_with = "bytes")]
    pub evidence_bytes: u64,
    /// How much history may be kept, bytes.
    #[serde(deserialize_with = "bytes")]
    pub history_bytes: u64,
}

impl Default for Daemon {
    fn default() -> Daemon {
        Daemon {
            window: Duration::from_secs(30),
            frequency: 99,
            syscalls: false,
            max_overhead: 5.0,
            state_dir: "/var/lib/profiler".into(),
            listen: "127.0.0.1:9464".to_owned(),
            token_file: None,
            keep_windows: Duration::from_secs(15 * 60),
            evidence_bytes: 500_000_000,
            history_bytes: 2_000_000_000,
        }
    }
}

/// A target: a name of its own, and how its processes are recognised. What is given must all hold.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TargetConfig {
    /// Name in metrics and messages.
    pub name: String,
    /// Name of the processes (15 characters at most count).
    pub comm: Option<String>,
    /// Path of their executable.
    pub exe: Option<PathBuf>,
    /// A part of their cgroup's path.
    pub cgroup: Option<String>,
    /// Their systemd unit.
    pub unit: Option<String>,
    /// Their container's id, or the beginning of it.
    pub container: Option<String>,
    /// A word of their command line.
    pub argument: Option<String>,
}

/// Somebody to tell.
#[derive(Clone, Debug, PartialEq)]
pub struct Receiver {
    /// Name in rules and messages.
    pub name: String,
    /// How.
    pub kind: ReceiverKind,
}

/// Ways to tell somebody.
#[derive(Clone, Debug, PartialEq)]
pub enum ReceiverKind {
    /// A Slack incoming webhook.
    Slack {
        /// Its address, or the file that holds it.
        url: Secret,
    },
    /// Any HTTP server: the alert as JSON, signed if there is a secret.
    Webhook {
        /// Its address, or the file that holds it.
        url: Secret,
        /// The file with the key of the signature (HMAC-SHA256 of the body, in the header X-Profiler-Signature).
        secret_file: Option<PathBuf>,
    },
    /// Prometheus' Alertmanager, API v2.
    Alertmanager {
        /// Its address, without path, or the file that holds it.
        url: Secret,
    },
    /// A file to which each alert is added as a line of JSON.
    File {
        /// The file.
        path: PathBuf,
    },
    /// A command that gets the alert as JSON on its standard input.
    Command {
        /// The command and its arguments; no shell.
        command: Vec<String>,
    },
    /// The daemon's own standard error.
    Stderr,
}

/// Something that should not stand in a file that many read.
#[derive(Clone, Debug, PartialEq)]
pub enum Secret {
    /// The value itself.
    Value(String),
    /// The file that holds it.
    File(PathBuf),
}

impl Secret {
    /// The value.
    pub fn read(&self) -> Result<String, String> {
        match self {
            Secret::Value(value) => Ok(value.clone()),
            Secret::File(file) => match crate::text::read_to_parse(file) {
                Ok(text) => Ok(text.trim().to_owned()),
                Err(error) => Err(format!("{}: {error}", file.display())),
            },
        }
    }
}

/// What the file says of a receiver.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReceiverConfig {
    #[serde(default)]
    name: String,
    #[serde(rename = "type")]
    kind: ReceiverType,
    url: Option<String>,
    url_file: Option<PathBuf>,
    secret_file: Option<PathBuf>,
    path: Option<PathBuf>,
    command: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ReceiverType {
    Slack,
    Webhook,
    Alertmanager,
    File,
    Command,
    Stderr,
}

impl ReceiverConfig {
    fn receiver(&self) -> Result<Receiver, String> {
        let ReceiverConfig { name, kind, url, url_file, secret_file, path, command } = self.clone();
        let takes = |takes_url: bool, takes_secret: bool, takes_path: bool, takes_command: bool| {
            let stray = [
                ("url", url.is_some() && !takes_url),
                ("url_file", url_file.is_some() && !takes_url),
                ("secret_file", secret_file.is_some() && !takes_secret),
                ("path", path.is_some() && !takes_path),
                ("command", command.is_some() && !takes_command),
            ];
            match stray.iter().find(|(_, is_stray)| *is_stray) {
                Some((field, _)) => Err(format!("receiver `{name}`: its type has no {field}")),
                None => Ok(()),
            }
        };
        let address = || match (url.clone(), url_file.clone()) {
            (Some(url), None) => Ok(Secret::Value(url)),
            (None, Some(file)) => Ok(Secret::File(file)),
            _ => Err(format!("receiver `{name}` needs either url or url_file")),
        };
        let kind = match kind {
            ReceiverType::Slack => {
                takes(true, false, false, false)?;
                ReceiverKind::Slack { url: address()? }
            }
            ReceiverType::Webhook => {
                takes(true, true, false, false)?;
                ReceiverKind::Webhook { url: address()?, secret_file }
            }
            ReceiverType::Alertmanager => {
                takes(true, false, false, false)?;
                ReceiverKind::Alertmanager { url: address()? }
            }
            ReceiverType::File => {
                takes(false, false, true, false)?;
                ReceiverKind::File { path: path.ok_or_else(|| format!("receiver `{name}` needs a path"))? }
            }
            ReceiverType::Command => {
                takes(false, false, false, true)?;
                let command = command.filter(|command| !command.is_empty());
                ReceiverKind::Command {
                    command: command.ok_or_else(|| format!("receiver `{name}` needs a command"))?,
                }
            }
            ReceiverType::Stderr => {
                takes(false, false, false, false)?;
                ReceiverKind::Stderr
            }
        };
        Ok(Receiver { name, kind })
    }
}

/// What the file may say of a rule: any field of a built-in one, or a whole rule of its own.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RuleConfig {
    summary: Option<String>,
    metric: Option<Spanned<String>>,
    finding: Option<Spanned<String>>,
    op: Option<Op>,
    warning: Option<Spanned<toml::Value>>,
    critical: Option<Spanned<toml::Value>>,
    clear: Option<Spanned<toml::Value>>,
    #[serde(rename = "for", deserialize_with = "maybe_duration")]
    hold: Option<Duration>,
    #[serde(deserialize_with = "maybe_duration")]
    keep_firing_for: Option<Duration>,
    #[serde(deserialize_with = "maybe_duration")]
    warmup: Option<Duration>,
    #[serde(deserialize_with = "maybe_duration")]
    cooldown: Option<Duration>,
    no_data: Option<NoData>,
    inhibited_by: Option<Vec<Spanned<String>>>,
    targets: Option<Vec<Spanned<String>>>,
    receivers: Option<Vec<Spanned<String>>>,
    capture: Option<bool>,
    enabled: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    daemon: Daemon,
    targets: Vec<Spanned<TargetConfig>>,
    receivers: Vec<Spanned<ReceiverConfig>>,
    rules: BTreeMap<Spanned<String>, RuleConfig>,
}

/// Something that is wrong in a text, and where.
struct Wrong {
    at: Option<Range<usize>>,
    what: String,
}

/// Reads a configuration. The error has the place, the line with a mark below, and what was probably meant.
pub fn parse(text: &str) -> Result<Config, String> {
    parse_file(text).map_err(|wrong| point_at(text, wrong))
}

/// Reads the configuration in a file.
pub fn load(path: &Path) -> Result<Config, String> {
    let text = crate::text::read_to_parse(path).map_err(|error| format!("{}: {error}", path.display()))?;
    parse(&text).map_err(|error| format!("{}: {error}", path.display()))
}

fn parse_file(text: &str) -> Result<Config, Wrong> {
    let file: File = toml::from_str(text)
        .map_err(|error| Wrong { at: error.span(), what: with_suggestion(error.message()) })?;
    let daemon = file.daemon;
    let wrong = |what: &str| Wrong { at: None, what: what.to_owned() };
    if daemon.window < Duration::from_secs(5) || daemon.window > Duration::from_secs(3600) {
        return Err(wrong("daemon.window must be from 5s to 1h"));
    }
    if daemon.frequency == 0 || daemon.frequency > 10_000 {
        return Err(wrong("daemon.frequency must be from 1 to 10000"));
    }
    if !(daemon.max_overhead > 0.0 && daemon.max_overhead <= 100.0) {
        return Err(wrong("daemon.max_overhead must be above 0 and at most 100, in percent of one CPU"));
    }
    let targets = each_named("target", file.targets, |target| &target.name, check_target)?;
    if targets.is_empty() {
        return Err(wrong("no target: add [[targets]] with a name and, for example, comm = \"node\""));
    }
    let check = |receiver: &ReceiverConfig| receiver.receiver().map(drop);
    let receivers = each_named("receiver", file.receivers, |receiver| &receiver.name, check)?;
    let receivers: Vec<Receiver> = receivers.iter().filter_map(|receiver| receiver.receiver().ok()).collect();
    let names = Names {
        targets: targets.iter().map(|target| target.name.as_str()).collect(),
        receivers: receivers.iter().map(|receiver| receiver.name.as_str()).collect(),
        rules: BUILT_IN
            .iter()
            .map(|rule| rule.id)
            .chain(file.rules.keys().map(|id| id.get_ref().as_str()))
            .collect(),
    };
    let mut rules: Vec<Rule> = BUILT_IN.iter().map(|rule| rule.rule()).collect();
    for (id, config) in &file.rules {
        match rules.iter_mut().find(|rule| rule.id == *id.get_ref()) {
            Some(built_in) => config.change(id, built_in, &names)?,
            None => {
                let mut rule = config.new_rule(id)?;
                config.change(id, &mut rule, &names)?;
                rules.push(rule);
            }
        }
    }
    Ok(Config { daemon, targets, receivers, rules })
}

/// What rules may refer to.
struct Names<'a> {
    targets: Vec<&'a str>,
    receivers: Vec<&'a str>,
    rules: Vec<&'a str>,
}

impl RuleConfig {
    fn new_rule(&self, id: &Spanned<String>) -> Result<Rule, Wrong> {
        if self.metric.is_none() == self.finding.is_none() {
            let known: Vec<&str> = BUILT_IN.iter().map(|rule| rule.id).collect();
            let what = format!(
                "`{}` is no built-in rule, and a rule of your own needs either a metric or a finding{}",
                id.get_ref(),
                nearest(id.get_ref(), &known)
                    .map_or_else(String::new, |known| format!("; did you mean `{known}`?"))
            );
            return Err(Wrong { at: Some(id.span()), what });
        }
        Ok(Rule {
            id: id.get_ref().clone(),
            metric: String::new(),
            finding: String::new(),
            inhibited_by: Vec::new(),
            warning: None,
            critical: None,
            ..BUILT_IN[0].rule()
        })
    }

    fn change(&self, id: &Spanned<String>, rule: &mut Rule, names: &Names<'_>) -> Result<(), Wrong> {
        if let Some(metric) = &self.metric {
            if metrics::find(metric.get_ref()).is_none() {
                return Err(unknown("metric", metric, &metrics::names()));
            }
            rule.metric = metric.get_ref().clone();
            rule.finding = String::new();
        }
        if let Some(finding) = &self.finding {
            let known: Vec<&str> = RULES.iter().map(|rule| rule.name).collect();
            if !known.contains(&finding.get_ref().as_str()) {
                return Err(unknown("finding", finding, &known));
            }
            rule.finding = finding.get_ref().clone();
            rule.metric = String::new();
        }
        let unit = metrics::find(&rule.metric).map(|metric| metric.unit);
        let threshold = |value: &Option<Spanned<toml::Value>>, before: Option<f64>| match (value, unit) {
            (None, _) => Ok(before),
            (Some(value), None) => {
                Err(Wrong { at: Some(value.span()), what: "a rule of findings has no thresholds".to_owned() })
            }
            (Some(value), Some(unit)) => match number(value.get_ref(), unit) {
                Ok(number) => Ok(Some(number)),
                Err(what) => Err(Wrong { at: Some(value.span()), what }),
            },
        };
        rule.warning = threshold(&self.warning, rule.warning)?;
        rule.critical = threshold(&self.critical, rule.critical)?;
        rule.clear = threshold(&self.clear, rule.clear)?;
        let set = |mine: &mut Duration, given: Option<Duration>| *mine = given.unwrap_or(*mine);
        set(&mut rule.hold, self.hold);
        set(&mut rule.keep_firing, self.keep_firing_for);
        set(&mut rule.warmup, self.warmup);
        set(&mut rule.cooldown, self.cooldown);
        rule.op = self.op.unwrap_or(rule.op);
        rule.no_data = self.no_data.unwrap_or(rule.no_data);
        rule.capture = self.capture.unwrap_or(rule.capture);
        rule.enabled = self.enabled.unwrap_or(rule.enabled);
        if let Some(summary) = &self.summary {
            rule.summary.clone_from(summary);
        }
        for (what, given, known, mine) in [
            ("target", &self.targets, &names.targets, &mut rule.targets),
            ("receiver", &self.receivers, &names.receivers, &mut rule.receivers),
            ("rule", &self.inhibited_by, &names.rules, &mut rule.inhibited_by),
        ] {
            let Some(given) = given else { continue };
            if let Some(stray) = given.iter().find(|name| !known.contains(&name.get_ref().as_str())) {
                return Err(unknown(what, stray, known));
            }
            *mine = given.iter().map(|name| name.get_ref().clone()).collect();
        }
        if let (Some(warning), Some(critical)) = (rule.warning, rule.critical) {
            let in_order = match rule.op {
                Op::Above => warning <= critical,
                Op::Below => warning >= critical,
            };
            if !in_order {
                let what = format!("`{}`: critical must be worse than warning", rule.id);
                return Err(Wrong { at: Some(id.span()), what });
            }
        }
        if rule.warning.or(rule.critical).is_none() && !rule.metric.is_empty() {
            let what = format!("`{}` needs a threshold: warning, critical or both", rule.id);
            return Err(Wrong { at: Some(id.span()), what });
        }
        Ok(())
    }
}

fn check_target(target: &TargetConfig) -> Result<(), String> {
    let TargetConfig { name: _, comm, exe, cgroup, unit, container, argument } = target;
    let texts = [comm, cgroup, unit, container, argument];
    if exe.is_none() && texts.iter().all(|text| text.is_none()) {
        return Err(format!(
            "target `{}` needs at least one of comm, exe, cgroup, unit, container, argument",
            target.name
        ));
    }
    if texts.into_iter().flatten().any(|text| text.is_empty()) {
        return Err(format!("target `{}`: an empty text would match every process", target.name));
    }
    Ok(())
}

/// Checks things that have names: each has one, and no other thing has the same.
fn each_named<T>(
    what: &str,
    things: Vec<Spanned<T>>,
    name: impl Fn(&T) -> &String,
    check: impl Fn(&T) -> Result<(), String>,
) -> Result<Vec<T>, Wrong> {
    let mut checked: Vec<T> = Vec::with_capacity(things.len());
    for thing in things {
        let at = Some(thing.span());
        let thing = thing.into_inner();
        let mine = name(&thing);
        let wrong = if mine.is_empty() {
            Some(format!("a {what} needs a name"))
        } else if checked.iter().any(|other| name(other) == mine) {
            Some(format!("two {what}s are named `{mine}`"))
        } else {
            check(&thing).err()
        };
        if let Some(what) = wrong {
            return Err(Wrong { at, what });
        }
        checked.push(thing);
    }
    Ok(checked)
}

/// A threshold in the unit of its metric: a number, or a text with a unit.
fn number(value: &toml::Value, unit: Unit) -> Result<f64, String> {
    let number = match value {
        toml::Value::Integer(number) => Ok(*number as f64),
        toml::Value::Float(number) => Ok(*number),
        toml::Value::String(text) => unit.parse(text),
        other => Err(format!("a {} is no threshold", other.type_str())),
    }?;
    if number.is_finite() { Ok(number) } else { Err("a threshold must be a finite number".to_owned()) }
}

fn unknown(what: &str, name: &Spanned<String>, known: &[&str]) -> Wrong {
    let hint = match nearest(name.get_ref(), known) {
        Some(near) => format!("; did you mean `{near}`?"),
        None if known.is_empty() => format!("; there is no {what}"),
        None => format!("; known are {}", known.join(", ")),
    };
    Wrong { at: Some(name.span()), what: format!("unknown {what} `{}`{hint}", name.get_ref()) }
}

/// Adds what was probably meant to what serde says of an unknown field.
fn with_suggestion(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let suggestion = match (message.starts_with("unknown "), quoted.next()) {
        (true, Some(unknown)) => nearest(unknown, &quoted.collect::<Vec<_>>()).map(str::to_owned),
        _ => None,
    };
    match suggestion {
        Some(known) => format!("{message}; did you mean `{known}`?"),
        None => message.to_owned(),
    }
}

/// The known word that is most like `word`, if one is at all.
fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let scored = known.iter().map(|known| (strsim::jaro_winkler(word, known), *known));
    scored.filter(|(score, _)| *score > 0.8).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, known)| known)
}

/// Says where in the text something is wrong.
fn point_at(text: &str, Wrong { at, what }: Wrong) -> String {
    let Some(at) = at.filter(|at| text.is_char_boundary(at.start)) else { return what };
    let before = &text[..at.start];
    let line = before.matches('\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let source = text[start..].lines().next().unwrap_or_default();
    let column = text[start..at.start].chars().count();
    let rest = source.chars().count().saturating_sub(column);
    let length = text.get(at.clone()).map_or(1, |marked| marked.chars().take_while(|c| *c != '\n').count());
    let marks = "^".repeat(length.clamp(1, rest.max(1)));
    let number = line.to_string();
    let gap = " ".repeat(number.len());
    format!(
        "line {line}, column {}: {what}\n{gap} |\n{number} | {source}\n{gap} | {}{marks}",
        column + 1,
        " ".repeat(column)
    )
}

fn duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text)
        .map_err(|error| serde::de::Error::custom(format!("`{text}`: {error}; write it like 30s or 5m")))
}

fn maybe_duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    duration(deserializer).map(Some)
}

fn bytes<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_size::parse_size(&text)
        .map_err(|error| serde::de::Error::custom(format!("`{text}`: {error}; write it like 500MB or 2GiB")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str =
        "[[targets]]\nname = \"api\"\ncomm = \"node\"\n\n[[receivers]]\nname = \"ops\"\ntype = \"stderr\"\n";

    fn wrong(more: &str) -> String {
        parse(&format!("{SMALL}{more}")).unwrap_err()
    }

    #[test]
    fn six_lines_are_enough() {
        let config = parse(SMALL).unwrap();
        assert_eq!(config.targets[0].comm.as_deref(), Some("node"));
        assert_eq!(config.receivers[0].kind, ReceiverKind::Stderr);
        assert_eq!(config.rules, BUILT_IN.iter().map(|rule| rule.rule()).collect::<Vec<_>>());
    }

    #[test]
    fn rules_are_overridden_field_by_field() {
        let text = format!(
            "{SMALL}[rules.event-loop-delay]\nwarning = \"20ms\"\nfor = \"2m\"\nreceivers = [\"ops\"]\n"
        );
        let rule = parse(&text).unwrap().rules.remove(0);
        assert_eq!((rule.warning, rule.critical), (Some(0.020), Some(0.050)));
        assert_eq!((rule.hold, rule.receivers), (Duration::from_secs(120), vec!["ops".to_owned()]));
    }

    #[test]
    fn a_rule_of_ones_own_needs_a_metric_and_a_threshold() {
        let text = format!("{SMALL}[rules.big]\nmetric = \"memory_held_bytes\"\ncritical = \"2GiB\"\n");
        let rule = parse(&text).unwrap().rules.pop().unwrap();
        assert_eq!((rule.critical, rule.warning), (Some(2.0 * 1024.0 * 1024.0 * 1024.0), None));
        assert!(wrong("[rules.big]\nmetric = \"memory_held_bytes\"\n").contains("needs a threshold"));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place_and_what_was_meant() {
        insta::assert_snapshot!(
            [
                "[rules.event-loop-delay]\nwarnin = 1\n",
                "[rules.event-lop-delay]\nwarning = 1\n",
                "[rules.event-loop-delay]\nwarning = \"soon\"\n",
                "[rules.event-loop-delay]\nwarning = \"2s\"\ncritical = \"1s\"\n",
                "[rules.big]\nmetric = \"memory_held_byte\"\nwarning = 1\n",
                "[rules.big]\nfinding = \"memory-leek\"\n",
                "[rules.cpu-quota]\nreceivers = [\"opps\"]\n",
                "[[targets]]\nname = \"api\"\ncomm = \"node\"\n",
                "[[targets]]\nname = \"b\"\n",
                "[[receivers]]\nname = \"x\"\ntype = \"pigeon\"\n",
                "[[receivers]]\nname = \"x\"\ntype = \"slack\"\n",
                "[[receivers]]\nname = \"x\"\ntype = \"stderr\"\npath = \"/x\"\n",
                "[daemon]\nwindow = \"1 parsec\"\n",
                "[daemon]\nwindow = \"1s\"\n",
                "nonsense",
            ]
            .map(wrong)
            .join("\n\n")
        );
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,200}", key in "[a-z_.-]{0,20}", value in "\\PC{0,20}") {
            let _ = parse(&text);
            let _ = parse(&format!("{SMALL}[rules.{key}]\n{key} = {value}\nwarning = \"{value}\""));
        }
    }
}
