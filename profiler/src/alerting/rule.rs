//! What an alert rule says, and those that are built in.

use std::time::Duration;

use crate::model::finding::Severity;

/// On which side of its threshold a value is bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// A value at or above the threshold.
    Above,
    /// A value at or below the threshold.
    Below,
}

/// What it means that a value is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NoData {
    /// The alert stays as it is.
    Keep,
    /// The alert ends.
    Resolve,
    /// It is as bad as a warning.
    Alert,
}

/// When to alert. Thresholds are in the unit of the rule's metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Name: what configuration, API and messages call it.
    pub id: String,
    /// What it is for, in one sentence.
    pub summary: String,
    /// The metric it reads, from METRICS; empty for a rule that follows findings.
    pub metric: String,
    /// The findings it follows, by their rule's name in RULES; empty for a rule that reads a metric.
    pub finding: String,
    /// On which side a value is bad.
    pub op: Op,
    /// From where on it warns; `None` for never.
    pub warning: Option<f64>,
    /// From where on it is critical; `None` for never.
    pub critical: Option<f64>,
    /// Where it is good again; `None` for 90 % of the way to the threshold that is reached first.
    pub clear: Option<f64>,
    /// How long a value must be bad, without a break, before the alert begins (`for`).
    pub hold: Duration,
    /// How long it must be good, without a break, before the alert ends (`keep_firing_for`).
    pub keep_firing: Duration,
    /// How long after the start of a target the rule waits.
    pub warmup: Duration,
    /// How long after an alert has ended the next one may begin.
    pub cooldown: Duration,
    /// What it means that the value is not known.
    pub no_data: NoData,
    /// Rules whose alert for the same target explains this one: it does not begin while one of those fires.
    pub inhibited_by: Vec<String>,
    /// Names of the targets it is for; empty for all.
    pub targets: Vec<String>,
    /// Names of the receivers of its messages; empty for all.
    pub receivers: Vec<String>,
    /// Whether the window after an alert has begun sees more (system calls too), as evidence.
    pub capture: bool,
    /// Whether it is in force.
    pub enabled: bool,
}

impl Rule {
    /// How bad a value is.
    pub fn severity(&self, value: f64) -> Option<Severity> {
        let reaches = |threshold: Option<f64>| {
            threshold.is_some_and(|threshold| match self.op {
                Op::Above => value >= threshold,
                Op::Below => value <= threshold,
            })
        };
        if reaches(self.critical) {
            Some(Severity::Critical)
        } else if reaches(self.warning) {
            Some(Severity::Warning)
        } else {
            None
        }
    }

    /// Whether a value is good enough to end an alert.
    pub fn is_clear(&self, value: f64) -> bool {
        match (self.clear_at(), self.op) {
            (Some(clear), Op::Above) => value < clear,
            (Some(clear), Op::Below) => value > clear,
            (None, _) => true,
        }
    }

    /// Where an alert ends: as given, or 10 % on the good side of the threshold that is reached first.
    pub fn clear_at(&self) -> Option<f64> {
        self.clear.or_else(|| {
            let first = self.warning.or(self.critical)?;
            Some(match self.op {
                Op::Above => first - 0.1 * first.abs(),
                Op::Below => first + 0.1 * first.abs(),
            })
        })
    }
}

/// A rule that is there without configuration. What it leaves open is as in [`BuiltIn::rule`].
#[derive(Clone, Copy, Debug)]
pub struct BuiltIn {
    /// Name.
    pub id: &'static str,
    /// What it is for.
    pub summary: &'static str,
    /// Metric, or empty.
    pub metric: &'static str,
    /// Rule of findings, or empty.
    pub finding: &'static str,
    /// On which side a value is bad.
    pub op: Op,
    /// From where on it warns.
    pub warning: Option<f64>,
    /// From where on it is critical.
    pub critical: Option<f64>,
    /// How long it must last, s.
    pub hold_s: u64,
    /// Rules that explain it.
    pub inhibited_by: &'static [&'static str],
}

impl BuiltIn {
    /// The whole rule.
    pub fn rule(&self) -> Rule {
        Rule {
            id: self.id.to_owned(),
            summary: self.summary.to_owned(),
            metric: self.metric.to_owned(),
            finding: self.finding.to_owned(),
            op: self.op,
            warning: self.warning,
            critical: self.critical,
            clear: None,
            hold: Duration::from_secs(self.hold_s),
            keep_firing: Duration::from_secs(60),
            warmup: Duration::from_secs(30),
            cooldown: Duration::from_secs(300),
            no_data: NoData::Keep,
            inhibited_by: self.inhibited_by.iter().map(|&id| id.to_owned()).collect(),
            targets: Vec::new(),
            receivers: Vec::new(),
            capture: true,
            enabled: true,
        }
    }
}

/// Every rule that is there without configuration.
pub static BUILT_IN: &[BuiltIn] = &[
    BuiltIn {
        id: "event-loop-delay",
        summary: "an event loop comes back to its wait late: everything else that it serves waits so long",
        metric: "event_loop_delay_seconds.p99",
        finding: "",
        op: Op::Above,
        warning: Some(0.010),
        critical: Some(0.050),
        hold_s: 30,
        inhibited_by: &["cpu-starvation", "cpu-quota"],
    },
    BuiltIn {
        id: "cpu-quota",
        summary: "the target uses most of the CPU time that it may",
        metric: "cpu_quota_ratio",
        finding: "",
        op: Op::Above,
        warning: Some(0.70),
        critical: Some(0.90),
        hold_s: 60,
        inhibited_by: &[],
    },
    BuiltIn {
        id: "cpu-starvation",
        summary: "threads that could run wait for a CPU",
        metric: "run_queue_ratio",
        finding: "",
        op: Op::Above,
        warning: Some(0.25),
        critical: Some(0.50),
        hold_s: 60,
        inhibited_by: &[],
    },
    BuiltIn {
        id: "memory-limit",
        summary: "the target holds most of the memory that it may",
        metric: "memory_limit_ratio",
        finding: "",
        op: Op::Above,
        warning: Some(0.80),
        critical: Some(0.90),
        hold_s: 30,
        inhibited_by: &[],
    },
    BuiltIn {
        id: "memory-exhaustion",
        summary: "memory grows so that the target reaches its limit soon",
        metric: "memory_exhaustion_seconds",
        finding: "",
        op: Op::Below,
        warning: Some(3600.0),
        critical: Some(900.0),
        hold_s: 60,
        inhibited_by: &[],
    },
    BuiltIn {
        id: "descriptors",
        summary: "the target has most of the file descriptors open that it may",
        metric: "descriptors_limit_ratio",
        finding: "",
        op: Op::Above,
        warning: Some(0.80),
        critical: Some(0.90),
        hold_s: 30,
        inhibited_by: &[],
    },
    BuiltIn {
        id: "syscall-errors",
        summary: "system calls of the target fail at a high rate",
        metric: "syscall_error_ratio",
        finding: "",
        op: Op::Above,
        warning: Some(0.05),
        critical: Some(0.10),
        hold_s: 60,
        inhibited_by: &[],
    },
    BuiltIn {
        id: "leak",
        summary: "memory that is allocated at one place is not freed, and goes on growing",
        metric: "",
        finding: "memory-leak",
        op: Op::Above,
        warning: None,
        critical: None,
        hold_s: 0,
        inhibited_by: &[],
    },
];
