//! The maps of the allocation probe.

use anyhow::Result;
use aya::maps::{Array, HashMap, MapData};
use profiler_common::alloc::{AllocControl, Object, ObjectKey, StackTotals};

use crate::kernel::Kernel;

/// The maps of the allocation probe, so that a fake can stand in for the kernel's.
pub trait AllocMaps {
    /// What every stack allocated and freed so far.
    fn stacks(&self) -> Box<dyn Iterator<Item = (u64, StackTotals)> + '_>;

    /// Objects that live, as far as watched.
    fn objects(&self) -> Box<dyn Iterator<Item = (ObjectKey, Object)> + '_>;

    /// Forgets an object.
    fn forget(&mut self, key: &ObjectKey);

    /// Mappings that live, as far as watched and known.
    fn mappings(&self) -> Box<dyn Iterator<Item = (ObjectKey, Object)> + '_>;

    /// Only so many bytes of a mapping are left; with none it is forgotten. False if it has ended meanwhile, or another
    /// one is at its address.
    fn shrink(&mut self, key: &ObjectKey, known: &Object, left: u64) -> bool;

    /// Forgets what a stack allocated and freed.
    fn forget_stack(&mut self, id: u64);

    /// Has the frees of unwatched objects of a process counted.
    fn add_process(&mut self, pid: u32);

    /// Forgets how many there were.
    fn forget_process(&mut self, pid: u32);

    /// Frees of unwatched objects so far.
    fn unknown_frees(&self, pid: u32) -> u64;
}

/// Maps of `profiler-ebpf/src/alloc.rs`.
pub struct KernelMaps {
    stacks: HashMap<MapData, u64, StackTotals>,
    objects: HashMap<MapData, ObjectKey, Object>,
    mappings: HashMap<MapData, ObjectKey, Object>,
    unknown_frees: HashMap<MapData, u32, u64>,
}

/// Says what is watched.
pub struct Control(Array<MapData, AllocControl>);

impl Control {
    /// Takes its map out of the loaded object.
    pub fn take(kernel: &mut Kernel) -> Result<Control> {
        Ok(Control(kernel.take_map("ALLOC_CONTROL")?.try_into()?))
    }

    /// From now on.
    pub fn set(&mut self, control: AllocControl) -> Result<()> {
        Ok(self.0.set(0, control, 0)?)
    }
}

impl KernelMaps {
    /// Takes the maps out of the loaded object.
    pub fn take(kernel: &mut Kernel) -> Result<KernelMaps> {
        Ok(KernelMaps {
            stacks: kernel.take_map("ALLOC_STACKS")?.try_into()?,
            objects: kernel.take_map("OBJECTS")?.try_into()?,
            mappings: kernel.take_map("MAPPED")?.try_into()?,
            unknown_frees: kernel.take_map("UNKNOWN_FREES")?.try_into()?,
        })
    }
}

impl AllocMaps for KernelMaps {
    fn stacks(&self) -> Box<dyn Iterator<Item = (u64, StackTotals)> + '_> {
        Box::new(self.stacks.iter().filter_map(Result::ok))
    }

    fn objects(&self) -> Box<dyn Iterator<Item = (ObjectKey, Object)> + '_> {
        Box::new(self.objects.iter().filter_map(Result::ok))
    }

    fn forget(&mut self, key: &ObjectKey) {
        let _freed_meanwhile = self.objects.remove(key);
    }

    fn mappings(&self) -> Box<dyn Iterator<Item = (ObjectKey, Object)> + '_> {
        Box::new(self.mappings.iter().filter_map(Result::ok))
    }

    fn shrink(&mut self, key: &ObjectKey, known: &Object, left: u64) -> bool {
        const EXIST: u64 = 2;
        if !self.mappings.get(key, 0).is_ok_and(|now| now.time_ns == known.time_ns) {
            return false;
        }
        match left {
            0 => self.mappings.remove(key).is_ok(),
            size => self.mappings.insert(key, Object { size, ..*known }, EXIST).is_ok(),
        }
    }

    fn forget_stack(&mut self, id: u64) {
        let _had_no_totals = self.stacks.remove(&id);
    }

    fn add_process(&mut self, pid: u32) {
        const NOEXIST: u64 = 1;
        let _there_or_full = self.unknown_frees.insert(pid, 0, NOEXIST);
    }

    fn forget_process(&mut self, pid: u32) {
        let _was_none = self.unknown_frees.remove(&pid);
    }

    fn unknown_frees(&self, pid: u32) -> u64 {
        self.unknown_frees.get(&pid, 0).unwrap_or(0)
    }
}
