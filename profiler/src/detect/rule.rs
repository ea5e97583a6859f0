//! What a rule is: its name, its parameters, how it judges a run, and what its findings mean.

use std::collections::BTreeMap;

use crate::model::{finding::Finding, report::Run};

/// A part of a run that a rule reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Samples on CPUs, which every run has.
    Cpu,
    /// Where threads waited: off with `--waits off`, and with `--all`.
    Waits,
    /// System calls: `--syscalls`.
    Calls,
    /// How memory grew: off with `--alloc off`, and with `--all`.
    Memory,
    /// What `/proc` says about the targets: off with `--all`.
    Vitals,
    /// Requests and their answers: not with `--requests off`.
    Requests,
    /// Attempts to connect: either of the two tells.
    Connects,
}

impl Needs {
    /// Every part.
    pub const ALL: [Needs; 7] = [
        Needs::Cpu,
        Needs::Waits,
        Needs::Calls,
        Needs::Memory,
        Needs::Vitals,
        Needs::Requests,
        Needs::Connects,
    ];

    /// Name in documents.
    pub fn id(self) -> &'static str {
        match self {
            Needs::Cpu => "cpu",
            Needs::Waits => "waits",
            Needs::Calls => "syscalls",
            Needs::Memory => "memory",
            Needs::Vitals => "vitals",
            Needs::Requests => "requests",
            Needs::Connects => "connects",
        }
    }

    /// Whether a run has it.
    pub fn is_in(self, run: &Run) -> bool {
        match self {
            Needs::Cpu => true,
            Needs::Waits => run.blocking.is_some(),
            Needs::Calls => run.calls.is_some(),
            Needs::Memory => run.memory.is_some(),
            Needs::Vitals => run.vitals.is_some(),
            Needs::Requests => run.requests.is_some(),
            Needs::Connects => run.requests.is_some() || run.calls.is_some(),
        }
    }
}

/// What a parameter's number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// Percent.
    Percent,
    /// A number of things.
    Count,
    /// A number of things in a second.
    PerSecond,
}

impl Unit {
    /// Name in documents.
    pub fn words(self) -> &'static str {
        match self {
            Unit::Seconds => "s",
            Unit::Percent => "%",
            Unit::Count => "",
            Unit::PerSecond => "per s",
        }
    }
}

/// A number that a rule judges by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Param {
    /// Its name: unique in its rule.
    pub name: &'static str,
    /// What its number means.
    pub unit: Unit,
    /// Its value if none is given.
    pub default: f64,
    /// What it decides, in one sentence.
    pub help: &'static str,
    /// The flag it has of its own, where the probes need it while they measure; all others are given by `--threshold`.
    pub flag: Option<&'static str>,
}

/// A rule: everything about one kind of defect is in its file.
#[derive(Debug)]
pub struct Rule {
    /// Its name, in findings and documents.
    pub name: &'static str,
    /// What is wrong where it finds something.
    pub summary: &'static str,
    /// What must have been measured.
    pub needs: &'static [Needs],
    /// What it judges by.
    pub params: &'static [Param],
    /// Judges a run.
    pub check: fn(&Run, &Values<'_>) -> Vec<Finding>,
    /// How it judges, what to do about its findings, and when they mean nothing: paragraphs of Markdown.
    pub doc: &'static str,
}

/// Values given for parameters, by the names of rule and parameter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides(BTreeMap<(String, String), f64>);

/// The values of one rule's parameters.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    rule: &'a str,
    overrides: &'a Overrides,
}

impl Overrides {
    /// Takes `RULE.PARAM=VALUE`, or says what is wrong with it.
    pub fn set(&mut self, text: &str, rules: &[&Rule]) -> Result<(), String> {
        let wrong = || format!("'{text}' is no threshold; write it like RULE.PARAMETER=NUMBER");
        let (path, value) = text.split_once('=').ok_or_else(wrong)?;
        let (rule_name, name) = path.split_once('.').ok_or_else(wrong)?;
        let value: f64 = value.parse().map_err(|_| wrong())?;
        if !value.is_finite() || value < 0.0 {
            return Err(format!("{path} must be a number and at least 0"));
        }
        let rule = rules.iter().find(|rule| rule.name == rule_name);
        let rule =
            rule.ok_or_else(|| format!("there is no rule '{rule_name}' (`profiler rules` lists them)"))?;
        let Some(param) = rule.params.iter().find(|param| param.name == name) else {
            let known: Vec<&str> = rule.params.iter().map(|param| param.name).collect();
            return Err(format!("rule {rule_name} has no '{name}'; it has: {}", known.join(", ")));
        };
        if let Some(flag) = param.flag {
            return Err(format!("{path} is measured by: give --{flag} instead"));
        }
        self.0.insert((rule_name.to_owned(), name.to_owned()), value);
        Ok(())
    }

    /// The values of a rule's parameters.
    pub fn of<'a>(&'a self, rule: &'a Rule) -> Values<'a> {
        Values { rule: rule.name, overrides: self }
    }
}

impl Values<'_> {
    /// What was given for a parameter, or its default.
    pub fn get(&self, param: &Param) -> f64 {
        let given = self.overrides.0.get(&(self.rule.to_owned(), param.name.to_owned()));
        given.copied().unwrap_or(param.default)
    }

    /// A number of seconds, in ns.
    pub fn ns(&self, param: &Param) -> u64 {
        (self.get(param) * 1e9) as u64
    }
}
