// Shared by build.rs, which checks the manifest, and `cargo xtask build-ebpf`, which writes it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

/// What the committed kernel objects are built from, relative to the workspace.
const SOURCES: [&str; 5] = [
    "profiler-common/Cargo.toml",
    "profiler-common/src",
    "profiler-ebpf/Cargo.lock",
    "profiler-ebpf/Cargo.toml",
    "profiler-ebpf/src",
];

/// Every source file, relative to the workspace, sorted.
pub fn source_files(workspace: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(workspace, Path::new(source), &mut files)?;
    }
    files.sort();
    Ok(files)
}

fn collect(workspace: &Path, path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    let full = workspace.join(path);
    if full.is_dir() {
        for entry in fs::read_dir(full)? {
            collect(workspace, &path.join(entry?.file_name()), files)?;
        }
    } else {
        files.push(path.to_owned());
    }
    Ok(())
}

/// The manifest's text, in the format of sha256sum.
pub fn render(workspace: &Path, files: &[PathBuf]) -> io::Result<String> {
    files
        .iter()
        .map(|file| {
            let digest = Sha256::digest(fs::read(workspace.join(file))?);
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            Ok(format!("{hex}  {}\n", file.display()))
        })
        .collect()
}

/// Files whose lines differ between two manifests.
pub fn differences(committed: &str, actual: &str) -> Vec<String> {
    let name = |line: &str| line.split_once("  ").map_or(line, |(_, name)| name).to_owned();
    let only_in = |a: &str, b: &str| -> Vec<String> {
        a.lines().filter(|line| !b.lines().any(|other| other == *line)).map(name).collect()
    };
    let mut names = only_in(committed, actual);
    names.extend(only_in(actual, committed));
    names.sort();
    names.dedup();
    names
}
