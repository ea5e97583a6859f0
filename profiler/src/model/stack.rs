//! Frames, stacks, threads and where code comes from, interned in [`Tables`].

use indexmap::{IndexMap, IndexSet};
pub use profiler_common::cpu::StackEnd;
use rustc_hash::FxBuildHasher;
use serde::{Deserialize, Serialize};

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
