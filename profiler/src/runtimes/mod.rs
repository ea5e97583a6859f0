//! Language runtimes: programs whose functions are not told by addresses.
//!
//! ```text
//! file of a process -> Runtime::open -> Build -> offsets for the kernel programs
//!                                         |
//!                                         +----> attach -> Attached: names the frames of this process
//! ```
//!
//! The kernel programs copy a few words for each frame (`profiler_common::runtime`). At the next drain, while what they lead to
//! is still there, [`Runtimes::name`] turns them into functions, before the stack is interned: objects move and die, names do
//! not. Interned functions are frames of a module of kind [`ModuleKind::Managed`], so recordings and
//! outputs know no runtime.
//!
//! A second runtime is a folder with a [`Runtime`] in [`RUNTIMES`], a bit, offsets and a kind of entry in
//! `profiler_common::runtime`, and what copies its words in the kernel. One whose frames do not lie in native ones one by one
//! (CPython: a list of its own) has entries that belong to no address, and in [`Attached::name`] replaces the native frames of
//! its interpreter by as many frames as each of them ran.

use std::{path::PathBuf, rc::Rc};

use profiler_common::runtime::{Entry, RuntimeOffsets};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    model::{
        memory::HeapSample,
        stack::{Frame, Language, Module, ModuleId, ModuleKind, Tables, ThreadKey},
    },
    process::{ProcessTable, memory::ProcessMemory, shown},
};

pub mod exported;
pub mod hotspot;
pub mod memory;
pub mod python;
pub mod runtime;
pub mod v8;

use runtime::{Attached, Build, Naming, Native, NotAttached, Place, Replacement, Runtime};
pub use runtime::{UserFrame, UserStack};

/// Every runtime.
pub static RUNTIMES: &[&dyn Runtime] = &[&v8::Node, &python::CPython, &hotspot::HotSpot];

/// What the kernel programs must know of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InProcess {
    /// Bits of its runtimes.
    pub bits: u32,
    /// Their offsets.
    pub offsets: RuntimeOffsets,
}

/// The runtimes of all processes.
pub struct Runtimes {
    proc_root: PathBuf,
    enabled: bool,
    builds: FxHashMap<(usize, ModuleId), Option<Rc<dyn Build>>>,
    processes: FxHashMap<u32, Process>,
    round: u64,
}

#[derive(Default)]
struct Process {
    /// The files it was found in.
    modules: Vec<(usize, ModuleId)>,
    known: InProcess,
    attached: Vec<(Language, Box<dyn Attached>)>,
    /// Of those, what runs nothing yet.
    pending: Vec<(usize, ModuleId)>,
    round: u64,
}

/// What a file is called itself: links to it have any name.
fn file_name<'a>(module: ModuleId, processes: &'a ProcessTable, tables: &'a Tables) -> &'a str {
    let path = processes.own_path(module, tables.module(module));
    path.rsplit('/').next().unwrap_or(path)
}

impl Runtimes {
    /// Knows of none yet. With `enabled` false it never will.
    pub fn new(proc_root: PathBuf, enabled: bool) -> Runtimes {
        Runtimes {
            proc_root,
            enabled,
            builds: FxHashMap::default(),
            processes: FxHashMap::default(),
            round: 0,
        }
    }

    /// Looks for runtimes among the files that a process has mapped.
    pub fn look(&mut self, pid: u32, processes: &ProcessTable, tables: &Tables) -> InProcess {
        if !self.enabled {
            return InProcess::default();
        }
        let files: FxHashSet<ModuleId> = processes.mapped_code(pid).map(|code| code.module).collect();
        let mut modules = Vec::new();
        for (index, runtime) in RUNTIMES.iter().enumerate() {
            let named =
                files.iter().filter(|&&module| runtime.recognises(file_name(module, processes, tables)));
            modules.extend(named.map(|&module| (index, module)));
        }
        modules.sort_unstable();
        let process = self.processes.entry(pid).or_default();
        if process.modules != modules {
            *process = Process { pending: modules.clone(), modules, ..Process::default() };
        }
        for (index, module) in std::mem::take(&mut process.pending) {
            let (language, path) = (RUNTIMES[index].language(), &tables.module(module).path);
            let refused =
                |why: &String| crate::say!("profiler: {language} functions of {path} have no names: {why}");
            let build = self.builds.entry((index, module)).or_insert_with(|| {
                let opened =
                    RUNTIMES[index].open(processes.file(module)?, file_name(module, processes, tables))?;
                Some(Rc::from(opened.inspect_err(refused).ok()?))
            });
            let Some((build, memory)) = build.as_ref().zip(ProcessMemory::open(&self.proc_root, pid)) else {
                continue;
            };
            let code = processes.mapped_code(pid).find(|code| code.module == module);
            let bias = code.map_or(0, |code| code.bias.wrapping_neg());
            let root = shown::shown(&self.proc_root, pid).join("root");
            match build.attach(Place { memory, root, module, bias }, &mut process.known.offsets) {
                Ok(attached) => {
                    process.known.bits |= build.bit();
                    process.attached.push((language, attached));
                }
                Err(NotAttached::NotYet) => process.pending.push((index, module)),
                Err(NotAttached::Refused(why)) => refused(&why),
            }
        }
        process.known
    }

    /// Processes whose runtime ran nothing yet when it was looked at: worth another look.
    pub fn pending(&self) -> Vec<u32> {
        let pending = self.processes.iter().filter(|(_, process)| !process.pending.is_empty());
        pending.map(|(&pid, _)| pid).collect()
    }

    /// Forgets a process that is gone, or another program now.
    pub fn forget(&mut self, pid: u32) {
        self.processes.remove(&pid);
    }

    /// The programs have run on since names were last asked for.
    pub fn new_round(&mut self) {
        self.round += 1;
    }

    /// What tells the frames of a thread that is asleep and that lie in no native ones.
    pub fn frames_at_rest(&mut self, thread: ThreadKey) -> Vec<Entry> {
        let Some(process) = self.processes.get_mut(&thread.pid) else { return Vec::new() };
        let each = process.attached.iter_mut();
        each.flat_map(|(_, attached)| attached.frames_at_rest(&self.proc_root, thread)).collect()
    }

    /// Takes a sample of the heap of a process's runtime, with the bytes at which that ends the process, if it has one whose
    /// heap can be read.
    pub fn look_at_heap(&mut self, pid: u32, time_ns: u64) -> Option<(HeapSample, Option<u64>)> {
        let attached = &mut self.processes.get_mut(&pid)?.attached;
        attached.iter_mut().find_map(|(_, attached)| attached.look_at_heap(&self.proc_root, pid, time_ns))
    }

    /// Writes a stack's frames to `into`, those of runtimes by their functions. Returns how many have no name.
    pub fn name(
        &mut self,
        pid: u32,
        stack: &UserStack<'_>,
        processes: &ProcessTable,
        tables: &mut Tables,
        into: &mut Vec<Frame>,
    ) -> u64 {
        if stack.entries.is_empty() && !stack.frames.iter().any(|user| user.made_at_run_time) {
            into.extend(stack.frames.iter().map(|user| user.frame));
            return 0;
        }
        if !self.processes.contains_key(&pid) {
            self.look(pid, processes, tables); // a child has its parent's runtimes
        }
        let Some(process) = self.processes.get_mut(&pid) else { return 0 };
        let mut unnamed = 0;
        let mut names: FxHashMap<usize, (Language, Replacement)> = FxHashMap::default();
        for (language, attached) in &mut process.attached {
            if process.round != self.round {
                attached.new_round();
            }
            let mut naming = Naming::default();
            attached.name(stack, &mut naming);
            unnamed += naming.unnamed;
            names.extend(naming.replaced.into_iter().map(|(frame, by)| (frame, (*language, by))));
        }
        process.round = self.round;
        'frames: for (index, user) in stack.frames.iter().enumerate() {
            let Some((language, by)) = names.remove(&index) else {
                into.push(user.frame);
                continue;
            };
            let begin = into.len();
            if by.native == Native::Inner {
                into.push(user.frame);
            }
            let module = tables.module_id(Module::special(ModuleKind::Managed(language)));
            for functions in by.frames {
                match tables.managed_frame(module, functions) {
                    Some(frame) => into.push(frame),
                    None => {
                        into.truncate(begin);
                        into.push(user.frame);
                        unnamed += 1;
                        continue 'frames;
                    }
                }
            }
            if by.native == Native::Outer {
                into.push(user.frame);
            }
        }
        unnamed
    }
}
