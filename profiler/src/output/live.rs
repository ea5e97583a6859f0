//! The live view: a table redrawn in place on a terminal, one plain line per interval anywhere else. It goes to
//! stderr, so that stdout is free for results.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use anyhow::Result;

use super::{
    calls, report, requests,
    text::{Style, line},
};
use crate::{
    detect::{self, hotspot, rule::Overrides},
    model::{finding::Severity, names::short, report::Run, syscall::Interval, units::percent},
    say,
};

/// Functions in the live table.
const ROWS: usize = 12;
/// Findings below it.
const FINDINGS: usize = 3;

/// What is on the screen.
pub struct Live {
    terminal: bool,
    lines: usize,
    /// Whether there is anyone left to show it to.
    gone: bool,
    /// By which values rules judge, where not by their own.
    overrides: Overrides,
}

impl Live {
    /// Shows what rules find by these values.
    pub fn new(overrides: Overrides) -> Live {
        Live { terminal: io::stderr().is_terminal(), lines: 0, gone: false, overrides }
    }

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
        let requests = requests::live(run);
        let found: Vec<String> =
            calls.into_iter().chain(requests).chain(found(run, elapsed, &self.overrides)).collect();
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
                    format!("{} {:.0} %", short(&hotspot.function), percent(hotspot.self_samples, last.total))
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
            top: ROWS.min(rows.saturating_sub(6 + found.len().max(FINDINGS))),
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

/// What was found wrong so far, worst first: the findings that the report will have, as far as they are known by now.
fn found(run: &Run, elapsed: Duration, overrides: &Overrides) -> Vec<String> {
    let mut so_far = run.clone();
    so_far.cpu.accounts.duration_ns = elapsed.as_nanos() as u64;
    // Samples are those of the last interval only: rules that count them would take the rest for idle.
    so_far.cpu.stacks.clear();
    so_far.cpu.total = 0;
    detect::judge(&mut so_far, overrides);
    let warnings: Vec<_> = so_far.findings.iter().filter(|of| of.severity > Severity::Info).collect();
    let more = warnings.len().saturating_sub(FINDINGS);
    let shown = warnings.iter().take(FINDINGS).enumerate().map(|(at, of)| {
        let more = if at + 1 == FINDINGS && more > 0 { format!(" (and {more} more)") } else { String::new() };
        format!("{}{more}: {}", of.severity.id(), of.title)
    });
    shown.collect()
}

fn seconds(duration: Duration) -> String {
    format!("{:.0} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::fixtures::run_with_findings;

    #[test]
    fn the_live_view_has_the_findings_of_the_report() {
        let mut run = run_with_findings();
        let mut overrides = Overrides::default();
        let live = found(&run, Duration::from_secs(100), &overrides);
        run.cpu.accounts.duration_ns = 100_000_000_000;
        run.cpu.stacks.clear();
        detect::judge(&mut run, &Overrides::default());
        let report: Vec<_> = run.findings.iter().filter(|of| of.severity > Severity::Info).collect();
        assert_eq!(live.len(), report.len().min(FINDINGS));
        // By the reader's own values, too.
        overrides.set("event-loop-stall.share=100", detect::RULES).unwrap();
        assert_ne!(found(&run, Duration::from_secs(100), &overrides), live);
        run.requests = Some(crate::model::request::fixtures::requests());
        let requests = requests::live(&run);
        assert!(
            requests[0].starts_with("answers at :8080 (HTTP)") && requests[0].contains("10.0/s"),
            "{requests:?}"
        );
        assert!(requests[1].starts_with("asks db (10.0.0.2:5432) (PostgreSQL): 20.0/s"), "{requests:?}");
        assert!(live.iter().zip(report).all(|(line, of)| line.contains(&of.title)), "{live:?}");
    }
}
