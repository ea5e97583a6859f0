//! What an alert rule says, and those that are built in.

use std::{borrow::Cow, sync::LazyLock, time::Duration};

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
    /// Instead of the value: whether it reaches its threshold within this time, as it grows now.
    pub predict: Option<Duration>,
    /// Instead of the value: how many times as high it is as it was so long ago, if the difference is no chance.
    pub baseline: Option<Duration>,
}

impl Default for Rule {
    /// What a rule is when nothing is said of it.
    fn default() -> Rule {
        Rule {
            id: String::new(),
            summary: String::new(),
            metric: String::new(),
            finding: String::new(),
            op: Op::Above,
            warning: None,
            critical: None,
            clear: None,
            hold: Duration::from_secs(30),
            keep_firing: Duration::from_secs(60),
            warmup: Duration::from_secs(30),
            cooldown: Duration::from_secs(300),
            no_data: NoData::Keep,
            inhibited_by: Vec::new(),
            targets: Vec::new(),
            receivers: Vec::new(),
            capture: true,
            enabled: true,
            predict: None,
            baseline: None,
        }
    }
}

impl Rule {
    fn of_metric(id: &str, metric: &str, warning: f64, critical: f64, hold_s: u64, summary: &str) -> Rule {
        Rule {
            id: id.to_owned(),
            summary: summary.to_owned(),
            metric: metric.to_owned(),
            warning: Some(warning),
            critical: Some(critical),
            hold: Duration::from_secs(hold_s),
            ..Rule::default()
        }
    }

    /// Follows findings, which have lasted by themselves.
    fn of_finding(id: &str, finding: &str, hold_s: u64, summary: &str) -> Rule {
        Rule {
            id: id.to_owned(),
            summary: summary.to_owned(),
            finding: finding.to_owned(),
            hold: Duration::from_secs(hold_s),
            ..Rule::default()
        }
    }

    fn unless(self, others: &[&str]) -> Rule {
        Rule { inhibited_by: others.iter().map(|&id| id.to_owned()).collect(), ..self }
    }

    /// The rule for what it reads: for one that predicts, the time until its threshold is reached, s.
    pub fn effective(&self) -> Cow<'_, Rule> {
        let Some(within) = self.predict else { return Cow::Borrowed(self) };
        let within_s = within.as_secs_f64();
        Cow::Owned(Rule {
            op: Op::Below,
            warning: Some(within_s),
            critical: Some(within_s / 4.0),
            clear: Some(within_s * 1.25),
            ..self.clone()
        })
    }

    /// Whether it is asked of a target.
    pub fn is_for(&self, target: &str) -> bool {
        self.targets.is_empty() || self.targets.iter().any(|only| only == target)
    }

    /// The threshold that is foretold: the last that there is.
    pub fn limit(&self) -> Option<f64> {
        self.critical.or(self.warning)
    }

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

/// A rule about the profiler itself. It first sees less by itself, step by step: only what that does not mend is told.
fn own(id: &str, metric: &str, summary: &str) -> Rule {
    let for_s = 300;
    Rule { capture: false, ..Rule::of_metric(id, metric, 1.0, 2.0, for_s, summary) }
}

/// Every rule that is there without configuration. One that explains others comes before them, so that it is known when
/// they are asked.
pub static BUILT_IN: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    let (metric, finding) = (Rule::of_metric, Rule::of_finding);
    vec![
        finding("cpu-starvation", "cpu-starvation", 60, "threads that could run wait for a CPU"),
        metric(
            "cpu-quota",
            "cpu_quota_ratio",
            0.70,
            0.90,
            60,
            "the target uses most of the CPU time that it may",
        ),
        metric(
            "event-loop-delay",
            "event_loop_delay_seconds.p99",
            0.010,
            0.050,
            30,
            "an event loop comes back to its wait late: everything else that it serves waits so long",
        )
        .unless(&["cpu-starvation", "cpu-quota"]),
        metric(
            "event-loop-busy",
            "event_loop_utilization_ratio",
            0.80,
            0.95,
            60,
            "an event loop has hardly any time left: what it serves waits in line",
        )
        .unless(&["cpu-starvation", "cpu-quota", "event-loop-delay"]),
        metric(
            "memory-limit",
            "memory_limit_ratio",
            0.80,
            0.90,
            30,
            "the target holds most of the memory that it may",
        ),
        Rule {
            op: Op::Below,
            // Without growth there is no such time.
            no_data: NoData::Resolve,
            ..metric(
                "memory-exhaustion",
                "memory_exhaustion_seconds",
                3600.0,
                900.0,
                60,
                "memory grows so that the target reaches its limit soon",
            )
        },
        // One window is too short to be sure: it must be found in several, one after the other.
        finding(
            "leak",
            "memory-leak",
            90,
            "memory that is allocated at one place is not freed, and goes on growing",
        ),
        Rule {
            critical: None,
            ..metric(
                "memory-growth",
                "memory_growth_bytes_per_second",
                20_000.0,
                f64::INFINITY,
                300,
                "memory keeps growing and nothing shows that it will stop",
            )
        }
        .unless(&["leak"]),
        metric(
            "descriptors",
            "descriptors_limit_ratio",
            0.80,
            0.90,
            30,
            "the target has most of the file descriptors open that it may",
        ),
        metric(
            "syscall-errors",
            "syscall_error_ratio",
            0.05,
            0.10,
            60,
            "system calls of the target fail at a high rate",
        ),
        metric(
            "response-time",
            "response_seconds.p95",
            1.0,
            5.0,
            30,
            "one in twenty requests that the target answers takes so long or longer",
        )
        .unless(&["cpu-starvation"]),
        metric(
            "error-rate",
            "request_error_ratio",
            0.05,
            0.10,
            60,
            "the target answers requests with errors",
        ),
        // What it is asked is slow as well: the alert that says so names the peer.
        finding("slow-peer", "slow-peer", 60, "most of the target's time goes by waiting for the same peer")
            .unless(&["response-time"]),
        own(
            "own-cpu",
            "own_budget_ratio.cpu",
            "the profiler uses more CPU time than it may, although it sees less already",
        ),
        own("own-memory", "own_budget_ratio.memory", "the profiler uses more memory than it may"),
        Rule {
            capture: false,
            ..metric(
                "own-windows",
                "own_failed_windows",
                2.0,
                5.0,
                0,
                "the profiler's windows fail: meanwhile nothing is known of any target",
            )
        },
    ]
});
