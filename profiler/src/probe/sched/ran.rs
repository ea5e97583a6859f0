//! Who ran while others waited for a CPU: by the samples of each CPU that the kernel keeps of the last seconds.

use profiler_common::{
    cpu::Seen,
    sched::{Interval, Iteration},
};

use crate::{
    model::{stack::comm, wait::RanInstead},
    probe::sched::{long_wait::who_ran, maps::SchedMaps},
    process::clock::Clock,
};

/// For how long a look is good enough: records are taken in at about this pace.
const FRESH_NS: u64 = 50_000_000;
/// An iteration is asked about if the loop waited for a CPU in one part in so many of it; so many are kept.
const STARVED_PART: u64 = 4;
const MAX_BESIDE: usize = 5;

/// The last look, and when it was, ns.
#[derive(Default)]
pub struct RanLately(Option<(u64, Vec<Vec<Seen>>)>);

impl RanLately {
    /// Who ran while a thread waited for a CPU for `least_ns` or more: by samples of that CPU; if there are none of the time, the
    /// thread that it was preempted for.
    pub fn instead(
        &mut self,
        interval: &Interval,
        least_ns: u64,
        clock: &Clock,
        maps: &dyn SchedMaps,
    ) -> Vec<RanInstead> {
        let waited_ns = interval.end_ns.saturating_sub(interval.woken_ns);
        if waited_ns < least_ns {
            return Vec::new();
        }
        let seen = self.look(clock, maps).get(interval.cpu as usize).map_or(&[][..], Vec::as_slice);
        let found = who_ran(seen, interval.tid, interval.woken_ns..interval.end_ns, waited_ns);
        if found.is_empty() && interval.instead_tid != 0 {
            let name = comm(&interval.instead_comm);
            return vec![RanInstead { tid: interval.instead_tid, name, ns: waited_ns }];
        }
        found
    }

    /// Who ran on any CPU during an iteration in which the loop was without one for long.
    pub fn beside(&mut self, iteration: &Iteration, clock: &Clock, maps: &dyn SchedMaps) -> Vec<RanInstead> {
        let length_ns = iteration.end_ns.saturating_sub(iteration.start_ns);
        if iteration.run_queue_ns < length_ns / STARVED_PART || iteration.run_queue_ns == 0 {
            return Vec::new();
        }
        let seen = self.look(clock, maps).concat();
        let during = iteration.start_ns..iteration.end_ns;
        let mut found = who_ran(&seen, iteration.tid, during, iteration.run_queue_ns);
        found.truncate(MAX_BESIDE);
        found
    }

    /// Samples of each CPU.
    fn look(&mut self, clock: &Clock, maps: &dyn SchedMaps) -> &[Vec<Seen>] {
        let now_ns = clock.now_ns();
        let seen = match self.0.take() {
            Some((asked_ns, seen)) if now_ns.saturating_sub(asked_ns) < FRESH_NS => (asked_ns, seen),
            _ => (now_ns, maps.ran()),
        };
        &self.0.insert(seen).1
    }
}
