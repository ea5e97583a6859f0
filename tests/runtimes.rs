//! End-to-end: functions of language runtimes have their names, in all ways in which they run.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, Stdio},
};

use common::{Outputs, Profile, Running, kernel_ready, profiler, which};

/// Each function of the workload, and its only caller.
const CALLERS: [(&str, &str); 5] =
    [("scan", "parse"), ("parse", "route"), ("render", "route"), ("route", "serve"), ("readConfig", "serve")];

/// Where the loop of `scan` is; baseline code is told by the line where its function begins.
const SCAN_LOOP_LINE: u64 = 11;

fn calls(flags: &[&str], fifo: Option<&Path>) -> Running {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/workloads/calls.js");
    let mut command = Command::new(which("node").unwrap());
    command.args(flags).arg(script).args(fifo).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut node = Running::start(&mut command);
    node.ready();
    node
}

/// Those flags that this node knows.
fn known(flags: &[&'static str]) -> Vec<&'static str> {
    let known = Command::new(which("node").unwrap()).arg("--v8-options").output().unwrap();
    let known = String::from_utf8_lossy(&known.stdout).into_owned();
    flags.iter().copied().filter(|flag| known.contains(&flag.replace("--no-", "--"))).collect()
}

/// Flags of this node that keep it from optimising, as far as it knows them.
fn never_optimised() -> Vec<&'static str> {
    known(&["--no-opt", "--no-maglev"])
}

/// Profiles again and for longer until the unwind tables of node are there, which takes long where the machine is busy or the
/// profiler is not optimised.
fn watch(node: &Running, kind: &str) -> (Profile, Outputs) {
    let mut tries = ["8s", "20s", "60s"].into_iter().map(|duration| {
        let outputs = Outputs::new();
        let (json, folded) = (outputs.path("x.json"), outputs.path("x.folded"));
        let (folded, pid) = (format!("{kind}:{}", folded.display()), node.pid());
        let outputs_wanted = ["-o", json.to_str().unwrap(), "-o", &folded];
        profiler(&[&["-q", "-F", "299", "-d", duration, "-p", &pid][..], &outputs_wanted].concat());
        (outputs.json("x.json"), outputs)
    });
    let by_tables = |profile: &Profile| {
        let ends = profile.0["user_stacks"].as_object().unwrap();
        let all: u64 = ends.values().map(|samples| samples.as_u64().unwrap()).sum();
        ends["complete"].as_u64().unwrap() * 10 >= all * 9
    };
    tries.find(|(profile, _)| by_tables(profile)).expect("stacks by unwind tables")
}

/// Samples in JavaScript by the innermost of its functions, and how many have a wrong caller somewhere; of stacks that reach
/// the start of their thread.
fn judge(profile: &Profile) -> (BTreeMap<&str, u64>, u64, u64) {
    let (mut own, mut right, mut wrong) = (BTreeMap::new(), 0, 0);
    for stack in profile.list("stacks").iter().filter(|stack| stack["end"] == "complete") {
        let functions = profile.functions(stack);
        let samples = stack["samples"].as_u64().unwrap();
        let Some(at) = functions.iter().position(|name| CALLERS.iter().any(|(function, _)| function == name))
        else {
            continue;
        };
        *own.entry(functions[at]).or_default() += samples;
        let is_right = functions
            .windows(2)
            .all(|pair| CALLERS.iter().all(|(function, caller)| pair[0] != *function || pair[1] == *caller));
        *(if is_right { &mut right } else { &mut wrong }) += samples;
    }
    (own, right, wrong)
}

fn assert_named(flags: &[&str]) {
    let node = calls(flags, None);
    let (profile, _outputs) = watch(&node, "cpu");
    profile.assert_consistent();
    let (own, right, wrong) = judge(&profile);
    assert!(right > 200 && wrong * 100 <= right, "{flags:?}: {right} right, {wrong} wrong: {own:?}");
    // Two thirds of the work are scan's.
    let (scan, render) = (own["scan"] as f64, own["render"] as f64);
    let share = scan / (scan + render);
    assert!((0.55..0.78).contains(&share), "{flags:?}: {own:?}");
    let hotspot = profile.list("hotspots").iter().find(|hotspot| hotspot["function"] == "scan").unwrap();
    let location = hotspot["location"].as_str().unwrap();
    let line: u64 = location.rsplit(':').next().unwrap().parse().unwrap();
    assert!(location.contains("workloads/calls.js:") && line.abs_diff(SCAN_LOOP_LINE) <= 2, "{location}");
}

#[test]
fn optimised_functions_are_named() {
    if kernel_ready(&["node"]) {
        assert_named(&[]);
    }
}

#[test]
fn interpreted_functions_are_named() {
    if kernel_ready(&["node"]) {
        assert_named(&[never_optimised(), vec!["--no-sparkplug"]].concat());
    }
}

#[test]
fn baseline_functions_are_named() {
    if kernel_ready(&["node"]) {
        assert_named(&[never_optimised(), vec!["--always-sparkplug"]].concat());
    }
}

/// The collector moves functions, and what compiled code says of them: each second here, where it does so once in many seconds elsewhere.
#[test]
fn functions_that_the_collector_moves_keep_their_names() {
    const COMPACT: &str = "--compact-on-every-full-gc";
    if !kernel_ready(&["node"]) || known(&[COMPACT]).is_empty() {
        return;
    }
    let collects = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/workloads/collects.js");
    let node = calls(&["--expose-gc", COMPACT, "-r", collects.to_str().unwrap()], None);
    let (profile, _outputs) = watch(&node, "cpu");
    let (mut named, mut unnamed) = (0, 0);
    for stack in profile.list("stacks") {
        let functions = profile.functions(stack);
        let samples = stack["samples"].as_u64().unwrap();
        if functions.iter().any(|name| name.starts_with("[jit")) {
            unnamed += samples;
        } else if functions.contains(&"serve") {
            named += samples;
        }
    }
    assert!(named > 500 && unnamed * 33 <= named, "{named} named, {unnamed} not: {}", profile.0["losses"]);
}

/// A program that was compiled from another language is told where it was written: `calls.js`, ten lines further down there.
#[test]
fn functions_are_told_where_they_were_written() {
    if !kernel_ready(&["node"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("dist");
    std::fs::create_dir(&folder).unwrap();
    let calls = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/workloads/calls.js");
    let text = std::fs::read_to_string(calls).unwrap();
    // Line 1 is line 11 of the first source; each further line is one more.
    let mappings = format!("AAUA{}", ";AACA".repeat(text.lines().count()));
    let map = serde_json::json!({ "version": 3, "sources": ["../src/calls.ts"], "names": [], "mappings": mappings });
    std::fs::write(folder.join("calls.js.map"), map.to_string()).unwrap();
    let script = folder.join("calls.js");
    std::fs::write(&script, format!("{text}\n//# sourceMappingURL=calls.js.map\n")).unwrap();
    let mut command = Command::new(which("node").unwrap());
    let mut node = Running::start(command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()));
    node.ready();
    let (profile, _outputs) = watch(&node, "cpu");
    let hotspot = profile.list("hotspots").iter().find(|hotspot| hotspot["function"] == "scan").unwrap();
    let location = hotspot["location"].as_str().unwrap();
    let line: u64 = location.rsplit(':').next().unwrap().parse().unwrap();
    assert!(location.contains("/src/calls.ts:") && line.abs_diff(SCAN_LOOP_LINE + 10) <= 2, "{location}");
}

/// What blocks is named by the JavaScript that waits.
#[test]
fn functions_that_block_are_named() {
    if !kernel_ready(&["node", "mkfifo"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("slow-file");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let answer = "while :; do { sleep 0.2; echo slow; } > \"$0\"; done";
    let _writer = Running::start(Command::new("sh").args(["-c", answer]).arg(&fifo));
    let node = calls(&[], Some(&fifo));
    let (profile, outputs) = watch(&node, "offcpu");
    let folded = outputs.text("x.folded");
    let lines: Vec<&str> = folded.lines().filter(|line| line.contains(";readConfig_[j];")).collect();
    let named = lines.iter().filter(|line| line.contains(";serve_[j];readConfig_[j];readFileSync_[j];"));
    assert!(!lines.is_empty() && named.count() == lines.len(), "{folded}");
    let told = profile.0.to_string();
    assert!(told.contains("readConfig"), "stalls name it, too");
}

/// Each method of the workload in Java, and its only caller.
const JAVA_CALLERS: [(&str, &str); 5] = [
    ("Calls.scan", "Calls.parse"),
    ("Calls.parse", "Calls.route"),
    ("Calls.render", "Calls.route"),
    ("Calls.route", "Calls.serve"),
    ("Calls.serve", "Calls.lambda$main$0"),
];

/// What the compiler must leave alone so that there are the calls that the source tells.
const NOT_INLINED: &str = "-XX:CompileCommand=dontinline,Calls::*";

/// A program in Java, started without its own compiler's leavings in the process.
fn java(source: &str, flags: &[&str]) -> Running {
    let folder = tempfile::tempdir().unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/workloads").join(source);
    let compiled = Command::new(which("javac").unwrap()).arg("-d").arg(folder.path()).arg(path).status();
    assert!(compiled.unwrap().success());
    let mut command = Command::new(which("java").unwrap());
    command.args(["-XX:CompileCommand=quiet"]).args(flags).arg("-cp").arg(folder.path());
    command.arg(source.trim_end_matches(".java")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut running = Running::start(&mut command);
    running.ready();
    running
}

/// Stacks go through the frames of Java, and each method has its only caller above it, up to the start of the thread.
fn assert_java_is_followed(flags: &[&str]) {
    if !kernel_ready(&["java", "javac"]) {
        return;
    }
    let running = java("Calls.java", flags);
    let profile = common::profile(&["-F", "997", "-d", "5s", "--alloc", "off", "--pid", &running.pid()]);
    profile.assert_consistent();
    let (mut right, mut complete, mut of_java, mut by_leaf) = (0, 0, 0, BTreeMap::<&str, u64>::new());
    let mut wrong: BTreeMap<String, u64> = BTreeMap::new();
    // Not those of the time before the kernel knew of the process.
    for stack in profile.list("stacks").iter().filter(|stack| stack["end"] != "frame_pointers") {
        let functions = profile.functions(stack);
        let Some(leaf) = functions.iter().position(|name| name.starts_with("Calls.")) else { continue };
        let samples = stack["samples"].as_u64().unwrap();
        of_java += samples;
        let mut at = leaf;
        while let Some((_, caller)) = JAVA_CALLERS.iter().find(|(function, _)| *function == functions[at])
            && functions.get(at + 1) == Some(caller)
        {
            at += 1;
        }
        // The lambda is a method of a class of its own, which calls the one with its text; newer versions have Thread.runWith
        // between them.
        let outer = functions.iter().skip(at + 1).take(3).any(|name| *name == "java.lang.Thread.run");
        if functions[at] == "Calls.lambda$main$0" && outer {
            right += samples;
            *by_leaf.entry(functions[leaf]).or_default() += samples;
        } else {
            *wrong.entry(format!("{functions:?}")).or_default() += samples;
        }
        complete += if stack["end"] == "complete" { samples } else { 0 };
    }
    assert!(of_java > 2000 && right * 100 >= 95 * of_java, "{flags:?}: {right} of {of_java}: {wrong:#?}");
    // In the first half of a second the table of libjvm is being built.
    assert!(complete * 100 >= 80 * of_java, "{flags:?}: {complete} of {of_java} are complete");
    // Two thirds of the work are scan's.
    let share = by_leaf["Calls.scan"] as f64 / (by_leaf["Calls.scan"] + by_leaf["Calls.render"]) as f64;
    assert!((0.6..0.73).contains(&share), "{flags:?}: {by_leaf:?}");
}

#[test]
fn compiled_java_is_followed() {
    assert_java_is_followed(&[NOT_INLINED]);
}

/// What the compiler has put into its callers is told as what it was in the source.
#[test]
fn inlined_java_is_told() {
    assert_java_is_followed(&[]);
}

#[test]
fn interpreted_java_is_followed() {
    assert_java_is_followed(&["-Xint"]);
}

/// Compiled methods are called by interpreted ones, and the other way round.
#[test]
fn compiled_and_interpreted_java_is_followed() {
    let interpreted = ["serve", "parse"].map(|name| format!("-XX:CompileCommand=exclude,Calls::{name}"));
    assert_java_is_followed(&[NOT_INLINED, &interpreted[0], &interpreted[1]]);
}

/// A stack that is known again by its addresses is another one if its interpreted methods are others.
#[test]
fn interpreted_java_that_blocks_is_told_apart() {
    if !kernel_ready(&["java", "javac"]) {
        return;
    }
    let running = java("Pauses.java", &["-Xint"]);
    let outputs = Outputs::new();
    let (json, folded) = (outputs.path("x.json"), format!("offcpu:{}", outputs.path("x.folded").display()));
    profiler(&["-q", "-d", "6s", "-p", &running.pid(), "-o", json.to_str().unwrap(), "-o", &folded]);
    let folded = outputs.text("x.folded");
    let waited = |method: &str| {
        let called = format!(";Pauses.serve_[j];Pauses.{method}_[j];Pauses.pause_[j];");
        let of = folded.lines().filter(|line| line.contains(&called));
        of.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum::<f64>()
    };
    let (longer, shorter) = (waited("longer"), waited("shorter"));
    // A pause takes a little longer than was asked for.
    assert!(shorter > 0.0 && (2.2..3.2).contains(&(longer / shorter)), "{longer} {shorter}: {folded}");
}

/// Methods of Java have their names and shares, without a flag and without an agent.
#[test]
fn compiled_java_is_named() {
    if !kernel_ready(&["java", "javac"]) {
        return;
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/workloads/Shares.java");
    let mut command = Command::new(which("java").unwrap());
    let mut running = Running::start(command.arg(source).stdin(Stdio::piped()).stdout(Stdio::piped()));
    running.ready();
    let profile = common::profile(&["-F", "997", "-d", "5s", "--alloc", "off", "--pid", &running.pid()]);
    profile.assert_consistent();
    let own = |function: &str| {
        let of = profile.list("hotspots").iter().filter(|of| of["function"] == function);
        of.map(|of| of["self_samples"].as_u64().unwrap()).sum::<u64>() as f64
    };
    let work = [("Fifty.run", 50.0), ("Thirty.run", 30.0), ("Twenty.run", 20.0)]
        .map(|(name, share)| (own(name), share));
    let all: f64 = work.iter().map(|(own, _)| own).sum();
    assert!(all > 0.9 * profile.number("samples") as f64, "{work:?}");
    for (own, share) in work {
        assert!((100.0 * own / all - share).abs() < 4.0, "{work:?}");
    }
    let jit = profile.list("hotspots").iter().filter(|of| of["module"] == "[jit]");
    let unnamed: u64 = jit.map(|of| of["self_samples"].as_u64().unwrap()).sum();
    assert!(unnamed * 50 < profile.number("samples"), "{unnamed}");
}

/// Who has been asleep since before the run, and wakes up never, is where its own functions say.
#[test]
fn who_sleeps_throughout_has_functions() {
    if !kernel_ready(&["node"]) {
        return;
    }
    const SCRIPT: &str = "function locks() { Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0); }
function waits() { locks(); }
console.log('ready'); waits();";
    let mut command = Command::new(which("node").unwrap());
    let mut node = Running::start(command.args(["-e", SCRIPT]).stdout(Stdio::piped()));
    let _out = node.ready();
    node.sleeps_in("futex");
    let profile = common::profile(&["--pid", &node.pid(), "-d", "1s", "--alloc", "off"]);
    let (functions, ns) = profile.waited_longest(node.0.id());
    assert!(ns >= 900_000_000, "{ns}: {functions:?}");
    let own: Vec<&str> = functions.iter().copied().filter(|name| ["locks", "waits"].contains(name)).collect();
    assert_eq!(own, ["locks", "waits"], "{functions:?}");
}
