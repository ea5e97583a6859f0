//! What is measured in a window, and with what.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{model::report::Run, settings::Requests};

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
    /// When requests are watched.
    pub requests: Requests,
    /// Watch who allocates, when a process grows.
    pub allocations: bool,
    /// Samples per second and CPU.
    pub frequency: u32,
}

/// Measures a window until its end. Asks often whether it must end, and by when: `None` for not yet.
pub type Measure<'a> = &'a mut dyn FnMut(&Window, &dyn Fn() -> Option<Instant>) -> Result<Run>;
