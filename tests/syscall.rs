//! The system-call probe against a program whose calls are known, and against what `strace -c` counts of it.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
};

use common::{Outputs, Profile, kernel_ready, profile, profiler, workload};
use serde_json::Value;

/// Calls and errors by name, of all processes together.
type Counts = BTreeMap<String, (u64, u64)>;

fn counts(profile: &Profile) -> Counts {
    let mut counts = Counts::new();
    for call in list(profile, "calls") {
        let n = call["calls"]["count"].as_u64().unwrap();
        let entry = counts.entry(call["syscall"].as_str().unwrap().to_owned()).or_default();
        entry.0 += n;
        entry.1 += call["failed"].as_u64().unwrap();
        let by_errno: u64 = call["errors"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
        assert_eq!(by_errno, call["failed"].as_u64().unwrap());
    }
    counts.retain(|_, (n, _)| *n > 0);
    counts
}

fn list<'a>(profile: &'a Profile, key: &str) -> &'a [Value] {
    profile.0["syscalls"][key].as_array().unwrap_or_else(|| panic!("no {key}"))
}

fn call<'a>(profile: &'a Profile, name: &str) -> &'a Value {
    list(profile, "calls").iter().find(|call| call["syscall"] == name).unwrap_or_else(|| panic!("no {name}"))
}

/// What `strace -f -c` prints: the last column is the name, the fourth the calls, the fifth the errors if any.
fn strace(program: &std::path::Path) -> Counts {
    let output = Command::new("strace").args(["-f", "-c"]).arg(program).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let rows = text.lines().skip_while(|line| !line.starts_with("---")).skip(1);
    rows.take_while(|line| !line.starts_with("---"))
        .map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let errors = if fields.len() == 6 { fields[4].parse().unwrap() } else { 0 };
            (fields[fields.len() - 1].to_owned(), (fields[3].parse().unwrap(), errors))
        })
        .collect()
}

#[test]
fn counts_are_those_of_strace() {
    if !kernel_ready(&["strace"]) {
        return;
    }
    let calls = workload("calls", &[]);
    let profile = profile(&["--syscalls", "--", calls.to_str().unwrap()]);
    profile.assert_consistent();
    assert_eq!(profile.loss("calls_full"), 0);
    let (ours, theirs) = (counts(&profile), strace(&calls));
    // Both start it with a process of their own, whose first calls are the starter's.
    for (name, expected) in &theirs {
        let counted = ours.get(name).copied().unwrap_or_default();
        // A library allocates as the environment demands.
        if ["brk", "mmap", "munmap", "mprotect", "futex"].contains(&name.as_str()) && counted != *expected {
            eprintln!("{name}: {counted:?}, {expected:?} by strace");
        } else if name == "read" {
            assert!(counted.0 - expected.0 <= 1, "the starter's read: {counted:?} {expected:?}");
        } else {
            assert_eq!(counted, *expected, "{name}: ours, and strace's");
        }
    }
    for (name, n) in [("getppid", 1000), ("getuid", 506), ("write", 200), ("readv", 33), ("vfork", 2)] {
        assert_eq!(ours[name].0, n, "{name}");
    }
    let unfinished = |name: &str| -> u64 {
        let of = list(&profile, "calls").iter().filter(|call| call["syscall"] == name);
        of.map(|call| call["unfinished"].as_u64().unwrap()).sum()
    };
    assert_eq!((unfinished("exit_group"), unfinished("read")), (3, 1));
    assert_eq!(call(&profile, "getcwd")["errors"]["ERANGE"], 11);
    assert_eq!(call(&profile, "clock_nanosleep")["errors"]["ERESTART_RESTARTBLOCK"], 3);
}

#[test]
fn lengths_are_right() {
    if !kernel_ready(&["python3"]) {
        return;
    }
    for (ms, times) in [(10u64, 20u64), (100, 5), (1000, 1)] {
        let script = format!(
            "import time, os\nfor _ in range({times}): time.sleep({ms} / 1000)\nr, w = os.pipe()\n\
             if os.fork() == 0:\n  time.sleep({ms} / 1000); os.write(w, b'x'); os._exit(0)\nos.read(r, 1)"
        );
        let profile = profile(&["--syscalls", "--", "/usr/bin/python3", "-c", &script]);
        let sleeps = call(&profile, "clock_nanosleep");
        let count = sleeps["calls"]["count"].as_u64().unwrap();
        let mean = sleeps["calls"]["sum_ns"].as_f64().unwrap() / count as f64 / 1e6;
        // Both bounds are the program's: a sleep is never shorter, and the machine may be busy.
        assert!(mean >= ms as f64 && mean <= ms as f64 * 1.02 + 1.0, "{mean} ms, not {ms}");
        let blocked = sleeps["blocked_ns"].as_f64().unwrap() / sleeps["calls"]["sum_ns"].as_f64().unwrap();
        assert!(blocked > 0.9, "{blocked}");
        let slowest = list(&profile, "slow").iter().find(|slow| slow["syscall"] == "read").unwrap();
        let took = slowest["duration_ns"].as_f64().unwrap() / 1e6;
        assert!(took >= ms as f64 * 0.8 && took <= ms as f64 * 1.02 + 5.0, "{took} ms, not {ms}");
        assert!(slowest["arguments"].as_str().unwrap().starts_with("fd "), "{slowest}");
        assert_eq!(slowest["kind"], "pipe");
    }
}

/// One answer awaited before the next question, against all questions asked at once.
const ASKER: &str = "
import os, socket, sys, time
listener = socket.create_server(('127.0.0.1', 0))
def serve():
    peer, _ = listener.accept()
    while data := peer.recv(64): peer.sendall(data)
if os.fork() == 0:
    os.setsid(); serve(); os._exit(0)
peer = socket.create_connection(listener.getsockname())
listener.close()
def ask():
    peer.sendall(b'x' * 64)
def answer(n):
    while n > 0: n -= len(peer.recv(65536))
# Long enough to be found out what it is.
ask(); answer(64); time.sleep(0.3)
if sys.argv[1] == 'chatty':
    for _ in range(300): ask(); answer(64)
else:
    for _ in range(300): ask()
    answer(300 * 64)
";

#[test]
fn questions_one_after_the_other_are_found() {
    if !kernel_ready(&["python3"]) {
        return;
    }
    for how in ["chatty", "pipelined"] {
        let profile = profile(&["--syscalls", "--", "/usr/bin/python3", "-c", ASKER, how]);
        let found: Vec<&Value> =
            list(&profile, "chatty").iter().filter(|of| of["round_trips"] == true).collect();
        assert_eq!(found.len(), usize::from(how == "chatty"), "{how}: {found:?}");
        if let [found] = found[..] {
            assert!(found["count"].as_u64().unwrap().abs_diff(301) <= 1, "{found}");
            assert!(found["object"].as_str().unwrap().starts_with("tcp 127.0.0.1:"), "{found}");
            assert_eq!(found["median_bytes"], 64);
        }
    }
}

#[test]
fn failing_calls_are_found() {
    if !kernel_ready(&["python3"]) {
        return;
    }
    let script = "
import os, errno
for i in range(2000):
    try: os.chdir('/dev/null' if i % 10 == 0 else '/')
    except OSError: pass
    try: os.stat('/no/such/file')
    except OSError: pass";
    let python = ["--", "/usr/bin/python3", "-c", script];
    let profile = profile(&[&["--syscalls"][..], &python[..]].concat());
    let storms = list(&profile, "error_storms");
    assert_eq!(storms.len(), 1, "that files are missing is no failure: {storms:?}");
    assert_eq!((&storms[0]["syscall"], &storms[0]["errno"]), (&"chdir".into(), &"ENOTDIR".into()));
    assert_eq!((storms[0]["failed"].as_u64(), storms[0]["calls"].as_u64()), (Some(200), Some(2000)));
    for calm in [["--expected-error", "ENOTDIR"], ["--error-storm", "50"]] {
        let profile = common::profile(&[&["--syscalls"][..], &calm[..], &python[..]].concat());
        assert_eq!(list(&profile, "error_storms").len(), 0, "{calm:?}");
    }
}

#[test]
fn time_in_calls_is_told_by_stack_in_every_format() {
    if !kernel_ready(&["python3"]) {
        return;
    }
    let out = Outputs::new();
    let names = ["syscalls.folded", "x.json", "x.prec", "syscalls.pb.gz", "syscalls.svg"];
    let paths = names.map(|name| out.path(name).to_str().unwrap().to_owned());
    let mut args = vec!["-q", "--syscalls", "--redact-paths"];
    paths.iter().for_each(|path| args.extend(["-o", path]));
    args.extend(["--", "/usr/bin/python3", "-c", "import time\nfor _ in range(50): time.sleep(0.02)"]);
    let report = String::from_utf8(profiler(&args).stdout).unwrap();
    assert!(report.contains("system calls of python3") && report.contains("clock_nanosleep"), "{report}");
    let profile = out.json("x.json");
    let total = profile.0["syscalls"]["total_ns"].as_u64().unwrap();
    let weights = out.text("syscalls.folded");
    let weight = |line: &str| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap();
    assert_eq!(weights.lines().map(weight).sum::<u64>(), total);
    let asleep: u64 =
        weights.lines().filter(|line| line.starts_with("python3;clock_nanosleep;")).map(weight).sum();
    assert!((1_000_000_000..1_200_000_000).contains(&asleep), "{asleep} of {total}\n{weights}");
    // Time that is in no stack yet is less than the period, in each thread.
    let counted = call(&profile, "clock_nanosleep")["calls"]["sum_ns"].as_u64().unwrap();
    assert!(counted.abs_diff(asleep) * 20 < counted, "{counted} {asleep}");
    assert!(!out.text("x.json").contains("/usr/lib/python3"), "paths that were read are redacted");
    for (name, original) in [("r.json", "x.json"), ("syscalls-r.folded", "syscalls.folded")] {
        profiler(&["replay", &paths[2], "-o", out.path(name).to_str().unwrap()]);
        assert!(
            std::fs::read(out.path(name)).unwrap() == std::fs::read(out.path(original)).unwrap(),
            "{name}"
        );
    }
}

#[test]
fn without_being_asked_nothing_is_watched() {
    if !kernel_ready(&[]) {
        return;
    }
    assert!(profile(&["--", "true"]).0["syscalls"].is_null());
    let refused = Command::new(common::PROFILER)
        .args(["-q", "-o", "syscalls:-", "--", "true"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--syscalls"));
}
