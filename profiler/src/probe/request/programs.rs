//! Which processes are one program: those that have one name and were forked from one another, as the workers of a server are, or
//! were started by one program one after the other, as the commands of a script are. Their requests are told together, however many processes there are.

use std::path::{Path, PathBuf};

use rustc_hash::FxHashMap;

use crate::process::{
    notice::{Event, Notice},
    target::{comm, parent},
};

/// Processes that are remembered; then those that have ended are forgotten.
const MAX_PROCESSES: usize = 65_536;

/// Targets, and what they are part of.
pub struct Programs {
    proc_root: PathBuf,
    /// The first process of each process's program.
    first: FxHashMap<u32, u32>,
    /// The name of that.
    names: FxHashMap<u32, String>,
    /// The first process of each program that another one has started, by the first process of that and the name.
    started: FxHashMap<(u32, String), u32>,
}

impl Programs {
    /// Begins with the processes `pids`.
    pub fn new(proc_root: &Path, pids: &[u32]) -> Programs {
        let (first, names, started) = Default::default();
        let mut programs = Programs { proc_root: proc_root.to_owned(), first, names, started };
        // Parents are mostly older than their children.
        for &pid in pids {
            programs.first(pid);
        }
        programs
    }

    /// The first process of the program that a target is part of.
    pub fn first(&mut self, pid: u32) -> u32 {
        if let Some(&first) = self.first.get(&pid) {
            return first;
        }
        let name = comm(&self.proc_root, pid).unwrap_or_default();
        let known = parent(&self.proc_root, pid).and_then(|parent| self.first.get(&parent).copied());
        let first = known.filter(|first| self.names.get(first) == Some(&name)).unwrap_or(pid);
        self.add(pid, first, name);
        first
    }

    /// Takes note of what happened to a process.
    pub fn notice(&mut self, notice: &Notice) {
        let pid = notice.pid;
        match &notice.event {
            Event::Forked { parent } => {
                if let Some(&first) = self.first.get(parent)
                    && let Some(name) = self.names.get(&first).cloned()
                {
                    self.add(pid, first, name);
                }
            }
            Event::Exec { name } => {
                if let Some(&by) = self.first.get(&pid)
                    && self.names.get(&by) != Some(name)
                {
                    // Two that live at once may be two servers.
                    let before = self.started.get(&(by, name.clone())).filter(|before| !self.lives(**before));
                    let first = before.copied().unwrap_or(pid);
                    self.started.insert((by, name.clone()), first);
                    self.add(pid, first, name.clone());
                }
            }
            Event::Mapped { .. } | Event::Exited => {}
        }
    }

    fn lives(&self, pid: u32) -> bool {
        self.proc_root.join(pid.to_string()).exists()
    }

    fn add(&mut self, pid: u32, first: u32, name: String) {
        if self.first.len() >= MAX_PROCESSES {
            let first = std::mem::take(&mut self.first);
            self.first = first.into_iter().filter(|(pid, _)| self.lives(*pid)).collect();
            let used: std::collections::BTreeSet<u32> = self.first.values().copied().collect();
            self.names.retain(|first, _| used.contains(first));
            self.started.retain(|(by, _), first| used.contains(by) && used.contains(first));
        }
        self.first.insert(pid, first);
        self.names.insert(first, name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::fixtures::process;

    #[test]
    fn workers_are_part_of_the_program_that_forked_them() {
        let root = tempfile::tempdir().unwrap();
        process(root.path(), 7, "nginx");
        process(root.path(), 8, "sh");
        let mut programs = Programs::new(root.path(), &[7, 8]);
        let happens = |pid, event| Notice { time_ns: 0, pid, event };
        programs.notice(&happens(70, Event::Forked { parent: 7 }));
        programs.notice(&happens(71, Event::Forked { parent: 7 }));
        programs.notice(&happens(71, Event::Exec { name: "nginx".into() }));
        programs.notice(&happens(80, Event::Forked { parent: 8 }));
        programs.notice(&happens(80, Event::Exec { name: "node".into() }));
        programs.notice(&happens(81, Event::Forked { parent: 80 }));
        programs.notice(&happens(90, Event::Forked { parent: 9 }));
        // The script starts the same command again, and another one.
        process(root.path(), 83, "curl");
        for (pid, name) in [(82, "node"), (83, "curl"), (84, "curl")] {
            programs.notice(&happens(pid, Event::Forked { parent: 8 }));
            programs.notice(&happens(pid, Event::Exec { name: name.into() }));
        }
        let first = [7, 70, 71, 8, 80, 81, 82, 83, 84, 90].map(|pid| programs.first(pid));
        assert_eq!(first, [7, 7, 7, 8, 80, 80, 80, 83, 84, 90]);
    }
}
