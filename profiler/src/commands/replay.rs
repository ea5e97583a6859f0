//! `profiler replay`: turns a recording into a report and any other output, as a live run would have.

use anyhow::Result;

use crate::{
    cli::ReplayArgs,
    daemon::evidence,
    error,
    model::{kind::KINDS, report::Run},
    output::results::Results,
    quit,
    recording::{
        Ending,
        load::{Replayed, load},
        normal::Normal,
    },
    say,
};

/// Turns a recording into a report and any other output. Returns the exit code.
pub fn run(args: &ReplayArgs) -> Result<u8> {
    let mut results = Results::open(&args.report.outputs, false)?;
    let normal = args.report.baseline.as_deref().map(Normal::load).transpose()?;
    let mut replayed = load(&args.recording, &args.report.overrides())?;
    if let Some(target) = &args.target {
        let pids = evidence::processes(&args.recording, target)?;
        replayed = replayed.only(&pids, &args.report.overrides());
        let Run { cpu, off_cpu, in_calls, heap, faults, .. } = &mut replayed.run;
        let others = [off_cpu, in_calls, heap, faults].into_iter().flatten();
        others.chain([cpu]).for_each(|profile| profile.meta.target = format!("target {target}"));
    }
    replayed.run.baseline = normal.map(|normal| normal.compare(&replayed.measured()));
    let lacks = replayed.lacks();
    let Replayed { mut run, samples, tables, ending, .. } = replayed;
    let measured = KINDS.into_iter().filter(|kind| run.profile(kind).is_some());
    results.check(&measured.collect::<Vec<_>>(), run.requests.is_some())?;
    if let Some(lacks) = lacks {
        say!("profiler: {} {lacks}", args.recording.display());
    }
    quit::at_once_from_now_on();
    results.start_recordings(&run.cpu.meta);
    for sample in &samples {
        let first = tables.threads.get(&sample.thread).map(String::as_str);
        results.record(sample, &tables, first);
    }
    let options = args.report.options();
    results.finish(&mut run, None, &tables, &options)?;
    Ok(match ending {
        Ending::Complete => 0,
        Ending::CutOff => error::CUT_OFF,
        Ending::Damaged(_) => error::DAMAGED,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        detect::{self, compare, rule::Overrides},
        model::{
            cause::WaitCause,
            kind::{CPU, ProfileKind},
            memory::{Footprint, Memory, fixtures::site},
            report::{Accounts, Meta, Totals},
            sample::Sample,
            sections::Sections,
            stack::{Frame, Module, ModuleId, ModuleKind, Stack, StackEnd, StackId, Tables, ThreadKey},
            syscall::{Calls, KindWaits},
            threshold::Thresholds,
            totals::{Aggregator, intern_stack},
            vitals::{ProcessVitals, Vitals},
            wait::{Blocking, ThreadTime},
        },
        naming,
        output::{FORMATS, Format, OutputSpec, RenderOptions, report, summary, text::Style},
        probe::sched::{
            long_wait::fixtures::wait,
            stall::fixtures::{LOOP, iteration},
            totals::{Now, Waits},
        },
        recording::{
            Recorder,
            load::{names, write_snapshot},
        },
        symbolize::{Detail, Function, Symbolizer},
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
            let name = |address| Function { name: format!("f{address}"), ..Function::default() };
            addresses.iter().map(|&address| (address % 7 != 0).then(|| vec![name(address)])).collect()
        }
    }

    /// Every rendering of a run.
    fn render(run: &Run) -> Vec<Vec<u8>> {
        let mut outputs = Vec::new();
        let options = RenderOptions { threads: true, ..RenderOptions::default() };
        for of in FORMATS.iter().filter(|of| !matches!(of.format, Format::Recording)) {
            for kind in KINDS {
                let spec: OutputSpec = format!("{}:x{}", kind.name, of.extension).parse().unwrap();
                let mut out = Vec::new();
                spec.write(run, &options, &mut out).unwrap();
                outputs.push(out);
            }
        }
        let mut out = Vec::new();
        let style = Style { colour: false, width: None, threads: true, top: 10 };
        summary::write(run, &style, &mut out).unwrap();
        report::write(run, &style, &mut out).unwrap();
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
    pub(crate) fn record(
        path: &std::path::Path,
        samples: &[(u32, u64, u64, u32)],
        stalls: &[(u64, u64)],
    ) -> Run {
        const MS: u64 = 1_000_000;
        let mut tables = Tables::default();
        let meta = Meta { target: "pid 7".into(), period_ns: 10 * MS, ..Meta::default() };
        let mut recorder = Recorder::new(Vec::new(), &meta).unwrap();
        let (mut cpu, mut off_cpu, mut in_calls) =
            (Aggregator::default(), Aggregator::default(), Aggregator::default());
        let mut calls = Calls::default();
        let vitals =
            Vitals { processes: vec![ProcessVitals { pid: 7, ..ProcessVitals::default() }], unlisted: 1 };
        let mut waits = Waits::new(Thresholds::default());
        waits.add_loop(LOOP);
        let processes = vec![Footprint { pid: 7, process: "t7".into(), ..Footprint::default() }];
        let mut memory = Memory { processes, ..Memory::default() };
        for (i, &(tid, address, weight, cause)) in samples.iter().enumerate() {
            let thread = ThreadKey { pid: 7, tid };
            let (stack, time_ns) = (stack(&mut tables, address), i as u64 * 10 * MS);
            let cause = (cause > 0).then(|| WaitCause::from_number(cause).unwrap_or(WaitCause::Unknown));
            let sample = Sample { time_ns, thread, cpu: 0, stack, weight, cause };
            let name = format!("t{tid}");
            let new = tables.threads.insert(thread, name.clone()).is_none().then_some(name.as_str());
            recorder.sample(&sample, &tables, new).unwrap();
            assert!(if cause.is_some() { off_cpu.add(&sample) } else { cpu.add(&sample) });
            if cause.is_none() {
                waits.cpu_sample(thread, time_ns, stack, true);
            }
            let mut in_call = tables.stack(stack);
            let module = tables.module_id(Module::special(ModuleKind::Syscall));
            in_call.frames = in_call.frames.iter().copied().chain([Frame { module, address: 1 }]).collect();
            let stack = intern_stack(&mut tables, in_call).unwrap();
            let sample = Sample { stack, cause: None, ..sample };
            recorder.sample(&sample, &tables, None).unwrap();
            assert!(in_calls.add(&sample));
            calls.waits.push(KindWaits {
                pid: 7,
                process: name,
                kind: crate::model::syscall::WaitKind::Pipe,
                peer: String::new(),
                lengths: crate::model::distribution::Summary::default(),
                stack: Some(stack),
            });
        }
        for &(start, length) in stalls {
            let mut slow = wait(LOOP.tid, start * MS, length * MS / 2, 0, WaitCause::Disk);
            slow.block.stack = Some(stack(&mut tables, 1000 + start)); // in no sample
            let slow_site = slow.block.stack.map(|stack| site(stack.0, [0.0, length as f64]));
            waits.wait(slow);
            waits.iteration(&iteration(start * MS, (start + length) * MS, length * MS / 2, 0), Vec::new());
            memory.sites.extend(slow_site);
            let mut starved = wait(9, start, 0, length * MS, WaitCause::Other);
            starved.block.stack = None;
            waits.wait(starved);
        }
        let threads = vec![ThreadTime { thread: LOOP, wall_ns: 10, on_cpu_ns: 10, ..ThreadTime::default() }];
        let blocking = waits.blocking(Now { threads, ..Now::default() });
        let sections =
            Sections { blocking: Some(&Blocking::default()), memory: Some(&memory), ..Sections::default() };
        recorder.checkpoint(&Accounts::default(), sections, &tables, &[]).unwrap();
        let totals = Totals {
            cpu: cpu.snapshot(),
            off_cpu: Some(off_cpu.snapshot()),
            in_calls: Some(in_calls.snapshot()),
            blocking: Some(blocking),
            calls: Some(calls),
            requests: Some(crate::model::request::fixtures::requests()),
            vitals: Some(vitals),
            memory: Some(memory),
        };
        let mut run = naming::run(meta, Accounts::default(), totals, &tables, &mut Fake, Detail::Full);
        detect::judge(&mut run, &Overrides::default());
        let written = recorder.finish(&run.cpu.accounts, run.sections(), &tables, &names(&run)).unwrap();
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
            let replayed = load(&path, &Overrides::default()).unwrap();
            prop_assert_eq!(&replayed.ending, &Ending::Complete);
            prop_assert_eq!(&replayed.run.blocking, &live.blocking);
            prop_assert_eq!(&replayed.run.calls, &live.calls);
            prop_assert_eq!(&replayed.run.vitals, &live.vitals);
            prop_assert_eq!(&replayed.run.memory, &live.memory);
            prop_assert_eq!(replayed.samples.len(), samples.len() * 2);
            prop_assert!(render(&replayed.run) == render(&live));
            let same = compare::compare(replayed.measured(), replayed.measured());
            prop_assert!(same.significant().is_empty(), "{:?}", same);
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
        let (sections, nobody) = (live.sections(), Sections::default());
        for sections in [
            Sections { blocking: sections.blocking, ..nobody },
            Sections { memory: sections.memory, ..nobody },
            Sections { calls: sections.calls, ..nobody },
        ] {
            let recorder = Recorder::new(Vec::new(), &live.cpu.meta).unwrap();
            let written = recorder.finish(&live.cpu.accounts, sections, &nothing, &[]).unwrap();
            std::fs::write(&path, written).unwrap();
            let replayed = load(&path, &Overrides::default()).unwrap();
            assert!(
                matches!(&replayed.ending, Ending::Damaged(how) if how.ends_with("refers to nothing")),
                "{:?}",
                replayed.ending
            );
            assert_eq!(replayed.run.cpu.meta, live.cpu.meta, "what comes before is there");
        }
    }

    #[test]
    fn a_snapshot_is_a_recording() {
        let dir = tempfile::tempdir().unwrap();
        let (recorded, path) = (dir.path().join("run.prec"), dir.path().join("snapshot.prec"));
        record(&recorded, &[(7, 1, 5, 0)], &[(0, 100), (5, 100)]);
        let Replayed { run, tables, .. } = load(&recorded, &Overrides::default()).unwrap();
        write_snapshot(&path, &run, &tables).unwrap();
        let back = load(&path, &Overrides::default()).unwrap();
        assert_eq!((back.ending, back.samples.len()), (Ending::Complete, 0));
        assert_eq!(back.run.memory, run.memory);
        let changed = compare::memory::compare(&run, &back.run, &str::to_owned);
        assert_eq!((changed.places.len(), changed.total.amount), (2, (200.0, 200.0)));
        assert!(changed.places.iter().all(|place| place.units.value == 0.0));
    }

    #[test]
    fn an_output_of_what_was_not_measured_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let check = |name: &str, kinds: &[ProfileKind]| {
            let outputs = vec![dir.path().join(name).display().to_string().parse().unwrap()];
            Results::open(&outputs, false).unwrap().check(kinds, false)
        };
        assert!(check("offcpu.svg", &[CPU]).is_err());
        assert!(check("offcpu.svg", &KINDS).is_ok());
        assert!(check("offcpu.json", &[CPU]).is_ok(), "holds what there is");
        assert!(check("requests.svg", &KINDS).is_err());
    }
}
