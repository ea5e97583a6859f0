//! Memory over time: how processes grew, and what is known of each place that allocates. Filled while a run goes on,
//! read by the rules in [`crate::detect::leak`], by outputs and by memory snapshots.

use serde::{Deserialize, Serialize};

use crate::model::{distribution::Log2, function::Function, series::Series, stack::StackId};

/// Everything known about the memory of a run's processes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// Each process, by pid.
    pub processes: Vec<Footprint>,
    /// Places that allocate, if allocations were watched; in no particular order.
    pub sites: Vec<Site>,
    /// Where page faults were taken, sampled: pid, stack, and about how many, most first.
    pub faults: Vec<(u32, StackId, u64)>,
    /// How allocations were watched.
    pub watching: Watching,
}

/// How allocations were watched, and what that cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Watching {
    /// Most processes at once whose growth was not looked at, because there were too many.
    pub unlisted: u64,
    /// Whether and when.
    pub mode: WatchMode,
    /// Time in which they were to be watched, ns.
    pub watched_ns: u64,
    /// Part of that in which new allocations counted, ns. Less means that all is estimated.
    pub seen_ns: u64,
    /// How often the probes were in place for a short window only, to keep the cost down.
    pub windows: u64,
    /// Time since the last window, ns; zero while the probes stay in place.
    #[serde(default)]
    pub since_ns: u64,
    /// Share of the target's CPU time that the probes may cost, percent; `None` for no limit.
    pub max_overhead_percent: Option<f64>,
    /// Hits of the probes.
    pub hits: u64,
    /// What they cost the target, getting into the kernel and out again included, ns.
    pub cost_ns: u64,
    /// The target's CPU time meanwhile, that cost included, ns.
    pub cpu_ns: u64,
    /// What a hit costs besides the kernel program, ns, as measured at start-up: of an instruction that the kernel
    /// emulates, and of one that it single-steps.
    pub trap_ns: (f64, f64),
    /// Longest time it took to put the probes in place, ns.
    pub attach_ns: u64,
    /// Longest time it took to take them away, ns.
    pub detach_ns: u64,
    /// What was probed: file and functions, those whose first instruction the kernel has to single-step with a `*`.
    pub probed: Vec<(String, Vec<String>)>,
    /// What could not be watched, and why.
    pub problems: Vec<String>,
    /// Frees that were not seen, known by the address being given out again.
    pub implied_frees: u64,
    /// Objects that are not in any figure: too many live at once, too many stacks, or probes in each other's way.
    pub lost_objects: u64,
    /// Stacks of allocations that were walked; all others were known.
    pub stacks_walked: u64,
}

impl Watching {
    /// Whether figures of sites are estimated from a part of the time.
    pub fn is_estimated(&self) -> bool {
        self.windows > 0 || self.since_ns > 0
    }

    /// What the probes cost, as a part of the target's CPU time, percent.
    pub fn overhead_percent(&self) -> f64 {
        100.0 * self.cost_ns as f64 / self.cpu_ns.max(1) as f64
    }
}

/// Whether allocations were watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchMode {
    /// Not at all.
    #[default]
    Off,
    /// They would have been, had a process grown.
    Ready,
    /// They were.
    Watched,
}

impl Memory {
    /// The stack of every site, and of page faults.
    pub fn stacks(&self) -> impl Iterator<Item = StackId> + Clone + '_ {
        self.sites.iter().map(|site| site.stack).chain(self.faults.iter().map(|&(_, stack, _)| stack))
    }
}

/// One process over time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Footprint {
    /// Process id.
    pub pid: u32,
    /// Name of the process.
    pub process: String,
    /// What it occupied.
    pub growth: Series<Growth>,
    /// All its sites together, if its allocations were watched.
    pub heap: Series<Heap>,
    /// What will stop its growth first, as known at the end.
    pub limit: Option<Limit>,
    /// What its garbage-collected heap held, if it grew and has one that can be read.
    pub managed: Option<ManagedHeap>,
}

/// The heap of a language runtime, from soon after it was seen to grow to the end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ManagedHeap {
    /// The first look.
    pub first: HeapSample,
    /// The last one.
    pub last: HeapSample,
    /// Where the runtime itself ends the program, bytes of heap, as far as that is known.
    pub limit_bytes: Option<u64>,
}

/// So many standard errors a difference must be, to be one.
const SURE: f64 = 3.0;

impl ManagedHeap {
    /// Which part the heap has of what the process grew by between the two looks; `None` if that was nothing.
    pub fn share_of(&self, growth: &[Growth]) -> Option<f64> {
        let at = |time_ns: u64| {
            growth
                .iter()
                .min_by_key(|of| of.time_ns.abs_diff(time_ns))
                .map_or(0.0, |of| of.held_bytes() as f64)
        };
        let grew = at(self.last.time_ns) - at(self.first.time_ns);
        (grew > 0.0).then(|| ((self.last.bytes - self.first.bytes) / grew).clamp(0.0, 1.0))
    }

    /// What there is surely more of than at first, most more objects first: count and bytes more.
    pub fn more(&self) -> Vec<(&HeapClass, f64, f64)> {
        let same = |of: &HeapClass, class: &HeapClass| {
            (of.kind, &of.name, &of.function) == (class.kind, &class.name, &class.function)
        };
        let mut more: Vec<(&HeapClass, f64, f64)> = self
            .last
            .classes
            .iter()
            .filter_map(|class| {
                let before = self.first.classes.iter().find(|of| same(of, class));
                let (count, bytes) = before.map_or((0.0, 0.0), |of| (of.count, of.bytes));
                let error = before.map_or(0.0, |of| of.count_err).hypot(class.count_err);
                let more = class.count - count;
                (more > SURE * error).then_some((class, more, class.bytes - bytes))
            })
            .collect();
        more.sort_by(|a, b| b.1.total_cmp(&a.1));
        more
    }
}

/// What a sample of a heap's pages says that it holds, garbage that has not been collected included.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HeapSample {
    /// CLOCK_MONOTONIC, ns.
    pub time_ns: u64,
    /// Bytes, estimated.
    pub bytes: f64,
    /// Standard error of that.
    pub bytes_err: f64,
    /// What it holds, most bytes first; the rest is left out.
    pub classes: Vec<HeapClass>,
}

/// Objects of one kind in a heap.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeapClass {
    /// What they are.
    pub kind: HeapKind,
    /// Their class, or their first properties.
    pub name: String,
    /// The function that closures are of, or that made objects of a class.
    pub function: Option<Function>,
    /// How many, estimated.
    pub count: f64,
    /// Standard error of that.
    pub count_err: f64,
    /// Bytes, estimated; without what they refer to.
    pub bytes: f64,
}

/// Kinds of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeapKind {
    /// Functions, with what they hold on to.
    Closures,
    /// Variables that closures hold on to.
    Variables,
    /// Objects of a class, or with some properties.
    Objects,
    /// Elements of arrays and tables.
    Elements,
    /// Text.
    Strings,
    /// The runtime's own.
    Internal,
}

impl HeapKind {
    /// What several are called.
    pub fn words(self) -> &'static str {
        match self {
            HeapKind::Closures => "closures of",
            HeapKind::Variables => "variables of",
            HeapKind::Objects => "objects",
            HeapKind::Elements => "elements of arrays and tables",
            HeapKind::Strings => "strings",
            HeapKind::Internal => "the runtime's own",
        }
    }
}

/// Memory a process occupied at one moment, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Growth {
    /// CLOCK_MONOTONIC, ns.
    pub time_ns: u64,
    /// Resident, without a file behind it.
    pub anon_bytes: u64,
    /// Resident pages of files.
    pub file_bytes: u64,
    /// Resident shared memory and tmpfs; of what it touched since the first look no more than the machine has taken since then.
    pub shmem_bytes: u64,
    /// Swapped out.
    pub swap_bytes: u64,
}

impl Growth {
    /// What cannot be dropped, only swapped or freed: all but pages of files, bytes.
    pub fn held_bytes(&self) -> u64 {
        self.anon_bytes + self.shmem_bytes + self.swap_bytes
    }
}

/// A process's watched allocations at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Heap {
    /// CLOCK_MONOTONIC, ns.
    pub time_ns: u64,
    /// Allocated since the run began and not freed.
    pub live_bytes: f64,
    /// How many.
    pub live_count: f64,
    /// Frees so far of what had been allocated before the run began: together with `live_count` they tell growth
    /// from replacement.
    pub older_freed_count: u64,
}

/// Where memory is allocated: one stack of one process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Site {
    /// Process id.
    pub pid: u32,
    /// The stack that allocates.
    pub stack: StackId,
    /// What it had allocated and not freed, about once a second, from the moment when it was first seen.
    pub points: Series<LivePoint>,
    /// Since the run began, bytes.
    pub allocated_bytes: u64,
    /// Of that, freed since, by whomever.
    pub freed_bytes: u64,
    /// Since the run began, objects.
    pub allocated_count: u64,
    /// Of those, freed since.
    pub freed_count: u64,
    /// Ages of the objects that are live at the end, ns. Empty if not known.
    pub ages_ns: Log2,
    /// How old the freed objects became, ns. Empty if not known.
    pub lifetimes_ns: Log2,
    /// Sizes of the objects allocated, bytes.
    pub sizes_bytes: Log2,
    /// Counts and bytes are estimated from a part of the time.
    pub estimated: bool,
}

impl Site {
    /// Adds another site of the same process, as if both were one.
    pub fn add(&mut self, other: &Site) {
        // At which times both were looked at differs where one is older and has been thinned out.
        let (mine, others) = (self.points.points(), other.points.points());
        let start = |points: &[LivePoint]| points.first().map_or(u64::MAX, |first| first.time_ns);
        let (long, short) = if start(mine) <= start(others) { (mine, others) } else { (others, mine) };
        let sum = long.iter().map(|point| {
            let before = short.partition_point(|other| other.time_ns <= point.time_ns).checked_sub(1);
            let other = before.map_or_else(LivePoint::default, |before| short[before]);
            LivePoint {
                time_ns: point.time_ns,
                live_bytes: point.live_bytes + other.live_bytes,
                live_count: point.live_count + other.live_count,
                live_bytes_err: point.live_bytes_err.hypot(other.live_bytes_err),
            }
        });
        self.points = sum.collect();
        self.allocated_bytes += other.allocated_bytes;
        self.freed_bytes += other.freed_bytes;
        self.allocated_count += other.allocated_count;
        self.freed_count += other.freed_count;
        self.ages_ns.add_all(&other.ages_ns);
        self.lifetimes_ns.add_all(&other.lifetimes_ns);
        self.sizes_bytes.add_all(&other.sizes_bytes);
        self.estimated |= other.estimated;
    }
}

/// What is known of the live allocations of one site at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LivePoint {
    /// CLOCK_MONOTONIC, ns.
    pub time_ns: u64,
    /// Allocated since the run began and not freed.
    pub live_bytes: f64,
    /// How many objects.
    pub live_count: f64,
    /// Standard error of `live_bytes`, bytes; zero if exact.
    pub live_bytes_err: f64,
}

/// What stops a process's growth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Whose limit.
    pub kind: LimitKind,
    /// The limit, bytes.
    pub limit_bytes: u64,
    /// What counts towards it already, bytes.
    pub used_bytes: u64,
}

impl Limit {
    /// What is left, bytes.
    pub fn left_bytes(&self) -> u64 {
        self.limit_bytes.saturating_sub(self.used_bytes)
    }
}

/// Whose limit stops a process's growth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitKind {
    /// Of a cgroup: its path below the mount, as the process sees it.
    Cgroup(String),
    /// RLIMIT_AS: the process's address space.
    AddressSpace,
    /// The machine's memory, without swap.
    Machine,
    /// Of the process's own JavaScript heap.
    Heap,
}

#[cfg(test)]
pub(crate) mod fixtures {
    //! Sites made by hand.

    use super::*;

    /// A site of objects of 100 bytes, looked at once a second from zero on; its live bytes are given.
    pub fn site(stack: u32, live_bytes: impl IntoIterator<Item = f64>) -> Site {
        let points: Series<LivePoint> = (0u64..)
            .zip(live_bytes)
            .map(|(s, live_bytes)| LivePoint {
                time_ns: s * 1_000_000_000,
                live_bytes,
                live_count: live_bytes / 100.0,
                live_bytes_err: 0.0,
            })
            .collect();
        let live = points.last().copied().unwrap_or_default();
        Site {
            pid: 7,
            stack: StackId(stack),
            allocated_bytes: live.live_bytes as u64,
            allocated_count: live.live_count as u64,
            freed_bytes: 0,
            freed_count: 0,
            points,
            ages_ns: Log2::default(),
            lifetimes_ns: Log2::default(),
            sizes_bytes: Log2::default(),
            estimated: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_series_is_bounded_and_keeps_its_ends(n in 1u64..5000) {
            let series: Series<u64> = (0..n).collect();
            let points = series.points();
            prop_assert!(points.len() <= Series::<u64>::CAPACITY);
            prop_assert!(n < 2 || points.len() as u64 >= (n / 2).min(Series::<u64>::CAPACITY as u64 / 2));
            prop_assert_eq!((points[0], *series.last().unwrap()), (0, n - 1));
            let steps: Vec<u64> = points.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let (last, others) = steps.split_last().map_or((0, &[][..]), |(last, others)| (*last, others));
            prop_assert!(others.windows(2).all(|pair| pair[0] == pair[1]), "evenly spaced: {steps:?}");
            prop_assert!(others.first().is_none_or(|&step| last <= step));
        }
    }

    #[test]
    fn two_sites_add_up() {
        let mut sum = fixtures::site(1, [0.0, 100.0, 200.0, 300.0]);
        let mut late = fixtures::site(2, [0.0, 0.0, 1000.0, 1000.0]);
        late.points = late.points.points()[2..].iter().copied().collect();
        late.ages_ns.add(5, 10);
        let (mut other, alone) = (late.clone(), sum.clone());
        sum.add(&late);
        other.add(&alone);
        let live =
            |site: &Site| site.points.points().iter().map(|point| point.live_bytes).collect::<Vec<_>>();
        assert_eq!(live(&sum), [0.0, 100.0, 1200.0, 1300.0]);
        assert_eq!(live(&sum), live(&other));
        assert_eq!((sum.allocated_bytes, sum.ages_ns.total()), (1300, 10));
    }

    #[test]
    fn a_histogram_counts_by_powers_of_two() {
        let mut histogram = Log2::default();
        [0, 1, 2, 3, 4, 1000].into_iter().for_each(|value| histogram.add(value, 1));
        assert_eq!(histogram.counts()[..3], [2, 2, 1]);
        assert_eq!((histogram.counts()[9], histogram.total()), (1, 6));
        assert_eq!(histogram, histogram.counts().iter().copied().chain([0, 0]).collect());
        assert_eq!(histogram.quantile(0.5), Some(3));
        assert_eq!((histogram.beyond(3.0), histogram.beyond(2000.0)), ((3.0, 0.5 + 3.0 + 765.0), (0.0, 0.0)));
        assert_eq!((histogram.quantile(1.0), Log2::default().quantile(0.5)), (Some(1024), None));
    }
}
