//! Whether a series grows, and how fast: statistics that outliers, ties and autocorrelation do not fool.
//!
//! Points are (time, value); times grow. Their unit is the caller's, seconds where nothing else is said.

use statrs::distribution::{ContinuousCDF as _, Normal, StudentsT};

/// A point: time and value.
pub type Point = (f64, f64);

/// A slope with the interval that holds the true one with a probability of 95 %, value per time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Slope {
    /// Best estimate.
    pub per_time: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

/// What the Mann–Kendall test says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MannKendall {
    /// Pairs that grow less pairs that shrink.
    pub s: f64,
    /// Variance of `s` without a trend, with ties and autocorrelation.
    pub variance: f64,
    /// Probability that a series without a trend grows as much (one-sided).
    pub p: f64,
}

/// Half the width of a 95 % interval, in standard errors.
pub const Z95: f64 = 1.959_963_984_540_054;

/// The same of Student's t with so many degrees of freedom.
pub fn t95(freedom: usize) -> f64 {
    StudentsT::new(0.0, 1.0, freedom as f64).map_or(f64::INFINITY, |t| t.inverse_cdf(0.975))
}

/// The median of all slopes between two points: Theil–Sen, with Sen's interval (P. K. Sen, Estimates of the regression
/// coefficient based on Kendall's tau, JASA 63, 1968), whose width follows from the variance of Mann–Kendall's S. The
/// work grows with the square of the number of points. `None` for fewer than two times.
pub fn theil_sen(points: &[Point], variance_of_s: f64) -> Option<Slope> {
    let mut slopes = Vec::with_capacity(points.len() * points.len().saturating_sub(1) / 2);
    for (i, a) in points.iter().enumerate() {
        let later = points[i + 1..].iter().filter(|b| b.0 > a.0);
        slopes.extend(later.map(|b| (b.1 - a.1) / (b.0 - a.0)));
    }
    slopes.sort_unstable_by(f64::total_cmp);
    let n = slopes.len();
    let at = |rank: f64| slopes.get((rank.max(0.0) as usize).min(n.saturating_sub(1))).copied();
    let half_width = Z95 * variance_of_s.max(0.0).sqrt();
    Some(Slope {
        per_time: median_of_sorted(&slopes)?,
        low: at(((n as f64 - half_width) / 2.0).round() - 1.0)?,
        high: at(((n as f64 + half_width) / 2.0).round())?,
    })
}

/// The Mann–Kendall test with ties, its variance corrected for autocorrelation as in K. H. Hamed and A. R. Rao, A
/// modified Mann-Kendall trend test for autocorrelated data, J. Hydrology 204, 1998. The correction is never let make
/// the variance smaller: negative correlation is no evidence here. `slope` is that of the series, to remove the trend.
pub fn mann_kendall(points: &[Point], slope: f64) -> MannKendall {
    let n = points.len() as f64;
    let mut s = 0.0;
    for (i, a) in points.iter().enumerate() {
        let later = points[i + 1..].iter();
        s += later.map(|b| f64::from(i8::from(b.1 > a.1) - i8::from(b.1 < a.1))).sum::<f64>();
    }
    let values: Vec<f64> = points.iter().map(|point| point.1).collect();
    let (_, ties) = ranks(&values);
    let of = |n: f64| n * (n - 1.0) * (2.0 * n + 5.0);
    let independent = (of(n) - ties.iter().map(|&tied| of(tied as f64)).sum::<f64>()) / 18.0;
    let detrended: Vec<f64> = points.iter().map(|point| point.1 - slope * point.0).collect();
    let variance = independent * inflation(&ranks(&detrended).0);
    // S moves in steps of two: the usual correction for continuity.
    let z = if variance > 0.0 && variance.is_finite() { (s - s.signum()) / variance.sqrt() } else { 0.0 };
    MannKendall { s, variance, p: upper_tail(z) }
}

/// By how much autocorrelated ranks make the variance of S larger: n/n* of Hamed and Rao, at least one. Only
/// autocorrelations that are significant at 5 % count.
fn inflation(ranks: &[f64]) -> f64 {
    let n = ranks.len();
    if n < 3 {
        return 1.0;
    }
    let mean = ranks.iter().sum::<f64>() / n as f64;
    let sum =
        |lag: usize| -> f64 { ranks.iter().zip(&ranks[lag..]).map(|(a, b)| (a - mean) * (b - mean)).sum() };
    let whole = sum(0);
    if whole <= 0.0 {
        return 1.0;
    }
    let significant = Z95 / (n as f64).sqrt();
    let weighted = (1..n).map(|lag| {
        let (rho, left) = (sum(lag) / whole, (n - lag) as f64);
        if rho.abs() > significant { left * (left - 1.0) * (left - 2.0) * rho } else { 0.0 }
    });
    let n = n as f64;
    (1.0 + 2.0 / (n * (n - 1.0) * (n - 2.0)) * weighted.sum::<f64>()).max(1.0)
}

/// Ranks from one on, ties sharing their mean, and the sizes of all ties.
fn ranks(values: &[f64]) -> (Vec<f64>, Vec<usize>) {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_unstable_by(|&a, &b| values[a].total_cmp(&values[b]));
    let (mut ranks, mut ties, mut done) = (vec![0.0; values.len()], Vec::new(), 0);
    for same in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = done as f64 + (same.len() as f64 + 1.0) / 2.0;
        same.iter().for_each(|&index| ranks[index] = rank);
        done += same.len();
        ties.push(same.len());
    }
    (ranks, ties)
}

/// What the steps of a series say of its drift.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drift {
    /// Probability that a random walk without drift rises as steadily (one-sided).
    pub p: f64,
    /// Mean slope.
    pub slope: Slope,
}

/// Student's t-test of a series' slopes from point to point, at about equal intervals. It asks more than Mann–Kendall, whose correction
/// cannot tell a trend from correlation that lasts as long as the series; and its interval is right for what adds up
/// events that happen at random. `None` for fewer than two steps.
pub fn drift(levels: &[Point]) -> Option<Drift> {
    let slopes = slopes(levels);
    let n = slopes.len() as f64;
    if n < 2.0 {
        return None;
    }
    let (mean, error) = mean(&slopes);
    let student = StudentsT::new(0.0, 1.0, n - 1.0).ok()?;
    let p = match mean / error {
        // As even as numbers can be: no test is needed.
        _ if error <= mean * 1e-9 => 0.0,
        t if t.is_finite() && mean > 0.0 => student.sf(t),
        _ => 1.0,
    };
    let half = error * student.inverse_cdf(0.975);
    Some(Drift { p, slope: Slope { per_time: mean, low: mean - half, high: mean + half } })
}

/// From each point to the next.
pub fn slopes(points: &[Point]) -> Vec<f64> {
    points.windows(2).map(|pair| (pair[1].1 - pair[0].1) / (pair[1].0 - pair[0].0)).collect()
}

/// Mean and its standard error.
pub fn mean(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n.max(1.0);
    let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    (mean, (squares / (n - 1.0).max(1.0) / n.max(1.0)).sqrt())
}

/// The lowest point of each of `n` equal pieces of time: the lower envelope. Pieces without a point are left out.
pub fn minima(points: &[Point], n: usize) -> Vec<Point> {
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return Vec::new() };
    let n = n.max(1);
    let width = (last.0 - first.0) / n as f64;
    let piece = |point: &Point| (((point.0 - first.0) / width) as usize).min(n - 1);
    if width.is_nan() || width <= 0.0 {
        return vec![*first];
    }
    let pieces = points.chunk_by(|a, b| piece(a) == piece(b));
    pieces.filter_map(|piece| piece.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1))).collect()
}

/// The lowest points between rises and falls of at least `height`.
pub fn troughs(points: &[Point], height: f64) -> Vec<Point> {
    let mut found = Vec::new();
    let Some(&first) = points.first() else { return found };
    let (mut low, mut high, mut falling) = (first, first, false);
    for &point in points {
        if falling {
            if point.1 < low.1 {
                low = point;
            } else if point.1 >= low.1 + height {
                found.push(low);
                (high, falling) = (point, false);
            }
        } else if point.1 > high.1 {
            high = point;
        } else if point.1 <= high.1 - height {
            (low, falling) = (point, true);
        }
    }
    found
}

/// Probability that a standard normal variable is larger.
fn upper_tail(z: f64) -> f64 {
    Normal::standard().sf(z)
}

fn median_of_sorted(values: &[f64]) -> Option<f64> {
    let n = values.len();
    match n {
        0 => None,
        _ if n % 2 == 1 => Some(values[n / 2]),
        _ => Some((values[n / 2 - 1] + values[n / 2]) / 2.0),
    }
}

/// The value that a share of `quantile` is below.
pub fn quantile(values: &[f64], quantile: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(((sorted.len() as f64 - 1.0).max(0.0) * quantile).round() as usize).copied()
}

/// Adjusts the p-values of many tests so that of those called significant only that share is expected to be wrong (Y.
/// Benjamini and Y. Hochberg, Controlling the false discovery rate, J. R. Statist. Soc. B 57, 1995).
pub fn false_discovery(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_unstable_by(|&a, &b| p[b].total_cmp(&p[a]));
    let (mut adjusted, mut smallest) = (vec![1.0; p.len()], 1.0f64);
    for (i, &index) in order.iter().enumerate() {
        let rank = p.len() - i;
        smallest = smallest.min(p[index] * p.len() as f64 / rank as f64);
        adjusted[index] = smallest;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn points(values: &[f64]) -> Vec<Point> {
        values.iter().enumerate().map(|(i, &value)| (i as f64, value)).collect()
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-9 * b.abs().max(1.0)
    }

    /// Reference values: pymannkendall 1.4.3 (original_test, hamed_rao_modification_test) and scipy 1.16
    /// (theilslopes).
    #[test]
    fn they_agree_with_other_implementations() {
        let few = points(&[
            12., 15., 11., 18., 20., 19., 19., 25., 23., 28., 27., 31., 30., 30., 36., 33., 38., 41., 39.,
            44.,
        ]);
        let test = mann_kendall(&few, 1.6);
        assert_eq!((test.s, test.variance), (168.0, 948.0), "without correction: it would shrink it");
        assert!(close(test.p, 5.830_995_042_366_283e-8 / 2.0), "{}", test.p);
        let slope = theil_sen(&few, test.variance).unwrap();
        assert_eq!(slope, Slope { per_time: 1.6, low: 1.5, high: 1.75 });

        let correlated = points(&[
            0.0, 0.4, 1.16, 1.22, -0.35, 0.77, 1.11, 0.38, 1.0, 1.24, 1.34, 1.17, 1.58, 0.6, 0.5, 0.13, 0.96,
            1.0, 0.72, 0.04, 0.11, 0.43, 0.39, 1.95, 2.77, -0.37, -1.72, -0.94, -0.62, 0.25, 0.88, 3.23,
            1.66, 1.32, 3.51, 3.66, 3.8, 2.74, 0.87, 1.4,
        ]);
        let slope = theil_sen(&correlated, 7365.0 + 2.0 / 3.0).unwrap();
        let expected = [0.028_125, -0.005_714_285_714_285_712, 0.067_142_857_142_857_14];
        for (ours, theirs) in [slope.per_time, slope.low, slope.high].into_iter().zip(expected) {
            assert!(close(ours, theirs), "{ours} is not {theirs}");
        }
        let test = mann_kendall(&correlated, slope.per_time);
        assert_eq!(test.s, 141.0);
        assert!(close(test.variance, 14_058.110_709_036_899), "{}", test.variance);
        assert!(close(test.p, 0.237_694_919_753_501_2 / 2.0), "{}", test.p);
    }

    #[test]
    fn a_random_walk_without_drift_seldom_seems_to_have_one() {
        let mut rng = fastrand::Rng::with_seed(1);
        let (mut found, mut held) = (0, 0);
        for _ in 0..10_000 {
            let mut level = 0.0;
            let walk = std::iter::repeat_with(|| {
                level += rng.f64() + rng.f64() + rng.f64() - 1.5;
                level
            });
            let walk: Vec<f64> = walk.take(8).collect();
            let drift = drift(&points(&walk)).unwrap();
            found += u32::from(drift.p < 0.01);
            held += u32::from(drift.slope.low <= 0.0 && 0.0 <= drift.slope.high);
        }
        assert!((50..200).contains(&found), "{found} of 10,000, at p = 0.01");
        assert!((9400..9600).contains(&held), "{held} of 10,000, of an interval of 95 %");
        let up = drift(&points(&[1.0, 3.0, 5.0, 7.0])).unwrap();
        assert_eq!(up, Drift { p: 0.0, slope: Slope { per_time: 2.0, low: 2.0, high: 2.0 } });
        assert_eq!(drift(&points(&[4.0, 2.0, 3.0, 1.0])).unwrap().p, 1.0);
    }

    #[test]
    fn troughs_are_where_it_turns() {
        let saw: Vec<f64> = (0..30).map(|i| f64::from(i % 10)).collect();
        assert_eq!(troughs(&points(&saw), 5.0), [(10.0, 0.0), (20.0, 0.0)]);
        assert_eq!(troughs(&points(&saw), 10.0), []);
        assert_eq!(minima(&points(&saw), 3), [(0.0, 0.0), (10.0, 0.0), (20.0, 0.0)]);
    }

    #[test]
    fn many_tests_need_more_evidence() {
        let adjusted = false_discovery(&[0.01, 0.5, 0.02, 0.9]);
        assert_eq!(adjusted, [0.04, 2.0 / 3.0, 0.04, 0.9]);
    }

    proptest! {
        #[test]
        fn the_slope_of_a_line_is_found_among_outliers(
            slope in -100.0f64..100.0,
            outliers in prop::collection::btree_map(0usize..40, -1e6f64..1e6, 0..8),
        ) {
            let line = (0..40).map(|i| outliers.get(&i).copied().unwrap_or(slope * i as f64));
            let line = points(&line.collect::<Vec<_>>());
            let test = mann_kendall(&line, slope);
            let found = theil_sen(&line, test.variance).unwrap();
            prop_assert!((found.per_time - slope).abs() < 1e-6 * slope.abs().max(1.0));
            prop_assert!(found.low <= found.per_time && found.per_time <= found.high);
        }

        #[test]
        fn no_series_panics(
            values in prop::collection::vec(prop::num::f64::ANY, 0..30),
            n in 0usize..10,
            height in prop::num::f64::ANY,
        ) {
            let points = points(&values);
            quantile(&values, 0.3);
            let test = mann_kendall(&points, 0.0);
            theil_sen(&points, test.variance);
            drift(&points);
            minima(&points, n);
            troughs(&points, height);
            false_discovery(&values);
        }
    }
}
