//! Runs without a kernel.

use tempfile::TempDir;

use super::*;
use crate::{
    probe::{
        PROBES,
        fixtures::{FakeKernel, Kept, process},
    },
    process::clock::fixtures::{Hands, clock},
    settings::fixtures::settings,
};

/// A run and what it stands on.
pub struct Bench {
    /// The run.
    pub collector: Collector,
    /// The kernel.
    pub kernel: FakeKernel,
    /// The hands of the clock.
    pub hands: Hands,
    /// Samples made.
    pub kept: Kept,
    /// Where `/proc` is.
    pub proc: TempDir,
}

/// A run of process 7 with nothing but the CPU probe; the clock shows 1 s.
pub fn run_of_7() -> Bench {
    let proc = tempfile::tempdir().unwrap();
    process(proc.path(), 7, "app");
    let (clock, hands) = clock(1_000_000_000);
    let mut resolver = Resolver::new(proc.path(), clock, false, true);
    resolver.track(7);
    let kernel = FakeKernel::default();
    kernel.0.borrow_mut().targets = vec![7];
    let target = Target::Pids { pids: vec![7], follow: false };
    let meta = meta(&settings(target.clone()), describe(&target, &[7], None, proc.path()), 2);
    let probes: Vec<Running> = vec![(PROBES[0], Box::new(crate::probe::cpu::Cpu::new(true)))];
    let (port, notices) = (Box::new(kernel.clone()), Box::new(kernel.clone()));
    let collector = Collector::new(meta, &target, &[7], port, notices, resolver, probes);
    Bench { collector, kernel, hands, kept: Kept::default(), proc }
}
