//! What a network namespace holds, read once for all processes in it: the kernel goes through the whole of its table of
//! connections for each reader.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    rc::Rc,
};

use super::{
    shown::shown,
    sockdiag::SockDiag,
    tcp::{TcpSocket, TcpState, tcp_sockets},
};

/// Most namespaces that are kept; of others it is read for each process.
const MAX_NAMESPACES: usize = 16;

/// What a network namespace held when it was read.
#[derive(Debug, Default)]
pub struct Network {
    /// Its TCP sockets.
    tcp: Vec<TcpSocket>,
    /// Where these are, by inode.
    by_inode: BTreeMap<u64, usize>,
    /// Ports that are listened at.
    pub listening: BTreeSet<u16>,
    /// Connections of which an answer is awaited, by inode, and for how long, ms.
    pub awaiting: BTreeMap<u64, u32>,
}

impl Network {
    fn read(diag: &mut SockDiag, proc_root: &Path, pid: u32) -> Network {
        let awaiting = diag.awaiting(proc_root, pid);
        let tcp = tcp_sockets(proc_root, pid);
        let by_inode = tcp.iter().enumerate().map(|(at, of)| (of.inode, at)).collect();
        let listeners = tcp.iter().filter(|of| of.state == TcpState::Listen);
        Network { by_inode, listening: listeners.map(|of| of.local.1).collect(), awaiting, tcp }
    }

    /// All TCP sockets.
    pub fn tcp(&self) -> &[TcpSocket] {
        &self.tcp
    }

    /// The TCP socket with an inode.
    pub fn socket(&self, inode: u64) -> Option<&TcpSocket> {
        self.by_inode.get(&inode).map(|&at| &self.tcp[at])
    }
}

/// The namespaces of a single look.
#[derive(Debug, Default)]
pub struct Networks(BTreeMap<u64, Rc<Network>>);

impl Networks {
    /// The namespace of a process.
    pub fn of(&mut self, diag: &mut SockDiag, proc_root: &Path, pid: u32) -> Rc<Network> {
        let namespace = fs::metadata(shown(proc_root, pid).join("ns/net")).map(|of| of.ino()).ok();
        if let Some(known) = namespace.and_then(|namespace| self.0.get(&namespace)) {
            return Rc::clone(known);
        }
        let read = Rc::new(Network::read(diag, proc_root, pid));
        if let Some(namespace) = namespace.filter(|_| self.0.len() < MAX_NAMESPACES) {
            self.0.insert(namespace, Rc::clone(&read));
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

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
        let (mut networks, mut diag) = (Networks::default(), SockDiag::default());
        let mut of = |pid| networks.of(&mut diag, root.path(), pid);
        let (one, same, other) = (of(7), of(8), of(9));
        assert!(Rc::ptr_eq(&one, &same), "the second is not read");
        assert_eq!((one.listening.first(), other.listening.first()), (Some(&80), Some(&82)));
        assert_eq!(other.socket(19).map(|of| of.local.1), Some(82));
        assert!(other.socket(17).is_none());
        fs::remove_file(root.path().join("8/ns/net")).unwrap();
        assert_eq!(of(8).listening.first(), Some(&81), "of an unknown namespace it is read");
    }
}
