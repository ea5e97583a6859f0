//! A run with names: what detection and all outputs read, whether it was just measured or replayed.

use std::rc::Rc;

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use crate::model::{
    cause::WaitCause,
    comparison::Baseline,
    finding::{Finding, Verdict},
    function::Function,
    kind::{CPU, ProfileKind},
    loss::Losses,
    memory::Memory,
    request::Requests,
    sections::Sections,
    stack::{Module, ModuleKind, StackEnd, StackId, ThreadKey},
    syscall::Calls,
    totals::Snapshot,
    vitals::{ProcessVitals, Vitals},
    wait::{Blocking, ThreadTime},
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

/// Who was there for so much of the run has not ended in it.
const LIVED: f64 = 0.98;

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
    /// Whether it ended because the targets did.
    pub targets_ended: bool,
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
    /// CPU time of this machine that its hypervisor gave to others, of all CPUs together, ns; 0 where there is none.
    pub stolen_ns: u64,
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
    /// What it was compared with, if it was.
    pub baseline: Option<Baseline>,
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
    pub stacks: FxHashMap<StackId, Rc<[usize]>>,
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
    pub process: Rc<str>,
    /// Name of the thread.
    pub thread_name: Rc<str>,
    /// Indices into [`Names::frames`], innermost first: the same for all threads with this stack.
    pub frames: Rc<[usize]>,
    /// How the user's part ends.
    pub end: StackEnd,
    /// Weight in [`ProfileKind::unit`].
    pub weight: u64,
    /// What the thread waited for, if it did.
    pub cause: Option<WaitCause>,
}

impl Totals {
    /// What is not made of samples, for a recording.
    pub fn sections(&self) -> Sections<'_> {
        Sections {
            blocking: self.blocking.as_ref(),
            memory: self.memory.as_ref(),
            calls: self.calls.as_ref(),
            requests: self.requests.as_ref(),
            vitals: self.vitals.as_ref(),
        }
    }
}

impl Run {
    /// One that has seen nothing.
    pub fn empty() -> Run {
        let cpu = Profile {
            kind: CPU,
            meta: Meta::default(),
            accounts: Accounts::default(),
            names: Rc::default(),
            stacks: Vec::new(),
            total: 0,
            span_ns: None,
        };
        Run {
            cpu,
            off_cpu: None,
            blocking: None,
            in_calls: None,
            calls: None,
            memory: None,
            heap: None,
            faults: None,
            findings: Vec::new(),
            verdict: None,
            baseline: None,
            requests: None,
            vitals: None,
        }
    }

    /// The profile of a kind, if it was measured.
    pub fn profile(&self, kind: &ProfileKind) -> Option<&Profile> {
        let others = [&self.off_cpu, &self.in_calls, &self.heap, &self.faults];
        std::iter::once(&self.cpu).chain(others.into_iter().flatten()).find(|profile| profile.kind == *kind)
    }

    /// What /proc said of a process, if it was looked at.
    pub fn vitals_of(&self, pid: u32) -> Option<&ProcessVitals> {
        self.vitals.as_ref()?.processes.iter().find(|of| of.pid == pid)
    }

    /// The systemd unit or container of a process; empty where it has none, or it is not known.
    pub fn unit_of(&self, pid: u32) -> &str {
        self.vitals_of(pid).map_or("", |of| &of.unit)
    }

    /// CPU time of children of a process that were no targets, ns, at least: who waited for them has the time of those that were
    /// targets and have ended, too.
    pub fn unprofiled_children_ns(&self, of: &ProcessVitals) -> u64 {
        let lived = |of: &&ThreadTime| of.wall_ns as f64 >= LIVED * self.cpu.accounts.duration_ns as f64;
        let targets = match &self.blocking {
            Some(blocking) => {
                let ended = blocking.threads.iter().filter(|of| of.others > 0 || !lived(of));
                ended.map(|of| (of.thread.pid, of.on_cpu_ns)).collect()
            }
            None => self
                .cpu
                .stacks
                .iter()
                .map(|stack| (stack.thread.pid, self.cpu.estimated_ns(stack.weight)))
                .collect::<Vec<_>>(),
        };
        let profiled: u64 = targets.iter().filter(|(pid, _)| *pid != of.pid).map(|(_, ns)| ns).sum();
        let seen: u64 = of.children.iter().map(|child| child.cpu_ns).sum();
        of.children_cpu_ns.saturating_sub(profiled).max(seen.min(of.children_cpu_ns))
    }

    /// For how long requests were watched, ns; at least 1.
    pub fn requests_watched_ns(&self) -> u64 {
        let watched_ns = self.requests.as_ref().map_or(0, |requests| requests.watched_ns);
        if watched_ns > 0 { watched_ns } else { self.cpu.accounts.duration_ns.max(1) }
    }

    /// What is known besides samples, for a recording.
    pub fn sections(&self) -> Sections<'_> {
        Sections {
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

impl Names {
    /// The module a frame belongs to.
    pub fn module_of(&self, frame: &NamedFrame) -> &Module {
        &self.modules[frame.module]
    }

    /// Whether a frame is the kernel's.
    pub fn is_kernel(&self, frame: &NamedFrame) -> bool {
        self.module_of(frame).kind == ModuleKind::Kernel
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
        self.stacks.get(&stack).map_or(&[], Rc::as_ref)
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

    /// Indices of a folded stack's frames, new or known, innermost first. What stands for stacks that were not taken has
    /// its name.
    pub fn frames(names: &mut Names, folded: &str) -> Rc<[usize]> {
        let not_taken = Module::special(ModuleKind::NotTaken);
        let each = folded.rsplit(';').map(|name| {
            let kernel = name.starts_with("k:");
            if name == not_taken.path && names.modules.len() == 2 {
                names.modules.push(not_taken.clone());
            }
            let function =
                Function { name: name.into(), file: Some("app.c".into()), line: Some(7), start: None };
            let existing = names.frames.iter().position(|frame| frame.functions[0] == function);
            existing.unwrap_or_else(|| {
                names.frames.push(NamedFrame {
                    module: if name == not_taken.path { 2 } else { usize::from(!kernel) },
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
        Run { cpu: profile(stacks), ..Run::empty() }
    }
}
