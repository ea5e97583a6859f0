//! The report a person reads at the end: what was measured, the hottest functions, what is missing, what it cost.

use std::io::Write;

use anyhow::Result;

use super::{
    backlog, calls, findings, flow, memory, requests,
    text::{Keep, Style, fit, width},
    waiting,
};
use crate::{
    detect::hotspot::{self, Hotspot},
    model::{
        names::{PLACE, place, short},
        report::{Profile, Run},
        stack::StackEnd,
        units::{count, percent, thousands},
    },
};

/// Writes the report.
pub fn write(run: &Run, style: &Style, out: &mut dyn Write) -> Result<()> {
    let profile = &run.cpu;
    let (meta, accounts) = (&profile.meta, &profile.accounts);
    let seconds = accounts.duration_ns as f64 / 1e9;
    let busy_ns = profile.estimated_ns(profile.total);
    writeln!(
        out,
        "{}",
        style.bold(&format!(
            "{}: {seconds:.1} s, {} Hz, {}",
            meta.target,
            meta.frequency_hz,
            count(u64::from(meta.cpus), "CPU")
        ))
    )?;
    writeln!(
        out,
        "{} taken, {} lost; about {:.2} s on CPU (± {:.0} %), {:.0} % of one CPU",
        count(accounts.samples_taken, "sample"),
        thousands(accounts.losses.lost()),
        busy_ns as f64 / 1e9,
        100.0 / (profile.total.max(1) as f64).sqrt(),
        percent(busy_ns, accounts.duration_ns),
    )?;
    if profile.total == 0 {
        let what = match &run.blocking {
            Some(_) => "see below",
            None => "`cat /proc/PID/task/*/wchan` and `cat /proc/PID/task/*/syscall` show",
        };
        writeln!(out, "\nThe target was never seen on a CPU: it was idle or waiting. What for, {what}.")?;
    } else if style.threads {
        for thread in hotspot::by_thread(profile) {
            let (process, name) = &thread.names;
            let title = format!("{process} (pid {}) / {name} (tid {})", thread.thread.pid, thread.thread.tid);
            let share = percent(thread.samples, profile.total);
            writeln!(out, "\n{}: {}, {share:.1} %", style.bold(&title), count(thread.samples, "sample"))?;
            table(&thread.hotspots, thread.samples, style, out)?;
        }
    } else {
        writeln!(out)?;
        table(&hotspot::hotspots(profile), profile.total, style, out)?;
    }
    waiting::write(run, style, out)?;
    findings::write(run, style, out)?;
    waiting::stacks(run, style, out)?;
    requests::write(run, style, out)?;
    backlog::write(run, style, out)?;
    flow::write(run, style, out)?;
    calls::write(run, style, out)?;
    memory::write(run, style, out)?;
    writeln!(out)?;
    stacks(profile, out)?;
    losses(profile, out)?;
    costs(profile, out)
}

/// The hottest functions, one line each.
pub fn table(hotspots: &[Hotspot], total: u64, style: &Style, out: &mut dyn Write) -> Result<()> {
    let shown = &hotspots[..hotspots.len().min(style.top)];
    let longest = |text: fn(&Hotspot) -> usize, title: &str| {
        shown.iter().map(text).chain([title.len()]).max().unwrap_or(0)
    };
    let mut name_width = longest(|hotspot| width(&short(&hotspot.function)), "function");
    let shown_place = |hotspot: &Hotspot| place(hotspot.location.as_deref().unwrap_or("-"), PLACE);
    let mut location_width =
        longest(|hotspot| hotspot.location.as_deref().map_or(0, |at| width(&place(at, PLACE))), "location");
    let module_width = longest(|hotspot| width(&hotspot.module), "module");
    const NUMBERS: usize = 28; // what stands before the function
    if let Some(limit) = style.width {
        let room = limit.saturating_sub(NUMBERS + module_width.min(40) + 4).max(30);
        location_width = location_width.min(room / 2);
        name_width = name_width.min(room - location_width.min(room));
    }
    writeln!(
        out,
        "{}",
        style.dim(&format!(
            "{:>6}  {:>7}  {:>9}  {:<name_width$}  {:<location_width$}  module",
            "self %", "total %", "samples", "function", "location"
        ))
    )?;
    for hotspot in shown {
        let own = percent(hotspot.self_samples, total);
        let numbers = format!(
            "{own:>6.1}  {:>7.1}  {:>9}",
            percent(hotspot.total_samples, total),
            thousands(hotspot.self_samples)
        );
        let name = fit(&short(&hotspot.function), name_width, Keep::Start);
        let location = fit(&shown_place(hotspot), location_width, Keep::End);
        let module = fit(&hotspot.module, style.width.map_or(usize::MAX, |_| 40), Keep::End);
        let line = format!("{}  {name}  {location}  {}", style.heat(&numbers, own), module.trim_end());
        writeln!(out, "{line}")?;
    }
    let rest = hotspots.len() - shown.len();
    if rest > 0 {
        let weight: u64 = hotspots[shown.len()..].iter().map(|hotspot| hotspot.self_samples).sum();
        writeln!(
            out,
            "{:>6.1}  {:>7}  {:>9}  {rest} more functions (--top N shows more)",
            percent(weight, total),
            "",
            thousands(weight)
        )?;
    }
    Ok(())
}

/// How complete the user stacks are. What is no user stack (the kernel's threads) does not count.
fn stacks(profile: &Profile, out: &mut dyn Write) -> Result<()> {
    let ends: Vec<(StackEnd, u64)> =
        profile.ends().filter(|&(end, n)| n > 0 && end != StackEnd::None).collect();
    let whole: u64 = ends.iter().map(|(_, n)| n).sum();
    if whole > 0 {
        let list: Vec<String> =
            ends.iter().map(|&(end, n)| format!("{:.1} % {end}", percent(n, whole))).collect();
        writeln!(out, "user stacks: {}", list.join(", "))?;
    }
    let unwind = &profile.accounts.unwind;
    let shown = 5;
    for (path, reason) in unwind.failed.iter().take(shown) {
        writeln!(out, "no unwind table for {}: {reason}", fit(path, usize::MAX, Keep::Start))?;
    }
    if unwind.failed.len() > shown {
        writeln!(out, "no unwind table for {} more files", unwind.failed.len() - shown)?;
    }
    if unwind.processes_refused > 0 {
        writeln!(out, "processes with too many mappings to unwind by tables: {}", unwind.processes_refused)?;
    }
    Ok(())
}

fn losses(profile: &Profile, out: &mut dyn Write) -> Result<()> {
    let losses = &profile.accounts.losses;
    let list = |lost: bool| -> Vec<String> {
        losses
            .iter()
            .filter(|(loss, _)| loss.loses_sample() == lost)
            .map(|(loss, n)| {
                let share = percent(n, profile.accounts.samples_taken);
                if loss.counts_samples() {
                    format!("{loss} {} ({share:.1} %)", thousands(n))
                } else {
                    format!("{loss} {}", thousands(n))
                }
            })
            .collect()
    };
    let (lost, degraded) = (list(true), list(false));
    let join = |list: Vec<String>| if list.is_empty() { "none".to_owned() } else { list.join(", ") };
    writeln!(out, "samples lost: {}", join(lost))?;
    writeln!(out, "samples incomplete: {}", join(degraded))?;
    Ok(())
}

fn costs(profile: &Profile, out: &mut dyn Write) -> Result<()> {
    let accounts = &profile.accounts;
    for probe in &accounts.probes {
        writeln!(
            out,
            "cost of the {} probe: {:.1} us a run in the kernel, {:.4} % of one CPU",
            probe.name,
            probe.ns as f64 / 1e3 / probe.runs.max(1) as f64,
            percent(probe.ns, accounts.duration_ns),
        )?;
    }
    writeln!(
        out,
        "cost of the profiler itself: {:.2} % of one CPU, and {:.2} s of CPU time to start and to report; {:.0} MB of memory at most",
        percent(accounts.agent_cpu_ns, accounts.duration_ns),
        accounts.agent_setup_cpu_ns as f64 / 1e9,
        accounts.agent_peak_rss_bytes as f64 / 1e6,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        loss::Loss,
        report::{ProbeReport, fixtures},
    };

    fn render(run: &Run, style: Style) -> String {
        let mut text = Vec::new();
        write(run, &style, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    fn sample() -> Run {
        let mut run = fixtures::run(&[("main;parse", 60), ("main;k:read", 30), ("main", 10)]);
        let profile = &mut run.cpu;
        profile.accounts.losses.add(Loss::RingBufferFull, 5);
        profile.accounts.losses.add(Loss::SymbolMissing, 2);
        profile.accounts.samples_taken += 5;
        profile.accounts.probes = vec![ProbeReport { name: "cpu".into(), runs: 105, ns: 210_000 }];
        run
    }

    #[test]
    fn a_pipe_gets_plain_lines() {
        let style = Style { colour: false, width: None, threads: false, top: 2 };
        insta::assert_snapshot!(render(&sample(), style));
    }

    #[test]
    fn threads_are_split_on_request() {
        let style = Style { colour: false, width: Some(80), threads: true, top: 9 };
        insta::assert_snapshot!(render(&sample(), style));
    }

    #[test]
    fn no_samples_says_what_that_means() {
        let style = Style { colour: false, width: None, threads: false, top: 9 };
        let mut run = fixtures::run(&[]);
        assert!(render(&run, style).contains("/proc/PID/task/*/wchan"));
        run.blocking = Some(crate::model::wait::Blocking::default());
        let text = render(&run, style);
        assert!(text.contains("What for, see below") && text.contains("where the time went"), "{text}");
    }
}
