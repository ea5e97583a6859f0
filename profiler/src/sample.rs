//! The types every stage speaks. A probe's record becomes a [`Sample`] once its addresses are resolved to
//! modules and its stack is interned; samples add up to a [`Snapshot`](crate::aggregate::Snapshot).

use std::fmt;

use indexmap::{IndexMap, IndexSet};
use rustc_hash::FxBuildHasher;
use serde::{Deserialize, Serialize};

use crate::blocking::WaitCause;

/// What a profile counts. Outputs read this and never know a probe's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProfileKind {
    /// Name of the profile in machine-readable output.
    pub name: &'static str,
    /// What one unit of weight is.
    pub sample_type: &'static str,
    /// Unit of the weight.
    pub unit: &'static str,
    /// What the period measures: weight times period is an estimate of this.
    pub period_type: &'static str,
    /// Unit of the period.
    pub period_unit: &'static str,
}

/// On-CPU samples at a fixed period of CPU clock time.
pub const CPU: ProfileKind = ProfileKind {
    name: "cpu",
    sample_type: "samples",
    unit: "count",
    period_type: "cpu",
    period_unit: "nanoseconds",
};

/// Time blocked, exact, by the stack that blocked.
pub const OFF_CPU: ProfileKind = ProfileKind {
    name: "offcpu",
    sample_type: "offcpu",
    unit: "nanoseconds",
    period_type: "offcpu",
    period_unit: "nanoseconds",
};

/// Time in system calls, on CPUs and off them, by system call and the stack that made it.
pub const SYSCALLS: ProfileKind = ProfileKind {
    name: "syscalls",
    sample_type: "syscalls",
    unit: "nanoseconds",
    period_type: "syscalls",
    period_unit: "nanoseconds",
};

/// Memory allocated and not freed, by the stack that allocated it.
pub const ALLOC: ProfileKind = ProfileKind {
    name: "alloc",
    sample_type: "inuse_space",
    unit: "bytes",
    period_type: "space",
    period_unit: "bytes",
};

/// Page faults, sampled, by the stack that took them.
pub const FAULTS: ProfileKind = ProfileKind {
    name: "faults",
    sample_type: "page_faults",
    unit: "count",
    period_type: "page_faults",
    period_unit: "count",
};

/// Every kind of profile.
pub const KINDS: [ProfileKind; 5] = [CPU, OFF_CPU, SYSCALLS, ALLOC, FAULTS];

/// Index into [`Tables::modules`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ModuleId(pub u32);

/// Index into [`Tables::stacks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StackId(pub u32);

/// Where code comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ModuleKind {
    /// The running kernel; addresses are kernel virtual addresses.
    Kernel,
    /// A mapped file; addresses are ELF virtual addresses where the file is ELF, file offsets otherwise.
    File,
    /// The kernel's code page in every process; addresses are ELF virtual addresses.
    Vdso,
    /// Executable memory without a file (JIT code) of this process; addresses are absolute.
    Jit(u32),
    /// Addresses of this process in no known mapping; absolute.
    Unmapped(u32),
    /// Stands for a stack that was not taken.
    NotTaken,
    /// Not code: the system call that a stack made, by its number; the outermost frame.
    Syscall,
    /// Stands between a stack that blocked and that of what woke it, whom its path names.
    Waker,
}

/// A piece of code that addresses are relative to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Module {
    /// Where the code comes from.
    pub kind: ModuleKind,
    /// Path as the process sees it, or a name in brackets.
    pub path: String,
    /// Inode of the file, zero for none: tells a replaced file from its successor where neither has a build id.
    pub inode: u64,
    /// GNU build id; empty if there is none.
    pub build_id: Vec<u8>,
}

impl Module {
    /// A module without a file.
    pub fn special(kind: ModuleKind) -> Module {
        let path = match kind {
            ModuleKind::Kernel => "[kernel]",
            ModuleKind::Vdso => "[vdso]",
            ModuleKind::Jit(_) => "[jit]",
            ModuleKind::NotTaken => "[stack not taken]",
            ModuleKind::Syscall => "[system call]",
            ModuleKind::Waker => "[woken]",
            ModuleKind::File | ModuleKind::Unmapped(_) => "[unmapped]",
        };
        Module { kind, path: path.to_owned(), inode: 0, build_id: Vec::new() }
    }

    /// The last component of the path.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }
}

/// One resolved address. For callers it is that of the call's last byte, not of the return: the return address
/// can belong to the next function already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Frame {
    /// Where the code comes from.
    pub module: ModuleId,
    /// Address in it, see [`ModuleKind`].
    pub address: u64,
}

/// How a user stack ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StackEnd {
    /// There is no user stack, or it could not be read.
    #[default]
    None,
    /// It reaches the start of its thread.
    Complete,
    /// Frame pointers were followed; whether they led to the end nobody knows.
    FramePointers,
    /// Cut off in code of which no unwind table is there.
    NoTable,
    /// Cut off at an instruction without unwind information.
    NoRow,
    /// Cut off at unwind information that is not supported.
    Unsupported,
    /// Cut off at memory that could not be read.
    Unreadable,
    /// Cut off where the next frame would not be further out.
    NoProgress,
    /// Cut off after 127 frames.
    TooDeep,
}

impl StackEnd {
    /// Every end.
    pub const ALL: [StackEnd; 9] = [
        StackEnd::None,
        StackEnd::Complete,
        StackEnd::FramePointers,
        StackEnd::NoTable,
        StackEnd::NoRow,
        StackEnd::Unsupported,
        StackEnd::Unreadable,
        StackEnd::NoProgress,
        StackEnd::TooDeep,
    ];

    /// Name in machine-readable output.
    pub fn id(self) -> &'static str {
        match self {
            StackEnd::None => "none",
            StackEnd::Complete => "complete",
            StackEnd::FramePointers => "frame_pointers",
            StackEnd::NoTable => "no_table",
            StackEnd::NoRow => "no_row",
            StackEnd::Unsupported => "unsupported",
            StackEnd::Unreadable => "unreadable",
            StackEnd::NoProgress => "no_progress",
            StackEnd::TooDeep => "too_deep",
        }
    }
}

impl fmt::Display for StackEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StackEnd::None => "no user stack",
            StackEnd::Complete => "complete",
            StackEnd::FramePointers => "by frame pointers",
            StackEnd::NoTable => "cut off in code without an unwind table",
            StackEnd::NoRow => "cut off in code without unwind information",
            StackEnd::Unsupported => "cut off at unwind information that is not supported",
            StackEnd::Unreadable => "cut off at unreadable memory",
            StackEnd::NoProgress => "cut off where the next frame makes no sense",
            StackEnd::TooDeep => "cut off after 127 frames",
        })
    }
}

/// A stack: kernel frames, then user frames, innermost first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stack {
    /// All frames.
    pub frames: Box<[Frame]>,
    /// How many of them are the kernel's.
    pub kernel_frames: u16,
    /// How the user's part ends.
    pub end: StackEnd,
}

/// One thread of one process, as far as outputs care.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ThreadKey {
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
}

/// One sample of any probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// CLOCK_MONOTONIC, ns.
    pub time_ns: u64,
    /// Whose it is.
    pub thread: ThreadKey,
    /// CPU it was taken on.
    pub cpu: u32,
    /// Interned stack.
    pub stack: StackId,
    /// Weight in the profile kind's unit.
    pub weight: u64,
    /// What the thread waited for: says that this belongs to [`OFF_CPU`].
    pub cause: Option<WaitCause>,
}

impl Sample {
    /// The profile it belongs to.
    pub fn kind(&self, tables: &Tables) -> ProfileKind {
        let outermost = tables.stack(self.stack).frames.last();
        match (self.cause, outermost.map(|frame| &tables.module(frame.module).kind)) {
            (Some(_), _) => OFF_CPU,
            (None, Some(ModuleKind::Syscall)) => SYSCALLS,
            (None, _) => CPU,
        }
    }
}

/// Whole values behind the ids in samples: two different stacks never share an id.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// Every module seen.
    pub modules: IndexSet<Module, FxBuildHasher>,
    /// Every stack seen.
    pub stacks: IndexSet<Stack, FxBuildHasher>,
    /// Every thread seen, with its last name.
    pub threads: IndexMap<ThreadKey, String, FxBuildHasher>,
}

impl Tables {
    /// The id of `module`, new or known.
    pub fn module_id(&mut self, module: Module) -> ModuleId {
        ModuleId(self.modules.insert_full(module).0 as u32)
    }

    /// The module behind an id of this table.
    pub fn module(&self, id: ModuleId) -> &Module {
        &self.modules[id.0 as usize]
    }

    /// The stack behind an id of this table.
    pub fn stack(&self, id: StackId) -> &Stack {
        &self.stacks[id.0 as usize]
    }

    /// Last known name of a thread.
    pub fn thread_name(&self, thread: ThreadKey) -> &str {
        self.threads.get(&thread).map_or("?", String::as_str)
    }

    /// Name of a process: that of its main thread, or else of `thread`.
    pub fn process_name(&self, thread: ThreadKey) -> &str {
        self.threads
            .get(&ThreadKey { pid: thread.pid, tid: thread.pid })
            .map_or_else(|| self.thread_name(thread), String::as_str)
    }
}

/// Why samples are missing or worth less. A lost sample is in no total; a degraded one is, with a part missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Lost: the ring buffer between kernel and agent was full.
    RingBufferFull,
    /// Lost: more distinct stacks than the agent keeps.
    TooManyStacks,
    /// Lost: a record that makes no sense.
    BadRecord,
    /// Lost processes, not samples: a new process could not be followed because the target set is full.
    TargetsFull,
    /// Degraded: the kernel stack could not be read.
    KernelStackFailed,
    /// Degraded: the user stack could not be read.
    UserStackFailed,
    /// Degraded: deeper than 127 frames, the outermost are missing.
    StackTruncated,
    /// Degraded: unwinding the user stack stopped before its end (and before 127 frames).
    UnwindFailed,
    /// Degraded: the process was gone before its mappings could be read.
    ProcessGone,
    /// Degraded: at least one address of the sample has no symbol.
    SymbolMissing,
    /// Degraded, not counted in samples: notices of new mappings that the kernel dropped.
    MappingNoticesLost,
    /// Lost threads, not samples: their time is in no account because there are too many.
    ThreadsFull,
    /// Lost blocks, not samples: their time is in no off-CPU profile because it has too many stacks.
    OffCpuFull,
    /// Degraded, not counted in samples: blocks whose stack was not taken, to keep the cost down.
    OffCpuStacksSkipped,
    /// Degraded, not counted in samples: long waits that are in all totals but are not listed, because there were
    /// too many at once.
    WaitsUntold,
    /// Lost records other than samples: the ring buffer was full.
    RecordsLost,
    /// Lost objects, not samples: not watched, because too many live at once.
    ObjectsFull,
    /// Lost objects, not samples: their stack is one too many.
    AllocStacksFull,
    /// Lost objects, not samples: another thread's call was in the way, or the stack could not be taken.
    AllocClash,
    /// Degraded, not counted in samples: objects whose end was not seen, only that their address was given out again.
    FreesImplied,
    /// Lost system calls, not samples: they are in no count, because there are too many kinds of them.
    CallsFull,
    /// Lost descriptors, not samples: what was read and written by them is in no account.
    IoFull,
    /// Degraded, not counted in samples: slow system calls that are in all totals but are not listed.
    SlowCallsUntold,
}

impl Loss {
    /// Every reason, in the order of reports.
    pub const ALL: [Loss; 23] = [
        Loss::RingBufferFull,
        Loss::TooManyStacks,
        Loss::BadRecord,
        Loss::TargetsFull,
        Loss::KernelStackFailed,
        Loss::UserStackFailed,
        Loss::StackTruncated,
        Loss::UnwindFailed,
        Loss::ProcessGone,
        Loss::SymbolMissing,
        Loss::MappingNoticesLost,
        Loss::ThreadsFull,
        Loss::OffCpuFull,
        Loss::OffCpuStacksSkipped,
        Loss::WaitsUntold,
        Loss::RecordsLost,
        Loss::ObjectsFull,
        Loss::AllocStacksFull,
        Loss::AllocClash,
        Loss::FreesImplied,
        Loss::CallsFull,
        Loss::IoFull,
        Loss::SlowCallsUntold,
    ];

    /// Whether it counts samples, not other things.
    pub fn counts_samples(self) -> bool {
        !matches!(
            self,
            Loss::TargetsFull
                | Loss::MappingNoticesLost
                | Loss::ThreadsFull
                | Loss::OffCpuFull
                | Loss::OffCpuStacksSkipped
                | Loss::WaitsUntold
                | Loss::RecordsLost
                | Loss::ObjectsFull
                | Loss::AllocStacksFull
                | Loss::AllocClash
                | Loss::FreesImplied
                | Loss::CallsFull
                | Loss::IoFull
                | Loss::SlowCallsUntold
        )
    }

    /// Whether a sample is missing from the totals for this reason.
    pub fn loses_sample(self) -> bool {
        matches!(self, Loss::RingBufferFull | Loss::TooManyStacks | Loss::BadRecord)
    }

    /// Name in machine-readable output.
    pub fn id(self) -> &'static str {
        match self {
            Loss::RingBufferFull => "ring_buffer_full",
            Loss::TooManyStacks => "too_many_stacks",
            Loss::BadRecord => "bad_record",
            Loss::TargetsFull => "targets_full",
            Loss::KernelStackFailed => "kernel_stack_failed",
            Loss::UserStackFailed => "user_stack_failed",
            Loss::StackTruncated => "stack_truncated",
            Loss::UnwindFailed => "unwind_failed",
            Loss::ProcessGone => "process_gone",
            Loss::SymbolMissing => "symbol_missing",
            Loss::MappingNoticesLost => "mapping_notices_lost",
            Loss::ThreadsFull => "threads_full",
            Loss::OffCpuFull => "offcpu_full",
            Loss::OffCpuStacksSkipped => "offcpu_stacks_skipped",
            Loss::WaitsUntold => "waits_untold",
            Loss::RecordsLost => "records_lost",
            Loss::ObjectsFull => "objects_full",
            Loss::AllocStacksFull => "alloc_stacks_full",
            Loss::AllocClash => "alloc_clash",
            Loss::FreesImplied => "frees_implied",
            Loss::CallsFull => "calls_full",
            Loss::IoFull => "io_full",
            Loss::SlowCallsUntold => "slow_calls_untold",
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Loss::RingBufferFull => "ring buffer full",
            Loss::TooManyStacks => "too many distinct stacks",
            Loss::BadRecord => "unreadable record",
            Loss::TargetsFull => "processes not followed, target set full",
            Loss::KernelStackFailed => "kernel stack unreadable",
            Loss::UserStackFailed => "user stack unreadable",
            Loss::StackTruncated => "stack deeper than 127 frames",
            Loss::UnwindFailed => "user stack not unwound to its end",
            Loss::ProcessGone => "process gone before its mappings were read",
            Loss::SymbolMissing => "an address without a symbol",
            Loss::MappingNoticesLost => "notices of new mappings dropped",
            Loss::ThreadsFull => "threads not accounted for, too many",
            Loss::OffCpuFull => "blocks without a place in the off-CPU profile",
            Loss::OffCpuStacksSkipped => "blocks without a stack, to keep the cost down",
            Loss::WaitsUntold => "long waits not listed, too many at once",
            Loss::RecordsLost => "records of waits lost",
            Loss::ObjectsFull => "objects not watched, too many live",
            Loss::AllocStacksFull => "objects not watched, too many stacks",
            Loss::AllocClash => "objects not watched, probes in each other's way",
            Loss::FreesImplied => "frees not seen, known by the address being reused",
            Loss::CallsFull => "system calls not counted, too many kinds",
            Loss::IoFull => "reads and writes not told by descriptor, too many",
            Loss::SlowCallsUntold => "slow system calls not listed, too many at once",
        })
    }
}

/// Counts by reason, in samples unless the reason says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Losses([u64; Loss::ALL.len()]);

impl Losses {
    /// Counts `n` more.
    pub fn add(&mut self, loss: Loss, n: u64) {
        self.0[loss as usize] += n;
    }

    /// Sets a count that is kept elsewhere (in the kernel).
    pub fn set(&mut self, loss: Loss, n: u64) {
        self.0[loss as usize] = n;
    }

    /// The count for a reason.
    pub fn get(&self, loss: Loss) -> u64 {
        self.0[loss as usize]
    }

    /// Samples that are in no total.
    pub fn lost(&self) -> u64 {
        self.iter().filter(|(loss, _)| loss.loses_sample()).map(|(_, n)| n).sum()
    }

    /// Reasons that occurred, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (Loss, u64)> + '_ {
        Loss::ALL.into_iter().map(|loss| (loss, self.get(loss))).filter(|&(_, n)| n > 0)
    }
}
