//! Hours of everything: what the profiler holds while a machine compiles, serves and forks, and what it loses.
//!
//! Every process is watched with every probe that can do so. Memory of the profiler and of its kernel maps is read every
//! few seconds. After the first part, which fills tables and caches, neither must grow: the slope over the means of the parts that
//! follow must be within its error.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{
    interrupt,
    programs::{Running, free_port},
    report::{Better, Report},
    wait,
};
use crate::shell::{debian_packages, workspace};

#[derive(clap::Args)]
pub struct Args {
    /// How long, minutes
    #[arg(long, default_value_t = 120)]
    minutes: u64,
    /// Seconds between two looks at what is held
    #[arg(long, default_value_t = 10)]
    every: u64,
}

/// Parts that the time is divided into; in the first ones tables fill.
const PARTS: usize = 12;
const FILLING: usize = 4;
/// Standard errors that a slope of nothing stays within, 99 times of 100, for seven means.
const T99: f64 = 3.5;

/// What is held at one time.
#[derive(Clone, Copy)]
struct Held {
    seconds: f64,
    /// Memory of its own, bytes.
    own: f64,
    /// Of kernel maps and ring buffers, bytes.
    kernel: f64,
    descriptors: f64,
}

/// A figure that must not grow: its name, its unit, how many bytes or pieces that is, and where it stands.
type Watched = (&'static str, &'static str, f64, fn(&Held) -> f64);

/// Load: what forks, what compiles, what serves.
struct Load {
    _programs: Vec<Running>,
}

impl Load {
    fn start(dir: &Path) -> Result<Load> {
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            Running::start(command.args(["-c", script]).current_dir(dir).stdout(Stdio::null()))
        };
        let port = free_port();
        let workloads = workspace().join("tests/workloads");
        let serve = format!(
            "exec node -e \"require('http').createServer((q, a) => a.end(q.url)).listen({port}, '127.0.0.1')\""
        );
        let ask = format!(
            "exec node -e \"const http = require('http'), agent = new http.Agent({{ keepAlive: true }}); setInterval(() => \
             http.get({{ port: {port}, path: '/' + Math.random(), agent }}, a => a.resume()).on('error', () => {{}}), 10)\""
        );
        let compile = format!(
            "while :; do for f in {}/*.c; do cc -O2 -c -o x.o $f; sleep 2; done; done 2> /dev/null",
            workloads.display()
        );
        let redis = free_port();
        let benchmark = format!(
            "sleep 3; while :; do redis-benchmark -p {redis} -c 8 -n 2000 -t get,set -q; sleep 2; done"
        );
        let programs = vec![
            shell("while :; do /bin/true; sleep 0.05; done"),
            shell(&compile),
            shell(&serve),
            shell(&ask),
            shell(&format!("exec redis-server --port {redis} --save '' --daemonize no")),
            shell(&benchmark),
        ];
        Ok(Load { _programs: programs })
    }
}

pub fn run(args: &Args, profiler: &Path, report: &mut Report) -> Result<()> {
    debian_packages(&["nodejs", "redis-server", "redis-tools", "gcc"])?;
    let dir = tempfile::tempdir()?;
    let load = Load::start(dir.path())?;
    let json = dir.path().join("x.json");
    let seconds = 60 * args.minutes;
    let mut child = Command::new(profiler)
        .args(["-q", "--all", "--waits", "on", "--syscalls", "--requests", "on", "-o"])
        .arg(&json)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let start = Instant::now();
    let mut series = Vec::new();
    while start.elapsed().as_secs() < seconds && child.try_wait()?.is_none() {
        thread::sleep(Duration::from_secs(args.every));
        if let Ok(held) = look(&child, start) {
            series.push(held);
        }
    }
    drop(load);
    let figures: [Watched; 3] = [
        ("memory", "MB", 1e6, |held| held.own),
        ("kernel maps and ring buffers", "MB", 1e6, |held| held.kernel),
        ("descriptors", "", 1.0, |held| held.descriptors),
    ];
    for (name, unit, scale, of) in figures {
        let means = parts(&series, |held| of(held) / scale);
        report.row(&format!("soak/{name}/profiler"), unit, Better::Lower, &means, 1);
        let (slope, error) = slope_per_hour(&series, |held| of(held) / scale)?;
        report.goal(
            format!("{name} is flat: {slope:+.2} ± {:.2} {unit} an hour", T99 * error),
            slope <= T99 * error,
        );
    }
    interrupt(&child);
    let used = wait(&child)?;
    let profile: Value = serde_json::from_slice(&fs::read(&json).context("no output")?)?;
    let watched_s = profile["duration_ns"].as_f64().context("a duration")? / 1e9;
    println!(
        "{:.0} min with every process of the machine watched; the profiler used {:.1} % of one CPU",
        watched_s / 60.0,
        100.0 * used.cpu_s / watched_s
    );
    let taken = profile["samples_taken"].as_u64().unwrap_or(0);
    println!("{taken} samples taken; lost or not seen, by reason:");
    for loss in profile["losses"].as_array().into_iter().flatten() {
        let count = loss["count"].as_u64().unwrap_or(0);
        if count > 0 {
            println!("  {:>12}  {}", count, loss["reason"].as_str().unwrap_or_default());
        }
    }
    if report.goals.values().any(|met| !met) {
        bail!("something grows");
    }
    Ok(())
}

/// What the profiler holds now.
fn look(child: &Child, start: Instant) -> Result<Held> {
    let proc = format!("/proc/{}", child.id());
    let status = fs::read_to_string(format!("{proc}/status"))?;
    let own_kb: f64 = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix("kB")?.trim().parse().ok())
        .context("RssAnon")?;
    let (mut kernel, mut descriptors) = (0.0, 0.0);
    for entry in fs::read_dir(format!("{proc}/fdinfo"))?.flatten() {
        descriptors += 1.0;
        let info = fs::read_to_string(entry.path()).unwrap_or_default();
        // Programs have one too: they do not change.
        let of = info.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse::<f64>().ok());
        kernel += of.unwrap_or(0.0);
    }
    Ok(Held { seconds: start.elapsed().as_secs_f64(), own: 1024.0 * own_kb, kernel, descriptors })
}

/// Means over equal parts of the time, without those in which tables fill.
fn parts(series: &[Held], of: impl Fn(&Held) -> f64) -> Vec<f64> {
    let whole = series.last().map_or(0.0, |last| last.seconds).max(1.0);
    let part = |held: &&Held| ((held.seconds / whole * PARTS as f64) as usize).min(PARTS - 1);
    let mean = |at: usize| {
        let values: Vec<f64> = series.iter().filter(|held| part(held) == at).map(&of).collect();
        values.iter().sum::<f64>() / values.len() as f64
    };
    (FILLING..PARTS).map(mean).filter(|mean| mean.is_finite()).collect()
}

/// The slope of those means by least squares, an hour, and its standard error.
fn slope_per_hour(series: &[Held], of: impl Fn(&Held) -> f64) -> Result<(f64, f64)> {
    let means = parts(series, of);
    let n = means.len() as f64;
    if means.len() < 3 {
        bail!("too short to tell a slope");
    }
    let hours = series.last().map_or(0.0, |last| last.seconds) / 3600.0 / PARTS as f64;
    let (middle, mean) = ((n - 1.0) / 2.0, means.iter().sum::<f64>() / n);
    let squares: f64 = (0..means.len()).map(|i| (i as f64 - middle).powi(2)).sum();
    let slope: f64 =
        means.iter().enumerate().map(|(i, y)| (i as f64 - middle) * (y - mean)).sum::<f64>() / squares;
    let rest: f64 =
        means.iter().enumerate().map(|(i, y)| (y - mean - slope * (i as f64 - middle)).powi(2)).sum();
    let error = (rest / (n - 2.0) / squares).sqrt();
    Ok((slope / hours, error / hours))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slope(own: impl Fn(f64) -> f64) -> (f64, f64) {
        let held = |i: u32| {
            let seconds = f64::from(i) * 10.0;
            Held { seconds, own: own(seconds), kernel: 0.0, descriptors: 0.0 }
        };
        slope_per_hour(&(1..=360).map(held).collect::<Vec<_>>(), |held| held.own).unwrap()
    }

    #[test]
    fn what_fills_at_first_is_flat_and_what_grows_is_not() {
        let noise = |seconds: f64| (seconds * 7.7).sin();
        let (flat, error) = slope(|s| 50.0 + s.min(900.0) / 10.0 + noise(s));
        assert!(flat.abs() <= T99 * error.max(1e-9), "{flat} ± {error}");
        let (grows, error) = slope(|s| 50.0 + s / 360.0 + noise(s));
        assert!((grows - 10.0).abs() < 1.0 && grows > T99 * error, "{grows} ± {error}");
    }
}
