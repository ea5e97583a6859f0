//! The end of the pipeline, shared by live runs and replays: where results go. And `profiler replay` itself.

use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal as _, Write as _},
    path::PathBuf,
};

use anyhow::Result;
use rustc_hash::FxHashMap;

use crate::{
    aggregate::Aggregator,
    blocking::Blocking,
    cli::{ReplayArgs, ReportArgs},
    error::Error,
    output::{
        Destination, Format, OutputSpec, RenderOptions,
        report::{self, Style},
    },
    profile::{Accounts, Meta, Run, Totals},
    recording::{self, Ending, Event, Recorder},
    sample::{CPU, Frame, KINDS, Module, ModuleId, ProfileKind, Sample, Tables},
    symbolize::{Detail, Function, Symbolizer},
};

/// Everything a run writes. Opened before it starts, so that what cannot be written is known at once.
pub struct Results {
    rendered: Vec<(Destination, OutputSpec)>,
    waiting: Vec<(PathBuf, File)>,
    recorders: Vec<(PathBuf, Recorder<BufWriter<File>>)>,
}

impl Results {
    /// Opens all outputs.
    pub fn open(args: &ReportArgs) -> Result<Results, Error> {
        let mut results = Results { rendered: Vec::new(), waiting: Vec::new(), recorders: Vec::new() };
        for spec in &args.outputs {
            match (spec.format, &spec.path) {
                (Format::Profile(_) | Format::Run(_), path) => {
                    results.rendered.push((Destination::open(path.as_deref())?, spec.clone()));
                }
                (Format::Recording, Some(path)) => {
                    // Under its own name from the start: what is recorded survives the profiler. An older
                    // recording is emptied only once profiling starts.
                    let file = File::options().write(true).create(true).truncate(false).open(path);
                    let file =
                        file.map_err(|reason| Error::OutputNotWritable { path: path.clone(), reason })?;
                    results.waiting.push((path.clone(), file));
                }
                (Format::Recording, None) => {}
            }
        }
        Ok(results)
    }

    /// Fails if an output needs a kind of profile that is not among those there are or will be.
    pub fn check(&self, kinds: &[ProfileKind]) -> Result<(), Error> {
        for (_, spec) in &self.rendered {
            if matches!(spec.format, Format::Profile(_)) && !kinds.contains(&spec.kind) {
                return Err(Error::NotMeasured { kind: spec.kind.name, output: spec.to_string() });
            }
        }
        Ok(())
    }

    /// Begins the recordings.
    pub fn start_recordings(&mut self, meta: &Meta) -> Result<()> {
        for (path, file) in self.waiting.drain(..) {
            let recorder = file.set_len(0).and_then(|()| Recorder::new(BufWriter::new(file), meta));
            self.recorders
                .push((path.clone(), recorder.map_err(|reason| Error::OutputNotWritable { path, reason })?));
        }
        Ok(())
    }

    /// Records a sample.
    pub fn record(&mut self, sample: &Sample, tables: &Tables, new_thread_name: Option<&str>) -> Result<()> {
        self.each_recorder(|recorder| recorder.sample(sample, tables, new_thread_name))
    }

    /// Makes everything recorded so far safe.
    pub fn checkpoint(
        &mut self,
        accounts: &Accounts,
        blocking: Option<&Blocking>,
        tables: &Tables,
    ) -> Result<()> {
        self.each_recorder(|recorder| recorder.checkpoint(accounts, blocking, tables))
    }

    /// Writes every output, then the report.
    pub fn finish(self, run: &Run, tables: &Tables, options: &RenderOptions) -> Result<()> {
        let names: Vec<(Frame, Vec<Function>)> = run
            .names()
            .frames
            .iter()
            .map(|frame| {
                let address = Frame { module: ModuleId(frame.module as u32), address: frame.address };
                (address, frame.functions.clone())
            })
            .collect();
        for (path, recorder) in self.recorders {
            let finished = recorder.finish(&run.cpu.accounts, run.blocking.as_ref(), tables, &names);
            let written = finished.and_then(|mut out| out.flush());
            written.map_err(|reason| Error::OutputNotWritable { path, reason })?;
        }
        let stdout_taken = self.rendered.iter().any(|(destination, _)| destination.is_stdout());
        for (destination, spec) in self.rendered {
            destination.finish(|out| spec.write(run, options, out))?;
        }
        if stdout_taken {
            print_report(run, options, io::stderr().is_terminal(), &mut io::stderr().lock())
        } else {
            print_report(run, options, io::stdout().is_terminal(), &mut io::stdout().lock())
        }
    }

    fn each_recorder(
        &mut self,
        mut record: impl FnMut(&mut Recorder<BufWriter<File>>) -> io::Result<()>,
    ) -> Result<()> {
        for (path, recorder) in &mut self.recorders {
            record(recorder).map_err(|reason| Error::OutputNotWritable { path: path.clone(), reason })?;
        }
        Ok(())
    }
}

fn print_report(run: &Run, options: &RenderOptions, terminal: bool, out: &mut dyn io::Write) -> Result<()> {
    let style = Style {
        colour: terminal && std::env::var_os("NO_COLOR").is_none(),
        width: terminal.then(|| terminal_size::terminal_size().map_or(100, |(width, _)| width.0.into())),
        threads: options.threads,
        top: options.top,
    };
    let mut text = Vec::new();
    report::write(run, &style, &mut text)?;
    out.write_all(&text)?;
    Ok(out.flush()?)
}

/// Turns a recording into a report and any other output.
pub fn run(args: &ReplayArgs) -> Result<()> {
    let mut results = Results::open(&args.report)?;
    let Replayed { run, samples, tables, ending } = load(&args.recording)?;
    results.check(if run.off_cpu.is_some() { &KINDS } else { &[CPU] })?;
    if ending == Ending::CutOff {
        eprintln!(
            "profiler: {} ends early; this is what it holds, and symbols may be missing",
            args.recording.display()
        );
    }
    results.start_recordings(&run.cpu.meta)?;
    for sample in &samples {
        let first = tables.threads.get(&sample.thread).map(String::as_str);
        results.record(sample, &tables, first)?;
    }
    let options = RenderOptions { threads: args.report.threads, top: args.report.top.into() };
    results.finish(&run, &tables, &options)
}

/// What is in a recording.
struct Replayed {
    run: Run,
    samples: Vec<Sample>,
    tables: Tables,
    ending: Ending,
}

/// Reads a recording back.
fn load(path: &std::path::Path) -> Result<Replayed> {
    let mut meta = Meta::default();
    let mut accounts = Accounts::default();
    let mut tables = Tables::default();
    let (mut cpu, mut off_cpu) = (Aggregator::default(), Aggregator::default());
    let mut blocking: Option<Blocking> = None;
    let mut samples = Vec::new();
    let mut names = RecordedNames::default();
    let ending = recording::read(path, |event| {
        match event {
            Event::Meta(recorded) => meta = recorded,
            Event::Module(module) => {
                tables.modules.insert(module);
            }
            Event::Stack(stack) => {
                if stack.frames.iter().any(|frame| frame.module.0 as usize >= tables.modules.len())
                    || usize::from(stack.kernel_frames) > stack.frames.len()
                {
                    return Err("it is damaged (a stack refers to nothing)".to_owned());
                }
                tables.stacks.insert(stack);
            }
            Event::Thread(thread, name) => {
                tables.threads.insert(thread, name);
            }
            Event::Sample(sample) => {
                let totals = if sample.cause.is_some() { &mut off_cpu } else { &mut cpu };
                if sample.stack.0 as usize >= tables.stacks.len() || !totals.add(&sample) {
                    return Err("it is damaged (a sample refers to nothing)".to_owned());
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
            Event::End => {}
        }
        Ok(())
    })?;
    let off_cpu = off_cpu.snapshot();
    let totals = Totals {
        cpu: cpu.snapshot(),
        off_cpu: (blocking.is_some() || off_cpu.total > 0).then_some(off_cpu),
        blocking,
    };
    let run = Run::build(meta, accounts, totals, &tables, &mut names, Detail::Full);
    Ok(Replayed { run, samples, tables, ending })
}

/// The names that a recording holds itself.
#[derive(Default)]
struct RecordedNames(FxHashMap<Frame, Vec<Function>>);

impl Symbolizer for RecordedNames {
    fn functions(
        &mut self,
        id: ModuleId,
        module: &Module,
        addresses: &[u64],
        _detail: Detail,
    ) -> Vec<Option<Vec<Function>>> {
        addresses
            .iter()
            .map(|&address| {
                let functions = self.0.get(&Frame { module: id, address })?;
                // Recorded as unknown is unknown.
                (functions != &[Function::unknown(module, address)]).then(|| functions.clone())
            })
            .collect()
    }
}
