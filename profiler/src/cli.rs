//! The command line.

use std::{ffi::OsString, path::PathBuf, str::FromStr, time::Duration};

use clap::{ArgGroup, Args, Parser, Subcommand};

use crate::{
    detect::{RULES, rule::Overrides},
    model::{
        cause::WaitCause,
        comparison::Limit,
        kind::{ALLOC, CPU, OFF_CPU, ProfileKind, SYSCALLS},
        threshold::Thresholds,
    },
    output::{OutputSpec, RenderOptions},
    probe::alloc::snapshots::SnapshotSettings,
    process::{redact::Redact, target::Target},
    session::Options,
    settings::{Alloc, AllocSettings, DEFAULT_HZ, Requests, Settings, Syscalls, Waits},
    symbolize::debuginfod,
};

/// Heading of the options of [`AllocArgs`].
const MEMORY: &str = "Memory";
/// Heading of the options of [`BlockingArgs`].
const BLOCKING: &str = "What is too long";

const EXAMPLES: &str = "\
Examples:
  sudo profiler --pid 4711                       watch a process until Ctrl-C, then report its hot functions
  sudo profiler --pid 4711 -d 30s -o hot.svg     thirty seconds, and a flame graph
  sudo profiler --pid 4711 -d 30s -o offcpu.svg  the same of the time it waits, by where it waits
  sudo profiler --pid 4711 --wakers -o offcpu.folded
                                                 and who ends each of its waits
  sudo profiler --pid 4711 -d 30s --syscalls     its system calls: counts, errors, waits, the slowest
  sudo profiler --comm nginx --threads           every nginx process, split by thread
  sudo profiler --cgroup redis.service -d 1m
  sudo profiler --all -d 10s -o - | less         the whole machine, folded stacks to stdout
  sudo profiler -o run.prec -- ./batch --input x start a command and record its whole life
  profiler replay run.prec -o run.pb.gz          turn a recording into a pprof profile, later and without root
  sudo profiler --pid 4711 --snapshot 10m        who has allocated what, every ten minutes, for `profiler diff`
  profiler diff a.prec b.prec --fail-if +5%      what differs between two recordings; exit code 9 if something grew
  profiler doctor                                what this kernel and these rights allow
  sudo profiler daemon --config FILE             watch without end, and tell somebody when something is wrong";

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 unforeseen, 2 wrong arguments, 3 no such target, 4 missing rights, 5 kernel lacks a
feature, 6 output not writable (the others and the report are), 7 bad recording, 8 recording cut off (what it
holds is shown), 9 recordings differ by what --fail-if says, 10 they are too short for it to be judged,
11 recording damaged (what comes before that is shown), 127 command could not be started. With -- COMMAND: the command's own (128 + signal if killed),
unless the profiler failed; the report goes to stderr then, since stdout is the command's.";

/// What follows the options. Formats and kinds come from their tables.
fn help() -> String {
    format!("{EXAMPLES}\n\n{}{EXIT_CODES}", crate::output::help())
}

/// Why is that process slow? Samples a running process without restart or instrumentation and names its hot
/// functions.
#[derive(Debug, Parser)]
#[command(name = "profiler", version, after_help = help(), max_term_width = 110)]
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
    /// List the files whose code a process has mapped, and where names of their functions come from, or can be had
    Symbols(SymbolsArgs),
    /// Turn a recording (.prec) into a report or any other output, without root
    Replay(ReplayArgs),
    /// Say what differs between two recordings or snapshots (.prec), and what of it may be chance
    Diff(DiffArgs),
    /// Say what is looked for, and by which numbers it is judged
    Rules(RulesArgs),
    /// Say what this kernel and these rights allow, one line per feature
    Doctor,
    /// Watch named targets without end: metrics, and alerts that carry their diagnosis (docs/operating.md)
    Daemon(DaemonArgs),
    /// Make or check a configuration of the daemon
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Try what the daemon's alerts go to
    #[command(subcommand)]
    Alert(AlertCommand),
    /// Make a token for the daemon's API: the token, and the line for daemon.token_file
    Token {
        /// What it opens: reader or admin
        #[arg(value_parser = ["reader", "admin"])]
        role: String,
    },
    /// Print what completes the command line in a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the man pages into a folder
    Man {
        /// The folder
        folder: PathBuf,
    },
}

/// What names are looked for.
#[derive(Debug, Args)]
pub struct SymbolsArgs {
    /// The process
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub pid: u32,
}

/// Where the daemon's configuration is.
#[derive(Debug, Args)]
pub struct DaemonArgs {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/profiler/profiler.toml")]
    pub config: PathBuf,
}

/// What can be done with a configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print a configuration to begin with
    Init,
    /// Check a configuration, and print what is in force with it and which processes it finds now
    Check {
        /// The configuration
        #[arg(default_value = "/etc/profiler/profiler.toml")]
        file: PathBuf,
    },
    /// Print the rules in force, and where each comes from: built in, the configuration, or the API
    Show {
        /// The configuration
        #[arg(default_value = "/etc/profiler/profiler.toml")]
        file: PathBuf,
    },
    /// List the metrics that rules can read
    Metrics,
}

/// What can be tried of alerts.
#[derive(Debug, Subcommand)]
pub enum AlertCommand {
    /// Send a test message to a receiver, once
    Test {
        /// Name of the receiver
        receiver: String,
        /// Where it is configured
        #[command(flatten)]
        daemon: DaemonArgs,
    },
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
    /// Profile the processes of a cgroup and of those below it: a path, the name of a systemd unit, or the id of a container
    /// (8 digits and more)
    #[arg(long, value_name = "CGROUP", group = "target")]
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
    #[arg(short = 'F', long, value_name = "HZ", default_value_t = DEFAULT_HZ, value_parser = clap::value_parser!(u32).range(1..=10_000))]
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

    /// Whether functions of language runtimes (JavaScript in Node.js 18 and newer, Python in CPython 3.8 to 3.14, Java in HotSpot 17 and
    /// newer) are named by reading them out of the running program's memory.
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = RuntimeNames::Auto)]
    pub runtimes: RuntimeNames,
    /// Ask debuginfod servers, when the run is over, for names and lines that files on this machine lack: these servers, or
    /// those of DEBUGINFOD_URLS, or of /etc/debuginfod. On without this option where DEBUGINFOD_URLS is set
    #[arg(long, value_name = "URLS", num_args = 0..=1, default_missing_value = "", require_equals = true)]
    pub debuginfod: Option<String>,
    /// Whether to find out what threads wait for: auto is on, except with --all. Off turns off requests and system calls, too, unless they
    /// are asked for
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = Waits::Auto)]
    pub waits: Waits,
    /// Find out who ends each wait, too: the stacks off CPUs go on with the thread, or interrupt, that woke them, and its
    /// stack. Costs every wake-up of every process
    #[arg(long)]
    pub wakers: bool,
    /// Whether to count system calls, with their errors, lengths and waits (by thread with --threads). While that runs,
    /// every system call of every process on the machine takes some 0.07 us longer, those of the target 0.15 to
    /// 0.23 us: auto watches as long as that is within a fifth of --max-overhead, and otherwise in windows; not with --all.
    /// Without a value: on, which is all the time unless --max-overhead is given
    #[arg(
        long,
        value_name = "WHEN",
        value_enum,
        num_args = 0..=1,
        require_equals = true,
        default_value_t = Syscalls::Auto,
        default_missing_value = "on"
    )]
    pub syscalls: Syscalls,
    /// Whether to tell requests and their answers: by peer and route, how many, how long, which failed
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = Requests::DEFAULT)]
    pub requests: Requests,
    /// Look into encrypted connections too, and watch requests all the time: breakpoints in the functions of OpenSSL or BoringSSL that
    /// read and write (Node.js has its own), first bytes only. Each such call of the target takes longer for it
    #[arg(long)]
    pub tls: bool,
    /// Keep paths and addresses of peers out of all outputs: numbers stand for them
    #[arg(long)]
    pub redact_paths: bool,
    /// How allocations are watched.
    #[command(flatten)]
    pub alloc: AllocArgs,
    /// When the state of memory is written down.
    #[command(flatten)]
    pub snapshots: SnapshotArgs,
    /// No live view
    #[arg(short, long)]
    pub quiet: bool,
    /// Started by the daemon: see [`Options::unattended`]
    #[arg(long, hide = true)]
    pub unattended: bool,
    /// Print what the kernel programs log
    #[arg(long)]
    pub kernel_log: bool,
    /// What to report, and where to.
    #[command(flatten)]
    pub report: ReportArgs,
    /// What is too long.
    #[command(flatten)]
    pub blocking: BlockingArgs,
}

impl ProfileArgs {
    /// The same as plain values.
    pub fn options(&self) -> Options {
        Options {
            settings: self.settings(),
            command: self.run.clone(),
            duration: self.duration,
            interval: self.interval,
            quiet: self.quiet,
            unattended: self.unattended,
            snapshots: SnapshotSettings {
                every: self.snapshots.snapshot,
                above_bytes: self.snapshots.snapshot_above,
                dir: self.snapshots.snapshot_dir.clone(),
            },
            baseline: self.report.baseline.clone(),
            outputs: self.report.outputs.clone(),
            render: self.report.options(),
            overrides: self.report.overrides(),
        }
    }

    fn settings(&self) -> Settings {
        Settings {
            target: self.target(),
            frequency_hz: self.frequency,
            shows: !self.quiet,
            unwind_by_tables: self.unwind == Unwind::Tables,
            name_runtimes: self.runtimes == RuntimeNames::Auto,
            debuginfod: match &self.debuginfod {
                Some(urls) => debuginfod::wanted(urls),
                None => debuginfod::from_environment().unwrap_or_default(),
            },
            waits: self.waits,
            wakers: self.wakers,
            syscalls: self.syscalls,
            requests: self.requests,
            tls: self.tls,
            alloc: AllocSettings {
                mode: self.alloc.alloc,
                libraries: self.alloc.alloc_lib.clone(),
                max_overhead_percent: self.alloc.max_overhead,
            },
            by_thread: self.report.threads,
            redact: Redact::new(self.redact_paths),
            thresholds: self.blocking.thresholds(),
            error_storm_share: f64::from(self.blocking.error_storm) / 100.0,
            expected_errors: self.blocking.expected_error.clone(),
            kernel_log: self.kernel_log,
        }
    }

    /// The target. That of a command is empty until it has been started.
    fn target(&self) -> Target {
        if let Some(name) = &self.comm {
            Target::named(name)
        } else if let Some(path) = &self.cgroup {
            Target::Cgroup(path.clone())
        } else if self.all {
            Target::All
        } else {
            Target::Pids { pids: self.pids.clone(), follow: self.follow || !self.run.is_empty() }
        }
    }
}

/// From which length on waiting is worth reporting.
#[derive(Debug, Args)]
pub struct BlockingArgs {
    /// Warn of an event loop that comes back to its epoll_wait (poll, select, …) later than this
    #[arg(long, value_name = "TIME", default_value = "10ms", help_heading = BLOCKING, value_parser = positive_duration)]
    pub stall_warning: Duration,
    /// Call it critical from here on
    #[arg(long, value_name = "TIME", default_value = "50ms", help_heading = BLOCKING, value_parser = positive_duration)]
    pub stall_critical: Duration,
    /// Warn of any other thread that blocks for longer: in whatever is not idle waiting, or in one cause (repeatable;
    /// disk, network, lock, pipe, page_fault, other; sleep, poll, park and child are idle unless given here)
    #[arg(long, value_name = "[CAUSE=]TIME", default_value = "1s", help_heading = BLOCKING)]
    pub long_block: Vec<LongBlock>,
    /// Warn of a thread that is ready to run and gets no CPU for this long
    #[arg(long, value_name = "TIME", default_value = "100ms", help_heading = BLOCKING, value_parser = positive_duration)]
    pub starvation: Duration,
    /// Warn of a system call that fails so often, of at least 100 calls a second, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 5, help_heading = BLOCKING, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub error_storm: u8,
    /// An error that is no failure there, besides EAGAIN, EINPROGRESS, EINTR and ENOENT (repeatable)
    #[arg(long, value_name = "ERRNO", help_heading = BLOCKING, value_parser = errno)]
    pub expected_error: Vec<u32>,
}

/// One `--long-block`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongBlock {
    /// In what; `None` for everything that is not idle waiting.
    pub cause: Option<WaitCause>,
    /// From which length on.
    pub time: Duration,
}

impl FromStr for LongBlock {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((cause, time)) = text.split_once('=') else {
            return Ok(LongBlock { cause: None, time: positive_duration(text)? });
        };
        match WaitCause::ALL.into_iter().find(|known| known.id() == cause) {
            Some(cause) => Ok(LongBlock { cause: Some(cause), time: positive_duration(time)? }),
            None => {
                let known: Vec<&str> = WaitCause::ALL.map(WaitCause::id).into();
                Err(format!("'{cause}' is no cause; known are {}", known.join(" ")))
            }
        }
    }
}

impl BlockingArgs {
    /// The same in nanoseconds. What is given for one cause counts more than what is given for all.
    pub fn thresholds(&self) -> Thresholds {
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let mut thresholds = Thresholds {
            stall_warning_ns: ns(self.stall_warning.min(self.stall_critical)),
            stall_critical_ns: ns(self.stall_critical),
            starvation_ns: ns(self.starvation),
            ..Thresholds::default()
        };
        for of_all in self.long_block.iter().filter(|given| given.cause.is_none()) {
            for cause in WaitCause::ALL.into_iter().filter(|cause| !cause.is_idle()) {
                thresholds.block_ns[cause as usize] = ns(of_all.time);
            }
        }
        for given in &self.long_block {
            if let Some(cause) = given.cause {
                thresholds.block_ns[cause as usize] = ns(given.time);
            }
        }
        thresholds
    }
}

/// Ways to follow a user stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Unwind {
    /// By tables made from `.eh_frame`; frame pointers where there is no table.
    Tables,
    /// By frame pointers only.
    FramePointers,
}

/// When functions of language runtimes are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum RuntimeNames {
    /// Whenever there is one that is known.
    Auto,
    /// Never: their code has the names of a perf map, if there is one.
    Off,
}

/// How memory is watched.
#[derive(Clone, Debug, Args)]
pub struct AllocArgs {
    /// Whether to find out who allocates and does not free: auto once a process is seen to grow, and within
    /// --max-overhead; full from the start, every allocation; off not at all, nor how memory grows. With --all
    /// auto tells who grows, not who allocates
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = Alloc::Auto, help_heading = MEMORY)]
    pub alloc: Alloc,
    /// A file with an allocator that is not found by itself, as the process sees it: its malloc, free … are watched
    /// (repeatable)
    #[arg(long, value_name = "FILE", help_heading = MEMORY)]
    pub alloc_lib: Vec<PathBuf>,
    /// How much of the target's CPU time watching may cost, system calls and allocations together with all else; beyond,
    /// these are watched only some of the time, and figures of allocations are estimates. Default: 5 with auto, no
    /// limit with --alloc full and --syscalls
    #[arg(long, value_name = "PERCENT", help_heading = MEMORY, value_parser = percentage)]
    pub max_overhead: Option<f64>,
}

/// When the state of memory is written down.
#[derive(Clone, Debug, Args)]
pub struct SnapshotArgs {
    /// Write who has allocated what to a file of its own, for `profiler diff`: on SIGUSR1 and, if a time is given, that
    /// often
    #[arg(long, value_name = "TIME", num_args = 0..=1, help_heading = MEMORY, value_parser = positive_duration)]
    pub snapshot: Option<Option<Duration>>,
    /// Write one when a process holds more than this (500MB, 2GiB); and on SIGUSR1
    #[arg(long, value_name = "SIZE", help_heading = MEMORY, value_parser = size)]
    pub snapshot_above: Option<u64>,
    /// Where to: snapshot-START-NUMBER.prec in this folder
    #[arg(long, value_name = "DIR", help_heading = MEMORY, default_value = ".")]
    pub snapshot_dir: PathBuf,
}

fn size(text: &str) -> Result<u64, String> {
    match parse_size::parse_size(text) {
        Ok(0) => Err("must be more than nothing".into()),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(format!("{error}; write it like 500MB or 2GiB")),
    }
}

fn percentage(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent),
        _ => Err("must be a number above 0 and at most 100".into()),
    }
}

/// Options of the outputs, live or replayed.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Write the result to FILE, format by extension; '-' for folded stacks on stdout; KIND:FILE for another profile than
    /// that of CPUs, see below (repeatable)
    #[arg(short, long = "output", value_name = "FILE")]
    pub outputs: Vec<OutputSpec>,
    /// Split the report by thread, waits for a CPU too
    #[arg(long)]
    pub threads: bool,
    /// Number of functions in the report [default: 7, and 20 with --details]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub top: Option<u16>,
    /// Add all tables: functions, waits, system calls, memory, what was lost and what it cost
    #[arg(long)]
    pub details: bool,
    /// Compare with a recording of what is normal: the first page says what differs significantly
    #[arg(long, value_name = "FILE.prec")]
    pub baseline: Option<PathBuf>,
    /// Judge by another value than the default; `profiler rules` lists all (repeatable)
    #[arg(long = "threshold", value_name = "RULE.PARAMETER=NUMBER", value_parser = threshold)]
    pub thresholds: Vec<String>,
}

impl ReportArgs {
    /// What applies to all renderings.
    pub fn options(&self) -> RenderOptions {
        RenderOptions { threads: self.threads, top: self.top.map(usize::from), details: self.details }
    }

    /// Values given for rules' parameters.
    pub fn overrides(&self) -> Overrides {
        let mut overrides = Overrides::default();
        for text in &self.thresholds {
            // Each was checked when it was parsed.
            let _checked = overrides.set(text, RULES);
        }
        overrides
    }
}

fn threshold(text: &str) -> Result<String, String> {
    Overrides::default().set(text, RULES).map(|()| text.to_owned())
}

/// Options of `profiler rules`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct RulesArgs {
    /// Everything about this rule
    pub rule: Option<String>,
    /// What to do instead.
    #[command(subcommand)]
    pub command: Option<RulesCommand>,
}

/// What else can be done with rules.
#[derive(Debug, Subcommand)]
pub enum RulesCommand {
    /// Say which alerts of the daemon recordings would have given; each recording is one window
    Test {
        /// Recordings (.prec), for example the windows that the daemon keeps
        #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
        replay: Vec<PathBuf>,
        /// The configuration with the rules; the built-in ones without
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

/// Options of `profiler diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The earlier recording or snapshot
    pub before: PathBuf,
    /// The later one
    pub after: PathBuf,
    /// Compare this kind only: cpu, offcpu, syscalls or alloc (repeatable)
    #[arg(long = "kind", value_name = "KIND", value_parser = compared_kind)]
    pub kinds: Vec<ProfileKind>,
    /// Exit with 9 if something differs significantly by so many percentage points: +5% has grown, -5% has shrunk, 5%
    /// either; waits that may mean idleness do not count
    #[arg(long, value_name = "LIMIT", allow_hyphen_values = true)]
    pub fail_if: Option<Limit>,
    /// Draw a differential flame graph: FILE.svg, or KIND:FILE.svg for another profile than that of CPUs (repeatable)
    #[arg(short, long = "output", value_name = "FILE")]
    pub outputs: Vec<OutputSpec>,
    /// Number of differences listed of each kind
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    pub top: u16,
    /// Print everything as JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `profiler replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The recording
    #[arg(value_name = "FILE")]
    pub recording: PathBuf,
    /// Only the processes of this target of the daemon, which has kept the recording
    #[arg(long, value_name = "NAME")]
    pub target: Option<String>,
    /// What to report, and where to.
    #[command(flatten)]
    pub report: ReportArgs,
}

fn compared_kind(name: &str) -> Result<ProfileKind, String> {
    let known = [CPU, OFF_CPU, SYSCALLS, ALLOC];
    let names = known.map(|kind| kind.name).join(", ");
    known.into_iter().find(|kind| kind.name == name).ok_or_else(|| format!("known are {names}"))
}

fn errno(name: &str) -> Result<u32, String> {
    let known = (1..200).find(|&number| crate::model::abi::errno_name(number) == Some(name));
    known.map(|number| number as u32).ok_or_else(|| format!("'{name}' is no error; write it like EAGAIN"))
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration.is_zero() => Err("must be longer than nothing".into()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; write it like 30s, 5m or 1h")),
    }
}

#[cfg(test)]
mod tests;
