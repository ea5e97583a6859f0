//! What the scheduler probe's records and maps add up to, and who waits for whom now.

use std::{fs, os::unix::fs::MetadataExt as _, time::Duration};

use anyhow::Result;
use ended::{Ended, MOST_HISTOGRAMS, forget_loop};
use profiler_common::{
    sched::{
        Exit, HistogramKey, HistogramKind, Interval, Iteration, LoopSeen, MAX_THREADS, OffCpuKey, Phase,
        Span, SyscallClass, ThreadState,
    },
    target::INIT_PIDNS_INUM,
};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    kernel::{
        function_hooks,
        port::{Hook, Port},
    },
    model::{
        abi,
        cause::WaitCause,
        distribution::Summary,
        loss::Loss,
        report::Totals,
        sample::Sample,
        stack::{StackId, Tables, ThreadKey, comm},
        threshold::Thresholds,
        totals::Aggregator,
        wait::{Block, Blocking, EventLoop, RunQueue},
    },
    probe::{
        cpu::records::RawSample,
        record::Record,
        sched::{
            convoy::{Holder, Waiter},
            hooks::LOOP_WAITS,
            long_wait::Wait,
            loops::Loops,
            maps::{Limits, SchedMaps},
            off_cpu::{OffCpuSample, Waker, with_waker},
            ran::RanLately,
            records::{self, Seed},
            totals::{Now, Waits},
        },
        spec::{Context, Extent, InUse, Probe},
    },
    process::{
        clock::{Clock, Every},
        life,
        network::Networks,
        objects,
        redact::Redact,
    },
    resolve::Resolver,
};

/// How often the kernel is asked who waits for whom.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Descriptors looked up in /proc between two calls of [`Scheduler::look`]: each may read long tables.
const MAX_LOOKUPS: u32 = 100;

/// Histograms made for threads that are not yet known to be event loops.
const MAX_EARLY_HISTOGRAMS: usize = 256;

/// Everything that the scheduler probe has reported.
pub struct Scheduler {
    maps: Box<dyn SchedMaps>,
    limits: Limits,
    networks: Networks,
    redact: Redact,
    clock: Clock,
    began_ns: u64,
    ended_ns: Option<u64>,
    waits: Waits,
    /// What woke threads, by the kernel programs' ids.
    wakers: FxHashMap<u64, Waker>,
    ran: RanLately,
    ended: Ended,
    loops: Loops,
    /// Off-CPU time that has become samples, ns.
    taken: FxHashMap<OffCpuKey, u64>,
    counted: FxHashSet<HistogramKey>,
    look: Every,
    lookups: u32,
    /// A target has an epoll descriptor.
    polls: bool,
    loops_attached: bool,
    /// System calls are watched all the time by a probe of their own, which sees event loops without a hook of theirs.
    pub(super) calls_watched: bool,
    off_cpu: Aggregator,
}

impl Scheduler {
    /// Does not count yet.
    pub fn new(
        mut maps: Box<dyn SchedMaps>,
        networks: &Networks,
        redact: Redact,
        clock: &Clock,
        pids: &[u32],
        thresholds: Thresholds,
    ) -> Scheduler {
        for &id in [0].iter().chain(pids) {
            maps.add_histogram(HistogramKey { kind: HistogramKind::RunQueue as u32, id });
        }
        Scheduler {
            maps,
            limits: Limits::of(&thresholds),
            networks: networks.clone(),
            redact,
            clock: clock.clone(),
            began_ns: 0,
            ended_ns: None,
            waits: Waits::new(thresholds),
            wakers: FxHashMap::default(),
            ran: RanLately::default(),
            ended: Ended::new(),
            loops: Loops::default(),
            taken: FxHashMap::default(),
            counted: FxHashSet::default(),
            look: Every::new(clock, LOOK_INTERVAL),
            lookups: 0,
            polls: pids.iter().any(|&pid| objects::has_epoll(networks.proc_root(), pid)),
            loops_attached: false,
            calls_watched: false,
            off_cpu: Aggregator::default(),
        }
    }

    /// Attaches the hook of the calls that event loops wait in, once there is one: to these calls only, if the kernel allows
    /// it; otherwise where every system call of every process passes. Where system calls are watched, their probe asks by
    /// itself.
    pub(super) fn attach_loops(&mut self, kernel: &mut dyn Port) -> Result<()> {
        if self.loops_attached || self.ended_ns.is_some() || !self.has_loops() {
            return Ok(());
        }
        self.loops_attached = true;
        if self.calls_watched {
            return Ok(());
        }
        let functions = function_hooks::allowed(&LOOP_WAITS);
        if functions.is_empty() {
            return kernel.attach(Hook::Tracepoint { program: "wait_enter", tracepoint: "sys_enter" });
        }
        kernel.attach(Hook::Functions(&functions))
    }

    /// Begins to count. The probe must be attached.
    pub(super) fn begin(&mut self, now_ns: u64) -> Result<()> {
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
        let tids = life::threads_of(self.networks.proc_root(), pid).into_iter().take(MAX_THREADS);
        tids.filter_map(|tid| records::seed(&self.networks, pid, tid, self.began_ns)).collect()
    }

    /// Hands it to the kernel programs, and keeps what the thread's stack is.
    pub(super) fn seed(&mut self, mut state: ThreadState, stack: Option<StackId>, resolver: &mut Resolver) {
        if let Some(stack) = stack {
            // A number that is no hash.
            state.stack = state.tid.into();
            resolver.add_stack(state.stack, stack);
        }
        // Its first iterations may be over before it is known to be a loop.
        let iterations = HistogramKey { kind: HistogramKind::Iterations as u32, id: state.tid };
        if self.polls && self.counted.len() < MAX_EARLY_HISTOGRAMS && self.counted.insert(iterations) {
            self.maps.add_histogram(iterations);
        }
        self.maps.seed(state.tid, &state);
        if state.loop_class != 0 {
            self.add_loop(ThreadKey { pid: state.pid, tid: state.tid }, state.syscall, state.loop_descriptor);
        }
    }

    /// Whether any thread is an event loop whose iterations have to be told apart, or may be one that never sleeps.
    pub fn has_loops(&self) -> bool {
        !self.loops.is_empty() || self.polls
    }

    /// Takes note of what wakes threads. An interrupt does it in the name of whoever it interrupted, which says nothing.
    fn waker(&mut self, id: u64, name: &str, raw: &RawSample, resolver: &mut Resolver) {
        let thread = ThreadKey { pid: raw.header.pid, tid: raw.header.tid };
        let interrupt = thread.tid == 0 || resolver.is_interrupt(&raw.kernel);
        let mut raw = raw.clone();
        // Of a process that is gone, addresses say nothing.
        if interrupt || !self.networks.proc_root().join(thread.pid.to_string()).exists() {
            raw.user.clear();
            raw.entries.clear();
            raw.header.flags = 0;
        }
        let taken = !(raw.kernel.is_empty() && raw.user.is_empty());
        let stack = if taken { resolver.resolve_any(&raw).0 } else { None };
        let who = if interrupt { "an interrupt".to_owned() } else { format!("{name} (tid {})", thread.tid) };
        self.wakers.insert(id, Waker { who, stack });
    }

    /// A long block or wait for a CPU.
    fn interval(&mut self, interval: &Interval, resolver: &Resolver) {
        let cause = WaitCause::from_number(interval.cause).unwrap_or(WaitCause::Unknown);
        let blocked = interval.syscall >= 0 || interval.woken_ns > interval.start_ns;
        let instead = self.ran.instead(interval, self.limits.starvation_ns, &self.clock, &*self.maps);
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
                stack: resolver.stack(interval.stack),
            },
            uninterruptible: interval.uninterruptible != 0,
            instead,
            ongoing: false,
        };
        self.waits.wait(wait);
    }

    /// A long iteration of an event loop.
    fn iteration(&mut self, iteration: &Iteration) {
        let thread = ThreadKey { pid: iteration.pid, tid: iteration.tid };
        self.loops.turn(iteration);
        if iteration.span != Span::Worker as u32 && self.loops.holds_others_up(thread) {
            let instead = self.ran.beside(iteration, &self.clock, &*self.maps);
            self.waits.iteration(iteration, instead);
        }
    }

    /// A thread has ended.
    fn exit(&mut self, exit: &Exit, tables: &mut Tables) {
        let thread = ThreadKey { pid: exit.pid, tid: exit.tid };
        tables.threads.insert(thread, comm(&exit.comm));
        let mut time =
            records::thread_time(thread, &exit.times, exit.time_ns.saturating_sub(exit.first_ns), tables);
        time.run_queue = self.maps.take_thread_run_queue(thread.tid).map(|histogram| Summary::of(&histogram));
        self.waits.ended(&mut time);
        self.ended.add(time);
        forget_loop(thread, &mut self.loops, &mut self.waits, &mut self.counted, &mut *self.maps);
        let key = HistogramKey { kind: HistogramKind::RunQueue as u32, id: exit.pid };
        if thread.tid == thread.pid
            && self.counted.len() > MOST_HISTOGRAMS
            && self.counted.remove(&key)
            && let Some(histogram) = self.maps.take_histogram(&key)
        {
            self.ended.run_queue.add(&histogram);
        }
    }

    /// A thread waits as event loops do.
    fn loop_seen(&mut self, seen: &LoopSeen) {
        self.add_loop(ThreadKey { pid: seen.pid, tid: seen.tid }, seen.syscall, seen.descriptor as u32);
    }

    fn add_loop(&mut self, thread: ThreadKey, syscall: i32, descriptor: u32) {
        let allowed = self.lookups < MAX_LOOKUPS && !self.loops.serves_one_client(thread.pid);
        self.lookups += u32::from(allowed);
        self.loops.add(thread, syscall, descriptor, allowed, &self.networks);
        self.maps.add_histogram(HistogramKey { kind: HistogramKind::Iterations as u32, id: thread.tid });
        if self.loops.holds_others_up(thread) {
            self.waits.add_loop(thread);
        }
    }

    /// Asks the kernel, once a second, who waits for locks, and gives new processes a histogram of their own.
    fn look(&mut self, resolver: &Resolver) {
        if !self.look.is_due() {
            return;
        }
        self.look.restart();
        self.lookups = self.loops.look_at_clients(MAX_LOOKUPS, &self.networks);
        let states = self.maps.threads();
        if !self.has_loops() {
            let pids: FxHashSet<u32> = states.iter().map(|of| of.pid).take(MAX_LOOKUPS as usize).collect();
            self.polls = pids.into_iter().any(|pid| objects::has_epoll(self.networks.proc_root(), pid));
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
                    && abi::class(state.syscall) == SyscallClass::Futex as u8
                    && records::is_blocked(state, &records::schedstat(self.networks.proc_root(), state))
            })
            .map(|state| Waiter {
                thread: ThreadKey { pid: state.pid, tid: state.tid },
                futex: state.object,
                stack: resolver.stack(state.stack),
            })
            .collect();
        let proc_root = self.networks.proc_root();
        self.waits.look(&waiters, |pid, futex| {
            let tid = objects::lock_owner(proc_root, pid, futex)?;
            let owner = states.iter().find(|state| state.pid == pid && state.tid == tid);
            let blocked =
                owner.filter(|state| records::is_blocked(state, &records::schedstat(proc_root, state)));
            let stack = blocked.and_then(|state| resolver.stack(state.stack));
            Some(Holder { thread: ThreadKey { pid, tid }, stack })
        });
    }

    /// Off-CPU time since this was last asked; at the end that of blocks still going on, too.
    fn off_cpu(&mut self, resolver: &mut Resolver) -> Vec<OffCpuSample> {
        let ended = self.ended.take_off_cpu();
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
                    stack: resolver.stack(key.stack),
                    cause: WaitCause::from_number(key.cause).unwrap_or(WaitCause::Unknown),
                    waker: self.wakers.get(&key.waker).cloned(),
                    ns: new,
                });
            }
        }
        if let Some(now_ns) = self.ended_ns {
            for state in states.iter().filter(|state| state.phase == Phase::Blocked as u32) {
                let stat = records::schedstat(self.networks.proc_root(), state);
                let times = records::times_until(state, &stat, now_ns);
                let cause = state.cause as usize % WaitCause::ALL.len();
                let ns = times.blocked_ns[cause] - state.times.blocked_ns[cause];
                samples.push(OffCpuSample {
                    thread: ThreadKey { pid: state.pid, tid: state.tid },
                    stack: resolver.stack(state.stack),
                    cause: WaitCause::from_number(state.cause).unwrap_or(WaitCause::Unknown),
                    waker: None,
                    ns,
                });
            }
        }
        // Of threads that had ended before it was taken in, nothing more comes.
        let gone = self.taken.keys().filter(|key| ended.contains(&ThreadKey { pid: key.pid, tid: key.tid }));
        for key in gone.copied().collect::<Vec<_>>() {
            self.taken.remove(&key);
            self.maps.forget_off_cpu(&key);
        }
        for sample in &samples {
            resolver.name_thread(sample.thread);
        }
        samples
    }

    /// Everything up to `now_ns`, or up to the end.
    fn blocking(&mut self, resolver: &mut Resolver) -> Blocking {
        let now_ns = self.ended_ns.unwrap_or_else(|| self.clock.now_ns());
        let states = self.maps.threads();
        let mut now = Now { threads: self.ended.times.clone(), ..Now::default() };
        for state in &states {
            let thread = ThreadKey { pid: state.pid, tid: state.tid };
            resolver.name_thread(thread);
            // The kernel may have seen it after `now_ns`, and then its times reach to there.
            let until_ns = now_ns.max(records::known_until(state));
            let stat = records::schedstat(self.networks.proc_root(), state);
            now.threads.push(records::thread_time(
                thread,
                &records::times_until(state, &stat, until_ns),
                until_ns.saturating_sub(state.first_ns.max(self.began_ns)),
                &resolver.tables,
            ));
            if records::is_blocked(state, &stat) {
                now.waits.push(self.ongoing(state, now_ns, resolver));
            } else if state.iteration_start_ns != 0 && self.loops.holds_others_up(thread) {
                now.iterations.push(records::iteration_so_far(state, &stat, now_ns));
            }
        }
        let tables = &resolver.tables;
        let mut histograms = self.maps.histograms();
        let others = HistogramKey { kind: HistogramKind::RunQueue as u32, id: 0 };
        match histograms.iter_mut().find(|(key, _)| *key == others) {
            Some((_, histogram)) => histogram.add(&self.ended.run_queue),
            None => histograms.push((others, *self.ended.run_queue)),
        }
        for (key, histogram) in histograms {
            let summary = Summary::of(&histogram);
            if key.kind == HistogramKind::RunQueue as u32 && summary.count > 0 {
                let process = match key.id {
                    0 => "(others)".to_owned(),
                    pid => tables.process_name(ThreadKey { pid, tid: pid }).to_owned(),
                };
                now.run_queue.push(RunQueue { pid: key.id, process, waits: summary });
            } else if key.kind == HistogramKind::Iterations as u32
                && let Some((thread, syscall)) = self.loops.wait_of(key.id)
            {
                now.loops.push(EventLoop {
                    thread,
                    process: tables.process_name(thread).to_owned(),
                    name: tables.thread_name(thread).to_owned(),
                    wait: abi::name(syscall),
                    iterations: summary,
                    longest_turn_ns: self.loops.longest_turn_ns(thread),
                    warnings: 0,
                    criticals: 0,
                });
            }
        }
        let living = self.ended.times.len();
        for (tid, histogram) in self.maps.thread_run_queues() {
            if let Some(thread) = now.threads[living..].iter_mut().find(|thread| thread.thread.tid == tid) {
                thread.run_queue = Some(Summary::of(&histogram));
            }
        }
        self.waits.blocking(now)
    }

    /// A wait that goes on.
    fn ongoing(&mut self, state: &ThreadState, now_ns: u64, resolver: &Resolver) -> Wait {
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
                stack: resolver.stack(state.stack),
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
            let owner = (cause == WaitCause::Lock)
                .then(|| objects::lock_owner(self.networks.proc_root(), pid, argument));
            return Some(match owner.flatten() {
                Some(tid) => format!("futex {argument:#x}, held by thread {tid}"),
                None => format!("futex {argument:#x}"),
            });
        }
        if !abi::takes_descriptor(syscall) || argument >= MAX_DESCRIPTOR || self.lookups >= MAX_LOOKUPS {
            return None;
        }
        self.lookups += 1;
        objects::descriptor(&self.networks, pid, argument).map(|object| self.redact.object(&object))
    }
}

impl Probe for Scheduler {
    fn begin(&mut self, cx: &mut Context<'_>) -> Result<()> {
        Scheduler::begin(self, cx.resolver.clock.now_ns())
    }

    fn record(&mut self, record: &Record, stack: Option<StackId>, cx: &mut Context<'_>) -> Result<()> {
        match record {
            Record::Cpu(raw) => {
                if let Some(stack) = stack {
                    let thread = ThreadKey { pid: raw.header.pid, tid: raw.header.tid };
                    self.waits.cpu_sample(thread, raw.header.time_ns, stack, !raw.kernel.is_empty());
                }
            }
            Record::Waker(id, name, raw) => self.waker(*id, name, raw, cx.resolver),
            Record::Interval(interval) => self.interval(interval, cx.resolver),
            Record::Iteration(iteration) => self.iteration(iteration),
            Record::Exit(exit) => self.exit(exit, &mut cx.resolver.tables),
            Record::Loop(seen) => self.loop_seen(seen),
            _ => {}
        }
        Ok(())
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Result<()> {
        self.look(cx.resolver);
        self.attach_loops(cx.kernel)
    }

    /// Brings the time off CPUs into the totals.
    fn flush(&mut self, wanted: bool, cx: &mut Context<'_>) -> Result<()> {
        if !wanted && !self.ended.is_much() {
            return Ok(());
        }
        let resolver = &mut *cx.resolver;
        for OffCpuSample { thread, stack, cause, waker, ns } in self.off_cpu(resolver) {
            let Some(stack) = stack.or_else(|| resolver.not_taken()) else {
                resolver.losses.add(Loss::OffCpuFull, 1);
                continue;
            };
            let stack = match waker {
                Some(waker) => with_waker(stack, &waker, &mut resolver.tables).unwrap_or(stack),
                None => stack,
            };
            let time_ns = resolver.clock.now_ns();
            let sample = Sample { time_ns, thread, cpu: 0, stack, weight: ns, cause: Some(cause) };
            if !self.off_cpu.add(&sample) {
                resolver.losses.add(Loss::OffCpuFull, 1);
                continue;
            }
            let name = resolver.name_to_record(thread);
            cx.sink.record(&sample, &resolver.tables, name.as_deref());
        }
        Ok(())
    }

    fn in_use(&mut self, used: &mut InUse) {
        for state in self.maps.threads() {
            used.stacks.extend(state.known.iter().flat_map(|known| [known.stack, known.waker]));
            used.stacks.insert(state.stack);
        }
        used.stacks.extend(self.maps.off_cpu().iter().flat_map(|(key, _)| [key.stack, key.waker]));
        self.wakers.retain(|id, _| used.stacks.contains(id));
        used.totals(&mut self.off_cpu);
    }

    fn stop(&mut self, _cx: &mut Context<'_>) -> Result<()> {
        self.ended_ns = Some(self.clock.now_ns());
        self.maps.start(0)
    }

    fn report(&mut self, extent: Extent, totals: &mut Totals, cx: &mut Context<'_>) -> Result<()> {
        if extent != Extent::Snapshot {
            totals.blocking = Some(self.blocking(cx.resolver));
        }
        if extent == Extent::Run {
            totals.off_cpu = Some(self.off_cpu.snapshot());
        }
        Ok(())
    }
}

mod ended;
#[cfg(test)]
mod tests;
