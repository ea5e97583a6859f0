//! Series as they are stored: an hour of one, compressed, a row each; and the files that the days are in.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zstd::bulk::Compressor;

pub const HOUR_MS: i64 = 3_600_000;
pub const DAY_MS: i64 = 24 * HOUR_MS;

/// A day's files begin with it.
pub const PREFIX: &str = "history-";
/// How hard points are compressed, 1 to 22.
pub const LEVEL: i32 = 3;

/// Whose series.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Name of the target.
    pub target: String,
    /// Name of the metric.
    pub metric: String,
    /// Value of the metric's label, or empty.
    pub label: String,
}

/// Some windows of a series.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Beginning of the step, ms since 1970 (UTC).
    pub unix_ms: i64,
    /// Lowest value.
    pub min: f64,
    /// Mean.
    pub mean: f64,
    /// Highest value.
    pub max: f64,
    /// Windows.
    pub count: u32,
}

impl Point {
    /// A value by itself.
    pub fn one(unix_ms: i64, value: f64) -> Point {
        Point { unix_ms, min: value, mean: value, max: value, count: 1 }
    }

    /// Takes in what belongs to the same step.
    pub fn merge(&mut self, other: &Point) {
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.count += other.count;
        self.mean += (other.mean - self.mean) * f64::from(other.count) / f64::from(self.count.max(1));
    }
}

/// An hour of a series, as stored: times in ms since the hour began, each less the one before; bits of the values, each
/// exclusive-or the one before.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Chunk {
    time_deltas: Vec<u32>,
    value_xors: Vec<u32>,
}

/// The values of one series, hour by hour.
pub struct HourQuery<'a>(rusqlite::Statement<'a>);

impl<'a> HourQuery<'a> {
    /// Of a day's file.
    pub fn new(db: &'a Connection) -> Result<HourQuery<'a>> {
        let of = "SELECT points FROM series WHERE hour = ?1 AND target = ?2 AND metric = ?3 AND label = ?4";
        Ok(HourQuery(db.prepare(of)?))
    }

    /// Gives each value of some hours, since 1970, with its time.
    pub fn each(
        &mut self,
        key: &Key,
        hours: std::ops::RangeInclusive<i64>,
        mut give: impl FnMut(i64, f64),
    ) -> Result<()> {
        for hour in hours {
            let mut rows = self.0.query(params![hour, key.target, key.metric, key.label])?;
            if let Some(row) = rows.next()? {
                for (within, value) in unpack(&row.get::<_, Vec<u8>>(0)?)? {
                    give(hour * HOUR_MS + i64::from(within), f64::from(value));
                }
            }
        }
        Ok(())
    }
}

/// The file of the day of a time.
pub fn day_file(dir: &Path, unix_ms: i64) -> PathBuf {
    dir.join(format!("{PREFIX}{}.sqlite", day(unix_ms)))
}

pub fn pack(points: &[(u32, f32)], compressor: &mut Compressor<'_>) -> Result<Vec<u8>> {
    let mut chunk = Chunk::default();
    let (mut time, mut bits) = (0, 0);
    for &(next, value) in points {
        chunk.time_deltas.push(next.saturating_sub(time));
        chunk.value_xors.push(value.to_bits() ^ bits);
        (time, bits) = (next, value.to_bits());
    }
    packed(&chunk, compressor)
}

/// Any chunk, as it is stored.
pub fn packed(chunk: &impl Serialize, compressor: &mut Compressor<'_>) -> Result<Vec<u8>> {
    Ok(compressor.compress(&postcard::to_stdvec(chunk)?)?)
}

/// A chunk that was stored, of so many bytes at most.
pub fn unpacked<T: DeserializeOwned>(packed: &[u8], most: usize) -> Result<T> {
    let bytes = zstd::bulk::decompress(packed, most).context("a series is damaged")?;
    postcard::from_bytes(&bytes).context("a series is damaged")
}

pub fn unpack(packed: &[u8]) -> Result<Vec<(u32, f32)>> {
    /// An hour of the shortest windows is far smaller.
    const MOST: usize = 1 << 20;
    let chunk: Chunk = unpacked(packed, MOST)?;
    let (mut time, mut bits) = (0u32, 0);
    let each = chunk.time_deltas.iter().zip(&chunk.value_xors).map(|(delta, xor)| {
        time = time.saturating_add(*delta);
        bits ^= xor;
        (time, f32::from_bits(bits))
    });
    Ok(each.collect())
}

/// The day of a time, UTC: year-month-day.
pub fn day(unix_ms: i64) -> String {
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(unix_ms.max(0) as u64);
    humantime::format_rfc3339_seconds(at).to_string()[..10].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn packing_loses_nothing(values in proptest::collection::vec((0u32..3_600_000, -1e9f32..1e9), 0..300)) {
            let mut points = values;
            points.sort_by_key(|(time, _)| *time);
            proptest::prop_assert_eq!(unpack(&pack(&points, &mut Compressor::new(LEVEL).unwrap()).unwrap()).unwrap(), points);
        }

        #[test]
        fn damage_is_survived(bytes in proptest::collection::vec(0u8.., 0..200)) {
            let _ = unpack(&bytes);
        }
    }
}
