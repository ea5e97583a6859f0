//! The command line.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{ArgGroup, Args, Parser, Subcommand};

use crate::output::OutputSpec;

const EXAMPLES: &str = "\
Examples:
  sudo profiler --pid 4711                       watch a process until Ctrl-C, then report its hot functions
  sudo profiler --pid 4711 -d 30s -o hot.svg     thirty seconds, and a flame graph
  sudo profiler --comm nginx --threads           every nginx process, split by thread
  sudo profiler --cgroup /sys/fs/cgroup/system.slice/redis.service -d 1m
  sudo profiler --all -d 10s -o - | less         the whole machine, folded stacks to stdout
  sudo profiler -o run.prec -- ./batch --input x start a command and record its whole life
  profiler replay run.prec -o run.pb.gz          turn a recording into a pprof profile, later and without root
  profiler doctor                                what this kernel and these rights allow

Output formats (-o FILE, by extension): .folded .svg .pb.gz .json .prec; '-' is folded stacks on stdout.
Exit codes: 0 done, 1 unforeseen, 2 wrong arguments, 3 no such target, 4 missing rights, 5 kernel lacks a
feature, 6 output not writable, 7 bad recording, 127 command could not be started.";

/// Why is that process slow? Samples a running process without restart or instrumentation and names its hot
/// functions.
#[derive(Debug, Parser)]
#[command(name = "profiler", version, after_help = EXAMPLES, max_term_width = 110)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Cli {
    /// What to do instead of profiling.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to profile.
    #[command(flatten)]
    pub profile: ProfileArgs,
}

/// Everything but profiling.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Turn a recording (.prec) into a report or any other output, without root
    Replay(ReplayArgs),
    /// Say what this kernel and these rights allow, one line per feature
    Doctor,
}

/// Options of a profiling run.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("target").required(true).multiple(false))]
pub struct ProfileArgs {
    /// Process to profile, all its threads (repeatable)
    #[arg(short, long = "pid", value_name = "PID", group = "target", value_parser = clap::value_parser!(u32).range(1..))]
    pub pids: Vec<u32>,
    /// Profile every process of this name, those started later too
    #[arg(long, value_name = "NAME", group = "target")]
    pub comm: Option<String>,
    /// Profile the processes of a cgroup (v2) and of those below it
    #[arg(long, value_name = "PATH", group = "target")]
    pub cgroup: Option<PathBuf>,
    /// Profile everything that runs on this machine
    #[arg(short, long, group = "target")]
    pub all: bool,
    /// Start this command and profile it and its children
    #[arg(last = true, value_name = "COMMAND", group = "target")]
    pub run: Vec<OsString>,
    /// Profile children of --pid too, from their first instruction on
    #[arg(long, conflicts_with_all = ["comm", "cgroup", "all", "run"])]
    pub follow: bool,
    /// Samples per second and CPU
    #[arg(short = 'F', long, value_name = "HZ", default_value_t = 99, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub frequency: u32,
    /// Stop after this long (30s, 5m, 1h); without it: Ctrl-C, or the end of the target
    #[arg(short, long, value_name = "TIME", value_parser = positive_duration)]
    pub duration: Option<Duration>,
    /// How often the live view is refreshed
    #[arg(short, long, value_name = "TIME", default_value = "2s", value_parser = positive_duration)]
    pub interval: Duration,
    /// How user stacks are followed: by unwind tables made from .eh_frame, or by frame pointers, which most
    /// distribution packages lack
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Unwind::Tables)]
    pub unwind: Unwind,
    /// No live view
    #[arg(short, long)]
    pub quiet: bool,
    /// Print what the kernel programs log
    #[arg(long)]
    pub kernel_log: bool,
    /// What to report, and where to.
    #[command(flatten)]
    pub report: ReportArgs,
}

/// Ways to follow a user stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Unwind {
    /// By tables made from `.eh_frame`; frame pointers where there is no table.
    Tables,
    /// By frame pointers only.
    FramePointers,
}

/// Options of the outputs, live or replayed.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Write the result to FILE, format by extension; '-' for folded stacks on stdout (repeatable)
    #[arg(short, long = "output", value_name = "FILE")]
    pub outputs: Vec<OutputSpec>,
    /// Split the report by thread
    #[arg(long)]
    pub threads: bool,
    /// Number of functions in the report
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    pub top: u16,
}

/// Options of `profiler replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The recording
    #[arg(value_name = "FILE")]
    pub recording: PathBuf,
    /// What to report, and where to.
    #[command(flatten)]
    pub report: ReportArgs,
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration.is_zero() => Err("must be longer than nothing".into()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; write it like 30s, 5m or 1h")),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, error::ErrorKind};

    use super::*;

    fn rejected(args: &[&str]) -> ErrorKind {
        Cli::try_parse_from([&["profiler"], args].concat()).expect_err("must be rejected").kind()
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bad_command_lines_are_rejected() {
        assert_eq!(rejected(&[]), ErrorKind::MissingRequiredArgument);
        assert_eq!(rejected(&["--pid", "1", "--all"]), ErrorKind::ArgumentConflict);
        assert_eq!(rejected(&["--pid", "1", "--", "ls"]), ErrorKind::ArgumentConflict);
        assert_eq!(rejected(&["--pid", "0"]), ErrorKind::ValueValidation);
        assert_eq!(rejected(&["--pid", "x"]), ErrorKind::ValueValidation);
        assert_eq!(rejected(&["--all", "-F", "0"]), ErrorKind::ValueValidation);
        assert_eq!(rejected(&["--all", "-d", "0s"]), ErrorKind::ValueValidation);
        assert_eq!(rejected(&["--all", "-o", "x.gif"]), ErrorKind::ValueValidation);
        assert_eq!(rejected(&["--all", "--follow"]), ErrorKind::ArgumentConflict);
    }

    #[test]
    fn a_command_keeps_its_own_options() {
        let cli = Cli::try_parse_from(["profiler", "-d", "5m", "--", "sleep", "-d", "1"]).unwrap();
        assert_eq!(cli.profile.run, ["sleep", "-d", "1"]);
        assert_eq!(cli.profile.duration, Some(Duration::from_secs(300)));
    }
}
