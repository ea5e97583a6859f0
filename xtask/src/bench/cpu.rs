//! What sampling costs: the target's throughput alone, under the profiler and under perf, in interleaved runs; and
//! what the samplers themselves use.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    Used, build_workload, interrupt, median, monotonic_ns,
    report::{Better, Report},
    spawn_quiet, spread, wait, wait_for_file,
};
use crate::shell::debian_packages;

#[derive(clap::Args)]
pub struct Args {
    /// Rounds; in each the workload runs alone, under the profiler and under perf
    #[arg(long, default_value_t = 12)]
    rounds: usize,
    /// Seconds of each run
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Seconds over which the profiler's own CPU time is measured
    #[arg(long, default_value_t = 30)]
    steady_seconds: u64,
}

impl Args {
    /// As short as it tells anything.
    pub fn quick() -> Args {
        Args { rounds: 2, seconds: 3, steady_seconds: 8 }
    }
}

#[derive(Default)]
struct Sampler {
    lost_percent: Vec<f64>,
    cpu_percent: Vec<f64>,
    rss_mb: Vec<f64>,
    first_sample_ms: Vec<f64>,
    report_ms: Vec<f64>,
}

pub fn run(args: &Args, profiler: &Path, report: &mut Report) -> Result<()> {
    debian_packages(&["linux-perf", "gcc"])?;
    let workload = build_workload("throughput", &["-fno-omit-frame-pointer"])?;
    let dir = tempfile::tempdir()?;
    let (mut ours, mut perf) = (Sampler::default(), Sampler::default());
    for round in 1..=args.rounds {
        eprintln!("round {round} of {}", args.rounds);
        let alone = measure(&workload, args.seconds, |_pid| Ok(None))?.0;

        let prec = dir.path().join("x.json");
        let started_ns = monotonic_ns();
        let (score, stopped) = measure(&workload, args.seconds, |pid| {
            let mut command = Command::new(profiler);
            command.args(["--pid", &pid.to_string(), "-o"]).arg(&prec);
            Ok(Some(spawn_quiet(&mut command)?))
        })?;
        let (used, ended) = stopped.context("the profiler ran")?;
        ours.add(alone, score, used, args.seconds, ended);
        let json: serde_json::Value = serde_json::from_slice(&fs::read(&prec)?)?;
        let first = json["first_sample_monotonic_ns"].as_u64().context("the profiler took no sample")?;
        ours.first_sample_ms.push((first - started_ns) as f64 / 1e6);
        fs::remove_file(&prec)?;

        let data = dir.path().join("perf.data");
        let (score, stopped) = measure(&workload, args.seconds, |pid| {
            let mut command = Command::new("perf");
            command.args(["record", "-F", "99", "-g", "-p", &pid.to_string(), "-o"]).arg(&data);
            let child = spawn_quiet(&mut command)?;
            wait_for_file(&data)?;
            Ok(Some(child))
        })?;
        let (used, stop) = stopped.context("perf ran")?;
        let start = Instant::now();
        let told = spawn_quiet(Command::new("perf").args(["report", "--stdio", "-i"]).arg(&data))?;
        let naming = wait(&told)?;
        let used =
            Used { cpu_s: used.cpu_s + naming.cpu_s, peak_rss_mb: used.peak_rss_mb.max(naming.peak_rss_mb) };
        perf.add(alone, score, used, args.seconds, stop + start.elapsed());
        fs::remove_file(&data)?;
    }

    println!("{} rounds of {} s, 99 Hz, median (min to max)", args.rounds, args.seconds);
    println!("{:<44} {:<28} perf record -g + report", "", "profiler");
    let mut row = |name: &str, unit: &str, pick: fn(&Sampler) -> &Vec<f64>, digits| {
        let title = format!("{name}, {unit}");
        println!("{title:<44} {:<28} {}", spread(pick(&ours), digits), spread(pick(&perf), digits));
        report.figure(format!("cpu/{name}/profiler"), unit, Better::Lower, pick(&ours));
        report.figure(format!("cpu/{name}/perf record -g"), unit, Better::Peer, pick(&perf));
    };
    row("throughput lost by the target", "%", |sampler| &sampler.lost_percent, 2);
    row("CPU time with start and report", "% of one CPU", |sampler| &sampler.cpu_percent, 2);
    row("peak resident memory", "MB", |sampler| &sampler.rss_mb, 1);
    row("from stop to finished report", "ms", |sampler| &sampler.report_ms, 0);
    println!("{:<44} {:<28}", "from start to first sample, ms", spread(&ours.first_sample_ms, 0));
    let steady = steady_cpu_percent(profiler, &workload, dir.path(), args.steady_seconds)?;
    println!("{:<44} {steady:<28.2}", "CPU time while profiling, % of one");
    report.figure("cpu/from start to first sample/profiler", "ms", Better::Lower, &ours.first_sample_ms);
    report.figure("cpu/CPU time while profiling/profiler", "% of one CPU", Better::Lower, &[steady]);

    for (goal, met) in [
        (
            "the target loses no more than under perf (0.5 points of noise)",
            median(&ours.lost_percent) <= median(&perf.lost_percent).max(0.0) + 0.5,
        ),
        ("CPU time below 0.5 % of a core", steady < 0.5),
        ("resident memory below 40 MB", median(&ours.rss_mb) < 40.0),
        ("first sample within 300 ms", median(&ours.first_sample_ms) < 300.0),
        ("finished report within 1 s of Ctrl-C", median(&ours.report_ms) < 1000.0),
    ] {
        report.goal(goal, met);
    }
    Ok(())
}

impl Sampler {
    fn add(&mut self, alone: f64, score: f64, used: Used, seconds: u64, report: Duration) {
        self.lost_percent.push(100.0 * (1.0 - score / alone));
        self.cpu_percent.push(100.0 * used.cpu_s / seconds as f64);
        self.rss_mb.push(used.peak_rss_mb);
        self.report_ms.push(report.as_secs_f64() * 1e3);
    }
}

/// Runs the workload with a sampler on it; returns its throughput and what the sampler used and took to end.
fn measure(
    workload: &Path,
    seconds: u64,
    sample: impl FnOnce(u32) -> Result<Option<Child>>,
) -> Result<(f64, Option<(Used, Duration)>)> {
    // The workload measures its own throughput over the middle of the run, when the sampler is surely there.
    let mut target = Command::new(workload)
        .arg(seconds.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the workload")?;
    let mut out = BufReader::new(target.stdout.take().context("a pipe")?);
    let mut line = String::new();
    let sampler = sample(target.id())?;
    out.read_line(&mut line)?;
    let score: f64 = line.trim().parse().context("the workload's throughput")?;
    // The workload goes on until its input ends, so that the sampler has something to be stopped on.
    let stopped = match sampler {
        None => None,
        Some(child) => {
            let start = Instant::now();
            interrupt(&child);
            let used = wait(&child)?;
            Some((used, start.elapsed()))
        }
    };
    target.kill()?;
    out.read_to_string(&mut line)?;
    target.wait()?;
    Ok((score, stopped))
}

/// The profiler's own statement of its CPU time while it profiled for so many seconds.
fn steady_cpu_percent(profiler: &Path, workload: &Path, dir: &Path, seconds: u64) -> Result<f64> {
    let json = dir.join("steady.json");
    let mut target = spawn_quiet(Command::new(workload).arg("60"))?;
    let mut command = Command::new(profiler);
    command.args(["--pid", &target.id().to_string(), "-d", &format!("{seconds}s"), "-o"]).arg(&json);
    let run = spawn_quiet(&mut command)?;
    wait(&run)?;
    target.kill()?;
    target.wait()?;
    let profile: serde_json::Value = serde_json::from_slice(&fs::read(json)?)?;
    let number = |value: &serde_json::Value| value.as_f64().context("a number");
    Ok(100.0 * number(&profile["cost"]["agent_cpu_ns"])? / number(&profile["duration_ns"])?)
}
