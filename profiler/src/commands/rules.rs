//! `profiler rules`: what is looked for, and by which numbers it is judged.

use std::{fmt::Write as _, io::Write as _};

use anyhow::Result;

use crate::{
    cli::{RulesArgs, RulesCommand},
    daemon,
    detect::{
        RULES,
        rule::{Needs, Param, Rule},
    },
    error::Error,
};

/// Prints the table of rules, or the page of one.
pub fn run(args: &RulesArgs) -> Result<()> {
    let text = match (&args.command, &args.rule) {
        (Some(RulesCommand::Test { replay, config }), _) => daemon::test_rules(config.as_deref(), replay)?,
        (None, None) => table(),
        (None, Some(name)) => {
            page(RULES.iter().find(|rule| rule.name == name).ok_or_else(|| Error::NoSuchRule(name.clone()))?)
        }
    };
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

/// A line per rule.
fn table() -> String {
    let name_width = RULES.iter().map(|rule| rule.name.len()).max().unwrap_or(0);
    let line = |rule: &&Rule| format!("{:<name_width$}  {}\n", rule.name, rule.summary);
    let mut text: String = RULES.iter().map(line).collect();
    text.push_str("\n`profiler rules NAME` says how a rule judges, and what to do about its findings.\n");
    text
}

/// Everything about a rule, as Markdown.
pub fn page(rule: &Rule) -> String {
    let mut text = format!(
        "# {}\n\nA finding of this rule says that {}.\n\n{}\n",
        rule.name,
        rule.summary,
        rule.doc.trim()
    );
    let needs: Vec<&str> = rule.needs.iter().map(|needs| source(*needs)).collect();
    let _infallible = write!(text, "\nIt reads {}.\n", needs.join(", and "));
    if !rule.params.is_empty() {
        text.push_str("\n| parameter | default | meaning | given by |\n| --- | --- | --- | --- |\n");
    }
    for param in rule.params {
        let given = match param.flag {
            Some(flag) => format!("`--{flag}`"),
            None => format!("`--threshold {}.{}=NUMBER`", rule.name, param.name),
        };
        let _infallible =
            writeln!(text, "| `{}` | {} | {} | {given} |", param.name, value(param), param.help);
    }
    text
}

fn value(param: &Param) -> String {
    format!("{} {}", param.default, param.unit.words()).trim_end().to_owned()
}

fn source(needs: Needs) -> &'static str {
    match needs {
        Needs::Cpu => "CPU samples",
        Needs::Waits => "what threads wait for (`--waits`)",
        Needs::Calls => "system calls (`--syscalls`)",
        Needs::Memory => "how memory grows (`--alloc`)",
        Needs::Vitals => "what /proc says about the process",
        Needs::Requests => "requests and their answers (not with `--requests off`)",
        Needs::Connects => {
            "connections of sockets (not with `--requests off`), or system calls (`--syscalls`)"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_has_a_line_and_a_page() {
        let table = table();
        for rule in RULES {
            assert!(table.contains(rule.name));
            let page = page(rule);
            assert!(page.starts_with(&format!("# {}\n", rule.name)) && page.contains("It reads "), "{page}");
            assert!(rule.params.iter().all(|param| page.contains(param.help)), "{page}");
        }
        assert!(table.lines().all(|line| line.chars().count() <= 100), "{table}");
    }
}
