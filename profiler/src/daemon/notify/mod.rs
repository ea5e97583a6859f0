//! Sends messages: one thread per receiver takes them out of the outbox in order and tries until they arrive. While a
//! receiver fails it is tried ever less often, and its messages wait; those of other receivers do not. In a storm what comes is
//! put together into digests.

mod deliver;
mod send;
mod smtp;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
        mpsc::{self, SyncSender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Result;

use self::deliver::Delivery;
#[cfg(test)]
pub use self::send::tests::server as test_server;
pub use self::{deliver::Counts, send::send};
use super::{
    config::{Config, Receiver, ReceiverKind},
    message::Message,
    store::Store,
    threads::wait_for,
};
use crate::process::clock;

/// How often the outbox is looked into when nobody says that something has come.
const POLL: Duration = Duration::from_millis(500);
/// The wait after something failed that is no receiver.
const RETRY: Duration = Duration::from_secs(1);
/// Messages that wait for a receiver outside of the outbox, at most.
const MOST_URGENT: usize = 20;
/// A sign of life is given as long as a window ended within so many lengths of one.
const ALIVE_WINDOWS: u32 = 4;

/// The threads that send.
pub struct Senders {
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    /// Ways around the outbox, by receiver.
    urgent: BTreeMap<String, SyncSender<Message>>,
    /// What each receiver got.
    pub counts: Vec<(String, Arc<Counts>)>,
}

impl Senders {
    /// Starts a thread for each receiver; each opens the store in `dir` for itself. `window_ended` is when the last window
    /// did, ms since 1970 (UTC).
    pub fn start(dir: &Path, config: &Config, host: &str, window_ended: &Arc<AtomicI64>) -> Result<Senders> {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut threads, mut counts, mut urgent) = (Vec::new(), Vec::new(), BTreeMap::new());
        for receiver in config.receivers.iter().cloned() {
            let count = Arc::new(Counts::default());
            counts.push((receiver.name.clone(), Arc::clone(&count)));
            let stop = Arc::clone(&stop);
            let thread = std::thread::Builder::new().name(format!("to-{}", receiver.name));
            if let ReceiverKind::Heartbeat { every, .. } = receiver.kind {
                let (alive, host) = (Arc::clone(window_ended), host.to_owned());
                let patience = ALIVE_WINDOWS * config.daemon.window;
                threads.push(
                    thread.spawn(move || beat(&receiver, every, patience, &alive, &host, &count, &stop))?,
                );
                continue;
            }
            let rules = config
                .rules
                .iter()
                .filter(|rule| rule.receivers.is_empty() || rule.receivers.contains(&receiver.name));
            let rules = rules.map(|rule| rule.id.clone()).collect();
            let (way_in, way_out) = mpsc::sync_channel(MOST_URGENT);
            urgent.insert(receiver.name.clone(), way_in);
            let mut delivery = Delivery::new(Store::open(dir)?, receiver, rules, count);
            threads.push(thread.spawn(move || {
                loop {
                    way_out.try_iter().for_each(|message| delivery.urgent(message));
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    match delivery.next(clock::unix_ms()) {
                        Ok(true) => {}
                        Ok(false) => std::thread::sleep(POLL),
                        Err(error) => {
                            crate::say!("profiler: receiver {}: {error:#}", delivery.name());
                            std::thread::sleep(RETRY);
                        }
                    }
                }
            })?);
        }
        Ok(Senders { threads, stop, urgent, counts })
    }

    /// Sends a message that could not be put into the outbox, once. Whoever has too many of these gets it when it could be.
    pub fn urgent(&self, message: &Message, receivers: &[String]) {
        for way_in in receivers.iter().filter_map(|name| self.urgent.get(name)) {
            let _ = way_in.try_send(message.clone());
        }
    }

    /// Lets no receiver begin anything more.
    pub fn end(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Lets every receiver finish what it is at, until then. What is left stays in the outbox.
    pub fn stop(self, until: Instant) {
        self.end();
        wait_for(self.threads, until);
    }
}

/// Gives signs of life, as long as windows end.
fn beat(
    receiver: &Receiver,
    every: Duration,
    patience: Duration,
    window_ended: &AtomicI64,
    host: &str,
    counts: &Counts,
    stop: &AtomicBool,
) {
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(POLL.min(every));
        let now = clock::unix_ms();
        let is_alive = now - window_ended.load(Ordering::Relaxed) < patience.as_millis() as i64;
        if Instant::now() < due || !is_alive {
            continue;
        }
        due = Instant::now() + every;
        let message = Message { host: host.to_owned(), unix_ms: now, ..Message::default() };
        let outcome = send(&receiver.kind, &[message]);
        counts.attempt(&receiver.name, &outcome);
        counts.sent.fetch_add(u64::from(outcome.is_ok()), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::config::Secret;

    #[test]
    fn signs_of_life_come_as_long_as_windows_end() {
        let (url, server) = test_server(vec![200, 200]);
        let kind = ReceiverKind::Heartbeat { url: Secret::Value(url), every: Duration::from_millis(10) };
        let receiver = Receiver { name: "heart".into(), kind };
        let (counts, stop) = (Arc::new(Counts::default()), Arc::new(AtomicBool::new(false)));
        // The last window is long over: nobody is told that all is well.
        let ended = Arc::new(AtomicI64::new(clock::unix_ms() - 60_000));
        let (alive, mine, end) = (Arc::clone(&ended), Arc::clone(&counts), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            beat(&receiver, Duration::from_millis(10), Duration::from_secs(20), &alive, "web-1", &mine, &end);
        });
        std::thread::sleep(Duration::from_millis(300));
        assert!(!server.is_finished());
        ended.store(clock::unix_ms(), Ordering::Relaxed);
        let got = server.join().unwrap();
        assert!(got[0].1.starts_with("{\"host\":\"web-1\",\"unix_ms\":"), "{}", got[0].1);
        stop.store(true, Ordering::Relaxed);
        thread.join().unwrap();
    }
}
