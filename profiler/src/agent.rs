//! A live run: the whole pipeline on one page. Kernel records are drained on a timer, joined by time with the
//! kernel's notices of new mappings, resolved, interned, recorded and added up; at the end named and written.

use std::{
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use profiler_common::cost::Probe;
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval},
};

use crate::{
    aggregate::{Aggregator, intern_stack},
    cli::{ProfileArgs, Unwind},
    error::Error,
    kernel::{Kernel, preflight, sideband::Sideband, unwind::UnwindMaps},
    output::{RenderOptions, live::Live},
    probe::cpu::{self, RawSample},
    process::{
        ProcessTable, launch,
        life::{self, Living},
        table::Resolution,
        target::Target,
    },
    profile::{Accounts, Meta, ProbeReport, Run, Totals},
    replay::Results,
    sample::{
        CPU, Frame, Loss, Losses, Module, ModuleId, ModuleKind, Sample, Stack, StackEnd, Tables, ThreadKey,
    },
    symbolize::{Detail, LiveSymbolizer, SymbolCache},
    unwind::feed::{DEFAULT_BUDGET_BYTES, Feeder, UnwindReport},
    usage::Usage,
};

/// How often records are fetched from the kernel when nothing else happens.
const DRAIN_INTERVAL: Duration = Duration::from_millis(100);

/// Mapping notices per CPU, bytes: a few hundred where few processes matter, more where all do.
const SIDEBAND_BYTES: (usize, usize) = (64 * 1024, 512 * 1024);

/// How long sampling waits for the targets' unwind tables; after that it begins with frame pointers.
const TABLES_PATIENCE: Duration = Duration::from_millis(150);

const PROC: &str = "/proc";

/// Profiles as `args` say, until the end.
pub fn run(args: &ProfileArgs) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(profile(args))
}

async fn profile(args: &ProfileArgs) -> Result<()> {
    // Everything that can be wrong is found out before anything starts.
    let (mut target, command) = Target::from_args(args);
    let mut pids = target.initial_pids(Path::new(PROC))?;
    let mut results = Results::open(&args.report)?;
    results.check(&[CPU])?;
    if !preflight::may_load_programs() {
        return Err(Error::MissingRights { what: "profile" }.into());
    }
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let held = command.map(launch::hold).transpose()?;
    if let (Some(held), Target::Pids { pids: targets, .. }) = (&held, &mut target) {
        targets.push(held.pid());
        pids.push(held.pid());
    }

    let mut collector = Collector::start(args, &target, &pids)?;
    results.start_recordings(&collector.meta)?;
    let mut command = held.map(launch::Held::start).transpose()?;

    let mut live = Live::default();
    let mut drain = interval(DRAIN_INTERVAL);
    let mut show = interval(args.interval);
    drain.set_missed_tick_behavior(MissedTickBehavior::Delay);
    show.set_missed_tick_behavior(MissedTickBehavior::Delay);
    show.tick().await; // the first tick is at once, with nothing to show yet
    let duration = args.duration.unwrap_or(Duration::MAX);
    let end = tokio::time::sleep(duration);
    tokio::pin!(end);
    loop {
        tokio::select! {
            _ = drain.tick() => {}
            wakeup = collector.wakeup.readable() => wakeup?.clear_ready(),
            _ = show.tick() => {
                collector.drain(&mut results)?;
                results.checkpoint(&collector.accounts(), None, &collector.tables)?;
                let last = collector.interval_run();
                if !args.quiet {
                    live.show(&last, collector.started.elapsed(), args.duration)?;
                }
            }
            () = &mut end => break,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
        if collector.drain(&mut results)? == Targets::Ended {
            break;
        }
    }

    collector.stop(&mut results)?;
    live.clear()?;
    let options = RenderOptions { threads: args.report.threads, top: args.report.top.into() };
    let run = collector.final_run();
    results.finish(&run, &collector.tables, &options)?;
    if let Some(command) = &mut command {
        eprintln!("{}", command.describe());
    }
    Ok(())
}

/// Whether any of the targets still lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Targets {
    Live,
    Ended,
}

/// The stages from the kernel to the running totals.
struct Collector {
    kernel: Kernel,
    /// Readable when the kernel has more records than it should keep waiting.
    wakeup: AsyncFd<std::os::fd::OwnedFd>,
    sideband: Sideband,
    processes: ProcessTable,
    /// `None` where frame pointers are followed only.
    unwinder: Option<Feeder<UnwindMaps>>,
    /// `None` where the run does not end with its targets.
    living: Option<Living>,
    last_sweep: Instant,
    tables: Tables,
    kernel_module: ModuleId,
    totals: Aggregator,
    last_interval: Aggregator,
    interval_started: Instant,
    symbols: SymbolCache,
    losses: Losses,
    meta: Meta,
    started: Instant,
    stopped: Option<Duration>,
    usage_at_start: Usage,
    usage_at_stop: Option<Usage>,
}

impl Collector {
    fn start(args: &ProfileArgs, target: &Target, pids: &[u32]) -> Result<Collector> {
        crate::usage::raise_file_limit();
        let cpus = aya::util::online_cpus().map_err(|(what, error)| anyhow::anyhow!("{what}: {error}"))?;
        let period_ns = cpu::period_ns(args.frequency);
        let track_all = !matches!(target, Target::Pids { .. });
        let mut kernel = Kernel::load(target, args.kernel_log)?;
        if args.kernel_log {
            kernel.start_log()?;
        }
        // Notices first: what is mapped after /proc has been read is told by them.
        let sideband_bytes = if track_all { SIDEBAND_BYTES.1 } else { SIDEBAND_BYTES.0 };
        let sideband = Sideband::open(&cpus, sideband_bytes)?;
        let mut tables = Tables::default();
        let kernel_module = tables.module_id(Module::special(ModuleKind::Kernel));
        let mut processes = ProcessTable::new(Path::new(PROC), track_all);
        let by_tables = args.unwind == Unwind::Tables && preflight::can_unwind();
        if args.unwind == Unwind::Tables && !by_tables {
            eprintln!(
                "profiler: this kernel cannot unwind by .eh_frame (5.15 and newer can); stacks of programs \
                       without frame pointers are cut off"
            );
        }
        let mut unwinder = if by_tables {
            Some(Feeder::new(kernel.take_unwind_maps()?, DEFAULT_BUDGET_BYTES))
        } else {
            None
        };
        for &pid in pids {
            kernel.add_target(pid)?;
            processes.track(pid, &mut tables);
            if let Some(unwinder) = &mut unwinder {
                unwinder.want(pid);
            }
        }
        if let Some(unwinder) = &mut unwinder {
            unwinder.settle(&processes, TABLES_PATIENCE)?;
        }
        kernel.attach_target_hooks(target, by_tables)?;
        kernel.attach_cpu(period_ns, by_tables)?;

        let start_unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = Instant::now();
        Ok(Collector {
            // SAFETY: an OwnedFd is the same descriptor for as long as it lives.
            wakeup: unsafe { AsyncFd::register_with_interest(kernel.records_fd()?, Interest::READABLE) }
                .context("waiting for kernel records")?,
            kernel,
            sideband,
            processes,
            unwinder,
            living: matches!(target, Target::Pids { .. })
                .then(|| Living::new(Path::new(PROC), pids, target.follows())),
            last_sweep: now,
            tables,
            kernel_module,
            totals: Aggregator::default(),
            last_interval: Aggregator::default(),
            interval_started: now,
            symbols: SymbolCache::default(),
            losses: Losses::default(),
            meta: Meta {
                target: describe(target, pids),
                profiler_version: env!("CARGO_PKG_VERSION").to_owned(),
                kernel: preflight::release(),
                host: std::fs::read_to_string("/proc/sys/kernel/hostname")
                    .unwrap_or_default()
                    .trim()
                    .to_owned(),
                cpus: cpus.len() as u32,
                start_unix_ns: start_unix.as_nanos() as u64,
                frequency_hz: args.frequency,
                period_ns,
            },
            started: now,
            stopped: None,
            usage_at_start: Usage::now(),
            usage_at_stop: None,
        })
    }

    /// Brings everything that waits in the kernel into the totals.
    fn drain(&mut self, results: &mut Results) -> Result<Targets> {
        // Records before notices: then every mapping a record needs has its notice here already.
        let mut samples = Vec::new();
        while let Some(record) = self.kernel.records.next() {
            match cpu::decode(&record) {
                Some(sample) => samples.push(sample),
                None => self.losses.add(Loss::BadRecord, 1),
            }
        }
        samples.sort_by_key(|sample| sample.header.time_ns);
        let mut notices = Vec::new();
        let dropped = self.sideband.drain(&mut notices);
        if dropped > 0 {
            self.losses.add(Loss::MappingNoticesLost, dropped);
            self.processes.distrust_all();
        }

        let mut notices = notices.into_iter().peekable();
        let mut exits = false;
        for sample in samples {
            while let Some(notice) = notices.next_if(|notice| notice.time_ns <= sample.header.time_ns) {
                exits |= self.apply(&notice);
            }
            self.take(&sample, results)?;
        }
        for notice in notices {
            exits |= self.apply(&notice);
        }
        let gone = if exits {
            self.processes.sweep(|pid| life::start_time(Path::new(PROC), pid).is_some())
        } else {
            Vec::new()
        };
        if let Some(unwinder) = &mut self.unwinder {
            gone.into_iter().for_each(|pid| unwinder.forget(pid));
            for pid in self.processes.take_changed() {
                // A child of a followed process is one itself.
                match &self.living {
                    Some(living) if living.contains(pid) => unwinder.want(pid),
                    _ => {}
                }
                unwinder.mappings_changed(pid);
            }
            unwinder.update(&self.processes)?;
        }
        Ok(self.sweep(exits))
    }

    /// Takes note of what happened to a process; returns whether it may have ended.
    fn apply(&mut self, notice: &crate::kernel::sideband::Notice) -> bool {
        self.processes.apply(notice, &mut self.tables);
        if let Some(living) = &mut self.living {
            living.apply(notice);
        }
        notice.event == crate::kernel::sideband::Event::Exited
    }

    /// Forgets targets that have ended. Notices say when to look; once a second it is done without.
    fn sweep(&mut self, exits: bool) -> Targets {
        let Some(living) = &mut self.living else { return Targets::Live };
        if exits || self.last_sweep.elapsed() > Duration::from_secs(1) {
            self.last_sweep = Instant::now();
            for pid in living.sweep() {
                self.kernel.remove_target(pid);
            }
        }
        if living.is_empty() { Targets::Ended } else { Targets::Live }
    }

    /// Resolves, interns, records and adds up one sample.
    fn take(&mut self, raw: &RawSample, results: &mut Results) -> Result<()> {
        let header = &raw.header;
        let (pid, now_ns) = (header.pid, header.time_ns);
        let mut frames = Vec::with_capacity(raw.kernel.len() + raw.user.len() + 1);
        for (i, &address) in raw.kernel.iter().enumerate() {
            frames.push(Frame { module: self.kernel_module, address: call_site(i, address) });
        }
        let mut gone = false;
        for (i, &address) in raw.user.iter().enumerate() {
            let (frame, resolution) =
                self.processes.resolve(pid, call_site(i, address), now_ns, &mut self.tables);
            gone |= resolution == Resolution::ProcessGone;
            frames.push(frame);
        }
        if frames.is_empty() {
            let module = self.tables.module_id(Module::special(ModuleKind::Unmapped(pid)));
            frames.push(Frame { module, address: 0 });
        }

        let thread = ThreadKey { pid, tid: header.tid };
        let end = raw.user_end();
        if let Some(unwinder) = &mut self.unwinder
            && end == StackEnd::FramePointers
        {
            unwinder.want(pid);
        }
        let stack = Stack { frames: frames.into(), kernel_frames: raw.kernel.len() as u16, end };
        let Some(stack) = intern_stack(&mut self.tables, stack) else {
            self.losses.add(Loss::TooManyStacks, 1);
            return Ok(());
        };
        let sample = Sample { time_ns: now_ns, thread, cpu: header.cpu, stack, weight: 1, cause: None };
        if !self.totals.add(&sample) {
            self.losses.add(Loss::TooManyStacks, 1);
            return Ok(());
        }
        // The interval has no more keys than the run.
        let _fits = self.last_interval.add(&sample);
        for (degraded, loss) in [
            (raw.kernel_stack_failed(), Loss::KernelStackFailed),
            (
                raw.user_stack_failed() && !self.processes.is_kernel_thread(pid, &mut self.tables),
                Loss::UserStackFailed,
            ),
            (raw.truncated(), Loss::StackTruncated),
            (
                !matches!(
                    end,
                    StackEnd::None | StackEnd::Complete | StackEnd::FramePointers | StackEnd::TooDeep
                ),
                Loss::UnwindFailed,
            ),
            (gone, Loss::ProcessGone),
        ] {
            self.losses.add(loss, degraded.into());
        }
        let name = raw.thread_name();
        let renamed = self.tables.threads.get(&thread) != Some(&name);
        if renamed {
            self.tables.threads.insert(thread, name.clone());
        }
        results.record(&sample, &self.tables, renamed.then_some(name.as_str()))
    }

    /// Ends sampling and takes what is left in the kernel.
    fn stop(&mut self, results: &mut Results) -> Result<()> {
        self.stopped = Some(self.started.elapsed());
        self.usage_at_stop = Some(Usage::now());
        self.kernel.detach();
        self.drain(results)?;
        Ok(())
    }

    fn accounts(&self) -> Accounts {
        let mut losses = self.losses.clone();
        self.kernel.update_losses(&mut losses);
        let cost = self.kernel.cost(Probe::Cpu);
        let (now, running) = (Usage::now(), self.usage_at_stop.unwrap_or_else(Usage::now));
        let agent_cpu_ns = running.cpu_ns.saturating_sub(self.usage_at_start.cpu_ns);
        Accounts {
            duration_ns: self.stopped.unwrap_or_else(|| self.started.elapsed()).as_nanos() as u64,
            samples_taken: self.kernel.samples_taken(),
            losses,
            probes: vec![ProbeReport { name: CPU.name.to_owned(), runs: cost.runs, ns: cost.ns }],
            unwind: self.unwinder.as_ref().map_or_else(UnwindReport::default, |unwinder| {
                unwinder.report(|module| self.tables.module(module).path.clone())
            }),
            agent_cpu_ns,
            agent_setup_cpu_ns: now.cpu_ns - agent_cpu_ns,
            agent_peak_rss_bytes: now.peak_rss_bytes,
        }
    }

    /// What happened since this was last asked, with names but without source lines.
    fn interval_run(&mut self) -> Run {
        let mut accounts = self.accounts();
        accounts.duration_ns = self.interval_started.elapsed().as_nanos() as u64;
        self.interval_started = Instant::now();
        let totals = Totals { cpu: self.last_interval.take(), ..Totals::default() };
        let mut symbolizer = LiveSymbolizer::new(&mut self.symbols, &mut self.processes);
        Run::build(self.meta.clone(), accounts, totals, &self.tables, &mut symbolizer, Detail::Names)
    }

    /// The whole run in full detail.
    fn final_run(&mut self) -> Run {
        let accounts = self.accounts();
        let totals = Totals { cpu: self.totals.snapshot(), ..Totals::default() };
        let mut symbolizer = LiveSymbolizer::new(&mut self.symbols, &mut self.processes);
        let mut run =
            Run::build(self.meta.clone(), accounts, totals, &self.tables, &mut symbolizer, Detail::Full);
        let usage = Usage::now(); // naming is part of the price
        run.cpu.accounts.agent_setup_cpu_ns = usage.cpu_ns - run.cpu.accounts.agent_cpu_ns;
        run.cpu.accounts.agent_peak_rss_bytes = usage.peak_rss_bytes;
        run
    }
}

/// The address to look up for a stack's `i`th entry: all but the innermost are return addresses, and the call
/// ends one byte before.
fn call_site(i: usize, address: u64) -> u64 {
    if i == 0 { address } else { address.saturating_sub(1) }
}

fn describe(target: &Target, pids: &[u32]) -> String {
    let name = match (target, pids) {
        (Target::Pids { .. }, [pid]) => crate::process::target::comm(Path::new(PROC), *pid),
        _ => None,
    };
    match name {
        Some(name) => format!("{target} ({name})"),
        None => target.to_string(),
    }
}
