//! The metrics, and how each is read.

use std::collections::BTreeMap;

use super::{
    metric::{Metric, Unit, Values, View},
    requests,
};
use crate::model::{
    cause::WaitCause,
    memory::Footprint,
    stack::StackEnd,
    wait::{EventLoop, RunQueue, ThreadTime},
};

/// All metrics of a target.
pub static METRICS: &[Metric] = &[
    Metric::counter("cpu_seconds", Unit::Seconds, "", "CPU time of the target's threads", |view, values| {
        values.one(threads(view).map(|all| seconds(all.map(|thread| thread.on_cpu_ns))))
    }),
    Metric::gauge(
        "cpu_quota_ratio",
        Unit::Ratio,
        "",
        "CPU time of the target, as a part of what it may use: its cgroup's quota, or all CPUs",
        |view, values| {
            let used = threads(view).map(|all| seconds(all.map(|thread| thread.on_cpu_ns)));
            values.one(used.map(|used| used / window_s(view) / view.outside.cpus));
        },
    ),
    Metric::counter(
        "wall_seconds",
        Unit::Seconds,
        "state",
        "Time of the target's threads, by what they did: on a CPU, waiting for one, or blocked",
        wall,
    ),
    Metric::gauge(
        "run_queue_ratio",
        Unit::Ratio,
        "",
        "Time that threads waited for a CPU, as a part of the time in which they wanted one",
        |view, values| {
            let Some(all) = threads(view) else { return };
            let (waited, ran) = all
                .fold((0, 0), |(waited, ran), thread| (waited + thread.run_queue_ns, ran + thread.on_cpu_ns));
            // A target that hardly runs says nothing of the CPUs.
            let wanted = (waited + ran) as f64 / 1e9;
            values.one((wanted > 0.05 * window_s(view)).then(|| waited as f64 / 1e9 / wanted));
        },
    ),
    Metric::gauge(
        "run_queue_wait_seconds",
        Unit::Seconds,
        "statistic",
        "How long threads waited for a CPU once they could run: of the process that waited longest",
        |view, values| {
            let worst = queues(view).max_by_key(|queue| queue.waits.p99_ns);
            quantiles(values, worst.map(|queue| &queue.waits));
        },
    ),
    Metric::gauge(
        "event_loop_delay_seconds",
        Unit::Seconds,
        "statistic",
        "Time from the return of an event loop's wait to its next wait: of the loop that took longest",
        |view, values| {
            let worst = loops(view).max_by_key(|of| of.iterations.p99_ns);
            quantiles(values, worst.map(|of| &of.iterations));
        },
    ),
    Metric::gauge(
        "event_loop_utilization_ratio",
        Unit::Ratio,
        "",
        "Part of the time that an event loop was not in its wait: of the busiest loop",
        |view, values| {
            let busy = loops(view).map(|of| of.iterations.sum_ns as f64 / 1e9 / window_s(view));
            values.one(busy.max_by(f64::total_cmp).map(|busy| busy.min(1.0)));
        },
    ),
    Metric::counter(
        "event_loop_stalls",
        Unit::Count,
        "severity",
        "Iterations of event loops that took longer than the thresholds of stalls",
        |view, values| {
            if view.run.blocking.is_some() {
                values.push("warning", loops(view).map(|of| of.warnings).sum::<u64>() as f64);
                values.push("critical", loops(view).map(|of| of.criticals).sum::<u64>() as f64);
            }
        },
    ),
    Metric::gauge(
        "memory_held_bytes",
        Unit::Bytes,
        "",
        "Anonymous and shared memory and swap of the target: what can be swapped or freed but not dropped",
        |view, values| {
            let held = footprints(view).filter_map(|process| process.growth.last());
            let held: Vec<u64> = held.map(|last| last.held_bytes()).collect();
            values.one((!held.is_empty()).then(|| held.iter().sum::<u64>() as f64));
        },
    ),
    Metric::gauge(
        "memory_limit_ratio",
        Unit::Ratio,
        "",
        "Memory that counts towards the limit that a process of the target is nearest to, as a part of the limit",
        |view, values| {
            let limits = footprints(view).filter_map(|process| process.limit.as_ref());
            let ratios = limits.map(|limit| limit.used_bytes as f64 / limit.limit_bytes.max(1) as f64);
            values.one(ratios.max_by(f64::total_cmp));
        },
    ),
    Metric::gauge(
        "memory_growth_bytes_per_second",
        Unit::BytesPerSecond,
        "",
        "How fast held memory keeps growing, an estimate (Theil-Sen) over many windows; 0 if growth is not persistent, absent while too little is known",
        |view, values| values.one(view.memory_trend.map(|trend| trend.bytes_per_s)),
    ),
    Metric::gauge(
        "memory_exhaustion_seconds",
        Unit::Seconds,
        "",
        "Estimated time until growing memory reaches its limit; absent if growth is not persistent",
        |view, values| values.one(view.memory_trend.and_then(|trend| trend.exhaustion_s)),
    ),
    Metric::gauge(
        "descriptors_open",
        Unit::Count,
        "",
        "Open file descriptors of the process that is nearest to its limit",
        |view, values| values.one(view.outside.descriptors.map(|(open, _)| open as f64)),
    ),
    Metric::gauge(
        "descriptors_limit_ratio",
        Unit::Ratio,
        "",
        "Open file descriptors of the process that is nearest to its limit, as a part of the limit",
        |view, values| {
            let ratio = view.outside.descriptors.filter(|(_, most)| *most > 0);
            values.one(ratio.map(|(open, most)| open as f64 / most as f64));
        },
    ),
    Metric::gauge(
        "threads",
        Unit::Count,
        "",
        "Threads of the target that lived in the window",
        |view, values| values.one(threads(view).map(|all| all.count() as f64)),
    ),
    Metric::gauge("processes", Unit::Count, "", "Processes of the target", |view, values| {
        values.one(Some(view.pids.len() as f64))
    }),
    Metric::counter(
        "restarts",
        Unit::Count,
        "",
        "Times that the target was started again, as far as windows have seen it",
        |view, values| values.push("", f64::from(u8::from(view.restarted))),
    ),
    Metric::counter(
        "syscalls",
        Unit::Count,
        "outcome",
        "System calls of the target, if they are counted",
        |view, values| {
            if let Some((calls, failed)) = calls(view) {
                values.push("ok", (calls - failed) as f64);
                values.push("error", failed as f64);
            }
        },
    ),
    Metric::gauge(
        "syscall_error_ratio",
        Unit::Ratio,
        "",
        "System calls in error storms, as a part of all calls; errors that programs expect are none",
        |view, values| {
            let Some(of) = &view.run.calls else { return };
            let failed: u64 = of.storms.iter().map(|storm| storm.failed).sum();
            values.one(
                calls(view).filter(|(calls, _)| *calls > 0).map(|(calls, _)| failed as f64 / calls as f64),
            );
        },
    ),
    Metric::counter(
        "syscall_seconds",
        Unit::Seconds,
        "class",
        "Time in system calls that waited, by what they waited for, if they are counted; idle waits included",
        |view, values| {
            let Some(of) = &view.run.calls else { return };
            let mut sums: BTreeMap<&'static str, u64> = BTreeMap::new();
            for waits in &of.waits {
                *sums.entry(waits.kind.id()).or_default() += waits.lengths.sum_ns;
            }
            sums.into_iter().for_each(|(class, ns)| values.push(class, ns as f64 / 1e9));
        },
    ),
    Metric::counter(
        "requests",
        Unit::Count,
        "outcome",
        "Requests that the target was sent, if they are watched: answered, answered with an error that it is to blame for (an \
         estimate but for HTTP/1), answered with what cannot be read, or given up by who asked; without HTTP/2",
        requests::answered,
    ),
    Metric::gauge(
        "requests_per_second",
        Unit::Count,
        "",
        "Requests that the target answers a second, if they are watched; without HTTP/2",
        requests::per_second,
    ),
    Metric::gauge(
        "request_error_ratio",
        Unit::Ratio,
        "",
        "Answers that are errors of the target (HTTP 500 and above), as a part of those that can be read; absent below 20",
        requests::error_ratio,
    ),
    Metric::gauge(
        "response_seconds",
        Unit::Seconds,
        "statistic",
        "Time from a request's first byte to the first byte of its answer, of the port that answers latest; if nothing was \
         answered, how long the first request has waited at least",
        requests::response,
    ),
    Metric::gauge(
        "request_queue_seconds",
        Unit::Seconds,
        "statistic",
        "Time for which requests lay at the socket unread, a lower bound, of the port where they lay longest",
        requests::queueing,
    ),
    Metric::gauge(
        "requests_in_flight",
        Unit::Count,
        "statistic",
        "Requests that awaited their answer at the window's end, and most at once at one port",
        requests::in_flight,
    ),
    Metric::counter(
        "peer_requests",
        Unit::Count,
        "outcome",
        "Requests that the target asked its peers, if they are watched, by how they ended, as of requests",
        requests::asked,
    ),
    Metric::counter(
        "peer_wait_seconds",
        Unit::Seconds,
        "protocol",
        "Time in which at least one answer of a peer was awaited, summed over peers, if requests are watched",
        requests::awaited,
    ),
    Metric::gauge(
        "peer_wait_ratio",
        Unit::Ratio,
        "",
        "Part of the time in which an answer was awaited of the peer that is awaited most",
        requests::awaited_ratio,
    ),
    Metric::gauge(
        "peer_response_seconds",
        Unit::Seconds,
        "statistic",
        "Time to the answers of the peer that is awaited most",
        requests::peer_response,
    ),
    Metric::counter(
        "peer_connection_failures",
        Unit::Count,
        "phase",
        "Connections to peers that failed, before or after they were made",
        requests::connection_failures,
    ),
    Metric::gauge(
        "own_budget_ratio",
        Unit::Ratio,
        "resource",
        "What the profiler costs itself, as a part of what it may: CPU time (max_overhead), memory (max_memory)",
        |view, values| {
            if let Some(budget) = view.own.and_then(|own| own.budget.as_ref()) {
                values.push("cpu", budget.cpu_ratio());
                values.push("memory", budget.memory_ratio());
            }
        },
    ),
    Metric::gauge(
        "own_failed_windows",
        Unit::Count,
        "",
        "Of the profiler's last 10 windows those that failed: nothing is known of any target in them",
        |view, values| values.one(view.own.map(|own| own.failed.0 as f64)),
    ),
    Metric::counter(
        "function_cpu_seconds",
        Unit::Seconds,
        "function",
        "CPU time with a function on the stack, an estimate from samples: of the functions that the configuration names",
        function_times,
    ),
    Metric::gauge(
        "stack_quality_ratio",
        Unit::Ratio,
        "kind",
        "Part of the CPU samples whose stack is complete, and whose innermost function has a name",
        |view, values| {
            let stacks = || view.run.cpu.stacks.iter();
            let all: u64 = stacks().map(|stack| stack.weight).sum();
            // A handful of samples says nothing of the rest.
            if all < 20 {
                return;
            }
            let complete = stacks().filter(|stack| stack.end == StackEnd::Complete);
            let part = |weight: u64| weight as f64 / all as f64;
            values.push("complete", part(complete.map(|stack| stack.weight).sum()));
            let names = view.run.names();
            let named = stacks().filter(|stack| {
                let first = names.functions(&stack.frames).next();
                first.is_some_and(|(function, ..)| !function.name.starts_with('['))
            });
            values.push("named", part(named.map(|stack| stack.weight).sum()));
        },
    ),
    Metric::gauge(
        "pressure_ratio",
        Unit::Ratio,
        "resource",
        "Part of the last 10 s in which something in the target's cgroup waited for a resource (PSI)",
        |view, values| {
            view.outside.pressure.iter().for_each(|(resource, part)| values.push(*resource, *part));
        },
    ),
];

fn quantiles(values: &mut Values, of: Option<&crate::model::distribution::Summary>) {
    let Some(of) = of.filter(|of| of.count > 0) else { return };
    for (label, ns) in [("p50", of.p50_ns), ("p90", of.p90_ns), ("p99", of.p99_ns), ("max", of.max_ns)] {
        values.push(label, ns as f64 / 1e9);
    }
}

fn seconds(ns: impl Iterator<Item = u64>) -> f64 {
    ns.sum::<u64>() as f64 / 1e9
}

fn window_s(view: &View<'_>) -> f64 {
    view.run.cpu.accounts.duration_ns as f64 / 1e9
}

/// The target's threads, if the scheduler was watched.
fn threads<'a>(view: &View<'a>) -> Option<impl Iterator<Item = &'a ThreadTime>> {
    Some(view.run.blocking.as_ref()?.threads.iter())
}

fn queues<'a>(view: &View<'a>) -> impl Iterator<Item = &'a RunQueue> {
    view.run.blocking.iter().flat_map(|blocking| &blocking.run_queue)
}

fn loops<'a>(view: &View<'a>) -> impl Iterator<Item = &'a EventLoop> {
    view.run.blocking.iter().flat_map(|blocking| &blocking.loops)
}

fn footprints<'a>(view: &View<'a>) -> impl Iterator<Item = &'a Footprint> {
    view.run.memory.iter().flat_map(|memory| &memory.processes)
}

/// System calls that returned, and those that failed.
fn calls(view: &View<'_>) -> Option<(u64, u64)> {
    let all = view.run.calls.as_ref()?.calls.iter();
    Some(all.fold((0, 0), |(calls, failed), call| (calls + call.lengths.count, failed + call.failed())))
}

fn wall(view: &View<'_>, values: &mut Values) {
    let Some(all) = threads(view) else { return };
    let mut sum = ThreadTime::default();
    all.for_each(|thread| sum.add(thread));
    values.push("cpu", sum.on_cpu_ns as f64 / 1e9);
    values.push("run_queue", sum.run_queue_ns as f64 / 1e9);
    for cause in WaitCause::ALL {
        let ns = sum.blocked.iter().find(|(of, _)| *of == cause).map_or(0, |(_, ns)| *ns);
        values.push(cause.id(), ns as f64 / 1e9);
    }
}

/// Each function counts once for a stack, however often it is on it.
fn function_times(view: &View<'_>, values: &mut Values) {
    let cpu = &view.run.cpu;
    let names = view.run.names();
    for wanted in view.functions {
        let with = cpu
            .stacks
            .iter()
            .filter(|stack| names.functions(&stack.frames).any(|(function, ..)| function.name == *wanted));
        let weight: u64 = with.map(|stack| stack.weight).sum();
        values.push(wanted.clone(), cpu.estimated_ns(weight) as f64 / 1e9);
    }
}
