//! The system-call probe's half of a live run: takes its counts out of the kernel before they overflow, finds out
//! what descriptors are while they are open, and keeps the slowest calls.

pub mod maps;
pub mod records;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Result;
use profiler_common::{
    histogram::Histogram,
    syscall::{
        CallKey, CallStats, CallTimeKey, IoKey, IoRecord, IoStats, Majority, Name, ObjectKind, SIZES,
        SlowCall, WaitsKey,
    },
};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    detect::{
        chatty::{self, Talk},
        storm::{Rates, Storms},
    },
    model::{
        abi,
        distribution::Summary,
        stack::{StackId, Tables, ThreadKey},
        syscall::{self, CallCount, KindWaits, ObjectIo, SlowByPart, WaitKind},
    },
    probe::syscall::maps::CallMaps,
    process::{clock::monotonic_ns, objects, redact::Redact, target::comm},
};

/// How often the kernel's counts are taken: far more often than a 32-bit count can overflow.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Slow calls kept.
const MAX_SLOW: usize = 200;
/// From which length on calls are told one by one at first, and at least, ns.
const SLOW_NS: (u64, u64) = (1_000_000, 100_000);
/// As many slow calls as should be told between two looks.
const SLOW_WANTED: u64 = 200;
/// Objects listed by themselves; more are added up.
const MAX_OBJECTS: usize = 10_000;
/// Names of open descriptors kept, at most; twice what the kernel keeps.
const MAX_NAMES: usize = 32_768;
/// Processes and system calls counted by themselves; what ended processes did beyond is added up.
const MAX_KEYS: usize = 262_144;
/// Processes, kinds and peers that waits are told by; of the others they are added up.
const MAX_WAITS: usize = 65_536;
/// Descriptors looked up in /proc between two looks: each may read long tables.
const MAX_LOOKUPS: u32 = 2_000;

/// Time in calls by stack since this was last asked: whose, at which stack if it was taken, in which call, ns.
pub type CallSample = (ThreadKey, Option<StackId>, u32, u64);

/// Everything the system-call probe has told.
pub struct CallCollector {
    maps: CallMaps,
    proc_root: PathBuf,
    redact: Redact,
    counts: BTreeMap<CallKey, Count>,
    errors: BTreeMap<CallKey, BTreeMap<u32, u64>>,
    errors_taken: FxHashMap<(CallKey, u32), u64>,
    waits: BTreeMap<WaitsKey, Waits>,
    /// Stacks by the kernel programs' ids.
    stacks: FxHashMap<u64, StackId>,
    /// What descriptors were when they were first used.
    names: FxHashMap<(IoKey, u64), Named>,
    /// The last of each of them, with when that was, ns.
    latest: FxHashMap<IoKey, (u64, String)>,
    objects: BTreeMap<(u32, String), Object>,
    objects_unlisted: u64,
    time_taken: FxHashMap<CallTimeKey, u64>,
    slow: BTreeMap<(u64, u64), syscall::SlowCall>,
    slow_by_part: SlowByPart,
    slow_told: u64,
    slow_ns: u64,
    interval: syscall::Interval,
    storms: Storms,
    last_look: Instant,
    lookups: u32,
}

/// What was found out about a descriptor.
#[derive(Clone, Debug)]
struct Named {
    object: String,
    serves: bool,
}

/// Buckets of a kernel histogram, brought to 64 bits.
#[derive(Clone, Debug, Default)]
struct Lengths {
    /// By bucket: all, and what the kernel had when last looked at.
    counts: BTreeMap<u16, (u64, u32)>,
    max_ns: u64,
}

impl Lengths {
    /// Takes in what has been counted since the last time; returns how many.
    fn take(&mut self, kernel: &Histogram) -> u64 {
        let mut new = 0;
        for (bucket, &count) in (0u16..).zip(&kernel.counts).filter(|(_, count)| **count != 0) {
            let (all, last) = self.counts.entry(bucket).or_default();
            let more = u64::from(count.wrapping_sub(*last));
            (*all, *last) = (*all + more, count);
            new += more;
        }
        self.max_ns = self.max_ns.max(kernel.max_ns);
        new
    }

    /// The kernel's histogram is gone: a later one with the same key begins at nothing.
    fn end(&mut self) {
        self.counts.values_mut().for_each(|(_, last)| *last = 0);
    }

    fn summary(&self, sum_ns: u64) -> Summary {
        let counts = self.counts.iter().map(|(&bucket, &(n, _))| (usize::from(bucket), n));
        Summary::from_buckets(counts, sum_ns, self.max_ns)
    }
}

/// Sums over all calls, ns and numbers.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    ns: u64,
    blocked_ns: u64,
    run_queue_ns: u64,
    unfinished: u64,
}

impl Sums {
    fn plus(self, other: Sums) -> Sums {
        Sums {
            ns: self.ns + other.ns,
            blocked_ns: self.blocked_ns + other.blocked_ns,
            run_queue_ns: self.run_queue_ns + other.run_queue_ns,
            unfinished: self.unfinished + other.unfinished,
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Count {
    lengths: Lengths,
    /// Of processes that have ended, and so far of the one that lives.
    sums: (Sums, Sums),
}

#[derive(Clone, Debug, Default)]
struct Waits {
    lengths: Lengths,
    sums: (u64, u64),
    most: Majority,
}

#[derive(Clone, Debug, Default)]
struct Object {
    io: ObjectIo,
    descriptors: BTreeSet<(u32, u64)>,
    sizes: [u64; SIZES],
    stats: IoStats,
    serves: bool,
}

impl CallCollector {
    /// Has the kernel programs tell slow calls from now on. They cannot know which ports the processes `pids` listen at
    /// already.
    pub fn new(
        mut maps: CallMaps,
        pids: &[u32],
        proc_root: &Path,
        redact: Redact,
        storms: Storms,
    ) -> Result<CallCollector> {
        maps.set_slow(SLOW_NS.0)?;
        for &pid in pids {
            objects::listens(proc_root, pid).into_iter().for_each(|port| maps.listens(pid, port));
        }
        Ok(CallCollector {
            maps,
            proc_root: proc_root.to_owned(),
            redact,
            counts: BTreeMap::new(),
            errors: BTreeMap::new(),
            errors_taken: FxHashMap::default(),
            waits: BTreeMap::new(),
            stacks: FxHashMap::default(),
            names: FxHashMap::default(),
            latest: FxHashMap::default(),
            objects: BTreeMap::new(),
            objects_unlisted: 0,
            time_taken: FxHashMap::default(),
            slow: BTreeMap::new(),
            slow_by_part: SlowByPart::new(monotonic_ns()),
            slow_told: 0,
            slow_ns: SLOW_NS.0,
            interval: syscall::Interval::default(),
            storms,
            last_look: Instant::now(),
            lookups: 0,
        })
    }

    /// A stack of the kernel programs.
    pub fn stack(&mut self, id: u64, stack: StackId) {
        self.stacks.insert(id, stack);
    }

    /// A slow call.
    pub fn slow_call(&mut self, call: &SlowCall, tables: &mut Tables) {
        self.slow_told += 1;
        let duration_ns = call.end_ns.saturating_sub(call.start_ns);
        let among_slowest = self.slow.len() < MAX_SLOW
            || self.slow.keys().next().is_some_and(|(least, _)| *least < duration_ns);
        let of_interval =
            self.interval.slowest.as_ref().is_none_or(|slowest| slowest.duration_ns < duration_ns);
        let of_part = self.slow_by_part.wants(call.end_ns, duration_ns);
        if !among_slowest && !of_interval && !of_part {
            return;
        }
        let thread = ThreadKey { pid: call.pid, tid: call.tid };
        self.name(thread, tables);
        let allowed = self.lookups < MAX_LOOKUPS;
        self.lookups += 1;
        let slow = syscall::SlowCall {
            thread,
            process: tables.process_name(thread).to_owned(),
            syscall: abi::name(call.number as i32),
            kind: WaitKind::from_number(call.wait_kind).unwrap_or(WaitKind::Other),
            start_ns: call.start_ns,
            duration_ns,
            blocked_ns: call.blocked_ns,
            run_queue_ns: call.run_queue_ns,
            result: records::result(call.result),
            arguments: records::arguments(call, &self.redact, |descriptor| {
                // What is known of it from the time of the call, or else what it is now.
                let key = IoKey { pid: call.pid, descriptor: descriptor as u32 };
                let known = self.latest.get(&key).filter(|(first_ns, _)| *first_ns <= call.start_ns);
                known.map(|(_, object)| object.clone()).or_else(|| {
                    let now = allowed.then(|| objects::descriptor(&self.proc_root, call.pid, descriptor));
                    now.flatten().map(|object| self.redact.object(&object))
                })
            }),
            stack: self.stacks.get(&call.stack).copied(),
        };
        if of_interval {
            self.interval.slowest = Some(slow.clone());
        }
        if of_part {
            self.slow_by_part.add(slow.clone());
        }
        self.slow.insert((duration_ns, call.start_ns), slow);
        if self.slow.len() > MAX_SLOW {
            self.slow.pop_first();
        }
    }

    /// What happened since this was last asked.
    pub fn interval(&mut self) -> Result<syscall::Interval> {
        self.take()?;
        Ok(std::mem::take(&mut self.interval))
    }

    /// A descriptor is used for the first time, or has been closed.
    pub fn io(&mut self, record: &IoRecord) {
        if record.closed != 0 {
            self.end_io(record.stats.key, &record.stats);
        } else {
            self.identify(record.stats.key, &record.stats, &record.name);
        }
    }

    /// Finds out what a descriptor is, unless that is known; in /proc if its `name` does not tell.
    fn identify(&mut self, key: IoKey, stats: &IoStats, name: &Name) {
        if self.names.contains_key(&(key, stats.first_ns)) {
            return;
        }
        if self.names.len() >= MAX_NAMES {
            self.forget_closed();
        }
        let told = records::object(&stats.on, name);
        let allowed = self.lookups < MAX_LOOKUPS;
        let proc = self.proc_root.as_path();
        if told.is_none() || stats.on.kind == ObjectKind::Net as u32 {
            self.lookups += 1;
        }
        let now = || allowed.then(|| objects::descriptor(proc, key.pid, key.descriptor.into()))?;
        let Some(object) = told.or_else(now) else { return };
        // If the process has ended, who reads first answers.
        let lives = || proc.join(key.pid.to_string()).exists();
        let serves = stats.listens != 0
            || (allowed && objects::serves(proc, key.pid, &object))
            || (stats.first_wrote == 0 && !lives());
        let named = Named { object: self.redact.object(&object), serves };
        self.latest.insert(key, (stats.first_ns, named.object.clone()));
        self.names.insert((key, stats.first_ns), named);
    }

    /// Forgets the names of descriptors whose end was lost.
    fn forget_closed(&mut self) {
        let open: FxHashSet<(IoKey, u64)> =
            self.maps.io().map(|(key, stats)| (key, stats.first_ns)).collect();
        self.names.retain(|key, _| open.contains(key));
        self.latest.retain(|key, (first_ns, _)| open.contains(&(*key, *first_ns)));
    }

    /// Adds what was done with a descriptor to what it was.
    fn end_io(&mut self, key: IoKey, stats: &IoStats) {
        let named = self.names.remove(&(key, stats.first_ns));
        if self.latest.get(&key).is_some_and(|(first_ns, _)| *first_ns == stats.first_ns) {
            self.latest.remove(&key);
        }
        add_io(&mut self.objects, &mut self.objects_unlisted, key, stats, named.as_ref());
    }

    /// Takes the kernel's counts, once a second.
    pub fn look(&mut self) -> Result<()> {
        if self.last_look.elapsed() < LOOK_INTERVAL {
            return Ok(());
        }
        self.take()
    }

    /// Takes the kernel's counts.
    pub fn take(&mut self) -> Result<()> {
        let passed = self.last_look.elapsed();
        self.last_look = Instant::now();
        self.lookups = 0;
        let mut alive: FxHashMap<u32, bool> = FxHashMap::default();
        let proc_root = self.proc_root.clone();
        let mut is_alive =
            |pid: u32| *alive.entry(pid).or_insert_with(|| proc_root.join(pid.to_string()).exists());

        let mut rates: BTreeMap<CallKey, Rates> = BTreeMap::new();
        let mut gone = Vec::new();
        // Asked before counting: what has ended by then is counted to its end.
        let calls: Vec<(CallKey, bool)> = self
            .maps
            .calls()
            .map(|(key, _)| key)
            .collect::<Vec<_>>()
            .into_iter()
            .map(|key| (key, is_alive(key.pid)))
            .collect();
        let ended: FxHashSet<CallKey> =
            calls.iter().filter(|(_, alive)| !alive).map(|(key, _)| *key).collect();
        for (key, stats) in self.maps.calls() {
            let to = if self.counts.len() >= MAX_KEYS && !self.counts.contains_key(&key) {
                CallKey { pid: 0, tid: 0, ..key }
            } else {
                key
            };
            let count = self.counts.entry(to).or_default();
            let calls = count.take(&stats);
            self.interval.calls += calls;
            if calls > 0 {
                rates.insert(key, Rates { calls, failed: Vec::new() });
            }
            if ended.contains(&key) || to != key {
                count.end();
                gone.push(key);
            }
        }
        gone.iter().for_each(|key| self.maps.forget_call(key));

        let mut gone = Vec::new();
        for (key, n) in self.maps.errors() {
            let taken = self.errors_taken.entry((key.call, key.errno)).or_default();
            let more = n.wrapping_sub(*taken);
            *taken = n;
            if more > 0 {
                self.interval.failed += more;
                *self.errors.entry(key.call).or_default().entry(key.errno).or_default() += more;
                if let Some(rates) = rates.get_mut(&key.call) {
                    rates.failed.push((key.errno, more));
                }
            }
            if ended.contains(&key.call) {
                gone.push(key);
            }
        }
        for key in gone {
            self.errors_taken.remove(&(key.call, key.errno));
            self.maps.forget_error(&key);
        }
        self.storms.look(passed, rates);

        let mut gone = Vec::new();
        for (key, stats) in self.maps.waits() {
            let to = if self.waits.len() >= MAX_WAITS && !self.waits.contains_key(&key) {
                WaitsKey { kind: key.kind, ..WaitsKey::default() }
            } else {
                key
            };
            let waits = self.waits.entry(to).or_default();
            waits.lengths.take(&stats.lengths);
            waits.sums.1 = stats.lengths.sum_ns;
            waits.most = stats.most;
            if to != key || !is_alive(key.pid) {
                waits.lengths.end();
                waits.sums = (waits.sums.0 + waits.sums.1, 0);
                gone.push(key);
            }
        }
        gone.iter().for_each(|key| self.maps.forget_waits(key));

        let (mut open, mut gone) = (Vec::new(), Vec::new());
        for (key, stats) in self.maps.io() {
            if is_alive(key.pid) { open.push((key, stats)) } else { gone.push((key, stats)) }
        }
        for (key, stats) in open {
            self.identify(key, &stats, &Name::EMPTY);
        }
        for (key, stats) in gone {
            self.end_io(key, &stats);
            self.maps.forget_io(&key);
        }
        // As many as one can read, and always the slowest.
        let told = std::mem::take(&mut self.slow_told);
        if told > SLOW_WANTED {
            self.slow_ns = self.slow_ns.saturating_mul(2);
        } else if told < SLOW_WANTED / 10 {
            self.slow_ns = (self.slow_ns / 2).max(SLOW_NS.1);
        }
        self.maps.set_slow(self.slow_ns)
    }

    /// Time in calls by stack since this was last asked.
    pub fn time(&mut self, tables: &mut Tables) -> Vec<CallSample> {
        let mut samples = Vec::new();
        let mut gone = Vec::new();
        for (key, ns) in self.maps.time() {
            let taken = self.time_taken.entry(key).or_default();
            let new = ns.saturating_sub(*taken);
            *taken = ns;
            if new > 0 {
                let thread = ThreadKey { pid: key.pid, tid: key.tid };
                samples.push((thread, self.stacks.get(&key.stack).copied(), key.number, new));
            } else if !self.proc_root.join(format!("{}/task/{}", key.pid, key.tid)).exists() {
                gone.push(key);
            }
        }
        for key in gone {
            self.time_taken.remove(&key);
            self.maps.forget_time(&key);
        }
        for (thread, ..) in &samples {
            self.name(*thread, tables);
        }
        samples
    }

    /// Everything so far.
    pub fn calls(&mut self, tables: &mut Tables) -> Result<syscall::Calls> {
        self.take()?;
        let counts: Vec<CallKey> = self.counts.keys().copied().collect();
        for key in counts {
            let tid = if key.tid == 0 { key.pid } else { key.tid };
            self.name(ThreadKey { pid: key.pid, tid }, tables);
        }
        let process = |pid: u32| match pid {
            0 => "(others)".to_owned(),
            pid => tables.process_name(ThreadKey { pid, tid: pid }).to_owned(),
        };
        let mut calls: Vec<CallCount> = self
            .counts
            .iter()
            .map(|(key, count)| {
                let sums = count.sums.0.plus(count.sums.1);
                let errors = self.errors.get(key).into_iter().flatten();
                let mut errors: Vec<(String, u64)> =
                    errors.map(|(&errno, &n)| (records::errno(errno), n)).collect();
                errors.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
                let thread = ThreadKey { pid: key.pid, tid: key.tid };
                CallCount {
                    thread,
                    process: process(key.pid),
                    thread_name: match key.tid {
                        0 => String::new(),
                        _ => tables.thread_name(thread).to_owned(),
                    },
                    syscall: abi::name(key.number as i32),
                    lengths: count.lengths.summary(sums.ns),
                    blocked_ns: sums.blocked_ns,
                    run_queue_ns: sums.run_queue_ns,
                    errors,
                    unfinished: sums.unfinished,
                }
            })
            .collect();
        calls.sort_by_key(|count| std::cmp::Reverse((count.lengths.sum_ns, count.lengths.count)));
        let mut waits: Vec<KindWaits> = self
            .waits
            .iter()
            .map(|(key, waits)| KindWaits {
                pid: key.pid,
                process: process(key.pid),
                kind: WaitKind::from_number(key.kind).unwrap_or(WaitKind::Other),
                peer: match (records::peer(key), key.serves) {
                    (peer, 0) if !peer.is_empty() => self.redact.text(&peer),
                    (peer, _) => peer,
                },
                lengths: waits.lengths.summary(waits.sums.0 + waits.sums.1),
                stack: self.stacks.get(&waits.most.stack).copied(),
            })
            .collect();
        waits.sort_by_key(|waits| std::cmp::Reverse(waits.lengths.sum_ns));

        // What is still open is added to a copy: it will be asked for again.
        let (mut objects, mut unlisted) = (self.objects.clone(), self.objects_unlisted);
        for (key, stats) in self.maps.io() {
            let named = self.names.get(&(key, stats.first_ns));
            add_io(&mut objects, &mut unlisted, key, &stats, named);
        }
        let mut talks = Vec::new();
        let mut listed = Vec::new();
        for ((pid, _), mut object) in objects {
            object.io.process = process(pid);
            object.io.descriptors = object.descriptors.len() as u64;
            object.io.median_bytes = median_bytes(&object.sizes);
            talks.push(Talk {
                thread: ThreadKey { pid, tid: object.stats.tid },
                io: object.io.clone(),
                is_file: object.stats.on.kind == ObjectKind::File as u32,
                serves: object.serves,
                span_ns: object.stats.last_ns.saturating_sub(object.stats.first_ns),
                stack: self.stacks.get(&object.stats.most.stack).copied(),
                stack_share: object.stats.most.lead as f64 / object.stats.votes.max(1) as f64,
                looked_at: object.stats.votes,
            });
            listed.push(object.io);
        }
        listed.sort_by_key(|io| std::cmp::Reverse((io.ns, io.calls)));
        Ok(syscall::Calls {
            calls,
            waits,
            objects: listed,
            objects_unlisted: unlisted,
            slow: self.slow.values().rev().cloned().collect(),
            slow_by_part: self.slow_by_part.clone(),
            chatty: chatty::find(talks),
            storms: self.storms.found(|key| (process(key.pid), abi::name(key.number as i32)), records::errno),
        })
    }

    /// Finds out a thread's name, and its process's, where no sample has told them.
    fn name(&self, thread: ThreadKey, tables: &mut Tables) {
        for of in [ThreadKey { tid: thread.pid, ..thread }, thread] {
            if !tables.threads.contains_key(&of)
                && let Some(name) = comm(&self.proc_root.join(format!("{}/task", of.pid)), of.tid)
            {
                tables.threads.insert(of, name);
            }
        }
    }
}

impl Count {
    /// Takes in what is new; returns how many calls.
    fn take(&mut self, stats: &CallStats) -> u64 {
        self.sums.1 = Sums {
            ns: stats.lengths.sum_ns,
            blocked_ns: stats.blocked_ns,
            run_queue_ns: stats.run_queue_ns,
            unfinished: stats.unfinished,
        };
        self.lengths.take(&stats.lengths)
    }

    fn end(&mut self) {
        self.sums = (self.sums.0.plus(self.sums.1), Sums::default());
        self.lengths.end();
    }
}

fn add_io(
    objects: &mut BTreeMap<(u32, String), Object>,
    unlisted: &mut u64,
    key: IoKey,
    stats: &IoStats,
    named: Option<&Named>,
) {
    let mut name =
        named.map_or_else(|| format!("descriptor {}", key.descriptor), |named| named.object.clone());
    let mut pid = key.pid;
    if objects.len() >= MAX_OBJECTS && !objects.contains_key(&(pid, name.clone())) {
        (pid, name) = (0, "(others)".to_owned());
        *unlisted += 1;
    }
    let object = objects.entry((pid, name.clone())).or_default();
    object.serves |= named.map_or(stats.first_wrote == 0, |named| named.serves);
    object.descriptors.insert((key.descriptor, stats.first_ns));
    if object.descriptors.len() > 1_000 {
        object.descriptors.pop_first();
    }
    let io = &mut object.io;
    (io.pid, io.object) = (pid, name);
    io.calls += stats.calls;
    io.bytes += stats.bytes;
    io.ns += stats.ns;
    io.blocked_ns += stats.blocked_ns;
    io.round_trips += stats.round_trips;
    io.round_trip_ns += stats.round_trip_ns;
    for (sum, &n) in object.sizes.iter_mut().zip(&stats.sizes) {
        *sum += u64::from(n);
    }
    let all = &mut object.stats;
    all.first_ns = if all.first_ns == 0 { stats.first_ns } else { all.first_ns.min(stats.first_ns) };
    all.last_ns = all.last_ns.max(stats.last_ns);
    all.most.vote(stats.most.stack, stats.most.lead);
    all.votes += stats.votes;
    (all.tid, all.on) = (stats.tid, stats.on);
}

/// Upper end of the size class that the median falls into, bytes.
fn median_bytes(sizes: &[u64; SIZES]) -> u64 {
    let half = sizes.iter().sum::<u64>().div_ceil(2);
    let mut seen = 0;
    let class = sizes.iter().position(|n| {
        seen += n;
        seen >= half
    });
    1 << class.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use profiler_common::histogram::BUCKETS;

    use super::*;

    #[test]
    fn counts_go_on_when_the_kernels_wrap_around_or_begin_again() {
        let mut lengths = Lengths::default();
        let mut kernel = Histogram { max_ns: 7, sum_ns: 0, counts: [0; BUCKETS] };
        kernel.counts[3] = u32::MAX - 1;
        assert_eq!(lengths.take(&kernel), u64::from(u32::MAX) - 1);
        kernel.counts[3] = 3;
        assert_eq!(lengths.take(&kernel), 5);
        lengths.end();
        assert_eq!(lengths.take(&kernel), 3);
        assert_eq!(lengths.summary(0).count, u64::from(u32::MAX) + 7);
    }

    #[test]
    fn half_of_the_sizes_are_no_larger() {
        let mut sizes = [0; SIZES];
        sizes[3] = 5;
        sizes[6] = 4;
        assert_eq!(median_bytes(&sizes), 8);
        sizes[6] = 6;
        assert_eq!(median_bytes(&sizes), 64);
    }
}
