//! Which processes are one program: those that have one name and were forked from one another, as the workers of a server are.
//! Their requests are told together, however many processes there are.

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
}

impl Programs {
    /// Begins with the processes `pids`.
    pub fn new(proc_root: &Path, pids: &[u32]) -> Programs {
        let (first, names) = Default::default();
        let mut programs = Programs { proc_root: proc_root.to_owned(), first, names };
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
                if let Some(first) = self.first.get(&pid)
                    && self.names.get(first) != Some(name)
                {
                    self.add(pid, pid, name.clone());
                }
            }
            Event::Mapped { .. } | Event::Exited => {}
        }
    }

    fn add(&mut self, pid: u32, first: u32, name: String) {
        if self.first.len() >= MAX_PROCESSES {
            let lives = |pid: &u32| self.proc_root.join(pid.to_string()).exists();
            self.first.retain(|pid, _| lives(pid));
            let used: std::collections::BTreeSet<u32> = self.first.values().copied().collect();
            self.names.retain(|first, _| used.contains(first));
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
        assert_eq!([7, 70, 71, 8, 80, 81, 90].map(|pid| programs.first(pid)), [7, 7, 7, 8, 80, 80, 90]);
    }
}
