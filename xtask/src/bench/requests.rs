//! What watching requests costs servers that do little else than answer: the requests a second that they keep, and the
//! profiler's memory with many connections.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{build_profiler, interrupt, median, programs, spread, wait};
use crate::shell::{debian_packages, output};

#[derive(clap::Args)]
pub struct Args {
    /// The profiler to try, instead of building it
    #[arg(long, value_name = "FILE")]
    profiler: Option<PathBuf>,
    /// Rounds; in each every server runs alone, and under the profiler in its ways
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Seconds of each run
    #[arg(long, default_value_t = 6)]
    seconds: u64,
    /// Seconds of load before the profiler's cost is measured: it begins with what it does once, and learns what it costs
    #[arg(long, default_value_t = 4)]
    settle: u64,
    /// Connections of the load
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Connections with which the profiler's memory is measured; none if zero
    #[arg(long, default_value_t = 10_000)]
    many: usize,
    /// Encrypt, and look inside
    #[arg(long)]
    tls: bool,
}

/// The ways to look, and the profiler's arguments for each.
const WAYS: [(&str, &[&str]); 4] = [
    ("as usual", &[]),
    ("--requests on", &["--requests", "on"]),
    ("only requests", &["--requests", "on", "--waits", "off", "--syscalls=off", "--alloc", "off"]),
    ("--requests off", &["--requests", "off"]),
];
/// The ways to look at encrypted ones.
const TLS_WAYS: [(&str, &[&str]); 3] = [
    ("--requests on", &["--requests", "on"]),
    ("--requests on --tls", &["--requests", "on", "--tls"]),
    (
        "only requests, --tls",
        &["--requests", "on", "--tls", "--waits", "off", "--syscalls=off", "--alloc", "off"],
    ),
];
/// Throughput that must be kept, %. Inside TLS it is told, and no goal.
const KEPT: f64 = 95.0;
/// Memory that the profiler may take with many connections, MB.
const MEMORY_MB: f64 = 300.0;

/// A Node server that answers at once; with a key and a certificate encrypted.
const NODE: &str = "
const [key, cert] = process.argv.slice(1).map((path) => require('fs').readFileSync(path));
const answer = (request, response) => response.end('hello');
const server = key ? require('https').createServer({ key, cert }, answer) : require('http').createServer(answer);
server.listen(0, '127.0.0.1', 65535, () => console.log(server.address().port));
";

pub fn run(args: &Args) -> Result<()> {
    debian_packages(&["nginx", "nodejs", "wrk"])?;
    let profiler = match &args.profiler {
        Some(profiler) => profiler.clone(),
        None => build_profiler()?,
    };
    let mut missed = 0;
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("index.html"), "hello")?;
    let port = programs::free_port();
    let files = ["key", "cert"].map(|name| dir.path().join(name));
    let [key, cert] = &files;
    if args.tls {
        let mut make = Command::new("openssl");
        make.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
        output(make.args(["-subj", "/CN=localhost", "-keyout"]).arg(key).arg("-out").arg(cert))?;
    }
    let (listen, ssl) = match args.tls {
        true => {
            ("ssl", format!("ssl_certificate {}; ssl_certificate_key {};", cert.display(), key.display()))
        }
        false => ("", String::new()),
    };
    // Without a master: killed, it would leave its worker behind.
    let nginx = programs::nginx_with(
        dir.path(),
        "master_process off;",
        port,
        &format!(
            "access_log off; keepalive_requests 1000000000; {ssl}
             server {{ listen 127.0.0.1:{port} {listen}; root .; }}"
        ),
    );
    missed += cost("nginx", &nginx.pid(), port, &profiler, args)?;
    drop(nginx);
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).filter(|_| args.tls).collect();
    let (node, port) = programs::node(NODE, &files);
    missed += cost("Node http", &node.pid(), port, &profiler, args)?;
    if args.many > 0 && !args.tls {
        missed += memory(&node.pid(), port, &profiler, args)?;
    }
    if missed > 0 {
        bail!("{missed} goals missed");
    }
    Ok(())
}

/// Requests a second that `wrk` gets answered.
fn load(port: u16, connections: usize, seconds: u64, tls: bool) -> Result<f64> {
    let scheme = if tls { "https" } else { "http" };
    let text = output(Command::new("wrk").args([
        "-t1",
        &format!("-c{connections}"),
        &format!("-d{seconds}s"),
        &format!("{scheme}://127.0.0.1:{port}/"),
    ]))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Requests/sec:")).context("what wrk says")?;
    Ok(line.trim().parse()?)
}

/// Starts the profiler on a process and waits until it looks.
fn profile(profiler: &Path, pid: &str, more: &[&str], json: &Path) -> Result<Child> {
    let live = json.with_extension("live");
    let mut command = Command::new(profiler);
    command.args(["-i500ms", "--follow", "--pid", pid, "-o"]).arg(json).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let child = command.stderr(std::fs::File::create(&live)?).spawn()?;
    while std::fs::metadata(&live)?.len() == 0 {
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(child)
}

/// Throughput kept; returns the goals missed.
fn cost(name: &str, pid: &str, port: u16, profiler: &Path, args: &Args) -> Result<usize> {
    let dir = tempfile::tempdir()?;
    let json = dir.path().join("x.json");
    let ways: &[(&str, &[&str])] = if args.tls { &TLS_WAYS } else { &WAYS };
    let mut kept: Vec<Vec<f64>> = vec![Vec::new(); ways.len()];
    let load = |seconds: u64| load(port, args.connections, seconds, args.tls);
    load(2)?; // warm
    for round in 0..args.rounds {
        for step in 0..ways.len() {
            let way = (round + step) % ways.len();
            // Before and after, as machines drift.
            let before = load(args.seconds)?;
            let child = profile(profiler, pid, ways[way].1, &json)?;
            if args.settle > 0 {
                load(args.settle)?;
            }
            let during = load(args.seconds)?;
            interrupt(&child);
            wait(&child)?;
            let after = load(args.seconds)?;
            kept[way].push(200.0 * during / (before + after));
        }
    }
    println!(
        "{name}, {} connections: throughput kept, %, median of {} (range)",
        args.connections, args.rounds
    );
    let mut missed = 0;
    for ((way, _), kept) in ways.iter().zip(&kept) {
        let median = median(kept);
        let verdict = match median >= KEPT {
            true => "met   ",
            false if args.tls => "      ",
            false => "MISSED",
        };
        missed += usize::from(median < KEPT && !args.tls);
        println!("{verdict}  {}  {way}", spread(kept, 1));
    }
    Ok(missed)
}

/// The profiler's memory with many connections; returns the goals missed.
fn memory(pid: &str, port: u16, profiler: &Path, args: &Args) -> Result<usize> {
    let dir = tempfile::tempdir()?;
    let json = dir.path().join("x.json");
    let child = profile(profiler, pid, &["--requests", "on"], &json)?;
    let rate = load(port, args.many, 2 * args.seconds, false)?;
    interrupt(&child);
    wait(&child)?;
    let profile: Value = serde_json::from_str(&std::fs::read_to_string(&json)?)?;
    let peak_mb = profile["cost"]["agent_peak_rss_bytes"].as_f64().context("the profiler's memory")? / 1e6;
    let lost = |reason: &str| {
        let losses = profile["losses"].as_array().cloned().unwrap_or_default();
        losses
            .iter()
            .filter(|loss| loss["reason"] == reason)
            .filter_map(|loss| loss["count"].as_u64())
            .sum::<u64>()
    };
    let peers = profile["requests"]["peers"].as_array().cloned().unwrap_or_default();
    let seen: u64 = peers.iter().filter_map(|peer| peer["first"]["count"].as_u64()).sum();
    let verdict = if peak_mb <= MEMORY_MB { "met   " } else { "MISSED" };
    println!(
        "{verdict}  {peak_mb:>6.1} MB  the profiler's peak with {} connections, {rate:.0} requests/s by wrk; {seen} requests seen, \
         without room: {} connections, {} peers",
        args.many,
        lost("connections_full"),
        lost("peers_full"),
    );
    Ok(usize::from(peak_mb > MEMORY_MB))
}
