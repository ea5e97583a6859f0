//! Holds the allocation probe to its price. On a thread of its own, it puts breakpoints in place and takes them away, so
//! that what they cost the target stays within a share of the CPU time that the target uses.
//!
//! Of each nanosecond the target runs, the share is earned; each hit of a breakpoint spends what a trap costs here
//! (measured at start-up) and what the kernel program took. While there is credit the breakpoints stay. When it is used
//! up, they are there only in windows, at such distances that what they cost on average is earned. A window must not open
//! when the target has just been busy, which is when credit comes in, or it would see what comes after its work, not the
//! work: so the time of the next one is drawn by lot when the last one closes, from an exponential distribution, which makes
//! any moment after a window as likely to be in one as any other. An allocation seen in a window stands for as many as
//! would have been seen since the window before: (time without + window) / window. A free of what was allocated in another
//! window stands for as many as the chance to see it says: (average time without + window) / window.
//!
//! What this cannot see: in a window the target runs slower. A program that allocates as fast as it can allocates less in it,
//! and estimates are too low by that.

use std::{
    collections::{BTreeMap, hash_map::RandomState},
    hash::BuildHasher as _,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use profiler_common::{alloc::AllocControl, cost::Probe};

use crate::{
    kernel::{
        costs::Costs,
        uprobe::{Attached, Breakpoint, Program, Programs},
    },
    probe::alloc::{
        maps::Control,
        programs::{ENTER, FREE},
        trap::{self, TrapCosts},
    },
    process::{clock::monotonic_ns, usage::cpu_time_of},
};

/// Length of a window, ns, about: long enough to outweigh putting the breakpoints in place, some 10 ms.
pub const WINDOW_NS: u64 = 20_000_000;
/// How often cost is compared with credit, and how often it is added up where there is no limit.
const LOOK_INTERVALS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));
/// Credit at the start, ns of the target's CPU time, and the most that is kept.
const CREDIT_NS: (f64, f64) = (20_000_000.0, 100_000_000.0);
/// Part of the allowed share that is spent; the rest is for what is not measured: to put breakpoints in place and to take
/// them away interrupts every CPU.
const SPENT: f64 = 0.8;
/// Shortest and longest time between windows on average, ns.
const GAP_NS: (f64, f64) = (40_000_000.0, 30_000_000_000.0);
/// How often a target is asked for its appetite for CPU time while there is no window, ns, and by how much it must have
/// grown for the next window to be drawn anew (the exponential distribution has no memory).
const ASK_NS: u64 = 1_000_000_000;
/// See above.
const MUCH: f64 = 4.0;
/// Weight of the newest window among all, when their price and the target's appetite for CPU time are averaged.
const NEWEST: f64 = 0.2;
/// The breakpoints stay again when they would cost less than this part of the allowed share.
const COMFORTABLE: f64 = 0.7;

/// So many windows at least before that is decided.
const ENOUGH_WINDOWS: u32 = 10;

/// What has been done, so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    /// Time since breakpoints were wanted, as long as they were, ns.
    pub watched_ns: u64,
    /// Part of that in which allocations counted, ns.
    pub seen_ns: u64,
    /// How often the breakpoints were there for a window only.
    pub windows: u64,
    /// Sum of what an allocation in each window stood for, and of its squares.
    pub weights: (f64, f64),
    /// Time since the last window, which no window stands for yet, ns.
    pub since_ns: u64,
    /// Hits of breakpoints.
    pub hits: u64,
    /// What they cost the target, ns.
    pub cost_ns: u64,
    /// The target's CPU time while breakpoints were wanted, that cost included, ns.
    pub cpu_ns: u64,
    /// What a hit costs without the program.
    pub traps: TrapCosts,
    /// Longest time to put the breakpoints in place and to take them away, ns.
    pub longest_attach_ns: u64,
    /// See above.
    pub longest_detach_ns: u64,
    /// Why breakpoints could not be put in place.
    pub failure: Option<String>,
    /// Orders that have been carried out.
    pub done: u64,
}

/// The thread, from outside.
pub struct Governor {
    commands: Option<Sender<Wanted>>,
    ordered: u64,
    status: Arc<Mutex<Status>>,
    thread: Option<JoinHandle<()>>,
}

/// Breakpoints by process.
pub type Wanted = BTreeMap<u32, Vec<Breakpoint>>;

/// Puts breakpoints into processes and takes them away, at its price.
pub trait Watcher {
    /// From now on these are wanted, and no others.
    fn want(&mut self, wanted: Wanted);

    /// Waits until the breakpoints are in place, but no longer than this.
    fn settle(&self, patience: Duration);

    /// What has been done.
    fn status(&self) -> Status;

    /// Takes all breakpoints away.
    fn stop(&mut self);
}

impl Governor {
    /// Starts the thread. `share` is the allowed part of the target's CPU time, `None` for no limit.
    pub fn start(programs: Programs, control: Control, costs: Costs, share: Option<f64>) -> Governor {
        let (commands, wanted) = channel();
        let status = Arc::new(Mutex::new(Status::default()));
        let shared = Arc::clone(&status);
        let thread = std::thread::spawn(move || {
            Worker::new(programs, control, costs, share, shared).run(&wanted);
        });
        Governor { commands: Some(commands), ordered: 0, status, thread: Some(thread) }
    }
}

impl Watcher for Governor {
    fn want(&mut self, wanted: Wanted) {
        if let Some(commands) = &self.commands {
            let _ended_by_itself = commands.send(wanted);
            self.ordered += 1;
        }
    }

    fn settle(&self, patience: Duration) {
        let start = Instant::now();
        while self.status().done < self.ordered && start.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn status(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn stop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

impl Drop for Governor {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Earned and spent.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Credit {
    /// Allowed part of the target's CPU time.
    share: f64,
    ns: f64,
}

impl Credit {
    fn new(share: f64) -> Credit {
        Credit { share, ns: CREDIT_NS.0 }
    }

    fn account(&mut self, cpu_ns: u64, cost_ns: f64) {
        self.ns = (self.ns + self.share * cpu_ns as f64 - cost_ns).min(CREDIT_NS.1);
    }

    /// In how long, on average, a window that costs `price_ns` is earned and what is owed paid back, ns; by a target that
    /// uses `busy` CPUs.
    fn gap_ns(&self, price_ns: f64, busy: f64) -> f64 {
        let gap = (price_ns - self.ns) / (self.share * busy).max(1e-9);
        gap.clamp(GAP_NS.0, GAP_NS.1)
    }
}

/// A window.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Window {
    length_ns: u64,
    /// What an allocation in it stands for.
    weight: u32,
    /// What the free of an object of another window stands for.
    free_weight: u32,
}

impl Window {
    /// The next one, after so long without where it is `mean_ns` on average. What weights lack to be whole numbers is
    /// carried over.
    fn next(gap_ns: u64, mean_ns: u64, carry: &mut f64) -> Window {
        let times = ((mean_ns + WINDOW_NS / 2) / WINDOW_NS).clamp(1, 1 << 20);
        let length_ns = mean_ns / times;
        let stands_for = (gap_ns + length_ns) as f64 / length_ns as f64 + *carry;
        // One would mean that everything was seen.
        let weight = stands_for.round().max(2.0);
        *carry = stands_for - weight;
        Window { length_ns, weight: weight as u32, free_weight: times as u32 + 1 }
    }
}

/// Whether breakpoints are there all the time that they are wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Always,
    /// Without since `closed_ns`, up to `open_ns`, which was drawn `late_ns` after that; from the draw on it takes
    /// `mean_ns` on average.
    Windows {
        closed_ns: u64,
        open_ns: u64,
        late_ns: u64,
        mean_ns: u64,
    },
}

/// What windows have been like, the newest most: what one costs, ns, and how many CPUs the target uses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Usual {
    price_ns: f64,
    busy: f64,
    windows: u32,
}

impl Usual {
    fn add(&mut self, price_ns: f64, busy: f64) {
        self.windows += 1;
        let part = NEWEST.max(1.0 / f64::from(self.windows));
        self.price_ns += part * (price_ns - self.price_ns);
        self.busy += part * (busy - self.busy);
    }
}

struct Worker {
    programs: Programs,
    control: Control,
    costs: Costs,
    credit: Option<Credit>,
    status: Arc<Mutex<Status>>,
    wanted: Wanted,
    attached: BTreeMap<u32, (usize, Vec<Attached>)>,
    mode: Mode,
    usual: Usual,
    /// CPU time the target has used so far while it was watched, ns.
    used_ns: u64,
    /// That and the time when the target's appetite was last asked for, ns.
    asked: (u64, u64),
    window: u32,
    carry: f64,
    traps: TrapCosts,
    /// As last accounted for: hits, cost, CPU time by process, and when.
    hits: u64,
    cost_ns: f64,
    cpu_ns: BTreeMap<u32, u64>,
    time_ns: u64,
    random: RandomState,
}

impl Worker {
    fn new(
        programs: Programs,
        control: Control,
        costs: Costs,
        share: Option<f64>,
        status: Arc<Mutex<Status>>,
    ) -> Worker {
        let mut worker = Worker {
            programs,
            control,
            costs,
            credit: share.map(|share| Credit::new(SPENT * share)),
            status,
            wanted: Wanted::new(),
            attached: BTreeMap::new(),
            mode: Mode::Always,
            usual: Usual::default(),
            used_ns: 0,
            asked: (0, monotonic_ns()),
            window: 0,
            carry: 0.0,
            traps: TrapCosts::default(),
            hits: 0,
            cost_ns: 0.0,
            cpu_ns: BTreeMap::new(),
            time_ns: monotonic_ns(),
            random: RandomState::new(),
        };
        match trap::measure(&worker.programs) {
            Ok(traps) => worker.traps = traps,
            Err(error) => worker
                .tell(|status| status.failure = Some(format!("measuring the cost of breakpoints: {error}"))),
        }
        let traps = worker.traps;
        worker.tell(|status| status.traps = traps);
        worker
    }

    fn run(&mut self, wanted: &Receiver<Wanted>) {
        loop {
            let mut ordered = false;
            let wait = match (self.wanted.is_empty(), self.credit) {
                (true, _) => Duration::MAX,
                (false, Some(_)) => LOOK_INTERVALS.0,
                (false, None) => LOOK_INTERVALS.1,
            };
            match wanted.recv_timeout(wait) {
                Ok(wanted) => {
                    self.account();
                    let before = std::mem::replace(&mut self.wanted, wanted);
                    for pid in self.wanted.keys().filter(|pid| !before.contains_key(pid)) {
                        self.cpu_ns.insert(*pid, cpu_time_of(*pid).unwrap_or(0));
                    }
                    // No window stands for the time in which nothing was wanted.
                    if before.is_empty()
                        && let (Mode::Windows { .. }, Some(credit)) = (self.mode, self.credit)
                    {
                        self.mode = self.next_window(credit, monotonic_ns());
                    }
                    self.take_away(|pid, wanted| !wanted.contains_key(&pid));
                    ordered = true;
                }
                Err(RecvTimeoutError::Timeout) => self.account(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if !self.wanted.is_empty() {
                self.step();
            }
            if ordered {
                self.tell(|status| status.done += 1);
            }
        }
        self.account();
        self.close();
    }

    /// Does what credit and mode say.
    fn step(&mut self) {
        match (self.mode, self.credit) {
            (Mode::Always, Some(credit)) if credit.ns < 0.0 && !self.attached.is_empty() => {
                let closed_ns = monotonic_ns();
                self.close();
                self.account();
                let busy = self.busy_lately();
                self.usual = Usual { busy, ..Usual::default() };
                self.mode = self.next_window(credit, closed_ns);
            }
            (Mode::Always, _) => {
                if self.attached.is_empty() {
                    self.window += 1;
                }
                self.allow(u64::MAX, Self::ALL);
                self.put_in_place();
            }
            (Mode::Windows { open_ns, .. }, Some(_)) if monotonic_ns() >= open_ns => self.open_window(),
            // A target that has become much busier earns the next window much earlier.
            (Mode::Windows { mean_ns, .. }, Some(credit)) if self.time_ns >= self.asked.1 + ASK_NS => {
                let busy = self.busy_lately();
                let sooner_ns = credit.gap_ns(self.usual.price_ns, busy);
                if sooner_ns < mean_ns as f64 / MUCH {
                    self.usual.busy = busy;
                    let drawn_ns = monotonic_ns() + self.draw(sooner_ns);
                    if let Mode::Windows { open_ns, mean_ns, .. } = &mut self.mode {
                        (*open_ns, *mean_ns) = (drawn_ns, sooner_ns as u64);
                    }
                }
            }
            (Mode::Windows { .. }, _) => {}
        }
    }

    /// How many CPUs the target has used since this was last asked.
    fn busy_lately(&mut self) -> f64 {
        let now = (self.used_ns, self.time_ns);
        let (cpu_ns, time_ns) = (now.0.saturating_sub(self.asked.0), now.1.saturating_sub(self.asked.1));
        self.asked = now;
        cpu_ns as f64 / time_ns.max(1) as f64
    }

    /// Draws the time of the next window by lot; on average it is what it takes to earn it.
    fn next_window(&self, credit: Credit, closed_ns: u64) -> Mode {
        let mean_ns = credit.gap_ns(self.usual.price_ns, self.usual.busy);
        let now = monotonic_ns();
        Mode::Windows {
            closed_ns,
            open_ns: now + self.draw(mean_ns),
            late_ns: now.saturating_sub(closed_ns),
            mean_ns: mean_ns as u64,
        }
    }

    /// A time of this mean, exponentially distributed, ns.
    fn draw(&self, mean_ns: f64) -> u64 {
        (-mean_ns * (1.0 - self.chance()).ln()) as u64
    }

    fn open_window(&mut self) {
        let Mode::Windows { closed_ns, open_ns: planned_ns, late_ns, mean_ns } = self.mode else { return };
        let cost_before = self.cost_ns;
        self.window += 1;
        self.allow(0, Self::BETWEEN);
        self.put_in_place();
        let open_ns = monotonic_ns();
        let late_ns = late_ns + open_ns.saturating_sub(planned_ns);
        let window = Window::next(open_ns.saturating_sub(closed_ns), late_ns + mean_ns, &mut self.carry);
        let Window { length_ns, weight, .. } = window;
        let closed_ns = open_ns + length_ns;
        self.mode = Mode::Windows { closed_ns, open_ns, late_ns, mean_ns };
        self.tell(|status| {
            status.windows += 1;
            status.since_ns = 0;
            status.seen_ns += length_ns;
            status.weights.0 += f64::from(weight);
            status.weights.1 += f64::from(weight).powi(2);
        });
        self.allow(closed_ns, window);
        std::thread::sleep(Duration::from_nanos(length_ns));
        self.close();
        self.account();
        let busy = self.busy_lately();
        self.usual.add(self.cost_ns - cost_before, busy);
        let Some(credit) = self.credit else { return };
        // What all the time would cost, and what it may.
        let all_the_time = self.usual.price_ns / WINDOW_NS as f64;
        let comfortable = all_the_time < COMFORTABLE * credit.share * self.usual.busy;
        self.mode = if comfortable && self.usual.windows >= ENOUGH_WINDOWS {
            Mode::Always
        } else {
            self.next_window(credit, closed_ns)
        };
    }

    /// All the time.
    const ALL: Window = Window { length_ns: 0, weight: 1, free_weight: 1 };
    /// Between windows: what is still seen there counts for nothing.
    const BETWEEN: Window = Window { length_ns: 0, weight: 1, free_weight: 2 };

    /// Lets what is allocated and freed count until then.
    fn allow(&mut self, until_ns: u64, window: Window) {
        let control = AllocControl {
            until_ns,
            window: self.window,
            weight: window.weight,
            free_weight: window.free_weight,
            length_ns: window.length_ns as u32,
        };
        if let Err(error) = self.control.set(control) {
            self.fail(&error.to_string());
        }
    }

    /// Puts what is wanted and not yet there in place.
    fn put_in_place(&mut self) {
        let start = monotonic_ns();
        for (&pid, breakpoints) in &self.wanted {
            let (done, links) = self.attached.entry(pid).or_default();
            let new = breakpoints.get(*done..).unwrap_or_default();
            if new.is_empty() {
                continue;
            }
            *done = breakpoints.len();
            match self.programs.attach(pid, new) {
                Ok(attached) => links.push(attached),
                // It may have ended.
                Err(_) if cpu_time_of(pid).is_none() => {}
                Err(error) => {
                    let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
                    status.failure.get_or_insert(format!("process {pid} cannot be probed: {error}"));
                }
            }
        }
        let took = monotonic_ns() - start;
        self.tell(|status| status.longest_attach_ns = status.longest_attach_ns.max(took));
    }

    fn take_away(&mut self, which: impl Fn(u32, &Wanted) -> bool) {
        let start = monotonic_ns();
        let wanted = &self.wanted;
        let pids: Vec<u32> = self.attached.keys().copied().filter(|pid| which(*pid, wanted)).collect();
        let mut gone: Vec<_> = pids.iter().filter_map(|pid| self.attached.remove(pid)).collect();
        if gone.is_empty() {
            return;
        }
        // All at once: each waits for all CPUs.
        let mut all = Attached::default();
        for (_, links) in &mut gone {
            links.iter_mut().for_each(|link| all.append(link));
        }
        drop(all);
        let took = monotonic_ns() - start;
        self.tell(|status| status.longest_detach_ns = status.longest_detach_ns.max(took));
    }

    fn close(&mut self) {
        self.allow(0, if self.mode == Mode::Always { Self::ALL } else { Self::BETWEEN });
        self.take_away(|_, _| true);
    }

    /// Books what has been earned and spent since this was last done.
    fn account(&mut self) {
        let now = monotonic_ns();
        let frequent_stepped = |program: &Program| {
            self.wanted.values().flatten().any(|breakpoint| {
                breakpoint.program == program && breakpoint.frequent && !breakpoint.emulated
            })
        };
        let trap = |stepped: bool| if stepped { self.traps.stepped_ns } else { self.traps.emulated_ns };
        let (call, free) = (trap(frequent_stepped(&ENTER)), trap(frequent_stepped(&FREE)));
        let mut hits = 0;
        let mut cost_ns = 0.0;
        for (probe, trap_ns) in [
            (Probe::AllocEnter, call.0),
            (Probe::AllocReturn, (call.1 - call.0).max(0.0)),
            (Probe::AllocLeave, self.traps.stepped_ns.0),
            (Probe::Free, free.0),
        ] {
            let cost = self.costs.of(probe);
            hits += cost.runs;
            cost_ns += cost.ns as f64 + cost.runs as f64 * trap_ns;
        }
        let mut cpu_ns = 0;
        for &pid in self.wanted.keys() {
            let Some(used) = cpu_time_of(pid) else { continue };
            let before = self.cpu_ns.insert(pid, used).unwrap_or(used);
            cpu_ns += used.saturating_sub(before);
        }
        self.used_ns += cpu_ns;
        let spent_ns = (cost_ns - self.cost_ns).max(0.0);
        if let Some(credit) = &mut self.credit {
            credit.account(cpu_ns, spent_ns);
        }
        let always = self.mode == Mode::Always && !self.attached.is_empty();
        let since_ns = match self.mode {
            Mode::Windows { closed_ns, .. } => now - closed_ns.min(now),
            Mode::Always => 0,
        };
        let passed = if self.wanted.is_empty() { 0 } else { now - self.time_ns };
        self.tell(|status| {
            status.watched_ns += passed;
            status.seen_ns += if always { passed } else { 0 };
            status.since_ns = since_ns;
            status.hits = hits;
            status.cost_ns = cost_ns as u64;
            status.cpu_ns += cpu_ns;
        });
        (self.hits, self.cost_ns, self.time_ns) = (hits, cost_ns, now);
    }

    /// Between 0 and 1.
    fn chance(&self) -> f64 {
        (self.random.hash_one(monotonic_ns()) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn fail(&self, what: &str) {
        self.tell(|status| {
            status.failure.get_or_insert_with(|| what.to_owned());
        });
    }

    fn tell(&self, what: impl FnOnce(&mut Status)) {
        what(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests;
