//! A run's samples of one kind by place and by time: what the bootstrap draws from.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use profiler_common::sched::SyscallClass;
use rustc_hash::{FxBuildHasher, FxHashMap};

use crate::{
    detect::{hotspot, words},
    model::{
        abi,
        cause::WaitCause,
        comparison::Place,
        kind::{CPU, ProfileKind, SYSCALLS},
        measured::Measured,
        report::Names,
        sample::Sample,
        stack::StackId,
    },
    naming,
};

/// How long a cell is where samples come one by one, ns. Longer runs have longer cells.
const CELL_NS: u64 = 1_000_000_000;
/// Most cells of a run.
const MOST_CELLS: usize = 240;
/// Samples that are less apart belong to the same reading of the kernel's sums, ns.
const READING_NS: u64 = 100_000_000;
/// Sums that are read less often than this are read at intervals, ns.
const READ_EVERY_NS: u64 = 500_000_000;

/// What a run has of one kind, by place and over time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cells {
    /// Time in which it was measured, s.
    pub duration_s: f64,
    /// Cells that time is divided into.
    pub n: usize,
    /// Weight of one sample, if each is one observation.
    pub grain: Option<f64>,
    /// Weight by place and cell, those cells that have any, in order.
    pub places: BTreeMap<Place, ByCell>,
    /// Weight of all by cell.
    pub all: ByCell,
    /// How deep in stacks functions are, at most.
    pub depths: BTreeMap<Place, usize>,
}

/// Weights by cell, in order.
pub type ByCell = BTreeMap<u32, f64>;

impl Cells {
    /// Of a run. Weights are in ns; `called` says by what name a process is compared.
    pub fn of(of: &Measured<'_>, kind: ProfileKind, called: &dyn Fn(&str) -> String) -> Cells {
        let samples: Vec<&Sample> =
            of.samples.iter().filter(|sample| sample.kind(of.tables) == kind).collect();
        let meta = &of.run.cpu.meta;
        let grain = (kind == CPU).then_some(meta.period_ns.max(1) as f64);
        let times = || of.samples.iter().map(|sample| sample.time_ns);
        let (first, last) = (times().min().unwrap_or(0), times().max().unwrap_or(0));
        let wall_ns = of.run.cpu.accounts.duration_ns.max(last - first).max(1);
        let grid = match kind {
            CPU => Grid::even(first, wall_ns),
            _ => Grid::readings(samples.iter().map(|sample| sample.time_ns).collect(), wall_ns)
                .unwrap_or_else(|| Grid::even(first, wall_ns)),
        };
        let duration_ns = if kind == SYSCALLS { words::calls_watched_ns(of.run) } else { wall_ns };
        let names = of.run.names();
        let frames = naming::frames_by_stack(names, of.tables, kind);
        // Places are named once for each stack, and found by their positions from then on.
        let mut places: IndexMap<Place, (ByCell, usize), FxBuildHasher> = IndexMap::default();
        let mut known: FxHashMap<(StackId, u32, Option<WaitCause>), Vec<usize>> = FxHashMap::default();
        let mut all = ByCell::new();
        for sample in samples {
            let key = (sample.stack, sample.thread.pid, sample.cause);
            let counts = known.entry(key).or_insert_with(|| {
                let process = called(of.tables.process_name(sample.thread));
                let each = counts(names, &frames(sample.stack), &process, kind, sample.cause);
                let position = |(depth, place): (usize, Place)| {
                    let entry = places.entry(place);
                    let position = entry.index();
                    let (_, deepest) = entry.or_default();
                    *deepest = depth.max(*deepest);
                    position
                };
                each.into_iter().map(position).collect()
            });
            let cell = grid.cell(sample.time_ns);
            let weight = sample.weight as f64 * grain.unwrap_or(1.0);
            for &position in &*counts {
                *places[position].0.entry(cell).or_default() += weight;
            }
            *all.entry(cell).or_default() += weight;
        }
        let depths = places.iter().map(|(place, (_, depth))| (place.clone(), *depth)).collect();
        let places = places.into_iter().map(|(place, (by_cell, _))| (place, by_cell)).collect();
        Cells { duration_s: duration_ns as f64 / 1e9, n: grid.n, grain, places, all, depths }
    }

    /// Weight of a place.
    pub fn weight(&self, place: &Place) -> f64 {
        self.places.get(place).map_or(0.0, |cells| cells.values().sum())
    }

    /// How deep in stacks a function is, at most.
    pub fn depth(&self, place: &Place) -> usize {
        self.depths.get(place).copied().unwrap_or(0)
    }

    /// Weight of all places.
    pub fn total(&self) -> f64 {
        self.all.values().sum()
    }
}

/// The places that samples of a stack count for, each with how deep it is.
fn counts(
    names: &Names,
    frames: &[usize],
    process: &str,
    kind: ProfileKind,
    cause: Option<WaitCause>,
) -> Vec<(usize, Place)> {
    let place = Place { process: process.to_owned(), ..Place::default() };
    let idle = cause.is_some_and(WaitCause::is_idle) || (kind == SYSCALLS && is_idle_call(names, frames));
    let own = Place { functions: functions(names, frames, kind), cause, idle, ..place.clone() };
    let within = if kind == CPU { within(names, frames) } else { Vec::new() };
    let within = within.into_iter().map(|(depth, function)| {
        (depth, Place { functions: vec![function], with_callees: true, ..place.clone() })
    });
    std::iter::once((0, own)).chain(within).collect()
}

/// What a place is called: on CPUs the function that ran; off them the program's function that waited; in system calls the
/// call and the program's function that made it.
fn functions(names: &Names, frames: &[usize], kind: ProfileKind) -> Vec<String> {
    let place = |frames| words::place(names, frames).map(|function| steady(&function.name));
    match kind {
        CPU => {
            let own = names.functions(frames).nth(hotspot::own_of(names, frames));
            own.map(|(function, ..)| steady(&function.name)).into_iter().collect()
        }
        SYSCALLS => {
            let Some((&call, made)) = frames.split_last() else { return Vec::new() };
            let call = names.frames[call].functions[0].name.clone();
            std::iter::once(call).chain(place(made)).collect()
        }
        _ => place(frames).into_iter().collect(),
    }
}

/// Whether the call is one that threads wait in when they have nothing to do; what contended locks take is known from the
/// time off CPUs.
fn is_idle_call(names: &Names, frames: &[usize]) -> bool {
    const IDLE: [SyscallClass; 7] = [
        SyscallClass::Futex,
        SyscallClass::Sleep,
        SyscallClass::Epoll,
        SyscallClass::Poll,
        SyscallClass::Accept,
        SyscallClass::Child,
        SyscallClass::Lock,
    ];
    let class = frames.last().map(|&frame| abi::class(names.frames[frame].address as i32));
    IDLE.iter().any(|&idle| Some(idle as u8) == class)
}

/// Every function of a stack once, and how deep it is. The kernel's are left out: a system call is in whoever makes it.
fn within(names: &Names, frames: &[usize]) -> Vec<(usize, String)> {
    let user = names.functions(frames).rev().filter(|(_, frame, _)| !names.is_kernel(frame));
    let deepest: BTreeMap<String, usize> =
        user.enumerate().map(|(depth, (function, ..))| (steady(&function.name), depth)).collect();
    deepest.into_iter().map(|(function, depth)| (depth, function)).collect()
}

/// A name without the sign of how far a just-in-time compiler has got with the function: `JS:*name` and `JS:~name` are one.
fn steady(name: &str) -> String {
    match name.split_once(':') {
        Some((kind, rest))
            if rest.starts_with(['~', '*', '^', '+']) && kind.chars().all(char::is_alphabetic) =>
        {
            format!("{kind}:{}", &rest[1..])
        }
        _ => name.to_owned(),
    }
}

/// How time is divided.
struct Grid {
    /// Where cells begin, ns, in order.
    starts: Vec<u64>,
    /// Number of cells, those without anything in them as well.
    n: usize,
}

impl Grid {
    /// Cells of one length, about [`CELL_NS`].
    fn even(first_ns: u64, duration_ns: u64) -> Grid {
        let n = (duration_ns.saturating_add(CELL_NS / 2) / CELL_NS).clamp(1, MOST_CELLS as u64);
        let start =
            |i| first_ns.saturating_add((u128::from(duration_ns) * u128::from(i) / u128::from(n)) as u64);
        Grid { starts: (0..n).map(start).collect(), n: n as usize }
    }

    /// A cell for each reading of sums, or for as many in a row as it takes; `None` if the samples are no such readings.
    fn readings(mut times: Vec<u64>, duration_ns: u64) -> Option<Grid> {
        times.sort_unstable();
        let mut starts: Vec<u64> = Vec::new();
        let mut last = None;
        for time in times {
            if last.is_none_or(|last| time - last > READING_NS) {
                starts.push(time);
            }
            last = Some(time);
        }
        let mut gaps: Vec<u64> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        gaps.sort_unstable();
        let gap = *gaps.get(gaps.len() / 2)?;
        if starts.len() < 3 || gap < READ_EVERY_NS {
            return None;
        }
        let n = starts.len().max((duration_ns / gap) as usize);
        let merged = n.div_ceil(MOST_CELLS);
        let starts: Vec<u64> = starts.into_iter().step_by(merged).collect();
        Some(Grid { n: (n / merged).max(starts.len()), starts })
    }

    fn cell(&self, time_ns: u64) -> u32 {
        self.starts.partition_point(|&start| start <= time_ns).saturating_sub(1) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_divided_into_seconds_or_readings() {
        const MS: u64 = 1_000_000;
        let even = Grid::even(5_000 * MS, 60_400 * MS);
        assert_eq!((even.n, even.cell(5_000 * MS), even.cell(u64::MAX)), (60, 0, 59));
        assert_eq!(even.cell(5_000 * MS + 60_400 * MS / 2), 30);
        assert_eq!(Grid::even(0, 86_400_000 * MS).n, MOST_CELLS);
        let reading = |second: u64| (0..5).map(move |i| second * 1000 * MS + i * 1000);
        let times: Vec<u64> = [2, 4, 6, 8, 12].into_iter().flat_map(reading).collect();
        let readings = Grid::readings(times, 14_000 * MS).unwrap();
        assert_eq!(readings.n, 7, "two readings had nothing");
        assert_eq!([4000 * MS, 4000 * MS + 4000, 12_000 * MS].map(|time| readings.cell(time)), [1, 1, 4]);
        let events: Vec<u64> = (0..100).map(|i| i * 200 * MS).collect();
        assert!(Grid::readings(events, 20_000 * MS).is_none(), "single events");
        assert!(Grid::readings(vec![5], 20_000 * MS).is_none());
        let long: Vec<u64> = (0..1000).map(|i| i * 2000 * MS).collect();
        let long = Grid::readings(long, 2_000_000 * MS).unwrap();
        assert!(long.n <= MOST_CELLS && long.cell(u64::MAX) < long.n as u32, "{}", long.n);
    }

    #[test]
    fn compilers_progress_is_no_other_function() {
        assert_eq!(steady("JS:*work app.js:7"), steady("JS:~work app.js:7"));
        assert_eq!(steady("std::vector"), "std::vector");
        assert_eq!(steady("a::*b"), "a::*b");
    }
}
