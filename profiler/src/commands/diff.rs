//! `profiler diff`: what memory was allocated between two recordings and not freed.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
};

use anyhow::Result;

use crate::{
    cli::DiffArgs,
    detect::{memory_diff, rule::Overrides},
    error::Error,
    model::report::Run,
    output::{self, results::style},
    recording::load::load,
};

/// Says what has changed between two snapshots or recordings.
pub fn diff(args: &DiffArgs) -> Result<()> {
    let load = |path: &PathBuf| -> Result<Run> {
        let run = load(path, &Overrides::default())?.run;
        if run.memory.as_ref().is_none_or(|memory| memory.sites.is_empty()) {
            let reason = "it holds no allocations (--alloc full watches them from the start)".to_owned();
            return Err(Error::BadRecording { path: path.clone(), reason }.into());
        }
        Ok(run)
    };
    let found = memory_diff::diff(&load(&args.before)?, &load(&args.after)?);
    let mut text = Vec::new();
    if args.json {
        output::diff::write_json(&found, &mut text)?;
    } else {
        let style = style(io::stdout().is_terminal(), false, args.top.into());
        output::diff::write(&found, &style, &mut text)?;
    }
    let mut out = io::stdout().lock();
    out.write_all(&text)?;
    Ok(out.flush()?)
}
