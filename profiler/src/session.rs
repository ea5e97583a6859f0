//! A live run: the whole pipeline on one page. Kernel records are drained on a timer, joined by time with the
//! kernel's notices of new mappings, resolved, interned, recorded and added up; at the end named and written.

use std::{
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use profiler_common::{
    cost::Probe,
    cpu::{END_COMPLETE, END_STOPPED, FLAG_USER_END_SHIFT, SampleHeader},
    unwind::{Registers, Step},
};
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{MissedTickBehavior, interval},
};

#[cfg(target_arch = "aarch64")]
type NativeArch = profiler_common::unwind::Aarch64;
#[cfg(target_arch = "x86_64")]
type NativeArch = profiler_common::unwind::X86_64;

use crate::{
    cli::{Alloc, ProfileArgs, Unwind, Waits},
    detect::{self, rule::Overrides, storm::Storms},
    error::Error,
    kernel::{Kernel, btf, load::Watch, preflight, sideband::Sideband, unwind::UnwindMaps},
    model::{
        kind::{CPU, KINDS, OFF_CPU, SYSCALLS},
        loss::{Loss, Losses},
        memory::Memory,
        report::{Accounts, Meta, ProbeReport, Run, Totals},
        sample::Sample,
        sections::Told,
        stack::{Frame, Module, ModuleId, ModuleKind, Stack, StackEnd, StackId, Tables, ThreadKey},
        syscall::Calls,
        threshold::Thresholds,
        totals::{Aggregator, Snapshot, intern_stack},
        wait::Blocking,
    },
    output::{live::Live, results::Results},
    probe::{
        Record,
        alloc::{self, MemoryWatch, snapshots::Snapshots},
        cpu::records::{self as cpu, RawSample},
        sched::{self, OffCpuSample, Scheduler, Waker, maps::Settings},
        syscall::CallCollector,
    },
    process::{
        ProcessTable,
        clock::monotonic_ns,
        launch,
        life::{self, Living},
        memory::ProcessMemory,
        notice::{Event, Notice},
        redact::Redact,
        table::Resolution,
        target::Target,
        usage::Usage,
        vitals::VitalsSampler,
    },
    quit, say,
    symbolize::{Detail, LiveSymbolizer, SymbolCache, Symbolizer as _},
    unwind::feed::{DEFAULT_BUDGET_BYTES, Feeder, UnwindReport},
};

/// How often records are fetched from the kernel when nothing else happens.
const DRAIN_INTERVAL: Duration = Duration::from_millis(100);

/// Mapping notices per CPU, bytes: a few hundred where few processes matter, more where all do.
const SIDEBAND_BYTES: (usize, usize) = (64 * 1024, 512 * 1024);

/// How long sampling waits for the targets' unwind tables; after that it begins with frame pointers.
const TABLES_PATIENCE: Duration = Duration::from_millis(150);

const PROC: &str = "/proc";

/// Profiles as `args` say, until the end. Returns the exit code: that of the command, if one was started and has ended.
pub fn run(args: &ProfileArgs) -> Result<u8> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(profile(args))
}

async fn profile(args: &ProfileArgs) -> Result<u8> {
    // Everything that can be wrong is found out before anything starts.
    if args.wakers && args.waits == Waits::Off {
        return Err(Error::Contradiction("who ends a wait (--wakers) is not known with --waits off").into());
    }
    let (mut target, command) = Target::from_args(args);
    let mut pids = target.initial_pids(Path::new(PROC))?;
    let mut results = Results::open(&args.report, command.is_some())?;
    if !preflight::may_load_programs() {
        return Err(Error::MissingRights { what: "profile" }.into());
    }
    let watched = Watched::new(args, &target);
    let measured = KINDS.into_iter().filter(|kind| match kind.name {
        _ if *kind == CPU => true,
        _ if *kind == OFF_CPU => watched.waits,
        _ if *kind == SYSCALLS => watched.calls,
        _ => watched.memory,
    });
    results.check(&measured.collect::<Vec<_>>())?;
    let mut signals = quit::Signals::new()?;
    let held = command.map(launch::hold).transpose()?;
    if let (Some(held), Target::Pids { pids: targets, .. }) = (&held, &mut target) {
        targets.push(held.pid());
        pids.push(held.pid());
    }

    let mut collector = Collector::start(args, &target, &pids, watched)?;
    results.start_recordings(&collector.meta);
    let mut command = held.map(launch::Held::start).transpose()?;

    // Whatever happens from here on, what was measured until then is reported.
    let mut live = Live::default();
    let watched = watch(args, &mut collector, &mut results, &mut live, &mut signals).await;
    quit::at_once_from_now_on();
    let stopped = collector.stop(&mut results);
    live.clear();
    let options = args.report.options();
    let (run, totals) = collector.final_run(&args.report.overrides())?;
    let finished = results.finish(&run, Some(&totals), &collector.tables, &options);
    let command = command.as_mut().map(|command| {
        say!("{}", command.describe());
        command.exit_code()
    });
    watched.and(stopped).and(finished)?;
    Ok(command.flatten().unwrap_or(0))
}

/// Collects until the time is up, the targets have ended, or a signal comes.
async fn watch(
    args: &ProfileArgs,
    collector: &mut Collector,
    results: &mut Results,
    live: &mut Live,
    signals: &mut quit::Signals,
) -> Result<()> {
    let mut snapshots = Snapshots::new(&args.snapshots, collector.meta.start_unix_ns)?;
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
                collector.drain(results)?;
                // Before the processes that stacks belong to are forgotten.
                collector.take_call_time(results)?;
                if results.is_recording() {
                    collector.take_off_cpu(results)?;
                    let (blocking, calls) = (collector.blocking(), collector.calls()?);
                    let memory = collector.memory_so_far(false);
                    let vitals = collector.vitals.as_ref().map(VitalsSampler::vitals);
                    let told = Told {
                        blocking: blocking.as_ref(),
                        memory: memory.as_ref(),
                        calls: calls.as_ref(),
                        vitals: vitals.as_ref(),
                    };
                    results.checkpoint(&collector.accounts(), told, &collector.tables);
                }
                if !args.quiet {
                    let calls = collector.calls.as_mut().map(CallCollector::interval).transpose()?;
                    let (run, elapsed) = (collector.interval_run(), collector.started.elapsed());
                    live.show(&run, calls.as_ref(), elapsed, args.duration);
                }
            }
            () = snapshots.due() => {
                collector.drain(results)?;
                collector.write_snapshot(&mut snapshots)?;
            }
            () = &mut end => return Ok(()),
            () = signals.received() => return Ok(()),
        }
        if collector.drain(results)? == Targets::Ended {
            return Ok(());
        }
        let held = collector.memory.as_ref().map_or(0, MemoryWatch::largest_bytes);
        if snapshots.crossed(held) {
            collector.write_snapshot(&mut snapshots)?;
        }
    }
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
    /// `None` where only CPUs are sampled.
    scheduler: Option<Scheduler>,
    /// `None` where memory is not watched.
    memory: Option<MemoryWatch>,
    /// `None` where the target is the whole machine.
    vitals: Option<VitalsSampler>,
    target: Target,
    loops_attached: bool,
    /// `None` where system calls are not watched.
    calls: Option<CallCollector>,
    /// `None` where the run does not end with its targets.
    living: Option<Living>,
    last_sweep: Instant,
    tables: Tables,
    kernel_module: ModuleId,
    totals: Aggregator,
    last_interval: Aggregator,
    off_cpu: Aggregator,
    in_calls: Aggregator,
    /// Threads with time off CPUs or in system calls whose names have been recorded.
    off_cpu_named: FxHashSet<ThreadKey>,
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
    fn start(args: &ProfileArgs, target: &Target, pids: &[u32], watched: Watched) -> Result<Collector> {
        crate::process::usage::raise_file_limit();
        let cpus = aya::util::online_cpus().map_err(|(what, error)| anyhow::anyhow!("{what}: {error}"))?;
        let period_ns = cpu::period_ns(args.frequency);
        let track_all = !matches!(target, Target::Pids { .. });
        let track_own = !matches!(target, Target::All);
        let by_tables = args.unwind == Unwind::Tables && preflight::can_unwind();
        if args.unwind == Unwind::Tables && !by_tables {
            say!(
                "profiler: this kernel cannot unwind by .eh_frame (5.15 and newer can); stacks of programs without \
                 frame pointers are cut off"
            );
        }
        let thresholds = watched.waits.then(|| args.blocking.thresholds());
        let settings = thresholds.as_ref().map(|of| sched::settings(of, args.wakers, args.report.threads));
        let by_thread = watched.calls.then_some(args.report.threads);
        let watch = Watch { sched: settings.as_ref(), calls: by_thread, allocations: watched.memory };
        let mut kernel = Kernel::load(target, args.kernel_log, watch)?;
        if args.kernel_log {
            kernel.start_log()?;
        }
        // Notices first: what is mapped after /proc has been read is told by them.
        let sideband_bytes = if track_all { SIDEBAND_BYTES.1 } else { SIDEBAND_BYTES.0 };
        let sideband = Sideband::open(&cpus, sideband_bytes)?;
        let mut tables = Tables::default();
        let kernel_module = tables.module_id(Module::special(ModuleKind::Kernel));
        let mut processes = ProcessTable::new(Path::new(PROC), track_all);
        let mut unwinder = if by_tables {
            Some(Feeder::new(kernel.take_unwind_maps()?, DEFAULT_BUDGET_BYTES))
        } else {
            None
        };
        // The hooks first: what is forked or gets its name from here on, they see.
        kernel.attach_target_hooks(target, by_tables)?;
        let mut all = target.pids_now(Path::new(PROC));
        all.extend(pids);
        all.sort_unstable();
        all.dedup();
        let pids = &all[..];
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
        kernel.attach_cpu(period_ns, by_tables)?;
        let memory =
            kernel.take_alloc_maps().map(|maps| MemoryWatch::new(maps, Path::new(PROC), &args.alloc));
        if memory.is_some() && by_tables {
            kernel.attach_faults(alloc::FAULT_PERIOD)?;
        }
        let start_unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = Instant::now();
        let mut collector = Collector {
            // SAFETY: an OwnedFd is the same descriptor for as long as it lives.
            wakeup: unsafe { AsyncFd::register_with_interest(kernel.records_fd()?, Interest::READABLE) }
                .context("waiting for kernel records")?,
            kernel,
            sideband,
            processes,
            unwinder,
            scheduler: None,
            memory,
            vitals: track_own.then(|| VitalsSampler::new(Path::new(PROC), Redact::new(args.redact_paths))),
            target: target.clone(),
            loops_attached: false,
            calls: None,
            living: matches!(target, Target::Pids { .. })
                .then(|| Living::new(Path::new(PROC), pids, target.follows())),
            last_sweep: now,
            tables,
            kernel_module,
            totals: Aggregator::default(),
            last_interval: Aggregator::default(),
            off_cpu: Aggregator::default(),
            in_calls: Aggregator::default(),
            off_cpu_named: FxHashSet::default(),
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
        };
        if let (Some(thresholds), Some(settings)) = (thresholds, settings) {
            collector.start_scheduler(pids, settings, thresholds)?;
        }
        if let Some(maps) = collector.kernel.take_call_maps() {
            let (redact, blocking) = (Redact::new(args.redact_paths), &args.blocking);
            let storms = Storms::new(f64::from(blocking.error_storm) / 100.0, &blocking.expected_error);
            collector.calls = Some(CallCollector::new(maps, pids, Path::new(PROC), redact, storms)?);
            collector.kernel.attach_calls()?;
        }
        collector.look_at_memory()?;
        Ok(collector)
    }

    /// Lets the kernel programs watch the scheduler, and tells them what the threads of the targets are doing already.
    fn start_scheduler(&mut self, pids: &[u32], settings: Settings, thresholds: Thresholds) -> Result<()> {
        let Some(maps) = self.kernel.take_sched_maps() else { return Ok(()) };
        self.kernel.attach_sched(settings.wakers)?;
        let mut scheduler = Scheduler::new(maps, Path::new(PROC), pids, settings, thresholds);
        // Stacks first: they take a while, in which threads wake up unseen.
        let mut stacks: FxHashMap<(u32, (u64, u64)), StackId> = FxHashMap::default();
        for &pid in pids {
            for seed in scheduler.seeds(pid) {
                if let Some((ip, sp)) = seed.at
                    && let Some(stack) = self.stack_at_rest(pid, ip, sp)
                {
                    stacks.insert((seed.state.tid, (ip, sp)), stack);
                }
            }
        }
        if scheduler.has_loops() {
            self.kernel.attach_loops()?;
            self.loops_attached = true;
        }
        scheduler.start(monotonic_ns())?;
        for &pid in pids {
            for seed in scheduler.seeds(pid) {
                let stack = seed.at.and_then(|at| stacks.get(&(seed.state.tid, at)).copied());
                scheduler.seed(seed.state, stack);
            }
        }
        self.scheduler = Some(scheduler);
        Ok(())
    }

    /// The user stack of a blocked thread, from outside. Its frame pointer is not known: where it is needed before the
    /// stack itself tells it, the stack ends.
    fn stack_at_rest(&mut self, pid: u32, ip: u64, sp: u64) -> Option<StackId> {
        let memory = ProcessMemory::open(Path::new(PROC), pid)?;
        let registers = Registers { ip, sp, fp: 0, lr: 0 };
        let (user, end) = self.unwinder.as_ref()?.walk::<NativeArch, _>(pid, registers, &memory)?;
        let mut raw = RawSample { header: SampleHeader::default(), kernel: Vec::new(), user };
        raw.header.pid = pid;
        raw.header.time_ns = monotonic_ns();
        let end = match end {
            Step::Stop(reason) => END_STOPPED + reason as u32,
            Step::End | Step::Continue => END_COMPLETE,
        };
        raw.header.flags = end << FLAG_USER_END_SHIFT;
        self.resolve(&raw)
    }

    /// Brings everything that waits in the kernel into the totals.
    fn drain(&mut self, results: &mut Results) -> Result<Targets> {
        // Records before notices: then every mapping a record needs has its notice here already.
        let mut records = Vec::new();
        while let Some(record) = self.kernel.records.next() {
            match Record::decode(&record) {
                Some(record) => records.push(record),
                None => self.losses.add(Loss::BadRecord, 1),
            }
        }
        records.sort_by_key(Record::time_ns);
        let mut notices = Vec::new();
        let dropped = self.sideband.drain(&mut notices);
        if dropped > 0 {
            self.losses.add(Loss::MappingNoticesLost, dropped);
            self.processes.distrust_all();
        }

        let mut notices = notices.into_iter().peekable();
        let mut exits = false;
        for record in records {
            while let Some(notice) = notices.next_if(|notice| notice.time_ns <= record.time_ns()) {
                exits |= self.apply(&notice);
            }
            self.take(&record, results)?;
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
                if let Some(memory) = &mut self.memory {
                    memory.mappings_changed(pid);
                }
            }
            unwinder.update(&self.processes)?;
        }
        if let Some(scheduler) = &mut self.scheduler {
            scheduler.look();
            if scheduler.has_loops() && !self.loops_attached && self.stopped.is_none() {
                self.kernel.attach_loops()?;
                self.loops_attached = true;
            }
        }
        if let Some(calls) = &mut self.calls {
            calls.look()?;
        }
        self.look_from_outside(false);
        self.look_at_memory()?;
        Ok(self.sweep(exits))
    }

    /// Looks at the targets from outside, now and then, or `now`.
    fn look_from_outside(&mut self, now: bool) {
        let Some(vitals) = self.vitals.as_mut().filter(|vitals| now || vitals.is_due()) else { return };
        let pids = match &self.living {
            Some(living) => living.pids(),
            None => self.target.pids_now(Path::new(PROC)),
        };
        vitals.look(&pids, monotonic_ns());
    }

    /// Looks at the memory of the targets, now and then.
    fn look_at_memory(&mut self) -> Result<()> {
        let due = self.memory.as_ref().is_some_and(MemoryWatch::is_due);
        if due { self.look_at_memory_now() } else { Ok(()) }
    }

    fn look_at_memory_now(&mut self) -> Result<()> {
        let Some(memory) = &mut self.memory else { return Ok(()) };
        let pids = match &self.living {
            Some(living) => living.pids(),
            None => self.target.pids_now(Path::new(PROC)),
        };
        memory.look(&pids, &mut self.kernel)
    }

    /// Takes note of what happened to a process; returns whether it may have ended.
    fn apply(&mut self, notice: &Notice) -> bool {
        self.processes.apply(notice, &mut self.tables);
        if let Some(living) = &mut self.living {
            living.apply(notice);
        }
        if let (Some(memory), Event::Exec { .. } | Event::Exited) = (&mut self.memory, &notice.event) {
            memory.forget(notice.pid, notice.time_ns);
        }
        notice.event == Event::Exited
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

    /// Takes in one record.
    fn take(&mut self, record: &Record, results: &mut Results) -> Result<()> {
        match record {
            Record::Cpu(sample) => return self.take_sample(sample, results),
            Record::Stack(id, raw) => {
                let stack = self.resolve(raw);
                if let (Some(scheduler), Some(stack)) = (&mut self.scheduler, stack) {
                    scheduler.stack(*id, stack);
                }
                if let (Some(calls), Some(stack)) = (&mut self.calls, stack) {
                    calls.stack(*id, stack);
                }
            }
            Record::SlowCall(call) => {
                if let Some(calls) = &mut self.calls {
                    calls.slow_call(call, &mut self.tables);
                }
            }
            Record::Io(io) => {
                if let Some(calls) = &mut self.calls {
                    calls.io(io);
                }
            }
            Record::AllocStack(id, raw) => {
                let stack = self.resolve(raw);
                if let (Some(memory), Some(stack)) = (&mut self.memory, stack) {
                    memory.stack(*id, raw.header.pid, stack);
                }
            }
            Record::Fault(raw) => {
                let stack = self.resolve(raw);
                if let (Some(memory), Some(stack)) = (&mut self.memory, stack) {
                    memory.fault(raw.header.pid, stack);
                }
            }
            Record::Waker(id, name, raw) => self.take_waker(*id, name, raw),
            _ => {}
        }
        let Some(scheduler) = &mut self.scheduler else { return Ok(()) };
        match record {
            Record::Cpu(_)
            | Record::Stack(..)
            | Record::Waker(..)
            | Record::SlowCall(_)
            | Record::Io(_)
            | Record::AllocStack(..)
            | Record::Fault(_) => {}
            Record::Interval(interval) => scheduler.interval(interval),
            Record::Turn(turn) => scheduler.turn(turn),
            Record::Exit(exit) => scheduler.exit(exit, &mut self.tables),
            Record::Loop(seen) => scheduler.loop_seen(seen),
        }
        Ok(())
    }

    /// Records and adds up one CPU sample.
    fn take_sample(&mut self, raw: &RawSample, results: &mut Results) -> Result<()> {
        let header = &raw.header;
        let thread = ThreadKey { pid: header.pid, tid: header.tid };
        let Some(stack) = self.resolve(raw) else {
            self.losses.add(Loss::TooManyStacks, 1);
            return Ok(());
        };
        let sample =
            Sample { time_ns: header.time_ns, thread, cpu: header.cpu, stack, weight: 1, cause: None };
        if !self.totals.add(&sample) {
            self.losses.add(Loss::TooManyStacks, 1);
            return Ok(());
        }
        // The interval has no more keys than the run.
        let _fits = self.last_interval.add(&sample);
        if let Some(scheduler) = &mut self.scheduler {
            scheduler.cpu_sample(thread, sample.time_ns, stack, !raw.kernel.is_empty());
        }
        let has_user_stack = !self.processes.is_kernel_thread(header.pid, &mut self.tables);
        for (degraded, loss) in [
            (raw.kernel_stack_failed(), Loss::KernelStackFailed),
            (raw.user_stack_failed() && has_user_stack, Loss::UserStackFailed),
            (raw.truncated(), Loss::StackTruncated),
            (
                !matches!(
                    raw.user_end(),
                    StackEnd::None | StackEnd::Complete | StackEnd::FramePointers | StackEnd::TooDeep
                ),
                Loss::UnwindFailed,
            ),
        ] {
            self.losses.add(loss, degraded.into());
        }
        let name = raw.thread_name();
        let renamed = self.tables.threads.get(&thread) != Some(&name);
        if renamed {
            self.tables.threads.insert(thread, name.clone());
        }
        results.record(&sample, &self.tables, renamed.then_some(name.as_str()));
        Ok(())
    }

    /// Takes note of what wakes threads. An interrupt does it in the name of whoever it interrupted, which says nothing.
    fn take_waker(&mut self, id: u64, name: &str, raw: &RawSample) {
        let thread = ThreadKey { pid: raw.header.pid, tid: raw.header.tid };
        let interrupt = thread.tid == 0 || self.is_interrupt(&raw.kernel);
        let mut raw = raw.clone();
        // Of a process that is gone, addresses say nothing.
        if interrupt || !Path::new(PROC).join(thread.pid.to_string()).exists() {
            raw.user.clear();
            raw.header.flags = 0;
        }
        let taken = !(raw.kernel.is_empty() && raw.user.is_empty());
        let stack = if taken { self.resolve_any(&raw).0 } else { None };
        let Some(scheduler) = &mut self.scheduler else { return };
        let who = if interrupt { "an interrupt".to_owned() } else { format!("{name} (tid {})", thread.tid) };
        scheduler.waker(id, Waker { who, stack });
    }

    /// Whether the kernel was in an interrupt where it had this stack.
    fn is_interrupt(&mut self, kernel: &[u64]) -> bool {
        // Entries from the vectors: arch/x86/include/asm/idtentry.h, arch/arm64/kernel/entry.S.
        const ENTRIES: [&str; 4] = ["asm_sysvec_", "asm_common_interrupt", "el1h_64_irq", "el0t_64_irq"];
        let module = self.tables.module(self.kernel_module).clone();
        let mut symbolizer = LiveSymbolizer::new(&mut self.symbols, &mut self.processes);
        let names = symbolizer.functions(self.kernel_module, &module, kernel, Detail::Names);
        let mut functions = names.iter().flatten().flatten();
        functions.any(|function| ENTRIES.iter().any(|entry| function.name.starts_with(entry)))
    }

    /// A stack that blocked, continued by that of what woke it, from the outside in: read from the root, first comes who
    /// waited, then where, then who ended it.
    fn with_waker(&mut self, stack: StackId, waker: &Waker) -> Option<StackId> {
        let special = Module::special(ModuleKind::Waker);
        let module = self.tables.module_id(Module { path: format!("[woken by {}]", waker.who), ..special });
        let blocked = self.tables.stack(stack);
        let woke = waker.stack.map_or(&[][..], |stack| &self.tables.stack(stack).frames);
        let frames = woke.iter().rev().copied();
        let frames = frames.chain([Frame { module, address: 0 }]).chain(blocked.frames.iter().copied());
        let stack = Stack { frames: frames.collect(), kernel_frames: 0, end: blocked.end };
        intern_stack(&mut self.tables, stack)
    }

    /// Resolves and interns a stack; `None` if there is no room for it.
    fn resolve(&mut self, raw: &RawSample) -> Option<StackId> {
        let (stack, gone) = self.resolve_any(raw);
        self.losses.add(Loss::ProcessGone, gone.into());
        stack
    }

    /// The same of a stack that is not the target's, perhaps; and whether its process was gone.
    fn resolve_any(&mut self, raw: &RawSample) -> (Option<StackId>, bool) {
        let (pid, now_ns) = (raw.header.pid, raw.header.time_ns);
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
        let end = raw.user_end();
        if let Some(unwinder) = &mut self.unwinder
            && end == StackEnd::FramePointers
        {
            unwinder.want(pid);
        }
        let stack = Stack { frames: frames.into(), kernel_frames: raw.kernel.len() as u16, end };
        (intern_stack(&mut self.tables, stack), gone)
    }

    /// Brings the time off CPUs into the totals.
    fn take_off_cpu(&mut self, results: &mut Results) -> Result<()> {
        let Some(scheduler) = &mut self.scheduler else { return Ok(()) };
        for OffCpuSample { thread, stack, cause, waker, ns } in scheduler.off_cpu(&mut self.tables) {
            let stack = match stack {
                Some(stack) => stack,
                None => {
                    let module = self.tables.module_id(Module::special(ModuleKind::NotTaken));
                    let frames = [Frame { module, address: 0 }].into();
                    let untaken = Stack { frames, kernel_frames: 0, end: StackEnd::None };
                    let Some(stack) = intern_stack(&mut self.tables, untaken) else {
                        self.losses.add(Loss::OffCpuFull, 1);
                        continue;
                    };
                    stack
                }
            };
            let stack = match waker {
                Some(waker) => self.with_waker(stack, &waker).unwrap_or(stack),
                None => stack,
            };
            let sample =
                Sample { time_ns: monotonic_ns(), thread, cpu: 0, stack, weight: ns, cause: Some(cause) };
            let fits = self.off_cpu.add(&sample);
            self.record_time(&sample, fits, results)?;
        }
        Ok(())
    }

    /// Brings the time in system calls into the totals. A stack's outermost frame is its system call.
    fn take_call_time(&mut self, results: &mut Results) -> Result<()> {
        let Some(calls) = &mut self.calls else { return Ok(()) };
        for (thread, stack, number, ns) in calls.time(&mut self.tables) {
            let call = Frame {
                module: self.tables.module_id(Module::special(ModuleKind::Syscall)),
                address: number.into(),
            };
            let (mut frames, kernel_frames, end) = match stack.map(|stack| self.tables.stack(stack)) {
                Some(stack) => (stack.frames.to_vec(), stack.kernel_frames, stack.end),
                None => {
                    let module = self.tables.module_id(Module::special(ModuleKind::NotTaken));
                    (vec![Frame { module, address: 0 }], 0, StackEnd::None)
                }
            };
            frames.push(call);
            let stack = Stack { frames: frames.into(), kernel_frames, end };
            let Some(stack) = intern_stack(&mut self.tables, stack) else {
                self.losses.add(Loss::OffCpuFull, 1);
                continue;
            };
            let sample = Sample { time_ns: monotonic_ns(), thread, cpu: 0, stack, weight: ns, cause: None };
            let fits = self.in_calls.add(&sample);
            self.record_time(&sample, fits, results)?;
        }
        Ok(())
    }

    /// Records a sample of time whose thread may have no name yet, or counts it as lost where its totals had no room.
    fn record_time(&mut self, sample: &Sample, fits: bool, results: &mut Results) -> Result<()> {
        if !fits {
            self.losses.add(Loss::OffCpuFull, 1);
            return Ok(());
        }
        let thread = sample.thread;
        let named = self.off_cpu_named.insert(thread).then(|| self.tables.thread_name(thread).to_owned());
        results.record(sample, &self.tables, named.as_deref());
        Ok(())
    }

    /// Ends sampling and takes what is left in the kernel.
    fn stop(&mut self, results: &mut Results) -> Result<()> {
        self.stopped = Some(self.started.elapsed());
        self.usage_at_stop = Some(Usage::now());
        if let Some(scheduler) = &mut self.scheduler {
            scheduler.stop(monotonic_ns())?;
        }
        self.look_from_outside(true);
        if let Some(memory) = &mut self.memory {
            memory.stop();
        }
        self.kernel.detach();
        self.drain(results)?;
        self.take_off_cpu(results)?;
        self.take_call_time(results)
    }

    fn accounts(&self) -> Accounts {
        let mut losses = self.losses.clone();
        self.kernel.add_losses(&mut losses);
        let (now, running) = (Usage::now(), self.usage_at_stop.unwrap_or_else(Usage::now));
        let agent_cpu_ns = running.cpu_ns.saturating_sub(self.usage_at_start.cpu_ns);
        Accounts {
            duration_ns: self.stopped.unwrap_or_else(|| self.started.elapsed()).as_nanos() as u64,
            samples_taken: self.kernel.samples_taken(),
            losses,
            probes: Probe::ALL
                .into_iter()
                .map(|probe| (probe.words(), self.kernel.cost(probe)))
                .filter(|(_, cost)| cost.runs > 0)
                .map(|(name, cost)| ProbeReport { name: name.to_owned(), runs: cost.runs, ns: cost.ns })
                .collect(),
            unwind: self.unwinder.as_ref().map_or_else(UnwindReport::default, |unwinder| {
                unwinder.report(|module| self.tables.module(module).path.clone())
            }),
            agent_cpu_ns,
            agent_setup_cpu_ns: now.cpu_ns - agent_cpu_ns,
            agent_peak_rss_bytes: now.peak_rss_bytes,
        }
    }

    /// Where the time went so far, if the scheduler is watched.
    fn blocking(&mut self) -> Option<Blocking> {
        let scheduler = self.scheduler.as_mut()?;
        Some(scheduler.blocking(&mut self.tables, monotonic_ns()))
    }

    /// The system calls so far, if they are watched.
    fn calls(&mut self) -> Result<Option<Calls>> {
        let Some(calls) = self.calls.as_mut() else { return Ok(None) };
        calls.calls(&mut self.tables).map(Some)
    }

    /// How memory grew so far, if it is watched.
    fn memory_so_far(&self, in_full: bool) -> Option<Memory> {
        Some(self.memory.as_ref()?.memory(&self.kernel, in_full))
    }

    /// What happened since this was last asked, with names but without source lines.
    fn interval_run(&mut self) -> Run {
        let mut accounts = self.accounts();
        accounts.duration_ns = self.interval_started.elapsed().as_nanos() as u64;
        self.interval_started = Instant::now();
        let blocking = self.blocking();
        let totals = Totals { cpu: self.last_interval.take(), blocking, ..Totals::default() };
        let mut symbolizer = LiveSymbolizer::new(&mut self.symbols, &mut self.processes);
        Run::build(self.meta.clone(), accounts, totals, &self.tables, &mut symbolizer, Detail::Names)
    }

    /// Writes the state of memory down, with names but without source lines: profiling must not wait for those.
    fn write_snapshot(&mut self, snapshots: &mut Snapshots) -> Result<()> {
        self.look_at_memory_now()?;
        let totals = Totals { memory: self.memory_so_far(true), ..Totals::default() };
        let accounts = self.accounts();
        let mut symbolizer = LiveSymbolizer::new(&mut self.symbols, &mut self.processes);
        let run =
            Run::build(self.meta.clone(), accounts, totals, &self.tables, &mut symbolizer, Detail::Names);
        let path = snapshots.next_path();
        // A snapshot that cannot be written costs that one, not the run.
        match crate::recording::load::write_snapshot(&path, &run, &self.tables) {
            Ok(()) => say!("profiler: memory is written to {}", path.display()),
            Err(error) => say!("profiler: no snapshot: {error:#}"),
        }
        Ok(())
    }

    /// The whole run in full detail, and the totals of samples that it is made of.
    fn final_run(&mut self, overrides: &Overrides) -> Result<(Run, [Snapshot; 3])> {
        let accounts = self.accounts();
        let (blocking, calls) = (self.blocking(), self.calls()?);
        let off_cpu = self.scheduler.is_some().then(|| self.off_cpu.snapshot());
        let in_calls = calls.is_some().then(|| self.in_calls.snapshot());
        let memory = self.memory_so_far(true);
        let vitals = self.vitals.as_ref().map(VitalsSampler::vitals);
        let cpu = self.totals.snapshot();
        let samples =
            [cpu.clone(), off_cpu.clone().unwrap_or_default(), in_calls.clone().unwrap_or_default()];
        let totals = Totals { cpu, off_cpu, blocking, in_calls, calls, memory, vitals };
        let mut symbolizer = LiveSymbolizer::new(&mut self.symbols, &mut self.processes);
        let mut run =
            Run::build(self.meta.clone(), accounts, totals, &self.tables, &mut symbolizer, Detail::Full);
        detect::judge(&mut run, overrides);
        let usage = Usage::now(); // naming is part of the price
        run.cpu.accounts.agent_setup_cpu_ns = usage.cpu_ns - run.cpu.accounts.agent_cpu_ns;
        run.cpu.accounts.agent_peak_rss_bytes = usage.peak_rss_bytes;
        Ok((run, samples))
    }
}

/// What is watched besides CPUs: what is asked for, or by itself unless the target is the whole machine, where that costs
/// more than most would expect; as far as the kernel can.
#[derive(Clone, Copy)]
struct Watched {
    waits: bool,
    calls: bool,
    memory: bool,
}

impl Watched {
    fn new(args: &ProfileArgs, target: &Target) -> Watched {
        let by_itself = !matches!(target, Target::All);
        let able = preflight::can_unwind() && btf::is_available();
        let if_able = |wanted: bool, what: &str| {
            if wanted && !able {
                say!("profiler: this kernel is too old (5.15 is needed, with BTF) {what}");
            }
            wanted && able
        };
        let waits = match args.waits {
            Waits::Auto => args.wakers || by_itself,
            Waits::On => true,
            Waits::Off => false,
        };
        Watched {
            waits: if_able(waits, "to tell what threads wait for"),
            calls: if_able(args.syscalls, "to watch system calls"),
            memory: match args.alloc.alloc {
                Alloc::Off => false,
                Alloc::Auto => by_itself,
                Alloc::Full => true,
            },
        }
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
