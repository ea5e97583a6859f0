//! What TLS libraries are called for, as far as it tells whose plain text they give and take.

use aya_ebpf::{
    Global,
    btf_maps::{Array, HashMap},
    helpers::bpf_get_current_pid_tgid,
    macros::btf_map,
};
use profiler_common::{
    request::MAX_CONNECTIONS,
    tls::{TLS_THREADS as PLACES, TlsKey, TlsSocket, TlsThread},
};

use crate::maps::NO_PREALLOC;

/// Whether calls of TLS libraries are watched.
#[unsafe(no_mangle)]
pub static TLS_WATCHED: Global<u32> = Global::new(0);

/// What threads are doing, by the low bits of their ids in the initial PID namespace.
#[btf_map]
static TLS_THREADS: Array<TlsThread, { PLACES as usize }> = Array::new();

/// The sockets of TLS libraries' objects.
#[btf_map]
static TLS_SOCKETS: HashMap<TlsKey, TlsSocket, MAX_CONNECTIONS, NO_PREALLOC> = HashMap::new();

/// The current thread's place. If another one had it, that one's calls are forgotten.
#[inline(always)]
pub fn thread() -> Option<&'static mut TlsThread> {
    let tid = bpf_get_current_pid_tgid() as u32;
    let thread = TLS_THREADS.get_ptr_mut(tid & (PLACES - 1))?;
    // SAFETY: the thread's own place; if another has the same, each sees whose it is.
    let thread = unsafe { &mut *thread };
    if thread.tid != tid {
        thread.ssl = 0;
        thread.nested = 0;
        thread.last = 0;
        thread.taken_by = 0;
        thread.arrived_ns = 0;
        thread.pending = 0;
        thread.tid = tid;
    }
    Some(thread)
}

/// The socket of an object, if it is known.
#[inline(always)]
pub fn socket_of(key: &TlsKey) -> Option<TlsSocket> {
    // SAFETY: the value is copied at once.
    unsafe { TLS_SOCKETS.get(key) }.copied()
}

/// Takes note of an object's socket; whether there was room.
#[inline(always)]
pub fn remember(key: &TlsKey, sock: u64, by_order: bool) -> bool {
    TLS_SOCKETS.insert(key, &TlsSocket { sock, by_order: u64::from(by_order) }, 0).is_ok()
}

/// Forgets an object.
#[inline(always)]
pub fn forget(key: &TlsKey) {
    let _was_there = TLS_SOCKETS.remove(key);
}
