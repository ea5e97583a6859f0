//! A flame graph (SVG), drawn by inferno from the folded stacks.

use std::{collections::BTreeMap, io::Write};

use anyhow::Result;

use crate::{
    model::{
        kind::{CPU, ProfileKind, Unit},
        report::Profile,
        units::{bytes, percent, thousands},
    },
    output::{folded, options::RenderOptions},
};

/// Draws the profile. One with nothing in it becomes a picture that says so.
pub fn write(profile: &Profile, options: &RenderOptions, out: &mut dyn Write) -> Result<()> {
    draw(profile, options, inferno::flamegraph::Options::default(), out)
}

/// As [`write`], on white and with the outermost functions on top, where a page shows a part of it first.
pub fn write_for_page(profile: &Profile, options: &RenderOptions, out: &mut dyn Write) -> Result<()> {
    let mut settings = inferno::flamegraph::Options::default();
    settings.direction = inferno::flamegraph::Direction::Inverted;
    settings.bgcolors = Some(white());
    draw(profile, options, settings, out)
}

fn white() -> inferno::flamegraph::color::BackgroundColor {
    let white = inferno::flamegraph::color::Color { r: 255, g: 255, b: 255 };
    inferno::flamegraph::color::BackgroundColor::Flat(white)
}

fn draw(
    profile: &Profile,
    options: &RenderOptions,
    mut settings: inferno::flamegraph::Options<'_>,
    out: &mut dyn Write,
) -> Result<()> {
    let kind = profile.kind;
    if profile.total == 0 {
        return empty(kind.nothing, out);
    }
    let lines: Vec<String> = folded::lines(profile, options)
        .into_iter()
        .map(|(stack, weight)| format!("{stack} {weight}"))
        .collect();
    settings.title = format!("{} {}: {}", profile.meta.target, kind.title, profile.meta.host);
    settings.subtitle = Some(subtitle(profile));
    settings.count_name = count_name(&kind).to_owned();
    settings.deterministic = true; // colours by name: a replay draws the same picture
    settings.colors = inferno::flamegraph::color::Palette::Multi(
        inferno::flamegraph::color::MultiPalette::Java, // knows the suffixes of folded stacks
    );
    inferno::flamegraph::from_lines(&mut settings, lines.iter().map(String::as_str), out)?;
    Ok(())
}

/// A picture that says that there is nothing.
pub(super) fn empty(nothing: &str, out: &mut dyn Write) -> Result<()> {
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"600\" height=\"60\">\
         <text x=\"20\" y=\"35\" font-family=\"sans-serif\">{nothing}</text></svg>"
    )?;
    Ok(())
}

/// Draws what differs between two profiles of a kind: widths are the second one's; where what a function takes itself
/// has grown it is red, where it has shrunk blue. Samples
/// are brought to one sum, times to one length of time; memory is as it is.
pub fn write_difference(
    before: &Profile,
    after: &Profile,
    options: &RenderOptions,
    out: &mut dyn Write,
) -> Result<()> {
    let kind = after.kind;
    if after.total == 0 {
        return empty(kind.nothing, out);
    }
    let length = |of: &Profile| of.accounts.duration_ns.max(1) as f64;
    let scale = match kind.unit {
        Unit::Bytes => 1.0,
        Unit::Count => after.total as f64 / before.total.max(1) as f64,
        Unit::Nanoseconds => length(after) / length(before),
    };
    let mut lines: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for (stack, weight) in folded::lines(before, options) {
        lines.entry(stack).or_default().0 = (weight as f64 * scale).round() as u64;
    }
    for (stack, weight) in folded::lines(after, options) {
        lines.entry(stack).or_default().1 = weight;
    }
    let gone: u64 = lines.values().filter(|(_, after)| *after == 0).map(|(before, _)| before).sum();
    let lines: Vec<String> =
        lines.into_iter().map(|(stack, (before, after))| format!("{stack} {before} {after}")).collect();
    let mut settings = inferno::flamegraph::Options::default();
    settings.title = format!("{}: {}, compared with {}", kind.title, after.meta.target, before.meta.target);
    settings.subtitle = Some(format!(
        "widths: the second; what a function takes itself has grown (red) or shrunk (blue); {:.1} % of the first were in \
         stacks that are gone",
        percent(gone, (before.total as f64 * scale).round() as u64)
    ));
    settings.count_name = count_name(&kind).to_owned();
    settings.deterministic = true;
    settings.bgcolors = Some(white());
    inferno::flamegraph::from_lines(&mut settings, lines.iter().map(String::as_str), out)?;
    Ok(())
}

/// What follows the number of a frame.
fn count_name(kind: &ProfileKind) -> &'static str {
    match kind.unit.symbol() {
        Some(symbol) => symbol,
        None if *kind == CPU => "samples",
        None => kind.title,
    }
}

/// What the widths add up to, and in what time.
fn subtitle(profile: &Profile) -> String {
    let seconds = profile.accounts.duration_ns as f64 / 1e9;
    let (total, sum) = (profile.total, profile.kind.sum);
    match profile.kind.unit {
        Unit::Nanoseconds => format!("{:.1} s {sum}, in {seconds:.1} s; ns", total as f64 / 1e9),
        Unit::Bytes => format!("{} {sum}, after {seconds:.1} s; bytes", bytes(total as f64)),
        Unit::Count if profile.kind == CPU => {
            let lost = profile.accounts.losses.lost();
            format!("{total} {sum} at {} Hz, {seconds:.1} s, lost {lost}", profile.meta.frequency_hz)
        }
        Unit::Count => format!("{} {sum}, in {seconds:.1} s", thousands(total)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        kind::{ALLOC, FAULTS, OFF_CPU, SYSCALLS},
        report::fixtures::profile,
    };

    fn drawn(profile: &Profile) -> String {
        let mut svg = Vec::new();
        write(profile, &RenderOptions::default(), &mut svg).unwrap();
        String::from_utf8(svg).unwrap()
    }

    #[test]
    fn every_function_is_in_the_picture() {
        let svg = drawn(&profile(&[("main;hot<T>", 3), ("main;cold", 1)]));
        assert!(svg.contains("hot&lt;T&gt; (3 samples, 75.00%)"), "{svg}");
        assert!(svg.contains("cold (1 samples, 25.00%)"));
    }

    #[test]
    fn time_off_cpus_is_in_nanoseconds() {
        let mut profile = profile(&[("main;read", 3_000_000)]);
        profile.kind = OFF_CPU;
        let svg = drawn(&profile);
        assert!(svg.contains("read (3,000,000 ns, 100.00%)") && svg.contains("off-CPU"), "{svg}");
    }

    #[test]
    fn each_kind_says_what_its_widths_are() {
        let mut profile = profile(&[("main;f", 3_145_728)]);
        for (kind, title, subtitle, frame) in [
            (
                SYSCALLS,
                "system calls",
                "0.0 s in system calls, of all threads, in 1.0 s; ns",
                "(3,145,728 ns, 100.00%)",
            ),
            (
                ALLOC,
                "live memory",
                "3.15 MB allocated and not freed, after 1.0 s; bytes",
                "(3,145,728 bytes, 100.00%)",
            ),
            (
                FAULTS,
                "page faults",
                "3,145,728 page faults, estimated from samples, in 1.0 s",
                "(3,145,728 page faults, 100.00%)",
            ),
        ] {
            profile.kind = kind;
            let svg = drawn(&profile);
            for text in [title, subtitle, frame] {
                assert!(svg.contains(text), "{text} in {svg}");
            }
            assert!(!svg.contains("on-CPU") && !svg.contains("Hz"), "{svg}");
            profile.total = 0;
            assert!(drawn(&profile).contains(kind.nothing));
            profile.total = 3_145_728;
        }
    }

    #[test]
    fn what_differs_is_coloured_and_what_is_gone_is_told() {
        let (before, after) = (
            profile(&[("main;a", 50), ("main;b", 40), ("main;gone", 10)]),
            profile(&[("main;a", 150), ("main;b", 50)]),
        );
        let mut svg = Vec::new();
        write_difference(&before, &after, &RenderOptions::default(), &mut svg).unwrap();
        let svg = String::from_utf8(svg).unwrap();
        assert!(svg.contains("a (150 samples, 75.00%; +25.00%)"), "{svg}");
        assert!(svg.contains("b (50 samples, 25.00%; -15.00%)"), "{svg}");
        assert!(svg.contains("10.0 % of the first were in stacks that are gone"), "{svg}");
        let mut nothing = Vec::new();
        write_difference(&before, &profile(&[]), &RenderOptions::default(), &mut nothing).unwrap();
        assert!(String::from_utf8(nothing).unwrap().contains("No samples"));
    }

    #[test]
    fn no_samples_is_no_failure() {
        assert!(drawn(&profile(&[])).contains("No samples"));
    }
}
