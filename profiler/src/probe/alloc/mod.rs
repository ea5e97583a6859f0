//! The memory half of a live run: how processes grow, when their allocators are worth watching, and what each place that
//! allocates has allocated and not freed.

pub mod allocators;
pub mod estimate;
pub mod exits;
pub mod governor;
pub mod growth;
mod managed;
pub mod mappings;
pub mod maps;
mod process;
pub mod programs;
pub mod site;
pub mod snapshots;
pub mod trap;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use profiler_common::{
    alloc::{MAX_ALLOC_PROCESSES, MAX_ALLOC_STACKS, Object, ObjectKey},
    loss::Tally,
    offsets,
};
use rustc_hash::FxHashMap;

use crate::{
    kernel::{
        load::Plan,
        port::Port,
        preflight::{Check, Verdict},
        uprobe::supports_multi,
    },
    model::{
        distribution::Log2,
        kind::ALLOC,
        loss::Loss,
        memory::{Footprint, Growth, Heap, Memory, Site, WatchMode, Watching},
        report::Totals,
        stack::StackId,
    },
    probe::{
        alloc::{
            allocators::Known,
            estimate::Estimate,
            governor::{Governor, Status, Watcher},
            growth::{growth, shared_by_all},
            managed::nearest,
            maps::{AllocMaps, Control, KernelMaps},
            process::{Process, SiteState},
            programs::PROGRAMS,
        },
        record::Record,
        spec::{Context, Extent, Probe, ProbeSpec},
    },
    process::{
        clock::{Clock, Every},
        limits,
        notice::{Event, Notice},
        room::make_room,
        target::comm,
    },
    runtimes::Runtimes,
    settings::{Alloc, AllocSettings, MAX_OVERHEAD_PERCENT, Settings},
};

/// The allocation probe.
pub static SPEC: ProbeSpec = ProbeSpec {
    name: "alloc",
    about: "how processes grow, and who has allocated what and not freed it",
    enabled: Settings::watches_memory,
    measures: |settings| settings.allocations().mode != Alloc::Off,
    large_maps: &["CALLS", "OBJECTS", "MAPPED", "ALLOC_STACKS", "STACK_CACHE"],
    prepare: |_, plan: &mut Plan| {
        plan.offsets(&[&offsets::PROBED_RETURNS]);
        Ok(())
    },
    start: |start| {
        let maps = Box::new(KernelMaps::take(start.kernel)?);
        let control = Control::take(start.kernel)?;
        let settings = start.settings.allocations();
        let mut watch = MemoryWatch::new(maps, start.proc_root, &start.resolver.clock, &settings);
        watch.control = Some(control);
        Ok(Box::new(watch))
    },
    kinds: &[ALLOC],
    checks: || {
        vec![
            Check::new(
                "allocations (user probes)",
                Path::new("/sys/bus/event_source/devices/uprobe/type").exists(),
                Verdict::Degraded,
                "supported",
                "no uprobes (CONFIG_UPROBE_EVENTS): memory by growth and page faults only",
            ),
            Check::new(
                "many user probes at once",
                supports_multi(),
                Verdict::Degraded,
                "supported",
                "needs Linux 6.10: taking the probes of an allocator away takes seconds, not milliseconds",
            ),
        ]
    },
};

/// How often growth and sites are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How long a run waits for probes that are wanted from the start.
const PATIENCE: Duration = Duration::from_secs(2);

/// Objects whose age is looked at when a run ends: reading each takes two system calls.
const MAX_AGES: usize = 200_000;

/// Most processes whose growth is known. One that has ended gives its place to one that lives.
const MAX_PROCESSES: usize = 512;

/// Looks take one part in so many of the time at most.
const MOST_OF_TIME: u32 = 100;

/// What was not watched is said of so many at most.
const MAX_PROBLEMS: usize = 64;

/// Everything known about memory.
pub struct MemoryWatch {
    proc_root: PathBuf,
    mode: Alloc,
    libraries: Vec<PathBuf>,
    max_overhead_percent: Option<f64>,
    maps: Box<dyn AllocMaps>,
    /// What the governor says through what is watched; it has it from its start on.
    control: Option<Control>,
    governor: Option<Box<dyn Watcher>>,
    /// It has been tried to load its programs.
    tried: bool,
    clock: Clock,
    processes: BTreeMap<u32, Process>,
    /// Most processes at once that have no place among them.
    unlisted: u64,
    /// More were to be watched than can be.
    too_many: bool,
    known: Known,
    /// Processes and stacks by the kernel programs' ids.
    stacks: FxHashMap<u64, (u32, StackId)>,
    sites: FxHashMap<u64, SiteState>,
    /// What had been done when sites were last read.
    read_with: Status,
    look: Every,
    looked: bool,
    problems: Vec<String>,
    ended: bool,
}

impl MemoryWatch {
    /// Begins to look at processes.
    pub fn new(
        maps: Box<dyn AllocMaps>,
        proc_root: &Path,
        clock: &Clock,
        settings: &AllocSettings,
    ) -> MemoryWatch {
        MemoryWatch {
            proc_root: proc_root.to_owned(),
            mode: settings.mode,
            libraries: settings.libraries.clone(),
            max_overhead_percent: match settings.mode {
                Alloc::Full => settings.max_overhead_percent,
                Alloc::Auto | Alloc::Off => {
                    Some(settings.max_overhead_percent.unwrap_or(MAX_OVERHEAD_PERCENT))
                }
            },
            maps,
            control: None,
            governor: None,
            tried: false,
            clock: clock.clone(),
            processes: BTreeMap::new(),
            unlisted: 0,
            too_many: false,
            known: Known::new(),
            stacks: FxHashMap::default(),
            sites: FxHashMap::default(),
            read_with: Status::default(),
            look: Every::new(clock, LOOK_INTERVAL),
            looked: false,
            problems: Vec::new(),
            ended: false,
        }
    }

    /// A process runs another program since `time_ns`, or has ended: what it had allocated is gone.
    fn forget(&mut self, pid: u32, time_ns: u64) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.stale = true;
        if !process.was_watched() {
            return;
        }
        let old = |(key, object): &(ObjectKey, Object)| key.pid == pid && object.time_ns < time_ns;
        let objects: Vec<_> = self.maps.objects().filter(old).collect();
        let mappings: Vec<_> = self.maps.mappings().filter(old).collect();
        for (key, object) in objects {
            self.maps.forget(&key);
            self.gone(&object, object.size);
        }
        for (key, object) in mappings {
            self.maps.shrink(&key, &object, 0);
            self.gone(&object, object.size);
        }
    }

    /// Books the end of an object, or of so much of it, that the kernel programs have not seen.
    fn gone(&mut self, object: &Object, bytes: u64) {
        let gone = &mut self.sites.entry(object.stack).or_default().gone;
        gone.0 += bytes * u64::from(object.weight);
        gone.1 += if bytes == object.size { u64::from(object.weight) } else { 0 };
    }

    /// Compares the mappings that are watched with what is mapped.
    fn compare_mappings(&mut self) {
        let mut by_process: BTreeMap<u32, Vec<(ObjectKey, Object)>> = BTreeMap::new();
        for (key, object) in self.maps.mappings() {
            by_process.entry(key.pid).or_default().push((key, object));
        }
        for (pid, objects) in by_process {
            // Read after the objects: what has been mapped since is not among them.
            let Some(mapped) = mappings::mapped(&self.proc_root, pid) else { continue };
            for (key, object, left) in mappings::left(objects, &mapped) {
                if left < object.size && self.maps.shrink(&key, &object, left) {
                    self.gone(&object, object.size - left);
                }
            }
        }
    }

    /// Takes in those of `pids` that hold memory and are not known yet.
    fn take_in(&mut self, pids: &[u32], now_ns: u64) {
        let mut unlisted = 0;
        for &pid in pids {
            let known = self.processes.get(&pid).is_some_and(|process| !process.gone);
            if known || growth(&self.proc_root, pid, now_ns).is_none() {
                continue;
            }
            let worth = |_, process: &Process| process.gone.then(|| process.grown_bytes());
            // A number that is used again is another process's.
            let mut left = self.processes.remove(&pid).map(|_| pid);
            if make_room(&mut self.processes, MAX_PROCESSES, pid, worth, |pid, _| left = Some(pid)) {
                self.processes.insert(pid, Process::new(comm(&self.proc_root, pid)));
            } else {
                unlisted += 1;
            }
            if let Some(pid) = left {
                self.forget_sites(|of| of == pid);
            }
        }
        self.unlisted = self.unlisted.max(unlisted);
    }

    /// Forgets what processes allocated that have ended.
    fn forget_sites(&mut self, ended: impl Fn(u32) -> bool) {
        let MemoryWatch { maps, sites, stacks, .. } = self;
        stacks.retain(|id, (pid, _)| {
            if ended(*pid) {
                maps.forget_stack(*id);
                sites.remove(id);
            }
            !ended(*pid)
        });
    }

    /// Takes note of what is not watched.
    fn problem(&mut self, problem: String) {
        if self.problems.len() < MAX_PROBLEMS && !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// Looks at growth and sites of `pids`, and has the allocators of those that grow watched.
    fn look(&mut self, pids: &[u32], kernel: &mut dyn Port) -> Result<()> {
        self.looked = true;
        let now = self.clock.now_ns();
        self.take_in(pids, now);
        let mut changed = false;
        let mut problems = Vec::new();
        let mut watched = self.processes.values().filter(|process| process.watched).count();
        // What reading takes, each time; finding an allocator takes longer, once.
        let clock = self.clock.clone();
        let shared = shared_by_all(&self.proc_root);
        let mut reading_ns = clock.now_ns().saturating_sub(now);
        for (&pid, process) in self.processes.iter_mut().filter(|(_, process)| !process.gone) {
            let began_ns = clock.now_ns();
            let mut growth = growth(&self.proc_root, pid, now);
            growth.iter_mut().for_each(|growth| process.touched.leave_out(growth, shared));
            reading_ns += clock.now_ns().saturating_sub(began_ns);
            let Some(growth) = growth else {
                process.gone = true;
                if std::mem::take(&mut process.watched) {
                    self.maps.forget_process(pid);
                    (changed, watched) = (true, watched - 1);
                }
                continue;
            };
            if process.stale {
                // It may run another program now.
                process.name = comm(&self.proc_root, pid).unwrap_or(std::mem::take(&mut process.name));
            }
            let mut wanted = process.grows(growth, self.mode);
            if wanted && !process.watched {
                wanted = watched < MAX_ALLOC_PROCESSES as usize;
                self.too_many |= !wanted;
            }
            if wanted && (process.stale || !process.watched) {
                changed |= process.find_allocators(pid, &self.proc_root, &self.libraries, &mut self.known);
                problems.extend(process.problems(pid));
            }
            changed |= wanted != process.watched;
            watched = watched + usize::from(wanted) - usize::from(process.watched);
            process.watched = wanted;
            if wanted {
                self.maps.add_process(pid);
            }
        }
        self.look.pause(LOOK_INTERVAL.max(MOST_OF_TIME * Duration::from_nanos(reading_ns)));
        problems.into_iter().for_each(|problem| self.problem(problem));
        if changed {
            self.watch(kernel)?;
        }
        if self.governor.is_some() {
            self.compare_mappings();
            self.read_sites(now);
        }
        Ok(())
    }

    /// Looks at the heaps of language runtimes in processes that grow.
    fn look_at_heaps(&mut self, runtimes: &mut Runtimes, at_end: bool) {
        for (&pid, process) in self.processes.iter_mut().filter(|(_, process)| !process.gone) {
            let growth = process.growth.last().copied().unwrap_or_default();
            if !process.managed.is_due(&growth, at_end) {
                continue;
            }
            let began_ns = self.clock.now_ns();
            let (sample, limit_bytes) = runtimes.look_at_heap(pid, growth.time_ns).unzip();
            let took_ns = self.clock.now_ns().saturating_sub(began_ns);
            process.managed.add(sample, limit_bytes.flatten(), growth.time_ns, took_ns);
        }
    }

    /// Tells the governor what is wanted now.
    fn watch(&mut self, kernel: &mut dyn Port) -> Result<()> {
        if self.governor.is_none() {
            if std::mem::replace(&mut self.tried, true) {
                return Ok(());
            }
            let (programs, costs) = match kernel.user_programs(&PROGRAMS) {
                Ok(loaded) => loaded,
                Err(error) => {
                    // The verifier's answer can be long; what it did not like comes last.
                    let text = format!("{error:#}");
                    let last = text.lines().rev().take(6).collect::<Vec<_>>();
                    let last = last.into_iter().rev().collect::<Vec<_>>().join("; ");
                    self.problems.push(format!("the allocation probe cannot be loaded: {last}"));
                    self.mode = Alloc::Off;
                    return Ok(());
                }
            };
            let share = self.max_overhead_percent.map(|percent| percent / 100.0);
            let Some(control) = self.control.take() else { return Ok(()) };
            self.governor = Some(Box::new(Governor::start(programs, control, costs, share)));
        }
        let watched =
            self.processes.iter().filter(|(_, process)| process.watched && !process.breakpoints.is_empty());
        if let Some(governor) = &mut self.governor {
            governor.want(watched.map(|(&pid, process)| (pid, process.breakpoints.clone())).collect());
            if self.mode == Alloc::Full {
                governor.settle(PATIENCE);
            }
        }
        Ok(())
    }

    /// Adds a point to the series of every site and process.
    fn read_sites(&mut self, time_ns: u64) {
        let status = self.governor.as_ref().map(|governor| governor.status()).unwrap_or_default();
        let mut live: BTreeMap<u32, (f64, f64)> = BTreeMap::new();
        let mut stacks = 0;
        for (id, totals) in self.maps.stacks() {
            stacks += 1;
            let site = self.sites.entry(id).or_default();
            let point = Estimate::of(&totals, site.gone, &status).point(time_ns);
            if let Some((pid, _)) = self.stacks.get(&id) {
                let sum = live.entry(*pid).or_default();
                sum.0 += point.live_bytes;
                sum.1 += point.live_count;
            }
            let of = self.stacks.get(&id).and_then(|(pid, _)| self.processes.get(pid));
            // Of a process that has ended one point says that, and nothing more will happen.
            if !of.is_some_and(|of| of.gone) || site.points.last().is_none_or(|last| last.live_count > 0.0) {
                site.points.push(point);
            }
            **site.totals.get_or_insert_with(|| Box::new(totals)) = totals;
        }
        for (&pid, process) in &mut self.processes {
            if !process.libraries.is_empty() && !process.gone {
                let (live_bytes, live_count) = live.get(&pid).copied().unwrap_or_default();
                let older_freed_count = self.maps.unknown_frees(pid);
                process.heap.push(Heap { time_ns, live_bytes, live_count, older_freed_count });
            }
        }
        self.read_with = status;
        if stacks >= MAX_ALLOC_STACKS as usize / 4 * 3 {
            let gone = self.processes.iter().filter(|(_, process)| process.gone).map(|(&pid, _)| pid);
            let gone: BTreeSet<u32> = gone.collect();
            self.forget_sites(|pid| gone.contains(&pid));
            self.problem("where ended processes allocated: there are too many places".to_owned());
        }
    }

    /// Takes all probes away and looks for the last time.
    fn end(&mut self) {
        let now = self.clock.now_ns();
        // While probes go one by one, a call can lose one of its two: what was read before is what there was.
        if self.governor.is_some() {
            self.compare_mappings();
            self.read_sites(now);
        }
        if let Some(governor) = &mut self.governor {
            governor.stop();
        }
        let shared = shared_by_all(&self.proc_root);
        for (&pid, process) in self.processes.iter_mut().filter(|(_, process)| !process.gone) {
            if let Some(mut growth) = growth(&self.proc_root, pid, now) {
                process.touched.leave_out(&mut growth, shared);
                process.growth.push(growth);
            }
        }
        self.ended = true;
    }

    /// All that is known; `in_full` at the end, when the ages of objects are looked at as well.
    fn memory(&self, kernel: &dyn Port, in_full: bool) -> Memory {
        let status = &self.read_with;
        let mut ages: FxHashMap<u64, Log2> = FxHashMap::default();
        if in_full && self.governor.is_some() {
            let now = self.clock.now_ns();
            for (_, object) in self.maps.objects().chain(self.maps.mappings()).take(MAX_AGES) {
                let age = now.saturating_sub(object.time_ns);
                ages.entry(object.stack).or_default().add(age, object.weight.into());
            }
        }
        let watching = self.watching(kernel);
        let processes = self.processes.iter().map(|(&pid, process)| {
            let managed = process.managed.seen();
            let limit = || {
                let other = limits::nearest(&self.proc_root, pid);
                nearest(managed.as_ref(), other, process.growth.points())
            };
            Footprint {
                pid,
                process: process.name.clone(),
                growth: process.growth.clone(),
                heap: process.heap.clone(),
                limit: if in_full { limit() } else { None },
                managed,
            }
        });
        let sites = self.sites.iter().filter_map(|(id, site)| {
            let ((pid, stack), totals) = (*self.stacks.get(id)?, site.totals.as_deref()?);
            let estimate = Estimate::of(totals, site.gone, status);
            Some(Site {
                pid,
                stack,
                points: site.points.clone(),
                allocated_bytes: estimate.allocated_bytes,
                freed_bytes: estimate.freed_bytes,
                allocated_count: estimate.allocated_count,
                freed_count: estimate.freed_count,
                ages_ns: ages.remove(id).unwrap_or_default(),
                lifetimes_ns: totals.lifetimes.into_iter().collect(),
                sizes_bytes: totals.sizes.into_iter().collect(),
                estimated: totals.allocated_count != totals.seen_allocated || watching.is_estimated(),
            })
        });
        let sites: Vec<Site> = sites.collect();
        Memory { processes: processes.collect(), sites, faults: Vec::new(), watching }
    }

    fn watching(&self, kernel: &dyn Port) -> Watching {
        let status = self.governor.as_ref().map(|governor| governor.status()).unwrap_or_default();
        let mut probed: Vec<(String, Vec<String>)> = Vec::new();
        for library in self.processes.values().flat_map(|process| &process.libraries) {
            if !probed.iter().any(|(name, _)| *name == library.name) {
                let names = library
                    .functions
                    .iter()
                    .map(|function| format!("{}{}", function.name, if function.emulated { "" } else { "*" }));
                probed.push((library.name.clone(), names.collect()));
            }
        }
        let too_many = self
            .too_many
            .then(|| format!("allocations of more than {MAX_ALLOC_PROCESSES} processes at once"));
        Watching {
            mode: match (self.mode, &self.governor) {
                (_, Some(_)) => WatchMode::Watched,
                (Alloc::Auto, None) => WatchMode::Ready,
                _ => WatchMode::Off,
            },
            unlisted: self.unlisted,
            watched_ns: status.watched_ns,
            seen_ns: status.seen_ns,
            windows: status.windows,
            since_ns: status.since_ns,
            max_overhead_percent: self.max_overhead_percent,
            hits: status.hits,
            cost_ns: status.cost_ns,
            cpu_ns: status.cpu_ns,
            trap_ns: (status.traps.emulated_ns.1, status.traps.stepped_ns.1),
            attach_ns: status.longest_attach_ns,
            detach_ns: status.longest_detach_ns,
            probed,
            problems: too_many
                .into_iter()
                .chain(self.problems.iter().cloned())
                .chain(status.failure)
                .collect(),
            implied_frees: kernel.lost(Loss::FreesImplied),
            lost_objects: [Loss::ObjectsFull, Loss::AllocStacksFull, Loss::AllocClash]
                .into_iter()
                .map(|loss| kernel.lost(loss))
                .sum(),
            stacks_walked: kernel.tallied(Tally::AllocWalks),
        }
    }
}

impl Probe for MemoryWatch {
    fn record(&mut self, record: &Record, stack: Option<StackId>, _cx: &mut Context<'_>) -> Result<()> {
        if let (Record::AllocStack(id, raw), Some(stack)) = (record, stack) {
            self.stacks.insert(*id, (raw.header.pid, stack));
        }
        Ok(())
    }

    fn notice(&mut self, notice: &Notice) {
        if matches!(notice.event, Event::Exec { .. } | Event::Exited) {
            self.forget(notice.pid, notice.time_ns);
        }
        // Its memory is another program's now.
        if let (Event::Exec { name }, Some(process)) = (&notice.event, self.processes.get_mut(&notice.pid)) {
            process.begin_anew(name.clone());
            self.looked = false;
        }
    }

    fn mappings_changed(&mut self, pid: u32) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.stale = true;
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Result<()> {
        if self.ended || (self.looked && !self.look.is_due()) {
            return Ok(());
        }
        self.look(&cx.targets.pids(), cx.kernel)?;
        self.look_at_heaps(&mut cx.resolver.runtimes, false);
        Ok(())
    }

    fn stop(&mut self, cx: &mut Context<'_>) -> Result<()> {
        self.end();
        self.look_at_heaps(&mut cx.resolver.runtimes, true);
        Ok(())
    }

    fn report(&mut self, extent: Extent, totals: &mut Totals, cx: &mut Context<'_>) -> Result<()> {
        if extent == Extent::Snapshot {
            self.look(&cx.targets.pids(), cx.kernel)?;
        }
        if extent != Extent::Interval {
            totals.memory = Some(self.memory(cx.kernel, extent != Extent::Checkpoint));
        }
        Ok(())
    }

    fn held_bytes(&self) -> u64 {
        let held = self.processes.values().filter(|process| !process.gone);
        held.filter_map(|process| process.growth.last()).map(Growth::held_bytes).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
