//! From addresses to names, one module at a time and never per sample. Everything behind one trait: the live
//! symbolizer, the names kept in a recording, and fakes in tests.

use serde::{Deserialize, Serialize};

use crate::model::stack::{Module, ModuleId, ModuleKind};

mod extents;
mod live;
mod perf_map;

pub use live::{LiveSymbolizer, SymbolCache};
pub use perf_map::PerfMap;

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
    /// Demangled name, or `[module+0xstart]` for a function without one.
    pub name: String,
    /// Source file.
    pub file: Option<String>,
    /// Line in it that the address belongs to.
    pub line: Option<u32>,
}

impl Function {
    /// The same, with names that come from a file of the target made harmless.
    pub fn cleaned(self) -> Function {
        let clean = |text: String| {
            match crate::text::clean_text(&text) {
                std::borrow::Cow::Borrowed(_) => None,
                std::borrow::Cow::Owned(clean) => Some(clean),
            }
            .unwrap_or(text)
        };
        Function { name: clean(self.name), file: self.file.map(clean), line: self.line }
    }

    /// What to call a function without a symbol that starts at an address of a module.
    pub fn unnamed(module: &Module, start: u64) -> Function {
        let name = format!("[{}+{start:#x}]", module.name().trim_matches(['[', ']']));
        Function { name, file: None, line: None }
    }

    /// What to call an address of which nothing is known.
    pub fn unknown(module: &Module, address: u64) -> Function {
        let name = match module.kind {
            ModuleKind::File | ModuleKind::Vdso => return Function::unnamed(module, address),
            ModuleKind::Syscall => crate::model::abi::name(address as i32),
            // An address that belongs to nothing tells nobody anything.
            _ => module.path.clone(),
        };
        Function { name, file: None, line: None }
    }

    /// Whether the name says only where the code is.
    pub fn is_unnamed(&self, module: &Module) -> bool {
        let inner = self.name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        match (inner, &module.kind) {
            (_, ModuleKind::NotTaken | ModuleKind::Waker | ModuleKind::Syscall) | (None, _) => false,
            (Some(_), ModuleKind::Unmapped(_)) => true,
            (Some(inner), _) => {
                let start = inner.rsplit_once("+0x").map(|(_, start)| start);
                self.name == module.path || start.is_some_and(|start| u64::from_str_radix(start, 16).is_ok())
            }
        }
    }
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
