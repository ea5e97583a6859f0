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

/// Stacks by their numbers, each once and 4 bytes a frame: a run keeps 100,000 and more, of the same few frames.
#[derive(Clone, Debug, Default)]
pub struct Stacks {
    frames: IndexSet<Frame, FxBuildHasher>,
    stacks: IndexSet<Packed, FxBuildHasher>,
}

/// A stack whose frames are numbers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Packed {
    frames: Box<[u32]>,
    kernel_frames: u16,
    end: StackEnd,
}

impl Stacks {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.stacks.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.stacks.is_empty()
    }

    /// Adds a stack, and says whether it is new.
    pub fn insert(&mut self, stack: &Stack) -> (StackId, bool) {
        let frames = stack.frames.iter().map(|&frame| self.frames.insert_full(frame).0 as u32).collect();
        let packed = Packed { frames, kernel_frames: stack.kernel_frames, end: stack.end };
        let (index, new) = self.stacks.insert_full(packed);
        (StackId(index as u32), new)
    }

    /// The number of a stack, if it has one.
    pub fn find(&self, stack: &Stack) -> Option<StackId> {
        let number = |frame| Some(self.frames.get_index_of(frame)? as u32);
        let frames = stack.frames.iter().map(number).collect::<Option<_>>()?;
        let packed = Packed { frames, kernel_frames: stack.kernel_frames, end: stack.end };
        Some(StackId(self.stacks.get_index_of(&packed)? as u32))
    }

    /// The stack of a number.
    pub fn get(&self, id: StackId) -> Option<Stack> {
        let Packed { frames, kernel_frames, end } = self.stacks.get_index(id.0 as usize)?;
        let frames = frames.iter().map(|&frame| self.frames[frame as usize]).collect();
        Some(Stack { frames, kernel_frames: *kernel_frames, end: *end })
    }

    /// Their frames, each once, but the first so many: a frame keeps its place.
    pub fn frames_from(&self, first: usize) -> impl ExactSizeIterator<Item = Frame> + '_ {
        self.frames.iter().skip(first).copied()
    }

    /// How the user's part of the stack of a number ends.
    pub fn end(&self, id: StackId) -> StackEnd {
        self.stacks.get_index(id.0 as usize).map_or(StackEnd::None, |stack| stack.end)
    }

    /// The outermost frame of the stack of a number.
    pub fn outermost(&self, id: StackId) -> Option<Frame> {
        Some(self.frames[*self.stacks.get_index(id.0 as usize)?.frames.last()? as usize])
    }
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
    pub stacks: Stacks,
    /// Every thread seen, with its last name.
    pub threads: IndexMap<ThreadKey, String, FxBuildHasher>,
    /// Functions of language runtimes, with the module of their language; of each frame the innermost inlined one first.
    pub managed: IndexSet<(ModuleId, Box<[Function]>), FxBuildHasher>,
}

/// Modules from which on code without a file is that of no process: a machine that starts programs all day has ever more of them.
const MOST_MODULES: usize = 16_384;

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
    pub fn stack(&self, id: StackId) -> Stack {
        self.stacks.get(id).unwrap_or(Stack { frames: Box::default(), kernel_frames: 0, end: StackEnd::None })
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

    #[test]
    fn a_stack_comes_back_as_it_was() {
        let frame = |address| Frame { module: ModuleId(1), address };
        let stack = |addresses: &[u64], kernel_frames, end| Stack {
            frames: addresses.iter().map(|&address| frame(address)).collect(),
            kernel_frames,
            end,
        };
        let all = [
            stack(&[7, 8, 9], 0, StackEnd::Complete),
            stack(&[9, 8, 7], 0, StackEnd::Complete),
            stack(&[7, 8, 9], 1, StackEnd::Complete),
            stack(&[7, 8, 9], 0, StackEnd::None),
            stack(&[], 0, StackEnd::None),
        ];
        let mut stacks = Stacks::default();
        assert!(stacks.is_empty());
        for (index, stack) in all.iter().enumerate() {
            assert_eq!(stacks.find(stack), None);
            assert_eq!(stacks.insert(stack), (StackId(index as u32), true));
        }
        assert_eq!(stacks.len(), all.len());
        for (index, stack) in all.iter().enumerate() {
            let id = StackId(index as u32);
            assert_eq!(stacks.insert(stack), (id, false));
            assert_eq!(stacks.find(stack), Some(id));
            assert_eq!((stacks.get(id).as_ref(), stacks.end(id)), (Some(stack), stack.end));
            assert_eq!(stacks.outermost(id), stack.frames.last().copied());
        }
        assert_eq!(stacks.get(StackId(all.len() as u32)), None);
        assert_eq!(stacks.frames_from(1).map(|frame| frame.address).collect::<Vec<_>>(), [8, 9]);
    }
}
