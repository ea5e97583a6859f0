//! Writes docs/rules from the table of rules, or checks that it is what the table says.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Result, bail};

use crate::shell::{output, workspace};

/// Options of `cargo xtask docs`.
#[derive(clap::Args)]
pub struct Args {
    /// Change nothing; fail where a page is not what its rule says
    #[arg(long)]
    check: bool,
    /// This build of the profiler instead of one that is built now
    #[arg(long, value_name = "FILE")]
    profiler: Option<PathBuf>,
}

/// Writes or checks the pages.
pub fn run(args: &Args) -> Result<()> {
    let rules = |name: Option<&str>| {
        let mut command = match &args.profiler {
            Some(built) => Command::new(built),
            None => {
                let mut command = Command::new(env!("CARGO"));
                command.current_dir(workspace()).args(["run", "-q", "-p", "profiler", "--"]);
                command
            }
        };
        output(command.arg("rules").args(name))
    };
    let table = rules(None)?;
    let names: Vec<&str> = table
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let mut pages = vec![("README.md".to_owned(), index(&table))];
    for name in names {
        pages.push((format!("{name}.md"), format!("{}\n", rules(Some(name))?)));
    }
    let folder = workspace().join("docs/rules");
    fs::create_dir_all(&folder)?;
    let mut stale: Vec<String> = Vec::new();
    for (name, text) in &pages {
        if fs::read_to_string(folder.join(name)).unwrap_or_default() != *text {
            stale.push(name.clone());
            if !args.check {
                fs::write(folder.join(name), text)?;
            }
        }
    }
    for entry in fs::read_dir(&folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if pages.iter().all(|(page, _)| *page != name) {
            if !args.check {
                fs::remove_file(folder.join(&name))?;
            }
            stale.push(name);
        }
    }
    if args.check && !stale.is_empty() {
        bail!("docs/rules is not what the rules say ({}): run `cargo xtask docs`", stale.join(", "));
    }
    Ok(())
}

/// The list of all pages.
fn index(table: &str) -> String {
    let mut text = "# Rules\n\nWhat is looked for. The pages are made from the rules' own files by `cargo xtask docs`.\n\n| rule | says that |\n| --- | --- |\n".to_owned();
    for line in table.lines().take_while(|line| !line.is_empty()) {
        if let Some((name, summary)) = line.split_once(char::is_whitespace) {
            text.push_str(&format!("| [{name}]({name}.md) | {} |\n", summary.trim()));
        }
    }
    text
}
