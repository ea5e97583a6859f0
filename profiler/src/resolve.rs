//! From addresses to interned stacks: everything that a run knows about processes, their code, and its names.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use profiler_common::{
    cpu::{END_COMPLETE, END_STOPPED, FLAG_USER_END_SHIFT, SampleHeader},
    unwind::{Registers, Step},
};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    kernel::unwind::UnwindMaps,
    model::{
        loss::{Loss, Losses},
        report::{Accounts, Meta, Run, Totals},
        stack::{Frame, Module, ModuleId, ModuleKind, Stack, StackEnd, StackId, Tables, ThreadKey},
        totals::intern_stack,
    },
    naming,
    probe::cpu::records::RawSample,
    process::{
        ProcessTable,
        clock::{Clock, Every},
        memory::ProcessMemory,
        network::Networks,
        table::Resolution,
        target::comm,
    },
    runtimes::{Runtimes, UserFrame, UserStack},
    symbolize::{Detail, Function, LiveSymbolizer, SymbolCache, Symbolizer as _, debuginfod::Debuginfod},
    unwind::feed::Feeder,
};

#[cfg(target_arch = "aarch64")]
type NativeArch = profiler_common::unwind::Aarch64;
#[cfg(target_arch = "x86_64")]
type NativeArch = profiler_common::unwind::X86_64;

/// Stacks that the kernel programs have sent, of 32,768 that they know, from which on they are to forget them.
const MOST_SENT: usize = 24_576;

/// Names of threads from which on those are to be forgotten that nothing needs: 1 MB.
const MOST_NAMES: usize = 16_384;

/// For how long at most files are begun to be looked into for the names of new frames, while records wait, ns: what is left is
/// named the next time. One large file takes longer.
const NAMING_NS: u64 = 20_000_000;

/// How often the descriptors of the profiler are read for programs of its own, while it runs.
const OWN_CODE_INTERVAL: Duration = Duration::from_secs(10);

/// Resolves addresses and interns stacks.
pub struct Resolver {
    /// Where `/proc` is.
    pub proc_root: PathBuf,
    /// What time it is.
    pub clock: Clock,
    /// Interned modules, stacks and threads.
    pub tables: Tables,
    /// Mappings of processes.
    pub processes: ProcessTable,
    /// `None` where frame pointers are followed only.
    pub unwinder: Option<Feeder<UnwindMaps>>,
    /// What network namespaces hold.
    pub networks: Networks,
    /// Language runtimes in processes.
    pub runtimes: Runtimes,
    /// What was lost or is worth less, besides what the kernel programs count.
    pub losses: Losses,
    /// Stacks by the kernel programs' ids.
    stacks: FxHashMap<u64, StackId>,
    /// Ids that the kernel programs have sent since they were last asked to send all again.
    sent: Vec<u64>,
    kernel_module: ModuleId,
    symbols: SymbolCache,
    own_code_due: Every,
    /// Threads whose names have been recorded with a sample that is none of a CPU.
    named: FxHashSet<ThreadKey>,
    /// With so many names it is time to forget some.
    most_names: usize,
    /// Frames that have been looked at for their names, or are among those that will be, by module.
    frames_seen: usize,
    unnamed: BTreeMap<ModuleId, Vec<u64>>,
}

impl Resolver {
    /// Knows no process yet. `track_all` says whether every process of the machine may be sampled, `name_runtimes` whether
    /// functions of language runtimes are named.
    pub fn new(proc_root: &Path, clock: Clock, track_all: bool, name_runtimes: bool) -> Resolver {
        let mut tables = Tables::default();
        let kernel_module = tables.module_id(Module::special(ModuleKind::Kernel));
        Resolver {
            own_code_due: Every::new(&clock, OWN_CODE_INTERVAL),
            proc_root: proc_root.to_owned(),
            clock,
            tables,
            processes: ProcessTable::new(proc_root, track_all),
            unwinder: None,
            networks: Networks::new(proc_root),
            runtimes: Runtimes::new(proc_root.to_owned(), name_runtimes),
            losses: Losses::default(),
            stacks: FxHashMap::default(),
            sent: Vec::new(),
            kernel_module,
            symbols: SymbolCache::default(),
            named: FxHashSet::default(),
            most_names: MOST_NAMES,
            frames_seen: 0,
            unnamed: BTreeMap::new(),
        }
    }

    /// Follows a process from now on.
    pub fn track(&mut self, pid: u32) {
        self.processes.track(pid, &mut self.tables);
        self.want_tables(pid);
    }

    /// Has the stacks of a process unwound by tables.
    fn want_tables(&mut self, pid: u32) {
        if let Some(unwinder) = &mut self.unwinder {
            unwinder.set_runtimes(pid, self.runtimes.look(pid, &self.processes, &self.tables));
            unwinder.want(pid);
        }
    }

    /// Other code is mapped into processes: those that are `followed`, and what they have mapped, need unwind tables. Those
    /// in `gone` do not any more. Calls `changed` with each process.
    pub fn update_tables(
        &mut self,
        gone: Vec<u32>,
        followed: impl Fn(u32) -> bool,
        mut changed: impl FnMut(u32),
    ) -> Result<()> {
        let Resolver { processes, unwinder, runtimes, tables, .. } = self;
        gone.iter().for_each(|&pid| runtimes.forget(pid));
        let now_changed = processes.take_changed();
        let Some(unwinder) = unwinder else { return Ok(()) };
        gone.into_iter().for_each(|pid| unwinder.forget(pid));
        for pid in now_changed {
            if followed(pid) {
                unwinder.want(pid);
            }
            if unwinder.wants(pid) {
                unwinder.set_runtimes(pid, runtimes.look(pid, processes, tables));
            }
            unwinder.mappings_changed(pid);
            changed(pid);
        }
        for pid in runtimes.pending() {
            unwinder.set_runtimes(pid, runtimes.look(pid, processes, tables));
        }
        unwinder.update(processes)
    }

    /// Remembers a stack by an id of the kernel programs.
    pub fn add_stack(&mut self, id: u64, stack: StackId) {
        self.stacks.insert(id, stack);
    }

    /// The kernel programs have sent a stack, and will not send it again.
    pub fn stack_sent(&mut self, id: u64) {
        self.sent.push(id);
    }

    /// All that were sent, if these are so many that the kernel programs should forget them, to have room for others.
    pub fn stacks_to_forget(&mut self) -> Option<Vec<u64>> {
        (self.sent.len() >= MOST_SENT).then(|| std::mem::take(&mut self.sent))
    }

    /// Forgets stacks but those in use.
    pub fn keep_stacks(&mut self, used: &FxHashSet<u64>) {
        self.stacks.retain(|id, _| used.contains(id));
    }

    /// The stack behind one of the kernel programs' ids, if it was taken.
    pub fn stack(&self, id: u64) -> Option<StackId> {
        self.stacks.get(&id).copied()
    }

    /// Resolves and interns a stack; `None` if there is no room for it.
    pub fn resolve(&mut self, raw: &RawSample) -> Option<StackId> {
        let (stack, gone) = self.resolve_any(raw);
        self.losses.add(Loss::ProcessGone, gone.into());
        stack
    }

    /// Resolves a stack that may belong to a process that is no target, and says whether that process was gone.
    pub fn resolve_any(&mut self, raw: &RawSample) -> (Option<StackId>, bool) {
        let (pid, now_ns) = (raw.header.pid, raw.header.time_ns);
        let mut frames = Vec::with_capacity(raw.kernel.len() + raw.user.len() + 1);
        for (i, &address) in raw.kernel.iter().enumerate() {
            frames.push(Frame { module: self.kernel_module, address: call_site(i, address) });
        }
        let mut gone = false;
        let mut user = Vec::with_capacity(raw.user.len());
        for (i, &address) in raw.user.iter().enumerate() {
            let address = call_site(i, address);
            let (frame, resolution) = self.processes.resolve(pid, address, now_ns, &mut self.tables);
            gone |= resolution == Resolution::ProcessGone;
            let made_at_run_time = matches!(self.tables.module(frame.module).kind, ModuleKind::Jit(_));
            user.push(UserFrame { address, frame, made_at_run_time });
        }
        let complete = raw.user_end() == StackEnd::Complete;
        let user = UserStack { frames: &user, entries: &raw.entries, complete };
        let unnamed = self.runtimes.name(pid, &user, &self.processes, &mut self.tables, &mut frames);
        self.losses.add(Loss::FramesUnnamed, unnamed);
        if frames.is_empty() {
            let module = self.tables.module_id(Module::special(ModuleKind::Unmapped));
            frames.push(Frame { module, address: 0 });
        }
        let end = raw.user_end();
        if end == StackEnd::FramePointers
            && self.unwinder.as_ref().is_some_and(|unwinder| !unwinder.wants(pid))
        {
            self.want_tables(pid);
        }
        let stack = Stack { frames: frames.into(), kernel_frames: raw.kernel.len() as u16, end };
        (intern_stack(&mut self.tables, stack), gone)
    }

    /// The stack that stands for those that were not taken; `None` if there is no room for it.
    pub fn not_taken(&mut self) -> Option<StackId> {
        let module = self.tables.module_id(Module::special(ModuleKind::NotTaken));
        let frames = [Frame { module, address: 0 }].into();
        intern_stack(&mut self.tables, Stack { frames, kernel_frames: 0, end: StackEnd::None })
    }

    /// The user stack of a blocked thread, from outside. Its frame pointer is not known: where it is needed before the
    /// stack itself tells it, the stack ends.
    pub fn stack_at_rest(&mut self, thread: ThreadKey, ip: u64, sp: u64) -> Option<StackId> {
        let pid = thread.pid;
        let memory = ProcessMemory::open(&self.proc_root, pid)?;
        let registers = Registers { ip, sp, fp: FP_UNKNOWN, lr: 0 };
        let walked = self.unwinder.as_ref()?.walk::<NativeArch, _>(pid, registers, &memory)?;
        let (user, mut entries, end) = walked;
        entries.extend(self.runtimes.frames_at_rest(thread));
        let mut raw = RawSample { header: SampleHeader::default(), kernel: Vec::new(), user, entries };
        raw.header.pid = pid;
        raw.header.time_ns = self.clock.now_ns();
        let end = match end {
            Step::Stop(reason) => END_STOPPED + reason as u32,
            Step::End | Step::Continue => END_COMPLETE,
        };
        raw.header.flags = end << FLAG_USER_END_SHIFT;
        self.resolve(&raw)
    }

    /// Whether the kernel was in an interrupt where it had this stack.
    pub fn is_interrupt(&mut self, kernel: &[u64]) -> bool {
        // Entries from the vectors: arch/x86/include/asm/idtentry.h, arch/arm64/kernel/entry.S.
        const ENTRIES: [&str; 4] = ["asm_sysvec_", "asm_common_interrupt", "el1h_64_irq", "el0t_64_irq"];
        let module = self.tables.module(self.kernel_module).clone();
        let mut symbolizer = LiveSymbolizer::new(&mut self.symbols, &mut self.processes);
        let names = symbolizer.functions(self.kernel_module, &module, kernel, Detail::Names);
        let mut functions = names.iter().flatten().flatten();
        functions.any(|function| ENTRIES.iter().any(|entry| function.name.starts_with(entry)))
    }

    /// Whether names of threads take up much room: a machine that starts programs all day has ever more.
    pub fn has_many_names(&self) -> bool {
        self.tables.threads.len().max(self.named.len()) >= self.most_names
    }

    /// Forgets the names of all other threads. Those of threads that live are found again.
    pub fn keep_names(&mut self, used: &FxHashSet<ThreadKey>) {
        self.tables.threads.retain(|thread, _| used.contains(thread));
        self.named.retain(|thread| used.contains(thread));
        self.most_names = MOST_NAMES.max(2 * self.tables.threads.len());
    }

    /// Finds out a thread's name, and its process's, where no sample has named them.
    pub fn name_thread(&mut self, thread: ThreadKey) {
        for of in [ThreadKey { tid: thread.pid, ..thread }, thread] {
            if !self.tables.threads.contains_key(&of) {
                let task = self.proc_root.join(format!("{}/task", of.pid));
                if let Some(name) = comm(&task, of.tid) {
                    self.tables.threads.insert(of, name);
                }
            }
        }
    }

    /// The thread's name, if it has not been recorded with a sample that is none of a CPU yet.
    pub fn name_to_record(&mut self, thread: ThreadKey) -> Option<String> {
        self.named.insert(thread).then(|| self.tables.thread_name(thread).to_owned())
    }

    /// Whether a process has no user stacks.
    pub fn is_kernel_thread(&mut self, pid: u32) -> bool {
        self.processes.is_kernel_thread(pid, &mut self.tables)
    }

    /// Has servers asked for debug information when all is to be named.
    pub fn ask_servers(&mut self, urls: Vec<String>) {
        self.symbols.servers = Some(Debuginfod::new(urls));
    }

    /// Takes note of which code in the kernel is the profiler's, while it is there.
    pub fn look_at_own_code(&mut self) {
        self.symbols.own_code.look();
        self.own_code_due.restart();
    }

    /// The same, unless that was done a short while ago: programs come and go seldom, and all descriptors are read for it.
    pub fn look_at_own_code_again(&mut self) {
        if self.symbols.own_code.is_unknown() || self.own_code_due.is_due() {
            self.look_at_own_code();
        }
    }

    /// Names of frames that are new since this was last asked, without source lines, as far as there is time for them. Functions
    /// of language runtimes have theirs already.
    pub fn new_names(&mut self) -> Vec<(Frame, Vec<Function>)> {
        let new = self.tables.stacks.frames_from(self.frames_seen);
        self.frames_seen += new.len();
        for frame in new {
            if !matches!(self.tables.module(frame.module).kind, ModuleKind::Managed(_)) {
                self.unnamed.entry(frame.module).or_default().push(frame.address);
            }
        }
        let until_ns = self.clock.now_ns().saturating_add(NAMING_NS);
        let mut names = Vec::new();
        while self.clock.now_ns() < until_ns
            && let Some((module, addresses)) = self.unnamed.pop_first()
        {
            let mut symbolizer = LiveSymbolizer::new(&mut self.symbols, &mut self.processes);
            let of = self.tables.module(module);
            let found = symbolizer.functions(module, of, &addresses, Detail::Names);
            let named = addresses.into_iter().zip(found).filter_map(|(address, functions)| {
                let functions = functions?.into_iter().map(Function::cleaned).collect();
                Some((Frame { module, address }, functions))
            });
            names.extend(named);
        }
        names
    }

    /// Names everything in `totals`.
    pub fn name(&mut self, meta: &Meta, accounts: Accounts, totals: Totals, detail: Detail) -> Run {
        let mut symbolizer = LiveSymbolizer::new(&mut self.symbols, &mut self.processes);
        naming::run(meta.clone(), accounts, totals, &self.tables, &mut symbolizer, detail)
    }
}

/// No frame pointer, and none of an outermost frame either.
const FP_UNKNOWN: u64 = 1;

/// The address to look up for a stack's `i`th entry: all but the innermost are return addresses, and the call
/// ends one byte before.
fn call_site(i: usize, address: u64) -> u64 {
    if i == 0 { address } else { address.saturating_sub(1) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::process::clock::fixtures::stepping;

    #[test]
    fn new_frames_are_named_once_and_only_as_long_as_there_is_time() {
        let proc = tempfile::tempdir().unwrap();
        // Two looks at the clock are within that time: one to begin with, one before the first file.
        let mut resolver = Resolver::new(proc.path(), stepping(NAMING_NS - 1), false, true);
        let mut add = |pid: u32, address| {
            let tmp = proc.path().join(format!("{pid}/root/tmp"));
            fs::create_dir_all(&tmp).unwrap();
            fs::write(tmp.join(format!("perf-{pid}.map")), format!("100 40 of_{pid}\n")).unwrap();
            let module = resolver.tables.module_id(Module::special(ModuleKind::Jit(pid)));
            let frame = Frame { module, address };
            let stack = Stack { frames: [frame].into(), kernel_frames: 0, end: StackEnd::Complete };
            intern_stack(&mut resolver.tables, stack).unwrap();
            frame
        };
        let frames = [add(7, 0x110), add(7, 0x120), add(8, 0x110)];
        let named = |frame, name: &str| (frame, vec![Function { name: name.into(), ..Function::default() }]);
        assert_eq!(resolver.new_names(), [named(frames[0], "of_7"), named(frames[1], "of_7")]);
        assert_eq!(resolver.new_names(), [named(frames[2], "of_8")], "what was left");
        assert_eq!(resolver.new_names(), []);
    }
}
