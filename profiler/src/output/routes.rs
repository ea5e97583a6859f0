//! The time of requests by route and what it went to, as folded lines and as a flame graph:
//! `process;port;route;part;outermost;…;innermost nanoseconds`. The widths of a route add up to the time from the first byte of each of
//! its requests to the last byte of the answer. How much a part is was measured; where on a CPU, was sampled.

use std::{collections::BTreeMap, io::Write};

use anyhow::Result;

use crate::{
    model::{
        report::{Names, Run},
        request::{Breakdown, Exchanges, Route, WorkStack},
    },
    output::{flamegraph, folded, options::RenderOptions},
};

/// What is said of a run without requests.
const NOTHING: &str = "No requests: the target answered none, or they were not seen.";

/// Writes a line for each part of each route.
pub fn write_folded(run: &Run, _options: &RenderOptions, out: &mut dyn Write) -> Result<()> {
    for (stack, ns) in lines(run) {
        writeln!(out, "{stack} {ns}")?;
    }
    Ok(())
}

/// Draws them.
pub fn write_svg(run: &Run, _options: &RenderOptions, out: &mut dyn Write) -> Result<()> {
    let lines = lines(run);
    let sum_ns: u64 = lines.values().sum();
    if sum_ns == 0 {
        return flamegraph::empty(NOTHING, out);
    }
    let lines: Vec<String> = lines.into_iter().map(|(stack, ns)| format!("{stack} {ns}")).collect();
    let mut settings = inferno::flamegraph::Options::default();
    settings.title = format!("{} requests by route: {}", run.cpu.meta.target, run.cpu.meta.host);
    settings.subtitle = Some(format!(
        "{:.1} s of all requests, in {:.1} s; ns; parts of a route: shares of its mean, from requests that were followed; stacks: sampled",
        sum_ns as f64 / 1e9,
        run.requests_watched_ns() as f64 / 1e9
    ));
    settings.count_name = "ns".to_owned();
    settings.deterministic = true;
    inferno::flamegraph::from_lines(&mut settings, lines.iter().map(String::as_str), out)?;
    Ok(())
}

fn lines(run: &Run) -> BTreeMap<String, u64> {
    let mut lines = BTreeMap::new();
    let served = run.requests.iter().flat_map(|requests| requests.served().map(move |peer| (requests, peer)));
    for (requests, peer) in served {
        for route in &peer.routes {
            let name = if route.operation.is_empty() { "(not known what)" } else { &route.operation };
            let outer = [&peer.process, &place(peer), name].map(folded::clean).join(";");
            let stacks = requests.stacks_of(peer, route);
            for (part, ns) in parts(route) {
                let of_part: Vec<&WorkStack> =
                    stacks.iter().filter(|of| Breakdown::part_of(of.cause) == Some(&part)).collect();
                for (inner, ns) in by_stack(run.names(), &of_part, ns) {
                    *lines.entry(format!("{outer};{}{inner}", folded::clean(&part))).or_default() += ns;
                }
            }
        }
    }
    lines.retain(|_, ns| *ns > 0);
    lines
}

fn place(peer: &Exchanges) -> String {
    if peer.protocol.is_empty() { peer.peer.clone() } else { format!("{} ({})", peer.peer, peer.protocol) }
}

/// What the time of a route's requests went to, ns: before the answer in the proportions of its breakdown, then the rest of the
/// answer.
fn parts(route: &Route) -> Vec<(String, u64)> {
    let before_ns = route.first.sum_ns;
    let mut parts = match &route.breakdown {
        Some(breakdown) => shared(breakdown, before_ns),
        None => vec![("not followed".to_owned(), before_ns)],
    };
    parts.push(("rest of the answer".to_owned(), route.whole.sum_ns.saturating_sub(before_ns)));
    parts
}

/// Shares out a time in the proportions of a breakdown. Parts can overlap: a thread computes while an answer is awaited, and several
/// answers can be awaited at once. So all are brought down alike where they are more than the whole.
fn shared(of: &Breakdown, sum_ns: u64) -> Vec<(String, u64)> {
    let asked_ns: u64 = of.asked.iter().map(|asked| asked.ns).sum();
    // What was awaited at once is shared out among the peers.
    let each = of.awaiting_ns as f64 / asked_ns.max(1) as f64;
    let mut parts: Vec<(String, f64)> =
        of.own().into_iter().map(|part| (part.short.to_owned(), part.ns as f64)).collect();
    parts.extend(of.asked.iter().map(|asked| {
        let what = if asked.protocol.is_empty() { String::new() } else { format!(" ({})", asked.protocol) };
        (format!("awaiting {}{what}", asked.peer), asked.ns as f64 * each)
    }));
    if parts.iter().all(|(_, ns)| *ns <= 0.0) {
        return vec![("other".to_owned(), sum_ns)];
    }
    in_proportion(parts, sum_ns)
}

/// Shares out the time of a part among its stacks, each as the end of a line. What is known of waits are the long ones: the others
/// have no stack.
fn by_stack(names: &Names, stacks: &[&WorkStack], part_ns: u64) -> Vec<(String, u64)> {
    let line = |of: &&WorkStack| {
        let mut line = String::new();
        folded::add_functions(names, names.stack(of.stack), &mut line);
        (line, of.weight as f64)
    };
    let mut parts: Vec<(String, f64)> = stacks.iter().map(line).collect();
    let known: f64 = parts.iter().map(|(_, weight)| weight).sum();
    let waits = stacks.iter().any(|of| of.cause.is_some());
    if parts.is_empty() || (waits && known < part_ns as f64) {
        parts.push((String::new(), (part_ns as f64 - known).max(1.0)));
    }
    in_proportion(parts, part_ns)
}

/// Shares out a time in proportion to weights, of which one at least is not zero; rounded so that the shares add up.
fn in_proportion(parts: Vec<(String, f64)>, sum_ns: u64) -> Vec<(String, u64)> {
    let all: f64 = parts.iter().map(|(_, weight)| weight).sum();
    let (mut so_far, mut given) = (0.0, 0);
    let round = |(part, weight): (String, f64)| {
        so_far += weight;
        let until = (sum_ns as f64 * (so_far / all).min(1.0)).round() as u64;
        let ns = until.saturating_sub(given);
        given = until.max(given);
        (part, ns)
    };
    parts.into_iter().map(round).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{
        report::fixtures,
        request::{Asked, fixtures::requests},
    };

    fn run() -> Run {
        let mut run = fixtures::run(&[]);
        run.requests = Some(requests());
        run
    }

    #[test]
    fn routes_are_made_of_their_parts() {
        let mut text = Vec::new();
        write_folded(&run(), &RenderOptions::default(), &mut text).unwrap();
        // 30 s to the first bytes, of which 20 in 30 ms on a CPU; 1 s from there to the last ones.
        insta::assert_snapshot!(String::from_utf8(text).unwrap(), @r"
        app;:8080 (HTTP);GET /users/:id;awaiting 10.0.0.2:5432 (PostgreSQL) 4000000000
        app;:8080 (HTTP);GET /users/:id;on CPU 20000000000
        app;:8080 (HTTP);GET /users/:id;other 5000000000
        app;:8080 (HTTP);GET /users/:id;rest of the answer 1000000000
        app;:8080 (HTTP);GET /users/:id;waiting for a CPU 1000000000
        ");
    }

    #[test]
    fn a_picture_has_them_or_says_that_there_is_nothing() {
        let drawn = |run: &Run| {
            let mut svg = Vec::new();
            write_svg(run, &RenderOptions::default(), &mut svg).unwrap();
            String::from_utf8(svg).unwrap()
        };
        let svg = drawn(&run());
        assert!(svg.contains("on CPU (20,000,000,000 ns, 64.52%)") && svg.contains("31.0 s of all"), "{svg}");
        assert!(drawn(&fixtures::run(&[])).contains(NOTHING));
    }

    proptest! {
        #[test]
        fn parts_add_up(sum_ns in 0..u64::MAX >> 12, times in prop::array::uniform7(0..1u64 << 40), awaiting_ns in 0..1u64 << 40) {
            let [on_cpu_ns, run_queue_ns, disk_ns, lock_ns, sleep_ns, other_ns, ns] = times;
            let asked = vec![Asked { peer: "x".into(), ns, ..Asked::default() }; 2];
            let breakdown =
                Breakdown { on_cpu_ns, run_queue_ns, disk_ns, lock_ns, sleep_ns, other_ns, awaiting_ns, asked, ..Breakdown::default() };
            let parts = shared(&breakdown, sum_ns);
            let sum: u64 = parts.iter().map(|(_, ns)| ns).sum();
            prop_assert!(sum.abs_diff(sum_ns) <= sum_ns >> 40, "{sum} of {sum_ns}: {parts:?}");
        }
    }
}
