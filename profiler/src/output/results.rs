//! Where the results of a run go, live or replayed: recordings while it goes on, files and the report at its end.

use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal as _, Write as _},
    path::PathBuf,
};

use anyhow::Result;

use crate::{
    cli::ReportArgs,
    error::Error,
    model::{
        kind::ProfileKind,
        report::{Accounts, Meta, Run},
        sample::Sample,
        sections::Told,
        stack::Tables,
    },
    output::{
        Destination, Format, OutputSpec, RenderOptions,
        report::{self, Style},
    },
    recording::{Recorder, load::names},
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

    /// Whether anything is recorded as it happens.
    pub fn is_recording(&self) -> bool {
        !self.recorders.is_empty()
    }

    /// Makes everything recorded so far safe.
    pub fn checkpoint(&mut self, accounts: &Accounts, told: Told<'_>, tables: &Tables) -> Result<()> {
        self.each_recorder(|recorder| recorder.checkpoint(accounts, told, tables))
    }

    /// Writes every output, then the report.
    pub fn finish(self, run: &Run, tables: &Tables, options: &RenderOptions) -> Result<()> {
        let names = names(run);
        for (path, recorder) in self.recorders {
            let finished = recorder.finish(&run.cpu.accounts, run.told(), tables, &names);
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

/// How to lay text out, on a terminal or elsewhere.
pub fn style(terminal: bool, threads: bool, top: usize) -> Style {
    Style {
        colour: terminal && std::env::var_os("NO_COLOR").is_none(),
        width: terminal.then(|| terminal_size::terminal_size().map_or(100, |(width, _)| width.0.into())),
        threads,
        top,
    }
}

fn print_report(run: &Run, options: &RenderOptions, terminal: bool, out: &mut dyn io::Write) -> Result<()> {
    let style = style(terminal, options.threads, options.top);
    let mut text = Vec::new();
    report::write(run, &style, &mut text)?;
    out.write_all(&text)?;
    Ok(out.flush()?)
}
