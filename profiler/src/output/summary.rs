//! The report as one page: the verdict, at most seven findings, and ten lines each about functions, waits and memory.
//! Tables of evidence and costs are written with `--details`.

use std::{collections::BTreeMap, io::Write};

use anyhow::Result;

use super::{
    diff, requests,
    text::{Keep, Style, fit, line, paragraph, told},
};
use crate::{
    detect::{
        groups::groups,
        hotspot::{self, Hotspot},
        paths::{CUT, paths},
        roles,
    },
    model::{
        finding::{Bottleneck, Finding, Severity, Verdict},
        names::{PLACE, place as shown_place, short},
        report::{Names, Run},
        units::{bytes, count, percent, time},
        wait::ThreadTime,
    },
};

/// Findings shown, besides that of the verdict.
const FINDINGS: usize = 6;
/// Lines about call paths, threads, processes and memory.
const PATHS: usize = 6;
const THREADS: usize = 5;
const PROCESSES: usize = 8;
/// Units and containers listed.
const UNITS: usize = 5;
/// What is in none of them.
const NO_UNIT: &str = "no unit or container";
/// What ended before it was looked at, or had no place among those that were.
const UNKNOWN: &str = "not known";
const MEMORY: usize = 3;
/// With fewer samples shares of functions say nothing.
const FEW: u64 = 20;
/// Columns that all of it fits in.
pub const COLUMNS: usize = 100;

/// Writes the verdict and everything below it.
pub fn write(run: &Run, style: &Style, out: &mut dyn Write) -> Result<()> {
    header(run, style, out)?;
    let Some(verdict) = &run.verdict else { return Ok(()) };
    write_verdict(run, verdict, style, out)?;
    if let Some(baseline) = &run.baseline {
        let (colour, answer) = diff::answer(&baseline.comparison, diff::ANSWER);
        let label = fit(&format!("compared with {}:", baseline.file), usize::MAX, Keep::Start);
        paragraph(&label, colour, &answer, 2, style, out)?;
    }
    findings(run, verdict, style, out)?;
    processes(run, style, out)?;
    functions(run, style, out)?;
    requests::summary(run, style, out)?;
    threads(run, style, out)?;
    memory(run, style, out)?;
    last(run, verdict, style, out)
}

fn header(run: &Run, style: &Style, out: &mut dyn Write) -> Result<()> {
    let (meta, accounts) = (&run.cpu.meta, &run.cpu.accounts);
    let text = format!(
        "{}: {}{}, {}, {}",
        meta.target,
        time(accounts.duration_ns),
        if accounts.targets_ended { " until it ended" } else { "" },
        count(u64::from(meta.cpus), "CPU"),
        count(run.cpu.total, "sample"),
    );
    line(&style.bold(&fit(&text, usize::MAX, Keep::Start)), &Style { width: None, ..*style }, out)
}

fn write_verdict(run: &Run, verdict: &Verdict, style: &Style, out: &mut dyn Write) -> Result<()> {
    let finding = verdict.finding.and_then(|at| run.findings.get(at));
    let colour = match finding.map(|finding| finding.severity) {
        Some(Severity::Critical) => "1;31",
        Some(Severity::Warning) => "1;33",
        _ => "1;32",
    };
    let share = match verdict.share_of_wall {
        share if share >= 0.005 && verdict.bottleneck != Bottleneck::None => {
            format!(" ({:.0} % of the time)", 100.0 * share)
        }
        _ => String::new(),
    };
    let label = format!("{}{share}:", verdict.bottleneck.words());
    paragraph(&label, colour, &verdict.sentence, 2, style, out)?;
    if let Some(finding) = finding {
        place(run.names(), finding, 2, style, out)?;
    }
    if !verdict.advice.is_empty() {
        paragraph("  ->", "1", &verdict.advice, 5, style, out)?;
    }
    paragraph("  based on:", "2", &verdict.certainty, 5, style, out)
}

fn findings(run: &Run, verdict: &Verdict, style: &Style, out: &mut dyn Write) -> Result<()> {
    let others: Vec<&Finding> = run
        .findings
        .iter()
        .enumerate()
        .filter(|(at, _)| Some(*at) != verdict.finding)
        .map(|(_, finding)| finding)
        .collect();
    if others.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    for finding in others.iter().take(FINDINGS) {
        let (label, colour) = match finding.severity {
            Severity::Critical => ("CRITICAL", "1;31"),
            Severity::Warning => ("WARNING ", "33"),
            Severity::Info => ("note    ", "2"),
        };
        paragraph(label, colour, &finding.title, 9, style, out)?;
        if finding.severity > Severity::Info {
            place(run.names(), finding, 9, style, out)?;
            if !finding.advice.is_empty() {
                paragraph("      ->", "1", &finding.advice, 9, style, out)?;
            }
        }
    }
    let rest = others.len().saturating_sub(FINDINGS);
    if rest > 0 {
        writeln!(out, "         {} more (--details)", count(rest as u64, "finding"))?;
    }
    Ok(())
}

/// Where a finding shows, in one line: innermost first.
fn place(names: &Names, finding: &Finding, indent: usize, style: &Style, out: &mut dyn Write) -> Result<()> {
    let Some(evidence) = finding.evidence.first() else { return Ok(()) };
    let label = if evidence.label.is_empty() { "at" } else { evidence.label };
    let text = format!(
        "{:indent$}{label} {}",
        "",
        told(names, &evidence.frames, evidence.shown)
            .iter()
            .map(|name| short(name).into_owned())
            .collect::<Vec<_>>()
            .join(" < ")
    );
    line(&text, style, out)
}

/// Which process, where there are several.
fn processes(run: &Run, style: &Style, out: &mut dyn Write) -> Result<()> {
    let wall_ns = run.cpu.accounts.duration_ns;
    // Time on CPUs and waiting for one, ns.
    let mut processes: BTreeMap<(u32, &str), (u64, u64)> = BTreeMap::new();
    match &run.blocking {
        Some(blocking) => {
            for thread in &blocking.threads {
                let of = processes.entry((thread.thread.pid, &thread.process)).or_default();
                *of = (of.0 + thread.on_cpu_ns, of.1 + thread.run_queue_ns);
            }
        }
        None => {
            for stack in &run.cpu.stacks {
                let of = processes.entry((stack.thread.pid, &stack.process)).or_default();
                of.0 += run.cpu.estimated_ns(stack.weight);
            }
        }
    }
    if processes.len() < 2 {
        return Ok(());
    }
    let mut hottest: BTreeMap<u32, (u64, &str)> = BTreeMap::new();
    for stack in &run.cpu.stacks {
        let most = hottest.entry(stack.thread.pid).or_default();
        let own = run.cpu.functions(stack).nth(hotspot::own(&run.cpu, stack));
        if let Some((function, ..)) = own.filter(|_| stack.weight > most.0) {
            *most = (stack.weight, &function.name);
        }
    }
    let mut processes: Vec<_> = processes.into_iter().collect();
    processes.sort_by_key(|&(who, (cpu, queue))| (std::cmp::Reverse(cpu + queue), who));
    // Those that ended and are told together have no number.
    let added_up = processes.iter().any(|((pid, _), _)| *pid == 0);
    let title = format!(
        "{}{}, busiest first",
        count((processes.len() - usize::from(added_up)) as u64, "process"),
        if added_up { " (and others that ended)" } else { "" }
    );
    writeln!(out, "\n{}", style.bold(&title))?;
    writeln!(out, "{}", style.dim(&format!("{:>6}  {:>6}  process: most of it in", "% CPU", "queue")))?;
    for ((pid, name), (cpu, queue)) in processes.iter().take(PROCESSES) {
        let most =
            hottest.get(pid).map_or_else(String::new, |(_, function)| format!(": {}", short(function)));
        let who = if *pid == 0 { "others that ended".to_owned() } else { format!("{name} (pid {pid})") };
        let who = match run.unit_of(*pid) {
            "" => who,
            unit => format!("{who}, {unit}"),
        };
        let text = format!("{:>6.1}  {:>6.1}  {who}{most}", percent(*cpu, wall_ns), percent(*queue, wall_ns));
        line(&text, style, out)?;
    }
    if processes.len() > PROCESSES {
        writeln!(out, "                {} more (--details)", processes.len() - PROCESSES)?;
    }
    units(run, &processes, style, out)
}

/// A process, with its time on CPUs and waiting for one, ns.
type ProcessTime<'a> = ((u32, &'a str), (u64, u64));

/// Which unit or container, where there are several: each with the name of its busiest process.
fn units(run: &Run, processes: &[ProcessTime<'_>], style: &Style, out: &mut dyn Write) -> Result<()> {
    let mut units: BTreeMap<&str, (u64, u64, usize, &str)> = BTreeMap::new();
    for &((pid, name), (cpu, queue)) in processes {
        let unit = match run.unit_of(pid) {
            _ if run.vitals_of(pid).is_none() => UNKNOWN,
            "" => NO_UNIT,
            unit => unit,
        };
        let of = units.entry(unit).or_insert((0, 0, 0, name));
        *of = (of.0.saturating_add(cpu), of.1.saturating_add(queue), of.2 + 1, of.3);
    }
    if units.keys().filter(|unit| **unit != UNKNOWN).count() < 2 {
        return Ok(());
    }
    let wall_ns = run.cpu.accounts.duration_ns;
    let mut units: Vec<_> = units.into_iter().collect();
    units.sort_by_key(|&(unit, (cpu, queue, ..))| (std::cmp::Reverse(cpu + queue), unit));
    writeln!(out, "\n{}", style.bold("units and containers, busiest first"))?;
    writeln!(out, "{}", style.dim(&format!("{:>6}  {:>6}  unit: processes", "% CPU", "queue")))?;
    for (unit, (cpu, queue, number, name)) in units.iter().take(UNITS) {
        let others = if *number > 1 { format!(" and {} more", number - 1) } else { String::new() };
        let (cpu, queue) = (percent(*cpu, wall_ns), percent(*queue, wall_ns));
        line(&format!("{cpu:>6.1}  {queue:>6.1}  {unit}: {name}{others}"), style, out)?;
    }
    if units.len() > UNITS {
        writeln!(out, "                {} more (JSON has the unit of each process)", units.len() - UNITS)?;
    }
    Ok(())
}

fn functions(run: &Run, style: &Style, out: &mut dyn Write) -> Result<()> {
    let profile = &run.cpu;
    if profile.total < FEW {
        let few = count(profile.total, "sample");
        writeln!(out)?;
        return line(&format!("hot functions: it hardly ran ({few}: too few to tell)"), style, out);
    }
    let hotspots = hotspot::hotspots(profile);
    writeln!(out, "\n{}", style.bold("hot functions, % of CPU samples"))?;
    for hotspot in hotspots.iter().filter(|of| of.self_samples > 0).take(style.top) {
        function(hotspot, profile.total, style, out)?;
    }
    let found: Vec<String> = groups(profile)
        .iter()
        .filter(|group| percent(group.samples, profile.total) >= 1.0)
        .map(|group| format!("{} {:.0} %", group.name, percent(group.samples, profile.total)))
        .collect();
    if !found.is_empty() {
        line(&format!("  kinds of work: {}", found.join(", ")), style, out)?;
    }
    let paths = paths(profile, CUT);
    if paths.len() < 2 {
        return Ok(());
    }
    writeln!(out, "\n{}", style.bold("hot paths, caller before callee"))?;
    for path in paths.iter().take(PATHS) {
        let functions: Vec<_> = path.functions.iter().map(|name| short(name)).collect();
        let functions = match &functions[..] {
            [first, .., before, last] if functions.len() > 3 => {
                format!("{first} > … > {before} > {last}")
            }
            functions => functions.join(" > "),
        };
        let indent = "  ".repeat(path.depth.min(8));
        line(&format!("{:>6.1}  {indent}{functions}", percent(path.samples, profile.total)), style, out)?;
    }
    Ok(())
}

fn function(of: &Hotspot, total: u64, style: &Style, out: &mut dyn Write) -> Result<()> {
    let own = percent(of.self_samples, total);
    let module = of.module.rsplit('/').next().unwrap_or(&of.module);
    let room = style.width.unwrap_or(COLUMNS).saturating_sub(16);
    let place = of.location.as_deref().unwrap_or(module);
    let place = shown_place(place, PLACE.min(room / 2));
    let short = short(&of.function);
    let name = fit(&short, short.chars().count().min(room - place.chars().count()), Keep::Start);
    writeln!(out, "{}  {name}  {}", style.heat(&format!("{own:>6.1}"), own), style.dim(&place))?;
    Ok(())
}

/// Threads of one process that have one role, or one name.
pub(super) struct ThreadGroup {
    /// Their process.
    pub pid: u32,
    /// What they are there for, or their name.
    pub who: String,
    /// Their times together.
    pub sum: ThreadTime,
    /// How many they are.
    pub number: u64,
}

/// Threads by what they are there for, those of one role or name as one, the busiest first.
pub(super) fn thread_groups(run: &Run) -> Vec<ThreadGroup> {
    let roles = roles::roles(run);
    let mut groups: BTreeMap<(u32, &str), (ThreadTime, u64)> = BTreeMap::new();
    for thread in run.blocking.iter().flat_map(|blocking| &blocking.threads) {
        let main = thread.thread.tid == thread.thread.pid;
        let role = roles.get(&thread.thread).copied().filter(|_| !main || thread.name.is_empty());
        let who = role.unwrap_or(if main { "main thread" } else { &thread.name });
        let (sum, threads) = groups.entry((thread.thread.pid, who)).or_default();
        sum.process.clone_from(&thread.process);
        sum.add(thread);
        *threads += 1 + thread.others;
    }
    let mut groups: Vec<_> = groups.into_iter().filter(|(_, (sum, _))| sum.wall_ns > 0).collect();
    groups.sort_by_key(|(who, (sum, _))| (std::cmp::Reverse(sum.not_idle_ns()), *who));
    let group =
        |((pid, who), (sum, number)): ((u32, &str), _)| ThreadGroup { pid, who: who.to_owned(), sum, number };
    groups.into_iter().map(group).collect()
}

fn threads(run: &Run, style: &Style, out: &mut dyn Write) -> Result<()> {
    let mut groups = thread_groups(run);
    let all = groups.len();
    let idle = |of: &ThreadTime| percent(of.not_idle_ns(), of.wall_ns) < 0.05;
    if groups.iter().any(|of| !idle(&of.sum)) {
        groups.retain(|of| !idle(&of.sum));
    }
    groups.truncate(THREADS);
    if groups.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{}", style.bold("where the time of threads went, %"))?;
    writeln!(
        out,
        "{}",
        style.dim(&format!("{:>6}  {:>6}  {:>6}  thread: blocked in", "on CPU", "queue", "blocked"))
    )?;
    for ThreadGroup { pid, who: name, sum, number } in groups.iter().take(THREADS) {
        let share = |ns| percent(ns, sum.wall_ns);
        let mut causes = sum.blocked.clone();
        causes.retain(|&(_, ns)| share(ns) >= 0.5);
        causes.sort_by_key(|&(cause, ns)| (std::cmp::Reverse(ns), cause));
        let blocked: u64 = sum.blocked.iter().map(|(_, ns)| ns).sum();
        let causes: Vec<String> = causes
            .into_iter()
            .take(3)
            .map(|(cause, ns)| format!("{} {:.0}", cause.words(), share(ns)))
            .collect();
        let times = if *number > 1 { format!(" ×{number}") } else { String::new() };
        let text = format!(
            "{:>6.1}  {:>6.1}  {:>7.1}  {name}{times}, {} (pid {pid}){}{}",
            share(sum.on_cpu_ns),
            share(sum.run_queue_ns),
            share(blocked),
            sum.process,
            if causes.is_empty() { "" } else { ": " },
            causes.join(", "),
        );
        line(&text, style, out)?;
    }
    if all > groups.len() {
        writeln!(out, "{:25}{} more, idle or less busy (--details)", "", all - groups.len())?;
    }
    Ok(())
}

fn memory(run: &Run, style: &Style, out: &mut dyn Write) -> Result<()> {
    let Some(memory) = &run.memory else { return Ok(()) };
    let held =
        |of: &&crate::model::memory::Footprint| of.growth.last().map_or(0, |growth| growth.held_bytes());
    let mut processes: Vec<_> = memory.processes.iter().filter(|of| of.growth.last().is_some()).collect();
    processes.sort_by_key(|of| std::cmp::Reverse(held(of)));
    for (i, of) in processes.iter().take(MEMORY).enumerate() {
        let first = of.growth.points().first().map_or(0, |growth| growth.held_bytes());
        let grew = held(of) as f64 - first as f64;
        let title = if i == 0 { format!("\n{}: ", style.bold("memory")) } else { "        ".to_owned() };
        let text = format!(
            "{} (pid {}) holds {}, {}{} in this run",
            of.process,
            of.pid,
            bytes(held(of) as f64),
            if grew < 0.0 { "-" } else { "+" },
            bytes(grew.abs()),
        );
        write!(out, "{title}")?;
        line(&text, &Style { width: style.width.map(|width| width.saturating_sub(8)), ..*style }, out)?;
    }
    Ok(())
}

/// What the run could not see, and where to look next.
fn last(run: &Run, verdict: &Verdict, style: &Style, out: &mut dyn Write) -> Result<()> {
    writeln!(out)?;
    if !verdict.doubts.is_empty() {
        paragraph("doubtful:", "2", &verdict.doubts.join("; "), 10, style, out)?;
    }
    if !verdict.blind.is_empty() {
        paragraph("not seen:", "2", &verdict.blind.join("; "), 10, style, out)?;
    }
    let more = if verdict.more.is_empty() { String::new() } else { format!("{}; ", verdict.more) };
    let rules = verdict.finding.and_then(|at| run.findings.get(at));
    let rules = rules.map_or_else(String::new, |finding| format!("; `profiler rules {}`", finding.rule));
    paragraph("next:", "1", &format!("{more}--details for all tables{rules}"), 6, style, out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        report::fixtures,
        stack::ThreadKey,
        vitals::{ProcessVitals, Vitals},
    };

    fn table_of_processes(run: &Run) -> String {
        let mut text = Vec::new();
        let style = Style { colour: false, width: Some(80), threads: false, top: 9 };
        processes(run, &style, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn units_have_the_time_of_their_processes() {
        let mut run = fixtures::run(&[("main;parse", 60), ("main;read", 30), ("main", 10)]);
        for (stack, pid) in run.cpu.stacks.iter_mut().zip([7, 8, 9]) {
            stack.thread = ThreadKey { pid, tid: pid };
            stack.process = "app".into();
        }
        assert!(!table_of_processes(&run).contains("units"), "nothing is known of them");
        let of = |pid, unit: &str| ProcessVitals { pid, unit: unit.into(), ..ProcessVitals::default() };
        let processes = vec![of(7, "a.service"), of(8, "b.service"), of(9, "b.service")];
        run.vitals = Some(Vitals { processes, unlisted: 0 });
        let text = table_of_processes(&run);
        let shares: Vec<(&str, f64)> = ["a.service: app", "b.service: app and 1 more"]
            .map(|what| {
                let line = text.lines().find(|line| line.ends_with(what)).unwrap_or_else(|| panic!("{text}"));
                (what, line.split_whitespace().next().unwrap().parse().unwrap())
            })
            .into();
        assert!((shares[0].1 / shares[1].1 - 1.5).abs() < 0.01, "60 of 100 and 40: {shares:?}");
        assert!(text.contains("app (pid 8), b.service"), "{text}");
        run.vitals.as_mut().unwrap().processes[0].unit = "b.service".into();
        assert!(!table_of_processes(&run).contains("busiest first\n % CPU   queue  unit"), "there is one");
    }

    #[test]
    fn processes_that_ended_and_are_told_together_have_no_number() {
        let mut run = fixtures::run(&[("main;parse", 60), ("main;read", 30), ("main", 10)]);
        for (stack, (pid, name)) in run.cpu.stacks.iter_mut().zip([(7, "app"), (0, "(others)"), (8, "sh")]) {
            stack.thread = ThreadKey { pid, tid: pid };
            stack.process = name.into();
        }
        let text = table_of_processes(&run);
        assert!(text.contains("2 processes (and others that ended), busiest first"), "{text}");
        assert!(text.contains("  others that ended: read") && !text.contains("pid 0"), "{text}");
    }
}
