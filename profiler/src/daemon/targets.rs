//! Which processes belong to which target, found in /proc at the beginning of each window.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use super::config::TargetConfig;

/// At most so many processes are watched at a time; further ones are counted.
pub const MAX_PROCESSES: usize = 4096;

/// What is known of a process from outside.
#[derive(Clone, Debug, Default)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Name.
    pub comm: Vec<u8>,
    /// Path of the executable, as the process sees it.
    pub exe: PathBuf,
    /// Paths of its cgroups, a line each.
    pub cgroup: Vec<u8>,
    /// Arguments, each ended by a zero byte.
    pub arguments: Vec<u8>,
}

/// The processes of each target, in the order of `targets`, and how many have no room. A process belongs to the first target
/// that it fits.
pub fn assign(
    targets: &[TargetConfig],
    processes: impl Iterator<Item = Process>,
) -> (Vec<BTreeSet<u32>>, usize) {
    let mut found = vec![BTreeSet::new(); targets.len()];
    let mut count = 0usize;
    for process in processes {
        if let Some(target) = targets.iter().position(|target| fits(target, &process)) {
            if count < MAX_PROCESSES {
                found[target].insert(process.pid);
            }
            count += 1;
        }
    }
    (found, count.saturating_sub(MAX_PROCESSES))
}

/// That processes have no room, in words.
pub fn left_out_words(left_out: usize) -> String {
    format!("{left_out} processes of targets are not watched: there is room for {MAX_PROCESSES}")
}

/// Whether a process is as a target describes it.
fn fits(target: &TargetConfig, process: &Process) -> bool {
    let TargetConfig { name: _, comm, exe, cgroup, unit, container, argument } = target;
    // The kernel keeps 15 bytes of a name.
    let comm = comm.as_ref().is_none_or(|comm| {
        let comm = comm.as_bytes();
        process.comm == comm[..comm.len().min(15)]
    });
    let exe = exe.as_ref().is_none_or(|exe| process.exe == *exe);
    let part = |text: &str| contains(&process.cgroup, text.as_bytes());
    let cgroup = cgroup.as_ref().is_none_or(|text| part(text));
    let unit = unit.as_ref().is_none_or(|unit| {
        let whole = unit.rsplit_once('.').map_or_else(|| format!("{unit}.service"), |_| unit.clone());
        process.cgroup.split(|&byte| byte == b'/' || byte == b'\n').any(|name| name == whole.as_bytes())
    });
    let container = container.as_ref().is_none_or(|id| id.len() >= 6 && part(id));
    let argument = argument.as_ref().is_none_or(|word| {
        process.arguments.split(|&byte| byte == 0).any(|argument| argument == word.as_bytes())
    });
    comm && exe && cgroup && unit && container && argument
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    !part.is_empty() && text.windows(part.len()).any(|window| window == part)
}

/// All processes that are not threads of the kernel; but for the profiler itself.
pub fn running(proc_root: &Path) -> impl Iterator<Item = Process> {
    let own = std::process::id();
    let root = proc_root.to_owned();
    let pids = fs::read_dir(proc_root).into_iter().flatten();
    let pids = pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(move |&pid| pid != own).filter_map(move |pid| {
        let dir = root.join(pid.to_string());
        // A kernel thread has none.
        let exe = fs::read_link(dir.join("exe")).ok()?;
        let read = |name: &str| fs::read(dir.join(name)).unwrap_or_default();
        let mut comm = read("comm");
        if comm.last() == Some(&b'\n') {
            comm.pop();
        }
        let exe = match exe.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
            Some(path) => PathBuf::from(std::ffi::OsStr::from_bytes(path)),
            None => exe,
        };
        Some(Process { pid, comm, exe, cgroup: read("cgroup"), arguments: read("cmdline") })
    })
}

/// How long a process has lived, s; `None` if it is gone.
pub fn age_s(proc_root: &Path, pid: u32) -> Option<f64> {
    let stat = fs::read(proc_root.join(pid.to_string()).join("stat")).ok()?;
    let uptime = crate::text::read_to_parse(&proc_root.join("uptime")).ok()?;
    let up_s: f64 = uptime.split(' ').next()?.parse().ok()?;
    // The name may hold anything, parentheses too; the start is the 20th field after it (proc_pid_stat(5)).
    let after = &stat[stat.iter().rposition(|&byte| byte == b')')? + 1..];
    let field = after.split(|&byte| byte == b' ').filter(|field| !field.is_empty()).nth(19)?;
    let ticks: f64 = std::str::from_utf8(field).ok()?.trim().parse().ok()?;
    // SAFETY: sysconf reads a number.
    let hz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    Some((up_s - ticks / hz).max(0.0))
}

/// Open descriptors of a process, and how many there may be.
pub fn descriptors(proc_root: &Path, pid: u32) -> Option<(u64, u64)> {
    let dir = proc_root.join(pid.to_string());
    // From Linux 6.2 on the size of this folder is the number of descriptors; before, it is zero.
    let size = fs::metadata(dir.join("fd")).ok()?.len();
    let open = if size > 0 { size } else { fs::read_dir(dir.join("fd")).ok()?.take(1 << 20).count() as u64 };
    let limits = crate::text::read_to_parse(&dir.join("limits")).ok()?;
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    let most = line["Max open files".len()..].split_whitespace().next()?.parse().unwrap_or(u64::MAX);
    Some((open, most))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, comm: &str, cgroup: &str) -> Process {
        Process {
            pid,
            comm: comm.into(),
            exe: format!("/usr/bin/{comm}").into(),
            cgroup: cgroup.into(),
            arguments: format!("{comm}\0/srv/{pid}.js\0").into(),
        }
    }

    fn target() -> TargetConfig {
        TargetConfig { name: "x".into(), ..TargetConfig::default() }
    }

    #[test]
    fn processes_belong_to_the_first_target_that_they_fit() {
        let service = "0::/system.slice/redis-server.service\n";
        let container = "0::/system.slice/docker-0123456789abcdef.scope\n";
        let all = || {
            let list = [
                process(1, "node", "0::/\n"),
                process(2, "node", container),
                process(3, "redis-server", service),
                process(4, "a-very-long-nam", "0::/\n"),
                process(5, "sh", "0::/system.slice/redis-server.service.d\n"),
            ];
            list.into_iter()
        };
        let of =
            |target: TargetConfig| assign(&[target], all()).0.remove(0).into_iter().collect::<Vec<u32>>();
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(of(TargetConfig { comm: text("node"), ..target() }), [1, 2]);
        assert_eq!(of(TargetConfig { comm: text("a-very-long-name"), ..target() }), [4]);
        assert_eq!(of(TargetConfig { unit: text("redis-server"), ..target() }), [3]);
        assert_eq!(of(TargetConfig { unit: text("redis-server.service"), ..target() }), [3]);
        assert_eq!(of(TargetConfig { container: text("0123456789"), ..target() }), [2]);
        assert_eq!(
            of(TargetConfig { container: text("01"), ..target() }),
            Vec::<u32>::new(),
            "too short to mean one"
        );
        assert_eq!(of(TargetConfig { argument: text("/srv/1.js"), comm: text("node"), ..target() }), [1]);
        assert_eq!(of(TargetConfig { exe: Some("/usr/bin/sh".into()), ..target() }), [5]);
        let both =
            [TargetConfig { comm: text("node"), ..target() }, TargetConfig { cgroup: text("/"), ..target() }];
        let (found, left_out) = assign(&both, all());
        assert_eq!((found[0].len(), found[1].len(), left_out), (2, 3, 0));
    }

    #[test]
    fn processes_without_room_are_counted() {
        let many = (1..).map(|pid| process(pid, "node", "0::/\n")).take(MAX_PROCESSES + 3);
        let others = [process(u32::MAX, "sh", "0::/\n")].into_iter();
        let (found, left_out) =
            assign(&[TargetConfig { comm: Some("node".into()), ..target() }], many.chain(others));
        assert_eq!((found[0].len(), left_out), (MAX_PROCESSES, 3));
    }

    #[test]
    fn this_process_has_an_age_and_descriptors() {
        let proc_root = Path::new("/proc");
        assert!(age_s(proc_root, std::process::id()).is_some_and(|age| age < 1e6));
        let (open, most) = descriptors(proc_root, std::process::id()).unwrap();
        assert!(open > 2 && open < most);
        assert_eq!(age_s(proc_root, u32::MAX), None);
        assert!(running(proc_root).all(|process| process.pid != std::process::id()));
    }
}
