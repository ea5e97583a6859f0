//! The report's part about connections that wait to be accepted.

use std::io::Write;

use anyhow::Result;

use super::text::{Style, line};
use crate::model::{
    report::Run,
    units::{count, thousands, time},
    vitals::{Backlog, ProcessVitals},
};

/// Sockets listed.
const LISTED: usize = 10;

/// Writes a line for each socket at which somebody waited; that nobody did, where it was looked.
pub fn write(run: &Run, style: &Style, out: &mut dyn Write) -> Result<()> {
    let processes = run.vitals.iter().flat_map(|vitals| &vitals.processes);
    let mut all: Vec<(&ProcessVitals, &Backlog)> =
        processes.flat_map(|of| of.backlogs.iter().map(move |backlog| (of, backlog))).collect();
    if all.is_empty() {
        return Ok(());
    }
    let looks = all.iter().map(|(_, of)| of.looks).max().unwrap_or(0);
    let sockets = count(all.len() as u64, "socket");
    all.retain(|(_, of)| of.most > 0);
    if all.is_empty() {
        let text = format!("no connection waited to be accepted ({sockets}, {})", count(looks, "look"));
        return line(&text, style, out);
    }
    writeln!(out, "\n{}", style.bold("connections waiting to be accepted"))?;
    all.sort_by_key(|(_, of)| std::cmp::Reverse((of.sum, of.most)));
    for (of, backlog) in all.iter().take(LISTED) {
        line(&format!("  {}", told(of, backlog)), style, out)?;
    }
    let more = all.len().saturating_sub(LISTED);
    if more > 0 {
        writeln!(out, "  {more} more (JSON holds all)")?;
    }
    Ok(())
}

fn told(of: &ProcessVitals, backlog: &Backlog) -> String {
    let oldest = &backlog.oldest;
    // Of very many sockets with somebody it is not asked for how long.
    let waited = match oldest.count {
        0 => "for how long is not known".to_owned(),
        _ => format!("the first for p50 {}, max {}", time(oldest.p50_ns), time(oldest.max_ns)),
    };
    let overflows = match of.overflows {
        Some(n) if n > 0 => format!("; its network namespace turned {} away", thousands(n)),
        _ => String::new(),
    };
    format!(
        "{} of {} (pid {}): {} now, {:.1} on average, {} at most, room for {}; {waited}; full in {} of {}{overflows}",
        backlog.address,
        of.process,
        of.pid,
        thousands(backlog.last),
        backlog.mean(),
        thousands(backlog.most),
        thousands(backlog.room()),
        thousands(backlog.full),
        count(backlog.looks, "look"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{distribution::Summary, report::fixtures, vitals::Vitals};

    fn text(backlogs: Vec<Backlog>) -> String {
        let mut run = fixtures::run(&[]);
        let of = ProcessVitals {
            pid: 7,
            process: "app".into(),
            backlogs,
            overflows: Some(3),
            ..ProcessVitals::default()
        };
        run.vitals = Some(Vitals { processes: vec![of], unlisted: 0 });
        let style = Style { colour: false, width: None, threads: false, top: 9 };
        let mut text = Vec::new();
        write(&run, &style, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn who_waits_has_a_line() {
        let idle = Backlog { address: "0.0.0.0:80".into(), looks: 40, limit: 128, ..Backlog::default() };
        let waited = Backlog {
            address: "[::]:8080".into(),
            last: 2,
            most: 6,
            sum: 60,
            full: 4,
            limit: 5,
            oldest: Summary { count: 20, p50_ns: 300_000_000, max_ns: 2_000_000_000, ..Summary::default() },
            ..idle.clone()
        };
        assert_eq!(text(Vec::new()), "");
        assert_eq!(text(vec![idle.clone()]), "no connection waited to be accepted (1 socket, 40 looks)\n");
        insta::assert_snapshot!(text(vec![idle, waited]));
    }
}
