//! What the end-to-end tests share: building workloads, running the profiler on them, reading what it wrote.
#![allow(dead_code, reason = "each test file uses some of it")]
#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{ChildStderr, Command, Output, Stdio},
};

use profiler::{
    model::stack::StackEnd,
    recording::{self, Ending, Event},
};
use serde_json::Value;

pub mod programs;

pub use programs::Running;

/// The profiler under test.
pub const PROFILER: &str = env!("CARGO_BIN_EXE_profiler");

/// Why a kernel test cannot run here.
#[derive(Debug)]
pub enum Skip {
    /// Not allowed to load programs.
    Rights,
    /// A program the test profiles is not installed.
    Program(&'static str),
    /// This machine has not what the test is about.
    Machine(&'static str),
}

/// Says that a test is skipped because this machine has not what it is about, however much it is wanted.
pub fn machine_has_no(what: &'static str) {
    skipped(&Skip::Machine(what));
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
        std::env::var_os("PROFILER_REQUIRE_KERNEL").is_none_or(|required| required.is_empty()),
        "kernel tests are required, but: {skip:?}"
    );
    skipped(&skip);
    false
}

/// Says that the running test is skipped, and adds a line to the file that `PROFILER_SKIPPED` names, since the test
/// harness shows nothing of a test that passes.
fn skipped(why: &Skip) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    eprintln!("skipped: {test}: {why:?}");
    let Some(file) = std::env::var_os("PROFILER_SKIPPED") else { return };
    let line = format!("{test}: {why:?}\n");
    // One write, so that tests of several threads do not mix their lines.
    fs::File::options().create(true).append(true).open(file).unwrap().write_all(line.as_bytes()).unwrap();
}

pub fn which(program: &str) -> Option<PathBuf> {
    // Not the version managers' wrappers that a login shell may put first.
    ["/usr/bin", "/usr/sbin", "/usr/local/bin"]
        .iter()
        .map(|dir| Path::new(dir).join(program))
        .find(|path| path.exists())
}

/// A shared library of the system's.
pub fn library(name: &str) -> PathBuf {
    let dirs = ["x86_64-linux-gnu", "aarch64-linux-gnu"].map(|dir| Path::new("/usr/lib").join(dir));
    dirs.map(|dir| dir.join(name)).into_iter().find(|path| path.exists()).expect(name)
}

/// Compiles `tests/workloads/NAME.c` once, with `flags`, and returns the program.
pub fn workload(name: &str, flags: &[&str]) -> PathBuf {
    let mut command = vec!["cc", "-O2", "-g", "-pthread"];
    command.extend(flags);
    compiled(&format!("{name}.c"), &command)
}

/// Compiles `tests/workloads/SOURCE` once, with `command` before its name, and returns what comes out.
pub fn compiled(source: &str, command: &[&str]) -> PathBuf {
    programs::compile(source, command, Path::new(env!("CARGO_TARGET_TMPDIR")))
}

/// Frame pointers for those who walk by them.
pub const FRAME_POINTERS: &[&str] = &["-fno-omit-frame-pointer"];

/// The profiler at work on something that goes on beside it.
pub struct Profiling {
    run: Running,
    live: BufReader<ChildStderr>,
    outputs: Outputs,
}

impl Profiling {
    /// Starts it, and returns when sampling has begun.
    pub fn start(args: &[&str]) -> Profiling {
        let outputs = Outputs::new();
        let mut command = Command::new(PROFILER);
        command.arg("-o").arg(outputs.path("x.json")).arg("-o").arg(outputs.path("x.prec"));
        // The live view's first line says that sampling has begun.
        command.arg("-i200ms").args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut run = Running::start(&mut command);
        let mut live = BufReader::new(run.0.stderr.take().expect("a pipe"));
        live.read_line(&mut String::new()).unwrap();
        Profiling { run, live, outputs }
    }

    /// Ends it, and goes on as [`Profiling::finish`].
    #[allow(dead_code, reason = "most runs end with their target")]
    pub fn end(self) -> (Profile, Vec<(u64, StackEnd)>) {
        // SAFETY: sends a signal to a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(self.run.0.id() as i32, libc::SIGINT) }, 0);
        self.finish()
    }

    /// Waits for its end; returns the profile, and each sample's time and the end of its stack.
    pub fn finish(mut self) -> (Profile, Vec<(u64, StackEnd)>) {
        let mut said = String::new();
        self.live.read_to_string(&mut said).unwrap();
        assert!(self.run.0.wait().unwrap().success(), "{said}");
        let (mut ends, mut samples) = (Vec::new(), Vec::new());
        let ending = recording::read(fs::File::open(self.outputs.path("x.prec")).unwrap(), |event| {
            match event {
                Event::Stack(stack) => ends.push(stack.end),
                Event::Sample(sample) => samples.push((sample.time_ns, ends[sample.stack.0 as usize])),
                _ => {}
            }
            Ok(())
        });
        assert_eq!(ending.unwrap(), Ending::Complete);
        (self.outputs.json("x.json"), samples)
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

    /// Functions, innermost first, of where a process's first thread spent most of its time off CPUs, and that time, ns.
    pub fn waited_longest(&self, pid: u32) -> (Vec<&str>, u64) {
        let stacks = self.0["offcpu"]["stacks"].as_array().unwrap().iter();
        let own = stacks.filter(|stack| stack["tid"] == pid);
        let longest = own.max_by_key(|stack| stack["ns"].as_u64().unwrap()).expect("a stack off CPUs");
        (self.functions(longest), longest["ns"].as_u64().unwrap())
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
