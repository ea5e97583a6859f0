//! Whether leaks are found, and nothing else is called one: programs whose answer is known, in the languages that people
//! use, each under the profiler for a while.

use std::{
    collections::VecDeque,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    thread,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{build_workload, spawn_quiet, wait};
use crate::shell::{debian_packages, run as run_command, workspace};

#[derive(clap::Args)]
pub struct Args {
    /// Seconds of each run
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// How many times faster the programs go: with --seconds 60 --speed 5 they do in a minute what takes five
    #[arg(long, default_value_t = 1.0)]
    speed: f64,
    /// Programs at a time
    #[arg(long, default_value_t = 8)]
    jobs: usize,
    /// Only programs with this in their name (repeatable)
    #[arg(long)]
    only: Vec<String>,
    /// More arguments for the profiler
    #[arg(long, default_value = "--alloc full")]
    profiler_args: String,
    /// Keep the profiler's JSON files here
    #[arg(long)]
    keep: Option<PathBuf>,
}

/// Modes of leak.c; the first needs the machine for itself.
const C: [&str; 23] = [
    "threads",
    "slow",
    "fast",
    "callers",
    "grow",
    "maps",
    "errors",
    "workers",
    "gc-leak",
    "lru",
    "lru-late",
    "lru-random",
    "gc",
    "gc-slow",
    "warm-up",
    "arena",
    "ring",
    "batch",
    "many",
    "pool",
    "load",
    "sessions",
    "lru-even",
];
/// Of all others: language and mode.
const OTHERS: [(&str, &str); 10] = [
    ("c++", "new"),
    ("c++", "map"),
    ("rust-jemalloc", "leak"),
    ("rust-jemalloc", "bounded"),
    ("python", "objects"),
    ("python", "bytes"),
    ("python", "dict"),
    ("node", "buffer"),
    ("node", "listeners"),
    ("node", "cache"),
];
/// Programs that use most of the machine.
const HEAVY: [&str; 2] = ["c threads", "c many"];

/// A program with a known answer.
struct Workload {
    name: String,
    command: Vec<PathBuf>,
}

/// What it says of itself.
#[derive(Clone, Debug, PartialEq)]
enum Truth {
    /// In this function (`*`: anywhere), so many bytes/s (0: not known to the byte).
    Leaks(String, f64),
    Harmless,
    /// It looks like a leak from outside until the run is over.
    Undecidable,
}

/// What the profiler found in it: leaks and growing processes, fastest first.
#[derive(Clone, Debug)]
struct Found {
    kind: String,
    stack: Vec<String>,
    bytes_per_s: f64,
    low: f64,
    high: f64,
    certainty: String,
}

pub fn run(args: &Args, profiler: &Path) -> Result<()> {
    debian_packages(&["gcc", "g++", "python3", "nodejs"])?;
    let dir = tempfile::tempdir()?;
    let dir = args.keep.as_deref().unwrap_or(dir.path());
    fs::create_dir_all(dir)?;
    let mut workloads = workloads()?;
    workloads.retain(|workload| {
        args.only.is_empty() || args.only.iter().any(|only| workload.name.contains(only.as_str()))
    });
    let order: Vec<String> = workloads.iter().map(|workload| workload.name.clone()).collect();
    let (heavy, light): (Vec<_>, Vec<_>) =
        workloads.into_iter().partition(|workload| HEAVY.contains(&workload.name.as_str()));
    let mut results = at_once(heavy, 1, &|workload| measure(workload, args, profiler, dir))?;
    results.extend(at_once(light, args.jobs, &|workload| measure(workload, args, profiler, dir))?);
    results.sort_by_key(|(name, ..)| order.iter().position(|other| other == name));
    report(&results, args);
    Ok(())
}

type Measured = (String, Truth, Vec<Found>);

/// Builds everything.
fn workloads() -> Result<Vec<Workload>> {
    let sources = workspace().join("tests/workloads");
    let dir = workspace().join("target/bench");
    let c = build_workload("leak", &[])?;
    let cxx = dir.join("leak-c++");
    run_command(Command::new("g++").args(["-O2", "-g"]).arg(sources.join("leak.cc")).arg("-o").arg(&cxx))?;
    let jemalloc = dir.join("leak-jemalloc");
    run_command(
        Command::new("cargo")
            .args(["build", "--release", "--quiet", "--target-dir"])
            .arg(&jemalloc)
            .current_dir(sources.join("leak-jemalloc")),
    )?;
    let of_c = C.map(|mode| ("c", mode, vec![c.clone()]));
    let others = OTHERS.map(|(language, mode)| {
        let command = match language {
            "c++" => vec![cxx.clone()],
            "rust-jemalloc" => vec![jemalloc.join("release/leak-jemalloc")],
            "python" => vec!["/usr/bin/python3".into(), sources.join("leak.py")],
            _ => vec!["/usr/bin/node".into(), sources.join("leak.js")],
        };
        (language, mode, command)
    });
    let all = of_c.into_iter().chain(others).map(|(language, mode, mut command)| {
        command.push(mode.into());
        Workload { name: format!("{language} {mode}"), command }
    });
    Ok(all.collect())
}

/// Measures all, so many at a time.
fn at_once(
    workloads: Vec<Workload>,
    jobs: usize,
    measure: &(dyn Fn(&Workload) -> Result<Measured> + Sync),
) -> Result<Vec<Measured>> {
    let (left, done) = (Mutex::new(VecDeque::from(workloads)), Mutex::new(Vec::new()));
    let next = || left.lock().ok()?.pop_front();
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(workload) = next() {
                    let result = measure(&workload).with_context(|| workload.name.clone());
                    if let Ok(mut done) = done.lock() {
                        done.push(result);
                    }
                }
            });
        }
    });
    done.into_inner().map_err(|_| anyhow::anyhow!("a measurement panicked"))?.into_iter().collect()
}

fn measure(workload: &Workload, args: &Args, profiler: &Path, dir: &Path) -> Result<Measured> {
    let mut target = Command::new(&workload.command[0])
        .args(&workload.command[1..])
        .arg(args.speed.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting it")?;
    let measured = watch(&mut target, workload, args, profiler, dir);
    target.kill()?;
    target.wait()?;
    measured
}

fn watch(
    target: &mut Child,
    workload: &Workload,
    args: &Args,
    profiler: &Path,
    dir: &Path,
) -> Result<Measured> {
    let mut line = String::new();
    BufReader::new(target.stdout.take().context("a pipe")?).read_line(&mut line)?;
    let truth = truth(line.trim())?;
    let json = dir.join(format!("{}.json", workload.name.replace(' ', "-")));
    let mut command = Command::new(profiler);
    command.args(["--pid", &target.id().to_string(), "-q", "--waits", "off", "-d"]);
    command
        .arg(format!("{}s", args.seconds))
        .args(args.profiler_args.split_whitespace())
        .arg("-o")
        .arg(&json);
    wait(&spawn_quiet(&mut command)?)?;
    if let Some(status) = target.try_wait()? {
        bail!("it ended while it was watched: {status}");
    }
    let profile: Value = serde_json::from_slice(&fs::read(&json)?)?;
    let grows = |finding: &&Value| finding["rule"].as_str().is_some_and(|rule| rule.starts_with("memory-"));
    let found = profile["findings"]
        .as_array()
        .context("findings")?
        .iter()
        .filter(grows)
        .map(found)
        .collect::<Result<_>>()?;
    eprintln!("{} is done", workload.name);
    Ok((workload.name.clone(), truth, found))
}

fn truth(line: &str) -> Result<Truth> {
    Ok(match line.split(' ').collect::<Vec<_>>()[..] {
        ["harmless"] => Truth::Harmless,
        ["undecidable"] => Truth::Undecidable,
        ["leaks", function, rate] => Truth::Leaks(function.to_owned(), rate.parse()?),
        _ => bail!("the program says {line:?}"),
    })
}

fn found(value: &Value) -> Result<Found> {
    let number = |key: &str| value["details"][key].as_f64().with_context(|| key.to_owned());
    let stack = value["evidence"][0]["stack"].as_array().into_iter().flatten();
    Ok(Found {
        kind: if value["rule"] == "memory-leak" { "leak" } else { "process" }.to_owned(),
        stack: stack.filter_map(|name| name.as_str().map(str::to_owned)).collect(),
        bytes_per_s: number("bytes_per_s")?,
        low: number("bytes_per_s_low")?,
        high: number("bytes_per_s_high")?,
        certainty: value["details"]["certainty"].as_str().context("certainty")?.to_owned(),
    })
}

impl Found {
    fn is_in(&self, function: &str) -> bool {
        // Where an interpreter allocates for the program, there is no one place: that the process grows is all that can
        // be said.
        function == "*" || self.kind == "leak" && self.stack.iter().any(|name| name.contains(function))
    }
}

/// How the profiler did on all.
#[derive(Default)]
struct Score {
    leaks: usize,
    found: usize,
    first: usize,
    near: usize,
    rated: usize,
    held: usize,
    harmless: usize,
    alarmed: Vec<String>,
    missed: Vec<String>,
}

fn report(results: &[Measured], args: &Args) {
    println!(
        "{} programs, {} s each, {} times as fast, profiler {}\n",
        results.len(),
        args.seconds,
        args.speed,
        args.profiler_args
    );
    println!(
        "{:<22} {:>12} {:>12} {:>26} {:>8}  verdict",
        "program", "leaks, B/s", "found, B/s", "95 %", "error"
    );
    let mut score = Score::default();
    for (name, truth, found) in results {
        let (verdict, leak) = score.add(name, truth, found);
        let truth = match truth {
            Truth::Leaks(_, 0.0) => "some".to_owned(),
            Truth::Leaks(_, rate) => format!("{rate:.0}"),
            Truth::Harmless => "-".to_owned(),
            Truth::Undecidable => "?".to_owned(),
        };
        let (rate, interval, error) = match &leak {
            Some((leak, error)) => (
                format!("{:.0}", leak.bytes_per_s),
                format!("{:.0} to {:.0}", leak.low, leak.high),
                error.map_or_else(String::new, |error| format!("{:+.1} %", 100.0 * error)),
            ),
            None => Default::default(),
        };
        println!("{name:<22} {truth:>12} {rate:>12} {interval:>26} {error:>8}  {verdict}");
    }
    let alarms = score.alarmed.len();
    println!(
        "\nfound {} of {} leaks, first of all {}; rate within 10 % in {} of {}, in its interval in {}",
        score.found, score.leaks, score.first, score.near, score.rated, score.held
    );
    println!("programs with a false alarm: {alarms} of {}", results.len());
    println!(
        "precision {:.3}, recall {:.3}",
        score.found as f64 / (score.found + alarms).max(1) as f64,
        score.found as f64 / score.leaks.max(1) as f64
    );
    let goals = [
        (format!("no false alarm: {}", score.alarmed.join(", ")), alarms == 0),
        (format!("at most one leak missed: {}", score.missed.join(", ")), score.missed.len() <= 1),
        ("every leak that is found is named first".to_owned(), score.first == score.found),
        ("every rate that is known is found within 10 %".to_owned(), score.near == score.rated),
    ];
    println!();
    for (goal, met) in goals {
        println!("{}  {}", if met { "met   " } else { "MISSED" }, goal.trim_end_matches([':', ' ']));
    }
}

impl Score {
    /// Counts a program; says how the profiler did, and which finding tells of its leak, with the error of its rate.
    fn add<'a>(
        &mut self,
        name: &str,
        truth: &Truth,
        found: &'a [Found],
    ) -> (String, Option<(&'a Found, Option<f64>)>) {
        let list = |of: &[&Found]| -> String {
            let words = of.iter().map(|found| {
                format!(
                    "{} {:.0} B/s in {}",
                    found.certainty,
                    found.bytes_per_s,
                    found.stack.get(..3.min(found.stack.len())).unwrap_or_default().join(" < ")
                )
            });
            words.collect::<Vec<_>>().join("; ")
        };
        let (function, rate) = match truth {
            Truth::Leaks(function, rate) => (function.as_str(), *rate),
            Truth::Harmless => {
                self.harmless += 1;
                if found.is_empty() {
                    return ("quiet, as it should be".into(), None);
                }
                self.alarmed.push(name.to_owned());
                let all: Vec<&Found> = found.iter().collect();
                return (format!("FALSE ALARM: {}", list(&all)), None);
            }
            Truth::Undecidable => {
                let said = if found.is_empty() { "quiet" } else { "called a leak" };
                return (
                    format!("{said} (cannot be told from one, not counted)"),
                    found.first().map(|found| (found, None)),
                );
            }
        };
        self.leaks += 1;
        let others: Vec<&Found> =
            found.iter().filter(|found| found.kind == "leak" && !found.is_in(function)).collect();
        if !others.is_empty() {
            self.alarmed.push(name.to_owned());
        }
        let also =
            if others.is_empty() { String::new() } else { format!("; FALSE ALARM: {}", list(&others)) };
        let Some(leak) = found.iter().find(|found| found.is_in(function)) else {
            self.missed.push(name.to_owned());
            let grows = found.iter().any(|found| found.kind == "process");
            let seen = if grows { ", though the process is said to grow" } else { "" };
            return (format!("MISSED{seen}{also}"), None);
        };
        self.found += 1;
        let is_first =
            found.iter().find(|other| other.kind == leak.kind).is_some_and(|first| first.is_in(function));
        self.first += usize::from(is_first);
        let error = (rate > 0.0).then(|| leak.bytes_per_s / rate - 1.0);
        if let Some(error) = error {
            self.rated += 1;
            self.near += usize::from(error.abs() <= 0.1);
            self.held += usize::from((leak.low..=leak.high).contains(&rate));
        }
        let place = if is_first { "named first" } else { "named, not first" };
        (format!("{place}, {}{also}", leak.certainty), Some((leak, error)))
    }
}
