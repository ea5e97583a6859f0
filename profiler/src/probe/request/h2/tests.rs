use proptest::prelude::*;

use super::*;

const MS: u64 = 1_000_000;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A server that is told of pieces one after the other.
struct Test {
    http2: Http2,
    number: u64,
    key: PeerKey,
}

impl Test {
    fn new() -> Test {
        let key = PeerKey { pid: 7, role: Role::Answers as u32, port: 80, ..PeerKey::default() };
        Test { http2: Http2::default(), number: 0, key }
    }

    fn piece(&mut self, wrote: bool, ms: u64, bytes: &[u8]) {
        // SAFETY: integers only.
        let mut of: Frames = unsafe { std::mem::zeroed() };
        let len = bytes.len().min(of.bytes.len());
        of.bytes[..len].copy_from_slice(&bytes[..len]);
        (of.sock, of.number, of.time_ns) = (5, self.number, ms * MS);
        (of.moved, of.len, of.wrote) = (bytes.len() as u64, len as u32, wrote.into());
        self.http2.add(&of, self.key);
        self.number += 1;
    }

    /// One call that writes several buffers.
    fn buffers(&mut self, ms: u64, buffers: &[&[u8]]) {
        // SAFETY: integers only.
        let mut of: Frames = unsafe { std::mem::zeroed() };
        for (number, buffer) in buffers.iter().enumerate() {
            let len = buffer.len().min(OF_BUFFER);
            of.bytes[number * OF_BUFFER..][..len].copy_from_slice(&buffer[..len]);
            of.lens[number] = buffer.len() as u32;
            of.moved += buffer.len() as u64;
        }
        (of.sock, of.number, of.time_ns, of.wrote) = (5, self.number, ms * MS, 1);
        of.buffers = buffers.len() as u32;
        self.http2.add(&of, self.key);
        self.number += 1;
    }

    fn streams(&self) -> Streams {
        self.http2.of(&self.key).unwrap()
    }
}

fn begins() -> Vec<u8> {
    [PREFACE, &frame(4, 0, 0, &[0, 3, 0, 0, 0, 100])].concat()
}

/// `GET /users`; it is kept, so that the next ones can be `AGAIN`.
const USERS: &[u8] = b"\x82\x44\x06/users";
const AGAIN: &[u8] = b"\x82\xbe";
const OK: &[u8] = b"\x88";

#[test]
fn streams_that_overlap_have_their_own_times() {
    let mut test = Test::new();
    let first = [begins(), frame(HEADERS, 5, 1, USERS), frame(HEADERS, 5, 3, AGAIN)].concat();
    test.piece(false, 10, &first);
    test.piece(true, 15, &frame(HEADERS, 4, 3, OK));
    test.piece(true, 20, &[frame(DATA, 0, 3, b"ab"), frame(DATA, 1, 3, b"c")].concat());
    test.piece(true, 40, &[frame(HEADERS, 4, 1, b"\x8e"), frame(DATA, 1, 1, b"x")].concat());
    let streams = test.streams();
    assert_eq!((streams.begun, streams.seen, streams.first.count), (2, 2, 2));
    assert_eq!((streams.first.sum_ns, streams.whole.sum_ns), (35 * MS, 40 * MS));
    let [route] = &streams.routes[..] else { panic!("{streams:?}") };
    assert_eq!((&*route.operation, route.answer_bytes, route.largest_bytes), ("GET /users", 4, 3));
    assert_eq!(streams.errors, [("500".to_owned(), 1)]);
}

#[test]
fn grpc_says_at_the_end_whether_it_failed() {
    let mut test = Test::new();
    let call = b"\x83\x44\x0a/shop.S/Go\x5f\x10application/grpc";
    test.piece(false, 10, &[begins(), frame(HEADERS, 4, 1, call), frame(DATA, 1, 1, &[0; 9])].concat());
    let trailers = frame(HEADERS, 5, 1, b"\x40\x0bgrpc-status\x0214");
    test.piece(true, 30, &[frame(HEADERS, 4, 1, OK), frame(DATA, 0, 1, &[0; 7]), trailers].concat());
    let streams = test.streams();
    assert_eq!((streams.seen, streams.grpc), (1, 1));
    assert_eq!(streams.routes[0].operation, "POST /shop.S/Go");
    assert_eq!(streams.errors, [("UNAVAILABLE".to_owned(), 1)]);
}

#[test]
fn frames_go_on_over_calls_and_beyond_what_is_seen() {
    let mut test = Test::new();
    test.piece(false, 10, &[begins(), frame(HEADERS, 5, 1, USERS)].concat());
    let body = frame(DATA, 1, 1, &[b'x'; 5000]);
    test.piece(true, 20, &[frame(HEADERS, 4, 1, OK), body[..3000].to_vec()].concat());
    test.piece(true, 25, &body[3000..]);
    // A header in two parts.
    let next = frame(HEADERS, 5, 3, AGAIN);
    test.piece(false, 30, &next[..4]);
    test.piece(false, 31, &next[4..]);
    test.piece(true, 36, &frame(HEADERS, 5, 3, OK));
    let streams = test.streams();
    assert_eq!((streams.begun, streams.seen), (2, 2));
    assert_eq!((streams.first.sum_ns, streams.first.max_ns), (15 * MS, 10 * MS));
    assert_eq!((streams.routes[0].operation.as_str(), streams.routes[0].first.count), ("GET /users", 2));
}

#[test]
fn what_a_frame_carries_may_be_in_a_buffer_of_its_own() {
    let mut test = Test::new();
    let two = [begins(), frame(HEADERS, 5, 1, USERS), frame(HEADERS, 5, 3, AGAIN)].concat();
    test.piece(false, 10, &two);
    let body = frame(DATA, 1, 1, &[b'x'; 3000]);
    let (data, carried) = body.split_at(HEADER);
    let (headers, other) = (frame(HEADERS, 4, 1, b"\x8e"), frame(HEADERS, 5, 3, b"\x8e"));
    test.buffers(15, &[&headers[..5], &headers[5..], data, carried, &other]);
    let streams = test.streams();
    assert_eq!((streams.begun, streams.seen), (2, 2), "{streams:?}");
    assert_eq!((&streams.errors[..], streams.routes[0].answer_bytes), (&[("500".to_owned(), 2)][..], 3000));
}

#[test]
fn what_is_missing_is_said_and_nothing_is_made_of_it() {
    let mut test = Test::new();
    test.piece(false, 10, &[begins(), frame(HEADERS, 5, 1, USERS)].concat());
    test.piece(true, 12, &frame(HEADERS, 5, 1, OK));
    // So much comes at once that the second request is not seen; a piece is lost; what was kept is not known any more.
    test.piece(
        false,
        20,
        &[frame(HEADERS, 5, 3, AGAIN), frame(0x20, 0, 0, &[0; 1200]), frame(HEADERS, 5, 5, AGAIN)].concat(),
    );
    test.number += 1;
    test.piece(true, 24, &[frame(HEADERS, 5, 3, OK), frame(HEADERS, 5, 5, OK)].concat());
    test.piece(false, 30, &frame(HEADERS, 5, 9, AGAIN));
    test.piece(true, 31, &frame(HEADERS, 5, 9, OK));
    test.piece(false, 40, &frame(HEADERS, 5, 11, USERS));
    test.piece(true, 42, &frame(HEADERS, 5, 11, OK));
    let streams = test.streams();
    // 1, 3, the two between, 9 and 11; of these 1, 9 and 11 whole.
    assert_eq!((streams.begun, streams.seen), (6, 3), "{streams:?}");
    let routes: Vec<_> = streams.routes.iter().map(|of| (&*of.operation, of.first.count)).collect();
    assert_eq!(routes, [("GET /users", 2), ("", 1)]);
    test.piece(false, 50, b"no frame at all, whatever it is");
    assert_eq!(test.streams().begun, 6);
}

proptest! {
    #[test]
    fn any_pieces_are_survived(pieces in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..60), any::<bool>()), 0..9)) {
        let mut test = Test::new();
        for (wrote, bytes, likely) in pieces {
            let bytes = if likely { frame(HEADERS, 4, 1, &bytes) } else { bytes };
            test.piece(wrote, 1, &bytes);
        }
        test.http2.of(&test.key);
    }
}
