//! Conclusions from a profile. One file per rule; time is an argument, never read from a clock.

pub mod hotspot;
