//! Nothing that was measured is lost, whatever becomes of the outputs, the terminal or the target.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        process::{CommandExt as _, ExitStatusExt as _},
    },
    path::Path,
    process::{Child, Command, Stdio},
};

use flate2::read::GzDecoder;

use common::{FRAME_POINTERS, PROFILER, Running, kernel_ready, workload};

const NOBODY: u32 = 65534;

/// A program that computes until it is dropped.
fn busy() -> Running {
    Running::start(Command::new(workload("split", FRAME_POINTERS)).arg("60").stdout(Stdio::null()))
}

/// The profiler on a process, with `args`, its live view on, and results kept in `dir` where they must be.
fn profiling(pid: &str, args: &[&str], dir: &Path) -> Command {
    let mut command = Command::new(PROFILER);
    command.args(["--pid", pid, "-i200ms", "-F", "499"]).args(args).env("TMPDIR", dir).current_dir(dir);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Waits until the live view has told of 40 samples, and of the function that the program is in most: enough for a report.
/// How many an interval has depends on how much the program gets of CPUs that other tests use as well.
fn begun(child: &mut Child) -> BufReader<std::process::ChildStderr> {
    let mut live = BufReader::new(child.stderr.take().unwrap());
    // A whole CPU over one interval is 100 samples.
    let mut of_one_cpu = 0.0;
    let mut named = false;
    while !named || of_one_cpu < 40.0 {
        let mut line = String::new();
        assert!(live.read_line(&mut line).unwrap() > 0, "the profiler has ended");
        named |= line.contains("work_sixty");
        let busy = line.split_once(" % of one CPU").and_then(|(before, _)| before.rsplit(' ').next());
        of_one_cpu += busy.map_or(0.0, |busy| busy.parse::<f64>().unwrap());
    }
    live
}

fn signal(child: &Child, signal: i32) {
    // SAFETY: sends a signal to a child that has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Lines of folded stacks, without their order.
fn stacks(folded: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = folded.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
fn each_output_fails_alone_and_what_was_measured_is_kept() {
    if !kernel_ready(&[]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (target, dir) = (busy(), dir.path());
    symlink("/dev/full", dir.join("full.svg")).unwrap();
    fs::create_dir(dir.join("going")).unwrap();
    let args = ["-o", "full.svg", "-o", "going/x.json", "-o", "fine.folded"];
    let mut run = profiling(&target.pid(), &args, dir).spawn().unwrap();
    let mut said = begun(&mut run);
    fs::remove_dir_all(dir.join("going")).unwrap();
    signal(&run, libc::SIGINT);
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(6), "{rest}");
    assert!(text(&output.stdout).contains("work_sixty"), "the report reaches the terminal");
    assert!(rest.contains("cannot write full.svg: No space left on device"), "{rest}");
    assert!(rest.contains("cannot write going/x.json: "), "{rest}");
    let fine = fs::read_to_string(dir.join("fine.folded")).unwrap();

    let kept =
        rest.lines().find_map(|line| line.split_once("everything that was measured is in ")).unwrap().1;
    let kept = kept.split(';').next().unwrap();
    assert_eq!(fs::metadata(kept).unwrap().permissions().mode() & 0o777, 0o600);
    let replayed = Command::new(PROFILER).args(["replay", kept, "-o", "-"]).output().unwrap();
    assert_eq!(replayed.status.code(), Some(0));
    assert_eq!(stacks(&text(&replayed.stdout)), stacks(&fine), "the kept recording is the run");
    let left = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(left.into_iter().all(|name| !name.to_str().unwrap().starts_with(".profiler-")));
}

#[test]
fn a_recording_on_a_full_disk_costs_that_recording_only() {
    if !kernel_ready(&[]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (target, dir) = (busy(), dir.path());
    symlink("/dev/full", dir.join("full.prec")).unwrap();
    let args = ["-q", "-d", "1s", "-o", "full.prec", "-o", "fine.prec"];
    let output = profiling(&target.pid(), &args, dir).output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(6), "{said}");
    assert!(said.contains("cannot write full.prec: No space left on device"), "{said}");
    assert!(said.contains("everything that was measured is in fine.prec;"), "{said}");
    assert!(text(&output.stdout).contains("work_sixty"));
    let replayed = Command::new(PROFILER).args(["replay", "fine.prec"]).current_dir(dir).output().unwrap();
    assert!(text(&replayed.stdout).contains("work_sixty"));
}

#[test]
fn a_command_keeps_its_output_and_its_exit_code() {
    if !kernel_ready(&[]) {
        return;
    }
    let run = |script: &str| {
        Command::new(PROFILER).args(["-q", "--", "sh", "-c", script]).stdin(Stdio::null()).output().unwrap()
    };
    let output = run("echo its own; exit 7");
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(7), "its own\n".into()));
    let said = text(&output.stderr);
    assert!(said.contains("the command ended with exit code 7"), "{said}");
    assert!(said.contains(": sh") || said.contains("(sh)"), "the report is on stderr: {said}");
    // How long it was held until the probes were attached is none of its time.
    assert!(
        !said.contains("pipe/IPC") && !said.contains("unknown 9") && !said.contains("profiler (pid"),
        "{said}"
    );
    let dir = tempfile::tempdir().unwrap();
    let slept = Command::new(PROFILER)
        .args(["-q", "-o", "x.json", "--", "sleep", "0.2"])
        .current_dir(&dir)
        .output()
        .unwrap();
    assert!(slept.status.success(), "{slept:?}");
    let profile: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(dir.path().join("x.json")).unwrap()).unwrap();
    let slept = &profile["blocking"]["threads"][0];
    assert!(slept["wall_ns"].as_u64().unwrap() <= profile["duration_ns"].as_u64().unwrap(), "{slept}");
    assert_eq!(slept["blocked_ns"]["pipe"], serde_json::Value::Null, "{slept}");
    assert_eq!(run("kill -9 $$").status.code(), Some(128 + 9));
    assert_eq!(run("true").status.code(), Some(0));
    let failed = Command::new(PROFILER)
        .args(["-q", "-o", "/dev/null/x.svg", "--", "sh", "-c", "exit 7"])
        .output()
        .unwrap();
    assert_eq!(failed.status.code(), Some(6), "a failure of the profiler is told first");
}

#[test]
fn every_way_to_end_a_run_writes_its_results() {
    if !kernel_ready(&[]) {
        return;
    }
    for ending in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let dir = tempfile::tempdir().unwrap();
        let target = busy();
        let mut run = profiling(&target.pid(), &["-o", "x.folded"], dir.path()).spawn().unwrap();
        let said = begun(&mut run);
        drop(said); // the terminal is gone, as far as stderr tells
        signal(&run, ending);
        let output = run.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "signal {ending}");
        let report = text(&output.stdout);
        assert!(report.contains("work_sixty"), "signal {ending}: {report}");
        assert!(fs::read_to_string(dir.path().join("x.folded")).unwrap().contains("work_sixty"));
    }
}

#[test]
fn a_run_outlives_its_live_view_and_its_terminal() {
    if !kernel_ready(&[]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let target = busy();
    let mut run = profiling(&target.pid(), &["-d", "2s"], dir.path()).spawn().unwrap();
    drop(begun(&mut run));
    drop(run.stdout.take());
    // Neither stdout nor stderr has a reader: `profiler … | head` is no failure.
    assert_eq!(run.wait().unwrap().code(), Some(0));

    // A terminal that answers with an error is one: what was measured is kept.
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = profiling(&target.pid(), &["-d", "1s"], dir.path());
    assert_eq!(command.stdout(full()).stderr(full()).status().unwrap().code(), Some(6));
    let kept: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [kept] = &kept[..] else { panic!("{kept:?}") };
    let replayed = Command::new(PROFILER).arg("replay").arg(kept).output().unwrap();
    assert!(text(&replayed.stdout).contains("work_sixty"));
}

/// Ends a run whose report is never read, by so many signals after the first one or after its own end.
fn ends_at_once(args: &[&str], signals: usize) {
    if !kernel_ready(&[]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let target = busy();
    // Nobody reads stdout, and it is full: the report waits for ever.
    let (mut reader, mut full) = std::io::pipe().unwrap();
    full.write_all(&vec![b'x'; 64 * 1024]).unwrap();
    let args = [&["-o", "x.folded", "-o", "x.prec"], args].concat();
    let mut command = profiling(&target.pid(), &args, dir.path());
    let mut run = command.stdout(full).spawn().unwrap();
    drop(command);
    let mut said = begun(&mut run);
    if !args.contains(&"-d") {
        signal(&run, libc::SIGINT);
    }
    // The report comes last.
    common::programs::wait_until("the outputs", || dir.path().join("x.folded").exists());
    common::programs::wait_until("the report", || {
        let call = fs::read_to_string(format!("/proc/{}/syscall", run.id())).unwrap_or_default();
        call.starts_with(&format!("{} 0x1 ", libc::SYS_write))
    });
    for n in 1..=signals {
        assert!(run.try_wait().unwrap().is_none());
        signal(&run, libc::SIGINT);
        if n < signals {
            // It says that it goes on.
            let mut line = String::new();
            while !line.contains("once more") {
                line.clear();
                assert_ne!(said.read_line(&mut line).unwrap(), 0);
            }
        }
    }
    assert_eq!(run.wait().unwrap().code(), Some(128 + libc::SIGINT));
    let mut all = Vec::new();
    reader.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), 64 * 1024);
    let mut names: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["x.folded", "x.prec"], "outputs whole or absent");
}

#[test]
fn a_second_signal_ends_the_profiler_at_once() {
    ends_at_once(&[], 1);
}

/// Whoever presses Ctrl-C just when the time is over loses nothing.
#[test]
fn a_run_that_has_ended_by_itself_is_not_given_up_by_its_first_signal() {
    ends_at_once(&["-d", "2s"], 2);
}

#[test]
fn a_killed_profiler_loses_an_interval_and_leaves_nothing_else() {
    if !kernel_ready(&[]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let target = busy();
    let args = ["-o", "x.prec", "-o", "x.svg"];
    let mut run = profiling(&target.pid(), &args, dir.path()).spawn().unwrap();
    let mut said = begun(&mut run);
    for _ in 0..5 {
        said.read_line(&mut String::new()).unwrap();
    }
    let tasks = fs::read_dir(format!("/proc/{}/task", run.id())).unwrap().map(Result::unwrap);
    let names = tasks.map(|task| fs::read_to_string(task.path().join("comm")).unwrap());
    assert!(names.into_iter().any(|name| name == "sync\n"), "what is recorded is put on the disk beside");
    signal(&run, libc::SIGKILL);
    assert_eq!(run.wait().unwrap().signal(), Some(libc::SIGKILL));
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["x.prec"]);
    let replayed =
        Command::new(PROFILER).args(["replay", "x.prec", "-o", "-"]).current_dir(&dir).output().unwrap();
    let said = text(&replayed.stderr);
    assert_eq!(replayed.status.code(), Some(8), "{said}");
    assert!(said.starts_with("profiler: x.prec was cut off: it holds "), "{said}");
    let samples: u64 = text(&replayed.stdout)
        .lines()
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert!(samples > 0, "{said}");
    assert!(text(&replayed.stdout).contains("work_sixty"), "it names functions: {}", text(&replayed.stdout));
    assert!(said.contains(&format!("of the run and {samples} CPU samples")), "{samples}: {said}");
}

#[test]
fn a_run_gives_up_the_rights_that_it_no_longer_needs() {
    /// CAP_DAC_OVERRIDE, DAC_READ_SEARCH, IPC_LOCK, SYS_PTRACE, SYS_RESOURCE, SYSLOG, PERFMON, BPF, CHECKPOINT_RESTORE.
    const NEEDED: [u32; 9] = [1, 2, 14, 19, 24, 34, 38, 39, 40];
    if !kernel_ready(&[]) {
        return;
    }
    let mut needed = NEEDED.iter().fold(0u64, |set, bit| set | 1 << bit);
    // Kernels of some distributions know a 3, and then want CAP_SYS_ADMIN for perf events.
    let paranoid = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap();
    if paranoid.trim().parse::<i32>().unwrap() > 2 {
        needed |= 1 << 21;
    }
    let dir = tempfile::tempdir().unwrap();
    let target = busy();
    let mut run = profiling(&target.pid(), &["--alloc", "full"], dir.path()).spawn().unwrap();
    let mut live = begun(&mut run);
    for thread in fs::read_dir(format!("/proc/{}/task", run.id())).unwrap() {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        for set in ["CapEff:", "CapPrm:", "CapBnd:", "CapInh:", "CapAmb:"] {
            let rights = status.lines().find_map(|line| line.strip_prefix(set)).unwrap().trim();
            let rights = u64::from_str_radix(rights, 16).unwrap();
            assert_eq!(rights & !needed, 0, "{set} {rights:x}: {status}");
        }
    }
    signal(&run, libc::SIGINT);
    live.read_to_string(&mut String::new()).unwrap();
    assert!(run.wait().unwrap().success());
}

/// A copy of the profiler that anyone may run, in a folder that anyone may write to.
fn for_everybody() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::copy(PROFILER, dir.path().join("profiler")).unwrap();
    dir
}

#[test]
fn without_rights_the_first_line_says_so() {
    if !kernel_ready(&[]) {
        return;
    }
    let dir = for_everybody();
    let output = Command::new(dir.path().join("profiler"))
        .args(["--pid", &std::process::id().to_string(), "-d", "1s", "--syscalls"])
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4));
    let said = text(&output.stderr);
    assert!(said.starts_with("profiler: missing rights to profile: run as root"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn nobody_else_leads_an_output_elsewhere() {
    if !kernel_ready(&[]) {
        return;
    }
    let (dir, precious) = (for_everybody(), tempfile::NamedTempFile::new().unwrap());
    fs::write(precious.path(), "precious").unwrap();
    let target = busy();
    for name in ["x.svg", "x.prec"] {
        let link = dir.path().join(name);
        symlink(precious.path(), &link).unwrap();
        std::os::unix::fs::lchown(&link, Some(NOBODY), Some(NOBODY)).unwrap();
        let output = profiling(&target.pid(), &["-q", "-d", "1s", "-o", name], dir.path()).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(6), "{said}");
        assert!(said.contains("user 65534 has put it there"), "{said}");
        assert_eq!(fs::read_to_string(precious.path()).unwrap(), "precious");
        // The user's own link stays a link, and what it points to is written.
        std::os::unix::fs::lchown(&link, Some(0), Some(0)).unwrap();
        let output = profiling(&target.pid(), &["-q", "-d", "1s", "-o", name], dir.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_ne!(fs::read(precious.path()).unwrap(), b"precious");
        fs::write(precious.path(), "precious").unwrap();
    }
}

/// The texts of a pprof profile: its field 6, repeated
/// (<https://github.com/google/pprof/blob/main/proto/profile.proto>).
fn strings(mut profile: &[u8]) -> Vec<String> {
    fn number(of: &mut &[u8]) -> usize {
        let bytes = of.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
        let (number, rest) = of.split_at(bytes);
        *of = rest;
        number.iter().rev().fold(0, |sum, byte| sum << 7 | usize::from(byte & 0x7f))
    }
    let mut strings = Vec::new();
    while !profile.is_empty() {
        let tag = number(&mut profile);
        let value = number(&mut profile);
        if tag & 7 == 2 {
            let (bytes, rest) = profile.split_at(value);
            profile = rest;
            strings.extend((tag >> 3 == 6).then(|| text(bytes)));
        }
    }
    strings
}

#[test]
fn names_of_the_target_steer_no_output() {
    if !kernel_ready(&[]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let target = Running::start(&mut Command::new(workload("names", FRAME_POINTERS)));
    let outputs = ["x.folded", "x.svg", "x.json", "x.html", "x.pb.gz", "x.prec"];
    let args: Vec<&str> = ["-d", "1s", "--threads"]
        .into_iter()
        .chain(outputs.iter().flat_map(|output| ["-o", output]))
        .collect();
    let output = profiling(&target.pid(), &args, dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    let replayed =
        Command::new(PROFILER).args(["replay", "x.prec"]).current_dir(dir.path()).output().unwrap();
    let mut pprof = Vec::new();
    GzDecoder::new(fs::File::open(dir.path().join("x.pb.gz")).unwrap()).read_to_end(&mut pprof).unwrap();
    let texts = [
        text(&output.stdout),
        text(&output.stderr),
        text(&replayed.stdout),
        read("x.html"),
        strings(&pprof).join("\n"),
        read("x.folded"),
        read("x.svg"),
        read("x.json"),
    ];
    for text in &texts {
        let steers = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
        assert!(!text.contains(steers), "{:?}", text.find(steers).map(|at| &text[at..]).unwrap_or_default());
    }
    // Each is in one piece: no name ends a line, a frame or an element.
    let [report, .., html, pprof, folded, svg, json] = &texts[..] else { panic!("eight texts") };
    assert!(html.contains("&lt;&amp;") && !html.contains("<z>"), "the page is well-formed");
    assert!(pprof.lines().any(|name| name == "line1\u{fffd}line2 7"), "{pprof}");
    assert!(report.contains("line1\u{fffd}line2 7"), "{report}");
    assert!(folded.lines().all(|line| line.rsplit(' ').next().unwrap().parse::<u64>().is_ok()), "{folded}");
    assert!(svg.contains("&lt;&amp;") && !svg.contains("<z>"), "the picture is well-formed");
    assert!(serde_json::from_str::<serde_json::Value>(json).is_ok());
}
