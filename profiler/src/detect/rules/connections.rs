//! Connections that are made over and over, or do not come about.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    detect::{
        rule::{Needs, Param, Rule, Unit, Values},
        words::calls_watched_ns,
    },
    model::{
        finding::{Bottleneck, Cost, Finding, ProcessName, Severity},
        report::Run,
        syscall::CallKind,
        units::{per_second, thousands},
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
In several looks, a second apart, a socket of the process was in state SYN_SENT: the first packet of a connection had been sent
and nothing came back. The peer is down or unreachable, or a firewall drops the packets; until the attempt times out (two minutes by
default) whoever needs the connection waits. That such an attempt failed is known late, and to the program only: a call that
returned EINPROGRESS looks like success.",
};

fn churn(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let least = values.get(&RATE);
    let finding = |of: &ProcessVitals, peer: &Peer| {
        let rate = rate(of, peer).max(connects(run, of.pid, peer));
        (!peer.clients && rate >= least).then(|| Finding {
            title: format!(
                "{} connections a second or more are made from {} (pid {}) to {}, {} at once at most",
                per_second(rate),
                of.process,
                of.pid,
                peer.peer,
                thousands(peer.most)
            ),
            advice: "keep connections open: a pool, or keep-alive".to_owned(),
            ..network(&CHURN, of, peer, vec![("per_second", json!(rate)), ("seen", json!(peer.seen))])
        })
    };
    each(run, finding)
}

/// Calls of connect a second, as far as they were watched, without those for connections that stay.
fn connects(run: &Run, pid: u32, peer: &Peer) -> f64 {
    let waits = run.calls.iter().flat_map(|calls| &calls.waits);
    let made = waits.filter(|of| of.pid == pid && of.kind == CallKind::Connect && of.peer == peer.peer);
    let made: u64 = made.map(|of| of.lengths.count).sum();
    made.saturating_sub(peer.most) as f64 * 1e9 / calls_watched_ns(run) as f64
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
    Finding {
        rule: rule.name,
        severity: Severity::Warning,
        bottleneck: Bottleneck::Network,
        process: ProcessName { pid: of.pid, name: of.process.clone() },
        subject: peer.peer.clone(),
        title: String::new(),
        advice: String::new(),
        cost: Cost::default(),
        evidence: Vec::new(),
        details: BTreeMap::from_iter(details),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{detect::rule::Overrides, model::vitals::Vitals};

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
    fn connects_that_stay_pending_are_told() {
        let found = |connecting| {
            unanswered(&run(Peer { connecting, ..Peer::default() }), &Overrides::default().of(&UNANSWERED))
                .len()
        };
        assert_eq!([found(1), found(5)], [0, 1]);
    }
}
