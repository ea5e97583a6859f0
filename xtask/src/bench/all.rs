//! Every bench in turn, as one table: what is measured on this machine now, and what has changed since a table before.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Result;

use super::{
    alloc, cpu,
    report::{Better, Report},
    sched, servers, start, syscall, unwind,
};
use crate::shell::{output, workspace};

#[derive(clap::Args)]
pub struct Args {
    /// Three minutes instead of an hour: enough to see what a change of a kernel program has done
    #[arg(long)]
    quick: bool,
    /// Write the table as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Say what has changed by more than a tenth since this table [default: the one kept in docs/design]
    #[arg(long, value_name = "FILE")]
    since: Option<PathBuf>,
    /// Keep the table in docs/design
    #[arg(long)]
    keep: bool,
}

/// A bench that adds to the table.
type Measure<'a> = &'a dyn Fn(&mut Report) -> Result<()>;

/// Where the last tables are kept: the whole one and the quick one, which are not alike.
fn kept(quick: bool) -> PathBuf {
    let name = if quick { "figures-quick.json" } else { "figures.json" };
    workspace().join("docs/design").join(name)
}

pub fn run(args: &Args, profiler: &Path, report: &mut Report) -> Result<()> {
    conditions(report)?;
    let begin = Instant::now();
    let table: [(&str, Measure<'_>); 7] = [
        ("cpu", &|report| cpu::run(&asked(args, cpu::Args::quick), profiler, report)),
        ("unwind", &|report| unwind::run(&asked(args, unwind::Args::quick), profiler, report)),
        ("sched", &|report| sched::run(&asked(args, sched::Args::quick), profiler, report)),
        ("syscall", &|report| syscall::run(&asked(args, syscall::Args::quick), profiler, report)),
        ("alloc", &|report| alloc::run(&asked(args, alloc::Args::quick), profiler, report)),
        ("servers", &|report| servers::run(&asked(args, servers::Args::quick), profiler, report)),
        ("start", &|report| start::run(&asked(args, start::Args::quick), profiler, report)),
    ];
    for (name, bench) in table {
        println!("\n{name}, after {} s", begin.elapsed().as_secs());
        bench(report)?;
    }
    println!("\n{} s", begin.elapsed().as_secs());
    if let Some(path) = &args.json {
        report.write(path)?;
    }
    let since = args.since.clone().unwrap_or_else(|| kept(args.quick));
    if since.exists() {
        compare(report, &since)?;
    }
    if args.keep {
        let path = kept(args.quick);
        report.write(&path)?;
        fs::write(path.with_extension("md"), page(report, args.quick))?;
    }
    Ok(())
}

/// The short form of a bench's arguments, or what they are if nothing is given.
fn asked<A: clap::Args>(args: &Args, quick: fn() -> A) -> A {
    if args.quick {
        return quick();
    }
    let command = A::augment_args(clap::Command::new("bench"));
    let matches = command.get_matches_from(["bench"]);
    A::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// What the figures depend on.
fn conditions(report: &mut Report) -> Result<()> {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpus = std::thread::available_parallelism()?.get();
    let cpuinfo = text("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let commit = output(
        std::process::Command::new("git").args(["rev-parse", "--short", "HEAD"]).current_dir(workspace()),
    );
    for (name, value) in [
        ("kernel", text("/proc/sys/kernel/osrelease")),
        ("processor", format!("{cpus} x {}", model.unwrap_or("unknown"))),
        ("load before", text("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ")),
        ("commit", commit.unwrap_or_default().trim().to_owned()),
        ("date", output(std::process::Command::new("date").arg("-Idate"))?.trim().to_owned()),
    ] {
        println!("{name}: {value}");
        report.conditions.insert(name.to_owned(), value);
    }
    Ok(())
}

/// Says what has changed.
fn compare(report: &Report, since: &Path) -> Result<()> {
    let changes = report.changes_since(&Report::read(since)?);
    println!("\n{} figures changed by more than a tenth since {}", changes.len(), since.display());
    for change in changes {
        let word = match change.worse {
            Some(true) => "WORSE",
            Some(false) => "better",
            None => "peer",
        };
        let [then, now] = change.medians;
        println!("{word:<7} {then:>10.2} -> {now:>10.2} {:<12} {}", change.unit, change.name);
    }
    Ok(())
}

/// The table for readers.
fn page(report: &Report, quick: bool) -> String {
    let (title, flag) = if quick { ("Figures in short", " --quick") } else { ("Figures", "") };
    let mut text = format!(
        "# {title}\n\nWritten by `cargo xtask bench all{flag} --keep`; what each bench does, and why the figures are what they are, \
         is in\n[cost.md](cost.md). Median, and the range of so many runs. Lines in italics are other tools, in the same runs.\n\n"
    );
    for (name, value) in &report.conditions {
        text += &format!("- {name}: {value}\n");
    }
    text += "\n| figure | who | median | range | runs |\n| --- | --- | --- | --- | --- |\n";
    for (name, figure) in &report.figures {
        let (what, who) = name.rsplit_once('/').unwrap_or((name, ""));
        let mark = if figure.better == Better::Peer { "*" } else { "" };
        text += &format!(
            "| {what} | {mark}{who}{mark} | {:.2} {} | {:.2} to {:.2} | {} |\n",
            figure.median, figure.unit, figure.min, figure.max, figure.runs
        );
    }
    text += "\n| goal | |\n| --- | --- |\n";
    for (goal, met) in &report.goals {
        text += &format!("| {goal} | {} |\n", if *met { "met" } else { "**missed**" });
    }
    text
}
