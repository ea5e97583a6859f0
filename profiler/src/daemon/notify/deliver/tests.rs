use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    sync::{Mutex, atomic::AtomicI64},
    time::Instant,
};

use super::{super::send::tests::server, *};
use crate::{
    daemon::{config, config::Secret, message::fixtures::message, notify::Senders, store::Change},
    model::finding::Severity,
    process::clock,
};

fn webhook(url: String) -> Receiver {
    Receiver { name: "hook".into(), kind: ReceiverKind::Webhook { url: Secret::Value(url), secret: None } }
}

fn delivery(dir: &Path, receiver: Receiver) -> Delivery {
    Delivery::new(Store::open(dir).unwrap(), receiver, BTreeSet::from(["r".to_owned()]), Arc::default())
}

/// Records the beginning of an alert.
fn fire(store: &mut Store, alert: &str, unix_ms: i64) {
    let id = format!("{alert}-fired");
    let message = Message { message: id, alert: alert.to_owned(), rule: "r".into(), unix_ms, ..message() };
    store
        .record(&Change {
            alert,
            rule: "r",
            target: "t",
            severity: Severity::Warning,
            change: "fired",
            unix_ms,
            body: &serde_json::to_string(&message).unwrap(),
            receivers: &["hook".to_owned()],
            told: true,
        })
        .unwrap();
}

#[test]
fn what_fails_is_tried_again_and_arrives_once() {
    let dir = tempfile::tempdir().unwrap();
    let (url, server) = server(vec![500, 200]);
    let mut delivery = delivery(dir.path(), webhook(url));
    fire(&mut delivery.store, "a1", 1);
    let now = clock::unix_ms();
    assert!(delivery.next(now).unwrap());
    assert_eq!(delivery.store.waiting().unwrap(), 1);
    assert!(!delivery.next(now + 700).unwrap(), "not at once");
    assert_eq!(delivery.counts.failing.load(Ordering::Relaxed), 1);
    assert!(delivery.next(now + 1_300).unwrap());
    assert_eq!(delivery.store.waiting().unwrap(), 0);
    let counts = &delivery.counts;
    let all = [&counts.sent, &counts.failed, &counts.failing].map(|n| n.load(Ordering::Relaxed));
    assert_eq!(all, [1, 1, 0]);
    assert_eq!(server.join().unwrap().len(), 2);
}

#[test]
fn what_has_arrived_is_not_sent_again_while_the_outbox_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let (url, server) = server(vec![200, 200]);
    let mut delivery = delivery(dir.path(), webhook(url));
    fire(&mut delivery.store, "a1", 1);
    let other = rusqlite::Connection::open(dir.path().join("alerts.sqlite")).unwrap();
    let full =
        "CREATE TRIGGER full BEFORE DELETE ON outbox BEGIN SELECT RAISE(ABORT, 'the disk is full'); END";
    other.execute_batch(full).unwrap();
    (1..4).for_each(|now| assert!(delivery.next(now).is_err()));
    delivery.urgent(Message { message: "a2-fired".into(), ..message() });
    other.execute_batch("DROP TRIGGER full").unwrap();
    assert!(!delivery.next(9).unwrap());
    assert_eq!(delivery.store.waiting().unwrap(), 0);
    assert_eq!(delivery.counts.sent.load(Ordering::Relaxed), 2);
    let got = server.join().unwrap();
    assert!(got[0].1.contains("a1-fired") && got[1].1.contains("a2-fired"), "each once: {got:?}");
}

#[test]
fn a_storm_is_one_digest_that_stays_the_same_until_it_arrives() {
    let dir = tempfile::tempdir().unwrap();
    let (url, server) = server(vec![200, 200, 500, 200, 200]);
    let mut delivery = delivery(dir.path(), webhook(url));
    let now = 1_000_000_000;
    for alert in ["a1", "a2"] {
        fire(&mut delivery.store, alert, now);
        assert!(delivery.next(now).unwrap());
    }
    for i in 0..30 {
        fire(&mut delivery.store, &format!("storm{i}"), now);
    }
    assert!(delivery.next(now + 1_000).unwrap(), "it fails");
    fire(&mut delivery.store, "later", now);
    assert!(!delivery.next(now + 1_500).unwrap(), "it waits");
    assert!(delivery.next(now + 3_000).unwrap());
    assert_eq!(delivery.store.waiting().unwrap(), 1);
    assert!(delivery.next(now + 4_000).unwrap(), "one alone may go as it is");
    assert_eq!(delivery.store.waiting().unwrap(), 0);
    let got = server.join().unwrap();
    let got: Vec<Message> = got.iter().map(|(_, body)| serde_json::from_str(body).unwrap()).collect();
    assert_eq!(got[2], got[3], "the same digest");
    assert_eq!((got[2].change.as_str(), got[2].parts.len()), ("digest", 30));
    assert_eq!(got[2].parts[29].message, "storm29-fired");
    assert!(got[2].text().contains("r on api 212 ms"), "{}", got[2].text());
    assert_eq!(got[4].alert, "later");
}

#[test]
fn what_a_receiver_refuses_does_not_hold_up_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let (url, server) = server(vec![400, 400, 400, 400, 400, 200]);
    let mut delivery = delivery(dir.path(), webhook(url));
    fire(&mut delivery.store, "bad", 1);
    fire(&mut delivery.store, "good", 1);
    (0..6).for_each(|i| assert!(delivery.next(1 + 60_000 * i).unwrap()));
    assert_eq!(delivery.store.waiting().unwrap(), 0);
    assert_eq!(delivery.counts.refused.load(Ordering::Relaxed), 1);
    assert!(server.join().unwrap()[5].1.contains("good-fired"));
}

#[test]
fn alertmanager_is_told_again_of_what_fires_and_of_what_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (url, server) = server(vec![200, 200, 200]);
    let kind = ReceiverKind::Alertmanager { url: Secret::Value(url) };
    let mut delivery = delivery(dir.path(), Receiver { name: "hook".into(), kind });
    let now = 1_000_000_000;
    fire(&mut delivery.store, "a1", now);
    fire(&mut delivery.store, "a2", now);
    assert!(delivery.next(now).unwrap());
    assert!(!delivery.next(now).unwrap(), "again, since nothing is known of before");
    assert!(!delivery.next(now + 59_000).unwrap());
    assert!(!delivery.next(now + 60_000).unwrap());
    for (_, body) in server.join().unwrap() {
        let alerts: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(alerts.as_array().unwrap().len(), 2);
    }
}

#[test]
fn waits_grow_to_a_limit() {
    for (attempts, s) in [(0, 1.0), (1, 2.0), (2, 4.0), (20, 300.0), (u32::MAX, 300.0)] {
        for seq in 0..100 {
            let wait = backoff(attempts, seq);
            assert!((0.8 * s..=1.2 * s).contains(&wait.as_secs_f64()), "{attempts}: {wait:?}");
            assert!(wait.as_millis() as i64 <= super::super::super::store::LONGEST_WAIT_MS);
        }
    }
}

/// Says in which folder the child of the trial works, where its receiver is, and whether it makes alerts.
const TRIAL: &str = "PROFILER_TRIAL";
/// How often the trial kills; 100 by hand.
const KILLS: &str = "PROFILER_KILLS";

/// No test: what the trial below kills. It makes alerts and sends them until it is killed, or sends what is left.
#[test]
fn the_child_of_the_trial() {
    let Ok(trial) = std::env::var(TRIAL) else { return };
    let [dir, url, makes] = trial.split('|').collect::<Vec<_>>()[..] else { panic!("{trial}") };
    let config = format!(
        "[[targets]]\nname = \"t\"\ncomm = \"t\"\n[[receivers]]\nname = \"hook\"\ntype = \"webhook\"\nurl = \"{url}\"\n"
    );
    let config = config::parse(&config).unwrap();
    let _senders = Senders::start(dir.as_ref(), &config, "host", &Arc::new(AtomicI64::new(0))).unwrap();
    let mut store = Store::open(dir.as_ref()).unwrap();
    let mut random = std::process::id();
    loop {
        if makes == "true" {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            std::thread::sleep(Duration::from_millis(u64::from(random >> 22)));
            let alert = format!("{}-{random}", std::process::id());
            // What stands here was told to be recorded: it must arrive.
            fire(&mut store, &alert, clock::unix_ms());
            let mut ledger =
                std::fs::File::options().create(true).append(true).open(format!("{dir}/ledger")).unwrap();
            ledger.write_all(format!("{alert}-fired\n").as_bytes()).unwrap();
        } else if store.waiting().unwrap() == 0 {
            return;
        } else {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Reads a request; its body if it is whole.
fn read_request(stream: &TcpStream) -> Option<String> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None; // it was killed in the middle of its request
        }
        if let Some(n) = line.to_lowercase().strip_prefix("content-length: ") {
            length = n.trim().parse().ok()?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    String::from_utf8(body).ok()
}

#[test]
fn killed_at_any_moment_it_loses_nothing() {
    let kills: u32 = std::env::var(KILLS).ok().and_then(|n| n.parse().ok()).unwrap_or(3);
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    // How often each message has come.
    let got: Arc<Mutex<BTreeMap<String, u32>>> = Arc::default();
    let seen = Arc::clone(&got);
    std::thread::spawn(move || {
        for (n, stream) in listener.incoming().enumerate() {
            let (mut stream, seen) = (stream.unwrap(), Arc::clone(&seen));
            std::thread::spawn(move || {
                let Some(body) = read_request(&stream) else { return };
                let message: Message = serde_json::from_str(&body).unwrap();
                let ids: Vec<String> = match message.parts.is_empty() {
                    true => vec![message.message],
                    false => message.parts.into_iter().map(|part| part.message).collect(),
                };
                // A receiver that fails may have taken the message or not.
                let (takes, answer) = match n % 5 {
                    1 => (false, "500 Away"),
                    3 => (true, "500 Away"),
                    4 => (true, ""),
                    _ => (true, "200 OK"),
                };
                if takes {
                    ids.into_iter().for_each(|id| *seen.lock().unwrap().entry(id).or_default() += 1);
                }
                if !answer.is_empty() {
                    let _ =
                        write!(stream, "HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                }
            });
        }
    });
    let start = |makes: bool| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let name = format!("{}::the_child_of_the_trial", module_path!().split_once("::").unwrap().1);
        command.args(["--exact", &name, "--nocapture"]).stdout(Stdio::null()).stderr(Stdio::null());
        command.env(TRIAL, format!("{}|{url}|{makes}", dir.path().display())).spawn().unwrap()
    };
    let mut random = 7u32;
    for _ in 0..kills {
        let mut child = start(true);
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Until it has made something, then a random while.
        let ledger =
            || std::fs::read_to_string(dir.path().join("ledger")).unwrap_or_default().lines().count();
        let (before, since) = (ledger(), Instant::now());
        while ledger() == before && since.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(u64::from(random >> 22)));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(start(false).wait().unwrap().success(), "what is left is sent");
    let got = got.lock().unwrap();
    let ledger = std::fs::read_to_string(dir.path().join("ledger")).unwrap();
    let lost: Vec<&str> = ledger.lines().filter(|id| !got.contains_key(*id)).collect();
    assert_eq!(lost, Vec::<&str>::new());
    // The child may have been killed between the record and the ledger: such a message comes, too.
    let strangers = got.keys().filter(|id| !ledger.lines().any(|known| known == *id)).count();
    let doubled = got.values().filter(|n| **n > 1).count();
    assert!(strangers <= kills as usize);
    println!(
        "{kills} kills, {} messages recorded, 0 lost, {doubled} came more than once, by the same id",
        got.len()
    );
}
