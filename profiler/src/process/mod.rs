//! What processes have mapped: from /proc when they are first seen, from the kernel's notices afterwards. Turns
//! raw addresses into [`Frame`](crate::model::stack::Frame)s. The /proc root is injected, so tests need no rights.

pub mod anonymous;
pub mod backlog;
pub mod cgroups;
pub mod clock;
pub mod elf;
pub mod go;
pub mod hsperf;
pub mod jit;
pub mod launch;
pub mod life;
pub mod limits;
pub mod mapped;
pub mod maps;
pub mod memory;
pub mod network;
pub mod notice;
pub mod objects;
pub mod open;
pub mod other_ends;
pub mod privileges;
pub mod quota;
pub mod redact;
mod regions;
pub mod room;
pub mod shown;
pub mod sockdiag;
pub mod started;
pub mod table;
pub mod target;
pub mod targets;
pub mod tcp;
pub mod usage;
mod vdso;
pub mod vitals;

pub use table::ProcessTable;
