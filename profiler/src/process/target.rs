//! What the user asked to profile.

use std::{
    collections::HashMap,
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

use crate::{error::Error, text};

/// The processes to profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// These processes; with `follow` their children too.
    Pids {
        /// Process ids in the profiler's PID namespace. Empty until the command to run has been started.
        pids: Vec<u32>,
        /// Whether children are targets.
        follow: bool,
    },
    /// Every process of this name.
    Comm(String),
    /// Members of a cgroup and of those below it.
    Cgroup(PathBuf),
    /// Everything.
    All,
}

impl Target {
    /// Every process of this name, as far as the kernel keeps names.
    pub fn named(name: &str) -> Target {
        Target::Comm(kernel_name(name).to_owned())
    }

    /// The one process, if there is only one and its children are none.
    pub fn only_pid(&self) -> Option<u32> {
        match self {
            Target::Pids { pids, follow: false } => <[u32; 1]>::try_from(&pids[..]).ok().map(|[pid]| pid),
            _ => None,
        }
    }

    /// Whether children of targets are targets. A child has its parent's name until it execs, so `--comm` follows.
    pub fn follows(&self) -> bool {
        matches!(self, Target::Pids { follow: true, .. } | Target::Comm(_))
    }

    /// Processes that are targets now; an error where the target does not exist.
    pub fn initial_pids(&self, proc_root: &Path) -> Result<Vec<u32>, Error> {
        match self {
            Target::Pids { pids, .. } => {
                for &pid in pids {
                    // A thread's directory can be opened too, but is not listed: its Tgid differs.
                    if thread_group(proc_root, pid) != Some(pid) {
                        return Err(Error::NoSuchPid(pid));
                    }
                }
                Ok(self.pids_now(proc_root))
            }
            Target::Comm(name) => {
                let pids = self.pids_now(proc_root);
                if pids.is_empty() { Err(Error::NoSuchComm(name.clone())) } else { Ok(pids) }
            }
            Target::Cgroup(path) => {
                // Only cgroup v2 directories have this file.
                if path.join("cgroup.controllers").exists() {
                    Ok(self.pids_now(proc_root))
                } else {
                    Err(Error::NoSuchCgroup(path.clone()))
                }
            }
            Target::All => Ok(Vec::new()),
        }
    }
}

impl Target {
    /// Processes that are targets now, where those asked for were found a moment ago: who has ended since is left out, also of
    /// the target. An error where all have.
    pub fn pids_left(&mut self, proc_root: &Path) -> Result<Vec<u32>, Error> {
        if let Target::Pids { pids, .. } = self {
            let first = pids.first().copied();
            pids.retain(|&pid| thread_group(proc_root, pid) == Some(pid));
            if let (true, Some(first)) = (pids.is_empty(), first) {
                return Err(Error::NoSuchPid(first));
            }
        }
        Ok(self.pids_now(proc_root))
    }

    /// Processes that are targets now, as far as they can be listed: with `follow` what descends from those asked for, too.
    /// None of [`Target::All`], which everything is.
    pub fn pids_now(&self, proc_root: &Path) -> Vec<u32> {
        match self {
            Target::Pids { pids, follow: false } => pids.clone(),
            Target::Pids { pids, follow: true } => {
                let parents: HashMap<u32, u32> =
                    running(proc_root).filter_map(|pid| Some((pid, parent(proc_root, pid)?))).collect();
                let descends = |mut pid: u32| {
                    // Not for ever, should a pid be reused while we look.
                    (0..parents.len()).any(|_| {
                        let found = pids.contains(&pid);
                        pid = parents.get(&pid).copied().unwrap_or(0);
                        found
                    })
                };
                let mut all = pids.clone();
                all.extend(parents.keys().copied().filter(|pid| !pids.contains(pid) && descends(*pid)));
                all
            }
            Target::Comm(name) => {
                let named = |pid: &u32| comm(proc_root, *pid).as_deref() == Some(kernel_name(name));
                running(proc_root).filter(named).collect()
            }
            Target::Cgroup(path) => members(path),
            Target::All => Vec::new(),
        }
    }

    /// Its processes as of now, of [`Target::All`] all that run.
    pub fn processes(&self, proc_root: &Path) -> Vec<u32> {
        match self {
            Target::All => running(proc_root).collect(),
            _ => self.pids_now(proc_root),
        }
    }
}

/// Processes of a cgroup and of those below it, as far as they can be seen from this PID namespace. Cgroups that are
/// removed meanwhile have none.
fn members(cgroup: &Path) -> Vec<u32> {
    let mut pids = Vec::new();
    let mut left = vec![cgroup.to_owned()];
    while let Some(path) = left.pop() {
        let text = text::read_to_parse(&path.join("cgroup.procs")).unwrap_or_default();
        // What is in another namespace is told as zero.
        pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|&pid| pid != 0));
        // Directories only, and no links: that is what cgroups are.
        let below = fs::read_dir(&path).into_iter().flatten().flatten();
        left.extend(
            below.filter(|entry| entry.file_type().is_ok_and(|it| it.is_dir())).map(|entry| entry.path()),
        );
    }
    pids
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Pids { pids, follow } => {
                let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
                write!(f, "pid {}{}", pids.join(", "), if *follow { " and children" } else { "" })
            }
            Target::Comm(name) => write!(f, "processes named {name}"),
            Target::Cgroup(path) => write!(f, "cgroup {}", path.display()),
            Target::All => f.write_str("all processes"),
        }
    }
}

/// Name of a process, as the kernel knows it (15 bytes at most).
pub fn comm(proc_root: &Path, pid: u32) -> Option<String> {
    let name = fs::read(proc_root.join(pid.to_string()).join("comm")).ok()?;
    Some(text::clean(name.strip_suffix(b"\n").unwrap_or(&name)))
}

/// All processes there are.
pub fn running(proc_root: &Path) -> impl Iterator<Item = u32> {
    fs::read_dir(proc_root)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

fn thread_group(proc_root: &Path, pid: u32) -> Option<u32> {
    status(proc_root, pid, "Tgid:")
}

/// The process that it was forked from, or that took it over.
pub fn parent(proc_root: &Path, pid: u32) -> Option<u32> {
    status(proc_root, pid, "PPid:")
}

fn status(proc_root: &Path, pid: u32, key: &str) -> Option<u32> {
    let status = fs::read(proc_root.join(pid.to_string()).join("status")).ok()?;
    let status = text::to_parse(&status);
    status.lines().find_map(|line| line.strip_prefix(key))?.trim().parse().ok()
}

/// The kernel cuts names off; so must what is compared with them.
pub fn kernel_name(name: &str) -> &str {
    let mut end = name.len().min(profiler_common::COMM_LEN - 1);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake_proc(processes: &[(u32, u32, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (pid, tgid, name) in processes {
            let dir = root.path().join(pid.to_string());
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("comm"), format!("{name}\n")).unwrap();
            fs::write(dir.join("status"), format!("Name:\t{name}\nTgid:\t{tgid}\nPid:\t{pid}\n")).unwrap();
        }
        fs::create_dir(root.path().join("sys")).unwrap();
        root
    }

    #[test]
    fn a_pid_must_be_a_process() {
        let root = fake_proc(&[(7, 7, "a"), (8, 7, "a")]);
        let target = |pid| Target::Pids { pids: vec![pid], follow: false };
        assert_eq!(target(7).initial_pids(root.path()).unwrap(), [7]);
        assert!(matches!(target(8).initial_pids(root.path()), Err(Error::NoSuchPid(8))), "a thread");
        assert!(matches!(target(9).initial_pids(root.path()), Err(Error::NoSuchPid(9))), "nothing");
    }

    #[test]
    fn those_that_have_ended_can_be_left_out() {
        let root = fake_proc(&[(7, 7, "a"), (8, 7, "a"), (9, 9, "b")]);
        let mut target = Target::Pids { pids: vec![6, 7, 8, 9, 10], follow: false };
        assert!(target.initial_pids(root.path()).is_err(), "for a user it is a typing error");
        assert_eq!(target.pids_left(root.path()).unwrap(), [7, 9]);
        assert_eq!(target, Target::Pids { pids: vec![7, 9], follow: false });
        fs::remove_dir_all(root.path().join("7")).unwrap();
        fs::remove_dir_all(root.path().join("9")).unwrap();
        assert!(matches!(target.pids_left(root.path()), Err(Error::NoSuchPid(7))), "nobody is left");
    }

    #[test]
    fn descendants_are_followed() {
        let root = fake_proc(&[(7, 7, "a"), (8, 8, "b"), (9, 9, "c"), (10, 10, "d")]);
        for (pid, parent) in [(8, 7), (9, 8), (10, 1)] {
            let text = format!("Name:\tx\nTgid:\t{pid}\nPid:\t{pid}\nPPid:\t{parent}\n");
            fs::write(root.path().join(format!("{pid}/status")), text).unwrap();
        }
        let follow = |follow| {
            let mut pids = Target::Pids { pids: vec![7], follow }.pids_now(root.path());
            pids.sort_unstable();
            pids
        };
        assert_eq!((follow(true), follow(false)), (vec![7, 8, 9], vec![7]));
    }

    #[test]
    fn names_are_compared_as_the_kernel_cuts_them() {
        let root = fake_proc(&[(7, 7, "a-very-long-nam"), (8, 8, "b")]);
        let long = Target::Comm("a-very-long-name".into());
        assert_eq!(long.initial_pids(root.path()).unwrap(), [7]);
        let none = Target::Comm("c".into());
        assert!(matches!(none.initial_pids(root.path()), Err(Error::NoSuchComm(_))));
    }

    #[test]
    fn a_cgroup_must_be_one() {
        let dir = tempfile::tempdir().unwrap();
        let target = Target::Cgroup(dir.path().to_owned());
        assert!(matches!(target.initial_pids(Path::new("/proc")), Err(Error::NoSuchCgroup(_))));
    }

    #[test]
    fn a_cgroup_has_its_members_and_those_of_the_ones_below() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("a/b");
        fs::create_dir_all(&below).unwrap();
        fs::create_dir(dir.path().join("threaded")).unwrap(); // its processes cannot be read
        fs::write(dir.path().join("cgroup.controllers"), "cpu\n").unwrap();
        fs::write(dir.path().join("cgroup.procs"), "7\n0\n8\n").unwrap();
        fs::write(below.join("cgroup.procs"), "9\n").unwrap();
        let mut pids = Target::Cgroup(dir.path().to_owned()).initial_pids(Path::new("/proc")).unwrap();
        pids.sort_unstable();
        assert_eq!(pids, [7, 8, 9]);
    }
}
