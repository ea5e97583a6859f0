//! What has changed between two moments: live memory by place, then and now.

use std::collections::BTreeMap;

use crate::model::{memory::LivePoint, report::Run};

/// What has changed from one moment to another.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryDiff {
    /// Time between both, ns; negative if the second is the earlier one.
    pub elapsed_ns: i64,
    /// Places, those that grew most first.
    pub places: Vec<Place>,
    /// All together, before and after.
    pub total: (Live, Live),
}

/// What one place had allocated and not freed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Live {
    /// Bytes.
    pub bytes: f64,
    /// Standard error of that; zero if exact.
    pub bytes_err: f64,
    /// Objects.
    pub count: f64,
}

impl Live {
    fn add(&mut self, point: &LivePoint) {
        self.bytes += point.live_bytes;
        self.bytes_err = self.bytes_err.hypot(point.live_bytes_err);
        self.count += point.live_count;
    }
}

/// A place that allocates: the same functions in a process of the same name, since pids and addresses need not be the
/// same.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// Name of the process.
    pub process: String,
    /// Functions, innermost first.
    pub functions: Vec<String>,
    /// Before.
    pub before: Live,
    /// After.
    pub after: Live,
}

impl Place {
    /// By how much it grew, bytes.
    pub fn growth(&self) -> f64 {
        self.after.bytes - self.before.bytes
    }
}

/// Compares two moments.
pub fn diff(before: &Run, after: &Run) -> MemoryDiff {
    let mut places: BTreeMap<(String, Vec<String>), (Live, Live)> = BTreeMap::new();
    let mut total = (Live::default(), Live::default());
    type Side = fn(&mut (Live, Live)) -> &mut Live;
    let sides: [(&Run, Side); 2] = [(before, |both| &mut both.0), (after, |both| &mut both.1)];
    for (run, side) in sides {
        let Some(memory) = &run.memory else { continue };
        for site in &memory.sites {
            let Some(point) = site.points.last() else { continue };
            let process = memory.processes.iter().find(|process| process.pid == site.pid);
            let process = process.map_or_else(String::new, |process| process.process.clone());
            let frames = run.names().functions(run.names().stack(site.stack));
            let functions = frames.map(|(function, ..)| function.name.clone()).collect();
            side(places.entry((process, functions)).or_default()).add(point);
            side(&mut total).add(point);
        }
    }
    let place = |((process, functions), (before, after))| Place { process, functions, before, after };
    let mut places: Vec<Place> = places.into_iter().map(place).collect();
    places.retain(|place| place.before != Live::default() || place.after != Live::default());
    places.sort_by(|a, b| b.growth().total_cmp(&a.growth()));
    let end = |run: &Run| run.cpu.meta.start_unix_ns.saturating_add(run.cpu.accounts.duration_ns) as i64;
    MemoryDiff { elapsed_ns: end(after).saturating_sub(end(before)), places, total }
}

#[cfg(test)]
pub(crate) mod fixtures {
    use super::*;
    use crate::detect::fixtures::{name_stacks, run_that_grows};

    /// Two moments of the same program, a minute apart, whose stacks have other ids the second time.
    pub fn two_moments() -> (Run, Run) {
        let (mut before, mut after) = (run_that_grows(), run_that_grows());
        for (run, names, live) in [
            (&mut before, ["main;serve;leak", "main;serve;cache"], [1e6, 3e6]),
            (&mut after, ["main;serve;cache", "main;serve;leak"], [2e6, 4e6]),
        ] {
            name_stacks(run, &names);
            let memory = run.memory.as_mut().unwrap();
            memory.sites = (0..)
                .zip(live)
                .map(|(id, bytes)| crate::model::memory::fixtures::site(id, [bytes]))
                .collect();
        }
        after.cpu.accounts.duration_ns += 60_000_000_000;
        (before, after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_compared_by_their_functions() {
        let (before, after) = fixtures::two_moments();
        let found = diff(&before, &after);
        let rows: Vec<(&str, f64, f64)> = found
            .places
            .iter()
            .map(|place| (place.functions[0].as_str(), place.before.bytes, place.after.bytes))
            .collect();
        assert_eq!(rows, [("leak", 1e6, 4e6), ("cache", 3e6, 2e6)]);
        assert_eq!((found.total.0.bytes, found.total.1.bytes, found.elapsed_ns), (4e6, 6e6, 60_000_000_000));
        let back = diff(&after, &before);
        assert_eq!(back.places[1].growth(), -3e6);
        let same = diff(&before, &before);
        assert!(same.places.iter().all(|place| place.growth() == 0.0));
    }
}
