//! What peers are called.

use std::{collections::HashMap, net::IpAddr, path::Path};

use profiler_common::request::{PeerKey, Role, UnixName};

use crate::{process::redact::Redact, text};

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
