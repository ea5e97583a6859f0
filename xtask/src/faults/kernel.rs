//! A kernel that refuses, forgets, or has no room.

use std::{fs, process::Command, time::Duration};

use anyhow::{Result, ensure};

use super::{
    Fault, Seen,
    ground::{Cgroup, Ground, Run, json, killed, number, outcome},
};
use crate::shell::{output, run};

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "bpf() refused at any call",
        promise: "a report with what is missing named, or an exit code and one line of cause; never a crash",
        full: false,
        happen: |ground, full| refused(ground, "bpf", if full { 1 } else { 150 }),
    },
    Fault {
        name: "perf_event_open() refused at any call",
        promise: "as above",
        full: false,
        happen: |ground, full| refused(ground, "perf_event_open", if full { 1 } else { 2 }),
    },
    Fault {
        name: "no memory for the profiler (memory cgroup)",
        promise: "the profiler fails or is killed; the target and the kernel keep nothing of it",
        full: false,
        happen: no_memory,
    },
    Fault {
        name: "profiler stopped for 3 s at 4,999 Hz, ring buffer full",
        promise: "samples that found no room are counted: samples here and lost add up to those taken",
        full: false,
        happen: starved,
    },
    Fault {
        name: "more call sites than a map holds",
        promise: "what found no room is counted and said; memory stays bounded",
        full: false,
        happen: map_full,
    },
    Fault {
        name: "the clock is set back and forth by an hour",
        promise: "durations are right: only CLOCK_MONOTONIC counts",
        full: true,
        happen: clock,
    },
    Fault {
        name: "a CPU is taken away and comes back",
        promise: "the run goes on; what the CPU would have sampled is missing, and no more",
        full: true,
        happen: hotplug,
    },
];

/// Lets calls of the kernel fail, one in each run: each that makes or attaches something, or every `step`th of them, and
/// of the thousands that read and write maps one in 500.
fn refused(ground: &Ground, call: &str, step: usize) -> Result<Seen> {
    let target = ground.steady(&[])?;
    let pid = target.arg();
    let trace = format!("trace={call}");
    let run = |when: Option<usize>| {
        let inject = when.map(|when| format!("inject={call}:error=EPERM:when={when}"));
        let mut starter = vec!["strace", "-f", "-qq", "-o", "trace", "-e", &trace];
        starter.extend(inject.as_deref().iter().flat_map(|inject| ["-e", *inject]));
        let args = ["--pid", &pid, "-q", "-d100ms", "--syscalls", "--alloc", "full", "-o", "x.json"];
        let _none = fs::remove_file(ground.path("x.json"));
        outcome(&mut ground.under(&starter, &args))
    };
    run(None)?.expect(0)?;
    let trace = fs::read_to_string(ground.path("trace"))?;
    let calls = trace.lines().filter(|line| line.contains(call) && !line.contains("resumed")).enumerate();
    let (makes, others): (Vec<_>, Vec<_>) = calls.partition(|(_, line)| !line.contains("_ELEM"));
    let (all, some) =
        (makes.len() + others.len(), makes.iter().step_by(step).chain(others.iter().step_by(500)));
    let (mut reported, mut failed) = (0, 0);
    for when in some.map(|(before, _)| before + 1) {
        let outcome = run(Some(when))?;
        ensure!(
            !killed(outcome.status) && !outcome.said.contains("panicked"),
            "call {when}: {}",
            outcome.said
        );
        let whole = json(&ground.path("x.json")).is_ok();
        match outcome.code() {
            Some(0) => {
                ensure!(whole, "call {when}: no output");
                reported += 1;
            }
            Some(code) => {
                let cause = outcome.said.lines().filter(|line| line.starts_with("profiler: ")).count();
                ensure!(cause >= 1, "call {when}, code {code}: {:?}", outcome.said);
                failed += 1;
            }
            None => {}
        }
    }
    target.assert_undamaged()?;
    let tried = reported + failed;
    Ok(Seen::Held(format!(
        "{tried} of {all} calls refused: {reported} runs went on, {failed} ended with the cause"
    )))
}

fn no_memory(ground: &Ground, _full: bool) -> Result<Seen> {
    let Some(cgroup) = Cgroup::new("memory")? else {
        return Ok(Seen::NotHere("no memory cgroup of version 1".into()));
    };
    let target = ground.steady(&[])?;
    let (mut went_on, mut ended) = (0, 0);
    for mib in [8, 16, 32, 48, 64, 80, 96, 112, 128] {
        cgroup.set("memory.limit_in_bytes", &format!("{mib}M"))?;
        let enter = format!("echo $$ > {}/cgroup.procs; exec \"$0\" \"$@\"", cgroup.dir().display());
        let args = ["--pid", &target.arg(), "-q", "-d300ms", "--alloc", "full"];
        let outcome = outcome(&mut ground.under(&["sh", "-c", &enter], &args))?;
        ensure!(!outcome.said.contains("panicked"), "{mib} MiB: {}", outcome.said);
        match outcome.code() {
            Some(0) => went_on += 1,
            _ => ended += 1,
        }
    }
    target.assert_undamaged()?;
    Ok(Seen::Held(format!("of limits from 8 to 128 MiB {ended} ended the profiler, {went_on} did not")))
}

fn starved(ground: &Ground, _full: bool) -> Result<Seen> {
    let target = ground.steady(&["stacks", "1000000"])?;
    let args = ["--pid", &target.arg(), "-d5s", "-F4999", "--alloc", "off", "-o", "x.json"];
    let run = Run::start(&mut ground.profiler(&args))?;
    run.begun()?;
    run.signal(libc::SIGSTOP);
    std::thread::sleep(Duration::from_secs(3));
    run.signal(libc::SIGCONT);
    run.end()?.expect(0)?;
    target.assert_undamaged()?;
    let told = json(&ground.path("x.json"))?;
    let [taken, samples, lost] = ["samples_taken", "samples", "samples_lost"].map(|key| number(&told, key));
    ensure!(taken == samples + lost, "{taken} taken, {samples} here, {lost} lost");
    ensure!(samples > 0, "nothing is here");
    Ok(Seen::Held(format!("{taken} samples taken, {samples} here, {lost} counted as lost")))
}

fn map_full(ground: &Ground, _full: bool) -> Result<Seen> {
    let target = ground.steady(&["stacks", "1000000"])?;
    let args =
        ["--pid", &target.arg(), "-q", "-d8s", "--alloc", "full", "--max-overhead", "100", "-o", "x.json"];
    let outcome = outcome(&mut ground.profiler(&args))?.expect(0)?;
    target.assert_undamaged()?;
    let told = json(&ground.path("x.json"))?;
    let losses = told["losses"].as_array().cloned().unwrap_or_default();
    let lost: Vec<String> = losses
        .iter()
        .filter(|loss| number(loss, "count") > 0)
        .map(|loss| format!("{} {}", number(loss, "count"), loss["reason"].as_str().unwrap_or_default()))
        .collect();
    ensure!(lost.iter().any(|loss| loss.contains("alloc")), "no loss of allocations is told: {lost:?}");
    ensure!(outcome.peak_rss < 300 << 20, "the profiler took {} MiB", outcome.peak_rss >> 20);
    Ok(Seen::Held(format!("{}; the profiler had {} MiB at most", lost.join(", "), outcome.peak_rss >> 20)))
}

fn clock(ground: &Ground, _full: bool) -> Result<Seen> {
    let target = ground.steady(&[])?;
    let args = ["--pid", &target.arg(), "-d3s", "-o", "x.json"];
    let started = std::time::Instant::now();
    let profiling = Run::start(&mut ground.profiler(&args))?;
    profiling.begun()?;
    for step in ["+1 hour", "-2 hours", "+1 hour"] {
        let now = output(Command::new("date").args(["+%s", "-d", step]))?;
        run(Command::new("date").args(["-s", &format!("@{now}")]).stdout(std::process::Stdio::null()))?;
        std::thread::sleep(Duration::from_millis(500));
    }
    profiling.end()?.expect(0)?;
    target.assert_undamaged()?;
    let duration = number(&json(&ground.path("x.json"))?, "duration_ns");
    ensure!(Duration::from_nanos(duration) <= started.elapsed(), "a run of {duration} ns");
    ensure!(duration >= 2_900_000_000, "a run of {duration} ns");
    Ok(Seen::Held(format!("{:.2} s of a run of 3 s", duration as f64 / 1e9)))
}

fn hotplug(ground: &Ground, _full: bool) -> Result<Seen> {
    const CPU: &str = "/sys/devices/system/cpu/cpu1/online";
    if fs::write(CPU, "1").is_err() {
        return Ok(Seen::NotHere("CPU 1 cannot be taken away".into()));
    }
    let target = ground.steady(&[])?;
    let args = ["--pid", &target.arg(), "-d4s", "-o", "x.json"];
    let run = Run::start(&mut ground.profiler(&args))?;
    run.begun()?;
    fs::write(CPU, "0")?;
    std::thread::sleep(Duration::from_secs(1));
    fs::write(CPU, "1")?;
    run.end()?.expect(0)?;
    target.assert_undamaged()?;
    let told = json(&ground.path("x.json"))?;
    let [taken, samples, lost] = ["samples_taken", "samples", "samples_lost"].map(|key| number(&told, key));
    ensure!(samples > 0 && taken == samples + lost, "{taken} taken, {samples} here, {lost} lost");
    Ok(Seen::Held(format!("{samples} samples")))
}
