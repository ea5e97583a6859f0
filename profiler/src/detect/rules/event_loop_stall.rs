//! An event loop comes back to its wait too late.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    detect::{
        groups,
        other_end::in_brackets,
        roles,
        rule::{Needs, Param, Rule, Unit, Values},
        rules::{gc_pressure, nested_wait},
        words::{
            Namer, at, bottleneck, common_path, evidence, functions, is_runtimes, join, own, own_of_most,
            own_within, path, ran_instead, share_of_wall, typical, who_ran,
        },
    },
    model::{
        cause::WaitCause,
        finding::{Bottleneck, Cost, Finding, Severity},
        names::short,
        report::{Names, Run},
        stack::{StackId, ThreadKey},
        units::{percent, thousands, time},
        wait::{Blocking, Stall},
    },
    symbolize::Function,
};

const WARNING: Param = Param {
    name: "warning",
    unit: Unit::Seconds,
    default: 0.01,
    help: "An iteration of an event loop that is worth a warning",
    flag: Some("stall-warning"),
};
const CRITICAL: Param = Param {
    name: "critical",
    unit: Unit::Seconds,
    default: 0.05,
    help: "An iteration of an event loop that is critical",
    flag: Some("stall-critical"),
};

const SHARE: Param = Param {
    name: "share",
    unit: Unit::Percent,
    default: 1.0,
    help: "Wall time of the loop that its late iterations make up; less is a note",
    flag: None,
};

/// The rule.
pub static RULE: Rule = Rule {
    name: "event-loop-stall",
    summary: "an event loop comes back to its wait too late",
    needs: &[Needs::Waits],
    params: &[WARNING, CRITICAL, SHARE],
    check,
    doc: "\
From the return of one wait (epoll_wait, poll, select) to the start of the next, an event loop serves nobody else: each
client that comes meanwhile waits until the iteration ends. Iterations longer than the threshold are explained one by one by
what the thread did in them: the functions it ran in, what it blocked in, and how long it had no CPU. Those with the same
reason are one finding.

Move the work to another thread, divide it into pieces, or use the asynchronous form of the call. Threads that share one
epoll descriptor (Go, multi-threaded tokio) hold nobody up by being away, so their iterations are no stalls. Nor are those of a
process that waits for one client only, or by a latch (PostgreSQL's processes): its one client waits for the answer anyway.
Nor are those of a thread that polls a single descriptor, unless anybody may come on it: it serves one connection (MariaDB),
waits for one answer (clients of databases), or to be woken (Ruby). A poll or select of nothing is a sleep.
An iteration that would have been late by its own computing alone is blamed on that, even where it had no CPU for longer.
Critical is what is critical by its length and makes up five times the share.",
};

/// A stall with fewer samples says too little about where its time went to be a reason of its own.
const MIN_SAMPLES: u64 = 4;

/// Stalls of one event loop with the same reason.
struct Group {
    /// Whose loop.
    thread: ThreadKey,
    /// The worst.
    severity: Severity,
    /// How many.
    count: u64,
    /// Sum of their lengths, ns.
    total_ns: u64,
    /// The longest, ns.
    longest_ns: u64,
    /// What most of their time went to.
    reason: Reason,
    /// The time that went there, ns.
    reason_ns: u64,
    /// Part of the whole that has an explanation, ns.
    explained_ns: u64,
    /// Where, best example.
    stack: Option<StackId>,
    /// Of the block, longest example.
    object: Option<String>,
    /// The function that ran a loop within the loop, if that is what it waited in.
    inside: Option<String>,
    /// The program's own function that it waited in.
    own: Option<Function>,
    /// It waited in the garbage collector, for the threads that help it.
    collects: bool,
    /// The loop is that of a worker thread.
    worker: bool,
    /// Who ran while it waited for a CPU, ns; most first.
    instead: Vec<(String, u64)>,
}

/// What a thread was busy with.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Work {
    /// The innermost function that it was in all the time.
    function: Function,
    /// The program's own function that called it; none where it is one itself, or where there is none.
    own: Option<Function>,
    /// What kind of work most of its samples are.
    kind: Option<&'static str>,
}

impl Work {
    fn collects(&self) -> bool {
        self.kind == Some(gc_pressure::GC)
    }

    /// What it did in the function to look at, as the end of a sentence: the kind of work, or the function that it called. That a
    /// runtime's own code was between says nothing.
    fn within(&self) -> String {
        match (self.kind, &self.own) {
            (Some(kind), _) => format!(": {kind}"),
            (None, Some(_)) if !is_runtimes(&self.function) => format!(": {}", short(&self.function.name)),
            _ => String::new(),
        }
    }

    /// The function to look at.
    fn place(&self) -> &Function {
        self.own.as_ref().unwrap_or(&self.function)
    }
}

/// What most of a stall's time went to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Reason {
    /// The thread itself was busy; in this function, if there are samples.
    OnCpu(Option<Work>),
    /// It was ready and had no CPU.
    RunQueue,
    /// It blocked.
    Blocked {
        /// What for.
        cause: WaitCause,
        /// System call; empty for none.
        syscall: String,
    },
    /// Nobody saw.
    Unexplained,
}

fn check(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let Some(blocking) = &run.blocking else { return Vec::new() };
    let name = Namer::new(Some(blocking));
    let mut groups = stalls(blocking, run.names());
    if groups.is_empty() {
        return Vec::new();
    }
    let roles = roles::roles(run);
    for group in &mut groups {
        group.worker = roles.get(&group.thread).is_some_and(|role| *role == roles::NODE_WORKER);
    }
    let found =
        groups.iter().filter(|group| !waits_by_latch(run, group.thread) && !is_worker(blocking, group));
    found.map(|group| finding(group, &name, run, values.get(&SHARE))).collect()
}

/// Whether a thread mostly waits to be woken up by others, and polls now and then: one that hands out work, or does some, and no event
/// loop. Loops that wait by epoll do nothing else.
fn is_worker(blocking: &Blocking, group: &Group) -> bool {
    let parks = matches!(group.reason, Reason::Blocked { cause: WaitCause::Park, .. });
    let mut loops = blocking.loops.iter().filter(|of| of.thread == group.thread);
    let idle = |cause: WaitCause| -> u64 {
        let own = blocking.threads.iter().filter(|of| of.thread == group.thread).flat_map(|of| &of.blocked);
        own.filter(|(of, _)| *of == cause).map(|(_, ns)| ns).sum()
    };
    parks && loops.any(|of| !of.wait.starts_with("epoll")) && idle(WaitCause::Park) > idle(WaitCause::Poll)
}

/// Whether a thread's wait is that of a database's process for its latch: it does one thing at a time, and nobody else waits.
fn waits_by_latch(run: &Run, thread: ThreadKey) -> bool {
    let stacks = run.off_cpu.iter().flat_map(|profile| &profile.stacks);
    let mut own = stacks.filter(|of| of.thread == thread && of.cause == Some(WaitCause::Poll));
    own.any(|of| path(run.names(), &of.frames).iter().any(|function| function.name == "WaitEventSetWait"))
}

/// How bad: late iterations that make up little of the time are a note.
fn severity(group: &Group, share: f64, least: f64) -> Severity {
    // What nobody saw may be the machine's own doing: a virtual CPU that was taken away looks like work.
    let seen = !matches!(group.reason, Reason::OnCpu(None) | Reason::Unexplained);
    let least = if seen { least } else { 5.0 * least };
    match 100.0 * share {
        share if share < least => Severity::Info,
        share if share < 5.0 * least => Severity::Warning,
        _ => group.severity,
    }
}

fn finding(group: &Group, name: &Namer<'_>, run: &Run, least: f64) -> Finding {
    let share = share_of_wall(run, group.total_ns, 1);
    let (lacks, subject) = match &group.reason {
        Reason::OnCpu(Some(work)) if work.collects() => (Bottleneck::Memory, gc_pressure::GC.to_owned()),
        Reason::OnCpu(work) => (
            Bottleneck::Cpu,
            work.as_ref().map_or_else(|| "cpu".to_owned(), |work| work.place().name.clone()),
        ),
        Reason::RunQueue => (Bottleneck::CpuStarvation, "run queue".to_owned()),
        Reason::Blocked { .. } if group.collects => (Bottleneck::Memory, gc_pressure::GC.to_owned()),
        Reason::Blocked { .. } if group.inside.is_some() => {
            (Bottleneck::Process, group.inside.clone().unwrap_or_default())
        }
        Reason::Blocked { cause, syscall } => {
            (lacks(*cause, syscall), join([cause.id(), syscall, group.object.as_deref().unwrap_or_default()]))
        }
        Reason::Unexplained => (Bottleneck::Unknown, "unexplained".to_owned()),
    };
    Finding {
        rule: RULE.name,
        severity: severity(group, share, least),
        bottleneck: lacks,
        process: name.of(group.thread),
        subject,
        title: title(group, name, run),
        advice: advice(group).to_owned(),
        cost: Cost { ns: group.total_ns, share_of_wall: share, ..Cost::default() },
        evidence: evidence(run.names(), "", group.stack),
        details: BTreeMap::from([
            ("tid", json!(group.thread.tid)),
            ("count", json!(group.count)),
            ("longest_ns", json!(group.longest_ns)),
            ("reason_ns", json!(group.reason_ns)),
            ("explained_ns", json!(group.explained_ns)),
            ("object", json!(group.object)),
            ("instead", json!(group.instead)),
        ]),
    }
}

/// What most of a stall's time went to: reasons are compared, not only listed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Main<'a> {
    OnCpu,
    RunQueue,
    /// Cause, system call, and functions.
    Blocked(WaitCause, &'a str, Vec<&'a str>),
    Unexplained,
}

/// The main reason, and how much of the stall it took, ns.
fn main_reason<'a>(stall: &'a Stall, warning_ns: u64, names: &'a Names) -> (Main<'a>, u64) {
    let (cause, blocked_ns) =
        stall.blocked.iter().copied().max_by_key(|(_, ns)| *ns).unwrap_or((WaitCause::Unknown, 0));
    let seen: u64 = stall.blocked.iter().map(|(_, ns)| ns).sum();
    let unseen = stall.duration_ns.saturating_sub(seen + stall.on_cpu_ns + stall.run_queue_ns);
    // The own part alone would have been too long: a machine that is busy besides does not excuse it.
    let own = stall.on_cpu_ns >= warning_ns && stall.on_cpu_ns >= stall.run_queue_ns / 2;
    match blocked_ns.max(stall.on_cpu_ns).max(stall.run_queue_ns).max(unseen) {
        ns if ns == stall.on_cpu_ns => (Main::OnCpu, ns),
        ns if ns == stall.run_queue_ns && own => (Main::OnCpu, stall.on_cpu_ns),
        ns if ns == stall.run_queue_ns => (Main::RunQueue, ns),
        ns if ns == unseen => (Main::Unexplained, ns),
        ns => {
            let mut places: BTreeMap<(&str, Option<StackId>), u64> = BTreeMap::new();
            for block in stall.blocks.iter().filter(|block| block.cause == cause) {
                *places.entry((&block.syscall, block.stack)).or_default() += block.blocked_ns;
            }
            let place = places.into_iter().max_by_key(|(_, ns)| *ns);
            let (syscall, stack) = place.map_or(("", None), |(place, _)| place);
            (Main::Blocked(cause, syscall, functions(names, stack)), ns)
        }
    }
}

fn stalls(blocking: &Blocking, names: &Names) -> Vec<Group> {
    let mut groups: BTreeMap<(ThreadKey, Main<'_>), Vec<(&Stall, u64)>> = BTreeMap::new();
    for stall in &blocking.stalls {
        let (main, ns) = main_reason(stall, blocking.thresholds.stall_warning_ns, names);
        groups.entry((stall.thread, main)).or_default().push((stall, ns));
    }
    let mut found = Vec::new();
    for ((_, main), stalls) in groups {
        match main {
            Main::OnCpu => {
                for (work, stack, stalls) in by_function(&stalls, names) {
                    found.push(Group { stack, ..group(&stalls, Reason::OnCpu(work)) });
                }
            }
            Main::RunQueue => found.push(group(&stalls, Reason::RunQueue)),
            Main::Unexplained => found.push(group(&stalls, Reason::Unexplained)),
            Main::Blocked(cause, syscall, _) => {
                let blocks = stalls.iter().flat_map(|(stall, _)| &stall.blocks);
                let same = blocks.filter(|block| block.cause == cause && block.syscall == syscall);
                let longest = same.max_by_key(|block| block.blocked_ns);
                let deepest = || {
                    let blocks = stalls.iter().flat_map(|(stall, _)| &stall.blocks);
                    blocks.filter_map(|block| block.stack).max_by_key(|stack| names.stack(*stack).len())
                };
                // A stack that was cut off says less than that of a shorter block in the same callback.
                let stack = longest.and_then(|block| block.stack);
                let depth = stack.map_or(0, |stack| path(names, names.stack(stack)).len());
                let stack = if depth < 3 { deepest().or(stack) } else { stack };
                let frames = stack.map_or(&[][..], |stack| names.stack(stack));
                found.push(Group {
                    stack,
                    own: own(names, frames).filter(|own| !is_runtimes(own)).cloned(),
                    collects: groups::is_within(names, frames, gc_pressure::GC),
                    inside: stack.and_then(|stack| nested_wait::callback(names, names.stack(stack))),
                    object: longest.and_then(|block| block.object.clone()),
                    ..group(&stalls, Reason::Blocked { cause, syscall: syscall.to_owned() })
                });
            }
        }
    }
    found
}

/// Stalls, each with the time its main reason took.
fn group(stalls: &[(&Stall, u64)], reason: Reason) -> Group {
    let each = || stalls.iter().map(|(stall, _)| *stall);
    Group {
        thread: each().next().map(|stall| stall.thread).unwrap_or_default(),
        severity: each().map(|stall| stall.severity).max().unwrap_or(Severity::Warning),
        count: stalls.len() as u64,
        total_ns: each().map(|stall| stall.duration_ns).sum(),
        longest_ns: each().map(|stall| stall.duration_ns).max().unwrap_or(0),
        reason,
        reason_ns: stalls.iter().map(|(_, ns)| ns).sum(),
        instead: ran_instead(each().flat_map(|stall| &stall.instead)),
        explained_ns: each().map(|stall| (stall.explained * stall.duration_ns as f64) as u64).sum(),
        stack: None,
        object: None,
        inside: None,
        own: None,
        collects: false,
        worker: false,
    }
}

/// Stalls with the time that counts of each.
type Stalls<'a> = Vec<(&'a Stall, u64)>;

/// Splits stalls of one loop that were busy by the function they were busy in: the innermost one that most of a
/// stall's samples have in common, with all its callers. Returns it, and the most common stack through it.
fn by_function<'a>(
    stalls: &[(&'a Stall, u64)],
    names: &'a Names,
) -> Vec<(Option<Work>, Option<StackId>, Stalls<'a>)> {
    let weight = |stall: &Stall| stall.samples.iter().map(|(_, n)| n).sum::<u64>();
    let mut groups: BTreeMap<Vec<&str>, Stalls<'a>> = BTreeMap::new();
    let (clear, few): (Stalls<'a>, Stalls<'a>) =
        stalls.iter().partition(|(stall, _)| weight(stall) >= MIN_SAMPLES);
    for of in clear {
        groups.entry(common_path(names, &of.0.samples)).or_default().push(of);
    }
    // A stall can look more special than it is: it belongs to the bigger group that its path goes through.
    let paths: Vec<Vec<&str>> = groups.keys().rev().cloned().collect();
    for path in paths {
        let count = groups.get(&path).map_or(0, Vec::len);
        let whole = prefixes(&path).find(|prefix| groups.get(*prefix).is_some_and(|of| of.len() >= count));
        if let Some(whole) = whole.map(<[&str]>::to_vec)
            && let Some(stalls) = groups.remove(&path)
        {
            groups.entry(whole).or_default().extend(stalls);
        }
    }
    let mut rest: Stalls<'a> = Vec::new();
    for of in few {
        let path = common_path(names, &of.0.samples);
        let known =
            std::iter::once(path.as_slice()).chain(prefixes(&path)).find(|path| groups.contains_key(*path));
        match known.filter(|path| !path.is_empty()).map(<[&str]>::to_vec) {
            Some(known) => groups.entry(known).or_default().push(of),
            None if path.is_empty() => groups.entry(path).or_default().push(of),
            None => rest.push(of),
        }
    }
    if !rest.is_empty() {
        let samples: Vec<_> = rest.iter().flat_map(|(stall, _)| stall.samples.iter().copied()).collect();
        groups.entry(common_path(names, &samples)).or_default().extend(rest);
    }

    let describe = |(common, stalls): (Vec<&str>, Stalls<'a>)| {
        let mut stacks: BTreeMap<StackId, u64> = BTreeMap::new();
        for &(stack, n) in stalls.iter().flat_map(|(stall, _)| &stall.samples) {
            *stacks.entry(stack).or_default() += n;
        }
        let through = stacks.into_iter().filter(|&(stack, _)| {
            let path = path(names, names.stack(stack));
            path.len() >= common.len()
                && path.iter().zip(&common).all(|(function, name)| function.name == **name)
        });
        let stack = typical(names, through.map(|(stack, n)| (stack, names.stack(stack), n)));
        let samples: Vec<_> = stalls.iter().flat_map(|(stall, _)| stall.samples.iter().copied()).collect();
        let work = stack.and_then(|stack| {
            let frames = names.stack(stack);
            let kind = groups::mostly(names, &samples);
            let of_most = || own_of_most(names, &samples).filter(|own| !is_runtimes(own));
            let Some(last) = common.len().checked_sub(1) else {
                return Some(Work { function: of_most()?.clone(), own: None, kind });
            };
            let function = path(names, frames).get(last).copied()?;
            let own = own_within(names, frames, common.len()).filter(|own| !is_runtimes(own));
            let own = own.or_else(of_most).filter(|own| *own != function);
            Some(Work { function: function.clone(), own: own.cloned(), kind })
        });
        (work, stack, stalls)
    };
    groups.into_iter().map(describe).collect()
}

/// Proper, non-empty prefixes, longest first.
fn prefixes<'s, 'a>(path: &'s [&'a str]) -> impl Iterator<Item = &'s [&'a str]> {
    (1..path.len()).rev().map(|len| &path[..len])
}

fn title(group: &Group, name: &Namer<'_>, run: &Run) -> String {
    let how_often = match group.count {
        1 => format!("was held up once, for {}", time(group.total_ns)),
        n => format!("was held up {} times, for up to {}", thousands(n), time(group.longest_ns)),
    };
    let share = percent(group.reason_ns, group.total_ns);
    let mostly = if share >= 90.0 { String::new() } else { format!("{share:.0} % ") };
    let reason = match &group.reason {
        Reason::OnCpu(Some(work)) if work.collects() => {
            format!("by {mostly}CPU work in the garbage collector, for {}", at(work.place()))
        }
        Reason::OnCpu(Some(work)) => {
            format!("by {mostly}CPU work in {}{}", at(work.place()), work.within())
        }
        Reason::OnCpu(None) => format!("by {mostly}CPU work without a sample"),
        Reason::RunQueue => match &*who_ran(&group.instead, group.reason_ns) {
            "" => format!("{mostly}because it had no CPU"),
            ran => format!("{mostly}because it had no CPU; meanwhile ran: {ran}"),
        },
        Reason::Blocked { .. } if group.collects => {
            let place = group.own.as_ref().map_or_else(String::new, |own| format!(", for {}", at(own)));
            format!("{mostly}by waiting for the threads of its garbage collector{place}")
        }
        Reason::Blocked { .. } if group.inside.is_some() => {
            let callback = group.inside.as_deref().unwrap_or_default();
            format!("{mostly}by a wait inside a callback, in {callback}")
        }
        Reason::Blocked { cause, syscall } if is_nested(*cause, syscall) => {
            format!(
                "{mostly}by a wait of its own inside a callback (a child, as of spawnSync?), in {syscall}"
            )
        }
        Reason::Blocked { cause, syscall } => {
            let object = group.object.as_deref().unwrap_or_default();
            let what = waited_for(*cause, syscall, object) + &in_brackets(run, group.thread.pid, object);
            let place = group.own.as_ref().map_or_else(String::new, |own| format!(", in {}", at(own)));
            format!("{mostly}by waiting for {what}{place}")
        }
        Reason::Unexplained => format!("{mostly}by what was not seen"),
    };
    let unexplained = 100.0 - percent(group.explained_ns, group.total_ns);
    let rest = match group.reason {
        Reason::Unexplained | Reason::OnCpu(None) => String::new(),
        _ if unexplained < 10.0 => String::new(),
        _ => format!("; {unexplained:.0} % of it is unexplained"),
    };
    let whose = if group.worker { "of worker " } else { "" };
    format!("event loop {whose}{} {how_often}, {reason}{rest}", name.thread(group.thread))
}

/// What a loop lacks that blocks.
fn lacks(cause: WaitCause, syscall: &str) -> Bottleneck {
    match cause {
        _ if is_nested(cause, syscall) => Bottleneck::Process,
        // A client library that waits for its own socket.
        WaitCause::Other if syscall.contains("poll") || syscall.contains("select") => Bottleneck::Network,
        _ => bottleneck(cause),
    }
}

/// Whether the loop waits for descriptors in the middle of an iteration: it runs a loop of its own there, mostly for a child.
fn is_nested(cause: WaitCause, syscall: &str) -> bool {
    matches!(cause, WaitCause::Other | WaitCause::Poll) && syscall.starts_with("epoll")
}

/// Whether a wait is for another thread of the same program, by a futex.
fn is_for_threads(cause: WaitCause) -> bool {
    matches!(cause, WaitCause::Lock | WaitCause::Park)
}

/// What a loop waited for, in words: a futex's number says nothing to anybody.
fn waited_for(cause: WaitCause, syscall: &str, object: &str) -> String {
    match cause {
        WaitCause::Lock if syscall == "futex" => "a lock that another thread held".to_owned(),
        WaitCause::Lock => join(["a lock of a file", syscall, object]),
        WaitCause::Park => "another thread (futex)".to_owned(),
        _ => join([cause.words(), syscall, object]),
    }
}

/// What to do about a collector that takes its time.
const COLLECT_LESS: &str = "allocate less there, or keep less alive; then divide the work";

/// What to do about it.
fn advice(group: &Group) -> &'static str {
    match &group.reason {
        Reason::OnCpu(Some(work)) if work.kind == Some(groups::REGULAR_EXPRESSIONS) => {
            "rewrite the expression so that it does not try the same text again and again, or limit what it is given"
        }
        Reason::OnCpu(Some(work)) if work.collects() => COLLECT_LESS,
        Reason::Blocked { .. } if group.collects => COLLECT_LESS,
        Reason::Blocked { cause, .. } if is_for_threads(*cause) => {
            "let no callback wait for another thread: send a message, and go on when the answer comes"
        }
        Reason::OnCpu(_) if group.worker => "let several workers share this work, or divide it into pieces",
        Reason::OnCpu(_) => "move this work to a worker thread, or divide it into pieces",
        Reason::RunQueue => "give the process CPUs: see what else runs (profiler --all -d 10s)",
        Reason::Blocked { .. } => "use the asynchronous form of this call, or a worker thread",
        Reason::Unexplained => "sample more often (-F 999), and for longer",
    }
}

#[cfg(test)]
mod tests;
