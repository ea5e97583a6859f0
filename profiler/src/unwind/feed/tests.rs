use super::*;

#[test]
fn retired_slots_become_whole_again() {
    let mut slots = Slots::new(10);
    let place = |first, count| ProcessMappings { first, count, ..ProcessMappings::default() };
    assert_eq!((slots.take(3), slots.take(4), slots.take(4)), (Some(0), Some(3), None));
    slots.retire(place(0, 3));
    assert_eq!(slots.take(4), None, "not before the next update");
    slots.reuse_retired();
    assert_eq!(slots.take(2), Some(0));
    slots.retire(place(0, 2));
    slots.retire(place(3, 4));
    slots.reuse_retired();
    assert_eq!(slots.free, [(0, 10)]);
}

#[derive(Default)]
struct Fake {
    tables: FxHashMap<u32, Vec<Page>>,
    mappings: FxHashMap<u32, Mapping>,
    processes: FxHashMap<u32, ProcessMappings>,
    rules: Vec<Rule>,
    offsets: Vec<RuntimeOffsets>,
}

impl TableSink for Fake {
    fn set_rules(&mut self, first_id: u32, rules: &[Rule]) -> Result<()> {
        assert_eq!(first_id as usize, self.rules.len());
        self.rules.extend(rules);
        Ok(())
    }
    fn set_table(&mut self, index: u32, pages: &[Page]) -> Result<()> {
        assert!(self.tables.insert(index, pages.to_vec()).is_none());
        Ok(())
    }
    fn remove_table(&mut self, index: u32) -> Result<()> {
        assert!(self.tables.remove(&index).is_some());
        Ok(())
    }
    fn set_mappings(&mut self, first: u32, mappings: &[Mapping]) -> Result<()> {
        self.mappings.extend((first..).zip(mappings.iter().copied()));
        Ok(())
    }
    fn set_process(&mut self, pid: u32, mappings: ProcessMappings) -> Result<()> {
        self.processes.insert(pid, mappings);
        Ok(())
    }
    fn remove_process(&mut self, pid: u32) {
        self.processes.remove(&pid);
    }
    fn set_runtime_offsets(&mut self, index: u32, offsets: &RuntimeOffsets) -> Result<()> {
        assert!((index as usize) < MAX_RUNTIME_OFFSETS);
        self.offsets.resize(self.offsets.len().max(index as usize + 1), RuntimeOffsets::default());
        self.offsets[index as usize] = *offsets;
        Ok(())
    }
    fn page(&self, table: u32, page: u32) -> Option<Page> {
        self.tables.get(&table)?.get(page as usize).copied()
    }
    fn rule(&self, id: u32) -> Option<Rule> {
        self.rules.get(id as usize).copied()
    }
}

/// For ever.
const ENOUGH: Duration = Duration::from_secs(60);

/// This very process, and a feeder that has its tables.
fn fed() -> (u32, ProcessTable, Feeder<Fake>) {
    let mut tables = crate::model::stack::Tables::default();
    let mut processes = ProcessTable::new(std::path::Path::new("/proc"), false);
    let me = std::process::id();
    processes.track(me, &mut tables);
    let mut feeder = Feeder::new(Fake::default(), DEFAULT_BUDGET_BYTES);
    feeder.want(me);
    feeder.settle(&processes, ENOUGH).unwrap();
    (me, processes, feeder)
}

#[test]
fn this_very_process_gets_tables_and_gives_them_back() {
    let (me, processes, mut feeder) = fed();
    let place = feeder.sink.processes[&me];
    let here = this_very_process_gets_tables_and_gives_them_back as *const () as u64;
    let mappings: Vec<Mapping> =
        (place.first..place.first + place.count).map(|i| feeder.sink.mappings[&i]).collect();
    assert!(mappings.is_sorted_by_key(|mapping| mapping.start));
    let found = mappings.iter().find(|mapping| (mapping.start..mapping.end).contains(&here)).unwrap();
    assert!(here.wrapping_add(found.to_table) >> BUCKET_SHIFT < found.buckets.into());

    assert!(feeder.unused(&processes).is_empty());
    let in_kernel = feeder.processes.remove(&me).unwrap();
    assert!(feeder.unused(&processes).is_empty(), "it waits for others");
    feeder.processes.insert(me, in_kernel);
    feeder.forget(me);
    let unused = feeder.unused(&processes);
    feeder.evict(&unused).unwrap();
    assert!(feeder.sink.processes.is_empty() && feeder.sink.tables.is_empty());
    assert_eq!(feeder.free_indices.len(), MAX_TABLES);
}

#[test]
fn a_process_waits_for_all_its_tables_unless_java_runs_in_it() {
    let (me, processes, mut feeder) = fed();
    let all = feeder.sink.processes[&me].count;
    let own = processes.mapped_code(me).next().unwrap().module;
    feeder.tables.insert(own, State::Building);
    for (bits, missing) in [(0, false), (HOTSPOT, true)] {
        feeder.set_runtimes(me, InProcess { bits, ..InProcess::default() });
        feeder.mappings_changed(me);
        feeder.update(&processes).unwrap();
        assert_eq!(feeder.sink.processes[&me].count < all, missing, "{bits}");
    }
}

#[test]
fn offsets_of_processes_that_are_gone_make_room_for_others() {
    let mut feeder = Feeder::new(Fake::default(), DEFAULT_BUDGET_BYTES);
    let place = |pid: u32, feeder: &mut Feeder<Fake>| {
        let mut offsets = RuntimeOffsets::default();
        offsets.hotspot.interpreter = pid.into();
        feeder.runtimes.insert(pid, InProcess { bits: 1, offsets });
        let (runtimes, offsets) = feeder.runtimes_of(pid).unwrap();
        let place = ProcessMappings { runtimes, offsets, ..ProcessMappings::default() };
        feeder.processes.insert(pid, InKernel { place, modules: Vec::new(), mappings: Vec::new() });
        (runtimes, offsets)
    };
    let most = MAX_RUNTIME_OFFSETS as u32;
    for pid in 0..most {
        assert_eq!(place(pid, &mut feeder), (1, pid));
    }
    assert_eq!(place(most, &mut feeder), (0, 0), "there is no room");
    feeder.forget(7);
    assert_eq!(place(most, &mut feeder), (1, 7));
    assert_eq!(feeder.sink.offsets[7].hotspot.interpreter, u64::from(most));
    assert_eq!(place(3, &mut feeder), (1, 3), "it has its own still");
}

#[test]
fn a_budget_too_small_is_a_reason() {
    let mut tables = crate::model::stack::Tables::default();
    let mut processes = ProcessTable::new(std::path::Path::new("/proc"), false);
    let me = std::process::id();
    processes.track(me, &mut tables);
    let mut feeder = Feeder::new(Fake::default(), 8192);
    feeder.want(me);
    feeder.settle(&processes, ENOUGH).unwrap();
    let report = feeder.report(|module| tables.module(module).path.clone());
    assert!(report.table_bytes <= 8192);
    assert!(report.failed.iter().any(|(_, reason)| reason.contains("memory budget")), "{report:?}");
}
