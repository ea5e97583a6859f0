//! Processes that a test makes in a folder.

use std::fs;

use super::*;

fn mapping(end: u64, module: u32) -> Mapping {
    Mapping { end, module: ModuleId(module), bias: 0 }
}

#[test]
fn regions_close_to_each_other_are_one() {
    let mut regions = Regions::default();
    for (start, end) in [(0x1000_0000, 0x1004_0000), (0x1200_0000, 0x1204_0000), (0x9000_0000, 0x9000_1000)] {
        regions.add(start, end);
    }
    let starts = [0x1000_0010, 0x1203_ffff, 0x1204_0000, 0x9000_0000].map(|at| regions.find(at));
    assert_eq!(starts, [Some(0x1000_0000), Some(0x1200_0000), None, Some(0x9000_0000)]);
    regions.add(0x1010_0000, 0x11f0_0000);
    assert_eq!(regions.find(0x1200_0001), Some(0x1000_0000), "the gap is filled");
}

fn shape(mappings: &BTreeMap<u64, Mapping>) -> Vec<(u64, u64, u32)> {
    mappings.iter().map(|(&start, mapping)| (start, mapping.end, mapping.module.0)).collect()
}

#[test]
fn a_new_mapping_hides_what_it_covers() {
    let mut mappings = BTreeMap::new();
    insert(&mut mappings, 100, mapping(200, 1));
    insert(&mut mappings, 200, mapping(300, 2));
    insert(&mut mappings, 150, mapping(250, 3));
    assert_eq!(shape(&mappings), [(100, 150, 1), (150, 250, 3), (250, 300, 2)]);
    insert(&mut mappings, 170, mapping(180, 4));
    assert_eq!(shape(&mappings), [(100, 150, 1), (150, 170, 3), (170, 180, 4), (180, 250, 3), (250, 300, 2)]);
    insert(&mut mappings, 0, mapping(1000, 5));
    assert_eq!(shape(&mappings), [(0, 1000, 5)]);
}

fn fake_process(maps: &str) -> (tempfile::TempDir, ProcessTable, Tables) {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("7")).unwrap();
    fs::write(root.path().join("7/maps"), maps).unwrap();
    let table = ProcessTable::new(root.path(), false);
    (root, table, Tables::default())
}

fn notice(pid: u32, event: Event) -> Notice {
    Notice { time_ns: 0, pid, event }
}

#[test]
fn processes_without_names_make_room_for_those_that_have_some() {
    let code = "5000-6000 r-xp 0 00:00 0 \n";
    let (root, mut table, mut tables) = fake_process(code);
    for pid in (8..).take(MAX_JIT_SOURCES + 1) {
        fs::create_dir_all(root.path().join(pid.to_string())).unwrap();
        fs::write(root.path().join(format!("{pid}/maps")), code).unwrap();
        table.resolve(pid, 0x5010, 0, &mut tables);
        table.apply(&notice(pid, Event::Exited), &mut tables);
        table.sweep(|_| false);
    }
    table.resolve(7, 0x5010, 0, &mut tables);
    assert_eq!(table.jit.keys().collect::<Vec<_>>(), [&7]);
}

#[test]
fn addresses_become_module_addresses() {
    let (_root, mut table, mut tables) =
        fake_process("1000-2000 r-xp 00003000 08:01 99 /bin/none\n5000-6000 r-xp 0 00:00 0 \n");
    let (frame, resolution) = table.resolve(7, 0x1010, 0, &mut tables);
    assert_eq!(resolution, Resolution::Mapped);
    assert_eq!(frame.address, 0x3010, "a file offset, since the file is not there to be read");
    assert_eq!(tables.module(frame.module).path, "/bin/none");
    let (frame, _) = table.resolve(7, 0x5010, 0, &mut tables);
    assert_eq!((frame.address, &tables.module(frame.module).kind), (0x5010, &ModuleKind::Jit(7)));
    assert_eq!(table.resolve(7, 0x9000, 0, &mut tables).1, Resolution::Unmapped);
    assert_eq!(table.resolve(8, 0x1000, 0, &mut tables).1, Resolution::ProcessGone);
}

#[test]
fn notices_change_mappings_and_exits_keep_them_until_swept() {
    let (_root, mut table, mut tables) = fake_process("1000-2000 r-xp 0 08:01 99 /bin/old\n");
    table.track(7, &mut tables);
    table.apply(&notice(8, Event::Forked { parent: 7 }), &mut tables);
    table.apply(&notice(7, Event::Exec { name: "new".into() }), &mut tables);
    let mapped = Event::Mapped {
        start: 0x1000,
        len: 0x1000,
        file_offset: 0,
        device: (8, 1),
        inode: 100,
        path: "/bin/new".into(),
    };
    table.apply(&notice(7, mapped), &mut tables);
    table.apply(&notice(7, Event::Exited), &mut tables);
    let path = |table: &mut ProcessTable, tables: &mut Tables, pid| {
        let (frame, _) = table.resolve(pid, 0x1800, 0, tables);
        tables.module(frame.module).path.clone()
    };
    assert_eq!(path(&mut table, &mut tables, 7), "/bin/new");
    assert_eq!(path(&mut table, &mut tables, 8), "/bin/old", "the child keeps its parent's");
    table.sweep(|_| false);
    assert!(table.lookup(7, 0x1800).is_none());
    assert!(table.lookup(8, 0x1800).is_some());
}

#[test]
fn after_lost_notices_mappings_are_read_again_and_kept_until_then() {
    let (root, mut table, mut tables) = fake_process("1000-2000 r-xp 0 08:01 99 /bin/old\n");
    table.track(7, &mut tables);
    table.apply(&notice(8, Event::Forked { parent: 7 }), &mut tables);
    table.take_changed();
    table.distrust_all();
    assert!(table.lookup(7, 0x1800).is_some(), "unwind tables stay in place");
    assert!(table.take_changed().is_empty());
    let path = |table: &mut ProcessTable, tables: &mut Tables, pid| {
        let (frame, _) = table.resolve(pid, 0x1800, 0, tables);
        tables.module(frame.module).path.clone()
    };
    fs::write(root.path().join("7/maps"), "1000-2000 r-xp 0 08:01 100 /bin/new\n").unwrap();
    assert_eq!(path(&mut table, &mut tables, 7), "/bin/new", "an exec was lost");
    assert!(table.take_changed().contains(&7));
    assert_eq!(path(&mut table, &mut tables, 8), "/bin/old", "what is gone cannot be read again");
    assert_eq!(table.sweep(|pid| pid == 7), [8], "an exit was lost");
    assert!(table.sweep(|_| false).is_empty(), "looked for once");
}
