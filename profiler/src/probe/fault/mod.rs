//! The page-fault probe: where pages are first touched, by samples. Growth that no allocator knows of shows here.

use anyhow::Result;
use rustc_hash::FxHashMap;

use crate::{
    kernel::port::{Event, Hook, Port as _},
    model::{kind::FAULTS, report::Totals, stack::StackId},
    probe::{
        record::Record,
        spec::{Context, Extent, Probe, ProbeSpec},
    },
};

/// Page faults that one sample stands for. A prime, so that no pattern of faults keeps step with it.
const PERIOD: u64 = 61;

/// Most pairs of process and stack that page faults are counted for.
const MAX_STACKS: usize = 65_536;

const PROGRAM: &str = "fault_sample";

/// The page-fault probe. Without unwind tables its stacks would say little.
pub static SPEC: ProbeSpec = ProbeSpec {
    name: "fault",
    about: "where memory is first touched, by samples of page faults",
    enabled: |settings| settings.watches_memory() && settings.unwind_by_tables,
    measures: |_| true,
    large_maps: &[],
    prepare: |_, plan| {
        plan.programs(&[PROGRAM]);
        Ok(())
    },
    start: |start| {
        start.kernel.attach(Hook::Event { program: PROGRAM, event: Event::PageFaults, period: PERIOD })?;
        Ok(Box::new(Faults::default()))
    },
    kinds: &[FAULTS],
    checks: Vec::new,
};

/// Page faults by process and stack.
#[derive(Default)]
pub struct Faults(FxHashMap<(u32, StackId), u64>);

impl Probe for Faults {
    fn record(&mut self, record: &Record, stack: Option<StackId>, _cx: &mut Context<'_>) -> Result<()> {
        if let (Record::Fault(raw), Some(stack)) = (record, stack) {
            let key = (raw.header.pid, stack);
            if self.0.len() < MAX_STACKS || self.0.contains_key(&key) {
                *self.0.entry(key).or_default() += PERIOD;
            }
        }
        Ok(())
    }

    fn report(&mut self, extent: Extent, totals: &mut Totals, _cx: &mut Context<'_>) -> Result<()> {
        if extent != Extent::Interval {
            let mut faults: Vec<_> = self.0.iter().map(|(&(pid, stack), &n)| (pid, stack, n)).collect();
            faults.sort_unstable_by_key(|&(pid, stack, n)| (std::cmp::Reverse(n), pid, stack));
            totals.memory.get_or_insert_default().faults = faults;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::fixtures::{Bench, raw};

    #[test]
    fn each_sample_stands_for_its_period() {
        let mut bench = Bench::new();
        let mut faults = Faults::default();
        for address in [0x10, 0x20, 0x20] {
            bench.record(&mut faults, &Record::Fault(raw(7, 8, 1, &[address])));
        }
        let mut totals = Totals::default();
        bench.with(|cx| faults.report(Extent::Interval, &mut totals, cx));
        assert_eq!(totals.memory, None);
        bench.with(|cx| faults.report(Extent::Run, &mut totals, cx));
        let counts: Vec<_> = totals.memory.unwrap().faults.into_iter().map(|(pid, _, n)| (pid, n)).collect();
        assert_eq!(counts, [(7, 2 * PERIOD), (7, PERIOD)]);
    }
}
