//! `profiler daemon`, `profiler config` and `profiler alert`. Each window of the daemon is a process of its own: another
//! `profiler --pid …` that writes a recording. Whatever happens in it, the daemon lives; and when it ends, all of its
//! memory and kernel programs are gone with it.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{ValueEnum as _, builder::PossibleValue};
use sha2::{Digest as _, Sha256};

use crate::{
    cli::{AlertCommand, ConfigCommand, DaemonArgs},
    daemon::{self, Window},
    detect::rule::Overrides,
    error::Error,
    kernel::preflight,
    metrics::{METRICS, Metric},
    model::report::Run,
    output::json::hex,
    recording,
};

/// How much longer than its window a process may take, to start and to name what it found.
const GRACE: Duration = Duration::from_secs(60);

/// How long a process that has taken too long may take to end.
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs the daemon.
pub fn run(args: &DaemonArgs) -> Result<()> {
    if !preflight::may_load_programs() {
        return Err(Error::MissingRights { what: "profile" }.into());
    }
    daemon::run(&args.config, &mut measure)
}

/// Does what `profiler config` asks for.
pub fn config(command: &ConfigCommand) -> Result<()> {
    match command {
        ConfigCommand::Init => print!("{}", daemon::EXAMPLE),
        ConfigCommand::Check { file } => println!("{}", daemon::check(file)?),
        ConfigCommand::Show { file } => print!("{}", daemon::show(file)?),
        ConfigCommand::Metrics => {
            METRICS.iter().for_each(|metric| println!("{}", described(metric)));
        }
    }
    Ok(())
}

/// A metric, for people: what it is called and told apart by, its kind and unit, and what it is.
fn described(metric: &Metric) -> String {
    let Metric { name, label, unit, kind, help, .. } = metric;
    let by = if label.is_empty() { String::new() } else { format!(" by {label}") };
    let unit = if unit.id().is_empty() { String::new() } else { format!(", {}", unit.id()) };
    format!("{name}{by} ({}{unit})\n    {help}", kind.id())
}

/// Does what `profiler alert` asks for.
pub fn alert(command: &AlertCommand) -> Result<()> {
    let AlertCommand::Test { receiver, daemon: args } = command;
    daemon::test_receiver(&args.config, receiver)?;
    println!("a test message has been sent to {receiver}");
    Ok(())
}

/// Makes a token of 256 random bits: prints it, and what is kept of it.
pub fn token(role: &str) -> Result<()> {
    let mut bytes = [0u8; 32];
    let mut random = std::fs::File::open("/dev/urandom").context("cannot open /dev/urandom")?;
    std::io::Read::read_exact(&mut random, &mut bytes)?;
    let token = hex(&bytes);
    println!("token, for whoever asks: {token}");
    println!("line, for daemon.token_file: {role}:{}", hex(&Sha256::digest(&token)));
    Ok(())
}

/// Profiles for one window.
fn measure(window: &Window, must_end: &dyn Fn() -> Option<Instant>) -> Result<Run> {
    let mut command = Command::new("/proc/self/exe");
    for pid in &window.pids {
        command.arg("--pid").arg(pid.to_string());
    }
    command
        .arg("--follow")
        .arg("--quiet")
        .arg("--unattended")
        .arg("--duration")
        .arg(humantime::format_duration(window.length).to_string().replace(' ', ""))
        .arg("--frequency")
        .arg(window.frequency.to_string())
        .arg("--alloc")
        .arg(if window.allocations { "auto" } else { "off" })
        .arg("--output")
        .arg(&window.recording)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let requests = window.requests.to_possible_value();
    command.arg("--requests").args(requests.as_ref().map(PossibleValue::get_name));
    command.arg(if window.syscalls { "--syscalls" } else { "--syscalls=off" });
    // SAFETY: prctl is safe to call between fork and exec, and reads nothing.
    unsafe {
        command.pre_exec(|| {
            // Without the daemon nobody would read its result.
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
            Ok(())
        });
    }
    let mut child = command.spawn().context("cannot start a window")?;
    let mut stderr = child.stderr.take();
    let said = std::thread::spawn(move || {
        use std::io::Read as _;
        let mut text = String::new();
        if let Some(stderr) = &mut stderr {
            // What it says may be long, and only its end matters; nothing of it is lost on the terminal of nobody.
            let _ = stderr.take(64 * 1024).read_to_string(&mut text);
        }
        text
    });
    let overdue = Instant::now() + window.length + GRACE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        let is_overdue = || (Instant::now() > overdue).then(|| Instant::now() + PATIENCE);
        if let Some(until) = must_end().or_else(is_overdue) {
            // SAFETY: the child has not been waited for, so that the pid is its own.
            unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
            while child.try_wait()?.is_none() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(20));
            }
            child.kill()?;
            child.wait()?;
            bail!("the window was ended early");
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let said = said.join().unwrap_or_default();
    // The last line is how it ended, the one before often why.
    let lines: Vec<&str> = said.lines().map(|line| line.trim_start_matches("profiler: ")).collect();
    let last = lines[lines.len().saturating_sub(2)..].join("; ");
    let gone = Error::NoSuchPid(window.pids.first().copied().unwrap_or(0));
    if status.code() == Some(gone.exit_code().into()) {
        return Err(gone.into());
    }
    ensure!(status.success(), "its process ended with {status}: {last}");
    let replayed = recording::load::load(&window.recording, &Overrides::default())?;
    // By a part of a window alerts would end.
    ensure!(
        replayed.ending == recording::Ending::Complete,
        "its recording {}",
        replayed.ending.fault().unwrap_or_default()
    );
    Ok(replayed.run)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::find;

    #[test]
    fn a_metric_is_listed_with_its_kind_and_unit() {
        let first = |name: &str| described(find(name).unwrap()).lines().next().unwrap().to_owned();
        assert_eq!(first("cpu_seconds"), "cpu_seconds (counter, seconds)");
        assert_eq!(first("own_failed_windows"), "own_failed_windows (gauge)");
        assert_eq!(first("own_budget_ratio"), "own_budget_ratio by resource (gauge, ratio)");
    }
}
