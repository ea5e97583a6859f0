//! Programs to profile, for the tests and for `cargo xtask bench`: each running under its load, which ends with it.
#![allow(clippy::unwrap_used, reason = "without the program there is nothing to measure")]
#![allow(dead_code, reason = "each user uses some of it")]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

/// A process that ends when this is dropped.
pub struct Running(pub Child);

impl Running {
    pub fn start(command: &mut Command) -> Running {
        Running(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    pub fn pid(&self) -> String {
        self.0.id().to_string()
    }

    /// Waits until its first thread is asleep in a kernel function whose name has this in it.
    pub fn sleeps_in(&self, function: &str) {
        let wchan = format!("/proc/{}/wchan", self.0.id());
        wait_until(&format!("asleep in {function}"), || {
            std::fs::read_to_string(&wchan).is_ok_and(|name| name.contains(function))
        });
    }

    /// Waits for the process to print its first line; returns what follows.
    pub fn ready(&mut self) -> BufReader<ChildStdout> {
        let mut out = BufReader::new(self.0.stdout.take().expect("a pipe"));
        out.read_line(&mut String::new()).unwrap();
        out
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _already_gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// A program under its load.
pub struct Program {
    /// The arguments that have the profiler profile it.
    pub target: Vec<String>,
    processes: Vec<Running>,
    _dir: Option<tempfile::TempDir>,
    /// Asks the program something whose answer is known.
    question: Option<Box<dyn Fn() -> bool>>,
}

impl Program {
    /// The process id of the program, or of its first process.
    pub fn pid(&self) -> String {
        self.processes[0].pid()
    }

    fn new(target: [&str; 2], processes: Vec<Running>, dir: Option<tempfile::TempDir>) -> Program {
        Program { target: target.map(str::to_owned).into(), processes, _dir: dir, question: None }
    }

    fn asked(self, question: impl Fn() -> bool + 'static) -> Program {
        Program { question: Some(Box::new(question)), ..self }
    }

    /// Whether the program and its load still run. A program that checks itself ends at the first wrong result.
    pub fn is_alive(&mut self) -> bool {
        self.processes.iter_mut().all(|process| process.0.try_wait().is_ok_and(|ended| ended.is_none()))
    }

    /// Whether it gives the right answer to a question, if it takes any.
    pub fn answers(&self) -> bool {
        self.question.as_ref().is_none_or(|question| question())
    }
}

/// Rust as it is released; its standard library has frame pointers all the same.
pub const RUSTC: &[&str] = &["rustc", "-O", "-g", "-Cforce-frame-pointers=no"];
/// C++ as it is released.
pub const CXX: &[&str] = &["g++", "-O2", "-g", "-pthread", "-fomit-frame-pointer"];

/// Compiles `tests/workloads/SOURCE` once, with `command` before its name, and returns what comes out.
pub fn compile(source: &str, command: &[&str], into: &Path) -> PathBuf {
    static BUILDING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = BUILDING.lock();
    let name = source.replace('.', "-");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/workloads").join(source);
    let dir = into.join("workloads").join(command.join(""));
    let program = dir.join(name.trim_end_matches("-c"));
    let time = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    if time(&program) < time(&source) {
        fs::create_dir_all(&dir).unwrap();
        // Another test process may be doing the same: the rename makes it one or the other.
        let temporary = program.with_extension(std::process::id().to_string());
        let mut compiler = Command::new(command[0]);
        compiler.args(&command[1..]).arg(&source).arg("-o").arg(&temporary);
        assert!(compiler.status().is_ok_and(|status| status.success()), "{compiler:?}");
        fs::rename(temporary, &program).unwrap();
    }
    program
}

/// A program that is its own load, and says when it has begun.
pub fn running(program: &Path) -> Program {
    start(&mut Command::new(program))
}

/// The same with arguments.
pub fn start(command: &mut Command) -> Program {
    let mut process = Running::start(command.stdin(Stdio::null()).stdout(Stdio::piped()));
    process.ready();
    Program::new(["--pid", &process.pid()], vec![process], None)
}

/// Under redis-benchmark.
pub fn redis() -> Program {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("redis.sock");
    let mut server = Command::new("redis-server");
    server.args(["--port", "0", "--save", "", "--unixsocket"]).arg(&socket).current_dir(&dir);
    let server = Running::start(quiet(&mut server));
    wait_until("redis listens", || socket.exists());
    let mut load = Command::new("redis-benchmark");
    load.args(["-q", "-n", "100000000", "-t", "set,get,lpush,lrange_100,zadd", "-s"]).arg(&socket);
    let load = Running::start(quiet(&mut load));
    Program::new(["--pid", &server.pid()], vec![server, load], Some(dir)).asked(move || {
        let sum = "local sum = 0; for i = 1, 1000 do sum = sum + i end; \
                   redis.call('set', 'sum', sum); return redis.call('get', 'sum')";
        let mut client = Command::new("redis-cli");
        client
            .arg("-s")
            .arg(&socket)
            .args(["eval", sum, "0"])
            .output()
            .is_ok_and(|out| out.stdout == b"500500\n")
    })
}

/// A database of its own, without anything in it.
pub struct Postgres {
    server: Running,
    dir: tempfile::TempDir,
    bin: PathBuf,
}

impl Postgres {
    /// Starts it with more arguments; it answers when this returns.
    pub fn start(more: &[&str]) -> Postgres {
        let versions = fs::read_dir("/usr/lib/postgresql").unwrap();
        let bin = versions.map(|entry| entry.unwrap().path().join("bin")).max().unwrap();
        let dir = tempfile::tempdir().unwrap();
        assert!(Command::new("chown").arg("nobody:nogroup").arg(dir.path()).status().unwrap().success());
        let data = dir.path().join("data");
        let mut initdb = nobody(&bin.join("initdb"));
        initdb.args(["--auth=trust", "--username=me", "--no-sync", "-D"]).arg(&data);
        assert!(quiet(&mut initdb).status().unwrap().success());
        let mut server = nobody(&bin.join("postgres"));
        server
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-k"])
            .arg(dir.path())
            .arg("-D")
            .arg(&data);
        let server = Running::start(quiet(server.args(more)));
        let postgres = Postgres { server, dir, bin };
        let port = more.iter().skip_while(|arg| **arg != "-p").nth(1).unwrap_or(&"5432");
        wait_until("postgres answers", || {
            quiet(postgres.client("pg_isready").args(["-p", port])).status().unwrap().success()
        });
        postgres
    }

    pub fn pid(&self) -> String {
        self.server.pid()
    }

    /// A client program that finds it.
    pub fn client(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(["-U", "me", "-h"]).arg(self.dir.path());
        command
    }

    /// Has it end, whoever is connected.
    pub fn stop(mut self) {
        let mut stop = nobody(&self.bin.join("pg_ctl"));
        stop.args(["stop", "-m", "fast", "-D"]).arg(self.dir.path().join("data"));
        assert!(quiet(&mut stop).status().unwrap().success());
        self.server.0.wait().unwrap();
    }
}

/// PostgreSQL refuses to run as root.
fn nobody(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]).arg(program);
    command
}

/// Its backends under pgbench.
pub fn postgres() -> Program {
    let database = Postgres::start(&[]);
    assert!(
        quiet(database.client("pgbench").args(["-i", "-s", "1", "postgres"])).status().unwrap().success()
    );
    let mut load = database.client("pgbench");
    let load = Running::start(quiet(load.args(["-c", "2", "-T", "600", "-n", "postgres"])));
    let count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'";
    wait_until("pgbench has its backends", || {
        database.client("psql").args(["-Atc", count, "postgres"]).output().unwrap().stdout.trim_ascii()
            == b"2"
    });
    let Postgres { server, dir, .. } = database;
    let folder = dir.path().to_owned();
    Program::new(["--comm", "postgres"], vec![server, load], Some(dir)).asked(move || {
        // What TPC-B keeps true whatever happens.
        let sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(bbalance) FROM pgbench_branches)";
        let mut client = Command::new("psql");
        client.args(["-U", "me", "-h"]).arg(&folder);
        client.args(["-Atc", sums, "postgres"]).output().is_ok_and(|out| out.stdout == b"t\n")
    })
}

/// A port that is free at this moment; who else would want it?
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Whether somebody answers at a port.
pub fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

/// nginx in a folder of its own, listening at `port` when this returns. `main` and `http` go into its configuration.
pub fn nginx_with(dir: &Path, main: &str, port: u16, http: &str) -> Running {
    let config = format!(
        "daemon off; {main} user root; pid pid; error_log stderr crit; events {{ worker_connections 1024; }}
         http {{
             client_body_temp_path a; proxy_temp_path b; fastcgi_temp_path c; uwsgi_temp_path d; scgi_temp_path e;
             {http}
         }}"
    );
    fs::write(dir.join("conf"), config).unwrap();
    let mut server = Command::new("/usr/sbin/nginx");
    let server = Running::start(quiet(server.arg("-p").arg(dir).args(["-c", "conf"])));
    wait_until("nginx listens", || listens(port));
    server
}

/// A script of Node's that prints the port at which it listens; and that port.
pub fn node(script: &str, args: &[&Path]) -> (Running, u16) {
    let mut server = Command::new("/usr/bin/node");
    let mut server =
        Running::start(server.args(["-e", script]).args(args).stdin(Stdio::null()).stdout(Stdio::piped()));
    let mut port = String::new();
    BufReader::new(server.0.stdout.take().expect("a pipe")).read_line(&mut port).unwrap();
    (server, port.trim().parse().unwrap())
}

/// Compressing what wrk asks for. Without a master: killed, it would leave its worker behind.
pub fn nginx() -> Program {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    fs::write(dir.path().join("index.html"), "Why is that process slow? ".repeat(2000)).unwrap();
    let server = nginx_with(
        dir.path(),
        "master_process off;",
        port,
        &format!("access_log off; gzip on; gzip_types *; server {{ listen 127.0.0.1:{port}; root .; }}"),
    );
    let mut load = Command::new("wrk");
    load.args(["-t1", "-c8", "-d600s", "-H", "Accept-Encoding: gzip"]);
    let load = Running::start(quiet(load.arg(format!("http://127.0.0.1:{port}/"))));
    Program::new(["--comm", "nginx"], vec![server, load], Some(dir))
}

/// Serves four files in turn, every other one read whole and every other one piped, to wrk. Returns its port and the
/// folder of `file0` to `file3`, too.
pub fn node_files() -> (Program, u16, PathBuf) {
    const SERVER: &str = "
let turn = 0;
require('http').createServer((request, response) => {
  const i = turn++ % 4, path = `${process.argv[1]}/file${i}`, fs = require('fs');
  if (i % 2 === 0) fs.readFile(path, (error, data) => response.end(data));
  else fs.createReadStream(path).pipe(response);
}).listen(0, '127.0.0.1', function () { console.log(this.address().port); });";
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().canonicalize().unwrap();
    (0..4).for_each(|i| fs::write(folder.join(format!("file{i}")), vec![b'x'; 1 << 20]).unwrap());
    let (server, port) = node(SERVER, &[&folder]);
    let mut load = Command::new("wrk");
    let load =
        Running::start(quiet(load.args(["-t1", "-c4", "-d600s"]).arg(format!("http://127.0.0.1:{port}/"))));
    (Program::new(["--pid", &server.pid()], vec![server, load], Some(dir)), port, folder)
}

/// Debian's, whatever else is installed.
pub fn python() -> Program {
    let script = "
import json, os, re, sys, threading
def depth(n): return sum(x * x for x in range(50)) if n == 0 else depth(n - 1) + 1
def work():
    while True:
        value = {'a': [1, 2, {'b': 'c' * 50}]}
        right = depth(4) == 40429 and json.loads(json.dumps(value)) == value
        right = right and re.sub('(a|b)+c', lambda match: match.group(0).upper(), 'abababc' * 20) == 'ABABABC' * 20
        if not right or sorted(range(200), key=lambda x: -x) != list(range(199, -1, -1)): os._exit(1)
print('ready', flush=True)
threading.Thread(target=work, daemon=True).start()
work()";
    start(Command::new("/usr/bin/python3").args(["-c", script]))
}

/// A command that says nothing.
pub fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

/// Waits for a condition; a minute is for ever.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
