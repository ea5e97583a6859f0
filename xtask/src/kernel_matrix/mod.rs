//! Runs the profiler in Debian's kernels, in emulated machines, and checks what it measures there.
//!
//! Everything is kept in `target/kernel-matrix`: kernels, so that a second run downloads nothing, and for each
//! kernel the console and the results of its last run.

use std::{process::Command, time::Duration};

use anyhow::{Result, bail};

use crate::shell::{debian_packages, run as run_command, workspace};
use checks::{CHECKS, Check};
use guest::Outcome;
use kernels::{KERNELS, Kernel};

mod checks;
mod guest;
mod kernels;
mod profile;

const PACKAGES: [&str; 9] = [
    "busybox-static",
    "cpio",
    "debian-archive-keyring",
    "gcc",
    "libc6-dev",
    "lz4",
    "qemu-system-x86",
    "xz-utils",
    "zstd",
];

#[derive(clap::Args)]
pub struct Args {
    /// Kernels to run in, all by default
    #[arg(value_name = "KERNEL", value_parser = clap::builder::PossibleValuesParser::new(KERNELS.map(|kernel| kernel.name)))]
    kernels: Vec<String>,
    /// Run only this check (repeatable)
    #[arg(long = "check", value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(CHECKS.map(|check| check.name)))]
    checks: Vec<String>,
    /// Look for newer kernels than those downloaded before
    #[arg(long)]
    update: bool,
    /// Seconds that one kernel may take for all its checks
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
}

/// How a kernel or one of its checks turned out.
struct Row {
    kernel: String,
    check: &'static str,
    verdict: Verdict,
    detail: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Ok,
    Failed,
    /// Failed in a kernel that is only tried.
    BestEffort,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Verdict::Ok => "ok",
            Verdict::Failed => "FAILED",
            Verdict::BestEffort => "failed (best effort)",
        })
    }
}

pub fn run(args: &Args) -> Result<()> {
    debian_packages(&PACKAGES)?;
    let workspace = workspace();
    let (target, cache) = (workspace.join("target"), workspace.join("target/kernel-matrix"));
    std::fs::create_dir_all(&cache)?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    run_command(
        Command::new(cargo)
            .args(["build", "--quiet", "--profile", "ci", "--package", "profiler", "--target-dir"])
            .arg(&target)
            .current_dir(&workspace),
    )?;
    let is_wanted = |wanted: &[String], name: &str| wanted.is_empty() || wanted.iter().any(|w| w == name);
    let checks: Vec<&Check> = CHECKS.iter().filter(|check| is_wanted(&args.checks, check.name)).collect();
    let initramfs = guest::initramfs(&workspace, &cache, &target.join("ci/profiler"), &checks)?;

    let mut rows = Vec::new();
    for kernel in KERNELS.iter().filter(|kernel| is_wanted(&args.kernels, kernel.name)) {
        let first = rows.len();
        let mut release = kernel.name.to_owned();
        let result = kernel.fetch(&cache, args.update).and_then(|image| {
            release.clone_from(&image.release);
            let logs = cache.join("runs").join(kernel.name);
            let timeout = Duration::from_secs(args.timeout);
            guest::boot(&image.vmlinux, &initramfs, &logs, timeout, |outcome| {
                if let Some(check) = checks.iter().find(|check| check.name == outcome.name) {
                    rows.push(judge(kernel, &image.release, check, &outcome));
                    print(&rows[rows.len() - 1]);
                }
            })?;
            if rows.len() < first + checks.len() {
                bail!("the guest ended early\n{}", guest::tail(&logs.join("console.log")));
            }
            Ok(())
        });
        if let Err(error) = result {
            eprintln!("{release}: {error:#}");
        }
        for check in &checks {
            if !rows[first..].iter().any(|row| row.check == check.name) {
                let detail = "did not run to its end".to_owned();
                rows.push(Row {
                    kernel: release.clone(),
                    check: check.name,
                    verdict: failure(kernel),
                    detail,
                });
                print(&rows[rows.len() - 1]);
            }
        }
    }

    summarize(&rows, &checks);
    let failed = rows.iter().filter(|row| row.verdict == Verdict::Failed).count();
    if failed > 0 {
        bail!("{failed} of {} checks failed", rows.len());
    }
    Ok(())
}

fn judge(kernel: &Kernel, release: &str, check: &Check, outcome: &Outcome) -> Row {
    let result = match outcome.code {
        0 => (check.assert)(&outcome.stdout),
        code => Err(anyhow::anyhow!("exit code {code}")),
    };
    let (verdict, detail) = match result {
        Ok(detail) => (Verdict::Ok, detail),
        Err(error) => {
            // A profile is too long to read here; it is in the results of the run.
            let stdout = if outcome.stdout.starts_with('{') { "" } else { &*outcome.stdout };
            let lines = [stdout, &*outcome.stderr].into_iter().flat_map(str::lines);
            let said: String = lines.map(|line| format!("\n    | {line}")).collect();
            (failure(kernel), format!("{error:#}{said}"))
        }
    };
    Row { kernel: release.to_owned(), check: check.name, verdict, detail }
}

fn failure(kernel: &Kernel) -> Verdict {
    if kernel.best_effort { Verdict::BestEffort } else { Verdict::Failed }
}

fn print(row: &Row) {
    println!("{:<16} {:<9} {:<7} {}", row.kernel, row.check, row.verdict, row.detail);
}

/// One line per kernel, one column per check.
fn summarize(rows: &[Row], checks: &[&Check]) {
    let head: String = checks.iter().map(|check| format!(" {:<8}", check.name)).collect();
    println!("\n{:<16}{}", "", head.trim_end());
    for kernel in rows.chunks(checks.len()) {
        let cell = |check: &&Check| {
            let row = kernel.iter().find(|row| row.check == check.name);
            match row.map(|row| row.verdict) {
                Some(Verdict::Ok) => "ok",
                Some(Verdict::BestEffort) => "(failed)",
                Some(Verdict::Failed) | None => "FAILED",
            }
        };
        let cells: String = checks.iter().map(|check| format!(" {:<8}", cell(check))).collect();
        println!("{:<16}{}", kernel[0].kernel, cells.trim_end());
    }
}
