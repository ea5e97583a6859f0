//! Who has the other end of what a process has open: of a pipe, of a Unix socket, of a connection within this machine (also from
//! one container to another). All processes are gone through for that, so it is asked once, at the end of a run or of a window.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, Instant},
};

use super::{
    life::network_namespace,
    network::Networks,
    objects::inode,
    redact::Redact,
    shown::shown,
    sockdiag::SockDiag,
    target::{comm, running},
    tcp::TcpState,
};
use crate::{
    model::vitals::{Holder, OtherEnd},
    text,
};

/// Most things of a process whose other ends are looked for; clients of its own come last.
const MAX_ENDS: usize = 64;
/// Most links that one of them stands for: connections of a pool.
const MAX_LINKS: usize = 16;
/// Most descriptors of a process that are read.
const MAX_DESCRIPTORS: usize = 4096;
/// Most processes that are told for each.
const MAX_HOLDERS: usize = 8;
/// Most namespaces in which the other side of a connection is looked for.
const MAX_NAMESPACES: usize = 16;
/// What processes have open, and then who has the other ends, is looked for no longer than this each: nothing is told of what
/// takes longer, since who was not come to may have it, too.
pub const PATIENCE: Duration = Duration::from_millis(300);

/// Who may read, and who may write, as the permissions of a link in `/proc/PID/fd` say.
const READS: u32 = 0o400;
const WRITES: u32 = 0o200;

/// The other end of something: the links that the descriptors of whoever has it show, and what he must be able to do with them.
#[derive(Default)]
struct End {
    links: BTreeSet<String>,
    access: u32,
}

/// The other ends of what processes have open, by process. Who has both ends himself is left out.
pub fn other_ends(
    networks: &Networks,
    diag: &mut SockDiag,
    redact: &Redact,
    pids: impl IntoIterator<Item = u32>,
    patience: Duration,
) -> BTreeMap<u32, Vec<OtherEnd>> {
    let deadline = Instant::now() + patience;
    let mut elsewhere = None;
    let mut wanted: Vec<(u32, String, End)> = Vec::new();
    for pid in pids {
        if Instant::now() > deadline {
            break;
        }
        let ends = ends_of(networks, diag, pid, &mut elsewhere, deadline);
        wanted.extend(ends.into_iter().map(|(object, end)| (pid, object, end)));
    }
    let mut by_link: HashMap<&str, Vec<usize>> = HashMap::new();
    for (at, (.., end)) in wanted.iter().enumerate() {
        end.links.iter().for_each(|link| by_link.entry(link).or_default().push(at));
    }
    let mut holders: Vec<Vec<Holder>> = vec![Vec::new(); wanted.len()];
    if !by_link.is_empty() {
        let deadline = Instant::now() + patience;
        for other in running(networks.proc_root()) {
            if Instant::now() > deadline {
                return BTreeMap::new();
            }
            let name = std::cell::LazyCell::new(|| comm(networks.proc_root(), other).unwrap_or_default());
            for (link, access) in descriptors(networks.proc_root(), other, |link| by_link.contains_key(link))
            {
                for &at in by_link.get(&*link).into_iter().flatten() {
                    let (pid, _, end) = &wanted[at];
                    let known = holders[at].last().is_some_and(|last| last.pid == other);
                    let has_it = *pid != other && access & end.access == end.access;
                    if has_it && !known && holders[at].len() < MAX_HOLDERS {
                        holders[at].push(Holder { pid: other, process: name.clone() });
                    }
                }
            }
        }
    }
    let mut found: BTreeMap<u32, Vec<OtherEnd>> = BTreeMap::new();
    for ((pid, object, end), holders) in wanted.into_iter().zip(holders) {
        if !holders.is_empty() {
            let (object, receives) = (redact.end(&object), end.access & READS == 0);
            found.entry(pid).or_default().push(OtherEnd { object, receives, holders });
        }
    }
    found
}

/// Descriptors of a process whose links are wanted, with what it may do with each.
fn descriptors<'a>(
    proc_root: &Path,
    pid: u32,
    wanted: impl Fn(&str) -> bool + 'a,
) -> impl Iterator<Item = (String, u32)> + 'a {
    let entries = fs::read_dir(shown(proc_root, pid).join("fd")).into_iter().flatten().flatten();
    entries.take(MAX_DESCRIPTORS).filter_map(move |entry| {
        let link = text::path(&fs::read_link(entry.path()).ok()?);
        wanted(&link).then_some(())?;
        Some((link, fs::symlink_metadata(entry.path()).ok()?.mode() & (READS | WRITES)))
    })
}

/// What a process has open that has another end, as [`OtherEnd::object`].
fn ends_of(
    networks: &Networks,
    diag: &mut SockDiag,
    pid: u32,
    elsewhere: &mut Option<HashMap<(String, String), u64>>,
    deadline: Instant,
) -> BTreeMap<String, End> {
    let has_end = |link: &str| link.starts_with("pipe:[") || link.starts_with("socket:[");
    let own: Vec<(String, u32)> = descriptors(networks.proc_root(), pid, has_end).collect();
    if own.is_empty() {
        return BTreeMap::new();
    }
    let network = networks.of(pid);
    let mut unix_peers = None;
    // Whom it asks comes first: it is what it may wait for.
    let (mut found, mut clients) = (Vec::new(), Vec::new());
    for (link, access) in own {
        let Some(inode) = inode(&link) else {
            // Who has both ends is told of neither.
            found.push((link.clone(), link, (READS | WRITES) & !access));
            continue;
        };
        if let Some(tcp) = network.tcp().socket(inode) {
            if tcp.state != TcpState::Established {
                continue;
            }
            let mirrored = (tcp.remote.clone(), tcp.local.0.clone());
            let other = network.tcp().by_ends().get(&mirrored).copied().or_else(|| {
                let is_own = is_loopback(&tcp.remote);
                let all = (!is_own).then(|| elsewhere.get_or_insert_with(|| connections(networks, deadline)));
                all?.get(&mirrored).copied()
            });
            if let Some(other) = other {
                let of = (tcp.remote.clone(), format!("socket:[{other}]"), 0);
                let serves = network.tcp().listening.contains(&tcp.local.1);
                if serves { clients.push(of) } else { found.push(of) }
            }
        } else if let Some(unix) = network.unix(inode).filter(|unix| unix.connected) {
            let peers = unix_peers
                .get_or_insert_with(|| diag.unix_peers(networks.proc_root(), pid).unwrap_or_default());
            if let Some(&other) = peers.get(&inode) {
                let theirs = network.unix(other).and_then(|of| of.path.as_deref());
                let object = match unix.path.as_deref().or(theirs) {
                    Some(path) => format!("unix {path}"),
                    None => "unix".to_owned(),
                };
                found.push((object, format!("socket:[{other}]"), 0));
            }
        }
    }
    let mut ends: BTreeMap<String, End> = BTreeMap::new();
    for (object, link, access) in found.into_iter().chain(clients) {
        if ends.len() >= MAX_ENDS && !ends.contains_key(&object) {
            continue;
        }
        let end = ends.entry(object).or_default();
        end.access |= access;
        if end.links.len() < MAX_LINKS {
            end.links.insert(link);
        }
    }
    ends
}

/// Whether an address is one that each namespace has for itself.
fn is_loopback(address: &str) -> bool {
    address.starts_with("127.") || address.starts_with("[::1]") || address.starts_with("[::ffff:127.")
}

/// Connections in all network namespaces of this machine, by their ends.
fn connections(networks: &Networks, deadline: Instant) -> HashMap<(String, String), u64> {
    let mut namespaces = BTreeSet::new();
    let mut found = HashMap::new();
    for pid in running(networks.proc_root()).take_while(|_| Instant::now() < deadline) {
        let new = network_namespace(networks.proc_root(), pid).is_some_and(|ns| namespaces.insert(ns));
        if new && namespaces.len() <= MAX_NAMESPACES {
            let network = networks.of(pid);
            found.extend(network.tcp().by_ends().iter().map(|(ends, inode)| (ends.clone(), *inode)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        net::{TcpListener, TcpStream},
        os::fd::AsRawFd as _,
        os::unix::net::UnixListener,
        process::{Child, Command, Stdio},
    };

    use super::*;

    /// `cat`, which holds its standard input, and says that it runs by passing something on.
    fn cat(input: impl Into<Stdio>) -> Child {
        Command::new("cat").stdin(input).stdout(Stdio::null()).spawn().unwrap()
    }

    fn found(pid: u32) -> Vec<OtherEnd> {
        let (networks, mut diag) = (Networks::new(Path::new("/proc")), SockDiag::default());
        other_ends(&networks, &mut diag, &Redact::No, [pid], Duration::from_secs(60))
            .remove(&pid)
            .unwrap_or_default()
    }

    fn holders<'a>(ends: &'a [OtherEnd], object: &str) -> &'a [Holder] {
        ends.iter().find(|of| of.object == object).map_or(&[], |of| &of.holders)
    }

    #[test]
    fn a_pipe_leads_to_who_writes() {
        let mut child = cat(Stdio::piped());
        let pipe = child.stdin.as_ref().unwrap().as_raw_fd();
        let link = fs::read_link(format!("/proc/self/fd/{pipe}")).unwrap();
        let ends = found(child.id());
        let writers = holders(&ends, &text::path(&link));
        assert!(writers.iter().any(|of| of.pid == std::process::id()), "{ends:?}");
        assert!(writers.iter().all(|of| of.pid != child.id()), "the reader is not its own writer");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn sockets_lead_to_the_process_that_has_the_other_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let mut unix = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let (server, _) = listener.accept().unwrap();
        let tcp_listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp_listener.local_addr().unwrap();
        let mut tcp = TcpStream::connect(address).unwrap();
        let (tcp_server, _) = tcp_listener.accept().unwrap();
        // The servers' sides belong to others from here on.
        let mut children =
            [cat(std::os::fd::OwnedFd::from(server)), cat(std::os::fd::OwnedFd::from(tcp_server))];
        unix.write_all(b"x").unwrap();
        tcp.write_all(b"x").unwrap();
        let ends = found(std::process::id());
        let pids = |object: &str| holders(&ends, object).iter().map(|of| of.pid).collect::<Vec<_>>();
        assert_eq!(pids(&format!("unix {}", path.display())), [children[0].id()], "{ends:?}");
        assert_eq!(pids(&address.to_string()), [children[1].id()], "{ends:?}");
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
