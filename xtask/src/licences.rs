//! Checks the licence of every dependency, of userspace, of the kernel programs and of the fuzz targets.
//!
//! What `cargo deny check licenses` does, in what this project needs of it, without building cargo-deny first.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::shell::output;

/// What binaries of this project may contain: permissive licences.
const ALLOWED: [&str; 11] = [
    "MIT",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "Unicode-3.0",
    "Zlib",
    "0BSD",
    "ISC",
    "NCSA",
    "CDLA-Permissive-2.0",
];

/// Crates with another licence, and why that is fine.
const EXCEPTIONS: [(&str, &str, &str); 1] = [(
    "inferno",
    "CDDL-1.0",
    "copyleft by file: a binary may contain it as long as its source, unchanged from crates.io, is offered",
)];

/// Every workspace of this repository.
const WORKSPACES: [&str; 3] = ["Cargo.toml", "profiler-ebpf/Cargo.toml", "fuzz/Cargo.toml"];

pub fn run() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace has a folder")?;
    let mut refused = Vec::new();
    for manifest in WORKSPACES {
        let metadata = output(
            Command::new("cargo")
                .args(["metadata", "--format-version", "1", "--manifest-path"])
                .arg(root.join(manifest)),
        )?;
        let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
        let packages = metadata["packages"].as_array().context("metadata has packages")?;
        for package in packages {
            let name = package["name"].as_str().unwrap_or_default();
            let licence = package["license"].as_str().unwrap_or("none");
            if !allowed(licence) && !EXCEPTIONS.iter().any(|(of, what, _)| (*of, *what) == (name, licence)) {
                refused.push(format!("{manifest}: {name} {}: {licence}", package["version"]));
            }
        }
        println!("licences of {} packages in {manifest}", packages.len());
    }
    for (name, licence, why) in EXCEPTIONS {
        println!("exception: {name}, {licence}: {why}");
    }
    if !refused.is_empty() {
        bail!("licences that are not allowed:\n{}", refused.join("\n"));
    }
    Ok(())
}

/// Whether an SPDX expression leaves a choice of allowed licences. AND binds stronger than OR; `/` is an old OR.
fn allowed(expression: &str) -> bool {
    let mut tokens = tokens(expression);
    any(&mut tokens) && tokens.is_empty()
}

/// Parentheses, operators and names, last first.
fn tokens(expression: &str) -> Vec<String> {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    spaced.split_whitespace().rev().map(str::to_owned).collect()
}

fn any(tokens: &mut Vec<String>) -> bool {
    let mut found = all(tokens);
    while tokens.pop_if(|token| token == "OR").is_some() {
        found |= all(tokens);
    }
    found
}

fn all(tokens: &mut Vec<String>) -> bool {
    let mut found = one(tokens);
    while tokens.pop_if(|token| token == "AND").is_some() {
        found &= one(tokens);
    }
    found
}

fn one(tokens: &mut Vec<String>) -> bool {
    if tokens.pop_if(|token| token == "(").is_some() {
        let found = any(tokens);
        return tokens.pop_if(|token| token == ")").is_some() && found;
    }
    let Some(mut licence) = tokens.pop() else { return false };
    if tokens.pop_if(|token| token == "WITH").is_some() {
        licence = format!("{licence} WITH {}", tokens.pop().unwrap_or_default());
    }
    ALLOWED.contains(&licence.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_leaves_a_choice_or_not() {
        for yes in [
            "MIT",
            "MIT OR GPL-3.0-only",
            "GPL-3.0-only / MIT",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
            "(MIT OR GPL-2.0) AND Unicode-3.0",
        ] {
            assert!(allowed(yes), "{yes}");
        }
        for no in [
            "",
            "none",
            "GPL-3.0-only",
            "MIT AND GPL-3.0-only",
            "(MIT OR Apache-2.0) AND CDDL-1.0",
            "GPL-2.0 WITH Linux-syscall-note",
            "MIT)",
            "MIT MIT",
            "(MIT",
        ] {
            assert!(!allowed(no), "{no}");
        }
    }
}
