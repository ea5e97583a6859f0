//! The live view: a table redrawn in place on a terminal, one plain line per interval anywhere else. It goes to
//! stderr, so that stdout is free for results.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use anyhow::Result;

use super::report::{self, Style};
use crate::{detect::hotspot, profile::Profile};

/// Functions in the live table.
const ROWS: usize = 12;

/// What is on the screen.
pub struct Live {
    terminal: bool,
    lines: usize,
}

impl Default for Live {
    fn default() -> Self {
        Live { terminal: io::stderr().is_terminal(), lines: 0 }
    }
}

impl Live {
    /// Shows the last interval. `elapsed` and `total` are the run's.
    pub fn show(&mut self, last: &Profile, elapsed: Duration, total: Option<Duration>) -> Result<()> {
        let progress = match total {
            Some(total) => format!("{} of {}", seconds(elapsed), seconds(total)),
            None => format!("{}, Ctrl-C ends", seconds(elapsed)),
        };
        let busy = report::percent(last.estimated_ns(last.total), last.accounts.duration_ns);
        let lost = last.accounts.losses.lost();
        let hotspots = hotspot::hotspots(last);
        if !self.terminal {
            let top: Vec<String> = hotspots
                .iter()
                .take(3)
                .map(|hotspot| {
                    format!("{} {:.0} %", hotspot.function, report::percent(hotspot.self_samples, last.total))
                })
                .collect();
            let top = if top.is_empty() { "idle".to_owned() } else { top.join(", ") };
            eprintln!("{progress}: {busy:.0} % of one CPU, {lost} lost; {top}");
            return Ok(());
        }

        let columns =
            terminal_size::terminal_size_of(io::stderr()).map_or(100, |(width, _)| usize::from(width.0));
        let rows =
            terminal_size::terminal_size_of(io::stderr()).map_or(24, |(_, height)| usize::from(height.0));
        let style = Style {
            colour: true,
            width: Some(columns.saturating_sub(1)),
            threads: false,
            top: ROWS.min(rows.saturating_sub(4)),
        };
        let mut text = Vec::new();
        let header =
            format!("{}: {progress}; last interval {busy:.0} % of one CPU, {lost} lost", last.meta.target);
        writeln!(text, "\x1b[1m{header}\x1b[0m")?;
        report::table(&hotspots, last.total, &style, &mut text)?;
        self.clear()?;
        self.lines = text.iter().filter(|&&byte| byte == b'\n').count();
        io::stderr().write_all(&text)?;
        Ok(())
    }

    /// Removes the table, so that the report takes its place.
    pub fn clear(&mut self) -> Result<()> {
        if self.lines > 0 {
            write!(io::stderr(), "\x1b[{}A\x1b[J", self.lines)?;
            self.lines = 0;
        }
        Ok(())
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.0} s", duration.as_secs_f64())
}
