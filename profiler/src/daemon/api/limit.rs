//! How many requests are answered: more are refused, so that nobody makes the profiler a burden.

use std::time::Instant;

/// Fills at a rate, and is emptied by requests.
#[derive(Debug)]
pub struct Bucket {
    most: f64,
    per_s: f64,
    left: f64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    pub fn new(most: f64, per_s: f64, now: Instant) -> Bucket {
        Bucket { most, per_s, left: most, at: now }
    }

    /// Whether one more request is answered.
    pub fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * self.per_s).min(self.most);
        self.at = now;
        let is_left = self.left >= 1.0;
        if is_left {
            self.left -= 1.0;
        }
        is_left
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn so_many_at_once_and_then_so_many_a_second() {
        let start = Instant::now();
        let mut bucket = Bucket::new(5.0, 2.0, start);
        assert_eq!((0..10).filter(|_| bucket.take(start)).count(), 5);
        let later = start + Duration::from_secs(1);
        assert_eq!((0..10).filter(|_| bucket.take(later)).count(), 2);
        let much_later = start + Duration::from_secs(100);
        assert_eq!((0..10).filter(|_| bucket.take(much_later)).count(), 5);
    }
}
