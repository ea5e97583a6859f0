//! What is said of an alert: one JSON object, and one text made of it. Receivers that want JSON get the first, people the
//! second.

use serde::{Deserialize, Serialize};

/// An alert's message.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Version of this form.
    pub version: u32,
    /// Id of the message: the same each time that it is sent.
    pub message: String,
    /// Id of the alert: the same from its beginning to its end.
    pub alert: String,
    /// What happened: `fired`, `escalated` or `resolved`; or `digest`.
    pub change: String,
    /// The rule's id.
    pub rule: String,
    /// What the rule is for.
    pub summary: String,
    /// The target's name.
    pub target: String,
    /// The machine.
    pub host: String,
    /// `warning` or `critical`.
    pub severity: String,
    /// The value, and its unit, as words; empty for a rule of findings.
    pub value: String,
    /// The threshold it passed, as words.
    pub threshold: String,
    /// The value itself, in the unit of the metric.
    pub number: Option<f64>,
    /// When it began to fire, ms since 1970 (UTC).
    pub started_unix_ms: i64,
    /// When this was written, ms since 1970 (UTC).
    pub unix_ms: i64,
    /// Why it ended, if it did.
    pub reason: String,
    /// What kind of bottleneck the target had in the window, in one sentence.
    pub verdict: String,
    /// What to change.
    pub advice: String,
    /// What was found wrong in the window, worst first.
    pub findings: Vec<Found>,
    /// Where CPU time went in the window, most first: function and share of the target's samples.
    pub hot: Vec<Hot>,
    /// Where most of it went, caller before callee: the innermost functions of the call path that half of the samples
    /// take.
    #[serde(default)]
    pub path: Vec<String>,
    /// Of the requests that the target answered those that took longest, and those that failed most; if they were watched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Told>,
    /// The windows before and at the alert, as recordings.
    pub evidence: Vec<String>,
    /// What shows more.
    pub command: String,
    /// Samples and records that are missing in the window, by reason.
    pub lost: Vec<(String, u64)>,
    /// Of a digest: what it stands for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Part>,
}

/// A message that came with many others, in a digest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Id of the message.
    pub message: String,
    /// Id of the alert.
    pub alert: String,
    /// What happened.
    pub change: String,
    /// The rule's id.
    pub rule: String,
    /// The target's name.
    pub target: String,
    /// `warning` or `critical`.
    pub severity: String,
    /// The value, as words.
    pub value: String,
}

/// A finding in a message.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// The rule of the finding.
    pub rule: String,
    /// How bad.
    pub severity: String,
    /// What is wrong.
    pub title: String,
    /// What to do.
    pub advice: String,
    /// The stack, innermost first, as far as it helps.
    pub stack: Vec<String>,
}

/// A kind of request in a message.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// What was asked; empty where that cannot be read.
    pub operation: String,
    /// Where: `:PORT`, or the path of a Unix socket.
    pub at: String,
    /// How often, in the window.
    pub requests: u64,
    /// To the first byte of the answer, 95th percentile, ns.
    pub p95_ns: u64,
    /// Answers that were errors.
    pub failed: u64,
    /// The error that most of these were.
    pub error: String,
    /// Where the time of those that were followed went, as a mean, most first: what, and ns.
    pub goes: Vec<(String, u64)>,
}

impl Told {
    /// In words.
    fn text(&self) -> String {
        use crate::model::units::{count, time};
        let what = if self.operation.is_empty() { "requests" } else { &self.operation };
        let mut text =
            format!("{what} at {}: {}, p95 {}", self.at, count(self.requests, "request"), time(self.p95_ns));
        if self.failed > 0 {
            text.push_str(&format!(", {} failed ({})", self.failed, self.error));
        }
        let goes: Vec<String> = self.goes.iter().map(|(what, ns)| format!("{} {what}", time(*ns))).collect();
        if !goes.is_empty() {
            text.push_str(&format!("; on average {}", goes.join(", ")));
        }
        text
    }
}

/// A function in a message.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Hot {
    /// The function and where it is.
    pub function: String,
    /// Share of the target's samples in the window, percent.
    pub percent: f64,
    /// The same before the alert, percent; `None` if nothing was recorded.
    pub before_percent: Option<f64>,
}

impl Message {
    /// The first line.
    pub fn title(&self) -> String {
        if self.change == "digest" {
            return format!("{}: {} on {}", self.severity.to_uppercase(), self.summary, self.host);
        }
        let what = match self.change.as_str() {
            "resolved" => "RESOLVED".to_owned(),
            _ => self.severity.to_uppercase(),
        };
        let value = match (self.value.is_empty(), self.threshold.is_empty()) {
            (true, _) => String::new(),
            (false, true) => format!(": {}", self.value),
            (false, false) => format!(": {} (limit {})", self.value, self.threshold),
        };
        format!("{what}: {} on {}: {}{value}", self.target, self.host, self.rule)
    }

    /// All of it, for people.
    pub fn text(&self) -> String {
        let mut lines = vec![self.title()];
        if self.change == "digest" {
            const MOST: usize = 50;
            lines.extend(self.parts.iter().take(MOST).map(|part| {
                format!(
                    "- {} {}: {} on {} {}",
                    part.severity, part.change, part.rule, part.target, part.value
                )
                .trim_end()
                .to_owned()
            }));
            if self.parts.len() > MOST {
                lines.push(format!("and {} more", self.parts.len() - MOST));
            }
            return lines.join("\n");
        }
        if self.change == "resolved" {
            let seconds = (self.unix_ms - self.started_unix_ms).max(0) / 1000;
            lines.push(format!(
                "over after {}: {}",
                crate::model::units::time(seconds as u64 * 1_000_000_000),
                self.reason
            ));
            return lines.join("\n");
        }
        lines.push(self.summary.clone());
        if !self.verdict.is_empty() {
            lines.push(format!("verdict: {}", self.verdict));
            lines.extend((!self.advice.is_empty()).then(|| self.advice.clone()));
        }
        for found in &self.findings {
            lines.push(format!("- {}", found.title));
            lines.extend(found.stack.iter().map(|function| format!("    {function}")));
            if !found.advice.is_empty() {
                lines.push(format!("  {}", found.advice));
            }
        }
        lines.extend(self.routes.iter().map(|route| format!("- {}", route.text())));
        if !self.hot.is_empty() {
            lines.push("CPU time went to:".to_owned());
        }
        for hot in &self.hot {
            let before =
                hot.before_percent.map_or_else(String::new, |before| format!(" (before: {before:.1} %)"));
            lines.push(format!("  {:5.1} %{before}  {}", hot.percent, hot.function));
        }
        if !self.path.is_empty() {
            lines.push(format!("most of it in: {}", self.path.join(" > ")));
        }
        if !self.lost.is_empty() {
            let lost: Vec<String> = self.lost.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
            lines.push(format!("missing in this window: {}", lost.join(", ")));
        }
        if !self.command.is_empty() {
            lines.push(format!("more: {}", self.command));
        }
        lines.join("\n")
    }
}

#[cfg(test)]
pub mod fixtures {
    use super::*;

    pub fn message() -> Message {
        Message {
            version: 1,
            message: "a1-fired".into(),
            alert: "a1".into(),
            change: "fired".into(),
            rule: "event-loop-delay".into(),
            summary: "an event loop comes back to its wait late".into(),
            target: "api".into(),
            host: "web-1".into(),
            severity: "critical".into(),
            value: "212 ms".into(),
            threshold: "50.0 ms".into(),
            number: Some(0.212),
            started_unix_ms: 1_700_000_000_000,
            unix_ms: 1_700_000_000_000,
            verdict: "the event loop is busy in renderReport".into(),
            findings: vec![Found {
                rule: "event-loop-stall".into(),
                severity: "critical".into(),
                title: "event loop stalled 6 times".into(),
                advice: "move it off the loop".into(),
                stack: vec!["renderReport (/srv/app.js:12)".into()],
            }],
            hot: vec![Hot { function: "renderReport".into(), percent: 81.0, before_percent: Some(2.5) }],
            path: vec!["onRequest".into(), "renderReport".into()],
            routes: vec![Told {
                operation: "GET /reports/:id".into(),
                at: ":8080".into(),
                requests: 120,
                p95_ns: 2_100_000_000,
                failed: 12,
                error: "500".into(),
                goes: vec![("on a CPU".into(), 1_200_000_000), ("awaiting 10.0.0.2:5432".into(), 40_000_000)],
            }],
            evidence: vec!["/var/lib/profiler/evidence/a1/1.prec".into()],
            command: "profiler replay /var/lib/profiler/evidence/a1/1.prec".into(),
            lost: vec![("ring buffer full".into(), 3)],
            ..Message::default()
        }
    }

    #[test]
    fn a_message_is_a_diagnosis() {
        insta::assert_snapshot!(message().text());
        let over = Message {
            change: "resolved".into(),
            reason: "the value is good again".into(),
            unix_ms: 1_700_000_090_000,
            ..message()
        };
        assert_eq!(
            over.text(),
            "RESOLVED: api on web-1: event-loop-delay: 212 ms (limit 50.0 ms)\nover after 90 s: the value is good again"
        );
    }
}
