//! Threads wait for files and disks for much of their time, however short each wait is.

use serde_json::json;

use crate::{
    detect::{
        blocked::{Blocked, blocked},
        rule::{Needs, Param, Rule, Unit, Values},
        served,
        words::path,
    },
    model::{
        cause::WaitCause,
        finding::{Bottleneck, Finding, Severity},
        report::Run,
        syscall::WaitKind,
        units::{percent, time},
    },
};

const SHARE: Param = Param {
    name: "share",
    unit: Unit::Percent,
    default: 20.0,
    help: "Wall time that a thread waits for files and disks",
    flag: None,
};

const OF_REQUESTS: Param = Param {
    name: "requests",
    unit: Unit::Percent,
    default: 50.0,
    help: "Part of the time of one kind of request in which files and disks are waited for",
    flag: None,
};

/// The rule.
pub static RULE: Rule = Rule {
    name: "slow-io",
    summary: "threads wait for files and disks for much of their time",
    needs: &[Needs::Waits],
    params: &[SHARE, OF_REQUESTS],
    check,
    doc: "\
The time that a thread is blocked in reads, writes and syncs of files and in page faults that fetch a page, added up: a
thousand syncs of a millisecond cost as much as one of a second. The place is the program's own function with most of it; the
file is known where system calls were watched or a single wait was long.

A server that has time left can do so all the same: where requests were watched, and one kind of them takes a millisecond and more,
most of which goes to files, that is told.

Sync less often (commit many at once, `appendfsync everysec`), write larger pieces, read ahead or cache, or give the data a faster disk.
`iostat -x 1` shows whether the disk is busy; if it is not, its latency is what is paid for.",
};

fn check(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let found = blocked(run, |cause| matches!(cause, WaitCause::Disk | WaitCause::PageFault));
    let told = found.iter().filter_map(|of| {
        if of.share * 100.0 >= values.get(&SHARE) {
            return Some(finding(run, of).1);
        }
        of_requests(run, of, values)
    });
    told.collect()
}

/// What little waiting of a process does to the requests that it answers.
fn of_requests(run: &Run, of: &Blocked<'_>, values: &Values<'_>) -> Option<Finding> {
    let routes = served::followed(run).filter(|(peer, _, goes)| {
        let part = percent(goes.disk_ns, goes.total_ns);
        peer.pid == of.worst.time.thread.pid
            && goes.total_ns >= served::SOON_NS
            && part >= values.get(&OF_REQUESTS)
    });
    let (peer, route, goes) = routes.max_by_key(|(_, route, _)| route.first.sum_ns)?;
    let (place, finding) = finding(run, of);
    let title = format!(
        "{} takes {}, {:.0} % of it waiting for files or disks{}",
        served::what(peer, route),
        time(goes.total_ns),
        percent(goes.disk_ns, goes.total_ns),
        place,
    );
    Some(Finding { severity: Severity::Warning, title, ..finding })
}

/// What is said of a process; and where most of it is waited and for which file, as words that follow a sentence.
fn finding(run: &Run, of: &Blocked<'_>) -> (String, Finding) {
    let file = file(run, of.worst.time.thread.pid);
    let call = of.stack.and_then(|stack| path(run.names(), &stack.frames).last().map(|of| of.name.clone()));
    let place = match (of.place.as_str(), call) {
        ("", _) => String::new(),
        (place, Some(call)) if !place.starts_with(&call) => of.mostly_in(&format!("{place}: {call}")),
        (place, _) => of.mostly_in(place),
    };
    let of_file = file.as_deref().map_or_else(String::new, |file| format!(" of {file}"));
    let place = format!("{place}{of_file}");
    let mut finding = Finding {
        bottleneck: Bottleneck::Io,
        advice: "sync less often and write larger pieces, or put the data on a faster disk (iostat -x 1)"
            .to_owned(),
        ..of.finding(RULE.name, "files or disks", &place)
    };
    finding.details.insert("file", json!(file));
    (place, finding)
}

/// The file that a process waits for most, as far as anything tells it.
fn file(run: &Run, pid: u32) -> Option<String> {
    let objects = run.calls.iter().flat_map(|calls| &calls.objects);
    let objects = objects.filter(|of| of.pid == pid && of.object.starts_with('/') && of.blocked_ns > 0);
    let by_calls = objects.max_by_key(|of| of.blocked_ns).map(|of| of.object.clone());
    let slow = run.calls.iter().flat_map(|calls| &calls.slow);
    let slow = slow.filter(|of| {
        let kinds = [WaitKind::FileRead, WaitKind::FileWrite, WaitKind::FileSync];
        of.thread.pid == pid && kinds.contains(&of.kind)
    });
    let by_slow = slow
        .max_by_key(|of| of.blocked_ns)
        .and_then(|of| of.arguments.split_whitespace().find(|word| word.starts_with('/')).map(str::to_owned));
    let blocking = run.blocking.iter();
    let blocks =
        blocking.clone().flat_map(|of| &of.long_waits).filter(|of| of.thread.pid == pid).map(|of| &of.block);
    let in_stalls =
        blocking.flat_map(|of| &of.stalls).filter(|of| of.thread.pid == pid).flat_map(|of| &of.blocks);
    let told = blocks.chain(in_stalls).filter(|of| of.cause == WaitCause::Disk && of.object.is_some());
    let by_blocks = || told.max_by_key(|of| of.blocked_ns).and_then(|of| of.object.clone());
    by_slow.or(by_calls).or_else(by_blocks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::{
        blocked::fixtures::{run, run_at},
        rule::Overrides,
    };

    #[test]
    fn many_short_syncs_are_slow_io() {
        let found = |waits: &[u64]| {
            let run = run("main;commit;__fdatasync;k:ext4_sync_file", WaitCause::Disk, waits);
            check(&run, &Overrides::default().of(&RULE))
        };
        let often = found(&[5_000_000_000, 4_000_000_000, 100]);
        assert_eq!((often[0].severity, often[0].subject.as_str()), (Severity::Warning, "commit"));
        assert!(often[0].title.contains("50 % of the time each of 2 threads"), "{}", often[0].title);
        assert_eq!(found(&[7_000_000_000])[0].severity, Severity::Critical);
        assert!(found(&[1_000_000_000]).is_empty());
    }
    /// Where threads wait often, most of their stacks are not taken. What is known is said, and of how much it is most.
    #[test]
    fn stacks_that_were_not_taken_are_no_place() {
        let found = |waits: &[(&str, u64)]| {
            check(&run_at(waits, WaitCause::Disk), &Overrides::default().of(&RULE)).remove(0)
        };
        let (taken, not) = ("main;commit;__fdatasync;k:ext4_sync_file", "[stack not taken]");
        let some = found(&[(not, 6_000_000_000), (taken, 2_000_000_000)]);
        assert_eq!(some.subject, "commit");
        assert!(
            some.title
                .ends_with(", most of the 25 % whose stacks were taken in commit (app.c:7): __fdatasync"),
            "{}",
            some.title
        );
        let none = found(&[(not, 6_000_000_000)]);
        assert_eq!((none.subject.as_str(), none.evidence.len()), ("", 0));
        assert!(none.title.ends_with("6 s in all"), "{}", none.title);
    }

    #[test]
    fn requests_that_mostly_wait_for_files_are_told_though_their_thread_has_time_left() {
        let mut run =
            run("main;handle;commit;__fdatasync;k:ext4_sync_file", WaitCause::Disk, &[1_000_000_000]);
        let found = |run: &Run| check(run, &Overrides::default().of(&RULE));
        assert!(found(&run).is_empty(), "a tenth of the time");
        let mut requests = crate::model::request::fixtures::requests();
        let served = requests.peers.iter_mut().find(|peer| !peer.routes.is_empty()).unwrap();
        let goes = served.routes[0].breakdown.as_mut().unwrap();
        (goes.disk_ns, goes.on_cpu_ns) = (18_000_000, 6_000_000);
        run.requests = Some(requests);
        let told = found(&run);
        assert_eq!(told[0].severity, Severity::Warning);
        let title = &told[0].title;
        assert!(title.contains("GET /users/:id of app (pid 7) takes 30 ms, 60 % of it waiting"), "{title}");
        assert!(title.contains("commit"), "{title}");
        run.requests.as_mut().unwrap().peers.iter_mut().for_each(|peer| peer.pid = 8);
        assert!(found(&run).is_empty(), "another process's");
    }
}
