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
        memory::Memory,
        part::part,
        report::{Accounts, Meta, Run, Totals},
        request::Requests,
        sample::Sample,
        stack::{Frame, Module, ModuleId, Tables},
        syscall::Calls,
        totals::Aggregator,
        vitals::Vitals,
        wait::Blocking,
    },
    naming,
    output::Destination,
    recording::{self, Ending, Event, Recorder},
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
}

impl Replayed {
    /// What comparisons read.
    pub fn measured(&self) -> Measured<'_> {
        Measured { run: &self.run, samples: &self.samples, tables: &self.tables }
    }

    /// The part of some of its processes, judged as if they had been profiled alone.
    pub fn only(mut self, pids: &BTreeSet<u32>, overrides: &Overrides) -> Replayed {
        self.run = part(&self.run, |pid| pids.contains(&pid));
        detect::judge(&mut self.run, overrides);
        self.samples.retain(|sample| pids.contains(&sample.thread.pid));
        self
    }
}

/// Reads a recording back.
pub fn load(path: &Path, overrides: &Overrides) -> Result<Replayed, Error> {
    let bad = |reason: String| Error::BadRecording { path: path.to_owned(), reason };
    let file = File::open(path).map_err(|error| bad(error.to_string()))?;
    load_stream(BufReader::new(file), overrides).map_err(bad)
}

/// The same from any stream.
pub fn load_stream(input: impl Read, overrides: &Overrides) -> Result<Replayed, String> {
    let mut meta = Meta::default();
    let mut accounts = Accounts::default();
    let mut tables = Tables::default();
    let (mut cpu, mut off_cpu, mut in_calls) =
        (Aggregator::default(), Aggregator::default(), Aggregator::default());
    let mut blocking: Option<Blocking> = None;
    let mut calls: Option<Calls> = None;
    let mut vitals: Option<Vitals> = None;
    let mut requests: Option<Requests> = None;
    let mut memory: Option<Memory> = None;
    let mut samples = Vec::new();
    let mut names = RecordedNames::default();
    let ending = recording::read(input, |event| {
        match event {
            Event::Meta(recorded) => meta = recorded,
            Event::Module(module) => {
                if !tables.modules.insert(module) {
                    return Err("it is damaged (a module comes twice)".to_owned());
                }
            }
            Event::Stack(stack) => {
                if stack.frames.iter().any(|frame| frame.module.0 as usize >= tables.modules.len())
                    || usize::from(stack.kernel_frames) > stack.frames.len()
                {
                    return Err("it is damaged (a stack refers to nothing)".to_owned());
                }
                if !tables.stacks.insert(&stack).1 {
                    return Err("it is damaged (a stack comes twice)".to_owned());
                }
            }
            Event::Thread(thread, name) => {
                tables.threads.insert(thread, name);
            }
            Event::Sample(sample) => {
                let nothing = || Err("it is damaged (a sample refers to nothing)".to_owned());
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
            Event::Accounts(recorded) => accounts = recorded,
            Event::Blocking(recorded) => {
                if recorded.stacks().any(|stack| stack.0 as usize >= tables.stacks.len()) {
                    return Err("it is damaged (a stall refers to nothing)".to_owned());
                }
                blocking = Some(*recorded);
            }
            Event::Calls(recorded) => {
                if recorded.stacks().any(|stack| stack.0 as usize >= tables.stacks.len()) {
                    return Err("it is damaged (a system call refers to nothing)".to_owned());
                }
                calls = Some(*recorded);
            }
            Event::Memory(recorded) => {
                if recorded.stacks().any(|stack| stack.0 as usize >= tables.stacks.len()) {
                    return Err("it is damaged (a page fault refers to nothing)".to_owned());
                }
                memory = Some(*recorded);
            }
            Event::Sites(sites) => {
                if sites.iter().any(|site| site.stack.0 as usize >= tables.stacks.len()) {
                    return Err("it is damaged (an allocation refers to nothing)".to_owned());
                }
                memory.get_or_insert_default().sites.extend(sites);
            }
            Event::Vitals(recorded) => vitals = Some(*recorded),
            Event::Requests(recorded) => {
                if recorded.stacks().any(|stack| stack.0 as usize >= tables.stacks.len()) {
                    return Err("it is damaged (a request refers to nothing)".to_owned());
                }
                requests = Some(*recorded);
            }
            Event::End => {}
        }
        Ok(())
    })?;
    let (off_cpu, in_calls) = (off_cpu.snapshot(), in_calls.snapshot());
    let totals = Totals {
        cpu: cpu.snapshot(),
        off_cpu: (blocking.is_some() || off_cpu.total > 0).then_some(off_cpu),
        in_calls: (calls.is_some() || in_calls.total > 0).then_some(in_calls),
        blocking,
        calls,
        requests,
        vitals,
        memory,
    };
    let mut run = naming::run(meta, accounts, totals, &tables, &mut names, Detail::Full);
    detect::judge(&mut run, overrides);
    Ok(Replayed { run, samples, tables, ending })
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
