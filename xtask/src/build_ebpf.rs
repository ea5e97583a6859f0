//! Builds the kernel programs for every architecture into `profiler/bpf`, reproducibly, or checks that what is
//! committed there is exactly what the sources give.
//!
//! The toolchain is Debian's own: a rustc with a precompiled `core` for the BPF target (package
//! `libstd-rust-web-dev-bpf`), so neither nightly nor rust-src is needed, and bpf-linker built against Debian's
//! LLVM of the same version.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    shell::{debian_packages, output, run as run_command, workspace},
    stack_depth,
};

#[path = "../../profiler/build/manifest.rs"]
mod manifest;

/// Architectures whose register layouts the programs know; all use the same little-endian BPF instructions.
const ARCHITECTURES: [&str; 2] = ["x86_64", "aarch64"];
const PACKAGES: [&str; 6] =
    ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf", "llvm-22-dev", "libpolly-22-dev", "libzstd-dev"];
const LLVM: &str = "/usr/lib/llvm-22";
const LINKER_VERSION: &str = "0.13.0";

#[derive(clap::Args)]
pub struct Args {
    /// Build into a temporary folder and fail unless the result is what is committed
    #[arg(long)]
    check: bool,
}

pub fn run(args: &Args) -> Result<()> {
    debian_packages(&PACKAGES)?;
    let workspace = workspace();
    let linker = linker(&workspace)?;
    let committed = workspace.join("profiler/bpf");
    let scratch = tempfile::tempdir()?;
    let destination = if args.check { scratch.path() } else { &committed };
    fs::create_dir_all(destination)?;
    for architecture in ARCHITECTURES {
        build(&workspace, &linker, architecture, &destination.join(format!("profiler.{architecture}.o")))?;
    }
    let files = manifest::source_files(&workspace)?;
    fs::write(destination.join("sources.sha256"), manifest::render(&workspace, &files)?)?;
    fs::write(destination.join("toolchain.txt"), toolchain(&linker)?)?;
    if args.check { compare(destination, &committed) } else { Ok(()) }
}

fn build(workspace: &Path, linker: &Path, architecture: &str, object: &Path) -> Result<()> {
    let home =
        std::env::var("CARGO_HOME").or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cargo")));
    // Paths in the object must not depend on where it is built.
    let flags = [
        format!("--cfg=bpf_target_arch=\"{architecture}\""),
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".to_owned(),
        "-Cdebuginfo=2".to_owned(), // bpf-linker makes the BTF out of it
        format!("--remap-path-prefix={}=/profiler", workspace.display()),
        format!("--remap-path-prefix={}=/cargo", home?),
    ];
    let target_dir = workspace.join("target/ebpf").join(architecture);
    let mut cargo = Command::new("/usr/bin/cargo");
    for (name, _) in std::env::vars() {
        // The cargo that runs this task is another version, with settings of its own.
        if name.starts_with("CARGO") || name.starts_with("RUST") {
            cargo.env_remove(name);
        }
    }
    if let Ok(home) = std::env::var("CARGO_HOME") {
        cargo.env("CARGO_HOME", home);
    }
    run_command(
        cargo
            .current_dir(workspace.join("profiler-ebpf"))
            .args(["build", "--locked", "--release", "--target", "bpfel-unknown-none", "--target-dir"])
            .arg(&target_dir)
            .env("RUSTC", "/usr/bin/rustc")
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")),
    )?;
    let built = target_dir.join("bpfel-unknown-none/release/profiler-ebpf");
    // DWARF has done its work; the BTF stays.
    run_command(Command::new(format!("{LLVM}/bin/llvm-strip")).arg("-g").arg("-o").arg(object).arg(&built))?;
    let symbols =
        output(Command::new(format!("{LLVM}/bin/llvm-nm")).args(["--defined-only", "-j"]).arg(object))?;
    if let Some(mangled) =
        symbols.lines().find(|symbol| symbol.starts_with("_R") || symbol.starts_with("_ZN"))
    {
        bail!(
            "{mangled}: a function that is not inlined needs #[no_mangle]; its name depends on where it is built"
        );
    }
    let objdump = format!("{LLVM}/bin/llvm-objdump");
    let disassembly = output(Command::new(objdump).args(["-dr", "--no-show-raw-insn"]).arg(object))?;
    stack_depth::check(&disassembly)
}

/// The linker, built once into `target/tools` unless the right version is on the PATH.
fn linker(workspace: &Path) -> Result<PathBuf> {
    let is_right = |path: &Path| {
        output(Command::new(path).arg("--version")).is_ok_and(|version| version.ends_with(LINKER_VERSION))
    };
    let own = workspace.join("target/tools/bin/bpf-linker");
    for candidate in [own.clone(), which("bpf-linker").unwrap_or_default()] {
        if is_right(&candidate) {
            return Ok(candidate);
        }
    }
    eprintln!("building bpf-linker {LINKER_VERSION} (about a minute, once)");
    run_command(
        Command::new("cargo")
            .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--no-default-features"])
            .args(["--features", "llvm-22", "--root"])
            .arg(workspace.join("target/tools"))
            .current_dir("/") // this workspace's settings are not the linker's
            .env("LLVM_PREFIX", LLVM),
    )?;
    Ok(own)
}

fn which(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// Versions the object depends on: another compiler makes other code out of the same source.
fn toolchain(linker: &Path) -> Result<String> {
    Ok(format!(
        "{}\n{}\nLLVM {}\n",
        output(Command::new("/usr/bin/rustc").arg("--version"))?,
        output(Command::new(linker).arg("--version"))?,
        output(Command::new(format!("{LLVM}/bin/llvm-config")).arg("--version"))?,
    ))
}

fn compare(built: &Path, committed: &Path) -> Result<()> {
    let mut different = Vec::new();
    for entry in fs::read_dir(built)? {
        let name = entry?.file_name();
        let same = fs::read(committed.join(&name))
            .is_ok_and(|bytes| bytes == fs::read(built.join(&name)).unwrap_or_default());
        if !same {
            different.push(name.to_string_lossy().into_owned());
        }
    }
    if different.is_empty() {
        println!("profiler/bpf is built from the sources beside it");
        return Ok(());
    }
    let ours = fs::read_to_string(built.join("toolchain.txt"))?;
    let theirs = fs::read_to_string(committed.join("toolchain.txt")).context("profiler/bpf/toolchain.txt")?;
    if ours != theirs {
        eprintln!("the committed objects come from another toolchain:\n{theirs}this one is:\n{ours}");
    }
    let manifest = |folder: &Path| fs::read_to_string(folder.join("sources.sha256")).unwrap_or_default();
    let sources = manifest::differences(&manifest(committed), &manifest(built));
    if !sources.is_empty() {
        eprintln!("sources changed since: {}", sources.join(", "));
    }
    different.sort();
    bail!(
        "profiler/bpf is not what the sources give ({}); run `cargo xtask build-ebpf`",
        different.join(", ")
    )
}
