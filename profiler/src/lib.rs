//! The profiler's userspace. Data flows one way:
//!
//! `kernel -> probe (decode) -> process (resolve) -> model -> recording, totals -> symbolize -> detect -> output`
//!
//! [`session`] is that pipeline for a live run, [`commands::replay`] from a recording on; see ARCHITECTURE.md.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod alerting;
pub mod cli;
pub mod collector;
pub mod commands;
pub mod daemon;
pub mod detect;
pub mod error;
pub mod foreign;
pub mod kernel;
pub mod metrics;
pub mod model;
pub mod naming;
pub mod output;
pub mod probe;
pub mod process;
pub mod quit;
pub mod recording;
pub mod resolve;
pub mod runtimes;
pub mod session;
pub mod settings;
pub mod symbolize;
pub mod text;
pub mod ticks;
pub mod unwind;

/// Says something on stderr. Unlike `eprintln` it does not panic where stderr is gone: no result is lost for a word.
#[macro_export]
macro_rules! say {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _gone = writeln!(std::io::stderr().lock(), $($words)*);
    }};
}
