//! The daemon's configuration: TOML in, plain values out. What is wrong is said with its line, and what was probably meant.

mod daemon;
mod export;
mod jwt;
mod receiver;
mod rule;
mod secret;
mod target;
mod units;
mod wrong;

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;
use toml::Spanned;

pub use self::{
    daemon::Daemon,
    export::{Export, ExportKind},
    jwt::Jwt,
    receiver::{Email, Receiver, ReceiverKind, Security},
    target::TargetConfig,
};
use self::{
    export::ExportConfig,
    receiver::ReceiverConfig,
    rule::{Names, RuleConfig},
    wrong::{Wrong, each_named, point_at, with_suggestion},
};
use crate::alerting::{BUILT_IN, Rule};

/// A configuration in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// How the daemon itself runs.
    pub daemon: Daemon,
    /// What it watches.
    pub targets: Vec<TargetConfig>,
    /// Whom it tells.
    pub receivers: Vec<Receiver>,
    /// Where profiles are sent.
    pub exports: Vec<Export>,
    /// When: the built-in rules with what the configuration changes of them, then its own.
    pub rules: Vec<Rule>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    daemon: Daemon,
    targets: Vec<Spanned<TargetConfig>>,
    receivers: Vec<Spanned<ReceiverConfig>>,
    exports: Vec<Spanned<ExportConfig>>,
    rules: BTreeMap<Spanned<String>, RuleConfig>,
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
    daemon.check().map_err(|what| Wrong { at: None, what })?;
    let targets = each_named("target", file.targets, |target| &target.name, TargetConfig::check)?;
    if targets.is_empty() {
        let what = "no target: add [[targets]] with a name and, for example, comm = \"node\"".to_owned();
        return Err(Wrong { at: None, what });
    }
    let receivers = each_named(
        "receiver",
        file.receivers,
        |receiver| &receiver.name,
        |receiver| receiver.receiver().map(drop),
    )?;
    let receivers: Vec<Receiver> = receivers.iter().filter_map(|receiver| receiver.receiver().ok()).collect();
    let exports =
        each_named("export", file.exports, |export| &export.name, |export| export.export().map(drop))?;
    let exports: Vec<Export> = exports.iter().filter_map(|export| export.export().ok()).collect();
    let names = Names {
        targets: targets.iter().map(|target| target.name.as_str()).collect(),
        receivers: receivers.iter().map(|receiver| receiver.name.as_str()).collect(),
        rules: BUILT_IN
            .iter()
            .map(|rule| rule.id.as_str())
            .chain(file.rules.keys().map(|id| id.get_ref().as_str()))
            .collect(),
    };
    let mut rules: Vec<Rule> = BUILT_IN.clone();
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
    Ok(Config { daemon, targets, receivers, exports, rules })
}

#[cfg(test)]
pub use self::secret::Secret;
#[cfg(test)]
mod tests;
