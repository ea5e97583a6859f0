//! Why an iteration of an event loop took so long: what ran, what it blocked in, and how long it waited for a CPU.

use std::collections::BTreeMap;

use profiler_common::sched::Iteration;
use rustc_hash::FxHashMap;

use crate::model::{
    cause::WaitCause,
    finding::Severity,
    stack::{StackId, ThreadKey},
    threshold::Thresholds,
    wait::{Block, Stall},
};

/// Most stacks, and most blocks, kept of one stall.
pub const MAX_EVIDENCE: usize = 20;

/// Explains an iteration by its thread's CPU samples (time, ns, and stack) and blocks, of which those outside are ignored.
pub fn explain(
    iteration: &Iteration,
    samples: &[(u64, StackId)],
    blocks: &[Block],
    thresholds: &Thresholds,
) -> Stall {
    let duration_ns = length_ns(iteration);
    let (start, end) = (iteration.start_ns, iteration.start_ns + duration_ns);
    let mut stacks: FxHashMap<StackId, u64> = FxHashMap::default();
    for &(_, stack) in samples.iter().filter(|(time, _)| (start..=end).contains(time)) {
        *stacks.entry(stack).or_default() += 1;
    }
    let mut samples: Vec<_> = stacks.into_iter().collect();
    samples.sort_unstable_by_key(|&(stack, count)| (std::cmp::Reverse(count), stack));
    let mut blocks: Vec<_> = blocks.iter().filter_map(|block| clip(block, start, end)).collect();

    let mut blocked: BTreeMap<WaitCause, u64> = BTreeMap::new();
    for block in &blocks {
        *blocked.entry(block.cause).or_default() += block.blocked_ns;
    }
    let known = blocked.iter().filter(|(cause, _)| **cause != WaitCause::Unknown).map(|(_, ns)| ns);
    let seen_running = if samples.is_empty() { 0 } else { iteration.on_cpu_ns };
    let explained_ns = known.sum::<u64>() + iteration.run_queue_ns + seen_running;

    samples.truncate(MAX_EVIDENCE);
    blocks.sort_unstable_by_key(|block| std::cmp::Reverse(block.blocked_ns));
    blocks.truncate(MAX_EVIDENCE);
    blocks.sort_unstable_by_key(|block| block.start_ns);
    Stall {
        severity: thresholds.iteration(duration_ns).unwrap_or(Severity::Warning),
        thread: ThreadKey { pid: iteration.pid, tid: iteration.tid },
        start_ns: start,
        duration_ns,
        on_cpu_ns: iteration.on_cpu_ns,
        run_queue_ns: iteration.run_queue_ns,
        blocked: blocked.into_iter().collect(),
        samples,
        blocks,
        instead: Vec::new(),
        explained: (explained_ns as f64 / duration_ns.max(1) as f64).min(1.0),
    }
}

/// Length of an iteration, ns.
pub fn length_ns(iteration: &Iteration) -> u64 {
    iteration.end_ns.saturating_sub(iteration.start_ns)
}

/// The part of a block between two times; `None` if there is none.
fn clip(block: &Block, start: u64, end: u64) -> Option<Block> {
    let woken = block.start_ns.saturating_add(block.blocked_ns);
    let ran = woken.saturating_add(block.run_queue_ns);
    let [from, woken, ran] = [block.start_ns, woken, ran].map(|time| time.clamp(start, end));
    (from < ran).then(|| Block {
        start_ns: from,
        blocked_ns: woken - from,
        run_queue_ns: ran - woken,
        ..block.clone()
    })
}

#[cfg(test)]
pub(crate) mod fixtures {
    //! Iterations and blocks made by hand.

    use super::*;

    /// The loop that all of them are about.
    pub const LOOP: ThreadKey = ThreadKey { pid: 7, tid: 8 };

    /// An iteration of [`LOOP`], ns.
    pub fn iteration(start_ns: u64, end_ns: u64, on_cpu_ns: u64, run_queue_ns: u64) -> Iteration {
        Iteration {
            pid: LOOP.pid,
            tid: LOOP.tid,
            syscall: 232,
            start_ns,
            end_ns,
            on_cpu_ns,
            run_queue_ns,
            ..Iteration::default()
        }
    }

    /// A block in `read`, ns.
    pub fn block(start_ns: u64, blocked_ns: u64, run_queue_ns: u64, cause: WaitCause) -> Block {
        Block {
            start_ns,
            blocked_ns,
            run_queue_ns,
            cause,
            syscall: "read".into(),
            object: Some("/data/big".into()),
            stack: Some(StackId(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        fixtures::{block, iteration},
        *,
    };

    const MS: u64 = 1_000_000;

    #[test]
    fn what_ran_and_what_blocked_explain_a_stall() {
        let blocks = [
            block(60 * MS, 45 * MS, MS, WaitCause::Poll), // ends before the iteration
            block(120 * MS, 50 * MS, 10 * MS, WaitCause::Disk), // all inside
            block(190 * MS, 20 * MS, 10 * MS, WaitCause::Unknown), // half inside
        ];
        let samples =
            [(105 * MS, StackId(1)), (110 * MS, StackId(4)), (111 * MS, StackId(4)), (112 * MS, StackId(1))];
        let stall = explain(
            &iteration(106 * MS, 200 * MS, 20 * MS, 10 * MS),
            &samples,
            &blocks,
            &Thresholds::default(),
        );
        assert_eq!(stall.severity, Severity::Critical);
        assert_eq!(stall.samples, [(StackId(4), 2), (StackId(1), 1)]);
        assert_eq!(stall.blocks.iter().map(|block| block.blocked_ns / MS).collect::<Vec<_>>(), [50, 10]);
        assert_eq!(stall.blocks[1].run_queue_ns, 0);
        assert!((stall.explained - 80.0 / 94.0).abs() < 1e-9, "an unknown cause explains nothing");
    }

    #[test]
    fn time_on_a_cpu_without_a_sample_explains_nothing() {
        let stall = explain(
            &iteration(0, 20 * MS, 20 * MS, 0),
            &[(30 * MS, StackId(0))],
            &[],
            &Thresholds::default(),
        );
        assert_eq!((stall.severity, stall.explained), (Severity::Warning, 0.0));
    }

    proptest! {
        #[test]
        fn nothing_outside_the_turn_is_in_its_explanation(
            start in 0u64..1000, length in 0u64..1000,
            waits in prop::collection::vec((0u64..2000, 0u64..500, 0u64..500), 0..40),
            times in prop::collection::vec((0u64..2000, 0u32..5), 0..40),
        ) {
            let blocks: Vec<_> = waits.iter().map(|&(at, blocked, queued)| block(at, blocked, queued, WaitCause::Pipe)).collect();
            let samples: Vec<_> = times.iter().map(|&(at, stack)| (at, StackId(stack))).collect();
            let end = start + length;
            let stall = explain(&iteration(start, end, length, 0), &samples, &blocks, &Thresholds::default());
            let inside = samples.iter().filter(|(time, _)| (start..=end).contains(time)).count() as u64;
            prop_assert_eq!(stall.samples.iter().map(|(_, count)| count).sum::<u64>(), inside);
            for block in &stall.blocks {
                prop_assert!(start <= block.start_ns);
                prop_assert!(block.start_ns + block.blocked_ns + block.run_queue_ns <= end);
            }
            prop_assert!((0.0..=1.0).contains(&stall.explained));
            prop_assert!(stall.blocks.len() <= MAX_EVIDENCE);
            let listed: u64 = stall.blocks.iter().map(|block| block.blocked_ns).sum();
            prop_assert!(stall.blocked.iter().map(|(_, ns)| ns).sum::<u64>() >= listed);
        }
    }
}
