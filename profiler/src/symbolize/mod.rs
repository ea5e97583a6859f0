//! From addresses to names, one module at a time and never per sample. Everything behind one trait: the live
//! symbolizer, the names kept in a recording, and fakes in tests.

mod extents;
mod live;

pub use live::{LiveSymbolizer, SymbolCache};

pub use crate::model::function::{Detail, Function, Symbolizer};
