//! The scheduler probe against programs that know how long they waited, and for what.
//!
//! What is compared was measured twice in the same run, by the profiler and by the program itself or by the kernel's
//! own books, so that a busy machine makes both larger.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::{
    collections::HashMap,
    fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use common::{
    FRAME_POINTERS, Outputs, PROFILER, Profile, Profiling, Running, kernel_ready, programs::wait_until,
    which, workload,
};
use serde_json::Value;

/// Every way to wait has its cause, its length, and its stack.
#[test]
fn causes_of_waiting_are_right() {
    if !kernel_ready(&[]) {
        return;
    }
    let files = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut command = Command::new(workload("blockers", FRAME_POINTERS));
    command.args(["each", "4"]).arg(files.path().join("file"));
    let (profile, out, said) = watch(&mut command, &[]);
    profile.assert_consistent();
    let threads = Thread::all(&profile);
    let blocked: u64 = threads.values().flat_map(|thread| thread.blocked.values()).sum();
    for own in Own::all(&said) {
        let thread = &threads[&own.tid];
        assert_eq!(thread.name, own.name);
        own.assert_same(thread);
        for (cause, &ns) in own.blocked.iter().filter(|(_, ns)| **ns * 10 > own.wall) {
            let blocked = thread.or_less_by_the_books(thread.blocked(cause), ns);
            assert_close(&format!("{}: {cause}", own.name), blocked, ns, 0.02);
        }
        let others = thread.blocked.iter().filter(|(cause, _)| !own.blocked.contains_key(*cause));
        let others: u64 = others.map(|(_, ns)| ns).sum();
        assert!(others * 50 < own.wall, "{} did not wait for {:?}", own.name, thread.blocked);
    }

    // Where they wait is as right as for how long.
    let off_cpu = &profile.0["offcpu"];
    assert_close("time off CPUs", number(off_cpu, "total_ns"), blocked, 0.01);
    let stacks = off_cpu["stacks"].as_array().unwrap();
    assert_eq!(stacks.iter().map(|stack| number(stack, "ns")).sum::<u64>(), number(off_cpu, "total_ns"));
    for own in Own::all(&said).iter().filter(|own| !own.name.contains("keeper") && own.name != "spinner") {
        let function = format!("wait_{}", own.name);
        let there = stacks.iter().filter(|stack| {
            number(stack, "tid") == own.tid && profile.functions(stack).contains(&function.as_str())
        });
        let there: u64 = there.map(|stack| number(stack, "ns")).sum();
        assert_close(&function, there, own.most(), 0.05);
    }
    let folded = out.text("offcpu.folded");
    let total: u64 =
        folded.lines().map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum();
    assert_eq!(total, number(off_cpu, "total_ns"));
    assert!(folded.lines().any(|line| line.contains("wait_mutex;")), "{folded}");
}

/// Who waits for another process is told which.
#[test]
fn who_is_awaited_has_a_name() {
    if !kernel_ready(&[]) {
        return;
    }
    let shell = |script: &str, input: Stdio| {
        Running::start(Command::new("sh").args(["-c", script]).stdin(input).stdout(Stdio::piped()))
    };
    let mut writer = shell("while sleep 0.05; do echo x; done", Stdio::null());
    let pipe = writer.0.stdout.take().unwrap();
    let reader = shell("while read x; do :; done", pipe.into());
    // Its child ends with its standard input.
    let parent = shell("cat; :", Stdio::piped());
    let children = format!("/proc/{0}/task/{0}/children", parent.pid());
    wait_until("the child", || fs::read_to_string(&children).is_ok_and(|pids| !pids.is_empty()));
    let child = fs::read_to_string(&children).unwrap().trim().to_owned();
    for (pid, awaited) in [(reader.pid(), format!("sh, pid {}", writer.pid())), (parent.pid(), child)] {
        // Watched all the time, however busy the machine is.
        let profile = common::profile(&["-d", "2s", "--syscalls", "--pid", &pid]);
        let sentence = profile.0["verdict"]["sentence"].as_str().unwrap();
        assert!(sentence.contains(&awaited), "{awaited} is not in: {sentence}");
    }
}

/// With `--redact-paths` no output tells a path or an address, whichever probe saw it; and a peer has one number everywhere.
#[test]
fn what_is_redacted_is_told_by_no_probe() {
    const ASKS: &str = r#"
import os, socket, sys, time
def ask(family, address):
    listener = socket.socket(family)
    listener.bind(address)
    listener.listen()
    client = socket.socket(family)
    if os.fork():
        client.connect(listener.getsockname())
        return client
    server, _ = listener.accept()
    client.close()
    while data := server.recv(9):
        time.sleep(0.15)
        server.send(data)
    os._exit(0)
clients = [ask(socket.AF_UNIX, sys.argv[1]), ask(socket.AF_INET, ('127.0.0.1', 0))]
print(flush=True)
while True:
    for client in clients:
        client.send(b'question')
        client.recv(9)
"#;
    if !kernel_ready(&["python3"]) {
        return;
    }
    let out = Outputs::new();
    let socket = out.path("very-secret");
    let mut program = Command::new("/usr/bin/python3");
    let mut program = Running::start(program.args(["-c", ASKS]).arg(&socket).stdout(Stdio::piped()));
    let _ready = program.ready();
    let options = ["-d", "3s", "--redact-paths", "--long-block", "100ms", "--syscalls", "--requests", "on"];
    let report = out.path("x.html");
    let profile =
        common::profile(&[&options[..], &["--pid", &program.pid(), "-o", report.to_str().unwrap()]].concat());
    let all = profile.0.to_string() + &out.text("x.html");
    for secret in ["very-secret", "127.0.0.1"] {
        let at = all.find(secret).map(|at| &all[at.saturating_sub(100)..(at + 50).min(all.len())]);
        assert_eq!(at, None, "{secret}");
    }
    let waits = profile.0["blocking"]["long_waits"].as_array().unwrap();
    let object =
        waits.iter().find_map(|wait| wait["block"]["object"].as_str().filter(|of| of.starts_with("tcp ")));
    let remote = object.expect("waits for the peer").rsplit(' ').next().unwrap();
    let peers = profile.0["requests"]["peers"].as_array().unwrap();
    assert!(peers.iter().any(|peer| peer["peer"] == remote), "{remote} is not in {peers:?}");
    let looked_at = profile.0["vitals"]["processes"][0]["peers"].as_array().unwrap();
    assert!(looked_at.iter().any(|peer| peer["peer"] == remote), "{remote} is not in {looked_at:?}");
}

/// The parts of each thread's time add up to the time it was there, and are what the kernel says they are.
#[test]
fn wall_time_is_accounted_for() {
    if !kernel_ready(&[]) {
        return;
    }
    for count in ["1", "8", "200"] {
        let mut command = Command::new(workload("blockers", FRAME_POINTERS));
        let (profile, _out, said) = watch(command.args(["many", "2", count]), &[]);
        let threads = Thread::all(&profile);
        let own = Own::all(&said);
        assert_eq!(own.len().to_string(), count);
        for own in own {
            let thread = &threads[&own.tid];
            own.assert_same_parts(thread);
            for (cause, &ns) in &own.blocked {
                let blocked = thread.or_less_by_the_books(thread.blocked(cause), ns);
                assert_near(&format!("{}: {cause}", own.name), blocked, ns, own.wall);
            }
        }
    }
}

/// Sixteen threads that want two CPUs: how long each wait for one was, and who ran instead.
#[test]
fn waits_for_a_cpu_are_measured() {
    const LONG: u64 = 20_000_000;
    if !kernel_ready(&[]) {
        return;
    }
    let mut command = Command::new(workload("blockers", FRAME_POINTERS));
    let options = ["--starvation", "20ms", "--threads", "-F", "499"];
    let (profile, _out, said) = watch(command.args(["spin", "4", "16"]), &options);
    let own = Own::all(&said);
    let threads = Thread::all(&profile);
    own.iter().for_each(|own| own.assert_same_parts(&threads[&own.tid]));

    let pid = threads[&own[0].tid].pid;
    let queue = profile.0["blocking"]["run_queue"].as_array().unwrap();
    let waits = &queue.iter().find(|queue| number(queue, "pid") == pid).unwrap()["waits"];
    let mut single: Vec<u64> = line(&said, "waits=").split(',').map(|ns| ns.parse().unwrap()).collect();
    single.sort_unstable();
    let at = |quantile: f64| single[((single.len() - 1) as f64 * quantile) as usize];
    assert_close("number of waits", number(waits, "count"), own.iter().map(|own| own.runs).sum(), 0.05);
    // The main thread sleeps, and then waits for the others one by one.
    let of_spinners = number(waits, "sum_ns") - threads[&pid].run_queue;
    assert_close("sum of waits", of_spinners, own.iter().map(|own| own.run_queue).sum(), 0.01);
    for (key, quantile) in [("p50_ns", 0.5), ("p90_ns", 0.9), ("p99_ns", 0.99)] {
        // Threads start and end a little outside of what they measure, which moves the ranks a little.
        let (low, high) = (at(quantile - 0.005) as f64 * 0.95, at(quantile + 0.005) as f64 * 1.05);
        let measured = number(waits, key) as f64;
        assert!(low <= measured && measured <= high, "{key}: {measured}, not {low} to {high}");
    }

    let starved = long_waits(&profile, "starved");
    let listed = starved.len() as u64 + number(&profile.0["blocking"], "long_waits_unlisted");
    let expected = single.iter().filter(|&&ns| ns >= LONG).count() as u64;
    assert_close("waits longer than the threshold", listed, expected, 0.05);
    for wait in &starved {
        assert!(number(&wait["block"], "run_queue_ns") >= LONG, "{wait}");
    }
    // Who had the CPU meanwhile is known nearly all the time; it was mostly one of the others, and never the thread itself.
    let (mut waited, mut explained, mut others) = (0, 0, 0);
    for wait in &starved {
        waited += number(&wait["block"], "run_queue_ns");
        for ran in wait["instead"].as_array().unwrap() {
            assert_ne!(number(ran, "tid"), number(wait, "tid"));
            explained += number(ran, "ns");
            others += if ran["name"].as_str().unwrap().starts_with("spin-") { number(ran, "ns") } else { 0 };
        }
    }
    assert_close("time that is explained by who ran instead", explained, waited, 0.1);
    assert!(others * 2 > explained, "{others} of {explained}");

    // By thread it is the same waits.
    for own in &own {
        let queue = &threads[&own.tid].queue;
        assert_close("waits of a thread", number(queue, "count"), own.runs, 0.1);
        assert_close("sum of a thread's waits", number(queue, "sum_ns"), own.run_queue, 0.05);
    }
}

/// Linux 6.12 and newer can book sleep as waiting for a CPU (docs/design/waiting.md). Here they do in most runs, for a whole nap.
#[test]
fn sleep_is_no_wait_for_a_cpu() {
    if !kernel_ready(&[]) {
        return;
    }
    let mut command = Command::new(workload("blockers", FRAME_POINTERS));
    let (profile, _out, said) = watch(command.args(["rest", "6", "1"]), &[]);
    let threads = Thread::all(&profile);
    let own = Own::all(&said).pop().unwrap();
    let (slept, asked) = (threads[&own.tid].blocked("sleep"), own.blocked["sleep"]);
    // It sleeps for as long as it asked for, and never less.
    let books = own.run_queue;
    assert!(
        slept + asked / 500 >= asked,
        "slept {slept} ns of {asked}; the kernel says it waited {books} ns"
    );
    assert!(slept <= asked + asked / 20 + books, "slept {slept} ns, not {asked}");
}

/// Threads that begin while the probes are put in place block before anybody looks.
#[test]
fn threads_that_begin_during_the_start_have_not_waited_for_a_cpu() {
    if !kernel_ready(&[]) {
        return;
    }
    let mut command = Command::new(workload("blockers", FRAME_POINTERS));
    command.args(["breed", "600", "1"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut target = Running::start(&mut command);
    let said = target.ready();
    target.0.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let tasks = format!("/proc/{}/task", target.pid());
    wait_until("many threads", || fs::read_dir(&tasks).unwrap().count() > 300);
    let profile = common::profile(&["--pid", &target.pid(), "-d", "1s"]);
    drop(said);
    drop(target);
    let threads = Thread::all(&profile);
    assert!(threads.len() > 300, "{} threads", threads.len());
    for (tid, thread) in &threads {
        assert!(thread.run_queue * 2 <= thread.wall.max(1_000_000_000), "{tid}: {thread:?}");
    }
}

/// Who ends a wait: the thread that writes, unlocks or ends, also where an interrupt of the network lies in between; and
/// the clock.
#[test]
fn who_wakes_is_known() {
    const WAKERS: [(&str, &str, &str); 10] = [
        ("pipe", "feeder", "send_all"),
        ("unix", "feeder", "send_all"),
        ("event", "feeder", "send_all"),
        ("recv", "feeder", "send_all"),
        ("accept", "feeder", "send_all"),
        ("poll", "feeder", "send_all"),
        ("epoll", "feeder", "send_all"),
        ("condition", "feeder", "send_all"),
        ("fault", "feeder", "provide_page"),
        ("sleep", "an interrupt", "hrtimer_interrupt"),
    ];
    if !kernel_ready(&[]) {
        return;
    }
    let files = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut command = Command::new(workload("blockers", FRAME_POINTERS));
    command.args(["each", "3"]).arg(files.path().join("file"));
    let (profile, _out, said) = watch(&mut command, &["--wakers"]);
    let blocked: u64 = Thread::all(&profile).values().flat_map(|thread| thread.blocked.values()).sum();
    assert_close("time off CPUs", number(&profile.0["offcpu"], "total_ns"), blocked, 0.01);
    let stacks = profile.0["offcpu"]["stacks"].as_array().unwrap();
    let own = Own::all(&said);
    for (name, who, function) in WAKERS {
        let own = own.iter().find(|own| own.name == name).unwrap();
        let (mut right, mut seen_there) = (0, 0);
        for stack in stacks.iter().filter(|stack| number(stack, "tid") == own.tid) {
            let functions = profile.functions(stack);
            let Some(at) = functions.iter().position(|name| name.starts_with("[woken by ")) else { continue };
            let waited_there = functions[at..].contains(&&*format!("wait_{name}"));
            let woken = functions[at].starts_with(&format!("[woken by {who}"));
            let there = functions[..at].contains(&function);
            // Who wakes ten threads at once has not all of these stacks taken, but is known.
            let not_taken = functions[..at].is_empty();
            if waited_there && woken && (there || not_taken) {
                right += number(stack, "ns");
                seen_there += if there { number(stack, "ns") } else { 0 };
            }
        }
        assert!(seen_there > 0, "{name}: {function} has woken it at no time");
        // A packet that is on its way when an interrupt comes is delivered by that; and an interrupt whose stack was not
        // taken passes for the thread that it interrupted.
        let tolerance = if matches!(name, "recv" | "accept" | "sleep") { 0.5 } else { 0.1 };
        assert_close(&format!("{name}, woken by {who} in {function}"), right, own.most(), tolerance);
    }
}

/// A lock that one thread holds for long and many want, and a wait that not even a signal ends.
#[test]
fn long_blocks_and_convoys_are_found() {
    const WAITERS: usize = 14;
    if !kernel_ready(&[]) {
        return;
    }
    let mut command = Command::new(workload("blockers", FRAME_POINTERS));
    let (profile, _out, said) = watch(command.args(["hold", "4", "16"]), &[]);
    let own = Own::all(&said);
    let blocked = long_waits(&profile, "blocked");
    for waiter in &own[2..] {
        let found: Vec<_> = blocked.iter().filter(|wait| number(wait, "tid") == waiter.tid).collect();
        assert_eq!(found.len(), 1, "{} in {blocked:?}", waiter.name);
        let block = &found[0]["block"];
        assert_eq!(block["cause"], "lock");
        assert_eq!(block["syscall"], "futex");
        assert_close("a long block", number(block, "blocked_ns"), waiter.blocked["lock"], 0.02);
        assert!(names(&block["stack"]).contains(&"wait_held"), "{block}");
        assert_eq!(found[0]["uninterruptible"], false);
    }
    let parent = blocked.iter().find(|wait| number(wait, "tid") == own[1].tid).expect("waits in vfork");
    assert_eq!(parent["block"]["cause"], "child");
    assert_eq!(parent["uninterruptible"], true);
    assert!(!blocked.iter().any(|wait| number(wait, "tid") == own[0].tid), "to sleep is no block");

    let convoys = profile.0["blocking"]["convoys"].as_array().unwrap();
    assert_eq!(convoys.len(), 1, "{convoys:?}");
    let convoy = &convoys[0];
    assert_eq!(number(convoy, "futex").to_string(), line(&said, "held="));
    assert_eq!(number(convoy, "waiters"), WAITERS as u64);
    assert_eq!(number(&convoy["holder"], "tid"), own[0].tid);
    assert!(names(&convoy["holder_stack"]).contains(&"hold_lock"), "{convoy}");
    assert!(names(&convoy["waiter_stack"]).contains(&"wait_held"), "{convoy}");
}

/// Work is always ready: the loop never sleeps, and its iterations are seen all the same.
#[test]
fn a_loop_that_never_sleeps_is_seen() {
    if !kernel_ready(&[]) {
        return;
    }
    let mut command = Command::new(workload("busyloop", FRAME_POINTERS));
    let (profile, _out, said) = watch(command.arg("4"), &["-F", "499"]);
    let own = Span::all(&said, "stall ");
    let stalls = Stall::all(&profile);
    assert_eq!(number(&profile.0["blocking"], "stalls_unlisted"), 0);
    assert_found(&own, &stalls, 10_000_000);
    for stall in &stalls {
        let iteration = own.iter().find(|iteration| stall.matches(iteration));
        let iteration = iteration.unwrap_or_else(|| panic!("invented: {stall:?}"));
        stall.assert_as_long_as(iteration);
        assert_eq!(stall.value["severity"] == "critical", stall.span.length > 50_000_000);
        stall.assert_explained();
        stall.assert_computing("handle_event");
    }
    let [event_loop] = profile.0["blocking"]["loops"].as_array().unwrap().as_slice() else {
        panic!("one loop")
    };
    assert_eq!(event_loop["wait"], "epoll_wait");
    let iterations: Vec<u64> =
        line(&said, "turns ").split(' ').map(|number| number.parse::<u64>().unwrap()).collect();
    assert_close("number of iterations", number(&event_loop["iterations"], "count"), iterations[0], 0.01);
    assert_close("sum of iterations", number(&event_loop["iterations"], "sum_ns"), iterations[1], 0.01);
    assert_close("median iteration", number(&event_loop["iterations"], "p50_ns"), iterations[2], 0.05);
    let criticals = stalls.iter().filter(|stall| stall.value["severity"] == "critical").count() as u64;
    assert_eq!(number(event_loop, "criticals"), criticals);
    assert_eq!(number(event_loop, "warnings"), stalls.len() as u64 - criticals);
}

#[test]
fn computing_stalls_node() {
    if !kernel_ready(&["node"]) {
        return;
    }
    let (profile, own) = node("spin", "800", "5", None);
    let stalls = Stall::of(&profile, &own);
    for stall in &stalls {
        stall.assert_explained();
        assert!(stall.share_of_samples("busyLoop") > 0.9, "{:?}", stall.value);
    }
    // A sample is a fixed piece of time.
    let samples: u64 = stalls.iter().map(Stall::samples).sum();
    let on_cpu: u64 = stalls.iter().map(|stall| number(stall.value, "on_cpu_ns")).sum();
    assert_close("time in samples", samples * 1_000_000_000 / 499, on_cpu, 0.1);
}

#[test]
fn a_slow_file_stalls_node() {
    if !kernel_ready(&["node"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("slow-file");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let (profile, own) = node("read", "800", "5", Some(&fifo));
    for stall in Stall::of(&profile, &own) {
        stall.assert_explained();
        stall.assert_blocked("pipe", "read", "uv_fs_read");
    }
}

/// A wait in another epoll descriptor than the loop's own, in the middle of an iteration, is part of the iteration.
#[test]
fn waiting_for_a_child_stalls_node() {
    if !kernel_ready(&["node"]) {
        return;
    }
    let (profile, own) = node("child", "800", "5", None);
    for stall in Stall::of(&profile, &own) {
        stall.assert_explained();
        stall.assert_blocked("other", "epoll_pwait", "node::SyncProcessRunner::Spawn");
    }
}

/// One that serves one client is away from its epoll_wait for as long as a query takes, which holds up nobody else.
#[test]
fn a_backend_of_postgres_is_no_event_loop() {
    if !kernel_ready(&["postgres", "pgbench"]) {
        return;
    }
    let postgres = common::programs::postgres();
    let target: Vec<&str> = postgres.target.iter().map(String::as_str).collect();
    let profile = common::profile(&[&target[..], &["-d", "3s", "--stall-warning", "1ms"]].concat());
    let serves_a_client =
        |pid: u64| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().contains("[local]");
    let clients =
        profile.list("threads").iter().filter(|thread| serves_a_client(number(thread, "pid"))).count();
    assert!(clients >= 2, "pgbench has two connections");
    for list in ["loops", "stalls"] {
        for found in profile.0["blocking"][list].as_array().unwrap() {
            assert!(!serves_a_client(number(found, "pid")), "{list}: {found}");
        }
    }
}

/// The other side of finding every stall.
#[test]
fn no_stall_is_invented() {
    if !kernel_ready(&["node"]) {
        return;
    }
    let (profile, own) = node("none", "800", "5", None);
    assert!(own.is_empty());
    let loops = profile.0["blocking"]["loops"].as_array().unwrap();
    assert!(loops.iter().any(|event_loop| number(&event_loop["iterations"], "count") > 1000), "{loops:?}");
}

#[test]
fn sleeping_and_computing_stall_asyncio() {
    if !kernel_ready(&["python3"]) {
        return;
    }
    let mut command = Command::new(which("python3").unwrap());
    let (profile, _out, said) = watch(command.arg(script("stall.py")).args(["0.4", "4"]), &["-F", "499"]);
    let (sleeps, dumps) = (Span::all(&said, "sleep_in_coroutine "), Span::all(&said, "dump_something_big "));
    let own = [sleeps.clone(), dumps.clone()].concat();
    assert_none_invented(&profile, &own, &said);
    for stall in Stall::of(&profile, &sleeps) {
        stall.assert_explained();
        stall.assert_blocked("sleep", "clock_nanosleep", "clock_nanosleep");
    }
    for stall in Stall::of(&profile, &dumps) {
        stall.assert_explained();
        assert!(stall.share_of_samples("dump_something_big") > 0.9, "{:?}", stall.value);
    }
}

#[test]
fn slow_commands_stall_redis() {
    const SLOW: u64 = 10_000_000;
    if !kernel_ready(&["redis-server", "redis-benchmark"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("redis.sock");
    let server = Running::start(
        Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--enable-debug-command", "yes"])
            .args(["--latency-monitor-threshold", "10", "--slowlog-log-slower-than", "10000", "--unixsocket"])
            .arg(&socket)
            .current_dir(dir.path())
            .stdout(Stdio::null()),
    );
    wait_until("redis listens", || socket.exists());
    let mut client = Redis::connect(&socket);
    client.ask("DEBUG POPULATE 1000000");
    client.ask("SLOWLOG RESET");
    client.ask("LATENCY RESET");
    let _load = Running::start(
        Command::new("redis-benchmark")
            .args(["-q", "-c", "5", "-n", "100000000", "-t", "set,get", "-s"])
            .arg(&socket)
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    );
    let watching = Watching::start(&server.pid(), &["-F", "499"]);
    for _ in 0..4 {
        client.ask("KEYS *");
        for _ in 0..1000 {
            client.ask("PING");
        }
    }
    watching.interrupt();
    let (profile, _out) = watching.end();
    // In order of time, the latest first: [id, time, microseconds, [command...], ...].
    let slow: Vec<u64> =
        client.ask("SLOWLOG GET -1").list().iter().map(|entry| entry.list()[2].number() * 1000).collect();
    assert!(slow.len() >= 4);

    let stalls = Stall::all(&profile);
    let mut found = stalls.iter().filter(|stall| stall.share_of_samples("keysCommand") > 0.5);
    for &took in slow.iter().rev().filter(|&&took| took > 5 * SLOW) {
        let stall = found.next().expect("a stall for each KEYS");
        assert!(stall.span.length >= took, "{took}: {:?}", stall.value);
        let waited = number(stall.value, "run_queue_ns");
        assert!(stall.span.length - took <= took / 20 + waited, "{took}: {:?}", stall.value);
        assert_eq!(stall.value["severity"], "critical");
        stall.assert_explained();
    }
    assert!(found.next().is_none(), "{} of {slow:?}", stalls.len());
    // What took long without waiting for a CPU was a slow command to redis too.
    let long =
        stalls.iter().filter(|stall| stall.span.length - number(stall.value, "run_queue_ns") > SLOW * 3 / 2);
    assert!(long.count() <= slow.len(), "{stalls:?}");
    // And redis's own monitor had the same worst latency, ms: [event, time, latest, worst].
    let latest = client.ask("LATENCY LATEST");
    let worst = latest.list().iter().map(|event| event.list()[3].number()).max().unwrap();
    let longest = stalls.iter().map(|stall| stall.span.length).max().unwrap();
    assert!(longest / 1_000_000 >= worst, "{longest} ns, {worst} ms");
}

/// A profiler that has begun to watch processes.
struct Watching {
    run: Running,
    live: thread::JoinHandle<()>,
    out: Outputs,
}

impl Watching {
    /// Returns when the live view's first line says that profiling has begun.
    fn start(pid: &str, args: &[&str]) -> Watching {
        let out = Outputs::new();
        let mut command = Command::new(PROFILER);
        command.args(["-i500ms", "--pid", pid]).args(args).arg("-o").arg(out.path("out.json"));
        command.arg("-o").arg(out.path("offcpu.folded")).stderr(Stdio::piped()).stdout(Stdio::null());
        let mut run = Running::start(&mut command);
        let mut live = BufReader::new(run.0.stderr.take().unwrap());
        let mut line = String::new();
        live.read_line(&mut line).unwrap();
        assert!(run.0.try_wait().unwrap().is_none(), "it has ended: {line}{}", rest(&mut live));
        let live = thread::spawn(move || drop(io::copy(&mut live, &mut io::sink())));
        Watching { run, live, out }
    }

    /// As Ctrl-C does.
    fn interrupt(&self) {
        // SAFETY: plain system call on a child that has not been waited for, so its pid is its own.
        unsafe { libc::kill(self.run.0.id() as i32, libc::SIGINT) };
    }

    /// Waits for the end, and reads what was found.
    fn end(mut self) -> (Profile, Outputs) {
        assert!(self.run.0.wait().unwrap().success());
        self.live.join().unwrap();
        (self.out.json("out.json"), self.out)
    }
}

/// Profiles a workload that prints a line when it is ready and waits for one to begin. Returns the profile and what
/// else the workload printed.
fn watch(command: &mut Command, args: &[&str]) -> (Profile, Outputs, String) {
    let mut target = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let mut said = target.ready();
    let watching = Watching::start(&target.pid(), args);
    let mut input = target.0.stdin.take().unwrap();
    input.write_all(b"go\n").unwrap();
    let said = rest(&mut said);
    let (profile, out) = watching.end();
    assert!(target.0.wait().unwrap().success());
    (profile, out, said)
}

fn rest(from: &mut impl io::Read) -> String {
    let mut text = String::new();
    from.read_to_string(&mut text).unwrap();
    text
}

/// Threads that wait for each other for ever are found, with who waits for them; who takes turns is not among them.
#[test]
fn deadlocks_are_found() {
    if !kernel_ready(&[]) {
        return;
    }
    let mut command = Command::new(workload("deadlock", FRAME_POINTERS));
    let mut target = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let mut said = String::new();
    BufReader::new(target.0.stdout.take().unwrap()).read_line(&mut said).unwrap();
    let tids: Vec<u64> = said.split_whitespace().skip(1).map(|tid| tid.parse().unwrap()).collect();
    let [a, b, c, behind, alone] = tids[..] else { panic!("{said}") };
    let profiling = Profiling::start(&["--pid", &target.pid(), "-d", "5s", "--alloc", "off"]);
    let (profile, _) = profiling.finish();
    let mut deadlocks = profile.0["blocking"]["deadlocks"].as_array().unwrap().clone();
    deadlocks.sort_by_key(|deadlock| deadlock["threads"].as_array().unwrap().len());
    let [itself, circle] = &deadlocks[..] else { panic!("{deadlocks:?}") };
    let threads = |of: &Value, place: &str| -> Vec<u64> {
        let threads = of["threads"].as_array().unwrap().iter();
        threads
            .map(|thread| {
                assert!(names(&thread["stack"]).contains(&place), "{thread}");
                number(thread, "tid")
            })
            .collect()
    };
    assert_eq!((threads(itself, "take_again"), number(itself, "behind")), (vec![alone], 0));
    // Each waits for the one after it.
    let mut expected = vec![a, b, c];
    let lowest = expected.iter().enumerate().min_by_key(|(_, tid)| **tid).unwrap().0;
    expected.rotate_left(lowest);
    assert_eq!(
        (threads(circle, "take_next"), number(circle, "behind")),
        (expected, 1),
        "{behind} waits for it"
    );
    let finding = &profile.0["findings"][0];
    assert_eq!((&finding["rule"], &finding["severity"]), (&"deadlock".into(), &"critical".into()));
    let verdict = profile.0["verdict"]["sentence"].as_str().unwrap();
    assert!(verdict.contains("for ever") && verdict.contains("take_next"), "{verdict}");
}

/// Runs the server in one of its ways, and checks that its stalls and only those are found.
fn node(kind: &str, gap: &str, count: &str, fifo: Option<&PathBuf>) -> (Profile, Vec<Span>) {
    let mut command = Command::new(which("node").unwrap());
    let logs = tempfile::tempdir().unwrap();
    command
        .current_dir(&logs)
        .arg("--perf-basic-prof")
        .arg(script("stall.js"))
        .args([kind, gap, count])
        .args(fifo);
    let (profile, _out, said) = watch(&mut command, &["-F", "499"]);
    let left_by_node = profile.list("threads").iter().map(|thread| number(thread, "pid"));
    for pid in left_by_node {
        let _gone = fs::remove_file(format!("/tmp/perf-{pid}.map"));
    }
    let own = if kind == "none" { Vec::new() } else { Span::all(&said, "stall ") };
    assert_none_invented(&profile, &own, &said);
    (profile, own)
}

/// No other stall than the process's own, and none longer than an iteration of its loop can have been.
fn assert_none_invented(profile: &Profile, own: &[Span], said: &str) {
    let calm: u64 = line(said, "calm ").parse().unwrap();
    let stalls = Stall::all(profile);
    let others = stalls.iter().filter(|stall| !own.iter().any(|own| stall.matches(own)));
    for stall in others {
        assert!(stall.span.length <= calm, "none was longer than {calm}: {stall:?}");
    }
}

/// Each of `own` longer than `threshold` was found. What is as long as the threshold may be or not.
fn assert_found(own: &[Span], stalls: &[Stall<'_>], threshold: u64) {
    for span in own.iter().filter(|span| span.length > threshold + threshold / 50) {
        let found = stalls.iter().filter(|stall| stall.matches(span)).count();
        assert_eq!(found, 1, "{span:?} in {stalls:?}");
    }
}

/// A stretch of CLOCK_MONOTONIC, ns.
#[derive(Clone, Debug)]
struct Span {
    start: u64,
    length: u64,
}

impl Span {
    /// From lines "PREFIX START LENGTH".
    fn all(said: &str, prefix: &str) -> Vec<Span> {
        let lines = said.lines().filter_map(|line| line.strip_prefix(prefix));
        let spans = lines.map(|line| {
            let (start, length) = line.split_once(' ').unwrap();
            Span { start: start.parse().unwrap(), length: length.parse().unwrap() }
        });
        spans.collect()
    }
}

/// On-CPU time that may have no sample at 499 Hz: samples are some periods apart where a CPU is shared.
const TOO_SHORT: u64 = 8_000_000;

#[derive(Debug)]
struct Stall<'a> {
    span: Span,
    value: &'a Value,
}

impl Stall<'_> {
    fn all(profile: &Profile) -> Vec<Stall<'_>> {
        let stalls = profile.0["blocking"]["stalls"].as_array().unwrap().iter();
        let stall = |value| Stall {
            span: Span { start: number(value, "start_ns"), length: number(value, "duration_ns") },
            value,
        };
        stalls.map(stall).collect()
    }

    /// The one stall that each of `own` is, which is a little shorter than the iteration around it.
    fn of<'a>(profile: &'a Profile, own: &[Span]) -> Vec<Stall<'a>> {
        let mut stalls = Stall::all(profile);
        assert_found(own, &stalls, 50_000_000);
        stalls.retain(|stall| own.iter().any(|own| stall.matches(own)));
        for stall in &stalls {
            stall.assert_as_long_as(own.iter().find(|own| stall.matches(own)).unwrap());
            assert_eq!(stall.value["severity"], "critical");
        }
        stalls
    }

    /// Whether this is the iteration that `own` was measured in.
    fn matches(&self, own: &Span) -> bool {
        self.span.start <= own.start && own.start + own.length <= self.span.start + self.span.length
    }

    /// It is around `own` and hardly longer, but for what the thread waited for a CPU before and after its own clock ran.
    fn assert_as_long_as(&self, own: &Span) {
        let more = self.span.length - own.length;
        let waited = number(self.value, "run_queue_ns");
        assert!(more <= own.length / 20 + waited, "{own:?}, not {:?}", self.value);
    }

    /// Nearly all of it is explained, but for time on a CPU that was too short to be sampled.
    fn assert_explained(&self) {
        let explained = self.value["explained"].as_f64().unwrap() * self.span.length as f64;
        let short = if self.samples() == 0 { number(self.value, "on_cpu_ns").min(TOO_SHORT) } else { 0 };
        assert!(explained + short as f64 >= self.span.length as f64 * 0.9, "{:?}", self.value);
    }

    /// Samples are of this function, unless there is none because it had hardly been on a CPU.
    fn assert_computing(&self, function: &str) {
        let too_short = self.samples() == 0 && number(self.value, "on_cpu_ns") < TOO_SHORT;
        assert!(too_short || self.share_of_samples(function) > 0.9, "{:?}", self.value);
    }

    /// Nearly all of it was spent in one call, but for what it waited before.
    fn assert_blocked(&self, cause: &str, syscall: &str, function: &str) {
        let blocks = self.value["blocks"].as_array().unwrap();
        let (it, others): (Vec<_>, Vec<_>) = blocks.iter().partition(|block| {
            block["cause"] == cause
                && block["syscall"] == syscall
                && names(&block["stack"]).iter().any(|name| name.contains(function))
        });
        let length = |blocks: &[&Value]| -> u64 {
            blocks.iter().map(|block| number(block, "blocked_ns") + number(block, "run_queue_ns")).sum()
        };
        let span = self.span.length;
        // What it computed and waited for a CPU meanwhile is neither.
        let queued = blocks.iter().map(|block| number(block, "run_queue_ns")).sum::<u64>();
        let ready =
            number(self.value, "on_cpu_ns") + number(self.value, "run_queue_ns").saturating_sub(queued);
        let (it, others) = (length(&it), length(&others));
        let left = span.saturating_sub(others + ready);
        for block in blocks {
            let stack: Vec<&str> = names(&block["stack"]);
            let about = stack.iter().find(|name| name.contains(function));
            eprintln!("{} {} {} {about:?}", block["cause"], block["syscall"], block["blocked_ns"]);
            eprintln!("  {} frames, outermost {:?}", stack.len(), stack.last());
        }
        assert!(
            it * 10 >= left * 9 && left * 2 >= span,
            "not {cause} in {syscall}: {it} ns, others {others} ns, ready {ready} ns, of {span} ns"
        );
    }

    fn samples(&self) -> u64 {
        self.value["samples"].as_array().unwrap().iter().map(|sample| number(sample, "samples")).sum()
    }

    /// Share of samples with a function of this name, or of a name with this in it, in the stack.
    fn share_of_samples(&self, function: &str) -> f64 {
        let samples = self.value["samples"].as_array().unwrap();
        let with = samples
            .iter()
            .filter(|sample| names(&sample["stack"]).iter().any(|name| name.contains(function)));
        with.map(|sample| number(sample, "samples")).sum::<u64>() as f64 / self.samples().max(1) as f64
    }
}

/// A thread as the profiler saw it.
#[derive(Debug)]
struct Thread {
    pid: u64,
    name: String,
    wall: u64,
    on_cpu: u64,
    run_queue: u64,
    /// Distribution of its waits for a CPU.
    queue: Value,
    blocked: HashMap<String, u64>,
    /// Whether the kernel took sleep of any thread for waiting for a CPU.
    books_are_wrong: bool,
}

impl Thread {
    /// By thread id; the parts of each add up.
    fn all(profile: &Profile) -> HashMap<u64, Thread> {
        let mut threads = HashMap::new();
        let losses = profile.0["losses"].as_array().unwrap();
        let moved = losses.iter().find(|loss| loss["reason"] == "wakes_unknown").unwrap();
        for value in profile.0["blocking"]["threads"].as_array().unwrap() {
            let blocked = value["blocked_ns"].as_object().unwrap().iter();
            let thread = Thread {
                pid: number(value, "pid"),
                name: value["name"].as_str().unwrap().into(),
                wall: number(value, "wall_ns"),
                on_cpu: number(value, "on_cpu_ns"),
                run_queue: number(value, "run_queue_ns"),
                queue: value["run_queue"].clone(),
                blocked: blocked.map(|(cause, ns)| (cause.clone(), ns.as_u64().unwrap())).collect(),
                books_are_wrong: number(moved, "count") > 0,
            };
            let sum = thread.on_cpu + thread.run_queue + thread.blocked.values().sum::<u64>();
            assert_close(&format!("sum of parts of {}", thread.name), sum, thread.wall, 0.01);
            threads.insert(number(value, "tid"), thread);
        }
        threads
    }

    fn blocked(&self, cause: &str) -> u64 {
        self.blocked.get(cause).copied().unwrap_or(0)
    }

    /// Time blocked, or the kernel's figure for it if that is less and the kernel's books are wrong.
    fn or_less_by_the_books(&self, blocked: u64, books: u64) -> u64 {
        if self.books_are_wrong { blocked.min(books) } else { blocked }
    }

    /// Time waited for a CPU, or the kernel's figure for it if that is more and the kernel's books are wrong.
    fn or_more_by_the_books(&self, waited: u64, books: u64) -> u64 {
        if self.books_are_wrong { waited.max(books) } else { waited }
    }
}

/// A thread as it saw itself.
#[derive(Debug)]
struct Own {
    name: String,
    tid: u64,
    wall: u64,
    on_cpu: u64,
    run_queue: u64,
    /// Times it got a CPU.
    runs: u64,
    blocked: HashMap<String, u64>,
}

impl Own {
    /// From lines "NAME tid=N wall=NS on_cpu=NS run_queue=NS runs=N CAUSE=NS...".
    fn all(said: &str) -> Vec<Own> {
        let lines = said.lines().filter(|line| line.contains(" tid="));
        let own = lines.map(|line| {
            let (name, rest) = line.split_once(' ').unwrap();
            let parts = rest.split(' ').map(|part| part.split_once('=').unwrap());
            let mut blocked: HashMap<String, u64> =
                parts.map(|(key, value)| (key.to_owned(), value.parse().unwrap())).collect();
            let mut take = |key| blocked.remove(key).unwrap();
            let (tid, wall, on_cpu, run_queue) =
                (take("tid"), take("wall"), take("on_cpu"), take("run_queue"));
            let runs = take("runs");
            Own { name: name.into(), tid, wall, on_cpu, run_queue, runs, blocked }
        });
        own.collect()
    }

    /// What it waited most.
    fn most(&self) -> u64 {
        self.blocked.values().copied().max().unwrap_or(0)
    }

    /// The time it was there and what of it was not blocked are those of the kernel's own books.
    fn assert_same(&self, thread: &Thread) {
        assert_near(&format!("wall time of {}", self.name), thread.wall, self.wall, self.wall);
        let books = self.on_cpu + self.run_queue;
        let ready = thread.or_more_by_the_books(thread.on_cpu + thread.run_queue, books);
        assert_near(&format!("time on or for a CPU of {}", self.name), ready, books, self.wall);
    }

    /// So are its parts, for a thread that is not often woken up to preempt another: the kernel books the time until
    /// that happens as if the woken one had run already (`rq_clock_skip_update`).
    fn assert_same_parts(&self, thread: &Thread) {
        self.assert_same(thread);
        let what = format!("run queue of {}", self.name);
        let waited = thread.or_more_by_the_books(thread.run_queue, self.run_queue);
        assert_near(&what, waited, self.run_queue, self.wall);
    }
}

/// `measured` is `expected` but for a share of it.
#[track_caller]
fn assert_close(what: &str, measured: u64, expected: u64, share: f64) {
    let off = measured.abs_diff(expected) as f64;
    assert!(off <= expected as f64 * share, "{what}: {measured}, not {expected}");
}

/// `measured` is `expected` but for a fiftieth of `whole`.
#[track_caller]
fn assert_near(what: &str, measured: u64, expected: u64, whole: u64) {
    assert!(measured.abs_diff(expected) * 50 <= whole, "{what}: {measured}, not {expected}, of {whole}");
}

fn long_waits<'a>(profile: &'a Profile, kind: &str) -> Vec<&'a Value> {
    let waits = profile.0["blocking"]["long_waits"].as_array().unwrap();
    waits.iter().filter(|wait| wait["kind"] == kind).collect()
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("no {key} in {value}"))
}

fn names(stack: &Value) -> Vec<&str> {
    stack.as_array().into_iter().flatten().map(|name| name.as_str().unwrap()).collect()
}

/// What follows `prefix` in the line that begins with it.
fn line<'a>(said: &'a str, prefix: &str) -> &'a str {
    let found = said.lines().find_map(|line| line.strip_prefix(prefix));
    found.unwrap_or_else(|| panic!("no {prefix} in {said}"))
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/workloads").join(name)
}

/// A client that does not compete for the CPUs as a shell around redis-cli would.
struct Redis(BufReader<UnixStream>);

#[derive(Debug)]
enum Reply {
    Number(u64),
    Text,
    List(Vec<Reply>),
}

impl Redis {
    fn connect(socket: &PathBuf) -> Redis {
        Redis(BufReader::new(UnixStream::connect(socket).unwrap()))
    }

    fn ask(&mut self, command: &str) -> Reply {
        self.0.get_mut().write_all(format!("{command}\r\n").as_bytes()).unwrap();
        self.reply()
    }

    fn reply(&mut self) -> Reply {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let (kind, rest) = line.trim_end().split_at(1);
        match kind {
            "+" => Reply::Text,
            ":" => Reply::Number(rest.parse().unwrap()),
            "$" => {
                let mut text = vec![0; rest.parse::<usize>().unwrap() + 2];
                self.0.read_exact(&mut text).unwrap();
                Reply::Text
            }
            "*" => Reply::List((0..rest.parse::<usize>().unwrap()).map(|_| self.reply()).collect()),
            _ => panic!("redis: {line}"),
        }
    }
}

impl Reply {
    fn number(&self) -> u64 {
        let Reply::Number(number) = self else { panic!("{self:?}") };
        *number
    }

    fn list(&self) -> &[Reply] {
        let Reply::List(list) = self else { panic!("{self:?}") };
        list
    }
}
