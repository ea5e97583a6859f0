//! How a value compares with what it was: how many times as high, if that is no chance.

use statrs::distribution::{ContinuousCDF as _, Normal};

use crate::detect::trend::quantile;

/// Fewer values on either side say nothing.
const MIN_VALUES: (usize, usize) = (4, 20);
/// Chance that a difference is none.
const CHANCE: f64 = 0.001;

/// How many times as high `now` is as `before`, by their medians: 1 if the difference may be chance (Mann–Whitney), `None`
/// if too little is known.
pub fn times_as_high(now: &[f64], before: &[f64]) -> Option<f64> {
    if now.len() < MIN_VALUES.0 || before.len() < MIN_VALUES.1 {
        return None;
    }
    let (middle, usual) = (quantile(now, 0.5)?, quantile(before, 0.5)?);
    if chance(now, before) > CHANCE {
        return Some(1.0);
    }
    // From nothing to something has no factor.
    (usual != 0.0).then(|| middle / usual)
}

/// Probability of a difference as large or larger where there is none (two-sided, normal approximation with ties).
fn chance(a: &[f64], b: &[f64]) -> f64 {
    let (n, m) = (a.len() as f64, b.len() as f64);
    let mut all: Vec<(f64, bool)> =
        a.iter().map(|&value| (value, true)).chain(b.iter().map(|&value| (value, false))).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut ranks, mut ties, mut i) = (0.0, 0.0, 0);
    while i < all.len() {
        let same = all[i..].iter().take_while(|(value, _)| *value == all[i].0).count();
        let rank = i as f64 + (same as f64 + 1.0) / 2.0;
        ranks += rank * all[i..i + same].iter().filter(|(_, is_a)| *is_a).count() as f64;
        ties += (same as f64).powi(3) - same as f64;
        i += same;
    }
    let u = ranks - n * (n + 1.0) / 2.0;
    let variance = n * m / 12.0 * ((n + m + 1.0) - ties / ((n + m) * (n + m - 1.0)));
    if variance <= 0.0 {
        return 1.0;
    }
    let z = ((u - n * m / 2.0).abs() - 0.5).max(0.0) / variance.sqrt();
    2.0 * (1.0 - Normal::standard().cdf(z))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around(middle: f64, n: usize) -> Vec<f64> {
        (0..n).map(|i| middle + ((i * 37) % 11) as f64 - 5.0).collect()
    }

    #[test]
    fn twice_as_high_is_seen_and_chance_is_not() {
        assert_eq!(times_as_high(&around(200.0, 10), &around(100.0, 60)), Some(2.0));
        assert_eq!(times_as_high(&around(101.0, 10), &around(100.0, 60)), Some(1.0));
        assert_eq!(times_as_high(&[0.0; 10], &[0.0; 60]), Some(1.0));
        assert_eq!(times_as_high(&[5.0; 10], &[0.0; 60]), None, "no factor leads from nothing to something");
        assert_eq!(times_as_high(&around(200.0, 3), &around(100.0, 60)), None);
        assert_eq!(times_as_high(&around(200.0, 10), &around(100.0, 10)), None);
    }
}
