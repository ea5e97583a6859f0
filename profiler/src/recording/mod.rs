//! Recordings (`.prec`): everything that came out of the kernel, with what is needed to name it later, elsewhere
//! and without rights. `profiler replay` turns one into any other output; tests replay them.
//!
//! Format: [`MAGIC`], then a gzip stream of events, each a little-endian `u32` length and that many bytes of
//! postcard. Whatever an event refers to comes before it. Every interval is flushed, so that a recording cut off by
//! a crash replays up to there.

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
pub const MAGIC: &[u8; 8] = b"PRECORD\x17";

/// No event is longer: a guard against damaged lengths.
const MAX_EVENT_BYTES: u32 = 16 * 1024 * 1024;

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
/// whole, and there is one at each checkpoint.
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

    /// Records the counts so far and makes sure that everything up to here can be replayed. Now and then, that is
    /// not at every call, what else is known is recorded too.
    pub fn checkpoint(
        &mut self,
        accounts: &Accounts,
        sections: Sections<'_>,
        tables: &Tables,
    ) -> io::Result<()> {
        if self.bytes.1 <= TOLD_BYTES.max(self.bytes.0 / 4) {
            self.write_sections(sections, tables)?;
        }
        self.event(&Event::Accounts(accounts.clone()))?;
        self.out.flush()
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
        for some in names.chunks(4096) {
            self.event(&Event::Names(some.to_vec()))?;
        }
        self.event(&Event::Accounts(accounts.clone()))?;
        self.event(&Event::End)?;
        self.out.finish()
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
        let bytes = postcard::to_stdvec(event).map_err(io::Error::other)?;
        self.bytes.0 += bytes.len() as u64 + 4;
        self.out.write_all(&(bytes.len() as u32).to_le_bytes())?;
        self.out.write_all(&bytes)
    }
}

/// How a recording ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// As it should.
    Complete,
    /// In the middle: what is missing is unknown.
    CutOff,
}

/// Reads a recording, calling `each` for every event.
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
    loop {
        let mut len = [0; 4];
        if input.read_exact(&mut len).is_err() {
            break;
        }
        let len = u32::from_le_bytes(len);
        if len > MAX_EVENT_BYTES {
            return Err("it is damaged (impossible length)".to_owned());
        }
        bytes.clear();
        if !matches!(input.by_ref().take(len.into()).read_to_end(&mut bytes), Ok(n) if n == len as usize) {
            break;
        }
        let mut encoded = postcard::Deserializer::from_bytes(&bytes);
        let event = Event::deserialize(Cleaning(&mut encoded));
        let event = event.map_err(|error| format!("it is damaged ({error})"))?;
        if first != matches!(event, Event::Meta(_)) {
            return Err("it is damaged (facts about the run must come first, once)".to_owned());
        }
        first = false;
        if event == Event::End {
            return Ok(Ending::Complete);
        }
        each(event)?;
    }
    if first { Err("it holds nothing".to_owned()) } else { Ok(Ending::CutOff) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::stack::{ModuleId, ModuleKind, StackEnd};

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
            recorder.checkpoint(&Accounts::default(), sections, &tables).unwrap();
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
