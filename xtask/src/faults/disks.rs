//! Places to write to that fail.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};

use super::{
    Fault, Seen,
    ground::{Ground, Mount, Run, json, number, outcome},
};

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "disk full",
        promise: "exit code 6, the file and the cause in one line; the report and the other outputs are written; \
                  no half of a file is left; everything measured is kept as a recording under $TMPDIR",
        full: false,
        happen: full,
    },
    Fault {
        name: "disk full, $TMPDIR too",
        promise: "exit code 6; the report reaches the terminal; one line says that nothing else was kept",
        full: false,
        happen: full_everywhere,
    },
    Fault {
        name: "disk read-only",
        promise: "exit code 6 with the cause, before anything is attached",
        full: false,
        happen: read_only,
    },
    Fault {
        name: "disk stands still for 3 s while a recording is written",
        promise: "the run waits; the recording is whole, and what the kernel could not hand over is counted",
        full: false,
        happen: slow,
    },
    Fault {
        name: "output folder removed during the run",
        promise: "exit code 6, the file and the cause in one line; everything else is written",
        full: false,
        happen: removed,
    },
];

fn full(ground: &Ground, _full: bool) -> Result<Seen> {
    let _disk = Mount::tmpfs(ground.path("full"), "64k")?;
    fill(ground, "full")?;
    let target = ground.steady(&[])?;
    let args = ["--pid", &target.arg(), "-q", "-d1s", "-o", "full/x.json", "-o", "fine.folded"];
    let outcome =
        outcome(&mut ground.profiler(&args))?.expect_cause(6, "cannot write full/x.json: No space")?;
    ensure!(outcome.report.contains("steady"), "no report");
    ensure!(fs::metadata(ground.path("fine.folded"))?.len() > 0, "the other output is empty");
    let left: Vec<_> = fs::read_dir(ground.path("full"))?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(left == ["filler"], "left on the full disk: {left:?}");
    let kept = outcome.said.split_once("everything that was measured is in ").map(|(_, rest)| rest);
    let kept = kept.and_then(|rest| rest.split([';', '\n']).next()).unwrap_or_default();
    let replayed = self::outcome(&mut ground.profiler(&["replay", kept]))?.expect(0)?;
    ensure!(replayed.report.contains("steady"), "what was kept shows nothing");
    target.assert_undamaged()?;
    Ok(Seen::Held("code 6, the rest written, the kept recording replays".into()))
}

fn full_everywhere(ground: &Ground, _full: bool) -> Result<Seen> {
    let _disk = Mount::tmpfs(ground.path("full"), "64k")?;
    fill(ground, "full")?;
    let target = ground.steady(&[])?;
    let args = ["--pid", &target.arg(), "-q", "-d1s", "-o", "full/x.json"];
    let mut command = ground.profiler(&args);
    let outcome = outcome(command.env("TMPDIR", ground.path("full")))?;
    let outcome = outcome.expect_cause(6, "cannot write full/x.json: No space")?;
    ensure!(outcome.report.contains("steady"), "no report");
    ensure!(!outcome.said.contains("everything that was measured is in"), "{}", outcome.said);
    target.assert_undamaged()?;
    Ok(Seen::Held("code 6, the report is printed".into()))
}

/// Leaves no room on a disk.
fn fill(ground: &Ground, disk: &str) -> Result<()> {
    let _full = fs::write(ground.path(disk).join("filler"), vec![1; 1 << 20]);
    ensure!(fs::write(ground.path(disk).join("x"), [1; 4096]).is_err(), "the disk is not full");
    Ok(fs::remove_file(ground.path(disk).join("x"))?)
}

fn read_only(ground: &Ground, _full: bool) -> Result<Seen> {
    let disk = Mount::tmpfs(ground.path("ro"), "64k")?;
    disk.read_only()?;
    let target = ground.steady(&[])?;
    let args = ["--pid", &target.arg(), "-q", "-d1s", "-o", "ro/x.json"];
    let outcome = outcome(&mut ground.profiler(&args))?.expect_cause(6, "cannot write ro/x.json: ")?;
    ensure!(outcome.report.is_empty(), "it has profiled");
    target.assert_undamaged()?;
    Ok(Seen::Held("code 6 at once".into()))
}

fn slow(ground: &Ground, _full: bool) -> Result<Seen> {
    let disk = match Mount::ext4(ground.path("slow")) {
        Ok(disk) => disk,
        Err(why) => return Ok(Seen::NotHere(format!("no file system in a file: {why:#}"))),
    };
    let target = ground.steady(&[])?;
    let args = ["--pid", &target.arg(), "-d6s", "-i100ms", "-o", "slow/x.prec", "-o", "x.json"];
    let run = Run::start(&mut ground.profiler(&args))?;
    run.begun()?;
    disk.frozen(true)?;
    std::thread::sleep(Duration::from_secs(3));
    disk.frozen(false)?;
    run.end()?.expect(0)?;
    target.assert_undamaged()?;
    let told = json(&ground.path("x.json"))?;
    let replay = ["replay", "slow/x.prec", "-o", "replayed.json"];
    outcome(&mut ground.profiler(&replay))?.expect(0)?;
    let replayed = json(&ground.path("replayed.json"))?;
    let [taken, samples, lost] = ["samples_taken", "samples", "samples_lost"].map(|key| number(&told, key));
    ensure!(samples > 0 && taken == samples + lost, "{taken} taken, {samples} here, {lost} lost");
    ensure!(number(&replayed, "samples") == samples, "the recording holds {}", number(&replayed, "samples"));
    Ok(Seen::Held(format!("{taken} samples taken, {samples} in the recording, {lost} counted as lost")))
}

fn removed(ground: &Ground, _full: bool) -> Result<Seen> {
    fs::create_dir(ground.path("going"))?;
    let target = ground.steady(&[])?;
    let args = ["--pid", &target.arg(), "-d2s", "-i200ms", "-o", "going/x.json", "-o", "fine.folded"];
    let run = Run::start(&mut ground.profiler(&args))?;
    run.begun()?;
    fs::remove_dir_all(ground.path("going"))?;
    let outcome = run.end()?.expect_cause(6, "cannot write going/x.json: ")?;
    ensure!(outcome.report.contains("steady"), "no report");
    ensure!(fs::metadata(ground.path("fine.folded"))?.len() > 0, "the other output is empty");
    target.assert_undamaged()?;
    Ok(Seen::Held("code 6, the rest written".into()))
}
