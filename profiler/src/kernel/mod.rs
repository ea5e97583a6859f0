//! The kernel boundary: everything that needs rights. Loads the programs, hands out their maps, reads the
//! kernel's notices of new mappings; `preflight` says beforehand what would work.

pub mod btf;
pub mod costs;
pub mod function_hooks;
pub mod load;
pub mod own;
pub mod perf_event;
pub mod port;
pub mod preflight;
pub mod sideband;
pub mod unwind;
pub mod uprobe;

pub use load::Kernel;
