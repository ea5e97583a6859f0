//! The loop of a run, without a kernel.

use std::future::pending;

use super::*;
use crate::{
    collector::fixtures::run_of_7,
    model::kind::CPU,
    probe::fixtures::{bytes, raw},
    recording::{Ending, load::load},
    settings::fixtures::settings,
};

fn options(outputs: Vec<OutputSpec>) -> Options {
    Options {
        settings: settings(Target::Pids { pids: vec![7], follow: false }),
        command: Vec::new(),
        duration: Some(Duration::from_millis(250)),
        interval: Duration::from_millis(50),
        quiet: true,
        unattended: false,
        snapshots: SnapshotSettings { every: None, above_bytes: None, dir: ".".into() },
        baseline: None,
        outputs,
        render: RenderOptions::default(),
        overrides: Overrides::default(),
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn a_run_records_until_its_time_is_over_and_replays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.prec");
    let options = options(vec![path.display().to_string().parse().unwrap()]);
    let mut results = Results::open(&options.outputs, false).unwrap();
    results.check(&[CPU], false).unwrap();
    let mut run = run_of_7();
    results.start_recordings(&run.collector.meta);
    run.kernel.0.borrow_mut().records = (0..5).map(|n| bytes(&raw(7, 7, n, &[0x1800]))).collect();
    let mut live = Live::new(Overrides::default());
    block_on(watch(&mut run.collector, &mut results, &mut live, &options, pending())).unwrap();
    run.collector.stop(&mut results).unwrap();
    let (mut report, totals) = run.collector.run().unwrap();
    results.finish(&mut report, Some(&totals), run.collector.tables(), &options.render).unwrap();
    let replayed = load(&path, &Overrides::default()).unwrap();
    assert_eq!((replayed.ending, replayed.samples.len(), replayed.run.cpu.total), (Ending::Complete, 5, 5));
}

#[test]
fn a_run_is_compared_with_what_is_normal() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("normal.prec");
    let measure = |results: &mut Results, options: &Options| {
        let mut run = run_of_7();
        results.start_recordings(&run.collector.meta);
        assert!(results.is_recording(), "a comparison needs samples");
        run.kernel.0.borrow_mut().records = (0..5).map(|n| bytes(&raw(7, 7, n, &[0x1800]))).collect();
        block_on(watch(
            &mut run.collector,
            results,
            &mut Live::new(Overrides::default()),
            options,
            pending(),
        ))
        .unwrap();
        run.collector.stop(results).unwrap();
        run
    };
    let first = options(vec![path.display().to_string().parse().unwrap()]);
    let mut results = Results::open(&first.outputs, false).unwrap();
    let mut run = measure(&mut results, &first);
    let (mut report, totals) = run.collector.run().unwrap();
    results.finish(&mut report, Some(&totals), run.collector.tables(), &first.render).unwrap();
    assert!(report.baseline.is_none());

    let second = options(Vec::new());
    let mut results = Results::open(&[], false).unwrap();
    results.compare_with(&path).unwrap();
    let mut run = measure(&mut results, &second);
    let (mut report, totals) = run.collector.run().unwrap();
    results.finish(&mut report, Some(&totals), run.collector.tables(), &second.render).unwrap();
    let baseline = report.baseline.unwrap();
    assert_eq!(baseline.file, path.display().to_string());
    assert_eq!(baseline.comparison.kinds[0].kind, CPU);
    assert!(!baseline.comparison.kinds[0].is_judged(), "far too short");
    assert!(Results::open(&[], false).unwrap().compare_with(&dir.path().join("none.prec")).is_err());
}

#[test]
fn a_run_ends_when_it_is_told_to_or_its_target_has_ended() {
    let options = Options { duration: None, ..options(Vec::new()) };
    let mut results = Results::open(&[], false).unwrap();
    let mut run = run_of_7();
    let told = tokio::time::Duration::from_millis(1);
    block_on(async {
        let told = async { tokio::time::sleep(told).await };
        watch(&mut run.collector, &mut results, &mut Live::new(Overrides::default()), &options, told).await
    })
    .unwrap();
    let mut run = run_of_7();
    std::fs::remove_dir_all(run.proc.path().join("7")).unwrap();
    run.hands.set(5_000_000_000);
    block_on(watch(
        &mut run.collector,
        &mut results,
        &mut Live::new(Overrides::default()),
        &options,
        pending(),
    ))
    .unwrap();
}

#[test]
fn what_cannot_be_is_said_before_anything_starts() {
    let error = |change: fn(&mut Options)| {
        let mut options = options(Vec::new());
        change(&mut options);
        run(options).unwrap_err().to_string()
    };
    let contradiction = error(|options| {
        (options.settings.wakers, options.settings.waits) = (true, Waits::Off);
    });
    assert!(contradiction.contains("--wakers"), "{contradiction}");
    let nobody = error(|options| {
        options.settings.target = Target::Pids { pids: vec![u32::MAX - 1], follow: false };
    });
    assert!(nobody.contains("process"), "{nobody}");
}
