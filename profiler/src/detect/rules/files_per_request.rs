//! Each request opens many files.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::routes;
use crate::{
    detect::{
        rule::{Needs, Param, Rule, Unit, Values},
        words::calls_watched_ns,
    },
    model::{
        finding::{Bottleneck, Cost, Finding, ProcessName, Severity},
        report::Run,
        syscall::CallCount,
        units::{per_second, time},
    },
};

const FILES: Param = Param {
    name: "files",
    unit: Unit::Count,
    default: 10.0,
    help: "Files that are opened for each request",
    flag: None,
};

/// Calls that open files, and that read them and look at them.
const OPENS: [&str; 4] = ["open", "openat", "openat2", "creat"];
const READS: [&str; 10] =
    ["read", "pread64", "readv", "preadv", "close", "fstat", "newfstatat", "stat", "statx", "lseek"];
/// Fewer requests, or calls, say little by their number.
const MIN: u64 = 50;

/// The rule.
pub static RULE: Rule = Rule {
    name: "files-per-request",
    summary: "for each request many files are opened",
    needs: &[Needs::Calls, Needs::Requests],
    params: &[FILES],
    check,
    doc: "\
The process opens so many files for each request that it answers, on average of all its requests and whatever opened them: a list of
files that are read one by one, templates or settings that are read anew each time. With Node.js each `readFile` is four jobs of
libuv's pool (open, look, read, close), and handing them over costs more than they do.

Keep what does not change in memory, and look for changes now and then (`fs.watch`, a time to live); keep what belongs together in one
file; for a few small files that are read at start the synchronous calls are cheaper.

Requests and calls are counted, each in the time in which they were watched. It is a note where requests are answered in less than 20 ms.",
};

fn check(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let served = || run.requests.iter().flat_map(|requests| requests.served());
    let pids: BTreeSet<u32> = served().map(|of| of.pid).collect();
    let calls = run.calls.iter().flat_map(|calls| &calls.calls);
    let mut of_process: BTreeMap<u32, Vec<&CallCount>> = BTreeMap::new();
    for of in calls.filter(|of| pids.contains(&of.thread.pid)) {
        of_process.entry(of.thread.pid).or_default().push(of);
    }
    let finding = |pid: u32| {
        let calls = of_process.get(&pid)?;
        let most = served().filter(|of| of.pid == pid).max_by_key(|of| of.exchanges())?;
        let requests: u64 = served().filter(|of| of.pid == pid).map(|of| of.exchanges()).sum();
        let (opened, failed) = calls
            .iter()
            .filter(|of| OPENS.contains(&of.syscall.as_str()))
            .fold((0, 0), |(n, failed), of| (n + of.lengths.count, failed + of.failed()));
        let opened = opened - failed.min(opened);
        let each_second = opened as f64 / (calls_watched_ns(run) as f64 / 1e9);
        let each =
            each_second / (requests as f64 / (run.requests_watched_ns() as f64 / 1e9)).max(f64::MIN_POSITIVE);
        if requests < MIN || opened < MIN || each < values.get(&FILES) {
            return None;
        }
        let is_file = |of: &&&CallCount| {
            let name = of.syscall.as_str();
            OPENS.contains(&name) || READS.contains(&name)
        };
        // Sockets are read by the same calls, and waited for there.
        let in_calls: u64 = calls.iter().filter(is_file).map(|of| of.on_cpu_ns()).sum();
        let share = (in_calls as f64 / calls_watched_ns(run) as f64).min(1.0);
        let mean_ns = most.first.sum_ns / most.exchanges().max(1);
        Some(Finding {
            severity: if mean_ns >= routes::SOON_NS { Severity::Warning } else { Severity::Info },
            title: format!(
                "each request at {} of {}, {} on average, opens {each:.0} files: {} a second",
                most.peer,
                most.who(),
                time(mean_ns),
                per_second(each_second)
            ),
            advice: "keep in memory what does not change, or what belongs together in one file".to_owned(),
            cost: Cost {
                ns: (share * run.cpu.accounts.duration_ns as f64) as u64,
                share_of_wall: share,
                ..Cost::default()
            },
            details: BTreeMap::from([
                ("files_per_request", json!(each)),
                ("requests", json!(requests)),
                ("opened", json!(opened)),
            ]),
            ..Finding::warning(
                RULE.name,
                Bottleneck::Io,
                ProcessName { pid, name: most.process.clone() },
                most.peer.clone(),
            )
        })
    };
    pids.into_iter().filter_map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::rule::Overrides,
        model::{distribution::Summary, request::fixtures, stack::ThreadKey, syscall::Calls},
    };

    #[test]
    fn many_files_for_each_request_are_told() {
        // 1,000 requests; calls were watched for a tenth of the time.
        let found = |opened: u64, mean_ms: u64| {
            let mut run = crate::model::report::fixtures::run(&[]);
            run.cpu.accounts.duration_ns = 10_000_000_000;
            let mut requests = fixtures::requests();
            let served = requests.peers.iter_mut().find(|of| !of.routes.is_empty()).unwrap();
            served.first.sum_ns = 1000 * mean_ms * 1_000_000;
            run.requests = Some(requests);
            let count = CallCount {
                thread: ThreadKey { pid: 7, tid: 0 },
                syscall: "openat".into(),
                lengths: Summary { count: opened, sum_ns: 1000 * opened, ..Summary::default() },
                errors: vec![("ENOENT".into(), 100)],
                ..CallCount::default()
            };
            let calls = Calls { calls: vec![count], watched_ns: 1_000_000_000, ..Calls::default() };
            run.calls = Some(calls);
            let found = check(&run, &Overrides::default().of(&RULE)).pop();
            found.map(|of| (of.severity, of.title.contains("opens 200 files: 20,000 a second")))
        };
        assert_eq!(found(20_100, 60), Some((Severity::Warning, true)));
        assert_eq!(found(20_100, 2), Some((Severity::Info, true)));
        assert_eq!(found(600, 60), None, "5 each");
    }
}
