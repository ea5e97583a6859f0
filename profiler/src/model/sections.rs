//! What is known of a run and is not made of samples.

use crate::model::{memory::Memory, syscall::Calls, vitals::Vitals, wait::Blocking};

/// What is known so far and is not made of samples.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sections<'a> {
    /// Where the time went.
    pub blocking: Option<&'a Blocking>,
    /// How memory grew.
    pub memory: Option<&'a Memory>,
    /// System calls.
    pub calls: Option<&'a Calls>,
    /// What was seen from outside.
    pub vitals: Option<&'a Vitals>,
}
