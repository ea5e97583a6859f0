//! The scheduler probe's half of a live run: what threads did before it began, what its records add up to, and who
//! waits for whom now.

pub mod function_hooks;
pub mod maps;
pub mod records;
pub mod totals;

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Result;
use profiler_common::cpu::Seen;
use profiler_common::sched::{
    Exit, HistogramKey, HistogramKind, Interval, LoopSeen, MAX_THREADS, OffCpuKey, Phase, Span, SyscallClass,
    ThreadState, Times, Turn,
};
use profiler_common::target::INIT_PIDNS_INUM;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    detect::{
        convoy::{Holder, Waiter},
        long_wait::{Wait, who_ran},
    },
    model::{
        abi,
        cause::WaitCause,
        distribution::Summary,
        stack::{StackId, Tables, ThreadKey},
        threshold::Thresholds,
        wait::{Block, Blocking, EventLoop, RanInstead, RunQueue, ThreadTime},
    },
    probe::{
        self,
        sched::{
            maps::{Limits, SchedMaps, Settings},
            records::{SchedStat, Seed},
            totals::{Now, Waits},
        },
    },
    process::{objects, target::comm},
};

/// Blocks of an event loop this many times shorter than a stall are told one by one, so that they can explain one.
const LOOP_BLOCK_PART: u64 = 20;

/// How often the kernel is asked who waits for whom.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Ended threads listed by themselves; more are added up by process.
const MAX_ENDED: usize = 16_384;

/// Descriptors looked up in /proc between two calls of [`Scheduler::look`]: each may read long tables.
const MAX_LOOKUPS: u32 = 100;

/// For how long a look at who ran on the CPUs is good enough: records are taken in at about this pace.
const RAN_FRESH: Duration = Duration::from_millis(50);

/// Histograms made for threads that are not yet known to be event loops.
const MAX_EARLY_HISTOGRAMS: usize = 256;

/// What the kernel programs are to do for these thresholds and options.
pub fn settings(thresholds: &Thresholds, wakers: bool, run_queue_by_thread: bool) -> Settings {
    let limits = Limits {
        stall_ns: thresholds.stall_warning_ns,
        loop_block_ns: thresholds.stall_warning_ns / LOOP_BLOCK_PART,
        starvation_ns: thresholds.starvation_ns,
        block_ns: thresholds.block_ns,
    };
    Settings { limits, wakers, run_queue_by_thread }
}

/// Everything the scheduler probe has told.
pub struct Scheduler {
    maps: SchedMaps,
    settings: Settings,
    proc_root: PathBuf,
    began_ns: u64,
    ended_ns: Option<u64>,
    waits: Waits,
    /// Stacks by the kernel programs' ids.
    stacks: FxHashMap<u64, StackId>,
    /// What woke threads, by the kernel programs' ids.
    wakers: FxHashMap<u64, Waker>,
    /// Who ran on each CPU lately, and when that was asked.
    ran: Option<(Instant, Vec<Vec<Seen>>)>,
    ended: Vec<ThreadTime>,
    loops: FxHashMap<ThreadKey, Loop>,
    /// Threads by process and epoll descriptor they wait in.
    sharers: FxHashMap<(u32, u64), FxHashSet<u32>>,
    /// Processes that serve one client each, as a database's do: while one works nobody waits but who asked for it.
    one_client: FxHashSet<u32>,
    /// Off-CPU time that has become samples, ns.
    taken: FxHashMap<OffCpuKey, u64>,
    counted: FxHashSet<HistogramKey>,
    last_look: Instant,
    lookups: u32,
    /// A target has an epoll descriptor.
    polls: bool,
}

struct Loop {
    syscall: i32,
    object: u64,
}

/// What woke a thread.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Waker {
    /// The thread, or that it was an interrupt.
    pub who: String,
    /// Where it did so, if the stack was taken.
    pub stack: Option<StackId>,
}

/// Off-CPU time since this was last asked.
#[derive(Clone, Debug)]
pub struct OffCpuSample {
    /// Whose.
    pub thread: ThreadKey,
    /// Where, if the stack was taken.
    pub stack: Option<StackId>,
    /// What for.
    pub cause: WaitCause,
    /// What ended it, if that is known.
    pub waker: Option<Waker>,
    /// How long, ns.
    pub ns: u64,
}

impl Scheduler {
    /// Does not count yet.
    pub fn new(
        mut maps: SchedMaps,
        proc_root: &Path,
        pids: &[u32],
        settings: Settings,
        thresholds: Thresholds,
    ) -> Scheduler {
        for &id in [0].iter().chain(pids) {
            maps.add_histogram(HistogramKey { kind: HistogramKind::RunQueue as u32, id });
        }
        Scheduler {
            maps,
            settings,
            proc_root: proc_root.to_owned(),
            began_ns: 0,
            ended_ns: None,
            waits: Waits::new(thresholds),
            stacks: FxHashMap::default(),
            wakers: FxHashMap::default(),
            ran: None,
            ended: Vec::new(),
            loops: FxHashMap::default(),
            sharers: FxHashMap::default(),
            one_client: FxHashSet::default(),
            taken: FxHashMap::default(),
            counted: FxHashSet::default(),
            last_look: Instant::now(),
            lookups: 0,
            polls: pids.iter().any(|&pid| objects::has_epoll(proc_root, pid)),
        }
    }

    /// Begins. The probe must be attached.
    pub fn start(&mut self, now_ns: u64) -> Result<()> {
        self.began_ns = now_ns;
        self.maps.start(now_ns)
    }

    /// What the threads of a process are doing: it has been so since the start, or the kernel has seen it change and
    /// knows better. None inside a PID namespace: to the kernel programs thread ids are those of the initial one.
    pub fn seeds(&self, pid: u32) -> Vec<Seed> {
        let namespace = fs::metadata("/proc/self/ns/pid").map_or(0, |metadata| metadata.ino());
        if namespace != u64::from(INIT_PIDNS_INUM) {
            return Vec::new();
        }
        let tids = threads_of(&self.proc_root, pid).into_iter().take(MAX_THREADS);
        tids.filter_map(|tid| records::seed(&self.proc_root, pid, tid, self.began_ns)).collect()
    }

    /// Tells the kernel programs, and what the thread's stack is.
    pub fn seed(&mut self, mut state: ThreadState, stack: Option<StackId>) {
        if let Some(stack) = stack {
            // A number that is no hash.
            state.stack = state.tid.into();
            self.stacks.insert(state.stack, stack);
        }
        // Its first turns may be over before it is known to be a loop.
        let turns = HistogramKey { kind: HistogramKind::Turns as u32, id: state.tid };
        if self.polls && self.counted.len() < MAX_EARLY_HISTOGRAMS && self.counted.insert(turns) {
            self.maps.add_histogram(turns);
        }
        self.maps.seed(state.tid, &state);
        if state.loop_class != 0 {
            self.add_loop(ThreadKey { pid: state.pid, tid: state.tid }, state.syscall, state.object);
        }
    }

    /// Ends: nothing is counted after `now_ns`.
    pub fn stop(&mut self, now_ns: u64) -> Result<()> {
        self.ended_ns = Some(now_ns);
        self.maps.start(0)
    }

    /// Whether any thread is an event loop whose turns have to be told apart, or may be one that never sleeps.
    pub fn has_loops(&self) -> bool {
        !self.loops.is_empty() || self.polls
    }

    /// A stack of the kernel programs.
    pub fn stack(&mut self, id: u64, stack: StackId) {
        self.stacks.insert(id, stack);
    }

    /// A stack that wakes threads.
    pub fn waker(&mut self, id: u64, waker: Waker) {
        self.wakers.insert(id, waker);
    }

    /// A CPU sample.
    pub fn cpu_sample(&mut self, thread: ThreadKey, time_ns: u64, stack: StackId, in_kernel: bool) {
        self.waits.cpu_sample(thread, time_ns, stack, in_kernel);
    }

    /// A long block or wait for a CPU.
    pub fn interval(&mut self, interval: &Interval) {
        let cause = WaitCause::from_number(interval.cause).unwrap_or(WaitCause::Unknown);
        let blocked = interval.syscall >= 0 || interval.woken_ns > interval.start_ns;
        let instead = self.ran_instead(interval);
        let wait = Wait {
            thread: ThreadKey { pid: interval.pid, tid: interval.tid },
            block: Block {
                start_ns: interval.start_ns,
                blocked_ns: interval.woken_ns.saturating_sub(interval.start_ns),
                run_queue_ns: interval.end_ns.saturating_sub(interval.woken_ns),
                cause,
                syscall: abi::name(interval.syscall),
                object: if blocked {
                    self.object(interval.pid, cause, interval.syscall, interval.object)
                } else {
                    None
                },
                stack: self.stacks.get(&interval.stack).copied(),
            },
            uninterruptible: interval.uninterruptible != 0,
            instead,
            ongoing: false,
        };
        self.waits.wait(wait);
    }

    /// Who ran while a thread waited for a CPU for too long: by samples of that CPU; if there are none of the time, the
    /// thread that it was preempted for.
    fn ran_instead(&mut self, interval: &Interval) -> Vec<RanInstead> {
        let waited_ns = interval.end_ns.saturating_sub(interval.woken_ns);
        if waited_ns < self.settings.limits.starvation_ns {
            return Vec::new();
        }
        let ran = match self.ran.take() {
            Some((asked, ran)) if asked.elapsed() < RAN_FRESH => (asked, ran),
            _ => (Instant::now(), self.maps.ran()),
        };
        let (_, cpus) = self.ran.insert(ran);
        let seen = cpus.get(interval.cpu as usize).map_or(&[][..], Vec::as_slice);
        let found = who_ran(seen, interval.tid, interval.woken_ns, interval.end_ns);
        if found.is_empty() && interval.instead_tid != 0 {
            let name = probe::name(&interval.instead_comm);
            return vec![RanInstead { tid: interval.instead_tid, name, ns: waited_ns }];
        }
        found
    }

    /// A long turn of an event loop.
    pub fn turn(&mut self, turn: &Turn) {
        let thread = ThreadKey { pid: turn.pid, tid: turn.tid };
        if turn.span != Span::Worker as u32 && self.is_loop_of_its_own(thread) {
            self.waits.turn(turn);
        }
    }

    /// A thread has ended.
    pub fn exit(&mut self, exit: &Exit, tables: &mut Tables) {
        let thread = ThreadKey { pid: exit.pid, tid: exit.tid };
        tables.threads.insert(thread, probe::name(&exit.comm));
        let mut time = thread_time(thread, &exit.times, exit.time_ns.saturating_sub(exit.first_ns), tables);
        time.run_queue = self.maps.take_thread_run_queue(thread.tid).map(|histogram| Summary::of(&histogram));
        if self.ended.len() < MAX_ENDED {
            self.ended.push(time);
        } else if let Some(last) = self.ended.last_mut() {
            last.name = "(and others that ended)".to_owned();
            last.run_queue = None;
            last.add(&time);
        }
        self.waits.ended(thread);
    }

    /// A thread waits as event loops do.
    pub fn loop_seen(&mut self, seen: &LoopSeen) {
        self.add_loop(ThreadKey { pid: seen.pid, tid: seen.tid }, seen.syscall, seen.object);
    }

    fn add_loop(&mut self, thread: ThreadKey, syscall: i32, object: u64) {
        self.loops.insert(thread, Loop { syscall, object });
        if abi::class(syscall) == SyscallClass::Epoll as u8 {
            self.sharers.entry((thread.pid, object)).or_default().insert(thread.tid);
        }
        self.maps.add_histogram(HistogramKey { kind: HistogramKind::Turns as u32, id: thread.tid });
        if self.lookups < MAX_LOOKUPS && !self.one_client.contains(&thread.pid) {
            self.lookups += 1;
            if objects::serves_one_client(&self.proc_root, thread.pid) {
                self.one_client.insert(thread.pid);
            }
        }
        if self.is_loop_of_its_own(thread) {
            self.waits.add_loop(thread);
        }
    }

    /// Processes that served one client and do not any more are event loops from now on.
    fn look_at_clients(&mut self) {
        let served: Vec<u32> = self.one_client.iter().copied().collect();
        for pid in served {
            if self.lookups < MAX_LOOKUPS && !objects::serves_one_client(&self.proc_root, pid) {
                self.one_client.remove(&pid);
            }
            self.lookups += 1;
        }
    }

    /// Whether a thread that is away from its loop holds others up.
    fn is_loop_of_its_own(&self, thread: ThreadKey) -> bool {
        !self.is_shared(thread) && !self.one_client.contains(&thread.pid)
    }

    /// Whether other threads wait in the same epoll descriptor: the runtime (Go's, multi-threaded tokio's) lets any
    /// thread poll and any other work, so a thread that is long away from it holds nobody up.
    fn is_shared(&self, thread: ThreadKey) -> bool {
        let sharers = self.loops.get(&thread).and_then(|of| self.sharers.get(&(thread.pid, of.object)));
        sharers.is_some_and(|threads| threads.len() > 1)
    }

    /// Asks the kernel, once a second, who waits for locks, and gives new processes a histogram of their own.
    pub fn look(&mut self) {
        if self.last_look.elapsed() < LOOK_INTERVAL {
            return;
        }
        self.last_look = Instant::now();
        self.lookups = 0;
        self.look_at_clients();
        let states = self.maps.threads();
        if !self.has_loops() {
            let pids: FxHashSet<u32> =
                states.iter().map(|state| state.pid).take(MAX_LOOKUPS as usize).collect();
            self.polls = pids.into_iter().any(|pid| objects::has_epoll(&self.proc_root, pid));
        }
        for state in &states {
            let key = HistogramKey { kind: HistogramKind::RunQueue as u32, id: state.pid };
            if self.counted.insert(key) {
                self.maps.add_histogram(key);
            }
        }
        let waiters: Vec<Waiter> = states
            .iter()
            .filter(|state| {
                WaitCause::from_number(state.cause).unwrap_or(WaitCause::Unknown) == WaitCause::Lock
                    && records::is_blocked(state, &schedstat(&self.proc_root, state))
            })
            .map(|state| Waiter {
                thread: ThreadKey { pid: state.pid, tid: state.tid },
                futex: state.object,
                stack: self.stacks.get(&state.stack).copied(),
            })
            .collect();
        let (stacks, proc_root) = (&self.stacks, &self.proc_root);
        self.waits.look(&waiters, |pid, futex| {
            let tid = objects::lock_owner(proc_root, pid, futex)?;
            let owner = states.iter().find(|state| state.pid == pid && state.tid == tid);
            let blocked = owner.filter(|state| records::is_blocked(state, &schedstat(proc_root, state)));
            let stack = blocked.and_then(|state| stacks.get(&state.stack)).copied();
            Some(Holder { thread: ThreadKey { pid, tid }, stack })
        });
    }

    /// Off-CPU time since this was last asked; at the end that of blocks still going on, too.
    pub fn off_cpu(&mut self, tables: &mut Tables) -> Vec<OffCpuSample> {
        // What a thread keeps itself is in the map later, never earlier: so the map first.
        let mut sums: FxHashMap<OffCpuKey, u64> =
            self.maps.off_cpu().into_iter().map(|(key, time)| (key, time.ns)).collect();
        let states = self.maps.threads();
        for state in &states {
            for known in state.known.iter().filter(|known| known.time.count > 0) {
                let key = OffCpuKey {
                    stack: known.stack,
                    waker: known.waker,
                    pid: state.pid,
                    tid: state.tid,
                    cause: known.cause,
                    syscall: known.syscall,
                };
                *sums.entry(key).or_default() += known.time.ns;
            }
        }
        let mut samples = Vec::new();
        for (key, ns) in sums {
            let taken = self.taken.entry(key).or_default();
            let new = ns.saturating_sub(*taken);
            *taken = ns.max(*taken);
            if new > 0 {
                samples.push(OffCpuSample {
                    thread: ThreadKey { pid: key.pid, tid: key.tid },
                    stack: self.stacks.get(&key.stack).copied(),
                    cause: WaitCause::from_number(key.cause).unwrap_or(WaitCause::Unknown),
                    waker: self.wakers.get(&key.waker).cloned(),
                    ns: new,
                });
            }
        }
        if let Some(now_ns) = self.ended_ns {
            for state in states.iter().filter(|state| state.phase == Phase::Blocked as u32) {
                let times = records::times_until(state, &schedstat(&self.proc_root, state), now_ns);
                let cause = state.cause as usize % WaitCause::ALL.len();
                let ns = times.blocked_ns[cause] - state.times.blocked_ns[cause];
                samples.push(OffCpuSample {
                    thread: ThreadKey { pid: state.pid, tid: state.tid },
                    stack: self.stacks.get(&state.stack).copied(),
                    cause: WaitCause::from_number(state.cause).unwrap_or(WaitCause::Unknown),
                    waker: None,
                    ns,
                });
            }
        }
        for sample in &samples {
            self.name(sample.thread, tables);
        }
        samples
    }

    /// Everything up to `now_ns`, or up to the end.
    pub fn blocking(&mut self, tables: &mut Tables, now_ns: u64) -> Blocking {
        let now_ns = self.ended_ns.unwrap_or(now_ns);
        let states = self.maps.threads();
        let mut now = Now { threads: self.ended.clone(), ..Now::default() };
        for state in &states {
            let thread = ThreadKey { pid: state.pid, tid: state.tid };
            self.name(thread, tables);
            let wall_ns = now_ns.saturating_sub(state.first_ns.max(self.began_ns));
            let stat = schedstat(&self.proc_root, state);
            now.threads.push(thread_time(
                thread,
                &records::times_until(state, &stat, now_ns),
                wall_ns,
                tables,
            ));
            if records::is_blocked(state, &stat) {
                now.waits.push(self.ongoing(state, now_ns));
            } else if state.turn_start_ns != 0 && self.is_loop_of_its_own(thread) {
                now.turns.push(turn_so_far(state, &stat, now_ns));
            }
        }
        for (key, histogram) in self.maps.histograms() {
            let summary = Summary::of(&histogram);
            if key.kind == HistogramKind::RunQueue as u32 && summary.count > 0 {
                let process = match key.id {
                    0 => "(others)".to_owned(),
                    pid => tables.process_name(ThreadKey { pid, tid: pid }).to_owned(),
                };
                now.run_queue.push(RunQueue { pid: key.id, process, waits: summary });
            } else if key.kind == HistogramKind::Turns as u32 {
                let found = self
                    .loops
                    .iter()
                    .find(|(thread, _)| thread.tid == key.id && !self.one_client.contains(&thread.pid));
                if let Some((&thread, of)) = found {
                    now.loops.push(EventLoop {
                        thread,
                        process: tables.process_name(thread).to_owned(),
                        name: tables.thread_name(thread).to_owned(),
                        wait: abi::name(of.syscall),
                        turns: summary,
                        warnings: 0,
                        criticals: 0,
                    });
                }
            }
        }
        let living = self.ended.len();
        for (tid, histogram) in self.maps.thread_run_queues() {
            if let Some(thread) = now.threads[living..].iter_mut().find(|thread| thread.thread.tid == tid) {
                thread.run_queue = Some(Summary::of(&histogram));
            }
        }
        self.waits.blocking(now)
    }

    /// A wait that goes on.
    fn ongoing(&mut self, state: &ThreadState, now_ns: u64) -> Wait {
        Wait {
            thread: ThreadKey { pid: state.pid, tid: state.tid },
            block: Block {
                start_ns: state.since_ns,
                blocked_ns: now_ns.saturating_sub(state.since_ns),
                run_queue_ns: 0,
                cause: WaitCause::from_number(state.cause).unwrap_or(WaitCause::Unknown),
                syscall: abi::name(state.syscall),
                object: self.object(
                    state.pid,
                    WaitCause::from_number(state.cause).unwrap_or(WaitCause::Unknown),
                    state.syscall,
                    state.object,
                ),
                stack: self.stacks.get(&state.stack).copied(),
            },
            uninterruptible: state.uninterruptible != 0,
            instead: Vec::new(),
            ongoing: true,
        }
    }

    /// What a call waits for, from its first argument.
    fn object(&mut self, pid: u32, cause: WaitCause, syscall: i32, argument: u64) -> Option<String> {
        /// No descriptor is larger (`fs.nr_open`, default); what is, is an address.
        const MAX_DESCRIPTOR: u64 = 1 << 20;
        if syscall < 0 {
            return None;
        }
        let class = abi::class(syscall);
        if class == SyscallClass::Futex as u8 {
            let owner =
                (cause == WaitCause::Lock).then(|| objects::lock_owner(&self.proc_root, pid, argument));
            return Some(match owner.flatten() {
                Some(tid) => format!("futex {argument:#x}, held by thread {tid}"),
                None => format!("futex {argument:#x}"),
            });
        }
        let takes_descriptor = [SyscallClass::Descriptor, SyscallClass::Disk, SyscallClass::Accept]
            .into_iter()
            .any(|with| with as u8 == class);
        if !takes_descriptor || argument >= MAX_DESCRIPTOR || self.lookups >= MAX_LOOKUPS {
            return None;
        }
        self.lookups += 1;
        objects::descriptor(&self.proc_root, pid, argument)
    }

    /// Finds out a thread's name, and its process's, where no sample has told them.
    fn name(&self, thread: ThreadKey, tables: &mut Tables) {
        for of in [ThreadKey { tid: thread.pid, ..thread }, thread] {
            if !tables.threads.contains_key(&of) {
                let task = self.proc_root.join(format!("{}/task", of.pid));
                if let Some(name) = comm(&task, of.tid) {
                    tables.threads.insert(of, name);
                }
            }
        }
    }
}

/// What the scheduler says of a thread now; nothing new of one that is gone.
fn schedstat(proc_root: &Path, state: &ThreadState) -> SchedStat {
    SchedStat::read(proc_root, state.pid, state.tid).unwrap_or(SchedStat {
        exec_ns: state.exec_ns,
        run_delay_ns: state.run_delay_ns,
        arrivals: state.arrivals,
    })
}

fn threads_of(proc_root: &Path, pid: u32) -> Vec<u32> {
    let entries = fs::read_dir(proc_root.join(format!("{pid}/task"))).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

fn thread_time(thread: ThreadKey, times: &Times, wall_ns: u64, tables: &Tables) -> ThreadTime {
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

/// A turn that goes on.
fn turn_so_far(state: &ThreadState, stat: &SchedStat, now_ns: u64) -> Turn {
    let times = records::times_until(state, stat, now_ns);
    Turn {
        syscall: state.syscall,
        pid: state.pid,
        tid: state.tid,
        start_ns: state.turn_start_ns,
        end_ns: now_ns,
        on_cpu_ns: times.on_cpu_ns.saturating_sub(state.turn_on_cpu_ns),
        run_queue_ns: times.run_queue_ns.saturating_sub(state.turn_run_queue_ns),
        ..Turn::default()
    }
}
