//! Frames, stacks, threads and where code comes from, interned in [`Tables`].

use std::fmt;

use indexmap::{IndexMap, IndexSet};
use profiler_common::COMM_LEN;
use rustc_hash::FxBuildHasher;
use serde::{Deserialize, Serialize};

use crate::model::function::Function;

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
    /// Functions of a language runtime, by whatever code they run; an address is a number in [`Tables::managed`].
    Managed(Language),
}

/// A language whose functions are named by asking its runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Language {
    /// V8's.
    JavaScript,
    /// CPython's.
    Python,
    /// HotSpot's.
    Java,
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Language::JavaScript => "JavaScript",
            Language::Python => "Python",
            Language::Java => "Java",
        })
    }
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
            ModuleKind::Managed(Language::JavaScript) => "[JavaScript]",
            ModuleKind::Managed(Language::Python) => "[Python]",
            ModuleKind::Managed(Language::Java) => "[Java]",
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

/// A thread's name as the kernel has it, up to the first NUL.
pub fn comm(comm: &[u8; COMM_LEN]) -> String {
    let end = comm.iter().position(|&byte| byte == 0).unwrap_or(comm.len());
    crate::text::clean(&comm[..end])
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
    /// Functions of language runtimes, with the module of their language; of each frame the innermost inlined one first.
    pub managed: IndexSet<(ModuleId, Box<[Function]>), FxBuildHasher>,
}

/// Functions of language runtimes that are kept apart, each at each of its lines: some 50 MB.
const MOST_MANAGED: usize = 262_144;

impl Tables {
    /// The id of `module`, new or known.
    pub fn module_id(&mut self, module: Module) -> ModuleId {
        ModuleId(self.modules.insert_full(module).0 as u32)
    }

    /// The module behind an id of this table.
    pub fn module(&self, id: ModuleId) -> &Module {
        &self.modules[id.0 as usize]
    }

    /// The frame of these functions of a language runtime; `None` if there is no room for it.
    pub fn managed_frame(&mut self, module: ModuleId, functions: Vec<Function>) -> Option<Frame> {
        let functions = (module, functions.into());
        if self.managed.len() >= MOST_MANAGED && !self.managed.contains(&functions) {
            return None;
        }
        Some(Frame { module, address: self.managed.insert_full(functions).0 as u64 })
    }

    /// The functions behind a frame of a language runtime.
    pub fn managed(&self, frame: Frame) -> Option<&[Function]> {
        Some(&self.managed.get_index(usize::try_from(frame.address).ok()?)?.1)
    }

    /// Whether there are functions of language runtimes: a recording has them elsewhere.
    pub fn has_managed(&self) -> bool {
        !self.managed.is_empty()
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
