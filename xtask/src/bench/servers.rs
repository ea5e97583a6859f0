//! What those who wait for a server feel of the profiler: requests a second and the 99th percentile of their times, with
//! it and without it in turn.

use std::{
    any::Any,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};

use super::{
    interrupt, median,
    programs::{self, Postgres, Running},
    report::{Better, Report},
    spread, wait,
};
use crate::shell::{debian_packages, output};

#[derive(clap::Args)]
pub struct Args {
    /// Pairs of runs, with and without, of each server in each way
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Only servers whose names have this in them (repeatable)
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Only with the defaults
    #[arg(long)]
    defaults: bool,
    #[command(flatten)]
    runs: Runs,
}

/// How long a load runs, and how wide it is.
#[derive(clap::Args)]
pub struct Runs {
    /// Seconds of each run
    #[arg(long, default_value_t = 6)]
    pub seconds: u64,
    /// Seconds of load before the profiler's cost is measured: it begins with what it does once, and learns what it costs
    #[arg(long, default_value_t = 4)]
    pub settle: u64,
    /// Connections of the load
    #[arg(long, default_value_t = 16)]
    pub connections: usize,
}

impl Args {
    /// As short as it tells anything.
    pub fn quick() -> Args {
        let runs = Runs { seconds: 2, settle: 1, connections: 16 };
        Args { rounds: 1, only: Vec::new(), defaults: true, runs }
    }
}

/// A way to look: its name, and the profiler's arguments.
pub type Way = (&'static str, &'static [&'static str]);

/// The ways whose cost users ask for.
const WAYS: [Way; 3] =
    [("defaults", &[]), ("--syscalls on", &["--syscalls=on"]), ("--alloc full", &["--alloc", "full"])];

/// What users should keep with the defaults, % of throughput.
const KEPT: f64 = 99.0;

/// What a load has seen.
pub struct Loaded {
    /// Answers a second.
    pub rate: f64,
    /// 99th percentile of the times to an answer, ms.
    pub p99_ms: f64,
}

/// A server and what loads it for so many seconds.
pub struct Server {
    /// Its name.
    pub name: &'static str,
    /// The arguments that have the profiler profile it.
    pub target: Vec<String>,
    /// Loads it.
    pub load: Box<dyn Fn(u64) -> Result<Loaded>>,
    _runs: Box<dyn Any>,
}

pub fn run(args: &Args, profiler: &Path, report: &mut Report) -> Result<()> {
    debian_packages(&["nginx", "nodejs", "wrk", "redis-server", "redis-tools", "postgresql"])?;
    let dir = tempfile::tempdir()?;
    let ways = if args.defaults { &WAYS[..1] } else { &WAYS };
    let starts: [(&str, &dyn Fn() -> Result<Server>); 4] = [
        ("redis", &|| redis(&args.runs)),
        ("nginx", &|| nginx(dir.path(), &args.runs, &Tls::default())),
        ("PostgreSQL", &|| postgres(&args.runs)),
        ("Node http", &|| node(&args.runs, &Tls::default())),
    ];
    for (name, start) in starts {
        if args.only.is_empty() || args.only.iter().any(|only| name.contains(only.as_str())) {
            for (way, kept) in
                ways.iter().zip(measure(&start()?, ways, args.rounds, &args.runs, profiler, report)?)
            {
                if way.0 == WAYS[0].0 {
                    report.goal(format!("{name} keeps {KEPT} % with the defaults"), kept >= KEPT);
                }
            }
        }
    }
    Ok(())
}

/// Throughput kept and change of the 99th percentile in each way; returns the medians of the throughput kept, %.
pub fn measure(
    server: &Server,
    ways: &[Way],
    rounds: usize,
    runs: &Runs,
    profiler: &Path,
    report: &mut Report,
) -> Result<Vec<f64>> {
    let dir = tempfile::tempdir()?;
    let json = dir.path().join("x.json");
    let mut kept: Vec<Vec<f64>> = vec![Vec::new(); ways.len()];
    let mut tail: Vec<Vec<f64>> = vec![Vec::new(); ways.len()];
    (server.load)(2)?; // warm
    for round in 0..rounds {
        for step in 0..ways.len() {
            let way = (round + step) % ways.len();
            // Before and after, as machines drift.
            let before = (server.load)(runs.seconds)?;
            let child = profile(profiler, &server.target, ways[way].1, &json)?;
            if runs.settle > 0 {
                (server.load)(runs.settle)?;
            }
            let during = (server.load)(runs.seconds)?;
            interrupt(&child);
            wait(&child)?;
            let after = (server.load)(runs.seconds)?;
            kept[way].push(200.0 * during.rate / (before.rate + after.rate));
            tail[way].push(200.0 * during.p99_ms / (before.p99_ms + after.p99_ms));
        }
    }
    println!("{}, {} connections: median of {rounds} (range)", server.name, runs.connections);
    println!("  throughput kept, %         p99, % of that without     ");
    for ((way, _), (kept, tail)) in ways.iter().zip(kept.iter().zip(&tail)) {
        println!("  {:<26} {:<26} {way}", spread(kept, 1), spread(tail, 0));
        report.figure(format!("servers/{}: throughput kept/{way}", server.name), "%", Better::Higher, kept);
        report.figure(format!("servers/{}: p99/{way}", server.name), "% of alone", Better::Lower, tail);
    }
    Ok(kept.iter().map(|kept| median(kept)).collect())
}

/// Starts the profiler on a target and waits until it looks.
pub fn profile(profiler: &Path, target: &[String], more: &[&str], json: &Path) -> Result<Child> {
    let live = json.with_extension("live");
    let mut command = Command::new(profiler);
    command.args(["-i500ms"]).args(target).arg("-o").arg(json).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let child = command.stderr(fs::File::create(&live)?).spawn()?;
    while fs::metadata(&live)?.len() == 0 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    Ok(child)
}

/// A key and its certificate, or none.
#[derive(Default)]
pub struct Tls(Vec<PathBuf>);

impl Tls {
    /// Made in a folder.
    pub fn new(dir: &Path) -> Result<Tls> {
        let [key, cert] = ["key", "cert"].map(|name| dir.join(name));
        let mut make = Command::new("openssl");
        make.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
        output(make.args(["-subj", "/CN=localhost", "-keyout"]).arg(&key).arg("-out").arg(&cert))?;
        Ok(Tls(vec![key, cert]))
    }

    fn scheme(&self) -> &'static str {
        if self.0.is_empty() { "http" } else { "https" }
    }
}

/// A small file from nginx.
pub fn nginx(dir: &Path, runs: &Runs, tls: &Tls) -> Result<Server> {
    fs::write(dir.join("index.html"), "hello")?;
    let port = programs::free_port();
    let (listen, ssl) = match &tls.0[..] {
        [key, cert] => {
            ("ssl", format!("ssl_certificate {}; ssl_certificate_key {};", cert.display(), key.display()))
        }
        _ => ("", String::new()),
    };
    let config = format!(
        "access_log off; keepalive_requests 1000000000; {ssl} server {{ listen 127.0.0.1:{port} {listen}; root .; }}"
    );
    // Without a master: killed, it would leave its worker behind.
    let nginx = programs::nginx_with(dir, "master_process off;", port, &config);
    Ok(served("nginx", nginx, port, runs, tls))
}

/// A Node server that answers at once.
pub fn node(runs: &Runs, tls: &Tls) -> Result<Server> {
    const NODE: &str = "
const [key, cert] = process.argv.slice(1).map((path) => require('fs').readFileSync(path));
const answer = (request, response) => response.end('hello');
const server = key ? require('https').createServer({ key, cert }, answer) : require('http').createServer(answer);
server.listen(0, '127.0.0.1', 65535, () => console.log(server.address().port));
";
    let files: Vec<&Path> = tls.0.iter().map(PathBuf::as_path).collect();
    let (node, port) = programs::node(NODE, &files);
    Ok(served("Node http", node, port, runs, tls))
}

fn served(name: &'static str, server: Running, port: u16, runs: &Runs, tls: &Tls) -> Server {
    let (connections, url) = (runs.connections, format!("{}://127.0.0.1:{port}/", tls.scheme()));
    Server {
        name,
        target: vec!["--follow".into(), "--pid".into(), server.pid()],
        load: Box::new(move |seconds| wrk(&url, connections, seconds)),
        _runs: Box::new(server),
    }
}

/// What `wrk` sees.
pub fn wrk(url: &str, connections: usize, seconds: u64) -> Result<Loaded> {
    let mut wrk = Command::new("wrk");
    wrk.args(["-t1", "--latency", &format!("-c{connections}"), &format!("-d{seconds}s"), url]);
    let text = output(&mut wrk)?;
    let word = |start: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(start));
        line.map(str::trim).with_context(|| format!("wrk does not say {start}"))
    };
    Ok(Loaded { rate: word("Requests/sec:")?.parse()?, p99_ms: milliseconds(word("99%")?)? })
}

/// A time as `wrk` writes it: `1.5us`, `2.00ms`, `1.02s`.
fn milliseconds(text: &str) -> Result<f64> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_alphabetic()).unwrap_or(text.len()));
    let ms = match unit {
        "us" => 1e-3,
        "ms" => 1.0,
        "s" => 1e3,
        "m" => 60e3,
        unit => anyhow::bail!("wrk says {text:?}: what is {unit:?}?"),
    };
    Ok(number.parse::<f64>()? * ms)
}

/// Small values out of redis.
fn redis(runs: &Runs) -> Result<Server> {
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("redis.sock");
    let mut server = Command::new("redis-server");
    server.args(["--port", "0", "--save", "", "--unixsocket"]).arg(&socket).current_dir(&dir);
    let server = Running::start(programs::quiet(&mut server));
    programs::wait_until("redis listens", || socket.exists());
    let (pid, connections) = (server.pid(), runs.connections);
    // Its load is so many requests, not so many seconds: what it did the last time tells how many that are.
    let last_rate = std::cell::Cell::new(50_000.0);
    let load = move |seconds: u64| {
        let requests = (last_rate.get() * seconds as f64).max(1000.0) as u64;
        let mut load = Command::new("redis-benchmark");
        load.args(["--csv", "-t", "get", "-c", &connections.to_string(), "-n", &requests.to_string(), "-s"]);
        let text = output(load.arg(&socket))?;
        let line =
            text.lines().rfind(|line| line.starts_with("\"GET\"")).context("what redis-benchmark says")?;
        // Test, requests a second, times in ms: mean, least, p50, p95, p99, most.
        let fields: Vec<&str> = line.split(',').map(|field| field.trim_matches('"')).collect();
        let number = |at: usize| -> Result<f64> { Ok(fields.get(at).context("a column")?.parse()?) };
        last_rate.set(number(1)?);
        Ok(Loaded { rate: number(1)?, p99_ms: number(6)? })
    };
    let target = vec!["--pid".into(), pid];
    Ok(Server { name: "redis", target, load: Box::new(load), _runs: Box::new((server, dir)) })
}

/// A row by its key, again and again.
fn postgres(runs: &Runs) -> Result<Server> {
    let database = Postgres::start(&[]);
    output(database.client("pgbench").args(["-q", "-i", "-s", "1", "postgres"]))?;
    let (clients, pid) = (runs.connections.to_string(), database.pid());
    let logs = tempfile::tempdir()?;
    let load = move |seconds: u64| {
        let mut load = database.client("pgbench");
        load.args([
            "-n",
            "-S",
            "-M",
            "prepared",
            "-c",
            &clients,
            "-T",
            &seconds.to_string(),
            "-l",
            "postgres",
        ]);
        output(load.current_dir(&logs))?;
        // Client, transaction, us, …
        let mut us: Vec<u64> = Vec::new();
        for log in fs::read_dir(&logs)? {
            let log = log?.path();
            let text = fs::read_to_string(&log)?;
            us.extend(text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<u64>().ok()));
            fs::remove_file(log)?;
        }
        us.sort_unstable();
        let p99 = *us.get(us.len() * 99 / 100).context("pgbench logged no transaction")?;
        Ok(Loaded { rate: us.len() as f64 / seconds as f64, p99_ms: p99 as f64 / 1e3 })
    };
    let target = vec!["--follow".into(), "--pid".into(), pid];
    Ok(Server { name: "PostgreSQL", target, load: Box::new(load), _runs: Box::new(()) })
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_of_wrk() {
        let ms = ["1.50us", "2.00ms", "1.02s"].map(|text| super::milliseconds(text).unwrap());
        assert_eq!(ms, [0.0015, 2.0, 1020.0]);
        assert!(super::milliseconds("3").is_err());
    }
}
