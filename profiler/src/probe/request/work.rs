//! What threads did while they worked at requests: the stacks of their CPU samples, and of their long waits, by request.

use std::collections::{BTreeMap, VecDeque};

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    model::{cause::WaitCause, request::WorkStack, stack::StackId},
    probe::{
        record::Record,
        request::spans::{Joined, Span},
    },
};

/// Moments kept: the latest ones, 40 bytes each.
const MAX_MOMENTS: usize = 100_000;
/// Stacks kept of a route, the heaviest of those on a CPU and of those of each cause.
const MAX_STACKS: usize = 200;

/// A thread at a moment: it was on a CPU, or blocked there.
#[derive(Clone, Copy, Debug)]
struct Moment {
    pid: u32,
    tid: u32,
    time_ns: u64,
    cause: Option<WaitCause>,
    stack: StackId,
    /// Samples, or ns.
    weight: u64,
}

/// The latest moments of processes that answer requests.
#[derive(Debug, Default)]
pub struct Moments {
    latest: VecDeque<Moment>,
    serving: FxHashSet<u32>,
}

/// The stacks of requests.
#[derive(Debug, Default)]
pub struct Work {
    /// By peer and route of [`Span`].
    routes: BTreeMap<(u32, u32), Stacks>,
    /// Of single requests: by process, thread and when they began.
    single: FxHashMap<(u32, u32, u64), Stacks>,
}

/// Weights, of requests whose threads stayed with them all the time, and of the others.
#[derive(Debug, Default)]
struct Stacks {
    stayed: BTreeMap<(Option<WaitCause>, StackId), u64>,
    others: BTreeMap<(Option<WaitCause>, StackId), u64>,
}

impl Moments {
    /// A process answers requests.
    pub fn serves(&mut self, pid: u32) {
        self.serving.insert(pid);
    }

    /// Processes have ended.
    pub fn ended(&mut self, mut alive: impl FnMut(u32) -> bool) {
        self.serving.retain(|&pid| alive(pid));
    }

    /// Takes in what a record tells of a thread. `stack` is the record's own, `known` the stack behind an id.
    pub fn take(
        &mut self,
        record: &Record,
        stack: Option<StackId>,
        known: impl FnOnce(u64) -> Option<StackId>,
    ) {
        let moment = match record {
            Record::Cpu(raw) => {
                let of = &raw.header;
                let (pid, tid, time_ns) = (of.pid, of.tid, of.time_ns);
                stack.map(|stack| Moment { pid, tid, time_ns, cause: None, stack, weight: 1 })
            }
            Record::Interval(of) if self.serving.contains(&of.pid) => {
                let (pid, tid, time_ns) = (of.pid, of.tid, of.start_ns);
                let weight = of.woken_ns.saturating_sub(of.start_ns);
                let cause = WaitCause::from_number(of.cause).filter(|_| weight > 0);
                let stack = cause.and_then(|_| known(of.stack));
                stack.map(|stack| Moment { pid, tid, time_ns, cause, stack, weight })
            }
            _ => None,
        };
        let Some(moment) = moment.filter(|of| self.serving.contains(&of.pid)) else { return };
        if self.latest.len() >= MAX_MOMENTS {
            self.latest.pop_front();
        }
        self.latest.push_back(moment);
    }

    /// By the requests that threads worked at. `single` are those whose own stacks are wanted.
    pub fn by_request(&self, joined: &Joined, single: &FxHashSet<(u32, u32, u64)>) -> Work {
        let mut work = Work::default();
        for of in &self.latest {
            let Some(Span { peer, route, began_ns, stays: Some(stays), .. }) =
                joined.at_work(of.pid, of.tid, of.time_ns)
            else {
                continue;
            };
            let add = |stacks: &mut Stacks| {
                let side = if *stays { &mut stacks.stayed } else { &mut stacks.others };
                *side.entry((of.cause, of.stack)).or_default() += of.weight;
            };
            add(work.routes.entry((*peer, *route)).or_default());
            let key = (of.pid, of.tid, *began_ns);
            if single.contains(&key) {
                add(work.single.entry(key).or_default());
            }
        }
        work
    }
}

impl Work {
    /// The stacks of a route, heaviest first; where its tasks wander from thread to thread, of those only that stayed.
    pub fn of_route(&self, peer: u32, route: u32, wander: bool) -> Vec<WorkStack> {
        self.routes.get(&(peer, route)).map_or_else(Vec::new, |of| of.heaviest(wander))
    }

    /// Those of one request.
    pub fn of_one(&self, pid: u32, tid: u32, began_ns: u64) -> Vec<WorkStack> {
        self.single.get(&(pid, tid, began_ns)).map_or_else(Vec::new, |of| of.heaviest(false))
    }
}

impl Stacks {
    fn heaviest(&self, stayed_only: bool) -> Vec<WorkStack> {
        let mut sums = self.stayed.clone();
        for (key, weight) in self.others.iter().filter(|_| !stayed_only) {
            *sums.entry(*key).or_default() += weight;
        }
        let stack = |((cause, stack), weight)| WorkStack { cause, stack, weight };
        let mut stacks: Vec<WorkStack> = sums.into_iter().map(stack).collect();
        stacks.sort_by_key(|of| (of.cause, std::cmp::Reverse(of.weight), of.stack));
        let by_cause = stacks.chunk_by(|a, b| a.cause == b.cause);
        by_cause.flat_map(|of| of.iter().take(MAX_STACKS)).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use profiler_common::{cpu::SampleHeader, sched::Interval};

    use super::*;
    use crate::probe::{cpu::records::RawSample, request::spans::Spans};

    fn sample(tid: u32, time_ns: u64) -> Record {
        let mut raw = RawSample {
            header: SampleHeader::default(),
            kernel: Vec::new(),
            user: Vec::new(),
            entries: Vec::new(),
        };
        (raw.header.pid, raw.header.tid, raw.header.time_ns) = (1, tid, time_ns);
        Record::Cpu(raw)
    }

    fn span(route: u32, began_ns: u64, answered_ns: u64, stays: Option<bool>) -> Span {
        Span { pid: 1, tid: 2, peer: 0, route, asks: false, stays, began_ns, read_ns: began_ns, answered_ns }
    }

    fn stack(number: u64) -> Option<StackId> {
        Some(StackId(number as u32))
    }

    #[test]
    fn a_sample_belongs_to_the_request_that_its_thread_worked_at() {
        let mut moments = Moments::default();
        moments.take(&sample(2, 15), stack(9), stack);
        moments.serves(1);
        for (tid, time_ns, number) in [(2, 15, 1), (2, 16, 1), (2, 25, 2), (2, 55, 3), (3, 15, 4)] {
            moments.take(&sample(tid, time_ns), stack(number), stack);
        }
        let wait = Interval {
            pid: 1,
            tid: 2,
            cause: WaitCause::Disk as u32,
            start_ns: 52,
            woken_ns: 58,
            end_ns: 59,
            stack: 7,
            ..Interval::default()
        };
        moments.take(&Record::Interval(wait), None, stack);
        let mut spans = Spans::default();
        for it in [span(5, 10, 20, Some(true)), span(6, 50, 60, Some(false)), span(6, 70, 80, None)] {
            spans.add(it);
        }
        let work = moments.by_request(&spans.joined(), &FxHashSet::from_iter([(1, 2, 10)]));
        let told =
            |of: Vec<WorkStack>| of.iter().map(|of| (of.cause, of.stack.0, of.weight)).collect::<Vec<_>>();
        assert_eq!(
            told(work.of_route(0, 5, false)),
            [(None, 1, 2)],
            "before it served and another thread's are none of it"
        );
        assert_eq!(told(work.of_route(0, 6, false)), [(None, 3, 1), (Some(WaitCause::Disk), 7, 6)]);
        assert_eq!(told(work.of_route(0, 6, true)), [], "it did not stay");
        assert_eq!(told(work.of_one(1, 2, 10)), [(None, 1, 2)]);
        assert_eq!(told(work.of_one(1, 2, 50)), [], "nobody wants it");
    }

    #[test]
    fn many_stacks_of_a_cpu_leave_room_for_waits() {
        let mut stacks = Stacks::default();
        for number in 0..2 * MAX_STACKS as u32 {
            stacks.stayed.insert((None, StackId(number)), number.into());
        }
        stacks.stayed.insert((Some(WaitCause::Disk), StackId(7)), 5);
        let kept = stacks.heaviest(true);
        assert_eq!((kept.len(), kept[0].weight), (MAX_STACKS + 1, 2 * MAX_STACKS as u64 - 1));
        assert_eq!(kept[MAX_STACKS].cause, Some(WaitCause::Disk));
    }

    #[test]
    fn moments_have_a_bound_and_ended_processes_are_forgotten() {
        let mut moments = Moments::default();
        moments.serves(1);
        (0..MAX_MOMENTS as u64 + 5).for_each(|time_ns| moments.take(&sample(2, time_ns), stack(1), stack));
        assert_eq!((moments.latest.len(), moments.latest[0].time_ns), (MAX_MOMENTS, 5));
        moments.ended(|_| false);
        moments.take(&sample(2, 0), stack(1), stack);
        assert_eq!(moments.latest[MAX_MOMENTS - 1].time_ns, MAX_MOMENTS as u64 + 4);
    }
}
