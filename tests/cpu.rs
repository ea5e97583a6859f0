//! The on-CPU sampler against workloads with known answers, and against programs nobody here wrote.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::process::{Command, Stdio};

use common::{
    FRAME_POINTERS, Outputs, PROFILER, Running, kernel_ready, machine_has_no, profile, profiler,
    programs::{self, wait_until},
    which, workload,
};

/// Three functions take 60, 30 and 10 % of the time: five runs in a row say so within two points.
#[test]
fn shares_of_cpu_time_are_right() {
    if !kernel_ready(&[]) {
        return;
    }
    let split = workload("split", FRAME_POINTERS);
    for run in 1..=3 {
        // About 4,000 samples. Chunks of 3.5 ms on average are sampled every millisecond: the standard error of the
        // 60 % is about 0.3 points.
        let profile = profile(&["-F", "997", "--", split.to_str().unwrap(), "4"]);
        profile.assert_consistent();
        assert_eq!(profile.number("samples_lost"), 0);
        for (function, expected) in [("work_sixty", 60.0), ("work_thirty", 30.0), ("work_ten", 10.0)] {
            let measured = profile.total_percent(function);
            assert!(
                (measured - expected).abs() <= 2.0,
                "run {run}: {function} is {measured:.1} %, not {expected} %"
            );
        }
    }
}

#[test]
fn sixteen_threads_are_kept_apart() {
    if !kernel_ready(&[]) {
        return;
    }
    let split = workload("split", FRAME_POINTERS);
    let profile = profile(&["-F", "997", "--", split.to_str().unwrap(), "0.25", "16"]);
    profile.assert_consistent();
    let mut workers = 0;
    for thread in profile.list("threads") {
        let name = thread["name"].as_str().unwrap();
        let Some(number) = name.strip_prefix("worker-") else { continue };
        workers += 1;
        let expected = ["work_sixty", "work_thirty", "work_ten"][number.parse::<usize>().unwrap() % 3];
        let mut right = 0;
        for stack in profile.list("stacks").iter().filter(|stack| stack["tid"] == thread["tid"]) {
            let functions = profile.functions(stack);
            for other in ["work_sixty", "work_thirty", "work_ten"] {
                assert!(other == expected || !functions.contains(&other), "{name} ran {other}");
            }
            if functions.contains(&expected) {
                right += stack["samples"].as_u64().unwrap();
            }
        }
        // The rest is the thread's start, its clock and the kernel.
        let samples = thread["samples"].as_u64().unwrap();
        assert!(right * 100 >= samples * 90, "{name}: {right} of {samples} in {expected}");
    }
    assert_eq!(workers, 16);
}

#[test]
fn all_formats_agree() {
    if !kernel_ready(&[]) {
        return;
    }
    let split = workload("split", FRAME_POINTERS);
    let out = Outputs::new();
    let names = ["a.folded", "a.svg", "a.json", "a.pb.gz", "a.prec"];
    let paths: Vec<String> = names.iter().map(|name| out.path(name).to_str().unwrap().to_owned()).collect();
    let mut args = vec!["-q", "--details", "-F", "499"];
    paths.iter().for_each(|path| args.extend(["-o", path]));
    args.extend(["--", split.to_str().unwrap(), "2"]);
    let report = String::from_utf8(profiler(&args).stderr).unwrap();

    let profile = out.json("a.json");
    profile.assert_consistent();
    let samples = profile.number("samples");
    assert!(samples > 500, "{samples}");
    let folded = |text: &str| -> u64 {
        text.lines().map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
    };
    assert_eq!(folded(&out.text("a.folded")), samples);
    assert!(out.text("a.svg").contains(&format!("{samples} samples at 499 Hz")));
    let taken = profile.number("samples_taken").to_string();
    assert!(report.replace(',', "").contains(&format!("{taken} samples taken")), "{report}");

    // The recording turns into the very same results.
    for (name, original) in [("b.folded", "a.folded"), ("b.json", "a.json"), ("b.pb.gz", "a.pb.gz")] {
        let path = out.path(name);
        profiler(&["replay", &paths[4], "-o", path.to_str().unwrap()]);
        assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(out.path(original)).unwrap(), "{name}");
    }
    // And pprof, where it is installed, reads the same total.
    if which("go").is_some() {
        let top =
            Command::new("go").args(["tool", "pprof", "-top", "-sample_index=samples", &paths[3]]).output();
        let top = top.unwrap();
        let text = String::from_utf8_lossy(&top.stdout);
        assert!(text.contains(&format!("{samples} total")), "{text}{}", String::from_utf8_lossy(&top.stderr));
        assert!(text.contains("work_sixty"), "{text}");
    }
}

#[test]
fn children_are_followed_when_asked() {
    if !kernel_ready(&[]) {
        return;
    }
    let split = workload("split", FRAME_POINTERS);
    // The shell waits for a line, so that the profiler is there before the child is.
    let script = format!("read go; {} 2; true", split.display());
    for follow in [true, false] {
        let mut shell = Running::start(Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()));
        let mut args = vec!["--pid".to_owned(), shell.pid(), "-F".into(), "499".into()];
        if follow {
            args.push("--follow".into());
        }
        let out = Outputs::new();
        let path = out.path("x.json");
        let mut run = Running::start(
            Command::new(PROFILER)
                .args(&args)
                .arg("-i100ms")
                .arg("-o")
                .arg(&path)
                .stderr(Stdio::piped())
                .stdout(Stdio::null()),
        );
        // The live view's first line says that sampling has begun.
        let mut live = std::io::BufReader::new(run.0.stderr.take().unwrap());
        std::io::BufRead::read_line(&mut live, &mut String::new()).unwrap();
        std::io::Write::write_all(&mut shell.0.stdin.take().unwrap(), b"go\n").unwrap();
        std::io::copy(&mut live, &mut std::io::sink()).unwrap();
        assert!(run.0.wait().unwrap().success());
        let profile = out.json("x.json");
        profile.assert_consistent();
        assert_eq!(profile.total_percent("work_sixty") > 30.0, follow);
    }
}

#[test]
fn processes_are_chosen_by_name() {
    if !kernel_ready(&[]) {
        return;
    }
    let split = workload("split", FRAME_POINTERS);
    let dir = tempfile::tempdir().unwrap();
    let named = dir.path().join("a-named-workload-with-a-long-name");
    std::fs::copy(&split, &named).unwrap();
    let _other = Running::start(Command::new(&split).arg("60").stdout(Stdio::null()));
    let _target = Running::start(Command::new(&named).arg("60").stdout(Stdio::null()));
    let name = named.file_name().unwrap().to_str().unwrap();
    let profile = profile(&["--comm", name, "-F", "499", "-d", "2s"]);
    profile.assert_consistent();
    assert!(profile.total_percent("work_sixty") > 30.0);
    for thread in profile.list("threads") {
        assert_eq!(thread["process"].as_str().unwrap(), &name[..15], "only the named one");
    }
}

/// Of a cgroup of version 1 the members of now are profiled, and their children.
#[test]
fn a_cgroup_of_version_1_is_a_target() {
    if !kernel_ready(&[]) {
        return;
    }
    let mounted = tempfile::tempdir().unwrap();
    let at = mounted.path().to_str().unwrap();
    let options = ["-t", "cgroup", "-o", "none,name=profiler-test", "none", at];
    if !Command::new("mount").args(options).stderr(Stdio::null()).status().is_ok_and(|done| done.success()) {
        machine_has_no("cgroup of version 1 that can be mounted");
        return;
    }
    let group = mounted.path().join("group");
    std::fs::create_dir(&group).unwrap();
    let path = group.to_str().unwrap();
    let empty = Command::new(PROFILER).args(["--cgroup", path, "-d", "1s"]).output().unwrap();
    let inside =
        Running::start(Command::new(workload("split", FRAME_POINTERS)).arg("60").stdout(Stdio::null()));
    std::fs::write(group.join("cgroup.procs"), inside.pid()).unwrap();
    let profile = profile(&["--cgroup", path, "-F", "499", "-d", "2s"]);
    let pid = u64::from(inside.0.id());
    drop(inside);
    let removed = std::fs::remove_dir(&group);
    assert!(Command::new("umount").arg(at).status().unwrap().success());
    let pids: Vec<u64> =
        profile.list("threads").iter().map(|thread| thread["pid"].as_u64().unwrap()).collect();
    assert_eq!(pids, [pid]);
    assert_eq!(empty.status.code(), Some(3), "{}", String::from_utf8_lossy(&empty.stderr));
    removed.unwrap();
}

/// A cgroup of our own, where the machine lets us make one.
#[test]
fn a_cgroup_is_a_target() {
    if !kernel_ready(&[]) {
        return;
    }
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let Some(root) = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")) else {
        machine_has_no("cgroup2 mount");
        return;
    };
    let root = std::path::Path::new(root.split(' ').nth(1).unwrap());
    let outer = root.join(format!("profiler-test-{}", std::process::id()));
    let inner = outer.join("inner");
    if std::fs::create_dir_all(&inner).is_err() {
        machine_has_no("cgroup that can be made");
        return;
    }
    let split = workload("split", FRAME_POINTERS);
    let inside = Running::start(Command::new(&split).arg("60").stdout(Stdio::null()));
    let outside = Running::start(Command::new(&split).arg("60").stdout(Stdio::null()));
    std::fs::write(inner.join("cgroup.procs"), inside.pid()).unwrap();
    let profile = profile(&["--cgroup", outer.to_str().unwrap(), "-F", "499", "-d", "2s"]);
    let pids: Vec<u64> =
        profile.list("threads").iter().map(|thread| thread["pid"].as_u64().unwrap()).collect();
    let inside_pid = u64::from(inside.0.id());
    drop((inside, outside));
    // A cgroup can be removed when its last process has been reaped, which has just happened.
    let removed = std::fs::remove_dir(&inner).and_then(|()| std::fs::remove_dir(&outer));
    assert_eq!(pids, [inside_pid]);
    assert!(profile.total_percent("work_sixty") > 30.0);
    // What is read of processes is read of members.
    let watched = profile.0["vitals"]["processes"].as_array().unwrap();
    assert!(watched.iter().any(|process| process["pid"] == inside_pid), "{watched:?}");
    removed.unwrap();
}

/// The profiler and its target in a PID namespace: pids are those seen there.
#[test]
fn pids_are_those_of_the_profilers_namespace() {
    if !kernel_ready(&["unshare"]) {
        return;
    }
    let split = workload("split", FRAME_POINTERS);
    let out = Outputs::new();
    let path = out.path("x.json");
    let script = format!(
        "{split} 20 >/dev/null & {PROFILER} -q --pid $! -F 499 -d 2s -o {path}; kill $!",
        split = split.display(),
        path = path.display()
    );
    let status = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", "sh", "-c", &script])
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let profile = out.json("x.json");
    profile.assert_consistent();
    assert!(profile.total_percent("work_sixty") > 30.0);
    let pid = profile.list("threads")[0]["pid"].as_u64().unwrap();
    assert!(pid < 100, "a pid of the new namespace, not {pid}");
}

/// A program that is gone by the time its samples are named, and whose file is gone too.
#[test]
fn a_process_that_exits_keeps_its_symbols() {
    if !kernel_ready(&[]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("gone");
    std::fs::copy(workload("split", FRAME_POINTERS), &copy).unwrap();
    let script = format!("{0} 1; rm {0}", copy.display());
    let profile = profile(&["-F", "499", "--", "sh", "-c", &script]);
    profile.assert_consistent();
    assert!(profile.total_percent("work_sixty") > 40.0, "{}", profile.total_percent("work_sixty"));
    assert!(!copy.exists());
}

/// JIT code is named by the map its compiler writes.
#[test]
fn node_functions_are_named() {
    if !kernel_ready(&["node"]) {
        return;
    }
    let script =
        "function hotLoop() { let x = 0; for (let i = 0; i < 1e7; i++) x = (x * 31 + i) | 0; return x }
                  const end = Date.now() + 3000; while (Date.now() < end) hotLoop();";
    let profile = profile(&["-F", "499", "--", "node", "--perf-basic-prof", "-e", script]);
    profile.assert_consistent();
    let named: u64 = profile
        .list("hotspots")
        .iter()
        .filter(|hotspot| hotspot["function"].as_str().unwrap().contains("hotLoop"))
        .map(|hotspot| hotspot["self_samples"].as_u64().unwrap())
        .sum();
    assert!(named * 100 > profile.number("samples") * 60, "{named}");
    for pid in profile.list("threads").iter().map(|thread| thread["pid"].as_u64().unwrap()) {
        let _left_by_node = std::fs::remove_file(format!("/tmp/perf-{pid}.map"));
    }
}

#[test]
fn cpython_is_profiled() {
    if !kernel_ready(&["python3"]) {
        return;
    }
    let python = which("python3").unwrap();
    let script =
        "import time\nend = time.time() + 3\nwhile time.time() < end: sum(i * i for i in range(10000))";
    let profile = profile(&["-F", "499", "--", python.to_str().unwrap(), "-c", script]);
    profile.assert_consistent();
    // The interpreter's own loop is shown as the Python function that it runs.
    assert!(profile.total_percent("<genexpr>") > 20.0, "{:?}", &profile.list("hotspots")[..5]);
}

#[test]
fn redis_is_profiled() {
    if !kernel_ready(&["redis-server", "redis-benchmark"]) {
        return;
    }
    let redis = programs::redis();
    let out = Outputs::new();
    let (json, folded) = (out.path("x.json"), out.path("x.folded"));
    let pid = redis.pid();
    profiler(&[
        "-q",
        "--pid",
        &pid,
        "-F",
        "499",
        "-d",
        "4s",
        "-o",
        json.to_str().unwrap(),
        "-o",
        folded.to_str().unwrap(),
    ]);
    let profile = out.json("x.json");
    profile.assert_consistent();
    assert!(profile.number("samples") > 300);
    let folded: u64 = out
        .text("x.folded")
        .lines()
        .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap())
        .sum();
    assert_eq!(folded, profile.number("samples_taken") - profile.number("samples_lost"));
    for function in ["processCommand", "readQueryFromClient", "dictFind"] {
        assert!(profile.total_percent(function) > 0.0, "{function} is not named");
    }
}

/// A thousand processes a second come and go: nothing crashes, and everything is accounted for.
#[test]
fn short_lived_processes_are_accounted_for() {
    if !kernel_ready(&[]) {
        return;
    }
    let spawner = workload("spawner", FRAME_POINTERS);
    let mut load = Running::start(Command::new(&spawner).args(["1000", "60"]).stdout(Stdio::piped()));
    let _out = load.ready();
    let profile = profile(&["--all", "-F", "499", "-d", "5s"]);
    profile.assert_consistent();
    assert!(profile.number("samples") > 1000);
    let spawned = profile.list("threads").iter().filter(|thread| thread["process"] == "spawned").count();
    assert!(spawned > 100, "{spawned}");
    // The mappings of processes that are long gone were learned from the kernel's notices.
    let gone = profile.loss("process_gone");
    assert!(gone * 50 < profile.number("samples"), "{gone} of {}", profile.number("samples"));
    assert!(profile.total_percent("spawned_work") > 5.0, "{}", profile.total_percent("spawned_work"));
    let rss = profile.0["cost"]["agent_peak_rss_bytes"].as_u64().unwrap();
    assert!(rss < 200_000_000, "{rss} bytes");
}

/// Killed without a chance to clean up, the profiler leaves nothing in the kernel.
#[test]
fn nothing_stays_attached_after_kill() {
    if !kernel_ready(&[]) {
        return;
    }
    let ours = |pid: u32| {
        // Only a process that has the program open has its id in its descriptors' information.
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten() {
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            ids.extend(
                text.lines().filter_map(|line| line.strip_prefix("prog_id:")?.trim().parse::<u32>().ok()),
            );
        }
        ids
    };
    let exists = |id: u32| aya::programs::loaded_programs().flatten().any(|program| program.id() == id);
    let mut run = Running::start(Command::new(PROFILER).args(["--all", "-i", "50ms"]).stderr(Stdio::piped()));
    let mut live = std::io::BufReader::new(run.0.stderr.take().unwrap());
    std::io::BufRead::read_line(&mut live, &mut String::new()).unwrap();
    let ids = ours(run.0.id());
    assert!(!ids.is_empty() && ids.iter().all(|&id| exists(id)), "{ids:?}");
    run.0.kill().unwrap();
    run.0.wait().unwrap();
    wait_until("the kernel has let go", || !ids.iter().any(|&id| exists(id)));
}
