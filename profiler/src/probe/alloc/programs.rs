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
/// When mmap has returned.
pub static MAP: Program = Program { name: "alloc_map", at_return: true };
/// Before something is unmapped.
pub static UNMAP: Program = Program { name: "alloc_unmap", at_return: false };

/// All of them, in the order in which breakpoints are put in place. What frees comes first: then no object is watched whose
/// end would not be seen.
pub static PROGRAMS: [&Program; 6] = [&FREE, &UNMAP, &RETURN, &MAP, &LEAVE, &ENTER];
