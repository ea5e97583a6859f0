//! What a run is to measure: plain values. The command line ends in [`crate::cli`], which makes them.

use std::path::PathBuf;

use crate::{
    model::threshold::Thresholds,
    process::{redact::Redact, target::Target},
};

/// What all probes together may cost a target, percent of its CPU time, where nothing else is asked for.
pub const MAX_OVERHEAD_PERCENT: f64 = 5.0;
/// Samples per second and CPU, where nothing else is asked for. A little faster than 100: what sleeps 10 ms and works a little takes
/// a little more than 10 ms each time, and at 99 Hz would be in step with the samples.
pub const DEFAULT_HZ: u32 = 101;
/// The part of that which requests may cost where they are not asked for.
const REQUESTS_PART: f64 = 0.2;
/// The part of that which system calls may cost where they are not asked for.
const CALLS_PART: f64 = 0.2;

/// What to measure, and of whom.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The processes.
    pub target: Target,
    /// Samples per second and CPU.
    pub frequency_hz: u32,
    /// Follow user stacks by tables made from `.eh_frame`, not by frame pointers only.
    pub unwind_by_tables: bool,
    /// Name functions of language runtimes.
    pub name_runtimes: bool,
    /// Servers that are asked for debug information when the run is over (debuginfod).
    pub debuginfod: Vec<String>,
    /// Whether what the last seconds were is shown while the run goes on.
    pub shows: bool,
    /// Whether to watch the scheduler.
    pub waits: Waits,
    /// Find out who ends each wait.
    pub wakers: bool,
    /// Whether to watch system calls.
    pub syscalls: Syscalls,
    /// Whether to watch requests.
    pub requests: Requests,
    /// Look into encrypted connections where requests are watched.
    pub tls: bool,
    /// How memory is watched.
    pub alloc: AllocSettings,
    /// Keep system calls and waits for a CPU apart by thread.
    pub by_thread: bool,
    /// Keep paths and addresses of peers out of everything: all probes tell them by the same numbers.
    pub redact: Redact,
    /// What is too long.
    pub thresholds: Thresholds,
    /// Share of calls, 0 to 1, whose failure makes an error storm.
    pub error_storm_share: f64,
    /// Errors that are no failures.
    pub expected_errors: Vec<u32>,
    /// Print what the kernel programs log.
    pub kernel_log: bool,
}

/// How memory is watched.
#[derive(Clone, Debug)]
pub struct AllocSettings {
    /// Whether and when allocations are.
    pub mode: Alloc,
    /// Files with allocators that are not found by themselves.
    pub libraries: Vec<PathBuf>,
    /// How much of the target's CPU time that may cost, percent.
    pub max_overhead_percent: Option<f64>,
}

/// Whether to watch the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Waits {
    /// On, unless the target is the whole machine.
    Auto,
    /// On.
    On,
    /// Off: only CPUs are sampled.
    Off,
}

/// Whether to watch requests and their answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Requests {
    /// As far as its cost is within a part of the budget, all the time or in windows; not of the whole machine.
    Auto,
    /// All the time.
    On,
    /// Not at all.
    Off,
}

impl Requests {
    /// Where nothing is said of them, on the command line and in the daemon's configuration.
    pub const DEFAULT: Requests = Requests::Auto;
}

/// Whether to watch system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Syscalls {
    /// As far as its cost is within a part of the budget, all the time or in windows; not of the whole machine.
    Auto,
    /// All the time, unless a budget is given.
    On,
    /// Not at all.
    Off,
}

/// Whether to watch allocations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Alloc {
    /// When a process is seen to grow.
    Auto,
    /// From the start.
    Full,
    /// Not at all.
    Off,
}

impl Settings {
    /// Whether the scheduler is watched: if asked for, or by itself unless the target is the whole machine, where that
    /// costs more than most would expect.
    pub fn watches_waits(&self) -> bool {
        match self.waits {
            Waits::Auto => self.wakers || self.target != Target::All,
            Waits::On => true,
            Waits::Off => false,
        }
    }

    /// Whether requests are watched, by the same rule.
    pub fn watches_requests(&self) -> bool {
        match self.requests {
            Requests::Auto => self.target != Target::All && self.watches_waits(),
            Requests::On => true,
            Requests::Off => false,
        }
    }

    /// How much of the target's CPU time watching requests may cost, from 0 to 1; `None` for no limit.
    pub fn requests_budget(&self) -> Option<f64> {
        let percent = self.alloc.max_overhead_percent.unwrap_or(MAX_OVERHEAD_PERCENT);
        (self.requests == Requests::Auto).then_some(percent / 100.0 * REQUESTS_PART)
    }

    /// Whether system calls are watched, by the same rule. Their waits are known from the scheduler.
    pub fn watches_calls(&self) -> bool {
        match self.syscalls {
            Syscalls::Auto => self.target != Target::All && self.watches_waits(),
            Syscalls::On => true,
            Syscalls::Off => false,
        }
    }

    /// How much of the target's CPU time watching system calls may cost, from 0 to 1; `None` for no limit, where they are asked for
    /// and none is given.
    pub fn calls_budget(&self) -> Option<f64> {
        let unasked = (self.syscalls == Syscalls::Auto).then_some(MAX_OVERHEAD_PERCENT);
        Some(self.alloc.max_overhead_percent.or(unasked)? / 100.0 * CALLS_PART)
    }

    /// How allocations are watched: where a budget covers system calls too, half of it is theirs. By itself not on the whole
    /// machine, of which only growth is looked at.
    pub fn allocations(&self) -> AllocSettings {
        let percent = self.alloc.max_overhead_percent.unwrap_or(MAX_OVERHEAD_PERCENT);
        let shared = self.alloc.mode == Alloc::Auto && self.watches_calls() && self.calls_budget().is_some();
        let max_overhead_percent = if shared { Some(percent / 2.0) } else { self.alloc.max_overhead_percent };
        let mode = match self.alloc.mode {
            Alloc::Auto if self.target == Target::All => Alloc::Off,
            mode => mode,
        };
        AllocSettings { mode, max_overhead_percent, ..self.alloc.clone() }
    }

    /// Whether growth is looked at.
    pub fn watches_memory(&self) -> bool {
        self.alloc.mode != Alloc::Off
    }

    /// Leaves out what a kernel older than 5.15, or without BTF, cannot do; says so in words.
    pub fn fit(&mut self, can_unwind: bool, has_types: bool) -> Vec<String> {
        let mut left_out = Vec::new();
        if self.unwind_by_tables && !can_unwind {
            self.unwind_by_tables = false;
            left_out.push(
                "this kernel cannot unwind by .eh_frame (5.15 and newer can); stacks of programs without frame pointers \
                 are cut off"
                    .to_owned(),
            );
        }
        let able = can_unwind && has_types;
        let mut too_old =
            |what| left_out.push(format!("this kernel is too old (5.15 is needed, with BTF) {what}"));
        if self.watches_waits() && !able {
            self.waits = Waits::Off;
            self.wakers = false;
            too_old("to tell what threads wait for");
        }
        if self.watches_requests() && !able {
            self.requests = Requests::Off;
            too_old("to tell requests");
        }
        if self.watches_calls() && !able {
            self.syscalls = Syscalls::Off;
            too_old("to watch system calls");
        }
        left_out
    }
}

#[cfg(test)]
pub(crate) mod fixtures {
    //! Settings for tests.

    use super::*;

    /// What a command line without options asks for.
    pub fn settings(target: Target) -> Settings {
        Settings {
            target,
            frequency_hz: 100,
            shows: true,
            unwind_by_tables: false,
            name_runtimes: true,
            debuginfod: Vec::new(),
            waits: Waits::Auto,
            wakers: false,
            syscalls: Syscalls::Off,
            requests: Requests::DEFAULT,
            tls: false,
            alloc: AllocSettings { mode: Alloc::Auto, libraries: Vec::new(), max_overhead_percent: None },
            by_thread: false,
            redact: Redact::No,
            thresholds: Thresholds::default(),
            error_storm_share: 0.05,
            expected_errors: Vec::new(),
            kernel_log: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{fixtures::settings, *};

    #[test]
    fn the_whole_machine_is_watched_only_on_its_cpus_unless_asked_for() {
        let one = settings(Target::Comm("x".into()));
        assert!(one.watches_waits() && one.watches_memory());
        let all = settings(Target::All);
        assert!(!all.watches_waits() && all.watches_memory() && all.allocations().mode == Alloc::Off);
        let asked = Settings { waits: Waits::On, ..all.clone() };
        assert!(asked.watches_waits());
        assert!(Settings { wakers: true, ..all.clone() }.watches_waits());
        let calls = |target: &Settings, syscalls| Settings { syscalls, ..target.clone() };
        assert!(calls(&one, Syscalls::Auto).watches_calls() && !calls(&all, Syscalls::Auto).watches_calls());
        let share = calls(&one, Syscalls::Auto).calls_budget().unwrap();
        assert!((share - 0.01).abs() < 1e-9, "{share}");
        assert!(
            calls(&all, Syscalls::On).watches_calls() && calls(&all, Syscalls::On).calls_budget().is_none()
        );
        let mut given = calls(&one, Syscalls::On);
        given.alloc.max_overhead_percent = Some(2.0);
        let share = given.calls_budget().unwrap();
        assert!((share - 0.004).abs() < 1e-9, "a limit that is given counts: {share}");
        assert_eq!(given.allocations().max_overhead_percent, Some(1.0), "they share it");
    }

    #[test]
    fn an_old_kernel_measures_less_and_says_so() {
        let mut old = settings(Target::Comm("x".into()));
        (old.unwind_by_tables, old.syscalls, old.requests) = (true, Syscalls::On, Requests::On);
        assert_eq!(old.clone().fit(true, true), Vec::<String>::new());
        assert_eq!(old.fit(false, true).len(), 4);
        assert!(
            !old.unwind_by_tables && !old.watches_calls() && !old.watches_waits() && !old.watches_requests()
        );
        assert!(old.watches_memory());
    }
}
