//! What watching allocations costs a program that does nothing but allocate and free, and that servers and runtimes give
//! right answers while every allocation of theirs is watched.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{
    build_workload, interrupt, median, programs,
    report::{Better, Report},
    spawn_quiet, spread, wait,
};
use crate::shell::debian_packages;

#[derive(clap::Args)]
pub struct Args {
    /// Rounds; in each the workload runs alone and under each tool
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each run
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// Depth of the workload's stack
    #[arg(long, default_value_t = 20)]
    depth: u32,
    /// libbpf-tools' memleak, where it is not on the PATH (Debian 12's libbpf-tools have none)
    #[arg(long, value_name = "PATH")]
    memleak: Option<PathBuf>,
    /// Seconds that PostgreSQL, redis and CPython are watched under load, each; 300 is a thorough run
    #[arg(long, default_value_t = 30)]
    soak_seconds: u64,
    /// Objects that a program allocates and keeps; 100000000 is a thorough run
    #[arg(long, default_value_t = 4_000_000)]
    live_objects: u64,
}

impl Args {
    /// As short as it tells anything: what a pair costs.
    pub fn quick() -> Args {
        Args { rounds: 1, seconds: 3, depth: 20, memleak: None, soak_seconds: 0, live_objects: 0 }
    }
}

pub fn run(args: &Args, profiler: &Path, report: &mut Report) -> Result<()> {
    debian_packages(&["gcc", "heaptrack", "redis-server", "redis-tools", "postgresql", "python3"])?;
    if args.rounds > 0 {
        throughput(args, profiler, report)?;
    }
    if args.soak_seconds > 0 {
        soak(args, profiler, report)?;
    }
    if args.live_objects > 0 {
        hoard(args, profiler, report)?;
    }
    Ok(())
}

/// A tool that watches the workload.
struct Tool {
    name: &'static str,
    /// The command before the workload's.
    before: Vec<String>,
    /// What watches a process, the process id to follow.
    beside: Vec<String>,
    /// Prints something when it is in place.
    says_so: bool,
    rates: Vec<f64>,
}

fn throughput(args: &Args, profiler: &Path, report: &mut Report) -> Result<()> {
    let workload = build_workload("pairs", &["-fomit-frame-pointer"])?;
    let dir = tempfile::tempdir()?;
    let json = dir.path().join("x.json").display().to_string();
    let profiled = |more: &[&str]| -> Vec<String> {
        let profiler = profiler.display().to_string();
        let mut command = vec![profiler, "-i200ms".into(), "-F99".into(), "-o".into(), json.clone()];
        command.extend(more.iter().map(|&word| word.to_owned()));
        command.push("--pid".into());
        command
    };
    let tool = |name, before: Vec<String>, beside, says_so| Tool {
        name,
        before,
        beside,
        says_so,
        rates: Vec::new(),
    };
    let raw = dir.path().join("heaptrack").display().to_string();
    let memleak = args.memleak.clone().unwrap_or_else(|| "memleak".into()).display().to_string();
    let mut tools = vec![
        tool("alone", vec![], vec![], false),
        tool("profiler --alloc off", vec![], profiled(&["--alloc", "off"]), true),
        tool("profiler (auto: nothing grows)", vec![], profiled(&[]), true),
        tool(
            "profiler --alloc full --max-overhead 5",
            vec![],
            profiled(&["--alloc", "full", "--max-overhead", "5"]),
            true,
        ),
        tool("profiler --alloc full", vec![], profiled(&["--alloc", "full"]), true),
        tool(
            "heaptrack -r (restarts the program)",
            vec!["heaptrack".into(), "-r".into(), "-o".into(), raw],
            vec![],
            false,
        ),
    ];
    let has_memleak = Command::new(&memleak).arg("--version").output().is_ok_and(|out| out.status.success());
    if has_memleak {
        // As in its manual: outstanding allocations by stack, every few seconds.
        tools.push(tool("memleak", vec![], vec![memleak, "-p".into()], true));
    } else {
        println!("memleak is not installed, and left out");
    }
    let mut governed = Value::Null;
    let mut full = Value::Null;
    for round in 1..=args.rounds {
        eprintln!("round {round} of {}", args.rounds);
        for tool in &mut tools {
            let rate = pairs_per_second(args, &workload, tool).with_context(|| tool.name)?;
            tool.rates.push(rate);
            if tool.name.starts_with("profiler --alloc full") {
                let profile: Value = serde_json::from_slice(&fs::read(&json)?)?;
                let watching = profile["memory"]["watching"].clone();
                if tool.name.ends_with('5') {
                    governed = watching
                } else {
                    full = watching
                };
            }
        }
    }
    let alone = tools[0].rates.clone();
    println!(
        "malloc(64) and free, one thread, stack {} deep; {} rounds of {} s, median (min to max)",
        args.depth, args.rounds, args.seconds
    );
    println!("{:<40} {:<34} {:<28} ns more a pair", "", "pairs per second", "throughput kept, %");
    let mut more = Vec::new();
    let mut kept = Vec::new();
    for tool in &tools {
        let shares: Vec<f64> =
            tool.rates.iter().zip(&alone).map(|(rate, alone)| 100.0 * rate / alone).collect();
        let ns: Vec<f64> =
            tool.rates.iter().zip(&alone).map(|(rate, alone)| 1e9 / rate - 1e9 / alone).collect();
        println!(
            "{:<40} {:<34} {:<28} {}",
            tool.name,
            spread(&tool.rates, 0),
            spread(&shares, 1),
            spread(&ns, 0)
        );
        if tool.name != "alone" {
            let better = if tool.name.starts_with("profiler") { Better::Lower } else { Better::Peer };
            report.figure(format!("alloc/added to malloc and free/{}", tool.name), "ns", better, &ns);
        }
        more.push(median(&ns));
        kept.push(median(&shares));
    }
    println!("governed: {governed}");
    println!("full: {full}");
    let trap_ns = full["trap_ns"][0].as_f64().unwrap_or(f64::NAN);
    println!("a call with its return traps for {trap_ns:.0} ns here now");
    report.goal("governed at 5 %, at least 95 % of the throughput is kept", kept[3] >= 95.0);
    report.goal("nothing is watched where nothing grows: at least 98 % is kept", kept[2] >= 98.0);
    report.goal("full costs at most 2 us a pair", more[4] <= 2000.0);
    if has_memleak {
        report.goal("full costs less than memleak", more[4] < more[6]);
    }
    Ok(())
}

/// Runs the workload under a tool.
fn pairs_per_second(args: &Args, workload: &Path, tool: &Tool) -> Result<f64> {
    let mut command: Vec<String> = tool.before.clone();
    command.push(workload.display().to_string());
    command.extend([args.seconds.to_string(), "1".to_owned(), args.depth.to_string()]);
    let mut process = Command::new(&command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("starting {}", command[0]))?;
    let mut out = BufReader::new(process.stdout.take().context("a pipe")?);
    wait_for_line(&mut out, "ready")?;
    let beside = if tool.beside.is_empty() { None } else { Some(start_beside(tool, process.id())?) };
    writeln!(process.stdin.as_ref().context("a pipe")?, "go")?;
    let rate = loop {
        let mut line = String::new();
        ensure!(out.read_line(&mut line)? > 0, "the workload ended early");
        if let Ok(rate) = line.trim().parse() {
            break rate;
        }
    };
    if let Some(beside) = beside {
        interrupt(&beside);
        let _ended_by_itself = wait(&beside);
    }
    drop(process.stdin.take());
    out.read_to_string(&mut String::new())?;
    process.wait()?;
    Ok(rate)
}

fn wait_for_line(out: &mut impl std::io::BufRead, wanted: &str) -> Result<()> {
    let mut line = String::new();
    while line.trim() != wanted {
        line.clear();
        ensure!(out.read_line(&mut line)? > 0, "it ended before it said '{wanted}'");
    }
    Ok(())
}

/// Starts what watches a process, and returns when it does.
fn start_beside(tool: &Tool, pid: u32) -> Result<Child> {
    let mut command = Command::new(&tool.beside[0]);
    command.args(&tool.beside[1..]).arg(pid.to_string()).stdin(Stdio::null());
    let is_profiler = tool.name.starts_with("profiler");
    if is_profiler {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
    } else {
        command.stdout(Stdio::piped()).stderr(Stdio::null());
    }
    let mut child = command.spawn().with_context(|| format!("starting {}", tool.beside[0]))?;
    if tool.says_so {
        // The first line comes when all is in place; what follows must not fill the pipe.
        let out: Box<dyn std::io::Read + Send> = if is_profiler {
            Box::new(child.stderr.take().context("a pipe")?)
        } else {
            Box::new(child.stdout.take().context("a pipe")?)
        };
        let mut out = BufReader::new(out);
        out.read_line(&mut String::new())?;
        if !is_profiler {
            std::thread::sleep(Duration::from_secs(1));
        }
        std::thread::spawn(move || out.read_to_string(&mut String::new()));
    }
    Ok(child)
}

/// Servers and runtimes under load with every allocation watched: nothing crashes, answers stay right, and what the
/// profiler takes is bounded.
fn soak(args: &Args, profiler: &Path, report: &mut Report) -> Result<()> {
    println!("\nunder load, every allocation watched, {} s each", args.soak_seconds);
    let dir = tempfile::tempdir()?;
    for (name, start) in [
        ("redis", programs::redis as fn() -> programs::Program),
        ("PostgreSQL", programs::postgres),
        ("CPython", programs::python),
    ] {
        let mut program = start();
        let json = dir.path().join("soak.json");
        let mut command = Command::new(profiler);
        command.args(["-q", "--alloc", "full", "-d", &format!("{}s", args.soak_seconds), "-o"]).arg(&json);
        let child = spawn_quiet(command.args(&program.target))?;
        let used = wait(&child)?;
        let alive = program.is_alive();
        let answers = program.answers();
        let profile: Value = serde_json::from_slice(&fs::read(&json)?)?;
        let watching = &profile["memory"]["watching"];
        let number = |key: &str| watching[key].as_f64().unwrap_or(f64::NAN);
        println!(
            "{name:<12} {:>12.0} hits, {:>5.1} % of its CPU time; {:.0} objects not counted; profiler {:.0} MB at most; \
             {}",
            number("hits"),
            100.0 * number("cost_ns") / number("cpu_ns"),
            number("lost_objects"),
            used.peak_rss_mb,
            if alive && answers { "alive, answers right" } else { "BROKEN" },
        );
        if profile["memory"]["sites"].as_array().is_none_or(Vec::is_empty) {
            bail!("{name}: nothing was watched: {watching}");
        }
        report.goal(format!("{name} goes on and answers right"), alive && answers);
        report.goal(format!("{name}: the profiler stays below 500 MB"), used.peak_rss_mb < 500.0);
    }
    Ok(())
}

/// Far more objects live at once than there is room for.
fn hoard(args: &Args, profiler: &Path, report: &mut Report) -> Result<()> {
    let workload = build_workload("hoard", &[])?;
    let mut program = Command::new(workload)
        .arg(args.live_objects.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut out = BufReader::new(program.stdout.take().context("a pipe")?);
    wait_for_line(&mut out, "ready")?;
    let dir = tempfile::tempdir()?;
    let json = dir.path().join("hoard.json");
    let mut command = Command::new(profiler);
    command.args(["--alloc", "full", "-o"]).arg(&json).args(["--pid", &program.id().to_string(), "-i200ms"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let mut said = BufReader::new(child.stderr.take().context("a pipe")?);
    said.read_line(&mut String::new())?;
    std::thread::spawn(move || said.read_to_string(&mut String::new()));
    writeln!(program.stdin.as_ref().context("a pipe")?, "go")?;
    wait_for_line(&mut out, "done")?;
    interrupt(&child);
    let used = wait(&child)?;
    let profile: Value = serde_json::from_slice(&fs::read(&json)?)?;
    let memory = &profile["memory"];
    let lost = memory["watching"]["lost_objects"].as_u64().context("lost_objects")?;
    let sites = memory["sites"].as_array().context("sites")?.iter();
    let live: f64 = sites.filter_map(|site| site["live_count"].as_f64()).sum();
    println!(
        "\n{} objects kept by a program: {live:.0} watched, {lost} not for lack of room; profiler {:.0} MB at most",
        args.live_objects, used.peak_rss_mb
    );
    drop(program.stdin.take());
    ensure!(program.wait()?.success(), "the program failed");
    report.goal(
        "every object is either watched or counted as not watched",
        (live as u64 + lost).abs_diff(args.live_objects) < 1000,
    );
    report.goal("with all of them the profiler stays below 500 MB", used.peak_rss_mb < 500.0);
    Ok(())
}
