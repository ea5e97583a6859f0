//! The live view: a table redrawn in place on a terminal, one plain line per interval anywhere else. It goes to
//! stderr, so that stdout is free for results.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use anyhow::Result;

use super::{
    calls, names, report,
    text::{Style, line},
};
use crate::{
    detect::hotspot,
    model::{
        report::Run,
        syscall::Interval,
        units::{percent, thousands},
        wait::Blocking,
    },
    say,
};

/// Functions in the live table.
const ROWS: usize = 12;

/// What is on the screen.
pub struct Live {
    terminal: bool,
    lines: usize,
    /// Whether there is anyone left to show it to.
    gone: bool,
}

impl Default for Live {
    fn default() -> Self {
        Live { terminal: io::stderr().is_terminal(), lines: 0, gone: false }
    }
}

impl Live {
    /// Shows the last interval, and what was found wrong since the start. `elapsed` and `total` are the run's. Where
    /// stderr is gone, nothing is shown any more: the run goes on.
    pub fn show(&mut self, run: &Run, calls: Option<&Interval>, elapsed: Duration, total: Option<Duration>) {
        if self.gone {
            return;
        }
        match self.view(run, calls, elapsed, total) {
            Ok(text) => {
                self.clear();
                if self.terminal {
                    self.lines = text.iter().filter(|&&byte| byte == b'\n').count();
                }
                self.gone = io::stderr().write_all(&text).is_err();
            }
            Err(error) => {
                self.gone = true;
                say!("profiler: no live view: {error:#}");
            }
        }
    }

    fn view(
        &self,
        run: &Run,
        calls: Option<&Interval>,
        elapsed: Duration,
        total: Option<Duration>,
    ) -> Result<Vec<u8>> {
        let last = &run.cpu;
        let calls = calls.map(|calls| calls::interval(calls, last.accounts.duration_ns as f64 / 1e9));
        let found: Vec<String> =
            [calls, run.blocking.as_ref().and_then(found)].into_iter().flatten().collect();
        let progress = match total {
            Some(total) => format!("{} of {}", seconds(elapsed), seconds(total)),
            None => format!("{}, Ctrl-C ends", seconds(elapsed)),
        };
        let busy = percent(last.estimated_ns(last.total), last.accounts.duration_ns);
        let lost = last.accounts.losses.lost();
        let hotspots = hotspot::hotspots(last);
        if !self.terminal {
            let top: Vec<String> = hotspots
                .iter()
                .take(3)
                .map(|hotspot| {
                    format!(
                        "{} {:.0} %",
                        names::short(&hotspot.function),
                        percent(hotspot.self_samples, last.total)
                    )
                })
                .collect();
            let top = if top.is_empty() { "idle".to_owned() } else { top.join(", ") };
            let found: String = found.iter().map(|found| format!("; {found}")).collect();
            let line = format!("{progress}: {busy:.0} % of one CPU, {lost} lost; {top}{found}\n");
            return Ok(line.into_bytes());
        }

        let columns =
            terminal_size::terminal_size_of(io::stderr()).map_or(100, |(width, _)| usize::from(width.0));
        let rows =
            terminal_size::terminal_size_of(io::stderr()).map_or(24, |(_, height)| usize::from(height.0));
        let style = Style {
            colour: true,
            width: Some(columns.saturating_sub(1)),
            threads: false,
            top: ROWS.min(rows.saturating_sub(5)),
        };
        let mut text = Vec::new();
        let header =
            format!("{}: {progress}; last interval {busy:.0} % of one CPU, {lost} lost", last.meta.target);
        writeln!(text, "\x1b[1m{header}\x1b[0m")?;
        report::table(&hotspots, last.total, &style, &mut text)?;
        for found in &found {
            line(found, &style, &mut text)?;
        }
        Ok(text)
    }

    /// Removes the table, so that the report takes its place.
    pub fn clear(&mut self) {
        if self.lines > 0 {
            self.gone = write!(io::stderr(), "\x1b[{}A\x1b[J", self.lines).is_err();
            self.lines = 0;
        }
    }
}

/// What was found wrong so far, if anything.
fn found(blocking: &Blocking) -> Option<String> {
    let stalls: u64 = blocking.loops.iter().map(|of| of.warnings + of.criticals).sum();
    let counts = [
        (stalls, "stalls of event loops"),
        (blocking.long_waits.len() as u64 + blocking.long_waits_unlisted, "long waits"),
        (blocking.convoys.len() as u64, "lock convoys"),
    ];
    let some: Vec<String> = counts
        .into_iter()
        .filter(|&(n, _)| n > 0)
        .map(|(n, what)| format!("{} {what}", thousands(n)))
        .collect();
    (!some.is_empty()).then(|| format!("found since the start: {}", some.join(", ")))
}

fn seconds(duration: Duration) -> String {
    format!("{:.0} s", duration.as_secs_f64())
}
