//! `profiler daemon`: windows without end. Each window is a run of its own, of all targets' processes together, in a process
//! of its own: when it ends, everything in the kernel and in memory goes with it, so that a year is as flat as a minute. What
//! must outlive a window is in the engine, the history and the store, each with a bound.
//!
//! `targets -> window (a recording) -> engine (metrics, rules) -> store -> receivers`

mod config;
mod engine;
mod evidence;
mod history;
mod http;
mod message;
mod notify;
mod shed;
mod store;
mod targets;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use self::{
    config::{Config, Receiver},
    engine::{Engine, Keeper, Now, TargetFacts},
    evidence::Evidence,
    http::{Listen, Shared, Snapshot, TargetStatus},
    message::Message,
    notify::Senders,
    shed::{Detail, Shed},
    store::Store,
};
use crate::{
    metrics::{Kind, OwnMetric, Unit},
    model::report::Run,
    process::{clock, quota::CpuQuota, usage::Usage},
};

const PROC: &str = "/proc";

/// How often it is looked for processes while there are none.
const LOOK: Duration = Duration::from_secs(2);

/// When it is tried again after a process ended just before its window began.
const RETRY: Duration = Duration::from_millis(200);

/// How long receivers may take at the end.
const LAST_MESSAGES: Duration = Duration::from_secs(1);

/// What a window is measured with.
#[derive(Clone, Debug)]
pub struct Window {
    /// Processes; their children are watched too.
    pub pids: Vec<u32>,
    /// How long.
    pub length: Duration,
    /// Where the recording goes.
    pub recording: PathBuf,
    /// Count system calls.
    pub syscalls: bool,
    /// Watch who allocates, when a process grows.
    pub allocations: bool,
    /// Samples per second and CPU.
    pub frequency: u32,
}

/// Measures a window until its end, or until it is asked to stop. `None` if one of the processes had ended before it
/// began.
pub type Measure<'a> = &'a mut dyn FnMut(&Window, &dyn Fn() -> bool) -> Result<Option<Run>>;

fn now() -> Now {
    Now { monotonic: Duration::from_nanos(clock::monotonic_ns()), unix_ms: clock::unix_ms() }
}

/// What has been asked of the daemon by signals.
#[derive(Debug, Default)]
struct Asked {
    stop: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
}

impl Asked {
    fn listen() -> Result<Asked> {
        let asked = Asked::default();
        for signal in [libc::SIGTERM, libc::SIGINT] {
            signal_hook::flag::register(signal, Arc::clone(&asked.stop))?;
        }
        signal_hook::flag::register(libc::SIGHUP, Arc::clone(&asked.reload))?;
        Ok(asked)
    }

    fn stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Sleeps, unless something is asked meanwhile.
    fn wait(&self, time: Duration) {
        let end = std::time::Instant::now() + time;
        while !self.stop() && !self.reload.load(Ordering::Relaxed) && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Runs until SIGTERM or SIGINT. SIGHUP reads the configuration again; one that is wrong changes nothing.
pub fn run(config_file: &Path, measure: Measure<'_>) -> Result<()> {
    let config = config::load(config_file).map_err(anyhow::Error::msg)?;
    let asked = Asked::listen()?;
    let mut daemon = Daemon::start(config)?;
    eprintln!(
        "profiler: watching {} in windows of {}; SIGHUP reads {} again",
        crate::model::units::count(daemon.engine.config().targets.len() as u64, "target"),
        humantime::format_duration(daemon.engine.config().daemon.window),
        config_file.display()
    );
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    while !asked.stop() {
        if asked.reload.swap(false, Ordering::Relaxed) {
            match config::load(config_file) {
                Ok(config) => daemon.reload(config)?,
                Err(error) => {
                    daemon.refused_reloads += 1;
                    eprintln!("profiler: the configuration is not taken over: {error}");
                }
            }
        }
        daemon.window(measure, &asked);
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    daemon.senders.stop(LAST_MESSAGES);
    Ok(())
}

/// Checks a configuration: what is in force with it, as a listing.
pub fn check(config_file: &Path) -> Result<String> {
    let config = config::load(config_file).map_err(anyhow::Error::msg)?;
    Listen::parse(&config.daemon.listen)?;
    let mut lines = vec![format!(
        "window {}, state in {}, API on {}",
        humantime::format_duration(config.daemon.window),
        config.daemon.state_dir.display(),
        if config.daemon.listen.is_empty() { "nothing" } else { &config.daemon.listen }
    )];
    let processes: Vec<targets::Process> = targets::running(Path::new(PROC)).collect();
    let found = targets::assign(&config.targets, processes.into_iter());
    for (target, pids) in config.targets.iter().zip(found) {
        lines.push(format!(
            "target {}: {} now",
            target.name,
            crate::model::units::count(pids.len() as u64, "process")
        ));
    }
    lines.extend(config.receivers.iter().map(|receiver| format!("receiver {}", receiver.name)));
    for rule in config.rules.iter() {
        let unit = crate::metrics::find(&rule.metric).map_or(Unit::Count, |metric| metric.unit);
        let words = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| unit.words(value));
        let source = if rule.finding.is_empty() { &rule.metric } else { &rule.finding };
        let enabled = if rule.enabled { "" } else { "  (disabled)" };
        lines.push(format!(
            "rule {:<18} {:<32} warning {:<9} critical {:<9} for {}{enabled}",
            rule.id,
            source,
            words(rule.warning),
            words(rule.critical),
            humantime::format_duration(rule.hold),
        ));
    }
    Ok(lines.join("\n"))
}

/// Sends a message that says it is a test, once.
pub fn test_receiver(config_file: &Path, name: &str) -> Result<()> {
    let config = config::load(config_file).map_err(anyhow::Error::msg)?;
    let Some(Receiver { kind, .. }) = config.receivers.iter().find(|receiver| receiver.name == name) else {
        let known: Vec<&str> = config.receivers.iter().map(|receiver| receiver.name.as_str()).collect();
        bail!("no receiver is named {name}; there are {}", known.join(", "));
    };
    let unix_ms = clock::unix_ms();
    let message = Message {
        version: 1,
        message: format!("test-{unix_ms}"),
        alert: format!("test-{unix_ms}"),
        change: "fired".to_owned(),
        rule: "test".to_owned(),
        summary: "a test message: nothing is wrong".to_owned(),
        target: "none".to_owned(),
        host: host(),
        severity: "warning".to_owned(),
        started_unix_ms: unix_ms,
        unix_ms,
        ..Message::default()
    };
    notify::send(kind, &message)
}

fn host() -> String {
    crate::text::read_to_parse("/proc/sys/kernel/hostname".as_ref()).unwrap_or_default().trim().to_owned()
}

/// A configuration to begin with.
pub const EXAMPLE: &str = include_str!("profiler.toml");

struct Daemon {
    engine: Engine,
    evidence: Evidence,
    senders: Senders,
    shared: Arc<Shared>,
    shed: Shed,
    windows: u64,
    /// Time in windows, of all time so far.
    seen: Duration,
    started: std::time::Instant,
    refused_reloads: u64,
    failed_windows: u64,
    lost: std::collections::BTreeMap<&'static str, u64>,
    probes_ns: u64,
    /// CPU time of the windows' processes, ns.
    windows_cpu_ns: u64,
    /// Largest memory of a window's process, bytes.
    peak_rss_bytes: u64,
    problems: Vec<String>,
}

impl Daemon {
    fn start(config: Config) -> Result<Daemon> {
        let dir = config.daemon.state_dir.clone();
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let evidence = Evidence::open(&dir, config.daemon.keep_windows, config.daemon.evidence_bytes)
            .with_context(|| format!("cannot write in {}", dir.display()))?;
        let history = history::History::open(&dir, config.daemon.history_bytes, clock::unix_ms());
        let senders = Senders::start(&dir, &config.receivers)?;
        let shared = Arc::new(Shared::new(&dir, config.daemon.token_file.as_deref())?);
        if let Some(listen) = Listen::parse(&config.daemon.listen)? {
            http::serve(listen, Arc::clone(&shared))?;
        }
        let engine = Engine::new(config, host(), Store::open(&dir)?, history, now())?;
        Ok(Daemon {
            engine,
            evidence,
            senders,
            shared,
            shed: Shed::default(),
            windows: 0,
            seen: Duration::ZERO,
            started: std::time::Instant::now(),
            refused_reloads: 0,
            failed_windows: 0,
            lost: std::collections::BTreeMap::new(),
            probes_ns: 0,
            windows_cpu_ns: 0,
            peak_rss_bytes: 0,
            problems: Vec::new(),
        })
    }

    /// Takes over another configuration. Where the state is and where the API listens stay as they are.
    fn reload(&mut self, config: Config) -> Result<()> {
        let old = &self.engine.config().daemon;
        if (&old.state_dir, &old.listen, &old.token_file)
            != (&config.daemon.state_dir, &config.daemon.listen, &config.daemon.token_file)
        {
            eprintln!("profiler: state_dir, listen and token_file change with the next start");
        }
        let dir = old.state_dir.clone();
        let senders = Senders::start(&dir, &config.receivers)?;
        std::mem::replace(&mut self.senders, senders).stop(LAST_MESSAGES);
        self.evidence = Evidence::open(&dir, config.daemon.keep_windows, config.daemon.evidence_bytes)?;
        self.engine.reconfigure(config);
        eprintln!("profiler: the configuration has been read again");
        Ok(())
    }

    /// One window. What fails is said and counted, and the next one comes.
    fn window(&mut self, measure: Measure<'_>, asked: &Asked) {
        let config = self.engine.config();
        let settings = config.daemon.clone();
        let found = targets::assign(&config.targets, targets::running(Path::new(PROC)));
        let pids: Vec<u32> = found.iter().flatten().copied().collect();
        let wanted = Detail {
            syscalls: settings.syscalls || self.engine.wants_capture(),
            allocations: true,
            frequency: settings.frequency,
        };
        let detail = self.shed.detail(wanted);
        let recording = self.evidence.window_path(clock::unix_ms());
        let begun = std::time::Instant::now();
        let before = Usage::now().cpu_ns;
        self.problems.clear();
        let run = if pids.is_empty() {
            asked.wait(LOOK);
            None
        } else {
            let window = Window {
                pids,
                length: settings.window,
                recording,
                syscalls: detail.syscalls,
                allocations: detail.allocations,
                frequency: detail.frequency,
            };
            match measure(&window, &|| asked.stop()) {
                Ok(Some(run)) => Some(run),
                Ok(None) => {
                    asked.wait(RETRY);
                    return;
                }
                Err(_) if asked.stop() => return,
                Err(error) => {
                    self.failed(format!("a window failed: {error:#}"));
                    asked.wait(LOOK);
                    return;
                }
            }
        };
        if asked.stop() {
            return; // a part of a window says less than it seems to
        }
        if let Some(run) = &run {
            self.windows += 1;
            self.seen += Duration::from_nanos(run.cpu.accounts.duration_ns);
            let probes_ns: u64 = run.cpu.accounts.probes.iter().map(|probe| probe.ns).sum();
            self.probes_ns += probes_ns;
            for (loss, n) in run.cpu.accounts.losses.iter() {
                *self.lost.entry(loss.id()).or_default() += n;
            }
            let accounts = &run.cpu.accounts;
            let own_ns = Usage::now().cpu_ns - before + accounts.agent_cpu_ns + accounts.agent_setup_cpu_ns;
            self.windows_cpu_ns += accounts.agent_cpu_ns + accounts.agent_setup_cpu_ns;
            self.peak_rss_bytes = self.peak_rss_bytes.max(accounts.agent_peak_rss_bytes);
            let cost = (own_ns + probes_ns) as f64 / begun.elapsed().as_nanos().max(1) as f64;
            let level = self.shed.level;
            self.shed.window(cost, settings.max_overhead / 100.0);
            if self.shed.level > level {
                eprintln!(
                    "profiler: the last window cost {:.1} % of a CPU, {:.1} % are allowed: less is seen (level {} of {})",
                    100.0 * cost,
                    settings.max_overhead,
                    self.shed.level,
                    shed::LEVELS
                );
            }
        }
        let facts: Vec<TargetFacts> = found.into_iter().map(facts).collect();
        let now = now();
        let mut keeper = Pins { evidence: &self.evidence, unix_ms: now.unix_ms, errors: Vec::new() };
        let taken = self.engine.window(run.as_ref(), &facts, now, &mut keeper);
        let mut errors = keeper.errors;
        errors.extend(taken.err().map(|error| format!("{error:#}")));
        errors.extend(self.evidence.clean(now.unix_ms).err().map(|error| error.to_string()));
        for error in errors {
            self.failed(error);
        }
        self.publish(run.as_ref(), &facts);
    }

    fn failed(&mut self, what: String) {
        eprintln!("profiler: {what}");
        self.failed_windows += 1;
        self.problems.push(what);
    }

    fn publish(&self, run: Option<&Run>, facts: &[TargetFacts]) {
        let config = self.engine.config();
        let mut targets: Vec<TargetStatus> = Vec::new();
        for (target, facts) in config.targets.iter().zip(facts) {
            let values = self.engine.samples.iter().filter(|(_, of, ..)| *of == target.name);
            let metrics = values.map(|(metric, _, label, value)| {
                let name = if label.is_empty() {
                    metric.name.to_owned()
                } else {
                    format!("{}.{label}", metric.name)
                };
                (name, json!(value))
            });
            let findings = run.map_or_else(Vec::new, |run| {
                let of = run.findings.iter();
                let of = of
                    .filter(|finding| finding.process.pid == 0 || facts.pids.contains(&finding.process.pid));
                of.map(|finding| {
                    json!({
                        "rule": finding.rule, "severity": finding.severity.id(), "title": finding.title,
                        "advice": finding.advice,
                    })
                })
                .collect()
            });
            targets.push(TargetStatus {
                name: target.name.clone(),
                pids: facts.pids.iter().copied().collect(),
                metrics: metrics.collect(),
                findings,
            });
        }
        let rules: Vec<Value> = config
            .rules
            .iter()
            .map(|rule| {
                json!({
                    "id": rule.id, "summary": rule.summary, "metric": rule.metric, "finding": rule.finding,
                    "op": rule.op, "warning": rule.warning, "critical": rule.critical, "clear": rule.clear_at(),
                    "for_s": rule.hold.as_secs_f64(), "keep_firing_for_s": rule.keep_firing.as_secs_f64(),
                    "cooldown_s": rule.cooldown.as_secs_f64(), "enabled": rule.enabled,
                })
            })
            .collect();
        self.shared.publish(Snapshot {
            metrics: self.engine.samples.text(self.own_metrics()),
            targets,
            standings: self.engine.standings(),
            rules,
            window_unix_ms: Some(clock::unix_ms()),
            problems: self.problems.clone(),
        });
    }

    fn own_metrics(&self) -> Vec<OwnMetric> {
        let usage = Usage::now();
        let (history_bytes, damaged) = self.engine.history_size();
        let one = |name, help, unit, kind, value: f64| OwnMetric {
            name,
            help,
            unit,
            kind,
            values: vec![(Vec::new(), value)],
        };
        let alerts = self.engine.standings().into_iter().filter_map(|of| {
            let labels =
                vec![("rule", of.rule), ("target", of.target), ("severity", of.severity?.to_owned())];
            Some((labels, 1.0))
        });
        let sent = self.senders.counts.iter().flat_map(|(receiver, counts)| {
            [("sent", &counts.sent), ("failed", &counts.failed)].map(|(outcome, n)| {
                let labels = vec![("receiver", receiver.clone()), ("outcome", outcome.to_owned())];
                (labels, n.load(Ordering::Relaxed) as f64)
            })
        });
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
            one("agent_windows", "Windows that have ended", Unit::Count, Kind::Counter, self.windows as f64),
            one(
                "agent_shed_level",
                "How much is left out to keep the cost down: 0 nothing, 4 most",
                Unit::Count,
                Kind::Gauge,
                f64::from(self.shed.level),
            ),
            one(
                "agent_sheds",
                "How often something more was left out to keep the cost down",
                Unit::Count,
                Kind::Counter,
                self.shed.times as f64,
            ),
            one(
                "agent_failures",
                "Windows, files and evidence that failed",
                Unit::Count,
                Kind::Counter,
                (self.failed_windows + damaged) as f64,
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
                self.engine.samples.folded as f64,
            ),
            one(
                "outbox_messages",
                "Messages that wait to be sent",
                Unit::Count,
                Kind::Gauge,
                self.engine.outbox().0 as f64,
            ),
            one(
                "outbox_dropped",
                "Messages that were dropped because too many waited",
                Unit::Count,
                Kind::Counter,
                self.engine.outbox().1 as f64,
            ),
            one("history_bytes", "History on disk", Unit::Bytes, Kind::Gauge, history_bytes as f64),
            family(
                "agent_lost",
                "Samples and records that are missing, by reason",
                Kind::Counter,
                lost.collect(),
            ),
            family("alerts", "Alerts that fire", Kind::Gauge, alerts.collect()),
            family("notifications", "Attempts to send messages", Kind::Counter, sent.collect()),
        ]
    }
}

fn facts(pids: BTreeSet<u32>) -> TargetFacts {
    let proc_root = Path::new(PROC);
    let ages = pids.iter().filter_map(|&pid| targets::age_s(proc_root, pid));
    let ratio = |(open, most): (u64, u64)| open as f64 / most.max(1) as f64;
    let descriptors = pids.iter().filter_map(|&pid| targets::descriptors(proc_root, pid));
    TargetFacts {
        // The oldest: a worker that is replaced is no restart.
        age_s: ages.fold(0.0, f64::max),
        descriptors: descriptors.max_by(|a, b| ratio(*a).total_cmp(&ratio(*b))),
        cpus: cpus(proc_root, &pids),
        pids,
    }
}

/// CPU time that processes may use together in a second, s: the quotas of their cgroups, or all CPUs.
fn cpus(proc_root: &Path, pids: &BTreeSet<u32>) -> f64 {
    let online = std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64);
    let quotas: Option<std::collections::BTreeMap<String, f64>> = pids
        .iter()
        .map(|&pid| CpuQuota::of(proc_root, pid).and_then(|quota| Some((quota.cgroup, quota.cpus?))))
        .collect();
    match quotas {
        // Each group counts once, however many processes are in it.
        Some(quotas) if !quotas.is_empty() => quotas.values().sum::<f64>().min(online),
        _ => online,
    }
}

/// Keeps evidence; what fails is collected, since an alert must go out without it, too.
struct Pins<'a> {
    evidence: &'a Evidence,
    unix_ms: i64,
    errors: Vec<String>,
}

impl Keeper for Pins<'_> {
    fn pin(&mut self, name: &str) {
        let pinned = self.evidence.pin(name, self.unix_ms);
        self.errors.extend(pinned.err().map(|error| format!("evidence: {error}")));
    }

    fn unpin(&mut self, name: &str) {
        let unpinned = self.evidence.unpin(name);
        self.errors.extend(unpinned.err().map(|error| format!("evidence: {error}")));
    }

    fn promote(&mut self, name: &str, alert: &str) -> Vec<String> {
        let promoted = self.evidence.promote(name, alert, self.unix_ms);
        self.errors.extend(promoted.err().map(|error| format!("evidence: {error}")));
        self.evidence.of(alert)
    }
}
