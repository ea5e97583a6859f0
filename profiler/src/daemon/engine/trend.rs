//! How a target's memory grows, over all windows that its processes have lived.

use super::{Engine, MAX_SERIES, TargetFacts};
use crate::{
    detect::leak::{self, Shape},
    metrics::MemoryTrend,
    model::{
        memory::{Footprint, Memory},
        report::Run,
    },
};

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
