//! Figures for the same thing that come from different probes and disagree beyond their errors: which one to believe, and why.

use crate::model::{
    memory::{Footprint, Site},
    report::Run,
    units::{bytes, time},
};

/// What disagrees, in words.
pub fn doubts(run: &Run) -> Vec<String> {
    let memory = run.memory.iter().flat_map(|memory| {
        let held = |of: &&Footprint| held(of, &memory.sites);
        memory.processes.iter().filter_map(move |of| held(&of))
    });
    on_cpu(run).into_iter().chain(memory).collect()
}

/// A difference is one from so many standard errors on, and from so many ns, and such a part of the larger figure.
const SURE: f64 = 4.0;
const LITTLE_NS: f64 = 100e6;
const LITTLE_SHARE: f64 = 0.15;
/// Turns on a CPU that are shorter are short, ns: getting in and out of them is a good part of them.
const SHORT_TURN_NS: u64 = 200_000;

/// Time on CPUs by samples, whose error is that of counting them, and by the scheduler, which sees each turn begin and end.
fn on_cpu(run: &Run) -> Option<String> {
    let blocking = run.blocking.as_ref()?;
    let scheduled_ns: u64 = blocking.threads.iter().map(|of| of.on_cpu_ns).sum();
    let turns: u64 = blocking.run_queue.iter().map(|of| of.waits.count).sum();
    let (samples, period_ns) = (run.cpu.accounts.samples_taken as f64, run.cpu.meta.period_ns as f64);
    let sampled_ns = samples * period_ns;
    let more = sampled_ns - scheduled_ns as f64;
    let expected = (scheduled_ns as f64 / period_ns).max(1.0);
    let limit = (SURE * expected.sqrt() * period_ns)
        .max(LITTLE_NS)
        .max(LITTLE_SHARE * sampled_ns.max(scheduled_ns as f64));
    if period_ns <= 0.0 || more.abs() <= limit {
        return None;
    }
    let turn_ns = scheduled_ns / turns.max(1);
    let why = if more > 0.0 {
        "the program works in step with them: another -F".to_owned()
    } else if turn_ns < SHORT_TURN_NS {
        format!("its turns are short ({}), and no sample sees their first and last moments", time(turn_ns))
    } else {
        "they come late or not at all where interrupts are off, or the machine is held up".to_owned()
    };
    Some(format!(
        "samples say {} on CPUs, the scheduler {}, which is right ({why}); shares of functions can be off as much",
        time(sampled_ns as u64),
        time(scheduled_ns),
    ))
}

/// More than this of what sites hold beyond the process's growth is not the allocator's own slack.
const LITTLE_BYTES: f64 = 16e6;
const SLACK: f64 = 0.25;
/// Older objects that were freed, for each that is new and live, from which on memory is replaced.
const REPLACED: f64 = 0.1;

/// Bytes allocated and not freed, and what the process grew by meanwhile.
fn held(of: &Footprint, sites: &[Site]) -> Option<String> {
    let (first, last) = (of.growth.points().first()?, of.growth.last()?);
    let grew = last.held_bytes() as f64 - first.held_bytes() as f64;
    // Who frees what was there before only replaces it.
    let replaced =
        of.heap.last().is_some_and(|heap| heap.older_freed_count as f64 > REPLACED * heap.live_count);
    if replaced {
        return None;
    }
    let own = sites.iter().filter(|site| site.pid == of.pid).filter_map(|site| site.points.last());
    let (held, variance) = own.fold((0.0, 0.0), |(held, variance), point| {
        (held + point.live_bytes, variance + point.live_bytes_err.powi(2))
    });
    let error = SURE * f64::sqrt(variance);
    (held - error - grew.max(0.0) > LITTLE_BYTES + SLACK * held).then(|| {
        format!(
            "{} (pid {}) allocated {} that it has not freed, and grew by {}, which is right: the rest is reserved and was never \
             touched, or it had that memory before",
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
            distribution::Summary,
            memory::Heap,
            report::fixtures,
            stack::ThreadKey,
            wait::{Blocking, RunQueue, ThreadTime},
        },
    };

    const MS: u64 = 1_000_000;

    fn run(samples: u64, scheduled_ms: u64, turns: u64) -> Run {
        let mut run = fixtures::run(&[]);
        run.cpu.accounts.samples_taken = samples;
        run.cpu.meta.period_ns = 10 * MS;
        let thread = ThreadTime {
            thread: ThreadKey { pid: 7, tid: 7 },
            on_cpu_ns: scheduled_ms * MS,
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
