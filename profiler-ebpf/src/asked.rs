//! What programs ask the kernel about their attempts to connect.

use aya_ebpf::{Global, helpers::bpf_probe_read_user};
use profiler_common::syscall::InCall;

use crate::syscall::{CALLS_BY_THREAD, arguments_of, count_error};

/// The number of connect.
#[unsafe(no_mangle)]
static CONNECT_NUMBER: Global<u32> = Global::new(u32::MAX);

/// Where a program has asked how its attempt to connect has ended, long after that returned EINPROGRESS: an error counts as
/// one of connect.
#[inline(always)]
pub fn learn_how_it_ended(call: &InCall) {
    const SOL_SOCKET: u64 = 1;
    const SO_ERROR: u64 = 4;
    let [_, level, option, value, ..] = arguments_of(call);
    if level != SOL_SOCKET || option != SO_ERROR {
        return;
    }
    // SAFETY: the helper checks the address.
    if let Ok(error @ 1..=4095) = unsafe { bpf_probe_read_user(value as *const u32) } {
        let tid = if CALLS_BY_THREAD.load() != 0 { call.tid } else { 0 };
        count_error(call.pid, tid, CONNECT_NUMBER.load(), error);
    }
}
