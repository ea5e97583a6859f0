//! What is known of a target from outside, at the beginning of a window.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::{engine::TargetFacts, targets};
use crate::{metrics::Outside, process::quota::CpuQuota};

/// Looks at a target's processes.
pub fn facts(proc_root: &Path, pids: BTreeSet<u32>) -> TargetFacts {
    let ages = pids.iter().filter_map(|&pid| targets::age_s(proc_root, pid));
    let ratio = |(open, most): (u64, u64)| open as f64 / most.max(1) as f64;
    let descriptors = pids.iter().filter_map(|&pid| targets::descriptors(proc_root, pid));
    TargetFacts {
        // The oldest: a worker that is replaced is no restart.
        age_s: ages.fold(0.0, f64::max),
        outside: Outside {
            descriptors: descriptors.max_by(|a, b| ratio(*a).total_cmp(&ratio(*b))),
            cpus: cpus(proc_root, &pids),
            pressure: pids.first().map_or_else(Vec::new, |&pid| pressure(proc_root, pid)),
        },
        pids,
    }
}

/// CPU time that processes may use together in a second, s: the quotas of their cgroups, or all CPUs.
fn cpus(proc_root: &Path, pids: &BTreeSet<u32>) -> f64 {
    let online = std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64);
    let quotas: Option<BTreeMap<String, f64>> = pids
        .iter()
        .map(|&pid| CpuQuota::of(proc_root, pid).and_then(|quota| Some((quota.cgroup, quota.cpus?))))
        .collect();
    match quotas {
        // Each group counts once, however many processes are in it.
        Some(quotas) if !quotas.is_empty() => quotas.values().sum::<f64>().min(online),
        _ => online,
    }
}

/// Pressure of a process's cgroup (v2): part of the last 10 s in which something in it waited, by resource. Of no other
/// group: that of the whole machine would say nothing of the target.
fn pressure(proc_root: &Path, pid: u32) -> Vec<(&'static str, f64)> {
    let groups = crate::text::read_to_parse(&proc_root.join(format!("{pid}/cgroup"))).unwrap_or_default();
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let Some(path) = path.filter(|path| !path.is_empty() && !path.split('/').any(|part| part == "..")) else {
        return Vec::new();
    };
    let read = |resource: &'static str| {
        let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
        let files = roots.map(|root| Path::new(root).join(path).join(format!("{resource}.pressure")));
        let text = files.iter().find_map(|file| crate::text::read_to_parse(file).ok())?;
        Some((resource, some_avg10(&text)?))
    };
    ["cpu", "memory", "io"].into_iter().filter_map(read).collect()
}

/// Out of a pressure file: the part of the last 10 s in which something waited, from 0 to 1.
fn some_avg10(text: &str) -> Option<f64> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let percent: f64 = some.split(' ').find_map(|field| field.strip_prefix("avg10="))?.parse().ok()?;
    Some(percent / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_a_part() {
        let text = "some avg10=22.82 avg60=31.10 avg300=26.22 total=5205006008\nfull avg10=0.00 avg60=0.00\n";
        assert!(some_avg10(text).is_some_and(|part| (part - 0.2282).abs() < 1e-9));
        assert_eq!(some_avg10("nonsense"), None);
    }

    #[test]
    fn this_process_has_cpus_and_an_age() {
        let facts = facts(Path::new("/proc"), [std::process::id()].into());
        assert!(
            facts.outside.cpus > 0.0 && facts.outside.descriptors.is_some_and(|(open, most)| open < most)
        );
        assert!(facts.outside.pressure.iter().all(|(_, part)| (0.0..=1.0).contains(part)));
    }
}
