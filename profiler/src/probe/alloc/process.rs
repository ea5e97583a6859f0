//! One process whose growth is looked at, and whose allocator is watched when it grows; and one of the places that allocate.

use std::path::{Path, PathBuf};

use profiler_common::alloc::StackTotals;

use super::{
    allocators::{self, Known, Library},
    growth::{Touched, Trend},
    managed::Looks,
    programs::breakpoints,
};
use crate::{
    kernel::uprobe::Breakpoint,
    model::{
        memory::{Growth, Heap, LivePoint},
        series::Series,
    },
    settings::Alloc,
};

/// What is known of it.
#[derive(Default)]
pub struct Process {
    /// As the kernel names it.
    pub name: String,
    /// What it held over time.
    pub growth: Series<Growth>,
    /// Its part of what all share, at the first look.
    pub touched: Touched,
    /// What was allocated and not freed, while watched.
    pub heap: Series<Heap>,
    /// The heap of its language runtime.
    pub managed: Looks,
    /// It has ended.
    pub gone: bool,
    /// Its allocator's functions, once they are or were watched.
    pub libraries: Vec<Library>,
    /// Where they are probed.
    pub breakpoints: Vec<Breakpoint>,
    /// They are to be watched now.
    pub watched: bool,
    /// Mappings or program have changed since its allocator was looked for.
    pub stale: bool,
    trend: Trend,
}

/// One of the kernel's stacks.
#[derive(Default)]
pub struct SiteState {
    /// What was live over time.
    pub points: Series<LivePoint>,
    /// All that was seen of it.
    pub totals: Option<Box<StackTotals>>,
    /// Bytes and objects that went with their process or its former program.
    pub gone: (u64, u64),
}

impl Process {
    /// Nothing is known but its name.
    pub fn new(name: Option<String>) -> Process {
        Process { name: name.unwrap_or_default(), stale: true, ..Process::default() }
    }

    /// It runs another program now.
    pub fn begin_anew(&mut self, name: String) {
        self.name = name;
        (self.growth, self.heap, self.trend, self.touched) = Default::default();
    }

    /// Takes note of what it holds. Whether its allocator is to be watched.
    pub fn grows(&mut self, growth: Growth, mode: Alloc) -> bool {
        let grows = self.trend.add(growth.time_ns, growth.held_bytes());
        self.growth.push(growth);
        match mode {
            Alloc::Off => false,
            Alloc::Full => true,
            Alloc::Auto if self.watched => !self.trend.rests(growth.time_ns),
            Alloc::Auto => grows,
        }
    }

    /// By how much it has grown, bytes.
    pub fn grown_bytes(&self) -> u64 {
        let held = |growth: Option<&Growth>| growth.map_or(0, Growth::held_bytes);
        held(self.growth.last()).saturating_sub(held(self.growth.points().first()))
    }

    /// Whether its allocator is or was watched.
    pub fn was_watched(&self) -> bool {
        self.watched || !self.libraries.is_empty()
    }

    /// Looks for its allocators; returns whether there are new ones.
    pub fn find_allocators(
        &mut self,
        pid: u32,
        proc_root: &Path,
        also: &[PathBuf],
        known: &mut Known,
    ) -> bool {
        self.stale = false;
        let before = self.breakpoints.len();
        for library in allocators::find(proc_root, pid, also, known) {
            let is_it =
                |probed: &Library| probed.name == library.name && probed.functions == library.functions;
            if !self.libraries.iter().any(is_it) {
                self.breakpoints.extend(breakpoints(&library));
                self.libraries.push(library);
            }
        }
        self.breakpoints.len() != before
    }

    /// What of its allocators cannot be watched.
    pub fn problems(&self, pid: u32) -> Vec<String> {
        let none = (self.breakpoints.is_empty() && !self.watched).then(|| {
            format!(
                "{} (pid {pid}): no allocator found among the symbols of its files (a stripped static one has none; \
                 --alloc-lib FILE names others)",
                self.name
            )
        });
        let unseen = self.libraries.iter().filter(|library| !library.unseen.is_empty());
        let unseen = unseen.map(|library| {
            let name = library.name.rsplit('/').next().unwrap_or_default();
            format!("{name}: operator {}: where it returns cannot be told", library.unseen.join(", "))
        });
        unseen.chain(none).collect()
    }
}
