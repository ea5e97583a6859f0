//! What this kernel and these rights allow: `profiler doctor`, and the words for a refused system call.

use std::{fmt, fs, path::Path};

use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported},
};

use crate::kernel::{btf, perf_event};

/// Bits of capability sets in /proc/self/status (include/uapi/linux/capability.h).
const CAPABILITIES: [(u32, &str, &str); 5] = [
    (39, "CAP_BPF", "load kernel programs"),
    (38, "CAP_PERFMON", "sample and read stacks"),
    (19, "CAP_SYS_PTRACE", "read other users' mappings"),
    (21, "CAP_SYS_ADMIN", "all that CAP_BPF, CAP_PERFMON and CAP_CHECKPOINT_RESTORE allow"),
    (24, "CAP_SYS_RESOURCE", "keep many files open at once"),
];

/// How much a check matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Works.
    Yes,
    /// Missing; the rest works.
    Degraded,
    /// Missing; profiling is impossible.
    No,
}

/// One line of `profiler doctor`.
#[derive(Clone, Debug)]
pub struct Check {
    /// What was checked.
    pub feature: String,
    /// How it turned out.
    pub verdict: Verdict,
    /// What was found, and what to do where it is missing.
    pub detail: String,
}

impl Check {
    /// A feature that is there, with what was `found`, or is not, with what is `missing` then.
    pub fn new(feature: &str, ok: bool, otherwise: Verdict, found: &str, missing: &str) -> Check {
        let (verdict, detail) = if ok { (Verdict::Yes, found) } else { (otherwise, missing) };
        Check { feature: feature.to_owned(), verdict, detail: detail.to_owned() }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.verdict {
            Verdict::Yes => "ok  ",
            Verdict::Degraded => "part",
            Verdict::No => "NO  ",
        };
        write!(f, "{mark}  {:<28} {}", self.feature, self.detail)
    }
}

/// Runs every check, in the order they matter.
pub fn checks() -> Vec<Check> {
    let effective = effective_capabilities();
    let has = |bit: u32| effective & (1 << bit) != 0;
    let mut checks = vec![kernel_version()];
    let mut check = |feature: &str, ok: bool, otherwise: Verdict, found: &str, missing: &str| {
        checks.push(Check::new(feature, ok, otherwise, found, missing));
    };

    for (bit, name, purpose) in CAPABILITIES {
        let implied = has(bit) || (matches!(name, "CAP_BPF" | "CAP_PERFMON") && has(21));
        let otherwise =
            if matches!(name, "CAP_BPF" | "CAP_PERFMON") { Verdict::No } else { Verdict::Degraded };
        check(name, implied, otherwise, purpose, &format!("missing, needed to {purpose}; run with sudo"));
    }
    check(
        "perf events",
        perf_event::allowed(),
        Verdict::No,
        "can be opened",
        "refused: this kernel wants CAP_SYS_ADMIN for them, or sysctl kernel.perf_event_paranoid=2",
    );
    check(
        "kernel types (BTF)",
        btf::is_available(),
        Verdict::Degraded,
        btf::VMLINUX,
        "no /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF): no waits, requests or system calls, no --follow, no --comm, no profiling inside containers",
    );
    check(
        "BPF just-in-time compiler",
        read_number("/proc/sys/net/core/bpf_jit_enable") != Some(0),
        Verdict::Degraded,
        "on",
        "off: probes cost several times more; sysctl net.core.bpf_jit_enable=1",
    );
    if may_load_programs() {
        for (name, kind) in [
            ("perf event programs", ProgramType::PerfEvent),
            ("raw tracepoint programs", ProgramType::RawTracePoint),
            ("user and kernel probes", ProgramType::KProbe),
        ] {
            let needed = matches!(kind, ProgramType::PerfEvent);
            let otherwise = if needed { Verdict::No } else { Verdict::Degraded };
            check(
                name,
                is_program_supported(kind).unwrap_or(false),
                otherwise,
                "supported",
                "not in this kernel",
            );
        }
        check(
            "BPF ring buffer",
            is_map_supported(aya::maps::MapType::RingBuf).unwrap_or(false),
            Verdict::No,
            "supported",
            "not in this kernel (5.8 and newer have it)",
        );
        check(
            "unwinding by .eh_frame",
            can_unwind(),
            Verdict::Degraded,
            "supported",
            "needs Linux 5.15: stacks of programs without frame pointers are cut off, and neither waits nor system calls nor \
             allocations can be watched",
        );
    }
    check(
        "kernel symbols",
        kallsyms_readable(),
        Verdict::Degraded,
        "/proc/kallsyms shows addresses",
        "hidden: kernel functions stay unnamed; run as root, or sysctl kernel.kptr_restrict=0",
    );
    check(
        "deleted and replaced files",
        fs::read_dir("/proc/self/map_files").is_ok_and(|mut dir| {
            dir.next().is_some_and(|entry| entry.is_ok_and(|entry| fs::File::open(entry.path()).is_ok()))
        }),
        Verdict::Degraded,
        "/proc/PID/map_files can be opened",
        "/proc/PID/map_files cannot be opened (CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE): no symbols for those",
    );
    checks
}

/// Whether this process holds the rights to load and attach programs.
pub fn may_load_programs() -> bool {
    let effective = effective_capabilities();
    let has = |bit: u32| effective & (1 << bit) != 0;
    has(21) || (has(39) && has(38))
}

/// Whether kernel programs can unwind user stacks by tables: they need the helper that finds a task's user registers
/// (Linux 5.15; all that the unwinder needs besides is older).
pub fn can_unwind() -> bool {
    is_helper_supported(ProgramType::PerfEvent, BpfHelper::BPF_FUNC_task_pt_regs).unwrap_or(false)
}

fn effective_capabilities() -> u64 {
    crate::text::read_to_parse("/proc/self/status".as_ref())
        .ok()
        .and_then(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
            u64::from_str_radix(line.trim(), 16).ok()
        })
        .unwrap_or(0)
}

fn kernel_version() -> Check {
    let release = release();
    let (verdict, detail) = match version(&release) {
        Some(version) if version >= (5, 15) => (Verdict::Yes, release),
        Some(version) if version >= (5, 8) => {
            (Verdict::Degraded, format!("{release}: older than 5.15, not everything works"))
        }
        _ => (Verdict::No, format!("{release}: 5.15 or newer is needed")),
    };
    Check { feature: "kernel version".into(), verdict, detail }
}

/// The running kernel's release, such as `6.12.9-amd64`.
pub fn release() -> String {
    crate::text::read_to_parse("/proc/sys/kernel/osrelease".as_ref()).unwrap_or_default().trim().to_owned()
}

pub(super) fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn read_number(path: impl AsRef<Path>) -> Option<i64> {
    crate::text::read_to_parse(path.as_ref()).ok()?.trim().parse().ok()
}

fn kallsyms_readable() -> bool {
    use std::io::{BufRead as _, BufReader};
    let Ok(file) = fs::File::open("/proc/kallsyms") else { return false };
    BufReader::new(file)
        .lines()
        .take(100)
        .map_while(Result::ok)
        .any(|line| !line.starts_with("0000000000000000"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_as_numbers() {
        assert_eq!(version("6.18.44-fc"), Some((6, 18)));
        assert_eq!(version("5.4"), Some((5, 4)));
        assert_eq!(version("nonsense"), None);
        assert!(version("5.10.0") < Some((5, 15)));
    }
}
