//! The end of the pipeline, shared by live runs and replays: where results go. And `profiler replay` itself.

use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Result;
use rustc_hash::FxHashMap;

use crate::{
    aggregate::Aggregator,
    blocking::Blocking,
    calls::Calls,
    cli::{DiffArgs, ReplayArgs, ReportArgs},
    detect::memory_diff,
    error::Error,
    memory::Memory,
    output::{
        self, Destination, Format, OutputSpec, RenderOptions,
        report::{self, Style},
    },
    profile::{Accounts, Meta, Run, Totals},
    recording::{self, Ending, Event, Recorder, Told},
    sample::{Frame, KINDS, Module, ModuleId, OFF_CPU, ProfileKind, SYSCALLS, Sample, Tables},
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

/// What a recording holds of a run's names.
fn names(run: &Run) -> Vec<(Frame, Vec<Function>)> {
    let each = run.names().frames.iter().map(|frame| {
        let address = Frame { module: ModuleId(frame.module as u32), address: frame.address };
        (address, frame.functions.clone())
    });
    each.collect()
}

/// How to lay text out, on a terminal or elsewhere.
fn style(terminal: bool, threads: bool, top: usize) -> Style {
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

/// Turns a recording into a report and any other output.
pub fn run(args: &ReplayArgs) -> Result<()> {
    let mut results = Results::open(&args.report)?;
    let Replayed { run, samples, tables, ending } = load(&args.recording)?;
    let measured = KINDS.into_iter().filter(|kind| run.profile(kind).is_some());
    results.check(&measured.collect::<Vec<_>>())?;
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

/// Writes a recording of nothing but memory: a snapshot.
pub fn write_snapshot(path: &Path, run: &Run, tables: &Tables) -> Result<()> {
    Destination::open(Some(path))?.finish(|out| {
        let recorder = Recorder::new(out, &run.cpu.meta)?;
        recorder.finish(&run.cpu.accounts, run.told(), tables, &names(run))?;
        Ok(())
    })
}

/// Says what has changed between two snapshots or recordings.
pub fn diff(args: &DiffArgs) -> Result<()> {
    let load = |path: &PathBuf| -> Result<Run> {
        let run = load(path)?.run;
        if run.memory.as_ref().is_none_or(|memory| memory.sites.is_empty()) {
            let reason = "it holds no allocations (--alloc full watches them from the start)".to_owned();
            return Err(Error::BadRecording { path: path.clone(), reason }.into());
        }
        Ok(run)
    };
    let found = memory_diff::diff(&load(&args.before)?, &load(&args.after)?);
    let mut text = Vec::new();
    if args.json {
        output::diff::write_json(&found, &mut text)?;
    } else {
        let style = style(io::stdout().is_terminal(), false, args.top.into());
        output::diff::write(&found, &style, &mut text)?;
    }
    let mut out = io::stdout().lock();
    out.write_all(&text)?;
    Ok(out.flush()?)
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
    let (mut cpu, mut off_cpu, mut in_calls) =
        (Aggregator::default(), Aggregator::default(), Aggregator::default());
    let mut blocking: Option<Blocking> = None;
    let mut calls: Option<Calls> = None;
    let mut memory: Option<Memory> = None;
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
        memory,
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        aggregate::{
            intern_stack,
            waits::{Now, Waits},
        },
        blocking::{ThreadTime, WaitCause},
        calls::KindWaits,
        detect::{
            long_wait::fixtures::wait,
            stall::fixtures::{LOOP, turn},
            threshold::Thresholds,
        },
        memory::{Footprint, fixtures::site},
        output::FORMATS,
        sample::{CPU, ModuleKind, Stack, StackEnd, StackId, ThreadKey},
    };

    /// Names every address but each seventh.
    struct Fake;

    impl Symbolizer for Fake {
        fn functions(
            &mut self,
            _: ModuleId,
            _: &Module,
            addresses: &[u64],
            _: Detail,
        ) -> Vec<Option<Vec<Function>>> {
            let name = |address| Function { name: format!("f{address}"), file: None, line: None };
            addresses.iter().map(|&address| (address % 7 != 0).then(|| vec![name(address)])).collect()
        }
    }

    /// Every rendering of a run.
    fn render(run: &Run) -> Vec<Vec<u8>> {
        let mut outputs = Vec::new();
        let options = RenderOptions { threads: true, top: 10 };
        for (extension, _) in FORMATS.iter().filter(|(_, format)| !matches!(format, Format::Recording)) {
            for kind in KINDS {
                let spec: OutputSpec = format!("{}:x{extension}", kind.name).parse().unwrap();
                let mut out = Vec::new();
                spec.write(run, &options, &mut out).unwrap();
                outputs.push(out);
            }
        }
        let mut out = Vec::new();
        report::write(run, &Style { colour: false, width: None, threads: true, top: 10 }, &mut out).unwrap();
        outputs.push(out);
        outputs
    }

    fn stack(tables: &mut Tables, address: u64) -> StackId {
        let kernel = tables.module_id(Module::special(ModuleKind::Kernel));
        let module = tables.module_id(Module::special(ModuleKind::Jit(7)));
        let user = (1..=address % 4 + 1).map(|i| Frame { module, address: address / i });
        let frames = std::iter::once(Frame { module: kernel, address }).chain(user).collect();
        intern_stack(tables, Stack { frames, kernel_frames: 1, end: StackEnd::Complete }).unwrap()
    }

    /// What a live run does with samples (thread, stack, weight, cause) and stalls (start and length, ms), into a
    /// recording at `path`.
    fn record(path: &std::path::Path, samples: &[(u32, u64, u64, u32)], stalls: &[(u64, u64)]) -> Run {
        const MS: u64 = 1_000_000;
        let mut tables = Tables::default();
        let meta = Meta { target: "pid 7".into(), period_ns: 10 * MS, ..Meta::default() };
        let mut recorder = Recorder::new(Vec::new(), &meta).unwrap();
        let (mut cpu, mut off_cpu, mut in_calls) =
            (Aggregator::default(), Aggregator::default(), Aggregator::default());
        let mut calls = Calls::default();
        let mut waits = Waits::new(Thresholds::default());
        waits.add_loop(LOOP);
        let processes = vec![Footprint { pid: 7, process: "t7".into(), ..Footprint::default() }];
        let mut memory = Memory { processes, ..Memory::default() };
        for (i, &(tid, address, weight, cause)) in samples.iter().enumerate() {
            let thread = ThreadKey { pid: 7, tid };
            let (stack, time_ns) = (stack(&mut tables, address), i as u64 * 10 * MS);
            let cause = (cause > 0).then(|| WaitCause::from_number(cause));
            let sample = Sample { time_ns, thread, cpu: 0, stack, weight, cause };
            let name = format!("t{tid}");
            let new = tables.threads.insert(thread, name.clone()).is_none().then_some(name.as_str());
            recorder.sample(&sample, &tables, new).unwrap();
            assert!(if cause.is_some() { off_cpu.add(&sample) } else { cpu.add(&sample) });
            if cause.is_none() {
                waits.cpu_sample(thread, time_ns, stack, true);
            }
            let mut in_call = tables.stack(stack).clone();
            let module = tables.module_id(Module::special(ModuleKind::Syscall));
            in_call.frames = in_call.frames.iter().copied().chain([Frame { module, address: 1 }]).collect();
            let stack = intern_stack(&mut tables, in_call).unwrap();
            let sample = Sample { stack, cause: None, ..sample };
            recorder.sample(&sample, &tables, None).unwrap();
            assert!(in_calls.add(&sample));
            calls.waits.push(KindWaits {
                pid: 7,
                process: name,
                kind: crate::calls::CallKind::Pipe,
                peer: String::new(),
                lengths: crate::blocking::Summary::default(),
                stack: Some(stack),
            });
        }
        for &(start, length) in stalls {
            let mut slow = wait(LOOP.tid, start * MS, length * MS / 2, 0, WaitCause::Disk);
            slow.block.stack = Some(stack(&mut tables, 1000 + start)); // in no sample
            let slow_site = slow.block.stack.map(|stack| site(stack.0, [0.0, length as f64]));
            waits.wait(slow);
            waits.turn(&turn(start * MS, (start + length) * MS, length * MS / 2, 0));
            memory.sites.extend(slow_site);
            let mut starved = wait(9, start, 0, length * MS, WaitCause::Other);
            starved.block.stack = None;
            waits.wait(starved);
        }
        let threads = vec![ThreadTime { thread: LOOP, wall_ns: 10, on_cpu_ns: 10, ..ThreadTime::default() }];
        let blocking = waits.blocking(Now { threads, ..Now::default() });
        let told = Told { blocking: Some(&Blocking::default()), memory: Some(&memory), calls: None };
        recorder.checkpoint(&Accounts::default(), told, &tables).unwrap();
        let totals = Totals {
            cpu: cpu.snapshot(),
            off_cpu: Some(off_cpu.snapshot()),
            in_calls: Some(in_calls.snapshot()),
            blocking: Some(blocking),
            calls: Some(calls),
            memory: Some(memory),
        };
        let run = Run::build(meta, Accounts::default(), totals, &tables, &mut Fake, Detail::Full);
        let written = recorder.finish(&run.cpu.accounts, run.told(), &tables, &names(&run)).unwrap();
        std::fs::write(path, written).unwrap();
        run
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_replay_gives_the_same_outputs(
            samples in prop::collection::vec((7u32..10, 0u64..40, 1u64..1000, 0u32..11), 0..60),
            stalls in prop::collection::vec((0u64..1000, 1u64..200), 0..20),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("x.prec");
            let live = record(&path, &samples, &stalls);
            let replayed = load(&path).unwrap();
            prop_assert_eq!(replayed.ending, Ending::Complete);
            prop_assert_eq!(&replayed.run.blocking, &live.blocking);
            prop_assert_eq!(&replayed.run.calls, &live.calls);
            prop_assert_eq!(&replayed.run.memory, &live.memory);
            prop_assert_eq!(replayed.samples.len(), samples.len() * 2);
            prop_assert!(render(&replayed.run) == render(&live));
            let of_kind = |waiting: bool| -> u64 {
                samples.iter().filter(|(.., cause)| (*cause > 0) == waiting).map(|(_, _, weight, _)| weight).sum()
            };
            prop_assert_eq!((live.cpu.total, live.off_cpu.unwrap().total), (of_kind(false), of_kind(true)));
        }
    }

    #[test]
    fn a_stall_call_or_site_that_refers_to_nothing_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.prec");
        let live = record(&path, &[(7, 1, 5, 0)], &[(0, 100)]);
        let nothing = Tables::default();
        let (told, nobody) = (live.told(), Told::default());
        for told in [
            Told { blocking: told.blocking, ..nobody },
            Told { memory: told.memory, ..nobody },
            Told { calls: told.calls, ..nobody },
        ] {
            let recorder = Recorder::new(Vec::new(), &live.cpu.meta).unwrap();
            let written = recorder.finish(&live.cpu.accounts, told, &nothing, &[]).unwrap();
            std::fs::write(&path, written).unwrap();
            assert!(load(&path).err().unwrap().to_string().contains("refers to nothing"));
        }
    }

    #[test]
    fn a_snapshot_is_a_recording() {
        let dir = tempfile::tempdir().unwrap();
        let (recorded, path) = (dir.path().join("run.prec"), dir.path().join("snapshot.prec"));
        record(&recorded, &[(7, 1, 5, 0)], &[(0, 100), (5, 100)]);
        let Replayed { run, tables, .. } = load(&recorded).unwrap();
        write_snapshot(&path, &run, &tables).unwrap();
        let back = load(&path).unwrap();
        assert_eq!((back.ending, back.samples.len()), (Ending::Complete, 0));
        assert_eq!(back.run.memory, run.memory);
        let changed = memory_diff::diff(&run, &back.run);
        assert_eq!((changed.places.len(), changed.total.0.bytes), (2, 200.0));
        assert!(changed.places.iter().all(|place| place.growth() == 0.0));
    }

    #[test]
    fn an_output_of_what_was_not_measured_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let check = |name: &str, kinds: &[ProfileKind]| {
            let outputs = vec![dir.path().join(name).display().to_string().parse().unwrap()];
            Results::open(&ReportArgs { outputs, threads: false, top: 1 }).unwrap().check(kinds)
        };
        assert!(check("offcpu.svg", &[CPU]).is_err());
        assert!(check("offcpu.svg", &KINDS).is_ok());
        assert!(check("offcpu.json", &[CPU]).is_ok(), "holds what there is");
    }
}
