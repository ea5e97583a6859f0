//! From addresses to names, one module at a time and never per sample. Everything behind one trait: the live
//! symbolizer, the names kept in a recording, and fakes in tests.

pub mod debuginfod;
mod extents;
pub mod facts;
pub mod go;
mod live;
pub mod sources;

pub use live::{LiveSymbolizer, SymbolCache};

pub use crate::model::function::{Detail, Function, Symbolizer};
