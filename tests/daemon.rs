//! The daemon on a real program: it notices a stall, says so once with the cause and with recordings of it, and ends well.
#![allow(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

mod common;

use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{PROFILER, kernel_ready};
use serde_json::Value;

/// A server that is busy for 150 ms of every 400 ms.
const SICK: &str = "
function busyLoop() { const end = Date.now() + 150; let x = 0; while (Date.now() < end) x += Math.sqrt(x + 1); return x; }
setInterval(busyLoop, 400);
require('http').createServer((request, response) => response.end('ok')).listen(0, '127.0.0.1');
";

/// How long something may take that a busy machine makes slow.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn a_stall_becomes_one_alert_with_its_evidence() {
    if !kernel_ready(&["node"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (script, alerts) = (dir.path().join("sick.js"), dir.path().join("alerts.jsonl"));
    fs::write(&script, SICK).unwrap();
    let config = format!(
        "[daemon]
        window = \"5s\"
        state_dir = \"{state}\"
        listen = \"{state}/api\"
        max_overhead = 100.0
        [[targets]]
        name = \"sick\"
        argument = \"{script}\"
        [[receivers]]
        name = \"file\"
        type = \"file\"
        path = \"{alerts}\"
        [rules.event-loop-delay]
        for = \"0s\"
        warmup = \"0s\"
        inhibited_by = []
        ",
        state = dir.path().join("state").display(),
        script = script.display(),
        alerts = alerts.display()
    );
    let config_file = dir.path().join("profiler.toml");
    fs::write(&config_file, config).unwrap();
    let mut node = Command::new(common::which("node").unwrap()).arg(&script).spawn().unwrap();
    let mut daemon = Command::new(PROFILER)
        .arg("daemon")
        .arg("--config")
        .arg(&config_file)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();

    let told = || fs::read_to_string(&alerts).unwrap_or_default();
    let of_rule = |text: &str| -> Vec<Value> {
        let all = text.lines().map(|line| serde_json::from_str(line).unwrap());
        all.filter(|message: &Value| message["rule"] == "event-loop-delay").collect()
    };
    let began = Instant::now();
    while of_rule(&told()).is_empty() && began.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(100));
    }
    // One more window, in which nothing changes.
    let windows = || fs::read_dir(dir.path().join("state/windows")).map_or(0, Iterator::count);
    let so_far = windows();
    while windows() < so_far + 2 && began.elapsed() < 2 * PATIENCE {
        std::thread::sleep(Duration::from_millis(100));
    }
    // SAFETY: the daemon is a child that has not been waited for.
    unsafe { libc::kill(daemon.id() as libc::pid_t, libc::SIGTERM) };
    let status = daemon.wait().unwrap();
    node.kill().unwrap();
    node.wait().unwrap();

    let messages = of_rule(&told());
    assert_eq!(messages.len(), 1, "once: {messages:?}");
    let message = &messages[0];
    assert_eq!((&message["change"], &message["target"]), (&"fired".into(), &"sick".into()));
    let delay_s = message["number"].as_f64().unwrap();
    assert!(delay_s > 0.1, "an iteration takes 150 ms: {delay_s}");
    let stalls = |finding: &Value| finding["rule"] == "event-loop-stall";
    assert!(message["findings"].as_array().unwrap().iter().any(stalls), "the cause is named: {message}");
    let evidence = message["evidence"].as_array().unwrap().last().unwrap().as_str().unwrap().to_owned();
    let replay = Command::new(PROFILER).args(["replay", &evidence]).output().unwrap();
    assert!(replay.status.success(), "{}", String::from_utf8_lossy(&replay.stderr));
    assert!(status.success(), "{status}");
}

#[test]
fn a_wrong_configuration_is_one_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("profiler.toml");
    fs::write(&file, "[[targets]]\nname = \"x\"\ncom = \"node\"\n").unwrap();
    let checked = Command::new(PROFILER).args(["config", "check"]).arg(&file).output().unwrap();
    let said = String::from_utf8(checked.stderr).unwrap();
    assert!(!checked.status.success());
    assert!(said.contains("line 3, column 1") && said.contains("did you mean `comm`?"), "{said}");
    let example = Command::new(PROFILER).args(["config", "init"]).output().unwrap();
    fs::write(&file, example.stdout).unwrap();
    assert!(Command::new(PROFILER).args(["config", "check"]).arg(&file).status().unwrap().success());
}
