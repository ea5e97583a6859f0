//! What belongs to a package besides the program, made of the same tables as its help: completions and man pages.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::cli::Cli;

/// Prints what completes the command line in a shell.
pub fn completions(shell: Shell) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "profiler", &mut text);
    use std::io::Write as _;
    Ok(std::io::stdout().lock().write_all(&text)?)
}

/// Writes a man page for the program and for each of its commands.
pub fn man(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut all = Cli::command();
    all.build();
    page(&all, folder)
}

fn page(command: &clap::Command, folder: &Path) -> Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut text)?;
    let file = folder.join(format!("{name}.1"));
    fs::write(&file, text).with_context(|| file.display().to_string())?;
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
        page(sub, folder)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        man(dir.path()).unwrap();
        for name in ["profiler", "profiler-replay", "profiler-daemon", "profiler-config-check"] {
            let text = fs::read(dir.path().join(format!("{name}.1"))).unwrap();
            assert!(text.starts_with(b".ie"), "{name}");
        }
    }
}
