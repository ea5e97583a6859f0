//! The kernel programs that breakpoints in allocators run.

use crate::kernel::uprobe::Program;

/// At the beginning of a call.
pub static ENTER: Program = Program { name: "alloc_enter", at_return: false };
/// When it has returned.
pub static RETURN: Program = Program { name: "alloc_return", at_return: true };
/// Before something is freed.
pub static FREE: Program = Program { name: "alloc_free", at_return: false };
/// At a return instruction.
pub static LEAVE: Program = Program { name: "alloc_leave", at_return: false };

/// All of them, in the order in which breakpoints are put in place. What frees comes first: then no object is watched whose
/// end would not be seen.
pub static PROGRAMS: [&Program; 4] = [&FREE, &RETURN, &LEAVE, &ENTER];
