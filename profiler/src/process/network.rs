//! What network namespaces hold. The kernel goes through the whole of its table of connections for each reader, and a server
//! that makes and closes many has tens of thousands there: so it is read once for all processes of a namespace, and seldom
//! where that takes long.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

use super::{
    life::network_namespace,
    shown::shown,
    sockdiag::SockDiag,
    tcp::{TcpSocket, TcpState, address, tcp_sockets},
};
use crate::text;

/// Most namespaces that are kept; of others it is read for each process.
const MAX_NAMESPACES: usize = 16;
/// Reading takes one part in so many of the time at most.
const MOST_OF_TIME: u32 = 50;

/// What takes no longer is read again for a socket that is younger than what was read.
const CHEAP: Duration = Duration::from_micros(500);

/// What a network namespace held when it was asked for; each table is read when it is first needed.
pub struct Network {
    dir: PathBuf,
    pid: u32,
    asked: Instant,
    took: Cell<Duration>,
    tcp: OnceCell<Tcp>,
    udp: OnceCell<BTreeMap<u64, String>>,
    unix: OnceCell<BTreeMap<u64, UnixSocket>>,
    awaiting: OnceCell<Option<BTreeMap<u64, u32>>>,
}

/// Its TCP sockets.
#[derive(Debug, Default)]
pub struct Tcp {
    /// All of them.
    pub sockets: Vec<TcpSocket>,
    by_inode: BTreeMap<u64, usize>,
    by_ends: OnceCell<HashMap<(String, String), u64>>,
    /// Ports that are listened at.
    pub listening: BTreeSet<u16>,
}

/// A Unix socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnixSocket {
    /// It is connected.
    pub connected: bool,
    /// It waits for connections.
    pub listens: bool,
    /// Its path, which who was connected to has.
    pub path: Option<String>,
}

impl Tcp {
    fn new(sockets: Vec<TcpSocket>) -> Tcp {
        let listeners = sockets.iter().filter(|of| of.state == TcpState::Listen);
        let listening = listeners.map(|of| of.local.1).collect();
        Tcp {
            by_inode: sockets.iter().enumerate().map(|(at, of)| (of.inode, at)).collect(),
            by_ends: OnceCell::new(),
            listening,
            sockets,
        }
    }

    /// The socket with an inode.
    pub fn socket(&self, inode: u64) -> Option<&TcpSocket> {
        self.by_inode.get(&inode).map(|&at| &self.sockets[at])
    }

    /// The inodes of the connections that some process has, by their own and the other address.
    pub fn by_ends(&self) -> &HashMap<(String, String), u64> {
        let connected =
            || self.sockets.iter().filter(|of| of.state == TcpState::Established && of.inode != 0);
        let ends = |of: &TcpSocket| ((of.local.0.clone(), of.remote.clone()), of.inode);
        self.by_ends.get_or_init(|| connected().map(ends).collect())
    }
}

impl Network {
    fn new(proc_root: &Path, pid: u32) -> Network {
        Network {
            dir: shown(proc_root, pid).join("net"),
            pid,
            asked: Instant::now(),
            took: Cell::default(),
            tcp: OnceCell::new(),
            udp: OnceCell::new(),
            unix: OnceCell::new(),
            awaiting: OnceCell::new(),
        }
    }

    fn is_fresh(&self) -> bool {
        self.asked.elapsed() < self.took.get() * MOST_OF_TIME
    }

    fn timed<T>(&self, read: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let found = read();
        self.took.set(self.took.get() + began.elapsed());
        found
    }

    /// Its TCP sockets.
    pub fn tcp(&self) -> &Tcp {
        self.tcp.get_or_init(|| self.timed(|| Tcp::new(tcp_sockets(&self.dir))))
    }

    /// A UDP socket by its inode, in words.
    pub fn udp(&self, inode: u64) -> Option<&str> {
        let read = || {
            let texts =
                ["udp", "udp6"].map(|name| text::read_to_parse(&self.dir.join(name)).unwrap_or_default());
            texts.iter().flat_map(|text| text.lines().skip(1)).filter_map(udp_socket).collect()
        };
        self.udp.get_or_init(|| self.timed(read)).get(&inode).map(String::as_str)
    }

    /// A Unix socket by its inode.
    pub fn unix(&self, inode: u64) -> Option<&UnixSocket> {
        let read = || {
            let text = text::read_to_parse(&self.dir.join("unix")).unwrap_or_default();
            text.lines().skip(1).filter_map(unix_socket).collect()
        };
        self.unix.get_or_init(|| self.timed(read)).get(&inode)
    }

    fn has(&self, inode: u64) -> bool {
        self.tcp().socket(inode).is_some() || self.udp(inode).is_some() || self.unix(inode).is_some()
    }

    /// Connections of which an answer is awaited, by inode, and for how long, ms; `None` where that is not known.
    pub fn awaiting(&self, diag: &mut SockDiag, proc_root: &Path) -> Option<&BTreeMap<u64, u32>> {
        self.awaiting.get_or_init(|| self.timed(|| diag.awaiting(proc_root, self.pid))).as_ref()
    }
}

/// `ADDRESS:PORT`, with ` -> ADDRESS:PORT` of the other side if there is one.
pub fn ends(local: &str, remote: &str) -> String {
    match remote.ends_with(":0") {
        true => local.to_owned(),
        false => format!("{local} -> {remote}"),
    }
}

/// sl local remote state queues timer retransmits uid timeout inode: Documentation/networking/proc_net_tcp.rst.
fn udp_socket(line: &str) -> Option<(u64, String)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let ends = ends(&address(fields.get(1)?)?, &address(fields.get(2)?)?);
    Some((fields.get(9)?.parse().ok()?, format!("udp {ends}")))
}

/// Num RefCount Protocol Flags Type St Inode Path: unix(7).
fn unix_socket(line: &str) -> Option<(u64, UnixSocket)> {
    /// include/uapi/linux/net.h.
    const SS_CONNECTED: &str = "03";
    /// include/linux/net.h.
    const SO_ACCEPTCON: &str = "00010000";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let socket = UnixSocket {
        connected: *fields.get(5)? == SS_CONNECTED,
        listens: *fields.get(3)? == SO_ACCEPTCON,
        path: fields.get(7).map(|path| text::clean_text(path).into_owned()),
    };
    Some((fields.get(6)?.parse().ok()?, socket))
}

/// Network namespaces by process. Clones share what has been read.
#[derive(Clone)]
pub struct Networks {
    proc_root: PathBuf,
    known: Rc<RefCell<BTreeMap<u32, Rc<Network>>>>,
}

impl Networks {
    /// Nothing is read yet.
    pub fn new(proc_root: &Path) -> Networks {
        Networks { proc_root: proc_root.to_owned(), known: Rc::default() }
    }

    /// Where `/proc` is.
    pub fn proc_root(&self) -> &Path {
        &self.proc_root
    }

    /// The namespace of a process: as it is now or, where reading it takes long, was a little before.
    pub fn of(&self, pid: u32) -> Rc<Network> {
        let namespace = network_namespace(&self.proc_root, pid);
        self.fresh(namespace).unwrap_or_else(|| self.read(pid, namespace))
    }

    /// The same, to find a socket there, which may be younger than what was read.
    pub fn with(&self, pid: u32, inode: u64) -> Rc<Network> {
        let namespace = network_namespace(&self.proc_root, pid);
        let known = self.fresh(namespace);
        let is_good = |network: &Rc<Network>| network.has(inode) || network.took.get() > CHEAP;
        known.filter(is_good).unwrap_or_else(|| self.read(pid, namespace))
    }

    /// What was read so little before that it is not read again.
    fn fresh(&self, namespace: Option<u32>) -> Option<Rc<Network>> {
        let known = self.known.borrow();
        known.get(&namespace?).filter(|network| network.is_fresh()).map(Rc::clone)
    }

    fn read(&self, pid: u32, namespace: Option<u32>) -> Rc<Network> {
        let network = Rc::new(Network::new(&self.proc_root, pid));
        let mut known = self.known.borrow_mut();
        if let Some(namespace) = namespace {
            if known.len() >= MAX_NAMESPACES && !known.contains_key(&namespace) {
                known.retain(|_, network| network.is_fresh());
            }
            if known.len() < MAX_NAMESPACES || known.contains_key(&namespace) {
                known.insert(namespace, Rc::clone(&network));
            }
        }
        network
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn processes_of_one_namespace_are_read_about_once() {
        let root = tempfile::tempdir().unwrap();
        for (pid, port, namespace) in [(7, "0050", "a"), (8, "0051", "a"), (9, "0052", "b")] {
            let dir = root.path().join(pid.to_string());
            fs::create_dir_all(dir.join("net")).unwrap();
            fs::create_dir_all(dir.join("ns")).unwrap();
            let line =
                format!("   0: 0100007F:{port} 00000000:0000 0A 0:0 0:0 0 0 0 1{pid} 1 0 100 0 0 10 0\n");
            fs::write(dir.join("net/tcp"), format!("  sl\n{line}")).unwrap();
            fs::write(root.path().join(namespace), "").unwrap();
            symlink(root.path().join(namespace), dir.join("ns/net")).unwrap();
        }
        let networks = Networks::new(root.path());
        let read = |pid| {
            let network = networks.of(pid);
            network.tcp();
            network.took.set(Duration::from_secs(3600)); // as if it had taken long
            network
        };
        let (one, same, other) = (read(7), networks.clone().of(8), read(9));
        assert!(Rc::ptr_eq(&one, &same), "the second is not read");
        assert_eq!((one.tcp().listening.first(), other.tcp().listening.first()), (Some(&80), Some(&82)));
        assert_eq!(other.tcp().socket(19).map(|of| of.local.1), Some(82));
        assert!(other.tcp().socket(17).is_none());
        one.took.set(Duration::ZERO);
        assert!(!Rc::ptr_eq(&one, &networks.of(8)), "where it took no time it is read again");
        let other = networks.of(9);
        assert!(
            Rc::ptr_eq(&other, &networks.with(9, 20)),
            "for a socket that is not there neither, where it takes long"
        );
        other.took.set(CHEAP);
        assert!(!Rc::ptr_eq(&other, &networks.with(9, 20)), "else it is");
        fs::remove_file(root.path().join("8/ns/net")).unwrap();
        assert_eq!(networks.of(8).tcp().listening.first(), Some(&81), "of an unknown namespace it is read");
    }
}
