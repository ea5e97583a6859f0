//! Metrics as OpenMetrics text, for scrapers.

use std::collections::BTreeMap;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, text::encode},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit as ExportedUnit},
};

use super::{
    metric::{Kind, Metric, Unit, View},
    read::METRICS,
};

/// The last value of every metric of every target; counters are sums since the daemon started.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    samples: BTreeMap<Sample, f64>,
    /// Values that had no room.
    pub folded: u64,
}

/// Whose value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Sample {
    /// Index of the metric in METRICS.
    metric: usize,
    /// Name of the target.
    target: String,
    /// Value of the metric's own label.
    label: &'static str,
}

impl Samples {
    /// So many values are kept; those of further targets are counted and left out.
    pub const CAPACITY: usize = 20_000;

    /// Takes over what was measured of a target in a window. Gauges that were not measured are not known any more.
    pub fn update(&mut self, target: &str, view: &View<'_>) {
        for (index, metric) in METRICS.iter().enumerate() {
            let key = |label| Sample { metric: index, target: target.to_owned(), label };
            if metric.kind == Kind::Gauge {
                self.samples.retain(|sample, _| sample.metric != index || sample.target != target);
            }
            for (label, value) in metric.read(view) {
                let full = self.samples.len() >= Samples::CAPACITY;
                if full && !self.samples.contains_key(&key(label)) {
                    self.folded += 1;
                    continue;
                }
                let sum = self.samples.entry(key(label)).or_default();
                *sum = if metric.kind == Kind::Counter { *sum + value } else { value };
            }
        }
    }

    /// Forgets the gauges of a target that has ended.
    pub fn end(&mut self, target: &str) {
        self.samples
            .retain(|sample, _| sample.target != target || METRICS[sample.metric].kind == Kind::Counter);
    }

    /// All values: metric, target, label, value.
    pub fn iter(&self) -> impl Iterator<Item = (&'static Metric, &str, &'static str, f64)> {
        let each = self.samples.iter();
        each.map(|(sample, value)| (&METRICS[sample.metric], sample.target.as_str(), sample.label, *value))
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
            let mut values =
                self.samples.samples.iter().filter(|(sample, _)| sample.metric == index).peekable();
            if values.peek().is_none() {
                continue;
            }
            let labelled = values.map(|(sample, value)| {
                let mut labels = vec![("target", sample.target.clone())];
                if !metric.label.is_empty() {
                    labels.push((metric.label, sample.label.to_owned()));
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
