//! The stages of a live run from the kernel to the totals: records are joined by time with notices about processes, their
//! stacks are resolved, and each probe makes of them what it knows to.

use std::{
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use profiler_common::{cost, loss::Tally};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    kernel::{
        Kernel,
        port::{Notices, Port},
        preflight,
        sideband::Sideband,
    },
    model::{
        loss::Loss,
        report::{Accounts, Meta, ProbeReport, Run, Totals, UnwindReport},
        stack::{StackId, Tables},
        syscall::Interval,
        totals::Snapshot,
    },
    output::results::Results,
    probe::{
        self,
        alloc::snapshots::Snapshots,
        cpu::records::period_ns,
        ended::LivingThreads,
        record::Record,
        spec::{Context, Extent, InUse, NoSink, Probe, ProbeSpec, Sink, Start},
    },
    process::{
        clock::Clock,
        life,
        notice::{Event, Notice},
        target::{Target, comm},
        targets::{Followed, Targets},
        usage::{self, Usage, raise_file_limit},
    },
    recording::load::write_snapshot,
    resolve::Resolver,
    say,
    settings::Settings,
    symbolize::Detail,
    unwind::feed::{DEFAULT_BUDGET_BYTES, Feeder},
};

/// Mapping notices per CPU, bytes, where few processes matter: a few hundred.
const SIDEBAND_BYTES: usize = 64 * 1024;
/// The same where all processes do.
const SIDEBAND_BYTES_FOR_ALL: usize = 512 * 1024;

/// How long a run's beginning waits for the targets' unwind tables; after that it begins with frame pointers. A JVM's take
/// up to a second, anything's take longer where the CPUs are busy.
const TABLES_PATIENCE: Duration = Duration::from_secs(3);

/// A probe that runs.
type Running = (&'static ProbeSpec, Box<dyn Probe>);

/// Everything between the kernel and the results.
pub struct Collector {
    /// What is known about the run from its start.
    pub meta: Meta,
    kernel: Box<dyn Port>,
    /// Readable when the kernel has more records than it should keep waiting.
    wakeup: Option<AsyncFd<OwnedFd>>,
    notices: Box<dyn Notices>,
    resolver: Resolver,
    targets: Followed,
    probes: Vec<Running>,
    started_ns: u64,
    stopped_ns: Option<u64>,
    interval_ns: u64,
    usage_at_start: Usage,
    /// Of all time before the run, ns.
    stolen_at_start_ns: u64,
    usage_at_stop: Option<Usage>,
}

impl Collector {
    /// Loads the kernel programs for `settings` and starts the probes. `held` is a command that has not been executed yet,
    /// with what it will be called: how long it is held is none of its time.
    pub fn start(
        settings: &Settings,
        pids: &[u32],
        held: Option<(u32, String)>,
        proc_root: &Path,
    ) -> Result<Collector> {
        raise_file_limit();
        let cpus = aya::util::online_cpus().map_err(|(what, error)| anyhow::anyhow!("{what}: {error}"))?;
        let target = &settings.target;
        let track_all = !matches!(target, Target::Pids { .. });
        let mut kernel = Kernel::load(target, settings.kernel_log, &probe::plan(settings)?)?;
        if settings.kernel_log {
            kernel.start_log()?;
        }
        // Notices first: they have what is mapped after /proc has been read.
        let sideband_bytes = if track_all { SIDEBAND_BYTES_FOR_ALL } else { SIDEBAND_BYTES };
        let notices = Sideband::open(&cpus, sideband_bytes)?;
        let mut resolver = Resolver::new(proc_root, Clock::monotonic(), track_all, settings.name_runtimes);
        if !settings.debuginfod.is_empty() {
            resolver.ask_servers(settings.debuginfod.clone());
        }
        if settings.unwind_by_tables {
            resolver.unwinder = Some(Feeder::new(kernel.take_unwind_maps()?, DEFAULT_BUDGET_BYTES));
        }
        // The hooks first: what is forked or gets its name from here on, they see.
        kernel.attach_target_hooks(target, settings.unwind_by_tables)?;
        let mut all = target.pids_now(proc_root);
        all.extend(pids);
        all.sort_unstable();
        all.dedup();
        let pids = &all[..];
        let (held, name) = held.unzip();
        let running: Vec<u32> = pids.iter().copied().filter(|&pid| Some(pid) != held).collect();
        // Members of a cgroup are told by the kernel, which has no list of them that could become full.
        let listed = !matches!(target, Target::Cgroup(_));
        for &pid in &running {
            if listed {
                kernel.add_target(pid)?;
            }
            resolver.track(pid);
        }
        if let Some(unwinder) = &mut resolver.unwinder {
            unwinder.settle(&resolver.processes, TABLES_PATIENCE)?;
        }
        // Those that may have sockets already.
        let before = if *target == Target::All { target.processes(proc_root) } else { pids.to_vec() };
        let meta = meta(settings, describe(target, pids, name, proc_root), cpus.len() as u32);
        let started_ns = resolver.clock.now_ns();
        let mut probes = Vec::new();
        // From last to first: the sampler, who sends the most, when all else is there and records will soon be taken.
        let specs: Vec<_> = probe::enabled(settings).collect();
        for spec in specs.into_iter().rev() {
            let (kernel, resolver) = (&mut kernel, &mut resolver);
            let (running, before) = (&running[..], &before[..]);
            let start = &mut Start { kernel, settings, resolver, pids, running, before, proc_root };
            probes.push((spec, (spec.start)(start)?));
        }
        probes.reverse();
        // SAFETY: an OwnedFd is the same descriptor for as long as it lives.
        let wakeup = unsafe { AsyncFd::register_with_interest(kernel.records_fd()?, Interest::READABLE) };
        let mut collector =
            Collector::new(meta, target, pids, Box::new(kernel), Box::new(notices), resolver, probes);
        collector.wakeup = Some(wakeup.context("waiting for kernel records")?);
        collector.started_ns = started_ns;
        collector.each(&mut NoSink, |probe, cx| probe.poll(cx))?;
        Ok(collector)
    }

    /// Counts a command that was held, which must be let go now.
    pub fn begin(&mut self, pid: u32) -> Result<()> {
        self.resolver.track(pid);
        self.started_ns = self.resolver.clock.now_ns();
        self.each(&mut NoSink, |probe, cx| probe.begin(cx))?;
        self.kernel.add_target(pid)
    }

    /// Begins with probes that have been started, whatever the kernel is.
    pub fn new(
        meta: Meta,
        target: &Target,
        pids: &[u32],
        kernel: Box<dyn Port>,
        notices: Box<dyn Notices>,
        resolver: Resolver,
        probes: Vec<Running>,
    ) -> Collector {
        let now_ns = resolver.clock.now_ns();
        let stolen_at_start_ns = usage::stolen_ns(&resolver.proc_root);
        Collector {
            meta,
            kernel,
            wakeup: None,
            notices,
            targets: Followed::new(target, pids, &resolver.proc_root, &resolver.clock),
            resolver,
            probes,
            started_ns: now_ns,
            stopped_ns: None,
            interval_ns: now_ns,
            usage_at_start: Usage::now(),
            stolen_at_start_ns,
            usage_at_stop: None,
        }
    }

    /// Returns when the kernel has more records than it should keep waiting.
    pub async fn wakeup(&self) -> Result<()> {
        match &self.wakeup {
            Some(wakeup) => {
                wakeup.readable().await?.clear_ready();
                Ok(())
            }
            None => std::future::pending().await,
        }
    }

    /// Modules, stacks and threads.
    pub fn tables(&self) -> &Tables {
        &self.resolver.tables
    }

    /// How long the run has been going on, or went on.
    pub fn elapsed(&self) -> Duration {
        let until_ns = self.stopped_ns.unwrap_or_else(|| self.resolver.clock.now_ns());
        Duration::from_nanos(until_ns.saturating_sub(self.started_ns))
    }

    /// What the largest target held in memory when last looked at, bytes.
    pub fn held_bytes(&self) -> u64 {
        self.probes.iter().map(|(_, probe)| probe.held_bytes()).max().unwrap_or(0)
    }

    /// Lets every probe do something, in the order of the table.
    fn each(
        &mut self,
        sink: &mut dyn Sink,
        mut what: impl FnMut(&mut dyn Probe, &mut Context<'_>) -> Result<()>,
    ) -> Result<()> {
        let (kernel, resolver, targets) = (&mut *self.kernel, &mut self.resolver, &self.targets);
        let cx = &mut Context { kernel, resolver, targets, sink };
        self.probes.iter_mut().try_for_each(|(_, probe)| what(&mut **probe, cx))
    }

    /// Brings everything that waits in the kernel into the totals.
    pub fn drain(&mut self, sink: &mut dyn Sink) -> Result<Targets> {
        self.resolver.runtimes.new_round();
        // Records before notices: then every mapping a record needs has its notice here already.
        let (mut records, mut bad) = (Vec::new(), 0);
        self.kernel.drain_records(&mut |bytes| match Record::decode(bytes) {
            Some(record) => records.push(record),
            None => bad += 1,
        });
        self.resolver.losses.add(Loss::BadRecord, bad);
        records.sort_by_key(Record::time_ns);
        let mut notices = Vec::new();
        let dropped = self.notices.drain(&mut notices);
        if dropped > 0 {
            self.resolver.losses.add(Loss::MappingNoticesLost, dropped);
            self.resolver.processes.distrust_all();
        }

        let mut notices = notices.into_iter().peekable();
        let mut exits = dropped > 0;
        for record in records {
            while let Some(notice) = notices.next_if(|notice| notice.time_ns <= record.time_ns()) {
                exits |= self.apply(&notice);
            }
            let stack = self.resolve(&record);
            self.each(sink, |probe, cx| probe.record(&record, stack, cx))?;
        }
        for notice in notices {
            exits |= self.apply(&notice);
        }
        self.update_processes(exits)?;
        self.each(sink, |probe, cx| probe.poll(cx))?;
        self.forget_unused();
        let kernel = &mut self.kernel;
        Ok(self.targets.sweep(exits, |pid| kernel.remove_target(pid)))
    }

    /// Forgets what nothing refers to any more. Where the kernel programs have sent so many stacks that there is hardly room
    /// to know more, they begin again: they send what occurs again.
    fn forget_unused(&mut self) {
        let sent = self.resolver.stacks_to_forget();
        let names = self.resolver.has_many_names();
        if sent.is_none() && !names {
            return;
        }
        // The kernel may refer to what was sent just now.
        let mut used = InUse {
            stacks: sent.iter().flatten().copied().collect(),
            living: names.then(|| LivingThreads::read(&self.resolver.proc_root)),
            ..InUse::default()
        };
        self.probes.iter_mut().for_each(|(_, probe)| probe.in_use(&mut used));
        if let Some(sent) = sent {
            self.resolver.keep_stacks(&used.stacks);
            self.kernel.send_again(&sent);
        }
        if names {
            self.targets.pids().iter().for_each(|&pid| used.process(pid));
            self.resolver.keep_names(&used.threads);
        }
    }

    /// Takes note of what happened to a process; returns whether it may have ended.
    fn apply(&mut self, notice: &Notice) -> bool {
        self.resolver.processes.apply(notice, &mut self.resolver.tables);
        if matches!(notice.event, Event::Exec { .. }) {
            self.resolver.runtimes.forget(notice.pid);
        }
        self.targets.apply(notice);
        self.probes.iter_mut().for_each(|(_, probe)| probe.notice(notice));
        notice.event == Event::Exited
    }

    /// Resolves the stack of a record, if it has one. Those that other records refer to are kept by their ids.
    fn resolve(&mut self, record: &Record) -> Option<StackId> {
        match record {
            Record::Cpu(raw) | Record::AllocStack(_, raw) | Record::Fault(raw) => self.resolver.resolve(raw),
            Record::Waker(id, ..) => {
                self.resolver.stack_sent(*id);
                None
            }
            Record::Stack(id, raw) => {
                self.resolver.stack_sent(*id);
                let stack = self.resolver.resolve(raw)?;
                self.resolver.add_stack(*id, stack);
                Some(stack)
            }
            _ => None,
        }
    }

    /// Forgets processes that have ended, and keeps unwind tables up to date.
    fn update_processes(&mut self, exits: bool) -> Result<()> {
        let Resolver { processes, proc_root, .. } = &mut self.resolver;
        let gone = if exits {
            processes.sweep(|pid| life::start_time(proc_root, pid).is_some())
        } else {
            Vec::new()
        };
        let (targets, probes) = (&self.targets, &mut self.probes);
        // A child of a followed process is one itself.
        self.resolver.update_tables(
            gone,
            |pid| targets.contains(pid),
            |pid| probes.iter_mut().for_each(|(_, probe)| probe.mappings_changed(pid)),
        )
    }

    /// Makes everything recorded so far safe.
    pub fn checkpoint(&mut self, results: &mut Results) -> Result<()> {
        let recording = results.is_recording();
        // Before the processes that stacks belong to are forgotten.
        self.each(results, |probe, cx| probe.flush(recording, cx))?;
        if recording {
            let totals = self.totals(Extent::Checkpoint)?;
            self.resolver.look_at_own_code_again();
            let names = self.resolver.new_names();
            results.checkpoint(&self.accounts(), totals.sections(), &self.resolver.tables, &names);
        }
        Ok(())
    }

    /// Ends sampling and takes what is left in the kernel.
    pub fn stop(&mut self, sink: &mut dyn Sink) -> Result<()> {
        // Some probes unload programs when they end; and the look takes its time, which is the run's yet.
        self.resolver.look_at_own_code();
        self.stopped_ns = Some(self.resolver.clock.now_ns());
        self.usage_at_stop = Some(Usage::now());
        self.each(sink, |probe, cx| probe.stop(cx))?;
        self.kernel.detach();
        self.drain(sink)?;
        self.each(sink, |probe, cx| probe.flush(true, cx))
    }

    fn totals(&mut self, extent: Extent) -> Result<Totals> {
        let mut totals = Totals::default();
        self.each(&mut NoSink, |probe, cx| probe.report(extent, &mut totals, cx))?;
        Ok(totals)
    }

    fn accounts(&self) -> Accounts {
        let mut losses = self.resolver.losses.clone();
        for loss in Loss::ALL {
            losses.add(loss, self.kernel.lost(loss));
        }
        losses.set(Loss::CodeReused, self.resolver.processes.reused());
        let costs = cost::Probe::ALL.into_iter().map(|probe| (probe.words(), self.kernel.cost(probe)));
        let (now, running) = (Usage::now(), self.usage_at_stop.unwrap_or_else(Usage::now));
        let agent_cpu_ns = running.cpu_ns.saturating_sub(self.usage_at_start.cpu_ns);
        let tables = &self.resolver.tables;
        Accounts {
            duration_ns: self.elapsed().as_nanos() as u64,
            targets_ended: self.targets.have_ended(),
            samples_taken: self.kernel.tallied(Tally::SamplesTaken),
            losses,
            probes: costs
                .filter(|(_, cost)| cost.runs > 0)
                .map(|(name, cost)| ProbeReport { name: name.to_owned(), runs: cost.runs, ns: cost.ns })
                .collect(),
            unwind: self.resolver.unwinder.as_ref().map_or_else(UnwindReport::default, |unwinder| {
                unwinder.report(|module| tables.module(module).path.clone())
            }),
            agent_cpu_ns,
            agent_setup_cpu_ns: now.cpu_ns - agent_cpu_ns,
            agent_peak_rss_bytes: now.peak_rss_bytes,
            stolen_ns: usage::stolen_ns(&self.resolver.proc_root).saturating_sub(self.stolen_at_start_ns),
        }
    }

    /// What happened since this was last asked, with names but without source lines; and system calls likewise.
    pub fn interval_run(&mut self) -> Result<(Run, Option<Interval>)> {
        let mut calls = None;
        for (_, probe) in &mut self.probes {
            calls = calls.or(probe.interval()?);
        }
        let mut accounts = self.accounts();
        let now_ns = self.resolver.clock.now_ns();
        accounts.duration_ns = now_ns.saturating_sub(std::mem::replace(&mut self.interval_ns, now_ns));
        let totals = self.totals(Extent::Interval)?;
        self.resolver.look_at_own_code_again();
        Ok((self.resolver.name(&self.meta, accounts, totals, Detail::Names), calls))
    }

    /// Writes the state of memory down, with names but without source lines: profiling must not wait for those.
    pub fn write_snapshot(&mut self, snapshots: &mut Snapshots) -> Result<()> {
        let totals = self.totals(Extent::Snapshot)?;
        let accounts = self.accounts();
        let run = self.resolver.name(&self.meta, accounts, totals, Detail::Names);
        let path = snapshots.next_path();
        // A snapshot that cannot be written costs that one, not the run.
        match write_snapshot(&path, &run, &self.resolver.tables) {
            Ok(()) => say!("profiler: memory is written to {}", path.display()),
            Err(error) => say!("profiler: no snapshot: {error:#}"),
        }
        Ok(())
    }

    /// The whole run in full detail, and the totals of samples that it is made of.
    pub fn run(&mut self) -> Result<(Run, [Snapshot; 3])> {
        let accounts = self.accounts();
        let totals = self.totals(Extent::Run)?;
        let samples = [Some(totals.cpu.clone()), totals.off_cpu.clone(), totals.in_calls.clone()];
        let mut run = self.resolver.name(&self.meta, accounts, totals, Detail::Full);
        let usage = Usage::now(); // naming is part of the price
        run.cpu.accounts.agent_setup_cpu_ns = usage.cpu_ns - run.cpu.accounts.agent_cpu_ns;
        run.cpu.accounts.agent_peak_rss_bytes = usage.peak_rss_bytes;
        Ok((run, samples.map(Option::unwrap_or_default)))
    }
}

fn meta(settings: &Settings, target: String, cpus: u32) -> Meta {
    let start_unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let host = crate::text::read_to_parse("/proc/sys/kernel/hostname".as_ref()).unwrap_or_default();
    Meta {
        target,
        profiler_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: preflight::release(),
        host: host.trim().to_owned(),
        cpus,
        start_unix_ns: start_unix.as_nanos() as u64,
        frequency_hz: settings.frequency_hz,
        period_ns: period_ns(settings.frequency_hz),
    }
}

/// The target in words, with the name of a single process.
fn describe(target: &Target, pids: &[u32], name: Option<String>, proc_root: &Path) -> String {
    let name = name.or_else(|| match (target, pids) {
        (Target::Pids { .. }, [pid]) => comm(proc_root, *pid),
        _ => None,
    });
    match name {
        Some(name) => format!("{target} ({name})"),
        None => target.to_string(),
    }
}

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;
