//! Two runs side by side: what differs between them, by how much, and how sure that is.

use std::{fmt, str::FromStr};

use serde::Serialize;

use crate::model::{cause::WaitCause, kind::ProfileKind};

/// Two runs side by side.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// The earlier one.
    pub before: Side,
    /// The later one.
    pub after: Side,
    /// By kind of profile, those that both hold.
    pub kinds: Vec<KindComparison>,
    /// What is not compared, and why.
    pub left_out: Vec<String>,
    /// What the program is called in the first and in the second, where that is not the same.
    pub renamed: Option<[String; 2]>,
}

/// What a run was compared with.
#[derive(Clone, Debug, PartialEq)]
pub struct Baseline {
    /// The recording of what is normal, as it was named.
    pub file: String,
    /// What differs, the run being the later one.
    pub comparison: Comparison,
}

/// One of two runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Side {
    /// What was profiled, in words.
    pub target: String,
    /// Its start, ns since 1970 (UTC).
    pub start_unix_ns: u64,
    /// Its length, ns.
    pub duration_ns: u64,
}

/// One kind of profile, compared.
#[derive(Clone, Debug, PartialEq)]
pub struct KindComparison {
    /// Which.
    pub kind: ProfileKind,
    /// All places together; its points are those of the run's time, or of the memory held before.
    pub total: Change,
    /// Each place: those that differ first, the largest difference first.
    pub places: Vec<Change>,
    /// Places that hold so little of either run that they are not compared.
    pub too_small: usize,
    /// Of nine in ten places without a significant difference, the 95 % interval reaches at most so far from the difference
    /// seen: smaller differences may well be there. Idle waits are left out. `None` if there is no such place.
    pub blind_points: Option<f64>,
}

/// What one place has of two runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Where.
    pub place: Place,
    /// Share of the whole, percent, before and after.
    pub share: (f64, f64),
    /// The difference of both, percentage points.
    pub points: Interval,
    /// Amount in the kind's unit, before and after: of time and of page faults by second, of memory at the end.
    pub amount: (f64, f64),
    /// The difference of both.
    pub units: Interval,
    /// Chance of a difference as large as this between two runs of the same, before and after correction for the number
    /// of places; `None` where that cannot be known.
    pub chance: Option<(f64, f64)>,
}

/// A place, the same in both runs: pids and addresses need not be.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Name of the process.
    pub process: String,
    /// Functions, innermost first; a system call before the function that made it.
    pub functions: Vec<String>,
    /// What it waits for, if it does.
    pub cause: Option<WaitCause>,
    /// Whether more of it may mean nothing but less to do.
    pub idle: bool,
    /// Whether what the function calls is part of it.
    pub with_callees: bool,
}

/// An estimate and the bounds that hold it in 95 of 100 cases; `NaN` bounds are not known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The estimate.
    pub value: f64,
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

/// A limit for differences, as `--fail-if` takes it: `+5%`, `-5%`, `5%`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    /// Whether only growth counts, or only shrinking; both if it is not said.
    pub grows: Option<bool>,
    /// From how many percentage points on.
    pub points: f64,
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Limit, String> {
        let (grows, number) = match text.split_at_checked(1) {
            Some(("+", rest)) => (Some(true), rest),
            Some(("-", rest)) => (Some(false), rest),
            _ => (None, text),
        };
        match number.strip_suffix('%').map(|number| number.trim_end().parse::<f64>()) {
            Some(Ok(points)) if points.is_finite() && points >= 0.0 && !number.starts_with(['+', '-']) => {
                Ok(Limit { grows, points })
            }
            _ => Err("write it like +5% (grew by five points), -5% (shrank) or 5% (either)".to_owned()),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.grows {
            Some(true) => "+",
            Some(false) => "-",
            None => "",
        };
        write!(f, "{sign}{}%", self.points)
    }
}

impl Limit {
    /// Whether a difference is one that counts, and at least as large. Idle waits do not count.
    pub fn is_reached(&self, change: &Change) -> bool {
        let by = change.points.value;
        let counts = self.grows.is_none_or(|grows| grows == (by > 0.0));
        counts && by.abs() >= self.points && !change.place.idle && change.is_significant() == Some(true)
    }
}

/// Share of the differences called significant that may be none.
pub const FALSE_DISCOVERIES: f64 = 0.05;

impl Interval {
    /// An estimate and what it may be off by, to both sides.
    pub fn around(value: f64, margin: f64) -> Interval {
        Interval { value, low: value - margin, high: value + margin }
    }

    /// How far the bounds are from the estimate; `None` if they are not known.
    pub fn margin(&self) -> Option<f64> {
        let margin = (self.high - self.low) / 2.0;
        margin.is_finite().then_some(margin)
    }
}

impl Change {
    /// Whether the difference is one that chance does not explain; `None` where that cannot be known.
    pub fn is_significant(&self) -> Option<bool> {
        self.chance.map(|(_, adjusted)| adjusted <= FALSE_DISCOVERIES)
    }

    /// Whether it is one of all places together.
    pub fn is_total(&self) -> bool {
        self.place.functions.is_empty() && self.place.process.is_empty()
    }
}

impl KindComparison {
    /// The total and every place.
    pub fn all(&self) -> impl Iterator<Item = &Change> {
        std::iter::once(&self.total).chain(&self.places)
    }

    /// Differences that chance does not explain, the total first, then the largest first.
    pub fn significant(&self) -> impl Iterator<Item = &Change> {
        self.all().filter(|change| change.is_significant() == Some(true))
    }

    /// Whether anything could be judged.
    pub fn is_judged(&self) -> bool {
        self.all().any(|change| change.chance.is_some())
    }
}

impl Comparison {
    /// Differences that chance does not explain, each with its kind; idle waits last, then the largest in points first.
    pub fn significant(&self) -> Vec<(&KindComparison, &Change)> {
        let each = self.kinds.iter().flat_map(|of| of.significant().map(move |change| (of, change)));
        let mut found: Vec<_> = each.collect();
        found.sort_by(|(_, a), (_, b)| {
            let size = |of: &Change| of.points.value.abs();
            a.place.idle.cmp(&b.place.idle).then(size(b).total_cmp(&size(a)))
        });
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_understood_or_refused() {
        for (text, grows, points) in [
            ("+5%", Some(true), 5.0),
            ("-0.5%", Some(false), 0.5),
            ("10 %", None, 10.0),
            ("+0%", Some(true), 0.0),
        ] {
            let limit: Limit = text.parse().unwrap();
            assert_eq!(limit, Limit { grows, points });
            assert_eq!(limit.to_string(), text.replace(' ', ""));
        }
        for text in ["", "%", "+", "5", "+5", "++5%", "+-5%", "nan%", "inf%", "five%", "é%"] {
            assert!(text.parse::<Limit>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_reaches_a_limit_is_significant_and_not_idle() {
        let change = |by: f64, chance, idle| Change {
            place: Place { process: "app".into(), idle, ..Place::default() },
            share: (10.0, 10.0 + by),
            points: Interval::around(by, 1.0),
            amount: (1.0, 2.0),
            units: Interval::around(1.0, 0.5),
            chance,
        };
        let sure = Some((1e-9, 1e-8));
        let limit: Limit = "+5%".parse().unwrap();
        assert!(limit.is_reached(&change(5.0, sure, false)));
        assert!(
            !limit.is_reached(&change(4.9, sure, false)) && !limit.is_reached(&change(-6.0, sure, false))
        );
        assert!(!limit.is_reached(&change(6.0, Some((0.04, 0.06)), false)), "may be chance");
        assert!(!limit.is_reached(&change(6.0, None, false)), "nobody knows");
        assert!(!limit.is_reached(&change(6.0, sure, true)), "idle");
        assert!("5%".parse::<Limit>().unwrap().is_reached(&change(-6.0, sure, false)));
    }
}
