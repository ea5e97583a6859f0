//! Loads the kernel programs and attaches what a run needs. Nothing is pinned: when the agent ends, however it
//! ends, the kernel closes its descriptors and with them every probe.

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader,
    maps::{CgroupArray, HashMap, MapData, PerCpuArray, ProgramArray, RingBuf},
    programs::{
        FEntry, PerfEvent, RawTracePoint,
        perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent},
    },
    util::online_cpus,
};
use profiler_common::{
    COMM_LEN,
    cost::{Probe, ProbeCost},
    loss::Tally,
    offsets,
    target::{INIT_PIDNS_INUM, TargetMode},
};

use crate::{
    error::Error,
    kernel::{btf, unwind::UnwindMaps, uprobe},
    model::loss::{Loss, Losses},
    probe::{
        alloc::maps::{self as alloc_maps, AllocMaps},
        sched::{
            function_hooks,
            maps::{self as sched_maps, SchedMaps},
        },
        syscall::maps::{self as call_maps, CallMaps},
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

/// The loaded kernel programs and their maps.
pub struct Kernel {
    /// `None` once detached.
    ebpf: Option<Ebpf>,
    /// Records of all probes.
    pub records: RingBuf<MapData>,
    targets: HashMap<MapData, u32, u32>,
    counters: PerCpuArray<MapData, u64>,
    costs: PerCpuArray<MapData, ProbeCost>,
    unwind: Option<UnwindMaps>,
    sched: Option<SchedMaps>,
    calls: Option<CallMaps>,
    watches_calls: bool,
    alloc: Option<AllocMaps>,
    uprobes: uprobe::Unloaded,
}

/// What is to be watched besides CPUs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Watch<'a> {
    /// The scheduler.
    pub sched: Option<&'a sched_maps::Settings>,
    /// System calls; by thread if true.
    pub calls: Option<bool>,
    /// Allocations.
    pub allocations: bool,
}

impl Kernel {
    /// Loads the programs for `target`. Nothing is attached yet.
    pub fn load(target: &Target, kernel_log: bool, watch: Watch<'_>) -> Result<Kernel> {
        let Watch { sched, calls, allocations } = watch;
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
        // A server opens a file per request, and says so.
        let per_cpu = if calls.is_some() { RING_BYTES_PER_CPU * 4 } else { RING_BYTES_PER_CPU };
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
        let needs_ids = pidns != INIT_PIDNS_INUM || target.follows();
        let watches = sched.is_some() || calls.is_some();
        let mut groups = Vec::new();
        if needs_ids || watches {
            groups.push(&offsets::IDS);
        }
        if watches {
            groups.extend(sched_maps::OFFSETS);
        } else {
            loader.map_max_entries("STACKS_SENT", 1);
        }
        match sched {
            Some(sched_maps::Settings { limits, wakers: _, run_queue_by_thread }) => {
                loader
                    .override_global(
                        "RUN_QUEUE_BY_THREAD",
                        if *run_queue_by_thread { &1u8 } else { &0u8 },
                        true,
                    )
                    .override_global("KEEP_RAN", &1u8, true)
                    .override_global("STALL_NS", &limits.stall_ns, true)
                    .override_global("LOOP_BLOCK_NS", &limits.loop_block_ns, true)
                    .override_global("STARVATION_NS", &limits.starvation_ns, true)
                    .override_global("BLOCK_NS", &limits.block_ns, true);
            }
            None => {
                for map in sched_maps::LARGE_MAPS {
                    loader.map_max_entries(map, 1);
                }
            }
        }
        if !sched.is_some_and(|sched| sched.run_queue_by_thread) {
            loader.map_max_entries(sched_maps::BY_THREAD_MAP, 1);
        }
        let (watched, by_thread) = (u32::from(calls.is_some()), u32::from(calls == Some(true)));
        loader.override_global("CALLS_WATCHED", &watched, true).override_global(
            "CALLS_BY_THREAD",
            &by_thread,
            true,
        );
        let one_process = matches!(target, Target::Pids { pids, follow: false } if pids.len() < 2);
        for (map, entries) in call_maps::map_sizes(calls, one_process) {
            loader.map_max_entries(map, entries);
        }
        if allocations {
            groups.push(&offsets::PROBED_RETURNS);
        } else {
            for map in alloc_maps::LARGE_MAPS {
                loader.map_max_entries(map, 1);
            }
        }
        let offsets = if groups.is_empty() { Vec::new() } else { look_up(&groups)? };
        for (name, offset) in &offsets {
            loader.override_global(name, offset, true);
        }
        let log_level = if kernel_log { log::LevelFilter::Trace as u8 } else { 0 };
        loader.override_global("AYA_LOG_LEVEL", &log_level, false);

        let mut ebpf = loader.load(OBJECT).map_err(explain_load)?;
        if let Target::Cgroup(path) = target {
            let cgroups = ebpf.map_mut("CGROUPS").context("kernel object has no map CGROUPS")?;
            CgroupArray::try_from(cgroups)?.set(0, fs::File::open(path)?, 0)?;
        }
        let uprobes = uprobe::Unloaded::of(&ebpf);
        let unwind_maps = UnwindMaps::take(&mut ebpf)?;
        if watches {
            sched_maps::set_classes(&mut ebpf)?;
        }
        let sched_maps = sched.map(|_| SchedMaps::take(&mut ebpf, only)).transpose()?;
        let call_maps = calls.map(|_| CallMaps::take(&mut ebpf)).transpose()?;
        let alloc_maps = allocations.then(|| AllocMaps::take(&mut ebpf)).transpose()?;
        let mut take =
            |name: &str| ebpf.take_map(name).with_context(|| format!("kernel object has no map {name}"));
        Ok(Kernel {
            records: RingBuf::try_from(take("RECORDS")?)?,
            targets: HashMap::try_from(take("TARGETS")?)?,
            counters: PerCpuArray::try_from(take("COUNTERS")?)?,
            costs: PerCpuArray::try_from(take("COSTS")?)?,
            unwind: Some(unwind_maps),
            sched: sched_maps,
            calls: call_maps,
            watches_calls: calls.is_some(),
            alloc: alloc_maps,
            uprobes,
            ebpf: Some(ebpf),
        })
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

    /// Hands out the maps of the scheduler probe, once, if it was asked for.
    pub fn take_sched_maps(&mut self) -> Option<SchedMaps> {
        self.sched.take()
    }

    /// Hands out the maps of the system-call probe, once, if it was asked for.
    pub fn take_call_maps(&mut self) -> Option<CallMaps> {
        self.calls.take()
    }

    /// Hands out the maps of the allocation probe, once, if it was asked for.
    pub fn take_alloc_maps(&mut self) -> Option<AllocMaps> {
        self.alloc.take()
    }

    /// Loads the programs of the allocation probe.
    pub fn load_alloc(&mut self) -> Result<uprobe::Programs> {
        self.uprobes.load(OBJECT, self.ebpf.as_mut().context("already detached")?)
    }

    /// Another reader of what the probes cost.
    pub fn costs(&self) -> Result<Costs> {
        let map = aya::maps::Map::PerCpuArray(MapData::from_fd(self.uprobes.map("COSTS")?)?);
        Ok(Costs(map.try_into()?))
    }

    /// Samples the stack of each `period`th page fault.
    pub fn attach_faults(&mut self, period: u64) -> Result<()> {
        self.sample("fault_sample", SoftwareEvent::PageFaults, period)
    }

    /// Makes a process a target.
    pub fn add_target(&mut self, pid: u32) -> Result<()> {
        self.targets.insert(pid, 0, 0).context("too many processes for the target set")
    }

    /// Forgets a process that is gone, so that a later one with its number is no target.
    pub fn remove_target(&mut self, pid: u32) {
        let _never_was_one = self.targets.remove(&pid);
    }

    /// Samples every CPU each `period_ns` of its clock, and unwinds user stacks by tables or by frame pointers.
    pub fn attach_cpu(&mut self, period_ns: u64, by_tables: bool) -> Result<()> {
        let name = if by_tables { "cpu_sample" } else { "cpu_sample_fp" };
        self.sample(name, SoftwareEvent::CpuClock, period_ns)
    }

    /// Runs a program at each `period`th event of every CPU.
    fn sample(&mut self, name: &str, event: SoftwareEvent, period: u64) -> Result<()> {
        let program: &mut PerfEvent = program(self.ebpf.as_mut(), name)?;
        program.load().map_err(explain_program)?;
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
        let mut hooks = Vec::new();
        if by_tables {
            hooks.push(("forget_exec", "sched_process_exec"));
        }
        if target.follows() {
            hooks.push(("follow_fork", "sched_process_fork"));
        }
        if matches!(target, Target::Comm(_)) {
            hooks.push(("match_exec", "sched_process_exec"));
        }
        self.attach_raw(&hooks)
    }

    /// Attaches the scheduler probe, and the hook of wake-ups if `wakers` are asked for; it begins when
    /// [`SchedMaps::start`] says so.
    pub fn attach_sched(&mut self, wakers: bool) -> Result<()> {
        if wakers {
            self.attach_raw(&[("sched_waking", "sched_waking")])?;
        }
        self.attach_raw(&[
            ("sched_wakeup_new", "sched_wakeup_new"),
            ("sched_exec", "sched_process_exec"),
            ("sched_switch", "sched_switch"),
        ])
    }

    /// Attaches the hook of the calls that event loops wait in: to these calls only, if the kernel allows it; otherwise
    /// where every system call of every process passes. The system-call probe is there already, and asks by itself.
    pub fn attach_loops(&mut self) -> Result<()> {
        if self.watches_calls {
            return Ok(());
        }
        let functions = function_hooks::allowed(&function_hooks::LOOP_WAITS);
        if functions.is_empty() {
            return self.attach_raw(&[("wait_enter", "sys_enter")]);
        }
        let btf = aya::Btf::from_sys_fs().context("reading the kernel's types")?;
        for (name, function) in functions {
            let program: &mut FEntry = program(self.ebpf.as_mut(), name)?;
            program.load(function, &btf).map_err(explain_program)?;
            program.attach().map_err(explain_program)?;
        }
        Ok(())
    }

    /// Attaches the system-call probe. Every system call of every process passes it: only if asked for.
    pub fn attach_calls(&mut self) -> Result<()> {
        for (index, name) in (0..).zip(call_maps::STEPS) {
            let step: &mut RawTracePoint = program(self.ebpf.as_mut(), name)?;
            step.load().map_err(explain_program)?;
            let step = step.fd()?.try_clone()?;
            let map = self.ebpf.as_mut().and_then(|ebpf| ebpf.map_mut("CALL_STEPS"));
            let mut map = ProgramArray::try_from(map.context("kernel object has no map CALL_STEPS")?)?;
            map.set(index, &step, 0)?;
        }
        self.attach_raw(&[
            ("call_gone", "sched_process_exit"),
            ("call_exec", "sched_process_exec"),
            ("call_exit", "sys_exit"),
            ("call_enter", "sys_enter"),
        ])
    }

    fn attach_raw(&mut self, hooks: &[(&str, &str)]) -> Result<()> {
        for (name, tracepoint) in hooks {
            let program: &mut RawTracePoint = program(self.ebpf.as_mut(), name)?;
            program.load().map_err(explain_program)?;
            program.attach(tracepoint).map_err(explain_program)?;
        }
        Ok(())
    }

    /// Unloads all programs; counters and waiting records stay.
    pub fn detach(&mut self) {
        self.ebpf = None;
    }

    /// Becomes readable when the kernel has more records than it should keep waiting.
    pub fn records_fd(&self) -> io::Result<OwnedFd> {
        self.records.as_fd().try_clone_to_owned()
    }

    /// Samples taken so far, delivered or not.
    pub fn samples_taken(&self) -> u64 {
        self.counter(Tally::SamplesTaken.index())
    }

    /// Stacks of allocations that were walked, and not known already.
    pub fn stacks_walked(&self) -> u64 {
        self.counter(Tally::AllocWalks.index())
    }

    /// Adds what the kernel programs have counted to `losses`.
    pub fn add_losses(&self, losses: &mut Losses) {
        for loss in Loss::ALL {
            losses.add(loss, self.counter(loss as u32));
        }
    }

    /// What a probe has cost so far, on all CPUs.
    pub fn cost(&self, probe: Probe) -> ProbeCost {
        cost_in(&self.costs, probe)
    }

    fn counter(&self, index: u32) -> u64 {
        self.counters.get(&index, 0).map_or(0, |per_cpu| per_cpu.iter().sum())
    }
}

/// What the probes cost, for another thread to read.
pub struct Costs(PerCpuArray<MapData, ProbeCost>);

impl Costs {
    /// What a probe has cost so far, on all CPUs.
    pub fn of(&self, probe: Probe) -> ProbeCost {
        cost_in(&self.0, probe)
    }
}

fn cost_in(costs: &PerCpuArray<MapData, ProbeCost>, probe: Probe) -> ProbeCost {
    let mut total = ProbeCost::default();
    if let Ok(per_cpu) = costs.get(&(probe as u32), 0) {
        for cost in per_cpu.iter() {
            total.runs += cost.runs;
            total.ns += cost.ns;
        }
    }
    total
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
fn look_up(groups: &[&offsets::Group]) -> Result<Vec<(&'static str, u32)>> {
    if !btf::is_available() {
        return Err(
            Error::KernelUnsupported(format!("{} is missing (CONFIG_DEBUG_INFO_BTF)", btf::VMLINUX)).into()
        );
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
    if refused(&error) && !super::preflight::may_load_programs() {
        return Error::MissingRights { what: "load programs into the kernel" }.into();
    }
    anyhow::Error::new(error).context("loading the kernel programs")
}

fn explain_program(error: aya::programs::ProgramError) -> anyhow::Error {
    if refused(&error) && !super::preflight::may_load_programs() {
        return Error::MissingRights { what: "attach to kernel events" }.into();
    }
    anyhow::Error::new(error).context("attaching the kernel programs")
}
