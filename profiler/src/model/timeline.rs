//! How a sum of time grew over a run: so much in each of some equal pieces of it.

use serde::{Deserialize, Serialize};

/// Pieces at most: where there would be more, each becomes twice as long.
const PIECES: usize = 64;
/// Length of a piece at first, ns.
const SHORTEST_NS: u64 = 10_000_000;

/// Time by piece.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// When the first piece begins: CLOCK_MONOTONIC, ns.
    pub start_ns: u64,
    /// Length of a piece, ns; zero as long as there is none.
    pub width_ns: u64,
    /// What was spent in each, ns; more than its length where several things went on at once.
    pub spent_ns: Vec<u64>,
}

impl Timeline {
    /// Adds something that lasted from one time to another and stands for `weight` of its kind.
    pub fn add(&mut self, from_ns: u64, to_ns: u64, weight: u64) {
        if to_ns <= from_ns {
            return;
        }
        if self.width_ns == 0 {
            (self.start_ns, self.width_ns) = (from_ns, SHORTEST_NS);
        }
        self.begin_at(from_ns);
        let (from, to) = (from_ns.saturating_sub(self.start_ns), to_ns.saturating_sub(self.start_ns));
        while to > self.width_ns.saturating_mul(PIECES as u64) {
            self.halve();
        }
        let mut at = from;
        while at < to {
            let piece = (at / self.width_ns) as usize;
            let end = to.min((piece as u64 + 1).saturating_mul(self.width_ns));
            if self.spent_ns.len() <= piece {
                self.spent_ns.resize(piece + 1, 0);
            }
            self.spent_ns[piece] = self.spent_ns[piece].saturating_add((end - at).saturating_mul(weight));
            at = end;
        }
    }

    /// What ended later may have begun earlier than the first piece does.
    fn begin_at(&mut self, from_ns: u64) {
        loop {
            let missing = self.start_ns.saturating_sub(from_ns).div_ceil(self.width_ns);
            let all = missing.saturating_add(self.spent_ns.len() as u64);
            if all <= PIECES as u64 {
                // Nothing is before zero: what would be stays in the first piece.
                if let Some(start_ns) = self.start_ns.checked_sub(missing * self.width_ns) {
                    self.start_ns = start_ns;
                    self.spent_ns.splice(0..0, std::iter::repeat_n(0, missing as usize));
                }
                return;
            }
            self.halve();
        }
    }

    /// Two pieces become one.
    fn halve(&mut self) {
        let pairs =
            self.spent_ns.chunks(2).map(|pair| pair.iter().fold(0u64, |sum, ns| sum.saturating_add(*ns)));
        self.spent_ns = pairs.collect();
        self.width_ns = self.width_ns.saturating_mul(2);
    }

    /// As so many characters, from the lowest to the highest bar; the highest is the most that any piece has.
    pub fn bars(&self, columns: usize) -> String {
        const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        let each = self.spent_ns.len().div_ceil(columns.max(1)).max(1);
        let sums: Vec<f64> = self
            .spent_ns
            .chunks(each)
            .map(|piece| piece.iter().map(|ns| *ns as f64).sum::<f64>() / piece.len() as f64)
            .collect();
        let most = sums.iter().copied().fold(0.0, f64::max);
        let bar = |sum: &f64| BARS[((sum / most * 8.0).ceil() as usize).min(8)];
        sums.iter().map(bar).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_lasts_is_in_every_piece_that_it_touches() {
        let mut line = Timeline::default();
        line.add(1_000_000_000, 1_015_000_000, 1);
        line.add(1_005_000_000, 1_025_000_000, 2);
        assert_eq!(line.spent_ns, [20_000_000, 25_000_000, 10_000_000]);
        assert_eq!(line.bars(3), "▇█▄");
        line.add(995_000_000, 1_001_000_000, 1);
        assert_eq!(
            (line.start_ns, &*line.spent_ns),
            (990_000_000, &[5_000_000, 21_000_000, 25_000_000, 10_000_000][..])
        );
        assert_eq!(Timeline::default().bars(9), "");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_it_stays_small(spans in prop::collection::vec((0u64..1 << 40, 1u64..1 << 38, 1u64..50), 1..40)) {
            let mut line = Timeline::default();
            let mut sum = 0;
            // The first piece need not be the first in time, and no piece is before zero.
            for (from, length, weight) in spans {
                let from = from + (1 << 50);
                line.add(from, from + length, weight);
                sum += length * weight;
            }
            prop_assert_eq!(line.spent_ns.iter().sum::<u64>(), sum);
            prop_assert!(line.spent_ns.len() <= PIECES && line.bars(16).chars().count() <= 16);
        }

        #[test]
        fn no_times_panic(spans in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>()), 0..9)) {
            let mut line = Timeline::default();
            spans.into_iter().for_each(|(from, to, weight)| line.add(from, to, weight));
            line.bars(16);
        }
    }
}
