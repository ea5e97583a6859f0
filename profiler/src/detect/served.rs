//! Requests that the target answers, and what the time of one goes to.

use crate::{
    detect::words::{bottleneck, own_of_most},
    model::{
        cause::WaitCause,
        distribution::Summary,
        finding::Bottleneck,
        function::Function,
        report::Run,
        request::{Breakdown, Exchanges, Route, WorkStack},
        stack::StackId,
    },
};

/// Fewer requests that could be followed say nothing.
const MIN_FOLLOWED: u64 = 5;

/// Requests that are answered sooner need no advice, ns.
pub const SOON_NS: u64 = 1_000_000;

/// Nobody waits so long for an answer that is late: such a question (BRPOP, a long poll) waits for work, ns.
pub const LONG_POLL_NS: u64 = 5_000_000_000;
/// The slowest of a hundred takes hardly longer than half of them: such requests wait for a time.
pub const SAME: f64 = 1.2;

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

/// Fewer CPU samples of a route name no function.
const MIN_SAMPLES: u64 = 20;

/// The program's own function in which threads spend a part of a route's time: most of its CPU samples, or of its long waits.
pub fn spent_in<'a>(
    run: &'a Run,
    peer: &Exchanges,
    route: &Route,
    lacks: Bottleneck,
) -> Option<&'a Function> {
    let stacks = run.requests.iter().flat_map(|requests| requests.stacks_of(peer, route));
    spent_most(run, stacks, lacks, MIN_SAMPLES)
}

/// The same of one of the slowest requests, by its number among them: few samples are all there is.
pub fn spent_by_one(run: &Run, number: usize, lacks: Bottleneck) -> Option<&Function> {
    let stacks = run.requests.as_ref()?.slow_stacks.get(number)?;
    spent_most(run, stacks.iter(), lacks, 1)
}

fn spent_most<'a>(
    run: &'a Run,
    stacks: impl Iterator<Item = &'a WorkStack>,
    lacks: Bottleneck,
    least: u64,
) -> Option<&'a Function> {
    let is = |of: &&WorkStack| match of.cause {
        None => lacks == Bottleneck::Cpu,
        Some(WaitCause::Park) => lacks == Bottleneck::Lock,
        Some(cause) => bottleneck(cause) == lacks,
    };
    let of_part: Vec<(StackId, u64)> = stacks.filter(is).map(|of| (of.stack, of.weight)).collect();
    let enough = of_part.iter().map(|(_, weight)| weight).sum::<u64>() >= least;
    if enough { own_of_most(run.names(), &of_part) } else { None }
}

/// How many requests a process has in progress at once, on average (Little's law).
pub fn in_progress(run: &Run, pid: u32) -> f64 {
    let served = run.requests.iter().flat_map(|requests| requests.served()).filter(|of| of.pid == pid);
    served.map(|of| of.first.sum_ns).sum::<u64>() as f64 / run.requests_watched_ns() as f64
}

/// How many answers of others it awaits at once, on average: without those that it waits for to have work.
pub fn awaited(run: &Run, pid: u32) -> f64 {
    let asked = run.requests.iter().flat_map(|requests| requests.asked()).filter(|of| of.pid == pid);
    let needed = asked.filter(|of| !waits_for_work(of, |answers| answers.sum_ns));
    needed.map(|of| of.first.sum_ns).sum::<u64>() as f64 / run.requests_watched_ns() as f64
}

/// What is asked to wait for work, by protocol: the answer comes when there is some, or after a time. What is sent unasked is no
/// answer, but looks like a late one where something was said before that has none (an ack).
const WAIT_FOR_WORK: [(&str, &[&str]); 6] = [
    ("AMQP", &["delivery", "heartbeat"]),
    ("MQTT", &["delivery"]),
    ("PostgreSQL", &["replication"]),
    (
        "redis",
        &[
            "BLPOP",
            "BRPOP",
            "BRPOPLPUSH",
            "BLMOVE",
            "BLMPOP",
            "BZPOPMIN",
            "BZPOPMAX",
            "BZMPOP",
            "WAIT",
            "XREAD",
            "XREADGROUP",
        ],
    ),
    ("Kafka", &["Fetch", "JoinGroup", "SyncGroup"]),
    ("MongoDB", &["hello"]),
];

/// Whether it is asked to wait for work.
pub fn is_for_work(peer: &Exchanges, route: &Route) -> bool {
    let command = route.operation.split(' ').next().unwrap_or_default();
    WAIT_FOR_WORK.iter().any(|(of, commands)| *of == peer.protocol && commands.contains(&command))
}

/// Whether most of what is asked of a peer, by a measure of its answers, is asked to wait for work.
pub fn waits_for_work(peer: &Exchanges, by: fn(&Summary) -> u64) -> bool {
    let for_work = peer.routes.iter().filter(|route| is_for_work(peer, route));
    2 * for_work.map(|route| by(&route.first)).sum::<u64>() > by(&peer.first)
}

/// An answer that is awaited in less of the looks is not what a process waits for, from 0 to 1.
pub const AWAITED: f64 = 0.2;

/// Whether a process waits for answers of peers for a noteworthy part of the time, as far as is known: else it waits on its
/// connections for the next request or message.
pub fn needs_answers(run: &Run, pid: u32) -> bool {
    let Some(of) = run.vitals_of(pid) else { return true };
    if of.peers.iter().all(|peer| peer.clients) {
        return !of.listens;
    }
    let asked = run.requests.iter().flat_map(|requests| requests.asked()).filter(|of| of.pid == pid);
    let awaited_ns = asked.map(|of| of.awaited_ns).max().unwrap_or(0);
    awaited_ns as f64 >= AWAITED * run.requests_watched_ns() as f64
        || of.peers.iter().any(|peer| !peer.clients && (peer.judged == 0 || peer.is_awaited_for(AWAITED)))
}

/// What a kind of request is called.
pub fn what(peer: &Exchanges, route: &Route) -> String {
    let what = if route.operation.is_empty() { "each request" } else { &route.operation };
    format!("{what} of {}", peer.who())
}

/// How much of the run's time there was one of them to answer, from 0; above 1 where there were several at once.
pub fn share_of_wall(run: &Run, route: &Route) -> f64 {
    route.first.sum_ns as f64 / run.requests_watched_ns() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::vitals::{Peer, ProcessVitals, Vitals};

    #[test]
    fn what_comes_unasked_is_not_awaited() {
        let awaited = |protocol: &str, operation: &str| {
            let mut run = crate::model::report::fixtures::run(&[]);
            run.cpu.accounts.duration_ns = 1_000_000_000;
            let mut requests = crate::model::request::fixtures::requests();
            let [asked, _] = &mut requests.peers[..] else { panic!() };
            asked.protocol = protocol.into();
            let first = asked.first;
            asked.routes = vec![Route { operation: operation.into(), first, ..Route::default() }];
            run.requests = Some(requests);
            awaited(&run, 7)
        };
        for (protocol, operation) in
            [("AMQP", "delivery"), ("MQTT", "delivery"), ("PostgreSQL", "replication")]
        {
            assert_eq!(awaited(protocol, operation), 0.0, "{protocol}");
        }
        assert_eq!([awaited("AMQP", "publish"), awaited("PostgreSQL", "SELECT")], [4.0, 4.0]);
    }

    #[test]
    fn who_waits_for_requests_and_messages_needs_no_answers() {
        let needs = |listens: bool, peers: Vec<Peer>| {
            let mut run = crate::model::report::fixtures::run(&[]);
            let of = ProcessVitals { pid: 7, listens, peers, ..ProcessVitals::default() };
            run.vitals = Some(Vitals { processes: vec![of], unlisted: 0 });
            needs_answers(&run, 7)
        };
        let peer =
            |clients, judged, awaited| Peer { clients, samples: 10, judged, awaited, ..Peer::default() };
        assert!(!needs(true, vec![peer(true, 0, 0)]), "it serves only");
        assert!(!needs(true, vec![peer(true, 10, 10), peer(false, 10, 1)]), "and hardly asks");
        assert!(needs(true, vec![peer(true, 10, 0), peer(false, 10, 9)]));
        assert!(needs(true, vec![peer(false, 0, 0)]), "what is not known is no reason to be calm");
        assert!(needs(false, Vec::new()));
    }
}
