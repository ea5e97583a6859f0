//! What threads are there for, by the functions that they began with, and by their names.

use std::collections::BTreeMap;

use crate::{
    detect::{crews, words::path},
    model::{report::Run, stack::ThreadKey},
};

/// How threads of a role are known.
struct Role {
    name: &'static str,
    /// How their names begin.
    threads: &'static [&'static str],
    /// A function among the outermost of their stacks has one of these in its name; an exact name where it begins with `=`.
    roots: &'static [&'static str],
}

/// libuv's pool, which does files, names, compression and crypto for Node.js.
pub const LIBUV_POOL: &str = "libuv pool";
/// A thread of `worker_threads`.
pub const NODE_WORKER: &str = "Node worker";

/// The order decides where a thread fits two.
const ROLES: [Role; 16] = [
    Role { name: LIBUV_POOL, threads: &["libuv-worker"], roots: &["=worker", "=uv__threadpool_worker"] },
    Role {
        name: "V8 platform",
        threads: &["V8Worker", "node-V8Worker", "DelayedTaskSche"],
        roots: &["PlatformWorkerThread", "DelayedTaskScheduler"],
    },
    Role { name: "Node inspector", threads: &["SignalInspector"], roots: &["inspector::"] },
    Role { name: NODE_WORKER, threads: &["WorkerThread"], roots: &["node::worker::Worker::StartThread"] },
    Role {
        name: "GC",
        threads: &["GC Thread", "G1 ", "ZWorker", "XWorker", "Shenandoah", "VM Thread", "Parallel GC"],
        roots: &["GangWorker::", "=WorkerThread::run", "=runtime.gcBgMarkWorker"],
    },
    Role { name: "JIT compiler", threads: &["C1 Compiler", "C2 Compiler"], roots: &["CompileBroker::"] },
    Role {
        name: "Java",
        threads: &["main", "pool-", "http-nio", "ForkJoinPool"],
        roots: &["JavaThread::run"],
    },
    Role {
        name: "tokio worker",
        threads: &[],
        roots: &["multi_thread::worker::run", "multi_thread::worker::Context"],
    },
    Role {
        name: "tokio blocking pool",
        threads: &[],
        roots: &["runtime::blocking::pool::Inner::run", "blocking::pool::"],
    },
    Role { name: "rayon worker", threads: &["rayon"], roots: &["rayon_core::registry::"] },
    Role { name: "Go", threads: &[], roots: &["=runtime.mstart", "=runtime.goexit", "=runtime.mcall"] },
    Role { name: "PostgreSQL backend", threads: &[], roots: &["=PostgresMain", "=BackendMain"] },
    Role {
        name: "PostgreSQL worker",
        threads: &[],
        roots: &["=BackgroundWorkerMain", "=AuxiliaryProcessMain"],
    },
    Role {
        name: "redis background",
        threads: &["bio_", "jemalloc_bg"],
        roots: &["=bioProcessBackgroundJobs"],
    },
    Role { name: "Python", threads: &[], roots: &["=thread_run", "=t_bootstrap"] },
    Role { name: "io_uring worker", threads: &["iou-wrk", "iou-sqp"], roots: &[] },
];

/// Functions of libuv, and of Node.js, begin like this: `worker` by itself is anybody's.
const LIBUV: [&str; 2] = ["uv_", "node::"];

/// Functions looked at, from the outermost inwards: threads that a runtime starts begin with several of its own.
const OUTERMOST: usize = 24;

/// Roles of the threads of a run, as far as they are known.
pub fn roles(run: &Run) -> BTreeMap<ThreadKey, &'static str> {
    let mut found: BTreeMap<ThreadKey, usize> = BTreeMap::new();
    let mut take = |thread: ThreadKey, role: Option<usize>| {
        if let Some(role) = role {
            let known = found.entry(thread).or_insert(role);
            *known = (*known).min(role);
        }
    };
    for thread in run.blocking.iter().flat_map(|blocking| &blocking.threads) {
        // A main thread has its process's name, which says nothing about it.
        let main = thread.thread.tid == thread.thread.pid;
        let by_name = |of: &Role| of.threads.iter().any(|word| thread.name.starts_with(word));
        take(thread.thread, ROLES.iter().position(by_name).filter(|_| !main));
    }
    for profile in std::iter::once(&run.cpu).chain(&run.off_cpu) {
        for stack in &profile.stacks {
            let waker = run.names().waker_at(&stack.frames).map_or(0, |at| at + 1);
            let path = path(run.names(), &stack.frames[waker..]);
            let of_libuv = path.iter().any(|at| LIBUV.iter().any(|word| at.name.starts_with(word)));
            let by_root = |of: &Role| {
                if of.name == LIBUV_POOL && !of_libuv {
                    return false;
                }
                let is = |name: &str, word: &str| match word.strip_prefix('=') {
                    Some(exact) => name == exact,
                    None => name.contains(word),
                };
                path.iter().take(OUTERMOST).any(|at| of.roots.iter().any(|word| is(&at.name, word)))
            };
            take(stack.thread, ROLES.iter().position(by_root));
        }
    }
    let mut found = found.into_iter().map(|(thread, role)| (thread, ROLES[role].name)).collect();
    of_namesakes(run, &mut found);
    found
}

/// Threads of one name and process that came and went do the same: few of them were seen at work.
fn of_namesakes(run: &Run, found: &mut BTreeMap<ThreadKey, &'static str>) {
    let threads = || {
        let all = run.blocking.iter().flat_map(|blocking| &blocking.threads);
        all.filter(|of| of.thread.tid != of.thread.pid && crews::is_short(run, of))
    };
    let mut known: BTreeMap<(u32, &str), Option<&'static str>> = BTreeMap::new();
    for of in threads() {
        if let Some(&role) = found.get(&of.thread) {
            let one = known.entry((of.thread.pid, &of.name)).or_insert(Some(role));
            *one = one.filter(|one| *one == role);
        }
    }
    for of in threads() {
        if let Some(Some(role)) = known.get(&(of.thread.pid, of.name.as_str())) {
            found.entry(of.thread).or_insert(role);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::report::fixtures;

    #[test]
    fn roles_are_known_by_how_threads_begin() {
        let of = |stack: &str| {
            let run = fixtures::run(&[(stack, 1)]);
            roles(&run).get(&run.cpu.stacks[0].thread).copied()
        };
        assert_eq!(of("clone3;start_thread;worker;uv__work;node::crypto::run"), Some(LIBUV_POOL));
        assert_eq!(
            of("clone3;start_thread;node::(anonymous namespace)::PlatformWorkerThread(void*)"),
            Some("V8 platform")
        );
        assert_eq!(
            of("clone;tokio::runtime::blocking::pool::Inner::run;tokio::multi_thread::worker::run"),
            Some("tokio worker")
        );
        assert_eq!(of("clone;start_thread;network_worker;read"), None);
        assert_eq!(of("clone;start_thread;worker;compress"), None, "anybody's");
    }
}
