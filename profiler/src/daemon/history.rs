//! What was measured, for as long as the budget of bytes allows: one SQLite file per day (`history-2026-11-26.sqlite`, UTC),
//! so that what is too old is deleted as whole files and the disk gets its space back. A row holds an hour of one series,
//! compressed. Values are kept as 32-bit floats (7 digits). Of days that are deleted steps of 15 minutes are left.

mod coarse;
mod series;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use rusqlite::{Connection, params};
use zstd::bulk::Compressor;

use self::series::{DAY_MS, HOUR_MS, HourQuery, LEVEL, PREFIX, day_file, pack, unpack};
pub use self::series::{Key, Point};
use super::store::is_damaged;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS series (
    hour INTEGER NOT NULL, target TEXT NOT NULL, metric TEXT NOT NULL, label TEXT NOT NULL, points BLOB NOT NULL,
    PRIMARY KEY (hour, target, metric, label)
) STRICT, WITHOUT ROWID;
";

/// The steps that are left of deleted days may take one part in so many of the budget.
const COARSE: u64 = 2;

/// A query gives at most so many points.
pub const MAX_POINTS: usize = 10_000;

/// The daemon's memory of what was measured.
pub struct History {
    dir: PathBuf,
    budget_bytes: u64,
    /// The hour that is being filled, since 1970.
    hour: i64,
    /// Its points: ms since it began, and value.
    points: BTreeMap<Key, Vec<(u32, f32)>>,
    /// Files that could not be read or written, so far.
    pub damaged: u64,
}

impl History {
    /// Goes on with the history in a folder.
    pub fn open(dir: &Path, budget_bytes: u64, now_unix_ms: i64) -> History {
        let hour = now_unix_ms.div_euclid(HOUR_MS);
        let mut history =
            History { dir: dir.to_owned(), budget_bytes, hour, points: BTreeMap::new(), damaged: 0 };
        // The hour that a restart interrupted goes on.
        history.points = history.read_hour(hour).unwrap_or_default();
        history
    }

    /// Adds a value. Time that goes back into an earlier hour (a clock that was set) is put at the end of this one.
    pub fn add(&mut self, key: Key, unix_ms: i64, value: f64) -> Result<()> {
        let hour = unix_ms.div_euclid(HOUR_MS);
        let mut flushed = Ok(());
        if hour > self.hour {
            // Whatever became of the hour before: this one goes on.
            flushed = self.flush();
            self.points.clear();
            self.hour = hour;
        }
        let within = (unix_ms - self.hour * HOUR_MS).clamp(0, HOUR_MS - 1) as u32;
        let points = self.points.entry(key).or_default();
        let last = points.last().map_or(0, |(time, _)| *time);
        points.push((within.max(last), value as f32));
        flushed
    }

    /// Writes the hour down as it is so far, and deletes days that are too much.
    pub fn flush(&mut self) -> Result<()> {
        if self.points.is_empty() {
            return Ok(());
        }
        let path = self.path(self.hour * HOUR_MS);
        let written = self.write(&path);
        if written.is_err() && is_damaged(&path) {
            self.set_aside(&path)?;
            self.write(&path)?;
        } else {
            written?;
        }
        self.clean()
    }

    /// The values of a series, as far as they are written down.
    pub fn values(&self, key: &Key, from: i64, to: i64) -> Result<Vec<f64>> {
        let mut values = Vec::new();
        each(&self.dir, key, from, to, |of| values.push(of.mean))?;
        Ok(values)
    }

    fn write(&self, path: &Path) -> Result<()> {
        let mut db = Connection::open(path).with_context(|| path.display().to_string())?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.execute_batch(SCHEMA)?;
        let all = db.transaction()?;
        // One for all: making ready to compress takes far longer than a series does.
        let mut compressor = Compressor::new(LEVEL)?;
        {
            let mut insert = all.prepare("INSERT OR REPLACE INTO series VALUES (?1, ?2, ?3, ?4, ?5)")?;
            for (key, points) in &self.points {
                let packed = pack(points, &mut compressor)?;
                insert.execute(params![self.hour, key.target, key.metric, key.label, packed])?;
            }
        }
        Ok(all.commit()?)
    }

    fn read_hour(&self, hour: i64) -> Result<BTreeMap<Key, Vec<(u32, f32)>>> {
        let path = self.path(hour * HOUR_MS);
        if !path.exists() {
            return Ok(BTreeMap::new());
        }
        let db = Connection::open(&path)?;
        let mut query = db.prepare("SELECT target, metric, label, points FROM series WHERE hour = ?1")?;
        let rows = query.query_map([hour], |row| {
            let key = Key { target: row.get(0)?, metric: row.get(1)?, label: row.get(2)? };
            Ok((key, row.get::<_, Vec<u8>>(3)?))
        })?;
        let mut points = BTreeMap::new();
        for row in rows {
            let (key, packed) = row?;
            points.insert(key, unpack(&packed)?);
        }
        Ok(points)
    }

    fn path(&self, unix_ms: i64) -> PathBuf {
        day_file(&self.dir, unix_ms)
    }

    /// Days, the oldest first, with their sizes, bytes.
    fn days(&self) -> Vec<(PathBuf, u64)> {
        self.files(PREFIX)
    }

    /// Files whose names begin so, the oldest first, with their sizes, bytes.
    fn files(&self, prefix: &str) -> Vec<(PathBuf, u64)> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().filter_map(Result::ok);
        let mut files: Vec<(PathBuf, u64)> = entries
            .filter(|entry| {
                let name = entry.file_name();
                name.to_str().is_some_and(|name| name.starts_with(prefix) && name.ends_with(".sqlite"))
            })
            .map(|entry| {
                let path = entry.path();
                let size = |path: PathBuf| fs::metadata(path).map_or(0, |file| file.len());
                let wal = path.with_extension("sqlite-wal");
                (path.clone(), size(path) + size(wal))
            })
            .collect();
        files.sort();
        files
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        sum(&self.days()) + sum(&self.files(coarse::PREFIX))
    }

    /// Keeps the steps of a day. What is damaged is counted: a series of it alone, the day's file, or the month's, which is set
    /// aside. An error is one that may pass: then nothing is to be deleted.
    fn keep_steps(&mut self, day: &Path) -> Result<()> {
        let Some(day_index) = day_of(day) else { return Ok(()) };
        let month = coarse::file(&self.dir, day_index);
        if is_damaged(&month) {
            self.set_aside(&month)?;
        }
        match coarse::keep(&self.dir, day_index) {
            Ok(damaged) => {
                self.damaged += damaged;
                Ok(())
            }
            Err(why) if is_damaged(day) => {
                self.damaged += 1;
                crate::say!("profiler: nothing is left of {}: {why:#}", day.display());
                Ok(())
            }
            Err(why) => Err(why),
        }
    }

    /// A damaged file must not stop what comes: it gets another name.
    fn set_aside(&mut self, path: &Path) -> Result<()> {
        self.damaged += 1;
        let aside = path.with_extension(format!("damaged-{}", crate::process::clock::unix_ms()));
        fs::rename(path, &aside)?;
        crate::say!("profiler: {} is damaged, set aside as {}", path.display(), aside.display());
        Ok(())
    }

    /// Deletes what is too much, the oldest first: the details of days, of which steps are left, and then months of these.
    fn clean(&mut self) -> Result<()> {
        while self.bytes() > self.budget_bytes {
            let (days, months) = (self.days(), self.files(coarse::PREFIX));
            let too_coarse = sum(&months) > self.budget_bytes / COARSE;
            // The day that is being filled stays.
            let oldest_day = days.split_last().and_then(|(_, before)| before.first());
            let oldest_month = months.first().filter(|_| too_coarse);
            let (path, _) = match (oldest_month, oldest_day) {
                (Some(month), _) if months.len() > 1 => month,
                (_, Some(oldest)) => {
                    self.keep_steps(&oldest.0)?;
                    oldest
                }
                (Some(month), None) => month,
                (None, None) => break,
            };
            fs::remove_file(path)?;
            for extension in ["sqlite-wal", "sqlite-shm"] {
                let _ = fs::remove_file(path.with_extension(extension));
            }
        }
        Ok(())
    }
}

/// Bytes of some files.
fn sum(files: &[(PathBuf, u64)]) -> u64 {
    files.iter().map(|(_, bytes)| bytes).sum()
}

/// The day of a file, since 1970.
fn day_of(path: &Path) -> Option<i64> {
    let date = path.file_stem()?.to_str()?.strip_prefix(PREFIX)?;
    let at = humantime::parse_rfc3339(&format!("{date}T00:00:00Z")).ok()?;
    let since = at.duration_since(std::time::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_millis()).ok().map(|unix_ms| unix_ms.div_euclid(DAY_MS))
}

/// Reads a series out of a folder: from `from` (included) to `to`, ms since 1970 (UTC), in steps of `step_ms`. What was
/// measured since the last flush is not there yet. Of old days there are steps of 15 minutes only.
pub fn query(dir: &Path, key: &Key, from: i64, to: i64, step_ms: i64) -> Result<Vec<Point>> {
    ensure!(from < to && step_ms > 0, "from must be before to, and step must be positive");
    ensure!((to - from) / step_ms <= MAX_POINTS as i64, "more than {MAX_POINTS} points: take a longer step");
    let mut steps: BTreeMap<i64, Point> = BTreeMap::new();
    each(dir, key, from, to, |of| {
        let unix_ms = from + (of.unix_ms - from) / step_ms * step_ms;
        let of = Point { unix_ms, ..of };
        steps.entry(unix_ms).and_modify(|point| point.merge(&of)).or_insert(of);
    })?;
    Ok(steps.into_values().collect())
}

/// Gives each value of a series with its time, and of old days each step.
fn each(dir: &Path, key: &Key, from: i64, to: i64, mut give: impl FnMut(Point)) -> Result<()> {
    let mut give = |of: Point| {
        if (from..to).contains(&of.unix_ms) {
            give(of);
        }
    };
    for day_index in from.div_euclid(DAY_MS)..=(to - 1).div_euclid(DAY_MS) {
        let path = day_file(dir, day_index * DAY_MS);
        if !path.exists() {
            // A damaged month is set aside when the next day is kept in it.
            coarse::steps(dir, key, day_index).unwrap_or_default().into_iter().for_each(&mut give);
            continue;
        }
        let db = Connection::open(&path)?;
        let first = from.div_euclid(HOUR_MS).max(day_index * 24);
        let last = (to - 1).div_euclid(HOUR_MS).min(day_index * 24 + 23);
        let mut hours = HourQuery::new(&db)?;
        hours.each(key, first..=last, |unix_ms, value| give(Point::one(unix_ms, value)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(metric: &str) -> Key {
        Key { target: "api".into(), metric: metric.into(), label: String::new() }
    }

    /// 2026-11-26 00:00 UTC.
    const MIDNIGHT: i64 = 1_795_651_200_000;

    #[test]
    fn what_is_added_is_found_again_over_hours_days_and_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let start = MIDNIGHT - 2 * HOUR_MS;
        let mut history = History::open(dir.path(), u64::MAX, start);
        let times: Vec<i64> = (0..4 * 120).map(|i| start + i * 30_000).collect();
        for (i, &time) in times.iter().enumerate() {
            if i == 200 {
                history.flush().unwrap();
                history = History::open(dir.path(), u64::MAX, time);
            }
            history.add(key("m"), time, i as f64).unwrap();
        }
        history.flush().unwrap();
        assert_eq!(history.days().len(), 2);
        let all = query(dir.path(), &key("m"), start, start + 4 * HOUR_MS, 30_000).unwrap();
        let values: Vec<f64> = all.iter().map(|point| point.mean).collect();
        assert_eq!(values, (0..4 * 120).map(f64::from).collect::<Vec<_>>());
        let hourly = query(dir.path(), &key("m"), start, start + 4 * HOUR_MS, HOUR_MS).unwrap();
        assert_eq!(hourly.len(), 4);
        assert_eq!(
            (hourly[1].min, hourly[1].mean, hourly[1].max, hourly[1].count),
            (120.0, 179.5, 239.0, 120)
        );
        assert_eq!(query(dir.path(), &key("other"), start, start + 1, 1).unwrap(), []);
        assert!(query(dir.path(), &key("m"), 0, start, 1).is_err(), "too many points");
    }

    #[test]
    fn the_oldest_days_go_when_the_budget_is_used_up() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = History::open(dir.path(), 60_000, MIDNIGHT);
        for day in 0..10 {
            for i in 0..100 {
                history.add(key(&format!("m{i}")), MIDNIGHT + day * DAY_MS, f64::from(i)).unwrap();
            }
            history.flush().unwrap();
            assert!(history.days().len() == 1 || history.bytes() <= 60_000);
        }
        let of = |day: i64| {
            let from = MIDNIGHT + day * DAY_MS;
            query(dir.path(), &key("m7"), from, from + DAY_MS, DAY_MS).unwrap()
        };
        assert_eq!(of(9)[0].mean, 7.0);
        assert_eq!(of(0), [], "steps of old days have a bound, too");
    }

    /// The days that are kept in detail are few, and their means, lowest and highest values stay.
    #[test]
    fn of_deleted_days_steps_are_left() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = History::open(dir.path(), 400_000, MIDNIGHT);
        let value = |day: i64, i: i64| (day * 1000 + i) as f64;
        for day in 0..10 {
            for i in 0..DAY_MS / 30_000 {
                for m in 0..4 {
                    let noise = f64::from(fastrand::u16(0..));
                    let value = if m == 0 { value(day, i) } else { noise };
                    history.add(key(&format!("m{m}")), MIDNIGHT + day * DAY_MS + i * 30_000, value).unwrap();
                }
            }
            history.flush().unwrap();
            assert!(history.bytes() <= 400_000 || history.days().len() == 1, "{}", history.bytes());
        }
        assert!(history.days().len() < 10 && !history.files(coarse::PREFIX).is_empty());
        let from = MIDNIGHT + HOUR_MS;
        let steps = query(dir.path(), &key("m0"), from, from + HOUR_MS, coarse::STEP_MS).unwrap();
        let expected = |step: i64| Point {
            unix_ms: from + step * coarse::STEP_MS,
            min: value(0, 120 + 30 * step),
            mean: value(0, 120 + 30 * step) + 14.5,
            max: value(0, 120 + 30 * step + 29),
            count: 30,
        };
        assert_eq!(steps, (0..4).map(expected).collect::<Vec<_>>());
        let all = query(dir.path(), &key("m0"), MIDNIGHT, MIDNIGHT + 10 * DAY_MS, DAY_MS).unwrap();
        assert_eq!(all.iter().map(|of| of.count).collect::<Vec<_>>(), [2880; 10]);
    }

    /// `cargo test --release -p profiler --lib a_year -- --ignored --nocapture`
    #[test]
    #[ignore = "a minute; prints figures"]
    fn a_year_fits_into_its_budget() {
        const SERIES: usize = 200;
        let (dir, budget) = (tempfile::tempdir().unwrap(), 50_000_000);
        let mut history = History::open(dir.path(), budget, MIDNIGHT);
        let mut values = vec![1000.0; SERIES];
        let began = std::time::Instant::now();
        for window in 0..365 * DAY_MS / 30_000 {
            for (number, value) in values.iter_mut().enumerate() {
                // Half of them change with each window, as measurements do; the others are counts that seldom do.
                if number % 2 == 0 || window % 100 == 0 {
                    *value += f64::from(fastrand::i8(..));
                }
                history.add(key(&format!("m{number}")), MIDNIGHT + window * 30_000, *value).unwrap();
            }
        }
        history.flush().unwrap();
        let (written, bytes, days) = (began.elapsed(), history.bytes(), history.days());
        let steps = sum(&history.files(coarse::PREFIX));
        let now = MIDNIGHT + 365 * DAY_MS;
        let week = |from: i64| {
            let began = std::time::Instant::now();
            let points = query(dir.path(), &key("m6"), from, from + 7 * DAY_MS, HOUR_MS).unwrap();
            (points.len(), began.elapsed())
        };
        let has =
            |day: &i64| !coarse::steps(dir.path(), &key("m6"), MIDNIGHT / DAY_MS + day).unwrap().is_empty();
        let kept = (0..365).filter(has).count();
        println!(
            "a year of {SERIES} series at 30 s: {:.1} MB of {:.1} MB, {} days in detail ({:.2} bytes a value), {} days before in \
             steps of 15 minutes ({:.1} MB); written in {written:.1?}; last week {:?}; 200 days ago {:?}",
            bytes as f64 / 1e6,
            budget as f64 / 1e6,
            days.len(),
            sum(&days[..days.len() - 1]) as f64 / ((days.len() - 1) * 2880 * SERIES) as f64,
            kept,
            steps as f64 / 1e6,
            week(now - 7 * DAY_MS),
            week(now - 200 * DAY_MS),
        );
        assert!(bytes <= budget, "{bytes}");
        assert_eq!(week(now - 7 * DAY_MS).0, 168);
    }

    #[test]
    fn a_day_that_cannot_be_written_now_is_no_damaged_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = History::open(dir.path(), u64::MAX, MIDNIGHT);
        history.add(key("m"), MIDNIGHT, 1.0).unwrap();
        history.flush().unwrap();
        // As where the disk is full: its log cannot be made.
        let log = dir.path().join("history-2026-11-26.sqlite-wal");
        fs::create_dir(&log).unwrap();
        history.add(key("m"), MIDNIGHT + 30_000, 2.0).unwrap();
        history.flush().unwrap_err();
        assert_eq!(history.damaged, 0);
        fs::remove_dir(&log).unwrap();
        history.flush().unwrap();
        assert_eq!(history.values(&key("m"), MIDNIGHT, MIDNIGHT + HOUR_MS).unwrap(), [1.0, 2.0]);
    }

    #[test]
    fn a_damaged_day_is_set_aside_and_the_history_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(day_file(dir.path(), MIDNIGHT), [9u8; 9000]).unwrap();
        let mut history = History::open(dir.path(), u64::MAX, MIDNIGHT);
        history.add(key("m"), MIDNIGHT, 1.0).unwrap();
        history.flush().unwrap();
        assert_eq!(history.damaged, 1);
        assert_eq!(query(dir.path(), &key("m"), MIDNIGHT, MIDNIGHT + 1000, 1000).unwrap().len(), 1);
    }

    #[test]
    fn a_clock_that_goes_back_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = History::open(dir.path(), u64::MAX, MIDNIGHT + HOUR_MS);
        history.add(key("m"), MIDNIGHT + HOUR_MS, 1.0).unwrap();
        history.add(key("m"), MIDNIGHT, 2.0).unwrap();
        history.flush().unwrap();
        let found = query(dir.path(), &key("m"), MIDNIGHT, MIDNIGHT + 2 * HOUR_MS, HOUR_MS).unwrap();
        assert_eq!(found.iter().map(|point| point.count).sum::<u32>(), 2);
    }
}
