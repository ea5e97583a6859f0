//! What the kernel programs cost, as they measure it themselves.

use aya::maps::{MapData, PerCpuArray};
use profiler_common::cost::{Probe, ProbeCost};

/// What the probes cost, for another thread to read.
pub struct Costs(pub(super) PerCpuArray<MapData, ProbeCost>);

impl Costs {
    /// What a probe has cost so far, on all CPUs.
    pub fn of(&self, probe: Probe) -> ProbeCost {
        cost_in(&self.0, probe)
    }
}

/// What a probe has cost so far, on all CPUs.
pub(super) fn cost_in(costs: &PerCpuArray<MapData, ProbeCost>, probe: Probe) -> ProbeCost {
    let mut total = ProbeCost::default();
    if let Ok(per_cpu) = costs.get(&(probe as u32), 0) {
        for cost in per_cpu.iter() {
            total.runs += cost.runs;
            total.ns += cost.ns;
        }
    }
    total
}
