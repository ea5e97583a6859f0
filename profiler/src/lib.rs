//! The profiler's userspace. Data flows one way:
//!
//! `kernel -> probe (decode) -> process (resolve) -> Sample -> recording, aggregate -> Profile (symbolize) ->
//! detect -> output`
//!
//! [`agent`] is that pipeline for a live run, [`replay`] from a recording on; see ARCHITECTURE.md.

pub mod agent;
pub mod aggregate;
pub mod blocking;
pub mod calls;
pub mod cli;
pub mod detect;
pub mod error;
pub mod kernel;
pub mod memory;
pub mod output;
pub mod probe;
pub mod process;
pub mod profile;
pub mod recording;
pub mod replay;
pub mod runtimes;
pub mod sample;
pub mod symbolize;
pub mod unwind;
pub mod usage;

use anyhow::Result;

/// Does what the command line asks for.
pub fn run(cli: cli::Cli) -> Result<()> {
    match cli.command {
        None => agent::run(&cli.profile),
        Some(cli::Command::Replay(args)) => replay::run(&args),
        Some(cli::Command::Diff(args)) => replay::diff(&args),
        Some(cli::Command::Doctor) => doctor(),
    }
}

fn doctor() -> Result<()> {
    let checks = kernel::preflight::checks();
    for check in &checks {
        println!("{check}");
    }
    match checks.iter().find(|check| check.verdict == kernel::preflight::Verdict::No) {
        None => Ok(()),
        Some(_) if !kernel::preflight::may_load_programs() => {
            Err(error::Error::MissingRights { what: "profile" }.into())
        }
        Some(check) => {
            Err(error::Error::KernelUnsupported(format!("{} {}", check.feature, check.detail)).into())
        }
    }
}
