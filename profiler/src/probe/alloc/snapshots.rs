//! When the state of memory is written down while a run goes on: on a signal, on schedule, and when a process gets too
//! large.

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};

/// When snapshots are wanted.
#[derive(Clone, Debug)]
pub struct SnapshotSettings {
    /// On a signal; and that often, if a time is given.
    pub every: Option<Option<Duration>>,
    /// When a process holds more than this, bytes; and on a signal.
    pub above_bytes: Option<u64>,
    /// Where to.
    pub dir: PathBuf,
}

/// Waits for the moments, and names the files.
pub struct Snapshots {
    /// `None` if no snapshots are wanted: then the signal does what it always does.
    signal: Option<Signal>,
    schedule: Option<Interval>,
    threshold: Threshold,
    dir: PathBuf,
    prefix: String,
    written: u32,
}

impl Snapshots {
    /// As `settings` say, for a run that began at `start_unix_ns`.
    pub fn new(settings: &SnapshotSettings, start_unix_ns: u64) -> Result<Snapshots> {
        let wanted = settings.every.is_some() || settings.above_bytes.is_some();
        let schedule = settings.every.flatten().map(|every| {
            let mut schedule = interval_at(Instant::now() + every, every);
            schedule.set_missed_tick_behavior(MissedTickBehavior::Delay);
            schedule
        });
        Ok(Snapshots {
            signal: if wanted { Some(signal(SignalKind::user_defined1())?) } else { None },
            schedule,
            threshold: Threshold::new(settings.above_bytes),
            dir: settings.dir.clone(),
            prefix: format!("snapshot-{}", start_unix_ns / 1_000_000_000),
            written: 0,
        })
    }

    /// Returns when it is time for one by signal or schedule; never, if none is wanted.
    pub async fn due(&mut self) {
        let signalled = async {
            match &mut self.signal {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        let scheduled = async {
            match &mut self.schedule {
                Some(schedule) => schedule.tick().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = signalled => {}
            _ = scheduled => {}
        }
    }

    /// Whether it is time for one because the largest process holds `held_bytes`.
    pub fn crossed(&mut self, held_bytes: u64) -> bool {
        self.threshold.crossed(held_bytes)
    }

    /// The next file.
    pub fn next_path(&mut self) -> PathBuf {
        self.written += 1;
        self.dir.join(format!("{}-{:03}.prec", self.prefix, self.written))
    }
}

/// A size that is reported once when it is exceeded; again, once there was a tenth less.
struct Threshold {
    bytes: Option<u64>,
    exceeded: bool,
}

impl Threshold {
    fn new(bytes: Option<u64>) -> Threshold {
        Threshold { bytes, exceeded: false }
    }

    fn crossed(&mut self, held_bytes: u64) -> bool {
        let Some(limit) = self.bytes else { return false };
        let before = self.exceeded;
        let needed = if before { limit - limit / 10 } else { limit };
        self.exceeded = held_bytes > needed;
        self.exceeded && !before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_is_told_of_once() {
        let mut threshold = Threshold::new(Some(1000));
        let told = [900, 1001, 1002, 950, 1001, 899, 1000, 1001].map(|bytes| threshold.crossed(bytes));
        assert_eq!(told, [false, true, false, false, false, false, false, true]);
        assert!(!Threshold::new(None).crossed(u64::MAX));
    }
}
