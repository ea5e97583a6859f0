//! Parses the command line, runs it, and prints the error once.

use std::process::ExitCode;

use clap::Parser as _;
use profiler::{cli::Cli, error::Error, say};

fn main() -> ExitCode {
    match profiler::commands::run(&Cli::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS, // `profiler … | head` has all it wants
        Err(error) => {
            say!("profiler: {error:#}");
            ExitCode::from(error.downcast_ref::<Error>().map_or(1, Error::exit_code))
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
}
