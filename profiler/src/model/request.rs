//! Requests and answers: whom the process asks and who asks it, how long answers take, which fail, and where the time of a
//! request goes.

use profiler_common::request::STATUSES;
use serde::{Deserialize, Serialize};

use crate::model::{
    cause::WaitCause,
    distribution::Summary,
    finding::Bottleneck,
    stack::{StackId, ThreadKey},
    timeline::Timeline,
};

/// Everything known about the requests of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Requests {
    /// Whom the targets ask, the most awaited first; then whose requests they answer, the most time first.
    pub peers: Vec<Exchanges>,
    /// The slowest requests that the targets answered, slowest first.
    pub slow: Vec<SlowRequest>,
    /// What threads did for requests, by what was asked.
    pub route_stacks: Vec<RouteStacks>,
    /// What threads did for the slowest requests, in their order.
    pub slow_stacks: Vec<Vec<WorkStack>>,
    /// For how long they were watched, ns: less than the run where that was in windows. Zero where nobody has written that down.
    pub watched_ns: u64,
    /// How many times they were watched again, where watching all the time had become too dear.
    pub windows: Option<u64>,
    /// What was done to see into encrypted connections, if that was asked for.
    pub tls: Option<Tls>,
}

/// How encrypted connections were looked into.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tls {
    /// Libraries whose functions were watched.
    pub libraries: Vec<String>,
    /// What could not be seen, and why: a sentence each.
    pub not_seen: Vec<String>,
}

impl Requests {
    /// Every stack that something here refers to; some more than once.
    pub fn stacks(&self) -> impl Iterator<Item = StackId> + '_ {
        let routes = self.route_stacks.iter().flat_map(|of| &of.stacks);
        routes.chain(self.slow_stacks.iter().flatten()).map(|of| of.stack)
    }

    /// What threads did for the requests of a route, those of each cause together and the heaviest first.
    pub fn stacks_of(&self, peer: &Exchanges, route: &Route) -> &[WorkStack] {
        let same =
            |of: &&RouteStacks| of.pid == peer.pid && of.peer == peer.peer && of.operation == route.operation;
        self.route_stacks.iter().find(same).map_or(&[], |of| &of.stacks)
    }

    /// Whom the targets ask.
    pub fn asked(&self) -> impl Iterator<Item = &Exchanges> {
        self.peers.iter().filter(|peer| peer.side == Side::Asks)
    }

    /// Whose requests the targets answer.
    pub fn served(&self) -> impl Iterator<Item = &Exchanges> {
        self.peers.iter().filter(|peer| peer.side == Side::Answers)
    }
}

/// Who asks on a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The process.
    #[default]
    Asks,
    /// The other side: the process answers.
    Answers,
}

impl Side {
    /// Name in machine-readable output.
    pub fn id(self) -> &'static str {
        match self {
            Side::Asks => "asks",
            Side::Answers => "answers",
        }
    }
}

/// All connections of a program to one address, or of all clients of one of its ports. Processes that were forked from one
/// another and have one name are one program.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Exchanges {
    /// Process id of its first process.
    pub pid: u32,
    /// Name of the program.
    pub process: String,
    /// Processes of it that did any of this.
    pub processes: u64,
    /// Who asks.
    pub side: Side,
    /// `ADDRESS:PORT` that is asked, `:PORT` at which the process answers, or the path of a Unix socket.
    pub peer: String,
    /// Name of the address, from `/etc/hosts` or from what name servers were seen to answer; mostly empty.
    pub name: String,
    /// What is spoken, by the first bytes, or else what is mostly spoken at such a port; empty if neither is known.
    pub protocol: String,
    /// From the first byte of a request to the first byte of its answer.
    pub first: Summary,
    /// From the first byte of a request to the last byte of its answer.
    pub whole: Summary,
    /// From when the first byte was at the socket until the process read it: of requests, or of answers that it asked for.
    pub queued: Summary,
    /// From connecting to being connected.
    pub connect: Summary,
    /// Open at the end.
    pub open: u64,
    /// Made in the run; those that were accepted are not counted.
    pub opened: u64,
    /// Ended in the run.
    pub closed: u64,
    /// Read, bytes.
    pub read_bytes: u64,
    /// Written, bytes.
    pub written_bytes: u64,
    /// Requests that had no answer when their connection ended.
    pub unanswered: u64,
    /// Requests that had none at the end of the run.
    pub awaited: u64,
    /// How long the one of them that began first had been awaited then, ns.
    pub longest_awaited_ns: u64,
    /// Requests that began while another one was awaited.
    pub overlapped: u64,
    /// Most that were awaited at once.
    pub most_awaited: u64,
    /// Time in which at least one was, ns.
    pub awaited_ns: u64,
    /// How the time of its requests is spread over the run, to the first byte of each answer: of those that were looked at, each
    /// for all that it stands for.
    pub over_time: Timeline,
    /// TCP segments sent again.
    pub retransmits: u64,
    /// Connections on which requests overlap (HTTP/2 and what was upgraded): their requests are in no count.
    pub multiplexed: u64,
    /// What was seen of the streams on connections of HTTP/2; nothing if there are none.
    pub streams: Option<Streams>,
    /// Whether connections are encrypted and what is asked on some is not known.
    pub encrypted: bool,
    /// Exchanges on encrypted connections that were looked at and whose plain text the TLS library told.
    pub decrypted: u64,
    /// HTTP/1 answers by the first digit of their status; at zero all others.
    pub statuses: [u64; STATUSES],
    /// Connections that failed.
    pub failures: Vec<Failure>,
    /// What failed and was asked again, with the same words, most first.
    pub retries: Vec<Retries>,
    /// Exchanges that were looked at one by one. What follows is of them.
    pub looked_at: u64,
    /// Of them, those that were several requests: each counts once, and its time is that of all, or of another one.
    pub batches: u64,
    /// By what was asked, the most time first.
    pub routes: Vec<Route>,
}

/// Protocols in whose first bytes nothing is read that tells an error.
const ERRORS_UNKNOWN: [&str; 1] = ["Kafka"];

/// A program, and its process where it is one of it.
pub fn who(process: &str, pid: u32, processes: u64) -> String {
    match processes {
        0 | 1 => format!("{process} (pid {pid})"),
        n => format!("{process} ({n} processes)"),
    }
}

impl Exchanges {
    /// The peer by its name, if that is known and says more than the address does.
    pub fn place(&self) -> String {
        // That the own machine is called so everybody knows.
        if self.name.is_empty() || self.name == "localhost" {
            self.peer.clone()
        } else {
            format!("{} ({})", self.name, self.peer)
        }
    }

    /// The program, and its process where it is one.
    pub fn who(&self) -> String {
        who(&self.process, self.pid, self.processes)
    }

    /// Exchanges that were counted.
    pub fn exchanges(&self) -> u64 {
        self.first.count
    }

    /// Whether most of what was looked at were several requests: the times are not those of one.
    pub fn are_batches(&self) -> bool {
        2 * self.batches > self.looked_at
    }

    /// Answers that failed, and of how many that is known: all for HTTP/1, else those that were looked at, each for all that
    /// it stands for. Of none where what was asked, or whether it failed, cannot be read.
    pub fn failed(&self) -> (u64, u64) {
        let http: u64 = self.statuses[1..].iter().sum();
        if http > 0 {
            return (self.statuses[4] + self.statuses[5], http);
        }
        if ERRORS_UNKNOWN.contains(&&*self.protocol) {
            return (0, 0);
        }
        let read = || self.routes.iter().filter(|route| !route.operation.is_empty());
        (read().map(|route| route.failed()).sum(), read().map(|route| route.first.count).sum())
    }

    /// Answers that the side that answers is to blame for: of HTTP/1 from 500 on; of others any error.
    pub fn broken(&self) -> (u64, u64) {
        let http: u64 = self.statuses[1..].iter().sum();
        if http > 0 { (self.statuses[5], http) } else { self.failed() }
    }
}

/// Connections that failed with one error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Name of the error; `gave up` where the process itself ended the attempt.
    pub error: String,
    /// Before the connection was made.
    pub connecting: bool,
    /// How many.
    pub count: u64,
}

/// Requests on connections of HTTP/2, each a stream: an estimate from those that were seen whole, since only the first bytes of each
/// call are looked at.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Streams {
    /// Streams that began, by their numbers, since the first one that was seen.
    pub begun: u64,
    /// Of these, seen from their beginning to their end. What follows is of them.
    pub seen: u64,
    /// Calls of gRPC among them.
    pub grpc: u64,
    /// From the call that moved the request's headers to the one that moved the answer's.
    pub first: Summary,
    /// To the one that moved the end of the answer.
    pub whole: Summary,
    /// Answers that were errors, most first, at least: statuses from 500 on, and those of gRPC that the side that answers is to blame
    /// for. After headers that were not seen a status that is only referred to cannot be read, but for the usual ones.
    pub errors: Vec<(String, u64)>,
    /// By what was asked, the most time first; without a name where it could not be read, and without errors. Bytes are those of the body.
    pub routes: Vec<Route>,
}

/// What failed and was asked again by the same program with the same words: of the seconds in which it was, which need not follow
/// one another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retries {
    /// What was asked, as [`Route::operation`]; `connect` for attempts to connect.
    pub operation: String,
    /// The error that most attempts failed with.
    pub error: String,
    /// How many seconds.
    pub seconds: u64,
    /// Attempts in them.
    pub attempts: u64,
    /// Of these, failed.
    pub failed: u64,
    /// From the end of each that failed to the beginning of the thread's next one. Of several that failed the first one is taken to
    /// be tried again first.
    pub pauses: Summary,
}

/// What was asked, where single things are left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// Method and path, command, kind of statement.
    pub operation: String,
    /// To the first byte of the answer. Where not all exchanges were looked at, those that were stand for the others.
    pub first: Summary,
    /// To the last one.
    pub whole: Summary,
    /// Bytes of all answers, those with a status and headers included, and of the largest that was looked at.
    pub answer_bytes: u64,
    /// See `answer_bytes`.
    pub largest_bytes: u64,
    /// Answers that were errors, by error, most first.
    pub errors: Vec<(String, u64)>,
    /// Where the time went, as a mean; if the process answers, and some could be followed.
    pub breakdown: Option<Breakdown>,
}

impl Route {
    /// Mean size of an answer, bytes.
    pub fn mean_bytes(&self) -> u64 {
        self.answer_bytes / self.first.count.max(1)
    }

    /// Answers that were errors.
    pub fn failed(&self) -> u64 {
        self.errors.iter().map(|(_, n)| n).sum()
    }

    /// Errors that the side that answers is to blame for, as [`Exchanges::broken`]; `http` if they are statuses.
    pub fn broken(&self, http: bool) -> impl Iterator<Item = &(String, u64)> {
        self.errors.iter().filter(move |(error, _)| !http || error.starts_with('5'))
    }
}

/// What threads did while they worked at requests of one route: of those that could be followed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteStacks {
    /// [`Exchanges::pid`].
    pub pid: u32,
    /// [`Exchanges::peer`].
    pub peer: String,
    /// [`Route::operation`].
    pub operation: String,
    /// Where.
    pub stacks: Vec<WorkStack>,
}

/// A stack that threads had while they worked at requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkStack {
    /// What it waited for; nothing if it was on a CPU.
    pub cause: Option<WaitCause>,
    /// Where.
    pub stack: StackId,
    /// CPU samples, or ns of waits that were long enough to be told one by one.
    pub weight: u64,
}

/// Where the time from the first byte of a request to the first byte of its answer went: a mean of some requests, or one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Breakdown {
    /// Requests that it is the mean of.
    pub requests: u64,
    /// Requests of which the thread answered no other one meanwhile: theirs is what it did. Of the others, what it did is
    /// more than theirs.
    pub alone: u64,
    /// In all, ns.
    pub total_ns: u64,
    /// The thread on a CPU, ns.
    pub on_cpu_ns: u64,
    /// The thread waiting for one, ns.
    pub run_queue_ns: u64,
    /// The thread blocked on files, ns.
    pub disk_ns: u64,
    /// The thread blocked on a lock, ns.
    pub lock_ns: u64,
    /// The thread asleep until a time, ns.
    pub sleep_ns: u64,
    /// The thread waiting for another process: a child, the other end of a pipe, ns.
    pub process_ns: u64,
    /// The thread waiting to be woken up by another thread of its process, other than with an answer, ns.
    pub park_ns: u64,
    /// Answers of others that it asked in the meantime.
    pub asked: Vec<Asked>,
    /// In which at least one of them was awaited, ns.
    pub awaiting_ns: u64,
    /// The rest: timers of an event loop, other threads, what could not be seen, ns.
    pub other_ns: u64,
}

/// The part of a request in which its thread waits for other threads.
const PARKED: &str = "other threads";

/// A part of a request's time that its own thread tells.
pub struct OwnPart {
    /// How much, ns.
    pub ns: u64,
    /// In a table.
    pub short: &'static str,
    /// As words that follow "so much of its time is".
    pub words: &'static str,
    /// What a request lacks that spends its time so.
    pub lacks: Bottleneck,
}

impl Breakdown {
    /// What its own thread did; what was asked of others is not among it.
    pub fn own(&self) -> [OwnPart; 8] {
        let part = |ns, short, words, lacks| OwnPart { ns, short, words, lacks };
        [
            part(self.on_cpu_ns, "on CPU", "on a CPU", Bottleneck::Cpu),
            part(self.run_queue_ns, "waiting for a CPU", "waiting for a CPU", Bottleneck::CpuStarvation),
            part(self.disk_ns, "disk", "waiting for files", Bottleneck::Io),
            part(self.lock_ns, "locks", "waiting for locks", Bottleneck::Lock),
            part(self.sleep_ns, "asleep", "asleep", Bottleneck::Sleep),
            part(self.process_ns, "other processes", "waiting for another process", Bottleneck::Process),
            part(self.park_ns, PARKED, "waiting for other threads", Bottleneck::Lock),
            part(self.other_ns, "other", "without work", Bottleneck::None),
        ]
    }

    /// Which of its own parts a stack belongs to, by its name in a table: nothing for waits that are part of others.
    pub fn part_of(cause: Option<WaitCause>) -> Option<&'static str> {
        let lacks = match cause {
            None => Bottleneck::Cpu,
            Some(WaitCause::Disk | WaitCause::PageFault) => Bottleneck::Io,
            Some(WaitCause::Lock) => Bottleneck::Lock,
            Some(WaitCause::Sleep) => Bottleneck::Sleep,
            Some(WaitCause::Child | WaitCause::Pipe) => Bottleneck::Process,
            Some(WaitCause::Park) => return Some(PARKED),
            Some(_) => return None,
        };
        Breakdown::default().own().into_iter().find(|part| part.lacks == lacks).map(|part| part.short)
    }

    /// Where the time went in words, with ns, the largest part first.
    pub fn parts(&self) -> Vec<(String, u64)> {
        let own = self.own().into_iter().map(|part| (part.words.to_owned(), part.ns));
        let asked = self.asked.iter().map(|of| {
            let spoken = if of.protocol.is_empty() { String::new() } else { format!(" ({})", of.protocol) };
            (format!("awaiting {}{spoken}", of.peer), of.ns)
        });
        let mut parts: Vec<(String, u64)> = own.chain(asked).filter(|(_, ns)| *ns > 0).collect();
        parts.sort_by_key(|(_, ns)| std::cmp::Reverse(*ns));
        parts
    }
}

/// What one peer was asked during a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// The peer, as [`Exchanges::peer`].
    pub peer: String,
    /// What is spoken.
    pub protocol: String,
    /// How often.
    pub times: f64,
    /// How long at least one answer was awaited, ns.
    pub ns: u64,
    /// Of the times, those that began after the one before had ended.
    pub in_sequence: f64,
}

/// One slow request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SlowRequest {
    /// The thread that read it.
    pub thread: ThreadKey,
    /// Name of the process.
    pub process: String,
    /// Where it came in, as [`Exchanges::peer`].
    pub peer: String,
    /// What was asked; empty where that is not known.
    pub operation: String,
    /// The error that it was answered with, if it was one.
    pub error: Option<String>,
    /// When it began: CLOCK_MONOTONIC, ns.
    pub start_ns: u64,
    /// To the first byte of the answer, ns.
    pub first_ns: u64,
    /// To the last one, ns.
    pub whole_ns: u64,
    /// Before it was read, at the socket, ns; zero where that is not known.
    pub queued_ns: u64,
    /// Of the request, bytes.
    pub request_bytes: u64,
    /// Of the answer, bytes.
    pub answer_bytes: u64,
    /// Where the time went.
    pub breakdown: Breakdown,
}

#[cfg(test)]
pub(crate) mod fixtures {
    //! Requests made by hand.

    use super::*;

    const MS: u64 = 1_000_000;

    fn lengths(count: u64, p50_ns: u64) -> Summary {
        Summary {
            count,
            sum_ns: count * p50_ns,
            p50_ns,
            p90_ns: 2 * p50_ns,
            p95_ns: 3 * p50_ns,
            p99_ns: 4 * p50_ns,
            p999_ns: 5 * p50_ns,
            max_ns: 6 * p50_ns,
        }
    }

    /// A server that asks a database twice for each request.
    pub fn requests() -> Requests {
        let asked = Asked {
            peer: "10.0.0.2:5432".into(),
            protocol: "PostgreSQL".into(),
            times: 2.0,
            ns: 4 * MS,
            in_sequence: 1.0,
        };
        let breakdown = Breakdown {
            requests: 100,
            alone: 100,
            total_ns: 30 * MS,
            on_cpu_ns: 20 * MS,
            run_queue_ns: MS,
            asked: vec![asked],
            awaiting_ns: 4 * MS,
            other_ns: 5 * MS,
            ..Breakdown::default()
        };
        let route = Route {
            operation: "GET /users/:id".into(),
            first: lengths(1000, 30 * MS),
            whole: lengths(1000, 31 * MS),
            answer_bytes: 9_000_000,
            largest_bytes: 12_000,
            errors: vec![("500".into(), 7)],
            breakdown: Some(breakdown.clone()),
        };
        let served = Exchanges {
            pid: 7,
            process: "app".into(),
            side: Side::Answers,
            peer: ":8080".into(),
            protocol: "HTTP".into(),
            first: lengths(1000, 30 * MS),
            whole: lengths(1000, 31 * MS),
            queued: lengths(1000, MS / 10),
            open: 8,
            opened: 0,
            closed: 3,
            read_bytes: 100_000,
            written_bytes: 9_000_000,
            most_awaited: 8,
            statuses: [0, 0, 993, 0, 0, 7],
            looked_at: 1000,
            routes: vec![route],
            ..Exchanges::default()
        };
        let database = Exchanges {
            pid: 7,
            process: "app".into(),
            side: Side::Asks,
            peer: "10.0.0.2:5432".into(),
            name: "db".into(),
            protocol: "PostgreSQL".into(),
            first: lengths(2000, 2 * MS),
            whole: lengths(2000, 2 * MS),
            connect: lengths(4, MS / 2),
            open: 4,
            opened: 5,
            closed: 1,
            awaited_ns: 400 * MS,
            most_awaited: 4,
            overlapped: 12,
            failures: vec![Failure { error: "ECONNREFUSED".into(), connecting: true, count: 2 }],
            looked_at: 2000,
            ..Exchanges::default()
        };
        let slow = SlowRequest {
            thread: ThreadKey { pid: 7, tid: 8 },
            process: "app".into(),
            peer: ":8080".into(),
            operation: "GET /users/:id".into(),
            error: Some("500".into()),
            start_ns: 5,
            first_ns: 180 * MS,
            whole_ns: 181 * MS,
            queued_ns: 2 * MS,
            request_bytes: 120,
            answer_bytes: 9000,
            breakdown,
        };
        Requests { peers: vec![database, served], slow: vec![slow], ..Requests::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::{fixtures::requests, *};

    #[test]
    fn what_failed_is_of_all_that_was_read() {
        let peer = |change: &dyn Fn(&mut Exchanges)| {
            let mut peer = requests().peers.pop().unwrap();
            peer.statuses = [0; STATUSES];
            change(&mut peer);
            peer.failed()
        };
        // One in ten was looked at, and stands for ten.
        assert_eq!(peer(&|peer| peer.looked_at = 100), (7, 1000));
        assert_eq!(peer(&|peer| peer.routes[0].operation.clear()), (0, 0), "nothing was read");
        assert_eq!(peer(&|peer| peer.protocol = "Kafka".into()), (0, 0), "no errors were read");
    }
}
