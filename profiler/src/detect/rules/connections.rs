//! Connections that are made over and over, or do not come about.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    detect::{
        rule::{Needs, Param, Rule, Unit, Values},
        words::calls_watched_ns,
    },
    model::{
        finding::{Bottleneck, Finding, ProcessName},
        report::Run,
        syscall::{CallCount, KindWaits},
        units::per_second,
        vitals::{Peer, ProcessVitals},
    },
};

const RATE: Param = Param {
    name: "rate",
    unit: Unit::PerSecond,
    default: 10.0,
    help: "Connections to one peer, made and given up",
    flag: None,
};

/// How long the kernel remembers a connection that this side closed, ns: TCP_TIMEWAIT_LEN, include/net/tcp.h.
const TIME_WAIT_NS: u64 = 60_000_000_000;
/// Looks that must find a connect without an answer.
const CONNECTING: u64 = 2;

/// Connections made over and over.
pub static CHURN: Rule = Rule {
    name: "connection-churn",
    summary: "many short connections are made to one peer, one after the other",
    needs: &[Needs::Vitals],
    params: &[RATE],
    check: churn,
    doc: "\
Connections from this process to one address and port come and go. Each costs a round trip or more before the first byte (three
with TLS), and a port of this machine for a minute after it. The rate is that of the calls of connect, where they were watched;
otherwise a lower bound: connections that were seen once a second, and those in TIME_WAIT, which the kernel keeps for 60 s (of the
whole network namespace).

Keep connections: a pool, `keepAlive: true`, a session object instead of single requests.",
};

/// Connections that do not come about.
pub static UNANSWERED: Rule = Rule {
    name: "connect-unanswered",
    summary: "a peer does not answer attempts to connect",
    needs: &[Needs::Vitals],
    params: &[],
    check: unanswered,
    doc: "\
In several looks, a second apart, a socket of the process was in state SYN_SENT as at the look before, or another one to the same peer
was while none is connected: the first packet of a connection had been sent and nothing came back. The peer is down or unreachable, or a firewall drops the packets; until the attempt times out (two minutes by
default) whoever needs the connection waits. That such an attempt failed is known late, and to the program only: a call that
returned EINPROGRESS looks like success.",
};

fn churn(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let least = values.get(&RATE);
    let finding = |of: &ProcessVitals, peer: &Peer, connects: f64| {
        let rate = rate(of, peer).max(connects);
        (!peer.clients && rate >= least).then(|| Finding {
            title: format!(
                "{} connections a second or more are made from {} (pid {}) to {}, few of which stay",
                per_second(rate),
                of.process,
                of.pid,
                peer.peer,
            ),
            advice: "keep connections open: a pool, or keep-alive".to_owned(),
            ..network(&CHURN, of, peer, vec![("per_second", json!(rate)), ("seen", json!(peer.seen))])
        })
    };
    let processes = run.vitals.iter().flat_map(|vitals| &vitals.processes);
    let found = processes.flat_map(|of| {
        let connects = connects(run, of.pid);
        // Those that are over before anybody looks are known by their calls only.
        let unseen = connects.keys().filter(|name| !of.peers.iter().any(|peer| peer.peer == **name));
        let unseen = unseen.map(|name| Peer { peer: (*name).to_owned(), ..Peer::default() });
        let peers: Vec<Peer> = of.peers.iter().cloned().chain(unseen).collect();
        let made = |peer: &Peer| connects.get(peer.peer.as_str()).map_or(0.0, |made| made(peer.most));
        peers.iter().filter_map(|peer| finding(of, peer, made(peer))).collect::<Vec<_>>()
    });
    found.collect()
}

/// Calls of connect a second by peer, where calls were watched: as a function of how many connections stay. Which peer it was is
/// known of those that took long enough to be told; the others are taken to be divided likewise. Those that fail are another
/// rule's.
fn connects(run: &Run, pid: u32) -> BTreeMap<&str, impl Fn(u64) -> f64 + use<>> {
    let calls = run.calls.iter().flat_map(|calls| &calls.calls);
    let calls = calls.filter(|of| of.thread.pid == pid && of.syscall == "connect");
    let made: f64 = calls.map(|of| of.lengths.count as f64 - refused(of) as f64).sum();
    let waits: Vec<_> = run.calls.iter().flat_map(|calls| calls.connects_by_peer(pid)).collect();
    let all: f64 = waits.iter().map(|of| of.lengths.count as f64).sum();
    let seconds = calls_watched_ns(run) as f64 / 1e9;
    let of_peer = move |of: &KindWaits| made * of.lengths.count as f64 / all.max(1.0);
    waits
        .into_iter()
        .map(|of| {
            let made = of_peer(of);
            (of.peer.as_str(), move |stay: u64| (made - stay as f64).max(0.0) / seconds)
        })
        .collect()
}

fn refused(of: &CallCount) -> u64 {
    let failed =
        of.errors.iter().filter(|(name, _)| !matches!(name.as_str(), "EINPROGRESS" | "EALREADY" | "EISCONN"));
    failed.map(|(_, n)| n).sum()
}

/// Connections a second, at least.
fn rate(of: &ProcessVitals, peer: &Peer) -> f64 {
    let seconds = |ns: u64| ns.max(1_000_000_000) as f64 / 1e9;
    let seen = peer.seen.saturating_sub(peer.most) as f64 / seconds(of.span_ns);
    seen.max(peer.most_time_wait as f64 / seconds(TIME_WAIT_NS))
}

fn unanswered(run: &Run, _: &Values<'_>) -> Vec<Finding> {
    let finding = |of: &ProcessVitals, peer: &Peer| {
        (peer.connecting >= CONNECTING).then(|| Finding {
            title: format!(
                "{} does not answer: attempts of {} (pid {}) to connect were pending in {} of {} looks",
                peer.peer, of.process, of.pid, peer.connecting, of.samples
            ),
            advice: "look at that peer and the way to it (nc -vz HOST PORT), and set a timeout".to_owned(),
            ..network(
                &UNANSWERED,
                of,
                peer,
                vec![("connecting", json!(peer.connecting)), ("looks", json!(of.samples))],
            )
        })
    };
    each(run, finding)
}

fn each(run: &Run, finding: impl Fn(&ProcessVitals, &Peer) -> Option<Finding>) -> Vec<Finding> {
    let processes = run.vitals.iter().flat_map(|vitals| &vitals.processes);
    processes
        .flat_map(|of| of.peers.iter().filter_map(|peer| finding(of, peer)).collect::<Vec<_>>())
        .collect()
}

fn network(
    rule: &'static Rule,
    of: &ProcessVitals,
    peer: &Peer,
    details: Vec<(&'static str, Value)>,
) -> Finding {
    let process = ProcessName { pid: of.pid, name: of.process.clone() };
    Finding {
        details: BTreeMap::from_iter(details),
        ..Finding::warning(rule.name, Bottleneck::Network, process, peer.peer.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::rule::Overrides,
        model::{
            distribution::Summary,
            syscall::{Calls, WaitKind},
            vitals::Vitals,
        },
    };

    fn run(peer: Peer) -> Run {
        let mut run = crate::model::report::fixtures::run(&[]);
        let peer = Peer { peer: "10.0.0.2:80".into(), ..peer };
        let of = ProcessVitals {
            pid: 7,
            samples: 10,
            span_ns: 10_000_000_000,
            peers: vec![peer],
            ..ProcessVitals::default()
        };
        run.vitals = Some(Vitals { processes: vec![of], unlisted: 0 });
        run
    }

    #[test]
    fn connections_that_come_and_go_are_churn() {
        let found = |peer| churn(&run(peer), &Overrides::default().of(&CHURN)).len();
        assert_eq!(found(Peer { seen: 300, most: 10, ..Peer::default() }), 1);
        assert_eq!(found(Peer { seen: 300, most: 300, ..Peer::default() }), 0, "a large pool");
        assert_eq!(found(Peer { most_time_wait: 3000, ..Peer::default() }), 1);
        assert_eq!(
            found(Peer { most_time_wait: 3000, clients: true, ..Peer::default() }),
            0,
            "its clients do it"
        );
    }

    #[test]
    fn connections_too_short_to_be_seen_are_known_by_their_calls() {
        let found = |made: u64, failed: u64, stay: u64| {
            let mut run = run(Peer { most: stay, ..Peer::default() });
            run.cpu.accounts.duration_ns = 10_000_000_000;
            let connect = CallCount {
                thread: crate::model::stack::ThreadKey { pid: 7, tid: 0 },
                syscall: "connect".into(),
                lengths: Summary { count: made, ..Summary::default() },
                errors: vec![("EINPROGRESS".into(), made), ("ECONNREFUSED".into(), failed)],
                ..CallCount::default()
            };
            let waits = KindWaits {
                pid: 7,
                process: "api".into(),
                kind: WaitKind::Connect,
                peer: "10.0.0.2:80".into(),
                lengths: Summary { count: 5, ..Summary::default() },
                stack: None,
            };
            run.calls = Some(Calls { calls: vec![connect], waits: vec![waits], ..Calls::default() });
            churn(&run, &Overrides::default().of(&CHURN)).len()
        };
        assert_eq!([found(900, 0, 0), found(900, 0, 900), found(900, 890, 0), found(50, 0, 0)], [1, 0, 0, 0]);
    }

    #[test]
    fn connects_that_stay_pending_are_told() {
        let found = |connecting| {
            unanswered(&run(Peer { connecting, ..Peer::default() }), &Overrides::default().of(&UNANSWERED))
                .len()
        };
        assert_eq!([found(1), found(5)], [0, 1]);
    }
}
