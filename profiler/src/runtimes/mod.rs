//! Language runtimes: programs whose frames are not told by addresses. See each runtime's own folder.

pub mod exported;
pub mod memory;
pub mod v8;

/// A function of a managed language, where it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ManagedFunction {
    /// Its name.
    pub name: String,
    /// Its source file, if there is one.
    pub file: Option<String>,
    /// Line in it that runs, from one.
    pub line: Option<u32>,
    /// Line and column where the function begins, from one.
    pub start: Option<(u32, u32)>,
}
