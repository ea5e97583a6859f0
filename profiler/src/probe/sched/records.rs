//! The scheduler probe: decodes its records, and knows what threads did before it was attached.

use std::{fs, path::Path};

use profiler_common::{
    cpu::SAMPLE_HEADER_LEN,
    record::RecordKind,
    sched::{Iteration, MANY, Phase, SyscallClass, ThreadState, Times},
};

use crate::{
    model::{
        abi,
        cause::WaitCause,
        stack::{Tables, ThreadKey, comm},
        wait::ThreadTime,
    },
    probe::cpu::records::{self as cpu, RawSample},
    process::{memory::ProcessMemory, network::Networks, objects, shown::shown},
    text,
};

/// Decodes a stack and its id, which lies where a CPU sample has the thread's name.
pub fn decode_stack(bytes: &[u8], kind: RecordKind) -> Option<(u64, RawSample)> {
    let stack = cpu::decode_stack(bytes, kind)?;
    Some((u64::from_ne_bytes(*stack.header.comm.first_chunk()?), stack))
}

/// Decodes the stack of a thread that wakes another, its id, and the thread's name.
pub fn decode_waker(bytes: &[u8]) -> Option<(u64, String, RawSample)> {
    let stack = cpu::decode_stack(bytes, RecordKind::Waker)?;
    let end = SAMPLE_HEADER_LEN + 8 * (stack.kernel.len() + stack.user.len() + 2 * stack.entries.len());
    let name = comm(bytes.get(end..)?.first_chunk()?);
    Some((u64::from_ne_bytes(*stack.header.comm.first_chunk()?), name, stack))
}

/// A thread before the probe has seen it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed {
    /// What it is doing.
    pub state: ThreadState,
    /// Its instruction and stack pointer, if it is blocked.
    pub at: Option<(u64, u64)>,
}

/// What a thread that has done nothing since `began_ns` is doing, as /proc tells it; `None` if it is gone.
pub fn seed(networks: &Networks, pid: u32, tid: u32, began_ns: u64) -> Option<Seed> {
    let proc_root = networks.proc_root();
    let task = proc_root.join(format!("{pid}/task/{tid}"));
    let stat = fs::read(task.join("stat")).ok()?;
    let stat = text::to_parse(&stat);
    // The name, in parentheses, may itself hold spaces and parentheses.
    let state = stat.get(stat.rfind(')')? + 1..)?.trim_start().chars().next()?;
    if matches!(state, 'Z' | 'X') {
        return None;
    }
    let stat = SchedStat::read(proc_root, pid, tid).unwrap_or_default();
    let mut thread = ThreadState {
        first_ns: began_ns,
        since_ns: began_ns,
        pid,
        tid,
        syscall: -1,
        phase: Phase::Runnable as u32,
        exec_ns: stat.exec_ns,
        run_delay_ns: stat.run_delay_ns,
        arrivals: stat.arrivals,
        ..ThreadState::default()
    };
    if state == 'R' {
        return Some(Seed { state: thread, at: None });
    }
    thread.phase = Phase::Blocked as u32;
    thread.uninterruptible = u32::from(state == 'D');
    // "running", "-1 sp pc", or the number and six arguments: Documentation/filesystems/proc.rst.
    let text = text::read_to_parse(&task.join("syscall")).unwrap_or_default();
    let mut words = text.split_whitespace();
    let number: i32 = words.next().and_then(|word| word.parse().ok()).unwrap_or(-1);
    let args: Vec<u64> =
        words.map_while(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok()).collect();
    if number >= 0 {
        let arg = |i: usize| args.get(i).copied().unwrap_or(0);
        thread.syscall = number;
        thread.object = arg(0);
        let class = abi::class(number);
        thread.cause = cause(networks, pid, state == 'D', class, [arg(0), arg(1), arg(2)]) as u32;
        let sleeps = abi::is_poll(number) && arg(1) == 0 || abi::is_select(number) && arg(0) == 0;
        if class == SyscallClass::Epoll as u8 || class == SyscallClass::Poll as u8 && !sleeps {
            thread.loop_class = class.into();
            thread.loop_descriptor = if class == SyscallClass::Epoll as u8 {
                arg(0) as u32
            } else if abi::is_poll(number) && arg(1) == 1 {
                // struct pollfd begins with it.
                ProcessMemory::open(proc_root, pid).and_then(|of| of.read_u32(arg(0))).unwrap_or(MANY)
            } else {
                MANY
            };
            // The last two words are the stack and the instruction pointer.
            thread.loop_sp = args.iter().nth_back(1).copied().unwrap_or(0);
        }
    } else {
        thread.cause = if state == 'D' { WaitCause::PageFault } else { WaitCause::Other } as u32;
    }
    let at = match &args[..] {
        [.., sp, ip] if *sp != 0 => Some((*ip, *sp)),
        _ => None,
    };
    Some(Seed { state: thread, at })
}

/// As the kernel program's `waits_for`. Who can be interrupted does not wait for a disk, but, say, for the other end of a FIFO.
fn cause(networks: &Networks, pid: u32, uninterruptible: bool, class: u8, args: [u64; 3]) -> WaitCause {
    match class {
        c if c == SyscallClass::Disk as u8 && !uninterruptible => WaitCause::Other,
        c if c == SyscallClass::Descriptor as u8 => {
            let link = fs::read_link(shown(networks.proc_root(), pid).join(format!("fd/{}", args[0])))
                .unwrap_or_default();
            match text::path(&link).split(':').next().unwrap_or_default() {
                "socket" if is_internet_socket(networks, pid, &link) => WaitCause::Network,
                "socket" | "pipe" | "anon_inode" => WaitCause::Pipe,
                path if path.starts_with("/dev/") => WaitCause::Pipe,
                path if path.starts_with('/') && uninterruptible => WaitCause::Disk,
                path if path.starts_with('/') => WaitCause::Pipe, // a FIFO that has a name
                _ => WaitCause::Other,
            }
        }
        c if c == SyscallClass::Futex as u8 => WaitCause::of_futex(args[1], args[2]),
        class => WaitCause::of_class(class),
    }
}

/// Whether a descriptor's link, `socket:[inode]`, is in one of the process's tables of internet sockets.
fn is_internet_socket(networks: &Networks, pid: u32, link: &Path) -> bool {
    objects::socket(networks, pid, &text::path(link)).is_some_and(|socket| !socket.starts_with("unix"))
}

/// What the scheduler says of a thread now: `/proc/PID/task/TID/schedstat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedStat {
    /// Time on CPUs in all, ns; up to a tick (4 ms) behind.
    pub exec_ns: u64,
    /// Time it has waited for them in all, ns.
    pub run_delay_ns: u64,
    /// How often it has got one.
    pub arrivals: u64,
}

impl SchedStat {
    /// Reads it; `None` if the thread is gone.
    pub fn read(proc_root: &Path, pid: u32, tid: u32) -> Option<SchedStat> {
        let text = text::read_to_parse(&proc_root.join(format!("{pid}/task/{tid}/schedstat"))).ok()?;
        let mut fields = text.split_whitespace().map(|field| field.parse().ok());
        let mut next = || fields.next().flatten();
        Some(SchedStat { exec_ns: next()?, run_delay_ns: next()?, arrivals: next()? })
    }
}

/// Whether a thread that the probe saw block has not got a CPU since.
pub fn is_blocked(state: &ThreadState, now: &SchedStat) -> bool {
    state.phase == Phase::Blocked as u32 && now.arrivals == state.arrivals
}

/// Until when a thread's times are known, CLOCK_MONOTONIC, ns: they leave no gap. Its `since_ns` is the same, unless the kernel was
/// about to change both when they were read: then the phase that has just been added would count again.
pub fn known_until(state: &ThreadState) -> u64 {
    let Times { on_cpu_ns, run_queue_ns, blocked_ns } = state.times;
    state.first_ns + on_cpu_ns + run_queue_ns + blocked_ns.iter().sum::<u64>()
}

/// A thread's time up to `now_ns`, which may be a little before the probe last saw it, when the scheduler said `now`.
pub fn times_until(state: &ThreadState, now: &SchedStat, now_ns: u64) -> Times {
    let mut times = state.times;
    let passed = now_ns.saturating_sub(known_until(state));
    let phase = state.phase;
    if phase == Phase::Running as u32 {
        times.on_cpu_ns += passed;
        return times;
    }
    let queued = now.run_delay_ns.saturating_sub(state.run_delay_ns).min(passed);
    let ran = now.exec_ns.saturating_sub(state.exec_ns).min(passed - queued);
    let rest = passed - queued - ran;
    times.on_cpu_ns += ran;
    times.run_queue_ns += queued;
    match times.blocked_ns.get_mut(state.cause as usize) {
        Some(blocked) if phase == Phase::Blocked as u32 => *blocked += rest,
        _ => times.run_queue_ns += rest,
    }
    times
}

/// What the scheduler says of a thread now; nothing new of one that is gone.
pub fn schedstat(proc_root: &Path, state: &ThreadState) -> SchedStat {
    SchedStat::read(proc_root, state.pid, state.tid).unwrap_or(SchedStat {
        exec_ns: state.exec_ns,
        run_delay_ns: state.run_delay_ns,
        arrivals: state.arrivals,
    })
}

/// A thread's times as outputs have them.
pub fn thread_time(thread: ThreadKey, times: &Times, wall_ns: u64, tables: &Tables) -> ThreadTime {
    let blocked = WaitCause::ALL.into_iter().zip(times.blocked_ns).filter(|(_, ns)| *ns > 0);
    ThreadTime {
        thread,
        process: tables.process_name(thread).to_owned(),
        name: tables.thread_name(thread).to_owned(),
        wall_ns,
        on_cpu_ns: times.on_cpu_ns,
        run_queue_ns: times.run_queue_ns,
        blocked: blocked.collect(),
        ..ThreadTime::default()
    }
}

/// An iteration that goes on.
pub fn iteration_so_far(state: &ThreadState, stat: &SchedStat, now_ns: u64) -> Iteration {
    let times = times_until(state, stat, now_ns);
    Iteration {
        syscall: state.syscall,
        pid: state.pid,
        tid: state.tid,
        start_ns: state.iteration_start_ns,
        end_ns: now_ns,
        on_cpu_ns: times.on_cpu_ns.saturating_sub(state.iteration_on_cpu_ns),
        run_queue_ns: times.run_queue_ns.saturating_sub(state.iteration_run_queue_ns),
        ..Iteration::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_in_progress_counts_up_to_now() {
        let mut state = ThreadState {
            first_ns: 95,
            since_ns: 100,
            cause: WaitCause::Disk as u32,
            arrivals: 7,
            ..ThreadState::default()
        };
        state.times.on_cpu_ns = 5;
        let away = SchedStat { arrivals: 7, ..SchedStat::default() };
        let back = SchedStat { exec_ns: 10, run_delay_ns: 8, arrivals: 8 };
        for (phase, now, on_cpu, run_queue, disk) in [
            (Phase::Running, away, 45, 0, 0),
            (Phase::Runnable, away, 5, 40, 0),
            (Phase::Runnable, back, 15, 30, 0),
            (Phase::Blocked, away, 5, 0, 40),
            (Phase::Blocked, back, 15, 8, 22),
        ] {
            state.phase = phase as u32;
            let times = times_until(&state, &now, 140);
            assert_eq!((times.on_cpu_ns, times.run_queue_ns), (on_cpu, run_queue));
            assert_eq!(times.blocked_ns[WaitCause::Disk as usize], disk);
        }
        assert_eq!(times_until(&state, &back, 90).on_cpu_ns, 5, "seen after the end");
        // Read while the kernel adds up a block of 30 ns: it has not said yet since when the next phase is.
        state.times.blocked_ns[WaitCause::Disk as usize] = 30;
        let times = times_until(&state, &away, 140);
        assert_eq!((known_until(&state), times.blocked_ns[WaitCause::Disk as usize]), (130, 40));
    }

    #[test]
    fn what_threads_are_doing_is_read_from_proc() {
        let root = tempfile::tempdir().unwrap();
        let task = root.path().join("7/task/8");
        fs::create_dir_all(&task).unwrap();
        let seed = |state: &str, syscall: &str| {
            fs::write(task.join("stat"), format!("8 (a) b) {state} 1 1")).unwrap();
            fs::write(task.join("syscall"), syscall).unwrap();
            super::seed(&Networks::new(root.path()), 7, 8, 100).map(|seed| (seed.state, seed.at))
        };
        let futex = format!("{} 0xabc 0x80 0x2 0x0 0x0 0x0 0x7f 0x7e\n", libc::SYS_futex);
        let (state, at) = seed("S", &futex).unwrap();
        assert_eq!(at, Some((0x7e, 0x7f)));
        assert_eq!((state.phase, state.cause), (Phase::Blocked as u32, WaitCause::Lock as u32));
        assert_eq!((state.syscall, state.object), (libc::SYS_futex as i32, 0xabc));
        assert_eq!(seed("R", "running\n").unwrap().0.phase, Phase::Runnable as u32);
        assert_eq!(seed("D", "-1 0x1 0x2\n").unwrap().0.cause, WaitCause::PageFault as u32);
        assert_eq!(seed("Z", ""), None);
        let poll = format!("{} 0x3 0x0\n", libc::SYS_epoll_pwait);
        let state = seed("S", &poll).unwrap().0;
        assert_eq!((state.loop_class, state.loop_descriptor), (SyscallClass::Epoll as u32, 3));
        // Of one descriptor, and of two.
        fs::write(root.path().join("7/mem"), 5u64.to_ne_bytes()).unwrap();
        for (count, descriptor) in [(1, 5), (2, MANY)] {
            let poll = format!("{} 0x0 {count:#x} 0x0 0x0 0x0 0x0 0x7f 0x7e\n", libc::SYS_ppoll);
            let state = seed("S", &poll).unwrap().0;
            assert_eq!((state.loop_class, state.loop_descriptor), (SyscallClass::Poll as u32, descriptor));
        }
        let sleep = format!("{} 0x0 0x0 0x0 0x0 0x0 0x0 0x7f 0x7e\n", libc::SYS_pselect6);
        assert_eq!(seed("S", &sleep).unwrap().0.loop_class, 0);
        // Opening and reading of a disk, and of a FIFO.
        fs::create_dir_all(root.path().join("7/fd")).unwrap();
        std::os::unix::fs::symlink("/srv/file", root.path().join("7/fd/3")).unwrap();
        for (number, of_fifo) in [(libc::SYS_openat, WaitCause::Other), (libc::SYS_read, WaitCause::Pipe)] {
            let call = format!("{number} 0x3 0x0\n");
            let causes = ["D", "S"].map(|state| seed(state, &call).unwrap().0.cause);
            assert_eq!(causes, [WaitCause::Disk, of_fifo].map(|cause| cause as u32));
        }
    }
}
