//! Kinds of profiles: what is counted, and what outputs call it. [`KINDS`] is the table; `-o`, every format, the help and the
//! README go by it.

/// What a profile counts. Outputs read this and never know a probe's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProfileKind {
    /// Name of the profile in machine-readable output, and before the colon of `-o KIND:FILE`.
    pub name: &'static str,
    /// What it is called in the title of a picture.
    pub title: &'static str,
    /// What it shows, in words, after "shows".
    pub shows: &'static str,
    /// What the sum of its weights is, in words, after a number and its unit.
    pub sum: &'static str,
    /// What is said where there is nothing.
    pub nothing: &'static str,
    /// Files whose names begin so are of this kind.
    pub file_prefixes: &'static [&'static str],
    /// The section of a run that it belongs to.
    pub section: Section,
    /// The option without which there is little of it or nothing.
    pub option: Option<&'static str>,
    /// What one unit of weight is.
    pub sample_type: &'static str,
    /// Unit of the weight.
    pub unit: Unit,
    /// What the period measures: weight times period is an estimate of this.
    pub period_type: &'static str,
    /// Unit of the period.
    pub period_unit: Unit,
}

/// What a run finds out, by subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// What runs on CPUs.
    Cpu,
    /// What threads wait for.
    Waits,
    /// System calls.
    Syscalls,
    /// Memory.
    Memory,
}

/// Units of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Things.
    Count,
    /// Time.
    Nanoseconds,
    /// Memory.
    Bytes,
}

impl Unit {
    /// Name in machine-readable output.
    pub fn id(self) -> &'static str {
        match self {
            Unit::Count => "count",
            Unit::Nanoseconds => "nanoseconds",
            Unit::Bytes => "bytes",
        }
    }

    /// Short name after a number, where the number needs one.
    pub fn symbol(self) -> Option<&'static str> {
        match self {
            Unit::Count => None,
            Unit::Nanoseconds => Some("ns"),
            Unit::Bytes => Some("bytes"),
        }
    }
}

/// On-CPU samples at a fixed period of CPU clock time.
pub const CPU: ProfileKind = ProfileKind {
    name: "cpu",
    title: "on-CPU",
    shows: "what runs on CPUs",
    sum: "samples",
    nothing: "No samples: the target used no CPU.",
    file_prefixes: &[],
    section: Section::Cpu,
    option: None,
    sample_type: "samples",
    unit: Unit::Count,
    period_type: "cpu",
    period_unit: Unit::Nanoseconds,
};

/// Time blocked, exact, by the stack that blocked.
pub const OFF_CPU: ProfileKind = ProfileKind {
    name: "offcpu",
    title: "off-CPU",
    shows: "time blocked, by where",
    sum: "blocked, of all threads",
    nothing: "No time: the target never blocked.",
    file_prefixes: &["offcpu", "off-cpu"],
    section: Section::Waits,
    option: None,
    sample_type: "offcpu",
    unit: Unit::Nanoseconds,
    period_type: "offcpu",
    period_unit: Unit::Nanoseconds,
};

/// Time in system calls, on CPUs and off them, by system call and the stack that made it.
pub const SYSCALLS: ProfileKind = ProfileKind {
    name: "syscalls",
    title: "system calls",
    shows: "time in system calls, by call and where",
    sum: "in system calls, of all threads",
    nothing: "No time: the target made no system calls.",
    file_prefixes: &["syscall", "sys-call"],
    section: Section::Syscalls,
    option: Some("--syscalls"),
    sample_type: "syscalls",
    unit: Unit::Nanoseconds,
    period_type: "syscalls",
    period_unit: Unit::Nanoseconds,
};

/// Memory allocated and not freed, by the stack that allocated it.
pub const ALLOC: ProfileKind = ProfileKind {
    name: "alloc",
    title: "live memory",
    shows: "memory allocated and not freed, by where",
    sum: "allocated and not freed",
    nothing: "No memory: nothing was seen to be allocated that was not freed.",
    file_prefixes: &["alloc"],
    section: Section::Memory,
    option: Some("--alloc full"),
    sample_type: "inuse_space",
    unit: Unit::Bytes,
    period_type: "space",
    period_unit: Unit::Bytes,
};

/// Page faults, sampled, by the stack that took them.
pub const FAULTS: ProfileKind = ProfileKind {
    name: "faults",
    title: "page faults",
    shows: "page faults, by where (an estimate from samples)",
    sum: "page faults, estimated from samples",
    nothing: "No samples: the target took few page faults or none.",
    file_prefixes: &["faults"],
    section: Section::Memory,
    option: None,
    sample_type: "page_faults",
    unit: Unit::Count,
    period_type: "page_faults",
    period_unit: Unit::Count,
};

/// Every kind of profile.
pub const KINDS: [ProfileKind; 5] = [CPU, OFF_CPU, SYSCALLS, ALLOC, FAULTS];

impl ProfileKind {
    /// The kind that a file's name, without folders, asks for.
    pub fn of_file(name: &str) -> ProfileKind {
        let asks = |kind: &ProfileKind| kind.file_prefixes.iter().any(|prefix| name.starts_with(prefix));
        KINDS.into_iter().find(asks).unwrap_or(CPU)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_kinds_share_a_name_or_a_prefix() {
        for (i, kind) in KINDS.iter().enumerate() {
            assert_eq!(KINDS.iter().position(|other| other.name == kind.name), Some(i));
            assert_eq!(KINDS.iter().position(|other| other.title == kind.title), Some(i));
            for prefix in kind.file_prefixes {
                assert_eq!(ProfileKind::of_file(&format!("{prefix}-1.svg")), *kind, "{prefix}");
            }
        }
        assert_eq!(ProfileKind::of_file("hot.svg"), CPU);
    }
}
