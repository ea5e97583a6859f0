//! What differs between two runs, and what of it chance does not explain.
//!
//! Each place (a function on CPUs, a place that waits, a system call, a place that allocates) is one test. How much its
//! figure varies by itself is found out from each run alone ([`bootstrap`], of memory [`memory`]); the difference is judged
//! by Student's t, and the chances are corrected for the number of places, so that of all differences that are called
//! significant one in twenty is expected to be none ([`judge`]).

use std::collections::BTreeSet;

use self::{
    bootstrap::{Spread, spreads},
    cells::Cells,
    judge::judged,
};
use crate::model::{
    comparison::{Change, Comparison, Interval, KindComparison, Place, Side},
    kind::{ALLOC, CPU, FAULTS, OFF_CPU, ProfileKind, SYSCALLS},
    measured::Measured,
    report::Run,
};

pub mod bootstrap;
pub mod cells;
pub mod judge;
pub mod memory;

/// A place must hold this part of both runs together to be compared.
const LEAST_SHARE: f64 = 0.001;
/// Most places compared, the heaviest.
const MOST_PLACES: usize = 300;
/// With fewer samples shares of functions say nothing.
const FEW: f64 = 20.0;

/// Compares two runs in every kind of profile that both hold.
pub fn compare(before: Measured<'_>, after: Measured<'_>) -> Comparison {
    let mut kinds = Vec::new();
    let mut left_out = Vec::new();
    let renamed = renamed(&before, &after);
    let called = |process: &str| match &renamed {
        Some([first, second]) if first == process => second.clone(),
        _ => process.to_owned(),
    };
    for kind in [CPU, OFF_CPU, SYSCALLS] {
        let holds = |of: Measured<'_>| of.run.profile(&kind).is_some_and(|profile| profile.total > 0);
        match (holds(before), holds(after)) {
            (true, true) => {
                let (a, b) = (Cells::of(&before, kind, &called), Cells::of(&after, kind, &called));
                kinds.push(of_cells(kind, &a, &b));
            }
            (false, false) => {}
            (one, _) => left_out.push(only_one(kind, one)),
        }
    }
    match (memory::holds(before.run), memory::holds(after.run)) {
        (true, true) => kinds.push(memory::compare(before.run, after.run, &called)),
        (false, false) => {}
        (one, _) => left_out.push(only_one(ALLOC, one)),
    }
    let has_faults = |of: Measured<'_>| of.run.faults.as_ref().is_some_and(|faults| faults.total > 0);
    if has_faults(before) && has_faults(after) {
        left_out.push(format!("{}: a recording holds their sum only, not when they were", FAULTS.title));
    }
    Comparison { before: side(before.run), after: side(after.run), kinds, left_out, renamed }
}

/// The names of one program, if each run has one process name that the other lacks: `app-1.2` is compared with `app-1.3`.
fn renamed(before: &Measured<'_>, after: &Measured<'_>) -> Option<[String; 2]> {
    let names = |of: &Measured<'_>| -> BTreeSet<String> {
        let threads: BTreeSet<_> = of.samples.iter().map(|sample| sample.thread).collect();
        threads.into_iter().map(|thread| of.tables.process_name(thread).to_owned()).collect()
    };
    let [before, after] = [names(before), names(after)];
    let only = |of: &BTreeSet<String>, other: &BTreeSet<String>| {
        let mut only = of.difference(other);
        only.next().filter(|_| only.next().is_none()).cloned()
    };
    Some([only(&before, &after)?, only(&after, &before)?])
}

fn only_one(kind: ProfileKind, first: bool) -> String {
    format!("{}: only the {} recording holds any", kind.title, if first { "first" } else { "second" })
}

fn side(run: &Run) -> Side {
    let meta = &run.cpu.meta;
    Side {
        target: meta.target.clone(),
        start_unix_ns: meta.start_unix_ns,
        duration_ns: run.cpu.accounts.duration_ns,
    }
}

/// Two sides of a figure: what it is, and how much that varies.
struct Figure {
    values: (f64, f64),
    spread: Option<Spread>,
}

impl Figure {
    fn interval(&self, scale: f64) -> Interval {
        let margin = self.spread.map_or(f64::NAN, |spread| scale * spread.margin());
        Interval::around(scale * (self.values.1 - self.values.0), margin)
    }
}

/// Compares what was measured over time.
fn of_cells(kind: ProfileKind, before: &Cells, after: &Cells) -> KindComparison {
    let (places, too_small) = places(before, after);
    let both = spreads(before, &places).zip(spreads(after, &places));
    let total = (before.total(), after.total());
    let sides = |of: &dyn Fn(&Cells) -> f64| (of(before), of(after));
    // Of the amounts in a second.
    let rate = |of: &dyn Fn(&Cells) -> f64, spread: Option<(Spread, Spread)>| {
        let by_second =
            |spread: Spread, cells: &Cells| Spread { err: spread.err / cells.duration_s, ..spread };
        Figure {
            values: sides(&|cells| of(cells) / cells.duration_s),
            spread: spread.map(|(a, b)| by_second(a, before).with(by_second(b, after))),
        }
    };
    let change = |place: Place, share: &Figure, rate: &Figure| Change {
        place,
        share: (100.0 * share.values.0, 100.0 * share.values.1),
        points: share.interval(100.0),
        amount: rate.values,
        units: rate.interval(1.0),
        chance: share.spread.map(|spread| (spread.chance(share.values.1 - share.values.0), 1.0)),
    };
    // Time by time is a share as it is.
    let of_time = |rate: &Figure| Figure {
        values: (rate.values.0 / 1e9, rate.values.1 / 1e9),
        spread: rate.spread.map(|spread| Spread { err: spread.err / 1e9, ..spread }),
    };
    let of_all = both.as_ref().map(|(a, b)| (a.0.weight, b.0.weight));
    let all = rate(&Cells::total, of_all);
    // How long threads wait in all says little: most of it is idle.
    let together = Place { idle: kind != CPU, ..Place::default() };
    let total_change = change(together, &of_time(&all), &all);
    let few = before.grain.is_some_and(|grain| total.0.min(total.1) < FEW * grain);
    let changes = places.into_iter().enumerate().map(|(i, place)| {
        let spread = both.as_ref().map(|(a, b)| (a.1[i], b.1[i]));
        let rate = rate(&|cells| cells.weight(&place), spread.map(|(a, b)| (a.weight, b.weight)));
        let Some(grain) = before.grain.zip(after.grain) else { return change(place, &of_time(&rate), &rate) };
        let share = |cells: &Cells| cells.weight(&place) / cells.total().max(1.0);
        let values = sides(&share);
        // No more is known than from so many independent samples.
        let pooled = (before.weight(&place) + after.weight(&place)) / (total.0 + total.1);
        let independent =
            (pooled * (1.0 - pooled) * (grain.0 / total.0.max(1.0) + grain.1 / total.1.max(1.0))).sqrt();
        let spread = spread.filter(|_| !few).map(|(a, b)| a.share.with(b.share).at_least(independent));
        change(place, &Figure { values, spread }, &rate)
    });
    let changes = changes.collect();
    judged(kind, total_change, changes, too_small)
}

/// Places of both runs, the heaviest first, and how many there are besides.
fn places(before: &Cells, after: &Cells) -> (Vec<Place>, usize) {
    let all: BTreeSet<&Place> = before.places.keys().chain(after.places.keys()).collect();
    // By their rates, so that the longer run does not count for more; by their sum, which says nothing of the difference.
    let weight =
        |place: &Place| before.weight(place) / before.duration_s + after.weight(place) / after.duration_s;
    let total = before.total() / before.duration_s + after.total() / after.duration_s;
    let mut chosen = Vec::new();
    let mut small = 0;
    for with_callees in [false, true] {
        let of_sort = all.iter().filter(|place| place.with_callees == with_callees);
        let mut heavy: Vec<(f64, &Place)> = of_sort.map(|&place| (weight(place), place)).collect();
        let number = heavy.len();
        heavy.retain(|(weight, _)| *weight >= LEAST_SHARE * total && *weight > 0.0);
        heavy.sort_by(|a, b| b.0.total_cmp(&a.0));
        heavy.truncate(MOST_PLACES);
        small += if with_callees { 0 } else { number - heavy.len() };
        chosen.extend(heavy.into_iter().map(|(_, place)| place));
    }
    // A caller that does nothing but to call another function has the same samples, and is not told.
    let mut seen = BTreeSet::new();
    let samples = |cells: &Cells, place: &Place| {
        let each = cells.places.get(place).into_iter().flatten();
        each.map(|(&cell, weight)| (cell, weight.to_bits())).collect::<Vec<_>>()
    };
    let depth = |place: &Place| before.depth(place).max(after.depth(place));
    chosen.sort_by_key(|place| (place.with_callees, std::cmp::Reverse(depth(place))));
    chosen
        .retain(|place| seen.insert((samples(before, place), samples(after, place))) || !place.with_callees);
    (chosen.into_iter().cloned().collect(), small)
}

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;
