//! A recording of what is normal, which a run is compared with (`--baseline`).

use std::path::Path;

use super::load::{Replayed, load_what_there_is};
use crate::{
    detect::{compare::compare, rule::Overrides},
    error::Error,
    model::{comparison::Baseline, measured::Measured},
};

/// What is normal.
pub struct Normal {
    file: String,
    recording: Replayed,
}

impl Normal {
    /// Reads it.
    pub fn load(path: &Path) -> Result<Normal, Error> {
        Ok(Normal {
            file: path.display().to_string(),
            recording: load_what_there_is(path, &Overrides::default())?,
        })
    }

    /// What differs from it.
    pub fn compare(&self, now: &Measured<'_>) -> Baseline {
        Baseline { file: self.file.clone(), comparison: compare(self.recording.measured(), *now) }
    }
}
