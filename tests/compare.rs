//! Two runs compared: `profiler diff` and `--baseline`, on a program whose shares are known.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use common::{Outputs, PROFILER, kernel_ready, profiler, workload};
use serde_json::Value;

mod common;

/// 60, 30 and 10 % in `work_sixty`, `work_thirty` and `work_ten`; and 30, 60 and 10 %.
fn programs() -> [PathBuf; 2] {
    let as_named = workload("split", &["-fno-omit-frame-pointer"]);
    [as_named, workload("split", &["-fno-omit-frame-pointer", "-DSHARES=0.3, 0.6, 0.1"])]
}

/// Records a program, which uses 8 s of CPU time: enough to tell a difference from chance.
fn record(program: &Path, file: &Path, more: &[&str]) {
    let (program, file) = (program.to_str().unwrap(), file.to_str().unwrap());
    profiler(&[&["-q", "-F", "199", "-o", file], more, &["--", program, "8"]].concat());
}

/// Points by which the share of a function on CPUs is said to have changed, if that is significant.
fn points(comparison: &Value, function: &str) -> Option<f64> {
    let kinds = comparison["kinds"].as_array().unwrap();
    let places = kinds.iter().find(|kind| kind["kind"] == "cpu").unwrap()["places"].as_array().unwrap();
    let place =
        places.iter().find(|place| place["functions"][0] == function && place["with_callees"] == false);
    let place = place.unwrap_or_else(|| panic!("{function}: {comparison}"));
    (place["significant"] == true).then(|| place["points"]["value"].as_f64().unwrap())
}

fn assert_swapped(comparison: &Value) {
    for (function, expected) in [("work_sixty", -30.0), ("work_thirty", 30.0)] {
        let points = points(comparison, function).unwrap_or_else(|| panic!("{function}: {comparison}"));
        assert!((points - expected).abs() < 5.0, "{function}: {points} points");
    }
    assert_eq!(points(comparison, "work_ten"), None);
}

#[test]
fn what_changed_is_told_and_what_did_not_is_not() {
    if !kernel_ready(&[]) {
        return;
    }
    let outputs = Outputs::new();
    let [first, second] = programs();
    // A new version, under another name.
    let renamed = outputs.path("split-2");
    fs::copy(&second, &renamed).unwrap();
    let [a, again, b] = ["a.prec", "again.prec", "b.prec"].map(|name| outputs.path(name));
    let profile = outputs.path("profile.json");
    thread::scope(|scope| {
        scope.spawn(|| record(&first, &a, &[]));
        scope.spawn(|| record(&first, &again, &[]));
    });
    thread::scope(|scope| {
        scope.spawn(|| record(&renamed, &b, &[]));
        scope.spawn(|| record(&second, &profile, &["--baseline", a.to_str().unwrap()]));
    });

    let diff = |after: &Path, more: &[&str]| {
        let mut command = Command::new(PROFILER);
        command.arg("diff").arg(&a).arg(after).args(more).output().unwrap()
    };
    let json = |after: &Path| -> Value { serde_json::from_slice(&diff(after, &["--json"]).stdout).unwrap() };
    let changed = json(&b);
    assert_swapped(&changed);
    assert_eq!(changed["renamed"], serde_json::json!(["split", "split-2"]));
    let same = json(&again);
    assert!(points(&same, "work_sixty").is_none() && points(&same, "work_thirty").is_none(), "{same}");

    let fails = |after: &Path| diff(after, &["--fail-if", "+5%"]).status.code();
    assert_eq!([fails(&b), fails(&again)], [Some(9), Some(0)]);
    let text = String::from_utf8(diff(&b, &[]).stdout).unwrap();
    assert!(text.lines().take(4).any(|line| line.contains("work_thirty")), "{text}");

    // And while it is measured.
    assert_swapped(&outputs.json("profile.json").0["baseline"]);
}
