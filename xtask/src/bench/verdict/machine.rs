//! The state of the machine beside a figure.

use std::{fs, process::Command};

use crate::shell::output;

/// CPU time since boot, in clock ticks.
#[derive(Clone, Copy, Default)]
struct Ticks {
    all: f64,
    busy: f64,
    /// Of that, of the children that this process has waited for.
    ours: f64,
}

impl Ticks {
    fn now() -> Ticks {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let fields: Vec<f64> = stat
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(1)
            // What guests took is part of the first two.
            .take(8)
            .filter_map(|field| field.parse().ok())
            .collect();
        let all = fields.iter().sum();
        let idle: f64 = fields.iter().skip(3).take(2).sum();
        // SAFETY: fills a plain struct; the constant is the usual one.
        let (usage, per_second) = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
            (usage, libc::sysconf(libc::_SC_CLK_TCK) as f64)
        };
        let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
        let ours = (seconds(usage.ru_utime) + seconds(usage.ru_stime)) * per_second;
        Ticks { all, busy: all - idle, ours }
    }
}

/// How busy others keep the machine from now on.
pub struct Busy(Ticks);

impl Busy {
    pub fn start() -> Busy {
        Busy(Ticks::now())
    }

    /// CPU time of all CPUs that others took, and a host that gave none, percent. All children must have been waited
    /// for; of those that ended in the meantime but had begun before, too much is taken off.
    pub fn others_percent(&self) -> f64 {
        let (before, now) = (self.0, Ticks::now());
        let others = (now.busy - before.busy) - (now.ours - before.ours);
        (100.0 * others / (now.all - before.all).max(1.0)).clamp(0.0, 100.0)
    }
}

/// CPUs, kernel, load.
pub fn words() -> String {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = output(Command::new("uname").arg("-r")).unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').take(3).collect::<Vec<_>>().join(" ");
    format!("{cpus} CPUs, Linux {kernel}, load {load}")
}
