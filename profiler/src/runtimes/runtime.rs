//! What a language runtime is to the rest: how it is found in a file, and how it names frames of a process.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use profiler_common::runtime::{Entry, RuntimeOffsets};
use rustc_hash::FxHashMap;

use crate::{
    model::{
        function::Function,
        memory::HeapSample,
        stack::{Frame, Language, ModuleId, ThreadKey},
    },
    process::memory::ProcessMemory,
};

/// A language runtime.
pub trait Runtime: Sync {
    /// What its functions are written in.
    fn language(&self) -> Language;

    /// Whether a file of this name may hold it: only then it is opened.
    fn recognises(&self, file_name: &str) -> bool;

    /// Finds out what is where in the runtime that a file of this name holds; `None` if it holds none. The error says in a few
    /// words why it cannot be read.
    fn open(&self, file: &File, name: &str) -> Option<Result<Box<dyn Build>, String>>;
}

/// A build of a runtime: what is the same for all its processes.
pub trait Build {
    /// Its bit in [`ProcessMappings::runtimes`](profiler_common::mapping::ProcessMappings::runtimes).
    fn bit(&self) -> u32;

    /// Prepares to name the frames of a process, and fills in what the kernel programs must know of it.
    fn attach(&self, place: Place, offsets: &mut RuntimeOffsets) -> Result<Box<dyn Attached>, NotAttached>;
}

/// Where a build is in a process.
pub struct Place {
    /// The process's memory.
    pub memory: ProcessMemory,
    /// What leads to its root (`/proc/PID/root`).
    pub root: PathBuf,
    /// The file.
    pub module: ModuleId,
    /// Added (wrapping) to an address in the file to get that in the process.
    pub bias: u64,
}

/// Why frames of a process are not named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotAttached {
    /// The runtime runs nothing yet: worth another try.
    NotYet,
    /// It is not what it seems, in a few words.
    Refused(String),
}

/// A runtime in a process.
pub trait Attached {
    /// From here on the program has run on: what was read before may have changed.
    fn new_round(&mut self);

    /// Names the frames of a stack that are the runtime's.
    fn name(&mut self, stack: &UserStack<'_>, naming: &mut Naming);

    /// What tells the frames of a thread that is asleep, where they lie in a list of their own, as the kernel programs copy it.
    fn frames_at_rest(&mut self, _proc_root: &Path, _thread: ThreadKey) -> Vec<Entry> {
        Vec::new()
    }

    /// Takes a sample of its heap, as it is at a time (CLOCK_MONOTONIC, ns), and says at how many bytes of heap the runtime ends
    /// the program, where that is known; `None` where the heap cannot be read.
    fn look_at_heap(
        &mut self,
        _proc_root: &Path,
        _pid: u32,
        _time_ns: u64,
    ) -> Option<(HeapSample, Option<u64>)> {
        None
    }
}

/// A user stack as the kernel programs sent it.
#[derive(Clone, Copy, Debug)]
pub struct UserStack<'a> {
    /// Its frames, innermost first.
    pub frames: &'a [UserFrame],
    /// What was copied of frames of runtimes.
    pub entries: &'a [Entry],
    /// Whether the frames reach the start of the thread.
    pub complete: bool,
}

/// A frame of a [`UserStack`].
#[derive(Clone, Copy, Debug)]
pub struct UserFrame {
    /// Absolute address; of callers the last byte of the call.
    pub address: u64,
    /// What it is in.
    pub frame: Frame,
    /// Whether that is memory without a file, for code that is made while the program runs.
    pub made_at_run_time: bool,
}

/// What becomes of a stack's frames.
#[derive(Clone, Debug, Default)]
pub struct Naming {
    /// By index of the frame, what takes its place.
    pub(super) replaced: FxHashMap<usize, Replacement>,
    /// Frames whose function could not be read.
    pub unnamed: u64,
}

/// What takes the place of a native frame.
#[derive(Clone, Debug, Default)]
pub struct Replacement {
    /// Frames, innermost first, each with its functions, the innermost inlined one first.
    pub frames: Vec<Vec<Function>>,
    /// What becomes of the native frame.
    pub native: Native,
}

/// What becomes of a native frame that others take the place of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Native {
    /// It is left out.
    #[default]
    Gone,
    /// It stays, called by the others.
    Inner,
    /// It stays, and has called the others.
    Outer,
}

impl Naming {
    /// Replaces a native frame.
    pub fn replace(&mut self, frame: usize, by: Replacement) {
        self.replaced.insert(frame, by);
    }
}
