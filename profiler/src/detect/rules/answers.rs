//! How requests at a port of the process are answered: with errors, late, or after they have waited to be read.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    detect::{
        rule::{Needs, Param, Rule, Unit, Values},
        served,
        words::most_in,
    },
    model::{
        finding::{Bottleneck, Finding, ProcessName, Severity},
        report::Run,
        request::{Exchanges, Route, Side},
        units::{percent, share, thousands, time},
    },
};

const FAILED: Param = Param {
    name: "failed",
    unit: Unit::Percent,
    default: 5.0,
    help: "Answers that are errors of the server; twice as many are critical",
    flag: None,
};
const QUEUED: Param = Param {
    name: "queued",
    unit: Unit::Seconds,
    default: 0.05,
    help: "Time for which one in a hundred requests lies at the socket unread",
    flag: None,
};
const SLOW: Param = Param {
    name: "slow",
    unit: Unit::Seconds,
    default: 1.0,
    help: "Time that one in ten requests of a kind takes at least; five times as long is critical",
    flag: None,
};
const TIMES: Param = Param {
    name: "times",
    unit: Unit::Count,
    default: 10.0,
    help: "How many times as long as the others of their port half of the requests of a kind take, from 0.1 s on",
    flag: None,
};

/// Fewer answers say little; some say enough where nearly all of them fail, %.
const MIN_ANSWERS: u64 = 20;
const FEW_ANSWERS: u64 = 5;
const NEARLY_ALL: f64 = 90.0;
/// Part of the time until the answer that must have gone by before a request was read.
const QUEUED_SHARE: f64 = 0.3;
/// Part of a request's time in which nothing is done and nobody is asked, from which on it looks as if it was meant to wait.
const WAITS_ITSELF: f64 = 0.8;
/// Fewer requests of a kind say nothing of its slow ones.
const MIN_OF_KIND: u64 = 5;
/// Nobody minds what takes less, however fast the others are, ns.
const NOTICED_NS: u64 = 100_000_000;
/// Part of the time of all requests that a kind must take to be told among faster ones; and the parts of that time and of their
/// number from which on it is no rare thing (a log-in, a report), %.
const NOTICED: f64 = 20.0;
const MATTERS: (f64, f64) = (50.0, 10.0);

/// Requests that fail.
pub static ERRORS: Rule = Rule {
    name: "request-errors",
    summary: "requests are answered with errors, by the process or by whom it asks",
    needs: &[Needs::Requests],
    params: &[FAILED],
    check: errors,
    doc: "\
Of the answers that the process gave at one of its ports many are errors that it is to blame for: of HTTP those with a status of 500
and more, of other protocols what they call an error. Errors of clients (404, 401) are not among them. All answers of HTTP/1.x are
counted, of other protocols those that were looked at.

The route that fails most is named. Look at the program's log for it, and at the peers it asked. Where only few of all answers are
errors, a route is told of which as many are: so many of those that were looked at that chance is no explanation.

Answers that the process gets are judged likewise. Where the protocol does not tell whose fault an error is (all but HTTP), half of
the answers must be errors; of a name server nearly all, as names are looked for in one domain after the other. A route of
theirs is a note only: a command may be tried that the other side need not know.",
};

/// Requests that are read late.
pub static QUEUEING: Rule = Rule {
    name: "request-queueing",
    summary: "requests lie unread at the socket before the process takes them",
    needs: &[Needs::Requests],
    params: &[QUEUED],
    check: queueing,
    doc: "\
From when the first byte of a request was at the socket until the process read it. No time that the process logs itself has it: it has
not seen the request yet. All threads that read are busy (an event loop in a long turn, a pool that is used up), or no CPU was free for
them.

Look at what the loop or the workers do meanwhile: stalls, hot functions, waits. More workers help only where CPUs are free.",
};

/// Kinds of requests that take long.
pub static SLOW_ROUTE: Rule = Rule {
    name: "slow-requests",
    summary: "requests of one kind take long",
    needs: &[Needs::Requests],
    params: &[SLOW, TIMES],
    check: slow,
    doc: "\
One in ten requests of a kind takes longer than the threshold until the first byte of its answer. Where the time goes is said as far as
it could be followed: on a CPU, waiting for one, for a lock, for files, for peers.

So is the kind that takes most time at a port where half of its requests take many times as long as others there, and a fifth of the
time of all. It is a warning where it makes up a tenth of the requests and half of the time; a log-in or a report, slow by its nature
and rare, is a note.

Requests that take their time without any work and without asking anybody are a note only: a long poll looks like that, a timer too. So
are those that await answers for 5 s and more, all for the same time and without an error: a long poll that is passed on.",
};

/// The least part of the answers of who is asked, %, that must be errors to be told: `failed` where it is known that the side that
/// answers is to blame.
fn least_failed(peer: &Exchanges, failed: f64) -> f64 {
    match (peer.side, &*peer.protocol) {
        (Side::Answers, _) | (_, "HTTP") => failed,
        (Side::Asks, "DNS") => failed.max(99.0),
        (Side::Asks, _) => failed.max(50.0),
    }
}

/// The least share that a part of a whole stands for, whatever chance did: Wilson's lower bound, three standard errors below.
fn at_least(part: f64, whole: f64) -> f64 {
    const Z: f64 = 3.0;
    let (share, each) = (part / whole, Z * Z / whole);
    let error = Z * (share * (1.0 - share) / whole + each / whole / 4.0).sqrt();
    (share + each / 2.0 - error) / (1.0 + each)
}

fn errors(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let peers = run.requests.iter().flat_map(|requests| &requests.peers);
    let failed = values.get(&FAILED);
    peers.filter_map(|peer| errors_of_peer(peer, failed).or_else(|| errors_of_route(peer, failed))).collect()
}

/// Errors of one route that the side that answers is to blame for.
fn broken(peer: &Exchanges, route: &Route) -> u64 {
    route.broken(peer.protocol == "HTTP").map(|(_, n)| n).sum()
}

/// Whose answers these are, and for whom.
fn answers_of(peer: &Exchanges) -> String {
    match peer.side {
        Side::Asks => format!("answers of {} to {}", peer.place(), peer.who()),
        Side::Answers => format!("answers of {} at {}", peer.who(), peer.peer),
    }
}

fn errors_of_peer(peer: &Exchanges, failed_least: f64) -> Option<Finding> {
    let (failed, of) = peer.broken();
    let share = percent(failed, of);
    let least = least_failed(peer, failed_least);
    let few = of < MIN_ANSWERS;
    let enough = !few || (peer.protocol == "HTTP" && of >= FEW_ANSWERS && share >= NEARLY_ALL);
    if !enough || share < least {
        return None;
    }
    let broken = |route: &Route| broken(peer, route);
    let worst = peer.routes.iter().max_by_key(|route| broken(route)).filter(|route| broken(route) > 0);
    let all: u64 = peer.routes.iter().map(broken).sum();
    let most = worst.map_or_else(String::new, |route| {
        let most = if 2 * broken(route) > all { "most of them" } else { "the most of one kind" };
        let (rate, requests) = (percent(broken(route), route.first.count), thousands(route.first.count));
        format!(", {most} {} ({}): {rate:.0} % of its {requests}", route.operation, first_error(peer, route))
    });
    Some(Finding {
        severity: if share >= 2.0 * least && !few { Severity::Critical } else { Severity::Warning },
        title: format!("{share:.1} % of {} {} are errors{most}", thousands(of), answers_of(peer)),
        ..errors_finding(peer, worst, failed, of)
    })
}

/// The route that fails most by its own rate, of a peer that does not as a whole.
fn errors_of_route(peer: &Exchanges, failed_least: f64) -> Option<Finding> {
    let http = peer.protocol == "HTTP";
    // Of names that are looked for in vain each kind (PTR, AAAA) can be.
    let least = if http { failed_least } else { failed_least.max(50.0) };
    // Where some were looked at, each stands for several.
    let seen = (peer.looked_at as f64 / peer.exchanges().max(1) as f64).min(1.0);
    let sure = |route: &Route| match broken(peer, route) as f64 * seen {
        failed if failed < FEW_ANSWERS as f64 || route.operation.is_empty() => 0.0,
        failed => 100.0 * at_least(failed, (route.first.count as f64 * seen).max(failed)),
    };
    let worst = peer.routes.iter().max_by(|a, b| sure(a).total_cmp(&sure(b)))?;
    if sure(worst) < least.max(f64::MIN_POSITIVE) || peer.protocol == "DNS" {
        return None;
    }
    let (failed, of) = (broken(peer, worst), worst.first.count);
    let (all_failed, all) = peer.broken();
    Some(Finding {
        severity: if http { Severity::Warning } else { Severity::Info },
        title: format!(
            "{:.0} % of {} {} for {} are errors ({}), though of all its answers {}",
            percent(failed, of),
            thousands(of),
            answers_of(peer),
            worst.operation,
            first_error(peer, worst),
            share(all_failed, all),
        ),
        ..errors_finding(peer, Some(worst), failed, of)
    })
}

/// The most common error of a route.
fn first_error<'a>(peer: &Exchanges, route: &'a Route) -> &'a str {
    route.broken(peer.protocol == "HTTP").next().map_or("", |(error, _)| error)
}

fn errors_finding(peer: &Exchanges, route: Option<&Route>, failed: u64, of: u64) -> Finding {
    let advice = match peer.side {
        Side::Asks => "look at that peer, and at what it is asked for",
        Side::Answers => "look at its log for that route, and at the peers that it asked",
    };
    Finding {
        advice: advice.to_owned(),
        ..finding(&ERRORS, peer, route, vec![("failed", json!(failed)), ("answers", json!(of))])
    }
}

fn queueing(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let served = run.requests.iter().flat_map(|requests| requests.served());
    let found = served.filter_map(|peer| {
        let (queued, whole) = (&peer.queued, &peer.whole);
        let share = queued.sum_ns as f64 / (queued.sum_ns + whole.sum_ns).max(1) as f64;
        if queued.count < MIN_ANSWERS || queued.p99_ns < values.ns(&QUEUED) || share < QUEUED_SHARE {
            return None;
        }
        Some(Finding {
            severity: Severity::Warning,
            title: format!(
                "requests at {} lie unread for up to {} (p99) before {} takes them: {:.0} % of their time",
                peer.peer,
                time(queued.p99_ns),
                peer.who(),
                100.0 * share
            ),
            advice: "see what the threads that read do meanwhile: stalls, hot functions, waits".to_owned(),
            ..finding(
                &QUEUEING,
                peer,
                None,
                vec![("queued_p99_ns", json!(queued.p99_ns)), ("share", json!(share))],
            )
        })
    });
    found.collect()
}

fn slow(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let served = run.requests.iter().flat_map(|requests| requests.served());
    let routes = served.flat_map(|peer| {
        let among = among_faster(peer, values);
        let of_route = move |route| among.filter(|among| std::ptr::eq(among.route, route));
        peer.routes.iter().map(move |route| (peer, route, of_route(route)))
    });
    let found = routes.filter_map(|(peer, route, among)| {
        let first = &route.first;
        let late = first.count >= MIN_OF_KIND && first.p90_ns >= values.ns(&SLOW);
        let among = among.filter(|_| !late);
        if !late && among.is_none() {
            return None;
        }
        let goes = route.breakdown.as_ref();
        let waits = goes.is_none_or(|goes| goes.other_ns as f64 >= WAITS_ITSELF * goes.total_ns as f64);
        // Who passes on a question that waits for work waits as long himself.
        let polls = goes.is_some_and(|goes| {
            let awaits = goes.awaiting_ns as f64 >= WAITS_ITSELF * goes.total_ns as f64;
            awaits
                && route.errors.is_empty()
                && first.p50_ns >= served::LONG_POLL_NS
                && first.p99_ns as f64 <= served::SAME * first.p50_ns as f64
        });
        let severity = match () {
            () if waits || polls || among.is_some_and(|among| !among.matters) => Severity::Info,
            () if first.p90_ns >= 5 * values.ns(&SLOW) => Severity::Critical,
            () => Severity::Warning,
        };
        let where_to = goes.map(served::most).filter(|part| part.ns > 0);
        let lacks = where_to.as_ref().map_or(Bottleneck::Network, |part| part.lacks);
        let most = where_to.map_or_else(String::new, |part| {
            let own = most_in(served::spent_in(run, peer, route, part.lacks));
            let share = percent(part.ns, goes.map_or(0, |goes| goes.total_ns));
            format!(", on average {share:.0} % of it {}{own}", part.what)
        });
        Some(Finding {
            severity,
            title: match among {
                None => format!(
                    "{} of {} takes {} and more for one in ten of {}{most}",
                    if route.operation.is_empty() { "an answer" } else { &route.operation },
                    peer.who(),
                    time(first.p90_ns),
                    thousands(first.count),
                ),
                Some(among) => format!(
                    "{} of {} takes {} and more for half of {}, others at {} {}: {:.0} % of the time of all{most}",
                    route.operation,
                    peer.who(),
                    time(first.p50_ns),
                    thousands(first.count),
                    peer.peer,
                    time(among.others_ns),
                    among.share,
                ),
            },
            bottleneck: if lacks == Bottleneck::None { Bottleneck::Network } else { lacks },
            advice: "see where its time goes among the slowest requests (--details)".to_owned(),
            ..finding(
                &SLOW_ROUTE,
                peer,
                Some(route),
                vec![("p90_ns", json!(first.p90_ns)), ("requests", json!(first.count))],
            )
        })
    });
    found.collect()
}

/// A kind of request among others that are much faster.
#[derive(Clone, Copy)]
struct Among<'a> {
    route: &'a Route,
    /// What half of the others take, ns.
    others_ns: u64,
    /// Its part of the time of all, %.
    share: f64,
    /// It is not rare.
    matters: bool,
}

/// The kind with the most time of those that take many times as long as the others of their port.
fn among_faster<'a>(peer: &'a Exchanges, values: &Values<'_>) -> Option<Among<'a>> {
    let mut routes: Vec<&Route> =
        peer.routes.iter().filter(|route| !served::is_for_work(peer, route)).collect();
    routes.sort_by_key(|route| route.first.p50_ns);
    let requests: u64 = routes.iter().map(|route| route.first.count).sum();
    let total_ns: u64 = routes.iter().map(|route| route.first.sum_ns).sum();
    let is_slow = |route: &&&Route| {
        let long = route.first.p50_ns >= NOTICED_NS && route.first.count >= MIN_ANSWERS;
        long && !route.operation.is_empty() && percent(route.first.sum_ns, total_ns) >= NOTICED
    };
    let route = *routes.iter().filter(is_slow).max_by_key(|route| route.first.sum_ns)?;
    let others = requests - route.first.count;
    let mut half = others / 2;
    // The median of each for that of all of them.
    let other = routes.iter().filter(|of| !std::ptr::eq(**of, route)).find(|of| {
        let is_there = of.first.count > half;
        half = half.saturating_sub(of.first.count);
        is_there
    })?;
    let (others_ns, share) = (other.first.p50_ns, percent(route.first.sum_ns, total_ns));
    let matters = share >= MATTERS.0 && percent(route.first.count, requests) >= MATTERS.1;
    let apart = route.first.p50_ns as f64 >= values.get(&TIMES) * others_ns as f64;
    (apart && others >= MIN_ANSWERS).then_some(Among { route, others_ns, share, matters })
}

fn finding(
    rule: &Rule,
    peer: &Exchanges,
    route: Option<&Route>,
    details: Vec<(&'static str, Value)>,
) -> Finding {
    let operation = route.map_or("", |route| &route.operation);
    let process = ProcessName { pid: peer.pid, name: peer.process.clone() };
    let subject = format!("{} {operation}", peer.peer).trim().to_owned();
    Finding {
        details: BTreeMap::from_iter(details),
        ..Finding::warning(rule.name, Bottleneck::Network, process, subject)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::rule::Overrides,
        model::{distribution::Summary, request::fixtures},
    };

    const MS: u64 = 1_000_000;

    fn found(rule: &Rule, change: impl Fn(&mut Exchanges)) -> Vec<(Severity, String)> {
        let mut run = crate::model::report::fixtures::run(&[]);
        let mut requests = fixtures::requests();
        change(requests.peers.iter_mut().find(|peer| !peer.routes.is_empty()).unwrap());
        run.requests = Some(requests);
        (rule.check)(&run, &Overrides::default().of(rule))
            .into_iter()
            .map(|of| (of.severity, of.title))
            .collect()
    }

    #[test]
    fn errors_are_told_with_their_route() {
        assert!(found(&ERRORS, |_| ()).is_empty(), "less than a hundredth");
        let not_found = |peer: &mut Exchanges| {
            peer.statuses = [0, 0, 640, 0, 300, 60];
            let icon = Route {
                operation: "GET /favicon.ico".into(),
                errors: vec![("404".into(), 300)],
                ..Route::default()
            };
            peer.routes.push(icon);
        };
        let some = found(&ERRORS, not_found);
        assert!(some[0].1.contains("most of them GET /users/:id (500)"), "{some:?}");
        let some = found(&ERRORS, |peer| peer.statuses = [0, 0, 940, 0, 0, 60]);
        assert_eq!(some[0].0, Severity::Warning);
        assert!(
            some[0].1.contains("6.0 % of 1,000 answers") && some[0].1.contains("GET /users/:id (500)"),
            "{some:?}"
        );
        assert_eq!(found(&ERRORS, |peer| peer.statuses = [0, 0, 800, 0, 0, 200])[0].0, Severity::Critical);
        let few = |failed: u64| found(&ERRORS, |peer| peer.statuses = [0, 0, 16 - failed, 0, 0, failed]);
        assert_eq!((few(16)[0].0, few(12).len()), (Severity::Warning, 0), "all of a few say enough");
        let several = found(&ERRORS, |peer| (peer.statuses, peer.processes) = ([0, 0, 800, 0, 0, 200], 4));
        assert!(several[0].1.contains("(4 processes)"), "{several:?}");
        assert!(
            found(&ERRORS, |peer| peer.statuses = [0, 0, 500, 0, 500, 0]).is_empty(),
            "the clients' errors"
        );
    }

    #[test]
    fn errors_of_who_is_asked_are_told_too() {
        let asked = |protocol: &str, failed: u64| {
            found(&ERRORS, |peer| {
                (peer.side, peer.protocol, peer.statuses) = (Side::Asks, protocol.to_owned(), [0; 6]);
                peer.routes.truncate(1);
                (peer.routes[0].first.count, peer.routes[0].errors) = (100, vec![("error".into(), failed)]);
                if protocol == "HTTP" {
                    peer.statuses = [0, 0, 100 - failed, 0, 0, failed];
                }
            })
        };
        for (protocol, few, many) in [("HTTP", 4, 6), ("redis", 49, 51), ("DNS", 90, 100)] {
            assert!(asked(protocol, few).is_empty(), "{protocol}");
            let many = asked(protocol, many);
            assert!(many[0].1.contains("of 100 answers of"), "{many:?}");
        }
    }

    #[test]
    fn a_route_is_judged_by_its_own_errors() {
        // Of 10,000 requests these of one route, and its errors.
        let found = |protocol: &str, requests: u64, failed: u64, looked_at: u64| {
            found(&ERRORS, |peer| {
                (peer.protocol, peer.first.count, peer.looked_at) = (protocol.to_owned(), 10_000, looked_at);
                peer.statuses = match protocol {
                    "HTTP" => [0, 0, 10_000 - failed, 0, 0, failed],
                    _ => [0; 6],
                };
                (peer.routes[0].first.count, peer.routes[0].errors) = (10_000 - requests, Vec::new());
                let first = Summary { count: requests, ..Summary::default() };
                let errors = vec![("404".into(), 9), ("503".into(), failed)];
                peer.routes.push(Route { operation: "POST /pay".into(), first, errors, ..Route::default() });
            })
        };
        let all = found("HTTP", 40, 40, 10_000);
        assert_eq!((all.len(), all[0].0), (1, Severity::Warning));
        assert!(
            all[0].1.contains("100 % of 40 answers of app (pid 7) at :8080 for POST /pay are errors (503)")
                && all[0].1.contains("of all its answers 0.4 %"),
            "{all:?}"
        );
        assert!(found("HTTP", 4, 4, 10_000).is_empty(), "too few");
        assert!(found("HTTP", 100, 7, 10_000).is_empty(), "chance can do that");
        assert!(found("HTTP", 40, 40, 1000).is_empty(), "four were seen, each for ten");
        assert_eq!(found("redis", 40, 40, 10_000)[0].0, Severity::Info);
        assert!(found("redis", 40, 20, 10_000).is_empty() && found("DNS", 40, 40, 10_000).is_empty());
        let many = found("HTTP", 1000, 900, 10_000);
        assert!(many.len() == 1 && many[0].1.contains("POST /pay (503): 90 % of its 1,000"), "{many:?}");
    }

    #[test]
    fn a_part_of_few_stands_for_less() {
        for (part, whole, least) in [(5.0, 5.0, 0.357), (0.0, 9.0, 0.0), (500.0, 1000.0, 0.453)] {
            assert!((at_least(part, whole) - least).abs() < 0.001, "{part} of {whole}");
        }
    }

    #[test]
    fn requests_that_lie_unread_are_told() {
        assert!(found(&QUEUEING, |_| ()).is_empty());
        let late = found(&QUEUEING, |peer| {
            (peer.queued.p99_ns, peer.queued.sum_ns) = (120 * MS, peer.whole.sum_ns);
        });
        assert!(late[0].1.contains("120 ms (p99)") && late[0].1.contains("50 % of their time"), "{late:?}");
        let pool = found(&QUEUEING, |peer| {
            (peer.queued.p99_ns, peer.queued.sum_ns, peer.processes) = (120 * MS, peer.whole.sum_ns, 4);
        });
        assert!(pool[0].1.contains("(4 processes) takes them"), "{pool:?}");
    }

    #[test]
    fn kinds_of_requests_that_take_long_are_told_with_where_the_time_goes() {
        assert!(found(&SLOW_ROUTE, |_| ()).is_empty());
        let slow = |p90_ms: u64, on_cpu_ms: u64| {
            found(&SLOW_ROUTE, |peer| {
                let route = &mut peer.routes[0];
                route.first.p90_ns = p90_ms * MS;
                let goes = route.breakdown.as_mut().unwrap();
                (goes.total_ns, goes.on_cpu_ns) = (p90_ms * MS, on_cpu_ms * MS);
                (goes.awaiting_ns, goes.other_ns) = (0, (p90_ms - on_cpu_ms) * MS);
            })
        };
        assert_eq!(slow(1500, 1200)[0].0, Severity::Warning);
        assert!(slow(1500, 1200)[0].1.contains("on average 80 % of it on a CPU"), "{:?}", slow(1500, 1200));
        assert_eq!(slow(6000, 5000)[0].0, Severity::Critical);
        assert_eq!(slow(30_000, 10)[0].0, Severity::Info, "a long poll");
    }

    #[test]
    fn a_slow_kind_among_fast_ones_is_told() {
        // So many requests of a kind that takes so long, ms, beside 1,000 that take 5 ms.
        let slow = |requests: u64, ms: u64| {
            found(&SLOW_ROUTE, |peer| {
                let first = |count, ms| Summary {
                    count,
                    p50_ns: ms * MS,
                    p90_ns: ms * MS,
                    sum_ns: count * ms * MS,
                    ..Summary::default()
                };
                let report = Route {
                    operation: "GET /report".into(),
                    first: first(requests, ms),
                    ..peer.routes[0].clone()
                };
                peer.routes[0].first = first(1000, 5);
                peer.routes.push(report);
            })
        };
        let one = slow(250, 400);
        assert_eq!((one.len(), one[0].0), (1, Severity::Warning));
        assert!(
            one[0].1.contains(
                "GET /report of app (pid 7) takes 400 ms and more for half of 250, others at :8080 5 ms"
            ) && one[0].1.contains("95 % of the time of all, on average 67 % of it on a CPU"),
            "{one:?}"
        );
        assert_eq!(slow(20, 400)[0].0, Severity::Info, "a report, slow by its nature and rare");
        assert!(slow(2, 400).is_empty() && slow(250, 40).is_empty() && slow(20, 60).is_empty());
    }
}
