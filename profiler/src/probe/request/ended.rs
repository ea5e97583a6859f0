//! What processes that have ended have done: a machine that starts programs all day has ever more of them.

use std::collections::BTreeMap;

use profiler_common::request::{FailureKey, PeerKey, PeerStats};

use crate::probe::ended::too_light;

/// Peers of processes that have ended, 10 kB each, and failures, that are kept when there are twice as many.
const KEPT_PEERS: usize = 128;
const KEPT_FAILURES: usize = 2048;

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
        let peers = self.peers.iter().map(|(key, (stats, _))| (*key, stats.whole.sum_ns));
        too_light(peers, KEPT_PEERS).iter().for_each(|key| _ = self.peers.remove(key));
        let failures = self.failures.iter().map(|(key, n)| (*key, *n));
        too_light(failures, KEPT_FAILURES).iter().for_each(|key| _ = self.failures.remove(key));
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
        for pid in 0..=2 * KEPT_PEERS {
            let mut stats = Box::new(PeerStats::EMPTY);
            stats.whole.sum_ns = pid as u64;
            count(&mut ended.peers, key(pid), stats);
        }
        for pid in 0..=2 * KEPT_FAILURES {
            let of = FailureKey { peer: key(pid), ..FailureKey::default() };
            ended.failures.insert(of, pid as u64);
        }
        assert_eq!(ended.make_room(), (KEPT_PEERS + 1) as u64);
        assert_eq!((ended.peers.len(), ended.failures.len()), (KEPT_PEERS, KEPT_FAILURES));
        assert!(ended.peers.contains_key(&key(2 * KEPT_PEERS)) && !ended.peers.contains_key(&key(0)));
        assert_eq!(ended.make_room(), 0);
    }
}
