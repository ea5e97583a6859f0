//! Connections that wait to be accepted: the kernel knows for each socket that listens how many there are, and for each of them
//! when it was made. Nobody else does: the program has not seen them yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use profiler_common::histogram::Histogram;

use super::{life::network_namespace, sockdiag::SockDiag};
use crate::{
    model::{distribution::Summary, vitals::Backlog},
    text,
};

/// Most sockets that are looked at, and those of one process.
const MAX_SOCKETS: usize = 1024;
const MAX_OF_ONE: usize = 64;
/// Sockets with connections of which it is asked, at each look, how long these have waited.
const MAX_ASKED: usize = 8;
/// Time between two looks, and how many times as long as a look takes at least.
const INTERVAL: Duration = Duration::from_millis(200);
const PAUSE: u32 = 100;
/// Whoever starts a service holds its socket, too (socket activation), and does not accept.
const INIT: u32 = 1;

/// Looks at sockets that listen, and remembers what it saw.
pub struct Backlogs {
    proc_root: PathBuf,
    diag: SockDiag,
    /// By inode.
    sockets: BTreeMap<u64, Socket>,
    due: Instant,
}

struct Socket {
    port: u16,
    namespace: u32,
    /// Those that have it now, and who had it last where nobody does.
    pids: BTreeSet<u32>,
    last: u32,
    seen: Backlog,
    /// Where somebody has waited.
    oldest: Option<Box<Histogram>>,
}

impl Socket {
    fn add(&mut self, waiting: u64, limit: u64, oldest_ms: Option<u32>) {
        let seen = &mut self.seen;
        seen.looks += 1;
        (seen.limit, seen.last) = (limit, waiting);
        seen.most = seen.most.max(waiting);
        seen.sum += waiting;
        // One more than the limit may wait: sk_acceptq_is_full, include/net/sock.h.
        seen.full += u64::from(waiting > limit);
        if let Some(ms) = oldest_ms {
            self.oldest.get_or_insert_with(|| Box::new(Histogram::EMPTY)).count(u64::from(ms) * 1_000_000);
        }
    }
}

impl Backlogs {
    /// Nothing seen yet.
    pub fn new(proc_root: &Path) -> Backlogs {
        Backlogs {
            proc_root: proc_root.to_owned(),
            diag: SockDiag::default(),
            sockets: BTreeMap::new(),
            due: Instant::now(),
        }
    }

    /// A process has these sockets, and no others: inode, address and port.
    pub fn learn<'a>(&mut self, pid: u32, sockets: impl Iterator<Item = (u64, &'a (String, u16))>) {
        self.forget(pid);
        let Some(namespace) = network_namespace(&self.proc_root, pid) else { return };
        for (inode, (address, port)) in sockets.take(MAX_OF_ONE) {
            if self.sockets.len() >= MAX_SOCKETS && !self.sockets.contains_key(&inode) {
                // What nobody has any more, and nobody waited at, makes room.
                self.sockets.retain(|_, of| !of.pids.is_empty() || of.seen.most > 0);
            }
            if self.sockets.len() < MAX_SOCKETS || self.sockets.contains_key(&inode) {
                let new = || Socket {
                    port: *port,
                    namespace,
                    pids: BTreeSet::new(),
                    last: pid,
                    seen: Backlog { address: address.clone(), ..Backlog::default() },
                    oldest: None,
                };
                let of = self.sockets.entry(inode).or_insert_with(new);
                of.pids.insert(pid);
                of.seen.processes = of.seen.processes.max(of.pids.len() as u64);
            }
        }
    }

    fn forget(&mut self, pid: u32) {
        for of in self.sockets.values_mut() {
            if of.pids.remove(&pid) {
                of.last = pid;
            }
        }
    }

    /// Looks, if it is time to.
    pub fn look(&mut self) {
        if self.sockets.is_empty() || Instant::now() < self.due {
            return;
        }
        let begun = Instant::now();
        // Any process that lives tells the way into its namespace.
        let mut namespaces: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        for of in self.sockets.values() {
            namespaces.entry(of.namespace).or_default().extend(&of.pids);
        }
        let mut asked = 0;
        for pids in namespaces.into_values() {
            let mut living = None;
            for pid in pids {
                if network_namespace(&self.proc_root, pid).is_some() {
                    living = Some(pid);
                    break;
                }
                self.forget(pid);
            }
            let Some(pid) = living else { continue };
            for found in self.diag.listening(&self.proc_root, pid).unwrap_or_default() {
                let Some(of) = self.sockets.get_mut(&found.inode) else { continue };
                let mut oldest = None;
                if found.waiting > 0 && asked < MAX_ASKED {
                    asked += 1;
                    oldest = self.diag.longest_unaccepted(&self.proc_root, pid, of.port).flatten();
                }
                of.add(found.waiting.into(), found.limit.into(), oldest);
            }
        }
        self.due = Instant::now() + INTERVAL.max(begun.elapsed() * PAUSE);
    }

    /// What was seen of those that a process has, or had; where several have one it is that of the first of them.
    pub fn of(&self, pid: u32) -> Vec<Backlog> {
        let is_its = |of: &&Socket| {
            let first = of.pids.iter().find(|pid| **pid != INIT || of.pids.len() == 1);
            *first.unwrap_or(&of.last) == pid && of.seen.looks > 0
        };
        let of = self.sockets.values().filter(is_its);
        of.map(|of| Backlog {
            oldest: of.oldest.as_deref().map(Summary::of).unwrap_or_default(),
            ..of.seen.clone()
        })
        .collect()
    }
}

/// How many connections a process's network namespace has turned away since it began, as sockets had no room for them: `TcpExt` in
/// `/proc/PID/net/netstat`, a line of names and one of numbers.
pub fn overflows(proc_root: &Path, pid: u32) -> Option<u64> {
    parse_overflows(&text::read_to_parse(&proc_root.join(format!("{pid}/net/netstat"))).ok()?)
}

fn parse_overflows(text: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let (names, numbers) = (lines.next()?.split_whitespace(), lines.next()?.split_whitespace());
    names.zip(numbers).find(|(name, _)| *name == "ListenOverflows")?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn overflows_are_found_by_name() {
        let text =
            "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 1 22 33\nIpExt: A\nIpExt: 5\n";
        assert_eq!(parse_overflows(text), Some(22));
        for text in
            ["", "TcpExt: A ListenOverflows\n", "TcpExt: A ListenOverflows\nTcpExt: 1\n", "TcpExt: é\n"]
        {
            assert_eq!(parse_overflows(text), None);
        }
    }

    #[test]
    fn who_waits_is_counted_until_he_is_accepted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let inode = {
            use std::os::{fd::AsRawFd as _, unix::fs::MetadataExt as _};
            std::fs::metadata(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap().ino()
        };
        let mut backlogs = Backlogs::new(Path::new("/proc"));
        let (pid, named) = (std::process::id(), (address.to_string(), address.port()));
        backlogs.learn(pid, [(inode, &named)].into_iter());
        let mut look = || {
            backlogs.due = Instant::now();
            backlogs.look();
            let [of] = &backlogs.of(pid)[..] else { panic!() };
            of.clone()
        };
        let none = look();
        assert_eq!((none.looks, none.last, none.oldest.count), (1, 0, 0));
        let _clients = [(); 2].map(|()| TcpStream::connect(address).unwrap());
        let two = look();
        assert_eq!((two.last, two.most, two.full, two.oldest.count), (2, 2, 0, 1));
        let _accepted = [(); 2].map(|()| listener.accept().unwrap());
        let none = look();
        assert_eq!((none.looks, none.last, none.most, none.sum, none.oldest.count), (3, 0, 2, 2, 1));
        assert!(none.limit > 2 && none.processes == 1 && none.address == named.0);
    }

    #[test]
    fn a_socket_is_that_of_the_first_process_that_has_it() {
        let of = |pids: &[u32]| Socket {
            port: 80,
            namespace: 1,
            pids: pids.iter().copied().collect(),
            last: 0,
            seen: Backlog { looks: 1, ..Backlog::default() },
            oldest: None,
        };
        let mut backlogs = Backlogs::new(Path::new("/proc"));
        backlogs.sockets.insert(5, of(&[7, 8]));
        backlogs.sockets.insert(6, of(&[1, 8]));
        assert_eq!([1, 7, 8].map(|pid| backlogs.of(pid).len()), [0, 1, 1]);
        backlogs.forget(7);
        assert_eq!([1, 7, 8].map(|pid| backlogs.of(pid).len()), [0, 0, 2]);
        backlogs.forget(8);
        assert_eq!(backlogs.of(8).len(), 1, "the last one that had it is told with it");
        assert!(backlogs.sockets[&5].pids.is_empty(), "and it makes room where there are too many");
        let mut full = of(&[7]);
        (0..3).for_each(|waiting| full.add(waiting, 1, None));
        assert_eq!((full.seen.full, full.seen.sum, full.seen.most), (1, 3, 2));
    }
}
