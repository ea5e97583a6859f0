//! Threads of the daemon, when they are to end.

use std::{
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Lets threads that have been told to end finish what they are at, until then.
pub fn wait_for(threads: Vec<JoinHandle<()>>, until: Instant) {
    for thread in threads {
        while !thread.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
