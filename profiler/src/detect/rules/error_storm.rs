//! A system call that keeps failing.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    detect::{
        rule::{Needs, Param, Rule, Unit, Values},
        words::calls_watched_ns,
    },
    model::{
        finding::{Bottleneck, Cost, Finding, ProcessName, Severity},
        report::Run,
        syscall::ErrorStorm,
        units::{percent, thousands, time},
    },
};

const SHARE: Param = Param {
    name: "share",
    unit: Unit::Percent,
    default: 5.0,
    help: "Calls that fail, of at least 100 calls a second",
    flag: Some("error-storm"),
};

/// Errors by which a call gives an answer that its caller asked for: libuv adds a descriptor to an epoll set and changes it if
/// it is there already; `isatty`, `realpath` and `mkdir -p` work likewise.
const EVERYDAY: [(&str, &str); 17] = [
    ("epoll_ctl", "EEXIST"),
    ("epoll_ctl", "ENOENT"),
    ("epoll_ctl", "EPERM"), // of a file on a disk, which Go asks for each
    ("ioctl", "ENOTTY"),
    ("lseek", "ESPIPE"),
    ("readlink", "EINVAL"),
    ("readlinkat", "EINVAL"),
    ("mkdir", "EEXIST"),
    ("mkdirat", "EEXIST"),
    ("futex", "ETIMEDOUT"),
    ("rt_sigtimedwait", "EAGAIN"),
    ("wait4", "ECHILD"),
    ("getxattr", "ENODATA"),
    ("lgetxattr", "ENODATA"),
    ("getpeername", "ENOTCONN"),
    ("setsockopt", "EOPNOTSUPP"),
    ("setsockopt", "ENOPROTOOPT"),
];

/// A file below a file is looked for, as `.htaccess` is by Apache: an everyday answer as long as most calls have another one.
const IN_PART: &str = "ENOTDIR";

/// A storm that is over sooner, in a run that goes on, is a burst: a note, ns.
const SHORT_NS: u64 = 2_000_000_000;

/// The rule.
pub static RULE: Rule = Rule {
    name: "error-storm",
    summary: "a system call keeps failing",
    needs: &[Needs::Calls],
    params: &[SHARE],
    check,
    doc: "\
Of a system call that a process makes at least 100 times a second, so large a part fails with an error that is no everyday
answer. One that lasts for less than two seconds, and less than half of the time that was watched, is a note. EAGAIN, EINPROGRESS, EINTR and ENOENT are everyday answers, and what `--expected-error` names.

Each such call is work for nothing; most often the program retries what cannot succeed. The error says what is
missing: EMFILE is the limit of open descriptors (`ulimit -n`), EACCES a right, ECONNREFUSED a server.",
};

/// Whether it was soon over, in a run that went on; where calls were watched in windows, of the time in which they were.
fn is_burst(run: &Run, of: &ErrorStorm) -> bool {
    let goes_on = 2 * of.lasted_ns >= calls_watched_ns(run);
    of.lasted_ns < SHORT_NS && run.cpu.accounts.duration_ns > 2 * SHORT_NS && !goes_on
}

fn check(run: &Run, _: &Values<'_>) -> Vec<Finding> {
    let storms = run.calls.iter().flat_map(|calls| &calls.storms);
    let finding = |of: &ErrorStorm| Finding {
        rule: RULE.name,
        severity: if is_burst(run, of) { Severity::Info } else { of.severity() },
        bottleneck: Bottleneck::Cpu,
        process: ProcessName { pid: of.pid, name: of.process.clone() },
        subject: format!("{} {}", of.syscall, of.errno),
        title: format!(
            "{:.0} % of {} calls of {} by {} (pid {}) failed, mostly with {}, in {}",
            percent(of.failed, of.calls),
            thousands(of.calls),
            of.syscall,
            of.process,
            of.pid,
            of.errno,
            time(of.lasted_ns),
        ),
        advice: advice(&of.errno).to_owned(),
        cost: Cost::default(),
        evidence: Vec::new(),
        details: BTreeMap::from([
            ("calls", json!(of.calls)),
            ("failed", json!(of.failed)),
            ("errno", json!(of.errno)),
            ("lasted_ns", json!(of.lasted_ns)),
        ]),
    };
    storms.filter(|of| !is_everyday(of)).map(finding).collect()
}

fn is_everyday(of: &ErrorStorm) -> bool {
    let in_part = of.errno == IN_PART && 2 * of.failed < of.calls;
    in_part || EVERYDAY.contains(&(of.syscall.as_str(), of.errno.as_str()))
}

/// What to do about an error.
fn advice(errno: &str) -> &'static str {
    match errno {
        "EMFILE" | "ENFILE" => {
            "raise the limit of open descriptors (ulimit -n), and look for those that are never closed"
        }
        "EACCES" | "EPERM" => "give the process that right, or stop it from trying",
        "ECONNREFUSED" | "ETIMEDOUT" | "EHOSTUNREACH" | "ENETUNREACH" => {
            "look at the server it connects to, and wait longer between attempts"
        }
        "ENOSPC" | "EDQUOT" => "make room on the disk",
        _ => "find out why it fails; if that is no failure: --expected-error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{detect::rule::Overrides, model::syscall::Calls};

    #[test]
    fn a_storm_that_lasts_as_long_as_was_watched_is_no_burst() {
        let found = |lasted_ms: u64, watched_ms: u64| {
            let mut run = crate::model::report::fixtures::run(&[]);
            run.cpu.accounts.duration_ns = 8_000_000_000;
            let storm = ErrorStorm {
                syscall: "accept4".into(),
                errno: "EMFILE".into(),
                calls: 3000,
                failed: 3000,
                lasted_ns: lasted_ms * 1_000_000,
                ..ErrorStorm::default()
            };
            run.calls =
                Some(Calls { storms: vec![storm], watched_ns: watched_ms * 1_000_000, ..Calls::default() });
            check(&run, &Overrides::default().of(&RULE)).remove(0).severity
        };
        assert_eq!(found(900, 8000), Severity::Info, "a burst");
        assert!(found(900, 950) > Severity::Info, "in windows");
    }

    #[test]
    fn everyday_answers_are_no_storm() {
        let found_of = |calls, syscall: &str, errno: &str| {
            let mut run = crate::model::report::fixtures::run(&[]);
            let storm = ErrorStorm {
                pid: 7,
                process: "node".into(),
                syscall: syscall.into(),
                calls,
                failed: 9_000,
                errno: errno.into(),
                lasted_ns: 1,
            };
            run.calls = Some(Calls { storms: vec![storm], ..Calls::default() });
            check(&run, &Overrides::default().of(&RULE)).len()
        };
        let found = |syscall, errno| found_of(10_000, syscall, errno);
        assert_eq!([found("openat", "ENOTDIR"), found_of(20_000, "openat", "ENOTDIR")], [1, 0]);
        assert_eq!((found("epoll_ctl", "EEXIST"), found("openat", "EEXIST")), (0, 1));
        assert_eq!(found("epoll_ctl", "EPERM"), 0);
    }
}
