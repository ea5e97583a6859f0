//! Answers that are so large that making, sending or receiving them is what takes the time.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    detect::rule::{Needs, Param, Rule, Unit, Values},
    model::{
        finding::{Bottleneck, Finding, ProcessName, Severity},
        report::Run,
        request::{Exchanges, Route, Side},
        units::{bytes, percent, thousands, time},
    },
};

const SIZE: Param = Param {
    name: "size",
    unit: Unit::Count,
    default: 1_000_000.0,
    help: "Mean size of the answers of one kind, bytes",
    flag: None,
};
const TIME: Param = Param {
    name: "time",
    unit: Unit::Seconds,
    default: 0.1,
    help: "Time to the last byte of half of the answers",
    flag: None,
};
const SHARE: Param = Param {
    name: "share",
    unit: Unit::Percent,
    default: 50.0,
    help: "Part of that time which goes by between the first and the last byte, and on a CPU before the first one; without what is \
           waited for a CPU",
    flag: None,
};

/// Fewer answers say little.
const MIN_ANSWERS: u64 = 5;
/// Who puts an answer together out of data does so at some 10 MB a second at least (an estimate: JSON in Python). What takes longer
/// for its bytes computes something else.
const LEAST_BYTES_PER_SECOND: f64 = 10e6;

/// The rule.
pub static RULE: Rule = Rule {
    name: "large-answers",
    summary: "answers are so large that making, sending or receiving them takes the time",
    needs: &[Needs::Requests],
    params: &[SIZE, TIME, SHARE],
    check,
    doc: "\
Answers of one kind have a megabyte and more each, and most of the time to their last byte goes by after the first byte (they are sent, or
received), or on a CPU before it (they are put together): the latter only where the answer is large enough to explain it, at 10 MB a
second, which is an estimate.

It is a warning where the process puts them together on a CPU, since whatever else it has to do waits. What only takes long to be
sent or received is a note: files and backups are large by their nature, and the other side, or the network, may be slow.

Ask for less, or page by page; send it piece by piece while it is made (a stream) instead of all at the end; compress it where the network
is slow. What it costs to take such an answer apart comes after its last byte, and is in no time here: hot functions and stalls of
an event loop show it.",
};

fn check(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let peers = run.requests.iter().flat_map(|requests| &requests.peers);
    let routes = peers.flat_map(|peer| peer.routes.iter().map(move |route| (peer, route)));
    routes.filter_map(|(peer, route)| judge(peer, route, values)).collect()
}

fn judge(peer: &Exchanges, route: &Route, values: &Values<'_>) -> Option<Finding> {
    let (first, whole, size) = (&route.first, &route.whole, route.mean_bytes());
    let large = first.count >= MIN_ANSWERS && size as f64 >= values.get(&SIZE);
    if !large || whole.p50_ns < values.ns(&TIME) {
        return None;
    }
    let goes = route.breakdown.as_ref();
    // That others have the CPUs is not the answer's fault.
    let starved_ns = goes.map_or(0, |goes| goes.run_queue_ns);
    let whole_ns = whole.sum_ns / whole.count.max(1);
    let mean_ns = whole_ns.saturating_sub(starved_ns).max(1);
    let sending_ns = whole.sum_ns.saturating_sub(first.sum_ns) / whole.count.max(1);
    let on_cpu_ns = goes.map_or(0, |goes| goes.on_cpu_ns);
    let explains = on_cpu_ns as f64 <= 1e9 * size as f64 / LEAST_BYTES_PER_SECOND;
    let making_ns = if explains { on_cpu_ns } else { 0 };
    let [sending, making] = [sending_ns, making_ns].map(|ns| percent(ns, mean_ns).min(100.0));
    if sending + making < values.get(&SHARE) {
        return None;
    }
    let makes = making >= values.get(&SHARE);
    // In words it is of all of the time.
    let [sending, making] = [sending_ns, making_ns].map(|ns| percent(ns, whole_ns).min(100.0));
    let operation = if route.operation.is_empty() { "an answer" } else { &route.operation };
    let (of, moved) = match peer.side {
        Side::Answers => (format!("{operation} of {}", peer.who()), "sent"),
        Side::Asks => (format!("{operation} that {} asks of {}", peer.who(), peer.place()), "received"),
    };
    let goes = match making_ns {
        0 => format!("{sending:.0} % of it while it is {moved}"),
        _ => format!("{making:.0} % of it on a CPU before the first one, {sending:.0} % while it is {moved}"),
    };
    let process = ProcessName { pid: peer.pid, name: peer.process.clone() };
    Some(Finding {
        severity: if makes { Severity::Warning } else { Severity::Info },
        bottleneck: if makes { Bottleneck::Cpu } else { Bottleneck::Network },
        title: format!(
            "{of} has {} (mean of {}): half take {} and more to the last byte, {} to the first; {goes}",
            bytes(size as f64),
            thousands(first.count),
            time(whole.p50_ns),
            time(first.p50_ns),
        ),
        advice: "ask for less or page by page, send it while it is made (a stream), compress it".to_owned(),
        details: BTreeMap::from([
            ("mean_bytes", json!(size)),
            ("largest_bytes", json!(route.largest_bytes)),
            ("answers", json!(first.count)),
            ("first_p50_ns", json!(first.p50_ns)),
            ("whole_p50_ns", json!(whole.p50_ns)),
        ]),
        ..Finding::warning(
            RULE.name,
            Bottleneck::Network,
            process,
            format!("{} {}", peer.peer, route.operation).trim().to_owned(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::rule::Overrides,
        model::{
            distribution::Summary,
            request::{Breakdown, fixtures},
        },
    };

    const MS: u64 = 1_000_000;

    /// 100 answers of so many bytes each: time to the first byte, to the last one, and of that on a CPU, ms.
    fn found(size: u64, first: u64, whole: u64, on_cpu: u64, side: Side) -> Option<(Severity, String)> {
        let mut run = crate::model::report::fixtures::run(&[]);
        let mut requests = fixtures::requests();
        let peer = requests.peers.iter_mut().find(|peer| !peer.routes.is_empty()).unwrap();
        peer.side = side;
        let all =
            |ms: u64| Summary { count: 100, sum_ns: 100 * ms * MS, p50_ns: ms * MS, ..Summary::default() };
        let goes = Breakdown { on_cpu_ns: on_cpu * MS, total_ns: first * MS, ..Breakdown::default() };
        let route = &mut peer.routes[0];
        (route.first, route.whole, route.answer_bytes) = (all(first), all(whole), 100 * size);
        route.breakdown = Some(goes).filter(|_| side == Side::Answers);
        run.requests = Some(requests);
        check(&run, &Overrides::default().of(&RULE)).pop().map(|of| (of.severity, of.title))
    }

    #[test]
    fn what_is_large_and_takes_long_is_told() {
        let (severity, title) = found(20_000_000, 300, 320, 250, Side::Answers).unwrap();
        assert_eq!(severity, Severity::Warning);
        assert!(
            title.contains("GET /users/:id of app (pid 7) has ")
                && title.contains(
                    "(mean of 100): half take 320 ms and more to the last byte, 300 ms to the first"
                )
                && title.contains("78 % of it on a CPU"),
            "{title}"
        );
        let (severity, title) = found(20_000_000, 20, 400, 5, Side::Answers).unwrap();
        assert!(
            severity == Severity::Info
                && title.contains("1 % of it on a CPU before the first one, 95 % while it is sent"),
            "{title}"
        );
        let (_, title) = found(20_000_000, 20, 400, 0, Side::Asks).unwrap();
        assert!(
            title.contains("that app (pid 7) asks of :8080")
                && title.contains("95 % of it while it is received"),
            "{title}"
        );
    }

    #[test]
    fn a_recording_may_say_anything() {
        let mut run = crate::model::report::fixtures::run(&[]);
        let mut requests = fixtures::requests();
        let route = requests.peers.iter_mut().find_map(|peer| peer.routes.first_mut()).unwrap();
        let all = Summary { count: 9, sum_ns: u64::MAX, p50_ns: u64::MAX, ..Summary::default() };
        (route.first, route.whole, route.answer_bytes) = (all, all, u64::MAX);
        let goes = Breakdown { on_cpu_ns: u64::MAX, run_queue_ns: u64::MAX, ..Breakdown::default() };
        route.breakdown = Some(goes);
        run.requests = Some(requests);
        let found = check(&run, &Overrides::default().of(&RULE)).remove(0);
        assert!(found.title.contains("100 % of it on a CPU"), "{}", found.title);
    }

    #[test]
    fn what_is_small_or_soon_there_or_slow_for_another_reason_is_not() {
        for (size, first, whole, on_cpu) in [
            (900_000, 20, 400, 0),
            (20_000_000, 20, 90, 0),
            (20_000_000, 300, 320, 20),
            (1_000_000, 2000, 2020, 1900),
        ] {
            assert_eq!(found(size, first, whole, on_cpu, Side::Answers), None, "{size} {first} {whole}");
        }
    }
}
