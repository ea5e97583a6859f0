//! Who is at the other end of what a process waits for, in words.

use std::collections::BTreeSet;

use crate::model::{
    cause::WaitCause,
    report::Run,
    vitals::{Holder, OtherEnd},
};

/// Processes that are named.
const NAMED: usize = 2;

/// Who has the other end of `object` of a process: a descriptor as system calls and waits tell it, or a peer. `None` where that is
/// somewhere else, or not known.
pub fn other_end(run: &Run, pid: u32, object: &str) -> Option<String> {
    let peer = object.strip_prefix("tcp ").and_then(|ends| ends.split_once(" -> "));
    let object = peer.map_or(object, |(_, remote)| remote);
    let is_it = |of: &&OtherEnd| of.object == object || of.object.strip_prefix("unix ") == Some(object);
    let end = run.vitals_of(pid)?.other_ends.iter().find(is_it)?;
    words(&end.holders)
}

/// The same in parentheses, to be added to what is waited for; empty where it is not known.
pub fn in_brackets(run: &Run, pid: u32, object: &str) -> String {
    other_end(run, pid, object).map_or_else(String::new, |who| format!(" ({who})"))
}

/// Who it is whose messages on one pipe or socket make up most of the time in which all threads of a process waited for this cause;
/// known where system calls were watched all the time.
pub fn most_awaited(run: &Run, pid: u32, cause: WaitCause) -> Option<String> {
    let objects = run.calls.iter().flat_map(|calls| &calls.objects).filter(|of| of.pid == pid);
    let most = objects.max_by_key(|of| of.blocked_ns)?;
    let threads = run.blocking.iter().flat_map(|blocking| &blocking.threads);
    let blocked = threads.filter(|of| of.thread.pid == pid).flat_map(|of| &of.blocked);
    let all_ns = blocked.filter(|(of, _)| *of == cause).fold(0u64, |sum, (_, ns)| sum.saturating_add(*ns));
    if all_ns == 0 || most.blocked_ns <= all_ns / 2 { None } else { other_end(run, pid, &most.object) }
}

/// Whom the targets may wait for, as the end of a sentence: peers that they have connected to themselves, and processes of this
/// machine that may send them something.
pub fn others(run: &Run) -> String {
    let processes = || run.vitals.iter().flat_map(|vitals| &vitals.processes);
    let peers = processes().flat_map(|of| of.peers.iter().map(move |peer| (of.pid, peer)));
    let peers = peers.filter(|(_, peer)| !peer.clients);
    let peers = peers.map(|(pid, peer)| peer.peer.clone() + &in_brackets(run, pid, &peer.peer));
    let local = processes().flat_map(|of| &of.other_ends).filter(|of| of.receives);
    let local = local.filter_map(|of| {
        let what = match &*of.object {
            "unix" => "a Unix socket",
            pipe if pipe.starts_with("pipe:") => "a pipe",
            object => object.strip_prefix("unix ")?,
        };
        Some(format!("{what} ({})", words(&of.holders)?))
    });
    let names: Vec<String> = BTreeSet::from_iter(peers.chain(local)).into_iter().collect();
    match &names[..] {
        [] => String::new(),
        [first, second, rest @ ..] if rest.len() > 1 => {
            format!("; it is connected to {first}, {second} and {} more", rest.len())
        }
        few => format!("; it is connected to {}", few.join(", ")),
    }
}

/// Processes of one name are told together.
fn words(holders: &[Holder]) -> Option<String> {
    let first = holders.first()?;
    if holders.len() > NAMED && holders.iter().all(|of| of.process == first.process) {
        return Some(format!("{} processes {}", holders.len(), first.process));
    }
    let named: Vec<String> =
        holders.iter().take(NAMED).map(|of| format!("{}, pid {}", of.process, of.pid)).collect();
    let more = holders.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Some(named.join("; ") + &more)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        report::fixtures,
        stack::ThreadKey,
        syscall::{Calls, ObjectIo},
        vitals::{Peer, ProcessVitals, Vitals},
        wait::{Blocking, ThreadTime},
    };

    fn end(object: &str, receives: bool, holders: &[(u32, &str)]) -> OtherEnd {
        let holders = holders.iter().map(|&(pid, name)| Holder { pid, process: name.into() }).collect();
        OtherEnd { object: object.into(), receives, holders }
    }

    fn run(other_ends: Vec<OtherEnd>) -> Run {
        let mut run = fixtures::run(&[]);
        let peers = vec![Peer { peer: "10.0.0.2:6379".into(), ..Peer::default() }];
        let of = ProcessVitals { pid: 7, other_ends, peers, ..ProcessVitals::default() };
        run.vitals = Some(Vitals { processes: vec![of], unlisted: 0 });
        run
    }

    #[test]
    fn whatever_form_the_object_has_its_other_end_is_found() {
        let run = run(vec![
            end("10.0.0.2:6379", true, &[(42, "redis")]),
            end("unix /run/db", true, &[(1, "db"), (2, "db"), (3, "db")]),
            end("pipe:[5]", true, &[(8, "a"), (9, "b"), (10, "c")]),
        ]);
        let found = |object| other_end(&run, 7, object).unwrap_or_default();
        assert_eq!(found("tcp 10.0.0.1:5000 -> 10.0.0.2:6379"), "redis, pid 42");
        assert_eq!(found("10.0.0.2:6379"), "redis, pid 42");
        assert_eq!([found("unix /run/db"), found("/run/db")], ["3 processes db", "3 processes db"]);
        assert_eq!(found("pipe:[5]"), "a, pid 8; b, pid 9 and 1 more");
        assert_eq!([found("pipe:[6]"), found("tcp 10.0.0.2:6379")], ["", ""], "a listener has no other end");
        assert_eq!(other_end(&run, 8, "pipe:[5]"), None, "of another process");
    }

    #[test]
    fn who_is_awaited_most_is_named_where_it_is_most_of_the_waiting() {
        let mut run =
            run(vec![end("pipe:[5]", true, &[(8, "slow")]), end("pipe:[6]", true, &[(9, "quick")])]);
        let most = |run: &Run| most_awaited(run, 7, WaitCause::Pipe);
        let of = |object: &str, blocked_ns| ObjectIo {
            pid: 7,
            object: object.into(),
            blocked_ns,
            ..ObjectIo::default()
        };
        let blocked = |ns| ThreadTime {
            thread: ThreadKey { pid: 7, tid: 7 },
            blocked: vec![(WaitCause::Pipe, ns)],
            ..ThreadTime::default()
        };
        run.calls = Some(Calls { objects: vec![of("pipe:[6]", 5), of("pipe:[5]", 6)], ..Calls::default() });
        run.blocking = Some(Blocking { threads: vec![blocked(11)], ..Blocking::default() });
        assert_eq!(most(&run).as_deref(), Some("slow, pid 8"));
        run.blocking.as_mut().unwrap().threads.push(blocked(1));
        assert_eq!(most(&run), None, "half of it is elsewhere");
        run.blocking.as_mut().unwrap().threads.pop();
        run.calls.as_mut().unwrap().objects.push(of("anon_inode:[eventfd]", 9));
        assert_eq!(most(&run), None, "mostly it waits for itself");
        run.calls = None;
        assert_eq!(most(&run), None, "system calls were not watched");
    }

    #[test]
    fn an_idle_target_names_whom_it_may_wait_for() {
        let run = run(vec![
            end("10.0.0.2:6379", true, &[(42, "redis")]),
            end("pipe:[5]", false, &[(8, "tee")]),
            end("unix", true, &[(9, "parent")]),
        ]);
        assert_eq!(
            others(&run),
            "; it is connected to 10.0.0.2:6379 (redis, pid 42), a Unix socket (parent, pid 9)"
        );
    }
}
