//! What the daemon and its API share: what is known after each window, and what somebody has asked for.

use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32},
    },
    time::Instant,
};

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use super::{access::Access, events::Events, limit::Bucket};
use crate::{
    alerting::Rule,
    daemon::{
        config::{Config, Daemon},
        engine::RuleStatus,
        store::Store,
    },
};

/// Requests that may come at once, and those of each second.
const RATE: (f64, f64) = (400.0, 200.0);

/// What the API answers with: replaced as a whole after each window.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// OpenMetrics text.
    pub metrics: String,
    /// Each target, and what is known of it.
    pub targets: Vec<TargetStatus>,
    /// Where each rule stands for each target.
    pub standings: Vec<RuleStatus>,
    /// End of the last window that did not fail, ms since 1970 (UTC); `None` before the first.
    pub window_unix_ms: Option<i64>,
    /// The last window failed.
    pub failed: bool,
    /// What is wrong with the daemon itself.
    pub problems: Vec<String>,
}

/// A target, for the API.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TargetStatus {
    /// Its name.
    pub name: String,
    /// Its processes.
    pub pids: Vec<u32>,
    /// What kind of bottleneck it had in the last window, in one sentence.
    pub verdict: String,
    /// Last values: metric, or metric and label with a dot between.
    pub metrics: serde_json::Map<String, Value>,
    /// What was found wrong in the last window, worst first.
    pub findings: Vec<Value>,
}

/// What the API needs.
pub struct Shared {
    /// Replaced after each window.
    snapshot: RwLock<Snapshot>,
    /// Rules as the configuration says, before what was changed through the API.
    configured: RwLock<Vec<Rule>>,
    /// Rules in force.
    rules: RwLock<Vec<Rule>>,
    /// Where the daemon keeps what it knows.
    pub state_dir: PathBuf,
    store: Mutex<Store>,
    access: RwLock<Access>,
    /// What happens, for those who listen.
    pub events: Events,
    /// How many requests may come.
    pub bucket: Mutex<Bucket>,
    /// Windows that are to see more, as somebody asked.
    pub captures: AtomicU32,
    /// Thresholds have been changed.
    pub overlay_changed: AtomicBool,
    /// When the daemon started.
    pub started: Instant,
}

impl Shared {
    /// Prepares the API; reads who may use it.
    pub fn new(state_dir: &Path, settings: &Daemon) -> Result<Shared> {
        Ok(Shared {
            snapshot: RwLock::default(),
            configured: RwLock::default(),
            rules: RwLock::default(),
            state_dir: state_dir.to_owned(),
            store: Mutex::new(Store::open(state_dir)?),
            access: RwLock::new(Access::load(settings)?),
            events: Events::default(),
            bucket: Mutex::new(Bucket::new(RATE.0, RATE.1, Instant::now())),
            captures: AtomicU32::new(0),
            overlay_changed: AtomicBool::new(false),
            started: Instant::now(),
        })
    }

    /// Takes over a configuration: as it stands in the file, and with what was changed through the API.
    pub fn configure(&self, configured: &[Rule], in_force: &Config) -> Result<()> {
        *self.configured.write().unwrap_or_else(PoisonError::into_inner) = configured.to_vec();
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = in_force.rules.clone();
        let access = Access::load(&in_force.daemon)?;
        *self.access.write().unwrap_or_else(PoisonError::into_inner) = access;
        Ok(())
    }

    /// Replaces what the API answers with.
    pub fn publish(&self, snapshot: Snapshot) {
        *self.snapshot.write().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    /// Reads what the API answers with.
    pub fn with<T>(&self, read: impl FnOnce(&Snapshot) -> T) -> T {
        read(&self.snapshot.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The rules in force.
    pub fn rules(&self) -> Vec<Rule> {
        self.rules.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The rules as the configuration says.
    pub fn configured(&self) -> Vec<Rule> {
        self.configured.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks who may use the API.
    pub fn access<T>(&self, ask: impl FnOnce(&Access) -> T) -> T {
        ask(&self.access.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The store.
    pub fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
