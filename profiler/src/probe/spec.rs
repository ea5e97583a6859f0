//! What a probe is: what it asks of the kernel object, and what it makes of its records.

use std::path::Path;

use anyhow::Result;
use rustc_hash::FxHashSet;

use crate::{
    kernel::{Kernel, load::Plan, port::Port, preflight::Check},
    model::{
        kind::ProfileKind,
        report::Totals,
        sample::Sample,
        stack::{StackId, Tables, ThreadKey},
        syscall::Interval,
        totals::Aggregator,
    },
    probe::{
        ended::{self, LivingThreads},
        record::Record,
    },
    process::{notice::Notice, targets::Followed},
    resolve::Resolver,
    settings::Settings,
};

/// A probe, as the table [`PROBES`](crate::probe::PROBES) lists it.
pub struct ProbeSpec {
    /// Its name.
    pub name: &'static str,
    /// What it finds out.
    pub about: &'static str,
    /// Whether a run has it.
    pub enabled: fn(&Settings) -> bool,
    /// Whether a run that has it has its kernel programs too, and not only its look from outside.
    pub measures: fn(&Settings) -> bool,
    /// Maps that need memory only where it measures.
    pub large_maps: &'static [&'static str],
    /// Sets its globals, offsets and map sizes, before the kernel object is loaded.
    pub prepare: fn(&Settings, &mut Plan) -> Result<()>,
    /// Takes its maps, attaches its programs, and begins.
    pub start: fn(&mut Start<'_>) -> Result<Box<dyn Probe>>,
    /// Kinds of profiles that it measures then.
    pub kinds: &'static [ProfileKind],
    /// What `profiler doctor` looks at for it.
    pub checks: fn() -> Vec<Check>,
}

/// What a probe begins with.
pub struct Start<'a> {
    /// The loaded kernel programs.
    pub kernel: &'a mut Kernel,
    /// What the run is to do.
    pub settings: &'a Settings,
    /// Addresses to stacks.
    pub resolver: &'a mut Resolver,
    /// Targets as of now.
    pub pids: &'a [u32],
    /// Those that run already: all but a command that is held until the probes are attached.
    pub running: &'a [u32],
    /// Those that may have sockets already: with `--all` every process, which `pids` does not list.
    pub before: &'a [u32],
    /// Where `/proc` is.
    pub proc_root: &'a Path,
}

/// What a probe works with while it runs.
pub struct Context<'a> {
    /// The kernel programs.
    pub kernel: &'a mut dyn Port,
    /// Addresses to stacks.
    pub resolver: &'a mut Resolver,
    /// The targets.
    pub targets: &'a Followed,
    /// Where samples go.
    pub sink: &'a mut dyn Sink,
}

/// Takes in samples as they are made.
pub trait Sink {
    /// Records a sample; a thread's name comes with its first one, and whenever it changes.
    fn record(&mut self, sample: &Sample, tables: &Tables, new_name: Option<&str>);
}

/// Takes in nothing: where no samples are made.
pub struct NoSink;

impl Sink for NoSink {
    fn record(&mut self, _: &Sample, _: &Tables, _: Option<&str>) {}
}

/// What of a run is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// For the live view: samples since the last time, and what was found since the start.
    Interval,
    /// For a recording that goes on: what is not made of samples.
    Checkpoint,
    /// For a snapshot of memory: nothing else.
    Snapshot,
    /// Everything, at the end.
    Run,
}

/// What is referred to of what grows with a run.
#[derive(Default)]
pub struct InUse {
    /// The kernel programs' ids of stacks, of what has not been taken in yet.
    pub stacks: FxHashSet<u64>,
    /// Threads with their own names.
    pub threads: FxHashSet<ThreadKey>,
    /// Threads that live, where names take up much room: then those that have ended are added up.
    pub living: Option<LivingThreads>,
}

impl InUse {
    /// A thread and its process are still to be named.
    pub fn thread(&mut self, thread: ThreadKey) {
        self.threads.insert(thread);
        self.process(thread.pid);
    }

    /// Threads of totals are.
    pub fn totals(&mut self, totals: &mut Aggregator) {
        if let Some(living) = &self.living {
            ended::add_up(totals, living);
        }
        totals.threads().for_each(|thread| self.thread(thread));
    }

    /// A process is.
    pub fn process(&mut self, pid: u32) {
        self.threads.insert(ThreadKey { pid, tid: pid });
    }
}

/// A probe that runs: it makes samples and sections of a run out of its records and maps.
pub trait Probe {
    /// Begins anew: a command that was held is let go, and nothing before counts.
    fn begin(&mut self, _cx: &mut Context<'_>) -> Result<()> {
        Ok(())
    }

    /// Takes in one record, whose stack has been resolved if it has one and there was room for it.
    fn record(&mut self, _record: &Record, _stack: Option<StackId>, _cx: &mut Context<'_>) -> Result<()> {
        Ok(())
    }

    /// Takes note of what happened to a process.
    fn notice(&mut self, _notice: &Notice) {}

    /// Other code is mapped into a process than before.
    fn mappings_changed(&mut self, _pid: u32) {}

    /// Reads its maps if that is due. Called after records have been taken in.
    fn poll(&mut self, _cx: &mut Context<'_>) -> Result<()> {
        Ok(())
    }

    /// Makes samples of what has been added up in the kernel since the last time. Where they are not `wanted` yet, a probe
    /// may leave them there.
    fn flush(&mut self, _wanted: bool, _cx: &mut Context<'_>) -> Result<()> {
        Ok(())
    }

    /// Adds what it still refers to. Other stacks, names and ids are forgotten, but for those that are in `used` already.
    fn in_use(&mut self, _used: &mut InUse) {}

    /// Ends: nothing is counted after now. The kernel programs are still attached.
    fn stop(&mut self, _cx: &mut Context<'_>) -> Result<()> {
        Ok(())
    }

    /// Adds its part of a run.
    fn report(&mut self, extent: Extent, totals: &mut Totals, cx: &mut Context<'_>) -> Result<()>;

    /// What the live view shows of the last interval beside samples.
    fn interval(&mut self) -> Result<Option<Interval>> {
        Ok(None)
    }

    /// What the largest target held in memory when last looked at, bytes.
    fn held_bytes(&self) -> u64 {
        0
    }
}
