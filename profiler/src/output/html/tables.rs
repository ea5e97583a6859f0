//! The page's tables: where time went, hot functions and paths, memory by place, system calls, peers.

use maud::{Markup, html};

use super::{
    super::{
        diff,
        flow::COLUMNS,
        memory::error,
        requests,
        summary::{ThreadGroup, thread_groups},
        text::innermost,
    },
    charts::COLOURS,
};
use crate::{
    detect::{
        flow,
        groups::groups,
        hotspot,
        paths::{CUT, paths},
    },
    model::{
        cause::WaitCause,
        comparison::{Baseline, Change, KindComparison},
        distribution::Summary,
        names::{PLACE, place, short},
        report::Run,
        request::Side,
        units::{bytes, count, percent, share, thousands, time},
    },
};

/// Rows of a table.
const ROWS: usize = 20;
/// Routes of a peer.
const ROUTES: usize = 5;
/// Functions of a place.
const FRAMES: usize = 4;
/// With fewer samples shares of functions say nothing.
const FEW: u64 = 20;
/// What runs, and what waits for a CPU; then one for each cause of waiting.
const RUNNING: (&str, &str) = ("#2a9d74", "#b42318");
/// Idle waits are pale.
const IDLE: &str = "#d5dbe2";

/// All tables.
pub fn all(run: &Run) -> Markup {
    html! {
        (threads(run))
        (functions(run))
        (sites(run))
        (peers(run))
        (under_way(run))
        (calls(run))
    }
}

/// What differs from what is normal.
pub fn compared(baseline: &Baseline) -> Markup {
    let (_, answer) = diff::answer(&baseline.comparison, diff::ANSWER);
    let significant = baseline.comparison.significant();
    html! {
        div.card {
            h3 { "Compared with " (baseline.file) }
            p { (answer) }
            @if !significant.is_empty() {
                div.scroll { table {
                    tr { th.n { "before" } th.n { "now" } th.n { "points" } th.n { "95 % interval" } th { "of" } th { "where" } }
                    @for (kind, change) in significant.into_iter().take(ROWS) { (difference(kind, change)) }
                } }
            }
        }
    }
}

fn difference(kind: &KindComparison, change: &Change) -> Markup {
    let points = change.points;
    html! {
        tr {
            td.n { (format!("{:.1} %", change.share.0)) }
            td.n { (format!("{:.1} %", change.share.1)) }
            td.n { b { (format!("{:+.1}", points.value)) } }
            td.n { (format!("{:+.1} to {:+.1}", points.low, points.high)) }
            td { (diff::whole_of(kind, change)) }
            td.name { @if change.is_total() { "all together" } @else { (diff::shown(&change.place, FRAMES)) } }
        }
    }
}

fn cause_colour(cause: WaitCause) -> &'static str {
    // The first two colours are close to those of running and of waiting for a CPU.
    if cause.is_idle() { IDLE } else { COLOURS[cause as usize % COLOURS.len()] }
}

/// Where the time of threads went, as bars.
fn threads(run: &Run) -> Markup {
    let groups = thread_groups(run);
    let shown = &groups[..groups.len().min(ROWS)];
    let mut causes: Vec<WaitCause> = shown
        .iter()
        .flat_map(|of| &of.sum.blocked)
        .filter(|(_, ns)| *ns > 0)
        .map(|(cause, _)| *cause)
        .collect();
    causes.sort_unstable();
    causes.dedup();
    html! {
        @if !shown.is_empty() {
            h2 { "Where the time of threads went" }
            div.card {
                div.scroll { table {
                    tr { th { "thread" } th.n { "on CPU" } th.n { "queue" } th.n { "blocked" } th { "of wall time" } th { "mostly in" } }
                    @for of in shown { (thread(of)) }
                } }
                div.legend {
                    span { i style=(background(RUNNING.0)) {} "on CPU" }
                    span { i style=(background(RUNNING.1)) {} "waiting for a CPU" }
                    @for &cause in causes.iter().filter(|cause| !cause.is_idle()) {
                        span { i style=(background(cause_colour(cause))) {} (cause.words()) }
                    }
                    span { i style=(background(IDLE)) {} "idle waits (parked, polling, asleep)" }
                }
                @if groups.len() > shown.len() { p.soft { (groups.len() - shown.len()) " more, less busy." } }
            }
        }
    }
}

fn background(colour: &str) -> String {
    format!("background:{colour}")
}

fn thread(of: &ThreadGroup) -> Markup {
    let wall = of.sum.wall_ns;
    let share = |ns| percent(ns, wall);
    let blocked: u64 = of.sum.blocked.iter().map(|(_, ns)| ns).sum();
    let mut causes = of.sum.blocked.clone();
    causes.sort_by_key(|&(cause, ns)| (std::cmp::Reverse(ns), cause));
    let most: Vec<String> = causes
        .iter()
        .filter(|(_, ns)| share(*ns) >= 0.5)
        .take(3)
        .map(|(cause, ns)| format!("{} {:.0} %", cause.words(), share(*ns)))
        .collect();
    // Idle waits come last, next to what was not accounted for.
    causes.sort_by_key(|(cause, _)| cause.is_idle());
    let part = |ns: u64, colour: &str| {
        html! { i style=(format!("width:{:.2}%;background:{colour}", share(ns).min(100.0))) {} }
    };
    html! {
        tr {
            td {
                (of.who) @if of.number > 1 { " ×" (of.number) }
                div.soft { (of.sum.process) " (pid " (of.pid) ")" }
            }
            td.n { (format!("{:.1} %", share(of.sum.on_cpu_ns))) }
            td.n { (format!("{:.1} %", share(of.sum.run_queue_ns))) }
            td.n { (format!("{:.1} %", share(blocked))) }
            td {
                div.bar {
                    (part(of.sum.on_cpu_ns, RUNNING.0))
                    (part(of.sum.run_queue_ns, RUNNING.1))
                    @for &(cause, ns) in &causes { (part(ns, cause_colour(cause))) }
                }
            }
            td.soft { (most.join(", ")) }
        }
    }
}

fn functions(run: &Run) -> Markup {
    let profile = &run.cpu;
    let hotspots = hotspot::hotspots(profile);
    let kinds = groups(profile);
    let kinds: Vec<_> = kinds.iter().filter(|of| percent(of.samples, profile.total) >= 1.0).collect();
    let paths = paths(profile, CUT);
    let heat = |share: f64| html! { span.heat { i style=(format!("width:{:.1}%", share.min(100.0))) {} } };
    html! {
        h2 { "Hot functions" }
        div.card {
            @if profile.total < FEW {
                p { "It hardly ran: " (count(profile.total, "sample")) ", too few to tell." }
            } @else {
                @if !kinds.is_empty() {
                    p.chips { @for of in &kinds { span { (of.name) " " (format!("{:.0} %", percent(of.samples, profile.total))) } } }
                }
                div.scroll { table {
                    tr { th.n { "self" } th {} th.n { "total" } th { "function" } th { "where" } }
                    @for of in hotspots.iter().filter(|of| of.self_samples > 0).take(ROWS) {
                        @let own = percent(of.self_samples, profile.total);
                        tr {
                            td.n { (format!("{own:.1} %")) }
                            td { (heat(own)) }
                            td.n { (format!("{:.1} %", percent(of.total_samples, profile.total))) }
                            td.name title=(of.function) { (short(&of.function)) }
                            td.place title=(of.module) { (place(of.location.as_deref().unwrap_or(&of.module), PLACE)) }
                        }
                    }
                } }
            }
        }
        @if profile.total >= FEW && paths.len() > 1 {
            h2 { "Hot paths" }
            div.card { div.scroll { table {
                tr { th.n { "samples" } th { "caller before callee" } }
                @for path in paths.iter().take(ROWS) {
                    tr {
                        td.n { (format!("{:.1} %", percent(path.samples, profile.total))) }
                        td.name style=(format!("padding-left:{}px", 18 * path.depth.min(12))) {
                            (path_text(&path.functions))
                        }
                    }
                }
            } } }
        }
    }
}

fn path_text(functions: &[&str]) -> String {
    let names: Vec<_> = functions.iter().map(|name| short(name)).collect();
    match &names[..] {
        [first, .., before, last] if names.len() > 4 => {
            format!("{first} > … {} more … > {before} > {last}", names.len() - 3)
        }
        names => names.join(" > "),
    }
}

/// Who has allocated what is not freed.
fn sites(run: &Run) -> Markup {
    let mut sites: Vec<_> =
        run.memory.iter().flat_map(|memory| memory.sites.iter().map(move |site| (site, memory))).collect();
    let live = |site: &crate::model::memory::Site| site.points.last().copied().unwrap_or_default();
    sites.sort_by(|(a, _), (b, _)| live(b).live_bytes.total_cmp(&live(a).live_bytes));
    html! {
        @if !sites.is_empty() {
            h2 { "Memory by place: allocated in this run, and not freed" }
            div.card { div.scroll { table {
                tr { th.n { "live" } th.n { "± error" } th.n { "objects" } th.n { "allocated" } th.n { "freed" } th { "allocated by" } }
                @for (site, memory) in sites.into_iter().take(ROWS) {
                    @let now = live(site);
                    @let functions = innermost(run.names(), site.stack);
                    @let names: Vec<_> = functions.iter().take(FRAMES).map(|of| short(&of.name)).collect();
                    tr {
                        td.n { (bytes(now.live_bytes)) }
                        td.n { (error(site, memory)) }
                        td.n { (thousands(now.live_count.round() as u64)) }
                        td.n { (bytes(site.allocated_bytes as f64)) }
                        td.n { (bytes(site.freed_bytes as f64)) }
                        td.name { (names.join(" < ")) }
                    }
                }
            } } }
        }
    }
}

/// Whom the process asks, and who asks it.
fn peers(run: &Run) -> Markup {
    let peers = run.requests.iter().flat_map(|of| &of.peers).filter(|of| requests::is_told(of));
    let peers: Vec<_> = peers.collect();
    html! {
        @if !peers.is_empty() {
            h2 { "Requests" }
            @if let Some(of) = run.requests.as_ref().filter(|of| of.windows.is_some()) {
                p.soft { "Watched for " (time(of.watched_ns)) " in windows, for their cost: counts are those of that time." }
            }
            div.card { div.scroll { table {
                tr { th { "" } th { "peer" } th.n { "answers" } th.n { "p50" } th.n { "p99" } th.n { "max" } th.n { "failed" } th.n { "unanswered" } }
                @for of in peers.into_iter().take(ROWS) {
                    tr {
                        td.soft { @if of.side == Side::Asks { "asks" } @else { "answers" } }
                        td.name { (of.protocol) " " (of.place()) }
                        (times(&of.first))
                        td.n { (failed(of.failed())) }
                        td.n { (thousands(of.unanswered)) }
                    }
                    @let connections = requests::failures(of);
                    @if !connections.is_empty() || of.multiplexed > 0 {
                        tr {
                            td {}
                            td.soft colspan="7" {
                                (connections.trim_start_matches("; "))
                                @if of.multiplexed > 0 {
                                    " " (count(of.multiplexed, "connection")) " whose requests overlap, not told apart"
                                }
                            }
                        }
                    }
                    @for route in of.routes.iter().filter(|route| !route.operation.is_empty()).take(ROUTES) {
                        tr {
                            td {}
                            td.soft style="padding-left:18px" { (route.operation) }
                            (times(&route.first))
                            td.n { (failed((route.failed(), if of.failed().1 > 0 { route.first.count } else { 0 }))) }
                            td {}
                        }
                    }
                }
            } } }
        }
    }
}

fn times(of: &Summary) -> Markup {
    html! {
        td.n { (thousands(of.count)) }
        td.n { @if of.count > 0 { (time(of.p50_ns)) } }
        td.n { @if of.count > 0 { (time(of.p99_ns)) } }
        td.n { @if of.count > 0 { (time(of.max_ns)) } }
    }
}

/// A part of the answers; of none that is known nothing is said.
fn failed((failed, of): (u64, u64)) -> String {
    if of > 0 { share(failed, of) } else { String::new() }
}

/// What is under way for each event loop, at once or one after the other.
fn under_way(run: &Run) -> Markup {
    let flows: Vec<_> = flow::flows(run).into_iter().filter(|flow| !flow.under_way.is_empty()).collect();
    let share = |ns: u64, of: u64| format!("{:.0} %", percent(ns, of).min(100.0));
    let known = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    html! {
        @for flow in flows {
            h2 { "Under way for the event loop of " (flow.process) " (tid " (flow.thread.tid) ")" }
            div.card {
                p.soft {
                    "The loop was on a CPU for " (share(flow.on_cpu_ns, flow.wall_ns)) " of the time, blocked for "
                    (share(flow.blocked_ns, flow.wall_ns)) ", and waited for events for " (share(flow.idle_ns, flow.wall_ns)) "."
                }
                div.scroll { table {
                    tr { th { "what" } th.n { "of the time" } th.n { "at once" } th.n { "most" } th.n { "in sequence" } th.n { "times" } th { "over time" } }
                    @for of in flow.under_way.iter().take(ROWS) {
                        tr {
                            td.name { (of.what) }
                            td.n { (known(of.any_ns.map(|ns| share(ns, of.watched_ns)))) }
                            td.n { (known(of.at_once.map(|n| format!("{n:.1}")))) }
                            td.n { (of.most) }
                            td.n { (known(of.in_sequence.map(|part| format!("{:.0} %", 100.0 * part)))) }
                            td.n { (known(of.times.map(thousands))) }
                            td { (of.over_time.bars(COLUMNS)) }
                        }
                    }
                } }
            }
        }
    }
}

fn calls(run: &Run) -> Markup {
    let calls = run.calls.as_ref().map_or(&[][..], |calls| &calls.calls);
    let windows = run.calls.as_ref().filter(|calls| calls.windows > 0);
    html! {
        @if !calls.is_empty() {
            h2 { "System calls, most time first" }
            div.card {
                @if let Some(of) = windows {
                    p.soft { "Watched for " (time(of.watched_ns)) " in windows, for their cost: counts are those of that time." }
                }
                div.scroll { table {
                    tr { th { "call" } th { "process" } th.n { "calls" } th.n { "time" } th.n { "p50" } th.n { "p99" } th.n { "max" } th { "errors" } }
                    @for of in calls.iter().take(ROWS) {
                        @let errors: Vec<_> = of.errors.iter().take(3).map(|(name, n)| format!("{name} {}", thousands(*n))).collect();
                        tr {
                            td.name { (of.syscall) }
                            td { (of.process) " " (of.thread_name) }
                            td.n { (thousands(of.lengths.count)) }
                            td.n { (time(of.lengths.sum_ns)) }
                            td.n { (time(of.lengths.p50_ns)) }
                            td.n { (time(of.lengths.p99_ns)) }
                            td.n { (time(of.lengths.max_ns)) }
                            td.soft { (errors.join(", ")) }
                        }
                    }
                } }
            }
        }
    }
}
