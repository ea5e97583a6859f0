//! What the request probe's records and maps add up to. All counts are the kernel programs'; what was asked, what failed
//! and where the time went is found out from those exchanges that are told one by one.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use profiler_common::request::{
    Connection, FailureKey, PeerKey, PeerStats, Phase, Role, STATUSES, UnixName, class_of, flags,
};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    model::{
        abi,
        distribution::Summary,
        loss::Loss,
        report::Totals,
        request::{Breakdown, Exchanges, Failure, Requests, Route, RouteStacks, Side, SlowRequest},
        stack::{StackId, ThreadKey},
    },
    probe::{
        record::Record,
        request::{
            counts::{Kept, OTHERS, Room, Told, await_until, most_first},
            ended::{Ended, count},
            h2::Http2,
            maps::RequestMaps,
            names::{self, Names},
            programs::Programs,
            protocol::{self, Head, Operation, Protocol},
            retries::Retried,
            spans::{self, Joined, Span, Spans},
            tls::TlsWatch,
            windows::Windows,
            work::{Moments, Work},
        },
        spec::{Context, Extent, InUse, Probe},
    },
    process::{
        clock::{Clock, Every},
        notice::Notice,
        redact::Redact,
    },
};

/// How often it is looked which processes have ended.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Sockets that nothing tells the end of are forgotten when they have been idle for so long, ns.
const IDLE_NS: u64 = 60_000_000_000;
/// Slow requests kept.
const MAX_SLOW: usize = 50;
/// Peers found out about; of the others only the kernel's counts are known. Those of processes that have ended give their places
/// from half as many on, unless their counts are kept.
const MAX_TOLD: usize = 4096;
/// The number of all peers that have none of their own.
const NO_NUMBER: u32 = u32::MAX;

/// What is open at one moment.
#[derive(Clone, Copy, Default)]
struct Open {
    connections: u64,
    /// Requests that have no answer yet.
    awaited: u64,
    /// How long the one that began first has had none, ns.
    longest_ns: u64,
}

/// Everything the request probe has told.
pub struct RequestCollector {
    maps: Box<dyn RequestMaps>,
    proc_root: PathBuf,
    clock: Clock,
    redact: Redact,
    /// Whether anything is told at all.
    blind: bool,
    told: BTreeMap<PeerKey, Told>,
    room: Room,
    /// What the next peer is called in spans.
    next_number: u32,
    spans: Spans,
    moments: Moments,
    slow: BTreeMap<(u64, u64), (PeerKey, SlowRequest, Kept)>,
    retried: Retried,
    http2: Http2,
    /// Processes are told together by program: peers below have the first process's id.
    programs: Programs,
    ended: Ended,
    names: Names,
    look: Every,
    /// Where encrypted connections are looked into.
    tls: Option<TlsWatch>,
    /// When anything is watched; all the time if nothing is said.
    windows: Option<Windows>,
}

impl RequestCollector {
    /// With the maps of programs that are about to be attached.
    pub fn new(
        maps: Box<dyn RequestMaps>,
        proc_root: &Path,
        pids: &[u32],
        clock: &Clock,
        redact: Redact,
    ) -> RequestCollector {
        let secret = matches!(redact, Redact::Yes(_));
        RequestCollector {
            maps,
            proc_root: proc_root.to_owned(),
            clock: clock.clone(),
            redact,
            blind: false,
            told: BTreeMap::new(),
            room: Room::ALL,
            next_number: 0,
            spans: Spans::default(),
            moments: Moments::default(),
            slow: BTreeMap::new(),
            retried: Retried::default(),
            http2: Http2::default(),
            programs: Programs::new(proc_root, pids),
            ended: Ended::default(),
            names: Names::new(proc_root, secret),
            look: Every::new(clock, LOOK_INTERVAL),
            tls: None,
            windows: None,
        }
    }

    /// Encrypted connections are looked into.
    pub fn look_into(&mut self, tls: TlsWatch) {
        self.tls = Some(tls);
    }

    /// It is watched then.
    pub fn watch_in(&mut self, windows: Windows) {
        self.windows = Some(windows);
    }

    /// Nothing will be told.
    pub fn see_nothing(&mut self) {
        self.blind = true;
    }

    /// The peer of a process's whole program.
    fn of_program(&mut self, peer: PeerKey) -> PeerKey {
        PeerKey { pid: self.programs.first(peer.pid), ..peer }
    }

    /// What was asked, as far as that can be read.
    fn read(&self, of: &Connection, peer: &PeerKey) -> Option<(&'static Protocol, Operation)> {
        let known = self.told.get(peer).and_then(|told| told.protocol);
        let head = Head {
            request: head(&of.request, of.request_len),
            answer: head(&of.answer, of.answer_len),
            request_bytes: of.request_bytes,
            port: of.peer.port,
        };
        let (protocol, operation) = if is_hidden(of) { None } else { protocol::read(&head, known) }?;
        Some((protocol, Operation { name: self.redact.operation(&operation.name).into(), ..operation }))
    }

    /// An attempt to connect, or a question, that came to nothing.
    fn failure(&mut self, of: &Connection) {
        let peer = self.of_program(of.peer);
        if of.flags & flags::CONNECTING != 0 {
            self.retried.connect(peer, of);
        } else if !is_hidden(of) && of.request_len > 0 {
            // What cannot be read is like anything else.
            let read = self.read(&Connection { answer_len: 0, ..*of }, &peer);
            self.retried.unanswered(peer, of, read.as_ref().map(|(_, operation)| operation));
        }
    }

    /// An exchange that has ended.
    fn exchange(&mut self, of: &Connection) {
        let peer = self.of_program(of.peer);
        let (inside, encrypted) = (of.flags & flags::INSIDE != 0, is_hidden(of));
        let (protocol, operation) = self.read(of, &peer).unzip();
        let kept = Kept {
            pid: of.peer.pid,
            tid: of.tid,
            began_ns: of.began_ns,
            answered_ns: of.answered_ns,
            times: (of.flags & flags::TIMES != 0).then_some(of.times),
        };
        let (mut route, mut number) = (None, NO_NUMBER);
        if self.told.len() < MAX_TOLD || self.told.contains_key(&peer) {
            let told = self.told.entry(peer).or_insert_with(|| {
                self.next_number += 1;
                Told::new(self.next_number)
            });
            number = told.number;
            told.protocol = told.protocol.or(protocol);
            told.encrypted |= encrypted;
            told.decrypted += u64::from(inside);
            route = told.add(of, operation.as_ref(), kept, &mut self.room);
        }
        let asks = of.peer.role == Role::Asks as u32;
        let Kept { pid, tid, began_ns, answered_ns, .. } = kept;
        let (route, stays) = (route.unwrap_or(NO_NUMBER), kept.stays());
        let read_ns = if asks { of.ended_ns } else { of.asked_ns };
        self.spans.add(Span { pid, tid, peer: number, route, asks, stays, began_ns, read_ns, answered_ns });
        if asks {
            self.retried.exchange(peer, of, protocol, operation.as_ref());
        } else {
            self.moments.serves(pid);
            self.slow(of, peer, operation, kept);
        }
    }

    /// Keeps a request if it is among the slowest.
    fn slow(&mut self, of: &Connection, peer: PeerKey, operation: Option<Operation>, kept: Kept) {
        let whole_ns = of.ended_ns.saturating_sub(of.began_ns);
        let key = (whole_ns, of.began_ns);
        if self.slow.len() >= MAX_SLOW && self.slow.keys().next().is_some_and(|least| *least >= key) {
            return;
        }
        let queued_ns = if of.arrived_ns > 0 { of.began_ns.saturating_sub(of.arrived_ns) } else { 0 };
        let (operation, error) =
            operation.map_or_else(Default::default, |it| (it.name.into_owned(), it.error));
        let slow = SlowRequest {
            thread: ThreadKey { pid: of.peer.pid, tid: of.tid },
            operation,
            error,
            start_ns: of.began_ns,
            first_ns: of.answered_ns.saturating_sub(of.began_ns),
            whole_ns,
            queued_ns,
            request_bytes: of.request_bytes,
            answer_bytes: of.answer_bytes,
            ..SlowRequest::default()
        };
        self.slow.insert(key, (peer, slow, kept));
        if self.slow.len() > MAX_SLOW {
            self.slow.pop_first();
        }
    }

    /// Brings what ended processes did over here, and makes room. Returns how many peers were forgotten.
    fn take(&mut self) -> u64 {
        self.look.restart();
        let mut alive: FxHashMap<u32, bool> = FxHashMap::default();
        let proc_root = self.proc_root.clone();
        let mut is_alive =
            |pid: u32| *alive.entry(pid).or_insert_with(|| proc_root.join(pid.to_string()).exists());
        let keys = self.maps.peer_keys().into_iter();
        let gone: Vec<PeerKey> = keys.filter(|key| !is_alive(key.pid)).collect();
        if gone.is_empty() {
            return 0;
        }
        self.moments.ended(&mut is_alive);
        // A connection outlives its process until the other side knows.
        let open: FxHashSet<PeerKey> = self.connections().iter().map(|of| of.peer).collect();
        // Only now are they read: what the process did last came after it was found there.
        for key in gone.into_iter().filter(|key| !open.contains(key)) {
            if let Some(stats) = self.maps.forget_peer(&key) {
                let key = self.of_program(key);
                count(&mut self.ended.peers, key, stats);
            }
        }
        for (key, _) in self.maps.failures() {
            if !is_alive(key.peer.pid)
                && let Some(count) = self.maps.forget_failure(&key)
            {
                let peer = self.of_program(key.peer);
                *self.ended.failures.entry(FailureKey { peer, ..key }).or_default() += count;
            }
        }
        let forgotten = self.ended.make_room();
        if self.told.len() >= MAX_TOLD / 2 {
            let live: FxHashSet<PeerKey> =
                self.maps.peer_keys().into_iter().map(|key| self.of_program(key)).collect();
            self.told.retain(|key, _| live.contains(key) || self.ended.peers.contains_key(key));
            self.room = Room::beside(self.told.values());
        }

        forgotten
    }

    /// Connections that are open. What has been idle for long and may be gone is forgotten.
    fn connections(&mut self) -> Vec<Connection> {
        let now = self.clock.now_ns();
        let (gone, open): (Vec<_>, Vec<_>) = self.maps.connections().into_iter().partition(|of| {
            of.identity != 0
                && of.phase != Phase::Asked as u32
                && now.saturating_sub(of.ended_ns.max(of.opened_ns)) > IDLE_NS
        });
        for of in gone {
            self.maps.forget_connection(of.sock);
            if of.phase == Phase::Answered as u32 {
                let peer = self.of_program(of.peer);
                let (stats, _) =
                    self.ended.peers.entry(peer).or_insert_with(|| (Box::new(PeerStats::EMPTY), 0));
                add_exchange(stats, &of);
                self.exchange(&Connection { weight: 1, ..of });
            }
        }
        open
    }

    /// Everything so far. At the `end` of the run what has been answered is over.
    fn requests(&mut self, cx: &mut Context<'_>, end: bool) -> Requests {
        let open = self.connections();
        let mut peers = self.ended.peers.clone();
        let now = self.clock.now_ns();
        for (key, mut stats) in self.maps.peers() {
            await_until(&mut stats, now);
            count(&mut peers, self.of_program(key), stats);
        }
        let mut counts: BTreeMap<PeerKey, Open> = BTreeMap::new();
        for of in &open {
            let peer = self.of_program(of.peer);
            let counts = counts.entry(peer).or_default();
            counts.connections += 1;
            if of.phase == Phase::Asked as u32 {
                counts.awaited += 1;
                counts.longest_ns = counts.longest_ns.max(now.saturating_sub(of.began_ns));
            } else if end && of.phase == Phase::Answered as u32 {
                let (stats, _) = peers.entry(peer).or_insert_with(|| (Box::new(PeerStats::EMPTY), 1));
                let weight = std::mem::take(&mut stats.unsent) + 1;
                add_exchange(stats, of);
                self.exchange(&Connection { weight, ..*of });
            }
        }
        let mut failures: BTreeMap<FailureKey, u64> = self.ended.failures.clone();
        for (key, n) in self.maps.failures() {
            let peer = self.of_program(key.peer);
            *failures.entry(FailureKey { peer, ..key }).or_default() += n;
        }
        let joined = self.spans.joined();
        let mut all: Vec<Exchanges> = Vec::new();
        for (key, (stats, processes)) in &peers {
            let failed = failures.iter().filter(|(of, _)| of.peer == *key);
            let counts = counts.get(key).copied().unwrap_or_default();
            let peer = self.peer(key, stats, counts, failed, end.then_some(&joined), cx);
            all.extend(peer.map(|peer| Exchanges { processes: (*processes).max(1), ..peer }));
        }
        all.sort_by_key(|peer| {
            let weight = if peer.side == Side::Asks { peer.awaited_ns } else { peer.whole.sum_ns };
            (peer.side, std::cmp::Reverse((weight, peer.exchanges())))
        });
        let slow = self.slow.values().rev().map(|(key, slow, kept)| {
            let breakdown = if end { self.breakdown(&joined, kept) } else { None };
            SlowRequest {
                process: process(cx, key.pid),
                peer: self.label(key),
                breakdown: breakdown.unwrap_or_default(),
                ..slow.clone()
            }
        });
        let slow = slow.collect();
        let single = || self.slow.values().rev().map(|(.., kept)| (kept.pid, kept.tid, kept.began_ns));
        let work = if end { self.moments.by_request(&joined, &single().collect()) } else { Work::default() };
        let tls = self.tls.as_ref().map(|tls| tls.told(&all));
        let windows = self.windows.as_ref();
        Requests {
            peers: all,
            slow,
            route_stacks: self.route_stacks(&work),
            slow_stacks: single().map(|(pid, tid, began_ns)| work.of_one(pid, tid, began_ns)).collect(),
            watched_ns: windows.map_or(0, Windows::watched_ns),
            windows: windows.and_then(Windows::again),
            tls,
        }
    }

    fn route_stacks(&self, work: &Work) -> Vec<RouteStacks> {
        let answered = self.told.iter().filter(|(key, _)| key.role != Role::Asks as u32);
        let routes =
            answered.flat_map(|(key, told)| told.routes.iter().map(move |route| (key, told.number, route)));
        let stacks = routes.filter_map(|(key, number, (operation, of))| {
            let stacks = work.of_route(number, of.number, spans::wander(&of.kept));
            let (peer, operation) = (self.label(key), operation.clone());
            (!stacks.is_empty()).then_some(RouteStacks { pid: key.pid, peer, operation, stacks })
        });
        stacks.collect()
    }

    /// A peer with what has been found out about it; `None` if nothing has happened there.
    fn peer<'a>(
        &mut self,
        key: &PeerKey,
        stats: &PeerStats,
        open: Open,
        failures: impl Iterator<Item = (&'a FailureKey, &'a u64)>,
        joined: Option<&Joined>,
        cx: &mut Context<'_>,
    ) -> Option<Exchanges> {
        let failures: Vec<Failure> = failures
            .map(|(of, &count)| Failure {
                error: match of.errno {
                    0 => "gave up".to_owned(),
                    errno => abi::errno_name(errno as i32).map_or_else(|| errno.to_string(), str::to_owned),
                },
                connecting: of.connecting != 0,
                count,
            })
            .collect();
        let idle = stats.opened + stats.first.sum_ns + stats.multiplexed == 0;
        if open.connections == 0 && idle && failures.is_empty() {
            return None;
        }
        let name = self.names.of(key);
        let told = self.told.get(key);
        let spoken = told.and_then(|told| told.protocol).map(|protocol| protocol.name);
        let at_port =
            || if told.is_some_and(|told| told.encrypted) { None } else { protocol::at_port(key.port) };
        let asks = key.role == Role::Asks as u32;
        let mut routes: Vec<Route> = told
            .into_iter()
            .flat_map(|told| &told.routes)
            .map(|(operation, of)| Route {
                operation: operation.clone(),
                first: of.first.summary(),
                whole: of.whole.summary(),
                answer_bytes: of.answer_bytes,
                largest_bytes: of.largest_bytes,
                errors: most_first(&of.errors),
                breakdown: joined.filter(|_| !asks).and_then(|joined| {
                    let followed = spans::followed(&of.kept);
                    let each: Vec<Breakdown> =
                        followed.into_iter().filter_map(|kept| self.breakdown(joined, kept)).collect();
                    Breakdown::mean(&each)
                }),
            })
            .collect();
        routes.sort_by_key(|route| std::cmp::Reverse(route.whole.sum_ns));
        Some(Exchanges {
            pid: key.pid,
            process: process(cx, key.pid),
            processes: 1,
            side: if asks { Side::Asks } else { Side::Answers },
            peer: self.label(key),
            name,
            protocol: spoken
                .or(self.http2.of(key).map(|_| "HTTP/2"))
                .or_else(at_port)
                .unwrap_or_default()
                .to_owned(),
            first: Summary::of(&stats.first),
            whole: Summary::of(&stats.whole),
            queued: Summary::of(&stats.queued),
            connect: Summary::of(&stats.connect),
            open: open.connections,
            opened: stats.opened,
            closed: stats.closed,
            read_bytes: stats.read_bytes,
            written_bytes: stats.written_bytes,
            unanswered: stats.unanswered,
            awaited: open.awaited,
            longest_awaited_ns: open.longest_ns,
            overlapped: stats.overlapped,
            most_awaited: stats.most_awaited.into(),
            awaited_ns: stats.awaited_ns,
            over_time: told.map_or_else(Default::default, |told| told.over_time.clone()),
            retransmits: stats.retransmits,
            multiplexed: stats.multiplexed,
            encrypted: told.is_some_and(|told| told.encrypted),
            decrypted: told.map_or(0, |told| told.decrypted),
            statuses: stats.statuses,
            failures,
            retries: self.retried.of(key),
            streams: self.http2.of(key).map(|mut streams| {
                let routes = streams.routes.iter_mut();
                routes.for_each(|route| route.operation = self.redact.operation(&route.operation));
                streams
            }),
            looked_at: told.map_or(0, |told| told.looked_at),
            batches: told.map_or(0, |told| told.batches),
            routes,
        })
    }

    fn breakdown(&self, joined: &Joined, kept: &Kept) -> Option<Breakdown> {
        let name = |number: u32| {
            let Some((key, told)) = self.told.iter().find(|(_, told)| told.number == number) else {
                return (OTHERS.to_owned(), String::new());
            };
            let spoken = told.protocol.map(|protocol| protocol.name).unwrap_or_default().to_owned();
            (self.label(key), spoken)
        };
        joined.breakdown(kept, &name)
    }

    fn label(&self, key: &PeerKey) -> String {
        let unix = i32::from(key.family) == libc::AF_UNIX;
        let hash = key.address.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
        let name: Option<UnixName> = if unix { self.maps.unix_name(hash) } else { None };
        names::label(key, name, &self.redact)
    }
}

/// Whether an exchange is encrypted, and nobody told what it says.
fn is_hidden(of: &Connection) -> bool {
    of.flags & flags::TLS != 0 && of.flags & flags::INSIDE == 0
}

fn process(cx: &mut Context<'_>, pid: u32) -> String {
    let thread = ThreadKey { pid, tid: pid };
    cx.resolver.name_thread(thread);
    cx.resolver.tables.process_name(thread).to_owned()
}

fn head(bytes: &[u8], len: u32) -> &[u8] {
    &bytes[..(len as usize).min(bytes.len())]
}

/// Counts an exchange as the kernel programs do.
fn add_exchange(stats: &mut PeerStats, of: &Connection) {
    let asks = of.peer.role == Role::Asks as u32;
    let read_ns = if asks { of.answered_ns } else { of.began_ns };
    stats.first.count(of.answered_ns.saturating_sub(of.began_ns));
    stats.whole.count(of.ended_ns.saturating_sub(of.began_ns));
    if of.arrived_ns != 0 {
        stats.queued.count(read_ns.saturating_sub(of.arrived_ns));
    }
    let is_http = of.flags & flags::HTTP != 0;
    let class = usize::from(class_of(is_http, &of.answer, of.answer_len));
    stats.statuses[if class < STATUSES { class } else { 0 }] += 1;
}

impl Probe for RequestCollector {
    fn notice(&mut self, notice: &Notice) {
        self.programs.notice(notice);
        if let Some(tls) = &mut self.tls {
            tls.notice(notice);
        }
    }

    fn mappings_changed(&mut self, pid: u32) {
        if let Some(tls) = &mut self.tls {
            tls.mappings_changed(pid);
        }
    }

    fn record(&mut self, record: &Record, stack: Option<StackId>, cx: &mut Context<'_>) -> Result<()> {
        match record {
            Record::Exchange(of) if of.weight == 0 => self.failure(of),
            Record::Exchange(of) => self.exchange(of),
            Record::Frames(of) => {
                let peer = self.of_program(of.peer);
                self.http2.add(of, peer);
            }
            Record::Names(of) => {
                self.names.looked_up.add(self.programs.first(of.pid), head(&of.bytes, of.len));
            }
            _ => self.moments.take(record, stack, |id| cx.resolver.stack(id)),
        }
        Ok(())
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Result<()> {
        if let Some(windows) = &mut self.windows {
            let maps = &mut self.maps;
            // What happens on a connection meanwhile nobody sees: the next window gets to know it anew.
            windows.keep_within_budget(cx, |now_ns| maps.forget_connections(now_ns))?;
        }
        let due = self.look.is_due();
        if due {
            let forgotten = self.take();
            cx.resolver.losses.add(Loss::PeersFull, forgotten);
        }
        if let Some(tls) = &mut self.tls
            && (due || tls.is_stale())
        {
            tls.look(&cx.targets.pids(), cx.kernel);
        }
        Ok(())
    }

    fn stop(&mut self, _cx: &mut Context<'_>) -> Result<()> {
        if let Some(windows) = &mut self.windows {
            windows.end();
        }
        Ok(())
    }

    fn in_use(&mut self, used: &mut InUse) {
        let slow = self.slow.values().map(|(key, ..)| key);
        let keys = self.told.keys().chain(self.ended.peers.keys()).chain(slow);
        keys.for_each(|key| used.process(key.pid));
    }

    fn report(&mut self, extent: Extent, totals: &mut Totals, cx: &mut Context<'_>) -> Result<()> {
        if !self.blind && extent != Extent::Snapshot {
            totals.requests = Some(self.requests(cx, extent == Extent::Run));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
