//! Which processes are targets now.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use crate::process::{
    clock::{Clock, Every},
    life::Living,
    notice::Notice,
    target::Target,
};

/// How often it is looked who has ended where no notice said so.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Whether any target still lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Some do, or the run does not end with them.
    Live,
    /// None does.
    Ended,
}

/// The targets of a run.
pub struct Followed {
    target: Target,
    proc_root: PathBuf,
    /// `None` where the run does not end with its targets.
    living: Option<Living>,
    sweep: Every,
}

impl Followed {
    /// Begins with `pids`.
    pub fn new(target: &Target, pids: &[u32], proc_root: &Path, clock: &Clock) -> Followed {
        let ends = matches!(target, Target::Pids { .. });
        Followed {
            target: target.clone(),
            proc_root: proc_root.to_owned(),
            living: ends.then(|| Living::new(proc_root, pids, target.follows())),
            sweep: Every::new(clock, SWEEP_INTERVAL),
        }
    }

    /// Targets by their id, as of now.
    pub fn pids(&self) -> Vec<u32> {
        match &self.living {
            Some(living) => living.pids(),
            None => self.target.processes(&self.proc_root),
        }
    }

    /// Whether all have ended, and the run with them.
    pub fn have_ended(&self) -> bool {
        self.living.as_ref().is_some_and(Living::is_empty)
    }

    /// Whether a process is known to be a target that lives.
    pub fn contains(&self, pid: u32) -> bool {
        self.living.as_ref().is_some_and(|living| living.contains(pid))
    }

    /// Takes note of what happened to a process.
    pub fn apply(&mut self, notice: &Notice) {
        if let Some(living) = &mut self.living {
            living.apply(notice);
        }
    }

    /// Forgets targets that have ended and calls `gone` with each. `exits` says that a process has ended; without, it is
    /// looked once a second.
    pub fn sweep(&mut self, exits: bool, gone: impl FnMut(u32)) -> Targets {
        let Some(living) = &mut self.living else { return Targets::Live };
        if exits || self.sweep.is_due() {
            self.sweep.restart();
            living.sweep().into_iter().for_each(gone);
        }
        if self.have_ended() { Targets::Ended } else { Targets::Live }
    }
}
