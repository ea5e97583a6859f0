//! What benches have found: figures with their spread, and goals met or missed.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::{median, spread};

/// Which way a figure should go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// Costs.
    Lower,
    /// What is kept.
    Higher,
    /// Of others: to compare with.
    Peer,
}

/// A measured figure: median, least and most of some runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Its unit.
    pub unit: String,
    /// Which way it should go.
    pub better: Better,
    /// Runs.
    pub runs: usize,
    /// Middle value.
    pub median: f64,
    /// Least.
    pub min: f64,
    /// Most.
    pub max: f64,
}

/// What benches have found, and on what machine.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Kernel, processor, load and so on, in words.
    pub conditions: BTreeMap<String, String>,
    /// By `BENCH/FIGURE/WHO`.
    pub figures: BTreeMap<String, Figure>,
    /// What is wanted, and whether it was so.
    pub goals: BTreeMap<String, bool>,
}

/// A figure that has changed against an earlier table.
pub struct Change {
    /// Its name.
    pub name: String,
    /// Medians, before and now.
    pub medians: [f64; 2],
    /// Its unit.
    pub unit: String,
    /// Whether that is for the worse; of peers neither.
    pub worse: Option<bool>,
}

/// Changes that are told, as a share.
const TOLD: f64 = 0.1;

impl Report {
    /// Keeps the values of some runs.
    pub fn figure(&mut self, name: impl Into<String>, unit: &str, better: Better, values: &[f64]) {
        let finite: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
        if finite.is_empty() {
            return; // not measured: absent
        }
        let figure = Figure {
            unit: unit.to_owned(),
            better,
            runs: finite.len(),
            median: median(&finite),
            min: finite.iter().copied().fold(f64::INFINITY, f64::min),
            max: finite.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        };
        self.figures.insert(name.into(), figure);
    }

    /// The same, and prints it as a row.
    pub fn row(&mut self, name: &str, unit: &str, better: Better, values: &[f64], digits: usize) {
        println!("{:<60} {} {unit}", name, spread(values, digits));
        self.figure(name, unit, better, values);
    }

    /// Notes and prints whether what is wanted is so.
    pub fn goal(&mut self, what: impl Into<String>, met: bool) {
        let what = what.into();
        println!("{}  {what}", if met { "met   " } else { "MISSED" });
        self.goals.insert(what, met);
    }

    /// Reads a table that [`Report::write`] has written.
    pub fn read(path: &Path) -> Result<Report> {
        let text = fs::read(path).with_context(|| path.display().to_string())?;
        serde_json::from_slice(&text).with_context(|| path.display().to_string())
    }

    /// Writes it as JSON.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(path, text).with_context(|| path.display().to_string())
    }

    /// Figures that differ from those of an earlier table by more than a tenth, and whose ranges have nothing in common.
    pub fn changes_since(&self, earlier: &Report) -> Vec<Change> {
        let both =
            self.figures.iter().filter_map(|(name, now)| Some((name, earlier.figures.get(name)?, now)));
        both.filter(|(_, then, now)| {
            let apart = now.min > then.max || now.max < then.min;
            apart && (now.median - then.median).abs() > TOLD * then.median.abs()
        })
        .map(|(name, then, now)| Change {
            name: name.clone(),
            medians: [then.median, now.median],
            unit: now.unit.clone(),
            worse: match now.better {
                Better::Lower => Some(now.median > then.median),
                Better::Higher => Some(now.median < then.median),
                Better::Peer => None,
            },
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(better: Better, values: &[f64]) -> Report {
        let mut report = Report::default();
        report.figure("x", "ns", better, values);
        report
    }

    #[test]
    fn what_is_not_measured_is_absent() {
        assert!(of(Better::Lower, &[f64::NAN]).figures.is_empty());
        assert_eq!(of(Better::Lower, &[3.0, 1.0, f64::NAN, 2.0]).figures["x"].median, 2.0);
    }

    #[test]
    fn changes_are_told_beyond_a_tenth_and_the_spread() {
        let then = of(Better::Lower, &[90.0, 100.0, 110.0]);
        let worse = |values| {
            let changes = of(Better::Lower, values).changes_since(&then);
            changes.iter().map(|change| change.worse).collect::<Vec<_>>()
        };
        assert_eq!(worse(&[95.0, 109.0, 130.0]), [], "within the tenth");
        assert_eq!(worse(&[105.0, 120.0, 130.0]), [], "they overlap");
        assert_eq!(worse(&[115.0, 120.0, 130.0]), [Some(true)]);
        assert_eq!(worse(&[60.0, 70.0, 80.0]), [Some(false)]);
        let kept = of(Better::Higher, &[50.0]).changes_since(&of(Better::Higher, &[90.0]));
        assert_eq!(kept[0].worse, Some(true));
        assert!(of(Better::Peer, &[50.0]).changes_since(&of(Better::Peer, &[90.0]))[0].worse.is_none());
    }

    #[test]
    fn a_table_is_read_as_it_was_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let report = of(Better::Higher, &[1.5, 2.5]);
        report.write(file.path()).unwrap();
        assert_eq!(Report::read(file.path()).unwrap().figures, report.figures);
    }
}
