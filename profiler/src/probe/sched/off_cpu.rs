//! Time off CPUs on its way to samples.

use crate::model::{
    cause::WaitCause,
    stack::{Frame, Module, ModuleKind, Stack, StackId, Tables, ThreadKey},
    totals::intern_stack,
};

/// What woke a thread.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Waker {
    /// The thread, or that it was an interrupt.
    pub who: String,
    /// Where it did so, if the stack was taken.
    pub stack: Option<StackId>,
}

/// Off-CPU time since this was last asked.
#[derive(Clone, Debug)]
pub struct OffCpuSample {
    /// Whose.
    pub thread: ThreadKey,
    /// Where, if the stack was taken.
    pub stack: Option<StackId>,
    /// What for.
    pub cause: WaitCause,
    /// What ended it, if that is known.
    pub waker: Option<Waker>,
    /// How long, ns.
    pub ns: u64,
}

/// A stack that blocked, continued by that of what woke it, from the outside in: read from the root, first comes who
/// waited, then where, then who ended it.
pub fn with_waker(stack: StackId, waker: &Waker, tables: &mut Tables) -> Option<StackId> {
    let special = Module::special(ModuleKind::Waker);
    let module = tables.module_id(Module { path: format!("[woken by {}]", waker.who), ..special });
    let blocked = tables.stack(stack);
    let woke = waker.stack.map_or_else(Box::default, |stack| tables.stack(stack).frames);
    let frames = woke.iter().rev().copied();
    let frames = frames.chain([Frame { module, address: 0 }]).chain(blocked.frames.iter().copied());
    let stack = Stack { frames: frames.collect(), kernel_frames: 0, end: blocked.end };
    intern_stack(tables, stack)
}
