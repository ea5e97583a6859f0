//! `profiler diff`: what differs between two recordings.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::Path,
};

use anyhow::Result;

use crate::{
    cli::DiffArgs,
    detect::{compare::compare, rule::Overrides},
    error::{self, Error},
    model::{comparison::Comparison, kind::ProfileKind},
    output::{Destination, OutputSpec, RenderOptions, diff as told, flamegraph, results::style},
    recording::load::load_what_there_is,
    say,
};

/// Differences named on stderr that `--fail-if` fails for.
const TOLD: usize = 5;

/// Says what differs between two recordings or snapshots. Returns the exit code.
pub fn diff(args: &DiffArgs) -> Result<u8> {
    let pictures = args.outputs.iter().map(|output| {
        let kind = picture(output)?;
        Ok((Destination::open(output.path.as_deref())?, kind))
    });
    let pictures: Vec<(Destination, ProfileKind)> = pictures.collect::<Result<_, Error>>()?;
    let read = |path: &Path| load_what_there_is(path, &Overrides::default());
    let (before, after) = (read(&args.before)?, read(&args.after)?);
    // Nobody is to pass by the part of a recording that can be read.
    for (of, path) in [(&before, &args.before), (&after, &args.after)] {
        if let (Some(fault), Some(_)) = (of.ending.fault(), &args.fail_if) {
            let reason = format!("it {fault}, and --fail-if needs a whole one");
            return Err(Error::BadRecording { path: path.clone(), reason }.into());
        }
    }
    let mut found = compare(before.measured(), after.measured());
    if !args.kinds.is_empty() {
        found.kinds.retain(|of| args.kinds.contains(&of.kind));
        found.left_out.clear();
    }
    if found.kinds.is_empty() {
        let reason = match found.left_out.first() {
            Some(left_out) => left_out.clone(),
            None => "it holds nothing of what is to be compared, or the other one does not".to_owned(),
        };
        return Err(Error::BadRecording { path: args.after.clone(), reason }.into());
    }
    for (destination, kind) in pictures {
        let sides = before.run.profile(&kind).zip(after.run.profile(&kind));
        let Some((before, after)) = sides else {
            let output = "the picture".to_owned();
            return Err(Error::NotMeasured { kind: kind.name, output }.into());
        };
        destination
            .finish(|out| flamegraph::write_difference(before, after, &RenderOptions::default(), out))?;
    }
    print(&found, args)?;
    Ok(match &args.fail_if {
        Some(_) => judge(&found, args)?,
        None => 0,
    })
}

/// The profile that a picture is asked for of.
fn picture(output: &OutputSpec) -> Result<ProfileKind, Error> {
    let is_svg = output.path.as_ref().is_some_and(|path| path.extension().is_some_and(|of| of == "svg"));
    if is_svg && !output.of_requests {
        Ok(output.kind)
    } else {
        Err(Error::Contradiction(
            "profiler diff -o writes .svg of profiles only; --json prints everything for programs",
        ))
    }
}

fn print(found: &Comparison, args: &DiffArgs) -> Result<()> {
    let names = [&args.before, &args.after].map(|path| path.display().to_string());
    let names = [names[0].as_str(), names[1].as_str()];
    let mut text = Vec::new();
    if args.json {
        told::write_json(found, names, &mut text)?;
    } else {
        let mut style = style(io::stdout().is_terminal(), false, args.top.into());
        style.width = style.width.or(Some(120));
        told::write(found, names, &style, &mut text)?;
    }
    let mut out = io::stdout().lock();
    out.write_all(&text)?;
    Ok(out.flush()?)
}

/// Whether something differs by as much as `--fail-if` says, as an exit code. What could not be judged is no pass.
fn judge(found: &Comparison, args: &DiffArgs) -> Result<u8> {
    let Some(limit) = &args.fail_if else { return Ok(0) };
    if !found.kinds.iter().any(|kind| kind.is_judged()) {
        return Err(Error::NotJudged.into());
    }
    let each = found.significant();
    let reached: Vec<String> = each
        .into_iter()
        .filter(|(_, change)| limit.is_reached(change))
        .map(|(kind, change)| told::sentence(kind, change))
        .collect();
    for reached in reached.iter().take(TOLD) {
        say!("profiler: --fail-if {limit}: {reached}");
    }
    if reached.len() > TOLD {
        say!("profiler: --fail-if {limit}: and {} more", reached.len() - TOLD);
    }
    Ok(if reached.is_empty() { 0 } else { error::DIFFERENT })
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;
    use crate::{
        commands::replay::tests::record,
        model::kind::{ALLOC, CPU},
    };

    /// A recording of twenty seconds, in which the first of two functions has this share.
    fn recorded(path: &Path, share: f64, seed: u64) {
        let mut random = Rng::with_seed(seed);
        let mut one = || (7, if random.f64() < share { 1 } else { 2 }, 1, 0);
        let samples: Vec<_> = (0..2000).map(|_| one()).collect();
        record(path, &samples, &[]);
    }

    #[test]
    fn what_differs_is_an_exit_code() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let [normal, same, other] =
            [("a", 0.5, 1), ("b", 0.5, 2), ("c", 0.7, 3)].map(|(name, share, seed)| {
                recorded(&at(name), share, seed);
                at(name)
            });
        let args = |after: &Path, limit: &str| DiffArgs {
            before: normal.clone(),
            after: after.to_owned(),
            kinds: vec![CPU],
            fail_if: Some(limit.parse().unwrap()),
            outputs: Vec::new(),
            top: 3,
            json: false,
        };
        assert_eq!(diff(&args(&same, "0%")).unwrap(), 0);
        assert_eq!(diff(&args(&other, "+5%")).unwrap(), error::DIFFERENT);
        assert_eq!(diff(&args(&other, "-5%")).unwrap(), error::DIFFERENT, "the other function has shrunk");
        assert_eq!(diff(&args(&other, "+50%")).unwrap(), 0);
        assert_eq!(diff(&DiffArgs { fail_if: None, ..args(&other, "0%") }).unwrap(), 0);

        let svg: OutputSpec = at("x.svg").display().to_string().parse().unwrap();
        diff(&DiffArgs { outputs: vec![svg], json: true, ..args(&same, "0%") }).unwrap();
        assert!(std::fs::read_to_string(at("x.svg")).unwrap().contains("has grown (red)"));

        let code = |args: &DiffArgs| diff(args).unwrap_err().downcast::<Error>().unwrap().exit_code();
        assert_eq!(code(&DiffArgs { kinds: vec![ALLOC], ..args(&same, "0%") }), 7, "neither holds any");
        let folded: OutputSpec = at("x.folded").display().to_string().parse().unwrap();
        assert_eq!(code(&DiffArgs { outputs: vec![folded], ..args(&same, "0%") }), 2);
        record(&at("short"), &[(7, 1, 1, 0); 30], &[]);
        assert_eq!(code(&args(&at("short"), "5%")), 10, "what cannot be judged is no pass");
    }
}
