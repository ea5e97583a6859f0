//! Tables that let the kernel programs unwind user stacks: made here from the `.eh_frame` of each mapped file, and Go's own table
//! of functions, in the layout of [`profiler_common::unwind`].
//!
//! [`image`] finds the section in a file, [`eh_frame`] turns its entries into rules, [`go`] those of Go's, [`table`] packs them, and
//! [`walk`] does on the host what the kernel programs do with the result. [`feed`] keeps the kernel's tables what
//! the running processes need.

mod build;
pub mod eh_frame;
pub mod feed;
mod go;
pub mod image;
pub mod outcome;
pub mod rules;
pub mod table;
pub mod walk;

#[cfg(test)]
mod tests;

pub use outcome::{BuildError, Source, Stats};
pub use rules::RuleTable;
pub use table::Table;
