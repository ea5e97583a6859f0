//! What a target is.

use std::path::PathBuf;

use serde::Deserialize;

/// A target: a name of its own, and how its processes are recognised. What is given must all hold.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TargetConfig {
    /// Name in metrics and messages.
    pub name: String,
    /// Name of the processes (15 characters at most count).
    pub comm: Option<String>,
    /// Path of their executable.
    pub exe: Option<PathBuf>,
    /// A part of their cgroup's path.
    pub cgroup: Option<String>,
    /// Their systemd unit.
    pub unit: Option<String>,
    /// Their container's id, or the beginning of it.
    pub container: Option<String>,
    /// A word of their command line.
    pub argument: Option<String>,
}

impl TargetConfig {
    /// Whether it means anything.
    pub fn check(&self) -> Result<(), String> {
        let TargetConfig { name, comm, exe, cgroup, unit, container, argument } = self;
        let texts = [comm, cgroup, unit, container, argument];
        if exe.is_none() && texts.iter().all(|text| text.is_none()) {
            return Err(format!(
                "target `{name}` needs at least one of comm, exe, cgroup, unit, container, argument"
            ));
        }
        if name.starts_with('~') {
            return Err(format!("target `{name}`: names that begin with ~ are the profiler's own"));
        }
        if texts.into_iter().flatten().any(|text| text.is_empty()) {
            return Err(format!("target `{name}`: an empty text would match every process"));
        }
        Ok(())
    }
}
