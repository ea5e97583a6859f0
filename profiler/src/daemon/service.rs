//! The daemon at work: a window, what it means, what the API shows of it, and the next one.

use std::{
    cell::{Cell, OnceCell},
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    api::{self, Shared, Snapshot, TargetStatus},
    config::{self, Config},
    engine::{Engine, Keeper, Now, TargetFacts},
    evidence::Evidence,
    export::{self, Exports},
    facts::facts,
    history::History,
    notify::Senders,
    overlay::Overlay,
    own::Own,
    shed::{self, Detail, Shed},
    store::Store,
    targets,
    window::{Measure, Window},
};
use crate::{
    error::Error,
    metrics::Budget,
    model::{part::part, report::Run},
    process::{clock, usage::Usage},
    settings::Requests,
};

/// Where processes are looked for.
pub const PROC: &str = "/proc";

/// How often it is looked for processes while there are none.
const LOOK: Duration = Duration::from_secs(2);

/// How often systemd is told that the daemon lives, at most.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

/// How long the end may take: of a window, and in all, with the last messages.
const END: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(2));

/// How long receivers of before may take when the configuration is read again.
const LAST_MESSAGES: Duration = Duration::from_secs(1);

/// Gives memory that a window has left back to the kernel: the next one may be long in coming, and smaller.
fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no arguments but how much to keep; safe to call at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Name of this machine.
pub fn host() -> String {
    crate::text::read_to_parse("/proc/sys/kernel/hostname".as_ref()).unwrap_or_default().trim().to_owned()
}

fn now() -> Now {
    Now { monotonic: Duration::from_nanos(clock::monotonic_ns()), unix_ms: clock::unix_ms() }
}

/// What has been asked of the daemon by signals. Whoever waits asks again and again: so systemd knows that the daemon lives.
#[derive(Debug, Default)]
struct Asked {
    stop: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
    /// When it was first seen that the daemon must stop.
    stopped: OnceCell<Instant>,
    /// When systemd was told last.
    told: Cell<Option<Instant>>,
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
        if self.told.get().is_none_or(|at| at.elapsed() >= SIGN_OF_LIFE) {
            self.told.set(Some(Instant::now()));
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        }
        self.stop.load(Ordering::Relaxed)
    }

    /// When all must have ended that may take so long, counted from when it was first asked to stop.
    fn until(&self, patience: Duration) -> Instant {
        *self.stopped.get_or_init(Instant::now) + patience
    }

    /// Sleeps, unless something is asked meanwhile.
    fn wait(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.stop() && !self.reload.load(Ordering::Relaxed) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Runs until SIGTERM or SIGINT. SIGHUP reads the configuration again; one that is wrong changes nothing.
pub fn run(config_file: &Path, measure: Measure<'_>) -> Result<()> {
    let config = config::load(config_file).map_err(anyhow::Error::msg)?;
    let asked = Asked::listen()?;
    let mut daemon = Daemon::start(config)?;
    crate::say!(
        "profiler: watching {} in windows of {}; SIGHUP reads {} again",
        crate::model::units::count(daemon.engine.config().targets.len() as u64, "target"),
        humantime::format_duration(daemon.engine.config().daemon.window),
        config_file.display()
    );
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    while !asked.stop() {
        if daemon.shared.overlay_changed.swap(false, Ordering::Relaxed) {
            daemon.overlay();
        }
        if asked.reload.swap(false, Ordering::Relaxed) {
            match config::load(config_file) {
                Ok(config) => daemon.reload(config)?,
                Err(error) => {
                    daemon.own.refused_reloads += 1;
                    crate::say!("profiler: the configuration is not taken over: {error}");
                }
            }
        }
        daemon.window(measure, &asked);
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    daemon.end(asked.until(END.1));
    Ok(())
}

/// A configuration with what was changed through the API.
fn overlaid(mut config: Config) -> Config {
    Overlay::load(&config.daemon.state_dir).apply(&mut config.rules);
    config
}

struct Daemon {
    /// As the file says, without what was changed through the API.
    configured: Config,
    engine: Engine,
    evidence: Evidence,
    senders: Senders,
    exports: Exports,
    shared: Arc<Shared>,
    shed: Shed,
    own: Own,
    /// What the last window has cost.
    budget: Option<Budget>,
    /// When the last window ended, ms since 1970 (UTC).
    window_ended: Arc<AtomicI64>,
    /// When the last window ended that did not fail, ms since 1970 (UTC).
    measured_unix_ms: Option<i64>,
    /// Somebody asked to see everything in this window.
    capturing: bool,
    problems: Vec<String>,
}

impl Daemon {
    fn start(config: Config) -> Result<Daemon> {
        let dir = config.daemon.state_dir.clone();
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let evidence = Evidence::open(&dir, config.daemon.keep_windows, config.daemon.evidence_bytes)
            .with_context(|| format!("cannot write in {}", dir.display()))?;
        let history = History::open(&dir, config.daemon.history_bytes, clock::unix_ms());
        // The first to open it: who sets a damaged one aside.
        let store = Store::start(&dir)?;
        let window_ended = Arc::new(AtomicI64::new(clock::unix_ms()));
        let senders = Senders::start(&dir, &config, &host(), &window_ended)?;
        let exports = Exports::start(&dir, &config.exports)?;
        let shared = Arc::new(Shared::new(&dir, &config.daemon)?);
        let configured = config.clone();
        let config = overlaid(config);
        shared.configure(&configured.rules, &config)?;
        api::serve(&config.daemon, Arc::clone(&shared))?;
        let engine = Engine::new(config, host(), store, history, now())?;
        Ok(Daemon {
            configured,
            engine,
            evidence,
            senders,
            exports,
            shared,
            shed: Shed::default(),
            own: Own::default(),
            budget: None,
            window_ended,
            measured_unix_ms: None,
            capturing: false,
            problems: Vec::new(),
        })
    }

    /// Takes over another configuration. Where the state is and where the API listens stay as they are.
    fn reload(&mut self, config: Config) -> Result<()> {
        let old = &self.engine.config().daemon;
        let place = |of: &config::Daemon| {
            (of.state_dir.clone(), of.listen.clone(), of.tls_cert.clone(), of.tls_key.clone())
        };
        if place(old) != place(&config.daemon) || old.is_open() != config.daemon.is_open() {
            crate::say!(
                "profiler: state_dir, listen, tls_cert, tls_key, and whether there are tokens change with the next start"
            );
        }
        let dir = old.state_dir.clone();
        let senders = Senders::start(&dir, &config, &host(), &self.window_ended)?;
        std::mem::replace(&mut self.senders, senders).stop(Instant::now() + LAST_MESSAGES);
        let exports = Exports::start(&dir, &config.exports)?;
        std::mem::replace(&mut self.exports, exports).stop(Instant::now() + LAST_MESSAGES);
        self.evidence = Evidence::open(&dir, config.daemon.keep_windows, config.daemon.evidence_bytes)?;
        self.configured = config;
        self.overlay();
        crate::say!("profiler: the configuration has been read again");
        Ok(())
    }

    /// Lets messages and profiles that are being sent arrive, until then.
    fn end(self, until: Instant) {
        // All are asked before any is waited for.
        self.senders.end();
        self.exports.end();
        self.senders.stop(until);
        self.exports.stop(until);
    }

    /// Lays what was changed through the API over the configuration.
    fn overlay(&mut self) {
        let config = overlaid(self.configured.clone());
        let mut served = config.clone();
        // A daemon that began with tokens does not open itself to everybody.
        if served.daemon.is_open() {
            let before = &self.engine.config().daemon;
            (served.daemon.token_file, served.daemon.jwt) = (before.token_file.clone(), before.jwt.clone());
        }
        if let Err(error) = self.shared.configure(&self.configured.rules, &served) {
            self.failed(format!("tokens are not read again: {error:#}"));
        }
        self.engine.reconfigure(served);
    }

    /// One window. What fails is said and counted, and the next one comes: of one that failed nothing is known.
    fn window(&mut self, measure: Measure<'_>, asked: &Asked) {
        let config = self.engine.config();
        let (mut found, left_out) = targets::assign(&config.targets, targets::running(Path::new(PROC)));
        self.problems.clear();
        self.left_out(left_out);
        let one_less = |n: u32| n.checked_sub(1);
        self.capturing =
            self.shared.captures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok();
        let mut nobody = found.iter().all(BTreeSet::is_empty);
        let mut measured = if nobody { Ok(None) } else { self.measure(&found, measure, asked).map(Some) };
        if asked.stop() {
            return; // a part of a window says less than it seems to
        }
        // They were gone before it began.
        if measured.as_ref().is_err_and(|error| matches!(error.downcast_ref(), Some(Error::NoSuchPid(_)))) {
            (measured, nobody) = (Ok(None), true);
            found.iter_mut().for_each(BTreeSet::clear);
        }
        let failure = measured.as_ref().err().map(|error| format!("{error:#}"));
        let measured = measured.ok().flatten();
        if let Some((recording, _)) = &measured {
            self.note(recording, &found);
        }
        if let Some(why) = &failure {
            let what = if self.capturing { "a window in which all was to be seen" } else { "a window" };
            self.failed(format!("{what} failed: {why}"));
        }
        let run = measured.map(|(_, run)| run);
        let facts: Vec<TargetFacts> = found.into_iter().map(|pids| facts(Path::new(PROC), pids)).collect();
        let now = now();
        let mut keeper = Pins { evidence: &self.evidence, unix_ms: now.unix_ms, errors: Vec::new() };
        let budget = self.budget.take();
        let own = (!nobody).then(|| self.own.ended(failure.as_deref(), budget));
        let taken = self.engine.window(run.as_ref(), &facts, own.as_ref(), now, &mut keeper);
        let mut errors = keeper.errors;
        errors.extend(taken.err().map(|error| format!("{error:#}")));
        errors.extend(self.evidence.clean(now.unix_ms).err().map(|error| error.to_string()));
        for error in errors {
            self.failed(error);
        }
        for (message, receivers) in self.engine.urgent() {
            self.senders.urgent(message, receivers);
        }
        if let Some(run) = &run {
            self.export(run, &facts);
        }
        if failure.is_none() {
            self.window_ended.store(now.unix_ms, Ordering::Relaxed);
            self.measured_unix_ms = Some(now.unix_ms);
        }
        self.publish(&facts, failure.is_some());
        if run.is_none() {
            asked.wait(LOOK);
        }
        drop(run);
        give_back();
    }

    /// Measures a window of all targets' processes: its recording, and what it says.
    fn measure(
        &mut self,
        found: &[BTreeSet<u32>],
        measure: Measure<'_>,
        asked: &Asked,
    ) -> Result<(PathBuf, Run)> {
        let settings = self.engine.config().daemon.clone();
        let wanted = Detail {
            syscalls: settings.syscalls,
            requests: settings.requests,
            allocations: true,
            frequency: settings.frequency,
        };
        let detail = match (self.capturing, self.engine.wants_capture()) {
            // Somebody asked for it, and knows that it costs.
            (true, _) => Detail { syscalls: true, requests: Requests::On, ..wanted },
            (false, captures) => self.shed.detail(Detail { syscalls: wanted.syscalls || captures, ..wanted }),
        };
        let window = Window {
            pids: found.iter().flatten().copied().collect(),
            length: settings.window,
            recording: self.evidence.window_path(clock::unix_ms()),
            syscalls: detail.syscalls,
            requests: detail.requests,
            allocations: detail.allocations,
            frequency: detail.frequency,
        };
        let (begun, before) = (Instant::now(), Usage::now().cpu_ns);
        let must_end = || asked.stop().then(|| asked.until(END.0));
        let run = measure(&window, &must_end).inspect_err(|_| {
            // A part of a window is no evidence.
            let _ = std::fs::remove_file(&window.recording);
        })?;
        let usage = Usage::now();
        let spent_ns = self.own.window(&run.cpu.accounts) + usage.cpu_ns - before;
        let mut budget = Budget {
            cpu: spent_ns as f64 / begun.elapsed().as_nanos().max(1) as f64,
            most_cpu: settings.max_overhead / 100.0,
            memory_bytes: (Usage::rss_bytes() + run.cpu.accounts.agent_peak_rss_bytes) as f64,
            most_memory_bytes: settings.max_memory as f64,
            shed: (self.shed.level, shed::LEVELS),
        };
        if !self.capturing {
            self.shed(&mut budget);
            self.budget = Some(budget);
        }
        Ok((window.recording, run))
    }

    /// Takes note of processes that have no room. It is a problem for as long as it lasts, and said when it begins.
    fn left_out(&mut self, left_out: usize) {
        let before = std::mem::replace(&mut self.own.left_out, left_out);
        if left_out == 0 {
            return;
        }
        let words = targets::left_out_words(left_out);
        if before == 0 {
            crate::say!("profiler: {words}");
        }
        self.problems.push(words);
    }

    /// Sees less from now on, if a window has cost more than it may.
    fn shed(&mut self, budget: &mut Budget) {
        let level = self.shed.level;
        self.shed.window(budget);
        budget.shed.0 = self.shed.level;
        if self.shed.level > level {
            crate::say!("profiler: too dear, less is seen: {}", budget.words());
        }
    }

    /// Gives each target's profile to those who want it.
    fn export(&mut self, run: &Run, facts: &[TargetFacts]) {
        if self.exports.is_empty() {
            return;
        }
        let mut errors = Vec::new();
        for (target, facts) in self.engine.config().targets.iter().zip(facts) {
            let part = part(run, |pid| facts.pids.contains(&pid));
            let window = export::Window { target: &target.name, profile: &part.cpu };
            errors.extend(self.exports.add(window).err().map(|error| format!("export: {error}")));
        }
        errors.into_iter().for_each(|error| self.failed(error));
    }

    /// Notes which processes a recording has of which target, and says if somebody asked for it.
    fn note(&mut self, recording: &Path, found: &[BTreeSet<u32>]) {
        let targets = self.engine.config().targets.iter().zip(found);
        let targets = targets.map(|(target, pids)| (target.name.as_str(), pids)).collect();
        let noted = self.evidence.note(recording, &targets);
        if let Err(error) = noted {
            self.failed(format!("{}: {error}", recording.display()));
        }
        if self.capturing {
            self.shared.events.publish("capture.done", &json!({ "recording": crate::text::path(recording) }));
        }
    }

    fn failed(&mut self, what: String) {
        crate::say!("profiler: {what}");
        self.own.failures += 1;
        self.problems.push(what);
    }

    fn publish(&self, facts: &[TargetFacts], failed: bool) {
        let config = self.engine.config();
        let mut targets: Vec<TargetStatus> = Vec::new();
        let mut values: BTreeMap<&str, BTreeMap<String, Value>> = BTreeMap::new();
        for (metric, target, label, value) in self.engine.samples.iter() {
            let name =
                if label.is_empty() { metric.name.to_owned() } else { format!("{}.{label}", metric.name) };
            values.entry(target).or_default().insert(name, json!(value));
        }
        for ((target, facts), judged) in config.targets.iter().zip(facts).zip(&self.engine.judged) {
            let findings = judged.findings.iter().map(|finding| {
                json!({
                    "rule": finding.rule, "severity": finding.severity.id(), "title": finding.title,
                    "advice": finding.advice,
                })
            });
            targets.push(TargetStatus {
                name: target.name.clone(),
                pids: facts.pids.iter().copied().collect(),
                verdict: judged.verdict.as_ref().map_or_else(String::new, |verdict| verdict.sentence.clone()),
                metrics: values.remove(target.name.as_str()).unwrap_or_default().into_iter().collect(),
                findings: findings.collect(),
            });
        }
        let events = &self.shared.events;
        let each = targets.iter().map(|target| json!({ "target": target.name, "metrics": target.metrics }));
        events.publish("metrics.update", &json!({ "targets": each.collect::<Vec<_>>() }));
        for message in self.engine.changes() {
            let topic = match (message.change.as_str(), message.severity.as_str()) {
                ("resolved", _) => "alert.resolved",
                (_, "critical") => "alert.critical",
                _ => "alert.new",
            };
            events.publish(topic, &json!(message));
        }
        self.shared.publish(Snapshot {
            metrics: self.engine.samples.text(self.own.metrics(
                &self.engine,
                &self.senders,
                &self.exports,
                &self.shed,
            )),
            targets,
            standings: self.engine.standings(),
            window_unix_ms: self.measured_unix_ms,
            failed,
            problems: self.problems.clone(),
        });
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

#[cfg(test)]
mod tests;
