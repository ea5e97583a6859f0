//! The maps of the allocation probe.

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, MapData};
use profiler_common::alloc::{AllocControl, Object, ObjectKey, StackTotals};

/// Maps that need memory only where the probe runs.
pub const LARGE_MAPS: [&str; 4] = ["CALLS", "OBJECTS", "ALLOC_STACKS", "STACK_CACHE"];

/// Maps of `profiler-ebpf/src/alloc.rs`.
pub struct AllocMaps {
    /// What is watched now; `None` once a thread of its own has it.
    pub control: Option<Control>,
    stacks: HashMap<MapData, u64, StackTotals>,
    objects: HashMap<MapData, ObjectKey, Object>,
    unknown_frees: HashMap<MapData, u32, u64>,
}

/// Says what is watched.
pub struct Control(Array<MapData, AllocControl>);

impl Control {
    /// From now on.
    pub fn set(&mut self, control: AllocControl) -> Result<()> {
        Ok(self.0.set(0, control, 0)?)
    }
}

impl AllocMaps {
    /// Takes the maps out of the loaded object.
    pub fn take(ebpf: &mut aya::Ebpf) -> Result<AllocMaps> {
        let mut take =
            |name: &str| ebpf.take_map(name).with_context(|| format!("kernel object has no map {name}"));
        Ok(AllocMaps {
            control: Some(Control(take("ALLOC_CONTROL")?.try_into()?)),
            stacks: take("ALLOC_STACKS")?.try_into()?,
            objects: take("OBJECTS")?.try_into()?,
            unknown_frees: take("UNKNOWN_FREES")?.try_into()?,
        })
    }

    /// What every stack allocated and freed so far.
    pub fn stacks(&self) -> impl Iterator<Item = (u64, StackTotals)> {
        self.stacks.iter().filter_map(Result::ok)
    }

    /// Objects that live, as far as watched.
    pub fn objects(&self) -> impl Iterator<Item = (ObjectKey, Object)> {
        self.objects.iter().filter_map(Result::ok)
    }

    /// Forgets an object.
    pub fn forget(&mut self, key: &ObjectKey) {
        let _freed_meanwhile = self.objects.remove(key);
    }

    /// Has the frees of unwatched objects of a process counted.
    pub fn add_process(&mut self, pid: u32) {
        const NOEXIST: u64 = 1;
        let _there_or_full = self.unknown_frees.insert(pid, 0, NOEXIST);
    }

    /// Frees of unwatched objects so far.
    pub fn unknown_frees(&self, pid: u32) -> u64 {
        self.unknown_frees.get(&pid, 0).unwrap_or(0)
    }
}
