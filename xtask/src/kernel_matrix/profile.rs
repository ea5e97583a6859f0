//! A profile's JSON, as far as the checks read it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

/// The functions of tests/workloads/split.c and their shares of its CPU time, %.
pub const SPLIT: [(&str, f64); 3] = [("work_sixty", 60.0), ("work_thirty", 30.0), ("work_ten", 10.0)];
/// How far a measured share may be off, points. Emulation is noisy: both emulated CPUs share the host's with
/// whatever else runs there, and an emulated timer interrupt is late whenever the emulator is not running.
pub const SHARE_TOLERANCE: f64 = 4.0;
/// How much of its time a workload at least spends in its functions, %. The rest is its start, and reading the
/// clock: a system call, and the place where a thread loses its CPU to another. 95 to 99 have been measured.
pub const MIN_INSIDE: f64 = 90.0;
/// Fewer samples than this, and the emulated machine was stuck rather than slow.
pub const MIN_SAMPLES: u64 = 500;

/// The parts of the JSON output that are checked; docs/json.md describes it.
#[derive(Deserialize)]
pub struct Profile {
    pub samples_taken: u64,
    pub samples: u64,
    pub samples_lost: u64,
    pub losses: Vec<Loss>,
    pub hotspots: Vec<Hotspot>,
    pub threads: Vec<Thread>,
    pub frames: Vec<Frame>,
    pub stacks: Vec<Stack>,
    pub user_stacks: BTreeMap<String, u64>,
    pub blocking: Option<Blocking>,
    pub syscalls: Option<Syscalls>,
}

#[derive(Deserialize)]
pub struct Syscalls {
    pub calls: Vec<SyscallCount>,
}

#[derive(Deserialize)]
pub struct SyscallCount {
    pub syscall: String,
    pub calls: Durations,
    pub blocked_ns: u64,
    pub failed: u64,
    pub unfinished: u64,
}

#[derive(Deserialize)]
pub struct Blocking {
    pub threads: Vec<ThreadTime>,
    pub loops: Vec<EventLoop>,
}

#[derive(Deserialize)]
pub struct EventLoop {
    pub process: String,
    pub wait: String,
    pub iterations: Durations,
}

#[derive(Deserialize)]
pub struct Durations {
    pub count: u64,
    pub sum_ns: u64,
    pub p50_ns: u64,
    pub max_ns: u64,
}

#[derive(Deserialize)]
pub struct ThreadTime {
    pub process: String,
    pub wall_ns: u64,
    pub on_cpu_ns: u64,
    pub run_queue_ns: u64,
    pub blocked_ns: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
pub struct Loss {
    pub reason: String,
    pub count: u64,
}

#[derive(Deserialize)]
pub struct Hotspot {
    pub function: String,
    pub total_samples: u64,
}

#[derive(Deserialize)]
pub struct Thread {
    pub pid: u32,
    pub tid: u32,
    pub process: String,
    pub name: String,
    pub samples: u64,
}

#[derive(Deserialize)]
pub struct Frame {
    pub functions: Vec<Function>,
}

#[derive(Deserialize)]
pub struct Function {
    pub name: String,
}

#[derive(Deserialize)]
pub struct Stack {
    pub tid: u32,
    pub samples: u64,
    pub end: String,
    pub frames: Vec<usize>,
}

impl Profile {
    /// Reads a profile and checks what holds for every one: its sums, enough samples, and none lost.
    pub fn parse(output: &str) -> Result<Profile> {
        let profile: Profile = serde_json::from_str(output).context("the profile's JSON")?;
        let stacks: u64 = profile.stacks.iter().map(|stack| stack.samples).sum();
        let threads: u64 = profile.threads.iter().map(|thread| thread.samples).sum();
        let (samples, taken, lost) = (profile.samples, profile.samples_taken, profile.samples_lost);
        ensure!(stacks == samples, "{samples} samples, but {stacks} in stacks");
        ensure!(threads == samples, "{samples} samples, but {threads} in threads");
        ensure!(taken == samples + lost, "{taken} samples taken, {samples} there and {lost} lost");
        let mut frames = profile.stacks.iter().flat_map(|stack| &stack.frames);
        ensure!(frames.all(|frame| *frame < profile.frames.len()), "a stack has a frame that is not there");
        ensure!(lost == 0, "{lost} samples lost: {}", counts(profile.losses.iter()));
        ensure!(samples >= MIN_SAMPLES, "only {samples} samples");
        Ok(profile)
    }

    /// Samples whose user stack ends in this way.
    pub fn ending(&self, end: &str) -> u64 {
        self.user_stacks.get(end).copied().unwrap_or(0)
    }

    /// Functions of a stack, innermost first.
    pub fn names<'a>(&'a self, stack: &'a Stack) -> impl Iterator<Item = &'a str> {
        let frames = stack.frames.iter().flat_map(|&frame| &self.frames[frame].functions);
        frames.map(|function| function.name.as_str())
    }

    /// Samples with `function` in their stack.
    pub fn total_of(&self, function: &str) -> u64 {
        self.hotspots
            .iter()
            .filter(|hotspot| hotspot.function == function)
            .map(|hotspot| hotspot.total_samples)
            .sum()
    }

    /// Samples under one of the functions of split.c; an error where these are not (nearly) all.
    pub fn inside_split(&self) -> Result<u64> {
        let inside = SPLIT.iter().map(|(function, _)| self.total_of(function)).sum();
        let share = percent(inside, self.samples);
        ensure!(share >= MIN_INSIDE, "only {share:.1} % of the samples in the functions of split.c");
        Ok(inside)
    }

    pub fn contains(&self, stack: &Stack, function: &str) -> bool {
        let mut names = stack.frames.iter().flat_map(|frame| &self.frames[*frame].functions);
        names.any(|known| known.name == function)
    }

    /// How many samples there are and what is missing.
    pub fn summary(&self) -> String {
        // Debian strips its libraries: hardly a stack is without an address in them that has no name.
        let known = |loss: &&Loss| loss.reason != "symbol_missing";
        let missing = counts(self.losses.iter().filter(known));
        let missing = if missing.is_empty() { missing } else { format!(" ({missing})") };
        format!("{} lost{missing}, {} samples", self.samples_lost, grouped(self.samples))
    }
}

pub fn counts<'a>(losses: impl Iterator<Item = &'a Loss>) -> String {
    let texts: Vec<String> = losses
        .filter(|loss| loss.count > 0)
        .map(|loss| format!("{} {}", grouped(loss.count), loss.reason))
        .collect();
    texts.join(", ")
}

pub fn percent(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

/// `2970` as `2,970`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
