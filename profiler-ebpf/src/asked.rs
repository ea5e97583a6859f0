//! What programs ask the kernel about their attempts to connect.

use aya_ebpf::{Global, helpers::bpf_probe_read_user};

/// The number of connect.
#[unsafe(no_mangle)]
pub static CONNECT_NUMBER: Global<u32> = Global::new(u32::MAX);

/// The error that a getsockopt with these arguments, which has returned, has told of an attempt to connect: often long after
/// that returned EINPROGRESS. Zero for none.
#[inline(always)]
pub fn connect_error(arguments: [u64; 6]) -> u32 {
    const SOL_SOCKET: u64 = 1;
    const SO_ERROR: u64 = 4;
    let [_, level, option, value, ..] = arguments;
    if level != SOL_SOCKET || option != SO_ERROR {
        return 0;
    }
    // SAFETY: the helper checks the address.
    match unsafe { bpf_probe_read_user(value as *const u32) } {
        Ok(error @ 1..=4095) => error,
        _ => 0,
    }
}
