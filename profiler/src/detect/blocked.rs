//! Time that threads of a process are blocked for one reason, however short each block is: by thread, and by the place in the
//! program.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    detect::{
        crews::{Crew, crews, short_lived},
        words::{SHOWN, at, by_function, place},
    },
    model::{
        cause::WaitCause,
        finding::{Bottleneck, Cost, Evidence, Finding, ProcessName, Severity},
        report::{ProfileStack, Run},
        units::time,
        wait::ThreadTime,
    },
};

/// What the threads of one process wait for.
pub struct Blocked<'a> {
    /// Who waits for the largest part of its time.
    pub worst: Crew,
    /// That part, from 0 to 1.
    pub share: f64,
    /// Of all threads, ns.
    pub total_ns: u64,
    /// Threads that wait for at least half as large a part as the worst.
    pub alike: usize,
    /// The program's function that waits most; empty where that is not known.
    pub function: String,
    /// The same with its place in the sources.
    pub place: String,
    /// The heaviest stack there.
    pub stack: Option<&'a ProfileStack>,
    /// Part of the time whose place is known, from 0 to 1: where threads wait often, few of their stacks are taken.
    pub known: f64,
}

/// By process, those that wait at all.
pub fn blocked<'a>(run: &'a Run, is: impl Fn(WaitCause) -> bool) -> Vec<Blocked<'a>> {
    let wait_ns =
        |of: &ThreadTime| of.blocked.iter().filter(|(cause, _)| is(*cause)).map(|(_, ns)| ns).sum::<u64>();
    let mut processes: BTreeMap<u32, Vec<Crew>> = BTreeMap::new();
    for crew in crews(run) {
        if wait_ns(&crew.time) > 0 {
            processes.entry(crew.time.thread.pid).or_default().push(crew);
        }
    }
    let found = processes.into_iter().filter_map(|(pid, crews)| {
        let share = |of: &Crew| of.share(wait_ns(&of.time));
        let worst = crews.iter().max_by(|a, b| share(a).total_cmp(&share(b)))?;
        let alike = crews.iter().filter(|of| share(of) * 2.0 >= share(worst));
        let (stack, known) = heaviest(run, pid, &is);
        let function = stack.and_then(|stack| place(run.names(), &stack.frames));
        Some(Blocked {
            share: share(worst),
            total_ns: crews.iter().map(|of| wait_ns(&of.time)).sum(),
            alike: alike.map(Crew::number).sum(),
            worst: worst.clone(),
            function: function.map_or_else(String::new, |function| function.name.clone()),
            place: function.map(at).unwrap_or_default(),
            stack,
            known,
        })
    });
    found.collect()
}

/// A thread that waits for so much of its time is critical.
const CRITICAL: f64 = 0.6;
/// Where the place of so much is known, the largest known place is the largest.
const MOST: f64 = 0.5;

impl Blocked<'_> {
    /// Where it is waited, as words that follow a sentence: `place`, or nothing if that is empty.
    pub fn mostly_in(&self, place: &str) -> String {
        match (place, self.known) {
            ("", _) => String::new(),
            (place, MOST..) => format!(", most of it in {place}"),
            (place, known) => {
                format!(", most of the {:.0} % whose stacks were taken in {place}", 100.0 * known)
            }
        }
    }

    /// What a rule says of it: `what` is waited for, at `place`, as words that follow the sentence.
    pub fn finding(&self, rule: &'static str, what: &str, place: &str) -> Finding {
        let thread = &self.worst.time;
        let pid = thread.thread.pid;
        let who = match (self.alike, self.worst.at_once) {
            (0 | 1, None) => format!("thread {}", thread.name),
            (n, None) => format!("each of {n} threads like {}", thread.name),
            (n, Some(_)) => format!("each of {}", short_lived(n)),
        };
        Finding {
            rule,
            severity: if self.share >= CRITICAL { Severity::Critical } else { Severity::Warning },
            bottleneck: Bottleneck::Unknown,
            process: ProcessName { pid, name: thread.process.clone() },
            subject: self.function.clone(),
            title: format!(
                "{:.0} % of the time {who} of {} (pid {pid}) waits for {what}, {} in all{place}",
                100.0 * self.share,
                thread.process,
                time(self.total_ns),
            ),
            advice: String::new(),
            cost: Cost { ns: self.total_ns, share_of_wall: self.share.min(1.0), ..Cost::default() },
            evidence: self
                .stack
                .map(|stack| Evidence { label: "waiting at", frames: stack.frames.to_vec(), shown: SHOWN })
                .into_iter()
                .collect(),
            details: BTreeMap::from([
                ("tid", json!(thread.thread.tid)),
                ("threads", json!(self.alike)),
                ("blocked_ns", json!(self.total_ns)),
            ]),
        }
    }
}

/// The heaviest stack of the place in the program where most of a process's time is waited, of the known ones; and how much
/// of it is known, from 0 to 1.
pub fn heaviest<'a>(
    run: &'a Run,
    pid: u32,
    is: &impl Fn(WaitCause) -> bool,
) -> (Option<&'a ProfileStack>, f64) {
    let stacks = run.off_cpu.iter().flat_map(|profile| &profile.stacks);
    let waits = stacks.filter(|of| of.thread.pid == pid && of.cause.is_some_and(is));
    let found = by_function(run.names(), waits, |stack| place(run.names(), &stack.frames));
    (found.most.map(|(.., stack)| stack), found.known as f64 / found.all.max(1) as f64)
}

#[cfg(test)]
pub(crate) mod fixtures {
    //! Runs whose threads wait.

    use super::*;
    use crate::model::{kind::OFF_CPU, report::fixtures, stack::ThreadKey, wait::Blocking};

    /// A run of 10 s whose threads, 10 and up, wait for so long, ns, at the stack given as folded text.
    pub fn run(stack: &str, cause: WaitCause, waits: &[u64]) -> Run {
        let stacks: Vec<(&str, u64)> = waits.iter().map(|&ns| (stack, ns)).collect();
        run_at(&stacks, cause)
    }

    /// The same, each at a stack of its own.
    pub fn run_at(stacks: &[(&str, u64)], cause: WaitCause) -> Run {
        let mut run = fixtures::run(&[]);
        run.cpu.accounts.duration_ns = 10_000_000_000;
        let threads = (10..).zip(stacks).map(|(tid, &(_, ns))| ThreadTime {
            thread: ThreadKey { pid: 7, tid },
            process: "app".into(),
            name: "worker".into(),
            wall_ns: 10_000_000_000,
            blocked: vec![(cause, ns), (WaitCause::Park, 10_000_000_000 - ns)],
            ..ThreadTime::default()
        });
        run.blocking = Some(Blocking { threads: threads.collect(), ..Blocking::default() });
        let mut off_cpu = fixtures::profile(stacks);
        off_cpu.kind = OFF_CPU;
        for (tid, of) in (10..).zip(&mut off_cpu.stacks) {
            of.cause = Some(cause);
            of.thread = ThreadKey { pid: 7, tid };
        }
        run.cpu.names = std::rc::Rc::clone(&off_cpu.names);
        run.off_cpu = Some(off_cpu);
        run
    }
}
