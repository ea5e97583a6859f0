//! The guest: an initramfs with the profiler, the workloads and an init script that runs the checks, and QEMU
//! around it.
//!
//! The kernel's console is the first serial port. Results come over the second one, where nothing else writes:
//! one line per check, `NAME:EXIT CODE:STDOUT:STDERR` with both texts in base64.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::checks::Check;
use crate::shell::{output, run};

/// A check that hangs is killed after this, seconds.
const CHECK_TIMEOUT: u32 = 120;
/// Both CPUs in one thread of QEMU's. With a thread each, QEMU 7.2 is at fault where a kernel patches its own code: 7.3 ends with
/// "Oops: int3" in `trace_syscall_enter`, and 6.1 hung once while probes were placed.
const ACCELERATOR: &str = "tcg,thread=single";
/// Variants of each workload: suffix of the name, and how its frames are compiled.
const VARIANTS: [(&str, &[&str]); 2] = [
    ("", &["-fno-omit-frame-pointer", "-mno-omit-leaf-frame-pointer"]),
    ("-nofp", &["-fomit-frame-pointer"]),
];
/// Every feature but cmpxchg16b: QEMU 7.2 leaves stale data in the flags after it, and kernels from 6.12 on end in a
/// double fault in their memory allocator. They do without the instruction where it is missing.
const CPU: &str = "max,-cx16";
const KERNEL_ARGUMENTS: &str = "console=ttyS0 panic=-1 quiet nokaslr mitigations=off tsc=reliable";

/// What one check printed in the guest.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub name: String,
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Builds the initramfs: `/bin/profiler`, `/work/WORKLOAD`, busybox, and their libraries.
pub fn initramfs(workspace: &Path, cache: &Path, profiler: &Path, checks: &[&Check]) -> Result<PathBuf> {
    let root = cache.join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    for folder in ["bin", "work", "proc", "sys", "dev", "tmp", "etc"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::copy("/usr/bin/busybox", root.join("bin/busybox"))
        .or_else(|_| fs::copy("/bin/busybox", root.join("bin/busybox")))
        .context("copying busybox")?;
    symlink("busybox", root.join("bin/sh"))?;
    fs::copy(profiler, root.join("bin/profiler")).with_context(|| profiler.display().to_string())?;
    // busybox has none.
    fs::copy("/usr/bin/nice", root.join("bin/nice")).context("copying nice")?;
    let mut programs = vec![profiler.to_owned(), "/usr/bin/nice".into()];
    programs.extend(workloads(&workspace.join("tests/workloads"), &root.join("work"))?);
    for library in libraries(&programs)? {
        let copy = root.join(library.strip_prefix("/")?);
        fs::create_dir_all(copy.parent().context("a library without a folder")?)?;
        fs::copy(&library, &copy).with_context(|| library.display().to_string())?;
    }
    let init = root.join("init");
    fs::write(&init, init_script(checks))?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    let archive = cache.join("initramfs.gz");
    run(Command::new("sh")
        .args(["-c", "find . | cpio --quiet -o -H newc | gzip -1 >\"$1\"", "sh"])
        .arg(&archive)
        .current_dir(&root))?;
    Ok(archive)
}

/// Compiles every workload in each variant.
fn workloads(sources: &Path, destination: &Path) -> Result<Vec<PathBuf>> {
    let mut programs = Vec::new();
    for entry in fs::read_dir(sources)? {
        let source = entry?.path();
        if source.extension().is_none_or(|extension| extension != "c") {
            continue;
        }
        let stem = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        for (suffix, flags) in VARIANTS {
            let program = destination.join(format!("{stem}{suffix}"));
            run(Command::new("gcc")
                .args(["-O2", "-g", "-pthread"])
                .args(flags)
                .arg("-o")
                .arg(&program)
                .arg(&source))?;
            programs.push(program);
        }
    }
    Ok(programs)
}

/// The shared libraries of programs, the loader among them.
fn libraries(programs: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    let mut libraries = BTreeSet::new();
    for program in programs {
        let listing = output(Command::new("ldd").arg(program))?;
        ensure!(!listing.contains("not found"), "{}: {listing}", program.display());
        libraries.extend(listing.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from));
    }
    Ok(libraries)
}

fn init_script(checks: &[&Check]) -> String {
    let mut script = format!(
        r#"#!/bin/sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
ip link set lo up
stty -F /dev/ttyS1 raw -echo
exec </dev/null 3>/dev/ttyS1
check() {{
    echo "check $1"
    mkdir "/tmp/$1" && cd "/tmp/$1"
    timeout -s KILL {CHECK_TIMEOUT} sh -c "$2" >/tmp/stdout 2>/tmp/stderr
    echo "$1:$?:$(base64 -w 0 /tmp/stdout):$(base64 -w 0 /tmp/stderr)" >&3
    kill -KILL -1 2>/dev/null
}}
"#
    );
    for check in checks {
        let quoted = check.command.replace('\'', r"'\''");
        script.push_str(&format!("check {} '{quoted}'\n", check.name));
    }
    script.push_str("exec 3>&-\npoweroff -f\n");
    script
}

/// Boots a kernel and passes on what each check gives as soon as it is there; then waits for the end.
pub fn boot(
    vmlinux: &Path,
    initramfs: &Path,
    logs: &Path,
    timeout: Duration,
    mut report: impl FnMut(Outcome),
) -> Result<()> {
    fs::create_dir_all(logs)?;
    let (console, results) = (logs.join("console.log"), logs.join("results"));
    fs::write(&results, "")?;
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-accel", ACCELERATOR, "-cpu", CPU, "-M", "q35", "-smp", "2", "-m", "1024"])
        .args(["-nodefaults", "-no-reboot", "-display", "none"])
        .args(["-serial", &format!("file:{}", console.display())])
        .args(["-serial", &format!("file:{}", results.display())])
        .arg("-kernel")
        .arg(vmlinux)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", KERNEL_ARGUMENTS])
        .stdin(Stdio::null())
        .spawn()
        .context("starting qemu-system-x86_64")?;
    let start = Instant::now();
    let mut reported = 0;
    loop {
        let status = qemu.try_wait()?; // before reading, so that nothing written before the end is missed
        let text = fs::read_to_string(&results)?;
        let complete: Vec<&str> = text.split_inclusive('\n').filter(|line| line.ends_with('\n')).collect();
        for line in &complete[reported..] {
            report(parse(line.trim())?);
        }
        reported = complete.len();
        match status {
            Some(status) if status.success() => return Ok(()),
            Some(status) => bail!("QEMU ended with {status}\n{}", tail(&console)),
            None if start.elapsed() > timeout => {
                qemu.kill()?;
                qemu.wait()?;
                bail!("no end after {} s\n{}", timeout.as_secs(), tail(&console));
            }
            None => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// The end of what the kernel and the init script wrote.
pub fn tail(console: &Path) -> String {
    let text = fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].iter().map(|line| format!("    | {line}\n")).collect()
}

fn parse(line: &str) -> Result<Outcome> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, code, stdout, stderr] = fields[..] else { bail!("{} fields in a result", fields.len()) };
    let text = |base64: &str| -> Result<String> {
        Ok(String::from_utf8_lossy(&decode(base64).with_context(|| format!("result of {name}"))?)
            .into_owned())
    };
    Ok(Outcome { name: name.to_owned(), code: code.parse()?, stdout: text(stdout)?, stderr: text(stderr)? })
}

fn decode(base64: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(base64.len() * 3 / 4);
    let (mut bits, mut count) = (0u32, 0);
    for digit in base64.trim_end_matches('=').bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => bail!("{:?} is no base64 digit", char::from(digit)),
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_parsed() {
        let outcome = parse("split:3:aGVsbG8K:").unwrap();
        let stderr = String::new();
        assert_eq!(outcome, Outcome { name: "split".into(), code: 3, stdout: "hello\n".into(), stderr });
        assert!(parse("split:0:aGVs").is_err());
        assert!(parse("split:0:a[  1.0]GVs:").is_err());
    }

    #[test]
    fn base64_is_decoded() {
        assert_eq!(decode("").unwrap(), b"");
        assert_eq!(decode("YQ==").unwrap(), b"a");
        assert_eq!(decode("/+8=").unwrap(), [0xff, 0xef]);
    }
}
