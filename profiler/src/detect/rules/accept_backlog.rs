//! Connections that wait to be accepted.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    detect::{
        rule::{Needs, Param, Rule, Unit, Values},
        words::{bottleneck, by_function, hottest, most_in, own},
    },
    model::{
        finding::{Bottleneck, Finding, ProcessName, Severity},
        report::Run,
        units::{count, percent, thousands, time},
        vitals::{Backlog, ProcessVitals},
        wait::ThreadTime,
    },
};

const WAIT: Param = Param {
    name: "wait",
    unit: Unit::Seconds,
    default: 0.1,
    help: "Time for which the first connection in the queue has waited, in half of the looks that find one",
    flag: None,
};
const SHARE: Param = Param {
    name: "share",
    unit: Unit::Percent,
    default: 20.0,
    help: "Looks that find a connection waiting to be accepted",
    flag: None,
};
const FULL: Param = Param {
    name: "full",
    unit: Unit::Percent,
    default: 5.0,
    help: "Looks that find the queue full, three at least",
    flag: None,
};

/// Fewer looks say little; fewer that find somebody are chance.
const MIN_LOOKS: u64 = 10;
const MIN_WAITING: u64 = 5;
const MIN_FULL: u64 = 3;
/// Part of the time of threads that tells what they are busy with.
const MOSTLY: f64 = 0.5;

/// The rule.
pub static RULE: Rule = Rule {
    name: "accept-backlog",
    summary: "connections wait to be accepted, or are turned away since too many do",
    needs: &[Needs::Vitals],
    params: &[WAIT, SHARE, FULL],
    check,
    doc: "\
The kernel makes a connection without the process, and keeps it until the process calls `accept`. This time is in no log of the
server, and in no time to answer: the process knows nothing of the client yet. A client sees a connection that is made at once, and an
answer that does not come. Several times a second the kernel is asked how many wait at each socket of the targets that listens, how
many may, and since when the first of them does.

Where the queue is full the kernel drops what comes next, and the client tries again after 1, 3, 7 s: its connects take whole
seconds. `overflows` counts that, of the whole network namespace.

Who accepts is busy with something else: one thread that accepts and answers, or workers that are all in use by connections which are
kept open. What the threads do most is said. Accept in a loop that does nothing else, hand the work to a pool, or start
more workers; put a limit on how long idle connections are kept. A longer queue (`listen(backlog)`, `net.core.somaxconn`) takes
bursts in, and helps nobody who is too slow.

`request-queueing` is about the time after that too: what a request waits at the socket, before or after it was accepted. Unix
sockets are not looked at.",
};

fn check(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let processes = run.vitals.iter().flat_map(|vitals| &vitals.processes);
    let all = processes.flat_map(|of| of.backlogs.iter().map(move |backlog| (of, backlog)));
    all.filter_map(|(of, backlog)| judge(run, of, backlog, values)).collect()
}

fn judge(run: &Run, of: &ProcessVitals, backlog: &Backlog, values: &Values<'_>) -> Option<Finding> {
    let oldest = &backlog.oldest;
    let late = oldest.count >= MIN_WAITING
        && percent(oldest.count, backlog.looks) >= values.get(&SHARE)
        && oldest.p50_ns >= values.ns(&WAIT);
    let full = backlog.full >= MIN_FULL && percent(backlog.full, backlog.looks) >= values.get(&FULL);
    if backlog.looks < MIN_LOOKS || !(late || full) {
        return None;
    }
    let who = match backlog.processes {
        0 | 1 => format!("{} (pid {})", of.process, of.pid),
        n => format!("{} ({n} processes)", of.process),
    };
    let how_long = match oldest.count {
        0 => String::new(),
        _ => format!(" for {} (in half of the looks that find one)", time(oldest.p50_ns)),
    };
    let mut title = format!(
        "connections at {} wait{how_long} until {who} accepts them: {:.1} at once, {} at most, room for {}",
        backlog.address,
        backlog.mean(),
        thousands(backlog.most),
        thousands(backlog.room()),
    );
    if full {
        title += &format!(", full in {} of {}", thousands(backlog.full), count(backlog.looks, "look"));
    }
    if let Some(n) = of.overflows.filter(|n| *n > 0 && backlog.full > 0) {
        title += &format!("; {} turned away in its network namespace", thousands(n));
    }
    let busy = busy_with(run, of.pid);
    if let Some((what, _)) = &busy {
        title += &format!("; {what}");
    }
    let process = ProcessName { pid: of.pid, name: of.process.clone() };
    Some(Finding {
        severity: if fails_to_accept(run, of.pid) { Severity::Info } else { Severity::Warning },
        title,
        advice: advice(full && !late).to_owned(),
        details: BTreeMap::from([
            ("waited_p50_ns", json!(oldest.p50_ns)),
            ("waited_max_ns", json!(oldest.max_ns)),
            ("most", json!(backlog.most)),
            ("limit", json!(backlog.limit)),
            ("full", json!(backlog.full)),
            ("looks", json!(backlog.looks)),
        ]),
        ..Finding::warning(
            RULE.name,
            busy.map_or(Bottleneck::Unknown, |(_, lacks)| lacks),
            process,
            backlog.address.clone(),
        )
    })
}

/// Whether it tries to accept them and fails: that is another finding, which says why.
fn fails_to_accept(run: &Run, pid: u32) -> bool {
    let storms = run.calls.iter().flat_map(|calls| &calls.storms);
    storms.filter(|of| of.pid == pid).any(|of| matches!(&*of.syscall, "accept" | "accept4"))
}

fn advice(burst: bool) -> &'static str {
    if burst {
        "a longer queue takes such bursts in (listen(backlog), net.core.somaxconn)"
    } else {
        "accept where nothing else is done and hand the work to others, or start more workers; see what they do meanwhile"
    }
}

/// What those threads do most that would have to accept, in words, and what they lack.
fn busy_with(run: &Run, pid: u32) -> Option<(String, Bottleneck)> {
    let wall_ns = run.cpu.accounts.duration_ns;
    let all = run.blocking.iter().flat_map(|blocking| &blocking.threads);
    let threads: Vec<&ThreadTime> =
        all.filter(|of| of.thread.pid == pid && of.wall_ns >= wall_ns / 2 && of.others == 0).collect();
    let mut sum = ThreadTime::default();
    threads.iter().for_each(|of| sum.add(of));
    let whose = if threads.len() == 1 { "its only thread spends" } else { "its threads spend" };
    let (cause, ns) =
        sum.blocked.iter().max_by_key(|(_, ns)| *ns).map_or((None, 0), |&(cause, ns)| (Some(cause), ns));
    let (what, ns, place, lacks) = match cause {
        Some(cause) if ns > sum.on_cpu_ns => {
            let stacks = run.off_cpu.iter().flat_map(|profile| &profile.stacks);
            let stacks = stacks.filter(|of| of.thread.pid == pid && of.cause == Some(cause));
            let found = by_function(run.names(), stacks, |of| own(run.names(), &of.frames));
            (cause.words(), ns, most_in(found.most.map(|(function, ..)| function)), bottleneck(cause))
        }
        _ => {
            let hot = hottest(run, |thread| thread.pid == pid).map(|(function, ..)| function);
            ("computing", sum.on_cpu_ns, most_in(hot), Bottleneck::Cpu)
        }
    };
    let share = ns as f64 / sum.wall_ns.max(1) as f64;
    (share >= MOSTLY).then(|| (format!("{whose} {:.0} % of the time on {what}{place}", 100.0 * share), lacks))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::rule::Overrides,
        model::{
            cause::WaitCause,
            distribution::Summary,
            stack::ThreadKey,
            syscall::{Calls, ErrorStorm},
            vitals::Vitals,
            wait::Blocking,
        },
    };

    const MS: u64 = 1_000_000;

    /// Of 40 looks: how many found somebody waiting, for how long, and how many found no room.
    fn found(waiting: u64, ms: u64, full: u64, change: impl Fn(&mut Run)) -> Vec<Finding> {
        let mut run = crate::model::report::fixtures::run(&[]);
        let backlog = Backlog {
            address: "0.0.0.0:8080".into(),
            processes: 1,
            looks: 40,
            limit: 5,
            most: 6,
            sum: 2 * waiting,
            full,
            oldest: Summary { count: waiting, p50_ns: ms * MS, max_ns: ms * MS, ..Summary::default() },
            ..Backlog::default()
        };
        let of = ProcessVitals {
            pid: 7,
            process: "app".into(),
            backlogs: vec![backlog],
            overflows: Some(9),
            ..ProcessVitals::default()
        };
        run.vitals = Some(Vitals { processes: vec![of], unlisted: 0 });
        change(&mut run);
        check(&run, &Overrides::default().of(&RULE))
    }

    #[test]
    fn who_waits_long_or_finds_no_room_is_told() {
        let title = |waiting, ms, full| found(waiting, ms, full, |_| ()).pop().map(|of| of.title);
        let late = title(30, 800, 0).unwrap();
        assert!(
            late.contains("connections at 0.0.0.0:8080 wait for 800 ms")
                && late.contains("until app (pid 7) accepts them: 1.5 at once, 6 at most, room for 6")
                && !late.contains("turned away"),
            "{late}"
        );
        let full = title(30, 20, 4).unwrap();
        assert!(full.contains("full in 4 of 40 looks; 9 turned away in its network namespace"), "{full}");
        let none = [(30, 20, 0), (7, 800, 0), (40, 99, 0), (30, 20, 1)];
        assert!(none.iter().all(|&(waiting, ms, full)| title(waiting, ms, full).is_none()));
        let fails = found(30, 800, 0, |run| {
            let storm = ErrorStorm { pid: 7, syscall: "accept4".into(), ..ErrorStorm::default() };
            run.calls = Some(Calls { storms: vec![storm], ..Calls::default() });
        });
        assert_eq!(fails[0].severity, Severity::Info, "why is another finding");
        let few = found(30, 800, 9, |run| run.vitals.as_mut().unwrap().processes[0].backlogs[0].looks = 9);
        assert!(few.is_empty());
    }

    #[test]
    fn what_keeps_the_process_from_accepting_is_said() {
        let busy = |on_cpu_ns: u64, asleep_ns: u64| {
            let mut all = found(30, 800, 0, |run| {
                run.cpu.accounts.duration_ns = 100 * MS;
                let thread = ThreadTime {
                    thread: ThreadKey { pid: 7, tid: 7 },
                    wall_ns: 100 * MS,
                    on_cpu_ns,
                    blocked: vec![(WaitCause::Sleep, asleep_ns)],
                    ..ThreadTime::default()
                };
                run.blocking = Some(Blocking { threads: vec![thread], ..Blocking::default() });
            });
            all.pop().map(|of| (of.title, of.bottleneck)).unwrap()
        };
        let (title, lacks) = busy(5 * MS, 95 * MS);
        assert!(title.contains("; its only thread spends 95 % of the time on sleep"), "{title}");
        assert_eq!(lacks, Bottleneck::Sleep);
        assert_eq!(busy(60 * MS, 40 * MS).1, Bottleneck::Cpu);
        assert_eq!(busy(30 * MS, 40 * MS).1, Bottleneck::Unknown, "nothing that it does mostly");
    }
}
