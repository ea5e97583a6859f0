//! Reads and writes by descriptor.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, Queue},
    macros::btf_map,
};
use profiler_common::{
    histogram::log2,
    loss::Loss,
    record::RecordKind,
    sched::WaitCause,
    syscall::{
        Done, Endpoint, InCall, IoKey, IoRecord, IoStats, KNOWN_IO, ListenKey, MAX_IO, ObjectKind, SIZES,
        traits,
    },
};

use crate::{
    descriptor::{cause_on, describe_descriptor, identity_of, name_descriptor},
    emit::{emit_named, may_emit_io},
    maps::{NO_PREALLOC, NOEXIST},
    output::count,
};

/// Ports that processes have accepted connections at: those who talk to them are clients. The value is unused.
#[btf_map]
static LISTENING: LruHashMap<ListenKey, u32, 4096> = LruHashMap::new();

/// Reads and writes by descriptor.
#[btf_map]
static CALL_IO: Array<IoStats, MAX_IO> = Array::new();

/// Where in `CALL_IO` they are.
#[btf_map]
static IO_INDEX: HashMap<IoKey, u32, MAX_IO, NO_PREALLOC> = HashMap::new();

/// Entries of `CALL_IO` that are free.
#[btf_map]
static IO_FREE: Queue<u32, MAX_IO> = Queue::new();

#[btf_map]
static IO_RECORD: PerCpuArray<IoRecord, 1> = PerCpuArray::new();

/// Adds a read or write to its descriptor's; returns what the descriptor is.
#[inline(always)]
pub fn io(call: &mut InCall, done: &Done) -> Option<WaitCause> {
    let descriptor = done.object as u32;
    let mut io = known_io(call, descriptor);
    // There is time to see whether it still is what it was, where no call has said so.
    if let Some(known) = io
        && done.waited | done.stack_due != 0
        // SAFETY: the entry stays where it is.
        && unsafe { (*known).identity } != identity_of(descriptor)
    {
        io = None;
    }
    if io.is_none() {
        let at = begin_io(call);
        call.known_io[descriptor as usize % KNOWN_IO] = at;
        io = CALL_IO.get_ptr_mut(at);
    }
    // SAFETY: see `add_io`.
    let io = unsafe { &mut *io? };
    call.on = io.on;
    add_io(io, call, done);
    if call.stack != 0 && (done.looked_at | done.stack_due) != 0 {
        io.votes += 1;
        io.most.vote(call.stack, 1);
    }
    Some(cause_on(&io.on))
}

/// Whether it is a socket at a port that the process has accepted connections at.
#[inline(always)]
pub fn listens(pid: u32, on: &Endpoint) -> bool {
    let at = ListenKey { pid, port: on.local_port.into() };
    on.kind == ObjectKind::Net as u32 && LISTENING.get_ptr(&at).is_some()
}

/// A connection has been accepted.
#[inline(always)]
pub fn listen(call: &mut InCall, done: &Done) {
    describe_descriptor(done.object as u32, &raw mut call.on);
    let key = ListenKey { pid: call.pid, port: call.on.local_port.into() };
    if call.on.kind == ObjectKind::Net as u32 && LISTENING.get_ptr(&key).is_none() {
        let _no_room = LISTENING.insert(&key, &0, 0);
    }
}

/// Makes an entry for the descriptor of the call that has returned and reports it, unless another thread has. Returns
/// its position. Not inlined, since the verifier would follow it from everywhere.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn begin_io(call: *mut InCall) -> u32 {
    const FULL: u32 = u32::MAX;
    // SAFETY: callers pass a valid entry; the verifier, which cannot know, wants to see the check for null.
    let Some(call) = (unsafe { call.as_ref() }) else { return FULL };
    let done = &call.done;
    let key = IoKey { pid: call.pid, descriptor: done.object as u32 };
    let identity = identity_of(key.descriptor);
    // SAFETY: the value is copied at once.
    if let Some(&at) = unsafe { IO_INDEX.get(&key) } {
        let Some(io) = CALL_IO.get_ptr(at) else { return FULL };
        // SAFETY: the entry stays where it is.
        if unsafe { (*io).identity } == identity {
            return at;
        }
        close(key.pid, key.descriptor, done.now);
    }
    let Ok(Some(at)) = IO_FREE.pop() else {
        count(Loss::IoFull);
        return FULL;
    };
    let (Some(io), Some(record)) = (CALL_IO.get_ptr_mut(at), IO_RECORD.get_ptr_mut(0)) else { return FULL };
    // SAFETY: this CPU's own slot; no program that uses it interrupts another.
    let record = unsafe { &mut *record };
    record.kind = RecordKind::Io as u32;
    record.closed = 0;
    record.stats = IoStats {
        key,
        first_ns: done.began,
        tid: call.tid,
        first_wrote: u32::from(done.traits as u16 & traits::WRITE != 0),
        identity,
        ..IoStats::default()
    };
    describe_descriptor(key.descriptor, &raw mut record.stats.on);
    record.stats.listens = u32::from(listens(call.pid, &record.stats.on));
    // SAFETY: nobody else has got this entry.
    unsafe { *io = record.stats };
    if IO_INDEX.insert(&key, &at, NOEXIST).is_err() {
        end_io(io, at);
        // SAFETY: as above.
        return unsafe { IO_INDEX.get(&key) }.copied().unwrap_or(FULL);
    }
    if may_emit_io(done.now) {
        record.name.len = 0;
        if record.stats.on.kind != ObjectKind::Net as u32 {
            name_descriptor(key.descriptor, &raw mut record.name);
        }
        emit_named(record, &record.name);
    }
    at
}

/// Gives an entry of `CALL_IO` back.
#[inline(always)]
fn end_io(io: *mut IoStats, at: u32) {
    // SAFETY: the entry stays where it is.
    unsafe { (*io).key = IoKey { pid: 0, descriptor: 0 } };
    let _has_room = IO_FREE.push(at, 0);
}

/// The entry of a descriptor, if it is where it was the last time.
#[inline(always)]
fn known_io(call: &InCall, descriptor: u32) -> Option<*mut IoStats> {
    let io = CALL_IO.get_ptr_mut(call.known_io[descriptor as usize % KNOWN_IO])?;
    // SAFETY: the entry stays where it is.
    let key = unsafe { &(*io).key };
    if key.pid == call.pid && key.descriptor == descriptor { Some(io) } else { None }
}

/// Adds a read or write that is of no other interest to its descriptor's; whether that is known already.
#[inline(always)]
pub fn move_data(call: &InCall) -> bool {
    let Some(io) = known_io(call, call.done.object as u32) else { return false };
    // SAFETY: see `add_io`.
    add_io(unsafe { &mut *io }, call, &call.done);
    true
}

/// Threads that use one descriptor at the same time can lose each other's counts here; they are told to be
/// approximate.
#[inline(always)]
fn add_io(io: &mut IoStats, call: &InCall, done: &Done) {
    let size = done.result as u64;
    io.calls += 1;
    io.bytes += size;
    io.ns += done.duration_ns();
    io.blocked_ns += call.blocked_ns;
    io.last_ns = done.now;
    io.tid = call.tid;
    io.sizes[log2(u64::from(size as u32) | 1) as usize % SIZES] += 1;
    if done.traits as u16 & traits::WRITE != 0 {
        io.written_ns = done.began;
    } else if io.written_ns != 0 {
        io.round_trips += 1;
        io.round_trip_ns += done.now.saturating_sub(io.written_ns);
        io.written_ns = 0;
    }
}

/// A call has ended descriptors: what comes next with their numbers is another.
#[inline(always)]
pub fn end(call: &mut InCall, done: &Done) {
    const EBADF: i64 = 9;
    let of = done.traits as u16;
    if of & traits::CLOSE_RANGE != 0 {
        forget_io(call);
    } else if of & traits::CLOSE != 0 && done.result != -EBADF {
        close(call.pid, done.object as u32, done.now);
    } else if of & traits::DUP != 0 && done.result >= 0 {
        close(call.pid, done.result as u32, done.now);
    }
}

/// What each descriptor is will be asked again when it is used next.
#[inline(always)]
pub fn forget_io(call: &mut InCall) {
    call.known_io = [u32::MAX; KNOWN_IO];
}

/// Reports what was done with a descriptor that has ended. Not inlined, since it is called from several places.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn close(pid: u32, descriptor: u32, now: u64) -> u32 {
    let key = IoKey { pid, descriptor };
    // SAFETY: the value is copied at once.
    let Some(&at) = (unsafe { IO_INDEX.get(&key) }) else { return 0 };
    let _was_there = IO_INDEX.remove(&key);
    let (Some(io), Some(record)) = (CALL_IO.get_ptr_mut(at), IO_RECORD.get_ptr_mut(0)) else { return 0 };
    // SAFETY: as in `io`.
    let record = unsafe { &mut *record };
    record.kind = RecordKind::Io as u32;
    record.closed = 1;
    // SAFETY: as in `io`.
    record.stats = unsafe { *io };
    record.name.len = 0;
    end_io(io, at);
    if may_emit_io(now) {
        emit_named(record, &record.name);
    } else {
        count(Loss::IoFull);
    }
    0
}
