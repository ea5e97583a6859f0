//! Threads wait for locks for much of their time.

use std::{collections::BTreeMap, ops::RangeInclusive};

use crate::{
    detect::{
        blocked::{Blocked, blocked},
        causes,
        rule::{Needs, Param, Rule, Unit, Values},
        words::{SHOWN, at, hottest, path},
    },
    model::{
        cause::WaitCause,
        finding::{Bottleneck, Evidence, Finding, Severity},
        report::{ProfileStack, Run},
    },
};

const SHARE: Param = Param {
    name: "share",
    unit: Unit::Percent,
    default: 20.0,
    help: "Wall time that a thread waits for locks",
    flag: None,
};

/// What one thread at a time does, for most of the run, of its time.
const ONE_AT_A_TIME: RangeInclusive<f64> = 0.5..=1.1;

/// The rule.
pub static RULE: Rule = Rule {
    name: "lock-contention",
    summary: "threads wait for locks for much of their time",
    needs: &[Needs::Waits],
    params: &[SHARE],
    check,
    doc: "\
The time that a thread is blocked in a lock, added up, however short each wait is. Locks are futexes whose value says so, locks of
files (`flock`, `fcntl`), and what functions on the stack say: mutexes of languages and libraries, the GIL of CPython, monitors of a JVM, locks of
PostgreSQL. A condition variable is no lock: who waits for one has nothing to do. The place is the program's own function that
waits most.

Hold the lock for a shorter time (no I/O, no large copies under it), divide it, or use fewer threads. Against the GIL only
processes help, or work that releases it. `--wakers` names who ends each wait, which is who held the lock.",
};

fn check(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let found = blocked(run, |cause| cause == WaitCause::Lock);
    let enough = |of: &&Blocked<'_>| of.share * 100.0 >= values.get(&SHARE);
    // Who waits for ever is the other rule's.
    let stuck = |of: &&Blocked<'_>| {
        let mut deadlocks = run.blocking.iter().flat_map(|blocking| &blocking.deadlocks);
        deadlocks.any(|deadlock| deadlock.threads.iter().any(|thread| thread.thread == of.worst.time.thread))
    };
    found.iter().filter(enough).filter(|of| !stuck(of)).map(|of| finding(run, of)).collect()
}

fn finding(run: &Run, of: &Blocked<'_>) -> Finding {
    let functions: Vec<&str> = of
        .stack
        .map(|stack| path(run.names(), &stack.frames).into_iter().map(|of| of.name.as_str()).collect())
        .unwrap_or_default();
    let has = |word: &str| functions.iter().any(|name| name.contains(word));
    if of.stack.is_some_and(|stack| causes::waits_for_gil(run.names(), &stack.frames)) {
        return interpreter(run, of);
    }
    // A thread of the pool that waits for, or takes, its next job.
    let of_queue = functions.windows(2).any(|pair| pair[0] == "worker" && pair[1].starts_with("uv_"));
    let (lock, advice) = if has("ProcSleep") {
        (
            "a lock of the database (a row, a table)",
            "find the transaction that holds it: pg_blocking_pids(), pg_locks",
        )
    } else if has("LWLock") {
        ("an internal lock of the database", "see wait_event in pg_stat_activity")
    } else if has("uv__work_submit") || has("uv_queue_work") || of_queue {
        // Its owner is libuv, which hands over jobs there.
        let advice = "give libuv's pool fewer and larger jobs: each file operation is one";
        let place = of.mostly_in(&of.place);
        let finding = of.finding(RULE.name, "the lock of libuv's queue of jobs", &place);
        return Finding {
            severity: Severity::Info,
            bottleneck: Bottleneck::Lock,
            advice: advice.to_owned(),
            ..finding
        };
    } else {
        ("a lock", "hold it for a shorter time, or divide it; --wakers names who held it")
    };
    let mut place = of.mostly_in(&of.place);
    let mut advice = advice;
    if let Some((what, better)) = meanwhile(run, of) {
        place.push_str(&what);
        advice = better;
    }
    Finding { bottleneck: Bottleneck::Lock, advice: advice.to_owned(), ..of.finding(RULE.name, lock, &place) }
}

/// What the one does that has the lock, where one thread at a time, and for most of the run, does something else in the function
/// that waits for it.
fn meanwhile(run: &Run, of: &Blocked<'_>) -> Option<(String, &'static str)> {
    if of.function.is_empty() {
        return None;
    }
    let (names, pid) = (run.names(), of.worst.time.thread.pid);
    let wall_ns = run.cpu.accounts.duration_ns.max(1) as f64;
    let is_there = |stack: &&ProfileStack| {
        stack.thread.pid == pid && path(names, &stack.frames).iter().any(|at| at.name == of.function)
    };
    let mut waits: BTreeMap<&str, u64> = BTreeMap::new();
    for stack in run.off_cpu.iter().flat_map(|profile| &profile.stacks).filter(is_there) {
        let cause = stack.cause.filter(|cause| *cause != WaitCause::Lock && *cause != WaitCause::Park);
        if let Some(cause) = cause {
            *waits.entry(cause.words()).or_default() += stack.weight;
        }
    }
    let on_cpu: u64 = run.cpu.stacks.iter().filter(is_there).map(|stack| stack.weight).sum();
    let (cause, waited_ns) = waits.into_iter().max_by_key(|(_, ns)| *ns).unwrap_or_default();
    let computed_ns = run.cpu.estimated_ns(on_cpu);
    let one = |ns: u64| ONE_AT_A_TIME.contains(&(ns as f64 / wall_ns));
    match () {
        () if one(waited_ns) && waited_ns >= computed_ns => Some((
            format!("; who has it waits there for {cause}"),
            "do not wait for that while holding the lock",
        )),
        () if one(computed_ns) => {
            Some(("; who has it computes there".to_owned(), "hold the lock for less work, or divide it"))
        }
        () => None,
    }
}

/// The lock that who computes in an interpreter has: where it is waited for tells nothing, who computes does.
fn interpreter(run: &Run, of: &Blocked<'_>) -> Finding {
    let pid = of.worst.time.thread.pid;
    let computes = hottest(run, |thread| thread.pid == pid);
    let holder = computes.map_or_else(String::new, |(function, share, _)| {
        format!("; {:.0} % of the CPU time is in {}", 100.0 * share, at(function))
    });
    let mut finding = of.finding(RULE.name, "the GIL, the interpreter's lock", &holder);
    if let Some((function, _, stack)) = computes {
        finding.subject.clone_from(&function.name);
        finding.evidence = vec![Evidence { label: "computing", frames: stack.frames.to_vec(), shown: SHOWN }];
    }
    let advice = "make that cheaper; use processes instead of threads, or calls that release the GIL";
    Finding { bottleneck: Bottleneck::Lock, advice: advice.to_owned(), ..finding }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::{blocked::fixtures::run, judge, rule::Overrides};

    #[test]
    fn what_is_done_under_the_lock_is_said() {
        let of = |ns: u64| {
            let mut run = run("clone;reserve;pthread_mutex_lock", WaitCause::Lock, &[8_000_000_000; 4]);
            let mut other =
                crate::detect::blocked::fixtures::run("clone;reserve;ask;recv", WaitCause::Network, &[ns]);
            let mut stack = other.off_cpu.take().unwrap().stacks.remove(0);
            // The same names, with the last one's place taken by another function.
            let off_cpu = run.off_cpu.as_mut().unwrap();
            stack.frames = off_cpu.stacks[0].frames.clone();
            off_cpu.stacks.push(stack);
            check(&run, &Overrides::default().of(&RULE)).remove(0).title
        };
        assert!(of(9_000_000_000).ends_with("; who has it waits there for network"), "{}", of(9_000_000_000));
        assert!(!of(3_000_000_000).contains("who has it") && !of(20_000_000_000).contains("who has it"));
    }

    #[test]
    fn the_queue_of_libuv_is_not_a_lock_of_the_program() {
        let of = |stack: &str| {
            let run = run(stack, WaitCause::Lock, &[4_000_000_000; 4]);
            let found = check(&run, &Overrides::default().of(&RULE)).remove(0);
            (found.severity, found.advice.contains("fewer and larger jobs"))
        };
        assert_eq!(of("clone;worker;uv_cond_wait;pthread_cond_wait;lll_lock_wait"), (Severity::Info, true));
        assert_eq!(of("clone;worker;save;uv_mutex_lock;lll_lock_wait"), (Severity::Warning, false));
    }

    #[test]
    fn short_waits_for_one_lock_add_up() {
        let of = |stack: &str, cause, waits: &[u64]| {
            let mut run = run(stack, cause, waits);
            judge(&mut run, &Overrides::default());
            run.findings.into_iter().map(|of| (of.rule, of.severity, of.title)).collect::<Vec<_>>()
        };
        let found = of("clone;transfer;pthread_mutex_lock", WaitCause::Lock, &[5_000_000_000, 4_000_000_000]);
        assert_eq!((found[0].0, found[0].1), (RULE.name, Severity::Warning));
        assert!(found[0].2.contains("each of 2 threads") && found[0].2.contains("transfer"), "{found:?}");
        let gil = of("clone;eval;take_gil;pthread_cond_timedwait", WaitCause::Park, &[7_000_000_000]);
        assert!(gil[0].2.contains("GIL") && gil[0].1 == Severity::Critical, "{gil:?}");
        let mut run = run("clone;eval;take_gil;pthread_cond_timedwait", WaitCause::Park, &[7_000_000_000]);
        // Another thread of the process computes where this one waits.
        let mut stack = run.off_cpu.as_ref().unwrap().stacks[0].clone();
        (stack.thread.tid, stack.weight, stack.cause) = (99, 400, None);
        (run.cpu.stacks, run.cpu.total) = (vec![stack], 400);
        judge(&mut run, &Overrides::default());
        let title = &run.findings[0].title;
        assert!(title.contains("; 100 % of the CPU time is in "), "{title}");
        assert!(of("clone;run;Condvar::wait", WaitCause::Lock, &[9_000_000_000]).is_empty(), "idle");
    }
}
