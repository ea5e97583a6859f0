//! What the profiler itself uses.

/// CPU time and memory of this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// User and system time so far, ns.
    pub cpu_ns: u64,
    /// Largest resident set so far, bytes.
    pub peak_rss_bytes: u64,
}

impl Usage {
    /// Up to now.
    pub fn now() -> Usage {
        // SAFETY: rusage is plain old data, and getrusage fills it.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
            usage
        };
        let ns = |time: libc::timeval| time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1_000;
        Usage {
            cpu_ns: ns(usage.ru_utime) + ns(usage.ru_stime),
            peak_rss_bytes: usage.ru_maxrss as u64 * 1024,
        }
    }
}

/// Allows as many open files as the system does: each mapped file of a target is kept open, so that its symbols
/// outlive it. Failing that, fewer are.
pub fn raise_file_limit() {
    // SAFETY: getrlimit fills the struct that setrlimit reads.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max.min(65_536);
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}
