//! Complete stacks from programs built without frame pointers: Debian's, and what compilers make of ours.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard},
};

use common::{
    Profile, Profiling, Running, compiled, kernel_ready,
    programs::{self, Program},
    workload,
};
use profiler::model::stack::StackEnd;
use serde_json::Value;

const NO_FRAME_POINTERS: &[&str] = &["-fomit-frame-pointer"];
/// Of the stacks unwound by tables, so many reach the start of their thread.
const COMPLETE_PERCENT: f64 = 99.5;

/// One at a time: what is judged by time should have the machine to itself.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(|failed| failed.into_inner())
}

fn percent(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

/// Profiles a program by tables and by frame pointers, and judges the stacks.
fn assert_complete(start: impl FnOnce() -> Program) {
    let _alone = alone();
    let program = start();
    let target: Vec<&str> = program.target.iter().map(String::as_str).collect();
    let run = |how: &[&str]| Profiling::start(&[how, &["-F", "1999"], &target].concat()).finish().0;
    let profile = run(&["-d", "3s"]);
    profile.assert_consistent();
    let (starts, complete) = starts_of_threads(&profile);
    let ends = |end: &str| profile.0["user_stacks"][end].as_u64().unwrap();
    let all = profile.number("samples") - ends("none");
    let by_tables = all - ends("frame_pointers");
    let said = format!("{complete} complete of {}", profile.0["user_stacks"]);
    // With fewer, a single stack would decide. A busy machine leaves little time to the program.
    assert!(by_tables > 200, "{said}");
    assert!(percent(complete, by_tables) >= COMPLETE_PERCENT, "{said}");
    // Before the tables are there: next to none on a quiet machine, almost a second on one whose CPUs are all taken,
    // since whoever builds them is polite.
    assert!(percent(ends("frame_pointers"), all) < 50.0, "{said}");

    let profile = run(&["-d", "1s", "--unwind", "frame-pointers"]);
    let (mut reached, mut walked) = (0, 0);
    for stack in profile.list("stacks") {
        let samples = stack["samples"].as_u64().unwrap();
        walked += samples;
        reached += if starts.contains(&outermost(&profile, stack)) { samples } else { 0 };
    }
    assert!(percent(reached, walked) <= percent(complete, by_tables), "{reached} of {walked}");
}

/// Module and address of a stack's outermost frame.
fn outermost(profile: &Profile, stack: &Value) -> (String, u64) {
    let index = stack["frames"].as_array().unwrap().last().unwrap().as_u64().unwrap();
    let frame = &profile.list("frames")[index as usize];
    let module = &profile.list("modules")[frame["module"].as_u64().unwrap() as usize];
    (module["path"].as_str().unwrap().to_owned(), frame["address"].as_u64().unwrap())
}

/// Where complete stacks end, and how many samples do. The unwinder is not taken at its word: processes start at the
/// entry points of their files, and threads at one place or two in the C library (`clone`, `clone3`), whose symbols
/// may not be installed.
fn starts_of_threads(profile: &Profile) -> (BTreeSet<(String, u64)>, u64) {
    let mut ends: BTreeMap<(String, u64), u64> = BTreeMap::new();
    for stack in profile.list("stacks").iter().filter(|stack| stack["end"] == "complete") {
        *ends.entry(outermost(profile, stack)).or_default() += stack["samples"].as_u64().unwrap();
    }
    let (mut in_libc, mut starts): (Vec<_>, Vec<_>) =
        ends.into_iter().partition(|((path, _), _)| path.ends_with("/libc.so.6"));
    starts.retain(|((path, address), _)| {
        let file = fs::read(path).unwrap_or_default();
        let entry = file.get(24..32).map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().unwrap()));
        (entry..entry + 64).contains(address)
    });
    in_libc.sort_by_key(|&(_, samples)| Reverse(samples));
    starts.extend(in_libc.into_iter().take(2));
    let samples = starts.iter().map(|(_, samples)| samples).sum();
    (starts.into_iter().map(|(place, _)| place).collect(), samples)
}

#[test]
fn redis() {
    if kernel_ready(&["redis-server", "redis-benchmark"]) {
        assert_complete(programs::redis);
    }
}

#[test]
fn postgres() {
    if kernel_ready(&["pgbench", "setpriv"]) {
        assert_complete(programs::postgres);
    }
}

#[test]
fn nginx() {
    if kernel_ready(&["nginx", "wrk"]) {
        assert_complete(programs::nginx);
    }
}

#[test]
fn python() {
    if kernel_ready(&["python3"]) {
        assert_complete(programs::python);
    }
}

#[test]
fn rust() {
    if kernel_ready(&[]) {
        assert_complete(|| programs::running(&compiled("compiled.rs", programs::RUSTC)));
    }
}

#[test]
fn cpp() {
    if kernel_ready(&["g++"]) {
        assert_complete(|| programs::running(&compiled("compiled.cc", programs::CXX)));
    }
}

/// CLOCK_MONOTONIC, as in samples.
fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills a timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// From one second after an event on, stacks are complete.
fn assert_complete_after(event_ns: u64, samples: &[(u64, StackEnd)]) {
    let later: Vec<StackEnd> =
        samples.iter().filter(|(time, _)| *time > event_ns + 1_000_000_000).map(|&(_, end)| end).collect();
    let complete = later.iter().filter(|&&end| end == StackEnd::Complete).count();
    assert!(later.len() > 200, "{} samples", later.len());
    let complete = percent(complete as u64, later.len() as u64);
    assert!(complete >= COMPLETE_PERCENT, "{complete:.2} % of {} complete", later.len());
}

/// Starts `change`, has it change while it is profiled, and judges the stacks from then on.
fn change(line: impl FnOnce(&Path) -> String) -> Profile {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let line = line(dir.path());
    let mut target = Command::new(workload("change", NO_FRAME_POINTERS));
    let mut target = Running::start(target.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let _out = target.ready();
    let profiling = Profiling::start(&["--pid", &target.pid(), "-F", "1999", "-d", "4s"]);
    let event_ns = now_ns();
    writeln!(target.0.stdin.as_ref().unwrap(), "{line}").unwrap();
    let (profile, samples) = profiling.finish();
    profile.assert_consistent();
    assert_complete_after(event_ns, &samples);
    profile
}

#[test]
fn a_library_is_opened() {
    if !kernel_ready(&[]) {
        return;
    }
    let library =
        compiled("change.c", &["cc", "-O2", "-g", "-shared", "-fPIC", "-DLIBRARY", "-fomit-frame-pointer"]);
    let profile = change(|_dir| format!("load {}", library.display()));
    assert!(profile.total_percent("through_library") > 50.0);
}

/// The same addresses, with frames of another size: what was known of them is forgotten.
#[test]
fn a_library_takes_anothers_place() {
    if !kernel_ready(&[]) {
        return;
    }
    let _alone = alone();
    let library = |room: &str| {
        let build = ["cc", "-O2", "-g", "-shared", "-fPIC", "-DLIBRARY", room, "-fomit-frame-pointer"];
        compiled("change.c", &[&build[..], &["-fno-stack-protector"]].concat())
    };
    let libraries = [library("-DROOM=1024"), library("-DROOM=2048")];
    let mut target = Command::new(workload("change", NO_FRAME_POINTERS));
    let mut target = Running::start(target.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let mut said = target.ready();
    let mut input = target.0.stdin.take().unwrap();
    let mut open = |library: &Path| {
        writeln!(input, "load {}", library.display()).unwrap();
        let mut place = String::new();
        said.read_line(&mut place).unwrap();
        place
    };
    let first = open(&libraries[0]);
    let profiling = Profiling::start(&["--pid", &target.pid(), "-F", "1999", "-d", "4s"]);
    let event_ns = now_ns();
    assert_eq!(open(&libraries[1]), first, "it is at the other's place");
    let (profile, samples) = profiling.finish();
    profile.assert_consistent();
    assert_complete_after(event_ns, &samples);
    assert!(profile.total_percent("through_library") > 50.0);
}

#[test]
fn another_program_takes_over() {
    if !kernel_ready(&[]) {
        return;
    }
    let profile = change(|dir| {
        let other = dir.join("other");
        fs::copy(workload("change", &["-fomit-frame-pointer", "-O1"]), &other).unwrap();
        format!("exec {}", other.display())
    });
    let other = profile.list("threads").iter().find(|thread| thread["process"] == "other");
    assert!(other.is_some(), "{:?}", profile.list("threads"));
}

/// The running program has the old file's tables, one started later the new file's.
#[test]
fn a_file_is_replaced() {
    if !kernel_ready(&[]) {
        return;
    }
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let (path, next) = (dir.path().join("replaced"), dir.path().join("next"));
    let start = |path: &PathBuf| {
        let mut target = Command::new(path);
        let mut target = Running::start(target.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let out = target.ready();
        (target, out)
    };
    fs::copy(workload("change", NO_FRAME_POINTERS), &path).unwrap();
    fs::copy(workload("change", &["-fomit-frame-pointer", "-O1"]), &next).unwrap();
    let (before, _out) = start(&path);
    let profiling = Profiling::start(&["--comm", "replaced", "-F", "1999", "-d", "4s"]);
    fs::rename(&next, &path).unwrap();
    let event_ns = now_ns();
    let (after, _out) = start(&path);
    let (profile, samples) = profiling.finish();
    profile.assert_consistent();
    assert_complete_after(event_ns, &samples);
    for process in [&before, &after] {
        let pid = u64::from(process.0.id());
        let threads = profile.list("threads").iter().filter(|thread| thread["pid"] == pid);
        assert!(threads.map(|thread| thread["samples"].as_u64().unwrap()).sum::<u64>() > 200);
    }
    // A profiler that comes only now finds the file by its mapping.
    let (profile, samples) = Profiling::start(&["--comm", "replaced", "-F", "499", "-d", "2s"]).finish();
    assert_complete_after(profile.number("first_sample_monotonic_ns") - 1_000_000_000, &samples);
}

/// Runs `frames`; returns the profile and its number of samples.
fn frames(argument: &str) -> (Profile, u64) {
    let _alone = alone();
    let mut target = Command::new(workload("frames", NO_FRAME_POINTERS));
    let mut target = Running::start(target.arg(argument).stdout(Stdio::piped()));
    let _out = target.ready();
    let (profile, _samples) = Profiling::start(&["--pid", &target.pid(), "-F", "499", "-d", "2s"]).finish();
    profile.assert_consistent();
    let samples = profile.number("samples");
    assert!(samples > 200, "{samples}");
    (profile, samples)
}

/// What was interrupted is below the handler, whichever stack that runs on.
#[test]
fn signal_handlers() {
    if !kernel_ready(&[]) {
        return;
    }
    let (profile, samples) = frames("signal");
    let complete = profile.0["user_stacks"]["complete"].as_u64().unwrap();
    assert!(percent(complete, samples) >= COMPLETE_PERCENT, "{}", profile.0["user_stacks"]);
    for handler in ["on_same_stack", "on_other_stack"] {
        let (mut all, mut whole) = (0, 0);
        for stack in profile.list("stacks") {
            let functions = profile.functions(stack);
            let at = |name| functions.iter().position(|&function| function == name);
            if let Some(handler) = at(handler) {
                let samples = stack["samples"].as_u64().unwrap();
                all += samples;
                whole += if at("interrupted") > Some(handler) { samples } else { 0 };
            }
        }
        assert!(percent(all, samples) > 10.0, "{handler} has {all} of {samples}");
        assert!(percent(whole, all) > 95.0, "{handler} has its caller in {whole} of {all}");
    }
}

#[test]
fn deep_recursion_is_cut_off_and_said_to_be() {
    if !kernel_ready(&[]) {
        return;
    }
    let (profile, samples) = frames("200");
    let too_deep = profile.0["user_stacks"]["too_deep"].as_u64().unwrap();
    assert!(percent(too_deep, samples) >= COMPLETE_PERCENT, "{}", profile.0["user_stacks"]);
    assert_eq!(profile.loss("stack_truncated"), too_deep);
    // 127 frames of the user's, and the kernel's.
    let deepest = profile.list("stacks").iter().max_by_key(|stack| stack["samples"].as_u64()).unwrap();
    let of_descend = profile.functions(deepest).iter().filter(|&&name| name == "descend").count();
    assert!((100..=127).contains(&of_descend), "{of_descend}");
    let (profile, samples) = frames("100");
    let complete = profile.0["user_stacks"]["complete"].as_u64().unwrap();
    assert!(percent(complete, samples) >= COMPLETE_PERCENT, "{}", profile.0["user_stacks"]);
}

/// JavaScript has frame pointers and no tables; node itself has tables and no frame pointers.
#[test]
fn code_compiled_at_run_time() {
    if !kernel_ready(&["node"]) {
        return;
    }
    let _alone = alone();
    let script = "
        function hot(x) { for (let i = 0; i < 1e5; i++) x = (x * 31 + i) | 0; return x }
        function deep(n) { return n ? deep(n - 1) + 1 : [1, 2, 3].map(hot).sort((a, b) => a - b)[0] }
        console.log('ready'); for (;;) deep(20)";
    let mut target = Command::new("/usr/bin/node");
    let mut target = Running::start(target.args(["-e", script]).stdout(Stdio::piped()));
    let _out = target.ready();
    let (profile, _samples) = Profiling::start(&["--pid", &target.pid(), "-F", "1999", "-d", "4s"]).finish();
    profile.assert_consistent();
    let (mut all, mut complete) = (0, 0);
    for stack in profile.list("stacks").iter().filter(|stack| stack["end"] != "frame_pointers") {
        let of_javascript = |frame: &Value| {
            let frame = &profile.list("frames")[frame.as_u64().unwrap() as usize];
            frame["functions"].as_array().unwrap().iter().any(|function| function["name"] == "deep")
        };
        if stack["frames"].as_array().unwrap().iter().any(of_javascript) {
            let samples = stack["samples"].as_u64().unwrap();
            all += samples;
            complete += if stack["end"] == "complete" { samples } else { 0 };
        }
    }
    assert!(all > 300, "{all} samples of JavaScript: {}", profile.0["user_stacks"]);
    assert!(percent(complete, all) >= COMPLETE_PERCENT, "{}", profile.0["user_stacks"]);
}

/// A Go program of ours, built with `flags`.
fn go_program(source: &str, flags: &str) -> PathBuf {
    // What `compiled` adds is the source, `-o`, and where to.
    compiled(source, &["sh", "-c", &format!("exec go build {flags} -o \"$2\" \"$0\"")])
}

/// Profiles a Go program whose stacks are as good as all complete; returns its stacks by tables: functions and samples.
fn stacks_of_go(program: &Path) -> Vec<(Vec<String>, u64)> {
    let _alone = alone();
    let program = programs::running(program);
    let target: Vec<&str> = program.target.iter().map(String::as_str).collect();
    let (profile, _samples) = Profiling::start(&[&["-F", "1999", "-d", "3s"], &target[..]].concat()).finish();
    profile.assert_consistent();
    let by_tables = profile.list("stacks").iter().filter(|stack| {
        // Not what only the kernel ran in.
        stack["end"] != "frame_pointers" && stack["end"] != "none"
    });
    let (mut complete, mut all, mut stacks) = (0, 0, Vec::new());
    for stack in by_tables {
        let samples = stack["samples"].as_u64().unwrap();
        all += samples;
        complete += if stack["end"] == "complete" { samples } else { 0 };
        stacks.push((profile.functions(stack).into_iter().map(str::to_owned).collect(), samples));
    }
    assert!(all > 200, "{}", profile.0["user_stacks"]);
    assert!(percent(complete, all) >= COMPLETE_PERCENT, "{}", profile.0["user_stacks"]);
    stacks
}

/// Samples of a function, by who called it.
fn by_caller<'a>(stacks: &'a [(Vec<String>, u64)], function: &str) -> BTreeMap<&'a str, u64> {
    let mut callers = BTreeMap::new();
    for (functions, samples) in stacks {
        if let Some(at) = functions.iter().position(|of| of == function) {
            *callers.entry(functions.get(at + 1).map_or("", String::as_str)).or_default() += samples;
        }
    }
    callers
}

/// Code without a frame of its own has its caller, and stacks reach the start of their goroutine or thread.
#[test]
fn go() {
    if !kernel_ready(&["go"]) {
        return;
    }
    for flags in ["", "-ldflags='-s -w'", "-buildmode=pie", "-buildmode=pie -ldflags='-s -w'"] {
        let stacks = stacks_of_go(&go_program("callers.go", flags));
        let expected: [(&str, &[(&str, f64)]); 4] = [
            (
                "main.leaf",
                &[
                    ("main.thrice", 50.0),
                    ("main.once", 16.7),
                    ("main.descend", 16.7),
                    ("main.late.func1", 16.7),
                ],
            ),
            ("main.square.area", &[("main.(*square).area", 100.0)]),
            ("main.closureOf.func1", &[("main.call", 100.0)]),
            ("time.now", &[("time.Now", 100.0)]),
        ];
        for (function, expected) in expected {
            let callers = by_caller(&stacks, function);
            let all: u64 = callers.values().sum();
            assert!(all > 20, "{flags}: {function} has {callers:?}");
            let right: u64 = expected.iter().filter_map(|(caller, _)| callers.get(caller)).sum();
            assert!(percent(right, all) >= 98.5, "{flags}: {function} has {callers:?}");
            for (caller, share) in expected {
                let is = percent(callers.get(caller).copied().unwrap_or(0), all);
                assert!((is - share).abs() < 10.0, "{flags}: {caller} has {is} % of {function}");
            }
        }
        let depth = |functions: &[String]| functions.iter().filter(|of| *of == "main.descend").count();
        let descended: Vec<usize> = stacks
            .iter()
            .filter(|(functions, _)| functions.windows(2).any(|two| two == ["main.leaf", "main.descend"]))
            .map(|(functions, _)| depth(functions))
            .collect();
        assert!(
            !descended.is_empty() && descended.iter().all(|depth| *depth == 61),
            "{flags}: {descended:?}"
        );
    }
}

/// From Go into C and back, by the unwind information of each.
#[test]
fn go_and_c() {
    if !kernel_ready(&["go", "cc"]) {
        return;
    }
    for flags in ["", "-buildmode=pie"] {
        let stacks = stacks_of_go(&go_program("go_and_c.go", flags));
        let ways: [&[&str]; 3] = [
            &["workInC", "runtime.asmcgocall", "main.intoC", "main.main", "runtime.goexit"],
            &[
                "main.leaf",
                "crosscall2",
                "fromC",
                "runtime.asmcgocall",
                "main.throughC",
                "main.main",
                "runtime.goexit",
            ],
            &["main.leaf", "main.alone", "main.main", "runtime.main", "runtime.goexit"],
        ];
        let goes = |functions: &[String], way: &[&str]| {
            let mut functions = functions.iter();
            way.iter().all(|step| functions.any(|of| of == step))
        };
        let all: u64 = stacks.iter().map(|(_, samples)| samples).sum();
        let of_way = ways.map(|way| {
            stacks
                .iter()
                .filter(|(functions, _)| goes(functions, way))
                .map(|(_, samples)| samples)
                .sum::<u64>()
        });
        assert!(of_way.iter().all(|samples| percent(*samples, all) > 20.0), "{flags}: {of_way:?} of {all}");
        assert!(percent(of_way.iter().sum(), all) > 95.0, "{flags}: {of_way:?} of {all}");
    }
}
