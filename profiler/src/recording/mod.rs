//! Recordings (`.prec`): everything that came out of the kernel, with what is needed to name it later, elsewhere
//! and without rights. `profiler replay` turns one into any other output; tests replay them.
//!
//! Format: [`MAGIC`], then a gzip stream of events, each a little-endian `u32` length and that many bytes of
//! postcard. Whatever an event refers to comes before it. Every interval is flushed, so that a recording cut off by
//! a crash replays up to there, and one that is damaged up to the damage.

use std::io::{self, Read, Write};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use serde::{Deserialize, Serialize};

use self::cleaning::Cleaning;
use crate::{
    model::{
        memory::{Memory, Site},
        report::{Accounts, Meta},
        request::Requests,
        sample::Sample,
        sections::Sections,
        stack::{Frame, Module, Stack, StackId, Tables, ThreadKey},
        syscall::Calls,
        totals::{Key, Snapshot},
        vitals::Vitals,
        wait::Blocking,
    },
    symbolize::Function,
};

mod cleaning;
#[cfg(test)]
mod format;
pub mod load;
pub mod normal;

/// First bytes of a recording; the last one is the version.
pub const MAGIC: &[u8; 8] = b"PRECORD\x18";

/// No event is longer, bytes: none is written, and a length that says so is damage. A section is one event, and the bounds of
/// what it holds allow some 100 MB (65,536 threads, 16,384 routes, 20,000 waits each with the path of a file).
const MAX_EVENT_BYTES: u32 = 256 * 1024 * 1024;

/// One entry of a recording.
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// Facts about the run; comes first.
    Meta(Meta),
    /// The next module; ids count from zero.
    Module(Module),
    /// The next stack; ids count from zero.
    Stack(Stack),
    /// A thread's name, from now on.
    Thread(ThreadKey, String),
    /// A sample.
    Sample(Sample),
    /// Names of some frames, in full detail.
    Names(Vec<(Frame, Vec<Function>)>),
    /// Counts so far; the last one counts.
    Accounts(Accounts),
    /// Where the time went so far; the last one counts.
    Blocking(Box<Blocking>),
    /// How memory grew so far, without its sites, which follow; the last one counts.
    Memory(Box<Memory>),
    /// More sites of the memory before.
    Sites(Vec<Site>),
    /// System calls so far; the last one counts.
    Calls(Box<Calls>),
    /// Everything has been written.
    End,
    /// What was seen from outside so far; the last one counts.
    Vitals(Box<Vitals>),
    /// Requests and answers so far; the last one counts.
    Requests(Box<Requests>),
}

/// What [`Sections`] may take in any recording, bytes before compression; beyond that, no more than a fourth of it. Each is
/// whole, and there is one at each checkpoint: the last one is what a recording that was cut off knows.
const TOLD_BYTES: u64 = 1024 * 1024;

/// Sites in one event: with full series some 1 MB.
const SITES: usize = 128;

/// Writes a recording while profiling goes on.
pub struct Recorder<W: Write> {
    out: GzEncoder<W>,
    modules: usize,
    stacks: usize,
    managed: usize,
    /// Written before compression: all, and of [`Sections`].
    bytes: (u64, u64),
}

impl<W: Write> Recorder<W> {
    /// Starts a recording.
    pub fn new(mut out: W, meta: &Meta) -> io::Result<Recorder<W>> {
        out.write_all(MAGIC)?;
        let out = GzEncoder::new(out, Compression::fast());
        let mut recorder = Recorder { out, modules: 0, stacks: 0, managed: 0, bytes: (0, 0) };
        recorder.event(&Event::Meta(meta.clone()))?;
        Ok(recorder)
    }

    /// Records a sample and what it refers to.
    pub fn sample(
        &mut self,
        sample: &Sample,
        tables: &Tables,
        new_thread_name: Option<&str>,
    ) -> io::Result<()> {
        self.tables(tables)?;
        if let Some(name) = new_thread_name {
            self.event(&Event::Thread(sample.thread, name.to_owned()))?;
        }
        self.event(&Event::Sample(*sample))
    }

    /// Records a thread's name.
    pub fn thread(&mut self, thread: ThreadKey, name: &str) -> io::Result<()> {
        self.event(&Event::Thread(thread, name.to_owned()))
    }

    /// Records totals instead of the samples that they are made of: one sample by thread, stack and cause, in the time
    /// in which the samples were.
    pub fn totals(&mut self, totals: &Snapshot, tables: &Tables) -> io::Result<()> {
        self.tables(tables)?;
        let (first_ns, last_ns) = totals.span_ns.unwrap_or_default();
        for (i, &(key, weight)) in totals.entries.iter().enumerate() {
            let Key { thread, stack, cause } = key;
            let time_ns = if i == 0 { first_ns } else { last_ns };
            self.event(&Event::Sample(Sample { time_ns, thread, cpu: 0, stack, weight, cause }))?;
        }
        Ok(())
    }

    /// Records the counts so far, and `names` that were found since the last time; makes sure that everything up to here can be
    /// replayed. Now and then, that is not at every call, what else is known is recorded too.
    pub fn checkpoint(
        &mut self,
        accounts: &Accounts,
        sections: Sections<'_>,
        tables: &Tables,
        names: &[(Frame, Vec<Function>)],
    ) -> io::Result<()> {
        self.tables(tables)?;
        self.names(names)?;
        if self.bytes.1 <= TOLD_BYTES.max(self.bytes.0 / 4) {
            self.write_sections(sections, tables)?;
        }
        self.event(&Event::Accounts(accounts.clone()))?;
        self.out.flush()
    }

    /// What it is written to.
    pub fn inner(&self) -> &W {
        self.out.get_ref()
    }

    /// Ends the recording with what is known in the end and the names of its frames.
    pub fn finish(
        mut self,
        accounts: &Accounts,
        sections: Sections<'_>,
        tables: &Tables,
        names: &[(Frame, Vec<Function>)],
    ) -> io::Result<W> {
        self.write_sections(sections, tables)?;
        self.names(names)?;
        self.event(&Event::Accounts(accounts.clone()))?;
        self.event(&Event::End)?;
        self.out.finish()
    }

    fn names(&mut self, names: &[(Frame, Vec<Function>)]) -> io::Result<()> {
        names.chunks(4096).try_for_each(|some| self.event(&Event::Names(some.to_vec())))
    }

    /// Records what events refer to, as far as it is new.
    fn tables(&mut self, tables: &Tables) -> io::Result<()> {
        while let Some(module) = tables.modules.get_index(self.modules) {
            self.event(&Event::Module(module.clone()))?;
            self.modules += 1;
        }
        // What nobody could name later: the program it is in is gone by then.
        while let Some((module, functions)) = tables.managed.get_index(self.managed) {
            let frame = Frame { module: *module, address: self.managed as u64 };
            self.event(&Event::Names(vec![(frame, functions.to_vec())]))?;
            self.managed += 1;
        }
        while let Some(stack) = tables.stacks.get(StackId(self.stacks as u32)) {
            self.event(&Event::Stack(stack))?;
            self.stacks += 1;
        }
        Ok(())
    }

    fn write_sections(&mut self, sections: Sections<'_>, tables: &Tables) -> io::Result<()> {
        self.tables(tables)?;
        let before = self.bytes.0;
        if let Some(blocking) = sections.blocking {
            self.event(&Event::Blocking(Box::new(blocking.clone())))?;
        }
        if let Some(vitals) = sections.vitals {
            self.event(&Event::Vitals(Box::new(vitals.clone())))?;
        }
        if let Some(requests) = sections.requests {
            self.event(&Event::Requests(Box::new(requests.clone())))?;
        }
        if let Some(calls) = sections.calls {
            self.event(&Event::Calls(Box::new(calls.clone())))?;
        }
        if let Some(memory) = sections.memory {
            let processes = memory.processes.clone();
            self.event(&Event::Memory(Box::new(Memory {
                processes,
                sites: Vec::new(),
                faults: memory.faults.clone(),
                watching: memory.watching.clone(),
            })))?;
            for some in memory.sites.chunks(SITES) {
                self.event(&Event::Sites(some.to_vec()))?;
            }
        }
        self.bytes.1 += self.bytes.0 - before;
        Ok(())
    }

    fn event(&mut self, event: &Event) -> io::Result<()> {
        let bytes = encoded(event, MAX_EVENT_BYTES)?;
        self.bytes.0 += bytes.len() as u64 + 4;
        self.out.write_all(&(bytes.len() as u32).to_le_bytes())?;
        self.out.write_all(&bytes)
    }
}

/// An event's bytes, at most so many.
fn encoded(event: &Event, most: u32) -> io::Result<Vec<u8>> {
    let bytes = postcard::to_stdvec(event).map_err(io::Error::other)?;
    if bytes.len() > most as usize {
        return Err(io::Error::other(format!("an entry of {} bytes is too long to be read", bytes.len())));
    }
    Ok(bytes)
}

/// How a recording ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// As it should.
    Complete,
    /// In the middle: what is missing is unknown.
    CutOff,
    /// Where it is damaged, and how: what comes after that is not read.
    Damaged(String),
}

impl Ending {
    /// What is wrong with a recording that ends so, in words that follow its name; nothing if it is whole.
    pub fn fault(&self) -> Option<String> {
        match self {
            Ending::Complete => None,
            Ending::CutOff => Some("was cut off".to_owned()),
            Ending::Damaged(how) => Some(format!("is damaged ({how})")),
        }
    }
}

/// Reads a recording, calling `each` for every event up to its end or to where it is damaged, which `each` may find, too.
///
/// # Errors
/// It is none, or not even its first event can be read.
pub fn read(
    mut input: impl Read,
    mut each: impl FnMut(Event) -> Result<(), String>,
) -> Result<Ending, String> {
    let mut magic = [0; MAGIC.len()];
    input.read_exact(&mut magic).map_err(|_| "it is not a recording (too short)".to_owned())?;
    if magic[..7] != MAGIC[..7] {
        return Err("it is not a recording".to_owned());
    }
    if magic[7] != MAGIC[7] {
        return Err(format!("its version is {}, this profiler reads {}", magic[7], MAGIC[7]));
    }
    let mut input = GzDecoder::new(input);
    let mut bytes = Vec::new();
    let mut first = true;
    let ending = loop {
        let event = match next(&mut input, &mut bytes) {
            Ok(event) => event,
            Err(ending) => break ending,
        };
        if first != matches!(event, Event::Meta(_)) {
            break Ending::Damaged("facts about the run must come first, once".to_owned());
        }
        if matches!(event, Event::End) {
            break Ending::Complete;
        }
        if let Err(how) = each(event) {
            break Ending::Damaged(how);
        }
        first = false;
    };
    match ending {
        Ending::Damaged(how) if first => Err(format!("it is damaged ({how})")),
        _ if first => Err("it holds nothing".to_owned()),
        ending => Ok(ending),
    }
}

/// The next event, or how the recording ends before it. No more memory is taken for it than there are bytes, whatever its
/// length says.
fn next(input: &mut impl Read, bytes: &mut Vec<u8>) -> Result<Event, Ending> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Ending::CutOff,
        _ => Ending::Damaged(error.to_string()),
    };
    let mut len = [0; 4];
    input.read_exact(&mut len).map_err(failed)?;
    let len = u32::from_le_bytes(len);
    if len > MAX_EVENT_BYTES {
        return Err(Ending::Damaged("impossible length".to_owned()));
    }
    bytes.clear();
    let read = input.take(len.into()).read_to_end(bytes).map_err(failed)?;
    if read < len as usize {
        return Err(Ending::CutOff);
    }
    let mut encoded = postcard::Deserializer::from_bytes(bytes);
    Event::deserialize(Cleaning(&mut encoded)).map_err(|error| Ending::Damaged(error.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{
        cause::WaitCause,
        distribution::Summary,
        finding::Severity,
        request::{Asked, Breakdown, Exchanges, Route, RouteStacks, WorkStack},
        stack::{ModuleId, ModuleKind, StackEnd},
        wait::{Block, RanInstead, Stall, ThreadTime},
    };

    fn recording(samples: u64) -> Vec<u8> {
        let mut tables = Tables::default();
        let module = tables.module_id(Module::special(ModuleKind::Kernel));
        assert_eq!(module, ModuleId(0));
        let mut recorder = Recorder::new(Vec::new(), &Meta::default()).unwrap();
        for i in 0..samples {
            let frames = vec![Frame { module, address: i % 3 }].into();
            let stack = tables.stacks.insert(&Stack { frames, kernel_frames: 1, end: StackEnd::Complete }).0;
            let sample = Sample {
                time_ns: i,
                thread: ThreadKey { pid: 1, tid: 1 },
                cpu: 0,
                stack,
                weight: 1,
                cause: None,
            };
            recorder.sample(&sample, &tables, (i == 0).then_some("thread")).unwrap();
            let (blocking, calls) = (Blocking::default(), Calls::default());
            let sections = Sections { blocking: Some(&blocking), calls: Some(&calls), ..Sections::default() };
            recorder.checkpoint(&Accounts::default(), sections, &tables, &[]).unwrap();
        }
        recorder
            .finish(
                &Accounts::default(),
                Sections::default(),
                &tables,
                &[(Frame { module, address: 0 }, vec![Function::default()])],
            )
            .unwrap()
    }

    fn replay(bytes: &[u8]) -> Result<(Ending, Vec<Event>), String> {
        let mut events = Vec::new();
        let ending = read(bytes, |event| {
            events.push(event);
            Ok(())
        })?;
        Ok((ending, events))
    }

    #[test]
    fn what_is_written_is_read() {
        let (ending, events) = replay(&recording(5)).unwrap();
        assert_eq!(ending, Ending::Complete);
        let count = |matches: fn(&Event) -> bool| events.iter().filter(|event| matches(event)).count();
        assert_eq!(count(|event| matches!(event, Event::Sample(_))), 5);
        assert_eq!(count(|event| matches!(event, Event::Stack(_))), 3);
        assert_eq!(count(|event| matches!(event, Event::Thread(..))), 1);
        assert_eq!(count(|event| matches!(event, Event::Names(_))), 1);
    }

    #[test]
    fn a_recording_cut_off_replays_up_to_there() {
        let whole = recording(50);
        let (ending, events) = replay(&whole[..whole.len() * 2 / 3]).unwrap();
        assert_eq!(ending, Ending::CutOff);
        let samples = events.iter().filter(|event| matches!(event, Event::Sample(_))).count();
        assert!((1..50).contains(&samples), "{samples}");
    }

    /// What is written to a recording after the first facts.
    fn with_raw(events: &[&[u8]]) -> Vec<u8> {
        let mut recorder = Recorder::new(Vec::new(), &Meta::default()).unwrap();
        events.iter().for_each(|bytes| recorder.out.write_all(bytes).unwrap());
        recorder.out.finish().unwrap()
    }

    #[test]
    fn what_comes_before_damage_is_read() {
        let thread = |tid| Event::Thread(ThreadKey { pid: 1, tid }, "x".into());
        let mut recorder = Recorder::new(Vec::new(), &Meta::default()).unwrap();
        (0..3).for_each(|tid| recorder.event(&thread(tid)).unwrap());
        recorder.out.write_all(&[1, 0, 0, 0, 0xff]).unwrap(); // there is no such event
        recorder.event(&thread(3)).unwrap();
        let (ending, events) = replay(&recorder.out.finish().unwrap()).unwrap();
        assert!(matches!(ending, Ending::Damaged(_)), "{ending:?}");
        assert_eq!(events[1..], [0, 1, 2].map(thread));
        // So it is where the compressed bytes themselves are damaged, and where whoever reads finds fault.
        let mut whole = recording(50);
        let middle = whole.len() / 2;
        whole[middle..middle + 64].fill(0xff);
        assert!(matches!(replay(&whole), Ok((Ending::Damaged(_), events)) if events.len() > 10));
        let fault = read(&recording(1)[..], |event| match event {
            Event::Stack(_) => Err("a fault".to_owned()),
            _ => Ok(()),
        });
        assert_eq!(fault, Ok(Ending::Damaged("a fault".to_owned())));
    }

    #[test]
    fn a_length_takes_no_memory_by_itself() {
        assert_eq!(replay(&with_raw(&[&(MAX_EVENT_BYTES + 1).to_le_bytes()])).unwrap().0, {
            Ending::Damaged("impossible length".to_owned())
        });
        let mut bytes = Vec::new();
        let mut input = [&MAX_EVENT_BYTES.to_le_bytes()[..], &[7; 100]].concat();
        assert_eq!(next(&mut &input[..], &mut bytes), Err(Ending::CutOff));
        assert!(bytes.capacity() < 4096, "{}", bytes.capacity());
        input.truncate(3);
        assert_eq!(next(&mut &input[..], &mut bytes), Err(Ending::CutOff));
    }

    /// What one section can become by the bounds of the probes that fill it: it is read as it was written.
    #[test]
    fn the_largest_sections_are_written_and_read() {
        let text = |n: usize| "x".repeat(n);
        let lengths = Summary {
            count: u64::MAX,
            sum_ns: u64::MAX,
            p50_ns: u64::MAX,
            p90_ns: u64::MAX,
            p95_ns: u64::MAX,
            p99_ns: u64::MAX,
            p999_ns: u64::MAX,
            max_ns: u64::MAX,
        };
        let thread = |tid| ThreadTime {
            thread: ThreadKey { pid: u32::MAX, tid },
            process: text(15),
            name: text(15),
            wall_ns: u64::MAX,
            on_cpu_ns: u64::MAX,
            run_queue_ns: u64::MAX,
            run_queue: Some(lengths),
            blocked: vec![(WaitCause::Lock, u64::MAX); 12],
            ..ThreadTime::default()
        };
        let block = Block {
            start_ns: u64::MAX,
            blocked_ns: u64::MAX,
            run_queue_ns: u64::MAX,
            cause: WaitCause::Disk,
            syscall: text(20),
            object: Some(text(256)),
            stack: None,
        };
        let stall = Stall {
            severity: Severity::Critical,
            thread: ThreadKey::OTHERS,
            start_ns: 0,
            duration_ns: 0,
            on_cpu_ns: 0,
            run_queue_ns: 0,
            blocked: Vec::new(),
            samples: vec![(StackId(u32::MAX), u64::MAX); 20],
            blocks: vec![block; 20],
            instead: vec![RanInstead { tid: 0, name: text(15), ns: 0 }; 5],
            explained: 1.0,
        };
        let blocking = Blocking {
            threads: (0..=65_536).map(thread).collect(),
            stalls: vec![stall; 1000],
            ..Blocking::default()
        };
        let work = WorkStack { cause: Some(WaitCause::Lock), stack: StackId(u32::MAX), weight: u64::MAX };
        let stacks = RouteStacks {
            peer: text(64),
            operation: text(128),
            stacks: vec![work; 200],
            ..RouteStacks::default()
        };
        let asked = Asked { peer: text(64), protocol: text(16), ..Asked::default() };
        let route = Route {
            operation: text(128),
            first: lengths,
            whole: lengths,
            answer_bytes: u64::MAX,
            largest_bytes: u64::MAX,
            errors: vec![(text(16), u64::MAX); 32],
            breakdown: Some(Breakdown { asked: vec![asked; 20], ..Breakdown::default() }),
        };
        let requests = Requests {
            peers: vec![Exchanges { routes: vec![route; 16_384], ..Exchanges::default() }],
            route_stacks: vec![stacks; 16_384],
            ..Requests::default()
        };
        let recorder = Recorder::new(Vec::new(), &Meta::default()).unwrap();
        let sections =
            Sections { blocking: Some(&blocking), requests: Some(&requests), ..Sections::default() };
        let written = recorder.finish(&Accounts::default(), sections, &Tables::default(), &[]).unwrap();
        let (ending, events) = replay(&written).unwrap();
        assert_eq!(ending, Ending::Complete);
        assert!(events.iter().any(|event| matches!(event, Event::Blocking(of) if **of == blocking)));
        assert!(events.iter().any(|event| matches!(event, Event::Requests(of) if **of == requests)));
    }

    #[test]
    fn what_would_be_too_long_to_be_read_is_not_written() {
        let event = Event::Thread(ThreadKey::OTHERS, "x".repeat(100));
        assert_eq!(encoded(&event, 104).unwrap().len(), 104);
        assert!(encoded(&event, 103).unwrap_err().to_string().contains("too long"));
    }

    #[test]
    fn other_files_are_refused() {
        for other in [&b""[..], b"PREC", b"something else entirely", b"PRECORD\x04more", MAGIC] {
            assert!(replay(other).is_err(), "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn damage_never_panics(at in 0usize..400, byte: u8, cut in 0usize..600) {
            let mut bytes = recording(5);
            let len = bytes.len();
            bytes[at % len] = byte;
            bytes.truncate(cut.min(len));
            let _any_result = replay(&bytes);
        }
    }
}
