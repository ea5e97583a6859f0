//! What the daemon must not forget: alerts, what changed of them, and messages that are still to be sent. One SQLite
//! file (`alerts.sqlite`); a change and its messages are one transaction, so that neither is there without the other.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::model::finding::Severity;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS alerts (
    id TEXT PRIMARY KEY, rule TEXT NOT NULL, target TEXT NOT NULL, severity TEXT NOT NULL,
    started_unix_ms INTEGER NOT NULL, ended_unix_ms INTEGER, acknowledged TEXT, body TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS open_alerts ON alerts (ended_unix_ms) WHERE ended_unix_ms IS NULL;
CREATE TABLE IF NOT EXISTS journal (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, unix_ms INTEGER NOT NULL, alert TEXT NOT NULL, change TEXT NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, message TEXT NOT NULL, receiver TEXT NOT NULL, body TEXT NOT NULL,
    created_unix_ms INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, due_unix_ms INTEGER NOT NULL,
    error TEXT, UNIQUE (message, receiver)
) STRICT;
";

/// Ended alerts and their journal are kept for so long, and at most so many.
const KEEP: (Duration, i64) = (Duration::from_secs(400 * 86_400), 100_000);

/// Messages that wait for a receiver that is away; the oldest go first, and are counted.
const MAX_OUTBOX: i64 = 10_000;

/// The daemon's memory of alerts.
pub struct Store {
    db: Connection,
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
    pub change: &'static str,
    /// When, ms since 1970 (UTC).
    pub unix_ms: i64,
    /// The message.
    pub body: &'a str,
    /// Who gets it.
    pub receivers: &'a [String],
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
}

impl Store {
    /// Opens the store in a folder, which must be there. A file that is damaged is set aside, with a line on standard
    /// error: the daemon must start.
    pub fn open(dir: &Path) -> Result<Store> {
        let path = dir.join("alerts.sqlite");
        match Store::open_file(&path) {
            Ok(store) => Ok(store),
            Err(error) if path.exists() => {
                let aside = dir.join(format!("alerts.sqlite.damaged-{}", crate::process::clock::unix_ms()));
                eprintln!("profiler: {}: {error:#}; set aside as {}", path.display(), aside.display());
                std::fs::rename(&path, &aside)?;
                for suffix in ["-wal", "-shm"] {
                    let _ = std::fs::remove_file(dir.join(format!("alerts.sqlite{suffix}")));
                }
                Store::open_file(&path)
            }
            Err(error) => Err(error),
        }
    }

    fn open_file(path: &Path) -> Result<Store> {
        let db = Connection::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        db.busy_timeout(Duration::from_secs(5))?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        let sound: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        anyhow::ensure!(sound == "ok", "it is damaged: {sound}");
        db.execute_batch(SCHEMA)?;
        Ok(Store { db })
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
                "INSERT INTO alerts (id, rule, target, severity, started_unix_ms, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (id) DO UPDATE SET severity = excluded.severity, body = excluded.body",
                params![change.alert, change.rule, change.target, severity, change.unix_ms, change.body],
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

    /// The first message that is due for a receiver.
    pub fn due(&self, receiver: &str, now_unix_ms: i64) -> Result<Option<Outgoing>> {
        let mut query = self.db.prepare_cached(
            "SELECT seq, message, receiver, body, attempts, due_unix_ms FROM outbox WHERE receiver = ?1 ORDER BY seq LIMIT 1",
        )?;
        // In order: a message waits for those before it.
        let first = query.query_row(params![receiver], |row| {
            let due: i64 = row.get(5)?;
            let outgoing = Outgoing {
                seq: row.get(0)?,
                message: row.get(1)?,
                receiver: row.get(2)?,
                body: row.get(3)?,
                attempts: row.get(4)?,
            };
            Ok((due, outgoing))
        });
        Ok(first.optional()?.filter(|(due, _)| *due <= now_unix_ms).map(|(_, outgoing)| outgoing))
    }

    /// Messages that wait, of one receiver or of all.
    pub fn waiting(&self) -> Result<i64> {
        Ok(self.db.query_row("SELECT count(*) FROM outbox", [], |row| row.get(0))?)
    }

    /// A message has arrived.
    pub fn sent(&mut self, seq: i64) -> Result<()> {
        self.db.execute("DELETE FROM outbox WHERE seq = ?1", [seq])?;
        Ok(())
    }

    /// A message has not arrived and is to be tried again.
    pub fn failed(&mut self, seq: i64, error: &str, due_unix_ms: i64) -> Result<()> {
        self.db.execute(
            "UPDATE outbox SET attempts = attempts + 1, error = ?2, due_unix_ms = ?3 WHERE seq = ?1",
            params![seq, error, due_unix_ms],
        )?;
        Ok(())
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
        let lost = self.db.execute(
            "DELETE FROM outbox WHERE seq NOT IN (SELECT seq FROM outbox ORDER BY seq DESC LIMIT ?1)",
            [MAX_OUTBOX],
        )?;
        Ok(lost as u64)
    }
}

const SELECT: &str =
    "SELECT id, rule, target, severity, started_unix_ms, ended_unix_ms, acknowledged, body FROM alerts";

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
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change<'a>(alert: &'a str, change: &'static str, unix_ms: i64, receivers: &'a [String]) -> Change<'a> {
        let severity = Severity::Warning;
        Change { alert, rule: "r", target: "t", severity, change, unix_ms, body: "{\"n\":1}", receivers }
    }

    #[test]
    fn a_change_and_its_messages_survive_together() {
        let dir = tempfile::tempdir().unwrap();
        let receivers = ["a".to_owned(), "b".to_owned()];
        {
            let mut store = Store::open(dir.path()).unwrap();
            store.record(&change("1", "fired", 5, &receivers)).unwrap();
            // Told twice, sent once.
            store.record(&change("1", "fired", 5, &receivers)).unwrap();
        }
        let mut store = Store::open(dir.path()).unwrap();
        assert_eq!(store.firing().unwrap().len(), 1);
        assert_eq!(store.waiting().unwrap(), 2);
        let first = store.due("a", 5).unwrap().unwrap();
        assert_eq!((first.message.as_str(), first.attempts), ("1-fired", 0));
        store.failed(first.seq, "away", 100).unwrap();
        assert_eq!(store.due("a", 99).unwrap(), None, "not yet");
        assert_eq!(store.due("a", 100).unwrap().unwrap().attempts, 1);
        assert!(store.due("b", 5).unwrap().is_some(), "one receiver does not wait for another");
        store.sent(first.seq).unwrap();
        assert_eq!(store.due("a", 1000).unwrap(), None);
        store.record(&change("1", "resolved", 9, &receivers)).unwrap();
        assert_eq!(store.firing().unwrap().len(), 0);
        assert_eq!(store.last(10).unwrap()[0].ended_unix_ms, Some(9));
        assert!(store.acknowledge("1", "me").unwrap() && !store.acknowledge("2", "me").unwrap());
        assert_eq!(store.alert("1").unwrap().unwrap().acknowledged.as_deref(), Some("me"));
        assert_eq!(store.alert("2").unwrap(), None);
    }

    #[test]
    fn messages_keep_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        let receivers = ["a".to_owned()];
        store.record(&change("1", "fired", 5, &receivers)).unwrap();
        store.record(&change("1", "resolved", 6, &receivers)).unwrap();
        let first = store.due("a", 10).unwrap().unwrap();
        store.failed(first.seq, "away", 50).unwrap();
        assert_eq!(store.due("a", 10).unwrap(), None, "the end waits for the beginning");
    }

    #[test]
    fn a_damaged_file_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("alerts.sqlite"), vec![7u8; 5000]).unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.firing().unwrap(), []);
        let aside = std::fs::read_dir(dir.path()).unwrap().filter_map(Result::ok);
        assert!(aside.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().contains("damaged")));
    }
}
