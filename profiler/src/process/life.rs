//! Which of the targets still live.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use crate::{
    process::notice::{Event, Notice},
    text,
};

/// The processes whose end is the end of the run.
pub struct Living {
    proc_root: PathBuf,
    /// Start time by pid (clock ticks since boot): a later process with the same number is another one.
    processes: HashMap<u32, u64>,
    follow: bool,
}

impl Living {
    /// Starts with `pids`; with `follow` their children count too.
    pub fn new(proc_root: &Path, pids: &[u32], follow: bool) -> Living {
        let mut living = Living { proc_root: proc_root.to_owned(), processes: HashMap::new(), follow };
        for &pid in pids {
            living.add(pid);
        }
        living
    }

    /// Counts one more process.
    pub fn add(&mut self, pid: u32) {
        // Without a start time it has ended already, and `sweep` will say so.
        self.processes.insert(pid, start_time(&self.proc_root, pid).unwrap_or(0));
    }

    /// Takes note of children.
    pub fn apply(&mut self, notice: &Notice) {
        if let Event::Forked { parent } = notice.event
            && self.follow
            && self.processes.contains_key(&parent)
        {
            self.add(notice.pid);
        }
    }

    /// Removes those that have ended and returns them.
    pub fn sweep(&mut self) -> Vec<u32> {
        let root = &self.proc_root;
        self.processes
            .extract_if(|&pid, started| start_time(root, pid) != Some(*started))
            .map(|(pid, _)| pid)
            .collect()
    }

    /// All of them.
    pub fn pids(&self) -> Vec<u32> {
        let mut pids: Vec<u32> = self.processes.keys().copied().collect();
        pids.sort_unstable();
        pids
    }

    /// Whether a process counts.
    pub fn contains(&self, pid: u32) -> bool {
        self.processes.contains_key(&pid)
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.processes.is_empty()
    }
}

/// Inode number of a process's network namespace.
pub fn network_namespace(proc_root: &Path, pid: u32) -> Option<u32> {
    let metadata = std::fs::metadata(super::shown::shown(proc_root, pid).join("ns/net")).ok()?;
    u32::try_from(std::os::unix::fs::MetadataExt::ino(&metadata)).ok()
}

/// When a living process started, in clock ticks since boot. A zombie without threads lives no more.
pub fn start_time(proc_root: &Path, pid: u32) -> Option<u64> {
    let stat = super::shown::thread_stat(&proc_root.join(pid.to_string()))?;
    let stat = crate::text::to_parse(&stat);
    // The name, in parentheses, may itself hold spaces and parentheses. Fields: proc_pid_stat(5).
    let fields: Vec<&str> = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().collect();
    let (state, threads, started) = (fields.first()?, fields.get(17)?, fields.get(19)?);
    if matches!(*state, "Z" | "X") && threads.parse::<u32>().ok()? <= 1 {
        return None;
    }
    started.parse().ok()
}

/// The ids of a process or a thread in the PID namespaces that it is in, its own one last, by its folder in /proc; none if it is
/// gone.
pub fn namespace_ids(task: &Path) -> Vec<u32> {
    let status = text::read_to_parse(&task.join("status")).unwrap_or_default();
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    ids.into_iter().flat_map(str::split_whitespace).filter_map(|id| id.parse().ok()).collect()
}

/// Ids of a process's threads.
pub fn threads_of(proc_root: &Path, pid: u32) -> Vec<u32> {
    let entries = fs::read_dir(proc_root.join(format!("{pid}/task"))).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn set(root: &Path, pid: u32, state: &str, threads: u32, started: u64) {
        let dir = root.join(pid.to_string());
        fs::create_dir_all(&dir).unwrap();
        let stat =
            format!("{pid} (a) b) {state} 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 {threads} 0 {started} 0 0\n");
        fs::write(dir.join("stat"), stat).unwrap();
    }

    #[test]
    fn the_end_is_noticed() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        for pid in 1..=4 {
            set(root, pid, "S", 2, 100);
        }
        let mut living = Living::new(root, &[1, 2, 3, 4], true);
        assert!(living.sweep().is_empty());
        set(root, 1, "Z", 1, 100); // ended
        set(root, 2, "Z", 2, 100); // its main thread ended
        set(root, 3, "S", 1, 101); // another process
        fs::remove_dir_all(root.join("4")).unwrap();
        let mut ended = living.sweep();
        ended.sort_unstable();
        assert_eq!(ended, [1, 3, 4]);
        set(root, 5, "R", 1, 200);
        living.apply(&Notice { time_ns: 0, pid: 5, event: Event::Forked { parent: 2 } });
        living.apply(&Notice { time_ns: 0, pid: 6, event: Event::Forked { parent: 99 } });
        set(root, 2, "Z", 1, 100);
        assert_eq!(living.sweep(), [2]);
        assert!(!living.is_empty(), "the child goes on");
    }
}
