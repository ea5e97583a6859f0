//! Stacks by unwind tables: how many are complete, beside those by frame pointers; what one costs in the kernel; what
//! the tables cost; and whether `perf record --call-graph dwarf` finds the same ones.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{
    interrupt,
    programs::{self, Program},
    report::{Better, Report},
    spawn_quiet, wait, wait_for_file,
};
use crate::shell::{debian_packages, output, run as run_command, workspace};

#[derive(clap::Args)]
pub struct Args {
    /// Only these parts, instead of all
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Seconds of each run
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Shares of complete stacks
    Complete,
    /// Time per sample in the kernel
    Cost,
    /// Time and memory of the tables
    Tables,
    /// perf's stacks of the same program
    Perf,
}

const PACKAGES: &[&str] = &[
    "linux-perf",
    "gcc",
    "g++",
    "redis-server",
    "redis-tools",
    "postgresql",
    "nginx-light",
    "wrk",
    "python3",
    "libllvm15",
];
/// The outermost functions of processes and threads, and what is between them and their first own function:
/// further out than most walks by frame pointers ever get.
const STARTS: [&str; 8] = [
    "_start",
    "clone",
    "__clone",
    "clone3",
    "__clone3",
    "start_thread",
    "__libc_start_main",
    "__libc_start_call_main",
];

/// Starts a program.
type Start<'a> = Box<dyn Fn() -> Program + 'a>;

struct Bench<'a> {
    profiler: &'a Path,
    compiled: PathBuf,
    dir: tempfile::TempDir,
    args: &'a Args,
}

impl Args {
    /// As short as it tells anything: what a sample costs.
    pub fn quick() -> Args {
        Args { parts: vec![Part::Cost], seconds: 1 }
    }
}

pub fn run(args: &Args, profiler: &Path, report: &mut Report) -> Result<()> {
    debian_packages(PACKAGES)?;
    let bench =
        Bench { profiler, compiled: workspace().join("target/bench"), dir: tempfile::tempdir()?, args };
    let asked = |part| args.parts.is_empty() || args.parts.contains(&part);
    if asked(Part::Complete) {
        bench.complete(report)?;
    }
    if asked(Part::Cost) {
        bench.cost(report)?;
    }
    if asked(Part::Tables) {
        tables(report)?;
    }
    if asked(Part::Perf) {
        bench.perf(report)?;
    }
    Ok(())
}

fn percent(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

fn number(value: &Value, key: &str) -> Result<u64> {
    value[key].as_u64().with_context(|| format!("no {key} in the profile"))
}

fn list<'v>(value: &'v Value, key: &str) -> Result<&'v Vec<Value>> {
    value[key].as_array().with_context(|| format!("no {key} in the profile"))
}

/// A frame of a profile: its module's path, address and functions.
fn frame<'v>(profile: &'v Value, index: &Value) -> (&'v str, u64, &'v [Value]) {
    let frame = &profile["frames"][index.as_u64().unwrap_or_default() as usize];
    let module = &profile["modules"][frame["module"].as_u64().unwrap_or_default() as usize];
    let functions = frame["functions"].as_array().map(Vec::as_slice).unwrap_or_default();
    (module["path"].as_str().unwrap_or_default(), frame["address"].as_u64().unwrap_or_default(), functions)
}

/// The symbol of a frame: what all that is inlined there is inlined into.
fn symbol(functions: &[Value]) -> &str {
    functions.last().and_then(|function| function["name"].as_str()).unwrap_or_default()
}

impl Bench<'_> {
    /// Profiles a program for the given time.
    fn profile(&self, target: &[String], options: &[&str]) -> Result<Value> {
        let json = self.dir.path().join("x.json");
        let mut command = Command::new(self.profiler);
        command.args(["-q", "-d", &format!("{}s", self.args.seconds)]).args(options).args(target);
        wait(&spawn_quiet(command.arg("-o").arg(&json))?)?;
        Ok(serde_json::from_slice(&fs::read(json)?)?)
    }

    fn complete(&self, report: &mut Report) -> Result<()> {
        println!("\nuser stacks that end where their thread started, 499 Hz, %");
        println!(
            "{:<14} {:>9} {:>10} {:>15} {:>15}",
            "", "samples", "by tables", "before tables", "frame pointers"
        );
        let mut all_complete = true;
        for (name, start) in self.programs() {
            let program = start();
            let by_tables = self.profile(&program.target, &["-F", "499"])?;
            let by_frame_pointers =
                self.profile(&program.target, &["-F", "499", "--unwind", "frame-pointers"])?;
            drop(program);
            let ends = |end: &str| by_tables["user_stacks"][end].as_u64().unwrap_or_default();
            let all = number(&by_tables, "samples")? - ends("none");
            let complete = percent(ends("complete"), all - ends("frame_pointers"));
            all_complete &= complete >= 99.5;
            println!(
                "{name:<14} {all:>9} {complete:>10.2} {:>15.2} {:>15.2}",
                percent(ends("frame_pointers"), all),
                starts_share(&by_frame_pointers)?
            );
            for (end, count) in by_tables["user_stacks"].as_object().into_iter().flatten() {
                if !["complete", "frame_pointers", "none"].contains(&end.as_str()) && *count != 0 {
                    println!("{:<14} {count:>9} {end}", "");
                }
            }
        }
        report.goal("99.5 % of the stacks unwound by tables are complete", all_complete);
        Ok(())
    }

    fn programs(&self) -> Vec<(&'static str, Start<'_>)> {
        let compiled =
            |source, command| programs::running(&programs::compile(source, command, &self.compiled));
        vec![
            ("redis", Box::new(programs::redis)),
            ("PostgreSQL", Box::new(programs::postgres)),
            ("nginx", Box::new(programs::nginx)),
            ("python3", Box::new(programs::python)),
            ("Rust, rustc -O", Box::new(move || compiled("compiled.rs", programs::RUSTC))),
            ("C++, g++ -O2", Box::new(move || compiled("compiled.cc", programs::CXX))),
        ]
    }

    /// On each CPU a target, so that (nearly) every run of the program takes a sample.
    fn cost(&self, report: &mut Report) -> Result<()> {
        println!("\ntime per sample in the kernel, by the kernel's BPF statistics, us");
        println!(
            "{:<16} {:>6} {:>6} {:>9} {:>9} {:>14} {:>20}",
            "", "depth", "frames", "999 Hz", "99 Hz", "99 Hz, cold(*)", "runs that sampled, %"
        );
        let _statistics = Statistics::enable()?;
        let mut at_goal = None;
        for (how, frame_pointers) in
            [("tables", "-fomit-frame-pointer"), ("frame-pointers", "-fno-omit-frame-pointer")]
        {
            let flags = ["cc", "-O2", "-g", "-pthread", frame_pointers];
            let program = programs::compile("frames.c", &flags, &self.compiled);
            for depth in [10, 30, 100] {
                let cost = |frequency, megabytes: &str| {
                    self.cost_of(&program, how, depth, frequency, megabytes).context("measuring the cost")
                };
                let (often, seldom, cold) = (cost("999", "0")?, cost("99", "0")?, cost("99", "64")?);
                let least = often.sampled_percent.min(seldom.sampled_percent).min(cold.sampled_percent);
                println!(
                    "{how:<16} {depth:>6} {:>6} {:>9.2} {:>9.2} {:>14.2} {least:>20.0}",
                    often.frames, often.us, seldom.us, cold.us
                );
                for (rate, cost) in [("999 Hz", &often), ("99 Hz", &seldom), ("99 Hz, cold", &cold)] {
                    let who = if how == "tables" { "profiler" } else { "frame pointers by the kernel" };
                    let better = if how == "tables" { Better::Lower } else { Better::Peer };
                    report.figure(
                        format!("unwind/sample at depth {depth}, {rate}/{who}"),
                        "us",
                        better,
                        &[cost.us],
                    );
                }
                if how == "tables" && depth == 30 {
                    at_goal = Some(often);
                }
            }
        }
        println!(
            "(*) the target walks through 64 MB between samples. By frame pointers the C library's frames are"
        );
        println!(
            "    missing. All time is charged to the runs that sampled: with fewer than all, figures are high."
        );
        report.goal("at most 3 us at depth 30, 999 Hz", at_goal.is_some_and(|cost| cost.us <= 3.0));
        Ok(())
    }

    fn cost_of(
        &self,
        program: &Path,
        how: &str,
        depth: u32,
        frequency: &str,
        megabytes: &str,
    ) -> Result<Cost> {
        // `_start`, two of the C library's, `main`, and `spin` are there too.
        let arguments = [(depth - 5).to_string(), megabytes.to_owned()];
        let targets: Vec<Program> = (0..std::thread::available_parallelism()?.get())
            .map(|_| programs::start(Command::new(program).args(&arguments)))
            .collect();
        let mut command = Command::new(self.profiler);
        command.args(["-q", "-F", frequency, "--unwind", how]);
        targets.iter().for_each(|target| {
            command.args(&target.target);
        });
        let json = self.dir.path().join("x.json");
        let child = spawn_quiet(command.arg("-o").arg(&json))?;
        let start = Instant::now();
        while runs(&child)?.1 < 10 {
            if start.elapsed() > Duration::from_secs(30) {
                bail!("the profiler takes no samples");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let before = runs(&child)?;
        std::thread::sleep(Duration::from_secs(self.args.seconds));
        let after = runs(&child)?;
        interrupt(&child);
        wait(&child)?;
        let profile: Value = serde_json::from_slice(&fs::read(json)?)?;
        let mut frames = Vec::new();
        for stack in list(&profile, "stacks")? {
            let of_user =
                list(stack, "frames")?.iter().filter(|index| frame(&profile, index).0 != "[kernel]");
            frames.extend(std::iter::repeat_n(of_user.count(), number(stack, "samples")? as usize));
        }
        frames.sort_unstable();
        // Ticks that hit something else are runs too, but cheap ones: an average over all runs would make a sample
        // look the cheaper the busier the machine is with others.
        let sampled = (number(&profile, "samples_taken")? as f64 / after.1 as f64).min(1.0);
        Ok(Cost {
            us: (after.0 - before.0) as f64 / 1e3 / ((after.1 - before.1) as f64 * sampled),
            frames: frames.get(frames.len() / 2).copied().unwrap_or_default(),
            sampled_percent: 100.0 * sampled,
        })
    }
}

/// What a sample took.
struct Cost {
    us: f64,
    /// User frames of the median stack.
    frames: usize,
    sampled_percent: f64,
}

/// The share of stacks by frame pointers that reach the start of their thread, percent.
fn starts_share(profile: &Value) -> Result<f64> {
    let (mut all, mut reached) = (0, 0);
    for stack in list(profile, "stacks")? {
        let samples = number(stack, "samples")?;
        let outermost = list(stack, "frames")?.last().context("an empty stack")?;
        let (_, _, functions) = frame(profile, outermost);
        all += samples;
        reached += if STARTS.contains(&symbol(functions)) { samples } else { 0 };
    }
    Ok(percent(reached, all))
}

/// Nanoseconds and runs of the sampler, as the kernel counts them.
fn runs(profiler: &Child) -> Result<(u64, u64)> {
    for entry in fs::read_dir(format!("/proc/{}/fdinfo", profiler.id()))? {
        // A descriptor that has just been closed is none.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        let field = |name: &str| -> Option<u64> {
            text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
        };
        const PERF_EVENT: u64 = 7; // BPF_PROG_TYPE_PERF_EVENT
        if field("prog_type:") == Some(PERF_EVENT) {
            let (ns, count) = (field("run_time_ns:"), field("run_cnt:"));
            return ns.zip(count).context("no BPF statistics");
        }
    }
    Ok((0, 0))
}

/// The kernel's statistics of BPF programs, for as long as this lives.
struct Statistics {
    before: String,
}

impl Statistics {
    const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

    fn enable() -> Result<Statistics> {
        let before = fs::read_to_string(Self::SWITCH).context("BPF statistics")?;
        fs::write(Self::SWITCH, "1").context("BPF statistics")?;
        Ok(Statistics { before })
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        let _stay_enabled = fs::write(Self::SWITCH, &self.before);
    }
}

/// Builds the tables of large files, each in a process of its own.
fn tables(report: &mut Report) -> Result<()> {
    run_command(
        Command::new("cargo")
            .args(["build", "--release", "--package", "profiler", "--example", "unwind_table"])
            .current_dir(workspace()),
    )?;
    let build = |file: Option<&Path>| -> Result<(Vec<f64>, f64)> {
        let text = output(Command::new(workspace().join("target/release/examples/unwind_table")).args(file))?;
        let numbers =
            |line: &str| line.split_whitespace().map_while(|word| word.parse().ok()).collect::<Vec<f64>>();
        let row = text.lines().nth(1).map(numbers).unwrap_or_default();
        let peak =
            text.lines().last().and_then(|line| line.strip_prefix("peak memory: ")).unwrap_or_default();
        Ok((row, numbers(peak).first().context("the example prints its memory")? / 1024.0))
    };
    let (_, nothing_mb) = build(None)?;
    println!("\ntables of large files, each built by a process of its own");
    println!(
        "{:<10} {:>9} {:>9} {:>10} {:>10} {:>13} {:>8} {:>12}",
        "", "file, MB", "build, s", "functions", "table, MB", "peak RSS, MB", "rules", "unsupported"
    );
    let node = output(Command::new("sh").args(["-c", "realpath /usr/bin/node"])).ok().map(PathBuf::from);
    let llvm = fs::read_dir("/usr/lib/x86_64-linux-gnu")?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libLLVM")))
        .max();
    for (name, file) in [
        ("node", node),
        ("libLLVM", llvm),
        ("chromium", from_package("chromium", "usr/lib/chromium/chromium")),
        ("Firefox", from_package("firefox-esr", "usr/lib/firefox-esr/libxul.so")),
    ] {
        let Some(file) = file.filter(|file| file.exists()) else {
            println!("{name:<10} not installed");
            continue;
        };
        let (row, peak_mb) = build(Some(&file))?;
        let [ms, functions, _rows, _pages, kib, rules, unsupported, ..] = row[..] else {
            bail!("no table of {}", file.display());
        };
        println!(
            "{name:<10} {:>9.0} {:>9.2} {functions:>10} {:>10.1} {:>13.1} {rules:>8} {unsupported:>12}",
            fs::metadata(&file)?.len() as f64 / 1e6,
            ms / 1e3,
            kib / 1024.0,
            peak_mb - nothing_mb
        );
        if name == "node" {
            report.goal(
                "node's tables are built within 1 s and 64 MB",
                ms <= 1000.0 && peak_mb - nothing_mb <= 64.0,
            );
        }
    }
    Ok(())
}

/// A file out of one of Debian's packages, which is not installed.
fn from_package(package: &str, path: &str) -> Option<PathBuf> {
    let dir = workspace().join("target/bench").join(package);
    let file = dir.join(path);
    if !file.exists() {
        fs::create_dir_all(&dir).ok()?;
        let script = format!("apt-get download -qq {package} && dpkg-deb -x {package}_*.deb . && rm *.deb");
        run_command(Command::new("sh").args(["-c", &script]).current_dir(&dir)).ok()?;
    }
    Some(file)
}

/// Samples by stack: functions, innermost first.
type Stacks = BTreeMap<Vec<String>, u64>;

impl Bench<'_> {
    fn perf(&self, report: &mut Report) -> Result<()> {
        // Symbols only: perf and the profiler differ in how they name what debug information describes.
        let plain = ["g++", "-O2", "-pthread", "-fomit-frame-pointer"];
        let cpp = programs::compile("compiled.cc", &plain, &self.compiled);
        let starts: [(&str, Start<'_>); 2] =
            [("C++", Box::new(move || programs::running(&cpp))), ("redis", Box::new(programs::redis))];
        for (name, start) in starts {
            let program = start();
            let again = || ours(&self.profile(&program.target, &["-F", "499"])?);
            let (first, second) = (again()?, again()?);
            println!("\n{name}: user stacks, as functions");
            // Stacks that are rare are not in both of two runs of the same profiler either.
            let expected = shared_percent(&first, &second);
            println!("{expected:.1} % of our samples have a stack of a second run's of ours");
            for dump in ["8192", "65528"] {
                let perfs = self.perf_stacks(&program, dump)?;
                println!("perf record --call-graph dwarf,{dump}");
                compare("ours, not perf's", &first, &perfs);
                compare("perf's, not ours", &perfs, &first);
                report.goal(
                    format!("{name}: as alike as two runs of ours, within 3 points"),
                    shared_percent(&first, &perfs) >= expected - 3.0,
                );
            }
        }
        Ok(())
    }

    /// What perf makes of the program.
    fn perf_stacks(&self, program: &Program, dump: &str) -> Result<Stacks> {
        let data = self.dir.path().join("perf.data");
        let mut record = Command::new("perf");
        record.args(["record", "-e", "cpu-clock", "-F", "499", "--call-graph", &format!("dwarf,{dump}")]);
        let record = spawn_quiet(record.args(["-p", &program.pid(), "-o"]).arg(&data))?;
        wait_for_file(&data)?;
        std::thread::sleep(Duration::from_secs(self.args.seconds));
        interrupt(&record);
        wait(&record)?;
        let text = output(
            Command::new("perf").args(["script", "--no-inline", "-F", "ip,sym,dso", "-i"]).arg(&data),
        )?;
        fs::remove_file(&data)?;
        let mut stacks = Stacks::new();
        for sample in text.split("\n\n") {
            let functions: Vec<String> = sample.lines().filter_map(perf_function).collect();
            if !functions.is_empty() {
                *stacks.entry(functions).or_default() += 1;
            }
        }
        Ok(stacks)
    }
}

/// `ADDRESS SYMBOL (FILE)`; `None` for the kernel's.
fn perf_function(line: &str) -> Option<String> {
    let (address, rest) = line.trim().split_once(' ')?;
    let (symbol, file) = rest.rsplit_once(" (")?;
    let user = u64::from_str_radix(address, 16).ok()? < 1 << 63;
    let known = symbol != "[unknown]";
    user.then(|| if known { plain(symbol) } else { unnamed(file.trim_end_matches(')')) })
}

fn ours(profile: &Value) -> Result<Stacks> {
    let mut stacks = Stacks::new();
    for stack in list(profile, "stacks")? {
        let frames = list(stack, "frames")?.iter().map(|index| frame(profile, index));
        let functions: Vec<String> = frames
            .filter(|(path, ..)| *path != "[kernel]")
            .map(|(path, _, functions)| match symbol(functions) {
                unknown if unknown.starts_with('[') => unnamed(path),
                known => plain(known),
            })
            .collect();
        *stacks.entry(functions).or_default() += number(stack, "samples")?;
    }
    stacks.remove(&Vec::new());
    Ok(stacks)
}

/// Code without a symbol.
fn unnamed(file: &str) -> String {
    format!("[{}]", file.rsplit('/').next().unwrap_or(file).trim_matches(['[', ']']))
}

/// A name without what is not the same everywhere: parameters, template arguments, versions, the parts that the
/// compiler makes of a function, and which of its many names the C library's function is called by.
fn plain(name: &str) -> String {
    let name = name.replace("(anonymous namespace)", "{anonymous}");
    let end = name.find(['(', '<', '@', '.', '[']).filter(|&end| end > 0).unwrap_or(name.len());
    let name = name[..end].rsplit(' ').next().unwrap_or_default().trim_start_matches('_');
    let name = name.strip_prefix("GI_").unwrap_or(name).trim_start_matches('_');
    let name = name.strip_prefix("libc_").unwrap_or(name);
    match name.strip_suffix("_impl").unwrap_or(name) {
        "cfree" => "free",
        name => name,
    }
    .to_owned()
}

/// The share of samples in `these` whose stack is in `those`.
fn shared_percent(these: &Stacks, those: &Stacks) -> f64 {
    let shared = these.iter().filter(|(stack, _)| those.contains_key(*stack)).map(|(_, samples)| samples);
    percent(shared.sum(), these.values().sum())
}

/// How much of `these` is in `those`, and why the rest is not.
fn compare(what: &str, these: &Stacks, those: &Stacks) {
    let all: u64 = these.values().sum();
    println!(
        "{what}: {all} samples, {} stacks; {:.1} % of the samples have a stack of the other's",
        these.len(),
        shared_percent(these, those)
    );
    let callers = |stack: &[String]| stack.get(1..).map(<[String]>::to_vec);
    let known_callers: BTreeSet<_> = those.keys().filter_map(|stack| callers(stack)).collect();
    let mut reasons: HashMap<&str, (u64, BTreeMap<u64, &Vec<String>>)> = HashMap::new();
    for (stack, &samples) in these.iter().filter(|(stack, _)| !those.contains_key(*stack)) {
        let reason = if those.keys().any(|other| other.starts_with(stack)) {
            "cut off: the other's goes on"
        } else if those.keys().any(|other| stack.starts_with(other)) {
            "goes on where the other's is cut off"
        } else if callers(stack).is_some_and(|callers| known_callers.contains(&callers)) {
            "differs in the innermost function only"
        } else if those.keys().any(|other| other.ends_with(&stack[stack.len().saturating_sub(3)..])) {
            "ends like some of the other's"
        } else {
            "ends like none of the other's"
        };
        let (count, examples) = reasons.entry(reason).or_default();
        *count += samples;
        examples.insert(samples, stack);
    }
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
    for (reason, (count, examples)) in reasons {
        println!("  {:>5.1} %  {reason}", percent(count, all));
        for (samples, stack) in examples.iter().rev().take(3) {
            let from = stack.len().saturating_sub(8);
            let more = if from > 0 { format!("{from} more < ") } else { String::new() };
            println!("           {samples:>5}  {more}{}", stack[from..].join(" < "));
        }
    }
}
