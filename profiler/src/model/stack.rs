//! Frames, stacks and threads, interned in [`Tables`].

use indexmap::{IndexMap, IndexSet};
use profiler_common::COMM_LEN;
pub use profiler_common::cpu::StackEnd;
use rustc_hash::FxBuildHasher;
use serde::{Deserialize, Serialize};

pub use crate::model::module::{Language, Module, ModuleId, ModuleKind};
use crate::model::{function::Function, text};

/// Index into [`Tables::stacks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StackId(pub u32);

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

impl ThreadKey {
    /// Stands for threads that are added up. Process 0 is the kernel's own idle loop, which is never sampled.
    pub const OTHERS: ThreadKey = ThreadKey { pid: 0, tid: 0 };
}

/// A thread's name as the kernel has it, up to the first NUL.
pub fn comm(comm: &[u8; COMM_LEN]) -> String {
    let end = comm.iter().position(|&byte| byte == 0).unwrap_or(comm.len());
    text::clean(&comm[..end])
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

/// Modules from which on code without a file is that of no process: a machine that starts programs all day has ever more of them.
const MOST_MODULES: usize = 65_536;

/// Functions of language runtimes that are kept apart, each at each of its lines: some 50 MB.
const MOST_MANAGED: usize = 262_144;

impl Tables {
    /// The id of `module`, new or known. Where there is no room for it, code without a file is that of no known mapping, and who woke a
    /// thread is nobody in particular.
    pub fn module_id(&mut self, module: Module) -> ModuleId {
        let one_for_all = match module.kind {
            ModuleKind::Jit(_) => Some(Module::special(ModuleKind::Unmapped)),
            ModuleKind::Waker => Some(Module::special(ModuleKind::Waker)),
            _ => None,
        };
        let full = self.modules.len() >= MOST_MODULES && !self.modules.contains(&module);
        let module = one_for_all.filter(|_| full).unwrap_or(module);
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
        let unknown = if thread == ThreadKey::OTHERS { "(others)" } else { "?" };
        // Who has not given it a name has that of who started it.
        let main = || self.threads.get(&ThreadKey { pid: thread.pid, tid: thread.pid });
        self.threads.get(&thread).or_else(main).map_or(unknown, String::as_str)
    }

    /// Name of a process: that of its main thread, or else of `thread`.
    pub fn process_name(&self, thread: ThreadKey) -> &str {
        self.threads
            .get(&ThreadKey { pid: thread.pid, tid: thread.pid })
            .map_or_else(|| self.thread_name(thread), String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_without_a_file_is_of_no_process_where_there_are_too_many() {
        let mut tables = Tables::default();
        let mut id = |kind| tables.module_id(Module::special(kind));
        let known = id(ModuleKind::Jit(7));
        (1..=MOST_MODULES as u32).for_each(|pid| _ = id(ModuleKind::Jit(1000 + pid)));
        let none = id(ModuleKind::Unmapped);
        assert_eq!([1 << 20, 1 << 21].map(|pid| id(ModuleKind::Jit(pid))), [none, none]);
        assert_eq!(id(ModuleKind::Jit(7)), known);
        assert_ne!(id(ModuleKind::Vdso), none, "there are few kinds of others");
        let waker = |tables: &mut Tables, who: &str| {
            tables.module_id(Module { path: who.into(), ..Module::special(ModuleKind::Waker) })
        };
        let wakers = ["[woken by a]", "[woken by b]"].map(|who| waker(&mut tables, who));
        assert_eq!(wakers[0], wakers[1]);
    }
}
