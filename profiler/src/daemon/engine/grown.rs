//! What is known of how a process grows.

use std::collections::VecDeque;

use crate::model::memory::{Footprint, Growth};

/// The last part of a life that is judged by itself, ns.
const RECENT_NS: u64 = 300_000_000_000;

/// What is known of the memory of a process.
#[derive(Clone, Debug, Default)]
pub struct Grown {
    /// Over its whole life, in ever larger steps.
    pub whole: Footprint,
    /// In the last part of it, every point.
    recent: VecDeque<Growth>,
}

impl Grown {
    /// Adds a window.
    pub fn add(&mut self, window: &Footprint) {
        let last = self.whole.growth.last().map_or(0, |last| last.time_ns);
        for point in window.growth.points().iter().filter(|point| point.time_ns > last) {
            self.whole.growth.push(*point);
            self.recent.push_back(*point);
            while self.recent.front().is_some_and(|first| first.time_ns + RECENT_NS < point.time_ns) {
                self.recent.pop_front();
            }
        }
        self.whole.limit.clone_from(&window.limit);
        self.whole.process.clone_from(&window.process);
        self.whole.pid = window.pid;
    }

    /// As if it had been watched for the last part of its life only.
    pub fn last_part(&self) -> Footprint {
        Footprint { growth: self.recent.iter().copied().collect(), ..self.whole.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{detect::leak, model::memory::Memory};

    /// A process that held so much in each second, seen in windows of 30 s.
    fn grown(held: impl Fn(u64) -> u64, seconds: u64) -> Grown {
        let mut grown = Grown::default();
        for window in 0..seconds / 30 {
            let point = |second: u64| Growth {
                time_ns: (second + 1) * 1_000_000_000,
                anon_bytes: held(second),
                ..Growth::default()
            };
            let growth = (window * 30..(window + 1) * 30).map(point).collect();
            grown.add(&Footprint { pid: 7, growth, ..Footprint::default() });
        }
        grown
    }

    #[test]
    fn what_has_begun_to_grow_shows_in_its_last_part() {
        let of = |process: Footprint| {
            let judged = leak::processes(&Memory { processes: vec![process], ..Memory::default() });
            judged[0].certainty().is_some()
        };
        let began = grown(|second| 100_000_000 + 1_000_000 * second.saturating_sub(36_000), 36_300);
        assert!(of(began.last_part()));
        let flat = grown(|_| 100_000_000, 1500);
        assert!(!of(flat.last_part()) && !of(flat.whole));
        let slow = grown(|second| 100_000_000 + 1000 * second, 7200);
        assert!(of(slow.whole), "what grows slowly shows in the whole");
    }
}
