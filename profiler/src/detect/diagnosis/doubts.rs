//! Figures for the same thing that come from different probes and disagree beyond their errors: which one to believe, and why.

use std::collections::BTreeMap;

use crate::{
    detect::words::Namer,
    model::{
        loss::Loss,
        memory::{Footprint, Memory, Site},
        report::Run,
        units::{bytes, count, time},
        wait::{Blocking, ThreadTime},
    },
};

/// What disagrees, in words: one line at most for each pair of figures, but for memory, which has one for each process.
pub fn doubts(run: &Run) -> Vec<String> {
    let of_cpus = on_cpu(run).or_else(|| on_cpu_by_thread(run));
    let memory =
        run.memory.iter().flat_map(|memory| memory.processes.iter().filter_map(|of| held(of, memory)));
    of_cpus.into_iter().chain(parts(run)).chain(in_calls(run)).chain(memory).collect()
}

/// A difference is one from so many standard errors on, and from so many ns, and such a part of the larger figure.
const SURE: f64 = 4.0;
const LITTLE_NS: f64 = 100e6;
const LITTLE_SHARE: f64 = 0.15;
/// Figures without an error may differ by such a part, for what happens while they are read.
const GAP: f64 = 0.05;
/// Turns on a CPU that are shorter are short, ns: getting in and out of them is a good part of them.
const SHORT_TURN_NS: u64 = 200_000;
/// Such a part of all samples must be known of single threads for these to be judged: what is lost or not kept is nobody's.
const OF_THREADS: f64 = 0.95;

/// Samples, as a number that one may be wrong about, beside what the scheduler says, which sees each turn on a CPU begin and end.
struct Sampled {
    samples: f64,
    scheduled_ns: u64,
    period_ns: f64,
}

impl Sampled {
    fn ns(&self) -> f64 {
        self.samples * self.period_ns
    }

    /// Whether they disagree by `sure` standard errors, which are those of counting.
    fn disagrees(&self, sure: f64) -> bool {
        let scheduled_ns = self.scheduled_ns as f64;
        let expected = (scheduled_ns / self.period_ns).max(1.0);
        let limit = (sure * expected.sqrt() * self.period_ns)
            .max(LITTLE_NS)
            .max(LITTLE_SHARE * self.ns().max(scheduled_ns));
        self.period_ns > 0.0 && (self.ns() - scheduled_ns).abs() > limit
    }

    /// Why, where a turn on a CPU takes so long.
    fn why(&self, turn_ns: u64) -> String {
        if self.ns() > self.scheduled_ns as f64 {
            "the program works in step with them: another -F".to_owned()
        } else if turn_ns < SHORT_TURN_NS {
            format!(
                "its turns are short ({}), and no sample sees their first and last moments",
                time(turn_ns)
            )
        } else {
            "they come late or not at all where interrupts are off, or the machine is held up".to_owned()
        }
    }
}

/// Time on CPUs by samples and by the scheduler.
fn on_cpu(run: &Run) -> Option<String> {
    let blocking = run.blocking.as_ref()?;
    let accounts = &run.cpu.accounts;
    // Of a part of a run, too: what was lost is lost to all alike.
    let kept = 1.0 - accounts.losses.lost() as f64 / accounts.samples_taken.max(1) as f64;
    let of = Sampled {
        samples: if kept > 0.0 { run.cpu.total as f64 / kept } else { accounts.samples_taken as f64 },
        scheduled_ns: blocking.threads.iter().map(|of| of.on_cpu_ns).sum(),
        period_ns: run.cpu.meta.period_ns as f64,
    };
    let turns: u64 = blocking.run_queue.iter().map(|of| of.waits.count).sum();
    of.disagrees(SURE).then(|| {
        format!(
            "samples say {} on CPUs, the scheduler {}, which is right ({}); shares of functions can be off as much",
            time(of.ns() as u64),
            time(of.scheduled_ns),
            of.why(of.scheduled_ns / turns.max(1)),
        )
    })
}

/// The same of each thread, where they agree in all. Of many threads some are far off by chance.
fn on_cpu_by_thread(run: &Run) -> Option<String> {
    let blocking = run.blocking.as_ref()?;
    let counted: u64 = blocking.threads.iter().map(|of| of.cpu_samples).sum();
    if (counted as f64) < OF_THREADS * run.cpu.accounts.samples_taken as f64 {
        return None;
    }
    let sure = f64::sqrt(SURE.powi(2) + 2.0 * (blocking.threads.len().max(1) as f64).ln());
    let each = blocking.threads.iter().map(|thread| {
        let period_ns = run.cpu.meta.period_ns as f64;
        (thread, Sampled { samples: thread.cpu_samples as f64, scheduled_ns: thread.on_cpu_ns, period_ns })
    });
    let off = each.filter(|(_, of)| of.disagrees(sure));
    let ((thread, of), more) = worst(off, |(_, of)| (of.ns() - of.scheduled_ns as f64).abs(), "such thread")?;
    Some(format!(
        "of {} samples say {} on CPUs, the scheduler {}, which is right ({}){more}; shares of its functions can be off as much",
        Namer::new(Some(blocking)).thread(thread.thread),
        time(of.ns() as u64),
        time(of.scheduled_ns),
        of.why(turn_ns(blocking, thread)),
    ))
}

/// How long a thread has a CPU at a time, ns: on average, and that of its process where its own is not known.
fn turn_ns(blocking: &Blocking, thread: &ThreadTime) -> u64 {
    if let Some(own) = thread.run_queue.filter(|own| own.count > 0) {
        return thread.on_cpu_ns / own.count;
    }
    let pid = thread.thread.pid;
    let turns = blocking.run_queue.iter().find(|of| of.pid == pid).map_or(0, |of| of.waits.count);
    let on_cpu_ns = blocking.on_cpu_by_process().get(&pid).copied().unwrap_or(0);
    on_cpu_ns / turns.max(1)
}

/// The parts of each thread's time, and how long it was there.
fn parts(run: &Run) -> Option<String> {
    let blocking = run.blocking.as_ref()?;
    let gap = |of: &ThreadTime| of.accounted_ns().abs_diff(of.wall_ns) as f64;
    let off = blocking.threads.iter().filter(|of| {
        let larger = of.accounted_ns().max(of.wall_ns) as f64;
        gap(of) > LITTLE_NS.max(GAP * larger)
    });
    let (of, more) = worst(off, |of| gap(of), "such thread")?;
    Some(format!(
        "{} was there for {}, which is right, and on CPUs, waiting for one and blocked for {} in all{more}",
        Namer::new(Some(blocking)).thread(of.thread),
        time(of.wall_ns),
        time(of.accounted_ns()),
    ))
}

/// Time blocked in system calls, where all of them were watched, and by the scheduler, which has that of other blocks, too, and of
/// calls that have not returned.
fn in_calls(run: &Run) -> Option<String> {
    let (blocking, calls) = (run.blocking.as_ref()?, run.calls.as_ref()?);
    // Threads that are added up, or that there was no room for, are missing in their processes.
    let nobodys = blocking.threads.iter().any(|of| of.thread.pid == 0)
        || run.cpu.accounts.losses.get(Loss::ThreadsFull) > 0;
    if calls.windows > 0 || nobodys {
        return None;
    }
    let mut processes: BTreeMap<u32, (&str, f64, f64)> = BTreeMap::new();
    for of in &blocking.threads {
        let process = processes.entry(of.thread.pid).or_insert((&of.process, 0.0, 0.0));
        process.1 += of.blocked.iter().map(|&(_, ns)| ns as f64).sum::<f64>();
    }
    for of in &calls.calls {
        if let Some(process) = processes.get_mut(&of.thread.pid) {
            process.2 += of.blocked_ns as f64;
        }
    }
    let off = processes
        .into_iter()
        .filter(|(_, (_, all, in_calls))| in_calls - all > LITTLE_NS.max(GAP * in_calls));
    let ((pid, (name, all, in_calls)), more) =
        worst(off, |(_, (_, all, in_calls))| in_calls - all, "such process")?;
    Some(format!(
        "{name} (pid {pid}) was blocked for {} in system calls, by these, and for {} in all by the scheduler, which is right{more}",
        time(in_calls as u64),
        time(all as u64),
    ))
}

/// That which is farthest off, and in words how many are, if it is not the only one.
fn worst<T>(off: impl Iterator<Item = T>, by: impl Fn(&T) -> f64, what: &str) -> Option<(T, String)> {
    let mut number = 0;
    let worst = off.inspect(|_| number += 1).max_by(|a, b| by(a).total_cmp(&by(b)))?;
    Some((worst, if number > 1 { format!(" ({})", count(number, what)) } else { String::new() }))
}

/// More than this of what sites hold beyond the process's growth is not the allocator's own slack.
const LITTLE_BYTES: f64 = 16e6;
const SLACK: f64 = 0.25;
/// Older objects that were freed, for each that is new and live, from which on memory is replaced.
const REPLACED: f64 = 0.1;

/// Whether a process does not hold what its sites say that it does.
pub fn is_held_in_doubt(memory: &Memory, pid: u32) -> bool {
    memory.processes.iter().any(|of| of.pid == pid && held(of, memory).is_some())
}

/// Bytes allocated and not freed, and what the process grew by meanwhile.
fn held(of: &Footprint, memory: &Memory) -> Option<String> {
    let (first, last) = (of.growth.points().first()?, of.growth.last()?);
    let grew = last.held_bytes() as f64 - first.held_bytes() as f64;
    // Who frees what was there before only replaces it.
    let replaced =
        of.heap.last().is_some_and(|heap| heap.older_freed_count as f64 > REPLACED * heap.live_count);
    if replaced {
        return None;
    }
    let own =
        memory.sites.iter().filter(|site| site.pid == of.pid).filter_map(|site: &Site| site.points.last());
    let (held, variance) = own.fold((0.0, 0.0), |(held, variance), point| {
        (held + point.live_bytes, variance + point.live_bytes_err.powi(2))
    });
    let error = SURE * f64::sqrt(variance);
    (held - error - grew.max(0.0) > LITTLE_BYTES + SLACK * held).then(|| {
        format!(
            "{} (pid {}) allocated {} that it has not freed, and grew by {}, which is right: the rest is reserved and was never \
             touched, was given back in place (madvise), or it had that memory before",
            of.process,
            of.pid,
            bytes(held),
            bytes(grew.max(0.0)),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::fixtures::run_that_grows,
        model::{
            cause::WaitCause,
            distribution::Summary,
            memory::Heap,
            part::part,
            report::fixtures,
            stack::ThreadKey,
            syscall::{CallCount, Calls},
            wait::RunQueue,
        },
    };

    const MS: u64 = 1_000_000;

    fn run(samples: u64, scheduled_ms: u64, turns: u64) -> Run {
        let mut run = fixtures::run(&[]);
        (run.cpu.total, run.cpu.accounts.samples_taken) = (samples, samples);
        run.cpu.meta.period_ns = 10 * MS;
        let thread = ThreadTime {
            thread: ThreadKey { pid: 7, tid: 7 },
            wall_ns: scheduled_ms * MS,
            on_cpu_ns: scheduled_ms * MS,
            cpu_samples: samples,
            ..ThreadTime::default()
        };
        let waits = Summary { count: turns, ..Summary::default() };
        run.blocking = Some(Blocking {
            threads: vec![thread],
            run_queue: vec![RunQueue { waits, ..RunQueue::default() }],
            ..Blocking::default()
        });
        run
    }

    #[test]
    fn samples_that_miss_most_of_the_time_on_cpus_are_not_believed() {
        let [said] = &doubts(&run(6, 500, 30_000))[..] else { panic!("one doubt") };
        assert!(said.starts_with("samples say 60 ms on CPUs, the scheduler 500 ms"), "{said}");
        assert!(said.contains("turns are short (16.7 us)"), "{said}");
        let [said] = &doubts(&run(40, 1000, 100))[..] else { panic!("one doubt") };
        assert!(said.contains("interrupts are off"), "{said}");
        let [said] = &doubts(&run(200, 1000, 4000))[..] else { panic!("one doubt") };
        assert!(said.contains("in step"), "{said}");
    }

    #[test]
    fn what_may_be_chance_or_is_little_is_no_doubt() {
        for (samples, scheduled_ms) in [(0, 0), (0, 90), (75, 1000), (130, 1000), (880, 10_000), (1000, 9000)]
        {
            let said = doubts(&run(samples, scheduled_ms, 1000));
            assert!(said.is_empty(), "{samples} samples, {scheduled_ms} ms: {said:?}");
        }
    }

    #[test]
    fn a_part_of_a_run_is_judged_by_its_own_samples() {
        let mut whole = run(2000, 10_000, 1000);
        whole.cpu.stacks = fixtures::profile(&[("a", 1000), ("b", 1000)]).stacks;
        let threads = &mut whole.blocking.as_mut().unwrap().threads;
        threads[0].cpu_samples = 1000;
        threads.push(ThreadTime { thread: ThreadKey { pid: 8, tid: 8 }, ..threads[0].clone() });
        (whole.cpu.stacks[0].thread.pid, whole.cpu.stacks[1].thread.pid) = (7, 8);
        assert_eq!(doubts(&whole), Vec::<String>::new());
        assert_eq!(doubts(&part(&whole, |pid| pid == 7)), Vec::<String>::new());
        // Lost ones are lost to all alike.
        whole.cpu.total = 1000;
        assert_eq!(doubts(&whole).len(), 1);
        whole.cpu.accounts.losses.set(Loss::RingBufferFull, 1000);
        assert_eq!(doubts(&whole), Vec::<String>::new());
    }

    /// Threads with so many samples, and so long on CPUs, ms.
    fn run_of_threads(threads: &[(u64, u64)]) -> Run {
        let mut run = run(threads.iter().map(|(samples, _)| samples).sum(), 0, 1000);
        let blocking = run.blocking.as_mut().unwrap();
        let thread = |(i, &(cpu_samples, ms)): (usize, &(u64, u64))| ThreadTime {
            thread: ThreadKey { pid: 7, tid: 7 + i as u32 },
            process: "app".into(),
            name: format!("t{i}"),
            wall_ns: 20_000 * MS,
            on_cpu_ns: ms * MS,
            run_queue_ns: 1000 * MS,
            blocked: vec![(WaitCause::Disk, (19_000 - ms) * MS)],
            cpu_samples,
            ..ThreadTime::default()
        };
        blocking.threads = threads.iter().enumerate().map(thread).collect();
        run.blocking.as_mut().unwrap().run_queue[0].pid = 7;
        run
    }

    #[test]
    fn a_thread_whose_samples_are_in_step_is_told_where_all_together_agree() {
        let mut off = run_of_threads(&[(440, 4000), (100, 2000), (320, 3000), (1000, 10_000)]);
        let [said] = &doubts(&off)[..] else { panic!("one doubt: {:?}", doubts(&off)) };
        assert!(said.starts_with("of t1 (tid 8) samples say 1 s on CPUs, the scheduler 2 s"), "{said}");
        assert!(said.contains("interrupts are off") && !said.contains("such thread"), "{said}");
        let own = Summary { count: 100_000, ..Summary::default() };
        off.blocking.as_mut().unwrap().threads[1].run_queue = Some(own);
        assert!(doubts(&off)[0].contains("turns are short (20 us)"), "{:?}", doubts(&off));
        off.blocking.as_mut().unwrap().threads[0].cpu_samples = 700;
        assert!(doubts(&off)[0].contains("of t0 (tid 7) samples say 7 s"), "{:?}", doubts(&off));
        assert!(
            doubts(&off)[0].contains("in step with them: another -F) (2 such threads)"),
            "{:?}",
            doubts(&off)
        );
        let mut unknown = run_of_threads(&[(440, 4000), (200, 2000), (320, 3000), (1000, 10_000)]);
        unknown.blocking.as_mut().unwrap().threads[3].cpu_samples = 0;
        assert_eq!(doubts(&unknown), Vec::<String>::new(), "there was no room for it");
        for agrees in [[(400, 4000), (200, 2000)], [(66, 1000), (134, 1000)], [(4, 100), (12, 100)]] {
            assert_eq!(doubts(&run_of_threads(&agrees)), Vec::<String>::new(), "{agrees:?}");
        }
    }

    #[test]
    fn by_chance_no_thread_of_many_is_told() {
        let mut random = fastrand::Rng::with_seed(7);
        for ms in [300u64, 1000, 4000] {
            let mut samples = || (0..10 * ms).filter(|_| random.u64(0..100) == 0).count() as u64;
            let threads: Vec<_> = (0..1000).map(|_| (samples(), ms)).collect();
            assert_eq!(doubts(&run_of_threads(&threads)), Vec::<String>::new(), "{ms} ms");
        }
    }

    #[test]
    fn parts_that_are_not_the_whole_are_told() {
        let mut run = run_of_threads(&[(400, 4000), (400, 4000), (400, 4000)]);
        assert_eq!(doubts(&run), Vec::<String>::new());
        let threads = &mut run.blocking.as_mut().unwrap().threads;
        threads[0].blocked[0].1 -= 900 * MS;
        let said = doubts(&run);
        assert_eq!(said, Vec::<String>::new(), "less than a twentieth");
        let threads = &mut run.blocking.as_mut().unwrap().threads;
        threads[0].blocked[0].1 -= 900 * MS;
        threads[2].run_queue_ns += 5000 * MS;
        let [said] = &doubts(&run)[..] else { panic!("one doubt") };
        let what = "t2 (tid 9) was there for 20 s, which is right, and on CPUs, waiting for one and blocked for 25 s in all (2 \
                    such threads)";
        assert_eq!(said, what);
    }

    #[test]
    fn calls_that_blocked_longer_than_their_process_are_told() {
        let mut run = run_of_threads(&[(400, 4000), (400, 4000)]);
        let call = |pid, s: u64| CallCount {
            thread: ThreadKey { pid, tid: 0 },
            blocked_ns: s * 1000 * MS,
            ..CallCount::default()
        };
        let mut with = |calls: &[CallCount], windows| {
            run.calls = Some(Calls { calls: calls.to_vec(), windows, ..Calls::default() });
            doubts(&run)
        };
        assert_eq!(with(&[call(7, 20), call(7, 11), call(9, 99)], 0), Vec::<String>::new(), "30 s in all");
        let [said] = &with(&[call(7, 20), call(7, 15)], 0)[..] else { panic!("one doubt") };
        let what = "app (pid 7) was blocked for 35 s in system calls, by these, and for 30 s in all by the scheduler";
        assert!(said.starts_with(what), "{said}");
        assert_eq!(with(&[call(7, 35)], 3), Vec::<String>::new(), "they were watched for a part of the time");
        run.blocking.as_mut().unwrap().threads.push(ThreadTime::default());
        assert_eq!(doubts(&run), Vec::<String>::new());
        run.calls.as_mut().unwrap().windows = 0;
        assert_eq!(doubts(&run), Vec::<String>::new(), "some of its threads are among others");
    }

    #[test]
    fn memory_that_is_reserved_is_not_held() {
        let mut run = run_that_grows();
        assert!(doubts(&run).is_empty(), "the process grew by more than its sites hold");
        let memory = run.memory.as_mut().unwrap();
        let points = memory.processes[0].growth.points().to_vec();
        memory.processes[0].growth = points
            .into_iter()
            .map(|of| crate::model::memory::Growth { anon_bytes: of.anon_bytes / 100, ..of })
            .collect();
        let [said] = &doubts(&run)[..] else { panic!("one doubt") };
        assert!(said.contains("grew by 6.00 MB, which is right"), "{said}");
        assert!(said.contains("allocated 42"), "{said}");
        let memory = run.memory.as_ref().unwrap();
        assert!(is_held_in_doubt(memory, memory.processes[0].pid) && !is_held_in_doubt(memory, 99));
        let heap = |older_freed_count| Heap { live_count: 1000.0, older_freed_count, ..Heap::default() };
        let mut doubts_with = |older| {
            run.memory.as_mut().unwrap().processes[0].heap = [heap(older)].into_iter().collect();
            doubts(&run).len()
        };
        assert_eq!(
            [doubts_with(50), doubts_with(500)],
            [1, 0],
            "a cache that is renewed holds no more than before"
        );
    }
}
