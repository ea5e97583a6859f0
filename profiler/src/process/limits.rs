//! What stops a process from growing: its cgroups' memory limits, its address space limit, the machine's memory.

use std::{
    ffi::OsString,
    fs,
    os::unix::ffi::OsStringExt as _,
    path::{Component, Path, PathBuf},
};

use super::shown::shown;
use crate::{
    model::memory::{Limit, LimitKind},
    text,
};

/// What is unlimited in cgroup v1 is a number that no machine reaches.
const UNLIMITED: u64 = 1 << 60;

/// The limit that a process is closest to, bytes left. `None` if nothing can be read.
pub fn nearest(proc_root: &Path, pid: u32) -> Option<Limit> {
    all(proc_root, pid).into_iter().min_by_key(Limit::left_bytes)
}

/// All that are known.
pub fn all(proc_root: &Path, pid: u32) -> Vec<Limit> {
    let process = shown(proc_root, pid);
    let read = |path: PathBuf| fs::read(path).unwrap_or_default();
    let mut limits = Vec::new();
    limits.extend(machine(&read(proc_root.join("meminfo"))));
    limits.extend(address_space(&read(process.join("limits")), &read(process.join("status"))));
    let mounts = mounts(&read(proc_root.join("self/mountinfo")));
    for (version, path) in groups(&read(process.join("cgroup"))) {
        for mount in mounts.iter().filter(|mount| mount.version == version) {
            limits.extend(mount.limits(&path, &read));
        }
    }
    limits
}

/// Versions of cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// Where a cgroup hierarchy that knows of memory is mounted.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    version: Version,
    /// The part of the hierarchy that is mounted.
    root: PathBuf,
    at: PathBuf,
}

impl Mount {
    /// Limits of a group and of all above it.
    fn limits(&self, group: &Path, read: &dyn Fn(PathBuf) -> Vec<u8>) -> Vec<Limit> {
        let Ok(below) = group.strip_prefix(&self.root) else { return Vec::new() };
        // A group outside of the profiler's own namespace begins with "..": it cannot be reached by this mount.
        if below.components().any(|component| !matches!(component, Component::Normal(_))) {
            return Vec::new();
        }
        let (limit, usage, cache) = match self.version {
            Version::V1 => (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                ["total_active_file", "total_inactive_file"],
            ),
            Version::V2 => ("memory.max", "memory.current", ["active_file", "inactive_file"]),
        };
        let each = below.ancestors().filter_map(|below| {
            let dir = self.at.join(below);
            let limit_bytes = number(&read(dir.join(limit))).filter(|&bytes: &u64| bytes < UNLIMITED)?;
            let stat = read(dir.join("memory.stat"));
            // The kernel drops cached file pages before it kills.
            let reclaimable: u64 = cache.iter().filter_map(|key| field(&stat, key)).sum();
            let used_bytes = number(&read(dir.join(usage)))?.saturating_sub(reclaimable);
            let path = text::path(&self.root.join(below));
            Some(Limit { kind: LimitKind::Cgroup(path), limit_bytes, used_bytes })
        });
        each.collect()
    }
}

/// Where cgroups of version 2, and those of version 1, are mounted, as the process sees it whose directory in `/proc` is given.
pub fn cgroup_mounts(process: &Path) -> [Vec<PathBuf>; 2] {
    let mounts = mounts(&fs::read(process.join("mountinfo")).unwrap_or_default());
    [Version::V2, Version::V1].map(|version| {
        let own = mounts.iter().filter(|mount| mount.version == version);
        own.map(|mount| mount.at.clone()).collect()
    })
}

/// Of `/proc/PID/mountinfo`.
fn mounts(mountinfo: &[u8]) -> Vec<Mount> {
    let each = mountinfo.split(|&byte| byte == b'\n').filter_map(|line| {
        let words: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        let dash = words.iter().position(|word| *word == b"-")?;
        let (kind, options) = (*words.get(dash + 1)?, *words.get(dash + 3)?);
        let version = match kind {
            b"cgroup2" => Version::V2,
            b"cgroup" if options.split(|&byte| byte == b',').any(|option| option == b"memory") => Version::V1,
            _ => return None,
        };
        Some(Mount { version, root: unescape(words.get(3)?), at: unescape(words.get(4)?) })
    });
    each.collect()
}

/// A path of mountinfo: blanks and backslashes are three octal digits.
fn unescape(text: &[u8]) -> PathBuf {
    let (mut path, mut rest) = (Vec::new(), text);
    while let [first, after @ ..] = rest {
        let octal = match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] => {
                Some(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'))
            }
            _ => None,
        };
        path.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &rest[4..] } else { after };
    }
    PathBuf::from(OsString::from_vec(path))
}

/// Of `/proc/PID/cgroup`: the groups that limit memory.
fn groups(cgroup: &[u8]) -> Vec<(Version, PathBuf)> {
    let each = cgroup.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut parts = line.splitn(3, |&byte| byte == b':');
        let (id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let version = match (id, controllers) {
            (b"0", b"") => Version::V2,
            (_, names) if names.split(|&byte| byte == b',').any(|name| name == b"memory") => Version::V1,
            _ => return None,
        };
        Some((version, PathBuf::from(OsString::from_vec(path.to_vec()))))
    });
    each.collect()
}

/// Of `/proc/PID/limits` and `/proc/PID/status`.
fn address_space(limits: &[u8], status: &[u8]) -> Option<Limit> {
    let limits = text::to_parse(limits);
    let soft = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    let limit_bytes = soft.split_whitespace().next()?.parse().ok()?;
    let used_bytes = field(status, "VmSize:")?.saturating_mul(1024);
    Some(Limit { kind: LimitKind::AddressSpace, limit_bytes, used_bytes })
}

/// Of `/proc/meminfo`.
fn machine(meminfo: &[u8]) -> Option<Limit> {
    let bytes = |key| Some(field(meminfo, key)?.saturating_mul(1024));
    let limit_bytes = bytes("MemTotal:")?;
    let used_bytes = limit_bytes.saturating_sub(bytes("MemAvailable:")?);
    Some(Limit { kind: LimitKind::Machine, limit_bytes, used_bytes })
}

/// The number after a key at the start of a line, as of `/proc/meminfo` and `/proc/PID/status`.
pub fn field(text: &[u8], key: &str) -> Option<u64> {
    let text = text::to_parse(text);
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == key).then(|| words.next()?.parse().ok())?
    })
}

/// A file that holds one number.
fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A /proc, and what of cgroups is mounted, below a folder.
    fn tree(dir: &Path, files: &[(&str, &str)]) -> PathBuf {
        for (path, text) in files {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text.replace("DIR", dir.to_str().unwrap())).unwrap();
        }
        dir.join("proc")
    }

    const MEMINFO: (&str, &str) =
        ("proc/meminfo", "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:   400 kB\n");

    #[test]
    fn the_nearest_limit_of_all_groups_counts() {
        let dir = tempfile::tempdir().unwrap();
        let proc = tree(
            dir.path(),
            &[
                MEMINFO,
                ("proc/self/mountinfo", "31 23 0:26 / DIR/cg rw shared:4 - cgroup2 cgroup2 rw\n"),
                ("proc/7/cgroup", "0::/a/b\n"),
                ("cg/a/b/memory.max", "max\n"),
                ("cg/a/memory.max", "300000\n"),
                ("cg/a/memory.current", "290000\n"),
                ("cg/a/memory.stat", "anon 100\nactive_file 50000\ninactive_file 20000\n"),
            ],
        );
        let expected =
            Limit { kind: LimitKind::Cgroup("/a".into()), limit_bytes: 300_000, used_bytes: 220_000 };
        assert_eq!(nearest(&proc, 7), Some(expected));
        let machine = Limit { kind: LimitKind::Machine, limit_bytes: 1_024_000, used_bytes: 614_400 };
        assert_eq!(nearest(&proc, 8), Some(machine), "a process that is gone");
    }

    #[test]
    fn the_first_version_has_other_names() {
        let dir = tempfile::tempdir().unwrap();
        let proc = tree(
            dir.path(),
            &[
                MEMINFO,
                (
                    "proc/self/mountinfo",
                    "33 1 0:9 / DIR/cpu rw - cgroup cgroup rw,cpu\n\
                     34 1 0:9 /docker DIR/my\\040memory rw - cgroup cgroup rw,memory\n",
                ),
                ("proc/7/cgroup", "4:memory:/docker/x\n0::/\n"),
                ("my memory/x/memory.limit_in_bytes", "200000\n"),
                ("my memory/x/memory.usage_in_bytes", "100000\n"),
                ("my memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ("my memory/memory.usage_in_bytes", "100000\n"),
            ],
        );
        let expected =
            Limit { kind: LimitKind::Cgroup("/docker/x".into()), limit_bytes: 200_000, used_bytes: 100_000 };
        assert_eq!(nearest(&proc, 7), Some(expected));
    }

    #[test]
    fn the_address_space_can_be_what_ends_first() {
        let dir = tempfile::tempdir().unwrap();
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max address space         3145728              unlimited            bytes     \n";
        let status = "Name:\tx\nVmPeak:\t    2048 kB\nVmSize:\t    3000 kB\n";
        let proc = tree(dir.path(), &[MEMINFO, ("proc/7/limits", limits), ("proc/7/status", status)]);
        let expected = Limit { kind: LimitKind::AddressSpace, limit_bytes: 3_145_728, used_bytes: 3_072_000 };
        assert_eq!(nearest(&proc, 7), Some(expected));
        let unlimited = limits.replace("3145728  ", "unlimited");
        assert_eq!(address_space(unlimited.as_bytes(), status.as_bytes()), None);
    }

    #[test]
    fn this_process_has_a_limit() {
        let limit = nearest(Path::new("/proc"), std::process::id()).unwrap();
        assert!(limit.limit_bytes > 0 && limit.used_bytes > 0, "{limit:?}");
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(a: Vec<u8>, b: Vec<u8>, text in "[0-9a-z:/\\\\ \n.-]{0,80}") {
            for bytes in [&a[..], &b, text.as_bytes()] {
                groups(bytes);
                machine(bytes);
                number(bytes);
                unescape(bytes);
                address_space(bytes, &b);
                for mount in mounts(bytes) {
                    mount.limits(Path::new(&text), &|_| a.clone());
                }
            }
        }
    }
}
