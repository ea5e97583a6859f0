//! Code has the right name, or is at least one function where it is one: stripped programs, code without a file.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
};

use common::{
    FRAME_POINTERS, Outputs, Profile, Profiling, Running, kernel_ready, profile, profiler, programs, workload,
};

/// Addresses of a program's functions, by name.
fn symbols(program: &Path) -> BTreeMap<String, u64> {
    let nm = Command::new("nm").arg(program).output().unwrap();
    let text = String::from_utf8(nm.stdout).unwrap();
    let symbol = |line: &str| {
        let mut fields = line.split(' ');
        let (address, _kind, name) = (fields.next()?, fields.next()?, fields.next()?);
        Some((name.to_owned(), u64::from_str_radix(address, 16).ok()?))
    };
    text.lines().filter_map(symbol).collect()
}

/// Self samples by function, of the functions whose name begins with `prefix`.
fn own(profile: &Profile, prefix: &str) -> BTreeMap<String, u64> {
    let mut own = BTreeMap::new();
    for hotspot in profile.list("hotspots") {
        let (function, samples) =
            (hotspot["function"].as_str().unwrap(), hotspot["self_samples"].as_u64().unwrap());
        if function.starts_with(prefix) && samples > 0 {
            *own.entry(function.to_owned()).or_default() += samples;
        }
    }
    own
}

/// Profiles until stacks are unwound by tables, which a busy machine takes its time to build; and how many were.
fn by_tables(args: &[&str]) -> (Profile, u64) {
    let runs = std::iter::repeat_with(|| {
        let profile = profile(args);
        let ends = |end: &str| profile.0["user_stacks"][end].as_u64().unwrap();
        let by_tables = profile.number("samples") - ends("none") - ends("frame_pointers");
        (profile, by_tables)
    });
    runs.take(20).find(|(_, by_tables)| *by_tables > 200).expect("no tables")
}

/// A program that says something, waits for a line and then runs to its end.
struct Waiting {
    process: Running,
    said: String,
}

impl Waiting {
    fn start(command: &mut Command) -> Waiting {
        let mut process = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let mut said = String::new();
        BufReader::new(process.0.stdout.take().unwrap()).read_line(&mut said).unwrap();
        Waiting { process, said: said.trim().to_owned() }
    }

    /// Profiles it from before it goes on to its end.
    fn profiled(mut self, args: &[&str]) -> Profile {
        let pid = self.process.pid();
        let profiling = Profiling::start(&[&["--pid", &pid], args].concat());
        self.process.0.stdin.take().unwrap().write_all(b"\n").unwrap();
        profiling.finish().0
    }
}

#[test]
fn a_function_without_a_name_is_one_row() {
    if !kernel_ready(&[]) {
        return;
    }
    let stripped = workload("split", &[FRAME_POINTERS, &["-s"]].concat());
    let symbols = symbols(&workload("split", FRAME_POINTERS));
    let out = Outputs::new();
    let paths =
        ["a.json", "a.folded", "a.prec", "b.folded"].map(|name| out.path(name).to_str().unwrap().to_owned());
    let [json, folded, recording, replayed] = &paths;
    let outputs = ["-q", "-F", "997", "-o", json, "-o", folded, "-o", recording];
    profiler(&[&outputs[..], &["--", stripped.to_str().unwrap(), "3"]].concat());
    let profile = out.json("a.json");
    profile.assert_consistent();
    let name = |function: &str| format!("[split+{:#x}]", symbols[function]);
    for (function, expected) in
        [("work_sixty", 60.0), ("work_thirty", 30.0), ("work_ten", 10.0), ("main", 100.0)]
    {
        let measured = profile.total_percent(&name(function));
        assert!((measured - expected).abs() <= 2.0, "{function} is {measured:.1} %, not {expected} %");
    }
    let rows = own(&profile, "[split+");
    let starts: Vec<String> = symbols.values().map(|start| format!("[split+{start:#x}]")).collect();
    // Linkage tables have no symbol, and little time is spent in them.
    let hot = rows.iter().filter(|(_, own)| **own * 100 > profile.number("samples"));
    assert_eq!(hot.filter(|(row, _)| starts.contains(row)).count(), 3, "{rows:?}");
    assert!(rows.len() < 8, "{rows:?}");
    // Addresses are not lost, and nothing is taken for named.
    let address = |frame: &&serde_json::Value| frame["functions"][0]["name"] == name("work_sixty").as_str();
    assert!(profile.list("frames").iter().filter(address).count() > 1);
    assert!(profile.loss("symbol_missing") > profile.number("samples") * 9 / 10);
    // Replays know the same.
    assert!(out.text("a.folded").contains(&name("work_thirty")));
    profiler(&["replay", recording, "-o", replayed]);
    assert_eq!(out.text("a.folded"), out.text("b.folded"));
}

#[test]
fn code_that_nobody_can_name_is_one_row_per_region() {
    if !kernel_ready(&[]) {
        return;
    }
    let program = Waiting::start(Command::new(workload("jit", FRAME_POINTERS)).arg("regions"));
    let expected: Vec<String> = program.said.split(' ').map(|start| format!("[jit+0x{start}]")).collect();
    let profile = program.profiled(&["-F", "997"]);
    let rows = own(&profile, "[jit");
    assert!(rows.keys().all(|row| expected.contains(row)), "{rows:?}, not {expected:?}");
    let shares = [0, 1].map(|region| rows.get(&expected[region]).copied().unwrap_or_default());
    assert!((1.7..2.3).contains(&(shares[0] as f64 / shares[1] as f64)), "{shares:?} should be 2 : 1");
}

/// Code is named, and its stacks are whole, wherever a program keeps it.
#[test]
fn code_is_named_wherever_it_is() {
    if !kernel_ready(&[]) {
        return;
    }
    // Frame pointers would make stacks whole without the tables of the right file.
    let built = workload("places", &["-fomit-frame-pointer"]);
    let dir = tempfile::tempdir().unwrap();
    for place in ["leader-ends", "memfd", "deleted", "copied"] {
        // One of them removes itself.
        let program = dir.path().join("places");
        std::fs::copy(&built, &program).unwrap();
        let target = programs::start(Command::new(&program).arg(place));
        let (profile, by_tables) =
            by_tables(&["--pid", &target.pid(), "-F", "997", "-d", "2s", "--alloc", "off"]);
        profile.assert_consistent();
        let hot = profile.total_percent("hot");
        assert!(hot > 95.0, "{place}: hot is in {hot:.1} % of samples");
        let stacks = profile.list("stacks").iter().filter(|stack| stack["end"] == "complete");
        let called = stacks.filter(|stack| profile.functions(stack).contains(&"caller"));
        let called: u64 = called.map(|stack| stack["samples"].as_u64().unwrap()).sum();
        assert!(called * 100 >= by_tables * 95, "{place}: {called} whole of {by_tables}");
        if place == "leader-ends" {
            let watched = common::profile(&["--pid", &target.pid(), "-d", "1s", "--alloc", "full"]);
            let problems = watched.0["memory"]["watching"]["problems"].to_string();
            // One breakpoint at a time can be put into it, many at once cannot.
            let refused = problems.contains("main thread has ended");
            assert_eq!(refused, profiler::kernel::uprobe::supports_multi(), "{problems}");
        }
    }
}

#[test]
fn segments_that_share_a_page_of_their_file_are_told_apart() {
    if !kernel_ready(&[]) {
        return;
    }
    let script = format!("-Wl,-T,{}/../tests/workloads/segments.ld", env!("CARGO_MANIFEST_DIR"));
    let target = programs::running(&workload("segments", &["-no-pie", &script]));
    let profile = profile(&["--pid", &target.pid(), "-F", "997", "-d", "2s"]);
    for (function, share) in
        [("in_first_segment", 1.0), ("in_second_segment", 2.0), ("in_third_segment", 3.0)]
    {
        let measured = profile.total_percent(function);
        assert!((measured - 100.0 * share / 6.0).abs() < 4.0, "{function} is {measured:.1} %");
    }
}

#[test]
fn reused_memory_is_named_by_what_it_held_then() {
    if !kernel_ready(&[]) {
        return;
    }
    let program = Waiting::start(Command::new(workload("jit", FRAME_POINTERS)).arg("reuse"));
    let profile = program.profiled(&["-F", "997"]);
    // Which of two it was is open for what is seen while one follows the other, 100 ms each time.
    for (function, expected) in [("first_tenant", 57.0), ("second_tenant", 29.0), ("third_tenant", 14.0)] {
        let measured = profile.total_percent(function);
        assert!((measured - expected).abs() < 6.0, "{function} is {measured:.1} %, not {expected} %");
    }
    assert!(profile.loss("code_reused") < profile.number("samples") / 5);
}

#[test]
fn stacks_cross_signals_and_end_in_fibers() {
    if !kernel_ready(&[]) {
        return;
    }
    let program = workload("borders", &["-fomit-frame-pointer"]);
    let handled = "<signal handler called>";
    let signals = ["hot", "second", handled, "first", handled, "raises", "run"];
    let borders =
        [("signals", &signals[..]), ("fiber", &["hot", "entry"]), ("compiled", &["keeps_other", "main"])];
    let compiles = cfg!(target_arch = "x86_64");
    for (border, expected) in borders.into_iter().filter(|(border, _)| compiles || *border != "compiled") {
        let target = programs::start(Command::new(&program).arg(border));
        let (profile, by_tables) =
            by_tables(&["--pid", &target.pid(), "-F", "997", "-d", "2s", "--alloc", "off"]);
        let stacks = profile.list("stacks").iter().filter(|stack| stack["end"] == "complete");
        let right = stacks.filter(|stack| {
            let functions = profile.functions(stack);
            let mut left = functions.iter();
            expected.iter().all(|wanted| left.any(|function| function == wanted))
        });
        let right: u64 = right.map(|stack| stack["samples"].as_u64().unwrap()).sum();
        assert!(
            right * 100 >= by_tables * 90,
            "{border}: {right} right of {by_tables}: {}",
            profile.0["user_stacks"]
        );
    }
}

/// A file that several names lead to is called as the program was started.
#[test]
fn a_program_is_called_as_it_was_started() {
    if !kernel_ready(&[]) {
        return;
    }
    let stripped = workload("split", &[FRAME_POINTERS, &["-s"]].concat());
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("called-so");
    std::os::unix::fs::symlink(&stripped, &link).unwrap();
    let work = format!("[called-so+{:#x}]", symbols(&workload("split", FRAME_POINTERS))["work_sixty"]);
    let running = Running::start(Command::new(&link).arg("60").stdout(Stdio::null()));
    let attached = profile(&["--pid", &running.pid(), "-F", "499", "-d", "2s"]);
    let started = profile(&["-F", "499", "--", link.to_str().unwrap(), "2"]);
    for profile in [attached, started] {
        profile.assert_consistent();
        let paths: Vec<&str> =
            profile.list("modules").iter().map(|module| module["path"].as_str().unwrap()).collect();
        assert!(paths.contains(&link.to_str().unwrap()), "{paths:?}");
        assert!(!paths.contains(&stripped.to_str().unwrap()), "{paths:?}");
        assert!(profile.total_percent(&work) > 30.0);
    }
}

/// What the profiler costs the target is said to be the profiler's.
fn own_programs_are_called_so(command: &mut Command, args: &[&str]) {
    let running = Running::start(command);
    let profile = profile(&[&["--pid", &running.pid(), "-F", "4999", "-d", "3s"], args].concat());
    profile.assert_consistent();
    let itself = own(&profile, "[the profiler itself]").into_values().sum::<u64>();
    // Other profilers of this machine are not this one.
    let others = own(&profile, "bpf_prog_").into_values().sum::<u64>();
    assert!(itself > 100 && itself > others, "{itself} samples, and {others} with other names");
    for stack in profile.list("stacks") {
        let functions = profile.functions(stack);
        let at = functions.iter().position(|function| *function == "[the profiler itself]");
        assert!(at.is_none_or(|at| at == 0), "what it calls is its own: {functions:?}");
    }
    let verdict = profile.0["verdict"].to_string();
    assert!(!verdict.contains("the profiler itself"), "{verdict}");
}

#[test]
fn the_profilers_own_programs_are_called_so() {
    if kernel_ready(&["dd"]) {
        let mut dd = Command::new("dd");
        dd.args(["if=/dev/zero", "of=/dev/null", "bs=1", "status=none"]);
        own_programs_are_called_so(&mut dd, &["--syscalls"]);
    }
}

/// Those that breakpoints run are unloaded when the watch on allocations ends.
#[test]
fn those_that_watch_allocations_too() {
    if kernel_ready(&["perl"]) {
        let mut perl = Command::new("perl");
        perl.args(["-e", "for (;;) { my @kept = map { 'x' x 100 } 1 .. 100 }"]);
        own_programs_are_called_so(&mut perl, &["--alloc", "full", "--max-overhead", "100"]);
    }
}
