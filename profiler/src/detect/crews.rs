//! Threads as rules judge them: one that lived for a good part of the run by itself; those of a process that came and went, as
//! of a server that starts a thread for each connection, together. What one of these did in its few milliseconds says nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{report::Run, stack::ThreadKey, wait::ThreadTime};

/// A thread that lived for less than this part of the run is one of those that came and went.
const SHORT: u64 = 4;

/// One thread, or those that came and went.
#[derive(Clone, Debug)]
pub struct Crew {
    /// Its times; of several their sums, and the key of the one that ran longest.
    pub time: ThreadTime,
    /// How many there were at once, on average, of those that came and went.
    pub at_once: Option<f64>,
    /// Threads of its process that are no part of it.
    others: BTreeSet<ThreadKey>,
    /// Of the run, ns.
    run_ns: u64,
}

/// Whether a thread is one of those that came and went.
pub fn is_short(run: &Run, time: &ThreadTime) -> bool {
    time.others > 0 || time.wall_ns < run.cpu.accounts.duration_ns / SHORT
}

/// All of a run.
pub fn crews(run: &Run) -> Vec<Crew> {
    let duration_ns = run.cpu.accounts.duration_ns.max(1);
    let mut crews = Vec::new();
    let mut short: BTreeMap<(u32, &str), Vec<&ThreadTime>> = BTreeMap::new();
    let mut threads: BTreeMap<u32, Vec<ThreadKey>> = BTreeMap::new();
    for time in run.blocking.iter().flat_map(|blocking| &blocking.threads) {
        threads.entry(time.thread.pid).or_default().push(time.thread);
        let main = time.thread.tid == time.thread.pid;
        // What is added up of several processes is nobody's.
        if time.thread == ThreadKey::OTHERS || time.wall_ns == 0 {
            continue;
        }
        if main || !is_short(run, time) {
            crews.push(Crew {
                time: time.clone(),
                at_once: None,
                others: BTreeSet::new(),
                run_ns: duration_ns,
            });
        } else {
            short.entry((time.thread.pid, &time.name)).or_default().push(time);
        }
    }
    for mut times in short.into_values() {
        times.sort_by_key(|time| std::cmp::Reverse((time.others == 0, time.on_cpu_ns)));
        let mut sum = ThreadTime::clone(times[0]);
        times.iter().skip(1).for_each(|time| sum.add(time));
        // One thread alone is told as what it is.
        let at_once = (sum.others > 0).then_some(sum.wall_ns as f64 / duration_ns as f64);
        let own: BTreeSet<ThreadKey> = times.iter().map(|time| time.thread).collect();
        let of_process = threads.get(&sum.thread.pid).filter(|_| at_once.is_some()).into_iter().flatten();
        let others = of_process.filter(|of| !own.contains(of)).copied().collect();
        crews.push(Crew { time: sum, at_once, others, run_ns: duration_ns });
    }
    crews
}

impl Crew {
    /// Which part of its time a time of it is, from 0 to 1: of the run's time, if it lived for too little of that.
    pub fn share(&self, ns: u64) -> f64 {
        self.part(ns, SHORT).min(1.0)
    }

    /// The same where it is to decide a whole run: of half of that at least.
    pub fn share_of_run(&self, ns: u64) -> f64 {
        self.part(ns, 2)
    }

    fn part(&self, ns: u64, of_run: u64) -> f64 {
        ns as f64 / self.time.wall_ns.max(self.run_ns / of_run).max(1) as f64
    }

    /// How many threads there were at once.
    pub fn number(&self) -> usize {
        self.at_once.map_or(1, |at_once| at_once.round().max(1.0) as usize)
    }

    /// Who it is, with its process.
    pub fn who(&self) -> String {
        let ThreadTime { process, name, thread, .. } = &self.time;
        match self.at_once {
            None => format!("thread {name} of {process} (pid {})", thread.pid),
            Some(_) => format!("each of {} of {process} (pid {})", short_lived(self.number()), thread.pid),
        }
    }

    /// Whether it is this thread's crew.
    pub fn has(&self, thread: ThreadKey) -> bool {
        let of_process = thread.pid == self.time.thread.pid && !self.others.contains(&thread);
        thread == self.time.thread || (self.at_once.is_some() && of_process)
    }
}

/// So many threads that come and go, at once.
pub fn short_lived(number: usize) -> String {
    match number {
        0 | 1 => "the short-lived threads".to_owned(),
        n => format!("{n} short-lived threads"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{report::fixtures, wait::Blocking};

    #[test]
    fn who_comes_and_goes_is_judged_together() {
        let mut run = fixtures::run(&[]);
        run.cpu.accounts.duration_ns = 1_000;
        let thread = |tid, wall_ns, on_cpu_ns, others| ThreadTime {
            thread: ThreadKey { pid: 7, tid },
            process: "app".into(),
            name: "worker".into(),
            wall_ns,
            on_cpu_ns,
            others,
            ..ThreadTime::default()
        };
        let nobody = ThreadTime { thread: ThreadKey::OTHERS, wall_ns: 5_000, ..ThreadTime::default() };
        let threads = vec![
            thread(7, 10, 10, 0),
            thread(8, 900, 90, 0),
            thread(9, 100, 100, 0),
            thread(0, 1_900, 300, 20),
            nobody,
        ];
        run.blocking = Some(Blocking { threads, ..Blocking::default() });
        let crews = crews(&run);
        let told: Vec<_> = crews.iter().map(|of| (of.who(), of.share(of.time.on_cpu_ns))).collect();
        assert_eq!(
            told,
            [
                ("thread worker of app (pid 7)".to_owned(), 0.04),
                ("thread worker of app (pid 7)".to_owned(), 0.1),
                ("each of 2 short-lived threads of app (pid 7)".to_owned(), 0.2),
            ]
        );
        assert!(crews[2].has(ThreadKey { pid: 7, tid: 99 }) && !crews[1].has(ThreadKey { pid: 7, tid: 99 }));
        assert_eq!((crews[2].time.thread.tid, crews[2].time.others), (9, 21));
    }
}
