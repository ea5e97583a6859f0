//! The report's part about what was wrong, worst first.

use std::io::Write;

use anyhow::Result;

use super::text::{Keep, Style, fit, line, told};
use crate::model::{
    finding::Severity,
    report::Run,
    units::{count, thousands, time},
    wait::Blocking,
};

/// Findings shown in full.
const FINDINGS: usize = 10;

/// Writes what was wrong; nothing if nothing was looked for.
pub fn write(run: &Run, style: &Style, out: &mut dyn Write) -> Result<()> {
    let found = &run.findings;
    if found.is_empty() {
        let looked: Vec<String> = run
            .blocking
            .iter()
            .map(no_waits)
            .chain(run.memory.iter().map(|_| "no growth that persists".to_owned()))
            .chain(run.calls.iter().map(|_| "no chatty I/O, no error storm".to_owned()))
            .collect();
        return match &looked[..] {
            [] => Ok(()),
            looked => line(&format!("nothing found: {}", looked.join(", ")), style, out),
        };
    }
    writeln!(out, "\n{}", style.bold("what was wrong, worst first"))?;
    for finding in found.iter().take(FINDINGS) {
        let label = match finding.severity {
            Severity::Critical => style.paint("1;31", "CRITICAL"),
            Severity::Warning => style.paint("33", "WARNING "),
            Severity::Info => "note    ".to_owned(),
        };
        writeln!(out, "{label}  {}", fit(&finding.title, usize::MAX, Keep::Start))?;
        for evidence in &finding.evidence {
            for (i, function) in told(run.names(), &evidence.frames, evidence.shown).iter().enumerate() {
                let whose = if i == 0 { evidence.label } else { "" };
                let gap = if whose.is_empty() { "" } else { " " };
                line(&format!("            {whose}{gap}{function}"), style, out)?;
            }
        }
    }
    if found.len() > FINDINGS {
        writeln!(out, "{} more findings (JSON holds all)", found.len() - FINDINGS)?;
    }
    let unlisted =
        run.blocking.as_ref().map_or(0, |blocking| blocking.stalls_unlisted + blocking.long_waits_unlisted);
    if unlisted > 0 {
        writeln!(out, "shorter stalls and waits that are in none of these: {}", thousands(unlisted))?;
    }
    Ok(())
}

/// What was looked for among waits, and not found.
fn no_waits(blocking: &Blocking) -> String {
    let limits = &blocking.thresholds;
    let iterations: u64 = blocking.loops.iter().map(|of| of.iterations.count).sum();
    let in_iterations = match blocking.loops.len() as u64 {
        0 => String::new(),
        loops => format!(
            "no stall over {} in {} of {}, ",
            time(limits.stall_warning_ns),
            count(iterations, "iteration"),
            count(loops, "event loop")
        ),
    };
    format!(
        "{in_iterations}no thread blocked for long, none without a CPU for {}, no queue for a lock",
        time(limits.starvation_ns)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::{
            fixtures::{run_that_grows, run_with_findings},
            judge,
            rule::Overrides,
        },
        model::{distribution::Summary, report::fixtures, wait::EventLoop},
        output::text::width,
    };

    const PLAIN: Style = Style { colour: false, width: None, threads: false, top: 20 };

    fn render(run: &Run, style: Style) -> String {
        let mut text = Vec::new();
        let mut run = run.clone();
        judge(&mut run, &Overrides::default());
        write(&run, &style, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn what_was_wrong_can_be_acted_on() {
        insta::assert_snapshot!(render(&run_with_findings(), PLAIN));
    }

    #[test]
    fn what_grows_is_told_with_its_limit() {
        insta::assert_snapshot!(render(&run_that_grows(), PLAIN));
    }

    #[test]
    fn what_is_wrong_with_system_calls_is_told_too() {
        insta::assert_snapshot!(render(&crate::output::calls::fixtures::run_with_calls(), PLAIN));
    }

    #[test]
    fn nothing_wrong_is_one_line() {
        let mut run = fixtures::run(&[("main", 1)]);
        assert_eq!(render(&run, PLAIN), "", "nothing was looked for");
        let iterations = Summary { count: 1234, max_ns: 9_000_000, ..Summary::default() };
        let loops = vec![EventLoop { iterations, name: "quiet".into(), ..EventLoop::default() }];
        run.blocking = Some(Blocking { loops, ..Blocking::default() });
        run.memory = Some(crate::model::memory::Memory::default());
        run.calls = Some(crate::model::syscall::Calls::default());
        insta::assert_snapshot!(render(&run, PLAIN));
    }

    #[test]
    fn stacks_fit_a_terminal() {
        let text = render(&run_with_findings(), Style { width: Some(60), ..PLAIN });
        let findings = |line: &&str| !line.starts_with("CRITICAL") && !line.starts_with("WARNING");
        assert!(text.lines().filter(findings).all(|line| width(line) <= 60), "{text}");
    }
}
