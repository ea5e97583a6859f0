//! Starting programs so that nothing of them is left behind, whatever happens.
//!
//! This process adopts what its descendants leave behind (`PR_SET_CHILD_SUBREAPER`), so that all of them, even those in
//! sessions of their own, are found below it. They are not in the terminal's foreground: Ctrl-C reaches this process only.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn interrupt(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Everything started below this process ends when this is dropped.
pub struct Reaper(());

impl Reaper {
    pub fn new() -> Reaper {
        let handler: extern "C" fn(libc::c_int) = interrupt;
        // SAFETY: the handler only stores to an atomic; prctl with this option takes a number.
        unsafe {
            libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
                libc::signal(signal, handler as libc::sighandler_t);
            }
        }
        Reaper(())
    }

    /// Ends all that is left below this process: asks first, since a database that is killed leaves things behind.
    pub fn end_all(&self) {
        const PATIENCE: Duration = Duration::from_secs(3);
        let start = Instant::now();
        let mut asked = Vec::new();
        loop {
            reap();
            let left = descendants(std::process::id());
            if left.is_empty() || start.elapsed() > 3 * PATIENCE {
                return;
            }
            for pid in left {
                if start.elapsed() > PATIENCE {
                    signal(pid, libc::SIGKILL);
                } else if !asked.contains(&pid) {
                    signal(pid, libc::SIGTERM);
                    signal(pid, libc::SIGCONT);
                    asked.push(pid);
                }
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.end_all();
    }
}

/// Whether somebody wants this to end.
pub fn interrupted() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// Waits for a while, unless somebody wants this to end.
pub fn pause(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        interrupted()?;
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Collects children that have ended, so that their CPU time counts.
fn reap() {
    // SAFETY: waits for any child, without a place for its status.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
}

fn signal(pid: u32, signal: libc::c_int) {
    // SAFETY: plain system call. The process was found below this one, which reaps its children itself: between the two
    // the id can become another process's only if its parent, below this one too, has reaped it in that moment.
    unsafe { libc::kill(pid as libc::pid_t, signal) };
}

/// All processes below one.
fn descendants(root: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name before it may hold anything.
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split(' ').nth(2)?.parse().ok());
        children.entry(parent.unwrap_or(0)).or_default().push(pid);
    }
    let (mut found, mut next) = (Vec::new(), vec![root]);
    while let Some(pid) = next.pop() {
        let below = children.get(&pid).cloned().unwrap_or_default();
        found.extend(&below);
        next.extend(below);
    }
    found
}

/// Starts a command in a session of its own, its errors written to a file.
pub fn spawn(command: &mut Command, errors: &Path, stdout: Stdio) -> Result<Child> {
    let errors = fs::File::create(errors)?;
    command.stdin(Stdio::null()).stdout(stdout).stderr(errors);
    // SAFETY: setsid and prctl may be called between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    command.spawn().with_context(|| format!("starting {command:?}"))
}

/// What a program says when it is ready.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ready {
    pub port: Option<String>,
    pub pids: Vec<String>,
    pub peer: Option<String>,
}

impl Ready {
    fn parse(line: &str) -> Option<Ready> {
        let mut words = line.split_whitespace();
        (words.next() == Some("ready")).then_some(())?;
        let mut ready = Ready::default();
        for word in words {
            match word.split_once('=')? {
                ("port", port) => ready.port = Some(port.into()),
                ("peer", port) => ready.peer = Some(port.into()),
                ("pid", pids) => ready.pids = pids.split(',').map(str::to_owned).collect(),
                _ => return None,
            }
        }
        Some(ready)
    }
}

/// Waits for a program to say that it is ready. Whatever it prints later is thrown away.
pub fn wait_until_ready(program: &mut Child) -> Result<Ready> {
    let mut out = BufReader::new(program.stdout.take().context("no pipe")?);
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        let first = out.read_line(&mut line).map(|_| line);
        if sender.send(first).is_ok() {
            let _ended = std::io::copy(&mut out, &mut std::io::sink());
        }
    });
    let start = Instant::now();
    loop {
        interrupted()?;
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => {
                let line = line?;
                return Ready::parse(&line).with_context(|| format!("it said {line:?} instead of ready"));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => bail!("it ended"),
            Err(_) if start.elapsed() > Duration::from_secs(120) => bail!("not ready within two minutes"),
            Err(_) => {}
        }
    }
}

/// Waits for a child to end, and says whether it ended well.
pub fn wait(child: &mut Child, at_most: Duration) -> Result<bool> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if interrupted().is_err() || start.elapsed() > at_most {
            child.kill()?;
            child.wait()?;
            interrupted()?;
            bail!("it did not end within {} s", at_most.as_secs());
        }
        thread::sleep(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_says_what_is_needed() {
        let ready = |port: Option<&str>, pids: &[&str]| Ready {
            port: port.map(str::to_owned),
            pids: pids.iter().map(|&pid| pid.to_owned()).collect(),
            peer: None,
        };
        assert_eq!(Ready::parse("ready\n"), Some(ready(None, &[])));
        assert_eq!(Ready::parse("ready port=80 pid=1,2\n"), Some(ready(Some("80"), &["1", "2"])));
        assert_eq!(Ready::parse("error: port 80\n"), None);
        assert_eq!(Ready::parse("ready 80\n"), None);
        assert_eq!(Ready::parse(""), None);
    }

    #[test]
    fn descendants_are_found_in_whatever_session() {
        let mut shell = Command::new("bash");
        let mut shell =
            shell.args(["-c", "setsid sleep 60 & echo $!; wait"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let sleep = line.trim().parse().unwrap();
        assert!(descendants(std::process::id()).contains(&sleep));
        assert!(descendants(shell.id()).contains(&sleep));
        for pid in descendants(shell.id()) {
            signal(pid, libc::SIGKILL);
        }
        shell.wait().unwrap();
    }
}
