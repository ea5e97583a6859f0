//! What the system-call probe's records and maps add up to: its counts are taken out of the kernel before they overflow,
//! descriptors are identified while they are open, and the slowest calls are kept.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use profiler_common::syscall::{
    CallKey, CallTimeKey, IoKey, IoRecord, IoStats, Name, ObjectKind, SlowCall, WaitsKey,
};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    kernel::port::Hook,
    model::{
        abi,
        loss::Loss,
        report::Totals,
        sample::Sample,
        stack::{Frame, Module, ModuleKind, Stack, StackEnd, StackId, ThreadKey},
        syscall::{self, CallCount, Interval, KindWaits, SlowByPart, WaitKind},
        totals::{Aggregator, intern_stack},
    },
    probe::{
        budget::{self, Budget, Order},
        record::Record,
        spec::{Context, Extent, InUse, Probe},
        syscall::{
            chatty::{self, FdActivity},
            counts::{self, Count, Waits},
            io::{self, Named, Object, add_io, median_bytes},
            maps::{CALLS, CallMaps},
            names::Names,
            records,
            storm::{Rates, Storms},
        },
    },
    process::{
        clock::{Clock, Every},
        network::Networks,
        objects,
        redact::Redact,
    },
    resolve::Resolver,
};

/// How often the kernel's counts are taken: far more often than a 32-bit count can overflow.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Slow calls kept.
const MAX_SLOW: usize = 200;
/// From which length on calls are reported one by one at first, and at least, ns.
const SLOW_NS: (u64, u64) = (1_000_000, 100_000);
/// As many slow calls as should be reported between two polls.
const SLOW_WANTED: u64 = 200;
/// Descriptors looked up in /proc between two looks: each may read long tables.
const MAX_LOOKUPS: u32 = 2_000;

/// Time in calls by stack since this was last asked: whose, at which stack if it was taken, in which call, ns.
type CallSample = (ThreadKey, Option<StackId>, u32, u64);

/// Everything that the system-call probe has reported.
pub struct CallCollector {
    maps: Box<dyn CallMaps>,
    networks: Networks,
    in_calls: Aggregator,
    redact: Redact,
    counts: BTreeMap<CallKey, Count>,
    errors: BTreeMap<CallKey, BTreeMap<u32, u64>>,
    errors_taken: FxHashMap<(CallKey, u32), u64>,
    waits: BTreeMap<WaitsKey, Waits>,
    names: Names,
    objects: BTreeMap<(u32, String), Object>,
    objects_unlisted: u64,
    time_taken: FxHashMap<CallTimeKey, u64>,
    slow: BTreeMap<(u64, u64), syscall::SlowCall>,
    slow_by_part: SlowByPart,
    slow_reported: u64,
    slow_ns: u64,
    interval: Interval,
    storms: Storms,
    look: Every,
    lookups: u32,
    clock: Clock,
    began_ns: u64,
    ended_ns: Option<u64>,
    /// Where calls are watched only as far as that is within a budget.
    budget: Option<Budget>,
    /// Calls are watched now.
    open: bool,
    look_at_budget: Every,
}

impl CallCollector {
    /// Has the kernel programs report slow calls from now on. They cannot know which ports the processes `pids` listen at
    /// already.
    pub fn new(
        mut maps: Box<dyn CallMaps>,
        pids: &[u32],
        networks: &Networks,
        clock: &Clock,
        redact: Redact,
        storms: Storms,
    ) -> Result<CallCollector> {
        maps.set_slow(SLOW_NS.0)?;
        objects::listens(networks, pids).into_iter().for_each(|(pid, port)| maps.listens(pid, port));
        Ok(CallCollector {
            maps,
            networks: networks.clone(),
            in_calls: Aggregator::default(),
            redact,
            counts: BTreeMap::new(),
            errors: BTreeMap::new(),
            errors_taken: FxHashMap::default(),
            waits: BTreeMap::new(),
            names: Names::new(clock),
            objects: BTreeMap::new(),
            objects_unlisted: 0,
            time_taken: FxHashMap::default(),
            slow: BTreeMap::new(),
            slow_by_part: SlowByPart::new(clock.now_ns()),
            slow_reported: 0,
            slow_ns: SLOW_NS.0,
            interval: Interval::default(),
            storms,
            look: Every::new(clock, LOOK_INTERVAL),
            lookups: 0,
            clock: clock.clone(),
            began_ns: clock.now_ns(),
            ended_ns: None,
            budget: None,
            open: true,
            look_at_budget: Every::new(clock, budget::LOOK_INTERVAL),
        })
    }

    /// Watches calls from now on only as far as that is within a budget.
    pub fn keep_to(&mut self, budget: Budget) {
        self.budget = Some(budget);
    }

    /// Compares what has been spent with what has been earned, and begins or ends a window.
    fn keep_within_budget(&mut self, cx: &mut Context<'_>) -> Result<()> {
        if self.budget.is_none() || self.ended_ns.is_some() || !self.look_at_budget.is_due() {
            return Ok(());
        }
        self.look_at_budget.restart();
        let account = budget::of_calls(cx);
        let now_ns = self.clock.now_ns();
        match self.budget.as_mut().map_or(Order::Keep, |budget| budget.look(now_ns, account)) {
            Order::Keep => {}
            Order::Open => {
                self.maps.forget_in_progress();
                for (program, tracepoint) in CALLS {
                    cx.kernel.attach(Hook::Tracepoint { program, tracepoint })?;
                }
                self.open = true;
                self.look.restart();
            }
            Order::Close => {
                for (program, _) in CALLS.into_iter().rev() {
                    cx.kernel.pause(program)?;
                }
                self.take()?;
                // What is closed meanwhile nobody sees: a number can be another file's afterwards.
                let open: Vec<(IoKey, IoStats)> = self.maps.io().collect();
                for (key, stats) in open {
                    self.end_io(key, &stats);
                    self.maps.forget_io(&key);
                }
                self.open = false;
            }
        }
        Ok(())
    }

    /// A slow call.
    fn slow_call(&mut self, call: &SlowCall, resolver: &mut Resolver) {
        self.slow_reported += 1;
        let duration_ns = call.end_ns.saturating_sub(call.start_ns);
        let among_slowest = self.slow.len() < MAX_SLOW
            || self.slow.keys().next().is_some_and(|(least, _)| *least < duration_ns);
        let of_interval =
            self.interval.slowest.as_ref().is_none_or(|slowest| slowest.duration_ns < duration_ns);
        let of_part = self.slow_by_part.wants(call.end_ns, duration_ns);
        if !among_slowest && !of_interval && !of_part {
            return;
        }
        let thread = ThreadKey { pid: call.pid, tid: call.tid };
        resolver.name_thread(thread);
        let allowed = self.lookups < MAX_LOOKUPS;
        self.lookups += 1;
        let slow = syscall::SlowCall {
            thread,
            process: resolver.tables.process_name(thread).to_owned(),
            syscall: abi::name(call.number as i32),
            kind: WaitKind::from_number(call.wait_kind).unwrap_or(WaitKind::Other),
            start_ns: call.start_ns,
            duration_ns,
            blocked_ns: call.blocked_ns,
            run_queue_ns: call.run_queue_ns,
            result: records::result(call.result),
            arguments: records::arguments(call, &self.redact, |descriptor| {
                // What is known of it from the time of the call, or else what it is now.
                let key = IoKey { pid: call.pid, descriptor: descriptor as u32 };
                let known = self.names.latest(key, call.start_ns).map(str::to_owned);
                known.or_else(|| {
                    let now = allowed.then(|| objects::descriptor(&self.networks, call.pid, descriptor));
                    now.flatten().map(|object| self.redact.object(&object))
                })
            }),
            stack: resolver.stack(call.stack),
        };
        if of_interval {
            self.interval.slowest = Some(slow.clone());
        }
        if of_part {
            self.slow_by_part.add(slow.clone());
        }
        self.slow.insert((duration_ns, call.start_ns), slow);
        if self.slow.len() > MAX_SLOW {
            self.slow.pop_first();
        }
    }

    /// A descriptor is used for the first time, or has been closed.
    fn io(&mut self, record: &IoRecord) {
        if record.closed != 0 {
            self.end_io(record.stats.key, &record.stats);
        } else {
            self.identify(record.stats.key, &record.stats, &record.name);
        }
    }

    /// Finds out what a descriptor is, unless that is known; in /proc if its `name` does not tell.
    fn identify(&mut self, key: IoKey, stats: &IoStats, name: &Name) {
        if self.names.of(key, stats).is_some() {
            return;
        }
        let told = records::object(&stats.on, name);
        let allowed = self.lookups < MAX_LOOKUPS;
        let proc = self.networks.proc_root();
        if told.is_none() || stats.on.kind == ObjectKind::Net as u32 {
            self.lookups += 1;
        }
        let now = || allowed.then(|| objects::descriptor(&self.networks, key.pid, key.descriptor.into()))?;
        let Some(object) = told.or_else(now) else { return };
        // If the process has ended, who reads first answers.
        let lives = || proc.join(key.pid.to_string()).exists();
        let serves = stats.listens != 0
            || (allowed && objects::serves(&self.networks, key.pid, &object))
            || (stats.first_wrote == 0 && !lives());
        let named = Named { object: self.redact.object(&object), serves };
        self.names.add(key, stats, named);
    }

    /// Adds what was done with a descriptor to what it was.
    fn end_io(&mut self, key: IoKey, stats: &IoStats) {
        let named = self.names.take(key, stats);
        add_io(&mut self.objects, key, stats, named.as_ref());
        self.objects_unlisted += io::add_up(&mut self.objects);
    }

    /// Takes the kernel's counts.
    fn take(&mut self) -> Result<()> {
        let passed = self.look.restart();
        if self.names.wants_open() {
            self.names.keep_open(&self.maps.io().map(|(key, stats)| (key, stats.first_ns)).collect());
        }
        self.lookups = 0;
        let mut alive: FxHashMap<u32, bool> = FxHashMap::default();
        let proc_root = self.networks.proc_root().to_owned();
        let mut is_alive =
            |pid: u32| *alive.entry(pid).or_insert_with(|| proc_root.join(pid.to_string()).exists());

        let mut rates: BTreeMap<CallKey, Rates> = BTreeMap::new();
        let mut gone = Vec::new();
        // Asked before counting: what has ended by then is counted to its end.
        let calls: Vec<(CallKey, bool)> = self
            .maps
            .calls()
            .map(|(key, _)| key)
            .collect::<Vec<_>>()
            .into_iter()
            .map(|key| (key, is_alive(key.pid)))
            .collect();
        let ended: FxHashSet<CallKey> =
            calls.iter().filter(|(_, alive)| !alive).map(|(key, _)| *key).collect();
        for (key, stats) in self.maps.calls() {
            let count = self.counts.entry(key).or_default();
            let calls = count.take(&stats);
            self.interval.calls += calls;
            if calls > 0 {
                rates.insert(key, Rates { calls, failed: Vec::new() });
            }
            if ended.contains(&key) {
                count.end();
                gone.push(key);
            }
        }
        gone.iter().for_each(|key| self.maps.forget_call(key));

        let mut gone = Vec::new();
        for (key, n) in self.maps.errors() {
            let taken = self.errors_taken.entry((key.call, key.errno)).or_default();
            let more = n.wrapping_sub(*taken);
            *taken = n;
            if more > 0 {
                self.interval.failed += more;
                *self.errors.entry(key.call).or_default().entry(key.errno).or_default() += more;
                if let Some(rates) = rates.get_mut(&key.call) {
                    rates.failed.push((key.errno, more));
                }
            }
            if ended.contains(&key.call) {
                gone.push(key);
            }
        }
        for key in gone {
            self.errors_taken.remove(&(key.call, key.errno));
            self.maps.forget_error(&key);
        }
        self.storms.look(passed, rates);

        let mut gone = Vec::new();
        for (key, stats) in self.maps.waits() {
            let waits = self.waits.entry(key).or_default();
            waits.take(&stats);
            if !is_alive(key.pid) {
                waits.end();
                gone.push(key);
            }
        }
        gone.iter().for_each(|key| self.maps.forget_waits(key));

        let (mut open, mut gone) = (Vec::new(), Vec::new());
        for (key, stats) in self.maps.io() {
            if is_alive(key.pid) { open.push((key, stats)) } else { gone.push((key, stats)) }
        }
        for (key, stats) in open {
            self.identify(key, &stats, &Name::EMPTY);
        }
        for (key, stats) in gone {
            self.end_io(key, &stats);
            self.maps.forget_io(&key);
        }
        counts::add_up_ended(&mut self.counts, &mut self.errors, &mut self.waits);
        // As many as one can read, and always the slowest.
        let told = std::mem::take(&mut self.slow_reported);
        if told > SLOW_WANTED {
            self.slow_ns = self.slow_ns.saturating_mul(2);
        } else if told < SLOW_WANTED / 10 {
            self.slow_ns = (self.slow_ns / 2).max(SLOW_NS.1);
        }
        self.maps.set_slow(self.slow_ns)
    }

    /// Time in calls by stack since this was last asked.
    fn time(&mut self, resolver: &mut Resolver) -> Vec<CallSample> {
        let mut samples = Vec::new();
        let mut gone = Vec::new();
        for (key, ns) in self.maps.time() {
            let taken = self.time_taken.entry(key).or_default();
            let new = ns.saturating_sub(*taken);
            *taken = ns;
            if new > 0 {
                let thread = ThreadKey { pid: key.pid, tid: key.tid };
                samples.push((thread, resolver.stack(key.stack), key.number, new));
            } else if !self.networks.proc_root().join(format!("{}/task/{}", key.pid, key.tid)).exists() {
                gone.push(key);
            }
        }
        for key in gone {
            self.time_taken.remove(&key);
            self.maps.forget_time(&key);
        }
        for (thread, ..) in &samples {
            resolver.name_thread(*thread);
        }
        samples
    }

    /// Everything so far.
    fn calls(&mut self, resolver: &mut Resolver) -> Result<syscall::Calls> {
        self.take()?;
        let counts: Vec<CallKey> = self.counts.keys().copied().collect();
        for key in counts {
            let tid = if key.tid == 0 { key.pid } else { key.tid };
            resolver.name_thread(ThreadKey { pid: key.pid, tid });
        }
        let tables = &resolver.tables;
        let process = |pid: u32| match pid {
            0 => "(others)".to_owned(),
            pid => tables.process_name(ThreadKey { pid, tid: pid }).to_owned(),
        };
        let mut calls: Vec<CallCount> = self
            .counts
            .iter()
            .map(|(key, count)| {
                let sums = count.sums.0.plus(count.sums.1);
                let errors = self.errors.get(key).into_iter().flatten();
                let mut errors: Vec<(String, u64)> =
                    errors.map(|(&errno, &n)| (records::errno(errno), n)).collect();
                errors.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
                let thread = ThreadKey { pid: key.pid, tid: key.tid };
                CallCount {
                    thread,
                    process: process(key.pid),
                    thread_name: match key.tid {
                        0 => String::new(),
                        _ => tables.thread_name(thread).to_owned(),
                    },
                    syscall: abi::name(key.number as i32),
                    lengths: count.lengths.summary(sums.ns),
                    blocked_ns: sums.blocked_ns,
                    run_queue_ns: sums.run_queue_ns,
                    errors,
                    unfinished: sums.unfinished,
                }
            })
            .collect();
        calls.sort_by_key(|count| std::cmp::Reverse((count.lengths.sum_ns, count.lengths.count)));
        let mut waits: Vec<KindWaits> = self
            .waits
            .iter()
            .map(|(key, waits)| KindWaits {
                pid: key.pid,
                process: process(key.pid),
                kind: WaitKind::from_number(key.kind).unwrap_or(WaitKind::Other),
                peer: match (records::peer(key), key.serves) {
                    (peer, 0) if !peer.is_empty() => self.redact.path_or_address(&peer),
                    (peer, _) => peer,
                },
                lengths: waits.lengths.summary(waits.sums.0 + waits.sums.1),
                stack: resolver.stack(waits.most.stack),
            })
            .collect();
        waits.sort_by_key(|waits| std::cmp::Reverse(waits.lengths.sum_ns));

        let now_ns = self.ended_ns.unwrap_or_else(|| self.clock.now_ns());
        let always = now_ns.saturating_sub(self.began_ns);
        let watched_ns = self.budget.as_ref().map_or(always, |budget| budget.watched_ns(now_ns));
        // What is still open is added to a copy: it will be asked for again.
        let mut objects = self.objects.clone();
        for (key, stats) in self.maps.io() {
            let named = self.names.of(key, &stats);
            add_io(&mut objects, key, &stats, named);
        }
        let mut activities = Vec::new();
        let mut listed = Vec::new();
        for ((pid, name), mut object) in objects {
            (object.io.pid, object.io.object, object.io.process) = (pid, name, process(pid));
            object.io.descriptors = object.descriptors.len() as u64;
            object.io.median_bytes = median_bytes(&object.sizes);
            activities.push(FdActivity {
                thread: ThreadKey { pid, tid: object.stats.tid },
                io: object.io.clone(),
                is_file: object.stats.on.kind == ObjectKind::File as u32,
                serves: object.serves,
                span_ns: object.stats.last_ns.saturating_sub(object.stats.first_ns).min(watched_ns),
                stack: resolver.stack(object.stats.most.stack),
                stack_share: object.stats.most.lead as f64 / object.stats.votes.max(1) as f64,
                looked_at: object.stats.votes,
            });
            listed.push(object.io);
        }
        listed.sort_by_key(|io| std::cmp::Reverse((io.ns, io.calls)));
        Ok(syscall::Calls {
            calls,
            waits,
            objects: listed,
            objects_unlisted: self.objects_unlisted,
            slow: self.slow.values().rev().cloned().collect(),
            slow_by_part: self.slow_by_part.clone(),
            chatty: chatty::find(activities),
            storms: self.storms.found(|key| (process(key.pid), abi::name(key.number as i32)), records::errno),
            watched_ns,
            windows: self.budget.as_ref().map_or(0, Budget::windows),
        })
    }
}

impl Probe for CallCollector {
    fn begin(&mut self, _cx: &mut Context<'_>) -> Result<()> {
        self.began_ns = self.clock.now_ns();
        Ok(())
    }

    fn record(&mut self, record: &Record, _stack: Option<StackId>, cx: &mut Context<'_>) -> Result<()> {
        match record {
            Record::SlowCall(call) => self.slow_call(call, cx.resolver),
            Record::Io(io) => self.io(io),
            _ => {}
        }
        Ok(())
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Result<()> {
        self.keep_within_budget(cx)?;
        if self.open && self.look.is_due() { self.take() } else { Ok(()) }
    }

    fn in_use(&mut self, used: &mut InUse) {
        used.totals(&mut self.in_calls);
        self.counts.keys().for_each(|key| used.thread(ThreadKey { pid: key.pid, tid: key.tid }));
        let processes = self.waits.keys().map(|key| key.pid).chain(self.objects.keys().map(|(pid, _)| *pid));
        processes.for_each(|pid| used.process(pid));
        let used = &mut used.stacks;
        used.extend(self.maps.time().map(|(key, _)| key.stack));
        used.extend(self.maps.waits().map(|(_, stats)| stats.most.stack));
        used.extend(self.maps.io().map(|(_, stats)| stats.most.stack));
        used.extend(self.waits.values().map(|waits| waits.most.stack));
        used.extend(self.objects.values().map(|object| object.stats.most.stack));
    }

    fn stop(&mut self, _cx: &mut Context<'_>) -> Result<()> {
        self.ended_ns = Some(self.clock.now_ns());
        Ok(())
    }

    /// Brings the time in system calls into the totals. A stack's outermost frame is its system call.
    fn flush(&mut self, _wanted: bool, cx: &mut Context<'_>) -> Result<()> {
        let resolver = &mut *cx.resolver;
        for (thread, stack, number, ns) in self.time(resolver) {
            let tables = &mut resolver.tables;
            let call = Frame {
                module: tables.module_id(Module::special(ModuleKind::Syscall)),
                address: number.into(),
            };
            let (mut frames, kernel_frames, end) = match stack.map(|stack| tables.stack(stack)) {
                Some(stack) => (stack.frames.into_vec(), stack.kernel_frames, stack.end),
                None => {
                    let module = tables.module_id(Module::special(ModuleKind::NotTaken));
                    (vec![Frame { module, address: 0 }], 0, StackEnd::None)
                }
            };
            frames.push(call);
            let stack = Stack { frames: frames.into(), kernel_frames, end };
            let time_ns = resolver.clock.now_ns();
            let sample = intern_stack(tables, stack)
                .map(|stack| Sample { time_ns, thread, cpu: 0, stack, weight: ns, cause: None })
                .filter(|sample| self.in_calls.add(sample));
            let Some(sample) = sample else {
                resolver.losses.add(Loss::OffCpuFull, 1);
                continue;
            };
            let name = resolver.name_to_record(thread);
            cx.sink.record(&sample, &resolver.tables, name.as_deref());
        }
        Ok(())
    }

    fn report(&mut self, extent: Extent, totals: &mut Totals, cx: &mut Context<'_>) -> Result<()> {
        if matches!(extent, Extent::Checkpoint | Extent::Run) {
            totals.calls = Some(self.calls(cx.resolver)?);
        }
        if extent == Extent::Run {
            totals.in_calls = Some(self.in_calls.snapshot());
        }
        Ok(())
    }

    fn interval(&mut self) -> Result<Option<Interval>> {
        if self.open {
            self.take()?;
        }
        Ok(Some(std::mem::take(&mut self.interval)))
    }
}

#[cfg(test)]
mod tests;
