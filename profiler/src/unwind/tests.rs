//! Tables against the parser they are made with, on real files; and against real stacks.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use gimli::{
    BaseAddresses, CfaRule, EhFrame, LittleEndian, Register, RegisterRule, UnwindContext, UnwindSection,
};
use profiler_common::unwind::{CfaKind, FpKind, RaKind, Rule};
use proptest::prelude::*;

use crate::unwind::{
    RuleTable, Table,
    image::{Image, Machine},
    outcome::{BuildError, Source},
};

/// The vDSO of this process: a small, complete ELF image.
fn vdso() -> &'static [u8] {
    // SAFETY: no arguments in memory.
    let address = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) } as usize;
    assert_ne!(address, 0);
    let map = fs::read_to_string("/proc/self/maps").unwrap();
    let line = map.lines().find(|line| line.ends_with("[vdso]")).unwrap();
    let (start, rest) = line.split_once('-').unwrap();
    assert_eq!(usize::from_str_radix(start, 16).unwrap(), address);
    let end = usize::from_str_radix(rest.split_once(' ').unwrap().0, 16).unwrap();
    // SAFETY: the kernel keeps this mapping readable for the life of the process.
    unsafe { std::slice::from_raw_parts(address as *const u8, end - address) }
}

/// Files mapped executable into this process, `/bin/ls`, and node if it is on the path.
fn real_files() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = crate::process::maps::read(Path::new("/proc"), std::process::id())
        .unwrap()
        .into_iter()
        .filter(|entry| entry.inode != 0)
        .map(|entry| PathBuf::from(entry.path))
        .collect();
    files.push("/bin/ls".into());
    let path = std::env::var_os("PATH").unwrap_or_default();
    files.extend(std::env::split_paths(&path).map(|dir| dir.join("node")));
    files.retain(|file| file.exists());
    files.sort();
    files.dedup();
    files
}

/// Whether a rule says what gimli's row says. Written from the row's side, so as not to repeat the translation.
fn says_the_same(
    rule: &Rule,
    row: &gimli::UnwindTableRow<usize>,
    frames: &EhFrame<gimli::EndianSlice<'_, LittleEndian>>,
) -> bool {
    let operations = |expression: &gimli::UnwindExpression<usize>| -> Vec<u8> {
        expression.get(frames).unwrap().0.slice().to_vec()
    };
    // `DW_OP_breg6` or `DW_OP_breg7` and a signed LEB128 that must be the offset.
    let is_breg = |bytes: &[u8], register: u8, offset: i32| {
        let mut expected = vec![0x70 + register];
        let mut value = offset;
        loop {
            let byte = (value & 0x7f) as u8;
            value >>= 7;
            let done = (value == 0 && byte & 0x40 == 0) || (value == -1 && byte & 0x40 != 0);
            expected.push(byte | if done { 0 } else { 0x80 });
            if done {
                break;
            }
        }
        bytes == expected
    };

    if row.register(Register(16)) == Some(RegisterRule::Undefined) {
        return *rule == Rule::END;
    }
    if *rule == Rule::UNSUPPORTED {
        // Fair only if the frame hangs on another register or an expression, or the return address does.
        let usual_cfa = matches!(row.cfa(),
            CfaRule::RegisterAndOffset { register, .. } if register.0 == 6 || register.0 == 7);
        return !usual_cfa || !matches!(row.register(Register(16)), Some(RegisterRule::Offset(_)));
    }
    let cfa = match row.cfa() {
        &CfaRule::RegisterAndOffset { register, offset } => {
            let kind = if register.0 == 7 { CfaKind::SpOffset } else { CfaKind::FpOffset };
            (register.0 == 7 || register.0 == 6)
                && rule.cfa_kind == kind as u8
                && i64::from(rule.cfa_offset) == offset
        }
        CfaRule::Expression(expression) => {
            let bytes = operations(expression);
            if rule.cfa_kind == CfaKind::Plt as u8 {
                bytes == [0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x30 + rule.cfa_offset as u8, 0x2a, 0x33, 0x24, 0x22]
            } else if rule.cfa_kind == CfaKind::SpOffset as u8 {
                is_breg(&bytes, 7, rule.cfa_offset)
            } else {
                let register = match rule.cfa_kind {
                    5 => 7,
                    6 => 6,
                    _ => return false,
                };
                let addend = (rule.flags >> Rule::ADDEND_SHIFT) * 8;
                let bytes = match bytes.as_slice() {
                    [rest @ .., 0x06, 0x23, bytes] if *bytes == addend => rest,
                    [rest @ .., 0x06] if addend == 0 => rest,
                    _ => return false,
                };
                is_breg(bytes, register, rule.cfa_offset)
            }
        }
    };
    let fp = match row.register(Register(6)) {
        None | Some(RegisterRule::SameValue) => rule.fp_kind == FpKind::Same as u8,
        Some(RegisterRule::Offset(offset)) => {
            rule.fp_kind == FpKind::AtCfa as u8 && i64::from(rule.fp_offset) == offset
        }
        Some(RegisterRule::Expression(expression)) => {
            let bytes = operations(&expression);
            rule.fp_kind == FpKind::AtSp as u8 && is_breg(&bytes, 7, rule.fp_offset)
                || rule.fp_kind == FpKind::AtFp as u8 && is_breg(&bytes, 6, rule.fp_offset)
                || rule.fp_kind == FpKind::Undefined as u8
        }
        Some(_) => rule.fp_kind == FpKind::Undefined as u8,
    };
    let ra = match row.register(Register(16)) {
        Some(RegisterRule::Offset(offset)) => {
            rule.ra_kind == RaKind::AtCfa as u8 && i64::from(rule.ra_offset) == offset
        }
        Some(RegisterRule::Expression(expression)) => {
            rule.ra_kind == RaKind::AtSp as u8 && is_breg(&operations(&expression), 7, rule.ra_offset)
        }
        _ => false,
    };
    cfa && fp && ra
}

/// Compares a file's table with gimli at some thousand addresses; returns how many had unwind information.
fn compare(data: &[u8], seed: u64) -> usize {
    const PER_FILE: u64 = 4000;
    let mut rules = RuleTable::new();
    let table = Table::build(data, &mut rules).unwrap();
    assert_eq!(table.stats.skipped, 0);
    assert!(!table.stats.truncated);
    let image = Image::parse(data).unwrap();
    let section = image.sections[0];
    assert_eq!(section.source, Source::EhFrame);
    let mut frames = EhFrame::new(section.data, LittleEndian);
    frames.set_address_size(8);
    let bases = image.bases.clone().set_eh_frame(section.address);

    // gimli's own search goes through all entries for each address: look functions up here instead.
    let mut fdes = Vec::new();
    let mut entries = frames.entries(&bases);
    while let Some(entry) = entries.next().unwrap() {
        if let gimli::CieOrFde::Fde(partial) = entry {
            let fde = partial.parse(EhFrame::cie_from_offset).unwrap();
            fdes.push((fde.initial_address(), fde.end_address(), fde));
        }
    }
    fdes.sort_by_key(|fde| fde.0);

    let mut context = UnwindContext::new();
    let mut covered = 0;
    let mut state = seed | 1;
    for round in 0..PER_FILE {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Half of them anywhere, half in the first bytes of functions, where rules change.
        let address = if round % 2 == 0 {
            table.base + state % (table.end() - table.base)
        } else {
            let fde = &fdes[state as usize % fdes.len()];
            fde.0 + (state >> 32) % (fde.1 - fde.0).clamp(1, 40)
        };
        if address < table.base || address >= table.end() {
            continue;
        }
        let id = table.find(address).unwrap();
        let rule = rules.get(id).unwrap();
        let index = fdes.partition_point(|fde| fde.0 <= address);
        let fde = index.checked_sub(1).map(|index| &fdes[index]).filter(|fde| address < fde.1);
        let Some((_, _, fde)) = fde else {
            let begins = fdes.get(index).is_some_and(|next| next.0 - address < 16);
            assert!(*rule == Rule::NO_INFO || (*rule == Rule::END && begins), "{address:#x}: {rule:?}");
            continue;
        };
        let row = fde.unwind_info_for_address(&frames, &bases, &mut context, address).unwrap();
        assert!(says_the_same(rule, row, &frames), "{address:#x}: {rule:?} is not {row:?}");
        assert_eq!(rule.caller_is_exact(), fde.is_signal_trampoline() && *rule != Rule::END, "{address:#x}");
        covered += 1;
    }
    covered
}

#[test]
#[cfg(target_arch = "x86_64")]
fn tables_agree_with_gimli_on_real_files() {
    for (index, path) in real_files().iter().enumerate() {
        let data = fs::read(path).unwrap();
        if data.len() > 150 << 20 {
            continue;
        }
        let covered = compare(&data, 0x9e37_79b9 + index as u64);
        assert!(covered > 1000, "{}: {covered}", path.display());
    }
    assert!(compare(vdso(), 1) > 100);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn gimlis_own_search_gives_the_same() {
    let mut rules = RuleTable::new();
    let table = Table::build(vdso(), &mut rules).unwrap();
    let image = Image::parse(vdso()).unwrap();
    let frames = EhFrame::new(image.sections[0].data, LittleEndian);
    let bases = BaseAddresses::default().set_eh_frame(image.sections[0].address);
    let mut context = UnwindContext::new();
    let mut covered = 0;
    for address in table.base..table.end() {
        let rule = rules.get(table.find(address).unwrap()).unwrap();
        match frames.unwind_info_for_address(&bases, &mut context, address, EhFrame::cie_from_offset) {
            Ok(row) => {
                assert!(says_the_same(rule, row, &frames), "{address:#x}: {rule:?} is not {row:?}");
                covered += 1;
            }
            Err(_) => assert!([Rule::NO_INFO, Rule::END].contains(rule), "{address:#x}: {rule:?}"),
        }
    }
    assert!(covered > 100);
}

#[test]
fn an_image_without_section_headers_gives_the_same_table() {
    let with = Table::build(vdso(), &mut RuleTable::new()).unwrap();
    let mut data = vdso().to_vec();
    data[0x28..0x30].fill(0); // e_shoff
    data[0x3c..0x3e].fill(0); // e_shnum
    assert_eq!(Table::build(data.as_slice(), &mut RuleTable::new()), Ok(with));
}

#[test]
fn a_file_and_its_bytes_give_the_same_table() {
    let path = "/bin/ls";
    let from_file = Table::read(&File::open(path).unwrap(), &mut RuleTable::new()).unwrap();
    let from_bytes = Table::build(fs::read(path).unwrap().as_slice(), &mut RuleTable::new()).unwrap();
    assert_eq!(from_file, from_bytes);
    assert!(from_file.stats.fdes > 10);
}

#[test]
fn what_cannot_be_unwound_is_refused_with_a_reason() {
    let build = |data: &[u8]| Table::build(data, &mut RuleTable::new()).unwrap_err();
    assert_eq!(build(b""), BuildError::NotElf);
    assert_eq!(build(b"#!/bin/sh\n"), BuildError::NotElf);
    assert_eq!(build(b"\x7fELF\x01\x01"), BuildError::Unsupported("not 64-bit little-endian"));
    let mut data = vdso().to_vec();
    data[0x12] = 243; // RISC-V
    assert_eq!(build(&data), BuildError::Unsupported("processor"));
    let mut data = vdso().to_vec();
    data[0x20..0x28].fill(0); // e_phoff
    assert_eq!(build(&data), BuildError::NoCode);
}

/// An ELF image of one segment whose `.eh_frame` is found by its section header.
fn synthetic(machine: u16, debug_frame: bool, frames: &[u8]) -> Vec<u8> {
    let mut image = Vec::new();
    let names: &[u8] = if debug_frame { b"\0.debug_frame\0" } else { b"\0.eh_frame\0" };
    let frames_at = 64 + 56;
    let names_at = frames_at + frames.len();
    let sections_at = (names_at + names.len()).next_multiple_of(8);
    image.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    image.extend(3u16.to_le_bytes());
    image.extend(machine.to_le_bytes());
    image.extend(1u32.to_le_bytes());
    for word in [0, 64, sections_at as u64] {
        image.extend(word.to_le_bytes());
    }
    image.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 3, 2] {
        image.extend(half.to_le_bytes());
    }
    // PT_LOAD, R+X, at 0x1000, 64 KiB in memory.
    image.extend(1u32.to_le_bytes());
    image.extend(5u32.to_le_bytes());
    for word in [0u64, 0x1000, 0x1000, 0x1000, 0x10000, 0x1000] {
        image.extend(word.to_le_bytes());
    }
    image.extend(frames);
    image.extend(names);
    image.resize(sections_at + 64, 0);
    for (name, offset, size) in [(1u32, frames_at, frames.len()), (0, names_at, names.len())] {
        image.extend(name.to_le_bytes());
        image.extend(1u32.to_le_bytes());
        for word in [0u64, 0x20000, offset as u64, size as u64] {
            image.extend(word.to_le_bytes());
        }
        image.extend([0; 24]);
    }
    image
}

/// An entry: its id or the distance to its CIE, and its contents, padded.
fn entry(id: u32, contents: &[u8]) -> Vec<u8> {
    let len = (4 + contents.len()).next_multiple_of(8) + 4;
    let mut entry = (len as u32).to_le_bytes().to_vec();
    entry.extend(id.to_le_bytes());
    entry.extend(contents);
    entry.resize(4 + len, 0);
    entry
}

fn address_and_len(start: u64, len: u64) -> Vec<u8> {
    [start.to_le_bytes(), len.to_le_bytes()].concat()
}

#[test]
fn work_without_limit_is_refused() {
    // Each remembered row is one more copy.
    let program = [0x0a, 0x0b].repeat(17 << 20);
    let frames = eh_frame(62, X86_64_INITIAL, &[(0x1100, 0x80, &program)]);
    assert_eq!(
        Table::build(synthetic(62, false, &frames).as_slice(), &mut RuleTable::new()).map(|_| ()),
        Err(BuildError::TooLarge("unwind information"))
    );
}

/// `.eh_frame` of absolute addresses: a CIE (code alignment 1 or 4, data alignment -8) and functions.
fn eh_frame(machine: u16, initial: &[u8], functions: &[(u64, u64, &[u8])]) -> Vec<u8> {
    let (code, ra) = if machine == 62 { (1, 16) } else { (4, 30) };
    let mut cie = vec![1, 0, code, 0x78, ra];
    cie.extend(initial);
    let mut section = entry(0, &cie);
    for &(start, len, program) in functions {
        let mut contents = address_and_len(start, len);
        contents.extend(program);
        let back = section.len() as u32 + 4;
        section.extend(entry(back, &contents));
    }
    section.extend([0; 4]);
    section
}

/// CFA = rsp + 8, return address at CFA - 8.
const X86_64_INITIAL: &[u8] = &[0x0c, 7, 8, 0x90, 1];

fn rule_at(table: &Table, rules: &RuleTable, address: u64) -> Rule {
    *rules.get(table.find(address).unwrap()).unwrap()
}

fn sp_rule(offset: i32) -> Rule {
    Rule { cfa_kind: CfaKind::SpOffset as u8, cfa_offset: offset, ra_offset: -8, ..Rule::default() }
}

#[test]
fn of_overlapping_functions_the_later_start_wins() {
    let frames = eh_frame(
        62,
        X86_64_INITIAL,
        &[
            (0x1400, 0x40, &[0x0e, 24]),
            (0x1100, 0x200, &[0x0e, 16]),
            (0x1200, 0x400, &[0x0e, 32]),
            (0x1400, 0x100, &[0x0e, 40]),
            (0, 0x10000, &[0x0e, 48]),
            (0x9000, 1 << 40, &[0x0e, 56]),
            (0xa000, u64::MAX, &[0x0e, 64]),
        ],
    );
    let mut rules = RuleTable::new();
    let table = Table::build(synthetic(62, false, &frames).as_slice(), &mut rules).unwrap();
    assert_eq!((table.base, table.end()), (0x1000, 0x11000));
    let at = |address| rule_at(&table, &rules, address);
    assert_eq!(at(0x10ff), Rule::NO_INFO);
    assert_eq!(at(0x1100), sp_rule(16));
    assert_eq!(at(0x11ff), sp_rule(16));
    assert_eq!(at(0x1200), sp_rule(32));
    assert_eq!(at(0x1400), sp_rule(40), "the longer of two with the same start");
    assert_eq!(at(0x14ff), sp_rule(40));
    assert_eq!(at(0x1500), Rule::NO_INFO);
    assert_eq!(at(0x10fff), sp_rule(56), "cut to the code");
    assert_eq!(table.find(0x11000), None);
    assert_eq!(table.stats.fdes, 5);
}

#[test]
fn programs_of_every_supported_form_become_rules() {
    let frames = eh_frame(
        62,
        X86_64_INITIAL,
        &[
            // rsp + 16, rbp saved; rbp + 16; then an instruction unknown to us.
            (0x1100, 0x80, &[0x41, 0x0e, 16, 0x86, 2, 0x43, 0x0d, 6, 0x50, 0x3e]),
            // DRAP: r10, then *(rbp - 8) with rbp at rbp + 0.
            (0x1200, 0x80, &[0x0c, 10, 0, 0x44, 0x0f, 3, 0x76, 0x78, 0x06, 0x10, 6, 2, 0x76, 0]),
            // Return address undefined.
            (0x1300, 0x80, &[0x07, 16]),
            // *(rsp + 152) + 8, as OpenSSL's assembly has it.
            (0x1400, 0x80, &[0x0f, 6, 0x77, 0x98, 1, 0x06, 0x23, 8]),
            // A linkage table's.
            (0x1500, 0x80, &[0x0f, 11, 0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x3a, 0x2a, 0x33, 0x24, 0x22]),
            // rbp kept in another register.
            (0x1600, 0x80, &[0x09, 6, 3]),
        ],
    );
    let mut rules = RuleTable::new();
    let table = Table::build(synthetic(62, false, &frames).as_slice(), &mut rules).unwrap();
    let at = |address| rule_at(&table, &rules, address);
    assert_eq!(at(0x1100), sp_rule(8));
    let saved = Rule { fp_kind: FpKind::AtCfa as u8, fp_offset: -16, ..sp_rule(16) };
    assert_eq!(at(0x1101), saved);
    assert_eq!(at(0x1104), Rule { cfa_kind: CfaKind::FpOffset as u8, ..saved });
    assert_eq!(at(0x1114), Rule::UNSUPPORTED);
    assert_eq!(at(0x117f), Rule::UNSUPPORTED);
    assert_eq!(at(0x1180), Rule::NO_INFO);
    assert_eq!(at(0x1200), Rule::UNSUPPORTED);
    assert_eq!(
        at(0x1204),
        Rule { cfa_kind: CfaKind::DerefFp as u8, cfa_offset: -8, fp_kind: FpKind::AtFp as u8, ..sp_rule(0) }
    );
    assert_eq!(at(0x1300), Rule::END);
    assert_eq!(
        at(0x1400),
        Rule { cfa_kind: CfaKind::DerefSp as u8, flags: 1 << Rule::ADDEND_SHIFT, ..sp_rule(152) }
    );
    assert_eq!(at(0x1500), Rule { cfa_kind: CfaKind::Plt as u8, ..sp_rule(10) });
    assert_eq!(at(0x1600), Rule { fp_kind: FpKind::Undefined as u8, ..sp_rule(8) });
    assert_eq!(table.stats.unsupported, 2);
}

#[test]
fn debug_frame_serves_where_there_is_no_eh_frame() {
    let mut section = entry(u32::MAX, &[1, 0, 1, 0x78, 16, 0x0c, 7, 8, 0x90, 1]);
    section.extend([0; 4]); // padding that some assemblers leave
    let mut contents = address_and_len(0x1100, 0x80);
    contents.extend([0x0e, 64]);
    section.extend(entry(0, &contents));
    let mut rules = RuleTable::new();
    let table = Table::build(synthetic(62, true, &section).as_slice(), &mut rules).unwrap();
    assert_eq!(table.stats.source, Source::DebugFrame);
    assert_eq!(rule_at(&table, &rules, 0x1100), sp_rule(64));
}

#[test]
fn aarch64_leaves_keep_the_link_register() {
    let frames = eh_frame(
        183,
        &[0x0c, 31, 0],
        // Sign the return address; 32 bytes of stack, x29 and x30 saved; _start.
        &[(0x1100, 0x80, &[0x41, 0x2d, 0x41, 0x0e, 32, 0x9d, 4, 0x9e, 3]), (0x1200, 0x80, &[0x07, 30])],
    );
    let mut rules = RuleTable::new();
    let table = Table::build(synthetic(183, false, &frames).as_slice(), &mut rules).unwrap();
    assert_eq!(table.machine, Machine::Aarch64);
    let leaf = Rule { cfa_kind: CfaKind::SpOffset as u8, ra_kind: RaKind::Register as u8, ..Rule::default() };
    assert_eq!(rule_at(&table, &rules, 0x1100), leaf);
    assert_eq!(rule_at(&table, &rules, 0x1104), leaf);
    assert_eq!(
        rule_at(&table, &rules, 0x1108),
        Rule {
            cfa_kind: CfaKind::SpOffset as u8,
            cfa_offset: 32,
            fp_kind: FpKind::AtCfa as u8,
            fp_offset: -32,
            ra_offset: -24,
            ..Rule::default()
        }
    );
    assert_eq!(rule_at(&table, &rules, 0x1200), Rule::END);
}

#[test]
fn a_bad_entry_costs_only_itself() {
    let mut frames = entry(0, &[9, 0, 1]); // a CIE of no known version
    frames.extend(entry(frames.len() as u32 + 4, &address_and_len(0x1100, 0x80)));
    let good = frames.len();
    frames.extend(entry(0, &[&[1, 0, 1, 0x78, 16][..], X86_64_INITIAL].concat()));
    frames.extend(entry((frames.len() + 4 - good) as u32, &address_and_len(0x1200, 0x80)));
    frames.extend(1000u32.to_le_bytes());
    let mut rules = RuleTable::new();
    let table = Table::build(synthetic(62, false, &frames).as_slice(), &mut rules).unwrap();
    assert_eq!(rule_at(&table, &rules, 0x1200), sp_rule(8));
    assert_eq!(table.find(0x1100), Some(0));
    assert_eq!((table.stats.fdes, table.stats.skipped, table.stats.truncated), (1, 1, true));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn damaged_files_never_panic(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..32),
        cut: Option<prop::sample::Index>,
    ) {
        let mut data = vdso().to_vec();
        for (at, byte) in &damage {
            let at = at.index(data.len());
            data[at] = *byte;
        }
        if let Some(cut) = cut {
            data.truncate(cut.index(data.len()));
        }
        let _ = Table::build(data.as_slice(), &mut RuleTable::new());
    }

    #[test]
    fn damaged_unwind_information_never_panics(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..64),
    ) {
        let image = Image::parse(vdso()).unwrap();
        let mut frames = image.sections[0].data.to_vec();
        for (at, byte) in &damage {
            let at = at.index(frames.len());
            frames[at] = *byte;
        }
        let _ = Table::build(synthetic(62, false, &frames).as_slice(), &mut RuleTable::new());
        let _ = Table::build(synthetic(183, true, &frames).as_slice(), &mut RuleTable::new());
    }

    #[test]
    fn any_bytes_as_programs_never_panic(
        initial in proptest::collection::vec(any::<u8>(), 0..24),
        programs in proptest::collection::vec(
            (0x1000u64..0x12000, 0u64..0x1000, proptest::collection::vec(any::<u8>(), 0..40)), 0..20),
    ) {
        let functions: Vec<(u64, u64, &[u8])> =
            programs.iter().map(|(start, len, program)| (*start, *len, program.as_slice())).collect();
        for machine in [62, 183] {
            let frames = eh_frame(machine, &initial, &functions);
            let _ = Table::build(synthetic(machine, false, &frames).as_slice(), &mut RuleTable::new());
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod stacks;
