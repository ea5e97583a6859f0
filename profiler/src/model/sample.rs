//! The types every stage speaks. A probe's record becomes a [`Sample`] once its addresses are resolved to
//! modules and its stack is interned; samples add up to a [`Snapshot`](crate::model::totals::Snapshot).

use serde::{Deserialize, Serialize};

use crate::model::{
    cause::WaitCause,
    kind::{CPU, OFF_CPU, ProfileKind, SYSCALLS},
    stack::{ModuleKind, StackId, Tables, ThreadKey},
};

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
        let outermost = tables.stacks.outermost(self.stack);
        match (self.cause, outermost.map(|frame| &tables.module(frame.module).kind)) {
            (Some(_), _) => OFF_CPU,
            (None, Some(ModuleKind::Syscall)) => SYSCALLS,
            (None, _) => CPU,
        }
    }
}
