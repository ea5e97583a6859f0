//! A live run on one page: what can be wrong is found out first, then probes are started, records are taken in until the
//! end, and the report is written.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    collector::Collector,
    detect::{self, rule::Overrides},
    error::Error,
    kernel::{btf, perf_event, preflight},
    model::{sample::Sample, stack::Tables},
    output::{OutputSpec, RenderOptions, live::Live, results::Results},
    probe::{
        self,
        alloc::snapshots::{SnapshotSettings, Snapshots},
        spec::Sink,
    },
    process::{
        cgroups,
        clock::{Clock, Every},
        launch, limits, privileges,
        target::Target,
        targets::Targets,
    },
    quit, say,
    settings::{Requests, Settings, Waits},
    ticks::Ticks,
};
use anyhow::Result;

/// How often records are fetched from the kernel when nothing else happens.
const DRAIN_INTERVAL: Duration = Duration::from_millis(100);

const PROC: &str = "/proc";

/// What a run is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// What to measure, and of whom.
    pub settings: Settings,
    /// The command to start as the target, if any.
    pub command: Vec<OsString>,
    /// When to stop by itself.
    pub duration: Option<Duration>,
    /// How often the live view is refreshed, and recordings are made safe.
    pub interval: Duration,
    /// No live view.
    pub quiet: bool,
    /// Started by the daemon: processes that have ended already are left out, and what cannot be written where it is to go is
    /// not kept elsewhere.
    pub unattended: bool,
    /// When the state of memory is written down.
    pub snapshots: SnapshotSettings,
    /// The recording of what is normal, to compare the run with.
    pub baseline: Option<PathBuf>,
    /// What is written at the end.
    pub outputs: Vec<OutputSpec>,
    /// How.
    pub render: RenderOptions,
    /// By which values rules judge, where not by their own.
    pub overrides: Overrides,
}

/// Profiles until the end. Returns the exit code: that of the command, if one was started and has ended.
pub fn run(options: Options) -> Result<u8> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(profile(options))
}

async fn profile(mut options: Options) -> Result<u8> {
    // Everything that can be wrong is found out before anything starts.
    let settings = &mut options.settings;
    if settings.wakers && settings.waits == Waits::Off {
        return Err(Error::Contradiction("who ends a wait (--wakers) is not known with --waits off").into());
    }
    if settings.tls {
        if settings.requests == Requests::Off {
            return Err(Error::Contradiction("--tls looks into requests: not with --requests off").into());
        }
        // Whoever asks for that wants them all.
        settings.requests = Requests::On;
    }
    if let Target::Cgroup(asked) = &mut settings.target {
        let [newer, older] = limits::cgroup_mounts(&Path::new(PROC).join("self"));
        *asked = cgroups::find(asked, &newer).or_else(|none| cgroups::find(asked, &older).or(Err(none)))?;
    }
    if let Target::Cgroup(path) = &settings.target
        && cgroups::is_version_1(path)
    {
        let pids = settings.target.pids_now(Path::new(PROC));
        if pids.is_empty() {
            return Err(Error::EmptyCgroup(path.clone()).into());
        }
        say!(
            "profiler: {} is of version 1: its processes of now are followed, and their children",
            path.display()
        );
        settings.target = Target::Pids { pids, follow: true };
    }
    let proc_root = Path::new(PROC);
    let target = &mut settings.target;
    let mut pids =
        if options.unattended { target.pids_left(proc_root) } else { target.initial_pids(proc_root) }?;
    let mut results = Results::open(&options.outputs, !options.command.is_empty())?;
    if let Some(baseline) = &options.baseline {
        results.compare_with(baseline)?;
    }
    if !preflight::may_load_programs() {
        return Err(Error::MissingRights { what: "profile" }.into());
    }
    for left_out in settings.fit(preflight::can_unwind(), btf::is_available()) {
        say!("profiler: {left_out}");
    }
    results.check(&probe::kinds(settings), settings.watches_requests())?;
    let mut signals = quit::Signals::new()?;
    let held = if options.command.is_empty() { None } else { Some(launch::hold(&options.command)?) };
    if let (Some(held), Target::Pids { pids: targets, .. }) = (&held, &mut settings.target) {
        targets.push(held.pid());
        pids.push(held.pid());
    }

    if let Err(error) = privileges::give_up(perf_event::allowed) {
        say!("profiler: rights that are no longer needed could not be given up: {error}");
    }

    let name = options.command.first().map(|program| launch::name(program));
    let holding = held.as_ref().map(launch::Held::pid).zip(name);
    let mut collector = Collector::start(&options.settings, &pids, holding, Path::new(PROC))?;
    results.start_recordings(&collector.meta);
    if let Some(held) = &held {
        collector.begin(held.pid())?;
    }
    let mut command = held.map(launch::Held::start).transpose()?;

    // Whatever happens from here on, what was measured until then is reported.
    let mut live = Live::new(options.overrides.clone());
    let watched = watch(&mut collector, &mut results, &mut live, &options, signals.received()).await;
    signals.written_from_now_on();
    let stopped = collector.stop(&mut results);
    live.clear();
    let (mut run, totals) = collector.run()?;
    detect::judge(&mut run, &options.overrides);
    let kept = (!options.unattended).then_some(&totals[..]);
    let finished = results.finish(&mut run, kept, collector.tables(), &options.render);
    let command = command.as_mut().map(|command| {
        say!("{}", command.describe());
        command.exit_code()
    });
    watched.and(stopped).and(finished)?;
    Ok(command.flatten().unwrap_or(0))
}

/// Takes in what the kernel sends until the time is over, the targets have ended, or `told` returns.
async fn watch(
    collector: &mut Collector,
    results: &mut Results,
    live: &mut Live,
    options: &Options,
    told: impl Future<Output = ()>,
) -> Result<()> {
    let mut snapshots = Snapshots::new(&options.snapshots, collector.meta.start_unix_ns)?;
    let ticks = Ticks::new(DRAIN_INTERVAL.min(options.interval))?;
    let mut show = Every::new(&Clock::monotonic(), options.interval);
    let end = tokio::time::sleep(options.duration.unwrap_or(Duration::MAX));
    tokio::pin!(end, told);
    loop {
        // Where each tick is there before the last has been dealt with, the runtime would never look at its clock and at signals.
        tokio::task::yield_now().await;
        tokio::select! {
            tick = ticks.tick() => tick?,
            wakeup = collector.wakeup() => wakeup?,
            () = snapshots.due() => {
                collector.drain(results)?;
                collector.write_snapshot(&mut snapshots)?;
            }
            () = &mut end => return Ok(()),
            () = &mut told => return Ok(()),
        }
        if collector.drain(results)? == Targets::Ended {
            return Ok(());
        }
        if show.is_due() {
            show.restart();
            collector.checkpoint(results)?;
            if !options.quiet {
                let (run, calls) = collector.interval_run()?;
                live.show(&run, calls.as_ref(), collector.elapsed(), options.duration);
            }
        }
        if snapshots.crossed(collector.held_bytes()) {
            collector.write_snapshot(&mut snapshots)?;
        }
    }
}

impl Sink for Results {
    fn record(&mut self, sample: &Sample, tables: &Tables, new_name: Option<&str>) {
        Results::record(self, sample, tables, new_name);
    }
}

#[cfg(test)]
mod tests;
