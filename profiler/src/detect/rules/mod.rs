//! A file per rule: parameters, judgement, words, advice, documentation, tests.

pub mod answers;
pub mod busy_poll;
pub mod chatty_io;
pub mod children_busy;
pub mod connect_errors;
pub mod connections;
pub mod cpu_bound;
pub mod cpu_starvation;
pub mod cpu_throttled;
pub mod descriptors_growing;
pub mod error_storm;
pub mod event_loop_stall;
pub mod gc_pressure;
pub mod leak;
pub mod lock_contention;
pub mod lock_convoy;
pub mod long_wait;
pub mod memory_growing;
pub mod nested_wait;
pub mod page_faults;
pub mod routes;
pub mod slow_io;
pub mod slow_peer;
pub mod stopped;
pub mod thread_pool;
pub mod worker_blocked;
