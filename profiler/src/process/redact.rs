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

    /// A path, or the address of a socket.
    pub fn text(&self, text: &str) -> String {
        match self {
            Redact::No => text.to_owned(),
            Redact::Yes(key) => format!("[{:08x}]", key.hash_one(text) as u32),
        }
    }

    /// The other end of a descriptor: a peer, or as [`Self::object`].
    pub fn end(&self, object: &str) -> String {
        match object.split_once([' ', ':']) {
            Some(("pipe" | "unix", _)) => self.object(object),
            _ => self.text(object),
        }
    }

    /// What a descriptor is: of what it is called, the part before the first space or colon says its kind.
    pub fn object(&self, object: &str) -> String {
        match (self, object.split_once([' ', ':'])) {
            (Redact::No, _) => object.to_owned(),
            _ if object.starts_with('/') => self.text(object),
            (_, Some((kind @ ("tcp" | "udp" | "unix"), rest))) => format!("{kind} {}", self.text(rest)),
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
        assert_eq!(object("pipe:[77]"), "pipe:[77]");
        assert_eq!(Redact::new(false).object("/a"), "/a");
    }
}
