//! Metrics as OpenMetrics text, for scrapers.

use std::collections::BTreeMap;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, text::encode},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit as ExportedUnit},
};

use super::{
    metric::{Kind, Metric, OWN, Unit, Values},
    read::METRICS,
};

/// The last value of every metric of every target; counters are sums since the daemon started.
#[derive(Clone, Debug)]
pub struct Samples {
    samples: BTreeMap<Sample, f64>,
    capacity: usize,
    /// Values that had no room.
    pub folded: u64,
}

impl Default for Samples {
    fn default() -> Samples {
        Samples { samples: BTreeMap::new(), capacity: Samples::CAPACITY, folded: 0 }
    }
}

/// Whose value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Sample {
    /// Index of the metric in METRICS.
    metric: usize,
    /// Name of the target.
    target: String,
    /// Value of the metric's own label.
    label: String,
}

/// Whom values count for that have no room of their own.
const OTHER: &str = "~other";

impl Samples {
    /// So many values are kept.
    pub const CAPACITY: usize = 20_000;

    /// Takes over the values of a metric of a target in a window. Those of a gauge that were not measured are not known
    /// any more. Without room, what is counted is counted for `~other`, and a gauge is left out.
    pub fn update(&mut self, target: &str, metric: &Metric, values: &Values) {
        let Some(index) = METRICS.iter().position(|known| known.name == metric.name) else { return };
        let key = |target: &str, label: &str| Sample {
            metric: index,
            target: target.to_owned(),
            label: label.to_owned(),
        };
        if metric.kind == Kind::Gauge {
            let old = self
                .samples
                .range(key(target, "")..)
                .take_while(|(sample, _)| sample.metric == index && sample.target == target);
            let old: Vec<Sample> = old.map(|(sample, _)| sample.clone()).collect();
            for sample in old {
                self.samples.remove(&sample);
            }
        }
        for (label, value) in values.iter() {
            let mut key = key(target, label);
            if self.samples.len() >= self.capacity && !self.samples.contains_key(&key) {
                self.folded += 1;
                if metric.kind == Kind::Gauge {
                    continue;
                }
                key.target = OTHER.to_owned();
            }
            let sum = self.samples.entry(key).or_default();
            *sum = if metric.kind == Kind::Counter { *sum + value } else { value };
        }
    }

    /// Forgets the gauges of a target that has ended.
    pub fn end(&mut self, target: &str) {
        self.samples
            .retain(|sample, _| sample.target != target || METRICS[sample.metric].kind == Kind::Counter);
    }

    /// Forgets targets that are no more.
    pub fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        self.samples
            .retain(|sample, _| [OTHER, OWN].contains(&sample.target.as_str()) || is_there(&sample.target));
    }

    /// Values that are exported.
    pub fn count(&self) -> usize {
        self.samples.len()
    }

    /// All values: metric, target, label, value.
    pub fn iter(&self) -> impl Iterator<Item = (&'static Metric, &str, &str, f64)> {
        let each = self.samples.iter();
        each.map(|(sample, value)| {
            (&METRICS[sample.metric], sample.target.as_str(), sample.label.as_str(), *value)
        })
    }

    /// OpenMetrics text, with what is known of the daemon itself.
    pub fn text(&self, own: Vec<OwnMetric>) -> String {
        let mut registry = Registry::with_prefix("profiler");
        registry.register_collector(Box::new(Export { samples: self.clone(), own }));
        let mut text = String::new();
        // Writing to a text does not fail.
        let _ = encode(&mut text, &registry);
        text
    }
}

/// The same in the form that was before OpenMetrics, for those who do not ask for that (version 0.0.4): a counter's family is
/// named as its values are, and there are no units.
pub fn classic(text: &str) -> String {
    let mut counters: Vec<&str> = Vec::new();
    for line in text.lines() {
        if let Some((name, "counter")) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            counters.push(name);
        }
    }
    let mut classic = String::with_capacity(text.len());
    for line in text.lines() {
        let comment = line.strip_prefix("# ").map(|rest| rest.splitn(3, ' ').collect::<Vec<_>>());
        match comment.as_deref() {
            Some(["EOF", ..] | ["UNIT", ..]) => continue,
            Some([what, name, rest]) if counters.contains(name) => {
                classic.push_str(&format!("# {what} {name}_total {rest}"));
            }
            _ => classic.push_str(line),
        }
        classic.push('\n');
    }
    classic
}

/// A metric of the daemon itself.
#[derive(Clone, Debug)]
pub struct OwnMetric {
    /// Name.
    pub name: &'static str,
    /// What it is.
    pub help: &'static str,
    /// Unit.
    pub unit: Unit,
    /// Kind.
    pub kind: Kind,
    /// Each value with its labels.
    pub values: Vec<(Vec<(&'static str, String)>, f64)>,
}

#[derive(Debug)]
struct Export {
    samples: Samples,
    own: Vec<OwnMetric>,
}

impl Collector for Export {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for (index, metric) in METRICS.iter().enumerate() {
            let first = Sample { metric: index, target: String::new(), label: String::new() };
            let from_there = self.samples.samples.range(first..);
            let mut values = from_there.take_while(|(sample, _)| sample.metric == index).peekable();
            if values.peek().is_none() {
                continue;
            }
            let labelled = values.map(|(sample, value)| {
                let mut labels = vec![("target", sample.target.clone())];
                if !metric.label.is_empty() {
                    labels.push((metric.label, sample.label.clone()));
                }
                (labels, *value)
            });
            let name = format!("target_{}", metric.name);
            family(&mut encoder, &name, metric.help, metric.unit, metric.kind, labelled)?;
        }
        for own in &self.own {
            family(&mut encoder, own.name, own.help, own.unit, own.kind, own.values.iter().cloned())?;
        }
        Ok(())
    }
}

fn family(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Unit,
    kind: Kind,
    values: impl Iterator<Item = (Vec<(&'static str, String)>, f64)>,
) -> Result<(), std::fmt::Error> {
    // The library adds the unit to the name.
    let exported = (!unit.id().is_empty()).then(|| ExportedUnit::Other(unit.id().to_owned()));
    let stem = match unit.id() {
        "" => name,
        unit => name.strip_suffix(unit).and_then(|stem| stem.strip_suffix('_')).unwrap_or(name),
    };
    let kind_of = match kind {
        Kind::Gauge => MetricType::Gauge,
        Kind::Counter => MetricType::Counter,
    };
    let mut encoder = encoder.encode_descriptor(stem, help, exported.as_ref(), kind_of)?;
    for (labels, value) in values {
        let encoder = encoder.encode_family(&labels)?;
        match kind {
            Kind::Gauge => ConstGauge::new(value).encode(encoder)?,
            Kind::Counter => ConstCounter::new(value).encode(encoder)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::find;

    fn values(all: &[(&'static str, f64)]) -> Values {
        let mut values = Values::default();
        all.iter().for_each(|(label, value)| values.push(*label, *value));
        values
    }

    #[test]
    fn counters_add_up_and_gauges_are_forgotten() {
        let mut samples = Samples::default();
        let (cpu, delay) = (find("cpu_seconds").unwrap(), find("event_loop_delay_seconds").unwrap());
        for _ in 0..2 {
            samples.update("a", cpu, &values(&[("", 1.5)]));
        }
        samples.update("a", delay, &values(&[("p50", 1.0), ("p99", 2.0)]));
        samples.update("ab", delay, &values(&[("p50", 7.0)]));
        samples.update("a", delay, &values(&[("p99", 3.0)]));
        let all: Vec<(&str, &str, f64)> =
            samples.iter().map(|(_, target, label, value)| (target, label, value)).collect();
        assert_eq!(all, [("a", "", 3.0), ("a", "p99", 3.0), ("ab", "p50", 7.0)]);
    }

    #[test]
    fn without_room_counts_are_kept_for_all_others_together() {
        let mut samples = Samples { capacity: 2, ..Samples::default() };
        let (cpu, threads) = (find("cpu_seconds").unwrap(), find("threads").unwrap());
        for target in ["a", "b", "c", "d"] {
            samples.update(target, cpu, &values(&[("", 1.0)]));
            samples.update(target, threads, &values(&[("", 9.0)]));
        }
        let all: Vec<(&str, f64)> = samples.iter().map(|(_, target, _, value)| (target, value)).collect();
        assert_eq!(all, [("a", 1.0), ("~other", 3.0), ("a", 9.0)]);
        assert_eq!(samples.folded, 6);
    }

    #[test]
    fn both_forms_say_the_same() {
        let mut samples = Samples::default();
        samples.update("a", find("cpu_seconds").unwrap(), &values(&[("", 1.5)]));
        samples.update("a", find("threads").unwrap(), &values(&[("", 9.0)]));
        let text = samples.text(Vec::new());
        assert_eq!(
            text,
            "# HELP profiler_target_cpu_seconds CPU time of the target's threads\n\
             # TYPE profiler_target_cpu_seconds counter\n# UNIT profiler_target_cpu_seconds seconds\n\
             profiler_target_cpu_seconds_total{target=\"a\"} 1.5\n\
             # HELP profiler_target_threads Threads of the target that lived in the window\n\
             # TYPE profiler_target_threads gauge\nprofiler_target_threads{target=\"a\"} 9.0\n# EOF\n"
        );
        assert_eq!(
            classic(&text),
            "# HELP profiler_target_cpu_seconds_total CPU time of the target's threads\n\
             # TYPE profiler_target_cpu_seconds_total counter\nprofiler_target_cpu_seconds_total{target=\"a\"} 1.5\n\
             # HELP profiler_target_threads Threads of the target that lived in the window\n\
             # TYPE profiler_target_threads gauge\nprofiler_target_threads{target=\"a\"} 9.0\n"
        );
    }
}
