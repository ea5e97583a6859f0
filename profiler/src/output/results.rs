//! Where the results of a run go, live or replayed. Each output succeeds or fails alone; whatever becomes of them, the
//! report reaches the terminal, and what could not be written where it was asked for is kept.

use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    sync::mpsc::{SyncSender, sync_channel},
    thread,
};

use anyhow::Result;
use tempfile::TempPath;

use crate::{
    detect::rule::Overrides,
    error::Error,
    model::{
        kind::ProfileKind,
        report::{Accounts, Meta, Run},
        sample::Sample,
        sections::Sections,
        stack::{Frame, Tables},
        totals::Snapshot,
    },
    output::{Destination, Format, OutputSpec, RenderOptions, open_in_place, report, summary, text::Style},
    recording::{
        Recorder,
        load::{load, names},
        normal::Normal,
    },
    say,
    symbolize::Function,
};

/// Everything that a run writes. Opened before it starts, so that what cannot be written is known at once.
pub struct Results {
    rendered: Vec<(Destination, OutputSpec)>,
    waiting: Vec<(PathBuf, File)>,
    recorders: Vec<(PathBuf, Recorder<BufWriter<File>>)>,
    /// The report goes to stderr: stdout belongs to an output, or to the command that is profiled.
    stdout_taken: bool,
    failed: Vec<Failure>,
    /// What is normal, and the recording to compare with it, unless there is one anyway.
    baseline: Option<(Normal, Option<TempPath>)>,
    /// Has recordings put on the disk.
    sync: Option<Beside>,
}

/// An output that could not be written.
struct Failure {
    output: String,
    reason: String,
}

impl Results {
    /// Opens all outputs. With `stdout_taken` stdout belongs to somebody else.
    pub fn open(outputs: &[OutputSpec], stdout_taken: bool) -> Result<Results, Error> {
        let mut results = Results {
            rendered: Vec::new(),
            waiting: Vec::new(),
            recorders: Vec::new(),
            stdout_taken,
            failed: Vec::new(),
            baseline: None,
            sync: None,
        };
        for spec in outputs {
            match (spec.format, &spec.path) {
                (Format::Profile(_) | Format::Run(_), path) => {
                    let destination = Destination::open(path.as_deref())?;
                    results.stdout_taken |= destination.is_stdout();
                    results.rendered.push((destination, spec.clone()));
                }
                (Format::Recording, Some(path)) => {
                    // Under its own name from the start: what is recorded survives the profiler. An older
                    // recording is emptied only once profiling starts.
                    let file = open_in_place(path);
                    let file =
                        file.map_err(|reason| Error::OutputNotWritable { path: path.clone(), reason })?;
                    results.waiting.push((path.clone(), file));
                }
                (Format::Recording, None) => {}
            }
        }
        Ok(results)
    }

    /// Has the run compared with a recording. A comparison needs samples with their times, which the run itself does not
    /// keep: they are recorded, for the time being if not for good.
    pub fn compare_with(&mut self, baseline: &Path) -> Result<(), Error> {
        let normal = Normal::load(baseline)?;
        let own = if self.waiting.is_empty() {
            let folder = std::env::temp_dir();
            let file = tempfile::Builder::new().prefix("profiler-").suffix(".prec").tempfile();
            let file = file.map_err(|reason| Error::OutputNotWritable { path: folder, reason })?;
            let (file, path) = file.into_parts();
            self.waiting.push((path.to_path_buf(), file));
            Some(path)
        } else {
            None
        };
        self.baseline = Some((normal, own));
        Ok(())
    }

    /// Compares what was recorded.
    fn compare(&mut self, run: &mut Run, recorded: Option<&Path>) {
        let Some((normal, own)) = self.baseline.take() else { return };
        let compared = recorded.map(|path| load(path, &Overrides::default()));
        match compared {
            Some(Ok(now)) => run.baseline = Some(normal.compare(&now.measured())),
            Some(Err(error)) => say!("profiler: nothing is compared with the baseline: {error}"),
            None => say!("profiler: nothing is compared with the baseline: the run could not be recorded"),
        }
        drop(own);
    }

    /// Fails if an output needs a kind of profile that is not among those there are or will be, or requests where there are none.
    pub fn check(&self, kinds: &[ProfileKind], requests: bool) -> Result<(), Error> {
        for (_, spec) in &self.rendered {
            let missing = match spec.format {
                Format::Profile(_) => (!kinds.contains(&spec.kind)).then_some(spec.kind.name),
                Format::Run(_) => (spec.of_requests && !requests).then_some("requests"),
                Format::Recording => None,
            };
            if let Some(kind) = missing {
                return Err(Error::NotMeasured { kind, output: spec.to_string() });
            }
        }
        Ok(())
    }

    /// Begins the recordings.
    pub fn start_recordings(&mut self, meta: &Meta) {
        for (path, file) in std::mem::take(&mut self.waiting) {
            // A pipe or a device has no length.
            let emptied = if file.metadata().is_ok_and(|of| of.is_file()) { file.set_len(0) } else { Ok(()) };
            match emptied.and_then(|()| Recorder::new(BufWriter::new(file), meta)) {
                Ok(recorder) => self.recorders.push((path, recorder)),
                Err(error) => self.fail_recording(&path, &error),
            }
        }
    }

    /// Records a sample.
    pub fn record(&mut self, sample: &Sample, tables: &Tables, new_thread_name: Option<&str>) {
        self.each_recorder(|recorder| recorder.sample(sample, tables, new_thread_name));
    }

    /// Whether anything is recorded as it happens.
    pub fn is_recording(&self) -> bool {
        !self.recorders.is_empty()
    }

    /// Makes everything recorded so far safe, `names` that were found since the last time among it: from the profiler's own end
    /// at once, from that of the machine soon.
    pub fn checkpoint(
        &mut self,
        accounts: &Accounts,
        sections: Sections<'_>,
        tables: &Tables,
        names: &[(Frame, Vec<Function>)],
    ) {
        self.each_recorder(|recorder| recorder.checkpoint(accounts, sections, tables, names));
        if self.sync.is_none() {
            let files = self.recorders.iter().filter_map(|(path, recorder)| {
                let file = recorder.inner().get_ref().try_clone().ok()?;
                file.metadata().is_ok_and(|of| of.is_file()).then_some((path.clone(), file))
            });
            self.sync = Beside::start("sync", put_on_disk(files.collect()));
        }
        if let Some(sync) = &self.sync {
            sync.ask();
        }
    }

    /// Writes every output, then the report. If anything cannot be written and there are `totals`, which `run` was made
    /// of, everything is kept as a recording.
    pub fn finish(
        mut self,
        run: &mut Run,
        totals: Option<&[Snapshot]>,
        tables: &Tables,
        options: &RenderOptions,
    ) -> Result<()> {
        let names = names(run);
        let mut recorded = None;
        for (path, recorder) in std::mem::take(&mut self.recorders) {
            let finished = recorder.finish(&run.cpu.accounts, run.sections(), tables, &names);
            match finished.and_then(|mut out| out.flush()) {
                Ok(()) => recorded = Some(path),
                Err(error) => self.fail_recording(&path, &error),
            }
        }
        let own = self.baseline.as_ref().and_then(|(_, own)| own.as_ref()).map(|own| own.to_path_buf());
        self.compare(run, recorded.as_deref());
        let recorded = recorded.filter(|path| Some(path) != own.as_ref());
        for (destination, spec) in std::mem::take(&mut self.rendered) {
            let stdout = destination.is_stdout();
            if let Err(error) = destination.finish(|out| spec.write(run, options, out))
                && !(stdout && is_broken_pipe(&error))
            {
                // An error that names the output already is told without doing so twice.
                let reason = match error.downcast::<Error>() {
                    Ok(Error::OutputNotWritable { reason, .. }) => reason.to_string(),
                    Ok(other) => other.to_string(),
                    Err(other) => format!("{other:#}"),
                };
                self.failed.push(Failure { output: spec.to_string(), reason });
            }
        }
        if let Err(error) = print_report(run, options, self.stdout_taken) {
            self.failed.push(Failure { output: "the report".to_owned(), reason: error.to_string() });
        }
        if self.failed.is_empty() {
            return Ok(());
        }
        for Failure { output, reason } in &self.failed {
            say!("profiler: cannot write {output}: {reason}");
        }
        let kept = match (recorded, totals) {
            (Some(path), _) => Some(Ok(path)),
            (None, Some(totals)) => Some(keep(run, totals, tables)),
            (None, None) => None, // the recording that is replayed is still there
        };
        match kept {
            Some(Ok(path)) => say!(
                "profiler: everything that was measured is in {0}; `profiler replay {0} -o FILE` writes it",
                path.display()
            ),
            Some(Err(error)) => {
                say!("profiler: it cannot be kept in {} either: {error}", std::env::temp_dir().display());
            }
            None => {}
        }
        Err(Error::OutputsFailed(self.failed.len()).into())
    }

    /// Whoever fails to record is not asked again; the run and all others go on.
    fn each_recorder(&mut self, mut record: impl FnMut(&mut Recorder<BufWriter<File>>) -> io::Result<()>) {
        let mut failed = Vec::new();
        self.recorders.retain_mut(|(path, recorder)| match record(recorder) {
            Ok(()) => true,
            Err(error) => {
                failed.push((path.clone(), error));
                false
            }
        });
        for (path, error) in failed {
            say!("profiler: {} ends here: {error}; profiling goes on", path.display());
            self.fail_recording(&path, &error);
        }
    }

    fn fail_recording(&mut self, path: &Path, error: &io::Error) {
        self.failed.push(Failure { output: path.display().to_string(), reason: error.to_string() });
    }
}

/// Has the system put on the disk what these files were written, and says once where it cannot.
fn put_on_disk(mut files: Vec<(PathBuf, File)>) -> impl FnMut() {
    move || {
        files.retain(|(path, file)| {
            let done = file.sync_data();
            if let Err(error) = &done {
                say!("profiler: {} may not be on the disk: {error}", path.display());
            }
            done.is_ok()
        });
    }
}

/// What is done on a thread of its own, however long it takes.
struct Beside(SyncSender<()>);

impl Beside {
    /// Starts the thread, which ends with this. `None` if there can be none.
    fn start(name: &str, mut work: impl FnMut() + Send + 'static) -> Option<Beside> {
        let (ask, asked) = sync_channel(1);
        let run = move || asked.iter().for_each(|()| work());
        thread::Builder::new().name(name.to_owned()).spawn(run).ok()?;
        Some(Beside(ask))
    }

    /// Has it done once more, from now on; where that waits to be done already, it is the same.
    fn ask(&self) {
        let _waits_already = self.0.try_send(());
    }
}

/// Keeps a run as a recording in the folder for temporary files, readable by its owner only. Samples are added up by
/// thread and stack in it.
fn keep(run: &Run, totals: &[Snapshot], tables: &Tables) -> Result<PathBuf> {
    let mut file = tempfile::Builder::new().prefix("profiler-").suffix(".prec").tempfile()?;
    let mut recorder = Recorder::new(BufWriter::new(file.as_file_mut()), &run.cpu.meta)?;
    for (thread, name) in &tables.threads {
        recorder.thread(*thread, name)?;
    }
    for snapshot in totals {
        recorder.totals(snapshot, tables)?;
    }
    recorder.finish(&run.cpu.accounts, run.sections(), tables, &names(run))?.flush()?;
    Ok(file.keep()?.1)
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

/// Functions in the one table of the short report, and in each of the long one.
const TOP: (usize, usize) = (7, 20);

/// Prints the report on stdout, or on stderr if stdout is taken or cannot be written. A reader that has seen enough
/// (`| head`) is no failure.
fn print_report(run: &Run, options: &RenderOptions, stdout_taken: bool) -> Result<()> {
    let text = |terminal| -> Result<Vec<u8>> {
        let details = options.details || options.threads;
        let long = style(terminal, options.threads, options.top.unwrap_or(TOP.1));
        let columns = long.width.unwrap_or(summary::COLUMNS).min(summary::COLUMNS);
        let short = Style { width: Some(columns), top: options.top.unwrap_or(TOP.0), ..long };
        let mut text = Vec::new();
        summary::write(run, &short, &mut text)?;
        if details {
            writeln!(text)?;
            report::write(run, &long, &mut text)?;
        }
        Ok(text)
    };
    if !stdout_taken {
        let (text, mut out) = (text(io::stdout().is_terminal())?, io::stdout().lock());
        match out.write_all(&text).and_then(|()| out.flush()) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => say!("profiler: cannot write the report to stdout: {error}; here it is"),
        }
    }
    let (text, mut out) = (text(io::stderr().is_terminal())?, io::stderr().lock());
    match out.write_all(&text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|io| io.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn what_is_done_beside_holds_nobody_up() {
        let ((begun, begins), (go_on, goes_on)) = (channel(), channel::<()>());
        let beside = Beside::start("test", move || {
            begun.send(()).unwrap();
            let _over = goes_on.recv();
        });
        let beside = beside.unwrap();
        beside.ask();
        begins.recv().unwrap();
        // It is at work, which takes as long as this test wants it to.
        (0..10).for_each(|_| beside.ask());
        drop(beside);
        go_on.send(()).unwrap();
        drop(go_on);
        assert_eq!(begins.iter().count(), 1, "once more for all that was asked meanwhile");
    }
}
