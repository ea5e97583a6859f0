//! `profiler symbols`: whose code a process has mapped, and where names of its functions come from or how to get them.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::Result;

use crate::{
    cli::SymbolsArgs,
    error::Error,
    model::{
        stack::{Module, ModuleId, Tables},
        units::bytes,
    },
    process::ProcessTable,
    runtimes::RUNTIMES,
    symbolize::sources::{self, Names, Origin, Source},
};

const PROC: &str = "/proc";

/// Prints a line for each file, and what to do where names are missing.
pub fn run(args: &SymbolsArgs) -> Result<()> {
    let process = Path::new(PROC).join(args.pid.to_string());
    if !process.exists() {
        return Err(Error::NoSuchPid(args.pid).into());
    }
    if std::fs::read_dir(process.join("map_files")).is_err() {
        return Err(Error::MissingRights { what: "see what the process has mapped" }.into());
    }
    let (mut tables, mut processes) = (Tables::default(), ProcessTable::new(Path::new(PROC), false));
    processes.track(args.pid, &mut tables);
    let mut mapped: BTreeMap<ModuleId, u64> = BTreeMap::new();
    for code in processes.mapped_code(args.pid) {
        *mapped.entry(code.module).or_default() += code.end - code.start;
    }
    let mut files: Vec<(ModuleId, u64)> = mapped.into_iter().collect();
    files.sort_by_key(|&(module, size)| (std::cmp::Reverse(size), module));
    // Packages of this machine say nothing about files of a container.
    let same_root = root(&process) == root(Path::new("/proc/self"));
    let mut text = format!("{:>9}  file: where names of its functions come from\n", "code");
    for (id, size) in files {
        let (module, Some(file)) = (tables.module(id), processes.file(id)) else { continue };
        let sources = sources::find(file, module, None);
        writeln!(text, "{:>9}  {}: {}", bytes(size as f64), module.path, told(&sources))?;
        let path = processes.own_path(id, module);
        let name = path.rsplit('/').next().unwrap_or(path);
        let runtimes = RUNTIMES.iter().filter(|runtime| runtime.recognises(name));
        for runtime in runtimes.filter(|runtime| runtime.open(file, name).is_some_and(|build| build.is_ok()))
        {
            writeln!(
                text,
                "{:>9}  {} functions: out of the running program's memory",
                "",
                runtime.language()
            )?;
        }
        if let Some(how) = to_get(&sources, path, module, same_root) {
            writeln!(text, "{:>9}  {how}", "")?;
        }
    }
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

fn root(process: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(process.join("root")).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// What the sources are, in words.
fn told(sources: &[Source]) -> String {
    let words: Vec<String> = sources
        .iter()
        .map(|source| {
            let debug = matches!(source.names, Names::Elf { debug: true, .. });
            let lines = if debug { " with lines" } else { "" };
            match &source.origin {
                Origin::Symbols => format!("its symbols{lines}"),
                Origin::Exported => format!("what it exports{lines}"),
                Origin::DebugFile(path) => format!("{}{lines}", path.display()),
                Origin::Server => format!("a debuginfod server{lines}"),
                Origin::Mini => "its mini debug information".to_owned(),
                Origin::Go => "Go's own table with lines".to_owned(),
            }
        })
        .collect();
    words.join(", ")
}

/// How to get the names that are missing.
fn to_get(sources: &[Source], path: &str, module: &Module, same_root: bool) -> Option<String> {
    if sources.iter().any(|source| source.origin != Origin::Exported) {
        return None;
    }
    let package = if same_root { package(path) } else { None };
    let package = package.map(|package| format!("{package}, or "));
    Some(match (package, module.build_id.is_empty()) {
        (package, false) => format!("get more: {}--debuginfod", package.unwrap_or_default()),
        (Some(package), true) => format!("get more: {}a build that is not stripped", package),
        (None, true) => "get more: a build that is not stripped".to_owned(),
    })
}

/// The package with the debug information of the one that a file belongs to.
fn package(path: &str) -> Option<String> {
    // Packages call files by the paths that they had before /usr was merged.
    let other = path.strip_prefix("/usr").unwrap_or(path);
    [path, other]
        .iter()
        .find_map(|path| {
            let owner = answer("/usr/bin/dpkg-query", &["-S", path])?;
            let name = owner.split([':', ',']).next()?.trim();
            let debug = [format!("{name}-dbg"), format!("{name}-dbgsym")].into_iter();
            let known = |package: &String| {
                answer("/usr/bin/apt-cache", &["show", "--no-all-versions", package]).is_some()
            };
            let package = debug.clone().find(known).or(debug.last())?;
            Some(format!("package {package}"))
        })
        .or_else(|| {
            let owner = answer("/usr/bin/rpm", &["-qf", "--qf", "%{NAME}", path])?;
            Some(format!("dnf debuginfo-install {}", owner.trim()))
        })
}

/// What a program of the system says, if it succeeds.
fn answer(program: &str, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    let output = command.args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let said = crate::text::to_parse(&output.stdout).into_owned();
    (output.status.success() && !said.is_empty()).then_some(said)
}
