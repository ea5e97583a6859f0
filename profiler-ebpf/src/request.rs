//! Requests and their answers: exchanges on the sockets of targets, as their sends and receives tell them. What comes
//! towards the side that answers belongs to the request, what comes back to the answer; an exchange has ended when the
//! next one begins, or with its connection.
//!
//! Nothing is looked at but the first bytes of each request and answer. Connections are known by the address of their
//! `struct sock`, so that it does not matter who accepted them.
//!
//! Longer than 600 lines because the hooks, the exchanges and their books share one state of a connection.

use aya_ebpf::{
    EbpfContext as _, Global,
    btf_maps::{Array, HashMap, PerCpuArray, Queue},
    helpers::{
        bpf_probe_read_kernel as read_kernel, bpf_probe_read_user,
        generated::{
            bpf_get_current_pid_tgid, bpf_get_prandom_u32, bpf_probe_read_kernel,
            bpf_probe_read_user as read_user_bytes,
        },
    },
    macros::{btf_map, fexit, raw_tracepoint},
    programs::{FExitContext, RawTracePointContext},
};
use profiler_common::{
    cost::Probe,
    histogram::{Histogram, bucket},
    loss::Loss,
    record::RecordKind,
    request::{
        ANSWER_HEAD, BUFFERS, Buffer, Connection, FRAMES, FailureKey, FirstBytes, Frames, ListenerKey,
        MAX_CONNECTIONS, MAX_FAILURES, MAX_LISTENERS, MAX_PEERS, NAMES, Names, OF_BUFFER, PeerKey, PeerStats,
        Phase, REQUEST_HEAD, Role, SHORT_HEAD, STATUS_AT, STATUSES, UNIX_NAME, UnixName, class_of, flags,
    },
    sched::{MAX_SYSCALLS, Times, WaitCause},
    syscall::DNS_PORT,
    tls::{FREED, TlsKey, fits},
};

use crate::{
    emit::SLICE_SHIFT,
    hash::mix,
    maps::{NO_PREALLOC, NOEXIST},
    offsets::{
        OFF_ADDRESS_LEN, OFF_ADDRESS_NAME, OFF_NET_INUM, OFF_SOCK_ERROR, OFF_SOCK_FAMILY, OFF_SOCK_NET,
        OFF_SOCK_PEER_PORT, OFF_SOCK_PEER_V4, OFF_SOCK_PEER_V6, OFF_SOCK_PORT, OFF_SOCK_PROTOCOL,
        OFF_SOCK_SOCKET, OFF_SOCK_TYPE, OFF_SOCKET_INODE, OFF_SOCKET_SK, OFF_TCP_MSTAMP, OFF_TCP_WSTAMP,
        OFF_UNIX_ADDRESS, OFF_UNIX_PEER,
    },
    output::{self, begin, count, finish, now_ns, send},
    sched::{THREADS, settle_state},
    target::current_target,
    task::{current_task, read, syscall_entry},
    tls::{self, TLS_WATCHED},
};

/// Whether the scheduler is watched, so that what a thread did in the meantime is known.
#[unsafe(no_mangle)]
static REQUEST_TIMES: Global<u32> = Global::new(0);

/// Connections of targets, by the addresses of their `struct sock`.
#[btf_map]
static CONNECTIONS: HashMap<u64, Connection, MAX_CONNECTIONS, NO_PREALLOC> = HashMap::new();

/// Where a connection is put together: too large for the stack.
#[btf_map]
static NEW_CONNECTION: PerCpuArray<Connection, 1> = PerCpuArray::new();

/// What is counted of each peer.
#[btf_map]
static PEER_STATS: Array<PeerStats, MAX_PEERS> = Array::new();

/// Where in `PEER_STATS` they are.
#[btf_map]
static PEER_INDEX: HashMap<PeerKey, u32, MAX_PEERS, NO_PREALLOC> = HashMap::new();

/// Entries of `PEER_STATS` that are free.
#[btf_map]
static PEERS_FREE: Queue<u32, MAX_PEERS> = Queue::new();

/// Connections that failed, by peer and error.
#[btf_map]
static PEER_FAILURES: HashMap<FailureKey, u64, MAX_FAILURES, NO_PREALLOC> = HashMap::new();

/// Ports that are listened at: connections there have been accepted. The value is unused.
#[btf_map]
static LISTENERS: HashMap<ListenerKey, u32, MAX_LISTENERS, NO_PREALLOC> = HashMap::new();

/// Addresses of Unix sockets by their hash.
#[btf_map]
static UNIX_NAMES: HashMap<u64, UnixName, MAX_PEERS, NO_PREALLOC> = HashMap::new();

#[btf_map]
static UNIX_NAME_READ: PerCpuArray<UnixName, 1> = PerCpuArray::new();

/// Where each system call has the bytes that it moves, a [`Buffer`], by number.
#[btf_map]
static SOCKET_BUFFERS: Array<u8, MAX_SYSCALLS> = Array::new();

/// The data that is being received on this CPU.
#[btf_map]
static ARRIVED: PerCpuArray<Arrival, 1> = PerCpuArray::new();

/// Where a name server's message is copied to: too large for the stack.
#[btf_map]
static NAMES_READ: PerCpuArray<Names, 1> = PerCpuArray::new();

/// Where frames of HTTP/2 are copied to.
#[btf_map]
static FRAMES_READ: PerCpuArray<Frames, 1> = PerCpuArray::new();

/// How many records of exchanges this CPU has sent in this slice of time.
#[btf_map]
static EXCHANGES_SENT: PerCpuArray<Sent, 1> = PerCpuArray::new();

#[repr(C)]
#[derive(Clone, Copy)]
struct Arrival {
    /// On which socket.
    sock: u64,
    /// When the last packet before it was read had come, us.
    at_us: u64,
}

/// How many exchanges a CPU tells of one by one.
#[repr(C)]
#[derive(Clone, Copy)]
struct Sent {
    slice: u64,
    /// Exchanges that ended in this slice.
    ended: u64,
    /// Of these, told.
    exchanges: u64,
    /// One of so many is told.
    one_of: u64,
}

/// Exchanges that a CPU is to tell of in a slice of 8.4 ms: 7,600 a second. Of more it tells of some, each as likely as any
/// other, so that the routes stay in proportion. All are in the counts of the peer.
const EXCHANGES_PER_SLICE: u64 = 64;
/// Where more come than in the slice before: no more than this.
const MAX_PER_SLICE: u64 = 2 * EXCHANGES_PER_SLICE;

const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const SOCK_STREAM: u16 = 1;
const SOCK_DGRAM: u16 = 2;
const SOCK_SEQPACKET: u16 = 5;
const IPPROTO_TCP: u16 = 6;
const MSG_PEEK: u64 = 2;

/// States of TCP: include/net/tcp_states.h.
const TCP_ESTABLISHED: u32 = 1;
const TCP_SYN_SENT: u32 = 2;
const TCP_CLOSE: u32 = 7;
const TCP_LISTEN: u32 = 10;

/// A packet that is given to the network longer ago than this was not given in the call that ends now, ns.
const LONGEST_SEND_NS: u64 = 1_000_000;

/// No position of `PEER_STATS`.
const NO_PEER: u32 = u32::MAX;

/// An argument of a raw tracepoint.
///
/// # Safety
/// The tracepoint must have so many.
#[inline(always)]
unsafe fn argument(ctx: &RawTracePointContext, index: usize) -> u64 {
    // SAFETY: promised by the caller.
    unsafe { *ctx.as_ptr().cast::<u64>().add(index) }
}

/// Something was sent on a socket (Linux 6.3).
#[raw_tracepoint(tracepoint = "sock_send_length")]
pub fn socket_sent(ctx: RawTracePointContext) -> u32 {
    let Some(ids) = current_target() else { return 0 };
    // SAFETY: socket and result (include/trace/events/sock.h).
    let (sock, result) = unsafe { (argument(&ctx, 0), argument(&ctx, 1) as i32) };
    moved(sock, result, 1, ids.pid, ids.tid);
    0
}

/// Something was received (Linux 6.3).
#[raw_tracepoint(tracepoint = "sock_recv_length")]
pub fn socket_received(ctx: RawTracePointContext) -> u32 {
    let Some(ids) = current_target() else { return 0 };
    // SAFETY: socket, result and flags (include/trace/events/sock.h).
    let (sock, result, how) = unsafe { (argument(&ctx, 0), argument(&ctx, 1) as i32, argument(&ctx, 2)) };
    if how & MSG_PEEK == 0 {
        moved(sock, result, 0, ids.pid, ids.tid);
    }
    0
}

/// The same on older kernels, where the functions of each family of sockets are hooked: which arguments are flags, if any,
/// and which is the result.
macro_rules! hooks {
    ($($name:ident: $wrote:literal, $flags:expr, $result:literal;)+) => {
        $(
            /// A function of sockets returns.
            #[fexit]
            pub fn $name(ctx: FExitContext) -> u32 {
                let Some(ids) = current_target() else { return 0 };
                let how: Option<usize> = $flags;
                if let Some(at) = how && ctx.arg::<u64>(at) & MSG_PEEK != 0 {
                    return 0;
                }
                let Some(sock) = read::<u64>(ctx.arg::<*const u8>(0) as u64, OFF_SOCKET_SK.load()) else { return 0 };
                moved(sock, ctx.arg::<i32>($result), $wrote, ids.pid, ids.tid);
                0
            }
        )+
    };
}

hooks! {
    sent_inet: 1, None, 3;
    sent_inet6: 1, None, 3;
    sent_unix: 1, None, 3;
    sent_page: 1, None, 5;
    received_inet: 0, Some(3), 4;
    received_inet6: 0, Some(3), 4;
    received_unix: 0, Some(3), 4;
}

#[inline(always)]
fn moved(sock: u64, result: i32, wrote: u32, pid: u32, tid: u32) {
    if result > 0 {
        let began = begin(Probe::Request);
        move_bytes(sock, result as u64, wrote, pid, tid);
        finish(Probe::Request, began);
    }
}

/// Data of TCP is being received: when it had come is known until the call returns.
#[raw_tracepoint(tracepoint = "tcp_rcv_space_adjust")]
pub fn data_received(ctx: RawTracePointContext) -> u32 {
    if current_target().is_none() {
        return 0;
    }
    // SAFETY: the socket (include/trace/events/tcp.h).
    let sock = unsafe { argument(&ctx, 0) };
    if let Some(arrival) = ARRIVED.get_ptr_mut(0) {
        // SAFETY: this CPU's own slot.
        let arrival = unsafe { &mut *arrival };
        // Of several pieces the first one's.
        if arrival.sock != sock {
            arrival.sock = sock;
            arrival.at_us = read(sock, OFF_TCP_MSTAMP.load()).unwrap_or(0);
        }
    }
    0
}

/// A TCP socket comes into another state.
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn socket_state(ctx: RawTracePointContext) -> u32 {
    // SAFETY: socket, old and new state (include/trace/events/sock.h).
    let (sock, old, new) = unsafe { (argument(&ctx, 0), argument(&ctx, 1) as u32, argument(&ctx, 2) as u32) };
    if new == TCP_LISTEN || old == TCP_LISTEN {
        listen(sock, new == TCP_LISTEN);
    } else if new == TCP_SYN_SENT {
        if let Some(ids) = current_target() {
            begin_connection(sock, ids.pid, 1, now_ns());
        }
    } else if (new == TCP_ESTABLISHED && old == TCP_SYN_SENT) || new == TCP_CLOSE {
        change_connection(sock, new);
    }
    0
}

/// A TCP socket is no more.
#[raw_tracepoint(tracepoint = "tcp_destroy_sock")]
pub fn socket_gone(ctx: RawTracePointContext) -> u32 {
    // SAFETY: the socket (include/trace/events/tcp.h).
    end_connection(unsafe { argument(&ctx, 0) });
    0
}

/// A TCP segment is sent again.
#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
pub fn segment_resent(ctx: RawTracePointContext) -> u32 {
    // SAFETY: the socket comes first in every kernel (include/trace/events/tcp.h).
    let sock = unsafe { argument(&ctx, 0) };
    if let Some(connection) = CONNECTIONS.get_ptr_mut(&sock)
        // SAFETY: the entry stays where it is as long as the program runs.
        && let Some(stats) = stats_of(unsafe { &*connection })
    {
        // SAFETY: a member of a map's value.
        unsafe { output::add(&raw mut (*stats).retransmits, 1) };
    }
    0
}

/// A port is listened at, or by one socket less.
#[inline(always)]
fn listen(sock: u64, begins: bool) {
    let Some(port) = read::<u16>(sock, OFF_SOCK_PORT.load()) else { return };
    let key = ListenerKey { namespace: namespace_of(sock), port: port.into() };
    if begins {
        let _no_room = LISTENERS.insert(&key, &0, 0);
    }
    // Who has stopped listening still answers on what it has accepted.
}

/// Number of a socket's network namespace.
#[inline(always)]
fn namespace_of(sock: u64) -> u32 {
    let net: u64 = read(sock, OFF_SOCK_NET.load()).unwrap_or(0);
    read(net, OFF_NET_INUM.load()).unwrap_or(0)
}

/// So many bytes were moved on a socket of a target.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn move_bytes(sock: u64, bytes: u64, wrote: u32, pid: u32, tid: u32) -> u32 {
    let now = now_ns();
    let found = match CONNECTIONS.get_ptr_mut(&sock) {
        // SAFETY: the entry stays where it is as long as the program runs.
        Some(found) if is_still(unsafe { &*found }, sock) => Some(found),
        Some(_another) => {
            end_connection(sock);
            None
        }
        None => None,
    };
    let found = match found {
        Some(found) => found,
        None => {
            if begin_connection(sock, pid, 0, now) == 0 {
                return 0;
            }
            let Some(new) = CONNECTIONS.get_ptr_mut(&sock) else { return 0 };
            new
        }
    };
    // SAFETY: as above. Threads that use one connection at the same time can spoil an exchange on it, not more.
    let connection = unsafe { &mut *found };
    if connection.peer.pid != pid {
        // One process accepted it, and another one uses it.
        connection.peer.pid = pid;
        connection.at = find_peer(connection);
    }
    if let Some(stats) = stats_of(connection) {
        // SAFETY: members of a map's value.
        unsafe {
            let sum = if wrote != 0 { &raw mut (*stats).written_bytes } else { &raw mut (*stats).read_bytes };
            output::add(sum, bytes);
        }
    }
    let asks = connection.peer.role == Role::Asks as u32;
    if connection.flags & flags::MULTIPLEXED != 0 {
        if connection.flags & (flags::FRAMES | flags::TLS) == flags::FRAMES {
            tell_frames(connection, sock, 0, bytes, wrote, now);
        }
        return 0;
    }
    if wrote == 0 && connection.peer.port == DNS_PORT && connection.peer.socket_type == SOCK_DGRAM.into() {
        tell_names(pid, bytes, now);
    }
    let arrived_ns = if wrote != 0 { 0 } else { arrival(sock, now) };
    let mut moved = Moved { bytes, plain: 0, inside: Inside::No, arrived_ns };
    if TLS_WATCHED.load() != 0 {
        moved.inside = encrypted(connection, sock, &mut moved, wrote, now);
        if matches!(moved.inside, Inside::Told) {
            return 0;
        }
    }
    if (wrote != 0) == asks {
        request(connection, sock, &moved, asks, tid, now);
    } else {
        answer(connection, sock, &moved, asks, tid, now);
    }
    0
}

/// Tells of a message of a name server in full: who was looked up, and at which addresses, stands at its end. A resolver asks for
/// two kinds of addresses at once, so that of an exchange only the first answer's beginning is known.
#[inline(always)]
fn tell_names(pid: u32, bytes: u64, now: u64) {
    let Some(names) = NAMES_READ.get_ptr_mut(0) else { return };
    if !may_send(now) {
        return;
    }
    // SAFETY: this CPU's own slot, as in `begin_connection`.
    let names = unsafe { &mut *names };
    names.kind = RecordKind::Names as u32;
    names.pid = pid;
    names.time_ns = now;
    let buffer = buffer_of(bytes);
    names.len = copy_head(names.bytes.as_mut_ptr(), NAMES as u64, &buffer);
    // SAFETY: a value and its size.
    if names.len > 0 && !unsafe { send(core::ptr::from_ref(names).cast(), size_of::<Names>() as u64) } {
        count(Loss::RecordsLost);
    }
}

/// Tells of the first frames that a call moves on a connection of HTTP/2. Userspace finds requests and answers in them. Their plain
/// text is at `plain`, or where the system call has it.
#[inline(always)]
fn tell_frames(connection: &mut Connection, sock: u64, plain: u64, moved: u64, wrote: u32, now: u64) {
    let number = connection.exchanges;
    connection.exchanges += 1;
    if !may_send(now) {
        return;
    }
    let Some(frames) = FRAMES_READ.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's own slot, as in `begin_connection`.
    let frames = unsafe { &mut *frames };
    frames.kind = RecordKind::Frames as u32;
    frames.sock = sock;
    frames.peer = connection.peer;
    frames.time_ns = now;
    frames.number = number;
    frames.moved = moved;
    frames.wrote = wrote;
    copy_frames(frames, plain);
    // SAFETY: a value and its size.
    if !unsafe { send(core::ptr::from_ref(frames).cast(), size_of::<Frames>() as u64) } {
        count(Loss::RecordsLost);
    }
}

/// Copies the first bytes of a call, of each of its buffers.
#[inline(always)]
fn copy_frames(frames: &mut Frames, plain: u64) {
    let moved = frames.moved;
    frames.buffers = 0;
    frames.len = 0;
    let vector = if plain == 0 { vector_of() } else { 0 };
    if vector == 0 {
        let buffer =
            if plain == 0 { buffer_of(moved) } else { Bytes { at: plain, len: moved, kernel: false } };
        frames.len = copy_head(frames.bytes.as_mut_ptr(), FRAMES as u64, &buffer);
        return;
    }
    let mut left = moved;
    for number in 0..BUFFERS {
        if left == 0 {
            break;
        }
        // SAFETY: the helper checks the address. Address and length: struct iovec.
        let Ok([at, len]) =
            (unsafe { bpf_probe_read_user((vector + 16 * number as u64) as *const [u64; 2]) })
        else {
            break;
        };
        let len = if len < left { len } else { left };
        // SAFETY: inside of the array, and there is room for so much behind it.
        let to = unsafe { frames.bytes.as_mut_ptr().add(OF_BUFFER * number) };
        if len > 0 && copy_head(to, OF_BUFFER as u64, &Bytes { at, len, kernel: false }) == 0 {
            break;
        }
        frames.lens[number] = len as u32;
        frames.buffers = number as u32 + 1;
        left -= len;
    }
}

/// Bytes that were moved.
struct Moved {
    /// How many.
    bytes: u64,
    /// Where their plain text is, if not where the system call has them.
    plain: u64,
    inside: Inside,
    /// When the first of what is received had come, or zero.
    arrived_ns: u64,
}

/// What a TLS library has to do with bytes.
#[derive(Clone, Copy)]
enum Inside {
    /// Nothing, or it is not known.
    No,
    /// It tells of them by itself, or has done so: as encrypted bytes they say nothing.
    Told,
    /// It tells of them now.
    Tells,
    /// It has told of them before: `plain` is in the kernel.
    Kept,
}

impl Moved {
    #[inline(always)]
    fn buffer(&self) -> Bytes {
        if self.plain == 0 {
            buffer_of(self.bytes)
        } else {
            Bytes { at: self.plain, len: self.bytes, kernel: matches!(self.inside, Inside::Kept) }
        }
    }
}

/// Bytes of a socket while calls of TLS libraries are watched: whether one has to do with them.
#[inline(always)]
fn encrypted(connection: &mut Connection, sock: u64, moved: &mut Moved, wrote: u32, now: u64) -> Inside {
    let Some(thread) = tls::thread() else { return Inside::No };
    let buffer = buffer_of(moved.bytes);
    let first = first_bytes(&buffer);
    let record = first.tls();
    let is_encrypted = record.is_some() || connection.flags & flags::TLS != 0;
    let pid = connection.peer.pid;
    if thread.ssl != 0 {
        if is_encrypted {
            thread.nested = sock;
            if connection.inside != thread.ssl {
                attach(connection, TlsKey { ssl: thread.ssl, pid, _padding: 0 }, sock, false, now);
            }
            if wrote == 0 {
                thread.last = sock;
                thread.taken_by = thread.ssl;
                if thread.arrived_ns == 0 {
                    thread.arrived_ns = moved.arrived_ns;
                }
            }
        }
    } else if wrote == 0 {
        let begins = record == Some(false) && buffer.len >= 8;
        thread.last = if is_encrypted { sock } else { 0 };
        thread.last_length = if begins { first.tls_length().into() } else { 0 };
        thread.taken_by = 0;
        thread.arrived_ns = moved.arrived_ns;
    } else if thread.pending != 0
        && record == Some(false)
        && connection.inside <= FREED
        && fits(first.tls_length().into(), thread.pending_size, true)
    {
        let key = TlsKey { ssl: thread.pending, pid, _padding: 0 };
        thread.pending = 0;
        if attach(connection, key, sock, true, now) {
            moved.plain = thread.head.as_ptr() as u64;
            moved.bytes = thread.pending_size;
            return Inside::Kept;
        }
    }
    if connection.inside != 0 { Inside::Told } else { Inside::No }
}

/// From here on a TLS library's object tells what is said on a connection.
#[inline(always)]
fn attach(connection: &mut Connection, key: TlsKey, sock: u64, by_order: bool, now: u64) -> bool {
    if connection.inside != 0 && connection.inside != key.ssl {
        if by_order {
            return false; // it has, or had, one
        }
        tls::forget(&TlsKey { ssl: connection.inside, ..key });
    }
    if !tls::remember(&key, sock, by_order) {
        count(Loss::TlsFull);
        return false;
    }
    if connection.phase == Phase::Asked as u32 {
        // What seemed to be a request was its bytes before they were decrypted, or the handshake.
        stop_awaiting(connection, now);
        connection.phase = Phase::Idle as u32;
    } else if connection.phase == Phase::Answered as u32 {
        finish_exchange(connection, now);
    }
    connection.flags |= flags::TLS;
    connection.inside = key.ssl;
    true
}

/// The same, if the socket is followed.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn attach_library(sock: u64, ssl: u64, pid: u32, by_order: u32) -> u32 {
    let Some(connection) = CONNECTIONS.get_ptr_mut(&sock) else { return 0 };
    // SAFETY: as in `move_bytes`.
    let connection = unsafe { &mut *connection };
    attach(connection, TlsKey { ssl, pid, _padding: 0 }, sock, by_order != 0, now_ns()).into()
}

/// An object tells no more of a connection: it is freed, or it is not known any more whether it is this connection's.
/// Returns whether it did.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn detach_library(sock: u64, ssl: u64, freed: u32) -> u32 {
    let Some(connection) = CONNECTIONS.get_ptr_mut(&sock) else { return 0 };
    // SAFETY: as in `move_bytes`.
    let connection = unsafe { &mut *connection };
    if connection.inside != ssl {
        return 0;
    }
    connection.inside = if freed != 0 { FREED } else { 0 };
    1
}

/// With the thread id in the last argument of [`move_inside`]: something was written.
pub const WROTE: u64 = 1 << 32;

/// A TLS library's object has given, or takes, so many bytes of plain text. Returns whether the connection is its.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn move_inside(sock: u64, ssl: u64, at: u64, bytes: u64, how: u64) -> u32 {
    let Some(connection) = CONNECTIONS.get_ptr_mut(&sock) else { return 0 };
    // SAFETY: as in `move_bytes`.
    let connection = unsafe { &mut *connection };
    if connection.inside != ssl {
        return 0;
    }
    let (now, tid, wrote) = (now_ns(), how as u32, how & WROTE != 0);
    if connection.flags & flags::MULTIPLEXED != 0 {
        if connection.flags & flags::FRAMES != 0 {
            tell_frames(connection, sock, at, bytes, wrote.into(), now);
        }
        return 1;
    }
    let asks = connection.peer.role == Role::Asks as u32;
    let arrived_ns = match tls::thread() {
        Some(thread) if !wrote && thread.last == sock => thread.arrived_ns,
        _ => 0,
    };
    let moved = Moved { bytes, plain: at, inside: Inside::Tells, arrived_ns };
    if wrote == asks {
        request(connection, sock, &moved, asks, tid, now);
    } else {
        answer(connection, sock, &moved, asks, tid, now);
    }
    1
}

/// Whether an entry is about the socket that now has its address.
#[inline(always)]
fn is_still(connection: &Connection, sock: u64) -> bool {
    connection.identity == 0 || connection.identity == identity_of(sock)
}

/// Number of a socket's inode.
#[inline(always)]
fn identity_of(sock: u64) -> u64 {
    let socket: u64 = read(sock, OFF_SOCK_SOCKET.load()).unwrap_or(0);
    read(socket, OFF_SOCKET_INODE.load()).unwrap_or(0)
}

/// Exchanges of a connection after which frames of HTTP/2 are not looked for any more.
const MAX_MISTAKEN: u64 = 16;

/// Bytes of a request.
#[inline(always)]
fn request(connection: &mut Connection, sock: u64, moved: &Moved, asks: bool, tid: u32, now: u64) {
    let bytes = moved.bytes;
    if connection.phase == Phase::Asked as u32 {
        connection.request_bytes += bytes;
        connection.asked_ns = now;
        if connection.request_len < SHORT_HEAD as u32 {
            connection.request_len = more_of_request(connection, moved);
        }
        return;
    }
    let buffer = moved.buffer();
    let first = first_bytes(&buffer);
    if connection.phase == Phase::Answered as u32 {
        if connection.flags & flags::HTTP != 0 && buffer.len > 3 && !first.is_http() {
            connection.request_bytes += bytes; // what is left of a request that has been answered already
            return;
        }
        finish_exchange(connection, now);
    }
    // One that was there before the run says nothing any more of what it is, and may go on with frames that others have, too.
    let early = connection.exchanges < MAX_MISTAKEN && connection.flags & flags::OPENED == 0;
    let goes_on = early && first.is_http2_frame();
    if first.is_http2() || goes_on {
        connection.flags |= flags::MULTIPLEXED | flags::FRAMES;
        tell_frames(connection, sock, moved.plain, bytes, asks.into(), now);
        if let Some(stats) = stats_of(connection) {
            // SAFETY: a member of a map's value.
            unsafe { output::add(&raw mut (*stats).multiplexed, 1) };
        }
        return;
    }
    let is_plain = matches!(moved.inside, Inside::Tells | Inside::Kept);
    if !is_plain && let Some(handshake) = first.tls() {
        connection.flags |= flags::TLS;
        if handshake {
            return;
        }
    }
    connection.flags &= !(flags::OF_EXCHANGE | flags::HTTP);
    if is_plain {
        connection.flags |= flags::INSIDE;
    }
    if first.is_http() {
        connection.flags |= flags::HTTP;
    }
    connection.arrived_ns = if asks { 0 } else { moved.arrived_ns };
    connection.began_ns = if asks { sent_at(connection, sock, moved, now) } else { now };
    connection.asked_ns = now;
    connection.request_bytes = bytes;
    connection.answer_bytes = 0;
    connection.answer_len = 0;
    connection.tid = tid;
    connection.request_len = head_of_request(connection, &buffer);
    if REQUEST_TIMES.load() != 0 && take_times(&raw mut connection.times, now, now, 0) != 0 {
        connection.flags |= flags::TIMES;
    }
    connection.phase = Phase::Asked as u32;
    if let Some(stats) = stats_of(connection) {
        // SAFETY: members of a map's value. Of two at the same moment one can see the other's number or not.
        unsafe {
            let awaited = (*stats).awaited;
            if awaited == 0 {
                (*stats).awaited_since_ns = now;
            } else {
                output::add(&raw mut (*stats).overlapped, 1);
                connection.flags |= flags::OVERLAPS;
            }
            output::add(&raw mut (*stats).awaited, 1);
            if awaited >= (*stats).most_awaited {
                (*stats).most_awaited = awaited + 1;
            }
        }
    }
}

/// Bytes of an answer.
#[inline(always)]
fn answer(connection: &mut Connection, sock: u64, moved: &Moved, asks: bool, tid: u32, now: u64) {
    let bytes = moved.bytes;
    if connection.phase == Phase::Answered as u32 {
        connection.answer_bytes += bytes;
        connection.ended_ns = now;
        return;
    }
    if connection.phase != Phase::Asked as u32 {
        if matches!(moved.inside, Inside::Tells) && first_bytes(&moved.buffer()).is_http_answer() {
            count(Loss::TlsUnmatched); // its request was not seen
        }
        return; // a greeting, or news that nobody asked for
    }
    let buffer = moved.buffer();
    let first = first_bytes(&buffer);
    connection.answer_len = head_of_answer(connection, &buffer);
    if first.is_http_answer() {
        connection.flags |= flags::HTTP;
        let [a, b, c] = [0, 1, 2].map(|at| connection.answer[STATUS_AT + at]);
        if [a, b, c] == *b"101" {
            // From here on it is no HTTP any more.
            connection.answered_ns = now;
            connection.ended_ns = now;
            stop_awaiting(connection, now);
            finish_exchange(connection, now);
            connection.flags |= flags::MULTIPLEXED;
            return;
        }
        if a == b'1' {
            connection.answer_len = 0;
            return; // 100 Continue: the answer comes later
        }
    }
    connection.answered_ns = now;
    if asks {
        connection.arrived_ns = moved.arrived_ns;
    } else {
        connection.answered_ns = sent_at(connection, sock, moved, now);
    }
    connection.ended_ns = connection.answered_ns;
    connection.answer_bytes = bytes;
    if connection.tid != tid {
        connection.flags |= flags::OTHER_THREAD;
        connection.flags &= !flags::TIMES;
    } else if connection.flags & flags::TIMES != 0 {
        let answered = connection.answered_ns;
        if take_times(&raw mut connection.times, now, answered, 1) == 0 {
            connection.flags &= !flags::TIMES;
        }
    }
    connection.phase = Phase::Answered as u32;
    stop_awaiting(connection, now);
}

/// An answer is awaited no more.
#[inline(always)]
fn stop_awaiting(connection: &Connection, now: u64) {
    if let Some(stats) = stats_of(connection) {
        // SAFETY: as in `request`.
        unsafe {
            if (*stats).awaited == 1 {
                let ns = now.saturating_sub((*stats).awaited_since_ns);
                output::add(&raw mut (*stats).awaited_ns, ns);
            }
            output::add(&raw mut (*stats).awaited, u32::MAX); // one less
        }
    }
}

/// When the packet was given to the network that the call sent which ends now: the receiver may have read it since. What a
/// TLS library takes is sent after that.
#[inline(always)]
fn sent_at(connection: &Connection, sock: u64, moved: &Moved, now: u64) -> u64 {
    if matches!(moved.inside, Inside::Tells) {
        return now;
    }
    let before =
        if connection.phase == Phase::Asked as u32 { connection.asked_ns } else { connection.ended_ns };
    if connection.flags & flags::TCP != 0
        && let Some(at) = read::<u64>(sock, OFF_TCP_WSTAMP.load())
        && at > before
        && at < now
        && now - at < LONGEST_SEND_NS
    {
        return at;
    }
    now
}

/// When the data that was just received had come, or zero.
#[inline(always)]
fn arrival(sock: u64, now: u64) -> u64 {
    let Some(arrival) = ARRIVED.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's own slot.
    let arrival = unsafe { &mut *arrival };
    if arrival.sock != sock {
        return 0; // the thread has changed its CPU, or this is no TCP
    }
    arrival.sock = 0;
    let at = arrival.at_us.wrapping_mul(1000);
    if at < now { at } else { 0 }
}

/// Adds up an exchange whose answer has come, and tells of it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn finish_exchange(connection: *mut Connection, now: u64) -> u32 {
    // SAFETY: callers pass a valid entry; the verifier, which cannot know, wants to see the check for null.
    let Some(connection) = (unsafe { connection.as_mut() }) else { return 0 };
    connection.phase = Phase::Idle as u32;
    connection.exchanges += 1;
    let Some(stats) = stats_of(connection) else { return 0 };
    let (began, asks) = (connection.began_ns, connection.peer.role == Role::Asks as u32);
    let class = class_of(connection.flags & flags::HTTP != 0, &connection.answer, connection.answer_len);
    let read_ns = if asks { connection.answered_ns } else { began };
    // SAFETY: members of a map's value.
    let stats = unsafe { &mut *stats };
    count_time(&raw mut stats.first, connection.answered_ns.saturating_sub(began));
    count_time(&raw mut stats.whole, connection.ended_ns.saturating_sub(began));
    if connection.arrived_ns != 0 {
        count_time(&raw mut stats.queued, read_ns.saturating_sub(connection.arrived_ns));
    }
    // The verifier wants to see the comparison, so the class must be able to be anything.
    let status = if usize::from(class) < STATUSES {
        &raw mut stats.statuses[usize::from(class)]
    } else {
        &raw mut stats.statuses[0]
    };
    // SAFETY: as above.
    unsafe { output::add(status, 1) };
    if may_send(now) {
        connection.weight = stats.unsent + 1;
        stats.unsent = 0;
        // SAFETY: a value and its size.
        if !unsafe { send(core::ptr::from_ref(connection).cast(), size_of::<Connection>() as u64) } {
            count(Loss::RecordsLost);
        }
    } else {
        stats.unsent += 1;
    }
    0
}

#[inline(always)]
fn may_send(now: u64) -> bool {
    let Some(sent) = EXCHANGES_SENT.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's own slot.
    let sent = unsafe { &mut *sent };
    let elapsed = (now >> SLICE_SHIFT).wrapping_sub(sent.slice);
    if elapsed != 0 {
        // As many are expected as in the slice before; after a pause fewer.
        let expected = sent.ended >> (elapsed - 1).min(63);
        *sent = Sent {
            slice: now >> SLICE_SHIFT,
            ended: 0,
            exchanges: 0,
            one_of: expected / EXCHANGES_PER_SLICE + 1,
        };
    }
    sent.ended += 1;
    // SAFETY: takes no arguments.
    let random = || u64::from(unsafe { bpf_get_prandom_u32() });
    if sent.exchanges >= MAX_PER_SLICE || (sent.one_of > 1 && random() % sent.one_of != 0) {
        return false;
    }
    sent.exchanges += 1;
    true
}

/// Adds a duration, so that none is lost when two CPUs do so at once. A global function for the reason that
/// `histogram::add` is one.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn count_time(histogram: *mut Histogram, ns: u64) -> u32 {
    // SAFETY: as in `finish_exchange`.
    let Some(histogram) = (unsafe { histogram.as_mut() }) else { return 0 };
    // SAFETY: members of a map's value.
    unsafe { output::add(&raw mut histogram.sum_ns, ns) };
    if ns > histogram.max_ns {
        histogram.max_ns = ns;
    }
    if let Some(slot) = histogram.counts.get_mut(bucket(ns)) {
        // SAFETY: as above.
        unsafe { output::add(slot, 1) };
    }
    0
}

/// The counts of a connection's peer.
#[inline(always)]
fn stats_of(connection: &Connection) -> Option<*mut PeerStats> {
    let stats = PEER_STATS.get_ptr_mut(connection.at)?;
    // SAFETY: the entry stays where it is. Userspace gives those of ended processes to others.
    let key = unsafe { &(*stats).key };
    if key.pid == connection.peer.pid && key.port == connection.peer.port { Some(stats) } else { None }
}

/// Position of a peer's entry of `PEER_STATS`, which is made if there is none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_peer(connection: *const Connection) -> u32 {
    // SAFETY: as in `finish_exchange`.
    let Some(connection) = (unsafe { connection.as_ref() }) else { return NO_PEER };
    // A copy: up to 6.1 only the stack may hold a key.
    let key = &PeerKey { ..connection.peer };
    // SAFETY: the value is copied at once.
    if let Some(&at) = unsafe { PEER_INDEX.get(key) } {
        return at;
    }
    let Ok(Some(at)) = PEERS_FREE.pop() else {
        count(Loss::PeersFull);
        return NO_PEER;
    };
    let Some(stats) = PEER_STATS.get_ptr_mut(at) else { return NO_PEER };
    // SAFETY: nobody else has got this entry.
    unsafe { (*stats).key = *key };
    if PEER_INDEX.insert(key, &at, NOEXIST).is_ok() {
        return at;
    }
    // SAFETY: as above.
    unsafe { (*stats).key.pid = 0 };
    let _has_room = PEERS_FREE.push(at, 0);
    // SAFETY: as above.
    unsafe { PEER_INDEX.get(key) }.copied().unwrap_or(NO_PEER)
}

/// Makes an entry for a socket if requests can be told on it; whether there is one.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn begin_connection(sock: u64, pid: u32, connecting: u32, now: u64) -> u32 {
    let Some(new) = NEW_CONNECTION.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's own slot; only programs in the context of the process use it, which do not interrupt each other.
    let new = unsafe {
        core::ptr::write_bytes(new, 0, 1);
        &mut *new
    };
    if describe(new, sock, connecting != 0).is_none() {
        return 0;
    }
    new.kind = RecordKind::Exchange as u32;
    new.sock = sock;
    new.peer.pid = pid;
    new.opened_ns = now;
    new.ended_ns = now;
    if connecting != 0 {
        new.flags |= flags::CONNECTING | flags::OPENED;
        // SAFETY: no arguments.
        new.tid = unsafe { bpf_get_current_pid_tgid() } as u32;
    }
    new.at = find_peer(new);
    if connecting != 0
        && let Some(stats) = stats_of(new)
    {
        // SAFETY: a member of a map's value.
        unsafe { output::add(&raw mut (*stats).opened, 1) };
    }
    if CONNECTIONS.insert(&sock, new, 0).is_err() {
        count(Loss::ConnectionsFull);
        return 0;
    }
    1
}

/// Who is at the other end, and who asks.
#[inline(always)]
fn describe(new: &mut Connection, sock: u64, connecting: bool) -> Option<()> {
    let family: u16 = read(sock, OFF_SOCK_FAMILY.load())?;
    let kind: u16 = read(sock, OFF_SOCK_TYPE.load())?;
    new.peer.family = family;
    new.peer.socket_type = kind.into();
    if family == AF_UNIX {
        new.identity = identity_of(sock);
        return if kind == SOCK_STREAM || kind == SOCK_SEQPACKET { describe_unix(new, sock) } else { None };
    }
    if family != AF_INET && family != AF_INET6 {
        return None;
    }
    let port: u16 = read(sock, OFF_SOCK_PORT.load())?;
    let peer_port = u16::from_be(read(sock, OFF_SOCK_PEER_PORT.load())?);
    if peer_port == 0 {
        return None;
    }
    if kind == SOCK_DGRAM && peer_port == DNS_PORT {
        new.identity = identity_of(sock);
    } else if kind != SOCK_STREAM {
        return None;
    } else if read::<u16>(sock, OFF_SOCK_PROTOCOL.load())? == IPPROTO_TCP {
        new.flags |= flags::TCP;
    } else {
        new.identity = identity_of(sock);
    }
    let listener = ListenerKey { namespace: namespace_of(sock), port: port.into() };
    if !connecting && LISTENERS.get_ptr(&listener).is_some() {
        new.peer.role = Role::Answers as u32;
        new.peer.port = port;
        new.peer.family = AF_INET; // one port for both
        return Some(());
    }
    new.peer.role = Role::Asks as u32;
    new.peer.port = peer_port;
    if family == AF_INET {
        new.peer.address[..4].copy_from_slice(&read::<[u8; 4]>(sock, OFF_SOCK_PEER_V4.load())?);
        return Some(());
    }
    let address: [u32; 4] = read(sock, OFF_SOCK_PEER_V6.load())?;
    if address[0] | address[1] == 0 && address[2] == u32::to_be(0xffff) {
        new.peer.family = AF_INET;
        new.peer.address[..4].copy_from_slice(&address[3].to_ne_bytes());
    } else {
        new.peer.address = read(sock, OFF_SOCK_PEER_V6.load())?;
    }
    Some(())
}

/// An accepted Unix socket has the address of the one that listens; who connected has none.
#[inline(always)]
fn describe_unix(new: &mut Connection, sock: u64) -> Option<()> {
    let at = OFF_UNIX_ADDRESS.load();
    if at == 0 {
        return None;
    }
    let own: u64 = read(sock, at)?;
    let (role, address) = if own != 0 {
        (Role::Answers, own)
    } else {
        let peer: u64 = read(sock, OFF_UNIX_PEER.load())?;
        (Role::Asks, if peer == 0 { 0 } else { read(peer, at)? })
    };
    if address == 0 {
        return None;
    }
    const FAMILY: u64 = 2;
    const MAX_LEN: u64 = 108; // UNIX_PATH_MAX, include/uapi/linux/un.h
    let len = u64::from(read::<u32>(address, OFF_ADDRESS_LEN.load())?).wrapping_sub(FAMILY);
    if len == 0 || len > MAX_LEN {
        return None;
    }
    let name = UNIX_NAME_READ.get_ptr_mut(0)?;
    // SAFETY: this CPU's own slot, as in `begin_connection`.
    let name = unsafe {
        core::ptr::write_bytes(name, 0, 1);
        &mut *name
    };
    let from = address + u64::from(OFF_ADDRESS_NAME.load()) + FAMILY;
    // SAFETY: the helper checks the address, and the name has room for so much.
    if unsafe { bpf_probe_read_kernel(name.bytes.as_mut_ptr().cast(), len as u32, from as *const _) } != 0 {
        return None;
    }
    name.len = len as u32;
    let mut hash = len;
    for at in 0..UNIX_NAME / 8 {
        // SAFETY: the name is so long, and aligned to 4 bytes.
        hash = mix(hash) ^ unsafe { name.bytes.as_ptr().cast::<u64>().add(at).read_unaligned() };
    }
    let hash = mix(hash);
    if UNIX_NAMES.get_ptr(&hash).is_none() {
        let _no_room = UNIX_NAMES.insert(&hash, name, 0);
    }
    new.peer.role = role as u32;
    new.peer.address[..8].copy_from_slice(&hash.to_ne_bytes());
    Some(())
}

/// A connection is made, or has failed: perhaps later than the call that began it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn change_connection(sock: u64, state: u32) -> u32 {
    let Some(connection) = CONNECTIONS.get_ptr_mut(&sock) else { return 0 };
    // SAFETY: as in `move_bytes`.
    let connection = unsafe { &mut *connection };
    let connecting = connection.flags & flags::CONNECTING != 0;
    if state == TCP_ESTABLISHED {
        let now = now_ns();
        connection.flags &= !flags::CONNECTING;
        connection.ended_ns = now;
        if let Some(stats) = stats_of(connection) {
            // SAFETY: a member of a map's value.
            count_time(unsafe { &raw mut (*stats).connect }, now.saturating_sub(connection.opened_ns));
        }
        return 0;
    }
    let errno: u32 = read(sock, OFF_SOCK_ERROR.load()).unwrap_or(0);
    if errno == 0 && !connecting {
        return 0;
    }
    let key = &FailureKey { peer: PeerKey { ..connection.peer }, errno, connecting: u32::from(connecting) };
    if PEER_FAILURES.get_ptr_mut(key).is_none() {
        let _another_did = PEER_FAILURES.insert(key, &0, NOEXIST);
    }
    match PEER_FAILURES.get_ptr_mut(key) {
        // SAFETY: as above.
        Some(failures) => unsafe { output::add(failures, 1) },
        None => count(Loss::PeersFull),
    }
    if connecting {
        tell_failure(connection, now_ns());
    }
    0
}

/// Tells of what came to nothing, so that it can be seen how soon it is tried again: an attempt to connect, or a question without
/// an answer. It is no exchange, and stands for none.
#[inline(always)]
fn tell_failure(connection: &mut Connection, now: u64) {
    if !may_send(now) {
        return;
    }
    connection.ended_ns = now;
    connection.weight = 0;
    // SAFETY: a value and its size.
    if !unsafe { send(core::ptr::from_ref(connection).cast(), size_of::<Connection>() as u64) } {
        count(Loss::RecordsLost);
    }
}

/// A connection has ended.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn end_connection(sock: u64) -> u32 {
    let Some(found) = CONNECTIONS.get_ptr_mut(&sock) else { return 0 };
    // SAFETY: as in `move_bytes`.
    let connection = unsafe { &mut *found };
    let (phase, now) = (connection.phase, now_ns());
    if phase == Phase::Answered as u32 {
        finish_exchange(connection, now);
    } else if phase == Phase::Asked as u32 {
        stop_awaiting(connection, now);
        if connection.peer.role == Role::Asks as u32 {
            tell_failure(connection, now);
        }
    }
    if let Some(stats) = stats_of(connection) {
        // SAFETY: members of a map's value.
        unsafe {
            if phase == Phase::Asked as u32 {
                output::add(&raw mut (*stats).unanswered, 1);
            }
            output::add(&raw mut (*stats).closed, 1);
        }
    }
    if connection.inside > FREED {
        tls::forget(&TlsKey { ssl: connection.inside, pid: connection.peer.pid, _padding: 0 });
    }
    let _was_there = CONNECTIONS.remove(&sock);
    0
}

/// Where bytes are that have been moved.
pub struct Bytes {
    pub at: u64,
    pub len: u64,
    /// In the kernel's memory, not in the user's.
    pub kernel: bool,
}

/// Where the current system call has an array of `struct iovec`, or zero if it has none.
#[inline(always)]
fn vector_of() -> u64 {
    let entry = syscall_entry(current_task());
    let Some(&kind) = SOCKET_BUFFERS.get(entry.number as u32) else { return 0 };
    let at = entry.args[1];
    if kind == Buffer::Vector as u8 {
        return at;
    }
    if kind != Buffer::Message as u8 {
        return 0;
    }
    /// Where `struct msghdr` has its array of `struct iovec`, on 64-bit machines.
    const VECTOR: u64 = 16;
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_user((at + VECTOR) as *const u64) }.unwrap_or(0)
}

/// Where the current system call has the bytes that it has moved.
#[inline(always)]
fn buffer_of(moved: u64) -> Bytes {
    let user = |at: u64, len: u64| Bytes { at, len, kernel: false };
    let nowhere = user(0, 0);
    let entry = syscall_entry(current_task());
    let Some(&kind) = SOCKET_BUFFERS.get(entry.number as u32) else { return nowhere };
    let at = entry.args[1];
    if kind == Buffer::Plain as u8 {
        return user(at, moved);
    }
    let vector = vector_of();
    if vector == 0 {
        return nowhere;
    }
    // SAFETY: the helper checks the address. Address and length: struct iovec.
    match unsafe { bpf_probe_read_user(vector as *const [u64; 2]) } {
        Ok([at, len]) => user(at, if len < moved { len } else { moved }),
        Err(_) => nowhere,
    }
}

/// The first eight of some bytes.
#[inline(always)]
fn first_bytes(buffer: &Bytes) -> FirstBytes {
    let mut eight = [0u8; 8];
    if buffer.kernel {
        if buffer.len >= 8 {
            // SAFETY: the helper checks the address.
            eight = unsafe { read_kernel(buffer.at as *const [u8; 8]) }.unwrap_or([0; 8]);
        }
    } else if buffer.len >= 8 {
        // SAFETY: the helper checks the address.
        eight = unsafe { bpf_probe_read_user(buffer.at as *const [u8; 8]) }.unwrap_or([0; 8]);
    } else if buffer.len >= 4 {
        // SAFETY: as above.
        let four = unsafe { bpf_probe_read_user(buffer.at as *const [u8; 4]) }.unwrap_or([0; 4]);
        eight[..4].copy_from_slice(&four);
    }
    FirstBytes(u64::from_be_bytes(eight))
}

/// Copies the first bytes of a request; returns how many.
#[inline(always)]
fn head_of_request(connection: &mut Connection, buffer: &Bytes) -> u32 {
    copy_head(connection.request.as_mut_ptr(), REQUEST_HEAD as u64, buffer)
}

/// The same of an answer.
#[inline(always)]
fn head_of_answer(connection: &mut Connection, buffer: &Bytes) -> u32 {
    copy_head(connection.answer.as_mut_ptr(), ANSWER_HEAD as u64, buffer)
}

/// Continues the first bytes of a request; returns how many there are then.
#[inline(always)]
fn more_of_request(connection: &mut Connection, moved: &Moved) -> u32 {
    let have = connection.request_len as u64 & (SHORT_HEAD as u64 - 1);
    let buffer = moved.buffer();
    // SAFETY: inside of the array, and there is room for so much behind it.
    let to = unsafe { connection.request.as_mut_ptr().add(have as usize) };
    have as u32 + copy_head(to, (REQUEST_HEAD - SHORT_HEAD) as u64, &buffer)
}

/// Copies first bytes to where there is so much room; returns how many.
#[inline(always)]
pub fn copy_head(to: *mut u8, room: u64, buffer: &Bytes) -> u32 {
    let len = buffer.len;
    let len = if len > room { room } else { len };
    if len == 0 {
        return 0;
    }
    // The verifier of 6.1 forgets what a value was compared with on its way over the stack. So the value is bounded once
    // more, where the compiler cannot know that this changes nothing.
    // SAFETY: a variable of this function.
    let len = unsafe { core::ptr::read_volatile(&raw const len) };
    let len = (len.wrapping_sub(1) & (room.next_power_of_two() - 1)) + 1;
    // SAFETY: the helpers check the address they read, and there is room where they write.
    let failed = unsafe {
        match buffer.kernel {
            true => bpf_probe_read_kernel(to.cast(), len as u32, buffer.at as *const _),
            false => read_user_bytes(to.cast(), len as u32, buffer.at as *const _),
        }
    };
    if failed == 0 { len as u32 } else { 0 }
}

/// Writes to `into` what the current thread has done until a moment before `now` in which it has not left its CPU since, or
/// with `since` what it has done from the moment on that is there. Returns whether that is known.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn take_times(into: *mut Times, now: u64, until: u64, since: u32) -> u32 {
    // SAFETY: as in `finish_exchange`.
    let Some(into) = (unsafe { into.as_mut() }) else { return 0 };
    // SAFETY: no arguments.
    let tid = unsafe { bpf_get_current_pid_tgid() } as u32;
    let Some(state) = THREADS.get_ptr_mut(&tid) else { return 0 };
    // SAFETY: the entry is this thread's, and the thread is here.
    let state = unsafe { &mut *state };
    settle_state(state, now);
    let running = until.saturating_sub(state.since_ns);
    let keep = if since != 0 { u64::MAX } else { 0 };
    into.on_cpu_ns = (state.times.on_cpu_ns + running).wrapping_sub(into.on_cpu_ns & keep);
    into.run_queue_ns = state.times.run_queue_ns.wrapping_sub(into.run_queue_ns & keep);
    for cause in 0..WaitCause::COUNT {
        into.blocked_ns[cause] = state.times.blocked_ns[cause].wrapping_sub(into.blocked_ns[cause] & keep);
    }
    1
}
