//! Distributions: of durations by their percentiles, of sizes and ages by powers of two.

use profiler_common::histogram;
use serde::{Deserialize, Serialize};

/// A distribution of durations, ns; each value is known to 3.1 %.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// How many.
    pub count: u64,
    /// Sum, exact.
    pub sum_ns: u64,
    /// Median.
    pub p50_ns: u64,
    /// 90th percentile.
    pub p90_ns: u64,
    /// 95th percentile.
    pub p95_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// 99.9th percentile.
    pub p999_ns: u64,
    /// Longest, exact.
    pub max_ns: u64,
}

impl Summary {
    /// Of what the kernel programs counted.
    pub fn of(kernel: &histogram::Histogram) -> Summary {
        let counts = kernel.counts.iter().map(|&count| u64::from(count)).enumerate();
        Summary::from_buckets(counts, kernel.sum_ns, kernel.max_ns)
    }

    /// Of counts by bucket, and of their exact sum and maximum, by way of an hdrhistogram that is finer than the buckets. A value
    /// is taken to be in the middle of its bucket.
    pub fn from_buckets(counts: impl IntoIterator<Item = (usize, u64)>, sum_ns: u64, max_ns: u64) -> Summary {
        // No larger than it must be: a window of many targets has thousands of these.
        let longest = max_ns.clamp(2, histogram::bounds(histogram::BUCKETS - 1).0 * 2);
        let Ok(mut merged) = hdrhistogram::Histogram::<u64>::new_with_max(longest, 3) else {
            return Summary::default();
        };
        for (bucket, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
            let (first, width) = histogram::bounds(bucket);
            merged.saturating_record_n(first + width / 2, count);
        }
        let at = |quantile: f64| merged.value_at_quantile(quantile).min(max_ns);
        Summary {
            count: merged.len(),
            sum_ns,
            p50_ns: at(0.5),
            p90_ns: at(0.9),
            p95_ns: at(0.95),
            p99_ns: at(0.99),
            p999_ns: at(0.999),
            max_ns,
        }
    }
}

/// Counts of values by powers of two: bucket `i` holds the values from 2^i to below 2^(i+1), bucket 0 also zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log2(Vec<u64>);

impl Log2 {
    /// Counts `n` values like `value`.
    pub fn add(&mut self, value: u64, n: u64) {
        let bucket = value.max(1).ilog2() as usize;
        if self.0.len() <= bucket {
            self.0.resize(bucket + 1, 0);
        }
        self.0[bucket] += n;
    }

    /// Counts the values of another one as well.
    pub fn add_all(&mut self, other: &Log2) {
        other.0.iter().enumerate().for_each(|(bucket, &n)| self.add(1 << bucket, n));
    }

    /// Counts by bucket; what lies beyond is zero.
    pub fn counts(&self) -> &[u64] {
        &self.0
    }

    /// The value that a share of `quantile` is not above, taken to be spread evenly in its bucket; `None` if there are
    /// no values.
    pub fn quantile(&self, quantile: f64) -> Option<u64> {
        let mut left = self.total() as f64 * quantile;
        for ((low, high), count) in self.buckets() {
            if count > 0.0 && left <= count {
                return Some((low + (high - low) * left / count) as u64);
            }
            left -= count;
        }
        None
    }

    /// How many values are beyond `value`, and by how much they are in all; taken to be spread evenly in their bucket.
    pub fn beyond(&self, value: f64) -> (f64, f64) {
        let each = self.buckets().map(|((low, high), count)| {
            let from = low.max(value).min(high);
            let n = count * (high - from) / (high - low);
            (n, n * ((from + high) / 2.0 - value))
        });
        each.fold((0.0, 0.0), |sum, each| (sum.0 + each.0, sum.1 + each.1))
    }

    /// Each bucket's bounds and count.
    fn buckets(&self) -> impl Iterator<Item = ((f64, f64), f64)> + '_ {
        let bounds = |bucket: i32| (if bucket == 0 { 0.0 } else { 2f64.powi(bucket) }, 2f64.powi(bucket + 1));
        (0..).map(bounds).zip(self.0.iter().map(|&count| count as f64))
    }

    /// How many values.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl FromIterator<u64> for Log2 {
    /// Counts by bucket, as the kernel programs keep them.
    fn from_iter<I: IntoIterator<Item = u64>>(counts: I) -> Log2 {
        let mut counts: Vec<u64> = counts.into_iter().take(u64::BITS as usize).collect();
        counts.truncate(counts.iter().rposition(|&n| n > 0).map_or(0, |last| last + 1));
        Log2(counts)
    }
}
