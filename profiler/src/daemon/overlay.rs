//! Thresholds that were changed through the API. They lie over the configuration, in a file of their own: what people wrote
//! is never edited.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    alerting::{Op, Rule},
    metrics,
};

/// Names of thresholds in other tools, and the rules that they are here; the unit of a plain number, as a part of ours.
pub const ALIASES: [(&str, &str, f64, &str); 5] = [
    ("responseTime", "response-time", 0.001, "ms"),
    ("memoryUsage", "memory-limit", 0.01, "percent of the limit"),
    ("cpuUsage", "cpu-quota", 0.01, "percent of the quota"),
    ("eventLoopDelay", "event-loop-delay", 0.001, "ms"),
    ("errorRate", "error-rate", 0.01, "percent of the requests"),
];

/// What is changed of a rule, in the unit of its metric.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Thresholds {
    /// From where on it warns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<f64>,
    /// From where on it is critical.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub critical: Option<f64>,
}

/// Every change, by rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Overlay(pub BTreeMap<String, Thresholds>);

impl Overlay {
    fn file(state_dir: &Path) -> PathBuf {
        state_dir.join("thresholds.toml")
    }

    /// Reads what was changed; nothing, if the file cannot be read, which is said.
    pub fn load(state_dir: &Path) -> Overlay {
        let file = Overlay::file(state_dir);
        match crate::text::read_to_parse(&file) {
            Ok(text) => toml::from_str(&text).unwrap_or_else(|error| {
                crate::say!("profiler: {}: {}: it is left out", file.display(), error.message());
                Overlay::default()
            }),
            Err(_) => Overlay::default(),
        }
    }

    /// Writes it down as a whole, or not at all.
    pub fn store(&self, state_dir: &Path) -> io::Result<()> {
        let file = Overlay::file(state_dir);
        let text = toml::to_string(self).map_err(io::Error::other)?;
        let new = file.with_extension("new");
        fs::write(&new, format!("# Changed through the API; it lies over the configuration.\n{text}"))?;
        fs::File::open(&new)?.sync_all()?;
        fs::rename(new, file)
    }

    /// Changes rules. What names a rule that is not there waits until it is.
    pub fn apply(&self, rules: &mut [Rule]) {
        for (id, thresholds) in &self.0 {
            let Some(rule) = rules.iter_mut().find(|rule| rule.id == *id) else { continue };
            let changed = Rule {
                warning: thresholds.warning.or(rule.warning),
                critical: thresholds.critical.or(rule.critical),
                ..rule.clone()
            };
            // The configuration may have been changed since.
            if check(&changed).is_ok() {
                *rule = changed;
            }
        }
    }

    /// What it is now: another as soon as anything is changed.
    pub fn tag(&self) -> String {
        let text = serde_json::to_string(self).unwrap_or_default();
        let hash: String = Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        format!("\"{hash}\"")
    }

    /// Takes in what somebody asks for: `{RULE: {"warning": VALUE, "critical": VALUE}}`; a value is a number or a text with
    /// its unit; null takes a change back. All of it, or nothing and why.
    pub fn changed(&self, asked: &serde_json::Value, configured: &[Rule]) -> Result<Overlay, String> {
        let asked = asked.as_object().ok_or("an object is needed: rules with their thresholds")?;
        let mut overlay = self.clone();
        for (name, thresholds) in asked {
            let alias = ALIASES.iter().find(|(alias, ..)| alias == name);
            let (id, scale) = alias.map_or((name.as_str(), 1.0), |(_, id, scale, _)| (id, *scale));
            let rule = configured.iter().find(|rule| rule.id == id);
            let rule = rule.ok_or_else(|| format!("there is no rule {name}"))?;
            let metric = metrics::find(&rule.metric).ok_or_else(|| format!("{id} has no thresholds"))?;
            let thresholds = thresholds
                .as_object()
                .ok_or_else(|| format!("{name}: an object is needed, with warning, critical or both"))?;
            let change = overlay.0.entry(id.to_owned()).or_default();
            for (field, value) in thresholds {
                let mine = match field.as_str() {
                    "warning" => &mut change.warning,
                    "critical" => &mut change.critical,
                    _ => return Err(format!("{name}: {field} is neither warning nor critical")),
                };
                *mine = match value {
                    serde_json::Value::Null => None,
                    serde_json::Value::Number(number) => number.as_f64().map(|number| number * scale),
                    serde_json::Value::String(text) => {
                        Some(metric.unit.parse(text).map_err(|error| format!("{name}: {error}"))?)
                    }
                    _ => return Err(format!("{name}: {field} is a number or a text with a unit")),
                };
                if mine.is_some_and(|value| !value.is_finite()) {
                    return Err(format!("{name}: {field} must be finite"));
                }
            }
            let changed = Rule {
                warning: change.warning.or(rule.warning),
                critical: change.critical.or(rule.critical),
                ..rule.clone()
            };
            check(&changed).map_err(|error| format!("{name}: {error}"))?;
        }
        overlay.0.retain(|_, thresholds| *thresholds != Thresholds::default());
        Ok(overlay)
    }
}

fn check(rule: &Rule) -> Result<(), String> {
    match (rule.warning, rule.critical, rule.op) {
        (Some(warning), Some(critical), Op::Above) if warning > critical => {
            Err("critical must be worse than warning".to_owned())
        }
        (Some(warning), Some(critical), Op::Below) if warning < critical => {
            Err("critical must be worse than warning".to_owned())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::alerting::BUILT_IN;

    #[test]
    fn what_is_changed_lies_over_the_configuration_until_it_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let asked = json!({
            "eventLoopDelay": { "warning": 20, "critical": "100ms" }, "cpuUsage": { "warning": 60 },
            "descriptors": { "warning": 0.5 }, "responseTime": { "warning": 800 }, "errorRate": { "critical": 20 },
        });
        let overlay = Overlay::load(dir.path()).changed(&asked, &BUILT_IN).unwrap();
        overlay.store(dir.path()).unwrap();
        let overlay = Overlay::load(dir.path());
        let mut rules = BUILT_IN.clone();
        overlay.apply(&mut rules);
        let of = |id: &str| {
            let rule = rules.iter().find(|rule| rule.id == id).unwrap();
            (rule.warning, rule.critical)
        };
        assert_eq!(of("event-loop-delay"), (Some(0.020), Some(0.100)));
        assert_eq!(of("cpu-quota"), (Some(0.60), Some(0.90)));
        assert_eq!(of("descriptors"), (Some(0.50), Some(0.90)));
        assert_eq!(of("response-time"), (Some(0.8), Some(5.0)));
        assert_eq!(of("error-rate"), (Some(0.05), Some(0.20)));
        let back = overlay.changed(&json!({ "cpuUsage": { "warning": null } }), &BUILT_IN).unwrap();
        assert!(!back.0.contains_key("cpu-quota") && back.0.contains_key("descriptors"));
        assert_ne!(back.tag(), overlay.tag());
    }

    #[test]
    fn what_makes_no_sense_changes_nothing() {
        for (asked, why) in [
            (json!([]), "object"),
            (json!({ "nothing": {} }), "no rule nothing"),
            (json!({ "leak": { "warning": 5 } }), "no thresholds"),
            (json!({ "cpuUsage": { "warning": 95 } }), "worse"),
            (json!({ "cpuUsage": { "warn": 95 } }), "neither"),
            (json!({ "cpuUsage": { "warning": "soon" } }), "70%"),
            (json!({ "cpuUsage": { "warning": [] } }), "number"),
            (json!({ "cpuUsage": 5 }), "object"),
        ] {
            let error = Overlay::default().changed(&asked, &BUILT_IN).unwrap_err();
            assert!(error.contains(why), "{asked}: {error}");
        }
    }

    #[test]
    fn a_damaged_file_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thresholds.toml"), "nonsense = [").unwrap();
        assert_eq!(Overlay::load(dir.path()), Overlay::default());
    }
}
