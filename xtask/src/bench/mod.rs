//! Benchmarks against real programs and other profilers. Absolute figures drift with the machine; runs are
//! interleaved and compared as ratios.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::shell::{run as run_command, workspace};

mod all;
mod alloc;
mod cpu;
mod daemon;
mod leak;
mod report;
mod requests;
mod runtimes;
mod sched;
mod servers;
mod soak;
mod start;
mod syscall;
mod unwind;
mod verdict;

use report::Report;

#[path = "../../../tests/common/programs.rs"]
mod programs;

/// Options of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Args {
    /// The profiler to try, instead of one that is built for release
    #[arg(long, value_name = "FILE", global = true)]
    profiler: Option<PathBuf>,
    #[command(subcommand)]
    bench: Bench,
}

/// What to measure.
#[derive(clap::Subcommand)]
pub enum Bench {
    /// All figures of cost in one table, and what has changed since the last one
    All(all::Args),
    /// The allocation probe against memleak and heaptrack, and servers that are watched in full under load
    Alloc(alloc::Args),
    /// The on-CPU sampler against `perf record -F 99 -g`
    Cpu(cpu::Args),
    /// The daemon on real servers: what it says of faults and of none, and what it costs
    Daemon(daemon::Args),
    /// Leaks and what looks like one, in programs whose answer is known
    Leak(leak::Args),
    /// What watching requests costs nginx and Node, and memory with many connections
    Requests(requests::Args),
    /// Functions of language runtimes: their names and callers, their shares, and what copying them costs
    Runtimes(runtimes::Args),
    /// What redis, nginx, PostgreSQL and Node keep of their throughput, and the tail of their times
    Servers(servers::Args),
    /// What the profiler holds and loses in hours on a machine that compiles, serves and forks
    Soak(soak::Args),
    /// What the profiler takes for itself: to begin, at rest, for each sample, for its report
    Start(start::Args),
    /// The scheduler probe against offcputime, bpftrace, and what programs know of themselves
    Sched(sched::Args),
    /// Complete stacks: how many, what they cost, and what `perf record --call-graph dwarf` makes of the same program
    Unwind(unwind::Args),
    /// What a system call takes longer under the system-call probe, for the target and for others, against strace -c,
    /// perf trace -s and syscount -L
    Syscall(syscall::Args),
    /// Whether the right answer is given for programs whose trouble is known, and none for healthy ones
    Verdict(verdict::Args),
}

pub fn run(args: &Args) -> Result<()> {
    if let Bench::Verdict(args) = &args.bench
        && args.list
    {
        return verdict::list(args);
    }
    let profiler = match &args.profiler {
        Some(path) => path.canonicalize().with_context(|| path.display().to_string())?,
        None => build_profiler()?,
    };
    let mut report = Report::default();
    let (profiler, report) = (&*profiler, &mut report);
    match &args.bench {
        Bench::All(args) => all::run(args, profiler, report),
        Bench::Alloc(args) => alloc::run(args, profiler, report),
        Bench::Cpu(args) => cpu::run(args, profiler, report),
        Bench::Daemon(args) => daemon::run(args, profiler),
        Bench::Leak(args) => leak::run(args, profiler),
        Bench::Requests(args) => requests::run(args, profiler, report),
        Bench::Runtimes(args) => runtimes::run(args, profiler),
        Bench::Sched(args) => sched::run(args, profiler, report),
        Bench::Servers(args) => servers::run(args, profiler, report),
        Bench::Soak(args) => soak::run(args, profiler, report),
        Bench::Start(args) => start::run(args, profiler, report),
        Bench::Unwind(args) => unwind::run(args, profiler, report),
        Bench::Syscall(args) => syscall::run(args, profiler, report),
        Bench::Verdict(args) => verdict::run(args, profiler),
    }
}

/// The release build of the profiler.
fn build_profiler() -> Result<PathBuf> {
    let workspace = workspace();
    run_command(
        Command::new("cargo").args(["build", "--release", "--package", "profiler"]).current_dir(&workspace),
    )?;
    Ok(workspace.join("target/release/profiler"))
}

/// Compiles a workload of the tests.
fn build_workload(name: &str, flags: &[&str]) -> Result<PathBuf> {
    let workspace = workspace();
    let dir = workspace.join("target/bench");
    fs::create_dir_all(&dir)?;
    let program = dir.join(name);
    let source = workspace.join("tests/workloads").join(format!("{name}.c"));
    run_command(
        Command::new("cc").args(["-O2", "-g", "-pthread"]).args(flags).arg(source).arg("-o").arg(&program),
    )?;
    Ok(program)
}

/// What a finished process used.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    cpu_s: f64,
    peak_rss_mb: f64,
}

/// Waits for a child and says what it used. Any exit by `SIGINT` or with code 0 will do.
fn wait(child: &Child) -> Result<Used> {
    // SAFETY: both results are plain old data that wait4 fills; the child has not been waited for yet.
    let (status, usage) = unsafe {
        let mut status = 0;
        let mut usage: libc::rusage = std::mem::zeroed();
        if libc::wait4(child.id() as i32, &raw mut status, 0, &raw mut usage) < 0 {
            return Err(std::io::Error::last_os_error()).context("wait4");
        }
        (std::process::ExitStatus::from_raw(status), usage)
    };
    if !status.success() && status.signal() != Some(libc::SIGINT) {
        bail!("a measured process failed: {status}");
    }
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    Ok(Used {
        cpu_s: seconds(usage.ru_utime) + seconds(usage.ru_stime),
        peak_rss_mb: usage.ru_maxrss as f64 * 1024.0 / 1e6,
    })
}

fn interrupt(child: &Child) {
    // SAFETY: plain system call on a child that has not been waited for, so its pid is its own.
    unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
}

fn spawn_quiet(command: &mut Command) -> Result<Child> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    child.with_context(|| format!("starting {command:?}"))
}

/// Now, CLOCK_MONOTONIC, ns: the kernel's time stamps.
fn monotonic_ns() -> u64 {
    // SAFETY: fills a timespec.
    let now = unsafe {
        let mut now: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now);
        now
    };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn wait_for_file(path: &Path) -> Result<()> {
    let start = Instant::now();
    while !path.exists() {
        if start.elapsed() > Duration::from_secs(30) {
            bail!("{} does not appear", path.display());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Middle value of a sorted copy.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// A measured figure with its spread.
fn spread(values: &[f64], digits: usize) -> String {
    let min = values.iter().copied().fold(f64::INFINITY, f64::min);
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{:.digits$} ({min:.digits$} to {max:.digits$})", median(values))
}
