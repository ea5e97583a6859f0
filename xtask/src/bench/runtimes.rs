//! Functions of language runtimes: how many have their right names and callers, whether their shares of CPU time are right,
//! and what copying them costs for each sample in the kernel.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{build_profiler, spawn_quiet, wait};
use crate::shell::workspace;

#[derive(clap::Args)]
pub struct Args {
    /// Seconds of each run
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

/// The functions of tests/workloads/shares.py and their shares of its work, %.
const SHARES: [(&str, f64); 3] = [("work_fifty", 50.0), ("work_thirty", 30.0), ("work_twenty", 20.0)];

/// What a run has shown.
struct Shown {
    samples: u64,
    right: u64,
    error_points: f64,
    unnamed: u64,
    ns_per_sample: f64,
}

pub fn run(args: &Args) -> Result<()> {
    let profiler = build_profiler()?;
    let interpreters = interpreters();
    if interpreters.is_empty() {
        println!("no CPython 3.8 to 3.14 is installed");
    }
    println!("CPython, {} s each at 997 Hz, work of known shares", args.seconds);
    println!(
        "samples  right callers, %  error of shares, points  unnamed  ns/sample  without names  interpreter"
    );
    for interpreter in interpreters {
        let named = measure(&profiler, &interpreter, args.seconds, "auto")?;
        let without = measure(&profiler, &interpreter, args.seconds, "off")?;
        println!(
            "{:>7}  {:>16.2}  {:>23.2}  {:>7}  {:>9.0}  {:>13.0}  {}",
            named.samples,
            100.0 * named.right as f64 / named.samples.max(1) as f64,
            named.error_points,
            named.unnamed,
            named.ns_per_sample,
            without.ns_per_sample,
            interpreter.display()
        );
    }
    Ok(())
}

/// `python3.N` of every known version: the system's, and those of pyenv.
fn interpreters() -> Vec<PathBuf> {
    let mut folders = vec![PathBuf::from("/usr/bin"), PathBuf::from("/usr/local/bin")];
    if let Some(home) = std::env::var_os("HOME") {
        let versions = fs::read_dir(Path::new(&home).join(".pyenv/versions"));
        folders.extend(versions.into_iter().flatten().flatten().map(|entry| entry.path().join("bin")));
    }
    let named =
        folders.iter().flat_map(|dir| (8..=14).map(move |minor| dir.join(format!("python3.{minor}"))));
    let mut found: Vec<PathBuf> = named.filter_map(|path| path.canonicalize().ok()).collect();
    found.sort();
    found.dedup();
    found
}

fn start(interpreter: &Path) -> Result<Child> {
    let program = workspace().join("tests/workloads/shares.py");
    let mut target = Command::new(interpreter)
        .arg(program)
        .arg("alone")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", interpreter.display()))?;
    let out = target.stdout.as_mut().context("a pipe")?;
    BufReader::new(out).read_line(&mut String::new())?;
    Ok(target)
}

fn measure(profiler: &Path, interpreter: &Path, seconds: u64, runtimes: &str) -> Result<Shown> {
    let dir = tempfile::tempdir()?;
    let json = dir.path().join("x.json");
    let mut target = start(interpreter)?;
    let mut command = Command::new(profiler);
    command.args(["-F", "997", "--runtimes", runtimes, "--pid", &target.id().to_string()]);
    let run = spawn_quiet(command.args(["-d", &format!("{seconds}s"), "-o"]).arg(&json))?;
    let ended = wait(&run);
    target.kill()?;
    target.wait()?;
    ended?;
    shown(&serde_json::from_slice(&fs::read(json)?)?)
}

fn shown(profile: &Value) -> Result<Shown> {
    let list = |key: &str| profile[key].as_array().with_context(|| format!("no {key} in the profile"));
    let (frames, modules) = (list("frames")?, list("modules")?);
    let (mut samples, mut right) = (0, 0);
    let mut own = SHARES.map(|_| 0);
    for stack in list("stacks")? {
        let weight = stack["samples"].as_u64().context("samples")?;
        let mut python = Vec::new();
        for index in stack["frames"].as_array().context("frames")? {
            let frame = &frames[index.as_u64().context("a frame")? as usize];
            let module = &modules[frame["module"].as_u64().context("a module")? as usize];
            if module["path"] == "[Python]" {
                python.extend(frame["functions"][0]["name"].as_str());
            }
        }
        // Work is what `spin` does; on its way to it or back from it the program is elsewhere, for a hundredth of its time.
        if python.first() != Some(&"spin") {
            continue;
        }
        samples += weight;
        let Some(index) = SHARES.iter().position(|(function, _)| python.get(1) == Some(function)) else {
            continue;
        };
        own[index] += weight;
        right += if python.get(2..4) == Some(&["handle", "serve"][..]) { weight } else { 0 };
    }
    let error = |index: usize| (100.0 * own[index] as f64 / samples.max(1) as f64 - SHARES[index].1).abs();
    let unnamed = list("losses")?.iter().find(|loss| loss["reason"] == "frames_unnamed");
    let costs = profile["cost"]["probes"].as_array().context("costs")?;
    let cpu = costs.iter().find(|cost| cost["name"] == "cpu").context("the CPU probe's cost")?;
    let cost = |key: &str| cpu[key].as_f64().context("a cost");
    Ok(Shown {
        samples,
        right,
        error_points: (0..SHARES.len()).map(error).fold(0.0, f64::max),
        unnamed: unnamed.and_then(|loss| loss["count"].as_u64()).unwrap_or(0),
        ns_per_sample: cost("ns")? / cost("runs")?,
    })
}
