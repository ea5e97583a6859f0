//! Findings for a reader: what has the same reason is one finding, however often it happened.

use std::collections::BTreeMap;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    detect::leak::{self, Certainty, Trend},
    model::{
        cause::WaitCause,
        distribution::Log2,
        finding::Severity,
        memory::{Limit, Memory, Site},
        report::{Names, Run},
        stack::{StackId, ThreadKey},
        syscall::{Chatty, ErrorStorm},
        wait::{Blocking, Convoy, LongWait, LongWaitKind, Stall},
    },
    symbolize::Function,
};

/// A stall with fewer samples says too little about where its time went to be a reason of its own.
const MIN_SAMPLES: u64 = 4;

/// A process that reaches its memory limit within this time is critical, ns.
const LIMIT_NEAR_NS: u64 = 3600 * 1_000_000_000;

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq)]
pub enum Finding {
    /// An event loop stalled.
    Stalls(StallGroup),
    /// Threads waited for long.
    Waits(WaitGroup),
    /// Threads queued for a lock.
    Convoy(Convoy),
    /// What is allocated at one place is not freed.
    Leak(Leak),
    /// A process keeps growing, and none of its sites explains it.
    Growing(Growing),
    /// Many small requests where a batch would do.
    Chatty(ChattyGroup),
    /// A system call kept failing.
    Storm(ErrorStorm),
}

/// Stalls of one event loop with the same reason.
#[derive(Clone, Debug, PartialEq)]
pub struct StallGroup {
    /// Whose loop.
    pub thread: ThreadKey,
    /// The worst.
    pub severity: Severity,
    /// How many.
    pub count: u64,
    /// Sum of their lengths, ns.
    pub total_ns: u64,
    /// The longest, ns.
    pub longest_ns: u64,
    /// What most of their time went to.
    pub reason: Reason,
    /// The time that went there, ns.
    pub reason_ns: u64,
    /// Part of the whole that has an explanation, ns.
    pub explained_ns: u64,
    /// Where, best example.
    pub stack: Option<StackId>,
    /// Of the block, longest example.
    pub object: Option<String>,
}

/// What most of a stall's time went to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The thread itself was busy; in this function, if there are samples.
    OnCpu(Option<Function>),
    /// It was ready and had no CPU.
    RunQueue,
    /// It blocked.
    Blocked {
        /// What for.
        cause: WaitCause,
        /// System call; empty for none.
        syscall: String,
    },
    /// Nobody saw.
    Unexplained,
}

/// Long waits of one process with the same reason.
#[derive(Clone, Debug, PartialEq)]
pub struct WaitGroup {
    /// The threads, the longest wait's first.
    pub threads: Vec<ThreadKey>,
    /// The worst.
    pub severity: Severity,
    /// How many.
    pub count: u64,
    /// Sum of their lengths, ns.
    pub total_ns: u64,
    /// The longest: what else is to be said of all.
    pub longest: LongWait,
    /// Threads that ran instead of a starved one, by name, with the time they cost it, ns; most first.
    pub instead: Vec<(String, u64)>,
    /// How many had not ended.
    pub ongoing: u64,
}

/// A site whose live memory keeps growing.
#[derive(Clone, Debug, PartialEq)]
pub struct Leak {
    /// How bad.
    pub severity: Severity,
    /// Process id.
    pub pid: u32,
    /// Name of the process.
    pub process: String,
    /// The stack that allocates.
    pub stack: StackId,
    /// How fast it grows, and how sure that is.
    pub trend: Trend,
    /// How sure it is that growth goes on.
    pub certainty: Certainty,
    /// Allocated since the run began and not freed, bytes.
    pub live_bytes: f64,
    /// Standard error of that, bytes; zero if exact.
    pub live_bytes_err: f64,
    /// How many objects.
    pub live_count: f64,
    /// How old they are, ns; empty if not known.
    pub ages_ns: Log2,
    /// All figures are estimated from a part of the time.
    pub estimated: bool,
    /// When the process reaches its limit.
    pub reaches: Option<Reaches>,
}

/// A process that keeps growing.
#[derive(Clone, Debug, PartialEq)]
pub struct Growing {
    /// How bad.
    pub severity: Severity,
    /// Process id.
    pub pid: u32,
    /// Name of the process.
    pub process: String,
    /// How fast it grows, and how sure that is.
    pub trend: Trend,
    /// How sure it is that growth goes on.
    pub certainty: Certainty,
    /// What it holds: anonymous and shared memory, and swap, bytes.
    pub held_bytes: u64,
    /// Its allocations were watched, and do not explain it.
    pub watched: bool,
    /// When it reaches its limit.
    pub reaches: Option<Reaches>,
}

/// Chatty I/O of one process from one place in the code, with whatever peers or files.
#[derive(Clone, Debug, PartialEq)]
pub struct ChattyGroup {
    /// With the peer or file that took most of the time.
    pub most: Chatty,
    /// How many peers or files.
    pub objects: u64,
    /// Round trips, or small reads and writes, with all of them.
    pub count: u64,
    /// Time they took, ns.
    pub total_ns: u64,
}

/// When a process that keeps growing as it does reaches its limit.
#[derive(Clone, Debug, PartialEq)]
pub struct Reaches {
    /// Which limit.
    pub limit: Limit,
    /// How long after the end of the run, ns.
    pub after_ns: u64,
}

impl Finding {
    /// How bad.
    pub fn severity(&self) -> Severity {
        match self {
            Finding::Stalls(group) => group.severity,
            Finding::Waits(group) => group.severity,
            Finding::Convoy(convoy) => convoy.severity,
            Finding::Leak(leak) => leak.severity,
            Finding::Growing(growing) => growing.severity,
            Finding::Chatty(group) => group.most.severity(),
            Finding::Storm(storm) => storm.severity(),
        }
    }

    /// Time it cost, ns; of a convoy or storm it is not known. What grows until it is killed comes before all that.
    fn cost_ns(&self) -> u64 {
        match self {
            Finding::Stalls(group) => group.total_ns,
            Finding::Waits(group) => group.total_ns,
            Finding::Chatty(group) => group.total_ns,
            Finding::Convoy(_) | Finding::Storm(_) => 0,
            Finding::Leak(_) | Finding::Growing(_) => u64::MAX,
        }
    }
}

impl LongWait {
    /// Length of what was too long, ns.
    pub fn length_ns(&self) -> u64 {
        match self.kind {
            LongWaitKind::Blocked { .. } => self.block.blocked_ns,
            LongWaitKind::Starved { .. } => self.block.run_queue_ns,
        }
    }
}

/// All findings of a run, worst first.
pub fn findings(run: &Run) -> Vec<Finding> {
    let mut findings = run.memory.as_ref().map_or_else(Vec::new, |memory| growth(memory, run.names()));
    if let Some(blocking) = &run.blocking {
        findings.extend(stalls(blocking, run.names()).into_iter().map(Finding::Stalls));
        findings.extend(waits(blocking, run.names()).into_iter().map(Finding::Waits));
        findings.extend(blocking.convoys.iter().cloned().map(Finding::Convoy));
    }
    if let Some(calls) = &run.calls {
        findings.extend(chatty(&calls.chatty, run.names()).into_iter().map(Finding::Chatty));
        findings.extend(calls.storms.iter().cloned().map(Finding::Storm));
    }
    findings.sort_by_key(|finding| std::cmp::Reverse((finding.severity(), finding.cost_ns())));
    findings
}

/// Sites that allocate by the same functions are one to a reader, wherever in them they do; the largest comes first.
fn by_functions(memory: &Memory, names: &Names) -> Vec<Site> {
    let live = |site: &Site| site.points.last().map_or(0.0, |last| last.live_bytes);
    let mut sites: Vec<&Site> = memory.sites.iter().collect();
    sites.sort_by(|a, b| live(b).total_cmp(&live(a)).then(a.stack.cmp(&b.stack)));
    let mut merged: FxHashMap<(u32, Vec<&str>), Site> = FxHashMap::default();
    for site in &sites {
        let key = (site.pid, functions(names, Some(site.stack)));
        merged.entry(key).and_modify(|sum| sum.add(site)).or_insert_with(|| (*site).clone());
    }
    let mut merged: Vec<Site> = merged.into_values().collect();
    merged.sort_by_key(|site| (site.pid, site.stack));
    merged
}

/// What keeps growing, fastest first: sites, and processes of which no site does.
fn growth(memory: &Memory, names: &Names) -> Vec<Finding> {
    let mut found: Vec<(f64, Finding)> = Vec::new();
    let grows = leak::processes(memory);
    let sites = by_functions(memory, names);
    for (site, judged) in sites.iter().zip(leak::judge_sites(&sites, &memory.processes)) {
        let (Some(certainty), Some(live)) = (judged.trend.certainty(), site.points.last()) else { continue };
        let of = memory.processes.iter().zip(&grows).find(|(process, _)| process.pid == site.pid);
        let rate = judged.trend.bytes_per_s.per_time;
        // Others may leak too: the whole process may reach its limit earlier.
        let whole = of.filter(|(_, trend)| trend.certainty().is_some());
        let whole = whole.map_or(rate, |(_, trend)| trend.bytes_per_s.per_time.max(rate));
        let reaches = of.and_then(|(process, _)| reaches(process.limit.as_ref()?, whole));
        let leak = Leak {
            severity: severity(reaches.as_ref()),
            pid: site.pid,
            process: of.map_or_else(String::new, |(process, _)| process.process.clone()),
            stack: site.stack,
            trend: judged.trend,
            certainty,
            live_bytes: live.live_bytes,
            live_bytes_err: live.live_bytes_err,
            live_count: live.live_count,
            ages_ns: site.ages_ns.clone(),
            estimated: site.estimated,
            reaches,
        };
        found.push((rate, Finding::Leak(leak)));
    }
    for (process, trend) in memory.processes.iter().zip(grows) {
        let rate = trend.bytes_per_s.per_time;
        let leaks = found
            .iter()
            .filter(|(_, finding)| matches!(finding, Finding::Leak(leak) if leak.pid == process.pid));
        let explained: f64 = leaks.map(|(rate, _)| rate).sum();
        let (Some(certainty), Some(last)) = (trend.certainty(), process.growth.last()) else { continue };
        if explained >= rate / 2.0 {
            continue;
        }
        let reaches = process.limit.as_ref().and_then(|limit| reaches(limit, rate));
        let growing = Growing {
            severity: severity(reaches.as_ref()),
            pid: process.pid,
            process: process.process.clone(),
            trend,
            certainty,
            held_bytes: last.held_bytes(),
            watched: memory.sites.iter().any(|site| site.pid == process.pid),
            reaches,
        };
        found.push((rate, Finding::Growing(growing)));
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    found.into_iter().map(|(_, finding)| finding).collect()
}

fn reaches(limit: &Limit, bytes_per_s: f64) -> Option<Reaches> {
    let after_ns = (limit.left_bytes() as f64 / bytes_per_s * 1e9) as u64;
    (bytes_per_s > 0.0).then(|| Reaches { limit: limit.clone(), after_ns })
}

fn severity(reaches: Option<&Reaches>) -> Severity {
    let near = reaches.is_some_and(|reaches| reaches.after_ns < LIMIT_NEAR_NS);
    if near { Severity::Critical } else { Severity::Warning }
}

/// What most of a stall's time went to: reasons are compared, not only listed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Main<'a> {
    OnCpu,
    RunQueue,
    /// Cause, system call, and functions.
    Blocked(WaitCause, &'a str, Vec<&'a str>),
    Unexplained,
}

/// The main reason, and how much of the stall it took, ns.
fn main_reason<'a>(stall: &'a Stall, names: &'a Names) -> (Main<'a>, u64) {
    let (cause, blocked_ns) =
        stall.blocked.iter().copied().max_by_key(|(_, ns)| *ns).unwrap_or((WaitCause::Unknown, 0));
    let seen: u64 = stall.blocked.iter().map(|(_, ns)| ns).sum();
    let unseen = stall.duration_ns.saturating_sub(seen + stall.on_cpu_ns + stall.run_queue_ns);
    match blocked_ns.max(stall.on_cpu_ns).max(stall.run_queue_ns).max(unseen) {
        ns if ns == stall.on_cpu_ns => (Main::OnCpu, ns),
        ns if ns == stall.run_queue_ns => (Main::RunQueue, ns),
        ns if ns == unseen => (Main::Unexplained, ns),
        ns => {
            let mut places: BTreeMap<(&str, Option<StackId>), u64> = BTreeMap::new();
            for block in stall.blocks.iter().filter(|block| block.cause == cause) {
                *places.entry((&block.syscall, block.stack)).or_default() += block.blocked_ns;
            }
            let place = places.into_iter().max_by_key(|(_, ns)| *ns);
            let (syscall, stack) = place.map_or(("", None), |(place, _)| place);
            (Main::Blocked(cause, syscall, functions(names, stack)), ns)
        }
    }
}

fn stalls(blocking: &Blocking, names: &Names) -> Vec<StallGroup> {
    let mut groups: BTreeMap<(ThreadKey, Main<'_>), Vec<(&Stall, u64)>> = BTreeMap::new();
    for stall in &blocking.stalls {
        let (main, ns) = main_reason(stall, names);
        groups.entry((stall.thread, main)).or_default().push((stall, ns));
    }
    let mut found = Vec::new();
    for ((_, main), stalls) in groups {
        match main {
            Main::OnCpu => {
                for (function, stack, stalls) in by_function(&stalls, names) {
                    found.push(StallGroup { stack, ..group(&stalls, Reason::OnCpu(function)) });
                }
            }
            Main::RunQueue => found.push(group(&stalls, Reason::RunQueue)),
            Main::Unexplained => found.push(group(&stalls, Reason::Unexplained)),
            Main::Blocked(cause, syscall, _) => {
                let blocks = stalls.iter().flat_map(|(stall, _)| &stall.blocks);
                let same = blocks.filter(|block| block.cause == cause && block.syscall == syscall);
                let longest = same.max_by_key(|block| block.blocked_ns);
                found.push(StallGroup {
                    stack: longest.and_then(|block| block.stack),
                    object: longest.and_then(|block| block.object.clone()),
                    ..group(&stalls, Reason::Blocked { cause, syscall: syscall.to_owned() })
                });
            }
        }
    }
    found
}

/// Stalls, each with the time its main reason took.
fn group(stalls: &[(&Stall, u64)], reason: Reason) -> StallGroup {
    let each = || stalls.iter().map(|(stall, _)| *stall);
    StallGroup {
        thread: each().next().map(|stall| stall.thread).unwrap_or_default(),
        severity: each().map(|stall| stall.severity).max().unwrap_or(Severity::Warning),
        count: stalls.len() as u64,
        total_ns: each().map(|stall| stall.duration_ns).sum(),
        longest_ns: each().map(|stall| stall.duration_ns).max().unwrap_or(0),
        reason,
        reason_ns: stalls.iter().map(|(_, ns)| ns).sum(),
        explained_ns: each().map(|stall| (stall.explained * stall.duration_ns as f64) as u64).sum(),
        stack: None,
        object: None,
    }
}

/// Stalls with the time that counts of each.
type Stalls<'a> = Vec<(&'a Stall, u64)>;

/// Splits stalls of one loop that were busy by the function they were busy in: the innermost one that most of a
/// stall's samples have in common, with all its callers. Returns it, and the most common stack through it.
fn by_function<'a>(
    stalls: &[(&'a Stall, u64)],
    names: &'a Names,
) -> Vec<(Option<Function>, Option<StackId>, Stalls<'a>)> {
    let weight = |stall: &Stall| stall.samples.iter().map(|(_, n)| n).sum::<u64>();
    let mut groups: BTreeMap<Vec<&str>, Stalls<'a>> = BTreeMap::new();
    let (clear, few): (Stalls<'a>, Stalls<'a>) =
        stalls.iter().partition(|(stall, _)| weight(stall) >= MIN_SAMPLES);
    for of in clear {
        groups.entry(common_path(names, &of.0.samples)).or_default().push(of);
    }
    // A stall can look more special than it is: it belongs to the bigger group that its path goes through.
    let paths: Vec<Vec<&str>> = groups.keys().rev().cloned().collect();
    for path in paths {
        let count = groups.get(&path).map_or(0, Vec::len);
        let whole = prefixes(&path).find(|prefix| groups.get(*prefix).is_some_and(|of| of.len() >= count));
        if let Some(whole) = whole.map(<[&str]>::to_vec)
            && let Some(stalls) = groups.remove(&path)
        {
            groups.entry(whole).or_default().extend(stalls);
        }
    }
    let mut rest: Stalls<'a> = Vec::new();
    for of in few {
        let path = common_path(names, &of.0.samples);
        let known =
            std::iter::once(path.as_slice()).chain(prefixes(&path)).find(|path| groups.contains_key(*path));
        match known.filter(|path| !path.is_empty()).map(<[&str]>::to_vec) {
            Some(known) => groups.entry(known).or_default().push(of),
            None if path.is_empty() => groups.entry(path).or_default().push(of),
            None => rest.push(of),
        }
    }
    if !rest.is_empty() {
        let samples: Vec<_> = rest.iter().flat_map(|(stall, _)| stall.samples.iter().copied()).collect();
        groups.entry(common_path(names, &samples)).or_default().extend(rest);
    }

    let describe = |(common, stalls): (Vec<&str>, Stalls<'a>)| {
        let mut stacks: FxHashMap<StackId, u64> = FxHashMap::default();
        for &(stack, n) in stalls.iter().flat_map(|(stall, _)| &stall.samples) {
            *stacks.entry(stack).or_default() += n;
        }
        let through = stacks.into_iter().filter(|&(stack, _)| {
            let path = path(names, stack);
            path.len() >= common.len()
                && path.iter().zip(&common).all(|(function, name)| function.name == **name)
        });
        let stack = through.max_by_key(|&(stack, n)| (n, std::cmp::Reverse(stack))).map(|(stack, _)| stack);
        let function =
            stack.and_then(|stack| path(names, stack).get(common.len().checked_sub(1)?).copied().cloned());
        (function, stack, stalls)
    };
    groups.into_iter().map(describe).collect()
}

/// Proper, non-empty prefixes, longest first.
fn prefixes<'s, 'a>(path: &'s [&'a str]) -> impl Iterator<Item = &'s [&'a str]> {
    (1..path.len()).rev().map(|len| &path[..len])
}

/// Names of a stack's functions, as [`path`].
fn functions(names: &Names, stack: Option<StackId>) -> Vec<&str> {
    let path = stack.map_or_else(Vec::new, |stack| path(names, stack));
    path.into_iter().map(|function| function.name.as_str()).collect()
}

/// Functions of a stack, outermost first: the user's, or the kernel's if there are no others.
fn path(names: &Names, stack: StackId) -> Vec<&Function> {
    let functions = |kernel: bool| {
        let all = names.functions(names.stack(stack)).rev();
        all.filter(move |(_, frame, _)| names.is_kernel(frame) == kernel).map(|(function, ..)| function)
    };
    let user: Vec<_> = functions(false).collect();
    if user.is_empty() { functions(true).collect() } else { user }
}

/// The path, outermost first, that at least two thirds of the samples go along.
fn common_path<'a>(names: &'a Names, samples: &[(StackId, u64)]) -> Vec<&'a str> {
    let mut inside: Vec<_> = samples.iter().map(|&(stack, n)| (path(names, stack), n)).collect();
    let total: u64 = samples.iter().map(|(_, n)| n).sum();
    let mut common = Vec::new();
    loop {
        let depth = common.len();
        let mut next: BTreeMap<&str, u64> = BTreeMap::new();
        for (path, n) in &inside {
            if let Some(function) = path.get(depth) {
                *next.entry(&function.name).or_default() += n;
            }
        }
        match next.into_iter().max_by_key(|&(_, n)| n) {
            Some((name, n)) if n * 3 >= total * 2 => {
                inside.retain(|(path, _)| path.get(depth).is_some_and(|function| function.name == name));
                common.push(name);
            }
            _ => return common,
        }
    }
}

fn waits(blocking: &Blocking, names: &Names) -> Vec<WaitGroup> {
    // Starved threads have a reason in common: too few CPUs for what runs on them.
    let mut groups: BTreeMap<(u32, bool, Option<Main<'_>>), Vec<&LongWait>> = BTreeMap::new();
    for wait in &blocking.long_waits {
        let block = &wait.block;
        let key = match &wait.kind {
            LongWaitKind::Starved { .. } => (wait.thread.pid, false, None),
            LongWaitKind::Blocked { uninterruptible } => {
                let stack = block.stack.map_or_else(Vec::new, |stack| path(names, stack));
                let functions = stack.into_iter().map(|function| function.name.as_str()).collect();
                (
                    wait.thread.pid,
                    *uninterruptible,
                    Some(Main::Blocked(block.cause, &block.syscall, functions)),
                )
            }
        };
        groups.entry(key).or_default().push(wait);
    }
    groups.into_values().filter_map(|waits| wait_group(&waits)).collect()
}

fn wait_group(waits: &[&LongWait]) -> Option<WaitGroup> {
    let longest = waits.iter().max_by_key(|wait| wait.length_ns())?;
    let mut seen = FxHashSet::default();
    let threads = std::iter::once(longest).chain(waits).map(|wait| wait.thread);
    let mut instead: BTreeMap<&str, u64> = BTreeMap::new();
    for wait in waits {
        if let LongWaitKind::Starved { instead: threads } = &wait.kind {
            threads.iter().for_each(|thread| *instead.entry(&thread.name).or_default() += thread.ns);
        }
    }
    let mut instead: Vec<_> = instead.into_iter().map(|(name, ns)| (name.to_owned(), ns)).collect();
    instead.sort_by_key(|(_, ns)| std::cmp::Reverse(*ns));
    Some(WaitGroup {
        threads: threads.filter(|thread| seen.insert(*thread)).collect(),
        severity: waits.iter().map(|wait| wait.severity).max()?,
        count: waits.len() as u64,
        total_ns: waits.iter().map(|wait| wait.length_ns()).sum(),
        longest: (*longest).clone(),
        instead,
        ongoing: waits.iter().filter(|wait| wait.ongoing).count() as u64,
    })
}

/// A pool of connections that are all used by the same functions is one finding.
fn chatty(found: &[Chatty], names: &Names) -> Vec<ChattyGroup> {
    let mut groups: BTreeMap<_, ChattyGroup> = BTreeMap::new();
    for of in found {
        let place = functions(names, of.stack);
        // Where the place is not known it may be another.
        let object = if place.is_empty() { of.object.as_str() } else { "" };
        let group = groups
            .entry((of.thread.pid, of.round_trips, place, object))
            .or_insert_with(|| ChattyGroup { most: of.clone(), objects: 0, count: 0, total_ns: 0 });
        if of.total_ns > group.most.total_ns {
            group.most = of.clone();
        }
        group.objects += 1;
        group.count += of.count;
        group.total_ns += of.total_ns;
    }
    groups.into_values().collect()
}

#[cfg(test)]
pub(crate) mod fixtures {
    //! A run with something wrong, made by hand.

    use std::rc::Rc;

    use profiler_common::sched::Cause;

    use super::*;
    use crate::{
        detect::{
            convoy::{Holder, Waiter},
            long_wait::{Wait, fixtures::wait},
            stall::fixtures::{LOOP, block, turn},
        },
        model::{
            distribution::Summary,
            kind::OFF_CPU,
            memory::{Footprint, Growth, LimitKind, fixtures},
            report::fixtures::{frames, profile},
            threshold::Thresholds,
            wait::{Block, EventLoop, RunQueue, ThreadTime},
        },
        probe::sched::totals::{Now, Waits},
    };

    /// A process with a leak of objects of 100 bytes, a cache, and growth that neither explains.
    pub fn run_that_grows() -> Run {
        let mut leak = fixtures::site(0, (0..=120).map(|s| f64::from(s) * 102_400.0));
        leak.ages_ns.add(40 * S, 61_440);
        leak.ages_ns.add(100 * S, 61_440);
        let cache = fixtures::site(1, (0..=120).map(|s| f64::from(s.min(30)) * 1e6));
        let growth = |s: u64| Growth { time_ns: s * S, anon_bytes: s * 5_000_000, ..Growth::default() };
        let kind = LimitKind::Cgroup("/system.slice/app.service".into());
        let limit = Limit { kind, limit_bytes: 1 << 30, used_bytes: 600 << 20 };
        let app = Footprint {
            pid: 7,
            process: "app".into(),
            growth: (0..=120).map(growth).collect(),
            limit: Some(limit),
            ..Footprint::default()
        };
        let mut run = crate::model::report::fixtures::run(&[]);
        run.memory = Some(Memory { processes: vec![app], sites: vec![cache, leak], ..Memory::default() });
        name_stacks(&mut run, &["main;serve;session;new;malloc", "main;serve;cache;malloc"]);
        run
    }

    const MS: u64 = 1_000_000;
    const S: u64 = 1000 * MS;
    const POOL: ThreadKey = ThreadKey { pid: 7, tid: 9 };

    /// Adds stacks to a run's names, ids counting from zero.
    pub fn name_stacks(run: &mut Run, stacks: &[&str]) {
        let names = Rc::make_mut(&mut run.cpu.names);
        for (id, stack) in stacks.iter().enumerate() {
            let frames = frames(names, stack);
            names.stacks.insert(StackId(id as u32), frames);
        }
        if let Some(off_cpu) = &mut run.off_cpu {
            off_cpu.names = Rc::clone(&run.cpu.names);
        }
    }

    /// Stacks of [`run_with_findings`].
    const STACKS: [&str; 6] = [
        "main;uv_run;onRequest;busyLoop;now",
        "main;uv_run;onRequest;busyLoop",
        "main;uv_run;onRequest;readFileSync;read;k:io_schedule",
        "clone;work;fetch;recv;k:schedule",
        "clone;work;lock;k:futex_wait",
        "clone;owner;write;k:pipe_write",
    ];

    /// A process with an event loop that stalls and a pool whose threads wait.
    pub fn run_with_findings() -> Run {
        let mut waits = Waits::new(Thresholds::default());
        waits.add_loop(LOOP);
        for i in 0..60 {
            let start = i * S;
            for at in 0..20 {
                waits.cpu_sample(LOOP, start + at * 10 * MS, StackId((at % 2 == 0).into()), at % 10 == 9);
            }
            waits.turn(&turn(start, start + (200 + i % 4) * MS, 199 * MS, MS));
        }
        for i in 0..3 {
            let start = (60 + i) * S;
            let block = Block { stack: Some(StackId(2)), ..block(start + MS, 30 * MS, 0, WaitCause::Disk) };
            waits.wait(Wait { thread: LOOP, block, ..wait(LOOP.tid, 0, 0, 0, WaitCause::Disk) });
            waits.turn(&turn(start, start + 32 * MS, 2 * MS, 0));
        }
        for (i, tid) in [9, 9, 10].into_iter().enumerate() {
            let mut slow = wait(tid, i as u64 * 4 * S, 2 * S + i as u64 * S / 10, 0, WaitCause::Network);
            slow.block.syscall = "recvfrom".into();
            slow.block.object = Some("10.0.0.1:5432".into());
            slow.block.stack = Some(StackId(3));
            waits.wait(slow);
        }
        waits.wait(wait(9, 30 * S, 0, 300 * MS, WaitCause::Unknown));
        let waiters = [10, 11, 12, 13].map(|tid| Waiter {
            thread: ThreadKey { pid: 7, tid },
            futex: 0x7f00_1000,
            stack: Some(StackId(4)),
        });
        for _ in 0..2 {
            waits.look(&waiters, |_, _| Some(Holder { thread: POOL, stack: Some(StackId(5)) }));
        }
        let thread = |thread, name: &str, on_cpu_ns, blocked: &[(WaitCause, u64)]| ThreadTime {
            thread,
            process: "app".into(),
            name: name.into(),
            wall_ns: 100 * S,
            on_cpu_ns,
            run_queue_ns: S,
            blocked: blocked.to_vec(),
            ..ThreadTime::default()
        };
        let summary = |count, max_ns| Summary {
            count,
            sum_ns: 12 * S,
            p50_ns: 12_000,
            p90_ns: 90_000,
            p99_ns: 1_200_000,
            p999_ns: 9 * MS,
            max_ns,
        };
        let now = Now {
            threads: vec![
                thread(LOOP, "node", 12 * S, &[(WaitCause::Disk, 2 * S), (WaitCause::Poll, 85 * S)]),
                thread(POOL, "pool", 8 * S, &[(WaitCause::Network, 41 * S), (WaitCause::Park, 50 * S)]),
            ],
            run_queue: vec![RunQueue { pid: 7, process: "app".into(), waits: summary(45_678, 300 * MS) }],
            loops: vec![EventLoop {
                thread: LOOP,
                process: "app".into(),
                name: "node".into(),
                wait: "epoll_wait".into(),
                turns: summary(1234, 203 * MS),
                ..EventLoop::default()
            }],
            ..Now::default()
        };
        let mut run = crate::model::report::fixtures::run(&[("main;uv_run;onRequest;busyLoop", 1200)]);
        run.blocking = Some(waits.blocking(now));
        let mut off_cpu = profile(&[]);
        off_cpu.kind = OFF_CPU;
        run.off_cpu = Some(off_cpu);
        name_stacks(&mut run, &STACKS);
        let names = Rc::clone(&run.cpu.names);
        if let Some(off_cpu) = &mut run.off_cpu {
            let weights = [(2, 2 * S, Cause::Disk), (3, 41 * S, Cause::Network), (4, 50 * S, Cause::Park)];
            for (stack, weight, cause) in weights {
                let mut like = run.cpu.stacks[0].clone();
                like.frames = names.stack(StackId(stack)).to_vec();
                (like.weight, like.cause) = (weight, Some(WaitCause::from_number(cause as u32)));
                off_cpu.stacks.push(like);
                off_cpu.total += weight;
            }
        }
        run
    }
}

#[cfg(test)]
mod tests {
    use super::{
        fixtures::{name_stacks, run_that_grows, run_with_findings},
        *,
    };

    #[test]
    fn what_has_one_reason_is_one_finding() {
        let found = findings(&run_with_findings());
        assert_eq!(found.len(), 5, "{found:#?}");
        let Finding::Stalls(busy) = &found[0] else { panic!("{:?}", found[0]) };
        assert_eq!((busy.severity, busy.count, busy.longest_ns), (Severity::Critical, 60, 203_000_000));
        assert!(matches!(&busy.reason, Reason::OnCpu(Some(function)) if function.name == "busyLoop"));
        let Finding::Waits(slow) = &found[1] else { panic!("{:?}", found[1]) };
        assert_eq!((slow.count, slow.threads.len()), (3, 2));
        let Finding::Waits(starved) = &found[2] else { panic!("{:?}", found[2]) };
        assert_eq!(starved.instead, [("hog".to_owned(), 300_000_000)]);
        let Finding::Stalls(blocked) = &found[3] else { panic!("{:?}", found[3]) };
        assert_eq!((blocked.count, blocked.object.as_deref()), (3, Some("/data/big")));
        assert!(matches!(&blocked.reason, Reason::Blocked { cause: WaitCause::Disk, .. }));
        assert!(matches!(found[4], Finding::Convoy(_)));
    }

    /// Stalls made of samples: stack and number.
    fn grouped(stacks: &[&str], stalls: &[&[(u32, u64)]]) -> Vec<(String, usize)> {
        let mut run = crate::model::report::fixtures::run(&[]);
        name_stacks(&mut run, stacks);
        let stall = |samples: &&[(u32, u64)]| Stall {
            severity: Severity::Warning,
            thread: ThreadKey::default(),
            start_ns: 0,
            duration_ns: 20,
            on_cpu_ns: 20,
            run_queue_ns: 0,
            samples: samples.iter().map(|&(stack, n)| (StackId(stack), n)).collect(),
            blocked: Vec::new(),
            blocks: Vec::new(),
            explained: 1.0,
        };
        let stalls: Vec<_> = stalls.iter().map(stall).collect();
        let stalls: Vec<_> = stalls.iter().map(|stall| (stall, 20)).collect();
        let groups = by_function(&stalls, run.names()).into_iter();
        groups
            .map(|(function, _, of)| (function.map_or_else(String::new, |function| function.name), of.len()))
            .collect()
    }

    #[test]
    fn what_grows_is_found_fastest_first() {
        let mut run = run_that_grows();
        let found = findings(&run);
        let [Finding::Growing(growing), Finding::Leak(leak)] = &found[..] else { panic!("{found:#?}") };
        assert_eq!(
            (growing.severity, growing.held_bytes, growing.watched),
            (Severity::Critical, 600_000_000, true)
        );
        assert_eq!((leak.stack, leak.certainty), (StackId(0), Certainty::Certain));
        let rate = leak.trend.bytes_per_s;
        assert!((rate.per_time - 102_400.0).abs() < 1.0, "{rate:?}");
        let reaches = leak.reaches.as_ref().unwrap();
        assert_eq!(reaches.after_ns / 1_000_000_000, (424 << 20) / 5_000_000, "by all growth, not its own");
        // Two places in the same functions are one.
        let memory = run.memory.as_mut().unwrap();
        let mut again = memory.sites[1].clone();
        again.stack = StackId(2);
        memory.sites.push(again);
        name_stacks(
            &mut run,
            &["main;serve;session;new;malloc", "main;serve;cache;malloc", "main;serve;session;new;malloc"],
        );
        let found = findings(&run);
        let [_, Finding::Leak(both)] = &found[..] else { panic!("{found:#?}") };
        assert!((both.trend.bytes_per_s.per_time - 204_800.0).abs() < 1.0, "{both:?}");
        run.memory.as_mut().unwrap().sites.pop();
        // Where sites explain it, the process is not told of again.
        let memory = run.memory.as_mut().unwrap();
        let explains = |s: u64| crate::model::memory::Growth {
            time_ns: s * 1_000_000_000,
            anon_bytes: s * 110_000,
            ..Default::default()
        };
        memory.processes[0].growth = (0..=120).map(explains).collect();
        assert!(matches!(&findings(&run)[..], [Finding::Leak(leak)] if leak.severity == Severity::Warning));
    }

    #[test]
    fn connections_used_by_the_same_functions_are_one_finding() {
        let mut run = crate::output::calls::fixtures::run_with_calls();
        let calls = run.calls.as_mut().unwrap();
        let of = calls.chatty[0].clone();
        let other = Chatty { object: "tcp b".into(), total_ns: of.total_ns + 1, ..of.clone() };
        let unknown = ["c", "d"].map(|name| Chatty { object: name.into(), stack: None, ..of.clone() });
        calls.chatty.push(other.clone());
        calls.chatty.extend(unknown);
        let found = findings(&run);
        let [Finding::Chatty(both), Finding::Chatty(_), Finding::Chatty(_), Finding::Storm(storm)] =
            &found[..]
        else {
            panic!("{found:#?}")
        };
        assert_eq!((&both.most, both.objects, both.count), (&other, 2, 2 * of.count));
        assert_eq!((both.total_ns, storm.errno.as_str()), (of.total_ns + other.total_ns, "EMFILE"));
    }

    #[test]
    fn two_handlers_of_one_loop_are_two_reasons() {
        let stacks = ["main;loop;a;x", "main;loop;a;y", "main;loop;b"];
        let stalls: [&[_]; 5] = [&[(0, 5), (1, 5)], &[(0, 4), (1, 5)], &[(2, 9)], &[(0, 9)], &[(2, 1)]];
        assert_eq!(
            grouped(&stacks, &stalls),
            [("a".into(), 3), ("b".into(), 2)],
            "x alone is a all the same"
        );
    }

    #[test]
    fn many_short_blocks_are_a_reason_too() {
        let run = run_with_findings();
        let mut stall = run.blocking.as_ref().unwrap().stalls[60].clone();
        (stall.duration_ns, stall.on_cpu_ns) = (1000, 100);
        stall.blocked = vec![(WaitCause::Disk, 800), (WaitCause::Lock, 50)];
        stall.blocks[0].blocked_ns = 1; // the others are not listed
        let (main, ns) = main_reason(&stall, run.names());
        assert!(matches!(main, Main::Blocked(WaitCause::Disk, "read", _)), "{main:?}");
        assert_eq!(ns, 800);
        stall.blocked.clear();
        assert_eq!(main_reason(&stall, run.names()), (Main::Unexplained, 900));
    }

    #[test]
    fn stalls_with_few_samples_are_looked_at_together() {
        let stacks = ["main;loop;a;x", "main;loop;a;y", "main;loop;a;k:z"];
        assert_eq!(grouped(&stacks, &[&[(0, 1)], &[(1, 1)], &[(2, 2)]]), [("a".into(), 3)]);
        assert_eq!(grouped(&stacks, &[&[], &[(1, 1)]]), [(String::new(), 1), ("y".into(), 1)]);
    }
}
