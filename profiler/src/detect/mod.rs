//! Conclusions from a profile. One file per rule; time is an argument, never read from a clock.

pub mod chatty;
pub mod convoy;
pub mod finding;
pub mod hotspot;
pub mod leak;
pub mod long_wait;
pub mod memory_diff;
pub mod stall;
pub mod storm;
pub mod trend;
