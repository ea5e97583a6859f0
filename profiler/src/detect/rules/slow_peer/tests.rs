//! Peers made by hand, and what is said of them.

use super::*;
use crate::{
    detect::{judge, rule::Overrides},
    model::{
        request::{Exchanges, Route},
        syscall::{Calls, ObjectIo},
        vitals::Vitals,
    },
};

fn run(awaited: u64) -> Run {
    let mut run = crate::model::report::fixtures::run(&[]);
    run.cpu.accounts.duration_ns = 10_000_000_000;
    run.blocking = Some(crate::model::wait::Blocking::default());
    let peer = Peer { peer: "10.0.0.2:80".into(), samples: 10, judged: 10, awaited, ..Peer::default() };
    let of = ProcessVitals {
        pid: 7,
        process: "api".into(),
        samples: 10,
        peers: vec![peer],
        ..ProcessVitals::default()
    };
    run.vitals = Some(Vitals { processes: vec![of], unlisted: 0 });
    run
}

#[test]
fn who_waits_for_an_upstream_is_not_idle() {
    let mut run = run(9);
    judge(&mut run, &Overrides::default());
    let verdict = run.verdict.clone().unwrap();
    assert_eq!(verdict.bottleneck, Bottleneck::Network);
    assert!(verdict.sentence.contains("90 % of the time api (pid 7) waits for 10.0.0.2:80"), "{verdict:?}");
    let object = ObjectIo {
        pid: 7,
        process: "api".into(),
        object: "tcp 10.0.0.1:4711 -> 10.0.0.2:80".into(),
        round_trips: 30,
        round_trip_ns: 9_000_000_000,
        ..ObjectIo::default()
    };
    run.calls = Some(Calls { objects: vec![object], ..Calls::default() });
    judge(&mut run, &Overrides::default());
    let slow = run.findings.iter().find(|finding| finding.rule == RULE.name).unwrap();
    assert_eq!(slow.severity, Severity::Warning);
    assert!(slow.title.contains("30 answers took 300 ms each"), "{}", slow.title);
}

#[test]
fn that_many_requests_await_one_answer_at_a_time_is_said() {
    let found = |in_progress: u64, at_once: u64| {
        let mut run = run(0);
        let mut requests = crate::model::request::fixtures::requests();
        let [asked, served] = &mut requests.peers[..] else { panic!() };
        served.first.sum_ns = in_progress * 10_000_000_000;
        (asked.first.sum_ns, asked.awaited_ns) = (at_once * 9_000_000_000, 9_000_000_000);
        run.requests = Some(requests);
        let found = check(&run, &Overrides::default().of(&RULE)).pop().unwrap();
        (found.severity, found.title.contains("one answer at a time is awaited"))
    };
    assert_eq!(found(8, 1), (Severity::Warning, true));
    assert_eq!((found(8, 4), found(1, 1)), ((Severity::Info, false), (Severity::Info, false)));
}

#[test]
fn who_asks_for_work_waits_for_no_slow_peer() {
    let found = |operation: &str| {
        let mut run = run(0);
        let mut requests = crate::model::request::fixtures::requests();
        let [asked, _] = &mut requests.peers[..] else { panic!() };
        asked.protocol = "redis".into();
        (asked.first.sum_ns, asked.awaited_ns) = (9_000_000_000, 9_000_000_000);
        asked.first.count = 30;
        let first = asked.first;
        asked.routes = vec![Route { operation: operation.into(), first, ..Route::default() }];
        run.requests = Some(requests);
        let found = check(&run, &Overrides::default().of(&RULE)).pop().unwrap();
        (found.severity, found.cost.share_of_wall > 0.0)
    };
    assert_eq!(found("BRPOP"), (Severity::Info, false));
    assert_eq!(found("GET"), (Severity::Warning, true));
}

#[test]
fn the_slowest_answers_are_told_where_most_come_soon() {
    // So many answers in 10 s, of which the slowest take so long, ms.
    let found_with = |count: u64, p99_ms: u64, operation: &str, change: fn(&mut Exchanges)| {
        let mut run = run(0);
        let mut requests = crate::model::request::fixtures::requests();
        let [asked, _] = &mut requests.peers[..] else { panic!() };
        (asked.protocol, asked.retransmits) = ("redis".into(), 30);
        asked.first = Summary {
            count,
            p50_ns: 2_000_000,
            p99_ns: p99_ms * 1_000_000,
            sum_ns: count * 11_000_000,
            ..Summary::default()
        };
        let first = asked.first;
        let route = |operation: &str, p99_ns| Route {
            operation: operation.into(),
            first: Summary { p99_ns, ..first },
            ..Route::default()
        };
        asked.routes = vec![route("GET", 5), route(operation, 9)];
        change(asked);
        run.requests = Some(requests);
        let found = check(&run, &Overrides::default().of(&RULE));
        found.into_iter().map(|of| (of.severity, of.title)).collect::<Vec<_>>()
    };
    let found = |count, p99_ms, operation| found_with(count, p99_ms, operation, |_| ());
    let many = found_with(1000, 900, "KEYS", |peer| peer.awaited_ns = 9_900_000_000);
    assert_eq!(many[0].0, Severity::Warning, "900 ms of each second one of them is awaited");
    let tail = "half of them up to 2 ms, one in a hundred 900 ms and more, mostly KEYS; 30 segments";
    assert!(many[0].1.contains(tail), "{many:?}");
    let few = found(400, 300, "KEYS");
    assert_eq!(few[0].0, Severity::Info, "{few:?}");
    // On a hundred connections: 2,000 s of answers, of which 200 s are those of the slowest.
    let at_once = found_with(100_000, 200, "KEYS", |peer| {
        (peer.first.sum_ns, peer.awaited_ns) = (2_000_000_000_000, 9_900_000_000);
    });
    assert_eq!(at_once[0].0, Severity::Info, "{at_once:?}");
    let but = |change| found_with(1000, 900, "KEYS", change).len();
    assert_eq!(but(|peer| peer.queued.p99_ns = 800_000_000), 0, "read late");
    assert_eq!(but(|peer| peer.batches = 1100), 0, "not told apart");
    assert!(found(1000, 30, "KEYS").is_empty() && found(200, 900, "KEYS").is_empty());
    assert!(found(1000, 900, "BLPOP").is_empty(), "it waits for work");
}

#[test]
fn a_pool_that_is_used_up_is_told() {
    // Answers awaited at once, on average, and requests in progress, with a pool of four.
    let found = |at_once: u64, in_progress: u64, processes: u64| {
        let mut run = run(0);
        let mut requests = crate::model::request::fixtures::requests();
        let [asked, served] = &mut requests.peers[..] else { panic!() };
        served.first.sum_ns = in_progress * 10_000_000_000;
        (asked.first.sum_ns, asked.awaited_ns) = (at_once * 9_800_000_000, 9_800_000_000);
        asked.processes = processes;
        run.requests = Some(requests);
        let found = check(&run, &Overrides::default().of(&RULE)).pop().unwrap();
        (found.severity, found.title.contains("all 4 connections to it are in use all the time"))
    };
    assert_eq!(found(4, 20, 1), (Severity::Warning, true));
    assert_eq!(found(4, 6, 1), (Severity::Info, false), "none waits");
    assert_eq!((found(3, 20, 1).1, found(4, 20, 4).1), (false, false));
}

#[test]
fn segments_that_were_sent_again_are_told_where_they_matter() {
    let lost = |resent, answers| Waits { resent, answers, ..Waits::default() }.lost();
    assert_eq!(lost(1200, 40_000), "; 1,200 segments were sent again");
    assert_eq!((lost(9, 10), lost(20, 40_000)), (String::new(), String::new()));
}

#[test]
fn what_several_processes_of_a_program_ask_is_told_once() {
    let mut run = run(9);
    let mut requests = crate::model::request::fixtures::requests();
    let [asked, _] = &mut requests.peers[..] else { panic!() };
    (asked.pid, asked.process, asked.processes) = (6, "app".into(), 4);
    asked.peer = "10.0.0.2:80".into();
    (asked.first.sum_ns, asked.awaited_ns) = (36_000_000_000, 36_000_000_000);
    run.requests = Some(requests);
    let processes = &mut run.vitals.as_mut().unwrap().processes;
    processes[0].process = "app".into();
    processes.push(ProcessVitals { pid: 8, ..processes[0].clone() });
    let found = check(&run, &Overrides::default().of(&RULE));
    let titles: Vec<&str> = found.iter().map(|of| &*of.title).collect();
    assert!(matches!(titles[..], [title] if title.contains("app (4 processes) waits for")), "{titles:?}");
}

#[test]
fn a_peer_that_never_answers_in_time_is_told() {
    let mut run = run(0);
    let mut requests = crate::model::request::fixtures::requests();
    let [asked, _] = &mut requests.peers[..] else { panic!() };
    (asked.first, asked.unanswered, asked.awaited_ns) = (Summary::default(), 312, 9_000_000_000);
    run.requests = Some(requests);
    let found = check(&run, &Overrides::default().of(&RULE)).pop().unwrap();
    assert_eq!(found.severity, Severity::Warning);
    assert!(found.title.contains("312 of 312 questions had no answer"), "{}", found.title);
}

#[test]
fn a_slow_name_server_is_a_slow_peer() {
    let stack = "clone3;worker;uv__getaddrinfo_work;getaddrinfo;__res_context_send;send_dg;poll";
    let mut run = crate::detect::blocked::fixtures::run(stack, WaitCause::Poll, &[7_000_000_000]);
    run.vitals = Some(Vitals::default());
    judge(&mut run, &Overrides::default());
    let found = &run.findings[0];
    assert_eq!((found.rule, found.severity), (RULE.name, Severity::Warning));
    assert!(found.title.contains("70 %") && found.title.contains("DNS"), "{}", found.title);
}

#[test]
fn who_calls_himself_waits_for_no_peer() {
    let found = |listens| {
        let mut run = run(9);
        let of = &mut run.vitals.as_mut().unwrap().processes[0];
        of.listens = listens;
        of.peers[0].peer = "127.0.0.1:80".into();
        let clients = Peer { peer: "clients of :80".into(), clients: true, samples: 10, ..Peer::default() };
        of.peers.push(clients);
        check(&run, &Overrides::default().of(&RULE)).len()
    };
    assert_eq!((found(true), found(false)), (0, 1));
}

#[test]
fn a_long_poll_waits_for_work() {
    let severity = |ns: u64| {
        let mut run = run(9);
        run.vitals.as_mut().unwrap().processes[0].peers[0].longest_awaited_ns = ns;
        check(&run, &Overrides::default().of(&RULE))[0].severity
    };
    assert_eq!(
        [4_000_000, 300_000_000, 20_000_000_000].map(severity),
        [Severity::Info, Severity::Warning, Severity::Info]
    );
}

#[test]
fn an_answer_that_comes_at_once_is_no_wait() {
    assert!(check(&run(1), &Overrides::default().of(&RULE)).is_empty());
}
