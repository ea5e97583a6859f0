//! The daemon on a real program: it notices a stall, says so once with the cause and with recordings of it, and ends well.
#![allow(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

mod common;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{PROFILER, Running, kernel_ready};
use serde_json::Value;

/// A server that is busy for 150 ms of every 400 ms.
const SICK: &str = "
function busyLoop() { const end = Date.now() + 150; let x = 0; while (Date.now() < end) x += Math.sqrt(x + 1); return x; }
setInterval(busyLoop, 400);
require('http').createServer((request, response) => response.end('ok')).listen(0, '127.0.0.1');
";

/// How long something may take that a busy machine makes slow.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn a_stall_becomes_one_alert_with_its_evidence() {
    if !kernel_ready(&["node"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (script, alerts) = (dir.path().join("sick.js"), dir.path().join("alerts.jsonl"));
    fs::write(&script, SICK).unwrap();
    let config = format!(
        "[daemon]
        window = \"5s\"
        state_dir = \"{state}\"
        listen = \"{state}/api\"
        max_overhead = 100.0
        [[targets]]
        name = \"sick\"
        argument = \"{script}\"
        [[receivers]]
        name = \"file\"
        type = \"file\"
        path = \"{alerts}\"
        [rules.event-loop-delay]
        for = \"0s\"
        warmup = \"0s\"
        inhibited_by = []
        ",
        state = dir.path().join("state").display(),
        script = script.display(),
        alerts = alerts.display()
    );
    let config_file = dir.path().join("profiler.toml");
    fs::write(&config_file, config).unwrap();
    let mut node = Command::new(common::which("node").unwrap()).arg(&script).spawn().unwrap();
    let mut daemon = Command::new(PROFILER)
        .arg("daemon")
        .arg("--config")
        .arg(&config_file)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();

    let told = || fs::read_to_string(&alerts).unwrap_or_default();
    let of_rule = |text: &str| -> Vec<Value> {
        let all = text.lines().map(|line| serde_json::from_str(line).unwrap());
        all.filter(|message: &Value| message["rule"] == "event-loop-delay").collect()
    };
    let began = Instant::now();
    while of_rule(&told()).is_empty() && began.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(100));
    }
    // One more window, in which nothing changes.
    let windows = || fs::read_dir(dir.path().join("state/windows")).map_or(0, Iterator::count);
    let so_far = windows();
    while windows() < so_far + 2 && began.elapsed() < 2 * PATIENCE {
        std::thread::sleep(Duration::from_millis(100));
    }
    // SAFETY: the daemon is a child that has not been waited for.
    unsafe { libc::kill(daemon.id() as libc::pid_t, libc::SIGTERM) };
    let status = daemon.wait().unwrap();
    node.kill().unwrap();
    node.wait().unwrap();

    let messages = of_rule(&told());
    assert_eq!(messages.len(), 1, "once: {messages:?}");
    let message = &messages[0];
    assert_eq!((&message["change"], &message["target"]), (&"fired".into(), &"sick".into()));
    let delay_s = message["number"].as_f64().unwrap();
    assert!(delay_s > 0.1, "an iteration takes 150 ms: {delay_s}");
    let stalls = |finding: &Value| finding["rule"] == "event-loop-stall";
    assert!(message["findings"].as_array().unwrap().iter().any(stalls), "the cause is named: {message}");
    let evidence = message["evidence"].as_array().unwrap().last().unwrap().as_str().unwrap().to_owned();
    let command = message["command"].as_str().unwrap();
    assert!(command.contains(&evidence), "{command}");
    let replay =
        Command::new("sh").args(["-c", &command.replacen("profiler", PROFILER, 1)]).output().unwrap();
    let said = String::from_utf8_lossy(&replay.stdout);
    assert!(replay.status.success(), "{}", String::from_utf8_lossy(&replay.stderr));
    assert!(said.contains("target sick"), "{said}");
    assert!(status.success(), "{status}");
}

#[test]
fn a_window_leaves_out_who_has_ended_and_leaves_nothing_behind() {
    if !kernel_ready(&[]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let busy = Running::start(Command::new("sh").args(["-c", "until false; do :; done"]));
    let mut ended = Command::new("true").spawn().unwrap();
    ended.wait().unwrap();
    let (busy, ended) = (busy.0.id().to_string(), ended.id().to_string());
    let (good, full, kept) =
        (dir.path().join("x.prec"), dir.path().join("full.prec"), dir.path().join("tmp"));
    std::os::unix::fs::symlink("/dev/full", &full).unwrap();
    fs::create_dir(&kept).unwrap();
    let run = |more: &[&str], output: &std::path::Path| {
        let mut command = Command::new(PROFILER);
        command.args(["--quiet", "--duration", "1s", "--pid", &busy]).args(more).arg("-o").arg(output);
        command.env("TMPDIR", &kept).output().unwrap().status.code()
    };
    assert_eq!(run(&["--pid", &ended], &good), Some(3), "for a user it is a typing error");
    assert_eq!(run(&["--unattended", "--pid", &ended], &good), Some(0));
    let left = || fs::read_dir(&kept).unwrap().count();
    assert_eq!((run(&["--unattended"], &full), left()), (Some(6), 0));
    assert_eq!((run(&[], &full), left()), (Some(6), 1), "for a user it is kept");
}

#[test]
fn systemd_hears_of_the_daemon_in_the_middle_of_a_window() {
    if !kernel_ready(&[]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let _busy = Running::start(Command::new("sh").args(["-c", "until ! :; do :; done"]));
    let (state, config, socket) =
        (dir.path().display(), dir.path().join("profiler.toml"), dir.path().join("systemd"));
    let text = format!(
        "[daemon]\nwindow = \"1h\"\nstate_dir = \"{state}\"\nlisten = \"\"\n[[targets]]\nname = \"t\"\n\
         argument = \"until ! :; do :; done\"\n"
    );
    fs::write(&config, text).unwrap();
    let systemd = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    systemd.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = Command::new(PROFILER);
    let command = command.args(["daemon", "--config"]).arg(&config).env("NOTIFY_SOCKET", &socket);
    let mut daemon = Running::start(command.stderr(Stdio::null()));
    let hear = || {
        let mut bytes = [0; 100];
        let length = systemd.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).trim().to_owned()
    };
    // The first sign of life comes before the window, the second within.
    assert_eq!([hear(), hear(), hear()], ["READY=1", "WATCHDOG=1", "WATCHDOG=1"]);
    // SAFETY: the daemon is a child that has not been waited for.
    unsafe { libc::kill(daemon.0.id() as libc::pid_t, libc::SIGTERM) };
    assert!(daemon.0.wait().unwrap().success());
}

/// A server with faults that are made on demand.
const SERVER: &str = "
const fs = require('fs'); const open = []; let timer, burning = false;
function burnCpu() { const end = Date.now() + 5; while (Date.now() < end); if (burning) setImmediate(burnCpu); }
function failOften() { for (let i = 0; i < 100; i++) try { fs.openSync('/dev/null/' + i, 'r'); } catch {} }
const faults = {
  '/burn': () => { burning = true; burnCpu(); },
  '/storm': () => timer = setInterval(failOften, 20),
  '/descriptors': () => { while (open.length < 480) open.push(fs.openSync('/dev/null', 'r')); },
  '/stop': () => { burning = false; clearInterval(timer); open.splice(0).forEach(fd => fs.closeSync(fd)); },
};
require('http').createServer((request, response) => {
  if (faults[request.url]) faults[request.url]();
  response.end('ok');
}).listen(0, '127.0.0.1', function () { console.log(this.address().port); });
";

/// A daemon that watches one target in short windows.
struct Daemon {
    child: Running,
    dir: tempfile::TempDir,
    port: u16,
}

impl Daemon {
    fn start(target: &str, more: &str) -> Daemon {
        Daemon::start_with("requests = false", target, more)
    }

    /// With lines of `[daemon]` before the target.
    fn start_with(own: &str, target: &str, more: &str) -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let port = common::programs::free_port();
        let (state, config) = (dir.path().display(), dir.path().join("profiler.toml"));
        let text = format!(
            "[daemon]\nwindow = \"5s\"\nstate_dir = \"{state}\"\nlisten = \"127.0.0.1:{port}\"\nmax_overhead = 100.0\n\
             token_file = \"{state}/tokens\"\n{own}\n[[targets]]\nname = \"t\"\n{target}\n[[receivers]]\nname = \"file\"\n\
             type = \"file\"\npath = \"{state}/alerts.jsonl\"\n{more}"
        );
        fs::write(&config, text).unwrap();
        // The SHA-256 of `admin`.
        let hash = "8c6976e5b5410415bde908bd4dee15dfb167a9c873fc4bb8a81f6f2ab448a918";
        fs::write(dir.path().join("tokens"), format!("admin:{hash}\n")).unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let child =
            Running::start(Command::new(PROFILER).args(["daemon", "--config"]).arg(&config).stderr(log));
        let daemon = Daemon { child, dir, port };
        wait_for("the first window", || daemon.ask("GET", "/readyz", "").0 == 200);
        daemon
    }

    /// Asks the API; status, and body.
    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Vec<u8>) {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return (0, Vec::new()) };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer admin\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut answer = Vec::new();
        if stream.write_all(head.as_bytes()).and_then(|()| stream.read_to_end(&mut answer)).is_err() {
            return (0, Vec::new());
        }
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
        let status = String::from_utf8_lossy(&answer[..end]).split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer[end + 4..].to_vec())
    }

    fn data(&self, path: &str) -> Value {
        let (status, body) = self.ask("GET", path, "");
        assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice::<Value>(&body).unwrap()["data"].clone()
    }

    /// What was told of a rule.
    fn told(&self, rule: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.dir.path().join("alerts.jsonl")).unwrap_or_default();
        let all = text.lines().map(|line| serde_json::from_str(line).unwrap());
        all.filter(|message: &Value| message["rule"] == rule).collect()
    }

    /// What was told of a rule by one alert that `begin` begins and `end` ends: that it fired, and that it was resolved, once each.
    fn one_alert(&self, rule: &str, begin: impl FnOnce(), end: impl FnOnce()) -> Vec<Value> {
        assert_eq!(self.told(rule), Vec::<Value>::new(), "before {rule}");
        begin();
        wait_for(rule, || !self.told(rule).is_empty());
        end();
        wait_for("its end", || self.told(rule).iter().any(|message| message["change"] == "resolved"));
        let told = self.told(rule);
        let of = |change: &str| told.iter().filter(|message| message["change"] == change).count();
        assert_eq!((of("fired"), of("resolved")), (1, 1), "{told:?}");
        assert!(told.iter().all(|message| message["alert"] == told[0]["alert"]));
        told
    }

    fn windows(&self) -> u64 {
        let metrics = String::from_utf8(self.ask("GET", "/metrics", "").1).unwrap();
        let value = metrics.lines().find_map(|line| line.strip_prefix("profiler_agent_windows_total "));
        value.unwrap().parse::<f64>().unwrap() as u64
    }

    fn signal(&self, signal: i32) {
        // SAFETY: the daemon is a child that has not been waited for.
        unsafe { libc::kill(self.child.0.id() as libc::pid_t, signal) };
    }
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn each_fault_gives_its_alert_once_and_its_end() {
    if !kernel_ready(&["node"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("faulty.js");
    fs::write(&script, SERVER).unwrap();
    let limited =
        format!("ulimit -n 550; exec {} {}", common::which("node").unwrap().display(), script.display());
    let mut node = Running::start(Command::new("sh").args(["-c", &limited]).stdout(Stdio::piped()));
    let mut line = String::new();
    BufReader::new(node.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let port: u16 = line.trim().parse().unwrap();
    let mut rules =
        "[rules.event-loop-delay]\nenabled = false\n[rules.cpu-starvation]\nenabled = false\n".to_owned();
    // Other tests take CPU time, too.
    let thresholds = [("event-loop-busy", "warning = 0.5\n"), ("syscall-errors", ""), ("descriptors", "")];
    for (rule, threshold) in thresholds {
        rules += &format!(
            "[rules.{rule}]\n{threshold}for = \"0s\"\nwarmup = \"0s\"\nkeep_firing_for = \"0s\"\ncooldown = \"5m\"\ninhibited_by = []\n"
        );
    }
    let daemon = Daemon::start(&format!("argument = \"{}\"", script.display()), &rules);
    let ask = |path: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    };
    for (fault, rule) in
        [("/burn", "event-loop-busy"), ("/storm", "syscall-errors"), ("/descriptors", "descriptors")]
    {
        let told = daemon.one_alert(rule, || ask(fault), || ask("/stop"));
        match rule {
            "event-loop-busy" => {
                let path = told[0]["path"].as_array().unwrap();
                let is_cause = |of: &Value| of.as_str().unwrap().contains("burnCpu");
                assert!(path.iter().any(is_cause), "the cause is named: {}", told[0]);
            }
            "syscall-errors" => {
                let found = told[0]["findings"].as_array().unwrap();
                assert!(found.iter().any(|finding| finding["rule"] == "error-storm"), "{}", told[0]);
            }
            _ => {}
        }
    }
}

/// A server that asks another one, or answers with an error, once it is told to.
const SHOP: &str = "
const http = require('http'), agent = new http.Agent({ keepAlive: true }); let slow = false, failing = false;
http.createServer((request, response) => {
  if (request.url === '/be/slow') slow = true;
  if (request.url === '/be/failing') failing = true;
  if (request.url === '/be/well') slow = failing = false;
  if (request.url.startsWith('/orders/') && failing) { response.statusCode = 500; return response.end('no'); }
  if (request.url.startsWith('/orders/') && slow)
    return http.get({ port: process.argv[2], path: '/stock', agent }, stock => stock.resume().on('end', () => response.end('ok')));
  response.end('ok');
}).listen(0, '127.0.0.1', function () { console.log(this.address().port); });
";

/// A server that takes its time.
const STOCK: &str = "
require('http').createServer((request, response) => setTimeout(() => response.end('7'), 1300))
  .listen(0, '127.0.0.1', function () { console.log(this.address().port); });
";

/// A Node server, and its port.
fn serve(dir: &std::path::Path, name: &str, script: &str, args: &[String]) -> (Running, u16) {
    let path = dir.join(name);
    fs::write(&path, script).unwrap();
    let mut command = Command::new(common::which("node").unwrap());
    let mut run = Running::start(command.arg(path).args(args).stdout(Stdio::piped()));
    let mut line = String::new();
    BufReader::new(run.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (run, line.trim().parse().unwrap())
}

#[test]
fn slow_answers_and_errors_are_told_with_the_route_and_end() {
    if !kernel_ready(&["node"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (_stock, stock_port) = serve(dir.path(), "stock.js", STOCK, &[]);
    let (_shop, port) = serve(dir.path(), "shop.js", SHOP, &[stock_port.to_string()]);
    let mut rules =
        "[rules.event-loop-delay]\nenabled = false\n[rules.cpu-starvation]\nenabled = false\n".to_owned();
    for rule in ["response-time", "error-rate"] {
        rules += &format!("[rules.{rule}]\nfor = \"0s\"\nwarmup = \"0s\"\nkeep_firing_for = \"0s\"\n");
    }
    let target = format!("argument = \"{}\"", dir.path().join("shop.js").display());
    let daemon = Daemon::start_with("requests = true", &target, &rules);
    let ask = move |path: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    };
    let done = std::sync::atomic::AtomicBool::new(false);
    let is_done = || done.load(std::sync::atomic::Ordering::Relaxed);
    // A failed expectation ends the load, too.
    struct Ends<'a>(&'a std::sync::atomic::AtomicBool);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }
    std::thread::scope(|scope| {
        let _ends = Ends(&done);
        for customer in 0..8 {
            scope.spawn(move || {
                for order in (0..).take_while(|_| !is_done()) {
                    ask(&format!("/orders/{customer}{order}"));
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
        }
        let seen = || daemon.data("/api/v1/latency")[0]["metrics"].clone();
        wait_for("requests are seen", || seen()["requests_per_second"].as_f64().unwrap() > 5.0);
        let seen = seen();
        assert!(seen["response_seconds.p95"].as_f64().unwrap() < 1.0, "{seen}");
        for (fault, rule, finding) in
            [("/be/slow", "response-time", "slow-requests"), ("/be/failing", "error-rate", "request-errors")]
        {
            let told = daemon.one_alert(rule, || ask(fault), || ask("/be/well"));
            let message = &told[0];
            let mut routes = message["routes"].as_array().unwrap().iter();
            let route = routes.find(|route| route["operation"] == "GET /orders/:id");
            let route = route.unwrap_or_else(|| panic!("the route is named: {message}"));
            assert_eq!(route["at"], format!(":{port}"));
            let found = message["findings"].as_array().unwrap();
            assert!(found.iter().any(|found| found["rule"] == finding), "{message}");
            match rule {
                "response-time" => {
                    let goes = route["goes"][0][0].as_str().unwrap();
                    assert!(goes.contains(&format!("awaiting 127.0.0.1:{stock_port}")), "{message}");
                    assert!(message["number"].as_f64().unwrap() > 1.0, "{message}");
                }
                _ => assert_eq!(route["error"], "500", "{message}"),
            }
        }
    });
}

#[test]
fn what_the_daemon_knows_can_be_asked_and_changed() {
    if !kernel_ready(&[]) {
        return;
    }
    let busy = Running::start(Command::new("sh").args(["-c", "while :; do :; done"]));
    let more = "[rules.own]\nmetric = \"processes\"\nwarning = 100\nfor = \"0s\"\nwarmup = \"0s\"\n\
                [rules.cpu-quota]\nenabled = false\n[rules.cpu-starvation]\nenabled = false\n";
    let daemon = Daemon::start("argument = \"while :; do :; done\"", more);
    assert_eq!(daemon.data("/api/v1/targets")[0]["pids"][0], busy.0.id());
    let current = daemon.data("/api/v1/metrics/current?target=t")[0]["metrics"].clone();
    assert!(current["cpu_seconds"].as_f64().unwrap() > 0.0, "{current}");
    let unauthorized = TcpStream::connect(("127.0.0.1", daemon.port)).map(|mut stream| {
        stream.write_all(b"GET /api/v1/targets HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    assert!(unauthorized.unwrap().starts_with("HTTP/1.1 4"));

    // Windows, in every form, and two of them compared.
    wait_for("two windows", || daemon.data("/api/v1/profiles").as_array().unwrap().len() >= 2);
    let windows = daemon.data("/api/v1/profiles?target=t");
    let (a, b) = (windows[0]["window"].as_i64().unwrap(), windows[1]["window"].as_i64().unwrap());
    for (format, begins) in [("pprof", &b"\x1f\x8b"[..]), ("json", b"{"), ("svg", b"<?xml"), ("folded", b"")]
    {
        let (status, body) =
            daemon.ask("GET", &format!("/api/v1/profiles?window={a}&target=t&format={format}"), "");
        assert!(status == 200 && body.starts_with(begins) && !body.is_empty(), "{format}: {status}");
    }
    let diff = daemon.data(&format!("/api/v1/diff?a={a}&b={b}&target=t"));
    assert_eq!((&diff["kinds"][0]["kind"], &diff["false_discovery_rate"]), (&"cpu".into(), &0.05.into()));
    assert!(diff["kinds"][0]["total"]["amount"]["before"].as_f64().unwrap() > 1e8, "it is busy: {diff}");
    let (status, report) = daemon.ask("GET", "/api/v1/report?target=t", "");
    assert!(status == 200 && report.len() > 100);
    assert_eq!(daemon.ask("GET", "/api/v1/latency", "").0, 404);

    // A threshold that is moved through the API holds from the next window on, and a silence keeps its alert quiet.
    let silence = "{\"rule\": \"own\", \"for\": \"1h\"}";
    let (status, body) = daemon.ask("POST", "/api/v1/silences", silence);
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    let id = serde_json::from_slice::<Value>(&body).unwrap()["data"]["id"].as_i64().unwrap();
    assert_eq!(daemon.ask("PUT", "/api/v1/thresholds", "{\"own\": {\"warning\": 1}}").0, 200);
    wait_for("the alert", || daemon.data("/api/v1/alerts?firing=true").as_array().unwrap().len() == 1);
    assert_eq!(daemon.told("own"), Vec::<Value>::new(), "it is silenced");
    assert_eq!(daemon.ask("DELETE", &format!("/api/v1/silences/{id}"), "").0, 200);
    wait_for("its message", || daemon.told("own").len() == 1);

    // A configuration that is wrong changes nothing, and windows go on.
    let file = daemon.dir.path().join("profiler.toml");
    let good = fs::read_to_string(&file).unwrap();
    fs::write(&file, good.replace("warning = 100", "warnin = 100")).unwrap();
    daemon.signal(libc::SIGHUP);
    let so_far = daemon.windows();
    wait_for("two windows", || daemon.windows() >= so_far + 2);
    let metrics = String::from_utf8(daemon.ask("GET", "/metrics", "").1).unwrap();
    assert!(metrics.contains("profiler_agent_refused_reloads_total 1"), "{metrics}");
    assert!(
        metrics.contains("profiler_alerts{rule=\"own\",target=\"t\",severity=\"warning\"} 1"),
        "{metrics}"
    );

    // The rule is taken out: its alert is over.
    fs::write(&file, good.replace("for = \"0s\"\nwarmup", "enabled = false\nfor = \"0s\"\nwarmup")).unwrap();
    daemon.signal(libc::SIGHUP);
    wait_for("the end", || daemon.told("own").last().unwrap()["change"] == "resolved");
    assert!(daemon.told("own")[1]["reason"].as_str().unwrap().contains("configuration"));
    daemon.signal(libc::SIGTERM);
    let mut daemon = daemon;
    assert!(daemon.child.0.wait().unwrap().success());

    // Rules are tried on what was kept.
    let recordings =
        fs::read_dir(daemon.dir.path().join("windows")).unwrap().map(|entry| entry.unwrap().path());
    let recordings = recordings.filter(|path| path.extension().is_some_and(|extension| extension == "prec"));
    fs::write(&file, good.replace("warning = 100", "warning = 1")).unwrap();
    let tried = Command::new(PROFILER)
        .args(["rules", "test", "--config"])
        .arg(&file)
        .arg("--replay")
        .args(recordings)
        .output()
        .unwrap();
    let said = String::from_utf8(tried.stdout).unwrap();
    assert!(said.contains("warning fired: own 1\n"), "{said} {}", String::from_utf8_lossy(&tried.stderr));
}

#[test]
fn a_wrong_configuration_is_one_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("profiler.toml");
    fs::write(&file, "[[targets]]\nname = \"x\"\ncom = \"node\"\n").unwrap();
    let checked = Command::new(PROFILER).args(["config", "check"]).arg(&file).output().unwrap();
    let said = String::from_utf8(checked.stderr).unwrap();
    assert!(!checked.status.success());
    assert!(said.contains("line 3, column 1") && said.contains("did you mean `comm`?"), "{said}");
    let example = Command::new(PROFILER).args(["config", "init"]).output().unwrap();
    fs::write(&file, example.stdout).unwrap();
    assert!(Command::new(PROFILER).args(["config", "check"]).arg(&file).status().unwrap().success());
}
