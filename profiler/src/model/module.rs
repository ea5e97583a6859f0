//! Where code comes from.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Index into [`Tables::modules`](crate::model::stack::Tables::modules).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ModuleId(pub u32);

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
    /// Addresses in no known mapping; absolute. Of no process: each would make modules and stacks of its own of them.
    Unmapped,
    /// Stands for a stack that was not taken.
    NotTaken,
    /// Not code: the system call that a stack made, by its number; the outermost frame.
    Syscall,
    /// Stands between a stack that blocked and that of what woke it, whom its path names.
    Waker,
    /// Functions of a language runtime, by whatever code they run; an address is a number in [`Tables::managed`](crate::model::stack::Tables::managed).
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
            ModuleKind::File | ModuleKind::Unmapped => "[unmapped]",
        };
        Module { kind, path: path.to_owned(), inode: 0, build_id: Vec::new() }
    }

    /// The last component of the path.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }
}
