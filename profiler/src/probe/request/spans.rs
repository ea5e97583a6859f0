//! Which exchanges were in progress when: what a process asked while it answered.
//!
//! What a thread asks belongs to the request that it read last: it runs what it read until it has nothing left to do. What
//! it does after it has read an answer belongs to whom that was asked for. What comes in parts is read when its last part is:
//! an event loop can have read others between them. So the order of reads and sends of one thread
//! tells who asked what, also in an event loop that answers many at once, unless something else than a read (a timer, a
//! job of another thread) lets it go on.

use std::collections::VecDeque;

use profiler_common::sched::{Times, WaitCause};
use rustc_hash::FxHashMap;

use crate::{
    model::request::{Asked, Breakdown},
    probe::request::counts::Kept,
};

/// Exchanges kept: the latest ones, 48 bytes each.
const MAX_SPANS: usize = 100_000;

/// One answer in so many by another thread than the reader is chance; of more, tasks wander.
const WANDER: usize = 20;
/// One part in so many of a request without anything to do is a pause; more is time in which it was elsewhere.
const LOST: u64 = 10;

/// One exchange.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub pid: u32,
    pub tid: u32,
    /// Which peer, a number of the collector's.
    pub peer: u32,
    /// What was asked, a number among the peer's.
    pub route: u32,
    /// Whether the process asked.
    pub asks: bool,
    /// Whether the thread that read it was never without work in it, if that one answered it, too.
    pub stays: Option<bool>,
    pub began_ns: u64,
    /// When the last part was read of what the process reads: the request, or, if it asks, the answer.
    pub read_ns: u64,
    pub answered_ns: u64,
}

/// The latest exchanges.
#[derive(Debug, Default)]
pub struct Spans(VecDeque<Span>);

impl Spans {
    pub fn add(&mut self, span: Span) {
        if self.0.len() >= MAX_SPANS {
            self.0.pop_front();
        }
        self.0.push_back(span);
    }

    /// By thread, and who asked what.
    pub fn joined(&self) -> Joined {
        let mut threads: FxHashMap<(u32, u32), Thread> = FxHashMap::default();
        for span in &self.0 {
            let thread = threads.entry((span.pid, span.tid)).or_default();
            if span.asks { thread.asked.push((*span, None)) } else { thread.answered.push(*span) }
        }
        threads.values_mut().for_each(Thread::join);
        let from_ns = match self.0.len() >= MAX_SPANS {
            true => self.0.iter().map(|span| span.began_ns).min().unwrap_or(0),
            false => 0,
        };
        Joined { threads, from_ns }
    }
}

/// Who asked what.
#[derive(Debug)]
pub struct Joined {
    threads: FxHashMap<(u32, u32), Thread>,
    /// What began before is not known.
    from_ns: u64,
}

/// The exchanges of one thread, in the order in which they began.
#[derive(Debug, Default)]
struct Thread {
    answered: Vec<Span>,
    /// With the number of the request that it was asked for.
    asked: Vec<(Span, Option<usize>)>,
    /// Times from which on it worked at another request, with its number.
    turns: Vec<(u64, Option<usize>)>,
}

impl Thread {
    fn join(&mut self) {
        self.answered.sort_unstable_by_key(|span| span.began_ns);
        self.asked.sort_unstable_by_key(|(span, _)| span.began_ns);
        // Reads and sends in their order: what was read is at work until the next read.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        enum Event {
            Request(usize),
            Answer(usize),
            Sent(usize),
        }
        let answered = self.answered.iter().enumerate();
        let requests = answered
            .flat_map(|(i, span)| [span.began_ns, span.read_ns].map(|at_ns| (at_ns, Event::Request(i))));
        let asked = self.asked.iter().enumerate();
        let asked = asked.flat_map(|(i, (span, _))| {
            let [first, last] = [span.answered_ns, span.read_ns].map(|at_ns| (at_ns, Event::Answer(i)));
            [(span.began_ns, Event::Sent(i)), first, last]
        });
        let mut events: Vec<(u64, Event)> = requests.chain(asked).collect();
        events.sort_unstable();
        let mut at_work = None;
        for (time_ns, event) in events {
            match event {
                Event::Request(i) => at_work = Some(i),
                Event::Answer(i) => at_work = self.asked[i].1,
                // Who has answered asks for nothing more.
                Event::Sent(i) => {
                    self.asked[i].1 = at_work.filter(|&i| self.answered[i].answered_ns >= time_ns);
                }
            }
            if self.turns.last().is_none_or(|(_, last)| *last != at_work) {
                self.turns.push((time_ns, at_work));
            }
        }
    }
}

impl Joined {
    /// The request that a thread worked at at a moment, if it was not answered yet.
    pub fn at_work(&self, pid: u32, tid: u32, time_ns: u64) -> Option<&Span> {
        let thread = self.threads.get(&(pid, tid))?;
        let turn = thread.turns.partition_point(|(from_ns, _)| *from_ns <= time_ns).checked_sub(1)?;
        let span = thread.answered.get(thread.turns[turn].1?)?;
        (time_ns <= span.answered_ns && span.began_ns >= self.from_ns).then_some(span)
    }

    /// Where the time of a request went; `None` if what was asked meanwhile is not known any more.
    pub fn breakdown(&self, of: &Kept, name: &dyn Fn(u32) -> (String, String)) -> Option<Breakdown> {
        if of.began_ns < self.from_ns {
            return None;
        }
        let empty = Thread::default();
        let thread = self.threads.get(&(of.pid, of.tid)).unwrap_or(&empty);
        let number = thread
            .answered
            .iter()
            .position(|span| (span.began_ns, span.answered_ns) == (of.began_ns, of.answered_ns));
        let overlaps = |span: &&Span| span.began_ns < of.answered_ns && span.answered_ns > of.began_ns;
        let alone = thread.answered.iter().filter(overlaps).count() <= 1;
        let mut asked: Vec<&Span> = thread
            .asked
            .iter()
            .filter(|(span, whose)| {
                (of.began_ns..=of.answered_ns).contains(&span.began_ns)
                    && (alone || (number.is_some() && *whose == number))
            })
            .map(|(span, _)| span)
            .collect();
        asked.sort_unstable_by_key(|span| span.began_ns);

        let total_ns = of.answered_ns.saturating_sub(of.began_ns);
        let end = |span: &Span| span.answered_ns.min(of.answered_ns);
        let mut breakdown = Breakdown {
            requests: 1,
            alone: u64::from(alone),
            total_ns,
            awaiting_ns: union(asked.iter().map(|span| (span.began_ns, end(span)))),
            ..Breakdown::default()
        };
        let mut peers: Vec<u32> = asked.iter().map(|span| span.peer).collect();
        peers.sort_unstable();
        peers.dedup();
        for peer in peers {
            let of_peer = || asked.iter().filter(|span| span.peer == peer);
            let mut busy_until = 0;
            let in_sequence = of_peer().filter(|span| {
                let after = busy_until > 0 && span.began_ns >= busy_until;
                busy_until = busy_until.max(end(span));
                after
            });
            let in_sequence = in_sequence.count() as f64;
            let (label, protocol) = name(peer);
            breakdown.asked.push(Asked {
                peer: label,
                protocol,
                times: of_peer().count() as f64,
                ns: union(of_peer().map(|span| (span.began_ns, end(span)))),
                in_sequence,
            });
        }
        if let Some(times) = &of.times {
            let blocked = |cause: WaitCause| times.blocked_ns[cause as usize];
            breakdown.on_cpu_ns = times.on_cpu_ns;
            breakdown.run_queue_ns = times.run_queue_ns;
            breakdown.disk_ns = blocked(WaitCause::Disk) + blocked(WaitCause::PageFault);
            breakdown.lock_ns = blocked(WaitCause::Lock);
            breakdown.sleep_ns = blocked(WaitCause::Sleep);
            // Who is asked through a Unix socket is waited for as at a pipe.
            let pipe_ns = if asked.is_empty() { blocked(WaitCause::Pipe) } else { 0 };
            breakdown.process_ns = blocked(WaitCause::Child) + pipe_ns;
            // Another thread may hand over the answers that it asked for; what it waited for itself was none of these.
            let itself_ns =
                [WaitCause::Network, WaitCause::Pipe, WaitCause::Poll].map(blocked).iter().sum::<u64>();
            let handed_over_ns = breakdown.awaiting_ns.saturating_sub(itself_ns);
            breakdown.park_ns = blocked(WaitCause::Park).saturating_sub(handed_over_ns);
        }
        breakdown.settle();
        Some(breakdown)
    }
}

/// Requests whose threads did what they did for them, as far as that is known of any.
///
/// Where many are answered by another thread than the one that read them, tasks wander from thread to thread (Go, tokio, virtual
/// threads of Java): a thread that has nothing to do in the middle of a request has lost it to another, for as long as that was.
pub fn followed(kept: &[Kept]) -> Vec<&Kept> {
    let known: Vec<(&Kept, &Times)> =
        kept.iter().filter_map(|kept| Some((kept, kept.times.as_ref()?))).collect();
    if known.is_empty() {
        return kept.iter().collect();
    }
    let wander = wander(kept);
    let stayed = known.into_iter().filter(|(kept, _)| !wander || kept.stays() == Some(true));
    stayed.map(|(kept, _)| kept).collect()
}

/// Whether tasks wander from thread to thread.
pub fn wander(kept: &[Kept]) -> bool {
    let elsewhere = kept.iter().filter(|kept| kept.times.is_none()).count();
    elsewhere * WANDER > kept.len()
}

impl Kept {
    /// Whether its thread was never without anything to do for long, if it is known what it did.
    pub fn stays(&self) -> Option<bool> {
        let times = self.times.as_ref()?;
        let idle = [WaitCause::Park, WaitCause::Poll, WaitCause::Sleep]
            .map(|cause| times.blocked_ns[cause as usize]);
        Some(idle.iter().sum::<u64>() * LOST <= self.answered_ns.saturating_sub(self.began_ns))
    }
}

impl Breakdown {
    /// What is left goes to the rest. A thread can be on a CPU while an answer is awaited: more than all is not explained.
    fn settle(&mut self) {
        let blocked = self.disk_ns + self.lock_ns + self.sleep_ns + self.process_ns + self.park_ns;
        let known = self.on_cpu_ns + self.run_queue_ns + blocked + self.awaiting_ns;
        self.other_ns = self.total_ns.saturating_sub(known);
    }

    /// The mean of some.
    pub fn mean(some: &[Breakdown]) -> Option<Breakdown> {
        let n = u64::try_from(some.len()).ok().filter(|n| *n > 0)?;
        let of = |what: fn(&Breakdown) -> u64| some.iter().map(what).sum::<u64>() / n;
        let mut asked: Vec<Asked> = Vec::new();
        for one in some.iter().flat_map(|one| &one.asked) {
            let known = asked.iter_mut().find(|known| known.peer == one.peer);
            match known {
                Some(known) => {
                    known.times += one.times;
                    known.ns += one.ns;
                    known.in_sequence += one.in_sequence;
                }
                None => asked.push(one.clone()),
            }
        }
        for one in &mut asked {
            one.times /= n as f64;
            one.ns /= n;
            one.in_sequence /= n as f64;
        }
        asked.sort_by_key(|one| std::cmp::Reverse(one.ns));
        Some(Breakdown {
            requests: n,
            alone: some.iter().map(|one| one.alone).sum(),
            total_ns: of(|one| one.total_ns),
            on_cpu_ns: of(|one| one.on_cpu_ns),
            run_queue_ns: of(|one| one.run_queue_ns),
            disk_ns: of(|one| one.disk_ns),
            lock_ns: of(|one| one.lock_ns),
            sleep_ns: of(|one| one.sleep_ns),
            process_ns: of(|one| one.process_ns),
            park_ns: of(|one| one.park_ns),
            asked,
            awaiting_ns: of(|one| one.awaiting_ns),
            other_ns: of(|one| one.other_ns),
        })
    }
}

/// Time covered by at least one of some intervals, which are in the order in which they begin, ns.
fn union(intervals: impl Iterator<Item = (u64, u64)>) -> u64 {
    let (mut covered, mut until) = (0, 0);
    for (from, to) in intervals {
        let from = from.max(until);
        covered += to.saturating_sub(from);
        until = until.max(to);
    }
    covered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(peer: u32, asks: bool, began_ns: u64, answered_ns: u64) -> Span {
        let read_ns = if asks { answered_ns } else { began_ns };
        Span { pid: 1, tid: 2, peer, route: 0, asks, stays: Some(true), began_ns, read_ns, answered_ns }
    }

    #[test]
    fn what_comes_in_parts_is_at_work_when_its_last_part_is_read() {
        let mut spans = Spans::default();
        // The second request's first part comes before the first request, its last one after it; then an answer in two parts.
        for it in [
            span(0, false, 20, 100),
            Span { read_ns: 30, ..span(0, false, 10, 90) },
            Span { read_ns: 60, ..span(9, true, 25, 40) },
            span(9, true, 35, 50),
        ] {
            spans.add(it);
        }
        let joined = spans.joined();
        let at_work = |time_ns| joined.at_work(1, 2, time_ns).map(|span| span.began_ns);
        assert_eq!([15, 25, 32].map(at_work), [Some(10), Some(20), Some(10)], "a request in two parts");
        assert_eq!([45, 55, 65].map(at_work), [Some(20), Some(10), Some(20)], "an answer in two parts");
    }

    fn kept(began_ns: u64, answered_ns: u64) -> Kept {
        Kept { pid: 1, tid: 2, began_ns, answered_ns, times: None }
    }

    fn name(peer: u32) -> (String, String) {
        (format!("p{peer}"), String::new())
    }

    #[test]
    fn an_event_loop_asks_for_whom_it_read_last() {
        let mut spans = Spans::default();
        // Two requests at once: each asks peer 9; the first one asks again when it has its answer.
        for it in [
            span(0, false, 10, 100),
            span(9, true, 12, 50),
            span(0, false, 20, 90),
            span(9, true, 22, 60),
            span(9, true, 51, 80),
        ] {
            spans.add(it);
        }
        let joined = spans.joined();
        let first = joined.breakdown(&kept(10, 100), &name).unwrap();
        assert_eq!((first.asked[0].times, first.asked[0].ns, first.alone), (2.0, 67, 0));
        assert_eq!(first.asked[0].in_sequence, 1.0);
        let at_work = |time_ns| joined.at_work(1, 2, time_ns).map(|span| span.began_ns);
        assert_eq!(
            [11, 25, 55, 70].map(at_work),
            [Some(10), Some(20), Some(10), Some(20)],
            "the last answer's"
        );
        assert_eq!([5, 101].map(at_work), [None, None], "nothing read yet, and answered");
        let second = joined.breakdown(&kept(20, 90), &name).unwrap();
        assert_eq!((second.asked[0].times, second.awaiting_ns, second.other_ns), (1.0, 38, 32));
        let mean = Breakdown::mean(&[first, second]).unwrap();
        assert_eq!((mean.requests, mean.asked[0].times), (2, 1.5));
    }

    #[test]
    fn of_tasks_that_wander_those_are_followed_that_stay() {
        let with = |parked_ns: u64| {
            let mut times = Times::default();
            (times.on_cpu_ns, times.blocked_ns[WaitCause::Park as usize]) = (100 - parked_ns, parked_ns);
            Kept { times: Some(times), ..kept(0, 100) }
        };
        let of = |all: &[Kept]| followed(all).len();
        assert_eq!(of(&[with(0), with(60)]), 2, "a thread that waits for its request");
        let (stays, elsewhere, unknown) = (with(5), with(60), kept(0, 100));
        assert_eq!(of(&[stays, elsewhere, unknown]), 1);
        assert_eq!(of(&[unknown, unknown]), 2, "all that is known is what they asked");
        assert_eq!(of(&[[with(60); 30].as_slice(), &[unknown]].concat()), 30, "once is chance");
    }

    #[test]
    fn what_nobody_asked_for_belongs_to_nobody() {
        let mut spans = Spans::default();
        for it in [span(0, false, 10, 20), span(9, true, 30, 40), span(0, false, 50, 90)] {
            spans.add(it);
        }
        let of = spans.joined().breakdown(&kept(50, 90), &name).unwrap();
        assert_eq!((of.asked.len(), of.alone, of.other_ns), (0, 1, 40));
    }

    #[test]
    fn sleep_and_other_processes_are_parts_of_their_own() {
        let mut spans = Spans::default();
        spans.add(span(0, false, 0, 100));
        let mut times = Times { on_cpu_ns: 10, ..Times::default() };
        for (cause, ns) in [(WaitCause::Sleep, 30), (WaitCause::Child, 20), (WaitCause::Pipe, 15)] {
            times.blocked_ns[cause as usize] = ns;
        }
        let of = |spans: &Spans| {
            let of = spans.joined().breakdown(&Kept { times: Some(times), ..kept(0, 100) }, &name).unwrap();
            (of.sleep_ns, of.process_ns, of.awaiting_ns, of.other_ns)
        };
        assert_eq!(of(&spans), (30, 35, 0, 25));
        spans.add(span(9, true, 50, 65));
        assert_eq!(of(&spans), (30, 20, 15, 25), "a Unix socket's answer is not counted twice");
    }

    #[test]
    fn intervals_that_overlap_count_once() {
        assert_eq!(union([(1, 5), (2, 3), (4, 9), (20, 21)].into_iter()), 9);
    }
}
