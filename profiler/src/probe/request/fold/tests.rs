//! The collector on a kernel made by hand.

use std::{cell::RefCell, rc::Rc};

use profiler_common::{
    request::{ANSWER_HEAD, REQUEST_HEAD},
    sched::{Times, WaitCause},
};

use super::*;
use crate::{
    probe::fixtures::Bench,
    process::{notice::Event, redact::Redact},
};

const MS: u64 = 1_000_000;

#[derive(Default)]
struct State {
    peers: Vec<(PeerKey, PeerStats)>,
    failures: Vec<(FailureKey, u64)>,
    connections: Vec<Connection>,
    /// The peer that answers once more just after the peers have been read.
    late: Option<PeerKey>,
}

#[derive(Clone, Default)]
struct Fake(Rc<RefCell<State>>);

impl Fake {
    /// The last answer comes just after the kernel has been read.
    fn answer_late(&self) {
        let mut state = self.0.borrow_mut();
        if let Some(late) = state.late.take()
            && let Some((_, stats)) = state.peers.iter_mut().find(|(key, _)| *key == late)
        {
            stats.statuses[2] += 1;
        }
    }
}

impl RequestMaps for Fake {
    fn peers(&self) -> Vec<(PeerKey, Box<PeerStats>)> {
        let all = self.0.borrow().peers.iter().map(|(key, stats)| (*key, Box::new(*stats))).collect();
        self.answer_late();
        all
    }

    fn failures(&self) -> Vec<(FailureKey, u64)> {
        self.0.borrow().failures.clone()
    }

    fn connections(&self) -> Vec<Connection> {
        self.0.borrow().connections.clone()
    }

    fn unix_name(&self, _: u64) -> Option<UnixName> {
        None
    }

    fn peer_keys(&self) -> Vec<PeerKey> {
        let all = self.0.borrow().peers.iter().map(|(key, _)| *key).collect();
        self.answer_late();
        all
    }

    fn forget_peer(&mut self, key: &PeerKey) -> Option<Box<PeerStats>> {
        let peers = &mut self.0.borrow_mut().peers;
        let at = peers.iter().position(|(known, _)| known == key)?;
        Some(Box::new(peers.remove(at).1))
    }

    fn forget_failure(&mut self, key: &FailureKey) -> Option<u64> {
        let failures = &mut self.0.borrow_mut().failures;
        let at = failures.iter().position(|(known, _)| known == key)?;
        Some(failures.remove(at).1)
    }

    fn forget_connection(&mut self, sock: u64) {
        self.0.borrow_mut().connections.retain(|known| known.sock != sock);
    }

    fn forget_connections(&mut self, now_ns: u64) {
        let mut state = self.0.borrow_mut();
        state.connections.clear();
        for (_, stats) in &mut state.peers {
            await_until(stats, now_ns);
            stats.awaited = 0;
        }
    }
}

fn key(pid: u32, role: Role, port: u16) -> PeerKey {
    let mut key =
        PeerKey { pid, role: role as u32, family: libc::AF_INET as u16, port, ..PeerKey::default() };
    if role == Role::Asks {
        key.address[0] = 10;
    }
    key
}

/// An exchange of the time between two moments.
fn exchange(peer: PeerKey, request: &[u8], answer: &[u8], began_ns: u64, answered_ns: u64) -> Connection {
    let (mut from, mut to) = ([0; REQUEST_HEAD], [0; ANSWER_HEAD]);
    from[..request.len()].copy_from_slice(request);
    to[..answer.len()].copy_from_slice(answer);
    Connection {
        kind: profiler_common::record::RecordKind::Exchange as u32,
        weight: 1,
        sock: 7,
        peer,
        at: 0,
        phase: Phase::Idle as u32,
        flags: flags::TCP | flags::HTTP,
        tid: 8,
        identity: 0,
        inside: 0,
        opened_ns: 0,
        exchanges: 1,
        arrived_ns: 0,
        began_ns,
        asked_ns: began_ns,
        answered_ns,
        ended_ns: answered_ns + MS,
        request_bytes: request.len() as u64,
        answer_bytes: answer.len() as u64,
        times: Times::default(),
        request_len: request.len() as u32,
        answer_len: answer.len() as u32,
        request: from,
        answer: to,
    }
}

struct Test {
    bench: Bench,
    maps: Fake,
    collector: RequestCollector,
}

impl Test {
    fn new(redact: bool) -> Test {
        let (bench, maps) = (Bench::new(), Fake::default());
        let clock = bench.resolver.clock.clone();
        let collector = RequestCollector::new(
            Box::new(maps.clone()),
            bench.proc.path(),
            &[7],
            &clock,
            Redact::new(redact),
        );
        Test { bench, maps, collector }
    }

    /// An exchange as the kernel programs count it and tell of it.
    fn add(&mut self, of: Connection) {
        let mut state = self.maps.0.borrow_mut();
        if !state.peers.iter().any(|(key, _)| *key == of.peer) {
            state.peers.push((of.peer, PeerStats::EMPTY));
        }
        let stats = state.peers.iter_mut().find(|(key, _)| *key == of.peer).unwrap();
        add_exchange(&mut stats.1, &of);
        drop(state);
        self.bench.record(&mut self.collector, &Record::Exchange(Box::new(of)));
    }

    fn run(&mut self, extent: Extent) -> Requests {
        let mut totals = Totals::default();
        self.bench.with(|cx| self.collector.report(extent, &mut totals, cx));
        totals.requests.unwrap()
    }
}

#[test]
fn routes_errors_and_where_the_time_went() {
    let mut test = Test::new(false);
    let (served, database) = (key(7, Role::Answers, 80), key(7, Role::Asks, 5432));
    let query = b"Q\0\0\0\x0dSELECT 1\0";
    for i in 0..4u64 {
        let at = 1000 * MS * (i + 1);
        let status: &[u8] = if i == 0 { b"HTTP/1.1 500 Oops\r\n" } else { b"HTTP/1.1 200 OK\r\n" };
        test.add(exchange(database, query, b"T\0\0\0\x21", at + MS, at + 4 * MS));
        test.add(exchange(database, query, b"T\0\0\0\x21", at + 5 * MS, at + 8 * MS));
        let mut request = exchange(served, b"GET /a/17 HTTP/1.1\r\n", status, at, at + 30 * MS);
        request.flags |= flags::TIMES;
        request.times.on_cpu_ns = 20 * MS;
        request.times.blocked_ns[WaitCause::Network as usize] = 6 * MS;
        test.add(request);
    }
    let requests = test.run(Extent::Run);
    let port = requests.served().next().unwrap();
    assert_eq!((port.exchanges(), port.failed(), &*port.peer, &*port.protocol), (4, (1, 4), ":80", "HTTP"));
    let route = &port.routes[0];
    assert_eq!((&*route.operation, &route.errors[..]), ("GET /a/:id", &[("500".to_owned(), 1)][..]));
    let goes = route.breakdown.as_ref().unwrap();
    assert_eq!((goes.on_cpu_ns, goes.awaiting_ns, goes.other_ns), (20 * MS, 6 * MS, 4 * MS));
    assert_eq!((goes.asked[0].times, goes.asked[0].in_sequence, goes.alone), (2.0, 1.0, 4));
    assert_eq!((&*goes.asked[0].peer, &*goes.asked[0].protocol), ("10.0.0.0:5432", "PostgreSQL"));
    let asked = requests.asked().next().unwrap();
    assert_eq!((asked.exchanges(), &*asked.routes[0].operation), (8, "SELECT"));
    assert_eq!(requests.slow.len(), 4);
    assert_eq!(requests.slow[0].breakdown.asked[0].times, 2.0);
}

#[test]
fn what_is_answered_in_the_end_counts_once() {
    let mut test = Test::new(false);
    let served = key(7, Role::Answers, 80);
    test.add(exchange(served, b"GET / HTTP/1.1\r\n", b"HTTP/1.1 200 OK", MS, 3 * MS));
    let mut open = exchange(served, b"GET / HTTP/1.1\r\n", b"HTTP/1.1 404 No", 4 * MS, 5 * MS);
    open.phase = Phase::Answered as u32;
    let mut asked = open;
    asked.phase = Phase::Asked as u32;
    test.maps.0.borrow_mut().connections = vec![open, asked];
    let before = test.run(Extent::Checkpoint);
    assert_eq!(before.peers[0].exchanges(), 1);
    let after = test.run(Extent::Run);
    let port = &after.peers[0];
    assert_eq!((port.exchanges(), port.failed(), port.open, port.awaited), (2, (1, 2), 2, 1));
    assert_eq!(port.routes[0].first.count, 2);
}

#[test]
fn what_a_record_stands_for_is_in_its_route() {
    let mut test = Test::new(false);
    let mut of = exchange(key(7, Role::Answers, 80), b"GET /x HTTP/1.1\r\n", b"HTTP/1.1 200", MS, 2 * MS);
    of.weight = 9;
    test.add(of);
    let requests = test.run(Extent::Run);
    assert_eq!((requests.peers[0].looked_at, requests.peers[0].routes[0].first.count), (1, 9));
}

#[test]
fn counts_of_ended_processes_are_kept_and_make_room() {
    let mut test = Test::new(false);
    let gone = key(99, Role::Answers, 80);
    test.add(exchange(gone, b"GET / HTTP/1.1\r\n", b"HTTP/1.1 200", MS, 2 * MS));
    test.maps.0.borrow_mut().failures = vec![(FailureKey { peer: gone, errno: 111, connecting: 1 }, 3)];
    let answers = test.maps.0.borrow().peers[0].1.statuses[2];
    test.maps.0.borrow_mut().late = Some(gone);
    test.bench.hands.set(3_000_000_000);
    test.bench.with(|cx| test.collector.poll(cx));
    assert!(test.maps.0.borrow().peers.is_empty() && test.maps.0.borrow().failures.is_empty());
    let requests = test.run(Extent::Run);
    assert_eq!(requests.peers[0].exchanges(), 1);
    assert_eq!(requests.peers[0].statuses[2], answers + 1, "the last one, too");
    let failed = &requests.peers[0].failures[0];
    assert_eq!((&*failed.error, failed.count, failed.connecting), ("ECONNREFUSED", 3, true));
}

#[test]
fn paths_are_kept_secret_on_request() {
    let mut test = Test::new(true);
    test.add(exchange(key(7, Role::Answers, 80), b"GET /secret HTTP/1.1\r\n", b"HTTP/1.1 200", MS, 2 * MS));
    let requests = test.run(Extent::Run);
    let operation = &requests.peers[0].routes[0].operation;
    assert!(operation.starts_with("GET [") && !operation.contains("secret"), "{operation}");
}

#[test]
fn processes_of_one_program_are_told_together() {
    let mut test = Test::new(false);
    test.collector.notice(&Notice { time_ns: 0, pid: 70, event: Event::Forked { parent: 7 } });
    for pid in [7, 70, 70] {
        test.add(exchange(
            key(pid, Role::Answers, 80),
            b"GET /a HTTP/1.1\r\n",
            b"HTTP/1.1 200 OK\r\n",
            MS,
            3 * MS,
        ));
    }
    let requests = test.run(Extent::Run);
    let [peer] = &requests.peers[..] else { panic!("{:?}", requests.peers) };
    assert_eq!((peer.pid, peer.processes, peer.exchanges(), peer.statuses[2]), (7, 2, 3, 3));
    assert_eq!(peer.routes.iter().map(|route| route.first.count).collect::<Vec<_>>(), [3]);
    assert!(test.collector.told.len() == 1, "what ends leaves nothing of its own behind");
}

#[test]
fn an_answer_that_is_awaited_all_the_time_counts_up_to_now() {
    let mut test = Test::new(false);
    let peer = key(7, Role::Asks, 5432);
    test.add(exchange(peer, b"", b"", MS, 2 * MS));
    {
        let stats = &mut test.maps.0.borrow_mut().peers[0].1;
        (stats.awaited_ns, stats.awaited_since_ns, stats.awaited) = (5 * MS, 10 * MS, 3);
    }
    test.bench.hands.set(30 * MS);
    assert_eq!(test.run(Extent::Run).peers[0].awaited_ns, 25 * MS);
    test.maps.clone().forget_connections(40 * MS);
    test.bench.hands.set(90 * MS);
    assert_eq!(test.run(Extent::Run).peers[0].awaited_ns, 35 * MS, "what is not watched is not awaited");
}

/// A peer whose requests have taken all room leaves others their first route and few requests kept whole.
#[test]
fn routes_and_requests_kept_whole_have_a_bound_in_all() {
    let of = exchange(key(1, Role::Answers, 80), b"", b"", 0, MS);
    let kept = Kept { pid: 1, tid: 2, began_ns: 0, answered_ns: 1, times: None };
    let mut room = Room { routes: 2, kept: 20 };
    let mut told = [Told::new(1), Told::new(2)];
    let mut add = |peer: usize, name: &'static str| {
        let operation = Operation { name: name.into(), ..Operation::default() };
        told[peer].add(&of, Some(&operation), kept, &mut room)
    };
    assert_eq!([add(0, "a"), add(0, "b")], [Some(0), Some(1)]);
    assert_eq!([add(0, "c"), add(0, "d")], [Some(2), Some(2)], "(others)");
    assert_eq!(add(1, "e"), Some(0), "the first of a peer has its place");
    (0..300).for_each(|_| _ = add(0, "a"));
    (0..300).for_each(|_| _ = add(1, "e"));
    let whole = |told: &Told| told.routes.values().map(|route| route.kept.len()).collect::<Vec<_>>();
    assert_eq!([whole(&told[0]), whole(&told[1])], [vec![2, 16, 1], vec![16]]);
    let beside = Room::beside(told[1..].iter());
    assert_eq!((beside.routes, beside.kept), (Room::ALL.routes - 1, Room::ALL.kept - 16));
}
