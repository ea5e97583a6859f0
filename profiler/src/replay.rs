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
    cli::{ReplayArgs, ReportArgs},
    error::Error,
    output::{
        Destination, Format, RenderOptions, WriteProfile,
        report::{self, Style},
    },
    profile::{Accounts, Meta, Profile},
    recording::{self, Ending, Event, Recorder},
    sample::{CPU, Frame, Module, ModuleId, Sample, Tables},
    symbolize::{Detail, Function, Symbolizer},
};

/// Everything a run writes. Opened before it starts, so that what cannot be written is known at once.
pub struct Results {
    rendered: Vec<(Destination, WriteProfile)>,
    waiting: Vec<(PathBuf, File)>,
    recorders: Vec<(PathBuf, Recorder<BufWriter<File>>)>,
}

impl Results {
    /// Opens all outputs.
    pub fn open(args: &ReportArgs) -> Result<Results, Error> {
        let mut results = Results { rendered: Vec::new(), waiting: Vec::new(), recorders: Vec::new() };
        for spec in &args.outputs {
            match (spec.format, &spec.path) {
                (Format::Rendered(write), path) => {
                    results.rendered.push((Destination::open(path.as_deref())?, write));
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
    pub fn checkpoint(&mut self, accounts: &Accounts) -> Result<()> {
        self.each_recorder(|recorder| recorder.checkpoint(accounts))
    }

    /// Writes every output, then the report.
    pub fn finish(self, profile: &Profile, options: &RenderOptions) -> Result<()> {
        let names: Vec<(Frame, Vec<Function>)> = profile
            .frames
            .iter()
            .map(|frame| {
                let address = Frame { module: ModuleId(frame.module as u32), address: frame.address };
                (address, frame.functions.clone())
            })
            .collect();
        for (path, recorder) in self.recorders {
            let written = recorder.finish(&profile.accounts, &names).and_then(|mut out| out.flush());
            written.map_err(|reason| Error::OutputNotWritable { path, reason })?;
        }
        let stdout_taken = self.rendered.iter().any(|(destination, _)| destination.is_stdout());
        for (destination, write) in self.rendered {
            destination.finish(|out| write(profile, options, out))?;
        }
        if stdout_taken {
            print_report(profile, options, io::stderr().is_terminal(), &mut io::stderr().lock())
        } else {
            print_report(profile, options, io::stdout().is_terminal(), &mut io::stdout().lock())
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

fn print_report(
    profile: &Profile,
    options: &RenderOptions,
    terminal: bool,
    out: &mut dyn io::Write,
) -> Result<()> {
    let style = Style {
        colour: terminal && std::env::var_os("NO_COLOR").is_none(),
        width: terminal.then(|| terminal_size::terminal_size().map_or(100, |(width, _)| width.0.into())),
        threads: options.threads,
        top: options.top,
    };
    let mut text = Vec::new();
    report::write(profile, &style, &mut text)?;
    out.write_all(&text)?;
    Ok(out.flush()?)
}

/// Turns a recording into a report and any other output.
pub fn run(args: &ReplayArgs) -> Result<()> {
    let mut results = Results::open(&args.report)?;
    let (profile, samples, tables, ending) = load(&args.recording)?;
    if ending == Ending::CutOff {
        eprintln!(
            "profiler: {} ends early; this is what it holds, and symbols may be missing",
            args.recording.display()
        );
    }
    results.start_recordings(&profile.meta)?;
    for sample in &samples {
        let first = tables.threads.get(&sample.thread).map(String::as_str);
        results.record(sample, &tables, first)?;
    }
    let options = RenderOptions { threads: args.report.threads, top: args.report.top.into() };
    results.finish(&profile, &options)
}

/// Reads a recording back into a profile.
fn load(path: &std::path::Path) -> Result<(Profile, Vec<Sample>, Tables, Ending)> {
    let mut meta = Meta::default();
    let mut accounts = Accounts::default();
    let mut tables = Tables::default();
    let mut totals = Aggregator::default();
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
                if sample.stack.0 as usize >= tables.stacks.len() || !totals.add(&sample) {
                    return Err("it is damaged (a sample refers to nothing)".to_owned());
                }
                samples.push(sample);
            }
            Event::Names(some) => names.0.extend(some),
            Event::Accounts(recorded) => accounts = recorded,
            Event::End => {}
        }
        Ok(())
    })?;
    let profile = Profile::build(CPU, meta, accounts, &totals.snapshot(), &tables, &mut names, Detail::Full);
    Ok((profile, samples, tables, ending))
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
