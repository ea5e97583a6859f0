//! All threads of a pool are busy: what is queued for them waits.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    detect::{
        roles,
        rule::{Needs, Param, Rule, Unit, Values},
        served,
        words::{hottest, most_in},
    },
    model::{
        cause::WaitCause,
        finding::{Bottleneck, Cost, Finding, ProcessName, Severity},
        report::Run,
        stack::ThreadKey,
        wait::ThreadTime,
    },
};

const IDLE: Param = Param {
    name: "idle",
    unit: Unit::Percent,
    default: 5.0,
    help: "Wall time that the idlest thread of a pool waits for jobs; less is saturated",
    flag: None,
};

/// Pools of fixed size, by the roles or the names of their threads: name, whose it is, what sets its size.
const POOLS: [(&str, &str, &str); 5] = [
    (roles::LIBUV_POOL, "libuv's pool (files, DNS, crypto, zlib)", "UV_THREADPOOL_SIZE"),
    ("rayon worker", "rayon's pool", "RAYON_NUM_THREADS"),
    ("ForkJoinPool", "a ForkJoinPool", "its parallelism"),
    ("pool-", "an executor's pool", "its size"),
    ("ThreadPoolExec", "a ThreadPoolExecutor", "max_workers"),
];

/// The rule.
pub static RULE: Rule = Rule {
    name: "thread-pool-saturated",
    summary: "all threads of a pool are busy, and jobs wait for one",
    needs: &[Needs::Waits],
    params: &[IDLE],
    check,
    doc: "\
A pool of fixed size, known by the functions or the names of its threads (libuv, rayon, ForkJoinPool, executors), none of whose threads waits for
jobs for a noteworthy part of the time. Whatever is queued waits for the jobs before it: with libuv that is each file, DNS
look-up, crypto and zlib call of the program.

Where the process has no clients, all but libuv's pool are a note: a batch keeps its pool busy.

Look at what the threads do (below, by their name). If they wait, a larger pool helps; if they compute, more CPUs do.",
};

fn check(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let roles = roles::roles(run);
    let mut pools: BTreeMap<(u32, usize), Vec<&ThreadTime>> = BTreeMap::new();
    for thread in run.blocking.iter().flat_map(|blocking| &blocking.threads) {
        // Threads that lived for a part of the run only say little.
        let whole = thread.wall_ns >= run.cpu.accounts.duration_ns / 2;
        if let Some(pool) = POOLS.iter().position(|(name, ..)| is_in(thread, name, &roles)).filter(|_| whole)
        {
            pools.entry((thread.thread.pid, pool)).or_default().push(thread);
        }
    }
    let saturated = pools.into_iter().filter_map(|((pid, pool), threads)| {
        let idle = threads.iter().map(|thread| 100.0 * idle(run, thread)).fold(0.0, f64::max);
        (threads.len() > 1 && idle < values.get(&IDLE)).then(|| finding(run, pid, pool, &threads))
    });
    saturated.collect()
}

/// Whether a thread is one of a pool's.
fn is_in(thread: &ThreadTime, pool: &str, roles: &BTreeMap<ThreadKey, &str>) -> bool {
    roles.get(&thread.thread).is_some_and(|role| *role == pool) || thread.name.starts_with(pool)
}

/// Share of its time that a thread waits for a job; for the next request on a connection, too.
fn idle(run: &Run, thread: &ThreadTime) -> f64 {
    let next = !served::needs_answers(run, thread.thread.pid);
    let parked = |cause: &WaitCause| match cause {
        WaitCause::Park | WaitCause::Unknown | WaitCause::Poll => true,
        WaitCause::Network => next,
        _ => false,
    };
    let ns: u64 = thread.blocked.iter().filter(|(cause, _)| parked(cause)).map(|(_, ns)| ns).sum();
    ns as f64 / thread.wall_ns.max(1) as f64
}

fn finding(run: &Run, pid: u32, pool: usize, threads: &[&ThreadTime]) -> Finding {
    let (_, whose, size) = POOLS[pool];
    let mut sum = ThreadTime::default();
    threads.iter().for_each(|thread| sum.add(thread));
    let share = |ns: u64| 100.0 * ns as f64 / sum.wall_ns.max(1) as f64;
    let most = sum.blocked.iter().max_by_key(|(_, ns)| *ns).copied().unwrap_or((WaitCause::Unknown, 0));
    let (what, bottleneck) = if most.1 > sum.on_cpu_ns {
        (
            format!("{:.0} % of the time in {}", share(most.1), most.0.words()),
            crate::detect::words::bottleneck(most.0),
        )
    } else {
        let hottest = hottest(run, |of| threads.iter().any(|thread| thread.thread == *of));
        let most = most_in(hottest.map(|(function, ..)| function));
        (format!("{:.0} % of the time on a CPU{most}", share(sum.on_cpu_ns)), Bottleneck::Cpu)
    };
    let process = threads.first().map_or_else(String::new, |thread| thread.process.clone());
    // Where nobody asks, a pool that is all at work is a batch; whoever gives libuv a job waits for it.
    let vitals = run.vitals_of(pid);
    let asked = pool == 0 || vitals.is_some_and(|of| of.peers.iter().any(|peer| peer.clients));
    Finding {
        rule: RULE.name,
        severity: if asked { Severity::Warning } else { Severity::Info },
        bottleneck,
        subject: whose.to_owned(),
        title: format!(
            "all {} threads of {whose} of {process} (pid {pid}) are busy, {what}: jobs wait for one",
            threads.len()
        ),
        process: ProcessName { pid, name: process },
        advice: format!("look at what they do; if they wait, enlarge the pool ({size})"),
        cost: Cost { ns: sum.wall_ns, share_of_wall: 1.0, ..Cost::default() },
        evidence: Vec::new(),
        details: BTreeMap::from([("threads", json!(threads.len())), ("on_cpu_ns", json!(sum.on_cpu_ns))]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::rule::Overrides,
        model::{
            vitals::{Peer, ProcessVitals, Vitals},
            wait::Blocking,
        },
    };

    #[test]
    fn a_pool_with_an_idle_thread_is_not_saturated() {
        let found = |idle_ns: u64| {
            let mut run = crate::model::report::fixtures::run(&[]);
            let thread = |tid, idle| ThreadTime {
                thread: ThreadKey { pid: 7, tid },
                process: "node".into(),
                name: "libuv-worker".into(),
                wall_ns: 1_000_000_000,
                blocked: vec![(WaitCause::Disk, 1_000_000_000 - idle), (WaitCause::Park, idle)],
                ..ThreadTime::default()
            };
            let threads = vec![thread(8, 0), thread(9, 0), thread(10, idle_ns)];
            run.blocking = Some(Blocking { threads, ..Blocking::default() });
            check(&run, &Overrides::default().of(&RULE)).first().map(|finding| finding.bottleneck)
        };
        assert_eq!((found(10_000_000), found(300_000_000)), (Some(Bottleneck::Io), None));
    }

    #[test]
    fn a_pool_of_a_batch_is_a_note() {
        let found = |name: &str, peers: Vec<Peer>| {
            let mut run = crate::model::report::fixtures::run(&[]);
            let thread = |tid| ThreadTime {
                thread: ThreadKey { pid: 7, tid },
                name: name.into(),
                wall_ns: 1_000_000_000,
                on_cpu_ns: 1_000_000_000,
                ..ThreadTime::default()
            };
            run.blocking = Some(Blocking { threads: vec![thread(8), thread(9)], ..Blocking::default() });
            let of = ProcessVitals { pid: 7, peers, ..ProcessVitals::default() };
            run.vitals = Some(Vitals { processes: vec![of], unlisted: 0 });
            check(&run, &Overrides::default().of(&RULE))[0].severity
        };
        let clients = || vec![Peer { clients: true, ..Peer::default() }];
        assert_eq!(found("ForkJoinPool-1", Vec::new()), Severity::Info);
        assert_eq!(found("ForkJoinPool-1", clients()), Severity::Warning);
        assert_eq!(found("libuv-worker", Vec::new()), Severity::Warning);
    }
}
