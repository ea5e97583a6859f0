//! Runs made by hand, and the verdict on them.

use super::*;
use crate::model::{
    finding::ProcessName,
    loss::Loss,
    report::fixtures,
    wait::{Blocking, ThreadTime},
};

#[test]
fn what_there_was_no_room_for_is_said_beside_the_verdict() {
    let mut run = fixtures::run(&[]);
    let says = |run: &Run, what: &str| verdict(run).blind.iter().any(|of| of.contains(what));
    run.cpu.accounts.losses.add(Loss::OffCpuStacksSkipped, 9);
    assert!(!says(&run, "blocks"), "these are accounted for");
    run.cpu.accounts.losses.add(Loss::ThreadsFull, 1200);
    assert!(says(&run, "1,200 threads not accounted for"), "{:?}", verdict(&run).blind);
}

#[test]
fn who_has_ended_cannot_be_looked_at_for_longer() {
    let mut run = fixtures::run(&[("main", 3)]);
    assert!(verdict(&run).advice.contains("look for longer"), "{:?}", verdict(&run));
    run.cpu.accounts.targets_ended = true;
    let advice = verdict(&run).advice;
    assert!(advice.contains("it has ended") && !advice.contains("longer"), "{advice}");
}

/// The verdict on a target with time left, whose requests were changed so.
fn of_requests(change: impl Fn(&mut Exchanges)) -> Verdict {
    let mut run = fixtures::run(&[("main;handle;sort", 60), ("main;handle", 40)]);
    run.cpu.accounts.duration_ns = 100_000_000_000;
    let mut requests = crate::model::request::fixtures::requests();
    change(requests.peers.iter_mut().find(|peer| !peer.routes.is_empty()).unwrap());
    run.requests = Some(requests);
    verdict(&run)
}

#[test]
fn what_requests_take_their_time_for_is_told_though_nothing_lacks_time() {
    // 1,000 of 30 ms in 100 s, 20 of them on a CPU.
    let said = of_requests(|_| ());
    assert_eq!(said.bottleneck, Bottleneck::Cpu, "{said:?}");
    assert!(
        said.sentence.contains("GET /users/:id of app (pid 7) takes 30 ms, 67 % of it on a CPU"),
        "{said:?}"
    );
    assert!(said.sentence.contains("60 % of the CPU time of app is in sort"), "{said:?}");
    assert!((said.share_of_wall - 0.2).abs() < 1e-9, "{said:?}");
    let goes = |change: fn(&mut crate::model::request::Breakdown)| {
        of_requests(|peer| change(peer.routes[0].breakdown.as_mut().unwrap())).bottleneck
    };
    assert_eq!(goes(|goes| (goes.disk_ns, goes.on_cpu_ns) = (20_000_000, 0)), Bottleneck::Io);
    assert_eq!(goes(|goes| (goes.awaiting_ns, goes.on_cpu_ns) = (20_000_000, 0)), Bottleneck::Network);
    assert_eq!(goes(|goes| goes.on_cpu_ns = 0), Bottleneck::None, "nothing is most of it");
    assert_eq!(goes(|goes| goes.total_ns = 900_000), Bottleneck::None, "soon enough");
    let seldom = of_requests(|peer| peer.routes[0].first.sum_ns /= 10);
    assert_eq!(seldom.bottleneck, Bottleneck::None);
    assert!(seldom.sentence.contains("it answers at :8080 in 30 ms (p50)"), "{seldom:?}");
}

/// A run of 10 s on two CPUs, of which each of four threads used so much, ns.
fn four_threads(on_cpu_ns: u64) -> Run {
    let mut run = fixtures::run(&[("main;handle;sort", 60), ("main;handle", 40)]);
    run.cpu.accounts.duration_ns = 10_000_000_000;
    run.cpu.meta.cpus = 2;
    let thread = ThreadKey { pid: 7, tid: 8 };
    let thread = ThreadTime { thread, wall_ns: 10_000_000_000, on_cpu_ns, ..ThreadTime::default() };
    run.blocking = Some(Blocking { threads: vec![thread; 4], ..Blocking::default() });
    run
}

#[test]
fn threads_that_together_use_one_cpu_may_run_one_at_a_time() {
    let said = |on_cpu_ns: u64| verdict(&four_threads(on_cpu_ns));
    let one = said(2_400_000_000);
    assert_eq!(one.bottleneck, Bottleneck::Cpu);
    assert!(
        one.sentence.contains("96 % of one CPU, 60 % of that in sort (app.c:7): as much as one task at a"),
        "{one:?}"
    );
    assert_eq!([said(1_200_000_000).bottleneck, said(3_500_000_000).bottleneck], [Bottleneck::None; 2]);
    let mut two = four_threads(2_400_000_000);
    two.blocking.as_mut().unwrap().threads[0].thread = ThreadKey { pid: 9, tid: 9 };
    assert_eq!(verdict(&two).bottleneck, Bottleneck::None, "two processes");
}

#[test]
fn who_sleeps_is_told_with_the_place_and_what_it_may_be_for() {
    let said = |stack: &str, share: f64| {
        let mut run = fixtures::run(&[]);
        run.cpu.accounts.duration_ns = 10_000_000_000;
        run.blocking = Some(Blocking::default());
        let mut off_cpu = fixtures::run(&[(stack, (share * 1e10) as u64)]).cpu;
        off_cpu.stacks[0].cause = Some(WaitCause::Sleep);
        run.cpu.names = off_cpu.names.clone();
        run.off_cpu = Some(off_cpu);
        verdict(&run)
    };
    let waits = said("main;writer;__nanosleep", 0.95);
    assert_eq!(waits.bottleneck, Bottleneck::Sleep);
    assert!(waits.sentence.contains("it sleeps for 95 % of the time in writer (app.c:7)"), "{waits:?}");
    let retries = said("main;handler;__sqlite3InvokeBusyHandler;__nanosleep", 0.95);
    assert_eq!(retries.bottleneck, Bottleneck::Lock);
    assert!(retries.sentence.contains("in handler (app.c:7), in __sqlite3InvokeBusyHandler"), "{retries:?}");
    assert_eq!(said("main;writer;__nanosleep", 0.3).bottleneck, Bottleneck::None);
    assert_eq!(said("runtime.sysmon;runtime.usleep", 0.99).bottleneck, Bottleneck::None, "a runtime's own");
}

#[test]
fn requests_in_line_and_requests_that_wait_for_a_time_are_told() {
    let said = |on_cpu_ns: u64, count: u64, p50_ns: u64, p99_ns: u64| {
        let mut run = four_threads(on_cpu_ns);
        let mut requests = crate::model::request::fixtures::requests();
        requests.peers.remove(0);
        let served = &mut requests.peers[0];
        served.routes.clear();
        (served.first.count, served.first.sum_ns) = (count, count * p50_ns);
        (served.first.p50_ns, served.first.p99_ns) = (p50_ns, p99_ns);
        run.requests = Some(requests);
        verdict(&run)
    };
    let (ms, cpu) = (1_000_000, 2_700_000_000);
    let in_line = said(cpu, 1000, 30 * ms, 90 * ms);
    assert!(in_line.sentence.contains("108 % of one CPU while 3 requests are in progress"), "{in_line:?}");
    assert_eq!(said(cpu, 100, 30 * ms, 90 * ms).bottleneck, Bottleneck::None, "no line");
    let timed = said(10 * ms, 400, 200 * ms, 204 * ms);
    assert_eq!(timed.bottleneck, Bottleneck::Sleep);
    assert!(timed.sentence.contains("takes 200 ms, all the same time (p99 204 ms)"), "{timed:?}");
    assert_eq!(said(10 * ms, 1000, 90 * ms, 92 * ms).bottleneck, Bottleneck::Sleep);
    assert_eq!(
        said(10 * ms, 1000, 20 * ms, 21 * ms).bottleneck,
        Bottleneck::None,
        "as far as a network may be"
    );
    assert_eq!(
        said(10 * ms, 400, 200 * ms, 400 * ms).bottleneck,
        Bottleneck::None,
        "now longer, now shorter"
    );
}

/// A finding that is a note, or a warning, and its share of the wall time.
fn found(rule: &'static str, severity: Severity, share_of_wall: f64) -> Finding {
    let process = ProcessName { pid: 7, name: "app".into() };
    let mut of = Finding::warning(rule, Bottleneck::Network, process, String::new());
    (of.severity, of.cost.share_of_wall, of.cost.ns) = (severity, share_of_wall, 1);
    of
}

#[test]
fn a_quick_peer_that_a_server_asks_does_not_stand_before_a_stall() {
    let first = |peer_share: f64, serves: bool| {
        let mut run = four_threads(100_000_000);
        run.findings = vec![
            found("event-loop-stall", Severity::Warning, 0.033),
            found("slow-peer", Severity::Info, peer_share),
        ];
        run.requests = serves.then(crate::model::request::fixtures::requests);
        verdict(&run).finding
    };
    assert_eq!(first(0.25, true), Some(0));
    assert_eq!(first(0.25, false), Some(0), "it does not explain nearly all");
    assert_eq!(first(0.95, true), Some(0), "its requests tell what they await");
    assert_eq!(first(0.95, false), Some(1));
}

#[test]
fn who_works_a_little_and_sleeps_is_told_to_sleep_and_who_waits_for_a_child_that() {
    let said = |sleeper: u32| {
        let mut run = fixtures::run(&[]);
        run.cpu.accounts.duration_ns = 10_000_000_000;
        let thread = ThreadTime {
            thread: ThreadKey { pid: 7, tid: 8 },
            wall_ns: 10_000_000_000,
            on_cpu_ns: 1_600_000_000,
            ..ThreadTime::default()
        };
        run.blocking = Some(Blocking { threads: vec![thread], ..Blocking::default() });
        let mut off_cpu = fixtures::run(&[("main;etl;__nanosleep", 8_400_000_000)]).cpu;
        off_cpu.stacks[0].cause = Some(WaitCause::Sleep);
        off_cpu.stacks[0].thread = ThreadKey { pid: 7, tid: sleeper };
        run.cpu.names = off_cpu.names.clone();
        run.off_cpu = Some(off_cpu);
        verdict(&run)
    };
    let sleeps = said(8);
    assert_eq!(sleeps.bottleneck, Bottleneck::Sleep);
    assert!(
        sleeps.sentence.contains("uses 16 % of one CPU: it sleeps for 84 % of the time in etl"),
        "{sleeps:?}"
    );
    assert_eq!(said(9).bottleneck, Bottleneck::None, "another thread than the one that works");

    let mut run = four_threads(1_000_000);
    for thread in &mut run.blocking.as_mut().unwrap().threads {
        thread.blocked = vec![(WaitCause::Child, 9_900_000_000)];
    }
    let waits = verdict(&run);
    assert_eq!(waits.bottleneck, Bottleneck::Process);
    assert!(waits.sentence.contains("waits 99 % of the time for a child process to end"), "{waits:?}");
}
