//! Breakpoints in the TLS libraries of targets, so that requests inside of encrypted connections are told: which library a
//! process has, when it is watched, and what cannot be seen.

mod library;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    thread,
};

use self::library::{Known, PROGRAMS};
use crate::{
    kernel::{
        port::Port,
        uprobe::{Attached, Programs},
    },
    model::request::{Exchanges, Tls},
    process::notice::{Event, Notice},
};

/// Processes that are watched at once: each takes some descriptors.
const MAX_PROCESSES: usize = 1024;

/// Processes without a library that are remembered.
const MAX_WITHOUT: usize = 4096;

/// The processes whose TLS libraries are watched.
pub struct TlsWatch {
    proc_root: PathBuf,
    /// The kernel programs, or why they could not be loaded; nothing before they are wanted.
    programs: Option<Result<Programs, String>>,
    processes: BTreeMap<u32, Process>,
    known: Known,
    /// Those without a library that is known, also when they have ended; and whether they are written in Go.
    without: BTreeMap<u32, bool>,
    libraries: BTreeSet<String>,
    /// What could not be watched, and why.
    problems: BTreeSet<String>,
    stale: bool,
}

/// One process.
#[derive(Default)]
struct Process {
    /// Mappings or program have changed since its library was looked for.
    stale: bool,
    libraries: Vec<String>,
    attached: Attached,
}

impl TlsWatch {
    /// Nothing is watched yet.
    pub fn new(proc_root: &Path) -> TlsWatch {
        TlsWatch {
            proc_root: proc_root.to_owned(),
            programs: None,
            processes: BTreeMap::new(),
            known: Known::new(),
            without: BTreeMap::new(),
            libraries: BTreeSet::new(),
            problems: BTreeSet::new(),
            stale: false,
        }
    }

    /// Takes note of what happened to a process.
    pub fn notice(&mut self, notice: &Notice) {
        match notice.event {
            // What was watched has gone with its mappings.
            Event::Exec { .. } => {
                forget(self.processes.remove(&notice.pid));
                self.stale = true;
            }
            Event::Forked { .. } => self.stale = true,
            Event::Exited => forget(self.processes.remove(&notice.pid)),
            Event::Mapped { .. } => {}
        }
    }

    /// Other code is mapped into a process than before.
    pub fn mappings_changed(&mut self, pid: u32) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.stale = true;
            self.stale = true;
        }
    }

    /// Whether there may be a library that is not watched yet.
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    /// Watches the libraries of these processes, which are all targets there are.
    pub fn look(&mut self, pids: &[u32], kernel: &mut dyn Port) {
        self.stale = false;
        let gone: Vec<u32> = self.processes.keys().filter(|pid| !pids.contains(pid)).copied().collect();
        gone.iter().for_each(|pid| forget(self.processes.remove(pid)));
        for &pid in pids {
            if self.processes.len() >= MAX_PROCESSES && !self.processes.contains_key(&pid) {
                self.problems.insert(format!("TLS of more than {MAX_PROCESSES} processes at once"));
                break;
            }
            let process =
                self.processes.entry(pid).or_insert_with(|| Process { stale: true, ..Process::default() });
            if !std::mem::take(&mut process.stale) {
                continue;
            }
            let found = library::find(&self.proc_root, pid, &mut self.known);
            if found.libraries.is_empty() && process.libraries.is_empty() && self.without.len() < MAX_WITHOUT
            {
                // One that is about to end shows nothing any more.
                *self.without.entry(pid).or_default() |= found.go;
            } else {
                self.without.remove(&pid);
            }
            for (name, breakpoints) in found.libraries {
                if process.libraries.contains(&name) {
                    continue;
                }
                let programs = self.programs.get_or_insert_with(|| {
                    kernel.user_programs(&PROGRAMS).map(|(programs, _)| programs).map_err(|error| {
                        let text = format!("{error:#}");
                        // The verifier's answer can be long; what it did not like comes last.
                        let last: Vec<&str> = text.lines().rev().take(6).collect();
                        last.into_iter().rev().collect::<Vec<_>>().join("; ")
                    })
                });
                let attached = match programs {
                    Ok(programs) => programs.attach(pid, &breakpoints).map_err(|error| error.to_string()),
                    Err(error) => Err(error.clone()),
                };
                match attached {
                    Ok(mut attached) => {
                        process.attached.append(&mut attached);
                        self.libraries.insert(name.clone());
                    }
                    Err(error) => _ = self.problems.insert(format!("{name}: {error}")),
                }
                process.libraries.push(name);
            }
        }
    }

    /// What was watched, and what of these exchanges could not be seen.
    pub fn told(&self, peers: &[Exchanges]) -> Tls {
        let mut not_seen: BTreeSet<String> = self.problems.clone();
        for peer in peers.iter().filter(|peer| peer.encrypted) {
            let who = format!("{} (pid {})", peer.process, peer.pid);
            not_seen.insert(match self.without.get(&peer.pid) {
                Some(true) => format!("{who}: the TLS of Go is not looked into"),
                Some(false) => format!(
                    "{who}: no OpenSSL or BoringSSL with symbols found; other libraries (rustls, Java) are not looked into"
                ),
                None => format!("{who}: some exchanges whose connection, or library, could not be told"),
            });
        }
        Tls { libraries: self.libraries.iter().cloned().collect(), not_seen: not_seen.into_iter().collect() }
    }
}

/// Breakpoints are taken away on another thread: that waits for all CPUs, on old kernels long.
fn forget(process: Option<Process>) {
    if let Some(process) = process {
        thread::spawn(move || drop(process.attached));
    }
}
