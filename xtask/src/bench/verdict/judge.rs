//! Whether what the profiler said is the right answer.

use serde::Serialize;
use serde_json::Value;

use super::corpus::{Entry, Verdict};

/// Lines of the report that are the answer.
const LINES: usize = 20;

/// A finding, as far as it is judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub rule: String,
    pub severity: String,
    pub title: String,
}

/// What a JSON document says, as far as it is judged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Said {
    /// The verdict's bottleneck; empty if there is no verdict.
    pub bottleneck: String,
    /// First the worst.
    pub findings: Vec<Finding>,
}

/// What was right and what was not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Judgement {
    /// The first finding's rule is one of those expected, or the verdict is; of a healthy program: no finding is worse
    /// than information.
    pub finding: bool,
    /// Words that are not in the first lines.
    pub missing_words: Vec<String>,
}

impl Judgement {
    pub fn passed(&self) -> bool {
        self.finding && self.missing_words.is_empty()
    }
}

/// Judges what was said about a program; `peer` is the port of the peer that it waits for.
pub fn judge(entry: &Entry, said: &Said, report: &str, peer: Option<&str>) -> Judgement {
    let first = said.findings.first();
    let finding = match entry.verdict {
        Verdict::Healthy => !said.findings.iter().any(is_alarm),
        verdict if entry.rules.is_empty() => said.bottleneck == verdict.id(),
        _ => first.is_some_and(|first| is_alarm(first) && entry.rules.contains(&first.rule)),
    };
    // Where a line is broken says nothing.
    let answer = report.lines().take(LINES).flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ");
    let is_missing = |words: &&String| {
        let words = words.replace("{peer}", peer.unwrap_or("{peer}"));
        !words.split('|').any(|word| answer.contains(word))
    };
    Judgement { finding, missing_words: entry.words.iter().filter(is_missing).cloned().collect() }
}

fn is_alarm(finding: &Finding) -> bool {
    finding.severity == "warning" || finding.severity == "critical"
}

/// Reads a JSON document.
pub fn said(profile: &Value) -> Said {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let finding = |value: &Value| Finding {
        rule: text(&value["rule"]),
        severity: text(&value["severity"]),
        title: text(&value["title"]),
    };
    Said {
        bottleneck: text(&profile["verdict"]["bottleneck"]),
        findings: profile["findings"].as_array().into_iter().flatten().map(finding).collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(verdict: Verdict) -> Entry {
        let healthy = verdict == Verdict::Healthy;
        Entry {
            name: "a".into(),
            program: "a.js".into(),
            args: vec![],
            load: String::new(),
            needs: vec![],
            seconds: 8,
            flags: vec![],
            verdict,
            rules: if healthy { vec![] } else { vec!["stall".into(), "gc".into()] },
            words: if healthy { vec![] } else { vec!["slow|late".into(), "127.0.0.1:{peer}".into()] },
        }
    }

    fn finding(rule: &str, severity: &str) -> Finding {
        Finding { rule: rule.into(), severity: severity.into(), title: String::new() }
    }

    fn says(findings: &[Finding]) -> Said {
        Said { bottleneck: "cpu".into(), findings: findings.into() }
    }

    #[test]
    fn the_first_finding_and_the_first_lines_count() {
        let judge = |findings: &[Finding], report: &str| {
            judge(&entry(Verdict::Cpu), &says(findings), report, Some("99")).passed()
        };
        let right = [finding("gc", "warning"), finding("leak", "critical")];
        assert!(judge(&right, "late, because of 127.0.0.1:99"));
        assert!(!judge(&right, "late, because of 127.0.0.1:98"));
        assert!(judge(&right, "because of\n    127.0.0.1:99 it is late"));
        assert!(!judge(&right, "127.0.0.1:99"));
        assert!(!judge(&right, &format!("127.0.0.1:99{}late", "\n".repeat(LINES))));
        assert!(!judge(&[right[1].clone(), right[0].clone()], "late 127.0.0.1:99"));
        assert!(!judge(&[finding("gc", "info")], "late 127.0.0.1:99"));
        assert!(!judge(&[], "late 127.0.0.1:99"));
    }

    #[test]
    fn without_rules_the_verdict_counts() {
        let right = |verdict| {
            let entry = Entry { rules: vec![], words: vec![], ..entry(verdict) };
            judge(&entry, &says(&[]), "", None).passed()
        };
        assert!(right(Verdict::Cpu));
        assert!(!right(Verdict::Io));
    }

    #[test]
    fn a_healthy_program_may_have_information_only() {
        let judge =
            |findings: &[Finding]| judge(&entry(Verdict::Healthy), &says(findings), "", None).passed();
        assert!(judge(&[]));
        assert!(judge(&[finding("cpu", "info")]));
        assert!(!judge(&[finding("cpu", "info"), finding("stall", "warning")]));
    }

    #[test]
    fn a_document_says_what_it_says() {
        let document = json!({
            "verdict": { "bottleneck": "cpu", "sentence": "…" },
            "findings": [{ "rule": "gc", "severity": "warning", "title": "", "cost": 1 }],
        });
        assert_eq!(said(&document), says(&[finding("gc", "warning")]));
        assert_eq!(said(&json!({})), Said::default());
    }
}
