//! What can go wrong around a run, made to go wrong: each row of [`FAULTS`] says what is promised then, and tries it.
//!
//! After each one the target must go on undamaged, with the code that its files hold, and nothing of the profiler may be
//! left in the kernel.

use std::{fmt::Write as _, fs, path::PathBuf, process::Command, time::Instant};

use anyhow::{Context as _, Result, bail};

use crate::shell::{debian_packages, output, run as run_command, workspace};

use ground::{Ground, assert_nothing_left};

mod crowds;
mod disks;
mod ground;
mod kernel;
mod targets;

/// Options of `cargo xtask faults`.
#[derive(clap::Args)]
pub struct Args {
    /// Only faults whose name contains one of these
    only: Vec<String>,
    /// Also what takes long, and what the whole machine notices: its clock is set, a CPU is taken away
    #[arg(long)]
    full: bool,
    /// This build of the profiler instead of one that is built now
    #[arg(long, value_name = "FILE")]
    profiler: Option<PathBuf>,
    /// Write what was seen to docs/limits.md
    #[arg(long)]
    write: bool,
}

/// Something that goes wrong.
struct Fault {
    /// What happens.
    name: &'static str,
    /// What a user may rely on then.
    promise: &'static str,
    /// Only with `--full`.
    full: bool,
    /// Makes it happen, checks the promise, and says what was seen; fails with why the promise does not hold.
    happen: fn(&Ground, full: bool) -> Result<Seen>,
}

/// How a fault was tried.
enum Seen {
    /// The promise held; in words.
    Held(String),
    /// It cannot be tried here: why.
    NotHere(String),
}

/// All faults, in the order of the table in docs/limits.md.
const FAULTS: &[&[Fault]] = &[disks::FAULTS, kernel::FAULTS, targets::FAULTS, crowds::FAULTS];

/// Tries them.
pub fn run(args: &Args) -> Result<()> {
    debian_packages(&["gcc", "libc6-dev", "strace", "e2fsprogs", "util-linux", "mount"])?;
    let profiler = match &args.profiler {
        Some(built) => fs::canonicalize(built).with_context(|| built.display().to_string())?,
        None => {
            let workspace = workspace();
            let build = ["build", "--profile", "ci", "--package", "profiler"];
            run_command(Command::new(env!("CARGO")).args(build).current_dir(&workspace))?;
            workspace.join("target/ci/profiler")
        }
    };
    let built = tempfile::tempdir()?;
    let steady = built.path().join("steady");
    let source = workspace().join("tests/workloads/steady.c");
    run_command(Command::new("cc").args(["-O2", "-g", "-pthread"]).arg(source).arg("-o").arg(&steady))?;

    let (mut table, mut failed) = (String::new(), 0);
    for fault in FAULTS.iter().copied().flatten() {
        let wanted = args.only.is_empty() || args.only.iter().any(|part| fault.name.contains(part.as_str()));
        if !wanted || fault.full && !args.full {
            continue;
        }
        let began = Instant::now();
        let seen = Ground::new(&profiler, &steady)
            .and_then(|ground| (fault.happen)(&ground, args.full))
            .and_then(|seen| assert_nothing_left().map(|_| seen));
        let took = began.elapsed().as_secs_f64();
        let seen = match seen {
            Ok(Seen::Held(seen)) => {
                println!("ok       {} ({took:.1} s): {seen}", fault.name);
                seen
            }
            Ok(Seen::NotHere(why)) => {
                println!("not here {}: {why}", fault.name);
                format!("not tried: {why}")
            }
            Err(error) => {
                failed += 1;
                println!("FAILED   {} ({took:.1} s): {error:#}", fault.name);
                format!("**not kept**: {error:#}")
            }
        };
        writeln!(table, "| {} | {} | {} |", fault.name, fault.promise, seen.replace(['|', '\n'], " "))?;
    }
    if args.write {
        write(&table)?;
    }
    if failed > 0 {
        bail!("{failed} promises are not kept");
    }
    Ok(())
}

/// Puts the table into docs/limits.md, between its marks.
fn write(table: &str) -> Result<()> {
    const BEGIN: &str = "<!-- faults -->\n";
    const END: &str = "<!-- end of faults -->";
    let path = workspace().join("docs/limits.md");
    let text = fs::read_to_string(&path)?;
    let (Some((head, _)), Some((_, tail))) = (text.split_once(BEGIN), text.split_once(END)) else {
        bail!("{} has no marks for the table", path.display());
    };
    let kernel = output(Command::new("uname").arg("-r"))?;
    let words = format!("Linux {kernel}.\n\n| fault | promised | seen |\n| --- | --- | --- |\n{table}");
    Ok(fs::write(&path, format!("{head}{BEGIN}{words}{END}{tail}"))?)
}
