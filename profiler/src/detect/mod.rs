//! Conclusions from a profile. One file per rule; time is an argument, never read from a clock.

pub mod chatty;
pub mod convoy;
pub mod finding;
pub mod hotspot;
pub mod long_wait;
pub mod stall;
pub mod storm;
pub mod threshold;
