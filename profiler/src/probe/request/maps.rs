//! The maps of the request probe.

use anyhow::Result;
use aya::maps::{Array, HashMap, MapData, Queue};
use profiler_common::request::{Buffer, Connection, FailureKey, ListenerKey, PeerKey, PeerStats, UnixName};

use crate::{
    kernel::Kernel,
    model::abi,
    probe::request::counts::await_until,
    process::{life::network_namespace, network::Networks},
};

/// Where system calls have the bytes that they move.
const BUFFERS: [(&str, Buffer); 12] = [
    ("read", Buffer::Plain),
    ("write", Buffer::Plain),
    ("recvfrom", Buffer::Plain),
    ("sendto", Buffer::Plain),
    ("readv", Buffer::Vector),
    ("writev", Buffer::Vector),
    ("preadv2", Buffer::Vector),
    ("pwritev2", Buffer::Vector),
    ("recvmsg", Buffer::Message),
    ("sendmsg", Buffer::Message),
    ("recvmmsg", Buffer::Message),
    ("sendmmsg", Buffer::Message),
];

/// The maps of the request probe, so that a fake can stand in for the kernel's.
pub trait RequestMaps {
    /// Peers and what has been counted of them.
    fn peers(&self) -> Vec<(PeerKey, Box<PeerStats>)>;

    /// Connections that failed, so far.
    fn failures(&self) -> Vec<(FailureKey, u64)>;

    /// Connections that are open.
    fn connections(&self) -> Vec<Connection>;

    /// The address of a Unix socket by its hash.
    fn unix_name(&self, hash: u64) -> Option<UnixName>;

    /// Whose exchanges are counted.
    fn peer_keys(&self) -> Vec<PeerKey>;

    /// Makes room: this peer's process has ended. Its counts up to now.
    fn forget_peer(&mut self, key: &PeerKey) -> Option<Box<PeerStats>>;

    /// Makes room: these failures' process has ended. Their number up to now.
    fn forget_failure(&mut self, key: &FailureKey) -> Option<u64>;

    /// Makes room: this socket has gone.
    fn forget_connection(&mut self, sock: u64);

    /// Nobody watches any more, from now (CLOCK_MONOTONIC, ns) on: forgets every connection, and that answers are awaited.
    fn forget_connections(&mut self, now_ns: u64);
}

/// Maps of `profiler-ebpf/src/request.rs`.
pub struct KernelMaps {
    connections: HashMap<MapData, u64, Connection>,
    peers: Array<MapData, PeerStats>,
    index: HashMap<MapData, PeerKey, u32>,
    free: Queue<MapData, u32>,
    failures: HashMap<MapData, FailureKey, u64>,
    names: HashMap<MapData, u64, UnixName>,
}

impl KernelMaps {
    /// Takes the maps out of the loaded object, and tells the kernel programs what they cannot know: where calls have their
    /// bytes, and which ports are listened at already where the processes `pids` are.
    pub fn take(kernel: &mut Kernel, networks: &Networks, pids: &[u32]) -> Result<KernelMaps> {
        let mut buffers: Array<&mut MapData, u8> = kernel.map_mut("SOCKET_BUFFERS")?.try_into()?;
        for number in 0..buffers.len() {
            let name = abi::name(number as i32);
            if let Some((_, buffer)) = BUFFERS.iter().find(|(call, _)| *call == name) {
                buffers.set(number, *buffer as u8, 0)?;
            }
        }
        let mut listeners: HashMap<&mut MapData, ListenerKey, u32> =
            kernel.map_mut("LISTENERS")?.try_into()?;
        let mut seen = Vec::new();
        for &pid in pids {
            let Some(namespace) = network_namespace(networks.proc_root(), pid) else { continue };
            if seen.contains(&namespace) {
                continue;
            }
            seen.push(namespace);
            for &port in &networks.of(pid).tcp().listening {
                let key = ListenerKey { namespace, port: port.into() };
                let _no_room = listeners.insert(key, 0, 0);
            }
        }
        let mut take = |name: &str| kernel.take_map(name);
        let peers: Array<MapData, PeerStats> = take("PEER_STATS")?.try_into()?;
        let mut free = Queue::try_from(take("PEERS_FREE")?)?;
        for at in 0..peers.len() {
            free.push(at, 0)?;
        }
        Ok(KernelMaps {
            connections: take("CONNECTIONS")?.try_into()?,
            index: take("PEER_INDEX")?.try_into()?,
            failures: take("PEER_FAILURES")?.try_into()?,
            names: take("UNIX_NAMES")?.try_into()?,
            peers,
            free,
        })
    }
}

impl RequestMaps for KernelMaps {
    fn peers(&self) -> Vec<(PeerKey, Box<PeerStats>)> {
        let entries = self.index.iter().filter_map(Result::ok);
        entries.filter_map(|(key, at)| Some((key, Box::new(self.peers.get(&at, 0).ok()?)))).collect()
    }

    fn peer_keys(&self) -> Vec<PeerKey> {
        self.index.keys().filter_map(Result::ok).collect()
    }

    fn failures(&self) -> Vec<(FailureKey, u64)> {
        self.failures.iter().filter_map(Result::ok).collect()
    }

    fn connections(&self) -> Vec<Connection> {
        self.connections.iter().filter_map(|entry| Some(entry.ok()?.1)).collect()
    }

    fn unix_name(&self, hash: u64) -> Option<UnixName> {
        self.names.get(&hash, 0).ok()
    }

    fn forget_peer(&mut self, key: &PeerKey) -> Option<Box<PeerStats>> {
        let at = self.index.get(key, 0).ok()?;
        // In this order: nobody finds it any more, it is read, and what is free is empty.
        let _was_there = self.index.remove(key);
        let stats = self.peers.get(&at, 0).ok().map(Box::new);
        if self.peers.set(at, PeerStats::EMPTY, 0).is_ok() {
            let _has_room = self.free.push(at, 0);
        }
        stats
    }

    fn forget_failure(&mut self, key: &FailureKey) -> Option<u64> {
        let count = self.failures.get(key, 0).ok();
        let _was_there = self.failures.remove(key);
        count
    }

    fn forget_connection(&mut self, sock: u64) {
        let _was_there = self.connections.remove(&sock);
    }

    fn forget_connections(&mut self, now_ns: u64) {
        for of in self.connections() {
            self.forget_connection(of.sock);
        }
        let places: Vec<u32> = self.index.iter().filter_map(|entry| Some(entry.ok()?.1)).collect();
        for at in places {
            let Ok(mut stats) = self.peers.get(&at, 0) else { continue };
            if stats.awaited > 0 {
                await_until(&mut stats, now_ns);
                stats.awaited = 0;
                let _is_there = self.peers.set(at, stats, 0);
            }
        }
    }
}
