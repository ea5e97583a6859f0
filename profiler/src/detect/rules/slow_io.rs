//! Threads wait for files and disks for much of their time, however short each wait is.

use serde_json::json;

use crate::{
    detect::{
        blocked::{Blocked, blocked},
        rule::{Needs, Param, Rule, Unit, Values},
        words::path,
    },
    model::{
        cause::WaitCause,
        finding::{Bottleneck, Finding},
        report::Run,
        syscall::WaitKind,
    },
};

const SHARE: Param = Param {
    name: "share",
    unit: Unit::Percent,
    default: 20.0,
    help: "Wall time that a thread waits for files and disks",
    flag: None,
};

/// The rule.
pub static RULE: Rule = Rule {
    name: "slow-io",
    summary: "threads wait for files and disks for much of their time",
    needs: &[Needs::Waits],
    params: &[SHARE],
    check,
    doc: "\
The time that a thread is blocked in reads, writes and syncs of files and in page faults that fetch a page, added up: a
thousand syncs of a millisecond cost as much as one of a second. The place is the program's own function with most of it; the
file is known where system calls were watched or a single wait was long.

Sync less often (commit many at once, `appendfsync everysec`), write larger pieces, read ahead or cache, or give the data a faster disk.
`iostat -x 1` shows whether the disk is busy; if it is not, its latency is what is paid for.",
};

fn check(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let found = blocked(run, |cause| matches!(cause, WaitCause::Disk | WaitCause::PageFault));
    let enough = |of: &&Blocked<'_>| of.share * 100.0 >= values.get(&SHARE);
    found.iter().filter(enough).map(|of| finding(run, of)).collect()
}

fn finding(run: &Run, of: &Blocked<'_>) -> Finding {
    let file = file(run, of.worst.thread.pid);
    let call = of.stack.and_then(|stack| path(run.names(), &stack.frames).last().map(|of| of.name.clone()));
    let place = match (of.place.as_str(), call) {
        ("", _) => String::new(),
        (place, Some(call)) if !place.starts_with(&call) => of.mostly_in(&format!("{place}: {call}")),
        (place, _) => of.mostly_in(place),
    };
    let of_file = file.as_deref().map_or_else(String::new, |file| format!(" of {file}"));
    let mut finding = Finding {
        bottleneck: Bottleneck::Io,
        advice: "sync less often and write larger pieces, or put the data on a faster disk (iostat -x 1)"
            .to_owned(),
        ..of.finding(RULE.name, "files or disks", &format!("{place}{of_file}"))
    };
    finding.details.insert("file", json!(file));
    finding
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
    use crate::{
        detect::{
            blocked::fixtures::{run, run_at},
            rule::Overrides,
        },
        model::finding::Severity,
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
}
