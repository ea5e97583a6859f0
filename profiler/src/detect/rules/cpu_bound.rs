//! A thread, or all CPUs, have no time left.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    detect::{
        crews::{Crew, crews},
        rule::{Needs, Param, Rule, Unit, Values},
        words::{SHOWN, at, hottest},
    },
    model::{
        finding::{Bottleneck, Cost, Evidence, Finding, ProcessName, Severity},
        report::Run,
    },
};

const SHARE: Param = Param {
    name: "share",
    unit: Unit::Percent,
    default: 80.0,
    help: "Wall time that a thread runs or wants to",
    flag: None,
};

/// The rule.
pub static RULE: Rule = Rule {
    name: "cpu-bound",
    summary: "a thread computes nearly all the time, and has none left",
    needs: &[Needs::Waits],
    params: &[SHARE],
    check,
    doc: "\
A thread is on a CPU, or ready and waiting for one, for nearly all of the time. For a batch that is as it should be, and this is a
note. A server whose thread has no time left lets its clients wait: this is a warning where the process listens and has clients, and the
thread is its main one, an event loop, one that reads requests, or one of many that come and go. A thread in the background may compute.
Named is the program's own function with the largest part of that thread's samples, the functions that it calls included.

Make that function cheaper, cache its results, or divide the work among more threads or processes.",
};

fn check(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let mut busiest: BTreeMap<u32, (Crew, f64)> = BTreeMap::new();
    for of in crews(run) {
        let wants = of.share_of_run(of.time.on_cpu_ns + of.time.run_queue_ns);
        // Who mostly waits for a CPU is starved, which is another rule's.
        let computes = of.time.on_cpu_ns >= of.time.run_queue_ns / 2;
        let pid = of.time.thread.pid;
        let busier = busiest.get(&pid).is_none_or(|(_, most)| wants > *most);
        if computes && wants * 100.0 >= values.get(&SHARE) && busier {
            busiest.insert(pid, (of, wants));
        }
    }
    busiest.into_values().filter_map(|(of, wants)| finding(run, &of, wants)).collect()
}

fn finding(run: &Run, of: &Crew, wants: f64) -> Option<Finding> {
    let thread = &of.time;
    let pid = thread.thread.pid;
    let (function, share, stack) = hottest(run, |key| of.has(*key))?;
    let vitals = run.vitals_of(pid);
    let has_clients = vitals.is_some_and(|of| of.listens && of.peers.iter().any(|peer| peer.clients));
    let serves = has_clients && serves_itself(run, of);
    let wall_ns = thread.wall_ns.max(1) as f64;
    let queue = 100.0 * thread.run_queue_ns as f64 / wall_ns;
    let queued =
        if queue >= 5.0 { format!(" (and waits for a CPU for {queue:.0} %)") } else { String::new() };
    Some(Finding {
        rule: RULE.name,
        severity: if serves { Severity::Warning } else { Severity::Info },
        bottleneck: Bottleneck::Cpu,
        process: ProcessName { pid, name: thread.process.clone() },
        subject: function.name.clone(),
        title: format!(
            "{} computes {:.0} % of the time{queued}, {:.0} % of that in {}",
            of.who(),
            100.0 * thread.on_cpu_ns as f64 / wall_ns,
            100.0 * share,
            at(function),
        ),
        advice: "make that function cheaper, or divide the work among more threads or processes".to_owned(),
        cost: Cost { ns: thread.on_cpu_ns, share_of_wall: wants.min(1.0), ..Cost::default() },
        evidence: vec![Evidence { label: "", frames: stack.frames.to_vec(), shown: SHOWN }],
        details: BTreeMap::from([
            ("tid", json!(thread.thread.tid)),
            ("on_cpu_ns", json!(thread.on_cpu_ns)),
            ("run_queue_ns", json!(thread.run_queue_ns)),
            ("function_share", json!(share)),
        ]),
    })
}

/// Whether clients may wait for a thread, as far as is known.
fn serves_itself(run: &Run, of: &Crew) -> bool {
    let thread = of.time.thread;
    let mut loops = run.blocking.iter().flat_map(|blocking| &blocking.loops);
    let mut slowest = run.requests.iter().flat_map(|requests| &requests.slow);
    thread.tid == thread.pid
        || of.at_once.is_some()
        || loops.any(|of| of.thread == thread)
        || slowest.any(|of| of.thread == thread)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::{judge, rule::Overrides},
        model::{
            report::fixtures,
            vitals::{Peer, ProcessVitals, Vitals},
            wait::{Blocking, EventLoop, ThreadTime},
        },
    };

    fn run(on_cpu_ns: u64, run_queue_ns: u64) -> Run {
        let mut run = fixtures::run(&[("main;handle;sort;__memmove", 60), ("main;handle;other", 39)]);
        let thread = run.cpu.stacks[0].thread;
        let time = ThreadTime {
            thread,
            process: "app".into(),
            name: "app".into(),
            wall_ns: 1_000_000_000,
            on_cpu_ns,
            run_queue_ns,
            ..ThreadTime::default()
        };
        run.blocking = Some(Blocking { threads: vec![time], ..Blocking::default() });
        run
    }

    #[test]
    fn a_thread_without_time_left_is_told_with_its_function() {
        let mut batch = run(950_000_000, 0);
        judge(&mut batch, &Overrides::default());
        assert_eq!((batch.findings[0].rule, batch.findings[0].severity), (RULE.name, Severity::Info));
        let verdict = batch.verdict.clone().unwrap();
        assert_eq!(verdict.bottleneck, Bottleneck::Cpu);
        assert!(verdict.sentence.contains("61 % of that in sort"), "{verdict:?}");

        let peer = Peer { peer: "clients of :80".into(), clients: true, ..Peer::default() };
        let server = ProcessVitals { pid: 7, listens: true, peers: vec![peer], ..ProcessVitals::default() };
        batch.vitals = Some(Vitals { processes: vec![server], unlisted: 0 });
        judge(&mut batch, &Overrides::default());
        assert_eq!(batch.findings[0].severity, Severity::Info, "a thread in the background");
        let thread = batch.cpu.stacks[0].thread;
        batch.blocking.as_mut().unwrap().loops = vec![EventLoop { thread, ..EventLoop::default() }];
        judge(&mut batch, &Overrides::default());
        assert_eq!(batch.findings[0].severity, Severity::Warning, "its clients wait");
    }

    #[test]
    fn a_busy_machine_does_not_hide_the_function() {
        let found = |on_cpu, queue| check(&run(on_cpu, queue), &Overrides::default().of(&RULE)).len();
        assert_eq!(
            [found(600_000_000, 390_000_000), found(200_000_000, 780_000_000), found(300_000_000, 0)],
            [1, 0, 0]
        );
    }
}
