//! What is counted of exchanges that are looked at one by one: by what was asked.

use std::collections::BTreeMap;

use profiler_common::{
    histogram::bucket,
    request::{Connection, PeerStats},
    sched::Times,
};

use crate::{
    model::{distribution::Summary, timeline::Timeline},
    probe::request::protocol::{Operation, Protocol},
};

/// Routes of a peer that are told apart; of the others the sum.
const MAX_ROUTES: usize = 200;
/// What those are called.
pub const OTHERS: &str = "(others)";
/// Exchanges of each route that are kept whole: the first number while there is room, the second one then.
const KEPT: (usize, usize) = (256, 16);
/// Kinds of errors of a route that are told apart.
const MAX_ERRORS: usize = 32;

/// Room for routes of all peers, and for exchanges that are kept whole, 160 bytes each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub routes: usize,
    pub kept: usize,
}

impl Room {
    /// At first: 11 MB.
    pub const ALL: Room = Room { routes: 16_384, kept: 65_536 };

    /// What `told` leaves.
    pub fn beside<'a>(told: impl Iterator<Item = &'a Told>) -> Room {
        told.flat_map(|told| told.routes.values()).fold(Room::ALL, |room, route| Room {
            routes: room.routes.saturating_sub(1),
            kept: room.kept.saturating_sub(route.kept.len()),
        })
    }
}

/// Durations by bucket.
#[derive(Clone, Debug, Default)]
pub struct Durations {
    counts: BTreeMap<u16, u64>,
    sum_ns: u64,
    max_ns: u64,
}

impl Durations {
    /// Adds one that stands for `weight`.
    pub fn add(&mut self, ns: u64, weight: u64) {
        *self.counts.entry(bucket(ns) as u16).or_default() += weight;
        self.sum_ns = self.sum_ns.saturating_add(ns.saturating_mul(weight));
        self.max_ns = self.max_ns.max(ns);
    }

    pub fn summary(&self) -> Summary {
        let counts = self.counts.iter().map(|(&bucket, &n)| (usize::from(bucket), n));
        Summary::from_buckets(counts, self.sum_ns, self.max_ns)
    }
}

/// One exchange that is kept whole.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    pub pid: u32,
    pub tid: u32,
    pub began_ns: u64,
    pub answered_ns: u64,
    /// What the thread did in between, if that is known.
    pub times: Option<Times>,
}

/// What was asked.
#[derive(Clone, Debug, Default)]
pub struct RouteCount {
    pub first: Durations,
    pub whole: Durations,
    /// Of all answers, and of the largest one.
    pub answer_bytes: u64,
    pub largest_bytes: u64,
    pub errors: BTreeMap<String, u64>,
    /// Some of them, each as likely as any other.
    pub kept: Vec<Kept>,
    /// Its number among the peer's.
    pub number: u32,
    seen: u64,
}

/// What was found out about a peer's exchanges.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Its number among all peers.
    pub number: u32,
    pub protocol: Option<&'static Protocol>,
    pub looked_at: u64,
    pub batches: u64,
    pub encrypted: bool,
    pub decrypted: u64,
    pub routes: BTreeMap<String, RouteCount>,
    pub over_time: Timeline,
    random: u64,
}

impl Told {
    /// Nothing yet, of the peer of that number.
    pub fn new(number: u32) -> Told {
        Told { number, ..Told::default() }
    }

    /// Takes in an exchange; returns the number of what was asked.
    pub fn add(
        &mut self,
        of: &Connection,
        operation: Option<&Operation>,
        kept: Kept,
        room: &mut Room,
    ) -> Option<u32> {
        self.looked_at += 1;
        self.batches += u64::from(operation.is_some_and(|operation| operation.batch));
        let name = operation.map_or("", |operation| &*operation.name);
        let full = self.routes.len() >= MAX_ROUTES || (room.routes == 0 && !self.routes.is_empty());
        let name = if full && !self.routes.contains_key(name) { OTHERS } else { name };
        if !self.routes.contains_key(name) {
            room.routes = room.routes.saturating_sub(1);
            let number = self.routes.len() as u32;
            self.routes.insert(name.to_owned(), RouteCount { number, ..RouteCount::default() });
        }
        let weight = u64::from(of.weight);
        self.over_time.add(of.began_ns, of.answered_ns, weight);
        let route = self.routes.get_mut(name)?;
        route.first.add(of.answered_ns.saturating_sub(of.began_ns), weight);
        route.whole.add(of.ended_ns.saturating_sub(of.began_ns), weight);
        route.answer_bytes = route.answer_bytes.saturating_add(of.answer_bytes.saturating_mul(weight));
        route.largest_bytes = route.largest_bytes.max(of.answer_bytes);
        if let Some(error) = operation.and_then(|operation| operation.error.as_deref()) {
            let error = if route.errors.len() >= MAX_ERRORS && !route.errors.contains_key(error) {
                OTHERS
            } else {
                error
            };
            *route.errors.entry(error.to_owned()).or_default() += weight;
        }
        // Reservoir sampling (Vitter's algorithm R), by a generator of Knuth's (MMIX).
        route.seen += 1;
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let most = if room.kept > 0 { KEPT.0 } else { KEPT.1 };
        if route.kept.len() < most {
            room.kept = room.kept.saturating_sub(1);
            route.kept.push(kept);
        } else if let Some(place) = route.kept.get_mut(((self.random >> 33) % route.seen) as usize) {
            *place = kept;
        }
        Some(route.number)
    }
}

/// Errors with how many of each, most first.
pub fn most_first(errors: &BTreeMap<String, u64>) -> Vec<(String, u64)> {
    let mut errors: Vec<(String, u64)> = errors.iter().map(|(name, n)| (name.clone(), *n)).collect();
    errors.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    errors
}

/// Counts the time in which at least one answer has been awaited up to now, where one is: the kernel programs count it when there
/// is none any more.
pub fn await_until(stats: &mut PeerStats, now_ns: u64) {
    if stats.awaited > 0 {
        stats.awaited_ns += now_ns.saturating_sub(stats.awaited_since_ns);
        stats.awaited_since_ns = now_ns;
    }
}
