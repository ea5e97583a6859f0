use super::*;

const S: Duration = Duration::from_secs(1);

/// Above 10 warns, above 50 is critical, for 30 s; ends after 60 s below 9; quiet for 300 s.
fn rule() -> Rule {
    Rule { warning: Some(10.0), critical: Some(50.0), warmup: Duration::ZERO, ..Rule::default() }
}

/// Steps a rule through values, one every 10 s from 1,000 s on, and gives what changed, with the second it changed at.
fn run(rule: &Rule, readings: &[Reading]) -> Vec<(u64, Transition)> {
    let mut state = State::default();
    let each = readings.iter().enumerate().filter_map(|(i, &reading)| {
        let now = S * (1000 + 10 * i as u32);
        let moment = Moment { now, target_age: now, inhibited: false };
        Some((10 * i as u64, step(rule, &mut state, reading, moment)?))
    });
    each.collect()
}

fn values(values: &[f64]) -> Vec<Reading> {
    values.iter().map(|&value| Reading::Value(value)).collect()
}

use Severity::{Critical, Warning};
use Transition::{Dropped, Escalated, Fired, Pending, Resolved};

#[test]
fn a_short_excess_is_no_alert() {
    let changes = run(&rule(), &values(&[1.0, 20.0, 20.0, 20.0, 1.0, 1.0]));
    assert_eq!(changes, [(10, Pending(Warning)), (40, Dropped)]);
}

#[test]
fn an_excess_that_lasts_fires_once_and_is_resolved_once() {
    let mut series = vec![20.0; 10];
    series.extend([1.0; 20]);
    let changes = run(&rule(), &values(&series));
    assert_eq!(changes, [(0, Pending(Warning)), (30, Fired(Warning)), (160, Resolved(Resolution::Cleared))]);
}

#[test]
fn between_clear_and_warning_it_goes_on_to_fire() {
    let series: Vec<f64> = [20.0; 4].into_iter().chain([9.5; 40]).collect();
    assert_eq!(run(&rule(), &values(&series)), [(0, Pending(Warning)), (30, Fired(Warning))]);
}

#[test]
fn what_flaps_faster_than_it_clears_is_one_alert() {
    let series: Vec<f64> = (0..100).map(|i| if i % 4 == 3 { 1.0 } else { 20.0 }).collect();
    let changes = run(&rule(), &values(&series));
    let fired = changes.iter().filter(|(_, change)| matches!(change, Fired(_))).count();
    assert!(fired <= 1, "{changes:?}");
    assert!(!changes.iter().any(|(_, change)| matches!(change, Resolved(_))), "{changes:?}");
}

#[test]
fn it_gets_worse_within_one_alert() {
    let series: Vec<f64> = [20.0; 5].into_iter().chain([60.0; 5]).chain([20.0; 5]).collect();
    assert_eq!(
        run(&rule(), &values(&series)),
        [(0, Pending(Warning)), (30, Fired(Warning)), (80, Escalated)]
    );
}

#[test]
fn what_is_critical_at_once_fires_as_critical() {
    assert_eq!(run(&rule(), &values(&[60.0; 5])), [(0, Pending(Critical)), (30, Fired(Critical))]);
}

#[test]
fn after_an_alert_it_is_quiet_for_the_cooldown() {
    let series: Vec<f64> = [20.0; 4].into_iter().chain([1.0; 8]).chain([20.0; 40]).collect();
    let changes = run(&rule(), &values(&series));
    let resolved = changes.iter().find(|(_, change)| matches!(change, Resolved(_))).unwrap().0;
    let again = changes.iter().filter(|(_, change)| matches!(change, Fired(_))).nth(1).unwrap().0;
    assert_eq!((resolved, again), (100, 400), "{changes:?}");
}

#[test]
fn what_is_not_known_does_what_the_rule_says() {
    let unknown = |no_data| {
        let mut readings = values(&[20.0; 4]);
        readings.extend([Reading::Nothing; 20]);
        run(&Rule { no_data, ..rule() }, &readings).last().copied().unwrap()
    };
    assert_eq!(unknown(NoData::Keep), (30, Fired(Warning)));
    assert_eq!(unknown(NoData::Resolve), (40, Resolved(Resolution::NoData)));
    assert_eq!(
        run(&Rule { no_data: NoData::Alert, ..rule() }, &[Reading::Nothing; 5])[1],
        (30, Fired(Warning))
    );
}

#[test]
fn a_window_that_failed_ends_no_alert() {
    for no_data in [NoData::Keep, NoData::Resolve, NoData::Alert] {
        let mut readings = values(&[20.0; 4]);
        readings.extend([Reading::Unseen; 20]);
        let changes = run(&Rule { no_data, ..rule() }, &readings);
        assert_eq!(changes, [(0, Pending(Warning)), (30, Fired(Warning))], "{no_data:?}");
    }
    let unseen = [Reading::Unseen; 5];
    assert_eq!(run(&rule(), &unseen), []);
    assert_eq!(run(&Rule { no_data: NoData::Alert, ..rule() }, &unseen)[1], (30, Fired(Warning)));
}

#[test]
fn unknown_time_is_no_good_time() {
    let mut readings = values(&[20.0, 20.0, 20.0, 20.0, 1.0]);
    readings.extend([Reading::Nothing; 3]);
    readings.extend(values(&[20.0; 3]));
    assert_eq!(run(&rule(), &readings), [(0, Pending(Warning)), (30, Fired(Warning))]);
}

#[test]
fn a_target_that_is_gone_ends_its_alert_and_says_so() {
    let mut readings = values(&[20.0; 5]);
    readings.push(Reading::Gone);
    assert_eq!(run(&rule(), &readings).last(), Some(&(50, Resolved(Resolution::TargetGone))));
}

#[test]
fn nothing_is_said_while_a_target_warms_up_or_another_alert_explains_it() {
    let mut state = State::default();
    let slow_start = Rule { warmup: S * 600, ..rule() };
    for i in 0..50 {
        let moment = Moment { now: S * 10 * i, target_age: S * 10 * i, inhibited: false };
        assert_eq!(step(&slow_start, &mut state, Reading::Value(99.0), moment), None);
    }
    let mut state = State::default();
    for i in 0..50 {
        let moment = Moment { now: S * 10 * i, target_age: S * 1000, inhibited: true };
        let change = step(&rule(), &mut state, Reading::Value(99.0), moment);
        assert!(!matches!(change, Some(Fired(_))));
    }
    assert_eq!(state.phase(), Phase::Pending);
}

#[test]
fn findings_are_readings_too() {
    let leak = BUILT_IN.iter().find(|rule| rule.id == "leak").unwrap().clone();
    let leak = Rule { warmup: Duration::ZERO, hold: Duration::ZERO, ..leak };
    let mut readings = vec![Reading::Found(Some(Warning)), Reading::Found(Some(Critical))];
    readings.extend([Reading::Found(None); 8]);
    assert_eq!(
        run(&leak, &readings),
        [(0, Fired(Warning)), (10, Escalated), (80, Resolved(Resolution::Cleared))]
    );
}

#[test]
fn below_is_the_mirror_of_above() {
    let rule = Rule { op: Op::Below, warning: Some(3600.0), critical: Some(900.0), ..rule() };
    assert_eq!(rule.severity(4000.0), None);
    assert_eq!(rule.severity(3600.0), Some(Warning));
    assert_eq!(rule.severity(10.0), Some(Critical));
    assert!(rule.is_clear(4000.0) && !rule.is_clear(3700.0));
}

#[test]
fn built_in_rules_are_distinct() {
    let mut ids: Vec<&str> = BUILT_IN.iter().map(|rule| rule.id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), BUILT_IN.len());
    for rule in BUILT_IN.iter() {
        assert!(rule.metric.is_empty() != rule.finding.is_empty(), "{}: a metric or findings", rule.id);
        let before = BUILT_IN.iter().take_while(|other| other.id != rule.id);
        let before: Vec<&str> = before.map(|other| other.id.as_str()).collect();
        assert!(rule.inhibited_by.iter().all(|other| before.contains(&other.as_str())), "{}", rule.id);
    }
}

proptest::proptest! {
    /// Whatever comes, alerts begin and end in turns, and never without being pending for as long as the rule says.
    #[test]
    fn alerts_begin_and_end_in_turns(series in proptest::collection::vec(0.0f64..80.0, 0..200), hold in 0u64..60) {
        let rule = Rule { hold: Duration::from_secs(hold), ..rule() };
        let mut fires = false;
        let mut bad_for = 0;
        for (value, (_, change)) in series.iter().zip(run_all(&rule, &series)) {
            bad_for = if *value >= 10.0 { bad_for + 1 } else { 0 };
            match change {
                Some(Fired(_)) => {
                    proptest::prop_assert!(!fires && (bad_for - 1) * 10 >= hold);
                    fires = true;
                }
                Some(Resolved(_)) => {
                    proptest::prop_assert!(fires);
                    fires = false;
                }
                Some(Escalated) => proptest::prop_assert!(fires),
                Some(Pending(_) | Dropped) => proptest::prop_assert!(!fires),
                None => {}
            }
        }
    }
}

/// As [`run`], with the steps at which nothing changed.
fn run_all(rule: &Rule, series: &[f64]) -> Vec<(f64, Option<Transition>)> {
    let mut state = State::default();
    let each = series.iter().enumerate().map(|(i, &value)| {
        let moment = Moment { now: S * (10 * i as u32), target_age: S * 1000, inhibited: false };
        (value, step(rule, &mut state, Reading::Value(value), moment))
    });
    each.collect()
}
