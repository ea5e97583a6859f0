//! What the scheduler probe costs those who do nothing but switch, and whether it is right about waits for a CPU and
//! about programs that have no trouble.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{
    Used, build_workload, interrupt, median,
    report::{Better, Report},
    spawn_quiet, spread, wait, wait_for_file,
};
use crate::shell::{debian_packages, output, workspace};

#[derive(clap::Args)]
pub struct Args {
    /// Rounds; in each the workload runs alone, under the profiler and under offcputime
    #[arg(long, default_value_t = 12)]
    rounds: usize,
    /// Seconds of each run
    #[arg(long, default_value_t = 7)]
    seconds: u64,
    /// Runs in which waits for a CPU are measured by the profiler and by bpftrace at once
    #[arg(long, default_value_t = 3)]
    queue_runs: usize,
    /// Seconds of normal load without stalls, of each program
    #[arg(long, default_value_t = 60)]
    calm_seconds: u64,
}

impl Args {
    /// As short as it tells anything: what switching costs.
    pub fn quick() -> Args {
        Args { rounds: 2, seconds: 4, queue_runs: 0, calm_seconds: 0 }
    }
}

pub fn run(args: &Args, profiler: &Path, report: &mut Report) -> Result<()> {
    debian_packages(&["gcc", "libbpf-tools", "bpftrace", "redis-server", "redis-tools"])?;
    let dir = tempfile::tempdir()?;
    if args.rounds > 0 {
        switching(args, profiler, dir.path(), report)?;
    }
    if args.queue_runs > 0 {
        waits_for_a_cpu(args, profiler, dir.path(), report)?;
    }
    if args.calm_seconds > 0 {
        calm(args, profiler, dir.path(), report)?;
    }
    Ok(())
}

/// What a tool left of the throughput, percent, and what it used itself.
#[derive(Default)]
struct Kept {
    target: Vec<f64>,
    unrelated: Vec<f64>,
    cpu_percent: Vec<f64>,
    rss_mb: Vec<f64>,
}

impl Kept {
    fn add(&mut self, alone: [f64; 2], [target, unrelated]: [f64; 2], used: Used, seconds: u64) {
        self.target.push(100.0 * target / alone[0]);
        self.unrelated.push(100.0 * unrelated / alone[1]);
        self.cpu_percent.push(100.0 * used.cpu_s / seconds as f64);
        self.rss_mb.push(used.peak_rss_mb);
    }
}

/// Two pairs of threads that pass a byte to and fro, each on a CPU of its own, and only one of them a target.
fn switching(args: &Args, profiler: &Path, dir: &Path, report: &mut Report) -> Result<()> {
    let workload = build_workload("pingpong", &["-fno-omit-frame-pointer"])?;
    let (mut ours, mut theirs) = (Kept::default(), Kept::default());
    let mut rates = Vec::new();
    let json = dir.join("pingpong.json");
    for round in 1..=args.rounds {
        eprintln!("round {round} of {}", args.rounds);
        let (alone, _) = pingpong(&workload, args.seconds, |_pid| Ok(None))?;
        rates.push(alone[0]);
        let (scores, used) = pingpong(&workload, args.seconds, |pid| {
            let mut command = Command::new(profiler);
            Ok(Some(spawn_quiet(command.args(["--pid", &pid.to_string(), "-o"]).arg(&json))?))
        })?;
        ours.add(alone, scores, used, args.seconds);
        let (scores, used) = pingpong(&workload, args.seconds, |pid| {
            Ok(Some(spawn_quiet(Command::new("offcputime").args(["-p", &pid.to_string()]))?))
        })?;
        theirs.add(alone, scores, used, args.seconds);
    }

    println!("{} rounds of {} s, median (min to max)", args.rounds, args.seconds);
    println!("{:<44} {}", "round trips per second, alone", spread(&rates, 0));
    println!("{:<44} {:<28} offcputime -p", "", "profiler");
    let mut row = |name: &str, unit: &str, better, pick: fn(&Kept) -> &Vec<f64>| {
        let title = format!("{name}, {unit}");
        println!("{title:<44} {:<28} {}", spread(pick(&ours), 1), spread(pick(&theirs), 1));
        report.figure(format!("sched/{name}/profiler"), unit, better, pick(&ours));
        report.figure(format!("sched/{name}/offcputime"), unit, Better::Peer, pick(&theirs));
    };
    row("throughput kept by the target", "%", Better::Higher, |kept| &kept.target);
    row("throughput kept by an unrelated process", "%", Better::Higher, |kept| &kept.unrelated);
    row("CPU time with start and report", "% of one CPU", Better::Lower, |kept| &kept.cpu_percent);
    row("peak resident memory", "MB", Better::Lower, |kept| &kept.rss_mb);
    let profile: Value = serde_json::from_slice(&fs::read(&json)?)?;
    println!("{:<44} {}", "the kernel programs' own account", profile["cost"]);
    let (target, unrelated) = (median(&ours.target), median(&ours.unrelated));
    report.goal("the target keeps 90 % of its throughput", target >= 90.0);
    report.goal("an unrelated process keeps 98 % of its throughput", unrelated >= 98.0);
    report.goal("the target keeps more than under offcputime", target > median(&theirs.target));
    // Both are next to nothing: half a point is noise.
    report.goal(
        "an unrelated process keeps no less than under offcputime (0.5 points of noise)",
        unrelated > median(&theirs.unrelated) - 0.5,
    );
    Ok(())
}

/// Runs the two pairs, with a tool on the first; returns what both achieved and what the tool used.
fn pingpong(
    workload: &Path,
    seconds: u64,
    start_tool: impl FnOnce(u32) -> Result<Option<Child>>,
) -> Result<([f64; 2], Used)> {
    let start = |cpu: &str| {
        let child = Command::new(workload).args([&seconds.to_string(), cpu]).stdout(Stdio::piped()).spawn();
        child.context("starting the workload")
    };
    let (mut target, mut unrelated) = (start("0")?, start("1")?);
    let tool = start_tool(target.id())?;
    let mut scores = [0.0; 2];
    for (score, child) in scores.iter_mut().zip([&mut target, &mut unrelated]) {
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("a pipe")?).read_line(&mut line)?;
        *score = line.trim().parse().context("the workload's throughput")?;
    }
    let used = match tool {
        None => Used::default(),
        Some(tool) => {
            interrupt(&tool);
            wait(&tool)?
        }
    };
    for mut child in [target, unrelated] {
        child.kill()?;
        child.wait()?;
    }
    Ok((scores, used))
}

/// From when a thread can run to when it does, in steps of 4 µs.
const RUNQLAT: &str = r#"
tracepoint:sched:sched_wakeup, tracepoint:sched:sched_wakeup_new {
    if (strncmp(args->comm, "spin-", 5) == 0 || strncmp(args->comm, "blockers", 8) == 0) { @since[args->pid] = nsecs; }
}
tracepoint:sched:sched_switch {
    if (args->prev_state == 0 || (args->prev_state & 0x100)) {
        if (strncmp(args->prev_comm, "spin-", 5) == 0) { @since[args->prev_pid] = nsecs; }
    }
    $since = @since[args->next_pid];
    if ($since) { @waits[(nsecs - $since) / 4096] = count(); delete(@since[args->next_pid]); }
}
interval:ms:100 { printf("on\n"); }
END { clear(@since); }
"#;

/// Sixteen busy threads on two CPUs, measured by the profiler, by bpftrace and by the threads in the same run.
fn waits_for_a_cpu(args: &Args, profiler: &Path, dir: &Path, report: &mut Report) -> Result<()> {
    let workload = build_workload("blockers", &["-fno-omit-frame-pointer"])?;
    let (mut worst, json) = (0f64, dir.join("queue.json"));
    println!(
        "\n16 busy threads on 2 CPUs: waits for a CPU, ms, by profiler / bpftrace / the threads themselves"
    );
    for _ in 0..args.queue_runs {
        let mut target = Command::new(&workload)
            .args(["spin", &args.seconds.to_string(), "16"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut said = BufReader::new(target.stdout.take().context("a pipe")?);
        said.read_line(&mut String::new())?;
        let mut bpftrace = Command::new("bpftrace")
            .args(["-e", RUNQLAT])
            .env("BPFTRACE_MAP_KEYS_MAX", "65536")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting bpftrace")?;
        let mut traced = BufReader::new(bpftrace.stdout.take().context("a pipe")?);
        let mut line = String::new();
        while line != "on\n" {
            line.clear();
            if traced.read_line(&mut line)? == 0 {
                bail!("bpftrace has ended");
            }
        }
        let watching = watch(profiler, target.id(), &json)?;
        target.stdin.take().context("a pipe")?.write_all(b"go\n")?;
        let mut own = String::new();
        said.read_to_string(&mut own)?;
        wait(&watching)?;
        target.wait()?;
        interrupt(&bpftrace);
        let mut counts = String::new();
        traced.read_to_string(&mut counts)?;
        bpftrace.wait()?;

        let profile: Value = serde_json::from_slice(&fs::read(&json)?)?;
        let ours = &profile["blocking"]["run_queue"][0]["waits"];
        let mut theirs: Vec<(u64, u64)> = counts.lines().filter_map(step).collect();
        theirs.sort_unstable();
        let waits =
            own.lines().find_map(|line| line.strip_prefix("waits=")).context("the workload's waits")?;
        let mut own = waits.split(',').map(str::parse).collect::<Result<Vec<u64>, _>>()?;
        own.sort_unstable();
        let mut words = Vec::new();
        for (key, quantile) in [("p50_ns", 0.5), ("p90_ns", 0.9), ("p99_ns", 0.99)] {
            let ours = ours[key].as_f64().context("a quantile")?;
            let theirs = at(&theirs, quantile) as f64 * 4096.0 + 2048.0;
            let own = own[((own.len() - 1) as f64 * quantile) as usize] as f64;
            words.push(format!("{key} {:.2} / {:.2} / {:.2}", ours / 1e6, theirs / 1e6, own / 1e6));
            if key != "p90_ns" {
                worst = worst.max((ours / theirs - 1.0).abs());
            }
        }
        let count: u64 = theirs.iter().map(|(_, count)| count).sum();
        println!("{}   count {} / {count} / {}", words.join("   "), ours["count"], own.len());
    }
    println!("worst difference to bpftrace at p50 and p99: {:.1} %", 100.0 * worst);
    report.goal("p50 and p99 of waits for a CPU agree with bpftrace's within 5 %", worst <= 0.05);
    Ok(())
}

/// A line of bpftrace's: "@waits[STEP]: COUNT".
fn step(line: &str) -> Option<(u64, u64)> {
    let (step, count) = line.strip_prefix("@waits[")?.split_once("]: ")?;
    Some((step.parse().ok()?, count.trim().parse().ok()?))
}

/// The step that a share of `quantile` is not above.
fn at(steps: &[(u64, u64)], quantile: f64) -> u64 {
    let total: u64 = steps.iter().map(|(_, count)| count).sum();
    let mut left = (total as f64 * quantile) as u64;
    for &(step, count) in steps {
        if count > left {
            return step;
        }
        left -= count;
    }
    0
}

/// Programs under normal load: no stall that they do not see themselves.
fn calm(args: &Args, profiler: &Path, dir: &Path, report: &mut Report) -> Result<()> {
    println!("\n{} s of normal load", args.calm_seconds);
    let redis = calm_redis(args, profiler, dir)?;
    report.goal("no stall of redis is invented", redis == 0);
    let node = calm_node(args, profiler, dir)?;
    report.goal("no stall of Node.js is invented", node == 0);
    Ok(())
}

fn calm_redis(args: &Args, profiler: &Path, dir: &Path) -> Result<usize> {
    let (socket, json) = (dir.join("redis.sock"), dir.join("redis.json"));
    let mut server = spawn_quiet(
        Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--slowlog-log-slower-than", "10000", "--unixsocket"])
            .arg(&socket)
            .current_dir(dir),
    )?;
    wait_for_file(&socket)?;
    let mut load = spawn_quiet(
        Command::new("redis-benchmark")
            .args(["-q", "-c", "10", "-n", "1000000000", "-t", "set,get", "-r", "100000", "-s"])
            .arg(&socket),
    )?;
    let watching = watch(profiler, server.id(), &json)?;
    std::thread::sleep(Duration::from_secs(args.calm_seconds));
    interrupt(&watching);
    wait(&watching)?;
    let slow = output(Command::new("redis-cli").arg("-s").arg(&socket).args(["slowlog", "len"]))?;
    for child in [&mut load, &mut server] {
        child.kill()?;
        child.wait()?;
    }
    let slow: usize = slow.trim_start_matches("(integer) ").parse().context("the length of the slow log")?;
    println!("redis under redis-benchmark, its slow log: {slow} commands over 10 ms");
    // Redis does not count what it waited for a CPU between its commands.
    let found = report_stalls(&json, |stall, waited| stall.saturating_sub(waited) >= 10_000_000)?;
    Ok(found.saturating_sub(slow))
}

fn calm_node(args: &Args, profiler: &Path, dir: &Path) -> Result<usize> {
    let json = dir.join("node.json");
    let script = workspace().join("tests/workloads/stall.js");
    let mut server = Command::new("node")
        .arg(script)
        .args(["none", "1000", &args.calm_seconds.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting node")?;
    let mut said = BufReader::new(server.stdout.take().context("a pipe")?);
    said.read_line(&mut String::new())?;
    let watching = watch(profiler, server.id(), &json)?;
    let mut input = server.stdin.take().context("a pipe")?;
    input.write_all(b"go\n")?;
    let mut own = String::new();
    said.read_to_string(&mut own)?;
    wait(&watching)?;
    server.wait()?;
    let calm = own.lines().find_map(|line| line.strip_prefix("calm ")).context("node's measure")?;
    let calm: f64 = calm.parse()?;
    println!(
        "Node.js as an HTTP server, 50 requests a second, longest loop delay by perf_hooks: {:.1} ms",
        calm / 1e6
    );
    // Its timer looks once a millisecond.
    report_stalls(&json, |stall, _waited| stall as f64 > calm + 2e6)
}

/// Says which stalls were found; returns how many of them `invented` says are none.
fn report_stalls(json: &Path, invented: impl Fn(u64, u64) -> bool) -> Result<usize> {
    let profile: Value = serde_json::from_slice(&fs::read(json)?)?;
    let blocking = &profile["blocking"];
    for event_loop in blocking["loops"].as_array().context("loops")? {
        println!(
            "    loop {} in {}: iterations {}",
            event_loop["name"], event_loop["wait"], event_loop["iterations"]
        );
    }
    let stalls = blocking["stalls"].as_array().context("stalls")?;
    println!("    {} stalls listed, {} not", stalls.len(), blocking["stalls_unlisted"]);
    let mut count = 0;
    for stall in stalls {
        let ns = |key: &str| stall[key].as_u64().with_context(|| format!("{key} of a stall"));
        let (length, waited) = (ns("duration_ns")?, ns("run_queue_ns")?);
        let not_there = invented(length, waited);
        count += usize::from(not_there);
        println!(
            "    {:.1} ms: {:.1} on a CPU, {:.1} waiting for one, explained {}{}",
            length as f64 / 1e6,
            ns("on_cpu_ns")? as f64 / 1e6,
            waited as f64 / 1e6,
            stall["explained"],
            if not_there { ", INVENTED" } else { "" }
        );
    }
    Ok(count)
}

/// Starts the profiler; returns when the live view's first line says that it has begun.
fn watch(profiler: &Path, pid: u32, json: &PathBuf) -> Result<Child> {
    let mut child = Command::new(profiler)
        .args(["-i500ms", "--pid", &pid.to_string(), "-o"])
        .arg(json)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting the profiler")?;
    let mut live = BufReader::new(child.stderr.take().context("a pipe")?);
    if live.read_line(&mut String::new())? == 0 {
        bail!("the profiler has ended");
    }
    std::thread::spawn(move || std::io::copy(&mut live, &mut std::io::sink()));
    Ok(child)
}
