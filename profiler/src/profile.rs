//! A symbolized profile: what detection and all outputs read, whether it was just measured or replayed.

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use crate::{
    aggregate::Snapshot,
    sample::{Frame, Loss, Losses, Module, ModuleKind, ProfileKind, StackEnd, Tables, ThreadKey},
    symbolize::{Detail, Function, Symbolizer},
    unwind::feed::UnwindReport,
};

/// Facts about a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// What was profiled, in words.
    pub target: String,
    /// Version of the profiler that measured.
    pub profiler_version: String,
    /// Kernel release.
    pub kernel: String,
    /// Host name.
    pub host: String,
    /// CPUs online.
    pub cpus: u32,
    /// Start of the run, ns since 1970 (UTC).
    pub start_unix_ns: u64,
    /// Samples per second and CPU.
    pub frequency_hz: u32,
    /// CPU clock between two samples of one CPU, ns.
    pub period_ns: u64,
}

/// What was counted beside the samples themselves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Accounts {
    /// Length of the run, ns.
    pub duration_ns: u64,
    /// Samples the kernel took of the target, delivered or lost.
    pub samples_taken: u64,
    /// Samples and parts of samples that are missing, by reason.
    pub losses: Losses,
    /// What each probe cost the machine, in the kernel.
    pub probes: Vec<ProbeReport>,
    /// What unwinding took.
    pub unwind: UnwindReport,
    /// CPU time of the profiler itself while it profiled, ns.
    pub agent_cpu_ns: u64,
    /// CPU time of the profiler itself to start, and to name what it found, ns.
    pub agent_setup_cpu_ns: u64,
    /// Peak resident memory of the profiler itself, bytes.
    pub agent_peak_rss_bytes: u64,
}

/// What one probe cost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// Name of the probe.
    pub name: String,
    /// Runs for the target.
    pub runs: u64,
    /// Time in those runs, ns, without getting into and out of the program.
    pub ns: u64,
}

/// A profile with names.
#[derive(Clone, Debug)]
pub struct Profile {
    /// What the weights count.
    pub kind: ProfileKind,
    /// Facts about the run.
    pub meta: Meta,
    /// Counts beside the samples.
    pub accounts: Accounts,
    /// Modules that frames refer to.
    pub modules: Vec<Module>,
    /// Every distinct frame once.
    pub frames: Vec<NamedFrame>,
    /// Every distinct pair of thread and stack, heaviest first.
    pub stacks: Vec<ProfileStack>,
    /// Sum of all stacks' weights.
    pub total: u64,
    /// Times of the first and the last sample, CLOCK_MONOTONIC, ns.
    pub span_ns: Option<(u64, u64)>,
}

/// A frame with its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFrame {
    /// Index into [`Profile::modules`].
    pub module: usize,
    /// Address in the module.
    pub address: u64,
    /// Innermost inlined function first, the function itself last; at least one.
    pub functions: Vec<Function>,
}

/// A thread's stack and its weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfileStack {
    /// Whose it is.
    pub thread: ThreadKey,
    /// Name of the process.
    pub process: String,
    /// Name of the thread.
    pub thread_name: String,
    /// Indices into [`Profile::frames`], innermost first.
    pub frames: Vec<usize>,
    /// How the user's part ends.
    pub end: StackEnd,
    /// Weight in [`ProfileKind::unit`].
    pub weight: u64,
}

impl Profile {
    /// Names everything in a snapshot.
    pub fn build(
        kind: ProfileKind,
        meta: Meta,
        mut accounts: Accounts,
        snapshot: &Snapshot,
        tables: &Tables,
        symbolizer: &mut dyn Symbolizer,
        detail: Detail,
    ) -> Profile {
        // Addresses by module, so that each file's symbols are read once.
        let mut wanted: FxHashMap<u32, Vec<u64>> = FxHashMap::default();
        let mut distinct = rustc_hash::FxHashSet::default();
        for &(_, stack, _) in &snapshot.entries {
            for &frame in &*tables.stack(stack).frames {
                if distinct.insert(frame) {
                    wanted.entry(frame.module.0).or_default().push(frame.address);
                }
            }
        }
        let mut frames = Vec::with_capacity(distinct.len());
        let mut index: FxHashMap<Frame, (usize, bool)> = FxHashMap::default();
        let mut modules: Vec<_> = wanted.into_iter().collect();
        modules.sort_unstable_by_key(|(module, _)| *module);
        for (module, mut addresses) in modules {
            addresses.sort_unstable();
            let id = crate::sample::ModuleId(module);
            let names = symbolizer.functions(id, tables.module(id), &addresses, detail);
            for (position, address) in addresses.into_iter().enumerate() {
                let found = names.get(position).cloned().flatten().filter(|functions| !functions.is_empty());
                index.insert(Frame { module: id, address }, (frames.len(), found.is_some()));
                frames.push(NamedFrame {
                    module: module as usize,
                    address,
                    functions: found.unwrap_or_else(|| vec![Function::unknown(tables.module(id), address)]),
                });
            }
        }

        let mut unnamed = 0;
        let stacks = snapshot
            .entries
            .iter()
            .map(|&(thread, stack, weight)| {
                let stack = tables.stack(stack);
                if stack.frames.iter().any(|frame| !index[frame].1) {
                    unnamed += weight;
                }
                ProfileStack {
                    thread,
                    process: tables.process_name(thread).to_owned(),
                    thread_name: tables.thread_name(thread).to_owned(),
                    frames: stack.frames.iter().map(|frame| index[frame].0).collect(),
                    end: stack.end,
                    weight,
                }
            })
            .collect();
        accounts.losses.set(Loss::SymbolMissing, unnamed);
        Profile {
            kind,
            meta,
            accounts,
            modules: tables.modules.iter().cloned().collect(),
            frames,
            stacks,
            total: snapshot.total,
            span_ns: snapshot.span_ns,
        }
    }

    /// The module a frame belongs to.
    pub fn module_of(&self, frame: &NamedFrame) -> &Module {
        &self.modules[frame.module]
    }

    /// Functions of a stack, innermost first, inlined ones included, each with its frame and whether the compiler
    /// inlined it into the next.
    pub fn functions<'a>(
        &'a self,
        stack: &'a ProfileStack,
    ) -> impl DoubleEndedIterator<Item = (&'a Function, &'a NamedFrame, bool)> {
        stack.frames.iter().flat_map(move |&index| {
            let frame = &self.frames[index];
            let outermost = frame.functions.len() - 1;
            frame.functions.iter().enumerate().map(move |(i, function)| (function, frame, i != outermost))
        })
    }

    /// Weight by how the user stack ends, in the order of [`StackEnd::ALL`].
    pub fn ends(&self) -> impl Iterator<Item = (StackEnd, u64)> {
        StackEnd::ALL.into_iter().map(|end| {
            let weights = self.stacks.iter().filter(|stack| stack.end == end).map(|stack| stack.weight);
            (end, weights.sum())
        })
    }

    /// Weight converted to CPU time, ns: an estimate, whose relative standard error is about one over the square
    /// root of the number of samples.
    pub fn estimated_ns(&self, weight: u64) -> u64 {
        weight.saturating_mul(self.meta.period_ns)
    }

    /// Whether a frame is the kernel's.
    pub fn is_kernel(&self, frame: &NamedFrame) -> bool {
        self.module_of(frame).kind == ModuleKind::Kernel
    }
}

#[cfg(test)]
pub(crate) mod fixtures {
    //! Profiles made by hand, for the tests of everything that reads profiles.

    use super::*;
    use crate::sample::{CPU, ModuleKind};

    /// A profile of stacks written as folded text, outermost first; a name in `k:` is a kernel function.
    pub fn profile(stacks: &[(&str, u64)]) -> Profile {
        let file =
            Module { kind: ModuleKind::File, path: "/bin/app".into(), inode: 1, build_id: vec![0xab, 0xcd] };
        let mut profile = Profile {
            kind: CPU,
            meta: Meta {
                target: "pid 7".into(),
                profiler_version: "0.0.0".into(),
                kernel: "6.1.0".into(),
                host: "host".into(),
                cpus: 2,
                start_unix_ns: 1_700_000_000_000_000_000,
                frequency_hz: 100,
                period_ns: 10_000_000,
            },
            accounts: Accounts { duration_ns: 1_000_000_000, ..Accounts::default() },
            modules: vec![Module::special(ModuleKind::Kernel), file],
            frames: Vec::new(),
            stacks: Vec::new(),
            total: stacks.iter().map(|(_, weight)| weight).sum(),
            span_ns: None,
        };
        profile.accounts.samples_taken = profile.total;
        for &(folded, weight) in stacks {
            let frames = folded
                .rsplit(';')
                .map(|name| {
                    let kernel = name.starts_with("k:");
                    let function = Function { name: name.into(), file: Some("app.c".into()), line: Some(7) };
                    let existing = profile.frames.iter().position(|frame| frame.functions[0] == function);
                    existing.unwrap_or_else(|| {
                        profile.frames.push(NamedFrame {
                            module: usize::from(!kernel),
                            address: 0x1000 + profile.frames.len() as u64,
                            functions: vec![function],
                        });
                        profile.frames.len() - 1
                    })
                })
                .collect();
            profile.stacks.push(ProfileStack {
                thread: ThreadKey { pid: 7, tid: 8 },
                process: "app".into(),
                thread_name: "worker".into(),
                frames,
                end: StackEnd::Complete,
                weight,
            });
        }
        profile
    }
}
