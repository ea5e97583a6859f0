//! Command lines that are understood, and those that are refused.

use clap::{CommandFactory as _, error::ErrorKind};

use super::*;

fn rejected(args: &[&str]) -> ErrorKind {
    Cli::try_parse_from([&["profiler"], args].concat()).expect_err("must be rejected").kind()
}

/// Flags of `profiler` that rules' parameters have, in seconds or percent.
fn flag_default(flag: &str) -> f64 {
    let command = Cli::command();
    let arg = command.get_arguments().find(|arg| arg.get_long() == Some(flag)).expect(flag).clone();
    let text = arg.get_default_values()[0].to_str().unwrap().to_owned();
    match humantime::parse_duration(&text) {
        Ok(time) => time.as_secs_f64(),
        Err(_) => text.parse().unwrap(),
    }
}

#[test]
fn flags_and_rules_have_the_same_defaults() {
    for param in RULES.iter().flat_map(|rule| rule.params) {
        if let Some(flag) = param.flag {
            assert_eq!(flag_default(flag), param.default, "--{flag}");
        }
    }
}

#[test]
fn thresholds_of_rules_are_checked() {
    let set = |text: &str| Overrides::default().set(text, RULES);
    assert_eq!(rejected(&["--all", "--threshold", "no-rule.x=1"]), ErrorKind::ValueValidation);
    assert!(set("event-loop-stall.warning=1").unwrap_err().contains("--stall-warning"));
    assert!(set("event-loop-stall.nothing=1").unwrap_err().contains("it has"));
    assert!(set("cpu-starvation.share=x").is_err() && set("cpu-starvation.share=-1").is_err());
    assert_eq!(set("cpu-starvation.share=30"), Ok(()));
    let cli = Cli::try_parse_from(["profiler", "--all", "--threshold", "cpu-starvation.share=30"]).unwrap();
    assert_ne!(cli.profile.report.overrides(), Overrides::default());
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn bad_command_lines_are_rejected() {
    assert_eq!(rejected(&[]), ErrorKind::MissingRequiredArgument);
    assert_eq!(rejected(&["--pid", "1", "--all"]), ErrorKind::ArgumentConflict);
    assert_eq!(rejected(&["--pid", "1", "--", "ls"]), ErrorKind::ArgumentConflict);
    assert_eq!(rejected(&["--pid", "0"]), ErrorKind::ValueValidation);
    assert_eq!(rejected(&["--pid", "x"]), ErrorKind::ValueValidation);
    assert_eq!(rejected(&["--all", "-F", "0"]), ErrorKind::ValueValidation);
    assert_eq!(rejected(&["--all", "-d", "0s"]), ErrorKind::ValueValidation);
    assert_eq!(rejected(&["--all", "-o", "x.gif"]), ErrorKind::ValueValidation);
    assert_eq!(rejected(&["--all", "--follow"]), ErrorKind::ArgumentConflict);
}

#[test]
fn thresholds_can_be_given_by_cause() {
    let thresholds = |args: &[&str]| {
        let cli = Cli::try_parse_from([&["profiler", "--all"], args].concat()).unwrap();
        cli.profile.blocking.thresholds()
    };
    assert_eq!(thresholds(&[]), Thresholds::default());
    let given = thresholds(&["--long-block", "disk=200ms", "--long-block", "2s", "--long-block", "sleep=1m"]);
    let of = |cause: WaitCause| given.block_ns[cause as usize];
    assert_eq!(of(WaitCause::Disk), 200_000_000);
    assert_eq!(of(WaitCause::Network), 2_000_000_000);
    assert_eq!(of(WaitCause::Sleep), 60_000_000_000);
    assert_eq!(of(WaitCause::Poll), u64::MAX);
    let short = thresholds(&["--stall-critical", "5ms", "--starvation", "1s"]);
    assert_eq!((short.stall_warning_ns, short.starvation_ns), (5_000_000, 1_000_000_000));
    assert_eq!(rejected(&["--all", "--long-block", "nap=1s"]), ErrorKind::ValueValidation);
    assert_eq!(rejected(&["--all", "--stall-warning", "0s"]), ErrorKind::ValueValidation);
    assert_eq!(rejected(&["--all", "--expected-error", "EWHAT"]), ErrorKind::ValueValidation);
    assert_eq!(errno("EACCES"), Ok(libc::EACCES as u32));
}

#[test]
fn snapshots_are_wanted_in_three_ways() {
    let snapshots = |args: &[&str]| {
        let cli = Cli::try_parse_from([&["profiler", "--all"], args].concat()).unwrap();
        (cli.profile.snapshots.snapshot, cli.profile.snapshots.snapshot_above)
    };
    assert_eq!(snapshots(&[]), (None, None));
    assert_eq!(snapshots(&["--snapshot"]), (Some(None), None));
    assert_eq!(snapshots(&["--snapshot", "30s"]), (Some(Some(Duration::from_secs(30))), None));
    assert_eq!(snapshots(&["--snapshot-above", "500MB"]), (None, Some(500_000_000)));
    assert_eq!(snapshots(&["--snapshot-above", "2GiB"]), (None, Some(2 << 30)));
    assert_eq!(rejected(&["--all", "--snapshot-above", "0"]), ErrorKind::ValueValidation);
    assert_eq!(rejected(&["--all", "--snapshot", "often"]), ErrorKind::ValueValidation);
    assert_eq!(rejected(&["diff", "a.prec"]), ErrorKind::MissingRequiredArgument);
}

#[test]
fn the_help_and_the_readme_know_every_format_and_kind() {
    let help = Cli::command().render_long_help().to_string();
    let readme = include_str!("../../../README.md");
    for of in crate::output::FORMATS {
        assert!(help.contains(of.extension), "{}", of.extension);
        let row = format!("| `{}` | {}", of.extension, of.title);
        assert!(readme.contains(&row), "README.md lacks: {row}");
    }
    for kind in crate::model::kind::KINDS {
        assert!(help.contains(&format!("{}:FILE", kind.name)), "{}", kind.name);
        let option = kind.option.map_or(String::new(), |option| format!(" (`{option}`)"));
        let row = format!("| `{}:FILE` | {}{option} |", kind.name, kind.shows);
        assert!(readme.contains(&row), "README.md lacks: {row}");
    }
}

#[test]
fn a_command_keeps_its_own_options() {
    let cli = Cli::try_parse_from(["profiler", "-d", "5m", "--", "sleep", "-d", "1"]).unwrap();
    assert_eq!(cli.profile.run, ["sleep", "-d", "1"]);
    assert_eq!(cli.profile.duration, Some(Duration::from_secs(300)));
}
