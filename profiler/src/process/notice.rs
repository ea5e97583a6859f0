//! What the kernel says of processes while they run: mappings, forks, execs and ends.

/// One notice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// CLOCK_MONOTONIC, ns.
    pub time_ns: u64,
    /// Whose it is.
    pub pid: u32,
    /// What happened.
    pub event: Event,
}

/// What happened to a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It mapped executable memory.
    Mapped {
        /// First address.
        start: u64,
        /// Length in bytes.
        len: u64,
        /// Offset of `start` in the file.
        file_offset: u64,
        /// Device of the file, `(major, minor)`; zero where the kernel sent a build id instead.
        device: (u32, u32),
        /// Inode of the file; zero for anonymous memory.
        inode: u64,
        /// Path as the process sees it, or `//anon`, `[vdso]` …
        path: String,
    },
    /// It replaced its program; all earlier mappings are gone.
    Exec {
        /// Its new name.
        name: String,
    },
    /// It was forked from `parent` and has its mappings.
    Forked {
        /// The parent's pid.
        parent: u32,
    },
    /// Its main thread ended.
    Exited,
}
