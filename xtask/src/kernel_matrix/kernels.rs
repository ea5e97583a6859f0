//! Debian's kernels: found through their meta package, downloaded once, unpacked to what QEMU boots.
//!
//! apt runs with a configuration of its own below the cache folder, so neither the host's package sources nor
//! its state matter or change.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::shell::{output, run};

/// Signs every suite below; from package `debian-archive-keyring`.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Depends on the newest kernel of its suite. The cloud kernels are small and have all they need built in.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// A kernel to test with: the newest one of some suites.
pub struct Kernel {
    /// What it is called on the command line and in the cache.
    pub name: &'static str,
    /// Archive and suite of the package sources; only kernels found there count.
    pub suites: &'static [&'static str],
    /// Whether failures are only reported.
    pub best_effort: bool,
}

/// All of them, oldest first. Debian has no 5.15, the oldest kernel that is promised; 5.10 is the nearest before it.
pub const KERNELS: [Kernel; 4] = [
    Kernel {
        name: "5.10",
        suites: &["debian bullseye", "debian-security bullseye-security"],
        best_effort: true,
    },
    Kernel {
        name: "6.1",
        suites: &["debian bookworm", "debian-security bookworm-security"],
        best_effort: false,
    },
    Kernel { name: "6.12", suites: &["debian bookworm-backports"], best_effort: false },
    Kernel { name: "newest", suites: &["debian trixie-backports"], best_effort: false },
];

/// A kernel ready to boot.
pub struct Image {
    /// Its release as far as it tells kernels apart: `6.1.0-53`.
    pub release: String,
    /// The uncompressed ELF image.
    pub vmlinux: PathBuf,
}

impl Kernel {
    /// The kernel from the cache, or from the archive if it is not there or `update` asks for a newer one.
    pub fn fetch(&self, cache: &Path, update: bool) -> Result<Image> {
        let folder = cache.join("kernels").join(self.name);
        let (vmlinux, release) = (folder.join("vmlinux"), folder.join("release"));
        if update || !release.is_file() {
            let package = self.newest(&folder)?;
            let name = package.trim_start_matches(|c: char| !c.is_ascii_digit());
            let name = name.trim_end_matches("-cloud-amd64");
            if fs::read_to_string(&release).ok().as_deref() != Some(name) {
                eprintln!("fetching {package}");
                fs::write(&vmlinux, self.download(&folder, &package)?)?;
                // Last, so that an interrupted download is no cached kernel.
                fs::write(&release, name)?;
            }
        }
        Ok(Image { release: fs::read_to_string(&release)?, vmlinux })
    }

    /// Name of the package with the newest kernel's image.
    fn newest(&self, folder: &Path) -> Result<String> {
        self.configure(folder)?;
        run(self.apt("apt-get", folder).args(["update", "-qq"]))?;
        let dependency = |package: &str, prefix: &str| -> Result<Option<String>> {
            let depends = output(self.apt("apt-cache", folder).args(["depends", package]))?;
            let mut names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
            let is_wanted = |name: &&str| {
                name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
            };
            Ok(names.find(is_wanted).map(str::to_owned))
        };
        let image = dependency(META_PACKAGE, "linux-image-")?
            .with_context(|| format!("no kernel in {}", self.suites.join(", ")))?;
        // Since 7.x the image package is empty and the kernel itself in a package it depends on.
        Ok(dependency(&image, "linux-binary-")?.unwrap_or(image))
    }

    fn download(&self, folder: &Path, package: &str) -> Result<Vec<u8>> {
        let scratch = tempfile::tempdir_in(folder)?;
        run(self.apt("apt-get", folder).args(["download", "-qq", package]).current_dir(&scratch))?;
        let deb = only_file(scratch.path(), "linux-")?;
        let unpacked = scratch.path().join("unpacked");
        run(Command::new("dpkg").arg("-x").arg(deb).arg(&unpacked))?;
        let modules = unpacked.join("usr/lib/modules");
        let compressed = match only_file(&unpacked.join("boot"), "vmlinuz-") {
            Err(_) if modules.exists() => only_file(&only_file(&modules, "")?, "vmlinuz"), // since 7.x
            result => result,
        }
        .with_context(|| format!("the kernel image in {package}"))?;
        extract(&fs::read(compressed)?).with_context(|| format!("unpacking the kernel of {package}"))
    }

    /// Writes the apt configuration and its package sources.
    fn configure(&self, folder: &Path) -> Result<()> {
        let apt = folder.join("apt");
        for part in ["lists/partial", "cache/archives/partial", "etc/apt.conf.d", "etc/preferences.d"] {
            fs::create_dir_all(apt.join(part))?;
        }
        fs::write(apt.join("status"), "")?;
        let sources: String = (self.suites.iter())
            .map(|suite| {
                let (archive, suite) = suite.split_once(' ').unwrap_or((suite, ""));
                format!("deb [arch=amd64 signed-by={KEYRING}] http://deb.debian.org/{archive} {suite} main\n")
            })
            .collect();
        fs::write(apt.join("etc/sources.list"), sources)?;
        let apt = apt.display();
        fs::write(
            folder.join("apt/apt.conf"),
            format!(
                "Dir::Etc \"{apt}/etc\";\nDir::State \"{apt}\";\nDir::State::status \"{apt}/status\";\n\
                 Dir::Cache \"{apt}/cache\";\nAcquire::Languages \"none\";\nAPT::Sandbox::User \"\";\n\
                 APT::Architecture \"amd64\";\n"
            ),
        )?;
        Ok(())
    }

    fn apt(&self, program: &str, folder: &Path) -> Command {
        let mut command = Command::new(program);
        // Read before the host's own configuration, which is then looked for in the private folder.
        command.env("APT_CONFIG", folder.join("apt/apt.conf")).stdin(Stdio::null());
        command
    }
}

/// The one file or folder in `folder` whose name starts with `prefix`.
fn only_file(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        }
    }
    ensure!(found.len() == 1, "{} files {prefix}* in {}", found.len(), folder.display());
    Ok(found.remove(0))
}

/// The ELF image inside a bzImage. QEMU enters it directly, which spares the emulated decompression.
fn extract(image: &[u8]) -> Result<Vec<u8>> {
    // Offsets of Documentation/arch/x86/boot.rst.
    let number = |offset: usize| -> Result<usize> {
        let bytes = image.get(offset..offset + 4).context("too short")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    ensure!(image.get(0x202..0x206) == Some(b"HdrS"), "no boot header");
    let setup_sectors = number(0x1f1)? & 0xff;
    let start = (setup_sectors + 1) * 512 + number(0x248)?;
    let payload = image.get(start..start + number(0x24c)?).context("the payload is outside the file")?;
    let tool = match payload {
        [0x1f, 0x8b, ..] => "gzip",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0x02, 0x21, 0x4c, 0x18, ..] => "lz4",
        _ => bail!("unknown compression {:02x?}", &payload[..payload.len().min(6)]),
    };
    // Formats that do not store the size of their content have it appended.
    let appended = if tool == "gzip" { 0 } else { 4 };
    let vmlinux = decompress(tool, &payload[..payload.len() - appended])?;
    ensure!(vmlinux.starts_with(b"\x7fELF"), "the payload is no ELF file");
    Ok(vmlinux)
}

fn decompress(tool: &str, data: &[u8]) -> Result<Vec<u8>> {
    let mut input = tempfile::tempfile()?;
    input.write_all(data)?;
    std::io::Seek::rewind(&mut input)?;
    let result =
        Command::new(tool).arg("-dc").stdin(input).output().with_context(|| format!("starting {tool}"))?;
    ensure!(
        result.status.success(),
        "{tool} failed ({}): {}",
        result.status,
        String::from_utf8_lossy(&result.stderr).trim()
    );
    Ok(result.stdout)
}
