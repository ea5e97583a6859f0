//! Failures that a caller decides on: each has its own exit code and one line that says what to do.

use std::path::PathBuf;

/// What can go wrong before or instead of profiling. Everything unforeseen is an `anyhow::Error` (exit code 1).
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the message says it")]
pub enum Error {
    #[error(
        "no process with pid {0} here; `ps -e` lists them (pids count from the PID namespace you run in)"
    )]
    NoSuchPid(u32),
    #[error("no running process is named '{0}'; `ps -eo comm` lists names (15 characters at most)")]
    NoSuchComm(String),
    #[error(
        "{0} is no directory of a cgroup, and no systemd unit or container is called so; `systemd-cgls` lists them"
    )]
    NoSuchCgroup(PathBuf),
    #[error("cgroup {} has no processes; in one of version 1 nothing tells of those that come later", .0.display())]
    EmptyCgroup(PathBuf),
    #[error("several cgroups are called {name}: {}; give the path of one", list(paths))]
    ManyCgroups { name: String, paths: Vec<PathBuf> },
    #[error("cannot start {command}: {reason}")]
    CommandNotStarted { command: String, reason: std::io::Error },
    #[error(
        "missing rights to {what}: run as root (sudo), or with the capabilities CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE and, for deleted files, CAP_CHECKPOINT_RESTORE; `profiler doctor` says which are missing"
    )]
    MissingRights { what: &'static str },
    #[error("this kernel cannot run the profiler: {0}; `profiler doctor` shows what it lacks")]
    KernelUnsupported(String),
    #[error("cannot write {}: {reason}", path.display())]
    OutputNotWritable { path: PathBuf, reason: std::io::Error },
    #[error(
        "no {kind} profile was measured, so {output} would be empty; time off CPUs is measured unless the scheduler probe is off or the kernel lacks it (`profiler doctor`), time in system calls with --syscalls, requests unless --requests off"
    )]
    NotMeasured { kind: &'static str, output: String },
    #[error("there is no rule '{0}'; `profiler rules` lists them")]
    NoSuchRule(String),
    #[error("{0}")]
    Contradiction(&'static str),
    #[error("{0} of the outputs could not be written")]
    OutputsFailed(usize),
    #[error("too short, or too few samples, to judge --fail-if: record at least ten seconds of each")]
    NotJudged,
    #[error("cannot read recording {}: {reason}", path.display())]
    BadRecording { path: PathBuf, reason: String },
}

/// Exit code of `profiler diff` when something differs by as much as `--fail-if` says.
pub const DIFFERENT: u8 = 9;

/// Exit code of `profiler replay` when the recording was cut off: what it holds has been shown.
pub const CUT_OFF: u8 = 8;

/// The same where it is damaged: what comes before that has been shown.
pub const DAMAGED: u8 = 11;

/// Some paths, in a message.
fn list(paths: &[PathBuf]) -> String {
    const SHOWN: usize = 5;
    let mut shown: Vec<String> = paths.iter().take(SHOWN).map(|path| crate::text::path(path)).collect();
    if paths.len() > SHOWN {
        shown.push(format!("{} more", paths.len() - SHOWN));
    }
    shown.join(", ")
}

impl Error {
    /// The process exit code. 1 is an unforeseen failure, 2 a wrong command line.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::NotMeasured { .. } | Error::Contradiction(_) | Error::NoSuchRule(_) => 2,
            Error::NoSuchPid(_)
            | Error::NoSuchComm(_)
            | Error::NoSuchCgroup(_)
            | Error::EmptyCgroup(_)
            | Error::ManyCgroups { .. } => 3,
            Error::MissingRights { .. } => 4,
            Error::KernelUnsupported(_) => 5,
            Error::OutputNotWritable { .. } | Error::OutputsFailed(_) => 6,
            Error::BadRecording { .. } => 7,
            Error::NotJudged => 10,
            Error::CommandNotStarted { .. } => 127,
        }
    }
}
