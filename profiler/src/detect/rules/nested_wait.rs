//! An event loop waits for something in the middle of an iteration: spawnSync, execSync, a nested loop.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::{
    detect::{
        rule::{Needs, Param, Rule, Unit, Values},
        words::{SHOWN, at, own_within},
    },
    model::{
        cause::WaitCause,
        finding::{Bottleneck, Cost, Evidence, Finding, ProcessName, Severity},
        report::{Names, ProfileStack, Run},
        stack::ThreadKey,
    },
};

const SHARE: Param = Param {
    name: "share",
    unit: Unit::Percent,
    default: 1.0,
    help: "Wall time that the loop's thread waits inside its own callbacks",
    flag: None,
};

/// So much is critical, percent.
const CRITICAL: f64 = 10.0;
/// Functions that run event loops.
const LOOPS: [&str; 12] = [
    "uv_run",
    "uv__io_poll",
    "ev_run",
    "event_base_loop",
    "g_main_loop_run",
    "g_main_context_iterate",
    "QEventLoop::exec",
    "aeProcessEvents",
    "sd_event_run",
    "_run_once",
    "run_until_complete",
    "ngx_process_events_and_timers",
];
/// Functions of a loop's own wait, counted from the wait, by which a nested loop is known.
const LOOP: usize = 8;

/// The rule.
pub static RULE: Rule = Rule {
    name: "nested-wait",
    summary: "an event loop waits inside one of its own callbacks",
    needs: &[Needs::Waits],
    params: &[SHARE],
    check,
    doc: "\
Some calls run an event loop of their own until what they wait for has happened: `spawnSync` and `execSync` of Node.js, nested
main loops of GUI toolkits, `run_until_complete` in a callback. To the kernel the thread waits in epoll as ever, and looks idle;
but its own loop does not turn, and nobody is served. Such waits are known by their stacks: the functions of the loop's wait
are in them twice.

Use the asynchronous form (`spawn`, `execFile`, `await`), or do it in a worker thread.",
};

fn check(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let (Some(blocking), Some(off_cpu)) = (&run.blocking, &run.off_cpu) else { return Vec::new() };
    let loops: BTreeSet<ThreadKey> = blocking.loops.iter().map(|of| of.thread).collect();
    // By thread and the callback's function: time, heaviest stack.
    let mut nested: BTreeMap<(ThreadKey, String), (u64, &ProfileStack)> = BTreeMap::new();
    for stack in off_cpu.stacks.iter().filter(|of| waits(of.cause) && loops.contains(&of.thread)) {
        let Some(callback) = callback(run.names(), &stack.frames) else { continue };
        let of = nested.entry((stack.thread, callback)).or_insert((0, stack));
        of.0 += stack.weight;
        if stack.weight > of.1.weight {
            of.1 = stack;
        }
    }
    let wall_ns = run.cpu.accounts.duration_ns.max(1) as f64;
    let finding = |((thread, callback), (ns, stack)): ((ThreadKey, String), (u64, &ProfileStack))| {
        let share = 100.0 * ns as f64 / wall_ns;
        (share >= values.get(&SHARE)).then(|| Finding {
            rule: RULE.name,
            severity: if share >= CRITICAL { Severity::Critical } else { Severity::Warning },
            bottleneck: Bottleneck::Process,
            process: ProcessName { pid: thread.pid, name: stack.process.to_string() },
            title: format!(
                "{share:.0} % of the time the event loop of {} (pid {}) waits inside a callback, in {callback}",
                stack.process, thread.pid
            ),
            subject: callback,
            advice: "use the asynchronous form of the call (spawn, execFile, await), or a worker thread".to_owned(),
            cost: Cost { ns, share_of_wall: (share / 100.0).min(1.0), ..Cost::default() },
            evidence: vec![Evidence { label: "", frames: stack.frames.to_vec(), shown: SHOWN }],
            details: BTreeMap::from([("tid", json!(thread.tid)), ("waited_ns", json!(ns))]),
        })
    };
    nested.into_iter().filter_map(finding).collect()
}

/// Whether this can be a wait in epoll: idle, or of a kind that nothing else is known of where the scheduler probe saw that
/// it was made in the middle of an iteration.
fn waits(cause: Option<WaitCause>) -> bool {
    matches!(cause, Some(WaitCause::Poll | WaitCause::Other))
}

/// The function that runs a loop inside another, if this is the stack of one: the caller of the inner loop. Only functions
/// that are known to run loops count: others of one name, `poll` or `park`, need not be one function.
pub fn callback(names: &Names, frames: &[usize]) -> Option<String> {
    let user =
        names.functions(frames).rev().filter(|(_, frame, inlined)| !inlined && !names.is_kernel(frame));
    let path: Vec<_> = user.collect();
    let same = |a: usize, b: usize| path[a].0.name == path[b].0.name && path[a].1.module == path[b].1.module;
    let runs_loop = |i: usize| LOOPS.iter().any(|name| path[i].0.name.contains(name));
    let inner = path.len().saturating_sub(LOOP);
    (inner.max(1)..path.len()).filter(|i| runs_loop(*i)).find_map(|i| {
        let outer = (0..i).rev().find(|&outer| same(outer, i))?;
        // A function that calls itself directly is recursion, not a loop in a callback.
        (i - outer > 2).then(|| {
            let own = own_within(names, frames, depth_of(names, frames, i));
            at(own.unwrap_or(path[i - 1].0))
        })
    })
}

/// Functions outside of the one that is so many frames from the outermost, inlined ones included.
fn depth_of(names: &Names, frames: &[usize], position: usize) -> usize {
    let user = names.functions(frames).rev().filter(|(_, frame, _)| !names.is_kernel(frame));
    let mut physical = 0;
    user.take_while(|(.., inlined)| {
        physical += usize::from(!inlined);
        physical <= position
    })
    .count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::rule::Overrides,
        model::{
            kind::OFF_CPU,
            report::fixtures,
            wait::{Blocking, EventLoop},
        },
    };

    /// A loop whose wait is `inner` for a part of the time, ns of one second.
    fn found(inner: &str, ns: u64, cause: WaitCause) -> Vec<Finding> {
        let stacks = [("main;Start;uv_run;uv__io_poll;epoll_pwait", 1_000_000_000 - ns), (inner, ns)];
        let mut run = fixtures::run(&stacks);
        let mut off_cpu = run.cpu.clone();
        off_cpu.kind = OFF_CPU;
        off_cpu.stacks.iter_mut().for_each(|stack| stack.cause = Some(cause));
        let thread = off_cpu.stacks[0].thread;
        run.off_cpu = Some(off_cpu);
        run.blocking = Some(Blocking {
            loops: vec![EventLoop { thread, ..EventLoop::default() }],
            ..Blocking::default()
        });
        check(&run, &Overrides::default().of(&RULE))
    }

    #[test]
    fn a_loop_in_a_callback_is_no_idle_wait() {
        let sync = "main;Start;uv_run;uv__io_poll;onRequest;spawnSync;SyncRun;uv_run;uv__io_poll;epoll_pwait";
        for cause in [WaitCause::Poll, WaitCause::Other] {
            assert_eq!(found(sync, 300_000_000, cause).len(), 1);
        }
        assert!(found(sync, 300_000_000, WaitCause::Disk).is_empty(), "another rule's");
        let found = |inner: &str, ns| found(inner, ns, WaitCause::Poll);
        let found_sync = found(sync, 300_000_000);
        assert_eq!(found_sync[0].severity, Severity::Critical);
        assert!(
            found_sync[0].title.contains("30 % of the time") && found_sync[0].subject.starts_with("SyncRun"),
            "{found_sync:?}"
        );
        assert!(found(sync, 1_000_000).is_empty(), "a thousandth");
        assert!(found("main;Start;uv_run;uv__io_poll;epoll_pwait2", 300_000_000).is_empty(), "its own wait");
        let parks = "main;run;park;park_driver;turn;park;poll;epoll_wait";
        assert!(found(parks, 300_000_000).is_empty(), "functions of one name");
    }
}
