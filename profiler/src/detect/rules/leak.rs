//! What is allocated at one place is not freed.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;
use serde_json::{Value, json};

use crate::{
    detect::{
        leak::{self, Certainty, Trend},
        rule::{Needs, Rule, Values},
        words::{allocates, at, functions, own, path},
    },
    model::{
        finding::{Bottleneck, Cost, Evidence, Finding, ProcessName, Severity},
        memory::{Footprint, Limit, LimitKind, Memory, Site},
        report::{Names, Run},
        units::{bytes, count, long},
    },
};

/// The rule.
pub static RULE: Rule = Rule {
    name: "memory-leak",
    summary: "what is allocated at one place is not freed",
    needs: &[Needs::Memory],
    params: &[],
    check,
    doc: "\
Memory that one place in the code allocates keeps growing: its live bytes rise more steadily than chance makes them, have not
stopped rising and do not slow down, and what they are made of is old and hardly ever freed. A cache that fills at a constant
rate and has evicted nothing yet looks the same from outside, and is called a leak, too.

The rate has an interval that holds 95 of 100 times. Where a limit is known (cgroup, address space, machine), the finding
says when the process reaches it; less than an hour from then it is critical.

Look at who keeps what this place returns: a map without eviction, a listener that is never removed, a closure that holds a
request. `--snapshot` and `profiler diff` show what grew between two points in time.

Where allocations are watched in short windows the program is slower in them, and leaks less than otherwise: if it grows in all more
than twice as fast, and one place holds most of what it kept in the windows, all the growth is taken to be from there.",
};

/// A process that reaches a limit, of memory or of anything else, within this time is critical, ns.
pub(super) const LIMIT_NEAR_NS: u64 = 3600 * 1_000_000_000;
/// What to do about a place.
pub(super) const ADVICE: &str =
    "look at who keeps what this place returns: a map, a listener, a closure; --snapshot shows what grew";
/// Functions shown of its stack: allocators and wrappers around them are innermost there.
pub(super) const SHOWN: usize = 9;

/// A site whose live memory keeps growing.
pub(super) struct Leak {
    /// All that is allocated by the same functions.
    site: Site,
    /// Whose it is.
    pub process: ProcessName,
    /// How fast it grows, and how sure that is.
    pub trend: Trend,
    certainty: Certainty,
    reaches: Option<Reaches>,
    /// How fast the process grows in all, bytes/s, if it grows much faster than this was seen to while it was watched, which slows
    /// it down, and most of what was kept then is from here.
    pub in_all: Option<f64>,
}

/// When a process that keeps growing as it does reaches its limit.
pub(super) struct Reaches {
    pub(super) limit: Limit,
    /// How long after the end of the run, ns.
    pub(super) after_ns: u64,
}

fn check(run: &Run, _: &Values<'_>) -> Vec<Finding> {
    let Some(memory) = &run.memory else { return Vec::new() };
    let mut leaks = leaks(memory, run.names());
    leaks.sort_by(|a, b| b.trend.bytes_per_s.per_time.total_cmp(&a.trend.bytes_per_s.per_time));
    leaks.iter().map(|leak| finding(leak, run.names())).collect()
}

/// Sites that keep growing.
pub(super) fn leaks(memory: &Memory, names: &Names) -> Vec<Leak> {
    let grows = leak::processes(memory);
    let sites = by_functions(memory, names);
    let judged = leak::judge_sites(&sites, &memory.processes);
    let mut kept: BTreeMap<u32, f64> = BTreeMap::new();
    for site in &sites {
        *kept.entry(site.pid).or_default() += live(site).max(0.0);
    }
    let leak = |(site, judged): (Site, leak::SiteTrend)| {
        let certainty = judged.trend.certainty()?;
        site.points.last()?;
        if is_heap_of_go(names, names.stack(site.stack)) {
            return None;
        }
        let of = memory.processes.iter().zip(&grows).find(|(process, _)| process.pid == site.pid);
        // Others may leak too: the whole process may reach its limit earlier.
        let rate = judged.trend.bytes_per_s.per_time;
        let whole = of.filter(|(_, trend)| trend.certainty().is_some());
        let whole = whole.map_or(rate, |(_, trend)| trend.bytes_per_s.per_time.max(rate));
        let name = of.map_or_else(String::new, |(process, _)| process.process.clone());
        let is_most = kept.get(&site.pid).is_some_and(|all| 2.0 * live(&site) >= *all);
        let less = site.estimated && 2.0 * rate < whole && is_most;
        Some(Leak {
            process: ProcessName { pid: site.pid, name },
            trend: judged.trend,
            certainty,
            reaches: of.and_then(|(process, _)| Reaches::of(process, whole)),
            in_all: less.then_some(whole),
            site,
        })
    };
    sites.into_iter().zip(judged).filter_map(leak).collect()
}

/// Whether Go's runtime maps memory here for a heap of its own: what that is for, a stack that ends there does not tell.
pub(super) fn is_heap_of_go(names: &Names, frames: &[usize]) -> bool {
    let functions = path(names, frames);
    let is_runtime = |name: &str| name.starts_with("runtime.") || name.starts_with("runtime/");
    !functions.is_empty() && own(names, frames).is_none() && functions.iter().any(|of| is_runtime(&of.name))
}

/// What a site had allocated and not freed at the end, bytes.
fn live(site: &Site) -> f64 {
    site.points.last().map_or(0.0, |last| last.live_bytes)
}

/// Sites that allocate by the same functions are one to a reader, wherever in them they do.
pub(super) fn by_functions(memory: &Memory, names: &Names) -> Vec<Site> {
    let mut sites: Vec<&Site> = memory.sites.iter().collect();
    sites.sort_by(|a, b| live(b).total_cmp(&live(a)).then(a.stack.cmp(&b.stack)));
    let mut merged: FxHashMap<(u32, Vec<&str>), Site> = FxHashMap::default();
    for site in &sites {
        let key = (site.pid, functions(names, Some(site.stack)));
        merged.entry(key).and_modify(|sum| sum.add(site)).or_insert_with(|| (*site).clone());
    }
    let mut merged: Vec<Site> = merged.into_values().collect();
    merged.sort_by_key(|site| (site.pid, site.stack));
    merged
}

impl Reaches {
    /// Of a process that grows at this rate; nothing where no limit is known.
    pub(super) fn of(process: &Footprint, bytes_per_s: f64) -> Option<Reaches> {
        let limit = process.limit.clone()?;
        let after_ns = (limit.left_bytes() as f64 / bytes_per_s * 1e9) as u64;
        (bytes_per_s > 0.0).then_some(Reaches { limit, after_ns })
    }
}

/// How bad growth is: critical where its limit is near.
pub(super) fn severity(reaches: Option<&Reaches>) -> Severity {
    let near = reaches.is_some_and(|reaches| reaches.after_ns < LIMIT_NEAR_NS);
    if near { Severity::Critical } else { Severity::Warning }
}

fn finding(leak: &Leak, names: &Names) -> Finding {
    let last = leak.site.points.last().copied().unwrap_or_default();
    let error = match last.live_bytes_err {
        0.0 => String::new(),
        error => format!(" (± {})", bytes(error)),
    };
    let ages = match (leak.site.ages_ns.quantile(0.5), leak.site.ages_ns.quantile(1.0)) {
        (Some(half), Some(oldest)) => {
            // Ages are known by powers of two only.
            let oldest = oldest.min(leak.trend.watched_ns);
            format!(", half of them older than {}, the oldest {}", long(half), long(oldest))
        }
        _ => String::new(),
    };
    let estimated = if leak.site.estimated { "; all estimated from a part of the time" } else { "" };
    let in_all = leak.in_all.map_or_else(String::new, |rate| {
        format!(
            ", in which it does less: in all it grows by {}/s, and most of what it keeps is from there",
            bytes(rate)
        )
    });
    let ProcessName { pid, name } = &leak.process;
    let frames = names.stack(leak.site.stack);
    let place = allocates(names, frames);
    let within = place.map_or_else(String::new, |place| format!(" what {} allocates,", at(place)));
    let title = format!(
        "{name} (pid {pid}) leaks{within} {}: {}{error} live in {}{ages}{}{estimated}{in_all}",
        rate(&leak.trend, leak.certainty),
        bytes(last.live_bytes),
        count(last.live_count.round() as u64, "object"),
        reaches(leak.reaches.as_ref()),
    );
    let mut details = trend_details(&leak.trend, leak.certainty, leak.reaches.as_ref());
    details.extend([
        ("live_bytes", json!(last.live_bytes)),
        ("live_bytes_err", json!(last.live_bytes_err)),
        ("live_objects", json!(last.live_count)),
        ("estimated", json!(leak.site.estimated)),
        ("ages_ns", json!(leak.site.ages_ns.counts())),
    ]);
    Finding {
        rule: RULE.name,
        severity: severity(leak.reaches.as_ref()),
        bottleneck: Bottleneck::Memory,
        process: leak.process.clone(),
        subject: place.map_or_else(String::new, |place| place.name.clone()),
        title,
        advice: ADVICE.to_owned(),
        cost: Cost { bytes_per_s: leak.in_all.unwrap_or(leak.trend.bytes_per_s.per_time), ..Cost::default() },
        evidence: vec![Evidence { label: "allocated at", frames: frames.to_vec(), shown: SHOWN }],
        details,
    }
}

/// Figures of everything that grows.
pub(super) fn trend_details(
    trend: &Trend,
    certainty: Certainty,
    reaches: Option<&Reaches>,
) -> BTreeMap<&'static str, Value> {
    BTreeMap::from([
        ("bytes_per_s", json!(trend.bytes_per_s.per_time)),
        ("bytes_per_s_low", json!(trend.bytes_per_s.low)),
        ("bytes_per_s_high", json!(trend.bytes_per_s.high)),
        ("certainty", json!(certainty.id())),
        ("confidence", json!(trend.confidence)),
        ("watched_ns", json!(trend.watched_ns)),
        ("pace", json!(trend.pace)),
        ("remaining_life_s", json!(trend.remaining_life_s.filter(|life| life.is_finite()))),
        ("limit", json!(reaches.map(|reaches| &reaches.limit))),
        ("limit_reached_after_ns", json!(reaches.map(|reaches| reaches.after_ns))),
    ])
}

/// How fast, how long it was watched for, and how sure that is.
pub(super) fn rate(trend: &Trend, certainty: Certainty) -> String {
    let slope = &trend.bytes_per_s;
    format!(
        "{}/s ({} to {}, 95 %) over {}, {} ({:.1} % not by chance)",
        bytes(slope.per_time),
        bytes(slope.low),
        bytes(slope.high),
        long(trend.watched_ns),
        certainty.id(),
        // What is left to chance is never nothing.
        (100.0 * trend.confidence).min(99.9),
    )
}

/// When a limit is reached, as the end of a sentence.
pub(super) fn reaches(reaches: Option<&Reaches>) -> String {
    let Some(Reaches { limit, after_ns }) = reaches else { return String::new() };
    let Limit { kind, limit_bytes, .. } = limit;
    let whose = match kind {
        LimitKind::Cgroup(path) => format!("its cgroup's limit ({path}, {})", bytes(*limit_bytes as f64)),
        LimitKind::AddressSpace => format!("its address space limit ({})", bytes(*limit_bytes as f64)),
        LimitKind::Heap => format!("the limit of its JavaScript heap ({})", bytes(*limit_bytes as f64)),
        LimitKind::Machine => format!("the machine's memory ({})", bytes(*limit_bytes as f64)),
    };
    format!("; reaches {whose} in {}", long(*after_ns))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::{
            findings,
            fixtures::{name_stacks, run_that_grows},
            rule::Overrides,
        },
        model::{memory::LivePoint, stack::StackId},
    };

    /// What a site leaks is seen in windows only, in which the program does less.
    #[test]
    fn growth_of_which_a_part_was_seen_in_windows_is_the_leaks() {
        let mut run = run_that_grows();
        let all = |run: &Run| findings(run, &Overrides::default());
        let memory = run.memory.as_mut().unwrap();
        memory.sites.remove(0);
        memory.sites[0].estimated = true;
        let found = all(&run);
        let [leak] = &found[..] else { panic!("{found:#?}") };
        assert_eq!((leak.rule, leak.severity), ("memory-leak", Severity::Critical));
        assert!(leak.title.contains("in which it does less: in all it grows by 5.0"), "{}", leak.title);
        assert!(leak.cost.bytes_per_s > 4_000_000.0, "{:?}", leak.cost);
        // Of a second leak, which is small, that is not said.
        let memory = run.memory.as_mut().unwrap();
        let mut small = memory.sites[0].clone();
        small.stack = StackId(2);
        let less = |point: &LivePoint| LivePoint { live_bytes: point.live_bytes / 4.0, ..*point };
        small.points = small.points.points().iter().map(less).collect();
        memory.sites.push(small);
        name_stacks(
            &mut run,
            &["main;serve;session;new;malloc", "main;serve;cache;malloc", "main;load;malloc"],
        );
        let found = all(&run);
        assert_eq!(found.iter().filter(|of| of.title.contains("in all it grows")).count(), 1, "{found:#?}");
        run.memory.as_mut().unwrap().sites.pop();
        // Most of what it keeps is from elsewhere.
        let memory = run.memory.as_mut().unwrap();
        let mut other = memory.sites[0].clone();
        other.stack = StackId(2);
        other.points =
            [LivePoint { live_bytes: 1e9, live_count: 5.0, ..LivePoint::default() }].into_iter().collect();
        memory.sites.push(other);
        name_stacks(
            &mut run,
            &["main;serve;session;new;malloc", "main;serve;cache;malloc", "main;load;malloc"],
        );
        assert_eq!(all(&run).len(), 2, "growth and leak");
    }

    #[test]
    fn what_grows_is_found_worst_first() {
        let mut run = run_that_grows();
        let all = |run: &Run| findings(run, &Overrides::default());
        let found = all(&run);
        let [growing, leak] = &found[..] else { panic!("{found:#?}") };
        assert_eq!((growing.rule, growing.severity), ("memory-growing", Severity::Critical));
        assert_eq!(growing.details["held_bytes"], json!(600_000_000));
        assert_eq!((leak.rule, &leak.details["certainty"]), ("memory-leak", &json!("certain")));
        assert!((leak.cost.bytes_per_s - 102_400.0).abs() < 1.0, "{:?}", leak.cost);
        let reaches = leak.details["limit_reached_after_ns"].as_u64().unwrap();
        assert_eq!(reaches / 1_000_000_000, (424 << 20) / 5_000_000, "by all growth, not its own");
        // Two places in the same functions are one.
        let memory = run.memory.as_mut().unwrap();
        let mut again = memory.sites[1].clone();
        again.stack = StackId(2);
        memory.sites.push(again);
        name_stacks(
            &mut run,
            &["main;serve;session;new;malloc", "main;serve;cache;malloc", "main;serve;session;new;malloc"],
        );
        let found = all(&run);
        let [_, both] = &found[..] else { panic!("{found:#?}") };
        assert!((both.cost.bytes_per_s - 204_800.0).abs() < 1.0, "{both:?}");
        run.memory.as_mut().unwrap().sites.pop();
        // Where sites explain it, the process is not reported again.
        let memory = run.memory.as_mut().unwrap();
        let explains = |s: u64| crate::model::memory::Growth {
            time_ns: s * 1_000_000_000,
            anon_bytes: s * 110_000,
            ..Default::default()
        };
        memory.processes[0].growth = (0..=120).map(explains).collect();
        let found = all(&run);
        assert!(
            matches!(&found[..], [leak] if leak.severity == Severity::Warning && leak.rule == "memory-leak")
        );
    }
}
