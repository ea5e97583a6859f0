//! JSON for programs: everything the profile holds. The schema is described in docs/json.md; `version` grows by
//! one with every change that could break a reader, never for an added key.
//!
//! Longer than 600 lines because the whole schema stands in one place, in the order of the document.

use std::{collections::BTreeMap, io::Write};

use anyhow::Result;
use serde::Serialize;

use crate::{
    detect::{
        flow,
        groups::{self, Group},
        hotspot::{self, Hotspot},
        leak,
        paths::{self, Path},
    },
    model::{
        cause::WaitCause,
        comparison::Baseline,
        distribution::Summary,
        finding::{self, Evidence, Finding, ProcessName, Verdict},
        loss::Loss,
        memory::{self, Growth, Heap, Limit, LivePoint, Watching},
        report::{Meta, Names, ProbeReport, Profile, ProfileStack, Run, UnwindReport},
        request::{Exchanges, RouteStacks, SlowRequest, Tls, WorkStack},
        stack::{StackId, ThreadKey},
        vitals::Vitals,
        wait::{self, LongWaitKind, RanInstead, RunQueue},
    },
    output::{diff, options::RenderOptions},
};

/// Identifies the schema.
pub const SCHEMA: &str = "profiler/profile";
/// Its version.
pub const VERSION: u32 = 2;

#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    version: u32,
    meta: &'a Meta,
    kind: Kind,
    duration_ns: u64,
    targets_ended: bool,
    first_sample_monotonic_ns: Option<u64>,
    last_sample_monotonic_ns: Option<u64>,
    samples_taken: u64,
    samples: u64,
    samples_lost: u64,
    losses: Vec<LossEntry>,
    user_stacks: BTreeMap<&'static str, u64>,
    unwind: &'a UnwindReport,
    cost: Cost<'a>,
    hotspots: Vec<Hotspot>,
    paths: Vec<Path<'a>>,
    threads: Vec<Thread>,
    modules: Vec<Module<'a>>,
    frames: Vec<Frame<'a>>,
    stacks: Vec<Stack<'a>>,
    offcpu: Option<OffCpu<'a>>,
    blocking: Option<Blocking<'a>>,
    syscalls: Option<Calls<'a>>,
    requests: Option<Requests<'a>>,
    flow: Vec<flow::Flow>,
    memory: Option<Memory<'a>>,
    verdict: Option<VerdictEntry<'a>>,
    findings: Vec<FindingEntry<'a>>,
    groups: Vec<Group>,
    vitals: Option<&'a Vitals>,
    baseline: Option<serde_json::Value>,
}

#[derive(Serialize)]
struct VerdictEntry<'a> {
    bottleneck: &'static str,
    sentence: &'a str,
    share_of_wall: f64,
    certainty: &'a str,
    advice: &'a str,
    more: &'a str,
    finding: Option<String>,
    blind: &'a [String],
    doubts: &'a [String],
}

#[derive(Serialize)]
struct FindingEntry<'a> {
    id: String,
    rule: &'static str,
    severity: &'static str,
    bottleneck: &'static str,
    process: &'a ProcessName,
    subject: &'a str,
    title: &'a str,
    advice: &'a str,
    cost: finding::Cost,
    evidence: Vec<EvidenceEntry<'a>>,
    details: &'a BTreeMap<&'static str, serde_json::Value>,
}

#[derive(Serialize)]
struct EvidenceEntry<'a> {
    label: &'static str,
    stack: Vec<&'a str>,
}

#[derive(Serialize)]
struct Calls<'a> {
    total_ns: u64,
    stacks: Vec<OffCpuStack<'a>>,
    calls: Vec<CallCount<'a>>,
    waits: Vec<KindWaits<'a>>,
    objects: &'a [crate::model::syscall::ObjectIo],
    objects_unlisted: u64,
    slow: Vec<SlowCall<'a>>,
    slow_by_part: SlowByPart<'a>,
    chatty: Vec<Chatty<'a>>,
    error_storms: Vec<ErrorStorm<'a>>,
    watched_ns: u64,
    windows: u64,
}

#[derive(Serialize)]
struct CallCount<'a> {
    pid: u32,
    tid: Option<u32>,
    process: &'a str,
    thread_name: &'a str,
    syscall: &'a str,
    calls: Summary,
    on_cpu_ns: u64,
    blocked_ns: u64,
    run_queue_ns: u64,
    failed: u64,
    errors: BTreeMap<&'a str, u64>,
    unfinished: u64,
}

#[derive(Serialize)]
struct KindWaits<'a> {
    pid: u32,
    process: &'a str,
    kind: &'static str,
    /// Empty where there is none.
    peer: &'a str,
    waits: Summary,
    stack: Vec<&'a str>,
}

#[derive(Serialize)]
struct SlowCall<'a> {
    pid: u32,
    tid: u32,
    process: &'a str,
    syscall: &'a str,
    kind: &'static str,
    start_ns: u64,
    duration_ns: u64,
    blocked_ns: u64,
    run_queue_ns: u64,
    result: &'a str,
    arguments: &'a str,
    stack: Vec<&'a str>,
}

#[derive(Serialize)]
struct SlowByPart<'a> {
    start_ns: u64,
    length_ns: u64,
    parts: Vec<Vec<SlowCall<'a>>>,
}

#[derive(Serialize)]
struct Chatty<'a> {
    severity: &'static str,
    pid: u32,
    tid: u32,
    process: &'a str,
    object: &'a str,
    round_trips: bool,
    count: u64,
    per_second: f64,
    total_ns: u64,
    median_bytes: u64,
    requests: u64,
    stack: Vec<&'a str>,
}

#[derive(Serialize)]
struct ErrorStorm<'a> {
    severity: &'static str,
    #[serde(flatten)]
    storm: &'a crate::model::syscall::ErrorStorm,
}

#[derive(Serialize)]
struct Memory<'a> {
    processes: Vec<Footprint<'a>>,
    watching: &'a Watching,
    sites: Vec<Site<'a>>,
    faults: Vec<Faults<'a>>,
}

#[derive(Serialize)]
struct Footprint<'a> {
    pid: u32,
    process: &'a str,
    growth: &'a [Growth],
    heap: &'a [Heap],
    limit: Option<&'a Limit>,
    managed_heap: Option<&'a memory::ManagedHeap>,
}

#[derive(Serialize)]
struct Site<'a> {
    pid: u32,
    shape: &'static str,
    live_bytes: f64,
    live_bytes_err: f64,
    live_count: f64,
    allocated_bytes: u64,
    allocated_count: u64,
    freed_bytes: u64,
    freed_count: u64,
    estimated: bool,
    ages_ns: &'a [u64],
    lifetimes_ns: &'a [u64],
    sizes_bytes: &'a [u64],
    points: &'a [LivePoint],
    frames: &'a [usize],
}

#[derive(Serialize)]
struct Faults<'a> {
    pid: u32,
    faults: u64,
    frames: &'a [usize],
}

#[derive(Serialize)]
struct OffCpu<'a> {
    total_ns: u64,
    stacks: Vec<OffCpuStack<'a>>,
}

#[derive(Serialize)]
struct OffCpuStack<'a> {
    pid: u32,
    tid: u32,
    ns: u64,
    cause: Option<&'static str>,
    end: &'static str,
    frames: &'a [usize],
}

#[derive(Serialize)]
struct Blocking<'a> {
    thresholds: Thresholds,
    threads: Vec<ThreadTime<'a>>,
    run_queue: &'a [RunQueue],
    loops: Vec<EventLoop<'a>>,
    stalls: Vec<Stall<'a>>,
    stalls_unlisted: u64,
    long_waits: Vec<LongWait<'a>>,
    long_waits_unlisted: u64,
    convoys: Vec<Convoy<'a>>,
    deadlocks: Vec<DeadlockEntry<'a>>,
}

#[derive(Serialize)]
struct Thresholds {
    stall_warning_ns: u64,
    stall_critical_ns: u64,
    starvation_ns: u64,
    /// Causes that are never too long are left out.
    block_ns: BTreeMap<&'static str, u64>,
}

#[derive(Serialize)]
struct ThreadTime<'a> {
    pid: u32,
    tid: u32,
    process: &'a str,
    name: &'a str,
    wall_ns: u64,
    on_cpu_ns: u64,
    on_cpu_kernel_ns: u64,
    cpu_samples: u64,
    run_queue_ns: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_queue: Option<Summary>,
    blocked_ns: BTreeMap<&'static str, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    others: Option<u64>,
}

#[derive(Serialize)]
struct EventLoop<'a> {
    pid: u32,
    tid: u32,
    process: &'a str,
    name: &'a str,
    wait: &'a str,
    iterations: Summary,
    warnings: u64,
    criticals: u64,
}

#[derive(Serialize)]
struct Stall<'a> {
    severity: &'static str,
    pid: u32,
    tid: u32,
    start_ns: u64,
    duration_ns: u64,
    on_cpu_ns: u64,
    run_queue_ns: u64,
    blocked_ns: BTreeMap<&'static str, u64>,
    explained: f64,
    samples: Vec<Samples<'a>>,
    blocks: Vec<Block<'a>>,
    instead: &'a [RanInstead],
}

#[derive(Serialize)]
struct Samples<'a> {
    samples: u64,
    stack: Vec<&'a str>,
}

#[derive(Serialize)]
struct Block<'a> {
    start_ns: u64,
    blocked_ns: u64,
    run_queue_ns: u64,
    cause: &'static str,
    syscall: &'a str,
    object: Option<&'a str>,
    stack: Vec<&'a str>,
}

/// Requests, with names for what has stacks.
#[derive(Serialize)]
struct Requests<'a> {
    peers: &'a [Exchanges],
    slow: Vec<Slow<'a>>,
    stacks: Vec<OfRoute<'a>>,
    watched_ns: u64,
    windows: Option<u64>,
    tls: Option<&'a Tls>,
}

#[derive(Serialize)]
struct Slow<'a> {
    #[serde(flatten)]
    of: &'a SlowRequest,
    stacks: Vec<Spent<'a>>,
}

#[derive(Serialize)]
struct OfRoute<'a> {
    pid: u32,
    peer: &'a str,
    operation: &'a str,
    stacks: Vec<Spent<'a>>,
}

#[derive(Serialize)]
struct Spent<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    samples: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked_ns: Option<u64>,
    cause: Option<&'static str>,
    stack: Vec<&'a str>,
}

#[derive(Serialize)]
struct LongWait<'a> {
    severity: &'static str,
    pid: u32,
    tid: u32,
    kind: &'static str,
    uninterruptible: bool,
    instead: &'a [RanInstead],
    ongoing: bool,
    block: Block<'a>,
}

#[derive(Serialize)]
struct Convoy<'a> {
    severity: &'static str,
    pid: u32,
    process: &'a str,
    futex: u64,
    waiters: u64,
    seen: u64,
    holder: Option<ThreadKey>,
    holder_stack: Vec<&'a str>,
    waiter_stack: Vec<&'a str>,
}

#[derive(Serialize)]
struct DeadlockEntry<'a> {
    pid: u32,
    process: &'a str,
    threads: Vec<DeadlockedEntry<'a>>,
    behind: u64,
}

#[derive(Serialize)]
struct DeadlockedEntry<'a> {
    tid: u32,
    futex: u64,
    stack: Vec<&'a str>,
}

#[derive(Serialize)]
struct Kind {
    name: &'static str,
    sample_type: &'static str,
    unit: &'static str,
}

#[derive(Serialize)]
struct LossEntry {
    reason: &'static str,
    loses_sample: bool,
    count: u64,
}

#[derive(Serialize)]
struct Cost<'a> {
    probes: &'a [ProbeReport],
    agent_cpu_ns: u64,
    agent_setup_cpu_ns: u64,
    agent_peak_rss_bytes: u64,
    stolen_ns: u64,
}

#[derive(Serialize)]
struct Thread {
    pid: u32,
    tid: u32,
    process: String,
    name: String,
    samples: u64,
}

#[derive(Serialize)]
struct Module<'a> {
    path: &'a str,
    build_id: String,
}

#[derive(Serialize)]
struct Frame<'a> {
    module: usize,
    address: u64,
    functions: &'a [crate::symbolize::Function],
}

#[derive(Serialize)]
struct Stack<'a> {
    pid: u32,
    tid: u32,
    samples: u64,
    end: &'static str,
    frames: &'a [usize],
}

/// Writes the run as one JSON document.
pub fn write(run: &Run, _options: &RenderOptions, out: &mut dyn Write) -> Result<()> {
    let profile = &run.cpu;
    let accounts = &profile.accounts;
    let document = Document {
        schema: SCHEMA,
        version: VERSION,
        meta: &profile.meta,
        kind: Kind {
            name: profile.kind.name,
            sample_type: profile.kind.sample_type,
            unit: profile.kind.unit.id(),
        },
        duration_ns: accounts.duration_ns,
        targets_ended: accounts.targets_ended,
        first_sample_monotonic_ns: profile.span_ns.map(|(first, _)| first),
        last_sample_monotonic_ns: profile.span_ns.map(|(_, last)| last),
        samples_taken: accounts.samples_taken,
        samples: profile.total,
        samples_lost: accounts.losses.lost(),
        losses: Loss::ALL
            .into_iter()
            .map(|loss| LossEntry {
                reason: loss.id(),
                loses_sample: loss.loses_sample(),
                count: accounts.losses.get(loss),
            })
            .collect(),
        user_stacks: profile.ends().map(|(end, weight)| (end.id(), weight)).collect(),
        unwind: &accounts.unwind,
        cost: Cost {
            probes: &accounts.probes,
            agent_cpu_ns: accounts.agent_cpu_ns,
            agent_setup_cpu_ns: accounts.agent_setup_cpu_ns,
            agent_peak_rss_bytes: accounts.agent_peak_rss_bytes,
            stolen_ns: accounts.stolen_ns,
        },
        hotspots: hotspot::hotspots(profile),
        paths: paths::paths(profile, paths::CUT),
        threads: hotspot::by_thread(profile)
            .into_iter()
            .map(|thread| Thread {
                pid: thread.thread.pid,
                tid: thread.thread.tid,
                process: thread.names.0,
                name: thread.names.1,
                samples: thread.samples,
            })
            .collect(),
        modules: profile
            .names
            .modules
            .iter()
            .map(|module| Module { path: &module.path, build_id: hex(&module.build_id) })
            .collect(),
        frames: profile
            .names
            .frames
            .iter()
            .map(|frame| Frame { module: frame.module, address: frame.address, functions: &frame.functions })
            .collect(),
        stacks: profile
            .stacks
            .iter()
            .map(|stack| Stack {
                pid: stack.thread.pid,
                tid: stack.thread.tid,
                samples: stack.weight,
                end: stack.end.id(),
                frames: &stack.frames,
            })
            .collect(),
        offcpu: run.off_cpu.as_ref().map(off_cpu),
        blocking: run.blocking.as_ref().map(|of| blocking(of, run.names())),
        syscalls: run.calls.as_ref().map(|of| calls(of, run)),
        requests: run.requests.as_ref().map(|of| requests(of, run.names())),
        flow: flow::flows(run),
        memory: run.memory.as_ref().map(|of| memory(of, run)),
        verdict: run.verdict.as_ref().map(|of| verdict(of, run)),
        findings: run.findings.iter().map(|of| finding(of, run.names())).collect(),
        groups: groups::groups(profile),
        vitals: run.vitals.as_ref(),
        baseline: run.baseline.as_ref().map(baseline),
    };
    serde_json::to_writer(&mut *out, &document)?;
    writeln!(out)?;
    Ok(())
}

fn baseline(of: &Baseline) -> serde_json::Value {
    let mut value = diff::to_json(&of.comparison);
    value["before"]["file"] = of.file.as_str().into();
    value
}

fn off_cpu(profile: &Profile) -> OffCpu<'_> {
    OffCpu { total_ns: profile.total, stacks: weighed(profile) }
}

fn weighed<'a>(profile: &'a Profile) -> Vec<OffCpuStack<'a>> {
    let stack = |stack: &'a ProfileStack| OffCpuStack {
        pid: stack.thread.pid,
        tid: stack.thread.tid,
        ns: stack.weight,
        cause: stack.cause.map(WaitCause::id),
        end: stack.end.id(),
        frames: &stack.frames,
    };
    profile.stacks.iter().map(stack).collect()
}

fn calls<'a>(of: &'a crate::model::syscall::Calls, run: &'a Run) -> Calls<'a> {
    let stack = |id| names_of(run.names(), id);
    let count = |of: &'a crate::model::syscall::CallCount| CallCount {
        pid: of.thread.pid,
        tid: (of.thread.tid != 0).then_some(of.thread.tid),
        process: &of.process,
        thread_name: &of.thread_name,
        syscall: &of.syscall,
        calls: of.lengths,
        on_cpu_ns: of.on_cpu_ns(),
        blocked_ns: of.blocked_ns,
        run_queue_ns: of.run_queue_ns,
        failed: of.failed(),
        errors: of.errors.iter().map(|(name, n)| (name.as_str(), *n)).collect(),
        unfinished: of.unfinished,
    };
    let waits = |of: &'a crate::model::syscall::KindWaits| KindWaits {
        pid: of.pid,
        process: &of.process,
        kind: of.kind.id(),
        peer: &of.peer,
        waits: of.lengths,
        stack: stack(of.stack),
    };
    let slow = |of: &'a crate::model::syscall::SlowCall| SlowCall {
        pid: of.thread.pid,
        tid: of.thread.tid,
        process: &of.process,
        syscall: &of.syscall,
        kind: of.kind.id(),
        start_ns: of.start_ns,
        duration_ns: of.duration_ns,
        blocked_ns: of.blocked_ns,
        run_queue_ns: of.run_queue_ns,
        result: &of.result,
        arguments: &of.arguments,
        stack: stack(of.stack),
    };
    let storm =
        |storm: &'a crate::model::syscall::ErrorStorm| ErrorStorm { severity: storm.severity().id(), storm };
    let chatty = |of: &'a crate::model::syscall::Chatty| Chatty {
        severity: of.severity().id(),
        pid: of.thread.pid,
        tid: of.thread.tid,
        process: &of.process,
        object: &of.object,
        round_trips: of.round_trips,
        count: of.count,
        per_second: of.per_second(),
        total_ns: of.total_ns,
        median_bytes: of.median_bytes,
        requests: of.requests,
        stack: stack(of.stack),
    };
    Calls {
        total_ns: run.in_calls.as_ref().map_or(0, |profile| profile.total),
        stacks: run.in_calls.as_ref().map_or_else(Vec::new, weighed),
        calls: of.calls.iter().map(count).collect(),
        waits: of.waits.iter().map(waits).collect(),
        objects: &of.objects,
        objects_unlisted: of.objects_unlisted,
        slow: of.slow.iter().map(slow).collect(),
        slow_by_part: SlowByPart {
            start_ns: of.slow_by_part.start_ns,
            length_ns: of.slow_by_part.length_ns,
            parts: of.slow_by_part.parts.iter().map(|part| part.iter().map(slow).collect()).collect(),
        },
        chatty: of.chatty.iter().map(chatty).collect(),
        error_storms: of.storms.iter().map(storm).collect(),
        watched_ns: of.watched_ns,
        windows: of.windows,
    }
}

fn memory<'a>(of: &'a memory::Memory, run: &'a Run) -> Memory<'a> {
    let names = run.names();
    let process = |of: &'a memory::Footprint| Footprint {
        pid: of.pid,
        process: &of.process,
        growth: of.growth.points(),
        heap: of.heap.points(),
        limit: of.limit.as_ref(),
        managed_heap: of.managed.as_ref(),
    };
    let site = |(of, trend): (&'a memory::Site, leak::SiteTrend)| {
        let LivePoint { live_bytes, live_count, live_bytes_err, .. } =
            of.points.last().copied().unwrap_or_default();
        Site {
            pid: of.pid,
            shape: trend.trend.shape.id(),
            live_bytes,
            live_bytes_err,
            live_count,
            allocated_bytes: of.allocated_bytes,
            allocated_count: of.allocated_count,
            freed_bytes: of.freed_bytes,
            freed_count: of.freed_count,
            estimated: of.estimated,
            ages_ns: of.ages_ns.counts(),
            lifetimes_ns: of.lifetimes_ns.counts(),
            sizes_bytes: of.sizes_bytes.counts(),
            points: of.points.points(),
            frames: names.stack(of.stack),
        }
    };
    let mut sites: Vec<Site<'_>> =
        of.sites.iter().zip(leak::judge_sites(&of.sites, &of.processes)).map(site).collect();
    sites.sort_by(|a, b| b.live_bytes.total_cmp(&a.live_bytes).then_with(|| a.frames.cmp(b.frames)));
    Memory {
        processes: of.processes.iter().map(process).collect(),
        watching: &of.watching,
        sites,
        faults: of
            .faults
            .iter()
            .map(|&(pid, stack, faults)| Faults { pid, faults, frames: names.stack(stack) })
            .collect(),
    }
}

fn blocking<'a>(of: &'a wait::Blocking, names: &'a Names) -> Blocking<'a> {
    let stack = |id: Option<StackId>| names_of(names, id);
    let causes = |of: &[(WaitCause, u64)]| of.iter().map(|&(cause, ns)| (cause.id(), ns)).collect();
    let block = |of: &'a wait::Block| Block {
        start_ns: of.start_ns,
        blocked_ns: of.blocked_ns,
        run_queue_ns: of.run_queue_ns,
        cause: of.cause.id(),
        syscall: &of.syscall,
        object: of.object.as_deref(),
        stack: stack(of.stack),
    };
    let thread = |of: &'a wait::ThreadTime| ThreadTime {
        pid: of.thread.pid,
        tid: of.thread.tid,
        process: &of.process,
        name: &of.name,
        wall_ns: of.wall_ns,
        on_cpu_ns: of.on_cpu_ns,
        on_cpu_kernel_ns: of.on_cpu_kernel_ns,
        cpu_samples: of.cpu_samples,
        run_queue_ns: of.run_queue_ns,
        run_queue: of.run_queue,
        blocked_ns: causes(&of.blocked),
        others: Some(of.others).filter(|others| *others > 0),
    };
    let event_loop = |of: &'a wait::EventLoop| EventLoop {
        pid: of.thread.pid,
        tid: of.thread.tid,
        process: &of.process,
        name: &of.name,
        wait: &of.wait,
        iterations: of.iterations,
        warnings: of.warnings,
        criticals: of.criticals,
    };
    let stall = |of: &'a wait::Stall| Stall {
        severity: of.severity.id(),
        pid: of.thread.pid,
        tid: of.thread.tid,
        start_ns: of.start_ns,
        duration_ns: of.duration_ns,
        on_cpu_ns: of.on_cpu_ns,
        run_queue_ns: of.run_queue_ns,
        blocked_ns: causes(&of.blocked),
        explained: of.explained,
        samples: of
            .samples
            .iter()
            .map(|&(id, samples)| Samples { samples, stack: stack(Some(id)) })
            .collect(),
        blocks: of.blocks.iter().map(block).collect(),
        instead: &of.instead,
    };
    let long_wait = |of: &'a wait::LongWait| {
        let (kind, uninterruptible, instead) = match &of.kind {
            LongWaitKind::Blocked { uninterruptible } => ("blocked", *uninterruptible, &[][..]),
            LongWaitKind::Starved { instead } => ("starved", false, &instead[..]),
        };
        LongWait {
            severity: of.severity.id(),
            pid: of.thread.pid,
            tid: of.thread.tid,
            kind,
            uninterruptible,
            instead,
            ongoing: of.ongoing,
            block: block(&of.block),
        }
    };
    let convoy = |of: &'a wait::Convoy| Convoy {
        severity: of.severity.id(),
        pid: of.pid,
        process: &of.process,
        futex: of.futex,
        waiters: of.waiters,
        seen: of.seen,
        holder: of.holder,
        holder_stack: stack(of.holder_stack),
        waiter_stack: stack(of.waiter_stack),
    };
    let deadlock = |of: &'a wait::Deadlock| DeadlockEntry {
        pid: of.pid,
        process: &of.process,
        threads: of
            .threads
            .iter()
            .map(|of| DeadlockedEntry { tid: of.thread.tid, futex: of.futex, stack: stack(of.stack) })
            .collect(),
        behind: of.behind,
    };
    let limits = &of.thresholds;
    let block_ns = WaitCause::ALL.into_iter().map(|cause| (cause.id(), limits.block_ns[cause as usize]));
    Blocking {
        thresholds: Thresholds {
            stall_warning_ns: limits.stall_warning_ns,
            stall_critical_ns: limits.stall_critical_ns,
            starvation_ns: limits.starvation_ns,
            block_ns: block_ns.filter(|&(_, ns)| ns != u64::MAX).collect(),
        },
        threads: of.threads.iter().map(thread).collect(),
        run_queue: &of.run_queue,
        loops: of.loops.iter().map(event_loop).collect(),
        stalls: of.stalls.iter().map(stall).collect(),
        stalls_unlisted: of.stalls_unlisted,
        long_waits: of.long_waits.iter().map(long_wait).collect(),
        long_waits_unlisted: of.long_waits_unlisted,
        convoys: of.convoys.iter().map(convoy).collect(),
        deadlocks: of.deadlocks.iter().map(deadlock).collect(),
    }
}

fn verdict<'a>(of: &'a Verdict, run: &Run) -> VerdictEntry<'a> {
    VerdictEntry {
        bottleneck: of.bottleneck.id(),
        sentence: &of.sentence,
        share_of_wall: of.share_of_wall,
        certainty: &of.certainty,
        advice: &of.advice,
        more: of.more,
        finding: of.finding.and_then(|at| run.findings.get(at)).map(Finding::id),
        blind: &of.blind,
        doubts: &of.doubts,
    }
}

fn finding<'a>(of: &'a Finding, names: &'a Names) -> FindingEntry<'a> {
    let stack = |evidence: &'a Evidence| EvidenceEntry {
        label: evidence.label,
        stack: names.functions(&evidence.frames).map(|(function, ..)| function.name.as_str()).collect(),
    };
    FindingEntry {
        id: of.id(),
        rule: of.rule,
        severity: of.severity.id(),
        bottleneck: of.bottleneck.id(),
        process: &of.process,
        subject: &of.subject,
        title: &of.title,
        advice: &of.advice,
        cost: of.cost,
        evidence: of.evidence.iter().map(stack).collect(),
        details: &of.details,
    }
}

fn requests<'a>(of: &'a crate::model::request::Requests, names: &'a Names) -> Requests<'a> {
    let spent = |of: &WorkStack| Spent {
        samples: of.cause.is_none().then_some(of.weight),
        blocked_ns: of.cause.map(|_| of.weight),
        cause: of.cause.map(WaitCause::id),
        stack: names_of(names, Some(of.stack)),
    };
    let all = |stacks: &Vec<WorkStack>| stacks.iter().map(spent).collect();
    let of_slow = of.slow_stacks.iter().map(all).chain(std::iter::repeat_with(Vec::new));
    let of_route = |of: &'a RouteStacks| OfRoute {
        pid: of.pid,
        peer: &of.peer,
        operation: &of.operation,
        stacks: all(&of.stacks),
    };
    Requests {
        peers: &of.peers,
        slow: of.slow.iter().zip(of_slow).map(|(of, stacks)| Slow { of, stacks }).collect(),
        stacks: of.route_stacks.iter().map(of_route).collect(),
        watched_ns: of.watched_ns,
        windows: of.windows,
        tls: of.tls.as_ref(),
    }
}

/// Names of a stack's functions, innermost first.
fn names_of(names: &Names, stack: Option<StackId>) -> Vec<&str> {
    let frames = stack.map_or(&[][..], |id| names.stack(id));
    names.functions(frames).map(|(function, ..)| function.name.as_str()).collect()
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::{
            fixtures::{run_that_grows, run_with_findings},
            judge,
            rule::Overrides,
        },
        model::report::fixtures,
    };

    fn render(run: &Run) -> serde_json::Value {
        let mut text = Vec::new();
        write(run, &RenderOptions::default(), &mut text).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    #[test]
    fn the_document_adds_up() {
        let mut run = fixtures::run(&[("main;a", 3), ("main;k:read", 2)]);
        run.cpu.accounts.losses.add(Loss::RingBufferFull, 4);
        run.cpu.accounts.samples_taken += 4;
        let value = render(&run);
        assert_eq!((value["schema"].as_str(), value["version"].as_u64()), (Some(SCHEMA), Some(2)));
        let sum = |list: &str, key: &str| -> u64 {
            value[list].as_array().unwrap().iter().map(|entry| entry[key].as_u64().unwrap()).sum()
        };
        assert_eq!(sum("stacks", "samples"), 5);
        assert_eq!(sum("threads", "samples"), 5);
        assert_eq!(value["user_stacks"]["complete"].as_u64(), Some(5));
        assert_eq!(sum("hotspots", "self_samples"), 5);
        assert_eq!(value["samples_taken"].as_u64(), Some(9));
        assert_eq!(value["samples_lost"].as_u64(), Some(4));
        assert_eq!(value["modules"][1]["build_id"], "abcd");
        let whole = serde_json::json!({"depth": 0, "functions": ["main"], "samples": 5});
        assert_eq!(value["paths"][0], whole, "the heaviest path is that of all samples");
        assert_eq!(value["paths"][1]["functions"], serde_json::json!(["a"]));
    }

    #[test]
    fn what_waits_is_told_in_full() {
        let run = run_with_findings();
        let value = render(&run);
        assert!(value["offcpu"]["stacks"].as_array().unwrap().iter().all(|stack| stack["cause"].is_string()));
        assert_eq!(value["offcpu"]["total_ns"].as_u64(), run.off_cpu.map(|profile| profile.total));
        let mut blocking = value["blocking"].clone();
        blocking["stalls"]
            .as_array_mut()
            .unwrap()
            .retain(|stall| stall["start_ns"].as_u64() >= Some(59_000_000_000));
        blocking["stalls"].as_array_mut().unwrap().truncate(2);
        insta::assert_snapshot!(serde_json::to_string_pretty(&blocking).unwrap());
    }

    #[test]
    fn what_grows_is_told_in_full() {
        let mut run = run_that_grows();
        judge(&mut run, &Overrides::default());
        insta::assert_snapshot!(serde_json::to_string_pretty(&render(&run)["findings"]).unwrap());
    }

    #[test]
    fn without_the_scheduler_there_is_nothing_to_tell() {
        let value = render(&fixtures::run(&[("main", 1)]));
        let keys = ["offcpu", "blocking", "syscalls", "memory"];
        assert!(keys.iter().all(|key| value[key].is_null()));
    }

    #[test]
    fn system_calls_are_told_in_full() {
        let value = render(&crate::output::calls::fixtures::run_with_calls());
        insta::assert_snapshot!(serde_json::to_string_pretty(&value["syscalls"]).unwrap());
    }
}
