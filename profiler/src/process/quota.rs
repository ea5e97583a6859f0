//! What a cgroup's CPU quota did to a process: `cpu.stat` and `cpu.max`, or their equals of cgroup v1.

use std::path::{Component, Path, PathBuf};

/// Counts since the cgroup was made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CpuQuota {
    /// The cgroup with the quota.
    pub cgroup: String,
    /// CPUs it may use, if there is a quota.
    pub cpus: Option<f64>,
    /// Periods in which something was to run, and those in which the quota was used up.
    pub periods: u64,
    /// See `periods`.
    pub throttled_periods: u64,
    /// Time that threads were held back, ns.
    pub throttled_ns: u64,
}

impl CpuQuota {
    /// Of the innermost cgroup of a process, or of one above it, that has a quota.
    pub fn of(proc_root: &Path, pid: u32) -> Option<CpuQuota> {
        let groups = crate::text::read_to_parse(&proc_root.join(format!("{pid}/cgroup"))).ok()?;
        groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let root = match (id, controllers) {
                ("0", "") => "/sys/fs/cgroup".to_owned(),
                (_, names) if names.split(',').any(|name| name == "cpu") => format!("/sys/fs/cgroup/{names}"),
                _ => return None,
            };
            quota(Path::new(&root), Path::new(path))
        })
    }
}

/// Looks for a quota from a group upwards.
fn quota(root: &Path, group: &Path) -> Option<CpuQuota> {
    let below = group.strip_prefix("/").ok()?;
    if below.components().any(|component| !matches!(component, Component::Normal(_))) {
        return None;
    }
    below.ancestors().find_map(|below| {
        let dir = root.join(below);
        let read = |name: &str| crate::text::read_to_parse(&dir.join(name)).unwrap_or_default();
        let v1 =
            || cpus(&format!("{} {}", read("cpu.cfs_quota_us").trim(), read("cpu.cfs_period_us").trim()));
        let cpus = cpus(&read("cpu.max")).or_else(v1)?;
        let stat = read("cpu.stat");
        let field = |name: &str| {
            let found =
                stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok());
            found.unwrap_or(0u64)
        };
        Some(CpuQuota {
            cgroup: crate::text::path(&PathBuf::from("/").join(below)),
            cpus: Some(cpus),
            periods: field("nr_periods"),
            throttled_periods: field("nr_throttled"),
            // v2 has microseconds, v1 nanoseconds.
            throttled_ns: field("throttled_usec").saturating_mul(1000).max(field("throttled_time")),
        })
    })
}

/// `QUOTA PERIOD`, in microseconds; no number, or a negative one, is no quota.
fn cpus(text: &str) -> Option<f64> {
    let mut words = text.split_whitespace();
    let quota: f64 = words.next()?.parse().ok()?;
    let period: f64 = words.next()?.parse().ok()?;
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_nearest_group_with_a_quota_counts() {
        let root = tempfile::tempdir().unwrap();
        let leaf = root.path().join("a/b");
        fs::create_dir_all(&leaf).unwrap();
        fs::write(leaf.join("cpu.max"), "max 100000\n").unwrap();
        fs::write(root.path().join("a/cpu.max"), "50000 100000\n").unwrap();
        fs::write(
            root.path().join("a/cpu.stat"),
            "usage_usec 9\nnr_periods 10\nnr_throttled 4\nthrottled_usec 25\n",
        )
        .unwrap();
        let found = quota(root.path(), Path::new("/a/b")).unwrap();
        let expected = CpuQuota {
            cgroup: "/a".into(),
            cpus: Some(0.5),
            periods: 10,
            throttled_periods: 4,
            throttled_ns: 25_000,
        };
        assert_eq!(found, expected);
        assert_eq!((cpus("-1 100000"), cpus("max 100000"), cpus("")), (None, None, None));
        assert_eq!(quota(root.path(), Path::new("/../a")), None);
    }
}
