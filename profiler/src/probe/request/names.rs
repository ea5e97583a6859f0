//! What peers are called.

use std::{
    collections::HashMap,
    net::IpAddr,
    path::{Path, PathBuf},
};

use profiler_common::request::{PeerKey, Role, UnixName};
use rustc_hash::FxHashMap;

use crate::{probe::request::protocol, process::redact::Redact, text};

/// Names by address, as `/etc/hosts` has them.
#[derive(Clone, Debug, Default)]
pub struct Hosts(HashMap<IpAddr, String>);

/// No more lines are read.
const MOST_LINES: usize = 100_000;

impl Hosts {
    /// Of the machine. Who profiles a container reads its own.
    pub fn read(proc_root: &Path, pid: u32) -> Hosts {
        let path = proc_root.join(format!("{pid}/root/etc/hosts"));
        Hosts::parse(&text::read_to_parse(&path).unwrap_or_default())
    }

    /// A line is an address and its names; the first one is its own: hosts(5).
    pub fn parse(text: &str) -> Hosts {
        let lines = text.lines().take(MOST_LINES).filter_map(|line| {
            let mut words = line.split('#').next()?.split_whitespace();
            Some((words.next()?.parse().ok()?, words.next()?.to_owned()))
        });
        let mut names = HashMap::new();
        lines.for_each(|(address, name)| _ = names.entry(address).or_insert(name));
        Hosts(names)
    }

    /// The name of what a peer's key has for an address.
    pub fn name(&self, key: &PeerKey) -> String {
        self.0.get(&address(key)).cloned().unwrap_or_default()
    }
}

/// Processes whose files of names are known at once.
const MOST_HOSTS: usize = 64;

/// Names of peers.
pub struct Names {
    proc_root: PathBuf,
    /// None are told.
    secret: bool,
    hosts: FxHashMap<u32, Hosts>,
    /// What name servers said.
    pub looked_up: LookedUp,
}

impl Names {
    /// Nothing is known yet.
    pub fn new(proc_root: &Path, secret: bool) -> Names {
        let (hosts, looked_up) = Default::default();
        Names { proc_root: proc_root.to_owned(), secret, hosts, looked_up }
    }

    /// The name of an internet peer that is asked, or nothing.
    pub fn of(&mut self, key: &PeerKey) -> String {
        if self.secret || key.role != Role::Asks as u32 || i32::from(key.family) == libc::AF_UNIX {
            return String::new();
        }
        if self.hosts.len() >= MOST_HOSTS && !self.hosts.contains_key(&key.pid) {
            self.hosts.clear();
        }
        let proc_root = &self.proc_root;
        let hosts = self.hosts.entry(key.pid).or_insert_with(|| Hosts::read(proc_root, key.pid));
        let name = hosts.name(key);
        if name.is_empty() { self.looked_up.name(key) } else { name }
    }
}

/// Names by address, as name servers were seen to answer: what a program was told itself, other programs need not have been.
#[derive(Clone, Debug, Default)]
pub struct LookedUp(FxHashMap<(u32, IpAddr), Vec<String>>);

/// Addresses that are remembered, with their names.
const MAX_ADDRESSES: usize = 4096;
/// Names of one address: many are served at one.
const MAX_NAMES: usize = 2;

impl LookedUp {
    /// The program of that process was told this message.
    pub fn add(&mut self, pid: u32, message: &[u8]) {
        let Some((name, addresses)) = protocol::addresses(message) else { return };
        for address in addresses {
            if self.0.len() >= MAX_ADDRESSES && !self.0.contains_key(&(pid, address)) {
                // What is in use is looked up again.
                self.0.clear();
            }
            let names = self.0.entry((pid, address)).or_default();
            // One more says that there are more.
            if names.len() <= MAX_NAMES && !names.contains(&name) {
                names.push(name.clone());
            }
        }
    }

    /// The names that were looked up of what a peer's key has for an address, in the order in which they were.
    pub fn name(&self, key: &PeerKey) -> String {
        let names = self.0.get(&(key.pid, address(key))).map_or(&[][..], |names| names);
        let more = if names.len() > MAX_NAMES { " or others" } else { "" };
        format!("{}{more}", names[..names.len().min(MAX_NAMES)].join(" or "))
    }
}

/// The address in the key of an internet peer.
fn address(key: &PeerKey) -> IpAddr {
    match i32::from(key.family) {
        libc::AF_INET6 => IpAddr::from(key.address),
        _ => {
            let [a, b, c, d, ..] = key.address;
            IpAddr::from([a, b, c, d])
        }
    }
}

/// What a peer is called in outputs.
pub fn label(key: &PeerKey, unix: Option<UnixName>, redact: &Redact) -> String {
    if i32::from(key.family) == libc::AF_UNIX {
        let name = unix.map_or_else(|| "unix socket".to_owned(), |name| unix_label(&name));
        return redact.text(&name);
    }
    if key.role == Role::Answers as u32 {
        return format!(":{}", key.port);
    }
    let address = match address(key) {
        IpAddr::V6(v6) => format!("[{v6}]:{}", key.port),
        IpAddr::V4(v4) => format!("{v4}:{}", key.port),
    };
    redact.address(&address)
}

/// A path, or `@` and a name that is in no file system.
fn unix_label(name: &UnixName) -> String {
    let bytes = &name.bytes[..(name.len as usize).min(name.bytes.len())];
    match bytes.split_first() {
        Some((0, rest)) => format!("@{}", text::clean(rest)),
        _ => text::clean(bytes.split(|&byte| byte == 0).next().unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use profiler_common::request::UNIX_NAME;

    use super::*;

    #[test]
    fn an_address_is_called_what_was_looked_up() {
        let answer = |name: &[u8; 3], last: u8| {
            let mut message = b"\x12\x34\x81\x80\0\x01\0\x01\0\0\0\0\x03".to_vec();
            message.extend(name);
            message.extend(b"\x04test\0\0\x01\0\x01\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\x0a\0\0");
            message.push(last);
            message
        };
        let mut known = LookedUp::default();
        known.add(7, &answer(b"api", 2));
        known.add(7, b"nothing");
        let key = |pid, last| PeerKey {
            pid,
            family: libc::AF_INET as u16,
            address: [10, 0, 0, last, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ..PeerKey::default()
        };
        assert_eq!([key(7, 2), key(7, 3), key(8, 2)].map(|key| known.name(&key)), ["api.test", "", ""]);
        (0..2).for_each(|_| known.add(7, &answer(b"www", 2)));
        assert_eq!(known.name(&key(7, 2)), "api.test or www.test");
        known.add(7, &answer(b"ftp", 2));
        assert_eq!(known.name(&key(7, 2)), "api.test or www.test or others");
        (b'a'..=b'z').for_each(|letter| known.add(7, &answer(&[letter; 3], 2)));
        assert_eq!(known.0.values().map(Vec::len).sum::<usize>(), MAX_NAMES + 1);
        (0..200).for_each(|pid| (0..=255).for_each(|last| known.add(pid, &answer(b"api", last))));
        assert!(known.0.len() <= MAX_ADDRESSES);
        assert_eq!(known.name(&key(199, 255)), "api.test", "the newest are known");
    }

    #[test]
    fn peers_have_names() {
        let hosts = Hosts::parse("127.0.0.1 localhost me # x\n10.0.0.2\tdb.internal db\nnonsense\n::1 six\n");
        let asks = PeerKey {
            role: Role::Asks as u32,
            family: libc::AF_INET as u16,
            port: 5432,
            address: [10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ..PeerKey::default()
        };
        assert_eq!(hosts.name(&asks), "db.internal");
        let no = Redact::new(false);
        assert_eq!(label(&asks, None, &no), "10.0.0.2:5432");
        assert!(!label(&asks, None, &Redact::new(true)).contains("10.0"));
        let answers = PeerKey { role: Role::Answers as u32, port: 80, ..asks };
        assert_eq!(label(&answers, None, &no), ":80");
        let unix = PeerKey { family: libc::AF_UNIX as u16, ..asks };
        let mut bytes = [0; UNIX_NAME];
        bytes[..9].copy_from_slice(b"/run/a\n\0x");
        assert_eq!(label(&unix, Some(UnixName { len: 9, bytes }), &no), "/run/a\u{fffd}");
        bytes[..3].copy_from_slice(b"\0bc");
        assert_eq!(label(&unix, Some(UnixName { len: 3, bytes }), &no), "@bc");
    }
}
