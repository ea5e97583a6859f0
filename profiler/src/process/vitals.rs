//! Looks at the targets from outside, about once a second. What it costs is bounded: 1,024 links of each process, 16 processes
//! at once, and a hundredth of a CPU; where they are many, each is looked at less often.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::{Duration, Instant},
};

use super::{
    backlog::{Backlogs, overflows},
    cgroups::unit,
    hsperf::PerfData,
    network::Networks,
    objects::inode,
    other_ends::{PATIENCE, other_ends},
    quota::CpuQuota,
    redact::Redact,
    room::make_room,
    shown::shown,
    sockdiag::SockDiag,
    tcp::TcpState,
};
use crate::model::vitals::{
    Child, DescriptorKind, Descriptors, Peer, ProcessVitals, Threads, Throttling, Vitals,
};

/// Most processes. One that has ended gives its place to one that lives.
const MAX_PROCESSES: usize = 512;
/// Processes that are looked at without a pause: each takes some fifteen files, and the profiler may be watched itself.
const AT_ONCE: usize = 16;
/// Most links of a process that are read at each look.
const MAX_LINKS: usize = 1024;
/// And of these all of the first ones, however many there are.
const MAX_FIRST: usize = 128;
/// Most kinds of descriptors, and most peers, of a process.
const MAX_KINDS: usize = 256;
/// Most descendants looked at, of all targets.
const MAX_CHILDREN: usize = 256;
/// Children listed.
const CHILDREN: usize = 5;
/// Time between two looks, and how many times as long as a look takes at least.
const INTERVAL: Duration = Duration::from_secs(1);
const PAUSE: u32 = 100;
/// A process that starts is what it is going to be after so many looks.
const STARTS: u64 = 5;

/// Looks at processes, and remembers what it saw.
pub struct VitalsSampler {
    networks: Networks,
    /// CPU time is counted in these, ns.
    tick_ns: u64,
    processes: BTreeMap<u32, Seen>,
    /// Most targets that had no place at one look.
    unlisted: u64,
    thread_limit: Option<u64>,
    /// Targets of this round, and those of them whose turn is still to come.
    round: BTreeSet<u32>,
    to_come: Vec<u32>,
    redact: Redact,
    diag: SockDiag,
    backlogs: Backlogs,
    due: Instant,
}

#[derive(Default)]
struct Seen {
    first_ns: u64,
    vitals: ProcessVitals,
    kinds: BTreeMap<String, (u64, u64)>,
    peers: BTreeMap<String, SeenPeer>,
    /// Its sockets that listen for TCP connections, by inode: address and port.
    listening: BTreeMap<u64, (String, u16)>,
    /// Connections turned away for want of room before the first look.
    overflows_before: Option<u64>,
    /// CPU time of children that were waited for, at the first look, ns.
    reaped_before_ns: u64,
    reaped_ns: u64,
    children: BTreeMap<u32, SeenChild>,
    quota: Option<(CpuQuota, CpuQuota)>,
    /// Where it counts collections of garbage, if that has been found, and how many there had been before the first look.
    perf_data: Option<(PerfData, u64)>,
}

#[derive(Default)]
struct SeenPeer {
    peer: Peer,
    inodes: BTreeSet<u64>,
    /// Sockets that waited for their first answer at the last look.
    pending: BTreeSet<u64>,
}

struct SeenChild {
    name: String,
    first_ns: u64,
    last_ns: u64,
    alive: bool,
}

/// Of `/proc/PID/stat`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Stat {
    name: String,
    state: u8,
    kernel_thread: bool,
    /// In ticks: of its own, and of its children that were waited for.
    cpu: u64,
    reaped: u64,
    threads: u64,
}

impl VitalsSampler {
    /// Nothing seen yet.
    pub fn new(networks: &Networks, redact: Redact) -> VitalsSampler {
        // SAFETY: sysconf only reads.
        let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        VitalsSampler {
            networks: networks.clone(),
            tick_ns: 1_000_000_000 / u64::try_from(ticks).unwrap_or(100).max(1),
            processes: BTreeMap::new(),
            unlisted: 0,
            thread_limit: thread_limit(networks.proc_root()),
            round: BTreeSet::new(),
            to_come: Vec::new(),
            redact,
            diag: SockDiag::default(),
            backlogs: Backlogs::new(networks.proc_root()),
            due: Instant::now(),
        }
    }

    /// Whether it is time for another look.
    pub fn is_due(&self) -> bool {
        Instant::now() >= self.due
    }

    /// Looks at those targets whose turn it is, now: CLOCK_MONOTONIC, ns. Which there are is asked when all have had theirs.
    pub fn look(&mut self, targets: impl FnOnce() -> Vec<u32>, now_ns: u64) {
        let begun = Instant::now();
        if self.to_come.is_empty() {
            self.begin_round(targets());
        }
        let later = self.to_come.len().saturating_sub(AT_ONCE);
        let turn = self.to_come.split_off(later);
        self.look_at(&turn, now_ns);
        let turns = self.round.len().div_ceil(AT_ONCE).max(1);
        self.due = Instant::now() + (INTERVAL / turns as u32).max(begun.elapsed() * PAUSE);
    }

    /// Looks at connections that wait to be accepted, which come and go faster, if it is time to.
    pub fn look_at_backlogs(&mut self) {
        self.backlogs.look();
    }

    /// Looks at all targets, for the last time.
    pub fn last_look(&mut self, targets: Vec<u32>, now_ns: u64) {
        self.begin_round(targets);
        let all = std::mem::take(&mut self.to_come);
        self.look_at(&all, now_ns);
        let listed = self.processes.keys().copied().filter(|pid| self.round.contains(pid));
        let mut ends = other_ends(&self.networks, &mut self.diag, &self.redact, listed, PATIENCE);
        for (pid, seen) in &mut self.processes {
            seen.vitals.other_ends = ends.remove(pid).unwrap_or_default();
        }
    }

    fn begin_round(&mut self, targets: Vec<u32>) {
        self.round = targets.into_iter().collect();
        self.to_come = self.round.iter().copied().collect();
    }

    fn look_at(&mut self, pids: &[u32], now_ns: u64) {
        let mut without = 0;
        for &pid in pids {
            let dir = self.networks.proc_root().join(pid.to_string());
            let Some(stat) = stat(&dir).filter(|stat| !stat.kernel_thread) else { continue };
            let ended = |pid, seen: &Seen| (!self.round.contains(&pid)).then_some(seen.vitals.span_ns);
            if !make_room(&mut self.processes, MAX_PROCESSES, pid, ended, |_, _| {}) {
                without += 1;
                continue;
            }
            let seen = self.processes.entry(pid).or_default();
            let first = seen.vitals.samples == 0;
            if first {
                (seen.first_ns, seen.reaped_before_ns) = (now_ns, stat.reaped * self.tick_ns);
                seen.vitals.pid = pid;
                let groups = crate::text::read_to_parse(&dir.join("cgroup")).unwrap_or_default();
                seen.vitals.unit = unit(&groups)
                    .map_or_else(String::new, |unit| self.redact.text(&crate::text::clean_text(&unit)));
            }
            seen.reaped_ns = stat.reaped * self.tick_ns;
            seen.vitals.process = stat.name;
            seen.vitals.samples += 1;
            seen.vitals.span_ns = now_ns.saturating_sub(seen.first_ns);
            seen.vitals.threads.push(Threads { time_ns: now_ns, number: stat.threads });
            seen.vitals.thread_limit = self.thread_limit;
            seen.vitals.stopped += u64::from(matches!(stat.state, b'T' | b't'));
            seen.descriptors(&self.networks, &mut self.diag, &self.redact, now_ns, first);
            seen.overflows(self.networks.proc_root(), pid);
            self.backlogs.learn(pid, seen.listening.iter().map(|(inode, at)| (*inode, at)));
            seen.quota(self.networks.proc_root(), &self.redact, pid);
            seen.collections(self.networks.proc_root(), pid);
            let known = self.processes.values().map(|seen| seen.children.len()).sum::<usize>();
            if let Some(seen) = self.processes.get_mut(&pid) {
                seen.children(
                    self.networks.proc_root(),
                    &dir,
                    self.tick_ns,
                    &self.round,
                    MAX_CHILDREN.saturating_sub(known),
                    first,
                );
            }
        }
        self.unlisted = self.unlisted.max(without);
    }

    /// Begins anew with a process that runs another program now.
    pub fn forget(&mut self, pid: u32) {
        if self.processes.remove(&pid).is_some() {
            self.due = Instant::now();
        }
    }

    /// What was seen so far.
    pub fn vitals(&self) -> Vitals {
        let with_backlogs =
            |(&pid, seen): (&u32, &Seen)| ProcessVitals { backlogs: self.backlogs.of(pid), ..seen.vitals() };
        Vitals { processes: self.processes.iter().map(with_backlogs).collect(), unlisted: self.unlisted }
    }
}

impl Seen {
    fn vitals(&self) -> ProcessVitals {
        let cpu_ns = |child: &SeenChild| child.last_ns.saturating_sub(child.first_ns);
        let mut children: Vec<Child> = self
            .children
            .iter()
            .filter(|(_, child)| child.alive || cpu_ns(child) > 0)
            .map(|(&pid, child)| Child {
                pid,
                process: child.name.clone(),
                cpu_ns: cpu_ns(child),
                alive: child.alive,
            })
            .collect();
        children.sort_by_key(|child| std::cmp::Reverse(child.cpu_ns));
        children.truncate(CHILDREN);
        // What a child that has ended used is in the time of those that were waited for.
        let alive: u64 = self.children.values().filter(|child| child.alive).map(cpu_ns).sum();
        // And with it what they had used before.
        let before: u64 =
            self.children.values().filter(|child| !child.alive).map(|child| child.first_ns).sum();
        let reaped = self.reaped_ns.saturating_sub(self.reaped_before_ns).saturating_sub(before);
        let mut peers: Vec<Peer> = self.peers.values().map(|seen| seen.peer.clone()).collect();
        peers.sort_by_key(|peer| std::cmp::Reverse(peer.most));
        let kinds = self.kinds.iter().map(|(kind, &(first, last))| DescriptorKind {
            kind: kind.clone(),
            first,
            last,
        });
        ProcessVitals {
            kinds: kinds.collect(),
            peers,
            children,
            children_cpu_ns: alive + reaped,
            throttling: self.quota.as_ref().map(|(first, last)| Throttling {
                cgroup: last.cgroup.clone(),
                cpus: last.cpus,
                periods: last.periods.saturating_sub(first.periods),
                throttled_periods: last.throttled_periods.saturating_sub(first.throttled_periods),
                throttled_ns: last.throttled_ns.saturating_sub(first.throttled_ns),
            }),
            ..self.vitals.clone()
        }
    }

    fn descriptors(
        &mut self,
        networks: &Networks,
        diag: &mut SockDiag,
        redact: &Redact,
        now_ns: u64,
        first: bool,
    ) {
        let dir = shown(networks.proc_root(), self.vitals.pid);
        let Ok(entries) = fs::read_dir(dir.join("fd")) else { return };
        let numbers: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        let open = numbers.len();
        self.vitals.descriptors.push(Descriptors { time_ns: now_ns, open: open as u64 });
        self.vitals.descriptor_limit =
            descriptor_limit(&crate::text::read_to_parse(&dir.join("limits")).unwrap_or_default());
        // Of very many, every so many one is read: what it finds is an estimate.
        let step = open.div_ceil(MAX_LINKS).max(1);
        let links: Vec<String> = numbers
            .iter()
            .step_by(step)
            .filter_map(|path| Some(crate::text::path(&fs::read_link(path).ok()?)))
            .collect();
        let sockets: BTreeSet<u64> = links.iter().filter_map(|link| inode(link)).collect();
        // Its tables are read when the first socket is looked up there.
        let network = networks.of(self.vitals.pid);
        let listens = |inode: &u64| {
            network.tcp().socket(*inode).is_some_and(|of| of.state == TcpState::Listen)
                || network.unix(*inode).is_some_and(|unix| unix.listens)
        };
        self.vitals.listens = self.vitals.listens || sockets.iter().any(listens);
        // A listener has a low number, and must not be left out.
        let low = numbers.iter().take(if step > 1 { MAX_FIRST } else { 0 });
        let low = low.filter_map(|path| inode(&crate::text::path(&fs::read_link(path).ok()?)));
        let low: BTreeSet<u64> = low.chain(sockets.iter().copied()).collect();
        let tcp = low.iter().filter_map(|inode| network.tcp().socket(*inode));
        let tcp = tcp.filter(|of| of.state == TcpState::Listen);
        self.listening = tcp.map(|of| (of.inode, (redact.address(&of.local.0), of.local.1))).collect();

        let mut kinds: BTreeMap<String, u64> = BTreeMap::new();
        // Connections of each, whether they are clients, and the time since the oldest question without an answer, ms.
        let mut peers: BTreeMap<String, (u64, bool, Option<u32>)> = BTreeMap::new();
        let mut pending: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
        // Sockets that are connected, by peer; and whether it is known whose answers are awaited.
        let mut connected: BTreeSet<String> = BTreeSet::new();
        let mut known = false;
        let mut connections = 0;
        for link in &links {
            let kind = match inode(link) {
                Some(inode) => match network.tcp().socket(inode) {
                    Some(of) if of.state == TcpState::Listen => "listening socket".to_owned(),
                    Some(of) => {
                        connections += 1;
                        let clients = network.tcp().listening.contains(&of.local.1);
                        let peer = if clients {
                            format!("clients of :{}", of.local.1)
                        } else {
                            redact.address(&of.remote)
                        };
                        let at = peers.entry(peer.clone()).or_default();
                        let awaiting = network.awaiting(diag, networks.proc_root());
                        known |= awaiting.is_some();
                        let awaited = awaiting.and_then(|awaiting| awaiting.get(&inode).copied());
                        *at = (at.0 + 1, clients, at.2.max(awaited));
                        if let Some(seen) = self.peer(&peer, clients)
                            && seen.inodes.len() < MAX_KINDS * 16
                            && seen.inodes.insert(inode)
                        {
                            seen.peer.seen += 1;
                        }
                        if of.state == TcpState::Established {
                            connected.insert(peer.clone());
                        } else if of.state == TcpState::SynSent {
                            pending.entry(peer.clone()).or_default().insert(inode);
                        }
                        let closed =
                            if of.state == TcpState::CloseWait { ", closed by the other side" } else { "" };
                        format!("TCP, {peer}{closed}")
                    }
                    None => {
                        connections += 1;
                        "Unix or other socket".to_owned()
                    }
                },
                None => kind(link, redact),
            };
            *kinds.entry(kind).or_default() += step as u64;
        }
        for (peer, seen) in &mut self.peers {
            // What was pending at the look before, too, is late; so is who is tried again and again, and never reached.
            let now = pending.remove(peer).unwrap_or_default();
            let again = !now.is_empty() && !seen.pending.is_empty() && !connected.contains(peer);
            seen.peer.connecting += u64::from(again || !now.is_disjoint(&seen.pending));
            seen.pending = now;
        }
        self.vitals.most_connections = self.vitals.most_connections.max((connections * step) as u64);
        for (peer, (number, clients, awaited)) in peers {
            let waiting = network
                .tcp()
                .sockets
                .iter()
                .filter(|of| {
                    of.state == TcpState::TimeWait
                        && (redact.address(&of.remote) == peer || redact.address(&of.local.0) == peer)
                })
                .count() as u64;
            if let Some(seen) = self.peer(&peer, clients) {
                seen.peer.samples += 1;
                seen.peer.judged += u64::from(known);
                seen.peer.awaited += u64::from(awaited.is_some());
                let ns = u64::from(awaited.unwrap_or(0)) * 1_000_000;
                seen.peer.longest_awaited_ns = seen.peer.longest_awaited_ns.max(ns);
                seen.peer.most = seen.peer.most.max(number * step as u64);
                seen.peer.most_time_wait = seen.peer.most_time_wait.max(waiting);
            }
        }
        self.kinds.values_mut().for_each(|(_, last)| *last = 0);
        for (kind, number) in kinds {
            let full = self.kinds.len() >= MAX_KINDS && !self.kinds.contains_key(&kind);
            let kind = if full { "others".to_owned() } else { kind };
            let of = self.kinds.entry(kind).or_default();
            of.1 += number;
            of.0 += if first { number } else { 0 };
        }
    }

    fn peer(&mut self, peer: &str, clients: bool) -> Option<&mut SeenPeer> {
        if self.peers.len() >= MAX_KINDS && !self.peers.contains_key(peer) {
            return None;
        }
        let new = || SeenPeer {
            peer: Peer { peer: peer.to_owned(), clients, ..Peer::default() },
            ..SeenPeer::default()
        };
        Some(self.peers.entry(peer.to_owned()).or_insert_with(new))
    }

    fn overflows(&mut self, proc_root: &Path, pid: u32) {
        if self.listening.is_empty() {
            return;
        }
        let now = overflows(proc_root, pid);
        self.overflows_before = self.overflows_before.or(now);
        let more = |now: u64| Some(now.saturating_sub(self.overflows_before?));
        self.vitals.overflows = now.and_then(more).or(self.vitals.overflows);
    }

    fn collections(&mut self, proc_root: &Path, pid: u32) {
        // A virtual machine has them soon after its start.
        if self.perf_data.is_none() && self.vitals.samples <= STARTS {
            self.perf_data = PerfData::find(proc_root, pid)
                .and_then(|perf_data| Some((perf_data, perf_data.collections(proc_root, pid)?)));
        }
        let Some((perf_data, before)) = self.perf_data else { return };
        let now = perf_data.collections(proc_root, pid);
        self.vitals.collections = now.map(|now| now.saturating_sub(before)).or(self.vitals.collections);
    }

    fn quota(&mut self, proc_root: &Path, redact: &Redact, pid: u32) {
        let Some(mut now) = CpuQuota::of(proc_root, pid) else { return };
        now.cgroup = redact.text(&now.cgroup);
        match &mut self.quota {
            Some((first, last)) if first.cgroup == now.cgroup => *last = now,
            quota => *quota = Some((now.clone(), now)),
        }
    }

    fn children(
        &mut self,
        proc_root: &Path,
        dir: &Path,
        tick_ns: u64,
        targets: &BTreeSet<u32>,
        room: usize,
        first: bool,
    ) {
        self.children.values_mut().for_each(|child| child.alive = false);
        let mut room = room;
        let mut next = children(dir);
        let mut looked_at = 0;
        while let Some(pid) = next.pop() {
            looked_at += 1;
            if looked_at > MAX_CHILDREN || targets.contains(&pid) {
                continue;
            }
            let dir = proc_root.join(pid.to_string());
            let Some(stat) = stat(&dir) else { continue };
            next.extend(children(&dir));
            let cpu_ns = stat.cpu * tick_ns;
            match self.children.get_mut(&pid) {
                Some(child) => (child.last_ns, child.alive) = (cpu_ns, true),
                None if room > 0 => {
                    room -= 1;
                    // What is born during the run used all of its time in it.
                    let first_ns = if first { cpu_ns } else { 0 };
                    self.children
                        .insert(pid, SeenChild { name: stat.name, first_ns, last_ns: cpu_ns, alive: true });
                }
                None => {}
            }
        }
    }
}

/// Children of all threads of a process: none where the kernel does not list them.
fn children(dir: &Path) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(dir.join("task")) else { return Vec::new() };
    let lists = threads
        .take(64)
        .filter_map(|thread| crate::text::read_to_parse(&thread.ok()?.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

fn stat(dir: &Path) -> Option<Stat> {
    parse_stat(&crate::text::to_parse(&fs::read(dir.join("stat")).ok()?))
}

/// A name may hold blanks and parentheses: it ends at the last one.
fn parse_stat(text: &str) -> Option<Stat> {
    let (head, rest) = text.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // By the numbers of proc(5), which begin at 1 with the pid: the state is the third.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    // include/linux/sched.h, PF_KTHREAD.
    const KERNEL_THREAD: u64 = 0x0020_0000;
    Some(Stat {
        name,
        state: *fields.first()?.as_bytes().first()?,
        kernel_thread: number(9)? & KERNEL_THREAD != 0,
        cpu: number(14)?.saturating_add(number(15)?),
        reaped: number(16)?.saturating_add(number(17)?),
        threads: number(20)?,
    })
}

/// How many threads the machine has numbers for.
fn thread_limit(proc_root: &Path) -> Option<u64> {
    let limit = |name| {
        let text = crate::text::read_to_parse(&proc_root.join("sys/kernel").join(name)).ok()?;
        text.trim().parse::<u64>().ok()
    };
    ["pid_max", "threads-max"].into_iter().filter_map(limit).min()
}

fn descriptor_limit(limits: &str) -> Option<u64> {
    limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

/// What a link that is no socket stands for: its folder, or its kind.
fn kind(link: &str, redact: &Redact) -> String {
    if link.starts_with("pipe:") {
        return "pipe".to_owned();
    }
    match link.strip_prefix('/') {
        Some(path) => {
            let deleted = if path.ends_with(" (deleted)") { ", deleted" } else { "" };
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            format!("file in {}{deleted}", redact.text(&format!("/{folder}")))
        }
        None => link
            .split_once(":[")
            .filter(|(kind, _)| *kind != "anon_inode")
            .map_or(link, |(kind, _)| kind)
            .to_owned(),
    }
}

#[cfg(test)]
mod tests;
