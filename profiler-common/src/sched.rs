//! Where a thread's time goes when it is not on a CPU: states, causes, and the records of the scheduler probe.

use crate::{COMM_LEN, runtime::Fingerprint, table::table};

table! {
    /// What a blocked thread waits for: from its state, the system call in progress, and the kind of the descriptor.
    pub enum WaitCause(is_idle: bool) {
        /// Not known: blocked since before the probe saw it.
        Unknown = 0, "unknown", "unknown", true;
        /// Files and block devices.
        Disk = 1, "disk", "disk I/O", false;
        /// Internet sockets.
        Network = 2, "network", "network", false;
        /// A contended lock: a futex whose expected value says that somebody holds it, or a priority-inheriting one.
        Lock = 3, "lock", "lock", false;
        /// Any other futex: a condition variable, a parked or idle thread.
        Park = 4, "park", "parked (futex)", true;
        /// Sleep and timers.
        Sleep = 5, "sleep", "sleep/timer", true;
        /// Waiting for any of many descriptors, or for a connection to accept: idle.
        Poll = 6, "poll", "poll/epoll idle", true;
        /// Pipes, Unix sockets, terminals, message queues, event descriptors.
        Pipe = 7, "pipe", "pipe/IPC", false;
        /// A page that had to be fetched.
        PageFault = 8, "page_fault", "page fault", false;
        /// The end of a child, or vfork.
        Child = 9, "child", "child", true;
        /// Anything else.
        Other = 10, "other", "other", false;
    }
}

/// What a system call waits for: value of the kernel's array `SYSCALLS`, by number.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyscallClass {
    /// Nothing that has a name here.
    Other = 0,
    /// What its first argument, a descriptor, is.
    Descriptor = 1,
    /// Files and devices, whatever the arguments.
    Disk = 2,
    /// A futex: first argument the address, second the operation, third the expected value.
    Futex = 3,
    /// Sleep and timers.
    Sleep = 4,
    /// Any of many descriptors, epoll's way: first argument an epoll descriptor.
    Epoll = 5,
    /// Any of many descriptors, otherwise.
    Poll = 6,
    /// A connection to accept: idle, but no event loop.
    Accept = 7,
    /// Messages and semaphores.
    Ipc = 8,
    /// The end of a child.
    Child = 9,
    /// A lock of a file.
    Lock = 10,
    /// A signal; or what is left of a wait with a time limit that a signal or a debugger has interrupted: idle, whatever it was.
    Signal = 11,
}

impl WaitCause {
    /// What a call of `class`, a [`SyscallClass`], waits for, unless its arguments decide.
    #[inline(always)]
    pub fn of_class(class: u8) -> WaitCause {
        if class == SyscallClass::Disk as u8 {
            WaitCause::Disk
        } else if class == SyscallClass::Sleep as u8 {
            WaitCause::Sleep
        } else if class == SyscallClass::Epoll as u8
            || class == SyscallClass::Poll as u8
            || class == SyscallClass::Accept as u8
            || class == SyscallClass::Signal as u8
        {
            WaitCause::Poll
        } else if class == SyscallClass::Ipc as u8 {
            WaitCause::Pipe
        } else if class == SyscallClass::Child as u8 {
            WaitCause::Child
        } else if class == SyscallClass::Lock as u8 {
            WaitCause::Lock
        } else {
            WaitCause::Other
        }
    }

    /// What a futex call waits for. A futex is a lock if it says so: operation FUTEX_LOCK_PI, or the expected value 2, which
    /// the mutexes of glibc, musl, Rust and Go mean by "locked, with waiters" (Drepper, Futexes Are Tricky, 2011).
    #[inline(always)]
    pub fn of_futex(operation: u64, expected: u64) -> WaitCause {
        const COMMAND: u64 = 0x7f;
        let command = operation & COMMAND;
        let wait = command == 0 || command == 9; // FUTEX_WAIT, FUTEX_WAIT_BITSET
        let lock_pi = command == 6 || command == 13; // FUTEX_LOCK_PI, FUTEX_LOCK_PI2
        if lock_pi || (wait && expected as u32 == 2) { WaitCause::Lock } else { WaitCause::Park }
    }
}

/// Highest system call number known by class, plus one. 32-bit calls have no class.
pub const MAX_SYSCALLS: usize = 512;

/// Most threads of targets at once.
pub const MAX_THREADS: usize = 16_384;

/// What a thread does.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// On a CPU.
    Running = 0,
    /// Waits for a CPU.
    Runnable = 1,
    /// Waits for something else.
    Blocked = 2,
}

/// Time by what a thread did with it, ns.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// On a CPU.
    pub on_cpu_ns: u64,
    /// Waiting for one.
    pub run_queue_ns: u64,
    /// Blocked, by [`WaitCause`].
    pub blocked_ns: [u64; WaitCause::COUNT],
}

/// Most threads whose waits for a CPU are counted by thread: 10 MB.
pub const MAX_THREAD_HISTOGRAMS: usize = 4096;

/// Stacks remembered of each thread.
pub const KNOWN_STACKS: usize = 4;

/// A stack that need not be taken again while the thread blocks with the same registers as it did then; and its time
/// blocked there, until it is added to `OFF_CPU`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KnownStack {
    /// User instruction, stack and frame pointer and the system call's first argument mixed; zero for none.
    pub key: u64,
    /// Its id, zero if none could be taken.
    pub stack: u64,
    /// Blocks since that were assumed to have it.
    pub reused: u32,
    /// [`WaitCause`] of the last block.
    pub cause: u32,
    /// System call, -1 for none.
    pub syscall: i32,
    /// Not used.
    pub _reserved: u32,
    /// Tells it from stacks with the same addresses.
    pub fingerprint: Fingerprint,
    /// What ended those blocks: see [`ThreadState::waker`].
    pub waker: u64,
    /// Time blocked since.
    pub time: OffCpuTime,
}

/// A thread of a target: value of the map `THREADS`, whose key is the thread's id in the initial PID namespace.
///
/// The probe sees a thread when it leaves a CPU, and event loops when they wait; what happened in between is worked out
/// then, from what the scheduler keeps in `task_struct.sched_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadState {
    /// Phases that have ended.
    pub times: Times,
    /// Since when it is known, the start of the run or its own: CLOCK_MONOTONIC, ns.
    pub first_ns: u64,
    /// When it left the CPU, or if [`Phase::Running`] when it got one: CLOCK_MONOTONIC, ns.
    pub since_ns: u64,
    /// When it left the CPU, by the scheduler's clock, ns; zero if that was not seen.
    pub left_clock_ns: u64,
    /// `sched_info.run_delay` then: all its waits for a CPU so far, ns. [`u64::MAX`] if what the kernel will add to it cannot be
    /// told from sleep, so that nothing of it counts as a wait.
    pub run_delay_ns: u64,
    /// `se.sum_exec_runtime` then: all its time on CPUs so far, ns.
    pub exec_ns: u64,
    /// `sched_info.pcount` then: how often it has got a CPU so far.
    pub arrivals: u64,
    /// Start of the loop's iteration in progress: when the call it waits in returned, or zero outside of iterations.
    pub iteration_start_ns: u64,
    /// `times.on_cpu_ns` at the start of the iteration.
    pub iteration_on_cpu_ns: u64,
    /// `times.run_queue_ns` at the start of the iteration.
    pub iteration_run_queue_ns: u64,
    /// When it last came back from its own wait or from being parked, within the iteration: a worker's iteration lasts from one
    /// such moment to the next. Zero outside of iterations.
    pub work_start_ns: u64,
    /// `times.on_cpu_ns` then.
    pub work_on_cpu_ns: u64,
    /// `times.run_queue_ns` then.
    pub work_run_queue_ns: u64,
    /// User stack pointer in the loop's own wait: a wait deeper in the stack is made by an iteration.
    pub loop_sp: u64,
    /// Stack it blocked with, an id; zero for none.
    pub stack: u64,
    /// Stack of what woke it from the block in progress, an id; zero if that has not happened, or is not watched.
    pub waker: u64,
    /// The last waker that did so out of a call.
    pub last_waker: u64,
    /// Its registers mixed; zero for none.
    pub waker_key: u64,
    /// The last stacks, an entry by key modulo their number.
    pub known: [KnownStack; KNOWN_STACKS],
    /// What it waits for: the system call's first argument.
    pub object: u64,
    /// Its [`Phase`] when it was last seen.
    pub phase: u32,
    /// Its [`WaitCause`] if blocked.
    pub cause: u32,
    /// System call it blocked in, -1 for none.
    pub syscall: i32,
    /// Process id, in the profiler's PID namespace.
    pub pid: u32,
    /// Thread id, in the profiler's PID namespace.
    pub tid: u32,
    /// Class of the calls it waits in as an event loop (a [`SyscallClass`]), zero if it is none.
    pub loop_class: u32,
    /// The epoll descriptor that the loop waits in, or the only one that it polls; [`MANY`] if it waits for several otherwise.
    pub loop_descriptor: u32,
    /// Waits elsewhere since the last one there.
    pub elsewhere: u32,
    /// Blocked uninterruptibly.
    pub uninterruptible: u32,
    /// Slice of time in which `stacks_taken` were taken.
    pub slice: u32,
    /// Stacks taken in that slice.
    pub stacks_taken: u32,
    /// Thread that got its CPU when it was preempted (initial PID namespace).
    pub instead_tid: u32,
    /// Name of that thread.
    pub instead_comm: [u8; COMM_LEN],
    /// Entry of `known` for the block in progress.
    pub at: u32,
    /// Wake-ups since that were assumed to have the last waker's stack.
    pub waker_reused: u32,
}

/// Key of the map `OFF_CPU`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OffCpuKey {
    /// Stack id, zero where none was taken.
    pub stack: u64,
    /// Stack id of what ended the blocks, zero where that is not known.
    pub waker: u64,
    /// Process id, in the profiler's PID namespace.
    pub pid: u32,
    /// Thread id, in the profiler's PID namespace.
    pub tid: u32,
    /// [`WaitCause`].
    pub cause: u32,
    /// System call, -1 for none.
    pub syscall: i32,
}

/// Value of the map `OFF_CPU`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OffCpuTime {
    /// Time blocked, ns.
    pub ns: u64,
    /// Times blocked.
    pub count: u64,
    /// Longest, ns.
    pub max_ns: u64,
}

/// A stack, sent when it is first seen; its addresses follow as in a CPU sample.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StackHeader {
    /// [`RecordKind::Stack`](crate::record::RecordKind::Stack).
    pub kind: u32,
    /// As in a CPU sample.
    pub flags: u32,
    /// When it was taken: CLOCK_MONOTONIC, ns.
    pub time_ns: u64,
    /// Process id, in the profiler's PID namespace.
    pub pid: u32,
    /// Thread it was first seen in.
    pub tid: u32,
    /// Not used.
    pub _reserved: u16,
    /// As in a CPU sample.
    pub runtime_words: u16,
    /// Number of kernel addresses that follow.
    pub kernel_frames: u16,
    /// Number of user addresses that follow the kernel's.
    pub user_frames: u16,
    /// Its id: a hash of the process and the addresses.
    pub id: u64,
    /// Not used.
    pub _padding: u64,
}

/// Something that kept a thread from running for long.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interval {
    /// [`RecordKind::Interval`](crate::record::RecordKind::Interval).
    pub kind: u32,
    /// [`WaitCause`] of the block.
    pub cause: u32,
    /// Process id, in the profiler's PID namespace.
    pub pid: u32,
    /// Thread id, in the profiler's PID namespace.
    pub tid: u32,
    /// When it blocked, or when it was preempted: CLOCK_MONOTONIC, ns.
    pub start_ns: u64,
    /// When it could run again; the same as `start_ns` for a preempted thread.
    pub woken_ns: u64,
    /// When it ran again.
    pub end_ns: u64,
    /// Stack it blocked with, an id; zero for none.
    pub stack: u64,
    /// The system call's first argument.
    pub object: u64,
    /// System call, -1 for none.
    pub syscall: i32,
    /// Not even a signal could have ended the block.
    pub uninterruptible: u32,
    /// Thread that got its CPU when it was preempted (initial PID namespace); zero if it was not.
    pub instead_tid: u32,
    /// CPU it ran on again.
    pub cpu: u32,
    /// Name of that thread.
    pub instead_comm: [u8; COMM_LEN],
}

/// An iteration of an event loop that took longer than the threshold.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Iteration {
    /// [`RecordKind::Iteration`](crate::record::RecordKind::Iteration).
    pub kind: u32,
    /// System call the loop waits in.
    pub syscall: i32,
    /// Process id, in the profiler's PID namespace.
    pub pid: u32,
    /// Thread id, in the profiler's PID namespace.
    pub tid: u32,
    /// When the wait before it ended: CLOCK_MONOTONIC, ns.
    pub start_ns: u64,
    /// When the next wait began.
    pub end_ns: u64,
    /// Time on a CPU, ns.
    pub on_cpu_ns: u64,
    /// Time waiting for one, ns.
    pub run_queue_ns: u64,
    /// A [`Span`].
    pub span: u32,
    /// Not used.
    pub _reserved: u32,
}

/// Whose turn it is. A loop of its own is away from its work while its thread is parked in the middle of a turn; a worker
/// that shares its loop with others has nothing to do then.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// An iteration without being parked: the same for both.
    Whole = 0,
    /// From one wait of the loop to the next, parked in between: an iteration of a loop of its own only.
    Loop = 1,
    /// From or to the moment of being parked: an iteration of a worker only.
    Worker = 2,
}

/// A thread has ended: what it did in all.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// [`RecordKind::Exit`](crate::record::RecordKind::Exit).
    pub kind: u32,
    /// Process id, in the profiler's PID namespace.
    pub pid: u32,
    /// Thread id, in the profiler's PID namespace.
    pub tid: u32,
    /// Not used.
    pub _reserved: u32,
    /// Since when it was known, the start of the run or its own: CLOCK_MONOTONIC, ns.
    pub first_ns: u64,
    /// When: CLOCK_MONOTONIC, ns.
    pub time_ns: u64,
    /// All its time since the run, or the thread, began.
    pub times: Times,
    /// Its name.
    pub comm: [u8; COMM_LEN],
}

/// A thread waits as event loops do, for the first time.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoopSeen {
    /// [`RecordKind::Loop`](crate::record::RecordKind::Loop).
    pub kind: u32,
    /// System call.
    pub syscall: i32,
    /// Process id, in the profiler's PID namespace.
    pub pid: u32,
    /// Thread id, in the profiler's PID namespace.
    pub tid: u32,
    /// As [`ThreadState::loop_descriptor`].
    pub descriptor: u64,
}

/// In place of the descriptor that a thread waits for: it is not just one.
pub const MANY: u32 = u32::MAX;

/// What a histogram counts.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HistogramKind {
    /// Waits for a CPU, by process.
    RunQueue = 0,
    /// Iterations of an event loop, by thread.
    Iterations = 1,
}

/// Key of the map `HISTOGRAMS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HistogramKey {
    /// [`HistogramKind`].
    pub kind: u32,
    /// Process or thread id in the profiler's PID namespace; zero for all that have none of their own.
    pub id: u32,
}

const _: () = {
    assert!(size_of::<StackHeader>() == crate::cpu::SAMPLE_HEADER_LEN);
    assert!(core::mem::offset_of!(StackHeader, kernel_frames) == 28);
    assert!(size_of::<Interval>() == 88);
    assert!(size_of::<Iteration>() == 56);
    assert!(size_of::<Exit>() == 32 + size_of::<Times>() + COMM_LEN);
};

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C) integers without padding, every bit pattern is valid.
    unsafe impl aya::Pod for super::ThreadState {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::OffCpuKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::OffCpuTime {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::HistogramKey {}
}
