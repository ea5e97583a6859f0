//! What becomes of a file whose table is to be built.

/// Why a file has no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// Not an ELF file.
    #[error("not an ELF file")]
    NotElf,
    /// An ELF file of a kind that cannot be unwound.
    #[error("unsupported ELF file: {0}")]
    Unsupported(&'static str),
    /// Nothing in the file is executable.
    #[error("no code")]
    NoCode,
    /// Neither `.eh_frame` nor `.debug_frame` nor Go's table, or they describe none of the code.
    #[error("no unwind information")]
    NoUnwindInfo,
    /// Only compressed unwind information.
    #[error("the only unwind information is compressed")]
    Compressed,
    /// More than a table may hold.
    #[error("too large: {0}")]
    TooLarge(&'static str),
    /// The file contradicts itself.
    #[error("malformed: {0}")]
    Malformed(&'static str),
}

/// Section that unwind information comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// `.eh_frame`, loaded with the program.
    #[default]
    EhFrame,
    /// `.debug_frame`, debug information.
    DebugFrame,
    /// Go's own table of functions.
    Go,
}

/// What was met while a table was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Section the table is made from.
    pub source: Source,
    /// Functions with unwind information.
    pub fdes: u32,
    /// Functions that Go's own table describes.
    pub go_functions: u32,
    /// Entries that could not be understood.
    pub skipped: u32,
    /// Stretches of code whose rule no [`Rule`](profiler_common::unwind::Rule) can express.
    pub unsupported: u64,
    /// Rules that the rule table had no room for.
    pub refused: u64,
    /// The section ends within an entry.
    pub truncated: bool,
}
