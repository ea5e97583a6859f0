//! How soon what failed is tried again. Records come when exchanges end, which is not the order in which they began: so some are kept
//! and put in order before they are joined.

use std::collections::VecDeque;

use profiler_common::request::{Connection, PeerKey};
use rustc_hash::FxHashMap;

use crate::{
    model::request::Retries,
    probe::request::{
        counts::Durations,
        protocol::{Operation, Protocol},
    },
};

/// Things that were asked and failed, that are told apart; of each, attempts that are put in order at once, 32 bytes each, and
/// failures that wait to be tried again.
const MAX_ASKED: usize = 256;
const MAX_ATTEMPTS: usize = 1024;
const MAX_FAILED: usize = 256;
/// What fails and is asked for again after this is asked for anew, ns.
const FORGOTTEN_NS: u64 = 60_000_000_000;
/// Told of each peer.
const MAX_TOLD: usize = 5;
const SECOND_NS: u64 = 1_000_000_000;
/// Where an error need not mean that anything is wrong: of names many are looked for in vain.
const UNTOLD: [&str; 1] = ["DNS"];
/// An answer of HTTP that asks for fewer requests: RFC 6585, 4.
const TOO_MANY: &str = "429";

/// What failed and what was tried again, of all peers.
#[derive(Default)]
pub struct Retried(FxHashMap<Words, Asked>);

/// Whom, and the first bytes that it was asked with; none of an attempt to connect.
type Words = (PeerKey, Box<[u8]>);

/// One attempt.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    /// The thread that made it.
    tid: u32,
    began_ns: u64,
    ended_ns: u64,
    failed: bool,
}

/// All that was asked with the same words.
#[derive(Default)]
struct Asked {
    operation: String,
    error: String,
    /// Not in order yet.
    attempts: Vec<Attempt>,
    counts: Counts,
}

/// What attempts in order add up to.
#[derive(Clone, Default)]
struct Counts {
    /// Threads of those that failed and have not been tried again, and when they ended.
    failed: VecDeque<(u32, u64)>,
    /// The second that the last attempt began in, and what there was in it.
    second: u64,
    now: [u64; 3],
    seconds: u64,
    /// Attempts, those that failed, and those again: of seconds with one of the last.
    all: [u64; 3],
    pauses: Durations,
}

impl Counts {
    fn add(&mut self, of: &Attempt) {
        if of.began_ns / SECOND_NS != self.second {
            self.settle();
            self.second = of.began_ns / SECOND_NS;
        }
        self.failed.retain(|(_, ended_ns)| of.began_ns.saturating_sub(*ended_ns) <= FORGOTTEN_NS);
        let again = self.failed.iter().position(|&(tid, ended_ns)| tid == of.tid && ended_ns <= of.began_ns);
        if let Some((_, ended_ns)) = again.and_then(|at| self.failed.remove(at)) {
            self.pauses.add(of.began_ns - ended_ns, 1);
            self.now[2] += 1;
        }
        self.now[0] += 1;
        self.now[1] += u64::from(of.failed);
        // Where very many have failed at once the first ones are kept: pauses seem longer rather than shorter.
        if of.failed && self.failed.len() < MAX_FAILED {
            self.failed.push_back((of.tid, of.ended_ns));
        }
    }

    /// The second is over.
    fn settle(&mut self) {
        if self.now[2] > 0 {
            self.seconds += 1;
            self.all.iter_mut().zip(self.now).for_each(|(all, now)| *all += now);
        }
        self.now = [0; 3];
    }
}

impl Asked {
    fn add(&mut self, attempt: Attempt) {
        if self.attempts.len() >= MAX_ATTEMPTS {
            self.attempts.sort_by_key(|of| of.began_ns);
            self.attempts.drain(..MAX_ATTEMPTS / 2).for_each(|of| self.counts.add(&of));
        }
        self.attempts.push(attempt);
    }

    /// How many attempts are known.
    fn tried(&self) -> usize {
        self.attempts.len() + self.counts.all[0] as usize
    }

    fn retries(&self) -> Retries {
        let mut counts = self.counts.clone();
        let mut rest = self.attempts.clone();
        rest.sort_by_key(|of| of.began_ns);
        rest.iter().for_each(|of| counts.add(of));
        counts.settle();
        let [attempts, failed, _] = counts.all;
        Retries {
            operation: self.operation.clone(),
            error: self.error.clone(),
            seconds: counts.seconds,
            attempts,
            failed,
            pauses: counts.pauses.summary(),
        }
    }
}

impl Retried {
    /// An exchange that the process asked for.
    pub fn exchange(
        &mut self,
        peer: PeerKey,
        of: &Connection,
        protocol: Option<&Protocol>,
        operation: Option<&Operation>,
    ) {
        let (Some(protocol), Some(operation)) = (protocol, operation) else { return };
        let error = operation.error.as_deref().filter(|error| is_failure(protocol, error));
        if error.is_none() && self.0.is_empty() {
            return;
        }
        let attempt = attempt(of, of.began_ns, of.answered_ns, error.is_some());
        self.add((peer, words(of)), attempt, &operation.name, error);
    }

    /// A question whose connection ended before an answer.
    pub fn unanswered(&mut self, peer: PeerKey, of: &Connection, operation: Option<&Operation>) {
        let name = operation.map_or("", |operation| &operation.name);
        self.add((peer, words(of)), attempt(of, of.began_ns, of.ended_ns, true), name, Some("no answer"));
    }

    /// An attempt to connect that failed.
    pub fn connect(&mut self, peer: PeerKey, of: &Connection) {
        let attempt = attempt(of, of.opened_ns, of.ended_ns, true);
        self.add((peer, Box::default()), attempt, "connect", Some("no connection"));
    }

    fn add(&mut self, key: Words, attempt: Attempt, name: &str, error: Option<&str>) {
        if let Some(asked) = self.0.get_mut(&key) {
            asked.add(attempt);
        } else if let Some(error) = error {
            // What has never failed is not looked at.
            if self.0.len() >= MAX_ASKED {
                self.make_room();
            }
            let (operation, error) = (name.to_owned(), error.to_owned());
            let mut asked = Asked { operation, error, ..Asked::default() };
            asked.add(attempt);
            self.0.insert(key, asked);
        }
    }

    /// Forgets the half that was tried least.
    fn make_room(&mut self) {
        let mut tried: Vec<usize> = self.0.values().map(Asked::tried).collect();
        let (_, &mut half, _) = tried.select_nth_unstable(MAX_ASKED / 2);
        let mut too_many = self.0.len() - MAX_ASKED / 2;
        self.0.retain(|_, asked| {
            let goes = asked.tried() <= half && too_many > 0;
            too_many -= usize::from(goes);
            !goes
        });
    }

    /// What was tried again of a peer, most first.
    pub fn of(&self, peer: &PeerKey) -> Vec<Retries> {
        let its = self.0.iter().filter(|((of, _), _)| of == peer).map(|(_, asked)| asked.retries());
        let mut retries: Vec<Retries> = its.filter(|of| of.pauses.count > 0).collect();
        retries.sort_by(|a, b| (b.pauses.count, &a.operation).cmp(&(a.pauses.count, &b.operation)));
        retries.truncate(MAX_TOLD);
        retries
    }
}

fn attempt(of: &Connection, began_ns: u64, ended_ns: u64, failed: bool) -> Attempt {
    Attempt { tid: of.tid, began_ns, ended_ns, failed }
}

/// Whether an error means that the other side could not, and not that it would not.
fn is_failure(protocol: &Protocol, error: &str) -> bool {
    match protocol.name {
        "HTTP" => error.starts_with('5') || error == TOO_MANY,
        name => !UNTOLD.contains(&name),
    }
}

/// What tells a question from others: its first bytes.
fn words(of: &Connection) -> Box<[u8]> {
    of.request[..(of.request_len as usize).min(of.request.len())].into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn retries(attempts: impl IntoIterator<Item = (u64, u64, bool)>) -> Retries {
        by_threads(attempts.into_iter().map(|(began, ended, failed)| (7, began, ended, failed)))
    }

    fn by_threads(attempts: impl IntoIterator<Item = (u32, u64, u64, bool)>) -> Retries {
        let mut asked = Asked::default();
        for (tid, began, ended, failed) in attempts {
            asked.add(Attempt { tid, began_ns: began * MS, ended_ns: ended * MS, failed });
        }
        asked.retries()
    }

    #[test]
    fn a_pause_is_from_a_failure_to_the_next_attempt() {
        // 50 a second for two seconds, each tried again after 10 ms; they are told of in the wrong order.
        let storm = retries((0..100).rev().map(|i| (i * 20, i * 20 + 10, true)));
        assert_eq!((storm.seconds, storm.attempts, storm.failed, storm.pauses.count), (2, 100, 100, 99));
        assert!(storm.pauses.p50_ns.abs_diff(10 * MS) < MS, "{storm:?}");
        let backs_off = retries((0..8).map(|i| (100 << i, (100 << i) + 1, true)));
        assert_eq!((backs_off.attempts, backs_off.pauses.count), (8, 7));
        assert!(backs_off.pauses.p50_ns > 700 * MS, "{backs_off:?}");
    }

    #[test]
    fn threads_that_wait_a_second_each_do_not_storm() {
        let each = |worker: u32| (0..10).map(move |i| (worker, u64::from(worker) * 50 + i * 1000));
        let many = by_threads((0..20).flat_map(each).map(|(tid, at)| (tid, at, at + 1, true)));
        assert!(many.pauses.count == 180 && many.pauses.p50_ns > 900 * MS, "{many:?}");
    }

    #[test]
    fn only_seconds_in_which_it_is_tried_again_count() {
        let fine = |from: u64| (from..from + 40).map(|i| (i * 100, i * 100 + 5, false));
        let broken = (40..50).map(|i| (i * 100, i * 100 + 5, true));
        let of = retries(fine(0).chain(broken).chain(fine(50)));
        assert_eq!((of.seconds, of.attempts, of.failed, of.pauses.count), (2, 20, 10, 10), "{of:?}");
        assert_eq!(retries([(0, 1, true), (70_000, 70_001, true)]).pauses.count, 0, "it is asked for anew");
    }

    #[test]
    fn more_than_is_kept_is_added_up() {
        let of = retries((0..5000).map(|i| (i, i, i % 2 == 0)));
        assert_eq!((of.attempts, of.failed, of.pauses.count), (5000, 2500, 2500));
    }

    #[test]
    fn what_is_asked_with_other_words_is_no_repetition() {
        let protocol = crate::probe::request::protocol::PROTOCOLS[0];
        let mut retried = Retried::default();
        let mut ask = |path: &str, error: Option<&str>, at: u64| {
            // SAFETY: integers only.
            let mut of: Connection = unsafe { std::mem::zeroed() };
            let words = format!("GET {path} HTTP/1.1\r\n");
            of.request[..words.len()].copy_from_slice(words.as_bytes());
            (of.request_len, of.began_ns, of.answered_ns) = (words.len() as u32, at * MS, at * MS);
            let operation = Operation {
                name: "GET /:id".into(),
                error: error.map(str::to_owned),
                ..Operation::default()
            };
            retried.exchange(PeerKey::default(), &of, Some(protocol), Some(&operation));
            retried.of(&PeerKey::default()).first().map_or(0, |of| of.pauses.count)
        };
        assert_eq!(ask("/1", Some("404"), 0), 0);
        assert_eq!(ask("/1", Some("404"), 1), 0, "that is no failure");
        assert_eq!([ask("/1", Some("503"), 2), ask("/2", Some("503"), 3), ask("/1", None, 4)], [0, 0, 1]);
        assert_eq!([ask("/3", Some("429"), 5), ask("/3", Some("429"), 6)], [1, 1]);
    }
}
