//! What system calls a target made, how long they took, what they waited for, and what was wrong with them: the
//! values that the system-call probe's counts become, and that report, JSON and recordings share.

pub use profiler_common::syscall::WaitKind;
use serde::{Deserialize, Serialize};

use crate::model::{
    distribution::Summary,
    finding::Severity,
    stack::{StackId, ThreadKey},
};

/// Everything known about the system calls of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Calls {
    /// By process, or by thread where they are kept apart, and system call; most time first.
    pub calls: Vec<CallCount>,
    /// Waits by process and kind, most time first.
    pub waits: Vec<KindWaits>,
    /// Reads and writes by what was read and written, most time first.
    pub objects: Vec<ObjectIo>,
    /// Objects that are in no entry of `objects` but its last, because there were too many.
    pub objects_unlisted: u64,
    /// The slowest calls that are no idle waits, slowest first.
    pub slow: Vec<SlowCall>,
    /// The slowest of each part of the run.
    pub slow_by_part: SlowByPart,
    /// Many small round trips, reads or writes where few large ones would do; most time first.
    pub chatty: Vec<Chatty>,
    /// Calls that failed at a high rate; most failures first.
    pub storms: Vec<ErrorStorm>,
    /// For how long calls were watched, ns; zero where that is not known: all the time.
    pub watched_ns: u64,
    /// In how many windows, where watching all the time was too dear; zero where it was not.
    pub windows: u64,
}

impl Calls {
    /// Every stack that something here refers to; some more than once.
    pub fn stacks(&self) -> impl Iterator<Item = StackId> + '_ {
        let waits = self.waits.iter().filter_map(|waits| waits.stack);
        let slow = self.slow.iter().chain(self.slow_by_part.parts.iter().flatten());
        let slow = slow.filter_map(|slow| slow.stack);
        let chatty = self.chatty.iter().filter_map(|chatty| chatty.stack);
        waits.chain(slow).chain(chatty)
    }

    /// Attempts of a process to connect, by peer where that is known: of those that took long enough to be told.
    pub fn connects_by_peer(&self, pid: u32) -> impl Iterator<Item = &KindWaits> {
        let connects = move |of: &&KindWaits| of.pid == pid && of.kind == WaitKind::Connect;
        self.waits.iter().filter(connects).filter(|of| !of.peer.is_empty())
    }
}

/// What happened since the live view was last shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interval {
    /// Calls that returned.
    pub calls: u64,
    /// Of them, failed.
    pub failed: u64,
    /// The slowest that was no idle wait, if any was slow enough to be reported.
    pub slowest: Option<SlowCall>,
}

/// All calls of one system call by one process or thread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallCount {
    /// Whose: thread id zero stands for all threads of the process.
    pub thread: ThreadKey,
    /// Name of the process.
    pub process: String,
    /// Name of the thread; empty for all.
    pub thread_name: String,
    /// Name of the system call.
    pub syscall: String,
    /// Calls that returned, by their length.
    pub lengths: Summary,
    /// Of their time, blocked, ns.
    pub blocked_ns: u64,
    /// Of their time, waiting for a CPU, ns.
    pub run_queue_ns: u64,
    /// Calls that failed, by error, most first.
    pub errors: Vec<(String, u64)>,
    /// Calls that never returned, because the thread ended in them.
    pub unfinished: u64,
}

impl CallCount {
    /// Calls that failed.
    pub fn failed(&self) -> u64 {
        self.errors.iter().map(|(_, n)| n).sum()
    }

    /// Of the time in calls, on a CPU, ns.
    pub fn on_cpu_ns(&self) -> u64 {
        self.lengths.sum_ns.saturating_sub(self.blocked_ns).saturating_sub(self.run_queue_ns)
    }
}

/// Calls of one kind of one process that blocked, or took longer than 10 us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindWaits {
    /// Process id.
    pub pid: u32,
    /// Name of the process.
    pub process: String,
    /// What for.
    pub kind: WaitKind,
    /// With an internet socket, who was at its other end: `ADDRESS:PORT`, or `clients of :PORT` for those of the process's
    /// own port; else empty.
    pub peer: String,
    /// By their length.
    pub lengths: Summary,
    /// Where most of the time was waited.
    pub stack: Option<StackId>,
}

/// Reads and writes of one file, socket or pipe by one process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectIo {
    /// Process id.
    pub pid: u32,
    /// Name of the process.
    pub process: String,
    /// Path, or socket with its peer, or pipe; descriptor number where that is not known.
    pub object: String,
    /// Descriptors it was used through, one after the other or at once.
    pub descriptors: u64,
    /// Calls that moved data, or found the end of it.
    pub calls: u64,
    /// Data moved, bytes.
    pub bytes: u64,
    /// Time in these calls, ns.
    pub ns: u64,
    /// Of that, blocked, ns.
    pub blocked_ns: u64,
    /// Reads that followed a write.
    pub round_trips: u64,
    /// Time from each such write to the end of its read, ns.
    pub round_trip_ns: u64,
    /// Half of the calls moved no more than about so much, bytes (a power of two).
    pub median_bytes: u64,
}

/// One slow call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowCall {
    /// Whose.
    pub thread: ThreadKey,
    /// Name of the process.
    pub process: String,
    /// Name of the system call.
    pub syscall: String,
    /// What for.
    pub kind: WaitKind,
    /// When it began: CLOCK_MONOTONIC, ns.
    pub start_ns: u64,
    /// How long it took, ns.
    pub duration_ns: u64,
    /// Of that, blocked, ns.
    pub blocked_ns: u64,
    /// Of that, waiting for a CPU, ns.
    pub run_queue_ns: u64,
    /// What it returned: the error's name, or the number.
    pub result: String,
    /// The arguments that matter, decoded.
    pub arguments: String,
    /// Where it blocked, or else was at its end.
    pub stack: Option<StackId>,
}

impl SlowCall {
    /// When it returned: CLOCK_MONOTONIC, ns.
    pub fn end_ns(&self) -> u64 {
        self.start_ns.saturating_add(self.duration_ns)
    }
}

/// The slowest calls that are no idle waits in each part of a run, by when they returned. The parts are equal, and twice as
/// long once there are too many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowByPart {
    /// When the first part begins: CLOCK_MONOTONIC, ns.
    pub start_ns: u64,
    /// Length of each, ns.
    pub length_ns: u64,
    /// Of each, slowest first; none where none was slow enough to be reported.
    pub parts: Vec<Vec<SlowCall>>,
}

impl Default for SlowByPart {
    fn default() -> SlowByPart {
        SlowByPart::new(0)
    }
}

impl SlowByPart {
    /// Most parts.
    pub const PARTS: usize = 64;
    /// Calls kept of each.
    pub const KEPT: usize = 3;

    /// For a run that begins now: CLOCK_MONOTONIC, ns.
    pub fn new(start_ns: u64) -> SlowByPart {
        SlowByPart { start_ns, length_ns: 1_000_000_000, parts: Vec::new() }
    }

    /// Whether a call would be among the slowest of its part.
    pub fn wants(&self, end_ns: u64, duration_ns: u64) -> bool {
        let of_part = self.parts.get(self.part(end_ns)).and_then(|part| part.get(Self::KEPT - 1));
        of_part.is_none_or(|last| last.duration_ns < duration_ns)
    }

    /// Takes in a call.
    pub fn add(&mut self, call: SlowCall) {
        while self.part(call.end_ns()) >= Self::PARTS {
            self.double();
        }
        let at = self.part(call.end_ns());
        if self.parts.len() <= at {
            self.parts.resize(at + 1, Vec::new());
        }
        self.parts[at].push(call);
        keep_slowest(&mut self.parts[at]);
    }

    /// The same in so many parts at most.
    pub fn coarser(&self, most: usize) -> SlowByPart {
        let mut coarser = self.clone();
        while coarser.parts.len() > most.max(1) {
            coarser.double();
        }
        coarser
    }

    fn part(&self, end_ns: u64) -> usize {
        (end_ns.saturating_sub(self.start_ns) / self.length_ns) as usize
    }

    fn double(&mut self) {
        self.length_ns = self.length_ns.saturating_mul(2);
        self.parts = self.parts.chunks(2).map(<[_]>::concat).collect();
        self.parts.iter_mut().for_each(keep_slowest);
    }
}

fn keep_slowest(calls: &mut Vec<SlowCall>) {
    calls.sort_by_key(|call| std::cmp::Reverse(call.duration_ns));
    calls.truncate(SlowByPart::KEPT);
}

/// Many small round trips to one peer, or tiny reads or writes of one file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chatty {
    /// Thread that did it last.
    pub thread: ThreadKey,
    /// Name of the process.
    pub process: String,
    /// The peer or file.
    pub object: String,
    /// Round trips one after the other, rather than small reads or writes.
    pub round_trips: bool,
    /// How many.
    pub count: u64,
    /// In this time, ns: from the first to the last.
    pub span_ns: u64,
    /// Time they took, ns.
    pub total_ns: u64,
    /// Half of them moved no more than about so much, bytes.
    pub median_bytes: u64,
    /// Requests that the process answered in the same time; zero if it serves nobody.
    pub requests: u64,
    /// Where most of them come from.
    pub stack: Option<StackId>,
}

impl Chatty {
    /// How bad.
    pub fn severity(&self) -> Severity {
        Severity::Warning
    }

    /// How many a second.
    pub fn per_second(&self) -> f64 {
        self.count as f64 * 1e9 / self.span_ns.max(1) as f64
    }
}

/// A system call of a process that failed at a high rate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ErrorStorm {
    /// Process id.
    pub pid: u32,
    /// Name of the process.
    pub process: String,
    /// Name of the system call.
    pub syscall: String,
    /// Calls while it lasted.
    pub calls: u64,
    /// Of them, failed with an error that is not expected.
    pub failed: u64,
    /// The most common of these errors.
    pub errno: String,
    /// How long it was seen, ns.
    pub lasted_ns: u64,
}

impl ErrorStorm {
    /// How bad.
    pub fn severity(&self) -> Severity {
        Severity::Warning
    }
}

#[cfg(test)]
pub(crate) mod fixtures {
    //! Calls made by hand.

    use super::*;

    /// One that returned at a time, ns.
    pub fn slow_call(end_ns: u64, duration_ns: u64) -> SlowCall {
        SlowCall {
            thread: ThreadKey { pid: 7, tid: 8 },
            process: "app".into(),
            syscall: "fsync".into(),
            kind: WaitKind::FileSync,
            start_ns: end_ns - duration_ns,
            duration_ns,
            blocked_ns: duration_ns / 2,
            run_queue_ns: 0,
            result: "0".into(),
            arguments: "fd 5 /data/x".into(),
            stack: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{fixtures::slow_call, *};

    const S: u64 = 1_000_000_000;

    fn lengths(of: &SlowByPart) -> Vec<Vec<u64>> {
        of.parts.iter().map(|part| part.iter().map(|call| call.duration_ns).collect()).collect()
    }

    #[test]
    fn each_part_keeps_its_slowest() {
        let mut of = SlowByPart::new(10 * S);
        for (at, ns) in [(10, 5), (10, 7), (12, 1), (10, 6), (10, 4), (10, 9)] {
            assert_eq!(of.wants(at * S, ns), ns != 4, "{ns}");
            of.add(slow_call(at * S, ns));
        }
        assert_eq!(lengths(&of), [vec![9, 7, 6], vec![], vec![1]]);
        assert_eq!(lengths(&of.coarser(2)), [vec![9, 7, 6], vec![1]]);
        assert_eq!((lengths(&of.coarser(0)), of.coarser(0).length_ns), (vec![vec![9, 7, 6]], 4 * S));
    }

    proptest! {
        #[test]
        fn parts_are_bounded_and_lose_no_slowest(calls in proptest::collection::vec((0u64..5000, 1u64..1000), 1..200)) {
            let mut of = SlowByPart::new(0);
            for &(ms, ns) in &calls {
                of.add(slow_call(S + ms * 100_000_000, ns));
            }
            prop_assert!(of.parts.len() <= SlowByPart::PARTS && of.parts.iter().all(|part| part.len() <= SlowByPart::KEPT));
            for (i, part) in (0u64..).zip(&of.parts) {
                let ends = i * of.length_ns..(i + 1) * of.length_ns;
                prop_assert!(part.iter().all(|call| ends.contains(&call.end_ns())));
                let inside = calls.iter().filter(|(ms, _)| ends.contains(&(S + ms * 100_000_000)));
                prop_assert_eq!(part.first().map(|call| call.duration_ns), inside.map(|(_, ns)| *ns).max());
            }
        }
    }
}
