//! What the file may say of a rule: any field of a built-in one, or a whole rule of its own.

use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::{
    units::{maybe_duration, number},
    wrong::{Wrong, nearest, unknown},
};
use crate::{
    alerting::{BUILT_IN, NoData, Op, Rule},
    detect::RULES,
    metrics::{self, Unit},
};

/// What the file may say of a rule: any field of a built-in one, or a whole rule of its own.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuleConfig {
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
    predict: Option<Spanned<String>>,
    baseline: Option<Spanned<String>>,
    inhibited_by: Option<Vec<Spanned<String>>>,
    targets: Option<Vec<Spanned<String>>>,
    receivers: Option<Vec<Spanned<String>>>,
    capture: Option<bool>,
    enabled: Option<bool>,
}

/// What rules may refer to.
pub struct Names<'a> {
    /// Targets.
    pub targets: Vec<&'a str>,
    /// Receivers.
    pub receivers: Vec<&'a str>,
    /// Rules.
    pub rules: Vec<&'a str>,
}

impl RuleConfig {
    /// The rule that it is, if it is none of the built-in ones; [`RuleConfig::change`] fills in the rest.
    pub fn new_rule(&self, id: &Spanned<String>) -> Result<Rule, Wrong> {
        if self.metric.is_none() == self.finding.is_none() {
            let known: Vec<&str> = BUILT_IN.iter().map(|rule| rule.id.as_str()).collect();
            let what = format!(
                "`{}` is no built-in rule, and a rule of your own needs either a metric or a finding{}",
                id.get_ref(),
                nearest(id.get_ref(), &known)
                    .map_or_else(String::new, |known| format!("; did you mean `{known}`?"))
            );
            return Err(Wrong { at: Some(id.span()), what });
        }
        Ok(Rule { id: id.get_ref().clone(), ..Rule::default() })
    }

    /// Changes a rule by what is given.
    pub fn change(&self, id: &Spanned<String>, rule: &mut Rule, names: &Names<'_>) -> Result<(), Wrong> {
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
        for (given, mine) in [(&self.predict, &mut rule.predict), (&self.baseline, &mut rule.baseline)] {
            let Some(given) = given else { continue };
            *mine = match humantime::parse_duration(given.get_ref()) {
                Ok(length) if !length.is_zero() => Some(length),
                _ => {
                    let what = format!("`{}` is no length of time; write it like 1h or 1d", given.get_ref());
                    return Err(Wrong { at: Some(given.span()), what });
                }
            };
        }
        if rule.predict.is_some() && rule.baseline.is_some() {
            let what = format!("`{}` can either predict or be compared with a baseline", rule.id);
            return Err(Wrong { at: Some(id.span()), what });
        }
        if (rule.predict.is_some() || rule.baseline.is_some()) && rule.metric.is_empty() {
            let what = format!("`{}` needs a metric to predict or to compare", rule.id);
            return Err(Wrong { at: Some(id.span()), what });
        }
        // What is compared with a baseline is how many times as high it is.
        let unit = metrics::find(&rule.metric).map(|metric| match rule.baseline {
            Some(_) => Unit::Ratio,
            None => metric.unit,
        });
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
