//! A timer of the kernel's own: one wake-up a tick. The runtime's timers wake about twice for each, to sort those that are
//! far away, and each wake-up of the agent takes a CPU from who works there.

use std::{io, os::fd::OwnedFd, time::Duration};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::{Interest, unix::AsyncFd};

/// Ticks at equal intervals. Those that are missed are made up for by one.
pub struct Ticks(AsyncFd<OwnedFd>);

impl Ticks {
    /// Ticks `every` so often, for the first time after one interval. Must be called within the runtime.
    pub fn new(every: Duration) -> io::Result<Ticks> {
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let every = Timespec::try_from(every.max(Duration::from_millis(1)))
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        timerfd_settime(
            &timer,
            TimerfdTimerFlags::empty(),
            &Itimerspec { it_interval: every, it_value: every },
        )?;
        // SAFETY: an OwnedFd is the same descriptor for as long as it lives.
        let timer = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) };
        Ok(Ticks(timer.map_err(io::Error::from)?))
    }

    /// Returns at the next tick. Nothing is lost if it is not waited for to the end.
    pub async fn tick(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            let read = ready.try_io(|timer| Ok(rustix::io::read(timer, &mut [0u8; 8])?));
            match read {
                Ok(read) => return read.map(drop),
                Err(_not_yet) => continue,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn ticks_come_one_interval_apart_and_missed_ones_are_one() {
        let start = Instant::now();
        let ticks = Ticks::new(Duration::from_millis(20)).unwrap();
        ticks.tick().await.unwrap();
        assert!(start.elapsed() >= Duration::from_millis(20));
        std::thread::sleep(Duration::from_millis(50)); // two are missed
        ticks.tick().await.unwrap();
        ticks.tick().await.unwrap();
        assert!(start.elapsed() >= Duration::from_millis(80), "the second waited for the next");
    }
}
