//! The report's part about memory: how processes grew, who has allocated what is there now, and what watching it cost.

use std::io::Write;

use anyhow::Result;

use super::text::{Style, line, user_functions};
use crate::{
    detect::{diagnosis::doubts::is_held_in_doubt, words::at},
    model::{
        memory::{Footprint, Memory, Site, WatchMode},
        names::short,
        report::{Profile, Run},
        units::{bytes, count, percent, rounded, thousands, time},
    },
};

/// Processes and places listed.
const LISTED: (usize, usize) = (10, 10);
/// Functions shown of a stack.
const FRAMES: usize = 6;
/// Places of page faults listed.
const FAULTS: usize = 5;
/// What no probe follows.
const UNSEEN: &str = "not followed: what is given back in place (madvise) still counts; what mremap adds or moves, and what is \
                      mapped otherwise than by mmap (brk), does not";

/// Writes the part; nothing if memory was not watched.
pub fn write(run: &Run, style: &Style, out: &mut dyn Write) -> Result<()> {
    let Some(memory) = &run.memory else { return Ok(()) };
    growth(memory, style, out)?;
    for of in &memory.processes {
        heap(of, style, out)?;
    }
    if memory.watching.mode == WatchMode::Watched {
        watching(memory, style, out)?;
        sites(run, memory, style, out)?;
    }
    for problem in &memory.watching.problems {
        line(&format!("not watched: {problem}"), style, out)?;
    }
    if let Some(faults) = &run.faults {
        self::faults(faults, style, out)?;
    }
    Ok(())
}

fn growth(memory: &Memory, style: &Style, out: &mut dyn Write) -> Result<()> {
    let held = |of: &&Footprint| of.growth.last().map_or(0, |growth| growth.held_bytes());
    let mut processes: Vec<&Footprint> =
        memory.processes.iter().filter(|of| of.growth.last().is_some()).collect();
    processes.sort_by_key(|of| std::cmp::Reverse(held(of)));
    if processes.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{}", style.bold("memory"))?;
    let head = format!(
        "{:>9}  {:>9}  {:>9}  {:>9}  {:>12}  process",
        "anonymous", "files", "shared", "swapped", "grew by"
    );
    writeln!(out, "{}", style.dim(&head))?;
    for of in processes.iter().take(LISTED.0) {
        let (Some(first), Some(last)) = (of.growth.points().first(), of.growth.last()) else { continue };
        let grew = last.held_bytes() as f64 - first.held_bytes() as f64;
        let text = format!(
            "{:>9}  {:>9}  {:>9}  {:>9}  {:>12}  {} (pid {})",
            bytes(last.anon_bytes as f64),
            bytes(last.file_bytes as f64),
            bytes(last.shmem_bytes as f64),
            bytes(last.swap_bytes as f64),
            format!("{}{}", if grew < 0.0 { "-" } else { "+" }, bytes(grew.abs())),
            of.process,
            of.pid,
        );
        line(&text, style, out)?;
    }
    if processes.len() > LISTED.0 {
        writeln!(
            out,
            "{} more processes, smaller (JSON holds all)",
            thousands((processes.len() - LISTED.0) as u64)
        )?;
    }
    if memory.watching.mode == WatchMode::Ready {
        let text =
            "allocations: not watched, since nothing was seen to grow (--alloc full watches from the start)";
        line(text, style, out)?;
    }
    Ok(())
}

/// What a process's garbage-collected heap holds, and how much of it is new.
fn heap(of: &Footprint, style: &Style, out: &mut dyn Write) -> Result<()> {
    let Some(heap) = &of.managed else { return Ok(()) };
    let limit =
        heap.limit_bytes.map_or_else(String::new, |limit| format!(" of at most {}", bytes(limit as f64)));
    let title = format!(
        "JavaScript heap of {} (pid {}): about {} (± {}){limit}, {} at first; without young objects",
        of.process,
        of.pid,
        bytes(heap.last.bytes),
        bytes(heap.last.bytes_err),
        bytes(heap.first.bytes),
    );
    writeln!(out)?;
    line(&style.bold(&title), style, out)?;
    let head = format!("{:>9}  {:>10}  {:>9}  {:>10}  what", "bytes", "objects", "± error", "more");
    writeln!(out, "{}", style.dim(&head))?;
    let more = heap.more();
    for class in heap.last.classes.iter().take(LISTED.1) {
        let grew = more.iter().find(|(of, ..)| std::ptr::eq(*of, class)).map_or(0.0, |(_, count, _)| *count);
        let what = match &class.function {
            Some(function) => format!("{} {}", class.kind.words(), at(function)),
            None => format!("{} {}", class.kind.words(), class.name),
        };
        let text = format!(
            "{:>9}  {:>10}  {:>9}  {:>10}  {}",
            bytes(class.bytes),
            rounded(class.count),
            rounded(class.count_err),
            if grew > 0.0 { format!("+{}", rounded(grew)) } else { String::new() },
            what.trim_end(),
        );
        line(&text, style, out)?;
    }
    Ok(())
}

/// How allocations were watched, and at what price.
fn watching(memory: &Memory, style: &Style, out: &mut dyn Write) -> Result<()> {
    let of = &memory.watching;
    let how = if of.is_estimated() {
        format!(
            "in {} only, {:.1} % of the time, to keep the cost down: all figures are estimates",
            count(of.windows, "short window"),
            percent(of.seen_ns, of.watched_ns),
        )
    } else if memory.processes.iter().any(|process| is_held_in_doubt(memory, process.pid)) {
        "every call, and not all of that memory is held (see doubtful)".to_owned()
    } else if of.lost_objects > 0 {
        "every one that there was room for".to_owned()
    } else {
        "every one".to_owned()
    };
    line(&format!("allocations: watched for {}, {how}", time(of.watched_ns)), style, out)?;
    let limit = match of.max_overhead_percent {
        Some(percent) => format!("{percent} % allowed"),
        None => "no limit".to_owned(),
    };
    let text = format!(
        "cost of watching: {:.2} % of the target's CPU time ({limit}), {}, a call with its return {:.0} ns ({:.0} ns where \
         single-stepped) and the program's time; probes placed in {}, removed in {}",
        of.overhead_percent(),
        count(of.hits, "probe hit"),
        of.trap_ns.0,
        of.trap_ns.1,
        time(of.attach_ns),
        time(of.detach_ns),
    );
    line(&text, style, out)?;
    line(UNSEEN, style, out)?;
    for (library, functions) in &of.probed {
        let name = library.rsplit('/').next().unwrap_or(library);
        line(&format!("probed in {name}: {} (* single-stepped)", functions.join(" ")), style, out)?;
    }
    let missing = [
        (of.lost_objects, "not counted at all, for lack of room"),
        (of.implied_frees, "freed unseen, known by their address being given out again"),
    ];
    for (n, what) in missing.into_iter().filter(|(n, _)| *n > 0) {
        line(&format!("objects {what}: {}", thousands(n)), style, out)?;
    }
    Ok(())
}

/// How far off it may be what a site holds, in words: that every call was counted proves nothing where the process does not hold it.
pub(super) fn error(site: &Site, memory: &Memory) -> String {
    if site.estimated {
        bytes(site.points.last().map_or(0.0, |point| point.live_bytes_err))
    } else if is_held_in_doubt(memory, site.pid) {
        "doubtful".to_owned()
    } else {
        "exact".to_owned()
    }
}

fn sites(run: &Run, memory: &Memory, style: &Style, out: &mut dyn Write) -> Result<()> {
    if memory.sites.is_empty() {
        writeln!(out, "\n{}", style.bold("allocated since and not freed: nothing was seen"))?;
        return Ok(());
    }
    let live = |site: &Site| site.points.last().copied().unwrap_or_default();
    let total: f64 = memory.sites.iter().map(|site| live(site).live_bytes).sum();
    let objects: f64 = memory.sites.iter().map(|site| live(site).live_count).sum();
    let title = format!(
        "allocated since and not freed: {} in {:.0} objects, from {}",
        bytes(total),
        objects,
        count(memory.sites.len() as u64, "stack"),
    );
    writeln!(out, "\n{}", style.bold(&title))?;
    let mut sites: Vec<&Site> = memory.sites.iter().collect();
    sites.sort_by(|a, b| live(b).live_bytes.total_cmp(&live(a).live_bytes).then(a.stack.cmp(&b.stack)));
    let head = format!(
        "{:>9}  {:>8}  {:>10}  {:>11}  {:>11}  {:>9}  allocated by",
        "live", "± error", "objects", "allocated/s", "freed/s", "age"
    );
    writeln!(out, "{}", style.dim(&head))?;
    let seconds = (memory.watching.watched_ns as f64 / 1e9).max(1e-3);
    for site in
        sites.iter().take(LISTED.1).filter(|site| live(site).live_bytes > 0.0 || site.allocated_bytes > 0)
    {
        let point = live(site);
        let error = error(site, memory);
        let functions: Vec<_> = user_functions(run.names(), run.names().stack(site.stack))
            .into_iter()
            .take(FRAMES)
            .map(|function| short(&function.name))
            .collect();
        let text = format!(
            "{:>9}  {error:>8}  {:>10}  {:>11}  {:>11}  {:>9}  {}",
            bytes(point.live_bytes),
            thousands(point.live_count.round() as u64),
            bytes(site.allocated_bytes as f64 / seconds),
            bytes(site.freed_bytes as f64 / seconds),
            site.ages_ns.quantile(0.5).map_or_else(|| "-".to_owned(), |ns| format!("~{}", time(ns))),
            functions.join(" < "),
        );
        line(&text, style, out)?;
    }
    if sites.len() > LISTED.1 {
        writeln!(
            out,
            "{} more stacks with less (JSON holds all)",
            thousands((sites.len() - LISTED.1) as u64)
        )?;
    }
    Ok(())
}

/// Where pages were touched for the first time.
fn faults(profile: &Profile, style: &Style, out: &mut dyn Write) -> Result<()> {
    if profile.total == 0 {
        return Ok(());
    }
    let title = format!("page faults: about {} (sampled)", thousands(profile.total));
    writeln!(out, "\n{}", style.bold(&title))?;
    for stack in profile.stacks.iter().take(FAULTS) {
        let functions: Vec<_> = user_functions(&profile.names, &stack.frames)
            .into_iter()
            .take(FRAMES)
            .map(|function| short(&function.name))
            .collect();
        let share = percent(stack.weight, profile.total);
        line(
            &format!("{:>9}  {share:>5.1} %  {}", thousands(stack.weight), functions.join(" < ")),
            style,
            out,
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        function::Function,
        memory::{Growth, HeapClass, HeapKind, HeapSample, LivePoint, ManagedHeap, Watching},
        report::fixtures,
        stack::StackId,
    };

    const PLAIN: Style = Style { colour: false, width: None, threads: false, top: 20 };

    /// A heap with twice as many closures as at first, and strings.
    fn heap() -> ManagedHeap {
        let function =
            Function { name: "onUpdate".into(), file: Some("/srv/app.js".into()), ..Function::default() };
        let class = |kind, function: Option<&Function>, count: f64| HeapClass {
            kind,
            name: function.map_or_else(String::new, |of| of.name.clone()),
            function: function.cloned(),
            count,
            count_err: count / 20.0,
            bytes: 64.0 * count,
        };
        let sample = |time_ns, closures: f64| {
            let classes = vec![
                class(HeapKind::Closures, Some(&function), closures),
                class(HeapKind::Strings, None, 9_000.0),
            ];
            HeapSample { time_ns, bytes: 1e6 + 64.0 * closures, bytes_err: 1e5, classes }
        };
        ManagedHeap {
            first: sample(1, 20_000.0),
            last: sample(2, 41_234.0),
            limit_bytes: Some(2_000_000_000),
        }
    }

    fn run() -> Run {
        let mut run = fixtures::run(&[("main", 1)]);
        let mut names = crate::model::report::Names::clone(run.names());
        let frames = fixtures::frames(&mut names, "main;serve;remember\x1b[2J");
        names.stacks.insert(StackId(1), frames);
        run.cpu.names = std::rc::Rc::new(names);
        let mut site = crate::model::memory::fixtures::site(1, [0.0, 1_500_000.0]);
        site.estimated = true;
        site.points.push(LivePoint {
            time_ns: 2,
            live_bytes: 3e6,
            live_count: 30_000.0,
            live_bytes_err: 120_000.0,
        });
        site.ages_ns.add(1_000_000_000, 5);
        let growth =
            [10, 13].map(|mb| Growth { time_ns: mb, anon_bytes: mb * 1_000_000, ..Growth::default() });
        let process = Footprint {
            pid: 7,
            process: "app".into(),
            growth: growth.into_iter().collect(),
            managed: Some(heap()),
            ..Footprint::default()
        };
        let watching = Watching {
            unlisted: 0,
            mode: WatchMode::Watched,
            watched_ns: 10_000_000_000,
            seen_ns: 500_000_000,
            windows: 25,
            since_ns: 30_000_000,
            max_overhead_percent: Some(5.0),
            hits: 123_456,
            cost_ns: 480_000_000,
            cpu_ns: 10_000_000_000,
            trap_ns: (1040.0, 5200.0),
            attach_ns: 9_000_000,
            detach_ns: 44_000_000,
            probed: vec![("/usr/lib/libc.so.6".into(), vec!["malloc".into(), "mmap*".into()])],
            problems: vec!["other (pid 8): no allocator found".into()],
            implied_frees: 12,
            lost_objects: 3,
            stacks_walked: 9,
        };
        run.memory =
            Some(Memory { processes: vec![process], sites: vec![site], faults: Vec::new(), watching });
        run
    }

    #[test]
    fn growth_sites_and_price_are_told() {
        let mut text = Vec::new();
        write(&run(), &PLAIN, &mut text).unwrap();
        insta::assert_snapshot!(String::from_utf8(text).unwrap());
    }
    /// All calls are counted of a process that grew by 3 MB.
    fn counted(live_bytes: f64, lost_objects: u64) -> String {
        let mut run = run();
        let memory = run.memory.as_mut().unwrap();
        memory.watching = Watching { windows: 0, since_ns: 0, lost_objects, ..memory.watching.clone() };
        memory.sites[0] = crate::model::memory::fixtures::site(1, [0.0, live_bytes]);
        let mut text = Vec::new();
        write(&run, &PLAIN, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn what_the_process_does_not_hold_is_not_called_exact() {
        let text = counted(3e6, 0);
        assert!(text.contains("every one\n") && text.contains("exact"), "{text}");
        let text = counted(3e6, 5);
        assert!(text.contains("every one that there was room for\n"), "{text}");
        let text = counted(300e6, 0);
        assert!(!text.contains("every one") && !text.contains("exact"), "{text}");
        assert!(text.contains("(see doubtful)") && text.contains("  doubtful  "), "{text}");
    }
}
