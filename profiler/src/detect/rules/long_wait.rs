//! Threads that do not get on: blocked for long in something other than idleness, or without a CPU.

use std::collections::BTreeMap;

use rustc_hash::FxHashSet;
use serde_json::json;

use crate::{
    detect::{
        other_end::in_brackets,
        rule::{Needs, Param, Rule, Unit, Values},
        rules::cpu_starvation::{OWN, OWN_ADVICE},
        served::AWAITED,
        words::{Namer, bottleneck, evidence, functions, join, ran_instead, share_of_wall, who_ran},
    },
    model::{
        cause::WaitCause,
        finding::{Bottleneck, Cost, Finding, Severity},
        report::{Names, Run},
        stack::ThreadKey,
        units::{thousands, time},
        wait::{Block, Blocking, LongWait, LongWaitKind},
    },
};

const LONG_BLOCK: Param = Param {
    name: "long-block",
    unit: Unit::Seconds,
    default: 1.0,
    help: "How long a thread blocks, in anything but idle waiting",
    flag: Some("long-block"),
};
const STARVATION: Param = Param {
    name: "starvation",
    unit: Unit::Seconds,
    default: 0.1,
    help: "How long a thread that is ready to run gets no CPU",
    flag: Some("starvation"),
};

const SHARE: Param = Param {
    name: "share",
    unit: Unit::Percent,
    default: 2.0,
    help: "Wall time of its threads that waiting for a CPU makes up; less is a note",
    flag: None,
};

/// Calls that wait for whatever another process sends, which need not be late.
const RECEIVES: [&str; 9] =
    ["read", "readv", "pread64", "recvfrom", "recvmsg", "recvmmsg", "mq_timedreceive", "msgrcv", "splice"];
/// Calls that wait for signals: nobody is blocked who asked to be.
const AWAITS_SIGNALS: [&str; 5] =
    ["rt_sigsuspend", "sigsuspend", "pause", "rt_sigtimedwait", "rt_sigtimedwait_time64"];

/// The rule.
pub static RULE: Rule = Rule {
    name: "long-wait",
    summary: "threads block for long, or are ready and get no CPU",
    needs: &[Needs::Waits],
    params: &[LONG_BLOCK, STARVATION, SHARE],
    check,
    doc: "\
A thread blocked for longer than the threshold in something that is not idle waiting (disk, network, lock, pipe, page fault),
or was ready to run and got no CPU for longer than its threshold. Ten times the threshold is critical, and so is a thread that
nothing can interrupt and that still waits when the run ends. Waits of an event loop are not reported here: there they are stalls.

The stack is where the thread blocked, the object what it waited for, as far as it could be found out at the time. Of a thread
without a CPU the threads that ran instead are named.

A thread that receives from a pipe, terminal or Unix socket waits for what another process sends, and that need not be late: this
is a note. So is one that receives from a client of its own, from anybody (UDP), or from a peer
that has answered all that it was asked, as far as requests are watched. So are single waits for a CPU that make up little of the time, or in which the target's own threads ran: whether these are
too many is judged by all such waits together (rule `cpu-starvation`). A process in sigsuspend or pause waits as it should.",
};

impl LongWait {
    /// Length of what was too long, ns.
    pub fn length_ns(&self) -> u64 {
        match self.kind {
            LongWaitKind::Blocked { .. } => self.block.blocked_ns,
            LongWaitKind::Starved { .. } => self.block.run_queue_ns,
        }
    }
}

/// Long waits of one process with the same reason.
struct Group {
    /// The threads, the longest wait's first.
    threads: Vec<ThreadKey>,
    /// The worst.
    severity: Severity,
    count: u64,
    /// Sum of their lengths, ns.
    total_ns: u64,
    /// The longest: what else is to be said of all.
    longest: LongWait,
    /// Threads that ran instead of a starved one, by name, with the time they cost it, ns; most first.
    instead: Vec<(String, u64)>,
    /// Of their time, what threads of the targets ran.
    own_ns: u64,
    /// How many had not ended.
    ongoing: u64,
}

fn check(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let Some(blocking) = &run.blocking else { return Vec::new() };
    let name = Namer::new(Some(blocking));
    groups(blocking, run.names()).iter().map(|group| finding(group, &name, run, values.get(&SHARE))).collect()
}

fn groups(blocking: &Blocking, names: &Names) -> Vec<Group> {
    // Starved threads have a reason in common: too few CPUs for what runs on them.
    type Reason<'a> = Option<(WaitCause, &'a str, Vec<&'a str>)>;
    let mut groups: BTreeMap<(u32, bool, Reason<'_>), Vec<&LongWait>> = BTreeMap::new();
    for wait in &blocking.long_waits {
        let block = &wait.block;
        let blocked = matches!(wait.kind, LongWaitKind::Blocked { .. });
        if blocked && AWAITS_SIGNALS.contains(&block.syscall.as_str()) {
            continue;
        }
        let key = match &wait.kind {
            LongWaitKind::Starved { .. } => (wait.thread.pid, false, None),
            LongWaitKind::Blocked { uninterruptible } => {
                let reason = (block.cause, block.syscall.as_str(), functions(names, block.stack));
                (wait.thread.pid, *uninterruptible, Some(reason))
            }
        };
        groups.entry(key).or_default().push(wait);
    }
    groups.into_values().filter_map(|waits| group(&waits, blocking)).collect()
}

fn group(waits: &[&LongWait], blocking: &Blocking) -> Option<Group> {
    let longest = waits.iter().max_by_key(|wait| wait.length_ns())?;
    let mut seen = FxHashSet::default();
    let threads = std::iter::once(longest).chain(waits).map(|wait| wait.thread);
    let instead = waits.iter().filter_map(|wait| match &wait.kind {
        LongWaitKind::Starved { instead } => Some(instead),
        LongWaitKind::Blocked { .. } => None,
    });
    Some(Group {
        threads: threads.filter(|thread| seen.insert(*thread)).collect(),
        severity: waits.iter().map(|wait| wait.severity).max()?,
        count: waits.len() as u64,
        total_ns: waits.iter().map(|wait| wait.length_ns()).sum(),
        longest: (*longest).clone(),
        instead: ran_instead(instead.flatten()),
        own_ns: blocking.targets_ran_ns(waits.iter().copied()),
        ongoing: waits.iter().filter(|wait| wait.ongoing).count() as u64,
    })
}

fn finding(group: &Group, name: &Namer<'_>, run: &Run, least: f64) -> Finding {
    let share = share_of_wall(run, group.total_ns, group.threads.len());
    let block = &group.longest.block;
    let object = block.object.as_deref().unwrap_or_default();
    let (lacks, stack, subject) = match &group.longest.kind {
        LongWaitKind::Starved { .. } => (Bottleneck::CpuStarvation, None, "cpu".to_owned()),
        LongWaitKind::Blocked { .. } => {
            (bottleneck(block.cause), block.stack, join([block.cause.id(), &block.syscall, object]))
        }
    };
    Finding {
        rule: RULE.name,
        severity: severity(group, share, least, run),
        bottleneck: lacks,
        process: name.of(group.longest.thread),
        subject,
        title: title(group, name, run),
        advice: advice(group).to_owned(),
        cost: Cost { ns: group.total_ns, share_of_wall: share, ..Cost::default() },
        evidence: evidence(run.names(), "", stack),
        details: BTreeMap::from([
            ("count", json!(group.count)),
            ("longest_ns", json!(group.longest.length_ns())),
            ("ongoing", json!(group.ongoing)),
            ("tids", json!(group.threads.iter().map(|thread| thread.tid).collect::<Vec<_>>())),
            ("cause", json!(block.cause.id())),
            ("syscall", json!(block.syscall)),
            ("object", json!(block.object)),
            ("instead", json!(group.instead)),
        ]),
    }
}

/// How bad: what need not be wrong is a note.
fn severity(group: &Group, share: f64, least: f64, run: &Run) -> Severity {
    let block = &group.longest.block;
    let object = block.object.as_deref().unwrap_or_default();
    let idle = match block.cause {
        WaitCause::Pipe => true,
        WaitCause::Network => waits_for_next(run, group.longest.thread.pid, object),
        _ => false,
    };
    let receives = idle && RECEIVES.contains(&block.syscall.as_str());
    let note = match &group.longest.kind {
        LongWaitKind::Blocked { uninterruptible } => receives && !uninterruptible,
        LongWaitKind::Starved { .. } => 100.0 * share < least || group.competes_with_itself(),
    };
    if note { Severity::Info } else { group.severity }
}

/// Whether who receives on a socket is known to wait for the next request or message, and not for an answer: it takes from
/// anybody, it serves there, or all that it has asked there was answered.
fn waits_for_next(run: &Run, pid: u32, object: &str) -> bool {
    let Some((protocol, ends)) = object.split_once(' ') else { return false };
    let Some((local, remote)) = ends.split_once(" -> ") else {
        return protocol == "udp" && ends.contains(':');
    };
    let peers = run.vitals_of(pid).into_iter().flat_map(|of| &of.peers);
    let clients = local.rsplit(':').next().map(|port| format!("clients of :{port}"));
    let asked = run.requests.iter().flat_map(|requests| requests.asked());
    let mut asked = asked.filter(|of| of.pid == pid && of.peer == remote);
    let answered = asked.any(|of| of.exchanges() > 0 && of.awaited == 0);
    let mut peers = peers.filter(|of| of.samples > 0);
    peers.any(|of| match of.clients {
        true => Some(&of.peer) == clients.as_ref(),
        false => of.peer == remote && answered && !of.is_awaited_for(AWAITED),
    })
}

impl Group {
    /// Whether threads wait for a CPU that the target's own threads have.
    fn competes_with_itself(&self) -> bool {
        self.own_ns as f64 >= OWN * self.total_ns as f64
    }
}

/// Whether a wait is that for somebody else to open a FIFO: all other files are opened without a wait that can be interrupted.
fn opens_fifo(block: &Block) -> bool {
    block.cause == WaitCause::Other && matches!(&*block.syscall, "open" | "openat" | "openat2")
}

/// What to do about it.
fn advice(group: &Group) -> &'static str {
    match (&group.longest.kind, group.longest.block.cause) {
        (LongWaitKind::Starved { .. }, _) if group.competes_with_itself() => OWN_ADVICE,
        (LongWaitKind::Starved { .. }, _) => {
            "see what else runs (profiler --all -d 10s), and the CPU limit of its cgroup"
        }
        (_, WaitCause::Lock) => "find who holds the lock meanwhile: --wakers names who ends each wait",
        (_, WaitCause::Network) => {
            "look at that peer, or set a timeout; if it is the next request, all is well"
        }
        (_, WaitCause::Disk | WaitCause::PageFault) => "look at the disk (iostat -x 1), or read less",
        (_, WaitCause::Pipe) => "look at the process at the other end",
        _ if opens_fifo(&group.longest.block) => {
            "look which FIFO is opened there, and who should write to it, or read from it"
        }
        _ => "look at the stack: what is it that this call waits for?",
    }
}

fn title(group: &Group, name: &Namer<'_>, run: &Run) -> String {
    let who = match &group.threads[..] {
        [thread] => format!("thread {}", name.thread(*thread)),
        threads => {
            let first = threads.first().copied().unwrap_or_default();
            format!("{} threads of {} (pid {})", threads.len(), name.process(first), first.pid)
        }
    };
    let ongoing = match (group.ongoing, group.count) {
        (0, _) => String::new(),
        (1, 1) => ", and still is".to_owned(),
        (n, _) => format!(", {n} still"),
    };
    let how_long = match group.count {
        1 => format!("for {}", time(group.total_ns)),
        n => format!("{} times, for up to {}", thousands(n), time(group.longest.length_ns())),
    };
    let was = if group.threads.len() > 1 { "were" } else { "was" };
    let block = &group.longest.block;
    match &group.longest.kind {
        LongWaitKind::Blocked { uninterruptible } => {
            let stuck = if *uninterruptible { " uninterruptibly" } else { "" };
            let object = block.object.as_deref().unwrap_or_default();
            let cause = if opens_fifo(block) { "the other end of a FIFO" } else { block.cause.words() };
            let what = join([cause, &block.syscall, object]);
            let whose = in_brackets(run, group.longest.thread.pid, object);
            format!("{who} {was} blocked{stuck} {how_long}{ongoing}: {what}{whose}")
        }
        LongWaitKind::Starved { .. } => {
            let instead = match &*who_ran(&group.instead, group.total_ns) {
                "" => "unknown".to_owned(),
                known => known.to_owned(),
            };
            format!("{who} {was} ready without a CPU {how_long}{ongoing}; meanwhile ran: {instead}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::rule::Overrides,
        model::{
            request::Side,
            threshold::Thresholds,
            vitals::{Peer, ProcessVitals, Vitals},
            wait::{RanInstead, ThreadTime},
        },
        probe::sched::long_wait::{fixtures::wait, long_waits},
    };

    /// Severities of what is found where a thread waits for 2 s.
    fn found(syscall: &str, cause: WaitCause) -> Vec<Severity> {
        let mut of = wait(9, 0, 2_000_000_000, 0, cause);
        of.block.syscall = syscall.into();
        let waits = long_waits(&of, false, &Thresholds::default()).collect();
        let mut run = crate::model::report::fixtures::run(&[]);
        run.blocking = Some(Blocking { long_waits: waits, ..Blocking::default() });
        check(&run, &Overrides::default().of(&RULE)).iter().map(|finding| finding.severity).collect()
    }

    #[test]
    fn waiting_for_the_targets_own_threads_is_judged_by_its_sum() {
        let found = |tid: u32| {
            let of = wait(9, 0, 0, 1_500_000_000, WaitCause::Park);
            let mut waits: Vec<LongWait> = long_waits(&of, false, &Thresholds::default()).collect();
            let ran = RanInstead { tid, name: "pool".into(), ns: 1_400_000_000 };
            waits[0].kind = LongWaitKind::Starved { instead: vec![ran] };
            let thread = ThreadTime {
                thread: ThreadKey { pid: 1, tid: 10 },
                wall_ns: 2_000_000_000,
                ..ThreadTime::default()
            };
            let mut run = crate::model::report::fixtures::run(&[]);
            run.cpu.accounts.duration_ns = 2_000_000_000;
            run.blocking = Some(Blocking { long_waits: waits, threads: vec![thread], ..Blocking::default() });
            let found = check(&run, &Overrides::default().of(&RULE));
            (found[0].severity, found[0].advice == OWN_ADVICE)
        };
        assert_eq!(found(10), (Severity::Info, true));
        assert_eq!(found(77), (Severity::Critical, false), "somebody else");
    }

    #[test]
    fn who_opens_a_fifo_waits_for_the_other_end() {
        let said = |syscall: &str| {
            let mut of = wait(9, 0, 15_000_000_000, 0, WaitCause::Other);
            of.block.syscall = syscall.into();
            let mut run = crate::model::report::fixtures::run(&[]);
            let waits: Vec<LongWait> = long_waits(&of, false, &Thresholds::default()).collect();
            run.blocking = Some(Blocking { long_waits: waits, ..Blocking::default() });
            let found = check(&run, &Overrides::default().of(&RULE)).remove(0);
            assert!(found.title.contains("for 15 s"), "{}", found.title);
            (found.title.contains("the other end of a FIFO"), found.advice.contains("FIFO"))
        };
        assert_eq!((said("openat"), said("prctl")), ((true, true), (false, false)));
    }

    #[test]
    fn who_waits_as_asked_is_not_blocked() {
        assert_eq!(found("rt_sigsuspend", WaitCause::Other), []);
        assert_eq!(found("read", WaitCause::Pipe), [Severity::Info]);
        assert_eq!(found("write", WaitCause::Pipe), [Severity::Warning], "nobody reads");
        assert_eq!(found("fsync", WaitCause::Disk), [Severity::Warning]);
    }

    #[test]
    fn who_waits_for_the_next_message_is_not_blocked() {
        let found = |object: &str, awaited: u64| {
            let mut of = wait(9, 0, 12_000_000_000, 0, WaitCause::Network);
            (of.block.syscall, of.block.object) = ("recvfrom".into(), Some(object.into()));
            let waits = long_waits(&of, false, &Thresholds::default()).collect();
            let mut run = crate::model::report::fixtures::run(&[]);
            run.blocking = Some(Blocking { long_waits: waits, ..Blocking::default() });
            let peer = |peer: &str, clients| Peer {
                peer: peer.into(),
                clients,
                samples: 10,
                judged: 10,
                awaited,
                ..Peer::default()
            };
            let vitals = ProcessVitals {
                pid: 7,
                listens: true,
                peers: vec![peer("clients of :80", true), peer("10.0.0.2:6379", false)],
                ..ProcessVitals::default()
            };
            run.vitals = Some(Vitals { processes: vec![vitals], unlisted: 0 });
            let mut requests = crate::model::request::fixtures::requests();
            let asked = requests.peers.iter_mut().find(|of| of.side == Side::Asks).unwrap();
            (asked.peer, asked.awaited) = ("10.0.0.2:6379".into(), u64::from(awaited > 0));
            run.requests = Some(requests);
            check(&run, &Overrides::default().of(&RULE))[0].severity
        };
        assert_eq!(found("tcp 10.0.0.1:80 -> 10.9.9.9:4711", 9), Severity::Info, "a client");
        assert_eq!(found("udp 0.0.0.0:8125", 0), Severity::Info);
        assert_eq!(found("tcp 10.0.0.1:5000 -> 10.0.0.2:6379", 0), Severity::Info, "subscribed");
        assert_eq!(found("tcp 10.0.0.1:5000 -> 10.0.0.2:6379", 9), Severity::Critical, "asked");
        assert_eq!(found("tcp 10.0.0.1:5000 -> 10.0.0.3:5432", 0), Severity::Critical, "not known");
    }
}
