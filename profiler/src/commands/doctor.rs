//! `profiler doctor`: what this kernel and these rights allow.

use anyhow::Result;

use crate::{
    error::Error,
    kernel::preflight::{self, Verdict},
    probe::PROBES,
};

/// Prints a line per feature; fails if one is missing without which nothing works.
pub fn doctor() -> Result<()> {
    let mut checks = preflight::checks();
    if preflight::may_load_programs() {
        checks.extend(PROBES.iter().flat_map(|spec| (spec.checks)()));
    }
    for check in &checks {
        println!("{check}");
    }
    match checks.iter().find(|check| check.verdict == Verdict::No) {
        None => Ok(()),
        Some(_) if !preflight::may_load_programs() => Err(Error::MissingRights { what: "profile" }.into()),
        Some(check) => Err(Error::KernelUnsupported(format!("{} {}", check.feature, check.detail)).into()),
    }
}
