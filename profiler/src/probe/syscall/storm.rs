//! Error storms: a system call that fails at a high rate, with an error that is no everyday answer.

use std::{collections::BTreeMap, time::Duration};

use profiler_common::syscall::CallKey;

use crate::{model::syscall::ErrorStorm, probe::ended::too_light};

/// Fewer calls a second are no storm.
const MIN_CALLS_PER_SECOND: f64 = 100.0;

/// Errors that say "not now" or "not here", and that programs ask for.
pub const EXPECTED: [i32; 8] = [
    libc::EAGAIN,
    libc::EINPROGRESS,
    libc::ENOENT,
    libc::EINTR,
    // As the kernel tells itself that a call is to be repeated after a signal: include/linux/errno.h.
    512,
    513,
    514,
    516,
];

/// Storms kept apart, those with most failures; up to twice as many.
const MOST_STORMS: usize = 1_024;

/// Calls of one kind between two looks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// All.
    pub calls: u64,
    /// Those that failed, by error.
    pub failed: Vec<(u32, u64)>,
}

/// What looks have shown so far.
#[derive(Clone, Debug)]
pub struct Storms {
    share: f64,
    expected: Vec<u32>,
    found: BTreeMap<CallKey, Storm>,
}

#[derive(Clone, Debug, Default)]
struct Storm {
    calls: u64,
    failed: BTreeMap<u32, u64>,
    lasted: Duration,
}

impl Storms {
    /// With the share of calls (0 to 1) that must fail, and the errors that do not count besides [`EXPECTED`].
    pub fn new(share: f64, expected: &[u32]) -> Storms {
        let all = EXPECTED.iter().map(|&errno| errno as u32).chain(expected.iter().copied());
        Storms { share, expected: all.collect(), found: BTreeMap::new() }
    }

    /// Takes in what happened in the time `passed`.
    pub fn look(&mut self, passed: Duration, rates: BTreeMap<CallKey, Rates>) {
        // What is seen for less than a second may be a start, but a hundred calls are a hundred calls.
        let enough = MIN_CALLS_PER_SECOND * passed.as_secs_f64().max(1.0);
        for (key, rates) in rates {
            let counts = || rates.failed.iter().filter(|(errno, _)| !self.expected.contains(errno));
            let failed: u64 = counts().map(|(_, n)| n).sum();
            if failed == 0
                || (rates.calls as f64) < enough
                || (failed as f64) < rates.calls as f64 * self.share
            {
                continue;
            }
            let counts: Vec<(u32, u64)> = counts().copied().collect();
            let storm = self.found.entry(CallKey { tid: 0, ..key }).or_default();
            storm.calls += rates.calls;
            storm.lasted += passed;
            for (errno, n) in counts {
                *storm.failed.entry(errno).or_default() += n;
            }
        }
        let failed = |storm: &Storm| storm.failed.values().sum::<u64>();
        let light = too_light(self.found.iter().map(|(&key, storm)| (key, failed(storm))), MOST_STORMS);
        light.iter().for_each(|key| _ = self.found.remove(key));
    }

    /// The storms so far, most failures first.
    pub fn found(
        &self,
        name: impl Fn(&CallKey) -> (String, String),
        errno: impl Fn(u32) -> String,
    ) -> Vec<ErrorStorm> {
        let mut found: Vec<ErrorStorm> = self
            .found
            .iter()
            .map(|(key, storm)| {
                let (process, syscall) = name(key);
                let most = storm.failed.iter().max_by_key(|(_, n)| **n).map_or(0, |(&errno, _)| errno);
                ErrorStorm {
                    pid: key.pid,
                    process,
                    syscall,
                    calls: storm.calls,
                    failed: storm.failed.values().sum(),
                    errno: errno(most),
                    lasted_ns: storm.lasted.as_nanos() as u64,
                }
            })
            .collect();
        found.sort_by_key(|storm| std::cmp::Reverse(storm.failed));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(share: f64, passed_ms: u64, calls: u64, failed: &[(i32, u64)]) -> Vec<ErrorStorm> {
        let mut storms = Storms::new(share, &[libc::EPERM as u32]);
        let failed = failed.iter().map(|&(errno, n)| (errno as u32, n)).collect();
        let key = CallKey { pid: 7, tid: 0, number: 2 };
        let rates = BTreeMap::from([(key, Rates { calls, failed })]);
        storms.look(Duration::from_millis(passed_ms), rates);
        storms.found(|key| (format!("app{}", key.pid), "open".into()), |errno| errno.to_string())
    }

    #[test]
    fn many_failures_in_many_calls_are_a_storm() {
        let found = look(0.05, 1000, 1000, &[(libc::EACCES, 40), (libc::EMFILE, 60), (libc::ENOENT, 800)]);
        assert_eq!((found[0].calls, found[0].failed), (1000, 100));
        assert_eq!(found[0].errno, libc::EMFILE.to_string());
        assert_eq!(look(0.05, 1000, 1000, &[(libc::EACCES, 49)]), [], "too few fail");
        assert_eq!(look(0.05, 1000, 90, &[(libc::EACCES, 90)]), [], "too few calls");
        assert_eq!(look(0.05, 100, 90, &[(libc::EACCES, 90)]), [], "too few to say");
        assert_eq!(look(0.05, 1000, 1000, &[(libc::EAGAIN, 900), (libc::EPERM, 100)]), [], "all expected");
    }
}
