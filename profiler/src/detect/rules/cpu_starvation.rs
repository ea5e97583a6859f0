//! Threads are ready to run and get no CPU.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    detect::{
        crews::{Crew, crews},
        rule::{Needs, Param, Rule, Unit, Values},
        words::{at, hottest},
    },
    model::{
        finding::{Bottleneck, Cost, Finding, ProcessName, Severity},
        report::Run,
        wait::{Blocking, LongWait, LongWaitKind},
    },
};

const SHARE: Param = Param {
    name: "share",
    unit: Unit::Percent,
    default: 20.0,
    help: "Wall time that a thread waits for a CPU",
    flag: None,
};

/// A thread that waits for so much of its wall time is critical.
const CRITICAL: f64 = 0.5;
/// Of the time it wants to run, a thread must wait for so much.
const OF_WANTED: f64 = 0.25;
/// Waiting for less than this part of the time that it does run, its own work costs it more: a note.
const OF_RUNNING: f64 = 0.5;
/// Waiting for this many times as long as it runs is critical.
const MANY: f64 = 1.5;
/// A target that uses so much of all CPUs, or of those that a thread waits for, competes with itself.
pub const OWN: f64 = 0.75;
/// What to do then.
pub const OWN_ADVICE: &str =
    "use fewer threads, or more CPUs, or make what runs cheaper: more runs than there are CPUs for";
/// Less is nobody's trouble, ns.
const MIN_NS: u64 = 100_000_000;

/// The rule.
pub static RULE: Rule = Rule {
    name: "cpu-starvation",
    summary: "threads are ready to run and get no CPU",
    needs: &[Needs::Waits],
    params: &[SHARE],
    check,
    doc: "\
The scheduler counts how long each thread is ready and waits for a CPU. Where that is a large part of a thread's wall time, the
machine, the container's share of it, or the CPUs the process is pinned to, are too few for what runs there. Each wait may be
short: the sum is what counts.

What the thread computes itself costs it more than waiting, where it runs for more than twice as long as it waits: that is a
note, since a machine that is merely busy hides no hot function. Waiting for half of the time, and half as long again as running, is
critical.

If the target itself uses nearly all CPUs, or its threads are who runs in the waits that are long enough to be told, it competes with itself: that is a note, unless it has so many more threads that run
than there are CPUs that one waits for half as long again as it runs. Otherwise look at what
else runs (`profiler --all -d 10s`), at CPU quotas (rule `cpu-throttled`), at `taskset -p PID` and at nice values.",
};

fn check(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let Some(blocking) = &run.blocking else { return Vec::new() };
    let mut worst: BTreeMap<u32, Crew> = BTreeMap::new();
    for crew in crews(run) {
        let pid = crew.time.thread.pid;
        if worst.get(&pid).is_none_or(|of| crew.time.run_queue_ns > of.time.run_queue_ns) {
            worst.insert(pid, crew);
        }
    }
    let used: u64 = blocking.threads.iter().map(|thread| thread.on_cpu_ns).sum();
    let all = run.cpu.accounts.duration_ns as f64 * f64::from(run.cpu.meta.cpus.max(1));
    let own = used as f64 >= OWN * all;
    let starved = worst.into_values().filter(|of| {
        let wanted = (of.time.on_cpu_ns + of.time.run_queue_ns).max(1) as f64;
        of.time.run_queue_ns >= MIN_NS
            && of.share(of.time.run_queue_ns) * 100.0 >= values.get(&SHARE)
            && of.time.run_queue_ns as f64 / wanted >= OF_WANTED
    });
    starved.map(|of| finding(run, &of, own || own_instead(of.time.thread.pid, blocking), blocking)).collect()
}

fn finding(run: &Run, of: &Crew, own: bool, blocking: &Blocking) -> Finding {
    let (time, share) = (&of.time, of.share(of.time.run_queue_ns));
    let pid = time.thread.pid;
    let instead = instead(pid, blocking);
    let ran = match (own, &instead[..]) {
        (true, _) => {
            let hottest = hottest(run, |of| of.pid == pid);
            let most = hottest.map_or_else(String::new, |(function, share, _)| {
                format!(" for {:.0} % in {}", 100.0 * share, at(function))
            });
            format!("; the target's own threads have the CPUs{most}")
        }
        (false, []) => String::new(),
        (false, names) => format!("; meanwhile ran {}", names.join(", ")),
    };
    let against = time.run_queue_ns as f64 / time.on_cpu_ns.max(1) as f64;
    let (severity, bottleneck, advice) = if own {
        match against >= MANY {
            true => (Severity::Warning, Bottleneck::CpuStarvation, OWN_ADVICE),
            false => (Severity::Info, Bottleneck::Cpu, OWN_ADVICE),
        }
    } else {
        let severity = match against {
            _ if against < OF_RUNNING => Severity::Info,
            _ if share >= CRITICAL && against >= MANY => Severity::Critical,
            _ => Severity::Warning,
        };
        let advice =
            "give it CPUs: move what runs beside it, raise its cgroup's cpu.weight or its nice value";
        (severity, Bottleneck::CpuStarvation, advice)
    };
    Finding {
        rule: RULE.name,
        severity,
        bottleneck,
        process: ProcessName { pid, name: time.process.clone() },
        subject: "cpu".to_owned(),
        title: format!("{:.0} % of the time {} was ready and had no CPU{ran}", 100.0 * share, of.who()),
        advice: advice.to_owned(),
        cost: Cost { ns: time.run_queue_ns, share_of_wall: share, ..Cost::default() },
        evidence: Vec::new(),
        details: BTreeMap::from([
            ("tid", json!(time.thread.tid)),
            ("threads", json!(of.number())),
            ("run_queue_ns", json!(time.run_queue_ns)),
            ("on_cpu_ns", json!(time.on_cpu_ns)),
            ("own_threads", json!(own)),
            ("instead", json!(instead)),
        ]),
    }
}

/// Whether in those waits that were reported one by one mostly the targets' own threads ran: they may have but some of the CPUs.
fn own_instead(pid: u32, blocking: &Blocking) -> bool {
    let starved = |wait: &&LongWait| matches!(wait.kind, LongWaitKind::Starved { .. });
    let waits = || blocking.long_waits.iter().filter(|wait| wait.thread.pid == pid).filter(starved);
    let all_ns: u64 = waits().map(|wait| wait.block.run_queue_ns).sum();
    all_ns > 0 && blocking.targets_ran_ns(waits()) as f64 >= OWN * all_ns as f64
}

/// Threads that ran in those waits that were long enough to be reported one by one, most time first.
fn instead(pid: u32, blocking: &Blocking) -> Vec<String> {
    let mut ran: BTreeMap<&str, u64> = BTreeMap::new();
    for wait in blocking.long_waits.iter().filter(|wait| wait.thread.pid == pid) {
        if let LongWaitKind::Starved { instead } = &wait.kind {
            instead.iter().for_each(|of| *ran.entry(&of.name).or_default() += of.ns);
        }
    }
    let mut ran: Vec<_> = ran.into_iter().filter(|(name, _)| !name.is_empty()).collect();
    ran.sort_by_key(|(_, ns)| std::cmp::Reverse(*ns));
    ran.into_iter().take(3).map(|(name, _)| name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::rule::Overrides,
        model::{stack::ThreadKey, wait::ThreadTime},
    };

    fn run(on_cpu_ns: u64, run_queue_ns: u64) -> Run {
        let mut run = crate::model::report::fixtures::run(&[]);
        let thread = ThreadTime {
            thread: ThreadKey { pid: 7, tid: 7 },
            process: "app".into(),
            name: "main".into(),
            wall_ns: 1_000_000_000,
            on_cpu_ns,
            run_queue_ns,
            ..ThreadTime::default()
        };
        run.blocking = Some(Blocking { threads: vec![thread], ..Blocking::default() });
        run
    }

    fn found(run: &Run) -> Vec<Finding> {
        check(run, &Overrides::default().of(&RULE))
    }

    #[test]
    fn many_short_waits_are_starvation() {
        let starved = found(&run(300_000_000, 630_000_000));
        assert_eq!((starved[0].severity, starved[0].cost.share_of_wall), (Severity::Critical, 0.63));
        assert!(starved[0].title.starts_with("63 % of the time thread main"), "{}", starved[0].title);
        assert!(found(&run(800_000_000, 150_000_000)).is_empty(), "every busy thread waits now and then");
        let severity = |on_cpu, queue| found(&run(on_cpu, queue))[0].severity;
        assert_eq!(severity(490_000_000, 500_000_000), Severity::Warning, "one neighbour on its CPU");
        assert_eq!(severity(650_000_000, 300_000_000), Severity::Info, "it computes for twice as long");
    }

    #[test]
    fn whoever_has_all_cpus_competes_with_himself() {
        let mut run = run(300_000_000, 630_000_000);
        run.cpu.meta.cpus = 2;
        let blocking = run.blocking.as_mut().unwrap();
        let busy = ThreadTime { on_cpu_ns: 1_600_000_000, run_queue_ns: 0, ..blocking.threads[0].clone() };
        blocking.threads.push(busy);
        let said = |run: &Run| (found(run)[0].severity, found(run)[0].bottleneck);
        assert_eq!(said(&run), (Severity::Warning, Bottleneck::CpuStarvation), "far too many threads");
        let first = &mut run.blocking.as_mut().unwrap().threads[0];
        (first.on_cpu_ns, first.run_queue_ns) = (490_000_000, 500_000_000);
        assert_eq!(said(&run), (Severity::Info, Bottleneck::Cpu), "two for each CPU");
    }
}
