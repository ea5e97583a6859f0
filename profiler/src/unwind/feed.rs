//! Keeps the kernel's tables what the processes need: built once per file on a thread of their own, placed for
//! every process that maps the file, replaced when its mappings change, and evicted when room is needed.
//!
//! Until a file's table is there, its processes are sampled with frame pointers.

use std::{
    fs::File,
    sync::mpsc::{Receiver, Sender, channel},
    time::{Duration, Instant},
};

use anyhow::Result;
use profiler_common::{
    MAX_FRAMES,
    mapping::{MAX_MAPPINGS, MAX_PROCESS_MAPPINGS, MAX_TABLES, Mapping, ProcessMappings},
    runtime::{Entry, HOTSPOT, MAX_RUNTIME_OFFSETS, RuntimeOffsets, hotspot::At},
    unwind::{
        Arch, BUCKET_SHIFT, CfaKind, Memory, PAGE_WORDS, Page, Registers, Rule, Step, StopReason,
        bucket_offset, bucket_page, decode_bucket, row_page, search_rows,
    },
};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    model::{report::UnwindReport, stack::ModuleId},
    process::{ProcessTable, table::MappedCode},
    runtimes::InProcess,
    unwind::{
        BuildError, RuleTable, Table,
        walk::{step_without_rule, walk},
    },
};

/// Kernel memory for tables, bytes. Node.js takes about a twentieth of it.
pub const DEFAULT_BUDGET_BYTES: usize = 256 * 1024 * 1024;
/// Of that, tables of files that nobody has mapped any more may take so much: what was just run may be run again.
const MOST_UNUSED_BYTES: usize = 32 * 1024 * 1024;

/// Where tables go: the kernel, or a fake in tests.
pub trait TableSink {
    /// Makes rules known, ids from `first_id` on.
    fn set_rules(&mut self, first_id: u32, rules: &[Rule]) -> Result<()>;
    /// Puts a table in a place.
    fn set_table(&mut self, index: u32, pages: &[Page]) -> Result<()>;
    /// Frees a place and the memory behind it.
    fn remove_table(&mut self, index: u32) -> Result<()>;
    /// Writes mappings side by side.
    fn set_mappings(&mut self, first: u32, mappings: &[Mapping]) -> Result<()>;
    /// Says which mappings are a process's.
    fn set_process(&mut self, pid: u32, mappings: ProcessMappings) -> Result<()>;
    /// Forgets a process.
    fn remove_process(&mut self, pid: u32);
    /// Makes offsets of runtimes known.
    fn set_runtime_offsets(&mut self, index: u32, offsets: &RuntimeOffsets) -> Result<()>;
    /// A page of a table.
    fn page(&self, table: u32, page: u32) -> Option<Page>;
    /// A rule.
    fn rule(&self, id: u32) -> Option<Rule>;
}

enum State {
    Building,
    Ready(Placed),
    Failed(String),
}

#[derive(Clone, Copy)]
struct Placed {
    index: u32,
    base: u64,
    buckets: u32,
    bucket_pages: u32,
    bytes: usize,
}

/// What a process has in the kernel.
struct InKernel {
    place: ProcessMappings,
    modules: Vec<ModuleId>,
    mappings: Vec<Mapping>,
}

struct Built {
    module: ModuleId,
    table: Result<Table, BuildError>,
    first_rule: u32,
    rules: Vec<Rule>,
    took: Duration,
}

/// The tables, and the processes that use them.
pub struct Feeder<S: TableSink> {
    sink: S,
    budget_bytes: usize,
    requests: Sender<(ModuleId, File)>,
    built: Receiver<Built>,
    tables: FxHashMap<ModuleId, State>,
    free_indices: Vec<u32>,
    slots: Slots,
    processes: FxHashMap<u32, InKernel>,
    wanted: FxHashSet<u32>,
    /// Language runtimes of processes that have some.
    runtimes: FxHashMap<u32, InProcess>,
    /// What the kernel knows of them, by index.
    offsets: Vec<RuntimeOffsets>,
    /// Wanted processes whose mappings or tables have changed.
    changed: FxHashSet<u32>,
    build_time: Duration,
    refused: u64,
}

impl<S: TableSink> Feeder<S> {
    /// Starts the building thread.
    pub fn new(sink: S, budget_bytes: usize) -> Feeder<S> {
        let (requests, to_build) = channel();
        let (results, built) = channel();
        std::thread::spawn(move || build_all(&to_build, &results));
        Feeder {
            sink,
            budget_bytes,
            requests,
            built,
            tables: FxHashMap::default(),
            free_indices: (0..MAX_TABLES as u32).rev().collect(),
            slots: Slots::new(MAX_MAPPINGS as u32),
            processes: FxHashMap::default(),
            wanted: FxHashSet::default(),
            runtimes: FxHashMap::default(),
            offsets: Vec::new(),
            changed: FxHashSet::default(),
            build_time: Duration::ZERO,
            refused: 0,
        }
    }

    /// Asks for a process to be unwound by tables from now on.
    pub fn want(&mut self, pid: u32) {
        if self.wanted.insert(pid) {
            self.changed.insert(pid);
        }
    }

    /// Says which language runtimes there are in a process.
    pub fn set_runtimes(&mut self, pid: u32, runtimes: InProcess) {
        let before = match runtimes.bits {
            0 => self.runtimes.remove(&pid),
            _ => self.runtimes.insert(pid, runtimes),
        };
        if before.unwrap_or_default() != runtimes {
            self.mappings_changed(pid);
        }
    }

    /// Whether a process is to be unwound by tables.
    pub fn wants(&self, pid: u32) -> bool {
        self.wanted.contains(&pid)
    }

    /// Says that a process's mappings have changed.
    pub fn mappings_changed(&mut self, pid: u32) {
        if self.wanted.contains(&pid) {
            self.changed.insert(pid);
        }
    }

    /// Forgets a process that is gone.
    pub fn forget(&mut self, pid: u32) {
        self.wanted.remove(&pid);
        self.changed.remove(&pid);
        self.runtimes.remove(&pid);
        // It may have its parent's, too.
        self.sink.remove_process(pid);
        if let Some(gone) = self.processes.remove(&pid) {
            self.slots.retire(gone.place);
        }
    }

    /// Brings the kernel up to date with what has changed since the last call.
    pub fn update(&mut self, processes: &ProcessTable) -> Result<()> {
        // No program can still be looking at what was retired by the last update: they run for microseconds.
        self.slots.reuse_retired();
        while let Ok(built) = self.built.try_recv() {
            self.install(built, processes)?;
        }
        for pid in std::mem::take(&mut self.changed) {
            self.place(pid, processes)?;
        }
        Ok(())
    }

    /// Like [`update`](Self::update), and waits for the tables that are being built, but not longer than `timeout`.
    pub fn settle(&mut self, processes: &ProcessTable, timeout: Duration) -> Result<()> {
        let start = Instant::now();
        self.update(processes)?;
        while self.tables.values().any(|state| matches!(state, State::Building)) {
            let Ok(built) = self.built.recv_timeout(timeout.saturating_sub(start.elapsed())) else { break };
            self.install(built, processes)?;
            self.update(processes)?;
        }
        Ok(())
    }

    /// Follows a stack as the kernel programs would, by the tables they have: its frames, innermost first, what tells those of
    /// runtimes, and how it ended. `None` for a process without tables.
    pub fn walk<A: Arch, M: Memory>(
        &self,
        pid: u32,
        registers: Registers,
        memory: &M,
    ) -> Option<(Vec<u64>, Vec<Entry>, Step)> {
        let mappings = &self.processes.get(&pid)?.mappings;
        let mapping_of = |at: u64| mappings.iter().find(|mapping| (mapping.start..mapping.end).contains(&at));
        let find = |address| {
            let mapping = mapping_of(address).ok_or(StopReason::NoTable)?;
            self.find_rule(mapping, address).ok_or(StopReason::NoRow)
        };
        let known = self.runtimes.get(&pid).copied().unwrap_or_default();
        let is_code = |at| mapping_of(at).is_some();
        let mut entries = Vec::new();
        let other = |registers: &mut Registers, index: usize, at: At| {
            step_without_rule::<A, M>(&known, registers, (index, at), memory, is_code, &mut entries)
        };
        let (frames, end) = walk::<A, M>(registers, memory, MAX_FRAMES, find, other);
        Some((frames, entries, end))
    }

    fn find_rule(&self, mapping: &Mapping, address: u64) -> Option<Rule> {
        let offset = address.wrapping_add(mapping.to_table);
        let bucket = u32::try_from(offset >> BUCKET_SHIFT).ok().filter(|bucket| *bucket < mapping.buckets)?;
        let (page, slot) = bucket_page(bucket);
        let (lo, count) = decode_bucket(self.sink.page(mapping.table, page)?[slot as usize % PAGE_WORDS]);
        let (page, slot) = row_page(lo);
        let rows = self.sink.page(mapping.table, mapping.bucket_pages + page)?;
        let rule = self.sink.rule(search_rows(&rows, slot, count, bucket_offset(offset)))?;
        (rule.cfa_kind != CfaKind::NoInfo as u8).then_some(rule)
    }

    /// What it took so far. `name` tells a module's path.
    pub fn report(&self, name: impl Fn(ModuleId) -> String) -> UnwindReport {
        let mut report = UnwindReport {
            build_ns: self.build_time.as_nanos() as u64,
            processes_refused: self.refused,
            ..UnwindReport::default()
        };
        for (&module, state) in &self.tables {
            match state {
                State::Ready(placed) => {
                    report.tables += 1;
                    report.table_bytes += placed.bytes as u64;
                }
                State::Failed(reason) => report.failed.push((name(module), reason.clone())),
                State::Building => {}
            }
        }
        report.failed.sort();
        report
    }

    fn install(&mut self, built: Built, processes: &ProcessTable) -> Result<()> {
        self.build_time += built.took;
        self.sink.set_rules(built.first_rule, &built.rules)?;
        let state = match built.table {
            Err(reason) => State::Failed(reason.to_string()),
            Ok(table) => self.load(&table, processes)?,
        };
        self.tables.insert(built.module, state);
        for &pid in &self.wanted {
            if processes.mapped_code(pid).any(|code| code.module == built.module) {
                self.changed.insert(pid);
            }
        }
        Ok(())
    }

    fn load(&mut self, table: &Table, processes: &ProcessTable) -> Result<State> {
        let bytes = table.bytes();
        let full = self.used_bytes() + bytes > self.budget_bytes;
        if full || self.used_bytes() > MOST_UNUSED_BYTES {
            let unused = self.unused(processes);
            if full || unused.iter().map(|(_, placed)| placed.bytes).sum::<usize>() > MOST_UNUSED_BYTES {
                self.evict(&unused)?;
            }
        }
        if self.used_bytes() + bytes > self.budget_bytes {
            let megabytes = bytes / 1_000_000;
            return Ok(State::Failed(format!("no room for its {megabytes} MB in the memory budget")));
        }
        let Some(index) = self.free_indices.pop() else {
            return Ok(State::Failed("too many files".to_owned()));
        };
        self.sink.set_table(index, &table.pages)?;
        Ok(State::Ready(Placed {
            index,
            base: table.base,
            buckets: table.buckets,
            bucket_pages: table.bucket_pages,
            bytes,
        }))
    }

    fn used_bytes(&self) -> usize {
        self.tables
            .values()
            .map(|state| match state {
                State::Ready(placed) => placed.bytes,
                _ => 0,
            })
            .sum()
    }

    /// The tables of files that no process has mapped any more, be it in the kernel already or waiting for the rest of its tables.
    fn unused(&self, processes: &ProcessTable) -> Vec<(ModuleId, Placed)> {
        let in_kernel = self.processes.values().flat_map(|process| process.modules.iter().copied());
        let wanted = self.wanted.iter().flat_map(|&pid| processes.mapped_code(pid).map(|code| code.module));
        let used: FxHashSet<ModuleId> = in_kernel.chain(wanted).collect();
        let ready = self.tables.iter().filter_map(|(&module, state)| match state {
            State::Ready(placed) => Some((module, *placed)),
            _ => None,
        });
        ready.filter(|(module, _)| !used.contains(module)).collect()
    }

    /// Frees tables.
    fn evict(&mut self, unused: &[(ModuleId, Placed)]) -> Result<()> {
        for (module, placed) in unused {
            self.sink.remove_table(placed.index)?;
            self.tables.remove(module);
            self.free_indices.push(placed.index);
        }
        Ok(())
    }

    /// Gives the kernel a process's mappings, but not before all their tables are there: a stack that is cut off
    /// where the next table is missing is worth less than one by frame pointers. Not so with a HotSpot, whose table takes
    /// longest: frame pointers do not lead through Java at all, and most of what is around it keeps some.
    fn place(&mut self, pid: u32, processes: &ProcessTable) -> Result<()> {
        let mut modules = Vec::new();
        let mut mappings = Vec::new();
        let mut waits = false;
        for code in processes.mapped_code(pid) {
            match self.tables.get(&code.module) {
                Some(State::Ready(placed)) => {
                    modules.push(code.module);
                    mappings.push(mapping(&code, placed));
                }
                Some(State::Building) => waits = true,
                Some(State::Failed(_)) => {}
                None => waits |= self.request(code.module, processes),
            }
        }
        if waits && !self.has_java(pid) {
            return Ok(()); // `install` comes back to it
        }
        let (runtimes, offsets) = self.runtimes_of(pid)?;
        if let Some(process) = self.processes.get_mut(&pid)
            && process.mappings == mappings
        {
            process.place = ProcessMappings { runtimes, offsets, ..process.place };
            // Told again all the same: the kernel has forgotten it if this is another program now.
            return self.sink.set_process(pid, process.place);
        }
        let placed = if mappings.is_empty() || mappings.len() > MAX_PROCESS_MAPPINGS as usize {
            None
        } else {
            self.slots.take(mappings.len() as u32)
        };
        let Some(first) = placed else {
            self.refused += u64::from(!mappings.is_empty());
            if let Some(old) = self.processes.remove(&pid) {
                self.sink.remove_process(pid);
                self.slots.retire(old.place);
            }
            return Ok(());
        };
        let place = ProcessMappings { first, count: mappings.len() as u32, runtimes, offsets, epoch: 0 }; // the sink knows epochs
        self.sink.set_mappings(first, &mappings)?;
        self.sink.set_process(pid, place)?;
        if let Some(old) = self.processes.insert(pid, InKernel { place, modules, mappings }) {
            self.slots.retire(old.place);
        }
        Ok(())
    }

    /// Whether the kernel programs follow frames of HotSpot in a process.
    fn has_java(&self, pid: u32) -> bool {
        self.runtimes.get(&pid).is_some_and(|known| known.bits & HOTSPOT != 0)
    }

    /// The runtimes of a process, and where the kernel has their offsets; none where it has no room for them.
    fn runtimes_of(&mut self, pid: u32) -> Result<(u32, u32)> {
        let Some(InProcess { bits, offsets }) = self.runtimes.get(&pid) else { return Ok((0, 0)) };
        if let Some(index) = self.offsets.iter().position(|known| known == offsets) {
            return Ok((*bits, index as u32));
        }
        let index = if self.offsets.len() < MAX_RUNTIME_OFFSETS {
            self.offsets.push(*offsets);
            self.offsets.len() - 1
        } else {
            // Those of processes that are gone.
            let others = self.processes.iter().filter(|(other, _)| **other != pid);
            let places = others.map(|(_, process)| process.place).filter(|place| place.runtimes != 0);
            let used: FxHashSet<u32> = places.map(|place| place.offsets).collect();
            let Some(index) = (0..self.offsets.len()).find(|index| !used.contains(&(*index as u32))) else {
                return Ok((0, 0));
            };
            self.offsets[index] = *offsets;
            index
        };
        self.sink.set_runtime_offsets(index as u32, offsets)?;
        Ok((*bits, index as u32))
    }

    /// Has a table built; returns whether it will be.
    fn request(&mut self, module: ModuleId, processes: &ProcessTable) -> bool {
        let file = processes.file(module).and_then(|file| file.try_clone().ok());
        // The thread ends with the feeder and not before.
        let requested = file.is_some_and(|file| self.requests.send((module, file)).is_ok());
        let failed = || State::Failed("the file cannot be opened".to_owned());
        self.tables.insert(module, if requested { State::Building } else { failed() });
        requested
    }
}

/// A mapping as the kernel programs search it.
fn mapping(code: &MappedCode, table: &Placed) -> Mapping {
    debug_assert_eq!(table.base & ((1 << BUCKET_SHIFT) - 1), 0);
    Mapping {
        start: code.start,
        end: code.end,
        to_table: code.bias.wrapping_sub(table.base),
        table: table.index,
        buckets: table.buckets,
        bucket_pages: table.bucket_pages,
        _reserved: 0,
    }
}

/// Builds tables until nobody wants any more.
fn build_all(requests: &Receiver<(ModuleId, File)>, results: &Sender<Built>) {
    // SAFETY: lowers the priority of this thread only (on Linux, PRIO_PROCESS with 0 is the calling thread): tables
    // can wait, targets cannot.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
    let mut rules = RuleTable::new();
    let mut known = 0;
    while let Ok((module, file)) = requests.recv() {
        let start = Instant::now();
        let table = Table::read(&file, &mut rules);
        let new = rules.rules()[known..].to_vec();
        let built = Built { module, table, first_rule: known as u32, rules: new, took: start.elapsed() };
        known = rules.rules().len();
        if results.send(built).is_err() {
            return;
        }
    }
}

/// Who has which part of the kernel's array of mappings.
struct Slots {
    /// Free ranges: first and length.
    free: Vec<(u32, u32)>,
    retired: Vec<(u32, u32)>,
}

impl Slots {
    fn new(count: u32) -> Slots {
        Slots { free: vec![(0, count)], retired: Vec::new() }
    }

    /// The first free range that is long enough.
    fn take(&mut self, count: u32) -> Option<u32> {
        let position = self.free.iter().position(|&(_, len)| len >= count)?;
        let (first, len) = self.free[position];
        if len == count {
            self.free.remove(position);
        } else {
            self.free[position] = (first + count, len - count);
        }
        Some(first)
    }

    fn retire(&mut self, place: ProcessMappings) {
        self.retired.push((place.first, place.count));
    }

    fn reuse_retired(&mut self) {
        if self.retired.is_empty() {
            return;
        }
        self.free.append(&mut self.retired);
        self.free.sort_unstable();
        self.free.dedup_by(|next, range| {
            let adjacent = range.0 + range.1 == next.0;
            if adjacent {
                range.1 += next.1;
            }
            adjacent
        });
    }
}

#[cfg(test)]
mod tests;
