//! How a target's memory grows, over all windows that its processes have lived.

use std::collections::VecDeque;

use super::{Engine, MAX_SERIES, TargetFacts};
use crate::{
    detect::leak::{self, Shape},
    metrics::MemoryTrend,
    model::{
        memory::{Footprint, Growth, Memory},
        report::Run,
    },
};

/// The last part of a life that is judged by itself, ns.
const RECENT_NS: u64 = 300_000_000_000;

impl Engine {
    /// Adds the window to what is known of the target's memory, and judges all of it.
    pub(super) fn memory_trend(
        &mut self,
        index: usize,
        facts: &TargetFacts,
        run: &Run,
    ) -> Option<MemoryTrend> {
        self.growth.retain(|(of, pid), _| *of != index || facts.pids.contains(pid));
        for process in &run.memory.as_ref()?.processes {
            let is_full = self.growth.len() >= MAX_SERIES && !self.growth.contains_key(&(index, process.pid));
            if !facts.pids.contains(&process.pid) || is_full {
                continue;
            }
            let known = self.growth.entry((index, process.pid)).or_default();
            known.add(process);
        }
        let of_target = self.growth.iter().filter(|((of, _), _)| *of == index);
        let (processes, recent): (Vec<Footprint>, Vec<Footprint>) =
            of_target.map(|(_, grown)| (grown.whole.clone(), grown.last_part())).unzip();
        // What has begun to grow not long ago does not yet show in its whole life.
        let judge = |processes: Vec<Footprint>| leak::processes(&Memory { processes, ..Memory::default() });
        let (recent, whole) = (judge(recent), judge(processes.clone()));
        let judged = recent.into_iter().zip(whole).map(|(recent, whole)| match recent.certainty() {
            Some(_) => recent,
            None => whole,
        });
        // What was seen for too short a time is not known to stand still.
        let judged = judged.zip(&processes).filter(|(trend, _)| trend.shape != Shape::TooShort);
        let each = judged.map(|(trend, process)| match trend.certainty() {
            Some(_) => {
                let bytes_per_s = trend.bytes_per_s.per_time;
                let left = process.limit.as_ref().map(|limit| limit.left_bytes() as f64);
                MemoryTrend { bytes_per_s, exhaustion_s: left.map(|left| left / bytes_per_s) }
            }
            None => MemoryTrend { bytes_per_s: 0.0, exhaustion_s: None },
        });
        each.reduce(|a, b| MemoryTrend {
            bytes_per_s: a.bytes_per_s + b.bytes_per_s,
            exhaustion_s: match (a.exhaustion_s, b.exhaustion_s) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            },
        })
    }
}

/// What is known of the memory of a process.
#[derive(Clone, Debug, Default)]
pub struct Grown {
    /// Over its whole life, in ever larger steps.
    whole: Footprint,
    /// In the last part of it, every point.
    recent: VecDeque<Growth>,
}

impl Grown {
    /// Adds a window.
    fn add(&mut self, window: &Footprint) {
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
    fn last_part(&self) -> Footprint {
        Footprint { growth: self.recent.iter().copied().collect(), ..self.whole.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
