//! Paths and peers may hold secrets: `--redact-paths` keeps them out of every output, recordings too.

use std::hash::BuildHasher as _;

/// What becomes of a path or peer.
#[derive(Clone, Debug, Default)]
pub enum Redact {
    /// It is told.
    #[default]
    No,
    /// It becomes a number that means nothing in another run, but is the same for the same thing in this one.
    Yes(std::hash::RandomState),
}

impl Redact {
    /// As the command line says.
    pub fn new(redact: bool) -> Redact {
        if redact { Redact::Yes(std::hash::RandomState::new()) } else { Redact::No }
    }

    /// A path.
    pub fn text(&self, text: &str) -> String {
        match self {
            Redact::No => text.to_owned(),
            Redact::Yes(key) => format!("[{:08x}]", key.hash_one(text) as u32),
        }
    }

    /// The address of a socket: its port is told, since what is asked there is told anyway.
    pub fn address(&self, address: &str) -> String {
        let is_host = |host: &str| host.ends_with(']') || !host.contains(':');
        match address.rsplit_once(':').filter(|(host, port)| is_host(host) && port.parse::<u16>().is_ok()) {
            Some((host, port)) => format!("{}:{port}", self.text(host)),
            None => self.text(address),
        }
    }

    /// What was asked: a method and a path, of which the method is told. What has no blank is a command.
    pub fn operation(&self, operation: &str) -> String {
        match (self, operation.split_once(' ')) {
            (Redact::Yes(_), Some((method, path))) => format!("{method} {}", self.text(path)),
            _ => operation.to_owned(),
        }
    }

    /// A path, or the address of a socket.
    pub fn path_or_address(&self, text: &str) -> String {
        if text.starts_with('/') { self.text(text) } else { self.address(text) }
    }

    /// The other end of a descriptor: a peer, or as [`Self::object`].
    pub fn end(&self, object: &str) -> String {
        match object.split_once([' ', ':']) {
            Some(("pipe" | "unix", _)) => self.object(object),
            None if object == "unix" => object.to_owned(),
            _ => self.address(object),
        }
    }

    /// What a descriptor is: of what it is called, the part before the first space or colon says its kind.
    pub fn object(&self, object: &str) -> String {
        match (self, object.split_once([' ', ':'])) {
            (Redact::No, _) => object.to_owned(),
            _ if object.starts_with('/') => self.text(object),
            _ if object == "unix" => object.to_owned(),
            (_, Some((kind @ ("tcp" | "udp"), ends))) => {
                let ends: Vec<String> = ends.split(" -> ").map(|end| self.address(end)).collect();
                format!("{kind} {}", ends.join(" -> "))
            }
            (_, Some(("unix", path))) => format!("unix {}", self.text(path)),
            (_, Some(("futex", _))) => object.to_owned(),
            (_, Some(("pipe" | "anon_inode" | "socket", _))) => object.to_owned(),
            _ => self.text(object),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_kept_and_things_stay_apart() {
        let redact = Redact::new(true);
        let object = |text| redact.object(text);
        assert!(
            !object("/home/me/key").contains("me")
                && object("/a") == object("/a")
                && object("/a") != object("/b")
        );
        let peer = object("tcp 10.0.0.1:80 -> 10.0.0.2:5432");
        assert!(peer.starts_with("tcp [") && !peer.contains("10.0"));
        let remote = redact.address("10.0.0.2:5432");
        assert!(peer.ends_with(&format!(" -> {remote}")) && remote.ends_with("]:5432"), "{peer}");
        assert_eq!(redact.end("10.0.0.2:5432"), remote, "the same peer everywhere");
        assert!(!redact.address("[fe80::1]:80").contains("fe80") && !redact.address("fe80::1").contains(':'));
        let asked = redact.operation("GET /secret");
        assert!(asked.starts_with("GET [") && !asked.contains("secret") && redact.operation("GET") == "GET");
        assert_eq!(redact.path_or_address("/run/db"), redact.text("/run/db"));
        assert_eq!(object("futex 0x7f, held by thread 7"), "futex 0x7f, held by thread 7");
        assert_eq!(object("pipe:[77]"), "pipe:[77]");
        assert_eq!(Redact::new(false).object("/a"), "/a");
    }
}
