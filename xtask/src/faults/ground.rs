//! What each fault is tried on: a program that notices damage, and a run of the profiler that is looked at from outside.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _},
    os::{
        fd::AsRawFd as _,
        unix::{fs::FileExt as _, process::ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::shell::run;

/// How long anything may take that is over in a moment where all is well.
const PATIENCE: Duration = Duration::from_secs(60);

/// The programs, and a folder for each fault.
pub struct Ground {
    profiler: PathBuf,
    steady: PathBuf,
    dir: tempfile::TempDir,
}

impl Ground {
    /// `steady` is the compiled workload.
    pub fn new(profiler: &Path, steady: &Path) -> Result<Ground> {
        let dir = tempfile::Builder::new().prefix("faults-").tempdir()?;
        Ok(Ground { profiler: profiler.to_owned(), steady: steady.to_owned(), dir })
    }

    /// The folder that the profiler runs in, for outputs and what must be kept.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A file or folder in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// The program that notices damage, in one of its ways.
    pub fn steady(&self, args: &[&str]) -> Result<Target> {
        Target::start(Command::new(&self.steady).args(args))
    }

    /// The same, started by a program that takes a command, such as `unshare` or `chroot`.
    pub fn steady_under(&self, starter: &[&str], args: &[&str]) -> Result<Target> {
        let steady = self.steady.to_string_lossy();
        Target::under(&[starter, &[&*steady], args].concat())
    }

    /// The path of that program.
    pub fn steady_path(&self) -> &Path {
        &self.steady
    }

    /// The profiler with `args`.
    pub fn profiler(&self, args: &[&str]) -> Command {
        self.under(&[], args)
    }

    /// The same, started by a program that takes a command.
    pub fn under(&self, starter: &[&str], args: &[&str]) -> Command {
        let mut words = starter.iter().map(Path::new).chain([&*self.profiler]);
        let mut command = Command::new(words.next().unwrap_or(&self.profiler));
        command.args(words).args(args).env("TMPDIR", self.dir()).current_dir(self.dir());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// A program that is profiled.
pub struct Target {
    child: Child,
    pid: u32,
}

impl Target {
    /// Starts it and waits until it has begun.
    fn start(command: &mut Command) -> Result<Target> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no pipe")?).read_line(&mut line)?;
        ensure!(line.trim() == "ready", "the target says {line:?}");
        // A starter may have forked: the target is the last one of the line.
        let mut pid = child.id();
        while let Some(next) =
            fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?.split_whitespace().next()
        {
            pid = next.parse()?;
        }
        Ok(Target { child, pid })
    }

    /// Starts a program by a command of any kind that becomes it.
    pub fn under(words: &[&str]) -> Result<Target> {
        let [program, rest @ ..] = words else { bail!("no command") };
        Target::start(Command::new(program).args(rest))
    }

    /// Its process id in our PID namespace.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The same as an argument.
    pub fn arg(&self) -> String {
        self.pid.to_string()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: plain system call; the process has not been waited for.
        unsafe { libc::kill(self.pid as i32, signal) };
    }

    /// It still runs, its code is what its files hold, and it ends by itself without having noticed anything.
    pub fn assert_undamaged(mut self) -> Result<()> {
        ensure!(self.child.try_wait()?.is_none(), "the target has ended");
        code_is_of_files(self.pid)?;
        self.signal(libc::SIGTERM);
        let status = wait(&mut self.child)?;
        ensure!(status.success(), "the target has noticed something: {status}");
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.signal(libc::SIGKILL);
            let _ended = self.child.kill();
            let _gone = self.child.wait();
        }
    }
}

/// No breakpoint is left in the code of a process: it is what the files hold that it is mapped from.
fn code_is_of_files(pid: u32) -> Result<()> {
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut compared = 0;
    for line in fs::read_to_string(format!("/proc/{pid}/maps"))?.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [range, protection, offset, _, _, path] = words[..] else { continue };
        let (Some((start, end)), true) = (range.split_once('-'), protection.starts_with("r-x")) else {
            continue;
        };
        // The path of a process with a root of its own is told as we see it.
        let file = File::open(path).or_else(|_| File::open(format!("/proc/{pid}/root{path}")));
        let Ok(file) = file else { continue };
        let [start, end, offset] =
            [start, end, offset].map(|number| u64::from_str_radix(number, 16).unwrap_or_default());
        let (mut mapped, mut held) = (vec![0; (end - start) as usize], Vec::new());
        memory.read_exact_at(&mut mapped, start)?;
        let mut file = file;
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(offset))?;
        file.take(end - start).read_to_end(&mut held)?;
        ensure!(mapped[..held.len()] == held[..], "the code of {path} has been changed");
        compared += 1;
    }
    ensure!(compared > 0, "the target's code could not be read");
    Ok(())
}

/// What a run of the profiler came to.
pub struct Outcome {
    pub status: ExitStatus,
    /// Its report.
    pub report: String,
    /// What it said on standard error.
    pub said: String,
    /// The most memory that it had, bytes.
    pub peak_rss: u64,
}

impl Outcome {
    /// Its exit code; none after a signal.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Ended with `code`.
    pub fn expect(self, code: i32) -> Result<Outcome> {
        ensure!(
            self.code() == Some(code),
            "{} and not exit code {code}: {}",
            self.status,
            self.said.trim().lines().last().unwrap_or("nothing said")
        );
        Ok(self)
    }

    /// Ended with `code`, and one line says why.
    pub fn expect_cause(self, code: i32, cause: &str) -> Result<Outcome> {
        let outcome = self.expect(code)?;
        let lines = outcome.said.lines().filter(|line| line.contains(cause)).count();
        ensure!(lines == 1, "{lines} lines say {cause:?}: {}", outcome.said);
        Ok(outcome)
    }
}

/// Runs the profiler to its end.
pub fn outcome(command: &mut Command) -> Result<Outcome> {
    Run::start(command)?.end()
}

/// The profiler at work.
pub struct Run {
    child: Child,
    readers: Vec<std::thread::JoinHandle<String>>,
    live: std::sync::mpsc::Receiver<String>,
}

impl Run {
    /// Starts it.
    pub fn start(command: &mut Command) -> Result<Run> {
        let mut child = command.spawn().with_context(|| format!("starting {:?}", command.get_program()))?;
        let (tell, live) = std::sync::mpsc::channel();
        let (out, err) = (child.stdout.take().context("no pipe")?, child.stderr.take().context("no pipe")?);
        let read = |from: Box<dyn std::io::Read + Send>, tell: Option<std::sync::mpsc::Sender<String>>| {
            std::thread::spawn(move || {
                let (mut from, mut text) = (BufReader::new(from), Vec::new());
                let mut line_begins = 0;
                while from.read_until(b'\n', &mut text).is_ok_and(|read| read > 0) {
                    if let Some(tell) = &tell {
                        let _nobody_waits = tell.send(String::from_utf8_lossy(&text[line_begins..]).into());
                    }
                    line_begins = text.len();
                }
                String::from_utf8_lossy(&text).into_owned()
            })
        };
        let readers = vec![read(Box::new(out), None), read(Box::new(err), Some(tell))];
        Ok(Run { child, readers, live })
    }

    /// Waits for the first line of the live view: sampling has begun. (Or the first line of anything.)
    pub fn begun(&self) -> Result<()> {
        self.live.recv_timeout(PATIENCE).map(drop).context("the profiler does not begin")
    }

    /// Waits until the live view has named the function that works, and has told some samples (40 % of a CPU, over 0.2 s: 8).
    ///
    /// Where other programs have the CPUs, the first lines may tell that nothing has run yet.
    pub fn seen_at_work(&self) -> Result<()> {
        let (mut named, mut of_one_cpu) = (false, 0.0);
        while !named || of_one_cpu < 40.0 {
            let line = self.live.recv_timeout(PATIENCE).context("the target is not seen at work")?;
            named |= line.contains("steady_work");
            let busy = line.split_once(" % of one CPU").and_then(|(before, _)| before.rsplit(' ').next());
            of_one_cpu += busy.and_then(|busy| busy.parse::<f64>().ok()).unwrap_or_default();
        }
        Ok(())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: plain system call; the child has not been waited for.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// Waits for its end.
    pub fn end(mut self) -> Result<Outcome> {
        let peak = |pid: u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
            line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
        };
        let (mut peak_rss, started) = (0, Instant::now());
        let status = loop {
            note_programs(self.child.id());
            peak_rss = peak_rss.max(peak(self.child.id()).unwrap_or_default() * 1024);
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if started.elapsed() > PATIENCE {
                self.child.kill()?;
                self.child.wait()?;
                bail!("the profiler does not end");
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let mut texts = self.readers.drain(..).map(|reader| reader.join().unwrap_or_default());
        let (report, said) = (texts.next().unwrap_or_default(), texts.next().unwrap_or_default());
        Ok(Outcome { status, report, said, peak_rss })
    }
}

/// Waits for the end of a child.
fn wait(child: &mut Child) -> Result<ExitStatus> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        ensure!(started.elapsed() < PATIENCE, "it does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// An output in JSON.
pub fn json(path: &Path) -> Result<Value> {
    serde_json::from_slice(&fs::read(path)?).with_context(|| path.display().to_string())
}

/// A number in it.
pub fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_default()
}

/// Ids of BPF programs that runs of the profiler held, as far as they have been seen.
static LOADED: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// Notes which BPF programs a process holds, and its children.
fn note_programs(pid: u32) {
    let read = |name: String| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    for descriptor in descriptors {
        let text = fs::read_to_string(descriptor.path()).unwrap_or_default();
        let id = text.lines().find_map(|line| line.strip_prefix("prog_id:")).map(|id| id.trim().parse());
        if let (Some(Ok(id)), Ok(mut loaded)) = (id, LOADED.lock()) {
            loaded.insert(id);
        }
    }
    for child in read(format!("task/{pid}/children")).split_whitespace() {
        child.parse().map(note_programs).unwrap_or_default();
    }
}

/// Ids of all BPF programs in the kernel.
fn bpf_programs() -> Result<BTreeSet<u32>> {
    /// From linux/bpf.h.
    const BPF_PROG_GET_NEXT_ID: i64 = 11;
    let (mut ids, mut attr) = (BTreeSet::new(), [0u32; 32]);
    loop {
        // SAFETY: `attr` is larger than what this command reads and writes: the id to start after, and the next one.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_PROG_GET_NEXT_ID, attr.as_mut_ptr(), size_of_val(&attr))
        };
        if result != 0 {
            let error = std::io::Error::last_os_error();
            ensure!(error.raw_os_error() == Some(libc::ENOENT), "listing BPF programs: {error}");
            return Ok(ids);
        }
        ids.insert(attr[1]);
        attr[0] = attr[1];
    }
}

/// Nothing is left in the kernel of what runs had loaded; there was something. (The kernel frees programs a moment after
/// their end.) Returns how many there were.
pub fn assert_nothing_left() -> Result<usize> {
    let loaded = LOADED.lock().map(|mut loaded| std::mem::take(&mut *loaded)).unwrap_or_default();
    let started = Instant::now();
    loop {
        let left = bpf_programs()?.intersection(&loaded).count();
        if left == 0 {
            return Ok(loaded.len());
        }
        ensure!(started.elapsed() < Duration::from_secs(20), "{left} BPF programs are left");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A file system of its own, that ends with this.
pub struct Mount(PathBuf);

impl Mount {
    /// Memory of `size` at `dir`.
    pub fn tmpfs(dir: PathBuf, size: &str) -> Result<Mount> {
        fs::create_dir(&dir)?;
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(&dir))?;
        Ok(Mount(dir))
    }

    /// An ext4 file system in a file.
    pub fn ext4(dir: PathBuf) -> Result<Mount> {
        let image = dir.with_extension("img");
        File::create(&image)?.set_len(32 << 20)?;
        fs::create_dir(&dir)?;
        run(Command::new("mkfs.ext4").arg("-q").arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).args([&image, &dir]))?;
        Ok(Mount(dir))
    }

    /// Nobody can write to it.
    pub fn read_only(&self) -> Result<()> {
        run(Command::new("mount").args(["-o", "remount,ro"]).arg(&self.0))
    }

    /// Writers wait from now on (FIFREEZE), or go on (FITHAW).
    pub fn frozen(&self, frozen: bool) -> Result<()> {
        const FIFREEZE: u64 = 0xc004_5877;
        const FITHAW: u64 = 0xc004_5878;
        let file = File::open(&self.0)?;
        // SAFETY: takes no argument.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), if frozen { FIFREEZE } else { FITHAW }, 0) };
        ensure!(result == 0, "freezing: {}", std::io::Error::last_os_error());
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _thawed = self.frozen(false);
        let _unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A cgroup of version 1 of its own, that ends with this.
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// None where there is no such hierarchy.
    pub fn new(controller: &str) -> Result<Option<Cgroup>> {
        let root = Path::new("/sys/fs/cgroup").join(controller);
        if !root.is_dir() {
            return Ok(None);
        }
        let dir = root.join(format!("profiler-faults-{}", std::process::id()));
        fs::create_dir(&dir)?;
        Ok(Some(Cgroup(dir)))
    }

    /// Writes to one of its files.
    pub fn set(&self, file: &str, value: &str) -> Result<()> {
        fs::write(self.0.join(file), value).with_context(|| format!("{file} = {value}"))
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.0
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let started = Instant::now();
        while fs::remove_dir(&self.0).is_err() && started.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Whether a signal ended it.
pub fn killed(status: ExitStatus) -> bool {
    status.signal().is_some()
}
