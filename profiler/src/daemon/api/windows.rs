//! Windows that are still kept, in any form: lists, profiles, reports, and what is different between two.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use anyhow::Result;
use axum::{
    extract::{Query, State},
    http::header,
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};
use statrs::distribution::{ContinuousCDF as _, Normal};

use super::{
    answer::{bad, data, failed, not_found},
    shared::Shared,
};
use crate::{
    daemon::evidence::{self, Kept},
    detect::{self, rule::Overrides, words},
    model::{kind::KINDS, part::part, report::Run},
    output::{FORMATS, Format, RenderOptions, results::style, summary},
    recording,
};

/// Functions that a comparison lists.
const MOST: usize = 50;

/// Which windows, and in which form.
#[derive(Deserialize)]
pub struct ProfilesQuery {
    target: Option<String>,
    from: Option<i64>,
    to: Option<i64>,
    window: Option<i64>,
    kind: Option<String>,
    format: Option<String>,
}

/// The windows that are kept; or one of them in a format.
pub async fn profiles(State(shared): State<Arc<Shared>>, Query(asked): Query<ProfilesQuery>) -> Response {
    let dir = shared.state_dir.clone();
    let Some(window) = asked.window else {
        let (from, to) = (asked.from.unwrap_or(i64::MIN), asked.to.unwrap_or(i64::MAX));
        let all = evidence::kept(&dir).into_iter().filter(|kept| (from..to).contains(&kept.unix_ms));
        let has = |kept: &Kept| asked.target.as_ref().is_none_or(|name| kept.targets.contains_key(name));
        let each = all.filter(has).map(|kept| {
            json!({
                "window": kept.unix_ms, "bytes": kept.bytes, "targets": kept.targets.keys().collect::<Vec<_>>(),
            })
        });
        return data(each.collect::<Vec<_>>());
    };
    let kind = match asked.kind.as_deref() {
        None => KINDS[0],
        Some(name) => match KINDS.iter().find(|kind| kind.name == name) {
            Some(kind) => *kind,
            None => {
                let known: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
                return bad("kind", &format!("kind is one of {}", known.join(", ")));
            }
        },
    };
    let name = asked.format.unwrap_or_else(|| "pb.gz".to_owned());
    let wanted = if name == "pprof" { "pb.gz" } else { name.as_str() };
    let Some(format) = FORMATS.iter().find(|format| format.extension.strip_prefix('.') == Some(wanted))
    else {
        let known: Vec<&str> =
            FORMATS.iter().filter_map(|format| format.extension.strip_prefix('.')).collect();
        return bad("format", &format!("format is one of {}, pprof", known.join(", ")));
    };
    let rendered = tokio::task::spawn_blocking(move || -> Result<Option<Vec<u8>>> {
        if let Format::Recording = format.format {
            // As it is, with all targets that were measured together.
            return Ok(evidence::find(&dir, window).map(|kept| std::fs::read(kept.path)).transpose()?);
        }
        let Some(run) = load(&dir, window, asked.target.as_deref())? else { return Ok(None) };
        let (mut bytes, options) = (Vec::new(), RenderOptions::default());
        match format.format {
            Format::Profile(write) => match run.profile(&kind) {
                Some(profile) => write(profile, &options, &mut bytes)?,
                None => return Ok(None),
            },
            Format::Run(write) => write(&run, &options, &mut bytes)?,
            Format::Recording => {}
        }
        Ok(Some(bytes))
    });
    let media = match wanted {
        "json" => "application/json",
        "svg" => "image/svg+xml",
        "folded" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    };
    match rendered.await {
        Ok(Ok(Some(bytes))) => ([(header::CONTENT_TYPE, media)], bytes).into_response(),
        Ok(Ok(None)) => not_found("no_profile", "there is no such window, or this was not measured in it"),
        Ok(Err(why)) => failed("the window cannot be read", &why),
        Err(why) => failed("the window cannot be read", &why.into()),
    }
}

/// Which window.
#[derive(Deserialize)]
pub struct ReportQuery {
    target: Option<String>,
    window: Option<i64>,
}

/// The report of a window, or of the last, as text.
pub async fn report(State(shared): State<Arc<Shared>>, Query(asked): Query<ReportQuery>) -> Response {
    let dir = shared.state_dir.clone();
    let rendered = tokio::task::spawn_blocking(move || -> Result<Option<Vec<u8>>> {
        let last = || evidence::kept(&dir).into_iter().map(|kept| kept.unix_ms).max();
        let Some(window) = asked.window.or_else(last) else { return Ok(None) };
        let Some(run) = load(&dir, window, asked.target.as_deref())? else { return Ok(None) };
        let mut text = Vec::new();
        summary::write(&run, &style(false, false, 20), &mut text)?;
        Ok(Some(text))
    });
    match rendered.await {
        Ok(Ok(Some(text))) => ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response(),
        Ok(Ok(None)) => not_found("no_window", "there is no such window, or the target is not in it"),
        Ok(Err(why)) => failed("the window cannot be read", &why),
        Err(why) => failed("the window cannot be read", &why.into()),
    }
}

/// Which two windows.
#[derive(Deserialize)]
pub struct DiffQuery {
    target: Option<String>,
    a: i64,
    b: i64,
}

/// Where CPU time went in two windows, by function, and whether a difference may be chance.
pub async fn diff(State(shared): State<Arc<Shared>>, Query(asked): Query<DiffQuery>) -> Response {
    let dir = shared.state_dir.clone();
    let compared = tokio::task::spawn_blocking(move || -> Result<Option<Value>> {
        let target = asked.target.as_deref();
        let (Some(a), Some(b)) = (load(&dir, asked.a, target)?, load(&dir, asked.b, target)?) else {
            return Ok(None);
        };
        Ok(Some(compare(&a, &b)))
    });
    match compared.await {
        Ok(Ok(Some(compared))) => data(compared),
        Ok(Ok(None)) => not_found("no_window", "there is no such window, or the target is not in it"),
        Ok(Err(why)) => failed("the window cannot be read", &why),
        Err(why) => failed("the window cannot be read", &why.into()),
    }
}

/// Reads a window, or the part of a target in it. `None` if there is none.
fn load(dir: &std::path::Path, window: i64, target: Option<&str>) -> Result<Option<Run>> {
    let Some(kept) = evidence::find(dir, window) else { return Ok(None) };
    let run = recording::load::load(&kept.path, &Overrides::default())?.run;
    let Some(target) = target else { return Ok(Some(run)) };
    let Some(pids) = kept.targets.get(target) else { return Ok(None) };
    let mut part = part(&run, |pid| pids.contains(&pid));
    detect::judge(&mut part, &Overrides::default());
    Ok(Some(part))
}

/// Samples by function that is on the stack.
fn by_function(run: &Run) -> BTreeMap<String, u64> {
    let mut weights: BTreeMap<String, u64> = BTreeMap::new();
    let names = run.names();
    for stack in &run.cpu.stacks {
        let on_stack: BTreeSet<String> =
            names.functions(&stack.frames).map(|(function, ..)| words::at(function)).collect();
        on_stack.into_iter().for_each(|function| *weights.entry(function).or_default() += stack.weight);
    }
    weights
}

fn compare(a: &Run, b: &Run) -> Value {
    let (of_a, of_b) = (by_function(a), by_function(b));
    let (all_a, all_b) = (a.cpu.total, b.cpu.total);
    let mut rows: Vec<(f64, Value)> = Vec::new();
    for function in of_a.keys().chain(of_b.keys().filter(|function| !of_a.contains_key(*function))) {
        let n = |of: &BTreeMap<String, u64>| of.get(function).copied().unwrap_or(0);
        let (in_a, in_b) = (n(&of_a), n(&of_b));
        let share = |n: u64, all: u64| n as f64 / all.max(1) as f64;
        let change = share(in_b, all_b) - share(in_a, all_a);
        rows.push((
            change.abs(),
            json!({
                "function": function, "a": share(in_a, all_a), "b": share(in_b, all_b), "change": change,
                "p": chance((in_a, all_a), (in_b, all_b)),
            }),
        ));
    }
    rows.sort_by(|one, other| other.0.total_cmp(&one.0));
    rows.truncate(MOST);
    json!({
        "samples": { "a": all_a, "b": all_b },
        "cpu_seconds": {
            "a": a.cpu.estimated_ns(all_a) as f64 / 1e9, "b": b.cpu.estimated_ns(all_b) as f64 / 1e9,
        },
        "functions": rows.into_iter().map(|(_, row)| row).collect::<Vec<_>>(),
    })
}

/// Probability that two shares differ so much by chance (two-sided z-test); `None` where samples are too few to tell.
fn chance((in_a, all_a): (u64, u64), (in_b, all_b): (u64, u64)) -> Option<f64> {
    let (n, m) = (all_a as f64, all_b as f64);
    let pooled = (in_a + in_b) as f64 / (n + m);
    let few = [n, m].iter().any(|n| n * pooled < 5.0 || n * (1.0 - pooled) < 5.0);
    if few || !pooled.is_finite() {
        return None;
    }
    let z = (in_a as f64 / n - in_b as f64 / m) / (pooled * (1.0 - pooled) * (1.0 / n + 1.0 / m)).sqrt();
    Some(2.0 * (1.0 - Normal::standard().cdf(z.abs())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::report::fixtures;

    #[test]
    fn what_has_become_hot_comes_first_with_its_chance() {
        let before = fixtures::run(&[("main;a", 900), ("main;b", 100)]);
        let after = fixtures::run(&[("main;a", 500), ("main;b", 500)]);
        let found = compare(&before, &after);
        let first = &found["functions"][0];
        assert!((first["change"].as_f64().unwrap().abs() - 0.4).abs() < 1e-9, "{found}");
        assert!(first["p"].as_f64().unwrap() < 1e-6);
        let main = found["functions"].as_array().unwrap().last().unwrap();
        assert_eq!((&main["change"], &main["p"]), (&json!(0.0), &json!(null)), "{found}");
        assert!(chance((50, 100), (51, 100)).unwrap() > 0.5);
        assert_eq!(chance((0, 0), (0, 0)), None);
    }
}
