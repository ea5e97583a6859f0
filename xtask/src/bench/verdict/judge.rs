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

/// What was right and what was not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Judgement {
    /// The first finding's rule is one of those expected; of a healthy program: nothing is called worse than a note.
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
pub fn judge(entry: &Entry, findings: &[Finding], report: &str, peer: Option<&str>) -> Judgement {
    let finding = match entry.verdict {
        Verdict::Healthy => !findings.iter().any(is_alarm),
        _ => findings.first().is_some_and(|first| is_alarm(first) && entry.rules.contains(&first.rule)),
    };
    let answer: String = report.lines().take(LINES).collect::<Vec<_>>().join("\n");
    let is_missing = |words: &&String| {
        let words = words.replace("{peer}", peer.unwrap_or("{peer}"));
        !words.split('|').any(|word| answer.contains(word))
    };
    Judgement { finding, missing_words: entry.words.iter().filter(is_missing).cloned().collect() }
}

fn is_alarm(finding: &Finding) -> bool {
    finding.severity == "warning" || finding.severity == "critical"
}

/// The findings in a JSON document, first the worst.
pub fn findings(profile: &Value) -> Vec<Finding> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if let Some(findings) = profile["findings"].as_array() {
        let finding = |value: &Value| Finding {
            rule: text(&value["rule"]),
            severity: text(&value["severity"]),
            title: text(&value["title"]),
        };
        return findings.iter().map(finding).collect();
    }
    // Version 1 has no findings, but the lists that they are made of, here in the order of its report.
    const LISTS: [(&str, &str, &str); 6] = [
        ("memory", "growing", "leak"),
        ("blocking", "stalls", "stall"),
        ("blocking", "long_waits", "long-wait"),
        ("blocking", "convoys", "convoy"),
        ("syscalls", "chatty", "chatty"),
        ("syscalls", "error_storms", "error-storm"),
    ];
    let mut found: Vec<Finding> = Vec::new();
    for (section, list, rule) in LISTS {
        for value in profile[section][list].as_array().into_iter().flatten() {
            found.push(Finding {
                rule: rule.into(),
                severity: text(&value["severity"]),
                title: text(&value["stack"][0]),
            });
        }
    }
    found.sort_by_key(|finding| finding.severity != "critical");
    found
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

    #[test]
    fn the_first_finding_and_the_first_lines_count() {
        let judge = |findings: &[Finding], report: &str| {
            judge(&entry(Verdict::Cpu), findings, report, Some("99")).passed()
        };
        let right = [finding("gc", "warning"), finding("leak", "critical")];
        assert!(judge(&right, "late, because of 127.0.0.1:99"));
        assert!(!judge(&right, "late, because of 127.0.0.1:98"));
        assert!(!judge(&right, "127.0.0.1:99"));
        assert!(!judge(&right, &format!("127.0.0.1:99{}late", "\n".repeat(LINES))));
        assert!(!judge(&[right[1].clone(), right[0].clone()], "late 127.0.0.1:99"));
        assert!(!judge(&[finding("gc", "note")], "late 127.0.0.1:99"));
        assert!(!judge(&[], "late 127.0.0.1:99"));
    }

    #[test]
    fn a_healthy_program_may_have_notes_only() {
        let judge = |findings: &[Finding]| judge(&entry(Verdict::Healthy), findings, "", None).passed();
        assert!(judge(&[]));
        assert!(judge(&[finding("cpu", "note")]));
        assert!(!judge(&[finding("cpu", "note"), finding("stall", "warning")]));
    }

    #[test]
    fn findings_are_read_from_both_versions() {
        let two = json!({ "findings": [{ "rule": "gc", "severity": "warning", "title": "t", "cost": 1 }] });
        assert_eq!(findings(&two), [Finding { title: "t".into(), ..finding("gc", "warning") }]);
        assert_eq!(findings(&json!({ "findings": [] })), []);
        let one = json!({ "blocking": {
            "stalls": [{ "severity": "warning" }],
            "convoys": [{ "severity": "critical" }],
        }});
        assert_eq!(findings(&one), [finding("convoy", "critical"), finding("stall", "warning")]);
    }
}
