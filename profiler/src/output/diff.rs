//! What differs between two runs: what `profiler diff` prints, and the line that `--baseline` adds to a report.

use std::io::Write;

use anyhow::Result;
use serde_json::{Value, json};

use super::text::{Keep, Style, fit, line, paragraph};
use crate::model::{
    comparison::{Change, Comparison, FALSE_DISCOVERIES, Interval, KindComparison, Place, Side},
    kind::{ALLOC, CPU, OFF_CPU, SYSCALLS, Unit},
    names::short,
    units::{bytes, count, time},
};

/// Functions shown of a place.
const FRAMES: usize = 4;
/// Differences in the answer.
pub const ANSWER: usize = 3;
/// Places shown that do not differ significantly.
const OTHERS: usize = 5;

/// Identifies the schema of JSON.
pub const SCHEMA: &str = "profiler/diff";
/// Its version.
pub const VERSION: u32 = 1;

/// Writes the answer and a table for each kind.
pub fn write(of: &Comparison, names: [&str; 2], style: &Style, out: &mut dyn Write) -> Result<()> {
    let [before, after] = [(names[0], &of.before), (names[1], &of.after)].map(|(name, side)| {
        format!("{} ({}, {})", fit(name, usize::MAX, Keep::Start), side.target, time(side.duration_ns))
    });
    line(&style.bold(&format!("{before} -> {after}")), &Style { width: None, ..*style }, out)?;
    let (colour, answer) = answer(of, ANSWER);
    paragraph("=>", colour, &answer, 3, style, out)?;
    if let Some([before, after]) = &of.renamed {
        let [before, after] = [before, after].map(|name| fit(name, usize::MAX, Keep::Start));
        line(&format!("{before} and {after} are compared as one program"), style, out)?;
    }
    for kind in &of.kinds {
        table(kind, style, out)?;
    }
    for left_out in &of.left_out {
        line(&format!("not compared: {left_out}"), style, out)?;
    }
    if of.kinds.iter().any(KindComparison::is_judged) {
        writeln!(out)?;
        let text = "intervals hold the true difference in 95 of 100 cases; of all differences called significant 1 in \
                    20 is expected to be chance. \"not significant\" does not mean that nothing differs.";
        paragraph("note:", "2", text, 6, style, out)?;
    }
    Ok(())
}

/// What differs, in words, with the colour of it: at most so many differences, the largest.
pub fn answer(of: &Comparison, most: usize) -> (&'static str, String) {
    let (idle, found): (Vec<_>, Vec<_>) =
        of.significant().into_iter().partition(|(_, change)| change.place.idle);
    if found.is_empty() {
        let only = match idle.len() as u64 {
            0 => String::new(),
            n => format!("; {} of idleness differ", count(n, "wait")),
        };
        return ("1;33", format!("{}{only}", nothing(of)));
    }
    let shown: Vec<String> = found.iter().take(most).map(|(kind, change)| sentence(kind, change)).collect();
    let rest = found.len().saturating_sub(most);
    let more = if rest > 0 {
        format!("; and {}", count(rest as u64, "other significant difference"))
    } else {
        String::new()
    };
    ("1;31", format!("{}{more}", shown.join("; ")))
}

/// That no difference was found, and what that is worth.
fn nothing(of: &Comparison) -> String {
    let judged: Vec<&KindComparison> = of.kinds.iter().filter(|kind| kind.is_judged()).collect();
    if judged.is_empty() {
        return match of.kinds.is_empty() {
            true => "nothing can be compared".to_owned(),
            false => "too short, or too few samples, to tell a difference from chance (about ten seconds are needed)"
                .to_owned(),
        };
    }
    let places: usize = judged.iter().map(|kind| kind.places.len()).sum();
    let blind: Vec<String> = judged
        .iter()
        .filter_map(|kind| Some(format!("{} in {}", may_hide(kind.blind_points?), whole(kind))))
        .collect();
    let blind = if blind.is_empty() { String::new() } else { format!("; {} could hide", blind.join(", ")) };
    format!("no significant difference in {}{blind}", count(places as u64, "place"))
}

/// How much could hide, in words.
fn may_hide(points: f64) -> String {
    if points > 100.0 {
        "any difference".to_owned()
    } else {
        format!("differences of up to {points:.1} points")
    }
}

/// One difference in words.
pub fn sentence(kind: &KindComparison, change: &Change) -> String {
    let place = &change.place;
    let points = change.points;
    let bounds = format!("95 %: {} to {}", signed(points.low), signed(points.high));
    if change.is_total() {
        let (before, after) = (amount(kind, change.amount.0), amount(kind, change.amount.1));
        return format!(
            "{} in all {before} -> {after}, {} points of {} ({bounds})",
            kind.kind.title,
            signed(points.value),
            whole_of(kind, change)
        );
    }
    let how = match kind.kind {
        OFF_CPU => " waiting in",
        SYSCALLS => " in the system call",
        ALLOC => " allocated by",
        _ => " in",
    };
    format!("{} points of {}{how} {} ({bounds})", signed(points.value), whole(kind), shown(place, 2))
}

/// What a hundred points of a difference are of.
pub fn whole_of(kind: &KindComparison, change: &Change) -> &'static str {
    if change.is_total() && kind.kind.unit != Unit::Bytes { "wall time" } else { whole(kind) }
}

/// What a hundred points are of: of all samples, or of all that was held; or of the run's time, which a single thread can
/// fill.
fn whole(kind: &KindComparison) -> &'static str {
    match kind.kind.unit {
        _ if kind.kind == CPU => "CPU samples",
        Unit::Bytes => "live memory",
        _ => "wall time",
    }
}

fn table(kind: &KindComparison, style: &Style, out: &mut dyn Write) -> Result<()> {
    let total = &kind.total;
    let judged = match total.is_significant() {
        Some(true) => ", significant",
        Some(false) => ", not significant",
        None => ", not judged",
    };
    let bounds = bounds(kind, &total.units).map_or_else(String::new, |bounds| format!(" ({bounds})"));
    let title = format!(
        "{} (% of {}): in all {} -> {}, {}{bounds}{judged}",
        kind.kind.title,
        whole(kind),
        amount(kind, total.amount.0),
        amount(kind, total.amount.1),
        difference(kind, total.units.value),
    );
    writeln!(out)?;
    line(&style.bold(&title), &Style { width: None, ..*style }, out)?;
    let unit = if kind.kind.unit == Unit::Bytes { "bytes" } else { "by second" };
    let head = format!(
        "{:>6}  {:>6}  {:>6}  {:>16}  {:>11}  where",
        "before", "after", "points", "95 % interval", unit
    );
    writeln!(out, "{}", style.dim(&head))?;
    let (different, others): (Vec<&Change>, Vec<&Change>) =
        kind.places.iter().partition(|change| change.is_significant() == Some(true));
    for change in different.iter().take(style.top) {
        row(kind, change, style, out)?;
    }
    let hidden = different.len().saturating_sub(style.top);
    if hidden > 0 {
        writeln!(out, "{} (--top N shows more)", count(hidden as u64, "more significant difference"))?;
    }
    if others.is_empty() {
        return Ok(());
    }
    let of_them = if different.is_empty() { "none is significant" } else { "not significant" };
    let blind = match kind.blind_points {
        Some(of) => format!(": {} may be there all the same", may_hide(of)),
        None if kind.is_judged() => String::new(),
        None => ": too short, or too few samples, to be judged".to_owned(),
    };
    line(&style.dim(&format!("{of_them}{blind}")), &Style { width: None, ..*style }, out)?;
    let shown = if different.is_empty() { style.top } else { OTHERS.min(style.top) };
    for change in others.iter().take(shown) {
        row(kind, change, style, out)?;
    }
    let rest = others.len().saturating_sub(shown) + kind.too_small;
    if rest > 0 {
        writeln!(out, "{} (JSON has those that were compared)", count(rest as u64, "more place"))?;
    }
    Ok(())
}

fn row(kind: &KindComparison, change: &Change, style: &Style, out: &mut dyn Write) -> Result<()> {
    let points = change.points;
    let interval = match points.margin() {
        Some(_) => format!("{} to {}", signed(points.low), signed(points.high)),
        None => "not known".to_owned(),
    };
    let text = format!(
        "{:>6.1}  {:>6.1}  {:>6}  {:>16}  {:>11}  {}",
        change.share.0,
        change.share.1,
        signed(points.value),
        interval,
        difference(kind, change.units.value),
        shown(&change.place, FRAMES),
    );
    line(&text, style, out)
}

/// A place in words.
pub fn shown(place: &Place, functions: usize) -> String {
    let names: Vec<_> = place.functions.iter().take(functions).map(|name| short(name)).collect();
    let names = if names.is_empty() { "?".to_owned() } else { names.join(" < ") };
    let cause = place.cause.map_or_else(String::new, |cause| format!(", {}", cause.words()));
    let callees = if place.with_callees { " with callees" } else { "" };
    format!("{names}{callees}{cause} ({})", place.process)
}

fn signed(number: f64) -> String {
    let text = format!("{number:+.1}");
    if text == "-0.0" { "+0.0".to_owned() } else { text }
}

fn amount(kind: &KindComparison, value: f64) -> String {
    match kind.kind.unit {
        Unit::Bytes => bytes(value),
        _ => format!("{}/s", time(value.round() as u64)),
    }
}

fn difference(kind: &KindComparison, by: f64) -> String {
    format!("{}{}", if by < 0.0 { "-" } else { "+" }, amount(kind, by.abs()))
}

fn bounds(kind: &KindComparison, of: &Interval) -> Option<String> {
    of.margin().map(|_| format!("{} to {}", difference(kind, of.low), difference(kind, of.high)))
}

/// Writes everything as one JSON document.
pub fn write_json(of: &Comparison, names: [&str; 2], out: &mut dyn Write) -> Result<()> {
    let mut document = to_json(of);
    document["schema"] = SCHEMA.into();
    document["version"] = VERSION.into();
    document["before"]["file"] = names[0].into();
    document["after"]["file"] = names[1].into();
    serde_json::to_writer(&mut *out, &document)?;
    Ok(writeln!(out)?)
}

/// The same as a part of another document.
pub fn to_json(of: &Comparison) -> Value {
    let side = |side: &Side| json!(side);
    let interval = |of: &Interval| {
        let bound = |value: f64| value.is_finite().then_some(value);
        json!({ "value": of.value, "low": bound(of.low), "high": bound(of.high) })
    };
    let change = |of: &Change| {
        json!({
            "process": of.place.process,
            "functions": of.place.functions,
            "cause": of.place.cause.map(|cause| cause.id()),
            "idle": of.place.idle,
            "with_callees": of.place.with_callees,
            "share_percent": { "before": of.share.0, "after": of.share.1 },
            "points": interval(&of.points),
            "amount": { "before": of.amount.0, "after": of.amount.1 },
            "difference": interval(&of.units),
            "p": of.chance.map(|(p, _)| p),
            "p_adjusted": of.chance.map(|(_, adjusted)| adjusted),
            "significant": of.is_significant(),
        })
    };
    let kind = |of: &KindComparison| {
        json!({
            "kind": of.kind.name,
            "unit": if of.kind.unit == Unit::Bytes { "bytes" } else { "nanoseconds_per_second" },
            "share_of": match of.kind.unit {
                _ if of.kind == CPU => "samples",
                Unit::Bytes => "memory_before",
                _ => "wall_time",
            },
            "total": change(&of.total),
            "places": of.places.iter().map(change).collect::<Vec<_>>(),
            "too_small": of.too_small,
            "blind_points": of.blind_points,
        })
    };
    json!({
        "before": side(&of.before),
        "after": side(&of.after),
        "false_discovery_rate": FALSE_DISCOVERIES,
        "kinds": of.kinds.iter().map(kind).collect::<Vec<_>>(),
        "left_out": of.left_out,
        "renamed": of.renamed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::cause::WaitCause;

    fn change(name: &str, share: (f64, f64), margin: f64, chance: Option<(f64, f64)>) -> Change {
        let by = share.1 - share.0;
        Change {
            place: Place {
                process: "app".into(),
                functions: vec![name.into(), "handle(int)".into()],
                ..Place::default()
            },
            share,
            points: Interval::around(by, margin),
            amount: (share.0 * 1e7, share.1 * 1e7),
            units: Interval::around(by * 1e7, margin * 1e7),
            chance,
        }
    }

    fn comparison() -> Comparison {
        let total =
            |by| Change { place: Place::default(), ..change("", (50.0, 50.0 + by), 1.5, Some((0.5, 0.6))) };
        let sure = Some((1e-6, 1e-5));
        let mut waits = change("query", (10.0, 31.5), 4.0, sure);
        waits.place.cause = Some(WaitCause::Network);
        let cpu = KindComparison {
            kind: CPU,
            total: total(0.4),
            places: vec![
                change("parse<Json>", (12.0, 22.2), 3.1, sure),
                change("idle", (8.0, 7.5), 1.4, Some((0.2, 0.4))),
            ],
            too_small: 7,
            blind_points: Some(1.9),
        };
        let off_cpu =
            KindComparison { kind: OFF_CPU, places: vec![waits], blind_points: None, ..cpu.clone() };
        let unknown = change("grow", (1.0, 9.0), f64::NAN, None);
        let memory = KindComparison {
            kind: ALLOC,
            total: Change { place: Place::default(), ..unknown.clone() },
            places: vec![unknown],
            too_small: 0,
            blind_points: None,
        };
        Comparison {
            before: Side { target: "pid 7 (app)".into(), duration_ns: 60_000_000_000, ..Side::default() },
            after: Side { target: "pid 9 (app)".into(), duration_ns: 30_000_000_000, ..Side::default() },
            kinds: vec![cpu, off_cpu, memory],
            left_out: vec!["system calls: only the first recording holds any".into()],
            renamed: Some(["app-1".into(), "app".into()]),
        }
    }

    fn written(of: &Comparison) -> String {
        let style = Style { colour: false, width: Some(100), threads: false, top: 20 };
        let mut text = Vec::new();
        write(of, ["a.prec", "b\x1b.prec"], &style, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn the_answer_comes_first() {
        insta::assert_snapshot!(written(&comparison()));
    }

    #[test]
    fn nothing_found_is_not_nothing_there() {
        let mut of = comparison();
        of.kinds.truncate(1);
        of.kinds[0].places.remove(0);
        let text = written(&of);
        assert!(
            text.contains(
                "no significant difference in 1 place; differences of up to 1.9 points in CPU samples"
            ),
            "{text}"
        );
        assert!(text.contains("does not mean that nothing differs"), "{text}");
        of.kinds[0].places[0].chance = None;
        of.kinds[0].total.chance = None;
        assert!(written(&of).contains("to tell a difference from chance"));
        of.kinds.clear();
        assert!(written(&of).contains("nothing can be compared"));
    }

    #[test]
    fn json_holds_everything() {
        let mut text = Vec::new();
        write_json(&comparison(), ["a.prec", "b.prec"], &mut text).unwrap();
        let value: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(value["schema"], "profiler/diff");
        assert_eq!(value["before"]["file"], "a.prec");
        let places = &value["kinds"][0]["places"];
        assert_eq!(places[0]["significant"], true);
        assert!((places[0]["points"]["low"].as_f64().unwrap() - 7.1).abs() < 1e-9);
        assert_eq!(value["kinds"][1]["places"][0]["cause"], "network");
        let unknown = &value["kinds"][2]["places"][0];
        assert!(unknown["significant"].is_null() && unknown["points"]["low"].is_null());
    }
}
