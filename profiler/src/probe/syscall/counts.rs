//! Counts of the kernel programs, which wrap around and begin again, brought to 64 bits.

use std::collections::BTreeMap;

use profiler_common::{
    histogram::Histogram,
    syscall::{CallKey, CallStats, Majority, WaitsKey, WaitsStats},
};

use crate::{model::distribution::Summary, probe::ended};

/// Buckets of a kernel histogram, brought to 64 bits.
#[derive(Clone, Debug, Default)]
pub struct Lengths {
    /// By bucket, in order: all, and what the kernel had when last looked at. Most have few buckets, and there are many.
    counts: Vec<(u16, (u64, u32))>,
    pub max_ns: u64,
}

impl Lengths {
    /// Takes in what has been counted since the last time; returns how many.
    pub fn take(&mut self, kernel: &Histogram) -> u64 {
        let mut new = 0;
        for (bucket, &count) in (0u16..).zip(&kernel.counts).filter(|(_, count)| **count != 0) {
            let (all, last) = self.of(bucket);
            let more = u64::from(count.wrapping_sub(*last));
            (*all, *last) = (*all + more, count);
            new += more;
        }
        self.max_ns = self.max_ns.max(kernel.max_ns);
        new
    }

    fn of(&mut self, bucket: u16) -> &mut (u64, u32) {
        let at = self.counts.binary_search_by_key(&bucket, |(bucket, _)| *bucket).unwrap_or_else(|at| {
            self.counts.insert(at, (bucket, (0, 0)));
            at
        });
        &mut self.counts[at].1
    }

    /// The kernel's histogram is gone: a later one with the same key begins at nothing.
    pub fn end(&mut self) {
        self.counts.iter_mut().for_each(|(_, (_, last))| *last = 0);
    }

    /// Adds those of another one, whose histogram is gone.
    fn add(&mut self, ended: &Lengths) {
        ended.counts.iter().for_each(|&(bucket, (n, _))| self.of(bucket).0 += n);
        self.max_ns = self.max_ns.max(ended.max_ns);
    }

    pub fn summary(&self, sum_ns: u64) -> Summary {
        let counts = self.counts.iter().map(|&(bucket, (n, _))| (usize::from(bucket), n));
        Summary::from_buckets(counts, sum_ns, self.max_ns)
    }
}

/// Sums over all calls, ns and numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sums {
    pub ns: u64,
    pub blocked_ns: u64,
    pub run_queue_ns: u64,
    pub unfinished: u64,
}

impl Sums {
    pub fn plus(self, other: Sums) -> Sums {
        Sums {
            ns: self.ns + other.ns,
            blocked_ns: self.blocked_ns + other.blocked_ns,
            run_queue_ns: self.run_queue_ns + other.run_queue_ns,
            unfinished: self.unfinished + other.unfinished,
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Count {
    pub lengths: Lengths,
    /// Of processes that have ended, and so far of the one that lives.
    pub sums: (Sums, Sums),
    /// Nothing of it lives.
    pub ended: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Waits {
    pub lengths: Lengths,
    pub sums: (u64, u64),
    pub most: Majority,
    /// Nothing of it lives.
    pub ended: bool,
}

impl Count {
    /// Takes in what is new; returns how many calls.
    pub fn take(&mut self, stats: &CallStats) -> u64 {
        self.sums.1 = Sums {
            ns: stats.lengths.sum_ns,
            blocked_ns: stats.blocked_ns,
            run_queue_ns: stats.run_queue_ns,
            unfinished: stats.unfinished,
        };
        self.ended = false;
        self.lengths.take(&stats.lengths)
    }

    pub fn end(&mut self) {
        self.sums = (self.sums.0.plus(self.sums.1), Sums::default());
        self.lengths.end();
        self.ended = true;
    }

    /// Adds another one that has ended.
    pub fn add(&mut self, ended: &Count) {
        self.sums.0 = self.sums.0.plus(ended.sums.0);
        self.lengths.add(&ended.lengths);
    }
}

impl Waits {
    /// Takes in what has been counted since the last time.
    pub fn take(&mut self, stats: &WaitsStats) {
        self.lengths.take(&stats.lengths);
        self.sums.1 = stats.lengths.sum_ns;
        self.most = stats.most;
        self.ended = false;
    }

    pub fn end(&mut self) {
        self.sums = (self.sums.0 + self.sums.1, 0);
        self.lengths.end();
        self.ended = true;
    }

    /// Adds another one that has ended.
    pub fn add(&mut self, ended: &Waits) {
        self.sums.0 += ended.sums.0;
        self.lengths.add(&ended.lengths);
        self.most.vote(ended.most.stack, ended.most.lead);
    }
}

/// Adds up what ended processes did, but of those that did most. Process 0 stands for them.
pub fn add_up_ended(
    counts: &mut BTreeMap<CallKey, Count>,
    errors: &mut BTreeMap<CallKey, BTreeMap<u32, u64>>,
    waits: &mut BTreeMap<WaitsKey, Waits>,
) {
    let ended = counts.iter().filter(|(key, count)| count.ended && key.pid != 0);
    for key in ended::too_light(ended.map(|(key, count)| (*key, count.sums.0.ns)), ended::KEPT) {
        let others = CallKey { pid: 0, tid: 0, ..key };
        for (errno, n) in errors.remove(&key).into_iter().flatten() {
            *errors.entry(others).or_default().entry(errno).or_default() += n;
        }
        if let Some(count) = counts.remove(&key) {
            counts.entry(others).or_default().add(&count);
        }
    }
    let ended = waits.iter().filter(|(key, waits)| waits.ended && key.pid != 0);
    for key in ended::too_light(ended.map(|(key, waits)| (*key, waits.sums.0)), ended::KEPT) {
        if let Some(ended) = waits.remove(&key) {
            let others = WaitsKey { kind: key.kind, ..WaitsKey::default() };
            waits.entry(others).or_default().add(&ended);
        }
    }
}
