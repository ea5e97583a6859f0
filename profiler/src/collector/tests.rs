//! Runs without a kernel: what it sends is put in by the test.

use std::fs;

use profiler_common::{loss::Tally, record::RecordKind, sched::StackHeader};

use super::{fixtures::run_of_7, *};
use crate::{
    model::{
        kind::CPU,
        stack::{ModuleKind, ThreadKey},
    },
    probe::fixtures::{bytes, process, raw},
};

const S: u64 = 1_000_000_000;

fn mapped(time_ns: u64, path: &str) -> Notice {
    let event = Event::Mapped {
        start: 0x1000,
        len: 0x1000,
        file_offset: 0,
        device: (0, 0),
        inode: 0,
        path: path.into(),
    };
    Notice { time_ns, pid: 7, event }
}

#[test]
fn records_and_notices_are_taken_in_by_time() {
    let mut run = run_of_7();
    // Out of order, as they come from several CPUs; the code is mapped between the two samples.
    let sample = |time_ns| bytes(&raw(7, 7, time_ns, &[0x1800]));
    run.kernel.0.borrow_mut().records = vec![sample(30), sample(10), vec![0xff; 3]];
    run.kernel.0.borrow_mut().notices = (vec![mapped(20, "//anon")], 0);
    assert_eq!(run.collector.drain(&mut run.kept).unwrap(), Targets::Live);
    let tables = run.collector.tables();
    let kinds: Vec<_> = run
        .kept
        .0
        .iter()
        .map(|(sample, _)| tables.module(tables.stack(sample.stack).frames[0].module).kind.clone())
        .collect();
    assert_eq!(kinds, [ModuleKind::Unmapped, ModuleKind::Jit(7)]);
    assert_eq!(run.collector.resolver.losses.get(Loss::BadRecord), 1);
}

/// The kernel programs have room for so many stacks that they know; a machine that starts programs all day has more.
#[test]
fn the_kernel_programs_send_stacks_again_before_they_have_no_room() {
    let mut run = run_of_7();
    let stack = |id: u64| {
        let mut bytes = bytes(&raw(7, 7, 10, &[0x1800 + id]));
        // A stack's id is where a sample has its name; the kind comes first.
        let at = std::mem::offset_of!(StackHeader, id);
        bytes[at..at + 8].copy_from_slice(&id.to_ne_bytes());
        bytes[..4].copy_from_slice(&(RecordKind::Stack as u32).to_ne_bytes());
        bytes
    };
    for round in 0..3 {
        let ids = 1 + round * 20_000..1 + (round + 1) * 20_000;
        run.kernel.0.borrow_mut().records = ids.map(stack).collect();
        run.collector.drain(&mut run.kept).unwrap();
    }
    let sent_again = run.kernel.0.borrow().sent_again.len();
    assert_eq!(sent_again, 40_000, "all of two rounds, when there were too many");
    let resolver = &run.collector.resolver;
    assert!(resolver.stack(60_000).is_some() && resolver.stack(30_000).is_some(), "sent just now, or kept");
    run.kernel.0.borrow_mut().records = (60_001..=85_000).map(stack).collect();
    run.collector.drain(&mut run.kept).unwrap();
    let resolver = &run.collector.resolver;
    assert!(resolver.stack(85_000).is_some());
    assert_eq!(resolver.stack(30_000), None, "nothing refers to it");
}

/// Names of threads that have ended grow with the run, but for those of samples.
#[test]
fn names_that_nothing_refers_to_are_forgotten() {
    let mut run = run_of_7();
    run.kernel.0.borrow_mut().records = vec![bytes(&raw(7, 8, 30, &[0x1800]))];
    run.collector.drain(&mut run.kept).unwrap();
    let threads = &mut run.collector.resolver.tables.threads;
    threads.insert(ThreadKey { pid: 7, tid: 7 }, "app".to_owned());
    threads.extend((0..65_536).map(|tid| (ThreadKey { pid: 9, tid }, "sh".to_owned())));
    run.collector.drain(&mut run.kept).unwrap();
    let left: Vec<_> = run.collector.tables().threads.keys().map(|thread| thread.tid).collect();
    assert_eq!(left, [8, 7], "the sampled one and its process");
}

#[test]
fn a_run_ends_with_its_targets() {
    let mut run = run_of_7();
    fs::remove_dir_all(run.proc.path().join("7")).unwrap();
    assert_eq!(run.collector.drain(&mut run.kept).unwrap(), Targets::Live, "nobody has looked");
    run.kernel.0.borrow_mut().notices = (vec![Notice { time_ns: 5, pid: 7, event: Event::Exited }], 0);
    assert_eq!(run.collector.drain(&mut run.kept).unwrap(), Targets::Ended);
    assert_eq!(run.kernel.0.borrow().targets, [] as [u32; 0]);
}

#[test]
fn without_notices_it_is_looked_once_a_second_who_has_ended() {
    let mut run = run_of_7();
    fs::remove_dir_all(run.proc.path().join("7")).unwrap();
    run.hands.set(2 * S);
    assert_eq!(run.collector.drain(&mut run.kept).unwrap(), Targets::Ended);
}

#[test]
fn the_report_holds_totals_losses_and_costs() {
    let mut run = run_of_7();
    run.kernel.tally(Tally::SamplesTaken, 3);
    run.kernel.lose(Loss::RingBufferFull, 2);
    run.kernel.0.borrow_mut().records = vec![bytes(&raw(7, 7, 10, &[0x1800]))];
    run.kernel.0.borrow_mut().notices = (Vec::new(), 4);
    run.hands.set(3 * S);
    run.collector.drain(&mut run.kept).unwrap();
    let (interval, calls) = run.collector.interval_run().unwrap();
    assert_eq!((interval.cpu.total, interval.cpu.accounts.duration_ns, calls), (1, 2 * S, None));
    // What still waits when it ends is taken in.
    run.kernel.0.borrow_mut().records = vec![bytes(&raw(7, 7, 20, &[0x1800]))];
    run.hands.set(4 * S);
    run.collector.stop(&mut run.kept).unwrap();
    assert!(run.kernel.0.borrow().detached);
    run.hands.set(9 * S);
    let (report, totals) = run.collector.run().unwrap();
    assert_eq!(totals.map(|of| of.total), [2, 0, 0]);
    let accounts = &report.cpu.accounts;
    assert_eq!((report.cpu.total, report.cpu.kind, accounts.samples_taken), (2, CPU, 3));
    assert_eq!((accounts.duration_ns, run.collector.elapsed()), (3 * S, Duration::from_secs(3)));
    let losses = [Loss::RingBufferFull, Loss::MappingNoticesLost, Loss::ProcessGone];
    assert_eq!(losses.map(|loss| accounts.losses.get(loss)), [2, 4, 0]);
    assert_eq!(
        (accounts.probes.len(), accounts.probes[0].name.as_str(), accounts.probes[0].ns),
        (1, "cpu", 7)
    );
    assert_eq!(report.cpu.meta.target, "pid 7 (app)");
    assert!(report.off_cpu.is_none() && report.memory.is_none());
}

#[test]
fn a_command_is_called_by_its_own_name_before_it_runs() {
    let proc = tempfile::tempdir().unwrap();
    process(proc.path(), 7, "profiler"); // forked, not yet executed
    let target = Target::Pids { pids: vec![7], follow: true };
    let name = crate::process::launch::name("/usr/bin/python3".as_ref());
    assert_eq!(describe(&target, &[7], Some(name), proc.path()), "pid 7 and children (python3)");
    assert_eq!(crate::process::launch::name("./a-rather-long-name".as_ref()), "a-rather-long-n");
    assert_eq!(describe(&Target::All, &[], None, proc.path()), "all processes");
}
