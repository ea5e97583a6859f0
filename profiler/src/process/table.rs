//! The mappings of every process that matters, kept up to date, and what is known of each mapped file.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    rc::Rc,
};

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    model::stack::{Frame, Module, ModuleId, ModuleKind, Tables},
    process::{
        clock::monotonic_ns,
        elf::ElfInfo,
        jit::{self, JitCode},
        maps::{self, MapsEntry, Rights},
        memory::ProcessMemory,
        notice::{Event, Notice},
        open,
        regions::Regions,
        started::StartedAs,
        vdso,
    },
    text,
};

/// A process's mappings are read again for an address in none of them, but not more often than this.
const REREAD_NS: u64 = 1_000_000_000;

/// Files kept open at once, so that their symbols outlive the process and the file's name. More are opened by
/// path when needed.
const MAX_OPEN_FILES: usize = 2048;

/// Files that are known, those included that nobody has mapped any more. Code of more is code without a file.
const MAX_FILES: usize = 32_768;

/// Processes whose regions of code without a file are known, those that have ended included.
const MAX_JIT_PROCESSES: usize = 4096;

/// Processes whose own names of code are kept, those that have ended included.
const MAX_JIT_SOURCES: usize = 256;

/// Processes and the code they have mapped.
pub struct ProcessTable {
    proc_root: PathBuf,
    /// Keep the mappings of every process there is, not just of those asked about: needed where any process may
    /// turn out to be a target.
    track_all: bool,
    processes: FxHashMap<u32, Process>,
    files: HashMap<FileKey, CodeFile>,
    /// Files without a name that were looked into and are not ELF files.
    not_elf: HashSet<FileKey>,
    /// Files by the module they became.
    by_module: FxHashMap<ModuleId, Rc<File>>,
    /// A copy of the vDSO, until a process is seen to have it.
    vdso: Option<File>,
    /// Processes whose mappings have changed since `take_changed`.
    changed: FxHashSet<u32>,
    /// What processes write down about their code without a file.
    jit: FxHashMap<u32, JitCode>,
    /// Addresses that may have been another tenant's.
    reused: u64,
    /// Where each process was ever seen to have code without a file.
    jit_regions: FxHashMap<u32, Regions>,
    /// What programs are called.
    started_as: StartedAs,
    /// Own paths of those that are called otherwise.
    own_paths: FxHashMap<ModuleId, String>,
}

#[derive(Clone, Default)]
struct Process {
    mappings: Rc<BTreeMap<u64, Mapping>>,
    /// Has been read from /proc, or is known from its exec on.
    known: bool,
    /// Notices were lost since: what it has mapped may have changed.
    distrusted: bool,
    /// Its exit may have been among lost notices.
    may_have_exited: bool,
    kernel_thread: bool,
    last_read_ns: u64,
    exited: bool,
    /// The file that it runs, and what it was started as.
    program: Option<Rc<(String, String)>>,
}

#[derive(Clone, Copy)]
struct Mapping {
    end: u64,
    module: ModuleId,
    /// Added (wrapping) to an address to get the module's address.
    bias: u64,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct FileKey {
    device: (u32, u32),
    inode: u64,
    path: String,
}

impl FileKey {
    fn of(entry: &MapsEntry) -> FileKey {
        FileKey { device: entry.device, inode: entry.inode, path: entry.path.clone() }
    }
}

struct CodeFile {
    module: ModuleId,
    elf: Option<ElfInfo>,
}

/// An executable mapping of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedCode {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// What is mapped.
    pub module: ModuleId,
    /// Added (wrapping) to an address to get the module's.
    pub bias: u64,
}

/// How an address was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// In a known mapping.
    Mapped,
    /// In none, though the mappings could be read.
    Unmapped,
    /// The process was gone before its mappings could be read.
    ProcessGone,
}

impl ProcessTable {
    /// An empty table that reads `proc_root` (`/proc`).
    pub fn new(proc_root: &Path, track_all: bool) -> ProcessTable {
        ProcessTable {
            proc_root: proc_root.to_owned(),
            track_all,
            processes: FxHashMap::default(),
            files: HashMap::new(),
            not_elf: HashSet::new(),
            by_module: FxHashMap::default(),
            vdso: vdso::file(),
            changed: FxHashSet::default(),
            jit: FxHashMap::default(),
            reused: 0,
            jit_regions: FxHashMap::default(),
            started_as: StartedAs::default(),
            own_paths: FxHashMap::default(),
        }
    }

    /// Reads the mappings of a process that is about to matter.
    pub fn track(&mut self, pid: u32, tables: &mut Tables) {
        self.read(pid, 0, tables);
    }

    /// Whether the process is the kernel's own (it has no memory of its own, hence no user stacks).
    pub fn is_kernel_thread(&mut self, pid: u32, tables: &mut Tables) -> bool {
        if self.processes.get(&pid).is_none_or(|process| process.distrusted) {
            self.read(pid, 0, tables);
        }
        self.processes.get(&pid).is_some_and(|process| process.kernel_thread)
    }

    /// Takes note of what happened to a process.
    pub fn apply(&mut self, notice: &Notice, tables: &mut Tables) {
        let pid = notice.pid;
        let tracked = self.track_all || self.processes.contains_key(&pid);
        match &notice.event {
            Event::Exec { .. } if tracked => {
                self.jit.remove(&pid);
                self.jit_regions.remove(&pid);
                self.processes.insert(pid, Process { known: true, ..Process::default() });
                self.changed.insert(pid);
            }
            Event::Mapped { start, len, file_offset, device, inode, path } if tracked => {
                // Of a process that has not been read yet this would be one mapping out of many.
                if !self.processes.get(&pid).is_some_and(|process| process.known) {
                    return;
                }
                let mut entry = MapsEntry {
                    start: *start,
                    end: start.saturating_add(*len),
                    file_offset: *file_offset,
                    device: *device,
                    inode: *inode,
                    path: path.clone(),
                };
                // Of what was just executed the program itself is mapped first.
                if self.processes.get(&pid).is_some_and(|process| process.mappings.is_empty()) {
                    self.note_program(pid, &entry.path);
                }
                self.call_as_started(pid, &mut entry);
                let (module, bias) = self.module_of(pid, &entry, None, &[], tables);
                if let Some(process) = self.processes.get_mut(&pid) {
                    insert(
                        Rc::make_mut(&mut process.mappings),
                        entry.start,
                        Mapping { end: entry.end, module, bias },
                    );
                    self.changed.insert(pid);
                }
            }
            Event::Forked { parent } => {
                if let Some(parent) = self.processes.get(parent) {
                    let child =
                        Process { exited: false, may_have_exited: false, last_read_ns: 0, ..parent.clone() };
                    self.processes.insert(pid, child);
                    self.changed.insert(pid);
                } else {
                    self.processes.remove(&pid);
                }
            }
            Event::Exited => {
                if let Some(process) = self.processes.get_mut(&pid) {
                    process.exited = true;
                }
            }
            Event::Exec { .. } | Event::Mapped { .. } => {}
        }
    }

    /// Forgets processes that have exited. Call when all samples taken before have been resolved. A process lives
    /// on without its main thread; then its mappings can be read no more and must be kept.
    /// Returns the processes that are forgotten.
    pub fn sweep(&mut self, still_alive: impl Fn(u32) -> bool) -> Vec<u32> {
        let gone = self.processes.extract_if(|&pid, process| {
            let looked_for = process.exited || std::mem::take(&mut process.may_have_exited);
            looked_for && !still_alive(pid)
        });
        let gone: Vec<u32> = gone.map(|(pid, _)| pid).collect();
        // Those that never had names make room; what has names may still be asked for them.
        self.jit.retain(|pid, code| !code.is_empty() || !gone.contains(pid));
        gone
    }

    /// Processes whose mappings have changed since this was last asked.
    pub fn take_changed(&mut self) -> FxHashSet<u32> {
        std::mem::take(&mut self.changed)
    }

    /// Mapped files of a process, sorted by address.
    pub fn mapped_code(&self, pid: u32) -> impl Iterator<Item = MappedCode> {
        let mappings = self.processes.get(&pid).into_iter().flat_map(|process| process.mappings.iter());
        mappings.filter(|(_, mapping)| self.by_module.contains_key(&mapping.module)).map(
            |(&start, mapping)| MappedCode {
                start,
                end: mapping.end,
                module: mapping.module,
                bias: mapping.bias,
            },
        )
    }

    /// After lost notices no mapping can be trusted: each process's are read again before the next address of it is looked
    /// up. Until then its unwind tables stay as they are.
    pub fn distrust_all(&mut self) {
        for process in self.processes.values_mut() {
            (process.distrusted, process.may_have_exited) = (true, true);
        }
    }

    /// Turns a user address of a process into a frame.
    pub fn resolve(
        &mut self,
        pid: u32,
        address: u64,
        now_ns: u64,
        tables: &mut Tables,
    ) -> (Frame, Resolution) {
        let (frame, resolution) = self.place(pid, address, now_ns, tables);
        (self.tenant(frame, now_ns, tables), resolution)
    }

    fn place(&mut self, pid: u32, address: u64, now_ns: u64, tables: &mut Tables) -> (Frame, Resolution) {
        if self.processes.get(&pid).is_some_and(|process| process.distrusted) {
            self.read(pid, now_ns, tables);
        } else if let Some(frame) = self.lookup(pid, address) {
            return (frame, Resolution::Mapped);
        }
        let readable = match self.processes.get(&pid) {
            Some(process) if now_ns < process.last_read_ns.saturating_add(REREAD_NS) => process.known,
            _ => self.read(pid, now_ns, tables),
        };
        if let Some(frame) = self.lookup(pid, address) {
            return (frame, Resolution::Mapped);
        }
        let module = tables.module_id(Module::special(ModuleKind::Unmapped));
        (Frame { module, address }, if readable { Resolution::Unmapped } else { Resolution::ProcessGone })
    }

    /// The open file behind a module, if it could be opened.
    pub fn file(&self, module: ModuleId) -> Option<&Rc<File>> {
        self.by_module.get(&module)
    }

    /// The path of a module's file itself, whatever the program was started as.
    pub fn own_path<'a>(&'a self, id: ModuleId, module: &'a Module) -> &'a str {
        self.own_paths.get(&id).unwrap_or(&module.path)
    }

    /// Code without a file belongs to whoever had its memory at the time.
    fn tenant(&mut self, frame: Frame, time_ns: u64, tables: &mut Tables) -> Frame {
        let ModuleKind::Jit(pid) = tables.module(frame.module).kind else { return frame };
        self.read_jit(pid, time_ns, false);
        let Some(code) = self.jit.get(&pid) else { return frame };
        let tenant = code.tenant(frame.address, time_ns);
        self.reused += u64::from(tenant.uncertain);
        if tenant.number == 0 {
            return frame;
        }
        let module = Module { inode: tenant.number, ..Module::special(ModuleKind::Jit(pid)) };
        Frame { module: tables.module_id(module), ..frame }
    }

    /// Addresses of code without a file so far that came to belong to other code at about the time they were seen.
    pub fn reused(&self) -> u64 {
        self.reused
    }

    /// Brings what is known of a process's code without a file up to a moment; with `look` a file with names that is not
    /// known yet is looked for, even if it has just been.
    fn read_jit(&mut self, pid: u32, time_ns: u64, look: bool) {
        if self.jit.len() >= MAX_JIT_SOURCES && !self.jit.contains_key(&pid) {
            return;
        }
        let code = self.jit.entry(pid).or_default();
        if !code.is_older_than(time_ns) {
            return;
        }
        let now = monotonic_ns();
        let map = code.wants_source(now, look).then(|| jit::perf_map(&self.proc_root, pid)).flatten();
        map.into_iter().for_each(|map| code.open(map, false));
        code.read(now);
    }

    /// The name of code without a file of a process: of the tenant that a module stands for.
    pub fn jit_name(&self, pid: u32, module: &Module, address: u64) -> Option<&str> {
        self.jit.get(&pid)?.name(address, module.inode)
    }

    /// Reads what processes have written down by now.
    pub fn read_jit_now(&mut self, pid: u32) {
        self.read_jit(pid, monotonic_ns(), true);
    }

    /// Where the region of memory starts that an address without a file is in, as far as it was seen.
    pub fn jit_region(&self, pid: u32, address: u64) -> Option<u64> {
        self.jit_regions.get(&pid)?.find(address)
    }

    fn lookup(&self, pid: u32, address: u64) -> Option<Frame> {
        let process = self.processes.get(&pid)?;
        let (_, mapping) = process.mappings.range(..=address).next_back()?;
        (address < mapping.end)
            .then(|| Frame { module: mapping.module, address: address.wrapping_add(mapping.bias) })
    }

    /// Reads a process's mappings from /proc. Returns whether its mappings are known afterwards.
    fn read(&mut self, pid: u32, now_ns: u64, tables: &mut Tables) -> bool {
        let Ok(mut entries) = maps::read_all(&self.proc_root, pid) else {
            let process = self.processes.entry(pid).or_default();
            // It is gone, and what it had mapped when it was last seen is the best there is.
            process.distrusted = false;
            process.last_read_ns = now_ns;
            return process.known;
        };
        if let Ok(file) = std::fs::read_link(super::shown::shown(&self.proc_root, pid).join("exe")) {
            self.note_program(pid, &text::path(&file));
            entries.iter_mut().for_each(|(entry, _)| self.call_as_started(pid, entry));
        }
        let mut mappings = BTreeMap::new();
        // The first mapping of a file tells where all of it is loaded.
        let mut first: HashMap<FileKey, &MapsEntry> = HashMap::new();
        for (entry, _) in entries.iter().filter(|(entry, _)| entry.inode != 0) {
            first.entry(FileKey::of(entry)).or_insert(entry);
        }
        for (index, (entry, _)) in entries.iter().enumerate().filter(|(_, (_, rights))| rights.execute) {
            let near = around(&entries, index).map(|near| first[&FileKey::of(near)]);
            let near: Vec<&MapsEntry> = near.collect();
            let first = first.get(&FileKey::of(entry)).copied();
            let (module, bias) = self.module_of(pid, entry, first, &near, tables);
            insert(&mut mappings, entry.start, Mapping { end: entry.end, module, bias });
        }
        let process = self.processes.entry(pid).or_default();
        // A process that has just exited has no mappings any more; those seen before are still right.
        if !mappings.is_empty() || !process.known {
            process.kernel_thread = mappings.is_empty();
            process.mappings = Rc::new(mappings);
            self.changed.insert(pid);
        }
        process.known = true;
        process.distrusted = false;
        process.last_read_ns = now_ns;
        true
    }

    /// A mapping of the file that the process runs gets the name that this was started by.
    fn call_as_started(&self, pid: u32, entry: &mut MapsEntry) {
        let program = self.processes.get(&pid).and_then(|process| process.program.as_ref());
        if let Some(program) = program.filter(|program| program.0 == entry.path) {
            entry.path.clone_from(&program.1);
        }
    }

    /// Takes note of the file that a process runs, and of how it was started if that is still to be seen.
    fn note_program(&mut self, pid: u32, file: &str) {
        let known = self.processes.entry(pid).or_default();
        if known.program.as_ref().is_some_and(|program| program.0 == file || program.1 == file) {
            return;
        }
        let name = self.started_as.name(&self.proc_root, pid, file);
        known.program = Some(Rc::new((file.to_owned(), name)));
    }

    /// The module that a mapping shows a part of, and what to add to its addresses. What is executable is known by what
    /// it holds: memory with an ELF file in it is that file, whatever it is called. `first` is the first mapping of the
    /// same file, and `near` are those of the files mapped around this one, as far as they are known.
    fn module_of(
        &mut self,
        pid: u32,
        entry: &MapsEntry,
        first: Option<&MapsEntry>,
        near: &[&MapsEntry],
        tables: &mut Tables,
    ) -> (ModuleId, u64) {
        if entry.path == "[vdso]" {
            let module = tables.module_id(Module::special(ModuleKind::Vdso));
            if let Some(file) = self.vdso.take() {
                self.by_module.insert(module, Rc::new(file));
            }
            return (module, entry.start.wrapping_neg()); // its only segment starts at virtual address zero
        }
        if let Some(known) = self.code_file(pid, entry, tables) {
            let base = first.and_then(|first| known.elf.as_ref()?.base(first));
            let bias = known.elf.as_ref().and_then(|elf| elf.bias(entry, base)).unwrap_or(0);
            return (known.module, entry.file_offset.wrapping_sub(entry.start).wrapping_add(bias));
        }
        if let Some(copied) = self.copied_text(pid, entry, near, tables) {
            return copied;
        }
        // Before the process is gone.
        self.read_jit(pid, monotonic_ns(), true);
        if self.jit_regions.len() < MAX_JIT_PROCESSES || self.jit_regions.contains_key(&pid) {
            self.jit_regions.entry(pid).or_default().add(entry.start, entry.end);
        }
        // The kernel's own, where breakpoints lead to, has its name.
        let special = Module::special(ModuleKind::Jit(pid));
        let path = if entry.path == "[uprobes]" { entry.path.clone() } else { special.path.clone() };
        (tables.module_id(Module { path, ..special }), 0)
    }

    /// The file that a mapping shows; `None` for memory. Files without a name (memfd, System V shared memory) are files
    /// if ELF files.
    fn code_file(&mut self, pid: u32, entry: &MapsEntry, tables: &mut Tables) -> Option<&CodeFile> {
        if entry.inode == 0 || !entry.path.starts_with('/') {
            return None;
        }
        let key = FileKey::of(entry);
        if !self.files.contains_key(&key) {
            if self.files.len() >= MAX_FILES {
                return None;
            }
            let named = entry.has_name();
            if !named && self.not_elf.contains(&key) {
                return None;
            }
            let file = self.open(pid, entry);
            let elf = file.as_ref().and_then(ElfInfo::read);
            if !named && elf.is_none() {
                if self.not_elf.len() < MAX_OPEN_FILES {
                    self.not_elf.insert(key);
                }
                return None;
            }
            let module = tables.module_id(Module {
                kind: ModuleKind::File,
                path: entry.path.clone(),
                inode: entry.inode,
                build_id: elf.as_ref().map(|elf| elf.build_id.clone()).unwrap_or_default(),
            });
            if let Some(file) = &file
                && elf.is_none()
                && jit::is_dump(&entry.path)
                && let Ok(dump) = file.try_clone()
                && (self.jit.len() < MAX_JIT_SOURCES || self.jit.contains_key(&pid))
            {
                // Mapped for nothing but to be found.
                self.jit.entry(pid).or_default().open(dump, true);
            }
            if let Some(file) = file
                && self.by_module.len() < MAX_OPEN_FILES
            {
                self.by_module.insert(module, Rc::new(file));
            }
            let program = self.processes.get(&pid).and_then(|process| process.program.as_ref());
            if let Some(program) = program.filter(|program| program.1 == entry.path && program.0 != program.1)
            {
                self.own_paths.insert(module, program.0.clone());
            }
            self.files.insert(key.clone(), CodeFile { module, elf });
        }
        self.files.get(&key)
    }

    /// Memory that holds a copy of the code of a file, in its place: some programs move their code to large pages like
    /// that. What lay there before, or is mapped around it, tells which file; its bytes must be the same.
    fn copied_text(
        &mut self,
        pid: u32,
        entry: &MapsEntry,
        near: &[&MapsEntry],
        tables: &mut Tables,
    ) -> Option<(ModuleId, u64)> {
        let before = self.processes.get(&pid).and_then(|process| {
            let (_, before) = process.mappings.range(..=entry.start).next_back()?;
            (entry.end <= before.end && self.by_module.contains_key(&before.module))
                .then_some((before.module, before.bias))
        });
        let mut candidates: Vec<(ModuleId, u64)> = before.into_iter().collect();
        for first in near {
            let Some(known) = self.code_file(pid, first, tables) else { continue };
            let base = known.elf.as_ref().and_then(|elf| elf.base(first));
            candidates.extend(base.map(|base| (known.module, base.wrapping_neg())));
        }
        candidates.into_iter().find(|&(module, bias)| self.is_copy(pid, entry, module, bias).is_some())
    }

    /// Whether memory holds the same as a file, in some places.
    fn is_copy(&self, pid: u32, entry: &MapsEntry, module: ModuleId, bias: u64) -> Option<()> {
        const PLACES: u64 = 8;
        const BYTES: usize = 64;
        let file = self.by_module.get(&module)?;
        let elf = self.files.values().find(|file| file.module == module)?.elf.as_ref()?;
        let memory = ProcessMemory::open(&self.proc_root, pid)?;
        let (first, offset, len) = elf.code(entry.start.wrapping_add(bias), entry.end.wrapping_add(bias))?;
        let last = len.checked_sub(BYTES as u64)?;
        for place in (0..PLACES).map(|place| last / PLACES * place).chain([last]) {
            let (mut here, mut there) = ([0; BYTES], [0; BYTES]);
            memory.read_exact(first.wrapping_sub(bias).wrapping_add(place), &mut here)?;
            file.read_exact_at(&mut there, offset.wrapping_add(place)).ok()?;
            if here != there {
                return None;
            }
        }
        Some(())
    }

    /// Opens a mapped file: by its mapping, which works for deleted and replaced files too, or by its path if
    /// that still leads to the same inode.
    fn open(&self, pid: u32, entry: &MapsEntry) -> Option<File> {
        let process = super::shown::shown(&self.proc_root, pid);
        let by_mapping = process.join("map_files").join(format!("{:x}-{:x}", entry.start, entry.end));
        let (root, path) = (process.join("root"), Path::new(&entry.path));
        let same = |file: &File| file.metadata().is_ok_and(|metadata| metadata.ino() == entry.inode);
        let file = open::regular(&by_mapping).ok().filter(same);
        let file = file.or_else(|| open::in_root(&root, path).ok().filter(same));
        file.or_else(|| open::regular(path).ok().filter(same))
    }
}

/// The nearest mappings of files before and after the one at `index`.
fn around(entries: &[(MapsEntry, Rights)], index: usize) -> impl Iterator<Item = &MapsEntry> {
    let file = |(entry, _): &&(MapsEntry, Rights)| entry.inode != 0 && entry.path.starts_with('/');
    let memory = entries[index].0.inode == 0;
    let before = entries[..index].iter().rev().find(file);
    let after = entries[index + 1..].iter().find(file);
    before.into_iter().chain(after).filter(move |_| memory).map(|(entry, _)| entry)
}

/// Adds a mapping; what it covers of earlier ones is gone, as with mmap.
fn insert(mappings: &mut BTreeMap<u64, Mapping>, start: u64, mapping: Mapping) {
    let overlapping: Vec<u64> = mappings
        .range(..mapping.end)
        .rev()
        .take_while(|(_, old)| old.end > start)
        .map(|(&key, _)| key)
        .collect();
    for key in overlapping {
        let Some(old) = mappings.remove(&key) else { continue };
        if key < start {
            mappings.insert(key, Mapping { end: start, ..old });
        }
        if old.end > mapping.end {
            mappings.insert(mapping.end, old);
        }
    }
    mappings.insert(start, mapping);
}

#[cfg(test)]
mod tests;
