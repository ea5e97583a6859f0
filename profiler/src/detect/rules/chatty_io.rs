//! Many small requests, one after the other, where a batch would do.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    detect::{
        rule::{Needs, Param, Rule, Unit, Values},
        served,
        words::{calls_watched_ns, evidence, functions},
    },
    model::{
        finding::{Bottleneck, Cost, Finding, ProcessName, Severity},
        report::{Names, Run},
        syscall::Chatty,
        units::{bytes, per_second, thousands, time},
    },
};

const SHARE: Param = Param {
    name: "share",
    unit: Unit::Percent,
    default: 2.0,
    help: "Wall time that the requests take; less is a note",
    flag: None,
};

/// The rule.
pub static RULE: Rule = Rule {
    name: "chatty-io",
    summary: "many small requests, one after the other, where a batch would do",
    needs: &[Needs::Calls],
    params: &[SHARE],
    check,
    doc: "\
A socket or pipe on which one small question follows the answer to the one before, at least 50 times and 20 times a second,
from one place in the code; or a file that is read or written in at least 1000 pieces of 512 bytes and less.

Where the process answers requests itself, fewer than three questions for each are as it should be; ten and more are told from
wherever in the code they come.

Each question costs a round trip, however fast the other side is: the N+1 problem. Ask for many things at once
(`WHERE id IN (…)`, a pipeline, a bulk request), or read and write through a buffer.",
};

/// Chatty I/O of one process from one place in the code, with whatever peers or files.
struct Group {
    /// With the peer or file that took most of the time.
    most: Chatty,
    /// How many peers or files.
    objects: u64,
    /// Round trips, or small reads and writes, with all of them.
    count: u64,
    /// Time they took, ns.
    total_ns: u64,
}

fn check(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let Some(calls) = &run.calls else { return Vec::new() };
    // Who waits for the next job asks again when it has done one.
    let for_work = |of: &&Chatty| {
        let asked = run.requests.iter().flat_map(|requests| requests.asked());
        let mut peers = asked.filter(|peer| {
            peer.process == of.process && served::waits_for_work(peer, |answers| answers.count)
        });
        peers.any(|peer| of.object.ends_with(&format!(" -> {}", peer.peer)))
    };
    let chatty: Vec<Chatty> = calls.chatty.iter().filter(|of| !for_work(of)).cloned().collect();
    grouped(&chatty, run.names()).iter().map(|group| finding(group, run, values.get(&SHARE))).collect()
}

/// A pool of connections that are all used by the same functions is one finding.
fn grouped(found: &[Chatty], names: &Names) -> Vec<Group> {
    let mut groups: BTreeMap<_, Group> = BTreeMap::new();
    for of in found {
        let place = functions(names, of.stack);
        // Where the place is not known it may be another.
        let object = if place.is_empty() { of.object.as_str() } else { "" };
        let group = groups.entry((of.thread.pid, of.round_trips, place, object)).or_insert_with(|| Group {
            most: of.clone(),
            objects: 0,
            count: 0,
            total_ns: 0,
        });
        if of.total_ns > group.most.total_ns {
            group.most = of.clone();
        }
        group.objects += 1;
        group.count += of.count;
        group.total_ns += of.total_ns;
    }
    groups.into_values().collect()
}

fn finding(group: &Group, run: &Run, least: f64) -> Finding {
    let share = (group.total_ns as f64 / calls_watched_ns(run) as f64).min(1.0);
    let of = &group.most;
    let what = if of.round_trips { "round trips to" } else { "small reads or writes of" };
    let others = match group.objects {
        1 => String::new(),
        n => format!(" and {} more", thousands(n - 1)),
    };
    let each = match of.requests {
        0 => String::new(),
        n => format!(", {:.0} for each request that it answers", group.count as f64 / n as f64),
    };
    let title = format!(
        "{} {what} {}{others}, one after the other, took {}: {} (tid {}) makes {} a second{each}, half of them of {} or less",
        thousands(group.count),
        of.object,
        time(group.total_ns),
        of.process,
        of.thread.tid,
        per_second(of.per_second()),
        bytes(of.median_bytes as f64),
    );
    let file = of.object.starts_with('/');
    Finding {
        rule: RULE.name,
        severity: if 100.0 * share < least { Severity::Info } else { of.severity() },
        bottleneck: if file { Bottleneck::Io } else { Bottleneck::Network },
        process: ProcessName { pid: of.thread.pid, name: of.process.clone() },
        subject: of.object.clone(),
        title,
        advice: if of.round_trips {
            "ask for many things at once: a batch, a pipeline"
        } else {
            "read and write through a buffer"
        }
        .to_owned(),
        cost: Cost { ns: group.total_ns, share_of_wall: share, ..Cost::default() },
        evidence: evidence(run.names(), "", of.stack),
        details: BTreeMap::from([
            ("objects", json!(group.objects)),
            ("round_trips", json!(of.round_trips)),
            ("count", json!(group.count)),
            ("requests", json!(of.requests)),
            ("per_second", json!(of.per_second())),
            ("median_bytes", json!(of.median_bytes)),
        ]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::{findings, rule::Overrides},
        model::request::Route,
    };

    #[test]
    fn requests_that_take_little_time_are_a_note() {
        let mut run = crate::output::calls::fixtures::run_with_calls();
        let severity = |run: &Run| check(run, &Overrides::default().of(&RULE))[0].severity;
        assert_eq!(severity(&run), Severity::Warning);
        run.calls.as_mut().unwrap().chatty[0].total_ns = 4_000_000; // of a second
        assert_eq!(severity(&run), Severity::Info);
    }

    #[test]
    fn who_asks_for_the_next_job_needs_no_batch() {
        let mut run = crate::output::calls::fixtures::run_with_calls();
        let found = |run: &Run| check(run, &Overrides::default().of(&RULE)).len();
        let mut requests = crate::model::request::fixtures::requests();
        let asked = &mut requests.peers[0];
        let of = &mut run.calls.as_mut().unwrap().chatty[0];
        (asked.process, asked.protocol) = (of.process.clone(), "redis".into());
        of.object = format!("tcp 127.0.0.1:5000 -> {}", asked.peer);
        asked.routes = vec![Route { first: asked.first, ..Route::default() }];
        for (operation, expected) in [("GET", 1), ("BRPOP", 0), ("XREAD", 0)] {
            requests.peers[0].routes[0].operation = operation.into();
            run.requests = Some(requests.clone());
            assert_eq!(found(&run), expected, "{operation}");
        }
    }

    #[test]
    fn connections_used_by_the_same_functions_are_one_finding() {
        let mut run = crate::output::calls::fixtures::run_with_calls();
        let calls = run.calls.as_mut().unwrap();
        let of = calls.chatty[0].clone();
        let other = Chatty { object: "tcp b".into(), total_ns: of.total_ns + 1, ..of.clone() };
        let unknown = ["c", "d"].map(|name| Chatty { object: name.into(), stack: None, ..of.clone() });
        calls.chatty.push(other.clone());
        calls.chatty.extend(unknown);
        let found = findings(&run, &Overrides::default());
        let rules: Vec<&str> = found.iter().map(|finding| finding.rule).collect();
        assert_eq!(rules, ["chatty-io", "chatty-io", "chatty-io", "error-storm"]);
        assert_eq!((found[0].subject.as_str(), &found[0].details["objects"]), ("tcp b", &json!(2)));
        assert_eq!(
            (found[0].cost.ns, &found[0].details["count"]),
            (of.total_ns + other.total_ns, &json!(2 * of.count))
        );
        assert_eq!(found[3].subject, "openat EMFILE");
    }
}
