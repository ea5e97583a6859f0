//! What the profiler takes for itself: until it looks, at rest, for each sample, and for its report.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    Used, build_workload, interrupt, median,
    report::{Better, Report},
    spawn_quiet, wait,
};
use crate::shell::workspace;

#[derive(clap::Args)]
pub struct Args {
    /// Rounds
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each run
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Numbers of idle processes watched at once
    #[arg(long, value_delimiter = ',', default_value = "1,50,200")]
    idle: Vec<usize>,
}

impl Args {
    /// As short as it tells anything.
    pub fn quick() -> Args {
        Args { rounds: 1, seconds: 2, idle: vec![1, 50] }
    }
}

/// The live view's interval, ms: its first line comes so long after the last probe has begun to look.
const INTERVAL_MS: f64 = 100.0;

pub fn run(args: &Args, profiler: &Path, report: &mut Report) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let json = dir.path().join("x.json");
    println!("the profiler itself: median (range) of {} rounds of {} s", args.rounds, args.seconds);
    for &count in &args.idle {
        idle(count, args, profiler, report)?;
    }

    let split = build_workload("split", &["-fomit-frame-pointer"])?;
    let mut us = Vec::new();
    for _ in 0..args.rounds {
        let mut target = spawn_quiet(Command::new(&split).args(["600", "2"]))?;
        let run = Run::start(profiler, &["-F", "999", "--pid", &target.id().to_string()], &json)?;
        let before = cpu_s(&run.child)?;
        std::thread::sleep(Duration::from_secs(args.seconds));
        let used_s = cpu_s(&run.child)? - before;
        run.end()?;
        target.kill()?;
        target.wait()?;
        let profile: Value = serde_json::from_slice(&fs::read(&json)?)?;
        let samples = profile["samples_taken"].as_f64().context("samples")?;
        let all_s = profile["duration_ns"].as_f64().context("a duration")? / 1e9;
        us.push(1e6 * used_s / (samples * args.seconds as f64 / all_s));
    }
    report.row("start/CPU time a sample, 2 threads at 999 Hz/profiler", "us", Better::Lower, &us, 1);

    for (name, command) in [("Node", node()), ("rustc", rustc())] {
        let (mut ends, mut peaks) = (Vec::new(), Vec::new());
        for _ in 0..args.rounds {
            let mut target = spawn_quiet(&mut command_of(&command, dir.path()))?;
            std::thread::sleep(Duration::from_secs(1));
            let run = Run::start(profiler, &["--follow", "--pid", &target.id().to_string()], &json)?;
            std::thread::sleep(Duration::from_secs(args.seconds));
            let (used, ms) = run.end()?;
            target.kill()?;
            target.wait()?;
            ends.push(ms);
            peaks.push(used.peak_rss_mb);
        }
        report.row(&format!("start/stop to finished report, {name}/profiler"), "ms", Better::Lower, &ends, 0);
        report.row(&format!("start/peak memory, {name}/profiler"), "MB", Better::Lower, &peaks, 1);
        report.goal(format!("the report of {name} is there within 500 ms"), median(&ends) <= 500.0);
        if name == "Node" {
            report.goal("40 MB are enough for Node with the names of its runtime", median(&peaks) < 40.0);
        }
    }
    Ok(())
}

/// Some processes that do nothing.
fn idle(count: usize, args: &Args, profiler: &Path, report: &mut Report) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let json = dir.path().join("x.json");
    let (mut starts, mut percents, mut peaks) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        let mut targets: Vec<Child> =
            (0..count).map(|_| spawn_quiet(Command::new("sleep").arg("600"))).collect::<Result<_>>()?;
        let pids: Vec<String> =
            targets.iter().flat_map(|of| ["--pid".to_owned(), of.id().to_string()]).collect();
        let pids: Vec<&str> = pids.iter().map(String::as_str).collect();
        let run = Run::start(profiler, &pids, &json)?;
        starts.push(run.start_ms);
        let before = cpu_s(&run.child)?;
        std::thread::sleep(Duration::from_secs(args.seconds));
        percents.push(100.0 * (cpu_s(&run.child)? - before) / args.seconds as f64);
        peaks.push(run.end()?.0.peak_rss_mb);
        for target in &mut targets {
            target.kill()?;
            target.wait()?;
        }
    }
    let of = |what: &str| format!("start/{what}, {count} idle/profiler");
    report.row(&of("until all probes look"), "ms", Better::Lower, &starts, 0);
    report.row(&of("CPU time at rest"), "% of one CPU", Better::Lower, &percents, 2);
    report.row(&of("peak memory"), "MB", Better::Lower, &peaks, 1);
    if count == 1 {
        report.goal("all probes look within 150 ms", median(&starts) <= 150.0);
    }
    Ok(())
}

/// Makes objects and sorts them, as long as it lives.
fn node() -> Vec<String> {
    const SCRIPT: &str = "
function compare(a, b) { return a.key < b.key ? -1 : 1; }
function batch() { return Array.from({ length: 1000 }, (_, i) => ({ key: String((i * 7919) % 1000) })).sort(compare); }
(function turn() { for (let i = 0; i < 20; i++) JSON.stringify(batch()); setImmediate(turn); })();";
    ["/usr/bin/node", "-e", SCRIPT].map(str::to_owned).into()
}

/// A compiler of 150 MB with its symbols, again and again.
fn rustc() -> Vec<String> {
    let source = workspace().join("tests/workloads/compiled.rs");
    let script = format!("while :; do rustc -O --emit obj -o out.o {}; done", source.display());
    ["sh", "-c", &script].map(str::to_owned).into()
}

fn command_of(words: &[String], dir: &Path) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).current_dir(dir);
    command
}

/// CPU time of a process so far, s.
fn cpu_s(child: &Child) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{}/schedstat", child.id()))?;
    let ns = stat.split(' ').next().context("an empty schedstat")?;
    // Of its main thread; the others hardly run.
    Ok(ns.parse::<f64>()? / 1e9)
}

/// A run that looks.
struct Run {
    child: Child,
    start_ms: f64,
}

impl Run {
    fn start(profiler: &Path, arguments: &[&str], json: &Path) -> Result<Run> {
        let start = Instant::now();
        let mut child = Command::new(profiler)
            .args(["-i100ms", "-o"])
            .arg(json)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut live = BufReader::new(child.stderr.take().context("a pipe")?);
        ensure!(live.read_line(&mut String::new())? > 0, "the profiler has ended");
        let start_ms = start.elapsed().as_secs_f64() * 1e3 - INTERVAL_MS;
        std::thread::spawn(move || std::io::copy(&mut live, &mut std::io::sink()));
        Ok(Run { child, start_ms })
    }

    /// Ends it; what it used, and ms until it was done.
    fn end(self) -> Result<(Used, f64)> {
        let start = Instant::now();
        interrupt(&self.child);
        let used = wait(&self.child)?;
        Ok((used, start.elapsed().as_secs_f64() * 1e3))
    }
}
