//! A worker of an asynchronous runtime blocks, or does not come back, inside a task.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    detect::{
        rule::{Needs, Param, Rule, Unit, Values},
        words::{SHOWN, at, bottleneck, own, path},
    },
    model::{
        cause::WaitCause,
        finding::{Bottleneck, Cost, Evidence, Finding, ProcessName, Severity},
        report::{Names, ProfileStack, Run},
        units::time,
    },
    symbolize::Function,
};

const SHARE: Param = Param {
    name: "share",
    unit: Unit::Percent,
    default: 2.0,
    help: "Wall time of one thread that workers spend blocked inside tasks",
    flag: None,
};
const TURN: Param = Param {
    name: "iteration",
    unit: Unit::Seconds,
    default: 0.1,
    help: "How long a worker stays away from its queue while a task runs",
    flag: None,
};

/// So much is critical, percent.
const CRITICAL: f64 = 20.0;
/// How functions are known: by a part of their name, or where that is short (inlined ones have no path) of their file's.
type Known = &'static [&'static str];

/// Functions that schedule tasks on a worker thread, and those that run one.
const WORKERS: Known = &[
    "scheduler::multi_thread::worker",
    "scheduler/multi_thread/worker.rs",
    "scheduler::current_thread",
    "scheduler/current_thread",
    "async_executor::",
    "/async-executor-",
];
const TASKS: Known = &["tokio::runtime::task::", "/runtime/task/", "async_task::", "/async-task-"];
/// What says that it may block.
const MAY_BLOCK: Known = &["block_in_place", "blocking::unblock"];

/// The rule.
pub static RULE: Rule = Rule {
    name: "worker-blocked",
    summary: "a task of an asynchronous runtime holds up its worker thread",
    needs: &[Needs::Waits],
    params: &[SHARE, TURN],
    check,
    doc: "\
Tasks of an asynchronous runtime (tokio, async-executor) share a few worker threads. A task that blocks its thread (a sleep of
the standard library, a synchronous client, a file) or computes for long without an `.await` holds up every other task that
this worker would run. Such blocks are known by their stacks: the function that polls a task is in them.

The second kind is reported where a worker that also waits for I/O neither did so nor parked for longer than the threshold, by the task
function with the most CPU samples.

Use the runtime's own form (`tokio::time::sleep`, an asynchronous client), or `spawn_blocking`.",
};

/// Time of one task function.
struct Task<'a> {
    function: &'a Function,
    ns: u64,
    heaviest: &'a ProfileStack,
}

fn check(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let mut found = blocked(run, values);
    found.extend(hot(run, values));
    found
}

/// Tasks by process and function, of one profile.
fn tasks<'a>(run: &'a Run, stacks: &'a [ProfileStack]) -> Vec<(u32, Task<'a>)> {
    let mut tasks: BTreeMap<(u32, &str, Option<&str>), Task<'_>> = BTreeMap::new();
    for stack in stacks {
        let Some(function) = task(run.names(), &stack.frames) else { continue };
        let key = (stack.thread.pid, &*function.name, function.file.as_deref());
        let of = tasks.entry(key).or_insert(Task { function, ns: 0, heaviest: stack });
        of.ns += stack.weight;
        if stack.weight > of.heaviest.weight {
            of.heaviest = stack;
        }
    }
    tasks.into_iter().map(|((pid, ..), task)| (pid, task)).collect()
}

/// The function of the task that a stack runs, if a worker runs one: the innermost of the program's own.
fn task<'a>(names: &'a Names, frames: &'a [usize]) -> Option<&'a Function> {
    let is = |words: Known, of: &Function| {
        let file = of.file.as_deref().unwrap_or_default();
        words.iter().any(|word| of.name.contains(word) || file.contains(word))
    };
    let path = path(names, frames);
    // The worker itself is a task of the pool of threads that it runs on.
    let worker = path.iter().rposition(|of| is(WORKERS, of))?;
    let inside = &path[worker + 1..];
    let poll = inside.iter().position(|of| is(TASKS, of))?;
    let inside = &inside[poll..];
    if inside.iter().any(|of| is(MAY_BLOCK, of)) {
        return None;
    }
    let foreign = |of: &Function| is(TASKS, of);
    let own = own(names, frames).filter(|own| inside.contains(own));
    own.or_else(|| inside.iter().find(|of| !foreign(of)).copied())
}

fn blocked(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let Some(off_cpu) = &run.off_cpu else { return Vec::new() };
    let wall_ns = run.cpu.accounts.duration_ns.max(1) as f64;
    let finding = |(pid, task): (u32, Task<'_>)| {
        let share = 100.0 * task.ns as f64 / wall_ns;
        let stack = task.heaviest;
        let cause = stack.cause?;
        (share >= values.get(&SHARE)).then(|| Finding {
            rule: RULE.name,
            // A lock that costs much is lock-contention's: it knows all who wait.
            severity: if share >= CRITICAL && cause != WaitCause::Lock {
                Severity::Critical
            } else {
                Severity::Warning
            },
            bottleneck: bottleneck(cause),
            process: ProcessName { pid, name: stack.process.to_string() },
            subject: task.function.name.clone(),
            title: format!(
                "tasks of {} (pid {pid}) block their worker threads for {} in {}: {}",
                stack.process,
                time(task.ns),
                at(task.function),
                cause.words()
            ),
            advice: match cause {
                WaitCause::Lock => "hold that lock for no slow work, or use the runtime's own (tokio::sync::Mutex)",
                _ => "use the runtime's own form (tokio::time::sleep, an asynchronous client), or spawn_blocking",
            }
            .to_owned(),
            cost: Cost { ns: task.ns, share_of_wall: (share / 100.0).min(1.0), ..Cost::default() },
            evidence: vec![Evidence { label: "", frames: stack.frames.to_vec(), shown: SHOWN }],
            details: BTreeMap::from([("cause", json!(cause.id())), ("blocked_ns", json!(task.ns))]),
        })
    };
    tasks(run, &off_cpu.stacks).into_iter().filter_map(finding).collect()
}

fn hot(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let loops = run.blocking.iter().flat_map(|blocking| &blocking.loops);
    let mut longest: BTreeMap<u32, u64> = BTreeMap::new();
    for of in loops {
        let ns = longest.entry(of.thread.pid).or_default();
        *ns = (*ns).max(of.longest_turn_ns);
    }
    let mut hottest: BTreeMap<u32, Task<'_>> = BTreeMap::new();
    for (pid, task) in tasks(run, &run.cpu.stacks) {
        if hottest.get(&pid).is_none_or(|known| known.ns < task.ns) {
            hottest.insert(pid, task);
        }
    }
    let finding = |(pid, task): (u32, Task<'_>)| {
        let longest_ns = longest.get(&pid).copied().unwrap_or(0);
        let ns = run.cpu.estimated_ns(task.ns);
        let share = 100.0 * ns as f64 / run.cpu.accounts.duration_ns.max(1) as f64;
        // A long turn in which nothing ran is reported above, as a block.
        (longest_ns >= values.ns(&TURN) && share >= values.get(&SHARE)).then(|| Finding {
            rule: RULE.name,
            severity: if share >= CRITICAL { Severity::Critical } else { Severity::Warning },
            bottleneck: Bottleneck::Cpu,
            process: ProcessName { pid, name: task.heaviest.process.to_string() },
            subject: task.function.name.clone(),
            title: format!(
                "a worker of {} (pid {pid}) did not come back to its queue for up to {}; most CPU time of tasks is in {}",
                task.heaviest.process,
                time(longest_ns),
                at(task.function)
            ),
            advice: "divide the work with .await points, or move it to spawn_blocking".to_owned(),
            cost: Cost { ns, share_of_wall: (share / 100.0).min(1.0), ..Cost::default() },
            evidence: vec![Evidence { label: "", frames: task.heaviest.frames.to_vec(), shown: SHOWN }],
            details: BTreeMap::from([("longest_turn_ns", json!(longest_ns)), ("cpu_ns", json!(ns))]),
        })
    };
    hottest.into_iter().filter_map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::rule::Overrides,
        model::{
            cause::WaitCause,
            distribution::Summary,
            kind::OFF_CPU,
            report::fixtures,
            stack::ThreadKey,
            wait::{Blocking, EventLoop},
        },
    };

    const WORKER: &str =
        "clone;tokio::runtime::scheduler::multi_thread::worker::run;tokio::runtime::task::raw::poll";

    fn found(run: &Run) -> Vec<(Bottleneck, String)> {
        let found = check(run, &Overrides::default().of(&RULE));
        found.into_iter().map(|finding| (finding.bottleneck, finding.subject)).collect()
    }

    #[test]
    fn a_sleep_in_a_task_is_no_idle_wait() {
        let of = |stack: &str| {
            let mut run = fixtures::run(&[(stack, 450_000_000)]);
            let mut off_cpu = run.cpu.clone();
            off_cpu.kind = OFF_CPU;
            off_cpu.stacks[0].cause = Some(WaitCause::Sleep);
            run.cpu.stacks.clear();
            run.off_cpu = Some(off_cpu);
            run.blocking = Some(Blocking::default());
            found(&run)
        };
        let sleep = format!("{WORKER};app::handler;std::thread::sleep;__clock_nanosleep");
        assert_eq!(of(&sleep), [(Bottleneck::Sleep, "app::handler".to_owned())]);
        assert_eq!(of("clone;tokio::runtime::scheduler::multi_thread::worker::run;park"), [], "its own wait");
        let blocking = "clone;tokio::runtime::blocking::pool::Inner::run;tokio::runtime::task::raw::poll";
        assert_eq!(
            of(&format!("{blocking};app::handler;std::thread::sleep;__clock_nanosleep")),
            [],
            "may block"
        );
    }

    #[test]
    fn a_worker_that_stays_away_is_told_with_what_ran() {
        let of = |longest_turn_ns| {
            let mut run = fixtures::run(&[(&format!("{WORKER};app::crunch"), 30)]);
            // As long as somebody else did the waiting.
            let iterations = Summary { count: 9, max_ns: 5_000_000_000, ..Summary::default() };
            let thread = ThreadKey { pid: 7, tid: 8 };
            run.blocking = Some(Blocking {
                loops: vec![EventLoop { thread, iterations, longest_turn_ns, ..EventLoop::default() }],
                ..Blocking::default()
            });
            found(&run)
        };
        assert_eq!(of(300_000_000), [(Bottleneck::Cpu, "app::crunch".to_owned())]);
        assert_eq!(of(20_000_000), []);
    }
}
