//! Which TCP connections wait for an answer: the kernel knows of each when it last sent and when it last received; which wait to be
//! accepted; and which Unix sockets are connected to each other. Asked by netlink (sock_diag(7)), in the network namespace of the
//! process.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
};

use super::shown::shown;

/// Most namespaces whose socket is kept open.
const MAX_NAMESPACES: usize = 16;
/// Most that is read at each look, bytes: some 25,000 connections.
const MAX_BYTES: usize = 8 * 1024 * 1024;

// include/uapi/linux/{sock_diag,inet_diag,unix_diag,tcp}.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_INFO: u16 = 2;
const ESTABLISHED: u32 = 1 << 1;
const CLOSE_WAIT: u32 = 1 << 8;
const LISTEN: u32 = 1 << 10;
const HEADER: usize = 16;
const MESSAGE: usize = 72;
/// Of inet_diag_msg. Of a socket that listens the two queues are the connections that wait to be accepted, and the limit.
const PORT: usize = 4;
const RECEIVE_QUEUE: usize = 56;
const SEND_QUEUE: usize = 60;
const INODE: usize = 68;
/// Of tcp_info: the first two in ms ago.
const LAST_DATA_SENT: usize = 44;
const LAST_DATA_RECEIVED: usize = 52;
const BYTES_RECEIVED: usize = 128;

const UDIAG_SHOW_PEER: u32 = 4;
const UNIX_DIAG_PEER: u16 = 2;
/// Length of unix_diag_msg, and where it has the inode.
const UNIX_MESSAGE: usize = 16;
const UNIX_INODE: usize = 4;

/// A netlink socket for each network namespace of the targets.
#[derive(Debug, Default)]
pub struct SockDiag(BTreeMap<u64, Option<OwnedFd>>);

/// A socket that listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    /// Its inode.
    pub inode: u64,
    /// Connections that wait to be accepted.
    pub waiting: u32,
    /// How many may, beside one.
    pub limit: u32,
}

impl SockDiag {
    /// Inodes of the connections in a process's namespace on which it sent something later than it received: those of which
    /// an answer is awaited, with how long ago that was, ms. `None` where that
    /// cannot be asked, or not to the end.
    pub fn awaiting(&mut self, proc_root: &Path, pid: u32) -> Option<BTreeMap<u64, u32>> {
        let mut found = BTreeMap::new();
        let asked = Asked { states: ESTABLISHED, port: 0, info: true };
        self.each(proc_root, pid, asked, |message| found.extend(awaits(message)))?;
        Some(found)
    }

    /// The sockets that listen in a process's namespace. `None` as above.
    pub fn listening(&mut self, proc_root: &Path, pid: u32) -> Option<Vec<Listening>> {
        let mut found = Vec::new();
        let asked = Asked { states: LISTEN, port: 0, info: false };
        self.each(proc_root, pid, asked, |message| found.extend(listens(message)))?;
        Some(found)
    }

    /// For how long the connection has waited that waits longest to be accepted at a port there, ms: since it was made, in ticks
    /// of the kernel. Nothing where none waits; `None` as above.
    pub fn longest_unaccepted(&mut self, proc_root: &Path, pid: u32, port: u16) -> Option<Option<u32>> {
        let mut longest = None;
        let asked = Asked { states: ESTABLISHED | CLOSE_WAIT, port, info: true };
        self.each(proc_root, pid, asked, |message| longest = longest.max(unaccepted(message, port)))?;
        Some(longest)
    }

    /// Of the Unix sockets in a process's namespace that are connected, by inode, the inode of the other one. `None` as above.
    pub fn unix_peers(&mut self, proc_root: &Path, pid: u32) -> Option<BTreeMap<u64, u64>> {
        let mut found = BTreeMap::new();
        self.ask(proc_root, pid, &unix_sockets(), &mut |message| found.extend(unix_peer(message)))?;
        Some(found)
    }

    /// Asks for TCP sockets of both families.
    fn each(&mut self, proc_root: &Path, pid: u32, what: Asked, mut take: impl FnMut(&[u8])) -> Option<()> {
        for family in [libc::AF_INET, libc::AF_INET6] {
            self.ask(proc_root, pid, &what.of(family as u8), &mut take)?;
        }
        Some(())
    }

    /// Asks in a process's namespace. A socket whose answer was not read to its end is given up: the kernel would go on with it, and
    /// refuse what is asked next.
    fn ask(
        &mut self,
        proc_root: &Path,
        pid: u32,
        request: &[u8],
        take: &mut impl FnMut(&[u8]),
    ) -> Option<()> {
        let path = shown(proc_root, pid).join("ns/net");
        let namespace = fs::metadata(&path).ok()?.ino();
        if self.0.len() >= MAX_NAMESPACES && !self.0.contains_key(&namespace) {
            return None;
        }
        let new = || open(proc_root, &path, namespace).ok();
        let socket = self.0.entry(namespace).or_insert_with(new).as_ref()?;
        let answered = ask(socket, request).and_then(|()| read(socket, take));
        if answered.is_err() {
            self.0.remove(&namespace);
        }
        answered.ok()
    }
}

/// Which sockets are asked for.
#[derive(Clone, Copy)]
struct Asked {
    states: u32,
    /// Their own port; zero for any.
    port: u16,
    /// With their tcp_info.
    info: bool,
}

/// A socket in this namespace. A thread of its own enters it, and ends.
fn open(proc_root: &Path, path: &Path, namespace: u64) -> io::Result<OwnedFd> {
    let own = fs::metadata(proc_root.join("self/ns/net")).map(|metadata| metadata.ino());
    if own.is_ok_and(|own| own == namespace) {
        return netlink();
    }
    let file = fs::File::open(path)?;
    let thread = std::thread::spawn(move || {
        // SAFETY: the descriptor is open, and only this thread changes its namespace.
        match unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } {
            0 => netlink(),
            _ => Err(io::Error::last_os_error()),
        }
    });
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread ended")))
}

fn netlink() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket takes numbers only.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_SOCK_DIAG) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just opened and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl Asked {
    /// What is sent to ask for those of a family: struct inet_diag_req_v2.
    fn of(self, family: u8) -> Vec<u8> {
        let mut request =
            vec![family, libc::IPPROTO_TCP as u8, u8::from(self.info) << (INET_DIAG_INFO - 1), 0];
        request.extend(self.states.to_ne_bytes());
        request.extend(self.port.to_be_bytes());
        request.extend([0; 46]); // any other side
        request
    }
}

/// Of all connected Unix sockets, with the other one: struct unix_diag_req.
fn unix_sockets() -> Vec<u8> {
    let mut request = vec![libc::AF_UNIX as u8, 0, 0, 0];
    for field in [ESTABLISHED, 0, UDIAG_SHOW_PEER, 0, 0] {
        request.extend(field.to_ne_bytes()); // inode, cookie: any socket
    }
    request
}

/// Asks for all sockets that a request describes.
fn ask(socket: &OwnedFd, request: &[u8]) -> io::Result<()> {
    let mut message = Vec::with_capacity(HEADER + request.len());
    message.extend(((HEADER + request.len()) as u32).to_ne_bytes());
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend(((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    message.extend([0; 8]); // sequence, port
    message.extend(request);
    // SAFETY: the buffer is as long as is said.
    let sent = unsafe { libc::send(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn read(socket: &OwnedFd, take: &mut impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0u8; 32 * 1024];
    let mut all = 0;
    // A dump is there at once: the kernel makes the next part of it as it is read.
    while all < MAX_BYTES {
        // SAFETY: the buffer is as long as is said.
        let n = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        let Ok(n) = usize::try_from(n) else { return Err(io::Error::last_os_error()) };
        all += n;
        if n == 0 || parse(&buffer[..n], take) {
            return Ok(());
        }
    }
    Err(io::Error::other("too many connections"))
}

/// Takes some messages apart; returns whether the last one was among them.
fn parse(mut bytes: &[u8], take: &mut impl FnMut(&[u8])) -> bool {
    while let (Some(length), Some(kind)) = (u32_at(bytes, 0), u16_at(bytes, 4)) {
        let length = length as usize;
        if i32::from(kind) == libc::NLMSG_DONE || i32::from(kind) == libc::NLMSG_ERROR || length < HEADER {
            return true;
        }
        let Some(message) = bytes.get(HEADER..length) else { return true };
        take(message);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

/// The inode of a connection, if it waits for an answer, and how long ago it asked, ms.
fn awaits(message: &[u8]) -> Option<(u64, u32)> {
    let inode = u32_at(message, INODE)?;
    let info = attribute(message.get(MESSAGE..)?, INET_DIAG_INFO)?;
    let (sent, received) = (u32_at(info, LAST_DATA_SENT)?, u32_at(info, LAST_DATA_RECEIVED)?);
    // Who never answers, a log server, is not waited for.
    let answers =
        info.get(BYTES_RECEIVED..BYTES_RECEIVED + 8).is_some_and(|n| n.iter().any(|byte| *byte > 0));
    (answers && sent < received).then_some((inode.into(), sent))
}

fn listens(message: &[u8]) -> Option<Listening> {
    let number = |at| u32_at(message, at);
    let (waiting, limit) = (number(RECEIVE_QUEUE)?, number(SEND_QUEUE)?);
    Some(Listening { inode: number(INODE)?.into(), waiting, limit })
}

/// How long ago a connection was made, ms, if it is at this port and no process has got it yet: nothing has been sent on it, and
/// the kernel begins to count when it is made.
fn unaccepted(message: &[u8], port: u16) -> Option<u32> {
    let at_port = message.get(PORT..PORT + 2)? == port.to_be_bytes();
    if !at_port || u32_at(message, INODE)? != 0 {
        return None;
    }
    u32_at(attribute(message.get(MESSAGE..)?, INET_DIAG_INFO)?, LAST_DATA_SENT)
}

/// The inodes of a Unix socket and of the one it is connected to.
fn unix_peer(message: &[u8]) -> Option<(u64, u64)> {
    let peer = u32_at(attribute(message.get(UNIX_MESSAGE..)?, UNIX_DIAG_PEER)?, 0)?;
    Some((u32_at(message, UNIX_INODE)?.into(), peer.into()))
}

/// The value of the first attribute of a kind: struct nlattr.
fn attribute(mut attributes: &[u8], of: u16) -> Option<&[u8]> {
    while let (Some(length), Some(kind)) = (u16_at(attributes, 0), u16_at(attributes, 2)) {
        let length = usize::from(length);
        let value = attributes.get(4..length)?;
        if kind == of {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
        os::{fd::AsRawFd, unix::net::UnixStream},
        time::Duration,
    };

    use proptest::prelude::*;

    use super::*;

    fn inode(of: &impl AsRawFd) -> u64 {
        let link = fs::read_link(format!("/proc/self/fd/{}", of.as_raw_fd())).unwrap();
        link.to_string_lossy().trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
    }

    #[test]
    fn whoever_asked_last_waits() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let mut diag = SockDiag::default();
        let pid = std::process::id();
        let mut awaits =
            |of: &TcpStream| diag.awaiting(Path::new("/proc"), pid).unwrap().contains_key(&inode(of));
        let mut answer = [0; 1];
        // The kernel counts in its own ticks, of 10 ms at most.
        let tick = || std::thread::sleep(Duration::from_millis(50));
        client.write_all(b"a").unwrap();
        server.read_exact(&mut answer).unwrap();
        tick();
        server.write_all(b"b").unwrap();
        client.read_exact(&mut answer).unwrap();
        assert!(!awaits(&client), "it was answered");
        tick();
        client.write_all(b"c").unwrap();
        assert!(awaits(&client) && !awaits(&server));
    }

    #[test]
    fn unix_sockets_know_each_other() {
        let (one, other) = UnixStream::pair().unwrap();
        let peers = SockDiag::default().unix_peers(Path::new("/proc"), std::process::id()).unwrap();
        assert_eq!(peers.get(&inode(&one)), Some(&inode(&other)));
        assert_eq!(peers.get(&inode(&other)), Some(&inode(&one)));
    }

    #[test]
    fn who_is_not_accepted_waits() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let inode = inode(&listener);
        let (mut diag, pid, root) = (SockDiag::default(), std::process::id(), Path::new("/proc"));
        let mut look = || {
            let all = diag.listening(root, pid).unwrap();
            let waiting = all.iter().find(|of| of.inode == inode).unwrap().waiting;
            (waiting, diag.longest_unaccepted(root, pid, port).unwrap())
        };
        assert_eq!(look(), (0, None));
        let mut clients = [(); 3].map(|()| TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        clients[1].write_all(b"it has asked already").unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let (waiting, longest) = look();
        assert_eq!(waiting, 3);
        assert!(longest.unwrap() >= 80, "{longest:?}");
        let accepted = [(); 3].map(|()| listener.accept().unwrap());
        assert_eq!(look(), (0, None), "{accepted:?}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..400), length in 0u32..400) {
            let mut take = |message: &[u8]| {
                _ = (awaits(message), listens(message), unaccepted(message, 80), unix_peer(message));
            };
            take(&bytes);
            parse(&bytes, &mut take);
            let mut framed = length.to_ne_bytes().to_vec();
            framed.extend(bytes);
            parse(&framed, &mut take);
        }
    }
}
