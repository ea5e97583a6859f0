//! Requests as servers and clients log them themselves, and as the request probe tells them from outside.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{ChildStdout, Command, Stdio},
    sync::{Barrier, Mutex},
    thread,
    time::Duration,
};

use common::{Outputs, Profile, Profiling, Running, kernel_ready, programs, which};
use serde_json::Value;

const MS: f64 = 1e6;

/// A server's own log has what it waits for a CPU between two of its lines, and where a load runs beside it that is much.
static LOADED: Mutex<()> = Mutex::new(());

fn source(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "tests", "workloads", "requests", name].iter().collect()
}

/// A server that prints its port first, and what it logged when it is asked for `/quit`.
struct Server {
    run: Running,
    out: BufReader<ChildStdout>,
    port: u16,
}

impl Server {
    fn start(interpreter: &str, script: &str, args: &[String]) -> Server {
        let mut command = Command::new(which(interpreter).unwrap());
        command.arg(source(script)).args(args);
        Server::begin(&mut command)
    }

    fn begin(command: &mut Command) -> Server {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut run = Running::start(command);
        let mut out = BufReader::new(run.0.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        Server { run, out, port: line.trim().parse().unwrap() }
    }

    fn connect(&self) -> BufReader<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        BufReader::new(stream)
    }

    /// Ends it; what it logged: path and ns.
    fn quit(self) -> Vec<(String, f64)> {
        let mut stream = self.connect();
        stream.get_mut().write_all(b"GET /quit HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        self.logged()
    }

    /// What it logged when it was ended.
    fn logged(mut self) -> Vec<(String, f64)> {
        let mut text = String::new();
        self.out.read_to_string(&mut text).unwrap();
        self.run.0.wait().unwrap();
        serde_json::from_str(text.trim()).unwrap_or_default()
    }
}

/// Asks over a connection that stays open; the status.
fn get(stream: &mut BufReader<TcpStream>, path: &str) -> u16 {
    write!(stream.get_mut(), "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let (mut status, mut length) = (0, 0);
    let mut line = String::new();
    loop {
        line.clear();
        stream.read_line(&mut line).unwrap();
        let text = line.trim_end();
        if let Some(rest) = text.strip_prefix("HTTP/1.1 ") {
            status = rest[..3].parse().unwrap();
        } else if let Some(rest) = text.to_ascii_lowercase().strip_prefix("content-length: ") {
            length = rest.parse().unwrap();
        } else if text.eq_ignore_ascii_case("transfer-encoding: chunked") {
            panic!("the servers say how long their answers are");
        } else if text.is_empty() {
            break;
        }
    }
    stream.read_exact(&mut vec![0; length]).unwrap();
    status
}

/// So many connections, each asking so many times; how many answers failed.
fn load(server: &Server, connections: usize, requests: usize) -> u64 {
    let barrier = Barrier::new(connections);
    thread::scope(|scope| {
        let each: Vec<_> = (0..connections)
            .map(|c| {
                let barrier = &barrier;
                let ask = move || {
                    let mut stream = server.connect();
                    barrier.wait();
                    let path = |i: usize| match (c + i) % 10 {
                        0 => format!("/fail/{i}"),
                        _ => format!("/users/{}/orders?secret={i}", 1000 + c),
                    };
                    (0..requests).filter(|&i| get(&mut stream, &path(i)) >= 500).count() as u64
                };
                thread::Builder::new().stack_size(128 * 1024).spawn_scoped(scope, ask).unwrap()
            })
            .collect();
        each.into_iter().map(|thread| thread.join().unwrap()).sum()
    })
}

fn peers(profile: &Profile) -> &[Value] {
    profile.0["requests"]["peers"].as_array().unwrap()
}

/// What the process did at its port, or with who listens there.
fn peer<'a>(profile: &'a Profile, side: &str, port: u16) -> &'a Value {
    let found = peers(profile)
        .iter()
        .find(|peer| peer["side"] == side && peer["peer"].as_str().unwrap().ends_with(&format!(":{port}")));
    found.unwrap_or_else(|| panic!("{side} {port}: {}", profile.0["requests"]))
}

fn route<'a>(peer: &'a Value, operation: &str) -> &'a Value {
    let routes = peer["routes"].as_array().unwrap();
    routes.iter().find(|route| route["operation"] == operation).unwrap_or_else(|| panic!("{peer}"))
}

/// A percentile of a sorted log, within 5 % or 0.2 ms, or another limit. A place of the log more or less is right as well: the
/// request that ended the server is in one of the two only. Servers whose timers count whole milliseconds have gaps as large
/// between two neighbours.
fn assert_percentile(what: &str, measured_ns: f64, log: &[f64], p: f64, at_least_ns: f64) {
    let place = ((log.len() - 1) as f64 * p).round() as usize;
    let [low, high] = [place.saturating_sub(1), (place + 1).min(log.len() - 1)].map(|place| log[place]);
    let limit = |ns: f64| (0.05 * ns).max(at_least_ns);
    let near = low - limit(low)..=high + limit(high);
    let ms = [measured_ns, low, high].map(|ns| ns / MS);
    assert!(
        near.contains(&measured_ns),
        "{what}: {:.3} ms, the log says {:.3} to {:.3} ms",
        ms[0],
        ms[1],
        ms[2]
    );
}

/// How often a server answered: `all`, and the request that ended it, which was answered by some and not by others.
fn answered(served: &Value, all: u64) -> u64 {
    let count = served["first"]["count"].as_u64().unwrap();
    assert!((all..=all + 1).contains(&count), "{count} of {all}: {served}");
    count
}

/// Times to the first byte, in all, are those that the server logs, ns.
fn assert_times(served: &Value, mut log: Vec<f64>) {
    log.sort_by(f64::total_cmp);
    for (p, key) in [(0.5, "p50_ns"), (0.99, "p99_ns")] {
        assert_percentile(key, served["first"][key].as_f64().unwrap(), &log, p, 0.2 * MS);
    }
}

/// What a request's thread did adds up to no more than the request took.
fn assert_parts_fit(profile: &Profile) {
    let peers = profile.0["requests"]["peers"].as_array().unwrap();
    let routes = peers.iter().flat_map(|peer| peer["routes"].as_array().unwrap());
    for goes in routes.map(|route| &route["breakdown"]).filter(|goes| !goes.is_null()) {
        let parts = ["on_cpu_ns", "run_queue_ns", "disk_ns", "lock_ns", "sleep_ns", "process_ns", "park_ns"];
        let parts = parts.map(|part| goes[part].as_f64().unwrap());
        let total = goes["total_ns"].as_f64().unwrap();
        assert!(parts.iter().sum::<f64>() <= 1.01 * total + 100.0, "{goes}");
    }
}

/// Counts, errors and times of a server are those that it logs.
fn is_what_it_logs(interpreter: &'static str, script: &str, connections: usize, requests: usize) {
    if !kernel_ready(&[interpreter]) {
        return;
    }
    compares(Server::start(interpreter, script, &[]), connections, requests);
}

fn compares(server: Server, connections: usize, requests: usize) {
    let _one_load_at_a_time = LOADED.lock();
    let profiling = Profiling::start(&["--pid", &server.run.pid(), "--alloc", "off", "--requests", "on"]);
    let port = server.port;
    let failed = load(&server, connections, requests);
    let log: Vec<f64> = server.quit().into_iter().map(|(_, ns)| ns).collect();
    let (profile, _) = profiling.finish();
    let all = (connections * requests) as u64;
    assert_eq!(log.len() as u64, all);
    assert_parts_fit(&profile);
    let served = peer(&profile, "answers", port);
    answered(served, all);
    assert_eq!(served["statuses"][5].as_u64().unwrap(), failed);
    let routes = ["GET /users/:id/orders", "GET /fail/:id"].map(|operation| route(served, operation));
    let [users, fails] = routes.map(|route| route["first"]["count"].as_u64().unwrap());
    assert_eq!(routes[1]["errors"][0][0], "503");
    if served["looked_at"].as_u64().unwrap() >= all {
        assert_eq!([users, fails], [all - failed, failed]);
    } else {
        // Where too many came at once some stand for the others.
        assert!(users.abs_diff(all - failed) * 20 <= all, "{users} of {}: {served}", all - failed);
    }
    assert_times(served, log);
}

#[test]
fn node_with_one_connection() {
    is_what_it_logs("node", "http.js", 1, 200);
}

#[test]
fn node_with_fifty_connections() {
    is_what_it_logs("node", "http.js", 50, 40);
}

#[test]
fn node_with_a_thousand_connections() {
    is_what_it_logs("node", "http.js", 1000, 6);
}

#[test]
fn a_go_server() {
    if !kernel_ready(&["go"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("server");
    let built = Command::new("go").args(["build", "-o"]).arg(&program).arg(source("http.go")).status();
    assert!(built.unwrap().success());
    compares(Server::begin(&mut Command::new(&program)), 50, 40);
}

fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn redis_under_its_benchmark() {
    if !kernel_ready(&["redis-server", "redis-benchmark"]) {
        return;
    }
    let _one_load_at_a_time = LOADED.lock();
    let port = programs::free_port();
    let mut server = Command::new("redis-server");
    server.args(["--save", "", "--port", &port.to_string()]);
    let server = Running::start(programs::quiet(&mut server));
    programs::wait_until("redis listens", || programs::listens(port));
    let profiling = Profiling::start(&["--pid", &server.pid(), "--alloc", "off", "--requests", "on"]);
    let load = |more: &[&str]| {
        let mut load = Command::new("redis-benchmark");
        run(load.args(["-q", "-p", &port.to_string(), "-n", "20000", "-c", "50"]).args(more));
    };
    load(&["-t", "get"]);
    load(&["-t", "set", "-P", "16"]);
    let _it_ends = Command::new("redis-cli").args(["-p", &port.to_string(), "shutdown", "nosave"]).output();
    let (profile, _) = profiling.finish();
    let served = peer(&profile, "answers", port);
    assert_eq!(served["protocol"], "redis");
    // Each batch of 16 is one exchange; and it asks for some settings first.
    let all = served["first"]["count"].as_u64().unwrap();
    assert!((21_250..21_260).contains(&all), "{all}: {served}");
    // Some stand for the others.
    let got = route(served, "GET")["first"]["count"].as_f64().unwrap();
    assert!((got - 20_000.0).abs() <= 1_000.0, "{got} of 20,000 GET: {served}");
    assert!(served["batches"].as_u64().unwrap() > 0, "pipelines are batches: {served}");
}

/// What is too dear to be watched all the time is watched in windows, and says so; its rate is that of the whole.
#[test]
fn dear_requests_are_watched_in_windows() {
    if !kernel_ready(&["redis-server", "redis-benchmark"]) {
        return;
    }
    const N: u64 = 600_000;
    let _one_load_at_a_time = LOADED.lock();
    let port = programs::free_port();
    let mut server = Command::new("redis-server");
    server.args(["--save", "", "--port", &port.to_string()]);
    let server = Running::start(programs::quiet(&mut server));
    programs::wait_until("redis listens", || programs::listens(port));
    let profiling = Profiling::start(&["--pid", &server.pid(), "--alloc", "off", "--max-overhead", "2"]);
    let mut load = Command::new("redis-benchmark");
    load.args(["--csv", "-p", &port.to_string(), "-n", &N.to_string(), "-c", "50", "-t", "get"]);
    let said = String::from_utf8(load.output().unwrap().stdout).unwrap();
    let per_second: f64 = said.lines().last().unwrap().split('"').nth(3).unwrap().parse().unwrap();
    let _it_ends = Command::new("redis-cli").args(["-p", &port.to_string(), "shutdown", "nosave"]).output();
    let (profile, _) = profiling.finish();
    let requests = &profile.0["requests"];
    let watched = requests["watched_ns"].as_f64().unwrap();
    assert!(!requests["windows"].is_null(), "{}", requests["windows"]);
    assert!(watched < 0.7 * profile.0["duration_ns"].as_f64().unwrap(), "{watched} ns");
    let seen = peer(&profile, "answers", port)["first"]["count"].as_f64().unwrap();
    assert!(seen > 1000.0 && seen < 0.7 * N as f64, "{seen} of {N}");
    // Before and after the load there is none, which windows may fall into.
    let idle = profile.0["duration_ns"].as_f64().unwrap() / 1e9 - N as f64 / per_second;
    let (most, least) = (watched / 1e9 * per_second, (watched / 1e9 - idle) * per_second);
    assert!(
        seen < 1.3 * most && seen > 0.6 * least,
        "{seen} in {watched} ns, {idle} s idle, {per_second} a second"
    );
}

#[test]
fn postgres_under_pgbench() {
    if !kernel_ready(&["pgbench"]) {
        return;
    }
    let _one_load_at_a_time = LOADED.lock();
    let dir = tempfile::tempdir().unwrap();
    let (script, port) = (dir.path().join("sleep.sql"), programs::free_port());
    std::fs::write(&script, "SELECT pg_sleep(0.003);\n").unwrap();
    let database = programs::Postgres::start(&["-c", "listen_addresses=127.0.0.1", "-p", &port.to_string()]);
    let profiling =
        Profiling::start(&["--pid", &database.pid(), "--follow", "--alloc", "off", "--requests", "on"]);
    let mut load = database.client("pgbench");
    load.args([
        "-h",
        "127.0.0.1",
        "-p",
        &port.to_string(),
        "-n",
        "-c",
        "8",
        "-t",
        "200",
        "-l",
        "--log-prefix=log",
        "-f",
    ]);
    run(load.arg(&script).arg("postgres").current_dir(&dir));
    database.stop();
    let (profile, _) = profiling.finish();
    let served = peer(&profile, "answers", port);
    assert_eq!(served["protocol"], "PostgreSQL");
    let selects = route(served, "SELECT");
    assert_eq!(selects["first"]["count"], 1600, "{served}");
    assert!(served["processes"].as_u64().unwrap() >= 8, "a backend for each: {served}");
    // client, transaction, us, …
    let logs = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
    let logs = logs.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("log"));
    let mut log: Vec<f64> = logs
        .flat_map(|path| {
            let text = std::fs::read_to_string(path).unwrap();
            let us = |line: &str| line.split(' ').nth(2).unwrap().parse::<f64>().unwrap();
            text.lines().map(us).collect::<Vec<_>>()
        })
        .map(|us| us * 1e3)
        .collect();
    log.sort_by(f64::total_cmp);
    assert_eq!(log.len(), 1600);
    assert_percentile("p50", selects["first"]["p50_ns"].as_f64().unwrap(), &log, 0.5, 0.2 * MS);
}

/// What comes in at a proxy goes out at its other side.
#[test]
fn nginx_as_a_proxy() {
    if !kernel_ready(&["node", "nginx"]) {
        return;
    }
    let _one_load_at_a_time = LOADED.lock();
    let server = Server::start("node", "http.js", &[]);
    let (upstream, port) = (server.port, programs::free_port());
    let dir = tempfile::tempdir().unwrap();
    let http = format!(
        "log_format times '$upstream_header_time $request_time'; access_log log times;
         keepalive_requests 1000000;
         upstream app {{ server 127.0.0.1:{upstream}; keepalive 64; keepalive_requests 1000000; }}
         server {{
             listen 127.0.0.1:{port};
             location / {{ proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ''; }}
         }}"
    );
    let mut proxy = programs::nginx_with(dir.path(), "worker_processes 2;", port, &http);
    let profiling =
        Profiling::start(&["--pid", &proxy.pid(), "--follow", "--alloc", "off", "--requests", "on"]);
    let clients = Server { port, ..server };
    let failed = load(&clients, 40, 25);
    // SAFETY: a signal to a child that has not been waited for.
    unsafe { libc::kill(proxy.0.id() as i32, libc::SIGQUIT) };
    proxy.0.wait().unwrap();
    let (profile, _) = profiling.finish();
    let (served, asked) = (peer(&profile, "answers", port), peer(&profile, "asks", upstream));
    assert_eq!([served, asked].map(|side| side["first"]["count"].as_u64().unwrap()), [1000, 1000]);
    assert_eq!([served, asked].map(|side| side["statuses"][5].as_u64().unwrap()), [failed, failed]);
    // By nginx's own clock, which has a resolution of a millisecond.
    let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
    let near = |side: &Value, column: usize| {
        let ns = |line: &str| line.split(' ').nth(column).unwrap().parse::<f64>().unwrap() * 1e9;
        let mut times: Vec<f64> = log.lines().map(ns).collect();
        times.sort_by(f64::total_cmp);
        assert_percentile("nginx", side["first"]["p50_ns"].as_f64().unwrap(), &times, 0.5, 1.2 * MS);
    };
    near(asked, 0);
    near(served, 1);
    Server { port: upstream, ..clients }.quit();
}

#[test]
fn python_threads() {
    is_what_it_logs("python3", "threads.py", 20, 60);
}

#[test]
fn an_asyncio_server() {
    is_what_it_logs("python3", "loop.py", 50, 40);
}

/// Answers each line after a while that is always the same.
fn echo(wait: Duration) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || {
                let mut stream = BufReader::new(stream.unwrap());
                stream.get_mut().set_nodelay(true).unwrap();
                let mut line = String::new();
                while stream.read_line(&mut line).is_ok_and(|n| n > 0) {
                    thread::sleep(wait);
                    line.clear();
                    stream.get_mut().write_all(b"answer\n").unwrap();
                }
            });
        }
    });
    port
}

/// Two peers, one of them asked twice, and 20 ms of CPU time: what a request is made of.
fn is_made_of_its_parts(interpreter: &'static str, script: &str) {
    if !kernel_ready(&[interpreter]) {
        return;
    }
    let _one_load_at_a_time = LOADED.lock();
    let ports = [echo(Duration::from_millis(7)), echo(Duration::from_millis(11))];
    let server = Server::start(interpreter, script, &ports.map(|port| port.to_string()));
    let profiling = Profiling::start(&["--pid", &server.run.pid(), "--alloc", "off", "--requests", "on"]);
    let (port, mut stream) = (server.port, server.connect());
    for _ in 0..40 {
        assert_eq!(get(&mut stream, "/work"), 200);
    }
    server.quit();
    let (profile, _) = profiling.finish();
    let asked = ports.map(|port| peer(&profile, "asks", port));
    assert_eq!(asked.map(|peer| peer["first"]["count"].as_u64().unwrap()), [80, 40]);
    let goes = &route(peer(&profile, "answers", port), "GET /work")["breakdown"];
    assert_eq!((goes["requests"].as_u64(), goes["alone"].as_u64()), (Some(40), Some(40)), "{goes}");
    let ms = |value: &Value| value.as_f64().unwrap() / MS;
    let part = |port: u16| {
        let parts = goes["asked"].as_array().unwrap().iter();
        let label = format!("127.0.0.1:{port}");
        parts.clone().find(|part| part["peer"] == label.as_str()).unwrap_or_else(|| panic!("{goes}"))
    };
    assert_eq!(ports.map(|port| part(port)["times"].as_f64().unwrap()), [2.0, 1.0]);
    let near = |what: &str, measured: f64, known: f64| {
        assert!((measured - known).abs() <= 0.1 * known + 0.5, "{what}: {measured:.2} of {known} ms: {goes}");
    };
    // What sleeps wakes up a little late, and the machine has other things to do.
    let answers: Vec<f64> = asked.iter().map(|peer| ms(&peer["first"]["sum_ns"]) / 40.0).collect();
    near("the peer asked twice", ms(&part(ports[0])["ns"]), answers[0]);
    near("the other peer", ms(&part(ports[1])["ns"]), answers[1]);
    near("on a CPU", ms(&goes["on_cpu_ns"]), 20.0);
    let parts: f64 =
        ["on_cpu_ns", "run_queue_ns", "awaiting_ns", "other_ns"].iter().map(|key| ms(&goes[key])).sum();
    near("all of it", parts, ms(&goes["total_ns"]));
}

#[test]
fn a_threads_request_is_made_of_its_parts() {
    is_made_of_its_parts("python3", "breakdown.py");
}

#[test]
fn an_event_loops_request_is_made_of_its_parts() {
    is_made_of_its_parts("node", "breakdown.js");
}

/// Two kinds of requests at once: each has the stacks of its own function, and not the other's.
///
/// So many that one whose beginning was not seen is a small part: what is done for it counts for the one that was read last.
fn routes_have_their_own_stacks(interpreter: &'static str, script: &str) {
    const REQUESTS: u32 = 240;
    if !kernel_ready(&[interpreter]) {
        return;
    }
    let _one_load_at_a_time = LOADED.lock();
    let server =
        Server::start(interpreter, script, &[7, 11].map(|ms| echo(Duration::from_millis(ms)).to_string()));
    let outputs = Outputs::new();
    let file = outputs.path("requests.folded");
    let drawn = file.to_string_lossy();
    let args = ["--pid", &server.run.pid(), "--alloc", "off", "--requests", "on", "-o", &drawn];
    let profiling = Profiling::start(&args);
    let port = server.port;
    thread::scope(|scope| {
        for path in ["/alpha", "/beta"] {
            let mut stream = server.connect();
            scope.spawn(move || (0..REQUESTS).for_each(|_| assert_eq!(get(&mut stream, path), 200)));
        }
    });
    server.quit();
    let (profile, _) = profiling.finish();
    let folded = std::fs::read_to_string(&file).unwrap();
    let stacks = profile.0["requests"]["stacks"].as_array().unwrap();
    for (path, own, other) in [("/alpha", "alpha", "beta"), ("/beta", "beta", "alpha")] {
        let operation = format!("GET {path}");
        let of = stacks.iter().find(|of| of["operation"] == operation.as_str()).unwrap();
        let samples = |function: &str| -> u64 {
            let all = of["stacks"].as_array().unwrap().iter();
            let inside = all.filter(|of| of["stack"].as_array().unwrap().iter().any(|name| name == function));
            inside.filter_map(|of| of["samples"].as_u64()).sum()
        };
        let (own_samples, others) = (samples(own), samples(other));
        // As many times 20, or 10, ms at 101 Hz.
        assert!(
            own_samples >= 20 && 20 * others <= own_samples,
            "{path}: {own_samples} of {own}, {others} of {other}: {}",
            peers(&profile)
                .iter()
                .map(|of| format!("{} {} {}", of["peer"], of["looked_at"], of["routes"]))
                .collect::<String>()
        );
        // The picture: as much as was measured, where it was sampled.
        let ns = |function: &str| -> f64 {
            let lines = folded.lines().filter(|line| line.contains(&format!(";{operation};on CPU;")));
            let inside = lines.filter(|line| line.contains(&format!(";{function}")));
            inside.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        let goes = &route(peer(&profile, "answers", port), &operation)["breakdown"];
        let on_cpu = goes["on_cpu_ns"].as_f64().unwrap() * f64::from(REQUESTS);
        assert!(ns(own) >= 0.5 * on_cpu && 20.0 * ns(other) <= ns(own), "{} of {on_cpu}: {folded}", ns(own));
    }
}

#[test]
fn threads_requests_have_the_stacks_of_their_route() {
    routes_have_their_own_stacks("python3", "breakdown.py");
}

#[test]
fn an_event_loops_requests_have_the_stacks_of_their_route() {
    routes_have_their_own_stacks("node", "breakdown.js");
}

/// One peer is asked again and again, another one four times at once, and the pool has jobs meanwhile.
#[test]
fn a_chain_is_told_from_what_goes_on_at_once() {
    if !kernel_ready(&["node"]) {
        return;
    }
    let _one_load_at_a_time = LOADED.lock();
    // Long enough that four questions are asked before the first answer, whatever else the machine does.
    let ports = [echo(Duration::from_millis(20)), echo(Duration::from_millis(60))];
    let script = "
const net = require('net'), crypto = require('crypto');
const [chain, ...crowd] = [0, 1, 1, 1, 1].map((i) => net.connect(Number(process.argv[1 + i]), '127.0.0.1'));
const ask = (peer) => new Promise((answered) => { peer.once('data', answered); peer.write('question\\n'); });
process.stdin.once('data', async () => {
  for (let i = 0; i < 10; i++) {
    crypto.pbkdf2('x', 'y', 20000, 64, 'sha512', () => {});
    for (let j = 0; j < 3; j++) await ask(chain);
    await Promise.all(crowd.map(ask));
  }
  process.exit(0);
});
";
    let mut command = Command::new(which("node").unwrap());
    command.args(["-e", script]).args(ports.map(|port| port.to_string())).stdin(Stdio::piped());
    let mut run = Running::start(&mut command);
    let profiling = Profiling::start(&["--pid", &run.pid(), "--alloc", "off", "--requests", "on"]);
    run.0.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let (profile, _) = profiling.finish();
    let flow = &profile.0["flow"][0];
    let under_way = |what: &str| {
        let all = flow["under_way"].as_array().unwrap().iter();
        let mut found = all.filter(|of| of["what"].as_str().unwrap().contains(what));
        found.next().unwrap_or_else(|| panic!("{what}: {flow}"))
    };
    let figure = |of: &Value, key: &str| of[key].as_f64().unwrap_or_else(|| panic!("{key}: {of}"));
    let peers = ports.map(|port| under_way(&format!(":{port}")));
    let figures = |key: &str| peers.map(|of| figure(of, key));
    assert_eq!((figures("times"), figures("most")), ([30.0, 40.0], [1.0, 4.0]), "{flow}");
    assert_eq!(figures("in_sequence"), [1.0, 0.25], "{flow}");
    let [chain, crowd] = figures("at_once");
    assert!((chain - 1.0).abs() < 0.01 && (3.0..=4.0).contains(&crowd), "{flow}");
    for of in peers {
        let spent = of["over_time"]["spent_ns"].as_array().unwrap().iter();
        assert_eq!(spent.map(|ns| ns.as_f64().unwrap()).sum::<f64>(), figure(of, "sum_ns"), "{of}");
    }
    assert!(figure(under_way("jobs of its pool"), "sum_ns") > 10.0 * MS, "{flow}");
    let parts = ["on_cpu_ns", "run_queue_ns", "blocked_ns", "idle_ns"].map(|key| figure(flow, key));
    let (sum, wall) = (parts.iter().sum::<f64>(), figure(flow, "wall_ns"));
    assert!((sum - wall).abs() <= 0.01 * wall, "{flow}");
}

#[test]
fn who_cannot_be_reached_is_told_with_the_error() {
    if !kernel_ready(&["python3"]) {
        return;
    }
    // Bound, so that nobody else gets it, and not listened at.
    let script = "
import socket, sys, time
taken = socket.socket(); taken.bind(('127.0.0.1', 0))
sys.stdin.readline()
for _ in range(5):
    late = socket.socket(); late.setblocking(False)
    try: late.connect(taken.getsockname())
    except BlockingIOError: pass
    except ConnectionRefusedError: pass
    time.sleep(0.01)
";
    let mut command = Command::new(which("python3").unwrap());
    command.args(["-c", script]).stdin(Stdio::piped());
    let mut run = Running::start(&mut command);
    let profiling = Profiling::start(&["--pid", &run.pid(), "--alloc", "off", "--requests", "on"]);
    run.0.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let (profile, _) = profiling.finish();
    let failures = &peers(&profile)[0]["failures"];
    assert_eq!(failures[0]["error"], "ECONNREFUSED", "{}", profile.0["requests"]);
    assert_eq!((failures[0]["count"].as_u64(), failures[0]["connecting"].as_bool()), (Some(5), Some(true)));
}

/// Nobody saw the server listen or accept, and no list of targets tells who it is.
#[test]
fn with_all_a_server_that_was_there_before_answers() {
    if !kernel_ready(&["node"]) {
        return;
    }
    let _one_load_at_a_time = LOADED.lock();
    let server = Server::start("node", "http.js", &[]);
    let pid: u64 = server.run.pid().parse().unwrap();
    let mut before = server.connect();
    assert_eq!(get(&mut before, "/users/1/orders"), 200);
    let profiling = Profiling::start(&["--all", "--requests", "on"]);
    for i in 0..50 {
        get(&mut before, &format!("/users/{i}/orders"));
    }
    let (profile, _) = profiling.end();
    let of_server: Vec<&Value> = peers(&profile).iter().filter(|peer| peer["pid"] == pid).collect();
    let [answers] = of_server[..] else { panic!("{of_server:?}") };
    assert_eq!(answers["side"], "answers");
    answered(answers, 50);
}

#[test]
fn streams_half_closed_sockets_and_continued_requests() {
    if !kernel_ready(&["python3"]) {
        return;
    }
    // It logs what each time must at least and at most be, by its own clock before and after its calls.
    let script = "
import json, socket, time, os
listener = socket.create_server(('127.0.0.1', 0)); print(listener.getsockname()[1], flush=True)
now, log = time.monotonic_ns, []
while True:
    peer, _ = listener.accept(); accepted = now()
    head = peer.recv(100); began = now()
    while not head.endswith(b'\\r\\n\\r\\n'): head += peer.recv(100)
    if b'/quit' in head: print(json.dumps(log), flush=True); os._exit(0)
    if b'Expect' in head:
        peer.sendall(b'HTTP/1.1 100 Continue\\r\\n\\r\\n'); peer.recv(100); time.sleep(0.03)
    if b'/half' in head:
        while peer.recv(100): pass
    before = now(); peer.sendall(b'HTTP/1.1 200 OK\\r\\n\\r\\n'); after = now()
    time.sleep(0.04); end = now(); peer.sendall(b'end'); peer.close()
    path = head.split()[1].decode()
    log += [(path + ' least', before - began), (path + ' most', after - accepted), (path + ' streams', end - after)]
";
    let dir = tempfile::tempdir().unwrap();
    let path: &Path = &dir.path().join("server.py");
    std::fs::write(path, script).unwrap();
    let mut command = Command::new(which("python3").unwrap());
    let mut run = Running::start(command.arg(path).stdin(Stdio::null()).stdout(Stdio::piped()));
    let mut out = BufReader::new(run.0.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    let port: u16 = line.trim().parse().unwrap();
    let server = Server { run, out, port };
    let profiling = Profiling::start(&["--pid", &server.run.pid(), "--alloc", "off", "--requests", "on"]);
    let ask = |parts: &[&[u8]], half: bool| {
        let mut stream = server.connect().into_inner();
        for part in parts {
            stream.write_all(part).unwrap();
            thread::sleep(Duration::from_millis(10));
        }
        if half {
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        }
        let _all = stream.read_to_end(&mut Vec::new());
    };
    ask(&[b"GE", b"T /slow HTTP/1.1\r\n", b"\r\n"], false);
    ask(&[b"GET /half HTTP/1.1\r\n\r\n"], true);
    ask(&[b"PUT /big HTTP/1.1\r\nExpect: 100-continue\r\n\r\n", b"body"], false);
    let log: BTreeMap<String, f64> = server.quit().into_iter().collect();
    let (profile, _) = profiling.finish();
    let served = peer(&profile, "answers", port);
    assert_eq!(
        (served["first"]["count"].as_u64(), served["statuses"][2].as_u64()),
        (Some(3), Some(3)),
        "{served}"
    );
    for operation in ["GET /slow", "GET /half", "PUT /big"] {
        let [first, whole] =
            ["first", "whole"].map(|of| route(served, operation)[of]["max_ns"].as_f64().unwrap());
        let path = operation.split_once(' ').unwrap().1;
        let [least, most, streams] = ["least", "most", "streams"].map(|of| log[&format!("{path} {of}")]);
        assert!((least..=most).contains(&first), "{operation}: {first} of {least} to {most}: {served}");
        assert!(
            whole - first >= streams,
            "{operation}: {whole} less {first}, streams for {streams}: {served}"
        );
    }
}

/// A key and a certificate for this machine, made for one test.
fn certificate(dir: &Path) -> [PathBuf; 2] {
    let [key, cert] = ["key", "cert"].map(|name| dir.join(name));
    let mut make = Command::new("openssl");
    make.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]);
    run(make.args(["-subj", "/CN=localhost", "-keyout"]).arg(&key).arg("-out").arg(&cert));
    [key, cert]
}

/// The load of `load`, encrypted, by so many threads of Python's; how many answers failed.
fn encrypted_load(port: u16, connections: usize, requests: usize) -> u64 {
    let script = source("tls_load.py");
    let mut load = Command::new(which("python3").unwrap());
    let said = run(load.arg(script).args([port.to_string(), connections.to_string(), requests.to_string()]));
    said.trim().parse().unwrap()
}

/// What was lost for a reason.
fn lost(profile: &Profile, reason: &str) -> u64 {
    let losses = profile.0["losses"].as_array().unwrap();
    losses.iter().find(|loss| loss["reason"] == reason).unwrap()["count"].as_u64().unwrap()
}

/// What a server logs of requests inside TLS is what is told of them: counts, statuses, routes and times.
fn is_seen_inside(interpreter: &'static str, script: &str) {
    if !kernel_ready(&[interpreter, "openssl", "python3"]) {
        return;
    }
    let _one_load_at_a_time = LOADED.lock();
    let dir = tempfile::tempdir().unwrap();
    let files = certificate(dir.path()).map(|path| path.to_str().unwrap().to_owned());
    let server = Server::start(interpreter, script, &files);
    let profiling =
        Profiling::start(&["--pid", &server.run.pid(), "--alloc", "off", "--requests", "on", "--tls"]);
    let (port, connections, requests) = (server.port, 10, 60);
    let failed = encrypted_load(port, connections, requests);
    let log: Vec<f64> = server.logged().into_iter().map(|(_, ns)| ns).collect();
    let (profile, _) = profiling.finish();
    let all = (connections * requests) as u64;
    assert_eq!(log.len() as u64, all);
    let served = peer(&profile, "answers", port);
    // No handshake is a request.
    let count = answered(served, all);
    assert_eq!((served["decrypted"].as_u64(), served["encrypted"].as_bool()), (Some(count), Some(false)));
    assert_eq!((served["protocol"].as_str(), served["statuses"][5].as_u64()), (Some("HTTP"), Some(failed)));
    let routes = ["GET /users/:id/orders", "GET /fail/:id"].map(|operation| route(served, operation));
    assert_eq!(routes.map(|route| route["first"]["count"].as_u64().unwrap()), [all - failed, failed]);
    assert_eq!(routes[1]["errors"][0][0], "503");
    assert_eq!(["tls_unmatched", "tls_full"].map(|reason| lost(&profile, reason)), [0, 0]);
    assert_eq!(profile.0["requests"]["tls"]["not_seen"].as_array().unwrap().len(), 0);
    assert_times(served, log);
}

#[test]
fn node_inside_tls() {
    is_seen_inside("node", "http.js");
}

#[test]
fn python_threads_inside_tls() {
    is_seen_inside("python3", "threads.py");
}

#[test]
fn an_asyncio_server_inside_tls() {
    is_seen_inside("python3", "loop.py");
}

/// A proxy answers inside TLS and asks inside TLS; Node asks, too: as many as are answered.
#[test]
fn who_asks_inside_tls() {
    if !kernel_ready(&["node", "nginx", "openssl", "python3"]) {
        return;
    }
    let _one_load_at_a_time = LOADED.lock();
    let dir = tempfile::tempdir().unwrap();
    let [key, cert] = certificate(dir.path());
    let [asked, port] = [programs::free_port(), programs::free_port()];
    let http = format!(
        "access_log off; keepalive_requests 1000000; ssl_certificate {}; ssl_certificate_key {};
         server {{
             listen 127.0.0.1:{asked} ssl;
             location / {{ return 200 'hello'; }}
             location /fail {{ return 503; }}
         }}
         upstream app {{ server 127.0.0.1:{asked}; keepalive 16; }}
         server {{
             listen 127.0.0.1:{port} ssl;
             location / {{ proxy_pass https://app; proxy_http_version 1.1; proxy_set_header Connection ''; }}
         }}",
        cert.display(),
        key.display(),
    );
    let mut proxy = programs::nginx_with(dir.path(), "worker_processes 1;", port, &http);
    let proxied =
        Profiling::start(&["--pid", &proxy.pid(), "--follow", "--alloc", "off", "--requests", "on", "--tls"]);
    let mut client =
        Server::begin(Command::new(which("node").unwrap()).arg(source("tls_ask.js")).arg(port.to_string()));
    let asking =
        Profiling::start(&["--pid", &client.run.pid(), "--alloc", "off", "--requests", "on", "--tls"]);
    let mut ask = TcpStream::connect(("127.0.0.1", client.port)).unwrap();
    ask.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let (mut said, all) = (String::new(), 400);
    client.out.read_to_string(&mut said).unwrap();
    client.run.0.wait().unwrap();
    let failed: u64 = said.trim().parse().unwrap();
    assert_eq!(failed, all / 10);
    // SAFETY: a signal to a child that has not been waited for.
    unsafe { libc::kill(proxy.0.id() as i32, libc::SIGQUIT) };
    proxy.0.wait().unwrap();
    let [(of_node, _), (of_proxy, _)] = [asking.finish(), proxied.finish()];
    let sides = [
        peer(&of_node, "asks", port),
        peer(&of_proxy, "answers", port),
        peer(&of_proxy, "asks", asked),
        peer(&of_proxy, "answers", asked),
    ];
    for side in sides {
        let count = side["first"]["count"].as_u64();
        assert_eq!((count, side["statuses"][5].as_u64()), (Some(all), Some(failed)), "{side}");
        // Where too many come at once some stand for the others.
        assert_eq!(
            (&side["decrypted"], &side["encrypted"]),
            (&side["looked_at"], &Value::Bool(false)),
            "{side}"
        );
        let fails = route(side, "GET /fail/:id");
        assert!(fails["first"]["count"].as_u64().unwrap().abs_diff(failed) <= failed / 4, "{side}");
        assert_eq!(fails["errors"][0][0], "503");
    }
    for profile in [of_node, of_proxy] {
        assert_eq!(lost(&profile, "tls_unmatched"), 0);
    }
}

/// What was connected before is told too, paths are hidden where they are to be, and what cannot be seen is said.
#[test]
fn what_is_hidden_or_not_seen_inside_tls() {
    if !kernel_ready(&["python3", "openssl", "go"]) {
        return;
    }
    let _one_load_at_a_time = LOADED.lock();
    let dir = tempfile::tempdir().unwrap();
    let files = certificate(dir.path()).map(|path| path.to_str().unwrap().to_owned());
    let options = ["--alloc", "off", "--requests", "on", "--tls"];
    let server = Server::start("python3", "loop.py", &files);
    let mut client = Command::new("openssl");
    client.args(["s_client", "-quiet", "-connect", &format!("127.0.0.1:{}", server.port)]);
    let mut client =
        Running::start(client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()));
    let mut answers = BufReader::new(client.0.stdout.take().unwrap());
    let mut ask = |path: &str| {
        write!(client.0.stdin.as_mut().unwrap(), "GET {path} HTTP/1.1\r\n\r\n").unwrap();
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        assert_eq!(line, "HTTP/1.1 200 OK\r\n");
        let mut length = String::new();
        answers.read_line(&mut length).unwrap();
        let length: usize = length.trim().rsplit(' ').next().unwrap().parse().unwrap();
        answers.read_exact(&mut vec![0; length + 2]).unwrap();
    };
    ask("/before");
    let mut args = vec!["--redact-paths", "--pid"];
    let pid = server.run.pid();
    args.extend([&*pid].iter().chain(&options));
    let profiling = Profiling::start(&args);
    (0..5).for_each(|_| ask("/secret"));
    let port = server.port;
    client.0.stdin.as_mut().unwrap().write_all(b"GET /quit HTTP/1.1\r\n\r\n").unwrap();
    server.logged();
    let (profile, _) = profiling.finish();
    let served = peer(&profile, "answers", port);
    let gets = served["routes"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|route| route["operation"].as_str().unwrap().starts_with("GET ["));
    let counts: Vec<u64> = gets.map(|route| route["first"]["count"].as_u64().unwrap()).collect();
    assert!(counts.contains(&5) && !profile.0.to_string().contains("secret"), "{served}");

    let program = dir.path().join("server");
    let built = Command::new("go").args(["build", "-o"]).arg(&program).arg(source("http.go")).status();
    assert!(built.unwrap().success());
    let server = Server::begin(Command::new(&program).args(&files));
    let pid = server.run.pid();
    let profiling = Profiling::start(&[&["--pid", &*pid][..], &options[..]].concat());
    let port = server.port;
    assert_eq!(encrypted_load(port, 2, 20), 4);
    server.logged();
    let (profile, _) = profiling.finish();
    let (served, not_seen) = (peer(&profile, "answers", port), &profile.0["requests"]["tls"]["not_seen"]);
    assert_eq!((served["encrypted"].as_bool(), served["decrypted"].as_u64()), (Some(true), Some(0)));
    assert!(
        not_seen.as_array().unwrap().iter().any(|why| why.as_str().unwrap().contains("Go")),
        "{not_seen}"
    );
}
