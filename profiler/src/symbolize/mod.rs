//! From addresses to names, one module at a time and never per sample. Everything behind one trait: the live
//! symbolizer, the names kept in a recording, and fakes in tests.

use crate::model::stack::{Module, ModuleId};

mod extents;
mod live;

pub use crate::model::function::Function;
pub use live::{LiveSymbolizer, SymbolCache};

/// How much to find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Names out of symbol tables: cheap in time and memory.
    Names,
    /// Inlined functions and source lines too, out of debug information, which costs up to a hundred times more.
    Full,
}

/// Finds the functions at addresses of one module.
pub trait Symbolizer {
    /// For each address its functions, innermost inlined one first. A function without a symbol is
    /// [`Function::unnamed`]; `None` where it is not known which function it is.
    fn functions(
        &mut self,
        id: ModuleId,
        module: &Module,
        addresses: &[u64],
        detail: Detail,
    ) -> Vec<Option<Vec<Function>>>;
}
