//! Chatty I/O: many small round trips to one peer, or tiny reads and writes of one file, from one place in the code,
//! where a batch would do (the N+1 problem).

use std::collections::BTreeMap;

use crate::model::{
    stack::{StackId, ThreadKey},
    syscall::{Chatty, ObjectIo},
};

/// Fewer round trips, one after the other, are no pattern.
const MIN_ROUND_TRIPS: u64 = 50;
/// Fewer small reads or writes of a file are none.
const MIN_SMALL: u64 = 1000;
/// Half of a file's calls must move no more than this, bytes.
const SMALL_BYTES: u64 = 512;
/// Less often a second is nobody's trouble.
const MIN_PER_SECOND: f64 = 20.0;
/// Share of a descriptor's calls that the writes and reads of round trips must make up: else it is a pipeline, whose
/// writes do not wait for answers, or a stream.
const MIN_SHARE: f64 = 0.6;
/// By so much the most common place must lead among those that were looked at, as far as there are any.
const MIN_STACK_LEAD: f64 = 0.3;
/// Fewer looks say nothing about where it comes from: just-in-time compilers move a function more often than that.
const MIN_LOOKED_AT: u64 = 20;
/// So few questions for each request that the process answers are as it should be, and so many are the N+1 problem, whichever
/// place in the code they come from.
const FEW_PER_REQUEST: f64 = 3.0;
const MANY_PER_REQUEST: f64 = 10.0;
/// Messages larger than this are no small talk, bytes.
const MAX_MESSAGE_BYTES: u64 = 16 * 1024;

/// What was read and written of one object.
#[derive(Clone, Debug, Default)]
pub struct FdActivity {
    /// Thread that did it last.
    pub thread: ThreadKey,
    /// The sums.
    pub io: ObjectIo,
    /// A file, not a socket or pipe.
    pub is_file: bool,
    /// The process answers here, and does not ask.
    pub serves: bool,
    /// From the first call to the last, ns.
    pub span_ns: u64,
    /// Where most of it comes from.
    pub stack: Option<StackId>,
    /// By how much that place leads, from 0 to 1.
    pub stack_share: f64,
    /// How many calls were looked at for that.
    pub looked_at: u64,
}

/// What is chatty, most time first.
pub fn find(activities: impl IntoIterator<Item = FdActivity>) -> Vec<Chatty> {
    let activities: Vec<FdActivity> = activities.into_iter().collect();
    // What a process answers: on each connection one request more than it has answered and been asked again.
    let mut requests: BTreeMap<u32, u64> = BTreeMap::new();
    for activity in activities.iter().filter(|activity| activity.serves && !activity.is_file) {
        *requests.entry(activity.thread.pid).or_default() +=
            activity.io.round_trips + activity.io.descriptors;
    }
    let answered = |activity: &FdActivity| requests.get(&activity.thread.pid).copied().unwrap_or(0);
    let mut found: Vec<Chatty> = activities
        .into_iter()
        .filter_map(|activity| {
            let requests = answered(&activity);
            judge(activity, requests)
        })
        .collect();
    found.sort_by_key(|chatty| std::cmp::Reverse(chatty.total_ns));
    found
}

fn judge(activity: FdActivity, requests: u64) -> Option<Chatty> {
    let io = &activity.io;
    // What is asked once or twice for each request is asked as it should be; what is asked over and over, from wherever.
    let per_request = (requests > 0).then(|| io.round_trips as f64 / requests as f64);
    if per_request.is_some_and(|of| of < FEW_PER_REQUEST) && !activity.is_file {
        return None;
    }
    let many = per_request.is_some_and(|of| of >= MANY_PER_REQUEST);
    // A pair of pipe ends or an event descriptor talks to the process itself.
    let asks = !activity.is_file && !activity.serves && !io.object.starts_with("anon_inode:");
    let in_turns = io.round_trips as f64 * 2.0 >= io.calls as f64 * MIN_SHARE;
    let round_trips =
        asks && io.round_trips >= MIN_ROUND_TRIPS && in_turns && io.median_bytes <= MAX_MESSAGE_BYTES;
    let tiny = activity.is_file && io.calls >= MIN_SMALL && io.median_bytes <= SMALL_BYTES;
    let from_everywhere = activity.stack.is_some()
        && activity.looked_at >= MIN_LOOKED_AT
        && activity.stack_share < MIN_STACK_LEAD;
    if !(round_trips || tiny) || (from_everywhere && !many) {
        return None;
    }
    let chatty = Chatty {
        thread: activity.thread,
        process: io.process.clone(),
        object: io.object.clone(),
        round_trips,
        count: if round_trips { io.round_trips } else { io.calls },
        span_ns: activity.span_ns,
        total_ns: if round_trips { io.round_trip_ns } else { io.ns },
        median_bytes: io.median_bytes,
        requests,
        stack: activity.stack,
    };
    (chatty.per_second() >= MIN_PER_SECOND).then_some(chatty)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn activity(calls: u64, round_trips: u64) -> FdActivity {
        let io = ObjectIo {
            object: "tcp 127.0.0.1:5000 -> 127.0.0.1:5432".into(),
            calls,
            round_trips,
            round_trip_ns: 70,
            ns: 50,
            median_bytes: 64,
            ..ObjectIo::default()
        };
        FdActivity {
            io,
            span_ns: 1_000_000_000,
            stack: Some(StackId(1)),
            stack_share: 0.9,
            looked_at: 100,
            ..FdActivity::default()
        }
    }

    fn is_found(activity: FdActivity) -> bool {
        !find([activity]).is_empty()
    }

    #[test]
    fn questions_one_after_the_other_are_chatty() {
        let found = find([activity(200, 100)]);
        assert_eq!((found[0].count, found[0].total_ns, found[0].round_trips), (100, 70, true));
        assert!(!is_found(activity(200, 3)), "a pipeline");
        assert!(!is_found(activity(40, 20)), "too few");
        assert!(!is_found(FdActivity { span_ns: 100_000_000_000, ..activity(200, 100) }), "too seldom");
        assert!(!is_found(FdActivity { serves: true, ..activity(200, 100) }), "answers");
        assert!(!is_found(FdActivity { stack_share: 0.0, ..activity(200, 100) }), "from everywhere");
        assert!(
            is_found(FdActivity { stack_share: 0.0, looked_at: 6, ..activity(200, 100) }),
            "too few looks"
        );
        assert!(
            is_found(FdActivity { stack_share: 0.0, stack: None, ..activity(200, 100) }),
            "nobody looked"
        );
    }

    #[test]
    fn questions_are_counted_for_each_request_that_is_answered() {
        let clients = |requests| FdActivity { serves: true, ..activity(2 * requests, requests) };
        let found = |requests| find([activity(200, 100), clients(requests)]);
        assert_eq!((found(5).len(), found(5)[0].requests), (1, 5));
        assert!(found(90).is_empty(), "one for each");
        let anywhere = FdActivity { stack_share: 0.0, ..activity(200, 100) };
        assert_eq!(find([anywhere, clients(5)]).len(), 1, "20 for each, from wherever");
    }

    #[test]
    fn tiny_reads_of_a_file_are_chatty() {
        let file = |calls, median_bytes| {
            let mut activity = FdActivity { is_file: true, ..activity(calls, 0) };
            activity.io.median_bytes = median_bytes;
            activity
        };
        assert!(is_found(file(5000, 64)));
        assert!(!is_found(file(5000, 65_536)) && !is_found(file(500, 64)));
    }
}
