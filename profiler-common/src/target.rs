//! Which processes are profiled: the filter's modes, and the globals that userspace sets before loading.

/// Value of the kernel global `TARGET_MODE`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetMode {
    /// Processes whose id is a key of the map `TARGETS`.
    Pids = 0,
    /// Every process (not the idle task).
    All = 1,
    /// Members of one cgroup (v2) and of those below it.
    Cgroup = 2,
}

/// Most processes that can be targets at once.
pub const MAX_TARGETS: usize = 8192;

/// Cells of the map `TARGET_CELL`, which says of most processes that they are no target: 512 kB.
pub const TARGET_CELLS: usize = 65_536;

/// The cell that a process id falls into.
#[inline(always)]
pub const fn cell_of(pid: u32) -> u32 {
    pid & (TARGET_CELLS as u32 - 1)
}

/// Deepest nesting of PID namespaces that is searched for the profiler's own (the kernel allows 32; each
/// level costs three reads a sample, and only when the profiler itself runs inside a PID namespace).
pub const MAX_PIDNS_LEVELS: u32 = 8;

/// Inode number of the initial PID namespace (`PROC_PID_INIT_INO` in the kernel's `proc_ns.h`).
pub const INIT_PIDNS_INUM: u32 = 0xEFFF_FFFC;
