//! The request probe: whom the targets ask and who asks them, how long answers take, which fail, and where the time of
//! requests goes.

mod counts;
mod ended;
pub mod fold;
pub mod h2;
pub mod maps;
mod names;
mod programs;
pub mod protocol;
mod retries;
mod spans;
mod tls;
mod windows;
mod work;

use anyhow::Result;
use profiler_common::{offsets, request::MAX_PEERS_OF_ONE};

use crate::{
    kernel::{
        load::Plan,
        port::{Hook, Port as _},
    },
    probe::{
        budget::Budget,
        request::{
            fold::RequestCollector,
            maps::KernelMaps,
            tls::TlsWatch,
            windows::{Hooks, MOVED, Windows},
        },
        sched,
        spec::{Probe, ProbeSpec, Start},
    },
    process::target::Target,
    say,
    settings::{Requests, Settings},
};

/// The request probe.
pub static SPEC: ProbeSpec = ProbeSpec {
    name: "request",
    about: "requests and answers on sockets: peers, times to answer, errors",
    enabled: Settings::watches_requests,
    measures: |_| true,
    large_maps: &["PEER_STATS", "LISTENERS", "CONNECTIONS", "TLS_THREADS", "TLS_SOCKETS"],
    prepare,
    start,
    kinds: &[],
    checks: Vec::new,
};

/// Where TCP tells of the rest, on all kernels.
const TCP: [(&str, &str); 4] = [
    ("socket_gone", "tcp_destroy_sock"),
    ("socket_state", "inet_sock_set_state"),
    ("segment_resent", "tcp_retransmit_skb"),
    ("data_received", "tcp_rcv_space_adjust"),
];

fn prepare(settings: &Settings, plan: &mut Plan) -> Result<()> {
    // A busy server answers thousands of requests a second.
    plan.needs_more_records();
    MOVED.into_iter().chain(TCP).for_each(|(program, _)| plan.programs(&[program]));
    plan.offsets(sched::maps::OFFSETS);
    plan.offsets(&[&offsets::SOCKETS]);
    plan.global("REQUEST_TIMES", u32::from(settings.watches_waits()));
    if matches!(&settings.target, Target::Pids { pids, follow: false } if pids.len() < 2) {
        plan.map_size("PEER_STATS", MAX_PEERS_OF_ONE);
    }
    plan.global("TLS_WATCHED", u32::from(settings.tls));
    if !settings.tls {
        ["TLS_THREADS", "TLS_SOCKETS"].into_iter().for_each(|map| plan.map_size(map, 1));
    }
    Ok(())
}

/// Attaches the kernel programs: where nobody moves bytes on sockets they cost nothing.
fn start(begin: &mut Start<'_>) -> Result<Box<dyn Probe>> {
    let Start { kernel, settings, resolver, pids, before, proc_root, .. } = begin;
    let maps = Box::new(KernelMaps::take(kernel, &resolver.networks, before)?);
    let redact = settings.redact.clone();
    let mut collector = RequestCollector::new(maps, proc_root, pids, &resolver.clock, redact);
    for (program, tracepoint) in TCP {
        kernel.attach(Hook::Tracepoint { program, tracepoint })?;
    }
    let hooks = Hooks::find(*kernel)?;
    if hooks == Hooks::None {
        if settings.requests == Requests::On {
            say!("profiler: this kernel (before 6.3, without fentry) does not tell of requests");
        }
        collector.see_nothing();
    }
    let budget = settings.requests_budget().map(|share| Budget::here(share, &resolver.clock));
    collector.watch_in(Windows::new(hooks, budget, &resolver.clock));
    if settings.tls {
        let mut tls = TlsWatch::new(proc_root);
        tls.look(pids, *kernel);
        collector.look_into(tls);
    }
    Ok(Box::new(collector))
}
