//! What the end-to-end tests share: building workloads, running the profiler on them, reading what it wrote.
#![allow(dead_code, reason = "each test file uses some of it")]
#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Output, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

/// The profiler under test.
pub const PROFILER: &str = env!("CARGO_BIN_EXE_profiler");

/// Why a kernel test cannot run here.
#[derive(Debug)]
pub enum Skip {
    /// Not allowed to load programs.
    Rights,
    /// A program the test profiles is not installed.
    Program(&'static str),
}

/// Whether kernel tests can run. With `PROFILER_REQUIRE_KERNEL=1` not being able to is a failure, not a skip.
pub fn kernel_ready(programs: &[&'static str]) -> bool {
    let missing_program = programs.iter().find(|program| which(program).is_none());
    let skip = if !profiler::kernel::preflight::may_load_programs() {
        Skip::Rights
    } else if let Some(program) = missing_program {
        Skip::Program(program)
    } else {
        return true;
    };
    assert!(
        std::env::var_os("PROFILER_REQUIRE_KERNEL").is_none(),
        "kernel tests are required, but: {skip:?}"
    );
    eprintln!("skipped: {skip:?}");
    false
}

pub fn which(program: &str) -> Option<PathBuf> {
    // Not the version managers' wrappers that a login shell may put first.
    ["/usr/bin", "/usr/sbin", "/usr/local/bin"]
        .iter()
        .map(|dir| Path::new(dir).join(program))
        .find(|path| path.exists())
}

/// Compiles `tests/workloads/NAME.c` once, with `flags`, and returns the program.
pub fn workload(name: &str, flags: &[&str]) -> PathBuf {
    static BUILDING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = BUILDING.lock();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/workloads").join(format!("{name}.c"));
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("workloads").join(flags.join(""));
    let program = dir.join(name);
    let time = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    if time(&program) < time(&source) {
        fs::create_dir_all(&dir).unwrap();
        // Another test process may be doing the same: the rename makes it one or the other.
        let temporary = dir.join(format!("{name}.{}", std::process::id()));
        let mut cc = Command::new("cc");
        cc.args(["-O2", "-g", "-pthread"]).args(flags).arg(&source).arg("-o").arg(&temporary);
        assert!(cc.status().expect("a C compiler, cc").success(), "{cc:?}");
        fs::rename(temporary, &program).unwrap();
    }
    program
}

/// Frame pointers for those who walk by them.
pub const FRAME_POINTERS: &[&str] = &["-fno-omit-frame-pointer"];

/// A process that ends with the test.
pub struct Running(pub Child);

impl Running {
    pub fn start(command: &mut Command) -> Running {
        Running(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    pub fn pid(&self) -> String {
        self.0.id().to_string()
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

/// A temporary folder for results, and the arguments that write them there.
pub struct Outputs {
    dir: tempfile::TempDir,
}

impl Outputs {
    pub fn new() -> Outputs {
        Outputs { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn json(&self, name: &str) -> Profile {
        Profile(serde_json::from_str(&self.text(name)).unwrap())
    }
}

/// Runs the profiler to its end.
pub fn profiler(args: &[&str]) -> Output {
    let output = Command::new(PROFILER).args(args).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "profiler {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Profiles with JSON output.
pub fn profile(args: &[&str]) -> Profile {
    let outputs = Outputs::new();
    let path = outputs.path("out.json");
    let mut all = vec!["-q", "-o", path.to_str().unwrap()];
    all.extend(args);
    profiler(&all);
    outputs.json("out.json")
}

/// A profiler that has begun to watch processes.
pub struct Watching {
    run: Running,
    live: thread::JoinHandle<()>,
    pub out: Outputs,
}

impl Watching {
    /// Returns when the live view's first line says that profiling has begun.
    pub fn start(pid: &str, args: &[&str]) -> Watching {
        let out = Outputs::new();
        let mut command = Command::new(PROFILER);
        command.args(["-i500ms", "--pid", pid]).args(args).arg("-o").arg(out.path("out.json"));
        command.arg("-o").arg(out.path("offcpu.folded")).stderr(Stdio::piped()).stdout(Stdio::null());
        let mut run = Running::start(&mut command);
        let mut live = BufReader::new(run.0.stderr.take().unwrap());
        let mut line = String::new();
        live.read_line(&mut line).unwrap();
        assert!(run.0.try_wait().unwrap().is_none(), "it has ended: {line}{}", rest(&mut live));
        let live = thread::spawn(move || drop(io::copy(&mut live, &mut io::sink())));
        Watching { run, live, out }
    }

    /// As Ctrl-C does.
    pub fn interrupt(&self) {
        // SAFETY: plain system call on a child that has not been waited for, so its pid is its own.
        unsafe { libc::kill(self.run.0.id() as i32, libc::SIGINT) };
    }

    /// Waits for the end, and reads what was found.
    pub fn end(mut self) -> (Profile, Outputs) {
        assert!(self.run.0.wait().unwrap().success());
        self.live.join().unwrap();
        (self.out.json("out.json"), self.out)
    }
}

/// Profiles a workload that prints a line when it is ready and waits for one to begin. Returns the profile and what
/// else the workload printed.
pub fn watch(command: &mut Command, args: &[&str]) -> (Profile, Outputs, String) {
    let mut target = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let mut said = target.ready();
    let watching = Watching::start(&target.pid(), args);
    let mut input = target.0.stdin.take().unwrap();
    input.write_all(b"go\n").unwrap();
    let said = rest(&mut said);
    let (profile, out) = watching.end();
    assert!(target.0.wait().unwrap().success());
    (profile, out, said)
}

fn rest(from: &mut impl io::Read) -> String {
    let mut text = String::new();
    from.read_to_string(&mut text).unwrap();
    text
}

/// A profile as its JSON output tells it.
#[derive(Debug)]
pub struct Profile(pub Value);

impl Profile {
    pub fn number(&self, key: &str) -> u64 {
        self.0[key].as_u64().unwrap_or_else(|| panic!("no {key}"))
    }

    pub fn list(&self, key: &str) -> &[Value] {
        self.0[key].as_array().unwrap_or_else(|| panic!("no {key}"))
    }

    /// Share of samples with `function` anywhere in the stack, percent.
    pub fn total_percent(&self, function: &str) -> f64 {
        let total: u64 = self
            .list("hotspots")
            .iter()
            .filter(|hotspot| hotspot["function"] == function)
            .map(|hotspot| hotspot["total_samples"].as_u64().unwrap())
            .sum();
        100.0 * total as f64 / self.number("samples").max(1) as f64
    }

    pub fn loss(&self, reason: &str) -> u64 {
        let entry = self.list("losses").iter().find(|entry| entry["reason"] == reason);
        entry.unwrap_or_else(|| panic!("no loss {reason}"))["count"].as_u64().unwrap()
    }

    /// Function names of a stack, innermost first.
    pub fn functions(&self, stack: &Value) -> Vec<&str> {
        stack["frames"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|frame| {
                self.list("frames")[frame.as_u64().unwrap() as usize]["functions"].as_array().unwrap()
            })
            .map(|function| function["name"].as_str().unwrap())
            .collect()
    }

    /// Every total that the document states in two ways agrees.
    pub fn assert_consistent(&self) {
        let sum = |list: &str, key: &str| -> u64 {
            self.list(list).iter().map(|entry| entry[key].as_u64().unwrap()).sum()
        };
        let samples = self.number("samples");
        assert_eq!(sum("stacks", "samples"), samples);
        assert_eq!(sum("threads", "samples"), samples);
        assert_eq!(sum("hotspots", "self_samples"), samples);
        assert_eq!(self.number("samples_taken") - self.number("samples_lost"), samples);
    }
}

/// Waits for a condition; a minute is for ever.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
