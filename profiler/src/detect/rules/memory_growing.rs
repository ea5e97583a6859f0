//! A process keeps growing, and none of its sites explains it.

use serde_json::json;

use super::{
    heap,
    leak::{self, Reaches},
};
use crate::{
    detect::{
        leak::{Shape, Trend, late_rise, processes},
        rule::{Needs, Rule, Values},
        words::{allocates, at, by_function, own, path, place},
    },
    model::{
        finding::{Bottleneck, Cost, Evidence, Finding, ProcessName, Severity},
        function::Function,
        memory::{Footprint, Growth, LimitKind, Site},
        report::{ProfileStack, Run},
        units::{bytes, long, percent},
    },
};

/// The rule.
pub static RULE: Rule = Rule {
    name: "memory-growing",
    summary: "a process keeps growing, and no place in the code explains it",
    needs: &[Needs::Memory],
    params: &[],
    check,
    doc: "\
The anonymous and shared memory and swap of a process keep growing, and the leaks found by place make up less than half of
it. Either its allocations were not watched (they are with `--alloc full`, or with `--alloc auto` once it has grown for a
while), or the memory comes from elsewhere: a garbage-collected heap, an allocator that does not give memory back, or mappings. Of these the
function is named in which most new pages are touched first, by samples of page faults.

A Java virtual machine that has not collected its garbage in the run (its own counters say so) may be growing by garbage alone: that is
information, too.

A process that grew much and was still growing at the end, but ever more slowly, unevenly or too briefly seen, is told of as
information: it may be warming up, and may be leaking in lumps. A longer run tells. A warning it is where a JavaScript heap
is what grows, holds a quarter of its limit, and would reach that within ten times the run.

Of V8's heap (Node.js 18 and newer) at most 96 MB are read from outside, soon after the process is seen to grow, every ten
seconds, and at the end: what there is surely more of (three standard errors) is told, closures by the function that they are,
objects by their class or first properties. Young objects do not count, old garbage that has not been collected does. The limit of the heap is what
`--max-old-space-size` says, or else V8's default for the machine and its cgroup.",
};

/// Functions of Go's runtime that give out memory of its heap.
const GO_ALLOCATES: [&str; 3] = ["runtime.mallocgc", "runtime.growslice", "runtime.newproc"];
/// Fewer samples in them do not tell for whom.
const GO_SAMPLES: u64 = 10;

/// What Go's heap grows by, if that is where the memory comes from: for whom its allocator works most.
fn go_heap<'a>(
    run: &'a Run,
    pid: u32,
    largest: Option<(&Site, f64)>,
) -> Option<(Option<&'a Function>, String)> {
    largest.filter(|(site, _)| leak::is_heap_of_go(run.names(), run.names().stack(site.stack)))?;
    let allocates = |of: &&ProfileStack| {
        let functions = path(run.names(), &of.frames);
        of.thread.pid == pid && functions.iter().any(|at| GO_ALLOCATES.contains(&at.name.as_str()))
    };
    let work = by_function(run.names(), run.cpu.stacks.iter().filter(allocates), |stack| {
        own(run.names(), &stack.frames)
    });
    let most = work.most.filter(|_| work.all >= GO_SAMPLES);
    let words = most.map_or_else(String::new, |(own, samples, _)| {
        format!(": {:.0} % of the work of its allocator is for {}", percent(samples, work.all), at(own))
    });
    Some((most.map(|(own, ..)| own), format!("; it is the heap of Go{words}")))
}

/// Samples of a thread that gets a new page of memory have this function of the kernel in their stacks.
const NEW_PAGE: &str = "do_anonymous_page";
/// Fewer do not tell who needs them, and of more so much must be one function's.
const NEW_PAGES: u64 = 10;
const MOST_PAGES: f64 = 0.5;

/// Who touches new memory first, where no allocator was seen to give it out (the program maps it itself): what grows is new.
fn touches(run: &Run, pid: u32) -> Option<(&Function, String)> {
    let names = run.names();
    let is_new = |of: &&ProfileStack| {
        of.thread.pid == pid && run.cpu.functions(of).any(|(function, ..)| function.name == NEW_PAGE)
    };
    let new = by_function(names, run.cpu.stacks.iter().filter(is_new), |of| place(names, &of.frames));
    let (function, samples, _) = new.most.filter(|_| new.all >= NEW_PAGES)?;
    let share = samples as f64 / new.all as f64;
    (share >= MOST_PAGES).then(|| {
        (function, format!("; {:.0} % of its new pages are touched first in {}", 100.0 * share, at(function)))
    })
}

/// Growth in a run that is worth a word: so many bytes, and one part in so many of what was held at first.
const MUCH_BYTES: u64 = 64 << 20;
const MUCH_OF: u64 = 4;
/// A place that holds so much of the growth explains it.
const EXPLAINS: f64 = 0.25;
/// It still grows if its last third added one part in so many of what it holds.
const LATE_OF: f64 = 20.0;

fn check(run: &Run, _: &Values<'_>) -> Vec<Finding> {
    let Some(memory) = &run.memory else { return Vec::new() };
    let leaks = leak::leaks(memory, run.names());
    let mut found: Vec<Finding> = Vec::new();
    let sites = leak::by_functions(memory, run.names());
    for (process, trend) in memory.processes.iter().zip(processes(memory)) {
        let rate = trend.bytes_per_s.per_time;
        let leaking = || leaks.iter().filter(|leak| leak.process.pid == process.pid);
        let explained: f64 = leaking().map(|leak| leak.trend.bytes_per_s.per_time).sum();
        let Some(last) = process.growth.last() else { continue };
        let uncollected = uncollected(run, process.pid);
        let Some(certainty) = trend.certainty().filter(|_| !uncollected) else {
            let of_garbage = "its garbage was not collected in this time";
            found.extend(grew(process, &trend, uncollected.then_some(of_garbage)));
            continue;
        };
        if explained >= rate / 2.0 || leaking().any(|leak| leak.in_all.is_some()) {
            continue;
        }
        let watched = memory.sites.iter().any(|site| site.pid == process.pid);
        let heap = heap::of(process);
        let largest = largest(process, &sites);
        let place = largest.and_then(|(site, _)| allocates(run.names(), run.names().stack(site.stack)));
        let go = go_heap(run, process.pid, largest);
        let place = if go.is_some() { go.as_ref().and_then(|(of, _)| *of) } else { place };
        let is_explained = heap.is_some() || go.is_some() || place.is_some();
        let touched = if is_explained { None } else { touches(run, process.pid) };
        let why = match (largest, place) {
            _ if heap.is_some() => format!("; {}", heap.as_ref().map_or("", |heap| &heap.words)),
            _ if go.is_some() => go.map_or_else(String::new, |(_, words)| words),
            (Some((site, share)), Some(place)) => format!(
                "; about {:.0} % of that growth is live in what {} allocated{}",
                100.0 * share,
                at(place),
                if site.estimated { " (estimated)" } else { "" }
            ),
            _ if touched.is_some() => touched.as_ref().map_or_else(String::new, |(_, words)| words.clone()),
            _ if watched => "; what was allocated meanwhile does not explain it: memory from elsewhere, or an allocator that does \
                 not give it back"
                .to_owned(),
            _ => String::new(),
        };
        let reaches = Reaches::of(process, rate);
        let title = format!(
            "{} (pid {}) grows by {}: it holds {}{}{why}",
            process.process,
            process.pid,
            leak::rate(&trend, certainty),
            bytes(last.held_bytes() as f64),
            leak::reaches(reaches.as_ref()),
        );
        let mut details = leak::trend_details(&trend, certainty, reaches.as_ref());
        details.extend([("held_bytes", json!(last.held_bytes())), ("watched", json!(watched))]);
        found.push(Finding {
            rule: RULE.name,
            severity: leak::severity(reaches.as_ref()),
            bottleneck: Bottleneck::Memory,
            process: ProcessName { pid: process.pid, name: process.process.clone() },
            subject: match &heap {
                Some(heap) => heap.subject.clone(),
                None => {
                    let place = place.or(touched.as_ref().map(|(of, _)| *of));
                    place.map_or_else(String::new, |place| place.name.clone())
                }
            },
            title,
            advice: if let Some(heap) = &heap {
                heap.advice
            } else if place.is_some() {
                leak::ADVICE
            } else if touched.is_some() {
                "look at what that function maps or keeps, and when it gives it back"
            } else if watched {
                "take snapshots of its heap, or look at its allocator's settings"
            } else {
                "watch its allocations: --alloc full"
            }
            .to_owned(),
            cost: Cost { bytes_per_s: rate, ..Cost::default() },
            evidence: largest.map_or_else(Vec::new, |(site, _)| {
                let frames = run.names().stack(site.stack).to_vec();
                vec![Evidence { label: "allocated at", frames, shown: leak::SHOWN }]
            }),
            details,
        });
    }
    found
}

/// Whether a process grows by garbage that it has not collected in the run, for all that is known.
fn uncollected(run: &Run, pid: u32) -> bool {
    run.vitals_of(pid).is_some_and(|of| of.collections == Some(0))
}

/// The place that holds most, if that is much of what the process grew by, with its share of it: though its own course is
/// not yet one that proves a leak, it is where to look.
fn largest<'a>(process: &Footprint, sites: &'a [Site]) -> Option<(&'a Site, f64)> {
    let points = process.growth.points();
    let held = |growth: Option<&Growth>| growth.map_or(0, Growth::held_bytes);
    let growth = held(points.last()).saturating_sub(held(points.first())) as f64;
    let live = |site: &Site| site.points.last().map_or(0.0, |last| last.live_bytes - last.live_bytes_err);
    let own = sites.iter().filter(|site| site.pid == process.pid);
    let largest = own.max_by(|a, b| live(a).total_cmp(&live(b)))?;
    let last = largest.points.last()?;
    // What is surely there counts; what is told is the best estimate, and never more than all.
    (growth > 0.0 && live(largest) >= EXPLAINS * growth)
        .then(|| (largest, (last.live_bytes / growth).min(1.0)))
}

/// A heap that holds a part of its limit like this, and reaches it within so many times the run at the pace of the last
/// third, is no matter of warming up.
const PART_OF_LIMIT: u64 = 4;
const SOON: u64 = 10;

/// A process that grew much, by a trend that need not go on.
fn grew(process: &Footprint, trend: &Trend, why: Option<&str>) -> Option<Finding> {
    let points = process.growth.points();
    let (first, last) = (points.first()?, points.last()?);
    let (from, to) = (first.held_bytes(), last.held_bytes());
    let (growth, late) = (to.saturating_sub(from), late_rise(process));
    if growth < MUCH_BYTES.max(from / MUCH_OF) || late * LATE_OF < to as f64 {
        return None;
    }
    let heap = heap::of(process);
    let watched_s = trend.watched_ns as f64 / 1e9;
    let late_rate = 3.0 * late / watched_s.max(1.0);
    let reaches = Reaches::of(process, late_rate).filter(|reaches| {
        heap.is_some()
            && why.is_none()
            && reaches.limit.kind == LimitKind::Heap
            && reaches.limit.used_bytes >= reaches.limit.limit_bytes / PART_OF_LIMIT
            && reaches.after_ns <= SOON * trend.watched_ns
    });
    let unknown = |why: &str| format!(": whether it goes on is not known ({why})");
    let within = heap.as_ref().map_or_else(String::new, |heap| format!("; {}", heap.words));
    let title = format!(
        "{} (pid {}) grew by {} to {} in {}, by {} in the last third{}{within}{}",
        process.process,
        process.pid,
        bytes(growth as f64),
        bytes(to as f64),
        long(trend.watched_ns),
        bytes(late),
        match leak::reaches(reaches.as_ref()) {
            text if text.is_empty() => text,
            text => format!("{text} if that goes on"),
        },
        match (&reaches, why, trend.shape) {
            (Some(_), ..) => String::new(),
            (None, Some(why), _) => unknown(why),
            (None, None, Shape::Steady) => unknown("it came in few lumps"),
            (None, None, shape) => unknown(shape.words()),
        },
    );
    Some(Finding {
        rule: RULE.name,
        severity: if reaches.is_some() { leak::severity(reaches.as_ref()) } else { Severity::Info },
        bottleneck: Bottleneck::Memory,
        process: ProcessName { pid: process.pid, name: process.process.clone() },
        subject: heap.as_ref().map_or_else(String::new, |heap| heap.subject.clone()),
        title,
        advice: if let Some(heap) = heap.as_ref().filter(|_| reaches.is_some()) {
            heap.advice
        } else if why.is_some() {
            "look until it is collected (-d 10m; `jcmd PID GC.run` does it now): what is left then is kept"
        } else {
            "look for longer (-d 5m): what warms up levels off, what leaks does not"
        }
        .to_owned(),
        cost: Cost { bytes_per_s: late_rate, ..Cost::default() },
        evidence: Vec::new(),
        details: [
            ("held_bytes", json!(to)),
            ("grown_bytes", json!(growth)),
            ("late_bytes", json!(late)),
            ("shape", json!(trend.shape.id())),
        ]
        .into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::{
            diagnosis::verdict,
            findings,
            fixtures::{name_stacks, unmark},
            rule::Overrides,
        },
        model::{
            memory::{Limit, LivePoint, Memory},
            report::fixtures,
            vitals::{ProcessVitals, Vitals},
        },
    };

    /// A process that holds so many bytes, by second, for 40 s.
    fn growing(held: impl Fn(u64) -> u64) -> Footprint {
        let point = |s: u64| Growth { time_ns: s * 1_000_000_000, anon_bytes: held(s), ..Growth::default() };
        Footprint {
            pid: 7,
            process: "app".into(),
            growth: (0..=40).map(point).collect(),
            ..Footprint::default()
        }
    }

    fn run_of(process: Footprint) -> Run {
        let mut run = fixtures::run(&[("main;handle", 100)]);
        run.cpu.accounts.duration_ns = 40_000_000_000;
        run.memory = Some(Memory { processes: vec![process], ..Memory::default() });
        run
    }

    /// What is said of a process that holds so much, MiB by second.
    fn said(held: impl Fn(u64) -> u64) -> (Vec<Finding>, Bottleneck) {
        let mut run = run_of(growing(|second| held(second) << 20));
        run.findings = findings(&run, &Overrides::default());
        let bottleneck = verdict(&run).bottleneck;
        (run.findings, bottleneck)
    }

    #[test]
    fn garbage_that_was_never_collected_is_no_leak() {
        let severity = |collections: Option<u64>| {
            let mut run = run_of(growing(|second| second * 5_000_000));
            let of = ProcessVitals { pid: 7, collections, ..ProcessVitals::default() };
            run.vitals = Some(Vitals { processes: vec![of], unlisted: 0 });
            let found = findings(&run, &Overrides::default()).remove(0);
            assert_eq!(
                found.title.contains("garbage was not collected"),
                collections == Some(0),
                "{found:?}"
            );
            found.severity
        };
        assert_eq!(
            [Some(0), Some(1), None].map(severity),
            [Severity::Info, Severity::Warning, Severity::Warning]
        );
    }

    fn said_of(process: Footprint) -> Finding {
        findings(&run_of(process), &Overrides::default()).remove(0)
    }

    #[test]
    fn a_heap_that_explains_the_growth_says_of_what() {
        let found = said_of(heap::fixtures::process(1 << 32));
        assert!(found.title.contains("110,000 closures of (anonymous) (srv/app.js:15)"), "{}", found.title);
        assert_eq!((found.severity, &*found.subject), (Severity::Warning, "(anonymous)"));
    }

    /// A heap that fills is no matter of warming up when it is about to reach its limit.
    #[test]
    fn a_heap_near_its_limit_is_told_though_its_growth_slows_down() {
        let slows = |limit_bytes: u64| {
            let mut process = heap::fixtures::process(limit_bytes);
            let points: Vec<Growth> = process.growth.points().to_vec();
            let slower = |at: u64| 50_000_000 + (500e6 * (at as f64 / 40.0).powf(0.4)) as u64;
            process.growth =
                (0..).zip(points).map(|(at, of)| Growth { anon_bytes: slower(at), ..of }).collect();
            let used_bytes = process.managed.as_ref().map_or(0, |heap| heap.last.bytes as u64);
            process.limit = Some(Limit { kind: LimitKind::Heap, limit_bytes, used_bytes });
            said_of(process)
        };
        let found = slows(800_000_000);
        assert!(found.title.contains("reaches the limit of its JavaScript heap"), "{}", found.title);
        assert!(
            found.title.contains("if that goes on") && found.severity > Severity::Info,
            "{}",
            found.title
        );
        let found = slows(1 << 40);
        assert_eq!(found.severity, Severity::Info, "{}", found.title);
        assert!(found.title.contains("whether it goes on is not known"), "{}", found.title);
    }

    #[test]
    fn the_place_that_holds_most_of_it_is_named() {
        let title = |live: f64, error: f64| {
            let mut run = run_of(growing(|second| second * 5_000_000));
            // Watched too briefly for a trend of its own.
            let mut site = crate::model::memory::fixtures::site(0, (0..9).map(|i| f64::from(i) * live / 8.0));
            site.estimated = true;
            let points = site.points.points().iter();
            site.points = points.map(|of| LivePoint { live_bytes_err: error, ..*of }).collect();
            run.memory.as_mut().unwrap().sites.push(site);
            name_stacks(&mut run, &["main;serve;keep;malloc"]);
            let found = findings(&run, &Overrides::default());
            let [growing] = &found[..] else { panic!("{found:#?}") };
            (growing.title.clone(), growing.subject.clone(), growing.evidence.len())
        };
        let (said, subject, stacks) = title(120e6, 10e6);
        assert!(
            said.ends_with(
                "; about 60 % of that growth is live in what keep (app.c:7) allocated (estimated)"
            ),
            "{said}"
        );
        assert_eq!((&*subject, stacks), ("keep", 1));
        // What may be chance, and what is little, explains nothing.
        for (live, error) in [(120e6, 100e6), (40e6, 0.0)] {
            let (said, subject, stacks) = title(live, error);
            assert!(said.contains("does not explain it"), "{said}");
            assert_eq!((&*subject, stacks), ("", 0));
        }
    }

    #[test]
    fn who_touches_memory_that_no_allocator_gave_is_named() {
        let title = |stacks: &[(&str, u64)]| {
            let mut run = fixtures::run(stacks);
            unmark(&mut run);
            run.cpu.accounts.duration_ns = 40_000_000_000;
            let process = growing(|second| second * 50_000_000);
            run.memory = Some(Memory { processes: vec![process], ..Memory::default() });
            run.cpu.stacks.iter_mut().for_each(|of| of.thread.pid = 7);
            let found = check(&run, &Overrides::default().of(&RULE)).remove(0);
            (found.title, found.subject)
        };
        let pages = "k:asm_exc_page_fault;k:do_anonymous_page";
        let (said, subject) = title(&[(&format!("main;fill;{pages}"), 40), ("main;work;do_it", 9)]);
        assert!(said.contains("; 100 % of its new pages are touched first in fill ("), "{said}");
        assert_eq!(subject, "fill");
        let (said, subject) = title(&[(&format!("main;fill;{pages}"), 4), ("main;work;do_it", 90)]);
        assert!(!said.contains("touched") && subject.is_empty(), "{said}");
    }

    #[test]
    fn much_growth_is_never_passed_over() {
        // All of it comes at once, shortly before the end: that is no trend.
        let (found, bottleneck) = said(|second| if second < 30 { 80 } else { 600 });
        let [lump] = &found[..] else { panic!("{found:#?}") };
        assert_eq!((lump.rule, lump.severity, bottleneck), (RULE.name, Severity::Info, Bottleneck::Memory));
        let words =
            "grew by 545 MB to 629 MB in 40 s, by 545 MB in the last third: whether it goes on is not known";
        assert!(lump.title.contains(words), "{}", lump.title);
        // What has stopped, and what is little, is not worth a word.
        assert_eq!(said(|second| if second < 20 { 80 } else { 600 }), (Vec::new(), Bottleneck::None));
        assert_eq!(said(|second| if second < 30 { 80 } else { 110 }).0, []);
        assert_eq!(said(|second| 600 + 50 * u64::from(second > 30)).0, []);
    }
}
