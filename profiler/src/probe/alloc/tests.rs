//! The allocation probe over maps and breakpoints that a test makes.

use std::{cell::RefCell, fs, rc::Rc};

use profiler_common::{
    alloc::{Object, ObjectKey, StackTotals},
    record::RecordKind,
};

use super::{governor::Wanted, *};
use crate::{
    probe::fixtures::{Bench, process, raw},
    settings::fixtures::settings,
};

const S: u64 = 1_000_000_000;
const MIB: u64 = 1 << 20;

#[derive(Default)]
struct Held {
    stacks: Vec<(u64, StackTotals)>,
    objects: Vec<(ObjectKey, Object)>,
    mappings: Vec<(ObjectKey, Object)>,
    processes: Vec<u32>,
}

#[derive(Clone, Default)]
struct FakeMaps(Rc<RefCell<Held>>);

impl AllocMaps for FakeMaps {
    fn stacks(&self) -> Box<dyn Iterator<Item = (u64, StackTotals)> + '_> {
        Box::new(self.0.borrow().stacks.clone().into_iter())
    }

    fn objects(&self) -> Box<dyn Iterator<Item = (ObjectKey, Object)> + '_> {
        Box::new(self.0.borrow().objects.clone().into_iter())
    }

    fn forget(&mut self, key: &ObjectKey) {
        self.0.borrow_mut().objects.retain(|(known, _)| known != key);
    }

    fn mappings(&self) -> Box<dyn Iterator<Item = (ObjectKey, Object)> + '_> {
        Box::new(self.0.borrow().mappings.clone().into_iter())
    }

    fn shrink(&mut self, key: &ObjectKey, _: &Object, left: u64) -> bool {
        let mut held = self.0.borrow_mut();
        held.mappings.retain_mut(|(known, object)| {
            if known == key {
                object.size = left;
            }
            object.size > 0
        });
        true
    }

    fn forget_stack(&mut self, id: u64) {
        self.0.borrow_mut().stacks.retain(|(known, _)| *known != id);
    }

    fn add_process(&mut self, pid: u32) {
        self.0.borrow_mut().processes.push(pid);
    }

    fn forget_process(&mut self, pid: u32) {
        self.0.borrow_mut().processes.retain(|known| *known != pid);
    }

    fn unknown_frees(&self, _: u32) -> u64 {
        3
    }
}

/// Takes note of what is wanted.
#[derive(Clone, Default)]
struct FakeWatcher(Rc<RefCell<Vec<Vec<u32>>>>);

impl Watcher for FakeWatcher {
    fn want(&mut self, wanted: Wanted) {
        self.0.borrow_mut().push(wanted.into_keys().collect());
    }

    fn settle(&self, _: Duration) {}

    fn status(&self) -> Status {
        Status { watched_ns: 5, ..Status::default() }
    }

    fn stop(&mut self) {
        self.0.borrow_mut().push(Vec::new());
    }
}

/// What process 7 holds, MiB.
fn hold(bench: &Bench, mib: u64) {
    let status = format!("RssAnon:\t{} kB\nRssFile:\t4 kB\nRssShmem:\t0 kB\n", mib * 1024);
    fs::write(bench.proc.path().join("7/status"), status).unwrap();
}

fn watch(bench: &Bench, mode: Alloc) -> (MemoryWatch, FakeMaps) {
    let maps = FakeMaps::default();
    let mut of = settings(crate::process::target::Target::All).alloc;
    of.mode = mode;
    let (root, clock) = (&bench.resolver.proc_root, &bench.resolver.clock);
    (MemoryWatch::new(Box::new(maps.clone()), root, clock, &of), maps)
}

fn run(bench: &mut Bench, watch: &mut MemoryWatch) -> Memory {
    let mut totals = Totals::default();
    bench.with(|cx| watch.report(Extent::Run, &mut totals, cx));
    totals.memory.unwrap()
}

#[test]
fn processes_are_looked_at_once_a_second_and_watched_when_they_grow() {
    let mut bench = Bench::new();
    let (mut watch, maps) = watch(&bench, Alloc::Auto);
    hold(&bench, 10);
    bench.with(|cx| watch.poll(cx));
    bench.with(|cx| watch.poll(cx));
    assert_eq!((watch.held_bytes(), maps.0.borrow().processes.len()), (10 * MIB, 0));
    assert_eq!(run(&mut bench, &mut watch).watching.mode, WatchMode::Ready);
    bench.hands.set(3 * S);
    hold(&bench, 20);
    bench.with(|cx| watch.poll(cx));
    assert_eq!(maps.0.borrow().processes, [7], "it grows");
    let memory = run(&mut bench, &mut watch);
    assert_eq!((memory.processes[0].process.as_str(), memory.processes[0].growth.points().len()), ("app", 2));
    assert!(memory.watching.problems.iter().any(|problem| problem.contains("no allocator found")));
    // There is no kernel to load the programs into: the run goes on without.
    assert!(memory.watching.problems.iter().any(|problem| problem.contains("there is no kernel")));
    assert_eq!(memory.watching.mode, WatchMode::Off);
    // It has ended.
    fs::remove_dir_all(bench.proc.path().join("7")).unwrap();
    bench.hands.set(5 * S);
    bench.with(|cx| watch.poll(cx));
    assert_eq!(watch.held_bytes(), 0);
}

#[test]
fn sites_get_points_and_objects_ages() {
    let mut bench = Bench::new();
    let (mut watch, maps) = watch(&bench, Alloc::Full);
    let watcher = FakeWatcher::default();
    watch.governor = Some(Box::new(watcher.clone()));
    hold(&bench, 10);
    bench.record(&mut watch, &Record::AllocStack(50, raw(7, 8, S, &[0x10])));
    let totals = StackTotals {
        allocated_bytes: 640,
        allocated_count: 10,
        seen_allocated: 10,
        freed_bytes: 64,
        freed_count: 1,
        ..StackTotals::EMPTY
    };
    let of_nobody = StackTotals { allocated_bytes: 1, allocated_count: 1, ..totals };
    maps.0.borrow_mut().stacks = vec![(50, totals), (51, of_nobody)]; // the stack of 51 has not come
    let object = |pid, address, time_ns| {
        let key = ObjectKey { pid, address, _padding: 0 };
        (key, Object { size: 64, stack: 50, time_ns, weight: 2, window: 0 })
    };
    maps.0.borrow_mut().objects = vec![object(7, 1, S), object(7, 2, 2 * S), object(9, 1, S)];
    bench.with(|cx| watch.poll(cx));
    bench.hands.set(3 * S);
    bench.with(|cx| watch.poll(cx));
    let memory = run(&mut bench, &mut watch);
    assert_eq!(memory.watching.mode, WatchMode::Watched);
    let [site] = &memory.sites[..] else { panic!("{:?}", memory.sites) };
    assert_eq!((site.pid, site.allocated_bytes, site.freed_count, site.estimated), (7, 640, 1, false));
    assert_eq!(site.points.points().iter().map(|point| point.live_bytes).collect::<Vec<_>>(), [576.0, 576.0]);
    assert_eq!(site.ages_ns.total(), 6, "weighted");

    // It runs another program since 2 s: what it had allocated before is gone.
    let exec = |time_ns| Notice { time_ns, pid: 7, event: Event::Exec { name: "other".into() } };
    watch.notice(&exec(2 * S));
    assert_eq!(maps.0.borrow().objects.len(), 2);
    bench.hands.set(5 * S);
    bench.with(|cx| watch.poll(cx));
    let memory = run(&mut bench, &mut watch);
    assert_eq!((memory.sites[0].freed_bytes, memory.sites[0].freed_count), (64 + 2 * 64, 3));
    bench.with(|cx| watch.stop(cx));
    assert_eq!(watcher.0.borrow().last(), Some(&Vec::new()));
    let points = run(&mut bench, &mut watch).sites[0].points.points().len();
    bench.hands.set(9 * S);
    bench.with(|cx| watch.poll(cx));
    assert_eq!(run(&mut bench, &mut watch).sites[0].points.points().len(), points, "nothing after the end");
}

#[test]
fn snapshots_look_first_and_checkpoints_leave_ages_out() {
    let mut bench = Bench::new();
    let (mut watch, maps) = watch(&bench, Alloc::Full);
    watch.governor = Some(Box::new(FakeWatcher::default()));
    process(bench.proc.path(), 7, "renamed");
    hold(&bench, 10);
    let mut stack = raw(7, 8, S, &[0x10]);
    stack.header.kind = RecordKind::CpuSample as u32;
    bench.record(&mut watch, &Record::AllocStack(50, stack));
    let totals = StackTotals { allocated_bytes: 64, allocated_count: 1, ..StackTotals::EMPTY };
    maps.0.borrow_mut().stacks = vec![(50, totals)];
    let key = ObjectKey { pid: 7, address: 1, _padding: 0 };
    maps.0.borrow_mut().objects = vec![(key, Object { stack: 50, weight: 1, ..Object::default() })];
    let mut totals = Totals::default();
    bench.with(|cx| watch.report(Extent::Checkpoint, &mut totals, cx));
    assert!(totals.memory.take().unwrap().processes.is_empty(), "nothing has been looked at");
    bench.with(|cx| watch.report(Extent::Snapshot, &mut totals, cx));
    let memory = totals.memory.take().unwrap();
    assert_eq!((memory.processes[0].process.as_str(), memory.sites[0].ages_ns.total()), ("renamed", 1));
    bench.with(|cx| watch.report(Extent::Checkpoint, &mut totals, cx));
    assert_eq!(totals.memory.unwrap().sites[0].ages_ns.total(), 0);
}

#[test]
fn who_has_ended_gives_place_to_who_lives() {
    let mut bench = Bench::new();
    let (mut watch, maps) = watch(&bench, Alloc::Off);
    watch.governor = Some(Box::new(FakeWatcher::default()));
    let root = bench.proc.path().to_owned();
    let set = |pid: u32, mib: u64| {
        process(&root, pid, "app");
        let status = format!("RssAnon:\t{} kB\nRssFile:\t4 kB\nRssShmem:\t0 kB\n", mib * 1024);
        fs::write(root.join(format!("{pid}/status")), status).unwrap();
    };
    // The first hundred are the kernel's threads: they hold nothing, and need no place.
    let first: Vec<u32> = (1..=100 + MAX_PROCESSES as u32).collect();
    first.iter().skip(100).for_each(|&pid| set(pid, 10));
    bench.record(&mut watch, &Record::AllocStack(50, raw(101, 101, S, &[0x10])));
    maps.0.borrow_mut().stacks = vec![(50, StackTotals { allocated_bytes: 1, ..StackTotals::EMPTY })];
    let mut look = |watch: &mut MemoryWatch, pids: &[u32], s| {
        bench.hands.set(s * S);
        bench.with(|cx| watch.look(pids, cx.kernel));
    };
    look(&mut watch, &first, 1);
    assert_eq!((watch.processes.len(), watch.unlisted), (MAX_PROCESSES, 0));
    let more: Vec<u32> = (5000..5002).collect();
    more.iter().for_each(|&pid| set(pid, 20));
    look(&mut watch, &[&first[..], &more[..]].concat(), 2);
    assert_eq!((watch.unlisted, watch.sites.len()), (2, 1), "all places are taken, and that is said");
    // Two end, one of them after it has grown: the one that tells least goes, and what it allocated.
    set(102, 90);
    look(&mut watch, &first, 3);
    [101, 102].iter().for_each(|pid| fs::remove_dir_all(root.join(pid.to_string())).unwrap());
    look(&mut watch, &first, 4);
    look(&mut watch, &[&first[..], &more[..1]].concat(), 5);
    assert!(watch.processes[&102].gone && !watch.processes.contains_key(&101));
    assert_eq!((watch.processes.contains_key(&5000), watch.sites.len()), (true, 0));
    assert!(maps.0.borrow().stacks.is_empty(), "its place in the kernel is free too");
    // The number is used again.
    set(102, 30);
    look(&mut watch, &first, 6);
    assert_eq!((watch.processes[&102].gone, watch.processes[&102].growth.points().len()), (false, 1));
}

#[test]
fn so_many_are_watched_at_once() {
    let mut bench = Bench::new();
    let (mut watch, maps) = watch(&bench, Alloc::Full);
    watch.governor = Some(Box::new(FakeWatcher::default()));
    let root = bench.proc.path().to_owned();
    let pids: Vec<u32> = (1000..1000 + MAX_ALLOC_PROCESSES + 1).collect();
    for &pid in &pids {
        process(&root, pid, "app");
        fs::write(root.join(format!("{pid}/status")), "RssAnon:\t4 kB\nRssFile:\t4 kB\nRssShmem:\t0 kB\n")
            .unwrap();
    }
    bench.with(|cx| watch.look(&pids, cx.kernel));
    assert_eq!(maps.0.borrow().processes.len(), MAX_ALLOC_PROCESSES as usize);
    assert!(run(&mut bench, &mut watch).watching.problems[0].contains("more than 64 processes"));
    // One ends: the last one has its place.
    fs::remove_dir_all(root.join("1003")).unwrap();
    bench.with(|cx| watch.look(&pids, cx.kernel));
    bench.with(|cx| watch.look(&pids, cx.kernel));
    let held = maps.0.borrow();
    assert!(!held.processes.contains(&1003) && held.processes.contains(&pids[64]), "{:?}", held.processes);
}
