//! Connections that are refused, fail otherwise, or are broken off.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    detect::{
        rule::{Needs, Param, Rule, Unit, Values},
        words::calls_watched_ns,
    },
    model::{
        finding::{Bottleneck, Finding, ProcessName, Severity},
        report::Run,
        request::{Exchanges, Failure},
        syscall::{CallCount, Calls},
        units::{count, per_second, percent, thousands},
    },
};

const SHARE: Param = Param {
    name: "share",
    unit: Unit::Percent,
    default: 60.0,
    help: "Attempts to connect that fail, or connections that do; less is a note",
    flag: None,
};

/// Fewer failures say nothing.
const MIN_FAILED: u64 = 3;
/// Connections that break off of which less is no note, %: a peer that closes what is idle does that, too.
const NOTED: f64 = 5.0;
/// Attempts that may be on their way at either end of the run.
const ONGOING: u64 = 2;
/// Errors that say something about the peer. A missing Unix socket (ENOENT, as of nscd) and an address family that this machine
/// does not have (ENETUNREACH) are everyday answers.
const ERRORS: [&str; 7] =
    ["ECONNREFUSED", "ETIMEDOUT", "EHOSTUNREACH", "ECONNRESET", "EADDRNOTAVAIL", "EACCES", "EPERM"];

/// Those that come before a connection is tried, so that only the call's result tells them.
const LOCAL: [&str; 3] = ["EADDRNOTAVAIL", "EACCES", "EPERM"];

/// The rule.
pub static RULE: Rule = Rule {
    name: "connect-errors",
    summary: "attempts to connect to a peer fail, or connections to it break off",
    needs: &[Needs::Connects],
    params: &[SHARE],
    check,
    doc: "\
Most attempts of the process to connect fail: nobody listens there (ECONNREFUSED), nobody answers (ETIMEDOUT, EHOSTUNREACH),
this machine has no ports left (EADDRNOTAVAIL), or a rule forbids it. Half of the attempts are a note: a name with two addresses, of
which one is not served, is tried like that (`localhost` as ::1 and 127.0.0.1).

Where requests are watched each attempt is counted by its peer, also one that fails later than the call. Otherwise the results of
calls are: one that returned EINPROGRESS counts by what the program is told later, when it asks (SO_ERROR), and the peer is the one
that was tried most.

Connections that stood and broke off (ECONNRESET, ETIMEDOUT) are told likewise, where requests are watched: a warning where questions
had no answer then, else a note. Who answers there has been restarted, or closes what it has too much of, or what is idle.

Look whether the peer runs, and whether address and port are right. Wait longer between attempts (back off), and keep connections
once they stand. Against EADDRNOTAVAIL keep connections, too: each closed one keeps its port for a minute.",
};

fn check(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let least = values.get(&SHARE);
    let asked = || run.requests.iter().flat_map(|requests| requests.asked());
    let exact = asked().filter_map(|peer| {
        // Of the addresses of one name another may do.
        let elsewhere = asked()
            .any(|of| (of.pid, port(of)) == (peer.pid, port(peer)) && of.peer != peer.peer && stands(of));
        not_made(run, peer, if elsewhere { f64::INFINITY } else { least }).or_else(|| broken_off(peer, least))
    });
    let mut found: Vec<Finding> = exact.collect();
    let Some(calls) = &run.calls else { return found };
    let mut processes: BTreeMap<u32, Vec<&CallCount>> = BTreeMap::new();
    for of in calls.calls.iter().filter(|of| of.syscall == "connect") {
        processes.entry(of.thread.pid).or_default().push(of);
    }
    found.extend(processes.into_iter().filter_map(|(pid, of)| {
        // What is known of each peer is not told again by the calls.
        let same = |peer: &Exchanges| {
            peer.pid == pid || (peer.processes > 1 && of.iter().any(|of| of.process == peer.process))
        };
        let known = asked().any(|peer| same(peer) && failures(peer, true).next().is_some());
        let errors = if known { &LOCAL[..] } else { &ERRORS[..] };
        by_calls(run, calls, pid, &of, errors, least)
    }));
    found
}

/// Whether a connection was made, as far as is known.
fn stands(peer: &Exchanges) -> bool {
    peer.opened > failures(peer, true).map(|of| of.count).sum()
}

/// The port of a peer that has one.
fn port(peer: &Exchanges) -> Option<&str> {
    peer.peer.rsplit_once(':').map(|(_, port)| port)
}

/// Failures that say something about the peer, of attempts or of connections that stood.
fn failures(peer: &Exchanges, connecting: bool) -> impl Iterator<Item = &Failure> {
    let told = move |of: &&Failure| of.connecting == connecting && ERRORS.contains(&&*of.error);
    peer.failures.iter().filter(told)
}

/// How many there are, and what most of them are called.
fn most(peer: &Exchanges, connecting: bool) -> Option<(u64, &str)> {
    let most = failures(peer, connecting).max_by_key(|of| of.count)?;
    let all = failures(peer, connecting).map(|of| of.count).sum();
    (all >= MIN_FAILED).then_some((all, &most.error))
}

/// Attempts that failed, as the sockets tell.
fn not_made(run: &Run, peer: &Exchanges, least: f64) -> Option<Finding> {
    let (failed, error) = most(peer, true)?;
    let tried = peer.opened.max(failed);
    let title = format!(
        "{} of {} attempts of {} to connect to {} failed with {error}, {} a second",
        thousands(failed),
        thousands(tried),
        peer.who(),
        peer.place(),
        // Attempts are always seen, also where requests are watched for some of the time.
        per_second(failed as f64 / (run.cpu.accounts.duration_ns.max(1) as f64 / 1e9)),
    );
    let severity = if percent(failed, tried) < least { Severity::Info } else { Severity::Warning };
    Some(exact(peer, severity, title, advice(error), (failed, tried)))
}

/// Connections that stood and failed.
fn broken_off(peer: &Exchanges, least: f64) -> Option<Finding> {
    let (failed, error) = most(peer, false)?;
    let never_stood: u64 = peer.failures.iter().filter(|of| of.connecting).map(|of| of.count).sum();
    let ended = peer.closed.saturating_sub(never_stood).max(failed);
    let share = percent(failed, ended);
    if share < NOTED {
        return None;
    }
    let lost = match peer.unanswered {
        0 => String::new(),
        n => format!("; {} had no answer", count(n, "question")),
    };
    let resent = match peer.retransmits {
        0 => String::new(),
        n => format!("; {} sent again", count(n, "segment")),
    };
    let title = format!(
        "{} of {} connections of {} to {} broke off with {error}{lost}{resent}",
        thousands(failed),
        thousands(ended),
        peer.who(),
        peer.place(),
    );
    let matters = share >= least && peer.unanswered >= MIN_FAILED;
    let severity = if matters { Severity::Warning } else { Severity::Info };
    let advice =
        "look at the log of that peer and its limits (idle time, number of connections), and ask again once";
    Some(exact(peer, severity, title, advice, (failed, ended)))
}

fn exact(
    peer: &Exchanges,
    severity: Severity,
    title: String,
    advice: &str,
    (failed, attempts): (u64, u64),
) -> Finding {
    let errors: BTreeMap<&str, u64> = peer.failures.iter().map(|of| (&*of.error, of.count)).collect();
    let process = ProcessName { pid: peer.pid, name: peer.process.clone() };
    Finding {
        severity,
        title,
        advice: advice.to_owned(),
        details: BTreeMap::from([
            ("failed", json!(failed)),
            ("attempts", json!(attempts)),
            ("errors", json!(errors)),
        ]),
        ..Finding::warning(RULE.name, Bottleneck::Network, process, peer.peer.clone())
    }
}

fn advice(error: &str) -> &'static str {
    match error {
        "EADDRNOTAVAIL" => "keep connections open: this machine has no ports left for new ones",
        "EACCES" | "EPERM" => "look at firewall rules and at the process's rights",
        _ => "look whether that peer runs and is reachable (nc -vz HOST PORT); wait longer between attempts",
    }
}

/// Attempts that failed with one of the `told` errors, as calls tell.
fn by_calls(
    run: &Run,
    calls: &Calls,
    pid: u32,
    of: &[&CallCount],
    told: &[&str],
    least: f64,
) -> Option<Finding> {
    let mut errors: BTreeMap<&str, u64> = BTreeMap::new();
    for (error, n) in of.iter().flat_map(|of| &of.errors).filter(|(name, _)| told.contains(&name.as_str())) {
        *errors.entry(error).or_default() += n;
    }
    let failed: u64 = errors.values().sum();
    // Who asks by calling again learns what became of the attempt, and makes no other one. An attempt before the run can fail in it.
    let named = |name: &str| -> u64 {
        of.iter().flat_map(|of| &of.errors).filter(|(error, _)| error == name).map(|(_, n)| n).sum()
    };
    let calls_made = of.iter().map(|of| of.lengths.count).sum::<u64>();
    let (begun, asked) = (named("EINPROGRESS"), named("EALREADY") + named("EISCONN"));
    let ended = calls_made.saturating_sub(begun + asked);
    let asks_again = begun > 0 && (asked > 0 || ended.abs_diff(begun) <= ONGOING);
    let tried =
        if asks_again { calls_made.saturating_sub(asked + ended.min(begun)) } else { calls_made }.max(failed);
    let (&error, _) = errors.iter().max_by_key(|(_, n)| **n)?;
    if failed < MIN_FAILED {
        return None;
    }
    let share = 100.0 * failed as f64 / tried.max(1) as f64;
    let peer = peer(calls, pid);
    let to = peer.as_deref().map_or_else(String::new, |peer| format!(" to {peer}"));
    let process = of.first().map_or_else(String::new, |of| of.process.clone());
    let seconds = calls_watched_ns(run) as f64 / 1e9;
    let title = format!(
        "{} of {} attempts of {process} (pid {pid}) to connect{to} failed with {error}, {} a second",
        thousands(failed),
        thousands(tried),
        per_second(failed as f64 / seconds),
    );
    let (process, subject) = (ProcessName { pid, name: process }, peer.unwrap_or_else(|| error.to_owned()));
    Some(Finding {
        severity: if share < least { Severity::Info } else { Severity::Warning },
        title,
        advice: advice(error).to_owned(),
        details: BTreeMap::from([
            ("failed", json!(failed)),
            ("attempts", json!(tried)),
            ("errors", json!(errors)),
        ]),
        ..Finding::warning(RULE.name, Bottleneck::Network, process, subject)
    })
}

/// The peer that was tried most often.
fn peer(calls: &Calls, pid: u32) -> Option<String> {
    calls.connects_by_peer(pid).max_by_key(|of| of.lengths.count).map(|of| of.peer.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::rule::Overrides,
        model::{
            distribution::Summary,
            request::fixtures,
            stack::ThreadKey,
            syscall::{KindWaits, WaitKind},
        },
    };

    /// Calls of connect, of which so many had these errors.
    fn connects(errors: &[(&str, u64)]) -> Calls {
        let connect = CallCount {
            thread: ThreadKey { pid: 7, tid: 0 },
            process: "app".into(),
            syscall: "connect".into(),
            lengths: Summary { count: 40, ..Summary::default() },
            errors: errors.iter().map(|&(error, n)| (error.into(), n)).collect(),
            ..CallCount::default()
        };
        Calls { calls: vec![connect], ..Calls::default() }
    }

    fn found(calls: &[(&str, u64)], change: impl Fn(&mut Exchanges)) -> Vec<(Severity, String)> {
        let mut run = crate::model::report::fixtures::run(&[]);
        run.cpu.accounts.duration_ns = 10_000_000_000;
        let mut requests = fixtures::requests();
        change(&mut requests.peers[0]);
        (run.requests, run.calls) = (Some(requests), Some(connects(calls)));
        let found = check(&run, &Overrides::default().of(&RULE));
        found.into_iter().map(|of| (of.severity, of.title)).collect()
    }

    fn failure(error: &str, connecting: bool, count: u64) -> Failure {
        Failure { error: error.into(), connecting, count }
    }

    #[test]
    fn what_sockets_tell_is_exact_and_told_once() {
        let refused = |count, opened| {
            found(&[("ECONNREFUSED", 40)], |peer| {
                peer.failures = vec![failure("ECONNREFUSED", true, count), failure("gave up", true, 50)];
                peer.opened = opened;
            })
        };
        let all = refused(30, 32);
        assert_eq!((all.len(), all[0].0), (1, Severity::Warning), "{all:?}");
        assert!(
            all[0].1.contains("30 of 32 attempts of app (pid 7) to connect to db (10.0.0.2:5432) failed")
                && all[0].1.ends_with("ECONNREFUSED, 3.0 a second"),
            "{all:?}"
        );
        assert_eq!(refused(30, 60)[0].0, Severity::Info, "two addresses of one name");
        assert!(refused(2, 2).is_empty(), "too few, and the calls say no more");
        let others = found(&[("ECONNREFUSED", 40), ("EACCES", 30)], |_| ());
        assert!(others.len() == 1 && others[0].1.contains("30 of 40") && others[0].1.contains("EACCES"));
        let unix = found(&[("ECONNREFUSED", 40)], |peer| peer.failures.clear());
        assert!(unix.len() == 1 && unix[0].1.contains("40 of 40"), "no socket that is watched: {unix:?}");
    }

    #[test]
    fn an_address_that_fails_where_another_of_its_port_does_is_a_note() {
        let severity = |other: &str, opened| {
            let mut run = crate::model::report::fixtures::run(&[]);
            let mut requests = fixtures::requests();
            let peer = &mut requests.peers[0];
            (peer.peer, peer.opened) = ("[::1]:5432".into(), 30);
            peer.failures = vec![failure("ECONNREFUSED", true, 30)];
            let other = Exchanges { peer: other.into(), opened, failures: Vec::new(), ..peer.clone() };
            requests.peers.push(other);
            run.requests = Some(requests);
            check(&run, &Overrides::default().of(&RULE))[0].severity
        };
        assert_eq!(severity("127.0.0.1:5432", 30), Severity::Info);
        assert_eq!(severity("127.0.0.1:5432", 0), Severity::Warning, "none was made there either");
        assert_eq!(severity("127.0.0.1:6379", 30), Severity::Warning, "another port");
    }

    #[test]
    fn connections_that_break_off_are_told() {
        let reset = |resets, closed, unanswered| {
            found(&[], |peer| {
                peer.failures = vec![failure("ECONNRESET", false, resets), failure("gave up", true, 5)];
                (peer.closed, peer.unanswered, peer.retransmits) = (closed, unanswered, 4);
            })
        };
        let lost = reset(8, 15, 6);
        assert_eq!(lost[0].0, Severity::Warning);
        assert!(
            lost[0].1.ends_with(
                "8 of 10 connections of app (pid 7) to db (10.0.0.2:5432) broke off with ECONNRESET; 6 questions had no \
                 answer; 4 segments sent again"
            ),
            "{lost:?}"
        );
        assert_eq!((reset(8, 15, 0)[0].0, reset(8, 85, 6)[0].0), (Severity::Info, Severity::Info));
        assert!(reset(8, 1000, 6).is_empty() && reset(2, 7, 2).is_empty());
    }

    #[test]
    fn who_is_refused_is_told_by_peer() {
        let found_with = |errors: &[(&str, u64)], tried| {
            let mut run = crate::model::report::fixtures::run(&[]);
            let connect = CallCount {
                thread: ThreadKey { pid: 7, tid: 0 },
                process: "api".into(),
                syscall: "connect".into(),
                lengths: Summary { count: tried, ..Summary::default() },
                errors: errors.iter().map(|&(error, n)| (error.into(), n)).collect(),
                ..CallCount::default()
            };
            let waits = KindWaits {
                pid: 7,
                process: "api".into(),
                kind: WaitKind::Connect,
                peer: "10.0.0.2:80".into(),
                lengths: Summary { count: tried, ..Summary::default() },
                stack: None,
            };
            run.calls = Some(Calls { calls: vec![connect], waits: vec![waits], ..Calls::default() });
            let found = check(&run, &Overrides::default().of(&RULE));
            found.into_iter().map(|of| (of.severity, of.title)).collect::<Vec<_>>()
        };
        let found = |error: &str, failed, tried| found_with(&[(error, failed)], tried);
        let asking_again = found_with(&[("EINPROGRESS", 20), ("ECONNREFUSED", 20)], 40);
        assert_eq!(asking_again[0].0, Severity::Warning);
        assert!(asking_again[0].1.starts_with("20 of 20 attempts"), "{asking_again:?}");
        let polled = [("EINPROGRESS", 20), ("EALREADY", 100), ("ECONNREFUSED", 20)];
        assert!(found_with(&polled, 140)[0].1.starts_with("20 of 20 attempts"));
        let refused = found("ECONNREFUSED", 20, 20);
        assert_eq!(refused[0].0, Severity::Warning);
        assert!(refused[0].1.contains("10.0.0.2:80 failed with ECONNREFUSED"), "{refused:?}");
        assert_eq!(found("ECONNREFUSED", 20, 40)[0].0, Severity::Info, "two addresses of one name");
        assert!(found("EINPROGRESS", 20, 20).is_empty() && found("ENOENT", 20, 20).is_empty());
    }
}
