//! What is called a difference, measured against runs of which it is known in what they differ.

use fastrand::Rng;

use super::{
    compare,
    fixtures::{HZ, Owned, S, on_cpu, pick, run, run_of, waiting, zipf},
};
use crate::model::{
    comparison::Comparison,
    kind::{CPU, OFF_CPU, SYSCALLS},
};

/// Pairs of runs that are judged.
const TRIALS: u64 = 100;

fn compared(before: &Owned, after: &Owned) -> Comparison {
    compare(before.measured(), after.measured())
}

/// In how many of [`TRIALS`] pairs of runs something is called different.
fn different(mut make: impl FnMut(&mut Rng) -> (Owned, Owned)) -> usize {
    let found = (0..TRIALS).filter(|&trial| {
        let (before, after) = make(&mut Rng::with_seed(trial));
        let found = compared(&before, &after);
        assert!(found.kinds.iter().all(|of| of.is_judged()), "{found:?}");
        !found.significant().is_empty()
    });
    found.count()
}

#[test]
fn two_runs_of_the_same_do_not_differ() {
    let chances = zipf(30);
    let on_cpu = different(|random| (on_cpu(&chances, 30, random), on_cpu(&chances, 20, random)));
    let ms: Vec<f64> = zipf(20).iter().map(|chance| 900.0 * chance).collect();
    let waits = different(|random| (waiting(OFF_CPU, &ms, 60, random), waiting(OFF_CPU, &ms, 40, random)));
    let calls = different(|random| (waiting(SYSCALLS, &ms, 30, random), waiting(SYSCALLS, &ms, 30, random)));
    assert!(on_cpu <= 5 && waits <= 5 && calls <= 5, "of {TRIALS}: {on_cpu}, {waits}, {calls}");
}

#[test]
fn phases_of_some_seconds_are_no_difference() {
    // For three seconds at a time the program does one thing mostly.
    let phases = |random: &mut Rng| {
        let mut samples = Vec::new();
        for phase in 0..20 {
            let mut chances = zipf(10);
            chances[random.usize(..10)] += 2.0;
            for i in 0..3 * HZ {
                samples.push((phase * 3 * S + i * S / HZ, pick(&chances, random), 1));
            }
        }
        run(CPU, 60 * S, &samples)
    };
    let found = different(|random| (phases(random), phases(random)));
    assert!(found <= 5, "of {TRIALS}: {found}");
}

#[test]
fn ten_points_are_found_and_the_interval_holds_them() {
    let before = zipf(30);
    let mut after: Vec<f64> = before.iter().map(|chance| 0.9 * chance).collect();
    after[4] += 0.1;
    let truth = 100.0 * (after[4] - before[4]);
    let (mut found, mut held) = (0, 0);
    for trial in 0..TRIALS {
        let random = &mut Rng::with_seed(trial);
        let all = compared(&on_cpu(&before, 30, random), &on_cpu(&after, 30, random));
        let of = all.kinds[0].places.iter().find(|of| of.place.functions == ["f4"]).unwrap();
        found += usize::from(of.is_significant() == Some(true));
        held += usize::from(of.points.low <= truth && truth <= of.points.high);
        assert!((of.units.value / 1e6 - 10.0 * of.points.value).abs() < 0.5, "ms in a second: {of:?}");
    }
    assert!(found >= 99 && held >= 92, "of {TRIALS}: {found} found, {held} held");
}

#[test]
fn longer_waits_and_calls_are_found() {
    for kind in [OFF_CPU, SYSCALLS] {
        let before: Vec<f64> = zipf(20).iter().map(|chance| 900.0 * chance).collect();
        let mut after = before.clone();
        after[3] += 100.0;
        let found = (0..20).filter(|&trial| {
            let random = &mut Rng::with_seed(trial);
            let all = compared(&waiting(kind, &before, 60, random), &waiting(kind, &after, 60, random));
            let of = all.kinds[0].places.iter().find(|of| of.place.functions.contains(&"f3".into()));
            let of = of.unwrap();
            assert!((of.points.value - 10.0).abs() < 6.0, "{of:?}");
            of.is_significant() == Some(true)
        });
        assert!(found.count() >= 19);
    }
}

#[test]
fn of_what_is_called_different_one_in_twenty_may_be_the_same() {
    let before = zipf(40);
    let mut after = before.clone();
    // The same samples are given to others, so that all others stay as they are.
    for (more, less) in [(1, 0), (9, 2), (15, 3)] {
        after[more] += 0.06;
        after[less] -= 0.06;
    }
    let (mut right, mut wrong) = (0, 0);
    for trial in 0..TRIALS {
        let random = &mut Rng::with_seed(trial);
        let all = compared(&on_cpu(&before, 40, random), &on_cpu(&after, 40, random));
        // The function that calls all others is no place of its own.
        for (_, of) in all.significant() {
            let is = |names: &[&str]| of.place.functions.iter().any(|name| names.contains(&name.as_str()));
            if is(&["f0", "f1", "f2", "f3", "f9", "f15"]) { right += 1 } else { wrong += 1 }
        }
    }
    assert!(right > 500, "{right} of 600 found");
    assert!(wrong * 20 <= right, "{wrong} wrong, {right} right");
}

#[test]
fn a_burst_is_one_observation() {
    let chances = zipf(10);
    let mut others = 0;
    for trial in 0..20 {
        let random = &mut Rng::with_seed(trial);
        let before = on_cpu(&chances, 30, random);
        // For a second all four threads do something else.
        let mut samples: Vec<_> = (0..30 * HZ).map(|i| (i * S / HZ, pick(&chances, random), 1)).collect();
        samples.extend((0..4 * HZ).map(|i| (17 * S + i * S / HZ / 4, 77, 1)));
        let found = compared(&before, &run(CPU, 30 * S, &samples));
        let burst = found.kinds[0].places.iter().find(|of| of.place.functions == ["f77"]).unwrap();
        assert!(burst.points.value > 10.0 && burst.is_significant() == Some(false), "{burst:?}");
        others += found.significant().len();
    }
    assert!(others <= 2, "{others}");
}

#[test]
fn what_is_too_short_or_too_little_is_not_judged() {
    let random = &mut Rng::with_seed(1);
    let short = compared(&on_cpu(&zipf(5), 3, random), &on_cpu(&zipf(5), 30, random));
    assert!(!short.kinds[0].is_judged());
    let few: Vec<_> = (0..10).map(|i| (i * 3 * S, i % 2, 1)).collect();
    let few = compared(&run(CPU, 30 * S, &few), &on_cpu(&zipf(5), 30, random));
    let kind = &few.kinds[0];
    assert!(kind.places.iter().all(|of| of.is_significant().is_none()));
    assert_eq!(kind.total.is_significant(), Some(true), "that it hardly ran is a difference");
}

#[test]
fn a_kind_that_one_run_lacks_is_named() {
    let random = &mut Rng::with_seed(1);
    let found = compared(&on_cpu(&zipf(5), 10, random), &waiting(OFF_CPU, &[5.0], 10, random));
    assert!(found.kinds.is_empty());
    assert_eq!(
        found.left_out,
        ["on-CPU: only the first recording holds any", "off-CPU: only the second recording holds any"]
    );
}

#[test]
fn a_program_that_is_called_otherwise_is_compared_all_the_same() {
    let random = &mut Rng::with_seed(1);
    let samples: Vec<_> = (0..30 * HZ).map(|i| (i * S / HZ, pick(&zipf(5), random), 1)).collect();
    let of = |name| run_of(name, CPU, 30 * S, &samples);
    let found = compared(&of("app-1.2"), &of("app-1.3"));
    assert_eq!(found.renamed, Some(["app-1.2".into(), "app-1.3".into()]));
    assert!(
        found.kinds[0]
            .places
            .iter()
            .all(|of| of.place.process == "app-1.3" && of.is_significant() != Some(true))
    );
    assert_eq!(compared(&of("app"), &of("app")).renamed, None);
}
