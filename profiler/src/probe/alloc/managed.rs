//! When the heaps of language runtimes are looked at: of processes that grow, and seldom enough to cost little.

use crate::model::memory::{Growth, HeapSample, Limit, LimitKind, ManagedHeap};

/// A process that holds so much more than at its lowest has its heap looked at, bytes: less is no more than the young part of
/// a heap.
const GROWN_BYTES: u64 = 8 << 20;
/// Least time between two looks, ns.
const EVERY_NS: u64 = 10_000_000_000;
/// Looks take one part in so many of the time at most.
const MOST_OF_TIME: u64 = 100;
/// Two looks are compared if there is so much time between them, ns.
const APART_NS: u64 = 3_000_000_000;

/// Looks at one process's heap.
#[derive(Clone, Debug, Default)]
pub struct Looks {
    lowest_bytes: Option<u64>,
    first: Option<HeapSample>,
    last: Option<HeapSample>,
    limit_bytes: Option<u64>,
    next_ns: u64,
}

impl Looks {
    /// Whether the heap is to be looked at, now that the process holds this; at the end as soon as that tells anything.
    pub fn is_due(&mut self, growth: &Growth, at_end: bool) -> bool {
        let (held, now_ns) = (growth.held_bytes(), growth.time_ns);
        let lowest = self.lowest_bytes.map_or(held, |lowest| lowest.min(held));
        self.lowest_bytes = Some(lowest);
        let last_ns = self.last.as_ref().or(self.first.as_ref()).map_or(0, |sample| sample.time_ns);
        let due = if at_end { last_ns + APART_NS } else { self.next_ns };
        held >= lowest + GROWN_BYTES && now_ns >= due
    }

    /// Takes in a look, which took so long; `None` where nothing could be seen.
    pub fn add(&mut self, sample: Option<HeapSample>, limit_bytes: Option<u64>, now_ns: u64, took_ns: u64) {
        self.next_ns = now_ns + EVERY_NS.max(MOST_OF_TIME * took_ns);
        self.limit_bytes = limit_bytes.or(self.limit_bytes);
        match (&self.first, sample) {
            (_, None) => {}
            (None, sample) => self.first = sample,
            (Some(_), sample) => self.last = sample,
        }
    }

    /// What was seen, if it was seen twice.
    pub fn seen(&self) -> Option<ManagedHeap> {
        let (first, last) = self.first.clone().zip(self.last.clone())?;
        Some(ManagedHeap { first, last, limit_bytes: self.limit_bytes })
    }
}

/// Which of two limits is nearer: that of a heap, where it is the heap that grows, or another one.
pub fn nearest(heap: Option<&ManagedHeap>, other: Option<Limit>, growth: &[Growth]) -> Option<Limit> {
    let heap = heap.filter(|heap| heap.share_of(growth).is_some_and(|share| share >= 0.5));
    let own = heap.and_then(|heap| {
        Some(Limit {
            kind: LimitKind::Heap,
            limit_bytes: heap.limit_bytes?,
            used_bytes: heap.last.bytes as u64,
        })
    });
    own.into_iter().chain(other).min_by_key(Limit::left_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;
    const MB: u64 = 1 << 20;

    fn growth(s: u64, mb: u64) -> Growth {
        Growth { time_ns: s * S, anon_bytes: mb * MB, ..Growth::default() }
    }

    fn sample(s: u64, mb: u64) -> Option<HeapSample> {
        Some(HeapSample { time_ns: s * S, bytes: (mb * MB) as f64, ..HeapSample::default() })
    }

    #[test]
    fn a_heap_is_looked_at_when_it_has_grown_and_seldom() {
        let mut looks = Looks::default();
        assert!(!looks.is_due(&growth(1, 50), false) && !looks.is_due(&growth(2, 57), false), "too little");
        assert!(looks.is_due(&growth(3, 58), false));
        looks.add(sample(3, 40), None, 3 * S, S / 5);
        assert!(!looks.is_due(&growth(14, 90), false), "looks take a hundredth of the time");
        assert!(looks.is_due(&growth(14, 90), true), "but the last one tells what was gained");
        assert!(!looks.is_due(&growth(5, 90), true), "too soon to tell");
        assert_eq!(looks.seen(), None);
        looks.add(sample(23, 80), None, 23 * S, S / 10);
        assert!(looks.seen().is_some());
        looks.add(None, None, 43 * S, 0);
        assert!(looks.seen().is_some(), "a look that saw nothing takes nothing away");
    }

    #[test]
    fn the_heaps_own_limit_counts_where_the_heap_grows() {
        let machine = Limit { kind: LimitKind::Machine, limit_bytes: 900 * MB, used_bytes: 200 * MB };
        let mut looks = Looks::default();
        looks.add(sample(1, 40), Some(300 * MB), S, 0);
        looks.add(sample(11, 120), Some(300 * MB), 11 * S, 0);
        let grows = [growth(1, 60), growth(11, 150)];
        let heap = looks.seen();
        assert_eq!(nearest(heap.as_ref(), Some(machine.clone()), &grows).unwrap().kind, LimitKind::Heap);
        let elsewhere = [growth(1, 60), growth(11, 400)];
        assert_eq!(nearest(heap.as_ref(), Some(machine.clone()), &elsewhere), Some(machine));
    }
}
