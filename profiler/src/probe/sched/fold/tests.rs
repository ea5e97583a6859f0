//! The scheduler probe over maps that a test fills.

use std::{cell::RefCell, fs, rc::Rc};

use profiler_common::{
    cpu::Seen,
    histogram::{Histogram, bucket},
    sched::{Exit, KnownStack, MANY, OffCpuTime, Times, WaitCause},
};

use super::*;
use crate::{
    model::{stack::ModuleKind, wait::LongWaitKind},
    probe::{
        ended,
        fixtures::{Bench, raw},
    },
};

const S: u64 = 1_000_000_000;
const MS: u64 = 1_000_000;

/// What the kernel's maps hold.
#[derive(Default)]
struct Held {
    start_ns: u64,
    threads: Vec<ThreadState>,
    off_cpu: Vec<(OffCpuKey, OffCpuTime)>,
    histograms: Vec<(HistogramKey, Histogram)>,
    ran: Vec<Vec<Seen>>,
}

#[derive(Clone, Default)]
struct FakeMaps(Rc<RefCell<Held>>);

impl SchedMaps for FakeMaps {
    fn start(&mut self, now_ns: u64) -> Result<()> {
        self.0.borrow_mut().start_ns = now_ns;
        Ok(())
    }

    fn seed(&mut self, tid: u32, state: &ThreadState) {
        let threads = &mut self.0.borrow_mut().threads;
        if threads.iter().all(|known| known.tid != tid) {
            threads.push(*state);
        }
    }

    fn threads(&self) -> Vec<ThreadState> {
        self.0.borrow().threads.clone()
    }

    fn off_cpu(&self) -> Vec<(OffCpuKey, OffCpuTime)> {
        self.0.borrow().off_cpu.clone()
    }

    fn forget_off_cpu(&mut self, key: &OffCpuKey) {
        self.0.borrow_mut().off_cpu.retain(|(known, _)| known != key);
    }

    fn take_histogram(&mut self, key: &HistogramKey) -> Option<Histogram> {
        let histograms = &mut self.0.borrow_mut().histograms;
        let at = histograms.iter().position(|(known, _)| known == key)?;
        Some(histograms.remove(at).1)
    }

    fn add_histogram(&mut self, key: HistogramKey) {
        let histograms = &mut self.0.borrow_mut().histograms;
        if histograms.iter().all(|(known, _)| *known != key) {
            histograms.push((key, Histogram::EMPTY));
        }
    }

    fn take_thread_run_queue(&mut self, _: u32) -> Option<Histogram> {
        None
    }

    fn thread_run_queues(&self) -> Box<dyn Iterator<Item = (u32, Histogram)> + '_> {
        Box::new(std::iter::once((8, histogram(&[5 * MS]))))
    }

    fn histograms(&self) -> Vec<(HistogramKey, Histogram)> {
        self.0.borrow().histograms.clone()
    }

    fn ran(&self) -> Vec<Vec<Seen>> {
        self.0.borrow().ran.clone()
    }
}

fn histogram(values: &[u64]) -> Histogram {
    let mut histogram = Histogram::EMPTY;
    for &value in values {
        histogram.counts[bucket(value)] += 1;
        histogram.sum_ns += value;
        histogram.max_ns = histogram.max_ns.max(value);
    }
    histogram
}

/// A probe that has begun when the clock showed 1 s.
fn begun(bench: &Bench) -> (Scheduler, FakeMaps) {
    let maps = FakeMaps::default();
    let (root, clock) = (&bench.resolver.proc_root, &bench.resolver.clock);
    let (networks, limits) = (Networks::new(root), Thresholds::default());
    let mut scheduler = Scheduler::new(Box::new(maps.clone()), &networks, Redact::No, clock, &[7], limits);
    scheduler.begin(clock.now_ns()).unwrap();
    (scheduler, maps)
}

fn key(tid: u32, stack: u64, waker: u64) -> OffCpuKey {
    OffCpuKey { stack, waker, pid: 7, tid, cause: WaitCause::Disk as u32, syscall: libc::SYS_read as i32 }
}

/// A thread that has run since the start and blocks since `since_ns`.
fn blocked(tid: u32, since_ns: u64, cause: WaitCause) -> ThreadState {
    ThreadState {
        first_ns: S,
        since_ns,
        times: Times { on_cpu_ns: since_ns.saturating_sub(S), ..Times::default() },
        pid: 7,
        tid,
        phase: Phase::Blocked as u32,
        cause: cause as u32,
        syscall: libc::SYS_read as i32,
        ..ThreadState::default()
    }
}

fn run(bench: &mut Bench, scheduler: &mut Scheduler) -> Totals {
    let mut totals = Totals::default();
    bench.with(|cx| scheduler.report(Extent::Run, &mut totals, cx));
    totals
}

#[test]
fn time_off_cpus_becomes_samples_once() {
    let mut bench = Bench::new();
    let (mut scheduler, maps) = begun(&bench);
    bench.stack(50, &[0x10]);
    maps.0.borrow_mut().off_cpu = vec![
        (key(8, 50, 0), OffCpuTime { ns: 100, count: 1, max_ns: 100 }),
        (key(7, 0, 0), OffCpuTime { ns: 30, count: 1, max_ns: 30 }), // its stack was not taken
    ];
    // What the thread keeps itself counts, too.
    let mut state = blocked(8, S, WaitCause::Disk);
    let time = OffCpuTime { ns: 11, count: 1, max_ns: 11 };
    state.known[0] = KnownStack {
        stack: 50,
        cause: WaitCause::Disk as u32,
        syscall: libc::SYS_read as i32,
        time,
        ..state.known[0]
    };
    maps.0.borrow_mut().threads = vec![state];
    bench.with(|cx| scheduler.flush(false, cx));
    assert_eq!(bench.kept.0.len(), 0, "not wanted yet");
    bench.with(|cx| scheduler.flush(true, cx));
    bench.with(|cx| scheduler.flush(true, cx));
    maps.0.borrow_mut().off_cpu[0].1.ns = 105;
    bench.with(|cx| scheduler.flush(true, cx));
    let mut weights: Vec<_> =
        bench.kept.0.iter().map(|(sample, _)| (sample.thread.tid, sample.weight)).collect();
    weights.sort_unstable();
    assert_eq!(weights, [(7, 30), (8, 5), (8, 111)]);
    assert!(bench.kept.0.iter().all(|(sample, _)| sample.cause == Some(WaitCause::Disk)));
    let names: Vec<_> = bench.kept.0.iter().filter_map(|(_, name)| name.clone()).collect();
    assert_eq!(names.len(), 2, "each thread's once");
    assert_eq!(run(&mut bench, &mut scheduler).off_cpu.unwrap().total, 146);
}

/// The kernel has room for the off-CPU time of a few thousand threads: that of ended ones is taken out in time.
#[test]
fn the_kernel_forgets_off_cpu_time_of_ended_threads_once_it_is_taken_in() {
    let mut bench = Bench::new();
    let (mut scheduler, maps) = begun(&bench);
    let time = |ns| OffCpuTime { ns, count: 1, max_ns: ns };
    let many = 600;
    maps.0.borrow_mut().off_cpu = (0..many).map(|n| (key(1000 + n, 0, 0), time(MS))).collect();
    maps.0.borrow_mut().off_cpu.push((key(8, 0, 0), time(S)));
    for tid in 1000..1000 + many {
        let exit = Exit { pid: 7, tid, first_ns: S, time_ns: 2 * S, ..Exit::default() };
        bench.record(&mut scheduler, &Record::Exit(exit));
    }
    bench.with(|cx| scheduler.flush(false, cx));
    assert_eq!(bench.kept.0.len(), 601, "so many have ended that it is not left there");
    assert_eq!(maps.0.borrow().off_cpu.len(), 1, "of the thread that lives");
    bench.with(|cx| scheduler.flush(true, cx));
    let total = run(&mut bench, &mut scheduler).off_cpu.unwrap().total;
    assert_eq!(total, u64::from(many) * MS + S, "each once");
}

/// Waits for a CPU of processes that have ended are not lost when the kernel needs the room for others.
#[test]
fn histograms_of_many_ended_processes_are_added_up() {
    let mut bench = Bench::new();
    let (mut scheduler, maps) = begun(&bench);
    let many = 3000;
    maps.0.borrow_mut().threads =
        (0..many).map(|n| ThreadState { pid: 1000 + n, tid: 1000 + n, ..ThreadState::default() }).collect();
    bench.hands.set(3 * S);
    bench.with(|cx| scheduler.poll(cx));
    for (_, histogram) in &mut maps.0.borrow_mut().histograms {
        *histogram = self::histogram(&[MS]);
    }
    let counted = maps.0.borrow().histograms.len() as u64;
    maps.0.borrow_mut().threads.clear();
    for pid in 1000..1000 + many {
        let exit = Exit { pid, tid: pid, first_ns: S, time_ns: 2 * S, ..Exit::default() };
        bench.record(&mut scheduler, &Record::Exit(exit));
    }
    assert!(maps.0.borrow().histograms.len() < many as usize, "there is room again");
    let run_queue = run(&mut bench, &mut scheduler).blocking.unwrap().run_queue;
    let waits: u64 = run_queue.iter().map(|of| of.waits.count).sum();
    assert_eq!(waits, counted);
    assert!(run_queue.iter().any(|of| of.pid == 0 && of.process == "(others)"));
}

#[test]
fn a_block_that_goes_on_at_the_end_counts_up_to_it() {
    let mut bench = Bench::new();
    let (mut scheduler, maps) = begun(&bench);
    maps.0.borrow_mut().threads = vec![blocked(8, 2 * S, WaitCause::Network)];
    bench.hands.set(5 * S);
    bench.with(|cx| scheduler.stop(cx));
    assert_eq!(maps.0.borrow().start_ns, 0, "the kernel programs count no more");
    bench.hands.set(9 * S);
    bench.with(|cx| scheduler.flush(true, cx));
    let (sample, _) = &bench.kept.0[0];
    assert_eq!((sample.weight, sample.cause), (3 * S, Some(WaitCause::Network)));
    let blocking = run(&mut bench, &mut scheduler).blocking.unwrap();
    let thread = &blocking.threads[0];
    assert_eq!((thread.name.as_str(), thread.process.as_str()), ("worker", "app"));
    assert_eq!((thread.wall_ns, thread.blocked.as_slice()), (4 * S, &[(WaitCause::Network, 3 * S)][..]));
    assert_eq!(thread.run_queue.map(|waits| waits.count), Some(1));
    assert!(blocking.long_waits.iter().any(|wait| wait.ongoing && wait.block.blocked_ns == 3 * S));
}

#[test]
fn a_thread_seen_after_the_end_has_the_time_it_accounts_for() {
    let mut bench = Bench::new();
    let (mut scheduler, maps) = begun(&bench);
    bench.hands.set(5 * S);
    bench.with(|cx| scheduler.stop(cx));
    // It woke and blocked again before the kernel programs knew of the end.
    let mut state = blocked(8, 6 * S, WaitCause::Child);
    state.times.on_cpu_ns = 0;
    state.times.blocked_ns[WaitCause::Child as usize] = 5 * S;
    maps.0.borrow_mut().threads = vec![state];
    let blocking = run(&mut bench, &mut scheduler).blocking.unwrap();
    assert_eq!((blocking.threads[0].wall_ns, blocking.threads[0].accounted_ns()), (5 * S, 5 * S));
}

#[test]
fn who_ends_a_wait_continues_its_stack() {
    let mut bench = Bench::new();
    let (mut scheduler, maps) = begun(&bench);
    bench.stack(50, &[0x10]);
    let mut wakes = raw(9, 9, S, &[0x70, 0x80]);
    bench.record(&mut scheduler, &Record::Waker(60, "waker".into(), wakes.clone()));
    wakes.header.tid = 0; // an idle CPU: only an interrupt can wake somebody there
    bench.record(&mut scheduler, &Record::Waker(61, "swapper".into(), wakes));
    let time = OffCpuTime { ns: 100, count: 1, max_ns: 100 };
    maps.0.borrow_mut().off_cpu = vec![(key(8, 50, 60), time), (key(8, 50, 61), time)];
    bench.with(|cx| scheduler.flush(true, cx));
    let tables = &bench.resolver.tables;
    let mut wakers: Vec<_> = bench
        .kept
        .0
        .iter()
        .map(|(sample, _)| {
            let frames = &tables.stack(sample.stack).frames;
            let at = frames.iter().position(|frame| tables.module(frame.module).kind == ModuleKind::Waker);
            let at = at.unwrap();
            (tables.module(frames[at].module).path.clone(), at, frames.len())
        })
        .collect();
    wakers.sort();
    // Process 9 is gone, so its addresses say nothing.
    let expected = [("[woken by an interrupt]", 0, 2), ("[woken by waker (tid 9)]", 0, 2)];
    assert_eq!(wakers, expected.map(|(name, at, all)| (name.to_owned(), at, all)));
}

#[test]
fn long_waits_are_listed_with_what_they_waited_for() {
    let mut bench = Bench::new();
    let (mut scheduler, maps) = begun(&bench);
    bench.stack(50, &[0x10]);
    let interval = Interval {
        cause: WaitCause::Disk as u32,
        pid: 7,
        tid: 8,
        start_ns: 2 * S,
        woken_ns: 4 * S,
        end_ns: 4 * S,
        stack: 50,
        syscall: libc::SYS_fsync as i32,
        ..Interval::default()
    };
    bench.record(&mut scheduler, &Record::Interval(interval));
    let seen = Seen { time_ns: 6 * S + 1, pid: 9, tid: 99, comm: *b"hog\0\0\0\0\0\0\0\0\0\0\0\0\0" };
    maps.0.borrow_mut().ran = vec![vec![seen]];
    bench.hands.set(7 * S); // what ran is asked for anew
    let starved =
        Interval { start_ns: 6 * S, woken_ns: 6 * S, end_ns: 7 * S, syscall: -1, stack: 0, ..interval };
    bench.record(&mut scheduler, &Record::Interval(starved));
    let blocking = run(&mut bench, &mut scheduler).blocking.unwrap();
    let [disk, cpu] = &blocking.long_waits[..] else { panic!("{:?}", blocking.long_waits) };
    assert_eq!((disk.block.blocked_ns, disk.block.syscall.as_str()), (2 * S, "fsync"));
    assert!(disk.block.stack.is_some() && matches!(disk.kind, LongWaitKind::Blocked { .. }));
    let LongWaitKind::Starved { instead } = &cpu.kind else { panic!("{cpu:?}") };
    assert_eq!((instead[0].tid, instead[0].name.as_str()), (99, "hog"));
}

#[test]
fn an_iteration_without_a_cpu_is_told_with_who_ran() {
    let mut bench = Bench::new();
    let (mut scheduler, maps) = begun(&bench);
    let seen = |time_ns, tid| Seen { time_ns, pid: tid, tid, comm: *b"hog\0\0\0\0\0\0\0\0\0\0\0\0\0" };
    // On two CPUs: three samples of others inside, one of the loop itself, one before.
    maps.0.borrow_mut().ran =
        vec![vec![seen(S, 9), seen(2 * S + MS, 9), seen(2 * S + 2 * MS, 7)], vec![seen(2 * S + MS, 8); 2]];
    let mut stall_with = |tid, run_queue_ns| {
        let (start_ns, end_ns) = (2 * S, 2 * S + 200 * MS);
        let iteration = Iteration { pid: 7, tid, start_ns, end_ns, run_queue_ns, ..Iteration::default() };
        bench.record(&mut scheduler, &Record::Iteration(iteration));
        let stalls = run(&mut bench, &mut scheduler).blocking.unwrap().stalls;
        let stall = stalls.into_iter().find(|stall| stall.thread.tid == tid).unwrap();
        stall.instead.iter().map(|ran| (ran.tid, ran.ns)).collect::<Vec<_>>()
    };
    assert_eq!(stall_with(7, 150 * MS), [(8, 100 * MS), (9, 50 * MS)]);
    assert_eq!(stall_with(17, 20 * MS), [], "it had a CPU nearly all the time");
}

#[test]
fn iterations_of_an_event_loop_are_its_own() {
    let mut bench = Bench::new();
    let (mut scheduler, maps) = begun(&bench);
    let seen = |tid, descriptor| LoopSeen {
        syscall: libc::SYS_epoll_pwait as i32,
        pid: 7,
        tid,
        descriptor,
        ..LoopSeen::default()
    };
    bench.with(|cx| scheduler.poll(cx));
    assert_eq!(bench.kernel.attached(), Vec::<String>::new(), "no loop has been seen");
    bench.record(&mut scheduler, &Record::Loop(seen(7, 3)));
    bench.with(|cx| scheduler.poll(cx));
    let attached = bench.kernel.attached();
    assert!(!attached.is_empty(), "the hook of its waits");
    bench.with(|cx| scheduler.poll(cx));
    assert_eq!(bench.kernel.attached(), attached, "once");
    for (known, histogram_of) in &mut maps.0.borrow_mut().histograms {
        if known.kind == HistogramKind::Iterations as u32 {
            *histogram_of = histogram(&[MS, 200 * MS]);
        }
    }
    let iteration =
        |tid| Iteration { pid: 7, tid, start_ns: 2 * S, end_ns: 2 * S + 200 * MS, ..Iteration::default() };
    bench.record(&mut scheduler, &Record::Iteration(iteration(7)));
    let blocking = run(&mut bench, &mut scheduler).blocking.unwrap();
    assert_eq!((blocking.loops[0].iterations.count, blocking.loops[0].criticals), (2, 1));
    assert_eq!(blocking.stalls[0].duration_ns, 200 * MS);
    // Two threads that share an epoll descriptor hold nobody up.
    bench.record(&mut scheduler, &Record::Loop(seen(8, 4)));
    bench.record(&mut scheduler, &Record::Loop(seen(9, 4)));
    bench.record(&mut scheduler, &Record::Iteration(iteration(8)));
    assert_eq!(run(&mut bench, &mut scheduler).blocking.unwrap().stalls.len(), 1);
    // Nor does one that waits for one connection, until it waits for more.
    let polls = |descriptor| LoopSeen { syscall: libc::SYS_ppoll as i32, ..seen(10, descriptor) };
    let process = bench.proc.path().join("7");
    std::fs::create_dir_all(process.join("fd")).unwrap();
    std::fs::create_dir_all(process.join("net")).unwrap();
    std::os::unix::fs::symlink("socket:[77]", process.join("fd/5")).unwrap();
    std::fs::write(process.join("net/unix"), "Num …\n0: 3 0 0 1 03 77\n").unwrap();
    for (descriptor, stalls) in [(5, 1), (u64::from(MANY), 2)] {
        bench.record(&mut scheduler, &Record::Loop(polls(descriptor)));
        bench.record(&mut scheduler, &Record::Iteration(iteration(10)));
        assert_eq!(run(&mut bench, &mut scheduler).blocking.unwrap().stalls.len(), stalls);
    }
}

#[test]
fn cpu_samples_explain_what_a_thread_did_in_the_kernel() {
    let mut bench = Bench::new();
    let (mut scheduler, maps) = begun(&bench);
    maps.0.borrow_mut().threads = vec![ThreadState {
        first_ns: 2 * S - 10 * MS,
        times: Times { on_cpu_ns: 10 * MS, ..Times::default() },
        phase: Phase::Running as u32,
        ..blocked(8, 2 * S, WaitCause::Unknown)
    }];
    bench.hands.set(2 * S);
    let mut in_kernel = raw(7, 8, S, &[0x10]);
    in_kernel.kernel = vec![0xffff_ffff_8100_0000];
    bench.record(&mut scheduler, &Record::Cpu(in_kernel));
    bench.record(&mut scheduler, &Record::Cpu(raw(7, 8, S + 1, &[0x10])));
    let blocking = run(&mut bench, &mut scheduler).blocking.unwrap();
    let thread = &blocking.threads[0];
    assert_eq!((thread.on_cpu_ns, thread.on_cpu_kernel_ns, thread.cpu_samples), (10 * MS, 5 * MS, 2));
}

#[test]
fn threads_that_have_ended_keep_their_time() {
    let mut bench = Bench::new();
    let (mut scheduler, _maps) = begun(&bench);
    let exit = |tid| Exit {
        pid: 7,
        tid,
        first_ns: S,
        time_ns: 3 * S,
        times: Times { on_cpu_ns: MS, ..Times::default() },
        comm: *b"gone\0\0\0\0\0\0\0\0\0\0\0\0",
        ..Exit::default()
    };
    let many = 2 * ended::KEPT as u32 + 10;
    let busy = Exit { times: Times { on_cpu_ns: 2 * MS, ..Times::default() }, ..exit(50) };
    bench.record(&mut scheduler, &Record::Exit(busy));
    for tid in 1..many {
        bench.record(&mut scheduler, &Record::Exit(exit(100 + tid)));
    }
    let blocking = run(&mut bench, &mut scheduler).blocking.unwrap();
    assert!((ended::KEPT..=2 * ended::KEPT).contains(&blocking.threads.len()), "{}", blocking.threads.len());
    let on_cpu_ns: u64 = blocking.threads.iter().map(|thread| thread.on_cpu_ns).sum();
    assert_eq!(on_cpu_ns, u64::from(many + 1) * MS);
    let sum = blocking.threads.iter().find(|thread| thread.thread == ThreadKey { pid: 7, tid: 0 }).unwrap();
    assert_eq!(sum.others as usize + blocking.threads.len(), many as usize, "none is forgotten");
    assert!(blocking.threads.iter().any(|thread| thread.thread.tid == 50), "who ran most is still there");
}

/// A server that starts a thread for each connection, each of which polls.
#[test]
fn event_loops_that_have_ended_give_their_places() {
    let mut bench = Bench::new();
    let (mut scheduler, maps) = begun(&bench);
    let seen = |tid| LoopSeen {
        syscall: libc::SYS_ppoll as i32,
        pid: 7,
        tid,
        descriptor: u64::from(MANY),
        ..LoopSeen::default()
    };
    for tid in 100..3000 {
        bench.record(&mut scheduler, &Record::Loop(seen(tid)));
        bench.record(&mut scheduler, &Record::Exit(Exit { pid: 7, tid, ..Exit::default() }));
    }
    bench.record(&mut scheduler, &Record::Loop(seen(4000)));
    let histograms = maps.0.borrow();
    let iterations =
        histograms.histograms.iter().filter(|(key, _)| key.kind == HistogramKind::Iterations as u32);
    assert!(iterations.clone().count() <= 1026, "{}", iterations.count());
    assert!(scheduler.loops.wait_of(4000).is_some() && scheduler.loops.wait_of(2999).is_none());
    assert!(scheduler.loops.wait_of(100).is_some(), "where there is room they are listed after their end");
}

#[test]
fn a_lock_that_many_wait_for_is_a_convoy_with_its_holder() {
    let mut bench = Bench::new();
    let (mut scheduler, maps) = begun(&bench);
    let root = bench.proc.path().to_owned();
    // A mutex of glibc at address 16: the lock, a count, the owner.
    let mutex = [0u32, 0, 0, 0, 2, 1, 8, 0].map(u32::to_ne_bytes).concat();
    fs::write(root.join("7/mem"), mutex).unwrap();
    let waits =
        |tid| ThreadState { object: 16, syscall: libc::SYS_futex as i32, ..blocked(tid, S, WaitCause::Lock) };
    maps.0.borrow_mut().threads = (10..30).map(waits).chain([blocked(8, S, WaitCause::Disk)]).collect();
    for second in 2..12 {
        bench.hands.set(second * S);
        bench.with(|cx| scheduler.poll(cx));
    }
    let blocking = run(&mut bench, &mut scheduler).blocking.unwrap();
    assert_eq!(blocking.convoys[0].waiters, 20);
    assert_eq!(blocking.convoys[0].holder, Some(ThreadKey { pid: 7, tid: 8 }));
}

#[test]
fn what_threads_did_before_is_told_to_the_kernel() {
    let mut bench = Bench::new();
    let (mut scheduler, maps) = begun(&bench);
    let task = bench.proc.path().join("7/task/8");
    fs::write(task.join("stat"), "8 (worker) S 1 1").unwrap();
    fs::write(task.join("syscall"), format!("{} 0x3 0x0 0x0 0x0 0x0 0x0 0x7f 0x7e\n", libc::SYS_epoll_pwait))
        .unwrap();
    let seeds: Vec<Seed> =
        [8].into_iter().filter_map(|tid| records::seed(&bench.resolver.networks, 7, tid, S)).collect();
    let stack = bench.resolver.resolve(&raw(7, 8, S, &[0x10]));
    for seed in seeds {
        scheduler.seed(seed.state, stack, &mut bench.resolver);
    }
    let state = maps.0.borrow().threads[0];
    assert_eq!((state.tid, bench.resolver.stack(state.stack)), (8, stack));
    assert!(scheduler.has_loops());
}
