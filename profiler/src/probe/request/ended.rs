//! What processes that have ended have done: a machine that starts programs all day has ever more of them.

use std::{cmp::Reverse, collections::BTreeMap};

use profiler_common::request::{FailureKey, PeerKey, PeerStats};

/// Peers kept of processes that have ended: 10 kB each. When there are more, the heavier half is.
pub const MAX_ENDED: usize = 1024;
/// Failures kept of them, in the same way.
const MAX_FAILURES: usize = 4096;

/// What processes of one program have done, and how many these were.
pub type Counted = (Box<PeerStats>, u64);

/// By peer.
#[derive(Default)]
pub struct Ended {
    /// Counts.
    pub peers: BTreeMap<PeerKey, Counted>,
    /// Connections that failed.
    pub failures: BTreeMap<FailureKey, u64>,
}

impl Ended {
    /// Forgets what counts least where there is too much; returns how many peers.
    pub fn make_room(&mut self) -> u64 {
        let before = self.peers.len();
        if before > MAX_ENDED {
            let mut by_weight: Vec<(u64, PeerKey)> =
                self.peers.iter().map(|(key, (stats, _))| (stats.whole.sum_ns, *key)).collect();
            by_weight.sort_unstable_by_key(|of| Reverse(*of));
            by_weight[MAX_ENDED / 2..].iter().for_each(|(_, key)| _ = self.peers.remove(key));
        }
        if self.failures.len() > MAX_FAILURES {
            let mut by_count: Vec<(u64, FailureKey)> =
                self.failures.iter().map(|(key, n)| (*n, *key)).collect();
            by_count.sort_unstable_by_key(|of| Reverse(*of));
            by_count[MAX_FAILURES / 2..].iter().for_each(|(_, key)| _ = self.failures.remove(key));
        }
        (before - self.peers.len()) as u64
    }
}

/// Counts what one more process of a program did.
pub fn count(peers: &mut BTreeMap<PeerKey, Counted>, key: PeerKey, stats: Box<PeerStats>) {
    let did = stats.opened > 0 || stats.first.sum_ns > 0;
    match peers.get_mut(&key) {
        Some((known, processes)) => {
            add(known, &stats);
            *processes += u64::from(did);
        }
        None => _ = peers.insert(key, (stats, u64::from(did))),
    }
}

/// Adds what another process did.
fn add(to: &mut PeerStats, more: &PeerStats) {
    to.first.add(&more.first);
    to.whole.add(&more.whole);
    to.queued.add(&more.queued);
    to.connect.add(&more.connect);
    to.read_bytes += more.read_bytes;
    to.written_bytes += more.written_bytes;
    to.opened += more.opened;
    to.closed += more.closed;
    to.unanswered += more.unanswered;
    to.statuses.iter_mut().zip(more.statuses).for_each(|(sum, n)| *sum += n);
    to.multiplexed += more.multiplexed;
    to.overlapped += more.overlapped;
    to.retransmits += more.retransmits;
    to.awaited_ns += more.awaited_ns;
    to.most_awaited = to.most_awaited.max(more.most_awaited);
    to.unsent += more.unsent;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_too_many_the_heavier_half_is_kept() {
        let mut ended = Ended::default();
        let key = |pid: usize| PeerKey { pid: pid as u32, ..PeerKey::default() };
        for pid in 0..=MAX_ENDED {
            let mut stats = Box::new(PeerStats::EMPTY);
            stats.whole.sum_ns = pid as u64;
            count(&mut ended.peers, key(pid), stats);
        }
        for pid in 0..=MAX_FAILURES {
            let of = FailureKey { peer: key(pid), ..FailureKey::default() };
            ended.failures.insert(of, pid as u64);
        }
        assert_eq!(ended.make_room(), (MAX_ENDED / 2 + 1) as u64);
        assert_eq!((ended.peers.len(), ended.failures.len()), (MAX_ENDED / 2, MAX_FAILURES / 2));
        assert!(ended.peers.contains_key(&key(MAX_ENDED)) && !ended.peers.contains_key(&key(0)));
        assert_eq!(ended.make_room(), 0);
    }
}
