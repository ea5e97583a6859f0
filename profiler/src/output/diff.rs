//! What `profiler diff` prints.

use std::io::Write;

use anyhow::Result;
use serde_json::json;

use super::text::{Style, line};
use crate::{
    detect::memory_diff::{Live, MemoryDiff, Place},
    model::units::{bytes, count, thousands},
};

/// Functions shown of a place.
const FRAMES: usize = 6;

/// Writes a table, what grew most first.
pub fn write(diff: &MemoryDiff, style: &Style, out: &mut dyn Write) -> Result<()> {
    let (before, after) = diff.total;
    let title = format!(
        "{:.1} s apart: {} in {} before, {} in {} after, {}",
        diff.elapsed_ns as f64 / 1e9,
        bytes(before.bytes),
        count(before.count.round() as u64, "object"),
        bytes(after.bytes),
        count(after.count.round() as u64, "object"),
        change(after.bytes - before.bytes),
    );
    writeln!(out, "{}", style.bold(&title))?;
    let head = format!(
        "{:>9}  {:>9}  {:>9}  {:>9}  {:>10}  {:>10}  allocated by",
        "grew by", "± error", "before", "after", "objects", "after"
    );
    writeln!(out, "{}", style.dim(&head))?;
    for place in diff.places.iter().take(style.top) {
        let Place { before, after, .. } = place;
        let error = before.bytes_err.hypot(after.bytes_err);
        let functions: Vec<&str> = place.functions.iter().take(FRAMES).map(String::as_str).collect();
        let text = format!(
            "{:>9}  {:>9}  {:>9}  {:>9}  {:>10}  {:>10}  {}: {}",
            change(place.growth()),
            if error == 0.0 { "exact".to_owned() } else { bytes(error) },
            bytes(before.bytes),
            bytes(after.bytes),
            thousands(before.count.round() as u64),
            thousands(after.count.round() as u64),
            place.process,
            functions.join(" < "),
        );
        line(&text, style, out)?;
    }
    let rest = diff.places.len().saturating_sub(style.top);
    if rest > 0 {
        writeln!(out, "{} more places (--top N shows more)", thousands(rest as u64))?;
    }
    Ok(())
}

/// Writes everything as one JSON document.
pub fn write_json(diff: &MemoryDiff, out: &mut dyn Write) -> Result<()> {
    let live = |live: &Live| json!({ "bytes": live.bytes, "bytes_err": live.bytes_err, "count": live.count });
    let place = |place: &Place| {
        json!({
            "process": place.process,
            "stack": place.functions,
            "growth_bytes": place.growth(),
            "before": live(&place.before),
            "after": live(&place.after),
        })
    };
    let document = json!({
        "schema": "profiler/memory-diff",
        "version": 1,
        "elapsed_ns": diff.elapsed_ns,
        "before": live(&diff.total.0),
        "after": live(&diff.total.1),
        "places": diff.places.iter().map(place).collect::<Vec<_>>(),
    });
    serde_json::to_writer(&mut *out, &document)?;
    Ok(writeln!(out)?)
}

fn change(by: f64) -> String {
    format!("{}{}", if by < 0.0 { "-" } else { "+" }, bytes(by.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::memory_diff::{diff, fixtures::two_moments};

    #[test]
    fn what_grew_comes_first() {
        let (before, after) = two_moments();
        let found = diff(&before, &after);
        let style = Style { colour: false, width: None, threads: false, top: 1 };
        let mut text = Vec::new();
        write(&found, &style, &mut text).unwrap();
        insta::assert_snapshot!(String::from_utf8(text).unwrap());
        let mut text = Vec::new();
        write_json(&found, &mut text).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(value["places"][0]["growth_bytes"].as_f64(), Some(3e6));
        assert_eq!(value["after"]["bytes"].as_f64(), Some(6e6));
    }
}
