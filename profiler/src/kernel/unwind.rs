//! The kernel's copy of the unwind tables.

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, MapData, of_maps::ArrayOfMaps};
use profiler_common::{
    mapping::{Mapping, ProcessMappings, USER_GENERATION},
    runtime::RuntimeOffsets,
    unwind::{Page, Rule},
};

use rustc_hash::FxHashMap;

use crate::unwind::feed::TableSink;

/// Lets inner maps differ in size (`BPF_F_INNER_MAP`, Linux 5.10).
const INNER_MAP: u32 = 1 << 12;

/// A page as a map value.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct PageValue(Page);

// SAFETY: transparent over an array of u64.
unsafe impl aya::Pod for PageValue {}

/// Maps of `profiler-ebpf/src/unwind.rs`.
pub struct UnwindMaps {
    processes: HashMap<MapData, u32, ProcessMappings>,
    generations: Array<MapData, u64>,
    /// Changes of `processes` so far.
    generation: u64,
    mappings: Array<MapData, Mapping>,
    tables: ArrayOfMaps<MapData, Array<MapData, PageValue>>,
    rules: Array<MapData, Rule>,
    runtimes: Array<MapData, RuntimeOffsets>,
    /// The inner maps, by index.
    loaded: FxHashMap<u32, Array<MapData, PageValue>>,
    /// A slot of the outer map cannot be emptied, only replaced.
    empty: Array<MapData, PageValue>,
}

impl UnwindMaps {
    /// Takes the maps out of the loaded object.
    pub fn take(ebpf: &mut aya::Ebpf) -> Result<UnwindMaps> {
        let mut take =
            |name: &str| ebpf.take_map(name).with_context(|| format!("kernel object has no map {name}"));
        Ok(UnwindMaps {
            processes: take("PROCESSES")?.try_into()?,
            generations: take("PROCESS_GENERATIONS")?.try_into()?,
            generation: 0,
            mappings: take("MAPPINGS")?.try_into()?,
            tables: take("TABLES")?.try_into()?,
            rules: take("RULES")?.try_into()?,
            runtimes: take("RUNTIMES")?.try_into()?,
            loaded: FxHashMap::default(),
            empty: Array::create(1, INNER_MAP)?,
        })
    }
}

impl UnwindMaps {
    /// Makes the kernel programs forget what they know of processes: after a change.
    fn count_change(&mut self) -> Result<()> {
        self.generation += 1;
        Ok(self.generations.set(USER_GENERATION, self.generation, 0)?)
    }
}

impl TableSink for UnwindMaps {
    fn set_rules(&mut self, first_id: u32, rules: &[Rule]) -> Result<()> {
        for (id, rule) in (first_id..).zip(rules) {
            self.rules.set(id, rule, 0)?;
        }
        Ok(())
    }

    fn set_table(&mut self, index: u32, pages: &[Page]) -> Result<()> {
        let mut table = Array::create(pages.len() as u32, INNER_MAP)?;
        for (number, page) in (0..).zip(pages) {
            table.set(number, PageValue(*page), 0)?;
        }
        self.tables.set(index, &table, 0)?;
        self.loaded.insert(index, table);
        Ok(())
    }

    fn remove_table(&mut self, index: u32) -> Result<()> {
        self.loaded.remove(&index);
        Ok(self.tables.set(index, &self.empty, 0)?)
    }

    fn set_mappings(&mut self, first: u32, mappings: &[Mapping]) -> Result<()> {
        for (index, mapping) in (first..).zip(mappings) {
            self.mappings.set(index, mapping, 0)?;
        }
        Ok(())
    }

    fn set_process(&mut self, pid: u32, mappings: ProcessMappings) -> Result<()> {
        let epoch = self.generation as u32 + 1; // of the change that this is
        self.processes.insert(pid, ProcessMappings { epoch, ..mappings }, 0)?;
        self.count_change()
    }

    fn remove_process(&mut self, pid: u32) {
        let _never_was_there = self.processes.remove(&pid);
        let _as_before = self.count_change();
    }

    fn set_runtime_offsets(&mut self, index: u32, offsets: &RuntimeOffsets) -> Result<()> {
        Ok(self.runtimes.set(index, offsets, 0)?)
    }

    fn page(&self, table: u32, page: u32) -> Option<Page> {
        Some(self.loaded.get(&table)?.get(&page, 0).ok()?.0)
    }

    fn rule(&self, id: u32) -> Option<Rule> {
        self.rules.get(&id, 0).ok()
    }
}
