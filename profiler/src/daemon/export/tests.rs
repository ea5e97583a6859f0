use std::time::Instant;

use super::*;
use crate::{
    daemon::{config::Secret, notify::test_server},
    model::report::fixtures,
};

fn export(kind: ExportKind, url: &str, queue_bytes: u64) -> Export {
    Export { name: "there".into(), kind, url: Secret::Value(url.into()), token: None, queue_bytes }
}

fn wait_for(what: impl Fn() -> bool) {
    let begun = Instant::now();
    while !what() {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_profile_waits_until_it_is_taken() {
    let (url, server) = test_server(vec![500, 200]);
    let dir = tempfile::tempdir().unwrap();
    let base = url.trim_end_matches("/hook");
    let exports = Exports::start(dir.path(), &[export(ExportKind::Pyroscope, base, 1 << 20)]).unwrap();
    let profile = fixtures::profile(&[("main;a", 3)]);
    exports.add(Window { target: "api {x}", profile: &profile }).unwrap();
    let counts = Arc::clone(&exports.counts[0].1);
    wait_for(|| counts.sent.load(Ordering::Relaxed) == 1);
    assert_eq!(counts.failed.load(Ordering::Relaxed), 1);
    exports.stop(Instant::now() + Duration::from_secs(5));
    let got = server.join().unwrap();
    assert!(got[1].0.starts_with("post /ingest?name=api__x_%7bhost%3d"), "{}", got[1].0);
    assert!(got[1].0.contains("content-type: multipart/form-data; boundary="), "{}", got[1].0);
    assert!(waiting(&queue(&dir.path().join("exports"), "there")).is_empty());
}

#[test]
fn what_the_queue_has_no_room_for_goes_the_oldest_first_and_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..5 {
        put(dir.path(), &format!("{i}-api"), &[0; 100]).unwrap();
    }
    assert_eq!(trim(dir.path(), 250).unwrap(), 3);
    let left: Vec<String> = waiting(dir.path())
        .into_iter()
        .map(|(file, _)| file.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(left, ["3-api", "4-api"]);
}

#[test]
fn what_is_refused_for_good_is_counted_and_not_tried_again() {
    let (url, server) = test_server(vec![404]);
    let dir = tempfile::tempdir().unwrap();
    let exports =
        Exports::start(dir.path(), &[export(ExportKind::Otlp, url.trim_end_matches("/hook"), 1 << 20)])
            .unwrap();
    let profile = fixtures::profile(&[("main;a", 3)]);
    exports.add(Window { target: "api", profile: &profile }).unwrap();
    let counts = Arc::clone(&exports.counts[0].1);
    wait_for(|| counts.rejected.load(Ordering::Relaxed) == 1);
    exports.stop(Instant::now() + Duration::from_secs(5));
    assert!(server.join().unwrap()[0].0.starts_with("post /v1development/profiles "));
}
