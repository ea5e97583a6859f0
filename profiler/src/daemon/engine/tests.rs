use std::time::Duration;

use super::*;
use crate::{
    metrics::Budget,
    model::{
        distribution::Summary,
        report::fixtures,
        stack::ThreadKey,
        wait::{Blocking, EventLoop, ThreadTime},
    },
};

const CONFIG: &str = "
    [[targets]]
    name = \"api\"
    comm = \"node\"
    [[receivers]]
    name = \"log\"
    type = \"stderr\"
    [rules.event-loop-delay]
    warmup = \"0s\"
";

/// Remembers what was asked of it.
#[derive(Default)]
struct Asked(Vec<String>);

impl Keeper for Asked {
    fn pin(&mut self, name: &str) {
        self.0.push(format!("pin {name}"));
    }
    fn unpin(&mut self, name: &str) {
        self.0.push(format!("unpin {name}"));
    }
    fn promote(&mut self, name: &str, _alert: &str) -> Vec<String> {
        self.0.push(format!("promote {name}"));
        vec!["/evidence/1.prec".to_owned()]
    }
}

/// A window of 30 s of process 7, whose event loop has this delay, ns.
fn window(delay_ns: u64) -> Run {
    let thread = ThreadKey { pid: 7, tid: 7 };
    let mut run = fixtures::run(&[("renderReport", 90), ("other", 10)]);
    run.cpu.accounts.duration_ns = 30_000_000_000;
    for stack in &mut run.cpu.stacks {
        stack.thread = thread;
    }
    let iterations = Summary { count: 100, p99_ns: delay_ns, max_ns: delay_ns, ..Summary::default() };
    run.blocking = Some(Blocking {
        threads: vec![ThreadTime { thread, on_cpu_ns: 3_000_000_000, ..ThreadTime::default() }],
        loops: vec![EventLoop { thread, iterations, ..EventLoop::default() }],
        ..Blocking::default()
    });
    run
}

fn facts() -> Vec<TargetFacts> {
    vec![TargetFacts {
        pids: [7].into(),
        age_s: 1000.0,
        outside: Outside { cpus: 2.0, descriptors: Some((5, 100)), ..Outside::default() },
    }]
}

fn at(i: u32) -> Now {
    Now { monotonic: Duration::from_secs(30) * (i + 100), unix_ms: 1_795_651_200_000 + 30_000 * i64::from(i) }
}

fn engine(dir: &std::path::Path) -> Engine {
    let config = crate::daemon::config::parse(CONFIG).unwrap();
    let history = History::open(dir, u64::MAX, at(0).unix_ms);
    Engine::new(config, "host".into(), Store::open(dir).unwrap(), history, at(0)).unwrap()
}

fn messages(dir: &std::path::Path) -> Vec<Message> {
    let mut store = Store::open(dir).unwrap();
    let mut found = Vec::new();
    for next in store.due("log", i64::MAX, 1000).unwrap() {
        found.push(serde_json::from_str(&next.body).unwrap());
        store.sent(&[next]).unwrap();
    }
    found
}

#[test]
fn an_alert_is_told_once_when_it_begins_and_once_when_it_ends_with_its_reasons() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = engine(dir.path());
    let mut asked = Asked::default();
    for (i, delay_ms) in [1, 1, 100, 100, 100, 1, 1, 1, 1, 1].into_iter().enumerate() {
        let run = window(delay_ms * 1_000_000);
        engine.window(Some(&run), &facts(), None, at(i as u32), &mut asked).unwrap();
    }
    let name = "event-loop-delay--api";
    let told = messages(dir.path());
    assert_eq!(asked.0[..2], [format!("pin {name}"), format!("promote {name}")]);
    assert_eq!(asked.0[2], format!("pin {}", told[0].alert), "the window after is evidence, too");
    let changes: Vec<&str> = told.iter().map(|message| message.change.as_str()).collect();
    assert_eq!(changes, ["fired", "resolved"]);
    assert_eq!(told[0].alert, told[1].alert);
    assert_eq!((told[0].severity.as_str(), told[0].number), ("critical", Some(0.1)));
    assert_eq!((told[0].value.as_str(), told[0].threshold.as_str()), ("100 ms", "50 ms"));
    let hot = &told[0].hot[0];
    assert_eq!(
        (hot.function.as_str(), hot.percent, hot.before_percent),
        ("renderReport (app.c:7)", 90.0, Some(90.0))
    );
    assert_eq!(told[0].command, "profiler replay /evidence/1.prec --target=api");
    assert_eq!(told[1].reason, "the value is good again");
}

#[test]
fn a_restart_tells_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let mut asked = Asked::default();
    for i in 0..6 {
        // A new engine each window, as if the daemon were killed in between: `for` begins anew, so it takes two.
        let mut engine = engine(dir.path());
        for j in 0..2 {
            let run = window(100_000_000);
            engine.window(Some(&run), &facts(), None, at(2 * i + j), &mut asked).unwrap();
        }
    }
    let told = messages(dir.path());
    assert_eq!(told.len(), 1, "{told:?}");
    let mut engine = engine(dir.path());
    for i in 20..26 {
        engine.window(Some(&window(1_000_000)), &facts(), None, at(i), &mut asked).unwrap();
    }
    let over = messages(dir.path());
    assert_eq!((over.len(), over[0].change.as_str()), (1, "resolved"));
    assert_eq!(over[0].alert, told[0].alert);
}

#[test]
fn a_target_that_has_ended_ends_its_alert_and_its_gauges() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = engine(dir.path());
    let mut asked = Asked::default();
    for i in 0..4 {
        engine.window(Some(&window(100_000_000)), &facts(), None, at(i), &mut asked).unwrap();
    }
    let text = engine.samples.text(Vec::new());
    assert!(
        text.contains("profiler_target_event_loop_delay_seconds{target=\"api\",statistic=\"p99\"} 0.1"),
        "{text}"
    );
    assert!(text.contains("profiler_target_cpu_seconds_total{target=\"api\"} 12"), "{text}");
    engine.window(None, &[TargetFacts::default()], None, at(4), &mut asked).unwrap();
    assert_eq!(messages(dir.path()).last().unwrap().reason, "the target has ended");
    let text = engine.samples.text(Vec::new());
    assert!(!text.contains("event_loop_delay"), "{text}");
    assert!(text.contains("cpu_seconds_total"), "what was counted stays: {text}");
}

#[test]
fn a_rule_that_is_removed_ends_its_alert() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = engine(dir.path());
    let mut asked = Asked::default();
    for i in 0..4 {
        engine.window(Some(&window(100_000_000)), &facts(), None, at(i), &mut asked).unwrap();
    }
    let config = crate::daemon::config::parse(&format!("{CONFIG}\nenabled = false")).unwrap();
    engine.reconfigure(config);
    engine.window(Some(&window(100_000_000)), &facts(), None, at(4), &mut asked).unwrap();
    assert_eq!(messages(dir.path()).last().unwrap().reason, "the configuration has it no more");
}

#[test]
fn what_was_measured_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = engine(dir.path());
    for i in 0..4 {
        engine.window(Some(&window(1_000_000)), &facts(), None, at(i), &mut Asked::default()).unwrap();
    }
    let key = Key { target: "api".into(), metric: "cpu_quota_ratio".into(), label: String::new() };
    let points =
        crate::daemon::history::query(dir.path(), &key, at(0).unix_ms, at(4).unix_ms, 30_000).unwrap();
    assert_eq!(points.len(), 4);
    assert!((points[0].mean - 0.05).abs() < 1e-6, "3 s of 30 s on one of two CPUs: {points:?}");
}

/// Told of windows of these delays, ms, of a process of these ages, s, at these moments.
fn told_of(config: &str, windows: impl Iterator<Item = (u64, f64, Now)>) -> Vec<Message> {
    let dir = tempfile::tempdir().unwrap();
    let history = History::open(dir.path(), u64::MAX, at(0).unix_ms);
    let config = crate::daemon::config::parse(config).unwrap();
    let mut engine =
        Engine::new(config, "host".into(), Store::open(dir.path()).unwrap(), history, at(0)).unwrap();
    for (delay_ms, age_s, now) in windows {
        let facts = TargetFacts { age_s, ..facts().remove(0) };
        engine
            .window(Some(&window(delay_ms * 1_000_000)), &[facts], None, now, &mut Asked::default())
            .unwrap();
    }
    messages(dir.path())
}

#[test]
fn while_the_machine_sleeps_no_rule_moves() {
    // Bad just before it slept, and just after: hours on the wall, but no time in which it was bad.
    let asleep = Now { unix_ms: at(1).unix_ms + 8 * 3_600_000, ..at(0) };
    let told = told_of(CONFIG, [(100, 1000.0, at(0)), (100, 1000.0, asleep)].into_iter());
    assert_eq!(told, []);
}

#[test]
fn a_clock_that_is_set_changes_stamps_and_nothing_else() {
    for jump_ms in [-86_400_000, 86_400_000] {
        let windows = [1, 100, 100, 100, 1, 1, 1, 1].into_iter().zip(0..);
        let windows = windows.map(|(delay_ms, i)| {
            let set = if i >= 2 { jump_ms } else { 0 };
            (delay_ms, 1000.0, Now { unix_ms: at(i).unix_ms + set, ..at(i) })
        });
        let told = told_of(CONFIG, windows);
        let changes: Vec<&str> = told.iter().map(|message| message.change.as_str()).collect();
        assert_eq!(changes, ["fired", "resolved"]);
    }
}

const PREDICTS: &str = "
    [[targets]]
    name = \"api\"
    comm = \"node\"
    [[receivers]]
    name = \"log\"
    type = \"stderr\"
    [rules.event-loop-delay]
    enabled = false
    [rules.soon]
    metric = \"event_loop_delay_seconds.p99\"
    critical = \"10s\"
    predict = \"1h\"
    for = \"0s\"
";

#[test]
fn growth_is_told_before_the_threshold_with_a_range_of_times() {
    // 50 ms more each 30 s: an hour before 10 s it is at 4 s, after 80 windows.
    let growing = |i: u32| (50 * u64::from(i), 100.0 + 30.0 * f64::from(i), at(i));
    assert_eq!(told_of(PREDICTS, (0..75).map(growing)), []);
    let told = told_of(PREDICTS, (0..90).map(growing));
    assert_eq!((told.len(), told[0].severity.as_str()), (1, "warning"), "{told:?}");
    let left_s = told[0].number.unwrap();
    assert!((3400.0..=3600.0).contains(&left_s), "{left_s}");
    assert!(told[0].value.contains(" now, 10 s in "), "{}", told[0].value);
    assert_eq!(told[0].threshold, "within 1h");
}

#[test]
fn what_grew_before_a_restart_says_nothing_of_what_comes_after() {
    // It is started again every 15 windows and grows as before: no part of its life is long enough.
    let restarted = |i: u32| (50 * u64::from(i), 30.0 * f64::from(i % 15), at(i));
    assert_eq!(told_of(PREDICTS, (0..190).map(restarted)), []);
}

#[test]
fn what_could_not_be_stored_is_told_as_soon_as_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = engine(dir.path());
    let other = rusqlite::Connection::open(dir.path().join("alerts.sqlite")).unwrap();
    other.execute_batch("ALTER TABLE outbox RENAME TO away").unwrap();
    let run = window(100_000_000);
    let bad = |engine: &mut Engine, i| {
        engine.window(Some(&run), &facts(), None, at(i), &mut Asked::default()).map_err(drop)
    };
    let results: Vec<bool> = (0..4).map(|i| bad(&mut engine, i).is_ok()).collect();
    assert!(!results[2], "{results:?}");
    assert!(engine.samples.count() > 0, "metrics go on");
    other.execute_batch("ALTER TABLE away RENAME TO outbox").unwrap();
    (4..7).for_each(|i| bad(&mut engine, i).unwrap());
    let told = messages(dir.path());
    assert_eq!((told.len(), told[0].change.as_str()), (1, "fired"), "{told:?}");
}

#[test]
fn restarts_are_counted_over_the_time_in_which_nothing_ran() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = engine(dir.path());
    let ages = [100.0, 130.0, 0.0, 10.0, 40.0, 5.0];
    for (age_s, i) in ages.into_iter().zip(0..) {
        let run = window(1_000_000);
        let facts = match age_s {
            0.0 => TargetFacts::default(),
            age_s => TargetFacts { age_s, ..facts().remove(0) },
        };
        engine.window(Some(&run), &[facts], None, at(i), &mut Asked::default()).unwrap();
    }
    let text = engine.samples.text(Vec::new());
    assert!(text.contains("profiler_target_restarts_total{target=\"api\"} 2"), "{text}");
}

#[test]
fn a_baseline_is_the_same_hour_of_the_day_before() {
    let config =
        PREDICTS.replace("critical = \"10s\"\n    predict = \"1h\"", "warning = 1.5\n    baseline = \"1d\"");
    // A day of 10 ms with a little noise, thinned, then 20 ms.
    let noise = |i: u32| u64::from(i * 7 % 5);
    let day = (0..2880 + 15).map(|i| {
        let delay_ms = if i < 2880 { 100 + noise(i) } else { 200 + noise(i) };
        (delay_ms, 1e6, at(i))
    });
    let told = told_of(
        &config,
        day.filter(|(.., now)| {
            let i = (now.unix_ms - at(0).unix_ms) / 30_000;
            !(80..=2860).contains(&i)
        }),
    );
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].value.contains("times as high as 1day before"), "{}", told[0].value);
    // Its last windows are still mixed when it is said.
    assert!((1.5..2.1).contains(&told[0].number.unwrap()), "{told:?}");
}

#[test]
fn slow_answers_are_told_with_the_route_and_where_its_time_goes() {
    let config = format!("{CONFIG}[rules.response-time]\nwarmup = \"0s\"\n");
    let dir = tempfile::tempdir().unwrap();
    let history = History::open(dir.path(), u64::MAX, at(0).unix_ms);
    let config = crate::daemon::config::parse(&config).unwrap();
    let store = Store::open(dir.path()).unwrap();
    let mut engine = Engine::new(config, "host".into(), store, history, at(0)).unwrap();
    for (p95_s, i) in [0, 2, 2, 6, 6, 0, 0, 0, 0].into_iter().zip(0..) {
        let mut run = window(1_000_000);
        let mut requests = crate::model::request::fixtures::requests();
        let served = requests.peers.iter_mut().filter(|peer| !peer.routes.is_empty());
        for peer in served {
            peer.first.p95_ns = p95_s * 1_000_000_000;
        }
        run.requests = Some(requests);
        engine.window(Some(&run), &facts(), None, at(i), &mut Asked::default()).unwrap();
    }
    let told = messages(dir.path());
    let changes: Vec<(&str, &str, &str)> =
        told.iter().map(|of| (&*of.rule, &*of.change, &*of.value)).collect();
    let rule = "response-time";
    assert_eq!(changes, [(rule, "fired", "2 s"), (rule, "escalated", "6 s"), (rule, "resolved", "0 ns")]);
    let route = &told[0].routes[0];
    assert_eq!((&*route.operation, &*route.at), ("GET /users/:id", ":8080"));
    assert_eq!(route.goes[0], ("on a CPU".to_owned(), 20_000_000));
}

#[test]
fn a_profiler_that_costs_too_much_says_so_of_itself() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = engine(dir.path());
    for i in 0..40 {
        let cpu = if (5..25).contains(&i) { 0.15 } else { 0.025 };
        let budget = Budget { cpu, most_cpu: 0.1, memory_bytes: 9e7, most_memory_bytes: 5e8, shed: (5, 5) };
        let own = Itself { age: Duration::from_secs(1000), budget: Some(budget), ..Itself::default() };
        engine.window(Some(&window(1_000_000)), &facts(), Some(&own), at(i), &mut Asked::default()).unwrap();
        if i == 10 {
            assert_eq!(messages(dir.path()), [], "it is given the time to see less");
        }
    }
    let told = messages(dir.path());
    let changes: Vec<(&str, &str, &str)> =
        told.iter().map(|of| (&*of.rule, &*of.target, &*of.change)).collect();
    assert_eq!(changes, [("own-cpu", OWN, "fired"), ("own-cpu", OWN, "resolved")]);
    assert!(told[0].verdict.contains("15.0 % of a CPU (10.0 % allowed)"), "{}", told[0].verdict);
    let text = engine.samples.text(Vec::new());
    let line = "profiler_target_own_budget_ratio{target=\"~profiler\",resource=\"cpu\"} 0.25";
    assert!(text.contains(line), "{text}");
    assert!(!text.contains("own_budget_ratio{target=\"api\""), "{text}");
    let of_itself = engine.standings().into_iter().filter(|of| of.target == OWN);
    let rules: Vec<String> = of_itself.map(|of| of.rule).collect();
    assert_eq!(rules, ["own-cpu", "own-memory", "own-windows"], "no other rule is asked of it");
}

#[test]
fn a_window_that_failed_ends_nothing_and_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = engine(dir.path());
    let mut step = |i: u32, run: Option<&Run>, failed: usize| {
        let why = "the disk is full".to_owned();
        let own = Itself { age: Duration::from_secs(1000), budget: None, failed: (failed, 10), why };
        engine.window(run, &facts(), Some(&own), at(i), &mut Asked::default()).unwrap();
        let own = engine.samples.iter().any(|(metric, ..)| metric.name == "own_failed_windows");
        let of_target = engine.samples.iter().any(|(metric, ..)| metric.name == "processes");
        (own, of_target)
    };
    let sick = window(100_000_000);
    for i in 0..3 {
        assert_eq!(step(i, Some(&sick), 0), (true, true));
    }
    assert_eq!(messages(dir.path()).len(), 1, "the target's alert");
    for i in 3..13 {
        assert_eq!(step(i, None, (i - 2) as usize), (true, false), "what is not known is absent");
    }
    let told = messages(dir.path());
    let changes: Vec<(&str, &str, &str)> =
        told.iter().map(|of| (&*of.rule, &*of.target, &*of.change)).collect();
    assert_eq!(changes, [("own-windows", OWN, "fired"), ("own-windows", OWN, "escalated")]);
    assert_eq!(told[0].verdict, "of the last 10 windows 2 failed; the last: the disk is full");
    for i in 13..20 {
        step(i, Some(&window(1_000_000)), 0);
    }
    let over: Vec<String> = messages(dir.path()).into_iter().map(|of| of.reason).collect();
    assert_eq!(over, ["the value is good again"; 2], "both end as soon as that is seen");
}

#[test]
fn what_cannot_be_stored_is_told_at_once_and_stored_later_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = engine(dir.path());
    let other = rusqlite::Connection::open(dir.path().join("alerts.sqlite")).unwrap();
    let full =
        "CREATE TRIGGER full BEFORE INSERT ON journal BEGIN SELECT RAISE(ABORT, 'the disk is full'); END";
    other.execute_batch(full).unwrap();
    let mut urgent: Vec<(String, Vec<String>)> = Vec::new();
    let mut errors = Vec::new();
    for (delay_ms, i) in [100, 100, 100, 1, 1, 1, 1].into_iter().zip(0..) {
        let run = window(delay_ms * 1_000_000);
        let done = engine.window(Some(&run), &facts(), None, at(i), &mut Asked::default());
        errors.extend(done.err().map(|error| format!("{error:#}")));
        urgent.extend(engine.urgent().iter().map(|(of, to)| (of.message.clone(), to.clone())));
    }
    let told: Vec<&str> = urgent.iter().filter_map(|(of, _)| Some(of.split_once('-')?.1)).collect();
    assert_eq!((told, engine.unstored()), (vec!["fired", "resolved"], 2), "each once");
    assert!(urgent.iter().all(|(_, to)| to == &["log"]));
    assert!(
        errors.iter().all(|error| error.contains("cannot be stored yet: the disk is full")),
        "{errors:?}"
    );
    assert_eq!(messages(dir.path()), []);
    other.execute_batch("DROP TRIGGER full").unwrap();
    engine.window(Some(&window(1_000_000)), &facts(), None, at(9), &mut Asked::default()).unwrap();
    let stored: Vec<String> = messages(dir.path()).into_iter().map(|of| of.message).collect();
    assert_eq!(stored, urgent.into_iter().map(|(of, _)| of).collect::<Vec<_>>(), "by the same ids");
    assert_eq!((engine.unstored(), engine.urgent().len()), (0, 0));
}

#[test]
fn the_command_of_a_message_is_safe_in_a_shell() {
    use super::alerts::replay;
    assert_eq!(replay("/e/1.prec", "~profiler"), "profiler replay /e/1.prec");
    assert_eq!(replay("/my e/1.prec", "it's; $x"), r"profiler replay '/my e/1.prec' --target='it'\''s; $x'");
}
