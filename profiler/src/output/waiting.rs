//! The report's part about where the time went, on CPUs and off them.

use std::{borrow::Cow, collections::BTreeMap, io::Write};

use anyhow::Result;

use super::text::{Style, line, user_functions};
use crate::model::{
    cause::WaitCause,
    distribution::Summary,
    names::short,
    report::{Names, Run},
    units::{count, percent, thousands, time},
    wait::{Blocking, EventLoop, ThreadTime},
};

/// Processes listed, and lines about waits for a CPU and about event loops.
const PROCESSES: usize = 10;
/// Threads listed of a process, if they are not asked for: of the only one, and of one of many.
const THREADS: (usize, usize) = (8, 3);
/// Stacks listed of those that waited longest, and functions of each.
const OFF_CPU: (usize, usize) = (5, 4);

/// Writes where the time went; nothing if the scheduler was not watched.
pub fn write(run: &Run, style: &Style, out: &mut dyn Write) -> Result<()> {
    let Some(blocking) = &run.blocking else { return Ok(()) };
    times(blocking, style, out)?;
    for of in blocking.run_queue.iter().filter(|of| of.waits.count > 0).take(PROCESSES) {
        let who =
            if of.pid == 0 { "of all others".to_owned() } else { format!("{} (pid {})", of.process, of.pid) };
        line(&format!("run queue {who}: {}", run_queue(&of.waits)), style, out)?;
    }
    for of in blocking.loops.iter().filter(|of| of.iterations.count > 0).take(PROCESSES) {
        event_loop(of, style, out)?;
    }
    if blocking.loops.len() > PROCESSES {
        writeln!(
            out,
            "{} more event loops (JSON holds all)",
            thousands((blocking.loops.len() - PROCESSES) as u64)
        )?;
    }
    Ok(())
}

/// A distribution of waits for a CPU.
fn run_queue(waits: &Summary) -> String {
    let &Summary { count: n, p50_ns, p90_ns, p99_ns, p999_ns, max_ns, .. } = waits;
    let [p50, p90, p99, p999, max] = [p50_ns, p90_ns, p99_ns, p999_ns, max_ns].map(time);
    format!("{}, p50 {p50}, p90 {p90}, p99 {p99}, p99.9 {p999}, max {max}", count(n, "wait"))
}

fn event_loop(of: &EventLoop, style: &Style, out: &mut dyn Write) -> Result<()> {
    let iterations = &of.iterations;
    let stalls = match (of.warnings, of.criticals) {
        (0, 0) => "no stall".to_owned(),
        (warnings, 0) => count(warnings, "stall"),
        (warnings, criticals) => format!("{} ({criticals} critical)", count(warnings + criticals, "stall")),
    };
    let text = format!(
        "event loop {} (tid {}), {}: {}, p50 {}, p99 {}, max {}; {stalls}",
        of.name,
        of.thread.tid,
        of.wait,
        count(iterations.count, "iteration"),
        time(iterations.p50_ns),
        time(iterations.p99_ns),
        time(iterations.max_ns),
    );
    line(&text, style, out)
}

/// The table: a line per process, the busiest first, and its threads.
fn times(blocking: &Blocking, style: &Style, out: &mut dyn Write) -> Result<()> {
    let mut processes: BTreeMap<u32, (ThreadTime, Vec<&ThreadTime>)> = BTreeMap::new();
    for thread in &blocking.threads {
        let (sum, threads) = processes.entry(thread.thread.pid).or_default();
        sum.process.clone_from(&thread.process);
        sum.add(thread);
        threads.push(thread);
    }
    let mut processes: Vec<_> = processes.into_iter().collect();
    processes.sort_by_key(|(_, (sum, _))| std::cmp::Reverse(sum.not_idle_ns()));
    writeln!(out, "\n{}", style.bold("where the time went, % of wall time"))?;
    let head = format!(
        "{:>8}  {:>6}  {:>6}  {:>6}  {:>6}  who: blocked in",
        "wall", "on CPU", "user", "kernel", "queue"
    );
    writeln!(out, "{}", style.dim(&head))?;
    let listed = if processes.len() == 1 { THREADS.0 } else { THREADS.1 };
    for (pid, (sum, threads)) in processes.iter_mut().take(PROCESSES) {
        let all = threads.len();
        let title = match *pid {
            0 => sum.process.clone(),
            pid => format!("{} (pid {pid}), {}", sum.process, count(sum.others, "thread")),
        };
        row(sum, &title, style, out)?;
        if all == 1 {
            continue;
        }
        threads.sort_by_key(|thread| (std::cmp::Reverse(thread.not_idle_ns()), thread.thread));
        if !style.threads {
            threads.retain(|thread| thread.not_idle_ns() > 0);
            threads.truncate(listed);
        }
        for thread in threads.iter() {
            let who = match thread.thread.tid {
                0 => count(1 + thread.others, "ended thread"),
                tid => format!("tid {tid}"),
            };
            row(thread, &format!("  {} ({who})", thread.name), style, out)?;
            if let Some(waits) = thread.run_queue.filter(|_| style.threads) {
                line(&format!("{:>42}    {}", "", run_queue(&waits)), style, out)?;
            }
        }
        if threads.len() < all {
            writeln!(
                out,
                "{:>42}    {} more, less busy (--threads shows them)",
                "",
                thousands((all - threads.len()) as u64)
            )?;
        }
    }
    if processes.len() > PROCESSES {
        writeln!(
            out,
            "{} more processes, less busy (JSON holds all)",
            thousands((processes.len() - PROCESSES) as u64)
        )?;
    }
    Ok(())
}

fn row(of: &ThreadTime, title: &str, style: &Style, out: &mut dyn Write) -> Result<()> {
    let share = |ns| percent(ns, of.wall_ns);
    let mut causes = of.blocked.clone();
    causes.retain(|&(_, ns)| share(ns) >= 0.05);
    causes.sort_by_key(|&(cause, ns)| (std::cmp::Reverse(ns), cause));
    let causes: Vec<String> =
        causes.into_iter().map(|(cause, ns)| format!("{} {:.1}", cause.words(), share(ns))).collect();
    let on_cpu = format!("{:>6.1}", share(of.on_cpu_ns));
    // Without samples nobody knows how it divides.
    let [user, kernel] = match of.cpu_samples {
        0 => ["-".to_owned(), "-".to_owned()],
        _ => [of.on_cpu_ns.saturating_sub(of.on_cpu_kernel_ns), of.on_cpu_kernel_ns]
            .map(|ns| format!("{:.1}", share(ns))),
    };
    let text = format!(
        "{:>8}  {on_cpu}  {user:>6}  {kernel:>6}  {:>6.1}  {title}: {}",
        time(of.wall_ns),
        share(of.run_queue_ns),
        if causes.is_empty() { "nothing".to_owned() } else { causes.join(", ") },
    );
    line(&text, style, out)
}

/// A place off CPUs: what for, where, and who ended it.
type OffCpu<'a> = (WaitCause, Vec<Cow<'a, str>>, Option<String>);

/// Writes the stacks that waited longest in something else than idleness, if any was looked for.
pub fn stacks(run: &Run, style: &Style, out: &mut dyn Write) -> Result<()> {
    let Some(off_cpu) = &run.off_cpu else { return Ok(()) };
    let mut weights: BTreeMap<OffCpu<'_>, u64> = BTreeMap::new();
    for stack in &off_cpu.stacks {
        let cause = stack.cause.unwrap_or(WaitCause::Unknown);
        if !cause.is_idle() {
            let names = &off_cpu.names;
            let woken = names.waker_at(&stack.frames);
            let blocked = &stack.frames[woken.map_or(0, |at| at + 1)..];
            let waker = woken.map(|at| waker(names, &stack.frames[..=at]));
            *weights.entry((cause, chain(names, blocked), waker)).or_default() += stack.weight;
        }
    }
    if weights.is_empty() {
        return Ok(());
    }
    let total: u64 = weights.values().sum();
    let mut weights: Vec<_> = weights.into_iter().filter(|(_, ns)| percent(*ns, total) >= 0.05).collect();
    weights.sort_by_key(|(_, ns)| std::cmp::Reverse(*ns));
    let title = format!("longest off CPU, without idle waits: {} in all", time(total));
    writeln!(out, "\n{}", style.bold(&title))?;
    for ((cause, functions, waker), ns) in weights.into_iter().take(OFF_CPU.0) {
        let share = percent(ns, total);
        let text = format!("{:>8}  {share:>5.1} %  {}: {}", time(ns), cause.words(), functions.join(" < "));
        line(&text, style, out)?;
        if let Some(waker) = waker {
            line(&format!("                    {waker}"), style, out)?;
        }
    }
    Ok(())
}

/// The innermost functions of a stack that waits or wakes.
fn chain<'a>(names: &'a Names, frames: &'a [usize]) -> Vec<Cow<'a, str>> {
    let functions = user_functions(names, frames);
    functions.into_iter().take(OFF_CPU.1).map(|function| short(&function.name)).collect()
}

/// Who woke a thread and where: its stack, the outermost first, and the frame that says who it was.
fn waker(names: &Names, frames: &[usize]) -> String {
    let Some((who, woke)) = frames.split_last() else { return String::new() };
    let who = names.frames[*who].functions[0].name.trim_matches(['[', ']']);
    let inward: Vec<usize> = woke.iter().rev().copied().collect();
    match chain(names, &inward)[..] {
        [] => who.to_owned(),
        ref functions => format!("{who} in {}", functions.join(" < ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::fixtures::run_with_findings,
        model::{report::fixtures, stack::ThreadKey, wait::EventLoop},
        output::text::width,
    };

    const PLAIN: Style = Style { colour: false, width: None, threads: false, top: 20 };

    fn render(run: &Run, style: Style) -> String {
        let mut text = Vec::new();
        write(run, &style, &mut text).unwrap();
        stacks(run, &style, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn where_time_went_is_told_by_thread_and_stack() {
        insta::assert_snapshot!(render(&run_with_findings(), PLAIN));
    }

    #[test]
    fn names_cannot_steer_the_terminal() {
        let mut run = fixtures::run(&[("main", 1)]);
        let iterations = Summary { count: 1234, max_ns: 9_000_000, ..Summary::default() };
        let name = || "quiet\x1b[2J".to_owned();
        let blocking = Blocking {
            loops: vec![EventLoop { iterations, name: name(), wait: "poll".into(), ..EventLoop::default() }],
            threads: vec![ThreadTime { process: name(), wall_ns: 1_000_000_000, ..ThreadTime::default() }],
            ..Blocking::default()
        };
        run.blocking = Some(blocking);
        insta::assert_snapshot!(render(&run, PLAIN));
    }

    #[test]
    fn lines_fit_a_terminal() {
        let narrow = Style { width: Some(60), ..PLAIN };
        let text = render(&run_with_findings(), narrow);
        assert!(text.lines().all(|line| width(line) <= 60), "{text}");
    }

    #[test]
    fn threads_are_listed_on_request_only() {
        let mut run = run_with_findings();
        let blocking = run.blocking.as_mut().unwrap();
        let idle = ThreadTime {
            thread: ThreadKey { pid: 7, tid: 20 },
            name: "idle".into(),
            wall_ns: 5,
            blocked: vec![(WaitCause::Park, 5)],
            ..blocking.threads[0].clone()
        };
        let idle = ThreadTime { on_cpu_ns: 0, run_queue_ns: 0, ..idle };
        blocking.threads.push(idle);
        assert!(render(&run, PLAIN).contains("1 more, less busy"));
        let all = render(&run, Style { threads: true, ..PLAIN });
        assert!(all.contains("idle (tid 20): parked (futex) 100.0") && !all.contains("less busy"), "{all}");
    }
}
