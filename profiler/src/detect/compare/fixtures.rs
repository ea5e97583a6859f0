//! Runs made by hand, of which it is known in what they differ.

use fastrand::Rng;

use crate::{
    model::{
        cause::WaitCause,
        function::{Detail, Function, Symbolizer},
        kind::{CPU, OFF_CPU, ProfileKind, SYSCALLS},
        measured::Measured,
        report::{Accounts, Meta, Run, Totals},
        sample::Sample,
        stack::{Frame, Module, ModuleId, ModuleKind, Stack, StackEnd, Tables, ThreadKey},
        totals::{Aggregator, intern_stack},
    },
    naming,
};

pub const MS: u64 = 1_000_000;
pub const S: u64 = 1000 * MS;
/// Samples in a second.
pub const HZ: u64 = 99;

/// A run and what it is made of.
pub struct Owned {
    pub run: Run,
    pub samples: Vec<Sample>,
    pub tables: Tables,
}

impl Owned {
    pub fn measured(&self) -> Measured<'_> {
        Measured { run: &self.run, samples: &self.samples, tables: &self.tables }
    }
}

/// Names addresses.
struct Numbered;

impl Symbolizer for Numbered {
    fn functions(
        &mut self,
        _: ModuleId,
        _: &Module,
        addresses: &[u64],
        _: Detail,
    ) -> Vec<Option<Vec<Function>>> {
        let name = |address| Function { name: format!("f{address}"), ..Function::default() };
        addresses.iter().map(|&address| Some(vec![name(address)])).collect()
    }
}

/// A run of samples of one kind: when, function, weight.
pub fn run(kind: ProfileKind, duration_ns: u64, samples: &[(u64, u64, u64)]) -> Owned {
    run_of("app", kind, duration_ns, samples)
}

/// The same of a process with a name.
pub fn run_of(name: &str, kind: ProfileKind, duration_ns: u64, samples: &[(u64, u64, u64)]) -> Owned {
    let mut tables = Tables::default();
    let file = Module { path: "/bin/app".into(), ..Module::special(ModuleKind::File) };
    let module = tables.module_id(file);
    let call = tables.module_id(Module::special(ModuleKind::Syscall));
    let thread = ThreadKey { pid: 7, tid: 7 };
    tables.threads.insert(thread, name.into());
    let mut totals = Aggregator::default();
    let mut recorded = Vec::new();
    for &(time_ns, function, weight) in samples {
        let mut frames = vec![Frame { module, address: function }, Frame { module, address: 1000 }];
        if kind == SYSCALLS {
            frames.push(Frame { module: call, address: function % 3 });
        }
        let stack = Stack { frames: frames.into(), kernel_frames: 0, end: StackEnd::Complete };
        let stack = intern_stack(&mut tables, stack).unwrap();
        let cause = (kind == OFF_CPU).then_some(WaitCause::Network);
        let sample = Sample { time_ns, thread, cpu: 0, stack, weight, cause };
        assert!(totals.add(&sample));
        recorded.push(sample);
    }
    let snapshot = totals.snapshot();
    let mut all = Totals::default();
    match kind {
        OFF_CPU => all.off_cpu = Some(snapshot),
        SYSCALLS => all.in_calls = Some(snapshot),
        _ => all.cpu = snapshot,
    }
    let meta = Meta {
        target: "pid 7".into(),
        cpus: 2,
        frequency_hz: HZ as u32,
        period_ns: S / HZ,
        ..Meta::default()
    };
    let accounts = Accounts { duration_ns, ..Accounts::default() };
    let run = naming::run(meta, accounts, all, &tables, &mut Numbered, Detail::Full);
    Owned { run, samples: recorded, tables }
}

/// A run on CPUs: in each second so many samples, each of a function with the chance that is given.
pub fn on_cpu(chances: &[f64], seconds: u64, random: &mut Rng) -> Owned {
    let mut samples = Vec::new();
    for i in 0..seconds * HZ {
        samples.push((i * S / HZ, pick(chances, random), 1));
    }
    run(CPU, seconds * S, &samples)
}

/// A run of sums that are read every two seconds: of each place some waits, of very different lengths, that many
/// milliseconds in a second on average.
pub fn waiting(kind: ProfileKind, ms_by_s: &[f64], seconds: u64, random: &mut Rng) -> Owned {
    let mut samples = Vec::new();
    for second in (2..=seconds).step_by(2) {
        for (function, mean) in (0..).zip(ms_by_s) {
            // Twenty waits in a reading, of exponential lengths.
            let lengths = (0..20).map(|_| -random.f64().max(1e-9).ln() / 20.0);
            let ns = (lengths.sum::<f64>() * 2.0 * mean * MS as f64) as u64;
            samples.push((10 * S + second * S + function * 3000, function, ns.max(1)));
        }
    }
    run(kind, seconds * S, &samples)
}

/// A number with the chances given, which need not add up to one.
pub fn pick(chances: &[f64], random: &mut Rng) -> u64 {
    let mut at = random.f64() * chances.iter().sum::<f64>();
    let found = chances.iter().position(|chance| {
        at -= chance;
        at < 0.0
    });
    found.unwrap_or(chances.len() - 1) as u64
}

/// Chances of functions as programs have them: few are hot.
pub fn zipf(n: u32) -> Vec<f64> {
    let each: Vec<f64> = (1..=n).map(|rank| 1.0 / f64::from(rank)).collect();
    let sum: f64 = each.iter().sum();
    each.into_iter().map(|of| of / sum).collect()
}
