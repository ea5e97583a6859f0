//! What the page shows over time: memory with what is expected of it, event loops, long waits, descriptors.

use maud::{Markup, html};

use super::charts::{self, COLOURS, Forecast, Line, Lines, Spike};
use crate::{
    detect::leak,
    model::{
        finding::Severity,
        memory::{Footprint, Growth, Heap, LimitKind, Memory},
        report::Run,
        units::{bytes, count, long, time},
        wait::Blocking,
    },
};

/// Lines in a chart.
const LINES: usize = 6;
/// A forecast is drawn for this part of the time watched, beyond its end.
const AHEAD: f64 = 0.6;
/// Colours of severity.
const SEVERE: (&str, &str) = ("#b45309", "#b42318");

/// Every chart there is something for.
pub fn charts(run: &Run) -> Markup {
    let start_ns = start(run);
    let parts: Vec<Markup> = [
        run.memory.as_ref().and_then(|of| memory(of, start_ns)),
        run.memory.as_ref().and_then(|of| live(of, start_ns)),
        run.blocking.as_ref().and_then(|of| loops(of, run, start_ns)),
        run.blocking.as_ref().and_then(|of| waits(of, run, start_ns)),
        descriptors(run, start_ns),
    ]
    .into_iter()
    .flatten()
    .collect();
    html! {
        @if !parts.is_empty() {
            h2 { "Over time" }
            div.grid { @for part in &parts { div.card { (part) } } }
        }
    }
}

/// When the first thing was seen: CLOCK_MONOTONIC, ns.
fn start(run: &Run) -> u64 {
    let memory = run.memory.iter().flat_map(|memory| &memory.processes);
    let memory = memory.filter_map(|of| of.growth.points().first()).map(|of| of.time_ns);
    let stalls = run.blocking.iter().flat_map(|blocking| &blocking.stalls).map(|stall| stall.start_ns);
    let vitals = run.vitals.iter().flat_map(|vitals| &vitals.processes);
    let vitals = vitals.filter_map(|of| of.descriptors.points().first()).map(|of| of.time_ns);
    let samples = run.cpu.span_ns.map(|(first, _)| first);
    memory.chain(stalls).chain(vitals).chain(samples).min().unwrap_or(0)
}

fn seconds(time_ns: u64, start_ns: u64) -> f64 {
    time_ns.saturating_sub(start_ns) as f64 / 1e9
}

fn in_bytes(value: f64) -> String {
    bytes(value)
}

fn in_time(seconds: f64) -> String {
    time((seconds * 1e9).round() as u64)
}

fn in_numbers(value: f64) -> String {
    format!("{value}")
}

fn legend(lines: &[Line]) -> Markup {
    html! {
        div.legend {
            @for (i, line) in lines.iter().enumerate() {
                span { i style=(format!("background:{}", COLOURS[i % COLOURS.len()])) {} (line.name) }
            }
        }
    }
}

fn memory(memory: &Memory, start_ns: u64) -> Option<Markup> {
    let trends = leak::processes(memory);
    let held = |of: &Footprint| of.growth.last().map_or(0, |growth| growth.held_bytes());
    let mut processes: Vec<_> =
        memory.processes.iter().zip(&trends).filter(|(of, _)| of.growth.points().len() > 1).collect();
    processes.sort_by_key(|(of, _)| std::cmp::Reverse(held(of)));
    processes.truncate(LINES);
    let (first, _) = processes.first()?;
    let held_at = |point: &Growth| (seconds(point.time_ns, start_ns), point.held_bytes() as f64);
    let line = |of: &Footprint| line(of, of.growth.points(), held_at);
    let lines: Vec<Line> = processes.iter().map(|(of, _)| line(of)).collect();
    let growing = |trend: &leak::Trend| trend.certainty().is_some() && trend.bytes_per_s.per_time > 0.0;
    let forecasts: Vec<Option<Forecast>> = processes
        .iter()
        .zip(&lines)
        .map(|((_, trend), line)| {
            let (&(begin, _), &from) = line.points.first().zip(line.points.last())?;
            let slope = trend.bytes_per_s;
            let forecast = Forecast {
                from,
                by_s: (slope.low, slope.per_time, slope.high),
                to_s: from.0 + AHEAD * (from.0 - begin),
            };
            growing(trend).then_some(forecast)
        })
        .collect();
    let limit = first.limit.as_ref().map(|of| {
        // What else counts towards the limit is not the process's.
        let others = of.used_bytes.saturating_sub(held(first));
        ((of.limit_bytes.saturating_sub(others)) as f64, format!("limit: {}", limit_words(&of.kind)))
    });
    let said: Vec<String> = processes
        .iter()
        .filter(|(_, trend)| growing(trend))
        .filter_map(|(of, trend)| {
            let (limit_of, rate) = (of.limit.as_ref()?, trend.bytes_per_s);
            let after = |rate: f64| long((limit_of.left_bytes() as f64 / rate.max(1e-9) * 1e9) as u64);
            let latest = if rate.low > 0.0 { after(rate.low) } else { "never".to_owned() };
            Some(format!(
                "At {}/s {} reaches its limit, {} ({}), {} after the end of the run ({} to {latest}, 95 %).",
                bytes(rate.per_time),
                of.process,
                bytes(limit_of.limit_bytes as f64),
                limit_words(&limit_of.kind),
                after(rate.per_time),
                after(rate.high),
            ))
        })
        .collect();
    let unit = in_bytes;
    Some(html! {
        h3 { "Memory held (anonymous, shared, swapped)" }
        (charts::lines(&Lines { lines: &lines, forecasts: &forecasts, limit, unit }))
        (legend(&lines))
        @for said in &said { p.soft { (said) } }
        @if forecasts.iter().any(Option::is_some) { p.soft { "Dotted: what is expected if it goes on, with its 95 % interval." } }
    })
}

fn limit_words(kind: &LimitKind) -> String {
    match kind {
        LimitKind::Cgroup(path) => format!("cgroup {path}"),
        LimitKind::AddressSpace => "the address space".to_owned(),
        LimitKind::Heap => "the JavaScript heap".to_owned(),
        LimitKind::Machine => "the machine".to_owned(),
    }
}

/// A process's line in a chart.
fn line<T>(of: &Footprint, points: &[T], at: impl Fn(&T) -> (f64, f64)) -> Line {
    Line { name: format!("{} (pid {})", of.process, of.pid), points: points.iter().map(at).collect() }
}

/// Watched allocations that are live, of each process.
fn live(memory: &Memory, start_ns: u64) -> Option<Markup> {
    let processes = memory.processes.iter().filter(|of| of.heap.points().len() > 1).take(LINES);
    let live_at = |point: &Heap| (seconds(point.time_ns, start_ns), point.live_bytes.max(0.0));
    let line = |of: &Footprint| line(of, of.heap.points(), live_at);
    let lines: Vec<Line> = processes.map(line).collect();
    if lines.is_empty() {
        return None;
    }
    Some(html! {
        h3 { "Allocated since the run began, and not freed" }
        (charts::lines(&Lines { lines: &lines, forecasts: &[], limit: None, unit: in_bytes }))
        (legend(&lines))
    })
}

fn colour(severity: Severity) -> &'static str {
    if severity == Severity::Critical { SEVERE.1 } else { SEVERE.0 }
}

fn duration(run: &Run) -> f64 {
    run.cpu.accounts.duration_ns as f64 / 1e9
}

/// How late event loops came back to their wait.
fn loops(blocking: &Blocking, run: &Run, start_ns: u64) -> Option<Markup> {
    let loops: Vec<_> = blocking.loops.iter().filter(|of| of.iterations.count > 0).take(LINES).collect();
    if loops.is_empty() {
        return None;
    }
    let spikes: Vec<Spike> = blocking
        .stalls
        .iter()
        .map(|of| (seconds(of.start_ns, start_ns), of.duration_ns as f64 / 1e9, colour(of.severity)))
        .collect();
    let threshold = blocking.thresholds.stall_warning_ns;
    Some(html! {
        h3 { "Event-loop delay: iterations longer than " (time(threshold)) }
        (charts::spikes(&spikes, duration(run), threshold as f64 / 1e9, in_time))
        @if spikes.is_empty() { p.soft { "No iteration was that long." } }
        @if blocking.stalls_unlisted > 0 { p.soft { (count(blocking.stalls_unlisted, "shorter stall")) " not shown." } }
        div.scroll { table {
            tr { th { "loop" } th.n { "iterations" } th.n { "p50" } th.n { "p99" } th.n { "max" } }
            @for of in &loops {
                tr {
                    td { (of.name) " (tid " (of.thread.tid) "), " code { (of.wait) } }
                    td.n { (of.iterations.count) }
                    td.n { (time(of.iterations.p50_ns)) }
                    td.n { (time(of.iterations.p99_ns)) }
                    td.n { (time(of.iterations.max_ns)) }
                }
            }
        } }
    })
}

/// Single long waits, over time.
fn waits(blocking: &Blocking, run: &Run, start_ns: u64) -> Option<Markup> {
    let length = |of: &crate::model::wait::LongWait| of.block.blocked_ns + of.block.run_queue_ns;
    let spikes: Vec<Spike> = blocking
        .long_waits
        .iter()
        .map(|of| (seconds(of.block.start_ns, start_ns), length(of) as f64 / 1e9, colour(of.severity)))
        .collect();
    let least = blocking.long_waits.iter().map(length).min()?;
    Some(html! {
        h3 { "Long waits: when they began, and how long they took" }
        (charts::spikes(&spikes, duration(run), least as f64 / 1e9, in_time))
        @if blocking.long_waits_unlisted > 0 { p.soft { (count(blocking.long_waits_unlisted, "more wait")) " not shown." } }
    })
}

/// Open descriptors, where their number changes.
fn descriptors(run: &Run, start_ns: u64) -> Option<Markup> {
    let vitals = run.vitals.as_ref()?;
    let changes = |of: &&crate::model::vitals::ProcessVitals| {
        let points = of.descriptors.points();
        points.iter().any(|point| point.open != points[0].open)
    };
    let lines: Vec<Line> = vitals
        .processes
        .iter()
        .filter(changes)
        .take(LINES)
        .map(|of| Line {
            name: format!("{} (pid {})", of.process, of.pid),
            points: of
                .descriptors
                .points()
                .iter()
                .map(|point| (seconds(point.time_ns, start_ns), point.open as f64))
                .collect(),
        })
        .collect();
    let limit = vitals.processes.iter().filter(changes).find_map(|of| of.descriptor_limit);
    if lines.is_empty() {
        return None;
    }
    let limit = limit.map(|limit| (limit as f64, "limit (RLIMIT_NOFILE)".to_owned()));
    Some(html! {
        h3 { "Open descriptors" }
        (charts::lines(&Lines { lines: &lines, forecasts: &[], limit, unit: in_numbers }))
        (legend(&lines))
    })
}
