//! What a metric is, and what it is read from.

use std::{borrow::Cow, collections::BTreeSet, time::Duration};

use crate::model::report::Run;

/// What a metric counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Time, seconds.
    Seconds,
    /// Memory, bytes.
    Bytes,
    /// A part of a whole, from 0 to 1.
    Ratio,
    /// Bytes a second.
    BytesPerSecond,
    /// Things.
    Count,
}

impl Unit {
    /// Name in OpenMetrics; the metric's name ends in it. Empty for things.
    pub fn id(self) -> &'static str {
        match self {
            Unit::Seconds => "seconds",
            Unit::Bytes => "bytes",
            Unit::Ratio => "ratio",
            Unit::BytesPerSecond => "bytes_per_second",
            Unit::Count => "",
        }
    }

    /// Reads a threshold that somebody wrote with its unit: `10ms`, `70%`, `2GiB`.
    pub fn parse(self, text: &str) -> Result<f64, String> {
        let plain = || text.trim().parse::<f64>().ok();
        match self {
            Unit::Seconds => match humantime::parse_duration(text) {
                Ok(duration) => Ok(duration.as_secs_f64()),
                Err(error) => Err(format!("`{text}`: {error}; write it like 10ms or 5s")),
            },
            Unit::Bytes | Unit::BytesPerSecond => match parse_size::parse_size(text.trim_end_matches("/s")) {
                Ok(bytes) => Ok(bytes as f64),
                Err(error) => Err(format!("`{text}`: {error}; write it like 500MB or 2GiB")),
            },
            Unit::Ratio => match text.strip_suffix('%') {
                Some(percent) => percent.trim().parse().map(|percent: f64| percent / 100.0).ok(),
                None => plain(),
            }
            .ok_or_else(|| format!("`{text}` is no part of a whole; write it like 0.7 or 70%")),
            Unit::Count => plain().ok_or_else(|| format!("`{text}` is no number")),
        }
    }

    /// A value for a reader.
    pub fn words(self, value: f64) -> String {
        match self {
            Unit::Seconds => crate::model::units::time((value.max(0.0) * 1e9) as u64),
            Unit::Bytes => crate::model::units::bytes(value),
            Unit::Ratio => format!("{:.1} %", 100.0 * value),
            Unit::BytesPerSecond => format!("{}/s", crate::model::units::bytes(value)),
            Unit::Count if value.fract() == 0.0 => format!("{value}"),
            Unit::Count => format!("{value:.2}"),
        }
    }
}

/// How values of different windows belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Each window has its own.
    Gauge,
    /// They add up: what is exported is the sum since the daemon started.
    Counter,
}

impl Kind {
    /// Name in OpenMetrics.
    pub fn id(self) -> &'static str {
        match self {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
        }
    }
}

/// One thing that is measured.
#[derive(Debug)]
pub struct Metric {
    /// Name, which ends in the unit.
    pub name: &'static str,
    /// Unit of its values.
    pub unit: Unit,
    /// How windows belong together.
    pub kind: Kind,
    /// What it is, in one sentence without a full stop; says so if it is an estimate.
    pub help: &'static str,
    /// The label that tells its values apart; empty if there is one value.
    pub label: &'static str,
    /// Reads it; see [`Metric::read`].
    read: fn(&View<'_>, &mut Values),
}

/// What belongs to one target in one window.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// What was measured of it, and of nothing else.
    pub run: &'a Run,
    /// The target's processes.
    pub pids: &'a BTreeSet<u32>,
    /// What is known of it from outside.
    pub outside: &'a Outside,
    /// How memory grows, judged over many windows, if it does.
    pub memory_trend: Option<MemoryTrend>,
    /// Functions whose CPU time is told by name.
    pub functions: &'a [String],
    /// Its oldest process is younger than the one of the window before.
    pub restarted: bool,
    /// What the profiler knows of itself, where it is its own target.
    pub own: Option<&'a Itself>,
}

/// Name under which the daemon is a target of itself: rules and history have it, and no target of a configuration.
pub const OWN: &str = "~profiler";

/// What the daemon knows of itself at the end of a window.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Itself {
    /// How long it has run.
    pub age: Duration,
    /// What the window has cost; `None` where that is not known, or says nothing.
    pub budget: Option<Budget>,
    /// Windows that failed, and of how many: the last ones.
    pub failed: (usize, usize),
    /// Why the last of them did.
    pub why: String,
}

impl Itself {
    /// What is wrong where a rule of this metric alerts, in words; and what to do.
    pub fn words(&self, metric: &str) -> (String, &'static str) {
        match &self.budget {
            Some(budget) if metric.starts_with("own_budget_ratio") => (
                budget.words(),
                "allow it more (max_overhead, max_memory), watch fewer processes, or make windows longer",
            ),
            _ => (
                format!(
                    "of the last {} windows {} failed; the last: {}",
                    self.failed.1, self.failed.0, self.why
                ),
                "nothing is seen of any target in a window that fails: mend what its error names (a full disk?)",
            ),
        }
    }
}

/// What the profiler cost in a window, and what it may.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Budget {
    /// Its CPU time and that of its kernel programs, as a part of one CPU.
    pub cpu: f64,
    /// What that may be.
    pub most_cpu: f64,
    /// Resident memory of the daemon and of the window's process, bytes.
    pub memory_bytes: f64,
    /// What that may be.
    pub most_memory_bytes: f64,
    /// How much it leaves out to cost less, and how much it can.
    pub shed: (u32, u32),
}

impl Budget {
    /// CPU time as a part of what may be used.
    pub fn cpu_ratio(&self) -> f64 {
        self.cpu / self.most_cpu
    }

    /// Memory as a part of what may be used.
    pub fn memory_ratio(&self) -> f64 {
        self.memory_bytes / self.most_memory_bytes
    }

    /// In words.
    pub fn words(&self) -> String {
        format!(
            "the profiler used {:.1} % of a CPU ({:.1} % allowed) and {} of memory ({} allowed); of {} steps to see less it has \
             taken {}",
            100.0 * self.cpu,
            100.0 * self.most_cpu,
            Unit::Bytes.words(self.memory_bytes),
            Unit::Bytes.words(self.most_memory_bytes),
            self.shed.1,
            self.shed.0,
        )
    }
}

/// What is known of a target besides what was measured in a window.
#[derive(Clone, Debug, Default)]
pub struct Outside {
    /// CPU time that the target may use a second, seconds: its quota, or all CPUs.
    pub cpus: f64,
    /// Open descriptors and how many there may be, of the process that is nearest to its limit.
    pub descriptors: Option<(u64, u64)>,
    /// Part of the last 10 s in which something in the target's cgroup waited for a resource, from 0 to 1.
    pub pressure: Vec<(&'static str, f64)>,
}

/// How a target's memory grows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemoryTrend {
    /// Best estimate, bytes a second.
    pub bytes_per_s: f64,
    /// When it reaches its limit, seconds from now, if there is one.
    pub exhaustion_s: Option<f64>,
}

/// The values of one metric, each with its label's value.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Values(Vec<(Cow<'static, str>, f64)>);

impl Values {
    /// Adds a value.
    pub fn push(&mut self, label: impl Into<Cow<'static, str>>, value: f64) {
        if value.is_finite() {
            self.0.push((label.into(), value));
        }
    }

    /// Adds the one value that there is, if it is known.
    pub fn one(&mut self, value: Option<f64>) {
        if let Some(value) = value {
            self.push("", value);
        }
    }

    /// Each with its label's value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(label, value)| (label.as_ref(), *value))
    }
}

impl Metric {
    /// One of which each window has its own value.
    pub const fn gauge(
        name: &'static str,
        unit: Unit,
        label: &'static str,
        help: &'static str,
        read: fn(&View<'_>, &mut Values),
    ) -> Metric {
        Metric { name, unit, kind: Kind::Gauge, help, label, read }
    }

    /// One that adds up.
    pub const fn counter(
        name: &'static str,
        unit: Unit,
        label: &'static str,
        help: &'static str,
        read: fn(&View<'_>, &mut Values),
    ) -> Metric {
        Metric { name, unit, kind: Kind::Counter, help, label, read }
    }

    /// Its values in a window. None where it was not measured.
    pub fn read(&self, view: &View<'_>) -> Values {
        let mut values = Values::default();
        (self.read)(view, &mut values);
        values
    }
}
