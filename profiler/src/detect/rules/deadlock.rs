//! Threads wait for each other's locks, for ever.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    detect::{
        rule::{Needs, Rule, Values},
        words::{Namer, at, evidence, place},
    },
    model::{
        finding::{Bottleneck, Cost, Finding, ProcessName, Severity},
        report::Run,
        wait::Deadlock,
    },
};

/// The rule.
pub static RULE: Rule = Rule {
    name: "deadlock",
    summary: "threads wait for each other's locks, for ever",
    needs: &[Needs::Waits],
    params: &[],
    check,
    doc: "\
Threads each of which waits for a lock that the next one holds, in a circle, or one that waits for a lock that it holds itself. Once
a second it is looked at who waits for which lock, and who holds it, as the lock itself says: mutexes of the C library do. A
circle that is the same in two looks is a deadlock.

Nothing but the end of the process frees these threads. Take the locks in the same order everywhere; the stacks say where each
thread waits, and the threads' other locks were taken further out on the same stacks.",
};

/// Threads told of one by one.
const TOLD: usize = 3;

fn check(run: &Run, _: &Values<'_>) -> Vec<Finding> {
    let deadlocks = run.blocking.iter().flat_map(|blocking| &blocking.deadlocks);
    deadlocks.map(|of| finding(run, of)).collect()
}

fn finding(run: &Run, of: &Deadlock) -> Finding {
    let names = run.names();
    let named = Namer::new(run.blocking.as_ref());
    let each = of.threads.iter().take(TOLD).map(|thread| {
        let place = thread.stack.and_then(|stack| place(names, names.stack(stack)));
        let place = place.map_or_else(String::new, |place| format!(" in {}", at(place)));
        format!("{}{place}", named.thread(thread.thread))
    });
    let each = each.collect::<Vec<_>>().join(", ");
    let more = of.threads.len().saturating_sub(TOLD);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let what = match of.threads.len() {
        1 => format!("a thread of {} (pid {}) waits for a lock that it holds itself", of.process, of.pid),
        n => format!("{n} threads of {} (pid {}) wait for each other's locks, for ever", of.process, of.pid),
    };
    let behind = match of.behind {
        0 => String::new(),
        n => format!("; {n} more wait for them"),
    };
    let wall_ns = run.cpu.accounts.duration_ns;
    let stacks = of.threads.iter().take(TOLD);
    Finding {
        rule: RULE.name,
        severity: Severity::Critical,
        bottleneck: Bottleneck::Lock,
        process: ProcessName { pid: of.pid, name: of.process.clone() },
        subject: of
            .threads
            .first()
            .and_then(|thread| place(names, names.stack(thread.stack?)))
            .map_or_else(String::new, |place| place.name.clone()),
        title: format!("{what}: {each}{more}{behind}"),
        advice: "take these locks in the same order everywhere; only its end frees the process".to_owned(),
        cost: Cost {
            ns: wall_ns.saturating_mul(of.threads.len() as u64 + of.behind),
            share_of_wall: 1.0,
            ..Cost::default()
        },
        evidence: stacks.flat_map(|thread| evidence(names, "waiting at", thread.stack)).collect(),
        details: BTreeMap::from([
            ("tids", json!(of.threads.iter().map(|of| of.thread.tid).collect::<Vec<_>>())),
            ("futexes", json!(of.threads.iter().map(|of| of.futex).collect::<Vec<_>>())),
            ("behind", json!(of.behind)),
        ]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::{fixtures::name_stacks, rule::Overrides},
        model::{
            report::fixtures,
            stack::{StackId, ThreadKey},
            wait::{Blocking, Deadlocked},
        },
    };

    #[test]
    fn each_is_told_with_the_place_where_it_waits() {
        let mut run = fixtures::run(&[]);
        name_stacks(&mut run, &["clone;transfer;pthread_mutex_lock", "clone;refund;pthread_mutex_lock"]);
        let thread = |tid, stack| Deadlocked {
            thread: ThreadKey { pid: 7, tid },
            futex: 0x1000,
            stack: Some(StackId(stack)),
        };
        let mut deadlock =
            Deadlock { pid: 7, process: "app".into(), threads: vec![thread(8, 0), thread(9, 1)], behind: 3 };
        let mut said = |deadlock: &Deadlock| {
            run.blocking = Some(Blocking { deadlocks: vec![deadlock.clone()], ..Blocking::default() });
            check(&run, &Overrides::default().of(&RULE)).remove(0)
        };
        let found = said(&deadlock);
        let words = "2 threads of app (pid 7) wait for each other's locks, for ever: tid 8 in transfer (app.c:7), tid 9 in refund \
                     (app.c:7); 3 more wait for them";
        assert_eq!((&*found.title, &*found.subject, found.evidence.len()), (words, "transfer", 2));
        deadlock.threads.truncate(1);
        assert!(said(&deadlock).title.contains("a lock that it holds itself: tid 8 in transfer"));
    }
}
