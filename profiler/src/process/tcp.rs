//! TCP sockets of a network namespace, as `/proc/PID/net/tcp` and `tcp6` list them.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
};

/// States that matter here: include/net/tcp_states.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpState {
    /// Both sides can send.
    Established,
    /// Waits for the other side to answer the first packet.
    SynSent,
    /// Closed by this side; remembered for a minute.
    TimeWait,
    /// Closed by the other side, and not by the process.
    CloseWait,
    /// Waits for connections.
    Listen,
    /// Any other.
    Other,
}

/// One socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    /// Its own address and port.
    pub local: (String, u16),
    /// `ADDRESS:PORT` of the other side.
    pub remote: String,
    /// Its state.
    pub state: TcpState,
    /// Its inode; zero where no process has it any more.
    pub inode: u64,
}

/// All sockets in the tables of a network namespace: a process's folder `net`.
pub fn tcp_sockets(net: &Path) -> Vec<TcpSocket> {
    let texts = ["tcp", "tcp6"].map(|name| crate::text::read_to_parse(&net.join(name)).unwrap_or_default());
    texts.iter().flat_map(|text| text.lines().skip(1)).filter_map(socket).collect()
}

/// sl local remote state queues timer retransmits uid timeout inode: Documentation/networking/proc_net_tcp.rst.
fn socket(line: &str) -> Option<TcpSocket> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let local = address(fields.get(1)?)?;
    let port = local.rsplit(':').next()?.parse().ok()?;
    Some(TcpSocket {
        local: (local, port),
        remote: address(fields.get(2)?)?,
        state: match *fields.get(3)? {
            "01" => TcpState::Established,
            "02" => TcpState::SynSent,
            "06" => TcpState::TimeWait,
            "08" => TcpState::CloseWait,
            "0A" => TcpState::Listen,
            _ => TcpState::Other,
        },
        inode: fields.get(9)?.parse().ok()?,
    })
}

/// `0100007F:1F90`, in the machine's byte order by words, as `127.0.0.1:8080`.
pub fn address(text: &str) -> Option<String> {
    let (host, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words: Vec<u32> = (0..host.len())
        .step_by(8)
        .map(|at| u32::from_str_radix(host.get(at..at + 8)?, 16).ok())
        .collect::<Option<_>>()?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    if let Ok(v4) = <[u8; 4]>::try_from(&*bytes) {
        return Some(format!("{}:{port}", Ipv4Addr::from(v4)));
    }
    let v6 = Ipv6Addr::from(<[u8; 16]>::try_from(&*bytes).ok()?);
    Some(match v6.to_ipv4_mapped() {
        Some(v4) => format!("{v4}:{port}"),
        None => format!("[{v6}]:{port}"),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_is_a_socket() {
        let line = "   1: 0100007F:9C40 0200000A:1538 01 00000000:00000000 00:00000000 00000000     0        0 6 1 0 100 0 0 10 0";
        let found = socket(line).unwrap();
        assert_eq!(
            (found.local, found.remote.as_str()),
            (("127.0.0.1:40000".to_owned(), 40_000), "10.0.0.2:5432")
        );
        assert_eq!((found.state, found.inode), (TcpState::Established, 6));
        assert_eq!(address("0000000000000000FFFF00000100007F:0050").as_deref(), Some("127.0.0.1:80"));
    }

    proptest! {
        #[test]
        fn any_line_is_survived(line in "[0-9A-F: é]{0,120}") {
            socket(&line);
        }

        #[test]
        fn any_address_is_survived(text in "[0-9A-Fé]{0,40}:?[0-9A-F]{0,6}") {
            address(&text);
        }
    }
}
