//! What the code at an address is called.

use serde::{Deserialize, Serialize};

use crate::model::{
    abi,
    module::{Module, ModuleId, ModuleKind},
    text,
};

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
    /// Where it begins in the file, if that is known: then functions of the same name are told apart by it.
    pub start: Option<Start>,
}

/// Where a function begins in its file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Start {
    /// Line, from one.
    pub line: u32,
    /// Column, from one.
    pub column: u32,
}

/// See [`Function::profiler_itself`].
pub const PROFILER_ITSELF: &str = "[the profiler itself]";

impl Function {
    /// What tells it from all other functions of its module: its name, and where it begins if that is known.
    pub fn identity(&self) -> (&str, Option<(&str, Start)>) {
        (&self.name, self.start.map(|start| (self.file.as_deref().unwrap_or_default(), start)))
    }

    /// The same, with names that come from a file of the target made harmless.
    pub fn cleaned(self) -> Function {
        let clean = |name: String| match text::clean_text(&name) {
            std::borrow::Cow::Borrowed(_) => name,
            std::borrow::Cow::Owned(clean) => clean,
        };
        Function { name: clean(self.name), file: self.file.map(clean), ..self }
    }

    /// What to call a function without a symbol that starts at an address of a module.
    pub fn unnamed(module: &Module, start: u64) -> Function {
        let name = format!("[{}+{start:#x}]", module.name().trim_matches(['[', ']']));
        Function { name, ..Function::default() }
    }

    /// What to call the code that a signal handler returns to, as debuggers do.
    pub fn signal_frame() -> Function {
        Function { name: "<signal handler called>".to_owned(), ..Function::default() }
    }

    /// Code of the profiler's that runs in the kernel, and whatever that calls.
    pub fn profiler_itself() -> Function {
        Function { name: PROFILER_ITSELF.to_owned(), ..Function::default() }
    }

    /// Whether this is the profiler, and not the target.
    pub fn is_profiler_itself(&self) -> bool {
        self.name == PROFILER_ITSELF
    }

    /// What to call an address of which nothing is known.
    pub fn unknown(module: &Module, address: u64) -> Function {
        let name = match module.kind {
            ModuleKind::File | ModuleKind::Vdso => return Function::unnamed(module, address),
            ModuleKind::Syscall => abi::name(address as i32),
            ModuleKind::Managed(language) => format!("[{language} function {address}]"),
            // An address that belongs to nothing tells nobody anything.
            _ => module.path.clone(),
        };
        Function { name, ..Function::default() }
    }

    /// Whether the name says only where the code is.
    pub fn is_unnamed(&self, module: &Module) -> bool {
        let inner = self.name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        match (inner, &module.kind) {
            (_, ModuleKind::NotTaken | ModuleKind::Waker | ModuleKind::Syscall) | (None, _) => false,
            (Some(_), ModuleKind::Unmapped) => true,
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
