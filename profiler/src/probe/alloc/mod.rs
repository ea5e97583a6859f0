//! The memory half of a live run: how processes grow, when their allocators are worth watching, and what each place that
//! allocates has allocated and not freed.

pub mod allocators;
pub mod exits;
pub mod governor;
pub mod maps;
pub mod site;
pub mod snapshots;
pub mod trap;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Result;
use profiler_common::alloc::{BUCKETS, Call, MAX_ALLOC_PROCESSES, StackTotals};
use rustc_hash::FxHashMap;

use crate::{
    cli::{Alloc, AllocArgs},
    kernel::{
        Kernel,
        uprobe::{Breakpoint, Program},
    },
    model::{
        distribution::Log2,
        loss::{Loss, Losses},
        memory::{Footprint, Growth, Heap, LivePoint, Memory, Site, WatchMode, Watching},
        series::Series,
        stack::StackId,
    },
    probe::alloc::{
        allocators::{Known, Library},
        governor::{Governor, Status, WINDOW_NS},
        maps::AllocMaps,
    },
    process::{clock::monotonic_ns, limits, target::comm},
};

/// How often growth and sites are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How long a run waits for probes that are wanted from the start.
const PATIENCE: Duration = Duration::from_secs(2);

/// A process grows if it holds so much more than at its lowest, and more than ever since, bytes.
const GROWTH_BYTES: u64 = 256 * 1024;
/// Its lowest within this time, ns.
const GROWTH_MEMORY_NS: u64 = 600_000_000_000;
/// It has stopped growing if it did not hold more than ever for so long, ns.
const REST_NS: u64 = 60_000_000_000;

/// Share of the target's CPU time that probes attached by themselves may cost, percent.
const DEFAULT_MAX_OVERHEAD: f64 = 5.0;

/// Page faults that one sample stands for. A prime, so that no pattern of faults keeps step with it.
pub const FAULT_PERIOD: u64 = 61;

/// Most pairs of process and stack that page faults are counted for.
const MAX_FAULT_STACKS: usize = 65_536;

/// Objects whose age is looked at when a run ends: reading each takes two system calls.
const MAX_AGES: usize = 200_000;

/// Everything known about memory.
pub struct MemoryWatch {
    proc_root: PathBuf,
    mode: Alloc,
    libraries: Vec<PathBuf>,
    max_overhead_percent: Option<f64>,
    maps: AllocMaps,
    governor: Option<Governor>,
    processes: BTreeMap<u32, Process>,
    known: Known,
    /// Processes and stacks by the kernel programs' ids.
    stacks: FxHashMap<u64, (u32, StackId)>,
    sites: FxHashMap<u64, SiteState>,
    /// What had been done when sites were last read.
    read_with: Status,
    faults: FxHashMap<(u32, StackId), u64>,
    last_look: Option<Instant>,
    problems: Vec<String>,
    ended: bool,
}

/// One process.
#[derive(Default)]
struct Process {
    name: String,
    growth: Series<Growth>,
    heap: Series<Heap>,
    trend: Trend,
    gone: bool,
    /// Its allocator's functions, once they are or were watched.
    libraries: Vec<Library>,
    breakpoints: Vec<Breakpoint>,
    watched: bool,
    /// Mappings or program have changed since its allocator was looked for.
    stale: bool,
}

/// Whether a process grows.
#[derive(Clone, Debug, Default)]
struct Trend {
    lowest: Option<(u64, u64)>,
    highest: Option<(u64, u64)>,
}

impl Trend {
    /// Takes note of what it holds now. Returns whether it is growing.
    fn add(&mut self, time_ns: u64, held_bytes: u64) -> bool {
        let lowest = match self.lowest {
            Some((when, lowest)) if lowest <= held_bytes && time_ns < when + GROWTH_MEMORY_NS => {
                (when, lowest)
            }
            _ => (time_ns, held_bytes),
        };
        self.lowest = Some(lowest);
        if self.highest.is_none_or(|(_, highest)| highest < held_bytes) {
            self.highest = Some((time_ns, held_bytes));
        }
        let newest = self.highest.is_some_and(|(when, _)| when == time_ns);
        newest && held_bytes >= lowest.1 + GROWTH_BYTES
    }

    /// Whether it has stopped growing for good, as far as one can tell.
    fn rests(&self, time_ns: u64) -> bool {
        self.highest.is_some_and(|(when, _)| time_ns >= when + REST_NS)
    }
}

/// One of the kernel's stacks.
#[derive(Default)]
struct SiteState {
    points: Series<LivePoint>,
    totals: Option<Box<StackTotals>>,
    /// Bytes and objects that went with their process or its former program.
    gone: (u64, u64),
}

impl MemoryWatch {
    /// Begins to look at processes.
    pub fn new(maps: AllocMaps, proc_root: &Path, args: &AllocArgs) -> MemoryWatch {
        MemoryWatch {
            proc_root: proc_root.to_owned(),
            mode: args.alloc,
            libraries: args.alloc_lib.clone(),
            max_overhead_percent: match args.alloc {
                Alloc::Full => args.max_overhead,
                Alloc::Auto | Alloc::Off => Some(args.max_overhead.unwrap_or(DEFAULT_MAX_OVERHEAD)),
            },
            maps,
            governor: None,
            processes: BTreeMap::new(),
            known: Known::new(),
            stacks: FxHashMap::default(),
            sites: FxHashMap::default(),
            read_with: Status::default(),
            faults: FxHashMap::default(),
            last_look: None,
            problems: Vec::new(),
            ended: false,
        }
    }

    /// A stack of the kernel programs.
    pub fn stack(&mut self, id: u64, pid: u32, stack: StackId) {
        self.stacks.insert(id, (pid, stack));
    }

    /// A page fault, which stands for [`FAULT_PERIOD`].
    pub fn fault(&mut self, pid: u32, stack: StackId) {
        if self.faults.len() < MAX_FAULT_STACKS || self.faults.contains_key(&(pid, stack)) {
            *self.faults.entry((pid, stack)).or_default() += FAULT_PERIOD;
        }
    }

    /// A process has other mappings than before.
    pub fn mappings_changed(&mut self, pid: u32) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.stale = true;
        }
    }

    /// A process runs another program since `time_ns`, or has ended: what it had allocated is gone.
    pub fn forget(&mut self, pid: u32, time_ns: u64) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.stale = true;
        if !process.watched {
            return;
        }
        let old: Vec<_> =
            self.maps.objects().filter(|(key, object)| key.pid == pid && object.time_ns < time_ns).collect();
        for (key, object) in old {
            self.maps.forget(&key);
            let gone = &mut self.sites.entry(object.stack).or_default().gone;
            gone.0 += object.size * u64::from(object.weight);
            gone.1 += u64::from(object.weight);
        }
    }

    /// Whether it is time to [`MemoryWatch::look`].
    pub fn is_due(&self) -> bool {
        !self.ended && self.last_look.is_none_or(|last| last.elapsed() >= LOOK_INTERVAL)
    }

    /// Looks at growth and sites of `pids`, and has the
    /// allocators of those that grow watched.
    pub fn look(&mut self, pids: &[u32], kernel: &mut Kernel) -> Result<()> {
        self.last_look = Some(Instant::now());
        for &pid in pids {
            if self.processes.len() < MAX_ALLOC_PROCESSES as usize && !self.processes.contains_key(&pid) {
                let name = comm(&self.proc_root, pid).unwrap_or_default();
                self.processes.insert(pid, Process { name, stale: true, ..Process::default() });
            }
        }
        let now = monotonic_ns();
        let mut changed = false;
        for (&pid, process) in &mut self.processes {
            if process.gone {
                continue;
            }
            let Some(growth) = growth(&self.proc_root, pid, now) else {
                process.gone = true;
                changed |= std::mem::take(&mut process.watched);
                continue;
            };
            process.growth.push(growth);
            if process.stale {
                // It may run another program now.
                process.name =
                    comm(&self.proc_root, pid).unwrap_or_else(|| std::mem::take(&mut process.name));
            }
            let grows = process.trend.add(now, growth.held_bytes());
            let wanted = match self.mode {
                Alloc::Off => false,
                Alloc::Full => true,
                Alloc::Auto if process.watched => !process.trend.rests(now),
                Alloc::Auto => grows,
            };
            if wanted && (process.stale || !process.watched) {
                changed |= add_allocators(process, pid, &self.proc_root, &self.libraries, &mut self.known);
                process.stale = false;
                let none = (process.breakpoints.is_empty() && !process.watched).then(|| {
                    format!(
                        "{} (pid {pid}): no allocator found among the symbols of its files (a stripped static one has none; \
                         --alloc-lib FILE names others)",
                        process.name
                    )
                });
                let unseen = process.libraries.iter().filter(|library| !library.unseen.is_empty());
                let unseen = unseen.map(|library| {
                    let name = library.name.rsplit('/').next().unwrap_or_default();
                    format!("{name}: operator {}: where it returns cannot be told", library.unseen.join(", "))
                });
                for problem in unseen.chain(none) {
                    if !self.problems.contains(&problem) {
                        self.problems.push(problem);
                    }
                }
            }
            changed |= wanted != process.watched;
            process.watched = wanted;
            if wanted {
                self.maps.add_process(pid);
            }
        }
        if changed {
            self.watch(kernel)?;
        }
        if self.governor.is_some() {
            self.read_sites(now);
        }
        Ok(())
    }

    /// Tells the governor what is wanted now.
    fn watch(&mut self, kernel: &mut Kernel) -> Result<()> {
        if self.governor.is_none() {
            let Some(control) = self.maps.control.take() else { return Ok(()) };
            let programs = match kernel.load_alloc() {
                Ok(programs) => programs,
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
            self.governor = Some(Governor::start(programs, control, kernel.costs()?, share));
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
        let status = self.governor.as_ref().map(Governor::status).unwrap_or_default();
        let mut live: BTreeMap<u32, (f64, f64)> = BTreeMap::new();
        for (id, totals) in self.maps.stacks() {
            let site = self.sites.entry(id).or_default();
            let point = Books::of(&totals, site.gone, &status).point(time_ns);
            if let Some((pid, _)) = self.stacks.get(&id) {
                let sum = live.entry(*pid).or_default();
                sum.0 += point.live_bytes;
                sum.1 += point.live_count;
            }
            site.points.push(point);
            match &mut site.totals {
                Some(known) => **known = totals,
                None => site.totals = Some(Box::new(totals)),
            }
        }
        for (&pid, process) in &mut self.processes {
            if !process.libraries.is_empty() {
                let (live_bytes, live_count) = live.get(&pid).copied().unwrap_or_default();
                let older_freed_count = self.maps.unknown_frees(pid);
                process.heap.push(Heap { time_ns, live_bytes, live_count, older_freed_count });
            }
        }
        self.read_with = status;
    }

    /// What the largest process held when last looked at, bytes.
    pub fn largest_bytes(&self) -> u64 {
        let held = self.processes.values().filter(|process| !process.gone);
        held.filter_map(|process| process.growth.last()).map(Growth::held_bytes).max().unwrap_or(0)
    }

    /// Takes all probes away and looks for the last time.
    pub fn stop(&mut self) {
        let now = monotonic_ns();
        // While probes go one by one, a call can lose one of its two: what was read before is what there was.
        if self.governor.is_some() {
            self.read_sites(now);
        }
        if let Some(governor) = &mut self.governor {
            governor.stop();
        }
        for (&pid, process) in self.processes.iter_mut().filter(|(_, process)| !process.gone) {
            if let Some(growth) = growth(&self.proc_root, pid, now) {
                process.growth.push(growth);
            }
        }
        self.ended = true;
    }

    /// All that is known; `in_full` at the end, when the ages of objects are looked at as well.
    pub fn memory(&self, kernel: &Kernel, in_full: bool) -> Memory {
        let status = &self.read_with;
        let mut ages: FxHashMap<u64, Log2> = FxHashMap::default();
        if in_full && self.governor.is_some() {
            let now = monotonic_ns();
            for (_, object) in self.maps.objects().take(MAX_AGES) {
                let age = now.saturating_sub(object.time_ns);
                ages.entry(object.stack).or_default().add(age, object.weight.into());
            }
        }
        let watching = self.watching(kernel);
        let processes = self.processes.iter().map(|(&pid, process)| Footprint {
            pid,
            process: process.name.clone(),
            growth: process.growth.clone(),
            heap: process.heap.clone(),
            limit: if in_full { limits::nearest(&self.proc_root, pid) } else { None },
        });
        let sites = self.sites.iter().filter_map(|(id, site)| {
            let ((pid, stack), totals) = (*self.stacks.get(id)?, site.totals.as_deref()?);
            let books = Books::of(totals, site.gone, status);
            Some(Site {
                pid,
                stack,
                points: site.points.clone(),
                allocated_bytes: books.allocated_bytes,
                freed_bytes: books.freed_bytes,
                allocated_count: books.allocated_count,
                freed_count: books.freed_count,
                ages_ns: ages.remove(id).unwrap_or_default(),
                lifetimes_ns: totals.lifetimes.into_iter().collect(),
                sizes_bytes: totals.sizes.into_iter().collect(),
                estimated: totals.allocated_count != totals.seen_allocated || watching.is_estimated(),
            })
        });
        let sites: Vec<Site> = sites.collect();
        let mut faults: Vec<_> = self.faults.iter().map(|(&(pid, stack), &n)| (pid, stack, n)).collect();
        faults.sort_unstable_by_key(|&(pid, stack, n)| (std::cmp::Reverse(n), pid, stack));
        Memory { processes: processes.collect(), sites, faults, watching }
    }

    fn watching(&self, kernel: &Kernel) -> Watching {
        let mut losses = Losses::default();
        kernel.add_losses(&mut losses);
        let status = self.governor.as_ref().map(Governor::status).unwrap_or_default();
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
        Watching {
            mode: match (self.mode, &self.governor) {
                (_, Some(_)) => WatchMode::Watched,
                (Alloc::Auto, None) => WatchMode::Ready,
                _ => WatchMode::Off,
            },
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
            problems: self.problems.iter().cloned().chain(status.failure).collect(),
            implied_frees: losses.get(Loss::FreesImplied),
            lost_objects: [Loss::ObjectsFull, Loss::AllocStacksFull, Loss::AllocClash]
                .into_iter()
                .map(|loss| losses.get(loss))
                .sum(),
            stacks_walked: kernel.stacks_walked(),
        }
    }
}

/// Looks for the allocators of a process; returns whether there are new ones.
fn add_allocators(
    process: &mut Process,
    pid: u32,
    proc_root: &Path,
    also: &[PathBuf],
    known: &mut Known,
) -> bool {
    let before = process.breakpoints.len();
    for library in allocators::find(proc_root, pid, also, known) {
        if process
            .libraries
            .iter()
            .any(|probed| probed.name == library.name && probed.functions == library.functions)
        {
            continue;
        }
        process.breakpoints.extend(breakpoints(&library));
        process.libraries.push(library);
    }
    process.breakpoints.len() != before
}

/// What to put into a library: at the functions that return something, also where they do.
fn breakpoints(library: &Library) -> Vec<Breakpoint> {
    let mut breakpoints = Vec::new();
    for function in &library.functions {
        let returns = function.call.returns() && function.exits.is_empty();
        let at = |file_offset, program| Breakpoint {
            path: library.path.clone(),
            file_offset,
            program,
            cookie: function.call as u64,
            emulated: function.emulated,
            frequent: matches!(
                function.call,
                Call::Malloc | Call::New | Call::Calloc | Call::Realloc | Call::Free
            ) && !function.name.contains("valloc"),
        };
        if returns {
            breakpoints.push(at(function.file_offset, Program::Return));
        }
        breakpoints.extend(function.exits.iter().map(|&exit| at(exit, Program::Leave)));
        let frees = matches!(function.call, Call::Free | Call::Munmap);
        let first = if frees { Program::Free } else { Program::Enter };
        breakpoints.push(at(function.file_offset, first));
    }
    breakpoints
}

/// So many windows must have seen objects of other windows freed, before these frees are taken to tell how many there are.
const TELLING_WINDOWS: u64 = 5;

/// What a stack allocated and freed so far, and the standard error of the difference.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Books {
    allocated_bytes: u64,
    allocated_count: u64,
    freed_bytes: u64,
    freed_count: u64,
    live_bytes_err: f64,
}

impl Books {
    /// What is known of a stack; `gone` are bytes and objects that went with their process or its former program.
    fn of(totals: &StackTotals, gone: (u64, u64), status: &Status) -> Books {
        let freed = freed(totals, gone);
        let exact = Books {
            allocated_bytes: totals.allocated_bytes,
            allocated_count: totals.allocated_count,
            freed_bytes: freed.0,
            freed_count: freed.1,
            live_bytes_err: 0.0,
        };
        let unseen = Unseen::of(totals, status);
        if status.windows == 0 && unseen.since == 0.0 {
            return exact;
        }
        let more = |n: u64| n + (n as f64 * unseen.more()) as u64;
        Books {
            allocated_bytes: more(exact.allocated_bytes),
            allocated_count: more(exact.allocated_count),
            freed_bytes: more(exact.freed_bytes),
            freed_count: more(exact.freed_count),
            live_bytes_err: exact.error(&unseen),
        }
    }

    fn live(&self) -> (f64, f64) {
        ((self.allocated_bytes - self.freed_bytes) as f64, (self.allocated_count - self.freed_count) as f64)
    }

    /// The standard error of what lives, bytes. It has three parts: what windows that were not there would have seen
    /// allocated, what they would have seen freed, and, of the objects seen that live, how many these happen to be and how
    /// large.
    fn error(&self, unseen: &Unseen) -> f64 {
        let (bytes, count) = self.live();
        let allocated = self.allocated_count.max(1) as f64;
        let seen_share = (unseen.totals.seen_allocated as f64 / allocated).min(1.0);
        // What a live object occupies, or one of those allocated if none seems to live.
        let each = if count > 0.0 { bytes / count } else { self.allocated_bytes as f64 / allocated };
        let between = unseen.variance_of_allocations() * (count / allocated).powi(2);
        let objects =
            count * (1.0 - seen_share) * (1.0 + size_spread(&unseen.totals.sizes)) / seen_share.max(1e-9);
        each * (between + unseen.variance_of_frees() + objects).sqrt()
    }

    fn point(&self, time_ns: u64) -> LivePoint {
        let (live_bytes, live_count) = self.live();
        LivePoint { time_ns, live_bytes, live_count, live_bytes_err: self.live_bytes_err }
    }
}

/// Bytes and objects freed; of what is seen in windows only, as many as the frees seen stand for. Where something frees
/// much at once and rarely (a collector), windows miss it, but later ones see addresses given out again: then, as many as
/// those stand for, which can be too many.
fn freed(totals: &StackTotals, gone: (u64, u64)) -> (u64, u64) {
    let bursts = totals.later_windows < TELLING_WINDOWS && totals.reused_count > totals.later_count;
    let later = if bursts {
        (totals.reused_bytes, totals.reused_count)
    } else {
        (totals.later_bytes, totals.later_count)
    };
    (
        (totals.freed_bytes + later.0 + gone.0).min(totals.allocated_bytes),
        (totals.freed_count + later.1 + gone.1).min(totals.allocated_count),
    )
}

/// What windows have seen of a stack, to tell what they have not.
struct Unseen {
    totals: StackTotals,
    /// How many windows, the sum of what an allocation in each stood for, and of its squares.
    windows: f64,
    weights: (f64, f64),
    /// Time since the last one, in windows.
    since: f64,
}

impl Unseen {
    fn of(totals: &StackTotals, status: &Status) -> Unseen {
        let mut totals = *totals;
        totals.close_window();
        totals.close_later();
        let since = status.since_ns as f64 / WINDOW_NS as f64;
        Unseen { totals, windows: status.windows as f64, weights: status.weights, since }
    }

    /// What goes on as windows have seen it makes everything larger by this part, since the last of them.
    fn more(&self) -> f64 {
        let in_windows = self.totals.window_sum as f64 / self.totals.allocated_count.max(1) as f64;
        in_windows * self.since / self.weights.0.max(self.since).max(1.0)
    }

    /// Variance of the number of objects that windows say were allocated: how much they differ (Cochran, Sampling
    /// Techniques, 3rd edition, 6.4: a ratio estimate, windows being the sample and what each stands for its size); and,
    /// since a few windows differ less than many would, what is to be expected of bursts: that the share of windows that
    /// see one is not known better than by Laplace's rule of succession, (hit + 1) / (windows + 2).
    fn variance_of_allocations(&self) -> f64 {
        let Unseen { totals, windows: n, weights, since } = self;
        let rate = totals.window_sum as f64 / weights.0.max(1.0);
        let squares = totals.window_squares as f64 - 2.0 * rate * totals.window_products as f64
            + rate * rate * weights.1;
        // Of few windows, the variance is not known well either: that of Student's t with so
        // many degrees of freedom, three at least.
        let degrees = n - 1.0;
        let student = degrees / (degrees - 2.0).max(degrees / 3.0);
        let observed = if *n < 2.0 { 0.0 } else { squares.max(0.0) * n / degrees * student };
        let hit = totals.windows_hit as f64;
        let burst = totals.seen_allocated as f64 / (hit + totals.slices_hit as f64).max(1.0);
        // A window may have ended since they were counted.
        let share = ((hit + 1.0) / (n + 2.0)).min(1.0);
        observed * (1.0 + self.more()).powi(2)
            + (weights.1 + since * since) * burst * burst * share * (1.0 - share)
    }

    /// Variance of the number of objects that windows say were freed: what they saw comes in bursts that are as likely as
    /// the windows (Poisson), and one more might have been missed.
    fn variance_of_frees(&self) -> f64 {
        let stands_for = self.totals.allocated_count as f64 / self.totals.seen_allocated.max(1) as f64;
        let one = stands_for * (self.weights.0 / self.windows.max(1.0)).max(1.0);
        self.totals.later_squares as f64 + one * one
    }
}

/// Variance of sizes over their mean squared.
fn size_spread(sizes: &[u64; BUCKETS]) -> f64 {
    let (mut n, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for (bucket, &count) in sizes.iter().enumerate() {
        let (size, count) = (1.5 * (1u64 << bucket) as f64, count as f64);
        n += count;
        sum += count * size;
        squares += count * size * size;
    }
    if n == 0.0 { 0.0 } else { (squares * n / (sum * sum) - 1.0).max(0.0) }
}

/// What a process occupies now; `None` if it is gone.
fn growth(proc_root: &Path, pid: u32, time_ns: u64) -> Option<Growth> {
    let status = fs::read_to_string(proc_root.join(format!("{pid}/status"))).ok()?;
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    Some(Growth {
        time_ns,
        anon_bytes: bytes("RssAnon")?, // a zombie or kernel thread has none
        file_bytes: bytes("RssFile")?,
        shmem_bytes: bytes("RssShmem")?,
        swap_bytes: bytes("VmSwap").unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const MIB: u64 = 1 << 20;

    #[test]
    fn growth_is_more_than_ever() {
        let mut trend = Trend::default();
        assert!(!trend.add(0, 10 * MIB));
        assert!(!trend.add(SECOND, 10 * MIB + 100 * 1024), "too little to tell");
        assert!(trend.add(2 * SECOND, 10 * MIB + 300 * 1024));
        assert!(!trend.add(3 * SECOND, 10 * MIB + 290 * 1024), "not the most ever");
        assert!(!trend.rests(4 * SECOND));
        assert!(trend.rests(2 * SECOND + REST_NS));
        let mut sawtooth = Trend::default();
        let mut grew = 0;
        for second in 0..100 {
            grew += u32::from(sawtooth.add(second * SECOND, 10 * MIB + second % 10 * MIB));
        }
        assert!(grew < 10, "{grew}");
    }

    #[test]
    fn a_slow_leak_is_seen_within_ten_minutes() {
        let mut trend = Trend::default();
        let first = (0..600).find(|&second| trend.add(second * SECOND, 10 * MIB + second * 1024));
        assert!(first.is_some_and(|second| second <= 260), "{first:?}");
    }

    #[test]
    fn an_estimate_has_an_error_and_a_count_has_none() {
        let mut totals = StackTotals {
            allocated_bytes: 6400,
            allocated_count: 100,
            seen_allocated: 100,
            slices_hit: 5,
            ..StackTotals::EMPTY
        };
        totals.sizes[6] = 100;
        let always = Books::of(&totals, (0, 0), &Status::default()).point(1);
        assert_eq!((always.live_bytes, always.live_count, always.live_bytes_err), (6400.0, 100.0, 0.0));
        let windows = Status { windows: 5, weights: (20.0, 80.0), ..Status::default() };
        let live_point = |totals: &StackTotals, gone| Books::of(totals, gone, &windows).point(1);
        // Five bursts of twenty objects when all was seen, none in any of the five windows of weight four.
        let exact = live_point(&totals, (0, 0));
        let expected = 64.0 * (80.0 * 20.0f64.powi(2) * 1.0 / 7.0 * 6.0 / 7.0 + 4.0f64.powi(2)).sqrt();
        assert!((exact.live_bytes_err - expected).abs() < 1e-9, "{exact:?}");
        // Five windows, five objects in each.
        totals.seen_allocated = 25;
        (totals.slices_hit, totals.windows_hit) = (0, 5);
        (totals.window_sum, totals.window_squares, totals.window_products) = (100, 5 * 400, 5 * 80);
        let estimate = live_point(&totals, (0, 0));
        let between = 80.0 * 25.0 * 6.0 / 7.0 * 1.0 / 7.0;
        let expected = 64.0 * (between + 16.0f64.powi(2) + 100.0 * 0.75 * 4.0).sqrt();
        assert!((estimate.live_bytes_err - expected).abs() < 1e-9);
        assert_eq!(live_point(&totals, (6400, 100)).live_bytes, 0.0);
        // One free, in another window, of an object like them.
        (totals.later_bytes, totals.later_count, totals.later_windows, totals.later_sum) =
            (16 * 64, 16, 1, 16);
        let freed = live_point(&totals, (0, 0));
        assert_eq!((freed.live_bytes, freed.live_count), (84.0 * 64.0, 84.0));
        assert!(freed.live_bytes_err > estimate.live_bytes_err, "{freed:?}");
        // Addresses are given out again that nobody freed.
        (totals.reused_bytes, totals.reused_count) = (48 * 64, 48);
        assert_eq!(live_point(&totals, (0, 0)).live_count, 52.0);
        totals.later_windows = TELLING_WINDOWS;
        assert_eq!(live_point(&totals, (0, 0)).live_count, 84.0);
        totals.sizes[12] = 100;
        assert!(live_point(&totals, (0, 0)).live_bytes_err > freed.live_bytes_err);
        // All of them in one of the five: it might as well have been none.
        totals.windows_hit = 1;
        (totals.window_squares, totals.window_products) = (100 * 100, 100 * 4);
        let burst = live_point(&totals, (0, 0));
        assert!(burst.live_bytes_err > 0.9 * burst.live_bytes, "{burst:?}");
    }

    #[test]
    fn own_memory_is_read() {
        let growth = growth(Path::new("/proc"), std::process::id(), 7).unwrap();
        assert!(growth.anon_bytes > 0 && growth.file_bytes > 0);
        assert!(super::growth(Path::new("/nowhere"), 1, 0).is_none());
    }
}
