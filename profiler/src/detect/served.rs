//! Requests that the target answers, and what the time of one goes to.

use crate::model::{
    finding::Bottleneck,
    report::Run,
    request::{Breakdown, Exchanges, Route},
};

/// Fewer requests that could be followed say nothing.
const MIN_FOLLOWED: u64 = 5;

/// Requests that are answered sooner need no advice, ns.
pub const SOON_NS: u64 = 1_000_000;

/// What a part of a request's time is spent on.
pub struct Part {
    /// How much, ns.
    pub ns: u64,
    /// What it says the request lacks.
    pub lacks: Bottleneck,
    /// As words that follow "so much of its time is".
    pub what: String,
}

/// Every kind of request of which enough could be followed.
pub fn followed(run: &Run) -> impl Iterator<Item = (&Exchanges, &Route, &Breakdown)> {
    let served = run.requests.iter().flat_map(|requests| requests.served());
    let routes = served.flat_map(|peer| peer.routes.iter().map(move |route| (peer, route)));
    routes.filter_map(|(peer, route)| {
        let goes = route.breakdown.as_ref().filter(|goes| goes.requests >= MIN_FOLLOWED)?;
        Some((peer, route, goes))
    })
}

/// The part that a request spends most of its time on.
pub fn most(goes: &Breakdown) -> Part {
    let awaits = goes.asked.first().map_or_else(String::new, |of| format!("awaiting {}", of.peer));
    let own = goes.own().into_iter().rev();
    let own = own.map(|part| Part { ns: part.ns, lacks: part.lacks, what: part.words.to_owned() });
    let awaiting = Part { ns: goes.awaiting_ns, lacks: Bottleneck::Network, what: awaits };
    own.fold(awaiting, |most, part| if part.ns > most.ns { part } else { most })
}

/// How many requests a process has in progress at once, on average (Little's law).
pub fn in_progress(run: &Run, pid: u32) -> f64 {
    let served = run.requests.iter().flat_map(|requests| requests.served()).filter(|of| of.pid == pid);
    served.map(|of| of.first.sum_ns).sum::<u64>() as f64 / run.requests_watched_ns() as f64
}

/// How many answers of others it awaits at once, on average.
pub fn awaited(run: &Run, pid: u32) -> f64 {
    let asked = run.requests.iter().flat_map(|requests| requests.asked()).filter(|of| of.pid == pid);
    asked.map(|of| of.first.sum_ns).sum::<u64>() as f64 / run.requests_watched_ns() as f64
}

/// What a kind of request is called.
pub fn what(peer: &Exchanges, route: &Route) -> String {
    let what = if route.operation.is_empty() { "each request" } else { &route.operation };
    format!("{what} of {} (pid {})", peer.process, peer.pid)
}

/// How much of the run's time there was one of them to answer, from 0; above 1 where there were several at once.
pub fn share_of_wall(run: &Run, route: &Route) -> f64 {
    route.first.sum_ns as f64 / run.requests_watched_ns() as f64
}
