//! Makes the Debian package: the program, its unit, an example configuration, man pages and completions; and checks the unit.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::shell::{output, run as run_command, workspace};

/// What the unit may expose, in tenths of `systemd-analyze security`'s points: it needs capabilities that cost some.
const MAX_EXPOSURE: u32 = 40;

/// Options of `cargo xtask dist`.
#[derive(clap::Args)]
pub struct Args {
    /// The program to package, instead of building it
    #[arg(long, value_name = "FILE")]
    profiler: Option<PathBuf>,
    /// Where the package goes
    #[arg(long, value_name = "FOLDER", default_value = "target/dist")]
    out: PathBuf,
}

/// Makes the package.
pub fn run(args: &Args) -> Result<()> {
    let root = workspace();
    let profiler = match &args.profiler {
        Some(profiler) => profiler.clone(),
        None => {
            run_command(
                Command::new("cargo")
                    .args(["build", "--release", "--package", "profiler"])
                    .current_dir(&root),
            )?;
            root.join("target/release/profiler")
        }
    };
    let out = root.join(&args.out);
    let stage = out.join("root");
    if stage.exists() {
        fs::remove_dir_all(&stage)?;
    }
    let program = stage.join("usr/bin/profiler");
    put(&program, &fs::read(&profiler).with_context(|| profiler.display().to_string())?, 0o755)?;
    run_command(Command::new("strip").arg(&program))?;
    let packaging = root.join("packaging");
    copy(&packaging.join("profiler.service"), &stage.join("usr/lib/systemd/system/profiler.service"))?;
    put(
        &stage.join("etc/profiler/profiler.toml"),
        output(Command::new(&program).args(["config", "init"]))?.as_bytes(),
        0o640,
    )?;
    man_pages(&program, &stage, &out)?;
    for (shell, file) in [
        ("bash", "usr/share/bash-completion/completions/profiler"),
        ("zsh", "usr/share/zsh/vendor-completions/_profiler"),
        ("fish", "usr/share/fish/vendor_completions.d/profiler.fish"),
    ] {
        let text = output(Command::new(&program).args(["completions", shell]))?;
        put(&stage.join(file), format!("{text}\n").as_bytes(), 0o644)?;
    }
    let doc = stage.join("usr/share/doc/profiler");
    for (from, to) in [
        ("LICENSE-MIT", "LICENSE-MIT"),
        ("LICENSE-APACHE", "LICENSE-APACHE"),
        ("docs/operating.md", "operating.md"),
    ] {
        copy(&root.join(from), &doc.join(to))?;
    }
    put(&doc.join("copyright"), COPYRIGHT.as_bytes(), 0o644)?;
    check_unit(&stage)?;
    let package = debian(&stage, &out, &program)?;
    println!("{} ({} bytes)", package.display(), fs::metadata(&package)?.len());
    Ok(())
}

const COPYRIGHT: &str = "\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: profiler

Files: *
Copyright: the authors of profiler
License: MIT or Apache-2.0
 The whole texts are beside this file. The kernel programs inside the program are under GPL-2.0 as well.
";

fn put(file: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(file, bytes).with_context(|| file.display().to_string())?;
    Ok(fs::set_permissions(file, fs::Permissions::from_mode(mode))?)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    put(to, &fs::read(from).with_context(|| from.display().to_string())?, 0o644)
}

fn man_pages(program: &Path, stage: &Path, out: &Path) -> Result<()> {
    let pages = out.join("man");
    if pages.exists() {
        fs::remove_dir_all(&pages)?;
    }
    run_command(Command::new(program).arg("man").arg(&pages))?;
    for entry in fs::read_dir(&pages)? {
        let page = entry?.path();
        // Without the file's name and time, so that the same pages give the same package.
        let packed = Command::new("gzip").args(["-9nc"]).arg(&page).stderr(Stdio::inherit()).output()?;
        let name = format!("{}.gz", page.file_name().unwrap_or_default().to_string_lossy());
        put(&stage.join("usr/share/man/man1").join(name), &packed.stdout, 0o644)?;
    }
    Ok(())
}

/// systemd reads the unit as it is in the package, and says what it exposes.
fn check_unit(stage: &Path) -> Result<()> {
    let analyze = || {
        let mut command = Command::new("systemd-analyze");
        command.env("SYSTEMD_LOG_LEVEL", "warning");
        command
    };
    if analyze().arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("the unit is not checked: there is no systemd-analyze here");
        return Ok(());
    }
    let unit = stage.join("usr/lib/systemd/system/profiler.service");
    let text = fs::read_to_string(&unit)?;
    // The units that it names are systemd's own, which are not in the package.
    let alone = tempfile::tempdir()?;
    let here = alone.path().join("profiler.service");
    fs::write(
        &here,
        text.replace("/usr/bin/profiler", &stage.join("usr/bin/profiler").display().to_string()),
    )?;
    let verified = analyze().arg("verify").arg("--man=no").arg(&here).output()?;
    let said = String::from_utf8_lossy(&verified.stderr);
    if !verified.status.success() || said.contains("profiler.service") {
        bail!("systemd-analyze verify: {}", said.trim());
    }
    let exposed = analyze()
        .args(["security", "--offline=true", "--no-pager", &format!("--threshold={MAX_EXPOSURE}")])
        .arg(&here)
        .output()?;
    let said = String::from_utf8_lossy(&exposed.stdout);
    let verdict = said.lines().rev().find(|line| line.contains("exposure level")).unwrap_or_default().trim();
    println!("{verdict}");
    if !exposed.status.success() {
        bail!("the unit exposes more than {}: {verdict}", f64::from(MAX_EXPOSURE) / 10.0);
    }
    Ok(())
}

/// Packs what is staged.
fn debian(stage: &Path, out: &Path, program: &Path) -> Result<PathBuf> {
    let version = env!("CARGO_PKG_VERSION");
    let architecture = output(Command::new("dpkg").arg("--print-architecture"))?;
    let sizes = output(Command::new("du").args(["-sk"]).arg(stage))?;
    let kilobytes = sizes.split_whitespace().next().unwrap_or("0").to_owned();
    let control = format!(
        "Package: profiler\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: the authors of profiler <profiler@localhost>\n\
         Installed-Size: {kilobytes}\nDepends: libc6 (>= {}), libgcc-s1\nSection: devel\nPriority: optional\n\
         Description: why a process is slow, stuck or growing\n \
         A system-level profiler by eBPF that needs no restart, no instrumentation and\n no symbols prepared; and a daemon that \
         exports metrics and sends alerts that\n carry their diagnosis.\n",
        glibc(program)?
    );
    let debian = stage.join("DEBIAN");
    put(&debian.join("control"), control.as_bytes(), 0o644)?;
    put(&debian.join("conffiles"), b"/etc/profiler/profiler.toml\n", 0o644)?;
    put(&debian.join("postinst"), POSTINST.as_bytes(), 0o755)?;
    put(&debian.join("prerm"), PRERM.as_bytes(), 0o755)?;
    let package = out.join(format!("profiler_{version}_{architecture}.deb"));
    run_command(
        Command::new("dpkg-deb")
            .args(["--build", "--root-owner-group", "-Zxz"])
            .arg(stage)
            .arg(&package)
            .stdout(Stdio::null()),
    )?;
    let contents = output(Command::new("dpkg-deb").arg("--contents").arg(&package))?;
    for file in
        ["./usr/bin/profiler", "profiler.service", "profiler-daemon.1.gz", "etc/profiler/profiler.toml"]
    {
        if !contents.contains(file) {
            bail!("{file} is not in the package");
        }
    }
    std::io::stdout().write_all(format!("{} files\n", contents.lines().count()).as_bytes())?;
    Ok(package)
}

/// It is not started by installing it: its configuration names nobody's targets yet.
const POSTINST: &str =
    "#!/bin/sh\nset -e\nif [ -d /run/systemd/system ]; then systemctl daemon-reload || true; fi\n";
const PRERM: &str = "#!/bin/sh\nset -e\nif [ \"$1\" = remove ] && [ -d /run/systemd/system ]; then systemctl stop profiler.service || true; fi\n";

/// The newest version of the C library that the program asks for.
fn glibc(program: &Path) -> Result<String> {
    let symbols = output(Command::new("objdump").arg("-T").arg(program))?;
    let versions = symbols.split("GLIBC_").skip(1).filter_map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let numbers: Vec<u32> = rest[..end].split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
        Some((numbers, rest[..end].to_owned()))
    });
    Ok(versions.max().context("the program asks for no C library")?.1)
}
