//! The kernel programs that breakpoints in allocators run, and where these are put.

use profiler_common::alloc::Call;

use crate::{
    kernel::uprobe::{Breakpoint, Program},
    probe::alloc::allocators::Library,
};

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

/// What to put into a library: at the functions that return something, also where they do.
pub fn breakpoints(library: &Library) -> Vec<Breakpoint> {
    let mut breakpoints = Vec::new();
    for function in &library.functions {
        let returns = function.call.returns() && function.exits.is_empty();
        let at = |file_offset, program| Breakpoint {
            path: library.path.clone(),
            file_offset,
            program,
            cookie: function.call as u64,
            emulated: function.emulated,
            frequent: matches!(
                function.call,
                Call::Malloc | Call::New | Call::Calloc | Call::Realloc | Call::Free
            ) && !function.name.contains("valloc"),
        };
        if returns {
            let program = if function.call == Call::Mmap { &MAP } else { &RETURN };
            breakpoints.push(at(function.file_offset, program));
        }
        breakpoints.extend(function.exits.iter().map(|&exit| at(exit, &LEAVE)));
        let first = match function.call {
            Call::Free => &FREE,
            Call::Munmap => &UNMAP,
            _ => &ENTER,
        };
        breakpoints.push(at(function.file_offset, first));
    }
    breakpoints
}
