//! The outbox of one receiver: what is sent next, what is put together, what waits and for how long.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::send::{Refused, send};
use crate::daemon::{
    config::{Receiver, ReceiverKind},
    message::{Message, Part},
    store::{Outgoing, Store},
};

/// The waits between attempts: the first, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// So many messages a minute come one by one; what is more comes as one digest a minute.
const STORM: usize = 20;
const MINUTE_MS: i64 = 60_000;
/// What is sent at once, at most.
const MOST: usize = 500;
/// A message that was refused so often is set aside, so that the others arrive.
const REFUSALS: u32 = 5;
/// Alertmanager ends what it is not told again: how often it is, and for how long after the end, ms.
const AGAIN_MS: (i64, i64) = (60_000, 15 * 60_000);

/// What a receiver got.
#[derive(Debug, Default)]
pub struct Counts {
    /// Messages that arrived.
    pub sent: AtomicU64,
    /// Attempts that failed.
    pub failed: AtomicU64,
    /// Messages that the receiver did not want, and that were set aside.
    pub refused: AtomicU64,
    /// Attempts that failed since the last that did not.
    pub failing: AtomicU64,
}

impl Counts {
    /// Counts an attempt; the first that fails is said.
    pub fn attempt(&self, receiver: &str, outcome: &Result<()>) {
        match outcome {
            Ok(()) => {
                if self.failing.swap(0, Ordering::Relaxed) > 0 {
                    crate::say!("profiler: receiver {receiver}: it works again");
                }
            }
            Err(error) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                if self.failing.fetch_add(1, Ordering::Relaxed) == 0 {
                    crate::say!("profiler: receiver {receiver}: {error:#}; it is tried again");
                }
            }
        }
    }
}

/// The outbox of a receiver.
pub struct Delivery {
    store: Store,
    receiver: Receiver,
    /// Rules that it is told of.
    rules: BTreeSet<String>,
    counts: Arc<Counts>,
    /// When messages were sent in the last minute, ms since 1970 (UTC).
    sent: VecDeque<i64>,
    /// When the last digest was.
    digest_ms: Option<i64>,
    /// When everything that fires was told again.
    again_ms: i64,
    /// What has arrived and is still in the outbox, since that could not be written.
    arrived: Vec<Outgoing>,
}

impl Delivery {
    /// Goes on with what is in the store.
    pub fn new(store: Store, receiver: Receiver, rules: BTreeSet<String>, counts: Arc<Counts>) -> Delivery {
        let sent = VecDeque::new();
        Delivery { store, receiver, rules, counts, sent, digest_ms: None, again_ms: 0, arrived: Vec::new() }
    }

    /// The receiver's name.
    pub fn name(&self) -> &str {
        &self.receiver.name
    }

    /// Sends a message that is not in the outbox, once.
    pub fn urgent(&self, message: Message) {
        let outcome = send(&self.receiver.kind, &[message]);
        self.counts.attempt(&self.receiver.name, &outcome);
        self.counts.sent.fetch_add(u64::from(outcome.is_ok()), Ordering::Relaxed);
    }

    /// Takes what has arrived out of the outbox: before, nothing else is sent, or it would arrive again and again.
    fn take_out(&mut self) -> Result<()> {
        if !self.arrived.is_empty() {
            self.store.sent(&self.arrived)?;
            self.arrived.clear();
        }
        Ok(())
    }

    /// Sends what is due next; whether there was something.
    pub fn next(&mut self, now_ms: i64) -> Result<bool> {
        self.take_out()?;
        let due = self.store.due(&self.receiver.name, now_ms, MOST)?;
        if due.is_empty() {
            return self.again(now_ms).map(|()| false);
        }
        let Some(batch) = self.batch(due, now_ms)? else { return Ok(false) };
        let messages = messages(&batch)?;
        let outcome = send(&self.receiver.kind, &messages);
        self.counts.attempt(&self.receiver.name, &outcome);
        match outcome {
            Ok(()) => {
                self.counts.sent.fetch_add(batch.len() as u64, Ordering::Relaxed);
                self.sent.push_back(now_ms);
                self.arrived = batch;
                self.take_out()?;
            }
            Err(error) => {
                let attempts = batch.iter().map(|message| message.attempts).max().unwrap_or(0);
                let text = format!("{error:#}");
                if error.is::<Refused>() && attempts + 1 >= REFUSALS {
                    crate::say!("profiler: receiver {}: {text}; it is set aside", self.receiver.name);
                    self.store.refused(&batch, &text, now_ms)?;
                    self.counts.refused.fetch_add(batch.len() as u64, Ordering::Relaxed);
                } else {
                    let wait = backoff(attempts, batch.first().map_or(0, |first| first.seq));
                    self.store.failed(&batch, &text, now_ms + wait.as_millis() as i64)?;
                }
            }
        }
        Ok(true)
    }

    /// What of `due` is sent at once; `None` for nothing yet.
    fn batch(&mut self, mut due: Vec<Outgoing>, now_ms: i64) -> Result<Option<Vec<Outgoing>>> {
        match self.receiver.kind {
            ReceiverKind::Alertmanager { .. } | ReceiverKind::File { .. } => return Ok(Some(due)),
            // Each is a call of its own, and must stay one.
            ReceiverKind::Command { .. } | ReceiverKind::Stderr | ReceiverKind::Heartbeat { .. } => {
                due.truncate(1);
                return Ok(Some(due));
            }
            ReceiverKind::Slack { .. } | ReceiverKind::Webhook { .. } | ReceiverKind::Email(_) => {}
        }
        if let Some(digest) = due[0].digest.clone() {
            // It was tried before: it stays what it was, so that whoever got it knows it again.
            due.retain(|message| message.digest.as_ref() == Some(&digest));
            return Ok(Some(due));
        }
        due.retain(|message| message.digest.is_none());
        while self.sent.front().is_some_and(|&at| now_ms - at >= MINUTE_MS || at > now_ms) {
            self.sent.pop_front();
        }
        if self.sent.len() + due.len() <= STORM || due.len() == 1 && self.sent.len() < STORM {
            due.truncate(1);
            return Ok(Some(due));
        }
        if self.digest_ms.is_some_and(|at| (0..MINUTE_MS).contains(&(now_ms - at))) {
            return Ok(None);
        }
        self.digest_ms = Some(now_ms);
        let seqs: Vec<i64> = due.iter().map(|message| message.seq).collect();
        let digest = digest_id(&due);
        self.store.combine(&seqs, &digest)?;
        due.iter_mut().for_each(|message| message.digest = Some(digest.clone()));
        Ok(Some(due))
    }

    /// Tells Alertmanager again what fires, and what has ended not long ago.
    fn again(&mut self, now_ms: i64) -> Result<()> {
        let is_forgetful = matches!(self.receiver.kind, ReceiverKind::Alertmanager { .. });
        if !is_forgetful || (0..AGAIN_MS.0).contains(&(now_ms - self.again_ms)) {
            return Ok(());
        }
        self.again_ms = now_ms;
        let alerts = self.store.since(now_ms - AGAIN_MS.1)?;
        let alerts = alerts.into_iter().filter(|alert| self.rules.contains(&alert.rule));
        let messages: Vec<Message> =
            alerts.filter_map(|alert| serde_json::from_value(alert.body).ok()).collect();
        if !messages.is_empty() {
            self.counts.attempt(&self.receiver.name, &send(&self.receiver.kind, &messages));
        }
        Ok(())
    }
}

/// What is sent for a batch: each message, or one digest of all.
fn messages(batch: &[Outgoing]) -> Result<Vec<Message>> {
    let each = batch.iter().map(|outgoing| serde_json::from_str(&outgoing.body));
    let messages: Vec<Message> =
        each.collect::<Result<_, _>>().context("a message in the outbox is damaged")?;
    let Some(digest) = batch.first().and_then(|first| first.digest.as_ref()) else { return Ok(messages) };
    let last = messages.last().cloned().unwrap_or_default();
    let critical = messages.iter().any(|message| message.severity == "critical");
    let parts = messages.iter().map(|message| Part {
        message: message.message.clone(),
        alert: message.alert.clone(),
        change: message.change.clone(),
        rule: message.rule.clone(),
        target: message.target.clone(),
        severity: message.severity.clone(),
        value: message.value.clone(),
    });
    Ok(vec![Message {
        version: 1,
        message: digest.clone(),
        change: "digest".to_owned(),
        summary: format!("{} messages came at once and were put together", messages.len()),
        host: last.host,
        severity: if critical { "critical" } else { "warning" }.to_owned(),
        started_unix_ms: messages.first().map_or(0, |first| first.unix_ms),
        unix_ms: last.unix_ms,
        parts: parts.collect(),
        ..Message::default()
    }])
}

/// Id of a digest: of what is in it.
fn digest_id(parts: &[Outgoing]) -> String {
    use sha2::Digest as _;
    let mut hash = sha2::Sha256::new();
    for part in parts {
        hash.update(part.message.as_bytes());
        hash.update([0]);
    }
    let hash = hash.finalize();
    let hex: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("digest-{hex}")
}

/// How long to wait after so many attempts: twice as long each time, a fifth more or less, so that not all that failed
/// together come back together.
fn backoff(attempts: u32, seq: i64) -> Duration {
    let whole = BACKOFF.0.saturating_mul(2u32.saturating_pow(attempts.min(16))).min(BACKOFF.1);
    let random = (seq as u64 ^ u64::from(attempts) << 32).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    whole.mul_f64(0.8 + 0.4 * random as f64 / f64::from(1u32 << 24))
}

#[cfg(test)]
mod tests;
