//! What the profiler itself uses, and what of the machine others do.

use std::path::Path;

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

impl Usage {
    /// Resident memory of this process now, bytes; 0 where that is not known.
    pub fn rss_bytes() -> u64 {
        let text = crate::text::read_to_parse("/proc/self/statm".as_ref()).unwrap_or_default();
        let pages: u64 = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
        // SAFETY: sysconf reads a number.
        pages * unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64
    }
}

/// CPU time of this machine that its hypervisor has given to others since the machine started, of all CPUs together, ns.
pub fn stolen_ns(proc_root: &Path) -> u64 {
    let text = crate::text::read_to_parse(&proc_root.join("stat")).unwrap_or_default();
    // "cpu", user, nice, system, idle, iowait, irq, softirq, steal: Documentation/filesystems/proc.rst.
    let line = text.lines().next().filter(|line| line.starts_with("cpu "));
    let steal: u64 = line
        .and_then(|line| line.split_whitespace().nth(8))
        .and_then(|steal| steal.parse().ok())
        .unwrap_or(0);
    // SAFETY: sysconf reads a number.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1) as u64;
    steal.saturating_mul(1_000_000_000 / per_second)
}

/// CPU time that all threads of a process have used, those that have ended too, ns; `None` if it is gone.
pub fn cpu_time_of(pid: u32) -> Option<u64> {
    let mut clock = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both calls fill what they are given.
    let known = unsafe {
        libc::clock_getcpuclockid(pid as libc::pid_t, &raw mut clock) == 0
            && libc::clock_gettime(clock, &raw mut time) == 0
    };
    known.then_some(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
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
