//! Loads the kernel programs and attaches what a run needs. Nothing is pinned: when the agent ends, however it
//! ends, the kernel closes its descriptors and with them every probe.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    sync::Mutex,
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, CgroupArray, HashMap, Map, MapData, PerCpuArray, ProgramArray, RingBuf},
    programs::{
        FEntry, FExit, PerfEvent, Program, RawTracePoint,
        fexit::FExitLinkId,
        perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent},
        raw_trace_point::RawTracePointLinkId,
    },
    util::online_cpus,
};
use profiler_common::{
    COMM_LEN,
    cost::{Probe, ProbeCost},
    loss::{Loss, Tally},
    offsets::{self, Group},
    target::{INIT_PIDNS_INUM, TargetMode, cell_of},
};

use crate::{
    error::Error,
    kernel::{
        btf,
        costs::{Costs, cost_in},
        port::{Event, Hook, Port},
        preflight,
        unwind::UnwindMaps,
        uprobe,
    },
    process::target::Target,
};

#[cfg(target_arch = "x86_64")]
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/profiler.x86_64.o");
#[cfg(target_arch = "aarch64")]
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/profiler.aarch64.o");

/// Ring buffer per CPU, bytes: half a second of the deepest stacks at the default frequency.
const RING_BYTES_PER_CPU: u32 = 128 * 1024;
const RING_BYTES_MAX: u32 = 16 * 1024 * 1024;

/// What probes ask of the kernel object before it is loaded.
#[derive(Debug, Default)]
pub struct Plan {
    globals: BTreeMap<&'static str, Vec<u8>>,
    map_sizes: BTreeMap<&'static str, u32>,
    offsets: Vec<&'static Group>,
    programs: Vec<&'static str>,
    more_records: bool,
}

impl Plan {
    /// Sets a global of the kernel programs.
    pub fn global<T: Pod>(&mut self, name: &'static str, value: T) {
        // SAFETY: a Pod type has no padding and no invalid bytes, and the value lives until the copy is made.
        let bytes = unsafe { std::slice::from_raw_parts((&raw const value).cast::<u8>(), size_of::<T>()) };
        self.globals.insert(name, bytes.to_vec());
    }

    /// Sets globals to where members of kernel structures are.
    pub fn offsets(&mut self, groups: &[&'static Group]) {
        self.offsets.extend(groups);
    }

    /// Sets how many entries a map has.
    pub fn map_size(&mut self, map: &'static str, entries: u32) {
        self.map_sizes.insert(map, entries);
    }

    /// How many entries a map is to have, if it is not to have its usual size.
    pub fn size_of(&self, map: &str) -> Option<u32> {
        self.map_sizes.get(map).copied()
    }

    /// Programs that will be attached and that take the kernel a while to verify, longest first.
    pub fn programs(&mut self, programs: &[&'static str]) {
        self.programs.extend(programs);
    }

    /// There will be several times more records than samples.
    pub fn needs_more_records(&mut self) {
        self.more_records = true;
    }
}

/// The loaded kernel programs and their maps.
pub struct Kernel {
    /// `None` once detached.
    ebpf: Option<Ebpf>,
    records: RingBuf<MapData>,
    targets: HashMap<MapData, u32, u32>,
    target_cells: Array<MapData, u64>,
    stacks_sent: HashMap<MapData, u64, u32>,
    counters: PerCpuArray<MapData, u64>,
    costs: PerCpuArray<MapData, ProbeCost>,
    unwind: Option<UnwindMaps>,
    uprobes: uprobe::Unloaded,
    /// Programs on tracepoints, by name.
    tracepoints: BTreeMap<String, RawTracePointLinkId>,
    /// Programs on functions that return, by name.
    returns: BTreeMap<String, FExitLinkId>,
    only: u32,
    /// Globals for members that this kernel's structures have.
    members: Vec<&'static str>,
}

impl Kernel {
    /// Loads the programs for `target`. Nothing is attached yet.
    pub fn load(target: &Target, kernel_log: bool, plan: &Plan) -> Result<Kernel> {
        let pidns = own_pid_namespace()?;
        let mode = match target {
            Target::Pids { .. } | Target::Comm(_) => TargetMode::Pids,
            Target::All => TargetMode::All,
            Target::Cgroup(_) => TargetMode::Cgroup,
        } as u32;
        let comm = match target {
            Target::Comm(name) => comm_bytes(name),
            _ => [0; COMM_LEN],
        };
        let cpus = cpus()?.len() as u32;
        let per_cpu = if plan.more_records { RING_BYTES_PER_CPU * 4 } else { RING_BYTES_PER_CPU };
        let ring_bytes = (per_cpu * cpus).next_power_of_two().min(RING_BYTES_MAX);
        let wakeup_bytes = u64::from(ring_bytes / 2);

        // Spares all other processes a look into the set of targets.
        let only = target.only_pid().filter(|_| pidns == INIT_PIDNS_INUM).unwrap_or(0);

        let mut loader = EbpfLoader::new();
        // None of the programs needs kernel types at load time; parsing them would cost more than all the rest.
        loader.btf(None);
        loader
            .override_global("TARGET_MODE", &mode, true)
            .override_global("TARGET_COMM", &comm, true)
            .override_global("PIDNS_INUM", &pidns, true)
            .override_global("WAKEUP_BYTES", &wakeup_bytes, true)
            .override_global("ONLY_TGID", &only, true)
            .map_max_entries("RECORDS", ring_bytes);
        // Where nobody looks into the set the cells need no memory.
        if mode != TargetMode::Pids as u32 || only != 0 {
            loader.map_max_entries("TARGET_CELL", 1);
        }
        let mut groups = plan.offsets.clone();
        groups.push(&offsets::THREAD_POINTER);
        if pidns != INIT_PIDNS_INUM || target.follows() {
            groups.push(&offsets::IDS);
        }
        let offsets = look_up(&groups)?;
        for (name, offset) in &offsets {
            loader.override_global(name, offset, true);
        }
        for (name, bytes) in &plan.globals {
            loader.override_global(name, &bytes[..], true);
        }
        for (map, &entries) in &plan.map_sizes {
            loader.map_max_entries(map, entries);
        }
        let log_level = if kernel_log { log::LevelFilter::Trace as u8 } else { 0 };
        loader.override_global("AYA_LOG_LEVEL", &log_level, false);

        let mut ebpf = loader.load(OBJECT).map_err(explain_load)?;
        if let Target::Cgroup(path) = target {
            let cgroups = ebpf.map_mut("CGROUPS").context("kernel object has no map CGROUPS")?;
            CgroupArray::try_from(cgroups)?.set(0, fs::File::open(path)?, 0)?;
        }
        load_at_once(&mut ebpf, &plan.programs);
        let uprobes = uprobe::Unloaded::of(&ebpf);
        let unwind_maps = UnwindMaps::take(&mut ebpf)?;
        let mut take =
            |name: &str| ebpf.take_map(name).with_context(|| format!("kernel object has no map {name}"));
        Ok(Kernel {
            records: RingBuf::try_from(take("RECORDS")?)?,
            targets: HashMap::try_from(take("TARGETS")?)?,
            target_cells: Array::try_from(take("TARGET_CELL")?)?,
            stacks_sent: HashMap::try_from(take("STACKS_SENT")?)?,
            counters: PerCpuArray::try_from(take("COUNTERS")?)?,
            costs: PerCpuArray::try_from(take("COSTS")?)?,
            unwind: Some(unwind_maps),
            uprobes,
            tracepoints: BTreeMap::new(),
            returns: BTreeMap::new(),
            only,
            members: offsets.into_iter().map(|(global, _)| global).collect(),
            ebpf: Some(ebpf),
        })
    }

    /// Hands out a map, once.
    pub fn take_map(&mut self, name: &str) -> Result<Map> {
        let map = self.ebpf.as_mut().and_then(|ebpf| ebpf.take_map(name));
        map.with_context(|| format!("kernel object has no map {name}"))
    }

    /// A map that stays here.
    pub fn map_mut(&mut self, name: &str) -> Result<&mut Map> {
        let map = self.ebpf.as_mut().and_then(|ebpf| ebpf.map_mut(name));
        map.with_context(|| format!("kernel object has no map {name}"))
    }

    /// The only target where there is only one and ids need no translation; zero otherwise.
    pub fn only_target(&self) -> u32 {
        self.only
    }

    /// Whether this kernel's structures have these members, of those that the plan asked for.
    pub fn has(&self, group: &Group) -> bool {
        group.offsets.iter().all(|offset| self.members.contains(&offset.global))
    }

    /// Starts printing what the kernel programs log, on a task of its own.
    pub fn start_log(&mut self) -> Result<()> {
        let logger = aya_log::EbpfLogger::init(self.ebpf.as_mut().context("already detached")?)?;
        let interest = tokio::io::Interest::READABLE;
        // SAFETY: the logger keeps its one descriptor for as long as it lives.
        let mut logger = unsafe { tokio::io::unix::AsyncFd::register_with_interest(logger, interest) }?;
        tokio::spawn(async move {
            while let Ok(mut guard) = logger.readable_mut().await {
                guard.get_inner_mut().flush();
                guard.clear_ready();
            }
        });
        Ok(())
    }

    /// Hands out the maps of the unwind tables, once.
    pub fn take_unwind_maps(&mut self) -> Result<UnwindMaps> {
        self.unwind.take().context("the unwind maps have been taken")
    }

    /// Runs a program at each `period`th event of every CPU.
    fn sample(&mut self, name: &str, event: SoftwareEvent, period: u64) -> Result<()> {
        let program: &mut PerfEvent = program(self.ebpf.as_mut(), name)?;
        if program.fd().is_err() {
            program.load().map_err(explain_program)?;
        }
        for cpu in cpus()? {
            program
                .attach(
                    PerfEventConfig::Software(event),
                    PerfEventScope::AllProcessesOneCpu { cpu },
                    SamplePolicy::Period(period),
                    false,
                )
                .map_err(explain_program)?;
        }
        Ok(())
    }

    /// Keeps the set of targets up to date where `target` asks for it, and that of processes with unwind tables.
    pub fn attach_target_hooks(&mut self, target: &Target, by_tables: bool) -> Result<()> {
        if by_tables {
            self.attach_raw("forget_exec", "sched_process_exec")?;
        }
        if target.follows() {
            self.attach_raw("follow_fork", "sched_process_fork")?;
        }
        if matches!(target, Target::Comm(_)) {
            self.attach_raw("match_exec", "sched_process_exec")?;
        }
        Ok(())
    }

    fn attach_raw(&mut self, program_name: &str, tracepoint: &str) -> Result<()> {
        let program: &mut RawTracePoint = program(self.ebpf.as_mut(), program_name)?;
        // It is loaded already where it was planned, or has been paused.
        if program.fd().is_err() {
            program.load().map_err(explain_program)?;
        }
        let link = program.attach(tracepoint).map_err(explain_program)?;
        self.tracepoints.insert(program_name.to_owned(), link);
        Ok(())
    }

    fn attach_functions(&mut self, hooks: &[(&str, &str)]) -> Result<()> {
        let btf = aya::Btf::from_sys_fs().context("reading the kernel's types")?;
        for (name, function) in hooks {
            let program: &mut FEntry = program(self.ebpf.as_mut(), name)?;
            program.load(function, &btf).map_err(explain_program)?;
            program.attach().map_err(explain_program)?;
        }
        Ok(())
    }

    fn attach_returns(&mut self, hooks: &[(&str, &str)]) -> Result<()> {
        let btf = aya::Btf::from_sys_fs().context("reading the kernel's types")?;
        for (name, function) in hooks {
            let program: &mut FExit = program(self.ebpf.as_mut(), name)?;
            // It stays loaded while it is paused.
            if program.fd().is_err() {
                program.load(function, &btf).map_err(explain_program)?;
            }
            let link = program.attach().map_err(explain_program)?;
            self.returns.insert((*name).to_owned(), link);
        }
        Ok(())
    }

    fn add_tail_call(&mut self, program_name: &str, map: &str, index: u32) -> Result<()> {
        let step: &mut RawTracePoint = program(self.ebpf.as_mut(), program_name)?;
        if step.fd().is_err() {
            step.load().map_err(explain_program)?;
        }
        let step = step.fd()?.try_clone()?;
        Ok(ProgramArray::try_from(self.map_mut(map)?)?.set(index, &step, 0)?)
    }

    fn counter(&self, index: u32) -> u64 {
        self.counters.get(&index, 0).map_or(0, |per_cpu| per_cpu.iter().sum())
    }

    /// Becomes readable when the kernel has more records than it should keep waiting.
    pub fn records_fd(&self) -> io::Result<OwnedFd> {
        self.records.as_fd().try_clone_to_owned()
    }
}

impl Port for Kernel {
    fn attach(&mut self, hook: Hook<'_>) -> Result<()> {
        match hook {
            Hook::Tracepoint { program, tracepoint } => self.attach_raw(program, tracepoint),
            Hook::Event { program, event: Event::CpuClock, period } => {
                self.sample(program, SoftwareEvent::CpuClock, period)
            }
            Hook::Event { program, event: Event::PageFaults, period } => {
                self.sample(program, SoftwareEvent::PageFaults, period)
            }
            Hook::Functions(hooks) => self.attach_functions(hooks),
            Hook::Returns(hooks) => self.attach_returns(hooks),
            Hook::TailCall { program, map, index } => self.add_tail_call(program, map, index),
        }
    }

    fn pause(&mut self, program_name: &str) -> Result<()> {
        if let Some(link) = self.tracepoints.remove(program_name) {
            let program: &mut RawTracePoint = program(self.ebpf.as_mut(), program_name)?;
            program.detach(link)?;
        }
        if let Some(link) = self.returns.remove(program_name) {
            let program: &mut FExit = program(self.ebpf.as_mut(), program_name)?;
            program.detach(link)?;
        }
        Ok(())
    }

    fn user_programs(&mut self, programs: &[&'static uprobe::Program]) -> Result<(uprobe::Programs, Costs)> {
        let programs =
            self.uprobes.load(OBJECT, self.ebpf.as_mut().context("already detached")?, programs)?;
        let costs = Map::PerCpuArray(MapData::from_fd(self.uprobes.map("COSTS")?)?);
        Ok((programs, Costs(costs.try_into()?)))
    }

    fn add_target(&mut self, pid: u32) -> Result<()> {
        // First: a target whose cell is zero is none.
        if cell_of(pid) < self.target_cells.len() {
            self.target_cells.set(cell_of(pid), 1, 0)?;
        }
        self.targets.insert(pid, 0, 0).context("too many processes for the target set")
    }

    fn remove_target(&mut self, pid: u32) {
        let _never_was_one = self.targets.remove(&pid);
    }

    fn send_again(&mut self, ids: &[u64]) {
        for id in ids {
            let _two_cpus_sent_it = self.stacks_sent.remove(id);
        }
    }

    fn drain_records(&mut self, each: &mut dyn FnMut(&[u8])) {
        while let Some(record) = self.records.next() {
            each(&record);
        }
    }

    fn lost(&self, loss: Loss) -> u64 {
        self.counter(loss as u32)
    }

    fn tallied(&self, what: Tally) -> u64 {
        self.counter(what.index())
    }

    fn cost(&self, probe: Probe) -> ProbeCost {
        cost_in(&self.costs, probe)
    }

    fn detach(&mut self) {
        self.ebpf = None;
    }
}

/// Most CPUs that verify programs: no more than four programs take long.
const VERIFIERS: usize = 4;

/// Has the kernel verify programs on several CPUs at once: that is most of what a start takes. One that it refuses is tried
/// again where it is attached, and the reason told there.
fn load_at_once(ebpf: &mut Ebpf, names: &[&str]) {
    let place = |name: &str| names.iter().position(|wanted| *wanted == name);
    let mut planned: Vec<_> =
        ebpf.programs_mut().filter_map(|(name, program)| Some((place(name)?, program))).collect();
    planned.sort_by_key(|(place, _)| std::cmp::Reverse(*place));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = cpus.min(VERIFIERS).min(planned.len());
    let left = Mutex::new(planned);
    let next = || left.lock().ok()?.pop();
    let load = || {
        while let Some((_, program)) = next() {
            let _told_later = match program {
                Program::RawTracePoint(program) => program.load(),
                Program::PerfEvent(program) => program.load(),
                _ => Ok(()),
            };
        }
    };
    std::thread::scope(|scope| {
        (1..threads).for_each(|_| drop(scope.spawn(load)));
        load();
    });
}

fn program<'a, P>(ebpf: Option<&'a mut Ebpf>, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let program = ebpf
        .and_then(|ebpf| ebpf.program_mut(name))
        .with_context(|| format!("kernel object has no program {name}"))?;
    Ok(program.try_into()?)
}

fn cpus() -> Result<Vec<u32>> {
    online_cpus().map_err(|(what, error)| anyhow::anyhow!("{what}: {error}"))
}

/// Inode number of the PID namespace this process is in.
fn own_pid_namespace() -> Result<u32> {
    Ok(fs::metadata("/proc/self/ns/pid").context("reading /proc/self/ns/pid")?.ino() as u32)
}

fn comm_bytes(name: &str) -> [u8; COMM_LEN] {
    let mut bytes = [0; COMM_LEN];
    let len = name.len().min(COMM_LEN - 1);
    bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
    bytes
}

/// Values of the globals of `groups`.
fn look_up(groups: &[&Group]) -> Result<Vec<(&'static str, u32)>> {
    if !btf::is_available() {
        return match groups.iter().all(|group| group.optional) {
            true => Ok(Vec::new()),
            false => {
                Err(Error::KernelUnsupported(format!("{} is missing (CONFIG_DEBUG_INFO_BTF)", btf::VMLINUX))
                    .into())
            }
        };
    }
    let data = fs::read(btf::VMLINUX).context("reading the kernel's types")?;
    btf::look_up(&data, groups)
}

/// The first refused system call in an error's chain of causes says what is missing.
fn refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && matches!(io.raw_os_error(), Some(libc::EPERM | libc::EACCES))
        {
            return true;
        }
        cause = error.source();
    }
    false
}

fn explain_load(error: aya::EbpfError) -> anyhow::Error {
    if refused(&error) && !preflight::may_load_programs() {
        return Error::MissingRights { what: "load programs into the kernel" }.into();
    }
    anyhow::Error::new(error).context("loading the kernel programs")
}

fn explain_program(error: aya::programs::ProgramError) -> anyhow::Error {
    if refused(&error) && !preflight::may_load_programs() {
        return Error::MissingRights { what: "attach to kernel events" }.into();
    }
    anyhow::Error::new(error).context("attaching the kernel programs")
}
