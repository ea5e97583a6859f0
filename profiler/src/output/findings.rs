//! The report's part about what was wrong, worst first.

use std::{collections::BTreeMap, io::Write};

use anyhow::Result;

use crate::{
    detect::{
        finding::{self, ChattyGroup, Finding, Growing, Leak, Reaches, Reason, StallGroup, WaitGroup},
        leak::{Certainty, Trend},
    },
    model::{
        finding::Severity,
        memory::{Limit, LimitKind},
        report::{NamedFrame, Names, Run},
        stack::{ModuleKind, ThreadKey},
        syscall::ErrorStorm,
        wait::{Blocking, Convoy, LongWaitKind, ThreadTime},
    },
    output::{
        report::{Keep, Style, bytes, count, fit, per_second, percent, thousands},
        waiting::{line, time, user_functions},
    },
    symbolize::Function,
};

/// Findings told in full.
const FINDINGS: usize = 10;
/// Functions shown of a finding's stack, and of a leak's: allocators and wrappers around them are innermost there.
const FRAMES: (usize, usize) = (5, 9);

/// Writes what was wrong; nothing if nothing was looked for.
pub fn write(run: &Run, style: &Style, out: &mut dyn Write) -> Result<()> {
    let found = finding::findings(run);
    if found.is_empty() {
        let looked: Vec<String> = run
            .blocking
            .iter()
            .map(no_waits)
            .chain(run.memory.iter().map(|_| "no growth that persists".to_owned()))
            .chain(run.calls.iter().map(|_| "no chatty I/O, no error storm".to_owned()))
            .collect();
        return match &looked[..] {
            [] => Ok(()),
            looked => line(&format!("nothing found: {}", looked.join(", ")), style, out),
        };
    }
    let name = Namer::new(run.blocking.as_ref());
    writeln!(out, "\n{}", style.bold("what was wrong, worst first"))?;
    for finding in found.iter().take(FINDINGS) {
        let (text, stacks, frames) = match finding {
            Finding::Stalls(group) => (stalls(group, &name), vec![("", group.stack)], FRAMES.0),
            Finding::Waits(group) => {
                let blocked = matches!(group.longest.kind, LongWaitKind::Blocked { .. });
                (waits(group, &name), vec![("", group.longest.block.stack.filter(|_| blocked))], FRAMES.0)
            }
            Finding::Convoy(convoy) => {
                let both = [("holder at", convoy.holder_stack), ("waiting at", convoy.waiter_stack)];
                (self::convoy(convoy, &name), both.into(), FRAMES.0)
            }
            Finding::Leak(leak) => (self::leak(leak), vec![("allocated at", Some(leak.stack))], FRAMES.1),
            Finding::Growing(growing) => (self::growing(growing), Vec::new(), 0),
            Finding::Chatty(group) => (chatty(group), vec![("", group.most.stack)], FRAMES.0),
            Finding::Storm(of) => (storm(of), Vec::new(), 0),
        };
        let label = match finding.severity() {
            Severity::Critical => style.paint("1;31", "CRITICAL"),
            Severity::Warning => style.paint("33", "WARNING "),
        };
        writeln!(out, "{label}  {}", fit(&text, usize::MAX, Keep::Start))?;
        for (whose, stack) in stacks {
            let names = run.names();
            let functions = stack.map_or_else(Vec::new, |stack| told(names, names.stack(stack), frames));
            for (i, function) in functions.iter().enumerate() {
                let whose = if i == 0 { whose } else { "" };
                let gap = if whose.is_empty() { "" } else { " " };
                line(&format!("            {whose}{gap}{function}"), style, out)?;
            }
        }
    }
    if found.len() > FINDINGS {
        writeln!(out, "{} more findings (JSON holds all)", found.len() - FINDINGS)?;
    }
    let unlisted =
        run.blocking.as_ref().map_or(0, |blocking| blocking.stalls_unlisted + blocking.long_waits_unlisted);
    if unlisted > 0 {
        writeln!(out, "shorter stalls and waits that are in none of these: {}", thousands(unlisted))?;
    }
    Ok(())
}

/// What was looked for among waits, and not found.
fn no_waits(blocking: &Blocking) -> String {
    let limits = &blocking.thresholds;
    let turns: u64 = blocking.loops.iter().map(|of| of.turns.count).sum();
    let in_turns = match blocking.loops.len() as u64 {
        0 => String::new(),
        loops => format!(
            "no stall over {} in {} of {}, ",
            time(limits.stall_warning_ns),
            count(turns, "turn"),
            count(loops, "event loop")
        ),
    };
    format!(
        "{in_turns}no thread blocked for long, none without a CPU for {}, no queue for a lock",
        time(limits.starvation_ns)
    )
}

fn leak(leak: &Leak) -> String {
    let error = match leak.live_bytes_err {
        0.0 => String::new(),
        error => format!(" (± {})", bytes(error)),
    };
    let ages = match (leak.ages_ns.quantile(0.5), leak.ages_ns.quantile(1.0)) {
        (Some(half), Some(oldest)) => {
            // Ages are known by powers of two only.
            let oldest = oldest.min(leak.trend.watched_ns);
            format!(", half of them older than {}, the oldest {}", long(half), long(oldest))
        }
        _ => String::new(),
    };
    let estimated = if leak.estimated { "; all estimated from a part of the time" } else { "" };
    format!(
        "leak in {} (pid {}): {}: {}{error} live in {}{ages}{}{estimated}",
        leak.process,
        leak.pid,
        rate(&leak.trend, leak.certainty),
        bytes(leak.live_bytes),
        count(leak.live_count.round() as u64, "object"),
        reaches(leak.reaches.as_ref()),
    )
}

fn growing(growing: &Growing) -> String {
    let why = if growing.watched {
        "; what was allocated meanwhile does not explain it: memory from elsewhere, or an allocator that does not give \
         it back"
    } else {
        ""
    };
    format!(
        "{} (pid {}) keeps growing: {}: it holds {}{}{why}",
        growing.process,
        growing.pid,
        rate(&growing.trend, growing.certainty),
        bytes(growing.held_bytes as f64),
        reaches(growing.reaches.as_ref()),
    )
}

/// How fast, how long it was watched for, and how sure that is.
fn rate(trend: &Trend, certainty: Certainty) -> String {
    let slope = &trend.bytes_per_s;
    format!(
        "{}/s ({} to {}, 95 %) over {}, {} ({:.1} % not by chance)",
        bytes(slope.per_time),
        bytes(slope.low),
        bytes(slope.high),
        long(trend.watched_ns),
        certainty.id(),
        // What is left to chance is never nothing.
        (100.0 * trend.confidence).min(99.9),
    )
}

fn reaches(reaches: Option<&Reaches>) -> String {
    let Some(Reaches { limit, after_ns }) = reaches else { return String::new() };
    let Limit { kind, limit_bytes, .. } = limit;
    let whose = match kind {
        LimitKind::Cgroup(path) => format!("its cgroup's limit ({path}, {})", bytes(*limit_bytes as f64)),
        LimitKind::AddressSpace => format!("its address space limit ({})", bytes(*limit_bytes as f64)),
        LimitKind::Machine => format!("the machine's memory ({})", bytes(*limit_bytes as f64)),
    };
    format!("; reaches {whose} in {}", long(*after_ns))
}

/// A long duration, in its two largest units.
fn long(ns: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let seconds = ns / 1_000_000_000;
    if seconds == 0 {
        return time(ns);
    }
    let first = UNITS.iter().position(|&(unit, _)| seconds >= unit).unwrap_or(3);
    let (unit, name) = UNITS[first];
    let rest = UNITS.get(first + 1).map(|&(smaller, name)| (seconds % unit / smaller, name));
    match rest.filter(|&(rest, _)| rest > 0 && seconds / unit < 10) {
        Some((rest, smaller)) => format!("{} {name} {rest} {smaller}", seconds / unit),
        None => format!("{} {name}", thousands(seconds / unit)),
    }
}

fn stalls(group: &StallGroup, name: &Namer<'_>) -> String {
    let how_often = match group.count {
        1 => format!("stalled for {}", time(group.total_ns)),
        n => format!(
            "stalled {} times, {} in all, longest {}",
            thousands(n),
            time(group.total_ns),
            time(group.longest_ns)
        ),
    };
    let reason = match &group.reason {
        Reason::OnCpu(Some(function)) => format!("on CPU in {}", at(function)),
        Reason::OnCpu(None) => "on CPU, too short for a sample".to_owned(),
        Reason::RunQueue => "waiting for a CPU".to_owned(),
        Reason::Blocked { cause, syscall } => {
            format!(
                "blocked, {}",
                join([cause.words(), syscall, group.object.as_deref().unwrap_or_default()])
            )
        }
        Reason::Unexplained => "unexplained".to_owned(),
    };
    let share = percent(group.reason_ns, group.total_ns);
    let unexplained = 100.0 - percent(group.explained_ns, group.total_ns);
    let rest = match group.reason {
        Reason::Unexplained => String::new(),
        _ if unexplained < 10.0 => String::new(),
        _ => format!("; {unexplained:.0} % unexplained"),
    };
    format!("event loop {} {how_often}: {share:.0} % {reason}{rest}", name.thread(group.thread))
}

fn waits(group: &WaitGroup, name: &Namer<'_>) -> String {
    let who = match &group.threads[..] {
        [thread] => format!("thread {}", name.thread(*thread)),
        threads => {
            let first = threads.first().copied().unwrap_or_default();
            format!("{} threads of {} (pid {})", threads.len(), name.process(first), first.pid)
        }
    };
    let ongoing = match (group.ongoing, group.count) {
        (0, _) => String::new(),
        (1, 1) => ", and still does".to_owned(),
        (n, _) => format!(", {n} still do"),
    };
    let how_long = match group.count {
        1 => format!("for {}", time(group.total_ns)),
        n => format!(
            "{} times, {} in all, longest {}",
            thousands(n),
            time(group.total_ns),
            time(group.longest.length_ns())
        ),
    };
    let block = &group.longest.block;
    match &group.longest.kind {
        LongWaitKind::Blocked { uninterruptible } => {
            let stuck = if *uninterruptible { ", uninterruptibly" } else { "" };
            let object = block.object.as_deref().unwrap_or_default();
            let what = join([block.cause.words(), &block.syscall, object]);
            format!("{who} blocked {how_long}{stuck}{ongoing}: {what}")
        }
        LongWaitKind::Starved { .. } => {
            let instead: Vec<String> = group
                .instead
                .iter()
                .filter(|(name, _)| !name.is_empty())
                .take(3)
                .map(|(name, ns)| format!("{name} ({:.0} %)", percent(*ns, group.total_ns)))
                .collect();
            let instead = if instead.is_empty() { "unknown".to_owned() } else { instead.join(", ") };
            format!("{who} ready but without a CPU {how_long}{ongoing}; ran instead: {instead}")
        }
    }
}

fn convoy(convoy: &Convoy, name: &Namer<'_>) -> String {
    let holder = match convoy.holder {
        Some(holder) => format!("held by {}", name.thread(holder)),
        None => "holder unknown".to_owned(),
    };
    format!(
        "lock convoy in {} (pid {}): up to {} threads queue for the lock at {:#x}, in {} looks; {holder}",
        convoy.process, convoy.pid, convoy.waiters, convoy.futex, convoy.seen
    )
}

fn chatty(group: &ChattyGroup) -> String {
    let of = &group.most;
    let what = if of.round_trips { "round trips to" } else { "small reads or writes of" };
    let others = match group.objects {
        1 => String::new(),
        n => format!(" and {} more", thousands(n - 1)),
    };
    format!(
        "chatty I/O: {} (tid {}) made {} {what} {}{others}, one after the other, there {} a second: {}, half of them of {} or less; \
         a batch would do",
        of.process,
        of.thread.tid,
        thousands(group.count),
        of.object,
        per_second(of.per_second()),
        time(group.total_ns),
        bytes(of.median_bytes as f64),
    )
}

fn storm(of: &ErrorStorm) -> String {
    format!(
        "error storm: {} of {} (pid {}) failed {} of {} times ({:.0} %) in {}, mostly with {}",
        of.syscall,
        of.process,
        of.pid,
        thousands(of.failed),
        thousands(of.calls),
        percent(of.failed, of.calls),
        time(of.lasted_ns),
        of.errno,
    )
}

/// Names of threads and processes.
struct Namer<'a>(BTreeMap<ThreadKey, &'a ThreadTime>);

impl<'a> Namer<'a> {
    fn new(blocking: Option<&'a Blocking>) -> Namer<'a> {
        let threads = blocking.iter().flat_map(|blocking| &blocking.threads);
        Namer(threads.map(|thread| (thread.thread, thread)).collect())
    }

    fn thread(&self, thread: ThreadKey) -> String {
        match self.0.get(&thread) {
            Some(known) => format!("{} (tid {})", known.name, thread.tid),
            None => format!("tid {}", thread.tid),
        }
    }

    fn process(&self, thread: ThreadKey) -> &str {
        let of_process = ThreadKey { pid: thread.pid, tid: 0 }..=ThreadKey { pid: thread.pid, tid: u32::MAX };
        self.0.range(of_process).next().map_or("?", |(_, known)| &known.process)
    }
}

/// The innermost functions of a stack, `most` of them, and the first that a just-in-time compiler made, which is the
/// program's own, where the others are all its runtime's.
fn told(names: &Names, frames: &[usize], most: usize) -> Vec<String> {
    let functions = user_functions(names, frames);
    let mut told: Vec<String> = functions.iter().take(most).map(|function| at(function)).collect();
    let compiled = |frame: &NamedFrame| matches!(names.module_of(frame).kind, ModuleKind::Jit(_));
    let own = names.functions(frames).find(|(_, frame, _)| compiled(frame)).map(|(function, ..)| function);
    if let Some(own) = own.filter(|own| !functions.iter().take(most).any(|function| function == own)) {
        told.push(format!("… {}", at(own)));
    }
    told
}

/// A function and where it is.
fn at(function: &Function) -> String {
    match (&function.file, function.line) {
        (Some(file), Some(line)) => format!("{} ({file}:{line})", function.name),
        _ => function.name.clone(),
    }
}

/// The parts that say something.
fn join(parts: [&str; 3]) -> String {
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::finding::fixtures::{run_that_grows, run_with_findings},
        model::{distribution::Summary, report::fixtures, stack::Module, wait::EventLoop},
        output::report::width,
    };

    const PLAIN: Style = Style { colour: false, width: None, threads: false, top: 20 };

    fn render(run: &Run, style: Style) -> String {
        let mut text = Vec::new();
        write(run, &style, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn what_was_wrong_can_be_acted_on() {
        insta::assert_snapshot!(render(&run_with_findings(), PLAIN));
    }

    #[test]
    fn what_grows_is_told_with_its_limit() {
        insta::assert_snapshot!(render(&run_that_grows(), PLAIN));
    }

    #[test]
    fn what_is_wrong_with_system_calls_is_told_too() {
        insta::assert_snapshot!(render(&crate::output::calls::fixtures::run_with_calls(), PLAIN));
    }

    #[test]
    fn nothing_wrong_is_one_line() {
        let mut run = fixtures::run(&[("main", 1)]);
        assert_eq!(render(&run, PLAIN), "", "nothing was looked for");
        let turns = Summary { count: 1234, max_ns: 9_000_000, ..Summary::default() };
        let loops = vec![EventLoop { turns, name: "quiet".into(), ..EventLoop::default() }];
        run.blocking = Some(Blocking { loops, ..Blocking::default() });
        run.memory = Some(crate::model::memory::Memory::default());
        run.calls = Some(crate::model::syscall::Calls::default());
        insta::assert_snapshot!(render(&run, PLAIN));
    }

    #[test]
    fn stacks_fit_a_terminal() {
        let text = render(&run_with_findings(), Style { width: Some(60), ..PLAIN });
        let findings = |line: &&str| !line.starts_with("CRITICAL") && !line.starts_with("WARNING");
        assert!(text.lines().filter(findings).all(|line| width(line) <= 60), "{text}");
    }

    #[test]
    fn the_programs_own_function_is_told_however_deep_its_runtime() {
        let function = |name: String| Function { name, ..Function::default() };
        let frame = |(address, (module, name)): (usize, (usize, String))| NamedFrame {
            module,
            address: address as u64,
            functions: vec![function(name)],
        };
        let runtime = (0..7).map(|i| (0, format!("runtime{i}")));
        let stack =
            runtime.chain([(1, "JS:~mine app.js:1".to_owned()), (1, "JS:~caller app.js:9".to_owned())]);
        let file = Module { path: "/usr/bin/node".into(), ..Module::special(ModuleKind::File) };
        let names = Names {
            modules: vec![file, Module::special(ModuleKind::Jit(7))],
            frames: stack.enumerate().map(frame).collect(),
            ..Names::default()
        };
        let told = |first: usize| told(&names, &(first..9).collect::<Vec<_>>(), FRAMES.0);
        assert_eq!(told(0)[FRAMES.0 - 1..], ["runtime4", "… JS:~mine app.js:1"]);
        assert_eq!(told(6), ["runtime6", "JS:~mine app.js:1", "JS:~caller app.js:9"]);
    }

    #[test]
    fn long_durations_have_two_units() {
        let text = [0, 999_000_000, 59_900_000_000, 61_000_000_000, 3_600_000_000_000, 200_000_000_000_000]
            .map(long);
        assert_eq!(text, ["0 ns", "999 ms", "59 s", "1 m 1 s", "1 h", "2 d 7 h"]);
        assert_eq!(long(u64::MAX), "213,503 d");
    }
}
