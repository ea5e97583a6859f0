//! Leaks, end to end: programs whose answer is known. `cargo xtask bench leak` has more of them, and more time.
#![allow(clippy::unwrap_used, reason = "a failed test")]
#![allow(missing_docs, reason = "a test")]

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    thread,
};

use serde_json::Value;

mod common;
use common::{Outputs, PROFILER, Running, kernel_ready, profile, profiler, workload};

/// A mode of leak.c, so many times as fast as it is meant.
fn leaking(mode: &str, speed: &str) -> (Running, String) {
    let mut command = Command::new(workload("leak", &["-pthread"]));
    let mut process = Running::start(command.args([mode, speed]).stdout(Stdio::piped()));
    let mut truth = String::new();
    BufReader::new(process.0.stdout.take().unwrap()).read_line(&mut truth).unwrap();
    (process, truth.trim().to_owned())
}

fn growing(mode: &str) -> (String, Vec<Value>) {
    let (process, truth) = leaking(mode, "20");
    let pid = process.pid();
    let profile = profile(&["--pid", &pid, "--alloc", "full", "--waits", "off", "-d", "40s"]);
    let found = profile.0["findings"].as_array().unwrap().iter();
    // Other rules may have something to say about the load of the machine.
    let memory =
        found.filter(|finding| ["memory-leak", "memory-growing"].iter().any(|rule| finding["rule"] == *rule));
    (truth, memory.cloned().collect())
}

#[test]
fn a_leak_is_named_with_its_rate_and_nothing_else_is() {
    if !kernel_ready(&["cc"]) {
        return;
    }
    let [leak, ring, cache] = ["callers", "ring", "lru"].map(|mode| thread::spawn(move || growing(mode)));
    let (truth, found) = leak.join().unwrap();
    assert_eq!(truth, "leaks log_request 400000");
    let [leak] = &found[..] else { panic!("{found:#?}") };
    assert_eq!(leak["rule"], "memory-leak", "{leak}");
    let stack: Vec<&str> =
        leak["evidence"][0]["stack"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert!(stack.contains(&"log_request"), "{stack:?}");
    let rate = leak["details"]["bytes_per_s"].as_f64().unwrap();
    assert!((rate / 400_000.0 - 1.0).abs() < 0.1, "{leak}");
    for harmless in [ring, cache] {
        let (truth, found) = harmless.join().unwrap();
        assert_eq!((truth.as_str(), &found[..]), ("harmless", &[][..]));
    }
}

#[test]
fn two_snapshots_tell_what_grew() {
    if !kernel_ready(&["cc"]) {
        return;
    }
    let (process, _) = leaking("callers", "20");
    let outputs = Outputs::new();
    let dir = outputs.path("");
    let mut command = Command::new(PROFILER);
    command.args(["-i200ms", "--waits", "off", "--alloc", "full", "--snapshot", "--pid", &process.pid()]);
    command.arg("--snapshot-dir").arg(&dir).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut run = Running::start(&mut command);
    let mut said = BufReader::new(run.0.stderr.take().unwrap()).lines().map(Result::unwrap);
    let snapshot = |line: &str| {
        let path = line.strip_prefix("profiler: memory is written to ").map(str::to_owned);
        path.inspect(|path| assert!(Path::new(path).exists(), "{path}"))
    };
    // The first line says that it has begun.
    said.next().unwrap();
    let signal = || Command::new("kill").args(["-USR1", &run.pid()]).status().unwrap();
    let mut first: Option<String> = None;
    for _ in 0..1000 {
        assert!(signal().success());
        let path = said.find_map(|line| snapshot(&line)).unwrap();
        let before = first.get_or_insert_with(|| path.clone());
        let output = profiler(&["diff", before, &path, "--json"]);
        let Ok(diff) = serde_json::from_slice::<Value>(&output.stdout) else {
            first = None; // nothing had been allocated yet
            continue;
        };
        let place = &diff["kinds"][0]["places"][0];
        if place["difference"]["value"].as_f64().is_some_and(|bytes| bytes > 100_000.0) {
            assert!(place["functions"].as_array().unwrap().contains(&"log_request".into()), "{diff}");
            let text = String::from_utf8(profiler(&["diff", before, &path]).stdout).unwrap();
            let first = text.lines().find(|line| line.contains(" < "));
            assert!(first.is_some_and(|line| line.contains("xmalloc < log_request")), "{text}");
            return;
        }
    }
    panic!("no growth in a thousand snapshots");
}

/// What a JavaScript heap holds more of is told from outside: which closures, objects of which class, how many.
#[test]
fn what_a_javascript_heap_keeps_is_named_and_counted() {
    if !kernel_ready(&["node"]) {
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/workloads/js_heap.js");
    let mut command = Command::new("node");
    let mut process =
        Running::start(command.arg("--expose-gc").arg(script).args(["8", "150"]).stdout(Stdio::piped()));
    let profile = profile(&["--pid", &process.pid(), "-d", "16s"]);
    let mut truth = String::new();
    BufReader::new(process.0.stdout.take().unwrap()).read_line(&mut truth).unwrap();
    let truth: Value = serde_json::from_str(&truth).unwrap();
    let (added, used) = (truth["added"].as_f64().unwrap(), truth["used"].as_f64().unwrap());

    let footprint = &profile.0["memory"]["processes"][0];
    let last = &footprint["managed_heap"]["last"];
    let class = |kind: &str, name: &str| {
        let classes = last["classes"].as_array().unwrap().iter();
        let mut found = classes.filter(|class| class["kind"] == kind && class["name"] == name);
        found.next().unwrap_or_else(|| panic!("no {name}: {last:#}"))
    };
    let closures = class("closures", "onUpdate");
    assert_eq!(closures["function"]["line"], 19, "{closures}");
    for of in [closures, class("objects", "Subscription"), class("variables", "subscribe")] {
        let (count, error) = (of["count"].as_f64().unwrap(), of["count_err"].as_f64().unwrap());
        // The error of a count is itself known to a fifth.
        assert!((count - added).abs() <= 5.0 * error + 0.02 * added, "{count} ± {error} of {added}: {of}");
        assert!(error < added / 3.0, "{of}");
    }
    let bytes = last["bytes"].as_f64().unwrap();
    assert!((0.7..2.0).contains(&(bytes / used)), "{bytes} of {used}");
    let limit = footprint["managed_heap"]["limit_bytes"].as_u64().unwrap();
    assert!(limit >= 128 << 20, "{limit}");
}

#[test]
fn with_all_every_process_is_looked_at_and_no_thread_of_the_kernel() {
    if !kernel_ready(&["cc"]) {
        return;
    }
    let (process, _) = leaking("callers", "20");
    let pid: u64 = process.pid().parse().unwrap();
    let profile = profile(&["--all", "--alloc", "auto", "-d", "8s"]);
    let of = |section: &str| {
        let listed = profile.0[section]["processes"].as_array().unwrap();
        listed.iter().find(|of| of["pid"] == pid).cloned().unwrap_or_default()
    };
    let growth = of("memory")["growth"].clone();
    let held: Vec<u64> =
        growth.as_array().unwrap().iter().map(|at| at["anon_bytes"].as_u64().unwrap()).collect();
    assert!(held.len() >= 3 && held.last() > held.first(), "{growth}");
    assert!(of("vitals")["samples"].as_u64().is_some_and(|looks| looks >= 3), "{}", of("vitals"));
    let named = |of: &Value| of["process"] == "kthreadd";
    for section in ["memory", "vitals"] {
        let listed = profile.0[section]["processes"].as_array().unwrap();
        assert!(!listed.iter().any(named), "kthreadd has no place among the {section}");
    }
}
