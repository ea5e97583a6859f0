//! The system-call probe against a program whose calls are known, and against what `strace -c` counts of it.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
};

use common::{Outputs, Profile, kernel_ready, machine_has_no, profile, profiler, programs, workload};
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

/// The probes of allocations come into the kernel by system calls of their own, which are not the program's.
#[test]
fn probes_are_no_calls() {
    if !kernel_ready(&["python3"]) {
        return;
    }
    let script =
        "import time\nend = time.time() + 3\nwhile time.time() < end: [bytes(5000) for _ in range(100)]";
    let profile = profile(&["--syscalls", "--alloc", "full", "--", "/usr/bin/python3", "-c", script]);
    let hits = profile.0["memory"]["watching"]["hits"].as_u64().unwrap();
    assert!(hits > 1000, "{hits} hits");
    let named: Vec<_> = list(&profile, "calls").iter().filter_map(|call| call["syscall"].as_str()).collect();
    assert!(!named.iter().any(|name| name.contains("probe")), "{named:?}");
}

/// However busy the machine is: the program measures each of its calls itself.
#[test]
fn lengths_are_right() {
    if !kernel_ready(&[]) {
        return;
    }
    let lengths = workload("lengths", &[]);
    for (ms, times) in [("10", "20"), ("100", "5"), ("1000", "1")] {
        let out = Outputs::new();
        let json = out.path("x.json");
        let args = ["-q", "--syscalls", "-o", json.to_str().unwrap(), "--", lengths.to_str().unwrap()];
        let said = String::from_utf8(profiler(&[&args[..], &[ms, times]].concat()).stdout).unwrap();
        let said =
            said.lines().find_map(|line| line.strip_prefix("lengths ")).expect("what the program measured");
        let [slept, waited, longest] =
            said.split(' ').map(|ns| ns.parse().unwrap()).collect::<Vec<f64>>()[..]
        else {
            panic!("{said}")
        };
        let profile = out.json("x.json");
        let sleeps = call(&profile, "clock_nanosleep");
        let is_its = |of: &&Value| of["syscall"] == "read" && of["pid"] == sleeps["pid"];
        let reads = list(&profile, "calls").iter().find(is_its).unwrap();
        let slowest = list(&profile, "slow").iter().find(is_its).unwrap();
        // Between the end of a call and its look at the clock the program can lose its CPU: of one call that can be much.
        for (what, ours, its, less) in [
            ("asleep", &sleeps["calls"]["sum_ns"], slept, 0.02),
            ("reading", &reads["calls"]["sum_ns"], waited, 0.02),
            ("in the longest read", &slowest["duration_ns"], longest, 0.1),
        ] {
            let off = ours.as_f64().unwrap() / its - 1.0;
            assert!((-less..=0.02).contains(&off), "{times} times {ms} ms: {ours} ns {what}, not {its}");
        }
        let off_cpu = sleeps["blocked_ns"].as_f64().unwrap() + sleeps["run_queue_ns"].as_f64().unwrap();
        assert!(off_cpu > 0.9 * slept, "{off_cpu} of {slept}");
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
    let mut args = vec!["-q", "--details", "--syscalls", "--redact-paths"];
    paths.iter().for_each(|path| args.extend(["-o", path]));
    args.extend(["--", "/usr/bin/python3", "-c", "import time\nfor _ in range(50): time.sleep(0.02)"]);
    let report = String::from_utf8(profiler(&args).stderr).unwrap();
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

/// Calls of all processes and threads together.
fn counted(profile: &Profile, syscall: &str) -> u64 {
    counts(profile).get(syscall).map_or(0, |(n, _)| *n)
}

#[test]
fn calls_of_32_bits_are_told_apart() {
    if !kernel_ready(&[]) {
        return;
    }
    let many = workload("many", &[]);
    if Command::new(&many).args(["compat", "1"]).status().unwrap().code() == Some(3) {
        return machine_has_no("32-bit calls");
    }
    let profile = profile(&["--syscalls", "--", many.to_str().unwrap(), "compat", "70"]);
    assert_eq!((counted(&profile, "getppid (32-bit)"), counted(&profile, "getppid")), (70, 70));
    assert_eq!(counted(&profile, "semget"), 0);
}

#[test]
fn what_32_bit_calls_are_made_on_is_told() {
    if !kernel_ready(&[]) {
        return;
    }
    let compat = workload("compat", &[]);
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    let fifo = fifo.to_str().unwrap();
    if Command::new(&compat).arg(fifo).status().unwrap().code() == Some(3) {
        return machine_has_no("32-bit calls");
    }
    let profile = profile(&["--syscalls", "--", compat.to_str().unwrap(), fifo]);
    let slow = |name: &str| list(&profile, "slow").iter().find(|slow| slow["syscall"] == name).unwrap();
    assert_eq!(slow("open (32-bit)")["arguments"], fifo);
    let read = slow("read (32-bit)");
    let arguments = read["arguments"].as_str().unwrap();
    assert!(arguments.starts_with("fd ") && arguments.ends_with(&format!(" {fifo}, 1 bytes")), "{read}");
    assert_eq!(read["kind"], "pipe");
    assert_eq!(object(&profile, fifo), (2, 2), "the byte read, and the byte that the child wrote");
}

#[test]
fn thousands_of_threads_and_processes_are_counted() {
    if !kernel_ready(&[]) {
        return;
    }
    let many = workload("many", &[]);
    for (what, n) in [("threads", 5000), ("forks", 2000)] {
        let profile = profile(&["--syscalls", "--", many.to_str().unwrap(), what, &n.to_string()]);
        let (found, lost) = (counted(&profile, "getppid"), profile.loss("calls_full"));
        // What there was no room for is lost, and says so.
        assert!(found <= 10 * n && found + lost >= 10 * n, "{what}: {found} and {lost} lost, of {}", 10 * n);
        assert!(found * 10 >= 10 * n, "{what}: {found} is next to nothing");
        let memory = profile.0["cost"]["agent_peak_rss_bytes"].as_u64().unwrap();
        assert!(memory < 300 << 20, "{what}: {memory} bytes");
    }
}

#[test]
fn a_hundred_thousand_files_do_not_fill_the_memory() {
    if !kernel_ready(&["python3"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = format!(
        "import os\nfor i in range(100000):\n  fd = os.open(f'{}/{{i}}', os.O_CREAT | os.O_WRONLY)\n  os.write(fd, b'x')\n  \
         os.close(fd)\n  os.unlink(f'{}/{{i}}')",
        dir.path().display(),
        dir.path().display()
    );
    let profile = profile(&["--syscalls", "--", "/usr/bin/python3", "-c", &script]);
    assert_eq!(counted(&profile, "write"), 100_000);
    let objects = list(&profile, "objects");
    let written: u64 = objects.iter().map(|of| of["calls"].as_u64().unwrap()).sum();
    let lost = profile.loss("io_full") + profile.loss("records_lost");
    assert!(
        objects.len() <= 10_001 && written + lost >= 100_000,
        "{} objects, {written} {lost}",
        objects.len()
    );
    let memory = profile.0["cost"]["agent_peak_rss_bytes"].as_u64().unwrap();
    assert!(memory < 300 << 20, "{memory} bytes");
}

/// Calls that moved data of an object, and the bytes, by all processes together.
fn object(profile: &Profile, name: &str) -> (u64, u64) {
    let of = list(profile, "objects").iter().filter(|of| of["object"] == name);
    of.fold((0, 0), |sum, of| (sum.0 + of["calls"].as_u64().unwrap(), sum.1 + of["bytes"].as_u64().unwrap()))
}

/// Descriptors that are closed, removed, or made something else as soon as they have been used.
const PASSING: &str = "
import ctypes, fcntl, os, socket, sys, threading, time
folder, shared = sys.argv[1:3]
def late(what): threading.Thread(target=lambda: (time.sleep(0.2), what())).start()
path = lambda name: f'{folder}/{name}'
def write(path, data):
    fd = os.open(path, os.O_CREAT | os.O_WRONLY); os.write(fd, data); os.close(fd)
if len(sys.argv) > 3:
    # A descriptor of before exec is another's now.
    fd = int(sys.argv[3])
    got = os.open(path('last'), os.O_RDONLY); os.dup2(got, 200); os.pread(200, 5, 0)
    os._exit(0)
for i in range(3): write(path(f'gone{i}'), b'x' * (i + 1)); os.unlink(path(f'gone{i}'))
write(shared, b'shared'); os.unlink(shared)
deep = path('/'.join(['deep'] * 20)); os.makedirs(deep); write(deep + '/file', b'deep')
removed = os.open(path('removed'), os.O_CREAT | os.O_WRONLY); os.unlink(path('removed')); os.write(removed, b'r'); os.close(removed)
os.mkfifo(path('fifo'))
def feed():
    fd = os.open(path('fifo'), os.O_WRONLY); time.sleep(0.1); os.write(fd, b'x'); os.close(fd)
threading.Thread(target=feed).start()
fd = os.open(path('fifo'), os.O_RDONLY); os.read(fd, 1); os.close(fd); os.unlink(path('fifo'))
holder = os.open(path('lock'), os.O_CREAT | os.O_RDWR); fcntl.flock(holder, fcntl.LOCK_EX)
late(lambda: fcntl.flock(holder, fcntl.LOCK_UN))
fd = os.open(path('lock'), os.O_RDWR); fcntl.flock(fd, fcntl.LOCK_EX); os.close(fd); os.unlink(path('lock'))
for address in [path('socket'), '\\0' + folder]:
    listener = socket.socket(socket.AF_UNIX); listener.bind(address); listener.listen()
    client = socket.socket(socket.AF_UNIX); client.connect(address)
    server, _ = listener.accept()
    late(lambda: server.sendall(b'answer'))
    client.sendall(b'ask'); client.recv(6); client.close(); time.sleep(0.01); server.close(); listener.close()
for name in ['first', 'second', 'third', 'last']: write(path(name), b'content')
first, second = (os.open(path(name), os.O_RDONLY) for name in ['first', 'second'])
for _ in range(10): os.pread(first, 7, 0)
os.dup2(second, first)
for _ in range(20): os.pread(first, 3, 0)
ctypes.CDLL(None).syscall(436, first, first, 0) # close_range
third = os.open(path('third'), os.O_RDONLY)
assert third == first
for _ in range(30): os.pread(third, 2, 0)
os.dup2(second, 200, inheritable=False)
for _ in range(5): os.pread(200, 1, 0)
os.execv('/usr/bin/python3', ['python3', sys.argv[0], folder, shared, '200'])";

#[test]
fn descriptors_are_told_as_they_were_when_they_were_used() {
    if !kernel_ready(&["python3"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().canonicalize().unwrap();
    let folder = folder.to_str().unwrap();
    let shared = format!("/dev/shm/profiler-test-{}", std::process::id());
    let script = dir.path().join("script.py");
    std::fs::write(&script, PASSING).unwrap();
    let script = script.to_str().unwrap();
    let profile = profile(&["--syscalls", "--", "/usr/bin/python3", script, folder, &shared]);
    let path = |name: &str| format!("{folder}/{name}");
    let deep = path(&["deep"; 20].join("/"));
    for (name, expected) in [
        (path("gone0"), (1, 1)),
        (path("gone1"), (1, 2)),
        (path("gone2"), (1, 3)),
        (shared, (1, 6)),
        (deep + "/file", (1, 4)),
        (path("removed (deleted)"), (1, 1)),
        (path("fifo"), (2, 2)),
        (format!("unix {folder}/socket"), (1, 6)),
        (format!("unix -> {folder}/socket"), (2, 9)),
        (format!("unix @{folder}"), (1, 6)),
        (format!("unix -> @{folder}"), (2, 9)),
        (path("first"), (11, 77)),
        (path("second"), (26, 72)),
        (path("third"), (31, 67)),
        (path("last"), (2, 12)),
    ] {
        assert_eq!(object(&profile, &name), expected, "{name}: {:#?}", profile.0["syscalls"]["objects"]);
    }
    let slow: Vec<String> = list(&profile, "slow")
        .iter()
        .map(|slow| format!("{} {}", slow["syscall"].as_str().unwrap(), slow["arguments"].as_str().unwrap()))
        .collect();
    for (call, object) in [
        ("read fd ", "/fifo, 1 bytes"),
        ("flock fd ", "/lock"),
        ("recvfrom fd ", &format!("unix -> {folder}/socket, 6 bytes")),
        ("recvfrom fd ", &format!("unix -> @{folder}, 6 bytes")),
    ] {
        let told = slow.iter().any(|slow| slow.starts_with(call) && slow.ends_with(object));
        assert!(told, "no {call}{object}: {slow:#?}");
    }
}

/// Many slow calls first, and a less slow one later.
const SLOW_THEN_LESS: &str = "
import os, socket, time
one, other = socket.socketpair()
def wait(ms, peer):
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, b'\\0' * 8 + (ms * 1000).to_bytes(8, 'little'))
    try: peer.recv(1)
    except OSError: pass
for _ in range(210): wait(16, one)
time.sleep(2.5)
os.dup2(one.fileno(), 99)
wait(4, socket.socket(fileno=99))";

#[test]
fn what_was_slowest_is_told_of_each_part_of_a_run() {
    if !kernel_ready(&["python3"]) {
        return;
    }
    let out = Outputs::new();
    let [json, recording, again] =
        ["x.json", "x.prec", "y.json"].map(|name| out.path(name).to_str().unwrap().to_owned());
    let args = [
        "-q",
        "--details",
        "--syscalls",
        "-o",
        &json,
        "-o",
        &recording,
        "--",
        "/usr/bin/python3",
        "-c",
        SLOW_THEN_LESS,
    ];
    let report = String::from_utf8(profiler(&args).stderr).unwrap();
    let profile = out.json("x.json");
    let by_part = &profile.0["syscalls"]["slow_by_part"];
    let parts: Vec<&[Value]> =
        by_part["parts"].as_array().unwrap().iter().map(|part| part.as_array().unwrap().as_slice()).collect();
    assert!(parts.len() >= 5 && parts.iter().all(|part| part.len() <= 3), "{by_part:#}");
    let slowest = &list(&profile, "slow")[0];
    assert!(parts.iter().any(|part| part.first() == Some(slowest)), "{slowest:#} {by_part:#}");
    let last = parts.iter().rfind(|part| !part.is_empty()).unwrap();
    assert!(last[0]["arguments"].as_str().unwrap().starts_with("fd 99 unix"), "{last:#?}");
    let length = by_part["length_ns"].as_u64().unwrap();
    for (i, call) in (0..).zip(&parts).flat_map(|(i, part)| part.iter().map(move |call| (i, call))) {
        let end = call["start_ns"].as_u64().unwrap() + call["duration_ns"].as_u64().unwrap();
        assert_eq!((end - by_part["start_ns"].as_u64().unwrap()) / length, i, "{call}");
    }
    let (_, others) = report.split_once("slowest in other parts of the run").expect("a part of the report");
    assert!(others.contains("recvfrom(fd 99 unix"), "{others}");
    profiler(&["replay", &recording, "-o", &again]);
    assert_eq!(out.json("y.json").0["syscalls"]["slow_by_part"], *by_part);
}

/// One request after the other, or all at once, to a server that is another process.
const NODE_ASKER: &str = "
const net = require('net'), { spawn } = require('child_process');
const server = spawn(process.execPath, ['-e', `
  const server = require('net').createServer(peer => { peer.on('data', data => peer.write(data)); peer.on('end', () => process.exit()); });
  server.listen(0, '127.0.0.1', () => console.log(server.address().port));`], { stdio: ['ignore', 'pipe', 'inherit'] });
server.stdout.once('data', port => {
  const peer = net.connect(Number(port), '127.0.0.1');
  const questions = process.argv[1] === 'chatty' ? 100 : 1, size = 64 * (101 - questions);
  let left = questions, due = size;
  const ask = () => { due = size; if (size === 64) peer.write('x'.repeat(64));
    else for (let i = 0; i < 100; i++) peer.write('x'.repeat(64)); };
  peer.on('data', data => { due -= data.length; if (due > 0) return; if (--left > 0) ask(); else peer.end(); });
  ask();
});";

#[test]
fn a_chatty_node_is_found_and_a_pipelining_one_is_not() {
    if !kernel_ready(&["node"]) {
        return;
    }
    for how in ["chatty", "pipelined"] {
        let profile = profile(&["--syscalls", "--", "/usr/bin/node", "-e", NODE_ASKER, how]);
        let found: Vec<&Value> =
            list(&profile, "chatty").iter().filter(|of| of["round_trips"] == true).collect();
        assert_eq!(found.len(), usize::from(how == "chatty"), "{how}: {found:?}");
        if let [found] = found[..] {
            assert!(found["object"].as_str().unwrap().starts_with("tcp 127.0.0.1:"), "{found}");
            assert!(found["count"].as_u64().unwrap().abs_diff(100) <= 1, "{found}");
        }
    }
}

/// Profiles a program under its load; what is expected must be among the waits (kind and peer) and the objects.
fn serves(program: &programs::Program, waits: &[(&str, &str)], objects: &[&str]) -> Profile {
    let target: Vec<&str> = program.target.iter().map(String::as_str).collect();
    let profile = profile(&[&["--syscalls", "-d3s"][..], &target[..]].concat());
    let found = list(&profile, "waits");
    for (kind, peer) in waits {
        let of_kind = |of: &&Value| of["kind"] == *kind && of["peer"].as_str().unwrap().starts_with(peer);
        assert!(found.iter().any(|of| of_kind(&of)), "no {kind} {peer}: {found:#?}");
    }
    let found = list(&profile, "objects");
    for object in objects {
        let named = found.iter().any(|of| of["object"].as_str().unwrap().contains(object));
        assert!(
            named,
            "no {object}: {:#?}",
            found.iter().map(|of| &of["object"]).take(30).collect::<Vec<_>>()
        );
    }
    profile
}

#[test]
fn servers_are_seen_to_wait_for_what_they_wait_for() {
    if !kernel_ready(&["redis-server", "redis-benchmark", "nginx", "wrk", "psql"]) {
        return;
    }
    serves(&programs::redis(), &[("poll", "")], &["unix "]);
    serves(&programs::nginx(), &[("net_write", "clients of :")], &["index.html", "tcp 127.0.0.1:"]);
    serves(&programs::postgres(), &[("unix", "")], &["unix ", "/pg_wal/", "/base/"]);
}

#[test]
fn files_that_node_serves_are_told() {
    if !kernel_ready(&["node", "wrk"]) {
        return;
    }
    let (program, port, folder) = programs::node_files();
    let clients = format!("clients of :{port}");
    let waits = [("file_read", ""), ("net_write", &clients), ("poll", ""), ("park", "")];
    let files = [0, 1, 2, 3].map(|i| folder.join(format!("file{i}")).to_str().unwrap().to_owned());
    let peers = format!("tcp 127.0.0.1:{port} -> 127.0.0.1:");
    let mut objects: Vec<&str> = files.iter().map(String::as_str).collect();
    objects.push(&peers);
    let profile = serves(&program, &waits, &objects);
    let mut unnamed = 0;
    for of in list(&profile, "objects") {
        let name = of["object"].as_str().unwrap();
        // Each is opened anew for each request, used by a thread of the pool and closed at once.
        if name.starts_with("descriptor") {
            unnamed += of["descriptors"].as_u64().unwrap();
        }
        if files.iter().any(|file| file == name) {
            let (calls, descriptors) = (of["calls"].as_u64().unwrap(), of["descriptors"].as_u64().unwrap());
            assert!(descriptors > 1 && calls >= descriptors, "{of}");
            assert!(of["bytes"].as_u64().unwrap() > descriptors << 19, "{of}");
        }
    }
    // Where nobody had time to take the records some are lost, and counted.
    let lost = profile.loss("io_full") + profile.loss("records_lost");
    assert!(unnamed <= lost, "{unnamed} descriptors without a name, {lost} records lost");
    for of in list(&profile, "waits").iter().filter(|of| of["kind"].as_str().unwrap().starts_with("net_")) {
        assert_eq!(of["peer"], clients, "{of}");
    }
    let finding = list(&profile, "chatty").iter().find(|of| of["round_trips"] == true);
    assert!(finding.is_none(), "who answers is not chatty: {finding:?}");
}

#[test]
fn peers_and_name_servers_are_told() {
    if !kernel_ready(&["python3"]) {
        return;
    }
    // Nobody answers at the first; the second answers late.
    let script = "
import os, socket, threading, time
listener = socket.create_server(('127.0.0.1', 0))
def answer():
    peer, _ = listener.accept()
    while peer.recv(1): time.sleep(0.05); peer.sendall(b'y')
if os.fork() == 0: answer(); os._exit(0)
resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
resolver.connect(('127.0.0.1', 53))
resolver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, b'\\0' * 8 + (100000).to_bytes(8, 'little'))
try: resolver.recv(64)
except OSError: pass
peer = socket.create_connection(listener.getsockname())
print(peer.getpeername()[1], flush=True)
for _ in range(5): peer.sendall(b'x'); peer.recv(1)
# Gone before anybody could look it up.
peer.close()";
    let profile = profile(&["--syscalls", "--", "/usr/bin/python3", "-c", script]);
    let waits = list(&profile, "waits");
    let sum = |kind: &str| -> u64 {
        let of_kind = waits
            .iter()
            .filter(|of| of["kind"] == kind && of["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
        of_kind.map(|of| of["waits"]["sum_ns"].as_u64().unwrap()).sum()
    };
    assert!(sum("dns") >= 100_000_000, "{waits:#?}");
    // Five times the answerer sleeps 50 ms; who asked may come late to wait for it.
    assert!(sum("net_read") >= 150_000_000, "{waits:#?}");
    let slow = list(&profile, "slow").iter().find(|slow| slow["kind"] == "net_read").unwrap();
    assert!(slow["arguments"].as_str().unwrap().contains(" -> 127.0.0.1:"), "{slow}");
}

#[test]
fn what_is_turned_off_is_not_watched() {
    if !kernel_ready(&[]) {
        return;
    }
    assert!(profile(&["--syscalls=off", "--", "true"]).0["syscalls"].is_null());
    let refused = Command::new(common::PROFILER)
        .args(["-q", "--syscalls=off", "-o", "syscalls:-", "--", "true"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--syscalls"));
}
