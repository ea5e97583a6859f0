//! What was done with descriptors, by what they are.

use std::collections::{BTreeMap, BTreeSet};

use profiler_common::syscall::{IoKey, IoStats, SIZES};

use crate::{model::syscall::ObjectIo, probe::ended};

/// What was found out about a descriptor.
#[derive(Clone, Debug)]
pub struct Named {
    pub object: String,
    pub serves: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Object {
    pub io: ObjectIo,
    pub descriptors: BTreeSet<(u32, u64)>,
    pub sizes: [u64; SIZES],
    pub stats: IoStats,
    pub serves: bool,
}

/// Adds what was done with a descriptor.
pub fn add_io(
    objects: &mut BTreeMap<(u32, String), Object>,
    key: IoKey,
    stats: &IoStats,
    named: Option<&Named>,
) {
    let name = named.map_or_else(|| format!("descriptor {}", key.descriptor), |named| named.object.clone());
    let object = objects.entry((key.pid, name.clone())).or_default();
    object.serves |= named.map_or(stats.first_wrote == 0, |named| named.serves);
    object.descriptors.insert((key.descriptor, stats.first_ns));
    let io = &mut object.io;
    (io.pid, io.object) = (key.pid, name);
    io.calls += stats.calls;
    io.bytes += stats.bytes;
    io.ns += stats.ns;
    io.blocked_ns += stats.blocked_ns;
    io.round_trips += stats.round_trips;
    io.round_trip_ns += stats.round_trip_ns;
    for (sum, &n) in object.sizes.iter_mut().zip(&stats.sizes) {
        *sum += u64::from(n);
    }
    object.takes(stats);
}

impl Object {
    /// Takes in when, where and what for.
    fn takes(&mut self, stats: &IoStats) {
        while self.descriptors.len() > 1_000 {
            self.descriptors.pop_first();
        }
        let all = &mut self.stats;
        all.first_ns = if all.first_ns == 0 { stats.first_ns } else { all.first_ns.min(stats.first_ns) };
        all.last_ns = all.last_ns.max(stats.last_ns);
        all.most.vote(stats.most.stack, stats.most.lead);
        all.votes += stats.votes;
        (all.tid, all.on) = (stats.tid, stats.on);
    }

    /// Adds another object.
    fn add(&mut self, mut other: Object) {
        self.descriptors.append(&mut other.descriptors);
        let (io, more) = (&mut self.io, &other.io);
        io.calls += more.calls;
        io.bytes += more.bytes;
        io.ns += more.ns;
        io.blocked_ns += more.blocked_ns;
        io.round_trips += more.round_trips;
        io.round_trip_ns += more.round_trip_ns;
        self.sizes.iter_mut().zip(&other.sizes).for_each(|(sum, n)| *sum += n);
        self.takes(&other.stats);
    }
}

/// Adds up objects that little was done with, if there are too many; returns how many. Process 0 stands for their owners.
pub fn add_up(objects: &mut BTreeMap<(u32, String), Object>) -> u64 {
    if objects.len() <= 2 * ended::KEPT {
        return 0;
    }
    let rows = objects.iter().filter(|((pid, _), _)| *pid != 0);
    let light = ended::too_light(rows.map(|(key, object)| (key.clone(), object.io.ns)));
    for key in &light {
        if let Some(object) = objects.remove(key) {
            let others = (0, "(others)".to_owned());
            let sum = objects.entry(others.clone()).or_default();
            (sum.io.pid, sum.io.object) = others;
            sum.add(object);
        }
    }
    light.len() as u64
}

/// Upper end of the size class that the median falls into, bytes.
pub fn median_bytes(sizes: &[u64; SIZES]) -> u64 {
    let half = sizes.iter().sum::<u64>().div_ceil(2);
    let mut seen = 0;
    let class = sizes.iter().position(|n| {
        seen += n;
        seen >= half
    });
    1 << class.unwrap_or(0)
}
