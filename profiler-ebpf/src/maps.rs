//! Flags of maps, and of what is done with them.

/// `BPF_F_NO_PREALLOC`: memory is taken as entries come.
pub const NO_PREALLOC: usize = 1;

/// `BPF_NOEXIST`: an entry is only added, never replaced.
pub const NOEXIST: u64 = 1;
