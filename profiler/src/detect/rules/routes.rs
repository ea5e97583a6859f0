//! What one kind of request does again and again: questions to peers that could be one, or be asked at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use serde_json::json;

use crate::{
    detect::{
        rule::{Needs, Param, Rule, Unit, Values},
        served::{awaited, followed, in_progress, what},
    },
    model::{
        finding::{Bottleneck, Cost, Finding, ProcessName, Severity},
        report::Run,
        request::{Asked, Breakdown, Exchanges, Route, Side},
        units::{percent, time},
    },
};

const TIMES: Param = Param {
    name: "times",
    unit: Unit::Count,
    default: 10.0,
    help: "Questions to one peer, one after the other, for each request",
    flag: None,
};
const MOST: Param = Param {
    name: "questions",
    unit: Unit::Count,
    default: 3.0,
    help: "Questions, one after the other, for each request",
    flag: None,
};
const SHARE: Param = Param {
    name: "share",
    unit: Unit::Percent,
    default: 50.0,
    help: "Part of a request's time in which answers are awaited; less is no warning",
    flag: None,
};

/// Of questions that are counted as asked one after the other, so many must be: who asks ten at once twice does not.
const MOSTLY: f64 = 0.6;
/// Requests that are answered sooner need no advice, ns.
pub(super) const SOON_NS: u64 = 20_000_000;

/// Fewer requests say little by their number.
const MIN_REQUESTS: u64 = 50;
/// Answers awaited at once for each request in progress, where it awaits one at a time for most of its time.
const AT_A_TIME: RangeInclusive<f64> = 0.7..=1.1;

/// Many questions for each request.
pub static N_PLUS_ONE: Rule = Rule {
    name: "n-plus-one",
    summary: "for each request the same peer is asked many times, one after the other",
    needs: &[Needs::Requests],
    params: &[TIMES, SHARE],
    check: n_plus_one,
    doc: "\
While the process answered one kind of request it asked one peer many times, and mostly waited for each answer before it asked
again: the list comes first, and then a question for each of its items. The time grows with the list.

Ask once: a join, `WHERE id IN (…)`, `MGET`, a batch or a pipeline; or load what belongs together with the list.

What is asked is joined to requests by the thread that does both: of servers that pass a request from thread to thread it is not
known. Where a thread answers several requests at once, the questions of others may be among them.",
};

/// Questions that could be asked at once.
pub static SEQUENTIAL: Rule = Rule {
    name: "sequential-waits",
    summary: "for each request several answers are awaited one after the other",
    needs: &[Needs::Requests],
    params: &[MOST, SHARE],
    check: sequential,
    doc: "\
While the process answered one kind of request it awaited several answers, hardly ever two of them at a time, and they make up most of
the request's time. If one question does not depend on the answer to another, both can be asked at once, and the request takes as long
as the slower one.

`await Promise.all([…])` instead of an `await` each, `asyncio.gather`, goroutines, a pipeline. If each needs the one before, this is
how it has to be: see whether the peers can be made faster, or the chain shorter.

How requests and questions are joined, and when that is uncertain, is said at `n-plus-one`. Of servers that pass requests from thread
to thread (Go, Java's virtual threads) it is told by numbers alone: where each request asks several times, and yet no more
answers are awaited than there are requests in progress, each awaits one at a time. That is an average of all requests.",
};

fn n_plus_one(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let many = |of: &&Asked| of.times >= values.get(&TIMES) && of.in_sequence >= MOSTLY * of.times;
    each(run, |peer, route, goes| {
        let asked = goes.asked.iter().filter(many).max_by_key(|of| of.ns)?;
        let title = format!(
            "{} asks {} {:.0} times, mostly one after the other: {} of its {}",
            what(peer, route),
            whom(asked),
            asked.times,
            time(asked.ns),
            time(goes.total_ns),
        );
        let advice = "ask for all at once: a join, a list of keys, a batch or a pipeline".to_owned();
        Some(finding(&N_PLUS_ONE, run, (peer, route), asked.ns, values, title, advice))
    })
}

fn sequential(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let mut found = joined_in_sequence(run, values);
    let served = run.requests.iter().flat_map(|requests| requests.served());
    let joined = |pid| followed(run).any(|(peer, _, goes)| peer.pid == pid && !goes.asked.is_empty());
    let pids: BTreeSet<u32> = served.map(|of| of.pid).filter(|&pid| !joined(pid)).collect();
    found.extend(pids.into_iter().filter_map(|pid| sequence_by_numbers(run, pid, values)));
    found
}

/// Of a process whose questions are not joined to requests.
fn sequence_by_numbers(run: &Run, pid: u32, values: &Values<'_>) -> Option<Finding> {
    let peers = run.requests.iter().flat_map(|requests| &requests.peers).filter(|of| of.pid == pid);
    let (served, asked): (Vec<&Exchanges>, Vec<&Exchanges>) = peers.partition(|of| of.side == Side::Answers);
    let number = |of: &[&Exchanges]| of.iter().map(|of| of.exchanges()).sum::<u64>();
    let most = served.iter().max_by_key(|of| of.first.sum_ns)?;
    let route = most.routes.iter().max_by_key(|route| route.first.sum_ns)?;
    let each = number(&asked) as f64 / number(&served).max(1) as f64;
    let at_once = awaited(run, pid) / in_progress(run, pid).max(f64::MIN_POSITIVE);
    let mean_ns = most.first.sum_ns / most.exchanges().max(1);
    let enough = number(&served) >= MIN_REQUESTS && mean_ns >= SOON_NS;
    if !enough || each < values.get(&MOST) || !AT_A_TIME.contains(&at_once) {
        return None;
    }
    let peers: Vec<String> = asked.iter().take(3).map(|of| of.peer.clone()).collect();
    let title = format!(
        "requests at {} of {} await {each:.1} answers each, one after the other, for {:.0} % of their {}: {}",
        most.peer,
        most.who(),
        100.0 * at_once.min(1.0),
        time(mean_ns),
        peers.join(", "),
    );
    let advice = "ask at once what does not need the answer before (goroutines, futures)".to_owned();
    Some(finding(&SEQUENTIAL, run, (most, route), mean_ns, values, title, advice))
}

fn joined_in_sequence(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    each(run, |peer, route, goes| {
        let questions: f64 = goes.asked.iter().map(|of| of.times).sum();
        let apart: u64 = goes.asked.iter().map(|of| of.ns).sum();
        let one_by_one = goes.asked.iter().map(|of| of.in_sequence + 1.0).sum::<f64>();
        // Those to different peers were awaited apart if together they take as long as each for itself.
        let in_turn = one_by_one >= MOSTLY * questions && goes.awaiting_ns * 10 >= apart * 9;
        let many = goes.asked.iter().any(|of| of.times >= N_PLUS_ONE.params[0].default);
        if !in_turn || many || questions < values.get(&MOST) {
            return None;
        }
        let peers: Vec<String> =
            goes.asked.iter().take(3).map(|of| format!("{} x{:.0}", whom(of), of.times)).collect();
        let title = format!(
            "{} awaits {questions:.0} answers one after the other, {} of its {}: {}",
            what(peer, route),
            time(goes.awaiting_ns),
            time(goes.total_ns),
            peers.join(", "),
        );
        let advice = "ask at once what does not need the answer before (Promise.all, gather)".to_owned();
        Some(finding(&SEQUENTIAL, run, (peer, route), goes.awaiting_ns, values, title, advice))
    })
}

fn each(run: &Run, finding: impl Fn(&Exchanges, &Route, &Breakdown) -> Option<Finding>) -> Vec<Finding> {
    followed(run).filter_map(|(peer, route, goes)| finding(peer, route, goes)).collect()
}

fn whom(asked: &Asked) -> String {
    if asked.protocol.is_empty() {
        asked.peer.clone()
    } else {
        format!("{} at {}", asked.protocol, asked.peer)
    }
}

/// One that costs `ns` of each request.
fn finding(
    rule: &Rule,
    run: &Run,
    (peer, route): (&Exchanges, &Route),
    ns: u64,
    values: &Values<'_>,
    title: String,
    advice: String,
) -> Finding {
    let wall_ns = run.cpu.accounts.duration_ns.max(1);
    let total_ns = route.breakdown.as_ref().map_or(ns, |goes| goes.total_ns);
    // Where only some of the requests were seen the rest went like these.
    let seen = run.requests_watched_ns() as f64 / wall_ns as f64;
    let cost_ns = (ns.saturating_mul(route.first.count) as f64 / seen.min(1.0)) as u64;
    let matters = percent(ns, total_ns) >= values.get(&SHARE) && total_ns >= SOON_NS;
    let process = ProcessName { pid: peer.pid, name: peer.process.clone() };
    let subject = format!("{} {}", peer.peer, route.operation);
    Finding {
        severity: if matters { Severity::Warning } else { Severity::Info },
        title,
        advice,
        cost: Cost {
            ns: cost_ns.min(wall_ns),
            share_of_wall: (cost_ns as f64 / wall_ns as f64).min(1.0),
            ..Cost::default()
        },
        details: BTreeMap::from([
            ("route", json!(route.operation)),
            ("requests", json!(route.first.count)),
            ("awaited_ns", json!(ns)),
            ("request_ns", json!(total_ns)),
        ]),
        ..Finding::warning(rule.name, Bottleneck::Network, process, subject)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{detect::rule::Overrides, model::request::fixtures};

    const MS: u64 = 1_000_000;

    /// Peers asked during each request: times, ms, of the times in sequence; and ms of all that.
    fn run(asked: &[(f64, u64, f64)], awaiting_ms: u64) -> Run {
        let mut run = crate::model::report::fixtures::run(&[]);
        let mut requests = fixtures::requests();
        let served = requests.peers.iter_mut().find(|peer| !peer.routes.is_empty()).unwrap();
        let goes = served.routes[0].breakdown.as_mut().unwrap();
        goes.total_ns = 100 * MS;
        goes.awaiting_ns = awaiting_ms * MS;
        goes.asked = (1..)
            .zip(asked)
            .map(|(n, &(times, ms, in_sequence))| Asked {
                peer: format!("10.0.0.{n}:5432"),
                protocol: "PostgreSQL".into(),
                times,
                ns: ms * MS,
                in_sequence,
            })
            .collect();
        run.requests = Some(requests);
        run
    }

    #[test]
    fn a_sequence_shows_in_numbers_where_nothing_is_joined() {
        // So many questions for each request, and so many answers awaited at once for each in progress.
        let told = |times: u64, at_once: f64| {
            let mut run = run(&[], 0);
            run.cpu.accounts.duration_ns = 10_000_000_000;
            let requests = run.requests.as_mut().unwrap();
            let [asked, served] = &mut requests.peers[..] else { panic!() };
            served.routes[0].breakdown = None;
            asked.first.count = times * served.first.count;
            asked.first.sum_ns = (served.first.sum_ns as f64 * at_once) as u64;
            found(&SEQUENTIAL, &run).pop()
        };
        let (severity, title) = told(4, 0.95).unwrap();
        assert_eq!(severity, Severity::Warning);
        assert!(
            title.contains("await 4.0 answers each, one after the other, for 95 % of their 30 ms"),
            "{title}"
        );
        assert!(told(4, 2.5).is_none() && told(2, 0.95).is_none() && told(4, 0.1).is_none());
    }

    fn found(rule: &Rule, run: &Run) -> Vec<(Severity, String)> {
        (rule.check)(run, &Overrides::default().of(rule))
            .into_iter()
            .map(|of| (of.severity, of.title))
            .collect()
    }

    #[test]
    fn a_question_for_each_item_of_a_list_is_told_by_route() {
        let many = found(&N_PLUS_ONE, &run(&[(51.0, 80, 49.0)], 80));
        assert_eq!(many[0].0, Severity::Warning);
        assert!(many[0].1.contains("GET /users/:id") && many[0].1.contains("51 times"), "{many:?}");
        assert_eq!(found(&N_PLUS_ONE, &run(&[(51.0, 10, 49.0)], 10))[0].0, Severity::Info, "it costs little");
        assert!(found(&N_PLUS_ONE, &run(&[(51.0, 80, 1.0)], 80)).is_empty(), "asked at once");
        assert!(found(&N_PLUS_ONE, &run(&[(2.0, 80, 1.0)], 80)).is_empty());
    }

    #[test]
    fn answers_that_are_awaited_one_by_one_are_told() {
        let three = found(&SEQUENTIAL, &run(&[(1.0, 30, 0.0), (1.0, 30, 0.0), (1.0, 20, 0.0)], 80));
        assert_eq!(three[0].0, Severity::Warning);
        assert!(
            three[0].1.contains("awaits 3 answers one after the other, 80 ms of its 100 ms"),
            "{three:?}"
        );
        assert!(
            found(&SEQUENTIAL, &run(&[(1.0, 60, 0.0), (1.0, 60, 0.0), (1.0, 60, 0.0)], 70)).is_empty(),
            "at once"
        );
        assert!(found(&SEQUENTIAL, &run(&[(1.0, 40, 0.0), (1.0, 40, 0.0)], 80)).is_empty(), "two are few");
        assert!(found(&SEQUENTIAL, &run(&[(51.0, 80, 49.0)], 80)).is_empty(), "that is the other rule's");
    }
}
