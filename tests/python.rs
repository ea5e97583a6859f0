//! Functions of Python programs by their names, in every CPython that is installed. None of them is prepared in any way.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use common::{Profile, Running, kernel_ready, profile};
use serde_json::Value;

/// `python3.N` of every known version: the system's, and those of pyenv.
fn interpreters() -> Vec<PathBuf> {
    let mut folders = vec![PathBuf::from("/usr/bin"), PathBuf::from("/usr/local/bin")];
    if let Some(home) = std::env::var_os("HOME") {
        let versions = std::fs::read_dir(Path::new(&home).join(".pyenv/versions"));
        folders.extend(versions.into_iter().flatten().flatten().map(|entry| entry.path().join("bin")));
    }
    let mut found: Vec<PathBuf> = folders
        .iter()
        .flat_map(|folder| (8..=14).map(move |minor| folder.join(format!("python3.{minor}"))))
        .filter_map(|path| path.canonicalize().ok())
        .collect();
    found.sort();
    found.dedup();
    found
}

fn workload() -> String {
    format!("{}/../tests/workloads/shares.py", env!("CARGO_MANIFEST_DIR"))
}

/// Starts the workload.
fn start(interpreter: &Path) -> Running {
    let mut command = Command::new(interpreter);
    let mut running = Running::start(command.arg(workload()).stdin(Stdio::piped()).stdout(Stdio::piped()));
    running.ready();
    running
}

/// A stack's functions, innermost first: the name, and the line if it is a Python function.
fn frames<'a>(profile: &'a Profile, stack: &Value) -> Vec<(&'a str, Option<u64>)> {
    let indices = stack["frames"].as_array().unwrap().iter().map(|frame| frame.as_u64().unwrap() as usize);
    indices
        .flat_map(|index| {
            let frame = &profile.list("frames")[index];
            let module = &profile.list("modules")[frame["module"].as_u64().unwrap() as usize];
            let python = module["path"] == "[Python]";
            frame["functions"].as_array().unwrap().iter().map(move |function| {
                let line = function["line"].as_u64().filter(|_| python);
                (function["name"].as_str().unwrap(), line)
            })
        })
        .collect()
}

/// The lines of a function in the workload.
fn lines_of(function: &str) -> std::ops::Range<u64> {
    let source = std::fs::read_to_string(workload()).unwrap();
    let lines: Vec<&str> = source.lines().collect();
    let first = lines.iter().position(|line| line.starts_with(&format!("def {function}("))).unwrap();
    let body = lines[first + 1..].iter().take_while(|line| line.is_empty() || line.starts_with(' ')).count();
    first as u64 + 1..(first + 1 + body) as u64 + 1
}

#[test]
fn functions_have_their_names_shares_and_callers() {
    let interpreters = interpreters();
    if !kernel_ready(&["python3"]) {
        return;
    }
    assert!(!interpreters.is_empty(), "python3 is none of CPython 3.8 to 3.14");
    for interpreter in interpreters {
        let running = start(&interpreter);
        // Before the unwind tables are made, which takes long where the machine is busy, nobody has a name.
        let mut tries = ["6s", "20s", "60s"].into_iter().map(|duration| {
            let profile = profile(&["-F", "997", "-d", duration, "--pid", &running.pid()]);
            profile.assert_consistent();
            profile
        });
        let by_tables = |profile: &Profile| profile.0["user_stacks"]["complete"].as_u64().unwrap() > 1500;
        let profile = tries.find(by_tables).expect("stacks by unwind tables");
        check(&profile, &interpreter.display().to_string());
    }
}

fn check(profile: &Profile, interpreter: &str) {
    let (mut work, mut right, mut between, mut sorting) = (0, 0, 0, 0);
    let mut shares = [("work_fifty", 50.0, 0), ("work_thirty", 30.0, 0), ("work_twenty", 20.0, 0)];
    for stack in profile.list("stacks") {
        let samples = stack["samples"].as_u64().unwrap();
        let frames = frames(profile, stack);
        let python: Vec<&str> =
            frames.iter().filter(|(_, line)| line.is_some()).map(|(name, _)| *name).collect();
        for (name, line) in frames.iter().filter_map(|(name, line)| Some((*name, (*line)?))) {
            if ["spin", "work_fifty", "handle", "serve", "by_key", "sorts"].contains(&name) {
                assert!(lines_of(name).contains(&line), "{interpreter}: {name} is not at line {line}");
            }
        }
        if let Some(share) = shares.iter_mut().find(|(function, ..)| python.contains(function)) {
            share.2 += samples;
            work += samples;
            let own: Vec<&str> = python.iter().copied().skip_while(|name| *name == "spin").collect();
            // Below are the functions of the module `threading`.
            right += if own.starts_with(&[share.0, "handle", "serve"]) { samples } else { 0 };
            assert!(!python.contains(&"by_key"), "{interpreter}: threads are mixed up");
        }
        if let Some(at) = frames.iter().position(|(name, _)| *name == "by_key") {
            sorting += samples;
            let next = frames[at + 1..].iter().position(|(_, line)| line.is_some());
            // Native code stays between a function and the one that has it called.
            between += match next {
                Some(next) if next > 0 && frames[at + 1 + next].0 == "sorts" => samples,
                _ => 0,
            };
        }
    }
    assert!(work > 200 && sorting > 200, "{interpreter}: {work} and {sorting} samples");
    assert!(right * 100 >= work * 99, "{interpreter}: {right} of {work} samples have the right callers");
    assert!(between * 100 >= sorting * 99, "{interpreter}: {between} of {sorting} are called from C code");
    for (function, expected, samples) in shares {
        let measured = 100.0 * samples as f64 / work as f64;
        assert!(
            (measured - expected).abs() <= 3.5,
            "{interpreter}: {function} has {measured:.1} %, not {expected} %"
        );
    }
    // Time asleep has its function, too.
    let (mut asleep, mut named) = (0, 0);
    for stack in profile.0["offcpu"]["stacks"].as_array().unwrap() {
        let frames = frames(profile, stack);
        let python: Vec<&str> =
            frames.iter().filter(|(_, line)| line.is_some()).map(|(name, _)| *name).collect();
        if stack["end"] == "complete"
            && frames.iter().any(|(name, _)| name.contains("select") || name.contains("nanosleep"))
        {
            let ns = stack["ns"].as_u64().unwrap();
            asleep += ns;
            named += if python.starts_with(&["waits_for_reply", "polls"]) { ns } else { 0 };
        }
    }
    assert!(asleep > 500_000_000, "{interpreter}: {asleep} ns asleep");
    assert!(named * 100 >= asleep * 99, "{interpreter}: {named} of {asleep} ns asleep have their function");
    let unnamed = profile.loss("frames_unnamed");
    assert!(unnamed * 200 <= profile.number("samples"), "{interpreter}: {unnamed} frames without a name");
}

#[test]
fn what_ran_last_has_its_name_when_the_program_has_ended() {
    let interpreters = interpreters();
    if !kernel_ready(&[]) {
        return;
    }
    let script =
        "import time\nend = time.time() + 1\nwhile time.time() < end: sum(i * i for i in range(10000))";
    let (mut named, mut gone) = (0, 0);
    let folder = tempfile::tempdir().unwrap();
    for (number, interpreter) in interpreters.into_iter().enumerate() {
        // Whatever it is called: environments have links to it.
        let link = folder.path().join(format!("job-runner-{number}"));
        std::os::unix::fs::symlink(&interpreter, &link).unwrap();
        let profile = profile(&["-F", "997", "--", link.to_str().unwrap(), "-c", script]);
        for stack in profile.list("stacks") {
            let samples = stack["samples"].as_u64().unwrap();
            let functions: Vec<&str> = frames(&profile, stack).into_iter().map(|(name, _)| name).collect();
            named += if functions.contains(&"<module>") { samples } else { 0 };
            gone += if functions.iter().any(|name| name.contains("has gone")) { samples } else { 0 };
        }
    }
    // What came up for the first time after names were last asked for, nobody knows.
    assert!(named > 1000 && gone * 200 <= named, "{gone} without names, {named} with");
}

#[test]
fn what_is_allocated_has_its_functions() {
    let interpreters = interpreters();
    if !kernel_ready(&[]) {
        return;
    }
    // Two callers of one function have the same addresses: their stacks are kept apart by their functions.
    let script = "
import time
kept = []
def hoard(size): kept.append(bytes(size))
def much(): hoard(90000)
def little(): hoard(10000)
print('ready', flush=True)
while True:
    much()
    little()
    time.sleep(0.005)";
    for interpreter in interpreters {
        let mut command = Command::new(&interpreter);
        let mut running = Running::start(command.args(["-c", script]).stdout(Stdio::piped()));
        running.ready();
        let profile = profile(&["-d", "4s", "--alloc", "full", "--pid", &running.pid()]);
        let (mut all, mut by) = (0.0, [("much", 0.0), ("little", 0.0)]);
        for site in profile.0["memory"]["sites"].as_array().unwrap() {
            let bytes = site["live_bytes"].as_f64().unwrap();
            all += bytes;
            let frames = frames(&profile, site);
            let python: Vec<&str> =
                frames.iter().filter(|(_, line)| line.is_some()).map(|(name, _)| *name).collect();
            for (function, sum) in &mut by {
                *sum += if python.starts_with(&["hoard", function, "<module>"]) { bytes } else { 0.0 };
            }
        }
        let interpreter = interpreter.display();
        let [(_, much), (_, little)] = by;
        assert!(all > 5e6, "{interpreter}: {all} bytes");
        assert!(
            much + little > 0.95 * all,
            "{interpreter}: {much} and {little} of {all} bytes have functions"
        );
        assert!((8.5..9.5).contains(&(much / little)), "{interpreter}: {much} to {little}, not 9 to 1");
    }
}

/// Who has been asleep since before the run, and wakes up never, is where its own functions say: in each thread.
#[test]
fn who_sleeps_throughout_has_functions() {
    let interpreters = interpreters();
    if !kernel_ready(&["python3"]) {
        return;
    }
    const SCRIPT: &str = "import os, threading
def reads(): os.read(0, 1)
def waits(): reads()
def locked(): lock.acquire()
lock = threading.Lock()
lock.acquire()
threading.Thread(target=locked, daemon=True).start()
print('ready', flush=True)
waits()";
    for interpreter in interpreters {
        let mut command = Command::new(&interpreter);
        command.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut python = Running::start(&mut command);
        let _out = python.ready();
        python.sleeps_in("pipe_read");
        let profile = profile(&["--pid", &python.pid(), "-d", "1s", "--alloc", "off"]);
        let stacks = profile.0["offcpu"]["stacks"].as_array().unwrap();
        let of_script: Vec<Vec<&str>> = stacks
            .iter()
            .map(|stack| {
                let python = frames(&profile, stack).into_iter().filter(|(_, line)| line.is_some());
                python.map(|(name, _)| name).take(2).collect()
            })
            .collect();
        for wanted in [["reads", "waits"], ["locked", "run"]] {
            assert!(
                of_script
                    .iter()
                    .any(|of| of[..] == wanted || of.last() == Some(&"Thread.run") && of[0] == wanted[0]),
                "{}: {wanted:?} is not in {of_script:?}",
                interpreter.display()
            );
        }
    }
}
