//! Kinds of profiles.

/// What a profile counts. Outputs read this and never know a probe's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProfileKind {
    /// Name of the profile in machine-readable output.
    pub name: &'static str,
    /// What one unit of weight is.
    pub sample_type: &'static str,
    /// Unit of the weight.
    pub unit: &'static str,
    /// What the period measures: weight times period is an estimate of this.
    pub period_type: &'static str,
    /// Unit of the period.
    pub period_unit: &'static str,
}

/// On-CPU samples at a fixed period of CPU clock time.
pub const CPU: ProfileKind = ProfileKind {
    name: "cpu",
    sample_type: "samples",
    unit: "count",
    period_type: "cpu",
    period_unit: "nanoseconds",
};

/// Time blocked, exact, by the stack that blocked.
pub const OFF_CPU: ProfileKind = ProfileKind {
    name: "offcpu",
    sample_type: "offcpu",
    unit: "nanoseconds",
    period_type: "offcpu",
    period_unit: "nanoseconds",
};

/// Time in system calls, on CPUs and off them, by system call and the stack that made it.
pub const SYSCALLS: ProfileKind = ProfileKind {
    name: "syscalls",
    sample_type: "syscalls",
    unit: "nanoseconds",
    period_type: "syscalls",
    period_unit: "nanoseconds",
};

/// Memory allocated and not freed, by the stack that allocated it.
pub const ALLOC: ProfileKind = ProfileKind {
    name: "alloc",
    sample_type: "inuse_space",
    unit: "bytes",
    period_type: "space",
    period_unit: "bytes",
};

/// Page faults, sampled, by the stack that took them.
pub const FAULTS: ProfileKind = ProfileKind {
    name: "faults",
    sample_type: "page_faults",
    unit: "count",
    period_type: "page_faults",
    period_unit: "count",
};

/// Every kind of profile.
pub const KINDS: [ProfileKind; 5] = [CPU, OFF_CPU, SYSCALLS, ALLOC, FAULTS];
