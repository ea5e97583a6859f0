//! What the command line can ask for, a file each but profiling itself, which is [`crate::session`].

use anyhow::Result;

use crate::{
    cli::{Cli, Command},
    session,
};

pub mod daemon;
pub mod diff;
pub mod doctor;
pub mod package;
pub mod replay;
pub mod rules;
pub mod symbols;

/// Does what the command line asks for; returns the exit code.
pub fn run(cli: &Cli) -> Result<u8> {
    match &cli.command {
        None => session::run(cli.profile.options()),
        Some(Command::Replay(args)) => replay::run(args),
        Some(Command::Diff(args)) => diff::diff(args),
        Some(Command::Symbols(args)) => symbols::run(args).map(|()| 0),
        Some(Command::Rules(args)) => rules::run(args).map(|()| 0),
        Some(Command::Doctor) => doctor::doctor().map(|()| 0),
        Some(Command::Daemon(args)) => daemon::run(args).map(|()| 0),
        Some(Command::Config(command)) => daemon::config(command).map(|()| 0),
        Some(Command::Alert(command)) => daemon::alert(command).map(|()| 0),
        Some(Command::Token { role }) => daemon::token(role).map(|()| 0),
        Some(Command::Completions { shell }) => package::completions(*shell).map(|()| 0),
        Some(Command::Man { folder }) => package::man(folder).map(|()| 0),
    }
}
