//! The report's part about asynchronous flow: what was under way for each event loop, at once or one after the other.

use std::io::Write;

use anyhow::Result;

use super::text::{Style, line};
use crate::{
    detect::flow::{UnderWay, flows},
    model::{
        report::Run,
        units::{percent, thousands, time},
    },
};

/// Lines of each loop.
const LISTED: usize = 15;
/// Columns of a picture over time.
pub const COLUMNS: usize = 16;

/// Writes all tables.
pub fn write(run: &Run, style: &Style, out: &mut dyn Write) -> Result<()> {
    for flow in flows(run).iter().filter(|flow| !flow.under_way.is_empty()) {
        let share = |ns: u64| percent(ns, flow.wall_ns).min(100.0);
        let title = format!("under way for the event loop of {} (tid {})", flow.process, flow.thread.tid);
        writeln!(out, "\n{}", style.bold(&title))?;
        let loops = format!(
            "  the loop: on a CPU {:.0} %, waiting for one {:.0} %, blocked {:.0} %, waiting for events {:.0} %; nothing below was \
             under way for at least {:.0} %",
            share(flow.on_cpu_ns),
            share(flow.run_queue_ns),
            share(flow.blocked_ns),
            share(flow.idle_ns),
            share(flow.nothing_ns),
        );
        line(&loops, style, out)?;
        let head = format!(
            "{:>9}  {:>6}  {:>7}  {:>5}  {:>11}  {:>9}  {:<COLUMNS$}  what",
            "sum", "time %", "at once", "most", "in sequence", "times", "over time"
        );
        writeln!(out, "{}", style.dim(&head))?;
        for of in flow.under_way.iter().take(LISTED) {
            line(&row(of), style, out)?;
        }
    }
    Ok(())
}

/// What is not known is a dash.
fn row(of: &UnderWay) -> String {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    format!(
        "{:>9}  {:>6}  {:>7}  {:>5}  {:>11}  {:>9}  {:<COLUMNS$}  {}",
        time(of.sum_ns),
        or_dash(of.any_ns.map(|ns| format!("{:.0}", percent(ns, of.watched_ns).min(100.0)))),
        or_dash(of.at_once.map(|n| format!("{n:.1}"))),
        of.most,
        or_dash(of.in_sequence.map(|share| format!("{:.0} %", 100.0 * share))),
        or_dash(of.times.map(thousands)),
        of.over_time.bars(COLUMNS),
        of.what,
    )
}
