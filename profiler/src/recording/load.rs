//! Reads a recording back into a run, and writes a memory snapshot as one.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufReader, Read},
    path::Path,
};

use anyhow::Result;
use rustc_hash::FxHashMap;

use crate::{
    detect::{self, rule::Overrides},
    error::Error,
    model::{
        kind::{OFF_CPU, SYSCALLS},
        measured::Measured,
        part::part,
        report::{Accounts, Meta, Run, Totals},
        sample::Sample,
        stack::{Frame, Module, ModuleId, Tables},
        totals::Aggregator,
    },
    naming,
    output::Destination,
    recording::{self, Ending, Event, Recorder},
    say,
    symbolize::{Detail, Function, Symbolizer},
};

/// What a recording holds of a run's names.
pub fn names(run: &Run) -> Vec<(Frame, Vec<Function>)> {
    let each = run.names().frames.iter().map(|frame| {
        let address = Frame { module: ModuleId(frame.module as u32), address: frame.address };
        (address, frame.functions.clone())
    });
    each.collect()
}

/// Writes a recording of nothing but memory: a snapshot.
pub fn write_snapshot(path: &Path, run: &Run, tables: &Tables) -> Result<()> {
    Destination::open(Some(path))?.finish(|out| {
        let recorder = Recorder::new(out, &run.cpu.meta)?;
        recorder.finish(&run.cpu.accounts, run.sections(), tables, &names(run))?;
        Ok(())
    })
}

/// What is in a recording.
pub struct Replayed {
    /// The run.
    pub run: Run,
    /// Its samples, in order.
    pub samples: Vec<Sample>,
    /// The values behind their ids.
    pub tables: Tables,
    /// Whether the recording is complete.
    pub ending: Ending,
    /// Of how much of the run, from its beginning, waits, system calls, requests and memory are, ns; nothing if none is recorded.
    pub sections_ns: Option<u64>,
}

impl Replayed {
    /// What comparisons read.
    pub fn measured(&self) -> Measured<'_> {
        Measured { run: &self.run, samples: &self.samples, tables: &self.tables }
    }

    /// What is wrong with the recording and what it lacks, in words that follow its name; nothing if it is whole.
    pub fn lacks(&self) -> Option<String> {
        let (cpu, s) = (&self.run.cpu, |ns: u64| ns as f64 / 1e9);
        let older = self.older_ns().map_or_else(String::new, |ns| {
            format!("; waits, system calls, requests and memory are those of its first {:.1} s", s(ns))
        });
        Some(format!(
            "{}: it holds {:.1} s of the run and {} CPU samples, shown here; later ones are missing, and source lines, inlined \
             functions and some names{older}",
            self.ending.fault()?,
            s(cpu.accounts.duration_ns),
            cpu.total,
        ))
    }

    /// The part of some of its processes, judged as if they had been profiled alone.
    pub fn only(mut self, pids: &BTreeSet<u32>, overrides: &Overrides) -> Replayed {
        self.run = part(&self.run, |pid| pids.contains(&pid));
        self.samples.retain(|sample| pids.contains(&sample.thread.pid));
        self.judged(overrides)
    }

    fn judged(mut self, overrides: &Overrides) -> Replayed {
        detect::judge(&mut self.run, overrides);
        // Of two times nothing can be compared; that is said by itself.
        let older = self.older_ns().is_some();
        if let (Some(verdict), true) = (&mut self.run.verdict, older) {
            verdict.doubts.clear();
        }
        self
    }

    /// Of how much of the run, ns, what is not made of samples is, where that is not all of it.
    fn older_ns(&self) -> Option<u64> {
        self.sections_ns.filter(|&ns| ns < self.run.cpu.accounts.duration_ns)
    }
}

/// Reads a recording back.
pub fn load(path: &Path, overrides: &Overrides) -> Result<Replayed, Error> {
    let bad = |reason: String| Error::BadRecording { path: path.to_owned(), reason };
    let file = File::open(path).map_err(|error| bad(error.to_string()))?;
    load_stream(BufReader::new(file), overrides).map_err(bad)
}

/// The same, and says so if it is not whole.
pub fn load_what_there_is(path: &Path, overrides: &Overrides) -> Result<Replayed, Error> {
    let replayed = load(path, overrides)?;
    if let Some(fault) = replayed.ending.fault() {
        say!("profiler: {} {fault}: it is read as far as it goes", path.display());
    }
    Ok(replayed)
}

/// The same from any stream.
pub fn load_stream(input: impl Read, overrides: &Overrides) -> Result<Replayed, String> {
    let mut meta = Meta::default();
    let mut accounts = Accounts::default();
    let mut tables = Tables::default();
    let (mut cpu, mut off_cpu, mut in_calls) =
        (Aggregator::default(), Aggregator::default(), Aggregator::default());
    // What is not made of samples is in several events: it is whole when the counts come that were recorded with it.
    let (mut sections, mut next) = (Totals::default(), None::<Totals>);
    let mut samples = Vec::new();
    let mut names = RecordedNames::default();
    let mut sections_ns = None;
    let ending = recording::read(input, |event| {
        match event {
            Event::Meta(recorded) => meta = recorded,
            Event::Module(module) => {
                if !tables.modules.insert(module) {
                    return Err("a module comes twice".to_owned());
                }
            }
            Event::Stack(stack) => {
                if stack.frames.iter().any(|frame| frame.module.0 as usize >= tables.modules.len())
                    || usize::from(stack.kernel_frames) > stack.frames.len()
                {
                    return Err("a stack refers to nothing".to_owned());
                }
                if !tables.stacks.insert(&stack).1 {
                    return Err("a stack comes twice".to_owned());
                }
            }
            Event::Thread(thread, name) => {
                tables.threads.insert(thread, name);
            }
            Event::Sample(sample) => {
                let nothing = || Err("a sample refers to nothing".to_owned());
                if sample.stack.0 as usize >= tables.stacks.len() {
                    return nothing();
                }
                let totals = match sample.kind(&tables) {
                    OFF_CPU => &mut off_cpu,
                    SYSCALLS => &mut in_calls,
                    _ => &mut cpu,
                };
                if !totals.add(&sample) {
                    return nothing();
                }
                samples.push(sample);
            }
            Event::Names(some) => names.0.extend(some),
            Event::Accounts(recorded) => {
                accounts = recorded;
                if let Some(whole) = next.take() {
                    sections = whole;
                    sections_ns = Some(accounts.duration_ns);
                }
            }
            Event::Blocking(recorded) => {
                if recorded.stacks().any(|stack| stack.0 as usize >= tables.stacks.len()) {
                    return Err("a stall refers to nothing".to_owned());
                }
                next.get_or_insert_default().blocking = Some(*recorded);
            }
            Event::Calls(recorded) => {
                if recorded.stacks().any(|stack| stack.0 as usize >= tables.stacks.len()) {
                    return Err("a system call refers to nothing".to_owned());
                }
                next.get_or_insert_default().calls = Some(*recorded);
            }
            Event::Memory(recorded) => {
                if recorded.stacks().any(|stack| stack.0 as usize >= tables.stacks.len()) {
                    return Err("a page fault refers to nothing".to_owned());
                }
                next.get_or_insert_default().memory = Some(*recorded);
            }
            Event::Sites(sites) => {
                if sites.iter().any(|site| site.stack.0 as usize >= tables.stacks.len()) {
                    return Err("an allocation refers to nothing".to_owned());
                }
                next.get_or_insert_default().memory.get_or_insert_default().sites.extend(sites);
            }
            Event::Vitals(recorded) => next.get_or_insert_default().vitals = Some(*recorded),
            Event::Requests(recorded) => {
                if recorded.stacks().any(|stack| stack.0 as usize >= tables.stacks.len()) {
                    return Err("a request refers to nothing".to_owned());
                }
                next.get_or_insert_default().requests = Some(*recorded);
            }
            Event::End => {}
        }
        Ok(())
    })?;
    let (off_cpu, in_calls) = (off_cpu.snapshot(), in_calls.snapshot());
    let totals = Totals {
        cpu: cpu.snapshot(),
        off_cpu: (sections.blocking.is_some() || off_cpu.total > 0).then_some(off_cpu),
        in_calls: (sections.calls.is_some() || in_calls.total > 0).then_some(in_calls),
        ..sections
    };
    let run = naming::run(meta, accounts, totals, &tables, &mut names, Detail::Full);
    Ok(Replayed { run, samples, tables, ending, sections_ns }.judged(overrides))
}

/// The names that a recording holds itself.
#[derive(Default)]
struct RecordedNames(FxHashMap<Frame, Vec<Function>>);

impl Symbolizer for RecordedNames {
    fn functions(
        &mut self,
        id: ModuleId,
        _module: &Module,
        addresses: &[u64],
        _detail: Detail,
    ) -> Vec<Option<Vec<Function>>> {
        addresses.iter().map(|&address| self.0.get(&Frame { module: id, address }).cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::model::{
        memory::{Memory, fixtures::site},
        sections::Sections,
        stack::{ModuleKind, Stack, StackEnd, StackId, ThreadKey},
        wait::{Blocking, ThreadTime},
    };

    /// A run whose sections are a third of what there is room for each time, which ends in its sixth second.
    #[test]
    fn what_a_recording_that_was_cut_off_lacks_is_known() {
        let mut tables = Tables::default();
        let module = tables.module_id(Module::special(ModuleKind::Kernel));
        let frame = Frame { module, address: 7 };
        tables.stacks.insert(&Stack { frames: [frame].into(), kernel_frames: 1, end: StackEnd::Complete });
        let thread = ThreadKey { pid: 1, tid: 1 };
        let sample = Sample { time_ns: 1, thread, cpu: 0, stack: StackId(0), weight: 1, cause: None };
        let of = ThreadTime { name: "x".repeat(recording::TOLD_BYTES as usize / 3), ..ThreadTime::default() };
        let blocking = Blocking { threads: vec![of], ..Blocking::default() };
        let named = [(frame, vec![Function { name: "read_tsc".into(), ..Function::default() }])];

        let mut recorder = Recorder::new(Vec::new(), &Meta::default()).unwrap();
        for second in 1..=5 {
            recorder.sample(&sample, &tables, None).unwrap();
            let accounts = Accounts { duration_ns: second * 1_000_000_000, ..Accounts::default() };
            let sections = Sections { blocking: Some(&blocking), ..Sections::default() };
            let names = if second == 1 { &named[..] } else { &[] };
            recorder.checkpoint(&accounts, sections, &tables, names).unwrap();
        }
        let cut = load_stream(&recorder.inner()[..], &Overrides::default()).unwrap();
        assert_eq!((&cut.ending, cut.sections_ns), (&Ending::CutOff, Some(3_000_000_000)));
        assert_eq!(cut.run.verdict.as_ref().unwrap().doubts, [""; 0], "of two times nothing can be compared");
        let lacks = cut.lacks().unwrap();
        assert!(lacks.starts_with("was cut off: it holds 5.0 s of the run and 5 CPU samples"), "{lacks}");
        assert!(lacks.ends_with("are those of its first 3.0 s"), "{lacks}");
        let functions: Vec<_> =
            cut.run.cpu.functions(&cut.run.cpu.stacks[0]).map(|(of, ..)| &*of.name).collect();
        assert_eq!(functions, ["read_tsc"], "a function has its name before the run is over");

        // Cut off within what is whole only together: what was whole before counts.
        let memory = Memory { sites: vec![site(0, [1.0])], ..Memory::default() };
        let mut memories = Recorder::new(Vec::new(), &Meta::default()).unwrap();
        let sections = Sections { memory: Some(&memory), ..Sections::default() };
        memories.checkpoint(&Accounts::default(), sections, &tables, &[]).unwrap();
        memories.event(&Event::Memory(Box::default())).unwrap();
        memories.out.flush().unwrap();
        let cut = load_stream(&memories.inner()[..], &Overrides::default()).unwrap();
        assert_eq!((cut.run.memory.as_ref(), cut.ending), (Some(&memory), Ending::CutOff));

        let end = Accounts { duration_ns: 6_000_000_000, ..Accounts::default() };
        let sections = Sections { blocking: Some(&blocking), ..Sections::default() };
        let whole = recorder.finish(&end, sections, &tables, &named);
        let whole = load_stream(&whole.unwrap()[..], &Overrides::default()).unwrap();
        assert_eq!((whole.lacks(), whole.sections_ns), (None, Some(6_000_000_000)));
    }
}
