//! What a run did not see, and the options that show more.

use crate::{
    detect::{rule::Needs, words::calls_watched_ns},
    model::{
        finding::Bottleneck,
        report::Run,
        units::{count, thousands, time},
    },
};

/// A shorter run, or fewer samples, say too little.
pub const SHORT_NS: u64 = 5_000_000_000;
pub const FEW_SAMPLES: u64 = 100;
/// Growth of memory is not told from chance in less time, ns.
pub const GROWTH_NS: u64 = 30_000_000_000;
/// System calls that were watched for so much of the time have been watched.
const MOSTLY: f64 = 0.95;

/// Options that show more about a bottleneck than this run does.
pub fn more(run: &Run, lacks: Bottleneck) -> &'static str {
    let calls = run.calls.is_some() && watched(run) >= MOSTLY;
    match lacks {
        Bottleneck::Cpu => "-o cpu.svg",
        Bottleneck::CpuStarvation => "--all -d 10s",
        Bottleneck::Memory => "--alloc full --snapshot 5m",
        Bottleneck::Io | Bottleneck::Network | Bottleneck::Process if calls => "-o offcpu.svg",
        Bottleneck::Io | Bottleneck::Network | Bottleneck::Process => "--syscalls -o offcpu.svg",
        Bottleneck::Lock | Bottleneck::Sleep => "--wakers -o offcpu.svg",
        Bottleneck::Descriptors | Bottleneck::Unknown | Bottleneck::None if calls => "-d 1m",
        Bottleneck::Descriptors | Bottleneck::Unknown | Bottleneck::None => "--syscalls",
    }
}

/// For which part of the run system calls were watched, from 0 to 1.
fn watched(run: &Run) -> f64 {
    (calls_watched_ns(run) as f64 / run.cpu.accounts.duration_ns.max(1) as f64).min(1.0)
}

/// What a run did not look at, or could not see.
pub fn blind(run: &Run) -> Vec<String> {
    let accounts = &run.cpu.accounts;
    let mut blind = Vec::new();
    if accounts.duration_ns < SHORT_NS {
        blind.push(format!("the run took only {}", time(accounts.duration_ns)));
    }
    if run.cpu.total < FEW_SAMPLES && run.blocking.is_none() {
        blind.push(format!("there are only {}", count(run.cpu.total, "sample")));
    }
    if !Needs::Waits.is_in(run) {
        blind.push("waits were not watched (--waits on)".to_owned());
    }
    match &run.calls {
        None => blind.push("system calls, their errors and files were not watched (--syscalls)".to_owned()),
        Some(calls) if calls.windows > 0 || watched(run) < MOSTLY => blind.push(format!(
            "system calls were watched for {:.0} % of the time only, for their cost (--syscalls: all the time)",
            100.0 * watched(run)
        )),
        Some(_) => {}
    }
    if !Needs::Memory.is_in(run) {
        blind.push("memory was not watched (--alloc)".to_owned());
    } else if accounts.duration_ns < GROWTH_NS {
        blind.push(format!("growth of memory shows in {} and more", time(GROWTH_NS)));
    }
    let unlisted = [
        ("memory", run.memory.as_ref().map_or(0, |memory| memory.watching.unlisted)),
        ("descriptors and CPU quotas", run.vitals.as_ref().map_or(0, |vitals| vitals.unlisted)),
    ];
    let unlisted = unlisted.into_iter().filter(|(_, processes)| *processes > 0);
    blind.extend(unlisted.map(|(what, of)| format!("{what} of {} were not looked at", count(of, "process"))));
    let lost = 100 * accounts.losses.lost();
    if lost > accounts.samples_taken {
        blind.push(format!("{} were lost", count(accounts.losses.lost(), "sample")));
    }
    let hidden = accounts.losses.iter().filter(|(loss, _)| loss.hides());
    blind.extend(hidden.map(|(loss, n)| format!("{} {loss}", thousands(n))));
    blind
}
