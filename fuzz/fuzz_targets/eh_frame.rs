#![no_main]

use libfuzzer_sys::fuzz_target;
use profiler::unwind::{RuleTable, Table};
use profiler_common::unwind::{bucket_page, decode_bucket, decode_row, row_at, row_page};

fuzz_target!(|data: &[u8]| {
    let Some((&kind, data)) = data.split_first() else { return };
    let mut rules = RuleTable::new();
    let built = if kind == 0 {
        Table::build(data, &mut rules)
    } else {
        let machine = if kind & 2 == 0 { 62 } else { 183 };
        Table::build(file_around(machine, kind & 1 != 0, data).as_slice(), &mut rules)
    };
    if let Ok(table) = built {
        check(&table, &rules);
    }
});

/// What the kernel programs rely on.
fn check(table: &Table, rules: &RuleTable) {
    assert_eq!(table.base % 256, 0);
    assert_eq!(table.bucket_pages, table.buckets.div_ceil(512));
    for bucket in 0..table.buckets {
        let (page, slot) = bucket_page(bucket);
        let (lo, count) = decode_bucket(table.pages[page as usize][slot as usize]);
        assert!((1..=256).contains(&count));
        let (page, slot) = row_page(lo);
        assert!(slot + count <= 1024, "a bucket's rows are in one page");
        let page = &table.pages[(table.bucket_pages + page) as usize];
        let mut before = None;
        for index in slot..slot + count {
            let (offset, rule) = decode_row(row_at(page, index));
            assert!(rules.get(rule).is_some());
            assert!(before.map_or(offset == 0, |before| offset > before));
            before = Some(offset);
            let address = table.base + u64::from(bucket) * 256 + u64::from(offset);
            assert_eq!(table.find(address), Some(rule));
        }
    }
}

/// An ELF file of one segment of code (64 KiB at 0x1000), with the section at 0x20000.
fn file_around(machine: u16, debug_frame: bool, frames: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    let names: &[u8] = if debug_frame { b"\0.debug_frame\0" } else { b"\0.eh_frame\0" };
    let frames_at = 64 + 56;
    let names_at = frames_at + frames.len();
    let sections_at = (names_at + names.len()).next_multiple_of(8);
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend(3u16.to_le_bytes());
    file.extend(machine.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    for word in [0, 64, sections_at as u64] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 3, 2] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    file.extend(5u32.to_le_bytes());
    for word in [0u64, 0x1000, 0x1000, 0x1000, 0x10000, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(frames);
    file.extend(names);
    file.resize(sections_at + 64, 0);
    for (name, offset, size) in [(1u32, frames_at, frames.len()), (0, names_at, names.len())] {
        file.extend(name.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        for word in [0u64, 0x20000, offset as u64, size as u64] {
            file.extend(word.to_le_bytes());
        }
        file.extend([0; 24]);
    }
    file
}
