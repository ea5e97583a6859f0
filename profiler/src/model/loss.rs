//! What is missing, by reason.

pub use profiler_common::loss::Loss;
use serde::{Deserialize, Serialize};

/// Counts by reason, in samples unless the reason says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Losses([u64; Loss::ALL.len()]);

impl Losses {
    /// Counts `n` more.
    pub fn add(&mut self, loss: Loss, n: u64) {
        self.0[loss as usize] += n;
    }

    /// Sets a count that is kept elsewhere (in the kernel).
    pub fn set(&mut self, loss: Loss, n: u64) {
        self.0[loss as usize] = n;
    }

    /// The count for a reason.
    pub fn get(&self, loss: Loss) -> u64 {
        self.0[loss as usize]
    }

    /// Samples that are in no total.
    pub fn lost(&self) -> u64 {
        self.iter().filter(|(loss, _)| loss.loses_sample()).map(|(_, n)| n).sum()
    }

    /// Reasons that occurred, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (Loss, u64)> + '_ {
        Loss::ALL.into_iter().map(|loss| (loss, self.get(loss))).filter(|&(_, n)| n > 0)
    }
}
