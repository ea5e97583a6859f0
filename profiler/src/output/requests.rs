//! The report's parts about requests: which the process answered, whom it asked, and where their time went.

use std::io::Write;

use anyhow::Result;

use super::text::{Style, line};
use crate::{
    detect::{served, words},
    model::{
        report::Run,
        request::{Breakdown, Exchanges, Requests, Route, Side, SlowRequest},
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
        let awaited = format!("awaited {awaited:.0} % of the time{}", at_once(peer));
        let text = format!("  {}: {awaited}; {}", who(run, peer), figures(peer, seconds));
        line(&format!("{text}{}", failures(peer)), style, out)?;
    }
    more(peers.count(), out)?;
    windows(requests, style, out)?;
    not_seen(requests, style, out)
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

/// What of encrypted connections could not be seen.
fn not_seen(requests: &Requests, style: &Style, out: &mut dyn Write) -> Result<()> {
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

fn is_told(peer: &Exchanges) -> bool {
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
    // That the own machine is called so everybody knows.
    let name = if peer.name == "localhost" { "" } else { &*peer.name };
    let of: Vec<&str> = [&*peer.protocol, tls, name].into_iter().filter(|word| !word.is_empty()).collect();
    let of = if of.is_empty() { String::new() } else { format!(" ({})", of.join(", ")) };
    let others = run.requests.iter().flat_map(|all| &all.peers).any(|other| other.pid != peer.pid);
    let process = match peer.processes {
        0 | 1 if !others => String::new(),
        0 | 1 => format!(", {} (pid {})", peer.process, peer.pid),
        n => format!(", {n} processes of {} (pid {})", peer.process, peer.pid),
    };
    format!("{}{of}{process}", peer.peer)
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
        parts.push(format!("p99 {}", time(peer.first.p99_ns)));
    }
    if peer.multiplexed > 0 {
        let n = count(peer.multiplexed, "connection");
        parts.push(format!("{n} whose requests overlap (HTTP/2 …), not told apart"));
    }
    if peer.awaited > 0 {
        parts.push(format!("{} still awaited", thousands(peer.awaited)));
    }
    let (failed, of) = peer.failed();
    if failed > 0 {
        parts.push(format!("{} failed", share(failed, of)));
    }
    parts.join(", ")
}

fn failures(peer: &Exchanges) -> String {
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
    not_seen(requests, style, out)?;
    slow(run, requests, style, out)
}

fn row(run: &Run, peer: &Exchanges, style: &Style, out: &mut dyn Write) -> Result<()> {
    let seconds = run.requests_watched_ns() as f64 / 1e9;
    let (failed, of) = peer.failed();
    let first = &peer.first;
    let text = format!(
        "{:>10}  {:>8}  {:>8}  {:>8}  {:>8}  {:>8}  {:>8}  {:>5.2} %  {:>9}  {:>9}  {}{}",
        thousands(peer.exchanges()),
        per_second(peer.exchanges() as f64 / seconds.max(1e-9)),
        time(first.p50_ns),
        time(first.p90_ns),
        time(first.p99_ns),
        time(first.max_ns),
        time(peer.queued.p99_ns),
        percent(failed, of),
        bytes(peer.read_bytes as f64),
        bytes(peer.written_bytes as f64),
        who(run, peer),
        failures(peer),
    );
    line(&text, style, out)?;
    let mut notes = vec![format!(
        "connections {} made, {} ended, {} open; at most {} awaited at once",
        thousands(peer.opened),
        thousands(peer.closed),
        thousands(peer.open),
        thousands(peer.most_awaited),
    )];
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
    if peer.encrypted {
        let seen =
            if peer.decrypted > 0 { "encrypted, some not seen inside" } else { "encrypted, not seen inside" };
        notes.push(seen.to_owned());
    }
    if peer.batches > 0 {
        notes.push(format!("{} of {} were batches", thousands(peer.batches), thousands(peer.looked_at)));
    }
    if peer.looked_at < peer.exchanges() {
        notes.push(format!("routes by {} that were looked at", thousands(peer.looked_at)));
    }
    line(&format!("{:12}{}", "", notes.join("; ")), style, out)?;
    for route in peer.routes.iter().filter(|route| !route.operation.is_empty()).take(ROUTES) {
        line(&format!("{:12}{}", "", of_route(route)), style, out)?;
    }
    more(peer.routes.len().saturating_sub(ROUTES), out)
}

fn of_route(route: &Route) -> String {
    let errors = route.errors.iter().take(3).map(|(error, n)| format!("{} {error}", thousands(*n)));
    let errors: Vec<String> = errors.collect();
    let errors = if errors.is_empty() { String::new() } else { format!(", failed: {}", errors.join(", ")) };
    let goes = route.breakdown.as_ref().map_or_else(String::new, |it| format!(": {}", shares(it)));
    format!(
        "{}: {}, p50 {}, p99 {}, max {}{errors}{goes}",
        route.operation,
        thousands(route.first.count),
        time(route.first.p50_ns),
        time(route.first.p99_ns),
        time(route.first.max_ns),
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

    fn text(write: fn(&Run, &Style, &mut dyn Write) -> Result<()>) -> String {
        let mut run = fixtures::run(&[]);
        run.cpu.accounts.duration_ns = 1_000_000_000;
        run.requests = Some(requests());
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
}
