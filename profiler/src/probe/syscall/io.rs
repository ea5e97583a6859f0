//! What was done with descriptors, by what they are.

use std::collections::{BTreeMap, BTreeSet};

use profiler_common::syscall::{IoKey, IoStats, SIZES};

use crate::model::syscall::ObjectIo;

/// Objects listed by themselves; more are added up.
const MAX_OBJECTS: usize = 10_000;

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

pub fn add_io(
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
pub fn median_bytes(sizes: &[u64; SIZES]) -> u64 {
    let half = sizes.iter().sum::<u64>().div_ceil(2);
    let mut seen = 0;
    let class = sizes.iter().position(|n| {
        seen += n;
        seen >= half
    });
    1 << class.unwrap_or(0)
}
