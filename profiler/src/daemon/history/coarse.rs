//! What is left of days whose details are deleted: lowest, mean and highest values of 15 minutes each, one SQLite file per
//! month (`coarse-2026-11.sqlite`, UTC). A row holds a day of one series, compressed.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use zstd::bulk::Compressor;

use super::series::{DAY_MS, HourQuery, Key, LEVEL, Point, day, day_file, packed, unpacked};

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS series (
    day INTEGER NOT NULL, target TEXT NOT NULL, metric TEXT NOT NULL, label TEXT NOT NULL, steps BLOB NOT NULL,
    PRIMARY KEY (day, target, metric, label)
) STRICT, WITHOUT ROWID;
";

/// Length of a step.
pub const STEP_MS: i64 = 15 * 60_000;
/// A month's files begin with it.
pub const PREFIX: &str = "coarse-";

/// Bits of a 32-bit float that are left out: four digits stay.
const LEFT_OUT: u32 = 10;

/// A day of a series, as stored: its steps with values, each less the one before; floats as their upper bits, each exclusive-or
/// the one before.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Chunk {
    step_deltas: Vec<u8>,
    min_xors: Vec<u32>,
    mean_xors: Vec<u32>,
    max_xors: Vec<u32>,
    counts: Vec<u32>,
}

/// The file of the month of a day.
pub fn file(dir: &Path, day_index: i64) -> PathBuf {
    dir.join(format!("{PREFIX}{}.sqlite", &day(day_index * DAY_MS)[..7]))
}

/// Keeps a day, since 1970, in steps; its details can be deleted then. Returns how many series were damaged.
pub fn keep(dir: &Path, day_index: i64) -> Result<u64> {
    let details = Connection::open(day_file(dir, day_index * DAY_MS))?;
    let keys = {
        let mut query = details.prepare("SELECT DISTINCT target, metric, label FROM series")?;
        let keys = query
            .query_map([], |row| Ok(Key { target: row.get(0)?, metric: row.get(1)?, label: row.get(2)? }))?;
        keys.collect::<Result<Vec<Key>, _>>()?
    };
    let path = file(dir, day_index);
    let mut db = Connection::open(&path).with_context(|| path.display().to_string())?;
    db.execute_batch(SCHEMA)?;
    let mut damaged = 0;
    let all = db.transaction()?;
    {
        let mut hours = HourQuery::new(&details)?;
        // What is there already is the day as it was before a clock was set back.
        let mut insert = all.prepare("INSERT OR IGNORE INTO series VALUES (?1, ?2, ?3, ?4, ?5)")?;
        let mut compressor = Compressor::new(LEVEL)?;
        for key in keys {
            let mut steps: BTreeMap<u8, Point> = BTreeMap::new();
            let read = hours.each(&key, day_index * 24..=day_index * 24 + 23, |unix_ms, value| {
                // Of 96.
                let step = ((unix_ms - day_index * DAY_MS) / STEP_MS) as u8;
                let new = Point::one(unix_ms, value);
                steps.entry(step).and_modify(|point| point.merge(&new)).or_insert(new);
            });
            // The hours before the damage are kept.
            damaged += u64::from(read.is_err());
            let packed = pack(&steps, &mut compressor)?;
            insert.execute(params![day_index, key.target, key.metric, key.label, packed])?;
        }
    }
    all.commit()?;
    Ok(damaged)
}

/// The steps of a series on a day, since 1970; none if the day was not kept.
pub fn steps(dir: &Path, key: &Key, day_index: i64) -> Result<Vec<Point>> {
    let path = file(dir, day_index);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let db = Connection::open(&path)?;
    let mut query =
        db.prepare("SELECT steps FROM series WHERE day = ?1 AND target = ?2 AND metric = ?3 AND label = ?4")?;
    let mut rows = query.query(params![day_index, key.target, key.metric, key.label])?;
    match rows.next()? {
        Some(row) => points(&row.get::<_, Vec<u8>>(0)?, day_index * DAY_MS),
        None => Ok(Vec::new()),
    }
}

fn pack(steps: &BTreeMap<u8, Point>, compressor: &mut Compressor<'_>) -> Result<Vec<u8>> {
    let mut chunk = Chunk::default();
    let (mut before, mut bits) = (0, [0u32; 3]);
    for (step, point) in steps {
        chunk.step_deltas.push(step - before);
        before = *step;
        let next = [point.min, point.mean, point.max].map(|value| (value as f32).to_bits() >> LEFT_OUT);
        let columns = [&mut chunk.min_xors, &mut chunk.mean_xors, &mut chunk.max_xors];
        for ((column, next), before) in columns.into_iter().zip(next).zip(bits) {
            column.push(next ^ before);
        }
        bits = next;
        chunk.counts.push(point.count);
    }
    packed(&chunk, compressor)
}

fn points(packed: &[u8], day_unix_ms: i64) -> Result<Vec<Point>> {
    /// A day is 96 steps.
    const MOST: usize = 1 << 14;
    let chunk: Chunk = unpacked(packed, MOST)?;
    let (mut step, mut bits) = (0i64, [0u32; 3]);
    let columns = chunk.min_xors.iter().zip(&chunk.mean_xors).zip(&chunk.max_xors);
    let all = chunk.step_deltas.iter().zip(columns).zip(&chunk.counts);
    let points = all.map(|((delta, ((min, mean), max)), count)| {
        step += i64::from(*delta);
        for (of, xor) in bits.iter_mut().zip([min, mean, max]) {
            *of ^= xor;
        }
        let [min, mean, max] = bits.map(|bits| f64::from(f32::from_bits(bits << LEFT_OUT)));
        Point { unix_ms: day_unix_ms + step * STEP_MS, min, mean, max, count: *count }
    });
    Ok(points.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn packing_keeps_four_digits(values in proptest::collection::btree_map(0u8..96, (-1e9f32..1e9, 1u32..1000), 0..96)) {
            let point = |step: u8, value: f32, count| {
                let (value, unix_ms) = (f64::from(value), i64::from(step) * STEP_MS);
                Point { unix_ms, min: value, mean: value, max: value, count }
            };
            let steps: BTreeMap<u8, Point> =
                values.iter().map(|(step, (value, count))| (*step, point(*step, *value, *count))).collect();
            let packed = pack(&steps, &mut Compressor::new(LEVEL).unwrap()).unwrap();
            let found = points(&packed, 0).unwrap();
            proptest::prop_assert_eq!(found.len(), steps.len());
            for (found, of) in found.iter().zip(steps.values()) {
                proptest::prop_assert_eq!((found.unix_ms, found.count), (of.unix_ms, of.count));
                proptest::prop_assert!((found.mean - of.mean).abs() <= of.mean.abs() / 8000.0 + f64::from(f32::MIN_POSITIVE));
            }
        }

        #[test]
        fn damage_is_survived(bytes in proptest::collection::vec(0u8.., 0..200)) {
            let _ = points(&bytes, 0);
        }
    }
}
