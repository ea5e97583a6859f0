//! The profiler's userspace. Data flows one way:
//!
//! `kernel -> probe (decode) -> process (resolve) -> model -> recording, totals -> symbolize -> detect -> output`
//!
//! [`session`] is that pipeline for a live run, [`commands::replay`] from a recording on; see ARCHITECTURE.md.

pub mod cli;
pub mod commands;
pub mod detect;
pub mod error;
pub mod kernel;
pub mod model;
pub mod output;
pub mod probe;
pub mod process;
pub mod recording;
pub mod runtimes;
pub mod session;
pub mod symbolize;
pub mod unwind;

use anyhow::Result;

/// Does what the command line asks for.
pub fn run(cli: cli::Cli) -> Result<()> {
    match cli.command {
        None => session::run(&cli.profile),
        Some(cli::Command::Replay(args)) => commands::replay::run(&args),
        Some(cli::Command::Diff(args)) => commands::diff::diff(&args),
        Some(cli::Command::Doctor) => commands::doctor::doctor(),
    }
}
