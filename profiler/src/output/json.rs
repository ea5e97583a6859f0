//! JSON for programs: everything the profile holds. The schema is described in docs/json.md; `version` grows by
//! one with every change that could break a reader, never for an added key.

use std::{collections::BTreeMap, io::Write};

use anyhow::Result;
use serde::Serialize;

use super::RenderOptions;
use crate::{
    detect::hotspot::{self, Hotspot},
    profile::{Meta, ProbeReport, Profile},
    sample::Loss,
    unwind::feed::UnwindReport,
};

/// Identifies the schema.
pub const SCHEMA: &str = "profiler/profile";
/// Its version.
pub const VERSION: u32 = 1;

#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    version: u32,
    meta: &'a Meta,
    kind: Kind,
    duration_ns: u64,
    first_sample_monotonic_ns: Option<u64>,
    last_sample_monotonic_ns: Option<u64>,
    samples_taken: u64,
    samples: u64,
    samples_lost: u64,
    losses: Vec<LossEntry>,
    user_stacks: BTreeMap<&'static str, u64>,
    unwind: &'a UnwindReport,
    cost: Cost<'a>,
    hotspots: Vec<Hotspot>,
    threads: Vec<Thread>,
    modules: Vec<Module<'a>>,
    frames: Vec<Frame<'a>>,
    stacks: Vec<Stack<'a>>,
}

#[derive(Serialize)]
struct Kind {
    name: &'static str,
    sample_type: &'static str,
    unit: &'static str,
}

#[derive(Serialize)]
struct LossEntry {
    reason: &'static str,
    loses_sample: bool,
    count: u64,
}

#[derive(Serialize)]
struct Cost<'a> {
    probes: &'a [ProbeReport],
    agent_cpu_ns: u64,
    agent_setup_cpu_ns: u64,
    agent_peak_rss_bytes: u64,
}

#[derive(Serialize)]
struct Thread {
    pid: u32,
    tid: u32,
    process: String,
    name: String,
    samples: u64,
}

#[derive(Serialize)]
struct Module<'a> {
    path: &'a str,
    build_id: String,
}

#[derive(Serialize)]
struct Frame<'a> {
    module: usize,
    address: u64,
    functions: &'a [crate::symbolize::Function],
}

#[derive(Serialize)]
struct Stack<'a> {
    pid: u32,
    tid: u32,
    samples: u64,
    end: &'static str,
    frames: &'a [usize],
}

/// Writes the profile as one JSON document.
pub fn write(profile: &Profile, _options: &RenderOptions, out: &mut dyn Write) -> Result<()> {
    let accounts = &profile.accounts;
    let document = Document {
        schema: SCHEMA,
        version: VERSION,
        meta: &profile.meta,
        kind: Kind {
            name: profile.kind.name,
            sample_type: profile.kind.sample_type,
            unit: profile.kind.unit,
        },
        duration_ns: accounts.duration_ns,
        first_sample_monotonic_ns: profile.span_ns.map(|(first, _)| first),
        last_sample_monotonic_ns: profile.span_ns.map(|(_, last)| last),
        samples_taken: accounts.samples_taken,
        samples: profile.total,
        samples_lost: accounts.losses.lost(),
        losses: Loss::ALL
            .into_iter()
            .map(|loss| LossEntry {
                reason: loss.id(),
                loses_sample: loss.loses_sample(),
                count: accounts.losses.get(loss),
            })
            .collect(),
        user_stacks: profile.ends().map(|(end, weight)| (end.id(), weight)).collect(),
        unwind: &accounts.unwind,
        cost: Cost {
            probes: &accounts.probes,
            agent_cpu_ns: accounts.agent_cpu_ns,
            agent_setup_cpu_ns: accounts.agent_setup_cpu_ns,
            agent_peak_rss_bytes: accounts.agent_peak_rss_bytes,
        },
        hotspots: hotspot::hotspots(profile),
        threads: hotspot::by_thread(profile)
            .into_iter()
            .map(|thread| Thread {
                pid: thread.thread.pid,
                tid: thread.thread.tid,
                process: thread.names.0,
                name: thread.names.1,
                samples: thread.samples,
            })
            .collect(),
        modules: profile
            .modules
            .iter()
            .map(|module| Module { path: &module.path, build_id: hex(&module.build_id) })
            .collect(),
        frames: profile
            .frames
            .iter()
            .map(|frame| Frame { module: frame.module, address: frame.address, functions: &frame.functions })
            .collect(),
        stacks: profile
            .stacks
            .iter()
            .map(|stack| Stack {
                pid: stack.thread.pid,
                tid: stack.thread.tid,
                samples: stack.weight,
                end: stack.end.id(),
                frames: &stack.frames,
            })
            .collect(),
    };
    serde_json::to_writer(&mut *out, &document)?;
    writeln!(out)?;
    Ok(())
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::fixtures::profile;

    #[test]
    fn the_document_adds_up() {
        let mut profile = profile(&[("main;a", 3), ("main;k:read", 2)]);
        profile.accounts.losses.add(Loss::RingBufferFull, 4);
        profile.accounts.samples_taken += 4;
        let mut text = Vec::new();
        write(&profile, &RenderOptions::default(), &mut text).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!((value["schema"].as_str(), value["version"].as_u64()), (Some(SCHEMA), Some(1)));
        let sum = |list: &str, key: &str| -> u64 {
            value[list].as_array().unwrap().iter().map(|entry| entry[key].as_u64().unwrap()).sum()
        };
        assert_eq!(sum("stacks", "samples"), 5);
        assert_eq!(sum("threads", "samples"), 5);
        assert_eq!(value["user_stacks"]["complete"].as_u64(), Some(5));
        assert_eq!(sum("hotspots", "self_samples"), 5);
        assert_eq!(value["samples_taken"].as_u64(), Some(9));
        assert_eq!(value["samples_lost"].as_u64(), Some(4));
        assert_eq!(value["modules"][1]["build_id"], "abcd");
    }
}
