//! What the command line can ask for besides profiling, a file each.

pub mod daemon;
pub mod diff;
pub mod doctor;
pub mod replay;
pub mod rules;
