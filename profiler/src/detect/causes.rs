//! What a wait is for, where the kernel cannot know and the functions of its stack say. To the kernel a futex is a number:
//! a condition variable whose counter happens to be 2 looks like a lock, and the lock of an interpreter like a condition
//! variable.

use std::{collections::BTreeMap, rc::Rc};

use crate::model::{
    cause::WaitCause,
    function::Function,
    module::{Language, ModuleKind},
    report::{NamedFrame, Names, Run},
    stack::{StackId, ThreadKey},
    wait::{Blocking, LongWaitKind},
};

/// Functions looked at, from where the thread blocked outwards.
const LOOKED_AT: usize = 16;
/// Functions that wait for a lock, however they do it.
const LOCKS: [&str; 24] = [
    "lll_lock_wait",
    "pthread_mutex_lock",
    "mutex_cond_lock",
    "pthread_rwlock_rdlock",
    "pthread_rwlock_wrlock",
    "pthread_spin_lock",
    "lock_contended",
    "lock_slow",
    "lock_shared_slow",
    "lock_exclusive_slow",
    "RwLock::read_contended",
    "RwLock::write_contended",
    "uv_mutex_lock",
    "take_gil",
    "_PyMutex_LockTimed",
    "ObjectMonitor::enter",
    "ObjectMonitor::EnterI",
    "ObjectSynchronizer::enter",
    "Monitor::lock",
    MADE_OF,
    "absl::Mutex::Lock",
    "LWLockAcquire",
    "ProcSleep",
    "runtime.lock2",
];
/// Those of Java that do so by what its locks are made of.
const TOLD_BY_JAVA: [&str; 4] = [
    "java.util.concurrent.CountDownLatch.",
    "java.util.concurrent.Semaphore.",
    "java.util.concurrent.Phaser.",
    "java.util.concurrent.CyclicBarrier.",
];
/// What Java's locks are made of, and these are, too.
const MADE_OF: &str = "AbstractQueuedSynchronizer.acquire";
/// Functions of Java that sleep, which it does by waiting for a condition with a time.
const JAVA_SLEEPS: [&str; 3] = ["JavaThread::sleep", "java.lang.Thread.sleep", "TimeUnit.sleep"];
/// Functions that wait to be told something: idle, or in a queue that is empty.
const TOLD: [&str; 17] = [
    "pthread_cond_wait",
    "pthread_cond_timedwait",
    "pthread_cond_clockwait",
    "pthread_join",
    "Condvar",
    "condition_variable",
    "ConditionVariable",
    "uv_cond_wait",
    "uv_cond_timedwait",
    "Parker",
    "thread::park",
    "sem_wait",
    "sem_timedwait",
    "semaphore",
    "notesleep",
    "notetsleep",
    "ConditionObject.await",
];

/// Functions that ask a name server, and poll for its answer.
const ASKS_NAMES: [&str; 6] =
    ["getaddrinfo", "gethostbyname", "getnameinfo", "res_context_send", "res_nsend", "getanswer"];

/// Whether a stack asks a name server.
pub fn asks_names(names: &Names, frames: &[usize]) -> bool {
    let mut functions = names.functions(frames).take(2 * LOOKED_AT);
    functions.any(|(function, ..)| ASKS_NAMES.iter().any(|word| function.name.contains(word)))
}

/// The program's functions in which a thread blocked, the innermost first, without those of who woke it.
fn blocked_in<'a>(
    names: &'a Names,
    frames: &'a [usize],
) -> impl Iterator<Item = (&'a Function, &'a NamedFrame, bool)> {
    let blocked = names.waker_at(frames).map_or(0, |at| at + 1);
    names.functions(&frames[blocked..]).filter(|(_, frame, _)| !names.is_kernel(frame))
}

/// Whether a stack waits for the lock of CPython's interpreter: it, and nothing else there, waits for a condition with a time
/// limit. Its function has no name where the interpreter is stripped.
pub fn waits_for_gil(names: &Names, frames: &[usize]) -> bool {
    let user = || blocked_in(names, frames);
    let timed =
        |name: &str| name.contains("pthread_cond_timedwait") || name.contains("pthread_cond_clockwait");
    let mut callers =
        user().take(LOOKED_AT).skip_while(|(of, ..)| !timed(&of.name)).skip_while(|(of, ..)| timed(&of.name));
    let of_python = |frame: &NamedFrame| {
        let module = names.module_of(frame).name();
        module.starts_with("python3") || module.starts_with("libpython3")
    };
    user().take(LOOKED_AT).any(|(of, ..)| of.name == "take_gil")
        || callers.next().is_some_and(|(_, frame, _)| of_python(frame))
}

/// What a lock of CPython's `threading` is waited for: the function that takes one, and where the module's own functions build
/// conditions, events and queues of it, to wait to be told something.
const PYTHON_LOCKS: [&str; 2] = ["PyThread_acquire_lock_timed", "_PyMutex_LockTimed"];
const PYTHON_TOLD: [&str; 5] =
    ["/threading.py", "/queue.py", "/concurrent/futures/", "/multiprocessing/", "/asyncio/"];

/// Whether a stack waits for such a lock: `Some(true)` for the lock itself, which a function of the program wants;
/// `Some(false)` for being told something.
fn waits_for_python_lock(names: &Names, frames: &[usize]) -> Option<bool> {
    let mut user = blocked_in(names, frames);
    user.by_ref().take(LOOKED_AT).find(|(of, ..)| PYTHON_LOCKS.iter().any(|word| of.name.contains(word)))?;
    let mut queue = false;
    for (function, frame, _) in user.take(LOOKED_AT) {
        let module = names.module_of(frame);
        if module.kind != ModuleKind::Managed(Language::Python) {
            queue |= function.name.contains("queue") || module.name().contains("_queue");
            continue;
        }
        let file = function.file.as_deref().unwrap_or_default();
        return Some(!queue && !PYTHON_TOLD.iter().any(|part| file.contains(part)));
    }
    None
}

/// Corrects causes by the names of functions: of the time off CPUs, of each thread's time, and of all that was told one by
/// one.
pub fn settle(run: &mut Run) {
    let names = Rc::clone(&run.cpu.names);
    // Time that moves from one cause to another, by thread, ns.
    let mut moved: BTreeMap<ThreadKey, BTreeMap<(WaitCause, WaitCause), u64>> = BTreeMap::new();
    for stack in run.off_cpu.iter_mut().flat_map(|profile| &mut profile.stacks) {
        let Some(cause) = stack.cause else { continue };
        let settled = by_names(&names, &stack.frames, cause);
        if settled != cause {
            *moved.entry(stack.thread).or_default().entry((cause, settled)).or_default() += stack.weight;
            stack.cause = Some(settled);
        }
    }
    let Some(blocking) = &mut run.blocking else { return };
    for thread in &mut blocking.threads {
        for (&(from, to), &ns) in moved.get(&thread.thread).into_iter().flatten() {
            move_time(&mut thread.blocked, from, to, ns);
        }
    }
    settle_told(blocking, &names);
}

/// Moves time between two causes, as far as there is any.
fn move_time(blocked: &mut Vec<(WaitCause, u64)>, from: WaitCause, to: WaitCause, ns: u64) {
    let Some((_, had)) = blocked.iter_mut().find(|(cause, _)| *cause == from) else { return };
    let ns = ns.min(*had);
    *had -= ns;
    match blocked.iter_mut().find(|(cause, _)| *cause == to) {
        Some((_, has)) => *has += ns,
        None => blocked.push((to, ns)),
    }
    blocked.retain(|(_, ns)| *ns > 0);
    blocked.sort_unstable();
}

/// As [`settle`], of what was told one by one. A wait that turns out to be an idle one is not worth telling.
fn settle_told(blocking: &mut Blocking, names: &Names) {
    let of = |stack: Option<StackId>, cause| {
        stack.map_or(cause, |stack| by_names(names, names.stack(stack), cause))
    };
    for stall in &mut blocking.stalls {
        for block in &mut stall.blocks {
            let settled = of(block.stack, block.cause);
            if settled != block.cause {
                move_time(&mut stall.blocked, block.cause, settled, block.blocked_ns);
                block.cause = settled;
            }
        }
    }
    blocking.long_waits.retain_mut(|wait| {
        let before = wait.block.cause;
        wait.block.cause = of(wait.block.stack, before);
        let idle = matches!(wait.kind, LongWaitKind::Blocked { uninterruptible: false })
            && wait.block.cause.is_idle();
        before == wait.block.cause || !idle
    });
    blocking.convoys.retain(|convoy| of(convoy.waiter_stack, WaitCause::Lock) == WaitCause::Lock);
}

/// What a stack waits for by its functions, the innermost first, if they say anything; else what the kernel took it for.
pub fn by_names(names: &Names, frames: &[usize], cause: WaitCause) -> WaitCause {
    if !matches!(cause, WaitCause::Lock | WaitCause::Park | WaitCause::Poll | WaitCause::Other) {
        return cause;
    }
    let user = blocked_in(names, frames);
    let functions: Vec<&str> = user.map(|(function, ..)| function.name.as_str()).take(LOOKED_AT).collect();
    let any = |words: &[&str]| functions.iter().any(|name| words.iter().any(|word| name.contains(word)));
    if matches!(cause, WaitCause::Poll | WaitCause::Other) && any(&ASKS_NAMES) {
        WaitCause::Network
    } else if let Some(lock) = waits_for_python_lock(names, frames) {
        if lock { WaitCause::Lock } else { WaitCause::Park }
    } else if cause != WaitCause::Poll && any(&JAVA_SLEEPS) {
        WaitCause::Sleep
    } else if told_by_java(&functions) {
        WaitCause::Park
    } else if any(&LOCKS) || (cause == WaitCause::Park && waits_for_gil(names, frames)) {
        WaitCause::Lock
    } else if cause == WaitCause::Lock && any(&TOLD) {
        WaitCause::Park
    } else {
        cause
    }
}

/// Whether functions, the innermost first, wait to be told something by Java's own means, with no lock inside of that.
fn told_by_java(functions: &[&str]) -> bool {
    let first = |is: &dyn Fn(&str) -> bool| functions.iter().position(|name| is(name));
    let told = first(&|name| TOLD_BY_JAVA.iter().any(|word| name.starts_with(word)));
    let lock = first(&|name| !name.contains(MADE_OF) && LOCKS.iter().any(|word| name.contains(word)));
    told.is_some_and(|told| lock.is_none_or(|lock| lock > told))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::{findings, fixtures::name_stacks, rule::Overrides},
        model::{
            kind::OFF_CPU,
            report::fixtures,
            stack::Module,
            threshold::Thresholds,
            wait::{Convoy, ThreadTime},
        },
        probe::sched::long_wait::fixtures::wait,
    };

    fn settled(stack: &str, cause: WaitCause) -> WaitCause {
        let mut run = fixtures::run(&[(stack, 1)]);
        run.cpu.stacks[0].cause = Some(cause);
        by_names(run.names(), &run.cpu.stacks[0].frames, cause)
    }

    #[test]
    fn names_tell_locks_from_condition_variables() {
        use WaitCause::{Disk, Lock, Park, Poll};
        let worker = "clone;tokio::runtime::scheduler::multi_thread::park::Parker::park;std::sync::Condvar::wait;\
                      syscall;k:futex_wait";
        assert_eq!(settled(worker, Lock), Park);
        assert_eq!(
            settled("main;work;std::sys::sync::mutex::futex::Mutex::lock_contended;syscall", Lock),
            Lock
        );
        assert_eq!(
            settled("clone;pthread_cond_wait;mutex_cond_lock;lll_lock_wait", Lock),
            Lock,
            "woken, and queues"
        );
        assert_eq!(settled("main;eval;take_gil;pthread_cond_timedwait", Park), Lock);
        assert_eq!(settled("main;heap_update;ProcSleep;WaitLatch;epoll_wait", Poll), Lock);
        assert_eq!(settled("main;work;pthread_cond_wait", Park), Park);
        assert_eq!(settled("main;strange;futex", Lock), Lock, "nothing better is known");
        assert_eq!(settled("main;take_gil;read", Disk), Disk);
        assert_eq!(settled("main;ConnectionSemaphore::acquire;pthread_mutex_lock", Lock), Lock, "no Java");
        let java = |of: &str| {
            let stack =
                format!("java.lang.Thread.run;app.Main.run;{of};jdk.internal.misc.Unsafe.park;Parker::park");
            settled(&stack, Park)
        };
        let acquire = "java.util.concurrent.locks.AbstractQueuedSynchronizer.acquire";
        assert_eq!(java(&format!("java.util.concurrent.locks.ReentrantLock.lock;{acquire}")), Lock);
        assert_eq!(
            java(&format!("java.util.concurrent.CountDownLatch.await;{acquire}SharedInterruptibly")),
            Park
        );
        assert_eq!(
            settled("app.Main.run;java.lang.Thread.sleep;JavaThread::sleep;os::Platform", Park),
            WaitCause::Sleep
        );
        assert_eq!(settled("worker;uv__getaddrinfo_work;getaddrinfo;send_dg;poll", Poll), WaitCause::Network);
    }

    #[test]
    fn a_lock_of_python_is_told_from_what_is_built_of_it() {
        let cause = |inner: &str, function: &str, file: &str| {
            let stack = format!("main;{function};{inner}PyThread_acquire_lock_timed;sem_wait");
            let mut run = fixtures::run(&[(&stack, 1)]);
            let names = Rc::make_mut(&mut run.cpu.names);
            names.modules.push(Module::special(ModuleKind::Managed(Language::Python)));
            let python = names.modules.len() - 1;
            for frame in names.frames.iter_mut().filter(|frame| frame.functions[0].name == function) {
                frame.module = python;
                let mut functions = frame.functions.to_vec();
                functions[0].file = Some(file.into());
                frame.functions = functions;
            }
            by_names(run.names(), &run.cpu.stacks[0].frames, WaitCause::Park)
        };
        assert_eq!(cause("lock_acquire;", "handle", "/srv/app.py"), WaitCause::Lock);
        assert_eq!(
            cause("lock_acquire;", "Condition.wait", "/usr/lib/python3.11/threading.py"),
            WaitCause::Park
        );
        assert_eq!(cause("simplequeue_get;", "take", "/srv/app.py"), WaitCause::Park);
        assert_eq!(
            settled("main;PyThread_acquire_lock_timed;sem_wait", WaitCause::Park),
            WaitCause::Park,
            "whose is not known"
        );
    }

    #[test]
    fn an_idle_worker_is_no_long_wait_and_no_convoy() {
        let mut run = fixtures::run(&[]);
        let of = wait(9, 0, 2_000_000_000, 0, WaitCause::Lock);
        let mut long: Vec<_> =
            crate::probe::sched::long_wait::long_waits(&of, false, &Thresholds::default()).collect();
        long[0].block.stack = Some(StackId(0));
        let thread = ThreadTime {
            thread: of.thread,
            wall_ns: 4,
            blocked: vec![(WaitCause::Lock, 3), (WaitCause::Disk, 1)],
            ..ThreadTime::default()
        };
        let convoy = Convoy {
            severity: crate::model::finding::Severity::Warning,
            pid: 7,
            process: "app".into(),
            futex: 8,
            waiters: 4,
            seen: 3,
            holder: None,
            holder_stack: None,
            waiter_stack: Some(StackId(0)),
        };
        run.blocking = Some(Blocking {
            threads: vec![thread],
            long_waits: long,
            convoys: vec![convoy],
            ..Blocking::default()
        });
        let mut off_cpu = fixtures::profile(&[("clone;run;Condvar::wait;syscall", 2)]);
        off_cpu.kind = OFF_CPU;
        off_cpu.stacks[0].thread = of.thread;
        off_cpu.stacks[0].cause = Some(WaitCause::Lock);
        run.cpu.names = Rc::clone(&off_cpu.names);
        run.off_cpu = Some(off_cpu);
        name_stacks(&mut run, &["clone;run;Condvar::wait;syscall"]);
        settle(&mut run);
        assert_eq!(findings(&run, &Overrides::default()), []);
        let blocked = &run.blocking.as_ref().unwrap().threads[0].blocked;
        assert_eq!(blocked[..], [(WaitCause::Disk, 1), (WaitCause::Lock, 1), (WaitCause::Park, 2)]);
    }
}
