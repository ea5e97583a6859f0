//! What the daemon must not forget: alerts, what changed of them, and messages that are still to be sent. One SQLite
//! file (`alerts.sqlite`); a change and its messages are one transaction, so that neither is there without the other.

use std::{io, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use rusqlite::{Connection, ErrorCode, OptionalExtension as _, config::DbConfig, params};

use crate::model::finding::Severity;

/// Its name in the folder of the daemon.
const FILE: &str = "alerts.sqlite";

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS alerts (
    id TEXT PRIMARY KEY, rule TEXT NOT NULL, target TEXT NOT NULL, severity TEXT NOT NULL,
    started_unix_ms INTEGER NOT NULL, ended_unix_ms INTEGER, acknowledged TEXT, body TEXT NOT NULL,
    told INTEGER NOT NULL DEFAULT 1
) STRICT;
CREATE INDEX IF NOT EXISTS open_alerts ON alerts (ended_unix_ms) WHERE ended_unix_ms IS NULL;
CREATE TABLE IF NOT EXISTS journal (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, unix_ms INTEGER NOT NULL, alert TEXT NOT NULL, change TEXT NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, message TEXT NOT NULL, receiver TEXT NOT NULL, body TEXT NOT NULL,
    created_unix_ms INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, due_unix_ms INTEGER NOT NULL,
    error TEXT, digest TEXT, UNIQUE (message, receiver)
) STRICT;
CREATE TABLE IF NOT EXISTS refused (
    seq INTEGER PRIMARY KEY, message TEXT NOT NULL, receiver TEXT NOT NULL, body TEXT NOT NULL,
    unix_ms INTEGER NOT NULL, error TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS silences (
    id INTEGER PRIMARY KEY AUTOINCREMENT, rule TEXT, target TEXT, until_unix_ms INTEGER NOT NULL,
    reason TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS audit (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, unix_ms INTEGER NOT NULL, what TEXT NOT NULL, body TEXT NOT NULL,
    who TEXT NOT NULL DEFAULT ''
) STRICT;
";

/// What files of before need: version of the schema that each leads to, by its place.
const MIGRATIONS: [&str; 2] = [
    "ALTER TABLE alerts ADD COLUMN told INTEGER NOT NULL DEFAULT 1; ALTER TABLE outbox ADD COLUMN digest TEXT;",
    "CREATE TABLE IF NOT EXISTS audit (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, unix_ms INTEGER NOT NULL, what TEXT NOT NULL, body TEXT NOT NULL
    ) STRICT;
    ALTER TABLE audit ADD COLUMN who TEXT NOT NULL DEFAULT '';",
];

/// Ended alerts and their journal are kept for so long, and at most so many.
const KEEP: (Duration, i64) = (Duration::from_secs(400 * 86_400), 100_000);

/// No message waits longer for its next attempt, ms.
pub const LONGEST_WAIT_MS: i64 = 400_000;

/// Messages that wait for a receiver that is away; the oldest go first, and are counted.
const MAX_OUTBOX: i64 = 10_000;

/// The daemon's memory of alerts.
pub struct Store {
    db: Connection,
    /// Files that were damaged and set aside when it was opened.
    pub damaged: u64,
}

/// A file that SQLite can read and that is not what it was.
#[derive(Debug, thiserror::Error)]
#[error("it is damaged: {0}")]
struct Damaged(String);

/// Whether an error says that the file is damaged, and not that it cannot be used now (a full disk, a lock).
fn is_damage(error: &anyhow::Error) -> bool {
    let code = error.downcast_ref().and_then(rusqlite::Error::sqlite_error_code);
    error.is::<Damaged>() || matches!(code, Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt))
}

/// Whether the file of a database is there and damaged.
pub(super) fn is_damaged(path: &Path) -> bool {
    let checked = || check(&Connection::open(path)?);
    path.exists() && checked().is_err_and(|error| is_damage(&error))
}

fn check(db: &Connection) -> Result<()> {
    let sound: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    anyhow::ensure!(sound == "ok", Damaged(sound));
    Ok(())
}

/// An alert, as stored.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct StoredAlert {
    /// Id: of this rule, this target and this beginning.
    pub id: String,
    /// The rule's id.
    pub rule: String,
    /// The target's name.
    pub target: String,
    /// How bad it has become: `warning` or `critical`.
    pub severity: String,
    /// When it began to fire, ms since 1970 (UTC).
    pub started_unix_ms: i64,
    /// When it ended; `None` while it fires.
    pub ended_unix_ms: Option<i64>,
    /// Who has seen it, if somebody said so.
    pub acknowledged: Option<String>,
    /// The last message about it.
    pub body: serde_json::Value,
    /// Whether somebody was told of it, or it was silenced.
    pub told: bool,
}

/// A time in which nobody is told of some alerts.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Silence {
    /// Its number.
    pub id: i64,
    /// Of this rule; `None` for all.
    pub rule: Option<String>,
    /// Of this target; `None` for all.
    pub target: Option<String>,
    /// When it ends, ms since 1970 (UTC).
    pub until_unix_ms: i64,
    /// Why.
    pub reason: String,
}

impl Silence {
    /// Whether it covers an alert.
    pub fn covers(&self, rule: &str, target: &str) -> bool {
        self.rule.as_deref().is_none_or(|only| only == rule)
            && self.target.as_deref().is_none_or(|only| only == target)
    }
}

/// A change of an alert that is to be stored.
#[derive(Clone, Debug)]
pub struct Change<'a> {
    /// Id of the alert.
    pub alert: &'a str,
    /// The rule's id.
    pub rule: &'a str,
    /// The target's name.
    pub target: &'a str,
    /// How bad it is.
    pub severity: Severity,
    /// What happened: `fired`, `escalated` or `resolved`.
    pub change: &'a str,
    /// When, ms since 1970 (UTC).
    pub unix_ms: i64,
    /// The message.
    pub body: &'a str,
    /// Who gets it.
    pub receivers: &'a [String],
    /// Whether it was not silenced.
    pub told: bool,
}

/// A message to send.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    /// Place in the outbox.
    pub seq: i64,
    /// Id of the message: the same each time that it is sent.
    pub message: String,
    /// Who gets it.
    pub receiver: String,
    /// The message.
    pub body: String,
    /// How often it was tried.
    pub attempts: u32,
    /// The digest that it is a part of.
    pub digest: Option<String>,
}

impl Store {
    /// Opens the store in a folder, which must be there, when nobody else has it open. A file that is damaged is set aside,
    /// with a line on standard error: the daemon must start.
    pub fn start(dir: &Path) -> Result<Store> {
        match Store::open(dir) {
            Err(error) if is_damage(&error) => {
                let aside = format!("{FILE}.damaged-{}", crate::process::clock::unix_ms());
                crate::say!("profiler: {error:#}; set aside as {}", dir.join(&aside).display());
                // What it had not taken over yet stays beside it, by the name that SQLite looks for.
                for suffix in ["", "-wal", "-shm"] {
                    match std::fs::rename(
                        dir.join(format!("{FILE}{suffix}")),
                        dir.join(aside.clone() + suffix),
                    ) {
                        Err(error) if suffix.is_empty() || error.kind() != io::ErrorKind::NotFound => {
                            return Err(error).with_context(|| format!("cannot set {FILE}{suffix} aside"));
                        }
                        _ => {}
                    }
                }
                Ok(Store { damaged: 1, ..Store::open(dir)? })
            }
            opened => opened,
        }
    }

    /// Opens the store in a folder, which must be there.
    pub fn open(dir: &Path) -> Result<Store> {
        let path = dir.join(FILE);
        Store::open_file(&path).with_context(|| format!("cannot open {}", path.display()))
    }

    fn open_file(path: &Path) -> Result<Store> {
        let mut db = Connection::open(path)?;
        // A file that is set aside is left as it was found.
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        db.busy_timeout(Duration::from_secs(5))?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        check(&db)?;
        let is_new = !db.table_exists(None, "alerts")?;
        let version: u32 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        // All of it or nothing: what was changed once cannot be changed again.
        let all = db.transaction()?;
        for migration in MIGRATIONS.iter().skip(if is_new { MIGRATIONS.len() } else { version as usize }) {
            all.execute_batch(migration)?;
        }
        all.execute_batch(SCHEMA)?;
        if version as usize != MIGRATIONS.len() {
            // Otherwise nothing is written: the disk may be full.
            all.pragma_update(None, "user_version", MIGRATIONS.len() as u32)?;
        }
        all.commit()?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
        Ok(Store { db, damaged: 0 })
    }

    /// Stores a change of an alert, and a message of it to each receiver: all or nothing.
    pub fn record(&mut self, change: &Change<'_>) -> Result<()> {
        let all = self.db.transaction()?;
        let severity = change.severity.id();
        match change.change {
            "resolved" => all.execute(
                "UPDATE alerts SET ended_unix_ms = ?2, body = ?3 WHERE id = ?1",
                params![change.alert, change.unix_ms, change.body],
            )?,
            _ => all.execute(
                "INSERT INTO alerts (id, rule, target, severity, started_unix_ms, body, told)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (id) DO UPDATE SET severity = excluded.severity, body = excluded.body, told = excluded.told",
                params![
                    change.alert,
                    change.rule,
                    change.target,
                    severity,
                    change.unix_ms,
                    change.body,
                    change.told
                ],
            )?,
        };
        all.execute(
            "INSERT INTO journal (unix_ms, alert, change, body) VALUES (?1, ?2, ?3, ?4)",
            params![change.unix_ms, change.alert, change.change, change.body],
        )?;
        let message = format!("{}-{}", change.alert, change.change);
        for receiver in change.receivers {
            all.execute(
                "INSERT OR IGNORE INTO outbox (message, receiver, body, created_unix_ms, due_unix_ms)
                 VALUES (?1, ?2, ?3, ?4, ?4)",
                params![message, receiver, change.body, change.unix_ms],
            )?;
        }
        Ok(all.commit()?)
    }

    /// The alerts that fire.
    pub fn firing(&self) -> Result<Vec<StoredAlert>> {
        self.alerts("WHERE ended_unix_ms IS NULL ORDER BY started_unix_ms", 10_000)
    }

    /// The last `most` alerts, the newest first.
    pub fn last(&self, most: u32) -> Result<Vec<StoredAlert>> {
        self.alerts("ORDER BY started_unix_ms DESC", most)
    }

    /// One alert.
    pub fn alert(&self, id: &str) -> Result<Option<StoredAlert>> {
        Ok(self.db.query_row(&format!("{SELECT} WHERE id = ?1"), [id], stored).optional()?)
    }

    /// Notes that somebody has seen an alert; whether there is one.
    pub fn acknowledge(&mut self, id: &str, who: &str) -> Result<bool> {
        Ok(self.db.execute("UPDATE alerts SET acknowledged = ?2 WHERE id = ?1", [id, who])? > 0)
    }

    fn alerts(&self, which: &str, most: u32) -> Result<Vec<StoredAlert>> {
        let mut query = self.db.prepare(&format!("{SELECT} {which} LIMIT ?1"))?;
        Ok(query.query_map([most], stored)?.collect::<Result<_, _>>()?)
    }

    /// Puts the last message of an alert into the outbox: it was silenced until now.
    pub fn tell(&mut self, alert: &str, receivers: &[String], now_unix_ms: i64) -> Result<()> {
        let all = self.db.transaction()?;
        all.execute("UPDATE alerts SET told = 1 WHERE id = ?1", [alert])?;
        for receiver in receivers {
            all.execute(
                "INSERT OR IGNORE INTO outbox (message, receiver, body, created_unix_ms, due_unix_ms)
                 SELECT id || '-fired', ?2, body, ?3, ?3 FROM alerts WHERE id = ?1",
                params![alert, receiver, now_unix_ms],
            )?;
        }
        Ok(all.commit()?)
    }

    /// Alerts that fire, and those that ended after a time: for a receiver that forgets what it is not told again.
    pub fn since(&self, unix_ms: i64) -> Result<Vec<StoredAlert>> {
        let which = format!("WHERE told AND (ended_unix_ms IS NULL OR ended_unix_ms >= {unix_ms})");
        self.alerts(&format!("{which} ORDER BY started_unix_ms"), 10_000)
    }

    /// The messages that are due for a receiver, in order: none before the first is due.
    pub fn due(&self, receiver: &str, now_unix_ms: i64, most: usize) -> Result<Vec<Outgoing>> {
        let mut query = self.db.prepare_cached(
            "SELECT seq, message, receiver, body, attempts, digest, due_unix_ms FROM outbox WHERE receiver = ?1
             ORDER BY seq LIMIT ?2",
        )?;
        let rows = query.query_map(params![receiver, most as i64], |row| {
            let due: i64 = row.get(6)?;
            let outgoing = Outgoing {
                seq: row.get(0)?,
                message: row.get(1)?,
                receiver: row.get(2)?,
                body: row.get(3)?,
                attempts: row.get(4)?,
                digest: row.get(5)?,
            };
            Ok((due, outgoing))
        })?;
        let mut messages = Vec::new();
        for row in rows {
            let (due, outgoing) = row?;
            // In order: a message waits for those before it. A wait that is too long is that of a clock that was set back.
            if (1..=LONGEST_WAIT_MS).contains(&(due - now_unix_ms)) {
                break;
            }
            messages.push(outgoing);
        }
        Ok(messages)
    }

    /// Makes messages parts of one digest, for as often as it is sent.
    pub fn combine(&mut self, seqs: &[i64], digest: &str) -> Result<()> {
        let all = self.db.transaction()?;
        for seq in seqs {
            all.execute("UPDATE outbox SET digest = ?2 WHERE seq = ?1", params![seq, digest])?;
        }
        Ok(all.commit()?)
    }

    /// Silences that have not ended.
    pub fn silences(&self, now_unix_ms: i64) -> Result<Vec<Silence>> {
        let mut query = self.db.prepare_cached(
            "SELECT id, rule, target, until_unix_ms, reason FROM silences WHERE until_unix_ms > ?1 ORDER BY id",
        )?;
        let rows = query.query_map([now_unix_ms], |row| {
            Ok(Silence {
                id: row.get(0)?,
                rule: row.get(1)?,
                target: row.get(2)?,
                until_unix_ms: row.get(3)?,
                reason: row.get(4)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Begins a silence; its number.
    pub fn silence(
        &mut self,
        rule: Option<&str>,
        target: Option<&str>,
        until_unix_ms: i64,
        reason: &str,
    ) -> Result<i64> {
        self.db.execute(
            "INSERT INTO silences (rule, target, until_unix_ms, reason) VALUES (?1, ?2, ?3, ?4)",
            params![rule, target, until_unix_ms, reason],
        )?;
        Ok(self.db.last_insert_rowid())
    }

    /// Ends a silence; whether there was one.
    pub fn unsilence(&mut self, id: i64) -> Result<bool> {
        Ok(self.db.execute("DELETE FROM silences WHERE id = ?1", [id])? > 0)
    }

    /// Notes what somebody has changed.
    pub fn audit(&mut self, unix_ms: i64, who: &str, what: &str, body: &str) -> Result<()> {
        self.db.execute(
            "INSERT INTO audit (unix_ms, who, what, body) VALUES (?1, ?2, ?3, ?4)",
            params![unix_ms, who, what, body],
        )?;
        Ok(())
    }

    /// Messages that wait, of one receiver or of all.
    pub fn waiting(&self) -> Result<i64> {
        Ok(self.db.query_row("SELECT count(*) FROM outbox", [], |row| row.get(0))?)
    }

    /// Messages have arrived.
    pub fn sent(&mut self, messages: &[Outgoing]) -> Result<()> {
        let all = self.db.transaction()?;
        for message in messages {
            all.execute("DELETE FROM outbox WHERE seq = ?1", [message.seq])?;
        }
        Ok(all.commit()?)
    }

    /// Messages that their receiver does not want are set aside, so that those behind them arrive.
    pub fn refused(&mut self, messages: &[Outgoing], error: &str, now_unix_ms: i64) -> Result<()> {
        let all = self.db.transaction()?;
        for message in messages {
            all.execute(
                "INSERT INTO refused SELECT seq, message, receiver, body, ?2, ?3 FROM outbox WHERE seq = ?1",
                params![message.seq, now_unix_ms, error],
            )?;
            all.execute("DELETE FROM outbox WHERE seq = ?1", [message.seq])?;
        }
        Ok(all.commit()?)
    }

    /// Messages have not arrived and are to be tried again.
    pub fn failed(&mut self, messages: &[Outgoing], error: &str, due_unix_ms: i64) -> Result<()> {
        let all = self.db.transaction()?;
        for message in messages {
            all.execute(
                "UPDATE outbox SET attempts = attempts + 1, error = ?2, due_unix_ms = ?3 WHERE seq = ?1",
                params![message.seq, error, due_unix_ms],
            )?;
        }
        Ok(all.commit()?)
    }

    /// Removes what is too old or too much, and says how many unsent messages that were.
    pub fn clean(&mut self, now_unix_ms: i64) -> Result<u64> {
        let oldest = now_unix_ms - KEEP.0.as_millis() as i64;
        self.db.execute("DELETE FROM alerts WHERE ended_unix_ms < ?1", [oldest])?;
        self.db.execute(
            "DELETE FROM alerts WHERE ended_unix_ms IS NOT NULL AND id NOT IN
             (SELECT id FROM alerts ORDER BY started_unix_ms DESC LIMIT ?1)",
            [KEEP.1],
        )?;
        self.db.execute("DELETE FROM journal WHERE alert NOT IN (SELECT id FROM alerts)", [])?;
        self.db.execute("DELETE FROM silences WHERE until_unix_ms < ?1", [oldest])?;
        for (table, most) in [("audit", KEEP.1), ("refused", MAX_OUTBOX)] {
            let which = format!("seq NOT IN (SELECT seq FROM {table} ORDER BY seq DESC LIMIT ?1)");
            self.db.execute(&format!("DELETE FROM {table} WHERE {which}"), [most])?;
        }
        let lost = self.db.execute(
            "DELETE FROM outbox WHERE seq NOT IN (SELECT seq FROM outbox ORDER BY seq DESC LIMIT ?1)",
            [MAX_OUTBOX],
        )?;
        Ok(lost as u64)
    }
}

const SELECT: &str =
    "SELECT id, rule, target, severity, started_unix_ms, ended_unix_ms, acknowledged, body, told FROM alerts";

fn stored(row: &rusqlite::Row<'_>) -> rusqlite::Result<StoredAlert> {
    let body: String = row.get(7)?;
    Ok(StoredAlert {
        id: row.get(0)?,
        rule: row.get(1)?,
        target: row.get(2)?,
        severity: row.get(3)?,
        started_unix_ms: row.get(4)?,
        ended_unix_ms: row.get(5)?,
        acknowledged: row.get(6)?,
        body: serde_json::from_str(&body).unwrap_or_default(),
        told: row.get(8)?,
    })
}

#[cfg(test)]
mod tests;
