//! What is wrong with a target: one struct for every rule, every output and every alert.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How bad. Its order is that of its numbers; recordings hold the position in this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth a look.
    Warning = 1,
    /// Worth waking somebody.
    Critical = 2,
    /// Worth knowing: it explains something, and need not be wrong.
    Info = 0,
}

impl Severity {
    /// Name in machine-readable output.
    pub fn id(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

/// Which resource a target lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bottleneck {
    /// Its own computation.
    Cpu,
    /// A CPU to run on: others have them, or a quota is used up.
    CpuStarvation,
    /// Memory that is not given back.
    Memory,
    /// Files and block devices.
    Io,
    /// Peers over the network.
    Network,
    /// Locks, and other waits for threads of its own.
    Lock,
    /// Other processes of this machine: children, pipes, Unix sockets.
    Process,
    /// Time: sleeps and timers.
    Sleep,
    /// Descriptors, and other things that are counted.
    Descriptors,
    /// Not known.
    Unknown,
    /// Nothing: it is idle, or does what it should.
    None,
}

impl Bottleneck {
    /// Every one.
    pub const ALL: [Bottleneck; 11] = [
        Bottleneck::Cpu,
        Bottleneck::CpuStarvation,
        Bottleneck::Memory,
        Bottleneck::Io,
        Bottleneck::Network,
        Bottleneck::Lock,
        Bottleneck::Process,
        Bottleneck::Sleep,
        Bottleneck::Descriptors,
        Bottleneck::Unknown,
        Bottleneck::None,
    ];

    /// Name in machine-readable output.
    pub fn id(self) -> &'static str {
        match self {
            Bottleneck::Cpu => "cpu",
            Bottleneck::CpuStarvation => "cpu_starvation",
            Bottleneck::Memory => "memory",
            Bottleneck::Io => "io",
            Bottleneck::Network => "network",
            Bottleneck::Lock => "lock",
            Bottleneck::Process => "process",
            Bottleneck::Sleep => "sleep",
            Bottleneck::Descriptors => "descriptors",
            Bottleneck::Unknown => "unknown",
            Bottleneck::None => "none",
        }
    }

    /// Words for the first line of a report.
    pub fn words(self) -> &'static str {
        match self {
            Bottleneck::Cpu => "CPU",
            Bottleneck::CpuStarvation => "CPU STARVATION",
            Bottleneck::Memory => "MEMORY",
            Bottleneck::Io => "DISK I/O",
            Bottleneck::Network => "NETWORK, PEER",
            Bottleneck::Lock => "LOCK",
            Bottleneck::Process => "OTHER PROCESS",
            Bottleneck::Sleep => "SLEEP",
            Bottleneck::Descriptors => "DESCRIPTORS",
            Bottleneck::Unknown => "UNKNOWN",
            Bottleneck::None => "NONE",
        }
    }
}

/// A process, as findings name it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ProcessName {
    /// Process id; zero for none in particular.
    pub pid: u32,
    /// Name of the process.
    pub name: String,
}

/// What something costs. What is not known is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// Time lost, ns, added up over all threads it happened to.
    pub ns: u64,
    /// That time over the wall time of these threads, from 0 to 1.
    pub share_of_wall: f64,
    /// Memory that is not given back, bytes per second.
    pub bytes_per_s: f64,
}

/// A stack that shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Whose it is, in words; may be empty.
    pub label: &'static str,
    /// Indices into the names of the run's frames, innermost first.
    pub frames: Vec<usize>,
    /// Functions of it that a report shows.
    pub shown: usize,
}

/// Something that is wrong, or worth knowing.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// Name of the rule that found it.
    pub rule: &'static str,
    /// How bad.
    pub severity: Severity,
    /// What it lacks.
    pub bottleneck: Bottleneck,
    /// Whose it is; where it happened to several processes of one name, the one it cost most.
    pub process: ProcessName,
    /// What it is about, the same from run to run: a function, file, peer, lock or thread by name.
    pub subject: String,
    /// What is wrong, in one sentence.
    pub title: String,
    /// What to do about it, in one sentence.
    pub advice: String,
    /// What it costs.
    pub cost: Cost,
    /// Where.
    pub evidence: Vec<Evidence>,
    /// Figures of the rule's own, documented with the rule. Units are in their names.
    pub details: BTreeMap<&'static str, Value>,
}

impl Finding {
    /// A warning that has no words and no figures yet.
    pub fn warning(
        rule: &'static str,
        bottleneck: Bottleneck,
        process: ProcessName,
        subject: String,
    ) -> Finding {
        Finding {
            rule,
            severity: Severity::Warning,
            bottleneck,
            process,
            subject,
            title: String::new(),
            advice: String::new(),
            cost: Cost::default(),
            evidence: Vec::new(),
            details: BTreeMap::new(),
        }
    }

    /// The same for the same defect in every run: rule, name of the process, subject.
    pub fn id(&self) -> String {
        [self.rule, &self.process.name, &self.subject]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(":")
    }
}

/// What a run says about its target.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// What the target lacks.
    pub bottleneck: Bottleneck,
    /// Why, with the function, peer or lock.
    pub sentence: String,
    /// Cost, as a share of wall time, from 0 to 1; zero where it is not time.
    pub share_of_wall: f64,
    /// How sure that is, and why.
    pub certainty: String,
    /// What to change.
    pub advice: String,
    /// Options that show more.
    pub more: &'static str,
    /// The finding it comes from, by its place in the run's list.
    pub finding: Option<usize>,
    /// What the run could not see, or did not look at.
    pub blind: Vec<String>,
    /// Figures for the same thing that disagree beyond their errors, and which one to believe.
    pub doubts: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worse_is_more_whatever_the_position() {
        assert!(Severity::Info < Severity::Warning && Severity::Warning < Severity::Critical);
        let bytes = [Severity::Warning, Severity::Critical, Severity::Info]
            .map(|of| postcard::to_allocvec(&of).unwrap());
        assert_eq!(bytes, [[0], [1], [2]], "recordings hold these");
    }

    #[test]
    fn names_are_told_apart() {
        let ids: std::collections::BTreeSet<_> = Bottleneck::ALL.iter().map(|of| of.id()).collect();
        assert_eq!(ids.len(), Bottleneck::ALL.len());
    }
}
