//! From addresses to names, one module at a time and never per sample. Everything behind one trait: the live
//! symbolizer, the names kept in a recording, and fakes in tests.

use serde::{Deserialize, Serialize};

use crate::model::stack::{Module, ModuleId, ModuleKind};

mod live;
mod perf_map;

pub use live::{LiveSymbolizer, SymbolCache};

/// How much to find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Names out of symbol tables: cheap in time and memory.
    Names,
    /// Inlined functions and source lines too, out of debug information, which costs up to a hundred times more.
    Full,
}

/// One function of one frame.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Function {
    /// Demangled name, or `[module+0xaddress]`.
    pub name: String,
    /// Source file.
    pub file: Option<String>,
    /// Line in it that the address belongs to.
    pub line: Option<u32>,
}

impl Function {
    /// What to call an address without a symbol.
    pub fn unknown(module: &Module, address: u64) -> Function {
        let name = match module.kind {
            ModuleKind::File => format!("[{}+{address:#x}]", module.name()),
            ModuleKind::NotTaken | ModuleKind::Waker => module.path.clone(),
            ModuleKind::Syscall => crate::model::abi::name(address as i32),
            _ => format!("[{}+{address:#x}]", module.path.trim_matches(['[', ']'])),
        };
        Function { name, file: None, line: None }
    }
}

/// Finds the functions at addresses of one module.
pub trait Symbolizer {
    /// For each address its functions, innermost inlined one first; `None` where there is no symbol.
    fn functions(
        &mut self,
        id: ModuleId,
        module: &Module,
        addresses: &[u64],
        detail: Detail,
    ) -> Vec<Option<Vec<Function>>>;
}
