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
    let serves = named.map_or(stats.first_wrote == 0, |named| named.serves);
    objects.entry((key.pid, name)).or_default().add(Object::of(key, stats, serves));
}

impl Object {
    /// What was done with one descriptor.
    fn of(key: IoKey, stats: &IoStats, serves: bool) -> Object {
        let io = ObjectIo {
            calls: stats.calls,
            bytes: stats.bytes,
            ns: stats.ns,
            blocked_ns: stats.blocked_ns,
            round_trips: stats.round_trips,
            round_trip_ns: stats.round_trip_ns,
            ..ObjectIo::default()
        };
        let descriptors = [(key.descriptor, stats.first_ns)].into();
        Object { io, descriptors, sizes: stats.sizes.map(u64::from), stats: *stats, serves }
    }

    /// Adds what was done with another one, or with more descriptors.
    fn add(&mut self, other: Object) {
        self.serves |= other.serves;
        self.descriptors.extend(other.descriptors);
        while self.descriptors.len() > 1_000 {
            self.descriptors.pop_first();
        }
        let (io, more) = (&mut self.io, &other.io);
        io.calls += more.calls;
        io.bytes += more.bytes;
        io.ns += more.ns;
        io.blocked_ns += more.blocked_ns;
        io.round_trips += more.round_trips;
        io.round_trip_ns += more.round_trip_ns;
        self.sizes.iter_mut().zip(other.sizes).for_each(|(sum, n)| *sum += n);
        let (all, stats) = (&mut self.stats, &other.stats);
        all.first_ns = if all.first_ns == 0 { stats.first_ns } else { all.first_ns.min(stats.first_ns) };
        all.last_ns = all.last_ns.max(stats.last_ns);
        all.most.vote(stats.most.stack, stats.most.lead);
        all.votes += stats.votes;
        (all.tid, all.on) = (stats.tid, stats.on);
    }
}

/// Adds up objects that little was done with, if there are too many; returns how many. Process 0 stands for their owners.
pub fn add_up(objects: &mut BTreeMap<(u32, String), Object>) -> u64 {
    if objects.len() <= 2 * ended::KEPT {
        return 0;
    }
    let rows = objects.iter().filter(|((pid, _), _)| *pid != 0);
    let light = ended::too_light(rows.map(|(key, object)| (key.clone(), object.io.ns)), ended::KEPT);
    for key in &light {
        if let Some(object) = objects.remove(key) {
            objects.entry((0, "(others)".to_owned())).or_default().add(object);
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
