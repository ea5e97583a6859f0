//! Runs made by hand, in which something is wrong.

use std::rc::Rc;

use crate::{
    model::{
        cause::WaitCause,
        distribution::Summary,
        kind::OFF_CPU,
        memory::{Footprint, Growth, Limit, LimitKind, Memory, fixtures},
        report::{
            Run,
            fixtures::{frames, profile},
        },
        stack::{StackId, ThreadKey},
        threshold::Thresholds,
        wait::{Block, EventLoop, RunQueue, ThreadTime},
    },
    probe::sched::{
        convoy::{Holder, Waiter},
        long_wait::{Wait, fixtures::wait},
        stall::fixtures::{LOOP, block, iteration},
        totals::{Now, Waits},
    },
};

/// A process with a leak of objects of 100 bytes, a cache, and growth that neither explains.
pub fn run_that_grows() -> Run {
    let mut leak = fixtures::site(0, (0..=120).map(|s| f64::from(s) * 102_400.0));
    leak.ages_ns.add(40 * S, 61_440);
    leak.ages_ns.add(100 * S, 61_440);
    let cache = fixtures::site(1, (0..=120).map(|s| f64::from(s.min(30)) * 1e6));
    let growth = |s: u64| Growth { time_ns: s * S, anon_bytes: s * 5_000_000, ..Growth::default() };
    let kind = LimitKind::Cgroup("/system.slice/app.service".into());
    let limit = Limit { kind, limit_bytes: 1 << 30, used_bytes: 600 << 20 };
    let app = Footprint {
        pid: 7,
        process: "app".into(),
        growth: (0..=120).map(growth).collect(),
        limit: Some(limit),
        ..Footprint::default()
    };
    let mut run = crate::model::report::fixtures::run(&[]);
    run.memory = Some(Memory { processes: vec![app], sites: vec![cache, leak], ..Memory::default() });
    name_stacks(&mut run, &["main;serve;session;new;malloc", "main;serve;cache;malloc"]);
    run
}

const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;
const POOL: ThreadKey = ThreadKey { pid: 7, tid: 9 };

/// Adds stacks to a run's names, ids counting from zero.
pub fn name_stacks(run: &mut Run, stacks: &[&str]) {
    let names = Rc::make_mut(&mut run.cpu.names);
    for (id, stack) in stacks.iter().enumerate() {
        let frames = frames(names, stack);
        names.stacks.insert(StackId(id as u32), frames);
    }
    if let Some(off_cpu) = &mut run.off_cpu {
        off_cpu.names = Rc::clone(&run.cpu.names);
    }
}

/// Stacks of [`run_with_findings`].
const STACKS: [&str; 6] = [
    "main;uv_run;onRequest;busyLoop;now",
    "main;uv_run;onRequest;busyLoop",
    "main;uv_run;onRequest;readFileSync;read;k:io_schedule",
    "clone;work;fetch;recv;k:schedule",
    "clone;work;lock;k:futex_wait",
    "clone;owner;write;k:pipe_write",
];

/// A process with an event loop that stalls and a pool whose threads wait.
pub fn run_with_findings() -> Run {
    let mut waits = Waits::new(Thresholds::default());
    waits.add_loop(LOOP);
    for i in 0..60 {
        let start = i * S;
        for at in 0..20 {
            waits.cpu_sample(LOOP, start + at * 10 * MS, StackId((at % 2 == 0).into()), at % 10 == 9);
        }
        waits.iteration(&iteration(start, start + (200 + i % 4) * MS, 199 * MS, MS), Vec::new());
    }
    for i in 0..3 {
        let start = (60 + i) * S;
        let block = Block { stack: Some(StackId(2)), ..block(start + MS, 30 * MS, 0, WaitCause::Disk) };
        waits.wait(Wait { thread: LOOP, block, ..wait(LOOP.tid, 0, 0, 0, WaitCause::Disk) });
        waits.iteration(&iteration(start, start + 32 * MS, 2 * MS, 0), Vec::new());
    }
    for (i, tid) in [9, 9, 10].into_iter().enumerate() {
        let mut slow = wait(tid, i as u64 * 4 * S, 2 * S + i as u64 * S / 10, 0, WaitCause::Network);
        slow.block.syscall = "recvfrom".into();
        slow.block.object = Some("10.0.0.1:5432".into());
        slow.block.stack = Some(StackId(3));
        waits.wait(slow);
    }
    waits.wait(wait(9, 30 * S, 0, 300 * MS, WaitCause::Unknown));
    let waiters = [10, 11, 12, 13].map(|tid| Waiter {
        thread: ThreadKey { pid: 7, tid },
        futex: 0x7f00_1000,
        stack: Some(StackId(4)),
    });
    for _ in 0..2 {
        waits.look(&waiters, |_, _| Some(Holder { thread: POOL, stack: Some(StackId(5)) }));
    }
    let thread = |thread, name: &str, on_cpu_ns, blocked: &[(WaitCause, u64)]| ThreadTime {
        thread,
        process: "app".into(),
        name: name.into(),
        wall_ns: 100 * S,
        on_cpu_ns,
        run_queue_ns: S,
        blocked: blocked.to_vec(),
        ..ThreadTime::default()
    };
    let summary = |count, max_ns| Summary {
        count,
        sum_ns: 12 * S,
        p50_ns: 12_000,
        p90_ns: 90_000,
        p95_ns: 400_000,
        p99_ns: 1_200_000,
        p999_ns: 9 * MS,
        max_ns,
    };
    let now = Now {
        threads: vec![
            thread(LOOP, "node", 12 * S, &[(WaitCause::Disk, 2 * S), (WaitCause::Poll, 85 * S)]),
            thread(POOL, "pool", 8 * S, &[(WaitCause::Network, 41 * S), (WaitCause::Park, 50 * S)]),
        ],
        run_queue: vec![RunQueue { pid: 7, process: "app".into(), waits: summary(45_678, 300 * MS) }],
        loops: vec![EventLoop {
            thread: LOOP,
            process: "app".into(),
            name: "node".into(),
            wait: "epoll_wait".into(),
            iterations: summary(1234, 203 * MS),
            ..EventLoop::default()
        }],
        ..Now::default()
    };
    let mut run = crate::model::report::fixtures::run(&[("main;uv_run;onRequest;busyLoop", 1200)]);
    run.blocking = Some(waits.blocking(now));
    let mut off_cpu = profile(&[]);
    off_cpu.kind = OFF_CPU;
    run.off_cpu = Some(off_cpu);
    name_stacks(&mut run, &STACKS);
    let names = Rc::clone(&run.cpu.names);
    if let Some(off_cpu) = &mut run.off_cpu {
        let weights =
            [(2, 2 * S, WaitCause::Disk), (3, 41 * S, WaitCause::Network), (4, 50 * S, WaitCause::Park)];
        for (stack, weight, cause) in weights {
            let mut like = run.cpu.stacks[0].clone();
            like.frames = names.stack(StackId(stack)).into();
            (like.weight, like.cause) = (weight, Some(cause));
            off_cpu.stacks.push(like);
            off_cpu.total += weight;
        }
    }
    run
}

/// Takes the mark of the kernel out of the names of a run's functions: they are in its module all the same.
pub fn unmark(run: &mut Run) {
    let names = std::rc::Rc::make_mut(&mut run.cpu.names);
    for frame in &mut names.frames {
        frame.functions[0].name = frame.functions[0].name.replace("k:", "");
    }
}
