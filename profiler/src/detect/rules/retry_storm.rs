//! What fails and is asked again at once, again and again.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    detect::rule::{Needs, Param, Rule, Unit, Values},
    model::{
        finding::{Bottleneck, Finding, ProcessName, Severity},
        report::Run,
        request::{Exchanges, Retries},
        units::{per_second, percent, thousands, time},
    },
};

const RATE: Param = Param {
    name: "rate",
    unit: Unit::PerSecond,
    default: 10.0,
    help: "Repetitions of what failed, in the seconds in which there were any",
    flag: None,
};
const PAUSE: Param = Param {
    name: "pause",
    unit: Unit::Seconds,
    default: 0.02,
    help: "Time from a failure to the next attempt, for half of them: who waits longer backs off",
    flag: None,
};
const FAILED: Param = Param {
    name: "failed",
    unit: Unit::Percent,
    default: 50.0,
    help: "Attempts in these seconds that fail",
    flag: None,
};

/// Fewer repetitions are no storm.
const MIN_AGAIN: u64 = 20;
/// Attempts for each request that the process answers: who passes on what it is asked makes one.
const EACH: f64 = 1.5;

/// The rule.
pub static RULE: Rule = Rule {
    name: "retry-storm",
    summary: "what fails is asked again at once, again and again",
    needs: &[Needs::Requests],
    params: &[RATE, PAUSE, FAILED],
    check,
    doc: "\
The process asks a peer for something, it fails, and the process asks for the same again without waiting, many times a second. Such a
client keeps a peer that is overloaded from recovering, and spends its own CPU and connections on it. What fails is an attempt to
connect, an answer of HTTP with 500 and more or 429, another protocol's error, or a question whose connection ended without an answer.
The same is what begins with the same 128 bytes (of what is encrypted nothing can be told).

Only those seconds count in which something was tried again. Each attempt is taken for the repetition of that failure of its thread which
is longest ago, so that many threads that each wait for a second are not taken for one that does not; of fifty tasks of one event loop
that cannot be told. Who answers about as many requests as it makes
attempts passes them on, and is not told. Errors of protocols other than HTTP are a note, since they need not be the peer's fault; names
of DNS are left out.

Wait before each further attempt, longer each time and by some chance (exponential backoff with jitter), obey `Retry-After`, give up
after a few, and ask no more for a while where most fails (circuit breaker).",
};

fn check(run: &Run, values: &Values<'_>) -> Vec<Finding> {
    let asked = run.requests.iter().flat_map(|requests| requests.asked());
    asked.filter_map(|peer| judge(run, peer, values)).collect()
}

/// What an attempt to connect is called.
const CONNECT: &str = "connect";

/// Whether as much is asked of the process itself, so that it may only pass on what others try again.
fn passes_on(run: &Run, peer: &Exchanges, of: &Retries) -> bool {
    let served = run.requests.iter().flat_map(|requests| requests.served()).filter(|of| of.pid == peer.pid);
    let served =
        served.fold(0u64, |sum, of| sum.saturating_add(of.exchanges()).saturating_add(of.multiplexed));
    of.attempts as f64 <= EACH * served as f64
}

/// The worst of what is asked again of a peer.
fn judge(run: &Run, peer: &Exchanges, values: &Values<'_>) -> Option<Finding> {
    let rate = |of: &Retries| of.pauses.count as f64 / of.seconds.max(1) as f64;
    // Who has never answered there may only take in what it is sent: a log server.
    let is_answered = |of: &Retries| of.operation == CONNECT || peer.exchanges() > 0;
    let storms = |of: &&Retries| {
        of.pauses.count >= MIN_AGAIN
            && rate(of) >= values.get(&RATE)
            && of.pauses.p50_ns <= values.ns(&PAUSE)
            && percent(of.failed, of.attempts) >= values.get(&FAILED)
            && is_answered(of)
            && !passes_on(run, peer, of)
    };
    let of = peer.retries.iter().filter(storms).max_by_key(|of| of.pauses.count)?;
    let what = match &*of.operation {
        CONNECT => "to connect".to_owned(),
        "" => "to ask".to_owned(),
        operation => format!("at {operation}"),
    };
    let title = format!(
        "{} tries {what} again at once when it fails, at {}: {} attempts a second, {:.0} % of {} failed (first with {}), half of the pauses are \
         shorter than {}",
        peer.who(),
        peer.place(),
        per_second(of.attempts as f64 / of.seconds.max(1) as f64),
        percent(of.failed, of.attempts),
        thousands(of.attempts),
        of.error,
        time(of.pauses.p50_ns),
    );
    let known = of.operation == CONNECT || of.error == "no answer" || peer.protocol == "HTTP";
    let process = ProcessName { pid: peer.pid, name: peer.process.clone() };
    Some(Finding {
        severity: if known { Severity::Warning } else { Severity::Info },
        title,
        advice: "wait longer before each further attempt, and by some chance (backoff with jitter); stop for a while where most fails \
                 (circuit breaker)"
            .to_owned(),
        details: BTreeMap::from([
            ("attempts", json!(of.attempts)),
            ("failed", json!(of.failed)),
            ("again", json!(of.pauses.count)),
            ("seconds", json!(of.seconds)),
            ("pause_p50_ns", json!(of.pauses.p50_ns)),
            ("error", json!(of.error)),
        ]),
        ..Finding::warning(RULE.name, Bottleneck::Network, process, format!("{} {}", peer.peer, of.operation))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::rule::Overrides,
        model::{
            distribution::Summary,
            request::{Side, fixtures},
        },
    };

    const MS: u64 = 1_000_000;

    fn found(change: impl Fn(&mut Exchanges, &mut u64)) -> Option<(Severity, String)> {
        let mut run = crate::model::report::fixtures::run(&[]);
        let mut requests = fixtures::requests();
        let mut served = 0;
        let asked = requests.peers.iter_mut().find(|peer| peer.side == Side::Asks).unwrap();
        asked.protocol = "HTTP".into();
        asked.retries = vec![Retries {
            operation: "GET /pay".into(),
            error: "503".into(),
            seconds: 4,
            attempts: 400,
            failed: 396,
            pauses: Summary { count: 395, p50_ns: 2 * MS, ..Summary::default() },
        }];
        change(asked, &mut served);
        requests
            .peers
            .iter_mut()
            .filter(|peer| peer.side == Side::Answers)
            .for_each(|peer| peer.first.count = served);
        run.requests = Some(requests);
        check(&run, &Overrides::default().of(&RULE)).pop().map(|of| (of.severity, of.title))
    }

    #[test]
    fn who_asks_again_at_once_is_told() {
        let (severity, title) = found(|_, _| ()).unwrap();
        assert_eq!(severity, Severity::Warning);
        assert!(
            title
                .contains("app (pid 7) tries at GET /pay again at once when it fails, at db (10.0.0.2:5432)")
                && title.contains("100 attempts a second, 99 % of 400 failed (first with 503)")
                && title.contains("shorter than 2 ms"),
            "{title}"
        );
        assert_eq!(found(|peer, _| peer.protocol = "redis".into()).unwrap().0, Severity::Info);
        let (severity, title) = found(|peer, _| {
            peer.retries[0].operation = "connect".into();
            peer.protocol = String::new();
        })
        .unwrap();
        assert!(severity == Severity::Warning && title.contains("tries to connect again"), "{title}");
    }

    #[test]
    fn who_waits_or_passes_on_is_not() {
        assert!(found(|peer, _| peer.retries[0].pauses.p50_ns = 200 * MS).is_none(), "it backs off");
        assert!(found(|peer, _| peer.retries[0].failed = 40).is_none(), "errors now and then");
        assert!(found(|peer, _| peer.retries[0].seconds = 60).is_none(), "a few a second");
        assert!(found(|peer, _| peer.retries[0].pauses.count = 19).is_none(), "few");
        assert!(found(|peer, _| peer.first.count = 0).is_none(), "it only sends: a log server");
        assert!(found(|_, served| *served = 380).is_none(), "it passes on what it is asked");
        assert!(found(|_, served| *served = 100).is_some(), "it asks four times for each");
    }
}
