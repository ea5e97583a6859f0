//! Asynchronous flow: what an event loop lets others do for it, how much of that goes on at once, and how much one after
//! the other.
//!
//! While a loop waits, something is under way: an answer of a peer, a job of its pool, a child. The sum of the times of all
//! of a kind over the time in which at least one was under way says how many there were at once: 1.0 is a chain in
//! which each waits for the one before.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    detect::roles,
    model::{
        cause::WaitCause,
        report::Run,
        request::Exchanges,
        stack::ThreadKey,
        timeline::Timeline,
        wait::{Blocking, ThreadTime},
    },
};

/// What is under way for less of the time is left out, of wall time.
const LEAST: f64 = 0.001;

/// What is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Answers of a peer.
    Peer,
    /// Jobs of the runtime's pool: files, names, compression, cryptography.
    Pool,
    /// CPU time of children.
    Children,
}

/// Everything of one kind with one partner.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UnderWay {
    /// Its kind.
    pub kind: Kind,
    /// With whom.
    pub what: String,
    /// How often, where that is known.
    pub times: Option<u64>,
    /// For how long it was watched, ns.
    pub watched_ns: u64,
    /// Sum of the lengths of all, ns.
    pub sum_ns: u64,
    /// Time in which at least one was under way, ns, where that is known.
    pub any_ns: Option<u64>,
    /// How many at once, on average over that time.
    pub at_once: Option<f64>,
    /// Most at once.
    pub most: u64,
    /// Part of them that began when no other was under way, from 0 to 1.
    pub in_sequence: Option<f64>,
    /// How the sum grew.
    pub over_time: Timeline,
}

/// An event loop, and what is under way for it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Flow {
    /// The loop's thread.
    pub thread: ThreadKey,
    /// Name of its process.
    pub process: String,
    /// Time it was watched for, ns.
    pub wall_ns: u64,
    /// It ran, ns.
    pub on_cpu_ns: u64,
    /// It was ready, and had no CPU, ns.
    pub run_queue_ns: u64,
    /// It was blocked in a callback, ns.
    pub blocked_ns: u64,
    /// It waited for events, ns.
    pub idle_ns: u64,
    /// Of that, in which nothing that is listed was under way: it had nothing to do, or waited for a timer, ns. At least so
    /// much: what goes on with several peers may go on at the same time.
    pub nothing_ns: u64,
    /// First what took the most time.
    pub under_way: Vec<UnderWay>,
}

/// Flow of each process with an event loop; where it has several, with the busiest one.
pub fn flows(run: &Run) -> Vec<Flow> {
    let Some(blocking) = &run.blocking else { return Vec::new() };
    let mut busiest: BTreeMap<u32, &ThreadTime> = BTreeMap::new();
    for thread in blocking.threads.iter().filter(|of| is_loop(blocking, of.thread)) {
        let of = busiest.entry(thread.thread.pid).or_insert(thread);
        if thread.on_cpu_ns > of.on_cpu_ns {
            *of = thread;
        }
    }
    let roles = roles::roles(run);
    busiest.into_values().map(|thread| flow(run, blocking, thread, &roles)).collect()
}

fn is_loop(blocking: &Blocking, thread: ThreadKey) -> bool {
    blocking.loops.iter().any(|of| of.thread == thread)
}

fn flow(run: &Run, blocking: &Blocking, thread: &ThreadTime, roles: &BTreeMap<ThreadKey, &str>) -> Flow {
    let pid = thread.thread.pid;
    let peers = run.requests.iter().flat_map(|requests| requests.asked()).filter(|peer| peer.pid == pid);
    let mut under_way: Vec<UnderWay> = peers.map(|peer| of_peer(peer, run.requests_watched_ns())).collect();
    let pool = blocking.threads.iter().filter(|of| of.thread.pid == pid);
    let pool: Vec<&ThreadTime> =
        pool.filter(|of| roles.get(&of.thread).is_some_and(|role| *role == roles::LIBUV_POOL)).collect();
    under_way.extend(of_pool(&pool));
    under_way.extend(of_children(run, pid));
    under_way.retain(|of| of.sum_ns as f64 >= LEAST * thread.wall_ns as f64);
    under_way.sort_by_key(|of| std::cmp::Reverse(of.any_ns.unwrap_or(of.sum_ns).min(thread.wall_ns)));
    let waits = |idle: bool| -> u64 {
        thread.blocked.iter().filter(|(cause, _)| cause.is_idle() == idle).map(|(_, ns)| ns).sum()
    };
    let busy: u64 = under_way.iter().map(|of| of.any_ns.unwrap_or(of.sum_ns)).fold(0, u64::saturating_add);
    // Requests may have been watched in windows only: then nothing is known of the rest.
    let watched = run.requests_watched_ns() >= run.cpu.accounts.duration_ns / 100 * 99;
    Flow {
        thread: thread.thread,
        process: thread.process.clone(),
        wall_ns: thread.wall_ns,
        on_cpu_ns: thread.on_cpu_ns,
        run_queue_ns: thread.run_queue_ns,
        blocked_ns: waits(false),
        idle_ns: waits(true),
        nothing_ns: if watched { waits(true).saturating_sub(busy) } else { 0 },
        under_way,
    }
}

fn of_peer(peer: &Exchanges, watched_ns: u64) -> UnderWay {
    let spoken = [&*peer.name, &*peer.protocol].into_iter().find(|word| !word.is_empty());
    let what = spoken.map_or_else(|| peer.peer.clone(), |word| format!("{} ({word})", peer.peer));
    let n = peer.exchanges();
    // What is still awaited has waited, too, and is in no sum of answers.
    let sum_ns = peer.first.sum_ns.saturating_add(peer.longest_awaited_ns).max(peer.awaited_ns);
    let any = peer.awaited_ns.max(1) as f64;
    UnderWay {
        kind: Kind::Peer,
        what,
        times: Some(n),
        watched_ns,
        sum_ns,
        any_ns: Some(peer.awaited_ns),
        at_once: (peer.awaited_ns > 0).then(|| sum_ns as f64 / any),
        most: peer.most_awaited,
        in_sequence: (n > 0).then(|| 1.0 - (peer.overlapped.min(n) as f64 / n as f64)),
        over_time: peer.over_time.clone(),
    }
}

/// Jobs of a pool: all that its threads do but wait for jobs.
fn of_pool(threads: &[&ThreadTime]) -> Option<UnderWay> {
    let mut sum = ThreadTime::default();
    threads.iter().for_each(|thread| sum.add(thread));
    let is_idle = |cause: WaitCause| cause.is_idle() || cause == WaitCause::Unknown;
    let waits = |thread: &ThreadTime| -> u64 {
        thread.blocked.iter().filter(|(cause, _)| !is_idle(*cause)).map(|(_, ns)| ns).sum()
    };
    let busy = |thread: &ThreadTime| thread.on_cpu_ns + thread.run_queue_ns + waits(thread);
    let sum_ns = busy(&sum);
    let most = threads.iter().filter(|thread| busy(thread) as f64 >= LEAST * thread.wall_ns as f64).count();
    if sum_ns == 0 {
        return None;
    }
    let share = |ns: u64| 100.0 * ns as f64 / sum_ns as f64;
    let longest = sum.blocked.iter().filter(|(cause, _)| !is_idle(*cause)).max_by_key(|(_, ns)| *ns);
    let waits =
        longest.map_or_else(String::new, |(cause, ns)| format!(", {:.0} % in {}", share(*ns), cause.words()));
    Some(UnderWay {
        kind: Kind::Pool,
        what: format!(
            "jobs of its pool ({} threads): {:.0} % on a CPU{waits}",
            threads.len(),
            share(sum.on_cpu_ns)
        ),
        times: None,
        watched_ns: threads.iter().map(|thread| thread.wall_ns).max().unwrap_or(0),
        sum_ns,
        any_ns: None,
        at_once: None,
        most: most as u64,
        in_sequence: None,
        over_time: Timeline::default(),
    })
}

fn of_children(run: &Run, pid: u32) -> Option<UnderWay> {
    let of = run.vitals_of(pid)?;
    let names: Vec<String> =
        of.children.iter().take(3).map(|child| format!("{} (pid {})", child.process, child.pid)).collect();
    let names = if names.is_empty() { "short-lived ones".to_owned() } else { names.join(", ") };
    let children_ns = run.unprofiled_children_ns(of);
    (children_ns > 0).then(|| UnderWay {
        kind: Kind::Children,
        what: format!("CPU time of its children: {names}"),
        times: None,
        watched_ns: of.span_ns,
        sum_ns: children_ns,
        any_ns: None,
        at_once: None,
        most: of.children.len() as u64,
        in_sequence: None,
        over_time: Timeline::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        report::fixtures,
        request::{Requests, Side},
        wait::EventLoop,
    };

    const S: u64 = 1_000_000_000;

    /// A loop that asks one peer three at a time and another one after the other, with a pool of two threads.
    fn run() -> Run {
        let mut run = fixtures::run(&[]);
        run.cpu.accounts.duration_ns = 10 * S;
        let thread = |tid: u32, name: &str, on_cpu_ns, blocked| ThreadTime {
            thread: ThreadKey { pid: 7, tid },
            process: "node".into(),
            name: name.into(),
            wall_ns: 10 * S,
            on_cpu_ns,
            blocked,
            ..ThreadTime::default()
        };
        let main = thread(7, "node", S, vec![(WaitCause::Poll, 8 * S), (WaitCause::Disk, S)]);
        let of_pool = |tid, disk| {
            thread(tid, "libuv-worker", 0, vec![(WaitCause::Disk, disk), (WaitCause::Park, 10 * S - disk)])
        };
        let loops = vec![EventLoop { thread: main.thread, ..EventLoop::default() }];
        let threads = vec![main, of_pool(8, S), of_pool(9, 0)];
        run.blocking = Some(Blocking { threads, loops, ..Blocking::default() });
        let peer = |name: &str, sum_ns, awaited_ns, overlapped| {
            let mut peer = Exchanges {
                pid: 7,
                side: Side::Asks,
                peer: name.into(),
                awaited_ns,
                overlapped,
                most_awaited: 3,
                ..Exchanges::default()
            };
            (peer.first.count, peer.first.sum_ns) = (100, sum_ns);
            peer
        };
        let peers =
            vec![peer("a:1", 3 * S, S, 67), peer("b:2", 5 * S, 5 * S, 0), peer("c:3", S / 1000, S / 1000, 0)];
        run.requests = Some(Requests { peers, ..Requests::default() });
        run
    }

    #[test]
    fn at_once_and_one_after_the_other_are_told_apart() {
        let flows = flows(&run());
        let [flow] = &flows[..] else { panic!("{flows:?}") };
        let said = |of: &UnderWay| (of.what.clone(), of.any_ns, of.at_once, of.in_sequence);
        let [b, a, pool] = &flow.under_way[..] else { panic!("{flow:?}") };
        assert_eq!(said(b), ("b:2".into(), Some(5 * S), Some(1.0), Some(1.0)));
        assert_eq!(said(a), ("a:1".into(), Some(S), Some(3.0), Some(1.0 - 0.67)));
        assert_eq!((pool.kind, pool.sum_ns, pool.most), (Kind::Pool, S, 1));
        assert!(pool.what.contains("100 % in disk"), "{pool:?}");
        assert_eq!(
            (flow.idle_ns, flow.blocked_ns, flow.nothing_ns),
            (8 * S, S, S),
            "5, 1 and 1 s were under way"
        );
    }

    #[test]
    fn what_was_watched_in_windows_says_nothing_of_the_rest() {
        let mut run = run();
        run.requests.as_mut().unwrap().watched_ns = 3 * S;
        assert_eq!(flows(&run)[0].nothing_ns, 0);
        run.blocking = None;
        assert_eq!(flows(&run), []);
    }
}
