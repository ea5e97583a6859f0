//! A symbolized profile: what detection and all outputs read, whether it was just measured or replayed.

use std::rc::Rc;

use rustc_hash::{FxHashMap, FxHashSet};
use serde::{Deserialize, Serialize};

use crate::model::{
    cause::WaitCause,
    finding::{Finding, Verdict},
    function::{Detail, Function, Symbolizer},
    kind::{ALLOC, CPU, FAULTS, OFF_CPU, ProfileKind, SYSCALLS},
    loss::{Loss, Losses},
    memory::{Memory, Site},
    request::Requests,
    sections::Told,
    stack::{Frame, Module, ModuleKind, StackEnd, StackId, Tables, ThreadKey},
    syscall::Calls,
    totals::{Key, Snapshot},
    vitals::Vitals,
    wait::Blocking,
};

/// What unwinding took, and what could not be unwound by tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnwindReport {
    /// Tables in the kernel.
    pub tables: u64,
    /// Their size, bytes.
    pub table_bytes: u64,
    /// Time it took to build all tables ever built, ns.
    pub build_ns: u64,
    /// Files without a table, each with the reason.
    pub failed: Vec<(String, String)>,
    /// Processes whose mappings did not fit.
    pub processes_refused: u64,
}

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

/// Everything that was measured, with names: what detection and all outputs read.
#[derive(Clone, Debug)]
pub struct Run {
    /// Samples on CPUs.
    pub cpu: Profile,
    /// Time off CPUs, if the scheduler was watched.
    pub off_cpu: Option<Profile>,
    /// Where the time went and what was wrong with it, if the scheduler was watched.
    pub blocking: Option<Blocking>,
    /// Time in system calls, if they were watched.
    pub in_calls: Option<Profile>,
    /// System calls, if they were watched.
    pub calls: Option<Calls>,
    /// How memory grew, if it was watched.
    pub memory: Option<Memory>,
    /// Memory allocated and not freed at the end, if it was watched.
    pub heap: Option<Profile>,
    /// Page faults, if they were watched.
    pub faults: Option<Profile>,
    /// What is wrong, worst first: filled in by [`crate::detect::judge`].
    pub findings: Vec<Finding>,
    /// The first answer: filled in by [`crate::detect::judge`].
    pub verdict: Option<Verdict>,
    /// Requests and answers, if they were watched.
    pub requests: Option<Requests>,
    /// What was seen from outside, if it was looked for.
    pub vitals: Option<Vitals>,
}

/// What a [`Run`] is made of.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Samples on CPUs.
    pub cpu: Snapshot,
    /// Time off CPUs, if the scheduler was watched.
    pub off_cpu: Option<Snapshot>,
    /// Where the time went, if the scheduler was watched.
    pub blocking: Option<Blocking>,
    /// Time in system calls, if they were watched.
    pub in_calls: Option<Snapshot>,
    /// System calls, if they were watched.
    pub calls: Option<Calls>,
    /// How memory grew, if it was watched.
    pub memory: Option<Memory>,
    /// Requests and answers, if they were watched.
    pub requests: Option<Requests>,
    /// What was seen from outside, if it was looked for.
    pub vitals: Option<Vitals>,
}

/// One profile with names.
#[derive(Clone, Debug)]
pub struct Profile {
    /// What the weights count.
    pub kind: ProfileKind,
    /// Facts about the run.
    pub meta: Meta,
    /// Counts beside the samples.
    pub accounts: Accounts,
    /// What addresses are called; shared by all profiles of a run.
    pub names: Rc<Names>,
    /// Every distinct pair of thread and stack, heaviest first.
    pub stacks: Vec<ProfileStack>,
    /// Sum of all stacks' weights.
    pub total: u64,
    /// Times of the first and the last sample, CLOCK_MONOTONIC, ns.
    pub span_ns: Option<(u64, u64)>,
}

/// What addresses are called.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Modules that frames refer to.
    pub modules: Vec<Module>,
    /// Every distinct frame once.
    pub frames: Vec<NamedFrame>,
    /// Stacks that are referred to by id: indices into `frames`, innermost first.
    pub stacks: FxHashMap<StackId, Vec<usize>>,
}

/// A frame with its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFrame {
    /// Index into [`Names::modules`].
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
    /// Indices into [`Names::frames`], innermost first.
    pub frames: Vec<usize>,
    /// How the user's part ends.
    pub end: StackEnd,
    /// Weight in [`ProfileKind::unit`].
    pub weight: u64,
    /// What the thread waited for, if it did.
    pub cause: Option<WaitCause>,
}

impl Totals {
    /// What is not made of samples, for a recording.
    pub fn sections(&self) -> Told<'_> {
        Told {
            blocking: self.blocking.as_ref(),
            memory: self.memory.as_ref(),
            calls: self.calls.as_ref(),
            requests: self.requests.as_ref(),
            vitals: self.vitals.as_ref(),
        }
    }
}

impl Run {
    /// Names everything.
    pub fn build(
        meta: Meta,
        mut accounts: Accounts,
        totals: Totals,
        tables: &Tables,
        symbolizer: &mut dyn Symbolizer,
        detail: Detail,
    ) -> Run {
        let Totals { cpu, off_cpu, blocking, in_calls, calls, memory, requests, vitals } = totals;
        let told = blocking.iter().flat_map(Blocking::stacks);
        let told: Vec<StackId> = told.chain(calls.iter().flat_map(Calls::stacks)).collect();
        let sites = memory.iter().flat_map(Memory::stacks);
        let sampled = [Some(&cpu), off_cpu.as_ref(), in_calls.as_ref()]
            .into_iter()
            .flatten()
            .flat_map(|snapshot| &snapshot.entries);
        let stacks = sampled.map(|(key, _)| key.stack).chain(told.iter().copied()).chain(sites.clone());
        let (mut names, index) = name(stacks, tables, symbolizer, detail);
        let frames = |stack: StackId| -> Vec<usize> {
            tables.stack(stack).frames.iter().map(|frame| index[frame].0).collect()
        };
        let waiting = |names: &Names, stack| names.without_probe(frames(stack));
        let told = told.into_iter().map(|stack| (stack, waiting(&names, stack)));
        names.stacks = sites.map(|stack| (stack, frames(stack))).chain(told).collect();
        let unnamed = cpu
            .entries
            .iter()
            .filter(|(key, _)| tables.stack(key.stack).frames.iter().any(|frame| !index[frame].1));
        accounts.losses.set(Loss::SymbolMissing, unnamed.map(|(_, weight)| weight).sum());

        let names = Rc::new(names);
        let profile = |kind, snapshot: &Snapshot| Profile {
            kind,
            meta: meta.clone(),
            accounts: accounts.clone(),
            names: Rc::clone(&names),
            stacks: snapshot
                .entries
                .iter()
                .map(|&(key, weight)| ProfileStack {
                    thread: key.thread,
                    process: tables.process_name(key.thread).to_owned(),
                    thread_name: tables.thread_name(key.thread).to_owned(),
                    frames: if kind == CPU { frames(key.stack) } else { waiting(&names, key.stack) },
                    end: tables.stack(key.stack).end,
                    weight,
                    cause: key.cause,
                })
                .collect(),
            total: snapshot.total,
            span_ns: snapshot.span_ns,
        };
        Run {
            cpu: profile(CPU, &cpu),
            off_cpu: off_cpu.map(|snapshot| profile(OFF_CPU, &snapshot)),
            in_calls: in_calls.map(|snapshot| profile(SYSCALLS, &snapshot)),
            heap: memory.as_ref().map(|memory| profile(ALLOC, &live(memory))),
            faults: memory.as_ref().map(|memory| profile(FAULTS, &faults(memory))),
            blocking,
            calls,
            memory,
            findings: Vec::new(),
            verdict: None,
            requests,
            vitals,
        }
    }

    /// The profile of a kind, if it was measured.
    pub fn profile(&self, kind: &ProfileKind) -> Option<&Profile> {
        let others = [&self.off_cpu, &self.in_calls, &self.heap, &self.faults];
        std::iter::once(&self.cpu).chain(others.into_iter().flatten()).find(|profile| profile.kind == *kind)
    }

    /// What is known besides samples, for a recording.
    pub fn told(&self) -> Told<'_> {
        Told {
            blocking: self.blocking.as_ref(),
            memory: self.memory.as_ref(),
            calls: self.calls.as_ref(),
            requests: self.requests.as_ref(),
            vitals: self.vitals.as_ref(),
        }
    }

    /// What addresses are called.
    pub fn names(&self) -> &Names {
        &self.cpu.names
    }
}

/// What each site had allocated and not freed at the end, bytes.
fn live(memory: &Memory) -> Snapshot {
    let bytes = |site: &Site| site.points.last().map_or(0.0, |point| point.live_bytes).round() as u64;
    snapshot(memory.sites.iter().map(|site| (site.pid, site.stack, bytes(site))))
}

/// Page faults by where they were taken.
fn faults(memory: &Memory) -> Snapshot {
    snapshot(memory.faults.iter().copied())
}

/// Totals of (pid, stack, weight). Which thread it was is not told: what one allocates another frees.
fn snapshot(weights: impl Iterator<Item = (u32, StackId, u64)>) -> Snapshot {
    let mut sums: FxHashMap<Key, u64> = FxHashMap::default();
    for (pid, stack, weight) in weights.filter(|(.., weight)| *weight > 0) {
        *sums.entry(Key { thread: ThreadKey { pid, tid: pid }, stack, cause: None }).or_default() += weight;
    }
    let mut entries: Vec<_> = sums.into_iter().collect();
    entries.sort_unstable_by_key(|&(key, weight)| (std::cmp::Reverse(weight), key));
    Snapshot { total: entries.iter().map(|(_, weight)| weight).sum(), entries, span_ns: None }
}

/// Names all frames of some stacks. The index says of each frame where it is among the names, and whether it has a
/// name of its own.
fn name(
    stacks: impl Iterator<Item = StackId>,
    tables: &Tables,
    symbolizer: &mut dyn Symbolizer,
    detail: Detail,
) -> (Names, FxHashMap<Frame, (usize, bool)>) {
    // Addresses by module, so that each file's symbols are read once.
    let mut wanted: FxHashMap<u32, Vec<u64>> = FxHashMap::default();
    let mut distinct = FxHashSet::default();
    for stack in stacks.collect::<FxHashSet<_>>() {
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
        let id = crate::model::stack::ModuleId(module);
        let names = match tables.module(id).kind {
            // Interned with their names, unless this is a replay.
            ModuleKind::Managed(_) if tables.has_managed() => {
                let managed =
                    |&address| tables.managed(Frame { module: id, address }).map(<[Function]>::to_vec);
                addresses.iter().map(managed).collect()
            }
            _ => symbolizer.functions(id, tables.module(id), &addresses, detail),
        };
        for (position, address) in addresses.into_iter().enumerate() {
            let found = names.get(position).cloned().flatten().filter(|functions| !functions.is_empty());
            let named =
                found.as_ref().is_some_and(|found| found.iter().any(|it| !it.is_unnamed(tables.module(id))));
            index.insert(Frame { module: id, address }, (frames.len(), named));
            // Names come from files of the target.
            let found = found.map(|functions| functions.into_iter().map(Function::cleaned).collect());
            frames.push(NamedFrame {
                module: module as usize,
                address,
                functions: found.unwrap_or_else(|| vec![Function::unknown(tables.module(id), address)]),
            });
        }
    }
    let modules = tables.modules.iter().cloned().collect();
    (Names { modules, frames, stacks: FxHashMap::default() }, index)
}

impl Names {
    /// The module a frame belongs to.
    pub fn module_of(&self, frame: &NamedFrame) -> &Module {
        &self.modules[frame.module]
    }

    /// Whether a frame is the kernel's.
    pub fn is_kernel(&self, frame: &NamedFrame) -> bool {
        self.module_of(frame).kind == ModuleKind::Kernel
    }

    /// A stack without what the scheduler, or the end of a system call, calls to tell the probe of a switch, of a wake-up or
    /// of a call; how much that is differs from kernel to kernel.
    fn without_probe(&self, mut frames: Vec<usize>) -> Vec<usize> {
        const AT_MOST: usize = 8;
        const CALL_ENDS: [&str; 4] =
            ["__bpf_trace_sys_exit", "trace_sys_exit", "syscall_exit_work", "syscall_trace_exit"];
        let is = |frame: usize, name: &str| {
            let frame = &self.frames[frame];
            self.is_kernel(frame) && frame.functions.iter().any(|function| function.name == name)
        };
        let blocked = self.waker_at(&frames).map_or(0, |at| at + 1);
        let head = &frames[blocked..][..(frames.len() - blocked).min(AT_MOST)];
        let told = head
            .iter()
            .position(|&frame| is(frame, "__schedule"))
            .or_else(|| head.iter().rposition(|&frame| CALL_ENDS.iter().any(|name| is(frame, name))));
        if let Some(at) = told {
            frames.drain(blocked..=blocked + at);
        }
        if let Some(waker) = self.waker_at(&frames) {
            let mut woke = frames[..waker].iter().rev().take(AT_MOST);
            if let Some(at) = woke.position(|&frame| is(frame, "try_to_wake_up")) {
                frames.drain(waker - at - 1..waker);
            }
        }
        frames
    }

    /// Where, in a stack off CPUs, the frame is that says who woke the thread. The waker's stack lies before it, the
    /// outermost first, and where the thread blocked behind it, the innermost first.
    pub fn waker_at(&self, frames: &[usize]) -> Option<usize> {
        frames.iter().position(|&frame| self.module_of(&self.frames[frame]).kind == ModuleKind::Waker)
    }

    /// Functions of a stack, innermost first, inlined ones included, each with its frame and whether the compiler
    /// inlined it into the next.
    pub fn functions<'a>(
        &'a self,
        frames: &'a [usize],
    ) -> impl DoubleEndedIterator<Item = (&'a Function, &'a NamedFrame, bool)> {
        frames.iter().flat_map(move |&index| {
            let frame = &self.frames[index];
            let outermost = frame.functions.len() - 1;
            frame.functions.iter().enumerate().map(move |(i, function)| (function, frame, i != outermost))
        })
    }

    /// Frames of a stack that is referred to by id; none if it is unknown.
    pub fn stack(&self, stack: StackId) -> &[usize] {
        self.stacks.get(&stack).map_or(&[], Vec::as_slice)
    }
}

impl Profile {
    /// The module a frame belongs to.
    pub fn module_of(&self, frame: &NamedFrame) -> &Module {
        self.names.module_of(frame)
    }

    /// As [`Names::functions`].
    pub fn functions<'a>(
        &'a self,
        stack: &'a ProfileStack,
    ) -> impl DoubleEndedIterator<Item = (&'a Function, &'a NamedFrame, bool)> {
        self.names.functions(&stack.frames)
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
}

#[cfg(test)]
pub(crate) mod fixtures {
    //! Profiles made by hand, for the tests of everything that reads profiles.

    use super::*;
    use crate::model::{kind::CPU, stack::ModuleKind};

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
            names: Rc::default(),
            stacks: Vec::new(),
            total: stacks.iter().map(|(_, weight)| weight).sum(),
            span_ns: None,
        };
        profile.accounts.samples_taken = profile.total;
        let modules = vec![Module::special(ModuleKind::Kernel), file];
        let mut names = Names { modules, ..Names::default() };
        for &(folded, weight) in stacks {
            let frames = frames(&mut names, folded);
            profile.stacks.push(ProfileStack {
                thread: ThreadKey { pid: 7, tid: 8 },
                process: "app".into(),
                thread_name: "worker".into(),
                frames,
                end: StackEnd::Complete,
                weight,
                cause: None,
            });
        }
        profile.names = Rc::new(names);
        profile
    }

    /// Indices of a folded stack's frames, new or known, innermost first.
    pub fn frames(names: &mut Names, folded: &str) -> Vec<usize> {
        let each = folded.rsplit(';').map(|name| {
            let kernel = name.starts_with("k:");
            let function =
                Function { name: name.into(), file: Some("app.c".into()), line: Some(7), start: None };
            let existing = names.frames.iter().position(|frame| frame.functions[0] == function);
            existing.unwrap_or_else(|| {
                names.frames.push(NamedFrame {
                    module: usize::from(!kernel),
                    address: 0x1000 + names.frames.len() as u64,
                    functions: vec![function],
                });
                names.frames.len() - 1
            })
        });
        each.collect()
    }

    /// A run of nothing but a CPU profile.
    pub fn run(stacks: &[(&str, u64)]) -> Run {
        Run {
            cpu: profile(stacks),
            off_cpu: None,
            blocking: None,
            in_calls: None,
            calls: None,
            memory: None,
            heap: None,
            faults: None,
            findings: Vec::new(),
            verdict: None,
            requests: None,
            vitals: None,
        }
    }
}
