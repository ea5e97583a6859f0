//! The report's part about system calls: which, how long, what they waited for, and which were slow.

use std::{collections::BTreeMap, io::Write};

use anyhow::Result;

use super::text::{Style, innermost, line};
use crate::model::{
    names::short,
    report::Run,
    stack::ThreadKey,
    syscall::{CallCount, Calls, Interval, SlowCall},
    units::{bytes, count, per_second, percent, thousands, time},
};

/// Processes listed (threads where they are kept apart), and system calls of each.
const TABLES: (usize, usize) = (5, 15);
/// Kinds of waits, objects and slow calls listed.
const LISTED: usize = 10;
/// Parts of the run whose slowest call is listed.
const PARTS: usize = 8;
/// Functions shown of a stack.
const FRAMES: usize = 4;

/// Writes the part; nothing if system calls were not watched.
pub fn write(run: &Run, style: &Style, out: &mut dyn Write) -> Result<()> {
    let Some(calls) = &run.calls else { return Ok(()) };
    if calls.windows > 0 {
        let text = format!(
            "\nsystem calls were watched for {} in {}, for their cost: counts are those of that time",
            time(calls.watched_ns),
            count(calls.windows + 1, "window"),
        );
        line(&text, style, out)?;
    }
    counts(run, calls, style, out)?;
    waits(run, calls, style, out)?;
    objects(calls, style, out)?;
    slow(run, calls, style, out)
}

/// What happened in an interval of the live view, in a line.
pub fn interval(of: &Interval, seconds: f64) -> String {
    let failed = match of.failed {
        0 => String::new(),
        failed => format!(", {:.0} % failed", percent(failed, of.calls)),
    };
    let slowest = of.slowest.as_ref().map_or_else(String::new, |slowest| {
        format!(", slowest {}({}) {}", slowest.syscall, slowest.arguments, time(slowest.duration_ns))
    });
    format!("{} system calls a second{failed}{slowest}", per_second(of.calls as f64 / seconds.max(1e-9)))
}

fn counts(run: &Run, calls: &Calls, style: &Style, out: &mut dyn Write) -> Result<()> {
    let seconds = run.cpu.accounts.duration_ns as f64 / 1e9;
    let mut groups: BTreeMap<ThreadKey, Vec<&CallCount>> = BTreeMap::new();
    for count in &calls.calls {
        groups.entry(count.thread).or_default().push(count);
    }
    let sum = |group: &[&CallCount]| group.iter().map(|count| count.lengths.sum_ns).sum::<u64>();
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(thread, group)| (std::cmp::Reverse(sum(group)), *thread));
    for (thread, group) in groups.iter().take(TABLES.0) {
        let (total, number) = (sum(group), group.iter().map(|count| count.lengths.count).sum());
        let Some(first) = group.first() else { continue };
        let who = match (thread.pid, thread.tid) {
            (0, _) => first.process.clone(),
            (pid, 0) => format!("{} (pid {pid})", first.process),
            (pid, tid) => format!("{} (pid {pid}) / {} (tid {tid})", first.process, first.thread_name),
        };
        let title = format!("system calls of {who}: {}, {}", self::count(number, "call"), time(total));
        writeln!(out, "\n{}", style.bold(&title))?;
        let head = format!(
            "{:>11}  {:>9}  {:>7}  {:>6}  {:>6}  {:>6}  {:>8}  {:>8}  {:>8}  {:>8}  {:>8}  system call: errors",
            "calls", "calls/s", "time", "% wall", "% cpu", "% wait", "p50", "p90", "p99", "p99.9", "max"
        );
        writeln!(out, "{}", style.dim(&head))?;
        for of in group.iter().take(TABLES.1) {
            row(of, seconds, run.cpu.accounts.duration_ns, style, out)?;
        }
        if group.len() > TABLES.1 {
            let rest = &group[TABLES.1..];
            let number: u64 = rest.iter().map(|count| count.lengths.count).sum();
            writeln!(out, "{:>11}  in {} more system calls (JSON holds all)", thousands(number), rest.len())?;
        }
    }
    if groups.len() > TABLES.0 {
        writeln!(out, "{} more (JSON holds all)", thousands((groups.len() - TABLES.0) as u64))?;
    }
    Ok(())
}

fn row(of: &CallCount, seconds: f64, wall_ns: u64, style: &Style, out: &mut dyn Write) -> Result<()> {
    let lengths = &of.lengths;
    let [p50, p90, p99, p999, max] =
        [lengths.p50_ns, lengths.p90_ns, lengths.p99_ns, lengths.p999_ns, lengths.max_ns].map(time);
    let mut notes: Vec<String> =
        of.errors.iter().take(3).map(|(name, n)| format!("{name} {}", thousands(*n))).collect();
    if of.errors.len() > 3 {
        notes.push("…".to_owned());
    }
    if of.unfinished > 0 {
        notes.push(format!("{} never returned", thousands(of.unfinished)));
    }
    let notes = if notes.is_empty() { String::new() } else { format!(": {}", notes.join(", ")) };
    let text = format!(
        "{:>11}  {:>9}  {:>7}  {:>6.1}  {:>6.1}  {:>6.1}  {p50:>8}  {p90:>8}  {p99:>8}  {p999:>8}  {max:>8}  {}{notes}",
        thousands(lengths.count),
        per_second(lengths.count as f64 / seconds.max(1e-9)),
        time(lengths.sum_ns),
        percent(lengths.sum_ns, wall_ns),
        percent(of.on_cpu_ns(), lengths.sum_ns),
        percent(of.blocked_ns, lengths.sum_ns),
        of.syscall,
    );
    line(&text, style, out)
}

fn waits(run: &Run, calls: &Calls, style: &Style, out: &mut dyn Write) -> Result<()> {
    if calls.waits.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{}", style.bold("what system calls waited for (blocked, or longer than 10 us)"))?;
    let head = format!("{:>9}  {:>8}  {:>8}  {:>8}  for, by, most of it at", "waits", "time", "p99", "max");
    writeln!(out, "{}", style.dim(&head))?;
    for of in calls.waits.iter().take(LISTED) {
        let functions = of.stack.map_or_else(Vec::new, |stack| innermost(run.names(), stack));
        let functions: Vec<_> = functions.iter().take(FRAMES).map(|function| short(&function.name)).collect();
        let text = format!(
            "{:>9}  {:>8}  {:>8}  {:>8}  {}{}{}, {} (pid {}){}{}",
            thousands(of.lengths.count),
            time(of.lengths.sum_ns),
            time(of.lengths.p99_ns),
            time(of.lengths.max_ns),
            of.kind.words(),
            if of.peer.is_empty() { "" } else { " " },
            of.peer,
            of.process,
            of.pid,
            if functions.is_empty() { "" } else { ": " },
            functions.join(" < "),
        );
        line(&text, style, out)?;
    }
    more(calls.waits.len(), out)
}

fn objects(calls: &Calls, style: &Style, out: &mut dyn Write) -> Result<()> {
    if calls.objects.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{}", style.bold("what was read and written"))?;
    let head = format!(
        "{:>9}  {:>9}  {:>8}  {:>8}  {:>8}  {:>11}  what, by",
        "calls", "bytes", "median", "time", "blocked", "round trips"
    );
    writeln!(out, "{}", style.dim(&head))?;
    for of in calls.objects.iter().take(LISTED) {
        let text = format!(
            "{:>9}  {:>9}  {:>8}  {:>8}  {:>8}  {:>11}  {}, {} (pid {})",
            thousands(of.calls),
            bytes(of.bytes as f64),
            bytes(of.median_bytes as f64),
            time(of.ns),
            time(of.blocked_ns),
            thousands(of.round_trips),
            of.object,
            of.process,
            of.pid,
        );
        line(&text, style, out)?;
    }
    more(calls.objects.len(), out)
}

fn slow(run: &Run, calls: &Calls, style: &Style, out: &mut dyn Write) -> Result<()> {
    if calls.slow.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{}", style.bold("slowest system calls, without idle waits"))?;
    for of in calls.slow.iter().take(LISTED) {
        slow_call(run, of, "", style, out)?;
    }
    more(calls.slow.len(), out)?;
    slow_by_part(run, calls, style, out)
}

/// What was slowest when none of those above returned.
fn slow_by_part(run: &Run, calls: &Calls, style: &Style, out: &mut dyn Write) -> Result<()> {
    let of = calls.slow_by_part.coarser(PARTS);
    let told = |call: &SlowCall| calls.slow.iter().take(LISTED).any(|other| other == call);
    let others: Vec<(u64, &SlowCall)> = (0..)
        .zip(&of.parts)
        .filter_map(|(i, part)| Some((i, part.first()?)))
        .filter(|(_, call)| !told(call))
        .collect();
    if others.is_empty() {
        return Ok(());
    }
    let title = format!("slowest in other parts of the run, of {} each", time(of.length_ns));
    writeln!(out, "\n{}", style.bold(&title))?;
    for (i, call) in others {
        slow_call(run, call, &format!("from {:>6}  ", time(i.saturating_mul(of.length_ns))), style, out)?;
    }
    Ok(())
}

fn slow_call(run: &Run, of: &SlowCall, when: &str, style: &Style, out: &mut dyn Write) -> Result<()> {
    let text = format!(
        "{when}{:>8}  {:>8} blocked  {}({}) = {}, {} (tid {})",
        time(of.duration_ns),
        time(of.blocked_ns),
        of.syscall,
        of.arguments,
        of.result,
        of.process,
        of.thread.tid,
    );
    line(&text, style, out)?;
    let functions = of.stack.map_or_else(Vec::new, |stack| innermost(run.names(), stack));
    if !functions.is_empty() {
        let functions: Vec<_> = functions.iter().take(FRAMES).map(|function| short(&function.name)).collect();
        line(&format!("            {}", functions.join(" < ")), style, out)?;
    }
    Ok(())
}

fn more(all: usize, out: &mut dyn Write) -> Result<()> {
    if all > LISTED {
        writeln!(out, "{} more (JSON holds all)", thousands((all - LISTED) as u64))?;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod fixtures {
    //! System calls made by hand.

    use super::*;
    use crate::{
        detect::fixtures::name_stacks,
        model::{
            distribution::Summary,
            stack::StackId,
            syscall::{Chatty, ErrorStorm, KindWaits, ObjectIo, SlowByPart, WaitKind, fixtures::slow_call},
        },
    };

    const MS: u64 = 1_000_000;

    /// A process that asks a database one question after the other.
    pub fn run_with_calls() -> Run {
        let mut run = crate::model::report::fixtures::run(&[("main;query", 10)]);
        name_stacks(&mut run, &["main;handle;query;write", "main;save;fsync;k:jbd2_log_wait_commit"]);
        let thread = ThreadKey { pid: 7, tid: 8 };
        let lengths = |count, sum_ns, max_ns| Summary {
            count,
            sum_ns,
            p50_ns: 20_000,
            p90_ns: 90_000,
            p95_ns: 400_000,
            p99_ns: MS,
            p999_ns: 2 * MS,
            max_ns,
        };
        let of = |syscall: &str, count, sum_ns, errors: &[(&str, u64)]| CallCount {
            thread: ThreadKey { pid: 7, tid: 0 },
            process: "app".into(),
            syscall: syscall.into(),
            lengths: lengths(count, sum_ns, sum_ns / 10),
            blocked_ns: sum_ns / 2,
            run_queue_ns: sum_ns / 10,
            errors: errors.iter().map(|&(name, n)| (name.to_owned(), n)).collect(),
            ..CallCount::default()
        };
        let mut exit = of("exit_group", 0, 0, &[]);
        exit.unfinished = 1;
        let mut fsync = slow_call(35 * MS, 30 * MS);
        (fsync.run_queue_ns, fsync.stack) = (MS / 2, Some(StackId(1)));
        let mut slow_by_part = SlowByPart::new(0);
        slow_by_part.add(fsync.clone());
        slow_by_part.add(slow_call(34 * MS, 7 * MS));
        slow_by_part.add(slow_call(11_500 * MS, 2 * MS));
        run.calls = Some(Calls {
            calls: vec![
                of("read", 12_000, 700 * MS, &[("EAGAIN", 3)]),
                of(
                    "openat",
                    4_000,
                    9 * MS,
                    &[("EMFILE", 3_000), ("ENOENT", 70), ("EACCES", 2), ("EPERM", 1)],
                ),
                exit,
            ],
            waits: vec![KindWaits {
                pid: 7,
                process: "app".into(),
                kind: WaitKind::NetRead,
                peer: "10.0.0.2:5432".into(),
                lengths: lengths(12, 80 * MS, 30 * MS),
                stack: Some(StackId(1)),
            }],
            objects: vec![ObjectIo {
                pid: 7,
                process: "app".into(),
                object: "tcp 10.0.0.1:4711 -> 10.0.0.2:5432".into(),
                descriptors: 1,
                calls: 20_000,
                bytes: 12_345_678,
                ns: 600 * MS,
                blocked_ns: 500 * MS,
                round_trips: 10_000,
                round_trip_ns: 650 * MS,
                median_bytes: 64,
            }],
            slow: vec![fsync.clone()],
            slow_by_part,
            chatty: vec![Chatty {
                thread,
                process: "app".into(),
                object: "tcp 10.0.0.1:4711 -> 10.0.0.2:5432".into(),
                round_trips: true,
                count: 10_000,
                span_ns: 900 * MS,
                total_ns: 650 * MS,
                median_bytes: 64,
                requests: 0,
                stack: Some(StackId(0)),
            }],
            storms: vec![ErrorStorm {
                pid: 7,
                process: "app".into(),
                syscall: "openat".into(),
                calls: 4_000,
                failed: 3_003,
                errno: "EMFILE".into(),
                lasted_ns: 1_000 * MS,
            }],
            watched_ns: 0,
            windows: 0,
            objects_unlisted: 0,
        });
        run
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_calls_are_told() {
        let style = Style { colour: false, width: None, threads: false, top: 9 };
        let mut text = Vec::new();
        write(&fixtures::run_with_calls(), &style, &mut text).unwrap();
        insta::assert_snapshot!(String::from_utf8(text).unwrap());
    }

    #[test]
    fn intervals_fit_in_a_line() {
        let slowest = fixtures::run_with_calls().calls.unwrap().slow.pop();
        let of = Interval { calls: 3000, failed: 30, slowest };
        assert_eq!(
            interval(&of, 2.0),
            "1,500 system calls a second, 1 % failed, slowest fsync(fd 5 /data/x) 30 ms"
        );
        assert_eq!(interval(&Interval::default(), 1.0), "0.0 system calls a second");
    }
}
