//! When a value that grows reaches its threshold: a range of times, and only if it is no chance.
//!
//! Looked at are the last hour, the last 6 hours and the last day, as far as they are known. All of those that are long
//! enough must grow (Mann–Kendall, which knows of ties and autocorrelation), and the last quarter of the shortest must
//! still do so. The slope is Theil–Sen's with Sen's interval; the range is the widest that the looks give.

use std::time::Duration;

use crate::detect::trend::{self, Point};

/// How far back it is looked, s.
const LOOKS_S: [f64; 3] = [3600.0, 6.0 * 3600.0, 24.0 * 3600.0];
/// A look with fewer points, or that is known for a shorter part of its length, says nothing.
const MIN_POINTS: usize = 20;
/// Of the shortest look, how much must be known: growth of some minutes is a start, not a trend.
const MIN_S: f64 = 600.0;
/// Points of a look: the work grows with their square.
const MOST_POINTS: usize = 64;
/// Chance that growth is none, for each look.
const CHANCE: f64 = 0.01;
/// The interval of the slope may be so wide: its upper end over its lower one. What rises and falls has a wider one.
const WIDEST: f64 = 4.0;

/// When a threshold is reached, s from now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forecast {
    /// Earliest.
    pub low_s: f64,
    /// Latest.
    pub high_s: f64,
}

/// The values of a series in the last day, with the time of each.
#[derive(Clone, Debug, Default)]
pub struct Recent {
    points: std::collections::VecDeque<Point>,
}

impl Recent {
    /// Adds a value; times must grow.
    pub fn push(&mut self, now: Duration, value: f64) {
        let now_s = now.as_secs_f64();
        let oldest = now_s - LOOKS_S[LOOKS_S.len() - 1];
        while self.points.front().is_some_and(|(time, _)| *time < oldest) {
            self.points.pop_front();
        }
        self.points.push_back((now_s, value));
    }

    /// Forgets everything: what comes is of a new start.
    pub fn clear(&mut self) {
        self.points.clear();
    }

    /// When the series reaches `limit`, from below if `above` holds, from above otherwise. `None` if too little is known,
    /// `Some(None)` if it does not go there.
    pub fn reaches(&self, limit: f64, above: bool) -> Option<Option<Forecast>> {
        let (now, last) = *self.points.back()?;
        let sign = if above { 1.0 } else { -1.0 };
        let left = sign * (limit - last);
        if left <= 0.0 {
            return Some(Some(Forecast { low_s: 0.0, high_s: 0.0 }));
        }
        let known_s = now - self.points.front()?.0;
        let mut range: Option<Forecast> = None;
        for (i, look_s) in LOOKS_S.into_iter().enumerate() {
            // A longer look that is hardly longer than what is known says the same again.
            if i > 0 && known_s < LOOKS_S[i - 1] * 1.5 {
                break;
            }
            let points: Vec<Point> = self
                .points
                .iter()
                .filter(|(time, _)| now - time <= look_s)
                .map(|(t, v)| (*t, sign * v))
                .collect();
            if points.len() < MIN_POINTS || points.last()?.0 - points.first()?.0 < MIN_S {
                return None;
            }
            let points = thinned(&points);
            let Some(forecast) = look(&points, left) else { return Some(None) };
            range = Some(range.map_or(forecast, |range| Forecast {
                low_s: range.low_s.min(forecast.low_s),
                high_s: range.high_s.max(forecast.high_s),
            }));
        }
        Some(range)
    }
}

/// The range that one look gives; `None` if it does not grow.
fn look(points: &[Point], left: f64) -> Option<Forecast> {
    let grows = |points: &[Point]| {
        let without_slope = trend::mann_kendall(points, 0.0);
        let slope = trend::theil_sen(points, without_slope.variance)?;
        // Autocorrelation is that of what remains without the slope.
        let test = trend::mann_kendall(points, slope.per_time);
        let slope = trend::theil_sen(points, test.variance)?;
        (test.p < CHANCE && slope.low > 0.0 && slope.high < WIDEST * slope.low).then_some(slope)
    };
    let slope = grows(points)?;
    // Steps, and what has stopped: each half and the last quarter must grow at a rate that is like that of the whole.
    let part = |from: usize, to: usize| {
        let points = points.get(from..to)?;
        let slope = trend::theil_sen(points, trend::mann_kendall(points, 0.0).variance)?;
        Some(slope.per_time)
    };
    let n = points.len();
    for rate in [part(0, n / 2)?, part(n / 2, n)?, part(n - n / 4, n)?] {
        if rate < slope.per_time / 4.0 {
            return None;
        }
    }
    Some(Forecast { low_s: left / slope.high, high_s: left / slope.low })
}

/// Means of equally many points each, so that there are few.
fn thinned(points: &[Point]) -> Vec<Point> {
    let each = points.len().div_ceil(MOST_POINTS).max(1);
    let mean = |points: &[Point]| {
        let n = points.len() as f64;
        let sum = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / n, sum.1 / n)
    };
    points.chunks(each).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A series of one value each 30 s, for so many hours.
    fn series(hours: f64, value: impl Fn(f64) -> f64) -> Recent {
        let mut recent = Recent::default();
        for i in 0..(hours * 120.0) as u32 {
            let time = Duration::from_secs(30) * (i + 1);
            recent.push(time, value(time.as_secs_f64()));
        }
        recent
    }

    /// Noise without a trend, from 0 to 1, always the same.
    fn noise(time: f64) -> f64 {
        let mut x = (time as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        x ^= x >> 29;
        x = x.wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (x >> 40) as f64 / (1u64 << 24) as f64
    }

    #[test]
    fn a_slow_leak_reaches_its_limit_within_the_range_that_is_told() {
        for hours in [1.0, 3.0, 8.0, 30.0] {
            // 1 unit a minute, with noise of 5.
            let recent = series(hours, |t| 100.0 + t / 60.0 + 5.0 * noise(t));
            let limit = 100.0 + hours * 60.0 + 120.0;
            let forecast = recent.reaches(limit, true).unwrap().unwrap();
            assert!(
                forecast.low_s < 7300.0 && forecast.high_s > 6800.0 && forecast.high_s < 9000.0,
                "{hours} h: {forecast:?}, the truth is 2 h"
            );
        }
    }

    #[test]
    fn what_does_not_grow_is_never_foretold() {
        type Series = fn(f64) -> f64;
        let steady: [(&str, Series); 6] = [
            ("flat", |_| 50.0),
            ("flat noise", |t| 50.0 + 10.0 * noise(t)),
            ("sawtooth", |t| 50.0 + (t / 60.0) % 20.0),
            ("step", |t| if t < 5000.0 { 20.0 } else { 50.0 }),
            ("a step just now", |t| if t < 10_000.0 { 20.0 } else { 50.0 }),
            ("stopped", |t| (t / 60.0).min(100.0)),
        ];
        for (name, value) in steady {
            for hours in [0.5, 1.0, 3.0, 9.0] {
                let found = series(hours, value).reaches(200.0, true).flatten();
                // An hour of what stops after 100 min does grow.
                assert!(found.is_none() || name == "stopped" && hours < 2.0, "{name}, {hours} h: {found:?}");
            }
        }
    }

    #[test]
    fn false_alarms_over_noise_are_rare() {
        let mut alarms = 0;
        for seed in 0..300 {
            let walk = series(3.0, |t| 50.0 + 10.0 * noise(t + f64::from(seed) * 1e6));
            alarms += usize::from(walk.reaches(100.0, true).flatten().is_some());
        }
        assert!(alarms <= 3, "{alarms} of 300");
    }

    #[test]
    fn it_goes_down_too_and_a_few_minutes_say_nothing() {
        let falling = series(2.0, |t| 1000.0 - t / 60.0 + 2.0 * noise(t));
        let forecast = falling.reaches(800.0, false).unwrap().unwrap();
        assert!(forecast.low_s < 4900.0 && forecast.high_s > 4700.0, "80 min: {forecast:?}");
        assert_eq!(series(0.1, |t| t).reaches(1e9, true), None);
        assert_eq!(Recent::default().reaches(1.0, true), None);
    }

    #[test]
    fn what_is_there_already_is_there_now() {
        let over = series(1.0, |_| 10.0).reaches(9.0, true);
        assert_eq!(over, Some(Some(Forecast { low_s: 0.0, high_s: 0.0 })));
    }
}
