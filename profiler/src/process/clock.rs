//! The clock of the kernel programs, handed in so that tests can turn its hands.

use std::{rc::Rc, time::Duration};

/// CLOCK_MONOTONIC, or what a test takes for it.
#[derive(Clone)]
pub struct Clock(Rc<dyn Fn() -> u64>);

impl Clock {
    /// The real one.
    pub fn monotonic() -> Clock {
        Clock(Rc::new(monotonic_ns))
    }

    /// Now, ns.
    pub fn now_ns(&self) -> u64 {
        (self.0)()
    }
}

/// Now: CLOCK_MONOTONIC, ns, as the kernel programs have it. For threads of their own; all else takes a [`Clock`].
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime fills the struct.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Says when something that is done every so often is due again.
pub struct Every {
    clock: Clock,
    interval_ns: u64,
    last_ns: u64,
}

impl Every {
    /// Due for the first time one `interval` from now.
    pub fn new(clock: &Clock, interval: Duration) -> Every {
        Every { clock: clock.clone(), interval_ns: interval.as_nanos() as u64, last_ns: clock.now_ns() }
    }

    /// Whether the interval is over.
    pub fn is_due(&self) -> bool {
        self.clock.now_ns().saturating_sub(self.last_ns) >= self.interval_ns
    }

    /// Begins the next interval; returns how long this one was.
    pub fn restart(&mut self) -> Duration {
        let now_ns = self.clock.now_ns();
        let passed = Duration::from_nanos(now_ns.saturating_sub(self.last_ns));
        self.last_ns = now_ns;
        passed
    }

    /// Begins the next interval, which is so long.
    pub fn pause(&mut self, interval: Duration) {
        self.interval_ns = interval.as_nanos() as u64;
        self.restart();
    }
}

#[cfg(test)]
pub(crate) mod fixtures {
    //! A clock that stands still until it is set.

    use std::cell::Cell;

    use super::*;

    /// The hands.
    #[derive(Clone, Default)]
    pub struct Hands(Rc<Cell<u64>>);

    impl Hands {
        /// Sets the clock.
        pub fn set(&self, now_ns: u64) {
            self.0.set(now_ns);
        }
    }

    /// A clock that goes on by `step_ns` whenever it is looked at.
    pub fn stepping(step_ns: u64) -> Clock {
        let hands = Hands::default();
        Clock(Rc::new(move || hands.0.replace(hands.0.get() + step_ns)))
    }

    /// A clock at `now_ns`, and its hands.
    pub fn clock(now_ns: u64) -> (Clock, Hands) {
        let hands = Hands::default();
        hands.set(now_ns);
        let read = hands.clone();
        (Clock(Rc::new(move || read.0.get())), hands)
    }
}

#[cfg(test)]
mod tests {
    use super::{fixtures::clock, *};

    #[test]
    fn something_is_due_when_its_interval_is_over() {
        let (clock, hands) = clock(5);
        let mut every = Every::new(&clock, Duration::from_nanos(10));
        hands.set(14);
        assert!(!every.is_due());
        hands.set(17);
        assert!(every.is_due());
        assert_eq!(every.restart(), Duration::from_nanos(12));
        assert!(!every.is_due());
    }
}

/// Now: ms since 1970 (UTC), for people and files.
pub fn unix_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    now.unwrap_or_default().as_millis() as i64
}
