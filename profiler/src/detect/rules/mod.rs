//! A file per rule: parameters, judgement, words, advice, documentation, tests.

pub mod chatty_io;
pub mod error_storm;
pub mod event_loop_stall;
pub mod leak;
pub mod lock_convoy;
pub mod long_wait;
pub mod memory_growing;
