//! The process waits for answers of a peer.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    detect::{
        causes,
        other_end::in_brackets,
        rule::{Needs, Param, Rule, Unit, Values},
        served,
        words::{SHOWN, calls_watched_ns},
    },
    model::{
        cause::WaitCause,
        distribution::Summary,
        finding::{Bottleneck, Cost, Evidence, Finding, ProcessName, Severity},
        report::{ProfileStack, Run},
        request::who,
        stack::ThreadKey,
        syscall::WaitKind,
        units::{percent, thousands, time},
        vitals::{Peer, ProcessVitals},
    },
};

const SHARE: Param = Param {
    name: "share",
    unit: Unit::Percent,
    default: 20.0,
    help: "Wall time in which an answer of the peer is awaited",
    flag: None,
};
const ANSWER: Param = Param {
    name: "answer",
    unit: Unit::Seconds,
    default: 0.05,
    help: "Mean time to an answer from which on waiting for it is a warning, not a note",
    flag: None,
};

/// Fewer looks say nothing.
const MIN_SAMPLES: u64 = 4;
/// Fewer questions that were given up say nothing: a connection ends for other reasons, too.
const GIVEN_UP: u64 = 20;
/// The slowest of a hundred answers are another thing than half of them where they take so many times as long, and at least so
/// long, ns. Of fewer answers too few are slow.
const TAIL: (f64, u64) = (20.0, 200_000_000);
const TAIL_OF: u64 = 300;
/// Segments of TCP sent again that matter: so many, and so many for each answer.
const RESENT: (u64, f64) = (10, 0.01);
/// So many requests in progress could ask at once; so few answers are awaited one at a time, for so much of the time.
const SEVERAL: f64 = 2.5;
const ONE: f64 = 1.2;
const MOSTLY: f64 = 0.5;
/// Part of a pool's connections that await answers, on average, where it is used up.
const USED_UP: f64 = 0.95;

/// The rule.
pub static RULE: Rule = Rule {
    name: "slow-peer",
    summary: "the process waits for the answers of a peer",
    needs: &[Needs::Vitals],
    params: &[SHARE, ANSWER],
    check,
    doc: "\
The process has sent something to a peer that it connected to, and the answer has not come yet, for a large part of the time. A
server that waits in epoll for its own upstream looks idle otherwise. Where requests are watched that time is measured; with `--syscalls`
the times from each request to its answer are added up; without, the kernel is asked about once a second which connections last sent and have not received since.

The time is spent at the peer or on the way to it: profile the peer. If the answers are needed one after the other, ask for
them at once; a cache, or a timeout, may help.

A name server that is slow holds up the threads that ask it (with Node.js those of libuv's pool, where files and crypto wait
too): known by the functions of the C library that poll for its answer.

Where all connections to the peer await answers all the time, and as many requests of clients again are in progress, the pool is
used up: that is said, too.

Where most questions have no answer when their connection ends (the process gives up after a time of its own), that is said.

An answer that is awaited for longer than 5 s is a note only: such a question (a long poll) waits for work. So do some commands by their
nature (BRPOP, Kafka's Fetch): where they make up most of the time, it is a note without a share. A note it is,
too, if answers come sooner than the second threshold.

Where half of the answers come soon, and one in a hundred takes many times as long, that is told however much time it is: a
warning where such answers alone are awaited for so much of it. Segments of TCP that were sent again are time that the network took.",
};

/// What is known of one peer of one process.
#[derive(Default)]
struct Waits {
    process: String,
    /// The peer with its name, where that is known.
    called: String,
    /// How many of them ask, where that is known.
    processes: u64,
    /// Time to all answers, and their number: with system calls.
    ns: u64,
    answers: u64,
    /// Share of the run in which one was awaited, where requests were watched.
    measured: Option<f64>,
    /// Share of looks that found an answer awaited.
    awaited: f64,
    /// Longest time that one had been awaited for at a look, ns.
    longest_ns: u64,
    /// Most of the time was asked for to wait for work.
    for_work: bool,
    /// Questions that were given up, or whose connection ended otherwise.
    unanswered: u64,
    /// Times to its answers, where requests were watched; and for how long the latest of a hundred had been there unread, ns.
    first: Summary,
    unread_ns: u64,
    /// What it is asked that takes longest, where that is several things.
    slowest: String,
    /// The times are those of several answers.
    batches: bool,
    /// Segments sent again.
    resent: u64,
    /// Connections to it, where one process has them all.
    connections: u64,
}

impl Waits {
    /// How the slowest answers differ from the others, where they do; and the time in which they are awaited, ns.
    fn tail(&self) -> Option<(String, u64)> {
        let Summary { count, p50_ns, p99_ns, .. } = self.first;
        let long = p99_ns >= TAIL.1 && p99_ns as f64 >= TAIL.0 * p50_ns as f64;
        // Who reads late waits for himself.
        if !long || count < TAIL_OF || 2 * self.unread_ns >= p99_ns || self.for_work || self.batches {
            return None;
        }
        let slowest = if self.slowest.is_empty() { "" } else { &format!(", mostly {}", self.slowest) };
        let text = format!(
            ", half of them up to {}, one in a hundred {} and more{slowest}",
            time(p50_ns),
            time(p99_ns)
        );
        Some((text, (count / 100).saturating_mul(p99_ns)))
    }

    /// Whether all connections of a pool await answers all the time, while as many requests and more wait for one of them.
    fn used_up(&self, run: &Run, pid: u32, in_progress: f64) -> bool {
        let (busy, connections) =
            (self.ns as f64 / run.requests_watched_ns() as f64, self.connections as f64);
        let wait = in_progress - served::awaited(run, pid);
        !self.for_work && connections > 1.0 && busy >= USED_UP * connections && wait >= connections
    }

    /// What the network lost, where that matters.
    fn lost(&self) -> String {
        let each = self.resent as f64 / (self.answers + self.unanswered).max(1) as f64;
        let matters = self.resent >= RESENT.0 && each >= RESENT.1;
        if matters { format!("; {} segments were sent again", thousands(self.resent)) } else { String::new() }
    }
}

fn check(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let mut peers: BTreeMap<(u32, String), Waits> = BTreeMap::new();
    let processes = || run.vitals.iter().flat_map(|vitals| &vitals.processes);
    for of in processes() {
        let answers =
            |peer: &&Peer| !peer.clients && !is_itself(of, &peer.peer) && peer.samples >= MIN_SAMPLES;
        for peer in of.peers.iter().filter(answers) {
            let waits = peers.entry((of.pid, peer.peer.clone())).or_default();
            waits.process.clone_from(&of.process);
            waits.awaited = peer.awaited as f64 / peer.judged.max(1) as f64;
            waits.longest_ns = peer.longest_awaited_ns;
        }
    }
    for of in run.calls.iter().flat_map(|calls| &calls.objects) {
        let Some((_, peer)) = of.object.strip_prefix("tcp ").and_then(|rest| rest.split_once(" -> ")) else {
            continue;
        };
        // Who answers there is its client: known by its own port.
        let known = processes().any(|vitals| {
            vitals.pid == of.pid
                && !is_itself(vitals, peer)
                && vitals.peers.iter().any(|known| !known.clients && known.peer == peer)
        });
        if known && of.round_trips > 0 {
            let waits = peers.entry((of.pid, peer.to_owned())).or_default();
            waits.process.clone_from(&of.process);
            waits.ns += of.round_trip_ns;
            waits.answers += of.round_trips;
        }
    }
    for of in run.requests.iter().flat_map(|requests| requests.asked()) {
        if of.exchanges() + of.unanswered == 0 {
            continue;
        }
        if processes().any(|vitals| vitals.pid == of.pid && is_itself(vitals, &of.peer)) {
            continue;
        }
        // What several processes of one program ask is told once, with the longest that looks at any of them found.
        let (mut awaited, mut longest_ns) = (0.0, 0);
        if of.processes > 1 {
            peers.retain(|(_, peer), waits| {
                let same = *peer == of.peer && waits.process == of.process && waits.measured.is_none();
                if same {
                    (awaited, longest_ns) = (waits.awaited.max(awaited), waits.longest_ns.max(longest_ns));
                }
                !same
            });
        }
        let waits = peers.entry((of.pid, of.peer.clone())).or_default();
        (waits.awaited, waits.longest_ns) = (waits.awaited.max(awaited), waits.longest_ns.max(longest_ns));
        waits.process.clone_from(&of.process);
        waits.called = of.place();
        (waits.ns, waits.answers, waits.unanswered) = (of.first.sum_ns, of.exchanges(), of.unanswered);
        // Of several processes it is the sum.
        let processes = of.processes.max(1) as f64;
        waits.measured = Some(of.awaited_ns as f64 / processes / run.requests_watched_ns() as f64);
        waits.for_work = served::waits_for_work(of, |answers| answers.sum_ns);
        (waits.first, waits.unread_ns) = (of.first, of.queued.p99_ns);
        (waits.resent, waits.batches) = (of.retransmits, of.are_batches());
        waits.connections = if of.processes > 1 { 0 } else { of.open.max(of.most_awaited) };
        let slowest = of.routes.iter().max_by_key(|route| route.first.p99_ns).filter(|_| of.routes.len() > 1);
        waits.slowest = slowest.map_or_else(String::new, |route| route.operation.clone());
        waits.processes = of.processes;
    }
    let found = peers.into_iter().filter_map(|((pid, peer), waits)| finding(run, pid, &peer, &waits, values));
    found.chain(names(run, values)).collect()
}

/// Waits for name servers, which threads of a pool or the C library itself poll for.
fn names(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let wall_ns = run.cpu.accounts.duration_ns.max(1);
    let mut threads: BTreeMap<ThreadKey, (u64, &ProfileStack)> = BTreeMap::new();
    for stack in run.off_cpu.iter().flat_map(|profile| &profile.stacks) {
        if stack.cause == Some(WaitCause::Network) && causes::asks_names(run.names(), &stack.frames) {
            threads.entry(stack.thread).or_insert((0, stack)).0 += stack.weight;
        }
    }
    let mut processes: BTreeMap<u32, Vec<(u64, &ProfileStack)>> = BTreeMap::new();
    for (thread, of) in threads {
        processes.entry(thread.pid).or_default().push(of);
    }
    let finding = |(pid, threads): (u32, Vec<(u64, &ProfileStack)>)| {
        let total_ns: u64 = threads.iter().map(|(ns, _)| ns).sum();
        let (worst_ns, stack) = threads.into_iter().max_by_key(|(ns, _)| *ns)?;
        let share = (worst_ns as f64 / wall_ns as f64).min(1.0);
        let calls = run.calls.iter().flat_map(|calls| &calls.waits);
        let asked =
            calls.filter(|of| of.pid == pid && of.kind == WaitKind::Dns).max_by_key(|of| of.lengths.sum_ns);
        let server = asked.map_or_else(String::new, |of| {
            format!(
                ", {} waits for {} of up to {}",
                thousands(of.lengths.count),
                of.peer,
                time(of.lengths.max_ns)
            )
        });
        (100.0 * share >= values.get(&SHARE)).then(|| Finding {
            rule: RULE.name,
            severity: Severity::Warning,
            bottleneck: Bottleneck::Network,
            process: ProcessName { pid, name: stack.process.to_string() },
            subject: asked.map_or_else(|| "DNS".to_owned(), |of| of.peer.clone()),
            title: format!(
                "{:.0} % of the time a thread of {} (pid {pid}) waits for a name server (DNS), {} in all{server}",
                100.0 * share,
                stack.process,
                time(total_ns),
            ),
            advice: "look at /etc/resolv.conf and at that name server; cache names, or keep connections".to_owned(),
            cost: Cost { ns: total_ns, share_of_wall: share, ..Cost::default() },
            evidence: vec![Evidence { label: "", frames: stack.frames.to_vec(), shown: SHOWN }],
            details: BTreeMap::from([("waited_ns", json!(total_ns))]),
        })
    };
    processes.into_iter().filter_map(finding).collect()
}

/// Whether a peer is the process itself: a port of this machine that it serves. It waits for what it does itself.
fn is_itself(of: &ProcessVitals, peer: &str) -> bool {
    let Some((address, port)) = peer.rsplit_once(':') else { return false };
    let local =
        address.starts_with("127.") || matches!(address.trim_matches(['[', ']']), "::1" | "::ffff:127.0.0.1");
    let serves = || of.peers.iter().any(|known| known.clients && known.peer == format!("clients of :{port}"));
    local && of.listens && serves()
}

fn finding(run: &Run, pid: u32, peer: &str, waits: &Waits, values: &Values<'_>) -> Option<Finding> {
    let wall_ns = run.cpu.accounts.duration_ns.max(1);
    let estimated = || (waits.ns as f64 / calls_watched_ns(run) as f64).max(waits.awaited);
    let share = waits.measured.unwrap_or_else(estimated).min(1.0);
    let mean_ns = waits.ns / waits.answers.max(1);
    let least = values.get(&SHARE);
    let much = 100.0 * share >= least;
    let tail = waits.tail();
    if !much && tail.is_none() {
        return None;
    }
    let (tail, in_tail_ns) = tail.unwrap_or_default();
    // Several are awaited at once: they make up that part of the time in which any is.
    let tail_matters = in_tail_ns > 0 && share * percent(in_tail_ns, waits.first.sum_ns.max(1)) >= least;
    let each_ns = (share * wall_ns as f64) as u64 / (waits.answers + waits.unanswered).max(1);
    let gives_up = much
        && waits.unanswered >= GIVEN_UP
        && waits.unanswered > waits.answers
        && each_ns < served::LONG_POLL_NS;
    let how = match waits.answers {
        n if gives_up => format!(
            "{} of {} questions had no answer when their connection was closed",
            thousands(waits.unanswered),
            thousands(n + waits.unanswered)
        ),
        0 => format!(
            "an answer was awaited in {:.0} % of the looks, for up to {}",
            100.0 * waits.awaited,
            time(waits.longest_ns)
        ),
        n if waits.batches => format!("{} batches of answers took {} each", thousands(n), time(mean_ns)),
        n => format!("{} answers took {} each{tail}", thousands(n), time(mean_ns)),
    };
    // Half of what is awaited at a look has been so for half of its time.
    let answer_ns = if waits.answers > 0 { mean_ns } else { waits.longest_ns };
    let slow = much && (values.ns(&ANSWER)..served::LONG_POLL_NS).contains(&answer_ns) && !waits.for_work;
    // With several requests in progress several answers could be awaited.
    let in_progress = served::in_progress(run, pid);
    let one_by_one =
        !waits.for_work && in_progress >= SEVERAL && served::awaited(run, pid) <= ONE && share >= MOSTLY;
    let used_up = much && waits.used_up(run, pid, in_progress);
    let (but, advice) = match one_by_one {
        _ if !much => {
            (String::new(), "look at what it does when it is slow, and at the way to it; set a timeout")
        }
        _ if gives_up => {
            (String::new(), "it does not answer in time: profile that peer, or look at the way to it")
        }
        true => (
            format!("; {in_progress:.0} requests are in progress, but one answer at a time is awaited"),
            "look for a lock that is held meanwhile, or a pool of one connection; profile that peer",
        ),
        _ if used_up => (
            format!(
                "; all {} connections to it are in use all the time, and {in_progress:.0} requests in progress",
                waits.connections
            ),
            "hold connections for less time, or give the pool more if that peer can do more at once",
        ),
        false => (String::new(), "profile that peer; ask it for more at once, or in parallel"),
    };
    let warns = slow || one_by_one || used_up || gives_up || tail_matters;
    Some(Finding {
        rule: RULE.name,
        severity: if warns { Severity::Warning } else { Severity::Info },
        bottleneck: Bottleneck::Network,
        process: ProcessName { pid, name: waits.process.clone() },
        subject: peer.to_owned(),
        title: format!(
            "{:.0} % of the time {} waits for {}{}: {how}{}{but}",
            100.0 * share,
            who(&waits.process, pid, waits.processes),
            if waits.called.is_empty() { peer } else { &waits.called },
            in_brackets(run, pid, peer),
            waits.lost(),
        ),
        advice: advice.to_owned(),
        // Who waits for work has none.
        cost: match waits.for_work {
            true => Cost::default(),
            false => Cost { ns: (share * wall_ns as f64) as u64, share_of_wall: share, ..Cost::default() },
        },
        evidence: Vec::new(),
        details: BTreeMap::from([
            ("answers", json!(waits.answers)),
            ("mean_answer_ns", json!(mean_ns)),
            ("awaited_share", json!(waits.awaited)),
        ]),
    })
}

#[cfg(test)]
mod tests;
