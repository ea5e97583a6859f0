//! A run with its samples.

use crate::model::{report::Run, sample::Sample, stack::Tables};

/// A run and what it is made of: a run alone does not know when its samples were.
#[derive(Clone, Copy)]
pub struct Measured<'a> {
    /// The run.
    pub run: &'a Run,
    /// Its samples.
    pub samples: &'a [Sample],
    /// The values behind their ids.
    pub tables: &'a Tables,
}
