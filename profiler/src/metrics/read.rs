//! The metrics, and how each is read.

use super::metric::{Kind, Metric, Unit, Values, View};
use crate::model::{
    cause::WaitCause,
    memory::Footprint,
    wait::{EventLoop, RunQueue, ThreadTime},
};

/// All metrics of a target.
pub static METRICS: &[Metric] = &[
    Metric {
        name: "cpu_seconds",
        unit: Unit::Seconds,
        kind: Kind::Counter,
        help: "CPU time of the target's threads",
        label: "",
        read: |view, values| {
            one(values, threads(view).map(|all| seconds(all.map(|thread| thread.on_cpu_ns))))
        },
    },
    Metric {
        name: "cpu_quota_ratio",
        unit: Unit::Ratio,
        kind: Kind::Gauge,
        help: "CPU time of the target, as a part of what it may use: its cgroup's quota, or all CPUs",
        label: "",
        read: |view, values| {
            let used = threads(view).map(|all| seconds(all.map(|thread| thread.on_cpu_ns)));
            one(values, used.map(|used| used / window_s(view) / view.cpus));
        },
    },
    Metric {
        name: "wall_seconds",
        unit: Unit::Seconds,
        kind: Kind::Counter,
        help: "Time of the target's threads, by what they did: on a CPU, waiting for one, or blocked",
        label: "state",
        read: wall,
    },
    Metric {
        name: "run_queue_ratio",
        unit: Unit::Ratio,
        kind: Kind::Gauge,
        help: "Time that threads waited for a CPU, as a part of the time in which they wanted one",
        label: "",
        read: |view, values| {
            let Some(all) = threads(view) else { return };
            let (waited, ran) = all
                .fold((0, 0), |(waited, ran), thread| (waited + thread.run_queue_ns, ran + thread.on_cpu_ns));
            // A target that hardly runs says nothing of the CPUs.
            let wanted = (waited + ran) as f64 / 1e9;
            one(values, (wanted > 0.05 * window_s(view)).then(|| waited as f64 / 1e9 / wanted));
        },
    },
    Metric {
        name: "run_queue_wait_seconds",
        unit: Unit::Seconds,
        kind: Kind::Gauge,
        help: "How long threads waited for a CPU once they could run: of the process that waited longest",
        label: "quantile",
        read: |view, values| {
            let worst = queues(view).max_by_key(|queue| queue.waits.p99_ns);
            quantiles(values, worst.map(|queue| &queue.waits));
        },
    },
    Metric {
        name: "event_loop_delay_seconds",
        unit: Unit::Seconds,
        kind: Kind::Gauge,
        help: "Time from the return of an event loop's wait to its next wait: of the loop that took longest",
        label: "quantile",
        read: |view, values| {
            let worst = loops(view).max_by_key(|of| of.iterations.p99_ns);
            quantiles(values, worst.map(|of| &of.iterations));
        },
    },
    Metric {
        name: "event_loop_stalls",
        unit: Unit::Count,
        kind: Kind::Counter,
        help: "Iterations of event loops that took longer than the thresholds of stalls",
        label: "severity",
        read: |view, values| {
            if view.run.blocking.is_some() {
                values.push(("warning", loops(view).map(|of| of.warnings).sum::<u64>() as f64));
                values.push(("critical", loops(view).map(|of| of.criticals).sum::<u64>() as f64));
            }
        },
    },
    Metric {
        name: "memory_held_bytes",
        unit: Unit::Bytes,
        kind: Kind::Gauge,
        help: "Anonymous and shared memory and swap of the target: what can be swapped or freed but not dropped",
        label: "",
        read: |view, values| {
            let held = footprints(view).filter_map(|process| process.growth.last());
            let held: Vec<u64> = held.map(|last| last.held_bytes()).collect();
            one(values, (!held.is_empty()).then(|| held.iter().sum::<u64>() as f64));
        },
    },
    Metric {
        name: "memory_limit_ratio",
        unit: Unit::Ratio,
        kind: Kind::Gauge,
        help: "Memory that counts towards the limit that a process of the target is nearest to, as a part of the limit",
        label: "",
        read: |view, values| {
            let limits = footprints(view).filter_map(|process| process.limit.as_ref());
            let ratios = limits.map(|limit| limit.used_bytes as f64 / limit.limit_bytes.max(1) as f64);
            one(values, ratios.max_by(f64::total_cmp));
        },
    },
    Metric {
        name: "memory_growth_bytes_per_second",
        unit: Unit::BytesPerSecond,
        kind: Kind::Gauge,
        help: "How fast held memory keeps growing, an estimate (Theil-Sen) over many windows; absent if growth is not persistent",
        label: "",
        read: |view, values| one(values, view.memory_trend.map(|trend| trend.bytes_per_s)),
    },
    Metric {
        name: "memory_exhaustion_seconds",
        unit: Unit::Seconds,
        kind: Kind::Gauge,
        help: "Estimated time until growing memory reaches its limit; absent if growth is not persistent",
        label: "",
        read: |view, values| one(values, view.memory_trend.and_then(|trend| trend.exhaustion_s)),
    },
    Metric {
        name: "descriptors_open",
        unit: Unit::Count,
        kind: Kind::Gauge,
        help: "Open file descriptors of the process that is nearest to its limit",
        label: "",
        read: |view, values| one(values, view.descriptors.map(|(open, _)| open as f64)),
    },
    Metric {
        name: "descriptors_limit_ratio",
        unit: Unit::Ratio,
        kind: Kind::Gauge,
        help: "Open file descriptors of the process that is nearest to its limit, as a part of the limit",
        label: "",
        read: |view, values| {
            let ratio = view.descriptors.filter(|(_, most)| *most > 0);
            one(values, ratio.map(|(open, most)| open as f64 / most as f64));
        },
    },
    Metric {
        name: "threads",
        unit: Unit::Count,
        kind: Kind::Gauge,
        help: "Threads of the target that lived in the window",
        label: "",
        read: |view, values| one(values, threads(view).map(|all| all.count() as f64)),
    },
    Metric {
        name: "processes",
        unit: Unit::Count,
        kind: Kind::Gauge,
        help: "Processes of the target",
        label: "",
        read: |view, values| one(values, Some(view.pids.len() as f64)),
    },
    Metric {
        name: "syscalls",
        unit: Unit::Count,
        kind: Kind::Counter,
        help: "System calls of the target, if they are counted",
        label: "outcome",
        read: |view, values| {
            if let Some((calls, failed)) = calls(view) {
                values.push(("ok", (calls - failed) as f64));
                values.push(("error", failed as f64));
            }
        },
    },
    Metric {
        name: "syscall_error_ratio",
        unit: Unit::Ratio,
        kind: Kind::Gauge,
        help: "System calls in error storms, as a part of all calls; errors that programs expect are none",
        label: "",
        read: |view, values| {
            let Some(of) = &view.run.calls else { return };
            let stormy = of.storms.iter().filter(|storm| view.pids.contains(&storm.pid));
            let failed: u64 = stormy.map(|storm| storm.failed).sum();
            one(
                values,
                calls(view).filter(|(calls, _)| *calls > 0).map(|(calls, _)| failed as f64 / calls as f64),
            );
        },
    },
];

fn one(values: &mut Values, value: Option<f64>) {
    values.extend(value.map(|value| ("", value)));
}

fn quantiles(values: &mut Values, of: Option<&crate::model::distribution::Summary>) {
    let Some(of) = of.filter(|of| of.count > 0) else { return };
    for (label, ns) in [("p50", of.p50_ns), ("p90", of.p90_ns), ("p99", of.p99_ns), ("max", of.max_ns)] {
        values.push((label, ns as f64 / 1e9));
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
    let pids = view.pids;
    let blocking = view.run.blocking.as_ref()?;
    Some(blocking.threads.iter().filter(move |thread| pids.contains(&thread.thread.pid)))
}

fn queues<'a>(view: &View<'a>) -> impl Iterator<Item = &'a RunQueue> {
    let pids = view.pids;
    let all = view.run.blocking.iter().flat_map(|blocking| &blocking.run_queue);
    all.filter(move |queue| pids.contains(&queue.pid))
}

fn loops<'a>(view: &View<'a>) -> impl Iterator<Item = &'a EventLoop> {
    let pids = view.pids;
    let all = view.run.blocking.iter().flat_map(|blocking| &blocking.loops);
    all.filter(move |of| pids.contains(&of.thread.pid))
}

fn footprints<'a>(view: &View<'a>) -> impl Iterator<Item = &'a Footprint> {
    let pids = view.pids;
    let all = view.run.memory.iter().flat_map(|memory| &memory.processes);
    all.filter(move |process| pids.contains(&process.pid))
}

/// System calls that returned, and those that failed.
fn calls(view: &View<'_>) -> Option<(u64, u64)> {
    let all = view.run.calls.as_ref()?.calls.iter().filter(|call| view.pids.contains(&call.thread.pid));
    Some(all.fold((0, 0), |(calls, failed), call| (calls + call.lengths.count, failed + call.failed())))
}

fn wall(view: &View<'_>, values: &mut Values) {
    let Some(all) = threads(view) else { return };
    let mut sum = ThreadTime::default();
    all.for_each(|thread| sum.add(thread));
    values.push(("cpu", sum.on_cpu_ns as f64 / 1e9));
    values.push(("run_queue", sum.run_queue_ns as f64 / 1e9));
    for cause in WaitCause::ALL {
        let ns = sum.blocked.iter().find(|(of, _)| *of == cause).map_or(0, |(_, ns)| *ns);
        values.push((cause.id(), ns as f64 / 1e9));
    }
}
