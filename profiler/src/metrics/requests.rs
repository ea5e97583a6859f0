//! Metrics of requests: those that the target answers, and those that it asks its peers. Where requests are not watched
//! there are none.

use std::collections::BTreeMap;

use super::metric::{Values, View};
use crate::model::{
    distribution::Summary,
    request::{Exchanges, Side},
};

/// Fewer answers say little about the rest.
const MIN_ANSWERS: u64 = 20;

/// What is on one side of the target's connections. `None` if that cannot be counted: requests are not watched, or all of
/// them overlap on their connections.
fn exchanges<'a>(view: &View<'a>, side: Side) -> Option<Vec<&'a Exchanges>> {
    let peers = view.run.requests.as_ref()?.peers.iter().filter(|peer| peer.side == side);
    let peers: Vec<&Exchanges> = peers.collect();
    let counted = peers.iter().any(|peer| peer.exchanges() > 0);
    (counted || peers.iter().all(|peer| peer.multiplexed == 0)).then_some(peers)
}

fn sum(peers: &[&Exchanges], of: impl Fn(&Exchanges) -> u64) -> f64 {
    peers.iter().map(|peer| of(peer)).sum::<u64>() as f64
}

/// For how long requests were watched, ns.
fn watched_ns(view: &View<'_>) -> f64 {
    view.run.requests_watched_ns() as f64
}

/// What counts are multiplied by, to stand for the whole window, where for their cost requests were watched for some of it only.
fn scale(view: &View<'_>) -> f64 {
    (view.run.cpu.accounts.duration_ns as f64 / watched_ns(view)).max(1.0)
}

/// How requests ended.
fn outcomes(peers: &[&Exchanges], scale: f64, values: &mut Values) {
    let failed = sum(peers, |peer| peer.broken().0);
    let known = sum(peers, |peer| peer.broken().1);
    values.push("ok", (known - failed).max(0.0) * scale);
    values.push("error", failed * scale);
    values.push("unknown", (sum(peers, Exchanges::exchanges) - known).max(0.0) * scale);
    values.push("unanswered", sum(peers, |peer| peer.unanswered) * scale);
}

pub fn answered(view: &View<'_>, values: &mut Values) {
    if let Some(peers) = exchanges(view, Side::Answers) {
        outcomes(&peers, scale(view), values);
    }
}

pub fn per_second(view: &View<'_>, values: &mut Values) {
    let peers = exchanges(view, Side::Answers);
    values.one(peers.map(|peers| sum(&peers, Exchanges::exchanges) / (watched_ns(view) / 1e9)));
}

pub fn error_ratio(view: &View<'_>, values: &mut Values) {
    let Some(peers) = exchanges(view, Side::Answers) else { return };
    let known = sum(&peers, |peer| peer.broken().1);
    values.one((known >= MIN_ANSWERS as f64).then(|| sum(&peers, |peer| peer.broken().0) / known));
}

pub fn response(view: &View<'_>, values: &mut Values) {
    let Some(peers) = exchanges(view, Side::Answers) else { return };
    let slowest = peers.iter().filter(|peer| peer.exchanges() > 0).max_by_key(|peer| peer.first.p95_ns);
    match slowest {
        Some(peer) => statistics(values, &peer.first),
        None => {
            // Nothing is answered any more: that must not look as if nothing were known.
            let longest_ns = peers.iter().map(|peer| peer.longest_awaited_ns).max().unwrap_or(0);
            let at_least = Summary {
                p50_ns: longest_ns,
                p95_ns: longest_ns,
                p99_ns: longest_ns,
                max_ns: longest_ns,
                ..Summary::default()
            };
            if longest_ns > 0 {
                statistics(values, &at_least);
            }
        }
    }
}

pub fn queueing(view: &View<'_>, values: &mut Values) {
    let Some(peers) = exchanges(view, Side::Answers) else { return };
    let waited = peers.iter().filter(|peer| peer.queued.count > 0);
    if let Some(peer) = waited.max_by_key(|peer| peer.queued.p99_ns) {
        statistics(values, &peer.queued);
    }
}

pub fn in_flight(view: &View<'_>, values: &mut Values) {
    let Some(peers) = exchanges(view, Side::Answers) else { return };
    // Between windows nobody knows.
    if view.run.requests.as_ref().is_some_and(|requests| requests.windows.is_none()) {
        values.push("end", sum(&peers, |peer| peer.awaited));
    }
    values.push("max", peers.iter().map(|peer| peer.most_awaited).max().unwrap_or(0) as f64);
}

pub fn asked(view: &View<'_>, values: &mut Values) {
    if let Some(peers) = exchanges(view, Side::Asks) {
        outcomes(&peers, scale(view), values);
    }
}

pub fn awaited(view: &View<'_>, values: &mut Values) {
    let Some(peers) = exchanges(view, Side::Asks) else { return };
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for peer in peers {
        let protocol = if peer.protocol.is_empty() { "unknown" } else { &peer.protocol };
        *sums.entry(protocol).or_default() += peer.awaited_ns;
    }
    sums.into_iter()
        .for_each(|(protocol, ns)| values.push(protocol.to_owned(), ns as f64 / 1e9 * scale(view)));
}

pub fn awaited_ratio(view: &View<'_>, values: &mut Values) {
    let Some(peers) = exchanges(view, Side::Asks) else { return };
    let most = peers.iter().map(|peer| peer.awaited_ns).max();
    values.one(most.map(|ns| (ns as f64 / watched_ns(view)).min(1.0)));
}

pub fn peer_response(view: &View<'_>, values: &mut Values) {
    let Some(peers) = exchanges(view, Side::Asks) else { return };
    let answered = peers.iter().filter(|peer| peer.exchanges() > 0);
    if let Some(peer) = answered.max_by_key(|peer| peer.awaited_ns) {
        statistics(values, &peer.first);
    }
}

pub fn connection_failures(view: &View<'_>, values: &mut Values) {
    let Some(requests) = &view.run.requests else { return };
    for (phase, connecting) in [("connecting", true), ("connected", false)] {
        let failures = requests.asked().flat_map(|peer| &peer.failures);
        let of_phase = failures.filter(|failure| failure.connecting == connecting);
        values.push(phase, of_phase.map(|failure| failure.count).sum::<u64>() as f64);
    }
}

fn statistics(values: &mut Values, of: &Summary) {
    for (label, ns) in [("p50", of.p50_ns), ("p95", of.p95_ns), ("p99", of.p99_ns), ("max", of.max_ns)] {
        values.push(label, ns as f64 / 1e9);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        metrics::{METRICS, Outside, find, value},
        model::{
            report::fixtures::run,
            request::{Requests, fixtures::requests},
        },
    };

    /// What is read of a window of ten seconds with these requests; nothing if they were not watched.
    fn read_of(name: &str, requests: Option<Requests>) -> Option<f64> {
        let mut run = run(&[]);
        run.cpu.accounts.duration_ns = 10_000_000_000;
        run.requests = requests;
        let (pids, outside) = ([7].into(), Outside::default());
        let view = View {
            run: &run,
            pids: &pids,
            outside: &outside,
            memory_trend: None,
            functions: &[],
            restarted: false,
            own: None,
        };
        value(name, &view)
    }

    /// The same of requests whose peers were changed so.
    fn read(name: &str, change: Option<&dyn Fn(&mut Exchanges)>) -> Option<f64> {
        let changed = change.map(|change| {
            let mut requests = requests();
            requests.peers.iter_mut().for_each(change);
            requests
        });
        read_of(name, changed)
    }

    fn as_they_are(name: &str) -> Option<f64> {
        read(name, Some(&|_| ()))
    }

    #[test]
    fn requests_and_peers_are_numbers() {
        for (name, expected) in [
            ("requests.ok", 993.0),
            ("requests.error", 7.0),
            ("requests.unknown", 0.0),
            ("requests_per_second", 100.0),
            ("request_error_ratio", 0.007),
            ("response_seconds.p50", 0.030),
            ("response_seconds.p95", 0.090),
            ("request_queue_seconds.p99", 0.0004),
            ("requests_in_flight.end", 0.0),
            ("requests_in_flight.max", 8.0),
            // Its answers were not read.
            ("peer_requests.unknown", 2000.0),
            ("peer_wait_seconds.PostgreSQL", 0.4),
            ("peer_wait_ratio", 0.04),
            ("peer_response_seconds.p50", 0.002),
            ("peer_connection_failures.connecting", 2.0),
        ] {
            let found = as_they_are(name).unwrap();
            assert!((found - expected).abs() < 1e-9, "{name}: {found}");
        }
    }

    #[test]
    fn what_was_watched_in_windows_stands_for_the_whole() {
        let of = |name| {
            read_of(name, Some(Requests { watched_ns: 2_000_000_000, windows: Some(3), ..requests() }))
        };
        assert_eq!(of("requests.ok"), Some(5.0 * 993.0));
        assert_eq!(of("requests_per_second"), Some(500.0));
        assert_eq!(of("peer_wait_ratio"), Some(0.2));
        assert_eq!(of("requests_in_flight.end"), None, "it may not be looked at the end");
        assert_eq!(of("requests_in_flight.max"), Some(8.0));
    }

    #[test]
    fn what_was_not_watched_is_absent_and_not_zero() {
        let of_requests = METRICS.iter().filter(|metric| {
            ["request", "response_", "peer_"].iter().any(|start| metric.name.starts_with(start))
        });
        let names: Vec<&str> = of_requests.map(|metric| metric.name).collect();
        assert_eq!(names.len(), 11, "{names:?}");
        for name in names {
            assert!(as_they_are(name).is_some() && read(name, None).is_none(), "{name}");
            assert!(find(name).is_some());
        }
    }

    #[test]
    fn what_cannot_be_counted_or_read_is_absent() {
        let none = |peer: &mut Exchanges| {
            *peer = Exchanges { side: peer.side, multiplexed: 3, ..Exchanges::default() };
        };
        assert_eq!(read("requests_per_second", Some(&none)), None, "HTTP/2 only");
        let encrypted = |peer: &mut Exchanges| {
            (peer.statuses, peer.encrypted) = (Default::default(), true);
            peer.routes.iter_mut().for_each(|route| route.operation.clear());
        };
        assert_eq!(read("request_error_ratio", Some(&encrypted)), None);
        assert_eq!(read("requests.unknown", Some(&encrypted)), Some(1000.0));
        let few = |peer: &mut Exchanges| peer.statuses = [0, 0, 10, 0, 0, 5];
        assert_eq!(read("request_error_ratio", Some(&few)), None, "a handful of answers");
    }

    #[test]
    fn who_answers_nothing_any_more_is_slow_and_not_unknown() {
        let stuck = |peer: &mut Exchanges| {
            (peer.first, peer.awaited, peer.longest_awaited_ns) = (Summary::default(), 3, 12_000_000_000);
        };
        assert_eq!(read("response_seconds.p95", Some(&stuck)), Some(12.0));
        let idle = |peer: &mut Exchanges| peer.first = Summary::default();
        assert_eq!(read("response_seconds.p95", Some(&idle)), None);
        assert_eq!(read("requests_per_second", Some(&idle)), Some(0.0), "watched, and nobody asked");
    }
}
