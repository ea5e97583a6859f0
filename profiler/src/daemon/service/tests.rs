//! Windows one by one, without a kernel: what measures is made up.

use std::process::{Child, Command, Stdio};

use super::*;
use crate::daemon::notify::test_server;

/// A daemon, and the one process that it watches.
struct Watching {
    daemon: Daemon,
    dir: tempfile::TempDir,
    process: Child,
    asked: Asked,
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ended = self.process.kill();
        let _ended = self.process.wait();
    }
}

impl Watching {
    fn start(more: &str) -> Watching {
        let dir = tempfile::tempdir().unwrap();
        let word = dir.path().display();
        let mut process = Command::new("cat");
        let process = process.args(["-", &word.to_string()]).stdin(Stdio::piped()).stderr(Stdio::null());
        let process = process.stdout(Stdio::null()).spawn().unwrap();
        // For its parent, a program runs a moment before its arguments are there.
        let arguments = format!("/proc/{}/cmdline", process.id());
        while std::fs::read(&arguments).unwrap().is_empty() {
            std::thread::yield_now();
        }
        let config = format!(
            "[daemon]\nstate_dir = \"{word}\"\nlisten = \"\"\n[[targets]]\nname = \"t\"\nargument = \"{word}\"\n\
             [rules.own-windows]\nwarmup = \"0s\"\n{more}"
        );
        let daemon = Daemon::start(config::parse(&config).unwrap()).unwrap();
        let asked = Asked::default();
        // It waits for nothing between windows.
        asked.reload.store(true, Ordering::Relaxed);
        Watching { daemon, dir, process, asked }
    }

    fn fail(&mut self, why: &'static str) {
        let mut fails = |window: &Window, _: &dyn Fn() -> Option<Instant>| {
            assert_eq!(window.pids, [self.process.id()]);
            std::fs::write(&window.recording, "half of it").unwrap();
            Err(anyhow::anyhow!(why))
        };
        self.daemon.window(&mut fails, &self.asked);
    }

    fn succeed(&mut self) {
        self.daemon.window(&mut |_, _| Ok(Run::empty()), &self.asked);
    }

    fn snapshot(&self) -> Snapshot {
        self.daemon.shared.with(Clone::clone)
    }

    fn firing(&self) -> Vec<String> {
        let firing = Store::open(self.dir.path()).unwrap().firing().unwrap();
        firing.into_iter().map(|alert| alert.rule).collect()
    }
}

#[test]
fn a_window_that_failed_is_seen_from_outside_and_told() {
    let mut watching = Watching::start("");
    watching.daemon.window_ended.store(5, Ordering::Relaxed);
    watching.fail("the disk is full");
    assert_eq!(watching.firing(), [""; 0], "one may be chance");
    watching.fail("the disk is full");
    let seen = watching.snapshot();
    assert!(seen.failed && seen.window_unix_ms.is_none());
    assert_eq!(seen.problems, ["a window failed: the disk is full"]);
    assert_eq!(seen.targets[0].pids, [watching.process.id()], "it is there, and nothing is known of it");
    assert!(seen.metrics.contains("profiler_agent_failed_windows_total 2"), "{}", seen.metrics);
    assert_eq!(watching.firing(), ["own-windows"]);
    assert_eq!(watching.daemon.window_ended.load(Ordering::Relaxed), 5, "no sign that all is well");
    let left = std::fs::read_dir(watching.dir.path().join("windows")).unwrap().count();
    assert_eq!(left, 0, "a part of a window is no evidence");
    watching.succeed();
    let seen = watching.snapshot();
    assert!(!seen.failed && seen.window_unix_ms.is_some());
    assert_eq!(seen.problems, [""; 0]);
    assert!(watching.daemon.window_ended.load(Ordering::Relaxed) > 5);
}

#[test]
fn without_processes_no_window_fails() {
    let mut watching = Watching::start("");
    watching.process.kill().unwrap();
    watching.process.wait().unwrap();
    watching.daemon.window(&mut |_, _| panic!("there is nobody"), &watching.asked);
    let seen = watching.snapshot();
    assert!(!seen.failed && seen.window_unix_ms.is_some() && seen.targets[0].pids.is_empty());
}

#[test]
fn a_message_that_cannot_be_stored_goes_out_all_the_same() {
    let (url, server) = test_server(vec![200]);
    let hook = format!("[[receivers]]\nname = \"hook\"\ntype = \"webhook\"\nurl = \"{url}\"\n");
    let mut watching = Watching::start(&hook);
    let other = rusqlite::Connection::open(watching.dir.path().join("alerts.sqlite")).unwrap();
    let full =
        "CREATE TRIGGER full BEFORE INSERT ON alerts BEGIN SELECT RAISE(ABORT, 'the disk is full'); END";
    other.execute_batch(full).unwrap();
    watching.fail("the disk is full");
    watching.fail("the disk is full");
    let (_, body) = server.join().unwrap().remove(0);
    assert!(body.contains("own-windows") && body.contains("the last: the disk is full"), "{body}");
    let seen = watching.snapshot();
    assert!(
        seen.problems.iter().any(|problem| problem.contains("cannot be stored yet")),
        "{:?}",
        seen.problems
    );
    assert!(seen.metrics.contains("profiler_alerts_unstored 1"), "{}", seen.metrics);
}

#[test]
fn all_that_ends_has_one_deadline() {
    let Watching { daemon, asked, .. } = &mut Watching::start("");
    let mut ends = |_: &Window, must_end: &dyn Fn() -> Option<Instant>| {
        assert_eq!(must_end(), None);
        asked.stop.store(true, Ordering::Relaxed);
        let by = must_end().unwrap();
        assert_eq!(must_end(), Some(by), "however long it takes");
        assert_eq!(asked.until(END.1) - by, END.1 - END.0, "the messages have what is left");
        Err(anyhow::anyhow!("it was ended early"))
    };
    daemon.window(&mut ends, asked);
    assert!(!daemon.shared.with(|seen| seen.failed), "who is stopped has not failed");
}

#[test]
fn processes_without_room_are_a_problem() {
    let mut watching = Watching::start("");
    watching.daemon.left_out(3);
    assert_eq!(watching.daemon.problems, ["3 processes of targets are not watched: there is room for 4096"]);
    watching.succeed();
    assert_eq!(watching.snapshot().problems, [""; 0], "over");
}
