//! The CPU probe: samples of what runs, at a fixed period of CPU time.

pub mod records;

use anyhow::Result;

use crate::{
    kernel::port::{Event, Hook, Port as _},
    model::{
        kind::CPU,
        loss::Loss,
        report::Totals,
        sample::Sample,
        stack::{StackEnd, StackId, ThreadKey},
        totals::Aggregator,
    },
    probe::{
        cpu::records::RawSample,
        record::Record,
        spec::{Context, Extent, InUse, Probe, ProbeSpec},
    },
    settings::Settings,
};

fn program(settings: &Settings) -> &'static str {
    if settings.unwind_by_tables { "cpu_sample" } else { "cpu_sample_fp" }
}

/// The CPU probe.
pub static SPEC: ProbeSpec = ProbeSpec {
    name: "cpu",
    about: "what runs on CPUs, by samples",
    enabled: |_| true,
    measures: |_| true,
    large_maps: &[],
    prepare: |settings, plan| {
        plan.programs(&[program(settings)]);
        Ok(())
    },
    start: |start| {
        let program = program(start.settings);
        let period = records::period_ns(start.settings.frequency_hz);
        start.kernel.attach(Hook::Event { program, event: Event::CpuClock, period })?;
        Ok(Box::new(Cpu::new(start.settings.shows)))
    },
    kinds: &[CPU],
    checks: Vec::new,
};

/// CPU samples, added up.
#[derive(Default)]
pub struct Cpu {
    totals: Aggregator,
    /// Somebody asks for intervals.
    shows: bool,
    last_interval: Aggregator,
}

impl Cpu {
    /// No samples yet. `shows` says whether somebody asks for intervals.
    pub fn new(shows: bool) -> Cpu {
        Cpu { shows, ..Cpu::default() }
    }
}

impl Probe for Cpu {
    fn record(&mut self, record: &Record, stack: Option<StackId>, cx: &mut Context<'_>) -> Result<()> {
        let Record::Cpu(raw) = record else { return Ok(()) };
        let header = &raw.header;
        let thread = ThreadKey { pid: header.pid, tid: header.tid };
        let Some(stack) = stack else {
            cx.resolver.losses.add(Loss::TooManyStacks, 1);
            return Ok(());
        };
        let sample =
            Sample { time_ns: header.time_ns, thread, cpu: header.cpu.into(), stack, weight: 1, cause: None };
        if !self.totals.add(&sample) {
            cx.resolver.losses.add(Loss::TooManyStacks, 1);
            return Ok(());
        }
        if self.shows {
            // The interval has no more keys than the run.
            let _fits = self.last_interval.add(&sample);
        }
        count_degraded(raw, cx);
        let name = raw.thread_name();
        let tables = &mut cx.resolver.tables;
        let renamed = tables.threads.get(&thread) != Some(&name);
        if renamed {
            tables.threads.insert(thread, name.clone());
        }
        cx.sink.record(&sample, tables, renamed.then_some(name.as_str()));
        Ok(())
    }

    fn in_use(&mut self, used: &mut InUse) {
        used.totals(&mut self.totals);
    }

    fn report(&mut self, extent: Extent, totals: &mut Totals, _cx: &mut Context<'_>) -> Result<()> {
        match extent {
            Extent::Interval => totals.cpu = self.last_interval.take(),
            Extent::Run => totals.cpu = self.totals.snapshot(),
            Extent::Checkpoint | Extent::Snapshot => {}
        }
        Ok(())
    }
}

/// Counts what is missing of a sample that is in the totals.
fn count_degraded(raw: &RawSample, cx: &mut Context<'_>) {
    let has_user_stack = !cx.resolver.is_kernel_thread(raw.header.pid);
    let cut_off = !matches!(
        raw.user_end(),
        StackEnd::None | StackEnd::Complete | StackEnd::FramePointers | StackEnd::TooDeep
    );
    for (degraded, loss) in [
        (raw.kernel_stack_failed(), Loss::KernelStackFailed),
        (raw.user_stack_failed() && has_user_stack, Loss::UserStackFailed),
        (raw.truncated(), Loss::StackTruncated),
        (cut_off, Loss::UnwindFailed),
    ] {
        cx.resolver.losses.add(loss, degraded.into());
    }
}

#[cfg(test)]
mod tests {
    use profiler_common::cpu::{END_STOPPED, FLAG_KERNEL_STACK_FAILED, FLAG_USER_END_SHIFT};

    use super::*;
    use crate::probe::fixtures::{Bench, raw};

    #[test]
    fn samples_add_up_and_are_recorded_with_new_names() {
        let mut bench = Bench::new();
        let mut cpu = Cpu::new(true);
        for (tid, time_ns) in [(7, 10), (7, 20), (8, 30)] {
            bench.record(&mut cpu, &Record::Cpu(raw(7, tid, time_ns, &[0x10, 0x20])));
        }
        let mut renamed = raw(7, 8, 40, &[0x10]);
        renamed.header.comm[0] = b'W';
        bench.record(&mut cpu, &Record::Cpu(renamed));
        let names: Vec<_> = bench.kept.0.iter().map(|(_, name)| name.as_deref()).collect();
        assert_eq!(names, [Some("worker"), None, Some("worker"), Some("Worker")]);

        let mut totals = Totals::default();
        bench.with(|cx| cpu.report(Extent::Interval, &mut totals, cx));
        assert_eq!((totals.cpu.total, totals.cpu.entries.len()), (4, 3));
        bench.with(|cx| cpu.report(Extent::Interval, &mut totals, cx));
        assert_eq!(totals.cpu.total, 0, "since the last time");
        bench.with(|cx| cpu.report(Extent::Run, &mut totals, cx));
        assert_eq!((totals.cpu.total, totals.cpu.span_ns), (4, Some((10, 40))));
    }

    #[test]
    fn what_is_missing_of_a_sample_is_counted() {
        let mut bench = Bench::new();
        let mut cpu = Cpu::new(true);
        let mut sample = raw(7, 7, 10, &[0x10]);
        sample.header.flags = FLAG_KERNEL_STACK_FAILED | END_STOPPED << FLAG_USER_END_SHIFT;
        bench.record(&mut cpu, &Record::Cpu(sample.clone()));
        bench.with(|cx| cpu.record(&Record::Cpu(sample), None, cx)); // no room for its stack
        let losses = &bench.resolver.losses;
        let counts = [Loss::KernelStackFailed, Loss::UnwindFailed, Loss::TooManyStacks, Loss::StackTruncated];
        assert_eq!(counts.map(|loss| losses.get(loss)), [1, 1, 1, 0]);
        assert_eq!(bench.kept.0.len(), 1);
    }
}
