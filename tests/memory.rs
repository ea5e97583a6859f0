//! The allocation probe, end to end: programs that know what they have allocated and not freed.
#![allow(clippy::unwrap_used, reason = "a failed test")]
#![allow(missing_docs, reason = "a test")]

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::Path,
    process::{ChildStderr, ChildStdout, Command, Stdio},
    sync::{PoisonError, RwLock, RwLockReadGuard},
};

use profiler_common::alloc::MAX_LIVE;
use serde_json::Value;

mod common;
use common::{Outputs, PROFILER, Profile, Running, kernel_ready, programs, workload};

/// Tests that others must not take the CPU from: what a thread has to wait with it does in a burst, which is what the
/// error of estimates is about.
static QUIET: RwLock<()> = RwLock::new(());

/// A program that waits for a line before it works, and keeps what it has until its input ends.
struct Knower {
    process: Running,
    out: BufReader<ChildStdout>,
    _quiet: Option<RwLockReadGuard<'static, ()>>,
}

impl Knower {
    fn start(command: &mut Command) -> Knower {
        let quiet = QUIET.read().unwrap_or_else(PoisonError::into_inner);
        Knower { _quiet: Some(quiet), ..Knower::unguarded(command) }
    }

    fn unguarded(command: &mut Command) -> Knower {
        let mut process = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let out = process.ready();
        Knower { process, out, _quiet: None }
    }

    /// Has it work; returns what it says: bytes and objects by place.
    fn work(&mut self) -> BTreeMap<String, (u64, u64)> {
        writeln!(self.process.0.stdin.as_ref().unwrap(), "go").unwrap();
        let mut places = BTreeMap::new();
        loop {
            let mut line = String::new();
            assert!(self.out.read_line(&mut line).unwrap() > 0, "it ended");
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["done"] => return places,
                [name, bytes, objects] => {
                    places.insert(name.to_owned(), (bytes.parse().unwrap(), objects.parse().unwrap()));
                }
                _ => panic!("{line}"),
            }
        }
    }
}

/// The profiler at work.
struct Watching {
    run: Running,
    said: BufReader<ChildStderr>,
    outputs: Outputs,
}

impl Watching {
    /// Starts it; returns when probes that are wanted from the start are in place.
    fn start(args: &[&str]) -> Watching {
        let outputs = Outputs::new();
        let mut command = Command::new(PROFILER);
        command.args(["-i200ms", "--waits", "off"]);
        for name in ["x.json", "x.prec", "alloc.folded"] {
            command.arg("-o").arg(outputs.path(name));
        }
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut run = Running::start(&mut command);
        let mut said = BufReader::new(run.0.stderr.take().unwrap());
        said.read_line(&mut String::new()).unwrap();
        Watching { run, said, outputs }
    }

    fn finish(mut self) -> (Profile, Outputs) {
        let interrupt = Command::new("kill").args(["-INT", &self.run.pid()]).status();
        assert!(interrupt.unwrap().success());
        let mut said = String::new();
        self.said.read_to_string(&mut said).unwrap();
        assert!(self.run.0.wait().unwrap().success(), "{said}");
        (self.outputs.json("x.json"), self.outputs)
    }
}

fn memory(profile: &Profile) -> &Value {
    &profile.0["memory"]
}

fn watched(profile: &Profile, key: &str) -> u64 {
    memory(profile)["watching"][key].as_u64().unwrap_or_else(|| panic!("no {key}"))
}

fn sites(profile: &Profile) -> &[Value] {
    memory(profile)["sites"].as_array().unwrap()
}

/// What sites with `function` in their stacks add up to.
fn sum(profile: &Profile, function: &str, key: &str) -> f64 {
    let with = sites(profile).iter().filter(|site| profile.functions(site).contains(&function));
    with.map(|site| site[key].as_f64().unwrap()).sum()
}

/// Every place's live bytes and objects are what the program knows, exactly.
fn assert_exact(profile: &Profile, places: &BTreeMap<String, (u64, u64)>) {
    let found: BTreeMap<String, (u64, u64)> = places
        .keys()
        .map(|place| {
            let live = |key| sum(profile, place, key) as u64;
            (place.clone(), (live("live_bytes"), live("live_count")))
        })
        .collect();
    assert_eq!(found, *places, "{}", astray(profile));
    assert!(sites(profile).iter().all(|site| site["estimated"] == false && site["live_bytes_err"] == 0.0));
    for key in ["lost_objects", "windows", "implied_frees"] {
        assert_eq!(watched(profile, key), 0, "{key}: {}", memory(profile)["watching"]);
    }
}

/// Every output tells the same.
fn assert_consistent(profile: &Profile, outputs: &Outputs) {
    let live: f64 = sites(profile).iter().map(|site| site["live_bytes"].as_f64().unwrap().round()).sum();
    let folded = |text: &str| -> u64 {
        text.lines().map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    };
    assert_eq!(folded(&outputs.text("alloc.folded")), live as u64);
    let again = outputs.path("alloc2.folded");
    let json = outputs.path("y.json");
    let recording = outputs.path("x.prec");
    let args =
        ["replay", recording.to_str().unwrap(), "-o", again.to_str().unwrap(), "-o", json.to_str().unwrap()];
    common::profiler(&args);
    assert_eq!(outputs.text("alloc2.folded"), outputs.text("alloc.folded"));
    assert_eq!(outputs.json("y.json").0["memory"], profile.0["memory"]);
    for site in sites(profile) {
        let number = |key: &str| site[key].as_f64().unwrap();
        assert_eq!(number("allocated_bytes") - number("freed_bytes"), number("live_bytes"), "{site}");
        assert_eq!(number("allocated_count") - number("freed_count"), number("live_count"), "{site}");
        let counts =
            |key: &str| -> f64 { site[key].as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).sum() };
        assert_eq!(counts("sizes_bytes"), number("allocated_count"));
        assert_eq!(counts("ages_ns"), number("live_count"));
    }
}

/// What is known of allocations whose stacks do not go through the program's own functions.
fn astray(profile: &Profile) -> String {
    let others = sites(profile).iter().filter(|&site| !profile.functions(site).contains(&"at_depth"));
    let told: Vec<_> =
        others.map(|site| format!("{} of {:?}", site["allocated_count"], profile.functions(site))).collect();
    format!("{told:#?}, {}", memory(profile)["watching"])
}

/// Eight threads, and eight more after those have ended: malloc, calloc, realloc, memalign, mmap and their kin, what one
/// thread allocates freed by others, calls inside of calls.
#[test]
fn live_bytes_are_what_the_program_knows() {
    if !kernel_ready(&[]) {
        return;
    }
    let mut program = Knower::start(&mut Command::new(workload("alloc", &[])));
    let watching = Watching::start(&["--pid", &program.process.pid(), "--alloc", "full"]);
    let places = program.work();
    let (profile, outputs) = watching.finish();
    assert_exact(&profile, &places);
    assert_consistent(&profile, &outputs);
    let churned = sum(&profile, "churn", "allocated_count");
    assert_eq!(churned, 16.0 * 200.0 * 20.0, "{}", astray(&profile));
    let complete = sites(&profile).iter().filter(|site| profile.functions(site).contains(&"at_depth"));
    assert!(complete.clone().count() > 100, "stacks of all depths are told apart");
    assert!(complete.clone().all(|site| profile.functions(site).contains(&"clone3")), "complete stacks");
    let pid: u64 = program.process.pid().parse().unwrap();
    assert!(complete.clone().all(|site| site["pid"] == pid));
}

/// Mappings that end in part, together, by being mapped over, or unseen.
#[test]
fn mappings_are_what_is_mapped() {
    if !kernel_ready(&[]) {
        return;
    }
    let mut program = Knower::start(&mut Command::new(workload("mappings", &[])));
    let watching = Watching::start(&["--pid", &program.process.pid(), "--alloc", "full"]);
    let places = program.work();
    let (profile, outputs) = watching.finish();
    assert_exact(&profile, &places);
    assert_consistent(&profile, &outputs);
}

/// Recursive programs come by with another stack pointer each time.
#[test]
fn known_stacks_are_compared_and_not_walked() {
    if !kernel_ready(&[]) {
        return;
    }
    let mut program = Knower::start(Command::new(workload("alloc", &[])).arg("2000"));
    let watching = Watching::start(&["--pid", &program.process.pid(), "--alloc", "full"]);
    let places = program.work();
    let (profile, _) = watching.finish();
    assert_exact(&profile, &places);
    let allocated: u64 = sites(&profile).iter().map(|site| site["allocated_count"].as_u64().unwrap()).sum();
    let walked = watched(&profile, "stacks_walked");
    assert!(walked * 20 < allocated, "{walked} of {allocated} stacks were walked");
}

/// What is allocated before is not watched, and freeing it no error.
#[test]
fn frees_of_what_was_there_before_are_told() {
    if !kernel_ready(&[]) {
        return;
    }
    let script = "
import ctypes, sys
c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
c.free.argtypes = [ctypes.c_void_p]
old = [c.malloc(1000) for _ in range(1000)]
print('ready', flush=True)
sys.stdin.readline()
for object in old: c.free(object)
print('done', flush=True)
sys.stdin.readline()";
    let mut program = Knower::start(Command::new("/usr/bin/python3").args(["-c", script]));
    let watching = Watching::start(&["--pid", &program.process.pid(), "--alloc", "full"]);
    program.work();
    let (profile, _) = watching.finish();
    let heap = memory(&profile)["processes"][0]["heap"].as_array().unwrap();
    let older = heap.last().unwrap()["older_freed_count"].as_u64().unwrap();
    assert!((1000..1500).contains(&older), "{older}");
}

/// The price is kept: probes are there for some of the time only, and what they find is right within what they say.
#[test]
fn an_estimate_is_within_its_error() {
    if !kernel_ready(&[]) {
        return;
    }
    let (profile, bytes, found, error) = estimate(&["2", "6"]);
    assert!(watched(&profile, "windows") > 1, "{}", memory(&profile)["watching"]);
    assert!(watched(&profile, "seen_ns") < watched(&profile, "watched_ns") / 2);
    assert!((found - bytes).abs() < 5.0 * error, "{found} ± {error}, not {bytes}");
    assert!(error < bytes / 3.0, "± {error} of {bytes} says nothing");
    let churned = sum(&profile, "churn_here", "live_bytes");
    assert!(churned < found / 4.0, "what is freed is not taken for live: {churned} of {found}");
}

/// Bursts of a program that is idle in between, and earns next to no windows: an estimate that says how bad it is.
#[test]
fn an_estimate_of_bursts_says_how_bad_it_is() {
    if !kernel_ready(&[]) {
        return;
    }
    let (_, bytes, found, error) = estimate(&["2", "6", "50"]);
    assert!((found - bytes).abs() < 5.0 * error, "{found} ± {error}, not {bytes}");
}

/// Has leaker work while it is watched at 5 %. What it leaked and what was found, with its error, bytes.
fn estimate(args: &[&str]) -> (Profile, f64, f64, f64) {
    let _quiet = QUIET.write().unwrap_or_else(PoisonError::into_inner);
    let mut program = Knower::unguarded(Command::new(workload("leaker", &[])).args(args));
    let watching =
        Watching::start(&["--pid", &program.process.pid(), "--alloc", "full", "--max-overhead", "5"]);
    let places = program.work();
    let (profile, _) = watching.finish();
    let (bytes, _) = places["leak_here"];
    let found = sum(&profile, "leak_here", "live_bytes");
    let with = sites(&profile).iter().filter(|site| profile.functions(site).contains(&"leak_here"));
    let error = with.map(|site| site["live_bytes_err"].as_f64().unwrap().powi(2)).sum::<f64>().sqrt();
    assert!(error > 0.0 && sites(&profile).iter().all(|site| site["estimated"] == true));
    println!("{found} ± {error}, {bytes}");
    (profile, bytes as f64, found, error)
}

/// More objects than there is room for are counted, not guessed.
#[test]
fn what_there_is_no_room_for_is_counted() {
    if !kernel_ready(&[]) {
        return;
    }
    let objects = u64::from(MAX_LIVE) + 300_000;
    let mut program = Knower::start(Command::new(workload("hoard", &[])).arg(objects.to_string()));
    let watching = Watching::start(&["--pid", &program.process.pid(), "--alloc", "full"]);
    program.work();
    let (profile, outputs) = watching.finish();
    let live = sum(&profile, "hoard_here", "live_count") as u64;
    let lost = watched(&profile, "lost_objects");
    // The few others are the C library's own.
    assert!(live.abs_diff(MAX_LIVE.into()) < 1000, "{live} kept");
    assert_eq!(live + lost, objects);
    assert_eq!(sum(&profile, "hoard_here", "live_bytes") as u64, 16 * live);
    let recording = outputs.path("x.prec");
    let report = common::profiler(&["replay", "--details", recording.to_str().unwrap()]).stdout;
    let report = String::from_utf8(report).unwrap();
    assert!(report.contains("objects not counted at all, for lack of room: 300,"), "{report}");
}

/// Only a process that grows is watched by itself, and then what it grows by is named.
#[test]
fn growth_is_noticed() {
    if !kernel_ready(&[]) {
        return;
    }
    let mut still = Knower::start(Command::new(workload("leaker", &[])).args(["1", "0"]));
    let watching = Watching::start(&["--pid", &still.process.pid()]);
    still.work();
    let (profile, _) = watching.finish();
    drop(still);
    assert_eq!(memory(&profile)["watching"]["mode"], "ready");
    assert!(!memory(&profile)["processes"][0]["growth"].as_array().unwrap().is_empty());

    let mut grows = Knower::start(Command::new(workload("leaker", &[])).args(["1", "8"]));
    let watching = Watching::start(&["--pid", &grows.process.pid()]);
    let places = grows.work();
    let (profile, _) = watching.finish();
    assert_eq!(memory(&profile)["watching"]["mode"], "watched");
    let found = sum(&profile, "leak_here", "live_bytes");
    assert!(found > 0.0 && found < 1.5 * places["leak_here"].0 as f64, "{found} of {places:?}");
    assert!(profile.functions(&sites(&profile)[0]).contains(&"leak_here"), "{}", sites(&profile)[0]);
    let faults = memory(&profile)["faults"].as_array().unwrap();
    assert!(
        profile.functions(&faults[0]).contains(&"leak_here"),
        "growth by stack without probes: {}",
        faults[0]
    );
}

/// A child has its parent's memory, and a program that replaces another has none of it.
#[test]
fn fork_and_exec_are_followed() {
    if !kernel_ready(&[]) {
        return;
    }
    let alloc = workload("alloc", &[]);
    let mut program =
        Knower::start(Command::new("/usr/bin/python3").args(["-c", EXEC, alloc.to_str().unwrap()]));
    let watching = Watching::start(&["--pid", &program.process.pid(), "--alloc", "full"]);
    writeln!(program.process.0.stdin.as_ref().unwrap(), "go").unwrap();
    let mut line = String::new();
    while line != "ready\n" {
        line.clear();
        assert!(program.out.read_line(&mut line).unwrap() > 0);
    }
    let places = program.work();
    let (profile, _) = watching.finish();
    for (place, &(bytes, objects)) in &places {
        let found = (sum(&profile, place, "live_bytes") as u64, sum(&profile, place, "live_count") as u64);
        // Until the new program's unwind tables are there its stacks go by frame pointers, which the C library has not.
        if place != "leak_strdup" {
            assert_eq!(found, (bytes, objects), "{place} of {places:?}");
        }
    }
    let of_python = |function: &str| sum(&profile, function, "live_bytes");
    assert_eq!(of_python("Py_BytesMain"), 0.0, "gone with its program");
}

/// Allocates, has a child that frees, and becomes another program.
const EXEC: &str = "
import os, sys
print('ready', flush=True)
sys.stdin.readline()
keep = [bytearray(100_000) for _ in range(100)]
child = os.fork()
if child == 0:
    del keep
    os._exit(0)
os.waitpid(child, 0)
os.execv(sys.argv[1], sys.argv[1:])";

/// C++'s operator new ends in malloc and is counted once; what it throws passes the probes.
#[test]
fn new_and_exceptions() {
    if !kernel_ready(&["g++"]) {
        return;
    }
    let mut program = Knower::start(&mut Command::new(common::compiled("alloc.cc", programs::CXX)));
    let watching = Watching::start(&["--pid", &program.process.pid(), "--alloc", "full"]);
    let places = program.work();
    let (profile, _) = watching.finish();
    assert_exact(&profile, &places);
}

/// Allocators that take the C library's place have an operator new of their own, which does not end in malloc.
#[test]
fn other_allocators_are_watched() {
    if !kernel_ready(&["g++", "musl-gcc"]) {
        return;
    }
    let programs = [workload("alloc", &[]), common::compiled("alloc.cc", programs::CXX)];
    for library in ["libjemalloc.so.2", "libtcmalloc_minimal.so.4", "libmimalloc.so.2"] {
        let path = common::library(library);
        for program in &programs {
            let mut command = Command::new(program);
            // Debian's mimalloc is built as C, and cannot throw.
            if library.contains("mimalloc") && program == &programs[1] {
                command.arg("calm");
            }
            let mut program = Knower::start(command.env("LD_PRELOAD", &path));
            let watching = Watching::start(&["--pid", &program.process.pid(), "--alloc", "full"]);
            let places = program.work();
            let (profile, _) = watching.finish();
            assert_exact(&profile, &places);
            assert_eq!(memory(&profile)["watching"]["problems"].as_array().map(Vec::len), Some(0));
            // One delete may pass several functions that free. An exception is made inside of the operator new that throws it.
            let heap = memory(&profile)["processes"][0]["heap"].as_array().unwrap();
            let older = heap.last().unwrap()["older_freed_count"].as_u64().unwrap();
            let thrown = if places.contains_key("too_much") { 1000 } else { 0 };
            assert!(older < thrown + 100, "{library}: {older} frees of what was there before");
        }
    }
    for flags in [&["-static"][..], &[]] {
        let command = [&["musl-gcc", "-O2", "-g", "-pthread"], flags].concat();
        let mut program = Knower::start(&mut Command::new(common::compiled("alloc.c", &command)));
        let watching = Watching::start(&["--pid", &program.process.pid(), "--alloc", "full"]);
        let mut places = program.work();
        // musl itself has no unwind tables: what its functions allocate is theirs.
        let copies = places.remove("leak_strdup").unwrap();
        places.insert("strdup".to_owned(), copies);
        let (profile, _) = watching.finish();
        assert_exact(&profile, &places);
    }
}

/// Whatever becomes of the profiler, the target goes on without it.
#[test]
fn a_killed_profiler_leaves_nothing_behind() {
    if !kernel_ready(&[]) {
        return;
    }
    let mut program = Knower::start(&mut Command::new(workload("alloc", &[])));
    let mut watching = Watching::start(&["--pid", &program.process.pid(), "--alloc", "full"]);
    let breakpoints = |pid: &str| breakpoints_in(pid);
    assert!(breakpoints(&program.process.pid()) > 0, "probes are in place");
    watching.run.0.kill().unwrap();
    watching.run.0.wait().unwrap();
    common::programs::wait_until("the probes are gone", || breakpoints(&program.process.pid()) == 0);
    assert_eq!(program.work()["leak_malloc"].1, 16 * 200);
}

/// Bytes of a process's C library that are not those of the file.
fn breakpoints_in(pid: &str) -> usize {
    use std::os::unix::fs::FileExt as _;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let line = maps.lines().find(|line| line.contains("r-xp") && line.contains("libc.so")).unwrap();
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (start, end) = fields[0].split_once('-').unwrap();
    let [start, end, offset] = [start, end, fields[2]].map(|hex| u64::from_str_radix(hex, 16).unwrap());
    let (mut there, mut original) = (vec![0; (end - start) as usize], vec![0; (end - start) as usize]);
    std::fs::File::open(format!("/proc/{pid}/mem")).unwrap().read_exact_at(&mut there, start).unwrap();
    std::fs::File::open(Path::new(fields[5])).unwrap().read_at(&mut original, offset).unwrap();
    there.iter().zip(&original).filter(|(there, original)| there != original).count()
}

/// Servers and runtimes go on and give right answers while every allocation is watched.
#[test]
fn real_programs_are_watched() {
    if !kernel_ready(&["redis-server", "redis-cli", "node"]) {
        return;
    }
    let _quiet = QUIET.read().unwrap_or_else(PoisonError::into_inner);
    let redis = programs::redis();
    let watching = Watching::start(&["--pid", &redis.pid(), "--alloc", "full"]);
    std::thread::sleep(std::time::Duration::from_secs(2)); // of load
    let (profile, _) = watching.finish();
    let probed = memory(&profile)["watching"]["probed"].as_array().unwrap();
    assert!(probed.iter().any(|library| library[0].as_str().unwrap().contains("jemalloc")), "{probed:?}");
    assert!(
        sites(&profile).iter().any(|site| profile.functions(site).contains(&"main")),
        "{}",
        sites(&profile)[0]
    );

    for (program, script, function) in [
        (
            "/usr/bin/python3",
            "import sys\nprint('ready', flush=True)\nsys.stdin.readline()\nkeep = [bytearray(100_000) for _ in range(100)]\nprint('kept 10000000 100', flush=True)\nprint('done', flush=True)\nsys.stdin.readline()",
            "PyByteArray_Resize",
        ),
        (
            "/usr/bin/node",
            "console.log('ready'); process.stdin.once('data', () => { globalThis.keep = []; for (let i = 0; i < 100; i++) keep.push(Buffer.alloc(100_000)); console.log('kept 10000000 100'); console.log('done'); });",
            "node::Start",
        ),
    ] {
        let flag = if program.ends_with("node") { "-e" } else { "-c" };
        let mut program = Knower::unguarded(Command::new(program).args([flag, script]));
        let watching = Watching::start(&["--pid", &program.process.pid(), "--alloc", "full"]);
        let (bytes, _) = program.work()["kept"];
        let (profile, _) = watching.finish();
        let live: f64 = sites(&profile).iter().map(|site| site["live_bytes"].as_f64().unwrap()).sum();
        assert!(live >= bytes as f64 && live < 1.5 * bytes as f64, "{live}");
        assert!(
            sites(&profile).iter().any(|site| {
                site["live_bytes"].as_f64() >= Some(90_000.0)
                    && profile.functions(site).iter().any(|name| name.contains(function))
            }),
            "{}",
            sites(&profile)[0]
        );
    }
}
