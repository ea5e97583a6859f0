//! Stand-ins for the kernel and for results, so that probes can be tested without rights.

use std::{cell::RefCell, collections::BTreeMap, fs, path::Path, rc::Rc};

use anyhow::{Result, bail};
use profiler_common::{
    cost::{Probe as CostOf, ProbeCost},
    cpu::SampleHeader,
    loss::{Loss, Tally},
    record::RecordKind,
};

use crate::{
    kernel::{
        costs::Costs,
        port::{Hook, Notices, Port},
        uprobe,
    },
    model::{sample::Sample, stack::Tables},
    probe::{
        cpu::records::RawSample,
        record::Record,
        spec::{Context, Probe, Sink},
    },
    process::{
        clock::fixtures::{Hands, clock},
        notice::Notice,
        target::Target,
        targets::Followed,
    },
    resolve::Resolver,
};

/// Kernel programs that run nowhere. What they send is put in by the test, what is asked of them can be read.
#[derive(Clone, Default)]
pub struct FakeKernel(pub Rc<RefCell<FakeState>>);

/// What is behind a [`FakeKernel`].
#[derive(Default)]
pub struct FakeState {
    /// Records that wait in the ring buffer.
    pub records: Vec<Vec<u8>>,
    /// Notices that wait, and how many were lost.
    pub notices: (Vec<Notice>, u64),
    /// Programs that were attached.
    pub attached: Vec<String>,
    /// Processes that are targets.
    pub targets: Vec<u32>,
    /// Stacks that are to be sent again.
    pub sent_again: Vec<u64>,
    /// What was lost, by reason.
    pub losses: BTreeMap<Loss, u64>,
    /// What else was counted.
    pub tallies: BTreeMap<Tally, u64>,
    /// No program is loaded any more.
    pub detached: bool,
}

impl FakeKernel {
    /// Sets how much was lost for a reason.
    pub fn lose(&self, loss: Loss, n: u64) {
        self.0.borrow_mut().losses.insert(loss, n);
    }

    /// Sets what else was counted.
    pub fn tally(&self, what: Tally, n: u64) {
        self.0.borrow_mut().tallies.insert(what, n);
    }

    /// Programs that were attached.
    pub fn attached(&self) -> Vec<String> {
        self.0.borrow().attached.clone()
    }
}

impl Port for FakeKernel {
    fn attach(&mut self, hook: Hook<'_>) -> Result<()> {
        let programs = match hook {
            Hook::Tracepoint { program, .. }
            | Hook::Event { program, .. }
            | Hook::TailCall { program, .. } => {
                vec![program.to_owned()]
            }
            Hook::Functions(hooks) | Hook::Returns(hooks) => {
                hooks.iter().map(|(program, _)| (*program).to_owned()).collect()
            }
        };
        self.0.borrow_mut().attached.extend(programs);
        Ok(())
    }

    fn pause(&mut self, program: &str) -> Result<()> {
        self.0.borrow_mut().attached.retain(|of| of != program);
        Ok(())
    }

    fn user_programs(&mut self, _: &[&'static uprobe::Program]) -> Result<(uprobe::Programs, Costs)> {
        bail!("there is no kernel")
    }

    fn add_target(&mut self, pid: u32) -> Result<()> {
        self.0.borrow_mut().targets.push(pid);
        Ok(())
    }

    fn remove_target(&mut self, pid: u32) {
        self.0.borrow_mut().targets.retain(|target| *target != pid);
    }

    fn send_again(&mut self, ids: &[u64]) {
        self.0.borrow_mut().sent_again.extend(ids);
    }

    fn drain_records(&mut self, each: &mut dyn FnMut(&[u8])) {
        let records = std::mem::take(&mut self.0.borrow_mut().records);
        records.iter().for_each(|record| each(record));
    }

    fn lost(&self, loss: Loss) -> u64 {
        self.0.borrow().losses.get(&loss).copied().unwrap_or(0)
    }

    fn tallied(&self, what: Tally) -> u64 {
        self.0.borrow().tallies.get(&what).copied().unwrap_or(0)
    }

    fn cost(&self, probe: CostOf) -> ProbeCost {
        let runs = u64::from(probe as u32 == CostOf::Cpu as u32);
        ProbeCost { runs, ns: 7 * runs }
    }

    fn detach(&mut self) {
        self.0.borrow_mut().detached = true;
    }
}

impl Notices for FakeKernel {
    fn drain(&mut self, notices: &mut Vec<Notice>) -> u64 {
        let (mut waiting, lost) = std::mem::take(&mut self.0.borrow_mut().notices);
        notices.append(&mut waiting);
        lost
    }
}

/// Keeps samples, and the names that came with them.
#[derive(Default)]
pub struct Kept(pub Vec<(Sample, Option<String>)>);

impl Sink for Kept {
    fn record(&mut self, sample: &Sample, _: &Tables, new_name: Option<&str>) {
        self.0.push((*sample, new_name.map(str::to_owned)));
    }
}

/// All that a probe works with, without a kernel.
pub struct Bench {
    /// The kernel.
    pub kernel: FakeKernel,
    /// Where `/proc` is.
    pub proc: tempfile::TempDir,
    /// The hands of the clock.
    pub hands: Hands,
    /// Stacks and threads.
    pub resolver: Resolver,
    /// Samples made.
    pub kept: Kept,
    targets: Followed,
}

impl Bench {
    /// With process 7, called "app", and its threads 7 and 8; the clock shows 1 s.
    pub fn new() -> Bench {
        let proc = tempfile::tempdir().unwrap();
        process(proc.path(), 7, "app");
        fs::create_dir_all(proc.path().join("7/task/8")).unwrap();
        fs::write(proc.path().join("7/task/8/comm"), "worker\n").unwrap();
        let (clock, hands) = clock(1_000_000_000);
        let target = Target::Pids { pids: vec![7], follow: false };
        Bench {
            kernel: FakeKernel::default(),
            hands,
            resolver: Resolver::new(proc.path(), clock.clone(), false, true),
            kept: Kept::default(),
            targets: Followed::new(&target, &[7], proc.path(), &clock),
            proc,
        }
    }

    /// Lets a probe do something.
    pub fn with<T>(&mut self, what: impl FnOnce(&mut Context<'_>) -> Result<T>) -> T {
        let (kernel, resolver) = (&mut self.kernel, &mut self.resolver);
        what(&mut Context { kernel, resolver, targets: &self.targets, sink: &mut self.kept }).unwrap()
    }

    /// Gives a probe a record, with its stack resolved as a run does.
    pub fn record(&mut self, probe: &mut dyn Probe, record: &Record) {
        let stack = match record {
            Record::Cpu(raw) | Record::Fault(raw) | Record::AllocStack(_, raw) => self.resolver.resolve(raw),
            _ => None,
        };
        self.with(|cx| probe.record(record, stack, cx));
    }

    /// A stack that records refer to by `id`.
    pub fn stack(&mut self, id: u64, user: &[u64]) {
        let stack = self.resolver.resolve(&raw(7, 7, 0, user)).unwrap();
        self.resolver.add_stack(id, stack);
    }
}

/// Makes a process whose one thread is itself.
pub fn process(root: &Path, pid: u32, name: &str) {
    let task = root.join(format!("{pid}/task/{pid}"));
    fs::create_dir_all(&task).unwrap();
    let stat = format!("{pid} ({name}) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 100 0 0\n");
    for (file, text) in [("comm", format!("{name}\n")), ("stat", stat), ("maps", String::new())] {
        fs::write(root.join(format!("{pid}/{file}")), &text).unwrap();
        fs::write(task.join(file), text).unwrap();
    }
}

/// A sample of a thread with these user addresses.
pub fn raw(pid: u32, tid: u32, time_ns: u64, user: &[u64]) -> RawSample {
    let mut comm = [0; 16];
    comm[..6].copy_from_slice(b"worker");
    let header = SampleHeader {
        kind: RecordKind::CpuSample as u32,
        time_ns,
        pid,
        tid,
        user_frames: user.len() as u16,
        comm,
        ..SampleHeader::default()
    };
    RawSample { header, kernel: Vec::new(), user: user.to_vec(), entries: Vec::new() }
}

/// The same as it comes out of the ring buffer.
pub fn bytes(raw: &RawSample) -> Vec<u8> {
    // SAFETY: repr(C) integers without padding, and the header lives until the copy is made.
    let header = unsafe {
        std::slice::from_raw_parts((&raw const raw.header).cast::<u8>(), size_of::<SampleHeader>())
    };
    let addresses = raw.kernel.iter().chain(&raw.user).flat_map(|address| address.to_ne_bytes());
    header.iter().copied().chain(addresses).collect()
}
