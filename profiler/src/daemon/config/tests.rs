use std::time::Duration;

use super::*;
use crate::settings::Requests;

const SMALL: &str =
    "[[targets]]\nname = \"api\"\ncomm = \"node\"\n\n[[receivers]]\nname = \"ops\"\ntype = \"stderr\"\n";

fn wrong(more: &str) -> String {
    parse(&format!("{SMALL}{more}")).unwrap_err()
}

#[test]
fn six_lines_are_enough() {
    let config = parse(SMALL).unwrap();
    assert_eq!(config.targets[0].comm.as_deref(), Some("node"));
    assert_eq!(config.receivers[0].kind, ReceiverKind::Stderr);
    assert_eq!(config.rules, *BUILT_IN);
}

#[test]
fn requests_are_watched_as_a_run_does_that_is_not_told() {
    let of = |text: &str| parse(&format!("{SMALL}[daemon]\n{text}\n")).unwrap().daemon.requests;
    assert_eq!([of("requests = true"), of("requests = false")], [Requests::On, Requests::Off]);
    assert_eq!([of(""), of("requests = \"auto\"")], [Requests::DEFAULT, Requests::Auto]);
}

#[test]
fn rules_are_overridden_field_by_field() {
    let text =
        format!("{SMALL}[rules.event-loop-delay]\nwarning = \"20ms\"\nfor = \"2m\"\nreceivers = [\"ops\"]\n");
    let rules = parse(&text).unwrap().rules;
    let rule = rules.into_iter().find(|rule| rule.id == "event-loop-delay").unwrap();
    assert_eq!((rule.warning, rule.critical), (Some(0.020), Some(0.050)));
    assert_eq!((rule.hold, rule.receivers), (Duration::from_secs(120), vec!["ops".to_owned()]));
}

#[test]
fn a_rule_of_ones_own_needs_a_metric_and_a_threshold() {
    let text = format!("{SMALL}[rules.big]\nmetric = \"memory_held_bytes\"\ncritical = \"2GiB\"\n");
    let rule = parse(&text).unwrap().rules.pop().unwrap();
    assert_eq!((rule.critical, rule.warning), (Some(2.0 * 1024.0 * 1024.0 * 1024.0), None));
    assert!(wrong("[rules.big]\nmetric = \"memory_held_bytes\"\n").contains("needs a threshold"));
}

#[test]
fn what_is_wrong_is_said_with_its_place_and_what_was_meant() {
    insta::assert_snapshot!(
        [
            "[rules.event-loop-delay]\nwarnin = 1\n",
            "[rules.event-lop-delay]\nwarning = 1\n",
            "[rules.event-loop-delay]\nwarning = \"soon\"\n",
            "[rules.event-loop-delay]\nwarning = \"2s\"\ncritical = \"1s\"\n",
            "[rules.big]\nmetric = \"memory_held_byte\"\nwarning = 1\n",
            "[rules.big]\nfinding = \"memory-leek\"\n",
            "[rules.cpu-quota]\nreceivers = [\"opps\"]\n",
            "[[targets]]\nname = \"api\"\ncomm = \"node\"\n",
            "[[targets]]\nname = \"b\"\n",
            "[[receivers]]\nname = \"x\"\ntype = \"pigeon\"\n",
            "[[receivers]]\nname = \"x\"\ntype = \"slack\"\n",
            "[[receivers]]\nname = \"x\"\ntype = \"stderr\"\npath = \"/x\"\n",
            "[daemon]\nwindow = \"1 parsec\"\n",
            "[daemon]\nwindow = \"1s\"\n",
            "[daemon]\nrequests = \"often\"\n",
            "[daemon]\nmax_memory = \"0B\"\n",
            "[[targets]]\nname = \"~b\"\ncomm = \"b\"\n",
            "[daemon]\ntls_key = \"/x\"\n",
            "[[receivers]]\nname = \"x\"\ntype = \"email\"\nserver = \"h:x\"\n",
            "[[receivers]]\nname = \"x\"\ntype = \"email\"\nserver = \"h\"\nfrom = \"a\"\nto = [\"b@c\"]\n",
            "[[receivers]]\nname = \"x\"\ntype = \"email\"\nserver = \"h\"\nfrom = \"a@b\"\nto = [\"b@c\"]\nuser = \"u\"\n",
            "[[exports]]\nname = \"x\"\ntype = \"otlp\"\n",
            "[rules.cpu-quota]\npredict = \"soon\"\n",
            "[rules.leak]\nbaseline = \"1d\"\n",
            "nonsense",
        ]
        .map(wrong)
        .join("\n\n")
    );
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,200}", key in "[a-z_.-]{0,20}", value in "\\PC{0,20}") {
        let _ = parse(&text);
        let _ = parse(&format!("{SMALL}[rules.{key}]\n{key} = {value}\nwarning = \"{value}\""));
    }
}
