//! Holds what watching system calls, or requests, costs to its price. It is told what has been earned and spent, and says
//! whether they are to be watched from now on.
//!
//! Of each nanosecond that the target runs, a share is earned; what the probe costs it is spent. While there is credit, they are
//! watched. Once it is used up they are watched in windows, at such distances that what they cost on average is earned. The
//! distances are drawn by lot, so that windows do not keep step with what the target does.

use std::time::Duration;

use profiler_common::{cost, loss::Tally};

use crate::{
    probe::spec::Context,
    process::{clock::Clock, usage::cpu_time_of},
};

/// How often what watching costs is compared with what it may cost.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How long a window is at least, ns.
pub const WINDOW_NS: u64 = 200_000_000;
/// Credit at the start, and the most that is kept, ns of CPU time.
const CREDIT_NS: (f64, f64) = (10_000_000.0, 50_000_000.0);
/// Shortest and longest time between windows, ns.
const GAP_NS: (f64, f64) = (100_000_000.0, 20_000_000_000.0);
/// Of the time of all CPUs, what calls of others may cost.
const OTHERS: f64 = 0.01;

/// What a call of the target costs besides the time in the programs, ns: the ways into and out of two programs, and the kernel's
/// slow way through calls that are traced; and what one of any other process costs. `bench syscall` measures them.
const CALL_NS: f64 = 250.0;
const OTHERS_CALL_NS: f64 = 130.0;
/// What bytes that are moved on a socket cost besides, ns: the ways into and out of the program, and the look at what TCP
/// receives. `bench requests` measures it.
const MOVE_NS: f64 = 100.0;
/// Most targets whose CPU time is asked for.
const MAX_ASKED: usize = 64;
/// What has been earned and spent since the start, ns.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Account {
    /// CPU time of the target, what the probes cost it included.
    pub target_ns: u64,
    /// What watching costs it.
    pub spent_ns: f64,
    /// What it costs other processes.
    pub others_ns: f64,
}

/// Whether to watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As before.
    Keep,
    /// Begin to watch.
    Open,
    /// Stop watching.
    Close,
}

/// The state between two looks.
#[derive(Clone, Debug)]
pub struct Budget {
    share: f64,
    cpus: f64,
    credit_ns: f64,
    others_credit_ns: f64,
    known: Account,
    looked_ns: u64,
    opened_ns: Option<u64>,
    /// When the next window is to open.
    due_ns: u64,
    /// What a second of watching costs the target, and others, on average; ns.
    price_ns: f64,
    others_price_ns: f64,
    watched_ns: u64,
    windows: u64,
    random: u64,
}

impl Budget {
    /// Watches from now on. `share` is the allowed part of the target's CPU time, from 0 to 1.
    pub fn new(share: f64, cpus: u32, now_ns: u64) -> Budget {
        Budget {
            share,
            cpus: f64::from(cpus.max(1)),
            credit_ns: CREDIT_NS.0,
            others_credit_ns: CREDIT_NS.0,
            known: Account::default(),
            looked_ns: now_ns,
            opened_ns: Some(now_ns),
            due_ns: 0,
            price_ns: 0.0,
            others_price_ns: 0.0,
            watched_ns: 0,
            windows: 0,
            random: now_ns | 1,
        }
    }

    /// The same with this machine's CPUs.
    pub fn here(share: f64, clock: &Clock) -> Budget {
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32);
        Budget::new(share, cpus, clock.now_ns())
    }

    /// For how long there has been watching, ns.
    pub fn watched_ns(&self, now_ns: u64) -> u64 {
        self.watched_ns + self.opened_ns.map_or(0, |opened| now_ns.saturating_sub(opened))
    }

    /// Whether watching all the time has become too dear.
    pub fn was_closed(&self) -> bool {
        self.watched_ns > 0
    }

    /// How many windows there were, once watching all the time had become too dear.
    pub fn windows(&self) -> u64 {
        self.windows
    }

    /// What is to be done now, by what has been earned and spent up to now.
    pub fn look(&mut self, now_ns: u64, account: Account) -> Order {
        let passed = now_ns.saturating_sub(self.looked_ns) as f64;
        let earned = self.share * account.target_ns.saturating_sub(self.known.target_ns) as f64;
        self.credit_ns =
            (self.credit_ns + earned - (account.spent_ns - self.known.spent_ns)).min(CREDIT_NS.1);
        let others = account.others_ns - self.known.others_ns;
        self.others_credit_ns =
            (self.others_credit_ns + OTHERS * self.cpus * passed - others).min(CREDIT_NS.1);
        if let Some(opened) = self.opened_ns
            && now_ns > self.looked_ns
        {
            let average = |price: f64, cost: f64| {
                let now = cost * 1e9 / passed;
                if price == 0.0 { now } else { 0.8 * price + 0.2 * now }
            };
            self.price_ns = average(self.price_ns, account.spent_ns - self.known.spent_ns);
            self.others_price_ns = average(self.others_price_ns, others);
            self.known = account;
            self.looked_ns = now_ns;
            let owes = self.credit_ns < 0.0 || self.others_credit_ns < 0.0;
            // A first window is closed as soon as it is too dear; later ones are as long as they are priced for.
            if owes && (self.windows == 0 || now_ns.saturating_sub(opened) >= WINDOW_NS) {
                return self.close(now_ns, opened);
            }
            return Order::Keep;
        }
        let busy =
            self.share * account.target_ns.saturating_sub(self.known.target_ns) as f64 / passed.max(1.0);
        self.known = account;
        self.looked_ns = now_ns;
        if now_ns < self.due_ns {
            return Order::Keep;
        }
        let window_s = WINDOW_NS as f64 / 1e9;
        let lacks = (self.price_ns * window_s - self.credit_ns) / busy.max(1e-9);
        let others_lack = (self.others_price_ns * window_s - self.others_credit_ns) / (OTHERS * self.cpus);
        let lacks = lacks.max(others_lack);
        if lacks > 0.0 {
            self.due_ns = now_ns + self.drawn(lacks);
            return Order::Keep;
        }
        self.windows += 1;
        self.opened_ns = Some(now_ns);
        Order::Open
    }

    fn close(&mut self, now_ns: u64, opened: u64) -> Order {
        self.watched_ns += now_ns.saturating_sub(opened);
        self.opened_ns = None;
        self.due_ns = now_ns + self.drawn(GAP_NS.0 * 2.0);
        Order::Close
    }

    /// Half to one and a half of a time, ns (xorshift64*, Vigna 2014).
    fn drawn(&mut self, ns: f64) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let part = (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64;
        (ns * (0.5 + part)).clamp(GAP_NS.0, GAP_NS.1) as u64
    }
}

/// What the targets have earned and watching system calls has cost so far.
pub fn of_calls(cx: &Context<'_>) -> Account {
    let others_ns = cx.kernel.tallied(Tally::CallsOfOthers) as f64 * OTHERS_CALL_NS;
    Account { target_ns: earned_by(cx), spent_ns: in_all(cx, cost::Probe::Syscall, CALL_NS), others_ns }
}

/// The same for requests. What is moved by others costs these a look at who it is.
pub fn of_requests(cx: &Context<'_>) -> Account {
    Account { target_ns: earned_by(cx), spent_ns: in_all(cx, cost::Probe::Request, MOVE_NS), others_ns: 0.0 }
}

/// CPU time of the targets, ns.
fn earned_by(cx: &Context<'_>) -> u64 {
    cx.targets.pids().iter().take(MAX_ASKED).filter_map(|&pid| cpu_time_of(pid)).sum()
}

/// What a probe has cost, if each run costs `besides` ns more than it measures itself; ns.
fn in_all(cx: &Context<'_>, probe: cost::Probe, besides: f64) -> f64 {
    let of = cx.kernel.cost(probe);
    of.ns as f64 + of.runs as f64 * besides
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK_NS: u64 = 100_000_000;

    /// Share of the target's time that is spent, and share of time in which calls are watched, in a minute: of a target that
    /// uses `cpu` CPUs and whose calls would cost it `cost` of its time if they were always watched, and others so many CPUs.
    fn minute(cpu: f64, cost: f64, others: f64) -> (f64, f64) {
        let mut budget = Budget::new(0.05, 2, 0);
        let (mut account, mut open) = (Account::default(), true);
        for i in 1..=600 {
            let target = cpu * LOOK_NS as f64;
            account.target_ns += target as u64;
            if open {
                account.spent_ns += cost * target;
                account.others_ns += others * LOOK_NS as f64;
            }
            match budget.look(i * LOOK_NS, account) {
                Order::Keep => {}
                Order::Open => open = true,
                Order::Close => open = false,
            }
        }
        let watched = budget.watched_ns(600 * LOOK_NS) as f64 / (600 * LOOK_NS) as f64;
        (account.spent_ns / account.target_ns as f64, watched)
    }

    #[test]
    fn what_is_cheap_is_watched_all_the_time() {
        assert_eq!(minute(0.5, 0.04, 0.001).1, 1.0);
        assert_eq!(minute(0.001, 0.04, 0.0).1, 1.0, "hardly runs");
    }

    #[test]
    fn what_is_dear_is_watched_in_windows_within_the_budget() {
        let (spent, watched) = minute(1.0, 0.2, 0.0);
        assert!((0.03..0.055).contains(&spent), "{spent}");
        assert!((0.15..0.3).contains(&watched), "{watched}");
    }

    #[test]
    fn other_processes_pay_little_too() {
        let watched = minute(0.1, 0.01, 0.2).1;
        assert!(
            (0.05..0.15).contains(&watched),
            "a fifth of a CPU, where two have one fiftieth of one to spare: {watched}"
        );
    }

    #[test]
    fn the_budget_holds_from_the_first_second() {
        let mut budget = Budget::new(0.05, 2, 0);
        let account = Account { target_ns: LOOK_NS, spent_ns: 2e7, others_ns: 0.0 };
        assert_eq!(budget.look(LOOK_NS, account), Order::Close);
    }
}
