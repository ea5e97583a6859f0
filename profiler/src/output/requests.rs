//! The report's parts about requests: which the process answered, whom it asked, and where their time went.

use std::{collections::BTreeSet, io::Write};

use anyhow::Result;

use super::text::{Style, line};
use crate::{
    detect::{served, words},
    model::{
        distribution::Summary,
        report::Run,
        request::{Breakdown, Exchanges, Requests, Retries, Route, Side, SlowRequest, Streams},
        units::{bytes, count, per_second, percent, share, thousands, time},
    },
};

/// Lines on the first page: requests answered, and peers.
const SHOWN: (usize, usize) = (3, 6);
/// Of fewer requests nothing is said of how many go on at once.
const FEW: u64 = 10;
/// Lines in the live view, of each side.
const LIVE: usize = 2;
/// Lines in each table, and routes of each peer.
const LISTED: usize = 20;
const ROUTES: usize = 10;
/// Slow requests listed.
const SLOW: usize = 5;
/// Sockets for datagrams that are named.
const DATAGRAMS: usize = 2;
/// So much later than the first byte the last one must come to be told, and so large a part of that time.
const NOTICED_NS: u64 = 1_000_000;
const NOTICED_SHARE: f64 = 0.2;
/// Peers of a request's breakdown.
const ASKED: usize = 4;

/// Writes what the first page says.
pub fn summary(run: &Run, style: &Style, out: &mut dyn Write) -> Result<()> {
    let Some(requests) = &run.requests else { return Ok(()) };
    let seconds = run.requests_watched_ns() as f64 / 1e9;
    let mut served = requests.served().filter(|peer| peer.exchanges() > 0 || peer.multiplexed > 0).peekable();
    if served.peek().is_some() {
        writeln!(out, "\n{}", style.bold("requests answered"))?;
    }
    for peer in served.by_ref().take(SHOWN.0) {
        line(&format!("  {}: {}", who(run, peer), figures(peer, seconds)), style, out)?;
        if let Some(text) = slowest_route(peer) {
            line(&format!("      {text}"), style, out)?;
        }
    }
    more(served.count(), out)?;
    let mut peers = requests.asked().filter(|peer| is_told(peer)).peekable();
    if peers.peek().is_some() {
        writeln!(out, "\n{}", style.bold("peers asked"))?;
    }
    for peer in peers.by_ref().take(SHOWN.1 - 1) {
        let awaited = percent(peer.awaited_ns, run.requests_watched_ns()).min(100.0);
        let for_work = if served::waits_for_work(peer, |answers| answers.sum_ns) { ", for work" } else { "" };
        let awaited = format!("awaited {awaited:.0} % of the time{for_work}{}", at_once(peer));
        let text = format!("  {}: {awaited}; {}", who(run, peer), figures(peer, seconds));
        line(&format!("{text}{}", failures(peer)), style, out)?;
    }
    more(peers.count(), out)?;
    windows(requests, style, out)?;
    not_seen(run, requests, style, out)
}

/// For how long requests were watched, where that was not all the time.
fn windows(requests: &Requests, style: &Style, out: &mut dyn Write) -> Result<()> {
    let Some(again) = requests.windows else { return Ok(()) };
    let text = format!(
        "  watched for {} in {}, for its cost: counts are those of that time (--requests on: all)",
        time(requests.watched_ns),
        count(again + 1, "window"),
    );
    line(&text, style, out)
}

/// What could not be seen of encrypted connections, and what is sent in other ways than calls on streams.
fn not_seen(run: &Run, requests: &Requests, style: &Style, out: &mut dyn Write) -> Result<()> {
    let rings = rings(run, requests);
    if !rings.is_empty() {
        let text = format!(
            "  not seen: what is asked through io_uring, by or of {}: it has times only",
            rings.join(", ")
        );
        line(&text, style, out)?;
    }
    let datagrams: Vec<&str> = datagrams(run).take(DATAGRAMS).collect();
    if !datagrams.is_empty() {
        let text = format!("  not seen: requests in datagrams other than to DNS ({})", datagrams.join(", "));
        line(&text, style, out)?;
    }
    match &requests.tls {
        Some(tls) => tls
            .not_seen
            .iter()
            .try_for_each(|what| line(&format!("  not seen inside TLS: {what}"), style, out)),
        None if requests.peers.iter().any(|peer| peer.encrypted) => {
            line("  encrypted requests have no routes: --tls looks inside", style, out)
        }
        None => Ok(()),
    }
}

/// Programs that have rings of io_uring, and requests of which only the times are known.
fn rings<'a>(run: &'a Run, requests: &'a Requests) -> Vec<&'a str> {
    let has_ring = |pid: u32| {
        let kinds =
            run.vitals_of(pid).is_some_and(|of| of.kinds.iter().any(|of| of.kind.contains("[io_uring]")));
        let mut calls = run.calls.iter().flat_map(|calls| &calls.calls);
        kinds || calls.any(|of| of.thread.pid == pid && of.syscall == "io_uring_enter")
    };
    let unread = |of: &&Exchanges| !of.encrypted && of.routes.iter().any(|route| route.operation.is_empty());
    let of_rings = requests.peers.iter().filter(unread).filter(|of| has_ring(of.pid));
    let names: BTreeSet<&str> = of_rings.map(|of| &*of.process).collect();
    names.into_iter().collect()
}

/// Sockets for datagrams on which something was asked or answered again and again, as far as calls tell.
fn datagrams(run: &Run) -> impl Iterator<Item = &str> {
    let objects = run.calls.iter().flat_map(|calls| &calls.objects);
    let of_names = |object: &str| object.contains(" -> ") && object.ends_with(":53");
    let asked = objects
        .filter(move |of| of.object.starts_with("udp ") && !of_names(&of.object) && of.round_trips >= FEW);
    asked.map(|of| &*of.object)
}

/// Lines of the live view: what was answered and asked since the start.
pub fn live(run: &Run) -> Vec<String> {
    let seconds = run.requests_watched_ns() as f64 / 1e9;
    let lines = |title: &'static str, side: Side| {
        let peers = run.requests.iter().flat_map(|requests| &requests.peers);
        let told = peers.filter(move |peer| peer.side == side && is_told(peer)).take(LIVE);
        told.map(move |peer| {
            format!("{title} {}: {}{}", who(run, peer), figures(peer, seconds), failures(peer))
        })
    };
    lines("answers at", Side::Answers).chain(lines("asks", Side::Asks)).collect()
}

/// Whether there is anything to tell of a peer.
pub fn is_told(peer: &Exchanges) -> bool {
    peer.exchanges() > 0 || !peer.failures.is_empty() || peer.multiplexed > 0 || peer.awaited > 0
}

fn more(n: usize, out: &mut dyn Write) -> Result<()> {
    if n > 0 {
        writeln!(out, "  {n} more (--details)")?;
    }
    Ok(())
}

/// The peer with its protocol and name; and the process, where there are several.
fn who(run: &Run, peer: &Exchanges) -> String {
    let tls = if peer.encrypted || peer.decrypted > 0 { "TLS" } else { "" };
    let of: Vec<&str> = [&*peer.protocol, tls].into_iter().filter(|word| !word.is_empty()).collect();
    let of = if of.is_empty() { String::new() } else { format!(" ({})", of.join(", ")) };
    let others = run.requests.iter().flat_map(|all| &all.peers).any(|other| other.pid != peer.pid);
    let process = match peer.processes {
        0 | 1 if !others => String::new(),
        0 | 1 => format!(", {} (pid {})", peer.process, peer.pid),
        n => format!(", {n} processes of {} (pid {})", peer.process, peer.pid),
    };
    format!("{}{of}{process}", peer.place())
}

/// The time to the last byte in words, where it differs from that to the first one so that it is noticed.
fn to_the_last(first: &Summary, whole: &Summary) -> String {
    let differs = |first_ns: u64, whole_ns: u64| {
        let more_ns = whole_ns.saturating_sub(first_ns);
        more_ns >= NOTICED_NS && more_ns as f64 >= NOTICED_SHARE * first_ns as f64
    };
    if differs(first.p50_ns, whole.p50_ns) || differs(first.p99_ns, whole.p99_ns) {
        format!(", last byte p50 {}, p99 {}", time(whole.p50_ns), time(whole.p99_ns))
    } else {
        String::new()
    }
}

/// How many are awaited at once, on average, where enough is known.
fn at_once(peer: &Exchanges) -> String {
    if peer.awaited_ns == 0 || peer.exchanges() < FEW {
        return String::new();
    }
    match peer.first.sum_ns as f64 / peer.awaited_ns as f64 {
        n if n < 1.05 => ", 1 at once".to_owned(),
        n => format!(", {n:.1} at once"),
    }
}

/// How many, how long, how many failed.
fn figures(peer: &Exchanges, seconds: f64) -> String {
    let mut parts = Vec::new();
    if peer.exchanges() > 0 {
        parts.push(format!("{}/s", per_second(peer.exchanges() as f64 / seconds.max(1e-9))));
        parts.push(format!("p50 {}", time(peer.first.p50_ns)));
        parts.push(format!("p99 {}{}", time(peer.first.p99_ns), to_the_last(&peer.first, &peer.whole)));
    }
    if let Some(of) = peer.streams.as_ref().filter(|of| of.seen > 0) {
        parts.push(streams(of));
    } else if peer.multiplexed > 0 {
        let n = count(peer.multiplexed, "connection");
        parts.push(format!("{n} whose requests overlap (HTTP/2 …), not told apart"));
    }
    if peer.awaited > 0 {
        parts.push(format!("{} still awaited", thousands(peer.awaited)));
    }
    if peer.are_batches() {
        parts.push("most are several in one go, whose times are not those of one".to_owned());
    }
    let (failed, of) = peer.failed();
    if failed > 0 {
        parts.push(format!("{} failed", share(failed, of)));
    }
    parts.join(", ")
}

/// Its connections that failed.
pub fn failures(peer: &Exchanges) -> String {
    let each = peer.failures.iter().map(|of| {
        let when = if of.connecting { "connecting" } else { "connected" };
        format!("{} {} ({when})", thousands(of.count), of.error)
    });
    let each: Vec<String> = each.collect();
    if each.is_empty() { String::new() } else { format!("; failed: {}", each.join(", ")) }
}

/// The route with the most time, if there are several.
fn slowest_route(peer: &Exchanges) -> Option<String> {
    let route = peer.routes.first().filter(|route| !route.operation.is_empty())?;
    let share = percent(route.whole.sum_ns, peer.routes.iter().map(|route| route.whole.sum_ns).sum());
    let goes = route.breakdown.as_ref().map_or_else(String::new, |it| format!(": {}", shares(it)));
    Some(format!("most time in {} ({share:.0} %, p99 {}){goes}", route.operation, time(route.first.p99_ns)))
}

/// Where the time went, the largest part first.
fn shares(of: &Breakdown) -> String {
    let mut parts: Vec<(u64, String)> =
        of.own().into_iter().map(|part| (part.ns, part.short.to_owned())).collect();
    parts.extend(of.asked.iter().map(|asked| {
        let what = if asked.protocol.is_empty() { &asked.peer } else { &asked.protocol };
        (asked.ns, format!("{what} x{:.1}", asked.times))
    }));
    parts.retain(|(ns, _)| 100 * ns >= of.total_ns.max(1));
    parts.sort_by_key(|(ns, _)| std::cmp::Reverse(*ns));
    let text: Vec<String> =
        parts.iter().take(ASKED).map(|(ns, what)| format!("{what} {}", time(*ns))).collect();
    let shared = if of.alone < of.requests { " (its thread answers several at once: at most)" } else { "" };
    format!("{}{shared}", text.join(", "))
}

/// Writes all tables.
pub fn write(run: &Run, style: &Style, out: &mut dyn Write) -> Result<()> {
    let Some(requests) = &run.requests else { return Ok(()) };
    for (side, title) in [(Side::Answers, "requests answered, by port"), (Side::Asks, "peers asked")] {
        let peers: Vec<&Exchanges> = requests.peers.iter().filter(|peer| peer.side == side).collect();
        if peers.is_empty() {
            continue;
        }
        writeln!(out, "\n{}", style.bold(title))?;
        let head = format!(
            "{:>10}  {:>8}  {:>8}  {:>8}  {:>8}  {:>8}  {:>8}  {:>7}  {:>9}  {:>9}  who",
            "exchanges", "a second", "p50", "p90", "p99", "max", "queued", "failed", "read", "written"
        );
        writeln!(out, "{}", style.dim(&head))?;
        for peer in peers.iter().take(LISTED) {
            row(run, peer, style, out)?;
        }
        more(peers.len().saturating_sub(LISTED), out)?;
    }
    if let Some(tls) = requests.tls.as_ref().filter(|tls| !tls.libraries.is_empty()) {
        line(&format!("TLS libraries watched: {}", tls.libraries.join(", ")), style, out)?;
    }
    windows(requests, style, out)?;
    not_seen(run, requests, style, out)?;
    slow(run, requests, style, out)
}

fn row(run: &Run, peer: &Exchanges, style: &Style, out: &mut dyn Write) -> Result<()> {
    let seconds = run.requests_watched_ns() as f64 / 1e9;
    let (failed, of) = peer.failed();
    let first = &peer.first;
    let failed = if of > 0 { format!("{:.2} %", percent(failed, of)) } else { "-".to_owned() };
    // What is not known is not zero.
    let of = |known: u64, ns: u64| if known > 0 { time(ns) } else { "-".to_owned() };
    let text = format!(
        "{:>10}  {:>8}  {:>8}  {:>8}  {:>8}  {:>8}  {:>8}  {failed:>7}  {:>9}  {:>9}  {}{}",
        thousands(peer.exchanges()),
        per_second(peer.exchanges() as f64 / seconds.max(1e-9)),
        of(first.count, first.p50_ns),
        of(first.count, first.p90_ns),
        of(first.count, first.p99_ns),
        of(first.count, first.max_ns),
        of(peer.queued.count, peer.queued.p99_ns),
        bytes(peer.read_bytes as f64),
        bytes(peer.written_bytes as f64),
        who(run, peer),
        failures(peer),
    );
    line(&text, style, out)?;
    // Those that are accepted are not counted.
    let made = match peer.side {
        Side::Asks => format!("{} made, ", thousands(peer.opened)),
        Side::Answers => String::new(),
    };
    let mut notes = vec![format!(
        "connections {made}{} ended, {} open; at most {} awaited at once",
        thousands(peer.closed),
        thousands(peer.open),
        thousands(peer.most_awaited),
    )];
    if peer.whole.count > 0 {
        let [p50, p99, max] = [peer.whole.p50_ns, peer.whole.p99_ns, peer.whole.max_ns].map(time);
        notes.push(format!("to the last byte p50 {p50}, p99 {p99}, max {max}"));
    }
    if peer.connect.count > 0 {
        notes.push(format!(
            "connecting p50 {}, p99 {}",
            time(peer.connect.p50_ns),
            time(peer.connect.p99_ns)
        ));
    }
    if peer.retransmits > 0 {
        notes.push(format!("{} segments sent again", thousands(peer.retransmits)));
    }
    if peer.unanswered > 0 {
        notes.push(format!("{} never answered", thousands(peer.unanswered)));
    }
    if let Some(of) = &peer.streams {
        notes.push(streams(of));
    }
    for of in &peer.retries {
        notes.push(again(of));
    }
    if peer.encrypted {
        let seen =
            if peer.decrypted > 0 { "encrypted, some not seen inside" } else { "encrypted, not seen inside" };
        notes.push(seen.to_owned());
    }
    if peer.batches > 0 {
        let (batches, of) = (thousands(peer.batches), thousands(peer.looked_at));
        notes.push(format!("{batches} of {of} were several in one go, whose times are not those of one"));
    }
    if peer.looked_at < peer.exchanges() {
        notes.push(format!("routes by {} that were looked at", thousands(peer.looked_at)));
    }
    line(&format!("{:12}{}", "", notes.join("; ")), style, out)?;
    let of_streams = peer.streams.iter().flat_map(|of| &of.routes).map(|route| (route, " (estimate)"));
    let routes = peer.routes.iter().map(|route| (route, "")).chain(of_streams);
    let routes: Vec<_> = routes.filter(|(route, _)| !route.operation.is_empty()).collect();
    for (route, how) in routes.iter().take(ROUTES) {
        line(&format!("{:12}{}{how}", "", of_route(route)), style, out)?;
    }
    more(routes.len().saturating_sub(ROUTES), out)
}

/// Streams of HTTP/2, an estimate.
fn streams(of: &Streams) -> String {
    let grpc = if of.grpc > 0 { format!(", {} of gRPC", thousands(of.grpc)) } else { String::new() };
    let errors: Vec<String> =
        of.errors.iter().take(3).map(|(error, n)| format!("{} {error}", thousands(*n))).collect();
    let failed =
        if errors.is_empty() { String::new() } else { format!(", failed at least {}", errors.join(", ")) };
    format!(
        "{} of {} seen whole{grpc}: p50 {}, p99 {}{}{failed} (an estimate)",
        thousands(of.seen),
        count(of.begun, "stream"),
        time(of.first.p50_ns),
        time(of.first.p99_ns),
        to_the_last(&of.first, &of.whole),
    )
}

/// What failed and was asked again.
fn again(of: &Retries) -> String {
    let what = if of.operation.is_empty() { "what was asked" } else { &of.operation };
    format!(
        "{what} tried again {} after it failed ({}), pause p50 {}: {} of {} attempts failed in {}",
        count(of.pauses.count, "time"),
        of.error,
        time(of.pauses.p50_ns),
        thousands(of.failed),
        thousands(of.attempts),
        count(of.seconds, "second"),
    )
}

fn of_route(route: &Route) -> String {
    let errors = route.errors.iter().take(3).map(|(error, n)| format!("{} {error}", thousands(*n)));
    let errors: Vec<String> = errors.collect();
    let errors = match route.failed() {
        0 => String::new(),
        failed => format!(", failed {}: {}", share(failed, route.first.count), errors.join(", ")),
    };
    let goes = route.breakdown.as_ref().map_or_else(String::new, |it| format!(": {}", shares(it)));
    format!(
        "{}: {}, p50 {}, p99 {}, max {}{}, {} each{errors}{goes}",
        route.operation,
        thousands(route.first.count),
        time(route.first.p50_ns),
        time(route.first.p99_ns),
        time(route.first.max_ns),
        to_the_last(&route.first, &route.whole),
        bytes(route.mean_bytes() as f64),
    )
}

fn slow(run: &Run, requests: &Requests, style: &Style, out: &mut dyn Write) -> Result<()> {
    if requests.slow.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{}", style.bold("slowest requests"))?;
    for (number, of) in requests.slow.iter().enumerate().take(SLOW) {
        let own = served::spent_by_one(run, number, served::most(&of.breakdown).lacks);
        let own = own.map_or_else(String::new, |own| format!("; in {}", words::at(own)));
        line(&format!("{}{own}", of_slow(of)), style, out)?;
    }
    Ok(())
}

fn of_slow(of: &SlowRequest) -> String {
    let error = of.error.as_ref().map_or_else(String::new, |error| format!(" ({error})"));
    let operation = if of.operation.is_empty() { "request" } else { &of.operation };
    let queued = if of.queued_ns > 0 { format!(", queued {}", time(of.queued_ns)) } else { String::new() };
    let goes = if of.breakdown.requests > 0 { format!(": {}", shares(&of.breakdown)) } else { String::new() };
    format!("{:>8}  {operation} at {}{error}{queued}{goes}", time(of.whole_ns), of.peer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{report::fixtures, request::fixtures::requests};

    type Writes = fn(&Run, &Style, &mut dyn Write) -> Result<()>;

    fn text(write: Writes) -> String {
        text_of(write, |_| ())
    }

    fn text_of(write: Writes, change: impl Fn(&mut Run)) -> String {
        let mut run = fixtures::run(&[]);
        run.cpu.accounts.duration_ns = 1_000_000_000;
        run.requests = Some(requests());
        change(&mut run);
        let style = Style { colour: false, width: None, threads: false, top: 9 };
        let mut text = Vec::new();
        write(&run, &style, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn the_first_page_has_a_few_lines() {
        let text = text(summary);
        assert!(text.lines().count() <= 9, "{text}");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn tables_tell_the_rest() {
        insta::assert_snapshot!(text(write));
    }

    #[test]
    fn streams_are_an_estimate_that_says_of_how_many() {
        let of = |seen: u64, write: Writes| {
            text_of(write, |run| {
                let served = &mut run.requests.as_mut().unwrap().peers[1];
                let route = Route { breakdown: None, errors: Vec::new(), ..served.routes[0].clone() };
                let errors = vec![("503".into(), 3)];
                let (first, whole) = (served.first, served.whole);
                let streams =
                    Streams { begun: 200, seen, grpc: 5, first, whole, errors, routes: vec![route] };
                (served.streams, served.multiplexed, served.first) = (Some(streams), 1, Summary::default());
                served.routes.clear();
            })
        };
        let estimate = "150 of 200 streams seen whole, 5 of gRPC: p50 30 ms, p99 120 ms, \
                        failed at least 3 503 (an estimate)";
        assert!(of(150, summary).contains(estimate), "{}", of(150, summary));
        assert!(of(0, summary).contains("1 connection whose requests overlap (HTTP/2 …), not told apart"));
        let table = of(150, write);
        assert!(table.contains(estimate) && table.contains("GET /users/:id: 1,000, p50 30 ms"), "{table}");
    }

    #[test]
    fn what_is_tried_again_and_the_last_byte_are_told() {
        let text = text_of(write, |run| {
            let peers = &mut run.requests.as_mut().unwrap().peers;
            let pauses = Summary { count: 395, p50_ns: 2_000_000, ..Summary::default() };
            let (operation, error) = ("GET /pay".into(), "503".into());
            peers[0].retries =
                vec![Retries { operation, error, seconds: 4, attempts: 400, failed: 396, pauses }];
            peers[1].routes[0].whole.p99_ns = 900_000_000;
        });
        assert!(
            text.contains("GET /pay tried again 395 times after it failed (503), pause p50 2 ms: 396 of 400 attempts failed in 4 seconds"),
            "{text}"
        );
        assert!(text.contains("max 180 ms, last byte p50 31 ms, p99 900 ms, 9.00 kB each"), "{text}");
    }

    #[test]
    fn what_is_not_known_is_no_figure() {
        let of = |protocol: &str, batches: u64, write: Writes| {
            text_of(write, |run| {
                let served = &mut run.requests.as_mut().unwrap().peers[1];
                (served.protocol, served.statuses, served.batches) = (protocol.into(), [0; 6], batches);
                served.routes[0].errors.clear();
            })
        };
        let row = |protocol| {
            let text = of(protocol, 0, write);
            text.lines().find(|line| line.contains(":8080")).unwrap().to_owned()
        };
        assert!(
            row("redis").contains("  0.00 %  ") && row("Kafka").contains("       -  "),
            "{}",
            row("Kafka")
        );
        let batches = "several in one go, whose times are not those of one";
        assert!(of("Kafka", 600, summary).contains(batches) && !of("Kafka", 400, summary).contains(batches));
        assert!(of("Kafka", 400, write).contains(&format!("400 of 1,000 were {batches}")));
    }

    #[test]
    fn what_is_not_seen_is_said() {
        use crate::model::{
            syscall::{Calls, ObjectIo},
            vitals::{DescriptorKind, ProcessVitals, Vitals},
        };
        let unread = |ring: &str| {
            text_of(summary, |run| {
                run.requests.as_mut().unwrap().peers[1].routes[0].operation.clear();
                let kinds = vec![DescriptorKind { kind: ring.into(), first: 1, last: 1 }];
                let of = ProcessVitals { pid: 7, kinds, ..ProcessVitals::default() };
                run.vitals = Some(Vitals { processes: vec![of], unlisted: 0 });
            })
        };
        assert!(
            unread("anon_inode:[io_uring]")
                .contains("not seen: what is asked through io_uring, by or of app:")
        );
        assert!(!unread("anon_inode:[eventfd]").contains("io_uring"));
        let udp = |object: &str| {
            text_of(summary, |run| {
                let of = ObjectIo { object: object.into(), round_trips: 50, ..ObjectIo::default() };
                run.calls = Some(Calls { objects: vec![of], ..Calls::default() });
            })
        };
        assert!(udp("udp 10.0.0.1:4711 -> 10.0.0.2:8125").contains("(udp 10.0.0.1:4711 -> 10.0.0.2:8125)"));
        assert!(!udp("udp 10.0.0.1:4711 -> 10.0.0.2:53").contains("datagrams"));
    }
}
