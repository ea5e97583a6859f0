//! What a descriptor of a process is: a path, a socket with its peer, a pipe.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    path::Path,
};

use super::{
    life::namespace_ids,
    memory::ProcessMemory,
    network::{Networks, ends},
    shown::shown,
    tcp::TcpState,
};
use crate::text;

/// Describes a process's descriptor, as long as it is open.
pub fn descriptor(networks: &Networks, pid: u32, descriptor: u64) -> Option<String> {
    let link = fs::read_link(shown(networks.proc_root(), pid).join(format!("fd/{descriptor}"))).ok()?;
    let link = text::path(&link);
    Some(socket(networks, pid, &link).unwrap_or(link))
}

/// Whether one of a process's first thousand descriptors is an epoll descriptor.
pub fn has_epoll(proc_root: &Path, pid: u32) -> bool {
    let entries = fs::read_dir(shown(proc_root, pid).join("fd")).into_iter().flatten().flatten();
    entries.take(1000).any(|entry| {
        fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == "anon_inode:[eventpoll]")
    })
}

/// Whether all sockets that a process waits for by epoll are one connection of a client: as a database's process that
/// serves one client, and unlike an event loop, which has its listener there or several connections.
pub fn serves_one_client(networks: &Networks, pid: u32) -> bool {
    let dir = shown(networks.proc_root(), pid);
    let link = |descriptor: &str| {
        text::path(&fs::read_link(dir.join(format!("fd/{descriptor}"))).unwrap_or_default())
    };
    let mut sockets: BTreeSet<String> = BTreeSet::new();
    let entries = fs::read_dir(dir.join("fd")).into_iter().flatten().flatten();
    for name in entries.take(1000).map(|entry| text::path(entry.file_name().as_ref())) {
        if link(&name) != "anon_inode:[eventpoll]" {
            continue;
        }
        // "tfd:  5 events: 19 data: …": Documentation/filesystems/proc.rst, 3.8.
        let info = text::read_to_parse(&dir.join(format!("fdinfo/{name}"))).unwrap_or_default();
        let waited_for = info.lines().filter_map(|line| line.strip_prefix("tfd:")?.split_whitespace().next());
        sockets.extend(waited_for.map(&link).filter(|link| link.starts_with("socket:[")));
        if sockets.len() > 1 {
            return false;
        }
    }
    let Some(inode) = sockets.first().and_then(|link| inode(link)) else { return false };
    let network = networks.with(pid, inode);
    match (network.unix(inode), network.tcp().socket(inode)) {
        (Some(unix), _) => unix.connected && unix.path.is_some(),
        (None, Some(tcp)) => !tcp.remote.ends_with(":0") && network.tcp().listening.contains(&tcp.local.1),
        (None, None) => false,
    }
}

/// Whether a process's descriptor is a socket on which anybody may come: a listener, or one without connections.
pub fn takes_from_any(networks: &Networks, pid: u32, descriptor: u32) -> bool {
    let path = shown(networks.proc_root(), pid).join(format!("fd/{descriptor}"));
    let link = text::path(&fs::read_link(path).unwrap_or_default());
    let Some(inode) = inode(&link) else { return false };
    match networks.with(pid, inode).unix(inode) {
        Some(unix) => !unix.connected,
        None => socket(networks, pid, &link).is_some_and(|object| !object.contains(" -> ")),
    }
}

/// Of a link, `socket:[inode]`.
pub fn inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Describes a socket by its link, `socket:[inode]`, from the tables of the process's network namespace.
pub fn socket(networks: &Networks, pid: u32, link: &str) -> Option<String> {
    let inode = inode(link)?;
    let network = networks.with(pid, inode);
    if let Some(tcp) = network.tcp().socket(inode) {
        return Some(format!("tcp {}", ends(&tcp.local.0, &tcp.remote)));
    }
    if let Some(udp) = network.udp(inode) {
        return Some(udp.to_owned());
    }
    network.unix(inode).map(|unix| match &unix.path {
        Some(path) => format!("unix {path}"),
        None => "unix".to_owned(),
    })
}

/// Whether a process answers on a socket, described as [`descriptor`] does: it listens on the socket's own port, or
/// the socket has the path that clients connect to.
pub fn serves(networks: &Networks, pid: u32, object: &str) -> bool {
    let Some((local, _remote)) = object.strip_prefix("tcp ").and_then(|rest| rest.split_once(" -> ")) else {
        return object.starts_with("unix /") || object.starts_with("unix @");
    };
    let port = local.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
    port.is_some_and(|port| networks.of(pid).tcp().listening.contains(&port))
}

/// Ports that processes listen at themselves.
pub fn listens(networks: &Networks, pids: &[u32]) -> BTreeSet<(u32, u16)> {
    let mut found = BTreeSet::new();
    for &pid in pids {
        let entries =
            fs::read_dir(shown(networks.proc_root(), pid).join("fd")).into_iter().flatten().flatten();
        let links = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
        let own: HashSet<u64> = links.filter_map(|link| inode(&text::path(&link))).collect();
        if own.is_empty() {
            continue;
        }
        let network = networks.of(pid);
        let listeners = network.tcp().sockets.iter().filter(|of| of.state == TcpState::Listen);
        found.extend(listeners.filter(|of| own.contains(&of.inode)).map(|of| (pid, of.local.1)));
    }
    found
}

/// The thread that holds a lock whose futex is at `futex`, where the lock says so: glibc's and musl's mutexes keep the
/// owner's id near the futex, priority-inheriting ones in it.
pub fn lock_owner(proc_root: &Path, pid: u32, futex: u64) -> Option<u32> {
    const FUTEX_TID_MASK: u32 = 0x3fff_ffff; // include/uapi/linux/futex.h
    let memory = ProcessMemory::open(proc_root, pid)?;
    // struct __pthread_mutex_s: lock, count, owner (sysdeps/nptl/bits/struct_mutex.h).
    let (lock, owner) = (memory.read_u32(futex)?, memory.read_u32(futex.checked_add(8)?)?);
    [owner, lock & FUTEX_TID_MASK]
        .into_iter()
        .filter(|tid| *tid > 0)
        .find_map(|tid| thread(proc_root, pid, tid))
}

/// Threads whose ids in the process's own namespace are read.
const MAX_THREADS: usize = 4096;

/// The id that a thread has here, by the one that its process knows it by: in a PID namespace of its own (a container) they
/// differ.
fn thread(proc_root: &Path, pid: u32, inner: u32) -> Option<u32> {
    let tasks = proc_root.join(pid.to_string()).join("task");
    if namespace_ids(&tasks.join(pid.to_string())).len() < 2 {
        return tasks.join(inner.to_string()).exists().then_some(inner);
    }
    let threads = fs::read_dir(&tasks).ok()?.take(MAX_THREADS).flatten().map(|thread| thread.path());
    threads
        .filter(|thread| namespace_ids(thread).last() == Some(&inner))
        .find_map(|thread| thread.file_name()?.to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_a_lock_is_known_by_the_id_it_has_here() {
        let root = tempfile::tempdir().unwrap();
        for (tid, ids) in [(700, "700\t1"), (701, "701\t9"), (9, "9\t2")] {
            let task = root.path().join(format!("700/task/{tid}"));
            fs::create_dir_all(&task).unwrap();
            fs::write(task.join("status"), format!("Name:\tx\nNSpid:\t{ids}\n")).unwrap();
        }
        let words = [2u32, 1, 9, 0].map(u32::to_ne_bytes).concat();
        fs::write(root.path().join("700/mem"), words).unwrap();
        assert_eq!(
            lock_owner(root.path(), 700, 0),
            Some(701),
            "9 in its container, and not the 9 of this machine"
        );
        fs::write(root.path().join("700/task/700/status"), "Name:\tx\nNSpid:\t700\n").unwrap();
        assert_eq!(lock_owner(root.path(), 700, 0), Some(9), "no namespace of its own");
    }

    #[test]
    fn sockets_are_found_in_the_tables() {
        let root = tempfile::tempdir().unwrap();
        let net = root.path().join("7/net");
        fs::create_dir_all(&net).unwrap();
        fs::write(
            net.join("tcp"),
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
             0: 0100007F:1F90 0200007F:1538 01 00000000:00000000 00:00000000 00000000  1000        0 77 1 0\n   \
             1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 78 1 0\n",
        )
        .unwrap();
        fs::write(
            net.join("unix"),
            "Num       RefCount Protocol Flags    Type St Inode Path\n0000: 00000002 00000000 00010000 0001 01 79 /run/x\n",
        )
        .unwrap();
        let networks = Networks::new(root.path());
        let socket = |inode: u32| socket(&networks, 7, &format!("socket:[{inode}]"));
        assert_eq!(socket(77).as_deref(), Some("tcp 127.0.0.1:8080 -> 127.0.0.2:5432"));
        assert_eq!(socket(78).as_deref(), Some("tcp 127.0.0.1:8080"));
        assert_eq!(socket(79).as_deref(), Some("unix /run/x"));
        assert_eq!(socket(80), None);
        let serves = |object: &str| serves(&networks, 7, object);
        assert!(serves("tcp 127.0.0.1:8080 -> 127.0.0.2:5432") && serves("unix /run/x"));
        let fds = root.path().join("7/fd");
        fs::create_dir_all(&fds).unwrap();
        std::os::unix::fs::symlink("socket:[77]", fds.join("3")).unwrap();
        assert!(listens(&Networks::new(root.path()), &[7]).is_empty(), "a connection");
        std::os::unix::fs::symlink("socket:[78]", fds.join("4")).unwrap();
        assert!(listens(&Networks::new(root.path()), &[7]).into_iter().eq([(7, 8080)]));
        // Another one of its namespace, whose own table is not read.
        let (other, ns) = (root.path().join("8/fd"), root.path().join("net"));
        fs::create_dir_all(&other).unwrap();
        fs::write(&ns, "").unwrap();
        for pid in ["7", "8"] {
            fs::create_dir_all(root.path().join(pid).join("ns")).unwrap();
            std::os::unix::fs::symlink(&ns, root.path().join(pid).join("ns/net")).unwrap();
        }
        std::os::unix::fs::symlink("socket:[78]", other.join("3")).unwrap();
        assert!(listens(&Networks::new(root.path()), &[7, 8, 9]).into_iter().eq([(7, 8080), (8, 8080)]));
        assert!(!serves("tcp 127.0.0.1:5432 -> 127.0.0.2:8080") && !serves("unix") && !serves("/dev/null"));
    }

    #[test]
    fn a_process_that_serves_one_client_has_one_connection_to_wait_for() {
        let root = tempfile::tempdir().unwrap();
        let (fd, info, net) =
            (root.path().join("7/fd"), root.path().join("7/fdinfo"), root.path().join("7/net"));
        [&fd, &info, &net].into_iter().for_each(|dir| fs::create_dir_all(dir).unwrap());
        let tcp = "sl local_address rem_address st tx_queue tr retrnsmt uid timeout inode\n\
             0: 0100007F:1538 0100007F:9C40 01 0:0 00:0 0 1000 0 77 1 0\n\
             1: 00000000:1538 00000000:0000 0A 0:0 00:0 0 1000 0 78 1 0\n\
             2: 0100007F:9C41 0100007F:0050 01 0:0 00:0 0 1000 0 79 1 0\n";
        fs::write(net.join("tcp"), tcp).unwrap();
        let unix = "Num RefCount Protocol Flags Type St Inode Path\n\
             0: 00000003 00000000 00000000 0001 03 80 /run/db\n\
             0: 00000002 00000000 00010000 0001 01 81 /run/db\n\
             0: 00000003 00000000 00000000 0001 03 82\n";
        fs::write(net.join("unix"), unix).unwrap();
        let links =
            [(3, "anon_inode:[eventpoll]"), (4, "anon_inode:[eventfd]")].map(|(n, to)| (n, to.to_owned()));
        let sockets = (77..=82).map(|inode| (inode - 67, format!("socket:[{inode}]")));
        for (number, to) in links.into_iter().chain(sockets) {
            std::os::unix::fs::symlink(to, fd.join(number.to_string())).unwrap();
        }
        let serves = |waited_for: &[u32]| {
            let line = |tfd: &u32| format!("tfd: {tfd:8} events: 19 data: {tfd:x} pos:0 ino:1 sdev:9\n");
            let lines: String = waited_for.iter().map(line).collect();
            fs::write(info.join("3"), format!("pos:\t0\nflags:\t02000002\n{lines}")).unwrap();
            serves_one_client(&Networks::new(root.path()), 7)
        };
        assert!(serves(&[4, 10]), "a connection to a port that is listened at");
        assert!(serves(&[13]), "and through a path");
        assert!(!serves(&[11]) && !serves(&[14]), "a listener waits for everybody");
        assert!(!serves(&[12]) && !serves(&[15]), "a connection to somebody else, a pair of its own");
        assert!(!serves(&[10, 11]) && !serves(&[10, 12]) && !serves(&[4]) && !serves(&[]));
    }
}
