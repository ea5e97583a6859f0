//! Threads that do not get on: blocked for long in something other than idleness, or without a CPU.

use std::{collections::BTreeMap, ops::Range};

use profiler_common::cpu::Seen;

use crate::model::{
    cause::WaitCause,
    finding::Severity,
    stack::{ThreadKey, comm},
    threshold::Thresholds,
    wait::{Block, LongWait, LongWaitKind, RanInstead},
};

/// One wait of a thread: it blocked, or was preempted, and then waited for a CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The thread.
    pub thread: ThreadKey,
    /// How long, and what for; of a preempted thread `blocked_ns` is zero.
    pub block: Block,
    /// Not even a signal could end the block.
    pub uninterruptible: bool,
    /// Who ran while this one waited for the CPU.
    pub instead: Vec<RanInstead>,
    /// It has not ended yet; its lengths are those so far.
    pub ongoing: bool,
}

/// What is worth reporting of a wait: that it blocked for long, unless in an event loop, where that is a stall; that
/// it waited long for a CPU; or both.
pub fn long_waits(wait: &Wait, event_loop: bool, thresholds: &Thresholds) -> impl Iterator<Item = LongWait> {
    let finding = |severity, kind| LongWait {
        severity,
        thread: wait.thread,
        kind,
        block: wait.block.clone(),
        ongoing: wait.ongoing,
    };
    let block = &wait.block;
    // Nobody is idle who cannot be interrupted.
    let cause = if wait.uninterruptible && block.cause.is_idle() { WaitCause::Disk } else { block.cause };
    let blocked = thresholds.block(cause, block.blocked_ns).filter(|_| !event_loop).map(|severity| {
        // Nobody can end it, and it does not end by itself: the thread is stuck.
        let stuck = wait.uninterruptible && wait.ongoing;
        let severity = if stuck { Severity::Critical } else { severity };
        finding(severity, LongWaitKind::Blocked { uninterruptible: wait.uninterruptible })
    });
    let starved = thresholds
        .starvation(block.run_queue_ns)
        .map(|severity| finding(severity, LongWaitKind::Starved { instead: wait.instead.clone() }));
    blocked.into_iter().chain(starved)
}

/// Who ran while thread `tid` waited for a CPU, by samples of that CPU, or of all; each with its part of `waited_ns`, the most
/// first.
pub fn who_ran(seen: &[Seen], tid: u32, during: Range<u64>, waited_ns: u64) -> Vec<RanInstead> {
    let meanwhile = seen.iter().filter(|seen| during.contains(&seen.time_ns) && seen.tid != tid);
    let all = meanwhile.clone().count() as u64;
    let mut samples: BTreeMap<(u32, String), u64> = BTreeMap::new();
    for seen in meanwhile.filter(|seen| seen.tid != 0) {
        *samples.entry((seen.tid, comm(&seen.comm))).or_default() += 1;
    }
    let part = |samples| (u128::from(waited_ns) * u128::from(samples) / u128::from(all)) as u64;
    let mut ran: Vec<RanInstead> = samples
        .into_iter()
        .map(|((tid, name), samples)| RanInstead { tid, name, ns: part(samples) })
        .collect();
    ran.sort_by_key(|ran| std::cmp::Reverse(ran.ns));
    ran
}

#[cfg(test)]
pub(crate) mod fixtures {
    //! Waits made by hand.

    use super::*;
    use crate::probe::sched::stall::fixtures;

    /// A wait that has ended, ns.
    pub fn wait(tid: u32, start_ns: u64, blocked_ns: u64, run_queue_ns: u64, cause: WaitCause) -> Wait {
        Wait {
            thread: ThreadKey { pid: 7, tid },
            block: fixtures::block(start_ns, blocked_ns, run_queue_ns, cause),
            uninterruptible: false,
            instead: vec![RanInstead { tid: 99, name: "hog".into(), ns: run_queue_ns }],
            ongoing: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{fixtures::wait, *};
    use crate::model::cause::WaitCause;

    const S: u64 = 1_000_000_000;

    fn found(wait: &Wait, event_loop: bool) -> Vec<(Severity, bool)> {
        long_waits(wait, event_loop, &Thresholds::default())
            .map(|found| (found.severity, matches!(found.kind, LongWaitKind::Starved { .. })))
            .collect()
    }

    #[test]
    fn long_blocks_and_long_waits_for_a_cpu_are_told_apart() {
        assert_eq!(found(&wait(9, 0, 2 * S, 0, WaitCause::Network), false), [(Severity::Warning, false)]);
        assert_eq!(found(&wait(9, 0, 2 * S, 0, WaitCause::Poll), false), []);
        assert_eq!(found(&wait(9, 0, S / 2, 0, WaitCause::Network), false), []);
        assert_eq!(found(&wait(9, 0, 0, S / 5, WaitCause::Other), false), [(Severity::Warning, true)]);
        let both = wait(9, 0, 10 * S, S, WaitCause::Disk);
        assert_eq!(found(&both, false), [(Severity::Critical, false), (Severity::Critical, true)]);
        assert_eq!(found(&both, true), [(Severity::Critical, true)], "in an event loop it is a stall");
    }

    #[test]
    fn a_thread_stuck_for_good_is_critical() {
        let mut stuck = wait(9, 0, 2 * S, 0, WaitCause::Disk);
        stuck.uninterruptible = true;
        assert_eq!(found(&stuck, false), [(Severity::Warning, false)]);
        stuck.ongoing = true;
        assert_eq!(found(&stuck, false), [(Severity::Critical, false)]);
    }

    #[test]
    fn samples_tell_who_ran_instead() {
        let seen = |time_ns, tid, name: &str| {
            let mut comm = [0; 16];
            comm[..name.len()].copy_from_slice(name.as_bytes());
            Seen { time_ns, pid: tid, tid, comm }
        };
        let samples = [
            seen(5, 2, "before"),
            seen(10, 1, "itself"),
            seen(11, 2, "hog"),
            seen(12, 3, "other"),
            seen(13, 2, "hog"),
            seen(14, 0, "swapper/0"),
            seen(50, 2, "hog"),
        ];
        let ran = |tid, name: &str, ns| RanInstead { tid, name: name.into(), ns };
        assert_eq!(who_ran(&samples, 1, 10..50, 40), [ran(2, "hog", 20), ran(3, "other", 10)]);
        assert_eq!(who_ran(&samples, 1, 60..70, 10), []);
    }
}
