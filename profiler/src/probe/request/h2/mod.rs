//! Streams of HTTP/2: RFC 9113. Requests overlap on a connection, each in a stream of its own, and the frames that begin and end one are
//! found where they are within the first bytes that a call moves. So what is told is an estimate from those streams that were seen
//! whole, and says how many of all they are.

mod hpack;
mod huffman;

use std::collections::BTreeMap;

use profiler_common::request::{Frames, OF_BUFFER, PeerKey, Role};
use rustc_hash::FxHashMap;

use self::hpack::{Header, Name, Table};
use crate::{
    model::request::{Route, Streams},
    probe::request::{
        counts::{Durations, most_first},
        protocol,
    },
};

/// Connections whose frames are followed, and streams of each that have not ended; routes of a peer.
const MAX_CONNECTIONS: usize = 1024;
const MAX_STREAMS: usize = 256;
const MAX_ROUTES: usize = 100;
/// Peers whose streams are told.
const MAX_PEERS: usize = 256;
const MAX_ERRORS: usize = 32;
/// Routes told, those with most time.
const MAX_TOLD: usize = 20;
const HEADER: usize = 9;
/// No frame is longer unless both sides agree, and hardly any do: RFC 9113, 4.2. To find where one begins.
const LONGEST: usize = 1 << 14;
/// What the side that asks says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 32;

/// Errors of gRPC that the side that answers is to blame for: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE and
/// DATA_LOSS (grpc/status.h).
const GRPC_ERRORS: [(&[u8], &str); 6] = [
    (b"2", "UNKNOWN"),
    (b"4", "DEADLINE_EXCEEDED"),
    (b"12", "UNIMPLEMENTED"),
    (b"13", "INTERNAL"),
    (b"14", "UNAVAILABLE"),
    (b"15", "DATA_LOSS"),
];

/// Everything that frames have told.
#[derive(Default)]
pub struct Http2 {
    connections: FxHashMap<u64, Link>,
    peers: BTreeMap<PeerKey, Told>,
}

/// A connection.
#[derive(Default)]
struct Link {
    peer: PeerKey,
    /// Number of the next piece.
    next: u64,
    /// What the side that asks says, and what the other one does.
    ways: [Way; 2],
    streams: BTreeMap<u32, Stream>,
    /// The newest stream that was seen.
    newest: u32,
}

/// One direction.
#[derive(Default)]
struct Way {
    /// Bytes of what comes next until a frame begins; nothing where that is not known.
    skip: Option<u64>,
    /// A frame's header that was cut off.
    cut: Vec<u8>,
    table: Table,
}

/// A request and its answer.
#[derive(Default)]
struct Stream {
    began_ns: u64,
    answered_ns: u64,
    method: Option<Vec<u8>>,
    path: Option<Vec<u8>>,
    grpc: bool,
    error: Option<String>,
    bytes: u64,
}

/// What streams of one peer add up to.
#[derive(Clone, Default)]
struct Told {
    begun: u64,
    seen: u64,
    grpc: u64,
    first: Durations,
    whole: Durations,
    errors: BTreeMap<String, u64>,
    routes: BTreeMap<String, OfRoute>,
}

#[derive(Clone, Default)]
struct OfRoute {
    first: Durations,
    whole: Durations,
    answer_bytes: u64,
    largest_bytes: u64,
}

/// A frame, as far as it was seen.
struct Frame<'a> {
    kind: u8,
    flags: u8,
    stream: u32,
    len: usize,
    payload: &'a [u8],
}

impl Frame<'_> {
    /// What is compressed of its headers; nothing if it was not seen whole, or goes on in another frame.
    fn block(&self) -> Option<&[u8]> {
        if self.payload.len() < self.len || self.flags & END_HEADERS == 0 {
            return None;
        }
        let (mut at, mut end) = (0, self.payload.len());
        if self.flags & PADDED != 0 {
            end = end.checked_sub(usize::from(*self.payload.first()?))?;
            at += 1;
        }
        if self.flags & PRIORITY != 0 {
            at += 5;
        }
        self.payload.get(at..end)
    }
}

/// Bytes that were seen, in parts, those that meet together.
#[derive(Default)]
struct Seen(Vec<(u64, Vec<u8>)>);

impl Seen {
    fn add(&mut self, at: u64, bytes: &[u8]) {
        match self.0.last_mut() {
            Some((start, known)) if *start + known.len() as u64 == at => known.extend(bytes),
            _ => self.0.push((at, bytes.to_vec())),
        }
    }

    /// What was seen from a place on.
    fn from(&self, at: u64) -> &[u8] {
        let parts = self.0.iter().rev();
        let mut from =
            parts.filter_map(|(start, bytes)| bytes.get(usize::try_from(at.checked_sub(*start)?).ok()?..));
        from.next().unwrap_or_default()
    }
}

/// What a record has of a call: parts, each with where it begins.
fn parts(of: &Frames) -> Vec<(u64, &[u8])> {
    if of.buffers == 0 {
        return vec![(0, &of.bytes[..(of.len as usize).min(of.bytes.len())])];
    }
    let mut next = 0;
    let buffers = of.lens.iter().zip(of.bytes.chunks(OF_BUFFER)).take(of.buffers as usize);
    buffers
        .map(|(&len, bytes)| {
            let at = next;
            next += u64::from(len);
            (at, &bytes[..(len as usize).min(bytes.len())])
        })
        .collect()
}

/// Reads where a frame begins: RFC 9113, 4.1.
fn header(bytes: &[u8; HEADER]) -> Frame<'static> {
    let [a, b, c, kind, flags, id @ ..] = *bytes;
    let stream = u32::from_be_bytes(id) & !(1 << 31);
    Frame { kind, flags, stream, len: u32::from_be_bytes([0, a, b, c]) as usize, payload: &[] }
}

/// Whether a frame may begin so.
fn is_likely(of: &Frame<'_>) -> bool {
    let of_stream = match of.kind {
        DATA | HEADERS | 2 | RST_STREAM | PUSH_PROMISE | CONTINUATION => of.stream != 0,
        4 | 6 | 7 => of.stream == 0,
        8 => true,
        _ => false,
    };
    let fits = match of.kind {
        2 => of.len == 5,
        RST_STREAM | 8 => of.len == 4,
        4 => of.len.is_multiple_of(6),
        6 => of.len == 8,
        _ => true,
    };
    of_stream && fits && of.len <= LONGEST
}

impl Http2 {
    /// Takes in what a call moved. `program` is who the peer belongs to.
    pub fn add(&mut self, of: &Frames, program: PeerKey) {
        if self.peers.len() >= MAX_PEERS && !self.peers.contains_key(&program) {
            return;
        }
        if !self.connections.contains_key(&of.sock) {
            if self.connections.len() >= MAX_CONNECTIONS {
                self.connections.clear();
            }
            // What the connection has said before is not known, unless it begins.
            let new = Link { peer: program, next: of.number, ..Link::default() };
            self.connections.insert(of.sock, new);
        }
        let (Some(link), told) = (self.connections.get_mut(&of.sock), self.peers.entry(program).or_default())
        else {
            return;
        };
        if of.number != link.next || link.peer != program {
            // Something is missing, or another connection has got this one's place in memory.
            *link = Link {
                peer: program,
                newest: if of.number < link.next { 0 } else { link.newest },
                ..Link::default()
            };
        }
        link.next = of.number + 1;
        let asks = program.role == Role::Asks as u32;
        let answer = (of.wrote != 0) != asks;
        link.piece(usize::from(answer), &parts(of), of.moved, of.time_ns, told);
    }

    /// What is known of a peer's streams; nothing if it has none.
    pub fn of(&self, peer: &PeerKey) -> Option<Streams> {
        let told = self.peers.get(peer).filter(|told| told.begun > 0)?;
        let route = |(operation, of): (&String, &OfRoute)| Route {
            operation: operation.clone(),
            first: of.first.summary(),
            whole: of.whole.summary(),
            answer_bytes: of.answer_bytes,
            largest_bytes: of.largest_bytes,
            ..Route::default()
        };
        let mut routes: Vec<Route> = told.routes.iter().map(route).collect();
        routes.sort_by_key(|route| std::cmp::Reverse(route.whole.sum_ns));
        routes.truncate(MAX_TOLD);
        Some(Streams {
            begun: told.begun,
            seen: told.seen,
            grpc: told.grpc,
            first: told.first.summary(),
            whole: told.whole.summary(),
            errors: most_first(&told.errors),
            routes,
        })
    }
}

impl Link {
    /// What was moved one way in one call: those parts of it that were seen, each with where it begins; and how much it was.
    fn piece(&mut self, way: usize, parts: &[(u64, &[u8])], moved: u64, now_ns: u64, told: &mut Told) {
        let of = &mut self.ways[way];
        let mut seen = Seen::default();
        seen.add(0, &std::mem::take(&mut of.cut));
        let before = seen.from(0).len() as u64;
        parts.iter().for_each(|(at, bytes)| seen.add(before + at, bytes));
        let end = before + moved;
        let mut at = match of.skip {
            _ if seen.from(before).starts_with(PREFACE) => before + PREFACE.len() as u64,
            Some(skip) => skip,
            // Calls begin where frames do, mostly.
            None => match seen.from(0).first_chunk().map(header) {
                Some(frame) if is_likely(&frame) => {
                    of.table.lose();
                    0
                }
                _ => return,
            },
        };
        loop {
            if at >= end {
                self.ways[way].skip = Some(at - end);
                return;
            }
            let rest = seen.from(at);
            let Some(head) = rest.first_chunk() else {
                let of = &mut self.ways[way];
                // Either it goes on in the next call, or it was not seen, and nothing is known from here on.
                let is_cut = at + rest.len() as u64 == end;
                of.skip = is_cut.then_some(0);
                of.cut = if is_cut { rest.to_vec() } else { Vec::new() };
                return;
            };
            let frame = header(head);
            if !is_likely(&frame) && frame.kind <= CONTINUATION {
                // It was none: what was taken for a frame before it was none, either.
                self.ways[way].skip = None;
                return;
            }
            let payload = &rest[HEADER..];
            let payload = &payload[..payload.len().min(frame.len)];
            at += (HEADER + frame.len) as u64;
            self.frame(way, &Frame { payload, ..frame }, now_ns, told);
        }
    }

    fn frame(&mut self, way: usize, frame: &Frame<'_>, now_ns: u64, told: &mut Told) {
        let answers = way == 1;
        match frame.kind {
            HEADERS => {
                let table = &mut self.ways[way].table;
                let headers = match frame.block() {
                    Some(block) => table.decode(block),
                    None => {
                        table.lose();
                        Vec::new()
                    }
                };
                if answers {
                    self.answered(frame, &headers, now_ns);
                } else {
                    self.asked(frame, &headers, now_ns, told);
                }
            }
            DATA if answers => {
                if let Some(stream) = self.streams.get_mut(&frame.stream) {
                    stream.bytes += frame.len as u64;
                    if stream.answered_ns == 0 {
                        stream.answered_ns = now_ns;
                    }
                }
            }
            RST_STREAM => _ = self.streams.remove(&frame.stream),
            // What these add to the table is not followed.
            PUSH_PROMISE | CONTINUATION => self.ways[way].table.lose(),
            _ => {}
        }
        let may_end = matches!(frame.kind, DATA | HEADERS);
        if answers
            && may_end
            && frame.flags & END_STREAM != 0
            && let Some(stream) = self.streams.remove(&frame.stream)
        {
            told.add(&stream, now_ns);
        }
    }

    /// A request begins, or what follows one comes.
    fn asked(&mut self, frame: &Frame<'_>, headers: &[Header], now_ns: u64, told: &mut Told) {
        if frame.stream <= self.newest {
            return;
        }
        // Who asks numbers its streams by twos, upwards: RFC 9113, 5.1.1. So those between were not seen.
        told.begun += if self.newest == 0 { 1 } else { u64::from(frame.stream - self.newest) / 2 };
        self.newest = frame.stream;
        if self.streams.len() >= MAX_STREAMS {
            self.streams.pop_first();
        }
        let value = |name| headers.iter().find(|of| of.name == name).and_then(|of| of.value.clone());
        let grpc = value(Name::ContentType).is_some_and(|kind| kind.starts_with(b"application/grpc"));
        let (method, path) = (value(Name::Method), value(Name::Path));
        self.streams
            .insert(frame.stream, Stream { began_ns: now_ns, method, path, grpc, ..Stream::default() });
    }

    fn answered(&mut self, frame: &Frame<'_>, headers: &[Header], now_ns: u64) {
        let Some(stream) = self.streams.get_mut(&frame.stream) else { return };
        for header in headers {
            match (header.name, &header.value) {
                // 103: the answer comes later.
                (Name::Status, Some(status)) if status.starts_with(b"1") => return,
                (Name::Status, Some(status)) if status.starts_with(b"5") && status.len() == 3 => {
                    stream.error = Some(crate::text::clean(status));
                }
                (Name::GrpcStatus, Some(status)) => {
                    stream.grpc = true;
                    let known = GRPC_ERRORS.iter().find(|(code, _)| code == status);
                    stream.error = known.map(|(_, name)| (*name).to_owned()).or(stream.error.take());
                }
                _ => {}
            }
        }
        if stream.answered_ns == 0 {
            stream.answered_ns = now_ns;
        }
    }
}

impl Told {
    /// A stream that was seen from its beginning to its end.
    fn add(&mut self, of: &Stream, ended_ns: u64) {
        self.seen += 1;
        self.grpc += u64::from(of.grpc);
        let [first_ns, whole_ns] = [of.answered_ns, ended_ns].map(|ns| ns.saturating_sub(of.began_ns));
        self.first.add(first_ns, 1);
        self.whole.add(whole_ns, 1);
        if let Some(error) = &of.error
            && (self.errors.len() < MAX_ERRORS || self.errors.contains_key(error))
        {
            *self.errors.entry(error.clone()).or_default() += 1;
        }
        let name = match (&of.method, &of.path) {
            (Some(method), Some(path)) => protocol::operation(method, path),
            _ => None,
        };
        let name = name.unwrap_or_default();
        if self.routes.len() >= MAX_ROUTES && !self.routes.contains_key(&name) {
            return;
        }
        let route = self.routes.entry(name).or_default();
        route.first.add(first_ns, 1);
        route.whole.add(whole_ns, 1);
        route.answer_bytes += of.bytes;
        route.largest_bytes = route.largest_bytes.max(of.bytes);
    }
}

/// Feeds pieces that somebody else wrote: of each the first byte says which way it goes, and the second one how long it is.
pub fn feed(mut bytes: &[u8]) {
    let (mut link, mut told) = (Link::default(), Told::default());
    while let Some((&[way, len], rest)) = bytes.split_first_chunk() {
        let (piece, next) = rest.split_at(usize::from(len).min(rest.len()));
        let moved = piece.len() as u64 + u64::from(way >> 1);
        link.piece(usize::from(way & 1), &[(0, piece)], moved, 1, &mut told);
        bytes = next;
    }
}

#[cfg(test)]
mod tests;
