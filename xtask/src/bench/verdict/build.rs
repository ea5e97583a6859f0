//! Building the programs, each once and again when its source is newer.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use super::corpus::{Entry, Language, find};

/// Where the programs are and where they are built.
pub struct Folders {
    pub sources: PathBuf,
    pub build: PathBuf,
}

impl Folders {
    /// The program that sends load.
    pub fn load(&self) -> PathBuf {
        self.build.join("load")
    }

    /// Builds that program, and what shell scripts of the corpus run.
    pub fn build_common(&self) -> Result<()> {
        let mut rustc = Command::new("rustc");
        rustc.args(["-O", "--edition=2024"]);
        self.compile(&mut rustc, "load.rs", &self.load())?;
        self.compile(&mut cc(), "c/batch.c", &self.build.join("c/batch"))
    }

    /// Builds what an entry needs and returns the command that runs it, with its arguments.
    pub fn command(&self, entry: &Entry, dir: &Path) -> Result<Command> {
        let source = self.sources.join(&entry.program);
        let built = self.build.join(Path::new(&entry.program).with_extension(""));
        let tool = |name: &str| find(name).with_context(|| format!("{name} is not installed"));
        let mut args: Vec<String> =
            entry.args.iter().map(|arg| arg.replace("{dir}", &dir.display().to_string())).collect();
        let mut command = match entry.language()? {
            Language::C => {
                self.compile(&mut cc(), &entry.program, &built)?;
                Command::new(built)
            }
            Language::Go => {
                self.compile(Command::new(tool("go")?).arg("build"), &entry.program, &built)?;
                Command::new(built)
            }
            Language::Java => {
                let class = built.file_name().context("no file name")?;
                if is_older(&built.with_extension("class"), &source) {
                    let folder = built.parent().context("no folder")?;
                    fs::create_dir_all(folder)?;
                    run(Command::new(tool("javac")?).arg("-d").arg(folder).arg(&source))?;
                }
                let mut java = Command::new(tool("java")?);
                // The virtual machine's own options come before the class.
                let (options, rest) = args.into_iter().partition(|arg| arg.starts_with("-X"));
                args = rest;
                let options: Vec<String> = options;
                java.args(options).arg("-cp").arg(built.parent().context("no folder")?).arg(class);
                java
            }
            Language::Rust => {
                let mut cargo = Command::new("cargo");
                cargo.args(["build", "--quiet", "--release", "--locked", "--target-dir"]).arg(&self.build);
                run(cargo.current_dir(self.sources.join("rust")))?;
                Command::new(self.build.join("release").join(built.file_name().context("no file name")?))
            }
            Language::Node => interpreted(&tool("node")?, &source),
            Language::Python => interpreted(&tool("python3")?, &source),
            Language::Shell => interpreted(&tool("bash")?, &source),
        };
        command.args(args).current_dir(dir).env("VERDICT_BUILD", &self.build);
        Ok(command)
    }

    fn compile(&self, compiler: &mut Command, source: &str, program: &Path) -> Result<()> {
        let source = self.sources.join(source);
        if !is_older(program, &source) {
            return Ok(());
        }
        fs::create_dir_all(program.parent().context("no folder")?)?;
        run(compiler.arg("-o").arg(program).arg(source))
    }
}

fn interpreted(interpreter: &Path, source: &Path) -> Command {
    let mut command = Command::new(interpreter);
    command.arg(source);
    command
}

/// As distributions build: optimised and without frame pointers.
fn cc() -> Command {
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-g", "-pthread", "-fomit-frame-pointer", "-D_GNU_SOURCE"]);
    cc
}

fn is_older(built: &Path, source: &Path) -> bool {
    let time = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    time(built) < time(source)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
