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

/// Who it is whose messages a process has waited for most, of those on a pipe or socket whose other end is known; where
/// system calls were not watched, it must be the only one.
pub fn most_awaited(run: &Run, pid: u32, is: impl Fn(&str) -> bool) -> Option<String> {
    let objects = run.calls.iter().flat_map(|calls| &calls.objects);
    let most = objects
        .filter(|of| of.pid == pid && of.blocked_ns > 0 && is(&of.object))
        .max_by_key(|of| of.blocked_ns);
    if let Some(most) = most {
        return other_end(run, pid, &most.object);
    }
    let mut ends = run.vitals_of(pid)?.other_ends.iter().filter(|of| is(&of.object));
    let only = ends.next()?;
    if ends.next().is_some() { None } else { words(&only.holders) }
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

/// Whether an object is one that waits of this cause are for: pipes and Unix sockets are told as one.
pub fn kinds_of(cause: WaitCause) -> impl Fn(&str) -> bool {
    let local = |object: &str| object.starts_with("pipe:") || object.starts_with("unix");
    move |object| (cause == WaitCause::Pipe) == local(object) && !object.starts_with('/')
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
        syscall::{Calls, ObjectIo},
        vitals::{Peer, ProcessVitals, Vitals},
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
    fn who_is_awaited_most_is_whose_object_blocked_most() {
        let mut run = run(vec![
            end("pipe:[5]", true, &[(8, "slow")]),
            end("pipe:[6]", true, &[(9, "quick")]),
            end("10.0.0.2:6379", true, &[(42, "redis")]),
        ]);
        let most = |run: &Run, cause| most_awaited(run, 7, kinds_of(cause));
        assert_eq!(most(&run, WaitCause::Pipe), None, "either of two");
        assert_eq!(most(&run, WaitCause::Network).as_deref(), Some("redis, pid 42"), "the only one");
        let of = |object: &str, blocked_ns| ObjectIo {
            pid: 7,
            object: object.into(),
            blocked_ns,
            ..ObjectIo::default()
        };
        let objects = vec![of("pipe:[6]", 5), of("pipe:[5]", 6), of("tcp 1.1.1.1:1 -> 10.0.0.2:6379", 99)];
        run.calls = Some(Calls { objects, ..Calls::default() });
        assert_eq!(most(&run, WaitCause::Pipe).as_deref(), Some("slow, pid 8"));
        let elsewhere = vec![of("tcp 1.1.1.1:1 -> 10.0.0.9:80", 99)];
        run.calls = Some(Calls { objects: elsewhere, ..Calls::default() });
        assert_eq!(most(&run, WaitCause::Network), None, "on another machine");
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
