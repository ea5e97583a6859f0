//! Stripped programs have the names of their functions wherever these are kept.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{FRAME_POINTERS, Outputs, PROFILER, Profile, Running, kernel_ready, workload};

/// The workload with debug information and a build id.
fn whole() -> PathBuf {
    workload("split", &[FRAME_POINTERS, &["-Wl,--build-id=sha1"]].concat())
}

/// Makes another program `p` of `whole` in a folder.
fn make(folder: &Path, commands: &str) -> PathBuf {
    std::fs::copy(whole(), folder.join("p")).unwrap();
    let shell = Command::new("sh").args(["-ec", commands]).current_dir(folder).output().unwrap();
    assert!(shell.status.success(), "{}", String::from_utf8_lossy(&shell.stderr));
    folder.join("p")
}

fn profiled(program: &Path, seconds: &str, args: &[&str], cache: &Path) -> Profile {
    let out = Outputs::new();
    let mut command = Command::new(PROFILER);
    command
        .args(["-q", "-F", "997", "-o"])
        .arg(out.path("x.json"))
        .args(args)
        .arg("--")
        .arg(program)
        .arg(seconds);
    command.env_remove("DEBUGINFOD_URLS").env("DEBUGINFOD_CACHE_PATH", cache).stdout(Stdio::null());
    assert!(command.status().unwrap().success());
    out.json("x.json")
}

/// Whether functions have their names and shares; and whether their lines are known.
fn named(profile: &Profile) -> (bool, bool) {
    profile.assert_consistent();
    let shares = [("work_sixty", 60.0), ("work_thirty", 30.0), ("work_ten", 10.0)];
    let right = shares.iter().all(|(name, share)| (profile.total_percent(name) - share).abs() < 4.0);
    let hot = profile.list("hotspots").iter().find(|of| of["function"] == "work_sixty");
    let lines = hot.is_some_and(|of| of["location"].as_str().is_some_and(|at| at.contains("split.c:")));
    (right, lines)
}

fn symbols(program: &Path) -> String {
    let running = Running::start(Command::new(program).arg("60").stdout(Stdio::null()));
    let said = Command::new(PROFILER).args(["symbols", &running.pid()]).output().unwrap();
    assert!(said.status.success());
    String::from_utf8(said.stdout).unwrap()
}

const SPLIT: &str = "objcopy --only-keep-debug p p.debug";
const LINK: &str = "; strip p; objcopy --add-gnu-debuglink=p.debug p";

#[test]
fn names_are_found_in_debug_files_and_in_mini_debug_information() {
    if !kernel_ready(&[]) {
        return;
    }
    let linked = format!("{SPLIT}{LINK}");
    let shared = format!("{SPLIT}; cp p.debug q.debug; dwz -r -m shared.debug p.debug q.debug{LINK}");
    let mini = "nm p --format=posix --defined-only | cut -d' ' -f1 > keep; objcopy -S --remove-section .comment \
                --keep-symbols=keep p m; xz m; strip p; objcopy --add-section .gnu_debugdata=m.xz p";
    let ways = [
        ("strip", "strip p", (false, false), "what it exports"),
        ("objcopy", &linked, (true, true), "p.debug with lines"),
        ("dwz", &shared, (true, true), "p.debug with lines"),
        ("xz", mini, (true, false), "its mini debug information"),
    ];
    for (tool, commands, expected, told) in ways {
        if !kernel_ready(&[tool]) {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let program = make(folder.path(), commands);
        let profile = profiled(&program, "2", &[], folder.path());
        assert_eq!(named(&profile), expected, "{tool}");
        let said = symbols(&program);
        let line = said.lines().find(|line| line.contains("/p: ")).unwrap();
        assert!(line.contains(told), "{tool}: {line}");
    }
}

#[test]
fn go_programs_have_names_and_lines_without_symbols() {
    if !kernel_ready(&["go"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let source = "package main\n\nimport \"time\"\n\nvar sink int\n\n//go:noinline\nfunc hotLoop() {\n\tfor i := 0; i < 1000000; i++ {\n\t\tsink += i\n\t}\n}\n\nfunc main() {\n\tend := time.Now().Add(3 * time.Second)\n\tfor time.Now().Before(end) {\n\t\thotLoop()\n\t}\n}\n";
    std::fs::write(folder.path().join("hot.go"), source).unwrap();
    let mut go = Command::new("go");
    go.current_dir(folder.path()).env("GOCACHE", folder.path().join("cache")).env("HOME", folder.path());
    let built = go.args(["build", "-ldflags", "-s -w", "-o", "p", "hot.go"]).status().unwrap();
    assert!(built.success());
    let profile = profiled(&folder.path().join("p"), "3", &[], folder.path());
    profile.assert_consistent();
    assert!(profile.total_percent("main.hotLoop") > 80.0, "{:?}", &profile.list("hotspots")[..3]);
    let hot = profile.list("hotspots").iter().find(|of| of["function"] == "main.hotLoop").unwrap();
    assert!(hot["location"].as_str().unwrap().contains("hot.go:"), "{hot}");
    // They are followed to the start of their goroutine, by the table that the names are from.
    let (mut hot, mut whole) = (0, 0);
    // Until the tables of all its files are there, the kernel follows stacks itself.
    for stack in profile.list("stacks").iter().filter(|stack| stack["end"] != "frame_pointers") {
        let (names, samples) = (profile.functions(stack), stack["samples"].as_u64().unwrap());
        if names.contains(&"main.hotLoop") {
            hot += samples;
            let ends = names.ends_with(&["main.hotLoop", "main.main", "runtime.main", "runtime.goexit"]);
            whole += if stack["end"] == "complete" && ends { samples } else { 0 };
        }
    }
    assert!(hot > 500 && whole * 100 >= hot * 95, "{whole} of {hot}: {}", profile.0["user_stacks"]);
}

fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    Some(String::from_utf8_lossy(&answer[..answer.len().min(64)]).into_owned())
}

/// A server of elfutils', which is asked only if the user says so.
#[test]
fn names_come_from_a_debuginfod_server_if_it_may_be_asked() {
    if !kernel_ready(&["debuginfod"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (program, cache) =
        (make(folder.path(), "mkdir kept; cp p kept/whole; strip p"), folder.path().join("cache"));
    let build_id =
        profiler::process::elf::ElfInfo::read(&std::fs::File::open(&program).unwrap()).unwrap().build_id;
    let id: String = build_id.iter().map(|byte| format!("{byte:02x}")).collect();
    let port = common::programs::free_port();
    let mut server = Command::new("debuginfod");
    server.args(["-d", ":memory:", "-p", &port.to_string(), "-F"]).arg(folder.path().join("kept"));
    let _server = Running::start(server.stdout(Stdio::null()).stderr(Stdio::null()));
    let path = format!("/buildid/{id}/debuginfo");
    let until = Instant::now() + Duration::from_secs(60);
    while !get(port, &path).is_some_and(|answer| answer.contains(" 200 ")) {
        assert!(Instant::now() < until, "the server does not know the file");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(named(&profiled(&program, "2", &[], &cache)), (false, false), "nobody may be asked");
    assert!(!cache.exists());
    let option = format!("--debuginfod=http://127.0.0.1:{port}");
    assert_eq!(named(&profiled(&program, "2", &[&option], &cache)), (true, true));
    assert!(cache.join(&id).join("debuginfo").exists(), "kept where elfutils looks for it");
    // A server that is not there costs names, and nothing else.
    let other = tempfile::tempdir().unwrap();
    let nobody = common::programs::free_port();
    let option = format!("--debuginfod=http://127.0.0.1:{nobody}");
    assert_eq!(named(&profiled(&program, "2", &[&option], other.path())), (false, false));
}
