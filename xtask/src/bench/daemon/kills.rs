//! The whole daemon, killed at random moments, while its receiver fails, takes messages without saying so, and hangs: what
//! is lost then, and what comes twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{Daemon, wait_for};
use crate::{bench::programs::Running, shell::output};

/// Busy for as long as it sleeps, about a window each.
const TARGET: &str = "
import time
while True:
    end = time.time() + 6
    while time.time() < end: pass
    time.sleep(6)
";
/// Rules that follow it, so that each change makes several messages.
const RULES: usize = 5;
/// How long a receiver hangs.
const HANGS: Duration = Duration::from_secs(60);
/// How long it may take until everything has been sent, when the receiver is well again.
const PATIENCE: Duration = Duration::from_secs(400);

/// What a receiver got, and how it behaves.
#[derive(Default)]
struct Receiver {
    /// How often each message has come.
    got: Mutex<BTreeMap<String, u32>>,
    /// It takes everything, and says so.
    is_well: AtomicBool,
}

impl Receiver {
    /// Takes one request, the `n`th.
    fn serve(&self, n: usize, mut stream: TcpStream) -> Option<()> {
        let body = body(&stream)?;
        let message: Value = serde_json::from_slice(&body).ok()?;
        let of = |message: &Value| message["message"].as_str().map(str::to_owned);
        let parts: Vec<String> = message["parts"].as_array().into_iter().flatten().filter_map(of).collect();
        let ids = if parts.is_empty() { of(&message).into_iter().collect() } else { parts };
        let well = self.is_well.load(Ordering::Relaxed);
        let (takes, answer) = match n % 6 {
            _ if well => (true, "200 OK"),
            1 => (false, "500 Away"),
            3 => (true, "500 Away"),
            4 => (true, ""),
            5 => {
                std::thread::sleep(HANGS);
                (false, "")
            }
            _ => (true, "200 OK"),
        };
        if takes {
            let mut got = self.got.lock().ok()?;
            ids.into_iter().for_each(|id| *got.entry(id).or_default() += 1);
        }
        if !answer.is_empty() {
            write!(stream, "HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").ok()?;
        }
        Some(())
    }
}

/// The body of a request.
fn body(stream: &TcpStream) -> Option<Vec<u8>> {
    let mut reader = BufReader::new(stream);
    let (mut line, mut length) = (String::new(), 0);
    while reader.read_line(&mut line).ok()? > 2 {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(body)
}

/// Kills a daemon so many times. Returns how many things went wrong.
pub fn trial(profiler: &Path, kills: u32) -> Result<u32> {
    let receiver = Arc::new(Receiver::default());
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}/hook", listener.local_addr()?);
    let serves = Arc::clone(&receiver);
    std::thread::spawn(move || {
        for (n, stream) in listener.incoming().flatten().enumerate() {
            let receiver = Arc::clone(&serves);
            std::thread::spawn(move || receiver.serve(n, stream));
        }
    });
    let mut target = Command::new("/usr/bin/python3");
    target.args(["-c", TARGET, "flapping"]).stdin(Stdio::null()).stdout(Stdio::null());
    let _target = Running(target.spawn()?);
    let mut config = "max_overhead = 100.0\n[[targets]]\nname = \"t\"\nargument = \"flapping\"\n".to_owned();
    for i in 0..RULES {
        config.push_str(&format!(
            "[rules.flaps-{i}]\nmetric = \"cpu_seconds\"\nwarning = 2.5\nclear = 2.5\nfor = \"0s\"\nwarmup = \"0s\"\n\
             keep_firing_for = \"0s\"\ncooldown = \"0s\"\nreceivers = [\"hook\"]\n"
        ));
    }
    config.push_str(&format!("[[receivers]]\nname = \"hook\"\ntype = \"webhook\"\nurl = \"{url}\"\n"));
    let dir = tempfile::tempdir()?;
    let dir = dir.path().join("daemon");
    let mut wrong = 0;
    let mut random = 7u32;
    for _ in 0..kills {
        let mut daemon = Daemon::start(profiler, &dir, &config, "5s")?;
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        std::thread::sleep(Duration::from_millis(u64::from(random >> 18)));
        if let Some(status) = daemon.child.try_wait()? {
            println!("  WRONG: it ended by itself: {status}");
            wrong += 1;
        }
        daemon.child.kill()?;
        daemon.child.wait()?;
    }
    receiver.is_well.store(true, Ordering::Relaxed);
    let daemon = Daemon::start(profiler, &dir, &config, "5s")?;
    wait_for("a window", PATIENCE, || daemon.get("/readyz").is_ok())?;
    // What fires goes on to change: what had been recorded by now must come.
    let recorded = recorded(&dir.join("state"))?;
    let lost = || -> Vec<String> {
        let Ok(got) = receiver.got.lock() else { return Vec::new() };
        recorded.iter().filter(|id| !got.contains_key(*id)).cloned().collect()
    };
    let all_came = wait_for("what was recorded", PATIENCE, || lost().is_empty());
    daemon.stop()?;
    let later = self::recorded(&dir.join("state"))?;
    let lost = lost().len();
    let got = receiver.got.lock().map_err(|_| anyhow::anyhow!("a thread failed"))?;
    let strangers = got.keys().filter(|id| !later.contains(*id)).count();
    let doubled = got.values().filter(|times| **times > 1).count();
    println!(
        "{kills} kills of the daemon: {} changes recorded, {} lost, {strangers} came that were not recorded, {doubled} came more \
         than once, by the same id",
        recorded.len(),
        lost,
    );
    Ok(wrong + u32::from(all_came.is_err()) + u32::from(strangers > 0) + u32::from(recorded.is_empty()))
}

/// Ids of the messages of all changes that the daemon has recorded.
fn recorded(state: &Path) -> Result<BTreeSet<String>> {
    let query = "import sqlite3, sys, json\n\
                 db = sqlite3.connect(sys.argv[1])\n\
                 for (body,) in db.execute('SELECT body FROM journal'): print(json.loads(body)['message'])";
    let found = output(Command::new("python3").args(["-c", query]).arg(state.join("alerts.sqlite")))
        .context("the journal")?;
    Ok(found.lines().map(str::to_owned).collect())
}
