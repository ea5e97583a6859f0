//! What the daemon knows of itself: what it has cost, seen, lost and failed at.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use super::{engine::Engine, export::Exports, notify::Senders, shed::Shed};
use crate::{
    metrics::{Budget, Itself, Kind, OwnMetric, Unit},
    model::report::Accounts,
    process::usage::Usage,
};

/// Windows whose failures are told together.
const LAST: usize = 10;

/// Sums since the start.
#[derive(Debug)]
pub struct Own {
    windows: u64,
    failed_windows: u64,
    /// Whether each of the last windows failed.
    last: VecDeque<bool>,
    /// Why the last that did failed.
    why: String,
    /// Processes of targets that have no room in the windows.
    pub left_out: usize,
    /// Time in windows, of all time so far.
    seen: Duration,
    started: Instant,
    /// Configurations that were not taken over.
    pub refused_reloads: u64,
    /// Windows, files and evidence that failed.
    pub failures: u64,
    lost: BTreeMap<&'static str, u64>,
    probes_ns: u64,
    /// CPU time of the windows' processes, ns.
    windows_cpu_ns: u64,
    /// Largest memory of a window's process, bytes.
    peak_rss_bytes: u64,
}

impl Default for Own {
    fn default() -> Own {
        Own {
            windows: 0,
            failed_windows: 0,
            last: VecDeque::new(),
            why: String::new(),
            left_out: 0,
            seen: Duration::ZERO,
            started: Instant::now(),
            refused_reloads: 0,
            failures: 0,
            lost: BTreeMap::new(),
            probes_ns: 0,
            windows_cpu_ns: 0,
            peak_rss_bytes: 0,
        }
    }
}

impl Own {
    /// Adds a window; what it has cost, ns of CPU time, without the daemon's own.
    pub fn window(&mut self, accounts: &Accounts) -> u64 {
        let probes_ns: u64 = accounts.probes.iter().map(|probe| probe.ns).sum();
        let process_ns = accounts.agent_cpu_ns + accounts.agent_setup_cpu_ns;
        self.windows += 1;
        self.seen += Duration::from_nanos(accounts.duration_ns);
        self.probes_ns += probes_ns;
        self.windows_cpu_ns += process_ns;
        self.peak_rss_bytes = self.peak_rss_bytes.max(accounts.agent_peak_rss_bytes);
        for (loss, n) in accounts.losses.iter() {
            *self.lost.entry(loss.id()).or_default() += n;
        }
        process_ns + probes_ns
    }

    /// Takes note of how a window ended: why it failed, if it did. Gives what is known of the daemon then.
    pub fn ended(&mut self, failure: Option<&str>, budget: Option<Budget>) -> Itself {
        self.last.push_back(failure.is_some());
        if self.last.len() > LAST {
            self.last.pop_front();
        }
        if let Some(why) = failure {
            self.failed_windows += 1;
            self.why = why.to_owned();
        }
        let failed = self.last.iter().filter(|failed| **failed).count();
        Itself {
            age: self.started.elapsed(),
            budget,
            failed: (failed, self.last.len()),
            why: self.why.clone(),
        }
    }

    /// As metrics.
    pub fn metrics(
        &self,
        engine: &Engine,
        senders: &Senders,
        exports: &Exports,
        shed: &Shed,
    ) -> Vec<OwnMetric> {
        let usage = Usage::now();
        let one = |name, help, unit, kind, value: f64| OwnMetric {
            name,
            help,
            unit,
            kind,
            values: vec![(Vec::new(), value)],
        };
        let alerts = engine.standings().into_iter().filter_map(|of| {
            let labels =
                vec![("rule", of.rule), ("target", of.target), ("severity", of.severity?.to_owned())];
            Some((labels, 1.0))
        });
        let sent = senders.counts.iter().flat_map(|(receiver, counts)| {
            [("sent", &counts.sent), ("failed", &counts.failed), ("refused", &counts.refused)].map(
                |(outcome, n)| {
                    let labels = vec![("receiver", receiver.clone()), ("outcome", outcome.to_owned())];
                    (labels, n.load(Ordering::Relaxed) as f64)
                },
            )
        });
        let failing = senders.counts.iter().map(|(receiver, counts)| {
            (vec![("receiver", receiver.clone())], counts.failing.load(Ordering::Relaxed) as f64)
        });
        let exported = exports.counts.iter().flat_map(|(export, counts)| {
            let all = [
                ("sent", &counts.sent),
                ("failed", &counts.failed),
                ("rejected", &counts.rejected),
                ("dropped", &counts.dropped),
            ];
            all.map(|(outcome, n)| {
                let labels = vec![("export", export.clone()), ("outcome", outcome.to_owned())];
                (labels, n.load(Ordering::Relaxed) as f64)
            })
        });
        let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        let lost = self.lost.iter().map(|(reason, n)| (vec![("reason", (*reason).to_owned())], *n as f64));
        let seen = self.seen.as_secs_f64() / self.started.elapsed().as_secs_f64().max(1e-9);
        let family = |name, help, kind, values: Vec<(Vec<(&'static str, String)>, f64)>| OwnMetric {
            name,
            help,
            unit: Unit::Count,
            kind,
            values,
        };
        vec![
            one(
                "agent_cpu_seconds",
                "CPU time of the profiler itself",
                Unit::Seconds,
                Kind::Counter,
                (usage.cpu_ns + self.windows_cpu_ns) as f64 / 1e9,
            ),
            one(
                "agent_probes_seconds",
                "Time in the profiler's kernel programs, of all processes",
                Unit::Seconds,
                Kind::Counter,
                self.probes_ns as f64 / 1e9,
            ),
            one(
                "agent_peak_memory_bytes",
                "Largest resident memory of the daemon and of a window's process together",
                Unit::Bytes,
                Kind::Gauge,
                (usage.peak_rss_bytes + self.peak_rss_bytes) as f64,
            ),
            one(
                "agent_seen_ratio",
                "Part of the time since the start that windows have seen; the rest lies between them",
                Unit::Ratio,
                Kind::Gauge,
                seen,
            ),
            one(
                "agent_windows",
                "Windows that have been measured",
                Unit::Count,
                Kind::Counter,
                self.windows as f64,
            ),
            one(
                "agent_failed_windows",
                "Windows that failed: nothing is known of any target in them",
                Unit::Count,
                Kind::Counter,
                self.failed_windows as f64,
            ),
            one(
                "agent_processes_left_out",
                "Processes of targets that have no room and are not watched",
                Unit::Count,
                Kind::Gauge,
                self.left_out as f64,
            ),
            one(
                "agent_shed_level",
                "How much is left out to keep the cost down: 0 nothing, 5 most",
                Unit::Count,
                Kind::Gauge,
                f64::from(shed.level),
            ),
            one(
                "agent_sheds",
                "How often something more was left out to keep the cost down",
                Unit::Count,
                Kind::Counter,
                shed.times as f64,
            ),
            one(
                "agent_failures",
                "Windows, files and evidence that failed",
                Unit::Count,
                Kind::Counter,
                (self.failures + engine.damaged()) as f64,
            ),
            one(
                "agent_refused_reloads",
                "Configurations that were wrong and not taken over",
                Unit::Count,
                Kind::Counter,
                self.refused_reloads as f64,
            ),
            one(
                "agent_folded_series",
                "Values without room in the exported series",
                Unit::Count,
                Kind::Counter,
                engine.samples.folded as f64,
            ),
            one(
                "outbox_messages",
                "Messages that wait to be sent",
                Unit::Count,
                Kind::Gauge,
                engine.outbox().0 as f64,
            ),
            one(
                "alerts_unstored",
                "Changes of alerts that could not be written yet; their messages have gone out without",
                Unit::Count,
                Kind::Gauge,
                engine.unstored() as f64,
            ),
            one(
                "outbox_dropped",
                "Messages that were dropped because too many waited",
                Unit::Count,
                Kind::Counter,
                engine.outbox().1 as f64,
            ),
            one("history_bytes", "History on disk", Unit::Bytes, Kind::Gauge, engine.history_bytes() as f64),
            family(
                "agent_lost",
                "Samples and records that are missing, by reason",
                Kind::Counter,
                lost.collect(),
            ),
            family("alerts", "Alerts that fire", Kind::Gauge, alerts.collect()),
            family(
                "notifications",
                "Messages that arrived or were refused for good, and attempts that failed",
                Kind::Counter,
                sent.collect(),
            ),
            family(
                "exported_profiles",
                "Profiles that were taken, rejected or dropped for want of room, and attempts that failed",
                Kind::Counter,
                exported.collect(),
            ),
            family(
                "receiver_failing",
                "Attempts to send that failed since the last that did not",
                Kind::Gauge,
                failing.collect(),
            ),
            one(
                "agent_series",
                "Values of targets that are exported",
                Unit::Count,
                Kind::Gauge,
                engine.samples.count() as f64,
            ),
            family("agent_build_info", "Version of the profiler", Kind::Gauge, vec![(version, 1.0)]),
        ]
    }
}
