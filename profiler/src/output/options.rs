//! Options of every format.

/// What applies to all renderings.
#[derive(Clone, Copy, Debug, Default)]
pub struct RenderOptions {
    /// Keep threads apart.
    pub threads: bool,
    /// Functions in a table, if it is said how many.
    pub top: Option<usize>,
    /// All tables, costs and losses, not only the answer.
    pub details: bool,
}
