//! One page that holds everything a reader needs (HTML): verdict, findings with their evidence, charts, tables and flame
//! graphs. Nothing is loaded from anywhere: styles and pictures are in the page, and its content policy forbids the rest.
//! Whatever comes from the target is escaped by the templates; flame graphs, which have a script of their own, are documents
//! of their own in a sandbox.

use std::io::Write;

use anyhow::Result;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{
    diff, flamegraph,
    options::RenderOptions,
    report,
    text::{Style, told},
};
use crate::model::{
    finding::{Bottleneck, Evidence, Finding, Severity, Verdict},
    kind::KINDS,
    report::{Names, Profile, Run},
    units::{bytes, count, time},
};

mod charts;
mod sections;
mod tables;

/// What the page may do: styles and scripts that are in it, documents that are in it; nothing from anywhere else.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; frame-src data:; img-src data:";
/// Functions of a stack that is evidence.
const EVIDENCE: usize = 12;
/// Functions in tables of the text at the end.
const TOP: usize = 40;

/// Writes the page.
pub fn write(run: &Run, options: &RenderOptions, out: &mut dyn Write) -> Result<()> {
    let meta = &run.cpu.meta;
    let flames: Vec<(&Profile, String)> = KINDS
        .iter()
        .filter_map(|kind| run.profile(kind).filter(|profile| profile.total > 0))
        .map(|profile| Ok((profile, picture(profile, options)?)))
        .collect::<Result<_>>()?;
    let text = text(run, options)?;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "profiler: " (meta.target) }
                style { (PreEscaped(include_str!("page.css"))) }
            }
            body {
                main {
                    h1 { (meta.target) }
                    (facts(run))
                    @if let Some(verdict) = &run.verdict { (self::verdict(run, verdict)) }
                    @if let Some(baseline) = &run.baseline { (tables::compared(baseline)) }
                    (findings(run))
                    (sections::charts(run))
                    (tables::all(run))
                    @if !flames.is_empty() {
                        h2 { "Flame graphs" }
                        p.soft { "Click a frame to zoom in; Ctrl-F or the link in the picture searches." }
                        @for (i, (profile, svg)) in flames.iter().enumerate() { (flame(profile, svg, i == 0)) }
                    }
                    h2 { "In full" }
                    div.card { details { summary { "All tables, what was lost, and what it cost" } pre { (text) } } }
                    footer {
                        "profiler " (meta.profiler_version)
                        ". Figures with ± or \"about\" are estimates from samples. Times are of the monotonic clock, from the first thing that was seen."
                    }
                }
            }
        }
    };
    Ok(out.write_all(page.into_string().as_bytes())?)
}

fn facts(run: &Run) -> Markup {
    let (meta, accounts) = (&run.cpu.meta, &run.cpu.accounts);
    let start = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(meta.start_unix_ns);
    let lost = accounts.losses.lost();
    html! {
        p.facts {
            span { (time(accounts.duration_ns)) " from " (humantime::format_rfc3339_seconds(start)) }
            span { (meta.host) ", Linux " (meta.kernel) ", " (count(u64::from(meta.cpus), "CPU")) }
            span { (count(run.cpu.total, "CPU sample")) @if lost > 0 { ", " (lost) " lost" } }
        }
    }
}

fn verdict(run: &Run, verdict: &Verdict) -> Markup {
    let finding = verdict.finding.and_then(|at| run.findings.get(at));
    let class = finding.map_or("", |finding| severity(finding.severity));
    let share = verdict.share_of_wall;
    html! {
        div.card.verdict.(class) {
            div.kind {
                (verdict.bottleneck.words())
                @if share >= 0.005 && verdict.bottleneck != Bottleneck::None { " · " (format!("{:.0} % of the time", 100.0 * share)) }
            }
            div.sentence { (verdict.sentence) }
            @if let Some(evidence) = finding.and_then(|finding| finding.evidence.first()) { (stack(run.names(), evidence, 5)) }
            @if !verdict.advice.is_empty() { p.advice { (verdict.advice) } }
            p.soft { "Based on: " (verdict.certainty) }
            @if !verdict.doubts.is_empty() { p.soft { "Doubtful: " (verdict.doubts.join("; ")) } }
            @if !verdict.blind.is_empty() { p.soft { "Not seen: " (verdict.blind.join("; ")) } }
            @if let Some(finding) = finding { (cost(finding)) (evidence(run.names(), finding)) }
        }
    }
}

/// What else was found: the verdict's own finding stands there.
fn findings(run: &Run) -> Markup {
    let main = run.verdict.as_ref().and_then(|verdict| verdict.finding);
    let others: Vec<&Finding> =
        run.findings.iter().enumerate().filter(|(i, _)| main != Some(*i)).map(|(_, of)| of).collect();
    html! {
        @if !others.is_empty() {
            h2 { @if main.is_some() { "Also found" } @else { "Findings" } }
            @for of in others { (finding(run.names(), of)) }
        }
    }
}

fn finding(names: &Names, of: &Finding) -> Markup {
    let class = severity(of.severity);
    html! {
        div.card.finding.(class) {
            div.title { span.badge.(class) { (class) } (of.title) }
            @if !of.advice.is_empty() { p.advice { (of.advice) } }
            (cost(of))
            (evidence(names, of))
        }
    }
}

fn cost(of: &Finding) -> Markup {
    html! {
        p.soft {
            code { (of.rule) }
            @if of.cost.ns > 0 { " · costs " (time(of.cost.ns)) }
            @if of.cost.share_of_wall >= 0.0005 { " · " (format!("{:.1} % of wall time", 100.0 * of.cost.share_of_wall)) }
            @if of.cost.bytes_per_s > 0.0 { " · grows by " (bytes(of.cost.bytes_per_s)) "/s" }
        }
    }
}

fn evidence(names: &Names, of: &Finding) -> Markup {
    html! {
        @if !of.evidence.is_empty() || !of.details.is_empty() {
            details {
                summary.soft { "Evidence" }
                @for evidence in &of.evidence { (stack(names, evidence, EVIDENCE)) }
                @if !of.details.is_empty() {
                    div.scroll { table {
                        @for (key, value) in &of.details {
                            tr { td { code { (key) } } td.name { (value) } }
                        }
                    } }
                }
            }
        }
    }
}

fn severity(of: Severity) -> &'static str {
    of.id()
}

/// A stack, the innermost function first.
fn stack(names: &Names, evidence: &Evidence, most: usize) -> Markup {
    let functions = told(names, &evidence.frames, most);
    let label = if evidence.label.is_empty() { "at" } else { evidence.label };
    html! {
        @if !functions.is_empty() {
            div.stack.name { (label) " " (functions.join(&format!("\n{:width$}", "", width = label.chars().count() + 1))) }
        }
    }
}

/// A flame graph of its own, whose script cannot touch the page.
fn flame(profile: &Profile, svg: &str, open: bool) -> Markup {
    let source = format!("data:image/svg+xml;base64,{}", BASE64_STANDARD.encode(svg));
    html! {
        div.card {
            details open[open] {
                summary { (profile.kind.title) ": " (profile.kind.shows) }
                iframe sandbox="allow-scripts" loading="lazy" title=(profile.kind.title) src=(source) height=(height(svg)) {}
            }
        }
    }
}

/// The picture; it remembers nothing in its address, since it has none.
fn picture(profile: &Profile, options: &RenderOptions) -> Result<String> {
    let mut svg = Vec::new();
    flamegraph::write_for_page(profile, options, &mut svg)?;
    Ok(String::from_utf8(svg)?.replace("history.replaceState(", "void ("))
}

/// Height of a picture, as it says itself; at most a screen.
fn height(svg: &str) -> u32 {
    let text = svg.split_once(" height=\"").and_then(|(_, after)| after.split_once('"'));
    let height = text.and_then(|(height, _)| height.parse::<f64>().ok()).unwrap_or(600.0);
    height.clamp(60.0, 1400.0) as u32 + 8
}

/// The report as text.
fn text(run: &Run, options: &RenderOptions) -> Result<String> {
    let style =
        Style { colour: false, width: None, threads: options.threads, top: options.top.unwrap_or(TOP) };
    let mut text = Vec::new();
    if let Some(baseline) = &run.baseline {
        diff::write(&baseline.comparison, [&baseline.file, "this run"], &style, &mut text)?;
        writeln!(text)?;
    }
    report::write(run, &style, &mut text)?;
    Ok(String::from_utf8(text)?)
}

#[cfg(test)]
mod tests;
