//! A flame graph (SVG), drawn by inferno from the folded stacks.

use std::io::Write;

use anyhow::Result;

use crate::{
    model::{kind::OFF_CPU, report::Profile},
    output::{RenderOptions, folded},
};

/// Draws the profile. One with no samples at all becomes a picture that says so.
pub fn write(profile: &Profile, options: &RenderOptions, out: &mut dyn Write) -> Result<()> {
    let off_cpu = profile.kind == OFF_CPU;
    if profile.total == 0 {
        let why = if off_cpu {
            "No time: the target never blocked."
        } else {
            "No samples: the target used no CPU."
        };
        writeln!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"600\" height=\"60\">\
             <text x=\"20\" y=\"35\" font-family=\"sans-serif\">{why}</text></svg>"
        )?;
        return Ok(());
    }
    let lines: Vec<String> = folded::lines(profile, options)
        .into_iter()
        .map(|(stack, weight)| format!("{stack} {weight}"))
        .collect();
    let mut settings = inferno::flamegraph::Options::default();
    let seconds = profile.accounts.duration_ns as f64 / 1e9;
    let place = if off_cpu { "off-CPU" } else { "on-CPU" };
    settings.title = format!("{} {place}: {}", profile.meta.target, profile.meta.host);
    settings.subtitle = Some(if off_cpu {
        format!("{:.1} s blocked, of all threads, in {seconds:.1} s; ns", profile.total as f64 / 1e9)
    } else {
        let lost = profile.accounts.losses.lost();
        format!("{} samples at {} Hz, {seconds:.1} s, lost {lost}", profile.total, profile.meta.frequency_hz)
    });
    settings.count_name = if off_cpu { "ns".to_owned() } else { profile.kind.sample_type.to_owned() };
    settings.deterministic = true; // colours by name: a replay draws the same picture
    settings.colors = inferno::flamegraph::color::Palette::Multi(
        inferno::flamegraph::color::MultiPalette::Java, // knows the suffixes of folded stacks
    );
    inferno::flamegraph::from_lines(&mut settings, lines.iter().map(String::as_str), out)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::report::fixtures::profile;

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
    fn no_samples_is_no_failure() {
        assert!(draw(&profile(&[])).contains("No samples"));
    }
}
