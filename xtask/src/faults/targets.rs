//! Targets in states that a profiler may find them in.

use std::{fs, process::Command};

use anyhow::{Result, ensure};

use super::{
    Fault, Seen,
    ground::{Cgroup, Ground, Run, Target, json, number, outcome},
};

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "target killed",
        promise: "exit code 0, the report of what was seen until then",
        full: false,
        happen: killed,
    },
    Fault {
        name: "target stopped by a signal",
        promise: "exit code 0; the report says that it was stopped",
        full: false,
        happen: stopped,
    },
    Fault {
        name: "target frozen by its cgroup",
        promise: "exit code 0; the run ends in time",
        full: false,
        happen: frozen,
    },
    Fault {
        name: "target traced by another program",
        promise: "both go on; functions have their names",
        full: false,
        happen: traced,
    },
    Fault {
        name: "target in PID, mount, user and time namespaces of its own",
        promise: "profiled as any other, with names",
        full: false,
        happen: namespaces,
    },
    Fault {
        name: "target in a root of its own (chroot)",
        promise: "profiled as any other, with names from the files there",
        full: false,
        happen: chroot,
    },
    Fault {
        name: "target that may only read, write and end (seccomp)",
        promise: "profiled as any other: nothing is injected",
        full: false,
        happen: |ground, _| plain(ground, ground.steady(&["strict"])?),
    },
    Fault {
        name: "target of another user",
        promise: "profiled as any other",
        full: false,
        happen: other_user,
    },
    Fault {
        name: "two profilers on one target",
        promise: "both see the same; neither disturbs the other",
        full: false,
        happen: two,
    },
];

/// Profiles a target as anybody would, and expects its function at the top.
fn plain(ground: &Ground, target: Target) -> Result<Seen> {
    let args = ["--pid", &target.arg(), "-q", "-d1s", "-o", "x.json", "--alloc", "full"];
    let outcome = outcome(&mut ground.profiler(&args))?.expect(0)?;
    target.assert_undamaged()?;
    named(ground, "x.json", &outcome.said)
}

/// The hottest function of an output is the one that works.
fn named(ground: &Ground, output: &str, said: &str) -> Result<Seen> {
    let told = json(&ground.path(output))?;
    let hottest = told["hotspots"][0]["function"].as_str().unwrap_or_default();
    ensure!(hottest == "steady_work", "the hottest function is {hottest:?}: {said}");
    let (here, all) = (number(&told["hotspots"][0], "self_samples"), number(&told, "samples"));
    Ok(Seen::Held(format!("code 0, {here} of {all} samples in the function that works")))
}

fn killed(ground: &Ground, _full: bool) -> Result<Seen> {
    let target = ground.steady(&[])?;
    let run = Run::start(&mut ground.profiler(&["--pid", &target.arg(), "-i200ms", "-o", "x.json"]))?;
    run.seen_at_work()?;
    target.signal(libc::SIGKILL);
    let outcome = run.end()?.expect(0)?;
    named(ground, "x.json", &outcome.said)
}

fn stopped(ground: &Ground, _full: bool) -> Result<Seen> {
    let target = ground.steady(&[])?;
    target.signal(libc::SIGSTOP);
    let args = ["--pid", &target.arg(), "-q", "-d3s"];
    let outcome = outcome(&mut ground.profiler(&args))?.expect(0)?;
    target.signal(libc::SIGCONT);
    target.assert_undamaged()?;
    let first = outcome.report.lines().take(10).find(|line| line.contains("stopped"));
    ensure!(first.is_some(), "not said in: {}", outcome.report);
    Ok(Seen::Held("code 0, said in the first ten lines".into()))
}

fn frozen(ground: &Ground, _full: bool) -> Result<Seen> {
    let Some(cgroup) = Cgroup::new("freezer")? else {
        return Ok(Seen::NotHere("no freezer cgroup of version 1".into()));
    };
    let target = ground.steady(&[])?;
    cgroup.set("cgroup.procs", &target.arg())?;
    cgroup.set("freezer.state", "FROZEN")?;
    let args = ["--pid", &target.arg(), "-q", "-d2s", "--alloc", "full", "-o", "x.json"];
    let ended = outcome(&mut ground.profiler(&args)).and_then(|outcome| outcome.expect(0));
    cgroup.set("freezer.state", "THAWED")?;
    ended?;
    let duration = number(&json(&ground.path("x.json"))?, "duration_ns");
    target.assert_undamaged()?;
    Ok(Seen::Held(format!("code 0 after a run of {:.1} s", duration as f64 / 1e9)))
}

fn traced(ground: &Ground, _full: bool) -> Result<Seen> {
    let target = ground.steady(&[])?;
    let mut tracer = Command::new("strace");
    tracer.args(["-f", "-qq", "-o", "/dev/null", "-p", &target.arg()]);
    let mut tracer = tracer.spawn()?;
    // The kernel says who traces.
    let traced = || {
        let status = fs::read_to_string(format!("/proc/{}/status", target.pid())).unwrap_or_default();
        !status.lines().any(|line| line.split_whitespace().eq(["TracerPid:", "0"]))
    };
    let started = std::time::Instant::now();
    while !traced() {
        ensure!(started.elapsed().as_secs() < 20, "the tracer does not begin");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let args = ["--pid", &target.arg(), "-q", "-d1s", "-o", "x.json", "--alloc", "full"];
    let profiled = outcome(&mut ground.profiler(&args)).and_then(|outcome| outcome.expect(0));
    let still = traced();
    tracer.kill()?;
    tracer.wait()?;
    ensure!(still, "the tracer has lost its target");
    target.assert_undamaged()?;
    named(ground, "x.json", &profiled?.said)
}

fn namespaces(ground: &Ground, _full: bool) -> Result<Seen> {
    let unshare = [
        "unshare",
        "--user",
        "--map-root-user",
        "--pid",
        "--fork",
        "--mount-proc",
        "--time",
        "--monotonic",
        "100000",
    ];
    plain(ground, ground.steady_under(&unshare, &[])?)
}

fn chroot(ground: &Ground, _full: bool) -> Result<Seen> {
    let root = ground.path("root");
    fs::create_dir_all(root.join("dev"))?;
    fs::write(root.join("dev/null"), "")?;
    fs::copy(ground.steady_path(), root.join("steady"))?;
    let libraries = crate::shell::output(Command::new("ldd").arg(ground.steady_path()))?;
    for path in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        let there = root.join(path.trim_start_matches('/'));
        if let Some(parent) = there.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::copy(path, there)?;
    }
    let root = root.display().to_string();
    plain(ground, Target::under(&["chroot", &root, "/steady"])?)
}

fn other_user(ground: &Ground, _full: bool) -> Result<Seen> {
    plain(ground, ground.steady_under(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"], &[])?)
}

fn two(ground: &Ground, _full: bool) -> Result<Seen> {
    let target = ground.steady(&[])?;
    let start = |output: &str| {
        let args = ["--pid", &target.arg(), "-d2s", "--alloc", "full", "--syscalls", "-o", output];
        Run::start(&mut ground.profiler(&args))
    };
    let (one, other) = (start("one.json")?, start("other.json")?);
    let (one, other) = (one.end()?.expect(0)?, other.end()?.expect(0)?);
    target.assert_undamaged()?;
    let seen = named(ground, "one.json", &one.said)?;
    named(ground, "other.json", &other.said)?;
    Ok(seen)
}
