//! The profiler's userspace. Data flows one way:
//!
//! `kernel -> probe (decode) -> process (resolve) -> model -> recording, totals -> symbolize -> detect -> output`
//!
//! [`session`] is that pipeline for a live run, [`commands::replay`] from a recording on; see ARCHITECTURE.md.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod alerting;
pub mod cli;
pub mod commands;
pub mod daemon;
pub mod detect;
pub mod error;
pub mod foreign;
pub mod kernel;
pub mod metrics;
pub mod model;
pub mod output;
pub mod probe;
pub mod process;
pub mod quit;
pub mod recording;
pub mod runtimes;
pub mod session;
pub mod symbolize;
pub mod text;
pub mod unwind;

use anyhow::Result;

/// Says something on stderr. Unlike `eprintln` it does not panic where stderr is gone: no result is lost for a word.
#[macro_export]
macro_rules! say {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _gone = writeln!(std::io::stderr().lock(), $($words)*);
    }};
}

/// Does what the command line asks for; returns the exit code.
pub fn run(cli: cli::Cli) -> Result<u8> {
    match cli.command {
        None => session::run(&cli.profile),
        Some(cli::Command::Replay(args)) => commands::replay::run(&args),
        Some(cli::Command::Diff(args)) => commands::diff::diff(&args).map(|()| 0),
        Some(cli::Command::Rules(args)) => commands::rules::run(&args).map(|()| 0),
        Some(cli::Command::Doctor) => commands::doctor::doctor().map(|()| 0),
        Some(cli::Command::Daemon(args)) => commands::daemon::run(&args).map(|()| 0),
        Some(cli::Command::Config(command)) => commands::daemon::config(&command).map(|()| 0),
        Some(cli::Command::Alert(command)) => commands::daemon::alert(&command).map(|()| 0),
    }
}
