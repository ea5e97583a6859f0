//! The system-call probe over maps that a test fills.

use std::{cell::RefCell, fs, rc::Rc};

use profiler_common::{
    histogram::{BUCKETS, Histogram, bucket},
    syscall::{CallStats, ErrorKey, Majority, SIZES, WaitKind, WaitsStats},
};

use super::*;
use crate::probe::{
    ended,
    fixtures::Bench,
    syscall::{counts::Lengths, maps::Entries},
};

const MS: u64 = 1_000_000;
const S: u64 = 1_000 * MS;

/// What the kernel's maps hold.
#[derive(Default)]
struct Held {
    slow_ns: u64,
    listening: Vec<(u32, u16)>,
    calls: BTreeMap<CallKey, CallStats>,
    errors: BTreeMap<ErrorKey, u64>,
    waits: BTreeMap<WaitsKey, WaitsStats>,
    io: Vec<(IoKey, IoStats)>,
    time: Vec<(CallTimeKey, u64)>,
    forgotten: u32,
}

#[derive(Clone, Default)]
struct FakeMaps(Rc<RefCell<Held>>);

fn entries<K: 'static, V: 'static>(entries: Vec<(K, V)>) -> Entries<'static, K, V> {
    Box::new(entries.into_iter())
}

impl CallMaps for FakeMaps {
    fn set_slow(&mut self, ns: u64) -> Result<()> {
        self.0.borrow_mut().slow_ns = ns;
        Ok(())
    }

    fn listens(&mut self, pid: u32, port: u16) {
        self.0.borrow_mut().listening.push((pid, port));
    }

    fn forget_in_progress(&mut self) {
        self.0.borrow_mut().forgotten += 1;
    }

    fn calls(&self) -> Entries<'_, CallKey, CallStats> {
        entries(self.0.borrow().calls.clone().into_iter().collect())
    }

    fn errors(&self) -> Entries<'_, ErrorKey, u64> {
        entries(self.0.borrow().errors.clone().into_iter().collect())
    }

    fn waits(&self) -> Entries<'_, WaitsKey, WaitsStats> {
        entries(self.0.borrow().waits.clone().into_iter().collect())
    }

    fn io(&self) -> Entries<'_, IoKey, IoStats> {
        entries(self.0.borrow().io.clone())
    }

    fn time(&self) -> Entries<'_, CallTimeKey, u64> {
        entries(self.0.borrow().time.clone())
    }

    fn forget_call(&mut self, key: &CallKey) {
        self.0.borrow_mut().calls.remove(key);
    }

    fn forget_error(&mut self, key: &ErrorKey) {
        self.0.borrow_mut().errors.remove(key);
    }

    fn forget_waits(&mut self, key: &WaitsKey) {
        self.0.borrow_mut().waits.remove(key);
    }

    fn forget_io(&mut self, key: &IoKey) {
        self.0.borrow_mut().io.retain(|(known, _)| known != key);
    }

    fn forget_time(&mut self, key: &CallTimeKey) {
        self.0.borrow_mut().time.retain(|(known, _)| known != key);
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

fn call(pid: u32, number: i64) -> CallKey {
    CallKey { pid, tid: 0, number: number as u32 }
}

fn stats(key: CallKey, lengths: &[u64]) -> CallStats {
    CallStats {
        key,
        _reserved: 0,
        lengths: histogram(lengths),
        blocked_ns: 5,
        run_queue_ns: 1,
        errors: 0,
        unfinished: 0,
    }
}

fn begun(bench: &Bench) -> (CallCollector, FakeMaps) {
    let maps = FakeMaps::default();
    let (root, clock) = (&bench.resolver.proc_root, &bench.resolver.clock);
    let (redact, storms) = (Redact::new(false), Storms::new(0.05, &[]));
    let calls = CallCollector::new(Box::new(maps.clone()), &[7], &Networks::new(root), clock, redact, storms)
        .unwrap();
    (calls, maps)
}

fn run(bench: &mut Bench, calls: &mut CallCollector) -> syscall::Calls {
    let mut totals = Totals::default();
    bench.with(|cx| calls.report(Extent::Run, &mut totals, cx));
    totals.calls.unwrap()
}

#[test]
fn counts_go_on_when_the_kernels_wrap_around_or_begin_again() {
    let mut lengths = Lengths::default();
    let mut kernel = Histogram { max_ns: 7, sum_ns: 0, counts: [0; BUCKETS] };
    kernel.counts[3] = u32::MAX - 1;
    assert_eq!(lengths.take(&kernel), u64::from(u32::MAX) - 1);
    kernel.counts[3] = 3;
    assert_eq!(lengths.take(&kernel), 5);
    lengths.end();
    assert_eq!(lengths.take(&kernel), 3);
    assert_eq!(lengths.summary(0).count, u64::from(u32::MAX) + 7);
}

#[test]
fn what_many_ended_processes_did_is_added_up() {
    let mut bench = Bench::new();
    let (mut calls, maps) = begun(&bench);
    let many = 2 * ended::KEPT as u32 + 10;
    // Process 7 lives and did least of all; 1001 did most of those that have ended.
    let length = |pid| if pid == 1001 { 2 * MS } else { MS };
    let busy = call(7, libc::SYS_read);
    maps.0.borrow_mut().calls.insert(busy, stats(busy, &[1]));
    for pid in 1001..1001 + many {
        let of = call(pid, libc::SYS_read);
        let mut held = maps.0.borrow_mut();
        held.calls.insert(of, stats(of, &[length(pid)]));
        held.errors.insert(ErrorKey { call: of, errno: libc::EIO as u32 }, 1);
        let wait = WaitsKey { pid, kind: WaitKind::FileRead as u32, ..WaitsKey::default() };
        let lengths = histogram(&[length(pid)]);
        held.waits.insert(wait, WaitsStats { lengths, most: Majority::default() });
        let (key, first_ns) = (IoKey { pid, descriptor: 3 }, 1);
        held.io.push((key, IoStats { key, first_ns, calls: 1, ns: length(pid), ..IoStats::default() }));
    }
    let found = run(&mut bench, &mut calls);
    let all = (u64::from(many) + 1) * MS;
    assert_eq!(found.calls.iter().map(|of| of.lengths.sum_ns).sum::<u64>(), all + 1);
    assert_eq!(found.calls.iter().map(|of| of.lengths.count).sum::<u64>(), u64::from(many) + 1);
    let errors = found.calls.iter().flat_map(|of| &of.errors).map(|(_, n)| n).sum::<u64>();
    assert_eq!(errors, u64::from(many));
    assert_eq!(found.waits.iter().map(|of| of.lengths.sum_ns).sum::<u64>(), all);
    assert_eq!(found.objects.iter().map(|of| of.ns).sum::<u64>(), all);
    assert_eq!(found.objects.iter().map(|of| of.calls).sum::<u64>(), u64::from(many));
    assert!(found.objects_unlisted > 0);
    for rows in [found.calls.len(), found.waits.len(), found.objects.len()] {
        assert!((ended::KEPT..=2 * ended::KEPT).contains(&rows), "{rows}");
    }
    assert!(found.calls.iter().any(|of| of.thread.pid == 7), "who lives is never added up");
    assert!(found.calls.iter().any(|of| of.thread.pid == 1001 && of.lengths.sum_ns == 2 * MS));
    assert!(found.calls.iter().any(|of| of.process == "(others)" && of.lengths.count > 1));
}

#[test]
fn half_of_the_sizes_are_no_larger() {
    let mut sizes = [0; SIZES];
    sizes[3] = 5;
    sizes[6] = 4;
    assert_eq!(median_bytes(&sizes), 8);
    sizes[6] = 6;
    assert_eq!(median_bytes(&sizes), 64);
}

#[test]
fn calls_and_errors_are_counted_once_and_kept_after_the_end_of_their_process() {
    let mut bench = Bench::new();
    let (mut calls, maps) = begun(&bench);
    let (of, gone) = (call(7, libc::SYS_openat), call(9, libc::SYS_read));
    maps.0.borrow_mut().calls.insert(of, stats(of, &[MS, 2 * MS]));
    maps.0.borrow_mut().calls.insert(gone, stats(gone, &[MS]));
    maps.0.borrow_mut().errors.insert(ErrorKey { call: of, errno: libc::EMFILE as u32 }, 1);
    maps.0.borrow_mut().errors.insert(ErrorKey { call: gone, errno: libc::EIO as u32 }, 1);
    bench.with(|cx| calls.poll(cx));
    assert_eq!(maps.0.borrow().calls.len(), 2, "not due yet");
    bench.hands.set(3 * S);
    bench.with(|cx| calls.poll(cx));
    // Process 9 is not there any more: the kernel has room for others.
    assert_eq!((maps.0.borrow().calls.len(), maps.0.borrow().errors.len()), (1, 1));
    let interval = calls.interval().unwrap().unwrap();
    assert_eq!((interval.calls, interval.failed), (3, 2));
    assert_eq!(calls.interval().unwrap().unwrap().calls, 0);
    maps.0.borrow_mut().calls.insert(of, stats(of, &[MS, 2 * MS, 4 * MS]));
    let found = run(&mut bench, &mut calls);
    let [opens, reads] = &found.calls[..] else { panic!("{:?}", found.calls) };
    assert_eq!((opens.syscall.as_str(), opens.process.as_str(), opens.lengths.count), ("openat", "app", 3));
    assert_eq!((opens.lengths.sum_ns, opens.blocked_ns), (7 * MS, 5));
    assert_eq!(opens.errors, [("EMFILE".to_owned(), 1)]);
    assert_eq!((reads.lengths.count, reads.errors.len()), (1, 1));
}

#[test]
fn time_in_calls_becomes_samples_below_their_call() {
    let mut bench = Bench::new();
    let (mut calls, maps) = begun(&bench);
    bench.stack(50, &[0x10, 0x20]);
    let key = |stack| CallTimeKey { stack, pid: 7, tid: 8, number: libc::SYS_fsync as u32, _reserved: 0 };
    maps.0.borrow_mut().time = vec![(key(50), 10 * MS), (key(0), MS)];
    bench.with(|cx| calls.flush(false, cx));
    maps.0.borrow_mut().time = vec![(key(50), 14 * MS), (key(0), MS)];
    bench.with(|cx| calls.flush(true, cx));
    let weights: Vec<u64> = bench.kept.0.iter().map(|(sample, _)| sample.weight).collect();
    assert_eq!(weights, [10 * MS, MS, 4 * MS]);
    let tables = &bench.resolver.tables;
    for (sample, _) in &bench.kept.0 {
        let outermost = tables.stacks.outermost(sample.stack).unwrap();
        assert_eq!(tables.module(outermost.module).kind, ModuleKind::Syscall);
        assert_eq!(outermost.address, libc::SYS_fsync as u64);
    }
    // A thread that has ended makes room once all of its time has been taken.
    fs::remove_dir_all(bench.proc.path().join("7/task/8")).unwrap();
    bench.with(|cx| calls.flush(true, cx));
    assert!(maps.0.borrow().time.is_empty());
}

#[test]
fn the_slowest_calls_are_kept_and_no_more_are_sent_than_one_can_read() {
    let mut bench = Bench::new();
    let (mut calls, maps) = begun(&bench);
    assert_eq!(maps.0.borrow().slow_ns, SLOW_NS.0);
    for n in 1..=SLOW_WANTED + 100 {
        // SAFETY: repr(C) integers, for which zeros will do.
        let mut slow: SlowCall = unsafe { std::mem::zeroed() };
        (slow.pid, slow.tid, slow.number) = (7, 8, libc::SYS_fsync as u32);
        (slow.start_ns, slow.end_ns) = (n, n + n * MS);
        bench.record(&mut calls, &Record::SlowCall(Box::new(slow)));
    }
    let found = run(&mut bench, &mut calls);
    assert_eq!(found.slow.len(), MAX_SLOW);
    assert_eq!(found.slow[0].duration_ns, (SLOW_WANTED + 100) * MS);
    assert_eq!(found.slow[0].process, "app");
    assert_eq!(maps.0.borrow().slow_ns, 2 * SLOW_NS.0);
    run(&mut bench, &mut calls);
    assert_eq!(maps.0.borrow().slow_ns, SLOW_NS.0, "few came: shorter ones are welcome");
}

#[test]
fn what_is_done_with_descriptors_adds_up_by_what_they_are() {
    let mut bench = Bench::new();
    let (mut calls, maps) = begun(&bench);
    bench.resolver.name_thread(ThreadKey { pid: 7, tid: 7 });
    fs::create_dir_all(bench.proc.path().join("7/fd")).unwrap();
    std::os::unix::fs::symlink("/var/log/app", bench.proc.path().join("7/fd/3")).unwrap();
    let key = |pid| IoKey { pid, descriptor: 3 };
    let io = |pid, first_ns| IoStats {
        key: key(pid),
        first_ns,
        last_ns: first_ns + MS,
        calls: 2,
        bytes: 100,
        tid: 7,
        ..IoStats::default()
    };
    maps.0.borrow_mut().io = vec![(key(7), io(7, S)), (key(9), io(9, S))];
    bench.hands.set(3 * S);
    bench.with(|cx| calls.poll(cx));
    assert_eq!(maps.0.borrow().io.len(), 1, "process 9 has ended");
    // It is closed and opened again: another use of the same file.
    let closed = IoRecord { kind: 0, closed: 1, stats: io(7, S), name: Name::EMPTY };
    bench.record(&mut calls, &Record::Io(Box::new(closed)));
    maps.0.borrow_mut().io = vec![(key(7), io(7, 2 * S))];
    bench.hands.set(5 * S);
    bench.with(|cx| calls.poll(cx));
    let found = run(&mut bench, &mut calls);
    let file = found.objects.iter().find(|io| io.object == "/var/log/app").unwrap();
    assert_eq!((file.calls, file.bytes, file.descriptors, file.process.as_str()), (4, 200, 2, "app"));
    let again = run(&mut bench, &mut calls);
    assert_eq!(again.objects, found.objects, "what is still open is counted once");
    assert!(found.objects.iter().any(|io| io.pid == 9 && io.object == "descriptor 3"));
}

#[test]
fn waits_add_up_by_kind_and_peer() {
    let mut bench = Bench::new();
    let (mut calls, maps) = begun(&bench);
    let key = |pid| WaitsKey { pid, kind: WaitKind::Lock as u32, ..WaitsKey::default() };
    let waits = WaitsStats { lengths: histogram(&[MS, MS]), most: Majority::default() };
    maps.0.borrow_mut().waits = [(key(7), waits), (key(9), waits)].into();
    let found = run(&mut bench, &mut calls);
    assert_eq!(maps.0.borrow().waits.len(), 1, "process 9 has ended");
    let again = run(&mut bench, &mut calls);
    assert_eq!(again.waits, found.waits);
    let counts: Vec<_> = found.waits.iter().map(|waits| (waits.pid, waits.lengths.sum_ns)).collect();
    assert_eq!(counts.iter().map(|(_, ns)| ns).sum::<u64>(), 4 * MS);
    assert!(counts.iter().all(|(_, ns)| *ns == 2 * MS));
}
