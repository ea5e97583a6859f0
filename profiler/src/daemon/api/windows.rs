//! Windows that are still kept, in any form: lists, profiles, reports, and what is different between two.

use std::sync::Arc;

use anyhow::Result;
use axum::{
    extract::{Query, State},
    http::header,
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    answer::{bad, data, failed, not_found},
    shared::Shared,
};
use crate::{
    daemon::evidence::{self, Kept},
    detect::{compare::compare, rule::Overrides},
    model::kind::KINDS,
    output::{FORMATS, Format, RenderOptions, diff, results::style, summary},
    recording::{self, load::Replayed},
};

/// Places of each kind that a comparison lists.
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
        let Some(Replayed { run, .. }) = load(&dir, window, asked.target.as_deref())? else {
            return Ok(None);
        };
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
        let Some(Replayed { run, .. }) = load(&dir, window, asked.target.as_deref())? else {
            return Ok(None);
        };
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

/// What differs between two windows, as `profiler diff` compares recordings, and whether it may be chance.
pub async fn difference(State(shared): State<Arc<Shared>>, Query(asked): Query<DiffQuery>) -> Response {
    let dir = shared.state_dir.clone();
    let compared = tokio::task::spawn_blocking(move || -> Result<Option<Value>> {
        let target = asked.target.as_deref();
        let (Some(a), Some(b)) = (load(&dir, asked.a, target)?, load(&dir, asked.b, target)?) else {
            return Ok(None);
        };
        Ok(Some(compared(&a, &b)))
    });
    match compared.await {
        Ok(Ok(Some(compared))) => data(compared),
        Ok(Ok(None)) => not_found("no_window", "there is no such window, or the target is not in it"),
        Ok(Err(why)) => failed("the window cannot be read", &why),
        Err(why) => failed("the window cannot be read", &why.into()),
    }
}

/// Reads a window, or the part of a target in it. `None` if there is none.
fn load(dir: &std::path::Path, window: i64, target: Option<&str>) -> Result<Option<Replayed>> {
    let Some(kept) = evidence::find(dir, window) else { return Ok(None) };
    let all = recording::load::load_what_there_is(&kept.path, &Overrides::default())?;
    let Some(target) = target else { return Ok(Some(all)) };
    Ok(kept.targets.get(target).map(|pids| all.only(pids, &Overrides::default())))
}

/// What differs, for programs: of each kind the places that differ most.
fn compared(before: &Replayed, after: &Replayed) -> Value {
    let mut found = compare(before.measured(), after.measured());
    found.kinds.iter_mut().for_each(|kind| kind.places.truncate(MOST));
    diff::to_json(&found)
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;
    use crate::commands::replay::tests::record;

    #[test]
    fn what_has_become_hot_comes_first_and_chance_is_no_difference() {
        let dir = tempfile::tempdir().unwrap();
        let windows = dir.path().join("windows");
        std::fs::create_dir(&windows).unwrap();
        // Twenty seconds, in which the first of two functions has this share.
        for (unix_ms, share) in [(1000, 0.5), (2000, 0.5), (3000, 0.7)] {
            let mut random = Rng::with_seed(unix_ms);
            let mut one = || (7, if random.f64() < share { 1 } else { 2 }, 1, 0);
            let samples: Vec<_> = (0..2000).map(|_| one()).collect();
            let path = windows.join(format!("{unix_ms}.prec"));
            record(&path, &samples, &[]);
            let targets = r#"{"api": [7], "other": [8]}"#;
            std::fs::write(path.with_extension("targets.json"), targets).unwrap();
        }
        let diff = |a: i64, b: i64, target: &str| {
            let [a, b] = [a, b].map(|window| load(dir.path(), window, Some(target)).unwrap().unwrap());
            compared(&a, &b)
        };
        let significant = |found: &Value| found["kinds"][0]["places"][0]["significant"].clone();
        assert_eq!(significant(&diff(1000, 2000, "api")), false);
        let hot = diff(1000, 3000, "api");
        assert_eq!(significant(&hot), true, "{hot}");
        let points = hot["kinds"][0]["places"][0]["points"]["value"].as_f64().unwrap();
        assert!((15.0..25.0).contains(&points.abs()), "{hot}");
        let none = diff(1000, 3000, "other");
        assert_eq!(none["kinds"], json!([]), "what another target did is no part of it");
    }
}
