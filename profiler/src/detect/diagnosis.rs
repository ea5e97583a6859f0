//! The verdict: what kind of bottleneck, in one sentence. One table decides, from findings and figures of the run.

mod blind;
pub mod doubts;

use std::{collections::BTreeSet, ops::RangeInclusive};

use self::{
    blind::{FEW_SAMPLES, GROWTH_NS, SHORT_NS, blind, more},
    doubts::doubts,
};
use crate::{
    detect::{
        blocked::heaviest,
        crews::{Crew, crews},
        hotspot,
        other_end::{most_awaited, others},
        rules, served,
        words::{at, bottleneck, by_function, hottest, is_of_libc, most_in, own, path, place, tail},
    },
    model::{
        cause::WaitCause,
        finding::{Bottleneck, Finding, Severity, Verdict},
        function::PROFILER_ITSELF,
        names::short,
        report::{ProfileStack, Run},
        request::Exchanges,
        stack::ThreadKey,
        units::{count, time},
    },
};

/// One thread that is on a CPU for so much of the time has no time for more, of wall time.
const BUSY: f64 = 0.8;
/// Waiting for so much of the time is what decides, of wall time.
const WAITS: f64 = 0.2;
/// What explains nearly all of the time comes before what warns and costs little, of wall time.
const NEARLY_ALL: f64 = 0.8;
/// A target that is on CPUs for less of one is idle.
const IDLE: f64 = 0.05;
/// One place in which threads sleep for so much of their time is why nothing happens.
const ASLEEP: f64 = 0.5;
/// Parts of the names of functions that sleep and try again.
const RETRIES: [&str; 3] = ["busy", "retry", "backoff"];
/// Use of one CPU, no less and no more.
const ONE_CPU: RangeInclusive<f64> = 0.9..=1.05;
/// One process has so much of it, of all its CPU time.
const ALONE: f64 = 0.95;
/// With the work of a runtime beside it, where several requests wait to be answered.
const ONE_CPU_AND_MORE: RangeInclusive<f64> = 0.9..=1.2;
/// So many requests are in progress at once where they wait for each other.
const SEVERAL: f64 = 2.0;

/// A request that takes longer is slow, however seldom it comes, ns.
const SLOW_NS: u64 = 100_000_000;
/// Requests that all take as long, without work, wait for time to pass: a shorter while may be the network's, ns.
const TIMED_NS: u64 = 30_000_000;
/// Requests of one kind that are being answered for so much of the time matter, of wall time.
const SERVES: f64 = 0.1;

/// The figures that decide.
struct Signals<'a> {
    run: &'a Run,
    wall_ns: u64,
    /// Share of one CPU that the target used.
    cpu: f64,
    /// Who is busiest, and its share of wall time on a CPU.
    busiest: Option<(Crew, f64)>,
    /// The longest wait that is not idle: whose, cause, share of its wall time.
    waits: Option<(Crew, WaitCause, f64)>,
    /// The worst finding that warns.
    worst: Option<(usize, &'a Finding)>,
    /// What explains a quiet target, though nothing is wrong with it.
    explains: Option<(usize, &'a Finding)>,
}

/// The decisions, in their order: the first that fits is the verdict.
const DECISIONS: [fn(&Signals<'_>) -> Option<Verdict>; 14] = [
    something_wrong,
    saturated,
    waiting,
    explained,
    too_short,
    grown,
    in_line,
    serving,
    one_at_a_time,
    timed,
    asleep,
    working,
    for_child,
    idle,
];

/// Judges a run whose findings are known.
pub fn verdict(run: &Run) -> Verdict {
    let signals = Signals::of(run);
    let mut verdict =
        DECISIONS.iter().find_map(|decide| decide(&signals)).unwrap_or_else(|| unknown(&signals));
    verdict.blind = blind(run);
    verdict.doubts = doubts(run);
    verdict
}

impl<'a> Signals<'a> {
    fn of(run: &'a Run) -> Signals<'a> {
        let wall_ns = run.cpu.accounts.duration_ns;
        let threads = crews(run);
        let busiest = threads.iter().map(|of| (of.clone(), of.share_of_run(of.time.on_cpu_ns)));
        let busiest = busiest.max_by(|a, b| a.1.total_cmp(&b.1));
        let waits =
            threads.iter().flat_map(|of| of.time.blocked.iter().map(move |&(cause, ns)| (of, cause, ns)));
        let waits = waits
            .filter(|(_, cause, _)| !cause.is_idle() && *cause != WaitCause::Other)
            .filter(|(of, cause, _)| {
                *cause != WaitCause::Network || served::needs_answers(run, of.time.thread.pid)
            })
            .map(|(of, cause, ns)| (of.clone(), cause, of.share_of_run(ns)))
            .max_by(|a, b| a.2.total_cmp(&b.2));
        let sampled = run.cpu.estimated_ns(run.cpu.total) as f64 / wall_ns.max(1) as f64;
        let measured: u64 =
            run.blocking.iter().flat_map(|blocking| &blocking.threads).map(|of| of.on_cpu_ns).sum();
        let found = || run.findings.iter().enumerate();
        // What a server awaits is told by the requests that it answers.
        let served = run.requests.iter().flat_map(|requests| requests.served());
        let serving: BTreeSet<u32> = served.filter(|of| of.exchanges() > 0).map(|of| of.pid).collect();
        let explains = |of: &Finding| {
            let of_requests = of.rule == rules::slow_peer::RULE.name && serving.contains(&of.process.pid);
            of.severity == Severity::Info && of.cost.share_of_wall >= WAITS && !of_requests
        };
        Signals {
            run,
            wall_ns,
            cpu: if run.blocking.is_some() { measured as f64 / wall_ns.max(1) as f64 } else { sampled },
            busiest,
            waits,
            worst: found().find(|(_, of)| of.severity >= Severity::Warning),
            explains: found().find(|(_, of)| explains(of)),
        }
    }

    /// Where most of the CPU time goes, with its share of the samples: the program's own function, what it calls included, or
    /// the function that is hottest itself, whichever explains more.
    fn hottest(&self) -> Option<String> {
        let profile = &self.run.cpu;
        let itself = hotspot::hotspots(profile).into_iter().find(|of| of.function != PROFILER_ITSELF)?;
        let share = itself.self_samples as f64 / profile.total.max(1) as f64;
        if let Some((own, of_own, _)) = hottest(self.run, |_| true).filter(|(_, of_own, _)| *of_own >= share)
        {
            return Some(format!("{:.0} % of that in {}", 100.0 * of_own, at(own)));
        }
        let location = itself.location.filter(|location| !is_of_libc(location));
        let place = location.map_or_else(String::new, |location| format!(" ({})", tail(&location)));
        Some(format!("{:.0} % of that in {}{place}", 100.0 * share, short(&itself.function)))
    }

    /// How sure shares of CPU time are.
    fn samples(&self) -> String {
        let samples = self.run.cpu.total;
        let error = 100.0 / (samples.max(1) as f64).sqrt();
        match self.run.blocking {
            Some(_) if samples == 0 => "times are measured; there was nothing to sample".to_owned(),
            Some(_) => format!(
                "times are measured, functions sampled ({}, ± {error:.0} %)",
                count(samples, "sample")
            ),
            None => format!("sampled ({}, ± {error:.0} %)", count(samples, "sample")),
        }
    }

    fn verdict(&self, lacks: Bottleneck, sentence: String, share: f64) -> Verdict {
        Verdict {
            bottleneck: lacks,
            sentence,
            share_of_wall: share.min(1.0),
            certainty: self.samples(),
            advice: String::new(),
            more: "",
            finding: None,
            blind: Vec::new(),
            doubts: Vec::new(),
        }
    }
}

fn from_finding(signals: &Signals<'_>, (at, of): (usize, &Finding)) -> Verdict {
    Verdict {
        advice: of.advice.clone(),
        finding: Some(at),
        more: more(signals.run, of.bottleneck),
        ..signals.verdict(of.bottleneck, of.title.clone(), of.cost.share_of_wall)
    }
}

/// A finding that warns is the verdict, the worst one.
fn something_wrong(signals: &Signals<'_>) -> Option<Verdict> {
    let worst = signals.worst?;
    // What warns and costs little does not hide what explains nearly all of the time.
    let explains = signals.explains.filter(|(_, of)| {
        let little = worst.1.severity < Severity::Critical && worst.1.cost.bytes_per_s <= 0.0;
        let most = of.cost.share_of_wall >= NEARLY_ALL;
        little && worst.1.cost.ns > 0 && most && of.cost.share_of_wall > 5.0 * worst.1.cost.share_of_wall
    });
    Some(from_finding(signals, explains.unwrap_or(worst)))
}

/// A thread, or all CPUs, have no time left.
fn saturated(signals: &Signals<'_>) -> Option<Verdict> {
    let mut found = signals.run.findings.iter().enumerate();
    if let Some(bound) = found.find(|(_, of)| of.rule == rules::cpu_bound::RULE.name) {
        return Some(from_finding(signals, bound));
    }
    let cpus = f64::from(signals.run.cpu.meta.cpus.max(1));
    let full = signals.cpu >= BUSY * cpus;
    let (who, share) = match &signals.busiest {
        Some((crew, share)) if *share >= BUSY => (format!("{} runs", crew.who()), *share),
        _ if full => ("the target uses all CPUs".to_owned(), (signals.cpu / cpus).min(1.0)),
        // Without the times of threads it is not known whose the time is.
        None if signals.cpu >= BUSY => ("the target runs".to_owned(), signals.cpu.min(1.0)),
        _ => return None,
    };
    let hottest = signals.hottest().map_or_else(String::new, |hottest| format!(", {hottest}"));
    Some(Verdict {
        advice: "make the functions below cheaper, or divide the work among more threads or processes"
            .to_owned(),
        more: more(signals.run, Bottleneck::Cpu),
        ..signals.verdict(
            Bottleneck::Cpu,
            format!("{who} {:.0} % of the time{hottest}", 100.0 * share),
            share,
        )
    })
}

/// A thread waits for something it needs, though never for long at once.
fn waiting(signals: &Signals<'_>) -> Option<Verdict> {
    let (crew, cause, share) = signals.waits.as_ref().filter(|(.., share)| *share >= WAITS)?;
    let (cause, share) = (*cause, *share);
    let lacks = bottleneck(cause);
    let place = waited_in(signals.run, crew, cause);
    let idle = matches!(cause, WaitCause::Network | WaitCause::Pipe);
    let whom = idle.then(|| most_awaited(signals.run, crew.time.thread.pid, cause)).flatten();
    let sentence = format!(
        "{:.0} % of the time of {} is waiting for {}{}{place}",
        100.0 * share,
        crew.who(),
        cause.words(),
        whom.as_deref().map_or_else(String::new, |whom| format!(" ({whom})"))
    );
    let advice = match whom {
        Some(_) => "if that is late: profile that process; if it is only the next request, all is well",
        None if idle => {
            "find out whether that is the next request or an answer it needs: who is at the other end?"
        }
        None => "see the waits below: what holds it, and whether it can be avoided",
    };
    Some(Verdict {
        advice: advice.to_owned(),
        more: more(signals.run, lacks),
        ..signals.verdict(lacks, sentence, share)
    })
}

/// Where a thread waits most for something.
fn waited_in(run: &Run, crew: &Crew, cause: WaitCause) -> String {
    let stacks = run.off_cpu.iter().flat_map(|profile| &profile.stacks);
    let own = stacks.filter(|of| crew.has(of.thread) && of.cause == Some(cause));
    let most = own.max_by_key(|of| of.weight);
    let function =
        most.and_then(|of| path(run.names(), &of.frames).last().map(|function| function.name.clone()));
    function.map_or_else(String::new, |function| format!(", most of it in {function}"))
}

/// Nothing is wrong with the target, and something explains why it is quiet.
fn explained(signals: &Signals<'_>) -> Option<Verdict> {
    signals.explains.map(|explains| from_finding(signals, explains))
}

fn too_short(signals: &Signals<'_>) -> Option<Verdict> {
    let blind = signals.run.blocking.is_none() && signals.run.cpu.total < FEW_SAMPLES;
    (signals.wall_ns < SHORT_NS / 5 || blind).then(|| {
        let sentence = format!(
            "too little was seen to tell: {} in {}",
            count(signals.run.cpu.total, "sample"),
            time(signals.wall_ns)
        );
        Verdict {
            advice: if signals.run.cpu.accounts.targets_ended {
                "it has ended: start it under the profiler (profiler -- COMMAND), with more to do"
            } else {
                "look for longer (-d 30s), while the target is slow"
            }
            .to_owned(),
            ..signals.verdict(Bottleneck::Unknown, sentence, 0.0)
        }
    })
}

/// No thread lacks anything, and memory has grown, though not so steadily that it must go on.
fn grown(signals: &Signals<'_>) -> Option<Verdict> {
    let mut found = signals.run.findings.iter().enumerate();
    let grown = found.find(|(_, of)| of.rule == rules::memory_growing::RULE.name)?;
    (signals.wall_ns >= GROWTH_NS).then(|| from_finding(signals, grown))
}

/// No thread lacks anything, and yet requests take their time: what that goes to is all that can make them faster.
fn serving(signals: &Signals<'_>) -> Option<Verdict> {
    let (peer, route, goes) = served::followed(signals.run).max_by_key(|(_, route, _)| route.first.sum_ns)?;
    let part = served::most(goes);
    let share = served::share_of_wall(signals.run, route);
    let matters = goes.total_ns >= SLOW_NS || (goes.total_ns >= served::SOON_NS && share >= SERVES);
    if !matters || part.lacks == Bottleneck::None || 2 * part.ns < goes.total_ns {
        return None;
    }
    // Other threads may ask for it, and hand over the answers.
    let asks = 2.0 * served::awaited(signals.run, peer.pid) >= served::in_progress(signals.run, peer.pid);
    if part.ns == goes.park_ns && asks {
        return None;
    }
    let of_it = 100.0 * part.ns as f64 / goes.total_ns as f64;
    let place = match served::spent_in(signals.run, peer, route, part.lacks) {
        // Too little is known of its own threads' work: what the process does stands for it.
        None => spent_by_process(signals.run, peer, part.lacks),
        own => most_in(own),
    };
    let advice = match part.lacks {
        Bottleneck::Cpu => "no thread lacks time: only a cheaper way to answer makes these requests faster",
        Bottleneck::CpuStarvation => {
            "they need a CPU sooner: fewer threads, more CPUs, or less work beside them"
        }
        Bottleneck::Lock => {
            "requests get faster when what they wait for is held for less time (--details: the slowest ones)"
        }
        _ => "no thread lacks time: requests get faster with less of that (--details: the slowest ones)",
    };
    Some(Verdict {
        advice: advice.to_owned(),
        more: more(signals.run, part.lacks),
        ..signals.verdict(
            part.lacks,
            format!(
                "{} takes {}, {of_it:.0} % of it {}{place}",
                served::what(peer, route),
                time(goes.total_ns),
                part.what
            ),
            share * part.ns as f64 / goes.total_ns as f64,
        )
    })
}

/// Where a process mostly computes, or waits for what it lacks, as the end of a sentence.
fn spent_by_process(run: &Run, peer: &Exchanges, lacks: Bottleneck) -> String {
    match lacks {
        Bottleneck::Cpu => {
            hottest(run, |of| of.pid == peer.pid).map_or_else(String::new, |(function, share, _)| {
                format!("; {:.0} % of the CPU time of {} is in {}", 100.0 * share, peer.process, at(function))
            })
        }
        Bottleneck::CpuStarvation | Bottleneck::Network => String::new(),
        lacks => {
            let stack = heaviest(run, peer.pid, &|cause| bottleneck(cause) == lacks).0;
            let function = stack.and_then(|stack| place(run.names(), &stack.frames));
            function.map_or_else(String::new, |function| format!(", in {}", at(function)))
        }
    }
}

/// How soon requests are answered at the port with most of them, as the end of a sentence.
fn answers(run: &Run) -> String {
    let served = run.requests.iter().flat_map(|requests| requests.served());
    let most = served.filter(|peer| peer.exchanges() > 0).max_by_key(|peer| peer.exchanges());
    most.map_or_else(String::new, |peer| {
        let Exchanges { first, peer, .. } = peer;
        format!("; it answers at {peer} in {} (p50), {} (p99)", time(first.p50_ns), time(first.p99_ns))
    })
}

/// Several threads together use one CPU, neither less nor more: that is what a program looks like in which one task at a time
/// can run, whatever thread it is on (goroutines that queue for a mutex; an interpreter's lock).
fn one_at_a_time(signals: &Signals<'_>) -> Option<Verdict> {
    let processes = signals.run.blocking.as_ref()?.on_cpu_by_process();
    // Of several processes, and of requests that do not wait for each other, it is chance.
    let all: u64 = processes.values().sum();
    let alone = processes.values().any(|ns| *ns as f64 >= ALONE * all as f64);
    let mut served = signals.run.requests.iter().flat_map(|requests| requests.served());
    let serves = served.any(|of| of.exchanges() > 0);
    (ONE_CPU.contains(&signals.cpu) && alone && !serves).then(|| one_by_one(signals, "")).flatten()
}

/// The same, where requests wait in line for that.
fn in_line(signals: &Signals<'_>) -> Option<Verdict> {
    let served = signals.run.requests.iter().flat_map(|requests| requests.served());
    let pids: BTreeSet<u32> = served.map(|of| of.pid).collect();
    // Those that wait for others do not wait for each other.
    let here = |pid| served::in_progress(signals.run, pid) - served::awaited(signals.run, pid);
    let most = pids.into_iter().map(here).fold(0.0, f64::max);
    let waits = most >= SEVERAL && ONE_CPU_AND_MORE.contains(&signals.cpu);
    waits.then(|| one_by_one(signals, &format!(" while {most:.0} requests are in progress"))).flatten()
}

fn one_by_one(signals: &Signals<'_>, while_what: &str) -> Option<Verdict> {
    let run = signals.run;
    if run.cpu.meta.cpus < 2 || run.blocking.is_none() {
        return None;
    }
    let hottest = signals.hottest().map_or_else(String::new, |hottest| format!(", {hottest}"));
    let sentence = format!(
        "the target's threads together use {:.0} % of one CPU{while_what}{hottest}: as much as one task at a time can use",
        100.0 * signals.cpu
    );
    Some(Verdict {
        advice: "if more should run at once: look for what all tasks queue for (one lock, one task)"
            .to_owned(),
        more: more(run, Bottleneck::Cpu),
        ..signals.verdict(Bottleneck::Cpu, sentence, signals.cpu.min(1.0))
    })
}

/// Requests take their time without work, and all the same time: tasks of a runtime sleep, which no thread does.
fn timed(signals: &Signals<'_>) -> Option<Verdict> {
    let run = signals.run;
    let served = run.requests.iter().flat_map(|requests| requests.served());
    let of = served.filter(|of| of.exchanges() >= 50).max_by_key(|of| of.first.sum_ns)?;
    let in_progress = served::in_progress(run, of.pid);
    let same = of.first.p99_ns as f64 <= served::SAME * of.first.p50_ns as f64;
    // Neither computes, which would be some of the CPU for each in progress, nor awaits others.
    let works = 10.0 * (signals.cpu + served::awaited(run, of.pid)) > in_progress;
    // Who asks by a protocol whose answers are not told apart may wait for these.
    let asked = run.requests.iter().flat_map(|requests| requests.asked());
    if asked.filter(|peer| peer.pid == of.pid).any(|peer| peer.multiplexed > 0) {
        return None;
    }
    // What takes very long waits for work itself, as who asked for it knows.
    if !same || works || !(TIMED_NS..served::LONG_POLL_NS).contains(&of.first.p50_ns) {
        return None;
    }
    let sentence = format!(
        "each request at {} of {} takes {}, all the same time (p99 {}), without work and without asking anybody: \
         it waits inside the program",
        of.peer,
        of.who(),
        time(of.first.p50_ns),
        time(of.first.p99_ns)
    );
    Some(Verdict {
        advice:
            "look for what sleeps in its handlers, or for a lock or queue that all of them wait for in turn"
                .to_owned(),
        more: more(run, Bottleneck::Sleep),
        ..signals.verdict(Bottleneck::Sleep, sentence, in_progress.min(1.0))
    })
}

/// It works, and has time left.
fn working(signals: &Signals<'_>) -> Option<Verdict> {
    (signals.cpu >= IDLE).then(|| {
        let hottest = signals.hottest().map_or_else(String::new, |hottest| format!(", {hottest}"));
        let sentence = format!(
            "no bottleneck was found: the target uses {:.0} % of one CPU{hottest}, and waits the rest of the time{}{}",
            100.0 * signals.cpu,
            answers(signals.run),
            others(signals.run)
        );
        Verdict { more: more(signals.run, Bottleneck::None), ..signals.verdict(Bottleneck::None, sentence, signals.cpu) }
    })
}

/// It does nothing because its own functions sleep: they may do so for want of work, and may try for something again and again.
fn asleep(signals: &Signals<'_>) -> Option<Verdict> {
    let run = signals.run;
    let names = run.names();
    let asleep = || {
        let stacks = run.off_cpu.iter().flat_map(|profile| &profile.stacks);
        stacks.filter(|of| of.cause == Some(WaitCause::Sleep))
    };
    let (here, ns, stack) = by_function(names, asleep(), |stack| own(names, &stack.frames)).most?;
    let is_here = |of: &&ProfileStack| own(names, &of.frames).is_some_and(|own| own.name == here.name);
    let threads: BTreeSet<ThreadKey> = asleep().filter(is_here).map(|of| of.thread).collect();
    let share = ns as f64 / (threads.len() as u64 * signals.wall_ns).max(1) as f64;
    // Of a target that works, who works must be who sleeps.
    let works = signals.busiest.as_ref().filter(|_| signals.cpu >= IDLE);
    let sleeps = works.is_none_or(|(crew, _)| threads.iter().any(|thread| crew.has(*thread)));
    if share < ASLEEP || !sleeps {
        return None;
    }
    // By the name of what it called there one may know why.
    let called = path(names, &stack.frames).into_iter().skip_while(|of| *of != here).skip(1);
    let retries = called.into_iter().find(|of| {
        let name = of.name.to_ascii_lowercase();
        RETRIES.iter().any(|word| name.contains(word))
    });
    let (lacks, why, advice) = match retries {
        Some(of) => (
            Bottleneck::Lock,
            format!(", in {}: it tries again and again for what others hold", short(&of.name)),
            "find out who holds it for so long, and let each hold it for a shorter time",
        ),
        None => (
            Bottleneck::Sleep,
            String::new(),
            "if it should be busy: wait for the event itself, not for time to pass",
        ),
    };
    let sentence = format!(
        "the target {}: {} for {:.0} % of the time in {}{why}{}",
        match works {
            Some(_) => format!("uses {:.0} % of one CPU", 100.0 * signals.cpu),
            None => format!("hardly ran ({:.1} % of one CPU)", 100.0 * signals.cpu),
        },
        if threads.len() == 1 { "it sleeps".to_owned() } else { format!("{} threads sleep", threads.len()) },
        100.0 * share,
        at(here),
        answers(run)
    );
    Some(Verdict {
        advice: advice.to_owned(),
        more: more(run, lacks),
        ..signals.verdict(lacks, sentence, share)
    })
}

/// It does nothing until a child of it ends.
fn for_child(signals: &Signals<'_>) -> Option<Verdict> {
    let waits = |of: &Crew| {
        let ns = of.time.blocked.iter().filter(|(cause, _)| *cause == WaitCause::Child).map(|(_, ns)| ns);
        of.share_of_run(ns.sum())
    };
    let crews = crews(signals.run);
    let (crew, share) = crews
        .iter()
        .map(|of| (of, waits(of)))
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .filter(|of| of.1 >= ASLEEP)?;
    let vitals = signals.run.vitals_of(crew.time.thread.pid);
    let children = vitals.map_or(&[][..], |of| &of.children);
    let which = children
        .iter()
        .filter(|child| child.alive)
        .take(3)
        .map(|child| format!("{}, pid {}", child.process, child.pid));
    let which = which.collect::<Vec<_>>().join("; ");
    let sentence = format!(
        "the target hardly ran ({:.1} % of one CPU): {} waits {:.0} % of the time for a child process to end{}",
        100.0 * signals.cpu,
        crew.who(),
        100.0 * share,
        if which.is_empty() { which } else { format!(" ({which})") }
    );
    Some(Verdict {
        advice: "look at that child: --follow, or --pid with its number".to_owned(),
        ..signals.verdict(Bottleneck::Process, sentence, share)
    })
}

/// It does nothing, and waits for nothing that is known.
fn idle(signals: &Signals<'_>) -> Option<Verdict> {
    let sentence = format!(
        "the target hardly ran ({:.1} % of one CPU): it waits for work, or for others{}{}",
        100.0 * signals.cpu,
        answers(signals.run),
        others(signals.run)
    );
    Some(Verdict {
        advice: "if it should be busy, look at who should send it work".to_owned(),
        more: more(signals.run, Bottleneck::None),
        ..signals.verdict(Bottleneck::None, sentence, 0.0)
    })
}

fn unknown(signals: &Signals<'_>) -> Verdict {
    signals.verdict(Bottleneck::Unknown, "nothing could be told".to_owned(), 0.0)
}

#[cfg(test)]
mod tests;
