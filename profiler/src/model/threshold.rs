//! What counts as too long.

use serde::{Deserialize, Serialize};

use crate::model::{cause::WaitCause, finding::Severity};

const MS: u64 = 1_000_000;

/// A wait this many times its threshold is critical.
const CRITICAL_FACTOR: u64 = 10;

/// From which length on something is worth reporting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thresholds {
    /// Iterations of event loops worth a warning, ns.
    pub stall_warning_ns: u64,
    /// Iterations of event loops that are critical, ns.
    pub stall_critical_ns: u64,
    /// Blocks of other threads, ns by [`WaitCause`]'s number; `u64::MAX` for never.
    pub block_ns: [u64; WaitCause::COUNT],
    /// Waits for a CPU, ns.
    pub starvation_ns: u64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds {
            stall_warning_ns: 10 * MS,
            stall_critical_ns: 50 * MS,
            block_ns: WaitCause::ALL.map(|cause| if cause.is_idle() { u64::MAX } else { 1000 * MS }),
            starvation_ns: 100 * MS,
        }
    }
}

impl Thresholds {
    /// How bad an iteration of this length is, if at all.
    pub fn iteration(&self, ns: u64) -> Option<Severity> {
        if ns >= self.stall_critical_ns {
            Some(Severity::Critical)
        } else {
            (ns >= self.stall_warning_ns).then_some(Severity::Warning)
        }
    }

    /// How bad a block of this length is, if at all.
    pub fn block(&self, cause: WaitCause, ns: u64) -> Option<Severity> {
        above(self.block_ns[cause as usize], ns)
    }

    /// How bad a wait of this length for a CPU is, if at all.
    pub fn starvation(&self, ns: u64) -> Option<Severity> {
        above(self.starvation_ns, ns)
    }
}

fn above(threshold_ns: u64, ns: u64) -> Option<Severity> {
    match ns {
        _ if ns < threshold_ns => None,
        _ if ns / CRITICAL_FACTOR >= threshold_ns => Some(Severity::Critical),
        _ => Some(Severity::Warning),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longer_is_worse_and_idle_is_never_too_long() {
        let thresholds = Thresholds::default();
        assert_eq!(thresholds.iteration(10 * MS - 1), None);
        assert_eq!(thresholds.iteration(10 * MS), Some(Severity::Warning));
        assert_eq!(thresholds.iteration(50 * MS), Some(Severity::Critical));
        assert_eq!(thresholds.block(WaitCause::Disk, 999 * MS), None);
        assert_eq!(thresholds.block(WaitCause::Disk, 1000 * MS), Some(Severity::Warning));
        assert_eq!(thresholds.block(WaitCause::Disk, 10_000 * MS), Some(Severity::Critical));
        assert_eq!(thresholds.block(WaitCause::Sleep, u64::MAX - 1), None);
        assert_eq!(thresholds.starvation(100 * MS), Some(Severity::Warning));
    }
}
