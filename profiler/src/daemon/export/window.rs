//! What is sent.

use crate::model::report::Profile;

/// A window of a target.
#[derive(Clone, Copy)]
pub struct Window<'a> {
    /// Name of the target.
    pub target: &'a str,
    /// Where its CPU time went.
    pub profile: &'a Profile,
}
