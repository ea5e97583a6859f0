//! How records lie in memory.

use profiler_common::{
    request::{Connection, Frames, Names},
    sched::{Exit, Interval, Iteration, LoopSeen},
    syscall::{IoRecord, SlowCall},
};

/// A record without a variable part: `repr(C)`, and made of integers for which any bytes will do.
pub trait Plain: Copy {}
impl Plain for Interval {}
impl Plain for Iteration {}
impl Plain for Exit {}
impl Plain for LoopSeen {}
impl Plain for SlowCall {}
impl Plain for IoRecord {}
impl Plain for Connection {}
impl Plain for Names {}
impl Plain for Frames {}

/// Reads one; `None` if bytes are missing.
pub fn plain<T: Plain>(bytes: &[u8]) -> Option<T> {
    // SAFETY: a Plain type is repr(C) and made of integers, for which any bytes will do; there are enough of them.
    (bytes.len() >= size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Reads a record that ends with its last byte in use, but is no shorter than `least`; what is left out is zero.
pub fn cut_off<T: Plain>(bytes: &[u8], least: usize) -> Option<Box<T>> {
    let mut whole = vec![0; size_of::<T>()];
    let len = bytes.len().min(whole.len());
    whole[..len].copy_from_slice(&bytes[..len]);
    (bytes.len() >= least).then(|| plain(&whole).map(Box::new))?
}
