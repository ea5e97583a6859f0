//! Values over time, with a bound.

use serde::{Deserialize, Serialize};

/// A series that keeps at most [`Series::CAPACITY`] points: when it is full, every second one goes. The first and the
/// last point are always there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series<T> {
    points: Vec<T>,
    /// Points offered so far.
    offered: u64,
    /// Of so many offered points one is kept.
    stride: u64,
}

impl<T> Default for Series<T> {
    fn default() -> Series<T> {
        Series { points: Vec::new(), offered: 0, stride: 1 }
    }
}

impl<T> Series<T> {
    /// Most points kept.
    pub const CAPACITY: usize = 256;

    /// Adds the newest point.
    pub fn push(&mut self, point: T) {
        // The newest before this one was kept only because it was the newest.
        if self.offered > 0 && !(self.offered - 1).is_multiple_of(self.stride) {
            self.points.pop();
        }
        if self.points.len() == Series::<T>::CAPACITY {
            let mut index = 0;
            self.points.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.stride *= 2;
        }
        self.points.push(point);
        self.offered += 1;
    }

    /// What was kept, oldest first.
    pub fn points(&self) -> &[T] {
        &self.points
    }

    /// The newest.
    pub fn last(&self) -> Option<&T> {
        self.points.last()
    }
}

impl<T> FromIterator<T> for Series<T> {
    fn from_iter<I: IntoIterator<Item = T>>(points: I) -> Series<T> {
        let mut series = Series::default();
        points.into_iter().for_each(|point| series.push(point));
        series
    }
}
