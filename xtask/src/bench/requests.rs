//! What watching requests costs servers that do little else than answer: the requests a second that they keep, and the
//! profiler's memory with many connections.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{
    interrupt,
    report::{Better, Report},
    servers::{self, Runs, Server, Tls, Way, measure, profile},
    wait,
};
use crate::shell::debian_packages;

#[derive(clap::Args)]
pub struct Args {
    /// Rounds; in each every server runs alone, and under the profiler in its ways
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    #[command(flatten)]
    runs: Runs,
    /// Connections with which the profiler's memory is measured; none if zero
    #[arg(long, default_value_t = 10_000)]
    many: usize,
    /// Encrypt, and look inside
    #[arg(long)]
    tls: bool,
}

/// The ways to look, and the profiler's arguments for each.
const WAYS: [Way; 4] = [
    ("as usual", &[]),
    ("--requests on", &["--requests", "on"]),
    ("only requests", &["--requests", "on", "--waits", "off", "--syscalls=off", "--alloc", "off"]),
    ("--requests off", &["--requests", "off"]),
];
/// The ways to look at encrypted ones.
const TLS_WAYS: [Way; 3] = [
    ("--requests on", &["--requests", "on"]),
    ("--requests on --tls", &["--requests", "on", "--tls"]),
    (
        "only requests, --tls",
        &["--requests", "on", "--tls", "--waits", "off", "--syscalls=off", "--alloc", "off"],
    ),
];
/// Throughput that must be kept, %. Inside TLS it is told, and no goal.
const KEPT: f64 = 95.0;
/// Memory that the profiler may take with many connections, MB.
const MEMORY_MB: f64 = 300.0;

pub fn run(args: &Args, profiler: &Path, report: &mut Report) -> Result<()> {
    debian_packages(&["nginx", "nodejs", "wrk"])?;
    let dir = tempfile::tempdir()?;
    let tls = if args.tls { Tls::new(dir.path())? } else { Tls::default() };
    let ways: &[Way] = if args.tls { &TLS_WAYS } else { &WAYS };
    for start in [&|| servers::nginx(dir.path(), &args.runs, &tls), &|| servers::node(&args.runs, &tls)]
        as [&dyn Fn() -> Result<Server>; 2]
    {
        let server = start()?;
        let kept = measure(&server, ways, args.rounds, &args.runs, profiler, report)?;
        for ((way, _), kept) in ways.iter().zip(kept).filter(|_| !args.tls) {
            report.goal(format!("{} keeps {KEPT} %, {way}", server.name), kept >= KEPT);
        }
    }
    if args.many > 0 && !args.tls {
        memory(&servers::node(&Runs { connections: args.many, ..args.runs }, &tls)?, args, profiler, report)?;
    }
    Ok(())
}

/// The profiler's memory with many connections.
fn memory(server: &Server, args: &Args, profiler: &Path, report: &mut Report) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let json = dir.path().join("x.json");
    let child = profile(profiler, &server.target, &["--requests", "on"], &json)?;
    let rate = (server.load)(2 * args.runs.seconds)?.rate;
    interrupt(&child);
    wait(&child)?;
    let profile: Value = serde_json::from_str(&std::fs::read_to_string(&json)?)?;
    let peak_mb = profile["cost"]["agent_peak_rss_bytes"].as_f64().context("the profiler's memory")? / 1e6;
    let lost = |reason: &str| {
        let losses = profile["losses"].as_array().cloned().unwrap_or_default();
        losses
            .iter()
            .filter(|loss| loss["reason"] == reason)
            .filter_map(|loss| loss["count"].as_u64())
            .sum::<u64>()
    };
    let peers = profile["requests"]["peers"].as_array().cloned().unwrap_or_default();
    let seen: u64 = peers.iter().filter_map(|peer| peer["first"]["count"].as_u64()).sum();
    println!(
        "{peak_mb:.1} MB: the profiler's peak with {} connections, {rate:.0} requests/s by wrk; {seen} requests seen, \
         without room: {} connections, {} peers",
        args.many,
        lost("connections_full"),
        lost("peers_full"),
    );
    report.figure("requests/memory with many connections/profiler", "MB", Better::Lower, &[peak_mb]);
    report.goal(format!("{MEMORY_MB} MB are enough for {} connections", args.many), peak_mb <= MEMORY_MB);
    Ok(())
}
