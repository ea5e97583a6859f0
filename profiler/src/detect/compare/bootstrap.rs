//! How much a run's figures vary by chance: a block bootstrap over time (H. Künsch, The jackknife and the bootstrap for
//! general stationary observations, Ann. Statist. 17, 1989), in circles (D. Politis and J. Romano, 1992). Whole blocks of time
//! are drawn, and not single samples: what comes in bursts is one observation each.

use fastrand::Rng;
use statrs::distribution::{ContinuousCDF as _, StudentsT};

use super::cells::Cells;
use crate::model::comparison::Place;

/// Runs that are drawn: enough for a standard error that is right to 4 %.
const DRAWN: usize = 400;
/// Lengths of blocks, cells. The one that shows the largest error counts: what is alike for longer than a cell, is fewer
/// observations than cells.
const LENGTHS: [usize; 3] = [1, 2, 4];
/// Fewer blocks say nothing of what varies; and as many there must be of the longer ones.
const LEAST: (usize, usize) = (5, 10);
/// Always the same draws, so that a comparison says the same twice.
const SEED: u64 = 0x5eed;

/// A standard error and how well it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    /// Standard error.
    pub err: f64,
    /// Degrees of freedom.
    pub freedom: f64,
}

/// Standard errors of one place, or of all together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spreads {
    /// Of its share of all weight, from 0 to 1.
    pub share: Spread,
    /// Of its weight.
    pub weight: Spread,
}

impl Spread {
    fn widen(&mut self, err: f64, freedom: f64) {
        if self.freedom == 0.0 || err > self.err {
            *self = Spread { err, freedom };
        }
    }

    /// At least `err`.
    #[must_use]
    pub fn at_least(self, err: f64) -> Spread {
        Spread { err: self.err.max(err), ..self }
    }

    /// That of a difference of two. As sure as the one that is known less well: of what is not quite normal few
    /// observations tell less than the textbook says.
    #[must_use]
    pub fn with(self, other: Spread) -> Spread {
        Spread { err: self.err.hypot(other.err), freedom: self.freedom.min(other.freedom).max(1.0) }
    }

    /// Chance of a difference as large as this where there is none.
    pub fn chance(&self, difference: f64) -> f64 {
        let t = difference.abs() / self.err;
        if difference == 0.0 || t.is_nan() {
            return 1.0;
        }
        let student = StudentsT::new(0.0, 1.0, self.freedom);
        student.map_or(1.0, |of| (2.0 * of.cdf(-t)).clamp(0.0, 1.0))
    }

    /// How far the 95 % interval reaches.
    pub fn margin(&self) -> f64 {
        let student = StudentsT::new(0.0, 1.0, self.freedom);
        student.map_or(f64::NAN, |of| of.inverse_cdf(0.975) * self.err)
    }
}

/// Of all places together, and of each; `None` if the run is too short to tell.
pub fn spreads(cells: &Cells, places: &[Place]) -> Option<(Spreads, Vec<Spreads>)> {
    if cells.n < LEAST.0 {
        return None;
    }
    let mut totals = vec![0.0; cells.n];
    for (&cell, weight) in &cells.all {
        totals[cell as usize] += weight;
    }
    let weights: Vec<Vec<(u32, f64)>> = places
        .iter()
        .map(|place| cells.places.get(place).into_iter().flatten().map(|(&cell, &of)| (cell, of)).collect())
        .collect();
    let mut random = Rng::with_seed(SEED);
    let mut all = Spreads::default();
    let mut each = vec![Spreads::default(); places.len()];
    for length in LENGTHS {
        let blocks = cells.n as f64 / length as f64;
        if length > 1 && blocks < LEAST.1 as f64 {
            break;
        }
        // What a bootstrap of few blocks finds is too small by this.
        let larger = (blocks / (blocks - 1.0)).sqrt();
        let mut moments = vec![[Moments::default(); 2]; places.len() + 1];
        let mut times = vec![0u32; cells.n];
        for _ in 0..DRAWN {
            draw(&mut times, length, &mut random);
            let total: f64 = totals.iter().zip(&times).map(|(of, &times)| of * f64::from(times)).sum();
            moments[places.len()][1].add(total);
            for (weights, moments) in weights.iter().zip(&mut moments) {
                let weight = weights.iter().map(|&(cell, of)| of * f64::from(times[cell as usize]));
                let weight: f64 = weight.sum();
                moments[0].add(if total > 0.0 { weight / total } else { 0.0 });
                moments[1].add(weight);
            }
        }
        for (spreads, moments) in each.iter_mut().chain([&mut all]).zip(&moments) {
            spreads.share.widen(larger * moments[0].deviation(), blocks - 1.0);
            spreads.weight.widen(larger * moments[1].deviation(), blocks - 1.0);
        }
    }
    Some((all, each))
}

/// Draws blocks until as many cells are drawn as there are; how often each was.
fn draw(times: &mut [u32], length: usize, random: &mut Rng) {
    times.fill(0);
    let n = times.len();
    let mut left = n;
    while left > 0 {
        let start = random.usize(..n);
        let taken = length.min(left);
        (0..taken).for_each(|i| times[(start + i) % n] += 1);
        left -= taken;
    }
}

/// Mean and deviation of numbers as they come (B. Welford, 1962).
#[derive(Clone, Copy, Default)]
struct Moments {
    n: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    fn add(&mut self, value: f64) {
        self.n += 1.0;
        let off = value - self.mean;
        self.mean += off / self.n;
        self.squares += off * (value - self.mean);
    }

    fn deviation(&self) -> f64 {
        if self.n < 2.0 { 0.0 } else { (self.squares / (self.n - 1.0)).sqrt() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::compare::cells::ByCell;

    fn cells(weights: &[f64]) -> (Cells, Place) {
        let place = Place { process: "app".into(), ..Place::default() };
        let n = weights.len();
        let all: ByCell = (0..).zip(weights.iter().copied()).collect();
        let places = [(place.clone(), all.clone())].into();
        (Cells { duration_s: n as f64, n, places, all, ..Cells::default() }, place)
    }

    #[test]
    fn independent_cells_give_the_textbooks_standard_error() {
        let mut random = Rng::with_seed(1);
        let weights: Vec<f64> = (0..200).map(|_| random.f64()).collect();
        let (cells, place) = cells(&weights);
        let (_, each) = spreads(&cells, &[place]).unwrap();
        let textbook = (200.0f64 / 12.0).sqrt();
        let found = each[0].weight.err;
        assert!((0.85..1.3).contains(&(found / textbook)), "{found} and {textbook}");
    }

    #[test]
    fn what_is_alike_for_longer_is_fewer_observations() {
        let mut random = Rng::with_seed(2);
        let alone: Vec<f64> = (0..60).map(|_| random.f64()).collect();
        let in_fours: Vec<f64> = alone.iter().take(50).flat_map(|&of| [of; 4]).collect();
        let error = |weights: &[f64]| {
            let (cells, place) = cells(weights);
            spreads(&cells, &[place]).unwrap().1[0].weight.err
        };
        let textbook = (200.0f64 / 12.0).sqrt();
        assert!(error(&in_fours) > 1.4 * textbook, "{} {textbook}", error(&in_fours));
    }

    #[test]
    fn few_cells_say_nothing() {
        let (cells, place) = cells(&[1.0; 4]);
        assert!(spreads(&cells, &[place]).is_none());
    }

    #[test]
    fn a_difference_is_judged_as_students_t() {
        let one = Spread { err: 3.0, freedom: 9.0 };
        let both = one.with(Spread { err: 4.0, freedom: 4.0 });
        assert_eq!(both, Spread { err: 5.0, freedom: 4.0 });
        assert!((one.chance(3.0 * 2.262) - 0.05).abs() < 1e-4);
        assert!((one.margin() - 3.0 * 2.262).abs() < 1e-2);
        assert_eq!(one.chance(0.0), 1.0);
        assert_eq!(Spread { err: 0.0, freedom: 9.0 }.chance(1.0), 0.0);
        for (err, difference) in [(f64::NAN, 1.0), (1.0, f64::NAN), (f64::INFINITY, f64::INFINITY)] {
            assert_eq!(Spread { err, freedom: 9.0 }.chance(difference), 1.0, "nothing is known");
        }
    }
}
