//! Whether the profiler gives the right answer: programs whose trouble is known, and programs without any, each run
//! under the profiler with its default options. Every program is tried once.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::{Value, json};

mod build;
mod corpus;
mod judge;
mod machine;
mod processes;

use build::Folders;
use corpus::{Entry, Verdict};
use judge::{Judgement, Said};
use processes::Reaper;

use crate::shell::workspace;

/// Programs that are profiled for longer than this are left out with `--quick`, s.
const QUICK: u64 = 10;

/// Under load before it is profiled, as a process that somebody wonders about has been for long: compilers just in time
/// are at work at first, and caches are empty.
const WARM_UP: Duration = Duration::from_secs(3);

#[derive(clap::Args)]
pub struct Args {
    /// Only programs with this in their name (repeatable)
    #[arg(long)]
    filter: Vec<String>,
    /// Only programs that are profiled for ten seconds at most
    #[arg(long)]
    quick: bool,
    /// Print one JSON document instead of the table
    #[arg(long)]
    json: bool,
    /// Keep each program's report and JSON here
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// List the programs and their right answers, and run nothing
    #[arg(long)]
    pub list: bool,
}

/// One program, and what the profiler said about it.
#[derive(Serialize)]
struct Row {
    name: String,
    verdict: Verdict,
    rules: Vec<String>,
    /// What went wrong with the run itself: then nothing was said, which is no right answer.
    error: Option<String>,
    said: Said,
    judgement: Judgement,
    /// Of the machine's CPU time during the run, what others took.
    others_percent: f64,
}

impl Row {
    fn passed(&self) -> bool {
        self.error.is_none() && self.judgement.passed()
    }

    fn is_healthy(&self) -> bool {
        self.verdict == Verdict::Healthy
    }
}

/// Where the programs are.
fn sources() -> PathBuf {
    workspace().join("tests/verdict")
}

fn entries(args: &Args) -> Result<Vec<Entry>> {
    let wanted = |entry: &Entry| {
        let named =
            args.filter.is_empty() || args.filter.iter().any(|part| entry.name.contains(part.as_str()));
        named && !(args.quick && entry.seconds > QUICK)
    };
    Ok(corpus::load(&sources().join("corpus.toml"))?.into_iter().filter(wanted).collect())
}

/// Lists the programs, for which no profiler is needed.
pub fn list(args: &Args) -> Result<()> {
    for entry in entries(args)? {
        println!("{:<28} {:<14} {}", entry.name, entry.verdict.id(), entry.rules.join(", "));
    }
    Ok(())
}

pub fn run(args: &Args, profiler: &Path) -> Result<()> {
    let sources = sources();
    let entries = entries(args)?;
    let folders = Folders { sources, build: workspace().join("target/verdict") };
    folders.build_common()?;
    let reaper = Reaper::new();
    let (mut rows, mut skipped) = (Vec::new(), Vec::new());
    for entry in &entries {
        if let Some(missing) = entry.missing() {
            skipped.push((entry.name.clone(), missing));
            continue;
        }
        let row = try_one(entry, &folders, profiler, args.keep.as_deref(), &reaper)?;
        if !args.json {
            print_row(&row);
        }
        rows.push(row);
    }
    if args.json {
        println!("{:#}", document(&rows, &skipped));
    } else {
        print_shares(&rows, &skipped);
    }
    Ok(())
}

/// Runs one program and judges; it is an error only if all is to end.
fn try_one(
    entry: &Entry,
    folders: &Folders,
    profiler: &Path,
    keep: Option<&Path>,
    reaper: &Reaper,
) -> Result<Row> {
    let machine = machine::Busy::start();
    let said = ask(entry, folders, profiler, keep);
    reaper.end_all();
    processes::interrupted()?;
    let (said, judgement, error) = match said {
        Ok((said, judgement)) => (said, judgement, None),
        Err(error) => (Said::default(), Judgement::default(), Some(format!("{error:#}"))),
    };
    Ok(Row {
        name: entry.name.clone(),
        verdict: entry.verdict,
        rules: entry.rules.clone(),
        error,
        said,
        judgement,
        others_percent: machine.others_percent(),
    })
}

/// Starts a program under its load, profiles it and reads what is said.
fn ask(entry: &Entry, folders: &Folders, profiler: &Path, keep: Option<&Path>) -> Result<(Said, Judgement)> {
    let dir = tempfile::tempdir()?;
    let mut command = folders.command(entry, dir.path())?;
    let errors = dir.path().join("stderr");
    let mut program = processes::spawn(&mut command, &errors, Stdio::piped())?;
    let ready = processes::wait_until_ready(&mut program)
        .with_context(|| fs::read_to_string(&errors).unwrap_or_default().trim().to_owned())?;
    if !entry.load.is_empty() {
        let port = ready.port.as_ref().context("it says no port to send load to")?;
        let mut load = Command::new(folders.load());
        load.arg(port).args(entry.load.split_whitespace());
        processes::spawn(&mut load, &dir.path().join("load-stderr"), Stdio::null())?;
    }
    processes::pause(WARM_UP)?;
    let pids = if ready.pids.is_empty() { vec![program.id().to_string()] } else { ready.pids };

    let (report, profile) = (dir.path().join("report.txt"), dir.path().join("profile.json"));
    let mut command = Command::new(profiler);
    for pid in &pids {
        command.args(["--pid", pid]);
    }
    command.args(["--quiet", "--duration", &format!("{}s", entry.seconds)]).args(&entry.flags);
    command.arg("-o").arg(&profile);
    let errors = dir.path().join("profiler-stderr");
    let mut run = processes::spawn(&mut command, &errors, fs::File::create(&report)?.into())?;
    let ended_well =
        processes::wait(&mut run, Duration::from_secs(entry.seconds + 60)).context("the profiler")?;
    if let Some(keep) = keep {
        let name = entry.name.replace('/', "-");
        fs::create_dir_all(keep)?;
        fs::copy(&report, keep.join(format!("{name}.txt")))?;
        // Missing if the profiler failed.
        let _missing = fs::copy(&profile, keep.join(format!("{name}.json")));
    }
    if !ended_well {
        anyhow::bail!("the profiler failed: {}", fs::read_to_string(&errors)?.trim());
    }
    let profile: Value = serde_json::from_slice(&fs::read(&profile)?)?;
    let said = judge::said(&profile);
    let judgement = judge::judge(entry, &said, &fs::read_to_string(&report)?, ready.peer.as_deref());
    Ok((said, judgement))
}

fn print_row(row: &Row) {
    let said = match (&row.error, row.said.findings.first()) {
        (Some(error), _) => format!("error: {}", error.lines().next().unwrap_or_default()),
        (None, None) => format!("nothing found; verdict {}", row.said.bottleneck),
        (None, Some(first)) => {
            let others = match row.said.findings.len() - 1 {
                0 => String::new(),
                n => format!(" (+{n})"),
            };
            format!("{} {}{others} {}", first.severity, first.rule, first.title)
        }
    };
    let mark = if row.passed() { "pass" } else { "FAIL" };
    println!("{mark}  {:<26} {:<14}  {:.90}", row.name, row.verdict.id(), said);
    for line in row.error.iter().flat_map(|error| error.lines().skip(1)).filter(|line| line.contains("error"))
    {
        println!("      {line}");
    }
    if row.error.is_none() && !row.passed() {
        if !row.judgement.finding && !row.is_healthy() {
            let right = if row.rules.is_empty() { row.verdict.id().to_owned() } else { row.rules.join(", ") };
            println!("      {:<26} {:<14}  right: {right}", "", "");
        }
        for words in &row.judgement.missing_words {
            println!("      {:<26} {:<14}  not in the first lines: {words}", "", "");
        }
    }
}

/// How many of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Share {
    of: usize,
    count: usize,
}

impl Share {
    fn of<'a>(rows: impl Iterator<Item = &'a Row>, is: impl Fn(&Row) -> bool) -> Share {
        rows.fold(Share { of: 0, count: 0 }, |share, row| Share {
            of: share.of + 1,
            count: share.count + usize::from(is(row)),
        })
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let percent = 100.0 * self.count as f64 / self.of.max(1) as f64;
        write!(f, "{} of {} ({percent:.0} %)", self.count, self.of)
    }
}

/// The figures that count: name in JSON, words, figure.
fn shares(rows: &[Row]) -> [(&'static str, &'static str, Share); 4] {
    let sick = || rows.iter().filter(|row| !row.is_healthy());
    let healthy = || rows.iter().filter(|row| row.is_healthy());
    [
        (
            "sick_first_finding_right",
            "sick: the first finding is right",
            Share::of(sick(), |row| row.judgement.finding),
        ),
        ("sick_passed", "sick: finding and first lines are right", Share::of(sick(), Row::passed)),
        (
            "healthy_false_alarms",
            "healthy: a false alarm",
            Share::of(healthy(), |row| row.error.is_none() && !row.judgement.finding),
        ),
        ("healthy_passed", "healthy: all right", Share::of(healthy(), Row::passed)),
    ]
}

fn print_shares(rows: &[Row], skipped: &[(String, String)]) {
    println!();
    for (_, words, share) in shares(rows) {
        println!("{words:<42} {share}");
    }
    for (name, missing) in skipped {
        println!("skipped: {name} needs {missing}");
    }
    let busiest = rows.iter().map(|row| row.others_percent).fold(0.0, f64::max);
    let mean = rows.iter().map(|row| row.others_percent).sum::<f64>() / rows.len().max(1) as f64;
    println!("{}; others took {mean:.0} % of its CPU time, at most {busiest:.0} %", machine::words());
}

fn document(rows: &[Row], skipped: &[(String, String)]) -> Value {
    let shares: serde_json::Map<String, Value> =
        shares(rows).into_iter().map(|(name, _, share)| (name.to_owned(), json!(share))).collect();
    json!({
        "machine": machine::words(),
        "shares": shares,
        "programs": rows,
        "skipped": skipped.iter().map(|(name, missing)| json!({ "name": name, "needs": missing })).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(verdict: Verdict, finding: bool, error: Option<&str>) -> Row {
        Row {
            name: "a".into(),
            verdict,
            rules: vec![],
            error: error.map(str::to_owned),
            said: Said::default(),
            judgement: Judgement { finding, missing_words: vec![] },
            others_percent: 0.0,
        }
    }

    #[test]
    fn a_run_that_failed_is_neither_right_nor_a_false_alarm() {
        let rows = [
            row(Verdict::Cpu, true, None),
            row(Verdict::Cpu, false, None),
            row(Verdict::Cpu, false, Some("no")),
            row(Verdict::Healthy, true, None),
            row(Verdict::Healthy, false, None),
            row(Verdict::Healthy, false, Some("no")),
        ];
        let counts = shares(&rows).map(|(_, _, share)| (share.count, share.of));
        assert_eq!(counts, [(1, 3), (1, 3), (1, 3), (1, 3)]);
    }
}
