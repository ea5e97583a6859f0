//! What is seen of the targets from outside, in /proc: a probe without kernel programs.

use anyhow::Result;

use crate::{
    model::report::Totals,
    probe::spec::{Context, Extent, Probe, ProbeSpec},
    process::{
        notice::{Event, Notice},
        vitals::VitalsSampler,
    },
};

/// The look from outside.
pub static SPEC: ProbeSpec = ProbeSpec {
    name: "vitals",
    about: "what /proc says of the targets: descriptors, connections, limits",
    enabled: |_| true,
    measures: |_| true,
    large_maps: &[],
    prepare: |_, _| Ok(()),
    start: |start| {
        let redact = start.settings.redact.clone();
        Ok(Box::new(Vitals(VitalsSampler::new(&start.resolver.networks, redact))))
    },
    kinds: &[],
    checks: Vec::new,
};

/// Looks now and then.
struct Vitals(VitalsSampler);

impl Probe for Vitals {
    fn notice(&mut self, notice: &Notice) {
        if matches!(notice.event, Event::Exec { .. }) {
            self.0.forget(notice.pid);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Result<()> {
        if self.0.is_due() {
            self.0.look(|| cx.targets.pids(), cx.resolver.clock.now_ns());
        }
        self.0.look_at_backlogs();
        Ok(())
    }

    fn stop(&mut self, cx: &mut Context<'_>) -> Result<()> {
        self.0.last_look(cx.targets.pids(), cx.resolver.clock.now_ns());
        Ok(())
    }

    fn report(&mut self, extent: Extent, totals: &mut Totals, _cx: &mut Context<'_>) -> Result<()> {
        if matches!(extent, Extent::Checkpoint | Extent::Run) {
            totals.vitals = Some(self.0.vitals());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::fixtures::Bench;

    #[test]
    fn targets_are_looked_at_until_the_end_and_shown_in_runs() {
        let mut bench = Bench::new();
        let sampler = VitalsSampler::new(&bench.resolver.networks, crate::process::redact::Redact::No);
        let mut vitals = Vitals(sampler);
        bench.with(|cx| vitals.poll(cx));
        bench.hands.set(3_000_000_000);
        bench.with(|cx| vitals.stop(cx));
        let mut totals = Totals::default();
        bench.with(|cx| vitals.report(Extent::Interval, &mut totals, cx));
        assert!(totals.vitals.is_none(), "the live view shows none");
        bench.with(|cx| vitals.report(Extent::Run, &mut totals, cx));
        let found = totals.vitals.unwrap().processes;
        let found: Vec<_> = found.iter().map(|of| (of.process.as_str(), of.samples, of.span_ns)).collect();
        assert_eq!(found, [("app", 2, 2_000_000_000)]);
    }
}
