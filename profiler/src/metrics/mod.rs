//! What is measured of a target in a window, as numbers: METRICS is the one table that exporters, alert rules, the API and
//! the documents read. What is not known has no value; it is never zero instead.

mod metric;
mod openmetrics;
mod read;
mod requests;

pub use metric::{Budget, Itself, Kind, MemoryTrend, Metric, OWN, Outside, Unit, Values, View};
pub use openmetrics::{OwnMetric, Samples, classic};
pub use read::METRICS;

/// The metric that rules call so: `NAME`, or `NAME.LABEL` for one of its values.
pub fn find(name: &str) -> Option<&'static Metric> {
    let name = name.split_once('.').map_or(name, |(name, _)| name);
    METRICS.iter().find(|metric| metric.name == name)
}

/// Whether the metric is one of the daemon itself.
pub fn is_own(name: &str) -> bool {
    name.starts_with("own_")
}

/// All names that [`find`] knows.
pub fn names() -> Vec<&'static str> {
    METRICS.iter().map(|metric| metric.name).collect()
}

/// What `name` stands for in a window: the value with that label, or the only one.
pub fn value(name: &str, view: &View<'_>) -> Option<f64> {
    let label = name.split_once('.').map_or("", |(_, label)| label);
    let values = find(name)?.read(view);
    let found = values.iter().find(|(name, _)| label.is_empty() || *name == label);
    found.map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_end_in_their_unit() {
        for (i, metric) in METRICS.iter().enumerate() {
            assert!(METRICS[..i].iter().all(|other| other.name != metric.name), "{}", metric.name);
            assert!(metric.name.ends_with(metric.unit.id()), "{}", metric.name);
            assert!(!metric.name.ends_with("_total"), "{}: exporters add it to counters", metric.name);
            assert!(!metric.help.is_empty() && !metric.help.ends_with('.'), "{}", metric.name);
        }
    }

    #[test]
    fn thresholds_are_written_with_their_unit() {
        assert_eq!(Unit::Seconds.parse("10ms"), Ok(0.010));
        assert_eq!(Unit::Ratio.parse("70%"), Ok(0.7));
        assert_eq!(Unit::Ratio.parse("0.7"), Ok(0.7));
        assert_eq!(Unit::Bytes.parse("2GiB"), Ok(2147483648.0));
        assert_eq!(Unit::BytesPerSecond.parse("1MB/s"), Ok(1e6));
        for unit in [Unit::Seconds, Unit::Ratio, Unit::Bytes, Unit::Count] {
            assert!(unit.parse("much").is_err());
        }
    }

    #[test]
    fn rules_of_alerts_read_metrics_that_exist() {
        for rule in crate::alerting::BUILT_IN.iter() {
            assert!(rule.metric.is_empty() || find(&rule.metric).is_some(), "{}", rule.id);
        }
    }
}
