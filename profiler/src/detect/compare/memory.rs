//! Live memory by place, then and now. It is known at the end of each run, and how much it varies by itself from the last
//! quarter of what was seen of it.

use std::collections::BTreeMap;

use super::{bootstrap::Spread, judge::judged};
use crate::model::{
    comparison::{Change, Interval, KindComparison, Place},
    kind::ALLOC,
    memory::Site,
    report::Run,
};

/// Points that say how much a place varies: of those there are this part, and no fewer than this.
const LATEST: (usize, usize) = (4, 8);
/// A place must hold this part of both runs together to be compared.
const LEAST_SHARE: f64 = 0.001;

/// Whether a run knows who allocated what.
pub fn holds(run: &Run) -> bool {
    run.memory.as_ref().is_some_and(|memory| !memory.sites.is_empty())
}

/// Compares the ends of two runs. Points are of all that was live in the first, or if that is nothing, in the second. `called` says
/// by what name a process is compared.
pub fn compare(before: &Run, after: &Run, called: &dyn Fn(&str) -> String) -> KindComparison {
    let mut places: BTreeMap<Place, [Option<Site>; 2]> = BTreeMap::new();
    let mut total = [None, None];
    for (side, run) in [before, after].into_iter().enumerate() {
        let Some(memory) = &run.memory else { continue };
        for site in &memory.sites {
            let process = memory.processes.iter().find(|process| process.pid == site.pid);
            let frames = run.names().functions(run.names().stack(site.stack));
            let place = Place {
                process: process.map_or_else(String::new, |process| called(&process.process)),
                functions: frames.map(|(function, ..)| function.name.clone()).collect(),
                ..Place::default()
            };
            add(&mut places.entry(place).or_default()[side], site);
            add(&mut total[side], site);
        }
    }
    let (whole, all) = (live(&total[0]), live(&total[0]) + live(&total[1]));
    let whole = if whole > 0.0 { whole } else { live(&total[1]).max(1.0) };
    let number = places.len();
    places.retain(|_, sites| live(&sites[0]) + live(&sites[1]) > LEAST_SHARE * all);
    let too_small = number - places.len();
    let changes = places.into_iter().map(|(place, sites)| change(place, &sites, whole)).collect();
    judged(ALLOC, change(Place::default(), &total, whole), changes, too_small)
}

fn add(sum: &mut Option<Site>, site: &Site) {
    match sum {
        Some(sum) => sum.add(site),
        None => *sum = Some(site.clone()),
    }
}

fn live(site: &Option<Site>) -> f64 {
    site.as_ref().and_then(|site| site.points.last()).map_or(0.0, |point| point.live_bytes)
}

fn change(place: Place, sites: &[Option<Site>; 2], whole: f64) -> Change {
    let [before, after] = [live(&sites[0]), live(&sites[1])];
    let spread = spread(&sites[0], &sites[1]);
    let by = after - before;
    let margin = spread.map_or(f64::NAN, |spread| spread.margin());
    let percent = 100.0 / whole;
    Change {
        place,
        share: (before * percent, after * percent),
        points: Interval::around(by * percent, margin * percent),
        amount: (before, after),
        units: Interval::around(by, margin),
        chance: spread.map(|spread| (spread.chance(by), 1.0)),
    }
}

/// How much both vary. A run in which a place was never seen to allocate has nothing there that could vary.
fn spread(before: &Option<Site>, after: &Option<Site>) -> Option<Spread> {
    match (before, after) {
        (Some(before), Some(after)) => Some(varies(before)?.with(varies(after)?)),
        (Some(one), None) | (None, Some(one)) => varies(one),
        (None, None) => None,
    }
}

/// How much the live bytes of a place vary around the end of a run, with the error of their estimate.
fn varies(site: &Site) -> Option<Spread> {
    let points = site.points.points();
    let latest = (points.len() / LATEST.0).max(LATEST.1);
    let latest = &points[points.len().checked_sub(latest)?..];
    let n = latest.len() as f64;
    let mean = latest.iter().map(|point| point.live_bytes).sum::<f64>() / n;
    let squares: f64 = latest.iter().map(|point| (point.live_bytes - mean).powi(2)).sum();
    let estimate = points.last()?.live_bytes_err;
    Some(Spread { err: (squares / (n - 1.0)).sqrt().hypot(estimate), freedom: n - 1.0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::fixtures::{name_stacks, run_that_grows};
    use crate::model::memory::fixtures::site;

    /// A run of two places, whose stacks have other ids if they come the other way round.
    pub fn run(stacks: [&str; 2], live: [&[f64]; 2]) -> Run {
        let mut run = run_that_grows();
        name_stacks(&mut run, &stacks);
        let sites = (0..).zip(live).map(|(id, bytes)| site(id, bytes.iter().copied()));
        run.memory.as_mut().unwrap().sites = sites.collect();
        run
    }

    fn wave(around: f64, by: f64) -> Vec<f64> {
        (0..40).map(|i| around + by * f64::from(i % 5 - 2)).collect()
    }

    #[test]
    fn places_are_compared_by_their_functions_and_beside_their_own_ups_and_downs() {
        let before = run(["main;serve;leak", "main;serve;cache"], [&wave(1e6, 1e3), &wave(3e6, 1e6)]);
        let after = run(["main;serve;cache", "main;serve;leak"], [&wave(4e6, 1e6), &wave(4e6, 1e3)]);
        let found = compare(&before, &after, &str::to_owned);
        let rows: Vec<_> = found
            .places
            .iter()
            .map(|of| (of.place.functions[0].as_str(), of.units.value, of.is_significant()))
            .collect();
        assert_eq!(rows, [("leak", 3e6, Some(true)), ("cache", 1e6, Some(false))]);
        let leak = &found.places[0];
        assert!(leak.units.low > 2.9e6 && leak.units.high < 3.1e6, "{leak:?}");
        assert_eq!(found.total.units.value, 4e6);
        let back = compare(&after, &before, &str::to_owned);
        assert_eq!((back.places[0].units.value, back.places[0].is_significant()), (-3e6, Some(true)));
        let same = compare(&before, &before, &str::to_owned);
        assert_eq!(same.significant().count(), 0);
    }

    #[test]
    fn what_was_seen_too_briefly_is_not_judged() {
        let stacks = ["main;a", "main;b"];
        let [before, after] = [1e6, 9e6].map(|first| run(stacks, [&[first], &[1e6]]));
        let found = compare(&before, &after, &str::to_owned);
        assert_eq!((found.places[0].units.value, found.places[0].is_significant()), (8e6, None));
        assert!(!found.is_judged());
    }
}
