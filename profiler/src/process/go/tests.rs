use object::elf::SHT_PROGBITS;

use super::{
    fixtures::{TEXT, Written, file, some, table},
    *,
};

fn starts(data: &[u8]) -> Option<Vec<(u64, String)>> {
    let table = GoTable::read(GoSection::find(data)?)?;
    let functions = (0..table.functions()).map(|index| table.function_at(index).unwrap());
    let named = functions.map(|function| {
        let name = table.name(&function, 64).unwrap();
        (function.start, String::from_utf8(name.to_vec()).unwrap())
    });
    Some(named.collect())
}

#[test]
fn tables_of_every_version_are_read() {
    for by in [Written::By1_16, Written::By1_18, Written::By1_20] {
        let (table, code) = table(by, &some());
        for name in [".gopclntab", ".data.rel.ro.gopclntab"] {
            let sections = [(".text", SHT_PROGBITS, TEXT, &*code), (name, SHT_PROGBITS, 0x5000, &table)];
            let found = starts(&file(&sections)).unwrap();
            assert_eq!(
                found,
                [(TEXT, "main.main".to_owned()), (TEXT + 32, "main.leaf".to_owned())],
                "{by:?}"
            );
        }
    }
}

#[test]
fn flags_are_behind_the_words() {
    for (by, flags) in [(Written::By1_16, 5), (Written::By1_18, 5), (Written::By1_20, 5)] {
        let functions: Vec<_> = some().into_iter().map(|function| function.flagged(flags)).collect();
        let (table, _) = table(by, &functions);
        let table = GoTable::read(GoSection { table: table.into(), text: TEXT }).unwrap();
        assert_eq!(table.flags(&table.function_at(1).unwrap()), Some(flags), "{by:?}");
    }
}

/// As the C linker leaves it in a program at no fixed place: among other constants, and without the address of the code, which
/// the loader puts there.
#[test]
fn a_table_among_other_constants_is_found() {
    let (mut table, code) = table(Written::By1_18, &some());
    table[24..32].fill(0);
    let mut constants = vec![0xf0; 40];
    constants.extend(&table);
    let mut relocations = vec![0; 24];
    for word in [0x5000 + 40 + 24, u64::from(R_X86_64_RELATIVE), TEXT + 0x100] {
        relocations.extend(word.to_le_bytes());
    }
    let sections = |of_go: &'static str, relocated: bool| {
        file(&[
            (".text", SHT_PROGBITS, TEXT, &code),
            (of_go, SHT_PROGBITS, 0x9000, &[1]),
            (".data.rel.ro", SHT_PROGBITS, 0x5000, &constants),
            (".rela.dyn", if relocated { SHT_RELA } else { SHT_PROGBITS }, 0x400, &relocations),
        ])
    };
    assert_eq!(starts(&sections(".go.buildinfo", true)).unwrap()[0].0, TEXT + 0x100);
    assert_eq!(starts(&sections(".go.buildinfo", false)).unwrap()[0].0, TEXT, "where the code begins");
    assert_eq!(starts(&sections(".other", true)), None, "only programs of Go are searched");
}

#[test]
fn steps_end_where_they_say_so() {
    let steps = |bytes| Steps { bytes, value: -1, at: 0x1000, quantum: 1, first: true }.collect::<Vec<_>>();
    assert_eq!(steps(&[2, 4, 48, 0x80, 1, 47, 1, 0, 9, 9]), [(0x1004, 0), (0x1084, 24), (0x1085, 0)]);
    assert_eq!(steps(&[2, 4, 48]), [(0x1004, 0)], "cut off");
    assert_eq!(steps(&[0x80; 40]), [], "a number without end");
    assert_eq!(steps(&[0, 4, 0]), [(0x1004, -1)], "the first may change nothing");
}
