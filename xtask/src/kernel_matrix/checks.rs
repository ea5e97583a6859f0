//! What is checked in every kernel: a shell command run in the guest, and what its output must be.
//!
//! To add a check, append it to [`CHECKS`]. The command runs as root under busybox's `sh` in a folder of its own, with
//! `profiler` on the PATH and the workloads of `tests/workloads` in `/work` (each also without frame pointers, as
//! `/work/NAME-nofp`); it may take two minutes, must end with code 0 and should leave nothing running. An emulated machine
//! may take ten seconds to load the kernel programs: what is watched goes on until it is ended, and leaves the CPUs to
//! others (nice). What the command prints to stdout goes to the function, which returns a few words about what it measured.

use std::collections::{BTreeMap, BTreeSet};

use super::profile::{
    MIN_INSIDE, MIN_SAMPLES, Profile, SHARE_TOLERANCE, SPLIT, SyscallCount, ThreadTime, percent,
};
use anyhow::{Context as _, Result, bail, ensure};

/// A check.
pub struct Check {
    /// One word.
    pub name: &'static str,
    /// The shell command.
    pub command: &'static str,
    /// Judges what the command printed.
    pub assert: fn(&str) -> Result<String>,
}

/// Every check, in the order they run.
pub const CHECKS: [Check; 16] = [
    Check { name: "doctor", command: "profiler doctor", assert: doctor },
    Check {
        name: "split",
        command: "profiler -q -F 499 -o out.json -- /work/split 8 >&2 && cat out.json",
        assert: split,
    },
    Check {
        name: "threads",
        command: "nice -n 19 /work/split 200 4 >&2 & sleep 1
            profiler -q -F 499 -d 5s -o out.json --pid $! >&2; code=$?
            kill $!; [ $code = 0 ] && cat out.json",
        assert: threads,
    },
    // Only the shell is named; the workload is forked and replaced (exec) while the profiler runs.
    Check {
        name: "follow",
        command: "mkfifo go; sh -c 'read x <go; /work/split 4; true' >&2 &
            profiler -F 499 -d 6s --interval 1s -o out.json --pid $! --follow >&2 2>live & until [ -s live ]; do sleep 0.1; done
            echo >go; wait; cat live >&2; cat out.json",
        assert: follow,
    },
    // One process runs already, one starts later, and one with the same code has another name.
    Check {
        name: "comm",
        command: "cp /work/split other; mkfifo go
            nice -n 19 /work/split 200 >&2 & one=$!; nice -n 19 ./other 200 >&2 & two=$!
            sh -c 'read x <go; exec nice -n 19 /work/split 200' >&2 & three=$!; sleep 1
            profiler -F 499 -d 6s --interval 1s -o out.json --comm split >&2 2>live & until [ -s live ]; do sleep 0.1; done
            echo >go; wait $!; code=$?; kill $one $two $three; cat live >&2; [ $code = 0 ] && cat out.json",
        assert: comm,
    },
    // One process in the cgroup, one in a cgroup below it, one outside.
    Check {
        name: "cgroup",
        command: "cp /work/split other; cgroup=/sys/fs/cgroup/outer; mkdir -p $cgroup/inner
            sh -c \"echo \\$\\$ >$cgroup/cgroup.procs; exec nice -n 19 /work/split 200\" >&2 & one=$!
            sh -c \"echo \\$\\$ >$cgroup/inner/cgroup.procs; exec nice -n 19 /work/split 200\" >&2 & two=$!
            nice -n 19 ./other 200 >&2 & three=$!; sleep 1
            profiler -q -F 499 -d 4s -o out.json --cgroup $cgroup >&2; code=$?
            kill $one $two $three; [ $code = 0 ] && cat out.json",
        assert: comm,
    },
    // Process ids of a container: the kernel programs find them at offsets that differ from kernel to kernel.
    Check {
        name: "pidns",
        command: "unshare -p -f -m sh -c 'mount -t proc proc /proc
            mkfifo go; sh -c \"read x <go; /work/split 4; true\" >&2 &
            profiler -F 499 -d 6s --interval 1s -o out.json --pid $! --follow >&2 2>live & until [ -s live ]; do sleep 0.1; done
            echo >go; wait; cat live >&2' && cat out.json",
        assert: follow,
    },
    Check {
        name: "kernel",
        command: "dd if=/dev/zero of=/dev/null bs=16k & sleep 1
            profiler -q -F 499 -d 4s -o out.json --pid $! >&2; code=$?
            kill $!; [ $code = 0 ] && cat out.json",
        assert: kernel,
    },
    // Without frame pointers only the unwind tables lead to the end of a stack. Some samples are taken before the
    // tables are there, which takes the emulator a while.
    Check {
        name: "complete",
        command: "nice -n 19 /work/split-nofp 200 >&2 & sleep 1
            profiler -q -F 499 -d 8s -o out.json --pid $! >&2; code=$?
            kill $!; [ $code = 0 ] && cat out.json",
        assert: complete,
    },
    // A shell that does nothing but wait for its children, and /work/split, which never waits.
    Check {
        name: "waits",
        command: "sh -c 'while :; do sleep 0.3; done' & shell=$!; nice -n 19 /work/split 200 >&2 & split=$!; sleep 1
            profiler -q -d 5s -o out.json --pid $shell --pid $split >&2; code=$?
            kill $shell $split; [ $code = 0 ] && cat out.json",
        assert: waits,
    },
    // The same shell: each of its waits ends when a child does.
    Check {
        name: "wakers",
        command: "sh -c 'while :; do sleep 0.3; done' & shell=$!; sleep 1
            profiler -q -d 5s --wakers -o offcpu:wakers.folded --pid $shell >&2; code=$?
            kill $shell; [ $code = 0 ] && cat wakers.folded",
        assert: wakers,
    },
    // The profiler is an event loop itself.
    Check {
        name: "loops",
        command: "profiler --all -d 5m --interval 1s >&2 2>live & until [ -s live ]; do sleep 0.1; done
            profiler -q -d 5s -o out.json --pid $! >&2; code=$?
            kill -INT $!; wait; cat live >&2; [ $code = 0 ] && cat out.json",
        assert: loops,
    },
    Check {
        name: "syscalls",
        command: "profiler -q --syscalls -o out.json -- /work/calls >&2 && cat out.json",
        assert: syscalls,
    },
    // It waits for a line, says what it keeps, and keeps it until its input ends.
    Check {
        name: "alloc",
        command: "mkfifo go; /work/alloc 20 <go >said & exec 9>go; sleep 1
            profiler -d 25s --interval 1s --alloc full -o out.json --pid $! >&2 2>live & until [ -s live ]; do sleep 0.1; done
            echo go >&9; wait $!; code=$?; exec 9>&-; wait; cat live >&2; [ $code = 0 ] && cat said out.json",
        assert: alloc,
    },
    // A server that forks for each connection.
    Check {
        name: "requests",
        command: "ip link set lo up; mkdir www; echo hello >www/x; httpd -f -p 8080 -h www & server=$!
            profiler -d 5m --interval 1s --requests on --follow -o out.json --pid $server >&2 2>live &
            until [ -s live ]; do sleep 0.1; done
            for i in $(seq 50); do wget -q -O /dev/null http://127.0.0.1:8080/x; done; sleep 1
            kill $server; wait; cat live >&2; cat out.json",
        assert: requests,
    },
    // A library by the names of its functions: it is the kernel that is tried here.
    Check {
        name: "tls",
        command: "ip link set lo up; mkfifo tls; /work/tls <tls & exec 9>tls; sleep 1
            profiler -d 5m --interval 1s --requests on --tls -o out.json --pid $! >&2 2>live &
            until [ -s live ]; do sleep 0.1; done
            echo 20 >&9; wait $!; code=$?; exec 9>&-; wait; cat live >&2; [ $code = 0 ] && cat out.json",
        assert: inside_tls,
    },
];

fn doctor(output: &str) -> Result<String> {
    let count = |mark: &str| output.lines().filter(|line| line.starts_with(mark)).count();
    let missing: Vec<&str> =
        output.lines().filter(|line| !line.starts_with("ok ")).map(|line| line.trim()).collect();
    ensure!(count("ok ") > 0, "no feature is there");
    let missing = if missing.is_empty() { "none missing".to_owned() } else { missing.join("; ") };
    Ok(format!("{} features, {missing}", count("ok ")))
}

fn split(output: &str) -> Result<String> {
    let profile = Profile::parse(output)?;
    let inside = profile.inside_split()?;
    let mut shares = Vec::new();
    for (function, expected) in SPLIT {
        // Of the three together: what the workload does between them is its own, and not in its arithmetic.
        let samples = profile.total_of(function);
        let share = percent(samples, inside);
        ensure!(
            (share - expected).abs() <= SHARE_TOLERANCE,
            "{function} has {share:.1} % of the samples, not {expected} ({samples} of {inside})"
        );
        shares.push(format!("{share:.1}"));
    }
    Ok(format!("{} %, {}", shares.join("/"), profile.summary()))
}

/// Every place's live bytes and objects are what the workload says.
fn alloc(output: &str) -> Result<String> {
    let (said, json) = output.split_once("done\n").context("the workload did not end its work")?;
    let profile: serde_json::Value = serde_json::from_str(json).context("the profile")?;
    let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    let frames = list(&profile["frames"]);
    let sites = list(&profile["memory"]["sites"]);
    let has = |site: &serde_json::Value, name: &str| {
        list(&site["frames"]).iter().filter_map(serde_json::Value::as_u64).any(|frame| {
            frames.get(frame as usize).is_some_and(|frame| {
                list(&frame["functions"]).iter().any(|function| function["name"] == name)
            })
        })
    };
    let mut places = 0;
    for line in said.lines().filter(|line| *line != "ready") {
        let words: Vec<&str> = line.split(' ').collect();
        let [name, bytes, objects] = words[..] else { bail!("the workload said '{line}'") };
        let of = |key: &str| -> f64 {
            sites.iter().filter(|site| has(site, name)).filter_map(|site| site[key].as_f64()).sum()
        };
        let (live, count) = (of("live_bytes"), of("live_count"));
        ensure!(
            (live.to_string(), count.to_string()) == (bytes.to_owned(), objects.to_owned()),
            "{name} keeps {bytes} bytes in {objects} objects, not {live} in {count}"
        );
        places += 1;
    }
    ensure!(places > 8, "the workload said too little");
    let watching = &profile["memory"]["watching"];
    ensure!(watching["lost_objects"] == 0, "objects were lost: {watching}");
    Ok(format!(
        "{places} places exact, {} hits, placed in {} ms, removed in {} ms",
        watching["hits"],
        watching["attach_ns"].as_u64().unwrap_or(0) / 1_000_000,
        watching["detach_ns"].as_u64().unwrap_or(0) / 1_000_000
    ))
}

fn requests(output: &str) -> Result<String> {
    let profile: serde_json::Value = serde_json::from_str(output).context("the profile")?;
    let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    let peers = list(&profile["requests"]["peers"]);
    let answers = || peers.iter().filter(|peer| peer["side"] == "answers" && peer["peer"] == ":8080");
    let routes = answers().flat_map(|peer| list(&peer["routes"]));
    let answered: u64 = routes
        .filter(|route| route["operation"] == "GET /x")
        .filter_map(|route| route["first"]["count"].as_u64())
        .sum();
    let processes: u64 = answers().filter_map(|peer| peer["processes"].as_u64()).sum();
    let fine: u64 = answers().filter_map(|peer| peer["statuses"][2].as_u64()).sum();
    ensure!(
        (answered, fine) == (50, 50),
        "of 50 requests {answered} were seen, {fine} of them with status 2xx"
    );
    Ok(format!("{answered} requests of {processes} processes, all with status 2xx"))
}

fn inside_tls(output: &str) -> Result<String> {
    let profile: serde_json::Value = serde_json::from_str(output).context("the profile")?;
    let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    let peers = list(&profile["requests"]["peers"]);
    let served = peers.iter().find(|peer| peer["peer"] == ":8443").context("nobody is answered")?;
    let routes = list(&served["routes"]).into_iter().map(|route| {
        (route["operation"].as_str().unwrap_or_default().to_owned(), route["first"]["count"].as_u64())
    });
    let mut routes: Vec<_> = routes.collect();
    routes.sort_unstable();
    let expected = ["GET /memory", "GET /socket"].map(|operation| (operation.to_owned(), Some(20)));
    ensure!(routes == expected, "{routes:?}, not seen: {}", profile["requests"]["tls"]["not_seen"]);
    let statuses = (served["statuses"][2].as_u64(), served["statuses"][5].as_u64());
    ensure!(statuses == (Some(36), Some(4)), "{statuses:?} answers with 2xx and 5xx");
    Ok("40 requests, by socket and by memory".to_owned())
}

fn complete(output: &str) -> Result<String> {
    let profile = Profile::parse(output)?;
    let before: u64 = profile.ending("frame_pointers");
    let unwound = profile.samples - before - profile.ending("none");
    ensure!(before * 2 < profile.samples, "the tables came too late: {before} of {}", profile.samples);
    let complete = percent(profile.ending("complete"), unwound);
    ensure!(complete >= 99.5, "only {complete:.2} % of stacks are complete");
    // And they are right: from the workload's functions out to the process's start.
    let expected = ["mixed", "main", "_start"];
    let right: u64 = (profile.stacks.iter())
        .filter(|stack| stack.end == "complete")
        .filter(|stack| {
            let names: Vec<&str> = profile.names(stack).collect();
            expected.iter().all(|function| names.contains(function)) && names.last() == Some(&"_start")
        })
        .map(|stack| stack.samples)
        .sum();
    ensure!(percent(right, unwound) >= 99.0, "only {right} of {unwound} stacks lead from mixed to _start");
    Ok(format!("{complete:.2} % of {unwound} stacks complete, {right} from mixed to _start"))
}

fn waits(output: &str) -> Result<String> {
    let profile: Profile = serde_json::from_str(output).context("the profile's JSON")?;
    let blocking = profile.blocking.context("no account of waits")?;
    let share = |process: &str, part: fn(&ThreadTime) -> u64| -> Result<f64> {
        let thread = blocking.threads.iter().find(|thread| thread.process == process);
        let thread = thread.with_context(|| format!("no thread of {process}"))?;
        let sum = thread.on_cpu_ns + thread.run_queue_ns + thread.blocked_ns.values().sum::<u64>();
        let accounted = percent(sum, thread.wall_ns);
        ensure!(
            (accounted - 100.0).abs() < 1.0,
            "{accounted:.2} % of {process}'s time accounted for: on CPU {}, queue {}, blocked {:?} ns of {} ns",
            thread.on_cpu_ns,
            thread.run_queue_ns,
            thread.blocked_ns,
            thread.wall_ns
        );
        Ok(percent(part(thread), thread.wall_ns))
    };
    let child = share("sh", |thread| thread.blocked_ns.get("child").copied().unwrap_or(0))?;
    let working = share("split", |thread| thread.on_cpu_ns + thread.run_queue_ns)?;
    ensure!(child >= 70.0, "the shell waits {child:.1} % of its time for children, not 70 or more");
    ensure!(working >= 98.0, "split works {working:.1} % of its time, not 98 or more");
    Ok(format!("the shell waits {child:.1} % for its children, split works {working:.1} %"))
}

fn wakers(output: &str) -> Result<String> {
    let (mut all, mut by_children) = (0, 0);
    for line in output.lines() {
        let (stack, ns) = line.rsplit_once(' ').context("a folded stack")?;
        let ns: u64 = ns.parse().context("its weight")?;
        all += ns;
        by_children += if stack.contains(";[woken by sleep (tid ") { ns } else { 0 };
    }
    let share = percent(by_children, all);
    // What has not ended has not been ended by anybody.
    ensure!(share >= 80.0, "{share:.1} % of the shell's waits ended by its children, not 80 or more");
    Ok(format!("{share:.1} % of the shell's waits ended by its children"))
}

fn loops(output: &str) -> Result<String> {
    let profile: Profile = serde_json::from_str(output).context("the profile's JSON")?;
    let blocking = profile.blocking.context("no account of waits")?;
    let event_loop = blocking.loops.iter().find(|of| of.process == "profiler").context("no event loop")?;
    // It wakes ten times a second.
    let iterations = &event_loop.iterations;
    ensure!((30..=300).contains(&iterations.count), "{} iterations in 5 s, not about 50", iterations.count);
    ensure!(
        iterations.p50_ns <= iterations.max_ns && iterations.max_ns <= iterations.sum_ns,
        "iterations contradict themselves"
    );
    Ok(format!(
        "{} iterations of {}, median {} us",
        iterations.count,
        event_loop.wait,
        iterations.p50_ns / 1000
    ))
}

fn syscalls(output: &str) -> Result<String> {
    let profile: Profile = serde_json::from_str(output).context("the profile's JSON")?;
    let syscalls = profile.syscalls.context("no account of system calls")?;
    let sum = |name: &str, of: fn(&SyscallCount) -> u64| -> u64 {
        syscalls.calls.iter().filter(|call| call.syscall == name).map(of).sum()
    };
    // What tests/workloads/calls.c does, whatever the kernel.
    for (name, expected) in
        [("getppid", 1000), ("getuid", 506), ("writev", 33), ("nanosleep", 25), ("vfork", 2)]
    {
        let counted = sum(name, |call| call.calls.count);
        ensure!(counted == expected, "{counted} calls of {name}, not {expected}");
    }
    for (name, expected) in [("getcwd", 11), ("dup", 13), ("capget", 18)] {
        let failed = sum(name, |call| call.failed);
        ensure!(failed == expected, "{failed} failed calls of {name}, not {expected}");
    }
    ensure!(sum("read", |call| call.unfinished) == 1, "the read that never returns is not there");
    let slept = sum("nanosleep", |call| call.calls.sum_ns);
    let blocked = sum("nanosleep", |call| call.blocked_ns);
    ensure!(slept >= 25_000_000, "25 sleeps of a millisecond took {slept} ns");
    ensure!(percent(blocked, slept) >= 50.0, "only {blocked} of {slept} ns asleep were blocked");
    let total: u64 = syscalls.calls.iter().map(|call| call.calls.count).sum();
    Ok(format!("{total} calls counted, {:.0} % of sleep blocked", percent(blocked, slept)))
}

fn threads(output: &str) -> Result<String> {
    let profile = Profile::parse(output)?;
    let mut least = 100.0f64;
    for worker in 0..4 {
        let name = format!("worker-{worker}");
        let thread = (profile.threads.iter())
            .find(|thread| thread.name == name)
            .with_context(|| format!("no thread {name}"))?;
        // Four threads on two CPUs for five seconds.
        ensure!(thread.samples >= MIN_SAMPLES / 4, "only {} samples of {name}", thread.samples);
        for (function, _) in SPLIT {
            let stacks = profile.stacks.iter().filter(|stack| stack.tid == thread.tid);
            let samples =
                stacks.filter(|stack| profile.contains(stack, function)).map(|stack| stack.samples).sum();
            let share = percent(samples, thread.samples);
            if function == SPLIT[worker % 3].0 {
                ensure!(share >= MIN_INSIDE, "{name} has {share:.1} % of its samples in {function}");
                least = least.min(share);
            } else {
                ensure!(samples == 0, "{name} has {samples} samples in {function}, which it never calls");
            }
        }
    }
    Ok(format!("4 threads, each {least:.1} % or more in its function, {}", profile.summary()))
}

fn follow(output: &str) -> Result<String> {
    let profile = Profile::parse(output)?;
    let share = percent(profile.inside_split()?, profile.samples);
    Ok(format!("{share:.1} % in the child, {}", profile.summary()))
}

fn comm(output: &str) -> Result<String> {
    let profile = Profile::parse(output)?;
    let others: BTreeSet<&str> = (profile.threads.iter())
        .map(|thread| &*thread.process)
        .filter(|process| *process != "split")
        .collect();
    ensure!(others.is_empty(), "samples of other processes: {others:?}");
    let mut processes: BTreeMap<u32, u64> = BTreeMap::new();
    for thread in &profile.threads {
        *processes.entry(thread.pid).or_default() += thread.samples;
    }
    ensure!(
        processes.len() == 2 && processes.values().all(|samples| *samples >= MIN_SAMPLES / 4),
        "samples by process, of two that should be there: {processes:?}"
    );
    let share = percent(profile.inside_split()?, profile.samples);
    Ok(format!("2 processes and no other, {share:.1} % in their functions, {}", profile.summary()))
}

fn kernel(output: &str) -> Result<String> {
    let profile = Profile::parse(output)?;
    // On the way from the read() system call to /dev/zero in every kernel.
    let named = percent(profile.total_of("vfs_read"), profile.samples);
    ensure!(named >= 40.0, "{named:.1} % of the samples under vfs_read, not 40 or more");
    Ok(format!("{named:.1} % under vfs_read, {}", profile.summary()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(shares: [u64; 3], lost: u64) -> String {
        let total: u64 = shares.iter().sum();
        let list = |entry: &dyn Fn(usize, u64) -> serde_json::Value| -> Vec<serde_json::Value> {
            shares.iter().enumerate().map(|(index, samples)| entry(index, *samples)).collect()
        };
        serde_json::json!({
            "samples_taken": total + lost, "samples": total, "samples_lost": lost,
            "losses": [{ "reason": "ring_buffer_full", "count": lost }],
            "hotspots": list(&|index, samples| {
                serde_json::json!({ "function": SPLIT[index].0, "total_samples": samples })
            }),
            "threads": [{ "pid": 1, "tid": 1, "process": "split", "name": "split", "samples": total }],
            "frames": list(&|index, _| serde_json::json!({ "functions": [{ "name": SPLIT[index].0 }] })),
            "stacks": list(&|index, samples| {
                serde_json::json!({ "tid": 1, "samples": samples, "end": "complete", "frames": [index] })
            }),
            "user_stacks": { "complete": total },
        })
        .to_string()
    }

    #[test]
    fn shares_and_losses_are_judged() {
        assert_eq!(split(&document([1210, 600, 190], 0)).unwrap(), "60.5/30.0/9.5 %, 0 lost, 2,000 samples");
        assert!(
            split(&document([1000, 800, 200], 0)).unwrap_err().to_string().contains("work_sixty has 50.0")
        );
        assert!(
            split(&document([1200, 600, 200], 1)).unwrap_err().to_string().contains("1 ring_buffer_full")
        );
        assert!(split(&document([12, 6, 2], 0)).is_err(), "too few");
    }

    #[test]
    fn sums_are_checked() {
        let wrong = document([1200, 600, 200], 0).replace("\"samples\":600", "\"samples\":601");
        assert!(split(&wrong).unwrap_err().to_string().contains("in stacks"));
    }

    #[test]
    fn names_are_distinct() {
        let names: BTreeSet<&str> = CHECKS.iter().map(|check| check.name).collect();
        assert_eq!(names.len(), CHECKS.len());
    }
}
