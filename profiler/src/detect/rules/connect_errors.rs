//! Connections that are refused, or fail otherwise.

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
        syscall::{CallCount, Calls},
        units::{per_second, thousands},
    },
};

const SHARE: Param = Param {
    name: "share",
    unit: Unit::Percent,
    default: 60.0,
    help: "Attempts to connect that fail; less is a note",
    flag: None,
};

/// Fewer failures say nothing.
const MIN_FAILED: u64 = 3;
/// Attempts that may be on their way at either end of the run.
const ONGOING: u64 = 2;
/// Errors that say something about the peer. A missing Unix socket (ENOENT, as of nscd) and an address family that this machine
/// does not have (ENETUNREACH) are everyday answers.
const ERRORS: [&str; 7] =
    ["ECONNREFUSED", "ETIMEDOUT", "EHOSTUNREACH", "ECONNRESET", "EADDRNOTAVAIL", "EACCES", "EPERM"];

/// The rule.
pub static RULE: Rule = Rule {
    name: "connect-errors",
    summary: "attempts to connect to a peer fail",
    needs: &[Needs::Calls],
    params: &[SHARE],
    check,
    doc: "\
Most attempts of the process to connect fail: nobody listens there (ECONNREFUSED), nobody answers (ETIMEDOUT, EHOSTUNREACH),
this machine has no ports left (EADDRNOTAVAIL), or a rule forbids it. A call that returned EINPROGRESS counts by what the
program is told later, when it asks (SO_ERROR). Half of the attempts are a note: a name with two addresses, of
which one is not served, is tried like that (`localhost` as ::1 and 127.0.0.1).

Look whether the peer runs, and whether address and port are right. Wait longer between attempts (back off), and keep connections
once they stand. Against EADDRNOTAVAIL keep connections, too: each closed one keeps its port for a minute.",
};

fn check(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let Some(calls) = &run.calls else { return Vec::new() };
    let mut processes: BTreeMap<u32, Vec<&CallCount>> = BTreeMap::new();
    for of in calls.calls.iter().filter(|of| of.syscall == "connect") {
        processes.entry(of.thread.pid).or_default().push(of);
    }
    processes.into_iter().filter_map(|(pid, of)| finding(run, calls, pid, &of, values.get(&SHARE))).collect()
}

fn finding(run: &Run, calls: &Calls, pid: u32, of: &[&CallCount], least: f64) -> Option<Finding> {
    let mut errors: BTreeMap<&str, u64> = BTreeMap::new();
    for (error, n) in of.iter().flat_map(|of| &of.errors).filter(|(name, _)| ERRORS.contains(&name.as_str()))
    {
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
    let advice = match error {
        "EADDRNOTAVAIL" => "keep connections open: this machine has no ports left for new ones",
        "EACCES" | "EPERM" => "look at firewall rules and at the process's rights",
        _ => "look whether that peer runs and is reachable (nc -vz HOST PORT); wait longer between attempts",
    };
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
        advice: advice.to_owned(),
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
            stack::ThreadKey,
            syscall::{KindWaits, WaitKind},
        },
    };

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
