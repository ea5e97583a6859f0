//! A flame graph (SVG), drawn by inferno from the folded stacks.

use std::io::Write;

use anyhow::Result;

use crate::{
    model::{
        kind::{CPU, ProfileKind, Unit},
        report::Profile,
        units::{bytes, thousands},
    },
    output::{folded, options::RenderOptions},
};

/// Draws the profile. One with nothing in it becomes a picture that says so.
pub fn write(profile: &Profile, options: &RenderOptions, out: &mut dyn Write) -> Result<()> {
    let kind = profile.kind;
    if profile.total == 0 {
        writeln!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"600\" height=\"60\">\
             <text x=\"20\" y=\"35\" font-family=\"sans-serif\">{}</text></svg>",
            kind.nothing
        )?;
        return Ok(());
    }
    let lines: Vec<String> = folded::lines(profile, options)
        .into_iter()
        .map(|(stack, weight)| format!("{stack} {weight}"))
        .collect();
    let mut settings = inferno::flamegraph::Options::default();
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

    fn draw(profile: &Profile) -> String {
        let mut svg = Vec::new();
        write(profile, &RenderOptions::default(), &mut svg).unwrap();
        String::from_utf8(svg).unwrap()
    }

    #[test]
    fn every_function_is_in_the_picture() {
        let svg = draw(&profile(&[("main;hot<T>", 3), ("main;cold", 1)]));
        assert!(svg.contains("hot&lt;T&gt; (3 samples, 75.00%)"), "{svg}");
        assert!(svg.contains("cold (1 samples, 25.00%)"));
    }

    #[test]
    fn time_off_cpus_is_in_nanoseconds() {
        let mut profile = profile(&[("main;read", 3_000_000)]);
        profile.kind = OFF_CPU;
        let svg = draw(&profile);
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
            let svg = draw(&profile);
            for text in [title, subtitle, frame] {
                assert!(svg.contains(text), "{text} in {svg}");
            }
            assert!(!svg.contains("on-CPU") && !svg.contains("Hz"), "{svg}");
            profile.total = 0;
            assert!(draw(&profile).contains(kind.nothing));
            profile.total = 3_145_728;
        }
    }

    #[test]
    fn no_samples_is_no_failure() {
        assert!(draw(&profile(&[])).contains("No samples"));
    }
}
