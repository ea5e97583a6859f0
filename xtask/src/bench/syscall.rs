//! What watching system calls costs each of them: the target's and those of a process nobody watches, under the
//! profiler and under others, in interleaved runs of a loop that does nothing else.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{
    build_workload, interrupt, median,
    report::{Better, Report},
    spawn_quiet, spread,
};
use crate::shell::debian_packages;

#[derive(clap::Args)]
pub struct Args {
    /// Rounds; in each the loop runs once alone and once under each tool
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each run
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
}

impl Args {
    /// As short as it tells anything.
    pub fn quick() -> Args {
        Args { rounds: 1, seconds: 0.5 }
    }
}

/// How long a tool is given to attach.
const ATTACH: Duration = Duration::from_millis(1500);

/// A tool, and its command for a process id; on the loop itself, or on another process.
struct Tool {
    name: &'static str,
    on_target: bool,
    command: fn(profiler: &Path, pid: &str) -> Command,
}

fn command(program: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

fn ours(profiler: &Path, pid: &str) -> Command {
    command(profiler, &["-q", "--syscalls", "--pid", pid])
}

const TOOLS: [Tool; 6] = [
    Tool { name: "profiler --syscalls, on it", on_target: true, command: ours },
    Tool { name: "profiler --syscalls, on another", on_target: false, command: ours },
    Tool {
        name: "strace -c -p, on it",
        on_target: true,
        command: |_, pid| command(Path::new("strace"), &["-c", "-f", "-o", "/dev/null", "-p", pid]),
    },
    Tool {
        name: "perf trace -s -p, on it",
        on_target: true,
        command: |_, pid| command(Path::new("perf"), &["trace", "-s", "-o", "/dev/null", "-p", pid]),
    },
    Tool {
        name: "syscount -L -p, on it",
        on_target: true,
        command: |_, pid| command(Path::new("/usr/sbin/syscount"), &["-L", "-p", pid]),
    },
    Tool {
        name: "syscount -L -p, on another",
        on_target: false,
        command: |_, pid| command(Path::new("/usr/sbin/syscount"), &["-L", "-p", pid]),
    },
];

pub fn run(args: &Args, profiler: &Path, report: &mut Report) -> Result<()> {
    debian_packages(&["linux-perf", "strace", "gcc", "libbpf-tools"])?;
    let workload = build_workload("callrate", &[])?;
    println!("added to a call, ns: median of {} rounds of {} s (min to max)", args.rounds, args.seconds);
    for kind in ["getppid", "pipe"] {
        let mut alone = Vec::new();
        let mut under: Vec<Vec<f64>> = vec![Vec::new(); TOOLS.len()];
        for _ in 0..args.rounds {
            let base = measure(&workload, kind, args.seconds, profiler, None)?;
            for (tool, added) in TOOLS.iter().zip(&mut under) {
                added.push(measure(&workload, kind, args.seconds, profiler, Some(tool))? - base);
            }
            alone.push(base);
        }
        println!("\n{kind}: {} ns a call", spread(&alone, 0));
        for (tool, added) in TOOLS.iter().zip(&under) {
            println!("  {:<34} {}", tool.name, spread(added, 0));
            let better = if tool.name.starts_with("profiler") { Better::Lower } else { Better::Peer };
            report.figure(format!("syscall/added to {kind}/{}", tool.name), "ns", better, added);
        }
        let [target, unrelated, peers @ ..] =
            &under.iter().map(|added| median(added)).collect::<Vec<_>>()[..]
        else {
            continue;
        };
        let best = |on_target: bool| {
            let of = TOOLS[2..].iter().zip(peers).filter(|(tool, _)| tool.on_target == on_target);
            of.map(|(_, added)| *added).fold(f64::INFINITY, f64::min)
        };
        for (goal, met) in [
            ("the target's calls take at most 200 ns longer", *target <= 200.0),
            ("those of others at most 100 ns", *unrelated <= 100.0),
            ("less than under each peer", *target < best(true) && *unrelated < best(false)),
        ] {
            report.goal(format!("{kind}: {goal}"), met);
        }
    }
    Ok(())
}

/// Runs the loop, held until the tool is attached; returns what a call took, ns.
fn measure(workload: &Path, kind: &str, seconds: f64, profiler: &Path, tool: Option<&Tool>) -> Result<f64> {
    let mut target = Command::new("sh")
        .args(["-c", "read go && exec \"$0\" \"$@\""])
        .arg(workload)
        .args([kind, &seconds.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the loop")?;
    let mut other = spawn_quiet(Command::new("sleep").arg("60"))?;
    let mut running = None;
    if let Some(tool) = tool {
        let pid = if tool.on_target { target.id() } else { other.id() };
        running = Some(spawn_quiet(&mut (tool.command)(profiler, &pid.to_string()))?);
        std::thread::sleep(ATTACH);
    }
    std::io::Write::write_all(&mut target.stdin.take().context("a pipe")?, b"go\n")?;
    let mut line = String::new();
    BufReader::new(target.stdout.take().context("a pipe")?).read_line(&mut line)?;
    if let Some(mut tool) = running {
        interrupt(&tool);
        // strace lets go of a process that is about to end; how the tool itself ends is not measured.
        let _any_status = tool.wait()?;
    }
    other.kill()?;
    other.wait()?;
    target.wait()?;
    line.trim().parse().with_context(|| format!("what a call took: {line:?}"))
}
