//! Targets of many threads, and of many processes.

use std::process::Command;

use anyhow::{Result, ensure};

use super::{
    Fault, Seen,
    ground::{Ground, json, number, outcome},
};
use crate::shell::{run, workspace};

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "10,000 threads",
        promise: "profiled as any other; the profiler's memory stays below 300 MiB",
        full: false,
        happen: threads,
    },
    Fault {
        name: "as many new processes a second as the machine can start, all followed",
        promise: "samples here and lost add up to those taken; the profiler's memory stays below 300 MiB",
        full: false,
        happen: forks,
    },
];

fn threads(ground: &Ground, _full: bool) -> Result<Seen> {
    let target = ground.steady(&["threads", "10000"])?;
    let args = ["--pid", &target.arg(), "-q", "-d3s", "--alloc", "full", "-o", "x.json"];
    let outcome = outcome(&mut ground.profiler(&args))?.expect(0)?;
    target.assert_undamaged()?;
    let told = json(&ground.path("x.json"))?;
    let hottest = told["hotspots"][0]["function"].as_str().unwrap_or_default().to_owned();
    ensure!(hottest == "steady_work", "the hottest function is {hottest:?}");
    ensure!(outcome.peak_rss < 300 << 20, "the profiler took {} MiB", outcome.peak_rss >> 20);
    Ok(Seen::Held(format!("code 0; the profiler had {} MiB at most", outcome.peak_rss >> 20)))
}

fn forks(ground: &Ground, _full: bool) -> Result<Seen> {
    let program = ground.path("spawner");
    let source = workspace().join("tests/workloads/spawner.c");
    run(Command::new("cc").args(["-O2", "-g"]).arg(source).arg("-o").arg(&program))?;
    let args = ["-q", "-o", "x.json", "--", "./spawner", "5000", "4"];
    let outcome = outcome(&mut ground.profiler(&args))?.expect(0)?;
    let told = json(&ground.path("x.json"))?;
    let [taken, samples, lost] = ["samples_taken", "samples", "samples_lost"].map(|key| number(&told, key));
    ensure!(samples > 0 && taken == samples + lost, "{taken} taken, {samples} here, {lost} lost");
    ensure!(outcome.peak_rss < 300 << 20, "the profiler took {} MiB", outcome.peak_rss >> 20);
    Ok(Seen::Held(format!(
        "{taken} samples taken, {lost} lost; the profiler had {} MiB",
        outcome.peak_rss >> 20
    )))
}
