//! The daemon on real servers: what it says of faults that are made, what it says of none, and what it costs.
//!
//! A redis, a PostgreSQL and a Node server under moderate load are watched by a daemon with a small configuration. First nothing
//! is wrong; then one fault after another is made in the Node server, and must give its alert once, and nothing else. After
//! that a daemon is killed again and again ([`kills`]), and daemons with more and more targets are measured.

mod kills;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::programs::{Running, free_port};
use crate::shell::{debian_packages, output};

#[derive(clap::Args)]
pub struct Args {
    /// Minutes in which nothing is wrong
    #[arg(long, default_value_t = 30)]
    quiet: u64,
    /// Length of a window
    #[arg(long, default_value = "30s")]
    window: String,
    /// Numbers of targets whose cost is measured; 0 for none
    #[arg(long, value_delimiter = ',', default_value = "1,20,200")]
    scale: Vec<usize>,
    /// Minutes of each of those
    #[arg(long, default_value_t = 5)]
    minutes: u64,
    /// Leave the trial of faults out
    #[arg(long)]
    no_faults: bool,
    /// How often a daemon with a bad receiver is killed at a random moment
    #[arg(long, default_value_t = 20)]
    kills: u32,
}

/// A server that does what it is told to.
const SERVER: &str = "
const http = require('http'), fs = require('fs'), crypto = require('crypto');
let stall, burning = false, storm, leak; const kept = [], open = [];
function busy(ms) { const end = Date.now() + ms; let x = 0; while (Date.now() < end) x += Math.sqrt(x + 1); return x; }
function stallLoop() { return busy(200); }
function burnCpu() { busy(8); if (burning) setImmediate(burnCpu); }
function failOften() { for (let i = 0; i < 200; i++) try { fs.openSync('/dev/null/' + i, 'r'); } catch {} }
function keepForever() { for (let i = 0; i < 200; i++) kept.push({ n: i, text: 'x'.repeat(1000) + i + Math.random() }); }
const faults = {
  '/stall': () => stall = setInterval(stallLoop, 500),
  '/burn': () => { burning = true; burnCpu(); },
  '/storm': () => storm = setInterval(failOften, 20),
  '/leak': () => leak = setInterval(keepForever, 50),
  '/descriptors': () => { while (open.length < 860) open.push(fs.openSync('/dev/null', 'r')); },
  '/stop': () => {
    clearInterval(stall); clearInterval(storm); clearInterval(leak); burning = false; kept.length = 0;
    open.splice(0).forEach(fd => fs.closeSync(fd));
  },
};
http.createServer((request, response) => {
  if (faults[request.url]) { faults[request.url](); response.end('ok'); return; }
  response.end(crypto.createHash('sha256').update(request.url).digest('hex'));
}).listen(Number(process.argv[2]), '127.0.0.1', () => console.log('ready'));
";

/// Asks it 50 times a second.
const LOAD: &str = "
const http = require('http'), agent = new http.Agent({ keepAlive: true, maxSockets: 8 });
setInterval(() => http.get({ port: process.argv[2], path: '/' + Math.random(), agent }, response => response.resume())
  .on('error', () => {}), 20);
";

/// What is made, the rule that says so, and how long that may take, windows.
const FAULTS: [(&str, &str, u32); 5] = [
    ("stall", "event-loop-delay", 8),
    ("burn", "event-loop-busy", 8),
    ("storm", "syscall-errors", 8),
    ("descriptors", "descriptors", 8),
    ("leak", "memory-growth", 24),
];

/// Alerts that speak of the machine, not of the target: others may be using it.
const OF_THE_MACHINE: [&str; 1] = ["cpu-starvation"];

pub fn run(args: &Args, profiler: &Path) -> Result<()> {
    debian_packages(&["nodejs", "redis-server", "postgresql", "prometheus"])?;
    let mut failed = if args.no_faults { 0 } else { trial(profiler, args)? };
    if args.kills > 0 {
        failed += kills::trial(profiler, args.kills)?;
    }
    for &targets in args.scale.iter().filter(|targets| **targets > 0) {
        scale(profiler, targets, args)?;
    }
    if failed > 0 {
        bail!("{failed} things went wrong");
    }
    Ok(())
}

/// A daemon with its folder.
struct Daemon {
    child: Child,
    dir: PathBuf,
    port: u16,
}

impl Daemon {
    fn start(profiler: &Path, dir: &Path, targets: &str, window: &str) -> Result<Daemon> {
        let port = free_port();
        fs::create_dir_all(dir)?;
        let config = format!(
            "[daemon]\nstate_dir = \"{0}/state\"\nlisten = \"127.0.0.1:{port}\"\nwindow = \"{window}\"\n{targets}\
             [[receivers]]\nname = \"file\"\ntype = \"file\"\npath = \"{0}/alerts.jsonl\"\n",
            dir.display()
        );
        let file = dir.join("profiler.toml");
        fs::write(&file, config)?;
        let log = fs::File::create(dir.join("daemon.log"))?;
        let child = Command::new(profiler)
            .args(["daemon", "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()?;
        let daemon = Daemon { child, dir: dir.to_owned(), port };
        wait_for("the API", Duration::from_secs(60), || daemon.get("/healthz").is_ok())?;
        Ok(daemon)
    }

    fn get(&self, path: &str) -> Result<String> {
        get(self.port, path)
    }

    /// Messages so far.
    fn told(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.dir.join("alerts.jsonl")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn metric(&self, name: &str) -> Option<f64> {
        let text = self.get("/metrics").ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    fn stop(mut self) -> Result<()> {
        // SAFETY: plain system call on a child that has not been waited for.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        self.child.wait()?;
        Ok(())
    }
}

fn get(port: u16, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("{path}: {}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}

fn wait_for(what: &str, patience: Duration, mut is_there: impl FnMut() -> bool) -> Result<()> {
    let begun = Instant::now();
    while !is_there() {
        if begun.elapsed() > patience {
            bail!("{what}: not within {} s", patience.as_secs());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

fn trial(profiler: &Path, args: &Args) -> Result<u32> {
    let dir = tempfile::tempdir()?;
    let path = |name: &str| dir.path().join(name);
    let port = free_port();
    fs::write(path("server.js"), SERVER)?;
    fs::write(path("load.js"), LOAD)?;
    let quiet = |command: &mut Command| -> Result<Running> {
        Ok(Running(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
    };
    let limited = format!("ulimit -n 1000; exec node {} {port}", path("server.js").display());
    let _server = quiet(Command::new("sh").args(["-c", &limited]))?;
    wait_for("the server", Duration::from_secs(30), || get(port, "/x").is_ok())?;
    let _load = quiet(Command::new("node").arg(path("load.js")).arg(port.to_string()))?;
    let socket = path("redis.sock");
    let _redis =
        quiet(Command::new("redis-server").args(["--port", "0", "--save", "", "--unixsocket"]).arg(&socket))?;
    let asks = format!(
        "while sleep 0.5; do redis-benchmark -s {} -n 200 -c 2 -q -t get,set; done",
        socket.display()
    );
    let _redis_load = quiet(Command::new("sh").args(["-c", &asks]))?;
    let (_postgres, _postgres_load) = postgres(dir.path())?;

    let targets = format!(
        "[[targets]]\nname = \"redis\"\ncomm = \"redis-server\"\n[[targets]]\nname = \"postgres\"\ncomm = \"postgres\"\n\
         [[targets]]\nname = \"web\"\ncomm = \"node\"\nargument = \"{}\"\n",
        path("server.js").display()
    );
    let daemon = Daemon::start(profiler, &path("daemon"), &targets, &args.window)?;
    let mut failed = 0;
    let mut said = 0;
    // What is said in a phase, but for what others on this machine do.
    let mut news = |daemon: &Daemon| -> Vec<Value> {
        let told = daemon.told();
        let new = told[said.min(told.len())..].to_vec();
        said = told.len();
        new.into_iter()
            .filter(|message| !OF_THE_MACHINE.iter().any(|rule| message["rule"] == *rule))
            .collect()
    };
    println!("nothing is wrong for {} min", args.quiet);
    std::thread::sleep(Duration::from_secs(60 * args.quiet));
    for message in news(&daemon) {
        println!("  WRONG: {} {}", message["change"], words(&message));
        failed += 1;
    }
    lint(&daemon)?;
    for (fault, rule, windows) in FAULTS {
        let window = window_s(&args.window)?;
        let begun = Instant::now();
        get(port, &format!("/{fault}"))?;
        let is_of_rule =
            |message: &Value, change: &str| message["rule"] == rule && message["change"] == change;
        let patience = Duration::from_secs_f64(window * f64::from(windows));
        let fired =
            wait_for(rule, patience, || daemon.told().iter().any(|message| is_of_rule(message, "fired")));
        let latency = begun.elapsed().as_secs_f64();
        get(port, "/stop")?;
        let resolved = wait_for("the end", Duration::from_secs_f64(60.0 + window * 8.0), || {
            daemon.told().iter().any(|message| is_of_rule(message, "resolved"))
        });
        let news = news(&daemon);
        let of_rule: Vec<&Value> = news.iter().filter(|message| message["rule"] == rule).collect();
        let others: Vec<&Value> = news.iter().filter(|message| message["rule"] != rule).collect();
        let changes: Vec<&str> = of_rule.iter().filter_map(|message| message["change"].as_str()).collect();
        println!("{fault}: {changes:?} after {latency:.0} s");
        for message in of_rule.iter().take(1) {
            println!("  {}", words(message));
        }
        for message in &others {
            println!("  WRONG: {} {}", message["change"], words(message));
        }
        let fires = changes.iter().filter(|change| **change == "fired").count();
        failed += u32::from(fired.is_err() || resolved.is_err() || fires != 1) + others.len() as u32;
    }
    println!(
        "{}",
        daemon
            .get("/metrics")?
            .lines()
            .filter(|line| line.starts_with("profiler_agent_"))
            .collect::<Vec<_>>()
            .join("\n")
    );
    daemon.stop()?;
    Ok(failed)
}

fn words(message: &Value) -> String {
    let cause = message["findings"][0]["title"].as_str().or(message["verdict"].as_str()).unwrap_or_default();
    format!("{} of {} {}: {cause}", message["rule"], message["target"], message["value"])
}

/// Prometheus' own tool reads what is exported.
fn lint(daemon: &Daemon) -> Result<()> {
    let metrics = daemon.get("/metrics")?;
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    promtool.stdin.take().context("a pipe")?.write_all(metrics.as_bytes())?;
    let said = promtool.wait_with_output()?;
    if !said.status.success() {
        bail!("promtool check metrics: {}", String::from_utf8_lossy(&said.stderr));
    }
    println!("promtool check metrics: clean, {} lines", metrics.lines().count());
    Ok(())
}

fn postgres(dir: &Path) -> Result<(Running, Running)> {
    // It refuses to run as root.
    let nobody = |program: &Path| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]).arg(program);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let versions = fs::read_dir("/usr/lib/postgresql")?.filter_map(Result::ok);
    let bin = versions.map(|entry| entry.path().join("bin")).max().context("no PostgreSQL")?;
    let home = dir.join("postgres");
    fs::create_dir(&home)?;
    output(Command::new("chown").arg("nobody:nogroup").arg(&home))?;
    output(Command::new("chmod").arg("755").arg(dir))?;
    let data = home.join("data");
    if !nobody(&bin.join("initdb"))
        .args(["--auth=trust", "--username=me", "--no-sync", "-D"])
        .arg(&data)
        .status()?
        .success()
    {
        bail!("initdb failed");
    }
    let mut server = nobody(&bin.join("postgres"));
    let server =
        server.args(["-c", "listen_addresses=", "-c", "fsync=off", "-k"]).arg(&home).arg("-D").arg(&data);
    let server = Running(server.spawn()?);
    let client = |program: &str| {
        let mut command = Command::new(program);
        command
            .args(["-U", "me", "-h"])
            .arg(&home)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    };
    wait_for("postgres", Duration::from_secs(60), || {
        client("pg_isready").status().is_ok_and(|status| status.success())
    })?;
    client("pgbench").args(["-i", "-s", "1", "postgres"]).status()?;
    let load =
        Running(client("pgbench").args(["-c", "2", "-R", "20", "-T", "100000", "-n", "postgres"]).spawn()?);
    Ok((server, load))
}

fn window_s(text: &str) -> Result<f64> {
    let (number, unit) = text.split_at(text.len() - 1);
    let number: f64 = number.parse().with_context(|| format!("`{text}`: write it like 30s"))?;
    Ok(match unit {
        "s" => number,
        "m" => 60.0 * number,
        _ => bail!("`{text}`: write it like 30s"),
    })
}

/// What watching costs: so many processes that do a little, each a target of its own.
fn scale(profiler: &Path, targets: usize, args: &Args) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let script = "import sys, time\nwhile True:\n    sum(i * i for i in range(2000)); time.sleep(0.25)\n";
    let mut running = Vec::new();
    let mut config = String::new();
    for i in 0..targets {
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", script, &format!("target-{i}")]).stdin(Stdio::null()).stdout(Stdio::null());
        running.push(Running(command.spawn()?));
        config.push_str(&format!("[[targets]]\nname = \"t{i}\"\nargument = \"target-{i}\"\n"));
    }
    let daemon = Daemon::start(profiler, &dir.path().join("daemon"), &config, &args.window)?;
    wait_for("a window", Duration::from_secs(300), || daemon.get("/readyz").is_ok())?;
    let read = || -> Option<(f64, f64, f64)> {
        Some((
            daemon.metric("profiler_agent_cpu_seconds_total")?,
            daemon.metric("profiler_agent_probes_seconds_total")?,
            daemon.metric("profiler_agent_windows_total")?,
        ))
    };
    let before = read().context("no metrics")?;
    let begun = Instant::now();
    let mut memory = Vec::new();
    while begun.elapsed() < Duration::from_secs(60 * args.minutes) {
        std::thread::sleep(Duration::from_secs(5));
        memory.push(rss_mb(daemon.child.id())?);
    }
    let after = read().context("no metrics")?;
    let seconds = begun.elapsed().as_secs_f64();
    let mut times: Vec<f64> = Vec::new();
    for _ in 0..300 {
        let begun = Instant::now();
        daemon.get("/api/v1/targets")?;
        times.push(begun.elapsed().as_secs_f64());
        std::thread::sleep(Duration::from_millis(10));
    }
    times.sort_by(f64::total_cmp);
    let (bytes, series) = history(&daemon.dir.join("state"))?;
    // Each series has a value of each window.
    let points = series * after.2 as u64;
    let windows = after.2 - before.2;
    println!(
        "{targets} targets: CPU {:.1} % of one + {:.1} % in the kernel, {:.2} s per window ({windows} windows in {seconds:.0} s); \
         memory of the daemon {:.0} to {:.0} MB, peak with a window {:.0} MB; seen {:.1} %; shed level {}; \
         history {:.1} bytes a value ({points} values); API p99 {:.1} ms",
        100.0 * (after.0 - before.0) / seconds,
        100.0 * (after.1 - before.1) / seconds,
        (after.0 - before.0) / windows.max(1.0),
        memory.iter().copied().fold(f64::INFINITY, f64::min),
        memory.iter().copied().fold(0.0, f64::max),
        daemon.metric("profiler_agent_peak_memory_bytes").unwrap_or_default() / 1e6,
        100.0 * daemon.metric("profiler_agent_seen_ratio").unwrap_or_default(),
        daemon.metric("profiler_agent_shed_level").unwrap_or_default(),
        bytes as f64 / points.max(1) as f64,
        1e3 * times[times.len() * 99 / 100],
    );
    daemon.stop()
}

/// Resident memory of a process, MB.
fn rss_mb(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: f64 = line.split_whitespace().next().context("no VmRSS")?.parse()?;
    Ok(kilobytes * 1024.0 / 1e6)
}

/// Bytes of the compressed chunks on disk, and the series in them.
fn history(state: &Path) -> Result<(u64, u64)> {
    let query = "import sqlite3, sys, glob\n\
                 n = b = 0\n\
                 for f in glob.glob(sys.argv[1] + '/history-*.sqlite'):\n \
                 r = sqlite3.connect(f).execute('SELECT count(*), sum(length(points)) FROM series').fetchone()\n \
                 n += r[0]; b += r[1] or 0\n\
                 print(n, b)";
    let found = output(Command::new("python3").args(["-c", query]).arg(state))?;
    let mut numbers = found.split_whitespace().map(str::parse::<u64>);
    let (Some(Ok(series)), Some(Ok(bytes))) = (numbers.next(), numbers.next()) else { bail!("no history") };
    Ok((bytes, series))
}
