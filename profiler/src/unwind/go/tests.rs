use gimli::UnwindSection as _;
use profiler_common::unwind::{Memory, Registers, Step, StopReason, X86_64};
use proptest::prelude::*;

use super::*;
use crate::{
    process::go::{
        GoSection,
        fixtures::{Made, TEXT, Written, file, framed, some, table},
    },
    unwind::{Source, Table, walk::walk},
};

const EACH: [Written; 3] = [Written::By1_16, Written::By1_18, Written::By1_20];

/// The table of functions, and the rules it refers to.
fn built(by: Written, functions: &[Made]) -> (Table, RuleTable) {
    let mut rules = RuleTable::new();
    let (table, code) = table(by, functions);
    let section = GoSection { table: table.into(), text: TEXT };
    (Table::of_go(section, &code, &mut rules).unwrap(), rules)
}

/// The rules at the offsets of the first function.
fn rules_at<const N: usize>(by: Written, made: Made, offsets: [u64; N]) -> [Rule; N] {
    let (table, rules) = built(by, &[made]);
    offsets.map(|offset| *rules.get(table.find(TEXT + offset).unwrap()).unwrap())
}

fn by_sp(size: i32) -> Rule {
    Rule { cfa_kind: CfaKind::SpOffset as u8, cfa_offset: size + 8, ra_offset: -8, ..Rule::default() }
}

/// The frame pointer is saved, too.
fn saved(size: i32) -> Rule {
    Rule { fp_kind: FpKind::AtCfa as u8, fp_offset: -16, ..by_sp(size) }
}

#[test]
fn frames_have_their_size_and_their_callers_frame_pointer() {
    for by in EACH {
        // Before SUBQ; before MOVQ BP; before LEAQ; in the middle; before ADDQ; before RET.
        let at = rules_at(by, framed("main.f"), [0, 4, 9, 20, 27, 31]);
        assert_eq!(at, [by_sp(0), by_sp(24), saved(24), saved(24), saved(24), by_sp(0)], "{by:?}");
    }
}

#[test]
fn a_frame_pointer_that_is_pushed_is_saved_at_once() {
    // CMPQ, JBE; PUSHQ BP; MOVQ SP, BP; SUBQ $16, SP; ADDQ $16, SP; POPQ BP; RET.
    let code = [
        0x49, 0x3b, 0x66, 0x10, 0x76, 0x41, 0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x10, 0x90, 0x48, 0x83,
        0xc4, 0x10, 0x5d, 0xc3,
    ];
    let made = Made::new("main.f", &[(7, 0), (7, 8), (5, 24), (1, 8), (1, 0)], &code);
    let at = rules_at(Written::By1_20, made, [6, 7, 10, 14, 19, 20]);
    assert_eq!(at, [by_sp(0), saved(8), saved(8), saved(24), saved(8), by_sp(0)]);
}

#[test]
fn large_frames_are_read_too() {
    // SUBQ $0x218, SP; MOVQ BP, 0x210(SP).
    let code = [0x48, 0x81, 0xec, 0x18, 2, 0, 0, 0x48, 0x89, 0xac, 0x24, 0x10, 2, 0, 0, 0x90];
    let made = Made::new("main.f", &[(7, 0), (9, 0x218)], &code);
    assert_eq!(rules_at(Written::By1_18, made, [7, 14, 15]), [by_sp(0x218), by_sp(0x218), saved(0x218)]);
}

#[test]
fn leaves_have_no_frame_and_assembly_may_keep_the_frame_pointer() {
    assert_eq!(
        rules_at(Written::By1_18, Made::new("main.leaf", &[(8, 0)], &[0x90; 8]), [0, 7]),
        [by_sp(0); 2]
    );
    // PUSHQ AX; POPQ AX.
    let made = Made::new("f", &[(1, 0), (3, 8), (1, 0)], &[0x50, 0x90, 0x90, 0x58, 0xc3]);
    assert_eq!(rules_at(Written::By1_18, made, [0, 1, 4]), [by_sp(0), by_sp(8), by_sp(0)]);
}

#[test]
fn stacks_end_at_the_outermost_functions() {
    let outermost = |name, flags| {
        EACH.map(|by| rules_at(by, Made::new(name, &[(8, 0)], &[0x90; 8]).flagged(flags), [1])[0])
    };
    for name in ["runtime.goexit", "runtime.goexit.abi0", "runtime.mstart", "runtime.rt0_go", "runtime.mcall"]
    {
        assert_eq!(outermost(name, 0), [Rule::END; 3], "{name}");
    }
    assert_eq!(outermost("main.any", TOP_FRAME | WRITES_SP), [Rule::END; 3]);
    assert_eq!(outermost("runtime.sigtramp", TOP_FRAME), [by_sp(0); 3], "it returns to the kernel's frame");
    assert_eq!(outermost("runtime.goexit0", 0), [by_sp(0); 3]);
}

#[test]
fn stacks_go_on_where_they_are_changed() {
    let of = |made: Made| rules_at(Written::By1_18, made, [0, 4, 9, 14, 26, 27, 31]);
    // Its own frame is known by the frame pointer; how it begins and ends by the stack pointer.
    let expected = [by_sp(0), by_sp(24), saved(24), BY_FRAME_POINTER, BY_FRAME_POINTER, saved(24), by_sp(0)];
    assert_eq!(of(framed("runtime.any").flagged(WRITES_SP)), expected);
    assert_eq!(of(framed("runtime.nanotime1")), expected, "versions without flags");
    let frameless = Made::new("runtime.systemstack", &[(32, 0)], &[0x90; 32]);
    assert_eq!(of(frameless.clone()), [BY_FRAME_POINTER; 7]);
    let mut clears = frameless;
    clears.code[10..17].copy_from_slice(&[0x48, 0xc7, 0xc5, 0, 0, 0, 0]);
    assert_eq!(of(clears), [Rule::END; 7], "nobody could be found");
}

#[test]
fn who_returns_from_a_signal_is_known_a_byte_before() {
    let functions =
        [framed("main.f"), Made::new("runtime.sigreturn", &[(8, 0)], &[0x90; 8]), framed("main.g")];
    let (table, rules) = built(Written::By1_18, &functions);
    let at = [30, 31, 32, 39, 40].map(|offset| *rules.get(table.find(TEXT + offset).unwrap()).unwrap());
    assert_eq!(at, [saved(24), SIGNAL_RETURN, SIGNAL_RETURN, SIGNAL_RETURN, by_sp(0)]);
    let interrupts =
        rules_at(Written::By1_18, Made::new("runtime.asyncPreempt", &[(8, 0)], &[0x90; 8]), [0])[0];
    assert!(interrupts.caller_is_exact());
}

/// A CIE (CFA = rsp + 8) and a function of C's, which also claims the Go function before it.
fn eh_frame(start: u64, len: u64) -> Vec<u8> {
    let mut section = vec![20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0x78, 16, 0x0c, 7, 8, 0x90, 1, 0, 0, 0, 0, 0, 0];
    section.extend([28, 0, 0, 0, 28, 0, 0, 0]);
    section.extend([start, len].iter().flat_map(|word| word.to_le_bytes()));
    section.extend([0x0e, 0x70, 0, 0, 0, 0, 0, 0]); // CFA = rsp + 112
    section.extend([0; 4]);
    section
}

#[test]
fn go_tells_of_its_code_and_other_unwind_information_of_the_rest() {
    let functions = [framed("main.f"), Made::new("from_c", &[], &[0x90; 32]), framed("main.g")];
    let (table, mut code) = table(Written::By1_18, &functions);
    code.extend([0x90; 0x400]); // C again
    let frames = eh_frame(TEXT, 0x300);
    let file = file(&[
        (".text", 1, TEXT, &code),
        (".gopclntab", 1, 0x5000, &table),
        (".eh_frame", 1, 0x9000, &frames),
    ]);
    let mut rules = RuleTable::new();
    let built = Table::build(&*file, &mut rules).unwrap();
    let at =
        [20, 40, 64, 84, 0x60, 0x2ff].map(|offset| *rules.get(built.find(TEXT + offset).unwrap()).unwrap());
    let of_c = by_sp(104);
    assert_eq!(at, [saved(24), of_c, by_sp(0), saved(24), of_c, of_c]);
    assert_eq!((built.stats.go_functions, built.stats.fdes), (2, 1));
}

#[test]
fn a_table_that_is_not_this_codes_is_not_taken() {
    let functions: Vec<Made> = (0..40).map(|_| framed("main.f")).collect();
    let (table, code) = table(Written::By1_18, &functions);
    let section = |text| GoSection { table: table.clone().into(), text };
    let build =
        |code: &[u8]| Table::of_go(section(TEXT), code, &mut RuleTable::new()).map(|table| table.stats);
    assert_eq!(build(&code).unwrap().go_functions, 40);
    // As where the address of the code is taken for another.
    let other = [&[0x90; 32][..], &code[..code.len() - 48], &[0x90; 16]].concat();
    assert_eq!(build(&other[16..]), Err(crate::unwind::BuildError::NoUnwindInfo));
}

#[test]
fn functions_in_disorder_or_outside_the_code_are_left_out() {
    let (mut table, code) = table(Written::By1_18, &[framed("main.a"), framed("main.b"), framed("main.c")]);
    let index = u64::from_le_bytes(table[64..72].try_into().unwrap()) as usize;
    table[index + 8..index + 12].copy_from_slice(&0x4000_0000u32.to_le_bytes());
    let mut rules = RuleTable::new();
    let section = GoSection { table: table.into(), text: TEXT };
    let built = Table::of_go(section, &code, &mut rules).unwrap();
    assert_eq!((built.stats.go_functions, built.stats.skipped), (1, 2));
    assert_eq!(built.find(TEXT + 64 + 20).map(|id| *rules.get(id).unwrap()), Some(saved(24)));
}

/// The second begins where the third ends, and ends before it begins.
#[test]
fn a_function_that_goes_back_is_left_out() {
    let (mut table, code) = table(Written::By1_18, &[framed("main.a"), framed("main.b"), framed("main.c")]);
    let index = u64::from_le_bytes(table[64..72].try_into().unwrap()) as usize;
    for (function, start) in [(1, 64u32), (2, 32)] {
        for at in [index + 8 * function, index + 32 + 40 * function] {
            table[at..at + 4].copy_from_slice(&start.to_le_bytes());
        }
    }
    let section = GoSection { table: table.into(), text: TEXT };
    let built = Table::of_go(section, &code, &mut RuleTable::new()).unwrap();
    assert_eq!((built.stats.go_functions, built.stats.skipped), (1, 2));
}

#[test]
fn work_without_limit_is_refused() {
    // All functions share steps that change nothing and lead nowhere.
    let mut made = vec![Made::new("main.f", &[(0, 8); 1], &[0x90])];
    made[0].sizes = (0..1 << 14).map(|i| (0, i % 2 * 8)).collect();
    let many = vec![Made::new("main.g", &[(0, 8)], &[0x90]); 1 << 13];
    made.extend(many);
    let (mut table, code) = table(Written::By1_18, &made);
    let index = u64::from_le_bytes(table[64..72].try_into().unwrap()) as usize;
    for function in 0..made.len() {
        let info = index + (made.len() + 1) * 8 + function * 40;
        table[info + 16..info + 20].copy_from_slice(&1u32.to_le_bytes());
    }
    let section = GoSection { table: table.into(), text: TEXT };
    let built = Table::of_go(section, &code, &mut RuleTable::new());
    assert_eq!(built.map(|_| ()), Err(BuildError::TooLarge("unwind information")));
}

/// Memory that has these words and no others.
struct Words(Vec<(u64, u64)>);

impl Memory for Words {
    fn read_u64(&self, address: u64) -> Option<u64> {
        self.0.iter().find(|word| word.0 == address).map(|word| word.1)
    }
}

/// From the scheduler's stack, which may be above or below, to that of a goroutine.
#[test]
fn stacks_are_followed_from_one_to_the_other() {
    let functions = [
        framed("main.top"),
        framed("main.asks"),
        Made::new("runtime.systemstack", &[(32, 0)], &[0x90; 32]),
        framed("runtime.serves"),
        Made::new("main.leaf", &[(32, 0)], &[0x90; 32]),
        Made::new("runtime.goexit", &[(32, 0)], &[0x90; 32]),
    ];
    let (table, rules) = built(Written::By1_18, &functions);
    let code = |function: u64, offset| TEXT + 32 * function + offset;
    // Of `main.top`: its frame, 24 bytes, begins at 0x5030. Of `runtime.serves`: at the place given.
    for serves in [0x1000, 0x9000] {
        let memory = Words(vec![
            (serves - 8, code(3, 20)), // of the leaf
            (serves + 16, 0x5020),     // the frame pointer of `main.asks`
            (serves + 24, code(2, 20)),
            (0x5020, 0x5040),
            (0x5028, code(0, 20)),
            (0x5040, 0),
            (0x5048, code(5, 1)),
        ]);
        let registers = Registers { ip: code(4, 9), sp: serves - 8, fp: serves + 16, lr: 0 };
        let find = |address| {
            let rule = table.find(address).and_then(|id| rules.get(id)).ok_or(StopReason::NoTable)?;
            Ok(*rule)
        };
        let (frames, end) = walk::<X86_64, _>(registers, &memory, 20, find, |_, _, _| None);
        // Where the stacks change the frame pointer is that of who asked for it, which therefore is left out.
        let expected = [code(4, 9), code(3, 20), code(2, 20), code(0, 20), code(5, 1)];
        assert_eq!((frames.as_slice(), end), (&expected[..], Step::End), "{serves:#x}");
    }
}

/// Go's linker writes the same sizes in the form of DWARF.
#[test]
fn sizes_of_frames_agree_with_debug_information() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("program");
    let source = folder.path().join("main.go");
    std::fs::write(&source, "package main\n\nimport \"fmt\"\n\nfunc main() { fmt.Println(1) }\n").unwrap();
    let mut go = std::process::Command::new("go");
    go.env("GOCACHE", folder.path().join("cache")).env("GOFLAGS", "").env("HOME", folder.path());
    go.args(["build", "-ldflags", "-compressdwarf=false", "-o"]).arg(&program).arg(&source);
    if !go.status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: no go");
        return;
    }
    let data = std::fs::read(&program).unwrap();
    let mut rules = RuleTable::new();
    let built = Table::build(&*data, &mut rules).unwrap();
    assert!(built.stats.go_functions > 1000, "{:?}", built.stats);
    let image = Image::parse(&*data).unwrap();
    let frames = image.sections.iter().find(|section| section.source == Source::DebugFrame).unwrap();
    let mut section = gimli::DebugFrame::new(frames.data, gimli::LittleEndian);
    section.set_address_size(8);
    let bases = gimli::BaseAddresses::default();
    let mut context = gimli::UnwindContext::new();
    let (mut same, mut special) = (0, 0);
    let mut entries = section.entries(&bases);
    while let Some(entry) = entries.next().unwrap() {
        let gimli::CieOrFde::Fde(fde) = entry else { continue };
        let fde = fde.parse(gimli::DebugFrame::cie_from_offset).unwrap();
        let mut rows = fde.rows(&section, &bases, &mut context).unwrap();
        while let Some(row) = rows.next_row().unwrap() {
            let &gimli::CfaRule::RegisterAndOffset { offset, .. } = row.cfa() else { panic!("{row:?}") };
            for address in row.start_address()..row.end_address() {
                let rule = rules.get(built.find(address).unwrap()).unwrap();
                let is_usual = rule.cfa_kind == CfaKind::SpOffset as u8;
                (same, special) = (same + u64::from(is_usual), special + u64::from(!is_usual));
                assert!(
                    !is_usual || i64::from(rule.cfa_offset) == offset,
                    "{address:#x}: {rule:?} is not {row:?}"
                );
                assert_ne!(*rule, Rule::NO_INFO, "{address:#x}");
            }
        }
    }
    assert!(same > 100_000 && special * 100 < same, "{same} and {special} bytes of code");
}

proptest! {
    #[test]
    fn damaged_tables_never_panic(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..32),
        cut: Option<prop::sample::Index>,
        by in 0..3usize,
    ) {
        let functions = [some(), vec![framed("runtime.systemstack"), framed("runtime.sigreturn")]].concat();
        let (mut bytes, code) = table(EACH[by], &functions);
        for (at, byte) in &damage {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        for text in [TEXT, 0, u64::MAX - 64] {
            let section = GoSection { table: (&*bytes).into(), text };
            if let Ok(table) = Table::of_go(section, &code, &mut RuleTable::new()) {
                prop_assert!(table.rows <= 4 * code.len() as u64);
            }
        }
    }
}
