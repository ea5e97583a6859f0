//! Breakpoints in TLS libraries (OpenSSL, BoringSSL): which connection each object is about, and what is said on it.
//!
//! Mostly a library calls the socket itself, in the thread that called the library: that tells the connection. Others are
//! given what was read of the socket before, by memory (Node.js, Python's asyncio). There order tells: what a thread has
//! read of an encrypted socket is for the object that it reads of next. Each read tells anew; a contradiction is counted,
//! and nothing is told of the connection until the next one.

use aya_ebpf::{
    helpers::bpf_probe_read_user,
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use profiler_common::{
    cost::Probe,
    loss::Loss,
    request::REQUEST_HEAD,
    tls::{TlsCall, TlsKey, TlsThread, fits},
};

use crate::{
    output::{begin, count, finish},
    request::{Bytes, WROTE, attach_library, copy_head, detach_library, move_inside},
    target::{Ids, current_target},
    tls::{forget, socket_of, thread},
    user_probe::{cookie, nothing},
};

/// A library's function begins. Its cookie says what it does, see [`TlsCall`].
#[uprobe]
pub fn tls_enter(ctx: ProbeContext) -> u32 {
    let Some(ids) = current_target() else { return nothing(&ctx) };
    let began = begin(Probe::Tls);
    enter(&ctx, &ids);
    finish(Probe::Tls, began);
    0
}

/// A library's function has returned.
#[uretprobe]
pub fn tls_return(ctx: RetProbeContext) -> u32 {
    let Some(ids) = current_target() else { return nothing(&ctx) };
    let began = begin(Probe::Tls);
    leave(ctx.ret(), &ids);
    finish(Probe::Tls, began);
    0
}

#[inline(always)]
fn enter(ctx: &ProbeContext, ids: &Ids) {
    let Some(thread) = thread() else { return };
    let kind = cookie(ctx);
    let [ssl, buffer, size, read_at] = [0, 1, 2, 3].map(|n| ctx.arg::<u64>(n).unwrap_or(0));
    let key = TlsKey { ssl, pid: ids.pid, _padding: 0 };
    if kind == TlsCall::Free as u8 {
        if let Some(known) = socket_of(&key) {
            forget(&key);
            detach_library(known.sock, ssl, 1);
        }
        return;
    }
    if kind == TlsCall::Write as u8 {
        // The size is an int, or a size_t: what is above is not set in the first case, and never in the second.
        write(thread, &key, buffer, size & 0xffff_ffff, ids.tid);
        return;
    }
    thread.call = kind.into();
    thread.buffer = buffer;
    thread.size = size & 0xffff_ffff;
    thread.read_at = read_at;
    thread.nested = 0;
    thread.ssl = ssl;
}

/// Something is to be sent.
#[inline(always)]
fn write(thread: &mut TlsThread, key: &TlsKey, buffer: u64, size: u64, tid: u32) {
    if size == 0 {
        return;
    }
    if let Some(known) = socket_of(key)
        && move_inside(known.sock, key.ssl, buffer, size, WROTE | u64::from(tid)) != 0
    {
        if thread.pending == key.ssl {
            thread.pending = 0;
        }
        return;
    }
    // Whose socket it is will be seen when it is sent; by then the buffer may be used for something else.
    thread.pending = key.ssl;
    thread.pending_size = size;
    let from = Bytes { at: buffer, len: size, kernel: false };
    if copy_head(thread.head.as_mut_ptr(), REQUEST_HEAD as u64, &from) == 0 {
        thread.pending = 0;
    }
}

#[inline(always)]
fn leave(returned: u64, ids: &Ids) {
    let Some(thread) = thread() else { return };
    let (ssl, nested) = (thread.ssl, thread.nested);
    thread.ssl = 0;
    if ssl == 0 {
        return; // the call had begun before it was watched, or another one in it
    }
    let key = TlsKey { ssl, pid: ids.pid, _padding: 0 };
    let read = read_bytes(thread, returned);
    if nested == 0 && thread.last != 0 && thread.taken_by == 0 {
        take(thread, &key, read);
    }
    if read != 0 {
        let sock = if nested != 0 { nested } else { socket_of(&key).map_or(0, |known| known.sock) };
        if sock == 0 || move_inside(sock, ssl, thread.buffer, read, ids.tid.into()) == 0 {
            count(Loss::TlsUnmatched);
        }
    }
    thread.arrived_ns = 0;
}

/// How much the call has read.
#[inline(always)]
fn read_bytes(thread: &TlsThread, returned: u64) -> u64 {
    let result = returned as i32;
    if result <= 0 {
        return 0;
    }
    if thread.call == TlsCall::Read as u32 {
        result as u64
    } else if thread.call == TlsCall::ReadEx as u32 {
        // SAFETY: the helper checks the address.
        unsafe { bpf_probe_read_user(thread.read_at as *const u64) }.unwrap_or(0) & 0xffff_ffff
    } else {
        0
    }
}

/// What the thread has read of a socket is for this object, if nothing speaks against it.
#[inline(always)]
fn take(thread: &mut TlsThread, key: &TlsKey, read: u64) {
    let sock = thread.last;
    match socket_of(key) {
        Some(known) if known.sock == sock => thread.taken_by = key.ssl,
        Some(known) if known.by_order == 0 => {} // it calls the socket itself: this is what it had left over
        known => {
            thread.taken_by = key.ssl;
            if known.is_some_and(|known| detach_library(known.sock, key.ssl, 0) != 0) {
                forget(key); // another socket than before
            } else if read == 0
                || thread.last_length != 0 && fits(thread.last_length, read, read < thread.size)
            {
                attach_library(sock, key.ssl, key.pid, 1);
            }
        }
    }
}
