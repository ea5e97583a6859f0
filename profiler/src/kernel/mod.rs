//! The kernel boundary: everything that needs rights. Loads the programs, hands out their maps, reads the
//! kernel's notices of new mappings; `preflight` says beforehand what would work.

pub mod alloc;
pub mod btf;
pub mod function_hooks;
pub mod load;
pub mod preflight;
pub mod sched;
pub mod sideband;
pub mod syscall;
pub mod trap;
pub mod unwind;
pub mod uprobe;

pub use load::Kernel;
