use super::*;

fn change<'a>(alert: &'a str, change: &'a str, unix_ms: i64, receivers: &'a [String]) -> Change<'a> {
    let severity = Severity::Warning;
    Change {
        alert,
        rule: "r",
        target: "t",
        severity,
        change,
        unix_ms,
        body: "{\"n\":1}",
        receivers,
        told: true,
    }
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
    let first = store.due("a", 5, 9).unwrap();
    assert_eq!((first[0].message.as_str(), first[0].attempts), ("1-fired", 0));
    store.failed(&first, "away", 100).unwrap();
    assert_eq!(store.due("a", 99, 9).unwrap(), [], "not yet");
    assert_eq!(store.due("a", 100, 9).unwrap()[0].attempts, 1);
    assert_eq!(store.due("b", 5, 9).unwrap().len(), 1, "one receiver does not wait for another");
    store.sent(&first).unwrap();
    assert_eq!(store.due("a", 1000, 9).unwrap(), []);
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
    let both = store.due("a", 10, 9).unwrap();
    assert_eq!(both.len(), 2);
    store.failed(&both[..1], "away", 50).unwrap();
    assert_eq!(store.due("a", 10, 9).unwrap(), [], "the end waits for the beginning");
}

#[test]
fn a_file_of_before_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    {
        let old = Connection::open(dir.path().join("alerts.sqlite")).unwrap();
        old.execute_batch(
            "CREATE TABLE alerts (
                id TEXT PRIMARY KEY, rule TEXT NOT NULL, target TEXT NOT NULL, severity TEXT NOT NULL,
                started_unix_ms INTEGER NOT NULL, ended_unix_ms INTEGER, acknowledged TEXT, body TEXT NOT NULL
            ) STRICT;
            CREATE TABLE outbox (
                seq INTEGER PRIMARY KEY AUTOINCREMENT, message TEXT NOT NULL, receiver TEXT NOT NULL,
                body TEXT NOT NULL, created_unix_ms INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
                due_unix_ms INTEGER NOT NULL, error TEXT, UNIQUE (message, receiver)
            ) STRICT;
            INSERT INTO alerts VALUES ('1', 'r', 't', 'warning', 5, NULL, NULL, '{}');
            INSERT INTO outbox (message, receiver, body, created_unix_ms, due_unix_ms)
            VALUES ('1-fired', 'a', '{}', 5, 5);",
        )
        .unwrap();
    }
    for _ in 0..2 {
        let mut store = Store::open(dir.path()).unwrap();
        store.audit(7, "ada", "capture", "{}").unwrap();
        assert!(store.firing().unwrap()[0].told);
        assert_eq!(store.due("a", 5, 9).unwrap()[0].digest, None);
    }
}

#[test]
fn what_was_silenced_is_told_later() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    let id = store.silence(Some("r"), None, 100, "a deploy").unwrap();
    let silences = store.silences(50).unwrap();
    assert!(silences[0].covers("r", "any") && !silences[0].covers("other", "any"));
    assert_eq!(store.silences(100).unwrap(), [], "over");
    store.record(&Change { told: false, ..change("1", "fired", 5, &[]) }).unwrap();
    assert_eq!(store.since(0).unwrap(), []);
    store.tell("1", &["a".to_owned()], 60).unwrap();
    assert_eq!(store.due("a", 60, 9).unwrap()[0].message, "1-fired");
    assert!(store.firing().unwrap()[0].told);
    assert!(store.unsilence(id).unwrap() && !store.unsilence(id).unwrap());
}

#[test]
fn a_damaged_file_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    for suffix in ["", "-wal", "-shm"] {
        std::fs::write(dir.path().join(format!("alerts.sqlite{suffix}")), vec![7u8; 5000]).unwrap();
    }
    assert!(is_damage(&Store::open(dir.path()).err().unwrap()));
    let store = Store::start(dir.path()).unwrap();
    assert_eq!((store.firing().unwrap(), store.damaged), (vec![], 1));
    let aside = set_aside(dir.path());
    let endings: Vec<&str> = aside.iter().map(|name| name.trim_start_matches(char::is_numeric)).collect();
    assert_eq!(endings, ["", "-shm", "-wal"]);
    assert_eq!(Store::start(dir.path()).unwrap().damaged, 0);
}

/// What follows `damaged-` in the names of the files of a folder that were set aside.
fn set_aside(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.filter_map(|name| Some(name.to_str()?.split_once("damaged-")?.1.to_owned()));
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn a_file_that_cannot_be_used_now_stays_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("alerts.sqlite")).unwrap();
    let error = format!("{:#}", Store::start(dir.path()).err().unwrap());
    assert!(error.contains("alerts.sqlite: unable to open") && !error.contains('\n'), "{error}");
    assert_eq!(set_aside(dir.path()), [""; 0]);
}

#[test]
fn the_queries_of_the_documents_work() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::start(dir.path()).unwrap();
    store.record(&change("1", "fired", 5, &["a".to_owned()])).unwrap();
    let text = include_str!("../../../../docs/operating.md");
    let queries = text.split_once("```sql\n").unwrap().1.split_once("```").unwrap().0;
    for query in queries.split_inclusive(';').filter(|query| !query.trim().is_empty()) {
        let rows = store.db.prepare(query).unwrap().query_map([], |_| Ok(())).unwrap().count();
        assert_eq!(rows, 1, "{query}");
    }
    // Whatever the page says of a table is a column.
    let tables = text.split_once("| table | a row is | columns |").unwrap().1.split_once("```sql").unwrap().0;
    for row in tables.lines().filter(|row| row.starts_with("| `")) {
        let cells: Vec<Vec<&str>> = row.split('|').map(words).collect();
        let known = cells[1].iter().flat_map(|table| {
            let table = store.db.prepare(&format!("SELECT * FROM {table}")).unwrap();
            table.column_names().map(str::to_owned).collect::<Vec<_>>()
        });
        let known: Vec<String> = known.chain(["fired", "escalated", "resolved"].map(str::to_owned)).collect();
        assert!(cells[3].iter().all(|column| known.iter().any(|of| of == column)), "{row}");
    }
}

/// What stands in backquotes.
fn words(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}
